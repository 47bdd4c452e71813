//! The server's end of an RPC-over-RDMA connection: from a received Call to its Reply.
//!
//! # Operation
//! One task owns a connection. A Call arrives in a Receive; its Read chunks, if it has any, are pulled by RDMA Reads into
//! regions from the pools; then the service executes it, on this thread if it can, on a blocking thread if it must. The
//! bulk result is written by RDMA Write from the region into which the file was read, chained ahead of the Send that
//! carries the Reply, so that both leave in one system call and the data is there when the Reply is seen.
//!
//! # Ownership
//! While a Call is in our hands the connection's table holds its Receive and its sinks (`InService`); during an RDMA
//! Read the queue pair holds the sink, during blocking execution the blocking thread holds both, during the Write the
//! queue pair holds the result. Every region finds its way back to its pool by being dropped.
//!
//! # When it breaks
//! A lost connection drops the table. Blocking work that waits for its turn is not begun; work that is under way goes on,
//! its result is dropped, and the client, which sends the Call again on another connection, is answered from the duplicate
//! request cache. A client that died without a word is never heard of again, as a reliable connection over InfiniBand has
//! no keep-alive; so a connection on which nothing arrives for `idle_timeout` is closed, which costs a client that is
//! merely idle one reconnect, and sooner one that owes us the data of RDMA Reads. Nothing that a peer sends ends more than
//! its own connection.
//!
//! # Limits
//! Calls in hand are bounded by the posted Receives, which cover the grant and little more. Memory for chunks comes from
//! the server's pools; a Call that finds none waits in [`Stage::NeedBuffer`]. A Reply waits while the Send queue has no
//! room for it, or its completions, which give Send buffers back, are late, or there is no memory for its Reply chunk.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rpcrdma_fabric::{
    Answer, BoxQueuePair, Completion, ConnectError, Listener, Lost, Op, Pool, QpLimits, Region, RejectReason,
    RemoteSegment, RemoteSegments, Request, Shutdown, Stag, Start, Work,
};
use rpcrdma_proto::{
    rpcrdma::{
        Header, Limits, Segment,
        private_data::{PrivateData, Thresholds},
        responder::{Arrived, DroppedMessage, HeldCall, Refusal, ReplyFault, Responder, Stage, Step},
        shape::ItemPlace,
    },
    xdr::{Chunk, Hole, Writer, padded},
};
use slab::Slab;
use smallvec::SmallVec;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, Sleep, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Offload,
    offload::Executed,
    places::Places,
    service::{Carrier, IncomingCall, Origin, OutgoingReply, Patience, Served, Service},
};
use crate::{
    memory::{MAX_TRANSFER, Pools},
    metrics::ServerMetrics,
};

/// How a server's RDMA connections behave.
#[derive(Clone, Debug)]
pub struct RdmaConfig {
    /// Credits to grant: Calls that a client may have outstanding on a connection.
    pub grant: u32,
    /// Size in bytes of Sends and Receives: the inline thresholds offered, 1024 to 65536.
    pub inline: u32,
    /// Whether Replies may invalidate the client's memory where the client allows it.
    pub remote_invalidation: bool,
    /// Bounds on the chunk lists of a Call.
    pub limits: Limits,
    /// Connections at one time, those that are being set up included; more are turned away.
    pub connections: usize,
    /// Connections from one address at one time, so that no machine can lock the others out.
    pub connections_per_peer: usize,
    /// A connection on which nothing arrives for this long, or up to twice as long, is closed.
    pub idle_timeout: Duration,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self {
            grant: 64,
            inline: 4096,
            remote_invalidation: true,
            limits: Limits::default(),
            connections: 1024,
            connections_per_peer: 256,
            idle_timeout: Duration::from_secs(360),
        }
    }
}

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) service: Arc<dyn Service>,
    pub(crate) pools: Pools,
    pub(crate) config: RdmaConfig,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) offload: Offload,
}

/// How long a stopping server waits for its connections to say goodbye.
const GRACE: Duration = Duration::from_secs(2);

