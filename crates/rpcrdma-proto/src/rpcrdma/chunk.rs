//! Segments, chunks and chunk lists (RFC 8166 section 3.4).
//!
//! # Operation
//! A *segment* names memory that the Requester has exposed on this connection. Segments with equal position make a
//! *Read chunk*, which the Responder pulls; a counted array of segments makes a *Write chunk*, which the Responder
//! fills. The Responder returns each Write chunk as it came, with only the lengths changed to what it wrote
//! ([`WriteChunk::returned`]), and the Requester checks just that ([`WriteChunk::written`]).
//!
//! # Limits
//! Two segments or chunks fit without allocation, which covers what peers send in practice. All sums are in 64 bits;
//! with 32-bit lengths and counts they cannot overflow.

use core::ops::Deref;

use smallvec::SmallVec;

use super::{ChunkTooSmall, HeaderFault, PeerMisbehaved};

/// Memory of the Requester: `length` bytes at `offset` of what the STag `handle` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Segment {
    /// STag or rkey.
    pub handle: u32,
    /// Length in bytes; in a Reply, the bytes that were written.
    pub length: u32,
    /// Tagged offset or address of the first byte.
    pub offset: u64,
}

impl Segment {
    /// Bytes that a segment takes in a header.
    pub const ENCODED: usize = 16;
}

/// One item of a Read list: a segment, and where in the message its bytes belong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReadSegment {
    /// Offset in the unreduced RPC message, counted from its XID; a multiple of 4. 0 is the message itself.
    pub position: u32,
    /// The memory.
    pub segment: Segment,
}

impl ReadSegment {
    /// Bytes that an item takes in a Read list, with the flag that announces it.
    pub const ENCODED: usize = 24;
}

/// The Read list: flat, in the order of the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadList(SmallVec<[ReadSegment; 2]>);

/// A Write chunk or a Reply chunk: the segments that one item, or one whole Reply, is written to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteChunk(SmallVec<[Segment; 2]>);

/// The Write list: one chunk per eligible result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteList(SmallVec<[WriteChunk; 2]>);

macro_rules! list {
    ($list:ident, $item:ty) => {
        impl $list {
            /// An empty one.
            #[must_use]
            pub fn new() -> Self {
                Self(SmallVec::new())
            }

            /// Appends an item.
            pub fn push(&mut self, item: $item) {
                self.0.push(item);
            }

            /// Removes all items; memory that was allocated is kept.
            pub fn clear(&mut self) {
                self.0.clear();
            }
        }

        impl Deref for $list {
            type Target = [$item];
            fn deref(&self) -> &[$item] {
                &self.0
            }
        }

        impl FromIterator<$item> for $list {
            fn from_iter<I: IntoIterator<Item = $item>>(items: I) -> Self {
                Self(items.into_iter().collect())
            }
        }

        impl Extend<$item> for $list {
            fn extend<I: IntoIterator<Item = $item>>(&mut self, items: I) {
                self.0.extend(items);
            }
        }

        impl<'a> IntoIterator for &'a $list {
            type Item = &'a $item;
            type IntoIter = core::slice::Iter<'a, $item>;
            fn into_iter(self) -> Self::IntoIter {
                self.0.iter()
            }
        }
    };
}

list!(ReadList, ReadSegment);
list!(WriteChunk, Segment);
list!(WriteList, WriteChunk);

/// The segments of a Read list that have one position, in list order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadChunk {
    /// Offset in the unreduced RPC message.
    pub position: u32,
    /// Where its bytes are, in order.
    pub segments: SmallVec<[Segment; 2]>,
    /// Sum of the segments' lengths in bytes.
    pub length: u64,
}

/// A Read list sorted into chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadChunks {
    /// The Position Zero Read chunk: the RPC message itself, reduced by `items` if there are any.
    pub call: Option<ReadChunk>,
    /// All others, by ascending position.
    pub items: SmallVec<[ReadChunk; 1]>,
}

impl ReadChunks {
    /// Bytes in all chunks.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.call.iter().chain(&self.items).map(|c| c.length).sum()
    }
}

impl ReadList {
    /// Bytes that the list takes in a header, with the flag that ends it.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        4 + self.len() * ReadSegment::ENCODED
    }

    /// Appends the segments of one Read chunk.
    pub fn push_chunk(&mut self, position: u32, segments: impl IntoIterator<Item = Segment>) {
        self.extend(segments.into_iter().map(|segment| ReadSegment { position, segment }));
    }

    /// Sorts the segments into chunks. Those of one chunk need not stand next to each other, and chunks need not
    /// stand in order of position, but no two may claim the same bytes of the message.
    ///
    /// # Errors
    /// [`HeaderFault::OverlappingPositions`].
    pub fn chunks(&self) -> Result<ReadChunks, HeaderFault> {
        let mut out = ReadChunks::default();
        for &ReadSegment { position, segment } in self {
            let chunk = if position == 0 {
                out.call.get_or_insert_with(|| ReadChunk::new(0))
            } else {
                let i = match out.items.last() {
                    // Nearly always the list is in order, and the segment belongs to the last chunk or a new one.
                    Some(last) if last.position == position => out.items.len() - 1,
                    Some(last) if last.position > position => {
                        let i = out.items.partition_point(|c| c.position < position);
                        if out.items[i].position != position {
                            out.items.insert(i, ReadChunk::new(position));
                        }
                        i
                    }
                    _ => {
                        out.items.push(ReadChunk::new(position));
                        out.items.len() - 1
                    }
                };
                &mut out.items[i]
            };
            chunk.segments.push(segment);
            chunk.length += u64::from(segment.length);
        }
        for pair in out.items.windows(2) {
            if u64::from(pair[0].position) + pair[0].length > u64::from(pair[1].position) {
                return Err(HeaderFault::OverlappingPositions {
                    first: pair[0].position,
                    second: pair[1].position,
                });
            }
        }
        Ok(out)
    }
}

