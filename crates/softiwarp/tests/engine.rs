//! The engine alone: no socket, no clock, every byte under control.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    collections::VecDeque,
    io::ErrorKind,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use rpcrdma_fabric::{
    Access, Completion, Exposed, Lost, Op, QpLimits, Region, RemoteSegment, RemoteSegments, Stag, Work,
};
use softiwarp::{
    ddp::{Tagged, Untagged},
    engine::{Engine, Options, Slices, terminate_fpdu},
    mpa::{
        fpdu,
        setup::{Agreed, Role, Rtr},
    },
    rdmap::{ErrorCode, Opcode, ReadRequest, Terminate},
};

fn agreed(role: Role, crc: bool) -> Agreed {
    Agreed { role, crc, rtr: None, ird: 4, ord: 4 }
}

fn engine(role: Role, crc: bool, max_ulpdu: usize, recvs: &[usize]) -> Engine {
    let recvs = recvs.iter().map(|n| Region::alloc(*n)).collect();
    Engine::new(
        &agreed(role, crc),
        QpLimits::default(),
        Options { max_ulpdu, nudge: false, ..Options::default() },
        recvs,
    )
}

/// A passive engine with Receives of these lengths, with CRCs.
fn passive(recvs: &[usize]) -> Engine {
    engine(Role::Passive, true, 4096, recvs)
}