/// Takes connections until `stop` changes; then closes them in good order.
pub(crate) async fn serve(
    mut listener: Box<dyn Listener>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Places::new(shared.config.connections, shared.config.connections_per_peer);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = std::future::poll_fn(|cx| listener.poll_accept(cx));
        let request = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            request = accepted => request,
        };
        let request = match request {
            Ok(request) => request,
            Err(e) => {
                // Out of file descriptors, most likely: go on when some have been closed.
                warn!("cannot accept RDMA connections: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = request.peer_addr();
        let Some(place) = places.take(peer.ip().to_canonical()) else {
            debug!(%peer, "turned away: too many RDMA connections");
            shared.metrics.refused.add(1);
            continue;
        };
        let connection = serve_one(request, Arc::clone(&shared), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop(place);
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // A peer that does not answer is not waited for.
    let _ = timeout(GRACE, all).await;
}

async fn serve_one(request: Box<dyn Request>, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let peer = request.peer_addr();
    let config = &shared.config;
    let can_invalidate = config.remote_invalidation && request.can_invalidate();
    let ours = PrivateData::new(config.inline, config.inline, can_invalidate);
    // Receives for the grant and to spare, Calls in hand, and Replies on their way out.
    let inline = Pool::new(config.inline as usize, config.grant as usize * 3 + 16);
    let mut responder_parts = None;
    let accepting = request.accept(Box::new(|private_data| {
        let theirs = PrivateData::parse(private_data).unwrap_or_default();
        let thresholds = Thresholds::agree(theirs, ours);
        let invalidate = can_invalidate && theirs.remote_invalidation();
        let mut responder = Responder::new(config.grant, thresholds.reply, invalidate, config.limits);
        let recvs: Vec<Region> = (0..responder.receives_wanted()).map_while(|_| inline.take()).collect();
        recvs.iter().for_each(|_| responder.receive_posted());
        responder_parts = Some(responder);
        let limits = QpLimits {
            recvs: config.grant as usize + 16,
            sends: (config.grant as usize + 16) * 4,
            ..QpLimits::default()
        };
        Answer::Accept(Start { private_data: ours.encode().to_vec(), recvs, limits })
    }));
    let accepted = timeout(SETUP, accepting).await.unwrap_or(Err(ConnectError::TimedOut));
    let (qp, responder) = match (accepted, responder_parts) {
        (Ok(qp), Some(responder)) => (qp, responder),
        (Err(e), _) => {
            debug!(%peer, "connection set-up failed: {e}");
            shared.metrics.refused.add(1);
            return;
        }
        (Ok(_), None) => return,
    };
    let mut responder = responder;
    // A device may take fewer Receives than a whole grant and the next Call need.
    responder.set_grant(config.grant.min(qp.limits().recvs.saturating_sub(2).max(1) as u32));
    shared.metrics.connections.add(1);
    debug!(%peer, transport = qp.peer().transport, "connected");
    let (report, executed) = mpsc::unbounded_channel();
    let mut connection = Connection {
        qp,
        responder,
        origin: Origin { peer, carrier: Carrier::Rdma },
        shared: Arc::clone(&shared),
        inline,
        calls: Slab::with_capacity(config.grant as usize + 4),
        starved: VecDeque::new(),
        hungry: false,
        retry: Box::pin(sleep(Duration::ZERO)),
        done: Vec::with_capacity(64),
        reply: OutgoingReply::default(),
        report,
        executed,
        blocking: 0,
        blocked: VecDeque::new(),
        arrivals: 0,
        reading: 0,
        slots: 0,
        unsent: VecDeque::new(),
    };
    let mut stopped = std::pin::pin!(stop.wait_for(|stop| *stop));
    let mut stopping = false;
    let mut idle =
        Idle { timer: std::pin::pin!(sleep(config.idle_timeout)), after: config.idle_timeout, seen: Some(0) };
    let mut stalled = Idle { timer: std::pin::pin!(sleep(STALL)), after: STALL, seen: None };
    let why = std::future::poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.qp.shutdown(Shutdown::Graceful);
        }
        let polled = connection.poll(cx);
        let reading = (connection.reading > 0).then_some(connection.arrivals);
        if polled.is_pending() && stalled.is_over(cx, reading) {
            debug!(%peer, "closing a connection whose client does not answer RDMA Reads");
            connection.qp.shutdown(Shutdown::Abort);
            cx.waker().wake_by_ref();
        }
        if polled.is_pending() && idle.is_over(cx, Some(connection.arrivals)) {
            debug!(%peer, "closing an idle connection");
            connection.qp.shutdown(Shutdown::Abort);
            cx.waker().wake_by_ref();
        }
        polled
    })
    .await;
    shared.metrics.closed.add(1);
    if matches!(why, Lost::PeerMisbehaved(_)) {
        shared.metrics.misbehaved.add(1);
    }
    shared.metrics.overruns.add(connection.responder.overruns());
    info!(%peer, "RDMA connection ended: {why}");
}

