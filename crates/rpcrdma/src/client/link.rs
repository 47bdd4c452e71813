//! What a connection task knows while it has no connection: where to connect next, when, and what to tell the user.
//!
//! # Operation
//! An *outage* begins when a connection is lost with Calls pending, or when the first Call of an idle client finds no
//! connection, and ends with the first Reply of a new connection. In it, every address is tried once, one right after
//! the other; then comes a wait, which grows from round to round (see [`super::backoff`]). A connection that brought no
//! Reply counts as an attempt in vain.
//!
//! # What the log says
//! Each loss and each recovery is one line of level INFO, with the address, the reason, the number of Calls pending, and
//! how long it took. If an attempt fails, both it and the recovery are of level WARN. Further attempts of an outage
//! are told when their number is a power of two, and else at level DEBUG: a server that is away for a night is no
//! reason for a long log.
//!
//! # How a dead peer is noticed
//! Reliable connections over InfiniBand have no keep-alive, and TCP's takes hours. A peer that dies without a word is
//! noticed by what it owes: [`Waits::due`] says how long a client waits for Replies. An idle client notices nothing, and
//! need not: its next Call will find out.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{
    backoff::{Backoff, BackoffConfig},
    servers::{Route, Servers},
};
use crate::metrics::ClientMetrics;

/// Between connections.
pub(crate) struct Link {
    servers: Arc<Servers>,
    metrics: Arc<ClientMetrics>,
    backoff: Backoff,
    /// Attempts in vain in this round over the addresses.
    in_round: usize,
    /// All addresses have been tried in vain: the names may have others by now.
    look_again: bool,
    outage: Option<Outage>,
    /// Where the last connection went.
    last: Option<SocketAddr>,
}

/// A time without a connection that works, while Calls wait.
struct Outage {
    since: Instant,
    attempts: u32,
    /// An attempt in vain has been told.
    told: bool,
}

/// How a connection ended, as far as it matters for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It brought Replies, and then broke: the peer was there a moment ago.
    Worked,
    /// It brought Replies, and then none: the peer may be dead.
    Silent,
    /// It brought no Reply.
    InVain,
    /// The mount has moved to another address.
    Moved,
}

impl Link {
    pub(crate) fn new(
        servers: Arc<Servers>,
        backoff: BackoffConfig,
        seed: Option<u64>,
        metrics: Arc<ClientMetrics>,
    ) -> Self {
        Self {
            servers,
            metrics,
            backoff: Backoff::new(backoff, seed),
            in_round: 0,
            look_again: false,
            outage: None,
            last: None,
        }
    }

    /// Waits until it is time for the next attempt, and says where to. There are Calls to send.
    pub(crate) async fn next(&mut self) -> Route {
        self.outage.get_or_insert_with(Outage::begin);
        if self.in_round == 0 {
            if std::mem::take(&mut self.look_again) {
                self.servers.look_again().await;
            }
            sleep(self.backoff.wait()).await;
        }
        self.servers.route()
    }

    /// A connection is made.
    pub(crate) fn connected(&mut self, to: SocketAddr) {
        self.metrics.connects.add(1);
        if self.last.is_some_and(|last| last != to) {
            self.metrics.failovers.add(1);
        }
        self.last = Some(to);
    }

    /// No connection could be made.
    pub(crate) fn failed(&mut self, to: SocketAddr, why: &dyn fmt::Display, pending: usize) {
        self.metrics.connect_failures.add(1);
        let outage = self.outage.get_or_insert_with(Outage::begin);
        outage.attempts = outage.attempts.saturating_add(1);
        let (attempts, since) = (outage.attempts, outage.since);
        let tell = attempts.is_power_of_two();
        outage.told |= tell;
        let round = self.in_vain(to);
        let wait = if round { self.backoff.wait() } else { Duration::ZERO };
        if tell {
            warn!(peer = %to, pending, attempts, down = ?since.elapsed(), ?wait, "no connection: {why}; trying on");
        } else {
            debug!(peer = %to, pending, attempts, ?wait, "no connection: {why}");
        }
    }

