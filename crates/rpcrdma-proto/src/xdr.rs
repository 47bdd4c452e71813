//! External Data Representation (RFC 4506), as far as ONC RPC and NFS need it.
//!
//! # Operation
//! [`Reader`] walks a received message in place; what it yields borrows from the message. [`Writer`] appends to a
//! byte vector that its owner keeps between messages, so that encoding does not allocate once the vector has
//! grown to its working size.
//!
//! Both know about *chunks*: data items that RPC-over-RDMA moved out of the message (RFC 8166 section 3.4.4). A
//! Reader splices them back at their position; a Writer leaves a [`Hole`] where one belongs. An upper layer says
//! "this item may be a chunk" by calling [`Reader::chunkable`] or [`Writer::chunkable`] and need not care how the
//! message travelled.
//!
//! # Limits
//! Every variable-length item is read with the maximum that its protocol gives it, checked before anything is
//! allocated. Pad bytes are not inspected (RFC 4506 asks senders to zero them; receivers need not care).

use alloc::vec::Vec;
use core::fmt;

/// Why a message does not decode.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdrError {
    /// The message ends inside an item: `need` bytes more were expected, `have` are left.
    Short {
        /// Bytes that the item still needs.
        need: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// A variable-length item is longer than its protocol allows.
    TooLong {
        /// The length on the wire.
        len: u32,
        /// The most that is allowed.
        max: usize,
    },
    /// A boolean that is neither 0 nor 1.
    NotBool(u32),
    /// A discriminant or enumeration value that has no meaning here.
    BadEnum(u32),
    /// Text that has to be UTF-8 and is not.
    NotUtf8,
    /// An item of length 0 where something has to be, such as a file handle.
    Empty,
    /// A count and the length of the item it counts differ.
    CountMismatch {
        /// The count.
        count: u32,
        /// The length of the item.
        len: usize,
    },
    /// A chunk is neither as long as its item nor as long as the padded item (RFC 8166 section 3.4.5).
    ChunkLength {
        /// Length of the item as its inline count says.
        item: u32,
        /// Length of the chunk.
        chunk: usize,
    },
    /// A chunk stands at a position where the protocol has no item that may be a chunk.
    StrayChunk {
        /// Its position in the unreduced message.
        position: u32,
    },
}

impl fmt::Display for XdrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Short { need, have } => {
                write!(f, "the message ends early: {need} bytes wanted, {have} left")
            }
            Self::TooLong { len, max } => {
                write!(f, "an item of {len} bytes or elements where {max} is the most")
            }
            Self::NotBool(v) => write!(f, "{v:#x} where a boolean belongs"),
            Self::BadEnum(v) => write!(f, "unknown discriminant {v:#x}"),
            Self::NotUtf8 => f.write_str("text that is not UTF-8"),
            Self::Empty => f.write_str("an empty item where something has to be"),
            Self::CountMismatch { count, len } => {
                write!(f, "a count of {count} beside an item of {len} bytes")
            }
            Self::ChunkLength { item, chunk } => {
                write!(f, "a chunk of {chunk} bytes for an item of {item} bytes")
            }
            Self::StrayChunk { position } => write!(f, "a chunk at position {position}, where none may be"),
        }
    }
}

impl core::error::Error for XdrError {}

/// Bytes of XDR padding that follow an item of `len` bytes: 0 to 3.
#[must_use]
pub const fn pad(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// `len` rounded up to a multiple of 4.
///
/// # Panics
/// In debug builds, if `len` is within 3 of `usize::MAX`.
#[must_use]
pub const fn padded(len: usize) -> usize {
    len + pad(len)
}

/// A value that can be written as XDR.
pub trait Encode {
    /// Appends the value.
    fn encode(&self, w: &mut Writer);
}

/// A value that can be read from XDR, possibly borrowing from the message.
pub trait Decode<'a>: Sized {
    /// Reads the value.
    ///
    /// # Errors
    /// If the bytes are not such a value.
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError>;
}