/// Gives `bytes` to the engine, at most `most` at a time. Bytes that a stopped engine does not take are dropped.
fn feed(engine: &mut Engine, mut bytes: &[u8], most: usize, done: &mut Vec<Completion>) {
    while !bytes.is_empty() && engine.failure().is_none() {
        let mut given = 0;
        for mut place in engine.input() {
            let n = place.len().min(most - given).min(bytes.len());
            place[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            given += n;
        }
        assert!(given > 0, "an engine that has not failed takes bytes");
        engine.received(given, done);
    }
}

/// Takes up to `most` bytes that the engine wants to send.
fn take(engine: &mut Engine, most: usize, now: Instant, done: &mut Vec<Completion>) -> Vec<u8> {
    engine.fill(done);
    let mut bytes = Vec::new();
    {
        let mut slices = Slices::new();
        engine.output(&mut slices);
        for slice in &slices {
            bytes.extend_from_slice(&slice[..slice.len().min(most - bytes.len())]);
        }
    }
    engine.wrote(bytes.len(), now, done);
    bytes
}

fn take_all(engine: &mut Engine, done: &mut Vec<Completion>) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let some = take(engine, usize::MAX, Instant::now(), done);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn fpdu(ulpdu: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    fpdu::encode(ulpdu, true, &mut out);
    out
}

fn untagged(header: Untagged, payload: &[u8]) -> Vec<u8> {
    let mut ulpdu = header.encode().to_vec();
    ulpdu.extend_from_slice(payload);
    ulpdu
}

fn tagged(opcode: Opcode, last: bool, stag: u32, to: u64, payload: &[u8]) -> Vec<u8> {
    let mut ulpdu = Tagged { last, rdmap: opcode.control(), stag, to }.encode().to_vec();
    ulpdu.extend_from_slice(payload);
    ulpdu
}

const SEND: Untagged =
    Untagged { last: true, rdmap: Opcode::SEND.control(), invalidate: 0, qn: 0, msn: 1, mo: 0 };
const REQUEST: Untagged = Untagged { rdmap: Opcode::READ_REQUEST.control(), qn: 1, ..SEND };

fn request(len: u32, stag: u32, to: u64) -> ReadRequest {
    ReadRequest { sink_stag: 0x77, sink_to: 0x1000, len, source_stag: stag, source_to: to }
}

/// What the engine answers to `ulpdus`, the last of which breaks a rule: the rule, and the bytes of the Terminate.
fn violation(engine: &mut Engine, ulpdus: &[Vec<u8>]) -> (ErrorCode, Vec<u8>) {
    let mut done = Vec::new();
    let last = ulpdus.len() - 1;
    for (i, ulpdu) in ulpdus.iter().enumerate() {
        assert!(engine.failure().is_none(), "ulpdu {} is in order", i.wrapping_sub(1));
        if i == last {
            done.clear();
        }
        feed(engine, &fpdu(ulpdu), usize::MAX, &mut done);
    }
    assert!(done.is_empty(), "nothing of it is delivered: {done:?}");
    let failure = engine.failure().unwrap().clone();
    assert!(matches!(failure.lost, Lost::PeerMisbehaved(_)), "{failure:?}");
    assert_eq!(take_all(engine, &mut done), [], "a stopped engine sends nothing");
    (failure.terminate.unwrap().error, engine.last_words())
}

/// The Terminate about `ulpdu`, as it should be.
fn about(code: ErrorCode, ulpdu: &[u8], with_request: bool) -> (ErrorCode, Vec<u8>) {
    let (layer, etype) = (code.layer, code.etype);
    let header_len = if ulpdu[0] & 0x80 != 0 { 14 } else { 18 };
    let mut payload = vec![(layer << 4) | etype, code.code, if with_request { 0xe0 } else { 0xc0 }, 0];
    payload.extend_from_slice(&(ulpdu.len() as u16).to_be_bytes());
    payload.extend_from_slice(&ulpdu[..header_len]);
    if with_request {
        payload.extend_from_slice(&ulpdu[header_len..header_len + 28]);
    }
    let header = Untagged { rdmap: Opcode::TERMINATE.control(), qn: 2, ..SEND };
    (code, fpdu(&untagged(header, &payload)))
}

fn bare(code: ErrorCode) -> (ErrorCode, Vec<u8>) {
    (code, terminate_fpdu(&Terminate::bare(code), true))
}

/// Checks that the last of `ulpdus` breaks the rule `code`.
fn breaks(code: ErrorCode, engine: &mut Engine, ulpdus: &[Vec<u8>]) {
    let last = ulpdus.last().unwrap();
    assert_eq!(violation(engine, ulpdus), about(code, last, false));
}

#[test]
fn a_send_without_a_receive() {
    // 64 messages are taken, the 65th is not; the Terminate is known to the byte.
    let mut engine = passive(&[100; 64]);
    let messages: Vec<_> = (1..=65).map(|msn| untagged(Untagged { msn, ..SEND }, &[0; 68])).collect();
    let (code, bytes) = violation(&mut engine, &messages);
    assert_eq!(code, ErrorCode::NO_BUFFER);
    let known = "002a4147000000000000000200000001000000001202c0000056\
        4143000000000000000000000041000000009c671822";
    let known: Vec<u8> =
        (0..known.len()).step_by(2).map(|i| u8::from_str_radix(&known[i..i + 2], 16).unwrap()).collect();
    assert_eq!(bytes, known);
}

#[test]
fn rules_for_untagged_segments() {
    let send = |header: Untagged, len: usize| untagged(header, &vec![1; len]);
    let first = send(Untagged { last: false, ..SEND }, 10);
    let second = Untagged { mo: 10, ..SEND };
    breaks(ErrorCode::MESSAGE_TOO_LONG, &mut passive(&[64]), &[send(SEND, 65)]);
    breaks(ErrorCode::MESSAGE_TOO_LONG, &mut passive(&[64]), &[first.clone(), send(second, 55)]);
    breaks(ErrorCode::UNTAGGED_MSN, &mut passive(&[64]), &[send(Untagged { msn: 2, ..SEND }, 1)]);
    breaks(ErrorCode::UNTAGGED_MSN, &mut passive(&[64]), &[send(Untagged { msn: 0, ..SEND }, 1)]);
    breaks(ErrorCode::UNTAGGED_MSN, &mut passive(&[64; 2]), &[send(SEND, 1), send(SEND, 1)]);
    breaks(ErrorCode::UNTAGGED_MO, &mut passive(&[64]), &[send(Untagged { mo: 1, ..SEND }, 1)]);
    breaks(ErrorCode::UNTAGGED_MO, &mut passive(&[64]), &[first.clone(), send(SEND, 1)]);
    let late = send(Untagged { mo: 11, ..SEND }, 1);
    breaks(ErrorCode::UNTAGGED_MO, &mut passive(&[64]), &[first.clone(), late]);
    breaks(ErrorCode::UNTAGGED_QUEUE, &mut passive(&[64]), &[send(Untagged { qn: 3, ..SEND }, 1)]);
    breaks(ErrorCode::UNTAGGED_QUEUE, &mut passive(&[64]), &[send(Untagged { qn: u32::MAX, ..SEND }, 1)]);
    breaks(ErrorCode::UNEXPECTED_OPCODE, &mut passive(&[64]), &[send(Untagged { qn: 1, ..SEND }, 1)]);
    breaks(ErrorCode::UNEXPECTED_OPCODE, &mut passive(&[64]), &[send(Untagged { qn: 0, ..REQUEST }, 28)]);
    // All segments of a message say the same.
    let other = Untagged { rdmap: Opcode::SEND_SOLICITED.control(), ..second };
    breaks(ErrorCode::UNEXPECTED_OPCODE, &mut passive(&[64]), &[first.clone(), send(other, 1)]);
    let other = Untagged { invalidate: 5, ..second };
    breaks(ErrorCode::UNEXPECTED_OPCODE, &mut passive(&[64]), &[first, send(other, 1)]);
    for opcode in [0, 2, 8, 9, 15] {
        let header = Untagged { rdmap: Opcode(opcode).control(), ..SEND };
        breaks(ErrorCode::UNEXPECTED_OPCODE, &mut passive(&[64]), &[send(header, 1)]);
    }
    for version in [0, 2, 3] {
        let header = Untagged { rdmap: (version << 6) | Opcode::SEND.0, ..SEND };
        breaks(ErrorCode::RDMAP_VERSION, &mut passive(&[64]), &[send(header, 1)]);
        let mut ulpdu = send(SEND, 1);
        ulpdu[0] = (ulpdu[0] & !3) | version;
        breaks(ErrorCode::UNTAGGED_VERSION, &mut passive(&[64]), &[ulpdu.clone()]);
        let mut ulpdu = tagged(Opcode::WRITE, true, 1, 0, &[1]);
        ulpdu[0] = (ulpdu[0] & !3) | version;
        breaks(ErrorCode::TAGGED_VERSION, &mut passive(&[64]), &[ulpdu.clone()]);
    }
    // Reserved bits are nobody's business.
    let mut engine = passive(&[64]);
    let mut ulpdu = send(SEND, 1);
    ulpdu[0] |= 0x3c;
    ulpdu[1] |= 0x30;
    let mut done = Vec::new();
    feed(&mut engine, &fpdu(&ulpdu), 1, &mut done);
    assert!(matches!(done[..], [Completion::Received { len: 1, .. }]));
}

#[test]
fn segments_too_short_for_their_header() {
    for control in [0x41, 0xc1] {
        let header = if control & 0x80 != 0 { 14 } else { 18 };
        for len in 0..header {
            let mut ulpdu = vec![control, 0x43];
            ulpdu.resize(header, 0);
            ulpdu.truncate(len);
            for most in [1, usize::MAX] {
                let mut engine = passive(&[64]);
                feed(&mut engine, &fpdu(&ulpdu), most, &mut Vec::new());
                let terminate = engine.failure().unwrap().terminate;
                assert_eq!(terminate, Some(Terminate::bare(ErrorCode::LENGTH)));
                assert_eq!(engine.last_words(), bare(ErrorCode::LENGTH).1);
            }
        }
    }
}

#[test]
fn rules_for_tagged_segments() {
    let with = |access| {
        let mut engine = passive(&[64]);
        let e = engine.expose(Region::alloc(200), 100, access).unwrap();
        (engine, e)
    };
    let breaks = |code, access, ulpdu: &dyn Fn(Exposed) -> Vec<u8>| {
        let (mut engine, e) = with(access);
        breaks(code, &mut engine, &[ulpdu(e)]);
    };
    let write = |stag: Stag, to, len| tagged(Opcode::WRITE, true, stag.0, to, &vec![1; len]);
    let (write_access, read_access) = (Access::RemoteWrite, Access::RemoteRead);
    breaks(ErrorCode::TAGGED_STAG, write_access, &|e| write(Stag(e.stag.0 ^ 0x100), e.offset, 1));
    breaks(ErrorCode::TAGGED_BOUNDS, write_access, &|e| write(e.stag, e.offset, 101));
    breaks(ErrorCode::TAGGED_BOUNDS, write_access, &|e| write(e.stag, e.offset + 100, 1));
    breaks(ErrorCode::TAGGED_BOUNDS, write_access, &|e| write(e.stag, 1 << 60, 1));
    breaks(ErrorCode::TAGGED_WRAP, write_access, &|e| write(e.stag, u64::MAX, 1));
    breaks(ErrorCode::ACCESS_RIGHTS, read_access, &|e| write(e.stag, e.offset, 1));
    for opcode in [1, 3, 4, 5, 6, 7, 8, 15] {
        breaks(ErrorCode::UNEXPECTED_OPCODE, write_access, &|e| {
            tagged(Opcode(opcode), true, e.stag.0, e.offset, &[1])
        });
    }
    breaks(ErrorCode::TAGGED_STAG, write_access, &|e| {
        tagged(Opcode::READ_RESPONSE, true, e.stag.0, e.offset, &[1])
    });
    // Nobody looks at the STag of nothing.
    let (mut engine, _) = with(write_access);
    feed(&mut engine, &fpdu(&write(Stag(1), u64::MAX, 0)), 3, &mut Vec::new());
    assert!(engine.failure().is_none());
    // What was exposed and is not any more.
    let (mut engine, e) = with(write_access);
    engine.invalidate(e.stag);
    let ulpdu = write(e.stag, e.offset, 1);
    assert_eq!(
        violation(&mut engine, std::slice::from_ref(&ulpdu)),
        about(ErrorCode::TAGGED_STAG, &ulpdu, false)
    );
}

#[test]
fn rules_for_read_requests() {
    let with = |access| {
        let mut engine = passive(&[64]);
        let e = engine.expose(Region::alloc(200), 100, access).unwrap();
        (engine, e)
    };
    let read = |r: ReadRequest| untagged(REQUEST, &r.encode());
    let breaks_with_request = |code, access, r: &dyn Fn(Exposed) -> ReadRequest| {
        let (mut engine, e) = with(access);
        let ulpdu = read(r(e));
        assert_eq!(violation(&mut engine, std::slice::from_ref(&ulpdu)), about(code, &ulpdu, true));
    };
    let (write_access, read_access) = (Access::RemoteWrite, Access::RemoteRead);
    breaks_with_request(ErrorCode::READ_STAG, read_access, &|e| request(1, e.stag.0 ^ 2, e.offset));
    breaks_with_request(ErrorCode::READ_BOUNDS, read_access, &|e| request(101, e.stag.0, e.offset));
    breaks_with_request(ErrorCode::READ_BOUNDS, read_access, &|e| request(1, e.stag.0, e.offset + 100));
    breaks_with_request(ErrorCode::READ_BOUNDS, read_access, &|e| request(u32::MAX, e.stag.0, e.offset));
    breaks_with_request(ErrorCode::READ_WRAP, read_access, &|e| request(2, e.stag.0, u64::MAX - 1));
    breaks_with_request(ErrorCode::ACCESS_RIGHTS, write_access, &|e| request(1, e.stag.0, e.offset));
    let (mut engine, e) = with(read_access);
    // Four may be open, and nothing has been answered.
    let five: Vec<_> = (1..=5)
        .map(|msn| untagged(Untagged { msn, ..REQUEST }, &request(1, e.stag.0, e.offset).encode()))
        .collect();
    let expected = about(ErrorCode::STREAM_CATASTROPHIC, five.last().unwrap(), true);
    assert_eq!(violation(&mut engine, &five), expected);

    let breaks = |code, ulpdu: Vec<u8>| breaks(code, &mut with(read_access).0, &[ulpdu]);
    let r = request(0, 0, 0).encode();
    breaks(ErrorCode::UNTAGGED_MSN, untagged(Untagged { msn: 2, ..REQUEST }, &r));
    breaks(ErrorCode::UNTAGGED_MO, untagged(Untagged { mo: 1, ..REQUEST }, &r));
    breaks(ErrorCode::MESSAGE_TOO_LONG, untagged(Untagged { last: false, ..REQUEST }, &r));
    breaks(ErrorCode::MESSAGE_TOO_LONG, untagged(REQUEST, &[0; 29]));
    breaks(ErrorCode::MESSAGE_TOO_LONG, untagged(REQUEST, &[0; 60_000]));
    let short = untagged(REQUEST, &r[..27]);
    assert_eq!(violation(&mut with(read_access).0, &[short]), bare(ErrorCode::LENGTH));
}

/// The Terminate about a Read Request for an unknown STag is known to the byte.
#[test]
fn a_read_of_nothing() {
    let asked = ReadRequest {
        sink_stag: 0xa01,
        sink_to: 0x10_0000,
        len: 4096,
        source_stag: 0x1403,
        source_to: 0x1a2b_3c50_0000_5000,
    };
    let (_, bytes) = violation(&mut passive(&[]), &[untagged(REQUEST, &asked.encode())]);
    let known = "00464147000000000000000200000001000000000100e000002e41410000000000000001000000010000000000000a01\
        000000000010000000001000000014031a2b3c5000005000b83ff11e";
    let known: Vec<u8> =
        (0..known.len()).step_by(2).map(|i| u8::from_str_radix(&known[i..i + 2], 16).unwrap()).collect();
    assert_eq!(bytes, known);
}

#[test]
fn rules_for_read_responses() {
    let ask = |lens: &[u32]| {
        let mut engine = engine(Role::Active, true, 4096, &[64]);
        let from: RemoteSegments =
            lens.iter().map(|len| RemoteSegment { stag: Stag(5), offset: 50, len: *len }).collect();
        let total: u32 = lens.iter().sum();
        engine.post(Work::Read { id: 9, buf: Region::alloc(total as usize), at: 0, from }).unwrap();
        let sent = take_all(&mut engine, &mut Vec::new());
        let first = ReadRequest::decode(&fpdu::decode(&sent).unwrap().ulpdu[18..]).unwrap();
        assert_eq!((first.len, first.source_stag, first.source_to), (lens[0], 5, 50));
        (engine, first)
    };
    let response = |last, stag, to, len: usize| tagged(Opcode::READ_RESPONSE, last, stag, to, &vec![3; len]);
    type Make<'a> = &'a dyn Fn(ReadRequest) -> Vec<u8>;
    let check = |code, lens: &[u32], ulpdus: &[Make<'_>]| {
        let (mut engine, r) = ask(lens);
        let ulpdus: Vec<_> = ulpdus.iter().map(|make| make(r)).collect();
        breaks(code, &mut engine, &ulpdus);
    };
    let (stag, bounds) = (ErrorCode::TAGGED_STAG, ErrorCode::TAGGED_BOUNDS);
    check(stag, &[10], &[&|r| response(true, r.sink_stag ^ 1, r.sink_to, 10)]);
    check(bounds, &[10], &[&|r| response(true, r.sink_stag, r.sink_to + 1, 10)]);
    check(bounds, &[10], &[&|r| response(true, r.sink_stag, r.sink_to, 11)]);
    check(bounds, &[10], &[&|r| response(false, r.sink_stag, r.sink_to, 10)]);
    check(bounds, &[10], &[&|r| response(true, r.sink_stag, r.sink_to, 9)]);
    check(bounds, &[10], &[&|r| response(true, r.sink_stag, r.sink_to, 0)]);
    let half: Make<'_> = &|r| response(false, r.sink_stag, r.sink_to, 5);
    check(bounds, &[10], &[half, &|r| response(true, r.sink_stag, r.sink_to, 5)]);
    check(bounds, &[10], &[half, &|r| response(true, r.sink_stag, r.sink_to + 5, 6)]);
    // The second answer before the first is complete.
    check(bounds, &[10, 10], &[half, &|r| response(true, r.sink_stag, r.sink_to + 10, 10)]);
    // The sink is for the responses only.
    check(ErrorCode::ACCESS_RIGHTS, &[10], &[&|r| tagged(Opcode::WRITE, true, r.sink_stag, r.sink_to, &[1])]);
    let (mut engine, r) = ask(&[10, 0, 3]);
    let mut done = Vec::new();
    for ulpdu in [
        response(false, r.sink_stag, r.sink_to, 5),
        response(true, r.sink_stag, r.sink_to + 5, 5),
        response(true, 0, 0, 0),
        response(true, r.sink_stag, r.sink_to + 10, 3),
    ] {
        assert!(done.is_empty());
        feed(&mut engine, &fpdu(&ulpdu), 7, &mut done);
    }
    assert!(matches!(&done[..], [Completion::Done { id: 9, op: Op::Read, buf }] if buf[..] == [3; 13]));
    // One answer too many.
    let extra = response(true, r.sink_stag, r.sink_to, 1);
    breaks(stag, &mut engine, &[extra]);
}

#[test]
fn rules_for_invalidation() {
    let of = |opcode: Opcode, stag: Stag| Untagged { rdmap: opcode.control(), invalidate: stag.0, ..SEND };
    let header = |stag| of(Opcode::SEND_INVALIDATE, stag);
    breaks(ErrorCode::CANNOT_INVALIDATE, &mut passive(&[64]), &[untagged(header(Stag(77)), &[1])]);
    for (opcode, most) in [(Opcode::SEND_INVALIDATE, 1), (Opcode::SEND_SOLICITED_INVALIDATE, usize::MAX)] {
        let mut engine = passive(&[64; 2]);
        let e = engine.expose(Region::alloc(10), 10, Access::RemoteWrite).unwrap();
        let mut done = Vec::new();
        feed(&mut engine, &fpdu(&untagged(of(opcode, e.stag), b"hello")), most, &mut done);
        let [
            Completion::Reclaimed { stag, buf: reclaimed },
            Completion::Received { buf, len: 5, invalidated: Some(invalidated) },
        ] = &done[..]
        else {
            panic!("{done:?}")
        };
        assert_eq!((*stag, *invalidated, reclaimed.len(), &buf[..5]), (e.stag, e.stag, 10, &b"hello"[..]));
        let again = untagged(Untagged { msn: 2, ..header(e.stag) }, &[]);
        breaks(ErrorCode::CANNOT_INVALIDATE, &mut engine, &[again]);
    }
    // A region that is being read cannot be closed by the one that reads it.
    let mut engine = passive(&[64]);
    let e = engine.expose(Region::alloc(10), 10, Access::RemoteRead).unwrap();
    let read = untagged(REQUEST, &request(10, e.stag.0, e.offset).encode());
    breaks(ErrorCode::CANNOT_INVALIDATE, &mut engine, &[read, untagged(header(e.stag), &[])]);
}

#[test]
fn damage_is_reported_as_damage() {
    let mut whole = passive(&[64]);
    let e = whole.expose(Region::alloc(64), 64, Access::RemoteWrite).unwrap();
    let samples = [
        untagged(SEND, &[1; 33]),
        tagged(Opcode::WRITE, true, e.stag.0, e.offset, &[1; 33]),
        untagged(REQUEST, &request(0, 0, 0).encode()),
    ];
    for ulpdu in &samples {
        let good = fpdu(ulpdu);
        for at in 2..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // Making a tagged segment of an untagged one, and the reverse, moves the fields.
                for most in [1, usize::MAX] {
                    let mut engine = passive(&[64]);
                    let mut done = Vec::new();
                    feed(&mut engine, &bad, most, &mut done);
                    assert!(done.is_empty());
                    let failure = engine.failure().unwrap();
                    assert_eq!(
                        failure.terminate,
                        Some(Terminate::bare(ErrorCode::CRC)),
                        "byte {at} bit {bit}"
                    );
                }
            }
        }
    }
    // Without CRCs nobody looks at the trailer.
    let mut engine = engine(Role::Passive, false, 4096, &[64]);
    let mut bytes = fpdu(&samples[0]);
    *bytes.last_mut().unwrap() ^= 1;
    let mut done = Vec::new();
    feed(&mut engine, &bytes, 5, &mut done);
    assert!(matches!(done[..], [Completion::Received { len: 33, .. }]));
}

