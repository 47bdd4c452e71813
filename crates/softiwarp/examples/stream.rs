//! How fast is it, compared with the TCP socket underneath?
//!
//! `cargo run --release -p softiwarp --example stream [PAIRS]` measures RDMA Write and Read of 1 MiB and a ping-pong
//! of 64 B Sends on loopback, one thread per end, and next to each the same over plain TCP: a stream of 1 MiB writes
//! and a ping-pong, with the same tokio runtimes. The runs take turns, because a machine's speed drifts; what counts is
//! the median of the ratios. The processor time of both ends together is less sensitive to other load.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may panic")]

use std::{
    collections::VecDeque,
    future::poll_fn,
    net::SocketAddr,
    task::Poll,
    time::{Duration, Instant},
};

use rpcrdma_fabric::{
    Access, Answer, BoxQueuePair, Completion, Connector as _, Exposed, Listener as _, Region, RemoteSegment,
    RemoteSegments, Stag, Start, Work,
};
use softiwarp::{Config, Connector, Listener};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const MIB: usize = 1 << 20;
const TRANSFERS: usize = 1500;
const ROUNDS: usize = 20_000;
/// Operations in flight in the streams. All go to one region of the peer's, or come from one.
const DEPTH: usize = 2;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn next(
    qp: &mut BoxQueuePair,
    done: &mut VecDeque<Completion>,
    buf: &mut Vec<Completion>,
) -> Option<Completion> {
    loop {
        if let Some(first) = done.pop_front() {
            return Some(first);
        }
        let polled = poll_fn(|cx| match qp.poll(cx, buf) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(r) => Poll::Ready(r),
        })
        .await;
        done.extend(buf.drain(..));
        if polled.is_err() && done.is_empty() {
            return None;
        }
    }
}

fn start() -> Start {
    Start { recvs: (0..64).map(|_| Region::alloc(4096)).collect(), ..Start::default() }
}

/// The passive end: exposes a region, tells where, and echoes every other message.
async fn serve(mut listener: Listener) {
    let request = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
    let mut qp = request.accept(Box::new(|_| Answer::Accept(start()))).await.unwrap();
    let (mut done, mut buf) = (VecDeque::new(), Vec::new());
    let exposed: Vec<Exposed> = [Access::RemoteWrite, Access::RemoteRead]
        .into_iter()
        .map(|access| {
            let mut region = Region::alloc(MIB);
            region.fill(1);
            qp.expose(region, MIB as u32, access).unwrap()
        })
        .collect();
    let mut hello = Vec::new();
    for e in exposed {
        hello.extend_from_slice(&e.stag.0.to_be_bytes());
        hello.extend_from_slice(&e.offset.to_be_bytes());
    }
    let region = Region::from(&hello[..]);
    qp.post(Work::Send { id: 0, len: region.len(), buf: region, invalidate: None }).unwrap();
    let mut spare = Vec::from([Region::alloc(4096), Region::alloc(4096)]);
    while let Some(c) = next(&mut qp, &mut done, &mut buf).await {
        match c {
            Completion::Received { buf, len, .. } => {
                let mut answer = spare.pop().unwrap_or_else(|| Region::alloc(4096));
                answer[..len].copy_from_slice(&buf[..len]);
                qp.post_recv(buf).unwrap();
                qp.post(Work::Send { id: 0, buf: answer, len, invalidate: None }).unwrap();
            }
            Completion::Done { buf, .. } if buf.len() == 4096 => spare.push(buf),
            _ => {}
        }
    }
}

struct Client {
    qp: BoxQueuePair,
    done: VecDeque<Completion>,
    buf: Vec<Completion>,
    /// To write to, and to read from.
    peers: Vec<RemoteSegment>,
    messages: Vec<Region>,
}

