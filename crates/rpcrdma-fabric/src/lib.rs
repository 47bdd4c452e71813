//! The seam between RPC-over-RDMA and whatever carries it.
//!
//! # What flows through
//! A [`QueuePair`] is one reliable connection. Its user posts Receives ([`QueuePair::post_recv`]) and chains of
//! [`Work`]; the provider answers with [`Completion`]s from [`QueuePair::poll`], which also drives the provider's
//! I/O: there is no other thread or task behind a queue pair, so the one that waits is the one that drives.
//! [`Connector`] and [`Listener`] make queue pairs, and a queue pair is born with its first Receives posted:
//! there is no moment at which a peer could send to a connection that has none.
//!
//! # Who owns which memory
//! Memory is a [`Region`], and a region has exactly one owner. Posting work or exposing a region to the peer
//! *moves* it into the queue pair; the completion, or the reclaim that follows an invalidation, moves it back.
//! While a device or a peer may touch the bytes there is no Rust value through which anybody else could: the rule
//! "no reference into memory that a peer may write" is the borrow checker's.
//!
//! # When it breaks
//! A connection that is lost says so once: `poll` first hands back every region that it held (as
//! [`Completion::Flushed`] and [`Completion::Reclaimed`]) and then returns [`Lost`]. Nothing outlives it.
//!
//! # Limits
//! [`QpLimits`] names how much may be posted; posting more is refused and the region comes back in the error.
#![deny(unsafe_code)]

mod inject;
mod pool;
mod region;
pub mod sim;
mod spin;

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use smallvec::SmallVec;

pub use inject::{FaultCounters, FaultPlan, Inject, InjectConnector, InjectListener, ParsePlanError};
pub use pool::Pool;
pub use region::{Region, Registration, UnsplitError};
pub use spin::Spin;

/// A steering tag: names memory that one side of one connection exposes to the other (RFC 5040 section 1; `rkey`
/// on InfiniBand, `handle` in RFC 8166).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stag(pub u32);

impl fmt::Debug for Stag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stag {:#010x}", self.0)
    }
}

/// What the peer may do with an exposed region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// RDMA Read: the peer fetches.
    RemoteRead,
    /// RDMA Write: the peer places.
    RemoteWrite,
}

/// An exposed region, as its peer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The tag.
    pub stag: Stag,
    /// Tagged offset of the region's first byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A piece of the peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSegment {
    /// The peer's tag for it.
    pub stag: Stag,
    /// Tagged offset of the first byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// The pieces of one transfer, in order.
pub type RemoteSegments = SmallVec<[RemoteSegment; 2]>;

/// What the user of a queue pair calls a piece of work; comes back in its completion.
pub type WorkId = u64;

/// Something for the provider to do. Work is executed and completed in the order in which it was posted, except
/// that RDMA Reads may complete after later Sends and Writes.
#[derive(Debug)]
pub enum Work {
    /// Sends the first `len` bytes of `buf` to a Receive of the peer.
    Send {
        /// Comes back in the completion.
        id: WorkId,
        /// The message; owned by the queue pair until completion.
        buf: Region,
        /// Length of the message in bytes.
        len: usize,
        /// Ask the peer's provider to invalidate this tag of the peer's when the message is delivered.
        invalidate: Option<Stag>,
    },
    /// Writes bytes of `buf`, from offset `at`, to the peer's segments one after the other until they are full.
    Write {
        /// Comes back in the completion.
        id: WorkId,
        /// The data; owned by the queue pair until completion.
        buf: Region,
        /// Offset in `buf` of the first byte.
        at: usize,
        /// Where the bytes go.
        to: RemoteSegments,
    },
    /// Reads the peer's segments, one after the other, into `buf` from offset `at`.
    Read {
        /// Comes back in the completion.
        id: WorkId,
        /// The destination; owned by the queue pair until completion.
        buf: Region,
        /// Offset in `buf` of the first byte.
        at: usize,
        /// Where the bytes come from.
        from: RemoteSegments,
    },
}

impl Work {
    /// What its completion says: the name of the work, its kind, and its memory.
    #[must_use]
    pub fn into_parts(self) -> (WorkId, Op, Region) {
        match self {
            Self::Send { id, buf, .. } => (id, Op::Send, buf),
            Self::Write { id, buf, .. } => (id, Op::Write, buf),
            Self::Read { id, buf, .. } => (id, Op::Read, buf),
        }
    }
}

/// What kind of work a completion is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// A posted Receive.
    Recv,
    /// [`Work::Send`].
    Send,
    /// [`Work::Write`].
    Write,
    /// [`Work::Read`].
    Read,
}

