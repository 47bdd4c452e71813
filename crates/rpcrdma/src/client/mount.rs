//! From a URL to a mounted export: connections, MOUNT, and what the file system is like.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rpcrdma_fabric::{ConnectError, Connector};
use rpcrdma_nfs::v3::{self, FsInfo, Handle};
use rpcrdma_proto::{
    rpc::{self, AuthSys, Flavor, Groups, OpaqueAuth},
    xdr::{Encode, Writer},
};

use tokio::time::timeout;
use tracing::warn;

use super::{
    Target,
    channel::{Channel, Xids, channel},
    link::Link,
    rdma::{self, Dialer, RdmaConfig},
    servers::{Route, Servers},
    tcp,
};
use crate::{error::Error, memory::Pools, metrics::ClientMetrics};

/// Who the client says it is (AUTH_SYS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups; the first 16 count.
    pub gids: Vec<u32>,
    /// Name of this machine.
    pub machine: String,
}

impl Identity {
    /// The identity of this process.
    #[must_use]
    pub fn current() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            gids: rustix::process::getgroups()
                .map(|gids| gids.into_iter().map(rustix::process::Gid::as_raw).collect())
                .unwrap_or_default(),
            machine: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }
}

/// What carries NFS.
#[derive(Clone)]
pub enum Transport {
    /// RPC-over-RDMA on connections of this provider.
    Rdma(Arc<dyn Connector>),
    /// RPC over TCP.
    Tcp,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// How connections behave.
    pub rdma: RdmaConfig,
    /// Connections to the server, over which Calls are spread.
    pub nconnect: usize,
    /// Calls in flight per connection; further ones wait.
    pub calls: usize,
    /// Bytes per READ and WRITE at most; the server's preference is taken if it is smaller.
    pub io_size: u32,
    /// Who we are.
    pub identity: Identity,
    /// TCP port of the MOUNT service. `None`: the NFS ports, then rpcbind.
    pub mount_port: Option<u16>,
}

impl Default for MountConfig {
    fn default() -> Self {
        Self {
            rdma: RdmaConfig::default(),
            nconnect: 1,
            calls: 128,
            io_size: 1 << 20,
            identity: Identity::current(),
            mount_port: None,
        }
    }
}

/// A mounted directory. Clones, and what else is mounted through it, share its connections, which are closed when the
/// last of them is dropped.
#[derive(Clone)]
pub struct Mount {
    pub(crate) inner: Arc<Inner>,
    root: Handle,
    info: FsInfo,
    io_size: u32,
}

/// Channels that are closed when they are dropped.
#[derive(Default)]
struct Channels(Vec<Channel>);

/// What everything that is mounted over the same connections, by whomever, has in common.
struct Wires {
    channels: Channels,
    next: AtomicUsize,
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.0.iter().for_each(Channel::close);
    }
}

#[derive(Clone)]
pub(crate) struct Inner {
    wires: Arc<Wires>,
    /// Body of the AUTH_SYS credential.
    cred: Vec<u8>,
    /// Where the NFS service is.
    pub(super) servers: Arc<Servers>,
    /// The same as it stands in a URL.
    pub(super) host: String,
    pub(super) mount_port: Option<u16>,
    /// Most bytes per READ and WRITE that the caller wants.
    io_size: u32,
    pub(crate) pools: Pools,
    metrics: Arc<ClientMetrics>,
    transport: String,
    seed: Option<u64>,
}

impl Mount {
    /// Connects to the target's host and mounts the target's path.
    ///
    /// # Errors
    /// If no connection can be made, or the server does not let us mount. Once mounted, lost connections are made again.
    pub async fn new(transport: &Transport, target: &Target, config: MountConfig) -> Result<Self, Error> {
        Self::connect(transport, target, config).await?.mount(&target.path).await
    }

