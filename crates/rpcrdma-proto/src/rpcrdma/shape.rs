//! How a message travels: inline, with its bulk item as a chunk, or whole in a chunk (RFC 8166 sections 3.5 and 4.3).
//!
//! # Operation
//! Pure decisions over sizes. The Requester asks [`CallShape::choose`] before it registers anything: the answer says
//! which chunks to build, and how large, for the Call and for its Reply. The Responder asks [`ReplyShape::choose`]
//! when it has the results: the answer says what to write where, and holds the lists that the Reply returns.
//!
//! A header grows with the chunks that are chosen, and what is left of the inline threshold shrinks by the same
//! bytes; every comparison here is of the whole Send.
//!
//! # What a Requester does with each answer
//! | Call | inline message | Read list |
//! | --- | --- | --- |
//! | [`CallForm::Short`] | all of it, the item's bytes and pad at its hole | empty |
//! | [`CallForm::Chunked`] | without the item's bytes and pad | the item's bytes, at the hole's position |
//! | [`CallForm::Long`] | none (RDMA_NOMSG) | position 0: the message without the item's bytes and pad; then the item |
//!
//! # When it breaks
//! A Call fails to fit only if its chunk lists alone pass the threshold ([`HeaderTooLong`]). A Reply fails to fit if
//! the Requester offered too little ([`NoRoom`]); the Responder then owes ERR_CHUNK, or an error that fits.

use core::fmt;

use smallvec::SmallVec;

use super::private_data::Thresholds;
use super::{Body, ChunkLists, MIN_HEADER, ReadSegment, Segment, WriteChunk};
use crate::xdr::{Hole, padded};

/// Size of a Call as its encoder leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSize {
    /// Bytes of the RPC message, without the bytes and pad of the item that may be a chunk.
    pub inline_len: usize,
    /// The argument that may be a chunk, if there is one.
    pub chunkable: Option<Hole>,
}

/// Bounds on the Reply to a Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyRoom {
    /// Most bytes that the RPC message of the Reply may have, without the result that may be a chunk.
    pub max_inline: usize,
    /// Most bytes of the result that may be a chunk, if there is one.
    pub chunkable: Option<u32>,
}

/// Segments that each kind of chunk would take: 1 where memory is registered in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentCounts {
    /// The argument's Read chunk.
    pub read: usize,
    /// The result's Write chunk.
    pub write: usize,
    /// The Position Zero Read chunk.
    pub call: usize,
    /// The Reply chunk.
    pub reply: usize,
}

impl Default for SegmentCounts {
    fn default() -> Self {
        Self { read: 1, write: 1, call: 1, reply: 1 }
    }
}

/// How a Call travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// RDMA_MSG with everything inline.
    Short,
    /// RDMA_MSG with the item as a Read chunk.
    Chunked,
    /// RDMA_NOMSG with the message as a Position Zero Read chunk, and the item, if there is one with bytes, as a Read
    /// chunk of its own.
    Long,
}

/// What is offered for a Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyOffer {
    /// Nothing: it fits inline whatever happens.
    Inline,
    /// A Write chunk for the result that may be a chunk.
    WriteChunk {
        /// Its length in bytes.
        len: u32,
    },
    /// A Reply chunk for the whole RPC message.
    ReplyChunk {
        /// Its length in bytes.
        len: usize,
    },
}

/// How a Call travels, and what it offers for its Reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallShape {
    /// The Call.
    pub call: CallForm,
    /// The Reply.
    pub reply: ReplyOffer,
    /// Bytes of the transport header with the lists that this shape has.
    pub header_len: usize,
}

/// The chunk lists of a Call leave no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderTooLong {
    /// Bytes that the header takes at least.
    pub need: usize,
    /// The inline threshold that it passes.
    pub room: usize,
}

impl fmt::Display for HeaderTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a transport header of {} bytes with its chunk lists, where {} may be sent",
            self.need, self.room
        )
    }
}

