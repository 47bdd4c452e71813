//! Known frames, byte for byte, read and made.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use proptest::prelude::*;
use softiwarp::{
    ddp::{Header, HeaderError, RawHeader, Tagged, Untagged},
    mpa::{
        fpdu,
        frame::{Enhanced, FIXED_BYTES, Frame, FrameError, FrameReader, Kind},
        setup::{self, Agreed, Incoming, Local, MAX_IRD, Role, Rtr, SetupError},
    },
    rdmap::{BitOrder, ErrorCode, Opcode, ReadRequest, Terminate},
};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

const REV1_REQUEST: &str = "4d504120494420526571204672616d65 40010000";
const REV1_REPLY: &str = "4d504120494420526570204672616d65 40010000";
const SIW_REQUEST: &str = "4d504120494420526571204672616d65 1002000c 00800000 f6ab0e1801010303";
const REPLY_TO_SIW: &str = "4d504120494420526570204672616d65 5002000c 00000010 f6ab0e1801000303";
const P2P_REQUEST: &str = "4d504120494420526571204672616d65 5002000c 8010c001 f6ab0e1801010303";
const P2P_REPLY: &str = "4d504120494420526570204672616d65 5002000c 80018010 f6ab0e1801000303";
const REJECTION: &str = "4d504120494420526570204672616d65 70020004 00000000";

const CLIENT_DATA: [u8; 8] = [0xf6, 0xab, 0x0e, 0x18, 1, 1, 3, 3];
const SERVER_DATA: [u8; 8] = [0xf6, 0xab, 0x0e, 0x18, 1, 0, 3, 3];

const ALL_FRAMES: [&str; 7] =
    [REV1_REQUEST, REV1_REPLY, SIW_REQUEST, REPLY_TO_SIW, P2P_REQUEST, P2P_REPLY, REJECTION];

fn frame(text: &str) -> Frame {
    let bytes = hex(text);
    let (frame, len) = Frame::decode(&bytes).unwrap();
    assert_eq!(len, bytes.len());
    frame
}

fn local(ird: u32, ord: u32) -> Local {
    Local { revision: 2, crc: true, peer_to_peer: false, ird, ord }
}

#[test]
fn start_up_frames_make_the_round_trip() {
    for text in ALL_FRAMES {
        assert_eq!(frame(text).encode(), hex(text));
    }
}

#[test]
fn start_up_frames_cut_anywhere_are_incomplete() {
    for text in ALL_FRAMES {
        let bytes = hex(text);
        for cut in 0..bytes.len() {
            let need = if cut < FIXED_BYTES { FIXED_BYTES } else { bytes.len() };
            assert_eq!(Frame::decode(&bytes[..cut]), Err(FrameError::Truncated { need }));
        }
    }
}

#[test]
fn the_frame_reader_takes_no_byte_too_many() {
    for text in ALL_FRAMES {
        let bytes = hex(text);
        for step in 1..=bytes.len() {
            let mut reader = FrameReader::new();
            let mut at = 0;
            let frame = loop {
                let space = reader.space();
                assert!(!space.is_empty() && space.len() <= bytes.len() - at);
                let n = space.len().min(step);
                space[..n].copy_from_slice(&bytes[at..at + n]);
                at += n;
                if let Some(frame) = reader.filled(n).unwrap() {
                    break frame;
                }
            };
            assert_eq!((at, frame.encode()), (bytes.len(), bytes.clone()));
        }
    }
}

#[test]
fn what_is_no_start_up_frame_shows_at_once() {
    let mut bytes = hex(REV1_REQUEST);
    bytes[3] ^= 1;
    assert_eq!(Frame::decode(&bytes[..4]), Err(FrameError::NotMpa));
    assert!(FrameReader::new().filled(0).unwrap().is_none());
    let mut bytes = hex(REV1_REQUEST);
    bytes[18..20].copy_from_slice(&513_u16.to_be_bytes());
    assert_eq!(Frame::decode(&bytes), Err(FrameError::TooMuchPrivateData(513)));
    bytes[18..20].copy_from_slice(&512_u16.to_be_bytes());
    assert_eq!(Frame::decode(&bytes), Err(FrameError::Truncated { need: 532 }));
}

