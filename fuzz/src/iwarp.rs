//! MPA, DDP and RDMAP, and the engine that joins them.

use std::time::Instant;

use rpcrdma_fabric::{Access, Completion, Op, QpLimits, Region, RemoteSegment, Stag, Work};
use softiwarp::{
    ddp,
    engine::{Engine, Options, Slices},
    mpa::{
        fpdu,
        frame::{Enhanced, Frame, FrameReader},
        setup::{self, Agreed, Incoming, Local, Role, Rtr},
    },
    rdmap::{ReadRequest, Terminate},
};

/// The start-up frames, whole and byte by byte, and what is agreed with them.
pub(crate) fn mpa_frame(bytes: &[u8]) {
    let whole = Frame::decode(bytes);
    let mut reader = FrameReader::new();
    let (mut at, mut in_pieces) = (0, None);
    while in_pieces.is_none() && at < bytes.len() {
        let space = reader.space();
        let n = space.len().min(1 + at % 7).min(bytes.len() - at);
        assert!(n > 0, "an unfinished frame wants bytes");
        space[..n].copy_from_slice(&bytes[at..at + n]);
        at += n;
        match reader.filled(n) {
            Ok(None) => {}
            Ok(Some(frame)) => in_pieces = Some(Ok((frame, at))),
            Err(e) => in_pieces = Some(Err(e)),
        }
    }
    if let Some(in_pieces) = in_pieces {
        assert_eq!(in_pieces, whole);
    }
    let Ok((frame, len)) = whole else { return };
    // Bits without a meaning are not kept.
    let again = frame.encode();
    assert_eq!(Frame::decode(&again), Ok((frame.clone(), len)));

    for (crc, peer_to_peer, ird) in [(false, false, 0), (true, true, 16), (false, true, 5000)] {
        let local = Local { revision: 2, crc, peer_to_peer, ird, ord: ird };
        let request = setup::request(&local, b"private").expect("our own settings are sound");
        if let Ok((agreed, _)) = setup::conclude(&local, &frame) {
            assert!(agreed.crc || !crc, "what one side asks for is used");
        }
        match Incoming::new(frame.clone()) {
            Ok(incoming) => {
                let rejection = incoming.reject(&local, b"no").expect("short private data fits");
                assert!(rejection.rejected);
                if let Ok((reply, agreed)) = incoming.accept(&local, b"yes") {
                    assert!(!reply.rejected && agreed.ird <= ird.max(setup::MAX_IRD));
                    let _ = setup::conclude(&local, &reply);
                }
            }
            Err(refused) => drop(refused.reply.map(|reply| reply.encode())),
        }
        let (ours, _) = Frame::decode(&request.encode()).expect("our own Request decodes");
        assert_eq!(ours, request);
    }
    if let Some(enhanced) = Enhanced::decode(&frame.private_data) {
        assert_eq!(Enhanced::decode(&enhanced.encode()), Some(enhanced));
    }
}

/// The pieces that FPDUs are made of.
pub(crate) fn ddp_rdmap(bytes: &[u8]) {
    if let Some(found) = fpdu::decode(bytes) {
        assert_eq!(found.len % 4, 0);
        let mut again = Vec::new();
        fpdu::encode(found.ulpdu, true, &mut again);
        let again = fpdu::decode(&again).expect("what was encoded decodes");
        assert!(again.crc_matches && again.ulpdu == found.ulpdu);
        segment(found.ulpdu);
    }
    segment(bytes);
    if let Some(request) = ReadRequest::decode(bytes) {
        assert_eq!(ReadRequest::decode(&request.encode()), Some(request));
    }
    if let Some((terminate, _)) = Terminate::decode(bytes) {
        let mut out = Vec::new();
        terminate.encode(&mut out);
        let again = Terminate::decode(&out).expect("what was encoded decodes").0;
        if terminate.segment.is_some() {
            assert_eq!(again, terminate);
        }
        drop(terminate.to_string());
    }
}

fn segment(bytes: &[u8]) {
    let Ok(header) = ddp::Header::decode(bytes) else { return };
    let again = match header {
        ddp::Header::Tagged(h) => h.encode().to_vec(),
        ddp::Header::Untagged(h) => h.encode().to_vec(),
    };
    assert_eq!(again.len(), header.len());
    assert_eq!(ddp::Header::decode(&again), Ok(header));
}

