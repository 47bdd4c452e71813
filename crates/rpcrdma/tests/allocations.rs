//! In steady state a Call costs no allocation, on either side: client and server run in this process, and the global
//! allocator counts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{alloc::System, cell::RefCell, future::Future, sync::Arc};

use rpcrdma::{
    client::{Identity, Mount, MountConfig, Target, Transport},
    export::{
        ExportRules, Exports, HandleKey, LocalExport, LocalOptions, MemoryExport, MemoryOptions, Squash,
    },
    server::{RpcService, Server, ServerConfig},
};
use rpcrdma_fabric::{Listener as _, Region};
use rpcrdma_nfs::v3::{AccessMask, CreateMode, Handle, SetAttributes, Stable};
use rpcrdma_proto::drc;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations up to now.
fn count() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// Allocations in `rounds` runs of `operation`, after it has run as often to warm up. The best of several attempts,
/// because the runtime allocates now and then for itself.
async fn allocations<F: Future<Output = ()>>(rounds: u64, mut operation: impl FnMut() -> F) -> usize {
    let mut best = usize::MAX;
    for _ in 0..4 {
        for _ in 0..rounds {
            operation().await;
        }
        let before = count();
        for _ in 0..rounds {
            operation().await;
        }
        best = best.min(count() - before);
        if best == 0 {
            break;
        }
    }
    best
}

async fn measure(mount: &Mount, file: Handle) {
    let rounds = 100;
    assert_eq!(allocations(rounds, || async { mount.null().await.unwrap() }).await, 0, "NULL");
    assert_eq!(
        allocations(rounds, || async {
            let _ = mount.getattr(file).await.unwrap();
        })
        .await,
        0,
        "GETATTR"
    );
    let lookup = || async {
        let _ = mount.lookup(mount.root(), b"file").await.unwrap();
    };
    assert_eq!(allocations(rounds, lookup).await, 0, "LOOKUP");
    let access = || async {
        let _ = mount.access(file, AccessMask::ALL).await.unwrap();
    };
    assert_eq!(allocations(rounds, access).await, 0, "ACCESS");
    for len in [100, 4096, 65536, 1 << 20] {
        let spare = RefCell::new(Some(Region::alloc(len)));
        let read = || async {
            let region = spare.take().unwrap();
            let (done, region) = mount.read(file, 0, len as u32, region).await;
            assert_eq!(done.unwrap().len as usize, len);
            spare.replace(region);
        };
        assert_eq!(allocations(rounds / 4, read).await, 0, "READ of {len} bytes");
        let write = || async {
            let region = spare.take().unwrap();
            let (done, region) = mount.write(file, 0, len as u32, region, Stable::Unstable).await;
            assert_eq!(done.unwrap().count as usize, len);
            spare.replace(region);
        };
        assert_eq!(allocations(rounds / 4, write).await, 0, "WRITE of {len} bytes");
    }
}

async fn run(exports: Exports, name: &str) {
    // A small duplicate request cache is full soon, and then uses its memory again.
    let cache = drc::Limits { max_entries: 64, ..drc::Limits::default() };
    let mut server = Server::new(Arc::new(RpcService::with_cache(exports, cache)), ServerConfig::default());
    let listener =
        softiwarp::Listener::bind(([127, 0, 0, 1], 0).into(), softiwarp::Config::default()).unwrap();
    let target: Target = format!("nfs://{}{name}", listener.local_addr()).parse().unwrap();
    server.listen_rdma(Box::new(listener));
    let identity = Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "test".to_owned() };
    let config = MountConfig { identity, ..MountConfig::default() };
    let connector = Arc::new(softiwarp::Connector::new(softiwarp::Config::default()));
    let mount = Mount::new(&Transport::Rdma(connector), &target, config.clone()).await.unwrap();
    let how = CreateMode::Unchecked(SetAttributes { mode: Some(0o644), ..SetAttributes::default() });
    let file = mount.create(mount.root(), b"file", how).await.unwrap().object.unwrap();
    let (done, _) = mount.write(file, 0, 1 << 20, Region::alloc(1 << 20), Stable::Unstable).await;
    done.unwrap();
    measure(&mount, file).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target: Target = format!("nfs://{}{name}", listener.local_addr().unwrap()).parse().unwrap();
    server.listen_tcp(listener);
    let mount = Mount::new(&Transport::Tcp, &target, config).await.unwrap();
    measure(&mount, file).await;
}

fn rules() -> ExportRules {
    ExportRules { squash: Squash::None, ..ExportRules::default() }
}

#[tokio::test]
async fn no_allocation_per_call() {
    let memory = MemoryExport::new(HandleKey::random().unwrap(), MemoryOptions::default());
    let mut exports = Exports::new();
    exports.add("/mem", Arc::new(memory), rules()).unwrap();
    run(exports, "/mem").await;

    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().to_str().unwrap().to_owned();
    // A Call that goes to another thread is put into a queue, which allocates.
    let options = LocalOptions { apart: false, ..LocalOptions::default() };
    let local = LocalExport::open(dir.path(), &HandleKey::random().unwrap(), options).unwrap();
    let mut exports = Exports::new();
    exports.add(&name, Arc::new(local), rules()).unwrap();
    run(exports, &name).await;
}