#[test]
fn what_we_ask_for() {
    let rev1 = Local { revision: 1, ..local(16, 16) };
    assert_eq!(setup::request(&rev1, &[]).unwrap().encode(), hex(REV1_REQUEST));
    let like_siw = Local { crc: false, ..local(128, 0) };
    assert_eq!(setup::request(&like_siw, &CLIENT_DATA).unwrap().encode(), hex(SIW_REQUEST));
    let p2p = Local { peer_to_peer: true, ..local(16, 1) };
    let ours = setup::request(&p2p, &CLIENT_DATA).unwrap();
    let theirs = Enhanced::decode(&frame(P2P_REQUEST).private_data).unwrap();
    assert_eq!(
        Enhanced::decode(&ours.private_data).unwrap(),
        Enhanced { rtr_send: true, ..theirs },
        "the known frame offers all but the Send"
    );
    assert!(matches!(setup::request(&p2p, &[0; 509]), Err(SetupError::PrivateDataTooLong(509))));
    assert!(setup::request(&p2p, &[0; 508]).is_ok());
    assert!(setup::request(&rev1, &[0; 512]).is_ok());
    assert!(matches!(setup::request(&rev1, &[0; 513]), Err(SetupError::PrivateDataTooLong(513))));
    let rev3 = Local { revision: 3, ..rev1 };
    assert!(matches!(setup::request(&rev3, &[]), Err(SetupError::Revision(3))));
}

#[test]
fn what_we_answer() {
    let answer = |request, local: Local, data: &[u8]| {
        let incoming = Incoming::new(frame(request)).unwrap();
        let (reply, agreed) = incoming.accept(&local, data).unwrap();
        (reply.encode(), agreed)
    };
    let (reply, agreed) = answer(REV1_REQUEST, local(4, 5), &[]);
    assert_eq!(reply, hex(REV1_REPLY));
    assert_eq!(agreed, Agreed { role: Role::Passive, crc: true, rtr: None, ird: 4, ord: 5 });

    let (reply, agreed) = answer(SIW_REQUEST, local(0, 16), &SERVER_DATA);
    assert_eq!(reply, hex(REPLY_TO_SIW));
    assert_eq!(agreed, Agreed { role: Role::Passive, crc: true, rtr: None, ird: 0, ord: 16 });
    assert_eq!(Incoming::new(frame(SIW_REQUEST)).unwrap().private_data(), CLIENT_DATA);

    let (reply, agreed) = answer(P2P_REQUEST, local(0, 128), &SERVER_DATA);
    assert_eq!(reply, hex(P2P_REPLY));
    assert_eq!(agreed, Agreed { role: Role::Passive, crc: true, rtr: Some(Rtr::Write), ird: 1, ord: 16 });

    let incoming = Incoming::new(frame(P2P_REQUEST)).unwrap();
    assert_eq!(incoming.reject(&local(0, 0), &[]).unwrap().encode(), hex(REJECTION));
    let no_crc = Local { crc: false, ..local(0, 16) };
    let (reply, agreed) = answer(SIW_REQUEST, no_crc, &SERVER_DATA);
    assert_eq!((reply[16], agreed.crc), (0x10, false), "nobody asked for CRCs");
}

#[test]
fn what_a_reply_agrees_on() {
    let (agreed, data) = setup::conclude(&local(128, 0), &frame(REPLY_TO_SIW)).unwrap();
    assert_eq!(agreed, Agreed { role: Role::Active, crc: true, rtr: None, ird: 128, ord: 0 });
    assert_eq!(data, SERVER_DATA);
    let p2p = Local { peer_to_peer: true, crc: false, ..local(2, 8) };
    let (agreed, data) = setup::conclude(&p2p, &frame(P2P_REPLY)).unwrap();
    // Our IRD rises to what the peer wants, our ORD falls to what it can.
    assert_eq!(agreed, Agreed { role: Role::Active, crc: true, rtr: Some(Rtr::Write), ird: 16, ord: 1 });
    assert_eq!(data, SERVER_DATA);
    let rev1 = Local { revision: 1, ..local(3, 4) };
    let (agreed, _) = setup::conclude(&rev1, &frame(REV1_REPLY)).unwrap();
    assert_eq!(agreed, Agreed { role: Role::Active, crc: true, rtr: None, ird: 3, ord: 4 });
}

