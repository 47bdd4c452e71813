//! Client and server of this crate over softiwarp on loopback, with and without cuts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rpcrdma::{
    client::{Identity, Mount, MountConfig, Target, Transport},
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions, Squash},
    memory::Pools,
    metrics::ServerMetrics,
    server::{
        RpcService, Server, ServerConfig,
        service::{IncomingCall, OutgoingReply, Patience, Served, Service},
    },
};
use rpcrdma_fabric::{
    Connector, FaultCounters, FaultPlan, InjectConnector, InjectListener, Listener as _, QpLimits, Region,
    RemoteSegment, Stag, Start, Work,
};
use rpcrdma_nfs::v3::{CreateMode, Handle, SetAttributes, Stable, Status};

struct Peer {
    server: Server,
    at: SocketAddr,
    cuts: Arc<FaultCounters>,
}

/// Answers everything on blocking threads, and panics over the first so many Calls.
struct Clumsy(RpcService, AtomicUsize);

impl Service for Clumsy {
    fn serve(
        &self,
        call: &IncomingCall<'_>,
        patience: Patience,
        pools: &Pools,
        reply: &mut OutgoingReply,
    ) -> Served {
        if patience == Patience::Now {
            return Served::WouldBlock;
        }
        let left = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_err(), "as clumsy as asked for");
        self.0.serve(call, patience, pools, reply)
    }
}

impl Peer {
    fn start(config: ServerConfig, inject: Option<FaultPlan>) -> Self {
        Self::serving(config, inject, |service| Arc::new(service))
    }

    fn serving(
        config: ServerConfig,
        inject: Option<FaultPlan>,
        wrap: impl FnOnce(RpcService) -> Arc<dyn Service>,
    ) -> Self {
        let mut exports = Exports::new();
        let memory = MemoryExport::new(HandleKey::random().unwrap(), MemoryOptions::default());
        let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
        exports.add("/mem", Arc::new(memory), rules).unwrap();
        let mut server = Server::new(wrap(RpcService::new(exports)), config);
        let listener =
            softiwarp::Listener::bind(([127, 0, 0, 1], 0).into(), softiwarp::Config::default()).unwrap();
        let at = listener.local_addr();
        let never = FaultPlan { one_in: 1, seed: 0, times: 0 };
        let listener = InjectListener::new(Box::new(listener), inject.unwrap_or(never));
        let cuts = listener.counters();
        server.listen_rdma(Box::new(listener));
        Self { server, at, cuts }
    }

    fn metrics(&self) -> Arc<ServerMetrics> {
        self.server.metrics()
    }

    async fn mount(&self, connector: Arc<dyn Connector>, mut config: MountConfig) -> Mount {
        config.identity = Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "test".to_owned() };
        let target: Target = format!("nfs://{}/mem", self.at).parse().unwrap();
        Mount::new(&Transport::Rdma(connector), &target, config).await.unwrap()
    }
}

fn connector(change: impl FnOnce(&mut softiwarp::Config)) -> Arc<dyn Connector> {
    let mut config = softiwarp::Config::default();
    change(&mut config);
    Arc::new(softiwarp::Connector::new(config))
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 7) >> 3) as u8 ^ seed as u8).collect()
}

async fn create(mount: &Mount, name: &str) -> Handle {
    let how = CreateMode::Unchecked(SetAttributes { mode: Some(0o644), ..SetAttributes::default() });
    mount.create(mount.root(), name.as_bytes(), how).await.unwrap().object.unwrap()
}

async fn write(mount: &Mount, file: Handle, offset: u64, data: &[u8]) {
    let (done, region) =
        mount.write(file, offset, data.len() as u32, Region::from(data), Stable::FileSync).await;
    let done = done.unwrap();
    assert_eq!(done.count as usize, data.len());
    assert_eq!(&region.unwrap()[..], data, "the region comes back untouched");
}

async fn read(mount: &Mount, file: Handle, offset: u64, len: usize) -> (Vec<u8>, bool) {
    let (done, region) = mount.read(file, offset, len as u32, Region::alloc(len)).await;
    let done = done.unwrap();
    (region.unwrap()[..done.len as usize].to_vec(), done.eof)
}