#[test]
fn a_terminate_of_the_peers_is_understood() {
    for (bytes, text) in [
        ([0x12, 0x02, 0xc0, 0x00], "message without a posted Receive"),
        ([0x21, 0x02, 0x03, 0x00], "message without a posted Receive"),
        ([0x20, 0x06, 0x00, 0x00], "insufficient IRD"),
    ] {
        for extra in [0, 38, 1000] {
            let header = Untagged { rdmap: Opcode::TERMINATE.control(), qn: 2, ..SEND };
            let mut payload = bytes.to_vec();
            payload.resize(4 + extra, 0);
            let mut engine = passive(&[64]);
            let mut done = Vec::new();
            feed(&mut engine, &fpdu(&untagged(header, &payload)), 9, &mut done);
            let failure = engine.failure().unwrap();
            assert!(matches!(&failure.lost, Lost::Terminated(t) if t.contains(text)), "{failure:?}");
            assert_eq!(failure.terminate, None, "a Terminate is not answered");
            assert!(engine.last_words().is_empty());
            engine.flush(&mut done);
            assert!(matches!(done[..], [Completion::Flushed { op: Op::Recv, .. }]));
        }
    }
    let header = Untagged { rdmap: Opcode::TERMINATE.control(), qn: 2, ..SEND };
    let short = untagged(header, &[0x12, 2, 0]);
    assert_eq!(violation(&mut passive(&[]), &[short]), bare(ErrorCode::LENGTH));
}

