//! The client's connection task: carries the Calls of a channel over RPC-over-RDMA, from connection to connection.
//!
//! # Operation
//! One task owns everything. Between connections there is only [`Calls`]: what has not been answered, each with its XID
//! and its message, in the order in which it came. A [`Connection`] is made with its Receives posted, sends Calls as
//! permits allow, and is consumed by its loss. Then the Calls that it left unanswered go back to the head of the queue
//! and are registered and sent anew on the next one, under the same XIDs.
//!
//! In each turn the connection is driven ([`QueuePair::poll`]), completions are handled, Receives are posted, callers are
//! served, and Calls are sent; only then is it driven again. The order of the last three does not matter for safety: a
//! Call needs a permit, and a permit needs a posted Receive (see [`rpcrdma_proto::rpcrdma::credits`]).
//!
//! # Ownership
//! A Call's regions are in one of three places: with the Call (here), in the queue pair (exposed), or with the caller
//! (finished). A Call finishes only when nothing of it is exposed any more, whether the Reply had it invalidated or we
//! did.
//!
//! # When it breaks
//! Any loss leads to a new connection, to the same address or the next one, after a wait that grows while nothing works
//! ([`super::link`]). A peer that is silent for `call_timeout` with a Call outstanding is taken for dead, because a
//! reliable connection over InfiniBand has no keep-alive; the connection is cut and the Call sent again on a new one. So
//! is a peer that answers others and not that Call ([`Waits::due`]).
//!
//! A Call whose time is up (`give_up`) ends with an error. If it is outstanding its connection is cut first: the peer
//! may write to its memory until then.
//!
//! # Limits
//! Receives and Sends come from one bounded pool; the window of a connection is at most `credits`.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    hash::{BuildHasherDefault, Hasher},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use rpcrdma_fabric::{
    Access, BoxQueuePair, Completion, ConnectError, Connector, Exposed, Lost, Op, Pool, QpLimits, QueuePair,
    Region, RejectReason, Shutdown, Stag, Start, Work,
};
use rpcrdma_proto::{
    rpcrdma::{
        PeerMisbehaved, Segment, Xid,
        private_data::{PrivateData, Thresholds},
        requester::{CallChunks, ConnectionId, Received, ReplyMessage, Requester},
        shape::{CallForm, CallShape, CallSize, ReplyOffer, ReplyRoom, SegmentCounts},
    },
    xdr::padded,
};
use slab::Slab;
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tracing::{debug, warn};

use super::{
    backoff::BackoffConfig,
    channel::{Call, CallError, Ended, Finished, Inbox, NewCall, Reply},
    link::{self, Link, Waits},
    servers::Route,
};
use crate::{memory::Pools, metrics::ClientMetrics};

/// How a client's RDMA connections behave.
#[derive(Clone, Debug)]
pub struct RdmaConfig {
    /// Credits that every Call asks for: the most Calls outstanding on a connection.
    pub credits: u32,
    /// Size in bytes of Sends and Receives: the inline thresholds offered, 1024 to 65536.
    pub inline: u32,
    /// Whether the server may invalidate memory with its Replies (RFC 8797).
    pub remote_invalidation: bool,
    /// How long a connection may be silent with a Call outstanding, before the Call is sent again on another one: what
    /// `timeo` is to a mount.
    pub call_timeout: Duration,
    /// How long an attempt to connect may take.
    pub connect_timeout: Duration,
    /// Waits between attempts.
    pub backoff: BackoffConfig,
    /// How long a Call is tried before it fails. `None`: until it is answered, as on a hard mount.
    pub give_up: Option<Duration>,
    /// Makes everything that is random in a client (XIDs, waits) follow from this number, for runs that can be repeated.
    /// Two clients of one address with the same seed would be taken for one. `None`: from the system.
    pub seed: Option<u64>,
}

impl RdmaConfig {
    /// The same, as a soft mount: a Call fails when it has been tried for `timeo` and `retrans` times as long again. That
    /// is when a Linux client gives up that is mounted over TCP or RDMA with `soft,timeo=...,retrans=...`.
    #[must_use]
    pub fn soft(mut self, timeo: Duration, retrans: u32) -> Self {
        self.call_timeout = timeo;
        self.give_up = Some(timeo.saturating_mul(retrans.saturating_add(1)));
        self
    }