/// Notices that nothing arrives any more, without a look at the clock for what does arrive.
struct Idle<'a> {
    timer: Pin<&'a mut Sleep>,
    after: Duration,
    /// Arrivals when the timer was set, if any were due.
    seen: Option<u64>,
}

impl Idle<'_> {
    fn is_over(&mut self, cx: &mut Context<'_>, arrivals: Option<u64>) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(Instant::now() + self.after);
            if arrivals.is_some() && arrivals == self.seen {
                return true;
            }
            self.seen = arrivals;
        }
        false
    }
}

/// A Call in our hands.
struct InService {
    stage: Stage,
    held: Option<HeldCall>,
    /// What it came in. Gone while a blocking thread has it.
    body: Option<Body>,
    /// RDMA Reads that have not completed.
    reads_left: usize,
}

/// The bytes of a Call.
struct Body {
    recv: Region,
    len: usize,
    payload: usize,
    /// The RPC message of a Long Call.
    message: Option<Region>,
    /// Its length.
    message_len: usize,
    /// Data chunks in order of position.
    items: SmallVec<[Item; 1]>,
}

struct Item {
    position: u32,
    len: usize,
    /// `None` while the RDMA Read is under way.
    data: Option<Region>,
}

impl Body {
    fn message(&self) -> &[u8] {
        match &self.message {
            Some(region) => region.get(..self.message_len).unwrap_or_default(),
            None => self.recv.get(self.payload..self.len).unwrap_or_default(),
        }
    }

