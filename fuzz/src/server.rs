//! The server's whole receive path: from what arrives on a connection to what the filesystem does.
//!
//! # Operation
//! A real [`Server`] serves an export in memory. Its listener yields one connection whose queue pair takes its input
//! from the fuzzer: in [`stream`] the bytes of an iWARP connection, behind which is the real engine; in [`messages`]
//! whole messages, and the bytes that RDMA Reads find, so that mutations need not keep any framing right.
//!
//! The queue pair of [`messages`] also checks what the server does: it answers only what was asked, once, within the
//! inline threshold, and grants no credit that posted Receives do not cover.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use rpcrdma::{
    export::{Caller, Export, ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions},
    memory::Pools,
    server::{
        RdmaConfig, RpcService, Server, ServerConfig,
        service::{IncomingCall, OutgoingReply, Patience, Served, Service},
    },
};
use rpcrdma_fabric::{
    Access, Answer, BoxFuture, BoxQueuePair, Completion, ConnectError, Decide, Exposed, Listener, Lost, Op,
    Peer, QpLimits, QueuePair, Region, RejectReason, Rejected, Request, Shutdown, Stag, Start, Work,
};
use rpcrdma_nfs::v3::{CreateMode, Handle, SetAttributes, Stable};
use rpcrdma_proto::{
    drc,
    rpcrdma::{Body, Header, Limits, PrivateData, Xid},
};
use softiwarp::{
    engine::{Engine, Options},
    mpa::{
        fpdu,
        setup::{Agreed, Role},
    },
};
use tokio::sync::Notify;

use crate::iwarp;

const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 700);
const GRANT: u32 = 4;
const INLINE: u32 = 4096;

/// Handles of the objects in the export: the same in every run, so that the corpus can name them.
pub(crate) struct Objects {
    pub(crate) export: Arc<MemoryExport>,
    pub(crate) root: Handle,
    pub(crate) file: Handle,
    pub(crate) dir: Handle,
    pub(crate) link: Handle,
}

/// An export with a file, a directory and a symlink.
pub(crate) fn objects() -> Objects {
    let export = MemoryExport::new(
        HandleKey::from_bytes([7; 16]),
        MemoryOptions { name: "/fuzz".into(), capacity: 4 << 20, ..MemoryOptions::default() },
    );
    let root = export.root();
    let caller = Caller::superuser();
    let set = SetAttributes { mode: Some(0o666), ..SetAttributes::default() };
    let made = |created: Result<rpcrdma::export::Created, _>| {
        created.ok().and_then(|c| c.handle).expect("an empty filesystem takes a new object")
    };
    let file = made(export.create(&caller, &root, b"file", &CreateMode::Guarded(set)).result);
    let dir = made(export.mkdir(&caller, &root, b"dir", &set).result);
    let link = made(export.symlink(&caller, &root, b"link", &set, b"file").result);
    let data: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
    export.write(&caller, &file, 0, &data, Stable::FileSync).result.expect("the file takes data");
    Objects { export: Arc::new(export), root, file, dir, link }
}

/// A table with that export.
pub(crate) fn exports(objects: &Objects) -> Exports {
    let mut exports = Exports::new();
    let export: Arc<dyn Export> = objects.export.clone();
    exports.add("/fuzz", export, ExportRules::default()).expect("the table is empty");
    exports
}

/// Handles that nobody handed out name nothing.
pub(crate) fn file_handle(bytes: &[u8]) {
    let objects = objects();
    let exports = exports(&objects);
    let Some(handle) = Handle::new(bytes) else {
        assert!(bytes.len() > 64);
        return;
    };
    let known = [objects.root, objects.file, objects.dir, objects.link].contains(&handle);
    if let Ok(entry) = exports.of_handle(&handle) {
        let caller = Caller::superuser();
        assert_eq!(entry.export.getattr(&caller, &handle).is_ok(), known, "{handle:?}");
    } else {
        assert!(!known);
    }
    let _ = exports.mount(CLIENT.ip(), bytes);
}

/// Executes everything on the connection's own thread, so that a run depends on nothing but its input.
struct Inline(RpcService);

impl Service for Inline {
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        match self.0.serve(call, patience, pools, reply) {
            Served::WouldBlock => self.0.serve(call, Patience::Wait, pools, reply),
            served => served,
        }
    }
}

