//! The client: Calls, the connections that carry them, and NFS on top.

mod backoff;
mod channel;
mod metrics;
mod rdma;

pub use backoff::BackoffConfig;
pub use channel::CallError;
pub use metrics::{ClientMetrics, Counter};
pub use rdma::RdmaConfig;