    fn serve(
        &self,
        origin: Origin,
        patience: Patience,
        service: &dyn Service,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        let chunks: SmallVec<[Chunk<'_>; 1]> = (self.items.iter())
            .map(|i| Chunk {
                position: i.position,
                data: i.data.as_ref().and_then(|d| d.get(..i.len)).unwrap_or_default(),
            })
            .collect();
        service.serve(
            &IncomingCall { origin, message: self.message(), chunks: &chunks },
            patience,
            pools,
            reply,
        )
    }
}

/// What a Reply leaves in.
struct Room {
    /// For the Send.
    buf: Region,
    /// For the Reply chunk.
    long: Option<Region>,
}

/// A Reply that waits for its [`Room`].
enum Unsent {
    Reply { index: usize, reply: OutgoingReply },
    Refusal(Refusal),
}

/// One connection, from birth to death.
struct Connection {
    qp: BoxQueuePair,
    responder: Responder,
    origin: Origin,
    shared: Arc<Shared>,
    inline: Pool,
    calls: Slab<InService>,
    /// Calls in [`Stage::NeedBuffer`], in the order of arrival.
    starved: VecDeque<usize>,
    /// Somebody waits for memory.
    hungry: bool,
    /// When to look for it again.
    retry: Pin<Box<Sleep>>,
    done: Vec<Completion>,
    /// The Reply in the making, kept for its memory.
    reply: OutgoingReply,
    report: mpsc::UnboundedSender<Executed<usize>>,
    executed: mpsc::UnboundedReceiver<Executed<usize>>,
    /// Calls on blocking threads or in line for them, and those that this connection holds back.
    blocking: usize,
    blocked: VecDeque<usize>,
    /// Messages, and data that we asked for.
    arrivals: u64,
    /// RDMA Reads that have not completed.
    reading: usize,
    /// Slots of the Send queue in use.
    slots: usize,
    /// In the order in which they were ready.
    unsent: VecDeque<Unsent>,
}

/// Marks in a work identifier what the work was for; the rest is the Call's index.
const SEND: u64 = 0xffff;
const WRITE: u64 = 0xfffe;
/// The Position Zero Read chunk. Lower marks are indices of data chunks.
const MESSAGE: u64 = 0xfffd;

fn work_id(index: usize, mark: u64) -> u64 {
    (index as u64) << 16 | mark
}

/// How long a client may take to complete the set-up of its connection.
const SETUP: Duration = Duration::from_secs(10);
/// Calls of one connection on blocking threads at one time: others want some too.
const BLOCKING: usize = 16;
/// A connection on which nothing arrives for this long, or up to twice as long, although RDMA Reads are under way, is
/// closed: its memory is missing elsewhere, and a client that lives answers Reads without being asked twice.
const STALL: Duration = Duration::from_secs(30);
/// Turns without a break before others on this thread get theirs.
const TURNS: usize = 32;
/// How long a Call without memory waits before it looks again.
const RETRY: Duration = Duration::from_millis(2);

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        for _ in 0..TURNS {
            let polled = self.qp.poll(cx, &mut self.done);
            let mut done = std::mem::take(&mut self.done);
            let mut moved = !done.is_empty();
            for completion in done.drain(..) {
                self.complete(completion);
            }
            self.done = done;
            if let Poll::Ready(Err(lost)) = polled {
                return Poll::Ready(lost);
            }
            moved |= self.take_executed(cx);
            moved |= self.send_unsent();
            moved |= self.feed_starved(cx);
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn complete(&mut self, completion: Completion) {
        if let Completion::Done { op, .. } | Completion::Flushed { op, .. } = &completion
            && *op != Op::Recv
        {
            self.slots = self.slots.saturating_sub(1);
        }
        match completion {
            Completion::Received { buf, len, .. } => {
                self.arrivals += 1;
                self.received(buf, len);
            }
            Completion::Done { id, op: Op::Read, buf } => {
                self.arrivals += 1;
                self.reading = self.reading.saturating_sub(1);
                self.pulled((id >> 16) as usize, id & 0xffff, buf);
            }
            Completion::Done { id, op: Op::Send, .. } if id & 0xffff == SEND => {
                self.finish((id >> 16) as usize, Step::Sent)
            }
            // Results and messages that were written go back to their pools. What is flushed goes down with the rest.
            Completion::Done { .. } | Completion::Flushed { .. } | Completion::Reclaimed { .. } => {}
        }
    }

    fn received(&mut self, buf: Region, len: usize) {
        let message = buf.get(..len).unwrap_or_default();
        match self.responder.receive(message) {
            Arrived::Call(held) if !self.can_pull(&held) => {
                self.shared.metrics.refused_calls.add(1);
                debug!(peer = %self.origin.peer, "refused a Call: its chunks cannot be pulled");
                self.refuse(Responder::error(held));
            }
            Arrived::Call(held) => {
                self.shared.metrics.calls.add(1);
                let items = (held.reads().items.iter())
                    .map(|c| Item { position: c.position, len: c.length as usize, data: None })
                    .collect();
                let body = Body {
                    payload: held.payload(),
                    recv: buf,
                    len,
                    message: None,
                    message_len: held.reads().call.as_ref().map_or(0, |c| c.length as usize),
                    items,
                };
                let whole = held.reads().call.is_none() && body.items.is_empty();
                let index = self.calls.insert(InService {
                    stage: Stage::NeedBuffer,
                    held: Some(held),
                    body: Some(body),
                    reads_left: 0,
                });
                if whole {
                    self.execute(index);
                } else if !self.starved.is_empty() || !self.pull(index) {
                    self.starved.push_back(index);
                }
            }
            Arrived::Refused(refusal, why) => {
                self.shared.metrics.refused_calls.add(1);
                debug!(peer = %self.origin.peer, "refused a Call: {why}");
                self.refuse(refusal);
            }
            Arrived::Dropped(why) => {
                self.shared.metrics.dropped.add(1);
                match why {
                    DroppedMessage::Header(e) => debug!(peer = %self.origin.peer, "dropped a message: {e}"),
                    DroppedMessage::NotACall(xid) => {
                        debug!(peer = %self.origin.peer, "dropped a message with XID {xid} that is not a Call");
                    }
                }
            }
        }
        self.post_receives(self.responder.receives_wanted());
    }

    /// Whether a Call's chunks can ever be pulled: the connection allows RDMA Reads, and there is memory.
    fn can_pull(&self, held: &HeldCall) -> bool {
        let reads = held.reads();
        let lengths = || reads.call.iter().chain(&reads.items).map(|c| c.length as usize);
        let allowed = self.qp.limits().outbound_reads > 0 || lengths().all(|len| len == 0);
        allowed && self.shared.pools.can_hold(lengths())
    }

    fn post_receives(&mut self, count: u32) {
        for _ in 0..count {
            let Some(buf) = self.inline.take() else { return };
            match self.qp.post_recv(buf) {
                Ok(()) => self.responder.receive_posted(),
                Err(_) => return,
            }
        }
    }

    fn post(&mut self, work: Work) -> Result<(), RejectReason> {
        self.qp.post(work).map_err(|refused| refused.why)?;
        self.slots += 1;
        Ok(())
    }

    /// Whether the Send queue takes so many more pieces of work.
    fn has_slots(&self, count: usize) -> bool {
        self.slots == 0 || self.slots.saturating_add(count) <= self.qp.limits().sends
    }

    /// What a Reply needs to leave now, if all of it is there: room for it and its Write, a Receive for the next Call, and
    /// memory for the `long` bytes that go into a Reply chunk.
    fn room_to_answer(&mut self, long: usize) -> Option<Room> {
        if !self.has_slots(2) {
            return None;
        }
        let long = match long {
            0 => None,
            len => {
                let region = self.shared.pools.take(len);
                self.hungry |= region.is_none();
                Some(region?)
            }
        };
        let buf = self.inline.take()?;
        // Not before the Reply can leave: in the hands of a client that floods us, one more Receive is one more Call.
        self.post_receives(self.responder.receives_wanted_to_answer());
        let short = self.responder.receives_wanted_to_answer() > 0 || self.responder.promises().posted() == 0;
        (!short).then_some(Room { buf, long })
    }

    /// The length of what a Reply puts into the Reply chunk.
    fn long_reply(&self, index: usize, reply: &OutgoingReply) -> usize {
        let held = self.calls.get(index).and_then(|c| c.held.as_ref());
        let item = reply.message.hole().map(|h| h.len as u32);
        // What is too long for any region of ours is refused in the Call.
        held.map_or(0, |held| self.responder.long_reply(held, reply.message.len(), item)).min(MAX_TRANSFER)
    }

    /// Sends Replies that have waited for room. Whether any left.
    fn send_unsent(&mut self) -> bool {
        let mut any = false;
        while let Some(next) = self.unsent.front() {
            let long = match next {
                Unsent::Reply { index, reply } => self.long_reply(*index, reply),
                Unsent::Refusal(_) => 0,
            };
            let Some(room) = self.room_to_answer(long) else { break };
            match self.unsent.pop_front() {
                Some(Unsent::Reply { index, mut reply }) => self.send_reply(index, &mut reply, room),
                Some(Unsent::Refusal(refusal)) => self.send_refusal(refusal, room),
                None => {}
            }
            any = true;
        }
        any
    }

    /// Posts RDMA Reads for a Call's chunks. `false` if there is not enough memory, or room in the Send queue, now.
    fn pull(&mut self, index: usize) -> bool {
        let Some(call) = self.calls.get_mut(index) else { return true };
        let InService { held: Some(held), body: Some(body), stage, reads_left } = call else { return true };
        let reads = held.reads();
        let pools = &self.shared.pools;
        let mut sinks: SmallVec<[(u64, Region, RemoteSegments); 2]> = SmallVec::new();
        let chunks = (reads.call.iter().map(|c| (MESSAGE, c)))
            .chain(reads.items.iter().enumerate().map(|(nth, c)| (nth as u64, c)));
        for (mark, chunk) in chunks {
            let Some(sink) = pools.take(chunk.length as usize) else { return false };
            sinks.push((mark, sink, remote(&chunk.segments)));
        }
        if self.slots > 0 && self.slots.saturating_add(sinks.len()) > self.qp.limits().sends {
            return false;
        }
        *stage = advance(*stage, Step::ReadsPosted);
        for (mark, sink, from) in sinks {
            if from.is_empty() {
                // A chunk of no bytes is here already.
                body.place(mark, sink);
                continue;
            }
            let work = Work::Read { id: work_id(index, mark), buf: sink, at: 0, from };
            match self.qp.post(work) {
                Ok(()) => {
                    self.slots += 1;
                    self.reading += 1;
                    *reads_left += 1;
                }
                Err(refused) => {
                    // The client offers memory that cannot be read on this connection; it will not get better. Without
                    // its body the Call is not executed, whatever still completes.
                    warn!(peer = %self.origin.peer, "cannot read a Call's chunks: {refused}");
                    self.qp.shutdown(Shutdown::Abort);
                    call.body = None;
                    return true;
                }
            }
        }
        if *reads_left == 0 {
            self.execute(index);
        }
        true
    }

    /// An RDMA Read has completed.
    fn pulled(&mut self, index: usize, mark: u64, sink: Region) {
        let Some(call) = self.calls.get_mut(index) else { return };
        if let Some(body) = &mut call.body {
            self.shared.metrics.bytes_in.add(body.place(mark, sink) as u64);
        }
        call.reads_left = call.reads_left.saturating_sub(1);
        if call.reads_left == 0 {
            self.execute(index);
        }
    }

    /// All of a Call is here.
    fn execute(&mut self, index: usize) {
        let Some(call) = self.calls.get_mut(index) else { return };
        call.stage = advance(call.stage, Step::Complete);
        let (Some(held), Some(body)) = (&call.held, &call.body) else { return };
        if body.message.is_some()
            && let Err(why) = held.check(body.message())
        {
            debug!(peer = %self.origin.peer, "refused a Long Call: {why}");
            self.shared.metrics.refused_calls.add(1);
            return self.refuse_held(index);
        }
        let mut reply = std::mem::take(&mut self.reply);
        let Shared { service, pools, .. } = &*self.shared;
        let served = body.serve(self.origin, Patience::Now, &**service, pools, &mut reply);
        if served == Served::WouldBlock {
            self.execute_offline(index);
        } else {
            self.served(index, served, &mut reply);
        }
        self.reply = reply;
    }

    /// Moves a Call to a blocking thread, or to the queue for them if this connection has its share of threads.
    fn execute_offline(&mut self, index: usize) {
        if self.blocking >= BLOCKING {
            self.blocked.push_back(index);
            return;
        }
        let Some(body) = self.calls.get_mut(index).and_then(|c| c.body.take()) else { return };
        let (shared, origin) = (Arc::clone(&self.shared), self.origin);
        self.blocking += 1;
        let client = origin.peer.ip().to_canonical();
        let (reply, report) = (OutgoingReply::default(), self.report.clone());
        self.shared.offload.run(client, index, reply, report, move |_, reply| {
            body.serve(origin, Patience::Wait, &*shared.service, &shared.pools, reply)
        });
    }

    /// Answers what blocking threads have executed. Whether there was anything.
    fn take_executed(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(Executed { what: index, served, mut reply })) = self.executed.poll_recv(cx)
        {
            any = true;
            self.blocking -= 1;
            self.served(index, served, &mut reply);
        }
        while self.blocking < BLOCKING
            && let Some(index) = self.blocked.pop_front()
        {
            self.execute_offline(index);
        }
        any
    }

