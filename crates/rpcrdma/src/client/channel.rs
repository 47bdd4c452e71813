//! Where callers and a connection's task meet.
//!
//! # Operation
//! Callers put Calls into a [`Channel`] and wait; one task takes them out through the channel's [`Inbox`], carries them,
//! and puts their ends back. The two share one lock, which is held for a few moves and never across I/O; the task takes
//! all new Calls and returns all finished ones in one go.
//!
//! # Ownership
//! A Call's memory travels with it: message, argument and room for the result belong to the task from
//! [`Channel::call`] until the [`Finished`] that hands them back. A caller that stops waiting leaves its Call behind as
//! an orphan; the task ends it in its own time, and drops its memory once no peer can reach it.
//!
//! # When it breaks
//! A Call survives any number of connections. It ends with its Reply, with an error that would come again, when its
//! time is up (if it has any), or when the channel is closed.
//!
//! # Limits
//! The number of Calls in a channel is bounded; further callers wait their turn, for as long as a Call may take. In steady
//! state nothing is allocated: slots and message buffers are used again.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use rpcrdma_fabric::Region;
use rpcrdma_proto::{
    rpcrdma::{Xid, requester::CallFault, shape::HeaderTooLong},
    xdr::{Hole, Writer},
};
use slab::Slab;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::metrics::ClientMetrics;

/// A Call on its way out.
#[derive(Debug)]
pub(crate) struct Call {
    /// The RPC message. Its first word is the XID, which the channel fills in.
    pub(crate) message: Vec<u8>,
    /// Where in the message the bytes of `argument` belong.
    pub(crate) hole: Option<Hole>,
    /// The argument that may be a chunk, from the region's first byte on; as long as the hole.
    pub(crate) argument: Option<Region>,
    /// Room for the result that may be a chunk.
    pub(crate) result: Option<Region>,
    /// Most bytes that this result may have.
    pub(crate) result_max: u32,
    /// Most bytes that the Reply's RPC message may have, without that result.
    pub(crate) reply_max: usize,
}

/// A Reply as it arrived.
#[derive(Debug)]
pub(crate) struct Reply {
    buf: Region,
    at: usize,
    len: usize,
    /// Bytes placed in the room for the result; `None` if none was offered to the peer as a chunk.
    pub(crate) placed: Option<u64>,
}

impl Reply {
    pub(crate) fn new(buf: Region, at: usize, len: usize, placed: Option<u64>) -> Self {
        Self { buf, at, len, placed }
    }

    /// The RPC message.
    pub(crate) fn message(&self) -> &[u8] {
        self.buf.get(self.at..self.at.saturating_add(self.len)).unwrap_or_default()
    }
}

/// A Call that has ended, with its memory.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) outcome: Result<Reply, CallError>,
    pub(crate) argument: Option<Region>,
    pub(crate) result: Option<Region>,
}

/// Why a Call ended without a Reply.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The time that a soft mount gives a Call is over.
    TimedOut {
        /// How long the Call was tried.
        after: Duration,
        /// What stood in the way last.
        last: String,
    },
    /// The transport refused it for good.
    Transport(CallFault),
    /// Its chunks do not fit a message of this connection.
    TooLong(HeaderTooLong),
    /// It has data for the server to fetch, and the connection allows no RDMA Reads: the server offers none (ORD 0), or
    /// the provider on this side (IRD 0). Smaller WRITEs, which travel inline, work.
    NoReads,
    /// The client was closed.
    Closed,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { after, last } => {
                write!(f, "no Reply within {} s ({last})", after.as_secs())
            }
            Self::Transport(fault) => fault.fmt(f),
            Self::TooLong(e) => e.fmt(f),
            Self::NoReads => {
                f.write_str("the data does not fit inline, and the connection allows no RDMA Reads")
            }
            Self::Closed => f.write_str("the client was closed"),
        }
    }
}

impl std::error::Error for CallError {}

/// Calls enter here. Clones are the same channel.
#[derive(Clone)]
pub(crate) struct Channel {
    shared: Arc<Shared>,
    patience: Option<Patience>,
}

/// How long callers wait, and where it is counted that it was not enough.
#[derive(Clone)]
struct Patience {
    after: Duration,
    metrics: Arc<ClientMetrics>,
}

struct Shared {
    state: Mutex<State>,
    /// Free places.
    room: Semaphore,
    xids: Xids,
}

