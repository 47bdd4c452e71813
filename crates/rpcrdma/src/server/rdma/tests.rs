//! A connection of the server, with a test as the client, as the service and as the threads.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use rpcrdma_fabric::RemoteSegment;
use rpcrdma_proto::rpcrdma::{Body as HeaderBody, ChunkLists, Credits, RdmaError, WriteChunk, Xid};
use tokio::task::yield_now;

use super::*;
use crate::wire::{Knock, Wire, Wires};

type Script = Box<dyn FnMut(&IncomingCall<'_>, Patience, &mut OutgoingReply) -> Served + Send>;

/// A service that does as it is told.
struct Scripted(Mutex<Script>);

impl Service for Scripted {
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        _: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        (self.0.lock().unwrap_or_else(PoisonError::into_inner))(call, patience, reply)
    }
}

type Jobs = Arc<Mutex<VecDeque<Box<dyn FnOnce() + Send>>>>;

struct Bench {
    wire: Wire,
    pools: Pools,
    metrics: Arc<ServerMetrics>,
    /// What blocking threads would execute.
    jobs: Jobs,
    task: tokio::task::JoinHandle<()>,
    _stop: watch::Sender<bool>,
}

/// How a bench differs from the usual.
struct Setup {
    config: RdmaConfig,
    limits: QpLimits,
    /// Whether the client allows invalidation.
    invalidation: bool,
    /// Whether the device can do it.
    can_invalidate: bool,
}

impl Default for Setup {
    fn default() -> Self {
        let config = RdmaConfig { grant: 4, ..RdmaConfig::default() };
        Self { config, limits: QpLimits::default(), invalidation: true, can_invalidate: true }
    }
}