    /// Lets Calls that wait for memory try again. Whether any got on.
    fn feed_starved(&mut self, cx: &mut Context<'_>) -> bool {
        let mut fed = false;
        while let Some(&index) = self.starved.front() {
            if self.pull(index) {
                self.starved.pop_front();
                fed = true;
                continue;
            }
            self.hungry = true;
            break;
        }
        if std::mem::take(&mut self.hungry) {
            // Memory comes back on other connections' tasks, which do not know of us.
            while self.retry.as_mut().poll(cx).is_ready() {
                self.retry.as_mut().reset(Instant::now() + RETRY);
            }
        }
        fed
    }

    /// The service is done with a Call.
    fn served(&mut self, index: usize, served: Served, reply: &mut OutgoingReply) {
        match served {
            Served::Reply => {
                // The Call's own memory is not needed for its Reply.
                if let Some(call) = self.calls.get_mut(index) {
                    call.body = None;
                }
                let long = self.long_reply(index, reply);
                let room = if self.unsent.is_empty() { self.room_to_answer(long) } else { None };
                match room {
                    Some(room) => self.send_reply(index, reply, room),
                    None => self.unsent.push_back(Unsent::Reply { index, reply: std::mem::take(reply) }),
                }
            }
            Served::Silent => {
                if let Some(held) = self.calls.get_mut(index).and_then(|c| c.held.take()) {
                    self.responder.forget(held);
                }
                self.finish(index, Step::Sent);
                self.post_receives(self.responder.receives_wanted());
            }
            Served::Close | Served::WouldBlock => {
                debug!(peer = %self.origin.peer, "closing the connection over a message that is no RPC");
                self.qp.shutdown(Shutdown::Abort);
            }
        }
        reply.message = Writer::reuse(std::mem::take(&mut reply.message).into_parts().0);
        reply.data = None;
    }