#[test]
fn replies_that_make_no_connection() {
    let conclude = |change: &dyn Fn(&mut Frame)| {
        let mut reply = frame(P2P_REPLY);
        change(&mut reply);
        setup::conclude(&Local { peer_to_peer: true, ..local(16, 16) }, &reply)
    };
    assert!(conclude(&|_| ()).is_ok());
    assert_eq!(conclude(&|f| f.kind = Kind::Request), Err(SetupError::WrongKind));
    assert_eq!(conclude(&|f| f.markers = true), Err(SetupError::Markers));
    assert_eq!(conclude(&|f| f.revision = 1), Err(SetupError::Revision(1)));
    assert_eq!(conclude(&|f| f.revision = 3), Err(SetupError::Revision(3)));
    assert_eq!(conclude(&|f| f.enhanced = false), Err(SetupError::EnhancedMismatch));
    assert_eq!(conclude(&|f| f.private_data.truncate(3)), Err(SetupError::EnhancedMissing));
    assert_eq!(conclude(&|f| f.rejected = true), Err(SetupError::Rejected(SERVER_DATA.to_vec())));
    let enhanced = |change: &dyn Fn(&mut Enhanced)| {
        conclude(&|f| {
            let mut e = Enhanced::decode(&f.private_data).unwrap();
            change(&mut e);
            f.private_data[..4].copy_from_slice(&e.encode());
        })
    };
    assert_eq!(enhanced(&|e| e.ord = 1025), Err(SetupError::InsufficientIrd(1025)));
    assert_eq!(enhanced(&|e| e.ord = 1024).unwrap().0.ird, MAX_IRD);
    assert_eq!(enhanced(&|e| (e.ord, e.ird) = (0x3fff, 0x3fff)).unwrap().0.ird, 16);
    assert_eq!(enhanced(&|e| e.rtr_write = false), Err(SetupError::NoCommonRtr));
    let rtr = |change: &dyn Fn(&mut Enhanced)| enhanced(change).unwrap().0.rtr;
    assert_eq!(rtr(&|e| (e.rtr_write, e.rtr_read) = (false, true)), Some(Rtr::Read));
    assert_eq!(rtr(&|e| (e.rtr_write, e.rtr_send) = (false, true)), Some(Rtr::Send));
    assert_eq!(rtr(&|e| e.peer_to_peer = false), None);
    assert_eq!(conclude(&|f| *f = frame(REJECTION)), Err(SetupError::Rejected(Vec::new())));
    // Linux turns revision 2 without enhanced data down like this.
    let short = "4d504120494420526570204672616d65 20020000";
    assert_eq!(conclude(&|f| *f = frame(short)), Err(SetupError::Rejected(Vec::new())));
}

#[test]
fn requests_that_make_no_connection() {
    let refused = |change: &dyn Fn(&mut Frame)| {
        let mut request = frame(P2P_REQUEST);
        change(&mut request);
        let unacceptable = Incoming::new(request).unwrap_err();
        (unacceptable.why, unacceptable.reply.map(|reply| reply.encode()))
    };
    assert_eq!(refused(&|f| f.kind = Kind::Reply), (SetupError::WrongKind, None));
    assert_eq!(refused(&|f| f.revision = 0), (SetupError::Revision(0), None));
    assert_eq!(refused(&|f| f.revision = 3), (SetupError::Revision(3), None));
    assert_eq!(refused(&|f| f.markers = true), (SetupError::Markers, Some(hex(REJECTION))));
    assert_eq!(refused(&|f| f.private_data.truncate(3)), (SetupError::EnhancedMissing, Some(hex(REJECTION))));
    let rev1 = hex("4d504120494420526570204672616d65 60010000");
    assert_eq!(refused(&|f| f.revision = 1), (SetupError::EnhancedMismatch, Some(rev1.clone())));
    assert_eq!(
        refused(&|f| {
            *f = frame(REV1_REQUEST);
            f.markers = true;
        }),
        (SetupError::Markers, Some(rev1))
    );
    let mut nothing = frame(P2P_REQUEST);
    nothing.private_data[2..4].fill(0);
    let incoming = Incoming::new(nothing).unwrap();
    assert!(matches!(incoming.accept(&local(1, 1), &[]), Err(SetupError::NoCommonRtr)));
}

