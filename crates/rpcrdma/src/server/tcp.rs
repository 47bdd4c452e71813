//! RPC over TCP: records in, Calls to the service, records out (RFC 5531 section 11).
//!
//! # Operation
//! One task per connection reads what the socket has, cuts it into records and shows each to the [`Service`]. What is
//! answered at once goes to the outbox; what would block moves to a blocking thread and its Reply joins the outbox
//! when it is done, so Replies leave in any order. The outbox leaves with vectored writes, many Replies in one.
//!
//! # Ownership
//! Records that fit are served where the socket's bytes landed. A long record, which is a WRITE, gets a region of its
//! own from the pools and the socket reads straight into it. A Reply's bulk data stays in the region that the service
//! handed over until the socket has taken its last byte. Nothing else of the connection outlives it: a Call that is
//! being executed when the connection ends runs to its end, and its Reply is dropped.
//!
//! # When it breaks
//! A record that is too long, too fragmented or not whole words ends the connection without an answer, and so does
//! whatever the service says cannot be answered. A peer that stops in the middle of a record, or stops taking
//! Replies, is cut off after [`Limits::stall`].
//!
//! # Limits
//! Those of [`Limits`]. When one is reached the connection is not read, and TCP tells the peer. If the pools are empty
//! a connection may allocate the region for one record itself, so peers that hold the pools cannot lock others out.
//! A peer that keeps moving a few bytes at a time keeps its connection; the number of connections bounds what that costs.

mod inbox;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rpcrdma_fabric::Region;
use rpcrdma_proto::{
    record::MARK,
    xdr::{Hole, Writer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, Sleep},
};

use self::inbox::{Apart, BadRecord, Inbox, Next};
use crate::{
    memory::{MAX_TRANSFER, Pools},
    server::{
        Offload,
        offload::Executed,
        places::Places,
        service::{Carrier, IncomingCall, Origin, OutgoingReply, Patience, Served, Service},
    },
    stream::{self, Pieces, SLICES},
};

/// Replies leave at the latest when so many bytes of them wait.
const FLUSH_AT: usize = 256 << 10;
/// Buffers that are larger are not kept for later messages.
const KEEP: usize = 64 << 10;

/// What a TCP server allows its peers.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most connections at a time. More are accepted and closed at once.
    pub connections: usize,
    /// Most connections from one address at a time.
    pub connections_per_peer: usize,
    /// Most Calls of one connection that are being executed or whose Replies have not left.
    pub calls: usize,
    /// A connection whose Replies waiting to leave exceed so many bytes is not read.
    pub outbox: usize,
    /// Most bytes in a record.
    pub record: usize,
    /// Most fragments in a record.
    pub fragments: u32,
    /// How long a peer may stop in the middle of a record, or not take what is sent to it.
    pub stall: Duration,
    /// How long a shutdown waits for Calls in execution.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_peer: 256,
            calls: 32,
            outbox: 4 << 20,
            record: MAX_TRANSFER,
            fragments: 1024,
            stall: Duration::from_secs(60),
            grace: Duration::from_secs(5),
        }
    }
}

/// What happened so far. Each is a sum over all connections since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed at once because there were too many.
    pub refused: AtomicU64,
    /// Records received.
    pub records: AtomicU64,
    /// Replies handed to the socket in full.
    pub replies: AtomicU64,
    /// Calls that went to a blocking thread.
    pub blocking: AtomicU64,
    /// Connections closed because of what the peer sent.
    pub misbehaved: AtomicU64,
    /// Connections closed because the peer stalled.
    pub stalled: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Serves RPC on a TCP listener until `shutdown` completes; then Calls in execution get [`Limits::grace`] to end.
