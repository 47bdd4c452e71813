//! Peers that do not keep the rules: raw connections, and a server that tampers with its Replies.
//!
//! # Operation
//! [`Raw`] is a queue pair with messages going in and out, for scripts of a hostile client. [`serve`] is a server that
//! executes Calls as ours does and then lets a [`Tamper`] decide what is sent, with what grant, in which order, how often.
//!
//! # Limits
//! One Call at a time per connection is executed; what waits for its turn to be answered is the tamper's business.

use std::{collections::VecDeque, future::poll_fn, net::SocketAddr, sync::Arc, task::Poll, time::Duration};

use rpcrdma::{
    fabric::{
        Answer, BoxQueuePair, Completion, Connector as _, Listener as _, Lost, Op, QpLimits, Region,
        RemoteSegment, RemoteSegments, Shutdown, Stag, Start, Work, sim::Sim,
    },
    memory::Pools,
    nfs::v3,
    proto::{
        rpc::{CallHeader, OpaqueAuth},
        rpcrdma::{
            Body, ChunkLists, Credits, Header, ItemPlace, Limits, PrivateData, ReplyShape, Segment,
            WriteChunk, Xid,
        },
        xdr::{Chunk, Encode as _, Writer},
    },
    server::{
        RpcService, Service as _,
        service::{Carrier, IncomingCall, Origin, OutgoingReply, Patience, Served},
    },
};
use tokio::time::timeout;

/// Waits of 50 ms in which nothing comes, until a server leaves.
const IDLE: u32 = 400;
/// Length of Sends and Receives.
const INLINE: usize = 4096;

/// A connection with nothing behind it.
pub struct Raw {
    /// The queue pair, for what has no name here.
    pub qp: BoxQueuePair,
    messages: VecDeque<(Vec<u8>, Option<Stag>)>,
    reads: VecDeque<Region>,
    reclaimed: VecDeque<(Stag, Region)>,
    done: Vec<Completion>,
    lost: Option<Lost>,
    /// Work that the Send queue had no room for.
    outbox: VecDeque<Work>,
}

impl Raw {
    /// Connects, with so many Receives.
    ///
    /// # Errors
    /// In words.
    pub async fn connect(
        sim: &Sim,
        node: std::net::IpAddr,
        to: SocketAddr,
        recvs: usize,
    ) -> Result<Self, String> {
        let start = Start {
            private_data: PrivateData::new(INLINE as u32, INLINE as u32, false).encode().to_vec(),
            recvs: (0..recvs).map(|_| Region::alloc(INLINE)).collect(),
            limits: QpLimits::default(),
        };
        let connector = sim.connector(node);
        let made = timeout(Duration::from_secs(5), connector.connect(to, start)).await;
        let qp = made.map_err(|_| "no connection in 5 s".to_owned())?.map_err(|e| e.to_string())?;
        Ok(Self::new(qp))
    }

    fn new(qp: BoxQueuePair) -> Self {
        Self {
            qp,
            messages: VecDeque::new(),
            reads: VecDeque::new(),
            reclaimed: VecDeque::new(),
            done: Vec::new(),
            lost: None,
            outbox: VecDeque::new(),
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8], invalidate: Option<Stag>) {
        let buf = Region::from(bytes);
        self.outbox.push_back(Work::Send { id: 0, buf, len: bytes.len(), invalidate });
        self.post();
    }

    fn post(&mut self) {
        while let Some(work) = self.outbox.pop_front() {
            if let Err(refused) = self.qp.post(work) {
                return self.outbox.push_front(refused.item);
            }
        }
    }

    fn turn(&mut self, cx: &mut std::task::Context<'_>) {
        while self.lost.is_none() {
            self.post();
            match self.qp.poll(cx, &mut self.done) {
                Poll::Pending => break,
                Poll::Ready(Err(lost)) => self.lost = Some(lost),
                Poll::Ready(Ok(())) => {}
            }
            for completion in self.done.drain(..) {
                match completion {
                    Completion::Received { buf, len, invalidated } => {
                        self.messages.push_back((buf[..len].to_vec(), invalidated));
                        // On a lost connection it does not matter.
                        let _ = self.qp.post_recv(buf);
                    }
                    Completion::Done { op: Op::Read, buf, .. } => self.reads.push_back(buf),
                    Completion::Reclaimed { stag, buf } => self.reclaimed.push_back((stag, buf)),
                    Completion::Done { .. } | Completion::Flushed { .. } => {}
                }
            }
        }
    }

