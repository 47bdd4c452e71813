//! iWARP in userspace: RDMA over any TCP socket, as an RNIC or Linux siw would speak it.
//!
//! # What flows through
//! Three layers, each a module of pure functions over bytes: [`mpa`] frames a TCP stream into FPDUs and starts the
//! connection up (RFC 5044, RFC 6581), [`ddp`] places segments into tagged and untagged buffers (RFC 5041), and
//! [`rdmap`] gives them a meaning: Send, RDMA Write, RDMA Read, Terminate (RFC 5040). The [`engine`] joins them into
//! one end of a connection, without a socket and without a clock. [`Connector`] and [`Listener`] put an engine on a
//! tokio TCP socket and implement the seam of `rpcrdma-fabric`.
//!
//! # Who owns which memory
//! Posted and exposed [`Region`](rpcrdma_fabric::Region)s are moved into the engine and stay there until they
//! complete. Payload is read by the kernel straight into the region it is meant for, and written straight from the
//! region it comes from; only headers, trailers and short messages pass through buffers of the engine.
//!
//! # When it breaks
//! A peer that breaks a rule is told so with one Terminate message, then the connection ends. A message without a
//! posted Receive is such a case: it is never buffered.
//!
//! # Limits
//! No markers (RFC 5044 section 4.3): a peer that demands them is refused. One FPDU carries at most 65,535 bytes.
#![forbid(unsafe_code)]

pub mod ddp;
pub mod engine;
pub mod mpa;
pub mod rdmap;
mod tcp;

pub use tcp::{Config, Connector, Listener};
