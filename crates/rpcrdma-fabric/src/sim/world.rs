//! The state of a world and what happens in it.

mod meet;
mod wire;

use std::{
    collections::{BTreeMap, VecDeque},
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    task::Waker,
    time::Duration,
};

use rand::{RngExt as _, SeedableRng, rngs::SmallRng};

use super::{
    Census, ConnId, Event, EventKind, Fault, Faults, Observer, Profile, Reclaim, Side, Step, StepKind, View,
    What, When,
    end::{End, Link, Packet, Sent},
};
use crate::{Completion, Lost, Op, Stag};

/// How far the making of a connection has come.
pub(super) enum Setup {
    /// The request is on its way, waits at the listener, or is being decided on.
    Asked,
    /// The answer is on its way.
    Answered,
    /// The active side has its connection.
    Made,
    /// There will be none.
    Failed(NotMade),
}

/// Why a connection was not made.
#[derive(Clone)]
pub(super) enum NotMade {
    Refused(Vec<u8>),
    Io(ErrorKind),
}

/// One connection.
pub(super) struct Conn {
    pub(super) ends: [Option<End>; 2],
    /// By the side that sends.
    links: [Link; 2],
    silent: bool,
    pub(super) setup: Setup,
    to: SocketAddr,
    /// What the active side starts with.
    pub(super) asked: Option<Asked>,
    /// What the passive side answered.
    pub(super) answer: Vec<u8>,
    /// The passive side may use the connection.
    pub(super) ready: bool,
    /// Whoever waits for the connection to be made, by side.
    pub(super) waiting: [Option<Waker>; 2],
}

/// What the passive side has to know of the active side.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) from: SocketAddr,
    pub(super) private_data: Vec<u8>,
    outbound_reads: u32,
    inbound_reads: u32,
}

/// Connection requests that wait at a listener.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) waiting: VecDeque<ConnId>,
    pub(super) waker: Option<Waker>,
    /// Tells a listener from its successor.
    pub(super) generation: u64,
}

/// What will happen.
#[derive(Clone, Copy)]
enum Due {
    Request(ConnId),
    Established(ConnId),
    Ready(ConnId),
    Failed(ConnId),
    Transmit(ConnId, Side),
    Arrive(ConnId, Side),
    Complete(ConnId, Side),
    Reclaim(ConnId, Side, Stag),
    Flush(ConnId, Side),
    Tell(ConnId, Side),
    Timeout(ConnId, Side),
}

pub(super) struct World {
    pub(super) now: Duration,
    rng: SmallRng,
    pub(super) profile: Profile,
    /// By time, then by lot, then by age.
    agenda: BTreeMap<(Duration, u16, u64), Due>,
    scheduled: u64,
    conns: BTreeMap<ConnId, Conn>,
    made: u64,
    pub(super) listeners: BTreeMap<SocketAddr, Backlog>,
    /// Until when a node's device is away.
    down: BTreeMap<IpAddr, Duration>,
    ports: BTreeMap<IpAddr, u16>,
    pub(super) faults: Box<dyn Faults>,
    observer: Option<Box<dyn Observer>>,
    steps: u64,
    fault_count: u64,
    last_fault: Duration,
    /// A fault that concerns only the step that is being made.
    hit: Option<What>,
    reads: u64,
    watcher: Option<Waker>,
    /// What the watcher knows to be next.
    watched: Option<Duration>,
}

impl World {
    pub(super) fn new(
        seed: u64,
        profile: Profile,
        faults: Box<dyn Faults>,
        observer: Option<Box<dyn Observer>>,
    ) -> Self {
        Self {
            now: Duration::ZERO,
            rng: SmallRng::seed_from_u64(seed),
            profile,
            agenda: BTreeMap::new(),
            scheduled: 0,
            conns: BTreeMap::new(),
            made: 0,
            listeners: BTreeMap::new(),
            down: BTreeMap::new(),
            ports: BTreeMap::new(),
            faults,
            observer,
            steps: 0,
            fault_count: 0,
            last_fault: Duration::ZERO,
            hit: None,
            reads: 0,
            watcher: None,
            watched: None,
        }
    }