    /// The same, as a hard mount, which is the default: Calls are tried until they are answered. A server that is silent
    /// for `timeo` is asked anew.
    #[must_use]
    pub fn hard(mut self, timeo: Duration) -> Self {
        self.call_timeout = timeo;
        self.give_up = None;
        self
    }

    /// The same, with no wait longer than a Call is tried: a Call that is given up early must not wait longer than that
    /// for a silent peer.
    pub(crate) fn within_give_up(mut self) -> Self {
        if let Some(most) = self.give_up {
            self.call_timeout = self.call_timeout.min(most);
            self.connect_timeout = self.connect_timeout.min(most);
        }
        self
    }
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self {
            credits: 128,
            inline: 4096,
            remote_invalidation: true,
            call_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            backoff: BackoffConfig::default(),
            give_up: None,
            seed: None,
        }
    }
}

/// Where a client connects, with what, and how.
pub(crate) struct Dialer {
    connector: Arc<dyn Connector>,
    config: RdmaConfig,
    /// Sends and Receives.
    inline: Pool,
    pools: Pools,
    metrics: Arc<ClientMetrics>,
    /// The zero of the Requester's clock.
    epoch: Instant,
}

impl Dialer {
    pub(crate) fn new(
        connector: Arc<dyn Connector>,
        config: RdmaConfig,
        calls: usize,
        pools: Pools,
        metrics: Arc<ClientMetrics>,
    ) -> Self {
        // Receives for the window and to spare, as many Sends, and Replies that callers have not looked at yet: if they
        // take their time, others must not want for messages.
        let messages = (config.credits as usize + 16) * 2 + calls;
        let inline = Pool::new(config.inline as usize, messages);
        Self { connector, config, inline, pools, metrics, epoch: Instant::now() }
    }

    /// Makes a connection, with the first Receives posted.
    pub(crate) async fn connect(&self, route: Route) -> Result<Connection, ConnectError> {
        // Not every device lets the peer invalidate.
        let invalidation = self.config.remote_invalidation
            && timeout(self.config.connect_timeout, self.connector.remote_invalidation(route.to))
                .await
                .unwrap_or(false);
        let ours = PrivateData::new(self.config.inline, self.config.inline, invalidation);
        let mut requester = Requester::new(next_connection(), self.config.credits);
        let recvs: Vec<Region> = (0..requester.receives_wanted()).map_while(|_| self.inline.take()).collect();
        let posted = recvs.len();
        let limits = QpLimits {
            recvs: self.config.credits as usize + 16,
            sends: self.config.credits as usize + 16,
            exposed: self.config.credits as usize * 4,
            outbound_reads: 0,
            ..QpLimits::default()
        };
        let start = Start { private_data: ours.encode().to_vec(), recvs, limits };
        let made = timeout(self.config.connect_timeout, self.connector.connect(route.to, start)).await;
        let qp = made.unwrap_or(Err(ConnectError::TimedOut))?;
        (0..posted).for_each(|_| requester.receive_posted());
        let theirs = PrivateData::parse(&qp.peer().private_data).unwrap_or_default();
        let thresholds = Thresholds::agree(ours, theirs);
        debug!(peer = %route.to, transport = qp.peer().transport, ?thresholds, "connected");
        let now = Instant::now();
        Ok(Connection {
            qp,
            route,
            born: now,
            heard: now,
            cut: None,
            requester,
            thresholds,
            exposed: ExposedTable::default(),
            done: Vec::with_capacity(64),
            answered: false,
            sent_before_answer: 0,
            timer: Box::pin(sleep(self.config.call_timeout)),
            slots: 0,
            refused: false,
            retry: Box::pin(sleep(Duration::ZERO)),
        })
    }
}

