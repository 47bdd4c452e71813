//! What carries RDMA: an RNIC, or software iWARP over TCP.
//!
//! # Operation
//! With `auto` each connection asks the connection manager whether an RNIC leads to the server, and a listener whether there
//! is one to listen on; where the answer is no, for whatever reason, software iWARP does it. The choice is about the way to
//! the server, not about the server: behind a RoCE or InfiniBand device it has to listen on one, too.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::ValueEnum;
use rpcrdma::{
    fabric::{BoxFuture, BoxQueuePair, ConnectError, Connector, Listener, Start},
    iwarp,
};

use crate::out;

/// Which provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Provider {
    /// The RNIC that leads there, or else software iWARP
    Auto,
    /// Software iWARP over TCP
    Softiwarp,
    /// An RNIC: InfiniBand, RoCE or iWARP
    Verbs,
}

impl Provider {
    /// Makes connections, with the settings for software iWARP and what of them concerns RNICs, too.
    pub(crate) fn connector(self, soft: iwarp::Config) -> Arc<dyn Connector> {
        let verbs = rpcrdma_verbs::Connector::new(verbs_config(&soft));
        let soft = iwarp::Connector::new(soft);
        match self {
            Self::Softiwarp => Arc::new(soft),
            Self::Verbs => Arc::new(verbs),
            Self::Auto => Arc::new(Auto { verbs, soft, told: AtomicBool::new(false) }),
        }
    }

    /// Whether the threads of a server must not act as its callers, see `LocalOptions::apart`.
    pub(crate) fn keeps_threads(self) -> bool {
        self != Self::Softiwarp
    }

    /// An address of this machine at which a listener of this provider can be reached from here.
    pub(crate) fn own_address(self) -> io::Result<IpAddr> {
        let verbs = || {
            let devices = rpcrdma_verbs::devices().map_err(io::Error::from)?;
            let usable = devices.iter().filter(|d| d.unusable.is_none());
            usable.flat_map(|d| &d.addresses).copied().next().ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::AddrNotAvailable,
                    "no usable RDMA device has an address; see rpcrdma devices",
                )
            })
        };
        match self {
            Self::Softiwarp => Ok(Ipv4Addr::LOCALHOST.into()),
            Self::Verbs => verbs(),
            Self::Auto => verbs().or(Ok(Ipv4Addr::LOCALHOST.into())),
        }
    }

    /// Listens at an address, with settings as for [`Provider::connector`]. Must be called in a tokio runtime.
    pub(crate) fn listen(self, addr: SocketAddr, soft: &iwarp::Config) -> io::Result<Box<dyn Listener>> {
        let verbs = || {
            // Listening at all addresses works without any device, too, and then nobody comes.
            let usable = rpcrdma_verbs::devices().map_err(io::Error::from)?;
            if let Some(why) = usable.iter().try_fold(String::new(), |all, d| {
                let why = d.unusable.as_ref()?;
                Some(format!("{all}{}{}: {why}", if all.is_empty() { "" } else { "; " }, d.name))
            }) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            let listener = rpcrdma_verbs::Listener::bind(addr, verbs_config(soft))?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        };
        let soft = || Ok(Box::new(iwarp::Listener::bind(addr, soft.clone())?) as Box<dyn Listener>);
        match self {
            Self::Softiwarp => soft(),
            Self::Verbs => verbs(),
            Self::Auto => match verbs() {
                Ok(listener) => {
                    out::note("listening on RNICs");
                    Ok(listener)
                }
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(e),
                Err(why) => {
                    out::note(&format!("listening with software iWARP: {why}"));
                    soft()
                }
            },
        }
    }
}

/// The settings for RNICs.
fn verbs_config(soft: &iwarp::Config) -> rpcrdma_verbs::Config {
    let mut config = rpcrdma_verbs::Config::default();
    config.spin = soft.spin;
    config
}

/// Decides for each connection.
struct Auto {
    verbs: rpcrdma_verbs::Connector,
    soft: iwarp::Connector,
    /// The user has been told of the first decision.
    told: AtomicBool,
}

impl Auto {
    async fn choose(&self, to: SocketAddr) -> &dyn Connector {
        match rpcrdma_verbs::route(to, &rpcrdma_verbs::Config::default()).await {
            Ok(route) => {
                self.tell(&format!("{to}: {} {} leads there", route.transport, route.device));
                &self.verbs
            }
            Err(why) => {
                let why = if let ConnectError::Io(e) = why { e.to_string() } else { why.to_string() };
                self.tell(&format!("{to}: software iWARP: {why}"));
                &self.soft
            }
        }
    }

    fn tell(&self, decision: &str) {
        if self.told.swap(true, Ordering::Relaxed) {
            tracing::info!("{decision}");
        } else {
            out::note(decision);
        }
    }
}

impl Connector for Auto {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move { self.choose(to).await.connect(to, start).await })
    }

    fn remote_invalidation(&self, to: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(async move { self.choose(to).await.remote_invalidation(to).await })
    }
}