#[test]
fn the_end_of_the_stream_is_orderly_only_between_fpdus() {
    let bytes = fpdu(&untagged(SEND, &[1; 50]));
    for cut in 0..=bytes.len() {
        let mut engine = passive(&[64]);
        feed(&mut engine, &bytes[..cut], usize::MAX, &mut Vec::new());
        engine.end_of_stream();
        let lost = &engine.failure().unwrap().lost;
        if cut == 0 || cut == bytes.len() {
            assert_eq!(lost, &Lost::PeerClosed);
        } else {
            assert_eq!(lost, &Lost::Io(ErrorKind::UnexpectedEof), "cut at {cut}");
        }
    }
}

#[test]
fn a_half_sent_fpdu_is_finished_before_the_terminate() {
    let mut engine = passive(&[64; 2]);
    let mut done = Vec::new();
    feed(&mut engine, &fpdu(&untagged(SEND, b"first")), usize::MAX, &mut done);
    for _ in 0..3 {
        engine.post(Work::Send { id: 1, buf: Region::alloc(2000), len: 2000, invalidate: None }).unwrap();
    }
    done.clear();
    let mut stream = take(&mut engine, 2500, Instant::now(), &mut done);
    feed(&mut engine, &fpdu(&untagged(Untagged { msn: 9, ..SEND }, &[])), usize::MAX, &mut done);
    stream.extend(engine.last_words());
    let mut opcodes = Vec::new();
    let mut rest = &stream[..];
    while let Some(fpdu) = fpdu::decode(rest) {
        assert!(fpdu.crc_matches);
        opcodes.push(Opcode::of(fpdu.ulpdu[1]));
        rest = &rest[fpdu.len..];
    }
    assert!(rest.is_empty());
    assert_eq!(opcodes, [Opcode::SEND, Opcode::SEND, Opcode::TERMINATE]);
    engine.flush(&mut done);
    let ends: Vec<_> = done.iter().map(|c| matches!(c, Completion::Flushed { op: Op::Send, .. })).collect();
    assert_eq!(ends, [false, true, true, false], "{done:?}");
}

