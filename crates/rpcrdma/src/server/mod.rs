//! The server: transports that take Calls, and the service that executes them.
//!
//! A [`Server`] joins one [`Service`] with any number of listeners, RDMA and TCP. All of them share its memory.

mod mount;
mod nfs3;
mod offload;
mod places;
pub mod rdma;
pub mod rpc;
pub mod rpcbind;
pub mod service;
pub mod tcp;

use std::sync::Arc;

use rpcrdma_fabric::Listener;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

pub use offload::{Job, Offload};
pub use rdma::RdmaConfig;
pub use rpc::RpcService;
pub use service::Service;

use crate::{memory::Pools, metrics::ServerMetrics};

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// RDMA connections.
    pub rdma: RdmaConfig,
    /// Transfers of the largest size (1 MiB) that may be in flight at one time, over all connections.
    pub transfers: usize,
    /// TCP connections.
    pub tcp: tcp::Limits,
    /// Where Calls are executed that may block.
    pub offload: Offload,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            rdma: RdmaConfig::default(),
            transfers: 64,
            tcp: tcp::Limits::default(),
            offload: Offload::default(),
        }
    }
}

/// A server with its listeners. Dropped, it stops at once.
pub struct Server {
    shared: Arc<rdma::Shared>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
    tcp_limits: tcp::Limits,
    tcp_counters: Arc<tcp::Counters>,
}

impl Server {
    /// A server that does not listen yet.
    #[must_use]
    pub fn new(service: Arc<dyn Service>, config: ServerConfig) -> Self {
        let shared = rdma::Shared {
            service,
            pools: Pools::new(config.transfers),
            config: config.rdma,
            metrics: Arc::default(),
            offload: config.offload,
        };
        Self {
            shared: Arc::new(shared),
            stop: watch::Sender::new(false),
            tasks: JoinSet::new(),
            tcp_limits: config.tcp,
            tcp_counters: Arc::default(),
        }
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> Arc<ServerMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// The memory of its transfers.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.shared.pools
    }

    /// What its TCP side counts.
    #[must_use]
    pub fn tcp_counters(&self) -> Arc<tcp::Counters> {
        Arc::clone(&self.tcp_counters)
    }

    /// Takes RDMA connections, on the runtime it is called from.
    pub fn listen_rdma(&mut self, listener: Box<dyn Listener>) {
        self.tasks.spawn(rdma::serve(listener, Arc::clone(&self.shared), self.stop.subscribe()));
    }

    /// Takes TCP connections, on the runtime it is called from.
    pub fn listen_tcp(&mut self, listener: TcpListener) {
        let mut stop = self.stop.subscribe();
        self.tasks.spawn(tcp::serve_tcp(
            listener,
            Arc::clone(&self.shared.service),
            self.shared.pools.clone(),
            self.shared.offload.clone(),
            self.tcp_limits.clone(),
            Arc::clone(&self.tcp_counters),
            async move {
                // An error means that the server is gone, which is as good a reason to stop.
                let _ = stop.wait_for(|stop| *stop).await;
            },
        ));
    }

    /// Stops listening and closes connections in good order.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}