/// Where a stream has an STag, these bytes and one more stand for one that the input cannot know: 0 to 3 for exposed
/// regions, 0x10 and up for the memory of our RDMA Reads.
pub(crate) const PLACEHOLDER: [u8; 3] = [0xee, 0xee, 0xee];
/// See [`PLACEHOLDER`].
pub(crate) const SINKS: u8 = 0x10;

/// Puts STags where the placeholders are, from the FPDU that begins at `from` on. What is not an STag's place stays as
/// it is, because STags differ from run to run.
pub(crate) fn substitute(stream: &mut [u8], from: usize, exposed: &[u32], sinks: &[u32]) {
    let mut at = from;
    while let Some(whole) = stream.get(at..).and_then(fpdu::decode) {
        let end = at + whole.len;
        // DDP's own field, and the source of an RDMA Read Request.
        let is_request = matches!(
            ddp::Header::decode(whole.ulpdu),
            Ok(ddp::Header::Untagged(h)) if h.qn == ddp::queue::READ_REQUEST
        );
        let ulpdu = at + fpdu::LENGTH_BYTES;
        for place in [Some(ulpdu + 2), is_request.then_some(ulpdu + 18 + 16)].into_iter().flatten() {
            let Some(field) = stream[..end].get_mut(place..place + 4) else { continue };
            if field[..3] == PLACEHOLDER {
                let stag = match field[3].checked_sub(SINKS) {
                    Some(n) => sinks.get(usize::from(n)),
                    None => exposed.get(usize::from(field[3])),
                };
                stag.inspect(|stag| field.copy_from_slice(&stag.to_be_bytes()));
            }
        }
        at = end;
    }
}

/// Corrects the checksums of a stream's FPDUs, as far as it has any.
fn sum(mut stream: &mut [u8]) {
    while let Some(len) = fpdu::decode(stream).map(|found| found.len) {
        let (whole, rest) = stream.split_at_mut(len);
        let (covered, trailer) = whole.split_at_mut(len - fpdu::CRC_BYTES);
        trailer.copy_from_slice(&softiwarp::mpa::crc::Crc32c::of(covered));
        stream = rest;
    }
}

/// Takes everything that an engine has to send.
pub(crate) fn drain(engine: &mut Engine, done: &mut Vec<Completion>) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        engine.fill(done);
        let mut slices = Slices::new();
        engine.output(&mut slices);
        let start = out.len();
        slices.iter().for_each(|slice| out.extend_from_slice(slice));
        drop(slices);
        if out.len() == start {
            return out;
        }
        engine.wrote(out.len() - start, Instant::now(), done);
    }
}

/// The STags of the memory that RDMA Read Requests in a stream of FPDUs ask for data in.
pub(crate) fn sinks(mut stream: &[u8]) -> Vec<u32> {
    let mut found = Vec::new();
    while let Some(whole) = fpdu::decode(stream) {
        if let Ok(ddp::Header::Untagged(h)) = ddp::Header::decode(whole.ulpdu)
            && h.qn == ddp::queue::READ_REQUEST
        {
            found
                .extend(whole.ulpdu.get(18..).and_then(ReadRequest::decode).map(|request| request.sink_stag));
        }
        stream = &stream[whole.len..];
    }
    found
}

/// Feeds bytes to an engine as one read would.
pub(crate) fn feed(engine: &mut Engine, bytes: &mut &[u8], most: usize, done: &mut Vec<Completion>) -> usize {
    let mut n = 0;
    for mut place in engine.input() {
        let k = place.len().min(bytes.len()).min(most - n);
        place[..k].copy_from_slice(&bytes[..k]);
        *bytes = &bytes[k..];
        n += k;
    }
    engine.received(n, done);
    n
}

/// What a user of an engine sees of a stream, without the STags, which differ from run to run.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Received { bytes: Vec<u8>, invalidated: bool },
    Done { id: u64, op: Op, bytes: Vec<u8> },
    Reclaimed,
    Flushed { id: u64, op: Op },
}

