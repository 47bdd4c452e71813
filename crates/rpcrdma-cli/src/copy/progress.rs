//! The progress bar of a copy.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::{Job, Totals, get};
use crate::units;

const REDRAW: Duration = Duration::from_millis(100);
/// The rate shown is that of about so long.
const MEMORY: Duration = Duration::from_secs(3);

/// A bar that follows a job until it is dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
    task: JoinHandle<()>,
}

impl Bar {
    /// Shows how far a job is, on standard error.
    pub(crate) fn start(job: &Arc<Job>, bar: ProgressBar) -> Self {
        let job = Arc::clone(job);
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let mut speed = Speed::new();
            let mut ticks = tokio::time::interval(REDRAW);
            loop {
                ticks.tick().await;
                draw(&shown, &job.totals, &mut speed);
            }
        });
        Self { bar, task }
    }

    /// A bar that is not shown yet.
    pub(crate) fn hidden() -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar:.cyan/dim} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸─"));
        bar
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

fn draw(bar: &ProgressBar, totals: &Totals, speed: &mut Speed) {
    let moved = get(&totals.bytes);
    let done = moved + get(&totals.skipped_bytes);
    let rate = speed.update(moved, Instant::now());
    let files = get(&totals.files) + get(&totals.links) + get(&totals.unchanged);
    let (all_files, all) = (get(&totals.expected.0).max(files), get(&totals.expected.1).max(done));
    bar.set_length(all.max(1));
    bar.set_position(done);
    let counted = totals.counted.load(std::sync::atomic::Ordering::Relaxed);
    let left = match (counted, rate as u64) {
        (true, 1..) => format!("{} left", clock((all - done) / rate as u64)),
        (true, 0) => "stalled".to_owned(),
        (false, _) => "counting".to_owned(),
    };
    let plus = if counted { "" } else { "+" };
    bar.set_message(format!(
        "{}/{}{plus} files  {} of {}{plus}  {}/s  {left}",
        units::count(files),
        units::count(all_files),
        units::size(done),
        units::size(all),
        units::size(rate as u64),
    ));
}

/// A number of seconds as a clock shows it: `0:07`, `1:02:03`.
fn clock(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

/// A rate that forgets what was long ago.
struct Speed {
    at: Instant,
    bytes: u64,
    rate: f64,
    known: bool,
}

impl Speed {
    fn new() -> Self {
        Self { at: Instant::now(), bytes: 0, rate: 0.0, known: false }
    }

    fn update(&mut self, bytes: u64, now: Instant) -> f64 {
        let dt = now.duration_since(self.at).as_secs_f64();
        if dt > 0.0 {
            let current = bytes.saturating_sub(self.bytes) as f64 / dt;
            let weight = if self.known { 1.0 - (-dt / MEMORY.as_secs_f64()).exp() } else { 1.0 };
            self.rate += weight * (current - self.rate);
            self.known |= bytes > 0;
            (self.at, self.bytes) = (now, bytes);
        }
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_happens() {
        let mut speed = Speed::new();
        let start = speed.at;
        let mut bytes = 0;
        for tenth in 1..=100 {
            bytes += 1 << 20;
            speed.update(bytes, start + Duration::from_millis(100 * tenth));
        }
        assert!((speed.rate / f64::from(10 << 20) - 1.0).abs() < 0.01, "{}", speed.rate);
        for tenth in 101..=300 {
            speed.update(bytes, start + Duration::from_millis(100 * tenth));
        }
        assert!(speed.rate < f64::from(1 << 20));
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(7), "0:07");
        assert_eq!(clock(3723), "1:02:03");
    }
}
