//! Real sockets: threads at work through software iWARP while every connection is cut again and again.
//!
//! Each `cargo test` does a little of it. For long, with 64 threads and a cut each 50 ms:
//!
//! ```sh
//! SOAK_SECONDS=300 cargo test --release -p rpcrdma-tests --test soak -- --ignored --nocapture
//! ```
//!
//! A relay between client and server resets the connections of both, whatever is under way. Each thread creates a file
//! with a guard, writes, reads and compares it, renames and removes it. A Call that is lost leaves its thread waiting; one
//! that is repeated makes a guarded CREATE, a RENAME or a REMOVE fail, or shows in the server's count of executions.
//!
//! # Memory
//! What fills up to a bound and stays (the pools' regions, the duplicate request cache) is filled first. Ten times in a run
//! all threads pause between two files; the connection they have used is cut, one Call makes another, and what is then
//! allocated and not freed is counted. From the first third of the run to its end that may not grow: a run of a minute
//! has more than a thousand connections, and a leak of a few bytes in each of them shows. The process's resident memory
//! is a weaker measure, because allocators keep some back, but counts what was not allocated on the heap.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    alloc::System,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rpcrdma::{
    client::{BackoffConfig, Identity, Mount, MountConfig, Target, Transport},
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions, Squash},
    memory::Pools,
    metrics::ClientMetrics,
    nfs::v3::{CreateMode, Proc, SetAttributes, Stable},
    proto::drc,
    server::{RpcService, Server, ServerConfig},
};
use rpcrdma_fabric::{Listener as _, Region};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// How often memory is looked at.
const LOOKS: usize = 10;
/// Growth that is not a leak, in bytes and blocks on the heap: what a thread of the runtime has for itself.
const SLACK: (usize, usize) = (2048, 16);
/// Growth of the process that is not a leak, in bytes: allocators keep some memory back.
const RESIDENT_SLACK: usize = 24 << 20;
/// After this long something hangs.
const PATIENCE: Duration = Duration::from_secs(240);

/// How much there is to do.
struct Load {
    threads: usize,
    /// Bytes of the largest file.
    largest: usize,
    between_cuts: Duration,
    /// Takes the time between two looks at memory.
    wait: Box<dyn Fn(&ClientMetrics)>,
}

/// Passes connections on to `to`, and resets all of them at every tick until it is told to stop.
async fn relay(
    listener: TcpListener,
    to: SocketAddr,
    between_cuts: Duration,
    cutting: Arc<AtomicBool>,
    cuts: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    let mut ticks = interval(between_cuts);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut client, _) = accepted.unwrap();
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    for stream in [&client, &server] {
                        stream.set_nodelay(true).unwrap();
                        // Dropped, it is reset at once.
                        stream.set_zero_linger().unwrap();
                    }
                    // How it ends is not our concern.
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
            Some(_) = connections.join_next() => {}
            _ = ticks.tick() => {
                if cutting.load(Ordering::Relaxed) && !connections.is_empty() {
                    cuts.fetch_add(connections.len() as u64, Ordering::Relaxed);
                    connections.abort_all();
                }
            }
        }
    }
}

/// What this process has.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Bytes allocated and not freed.
    live: usize,
    /// Allocations that are not freed.
    blocks: usize,
    /// Bytes of the process in memory.
    resident: usize,
    /// Open file descriptors.
    files: usize,
}

impl Memory {
    fn now() -> Self {
        let stats = ALLOCATOR.stats();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        Self {
            live: stats.bytes_allocated - stats.bytes_deallocated,
            blocks: stats.allocations - stats.deallocations,
            resident: statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096,
            files: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { live, blocks, resident, files } = self;
        write!(f, "{live} bytes in {blocks} blocks, {} KiB resident, {files} descriptors", resident >> 10)
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waits in vain until {what}");
        std::thread::yield_now();
    }
}

/// Makes all regions that the pools can have, and touches each of their pages.
fn fill(pools: &Pools) {
    let mut all: Vec<_> = std::iter::from_fn(|| pools.take(0)).collect();
    all.iter_mut().for_each(|region| region.fill(1));
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed) >> 2) as u8 ^ seed as u8).collect()
}