fn next_connection() -> ConnectionId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The Calls in the task's hands: all that outlives a connection.
#[derive(Default)]
struct Calls {
    active: Slab<Active>,
    /// Not sent on this connection, in order.
    waiting: VecDeque<usize>,
    ended: Vec<Ended>,
}

struct Active {
    /// Its key in the channel.
    key: usize,
    xid: Xid,
    asked: Instant,
    /// Transmissions so far.
    sent: u32,
    call: Call,
    /// What of it the peer can reach.
    exposures: SmallVec<[(Stag, Role); 3]>,
    /// The Reply chunk, when the peer can no longer reach it.
    reply_chunk: Option<Region>,
    /// How it ended, if it only waits for its memory.
    outcome: Option<Outcome>,
}

/// What an exposed region is to its Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The message of a Long Call.
    Message,
    Argument,
    Result,
    /// The Reply chunk.
    Reply,
}

enum Outcome {
    Inline {
        buf: Region,
        at: usize,
        len: usize,
        placed: Option<u64>,
    },
    /// The message is in the Reply chunk, as long as this.
    Chunk(u64),
    Failed(CallError),
}

impl Calls {
    fn take(&mut self, key: usize, new: NewCall) {
        let NewCall { mut call, xid, asked, .. } = new;
        if let Some(word) = call.message.first_chunk_mut() {
            *word = xid.0.to_be_bytes();
        }
        let active = Active {
            key,
            xid,
            asked,
            sent: 0,
            call,
            exposures: SmallVec::new(),
            reply_chunk: None,
            outcome: None,
        };
        let index = self.active.insert(active);
        self.waiting.push_back(index);
    }

    /// Ends a Call of which nothing is exposed.
    fn end(&mut self, index: usize, outcome: Outcome) {
        let Some(active) = self.active.try_remove(index) else { return };
        let outcome = match outcome {
            Outcome::Inline { buf, at, len, placed } => Ok(Reply::new(buf, at, len, placed)),
            Outcome::Chunk(len) => match active.reply_chunk {
                Some(buf) => Ok(Reply::new(buf, 0, len as usize, None)),
                // Only a provider that loses memory leads here.
                None => Err(CallError::Closed),
            },
            Outcome::Failed(e) => Err(e),
        };
        let Call { message, argument, result, .. } = active.call;
        let finished = Finished { outcome, argument, result };
        self.ended.push(Ended { key: active.key, finished, buffer: message });
    }

    /// Ends the waiting Calls that nobody waits for any more, and those that have been tried for too long. `last` is what
    /// stood in the way.
    fn expire(&mut self, inbox: &Inbox, dialer: &Dialer, last: &dyn fmt::Display) {
        let now = Instant::now();
        let give_up = dialer.config.give_up;
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|&index| {
            let Some(active) = self.active.get(index) else { return false };
            let error = match give_up {
                _ if inbox.is_orphan(active.key) => CallError::Closed,
                Some(after) if now.duration_since(active.asked) >= after => {
                    dialer.metrics.timed_out.add(1);
                    CallError::TimedOut { after, last: last.to_string() }
                }
                _ => return true,
            };
            self.end(index, Outcome::Failed(error));
            false
        });
        self.waiting = waiting;
    }

    /// When the first Call was asked for that has not ended.
    fn eldest(&self) -> Option<Instant> {
        self.active.iter().map(|(_, active)| active.asked).min()
    }

    fn end_all(&mut self) {
        self.waiting.clear();
        let all: Vec<usize> = self.active.iter().map(|(i, _)| i).collect();
        for index in all {
            self.end(index, Outcome::Failed(CallError::Closed));
        }
    }
}