    /// The first Reply of a connection has come.
    pub(crate) fn answered(&mut self, to: SocketAddr, pending: usize) {
        self.backoff.worked();
        self.in_round = 0;
        let Some(Outage { since, attempts, told }) = self.outage.take() else { return };
        let down = since.elapsed();
        self.metrics.recoveries.add(1);
        let ms = u64::try_from(down.as_millis()).unwrap_or(u64::MAX);
        self.metrics.outage_ms.add(ms);
        self.metrics.longest_outage_ms.raise(ms);
        if told {
            warn!(peer = %to, pending, attempts, ?down, "the server answers again");
        } else {
            info!(peer = %to, pending, attempts, ?down, "the server answers again");
        }
    }

    /// A connection was lost.
    pub(crate) fn lost(
        &mut self,
        to: SocketAddr,
        how: Ended,
        why: &dyn fmt::Display,
        up: Duration,
        pending: usize,
    ) {
        self.metrics.losses.add(1);
        info!(peer = %to, pending, ?up, "connection lost: {why}");
        if pending > 0 {
            self.outage.get_or_insert_with(Outage::begin);
        }
        match how {
            Ended::Worked | Ended::Moved => {}
            Ended::Silent => self.servers.failed(to),
            Ended::InVain => {
                if let Some(outage) = &mut self.outage {
                    outage.attempts = outage.attempts.saturating_add(1);
                }
                self.in_vain(to);
            }
        }
    }

    /// Where the mount has moved to, if it is no longer where this connection goes.
    pub(crate) fn moved(&self, route: &mut Route) -> Option<SocketAddr> {
        self.servers.moved(route)
    }

    /// Counts an attempt in vain. Whether it was the last of its round.
    fn in_vain(&mut self, to: SocketAddr) -> bool {
        self.servers.failed(to);
        self.in_round += 1;
        let over = self.in_round >= self.servers.count();
        if over {
            self.in_round = 0;
            self.look_again = true;
            self.backoff.failed();
        }
        over
    }
}

impl Outage {
    fn begin() -> Self {
        Self { since: Instant::now(), attempts: 0, told: false }
    }
}

/// What tells a slow server from a dead one. All times are of the same connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    /// When the Call that has waited longest was sent.
    pub(crate) oldest: Instant,
    /// When something last came from the peer.
    pub(crate) heard: Instant,
    /// When the Call that was sent last, of those with a Reply, was sent.
    pub(crate) answered: Option<Instant>,
}

