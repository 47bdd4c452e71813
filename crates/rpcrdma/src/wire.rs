//! A provider whose other end is a test, which sees every message, decides what comes when, and what is refused.
//!
//! [`Wires`] makes connections, as a [`Connector`] or, for a server, through [`Knock`]; each is a [`Wire`], which the
//! test holds, and a queue pair, which the code under test holds. Nothing moves on its own: a Send completes, and an RDMA
//! Read brings data, when the test says so, or at once where [`Wire::prompt`] says so.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use rpcrdma_fabric::{
    Access, Answer, BoxFuture, BoxQueuePair, Completion, ConnectError, Connector, Decide, Exposed, Lost, Op,
    Peer, QpLimits, QueuePair, Region, RejectReason, Rejected, RemoteSegment, Request, Shutdown, Stag, Start,
    Work,
};
use rpcrdma_proto::rpcrdma::PrivateData;
use tokio::time::Instant;

/// One connection.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Mutex<State>>);

#[derive(Default)]
pub(crate) struct State {
    /// What was asked for.
    pub(crate) asked: QpLimits,
    /// What this side's private data says.
    pub(crate) private_data: Vec<u8>,
    /// What the queue pair says.
    pub(crate) limits: QpLimits,
    /// Posted Receives.
    pub(crate) recvs: VecDeque<Region>,
    /// Posted work that has not completed, except for prompt Sends and Writes.
    pub(crate) work: VecDeque<Work>,
    /// Messages sent, and what they invalidate.
    pub(crate) sent: VecDeque<(Vec<u8>, Option<Stag>)>,
    /// Identifiers of the Sends.
    pub(crate) ids: Vec<u64>,
    /// Where RDMA Writes went, and the first bytes of what they brought.
    pub(crate) writes: Vec<(Vec<RemoteSegment>, Vec<u8>)>,
    /// Exposed regions, with the length and the access.
    pub(crate) exposed: BTreeMap<u32, (Region, u32, Access)>,
    /// The end of the connection.
    pub(crate) lost: Option<Lost>,
    pub(crate) shutdowns: Vec<Shutdown>,
    /// Completes Sends and Writes at once.
    pub(crate) prompt: bool,
    /// Refuses one piece of work after so many others.
    pub(crate) refuse_after: Option<(usize, RejectReason)>,
    /// Refuses so many registrations.
    pub(crate) refuse_exposing: usize,
    /// Does not answer a graceful shutdown.
    pub(crate) deaf: bool,
    /// Times the queue pair was polled.
    pub(crate) polls: u64,
    done: VecDeque<Completion>,
    waker: Option<Waker>,
    next: u32,
}