/// Serves one connection until it ends.
fn serve(queue_pair: impl FnOnce(Start, Arc<Notify>) -> BoxQueuePair + Send + 'static) {
    let exports = exports(&objects());
    let limits = drc::Limits { max_entries: 64, max_bytes: 64 << 10, ..drc::Limits::default() };
    let service = Inline(RpcService::with_cache(exports, limits));
    let rdma = RdmaConfig { grant: GRANT, inline: INLINE, ..RdmaConfig::default() };
    let config = ServerConfig { rdma, transfers: 2, ..ServerConfig::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let over = Arc::new(Notify::new());
        let mut server = Server::new(Arc::new(service), config);
        server.listen_rdma(Box::new(One(Some((Box::new(queue_pair), over.clone())))));
        over.notified().await;
    });
}

type MakeQueuePair = Box<dyn FnOnce(Start, Arc<Notify>) -> BoxQueuePair + Send>;

/// A listener that yields one connection.
struct One(Option<(MakeQueuePair, Arc<Notify>)>);

impl Listener for One {
    fn local_addr(&self) -> SocketAddr {
        CLIENT
    }

    fn poll_accept(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>> {
        match self.0.take() {
            Some((make, over)) => Poll::Ready(Ok(Box::new(Asking { make, over }))),
            None => Poll::Pending,
        }
    }
}

struct Asking {
    make: MakeQueuePair,
    over: Arc<Notify>,
}

impl Request for Asking {
    fn peer_addr(&self) -> SocketAddr {
        CLIENT
    }

    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            match answer(&PrivateData::new(INLINE, INLINE, true).encode()) {
                Answer::Accept(start) => Ok((self.make)(start, self.over)),
                Answer::Reject(why) => panic!("the only connection is turned down: {why:?}"),
            }
        })
    }
}

fn peer() -> Peer {
    Peer { addr: CLIENT, private_data: Vec::new(), remote_invalidation: true, transport: "fuzzer".into() }
}

/// A connection whose peer sends these bytes as its iWARP stream. The first byte says how they are cut.
pub(crate) fn stream(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let stream = stream.to_vec();
    serve(move |start, over| {
        let agreed = Agreed { role: Role::Passive, crc: false, rtr: None, ird: 16, ord: 16 };
        let engine = Engine::new(&agreed, start.limits, Options::default(), start.recvs);
        Box::new(StreamPair {
            engine,
            stream,
            at: 0,
            frame: 0,
            step: usize::from(cut).max(1) * 16,
            sinks: Vec::new(),
            lost: None,
            peer: peer(),
            over,
        })
    });
}

struct StreamPair {
    engine: Engine,
    stream: Vec<u8>,
    at: usize,
    /// Where the first FPDU begins of which nothing has been taken, or a later one.
    frame: usize,
    step: usize,
    sinks: Vec<u32>,
    lost: Option<Lost>,
    peer: Peer,
    over: Arc<Notify>,
}

impl Drop for StreamPair {
    fn drop(&mut self) {
        self.over.notify_one();
    }
}