    /// Connects to the target's host and mounts nothing: only [`Mount::null`] and [`Mount::mount`] make sense on the
    /// result, whose root is an empty handle.
    ///
    /// # Errors
    /// If no connection can be made.
    pub async fn connect(transport: &Transport, target: &Target, config: MountConfig) -> Result<Self, Error> {
        let default = match transport {
            Transport::Rdma(_) => v3::PORT_RDMA,
            Transport::Tcp => v3::PORT_TCP,
        };
        let servers = Arc::new(Servers::resolve(target, default).await?);
        let pools = Pools::new(config.calls);
        let metrics = Arc::<ClientMetrics>::default();
        // If a later connection cannot be made, the earlier ones are closed.
        let mut channels = Channels::default();
        let mut carrier = String::new();
        let seed = config.rdma.seed;
        let xids = seed.map_or_else(Xids::of_process, |seed| Xids::starting_at(seed as u32));
        for nth in 0..config.nconnect.clamp(1, 64) as u64 {
            let (calls, give_up) = (config.calls, config.rdma.give_up);
            let (channel, inbox) = channel(calls, xids.clone());
            let config = RdmaConfig { seed: seed.map(|seed| seed.wrapping_add(nth)), ..config.rdma.clone() }
                .within_give_up();
            let mut link = Link::new(Arc::clone(&servers), config.backoff, config.seed, Arc::clone(&metrics));
            let mut attempts = Attempts::default();
            match transport {
                Transport::Rdma(connector) => {
                    let connector = Arc::clone(connector);
                    let metrics = Arc::clone(&metrics);
                    let dialer = Dialer::new(connector, config, calls, pools.clone(), metrics);
                    let (route, first) = loop {
                        let route = servers.route();
                        match dialer.connect(route).await {
                            Ok(first) => break (route, first),
                            Err(error) => attempts.failed(&servers, route, error)?,
                        }
                    };
                    link.connected(route.to);
                    carrier.clone_from(&first.peer().transport);
                    tokio::spawn(rdma::run(dialer, link, inbox, Some(first)));
                }
                Transport::Tcp => {
                    let (route, first) = loop {
                        let route = servers.route();
                        let made = timeout(config.connect_timeout, tcp::connect(route.to)).await;
                        match made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                            Ok(first) => break (route, first),
                            Err(error) => attempts.failed(&servers, route, error.into())?,
                        }
                    };
                    link.connected(route.to);
                    "TCP".clone_into(&mut carrier);
                    tokio::spawn(tcp::run(config, link, inbox, Some((route, first)), Arc::clone(&metrics)));
                }
            }
            channels.0.push(channel.with_patience(give_up, &metrics));
        }
        let inner = Inner {
            wires: Arc::new(Wires { channels, next: AtomicUsize::new(0) }),
            cred: credential(&config.identity, seed),
            servers,
            host: target.authority(),
            mount_port: config.mount_port,
            io_size: config.io_size.max(512),
            pools,
            metrics,
            transport: carrier,
            seed,
        };
        let io_size = inner.io_size;
        Ok(Self { inner: Arc::new(inner), root: Handle::EMPTY, info: FsInfo::default(), io_size })
    }

    /// Mounts a directory of the same server over the connections that exist.
    ///
    /// # Errors
    /// If the server does not let us mount, or has no directory at this path.
    pub async fn mount(&self, path: &[u8]) -> Result<Self, Error> {
        let inner = &self.inner;
        let root = inner.mnt(path).await?;
        let info = self.fs_info(root).await?;
        let limit = |max: u32, preferred: u32| if preferred == 0 { max } else { preferred.min(max.max(1)) };
        let io = inner.io_size.min(limit(info.rtmax, info.rtpref)).min(limit(info.wtmax, info.wtpref));
        Ok(Self { inner: Arc::clone(inner), root, info, io_size: io.max(512) })
    }

    /// Paths that the server exports, in order, as its MOUNT service tells them.
    ///
    /// # Errors
    /// If there is no MOUNT service, or it does not tell.
    pub async fn exports(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.inner.exports().await
    }

    /// The same directory over the same connections, on behalf of somebody else.
    #[must_use]
    pub fn acting_as(&self, identity: &Identity) -> Self {
        let mut inner = Inner::clone(&self.inner);
        inner.cred = credential(identity, inner.seed);
        Self { inner: Arc::new(inner), ..self.clone() }
    }

    /// Handle of the mounted directory.
    #[must_use]
    pub fn root(&self) -> Handle {
        self.root
    }

    /// What the server says of the file system.
    #[must_use]
    pub fn info(&self) -> &FsInfo {
        &self.info
    }

    /// Bytes per READ and WRITE.
    #[must_use]
    pub fn io_size(&self) -> u32 {
        self.io_size
    }

    /// Memory for READs and WRITEs, as much as Calls can be in flight.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.inner.pools
    }

    /// What the client counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<ClientMetrics> {
        &self.inner.metrics
    }

    /// The provider of the first connection, in words.
    #[must_use]
    pub fn transport(&self) -> &str {
        &self.inner.transport
    }
}

impl Inner {
    /// The connection with the fewest Calls; among equals, each in turn.
    pub(crate) fn channel(&self) -> &Channel {
        let channels = &self.wires.channels.0;
        let n = channels.len();
        if n == 1 {
            return &channels[0];
        }
        let first = self.wires.next.fetch_add(1, Ordering::Relaxed) % n;
        let mut best = &channels[first];
        for i in 1..n {
            let other = &channels[(first + i) % n];
            if other.free() > best.free() {
                best = other;
            }
        }
        best
    }

    pub(crate) fn auth(&self) -> OpaqueAuth<'_> {
        OpaqueAuth { flavor: Flavor::SYS, body: &self.cred }
    }
}

/// The body of an AUTH_SYS credential.
pub(crate) fn credential(identity: &Identity, seed: Option<u64>) -> Vec<u8> {
    let machine = identity.machine.as_bytes();
    let mut w = Writer::new();
    AuthSys {
        stamp: seed.map_or_else(std::process::id, |seed| seed as u32),
        machine_name: &machine[..machine.len().min(rpc::MAX_MACHINE_NAME)],
        uid: identity.uid,
        gid: identity.gid,
        groups: Groups::truncated(&identity.gids),
    }
    .encode(&mut w);
    w.into_parts().0
}

/// Attempts to connect, in vain.
#[derive(Default)]
struct Attempts(Vec<(SocketAddr, ConnectError)>);

impl Attempts {
    /// Goes on to the next address, if there is one that was not tried.
    ///
    /// # Errors
    /// Why each of them did not do.
    fn failed(&mut self, servers: &Servers, at: Route, error: ConnectError) -> Result<(), Error> {
        let why = error.to_string();
        self.0.push((at.to, error));
        if self.0.len() >= servers.count() {
            return Err(Error::Connect { attempts: std::mem::take(&mut self.0) });
        }
        warn!(peer = %at.to, "no connection: {why}; trying the next address");
        servers.failed(at.to);
        Ok(())
    }
}