#[derive(Default)]
struct State {
    slots: Slab<Slot>,
    queue: VecDeque<usize>,
    /// Message buffers not in use.
    buffers: Vec<Vec<u8>>,
    task: Option<Waker>,
    closed: bool,
}

struct Slot {
    stage: SlotStage,
    waker: Option<Waker>,
}

enum SlotStage {
    Queued(NewCall),
    Taken,
    /// The caller has gone away.
    Orphan,
    Done(Finished),
}

/// A Call as the task gets it.
pub(crate) struct NewCall {
    pub(crate) call: Call,
    pub(crate) xid: Xid,
    /// When the caller asked for it, which is when its time begins.
    pub(crate) asked: Instant,
    /// When there was room for it.
    pub(crate) since: Instant,
}

/// Where XIDs come from. Clones count on from one another.
#[derive(Clone, Debug)]
pub(crate) struct Xids(Arc<AtomicU32>);

impl Xids {
    /// Those of this process, which start at random. They are unique in it, so that the connections of one client cannot
    /// be mistaken for each other by a server's duplicate request cache.
    pub(crate) fn of_process() -> Self {
        static PROCESS: OnceLock<Xids> = OnceLock::new();
        let start = || getrandom::u32().unwrap_or_else(|_| std::process::id().wrapping_mul(0x9e37_79b9));
        PROCESS.get_or_init(|| Self::starting_at(start())).clone()
    }

    /// XIDs of their own, from here on.
    pub(crate) fn starting_at(start: u32) -> Self {
        Self(Arc::new(AtomicU32::new(start)))
    }

