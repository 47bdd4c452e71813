//! Byte vectors, malformed messages and properties of the transport header.

use alloc::vec::Vec;
use alloc::{format, vec};

use proptest::prelude::*;

use super::*;
use crate::rpc::Fault;
use crate::testing::hex;
use crate::xdr::{Chunk, Encode, Reader, Writer, XdrError};

/// Headers with the RPC messages behind them, as they travel in one Send.
struct Vector {
    name: &'static str,
    bytes: Vec<u8>,
    header: Header,
    /// Length of the header.
    at: usize,
}

fn seg(handle: u32, length: u32, offset: u64) -> Segment {
    Segment { handle, length, offset }
}

fn write(chunks: &[&[Segment]]) -> ChunkLists {
    let write = chunks.iter().map(|c| c.iter().copied().collect()).collect();
    ChunkLists { write, ..ChunkLists::default() }
}

fn reply(chunk: &[Segment]) -> ChunkLists {
    ChunkLists { reply: Some(chunk.iter().copied().collect()), ..ChunkLists::default() }
}

fn read(items: &[(u32, Segment)]) -> ReadList {
    items.iter().map(|&(position, segment)| ReadSegment { position, segment }).collect()
}

fn header(xid: u32, credit: u32, body: Body) -> Header {
    Header::new(Xid(xid), Credits(credit), body)
}