#[tokio::test]
async fn every_size_there_and_back() {
    for (crc, p2p, inline) in [(true, false, 4096), (false, false, 1024), (true, true, 8192)] {
        let peer = Peer::start(ServerConfig::default(), None);
        let mut config = MountConfig::default();
        config.rdma.inline = inline;
        let connector = connector(|c| {
            c.crc = crc;
            c.peer_to_peer = p2p;
        });
        let mount = peer.mount(connector, config).await;
        let file = create(&mount, "file").await;
        let mut sizes: Vec<usize> = (1..20).collect();
        for around in [500, 700, 800, 900, 1000, 3800, 3950, 4096, 8000, 65536, 1 << 20] {
            sizes.extend(
                [around - 1, around, around + 1, around + 2, around + 3].iter().filter(|n| **n <= 1 << 20),
            );
        }
        for len in sizes {
            let data = pattern(len, len);
            write(&mount, file, 3, &data).await;
            let (got, _) = read(&mount, file, 3, len).await;
            assert!(got == data, "{len} bytes differ");
        }
        let (got, eof) = read(&mount, file, (1 << 20) + 3 - 10, 1000).await;
        assert_eq!((got.len(), eof), (10, true));
        assert_eq!(mount.metrics().early_sends.get(), 0);
    }
}

#[tokio::test]
async fn names_and_listings() {
    let peer = Peer::start(ServerConfig::default(), None);
    let mount = peer.mount(connector(|_| ()), MountConfig::default()).await;
    let root = mount.root();
    for i in 0..500 {
        create(&mount, &format!("file-{i:03}")).await;
    }
    let mut names = Vec::new();
    let (mut cookie, mut verifier) = (0, Default::default());
    loop {
        let page = mount.readdirplus(root, cookie, verifier, 16384).await.unwrap();
        names.extend(page.entries.iter().map(|e| String::from_utf8(e.name.clone()).unwrap()));
        (cookie, verifier) = (page.next, page.verifier);
        if page.eof {
            break;
        }
    }
    names.sort();
    assert_eq!(names.len(), 500);
    assert_eq!(names[499], "file-499");
    let long = vec![b'x'; 200];
    let target = "t".repeat(1000);
    let made = mount.symlink(root, &long, target.as_bytes(), SetAttributes::default()).await.unwrap();
    assert_eq!(mount.readlink(made.object.unwrap()).await.unwrap(), target.as_bytes());
    let e = mount.lookup(root, b"nothing").await.unwrap_err();
    assert_eq!((e.status(), e.errno()), (Some(Status::NOENT), 2));
    mount.remove(root, b"file-000").await.unwrap();
    assert_eq!(mount.remove(root, b"file-000").await.unwrap_err().errno(), 2);
    assert!(mount.fsstat(root).await.unwrap().total_bytes > 0);
    mount.null().await.unwrap();
}