    /// The next message, or why none comes any more.
    ///
    /// # Errors
    /// In words.
    pub async fn receive(&mut self) -> Result<(Vec<u8>, Option<Stag>), String> {
        let wait = poll_fn(|cx| {
            self.turn(cx);
            if let Some(message) = self.messages.pop_front() {
                return Poll::Ready(Ok(message));
            }
            match &self.lost {
                Some(lost) => Poll::Ready(Err(lost.to_string())),
                None => Poll::Pending,
            }
        });
        timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| Err("no answer in 30 s".to_owned()))
    }

    /// The next Reply's header, if it is one.
    ///
    /// # Errors
    /// In words.
    pub async fn reply(&mut self) -> Result<Header, String> {
        let (message, _) = self.receive().await?;
        Header::decode(&message, &Limits::REPLY).map(|(h, _)| h).map_err(|e| e.to_string())
    }

    /// Waits until the connection is lost.
    ///
    /// # Errors
    /// If it is not, in 30 seconds.
    pub async fn end(&mut self) -> Result<Lost, String> {
        let wait = poll_fn(|cx| {
            self.turn(cx);
            self.lost.clone().map_or(Poll::Pending, Poll::Ready)
        });
        timeout(Duration::from_secs(30), wait).await.map_err(|_| "the connection lives".to_owned())
    }

    /// Reads the peer's memory.
    async fn fetch(&mut self, from: &[Segment]) -> Option<Vec<u8>> {
        let len: usize = from.iter().map(|s| s.length as usize).sum();
        if len == 0 {
            return Some(Vec::new());
        }
        self.outbox.push_back(Work::Read { id: 0, buf: Region::alloc(len), at: 0, from: remote(from) });
        self.post();
        let read = poll_fn(|cx| {
            self.turn(cx);
            match self.reads.pop_front() {
                Some(buf) => Poll::Ready(Some(buf.to_vec())),
                None if self.lost.is_some() => Poll::Ready(None),
                None => Poll::Pending,
            }
        });
        timeout(Duration::from_secs(30), read).await.ok().flatten()
    }
}

fn remote(segments: &[Segment]) -> RemoteSegments {
    (segments.iter().filter(|s| s.length > 0))
        .map(|s| RemoteSegment { stag: Stag(s.handle), offset: s.offset, len: s.length })
        .collect()
}

/// A message with this header and payload.
#[must_use]
pub fn message(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; header.encoded_len()];
    let len = header.encode_into(&mut out).unwrap_or(0);
    out.truncate(len);
    out.extend_from_slice(payload);
    out
}

/// The RPC message of an NFS Call without arguments.
#[must_use]
pub fn rpc(xid: Xid, proc: u32) -> Vec<u8> {
    let mut w = Writer::new();
    let (prog, vers) = (v3::PROGRAM, v3::VERSION);
    CallHeader { xid, prog, vers, proc, cred: OpaqueAuth::NONE, verf: OpaqueAuth::NONE }.encode(&mut w);
    w.into_parts().0
}

/// A NULL Call that asks for so many credits and offers these chunks.
#[must_use]
pub fn null(xid: u32, credits: u32, lists: ChunkLists) -> Vec<u8> {
    let xid = Xid(xid);
    message(&Header::new(xid, Credits(credits), Body::Msg(lists)), &rpc(xid, 0))
}

/// A Reply before it is sent.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its header.
    pub header: Header,
    /// What follows it.
    pub payload: Vec<u8>,
    /// What its Send invalidates.
    pub invalidate: Option<Stag>,
    /// Data to be written ahead of it.
    pub writes: Vec<(Vec<u8>, WriteChunk)>,
    /// What the Call offered.
    pub offered: ChunkLists,
}

impl Draft {
    /// A header with nothing behind it, in answer to nothing.
    #[must_use]
    pub fn bare(header: Header) -> Self {
        let (payload, writes) = (Vec::new(), Vec::new());
        Self { header, payload, invalidate: None, writes, offered: ChunkLists::default() }
    }

    /// Makes it an answer to another Call.
    pub fn address(&mut self, xid: Xid) {
        self.header.xid = xid;
        if let Some(word) = self.payload.first_chunk_mut() {
            *word = xid.0.to_be_bytes();
        }
    }
}

/// Decides what is sent. Is given a Reply, or `None` when no Call is there to be answered, as at the start; what it keeps,
/// it owes.
pub type Tamper = Box<dyn FnMut(Option<Draft>) -> Vec<Draft> + Send>;