impl core::error::Error for HeaderTooLong {}

/// Bytes that a Write or Reply chunk of `segments` segments adds to a header in which its flag is counted already.
fn chunk_len(segments: usize) -> usize {
    segments.saturating_mul(Segment::ENCODED).saturating_add(4)
}

/// Bytes that a chunk of `segments` segments adds to a Write list.
fn listed_chunk_len(segments: usize) -> usize {
    chunk_len(segments).saturating_add(4)
}

fn read_len(segments: usize) -> usize {
    segments.saturating_mul(ReadSegment::ENCODED)
}

impl ReplyOffer {
    /// What to offer so that the Reply cannot fail for lack of room: nothing if all of it fits the threshold, a Write
    /// chunk if the rest fits without the eligible result, a Reply chunk for everything otherwise. Never both
    /// chunks, as some Responders fill the Reply chunk whenever there is one.
    #[must_use]
    pub fn choose(room: &ReplyRoom, segments: &SegmentCounts, threshold: u32) -> Self {
        let threshold = threshold as usize;
        let item = room.chunkable.map_or(0, |len| (len as usize).saturating_add(3) & !3);
        let whole = room.max_inline.saturating_add(item);
        if whole.saturating_add(MIN_HEADER) <= threshold {
            return Self::Inline;
        }
        let chunked =
            room.max_inline.saturating_add(MIN_HEADER).saturating_add(listed_chunk_len(segments.write));
        match room.chunkable {
            Some(len) if chunked <= threshold => Self::WriteChunk { len },
            _ => Self::ReplyChunk { len: whole },
        }
    }

    /// Bytes that the offer adds to a header, of the Call and of the Reply that returns it.
    fn header_len(self, segments: &SegmentCounts) -> usize {
        match self {
            Self::Inline => 0,
            Self::WriteChunk { .. } => listed_chunk_len(segments.write),
            Self::ReplyChunk { .. } => chunk_len(segments.reply),
        }
    }
}

impl CallShape {
    /// Chooses how a Call travels and what it offers for its Reply.
    ///
    /// A Call that fits inline stays inline, an argument that may be a chunk included. Otherwise that argument, if
    /// there is one, becomes a Read chunk, and only if the rest still does not fit is the message itself fetched.
    ///
    /// # Errors
    /// If the threshold has no room for the chunk lists alone, which takes dozens of segments.
    pub fn choose(
        call: &CallSize,
        reply: &ReplyRoom,
        segments: &SegmentCounts,
        thresholds: Thresholds,
    ) -> Result<Self, HeaderTooLong> {
        let room = thresholds.call as usize;
        let reply = ReplyOffer::choose(reply, segments, thresholds.reply);
        let base = MIN_HEADER.saturating_add(reply.header_len(segments));
        let item = call.chunkable.map_or(0, |hole| hole.len);
        let fits = |header: usize, message: usize| header.saturating_add(message) <= room;

        if fits(base, call.inline_len.saturating_add(item.saturating_add(3) & !3)) {
            return Ok(Self { call: CallForm::Short, reply, header_len: base });
        }
        let chunked = base.saturating_add(if item > 0 { read_len(segments.read) } else { 0 });
        if fits(chunked, call.inline_len) {
            return Ok(Self { call: CallForm::Chunked, reply, header_len: chunked });
        }
        let long = chunked.saturating_add(read_len(segments.call));
        if fits(long, 0) {
            return Ok(Self { call: CallForm::Long, reply, header_len: long });
        }
        Err(HeaderTooLong { need: long, room })
    }
}

/// Where one eligible result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemPlace {
    /// Into the RPC message, bytes and pad.
    Inline,
    /// By RDMA Write into the Write chunk with this index in the Call's Write list; neither bytes nor pad in the
    /// RPC message, and no pad in the chunk.
    WriteChunk(usize),
}

