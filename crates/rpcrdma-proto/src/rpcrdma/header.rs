//! The RPC-over-RDMA version 1 header (RFC 8166 section 4.2).
//!
//! # Operation
//! [`Header::decode`] reads a header in place from the front of a received message and says where the RPC message
//! begins; [`Header::open`] also checks that the message is there and has the header's XID. [`Header::encode`] and
//! [`Header::encode_into`] write one; a header that was decoded gives its own bytes back.
//!
//! The four fixed words have the same place in every version of the protocol, so they are read before the version is
//! known to be ours: an answer about a bad version needs the XID. The same holds for RDMA_ERROR with ERR_VERS.
//!
//! # When it breaks
//! [`HeaderError::answer`] is the table of who owes whom what. Nothing here ends a connection.
//!
//! # Limits
//! [`Limits`]. A count is held against them and against the bytes left before its items are stored; a segment that
//! would pass the end of the address space is refused.

use core::fmt;

use smallvec::SmallVec;

use super::{
    Credits, HeaderFault, MIN_HEADER, PeerMisbehaved, ReadChunks, ReadList, ReadSegment, Role, Segment,
    VERSION, WriteChunk, WriteList, Xid,
};
use crate::xdr::{Encode, Writer};

const ERR_VERS: u32 = 1;
const ERR_CHUNK: u32 = 2;
/// Bytes of the fixed words.
const FIXED: usize = 16;

/// `rdma_proc`, the type of a transport message. An unknown value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proc(pub u32);

impl Proc {
    /// A header with an RPC message behind it.
    pub const MSG: Self = Self(0);
    /// A header whose RPC message is in a chunk.
    pub const NOMSG: Self = Self(1);
    /// Retired; refused when received.
    pub const MSGP: Self = Self(2);
    /// Retired; ignored when received.
    pub const DONE: Self = Self(3);
    /// A transport error, which takes the place of a Reply.
    pub const ERROR: Self = Self(4);
}

impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MSG => f.write_str("RDMA_MSG"),
            Self::NOMSG => f.write_str("RDMA_NOMSG"),
            Self::MSGP => f.write_str("RDMA_MSGP"),
            Self::DONE => f.write_str("RDMA_DONE"),
            Self::ERROR => f.write_str("RDMA_ERROR"),
            Self(v) => write!(f, "{v:#x}"),
        }
    }
}

/// How much of a peer's chunk lists is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Read segments in a message.
    pub max_read_segments: usize,
    /// Bytes that all Read segments of a message may have together: what a Responder has to find memory for.
    pub max_read_bytes: u64,
    /// Chunks in a Write list.
    pub max_write_chunks: usize,
    /// Segments in one Write or Reply chunk.
    pub max_segments_per_chunk: usize,
}

impl Limits {
    /// What a Requester accepts in Replies. It never pulls anything, so a Read list is only counted, to be refused
    /// later with the Call's name on it.
    pub const REPLY: Self = Self {
        max_read_segments: 259,
        max_read_bytes: u64::MAX,
        max_write_chunks: 16,
        max_segments_per_chunk: 259,
    };
}

impl Default for Limits {
    /// A WRITE of 1 MiB in any shape; as many segments per chunk as the Linux server takes.
    fn default() -> Self {
        Self {
            max_read_segments: 259,
            max_read_bytes: (1 << 20) + (64 << 10),
            max_write_chunks: 16,
            max_segments_per_chunk: 259,
        }
    }
}

/// The three chunk lists of an RDMA_MSG or RDMA_NOMSG.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkLists {
    /// What the Responder pulls before it executes the Call. Empty in a Reply.
    pub read: ReadList,
    /// Where eligible results go.
    pub write: WriteList,
    /// Where a Reply goes that does not fit inline.
    pub reply: Option<WriteChunk>,
}

impl ChunkLists {
    /// Whether there is no list at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read.is_empty() && self.write.is_empty() && self.reply.is_none()
    }

    /// Bytes that the lists take in a header; 12 if there are none.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let reply = self.reply.as_ref().map_or(0, WriteChunk::encoded_len);
        self.read.encoded_len() + self.write.encoded_len() + 4 + reply
    }

    /// The handles in all lists, in the order of the header. A handle may occur more than once.
    pub fn handles(&self) -> impl Iterator<Item = u32> + '_ {
        let read = self.read.iter().map(|s| s.segment.handle);
        let write = self.write.iter().chain(&self.reply).flat_map(|c| c.iter().map(|s| s.handle));
        read.chain(write)
    }

    /// The lists as a Reply returns them when nothing was written: no Read list, every length 0.
    #[must_use]
    pub fn unused(&self) -> Self {
        Self {
            read: ReadList::new(),
            write: self.write.unused(),
            reply: self.reply.as_ref().map(WriteChunk::unused),
        }
    }
}