    // Time.

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.agenda.first_key_value().map(|((due, ..), _)| *due)
    }

    pub(super) fn watch(&mut self, waker: &Waker) {
        self.watched = self.next_due();
        match &mut self.watcher {
            Some(w) => w.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    fn schedule(&mut self, due: Duration, what: Due) {
        let lot = self.rng.random();
        self.scheduled += 1;
        self.agenda.insert((due.max(self.now), lot, self.scheduled), what);
        if self.watched.is_none_or(|known| due < known)
            && let Some(watcher) = self.watcher.take()
        {
            watcher.wake();
        }
    }

    fn draw(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    /// True once in `n`; never if that is 0.
    pub(super) fn one_in(&mut self, n: u32) -> bool {
        n > 0 && self.rng.random_range(0..n) == 0
    }

    pub(super) fn up_to(&mut self, n: usize) -> usize {
        self.rng.random_range(1..=n.max(1))
    }

    pub(super) fn coin(&mut self) -> bool {
        self.rng.random()
    }

    pub(super) fn advance(&mut self) -> bool {
        let Some(first) = self.agenda.first_entry() else { return false };
        if first.key().0 > self.now {
            return false;
        }
        match first.remove() {
            Due::Request(conn) => self.request(conn),
            Due::Established(conn) => self.established(conn),
            Due::Ready(conn) => self.ready(conn),
            Due::Failed(conn) => self.wake_waiting(conn),
            Due::Transmit(conn, side) => self.transmit(conn, side),
            Due::Arrive(conn, side) => self.arrive(conn, side),
            Due::Complete(conn, side) => self.complete(conn, side),
            Due::Reclaim(conn, side, stag) => self.reclaim(conn, side, stag),
            Due::Flush(conn, side) => self.flush(conn, side),
            Due::Tell(conn, side) => {
                if let Some(end) = self.end(conn, side) {
                    end.wake();
                }
            }
            Due::Timeout(conn, side) => self.die(conn, side, Lost::Io(ErrorKind::TimedOut)),
        }
        true
    }

    // Access.

    pub(super) fn conn(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(&conn)
    }

    pub(super) fn end(&mut self, conn: ConnId, side: Side) -> Option<&mut End> {
        self.conns.get_mut(&conn)?.ends[side.index()].as_mut().filter(|e| !e.dropped)
    }

    /// The end, if it works.
    fn open(&mut self, conn: ConnId, side: Side) -> Option<&mut End> {
        self.end(conn, side).filter(|e| e.is_open())
    }

    pub(super) fn is_open(&mut self, conn: ConnId, side: Side) -> bool {
        self.open(conn, side).is_some()
    }

    pub(super) fn tell(&mut self, conn: ConnId, side: Side, kind: EventKind<'_>) {
        let Some(mut observer) = self.observer.take() else { return };
        if let Some(c) = self.conns.get(&conn) {
            let end = c.ends[side.index()].as_ref();
            let other = if side == Side::Active { c.asked.as_ref().map(|a| a.from) } else { Some(c.to) };
            let addr = end.map(|e| e.addr).or(other).unwrap_or(c.to);
            observer.see(&Event {
                step: self.steps,
                at: self.now,
                conn,
                side,
                addr,
                kind,
                view: View { end },
            });
        }
        self.observer = Some(observer);
    }

    pub(super) fn census(&self) -> Census {
        let mut census = Census {
            connections: self.conns.len(),
            made: self.made,
            steps: self.steps,
            faults: self.fault_count,
            last_fault: self.last_fault,
            ..Census::default()
        };
        for end in self.conns.values().flat_map(|c| c.ends.iter().flatten()).filter(|e| !e.dropped) {
            census.ends += 1;
            census.recvs += end.recvs.len();
            census.work += end.queue.len() + end.sent.len() + end.reads.len();
            census.exposed += end.exposed.len();
        }
        census
    }

    // Steps and faults.

    /// Begins a step; returns a fault that comes after it.
    pub(super) fn begin(&mut self, conn: ConnId, side: Side, kind: StepKind) -> Option<What> {
        self.steps += 1;
        self.hit = None;
        let step = Step { number: self.steps, at: self.now, conn, side, kind };
        let fault = self.faults.at(&step)?;
        match fault.what {
            What::Registration if kind != StepKind::Expose => return None,
            What::Refuse if kind != StepKind::Request => return None,
            _ => {}
        }
        self.fault_count += 1;
        self.last_fault = self.now;
        self.tell(conn, side, EventKind::Fault(fault));
        match (fault.what, fault.when) {
            (What::Registration | What::Refuse, _) => self.hit = Some(fault.what),
            (_, When::After) => return Some(fault.what),
            (_, When::Before) => self.break_down(conn, fault.what),
        }
        None
    }

    /// Ends a step.
    pub(super) fn finish(&mut self, conn: ConnId, after: Option<What>) {
        if let Some(what) = after {
            self.break_down(conn, what);
        }
    }

    fn break_down(&mut self, conn: ConnId, what: What) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        match what {
            What::Reset { first, drop } => {
                if drop {
                    c.links[first.index()].packets.clear();
                }
                self.fail_setup(conn, NotMade::Io(ErrorKind::ConnectionReset));
                self.send(conn, first, Packet::End(Lost::Io(ErrorKind::ConnectionReset)));
                self.die(conn, first, Lost::Io(ErrorKind::ConnectionReset));
            }
            What::Silence => {
                c.silent = true;
                for side in [Side::Active, Side::Passive] {
                    self.expect_timeout(conn, side);
                }
            }
            What::Remove { side, down } => {
                let node = if side == Side::Passive { Some(c.to) } else { c.asked.as_ref().map(|a| a.from) };
                if let Some(node) = node {
                    self.remove_device(node.ip(), down);
                }
            }
            What::Registration | What::Refuse => {}
        }
    }

    pub(super) fn remove_device(&mut self, node: IpAddr, down: u64) {
        self.down.insert(node, self.now + Duration::from_millis(down));
        self.last_fault = self.now;
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in ids {
            for side in [Side::Active, Side::Passive] {
                let Some(c) = self.conns.get_mut(&conn) else { continue };
                let here = c.ends[side.index()].as_ref().is_some_and(|e| e.addr.ip() == node);
                if here {
                    let side_down = What::Remove { side, down };
                    self.tell(conn, side, EventKind::Fault(Fault { when: When::Before, what: side_down }));
                    let Some(c) = self.conns.get_mut(&conn) else { continue };
                    // Nobody is left who could tell the other end.
                    c.silent = true;
                    self.die(conn, side, Lost::Io(ErrorKind::NotConnected));
                }
            }
        }
    }

    fn is_down(&self, node: IpAddr) -> bool {
        self.down.get(&node).is_some_and(|until| *until > self.now)
    }

    /// A connection that is not made yet will not be.
    fn fail_setup(&mut self, conn: ConnId, why: NotMade) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        if matches!(c.setup, Setup::Asked | Setup::Answered) {
            c.setup = Setup::Failed(why);
            self.tell(conn, Side::Active, EventKind::NotMade);
            let after = self.draw(self.profile.latency.clone());
            self.schedule(self.now + after, Due::Failed(conn));
        }
    }

    /// An end is lost; its queues are flushed a little later.
    pub(super) fn die(&mut self, conn: ConnId, side: Side, lost: Lost) {
        if side == Side::Active {
            self.fail_setup(conn, NotMade::Io(ErrorKind::ConnectionReset));
        }
        let Some(end) = self.open(conn, side) else { return };
        end.lost = Some(lost.clone());
        self.tell(conn, side, EventKind::Lost(&lost));
        let after = self.draw(self.profile.flush.clone());
        self.schedule(self.now + after, Due::Flush(conn, side));
    }

    /// Whether the user may look at what has completed.
    pub(super) fn is_told(&mut self, conn: ConnId, side: Side) -> bool {
        let now = self.now;
        let Some(end) = self.end(conn, side) else { return true };
        if end.completions.is_empty() {
            end.told = None;
            return true;
        }
        if let Some(told) = end.told {
            return told <= now;
        }
        let (one_in, late) = self.profile.notification;
        let late = if self.one_in(one_in) { late } else { 0 };
        let told = now + Duration::from_millis(late);
        if late > 0 {
            self.schedule(told, Due::Tell(conn, side));
        }
        if let Some(end) = self.end(conn, side) {
            end.told = Some(told);
        }
        late == 0
    }

    fn flush(&mut self, conn: ConnId, side: Side) {
        // What was acknowledged in time, though nobody was told, is still reported as done.
        let acknowledged = self.coin();
        let receives_first = self.coin();
        let Some(end) = self.end(conn, side) else { return };
        if end.flushed {
            return;
        }
        if acknowledged && let Some(Sent { id, op, buf }) = end.sent.pop_front() {
            end.completions.push_back(Completion::Done { id, op, buf });
        }
        let mut work: Vec<Completion> = Vec::new();
        work.extend(end.sent.drain(..).map(|Sent { id, op, buf }| Completion::Flushed { id, op, buf }));
        let reads = std::mem::take(&mut end.reads);
        work.extend(reads.into_values().map(|r| Completion::Flushed { id: r.id, op: Op::Read, buf: r.buf }));
        work.extend(end.queue.drain(..).map(|w| {
            let (id, op, buf) = w.into_parts();
            Completion::Flushed { id, op, buf }
        }));
        let receives: Vec<Completion> =
            end.recvs.drain(..).map(|buf| Completion::Flushed { id: 0, op: Op::Recv, buf }).collect();
        if receives_first {
            end.completions.extend(receives);
            end.completions.extend(work);
        } else {
            end.completions.extend(work);
            end.completions.extend(receives);
        }
        let exposed = std::mem::take(&mut end.exposed);
        let stags: Vec<Stag> = exposed.keys().copied().collect();
        end.completions
            .extend(exposed.into_iter().map(|(stag, m)| Completion::Reclaimed { stag, buf: m.region }));
        end.flushed = true;
        end.wake();
        self.wake_waiting(conn);
        for stag in stags {
            self.tell(conn, side, EventKind::Reclaimed { stag, how: Reclaim::Flush });
        }
    }

    /// The peer broke a rule of the fabric.
    fn violation(&mut self, conn: ConnId, side: Side, what: &str) {
        self.tell(conn, side, EventKind::Violation(what));
        self.send(conn, side, Packet::End(Lost::Terminated(what.to_owned())));
        self.die(conn, side, Lost::PeerMisbehaved(what.to_owned()));
    }

    // Memory.

    pub(super) fn registration_fails(&mut self) -> bool {
        let dice = self.profile.registration_fails;
        self.hit.take() == Some(What::Registration) || self.one_in(dice)
    }

    /// A tag and a first offset that no peer can guess.
    pub(super) fn new_tag(&mut self, conn: ConnId, side: Side) -> (Stag, u64) {
        loop {
            let stag = Stag(self.rng.random());
            let offset = u64::from(self.rng.random::<u32>()) << 8;
            if self.end(conn, side).is_none_or(|e| !e.exposed.contains_key(&stag)) {
                return (stag, offset);
            }
        }
    }

    pub(super) fn invalidate(&mut self, conn: ConnId, side: Side, stag: Stag) {
        if !self.open(conn, side).is_some_and(|e| e.exposed.contains_key(&stag)) {
            return;
        }
        let after = self.begin(conn, side, StepKind::Invalidate);
        self.tell(conn, side, EventKind::Invalidating { stag });
        let delay = self.draw(self.profile.invalidation.clone());
        self.schedule(self.now + delay, Due::Reclaim(conn, side, stag));
        self.finish(conn, after);
    }

    fn reclaim(&mut self, conn: ConnId, side: Side, stag: Stag) {
        if !self.open(conn, side).is_some_and(|e| e.exposed.contains_key(&stag)) {
            return;
        }
        let after = self.begin(conn, side, StepKind::Reclaim);
        if let Some(end) = self.open(conn, side)
            && let Some(memory) = end.exposed.remove(&stag)
        {
            end.completions.push_back(Completion::Reclaimed { stag, buf: memory.region });
            end.wake();
            self.tell(conn, side, EventKind::Reclaimed { stag, how: Reclaim::Local });
        }
        self.finish(conn, after);
    }

    // Ending.

    /// The user closes its end at once.
    pub(super) fn abort(&mut self, conn: ConnId, side: Side) {
        if self.is_open(conn, side) {
            self.send(conn, side, Packet::End(Lost::Io(ErrorKind::ConnectionReset)));
            self.die(conn, side, Lost::Closed);
        }
    }

    /// Closes an end that was to be closed when nothing is left to do.
    pub(super) fn close_if_idle(&mut self, conn: ConnId, side: Side) {
        if self.open(conn, side).is_some_and(|e| e.closing && e.is_idle()) {
            self.send(conn, side, Packet::End(Lost::PeerClosed));
            self.die(conn, side, Lost::Closed);
        }
    }

    /// The user drops its end.
    pub(super) fn drop_end(&mut self, conn: ConnId, side: Side) {
        if self.is_open(conn, side) {
            self.send(conn, side, Packet::End(Lost::Io(ErrorKind::ConnectionReset)));
        }
        if side == Side::Active {
            self.fail_setup(conn, NotMade::Io(ErrorKind::ConnectionAborted));
        }
        if let Some(end) = self.end(conn, side) {
            end.clear();
            end.dropped = true;
            self.tell(conn, side, EventKind::Dropped);
        }
        if self.conns.get(&conn).is_some_and(|c| c.ends.iter().flatten().all(|e| e.dropped)) {
            self.conns.remove(&conn);
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let when = if self.when == When::Before { "before" } else { "after" };
        match self.what {
            What::Reset { first, drop } => {
                let lost = if drop { ", what is under way is lost" } else { "" };
                write!(f, "reset {when} the step, first seen by the {first:?} side{lost}")
            }
            What::Silence => write!(f, "silence from {when} the step on"),
            What::Remove { side, down } => {
                write!(f, "the {side:?} side's device away for {down} ms {when} the step")
            }
            What::Registration => f.write_str("a registration that fails"),
            What::Refuse => f.write_str("a refused connection"),
        }
    }
}
