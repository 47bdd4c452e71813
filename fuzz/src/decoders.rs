//! The decoders of RPC-over-RDMA, ONC RPC, rpcbind, NFSv3 and MOUNT.

use std::time::Duration;

use rpcrdma_nfs::{
    mount,
    v3::{self, Proc, args::Args, results::Results},
};
use rpcrdma_proto::{
    record::{Piece, RecordError, RecordReader},
    rpc::{self, AuthSys, Program, ReplyHeader, Xid},
    rpcbind::{Binding, List, Mapping, UniversalAddress, encode_list},
    rpcrdma::{
        Body, Header, Limits, Role, Segment,
        private_data::{PrivateData, Thresholds},
        requester::{CallChunks, ConnectionId, Received, Requester},
        responder::{Arrived, Responder},
    },
    xdr::{Chunk, Decode, Encode, Reader, Writer},
};

/// Decodes a value with `$decode`; if there is one, checks that it encodes to as many bytes as it was read from, and
/// that those decode to it again.
macro_rules! round_trip {
    ($bytes:expr, |$r:ident| $decode:expr) => {{
        let mut reader = Reader::new($bytes);
        let $r = &mut reader;
        if let Ok(value) = $decode {
            let mut w = Writer::new();
            value.encode(&mut w);
            assert_eq!(w.len(), reader.position(), "{value:?} takes as many bytes as it was read from");
            let mut again = Reader::new(w.as_slice());
            let $r = &mut again;
            assert_eq!($decode.as_ref(), Ok(&value));
            assert_eq!(again.remaining(), 0);
        }
    }};
}

/// RPC-over-RDMA headers, in both roles.
pub(crate) fn transport_header(bytes: &[u8]) {
    for limits in [Limits::default(), Limits::REPLY] {
        match Header::decode(bytes, &limits) {
            Ok((header, len)) => {
                assert!(len <= bytes.len());
                assert_eq!(header.encoded_len(), len, "{header:?}");
                let mut out = vec![0; len];
                assert_eq!(header.encode_into(&mut out), Some(len));
                assert_eq!(Header::decode(&out, &limits), Ok((header.clone(), len)));
                assert_eq!(header.encode_into(&mut out[..len - 1]), None, "one byte too few");
                if let Ok(chunks) = header.read_chunks() {
                    let bytes: u64 = chunks.items.iter().chain(&chunks.call).map(|c| c.length).sum();
                    assert!(bytes <= limits.max_read_bytes);
                }
                if let Some(lists) = header.body.lists() {
                    // What is returned unused is a legal answer to any offer, and so is the offer itself.
                    let unused = Header::new(header.xid, header.credit, Body::Msg(lists.unused()));
                    unused.placed(lists).expect("an answer that uses nothing is legal");
                    let _ = header.placed(lists);
                }
            }
            Err(e) => {
                for role in [Role::Requester, Role::Responder] {
                    let _ = e.answer(role).header(header_credit());
                }
            }
        }
    }
    let mut responder = Responder::new(4, 4096, true, Limits::default());
    for _ in 0..responder.receives_wanted() {
        responder.receive_posted();
    }
    match responder.receive(bytes) {
        Arrived::Call(held) => {
            let _ = held.check(bytes);
            let _ = responder.reply(held, 100, Some(10));
        }
        Arrived::Refused(refusal, _) => {
            responder.receive_posted();
            let _ = responder.refuse(refusal);
        }
        Arrived::Dropped(_) => {}
    }
}

fn header_credit() -> rpcrdma_proto::rpcrdma::Credits {
    rpcrdma_proto::rpcrdma::Credits(1)
}

/// RFC 8797 private data.
pub(crate) fn private_data(bytes: &[u8]) {
    if let Some(theirs) = PrivateData::parse(bytes) {
        assert_eq!(PrivateData::parse(&theirs.encode()), Some(theirs));
        let ours = PrivateData::new(4096, 4096, true);
        let agreed = Thresholds::agree(theirs, ours);
        for bytes in [agreed.call, agreed.reply] {
            assert!((1024..=262_144).contains(&bytes), "{agreed:?}");
        }
        assert_eq!(agreed.reversed().reversed(), agreed);
    }
}

