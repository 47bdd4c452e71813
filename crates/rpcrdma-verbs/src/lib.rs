//! RNICs: the provider for InfiniBand, RoCE and hardware iWARP, over libibverbs and librdmacm.
//!
//! # What flows through
//! [`Connector`] and [`Listener`] make connections with the RDMA connection manager; a queue pair posts its work to the
//! device and polls its completions, in [`QueuePair::poll`](rpcrdma_fabric::QueuePair::poll) and nowhere else. The two
//! libraries are loaded when they are first needed, so that nothing of them is needed to build, and a machine without them
//! gets a sentence that says so ([`Unavailable`]).
//!
//! # Who owns which memory
//! What is posted or exposed is owned by the queue pair until the completion or the invalidation, and the queue pair is
//! destroyed before it gives anything back that did not complete: the device then cannot touch it any more.
//!
//! What the peer is given depends on the device.
//!
//! * **Memory windows** of type 2B, where the device has them: the window is bound to the exact bytes and right, for this
//!   queue pair alone, and closed by the Reply (Send with Invalidate) or here. The registrations behind it are of whole
//!   blocks, give the peer nothing, and are made once per block.
//! * **Registration per Call**, elsewhere: the exact bytes with the exact right, in a protection domain that the connection
//!   has for itself, so that a tag means nothing on another connection; closed here, by deregistration, before the Call
//!   ends. Costs two system calls per exposed region. The peer is not told that it may invalidate.
//!
//! In both, a peer that knows a tag can use it only with the right and inside the bytes that it was given, only on its own
//! connection, and only until the Call ends. Tagged offsets are virtual addresses of this process, which peers see.
//!
//! # When it breaks
//! A failed completion, a goodbye, the removal of the device, or the loss of its address ends the connection. Everything
//! comes back as soon as the device has let go of it, and the rest of the goodbye happens in a short-lived task.
//!
//! # Limits
//! Queues are as long as asked for and the device allows; what does not fit waits here. Registered memory is locked, so
//! `RLIMIT_MEMLOCK` has to allow for it; a connection whose Receives alone would not fit is not made.
//!
//! Threads that connect, listen and poll must not change their user or groups, not even for a moment: the kernel then refuses
//! them the devices and channels that were opened before.

mod connect;
mod devices;
mod ffi;
mod ledger;
mod listen;
mod qp;
mod sys;

use std::{fmt, io, time::Duration};

pub use connect::{Connector, Route, route};
pub use devices::{DeviceInfo, DeviceLimits, LockedMemory, Protection, Transport, devices, locked_memory};
pub use listen::Listener;

/// Settings of the provider.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How long address and route may take to resolve, each.
    pub resolve_timeout: Duration,
    /// How long the peer may take to answer a connection request, or to confirm an answer.
    pub connect_timeout: Duration,
    /// Expose memory through windows where the device has them; otherwise always by registration per Call.
    pub windows: bool,
    /// Messages up to so many bytes are copied into the work request, so that the device need not fetch them, if it can do
    /// that.
    pub inline: u32,
    /// How long to look for completions again and again before waiting for them; see the provider for software iWARP.
    pub spin: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            resolve_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
            windows: true,
            inline: 128,
            spin: None,
        }
    }
}

/// Why there are no verbs on this machine, with the remedy.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// A library cannot be loaded; the loader's words.
    Library(String),
    /// The kernel's part cannot be used.
    Kernel(String),
    /// There is no RDMA device.
    NoDevice,
    /// The kernel has these devices, and the libraries no driver for any of them.
    NoDriver(Vec<String>),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(why) => write!(
                f,
                "no RDMA libraries ({why}): install rdma-core; on Debian, libibverbs1, librdmacm1 and ibverbs-providers"
            ),
            Self::Kernel(why) => {
                write!(f, "the kernel's RDMA cannot be used ({why}): load the modules ib_uverbs and rdma_ucm")
            }
            Self::NoDriver(devices) => write!(
                f,
                "no driver for {}: install ibverbs-providers, and see that the module ib_uverbs is loaded",
                devices.join(", ")
            ),
            Self::NoDevice => f.write_str(
                "this machine has no RDMA device; \
                 a software one is made with `rdma link add rxe0 type rxe netdev eth0` or `... siw0 type siw ...`",
            ),
        }
    }
}

impl std::error::Error for Unavailable {}

impl From<Unavailable> for io::Error {
    fn from(e: Unavailable) -> Self {
        Self::new(io::ErrorKind::Unsupported, e)
    }
}
