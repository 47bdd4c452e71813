//! What carries RDMA: an RNIC, or software iWARP over TCP.
//!
//! # Operation
//! With `auto` each connection asks the connection manager whether an RNIC leads to the server, and a listener whether there
//! is one to listen on; where the answer is no, for whatever reason, software iWARP does it. The choice is about the way to
//! the server, not about the server: behind a RoCE or InfiniBand device it has to listen on one, too. The user is told of the
//! first decision about an address, and whenever it changes.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
            Self::Auto => Arc::new(Auto { verbs, soft, decisions: Mutex::default() }),
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
    decisions: Mutex<Decisions>,
}

/// What takes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// An RNIC, and whether peers may invalidate what it exposes.
    Verbs {
        remote_invalidation: bool,
    },
    Softiwarp,
}

/// Addresses whose decisions are remembered.
const REMEMBERED: usize = 64;

/// The last decision about each address.
#[derive(Default)]
struct Decisions(HashMap<SocketAddr, Decision>);

struct Decision {
    /// What the user was told.
    carrier: String,
    /// Made for a connection that is about to be made.
    next: Option<Choice>,
}

impl Decisions {
    /// Remembers a decision; whether it is another one than the last.
    fn note(&mut self, to: SocketAddr, carrier: String) -> bool {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&to) {
            self.0.clear();
        }
        let same = self.0.get(&to).is_some_and(|last| last.carrier == carrier);
        self.0.insert(to, Decision { carrier, next: None });
        !same
    }

    /// The next connection to this address goes by it.
    fn keep(&mut self, to: SocketAddr, choice: Choice) {
        if let Some(decision) = self.0.get_mut(&to) {
            decision.next = Some(choice);
        }
    }

    fn take(&mut self, to: SocketAddr) -> Option<Choice> {
        self.0.get_mut(&to)?.next.take()
    }
}

impl Auto {
    fn decisions(&self) -> MutexGuard<'_, Decisions> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn choose(&self, to: SocketAddr) -> Choice {
        let (choice, carrier, text) = match rpcrdma_verbs::route(to, &rpcrdma_verbs::Config::default()).await
        {
            Ok(route) => {
                let remote_invalidation = route.protection == rpcrdma_verbs::Protection::Windows;
                let carrier = format!("{} {}", route.transport, route.device);
                let text = format!("{to}: {carrier} leads there");
                (Choice::Verbs { remote_invalidation }, carrier, text)
            }
            Err(why) => {
                let why = if let ConnectError::Io(e) = why { e.to_string() } else { why.to_string() };
                let carrier = "software iWARP".to_owned();
                let text = format!("{to}: {carrier}: {why}");
                (Choice::Softiwarp, carrier, text)
            }
        };
        if self.decisions().note(to, carrier) {
            out::note(&text);
        } else {
            tracing::info!("{text}");
        }
        choice
    }
}

impl Connector for Auto {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            let decided = self.decisions().take(to);
            let choice = match decided {
                Some(choice) => choice,
                None => self.choose(to).await,
            };
            match choice {
                Choice::Verbs { .. } => self.verbs.connect(to, start).await,
                Choice::Softiwarp => self.soft.connect(to, start).await,
            }
        })
    }

    fn remote_invalidation(&self, to: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let choice = self.choose(to).await;
            self.decisions().keep(to, choice);
            match choice {
                Choice::Verbs { remote_invalidation } => remote_invalidation,
                Choice::Softiwarp => self.soft.remote_invalidation(to).await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_told_when_a_decision_changes() {
        let mut decisions = Decisions::default();
        let [one, other] = [1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 20049)));
        let mut note = |to, carrier: &str| decisions.note(to, carrier.to_owned());
        assert!(note(one, "RoCE rxe0") && note(other, "software iWARP"), "the first ones");
        assert!(!note(one, "RoCE rxe0") && !note(other, "software iWARP"), "the same");
        assert!(note(one, "software iWARP") && note(one, "RoCE rxe0"), "there and back");
        for port in 0..1000 {
            note(SocketAddr::from(([10, 0, 0, 3], port)), "software iWARP");
        }
        assert!(decisions.0.len() <= REMEMBERED);
    }

    #[test]
    fn a_decision_is_good_for_one_connection() {
        let mut decisions = Decisions::default();
        let to = SocketAddr::from(([10, 0, 0, 1], 20049));
        let choice = Choice::Verbs { remote_invalidation: true };
        decisions.note(to, "RoCE rxe0".to_owned());
        decisions.keep(to, choice);
        assert_eq!((decisions.take(to), decisions.take(to)), (Some(choice), None));
    }
}