/// Carries a channel's Calls until the channel is closed. `first` is a connection that has been made already.
pub(crate) async fn run(dialer: Dialer, mut link: Link, mut inbox: Inbox, first: Option<Connection>) {
    let mut calls = Calls::default();
    let mut next = first;
    loop {
        if next.is_none() {
            // Do not connect before somebody has something to send.
            let open = std::future::poll_fn(|cx| poll_for_work(cx, &mut inbox, &mut calls)).await;
            if !open {
                break;
            }
            let route = link.next().await;
            match dialer.connect(route).await {
                Ok(connection) => {
                    link.connected(route.to);
                    next = Some(connection);
                }
                Err(e) => {
                    link.failed(route.to, &e, calls.waiting.len());
                    calls.expire(&inbox, &dialer, &e);
                    continue;
                }
            }
        }
        let Some(mut connection) = next.take() else { continue };
        let poll = |cx: &mut Context<'_>| connection.poll(cx, &dialer, &mut link, &mut inbox, &mut calls);
        let end = std::future::poll_fn(poll).await;
        if matches!(end, End::Closed) {
            connection.say_goodbye().await;
        }
        let (to, up, answered) = (connection.route.to, connection.born.elapsed(), connection.answered);
        connection.bury(&mut calls);
        match end {
            End::Lost(why) => {
                let how = match why {
                    Loss::Moved(_) => link::Ended::Moved,
                    _ if !answered => link::Ended::InVain,
                    Loss::Silent(_) => link::Ended::Silent,
                    _ => link::Ended::Worked,
                };
                link.lost(to, how, &why, up, calls.waiting.len());
                calls.expire(&inbox, &dialer, &why);
            }
            End::Closed => break,
        }
    }
    calls.end_all();
    std::future::poll_fn(|cx| {
        inbox.exchange(cx, &mut calls.ended, |_, _| ());
        Poll::Ready(())
    })
    .await;
}

/// Waits until there is a Call to send. `false` when the channel is closed.
fn poll_for_work(cx: &mut Context<'_>, inbox: &mut Inbox, calls: &mut Calls) -> Poll<bool> {
    let mut ended = std::mem::take(&mut calls.ended);
    let open = inbox.exchange(cx, &mut ended, |key, new| calls.take(key, new));
    calls.ended = ended;
    if !open {
        return Poll::Ready(false);
    }
    if calls.waiting.is_empty() { Poll::Pending } else { Poll::Ready(true) }
}

/// Why a connection's turn is over.
enum End {
    Lost(Loss),
    /// The channel was closed.
    Closed,
}

/// Why a connection was lost.
#[derive(Debug)]
enum Loss {
    /// The fabric or the peer ended it.
    Fabric(Lost),
    /// We cut it: a Call has waited too long for its Reply.
    Silent(Duration),
    /// We cut it: a Call may not be tried any longer, and its memory has to come back.
    TimeIsUp(Duration),
    /// We cut it: the mount has moved to another address.
    Moved(SocketAddr),
    /// We cut it: the provider did not take a Call.
    Refused(RejectReason),
    /// We cut it: a Reply broke a rule.
    Misbehaved(PeerMisbehaved),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fabric(lost) => lost.fmt(f),
            Self::Silent(limit) => write!(f, "a Call had no Reply for {} s", limit.as_secs_f64()),
            Self::TimeIsUp(limit) => {
                write!(f, "a Call had no Reply in the {} s that it may take", limit.as_secs_f64())
            }
            Self::Moved(to) => write!(f, "the mount has moved to {to}"),
            Self::Refused(why) => write!(f, "a Call was not taken: {why}"),
            Self::Misbehaved(why) => why.fmt(f),
        }
    }
}

/// STags are unpredictable already; spreading them over the table takes one multiplication.
#[derive(Default)]
struct StagHasher(u64);

