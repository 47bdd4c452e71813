//! NFS over RDMA in userspace: client, server, and the driver that joins protocol and fabric.

pub mod client;
pub mod error;
pub mod export;
pub mod memory;
pub mod metrics;
pub mod probe;
pub mod server;
mod stream;
#[cfg(test)]
mod wire;

/// The seam to RDMA providers, the fault injector and registered memory.
pub use rpcrdma_fabric as fabric;
/// NFSv3 and MOUNT as values.
pub use rpcrdma_nfs as nfs;
/// RPC-over-RDMA, ONC RPC and XDR without I/O.
pub use rpcrdma_proto as proto;
/// Software iWARP.
pub use softiwarp as iwarp;