    /// Sends a Reply, for which [`Self::room_to_answer`] has found room.
    fn send_reply(&mut self, index: usize, reply: &mut OutgoingReply, room: Room) {
        let Room { mut buf, long } = room;
        let Some(held) = self.calls.get_mut(index).and_then(|c| c.held.take()) else { return };
        let hole = reply.message.hole();
        let item = hole.map(|h| h.len as u32);
        let plan = match self.responder.reply(held, reply.message.len(), item) {
            Ok(plan) => plan,
            Err(ReplyFault::NoRoom(held, why)) => {
                debug!(peer = %self.origin.peer, "answered ERR_CHUNK: {why}");
                self.shared.metrics.no_room.add(1);
                self.set_held(index, held);
                return self.refuse_held(index);
            }
            Err(ReplyFault::NoReceive(_)) => return self.give_up("no Receive could be posted"),
        };
        let Some(header) = plan.header.encode_into(&mut buf) else {
            return self.give_up("the header is too long");
        };
        let mut posted = Ok(());
        if let (Some(chunk), Some(hole)) = (plan.result_chunk(), hole)
            && hole.len > 0
        {
            let Some(data) = reply.data.take() else { return self.give_up("a result has no data") };
            self.shared.metrics.bytes_out.add(hole.len as u64);
            let work = Work::Write { id: work_id(index, WRITE), buf: data, at: 0, to: remote(chunk) };
            posted = posted.and(self.post(work));
        }
        // The result, if it travels with the message.
        let item = match (plan.item, hole) {
            (Some(ItemPlace::Inline), Some(hole)) => {
                let data = reply.data.as_deref().and_then(|d| d.get(..hole.len)).unwrap_or_default();
                if data.len() != hole.len {
                    return self.give_up("a result is shorter than it says");
                }
                self.shared.metrics.bytes_out.add(hole.len as u64);
                Some((hole, data))
            }
            _ => None,
        };
        let message = reply.message.as_slice();
        let mut len = header;
        if let Some(chunk) = plan.reply_chunk() {
            let Some(mut region) = long.filter(|region| region.len() >= chunk.length() as usize) else {
                return self.give_up("it is too long for the memory of a transfer");
            };
            assemble(message, item, &mut region);
            let work = Work::Write { id: work_id(index, WRITE), buf: region, at: 0, to: remote(chunk) };
            posted = posted.and(self.post(work));
        } else {
            len += assemble(message, item, &mut buf[header..]);
        }
        let invalidate = plan.invalidate.map(Stag);
        posted = posted.and(self.post(Work::Send { id: work_id(index, SEND), buf, len, invalidate }));
        self.finish(index, Step::Replied);
        match posted {
            Ok(()) => self.shared.metrics.replies.add(1),
            Err(why) => self.give_up_post(why),
        }
    }