#[test]
fn between_two_fpdus_the_terminate_follows_at_once() {
    let mut engine = passive(&[64]);
    let mut done = Vec::new();
    feed(&mut engine, &fpdu(&untagged(SEND, b"first")), usize::MAX, &mut done);
    for _ in 0..2 {
        engine.post(Work::Send { id: 1, buf: Region::alloc(2000), len: 2000, invalidate: None }).unwrap();
    }
    let first = take(&mut engine, fpdu::fpdu_len(2018), Instant::now(), &mut done);
    assert_eq!(fpdu::decode(&first).unwrap().len, first.len());
    feed(&mut engine, &fpdu(&untagged(Untagged { msn: 9, ..SEND }, &[])), usize::MAX, &mut done);
    assert_eq!(Opcode::of(engine.last_words()[3]), Opcode::TERMINATE);
}

#[test]
fn answers_to_reads_and_work_take_turns() {
    let mut engine = passive(&[]);
    let e = engine.expose(Region::alloc(9000), 9000, Access::RemoteRead).unwrap();
    let mut done = Vec::new();
    for msn in 1..=3 {
        engine.post(Work::Send { id: 1, buf: Region::alloc(9000), len: 9000, invalidate: None }).unwrap();
        let ask = request(9000, e.stag.0, e.offset).encode();
        feed(&mut engine, &fpdu(&untagged(Untagged { msn, ..REQUEST }, &ask)), usize::MAX, &mut done);
    }
    let stream = take_all(&mut engine, &mut done);
    let (mut rest, mut messages) = (&stream[..], Vec::new());
    while let Some(fpdu) = fpdu::decode(rest) {
        let last = fpdu.ulpdu[0] & 0x40 != 0;
        messages.extend(last.then(|| Opcode::of(fpdu.ulpdu[1])));
        rest = &rest[fpdu.len..];
    }
    assert_eq!(messages, [[Opcode::READ_RESPONSE, Opcode::SEND]; 3].concat());
}