#[test]
fn ready_to_receive_frames_that_we_accept() {
    let choose = |rtr_write, rtr_read, rtr_send| {
        let mut request = frame(P2P_REQUEST);
        let mut e = Enhanced::decode(&request.private_data).unwrap();
        (e.rtr_write, e.rtr_read, e.rtr_send, e.ord) = (rtr_write, rtr_read, rtr_send, 0);
        request.private_data[..4].copy_from_slice(&e.encode());
        let (reply, agreed) = Incoming::new(request).unwrap().accept(&local(0, 0), &[]).unwrap();
        let e = Enhanced::decode(&reply.private_data).unwrap();
        assert!(e.peer_to_peer);
        assert_eq!(u8::from(e.rtr_write) + u8::from(e.rtr_read) + u8::from(e.rtr_send), 1);
        assert_eq!(u32::from(e.ird), agreed.ird);
        (agreed.rtr.unwrap(), agreed.ird)
    };
    assert_eq!(choose(true, true, true), (Rtr::Write, 0));
    assert_eq!(choose(false, true, true), (Rtr::Read, 1), "a Read needs a slot");
    assert_eq!(choose(false, false, true), (Rtr::Send, 0));
}

fn ulpdu(text: &str) -> Vec<u8> {
    let bytes = hex(text);
    let fpdu = fpdu::decode(&bytes).unwrap();
    assert!(fpdu.crc_matches);
    assert_eq!(fpdu.len, bytes.len());
    let mut again = Vec::new();
    fpdu::encode(fpdu.ulpdu, true, &mut again);
    assert_eq!(again, bytes);
    fpdu.ulpdu.to_vec()
}

/// Checks header and payload of a segment, both ways.
fn segment(text: &str, header: Header, payload: &str) {
    let bytes = ulpdu(text);
    assert_eq!(Header::decode(&bytes), Ok(header));
    assert_eq!(bytes[header.len()..], hex(payload));
    let encoded = match header {
        Header::Tagged(h) => h.encode().to_vec(),
        Header::Untagged(h) => h.encode().to_vec(),
    };
    assert_eq!(encoded, bytes[..header.len()]);
    assert_eq!(RawHeader::copy(&bytes).unwrap().bytes(), encoded);
    for cut in 0..header.len() {
        assert_eq!(Header::decode(&bytes[..cut]), Err(HeaderError::Short));
        assert_eq!(RawHeader::copy(&bytes[..cut]), None);
    }
}

fn untagged(opcode: Opcode, invalidate: u32, qn: u32, msn: u32) -> Header {
    Header::Untagged(Untagged { last: true, rdmap: opcode.control(), invalidate, qn, msn, mo: 0 })
}

fn tagged(last: bool, opcode: Opcode, stag: u32, to: u64) -> Header {
    Header::Tagged(Tagged { last, rdmap: opcode.control(), stag, to })
}

const READ_REQUEST: &str = "002e4141000000000000000100000001000000000000\
    0a01000000000010000000001000000014031a2b3c5000005000412e7c07";
const NO_RECEIVE: &str =
    "002a4147000000000000000200000001000000001202c00000564143000000000000000000000041000000009c671822";
const NO_RECEIVE_SIW: &str =
    "002a41470000000000000002000000010000000021020300005641430000000000000000000000410000000016984140";
const INSUFFICIENT_IRD: &str = "00164147000000000000000200000001000000002006 00006540fb1b";
const BAD_READ: &str = "00464147000000000000000200000001000000000100e000002e41410000000000000001000000010000000000000a01\
    0000000000100000000010000000\
    14031a2b3c5000005000b83ff11e";

#[test]
fn segments_of_every_kind() {
    let call = "1a2b3c4d000000010000008000000000000000000000000000000000\
        1a2b3c4d0000000000000002000186a3000000030000000000000000000000000000000000000000";
    segment(
        "00564143000000000000000000000001000000001a2b3c4d0000000100000080000000000000000000000000000000001a2b\
         3c4d0000000000000002000186a3000000030000000000000000000000000000000000000000b95b601c",
        untagged(Opcode::SEND, 0, 0, 1),
        call,
    );
    segment(
        "0016414400001103000000000000000200000000deadbeef1e2015d2",
        untagged(Opcode::SEND_INVALIDATE, 0x1103, 0, 2),
        "deadbeef",
    );
    segment(
        "0013c14000001103000000000020000068656c6c6f000000ce571f36",
        tagged(true, Opcode::WRITE, 0x1103, 0x20_0000),
        "68656c6c6f",
    );
    segment(
        "001e8140000011030000000000200000000102030405060708090a0b0c0d0e0fbb7d2675",
        tagged(false, Opcode::WRITE, 0x1103, 0x20_0000),
        "000102030405060708090a0b0c0d0e0f",
    );
    segment(
        "0011c14200000a0100000000001000006162630032542e13",
        tagged(true, Opcode::READ_RESPONSE, 0xa01, 0x10_0000),
        "616263",
    );
    segment("000ec140000000010000000000000000ebd34c5f", tagged(true, Opcode::WRITE, 1, 0), "");
    segment("0012414300000000000000000000000100000000587be8c4", untagged(Opcode::SEND, 0, 0, 1), "");
}

