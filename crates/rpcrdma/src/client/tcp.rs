//! The client's connection task over TCP: carries the Calls of a channel as records, from connection to connection.
//!
//! # Operation
//! As over RDMA ([`super::rdma`]) one task owns everything, and between connections there is only [`Calls`]. Calls leave
//! in the order in which they came, many in one vectored write, and are found again by the XIDs of their Replies.
//! TCP has no credits: as many Calls are outstanding as the channel holds.
//!
//! # Ownership
//! A Call's memory stays with the Call. The argument is written to the socket from where it is. The data of a READ
//! goes to the room for the result: the front of a Reply is looked at first, and what the socket delivers after it is
//! read straight to its place. Other Replies get a region of their own.
//!
//! # When it breaks
//! Any loss leads to a new connection, after a wait that grows while nothing works, and Calls without a Reply are sent
//! again under the same XIDs. Silence for `call_timeout` costs the connection, like a Call whose time is up. A Reply that makes no
//! sense goes to its caller as it is, who will say so; a stream that breaks the rules of record marking is a loss.
//!
//! # Limits
//! Replies have at most [`RECORD_MAX`] bytes.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rpcrdma_fabric::{Pool, Region};
use rpcrdma_nfs::v3::{
    self, Attributes, Proc, Status,
    results::{ReadHead, ReadHeadResult},
};
use rpcrdma_proto::{
    record::{MARK, Piece, RecordError, RecordReader, Wants},
    rpc::{self, MessageType, ReplyHeader, Xid},
    xdr::{Decode, Reader},
};
use slab::Slab;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, timeout},
};
use tracing::{debug, error};

use super::{
    channel::{Call, CallError, Ended, Finished, Inbox, NewCall, Reply},
    link::{self, Link, Waits},
    oneshot,
    rdma::RdmaConfig,
    servers::Route,
};
use crate::{
    memory::{MAX_TRANSFER, Pools},
    metrics::ClientMetrics,
    stream::{self, Pieces, SLICES},
};

/// Most bytes of a Reply: a READ of the largest size, and room for a long verifier.
const RECORD_MAX: usize = MAX_TRANSFER + 1024;

/// Bytes from the front of a Reply to the data of a READ, at most: an RPC header with the longest verifier, a status,
/// attributes, and three words.
const HEAD: usize = rpc::REPLY_HEADER + rpc::MAX_AUTH_BODY + 4 + 4 + Attributes::WIRE_LEN + 12;

/// Length of the receive buffer.
const INBOX: usize = 16 << 10;

/// Connects, from a privileged port if we may: servers that trust AUTH_SYS mostly ask for one.
pub(crate) async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = oneshot::connect(to).await?;
    if let Err(error) = stream::prepare(&stream) {
        debug!(%to, %error, "socket options");
    }
    Ok(stream)
}

/// Carries a channel's Calls until the channel is closed. `first` is a connection that has been made already.
pub(crate) async fn run(
    config: RdmaConfig,
    mut link: Link,
    mut inbox: Inbox,
    first: Option<(Route, TcpStream)>,
    metrics: Arc<ClientMetrics>,
) {
    let memory = Memory::new(config.credits as usize);
    let mut calls = Calls::default();
    let mut next = first;
    loop {
        if next.is_none() {
            // Do not connect before somebody has something to send.
            if !poll_fn(|cx| calls.poll_for_work(cx, &mut inbox)).await {
                break;
            }
            let route = link.next().await;
            let made = timeout(config.connect_timeout, connect(route.to)).await;
            match made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    link.connected(route.to);
                    next = Some((route, stream));
                }
                Err(e) => {
                    link.failed(route.to, &e, calls.waiting.len());
                    calls.expire(&config, &e, &metrics);
                    continue;
                }
            }
        }
        let Some((route, stream)) = next.take() else { continue };
        let mut connection = Connection::new(stream, route, &config, &memory, &metrics);
        let end = poll_fn(|cx| connection.poll(cx, &mut link, &mut inbox, &mut calls)).await;
        let (up, answered) = (connection.born.elapsed(), connection.answered);
        drop(connection);
        calls.requeue();
        match end {
            End::Lost(why) => {
                let how = match why {
                    Lost::Moved(_) => link::Ended::Moved,
                    _ if !answered => link::Ended::InVain,
                    Lost::Silent(_) => link::Ended::Silent,
                    _ => link::Ended::Worked,
                };
                link.lost(route.to, how, &why, up, calls.waiting.len());
                calls.expire(&config, &why, &metrics);
            }
            End::Closed => break,
        }
    }
    calls.end_all();
    poll_fn(|cx| {
        inbox.exchange(cx, &mut calls.ended, |_, _| ());
        Poll::Ready(())
    })
    .await;
}