#[test]
fn a_region_is_reclaimed_after_the_response_that_is_sent_from_it() {
    let mut engine = passive(&[]);
    let e = engine.expose(Region::from(&[7; 3000][..]), 3000, Access::RemoteRead).unwrap();
    let mut done = Vec::new();
    let read = untagged(REQUEST, &request(3000, e.stag.0, e.offset).encode());
    feed(&mut engine, &fpdu(&read), usize::MAX, &mut done);
    let mut stream = take(&mut engine, 1000, Instant::now(), &mut done);
    engine.invalidate(e.stag);
    engine.report_reclaimed(&mut done);
    assert!(done.is_empty(), "the region is still needed");
    // Asking again is too late.
    let again = untagged(Untagged { msn: 2, ..REQUEST }, &request(1, e.stag.0, e.offset).encode());
    stream.extend(take(&mut engine, usize::MAX, Instant::now(), &mut done));
    assert!(matches!(&done[..], [Completion::Reclaimed { stag, .. }] if *stag == e.stag));
    let sent = fpdu::decode(&stream).unwrap();
    assert!(sent.crc_matches && sent.ulpdu[14..] == [7; 3000]);
    done.clear();
    feed(&mut engine, &fpdu(&again), usize::MAX, &mut done);
    assert_eq!(engine.failure().unwrap().terminate.unwrap().error, ErrorCode::READ_STAG);
}

#[test]
fn a_region_closed_in_the_middle_of_a_write_is_not_touched_again() {
    let mut engine = passive(&[]);
    let e = engine.expose(Region::alloc(100), 100, Access::RemoteWrite).unwrap();
    let bytes = fpdu(&tagged(Opcode::WRITE, true, e.stag.0, e.offset, &[5; 100]));
    let mut done = Vec::new();
    feed(&mut engine, &bytes[..50], 10, &mut done);
    engine.invalidate(e.stag);
    engine.report_reclaimed(&mut done);
    let [Completion::Reclaimed { buf, .. }] = &done[..] else { panic!("{done:?}") };
    assert_eq!(buf.iter().filter(|b| **b == 5).count(), 50 - 16);
    feed(&mut engine, &bytes[50..], 10, &mut done);
    assert_eq!(engine.failure().unwrap().terminate.unwrap().error, ErrorCode::TAGGED_STAG);
}

#[test]
fn nudges_come_until_the_peer_is_heard() {
    let make = |nudge| {
        let options = Options { max_ulpdu: 4096, nudge, ..Options::default() };
        Engine::new(&agreed(Role::Active, true), QpLimits::default(), options, vec![Region::alloc(64)])
    };
    let send = || Work::Send { id: 1, buf: Region::alloc(4), len: 4, invalidate: None };
    let start = Instant::now();
    let ms = |n| start + Duration::from_millis(n);
    let mut done = Vec::new();

    let mut engine = make(true);
    assert_eq!(engine.next_timeout(), None);
    engine.post(send()).unwrap();
    assert!(!take(&mut engine, usize::MAX, start, &mut done).is_empty());
    for due in [5, 15, 35, 75, 115, 155] {
        assert_eq!(engine.next_timeout(), Some(ms(due)));
        engine.handle_timeout(ms(due) - Duration::from_micros(1));
        assert!(take(&mut engine, usize::MAX, ms(due), &mut done).is_empty());
        engine.handle_timeout(ms(due));
        let nudge = take(&mut engine, usize::MAX, ms(due), &mut done);
        assert_eq!(nudge, fpdu(&tagged(Opcode::WRITE, true, 1, 0, &[])));
    }
    assert_eq!(engine.next_timeout(), None, "they end");

    let mut engine = make(true);
    engine.post(send()).unwrap();
    take(&mut engine, usize::MAX, start, &mut done);
    feed(&mut engine, &fpdu(&untagged(SEND, &[])), usize::MAX, &mut done);
    assert_eq!(engine.next_timeout(), None, "the peer was heard");

    let mut engine = make(false);
    engine.post(send()).unwrap();
    take(&mut engine, usize::MAX, start, &mut done);
    assert_eq!(engine.next_timeout(), None, "not wanted");
}

#[test]
fn ready_to_receive_frames() {
    for (rtr, known) in [
        (Rtr::Write, Some("000ec140000000010000000000000000ebd34c5f")),
        (Rtr::Send, Some("0012414300000000000000000000000100000000587be8c4")),
        (Rtr::Read, None),
    ] {
        let make = |role| {
            let agreed = Agreed { rtr: Some(rtr), ..agreed(role, true) };
            Engine::new(&agreed, QpLimits::default(), Options::default(), vec![Region::alloc(64)])
        };
        let (mut active, mut passive) = (make(Role::Active), make(Role::Passive));
        let mut done = Vec::new();
        let frame = take_all(&mut active, &mut done);
        if let Some(known) = known {
            let text: String = frame.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(text, known);
        }
        let send = || Work::Send { id: 1, buf: Region::from(&b"hi"[..]), len: 2, invalidate: None };
        passive.post(send()).unwrap();
        assert!(take_all(&mut passive, &mut done).is_empty(), "not before the peer is ready");
        feed(&mut passive, &frame, 1, &mut done);
        assert!(done.is_empty(), "no Receive is spent");
        let answer = take_all(&mut passive, &mut done);
        assert!(matches!(done[..], [Completion::Done { id: 1, .. }]));
        done.clear();
        feed(&mut active, &answer, 1, &mut done);
        assert!(matches!(done[..], [Completion::Received { len: 2, .. }]), "{done:?}");
        done.clear();
        active.post(send()).unwrap();
        let more = take_all(&mut active, &mut Vec::new());
        feed(&mut passive, &more, 1, &mut done);
        assert!(matches!(done[..], [Completion::Received { len: 2, .. }]), "{done:?}");
    }
}

