//! What can be wrong with a transport message: bytes that do not parse ([`HeaderFault`]) and rules that a peer broke
//! with well-formed bytes ([`PeerMisbehaved`]). One variant per rule, each with its numbers and no text.

use core::fmt;

use super::{Proc, Xid};

/// What is wrong with the bytes of an RPC-over-RDMA header.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Too short to hold a header; not even its XID can be trusted.
    Short {
        /// Bytes that arrived.
        have: usize,
    },
    /// Another version of the protocol than [`super::VERSION`].
    Version(u32),
    /// RDMA_MSGP, which no one may send any more (RFC 8166 section 4.6).
    Msgp,
    /// RDMA_DONE, which no one may send any more.
    Done,
    /// A message type that version 1 does not have.
    UnknownProc(Proc),
    /// A chunk list runs past the end of the message.
    Truncated {
        /// Offset at which `need` bytes were expected.
        at: usize,
        /// Bytes that the next item takes at least.
        need: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// A word that says whether a list goes on is neither 0 nor 1.
    NotBool {
        /// Offset of the word.
        at: usize,
        /// Its value.
        value: u32,
    },
    /// More Read segments than [`super::Limits::max_read_segments`].
    TooManyReadSegments {
        /// The limit.
        max: usize,
    },
    /// More Write chunks than [`super::Limits::max_write_chunks`].
    TooManyWriteChunks {
        /// The limit.
        max: usize,
    },
    /// A Write or Reply chunk with more segments than [`super::Limits::max_segments_per_chunk`].
    TooManySegments {
        /// The count in the message.
        count: u32,
        /// The limit.
        max: usize,
    },
    /// The Read list wants more bytes pulled than [`super::Limits::max_read_bytes`].
    TooManyReadBytes {
        /// Bytes up to and including the segment that went too far.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A position that is not a multiple of 4.
    UnalignedPosition {
        /// The position.
        position: u32,
    },
    /// Two Read chunks claim the same bytes of the unreduced message.
    OverlappingPositions {
        /// Position of the earlier chunk.
        first: u32,
        /// Position of the later chunk, which lies inside the earlier.
        second: u32,
    },
    /// The end of a segment is not a 64-bit address.
    SegmentWraps {
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u32,
    },
    /// An RDMA_NOMSG without any list: there is no message anywhere.
    NoLists,
    /// An RDMA_NOMSG Call without a Position Zero Read chunk to hold the message.
    NoPositionZero,
    /// A Position Zero Read chunk in an RDMA_MSG, which carries its message inline already.
    PositionZeroInMsg,
    /// An RDMA_ERROR whose code is neither ERR_VERS nor ERR_CHUNK.
    UnknownError(u32),
    /// An RDMA_MSG that is too short to hold the RPC message's XID.
    NoPayload {
        /// Bytes behind the header.
        have: usize,
    },
    /// The RPC message has another XID than the transport header (RFC 8166 section 4.2.1).
    XidMismatch {
        /// XID of the header.
        header: Xid,
        /// XID of the RPC message.
        message: Xid,
    },
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Short { have } => write!(f, "{have} bytes are too few for a transport header"),
            Self::Version(v) => write!(f, "version {v} of RPC-over-RDMA, where 1 is spoken"),
            Self::Msgp => f.write_str("the retired message type RDMA_MSGP"),
            Self::Done => f.write_str("the retired message type RDMA_DONE"),
            Self::UnknownProc(p) => write!(f, "unknown message type {p}"),
            Self::Truncated { at, need, have } => {
                write!(f, "a chunk list ends early: {need} bytes wanted at offset {at}, {have} left")
            }
            Self::NotBool { at, value } => write!(f, "{value:#x} where a list flag belongs, at offset {at}"),
            Self::TooManyReadSegments { max } => write!(f, "more than {max} Read segments"),
            Self::TooManyWriteChunks { max } => write!(f, "more than {max} Write chunks"),
            Self::TooManySegments { count, max } => {
                write!(f, "a chunk of {count} segments, where {max} is the most")
            }
            Self::TooManyReadBytes { bytes, max } => {
                write!(f, "a Read list of at least {bytes} bytes, where {max} is the most")
            }
            Self::UnalignedPosition { position } => write!(f, "position {position} is not a multiple of 4"),
            Self::OverlappingPositions { first, second } => {
                write!(f, "the Read chunk at position {second} lies inside the one at {first}")
            }
            Self::SegmentWraps { offset, length } => {
                write!(f, "a segment of {length} bytes at {offset:#x} passes the end of the address space")
            }
            Self::NoLists => f.write_str("an RDMA_NOMSG without any chunk"),
            Self::NoPositionZero => f.write_str("an RDMA_NOMSG Call without a Position Zero Read chunk"),
            Self::PositionZeroInMsg => f.write_str("an RDMA_MSG with a Position Zero Read chunk"),
            Self::UnknownError(code) => write!(f, "an RDMA_ERROR with the unknown code {code}"),
            Self::NoPayload { have } => write!(f, "an RDMA_MSG with {have} bytes of RPC message"),
            Self::XidMismatch { header, message } => {
                write!(f, "transport header for XID {header}, RPC message for XID {message}")
            }
        }
    }
}

impl core::error::Error for HeaderFault {}

