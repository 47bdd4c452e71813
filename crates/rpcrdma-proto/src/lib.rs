//! XDR, ONC RPC and RPC-over-RDMA version 1 as values and state machines, without I/O.
//!
//! Nothing in this crate touches a socket, a clock or a thread: bytes come in through `decode` and `handle_*`
//! functions, bytes go out through `encode`, and the time is always an argument.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`xdr`] | reading and writing External Data Representation, with chunks spliced in or left out |
//! | [`rpc`] | ONC RPC Call and Reply headers, credentials, error Replies |
//! | [`record`] | record marking, for RPC on TCP |
//! | [`rpcbind`] | the types of rpcbind, program 100000 |
//! | [`drc`] | the duplicate request cache |
//! | [`rpcrdma`] | the RPC-over-RDMA header, chunk lists, message shapes, credits, Requester and Responder |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod drc;
pub mod record;
pub mod rpc;
pub mod rpcbind;
pub mod rpcrdma;
#[cfg(test)]
mod testing;
pub mod xdr;