    fn set_held(&mut self, index: usize, held: HeldCall) {
        if let Some(call) = self.calls.get_mut(index) {
            call.held = Some(held);
        }
    }

    /// Answers a Call in our hands with ERR_CHUNK.
    fn refuse_held(&mut self, index: usize) {
        if let Some(held) = self.calls.get_mut(index).and_then(|c| c.held.take()) {
            self.refuse(Responder::error(held));
        }
        self.finish(index, Step::Sent);
    }

    fn refuse(&mut self, refusal: Refusal) {
        let room = if self.unsent.is_empty() { self.room_to_answer(0) } else { None };
        match room {
            Some(room) => self.send_refusal(refusal, room),
            None => self.unsent.push_back(Unsent::Refusal(refusal)),
        }
    }

    fn send_refusal(&mut self, refusal: Refusal, Room { mut buf, .. }: Room) {
        let Ok(header) = self.responder.refuse(refusal) else {
            return self.give_up("no Receive could be posted");
        };
        let Some(len) = Header::encode_into(&header, &mut buf) else {
            return self.give_up("an RDMA_ERROR is too long");
        };
        // Its completion concerns no Call.
        if let Err(why) = self.post(Work::Send { id: WRITE, buf, len, invalidate: None }) {
            self.give_up_post(why);
        }
    }