/// Where Replies are kept until their callers have read them.
struct Memory {
    small: Pool,
    large: Pools,
}

impl Memory {
    fn new(calls: usize) -> Self {
        Self { small: Pool::new(1024, calls.saturating_mul(4)), large: Pools::new(calls) }
    }

    /// A region of at least `len` bytes. Callers that keep many Replies make it allocate.
    fn take(&self, len: usize) -> Region {
        let small = if len <= self.small.region_len() { self.small.take() } else { None };
        small.or_else(|| self.large.take(len)).unwrap_or_else(|| Region::alloc(len))
    }
}

/// The Calls in the task's hands: all that outlives a connection.
#[derive(Default)]
struct Calls {
    active: Slab<Active>,
    /// Not sent on this connection, in order.
    waiting: VecDeque<usize>,
    ended: Vec<Ended>,
    /// Calls taken so far.
    taken: u64,
}

struct Active {
    /// Its key in the channel.
    key: usize,
    xid: Xid,
    asked: Instant,
    /// Its place in the order in which Calls came.
    order: u64,
    /// Transmissions so far.
    sent: u32,
    /// The last one, when its last byte had been handed to the socket; before the first one, when there was room for it.
    sent_at: Instant,
    call: Call,
    mark: [u8; MARK],
    /// Bytes on the wire.
    len: usize,
}

impl Active {
    fn pieces(&self) -> Option<Pieces<'_>> {
        let data = self.call.argument.as_deref().unwrap_or_default();
        stream::pieces(&self.mark, &self.call.message, self.call.hole, data)
    }
}

impl Calls {
    fn take(&mut self, key: usize, new: NewCall) {
        let NewCall { mut call, xid, asked, since } = new;
        if let Some(word) = call.message.first_chunk_mut() {
            *word = xid.0.to_be_bytes();
        }
        let marked = stream::mark(&call.message, call.hole);
        let (mark, len) = marked.unwrap_or_default();
        self.taken += 1;
        let active = Active { key, xid, asked, order: self.taken, sent: 0, sent_at: since, call, mark, len };
        let sound = marked.is_some() && active.pieces().is_some();
        let index = self.active.insert(active);
        if sound {
            self.waiting.push_back(index);
        } else {
            error!(%xid, "a Call without its argument");
            self.end(index, Err(CallError::Closed));
        }
    }

