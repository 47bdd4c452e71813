use std::sync::{Condvar, Mutex, atomic::AtomicUsize};

use rpcrdma_proto::xdr::{Reader, pad};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    task::JoinHandle,
};

use super::*;

/// The bit of a record mark that says "last fragment".
const LAST: u32 = 1 << 31;

/// Answers with the message itself.
const ECHO: u32 = 0;
/// The same, but on a blocking thread.
const SLOW_ECHO: u32 = 1;
/// Does not answer.
const SILENT: u32 = 2;
/// Wants the connection closed.
const CLOSE: u32 = 3;
/// Answers with its XID and as many bytes as the third word says, which stay in a region.
const DATA: u32 = 4;
/// As `SLOW_ECHO`, once the gate is open.
const GATED: u32 = 5;
/// Announces data and hands none over.
const BROKEN: u32 = 6;
/// Panics on a blocking thread.
const PANIC: u32 = 7;

#[derive(Default)]
struct Toy {
    open: Mutex<bool>,
    opened: Condvar,
    begun: AtomicUsize,
}

impl Toy {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Service for Toy {
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        assert!(reply.message.is_empty() && reply.data.is_none());
        assert_eq!(call.origin.carrier, Carrier::Tcp);
        let mut r = Reader::new(call.message);
        let (Ok(xid), Ok(op)) = (r.u32(), r.u32()) else { return Served::Close };
        if patience == Patience::Now && [SLOW_ECHO, GATED, PANIC].contains(&op) {
            return Served::WouldBlock;
        }
        match op {
            ECHO | SLOW_ECHO => reply.message.bytes(call.message),
            SILENT => return Served::Silent,
            CLOSE => return Served::Close,
            GATED => {
                self.begun.fetch_add(1, Ordering::SeqCst);
                let mut open = self.open.lock().unwrap();
                while !*open {
                    open = self.opened.wait(open).unwrap();
                }
                reply.message.bytes(call.message);
            }
            DATA => {
                let Ok(len) = r.u32() else { return Served::Close };
                let mut region = pools.take(len as usize).unwrap();
                region.fill(xid as u8);
                reply.message.u32(xid);
                reply.message.chunkable(len);
                reply.message.u32(0x7461_696c);
                reply.data = Some(region);
            }
            BROKEN => reply.message.chunkable(4),
            _ => panic!("asked to"),
        }
        Served::Reply
    }
}

struct Server {
    addr: SocketAddr,
    toy: Arc<Toy>,
    counters: Arc<Counters>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(limits: Limits, pools: Pools) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (toy, counters) = (Arc::new(Toy::default()), Arc::new(Counters::default()));
        let (stop, stopped) = oneshot::channel();
        let service: Arc<dyn Service> = Arc::clone(&toy) as _;
        let task = tokio::spawn(serve_tcp(
            listener,
            service,
            pools,
            Offload::default(),
            limits,
            Arc::clone(&counters),
            async {
                let _ = stopped.await;
            },
        ));
        Self { addr, toy, counters, stop, task }
    }

    async fn plain() -> Self {
        Self::start(Limits::default(), Pools::new(4)).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
}

fn message(xid: u32, op: u32, words: &[u32]) -> Vec<u8> {
    [xid, op].iter().chain(words).flat_map(|w| w.to_be_bytes()).collect()
}

fn long(xid: u32, op: u32, len: usize) -> Vec<u8> {
    let mut out = message(xid, op, &[]);
    out.extend((out.len()..len).map(|i| (i * 7) as u8));
    out
}

fn fragment(bytes: &[u8], last: bool) -> Vec<u8> {
    let mark = bytes.len() as u32 | if last { LAST } else { 0 };
    [&mark.to_be_bytes(), bytes].concat()
}

fn record(bytes: &[u8]) -> Vec<u8> {
    fragment(bytes, true)
}

async fn reply(stream: &mut TcpStream) -> Vec<u8> {
    let mark = stream.read_u32().await.unwrap();
    assert_ne!(mark & LAST, 0, "Replies are single fragments");
    let mut out = vec![0; (mark & !LAST) as usize];
    stream.read_exact(&mut out).await.unwrap();
    out
}

/// Reads to the end, however it comes.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = stream.read_to_end(&mut out).await;
    out
}

fn is(counter: &AtomicU64, value: u64) {
    assert_eq!(counter.load(Ordering::Relaxed), value);
}

#[tokio::test]
async fn records_may_arrive_a_byte_at_a_time() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    stream.set_nodelay(true).unwrap();
    let (a, b) = (message(1, ECHO, &[5]), message(2, SLOW_ECHO, &[6, 7]));
    for byte in [record(&a), record(&b)].concat() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(reply(&mut stream).await, a);
    assert_eq!(reply(&mut stream).await, b);
    is(&server.counters.records, 2);
}

