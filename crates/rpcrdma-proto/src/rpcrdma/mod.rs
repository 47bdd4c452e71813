//! RPC-over-RDMA version 1 (RFC 8166): headers, chunks, message shapes, credits and the two roles.
//!
//! # Operation
//! A *transport message* is what one Send carries: an RPC-over-RDMA header, then (in an RDMA_MSG) the RPC message,
//! reduced by the data items that travel as chunks. [`header`] and [`chunk`] turn the header into values and back;
//! [`shape`] decides how a Call or a Reply travels; [`private_data`] agrees on the inline thresholds that this
//! decision needs.
//!
//! # When it breaks
//! A header that does not parse yields a [`HeaderError`], and [`HeaderError::answer`] says what the receiver's role
//! owes the sender (RFC 8166 section 4.5). A well-formed message that breaks a rule yields [`PeerMisbehaved`].
//! Neither names anything but numbers from the message, so both are `Copy` and cost nothing.
//!
//! # Limits
//! Every count that a peer sends is held against [`Limits`] and against the bytes that are there, before anything is
//! stored.

pub mod chunk;
pub mod credits;
pub mod error;
pub mod header;
pub mod private_data;
pub mod requester;
pub mod responder;
pub mod shape;

#[cfg(test)]
mod tests;

pub use chunk::{ReadChunk, ReadChunks, ReadList, ReadSegment, Segment, WriteChunk, WriteList};
pub use error::{ChunkTooSmall, HeaderFault, PeerMisbehaved};
pub use header::{Answer, Body, ChunkLists, Header, HeaderError, Limits, Placed, Proc, RdmaError};

pub use crate::rpc::Xid;
pub use private_data::{PrivateData, Thresholds};
pub use shape::{
    CallForm, CallShape, CallSize, HeaderTooLong, ItemPlace, NoRoom, ReplyOffer, ReplyRoom, ReplyShape,
    SegmentCounts,
};

/// The version of RPC-over-RDMA that this crate speaks.
pub const VERSION: u32 = 1;

/// Length in bytes of the smallest RDMA_MSG or RDMA_NOMSG header: four fixed words and three absent lists.
pub const MIN_HEADER: usize = 28;

/// The inline threshold that both sides may count on without having heard from each other (RFC 8166 section 3.3.2).
pub const DEFAULT_INLINE: u32 = 1024;

/// Which side of one direction of a connection is looking at a message. Each end is Requester for its own Calls and
/// Responder for its peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sends Calls, receives Replies.
    Requester,
    /// Receives Calls, sends Replies.
    Responder,
}

/// A credit value as it stands in `rdma_credit`: asked for in a Call, granted in a Reply (RFC 8166 section 3.3.1).
/// The wire value is kept as it came, so that a header re-encodes to the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credits(pub u32);

impl Credits {
    /// The number of Calls that may be outstanding under this grant: at least 1, because a grant of 0 would be a
    /// deadlock and is read as 1.
    #[must_use]
    pub const fn window(self) -> u32 {
        if self.0 == 0 { 1 } else { self.0 }
    }
}