    fn exchange(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> bool {
        let mut ended = std::mem::take(&mut self.ended);
        let open = inbox.exchange(cx, &mut ended, |key, new| self.take(key, new));
        // What has been taken just now may have ended already.
        ended.append(&mut self.ended);
        self.ended = ended;
        open
    }

    /// Waits until there is a Call to send. `false` when the channel is closed.
    fn poll_for_work(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox) -> Poll<bool> {
        loop {
            if !self.exchange(cx, inbox) {
                return Poll::Ready(false);
            }
            if !self.waiting.is_empty() {
                return Poll::Ready(true);
            }
            if self.ended.is_empty() {
                return Poll::Pending;
            }
        }
    }

    fn end(&mut self, index: usize, outcome: Result<Reply, CallError>) {
        let Some(active) = self.active.try_remove(index) else { return };
        let Call { message, argument, result, .. } = active.call;
        let finished = Finished { outcome, argument, result };
        self.ended.push(Ended { key: active.key, finished, buffer: message });
    }

    /// The connection is gone: all Calls wait, in their order.
    fn requeue(&mut self) {
        self.waiting.clear();
        self.waiting.extend(self.active.iter().map(|(index, _)| index));
        let active = &self.active;
        self.waiting.make_contiguous().sort_unstable_by_key(|i| active.get(*i).map(|a| a.order));
    }

    /// Ends the Calls that have been tried for too long.
    fn expire(&mut self, config: &RdmaConfig, last: &dyn fmt::Display, metrics: &ClientMetrics) {
        let Some(after) = config.give_up else { return };
        let (now, active) = (Instant::now(), &self.active);
        let late = |i: &usize| active.get(*i).is_some_and(|a| now.duration_since(a.asked) >= after);
        let (late, waiting) = self.waiting.drain(..).partition::<VecDeque<_>, _>(late);
        self.waiting = waiting;
        for index in late {
            metrics.timed_out.add(1);
            self.end(index, Err(CallError::TimedOut { after, last: last.to_string() }));
        }
    }

    fn end_all(&mut self) {
        self.requeue();
        while let Some(index) = self.waiting.pop_front() {
            self.end(index, Err(CallError::Closed));
        }
    }
}

/// Why a connection's turn is over.
enum End {
    Lost(Lost),
    /// The channel was closed.
    Closed,
}

/// Why a connection was lost.
#[derive(Debug)]
enum Lost {
    Io(io::Error),
    PeerClosed,
    Record(RecordError),
    /// A Call has waited too long for its Reply.
    Silent(Duration),
    /// A Call may not be tried any longer, and its Reply would belong to nobody.
    TimeIsUp(Duration),
    /// The mount has moved to another address.
    Moved(SocketAddr),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::PeerClosed => f.write_str("the server closed it"),
            Self::Record(e) => e.fmt(f),
            Self::Silent(limit) => write!(f, "a Call had no Reply for {} s", limit.as_secs_f64()),
            Self::TimeIsUp(limit) => {
                write!(f, "a Call had no Reply in the {} s that it may take", limit.as_secs_f64())
            }
            Self::Moved(to) => write!(f, "the mount has moved to {to}"),
        }
    }
}

/// The Reply that is being received.
enum Incoming {
    /// Its front is being collected.
    Front,
    /// All of it goes into this region.
    Whole { index: usize, buf: Region, len: usize },
    /// Its front is known, and its data goes to the room for the result.
    Data { index: usize, front: usize, filled: usize, len: usize },
    /// Nobody waits for it.
    Stray,
}

