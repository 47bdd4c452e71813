//! A simulated fabric: any number of nodes with queue pairs between them, in one thread, on somebody else's clock.
//!
//! # Operation
//! A [`Sim`] is a world. [`Sim::connector`] and [`Sim::listen`] give it nodes, which run the real client and server
//! through the seam. Nothing happens by itself: the world keeps a queue of what will happen when ([`Sim::poll_due`]), and
//! whoever runs it moves his clock there and calls [`Sim::step`]. All that is left to chance (delays, orders, batches,
//! failures) comes from one seed, so a run with the same seed and the same users is the same run.
//!
//! # What is modelled
//! * Reliable connections: in each direction everything arrives in order, or the connection breaks. Delays are drawn for
//!   each packet; slow links add to them with size. A packet that is lost and sent again is one that takes long; one that
//!   is lost for good is a reset or silence.
//! * Receives are consumed in order. A message without a Receive is fatal at once on an iWARP-like fabric; on an
//!   InfiniBand-like one it is tried again `rnr_retry` times, or forever if that is 7 ([`Face`]).
//! * Memory is reached by STag, inside its bounds, with its right, until it is invalidated, and never on another
//!   connection. Whoever asks for more loses the connection.
//! * Completions of Sends are late, now and then very late, and come in whatever order relative to Receives. A dying
//!   queue pair may still take work, first reports what it had completed, and flushes its queues in either order. Each
//!   piece comes back once: a second completion of it could not give its memory back again, so what devices flush twice
//!   ends in their providers.
//! * Queues, exposed regions and RDMA Reads (IRD, ORD) are limited, and what a queue pair starts with beyond its limit is
//!   not posted; registration may fail.
//!
//! # Faults
//! Every event of a connection (connect, accept, post, transmission, arrival, completion, exposure, invalidation) is a
//! numbered [`Step`]. Before each one the [`Faults`] plan is asked whether something breaks there, and on which side and
//! how ([`What`]): a reset that one side sees first, with or without what is in flight; silence, which nobody is told of;
//! the removal of a device; a failed registration; a refused connection.
//!
//! # Who owns which memory
//! What is posted or exposed is in the world until it comes back through a completion. A queue pair that is dropped takes
//! its memory with it.
//!
//! # Limits
//! Time is in whole milliseconds. A step is made under a lock, and observers must not call back into the world.

mod end;
mod qp;
mod setup;
mod world;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

pub use end::View;
pub use setup::{SimConnector, SimListener};

use crate::{Access, Completion, Lost, Op, QpLimits, RemoteSegment, Shutdown, Stag, WorkId};
use world::World;

/// Names a connection in its world; the first is 1.
pub type ConnId = u64;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The one that connected.
    Active,
    /// The one that accepted.
    Passive,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Active => Self::Passive,
            Self::Passive => Self::Active,
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// What a message without a Receive does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    /// It ends the connection.
    Iwarp,
    /// It is tried again.
    InfiniBand {
        /// How often; 7 is forever.
        rnr_retry: u8,
        /// After how many milliseconds.
        rnr_timer: u64,
    },
}

/// How a world behaves. All delays are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// See [`Face`].
    pub face: Face,
    /// From one end to the other, for each packet.
    pub latency: RangeInclusive<u64>,
    /// More of it for each KiB: a slow link.
    pub per_kib: u64,
    /// Bytes in a packet of a Write or of a Read's answer.
    pub fragment: usize,
    /// From post to transmission.
    pub device: RangeInclusive<u64>,
    /// From transmission to completion of a Send or Write.
    pub completion: RangeInclusive<u64>,
    /// One completion in so many is late by this much more; 0 for none.
    pub laggard: (u32, u64),
    /// One notification in so many, that something has completed, is late by this much, so that more comes at one time: a
    /// device that moderates its interrupts, or a busy host. 0 for none.
    pub notification: (u32, u64),
    /// From the request to invalidate until the region is closed.
    pub invalidation: RangeInclusive<u64>,
    /// From the loss until the queues are flushed.
    pub flush: RangeInclusive<u64>,
    /// Most completions that one poll hands out.
    pub batch: usize,
    /// What a device takes at most.
    pub limits: QpLimits,
    /// Whether Send with Invalidate works.
    pub remote_invalidation: bool,
    /// One registration in so many fails; 0 for none.
    pub registration_fails: u32,
    /// Whether the passive side gets its queue pair only when the active side has confirmed.
    pub late_ready: bool,
    /// How long a silent connection with something unacknowledged lives on an InfiniBand-like fabric.
    pub transport_timeout: u64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            face: Face::Iwarp,
            latency: 1..=3,
            per_kib: 0,
            fragment: 4096,
            device: 0..=1,
            completion: 0..=3,
            laggard: (0, 0),
            notification: (0, 0),
            invalidation: 0..=1,
            flush: 0..=2,
            batch: 16,
            limits: QpLimits::default(),
            remote_invalidation: true,
            registration_fails: 0,
            late_ready: false,
            transport_timeout: 4000,
        }
    }
}