impl Bench {
    async fn new(
        setup: Setup,
        script: impl FnMut(&IncomingCall<'_>, Patience, &mut OutgoingReply) -> Served + Send + 'static,
    ) -> Self {
        let pools = Pools::new(1);
        let metrics = Arc::<ServerMetrics>::default();
        let jobs = Jobs::default();
        let shared = Arc::new(Shared {
            service: Arc::new(Scripted(Mutex::new(Box::new(script)))),
            pools: pools.clone(),
            config: setup.config,
            metrics: Arc::clone(&metrics),
            offload: Offload::new({
                let jobs = Arc::clone(&jobs);
                move |job| jobs.lock().unwrap().push_back(job)
            }),
        });
        let wires = Wires::new();
        wires.plan().limits = setup.limits;
        wires.plan().invalidation = setup.can_invalidate;
        let private_data = PrivateData::new(4096, 4096, setup.invalidation).encode().to_vec();
        let knock =
            Knock { wires: wires.clone(), from: SocketAddr::from(([10, 0, 0, 9], 700)), private_data };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(serve_one(Box::new(knock), shared, stopped));
        settle().await;
        Self { wire: wires.last(), pools, metrics, jobs, task, _stop: stop }
    }

    /// Sends a Call without chunks.
    async fn call(&self, xid: u32) {
        self.send(xid, ChunkLists::default()).await;
    }

    async fn send(&self, xid: u32, lists: ChunkLists) {
        self.wire.deliver(&message(xid, HeaderBody::Msg(lists)), None);
        settle().await;
    }

    /// The next message from the server.
    fn header(&self) -> Option<Header> {
        self.wire.sent().map(|m| Header::decode(&m, &Limits::REPLY).unwrap().0)
    }

    /// XIDs of all messages that the server has sent since the last look.
    fn answered(&self) -> Vec<u32> {
        std::iter::from_fn(|| self.header()).map(|h| h.xid.0).collect()
    }

    /// Executes the next job of a blocking thread.
    async fn execute(&self) -> bool {
        let job = self.jobs.lock().unwrap().pop_front();
        let any = job.is_some();
        if let Some(job) = job {
            job();
        }
        settle().await;
        any
    }

    /// Regions that RDMA Reads are to fill, which are under way.
    fn reads(&self) -> usize {
        self.wire.state().work.iter().filter(|w| matches!(w, Work::Read { .. })).count()
    }

    fn is_cut(&self) -> bool {
        self.wire.state().shutdowns.contains(&Shutdown::Abort)
    }
}

async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// A Call's message: an RPC header's first words and zeros.
fn message(xid: u32, body: HeaderBody) -> Vec<u8> {
    let long = matches!(body, HeaderBody::Nomsg(_));
    let header = Header::new(Xid(xid), Credits(64), body);
    let mut out = vec![0; header.encoded_len()];
    header.encode_into(&mut out).unwrap();
    if !long {
        out.extend(xid.to_be_bytes());
        out.extend([0; 36]);
    }
    out
}

fn segment(handle: u32, length: u32) -> Segment {
    Segment { handle, length, offset: 0 }
}

/// Read chunks of these lengths, with a word between one and the next.
fn reads(lengths: &[u32]) -> ChunkLists {
    let mut lists = ChunkLists::default();
    let mut at = 40;
    for (handle, length) in (1..).zip(lengths) {
        lists.read.push_chunk(at, [segment(handle, *length)]);
        at += padded(*length as usize) as u32 + 4;
    }
    lists
}

fn chunk(lengths: &[u32]) -> WriteChunk {
    let mut chunk = WriteChunk::new();
    (0..).zip(lengths).for_each(|(nth, length)| chunk.push(segment(100 + nth, *length)));
    chunk
}

fn result_chunk(lengths: &[u32]) -> ChunkLists {
    let mut lists = ChunkLists::default();
    lists.write.push(chunk(lengths));
    lists
}

fn reply_chunk(length: u32) -> ChunkLists {
    ChunkLists { reply: Some(chunk(&[length])), ..ChunkLists::default() }
}

/// Answers with a message of `len` bytes.
fn answer(len: usize) -> impl FnMut(&IncomingCall<'_>, Patience, &mut OutgoingReply) -> Served {
    move |_, _, reply| {
        reply.message.bytes(&vec![7; len]);
        Served::Reply
    }
}

/// Answers with a result of `len` bytes, and a word behind it.
fn result(len: u32) -> impl FnMut(&IncomingCall<'_>, Patience, &mut OutgoingReply) -> Served {
    move |_, _, reply| {
        reply.message.u32(1);
        reply.message.chunkable(len);
        reply.message.u32(2);
        reply.data = (len > 0).then(|| Region::from(&vec![9; len as usize][..]));
        Served::Reply
    }
}

#[test]
fn messages_are_put_together() {
    let put = |message: &[u8], item: Option<(Hole, &[u8])>| {
        let mut out = [0xee; 32];
        let len = assemble(message, item, &mut out);
        assert!(out[len..].iter().all(|b| *b == 0xee), "nothing beyond");
        out[..len].to_vec()
    };
    let hole = Hole { at: 4, len: 5 };
    assert_eq!(put(b"headtail", Some((hole, b"datum"))), b"headdatum\0\0\0tail");
    assert_eq!(put(b"headtail", None), b"headtail");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_connection() {
    let config = RdmaConfig { grant: 40, ..RdmaConfig::default() };
    let bench = Bench::new(Setup { config, ..Setup::default() }, answer(24)).await;
    let state = bench.wire.state();
    assert_eq!(state.asked, QpLimits { recvs: 56, sends: 224, ..QpLimits::default() });
    assert_eq!(state.recvs.len(), 42, "the grant and two to spare");
}

/// However late Sends complete: there are buffers for a Reply to each Call of a window, and for the next Calls.
#[tokio::test(start_paused = true)]
async fn a_whole_window_is_answered_before_the_first_send_completes() {
    let config = RdmaConfig { grant: 64, ..RdmaConfig::default() };
    let bench = Bench::new(Setup { config, ..Setup::default() }, answer(24)).await;
    bench.wire.state().prompt = false;
    for xid in 0..64 {
        bench.call(xid).await;
    }
    assert_eq!(bench.answered(), Vec::from_iter(0..64));
    assert_eq!(bench.wire.state().recvs.len(), 66);
}

#[tokio::test(start_paused = true)]
async fn replies_invalidate_if_both_sides_agree_and_the_device_can() {
    for case in 0..8 {
        let (server, client, device) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
        let config = RdmaConfig { remote_invalidation: server, ..RdmaConfig::default() };
        let setup = Setup { config, invalidation: client, can_invalidate: device, ..Setup::default() };
        let bench = Bench::new(setup, result(100)).await;
        bench.send(1, result_chunk(&[100])).await;
        let (_, invalidated) = bench.wire.state().sent.pop_front().unwrap();
        let all = server && client && device;
        assert_eq!(
            invalidated,
            all.then_some(Stag(100)),
            "server {server}, client {client}, device {device}"
        );
        let said = PrivateData::parse(&bench.wire.state().private_data).unwrap();
        assert_eq!(said.remote_invalidation(), server && device, "it says what it supports");
    }
}

/// A Call that is answered leaves nothing behind, so its place is used again, and no other Call's.
#[tokio::test(start_paused = true)]
async fn places_of_calls_are_used_again() {
    let blocks = |call: &IncomingCall<'_>, patience, reply: &mut OutgoingReply| {
        if patience == Patience::Now && call.message[3] == 1 {
            return Served::WouldBlock;
        }
        reply.message.bytes(&[7; 24]);
        Served::Reply
    };
    let bench = Bench::new(Setup::default(), blocks).await;
    // The first Call stays while others come and go, are refused, or are dropped.
    bench.call(1).await;
    for xid in 2..40 {
        bench.call(xid).await;
        // Its completion is known by then.
        settle().await;
    }
    bench.wire.deliver(&message(40, HeaderBody::Nomsg(ChunkLists::default())), None);
    settle().await;
    assert_eq!(bench.answered(), Vec::from_iter(2..=40));
    let places: Vec<u64> = bench.wire.state().ids.iter().map(|id| id >> 16).collect();
    assert!(places.iter().all(|place| *place <= 1), "{places:?}");
    assert!(bench.execute().await && bench.answered() == [1], "nobody else ended it");
    assert!(!bench.task.is_finished() && !bench.is_cut());
}

/// A client that owes the data of RDMA Reads for long holds memory that others miss.
#[tokio::test(start_paused = true)]
async fn reads_that_stall_end_the_connection() {
    let bench = Bench::new(Setup::default(), answer(24)).await;
    bench.send(1, reads(&[100])).await;
    assert_eq!(bench.reads(), 1);
    sleep(Duration::from_secs(25)).await;
    assert!(!bench.is_cut());
    sleep(Duration::from_secs(40)).await;
    assert!(bench.is_cut());
}

/// Slow is not dead.
#[tokio::test(start_paused = true)]
async fn reads_that_come_slowly_do_not() {
    let bench = Bench::new(Setup::default(), answer(24)).await;
    for xid in 1..=4 {
        bench.send(xid, reads(&[100, 100])).await;
    }
    assert_eq!(bench.reads(), 8);
    for _ in 0..8 {
        sleep(Duration::from_secs(25)).await;
        assert!(!bench.is_cut());
        assert_eq!(bench.wire.complete(&[1; 100]), Some(Op::Read));
    }
    settle().await;
    assert_eq!(bench.answered(), [1, 2, 3, 4]);
    assert_eq!(bench.metrics.bytes_in.get(), 800);
}

/// Calls keep a connection alive; nothing else does.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let bench = Bench::new(Setup::default(), answer(24)).await;
    for xid in 1..10 {
        sleep(Duration::from_secs(300)).await;
        assert!(!bench.is_cut());
        bench.call(xid).await;
    }
    assert_eq!(bench.answered().len(), 9);
    sleep(Duration::from_secs(355)).await;
    assert!(!bench.is_cut());
    sleep(Duration::from_secs(366)).await;
    assert!(bench.is_cut() && bench.task.is_finished());
    assert_eq!(bench.metrics.closed.get(), 1);
}