/// A rule of the protocol that the peer broke with a message that is well formed.
///
/// A rule about one Reply fails that Call for good; a rule about the connection (credits, invalidation) ends it.
/// [`PeerMisbehaved::ends_connection`] tells the two apart.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMisbehaved {
    /// A Reply carries a Read list; only a Requester exposes memory (RFC 8166 section 3.1).
    ReplyHasReadList {
        /// Segments in it.
        segments: usize,
    },
    /// A Reply returns another number of Write chunks than the Call offered.
    WriteChunkCount {
        /// Chunks in the Call.
        offered: usize,
        /// Chunks in the Reply.
        returned: usize,
    },
    /// A returned chunk has another number of segments than the offered one.
    SegmentCount {
        /// Segments in the Call.
        offered: usize,
        /// Segments in the Reply.
        returned: usize,
    },
    /// A returned segment names other memory than the offered one.
    SegmentChanged {
        /// Index of the segment in its chunk.
        index: usize,
    },
    /// A returned segment is longer than the offered one.
    SegmentGrew {
        /// Bytes offered.
        offered: u32,
        /// Bytes returned.
        returned: u32,
    },
    /// A segment was filled although the one before it still had room.
    SegmentsNotContiguous {
        /// Index of the segment that should be empty.
        index: usize,
    },
    /// A Reply returns a Reply chunk that was not offered.
    ReplyChunkNotOffered,
    /// A Reply does not return the Reply chunk that was offered.
    ReplyChunkNotReturned,
    /// An RDMA_MSG Reply says that its Reply chunk was filled.
    ReplyChunkInMsg {
        /// Bytes it claims.
        bytes: u64,
    },
    /// An RDMA_NOMSG Reply with nothing in its Reply chunk.
    LongReplyEmpty,
    /// An eligible result came inline although a Write chunk was there for it (RFC 8166 section 3.4.6).
    ChunkIgnored {
        /// Bytes of the item.
        bytes: u32,
    },
    /// A result that may not be a chunk was sent as one, or its chunk's length is not the item's.
    ChunkUnexpected {
        /// Bytes in the chunk.
        bytes: u64,
    },
    /// A Reply (or an RDMA_ERROR) for an XID that nobody waits for.
    ReplyToUnknownXid(Xid),
    /// A Send with Invalidate named an STag that does not belong to the Call it answers.
    ForeignInvalidation {
        /// The STag.
        stag: u32,
    },
    /// More Calls than the grant allows (RFC 8166 section 3.3.1).
    CreditOverrun {
        /// Calls outstanding, with the one too many.
        outstanding: u32,
        /// The grant.
        granted: u32,
    },
    /// A Call in the reverse direction that nobody asked for (RFC 8167).
    UnexpectedCall(Xid),
}

impl PeerMisbehaved {
    /// Whether the connection cannot go on. Otherwise only the Call concerned fails, or the message is dropped.
    #[must_use]
    pub const fn ends_connection(&self) -> bool {
        matches!(self, Self::ForeignInvalidation { .. } | Self::CreditOverrun { .. })
    }
}

impl fmt::Display for PeerMisbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ReplyHasReadList { segments } => {
                write!(f, "the Reply carries a Read list of {segments} segments")
            }
            Self::WriteChunkCount { offered, returned } => {
                write!(f, "the Reply returns {returned} Write chunks where {offered} were offered")
            }
            Self::SegmentCount { offered, returned } => {
                write!(f, "the Reply returns a chunk of {returned} segments where {offered} were offered")
            }
            Self::SegmentChanged { index } => {
                write!(f, "the Reply returns other memory than was offered as segment {index}")
            }
            Self::SegmentGrew { offered, returned } => {
                write!(f, "the Reply returns {returned} bytes in a segment of {offered}")
            }
            Self::SegmentsNotContiguous { index } => {
                write!(
                    f,
                    "segment {index} of the Reply's chunk was filled before the one ahead of it was full"
                )
            }
            Self::ReplyChunkNotOffered => f.write_str("the Reply returns a Reply chunk that was not offered"),
            Self::ReplyChunkNotReturned => {
                f.write_str("the Reply does not return the Reply chunk that was offered")
            }
            Self::ReplyChunkInMsg { bytes } => {
                write!(f, "an inline Reply says it filled {bytes} bytes of its Reply chunk")
            }
            Self::LongReplyEmpty => f.write_str("the Reply is in a Reply chunk in which nothing was written"),
            Self::ChunkIgnored { bytes } => {
                write!(f, "a result of {bytes} bytes came inline although it had a Write chunk")
            }
            Self::ChunkUnexpected { bytes } => {
                write!(f, "a Write chunk of {bytes} bytes does not match any result")
            }
            Self::ReplyToUnknownXid(xid) => write!(f, "a Reply to XID {xid}, which nobody waits for"),
            Self::ForeignInvalidation { stag } => {
                write!(f, "the peer invalidated STag {stag:#010x}, which is not part of the Call it answers")
            }
            Self::CreditOverrun { outstanding, granted } => {
                write!(f, "{outstanding} Calls are outstanding where {granted} were granted")
            }
            Self::UnexpectedCall(xid) => {
                write!(f, "a reverse-direction Call with XID {xid}, which nobody asked for")
            }
        }
    }
}

impl core::error::Error for PeerMisbehaved {}

/// What has to be written is longer than the chunk that was offered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkTooSmall {
    /// Bytes to write.
    pub need: u64,
    /// Bytes the chunk holds.
    pub room: u64,
}

impl fmt::Display for ChunkTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes do not fit the {} bytes of the chunk", self.need, self.room)
    }
}

impl core::error::Error for ChunkTooSmall {}