impl Hasher for StagHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u32(u32::from(*b) ^ self.0 as u32);
        }
    }

    fn write_u32(&mut self, v: u32) {
        self.0 = u64::from(v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type ExposedTable = HashMap<Stag, usize, BuildHasherDefault<StagHasher>>;

/// One connection, from birth to death.
pub(crate) struct Connection {
    qp: BoxQueuePair,
    /// Where it goes.
    route: Route,
    born: Instant,
    /// When something last came from the peer.
    heard: Instant,
    /// Why we cut it, if we did.
    cut: Option<Loss>,
    requester: Requester,
    thresholds: Thresholds,
    /// Which Call an exposed region belongs to.
    exposed: ExposedTable,
    done: Vec<Completion>,
    /// Whether a Reply has come.
    answered: bool,
    /// Calls sent before the first Reply.
    sent_before_answer: u32,
    timer: Pin<Box<Sleep>>,
    /// Slots of the Send queue in use.
    slots: usize,
    /// A registration was refused, and nothing is on its way back that would tell when to try again.
    refused: bool,
    /// When to try then.
    retry: Pin<Box<Sleep>>,
}

/// How long a Call without a registration waits before it tries again.
const RETRY: Duration = Duration::from_millis(5);
/// Why such a Call was given up.
const UNREGISTERED: &str = "its memory cannot be registered; ulimit -l limits how much can";

impl Connection {
    /// What is known of the server.
    pub(crate) fn peer(&self) -> &rpcrdma_fabric::Peer {
        self.qp.peer()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        dialer: &Dialer,
        link: &mut Link,
        inbox: &mut Inbox,
        calls: &mut Calls,
    ) -> Poll<End> {
        if let Some(to) = link.moved(&mut self.route) {
            self.cut(Loss::Moved(to));
        }
        loop {
            let polled = self.qp.poll(cx, &mut self.done);
            let mut done = std::mem::take(&mut self.done);
            let moved = !done.is_empty();
            if done.iter().any(|c| matches!(c, Completion::Received { .. })) {
                self.heard = Instant::now();
            }
            let answered = self.answered;
            for completion in done.drain(..) {
                self.complete(completion, dialer, calls);
            }
            self.done = done;
            if !answered && self.answered {
                link.answered(self.route.to, calls.active.len());
            }
            if let Poll::Ready(Err(lost)) = polled {
                return Poll::Ready(End::Lost(self.cut.take().unwrap_or(Loss::Fabric(lost))));
            }
            self.post_receives(dialer);
            let mut ended = std::mem::take(&mut calls.ended);
            let open = inbox.exchange(cx, &mut ended, |key, new| calls.take(key, new));
            calls.ended = ended;
            if !open {
                return Poll::Ready(End::Closed);
            }
            // Nothing leaves on a connection that we have given up, whatever its queue pair still takes.
            let sent = self.cut.is_none() && self.send_waiting(dialer, calls);
            if !moved && !sent {
                break;
            }
        }
        if self.refused {
            // Others may never finish, because there are none.
            while self.retry.as_mut().poll(cx).is_ready() {
                self.retry.as_mut().reset(Instant::now() + RETRY);
            }
        }
        self.check_silence(cx, dialer, inbox, calls);
        Poll::Pending
    }

    /// Ends the connection at once. The next poll flushes it.
    fn cut(&mut self, why: Loss) {
        self.qp.shutdown(Shutdown::Abort);
        self.cut.get_or_insert(why);
    }

    /// Closes the connection in good order, as far as the peer goes along.
    async fn say_goodbye(&mut self) {
        self.qp.shutdown(Shutdown::Graceful);
        let farewell = std::future::poll_fn(|cx| {
            while let Poll::Ready(polled) = self.qp.poll(cx, &mut self.done) {
                self.done.clear();
                if polled.is_err() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        });
        // A peer that does not answer is not waited for.
        let _ = timeout(Duration::from_millis(500), farewell).await;
    }

    /// Cuts the connection if a Call has waited too long for its Reply, and ends those that may not be tried any longer.
    fn check_silence(&mut self, cx: &mut Context<'_>, dialer: &Dialer, inbox: &Inbox, calls: &mut Calls) {
        let RdmaConfig { call_timeout, give_up, .. } = dialer.config;
        let time_is_up = |calls: &Calls| calls.eldest().zip(give_up).map(|(asked, after)| asked + after);
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let silence = self.waits(dialer).map_or(now + call_timeout, |waits| waits.due(call_timeout));
            if time_is_up(calls).is_some_and(|up| up <= now) {
                // Those that were never sent can end as they are. Their callers are told in the next turn.
                let last = if self.refused { UNREGISTERED } else { "the server is slow" };
                calls.expire(inbox, dialer, &last);
                cx.waker().wake_by_ref();
            }
            let up = time_is_up(calls).unwrap_or(silence);
            let mut due = silence.min(up);
            if due <= now {
                self.cut(match give_up {
                    Some(after) if silence > now => Loss::TimeIsUp(after),
                    _ => Loss::Silent(call_timeout),
                });
                cx.waker().wake_by_ref();
                due = now + call_timeout;
            }
            self.timer.as_mut().reset(due);
        }
    }

    /// What the outstanding Calls wait for.
    fn waits(&self, dialer: &Dialer) -> Option<Waits> {
        let oldest = dialer.epoch + self.requester.oldest()?;
        let answered = self.requester.latest_answered().map(|sent| dialer.epoch + sent);
        Some(Waits { oldest, heard: self.heard, answered })
    }

    fn post_receives(&mut self, dialer: &Dialer) {
        for _ in 0..self.requester.receives_wanted() {
            let Some(buf) = dialer.inline.take() else { return };
            match self.qp.post_recv(buf) {
                Ok(()) => self.requester.receive_posted(),
                Err(_) => return,
            }
        }
    }

    /// Sends Calls while there are permits. Whether any was sent.
    fn send_waiting(&mut self, dialer: &Dialer, calls: &mut Calls) -> bool {
        let mut sent = false;
        self.refused = false;
        while let Some(&index) = calls.waiting.front() {
            match self.send(index, dialer, calls) {
                Sent::Yes => {
                    calls.waiting.pop_front();
                    sent = true;
                }
                Sent::NotNow => break,
                Sent::Never(e) => {
                    calls.waiting.pop_front();
                    calls.end(index, Outcome::Failed(e));
                    // The caller is told at the next exchange; make sure there is one.
                    sent = true;
                }
            }
        }
        sent
    }

    /// Registers a Call's memory and sends it.
    fn send(&mut self, index: usize, dialer: &Dialer, calls: &mut Calls) -> Sent {
        let Some(active) = calls.active.get_mut(index) else { return Sent::Yes };
        // Memory from an attempt that did not come to its Send is still on its way back.
        if !active.exposures.is_empty() {
            return Sent::NotNow;
        }
        // Replies may come long before the completions of the Sends that they answer.
        if self.slots >= self.qp.limits().sends {
            return Sent::NotNow;
        }
        let Some(permit) = self.requester.permit() else { return Sent::NotNow };
        let call = &mut active.call;
        let size = CallSize { inline_len: call.message.len(), chunkable: call.hole };
        let room = ReplyRoom {
            max_inline: call.reply_max,
            chunkable: call.result.as_ref().map(|_| call.result_max),
        };
        let shape = match CallShape::choose(&size, &room, &SegmentCounts::default(), self.thresholds) {
            Ok(shape) => shape,
            Err(e) => return Sent::Never(CallError::TooLong(e)),
        };
        // The server would have to read; reconnecting would lead to the same place again and again.
        if shape.call != CallForm::Short && self.qp.limits().inbound_reads == 0 {
            return Sent::Never(CallError::NoReads);
        }
        let Some(mut buf) = dialer.inline.take() else { return Sent::NotNow };

        let mut exposer = Exposer {
            qp: self.qp.as_mut(),
            table: &mut self.exposed,
            index,
            exposures: &mut active.exposures,
        };
        let mut chunks = CallChunks::default();
        let mut complete = true;
        if shape.call == CallForm::Long {
            let len = call.message.len();
            let mut region = dialer.pools.take(len).unwrap_or_else(|| Region::alloc(len));
            region[..len].copy_from_slice(&call.message);
            match exposer.expose(region, len as u32, Role::Message) {
                Ok(segment) => chunks.call = Some(permit.registered(segment)),
                Err(_) => complete = false,
            }
        }
        if shape.call != CallForm::Short
            && let Some(hole) = call.hole.filter(|h| h.len > 0)
            && let Some(region) = call.argument.take()
        {
            match exposer.expose(region, hole.len as u32, Role::Argument) {
                Ok(segment) => chunks.argument = Some((hole.at as u32, permit.registered(segment))),
                Err(region) => {
                    call.argument = Some(region);
                    complete = false;
                }
            }
        }
        match shape.reply {
            ReplyOffer::Inline => {}
            ReplyOffer::WriteChunk { len } => {
                if let Some(region) = call.result.take() {
                    match exposer.expose(region, len, Role::Result) {
                        Ok(segment) => chunks.result = Some(permit.registered(segment)),
                        Err(region) => {
                            call.result = Some(region);
                            complete = false;
                        }
                    }
                }
            }
            ReplyOffer::ReplyChunk { len } => {
                let region = dialer.pools.take(len).unwrap_or_else(|| Region::alloc(len));
                match exposer.expose(region, len as u32, Role::Reply) {
                    Ok(segment) => chunks.reply = Some(permit.registered(segment)),
                    Err(_) => complete = false,
                }
            }
        }
        if !complete {
            // Out of registrations: give back what was taken and wait for others to finish.
            for (stag, _) in &active.exposures {
                self.qp.invalidate(*stag);
            }
            self.refused = true;
            return Sent::NotNow;
        }
        let now = dialer.epoch.elapsed();
        let header = match permit.send(active.xid, index, chunks, now, &mut buf) {
            Ok(header) => header,
            Err(e) => {
                warn!("a Call could not be sent: {e}");
                for (stag, _) in &active.exposures {
                    self.qp.invalidate(*stag);
                }
                return Sent::NotNow;
            }
        };
        let len = header + write_inline(shape.call, call, &mut buf[header..]);
        match self.qp.post(Work::Send { id: index as u64, buf, len, invalidate: None }) {
            Ok(()) => self.slots += 1,
            // The Call is outstanding and will be sent again, on another connection. Why this one ended, says its next poll.
            Err(refused) if refused.why == RejectReason::Lost => {}
            Err(refused) => self.cut(Loss::Refused(refused.why)),
        }

        let metrics = &dialer.metrics;
        metrics.calls.add(1);
        metrics.bytes_out.add(call.hole.map_or(0, |h| h.len as u64));
        if active.sent > 0 {
            metrics.retransmissions.add(1);
        }
        active.sent += 1;
        let outstanding = self.requester.account().outstanding();
        metrics.most_outstanding.raise(u64::from(outstanding));
        if !self.answered {
            self.sent_before_answer += 1;
        }
        if outstanding > self.requester.account().window() {
            metrics.overruns.add(1);
        }
        Sent::Yes
    }

    fn complete(&mut self, completion: Completion, dialer: &Dialer, calls: &mut Calls) {
        match completion {
            Completion::Received { buf, len, invalidated } => {
                self.received(buf, len, invalidated, dialer, calls)
            }
            Completion::Reclaimed { stag, buf } => self.reclaimed(stag, buf, calls),
            // Sends go back to their pool. A flushed Call is found among the unanswered ones.
            Completion::Done { op, .. } | Completion::Flushed { op, .. } => {
                self.slots = self.slots.saturating_sub(usize::from(op != Op::Recv));
            }
        }
    }

    fn received(
        &mut self,
        buf: Region,
        len: usize,
        invalidated: Option<Stag>,
        dialer: &Dialer,
        calls: &mut Calls,
    ) {
        let metrics = &dialer.metrics;
        let message = buf.get(..len).unwrap_or_default();
        let (index, outcome) = match self.requester.receive(message, invalidated.map(|s| s.0)) {
            Received::Reply { key, message: ReplyMessage::Inline(at), result } => {
                (key, Outcome::Inline { at, len: len - at, buf, placed: result })
            }
            Received::Reply { key, message: ReplyMessage::ReplyChunk(len), .. } => (key, Outcome::Chunk(len)),
            Received::Failed { key, why } => (key, Outcome::Failed(CallError::Transport(why))),
            Received::Dropped(why) => {
                metrics.strays.add(1);
                debug!(peer = %self.route.to, ?why, "dropped a message");
                return;
            }
            Received::Fatal(why) => {
                warn!(peer = %self.route.to, "cutting the connection: {why}");
                self.cut(Loss::Misbehaved(why));
                return;
            }
        };
        metrics.replies.add(1);
        metrics.most_granted.raise(u64::from(self.requester.account().window()));
        if !self.answered {
            self.answered = true;
            if self.sent_before_answer == 1 {
                metrics.single_starts.add(1)
            } else {
                metrics.early_sends.add(1)
            }
        }
        let Some(active) = calls.active.get_mut(index) else { return };
        if let Outcome::Inline { placed, len, .. } = &outcome {
            metrics.bytes_in.add(placed.unwrap_or(0) + *len as u64);
        }
        if active.exposures.is_empty() {
            return calls.end(index, outcome);
        }
        // The regions come back one by one; the last one ends the Call.
        for (stag, _) in &active.exposures {
            self.qp.invalidate(*stag);
        }
        active.outcome = Some(outcome);
    }

    /// A region is out of the peer's reach.
    fn reclaimed(&mut self, stag: Stag, buf: Region, calls: &mut Calls) {
        let Some(index) = self.exposed.remove(&stag) else { return };
        let Some(active) = calls.active.get_mut(index) else { return };
        let Some(at) = active.exposures.iter().position(|(s, _)| *s == stag) else { return };
        let (_, role) = active.exposures.swap_remove(at);
        match role {
            Role::Message => {}
            Role::Argument => active.call.argument = Some(buf),
            Role::Result => active.call.result = Some(buf),
            Role::Reply => active.reply_chunk = Some(buf),
        }
        if active.exposures.is_empty()
            && let Some(outcome) = active.outcome.take()
        {
            calls.end(index, outcome);
        }
    }

    /// The end of the connection: what it left unanswered goes back to the head of the queue, unless it is the one Call
    /// that a connection without a Reply had. That may be what the peer cannot bear, so others get their chance first.
    fn bury(self, calls: &mut Calls) {
        let answered = self.answered;
        for index in self.requester.lost().into_iter().rev() {
            if let Some(active) = calls.active.get_mut(index) {
                if answered {
                    calls.waiting.push_front(index)
                } else {
                    calls.waiting.push_back(index)
                }
                active.outcome = None;
            }
        }
        for (_, active) in &mut calls.active {
            // All regions have come back by now; their tags mean nothing on the next connection.
            active.exposures.clear();
            active.reply_chunk = None;
        }
    }
}

/// What became of an attempt to send.
enum Sent {
    Yes,
    NotNow,
    /// It fails on any connection like this one.
    Never(CallError),
}

/// Exposes the regions of one Call.
struct Exposer<'a> {
    qp: &'a mut dyn QueuePair,
    table: &'a mut ExposedTable,
    index: usize,
    exposures: &'a mut SmallVec<[(Stag, Role); 3]>,
}

impl Exposer<'_> {
    fn expose(&mut self, region: Region, len: u32, role: Role) -> Result<Segment, Region> {
        let access = match role {
            Role::Message | Role::Argument => Access::RemoteRead,
            Role::Result | Role::Reply => Access::RemoteWrite,
        };
        let Exposed { stag, offset, len } = self.qp.expose(region, len, access).map_err(|r| r.item)?;
        self.table.insert(stag, self.index);
        self.exposures.push((stag, role));
        Ok(Segment { handle: stag.0, length: len, offset })
    }
}

/// Writes the inline part of a Call's RPC message to `out`, which has room for it, and returns its length.
fn write_inline(form: CallForm, call: &Call, out: &mut [u8]) -> usize {
    let message = call.message.as_slice();
    match (form, call.hole, &call.argument) {
        (CallForm::Long, ..) => 0,
        (CallForm::Short, Some(hole), Some(argument)) => {
            let (head, tail) = message.split_at(hole.at);
            let item = padded(hole.len);
            out[..hole.at].copy_from_slice(head);
            out[hole.at..][..hole.len].copy_from_slice(&argument[..hole.len]);
            out[hole.at + hole.len..hole.at + item].fill(0);
            out[hole.at + item..][..tail.len()].copy_from_slice(tail);
            message.len() + item
        }
        _ => {
            out[..message.len()].copy_from_slice(message);
            message.len()
        }
    }
}

#[cfg(test)]
mod tests;