/// Calls wait for memory in the order in which they came, and are pulled soon after it is there.
#[tokio::test(start_paused = true)]
async fn calls_wait_for_memory_in_order() {
    let lengths = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lengths);
    let bench = Bench::new(Setup::default(), move |call, _, reply| {
        seen.lock().unwrap().push(call.chunks[0].data.len());
        reply.message.bytes(&[7; 24]);
        Served::Reply
    })
    .await;
    let taken = bench.pools.take(1 << 20).unwrap();
    bench.send(1, reads(&[1 << 20])).await;
    bench.send(2, reads(&[100])).await;
    assert_eq!(bench.reads(), 0, "there is memory for the second, but it is not its turn");
    drop(taken);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(bench.reads(), 2);
    bench.wire.complete(&[1; 100]);
    bench.wire.complete(&[1; 100]);
    settle().await;
    assert_eq!(*lengths.lock().unwrap(), [1 << 20, 100]);
    assert_eq!(bench.answered(), [1, 2]);
}

/// RDMA Reads and Replies share the Send queue. A Call that needs more of it than there is gets all of it.
#[tokio::test(start_paused = true)]
async fn reads_wait_for_room_in_the_send_queue() {
    let limits = QpLimits { sends: 2, ..QpLimits::default() };
    let bench = Bench::new(Setup { limits, ..Setup::default() }, answer(24)).await;
    bench.send(1, reads(&[10, 10, 10])).await;
    assert_eq!(bench.reads(), 3, "the queue was empty");
    for _ in 0..3 {
        bench.wire.complete(&[1; 10]);
    }
    settle().await;
    bench.send(2, reads(&[10])).await;
    bench.send(3, reads(&[10])).await;
    bench.send(4, reads(&[10])).await;
    assert_eq!(bench.reads(), 2, "no more fit");
    bench.wire.complete(&[1; 10]);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(bench.reads(), 2);
    bench.wire.complete(&[1; 10]);
    bench.wire.complete(&[1; 10]);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(bench.answered(), [1, 2, 3, 4]);
}

