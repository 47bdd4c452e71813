//! What happened, as a hash and as a timeline.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rpcrdma::fabric::{
    Completion,
    sim::{Event, EventKind, Observer},
};

use crate::{
    checker::Checker,
    coverage::Watcher,
    scribe::Scribe,
    timeline::{Entry, Mark, Timeline},
};

/// Events that a record keeps for its timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None, which is fast.
    Nothing,
    /// The last so many.
    Last(usize),
}

impl Keep {
    /// What tests keep: 250, unless `RPCRDMA_SIM_KEEP` says otherwise.
    #[must_use]
    pub fn for_tests() -> Self {
        let kept = std::env::var("RPCRDMA_SIM_KEEP").ok().and_then(|n| n.parse().ok());
        Self::Last(kept.unwrap_or(250))
    }

    fn most(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Last(n) => n,
        }
    }
}

/// The record of one run. Clones are the same one.
#[derive(Clone)]
pub struct Log(Arc<Mutex<State>>);

struct State {
    hash: DefaultHasher,
    events: u64,
    last: VecDeque<Entry>,
    keep: Keep,
    /// Nothing is added to the timeline after a rule was broken, so that it shows what led there.
    frozen: bool,
    /// The run is over: what is dropped in its last moment comes in no order.
    over: bool,
    checker: Checker,
    watcher: Watcher,
    scribe: Scribe,
}

impl Log {
    /// An empty record.
    #[must_use]
    pub fn new(keep: Keep) -> Self {
        Self(Arc::new(Mutex::new(State {
            hash: DefaultHasher::new(),
            events: 0,
            last: VecDeque::new(),
            keep,
            frozen: false,
            over: false,
            checker: Checker::default(),
            watcher: Watcher::default(),
            scribe: Scribe::default(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the checker.
    pub fn checker<T>(&self, f: impl FnOnce(&mut Checker) -> T) -> T {
        f(&mut self.state().checker)
    }

    /// Looks at or changes the watcher of the tables.
    pub fn watcher<T>(&self, f: impl FnOnce(&mut Watcher) -> T) -> T {
        f(&mut self.state().watcher)
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

    /// The last events, for people. It can be taken once.
    #[must_use]
    pub fn take_timeline(&self) -> Timeline {
        Timeline { entries: std::mem::take(&mut self.state().last).into() }
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
        let ours = state.checker.account(event.conn).map_or([false; 2], |a| a.ours);
        state.watcher.see(event, ours);
        digest(&mut state.hash, event);
        if state.frozen || state.keep == Keep::Nothing {
            return;
        }
        let entry = state.scribe.entry(event, state.checker.account(event.conn));
        let broken = state.checker.verdict().map(|why| Entry {
            mark: Mark::Broken,
            words: format!("BROKEN RULE: {why}"),
            ..entry.clone()
        });
        state.frozen = broken.is_some();
        for entry in [Some(entry), broken].into_iter().flatten() {
            if state.last.len() >= state.keep.most() {
                state.last.pop_front();
            }
            state.last.push_back(entry);
        }
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
