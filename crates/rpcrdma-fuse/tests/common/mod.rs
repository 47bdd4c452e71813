//! A served directory, its server, and a mount of it, all in one process.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rpcrdma::{
    client::{Mount, MountConfig, Target, Transport},
    export::{ExportRules, Exports, HandleKey, LocalExport, LocalOptions, Squash},
    fabric::Listener as _,
    iwarp,
    server::{RpcService, Server, ServerConfig},
};
use rpcrdma_fuse::{MountError, MountOptions, Mounted, Mounting};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Everything that a test needs. Ends in order when it is dropped.
pub(crate) struct Rig {
    served: TempDir,
    on: TempDir,
    key_dir: TempDir,
    serving: Mutex<Option<Serving>>,
    runtime: Option<Runtime>,
    mounted: Mounted,
}

struct Serving {
    server: Server,
    runtime: Runtime,
    at: SocketAddr,
}

impl Serving {
    fn start(dir: &Path, key: &Path, at: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let key = HandleKey::load_or_create(&key.join("key")).unwrap();
        let options = LocalOptions { sync: false, apart: false, ..LocalOptions::default() };
        let export = LocalExport::open(dir, &key, options).unwrap();
        let rules = ExportRules { squash: Squash::None, ..ExportRules::default() };
        let mut exports = Exports::new();
        exports.add("/x", Arc::new(export), rules).unwrap();
        let listener = iwarp::Listener::bind(at, iwarp::Config::default()).unwrap();
        let at = listener.local_addr();
        let mut server = Server::new(Arc::new(RpcService::new(exports)), ServerConfig::default());
        server.listen_rdma(Box::new(listener));
        drop(inside);
        Self { server, runtime, at }
    }

    fn stop(self) -> SocketAddr {
        self.runtime.block_on(self.server.stop());
        self.runtime.shutdown_background();
        self.at
    }
}

async fn mount(at: SocketAddr, on: &Path, options: &str) -> Result<Mounted, MountError> {
    let target: Target = format!("nfs://{at}/x").parse().unwrap();
    let mut mount_options = MountOptions::default();
    mount_options.apply(options).unwrap();
    let mut config = MountConfig::default();
    config.rdma = mount_options.patience(config.rdma);
    let identity = config.identity.clone();
    let connector = iwarp::Connector::new(iwarp::Config::default());
    let mount = Mount::new(&Transport::Rdma(Arc::new(connector)), &target, config).await.unwrap();
    let source = target.to_string();
    let mounting = Mounting { mount, identity, one_identity: false, options: mount_options, source };
    mounting.mount(on).await
}

impl Rig {
    /// A server and a mount with these options; `None`, and a word about it, where nothing can be mounted.
    pub(crate) fn start(options: &str) -> Option<Self> {
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
            eprintln!("SKIP: /dev/fuse cannot be opened");
            return None;
        }
        let [served, on, key_dir] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let serving = Serving::start(served.path(), key_dir.path(), ([127, 0, 0, 1], 0).into());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mounted = runtime.block_on(mount(serving.at, on.path(), options));
        let mounted = match mounted {
            Ok(mounted) => mounted,
            Err(e) => {
                eprintln!("SKIP: {e}");
                return None;
            }
        };
        Some(Self {
            served,
            on,
            key_dir,
            serving: Mutex::new(Some(serving)),
            runtime: Some(runtime),
            mounted,
        })
    }

    /// The directory as programs see it.
    pub(crate) fn dir(&self) -> PathBuf {
        self.on.path().to_owned()
    }

    /// The directory itself.
    pub(crate) fn served(&self) -> PathBuf {
        self.served.path().to_owned()
    }

    /// Calls that the mount has made.
    pub(crate) fn calls(&self) -> u64 {
        self.mounted.metrics().calls.get()
    }

    /// Takes the mount out of the tree, has another one take its place, and calls `end`, which ends the first for good.
    pub(crate) fn replace_mount(&mut self, end: impl FnOnce()) {
        let at = self.serving.lock().unwrap().as_ref().unwrap().at;
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(async {
            assert!(self.mounted.unmount().await.unwrap());
            let next = mount(at, self.on.path(), "").await.unwrap();
            let old = std::mem::replace(&mut self.mounted, next);
            end();
            old.ended().await;
        });
    }

    /// Mounts the same on top. The mount below is not to take that away.
    pub(crate) fn cover_mount(&self) {
        let at = self.serving.lock().unwrap().as_ref().unwrap().at;
        self.runtime.as_ref().unwrap().block_on(async {
            let top = mount(at, self.on.path(), "").await.unwrap();
            assert!(!self.mounted.unmount().await.unwrap());
            assert!(top.unmount().await.unwrap());
            top.ended().await;
        });
    }

    /// Unmounts, and waits until the kernel has let go of it.
    pub(crate) fn leave(&self) {
        self.runtime.as_ref().unwrap().block_on(async {
            assert!(self.mounted.unmount().await.unwrap());
            self.mounted.left().await;
        });
    }

    /// Waits until all that was written is durable.
    pub(crate) fn synced(&self) {
        self.runtime.as_ref().unwrap().block_on(self.mounted.sync());
    }

    /// Ends the server.
    pub(crate) fn stop_server(&self) -> SocketAddr {
        self.serving.lock().unwrap().take().unwrap().stop()
    }

    /// Starts a server where there was one.
    pub(crate) fn start_server(&self, at: SocketAddr) {
        *self.serving.lock().unwrap() = Some(Serving::start(self.served.path(), self.key_dir.path(), at));
    }

    /// Another server takes the place of this one.
    pub(crate) fn restart_server(&self) {
        let at = self.stop_server();
        self.start_server(at);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let unmounted = runtime.block_on(self.mounted.unmount());
        if matches!(unmounted, Ok(true)) && !std::thread::panicking() {
            runtime.block_on(self.mounted.ended());
        }
        runtime.shutdown_background();
        if let Some(serving) = self.serving.lock().unwrap().take() {
            serving.stop();
        }
    }
}