/// What a client does with what a server sends: two Calls are outstanding, one with every kind of chunk.
pub(crate) fn requester(bytes: &[u8]) {
    let mut requester = Requester::new(ConnectionId(1), 8);
    for _ in 0..requester.receives_wanted() {
        requester.receive_posted();
    }
    let mut out = [0; 1024];
    for (key, xid) in [(0, 0x11), (1, 0x22)] {
        let Some(permit) = requester.permit() else { break };
        let memory = |handle, length| permit.registered(Segment { handle, length, offset: 0x1000 });
        let chunks = if key == 0 {
            CallChunks {
                result: Some(memory(1, 4096)),
                reply: Some(memory(2, 8192)),
                ..CallChunks::default()
            }
        } else {
            CallChunks::default()
        };
        permit.send(Xid(xid), key, chunks, Duration::ZERO, &mut out).expect("the Call is legal");
        if key == 0 {
            // The grant arrives with the first Reply; without one there is only one Call.
            let Some((&first, rest)) = bytes.split_first() else { return };
            if first & 1 == 0 {
                continue;
            }
            let invalidated = (first & 2 != 0).then_some(u32::from(first >> 4));
            let ended = requester.receive(rest, invalidated);
            check_ended(&ended, rest.len());
            return;
        }
    }
    let ended = requester.receive(bytes.get(1..).unwrap_or_default(), None);
    check_ended(&ended, bytes.len());
    assert!(requester.lost().len() <= 1, "one Call before the first grant");
}

fn check_ended(ended: &Received, len: usize) {
    if let Received::Reply { key, message, result } = ended {
        use rpcrdma_proto::rpcrdma::requester::ReplyMessage;
        assert_eq!(*key, 0);
        match message {
            ReplyMessage::Inline(at) => assert!(*at <= len),
            ReplyMessage::ReplyChunk(n) => assert!(*n <= 8192, "no more than was offered"),
        }
        assert!(result.is_none_or(|n| n <= 4096), "no more than was offered");
    }
}

/// Programs as a server has them.
const PROGRAMS: &[Program] = &[
    Program { number: v3::PROGRAM, versions: &[(v3::VERSION, 22)] },
    Program { number: mount::PROGRAM, versions: &[(mount::VERSION, 6)] },
];

/// A Call's header as a server reads it, and the answer to one that it refuses.
pub(crate) fn rpc_call(bytes: &[u8]) {
    let mut r = Reader::new(bytes);
    match rpc::receive(&mut r, PROGRAMS) {
        Ok(call) => {
            let mut w = Writer::new();
            call.header.encode(&mut w);
            assert_eq!(w.len(), call.header.encoded_len());
            let mut again = Reader::new(w.as_slice());
            assert_eq!(rpc::receive(&mut again, PROGRAMS), Ok(call));
        }
        Err(rpc::Refusal::Answer { xid, fault }) => {
            let mut w = Writer::new();
            fault.reply(xid, &mut w);
            let reply = ReplyHeader::decode(&mut Reader::new(w.as_slice())).expect("our own Reply decodes");
            assert_eq!((reply.xid, reply.status), (xid, Err(fault)));
        }
        Err(rpc::Refusal::Close { .. } | rpc::Refusal::NotACall { .. }) => {}
    }
    let _ = rpc::peek(bytes);
}

/// A Reply's header as a client reads it.
pub(crate) fn rpc_reply(bytes: &[u8]) {
    if let Ok(reply) = ReplyHeader::decode(&mut Reader::new(bytes)) {
        let mut w = Writer::new();
        match reply.status {
            Ok(()) => rpc::success(reply.xid, &mut w),
            Err(fault) => fault.reply(reply.xid, &mut w),
        }
        let again = ReplyHeader::decode(&mut Reader::new(w.as_slice())).expect("our own Reply decodes");
        assert_eq!((again.xid, again.status), (reply.xid, reply.status));
    }
}

/// Credentials.
pub(crate) fn auth_sys(bytes: &[u8]) {
    if let Ok(sys) = AuthSys::decode(bytes) {
        assert!(sys.groups.as_slice().len() <= 16);
        let mut w = Writer::new();
        sys.encode(&mut w);
        assert_eq!(AuthSys::decode(w.as_slice()), Ok(sys));
    }
}

/// A stream of records means the same however it is cut.
pub(crate) fn record_marking(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let whole = records(stream, stream.len().max(1));
    let pieces = records(stream, usize::from(cut).max(1));
    assert_eq!(whole, pieces);
}