impl ReadChunk {
    fn new(position: u32) -> Self {
        Self { position, segments: SmallVec::new(), length: 0 }
    }
}

impl WriteChunk {
    /// Bytes that the chunk takes in a header: its count and its segments, without a flag.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        4 + self.len() * Segment::ENCODED
    }

    /// Sum of the segments' lengths in bytes: what the chunk holds in a Call, what was written in a Reply.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.iter().map(|s| u64::from(s.length)).sum()
    }

    /// The segments and lengths to write, for an item of `bytes` bytes: filled in order, the last one as far as
    /// needed, segments that get nothing left out.
    ///
    /// # Errors
    /// If the chunk is too small.
    pub fn fill(&self, bytes: u64) -> Result<impl Iterator<Item = Segment> + '_, ChunkTooSmall> {
        let room = self.length();
        if bytes > room {
            return Err(ChunkTooSmall { need: bytes, room });
        }
        Ok(self.lengths(bytes).filter(|s| s.length > 0))
    }

    /// The chunk as the Responder returns it after writing `bytes` bytes: same count, same memory, only the lengths
    /// filled in from the front (RFC 8166 section 4.3.2). With 0 bytes it is an unused chunk.
    ///
    /// # Errors
    /// If the chunk is too small.
    pub fn returned(&self, bytes: u64) -> Result<Self, ChunkTooSmall> {
        let room = self.length();
        if bytes > room {
            return Err(ChunkTooSmall { need: bytes, room });
        }
        Ok(self.lengths(bytes).collect())
    }

    /// The chunk as the Responder returns it when it wrote nothing.
    #[must_use]
    pub fn unused(&self) -> Self {
        self.lengths(0).collect()
    }

    fn lengths(&self, bytes: u64) -> impl Iterator<Item = Segment> + '_ {
        self.iter().scan(bytes, |left, s| {
            let length = u64::from(s.length).min(*left) as u32;
            *left -= u64::from(length);
            Some(Segment { length, ..*s })
        })
    }

    /// The bytes that a Responder says it wrote to this chunk, given the chunk as it came back.
    ///
    /// # Errors
    /// If anything but the lengths differs, a length grew, or the bytes are not contiguous from the front.
    pub fn written(&self, returned: &Self) -> Result<u64, PeerMisbehaved> {
        if self.len() != returned.len() {
            return Err(PeerMisbehaved::SegmentCount { offered: self.len(), returned: returned.len() });
        }
        let mut total = 0;
        let mut full = true;
        for (index, (ours, theirs)) in self.iter().zip(returned).enumerate() {
            if ours.handle != theirs.handle || ours.offset != theirs.offset {
                return Err(PeerMisbehaved::SegmentChanged { index });
            }
            if theirs.length > ours.length {
                return Err(PeerMisbehaved::SegmentGrew { offered: ours.length, returned: theirs.length });
            }
            if theirs.length > 0 && !full {
                return Err(PeerMisbehaved::SegmentsNotContiguous { index });
            }
            full &= theirs.length == ours.length;
            total += u64::from(theirs.length);
        }
        Ok(total)
    }
}

impl WriteList {
    /// Bytes that the list takes in a header, with its flags.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        4 + self.iter().map(|c| 4 + c.encoded_len()).sum::<usize>()
    }

    /// The list as the Responder returns it when it wrote nothing.
    #[must_use]
    pub fn unused(&self) -> Self {
        self.iter().map(WriteChunk::unused).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_anything_need_no_allocation() {
        let segment = Segment::default();
        let chunk = WriteChunk::from_iter([segment, segment]);
        let list = WriteList::from_iter([chunk.clone(), chunk.clone()]);
        let mut read = ReadList::new();
        read.push_chunk(0, [segment]);
        read.push_chunk(100, [segment]);
        let chunks = read.chunks().unwrap();
        assert!(!chunk.0.spilled() && !list.0.spilled() && !read.0.spilled());
        assert!(!list.unused().0.spilled() && !chunk.returned(0).unwrap().0.spilled());
        assert!(!chunks.items.spilled() && !chunks.items[0].segments.spilled());
    }
}