    pub(crate) fn next(&self) -> Xid {
        Xid(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between the writes of a guarded section.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that holds at most `room` Calls, and the task's end of it.
pub(crate) fn channel(room: usize, xids: Xids) -> (Channel, Inbox) {
    let state =
        State { slots: Slab::with_capacity(room), queue: VecDeque::with_capacity(room), ..State::default() };
    let shared = Arc::new(Shared { state: Mutex::new(state), room: Semaphore::new(room), xids });
    (Channel { shared: Arc::clone(&shared), patience: None }, Inbox { shared, wake: Vec::new() })
}

impl Channel {
    /// A channel whose callers wait for a place no longer than they would wait for a Reply.
    pub(crate) fn with_patience(self, give_up: Option<Duration>, metrics: &Arc<ClientMetrics>) -> Self {
        let patience = give_up.map(|after| Patience { after, metrics: Arc::clone(metrics) });
        Self { patience, ..self }
    }

    /// An empty message buffer.
    pub(crate) fn writer(&self) -> Writer {
        Writer::reuse(self.shared.state().buffers.pop().unwrap_or_default())
    }

    /// Places that are free now: a measure of how busy the channel is.
    pub(crate) fn free(&self) -> usize {
        self.shared.room.available_permits()
    }

    /// Carries a Call to its end.
    pub(crate) async fn call(&self, call: Call) -> Finished {
        let asked = Instant::now();
        let place = self.shared.room.acquire();
        let place = match &self.patience {
            None => place.await,
            Some(Patience { after, metrics }) => match timeout_at(asked + *after, place).await {
                Ok(place) => place,
                Err(_) => {
                    metrics.timed_out.add(1);
                    let last = "there was no room for it".to_owned();
                    return unsent(call, CallError::TimedOut { after: *after, last });
                }
            },
        };
        match place {
            // The place is given back when the slot is emptied, not when this future is dropped.
            Ok(place) => place.forget(),
            Err(_) => return unsent(call, CallError::Closed),
        }
        let slot = {
            let mut state = self.shared.state();
            if state.closed {
                return unsent(call, CallError::Closed);
            }
            let new = NewCall { call, xid: self.shared.xids.next(), asked, since: Instant::now() };
            let slot = state.slots.insert(Slot { stage: SlotStage::Queued(new), waker: None });
            state.queue.push_back(slot);
            let task = state.task.take();
            drop(state);
            if let Some(task) = task {
                task.wake();
            }
            slot
        };
        Waiting { shared: &self.shared, slot: Some(slot) }.await
    }

    /// Ends the channel: the task ends every Call that is still in it.
    pub(crate) fn close(&self) {
        let task = {
            let mut state = self.shared.state();
            state.closed = true;
            state.task.take()
        };
        self.shared.room.close();
        if let Some(task) = task {
            task.wake();
        }
    }
}

fn unsent(call: Call, why: CallError) -> Finished {
    Finished { outcome: Err(why), argument: call.argument, result: call.result }
}

/// A caller that waits for its Call.
struct Waiting<'a> {
    shared: &'a Shared,
    slot: Option<usize>,
}

impl Future for Waiting<'_> {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished> {
        let mut state = self.shared.state();
        let Some(key) = self.slot else { return Poll::Pending };
        let Some(slot) = state.slots.get_mut(key) else { return Poll::Pending };
        if !matches!(slot.stage, SlotStage::Done(_)) {
            match &mut slot.waker {
                Some(w) => w.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        let slot = state.slots.remove(key);
        drop(state);
        self.slot = None;
        self.shared.room.add_permits(1);
        match slot.stage {
            SlotStage::Done(finished) => Poll::Ready(finished),
            _ => Poll::Pending,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(key) = self.slot else { return };
        let mut state = self.shared.state();
        let Some(slot) = state.slots.get_mut(key) else { return };
        let left = std::mem::replace(&mut slot.stage, SlotStage::Orphan);
        slot.waker = None;
        match left {
            // Not sent: it never will be.
            SlotStage::Queued(_) => state.queue.retain(|k| *k != key),
            SlotStage::Done(_) => {}
            // The task has it; it empties the slot.
            SlotStage::Taken | SlotStage::Orphan => return,
        }
        state.slots.remove(key);
        drop(state);
        drop(left);
        self.shared.room.add_permits(1);
    }
}

/// The task's end of a channel.
pub(crate) struct Inbox {
    shared: Arc<Shared>,
    /// Callers to wake, kept for its memory.
    wake: Vec<Waker>,
}

/// A Call that has ended, as the task returns it.
pub(crate) struct Ended {
    pub(crate) key: usize,
    pub(crate) finished: Finished,
    /// The message buffer, to be used again.
    pub(crate) buffer: Vec<u8>,
}

impl Inbox {
    /// Whether the caller of a Call has gone away.
    pub(crate) fn is_orphan(&self, key: usize) -> bool {
        self.shared.state().slots.get(key).is_some_and(|slot| matches!(slot.stage, SlotStage::Orphan))
    }

    /// Returns ended Calls and takes new ones, with the keys by which to return them. Registers the task to be woken
    /// when a Call arrives. `false` when the channel is closed: end everything and stop.
    pub(crate) fn exchange(
        &mut self,
        cx: &mut Context<'_>,
        ended: &mut Vec<Ended>,
        mut take: impl FnMut(usize, NewCall),
    ) -> bool {
        let mut emptied = 0;
        let open = {
            let mut state = self.shared.state();
            for Ended { key, finished, buffer } in ended.drain(..) {
                state.buffers.push(buffer);
                let Some(slot) = state.slots.get_mut(key) else { continue };
                if matches!(slot.stage, SlotStage::Orphan) {
                    state.slots.remove(key);
                    emptied += 1;
                    continue;
                }
                slot.stage = SlotStage::Done(finished);
                self.wake.extend(slot.waker.take());
            }
            while let Some(key) = state.queue.pop_front() {
                let Some(slot) = state.slots.get_mut(key) else { continue };
                if let SlotStage::Queued(new) = std::mem::replace(&mut slot.stage, SlotStage::Taken) {
                    take(key, new);
                }
            }
            match &mut state.task {
                Some(w) => w.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            !state.closed
        };
        self.shared.room.add_permits(emptied);
        self.wake.drain(..).for_each(Waker::wake);
        open
    }
}

impl Drop for Inbox {
    /// The task is gone: whoever waits must not wait forever.
    fn drop(&mut self) {
        self.shared.room.close();
        let mut state = self.shared.state();
        state.closed = true;
        state.queue.clear();
        for (_, slot) in &mut state.slots {
            if matches!(slot.stage, SlotStage::Queued(_) | SlotStage::Taken) {
                slot.stage = SlotStage::Done(Finished {
                    outcome: Err(CallError::Closed),
                    argument: None,
                    result: None,
                });
                self.wake.extend(slot.waker.take());
            }
        }
        drop(state);
        self.wake.drain(..).for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