/// The records of a stream that arrives in pieces of `step` bytes, and how it ends.
fn records(stream: &[u8], step: usize) -> (Vec<Vec<u8>>, Option<RecordError>) {
    const MAX: usize = 4096;
    let mut reader = RecordReader::new(MAX);
    let (mut done, mut open) = (Vec::new(), Vec::new());
    for mut input in stream.chunks(step) {
        loop {
            match reader.feed(input) {
                Ok((piece, used)) => {
                    input = &input[used..];
                    match piece {
                        Piece::More => break,
                        Piece::Part(bytes) => open.extend_from_slice(bytes),
                        Piece::End(bytes) => {
                            open.extend_from_slice(bytes);
                            assert!(open.len() <= MAX && open.len() >= 8 && open.len() % 4 == 0);
                            done.push(std::mem::take(&mut open));
                        }
                    }
                }
                Err(e) => return (done, Some(e)),
            }
        }
        assert!(input.is_empty(), "all input is consumed");
    }
    (done, None)
}

/// rpcbind's types.
pub(crate) fn rpcbind(bytes: &[u8]) {
    round_trip!(bytes, |r| Mapping::decode(r));
    round_trip!(bytes, |r| Binding::decode(r));
    let mappings: Result<Vec<Mapping>, _> = List::new(Reader::new(bytes)).collect();
    if let Ok(mappings) = mappings {
        let mut w = Writer::new();
        encode_list(mappings.iter().copied(), &mut w);
        let again: Result<Vec<Mapping>, _> = List::new(Reader::new(w.as_slice())).collect();
        assert_eq!(again, Ok(mappings));
    }
    for binding in List::<Binding<'_>>::new(Reader::new(bytes)) {
        if let Ok(binding) = binding {
            address(binding.addr);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        address(text);
    }
}

fn address(text: &str) {
    if let Ok(address) = text.parse::<UniversalAddress>() {
        assert_eq!(address.to_string().parse::<UniversalAddress>().as_ref(), Ok(&address));
    }
}

/// Arguments of all NFSv3 procedures; the first byte chooses the procedure. With its top bit set the bytes behind
/// half of the message are a Read chunk at the position that the second byte says.
pub(crate) fn nfs_args(bytes: &[u8]) {
    let Some((proc, body)) = procedure(bytes) else { return };
    round_trip!(body, |r| Args::decode(proc, r));
    if let Ok(args) = Args::decode(proc, &mut Reader::new(body)) {
        assert_eq!(args.proc(), proc);
        let bound = args.reply_bound();
        assert!(bound.whole() >= bound.inline);
        let _ = args.idempotent();
    }
    if bytes[0] & 0x80 != 0 && body.len() > 4 {
        let (message, data) = body[1..].split_at(body.len() / 2);
        let chunks = [Chunk { position: u32::from(body[0]) * 4, data }];
        let mut r = Reader::with_chunks(message, &chunks);
        if Args::decode(proc, &mut r).is_ok() {
            let _ = r.finish();
        }
    }
}

/// Results of all NFSv3 procedures; the first byte chooses the procedure.
pub(crate) fn nfs_results(bytes: &[u8]) {
    let Some((proc, body)) = procedure(bytes) else { return };
    round_trip!(body, |r| Results::decode(proc, r));
    if let Ok(results) = Results::decode(proc, &mut Reader::new(body)) {
        assert_eq!(results.proc(), proc);
        let _ = results.status();
        match results {
            Results::ReadDir(v3::Outcome(Ok(listing))) => drop(format!("{listing:?}")),
            Results::ReadDirPlus(v3::Outcome(Ok(listing))) => drop(format!("{listing:?}")),
            _ => {}
        }
    }
}

fn procedure(bytes: &[u8]) -> Option<(Proc, &[u8])> {
    let (&first, body) = bytes.split_first()?;
    Some((Proc::from_u32(u32::from(first & 0x7f) % Proc::ALL.len() as u32)?, body))
}

/// MOUNT's arguments and results.
pub(crate) fn mount(bytes: &[u8]) {
    round_trip!(bytes, |r| mount::DirPath::decode(r));
    if let Ok(result) = mount::MntResult::decode(&mut Reader::new(bytes)) {
        // Flavors beyond those that are kept are read over, so lengths may differ.
        let mut w = Writer::new();
        result.encode(&mut w);
        assert_eq!(mount::MntResult::decode(&mut Reader::new(w.as_slice())), Ok(result));
    }
    round_trip!(bytes, |r| mount::Exports::decode(r));
    round_trip!(bytes, |r| mount::Mounts::decode(r));
    if let Ok(exports) = mount::Exports::decode(&mut Reader::new(bytes)) {
        for item in exports {
            drop(format!("{:?}", item.groups));
        }
    }
}