///
/// A failure of one connection is that connection's alone; failures to accept are retried.
pub async fn serve_tcp(
    listener: TcpListener,
    service: Arc<dyn Service>,
    pools: Pools,
    offload: Offload,
    limits: Limits,
    counters: Arc<Counters>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let places = Places::new(limits.connections, limits.connections_per_peer);
    let (stop, stopped) = watch::channel(false);
    let limits = Arc::new(limits);
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: the listener stays ready, so without a pause this would spin.
                tracing::warn!(%error, "cannot accept a TCP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let Some(place) = places.take(peer.ip()) else {
            count(&counters.refused);
            tracing::debug!(%peer, "too many TCP connections");
            continue;
        };
        count(&counters.accepted);
        if let Err(error) = stream::prepare(&stream) {
            tracing::debug!(%peer, %error, "socket options");
        }
        let connection = Connection::new(
            stream,
            peer,
            Arc::clone(&service),
            pools.clone(),
            offload.clone(),
            Arc::clone(&limits),
            Arc::clone(&counters),
        );
        let stopped = stopped.clone();
        connections.spawn(async move {
            connection.run(stopped).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = stop.send(true);
    while connections.join_next().await.is_some() {}
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    /// The peer closed it between records, or a shutdown is complete.
    Closed,
    /// The peer closed it inside a record.
    Truncated,
    /// The peer sent what is no record.
    BadRecord(BadRecord),
    /// The peer sent what is no Call, or the service failed.
    NotServed,
    /// The peer stopped sending or taking.
    Stalled,
    /// The socket failed.
    Io(io::Error),
}

/// The memory of a Call that is not in the inbox.
enum Held {
    Bytes(Vec<u8>),
    Record(Apart),
}

impl Held {
    fn message(&self) -> &[u8] {
        match self {
            Self::Bytes(v) => v,
            Self::Record(record) => record.message(),
        }
    }
}

/// A Reply on its way out.
struct Outgoing {
    mark: [u8; MARK],
    message: Vec<u8>,
    hole: Option<Hole>,
    data: Option<Region>,
    /// Bytes on the wire, mark and pad included.
    len: usize,
}

impl Outgoing {
    /// `None` if the service announced data that it did not hand over, which would garble the stream.
    fn new(reply: OutgoingReply) -> Option<Self> {
        let (message, hole) = reply.message.into_parts();
        let (mark, len) = stream::mark(&message, hole)?;
        let out = Self { mark, message, hole, data: reply.data, len };
        out.pieces().is_some().then_some(out)
    }

    /// The bytes on the wire, in order.
    fn pieces(&self) -> Option<Pieces<'_>> {
        stream::pieces(&self.mark, &self.message, self.hole, self.data.as_deref().unwrap_or_default())
    }
}

/// One connection. Everything is done by [`Connection::poll`], on one task.
struct Connection {
    stream: TcpStream,
    origin: Origin,
    service: Arc<dyn Service>,
    pools: Pools,
    offload: Offload,
    limits: Arc<Limits>,
    counters: Arc<Counters>,
    inbox: Inbox,
    outbox: VecDeque<Outgoing>,
    outbox_bytes: usize,
    /// Bytes of the outbox's first Reply that have left.
    sent: usize,
    executing: usize,
    report: mpsc::UnboundedSender<Executed<Held>>,
    done: mpsc::UnboundedReceiver<Executed<Held>>,
    /// False once a shutdown began or the peer sent its FIN: only what has been taken in is finished.
    reading: bool,
    spare: Vec<Vec<u8>>,
    stall: Pin<Box<Sleep>>,
    /// Whether `stall` runs.
    armed: bool,
}

impl Connection {
    fn new(
        stream: TcpStream,
        peer: SocketAddr,
        service: Arc<dyn Service>,
        pools: Pools,
        offload: Offload,
        limits: Arc<Limits>,
        counters: Arc<Counters>,
    ) -> Self {
        let (report, done) = mpsc::unbounded_channel();
        Self {
            stream,
            origin: Origin { peer, carrier: Carrier::Tcp },
            service,
            inbox: Inbox::new(pools.clone(), limits.record, limits.fragments),
            pools,
            offload,
            stall: Box::pin(tokio::time::sleep(limits.stall)),
            limits,
            counters,
            outbox: VecDeque::with_capacity(SLICES),
            outbox_bytes: 0,
            sent: 0,
            executing: 0,
            report,
            done,
            reading: true,
            spare: Vec::new(),
            armed: false,
        }
    }

    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let peer = self.origin.peer;
        tracing::debug!(%peer, "TCP connection accepted");
        let end = tokio::select! {
            end = poll_fn(|cx| self.poll(cx)) => Some(end),
            _ = stopped.wait_for(|stop| *stop) => None,
        };
        let end = match end {
            Some(end) => end,
            None => {
                self.reading = false;
                let grace = self.limits.grace;
                tokio::time::timeout(grace, poll_fn(|cx| self.poll(cx))).await.unwrap_or(End::Stalled)
            }
        };
        match end {
            End::BadRecord(how) => {
                count(&self.counters.misbehaved);
                tracing::info!(%peer, "TCP connection closed: {how}");
            }
            End::NotServed => {
                count(&self.counters.misbehaved);
                tracing::info!(%peer, "TCP connection closed: a message that cannot be answered");
            }
            End::Stalled => {
                count(&self.counters.stalled);
                tracing::info!(%peer, "TCP connection closed: the peer stalled");
            }
            End::Io(error) => tracing::debug!(%peer, %error, "TCP connection failed"),
            End::Closed | End::Truncated => tracing::debug!(%peer, ?end, "TCP connection ended"),
        }
    }

    /// Does all that can be done now.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match self.poll_io(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(End::Closed),
            Poll::Ready(Err(end)) => Poll::Ready(end),
            Poll::Pending => self.poll_stall(cx),
        }
    }

    /// Ready when nothing is left to do, or something failed.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            // Always polled until it is pending, so that a Call which goes to a blocking thread below wakes this task.
            while let Poll::Ready(Some(done)) = self.done.poll_recv(cx) {
                self.executing -= 1;
                self.finish(done)?;
            }
            let served = self.serve(cx)?;
            let flushed = self.poll_flush(cx)?.is_ready();
            if served == Stopped::Full && flushed && self.executing < self.limits.calls {
                continue;
            }
            if served != Stopped::Drained {
                return Poll::Pending;
            }
            if !self.reading {
                let idle = flushed && self.executing == 0;
                return if idle { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            match ready!(self.poll_fill(cx))? {
                0 if self.inbox.is_amid_record() => return Poll::Ready(Err(End::Truncated)),
                // Replies may still leave: the peer closed its direction only.
                0 => self.reading = false,
                _ => self.armed = false,
            }
        }
    }

    /// Serves the records in the inbox.
    fn serve(&mut self, cx: &mut Context<'_>) -> Result<Stopped, End> {
        loop {
            if self.outbox_bytes >= FLUSH_AT {
                // The outcome shows in what is left in the outbox.
                let _ = self.poll_flush(cx)?;
            }
            if self.executing + self.outbox.len() >= self.limits.calls
                || self.outbox_bytes >= self.limits.outbox
            {
                return Ok(Stopped::Full);
            }
            match self.inbox.next().map_err(End::BadRecord)? {
                Next::InPlace { at, len } => self.call(at, len)?,
                Next::Apart(record) => self.call_apart(Held::Record(record))?,
                Next::Incomplete => return Ok(Stopped::Drained),
                Next::NoMemory => return Ok(Stopped::NoMemory),
            }
        }
    }

    /// Serves a record in the inbox.
    fn call(&mut self, at: usize, len: usize) -> Result<(), End> {
        count(&self.counters.records);
        let mut reply = self.new_reply();
        let message = self.inbox.message(at, len);
        let call = IncomingCall { origin: self.origin, message, chunks: &[] };
        match self.service.serve(&call, Patience::Now, &self.pools, &mut reply) {
            Served::WouldBlock => {
                let mut copy = self.spare.pop().unwrap_or_default();
                copy.extend_from_slice(message);
                self.execute(Held::Bytes(copy), reply);
                Ok(())
            }
            served => self.answer(served, reply),
        }
    }

    /// Serves a record that has memory of its own.
    fn call_apart(&mut self, held: Held) -> Result<(), End> {
        count(&self.counters.records);
        let mut reply = self.new_reply();
        let call = IncomingCall { origin: self.origin, message: held.message(), chunks: &[] };
        match self.service.serve(&call, Patience::Now, &self.pools, &mut reply) {
            Served::WouldBlock => {
                self.execute(held, reply);
                Ok(())
            }
            served => {
                self.recycle(held);
                self.answer(served, reply)
            }
        }
    }

    /// Moves a Call to a blocking thread.
    fn execute(&mut self, held: Held, reply: OutgoingReply) {
        count(&self.counters.blocking);
        self.executing += 1;
        let (service, pools, origin) = (Arc::clone(&self.service), self.pools.clone(), self.origin);
        let client = origin.peer.ip().to_canonical();
        self.offload.run(client, held, reply, self.report.clone(), move |held, reply| {
            let call = IncomingCall { origin, message: held.message(), chunks: &[] };
            service.serve(&call, Patience::Wait, &pools, reply)
        });
    }

    /// Takes over what a blocking thread did.
    fn finish(&mut self, done: Executed<Held>) -> Result<(), End> {
        self.recycle(done.what);
        self.answer(done.served, done.reply)
    }

    fn answer(&mut self, served: Served, reply: OutgoingReply) -> Result<(), End> {
        match served {
            Served::Reply => {
                // A Reply that cannot be sent is a fault of the service; the connection cannot go on without it.
                let out = Outgoing::new(reply).ok_or(End::NotServed)?;
                self.outbox_bytes += out.len;
                self.outbox.push_back(out);
                Ok(())
            }
            Served::Silent => {
                self.keep(reply.message.into_parts().0);
                Ok(())
            }
            Served::WouldBlock | Served::Close => Err(End::NotServed),
        }
    }

    fn new_reply(&mut self) -> OutgoingReply {
        let buf = self.spare.pop().unwrap_or_default();
        OutgoingReply { message: Writer::reuse(buf), data: None }
    }

    fn recycle(&mut self, held: Held) {
        match held {
            Held::Bytes(v) => self.keep(v),
            Held::Record(record) => self.inbox.recycle(record),
        }
    }

    fn keep(&mut self, mut buf: Vec<u8>) {
        if buf.capacity() <= KEEP && self.spare.len() < self.limits.calls {
            buf.clear();
            self.spare.push(buf);
        }
    }

    /// Reads from the socket; 0 bytes are the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, End>> {
        let mut room = ReadBuf::new(self.inbox.room());
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room)).map_err(End::Io)?;
        let n = room.filled().len();
        self.inbox.filled(n);
        Poll::Ready(Ok(n))
    }

    /// Writes the outbox; ready when it is empty.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let n = stream::gather(self.outbox.iter().filter_map(Outgoing::pieces), self.sent, &mut slices);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..n]) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(error)) => return Err(End::Io(error)),
                Poll::Ready(Ok(0)) => return Err(End::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => self.sent(n),
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Takes `n` bytes that have left from the outbox.
    fn sent(&mut self, n: usize) {
        self.armed = false;
        self.sent += n;
        while self.outbox.front().is_some_and(|first| first.len <= self.sent)
            && let Some(first) = self.outbox.pop_front()
        {
            self.sent -= first.len;
            self.outbox_bytes -= first.len;
            count(&self.counters.replies);
            self.keep(first.message);
        }
    }

    /// Ready if the peer made no progress for too long where it owes some.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.outbox.is_empty() && !self.inbox.is_amid_record() {
            self.armed = false;
            return Poll::Pending;
        }
        if !self.armed {
            self.armed = true;
            let at = Instant::now() + self.limits.stall;
            self.stall.as_mut().reset(at);
        }
        // A connection whose own Calls keep it from reading owes nothing.
        let busy = self.outbox.is_empty() && self.executing > 0;
        match self.stall.as_mut().poll(cx) {
            Poll::Ready(()) if busy => {
                self.armed = false;
                self.poll_stall(cx)
            }
            Poll::Ready(()) => Poll::Ready(End::Stalled),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Why [`Connection::serve`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// There is no whole record.
    Drained,
    /// Replies have to leave first.
    Full,
    /// A Call in execution has to give back its memory first.
    NoMemory,
}

#[cfg(test)]
mod tests;