/// Data that RPC-over-RDMA moved out of a message, to be spliced back by a [`Reader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Offset of the removed bytes in the unreduced message, counted from its XID.
    pub position: u32,
    /// The bytes, with or without the XDR pad.
    pub data: &'a [u8],
}

/// Reads XDR from a received message.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    buf: &'a [u8],
    at: usize,
    /// Chunks not yet spliced, in order of position.
    chunks: &'a [Chunk<'a>],
    /// Bytes that the chunks spliced so far took out of the stream, so `at + removed` is the unreduced offset.
    removed: usize,
}

impl<'a> Reader<'a> {
    /// A reader over a message that travelled whole.
    #[must_use]
    pub fn new(buf: &'a [u8]) -> Self {
        Self::with_chunks(buf, &[])
    }

    /// A reader over a reduced message and its chunks, which are sorted by position.
    #[must_use]
    pub fn with_chunks(buf: &'a [u8], chunks: &'a [Chunk<'a>]) -> Self {
        Self { buf, at: 0, chunks, removed: 0 }
    }

    /// Bytes left inline.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.buf.len() - self.at
    }

    /// Bytes consumed inline.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// The inline bytes that are left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.buf.get(self.at..).unwrap_or_default()
    }

    /// Takes `n` bytes, without padding.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], XdrError> {
        let have = self.remaining();
        let end = self.at.checked_add(n).ok_or(XdrError::Short { need: n, have })?;
        let out = self.buf.get(self.at..end).ok_or(XdrError::Short { need: n, have })?;
        self.at = end;
        Ok(out)
    }

    /// A fixed-length opaque of `N` bytes and its pad.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        self.bytes(pad(N))?;
        Ok(out)
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        Ok(u32::from_be_bytes(self.fixed()?))
    }

    /// An unsigned hyper.
    ///
    /// # Errors
    /// [`XdrError::Short`].
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        Ok(u64::from_be_bytes(self.fixed()?))
    }

    /// A boolean: exactly 0 or 1.
    ///
    /// # Errors
    /// [`XdrError::NotBool`] for any other word.
    pub fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            v => Err(XdrError::NotBool(v)),
        }
    }

    /// A length or count word, at most `max`.
    ///
    /// # Errors
    /// [`XdrError::TooLong`].
    pub fn count(&mut self, max: usize) -> Result<usize, XdrError> {
        let len = self.u32()?;
        match usize::try_from(len) {
            Ok(n) if n <= max => Ok(n),
            _ => Err(XdrError::TooLong { len, max }),
        }
    }

    /// A variable-length opaque of at most `max` bytes.
    ///
    /// # Errors
    /// If it is longer, or the message ends inside it.
    pub fn opaque(&mut self, max: usize) -> Result<&'a [u8], XdrError> {
        let len = self.count(max)?;
        let out = self.bytes(len)?;
        self.bytes(pad(len))?;
        Ok(out)
    }

    /// A string of at most `max` bytes that has to be UTF-8. NFS names are *not* such strings: read them with
    /// [`Reader::opaque`].
    ///
    /// # Errors
    /// As [`Reader::opaque`], and [`XdrError::NotUtf8`].
    pub fn string(&mut self, max: usize) -> Result<&'a str, XdrError> {
        core::str::from_utf8(self.opaque(max)?).map_err(|_| XdrError::NotUtf8)
    }

    /// Optional data: a boolean, then the value if it is true.
    ///
    /// # Errors
    /// Those of the boolean and of `read`.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, XdrError>,
    ) -> Result<Option<T>, XdrError> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// A variable-length opaque that its protocol allows to be a chunk: inline, or spliced from the chunk that
    /// stands at this position. The chunk is as long as the item, or as the item and its pad (RFC 8166 section
    /// 3.4.5); nothing else passes.
    ///
    /// # Errors
    /// As [`Reader::opaque`], and [`XdrError::ChunkLength`].
    pub fn chunkable(&mut self, max: usize) -> Result<&'a [u8], XdrError> {
        let len = self.u32()?;
        let n = usize::try_from(len).ok().filter(|n| *n <= max).ok_or(XdrError::TooLong { len, max })?;
        if let Some((chunk, rest)) = self.chunks.split_first()
            && usize::try_from(chunk.position).is_ok_and(|p| p == self.at + self.removed)
        {
            if chunk.data.len() != n && chunk.data.len() != padded(n) {
                return Err(XdrError::ChunkLength { item: len, chunk: chunk.data.len() });
            }
            self.chunks = rest;
            self.removed += padded(n);
            return Ok(&chunk.data[..n]);
        }
        let out = self.bytes(n)?;
        self.bytes(pad(n))?;
        Ok(out)
    }

    /// Ends the decoding of a message: every chunk must have found its item. Trailing inline bytes are tolerated,
    /// as Linux does.
    ///
    /// # Errors
    /// [`XdrError::StrayChunk`].
    pub fn finish(self) -> Result<(), XdrError> {
        match self.chunks.first() {
            Some(c) => Err(XdrError::StrayChunk { position: c.position }),
            None => Ok(()),
        }
    }
}