/// Gives `bytes` to the engine as a full socket would; counts the reads, and the bytes that went straight to the memory
/// they are meant for.
fn flood(engine: &mut Engine, mut bytes: &[u8], done: &mut Vec<Completion>) -> (usize, usize) {
    let (mut reads, mut direct) = (0, 0);
    while !bytes.is_empty() {
        let mut given = 0;
        for (i, mut place) in engine.input().into_iter().enumerate() {
            let n = place.len().min(bytes.len());
            place[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            given += n;
            direct += if i == 0 { n } else { 0 };
        }
        engine.received(given, done);
        reads += 1;
    }
    assert!(engine.failure().is_none(), "{:?}", engine.failure());
    (reads, direct)
}

#[test]
fn bulk_is_not_copied() {
    const LEN: usize = 1 << 20;
    let mut sender = engine(Role::Active, true, 64_768, &[]);
    let mut receiver = engine(Role::Passive, true, 64_768, &[64]);
    let e = receiver.expose(Region::alloc(LEN), LEN as u32, Access::RemoteWrite).unwrap();
    let mut done = Vec::new();
    for round in 0..3 {
        let to = [RemoteSegment { stag: e.stag, offset: e.offset, len: LEN as u32 }].into_iter().collect();
        sender.post(Work::Write { id: 1, buf: bytes_of(LEN, round), at: 0, to }).unwrap();
        let stream = take_all(&mut sender, &mut done);
        let (reads, direct) = flood(&mut receiver, &stream, &mut done);
        // Only what came with the header of the first FPDU was copied.
        let copied = LEN - direct;
        assert!(copied <= if round == 0 { 4096 } else { 256 }, "{copied} bytes copied");
        assert!(reads <= 20, "{reads} reads");
    }
}

#[test]
fn small_messages_come_in_batches() {
    const COUNT: usize = 1000;
    let mut sender = engine(Role::Active, true, 64_768, &[]);
    let mut receiver = engine(Role::Passive, true, 64_768, &[200; COUNT]);
    let mut done = Vec::new();
    for _ in 0..COUNT {
        sender.post(Work::Send { id: 1, buf: Region::alloc(100), len: 100, invalidate: None }).unwrap();
    }
    let stream = take_all(&mut sender, &mut done);
    done.clear();
    let (reads, _) = flood(&mut receiver, &stream, &mut done);
    assert_eq!(done.len(), COUNT);
    assert!(reads <= 8, "{reads} reads");
}

#[test]
fn what_is_posted_together_leaves_together() {
    let mut sender = engine(Role::Active, true, 64_768, &[]);
    let segment = RemoteSegment { stag: Stag(99), offset: 0, len: 100_000 };
    for _ in 0..4 {
        let (buf, to) = (Region::alloc(100_000), [segment].into_iter().collect());
        sender.post(Work::Write { id: 1, buf, at: 0, to }).unwrap();
        sender.post(Work::Send { id: 2, buf: Region::alloc(200), len: 200, invalidate: None }).unwrap();
    }
    let mut done = Vec::new();
    let all = take(&mut sender, usize::MAX, Instant::now(), &mut done);
    assert_eq!((done.len(), all.len() > 400_000), (8, true), "one vectored write for all of it");
    assert!(take_all(&mut sender, &mut done).is_empty());
}

#[test]
fn without_checksums_the_trailer_is_zero() {
    let mut sender = engine(Role::Active, false, 4096, &[]);
    sender.post(Work::Send { id: 1, buf: Region::from(&[0xff; 9][..]), len: 9, invalidate: None }).unwrap();
    let bytes = take_all(&mut sender, &mut Vec::new());
    // 2 + 18 + 9 bytes, three of padding, four of trailer.
    assert_eq!(bytes.len(), 36);
    assert_eq!(bytes[29..], [0; 7]);
}

/// A piece of work in a random test.
#[derive(Clone, Debug)]
enum Job {
    Send { len: usize, solicited_close: bool },
    Write { lens: Vec<u32> },
    Read { lens: Vec<u32> },
}

fn jobs() -> impl Strategy<Value = Vec<Job>> {
    let len = || prop_oneof![4 => 0_u32..200, 2 => 0_u32..3000, 1 => 15_000_u32..40_000];
    let lens = move || prop::collection::vec(len(), 1..4);
    let job = prop_oneof![
        (len(), any::<bool>())
            .prop_map(|(n, close)| Job::Send { len: n as usize % 5000, solicited_close: close }),
        lens().prop_map(|lens| Job::Write { lens }),
        lens().prop_map(|lens| Job::Read { lens }),
    ];
    prop::collection::vec(job, 1..12)
}

fn bytes_of(len: usize, seed: usize) -> Region {
    let mut region = Region::alloc(len);
    for (i, byte) in region.iter_mut().enumerate() {
        *byte = (i.wrapping_mul(7) ^ (i >> 8) ^ seed.wrapping_mul(101)) as u8;
    }
    region
}

/// One end of a random test: an engine, and what it is expected to do.
struct End {
    engine: Engine,
    done: Vec<Completion>,
    /// Bytes on the way to it.
    wire: VecDeque<u8>,
}

/// Runs `jobs` of `a` against `b`, and checks every byte with a model that has no engine: lists of what must arrive.
fn run(jobs_of: [&[Job]; 2], crc: bool, max_ulpdu: usize, chunks: &[usize]) {
    let mut ends = [Role::Active, Role::Passive].map(|role| End {
        engine: engine(role, crc, max_ulpdu, &[5000; 16]),
        done: Vec::new(),
        wire: VecDeque::new(),
    });
    let mut messages: [Vec<Vec<u8>>; 2] = Default::default();
    let mut works: [Vec<u64>; 2] = Default::default();
    let mut reads: [Vec<(u64, Vec<u8>)>; 2] = Default::default();
    let mut written: [Vec<(Stag, Vec<u8>)>; 2] = Default::default();
    for (me, jobs) in jobs_of.into_iter().enumerate() {
        let peer = 1 - me;
        for (i, job) in jobs.iter().enumerate() {
            let id = i as u64;
            let expose = |lens: &[u32], access, engine: &mut Engine| -> RemoteSegments {
                lens.iter()
                    .enumerate()
                    .map(|(k, len)| {
                        let region = bytes_of(*len as usize, 50 * i + k);
                        let e = engine.expose(region, *len, access).unwrap();
                        RemoteSegment { stag: e.stag, offset: e.offset, len: *len }
                    })
                    .collect()
            };
            let work = match job {
                Job::Send { len, solicited_close } => {
                    let buf = bytes_of(*len, i);
                    messages[peer].push(buf.to_vec());
                    works[me].push(id);
                    let invalidate = solicited_close.then(|| {
                        let e = ends[peer].engine.expose(Region::alloc(1), 1, Access::RemoteWrite).unwrap();
                        written[peer].push((e.stag, vec![0]));
                        e.stag
                    });
                    Work::Send { id, buf, len: *len, invalidate }
                }
                Job::Write { lens } => {
                    let to = expose(lens, Access::RemoteWrite, &mut ends[peer].engine);
                    let total: u32 = lens.iter().sum();
                    let buf = bytes_of(total as usize + 3, i + 9);
                    let mut at = 3;
                    for segment in &to {
                        let end = at + segment.len as usize;
                        written[peer].push((segment.stag, buf[at..end].to_vec()));
                        at = end;
                    }
                    works[me].push(id);
                    Work::Write { id, buf, at: 3, to }
                }
                Job::Read { lens } => {
                    let from = expose(lens, Access::RemoteRead, &mut ends[peer].engine);
                    let total: u32 = lens.iter().sum();
                    let expected: Vec<u8> = (0..lens.len())
                        .flat_map(|k| bytes_of(lens[k] as usize, 50 * i + k).to_vec())
                        .collect();
                    for (segment, k) in from.iter().zip(0..) {
                        written[peer].push((segment.stag, bytes_of(lens[k] as usize, 50 * i + k).to_vec()));
                    }
                    reads[me].push((id, expected));
                    Work::Read { id, buf: Region::alloc(total as usize), at: 0, from }
                }
            };
            ends[me].engine.post(work).unwrap();
        }
    }
    // The active side says something first, or the passive one never may.
    ends[0].engine.post(Work::Send { id: 1000, buf: Region::alloc(0), len: 0, invalidate: None }).unwrap();
    messages[1].push(Vec::new());
    works[0].push(1000);

    let now = Instant::now();
    let mut chunk = chunks.iter().cycle().copied();
    loop {
        let mut moved = false;
        for me in 0..2 {
            let End { engine, done, .. } = &mut ends[me];
            let bytes = take(engine, chunk.next().unwrap(), now, done);
            moved |= !bytes.is_empty();
            ends[1 - me].wire.extend(bytes);
            let End { engine, done, wire } = &mut ends[me];
            let n = wire.len().min(chunk.next().unwrap());
            let bytes: Vec<u8> = wire.drain(..n).collect();
            moved |= n > 0;
            feed(engine, &bytes, chunk.next().unwrap(), done);
            assert!(engine.failure().is_none(), "{:?}", engine.failure());
        }
        if !moved {
            break;
        }
    }
    for (me, End { mut engine, mut done, .. }) in ends.into_iter().enumerate() {
        assert!(engine.is_idle());
        engine.end_of_stream();
        assert_eq!(engine.failure().unwrap().lost, Lost::PeerClosed);
        engine.flush(&mut done);
        let (mut got_messages, mut got_works, mut got_reads) = (Vec::new(), Vec::new(), Vec::new());
        let mut got_regions = Vec::new();
        for completion in done {
            match completion {
                Completion::Received { buf, len, .. } => got_messages.push(buf[..len].to_vec()),
                Completion::Done { id, op: Op::Read, buf } => got_reads.push((id, buf.to_vec())),
                Completion::Done { id, .. } => got_works.push(id),
                Completion::Reclaimed { stag, buf } => got_regions.push((stag, buf.to_vec())),
                Completion::Flushed { op, .. } => assert_eq!(op, Op::Recv),
            }
        }
        got_regions.sort_by_key(|(stag, _)| *stag);
        written[me].sort_by_key(|(stag, _)| *stag);
        assert!(got_messages == messages[me]);
        assert_eq!(got_works, works[me]);
        assert!(got_reads == reads[me]);
        assert!(got_regions == written[me]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// However the byte streams are cut, everything arrives where the model says.
    #[test]
    fn any_split_gives_the_same(
        a in jobs(), b in jobs(), crc: bool,
        max_ulpdu in prop_oneof![Just(128_usize), 128_usize..2000, Just(65_535)],
        chunks in prop::collection::vec(prop_oneof![1_usize..40, 1_usize..2000, Just(1 << 20)], 1..40),
    ) {
        run([&a, &b], crc, max_ulpdu, &chunks);
    }

    /// Whatever comes, an engine neither panics nor reaches outside its memory, and it hands everything back once.
    #[test]
    fn any_bytes_at_all(
        start in prop::collection::vec(any::<u8>(), 0..60),
        length in 0_u16..200,
        control in prop::sample::select(vec![0xc1_u8, 0x41, 0x81, 0x01, 0x00]),
        opcode in 0x40_u8..0x4a,
        crc: bool,
        rest in prop::collection::vec(any::<u8>(), 0..300),
        most in 1_usize..64,
    ) {
        let mut engine = engine(Role::Passive, crc, 4096, &[64; 3]);
        for access in [Access::RemoteRead, Access::RemoteWrite] {
            engine.expose(Region::alloc(64), 64, access).unwrap();
        }
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([control, opcode]);
        bytes.extend(rest);
        bytes.extend(start);
        let mut done = Vec::new();
        feed(&mut engine, &bytes, most, &mut done);
        engine.fill(&mut done);
        engine.end_of_stream();
        let _ = engine.last_words();
        engine.flush(&mut done);
        prop_assert_eq!(done.len(), 5);
    }
}

#[test]
fn the_opcode_says_what_a_send_asks_for() {
    for (solicited, invalidate, control) in
        [(false, None, 0x43), (false, Some(7), 0x44), (true, None, 0x45), (true, Some(7), 0x46)]
    {
        let options = Options { nudge: false, solicited, ..Options::default() };
        let mut engine = Engine::new(&agreed(Role::Active, false), QpLimits::default(), options, Vec::new());
        let work = Work::Send { id: 1, buf: Region::alloc(4), len: 4, invalidate: invalidate.map(Stag) };
        engine.post(work).unwrap();
        let bytes = take_all(&mut engine, &mut Vec::new());
        // Behind the length and the DDP control octet.
        assert_eq!(bytes[3], control, "{solicited} {invalidate:?}");
    }
}
