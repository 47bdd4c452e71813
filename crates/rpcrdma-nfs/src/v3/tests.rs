//! Byte vectors, round trips, truncation and budgets of the NFSv3 messages.

mod arbitrary;
mod listing;
mod vectors;

use alloc::vec::Vec;

use proptest::prelude::*;
use rpcrdma_proto::xdr::{Chunk, Decode, Encode, Hole, Reader, Writer, XdrError};

use super::args::{
    Args, CreateArgs, DirOp, LookupArgs, ReadArgs, SetAttrArgs, SymLinkArgs, WriteArgs, WriteHead,
};
use super::binding::{self, RPC_REPLY_HEADER};
use super::results::{ReadHead, ReadHeadResult, ReadLinkOk, ReadLinkResult, ReadOk, ReadResult, Results};
use super::types::*;
use super::{Data, Procedure, Status};

fn encoded(v: &impl Encode) -> Vec<u8> {
    let mut w = Writer::new();
    v.encode(&mut w);
    w.into_parts().0
}

/// Decodes all of `bytes`.
fn decoded<'a, T: Decode<'a>>(bytes: &'a [u8]) -> T {
    let mut r = Reader::new(bytes);
    let v = T::decode(&mut r).unwrap();
    assert_eq!(r.remaining(), 0);
    v
}

#[test]
fn data_left_apart_is_a_hole_that_a_chunk_fills() {
    let file = Handle::new(&[7; 32]).unwrap();
    let here = WriteArgs { file, offset: 9, stable: Stable::Unstable, data: Data::Here(b"hello") };
    let apart = WriteArgs { data: Data::Apart(5), ..here };
    let mut w = Writer::new();
    apart.encode(&mut w);
    let (bytes, hole) = w.into_parts();
    assert_eq!(hole, Some(Hole { at: 36 + 8 + 4 + 4 + 4, len: 5 }));
    assert_eq!(bytes, encoded(&here)[..bytes.len()]);
    let chunks = [Chunk { position: 56, data: b"hello" }];
    let mut r = Reader::with_chunks(&bytes, &chunks);
    assert_eq!(WriteArgs::decode(&mut r), Ok(here));
    assert_eq!(r.finish(), Ok(()));

    let mut r = Reader::new(&bytes);
    let head = WriteHead::decode(&mut r).unwrap();
    assert_eq!(head, WriteHead { file, offset: 9, stable: Stable::Unstable, len: 5 });
    assert_eq!((r.position(), r.remaining()), (56, 0));

    let at = DirOp { dir: file, name: b"name" };
    let here = SymLinkArgs { at, attributes: SetAttributes::default(), target: Data::Here(b"to/here") };
    let mut w = Writer::new();
    SymLinkArgs { target: Data::Apart(7), ..here }.encode(&mut w);
    let hole = w.hole().unwrap();
    let chunks = [Chunk { position: hole.at as u32, data: b"to/here\0" }];
    let mut r = Reader::with_chunks(w.as_slice(), &chunks);
    assert_eq!(SymLinkArgs::decode(&mut r), Ok(here));
}

/// A Long Call with a Read chunk beside it is what peers disagree about: whether pad follows the chunk. WRITE has the only
/// argument that we leave apart, and its message fits inline whoever calls.
#[test]
fn a_write_is_never_a_long_call() {
    use rpcrdma_proto::rpc::{CallHeader, Flavor, OpaqueAuth, Xid};
    use rpcrdma_proto::rpcrdma::{CallForm, CallShape, CallSize, ReplyRoom, SegmentCounts, Thresholds};

    let cred = OpaqueAuth { flavor: Flavor::SYS, body: &[0; 400] };
    let verf = OpaqueAuth { flavor: Flavor::NONE, body: &[] };
    let header = CallHeader { xid: Xid(1), prog: 100_003, vers: 3, proc: Proc::Write as u32, cred, verf };
    let file = Handle::new(&[7; 64]).unwrap();
    let args = WriteArgs { file, offset: 9, stable: Stable::FileSync, data: Data::Apart((1 << 20) - 3) };
    let bound = args.reply_bound();
    let mut w = Writer::new();
    header.encode(&mut w);
    args.encode(&mut w);
    let (message, hole) = w.into_parts();
    let call = CallSize { inline_len: message.len(), chunkable: hole };
    let room = ReplyRoom { max_inline: bound.inline, chunkable: bound.chunkable };
    // The least that both sides take without having agreed on anything.
    let least = Thresholds { call: 1024, reply: 1024 };
    let shape = CallShape::choose(&call, &room, &SegmentCounts::default(), least).unwrap();
    assert_eq!(shape.call, CallForm::Chunked);
}

