//! NFS over RDMA in userspace: client, server, and the driver that joins protocol and fabric.

pub mod client;
pub mod error;
pub mod export;
pub mod memory;
pub mod metrics;
pub mod server;