#[test]
fn read_requests() {
    let bytes = ulpdu(READ_REQUEST);
    assert_eq!(Header::decode(&bytes), Ok(untagged(Opcode::READ_REQUEST, 0, 1, 1)));
    let expected = ReadRequest {
        sink_stag: 0xa01,
        sink_to: 0x10_0000,
        len: 4096,
        source_stag: 0x1403,
        source_to: 0x1a2b_3c50_0000_5000,
    };
    assert_eq!(ReadRequest::decode(&bytes[18..]), Some(expected));
    assert_eq!(expected.encode(), bytes[18..]);
    for cut in 18..bytes.len() {
        assert_eq!(ReadRequest::decode(&bytes[18..cut]), None);
    }
    let rtr = ulpdu(
        "002e414100000000000000010000000100000000000000010000000000000000\
         00000000000000010000000000000000 27dbd7e7",
    );
    assert_eq!(
        ReadRequest::decode(&rtr[18..]),
        Some(ReadRequest { sink_stag: 1, sink_to: 0, len: 0, source_stag: 1, source_to: 0 })
    );
}

fn terminate(text: &str) -> (Terminate, BitOrder) {
    let bytes = ulpdu(text);
    assert_eq!(Header::decode(&bytes), Ok(untagged(Opcode::TERMINATE, 0, 2, 1)));
    let (terminate, order) = Terminate::decode(&bytes[18..]).unwrap();
    if order == BitOrder::Rfc {
        assert_eq!(softiwarp::engine::terminate_fpdu(&terminate, true), hex(text));
    }
    (terminate, order)
}

#[test]
fn terminates_in_both_bit_orders() {
    let (rfc, order) = terminate(NO_RECEIVE);
    assert_eq!((rfc.error, order), (ErrorCode::NO_BUFFER, BitOrder::Rfc));
    let (length, header) = rfc.segment.unwrap();
    assert_eq!(length, 86);
    assert_eq!(Header::decode(header.bytes()), Ok(untagged(Opcode::SEND, 0, 0, 65)));
    assert_eq!(rfc.read_request, None);

    let (siw, order) = terminate(NO_RECEIVE_SIW);
    assert_eq!((siw, order), (rfc, BitOrder::Mirrored));

    let (bare, order) = terminate(INSUFFICIENT_IRD);
    assert_eq!((bare, order), (Terminate::bare(ErrorCode::INSUFFICIENT_IRD), BitOrder::Rfc));

    let (read, order) = terminate(BAD_READ);
    assert_eq!((read.error, order), (ErrorCode::READ_STAG, BitOrder::Rfc));
    let request = ulpdu(READ_REQUEST);
    let (length, header) = read.segment.unwrap();
    assert_eq!((usize::from(length), header.bytes()), (request.len(), &request[..18]));
    assert_eq!(read.read_request, ReadRequest::decode(&request[18..]));
}

/// Control fields that a Linux peer was seen to send.
#[test]
fn terminates_as_linux_sends_them() {
    for (bytes, error, mirrored) in [
        ("02020000", ErrorCode::CRC, true),
        ("11000300", ErrorCode::TAGGED_STAG, true),
        ("10000700", ErrorCode::READ_STAG, true),
        ("21030300", ErrorCode::UNTAGGED_MSN, true),
        ("21010300", ErrorCode::UNTAGGED_QUEUE, true),
        ("20090300", ErrorCode::CANNOT_INVALIDATE_OPERATION, true),
        ("21060000", ErrorCode::UNTAGGED_VERSION, true),
        ("20060000", ErrorCode::INSUFFICIENT_IRD, false),
    ] {
        let (terminate, order) = Terminate::decode(&hex(bytes)).unwrap();
        assert_eq!((terminate.error, order == BitOrder::Mirrored), (error, mirrored), "{bytes}");
    }
}