/// What the provider reports.
#[derive(Debug)]
pub enum Completion {
    /// A message has arrived in a posted Receive.
    Received {
        /// The Receive's memory, the caller's again.
        buf: Region,
        /// Length of the message in bytes.
        len: usize,
        /// The tag of ours that the sender had invalidated (Send with Invalidate). The region behind it is
        /// reclaimed too and arrives as [`Completion::Reclaimed`] *before* this completion.
        invalidated: Option<Stag>,
    },
    /// Work is done and its memory is the caller's again. For a Send or Write this says that the transport has
    /// taken the bytes, not that the peer has seen them.
    Done {
        /// From the work.
        id: WorkId,
        /// What it was.
        op: Op,
        /// The work's memory.
        buf: Region,
    },
    /// Work or a Receive that the lost connection did not carry out. What the peer saw of it is unknown.
    Flushed {
        /// From the work; 0 for a Receive.
        id: WorkId,
        /// What it was.
        op: Op,
        /// The memory.
        buf: Region,
    },
    /// An exposed region is closed to the peer and the caller's again.
    Reclaimed {
        /// The tag that no longer means anything.
        stag: Stag,
        /// The memory.
        buf: Region,
    },
}

/// How much a queue pair takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpLimits {
    /// Receives posted at one time.
    pub recvs: usize,
    /// Pieces of work posted and not completed.
    pub sends: usize,
    /// Regions exposed at one time.
    pub exposed: usize,
    /// RDMA Reads that we may have open (ORD). More may be posted; the provider holds them back.
    pub outbound_reads: u32,
    /// RDMA Reads that the peer may have open (IRD).
    pub inbound_reads: u32,
}

impl Default for QpLimits {
    fn default() -> Self {
        Self { recvs: 512, sends: 2048, exposed: 2048, outbound_reads: 32, inbound_reads: 128 }
    }
}

/// A refusal that gives back what it refused.
pub struct Rejected<T> {
    /// Why.
    pub why: RejectReason,
    /// What was not taken.
    pub item: T,
}

impl<T> fmt::Debug for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rejected({:?})", self.why)
    }
}

impl<T> fmt::Display for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)
    }
}

impl<T> std::error::Error for Rejected<T> {}

/// Why a provider does not take work or memory.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// The connection is gone.
    Lost,
    /// The queue is as long as [`QpLimits`] allows.
    QueueFull,
    /// As many regions as [`QpLimits`] allows are exposed already.
    TooManyRegions,
    /// A range lies outside its region, or a length does not fit the wire.
    OutOfRange,
    /// The connection's negotiated ORD is 0: it cannot read.
    NoReads,
    /// The provider could not register the memory.
    Registration,
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "the connection is lost",
            Self::QueueFull => "the queue is full",
            Self::TooManyRegions => "too many regions are exposed",
            Self::OutOfRange => "the range lies outside its region",
            Self::NoReads => "the peer accepts no RDMA Reads",
            Self::Registration => "the memory cannot be registered",
        })
    }
}

/// Why a connection ended.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The peer closed it in good order.
    PeerClosed,
    /// The network or the operating system broke it.
    Io(io::ErrorKind),
    /// The peer ended it with an error message of its transport, in words.
    Terminated(String),
    /// The peer broke a rule of the transport; in words. The peer was told, as far as the transport can.
    PeerMisbehaved(String),
    /// We closed it.
    Closed,
    /// A fault injector cut it.
    Injected,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerClosed => f.write_str("the peer closed the connection"),
            Self::Io(kind) => write!(f, "the connection broke: {kind}"),
            Self::Terminated(why) => write!(f, "the peer terminated the connection: {why}"),
            Self::PeerMisbehaved(what) => write!(f, "the peer broke the transport's rules: {what}"),
            Self::Closed => f.write_str("the connection was closed here"),
            Self::Injected => f.write_str("an injected fault cut the connection"),
        }
    }
}

impl std::error::Error for Lost {}

/// How to end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Let what is posted go out first, then say goodbye.
    Graceful,
    /// At once; what is posted is flushed and the peer sees a broken connection.
    Abort,
}

/// One reliable connection, from birth to death.
pub trait QueuePair: Send {
    /// What this connection takes.
    fn limits(&self) -> QpLimits;

    /// What is known of the other end.
    fn peer(&self) -> &Peer;

    /// Posts a Receive. Messages fill Receives in the order of posting; a message longer than its Receive, or one
    /// for which none is posted, is fatal to the connection, as on any RDMA fabric.
    ///
    /// # Errors
    /// The region comes back if it is not taken.
    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>>;

    /// Posts work. It starts at the next [`QueuePair::poll`], so that work posted together leaves together.
    ///
    /// # Errors
    /// The work comes back if it is not taken.
    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>>;

