//! The client: Calls, the connections that carry them, and NFS on top.

mod backoff;
mod channel;
mod link;
mod mount;
mod mountd;
mod nfs;
pub(crate) mod oneshot;
mod rdma;
mod servers;
mod target;
mod tcp;

pub use backoff::BackoffConfig;
pub use channel::CallError;
pub(crate) use channel::Xids;
pub(crate) use mount::credential;
pub use mount::{Identity, Mount, MountConfig, Transport};
pub use nfs::{DirEntry, DirPage, ReadDone};
pub use rdma::RdmaConfig;
pub(crate) use servers::Servers;
pub use target::{ParseTargetError, Target};