#[test]
fn a_terminate_cut_short_says_what_is_left_of_it() {
    let whole = &ulpdu(BAD_READ)[18..];
    for cut in 0..whole.len() {
        match Terminate::decode(&whole[..cut]) {
            None => assert!(cut < 4),
            Some((t, order)) => {
                assert_eq!((t.error, order), (ErrorCode::READ_STAG, BitOrder::Rfc));
                assert_eq!(t.segment.is_some(), cut >= 4 + 2 + 18);
                assert_eq!(t.read_request, None);
            }
        }
    }
}

#[test]
fn a_wrong_version_shows_before_the_rest() {
    assert_eq!(Header::decode(&[0xc0, 0x40]), Err(HeaderError::Version { tagged: true, version: 0 }));
    assert_eq!(Header::decode(&[0x42, 0x43]), Err(HeaderError::Version { tagged: false, version: 2 }));
}

proptest! {
    #[test]
    fn headers_make_the_round_trip(
        last: bool, rdmap: u8, stag: u32, to: u64, qn: u32, msn: u32, mo: u32,
    ) {
        let tagged = Tagged { last, rdmap, stag, to };
        prop_assert_eq!(Header::decode(&tagged.encode()), Ok(Header::Tagged(tagged)));
        let untagged = Untagged { last, rdmap, invalidate: stag, qn, msn, mo };
        prop_assert_eq!(Header::decode(&untagged.encode()), Ok(Header::Untagged(untagged)));
    }

    #[test]
    fn terminates_make_the_round_trip(
        layer in 0_u8..3, etype in 0_u8..16, code: u8, header in prop::collection::vec(any::<u8>(), 18),
        length: u16, request: Option<(u32, u64, u32, u32, u64)>,
    ) {
        let read_request = request.map(|(sink_stag, sink_to, len, source_stag, source_to)| {
            ReadRequest { sink_stag, sink_to, len, source_stag, source_to }
        });
        let segment = Some((length, RawHeader::copy(&header).unwrap()));
        let terminate = Terminate { error: ErrorCode { layer, etype, code }, segment, read_request };
        let mut bytes = Vec::new();
        terminate.encode(&mut bytes);
        prop_assert_eq!(Terminate::decode(&bytes), Some((terminate, BitOrder::Rfc)));
    }

    #[test]
    fn no_bytes_are_too_strange_to_decode(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Frame::decode(&bytes);
        let _ = Header::decode(&bytes);
        let _ = Terminate::decode(&bytes);
        let _ = fpdu::decode(&bytes);
        let _ = Enhanced::decode(&bytes);
    }

    #[test]
    fn both_sides_agree(
        ird_a in 0_u32..2000, ord_a in 0_u32..2000, ird_b in 0_u32..2000, ord_b in 0_u32..2000,
        crc_a: bool, crc_b: bool, peer_to_peer: bool, old: bool,
    ) {
        let revision = if old { 1 } else { 2 };
        let a = Local { revision, crc: crc_a, peer_to_peer, ird: ird_a, ord: ord_a };
        let b = Local { revision: 2, crc: crc_b, peer_to_peer: false, ird: ird_b, ord: ord_b };
        let request = setup::request(&a, b"ask").unwrap();
        let incoming = Incoming::new(request).unwrap();
        prop_assert_eq!(incoming.private_data(), b"ask");
        let (reply, passive) = incoming.accept(&b, b"answer").unwrap();
        let (active, data) = setup::conclude(&a, &reply).unwrap();
        prop_assert_eq!(data, b"answer");
        prop_assert_eq!((active.crc, active.rtr), (passive.crc, passive.rtr));
        prop_assert_eq!(active.crc, crc_a || crc_b);
        prop_assert_eq!(active.rtr.is_some(), peer_to_peer && !old);
        if !old {
            // Nobody may open more Reads than the other holds.
            prop_assert!(active.ord <= passive.ird && passive.ord <= active.ird);
            prop_assert!(active.ord <= ord_a && passive.ord <= ord_b);
        }
    }
}