/// One connection.
struct Connection<'a> {
    stream: TcpStream,
    route: Route,
    born: Instant,
    /// When something last came from the server.
    heard: Instant,
    /// When the Call that was sent last, of those with a Reply, was sent.
    latest_answered: Option<Instant>,
    config: &'a RdmaConfig,
    memory: &'a Memory,
    metrics: &'a ClientMetrics,
    reader: RecordReader,
    /// Unread bytes are `inbox[start..end]`.
    inbox: Region,
    start: usize,
    end: usize,
    incoming: Incoming,
    /// The front of the Reply that is being received, and how much of it is there.
    front: [u8; HEAD],
    front_len: usize,
    /// Calls on their way out.
    sending: VecDeque<usize>,
    /// Bytes of the first of them that have left.
    sent: usize,
    /// The socket was full.
    blocked: bool,
    /// Calls that have left, by XID.
    outstanding: HashMap<Xid, usize>,
    answered: bool,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Connection<'a> {
    fn new(
        stream: TcpStream,
        route: Route,
        config: &'a RdmaConfig,
        memory: &'a Memory,
        metrics: &'a ClientMetrics,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            route,
            born: now,
            heard: now,
            latest_answered: None,
            config,
            memory,
            metrics,
            reader: RecordReader::new(RECORD_MAX),
            inbox: Region::alloc(INBOX),
            start: 0,
            end: 0,
            incoming: Incoming::Front,
            front: [0; HEAD],
            front_len: 0,
            sending: VecDeque::new(),
            sent: 0,
            blocked: false,
            outstanding: HashMap::new(),
            answered: false,
            timer: Box::pin(sleep(config.call_timeout)),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        inbox: &mut Inbox,
        calls: &mut Calls,
    ) -> Poll<End> {
        if let Some(to) = link.moved(&mut self.route) {
            return Poll::Ready(End::Lost(Lost::Moved(to)));
        }
        let answered = self.answered;
        let polled = self.poll_io(cx, inbox, calls);
        if !answered && self.answered {
            link.answered(self.route.to, calls.active.len());
        }
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(End::Closed),
            Poll::Ready(Err(lost)) => Poll::Ready(End::Lost(lost)),
            Poll::Pending => self.poll_silence(cx, calls).map(End::Lost),
        }
    }

    /// Ready when the channel is closed, or something failed.
    fn poll_io(
        &mut self,
        cx: &mut Context<'_>,
        inbox: &mut Inbox,
        calls: &mut Calls,
    ) -> Poll<Result<(), Lost>> {
        loop {
            if !calls.exchange(cx, inbox) {
                return Poll::Ready(Ok(()));
            }
            self.sending.append(&mut calls.waiting);
            self.poll_send(cx, calls)?;
            if !calls.ended.is_empty() {
                continue;
            }
            let n = ready!(self.poll_receive(cx, calls))?;
            if n == 0 {
                return Poll::Ready(Err(Lost::PeerClosed));
            }
            self.heard = Instant::now();
        }
    }

    /// Writes as many Calls as the socket takes.
    fn poll_send(&mut self, cx: &mut Context<'_>, calls: &mut Calls) -> Result<(), Lost> {
        while !self.sending.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let records = self.sending.iter().filter_map(|i| calls.active.get(*i)?.pieces());
            let n = stream::gather(records, self.sent, &mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..n]) {
                Poll::Pending => {
                    self.blocked = true;
                    break;
                }
                Poll::Ready(Ok(0)) => return Err(Lost::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.sent += n;
                    // The peer has made room in a full socket.
                    if std::mem::take(&mut self.blocked) {
                        self.heard = Instant::now();
                    }
                }
                Poll::Ready(Err(error)) => return Err(Lost::Io(error)),
            }
            self.left(calls);
        }
        Ok(())
    }

    /// Makes Calls outstanding whose last byte has left.
    fn left(&mut self, calls: &mut Calls) {
        let now = Instant::now();
        while let Some(&index) = self.sending.front() {
            let Some(active) = calls.active.get_mut(index).filter(|a| a.len <= self.sent) else { break };
            self.sent -= active.len;
            self.sending.pop_front();
            self.outstanding.insert(active.xid, index);
            self.metrics.calls.add(1);
            self.metrics.bytes_out.add(active.call.hole.map_or(0, |h| h.len as u64));
            if active.sent > 0 {
                self.metrics.retransmissions.add(1);
            }
            active.sent += 1;
            active.sent_at = now;
        }
        self.metrics.most_outstanding.raise(self.outstanding.len() as u64);
    }

    /// Reads from the socket once and handles what came. Yields how many bytes that were; 0 is the end of the stream.
    fn poll_receive(&mut self, cx: &mut Context<'_>, calls: &mut Calls) -> Poll<Result<usize, Lost>> {
        let stream = Pin::new(&mut self.stream);
        // Everything that had been read before has been handled.
        if let Wants::Body { fragment, .. } = self.reader.wants()
            && let Some(room) = destination(&mut self.incoming, calls, fragment)
        {
            let mut room = ReadBuf::new(room);
            ready!(stream.poll_read(cx, &mut room)).map_err(Lost::Io)?;
            let n = room.filled().len();
            match &mut self.incoming {
                Incoming::Whole { len, .. } => *len += n,
                Incoming::Data { filled, .. } => *filled += n,
                Incoming::Front | Incoming::Stray => {}
            }
            if n > 0 && self.reader.body(n) {
                self.finish(calls);
            }
            return Poll::Ready(Ok(n));
        }
        let mut room = ReadBuf::new(&mut self.inbox);
        ready!(stream.poll_read(cx, &mut room)).map_err(Lost::Io)?;
        let n = room.filled().len();
        (self.start, self.end) = (0, n);
        self.handle(calls)?;
        Poll::Ready(Ok(n))
    }

    /// Handles all that is in the inbox.
    fn handle(&mut self, calls: &mut Calls) -> Result<(), Lost> {
        while self.start < self.end {
            let input = self.inbox.get(self.start..self.end).unwrap_or_default();
            let (piece, used) = self.reader.feed(input).map_err(Lost::Record)?;
            let at = self.start + used;
            self.start = at;
            match piece {
                Piece::More => {}
                Piece::Part(bytes) => {
                    let from = at - bytes.len();
                    self.accept(from..at, calls);
                }
                Piece::End(bytes) => {
                    let from = at - bytes.len();
                    self.accept(from..at, calls);
                    self.finish(calls);
                }
            }
        }
        Ok(())
    }

    /// Takes bytes of the current Reply from the inbox.
    fn accept(&mut self, mut range: std::ops::Range<usize>, calls: &mut Calls) {
        if matches!(self.incoming, Incoming::Front) {
            let n = range.len().min(HEAD - self.front_len);
            let bytes = &self.inbox[range.start..range.start + n];
            self.front[self.front_len..self.front_len + n].copy_from_slice(bytes);
            self.front_len += n;
            range.start += n;
            if self.front_len < HEAD {
                return;
            }
            self.decide(calls);
        }
        put(&mut self.incoming, &self.inbox[range], self.memory, self.reader.record_len(), calls);
    }

    /// Looks at the front of a Reply, or at all of it if it is shorter, and decides where the rest goes.
    fn decide(&mut self, calls: &mut Calls) {
        let front = &self.front[..self.front_len];
        let found = match rpc::peek(front) {
            Some((xid, MessageType::Reply)) => self.outstanding.get(&xid).copied(),
            _ => None,
        };
        let Some((index, active)) = found.and_then(|i| Some((i, calls.active.get_mut(i)?))) else {
            self.incoming = Incoming::Stray;
            return;
        };
        let call = &active.call;
        let most = call.result.as_ref().map_or(0, |room| room.len().min(call.result_max as usize));
        if call.result.is_some()
            && let Some((at, len)) = bulk(&call.message, front)
            && len <= most
        {
            self.incoming = Incoming::Data { index, front: at, filled: 0, len };
            let rest = at..self.front_len;
            put(&mut self.incoming, &self.front[rest], self.memory, 0, calls);
        } else {
            let buf = self.memory.take(self.reader.record_len().max(self.front_len));
            self.incoming = Incoming::Whole { index, buf, len: 0 };
            put(&mut self.incoming, front, self.memory, 0, calls);
        }
    }

    /// A Reply is complete.
    fn finish(&mut self, calls: &mut Calls) {
        if matches!(self.incoming, Incoming::Front) {
            self.decide(calls);
        }
        self.front_len = 0;
        let (index, reply) = match std::mem::replace(&mut self.incoming, Incoming::Front) {
            Incoming::Whole { index, buf, len } => (index, Reply::new(buf, 0, len, None)),
            Incoming::Data { index, front, filled, .. } => {
                let mut buf = self.memory.take(front);
                buf[..front].copy_from_slice(&self.front[..front]);
                (index, Reply::new(buf, 0, front, Some(filled as u64)))
            }
            Incoming::Front | Incoming::Stray => {
                self.metrics.strays.add(1);
                debug!(peer = %self.route.to, "dropped a message that answers nothing");
                return;
            }
        };
        if let Some(active) = calls.active.get(index) {
            self.outstanding.remove(&active.xid);
            self.latest_answered = self.latest_answered.max(Some(active.sent_at));
        }
        self.answered = true;
        self.metrics.replies.add(1);
        self.metrics.bytes_in.add(reply.message().len() as u64 + reply.placed.unwrap_or(0));
        calls.end(index, Ok(reply));
    }

    /// Ready if a Call has waited too long for its Reply, or may not be tried any longer.
    fn poll_silence(&mut self, cx: &mut Context<'_>, calls: &Calls) -> Poll<Lost> {
        let RdmaConfig { call_timeout, give_up, .. } = *self.config;
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let sent = self.outstanding.values().filter_map(|i| Some(calls.active.get(*i)?.sent_at));
            let leaving =
                self.sending.front().and_then(|i| Some(calls.active.get(*i)?.sent_at.max(self.born)));
            let silence = sent.chain(leaving).min().map_or(now + call_timeout, |oldest| {
                Waits { oldest, heard: self.heard, answered: self.latest_answered }.due(call_timeout)
            });
            if silence <= now {
                return Poll::Ready(Lost::Silent(call_timeout));
            }
            let eldest = calls.active.iter().map(|(_, active)| active.asked).min();
            let up = eldest.zip(give_up).map(|(asked, after)| (asked + after, after));
            if let Some((up, after)) = up
                && up <= now
            {
                return Poll::Ready(Lost::TimeIsUp(after));
            }
            self.timer.as_mut().reset(up.map_or(silence, |(up, _)| up.min(silence)));
        }
        Poll::Pending
    }
}