/// One file, from its creation to its end.
async fn round(mount: &Mount, worker: usize, round: u64, largest: usize) {
    let root = mount.root();
    let (name, moved) = (format!("w{worker}-r{round}"), format!("w{worker}-r{round}-moved"));
    let how = CreateMode::Guarded(SetAttributes::default());
    let file = mount.create(root, name.as_bytes(), how).await.expect("created once").object.unwrap();
    let sizes = [10, 3000, 5000, 40_001, 100_000, 1000, 300_000, 0];
    let len = sizes[(worker + round as usize) % sizes.len()].min(largest);
    let data = pattern(round * 64 + worker as u64, len);
    let (mut at, mut region) = (0, Region::from(&data[..]));
    while at < len {
        region[..len - at].copy_from_slice(&data[at..]);
        let (done, back) = mount.write(file, at as u64, (len - at) as u32, region, Stable::Unstable).await;
        at += done.expect("written").count as usize;
        region = back.unwrap();
    }
    let (mut at, mut room) = (0, Region::alloc(len + 8));
    loop {
        let (done, back) = mount.read(file, at as u64, (len - at + 8) as u32, room).await;
        let done = done.expect("read");
        room = back.unwrap();
        let n = done.len as usize;
        assert!(at + n <= len && room[..n] == data[at..at + n], "{name}: other bytes at {at}");
        at += n;
        if done.eof {
            break;
        }
    }
    assert_eq!(at, len, "{name} ends early");
    mount.rename((root, name.as_bytes()), (root, moved.as_bytes())).await.expect("renamed once");
    mount.remove(root, moved.as_bytes()).await.expect("removed once");
}

