//! What happened, as a hash and as a timeline.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rpcrdma::{
    fabric::{
        Completion, Op,
        sim::{Event, EventKind, Observer, Side},
    },
    proto::rpcrdma::{Header, Limits},
};

use crate::checker::Checker;

/// Events that are kept for the timeline, unless `RPCRDMA_SIM_KEEP` says otherwise.
const KEPT: usize = 60;

/// The record of one run. Clones are the same one.
#[derive(Clone)]
pub struct Log(Arc<Mutex<State>>);

struct State {
    hash: DefaultHasher,
    events: u64,
    last: VecDeque<String>,
    kept: usize,
    /// Nothing is added to the timeline after a rule was broken, so that it shows what led there.
    frozen: bool,
    /// The run is over: what is dropped in its last moment comes in no order.
    over: bool,
    checker: Checker,
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// An empty record.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            hash: DefaultHasher::new(),
            events: 0,
            last: VecDeque::new(),
            kept: std::env::var("RPCRDMA_SIM_KEEP").ok().and_then(|n| n.parse().ok()).unwrap_or(KEPT),
            frozen: false,
            over: false,
            checker: Checker::default(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the checker.
    pub fn checker<T>(&self, f: impl FnOnce(&mut Checker) -> T) -> T {
        f(&mut self.state().checker)
    }

    /// A number that two runs share only if the same things happened in them.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.state().hash.finish()
    }

    /// Ends the record.
    pub fn close(&self) {
        self.state().over = true;
    }

    /// How much happened.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.state().events
    }

    /// The last events, for people.
    #[must_use]
    pub fn timeline(&self) -> String {
        let state = self.state();
        let mut out = String::from(
            "  step       ms conn  recvs  grant  out/await  held  what (c: client, s: server)\n",
        );
        for line in &state.last {
            let _ = writeln!(out, "{line}");
        }
        out
    }

    /// The observer that fills this record.
    #[must_use]
    pub fn observer(&self) -> Box<dyn Observer> {
        Box::new(self.clone())
    }
}

impl Observer for Log {
    fn see(&mut self, event: &Event<'_>) {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.over {
            return;
        }
        state.events += 1;
        state.checker.see(event);
        digest(&mut state.hash, event);
        let noise = matches!(event.kind, EventKind::Handed(Completion::Flushed { op: Op::Recv, .. }));
        if state.frozen || noise {
            return;
        }
        if state.last.len() >= state.kept {
            state.last.pop_front();
        }
        let account = state.checker.account(event.conn);
        let numbers = account.map_or_else(String::new, |a| {
            let granted = a.granted.map_or_else(|| "-".to_owned(), |g| g.to_string());
            format!(
                "{:>3}/{:<3} {granted:>5} {:>5}/{:<5} {:>4}",
                a.posted[0],
                a.posted[1],
                a.outstanding.len(),
                a.awaited.len(),
                a.held.len()
            )
        });
        let side = if event.side == Side::Active { 'c' } else { 's' };
        state.last.push_back(format!(
            "{:>6} {:>8} {:>4} {numbers}   {side} {}",
            event.step,
            event.at.as_millis(),
            event.conn,
            words(event)
        ));
        state.frozen = state.checker.verdict().is_some();
    }
}

fn digest(hash: &mut DefaultHasher, event: &Event<'_>) {
    hash.write_u64(event.step);
    hash.write_u128(event.at.as_millis());
    hash.write_u64(event.conn);
    hash.write_u8(event.side as u8);
    match &event.kind {
        EventKind::SendPosted { bytes, .. } | EventKind::Arrived { bytes } => hash.write(bytes),
        EventKind::Handed(Completion::Received { buf, len, .. }) => hash.write(&buf[..*len]),
        EventKind::Handed(completion) => hash.write_u8(match completion {
            Completion::Received { .. } => 0,
            Completion::Done { .. } => 1,
            Completion::Flushed { .. } => 2,
            Completion::Reclaimed { .. } => 3,
        }),
        EventKind::Exposed { stag, offset, len, .. } => {
            hash.write_u32(stag.0);
            hash.write_u64(*offset);
            hash.write_u32(*len);
        }
        EventKind::Placed { stag, len } | EventKind::Fetched { stag, len } => {
            hash.write_u32(stag.0);
            hash.write_usize(*len);
        }
        EventKind::Reclaimed { stag, .. } | EventKind::Invalidating { stag } => hash.write_u32(stag.0),
        EventKind::Fault(_) => hash.write_u8(9),
        _ => hash.write_u8(7),
    }
}

/// An event in words.
fn words(event: &Event<'_>) -> String {
    let message = |bytes: &[u8]| match Header::decode(bytes, &Limits::REPLY) {
        Ok((h, _)) => {
            format!("{} XID {} credit {} ({} bytes)", h.body.proc(), h.xid, h.credit.0, bytes.len())
        }
        Err(e) => format!("{e}"),
    };
    match &event.kind {
        EventKind::Connect { to } => format!("{} connects to {to}", event.addr),
        EventKind::Request => "connection request".to_owned(),
        EventKind::Born { recvs } => format!("starts with {recvs} Receives"),
        EventKind::NotMade => "the connection is not made".to_owned(),
        EventKind::RecvPosted => "posts a Receive".to_owned(),
        EventKind::SendPosted { bytes, invalidate } => {
            let suffix = invalidate.map_or_else(String::new, |s| format!(", invalidates {s:?}"));
            format!("posts {}{suffix}", message(bytes))
        }
        EventKind::Posted { op, len } => format!("posts a {op:?} of {len} bytes"),
        EventKind::Exposed { stag, len, access, .. } => {
            format!("exposes {len} bytes as {stag:?} for {access:?}")
        }
        EventKind::NotExposed => "cannot expose a region".to_owned(),
        EventKind::Invalidating { stag } => format!("invalidates {stag:?}"),
        EventKind::Reclaimed { stag, how } => format!("{stag:?} is closed ({how:?})"),
        EventKind::Arrived { bytes } => format!("receives {}", message(bytes)),
        EventKind::Placed { stag, len } => format!("{len} bytes are placed in {stag:?}"),
        EventKind::Fetched { stag, len } => format!("{len} bytes are fetched from {stag:?}"),
        EventKind::NoRecv => "A MESSAGE FINDS NO RECEIVE".to_owned(),
        EventKind::Violation(what) => format!("VIOLATION: {what}"),
        EventKind::Handed(c) => match c {
            Completion::Received { buf, len, .. } => format!("is given {}", message(&buf[..*len])),
            Completion::Done { op, .. } => format!("is told that a {op:?} is done"),
            Completion::Flushed { op, .. } => format!("has a {op:?} flushed"),
            Completion::Reclaimed { stag, .. } => format!("is given {stag:?} back"),
        },
        EventKind::Fault(fault) => format!("FAULT: {fault}"),
        EventKind::Lost(lost) => format!("LOST: {lost}"),
        EventKind::Shutdown(how) => format!("shuts down ({how:?})"),
        EventKind::Dropped => "drops its end".to_owned(),
    }
}