#[tokio::test]
async fn fragments_are_joined_wherever_they_are_cut() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    for (xid, len) in [(1, 40), (2, 16 << 10), (3, 200_000), (4, 1 << 20)] {
        let whole = long(xid, if xid % 2 == 0 { ECHO } else { SLOW_ECHO }, len);
        let cuts = [0, 1, 9, 10, len / 2, len / 2 + 3, len];
        let mut wire = fragment(&[], false);
        for pair in cuts.windows(2) {
            wire.extend(fragment(&whole[pair[0]..pair[1]], false));
        }
        wire.extend(fragment(&[], true));
        stream.write_all(&wire).await.unwrap();
        assert_eq!(reply(&mut stream).await, whole);
    }
}

#[tokio::test]
async fn long_records_and_short_ones_share_a_connection() {
    let server = Server::plain().await;
    let (mut from, mut to) = server.connect().await.into_split();
    let calls: Vec<_> = (0..30)
        .map(|i| long(i, ECHO, [8, 16 << 10, (16 << 10) - 4, 20_000, 1 << 20, MAX_TRANSFER][i as usize % 6]))
        .collect();
    let wire: Vec<u8> = calls.iter().flat_map(|c| record(c)).collect();
    let sender = tokio::spawn(async move {
        to.write_all(&wire).await.unwrap();
        to
    });
    for call in calls {
        let mark = from.read_u32().await.unwrap();
        let mut got = vec![0; (mark & !LAST) as usize];
        from.read_exact(&mut got).await.unwrap();
        assert_eq!(got, call);
    }
    sender.await.unwrap();
    is(&server.counters.replies, 30);
}

#[tokio::test]
async fn pipelined_calls_are_all_answered() {
    let server = Server::plain().await;
    let (mut from, mut to) = server.connect().await.into_split();
    let wire: Vec<u8> = (0..5000)
        .flat_map(|i| record(&message(i, if i % 3 == 0 { SLOW_ECHO } else { ECHO }, &[i])))
        .collect();
    let sender = tokio::spawn(async move {
        to.write_all(&wire).await.unwrap();
        to
    });
    let mut seen = vec![false; 5000];
    for _ in 0..5000 {
        assert_eq!(from.read_u32().await.unwrap(), LAST | 12);
        let xid = from.read_u32().await.unwrap() as usize;
        from.read_u64().await.unwrap();
        assert!(!std::mem::replace(&mut seen[xid], true), "answered once");
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn data_leaves_from_its_region_with_its_pad() {
    let pools = Pools::new(2);
    let server = Server::start(Limits::default(), pools.clone()).await;
    let mut stream = server.connect().await;
    for (xid, len) in [(0x11, 0), (0x12, 1), (0x13, 6), (0x14, 1 << 20)] {
        stream.write_all(&record(&message(xid, DATA, &[len]))).await.unwrap();
        let mut want = [xid, len].iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
        want.extend(vec![xid as u8; len as usize]);
        want.extend(vec![0; pad(len as usize)]);
        want.extend(0x7461_696c_u32.to_be_bytes());
        assert_eq!(reply(&mut stream).await, want);
    }
    drop(stream);
    let _ = server.stop.send(());
    server.task.await.unwrap();
    assert_eq!(pools.in_use(), 0);
}

#[tokio::test]
async fn replies_overtake_a_call_that_takes_long() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    let (slow, fast) = (message(1, GATED, &[]), message(2, ECHO, &[]));
    stream.write_all(&[record(&slow), record(&fast)].concat()).await.unwrap();
    assert_eq!(reply(&mut stream).await, fast);
    server.toy.open();
    assert_eq!(reply(&mut stream).await, slow);
}

#[tokio::test]
async fn a_connection_is_not_read_while_it_has_too_many_calls() {
    let server = Server::start(Limits { calls: 3, ..Limits::default() }, Pools::new(1)).await;
    let mut stream = server.connect().await;
    for xid in 0..10 {
        stream.write_all(&record(&message(xid, GATED, &[]))).await.unwrap();
    }
    // Another connection gets through meanwhile, and by its Reply the first one has been looked at.
    let mut other = server.connect().await;
    other.write_all(&record(&message(1, ECHO, &[]))).await.unwrap();
    reply(&mut other).await;
    assert!(server.toy.begun.load(Ordering::SeqCst) <= 3);
    server.toy.open();
    let mut xids: Vec<_> = Vec::new();
    for _ in 0..10 {
        xids.push(reply(&mut stream).await[3]);
    }
    xids.sort_unstable();
    assert_eq!(xids, (0..10).collect::<Vec<u8>>());
}

#[tokio::test]
async fn empty_pools_slow_a_connection_down_but_do_not_stop_it() {
    let server = Server::start(Limits::default(), Pools::new(0)).await;
    let (mut from, mut to) = server.connect().await.into_split();
    let wire: Vec<u8> = (0..4).flat_map(|i| record(&long(i, GATED, 100_000))).collect();
    let sender = tokio::spawn(async move {
        to.write_all(&wire).await.unwrap();
        to
    });
    let mut other = server.connect().await;
    let call = long(9, ECHO, 100_000);
    other.write_all(&record(&call)).await.unwrap();
    assert_eq!(reply(&mut other).await, call);
    assert!(server.toy.begun.load(Ordering::SeqCst) <= 1);
    server.toy.open();
    for xid in 0..4 {
        let mark = from.read_u32().await.unwrap();
        let mut got = vec![0; (mark & !LAST) as usize];
        from.read_exact(&mut got).await.unwrap();
        assert_eq!(got, long(xid, GATED, 100_000));
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_answered_ends_its_own_connection() {
    let limits = Limits { fragments: 8, ..Limits::default() };
    let server = Server::start(limits, Pools::new(4)).await;
    let mut healthy = server.connect().await;
    let bad: [Vec<u8>; 8] = [
        (LAST | 0x7fff_ffff).to_be_bytes().to_vec(),
        (MAX_TRANSFER as u32 + 4).to_be_bytes().to_vec(),
        [fragment(&[0; 8], false), (MAX_TRANSFER as u32).to_be_bytes().to_vec()].concat(),
        record(&[0; 9]),
        [fragment(&[0; 8], false), fragment(&[0; 2], true)].concat(),
        fragment(&[], false).repeat(9),
        record(&message(1, CLOSE, &[])),
        record(&message(1, BROKEN, &[])),
    ];
    for (n, wire) in bad.iter().enumerate() {
        let mut stream = server.connect().await;
        stream.write_all(wire).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"", "case {n}");
        is(&server.counters.misbehaved, n as u64 + 1);
    }
    let call = message(7, ECHO, &[]);
    healthy.write_all(&record(&call)).await.unwrap();
    assert_eq!(reply(&mut healthy).await, call);
}

#[tokio::test]
async fn a_panic_of_the_service_costs_one_connection() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    stream.write_all(&record(&message(1, PANIC, &[]))).await.unwrap();
    assert_eq!(rest(&mut stream).await, b"");
    let mut stream = server.connect().await;
    let call = message(7, ECHO, &[]);
    stream.write_all(&record(&call)).await.unwrap();
    assert_eq!(reply(&mut stream).await, call);
}

#[tokio::test]
async fn silence_is_silence() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    let call = message(2, ECHO, &[]);
    stream.write_all(&[record(&message(1, SILENT, &[])), record(&call)].concat()).await.unwrap();
    assert_eq!(reply(&mut stream).await, call);
}

