//! The client: Calls, the connections that carry them, and NFS on top.

mod backoff;
mod channel;
mod rdma;

pub use backoff::BackoffConfig;
pub use channel::CallError;
pub use rdma::RdmaConfig;