impl Client {
    async fn connect(to: SocketAddr, config: Config) -> Self {
        let qp = Connector::new(config).connect(to, start()).await.unwrap();
        let mut client = Self {
            qp,
            done: VecDeque::new(),
            buf: Vec::new(),
            peers: Vec::new(),
            messages: vec![Region::alloc(64)],
        };
        // The passive end may speak once it has heard something.
        let knock = RemoteSegment { stag: Stag(1), offset: 0, len: 0 };
        client
            .qp
            .post(Work::Write {
                id: 0,
                buf: Region::alloc(0),
                at: 0,
                to: RemoteSegments::from_slice(&[knock]),
            })
            .unwrap();
        loop {
            let c = next(&mut client.qp, &mut client.done, &mut client.buf).await.unwrap();
            if let Completion::Received { buf, len, .. } = c {
                for e in buf[..len].chunks_exact(12) {
                    let stag = Stag(u32::from_be_bytes(*e.first_chunk().unwrap()));
                    let offset = u64::from_be_bytes(*e.last_chunk().unwrap());
                    client.peers.push(RemoteSegment { stag, offset, len: MIB as u32 });
                }
                client.qp.post_recv(buf).unwrap();
                return client;
            }
        }
    }

    /// Streams in one direction.
    async fn stream(&mut self, reading: bool) -> Took {
        let segments = RemoteSegments::from_slice(&[self.peers[usize::from(reading)]]);
        let work = |i: usize, buf| {
            let segments = segments.clone();
            if reading {
                Work::Read { id: i as u64, buf, at: 0, from: segments }
            } else {
                Work::Write { id: i as u64, buf, at: 0, to: segments }
            }
        };
        let regions: Vec<Region> = (0..DEPTH)
            .map(|_| {
                let mut region = Region::alloc(MIB);
                region.fill(2);
                region
            })
            .collect();
        let begin = Watch::start();
        let (mut posted, mut finished) = (0, 0);
        for region in regions {
            self.qp.post(work(posted, region)).unwrap();
            posted += 1;
        }
        while finished < TRANSFERS {
            let c = next(&mut self.qp, &mut self.done, &mut self.buf).await.unwrap();
            if let Completion::Done { buf, .. } = c
                && buf.len() == MIB
            {
                finished += 1;
                if posted < TRANSFERS {
                    self.qp.post(work(posted, buf)).unwrap();
                    posted += 1;
                }
            }
        }
        // A Write is done when the transport has it; the answer to a message says that the peer has it too.
        self.ping().await;
        begin.stop()
    }

    async fn ping(&mut self) {
        let buf = self.messages.pop().unwrap();
        self.qp.post(Work::Send { id: 1, buf, len: 64, invalidate: None }).unwrap();
        let mut answered = false;
        while !answered || self.messages.is_empty() {
            match next(&mut self.qp, &mut self.done, &mut self.buf).await.unwrap() {
                Completion::Received { buf, .. } => {
                    self.qp.post_recv(buf).unwrap();
                    answered = true;
                }
                Completion::Done { buf, .. } => self.messages.push(buf),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Round trips, one after the other.
    async fn ping_pong(&mut self) -> Took {
        let begin = Watch::start();
        for _ in 0..ROUNDS {
            self.ping().await;
        }
        begin.stop()
    }
}

/// What a run took: wall time, and processor time of the whole process.
struct Watch(Instant, Duration);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), processor_time())
    }

    fn stop(self) -> Took {
        Took { wall: self.0.elapsed().as_secs_f64(), processor: (processor_time() - self.1).as_secs_f64() }
    }
}

fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    processor: f64,
}

/// Runs of one kind.
#[derive(Default)]
struct Runs(Vec<Took>);

impl Runs {
    fn wall(&self) -> f64 {
        median(self.0.iter().map(|t| t.wall))
    }

    /// The least of the processor times: the run that was disturbed least.
    fn processor(&self) -> f64 {
        self.0.iter().map(|t| t.processor).fold(f64::INFINITY, f64::min)
    }

    /// Median ratio of wall times to those of the raw run next to each.
    fn against(&self, raw: &Self) -> f64 {
        median(self.0.iter().zip(&raw.0).map(|(a, b)| a.wall / b.wall))
    }
}

