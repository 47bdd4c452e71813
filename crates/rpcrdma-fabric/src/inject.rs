//! Cuts connections at random, from a seed: a provider around any provider.
//!
//! # Operation
//! Every piece of work that is posted and every message that arrives is one *step*. At each step the plan's dice
//! decide whether to cut the connection, and if so, when: at once, so that posted work never leaves, or after the
//! provider has been driven once more, so that work leaves but its answer is lost. Both ends of a connection may be
//! wrapped. The dice of a connection depend only on the seed and on how many connections were made before it.
//!
//! # When it breaks
//! A cut is [`Shutdown::Abort`] on the inner queue pair, so its user sees what it would see when a cable is pulled:
//! flushed work and [`Lost`], here [`Lost::Injected`].

use std::{
    fmt, io,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use rand::{RngExt as _, SeedableRng, rngs::SmallRng};

use crate::{
    Access, BoxFuture, BoxQueuePair, Completion, ConnectError, Connector, Decide, Exposed, Listener, Lost,
    Peer, QpLimits, QueuePair, Region, Rejected, Request, Shutdown, Stag, Start, Work,
};

/// How often to cut. As text: `disconnect=1/500,seed=7,times=20`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// A step is cut with probability 1 in `one_in`. 0 never cuts.
    pub one_in: u32,
    /// Seed of the dice.
    pub seed: u64,
    /// The most cuts, over all connections that share the plan.
    pub times: u64,
}

impl FromStr for FaultPlan {
    type Err = ParsePlanError;

    fn from_str(s: &str) -> Result<Self, ParsePlanError> {
        let mut plan = Self { one_in: 0, seed: 1, times: u64::MAX };
        for part in s.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let bad = || ParsePlanError(part.to_owned());
            let (key, value) = part.split_once('=').ok_or_else(bad)?;
            match key {
                "disconnect" => {
                    let n = value.strip_prefix("1/").ok_or_else(bad)?;
                    plan.one_in = n.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
                }
                "seed" => plan.seed = value.parse().map_err(|_| bad())?,
                "times" => plan.times = value.parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            }
        }
        if plan.one_in == 0 {
            return Err(ParsePlanError("no disconnect=1/N".to_owned()));
        }
        Ok(plan)
    }
}

/// A fault plan that cannot be read; holds the part at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePlanError(String);

impl fmt::Display for ParsePlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in a fault plan, which looks like disconnect=1/500,seed=7,times=20", self.0)
    }
}

impl std::error::Error for ParsePlanError {}

/// What the injectors of one plan have done.
#[derive(Debug, Default)]
pub struct FaultCounters {
    connections: AtomicU64,
    cuts: AtomicU64,
}

impl FaultCounters {
    /// Connections cut so far.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Relaxed)
    }

    /// Connections made so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Takes one cut from the plan's supply.
    fn take_cut(&self, times: u64) -> bool {
        self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < times).then_some(n + 1)).is_ok()
    }
}

/// A queue pair that is cut by a [`FaultPlan`].
pub struct Inject {
    inner: BoxQueuePair,
    plan: FaultPlan,
    counters: Arc<FaultCounters>,
    dice: SmallRng,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// The provider is driven once more, then cut.
    Doomed,
    Cut,
}

impl Inject {
    /// Wraps a connection.
    #[must_use]
    pub fn new(inner: BoxQueuePair, plan: FaultPlan, counters: Arc<FaultCounters>) -> Self {
        let nth = counters.connections.fetch_add(1, Ordering::Relaxed);
        let dice = SmallRng::seed_from_u64(plan.seed ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { inner, plan, counters, dice, state: State::Whole }
    }

    /// One step: throws the dice.
    fn step(&mut self) {
        if self.state != State::Whole || self.dice.random_range(0..self.plan.one_in) != 0 {
            return;
        }
        if !self.counters.take_cut(self.plan.times) {
            return;
        }
        if self.dice.random() { self.cut() } else { self.state = State::Doomed }
    }

    fn cut(&mut self) {
        self.state = State::Cut;
        self.inner.shutdown(Shutdown::Abort);
    }
}

impl QueuePair for Inject {
    fn limits(&self) -> QpLimits {
        self.inner.limits()
    }