/// A connection has sixteen threads at most, and whoever waits gets the next that is free.
#[tokio::test(start_paused = true)]
async fn calls_wait_for_threads() {
    let config = RdmaConfig { grant: 64, ..RdmaConfig::default() };
    let bench = Bench::new(Setup { config, ..Setup::default() }, |_, patience, reply| {
        reply.message.bytes(&[7; 24]);
        if patience == Patience::Now { Served::WouldBlock } else { Served::Reply }
    })
    .await;
    for xid in 0..20 {
        bench.call(xid).await;
    }
    assert_eq!(bench.jobs.lock().unwrap().len(), BLOCKING);
    for xid in 0..20 {
        assert!(bench.execute().await);
        assert_eq!(bench.answered(), [xid]);
        assert_eq!(bench.jobs.lock().unwrap().len(), BLOCKING.min(19 - xid as usize));
    }
}

/// A Reply in a Reply chunk is put together in memory from the pools, and waits for it; others need none.
#[tokio::test(start_paused = true)]
async fn long_replies_wait_for_memory_and_others_do_not() {
    let len = Arc::new(Mutex::new(20_000));
    let of_call = Arc::clone(&len);
    let bench = Bench::new(Setup::default(), move |call, patience, reply| {
        let len = *of_call.lock().unwrap();
        answer(len)(call, patience, reply)
    })
    .await;
    bench.send(1, reply_chunk(30_000)).await;
    let (to, bytes) = bench.wire.state().writes.pop().unwrap();
    assert_eq!(to, [RemoteSegment { stag: Stag(100), offset: 0, len: 20_000 }]);
    assert!(bytes.iter().all(|b| *b == 7) && bench.answered() == [1]);
    let taken: Vec<Region> = std::iter::from_fn(|| bench.pools.take(1)).collect();
    *len.lock().unwrap() = 24;
    bench.call(2).await;
    assert_eq!(bench.answered(), [2], "no memory is needed for that");
    *len.lock().unwrap() = 20_000;
    bench.send(3, reply_chunk(30_000)).await;
    assert!(bench.answered().is_empty());
    drop(taken);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(bench.answered(), [3]);
}

/// A Reply of which a part cannot be posted must not look as if it were whole: the connection is closed.
#[tokio::test(start_paused = true)]
async fn a_reply_that_cannot_be_posted_ends_the_connection() {
    for nth in 0..5 {
        let bench = if nth < 2 {
            Bench::new(Setup::default(), result(100)).await
        } else {
            Bench::new(Setup::default(), answer(if nth < 4 { 20_000 } else { 24 })).await
        };
        // The data, or the message in a Reply chunk, or the Send behind it.
        bench.wire.state().refuse_after = Some((nth % 2, RejectReason::QueueFull));
        let lists = match nth {
            0 | 1 => result_chunk(&[100]),
            2 | 3 => reply_chunk(30_000),
            _ => ChunkLists::default(),
        };
        bench.send(1, lists).await;
        assert!(bench.is_cut(), "case {nth}");
        assert_eq!(bench.metrics.replies.get(), 0);
    }
}

/// A result goes to its chunk, and nothing is written to the segments that it does not reach.
#[tokio::test(start_paused = true)]
async fn results_are_written_as_far_as_they_go() {
    let bench = Bench::new(Setup::default(), result(150)).await;
    bench.send(1, result_chunk(&[100, 100, 100])).await;
    let to: Vec<(Stag, u32)> =
        bench.wire.state().writes[0].0.iter().map(|s: &RemoteSegment| (s.stag, s.len)).collect();
    assert_eq!(to, [(Stag(100), 100), (Stag(101), 50)]);
    assert_eq!((bench.answered(), bench.metrics.bytes_out.get()), (vec![1], 150));
}

/// A result of no bytes needs no memory and no Write, wherever it would go.
#[tokio::test(start_paused = true)]
async fn an_empty_result_is_not_written() {
    for lists in [result_chunk(&[100]), ChunkLists::default()] {
        let bench = Bench::new(Setup::default(), result(0)).await;
        bench.send(1, lists).await;
        assert!(bench.wire.state().writes.is_empty() && bench.answered() == [1] && !bench.is_cut());
    }
}

/// A Reply for which the client has offered no room is an ERR_CHUNK, and its Call is over.
#[tokio::test(start_paused = true)]
async fn a_reply_without_room_is_an_error() {
    let bench = Bench::new(Setup::default(), answer(5000)).await;
    for xid in 1..10 {
        bench.call(xid).await;
        let header = bench.header().unwrap();
        assert_eq!((header.xid, &header.body), (Xid(xid), &HeaderBody::Error(RdmaError::Chunk)));
    }
    assert_eq!((bench.metrics.no_room.get(), bench.metrics.calls.get()), (9, 9));
    assert!(!bench.is_cut());
}