/// What a transport error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RdmaError {
    /// ERR_VERS: the Responder does not speak the Call's version.
    Vers {
        /// Lowest version that it speaks.
        low: u32,
        /// Highest version that it speaks.
        high: u32,
    },
    /// ERR_CHUNK: the header did not parse, or the Reply has no room.
    Chunk,
}

impl fmt::Display for RdmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Vers { low, high } => write!(f, "ERR_VERS: the peer speaks versions {low} to {high}"),
            Self::Chunk => f.write_str("ERR_CHUNK: the peer could not use the chunks of the Call"),
        }
    }
}

/// What follows the fixed words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// RDMA_MSG: the RPC message, reduced or not, follows in the same Send.
    Msg(ChunkLists),
    /// RDMA_NOMSG: the RPC message is in the Position Zero Read chunk (Call) or the Reply chunk (Reply).
    Nomsg(ChunkLists),
    /// RDMA_ERROR: takes the place of a Reply.
    Error(RdmaError),
}

impl Body {
    /// The chunk lists, which an error does not have.
    #[must_use]
    pub fn lists(&self) -> Option<&ChunkLists> {
        match self {
            Self::Msg(lists) | Self::Nomsg(lists) => Some(lists),
            Self::Error(_) => None,
        }
    }

    /// The value of `rdma_proc`.
    #[must_use]
    pub fn proc(&self) -> Proc {
        match self {
            Self::Msg(_) => Proc::MSG,
            Self::Nomsg(_) => Proc::NOMSG,
            Self::Error(_) => Proc::ERROR,
        }
    }
}

/// A whole transport header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// XID of the transaction, the same as in the RPC message.
    pub xid: Xid,
    /// Version of the protocol. [`VERSION`], except in an ERR_VERS, which repeats the version it refuses.
    pub vers: u32,
    /// Credits asked for (Call) or granted (Reply, error).
    pub credit: Credits,
    /// The rest.
    pub body: Body,
}

/// Where the Responder put a Reply, as the returned lists tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Bytes written to each Write chunk, in the order offered.
    pub write: SmallVec<[u64; 2]>,
    /// Bytes of the RPC message in the Reply chunk: `Some` for an RDMA_NOMSG, `None` if the message is inline.
    pub reply: Option<u64>,
}

/// A header that does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderError {
    /// XID, if the fixed words are there.
    pub xid: Option<Xid>,
    /// Version of the message; [`VERSION`] if the fixed words are not there.
    pub vers: u32,
    /// Type of the message; [`Proc::MSG`] if the fixed words are not there.
    pub proc: Proc,
    /// What is wrong.
    pub fault: HeaderFault,
}

/// What a receiver has to do about a message whose header does not parse. Whatever it is, the Receive that the
/// message took is posted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: count it and go on.
    Drop,
    /// Send RDMA_ERROR with ERR_VERS, version range 1 to 1.
    ErrVers {
        /// XID of the message.
        xid: Xid,
        /// Version of the message, to be repeated in the answer.
        vers: u32,
    },
    /// Send RDMA_ERROR with ERR_CHUNK.
    ErrChunk {
        /// XID of the message.
        xid: Xid,
    },
}

impl Answer {
    /// The header to send, carrying `credit` as the grant, or `None` for [`Answer::Drop`].
    #[must_use]
    pub fn header(self, credit: Credits) -> Option<Header> {
        match self {
            Self::Drop => None,
            Self::ErrVers { xid, vers } => Some(Header::error_vers(xid, vers, credit)),
            Self::ErrChunk { xid } => Some(Header::error_chunk(xid, credit)),
        }
    }
}