#[test]
fn results_left_apart_decode_with_their_chunk_or_without_their_data() {
    let here = ReadResult::ok(ReadOk { attributes: None, eof: true, data: Data::Here(b"hello") });
    let apart = ReadResult::ok(ReadOk { attributes: None, eof: true, data: Data::Apart(5) });
    let mut w = Writer::new();
    apart.encode(&mut w);
    let (bytes, hole) = w.into_parts();
    assert_eq!(hole, Some(Hole { at: 20, len: 5 }));
    let chunks = [Chunk { position: 20, data: b"hello" }];
    assert_eq!(ReadResult::decode(&mut Reader::with_chunks(&bytes, &chunks)), Ok(here));
    let head: ReadHeadResult = decoded(&bytes);
    assert_eq!(head.0, Ok(ReadHead { attributes: None, len: 5, eof: true }));
    assert_eq!(encoded(&head), bytes);

    let here = ReadLinkResult::ok(ReadLinkOk { attributes: None, target: Data::Here(b"abc") });
    let mut w = Writer::new();
    ReadLinkResult::ok(ReadLinkOk { attributes: None, target: Data::Apart(3) }).encode(&mut w);
    let chunks = [Chunk { position: 12, data: b"abc" }];
    assert_eq!(ReadLinkResult::decode(&mut Reader::with_chunks(w.as_slice(), &chunks)), Ok(here));
}

#[test]
fn a_count_that_differs_from_the_data_is_refused() {
    let file = Handle::new(&[1]).unwrap();
    let mut write =
        encoded(&WriteArgs { file, offset: 0, stable: Stable::FileSync, data: Data::Here(b"hello") });
    write[19] = 4;
    let wrong = Err(XdrError::CountMismatch { count: 4, len: 5 });
    assert_eq!(WriteArgs::decode(&mut Reader::new(&write)).map(drop), wrong);
    assert_eq!(WriteHead::decode(&mut Reader::new(&write)).map(drop), wrong);
    let mut read =
        encoded(&ReadResult::ok(ReadOk { attributes: None, eof: false, data: Data::Here(b"hello") }));
    read[11] = 4;
    assert_eq!(ReadResult::decode(&mut Reader::new(&read)).map(drop), wrong);
    assert_eq!(ReadHeadResult::decode(&mut Reader::new(&read)).map(drop), wrong);
}

#[test]
fn limits_and_enumerations_are_enforced() {
    let mut w = Writer::new();
    w.opaque(&[0; 65]);
    assert_eq!(Handle::decode(&mut Reader::new(w.as_slice())), Err(XdrError::TooLong { len: 65, max: 64 }));
    assert_eq!(Handle::new(&[0; 65]), None);
    assert!(Handle::decode(&mut Reader::new(&[0; 4])).unwrap().is_empty());
    // A result's handle may not be empty, be it certain or optional.
    assert_eq!(Results::decode(Proc::Lookup, &mut Reader::new(&[0; 32])), Err(XdrError::Empty));
    let mut created = Writer::new();
    [0, 1, 0, 0, 0, 0].into_iter().for_each(|v| created.u32(v));
    assert_eq!(Results::decode(Proc::MkDir, &mut Reader::new(created.as_slice())), Err(XdrError::Empty));

    let three = [0, 0, 0, 3];
    assert_eq!(Stable::decode(&mut Reader::new(&three)), Err(XdrError::BadEnum(3)));
    assert_eq!(SetTime::decode(&mut Reader::new(&three)), Err(XdrError::BadEnum(3)));
    assert_eq!(CreateMode::decode(&mut Reader::new(&three)), Err(XdrError::BadEnum(3)));
    assert_eq!(FileType::decode(&mut Reader::new(&[0; 4])), Err(XdrError::BadEnum(0)));
    assert_eq!(FileType::decode(&mut Reader::new(&[0, 0, 0, 8])), Err(XdrError::BadEnum(8)));
    assert_eq!(NodeKind::decode(&mut Reader::new(&[0, 0, 0, 1])), Ok(NodeKind::Other(1)));

    let dir = Handle::new(&[1]).unwrap();
    for (len, fits) in [(PATH_MAX, true), (PATH_MAX + 1, false)] {
        let name = alloc::vec![b'n'; len];
        let bytes = encoded(&LookupArgs { what: DirOp { dir, name: &name } });
        assert_eq!(LookupArgs::decode(&mut Reader::new(&bytes)).is_ok(), fits, "{len}");
    }
}

#[test]
fn names_are_checked() {
    assert_eq!(check_name(b"a name\xff"), Ok(()));
    assert_eq!(check_name(&[b'x'; 255]), Ok(()));
    assert_eq!(check_name(&[b'x'; 256]), Err(Status::NAMETOOLONG));
    for bad in [&b""[..], b"a/b", b"/", b"a\0b"] {
        assert_eq!(check_name(bad), Err(Status::INVAL));
    }
}

#[test]
fn procedures_have_their_numbers() {
    for (n, p) in Proc::ALL.into_iter().enumerate() {
        assert_eq!((p as usize, Proc::from_u32(n as u32)), (n, Some(p)));
    }
    assert_eq!(Proc::from_u32(22), None);
    assert_eq!(LookupArgs::PROC, Proc::Lookup);
    assert_eq!(Proc::ReadDirPlus.name(), "READDIRPLUS");
}