/// How a Reply travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyShape {
    /// Where each item goes, in the order given. `None` for an item that is not there.
    pub items: SmallVec<[Option<ItemPlace>; 1]>,
    /// The returned lists, ready for the header. [`Body::Nomsg`] means that the RPC message, with what is inline in
    /// it, is written to the Reply chunk.
    pub body: Body,
    /// Bytes of the RPC message, inline items and their pads included.
    pub message_len: usize,
}

/// A Reply does not fit what its Call offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// An item is longer than its Write chunk.
    WriteChunk {
        /// Index of the chunk.
        index: usize,
        /// Bytes of the item.
        need: u64,
        /// Bytes of the chunk.
        room: u64,
    },
    /// The RPC message is longer than the Reply chunk.
    ReplyChunk {
        /// Bytes of the message.
        need: u64,
        /// Bytes of the chunk.
        room: u64,
    },
    /// Header and message pass the inline threshold, and there is no Reply chunk, or not even room for the header.
    Inline {
        /// Bytes of header and message, or of the header of a Reply whose message is in the Reply chunk.
        need: usize,
        /// The threshold.
        room: usize,
    },
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::WriteChunk { index, need, room } => {
                write!(f, "a result of {need} bytes does not fit Write chunk {index} of {room} bytes")
            }
            Self::ReplyChunk { need, room } => {
                write!(f, "a Reply of {need} bytes does not fit its Reply chunk of {room} bytes")
            }
            Self::Inline { need, room } => {
                write!(
                    f,
                    "a Reply of {need} bytes with its header, where {room} may be sent and no chunk was offered"
                )
            }
        }
    }
}

impl core::error::Error for NoRoom {}