impl HeaderError {
    /// What the receiver of the message has to do: a Requester never answers, a Responder answers what it can
    /// attribute to a Call (RFC 8166 section 4.5).
    #[must_use]
    pub fn answer(&self, role: Role) -> Answer {
        let Some(xid) = self.xid else { return Answer::Drop };
        match (role, self.fault) {
            (Role::Requester, _) => Answer::Drop,
            // An error about an error could go back and forth forever.
            (Role::Responder, _) if self.proc == Proc::ERROR => Answer::Drop,
            (Role::Responder, HeaderFault::Short { .. } | HeaderFault::Done) => Answer::Drop,
            (Role::Responder, HeaderFault::Version(vers)) => Answer::ErrVers { xid, vers },
            (Role::Responder, _) => Answer::ErrChunk { xid },
        }
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.xid {
            Some(xid) => write!(f, "bad transport header (XID {xid}): {}", self.fault),
            None => write!(f, "bad transport header: {}", self.fault),
        }
    }
}

impl core::error::Error for HeaderError {}

impl Header {
    /// A header of version 1.
    #[must_use]
    pub fn new(xid: Xid, credit: Credits, body: Body) -> Self {
        Self { xid, vers: VERSION, credit, body }
    }

    /// The RDMA_ERROR that refuses version `vers`.
    #[must_use]
    pub fn error_vers(xid: Xid, vers: u32, credit: Credits) -> Self {
        Self { xid, vers, credit, body: Body::Error(RdmaError::Vers { low: VERSION, high: VERSION }) }
    }

    /// The RDMA_ERROR that says that the chunks of a Call cannot be used.
    #[must_use]
    pub fn error_chunk(xid: Xid, credit: Credits) -> Self {
        Self::new(xid, credit, Body::Error(RdmaError::Chunk))
    }