impl QueuePair for StreamPair {
    fn limits(&self) -> QpLimits {
        self.engine.limits()
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        self.engine.post_recv(buf)
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        self.engine.post(work)
    }

    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        self.engine.expose(region, len, access)
    }

    fn invalidate(&mut self, stag: Stag) {
        self.engine.invalidate(stag);
    }

    fn poll(&mut self, _cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        if let Some(lost) = &self.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        loop {
            let before = done.len();
            let sent = iwarp::drain(&mut self.engine, done);
            self.sinks.extend(iwarp::sinks(&sent));
            while let Some(next) = self.stream.get(self.frame..).and_then(fpdu::decode)
                && self.frame < self.at
            {
                self.frame += next.len;
            }
            iwarp::substitute(&mut self.stream, self.frame, &[], &self.sinks);
            if self.engine.failure().is_none() {
                let mut bytes = &self.stream[self.at..];
                if bytes.is_empty() {
                    self.engine.end_of_stream();
                } else {
                    self.at += iwarp::feed(&mut self.engine, &mut bytes, self.step, done);
                }
            }
            if let Some(failure) = self.engine.failure() {
                self.lost = Some(failure.lost.clone());
                self.engine.flush(done);
                return Poll::Ready(Ok(()));
            }
            if done.len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn shutdown(&mut self, _how: Shutdown) {
        self.engine.fail(softiwarp::engine::Failure { lost: Lost::Closed, terminate: None });
    }
}

/// A connection whose peer sends messages: each is two bytes of length and as many bytes. RDMA Reads find the bytes
/// behind the message that is being served.
pub(crate) fn messages(bytes: &[u8]) {
    let input = bytes.to_vec();
    serve(move |start, over| {
        let pair = MessagePair {
            input,
            at: 0,
            recvs: start.recvs.into(),
            pending: Vec::new(),
            asked: HashMap::new(),
            in_hand: 0,
            lost: None,
            peer: peer(),
            over,
        };
        assert!(
            pair.recvs.len() >= GRANT as usize,
            "the first grant is covered before the connection begins"
        );
        Box::new(pair)
    });
}

struct MessagePair {
    input: Vec<u8>,
    at: usize,
    recvs: VecDeque<Region>,
    /// What completes at the next poll.
    pending: Vec<Completion>,
    /// XIDs that were sent, and how often.
    asked: HashMap<u32, u32>,
    /// Messages that were delivered and not answered, dropped ones included.
    in_hand: u32,
    lost: Option<Lost>,
    peer: Peer,
    over: Arc<Notify>,
}

impl Drop for MessagePair {
    fn drop(&mut self) {
        self.over.notify_one();
    }
}

impl MessagePair {
    /// Delivers the next message; false if there is none.
    fn deliver(&mut self, done: &mut Vec<Completion>) -> bool {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some((&[a, b], rest)) = rest.split_first_chunk() else { return false };
        let len = usize::from(u16::from_be_bytes([a, b])).min(rest.len()).min(INLINE as usize);
        let Some(mut buf) = self.recvs.pop_front() else {
            self.lost = Some(Lost::PeerMisbehaved("no Receive".into()));
            return false;
        };
        assert!(buf.len() >= INLINE as usize, "a Receive takes what was agreed on");
        buf[..len].copy_from_slice(&rest[..len]);
        if let Some(xid) = rest[..len].first_chunk() {
            *self.asked.entry(u32::from_be_bytes(*xid)).or_default() += 1;
        }
        self.at += 2 + len;
        self.in_hand += 1;
        done.push(Completion::Received { buf, len, invalidated: None });
        true
    }

    /// Looks at a Reply.
    fn check(&mut self, message: &[u8], invalidate: Option<Stag>) {
        assert!(message.len() <= INLINE as usize, "a Reply keeps to the inline threshold");
        let (header, payload) =
            Header::open(message, &Limits::REPLY).expect("the server sends sound headers");
        let left = self.asked.get_mut(&header.xid.0);
        let left = left.unwrap_or_else(|| panic!("a Reply to {}, which nobody asked", header.xid));
        assert!(*left > 0, "a second Reply to {}", header.xid);
        *left -= 1;
        self.in_hand -= 1;
        assert_eq!(header.credit.0, GRANT);
        let covered = self.recvs.len() as u32 + self.in_hand;
        assert!(covered >= header.credit.0, "{} Receives behind a grant of {}", covered, header.credit.0);
        if let Body::Msg(_) = header.body {
            let xid = payload.first_chunk().map(|word| Xid(u32::from_be_bytes(*word)));
            assert_eq!(xid, Some(header.xid));
            assert_eq!(payload.get(4..8), Some(&[0, 0, 0, 1][..]), "a Reply");
        }
        assert!(invalidate.is_none() || !matches!(header.body, Body::Error(_)));
    }
}

impl QueuePair for MessagePair {
    fn limits(&self) -> QpLimits {
        QpLimits::default()
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        self.recvs.push_back(buf);
        Ok(())
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        if self.lost.is_some() {
            return Err(Rejected { why: RejectReason::Lost, item: work });
        }
        let completion = match work {
            Work::Send { id, buf, len, invalidate } => {
                let message = buf[..len].to_vec();
                self.check(&message, invalidate);
                Completion::Done { id, op: Op::Send, buf }
            }
            Work::Write { id, buf, at, to } => {
                let bytes: usize = to.iter().map(|s| s.len as usize).sum();
                assert!(at + bytes <= buf.len(), "a Write of {bytes} bytes from {at} in {}", buf.len());
                Completion::Done { id, op: Op::Write, buf }
            }
            Work::Read { id, mut buf, at, from } => {
                let bytes: usize = from.iter().map(|s| s.len as usize).sum();
                let sink = &mut buf[at..at + bytes];
                let source = self.input.get(self.at..).filter(|s| !s.is_empty()).unwrap_or(&[0x55]);
                sink.iter_mut().zip(source.iter().cycle()).for_each(|(to, from)| *to = *from);
                Completion::Done { id, op: Op::Read, buf }
            }
        };
        self.pending.push(completion);
        Ok(())
    }

    fn expose(&mut self, _region: Region, _len: u32, _access: Access) -> Result<Exposed, Rejected<Region>> {
        panic!("a server exposes nothing");
    }

    fn invalidate(&mut self, _stag: Stag) {}

    fn poll(&mut self, _cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        if !self.pending.is_empty() {
            done.append(&mut self.pending);
            return Poll::Ready(Ok(()));
        }
        if self.lost.is_none() && self.deliver(done) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(self.lost.get_or_insert(Lost::PeerClosed).clone()))
    }

    fn shutdown(&mut self, _how: Shutdown) {
        self.lost.get_or_insert(Lost::Closed);
    }
}
