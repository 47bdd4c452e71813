//! Our own server, which conforms, and scripted ones, of which each does one thing that it should not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{future::poll_fn, task::Poll};

use rpcrdma_fabric::{
    Answer, BoxQueuePair, Completion, Listener as _, QpLimits, Region, RemoteSegment, Shutdown, Stag, Start,
    Work,
};
use rpcrdma_nfs::v3::{Handle, Proc as NfsProc, Status};
use rpcrdma_proto::{
    rpc::{Fault, Xid, success},
    rpcrdma::{Body, ChunkLists, Header, Limits, PrivateData, RdmaError, Role, Segment, WriteChunk},
    xdr::{Reader, Writer},
};

use super::*;
use crate::{
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions, Squash},
    server::{RpcService, Server, ServerConfig},
};

fn options() -> Options {
    let mut options = Options::new(softiwarp::Config::default());
    options.identity = Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "test".to_owned() };
    options.limit = Duration::from_secs(30);
    options
}

fn listener() -> softiwarp::Listener {
    softiwarp::Listener::bind(([127, 0, 0, 1], 0).into(), softiwarp::Config::default()).unwrap()
}

fn ours() -> (Server, SocketAddr) {
    let mut exports = Exports::new();
    let memory = MemoryExport::new(HandleKey::random().unwrap(), MemoryOptions::default());
    let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
    exports.add("/mem", Arc::new(memory), rules).unwrap();
    let mut server = Server::new(Arc::new(RpcService::new(exports)), ServerConfig::default());
    let listener = listener();
    let at = listener.local_addr();
    server.listen_rdma(Box::new(listener));
    (server, at)
}

#[tokio::test]
async fn our_own_server_conforms() {
    let (server, at) = ours();
    let target: Target = format!("nfs://{at}/mem").parse().unwrap();
    let options = Options { path: true, write: true, hostile: true, ..options() };
    let mut told = 0;
    let report = run(&target, options, |_| told += 1).await.unwrap();
    let text: Vec<String> =
        report.findings.iter().map(|f| format!("{:24} {:10} {}", f.id, f.verdict, f.observed)).collect();
    let text = text.join("\n");
    assert_eq!(told, CHECKS.iter().map(|c| c.len()).sum::<usize>());
    // What it takes from clients that do not keep the rules themselves. How much of a flood it takes depends on how fast
    // it can post Receives.
    let generous = ["early-second-call", "zero-credits"];
    for finding in &report.findings {
        let good = match finding.verdict {
            Verdict::Conforms => !generous.contains(&finding.id),
            Verdict::Tolerated => generous.contains(&finding.id) || finding.id == "flood",
            Verdict::Deviates | Verdict::Skipped => false,
        };
        assert!(good, "{}\n{text}", finding.id);
    }
    assert!(report.transport.contains("iWARP"), "{}", report.transport);
    server.stop().await;
}

#[tokio::test]
async fn what_a_probe_lacks_is_skipped_with_the_reason() {
    let (server, at) = ours();
    let target: Target = format!("nfs://{at}").parse().unwrap();
    let report = run(&target, options(), |_| ()).await.unwrap();
    for finding in report.findings.iter().filter(|f| matches!(f.group, Group::Data | Group::Hostile)) {
        assert_eq!(finding.verdict, Verdict::Skipped, "{finding:?}");
        assert!(!finding.observed.is_empty());
    }
    assert_eq!(report.count(Verdict::Skipped), data::CHECKS.len() + hostile::CHECKS.len());
    server.stop().await;
}