impl ReplyShape {
    /// Chooses how a Reply travels.
    ///
    /// `offered` are the lists of the Call. `inline_len` is the length of the RPC message in bytes without its
    /// eligible items. `items` are the lengths of the eligible results in the order of the message; the one with
    /// index k takes the Write chunk with index k. `None` stands for a result that is not there because its
    /// operation failed: its chunk is returned unused. An empty chunk, or none, means that the item goes inline.
    ///
    /// # Errors
    /// If something does not fit what was offered. Nothing has been written then.
    pub fn choose(
        offered: &ChunkLists,
        inline_len: usize,
        items: &[Option<u32>],
        threshold: u32,
    ) -> Result<Self, NoRoom> {
        let threshold = threshold as usize;
        let mut lists = ChunkLists::default();
        let mut places = SmallVec::new();
        let mut message_len = inline_len;
        for (index, item) in items.iter().enumerate() {
            places.push(match (*item, offered.write.get(index)) {
                (None, _) => None,
                (Some(_), Some(chunk)) if !chunk.is_empty() => Some(ItemPlace::WriteChunk(index)),
                (Some(len), _) => {
                    message_len = message_len.saturating_add(padded(len as usize));
                    Some(ItemPlace::Inline)
                }
            });
        }
        for (index, chunk) in offered.write.iter().enumerate() {
            lists.write.push(match (places.get(index), items.get(index)) {
                (Some(Some(ItemPlace::WriteChunk(_))), Some(Some(len))) => chunk
                    .returned(u64::from(*len))
                    .map_err(|e| NoRoom::WriteChunk { index, need: e.need, room: e.room })?,
                _ => chunk.unused(),
            });
        }
        lists.reply = offered.reply.as_ref().map(WriteChunk::unused);
        let header_len = MIN_HEADER - 12 + lists.encoded_len();
        let need = header_len.saturating_add(message_len);
        if need <= threshold {
            return Ok(Self { items: places, body: Body::Msg(lists), message_len });
        }
        let Some(chunk) = &offered.reply else { return Err(NoRoom::Inline { need, room: threshold }) };
        if header_len > threshold {
            return Err(NoRoom::Inline { need: header_len, room: threshold });
        }
        let filled = chunk
            .returned(message_len as u64)
            .map_err(|e| NoRoom::ReplyChunk { need: e.need, room: e.room })?;
        lists.reply = Some(filled);
        Ok(Self { items: places, body: Body::Nomsg(lists), message_len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpcrdma::{Credits, Header, Xid};
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const ONE: SegmentCounts = SegmentCounts { read: 1, write: 1, call: 1, reply: 1 };
    const K: Thresholds = Thresholds { call: 1024, reply: 1024 };

    fn call(inline_len: usize, item: Option<usize>) -> CallSize {
        CallSize { inline_len, chunkable: item.map(|len| Hole { at: inline_len, len }) }
    }

    fn room(max_inline: usize, chunkable: Option<u32>) -> ReplyRoom {
        ReplyRoom { max_inline, chunkable }
    }

    fn choose(c: CallSize, r: ReplyRoom) -> (CallForm, ReplyOffer, usize) {
        let s = CallShape::choose(&c, &r, &ONE, K).unwrap();
        (s.call, s.reply, s.header_len)
    }

    #[test]
    fn a_call_goes_inline_up_to_the_last_byte() {
        let small = room(100, None);
        assert_eq!(choose(call(1024 - 28, None), small), (CallForm::Short, ReplyOffer::Inline, 28));
        assert_eq!(choose(call(1024 - 24, None), small), (CallForm::Long, ReplyOffer::Inline, 28 + 24));
        // The item counts with its pad.
        assert_eq!(choose(call(100, Some(1024 - 128)), small).0, CallForm::Short);
        assert_eq!(choose(call(100, Some(1024 - 128 - 3)), small).0, CallForm::Short);
        assert_eq!(
            choose(call(100, Some(1024 - 128 + 1)), small),
            (CallForm::Chunked, ReplyOffer::Inline, 52)
        );
        assert_eq!(choose(call(1024 - 52, Some(5000)), small), (CallForm::Chunked, ReplyOffer::Inline, 52));
        assert_eq!(choose(call(1024 - 48, Some(5000)), small), (CallForm::Long, ReplyOffer::Inline, 76));
        // An item without bytes is no chunk.
        assert_eq!(choose(call(1024 - 24, Some(0)), small), (CallForm::Long, ReplyOffer::Inline, 52));
    }

    #[test]
    fn what_is_offered_for_the_reply_takes_its_part_of_the_call() {
        let bulk = room(128, Some(1 << 20));
        let offer = ReplyOffer::WriteChunk { len: 1 << 20 };
        assert_eq!(choose(call(1024 - 52, None), bulk), (CallForm::Short, offer, 52));
        assert_eq!(choose(call(1024 - 48, None), bulk), (CallForm::Long, offer, 76));
    }

    #[test]
    fn a_reply_that_fits_is_offered_nothing() {
        let offer = |r| ReplyOffer::choose(&r, &ONE, 1024);
        assert_eq!(offer(room(1024 - 28, None)), ReplyOffer::Inline);
        assert_eq!(offer(room(1024 - 24, None)), ReplyOffer::ReplyChunk { len: 1000 });
        assert_eq!(offer(room(128, Some(1024 - 28 - 128))), ReplyOffer::Inline);
        assert_eq!(offer(room(128, Some(1024 - 28 - 127))), ReplyOffer::WriteChunk { len: 869 });
        assert_eq!(offer(room(1024 - 52, Some(1 << 20))), ReplyOffer::WriteChunk { len: 1 << 20 });
        assert_eq!(offer(room(1024 - 48, Some(1 << 20))), ReplyOffer::ReplyChunk { len: (1 << 20) + 976 });
        assert_eq!(offer(room(1000, Some(0))), ReplyOffer::ReplyChunk { len: 1000 });
    }

    #[test]
    fn lists_too_long_for_the_threshold_are_an_error() {
        let many = SegmentCounts { read: 16, call: 16, write: 16, reply: 16 };
        let e = CallShape::choose(&call(2000, Some(5000)), &room(2000, None), &many, K).unwrap_err();
        assert_eq!(e, HeaderTooLong { need: 28 + 4 + 256 + 768, room: 1024 });
    }

    fn offered(write: &[&[u32]], reply: Option<&[u32]>) -> ChunkLists {
        let chunk = |lengths: &&[u32]| -> WriteChunk {
            lengths.iter().map(|&length| Segment { handle: 7, length, offset: 64 }).collect()
        };
        ChunkLists {
            write: write.iter().map(chunk).collect(),
            reply: reply.as_ref().map(chunk),
            ..ChunkLists::default()
        }
    }

    fn lengths(lists: &ChunkLists) -> (Vec<Vec<u32>>, Option<Vec<u32>>) {
        let chunk = |c: &WriteChunk| c.iter().map(|s| s.length).collect();
        (lists.write.iter().map(chunk).collect(), lists.reply.as_ref().map(chunk))
    }

    #[test]
    fn a_responder_fills_chunks_in_order() {
        use ItemPlace::{Inline, WriteChunk};
        let offer = offered(&[&[100, 100], &[], &[50]], None);
        let s = ReplyShape::choose(&offer, 60, &[Some(150), Some(5), None], 1024).unwrap();
        assert_eq!(s.items[..], [Some(WriteChunk(0)), Some(Inline), None]);
        assert_eq!(s.message_len, 68);
        assert!(matches!(&s.body, Body::Msg(_)));
        assert_eq!(
            lengths(s.body.lists().unwrap()),
            (alloc::vec![alloc::vec![100, 50], alloc::vec![], alloc::vec![0]], None)
        );

        let s = ReplyShape::choose(&offer, 60, &[], 1024).unwrap();
        assert_eq!(lengths(s.body.lists().unwrap()).0, [&[0, 0][..], &[], &[0]]);
        let s = ReplyShape::choose(&offered(&[], None), 60, &[Some(7)], 1024).unwrap();
        assert_eq!((s.items[..].to_vec(), s.message_len), (alloc::vec![Some(Inline)], 68));
        let e = ReplyShape::choose(&offer, 60, &[None, None, Some(51)], 1024).unwrap_err();
        assert_eq!(e, NoRoom::WriteChunk { index: 2, need: 51, room: 50 });
    }

    #[test]
    fn a_reply_chunk_is_used_only_when_the_reply_does_not_fit_inline() {
        let offer = offered(&[], Some(&[1000, 1000]));
        let header = 28 + 4 + 32;
        let s = ReplyShape::choose(&offer, 1024 - header, &[], 1024).unwrap();
        assert_eq!(
            (matches!(&s.body, Body::Msg(_)), lengths(s.body.lists().unwrap()).1),
            (true, Some(alloc::vec![0, 0]))
        );
        let s = ReplyShape::choose(&offer, 1028 - header, &[], 1024).unwrap();
        assert_eq!(
            (matches!(&s.body, Body::Nomsg(_)), lengths(s.body.lists().unwrap()).1),
            (true, Some(alloc::vec![964, 0]))
        );
        let s = ReplyShape::choose(&offer, 100, &[Some(1898)], 1024).unwrap();
        assert_eq!(
            (s.items[0], lengths(s.body.lists().unwrap()).1),
            (Some(ItemPlace::Inline), Some(alloc::vec![1000, 1000]))
        );
        let e = ReplyShape::choose(&offer, 100, &[Some(1901)], 1024).unwrap_err();
        assert_eq!(e, NoRoom::ReplyChunk { need: 2004, room: 2000 });
        let e = ReplyShape::choose(&offered(&[], None), 1000, &[], 1024).unwrap_err();
        assert_eq!(e, NoRoom::Inline { need: 1028, room: 1024 });
    }

    #[test]
    fn a_reply_whose_returned_lists_alone_pass_the_threshold_does_not_fit() {
        let long: Vec<u32> = (0..80).collect();
        let e = ReplyShape::choose(&offered(&[], Some(&long)), 24, &[], 1024).unwrap_err();
        assert_eq!(e, NoRoom::Inline { need: 28 + 4 + 80 * 16, room: 1024 });
    }

    fn lists_of(shape: &CallShape, n: &SegmentCounts, hole: Option<Hole>) -> ChunkLists {
        let s = |length| Segment { handle: 1, length, offset: 0 };
        let mut lists = ChunkLists::default();
        if shape.call == CallForm::Long {
            lists.read.push_chunk(0, core::iter::repeat_n(s(1), n.call));
        }
        if shape.call != CallForm::Short
            && let Some(hole) = hole.filter(|h| h.len > 0)
        {
            lists.read.push_chunk(hole.at as u32, core::iter::repeat_n(s(1), n.read));
        }
        match shape.reply {
            ReplyOffer::Inline => {}
            ReplyOffer::WriteChunk { len } => {
                lists.write.push((0..n.write).map(|i| s(if i == 0 { len } else { 0 })).collect());
            }
            ReplyOffer::ReplyChunk { len } => {
                lists.reply = Some((0..n.reply).map(|i| s(if i == 0 { len as u32 } else { 0 })).collect());
            }
        }
        lists
    }

    proptest! {
        /// Whatever is chosen fits, is the least that fits, and leaves the Responder room for every Reply in bounds.
        #[test]
        fn a_call_and_every_reply_within_its_bounds_fit(
            inline_words in 10..500usize,
            item in prop::option::of(0..5000usize),
            reply_words in 6..500usize,
            result in prop::option::of(0..5000u32),
            (read, write, pz, reply_segs) in (1..=16usize, 1..=16usize, 1..=16usize, 1..=16usize),
            (tc, tr) in (2..=8u32, 1..=8u32),
            used_words in 0..500usize,
            used_item in 0..5000u32,
            failed: bool,
        ) {
            let c = call(inline_words * 4, item);
            let r = room(reply_words * 4, result);
            let n = SegmentCounts { read, write, call: pz, reply: reply_segs };
            let t = Thresholds { call: tc * 1024, reply: tr * 1024 };
            let shape = CallShape::choose(&c, &r, &n, t).unwrap();
            let lists = lists_of(&shape, &n, c.chunkable);
            let body = if shape.call == CallForm::Long { Body::Nomsg(lists.clone()) } else { Body::Msg(lists.clone()) };
            let header = Header::new(Xid(1), Credits(1), body);
            prop_assert_eq!(header.encoded_len(), shape.header_len);
            let inline = match shape.call {
                CallForm::Short => c.inline_len + padded(item.unwrap_or(0)),
                CallForm::Chunked => c.inline_len,
                CallForm::Long => 0,
            };
            prop_assert!(shape.header_len + inline <= t.call as usize);
            let lean = shape.header_len - lists.read.len() * ReadSegment::ENCODED;
            if shape.call != CallForm::Short {
                prop_assert!(lean + c.inline_len + padded(item.unwrap_or(0)) > t.call as usize);
            }

            let inline_len = (used_words * 4).min(r.max_inline);
            let items: Vec<Option<u32>> =
                result.iter().map(|max| (!failed).then_some(used_item.min(*max))).collect();
            let reply = ReplyShape::choose(&lists, inline_len, &items, t.reply).unwrap();
            let long = matches!(reply.body, Body::Nomsg(_));
            let reply_header = Header::new(Xid(1), Credits(1), reply.body);
            let sent = reply_header.encoded_len() + if long { 0 } else { reply.message_len };
            prop_assert!(sent <= t.reply as usize);
            let placed = reply_header.placed(&lists).unwrap();
            prop_assert_eq!(placed.reply, long.then_some(reply.message_len as u64));
            for (i, bytes) in placed.write.iter().enumerate() {
                let expected = match reply.items.get(i) {
                    Some(Some(ItemPlace::WriteChunk(_))) => items[i].unwrap(),
                    _ => 0,
                };
                prop_assert_eq!(*bytes, u64::from(expected));
            }
        }
    }
}
