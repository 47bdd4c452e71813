//! XDR, ONC RPC and RPC-over-RDMA version 1 as values and state machines, without I/O.
//!
//! Nothing in this crate touches a socket, a clock or a thread: bytes come in through `decode` and `handle_*`
//! functions, bytes go out through `encode`, and the time is always an argument.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod xdr;