    /// Bytes that the header takes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED
            + match &self.body {
                Body::Msg(lists) | Body::Nomsg(lists) => lists.encoded_len(),
                Body::Error(RdmaError::Chunk) => 4,
                Body::Error(RdmaError::Vers { .. }) => 12,
            }
    }

    /// Writes the header to the front of `out` and returns its length, or `None` if `out` is too short.
    #[must_use]
    pub fn encode_into(&self, out: &mut [u8]) -> Option<usize> {
        let len = self.encoded_len();
        let mut words = out.get_mut(..len)?.chunks_exact_mut(4);
        self.words(&mut |w| {
            if let Some(at) = words.next() {
                at.copy_from_slice(&w.to_be_bytes());
            }
        });
        Some(len)
    }

    /// Every word of the header, in order.
    fn words(&self, put: &mut impl FnMut(u32)) {
        put(self.xid.0);
        put(self.vers);
        put(self.credit.0);
        put(self.body.proc().0);
        let lists = match &self.body {
            Body::Msg(lists) | Body::Nomsg(lists) => lists,
            Body::Error(RdmaError::Vers { low, high }) => {
                put(ERR_VERS);
                put(*low);
                return put(*high);
            }
            Body::Error(RdmaError::Chunk) => return put(ERR_CHUNK),
        };
        for item in &lists.read {
            put(1);
            put(item.position);
            segment(&item.segment, put);
        }
        put(0);
        for chunk in &lists.write {
            put(1);
            write_chunk(chunk, put);
        }
        put(0);
        match &lists.reply {
            Some(chunk) => {
                put(1);
                write_chunk(chunk, put);
            }
            None => put(0),
        }
    }

    /// Reads a header from the front of `message`; also returns its length, which is where the RPC message begins.
    ///
    /// # Errors
    /// [`HeaderError`]; its `answer` says what to do.
    pub fn decode(message: &[u8], limits: &Limits) -> Result<(Self, usize), HeaderError> {
        let short = HeaderError {
            xid: None,
            vers: VERSION,
            proc: Proc::MSG,
            fault: HeaderFault::Short { have: message.len() },
        };
        let mut c = Cursor { buf: message, at: 0 };
        let (Ok(xid), Ok(vers), Ok(credit), Ok(proc)) = (c.word(), c.word(), c.word(), c.word()) else {
            return Err(short);
        };
        let (xid, credit, proc) = (Xid(xid), Credits(credit), Proc(proc));
        let error = |fault| HeaderError { xid: Some(xid), vers, proc, fault };
        let body = match proc {
            Proc::ERROR => Self::decode_error(&mut c, vers).map(Body::Error),
            Proc::DONE if vers == VERSION => Err(HeaderFault::Done),
            _ if message.len() < MIN_HEADER => return Err(short),
            _ if vers != VERSION => Err(HeaderFault::Version(vers)),
            Proc::MSG => c.lists(limits).map(Body::Msg),
            Proc::NOMSG => match c.lists(limits) {
                Ok(lists) if lists.is_empty() => Err(HeaderFault::NoLists),
                lists => lists.map(Body::Nomsg),
            },
            Proc::MSGP => Err(HeaderFault::Msgp),
            _ => Err(HeaderFault::UnknownProc(proc)),
        }
        .map_err(error)?;
        Ok((Self { xid, vers, credit, body }, c.at))
    }

    fn decode_error(c: &mut Cursor<'_>, vers: u32) -> Result<RdmaError, HeaderFault> {
        match c.word()? {
            ERR_VERS => Ok(RdmaError::Vers { low: c.word()?, high: c.word()? }),
            _ if vers != VERSION => Err(HeaderFault::Version(vers)),
            ERR_CHUNK => Ok(RdmaError::Chunk),
            code => Err(HeaderFault::UnknownError(code)),
        }
    }

    /// Reads a header and, in an RDMA_MSG, the RPC message behind it, which has to have the header's XID. For other
    /// types the second value is whatever follows the header, normally nothing.
    ///
    /// # Errors
    /// [`HeaderError`]; its `answer` says what to do.
    pub fn open<'a>(message: &'a [u8], limits: &Limits) -> Result<(Self, &'a [u8]), HeaderError> {
        let (header, at) = Self::decode(message, limits)?;
        let payload = message.get(at..).unwrap_or_default();
        if matches!(header.body, Body::Msg(_)) {
            header.check_xid(payload)?;
        }
        Ok((header, payload))
    }

    /// Checks that an RPC message (inline, or fetched from a Position Zero Read chunk) has the header's XID.
    ///
    /// # Errors
    /// [`HeaderFault::NoPayload`] and [`HeaderFault::XidMismatch`].
    pub fn check_xid(&self, payload: &[u8]) -> Result<(), HeaderError> {
        let fault = match payload.first_chunk() {
            None => HeaderFault::NoPayload { have: payload.len() },
            Some(word) => {
                let message = Xid(u32::from_be_bytes(*word));
                if message == self.xid {
                    return Ok(());
                }
                HeaderFault::XidMismatch { header: self.xid, message }
            }
        };
        Err(self.error(fault))
    }

    /// The Read chunks of a Call, for the Responder: an RDMA_NOMSG has its message in the Position Zero Read chunk,
    /// an RDMA_MSG has none.
    ///
    /// # Errors
    /// [`HeaderFault::OverlappingPositions`], [`HeaderFault::NoPositionZero`], [`HeaderFault::PositionZeroInMsg`].
    pub fn read_chunks(&self) -> Result<ReadChunks, HeaderError> {
        let Some(lists) = self.body.lists() else { return Ok(ReadChunks::default()) };
        let chunks = lists.read.chunks().map_err(|fault| self.error(fault))?;
        match (&self.body, &chunks.call) {
            (Body::Nomsg(_), None) => Err(self.error(HeaderFault::NoPositionZero)),
            (Body::Msg(_), Some(_)) => Err(self.error(HeaderFault::PositionZeroInMsg)),
            _ => Ok(chunks),
        }
    }

    fn error(&self, fault: HeaderFault) -> HeaderError {
        HeaderError { xid: Some(self.xid), vers: self.vers, proc: self.body.proc(), fault }
    }

    /// Checks a Reply's lists against the `offered` ones of its Call, for the Requester, and says what was written
    /// where. A Reply chunk may be used however short the Reply is. For an RDMA_ERROR nothing was placed.
    ///
    /// # Errors
    /// The rule that the Responder broke. The Call fails for good.
    pub fn placed(&self, offered: &ChunkLists) -> Result<Placed, PeerMisbehaved> {
        let (returned, long) = match &self.body {
            Body::Msg(lists) => (lists, false),
            Body::Nomsg(lists) => (lists, true),
            Body::Error(_) => return Ok(Placed::default()),
        };
        if !returned.read.is_empty() {
            return Err(PeerMisbehaved::ReplyHasReadList { segments: returned.read.len() });
        }
        if offered.write.len() != returned.write.len() {
            return Err(PeerMisbehaved::WriteChunkCount {
                offered: offered.write.len(),
                returned: returned.write.len(),
            });
        }
        let write = offered
            .write
            .iter()
            .zip(&returned.write)
            .map(|(ours, theirs)| ours.written(theirs))
            .collect::<Result<_, _>>()?;
        let reply = match (&offered.reply, &returned.reply) {
            (Some(ours), Some(theirs)) => ours.written(theirs)?,
            (None, None) => 0,
            (None, Some(_)) => return Err(PeerMisbehaved::ReplyChunkNotOffered),
            (Some(_), None) => return Err(PeerMisbehaved::ReplyChunkNotReturned),
        };
        match (long, reply) {
            (true, 0) => Err(PeerMisbehaved::LongReplyEmpty),
            (true, bytes) => Ok(Placed { write, reply: Some(bytes) }),
            (false, 0) => Ok(Placed { write, reply: None }),
            (false, bytes) => Err(PeerMisbehaved::ReplyChunkInMsg { bytes }),
        }
    }
}