/// What happens in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StepKind {
    /// The active side asks for a connection.
    Connect,
    /// The passive side hears of it.
    Request,
    /// The passive side takes it.
    Accept,
    /// The active side hears of that.
    Established,
    /// The passive side hears of that.
    Ready,
    /// A Receive is posted.
    PostRecv,
    /// Work is posted.
    Post(Op),
    /// Posted work leaves.
    Transmit(Op),
    /// A packet arrives.
    Arrive(PacketKind),
    /// Work is completed.
    Complete(Op),
    /// A region is exposed.
    Expose,
    /// It is to be closed again.
    Invalidate,
    /// It is.
    Reclaim,
}

/// What kind of packet arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PacketKind {
    /// A message.
    Send,
    /// Bytes for exposed memory.
    Write,
    /// The question of an RDMA Read.
    ReadRequest,
    /// Bytes of its answer.
    ReadResponse,
    /// The end of the connection.
    End,
}

/// One numbered event of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Counts from 1 through the life of the world.
    pub number: u64,
    /// When.
    pub at: Duration,
    /// On which connection.
    pub conn: ConnId,
    /// At which end.
    pub side: Side,
    /// What.
    pub kind: StepKind,
}

/// Whether a fault comes before its step or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// Before: the step finds things broken.
    Before,
    /// After: the step has been made.
    After,
}

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// The connection is reset.
    Reset {
        /// This end sees it at once, the other when word has reached it.
        first: Side,
        /// Whether what is under way from that end is lost.
        drop: bool,
    },
    /// Nothing goes through any more, and nobody is told.
    Silence,
    /// The device of one end goes away and comes back.
    Remove {
        /// Whose.
        side: Side,
        /// For how many milliseconds.
        down: u64,
    },
    /// The registration fails; of no effect on other steps than [`StepKind::Expose`].
    Registration,
    /// The connection is refused; of no effect on other steps than [`StepKind::Request`].
    Refuse,
}

/// A fault at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fault {
    /// On which side of the step.
    pub when: When,
    /// What it is.
    pub what: What,
}

/// Decides what breaks where.
pub trait Faults: Send {
    /// Is asked once for every step, in order.
    fn at(&mut self, step: &Step) -> Option<Fault>;
}

/// Nothing breaks.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn at(&mut self, _step: &Step) -> Option<Fault> {
        None
    }
}

/// Sees all that happens.
pub trait Observer: Send {
    /// Something has happened.
    fn see(&mut self, event: &Event<'_>);
}

/// Something that has happened at one end of a connection.
pub struct Event<'a> {
    /// The step of which it is a part.
    pub step: u64,
    /// When.
    pub at: Duration,
    /// On which connection.
    pub conn: ConnId,
    /// At which end.
    pub side: Side,
    /// The address of that end.
    pub addr: SocketAddr,
    /// What.
    pub kind: EventKind<'a>,
    /// That end, as it is afterwards.
    pub view: View<'a>,
}