impl Waits {
    /// When the connection is to be cut, if nothing comes until then. A slow link may have many transfers before this
    /// Call's, so as long as Replies come it is waited for. But one that is overtaken by a Call sent a whole `limit`
    /// after it is not slow: its Reply will not come on this connection.
    pub(crate) fn due(self, limit: Duration) -> Instant {
        let overtaken = self.answered.is_some_and(|sent| sent >= self.oldest + limit);
        if overtaken { self.oldest + limit } else { self.oldest.max(self.heard) + limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    async fn link(url: &str) -> (Link, Arc<ClientMetrics>) {
        let servers = Servers::resolve(&url.parse().unwrap(), 20049).await.unwrap();
        let metrics = Arc::<ClientMetrics>::default();
        let backoff = BackoffConfig { first: Duration::from_secs(1), cap: Duration::from_secs(8) };
        (Link::new(Arc::new(servers), backoff, Some(1), Arc::clone(&metrics)), metrics)
    }

    /// Where the next attempt goes, and after how many milliseconds.
    async fn next(link: &mut Link) -> (u16, u128) {
        let start = Instant::now();
        let route = link.next().await;
        (route.to.port(), start.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_tried_before_a_wait_and_waits_grow() {
        let (mut link, metrics) = link("nfs://10.0.0.1:1,10.0.0.1:2,10.0.0.1:3/").await;
        let mut waits = Vec::new();
        for _ in 0..3 {
            for port in 1..=3 {
                let (to, wait) = next(&mut link).await;
                assert_eq!(to, port);
                if port == 1 {
                    waits.push(wait);
                } else {
                    assert_eq!(wait, 0, "within a round there is no wait");
                }
                link.failed(SocketAddr::from(([10, 0, 0, 1], to)), &"no", 1);
            }
        }
        assert_eq!(waits[0], 0);
        assert!((500..=1001).contains(&waits[1]) && (1000..=2001).contains(&waits[2]), "{waits:?}");
        assert_eq!((metrics.connect_failures.get(), metrics.recoveries.get()), (9, 0));

        let to = link.next().await.to;
        link.connected(to);
        link.answered(to, 1);
        assert_eq!((metrics.recoveries.get(), metrics.losses.get(), metrics.failovers.get()), (1, 0, 0));
        let down = metrics.outage_ms.get();
        assert!(down >= 3000 && down == metrics.longest_outage_ms.get(), "{down}");
        link.lost(to, Ended::Worked, &"cut", Duration::ZERO, 1);
        assert_eq!(
            next(&mut link).await,
            (1, 0),
            "after a connection that worked, at once to the same place"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_leads_to_the_next_address_and_connections_in_vain_count_as_attempts() {
        let (mut link, metrics) = link("nfs://10.0.0.1:1,10.0.0.1:2/").await;
        let to = link.next().await.to;
        link.connected(to);
        link.answered(to, 1);
        link.lost(to, Ended::Silent, &"no Reply", Duration::ZERO, 1);
        let to = link.next().await.to;
        assert_eq!(to.port(), 2);
        link.connected(to);
        assert_eq!((metrics.failovers.get(), metrics.losses.get()), (1, 1));
        link.lost(to, Ended::InVain, &"cut", Duration::ZERO, 1);
        assert_eq!(next(&mut link).await, (1, 0));
        link.lost(SocketAddr::from(([10, 0, 0, 1], 1)), Ended::InVain, &"cut", Duration::ZERO, 1);
        let (to, wait) = next(&mut link).await;
        assert!(to == 2 && wait >= 500, "both were in vain: {to} after {wait} ms");
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_was_told_of_stays_so_and_connections_are_to_move() {
        let (mut link, _) = link("nfs://10.0.0.1:1,10.0.0.1:2/").await;
        let mut route = link.next().await;
        let to = route.to;
        link.lost(to, Ended::Worked, &"cut", Duration::ZERO, 0);
        link.outage = None;
        link.lost(to, Ended::Worked, &"cut", Duration::ZERO, 1);
        assert!(link.outage.as_ref().is_some_and(|o| !o.told && o.attempts == 0));
        assert_eq!(link.moved(&mut route), None);
        for attempts in 1..=3 {
            let to = link.next().await.to;
            link.failed(to, &"no", 1);
            assert!(link.outage.as_ref().is_some_and(|o| o.told && o.attempts == attempts));
        }
        assert_eq!(link.moved(&mut route).map(|to| to.port()), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_without_calls_is_no_outage() {
        let (mut link, metrics) = link("nfs://10.0.0.1:1/").await;
        let to = link.next().await.to;
        link.connected(to);
        link.answered(to, 1);
        let before = metrics.outage_ms.get();
        link.lost(to, Ended::Worked, &"cut", Duration::ZERO, 0);
        sleep(Duration::from_secs(1000)).await;
        let to = link.next().await.to;
        link.connected(to);
        link.answered(to, 1);
        assert_eq!((metrics.outage_ms.get(), metrics.recoveries.get()), (before, 2));
    }

    #[test]
    fn replies_keep_a_slow_connection_alive_but_not_one_that_forgot_a_call() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let due = |oldest, heard, answered: Option<u64>| {
            Waits { oldest: at(oldest), heard: at(heard), answered: answered.map(at) }.due(LIMIT)
        };
        assert_eq!(due(10, 0, None), at(70), "nothing came: from the Call on");
        assert_eq!(due(10, 50, Some(9)), at(110), "Replies come: from the last one on");
        assert_eq!(due(10, 500, Some(69)), at(560), "however long the Call has waited");
        assert_eq!(due(10, 500, Some(70)), at(70), "it was overtaken by a whole limit");
    }
}
