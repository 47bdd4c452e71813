//! The state of a world and what happens in it.

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
    Census, ConnId, Event, EventKind, Face, Fault, Faults, Observer, Profile, Reclaim, Side, Step, StepKind,
    View, What, When,
    end::{End, Link, OpenRead, Packet, Sent},
};
use crate::{Access, Completion, Lost, Op, Peer, Region, RemoteSegment, Stag, Start, Work};

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
            What::Silence => c.silent = true,
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
            let (id, op, buf) = match w {
                Work::Send { id, buf, .. } => (id, Op::Send, buf),
                Work::Write { id, buf, .. } => (id, Op::Write, buf),
                Work::Read { id, buf, .. } => (id, Op::Read, buf),
            };
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

    // Making connections.

    pub(super) fn connect(&mut self, node: IpAddr, to: SocketAddr, mut start: Start) -> ConnId {
        self.made += 1;
        let conn = self.made;
        let port = self.ports.entry(node).or_insert(40_000);
        *port = port.checked_add(1).unwrap_or(40_001);
        let from = SocketAddr::new(node, *port);
        let limits = self.profile.limits;
        start.recvs.truncate(limits.recvs.min(start.limits.recvs));
        let recvs = start.recvs.len();
        let limits = crate::QpLimits {
            recvs: limits.recvs.min(start.limits.recvs),
            sends: limits.sends.min(start.limits.sends),
            exposed: limits.exposed.min(start.limits.exposed),
            outbound_reads: limits.outbound_reads.min(start.limits.outbound_reads),
            inbound_reads: limits.inbound_reads.min(start.limits.inbound_reads),
        };
        let asked = Asked {
            from,
            private_data: start.private_data,
            outbound_reads: limits.outbound_reads,
            inbound_reads: limits.inbound_reads,
        };
        let end = End::new(from, limits, 0, start.recvs);
        self.conns.insert(
            conn,
            Conn {
                ends: [Some(end), None],
                links: <[Link; 2]>::default(),
                silent: false,
                setup: Setup::Asked,
                to,
                asked: Some(asked),
                answer: Vec::new(),
                ready: false,
                waiting: [None, None],
            },
        );
        self.tell(conn, Side::Active, EventKind::Connect { to });
        self.tell(conn, Side::Active, EventKind::Born { recvs });
        let after = self.begin(conn, Side::Active, StepKind::Connect);
        let latency = self.draw(self.profile.latency.clone());
        if self.is_down(node) {
            self.fail_setup(conn, NotMade::Io(ErrorKind::NetworkDown));
        }
        self.schedule(self.now + latency, Due::Request(conn));
        self.finish(conn, after);
        conn
    }

    fn request(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        if c.silent || !matches!(c.setup, Setup::Asked) {
            return;
        }
        let to = c.to;
        let after = self.begin(conn, Side::Passive, StepKind::Request);
        if self.is_down(to.ip()) {
            // No device, no answer.
        } else if self.hit == Some(What::Refuse) {
            self.fail_setup(conn, NotMade::Refused(Vec::new()));
        } else if let Some(backlog) = self.listeners.get_mut(&to) {
            backlog.waiting.push_back(conn);
            if let Some(waker) = backlog.waker.take() {
                waker.wake();
            }
            self.tell(conn, Side::Passive, EventKind::Request);
        } else {
            self.fail_setup(conn, NotMade::Io(ErrorKind::ConnectionRefused));
        }
        self.finish(conn, after);
    }

    /// What the passive side is told of a request that still stands.
    pub(super) fn asked(&mut self, conn: ConnId) -> Option<Asked> {
        let c = self.conns.get_mut(&conn)?;
        if matches!(c.setup, Setup::Asked) { c.asked.clone() } else { None }
    }

    pub(super) fn peer_addr(&mut self, conn: ConnId) -> Option<SocketAddr> {
        Some(self.conns.get_mut(&conn)?.asked.as_ref()?.from)
    }

    /// The passive side takes the connection.
    pub(super) fn accept(&mut self, conn: ConnId, mut start: Start) -> bool {
        let after = self.begin(conn, Side::Passive, StepKind::Accept);
        let device = self.profile.limits;
        let Some(c) = self.conns.get_mut(&conn) else { return false };
        let (Setup::Asked, Some(asked)) = (&c.setup, c.asked.clone()) else {
            self.finish(conn, after);
            return false;
        };
        start.recvs.truncate(device.recvs.min(start.limits.recvs));
        let recvs = start.recvs.len();
        let limits = crate::QpLimits {
            recvs: device.recvs.min(start.limits.recvs),
            sends: device.sends.min(start.limits.sends),
            exposed: device.exposed.min(start.limits.exposed),
            outbound_reads: device.outbound_reads.min(start.limits.outbound_reads),
            inbound_reads: device.inbound_reads.min(start.limits.inbound_reads),
        };
        c.ends[Side::Passive.index()] =
            Some(End::new(c.to, limits, limits.outbound_reads.min(asked.inbound_reads), start.recvs));
        if let Some(active) = &mut c.ends[Side::Active.index()] {
            active.ord = asked.outbound_reads.min(limits.inbound_reads);
        }
        c.answer = start.private_data;
        c.setup = Setup::Answered;
        self.tell(conn, Side::Passive, EventKind::Born { recvs });
        let latency = self.draw(self.profile.latency.clone());
        // Nothing that the passive side sends overtakes its answer.
        let due = self.now + latency;
        if let Some(c) = self.conns.get_mut(&conn) {
            c.links[Side::Passive.index()].last = due;
        }
        self.schedule(due, Due::Established(conn));
        self.finish(conn, after);
        true
    }

    /// The passive side does not take it.
    pub(super) fn reject(&mut self, conn: ConnId, why: NotMade) {
        self.fail_setup(conn, why);
    }

    fn established(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        if c.silent || !matches!(c.setup, Setup::Answered) {
            return;
        }
        let after = self.begin(conn, Side::Active, StepKind::Established);
        if let Some(c) = self.conns.get_mut(&conn)
            && matches!(c.setup, Setup::Answered)
        {
            c.setup = Setup::Made;
            if let Some(waker) = c.waiting[Side::Active.index()].take() {
                waker.wake();
            }
            let latency = self.draw(self.profile.latency.clone());
            self.schedule(self.now + latency, Due::Ready(conn));
        }
        self.finish(conn, after);
    }

    fn ready(&mut self, conn: ConnId) {
        let Some(c) = self.conns.get_mut(&conn) else { return };
        if c.silent {
            return;
        }
        let after = self.begin(conn, Side::Passive, StepKind::Ready);
        if let Some(c) = self.conns.get_mut(&conn) {
            c.ready = true;
            if let Some(waker) = c.waiting[Side::Passive.index()].take() {
                waker.wake();
            }
        }
        self.finish(conn, after);
    }

    fn wake_waiting(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.waiting.iter_mut().filter_map(Option::take).for_each(Waker::wake);
        }
    }

    pub(super) fn describe_peer(&mut self, conn: ConnId, side: Side) -> Option<Peer> {
        let remote_invalidation = self.profile.remote_invalidation;
        let transport = match self.profile.face {
            Face::Iwarp => "simulated iWARP",
            Face::InfiniBand { .. } => "simulated InfiniBand",
        };
        let c = self.conns.get_mut(&conn)?;
        let asked = c.asked.as_ref()?;
        let (addr, private_data) = match side {
            Side::Active => (c.to, c.answer.clone()),
            Side::Passive => (asked.from, asked.private_data.clone()),
        };
        Some(Peer { addr, private_data, remote_invalidation, transport: transport.to_owned() })
    }

    // Sending.

    /// Puts a packet on its way.
    fn send(&mut self, conn: ConnId, from: Side, packet: Packet) {
        let latency = self.draw(self.profile.latency.clone());
        let size = Duration::from_millis((packet.size() as u64).saturating_mul(self.profile.per_kib) / 1024);
        let now = self.now;
        let Some(c) = self.conns.get_mut(&conn) else { return };
        let link = &mut c.links[from.index()];
        let due = (now + latency).max(link.last) + size;
        link.last = due;
        link.packets.push_back((due, packet));
        if !link.arriving {
            link.arriving = true;
            self.schedule(due, Due::Arrive(conn, from.other()));
        }
    }

    /// Work that has been posted is to leave.
    pub(super) fn kick(&mut self, conn: ConnId, side: Side) {
        let delay = self.draw(self.profile.device.clone());
        let now = self.now;
        let Some(end) = self.open(conn, side) else { return };
        if end.transmitting {
            return;
        }
        end.transmitting = true;
        self.schedule(now + delay, Due::Transmit(conn, side));
    }

    fn transmit(&mut self, conn: ConnId, side: Side) {
        let Some(end) = self.open(conn, side) else { return };
        end.transmitting = false;
        let op = match end.queue.front() {
            None => return,
            Some(Work::Send { .. }) => Op::Send,
            Some(Work::Write { .. }) => Op::Write,
            Some(Work::Read { .. }) => Op::Read,
        };
        if op == Op::Read && end.reads.len() >= end.ord as usize {
            // Goes on when an answer is complete.
            return;
        }
        let after = self.begin(conn, side, StepKind::Transmit(op));
        if let Some(work) = self.open(conn, side).and_then(|e| e.queue.pop_front()) {
            match work {
                Work::Send { id, buf, len, invalidate } => {
                    let bytes = buf.get(..len).unwrap_or_default().to_vec();
                    self.send(conn, side, Packet::Send { bytes, invalidate });
                    self.sent(conn, side, Sent { id, op, buf });
                }
                Work::Write { id, buf, at, to } => {
                    self.write(conn, side, &buf, at, &to);
                    self.sent(conn, side, Sent { id, op, buf });
                }
                Work::Read { id, buf, at, from } => self.read(conn, side, (id, buf, at), &from),
            }
            if self.open(conn, side).is_some_and(|e| !e.queue.is_empty()) {
                self.kick(conn, side);
            }
        }
        self.finish(conn, after);
    }

    fn write(&mut self, conn: ConnId, side: Side, buf: &Region, at: usize, to: &[RemoteSegment]) {
        let mut at = at;
        let fragment = self.profile.fragment.max(1);
        for segment in to {
            let data = buf.get(at..at + segment.len as usize).unwrap_or_default();
            at += segment.len as usize;
            let mut offset = segment.offset;
            for bytes in data.chunks(fragment) {
                self.send(conn, side, Packet::Write { stag: segment.stag, offset, bytes: bytes.to_vec() });
                offset = offset.wrapping_add(bytes.len() as u64);
            }
        }
    }

    fn read(
        &mut self,
        conn: ConnId,
        side: Side,
        (id, buf, at): (u64, Region, usize),
        from: &[RemoteSegment],
    ) {
        self.reads += 1;
        let read = self.reads;
        let left: usize = from.iter().map(|s| s.len as usize).sum();
        let Some(end) = self.open(conn, side) else { return };
        if left == 0 {
            end.completions.push_back(Completion::Done { id, op: Op::Read, buf });
            return end.wake();
        }
        end.reads.insert(read, OpenRead { id, buf, left });
        let mut at = at;
        for s in from {
            let len = s.len as usize;
            self.send(conn, side, Packet::ReadRequest { read, at, stag: s.stag, offset: s.offset, len });
            at += len;
        }
    }

    /// A Send or Write has left: its completion will come.
    fn sent(&mut self, conn: ConnId, side: Side, sent: Sent) {
        let silent = self.conns.get(&conn).is_some_and(|c| c.silent);
        if silent && self.profile.face != Face::Iwarp {
            // No acknowledgement will come.
            let timeout = Duration::from_millis(self.profile.transport_timeout);
            self.schedule(self.now + timeout, Due::Timeout(conn, side));
        }
        if let Some(end) = self.open(conn, side) {
            end.sent.push_back(sent);
        }
        self.expect_completion(conn, side);
    }

    fn expect_completion(&mut self, conn: ConnId, side: Side) {
        let (one_in, late) = self.profile.laggard;
        let mut delay = self.draw(self.profile.completion.clone());
        if self.one_in(one_in) {
            delay += Duration::from_millis(late);
        }
        let now = self.now;
        let silent = self.conns.get(&conn).is_some_and(|c| c.silent) && self.profile.face != Face::Iwarp;
        let Some(end) = self.open(conn, side) else { return };
        if !end.completing && !end.sent.is_empty() && !silent {
            end.completing = true;
            self.schedule(now + delay, Due::Complete(conn, side));
        }
    }

    fn complete(&mut self, conn: ConnId, side: Side) {
        let Some(end) = self.open(conn, side) else { return };
        end.completing = false;
        let Some(op) = end.sent.front().map(|s| s.op) else { return };
        let after = self.begin(conn, side, StepKind::Complete(op));
        if let Some(end) = self.open(conn, side)
            && let Some(Sent { id, op, buf }) = end.sent.pop_front()
        {
            end.completions.push_back(Completion::Done { id, op, buf });
            end.wake();
        }
        self.expect_completion(conn, side);
        self.finish(conn, after);
    }

    // Receiving.

    fn arrive(&mut self, conn: ConnId, to: Side) {
        let from = to.other();
        let now = self.now;
        let alive = self.is_open(conn, to);
        let Some(c) = self.conns.get_mut(&conn) else { return };
        let silent = c.silent;
        let link = &mut c.links[from.index()];
        link.arriving = false;
        let Some((due, packet)) = link.packets.front() else { return };
        if *due > now {
            let due = *due;
            link.arriving = true;
            return self.schedule(due, Due::Arrive(conn, to));
        }
        if silent || !alive {
            link.packets.pop_front();
            return self.next_arrival(conn, to);
        }
        let kind = packet.kind();
        let after = self.begin(conn, to, StepKind::Arrive(kind));
        if self.is_open(conn, to) && !self.wait_for_receive(conn, to) {
            let packet = self.conns.get_mut(&conn).and_then(|c| c.links[from.index()].packets.pop_front());
            if let Some((_, packet)) = packet {
                self.deliver(conn, to, packet);
            }
        }
        self.next_arrival(conn, to);
        self.finish(conn, after);
    }

    fn next_arrival(&mut self, conn: ConnId, to: Side) {
        let now = self.now;
        let Some(c) = self.conns.get_mut(&conn) else { return };
        let link = &mut c.links[to.other().index()];
        if link.arriving {
            return;
        }
        if let Some((due, _)) = link.packets.front() {
            let due = (*due).max(now);
            link.arriving = true;
            self.schedule(due, Due::Arrive(conn, to));
        }
    }

    /// Whether the message ahead has to wait, because there is no Receive for it.
    fn wait_for_receive(&mut self, conn: ConnId, to: Side) -> bool {
        let from = to.other();
        let Some(c) = self.conns.get_mut(&conn) else { return false };
        let missing = matches!(c.links[from.index()].packets.front(), Some((_, Packet::Send { .. })))
            && c.ends[to.index()].as_ref().is_some_and(|e| e.recvs.is_empty());
        let link = &mut c.links[from.index()];
        if !missing {
            link.retries = 0;
            return false;
        }
        self.tell(conn, to, EventKind::NoRecv);
        let Face::InfiniBand { rnr_retry, rnr_timer } = self.profile.face else {
            self.violation(conn, to, "a message without a Receive");
            return true;
        };
        let Some(c) = self.conns.get_mut(&conn) else { return true };
        let link = &mut c.links[from.index()];
        if rnr_retry != 7 && link.retries >= rnr_retry {
            self.die(conn, from, Lost::Terminated("the receiver was not ready".to_owned()));
            self.send(conn, from, Packet::End(Lost::Io(ErrorKind::ConnectionReset)));
            // The message ahead is never taken.
            if let Some(c) = self.conns.get_mut(&conn) {
                c.links[from.index()].packets.retain(|(_, p)| matches!(p, Packet::End(_)));
            }
            return true;
        }
        link.retries = link.retries.saturating_add(1);
        link.arriving = true;
        let again = self.now + Duration::from_millis(rnr_timer.max(1));
        self.schedule(again, Due::Arrive(conn, to));
        true
    }

    fn deliver(&mut self, conn: ConnId, to: Side, packet: Packet) {
        match packet {
            Packet::Send { bytes, invalidate } => self.deliver_send(conn, to, &bytes, invalidate),
            Packet::Write { stag, offset, bytes } => {
                let Some(end) = self.open(conn, to) else { return };
                let memory = end.exposed.get_mut(&stag).filter(|m| m.access == Access::RemoteWrite);
                let place = memory.and_then(|m| {
                    let range = m.range(offset, bytes.len())?;
                    m.region.get_mut(range)
                });
                match place {
                    Some(place) => {
                        place.copy_from_slice(&bytes);
                        self.tell(conn, to, EventKind::Placed { stag, len: bytes.len() });
                    }
                    None => self.violation(conn, to, "an RDMA Write to memory that is not exposed for it"),
                }
            }
            Packet::ReadRequest { read, at, stag, offset, len } => {
                let Some(end) = self.open(conn, to) else { return };
                let memory = end.exposed.get(&stag).filter(|m| m.access == Access::RemoteRead);
                let data = memory.and_then(|m| m.region.get(m.range(offset, len)?)).map(<[u8]>::to_vec);
                let Some(data) = data else {
                    return self.violation(conn, to, "an RDMA Read of memory that is not exposed for it");
                };
                self.tell(conn, to, EventKind::Fetched { stag, len });
                let fragment = self.profile.fragment.max(1);
                let count = data.len().div_ceil(fragment).max(1);
                for nth in 0..count {
                    let from = nth * fragment;
                    let bytes = data[from..(from + fragment).min(data.len())].to_vec();
                    self.send(conn, to, Packet::ReadResponse { read, at: at + from, bytes });
                }
            }
            Packet::ReadResponse { read, at, bytes } => self.deliver_response(conn, to, read, at, &bytes),
            Packet::End(lost) => self.die(conn, to, lost),
        }
    }

    fn deliver_send(&mut self, conn: ConnId, to: Side, bytes: &[u8], invalidate: Option<Stag>) {
        let Some(end) = self.open(conn, to) else { return };
        let Some(mut buf) = end.recvs.pop_front() else { return };
        let Some(place) = buf.get_mut(..bytes.len()) else {
            end.recvs.push_front(buf);
            return self.violation(conn, to, "a message longer than its Receive");
        };
        place.copy_from_slice(bytes);
        if let Some(stag) = invalidate {
            let Some(memory) = end.exposed.remove(&stag) else {
                end.recvs.push_front(buf);
                return self.violation(conn, to, "a Send that invalidates what is not exposed");
            };
            end.completions.push_back(Completion::Reclaimed { stag, buf: memory.region });
            self.tell(conn, to, EventKind::Reclaimed { stag, how: Reclaim::Remote });
        }
        let Some(end) = self.end(conn, to) else { return };
        end.completions.push_back(Completion::Received { buf, len: bytes.len(), invalidated: invalidate });
        end.wake();
        self.tell(conn, to, EventKind::Arrived { bytes });
    }

    fn deliver_response(&mut self, conn: ConnId, to: Side, read: u64, at: usize, bytes: &[u8]) {
        let Some(end) = self.open(conn, to) else { return };
        let Some(open) = end.reads.get_mut(&read) else { return };
        if let Some(place) = open.buf.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
        open.left = open.left.saturating_sub(bytes.len());
        if open.left > 0 {
            return;
        }
        let Some(OpenRead { id, buf, .. }) = end.reads.remove(&read) else { return };
        end.completions.push_back(Completion::Done { id, op: Op::Read, buf });
        end.wake();
        if !end.queue.is_empty() {
            self.kick(conn, to);
        }
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

/// What is left of a fault that was not made: for messages of people.
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