fn null_call() -> Vec<u8> {
    hex("1a2b3c4d 00000001 00000080 00000000 00000000 00000000 00000000 1a2b3c4d
         00000000 00000002 000186a3 00000003 00000000 00000000 00000000 00000000 00000000")
}

fn read_call() -> Vec<u8> {
    hex("1a2b3c4e00000001000000800000000000000000000000010000000100001103001000001a2b3c4e0020000000000000
         000000001a2b3c4e0000000000000002000186a300000003000000060000000100000018000000000000000163000000
         0000000000000000000000000000000000000000000000080102030405060708000000000000000000100000")
}

fn write_call() -> Vec<u8> {
    hex("1a2b3c50000000010000008000000000000000010000006000001403000010001a2b3c50000050000000000100000060
         00001503000000031a2b3c500000a0000000000000000000000000001a2b3c500000000000000002000186a300000003
         000000070000000100000018000000000000000163000000000000000000000000000000000000000000000000000008
         0102030405060708000000000000200000001003000000020000 1003")
}

#[rustfmt::skip]
fn vectors() -> Vec<Vector> {
    let v = |name, bytes: Vec<u8>, at, header| Vector { name, bytes, header, at };
    vec![
        v("NULL call", null_call(), 28, header(0x1a2b3c4d, 128, Body::Msg(ChunkLists::default()))),
        v("NULL reply",
          hex("1a2b3c4d0000000100000040000000000000000000000000000000001a2b3c4d00000001
               00000000000000000000000000000000"),
          28, header(0x1a2b3c4d, 64, Body::Msg(ChunkLists::default()))),
        v("READ call with a Write chunk", read_call(), 52,
          header(0x1a2b3c4e, 128, Body::Msg(write(&[&[seg(0x1103, 1 << 20, 0x1a2b_3c4e_0020_0000)]])))),
        v("READ reply, data in the Write chunk",
          hex("1a2b3c4e00000001000000400000000000000000000000010000000100001103001000001a2b3c4e00200000
               00000000000000001a2b3c4e000000010000000000000000000000000000000000000000000000000010
               00000000000000100000"),
          52, header(0x1a2b3c4e, 64, Body::Msg(write(&[&[seg(0x1103, 1 << 20, 0x1a2b_3c4e_0020_0000)]])))),
        v("short READ reply into two segments",
          hex("1a2b3c4f000000010000004000000000000000000000000100000002000012030000000a1a2b3c4f00001000
               00001303000000001a2b3c4f0000900000000000000000001a2b3c4f0000000100000000000000000000
               0000000000000000000000000000 0000000a000000010000000a"),
          68, header(0x1a2b3c4f, 64, Body::Msg(write(&[&[
              seg(0x1203, 10, 0x1a2b_3c4f_0000_1000), seg(0x1303, 0, 0x1a2b_3c4f_0000_9000)]])))),
        v("WRITE call with a Read chunk in two segments", write_call(), 76,
          header(0x1a2b3c50, 128, Body::Msg(ChunkLists {
              read: read(&[(96, seg(0x1403, 4096, 0x1a2b_3c50_0000_5000)), (96, seg(0x1503, 3, 0x1a2b_3c50_0000_a000))]),
              ..ChunkLists::default()
          }))),
        v("Long call with a Reply chunk",
          hex("1a2b3c51000000010000008000000001000000010000000000001603000017701a2b3c510000b000
               000000000000000000000001000000010000170300010000 1a2b3c5100020000"),
          72, header(0x1a2b3c51, 128, Body::Nomsg(ChunkLists {
              read: read(&[(0, seg(0x1603, 6000, 0x1a2b_3c51_0000_b000))]),
              ..reply(&[seg(0x1703, 65536, 0x1a2b_3c51_0002_0000)])
          }))),
        v("Long reply",
          hex("1a2b3c510000000100000040000000010000000000000000000000010000000100001703000013941a2b3c5100020000"),
          48, header(0x1a2b3c51, 64, Body::Nomsg(reply(&[seg(0x1703, 5012, 0x1a2b_3c51_0002_0000)])))),
        v("ERR_CHUNK", hex("1a2b3c5200000001000000400000000400000002"),
          20, header(0x1a2b3c52, 64, Body::Error(RdmaError::Chunk))),
        v("ERR_VERS", hex("1a2b3c53000000020000004000000004000000010000000100000001"),
          28, Header::error_vers(Xid(0x1a2b3c53), 2, Credits(64))),
        v("error reply, Write chunk unused",
          hex("1a2b3c5400000001000000400000000000000000000000010000000100001803000000001a2b3c5400007000
               00000000000000001a2b3c5400000001000000000000000000000000000000000000004600000000"),
          52, header(0x1a2b3c54, 64, Body::Msg(write(&[&[seg(0x1803, 0, 0x1a2b_3c54_0000_7000)]])))),
        v("three Write chunks, the second empty",
          hex("1a2b3c5500000001000000800000000000000000000000010000000200002101000020000000000000010000
               000022010000200000000000000200000000000100000000000000010000000100002301000004000000
               00000003000000000000 00000000"),
          100, header(0x1a2b3c55, 128, Body::Msg(write(&[
              &[seg(0x2101, 8192, 0x10000), seg(0x2201, 8192, 0x20000)], &[], &[seg(0x2301, 1024, 0x30000)]])))),
    ]
}

fn fault(bytes: &[u8]) -> HeaderError {
    Header::open(bytes, &Limits::default()).expect_err("a header that parses")
}

fn with_word(mut bytes: Vec<u8>, at: usize, word: u32) -> Vec<u8> {
    bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
    bytes
}

#[test]
fn vectors_decode_to_their_fields_and_encode_to_their_bytes() {
    for v in vectors() {
        let (got, at) = Header::decode(&v.bytes, &Limits::default()).expect(v.name);
        assert_eq!(got, v.header, "{}", v.name);
        assert_eq!(at, v.at, "{}", v.name);
        assert_eq!(v.header.encoded_len(), at, "{}", v.name);
        let mut w = Writer::new();
        v.header.encode(&mut w);
        assert_eq!(w.as_slice(), &v.bytes[..at], "{}", v.name);
        let mut out = vec![0xee; at + 4];
        assert_eq!(v.header.encode_into(&mut out), Some(at), "{}", v.name);
        assert_eq!(out[..at], v.bytes[..at], "{}", v.name);
        assert_eq!(out[at..], [0xee; 4], "{}", v.name);
        assert_eq!(v.header.encode_into(&mut out[..at - 1]), None, "{}", v.name);
    }
}

#[test]
fn what_follows_the_header_is_the_rpc_message() {
    use crate::rpc::{MessageType, Program, ReplyHeader, peek, receive};
    let programs = [Program { number: 100_003, versions: &[(3, 22)] }];
    let mut seen = [0, 0];
    for v in vectors() {
        if !matches!(v.header.body, Body::Msg(_)) || v.bytes.len() == v.at {
            continue;
        }
        let (header, payload) = Header::open(&v.bytes, &Limits::default()).expect(v.name);
        let (xid, direction) = peek(payload).expect(v.name);
        assert_eq!(xid, header.xid, "{}", v.name);
        let mut r = Reader::new(payload);
        match direction {
            MessageType::Call => {
                assert_eq!(receive(&mut r, &programs).expect(v.name).header.xid, xid);
                seen[0] += 1;
            }
            MessageType::Reply => {
                assert_eq!(ReplyHeader::decode(&mut r).expect(v.name).status, Ok(()));
                seen[1] += 1;
            }
        }
    }
    assert_eq!(seen, [3, 4]);
}

#[test]
fn a_vector_cut_anywhere_in_its_header_is_refused() {
    for v in vectors() {
        for len in 0..v.at {
            let e = Header::decode(&v.bytes[..len], &Limits::default()).expect_err(v.name);
            let error = v.header.body.proc() == Proc::ERROR;
            match e.fault {
                HeaderFault::Short { have } => {
                    assert_eq!(have, len);
                    assert!(len < 16 || (len < MIN_HEADER && !error), "{} at {len}", v.name);
                    assert_eq!(e.answer(Role::Responder), Answer::Drop);
                }
                HeaderFault::Truncated { at, need, have } => {
                    assert!(at + have == len && have < need, "{} at {len}: {e}", v.name);
                    let expected = if error { Answer::Drop } else { Answer::ErrChunk { xid: v.header.xid } };
                    assert_eq!(e.answer(Role::Responder), expected);
                }
                other => panic!("{} at {len}: {other:?}", v.name),
            }
            assert_eq!(e.answer(Role::Requester), Answer::Drop);
        }
        if matches!(v.header.body, Body::Msg(_)) && v.bytes.len() > v.at {
            for len in v.at..v.at + 4 {
                assert_eq!(fault(&v.bytes[..len]).fault, HeaderFault::NoPayload { have: len - v.at });
            }
            assert!(Header::open(&v.bytes[..v.at + 4], &Limits::default()).is_ok());
        }
    }
}

#[test]
fn a_message_shorter_than_the_smallest_header_is_dropped() {
    let e = fault(&null_call()[..24]);
    assert_eq!((e.fault, e.answer(Role::Responder)), (HeaderFault::Short { have: 24 }, Answer::Drop));
}

#[test]
fn bad_headers_get_err_chunk_with_their_xid() {
    #[rustfmt::skip]
    let cases = [
        (with_word(null_call(), 12, 7), HeaderFault::UnknownProc(Proc(7))),
        (with_word(null_call(), 12, 1), HeaderFault::NoLists),
        (with_word(null_call(), 12, 2), HeaderFault::Msgp),
        (with_word(null_call(), 16, 2), HeaderFault::NotBool { at: 16, value: 2 }),
        (with_word(null_call(), 20, 0x0100_0000), HeaderFault::NotBool { at: 20, value: 0x0100_0000 }),
        (with_word(null_call(), 24, u32::MAX), HeaderFault::NotBool { at: 24, value: u32::MAX }),
        (with_word(write_call(), 20, 94), HeaderFault::UnalignedPosition { position: 94 }),
        (with_word(write_call(), 76, 0x1a2b3c51),
         HeaderFault::XidMismatch { header: Xid(0x1a2b3c50), message: Xid(0x1a2b3c51) }),
        (with_word(read_call(), 24, u32::MAX), HeaderFault::TooManySegments { count: u32::MAX, max: 259 }),
        (with_word(read_call(), 24, 259), HeaderFault::Truncated { at: 28, need: 259 * 16, have: 112 }),
        (with_word(write_call(), 28, u32::MAX), HeaderFault::TooManyReadBytes { bytes: u32::MAX.into(), max: (1 << 20) + (64 << 10) }),
        (with_word(with_word(read_call(), 36, u32::MAX), 40, 0xfff0_0000),
         HeaderFault::SegmentWraps { offset: 0xffff_ffff_fff0_0000, length: 1 << 20 }),
    ];
    for (bytes, expected) in cases {
        let e = fault(&bytes);
        let xid = Xid(u32::from_be_bytes(bytes[..4].try_into().unwrap()));
        assert_eq!(e.fault, expected);
        assert_eq!(e.answer(Role::Responder), Answer::ErrChunk { xid });
        assert_eq!(e.answer(Role::Requester), Answer::Drop);
        assert_eq!(e.answer(Role::Responder).header(Credits(9)), Some(Header::error_chunk(xid, Credits(9))));
        assert!(format!("{e}").contains(&format!("{xid}")));
    }
}

#[test]
fn a_segment_may_end_just_below_the_last_address() {
    let bytes = with_word(with_word(read_call(), 36, u32::MAX), 40, 0xffef_ffff);
    assert!(Header::open(&bytes, &Limits::default()).is_ok());
}

#[test]
fn another_version_is_answered_with_err_vers() {
    let e = fault(&with_word(null_call(), 4, 2));
    assert_eq!(e.answer(Role::Responder), Answer::ErrVers { xid: Xid(0x1a2b3c4d), vers: 2 });
    assert_eq!(e.answer(Role::Requester), Answer::Drop);
    let answer = e.answer(Role::Responder).header(Credits(64)).unwrap();
    let mut w = Writer::new();
    answer.encode(&mut w);
    assert_eq!(w.as_slice(), hex("1a2b3c4d 00000002 00000040 00000004 00000001 00000001 00000001"));
    // The type of a message of another version means nothing, except for an error.
    assert_eq!(fault(&with_word(with_word(null_call(), 4, 0), 12, 77)).fault, HeaderFault::Version(0));
}

#[test]
fn errors_and_done_are_never_answered() {
    let chunk = hex("1a2b3c52 00000001 00000040 00000004 00000002");
    let cases = [
        (with_word(chunk.clone(), 16, 3), HeaderFault::UnknownError(3)),
        (with_word(chunk, 4, 2), HeaderFault::Version(2)),
        (with_word(null_call(), 12, 3), HeaderFault::Done),
        (with_word(null_call(), 12, 3)[..16].to_vec(), HeaderFault::Done),
    ];
    for (bytes, expected) in cases {
        let e = fault(&bytes);
        assert_eq!((e.fault, e.answer(Role::Responder)), (expected, Answer::Drop));
        assert_eq!(e.answer(Role::Requester), Answer::Drop);
        assert_eq!(e.answer(Role::Responder).header(Credits(1)), None);
    }
}

#[test]
fn lists_are_held_to_the_limits() {
    let limits =
        Limits { max_read_segments: 1, max_read_bytes: 4098, max_write_chunks: 2, max_segments_per_chunk: 1 };
    let fault = |bytes: &[u8], limits| Header::decode(bytes, &limits).expect_err("within limits").fault;
    assert_eq!(fault(&write_call(), limits), HeaderFault::TooManyReadSegments { max: 1 });
    let two = Limits { max_read_segments: 2, ..limits };
    assert_eq!(fault(&write_call(), two), HeaderFault::TooManyReadBytes { bytes: 4099, max: 4098 });
    assert!(Header::decode(&write_call(), &Limits { max_read_bytes: 4099, ..two }).is_ok());
    let v12 = vectors().pop().unwrap().bytes;
    assert_eq!(fault(&v12, limits), HeaderFault::TooManySegments { count: 2, max: 1 });
    let two = Limits { max_segments_per_chunk: 2, ..limits };
    assert_eq!(fault(&v12, two), HeaderFault::TooManyWriteChunks { max: 2 });
    assert!(Header::decode(&v12, &Limits { max_write_chunks: 3, ..two }).is_ok());
}

/// The arguments of the WRITE call, its chunk spliced in.
fn write_arguments(bytes: &[u8]) -> Result<usize, XdrError> {
    let (header, payload) = Header::open(bytes, &Limits::default()).unwrap();
    let chunks = header.read_chunks().unwrap();
    assert_eq!(chunks.call, None);
    assert_eq!(chunks.items.len(), 1);
    let data = vec![0x5a; chunks.items[0].length as usize];
    let splice = [Chunk { position: chunks.items[0].position, data: &data }];
    let mut r = Reader::with_chunks(payload, &splice);
    r.bytes(92)?;
    let len = r.chunkable(1 << 20)?.len();
    r.finish()?;
    Ok(len)
}

#[test]
fn a_read_chunk_is_as_long_as_its_item_or_as_the_padded_item() {
    assert_eq!(write_arguments(&write_call()), Ok(4099));
    assert_eq!(write_arguments(&with_word(write_call(), 52, 4)), Ok(4099));
    // Any other length makes the arguments garbage; the transport header is fine.
    let longer = with_word(write_call(), 52, 5);
    assert_eq!(write_arguments(&longer), Err(XdrError::ChunkLength { item: 4099, chunk: 4101 }));
    assert_eq!(Fault::from(write_arguments(&longer).unwrap_err()), Fault::GarbageArgs);
    let elsewhere = with_word(with_word(write_call(), 20, 100), 44, 100);
    assert!(matches!(write_arguments(&elsewhere), Err(XdrError::Short { .. })));
}

#[test]
fn a_read_list_sorts_into_chunks() {
    let list = read(&[
        (200, seg(5, 10, 0)),
        (0, seg(1, 60, 0)),
        (96, seg(3, 64, 0)),
        (200, seg(6, 2, 0)),
        (0, seg(2, 8, 0)),
        (96, seg(4, 40, 0)),
    ]);
    let chunks = list.chunks().unwrap();
    let flat =
        |c: &ReadChunk| (c.position, c.segments.iter().map(|s| s.handle).collect::<Vec<_>>(), c.length);
    assert_eq!(chunks.call.as_ref().map(flat), Some((0, vec![1, 2], 68)));
    assert_eq!(
        chunks.items.iter().map(flat).collect::<Vec<_>>(),
        [(96, vec![3, 4], 104), (200, vec![5, 6], 12)]
    );
    assert_eq!(chunks.length(), 184);

    let close = read(&[(100, seg(2, 4, 0)), (96, seg(1, 4, 0)), (92, seg(0, 4, 0)), (96, seg(3, 0, 0))]);
    let order = close.chunks().unwrap().items.iter().map(flat).collect::<Vec<_>>();
    assert_eq!(order, [(92, vec![0], 4), (96, vec![1, 3], 4), (100, vec![2], 4)]);

    let overlap = read(&[(96, seg(3, 64, 0)), (200, seg(5, 10, 0)), (96, seg(4, 41, 0))]);
    assert_eq!(overlap.chunks(), Err(HeaderFault::OverlappingPositions { first: 96, second: 200 }));
    let huge = read(&[(4, seg(1, u32::MAX, 0)), (4, seg(2, u32::MAX, 0)), (8, seg(3, 1, 0))]);
    assert_eq!(huge.chunks(), Err(HeaderFault::OverlappingPositions { first: 4, second: 8 }));
}

#[test]
fn a_long_call_has_its_message_at_position_zero_and_an_inline_call_has_not() {
    let zero = ChunkLists { read: read(&[(0, seg(1, 60, 0))]), ..ChunkLists::default() };
    let long = header(1, 1, Body::Nomsg(zero.clone())).read_chunks().unwrap();
    assert_eq!(long.call.map(|c| c.length), Some(60));
    let e = header(1, 1, Body::Msg(zero)).read_chunks().unwrap_err();
    assert_eq!(e.fault, HeaderFault::PositionZeroInMsg);
    assert_eq!(e.answer(Role::Responder), Answer::ErrChunk { xid: Xid(1) });
    let e = header(2, 1, Body::Nomsg(reply(&[seg(1, 1, 1)]))).read_chunks().unwrap_err();
    assert_eq!(e.fault, HeaderFault::NoPositionZero);
    assert_eq!(e.answer(Role::Responder), Answer::ErrChunk { xid: Xid(2) });
}

#[test]
fn a_write_chunk_is_filled_from_the_front() {
    let chunk: WriteChunk = [seg(1, 10, 100), seg(2, 0, 200), seg(3, 5, 300)].into_iter().collect();
    let lengths = |c: &WriteChunk| c.iter().map(|s| s.length).collect::<Vec<_>>();
    assert_eq!(chunk.returned(12).as_ref().map(lengths), Ok(vec![10, 0, 2]));
    assert_eq!(chunk.fill(12).unwrap().collect::<Vec<_>>(), [seg(1, 10, 100), seg(3, 2, 300)]);
    assert_eq!(chunk.returned(3).as_ref().map(lengths), Ok(vec![3, 0, 0]));
    assert_eq!(chunk.returned(15).as_ref(), Ok(&chunk));
    assert_eq!(chunk.returned(16), Err(ChunkTooSmall { need: 16, room: 15 }));
    assert!(chunk.fill(16).is_err());
    assert_eq!(lengths(&chunk.unused()), [0, 0, 0]);
    assert_eq!(WriteChunk::new().returned(0), Ok(WriteChunk::new()));
    assert_eq!(WriteChunk::new().returned(1), Err(ChunkTooSmall { need: 1, room: 0 }));
}

#[test]
fn returned_chunks_that_break_a_rule_are_named() {
    let offered: WriteChunk = [seg(1, 10, 100), seg(2, 10, 200), seg(3, 10, 300)].into_iter().collect();
    let check = |segments: &[Segment]| offered.written(&segments.iter().copied().collect());
    assert_eq!(check(&[seg(1, 10, 100), seg(2, 4, 200), seg(3, 0, 300)]), Ok(14));
    assert_eq!(check(&[seg(1, 10, 100)]), Err(PeerMisbehaved::SegmentCount { offered: 3, returned: 1 }));
    let bad = check(&[seg(1, 10, 100), seg(2, 0, 208), seg(3, 0, 300)]);
    assert_eq!(bad, Err(PeerMisbehaved::SegmentChanged { index: 1 }));
    let bad = check(&[seg(1, 10, 100), seg(2, 10, 200), seg(4, 0, 300)]);
    assert_eq!(bad, Err(PeerMisbehaved::SegmentChanged { index: 2 }));
    let bad = check(&[seg(1, 11, 100), seg(2, 0, 200), seg(3, 0, 300)]);
    assert_eq!(bad, Err(PeerMisbehaved::SegmentGrew { offered: 10, returned: 11 }));
    let bad = check(&[seg(1, 9, 100), seg(2, 1, 200), seg(3, 0, 300)]);
    assert_eq!(bad, Err(PeerMisbehaved::SegmentsNotContiguous { index: 1 }));
    let bad = check(&[seg(1, 10, 100), seg(2, 0, 200), seg(3, 1, 300)]);
    assert_eq!(bad, Err(PeerMisbehaved::SegmentsNotContiguous { index: 2 }));
    // An empty segment between does not hide the gap, nor is it one.
    let offered: WriteChunk = [seg(1, 10, 100), seg(2, 0, 200), seg(3, 10, 300)].into_iter().collect();
    let check =
        |a, c| offered.written(&[seg(1, a, 100), seg(2, 0, 200), seg(3, c, 300)].into_iter().collect());
    assert_eq!(check(5, 5), Err(PeerMisbehaved::SegmentsNotContiguous { index: 2 }));
    assert_eq!(check(10, 5), Ok(15));
}

#[test]
fn a_reply_is_placed_where_the_call_offered() {
    let chunk = [seg(1, 100, 0)];
    let part = [seg(1, 40, 0)];
    let none = [seg(1, 0, 0)];
    let msg = |lists| header(1, 1, Body::Msg(lists));
    let nomsg = |lists| header(1, 1, Body::Nomsg(lists));
    let placed = |w: &[u64], reply| Ok(Placed { write: w.iter().copied().collect(), reply });
    let empty = ChunkLists::default();

    assert_eq!(msg(empty.clone()).placed(&empty), placed(&[], None));
    assert_eq!(msg(write(&[&part, &[]])).placed(&write(&[&chunk, &[]])), placed(&[40, 0], None));
    assert_eq!(msg(reply(&none)).placed(&reply(&chunk)), placed(&[], None));
    // A Reply that would have fitted inline may still come by Reply chunk.
    assert_eq!(nomsg(reply(&part)).placed(&reply(&chunk)), placed(&[], Some(40)));
    assert_eq!(Header::error_chunk(Xid(1), Credits(1)).placed(&reply(&chunk)), Ok(Placed::default()));

    let list = ChunkLists { read: read(&[(0, seg(9, 9, 9))]), ..empty.clone() };
    assert_eq!(msg(list).placed(&empty), Err(PeerMisbehaved::ReplyHasReadList { segments: 1 }));
    let bad = msg(empty.clone()).placed(&write(&[&chunk]));
    assert_eq!(bad, Err(PeerMisbehaved::WriteChunkCount { offered: 1, returned: 0 }));
    assert_eq!(msg(reply(&none)).placed(&empty), Err(PeerMisbehaved::ReplyChunkNotOffered));
    assert_eq!(msg(empty).placed(&reply(&chunk)), Err(PeerMisbehaved::ReplyChunkNotReturned));
    assert_eq!(msg(reply(&part)).placed(&reply(&chunk)), Err(PeerMisbehaved::ReplyChunkInMsg { bytes: 40 }));
    assert_eq!(nomsg(reply(&none)).placed(&reply(&chunk)), Err(PeerMisbehaved::LongReplyEmpty));
}

#[test]
fn a_grant_of_zero_reads_as_one_and_stays_zero_on_the_wire() {
    assert_eq!((Credits(0).window(), Credits(1).window(), Credits(64).window()), (1, 1, 64));
    let bytes = with_word(null_call(), 8, 0);
    let (h, at) = Header::decode(&bytes, &Limits::default()).unwrap();
    let mut w = Writer::new();
    h.encode(&mut w);
    assert_eq!(w.as_slice(), &bytes[..at]);
}

#[test]
fn lists_name_their_handles_and_can_be_returned_unused() {
    let lists = ChunkLists {
        read: read(&[(4, seg(1, 1, 1))]),
        write: write(&[&[seg(2, 2, 2), seg(3, 3, 3)], &[]]).write,
        reply: Some([seg(4, 4, 4)].into_iter().collect()),
    };
    assert_eq!(lists.handles().collect::<Vec<_>>(), [1, 2, 3, 4]);
    let unused = lists.unused();
    assert!(unused.read.is_empty());
    assert_eq!(msg_placed(&unused, &lists), Ok(vec![0, 0]));
}

fn msg_placed(returned: &ChunkLists, offered: &ChunkLists) -> Result<Vec<u64>, PeerMisbehaved> {
    header(1, 1, Body::Msg(returned.clone())).placed(offered).map(|p| p.write.to_vec())
}

fn segments(max: usize) -> impl Strategy<Value = Vec<Segment>> {
    let one = (any::<u32>(), any::<u32>(), 0..=u64::MAX - u64::from(u32::MAX));
    prop::collection::vec(one.prop_map(|(h, l, o)| seg(h, l, o)), 0..max)
}

fn lists() -> impl Strategy<Value = ChunkLists> {
    let read = prop::collection::vec((0..1u32 << 30, segments(4)), 0..4);
    let write = prop::collection::vec(segments(6), 0..5);
    (read, write, prop::option::of(segments(20))).prop_map(|(read, write, reply)| {
        let mut lists = ChunkLists::default();
        for (position, segments) in read {
            lists.read.push_chunk(position * 4, segments);
        }
        lists.write = write.into_iter().map(|c| c.into_iter().collect()).collect();
        lists.reply = reply.map(|c| c.into_iter().collect());
        lists
    })
}

fn headers() -> impl Strategy<Value = Header> {
    let body = prop_oneof![
        lists().prop_map(Body::Msg),
        lists().prop_filter("no list at all", |l| !l.is_empty()).prop_map(Body::Nomsg),
        Just(Body::Error(RdmaError::Chunk)),
        (any::<u32>(), any::<u32>()).prop_map(|(low, high)| Body::Error(RdmaError::Vers { low, high })),
    ];
    (any::<u32>(), any::<u32>(), body).prop_map(|(xid, credit, body)| header(xid, credit, body))
}

const GENEROUS: Limits = Limits {
    max_read_segments: 1000,
    max_read_bytes: u64::MAX,
    max_write_chunks: 1000,
    max_segments_per_chunk: 1000,
};

proptest! {
    #[test]
    fn headers_round_trip(h in headers(), tail in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut bytes = vec![0; h.encoded_len()];
        prop_assert_eq!(h.encode_into(&mut bytes), Some(bytes.len()));
        let len = bytes.len();
        bytes.extend(tail);
        prop_assert_eq!(Header::decode(&bytes, &GENEROUS), Ok((h, len)));
    }

    #[test]
    fn what_decodes_encodes_to_its_own_bytes(
        h in headers(), at in any::<prop::sample::Index>(), bit in 0..8, cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = vec![0; h.encoded_len()];
        prop_assert_eq!(h.encode_into(&mut bytes), Some(bytes.len()));
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok((h, len)) = Header::decode(&bytes, &GENEROUS) {
            let mut again = vec![0; len];
            prop_assert_eq!(h.encode_into(&mut again), Some(len));
            prop_assert_eq!(&again, &bytes[..len]);
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        start in 0..5u32, bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..300),
    ) {
        let mut message = hex("01020304 00000001 00000001");
        message.extend(start.to_be_bytes());
        message.extend(&bytes);
        for m in [&message[..], &bytes[..]] {
            match Header::open(m, &Limits::default()) {
                Ok((h, _)) => { let _ = h.read_chunks(); }
                Err(e) => { let _ = (e.answer(Role::Responder), format!("{e}")); }
            }
        }
    }

    #[test]
    fn a_filled_chunk_says_what_was_written(s in segments(8), share in 0.0..=1.0f64) {
        let chunk: WriteChunk = s.into_iter().collect();
        let bytes = (chunk.length() as f64 * share) as u64;
        let bytes = bytes.min(chunk.length());
        let returned = chunk.returned(bytes).unwrap();
        prop_assert_eq!(chunk.written(&returned), Ok(bytes));
        let filled: u64 = chunk.fill(bytes).unwrap().map(|s| u64::from(s.length)).sum();
        prop_assert_eq!(filled, bytes);
    }
}
