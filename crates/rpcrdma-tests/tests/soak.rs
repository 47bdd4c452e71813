//! A long run over real sockets: 64 threads at work through software iWARP while every connection is cut each 50 ms.
//!
//! ```sh
//! SOAK_SECONDS=300 cargo test --release -p rpcrdma-tests --test soak -- --ignored --nocapture
//! ```
//!
//! A relay between client and server resets the connections of both, whatever is under way. Each thread creates a file
//! with a guard, writes, reads and compares it, renames and removes it. A Call that is lost leaves its thread waiting; one
//! that is repeated makes a guarded CREATE, a RENAME or a REMOVE fail, or shows in the server's count of executions. In
//! the end memory is where it was when the first part of the run was over.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rpcrdma::{
    client::{BackoffConfig, Identity, Mount, MountConfig, Target, Transport},
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions, Squash},
    nfs::v3::{CreateMode, Proc, SetAttributes, Stable},
    proto::drc,
    server::{RpcService, Server, ServerConfig},
};
use rpcrdma_fabric::{Listener as _, Region};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

const THREADS: usize = 64;
const BETWEEN_CUTS: Duration = Duration::from_millis(50);
/// Growth of the process that is not a leak, in bytes: allocators keep some memory back.
const SLACK: u64 = 24 << 20;

/// Passes connections on to `to`, and resets all of them at every tick until it is told to stop.
async fn relay(listener: TcpListener, to: SocketAddr, cutting: Arc<AtomicBool>, cuts: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    let mut ticks = interval(BETWEEN_CUTS);
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

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31).wrapping_add(seed) >> 2) as u8 ^ seed as u8).collect()
}

/// One file, from its creation to its end.
async fn round(mount: &Mount, worker: usize, round: u64) {
    let root = mount.root();
    let (name, moved) = (format!("w{worker}-r{round}"), format!("w{worker}-r{round}-moved"));
    let how = CreateMode::Guarded(SetAttributes::default());
    let file = mount.create(root, name.as_bytes(), how).await.expect("created once").object.unwrap();
    let sizes = [10, 3000, 5000, 40_001, 100_000, 1000, 300_000, 0];
    let len = sizes[(worker + round as usize) % sizes.len()];
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

#[test]
#[ignore = "long run"]
fn nothing_is_lost_repeated_or_hung_for_long() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |s| s.parse().expect("SOAK_SECONDS is a number"));
    let length = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let inside = runtime.enter();

    let mut exports = Exports::new();
    let memory = MemoryExport::new(HandleKey::random().unwrap(), MemoryOptions::default());
    let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
    exports.add("/mem", Arc::new(memory), rules).unwrap();
    // Full soon, so that it does not look like a leak.
    let cache = drc::Limits { max_entries: 2048, ..drc::Limits::default() };
    let service = Arc::new(RpcService::with_cache(exports, cache));
    let mut config = ServerConfig::default();
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
    runtime.spawn(relay(front, at, Arc::clone(&cutting), Arc::clone(&cuts)));

    let mut config = MountConfig {
        identity: Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "soak".to_owned() },
        ..MountConfig::default()
    };
    config.rdma.backoff = BackoffConfig { first: Duration::from_millis(1), cap: Duration::from_millis(20) };
    let connector = Arc::new(softiwarp::Connector::new(softiwarp::Config::default()));
    let mount = runtime.block_on(Mount::new(&Transport::Rdma(connector), &target, config)).unwrap();

    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    cutting.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let resident = std::thread::scope(|scope| {
        for worker in 0..THREADS {
            let (mount, stop, rounds, handle) = (&mount, &stop, &rounds, runtime.handle());
            scope.spawn(move || {
                for nth in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Cut connections delay it; after minutes it hangs.
                    let done = handle.block_on(async {
                        timeout(Duration::from_secs(240), round(mount, worker, nth)).await
                    });
                    done.unwrap_or_else(|_| panic!("thread {worker} hangs in round {nth}"));
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut samples = [0; 10];
        for sample in &mut samples {
            std::thread::sleep(length / 10);
            *sample = resident();
        }
        stop.store(true, Ordering::Relaxed);
        samples
    });
    let took = start.elapsed();
    cutting.store(false, Ordering::Relaxed);

    let m = mount.metrics();
    println!(
        "{:.0} s, {} threads: {} files, {} cuts, {} connections, {} Calls, {} of them again, {} Replies, \
         {} outages, the longest of {} ms; MiB resident at each tenth of the time: {:?}",
        took.as_secs_f64(),
        THREADS,
        rounds.load(Ordering::Relaxed),
        cuts.load(Ordering::Relaxed),
        m.connects.get(),
        m.calls.get(),
        m.retransmissions.get(),
        m.replies.get(),
        m.recoveries.get(),
        m.longest_outage_ms.get(),
        resident.map(|bytes| bytes >> 20),
    );
    let rounds = rounds.load(Ordering::Relaxed);
    for proc in [Proc::Create, Proc::Rename, Proc::Remove] {
        let executed = service.counters().nfs[proc as usize].load(Ordering::Relaxed);
        assert_eq!(executed, rounds, "{proc} was executed {executed} times for {rounds} files");
    }
    assert!(cuts.load(Ordering::Relaxed) > seconds * 5 && m.retransmissions.get() > 0, "hardly a cut");
    assert_eq!((m.early_sends.get(), m.overruns.get(), server.metrics().overruns.get()), (0, 0, 0));
    assert_eq!(mount.pools().in_use(), 0, "bytes of the client's pools");
    let page = runtime.block_on(mount.readdir(mount.root(), 0, Default::default(), 4096)).unwrap();
    assert!(page.eof && page.entries.is_empty(), "{} files are left", page.entries.len());
    let [_, _, warm, .., end] = resident;
    assert!(end <= warm + SLACK, "memory has grown");
    drop(mount);
    runtime.block_on(server.stop());
    drop(inside);
}
