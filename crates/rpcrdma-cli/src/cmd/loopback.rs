//! A server inside this process, on threads of its own, for `demo` and `bench`.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rpcrdma::{
    client::Target,
    export::{ExportRules, Exports, HandleKey, LocalExport, LocalOptions, Squash},
    fabric::{FaultCounters, FaultPlan, InjectListener, Listener},
    iwarp,
    metrics::ServerMetrics,
    server::{Server, ServerConfig, rpc::RpcService},
};
use tokio::runtime::Runtime;

use crate::{failure::Failure, provider::Provider};

/// A server on a free port of the loopback address, or of an RNIC's.
pub(super) struct Loopback {
    runtime: Runtime,
    server: Option<Server>,
    addr: SocketAddr,
    metrics: Arc<ServerMetrics>,
    faults: Option<Arc<FaultCounters>>,
}

impl Loopback {
    /// Serves a directory under its own path, to everybody on this machine and to root as root.
    pub(super) fn start(
        dir: &Path,
        mut config: ServerConfig,
        (provider, soft): (Provider, &iwarp::Config),
        plan: Option<FaultPlan>,
    ) -> Result<Self, Failure> {
        let fail = |e: std::io::Error| Failure::of("the server cannot start", e);
        let key = HandleKey::random().map_err(fail)?;
        // Nobody depends on what is made here once the command has ended.
        let options =
            LocalOptions { sync: false, apart: provider.keeps_threads(), ..LocalOptions::default() };
        let export = LocalExport::open(dir, &key, options).map_err(|e| Failure::new(e.to_string()))?;
        let mut exports = Exports::new();
        let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
        exports
            .add(&dir.to_string_lossy(), Arc::new(export), rules)
            .map_err(|e| Failure::new(e.to_string()))?;
        config.rdma.connections = config.rdma.connections.max(4096);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("server")
            .enable_all()
            .build()
            .map_err(fail)?;
        let _inside = runtime.enter();
        let any = SocketAddr::from((provider.own_address().map_err(fail)?, 0));
        let listener = provider.listen(any, soft).map_err(fail)?;
        let addr = listener.local_addr();
        let (listener, faults): (Box<dyn Listener>, _) = match plan {
            None => (listener, None),
            Some(plan) => {
                let inject = InjectListener::new(listener, plan);
                let faults = inject.counters();
                (Box::new(inject), Some(faults))
            }
        };
        let mut server = Server::new(Arc::new(RpcService::new(exports)), config);
        let metrics = server.metrics();
        server.listen_rdma(listener);
        drop(_inside);
        Ok(Self { runtime, server: Some(server), addr, metrics, faults })
    }

    /// The URL of a path that is served.
    pub(super) fn target(&self, path: &Path) -> Target {
        use std::os::unix::ffi::OsStrExt as _;
        let path = path.as_os_str().as_bytes().to_vec();
        Target::new(self.addr.ip().to_string(), Some(self.addr.port()), path)
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn metrics(&self) -> &ServerMetrics {
        &self.metrics
    }

    /// Connections that the server's end cut.
    pub(super) fn cuts(&self) -> u64 {
        self.faults.as_ref().map_or(0, |f| f.cuts())
    }

    /// Stops it in good order, or without order if that takes too long.
    pub(super) fn stop(mut self) {
        if let Some(server) = self.server.take() {
            let stop = async { tokio::time::timeout(Duration::from_secs(5), server.stop()).await };
            // What has not stopped by then goes with the runtime.
            let _ = self.runtime.block_on(stop);
        }
        self.runtime.shutdown_background();
    }
}