/// A place in a written message where a chunkable item belongs whose bytes the writer was not given.
///
/// Its length word is already in the message. Whoever sends the message either moves the item as a chunk or puts
/// the bytes and their pad in at `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Inline offset, in the reduced message, at which the bytes are missing. For the first hole this is also the
    /// position in the unreduced message.
    pub at: usize,
    /// Length of the missing item in bytes, without pad.
    pub len: usize,
}

/// Appends XDR to a byte vector.
#[derive(Debug, Default)]
pub struct Writer {
    buf: Vec<u8>,
    hole: Option<Hole>,
}

impl Writer {
    /// A writer that clears `buf` and fills it; its capacity is kept.
    #[must_use]
    pub fn reuse(mut buf: Vec<u8>) -> Self {
        buf.clear();
        Self { buf, hole: None }
    }

    /// A writer over a new vector.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// What has been written.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.buf
    }

    /// The place of the chunkable item whose bytes are kept outside, if there is one.
    #[must_use]
    pub fn hole(&self) -> Option<Hole> {
        self.hole
    }

    /// The bytes, and the hole if there is one.
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, Option<Hole>) {
        (self.buf, self.hole)
    }

    /// Forgets everything after the first `len` bytes, a hole among it too.
    pub fn truncate(&mut self, len: usize) {
        self.buf.truncate(len);
        self.hole = self.hole.filter(|h| h.at < len);
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, v: &[u8]) {
        self.buf.extend_from_slice(v);
    }

    /// An unsigned integer.
    pub fn u32(&mut self, v: u32) {
        self.bytes(&v.to_be_bytes());
    }

    /// Overwrites the word at offset `at`, which has been written before.
    ///
    /// # Panics
    /// If `at + 4` is beyond what has been written: a mistake of the caller, never of a peer.
    pub fn set_u32(&mut self, at: usize, v: u32) {
        self.buf[at..at + 4].copy_from_slice(&v.to_be_bytes());
    }

    /// An unsigned hyper.
    pub fn u64(&mut self, v: u64) {
        self.bytes(&v.to_be_bytes());
    }

    /// A boolean.
    pub fn bool(&mut self, v: bool) {
        self.u32(u32::from(v));
    }

    /// A fixed-length opaque and its pad.
    pub fn fixed(&mut self, v: &[u8]) {
        self.bytes(v);
        self.bytes(&[0; 3][..pad(v.len())]);
    }

    /// A variable-length opaque: length, bytes, pad.
    pub fn opaque(&mut self, v: &[u8]) {
        self.u32(v.len() as u32);
        self.fixed(v);
    }

    /// Optional data.
    pub fn option<T>(&mut self, v: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(v.is_some());
        if let Some(v) = v {
            write(self, v);
        }
    }

    /// A chunkable item of `len` bytes whose bytes stay outside: writes the length word and leaves a [`Hole`].
    /// A message holds at most one; NFSv3 has no procedure with more.
    ///
    /// # Panics
    /// If the message has a hole already.
    pub fn chunkable(&mut self, len: u32) {
        assert!(self.hole.is_none(), "a message has one chunkable item outside at most");
        self.u32(len);
        self.hole = Some(Hole { at: self.buf.len(), len: len as usize });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn integers_and_opaques_round_trip() {
        let mut w = Writer::new();
        w.u32(7);
        w.u64(u64::MAX - 1);
        w.bool(true);
        w.opaque(b"hello");
        w.fixed(&[1, 2, 3, 4, 5, 6, 7, 8]);
        w.option(Some(9u32), Writer::u32);
        w.option(None::<u32>, Writer::u32);
        assert_eq!(w.len() % 4, 0);
        let mut r = Reader::new(w.as_slice());
        assert_eq!(r.u32(), Ok(7));
        assert_eq!(r.u64(), Ok(u64::MAX - 1));
        assert_eq!(r.bool(), Ok(true));
        assert_eq!(r.opaque(5), Ok(&b"hello"[..]));
        assert_eq!(r.fixed::<8>(), Ok([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(r.option(Reader::u32), Ok(Some(9)));
        assert_eq!(r.option(Reader::u32), Ok(None));
        assert_eq!(r.remaining(), 0);
    }

    #[test]
    fn lengths_are_checked_before_use() {
        let mut r = Reader::new(&[0xff, 0xff, 0xff, 0xff]);
        assert_eq!(r.opaque(400), Err(XdrError::TooLong { len: u32::MAX, max: 400 }));
        let mut r = Reader::new(&[0, 0, 0, 5, b'h', b'e']);
        assert_eq!(r.opaque(400), Err(XdrError::Short { need: 5, have: 2 }));
        assert_eq!(Reader::new(&[0, 0, 0, 2]).bool(), Err(XdrError::NotBool(2)));
    }

    #[test]
    fn a_chunk_is_spliced_at_its_position_with_or_without_its_pad() {
        let mut w = Writer::new();
        w.u32(1);
        w.chunkable(5);
        w.u32(2);
        let hole = w.hole().unwrap();
        assert_eq!(hole, Hole { at: 8, len: 5 });
        for data in [&b"hello"[..], &b"hello\0\0\0"[..]] {
            let chunks = [Chunk { position: 8, data }];
            let mut r = Reader::with_chunks(w.as_slice(), &chunks);
            assert_eq!(r.u32(), Ok(1));
            assert_eq!(r.chunkable(100), Ok(&b"hello"[..]));
            assert_eq!(r.u32(), Ok(2));
            assert_eq!(r.finish(), Ok(()));
        }
        let chunks = [Chunk { position: 8, data: b"hello\0" }];
        let mut r = Reader::with_chunks(w.as_slice(), &chunks);
        r.u32().unwrap();
        assert_eq!(r.chunkable(100), Err(XdrError::ChunkLength { item: 5, chunk: 6 }));
    }

    #[test]
    fn a_second_chunk_counts_from_the_unreduced_message() {
        let mut inline = vec![0, 0, 0, 5];
        inline.extend([0, 0, 0, 2]);
        let chunks = [Chunk { position: 4, data: b"hello" }, Chunk { position: 16, data: b"ab" }];
        let mut r = Reader::with_chunks(&inline, &chunks);
        assert_eq!(r.chunkable(9), Ok(&b"hello"[..]));
        assert_eq!(r.chunkable(9), Ok(&b"ab"[..]));
        assert_eq!(r.finish(), Ok(()));
    }

    #[test]
    fn a_chunk_nobody_asked_for_is_an_error() {
        let chunks = [Chunk { position: 4, data: b"x" }];
        let mut r = Reader::with_chunks(&[0; 8], &chunks);
        r.u64().unwrap();
        assert_eq!(r.finish(), Err(XdrError::StrayChunk { position: 4 }));
    }
}