/// Many workers create, fill, read, rename and remove files while both ends cut the connection. Every operation has to
/// succeed exactly once: a repeated CREATE (guarded), RENAME or REMOVE would fail.
async fn workers_under_cuts(seed: u64, workers: usize, rounds: usize, nconnect: usize) {
    let plan = |one_in, seed| FaultPlan { one_in, seed, times: u64::MAX };
    let peer = Peer::start(ServerConfig::default(), Some(plan(150, seed)));
    let inner = softiwarp::Connector::new(softiwarp::Config::default());
    let injector = Arc::new(InjectConnector::new(inner, plan(150, seed + 1)));
    let cuts = injector.counters();
    let mount = peer.mount(injector.clone(), MountConfig { nconnect, ..MountConfig::default() }).await;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..workers {
        let mount = mount.clone();
        tasks.spawn(async move {
            let root = mount.root();
            for round in 0..rounds {
                let name = format!("w{worker}-r{round}");
                let how = CreateMode::Guarded(SetAttributes::default());
                let made = mount.create(root, name.as_bytes(), how).await.expect("created once");
                let file = made.object.unwrap();
                let len = [10, 3000, 5000, 70_001, 1 << 20][(worker + round) % 5];
                let data = pattern(worker * 1000 + round, len);
                write(&mount, file, 0, &data).await;
                let (got, eof) = read(&mount, file, 0, len + 1000).await;
                assert!(got == data && eof, "worker {worker} round {round}: {} of {len} bytes", got.len());
                let moved = format!("{name}-moved");
                mount.rename((root, name.as_bytes()), (root, moved.as_bytes())).await.expect("renamed once");
                mount.remove(root, moved.as_bytes()).await.expect("removed once");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let m = mount.metrics();
    let total = cuts.cuts() + peer.cuts.cuts();
    assert!(total > 5, "only {total} cuts");
    assert!(m.connects.get() > nconnect as u64 && m.retransmissions.get() > 0);
    assert_eq!(m.early_sends.get(), 0);
    assert_eq!(m.overruns.get(), 0);
    assert_eq!(peer.metrics().overruns.get(), 0);
    let page = mount.readdir(mount.root(), 0, Default::default(), 4096).await.unwrap();
    assert!(page.eof && page.entries.is_empty(), "{} files are left", page.entries.len());
    println!(
        "seed {seed}: {total} cuts, {} connections, {} calls, {} retransmissions, most outstanding {}",
        m.connects.get(),
        m.calls.get(),
        m.retransmissions.get(),
        m.most_outstanding.get()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_repeated_under_cuts() {
    for seed in 1..=3 {
        workers_under_cuts(seed, 16, 10, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_connections_under_cuts() {
    workers_under_cuts(11, 24, 6, 3).await;
}

#[tokio::test]
async fn one_machine_gets_only_its_share_of_connections() {
    let mut config = ServerConfig::default();
    config.rdma.connections_per_peer = 2;
    let peer = Peer::start(config, None);
    let metrics = peer.metrics();
    let first = peer.mount(connector(|_| ()), MountConfig::default()).await;
    let second = peer.mount(connector(|_| ()), MountConfig::default()).await;

    let target: Target = format!("nfs://{}/mem", peer.at).parse().unwrap();
    let transport = Transport::Rdma(connector(|_| ()));
    let refused = Mount::connect(&transport, &target, MountConfig::default()).await;
    assert!(refused.is_err(), "the share of this address is taken");
    assert_eq!((metrics.connections.get(), metrics.refused.get()), (2, 1));
    second.null().await.unwrap();

    // A place is free as soon as its connection has ended, without another attempt in between.
    drop(first);
    while metrics.closed.get() == 0 {
        tokio::task::yield_now().await;
    }
    let third = peer.mount(connector(|_| ()), MountConfig::default()).await;
    third.null().await.unwrap();
    second.null().await.unwrap();
    peer.server.stop().await;
}

#[tokio::test]
async fn a_panic_of_the_service_costs_a_connection_and_no_call() {
    let panics = 2;
    let peer = Peer::serving(ServerConfig::default(), None, |service| {
        Arc::new(Clumsy(service, AtomicUsize::new(panics)))
    });
    let mount = peer.mount(connector(|_| ()), MountConfig::default()).await;
    mount.null().await.unwrap();
    assert_eq!(peer.metrics().connections.get(), panics as u64 + 1);
}

#[tokio::test]
async fn long_replies_wait_for_memory() {
    // Four regions of the size of a listing and a larger one, for sixteen listings.
    let peer = Peer::start(ServerConfig { transfers: 1, ..ServerConfig::default() }, None);
    let mount = peer.mount(connector(|_| ()), MountConfig::default()).await;
    for i in 0..400 {
        create(&mount, &format!("{i:0200}")).await;
    }
    let listings: Vec<_> = (0..16)
        .map(|_| {
            let mount = mount.clone();
            tokio::spawn(async move { mount.readdirplus(mount.root(), 0, Default::default(), 100_000).await })
        })
        .collect();
    for listing in listings {
        assert!(listing.await.unwrap().unwrap().entries.len() > 100);
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_rules_of_the_transport_is_counted() {
    let peer = Peer::start(ServerConfig::default(), None);
    let start = Start { private_data: Vec::new(), recvs: Vec::new(), limits: QpLimits::default() };
    let mut qp = connector(|_| ()).connect(peer.at, start).await.unwrap();
    let to = [RemoteSegment { stag: Stag(0x0bad_0bad), offset: 0, len: 4 }].into_iter().collect();
    qp.post(Work::Write { id: 1, buf: Region::alloc(4), at: 0, to }).unwrap();
    let mut done = Vec::new();
    while poll_fn(|cx| qp.poll(cx, &mut done)).await.is_ok() {}
    while peer.metrics().closed.get() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(peer.metrics().misbehaved.get(), 1);
}