/// Where the socket may put up to `most` bytes of a Reply directly; `None` if its bytes have to be looked at first.
fn destination<'m>(incoming: &'m mut Incoming, calls: &'m mut Calls, most: usize) -> Option<&'m mut [u8]> {
    let room = match incoming {
        Incoming::Whole { buf, len, .. } => buf.get_mut(*len..)?,
        Incoming::Data { index, filled, len, .. } => {
            calls.active.get_mut(*index)?.call.result.as_mut()?.get_mut(*filled..*len)?
        }
        Incoming::Front | Incoming::Stray => return None,
    };
    let n = room.len().min(most);
    room.get_mut(..n).filter(|room| !room.is_empty())
}

/// Puts bytes of a Reply where they belong. `total` is the length of the Reply as far as it is known.
fn put(incoming: &mut Incoming, bytes: &[u8], memory: &Memory, total: usize, calls: &mut Calls) {
    match incoming {
        Incoming::Whole { buf, len, .. } => {
            let end = *len + bytes.len();
            if end > buf.len() {
                // A further fragment made it longer than its first one had promised.
                let mut larger = memory.take(end.max(total));
                larger[..*len].copy_from_slice(&buf[..*len]);
                *buf = larger;
            }
            buf[*len..end].copy_from_slice(bytes);
            *len = end;
        }
        Incoming::Data { index, filled, len, .. } => {
            // What is behind the data is its pad.
            let n = bytes.len().min(*len - *filled);
            let room = calls.active.get_mut(*index).and_then(|a| a.call.result.as_mut());
            if let Some(room) = room.and_then(|room| room.get_mut(*filled..*filled + n)) {
                room.copy_from_slice(&bytes[..n]);
                *filled += n;
            }
        }
        Incoming::Front | Incoming::Stray => {}
    }
}

/// Where in the Reply to `call` the bytes of the result that may be a chunk begin, and how many they are. `None` if
/// this Reply has none, or does not look like one; then it has to be read whole.
fn bulk(call: &[u8], front: &[u8]) -> Option<(usize, usize)> {
    let mut head = Reader::new(call.get(12..)?);
    let (prog, vers, proc) = (head.u32().ok()?, head.u32().ok()?, head.u32().ok()?);
    if (prog, vers) != (v3::PROGRAM, v3::VERSION) {
        return None;
    }
    let mut r = Reader::new(front);
    ReplyHeader::decode(&mut r).ok()?.status.ok()?;
    let len = match Proc::from_u32(proc)? {
        Proc::Read => {
            let ReadHead { len, .. } = ReadHeadResult::decode(&mut r).ok()?.0.ok()?;
            len
        }
        Proc::ReadLink => {
            if !Status::decode(&mut r).ok()?.is_ok() {
                return None;
            }
            r.option(Attributes::decode).ok()?;
            r.u32().ok()?
        }
        _ => return None,
    };
    Some((r.position(), usize::try_from(len).ok()?))
}

#[cfg(test)]
mod tests;
