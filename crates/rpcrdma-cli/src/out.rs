//! Standard output and standard error: who may print, in what colour, and what happens when nobody listens.

use std::{
    io::{self, BufWriter, IsTerminal as _, StdoutLock, Write},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::failure::Failure;

static QUIET: AtomicBool = AtomicBool::new(false);
static COMMAND: OnceLock<String> = OnceLock::new();
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Says once, at the start, who speaks and whether only errors are wanted.
pub(crate) fn set_up(command: &str, quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
    // Set up once per process.
    let _ = COMMAND.set(command.to_owned());
}

/// Whether only errors are wanted.
pub(crate) fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Lets messages pass above a progress bar, or, with `None`, be printed plainly.
pub(crate) fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

fn line(text: &str) {
    let command = COMMAND.get().map_or("", String::as_str);
    let line =
        if command.is_empty() { format!("rpcrdma: {text}") } else { format!("rpcrdma: {command}: {text}") };
    let print = || {
        // Nothing can be done about a standard error that is closed.
        let _ = writeln!(io::stderr().lock(), "{line}");
    };
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// Prints a failure.
pub(crate) fn failure(failure: &Failure) {
    if !failure.is_silent() {
        line(&failure.to_string());
    }
}

/// Prints something that the user may want to know, unless only errors are wanted.
pub(crate) fn note(text: &str) {
    if !quiet() {
        line(text);
    }
}

/// Standard output, buffered; what is wrong with it is a [`Failure`] that names it.
pub(crate) struct Out {
    inner: BufWriter<StdoutLock<'static>>,
    colour: bool,
}

impl Out {
    pub(crate) fn new() -> Self {
        let stdout = io::stdout();
        let colour = stdout.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { inner: BufWriter::with_capacity(64 << 10, stdout.lock()), colour }
    }

    fn checked(done: io::Result<()>) -> Result<(), Failure> {
        done.map_err(|e| Failure::of("standard output", e))
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) -> Result<(), Failure> {
        Self::checked(writeln!(self.inner, "{}", text.as_ref()))
    }

    /// Prints a value as JSON on a line.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|e| Failure::of("standard output", e.to_string()))?;
        self.line(text)
    }

    /// Prints what is still in the buffer.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Self::checked(self.inner.flush())
    }

    /// The text in a colour (an SGR code) if somebody sees it.
    pub(crate) fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether standard output has had to do with a terminal.
pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}