impl Wire {
    fn new(start: Start, limits: QpLimits) -> Self {
        let Start { private_data, recvs, limits: asked } = start;
        let state =
            State { asked, private_data, limits, recvs: recvs.into(), prompt: true, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Everything, to look at and to change.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A message arrives.
    pub(crate) fn deliver(&self, message: &[u8], invalidated: Option<Stag>) {
        let mut state = self.state();
        let mut buf = state.recvs.pop_front().expect("a Receive is posted");
        buf[..message.len()].copy_from_slice(message);
        if let Some((region, ..)) = invalidated.and_then(|stag| state.exposed.remove(&stag.0)) {
            state.done.push_back(Completion::Reclaimed { stag: invalidated.unwrap(), buf: region });
        }
        state.done.push_back(Completion::Received { buf, len: message.len(), invalidated });
        Self::wake(state);
    }

    /// The next message that was sent.
    pub(crate) fn sent(&self) -> Option<Vec<u8>> {
        self.state().sent.pop_front().map(|(message, _)| message)
    }

    /// The oldest work that has not completed does; an RDMA Read brings `data`.
    pub(crate) fn complete(&self, data: &[u8]) -> Option<Op> {
        let mut state = self.state();
        let (id, op, buf) = match state.work.pop_front()? {
            Work::Send { id, buf, .. } => (id, Op::Send, buf),
            Work::Write { id, buf, .. } => (id, Op::Write, buf),
            Work::Read { id, mut buf, at, .. } => {
                buf[at..at + data.len()].copy_from_slice(data);
                (id, Op::Read, buf)
            }
        };
        state.done.push_back(Completion::Done { id, op, buf });
        Self::wake(state);
        Some(op)
    }

    /// The connection is gone.
    pub(crate) fn lose(&self, why: Lost) {
        let mut state = self.state();
        state.end(why);
        Self::wake(state);
    }
}

impl State {
    fn end(&mut self, why: Lost) {
        if self.lost.is_some() {
            return;
        }
        for (stag, (buf, ..)) in std::mem::take(&mut self.exposed) {
            self.done.push_back(Completion::Reclaimed { stag: Stag(stag), buf });
        }
        for work in self.work.drain(..) {
            let (id, op, buf) = work.into_parts();
            self.done.push_back(Completion::Flushed { id, op, buf });
        }
        for buf in self.recvs.drain(..) {
            self.done.push_back(Completion::Flushed { id: 0, op: Op::Recv, buf });
        }
        self.lost = Some(why);
    }
}

struct End {
    wire: Wire,
    peer: Peer,
}

impl QueuePair for End {
    fn limits(&self) -> QpLimits {
        self.wire.state().limits
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        let mut state = self.wire.state();
        if state.lost.is_some() {
            return Err(Rejected { why: RejectReason::QueueFull, item: buf });
        }
        state.recvs.push_back(buf);
        Ok(())
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        let mut state = self.wire.state();
        if state.lost.is_some() {
            return Err(Rejected { why: RejectReason::Lost, item: work });
        }
        match state.refuse_after.take() {
            Some((0, why)) => return Err(Rejected { why, item: work }),
            Some((others, why)) => state.refuse_after = Some((others - 1, why)),
            None => {}
        }
        match &work {
            Work::Send { id, buf, len, invalidate } => {
                state.sent.push_back((buf[..*len].to_vec(), *invalidate));
                state.ids.push(*id);
            }
            Work::Write { buf, to, .. } => {
                let len: usize = to.iter().map(|s| s.len as usize).sum();
                state.writes.push((to.to_vec(), buf[..len].to_vec()));
            }
            Work::Read { .. } => {}
        }
        match work {
            Work::Send { id, buf, .. } if state.prompt => {
                state.done.push_back(Completion::Done { id, op: Op::Send, buf });
            }
            Work::Write { id, buf, .. } if state.prompt => {
                state.done.push_back(Completion::Done { id, op: Op::Write, buf });
            }
            work => state.work.push_back(work),
        }
        Ok(())
    }

    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        let mut state = self.wire.state();
        if state.refuse_exposing > 0 {
            state.refuse_exposing -= 1;
            return Err(Rejected { why: RejectReason::Registration, item: region });
        }
        state.next += 1;
        let stag = state.next;
        state.exposed.insert(stag, (region, len, access));
        Ok(Exposed { stag: Stag(stag), offset: 0, len })
    }

    fn invalidate(&mut self, stag: Stag) {
        let mut state = self.wire.state();
        if let Some((buf, ..)) = state.exposed.remove(&stag.0) {
            state.done.push_back(Completion::Reclaimed { stag, buf });
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        let mut state = self.wire.state();
        state.polls += 1;
        if let Some(lost) = state.lost.clone() {
            done.extend(state.done.drain(..));
            return Poll::Ready(Err(lost));
        }
        state.waker = Some(cx.waker().clone());
        if state.done.is_empty() {
            return Poll::Pending;
        }
        done.extend(state.done.drain(..));
        Poll::Ready(Ok(()))
    }

    fn shutdown(&mut self, how: Shutdown) {
        let mut state = self.wire.state();
        state.shutdowns.push(how);
        if how == Shutdown::Abort || !state.deaf {
            state.end(Lost::Closed);
        }
        Wire::wake(state);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.wire.state().end(Lost::Closed);
    }
}

/// Where connections come from. Clones are the same.
#[derive(Clone)]
pub(crate) struct Wires(Arc<Mutex<Plan>>);

pub(crate) struct Plan {
    /// Attempts to connect, and when they were made.
    pub(crate) tried: Vec<(SocketAddr, Instant)>,
    /// Those that led to something.
    pub(crate) made: Vec<Wire>,
    /// Limits of the next queue pairs.
    pub(crate) limits: QpLimits,
    /// Whether peers may invalidate.
    pub(crate) invalidation: bool,
    /// Whether attempts fail.
    pub(crate) refuse: bool,
}

impl Wires {
    pub(crate) fn new() -> Self {
        let limits = QpLimits::default();
        let plan = Plan { tried: Vec::new(), made: Vec::new(), limits, invalidation: true, refuse: false };
        Self(Arc::new(Mutex::new(plan)))
    }

    pub(crate) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection made last.
    pub(crate) fn last(&self) -> Wire {
        self.plan().made.last().expect("there is a connection").clone()
    }

    /// So many connections have been made.
    pub(crate) fn count(&self) -> usize {
        self.plan().made.len()
    }

    fn make(&self, to: SocketAddr, start: Start) -> BoxQueuePair {
        let mut plan = self.plan();
        let wire = Wire::new(start, plan.limits);
        plan.made.push(wire.clone());
        let peer = Peer {
            addr: to,
            private_data: PrivateData::new(4096, 4096, true).encode().to_vec(),
            remote_invalidation: true,
            transport: "test".to_owned(),
        };
        Box::new(End { wire, peer })
    }
}

impl Connector for Wires {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        self.plan().tried.push((to, Instant::now()));
        let refuse = self.plan().refuse;
        let made = if refuse {
            Err(ConnectError::Io(io::ErrorKind::ConnectionRefused.into()))
        } else {
            Ok(self.make(to, start))
        };
        Box::pin(std::future::ready(made))
    }

    fn remote_invalidation(&self, _: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(self.plan().invalidation))
    }
}

/// A client that wants to be let in.
pub(crate) struct Knock {
    pub(crate) wires: Wires,
    pub(crate) from: SocketAddr,
    pub(crate) private_data: Vec<u8>,
}

impl Request for Knock {
    fn peer_addr(&self) -> SocketAddr {
        self.from
    }

    fn can_invalidate(&self) -> bool {
        self.wires.plan().invalidation
    }

    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        let made = match answer(&self.private_data) {
            Answer::Accept(start) => Ok(self.wires.make(self.from, start)),
            Answer::Reject(words) => Err(ConnectError::Refused(words)),
        };
        Box::pin(std::future::ready(made))
    }
}