/// The passive end of the raw stream: takes a mebibyte at a time, or echoes 64 bytes.
async fn raw_serve(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    tune(&stream);
    let mut buf = vec![0; MIB];
    while stream.read_exact(&mut buf[..1]).await.is_ok() {
        if buf[0] == 0 {
            for _ in 0..TRANSFERS {
                stream.read_exact(&mut buf).await.unwrap();
            }
            stream.write_all(&[0; 64]).await.unwrap();
        } else {
            for _ in 0..ROUNDS {
                stream.read_exact(&mut buf[..64]).await.unwrap();
                stream.write_all(&buf[..64]).await.unwrap();
            }
        }
    }
}

fn tune(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    let _ = socket2::SockRef::from(stream).set_tcp_congestion(b"reno");
}

async fn raw_stream(stream: &mut TcpStream, buf: &mut [u8]) -> Took {
    stream.write_all(&[0]).await.unwrap();
    let begin = Watch::start();
    // From as many buffers as the other streams are from, so that the caches see the same.
    for i in 0..TRANSFERS {
        let at = (i % DEPTH) * MIB;
        stream.write_all(&buf[at..at + MIB]).await.unwrap();
    }
    stream.read_exact(&mut buf[..64]).await.unwrap();
    begin.stop()
}

async fn raw_ping_pong(stream: &mut TcpStream) -> Took {
    stream.write_all(&[1]).await.unwrap();
    let mut buf = [0; 64];
    let begin = Watch::start();
    for _ in 0..ROUNDS {
        stream.write_all(&buf).await.unwrap();
        stream.read_exact(&mut buf).await.unwrap();
    }
    begin.stop()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Keeps the calling thread on one processor, if there is such a one: two ends on the same one are another benchmark.
fn stay_on(processor: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// Starts a passive end on a thread of its own.
fn on_thread<F: Future<Output = ()>>(
    listen: impl FnOnce() -> (SocketAddr, F) + Send + 'static,
) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        stay_on(1);
        let runtime = runtime();
        let _inside = runtime.enter();
        let (addr, serve) = listen();
        tell.send(addr).unwrap();
        runtime.block_on(serve);
    });
    told.recv().unwrap()
}

fn main() {
    let pairs = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5);
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let raw_addr = on_thread(move || {
        let listener = std::net::TcpListener::bind(any).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        (listener.local_addr().unwrap(), raw_serve(listener))
    });
    stay_on(0);
    runtime().block_on(async move {
        let mut raw = TcpStream::connect(raw_addr).await.unwrap();
        tune(&raw);
        let mut buf = vec![3; DEPTH * MIB];
        for crc in [false, true] {
            let mut config = Config::default();
            config.crc = crc;
            let passive = config.clone();
            let to = on_thread(move || {
                let listener = Listener::bind(any, passive).unwrap();
                (listener.local_addr(), serve(listener))
            });
            let mut client = Client::connect(to, config).await;
            let [mut write, mut read, mut ping, mut raw_write, mut raw_read, mut raw_ping] =
                std::array::from_fn(|_| Runs::default());
            client.stream(false).await;
            for _ in 0..pairs {
                raw_write.0.push(raw_stream(&mut raw, &mut buf).await);
                write.0.push(client.stream(false).await);
                raw_read.0.push(raw_stream(&mut raw, &mut buf).await);
                read.0.push(client.stream(true).await);
                raw_ping.0.push(raw_ping_pong(&mut raw).await);
                ping.0.push(client.ping_pong().await);
            }
            println!("CRC {}:", if crc { "on" } else { "off" });
            let gib = TRANSFERS as f64 / 1024.0;
            for (name, runs, raw) in [("RDMA Write", &write, &raw_write), ("RDMA Read", &read, &raw_read)] {
                println!(
                    "  {name} 1 MiB: {:.2} of raw ({:.2} of {:.2} GiB/s); {:.2} of {:.2} CPU-s/GiB",
                    1.0 / runs.against(raw),
                    gib / runs.wall(),
                    gib / raw.wall(),
                    runs.processor() / gib,
                    raw.processor() / gib,
                );
            }
            let round = ROUNDS as f64 / 1e6;
            println!(
                "  Send 64 B round trip: {:.2} times raw ({:.1}, {:.1} us); {:.1}, {:.1} us CPU",
                ping.against(&raw_ping),
                ping.wall() / round,
                raw_ping.wall() / round,
                ping.processor() / round,
                raw_ping.processor() / round,
            );
        }
    });
}
