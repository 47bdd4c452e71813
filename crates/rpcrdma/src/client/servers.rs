//! The addresses of a mount's server, or of several servers with the same files, and which of them is in use.
//!
//! # Operation
//! All connections of a mount go to one address, the current one. Who fails to reach it says so
//! ([`Servers::failed`]), and the next address becomes the current one, for all connections: those that still go to the
//! old one are cut and follow. Two servers have different write verifiers, and a WRITE through one and its COMMIT
//! through the other would never be found in order.
//!
//! A mount stays with the server that took over, until that one fails. After every round of attempts in vain the names
//! are looked up again, so that a server that came back elsewhere is found.
//!
//! # Limits
//! At most [`MAX_ADDRS`] addresses.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;
use tracing::debug;

use super::Target;
use crate::error::Error;

/// Addresses that are kept of all that the names have.
pub(crate) const MAX_ADDRS: usize = 64;

/// How long names that had addresses before are looked up again.
const LOOKUP: Duration = Duration::from_secs(5);

/// Where one mount's connections go.
#[derive(Debug)]
pub(crate) struct Servers {
    hosts: Vec<(String, u16)>,
    state: Mutex<State>,
    /// Counts changes of the current address, so that a connection sees one without the lock.
    version: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Never empty.
    addrs: Vec<SocketAddr>,
    /// Index of the current one.
    current: usize,
}

/// An address that a connection is made to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) to: SocketAddr,
    version: u64,
}

impl Servers {
    /// Looks up all hosts of a target. Hosts without an address are left out, as long as one has one.
    pub(crate) async fn resolve(target: &Target, default_port: u16) -> Result<Self, Error> {
        let whole = |(host, port): (&str, Option<u16>)| (host.to_owned(), port.unwrap_or(default_port));
        let hosts: Vec<_> = target.hosts().map(whole).collect();
        let addrs = lookup(&hosts).await?;
        Ok(Self { hosts, state: Mutex::new(State { addrs, current: 0 }), version: AtomicU64::new(0) })
    }