    fn peer(&self) -> &Peer {
        self.inner.peer()
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        self.inner.post_recv(buf)
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        self.step();
        self.inner.post(work)
    }

    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        self.inner.expose(region, len, access)
    }

    fn invalidate(&mut self, stag: Stag) {
        self.inner.invalidate(stag);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        let before = done.len();
        let polled = self.inner.poll(cx, done);
        if self.state == State::Doomed {
            self.cut();
            if polled.is_pending() {
                return self.poll(cx, done);
            }
            return polled;
        }
        let arrived = done.get(before..).unwrap_or_default();
        for _ in arrived.iter().filter(|c| matches!(c, Completion::Received { .. })) {
            self.step();
        }
        polled.map_err(|lost| if self.state == State::Cut { Lost::Injected } else { lost })
    }

    fn shutdown(&mut self, how: Shutdown) {
        self.inner.shutdown(how);
    }
}

/// A connector whose connections are cut by a [`FaultPlan`].
pub struct InjectConnector<C> {
    inner: C,
    plan: FaultPlan,
    counters: Arc<FaultCounters>,
}

impl<C: Connector> InjectConnector<C> {
    /// Wraps a connector.
    #[must_use]
    pub fn new(inner: C, plan: FaultPlan) -> Self {
        Self { inner, plan, counters: Arc::default() }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Arc<FaultCounters> {
        Arc::clone(&self.counters)
    }
}

impl<C: Connector> Connector for InjectConnector<C> {
    fn connect(&self, to: SocketAddr, start: Start) -> BoxFuture<'_, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            let inner = self.inner.connect(to, start).await?;
            Ok(Box::new(Inject::new(inner, self.plan, self.counters())) as BoxQueuePair)
        })
    }

    fn remote_invalidation(&self, to: SocketAddr) -> BoxFuture<'_, bool> {
        self.inner.remote_invalidation(to)
    }
}

/// A listener whose connections are cut by a [`FaultPlan`].
pub struct InjectListener {
    inner: Box<dyn Listener>,
    plan: FaultPlan,
    counters: Arc<FaultCounters>,
}

impl InjectListener {
    /// Wraps a listener.
    #[must_use]
    pub fn new(inner: Box<dyn Listener>, plan: FaultPlan) -> Self {
        Self { inner, plan, counters: Arc::default() }
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Arc<FaultCounters> {
        Arc::clone(&self.counters)
    }
}

impl Listener for InjectListener {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Box<dyn Request>>> {
        self.inner.poll_accept(cx).map_ok(|inner| {
            Box::new(InjectRequest { inner, plan: self.plan, counters: Arc::clone(&self.counters) })
                as Box<dyn Request>
        })
    }
}

struct InjectRequest {
    inner: Box<dyn Request>,
    plan: FaultPlan,
    counters: Arc<FaultCounters>,
}

impl Request for InjectRequest {
    fn peer_addr(&self) -> SocketAddr {
        self.inner.peer_addr()
    }

    fn can_invalidate(&self) -> bool {
        self.inner.can_invalidate()
    }

    fn accept<'a>(self: Box<Self>, answer: Decide<'a>) -> BoxFuture<'a, Result<BoxQueuePair, ConnectError>> {
        Box::pin(async move {
            let inner = self.inner.accept(answer).await?;
            Ok(Box::new(Inject::new(inner, self.plan, self.counters)) as BoxQueuePair)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_from_text() {
        let plan: FaultPlan = "disconnect=1/500,seed=7".parse().unwrap();
        assert_eq!(plan, FaultPlan { one_in: 500, seed: 7, times: u64::MAX });
        assert_eq!("disconnect=1/2,times=3".parse::<FaultPlan>().unwrap().times, 3);
        for bad in
            ["", "seed=7", "disconnect=2/5", "disconnect=1/0", "disconnect", "cut=1/2", "disconnect=1/x"]
        {
            assert!(bad.parse::<FaultPlan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cuts_are_counted_and_limited() {
        let counters = FaultCounters::default();
        assert!(counters.take_cut(2));
        assert!(counters.take_cut(2));
        assert!(!counters.take_cut(2));
        assert_eq!(counters.cuts(), 2);
    }
}