/// Files, one after the other by each thread, until memory was looked at often enough.
fn run(load: Load) {
    // Everything that is allocated counts, so no two of these run at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Load { threads, largest, between_cuts, wait } = load;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let inside = runtime.enter();

    let mut exports = Exports::new();
    let memory = MemoryExport::new(HandleKey::random().unwrap(), MemoryOptions::default());
    let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
    exports.add("/mem", Arc::new(memory), rules).unwrap();
    // Full soon, so that it does not look like a leak.
    let cache = drc::Limits { max_entries: 32 * threads, ..drc::Limits::default() };
    let service = Arc::new(RpcService::with_cache(exports, cache));
    let mut config = ServerConfig { transfers: threads, ..ServerConfig::default() };
    config.rdma.connections = 4096;
    config.rdma.connections_per_peer = 4096;
    let mut server = Server::new(Arc::clone(&service) as _, config);
    let listener =
        softiwarp::Listener::bind(([127, 0, 0, 1], 0).into(), softiwarp::Config::default()).unwrap();
    let at = listener.local_addr();
    server.listen_rdma(Box::new(listener));

    let (cutting, cuts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let front = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let target: Target = format!("nfs://{}/mem", front.local_addr().unwrap()).parse().unwrap();
    runtime.spawn(relay(front, at, between_cuts, Arc::clone(&cutting), Arc::clone(&cuts)));

    let mut config = MountConfig {
        identity: Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "soak".to_owned() },
        calls: threads,
        ..MountConfig::default()
    };
    config.rdma.backoff = BackoffConfig { first: Duration::from_millis(1), cap: Duration::from_millis(20) };
    let connector = Arc::new(softiwarp::Connector::new(softiwarp::Config::default()));
    let mount = runtime.block_on(Mount::new(&Transport::Rdma(connector), &target, config)).unwrap();
    fill(server.pools());
    fill(mount.pools());

    // What is there while nobody works, on a connection that has carried one Call: one that has carried many may have
    // more buffers than others.
    let rest = || {
        let metrics = server.metrics();
        let open = || metrics.connections.get() - metrics.closed.get();
        until("the connection is cut", || open() == 0);
        cutting.store(false, Ordering::Relaxed);
        runtime.block_on(mount.null()).unwrap();
        until("the server has no other connections", || open() == 1);
        let memory = Memory::now();
        cutting.store(true, Ordering::Relaxed);
        memory
    };
    let (stop, rounds, working) = (AtomicBool::new(false), AtomicU64::new(0), RwLock::new(()));
    cutting.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let looks: Vec<Memory> = std::thread::scope(|scope| {
        for worker in 0..threads {
            let (mount, stop, rounds, working) = (&mount, &stop, &rounds, &working);
            let handle = runtime.handle();
            scope.spawn(move || {
                for nth in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let _at_work = working.read().unwrap();
                    // Cut connections delay it; after minutes it hangs.
                    let done = handle
                        .block_on(async { timeout(PATIENCE, round(mount, worker, nth, largest)).await });
                    done.unwrap_or_else(|_| panic!("thread {worker} hangs in round {nth}"));
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let looks = (0..LOOKS).map(|_| {
            wait(mount.metrics());
            let _nobody_works = working.write().unwrap();
            // A task that ends late counts in one of them.
            (0..3).map(|_| rest()).min_by_key(|memory| memory.live).unwrap()
        });
        let looks = looks.collect();
        stop.store(true, Ordering::Relaxed);
        looks
    });
    let took = start.elapsed();
    cutting.store(false, Ordering::Relaxed);

    let m = mount.metrics();
    println!(
        "{:.0} s, {threads} threads: {} files, {} cuts, {} connections, {} Calls, {} of them again, {} Replies, \
         {} outages, the longest of {} ms",
        took.as_secs_f64(),
        rounds.load(Ordering::Relaxed),
        cuts.load(Ordering::Relaxed),
        m.connects.get(),
        m.calls.get(),
        m.retransmissions.get(),
        m.replies.get(),
        m.recoveries.get(),
        m.longest_outage_ms.get(),
    );
    looks.iter().for_each(|look| println!("at rest: {look}"));
    let rounds = rounds.load(Ordering::Relaxed);
    for proc in [Proc::Create, Proc::Rename, Proc::Remove] {
        let executed = service.counters().nfs[proc as usize].load(Ordering::Relaxed);
        assert_eq!(executed, rounds, "{proc} was executed {executed} times for {rounds} files");
    }
    assert!(cuts.load(Ordering::Relaxed) >= m.losses.get() && m.retransmissions.get() > 0, "hardly a cut");
    assert_eq!((m.early_sends.get(), m.overruns.get(), server.metrics().overruns.get()), (0, 0, 0));
    assert_eq!(mount.pools().in_use(), 0, "bytes of the client's pools");
    assert_eq!(server.pools().in_use(), 0, "bytes of the server's pools");
    let page = runtime.block_on(mount.readdir(mount.root(), 0, Default::default(), 4096)).unwrap();
    assert!(page.eof && page.entries.is_empty(), "{} files are left", page.entries.len());
    let (early, end) = (looks[LOOKS / 3], looks[LOOKS - 1]);
    let heap = end.live <= early.live + SLACK.0 && end.blocks <= early.blocks + SLACK.1;
    assert!(heap, "the heap has grown, from {early} to {end}");
    assert!(end.files <= early.files, "descriptors are left open: {early}, then {end}");
    assert!(end.resident <= early.resident + RESIDENT_SLACK, "the process has grown, from {early} to {end}");
    drop(mount);
    runtime.block_on(server.stop());
    drop(inside);
}

#[test]
fn nothing_is_lost_repeated_hung_or_leaked() {
    run(Load {
        threads: 4,
        largest: 20_000,
        between_cuts: Duration::from_millis(10),
        wait: Box::new(|metrics| {
            let enough = metrics.connects.get() + 15;
            until("the client has connected again", || metrics.connects.get() >= enough);
        }),
    });
}

#[test]
#[ignore = "long run"]
fn nothing_is_lost_repeated_hung_or_leaked_for_long() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |s| s.parse().expect("SOAK_SECONDS is a number"));
    run(Load {
        threads: 64,
        largest: usize::MAX,
        between_cuts: Duration::from_millis(50),
        wait: Box::new(move |_| std::thread::sleep(Duration::from_secs(seconds) / LOOKS as u32)),
    });
}