/// What has happened.
#[derive(Debug)]
pub enum EventKind<'a> {
    /// A connection is wanted.
    Connect {
        /// Of whom.
        to: SocketAddr,
    },
    /// The other side hears of it.
    Request,
    /// This end of a connection is born with this many Receives.
    Born {
        /// Receives posted.
        recvs: usize,
    },
    /// The connection was not made.
    NotMade,
    /// This end may use the connection now.
    Made,
    /// A Receive has been posted.
    RecvPosted,
    /// A Send has been posted.
    SendPosted {
        /// What its user calls it.
        id: WorkId,
        /// The message.
        bytes: &'a [u8],
        /// What it asks to have invalidated.
        invalidate: Option<Stag>,
    },
    /// An RDMA Write or Read of so many bytes has been posted.
    Posted {
        /// Which.
        op: Op,
        /// Bytes.
        len: u64,
        /// Where at the peer.
        segments: &'a [RemoteSegment],
    },
    /// A region has been exposed.
    Exposed {
        /// Its tag.
        stag: Stag,
        /// Its first byte.
        offset: u64,
        /// Its length.
        len: u32,
        /// For what.
        access: Access,
    },
    /// No: the registration failed or there is no room for it.
    NotExposed,
    /// A region is to be closed.
    Invalidating {
        /// Its tag.
        stag: Stag,
    },
    /// A region is closed to the peer.
    Reclaimed {
        /// Its tag.
        stag: Stag,
        /// By whom.
        how: Reclaim,
    },
    /// A message has taken a Receive.
    Arrived {
        /// The message.
        bytes: &'a [u8],
    },
    /// The peer has written to an exposed region.
    Placed {
        /// Its tag.
        stag: Stag,
        /// Bytes.
        len: usize,
    },
    /// The peer has read from an exposed region.
    Fetched {
        /// Its tag.
        stag: Stag,
        /// Bytes.
        len: usize,
    },
    /// A message found no Receive.
    NoRecv,
    /// The peer broke a rule of the fabric; in words.
    Violation(&'a str),
    /// The user is given a completion.
    Handed(&'a Completion),
    /// A fault of the plan.
    Fault(Fault),
    /// This end is lost.
    Lost(&'a Lost),
    /// The user ends the connection.
    Shutdown(Shutdown),
    /// The user has dropped this end.
    Dropped,
}

/// By whom a region was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// By its owner.
    Local,
    /// By the peer's Send with Invalidate.
    Remote,
    /// By the end of the connection.
    Flush,
}

/// What is in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Connections with an end that has not been dropped.
    pub connections: usize,
    /// Ends that have not been dropped.
    pub ends: usize,
    /// Receives posted.
    pub recvs: usize,
    /// Work posted and not completed.
    pub work: usize,
    /// Regions exposed.
    pub exposed: usize,
    /// Connections made so far.
    pub made: u64,
    /// Steps so far.
    pub steps: u64,
    /// Faults so far.
    pub faults: u64,
    /// When the last one was.
    pub last_fault: Duration,
}

/// Tells the world the time since its beginning.
pub type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// A world. Clones are the same one.
#[derive(Clone)]
pub struct Sim {
    shared: Arc<Shared>,
}

struct Shared {
    world: Mutex<World>,
    clock: Clock,
}

impl Shared {
    /// The world, at the time that it is.
    fn world(&self) -> MutexGuard<'_, World> {
        let now = (self.clock)();
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.now = Duration::from_millis(now.as_millis() as u64);
        world
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sim({:?})", self.census())
    }
}

impl Sim {
    /// A world without nodes. `clock` tells the time since its beginning and never goes back.
    #[must_use]
    pub fn new(
        seed: u64,
        profile: Profile,
        clock: Clock,
        faults: Box<dyn Faults>,
        observer: Option<Box<dyn Observer>>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                world: Mutex::new(World::new(seed, profile, faults, observer)),
                clock,
            }),
        }
    }

    /// A node that connects to others.
    #[must_use]
    pub fn connector(&self, node: IpAddr) -> SimConnector {
        SimConnector::new(Arc::clone(&self.shared), node)
    }

    /// A node that others connect to. A later listener takes the place of an earlier one at the same address.
    #[must_use]
    pub fn listen(&self, at: SocketAddr) -> SimListener {
        SimListener::new(Arc::clone(&self.shared), at)
    }

    /// When the next thing will happen. Pending if nothing is under way; woken when that changes.
    pub fn poll_due(&self, cx: &mut Context<'_>) -> Poll<Duration> {
        let mut world = self.shared.world();
        match world.next_due() {
            Some(due) => {
                world.watch(cx.waker());
                Poll::Ready(due)
            }
            None => {
                world.watch(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Lets the next thing happen, if it is due. Whether it did.
    pub fn step(&self) -> bool {
        self.shared.world().advance()
    }

    /// Counts what there is.
    #[must_use]
    pub fn census(&self) -> Census {
        self.shared.world().census()
    }

    /// Takes the device of a node away: its connections are lost without a word to the peers, and none can be made, for so
    /// many milliseconds.
    pub fn remove_device(&self, node: IpAddr, down: u64) {
        self.shared.world().remove_device(node, down);
    }

    /// Replaces the plan of faults.
    pub fn set_faults(&self, faults: Box<dyn Faults>) {
        self.shared.world().faults = faults;
    }
}