#[tokio::test]
async fn a_peer_that_has_no_more_to_say_still_gets_its_replies() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    let (slow, fast) = (message(1, GATED, &[]), message(2, ECHO, &[]));
    stream.write_all(&[record(&slow), record(&fast)].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(reply(&mut stream).await, fast);
    server.toy.open();
    assert_eq!(rest(&mut stream).await, record(&slow));
}

#[tokio::test]
async fn one_connection_too_many_is_closed() {
    let server = Server::start(Limits { connections: 1, ..Limits::default() }, Pools::new(1)).await;
    let mut first = server.connect().await;
    let call = message(2, ECHO, &[]);
    first.write_all(&record(&call)).await.unwrap();
    reply(&mut first).await;
    let mut second = server.connect().await;
    assert_eq!(rest(&mut second).await, b"");
    is(&server.counters.refused, 1);
    drop(first);
    // The place is free once the first connection's task has seen the end.
    loop {
        let mut third = server.connect().await;
        if third.write_all(&record(&call)).await.is_ok() && third.read_u32().await.is_ok() {
            break;
        }
    }
}

#[tokio::test]
async fn a_shutdown_lets_calls_end() {
    let server = Server::plain().await;
    let mut stream = server.connect().await;
    let call = message(1, GATED, &[]);
    stream.write_all(&record(&call)).await.unwrap();
    while server.toy.begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    server.stop.send(()).unwrap();
    server.toy.open();
    assert_eq!(rest(&mut stream).await, record(&call));
    server.task.await.unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_in_a_record_is_cut_off() {
    let server = Server::plain().await;
    for wire in [&record(&long(1, ECHO, 100_000))[..50_000], &record(&long(1, ECHO, 100))[..50]] {
        let mut stream = server.connect().await;
        stream.write_all(wire).await.unwrap();
        assert_eq!(rest(&mut stream).await, b"");
    }
    is(&server.counters.stalled, 2);
}