    /// A Reply that cannot be sent at all: closing the connection is the only way to tell the client (RFC 8166 section
    /// 4.5).
    fn give_up(&mut self, why: &str) {
        warn!(peer = %self.origin.peer, "closing the connection, a Reply cannot be sent: {why}");
        self.qp.shutdown(Shutdown::Abort);
    }

    fn give_up_post(&mut self, why: RejectReason) {
        match why {
            // Its end is told where it is noticed, and the client asks again.
            RejectReason::Lost => self.qp.shutdown(Shutdown::Abort),
            why => self.give_up(&why.to_string()),
        }
    }

    fn finish(&mut self, index: usize, step: Step) {
        let Some(call) = self.calls.get_mut(index) else { return };
        call.stage = advance(call.stage, step);
        if call.stage == Stage::Done {
            self.calls.try_remove(index);
        }
    }
}

impl Body {
    /// Takes the sink of a completed RDMA Read; returns the bytes in it.
    fn place(&mut self, mark: u64, sink: Region) -> usize {
        if mark == MESSAGE {
            self.message = Some(sink);
            return self.message_len;
        }
        let Some(item) = self.items.get_mut(mark as usize) else { return 0 };
        item.data = Some(sink);
        item.len
    }
}

/// The stage after a step. A step that cannot happen is a mistake of ours; in release the stage stays.
fn advance(stage: Stage, step: Step) -> Stage {
    let next = stage.next(step);
    debug_assert!(next.is_some(), "{step:?} in {stage:?}");
    next.unwrap_or(stage)
}

/// Segments with something in them, for the fabric.
fn remote(segments: &[Segment]) -> RemoteSegments {
    (segments.iter().filter(|s| s.length > 0))
        .map(|s| RemoteSegment { stag: Stag(s.handle), offset: s.offset, len: s.length })
        .collect()
}

/// Puts a message together, with an item and its pad at the item's hole, and returns its length.
fn assemble(message: &[u8], item: Option<(Hole, &[u8])>, out: &mut [u8]) -> usize {
    let Some((hole, data)) = item else {
        out[..message.len()].copy_from_slice(message);
        return message.len();
    };
    let (head, tail) = message.split_at(hole.at);
    let end = hole.at + padded(data.len());
    out[..hole.at].copy_from_slice(head);
    out[hole.at..][..data.len()].copy_from_slice(data);
    out[hole.at + data.len()..end].fill(0);
    out[end..][..tail.len()].copy_from_slice(tail);
    end + tail.len()
}

#[cfg(test)]
mod tests;
