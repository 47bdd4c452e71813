//! Client and server on a provider whose connections both ends cut: nothing is lost, and nothing is done twice.

use std::sync::Arc;

use rpcrdma::{
    client::{Identity, Mount, MountConfig, Target, Transport},
    export::{ExportRules, Exports, HandleKey, MemoryExport, MemoryOptions, Squash},
    server::{RpcService, Server, ServerConfig},
};
use rpcrdma_fabric::{Connector, FaultPlan, InjectConnector, InjectListener, Listener as _, Region};
use rpcrdma_nfs::v3::{CreateMode, SetAttributes, Stable};

use super::{Provider, bytes};

/// Cuts of both ends that are enough to say something.
const ENOUGH: u64 = 12;
const WORKERS: usize = 8;
const LENGTHS: [usize; 5] = [10, 3000, 5000, 70_001, 300_000];

/// Workers create, fill, read, rename and remove files. A CREATE (guarded), RENAME or REMOVE that is done a second time fails.
pub(super) async fn happen_once_while_connections_are_cut(provider: &dyn Provider) {
    let plan = |seed| FaultPlan { one_in: 100, seed, times: u64::MAX };
    let mut exports = Exports::new();
    let memory = MemoryExport::new(HandleKey::random().unwrap(), MemoryOptions::default());
    let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
    exports.add("/mem", Arc::new(memory), rules).unwrap();
    let mut server = Server::new(Arc::new(RpcService::new(exports)), ServerConfig::default());
    let listener = InjectListener::new(provider.listener(), plan(5));
    let (at, theirs) = (listener.local_addr(), listener.counters());
    server.listen_rdma(Box::new(listener));

    let connector = InjectConnector::new(Arc::<dyn Connector>::from(provider.connector()), plan(6));
    let ours = connector.counters();
    let identity = Identity { uid: 0, gid: 0, gids: Vec::new(), machine: "test".to_owned() };
    let target: Target = format!("nfs://{at}/mem").parse().unwrap();
    let config = MountConfig { identity, ..MountConfig::default() };
    let mount = Mount::new(&Transport::Rdma(Arc::new(connector)), &target, config).await.unwrap();

    let mut round = 0;
    while ours.cuts() + theirs.cuts() < ENOUGH {
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            workers.spawn(work(mount.clone(), worker, round));
        }
        while let Some(done) = workers.join_next().await {
            done.unwrap();
        }
        round += 1;
    }
    let (m, served) = (mount.metrics(), server.metrics());
    assert!(m.connects.get() > 1 && m.retransmissions.get() > 0);
    assert_eq!(m.early_sends.get(), 0, "Calls before the first Reply of a connection had brought a grant");
    assert_eq!((m.overruns.get(), served.overruns.get()), (0, 0), "Calls beyond the grant");
    let page = mount.readdir(mount.root(), 0, Default::default(), 4096).await.unwrap();
    assert!(page.eof && page.entries.is_empty(), "{} files are left", page.entries.len());
    server.stop().await;
}

async fn work(mount: Mount, worker: usize, round: usize) {
    let root = mount.root();
    let name = format!("w{worker}-r{round}");
    let how = CreateMode::Guarded(SetAttributes::default());
    let made = mount.create(root, name.as_bytes(), how).await.expect("created once");
    let file = made.object.unwrap();
    let data = bytes(LENGTHS[(worker + round) % LENGTHS.len()], worker * 1000 + round);
    let len = data.len() as u32;
    let (wrote, _) = mount.write(file, 0, len, Region::from(&data[..]), Stable::FileSync).await;
    assert_eq!(wrote.unwrap().count, len);
    let (read, region) = mount.read(file, 0, len, Region::alloc(data.len())).await;
    let read = read.unwrap();
    assert!(read.len == len && read.eof, "{} of {len} bytes", read.len);
    assert!(region.unwrap()[..] == data, "worker {worker} round {round}: other bytes");
    let moved = format!("{name}-moved");
    mount.rename((root, name.as_bytes()), (root, moved.as_bytes())).await.expect("renamed once");
    mount.remove(root, moved.as_bytes()).await.expect("removed once");
}
