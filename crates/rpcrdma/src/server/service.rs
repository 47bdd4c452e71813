//! What a server transport and the RPC service say to each other.
//!
//! # Operation
//! A transport (RPC-over-RDMA or TCP) receives a Call, gathers the chunks that were moved out of it, and shows both to
//! [`Service::serve`] on the connection's own thread with [`Patience::Now`]. What is cached is answered at once. What
//! would block comes back as [`Served::WouldBlock`], untouched; the transport then moves the Call's memory to a pool of
//! blocking threads and calls again with [`Patience::Wait`].
//!
//! # Ownership
//! The Call's memory belongs to the transport and is only borrowed. The Reply's head is written into a buffer of the
//! transport's; its bulk data is a [`Region`] that the service takes from the pools and hands over, so it goes from the
//! file to the wire without a copy.

use std::net::SocketAddr;

use rpcrdma_fabric::Region;
use rpcrdma_proto::xdr::{Chunk, Writer};

use crate::memory::Pools;

/// What carried a Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// RPC-over-RDMA.
    Rdma,
    /// RPC with record marking over TCP.
    Tcp,
}

/// Where a Call came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The client's address and port.
    pub peer: SocketAddr,
    /// What carried it.
    pub carrier: Carrier,
}

/// A Call as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct IncomingCall<'a> {
    /// Where it came from.
    pub origin: Origin,
    /// The RPC message, reduced by `chunks`.
    pub message: &'a [u8],
    /// Data that travelled in Read chunks, in order of position.
    pub chunks: &'a [Chunk<'a>],
}

/// A Reply in the making.
#[derive(Debug, Default)]
pub struct OutgoingReply {
    /// The RPC message. If it has a hole, `data` holds the bytes that belong there.
    pub message: Writer,
    /// The chunkable result, from the region's first byte on; as long as the hole.
    pub data: Option<Region>,
}

/// Whether the service may block the thread it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It may not: others wait for this thread.
    Now,
    /// It may.
    Wait,
}

/// What became of a Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The Reply is in the [`OutgoingReply`].
    Reply,
    /// There is no Reply: the message is not a Call, or a duplicate of a Call that is being executed.
    Silent,
    /// Nothing has been done; call again with [`Patience::Wait`].
    WouldBlock,
    /// The message is such that the connection has to be closed.
    Close,
}

/// Executes Calls.
pub trait Service: Send + Sync + 'static {
    /// Executes one Call. `reply` arrives empty; regions for bulk results come from `pools`.
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served;
}