/// Serves with a tamper for each connection, which is given the number of the connection.
pub async fn serve(
    sim: Sim,
    at: SocketAddr,
    service: Arc<RpcService>,
    tamper: impl Fn(u64) -> Tamper + Send + Sync + 'static,
) {
    let mut listener = sim.listen(at);
    for nth in 0.. {
        let Ok(request) = poll_fn(|cx| listener.poll_accept(cx)).await else { return };
        let peer = request.peer_addr();
        let service = Arc::clone(&service);
        let tamper = tamper(nth);
        tokio::spawn(async move {
            let accepting = request.accept(Box::new(|_| {
                Answer::Accept(Start {
                    private_data: PrivateData::new(INLINE as u32, INLINE as u32, true).encode().to_vec(),
                    recvs: (0..64).map(|_| Region::alloc(INLINE)).collect(),
                    limits: QpLimits::default(),
                })
            }));
            // A client that is gone by now is not waited for.
            let accepted = timeout(Duration::from_secs(10), accepting).await;
            if let Ok(Ok(qp)) = accepted {
                let _ = serve_one(Raw::new(qp), peer, &service, tamper).await;
            }
        });
    }
}

async fn serve_one(mut raw: Raw, peer: SocketAddr, service: &RpcService, mut tamper: Tamper) -> Option<()> {
    let pools = Pools::new(8);
    let mut idle = 0;
    let mut drafts = tamper(None);
    // A client that is gone without a word is not waited for.
    while idle < IDLE {
        for draft in drafts {
            for (data, chunk) in draft.writes {
                let buf = Region::from(&data[..]);
                raw.outbox.push_back(Work::Write { id: 0, buf, at: 0, to: remote(&chunk) });
            }
            raw.send(&message(&draft.header, &draft.payload), draft.invalidate);
        }
        // When nothing has come for a moment, what the tamper kept is due.
        let next = poll_fn(|cx| {
            raw.turn(cx);
            match raw.messages.pop_front() {
                Some(message) => Poll::Ready(Some(message)),
                None if raw.lost.is_some() => Poll::Ready(None),
                None => Poll::Pending,
            }
        });
        drafts = match timeout(Duration::from_millis(50), next).await {
            Ok(None) => return None,
            Err(_) => {
                idle += 1;
                tamper(None)
            }
            Ok(Some((bytes, _))) => {
                idle = 0;
                let draft = execute(&mut raw, &bytes, peer, service, &pools).await?;
                tamper(Some(draft))
            }
        };
    }
    None
}

/// Executes a Call and drafts its Reply as a server that keeps the rules would.
async fn execute(
    raw: &mut Raw,
    bytes: &[u8],
    peer: SocketAddr,
    service: &RpcService,
    pools: &Pools,
) -> Option<Draft> {
    let (header, payload) = Header::open(bytes, &Limits::default()).ok()?;
    let offered = header.body.lists()?.clone();
    let reads = header.read_chunks().ok()?;
    let rpc = match &reads.call {
        Some(call) => raw.fetch(&call.segments).await?,
        None => payload.to_vec(),
    };
    let mut items = Vec::new();
    for item in &reads.items {
        items.push((item.position, raw.fetch(&item.segments).await?));
    }
    let chunks: Vec<Chunk<'_>> =
        items.iter().map(|(position, data)| Chunk { position: *position, data }).collect();
    let origin = Origin { peer, carrier: Carrier::Rdma };
    let call = IncomingCall { origin, message: &rpc, chunks: &chunks };
    let mut reply = OutgoingReply::default();
    if service.serve(&call, Patience::Wait, pools, &mut reply) != Served::Reply {
        raw.qp.shutdown(Shutdown::Abort);
        return None;
    }
    let hole = reply.message.hole();
    let item: Vec<Option<u32>> = hole.iter().map(|h| Some(h.len as u32)).collect();
    let shape = ReplyShape::choose(&offered, reply.message.len(), &item, INLINE as u32).ok()?;
    let mut rpc = reply.message.as_slice().to_vec();
    let mut writes = Vec::new();
    if let (Some(hole), Some(data)) = (hole, reply.data) {
        let data = data[..hole.len].to_vec();
        match shape.items.first().copied().flatten() {
            Some(ItemPlace::WriteChunk(index)) => {
                writes.push((data, shape.body.lists()?.write.get(index)?.clone()));
            }
            _ => {
                let mut padded = data;
                padded.resize(padded.len().next_multiple_of(4), 0);
                rpc.splice(hole.at..hole.at, padded);
            }
        }
    }
    if let Body::Nomsg(lists) = &shape.body {
        writes.push((std::mem::take(&mut rpc), lists.reply.clone()?));
    }
    let header = Header::new(header.xid, Credits(16), shape.body);
    Some(Draft { header, payload: rpc, invalidate: None, writes, offered })
}