impl Encode for Header {
    fn encode(&self, w: &mut Writer) {
        self.words(&mut |word| w.u32(word));
    }
}

fn segment(s: &Segment, put: &mut impl FnMut(u32)) {
    put(s.handle);
    put(s.length);
    put((s.offset >> 32) as u32);
    put(s.offset as u32);
}

fn write_chunk(chunk: &WriteChunk, put: &mut impl FnMut(u32)) {
    put(chunk.len() as u32);
    for s in chunk {
        segment(s, put);
    }
}

/// Reads words and remembers where it stands, for the fault that it may report.
struct Cursor<'a> {
    buf: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn need(&self, need: usize) -> Result<(), HeaderFault> {
        let have = self.buf.len() - self.at;
        if have < need { Err(HeaderFault::Truncated { at: self.at, need, have }) } else { Ok(()) }
    }

    fn word(&mut self) -> Result<u32, HeaderFault> {
        self.need(4)?;
        let word = self.buf[self.at..].first_chunk().copied().unwrap_or_default();
        self.at += 4;
        Ok(u32::from_be_bytes(word))
    }

    fn flag(&mut self) -> Result<bool, HeaderFault> {
        let at = self.at;
        match self.word()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(HeaderFault::NotBool { at, value }),
        }
    }

    fn segment(&mut self) -> Result<Segment, HeaderFault> {
        self.need(Segment::ENCODED)?;
        let (handle, length) = (self.word()?, self.word()?);
        let offset = u64::from(self.word()?) << 32 | u64::from(self.word()?);
        if offset.checked_add(u64::from(length)).is_none() {
            return Err(HeaderFault::SegmentWraps { offset, length });
        }
        Ok(Segment { handle, length, offset })
    }

    fn chunk(&mut self, limits: &Limits) -> Result<WriteChunk, HeaderFault> {
        let count = self.word()?;
        let max = limits.max_segments_per_chunk;
        let n = usize::try_from(count)
            .ok()
            .filter(|n| *n <= max)
            .ok_or(HeaderFault::TooManySegments { count, max })?;
        self.need(n.saturating_mul(Segment::ENCODED))?;
        let mut chunk = WriteChunk::new();
        for _ in 0..n {
            chunk.push(self.segment()?);
        }
        Ok(chunk)
    }

    fn lists(&mut self, limits: &Limits) -> Result<ChunkLists, HeaderFault> {
        let mut lists = ChunkLists::default();
        let mut bytes = 0u64;
        while self.flag()? {
            if lists.read.len() >= limits.max_read_segments {
                return Err(HeaderFault::TooManyReadSegments { max: limits.max_read_segments });
            }
            self.need(ReadSegment::ENCODED - 4)?;
            let position = self.word()?;
            if !position.is_multiple_of(4) {
                return Err(HeaderFault::UnalignedPosition { position });
            }
            let segment = self.segment()?;
            bytes = bytes.saturating_add(u64::from(segment.length));
            if bytes > limits.max_read_bytes {
                return Err(HeaderFault::TooManyReadBytes { bytes, max: limits.max_read_bytes });
            }
            lists.read.push(ReadSegment { position, segment });
        }
        while self.flag()? {
            if lists.write.len() >= limits.max_write_chunks {
                return Err(HeaderFault::TooManyWriteChunks { max: limits.max_write_chunks });
            }
            lists.write.push(self.chunk(limits)?);
        }
        if self.flag()? {
            lists.reply = Some(self.chunk(limits)?);
        }
        Ok(lists)
    }
}