const RECVS: usize = 8;
const READS: usize = 2;
const EXPOSED: usize = 4;
/// Longest stream: it cannot hold more Read Requests than the engine is told to take.
const STREAM_MAX: usize = 64 * 1024;

/// Runs a stream through an engine in pieces of `step` bytes.
fn run(flags: u8, stream: &[u8], step: usize) -> (Vec<Seen>, Option<String>) {
    let rtr = [None, Some(Rtr::Write), Some(Rtr::Read), Some(Rtr::Send)][usize::from(flags >> 2 & 3)];
    let role = if flags & 1 != 0 { Role::Active } else { Role::Passive };
    let agreed = Agreed { role, crc: flags & 2 != 0, rtr, ird: 2048, ord: 4 };
    let limits = QpLimits { recvs: RECVS, sends: 16, exposed: EXPOSED, ..QpLimits::default() };
    let recvs = (0..RECVS).map(|_| Region::alloc(256)).collect();
    let mut engine =
        Engine::new(&agreed, limits, Options { max_ulpdu: 1024, nudge: false, ..Options::default() }, recvs);

    let mut done = Vec::new();
    let exposed: Vec<u32> = (0..EXPOSED)
        .map(|n| {
            let access = if n % 2 == 0 { Access::RemoteWrite } else { Access::RemoteRead };
            engine.expose(Region::alloc(512), 500, access).expect("there is room").stag.0
        })
        .collect();
    for id in 0..READS as u64 {
        let from = [RemoteSegment { stag: Stag(7), offset: 0, len: 64 }].into_iter().collect();
        engine.post(Work::Read { id, buf: Region::alloc(64), at: 0, from }).expect("there is room");
    }
    let mut stream = stream[..stream.len().min(STREAM_MAX)].to_vec();
    if flags & 0x20 != 0 {
        // The passive side sends nothing before it has heard something.
        let hello = ddp::Tagged { last: true, rdmap: 0x40, stag: 1, to: 0 };
        let mut greeting = Vec::new();
        fpdu::encode(&hello.encode(), true, &mut greeting);
        let mut greeting = &greeting[..];
        while !greeting.is_empty() && feed(&mut engine, &mut greeting, usize::MAX, &mut done) > 0 {}
    }
    let sinks = sinks(&drain(&mut engine, &mut done));
    substitute(&mut stream, 0, &exposed, &sinks);
    if flags & 0x10 != 0 {
        sum(&mut stream);
    }
    let mut rest = &stream[..];
    // Nothing is sent meanwhile, so that the outcome does not depend on when it would be.
    while !rest.is_empty() && engine.failure().is_none() {
        assert!(feed(&mut engine, &mut rest, step, &mut done) > 0, "a live engine takes bytes");
    }
    if flags & 0x40 != 0 {
        exposed.iter().for_each(|stag| engine.invalidate(Stag(*stag)));
    }
    drain(&mut engine, &mut done);
    engine.report_reclaimed(&mut done);
    engine.end_of_stream();
    let failure = engine.failure().map(|failure| failure.lost.to_string());
    let _ = engine.last_words();
    engine.flush(&mut done);
    assert_eq!(
        done.iter().filter(|c| !matches!(c, Completion::Done { op: Op::Write | Op::Send, .. })).count(),
        RECVS + READS + EXPOSED,
        "every region comes back once"
    );
    let seen = done
        .into_iter()
        .map(|completion| match completion {
            Completion::Received { buf, len, invalidated } => {
                Seen::Received { bytes: buf[..len].to_vec(), invalidated: invalidated.is_some() }
            }
            Completion::Done { id, op, buf } => Seen::Done { id, op, bytes: buf.to_vec() },
            Completion::Reclaimed { .. } => Seen::Reclaimed,
            Completion::Flushed { id, op, .. } => Seen::Flushed { id, op },
        })
        .collect();
    (seen, failure)
}

/// A stream of FPDUs means the same however it is cut, and every region that the engine was given comes back. The
/// first byte says how the connection was set up, the second how the stream is cut.
pub(crate) fn stream(bytes: &[u8]) {
    let Some((&[flags, cut], stream)) = bytes.split_first_chunk() else { return };
    let whole = run(flags, stream, usize::MAX);
    let pieces = run(flags, stream, usize::from(cut).max(1));
    assert_eq!(whole, pieces);
}