    /// One address, without names.
    #[cfg(test)]
    pub(crate) fn only(to: SocketAddr) -> Self {
        let hosts = vec![(to.ip().to_string(), to.port())];
        let state = Mutex::new(State { addrs: vec![to], current: 0 });
        Self { hosts, state, version: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many addresses there are.
    pub(crate) fn count(&self) -> usize {
        self.state().addrs.len()
    }

    /// The current address.
    pub(crate) fn route(&self) -> Route {
        let state = self.state();
        Route { to: state.addrs[state.current], version: self.version.load(Ordering::Relaxed) }
    }

    /// Whether the mount has moved away from a connection's address, and where to.
    pub(crate) fn moved(&self, route: &mut Route) -> Option<SocketAddr> {
        if self.version.load(Ordering::Relaxed) == route.version {
            return None;
        }
        let now = self.route();
        route.version = now.version;
        (now.to != route.to).then_some(now.to)
    }

    /// This address did not work: the next one is the current one, unless the mount has moved already.
    pub(crate) fn failed(&self, to: SocketAddr) {
        let mut state = self.state();
        if state.addrs[state.current] == to && state.addrs.len() > 1 {
            state.current = (state.current + 1) % state.addrs.len();
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks up the names again, if there are any. What they had before stays if they have nothing now.
    pub(crate) async fn look_again(&self) {
        if self.hosts.iter().all(|(host, _)| host.parse::<IpAddr>().is_ok()) {
            return;
        }
        match timeout(LOOKUP, lookup(&self.hosts)).await {
            Ok(Ok(addrs)) => self.replace(addrs),
            Ok(Err(error)) => debug!("the servers' names: {error}"),
            Err(_) => debug!("the servers' names are not found in time"),
        }
    }

    /// Takes other addresses. The current one stays if it is among them.
    fn replace(&self, addrs: Vec<SocketAddr>) {
        let mut state = self.state();
        let to = state.addrs[state.current];
        let found = addrs.iter().position(|a| *a == to);
        state.current = found.unwrap_or(0);
        state.addrs = addrs;
        if found.is_none() {
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The addresses of all hosts, each once, in order. At least one.
async fn lookup(hosts: &[(String, u16)]) -> Result<Vec<SocketAddr>, Error> {
    let mut addrs = Vec::new();
    let mut failed = None;
    for (host, port) in hosts {
        match tokio::net::lookup_host((host.as_str(), *port)).await {
            Ok(found) => {
                for addr in found.take(MAX_ADDRS) {
                    if !addrs.contains(&addr) && addrs.len() < MAX_ADDRS {
                        addrs.push(addr);
                    }
                }
            }
            Err(error) => {
                failed.get_or_insert(Error::Resolve { host: host.clone(), error });
            }
        }
    }
    if addrs.is_empty() {
        let host = hosts.first().map(|(host, _)| host.clone()).unwrap_or_default();
        let nothing = || Error::Resolve { host, error: std::io::ErrorKind::NotFound.into() };
        return Err(failed.unwrap_or_else(nothing));
    }
    Ok(addrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn servers(text: &str) -> Servers {
        Servers::resolve(&text.parse().unwrap(), 20049).await.unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn addresses_take_turns_and_connections_follow() {
        let s = servers("nfs://10.0.0.1,10.0.0.2:7,10.0.0.1,[::1]/x").await;
        assert_eq!(s.count(), 3, "an address counts once");
        let mut first = s.route();
        assert_eq!(first.to, at("10.0.0.1:20049"));
        assert_eq!(s.moved(&mut first), None);
        s.failed(first.to);
        s.failed(first.to);
        assert_eq!(s.route().to, at("10.0.0.2:7"), "the second report is about the past");
        assert_eq!(s.moved(&mut first), Some(at("10.0.0.2:7")));
        s.failed(at("10.0.0.2:7"));
        assert_eq!(s.route().to, at("[::1]:20049"));
        s.failed(at("[::1]:20049"));
        assert_eq!(s.moved(&mut first), None, "once round, and a connection to the first address may stay");
        assert_eq!(s.route().to, first.to);
    }

    #[tokio::test]
    async fn a_single_address_is_all_there_is() {
        let s = servers("nfs://10.0.0.1/x").await;
        let mut route = s.route();
        s.failed(route.to);
        assert_eq!((s.moved(&mut route), s.route().to), (None, route.to));
        assert_eq!(s.version.load(Ordering::Relaxed), 0, "connections need not look");
    }

    #[tokio::test]
    async fn new_addresses_replace_the_old_ones() {
        let s = servers("nfs://10.0.0.1,10.0.0.2/x").await;
        s.failed(at("10.0.0.1:20049"));
        let mut route = s.route();
        s.replace(vec![at("10.0.0.9:1"), at("10.0.0.2:20049")]);
        assert_eq!((s.moved(&mut route), s.route().to), (None, route.to), "the current one is still there");
        s.replace(vec![at("10.0.0.7:1")]);
        assert_eq!(s.moved(&mut route), Some(at("10.0.0.7:1")));
        assert_eq!(s.count(), 1);
    }

    #[tokio::test]
    async fn names_are_looked_up_again() {
        let s = servers("nfs://localhost:7/x").await;
        let here = s.route().to;
        s.replace(vec![at("10.0.0.7:1")]);
        assert_eq!(s.route().to, at("10.0.0.7:1"));
        s.look_again().await;
        assert_eq!(s.route().to, here);
        // Addresses stay what they are.
        let s = servers("nfs://10.0.0.1/x").await;
        s.replace(vec![at("10.0.0.7:1")]);
        s.look_again().await;
        assert_eq!(s.route().to, at("10.0.0.7:1"));
    }

    #[tokio::test]
    async fn addresses_are_bounded() {
        let hosts: Vec<_> = (1..=100).map(|nth| (format!("10.0.0.{nth}"), 1)).collect();
        assert_eq!(lookup(&hosts).await.unwrap().len(), MAX_ADDRS);
    }

    #[tokio::test]
    async fn a_host_without_an_address_is_left_out_unless_it_is_the_only_one() {
        let s = servers("nfs://no-such-host.invalid,10.0.0.2/x").await;
        assert_eq!((s.count(), s.route().to), (1, at("10.0.0.2:20049")));
        s.look_again().await;
        assert_eq!((s.count(), s.route().to), (1, at("10.0.0.2:20049")));
        let none = Servers::resolve(&"nfs://no-such-host.invalid/x".parse().unwrap(), 1).await;
        assert!(matches!(none, Err(Error::Resolve { host, .. }) if host == "no-such-host.invalid"));
    }
}