    /// Lets the peer reach the first `len` bytes of `region`, for reading or for writing, until it is invalidated
    /// by either side. It is open when the peer gets a message that is posted afterwards, and may not be before.
    ///
    /// # Errors
    /// The region comes back if it is not taken.
    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>>;

    /// Starts to close an exposed region to the peer; [`Completion::Reclaimed`] follows. A tag that is not exposed,
    /// because the peer had it invalidated, is ignored.
    fn invalidate(&mut self, stag: Stag);

    /// Drives the connection: sends what is posted, takes what has arrived, and appends what completed to `done`.
    /// `Ready(Ok(()))` means that `done` grew.
    ///
    /// # Errors
    /// `Ready(Err(_))` when the connection has ended; by then everything that it held has come back through `done`.
    /// From then on always the same error.
    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>>;

    /// Ends the connection; `poll` flushes what is posted and reports [`Lost`].
    fn shutdown(&mut self, how: Shutdown);
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub addr: SocketAddr,
    /// What it sent as private data when the connection was made, without the provider's own part.
    pub private_data: Vec<u8>,
    /// Whether the provider delivers Send with Invalidate in both directions.
    pub remote_invalidation: bool,
    /// The provider in a word or two, for people: `iWARP/TCP, CRC32c`.
    pub transport: String,
}

/// What a new connection starts with.
#[derive(Debug, Default)]
pub struct Start {
    /// Private data for the peer.
    pub private_data: Vec<u8>,
    /// Receives that are posted before the peer can send anything.
    pub recvs: Vec<Region>,
    /// What is wanted of the queue pair; the provider may give less.
    pub limits: QpLimits,
}

/// Why a connection was not made.
#[non_exhaustive]
#[derive(Debug)]
pub enum ConnectError {
    /// The operating system could not connect.
    Io(io::Error),
    /// The peer speaks the transport and said no; with its private data.
    Refused(Vec<u8>),
    /// The peer does not speak the transport, or not in a way that fits; in words.
    Incompatible(String),
    /// No answer in time.
    TimedOut,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(e) => write!(f, "cannot connect: {e}"),
            Self::Refused(_) => f.write_str("the peer rejected the RDMA connection"),
            Self::Incompatible(what) => write!(f, "the peer is not compatible: {what}"),
            Self::TimedOut => f.write_str("the peer did not answer the RDMA connection request in time"),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if let Self::Io(e) = self { Some(e) } else { None }
    }
}

impl From<io::Error> for ConnectError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// A future that a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A queue pair behind the seam.
pub type BoxQueuePair = Box<dyn QueuePair>;

/// Makes connections.
pub trait Connector: Send + Sync {
    /// Connects to `to`. Dropping the future gives up.
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>>;

    /// Whether the peer at `to` may invalidate what a connection to it exposes (Send with Invalidate), so that private
    /// data may say so. Providers whose devices differ find out which one leads there.
    fn remote_invalidation(&self, to: SocketAddr) -> BoxFuture<'_, bool> {
        let _ = to;
        Box::pin(std::future::ready(true))
    }
}

impl<C: Connector + ?Sized> Connector for Arc<C> {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        (**self).connect(to, start)
    }

    fn remote_invalidation(&self, to: SocketAddr) -> BoxFuture<'_, bool> {
        (**self).remote_invalidation(to)
    }
}

/// Takes connections.
pub trait Listener: Send {
    /// Where it listens.
    fn local_addr(&self) -> SocketAddr;

    /// Waits for the next connection request.
    ///
    /// # Errors
    /// Only errors of the listening socket itself; a peer that fails its set-up shows in [`Request::accept`].
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>>;
}

/// A peer that wants to connect. Dropped, it is turned away without an answer.
pub trait Request: Send {
    /// Who asks.
    fn peer_addr(&self) -> SocketAddr;

    /// Whether a Send of ours will be able to have the peer's tag invalidated, which is what a Responder says it supports
    /// (RFC 8797).
    fn can_invalidate(&self) -> bool {
        true
    }

    /// Completes the set-up. The answer is made when the peer's private data is known: `answer` is called with it
    /// once, and what it returns is sent and posted.
    ///
    /// # Errors
    /// If the peer does not complete the set-up, or asks for something that cannot be had.
    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>>;
}

/// Decides on a connection request, given the peer's private data.
pub type Decide<'a> = Box<dyn FnOnce(&[u8]) -> Answer + Send + 'a>;

/// The passive side's decision on a connection request.
#[derive(Debug)]
pub enum Answer {
    /// Take it.
    Accept(Start),
    /// Turn it away, with private data that says why.
    Reject(Vec<u8>),
}