#[test]
fn idempotence_depends_on_the_arguments_where_it_has_to() {
    let object = Handle::new(&[1]).unwrap();
    let set = SetAttrArgs { object, new: SetAttributes::default(), guard: None };
    assert!(set.idempotent());
    assert!(!SetAttrArgs { guard: Some(NfsTime::new(1, 2)), ..set }.idempotent());
    let at = DirOp { dir: object, name: b"x" };
    assert!(CreateArgs { at, how: CreateMode::Exclusive(CreateVerifier([0; 8])) }.idempotent());
    assert!(!CreateArgs { at, how: CreateMode::Guarded(SetAttributes::default()) }.idempotent());
    assert!(ReadArgs { file: object, offset: 0, count: 1 }.idempotent());
}

#[test]
fn success_cannot_be_sent_as_a_failure() {
    let r = Results::Read(ReadResult::fail(Status::OK, None));
    assert_eq!(r.status(), Status::SERVERFAULT);
    assert_eq!(encoded(&r)[..4], 10006u32.to_be_bytes());
}

#[test]
fn the_largest_results_are_as_large_as_their_bounds() {
    for proc in Proc::ALL {
        for r in arbitrary::largest(proc) {
            let len = RPC_REPLY_HEADER + encoded(&r).len();
            let bound = binding::fixed_bound(proc).inline;
            match r.status() {
                Status::OK => assert_eq!(len, bound, "{proc}"),
                _ => assert!(len <= bound, "{proc}"),
            }
        }
    }
    // A failure fits beside a small count, too.
    let failed = arbitrary::largest(Proc::ReadDir).into_iter().find(|r| !r.status().is_ok()).unwrap();
    assert!(RPC_REPLY_HEADER + encoded(&failed).len() <= binding::readdir_bound(0).inline);
}

proptest! {
    #[test]
    fn arguments_round_trip_and_no_prefix_of_them_decodes(args in arbitrary::args()) {
        args.with(|args| {
            let bytes = encoded(args);
            assert_eq!(bytes.len() % 4, 0);
            let mut r = Reader::new(&bytes);
            assert_eq!(Args::decode(args.proc(), &mut r).as_ref(), Ok(args));
            assert_eq!(r.remaining(), 0);
            for n in 0..bytes.len() {
                assert!(Args::decode(args.proc(), &mut Reader::new(&bytes[..n])).is_err(), "{n}");
            }
        });
    }

    #[test]
    fn results_round_trip_and_no_prefix_of_them_decodes(results in arbitrary::results()) {
        results.with(|results| {
            let bytes = encoded(results);
            assert_eq!(bytes.len() % 4, 0);
            let mut r = Reader::new(&bytes);
            assert_eq!(Results::decode(results.proc(), &mut r).as_ref(), Ok(results));
            assert_eq!(r.remaining(), 0);
            for n in 0..bytes.len() {
                assert!(Results::decode(results.proc(), &mut Reader::new(&bytes[..n])).is_err(), "{n}");
            }
        });
    }

    #[test]
    fn a_reply_is_never_larger_than_its_bound(args in arbitrary::args(), results in arbitrary::results()) {
        // Names in listings are bounded by the client's count, which only `DirWriter` knows.
        args.with(|args| results.with(|results| {
            let listing = matches!(results.proc(), Proc::ReadDir | Proc::ReadDirPlus);
            let data = match results {
                Results::Read(r) => r.0.map_or(0, |r| r.data.len()),
                Results::ReadLink(r) => r.0.map_or(0, |r| r.target.len()),
                _ => 0,
            };
            let bound = match results.proc() {
                Proc::Read => binding::read_bound(data),
                Proc::ReadLink => binding::readlink_bound(data),
                proc => binding::fixed_bound(proc),
            };
            assert!(listing || RPC_REPLY_HEADER + encoded(results).len() <= bound.whole());
            assert_eq!(binding::chunkable_result(args.proc()), args.reply_bound().chunkable.is_some());
        }));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        n in 0usize..22,
        bytes in prop::collection::vec(prop_oneof![4 => Just(0u8), 2 => 1u8..9, 1 => any::<u8>()], 0..300),
    ) {
        let proc = Proc::ALL[n];
        if let Ok(args) = Args::decode(proc, &mut Reader::new(&bytes)) {
            // Booleans, enumerations and lengths have one form only; pads may differ.
            let again = encoded(&args);
            prop_assert!(again.len() <= bytes.len());
            prop_assert_eq!(Args::decode(proc, &mut Reader::new(&again)), Ok(args));
        }
        if let Ok(results) = Results::decode(proc, &mut Reader::new(&bytes)) {
            let again = encoded(&results);
            prop_assert!(again.len() <= bytes.len());
            prop_assert_eq!(Results::decode(proc, &mut Reader::new(&again)), Ok(results));
        }
        let _ = WriteHead::decode(&mut Reader::new(&bytes));
        let _ = ReadHeadResult::decode(&mut Reader::new(&bytes));
    }
}