#[tokio::test]
async fn nobody_there_is_an_error() {
    let at = listener().local_addr();
    let target: Target = format!("nfs://{at}").parse().unwrap();
    let error = run(&target, options(), |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[test]
fn checks_have_names_of_their_own() {
    let mut ids: Vec<&str> = CHECKS.into_iter().flatten().map(|c| c.id).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

/// What a scripted server does about a message.
enum Action {
    Send(Vec<u8>),
    /// Sends and has the tag invalidated.
    Invalidate(Vec<u8>, u32),
    /// Writes to the client's memory.
    Write(Vec<u8>, Vec<Segment>),
    Close,
}

use Action::{Close, Invalidate, Send, Write};

/// A server that does about every message what the script says.
fn odd(
    private_data: Vec<u8>,
    script: impl Fn(u64, &[u8]) -> Vec<Action> + std::marker::Send + Sync + 'static,
) -> SocketAddr {
    let mut listener = listener();
    let at = listener.local_addr();
    let script = Arc::new(script);
    tokio::spawn(async move {
        while let Ok(request) = poll_fn(|cx| listener.poll_accept(cx)).await {
            let (script, private_data) = (Arc::clone(&script), private_data.clone());
            tokio::spawn(async move {
                let recvs = (0..64).map(|_| Region::alloc(4096)).collect();
                let start = Start { private_data, recvs, limits: QpLimits::default() };
                if let Ok(qp) = request.accept(Box::new(|_| Answer::Accept(start))).await {
                    serve(qp, &*script).await;
                }
            });
        }
    });
    at
}

async fn serve(mut qp: BoxQueuePair, script: &(dyn Fn(u64, &[u8]) -> Vec<Action> + Sync)) {
    let (mut done, mut nth) = (Vec::new(), 0);
    poll_fn(|cx| {
        loop {
            let polled = qp.poll(cx, &mut done);
            for completion in done.drain(..) {
                let Completion::Received { buf, len, .. } = completion else { continue };
                let actions = script(nth, &buf[..len]);
                nth += 1;
                let _ = qp.post_recv(buf);
                for action in actions {
                    let send = |bytes: Vec<u8>, invalidate| Work::Send {
                        id: 0,
                        len: bytes.len(),
                        buf: Region::from(&bytes[..]),
                        invalidate,
                    };
                    let work = match action {
                        Close => {
                            qp.shutdown(Shutdown::Graceful);
                            break;
                        }
                        Send(bytes) => send(bytes, None),
                        Invalidate(bytes, stag) => send(bytes, Some(Stag(stag))),
                        Write(bytes, to) => {
                            let to = to.iter().map(|s| RemoteSegment {
                                stag: Stag(s.handle),
                                offset: s.offset,
                                len: s.length,
                            });
                            Work::Write { id: 0, buf: Region::from(&bytes[..]), at: 0, to: to.collect() }
                        }
                    };
                    let _ = qp.post(work);
                }
            }
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

fn usual_private_data() -> Vec<u8> {
    PrivateData::new(4096, 4096, false).encode().to_vec()
}

fn message(header: &Header, payload: &[u8]) -> Vec<u8> {
    wire::raw_message(header, payload)
}

/// The procedure of a Call in the RPC message behind a header.
fn proc_of(payload: &[u8]) -> u32 {
    Reader::new(payload.get(20..).unwrap_or_default()).u32().unwrap_or_default()
}

/// The results of everything but NULL: a bad handle. Header, lists and RPC message of the Reply.
fn draft(bytes: &[u8]) -> Option<(Header, Vec<u8>)> {
    let (header, payload) = Header::open(bytes, &Limits::default()).ok()?;
    header.read_chunks().ok()?;
    let Body::Msg(lists) = &header.body else { return None };
    let mut w = Writer::new();
    success(header.xid, &mut w);
    if proc_of(payload) != NfsProc::Null as u32 {
        w.u32(Status::BADHANDLE.0);
        w.u32(0);
        w.u32(0);
    }
    Some((Header::new(header.xid, Credits(16), Body::Msg(lists.unused())), w.into_parts().0))
}

/// Does as a server should that cannot do much: it has no files, and fetches nothing.
fn well(bytes: &[u8]) -> Vec<Action> {
    if let Some((header, payload)) = draft(bytes) {
        return vec![Send(message(&header, &payload))];
    }
    let checked = Header::open(bytes, &Limits::default()).and_then(|(h, _)| h.read_chunks().map(|_| h));
    let answer = match checked {
        Err(e) => e.answer(Role::Responder).header(Credits(16)),
        Ok(h) if matches!(h.body, Body::Nomsg(_)) => Some(Header::error_chunk(h.xid, Credits(16))),
        Ok(_) => None,
    };
    answer.iter().map(|h| Send(message(h, &[]))).collect()
}

fn xid_of(bytes: &[u8]) -> Xid {
    Xid(Reader::new(bytes).u32().unwrap_or_default())
}

fn error_chunk(bytes: &[u8]) -> Vec<Action> {
    vec![Send(message(&Header::error_chunk(xid_of(bytes), Credits(16)), &[]))]
}

/// The header of a Call, if it is one.
fn lists_of(bytes: &[u8]) -> ChunkLists {
    Header::decode(bytes, &Limits::default())
        .ok()
        .and_then(|(h, _)| h.body.lists().cloned())
        .unwrap_or_default()
}

/// Whether this is a plain NULL Call, which keeps a connection in good health.
fn is_plain_null(bytes: &[u8]) -> bool {
    bytes.len() == 68
        && bytes[..4] == bytes[28..32]
        && bytes[4..8] == [0, 0, 0, 1]
        && bytes[12..28] == [0; 16]
        && bytes[48..52] == [0; 4]
}

async fn probe_at(to: SocketAddr, limit: Duration) -> Probe {
    let data = (0..8000).map(|i| i as u8).collect();
    let file = File { handle: Handle::new(b"file").unwrap(), data, own: None };
    let options = Options { hostile: true, limit, ..options() };
    Probe { to, options, cred: credential(&Identity::current(), None), file: Ok(file) }
}

/// What one check says about a server.
async fn verdict(id: &str, to: SocketAddr) -> (Verdict, String) {
    let check = CHECKS.into_iter().flatten().find(|c| c.id == id).unwrap();
    let finding = probe_at(to, Duration::from_secs(30)).await.make(check).await;
    (finding.verdict, finding.observed)
}

/// Judges a server that does well, except that the script takes over for messages other than plain NULL Calls.
async fn odd_verdict(
    id: &str,
    script: impl Fn(&[u8]) -> Vec<Action> + std::marker::Send + Sync + 'static,
) -> (Verdict, String) {
    let at = odd(
        usual_private_data(),
        move |_, bytes| {
            if is_plain_null(bytes) { well(bytes) } else { script(bytes) }
        },
    );
    verdict(id, at).await
}

macro_rules! assert_verdict {
    ($judged:expr, $verdict:ident, $words:literal) => {
        let (verdict, observed) = $judged;
        assert_eq!(verdict, Verdict::$verdict, "{observed}");
        assert!(observed.contains($words), "{observed}");
    };
}

#[tokio::test]
async fn grants_that_break_the_rule_are_seen() {
    let granting = |grant: fn(u64) -> u32| {
        odd(usual_private_data(), move |nth, bytes| {
            let Some((header, payload)) = draft(bytes) else { return Vec::new() };
            vec![Send(message(&Header { credit: Credits(grant(nth)), ..header }, &payload))]
        })
    };
    assert_verdict!(verdict("first-grant", granting(|_| 0)).await, Deviates, "0 credits");
    assert_verdict!(verdict("first-grant", granting(|_| 7)).await, Conforms, "7");
    let now_and_then = granting(|nth| u32::from(nth % 5 != 4));
    assert_verdict!(verdict("later-grants", now_and_then).await, Deviates, "0 credits");
    assert_verdict!(verdict("later-grants", granting(|nth| 3 + nth as u32)).await, Conforms, "3 to 19");
    assert_verdict!(verdict("zero-credits", granting(|_| 0)).await, Deviates, "0 credits");
}

#[tokio::test]
async fn a_window_that_is_not_served_is_seen() {
    let at = odd(usual_private_data(), |nth, bytes| if nth < 5 { well(bytes) } else { vec![Close] });
    assert_verdict!(verdict("full-window", at).await, Deviates, "of 16 are answered");
    let strict = odd(usual_private_data(), |nth, bytes| if nth == 0 { well(bytes) } else { vec![Close] });
    assert_verdict!(verdict("early-second-call", strict).await, Conforms, "of 2 answered");
}

#[tokio::test]
async fn silence_is_seen() {
    let at =
        odd(usual_private_data(), |_, bytes| if is_plain_null(bytes) { well(bytes) } else { Vec::new() });
    let check = headers::CHECKS.iter().find(|c| c.id == "version-2").unwrap();
    // Here the wait is the test.
    let finding = probe_at(at, Duration::from_secs(3)).await.make(check).await;
    assert_verdict!((finding.verdict, finding.observed), Deviates, "nothing in 3 s");
    let mute = odd(usual_private_data(), |_, _| Vec::new());
    let check = chunks::CHECKS.iter().find(|c| c.id == "long-call").unwrap();
    let finding = probe_at(mute, Duration::from_secs(3)).await.make(check).await;
    assert_verdict!((finding.verdict, finding.observed), Skipped, "first NULL Call");
}

#[tokio::test]
async fn a_bad_version_answered_badly_is_seen() {
    let executing = |bytes: &[u8]| {
        let mut own = bytes.to_vec();
        own[7] = 1;
        well(&own)
    };
    assert_verdict!(odd_verdict("version-2", executing).await, Deviates, "an RPC Reply");
    assert_verdict!(odd_verdict("version-2", |_| vec![Close]).await, Deviates, "end of the connection");
    assert_verdict!(odd_verdict("version-2", error_chunk).await, Deviates, "ERR_CHUNK");
    let own_version = |bytes: &[u8]| {
        let header = Header { vers: 1, ..Header::error_vers(xid_of(bytes), 2, Credits(16)) };
        vec![Send(message(&header, &[]))]
    };
    assert_verdict!(odd_verdict("version-2", own_version).await, Deviates, "version 1 and not 2");
    let nonsense = |bytes: &[u8]| {
        let error = Body::Error(RdmaError::Vers { low: 2, high: 3 });
        let header = Header { xid: xid_of(bytes), vers: 2, credit: Credits(16), body: error };
        vec![Send(message(&header, &[]))]
    };
    assert_verdict!(odd_verdict("version-2", nonsense).await, Deviates, "versions 2 to 3");
    assert_verdict!(odd_verdict("version-2", well).await, Conforms, "ERR_VERS");
}

#[tokio::test]
async fn bad_headers_answered_badly_are_seen() {
    for check in &headers::CHECKS[1..8] {
        assert_verdict!(odd_verdict(check.id, well).await, Conforms, "ERR_CHUNK");
        let closed = odd_verdict(check.id, |_| vec![Close]).await;
        let expected = if check.id == "msgp" { Verdict::Tolerated } else { Verdict::Deviates };
        assert_eq!(closed.0, expected, "{}: {}", check.id, closed.1);
        let no_grant =
            |bytes: &[u8]| vec![Send(message(&Header::error_chunk(xid_of(bytes), Credits(0)), &[]))];
        assert_verdict!(odd_verdict(check.id, no_grant).await, Deviates, "0 credits");
    }
}

#[tokio::test]
async fn messages_that_are_to_be_dropped_and_are_not_are_seen() {
    for check in &headers::CHECKS[8..] {
        assert_verdict!(odd_verdict(check.id, |_| Vec::new()).await, Conforms, "no answer");
        assert_verdict!(odd_verdict(check.id, error_chunk).await, Deviates, "not passed over");
        assert_verdict!(odd_verdict(check.id, |_| vec![Close]).await, Deviates, "end of the connection");
    }
}

#[tokio::test]
async fn odd_private_data_is_seen() {
    let with = |data: &[u8]| odd(data.to_vec(), |_, bytes| well(bytes));
    assert_verdict!(verdict("private-data", with(&[])).await, Conforms, "1024 bytes each way");
    assert_verdict!(verdict("private-data", with(b"hello, client")).await, Tolerated, "13 bytes");
    let supporting = PrivateData::new(8192, 2048, true).encode();
    let (_, observed) = verdict("private-data", with(&supporting)).await;
    assert_eq!(observed, "sends up to 8192 bytes, takes 2048, supports remote invalidation");
    let refused = odd_verdict("threshold", |_| vec![Close]).await;
    assert_verdict!(refused, Deviates, "4096 bytes were answered by the end");
}

#[tokio::test]
async fn reply_chunks_handled_badly_are_seen() {
    let in_the_chunk = |claim: u32| {
        move |bytes: &[u8]| {
            let Some((header, payload)) = draft(bytes) else { return well(bytes) };
            let mut lists = lists_of(bytes);
            let offered: Vec<Segment> = lists.reply.iter().flatten().copied().collect();
            lists.reply = Some(offered.iter().map(|s| Segment { length: claim, ..*s }).collect());
            let fits = offered[0].length as usize >= payload.len();
            let to = offered.iter().map(|s| Segment { length: payload.len() as u32, ..*s }).collect();
            let send = Send(message(&Header { body: Body::Nomsg(lists), ..header }, &[]));
            if fits { vec![Write(payload, to), send] } else { vec![send] }
        }
    };
    assert_verdict!(odd_verdict("tiny-reply-chunk", in_the_chunk(24)).await, Deviates, "24 bytes");
    assert_verdict!(odd_verdict("tiny-reply-chunk", error_chunk).await, Tolerated, "ERR_CHUNK");
    assert_verdict!(odd_verdict("tiny-reply-chunk", |_| vec![Close]).await, Deviates, "end of");
    assert_verdict!(
        odd_verdict("reply-chunk-to-spare", in_the_chunk(24)).await,
        Conforms,
        "used all the same"
    );
    assert_verdict!(odd_verdict("reply-chunk-to-spare", in_the_chunk(4)).await, Deviates, "does not decode");
    let forgotten = |bytes: &[u8]| {
        let Some((header, payload)) = draft(bytes) else { return well(bytes) };
        vec![Send(message(&Header { body: Body::Msg(ChunkLists::default()), ..header }, &payload))]
    };
    assert_verdict!(odd_verdict("reply-chunk-to-spare", forgotten).await, Deviates, "not returned");
    assert_verdict!(odd_verdict("unused-write-chunk", forgotten).await, Deviates, "not returned");
    let as_offered = |bytes: &[u8]| {
        let Some((header, payload)) = draft(bytes) else { return well(bytes) };
        vec![Send(message(&Header { body: Body::Msg(lists_of(bytes)), ..header }, &payload))]
    };
    assert_verdict!(odd_verdict("reply-chunk-to-spare", as_offered).await, Deviates, "not 0");
    assert_verdict!(odd_verdict("unused-write-chunk", as_offered).await, Deviates, "comes back as");
    let invalidating = |bytes: &[u8]| {
        let Some((header, payload)) = draft(bytes) else { return well(bytes) };
        let stag = lists_of(bytes).reply.and_then(|c| c.first().copied()).unwrap().handle;
        vec![Invalidate(message(&header, &payload), stag)]
    };
    assert_verdict!(odd_verdict("invalidation-forbidden", invalidating).await, Deviates, "all the same");
    assert_verdict!(odd_verdict("invalidation-allowed", invalidating).await, Conforms, "is invalidated");
    assert_verdict!(odd_verdict("invalidation-allowed", well).await, Conforms, "no use of");
}

#[tokio::test]
async fn read_chunks_handled_badly_are_seen() {
    let garbage = |bytes: &[u8]| {
        let xid = xid_of(bytes);
        let mut w = Writer::new();
        Fault::GarbageArgs.reply(xid, &mut w);
        vec![Send(message(&Header::new(xid, Credits(16), Body::Msg(ChunkLists::default())), w.as_slice()))]
    };
    for id in ["read-chunk-unpadded", "read-chunk-padded", "read-chunk-pad-apart"] {
        assert_verdict!(odd_verdict(id, well).await, Conforms, "fetched");
        assert_verdict!(odd_verdict(id, garbage).await, Deviates, "arguments");
        assert_verdict!(odd_verdict(id, error_chunk).await, Deviates, "ERR_CHUNK");
    }
    for id in ["read-chunk-too-long", "read-chunk-too-short"] {
        assert_verdict!(odd_verdict(id, well).await, Tolerated, "not noticed");
        assert_verdict!(odd_verdict(id, garbage).await, Conforms, "GARBAGE_ARGS");
        assert_verdict!(odd_verdict(id, error_chunk).await, Tolerated, "ERR_CHUNK");
        assert_verdict!(odd_verdict(id, |_| vec![Close]).await, Deviates, "end of the connection");
    }
    for id in ["long-call", "long-call-in-pieces", "long-call-with-item"] {
        assert_verdict!(odd_verdict(id, garbage).await, Deviates, "arguments");
        assert_verdict!(odd_verdict(id, error_chunk).await, Deviates, "ERR_CHUNK");
    }
    assert_verdict!(odd_verdict("foreign-memory", well).await, Tolerated, "a new connection is served");
    assert_verdict!(
        odd_verdict("huge-read-chunk", error_chunk).await,
        Conforms,
        "a new connection is served"
    );
}

/// A READ's Reply: what its Write chunk comes back as, what its results say, and what is inline.
fn read_reply(bytes: &[u8], body: Body, count: u32, inline: &[u8]) -> Action {
    let xid = xid_of(bytes);
    let mut w = Writer::new();
    success(xid, &mut w);
    for word in [0, 0, count, 0, count] {
        w.u32(word);
    }
    w.fixed(inline);
    Send(message(&Header::new(xid, Credits(16), body), w.as_slice()))
}

/// The Write list of a Call with other lengths.
fn returned(bytes: &[u8], lengths: &[u32]) -> (Vec<Segment>, Body) {
    let offered: Vec<Segment> = lists_of(bytes).write.iter().flatten().copied().collect();
    let chunk: WriteChunk =
        offered.iter().zip(lengths).map(|(s, length)| Segment { length: *length, ..*s }).collect();
    let to = chunk.iter().copied().filter(|s| s.length > 0).collect();
    let lists = ChunkLists { write: [chunk].into_iter().collect(), ..ChunkLists::default() };
    (to, Body::Msg(lists))
}

#[tokio::test]
async fn data_put_in_the_wrong_place_is_seen() {
    let data: Vec<u8> = (0..8000).map(|i| i as u8).collect();
    // What is written to each segment, what the lengths say, what is inline.
    let placing = |written: &'static [u32], said: &'static [u32], inline: usize| {
        let data = data.clone();
        move |bytes: &[u8]| {
            let len = written.iter().sum::<u32>() as usize;
            let (to, _) = returned(bytes, written);
            let (_, body) = returned(bytes, said);
            let reply = read_reply(bytes, body, 1021, &data[..inline]);
            if len == 0 { vec![reply] } else { vec![Write(data[..len].to_vec(), to), reply] }
        }
    };
    type Case = (&'static [u32], &'static [u32], usize, Verdict, &'static str);
    let cases: [Case; 7] = [
        (&[500, 521], &[500, 521], 0, Verdict::Conforms, "without pad"),
        (&[500, 524], &[500, 521], 0, Verdict::Deviates, "bytes behind it were written"),
        (&[500, 524], &[500, 524], 0, Verdict::Deviates, "count the XDR pad"),
        (&[0, 0], &[0, 0], 1021, Verdict::Deviates, "inline although"),
        (&[400, 521], &[400, 521], 0, Verdict::Deviates, "not 500 and 521"),
        (&[500, 521], &[500, 521], 8, Verdict::Deviates, "follow inline"),
        (&[500, 0], &[500, 521], 0, Verdict::Deviates, "not what the file holds"),
    ];
    for (written, said, inline, verdict, words) in cases {
        let (is, observed) = odd_verdict("read-to-chunk", placing(written, said, inline)).await;
        assert_eq!(is, verdict, "{written:?} {said:?} {inline}: {observed}");
        assert!(observed.contains(words), "{observed}");
    }
}

#[tokio::test]
async fn what_happens_without_room_is_judged() {
    let small = |count: u32, said: u32, inline: usize| {
        move |bytes: &[u8]| {
            let (_, body) = returned(bytes, &[said]);
            vec![read_reply(bytes, body, count, &vec![0; inline])]
        }
    };
    let id = "write-chunk-too-small";
    assert_verdict!(odd_verdict(id, small(1000, 1000, 0)).await, Deviates, "in a chunk of 100");
    assert_verdict!(odd_verdict(id, small(1000, 0, 1000)).await, Deviates, "past the chunk");
    assert_verdict!(odd_verdict(id, small(1000, 100, 0)).await, Deviates, "that are not");
    assert_verdict!(
        odd_verdict(id, small(100, 100, 0)).await,
        Conforms,
        "shorter READ: 100 bytes in the chunk"
    );
    assert_verdict!(odd_verdict(id, error_chunk).await, Conforms, "the connection goes on");
    assert_verdict!(odd_verdict(id, |_| vec![Close]).await, Deviates, "end of the connection");
    let fault = |bytes: &[u8]| {
        let xid = xid_of(bytes);
        let mut w = Writer::new();
        Fault::SystemErr.reply(xid, &mut w);
        vec![Send(message(&Header::new(xid, Credits(16), Body::Msg(lists_of(bytes).unused())), w.as_slice()))]
    };
    assert_verdict!(odd_verdict(id, fault).await, Tolerated, "could not execute");
    let beyond = |bytes: &[u8]| vec![read_reply(bytes, Body::Msg(ChunkLists::default()), 5003, &[0; 5003])];
    // Longer than our Receives, which ends the connection.
    assert_verdict!(odd_verdict("no-room", beyond).await, Deviates, "end of the connection");
    let empty = |bytes: &[u8]| {
        let data: Vec<u8> = (0..100).collect();
        vec![read_reply(bytes, Body::Msg(lists_of(bytes).unused()), 100, &data)]
    };
    assert_verdict!(odd_verdict("read-to-empty-chunk", empty).await, Conforms, "returned empty");
    let dropped = |bytes: &[u8]| {
        let data: Vec<u8> = (0..100).collect();
        vec![read_reply(bytes, Body::Msg(ChunkLists::default()), 100, &data)]
    };
    assert_verdict!(odd_verdict("read-to-empty-chunk", dropped).await, Deviates, "not returned");
}
