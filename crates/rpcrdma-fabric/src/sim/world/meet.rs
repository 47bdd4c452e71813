//! How connections are made.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    task::Waker,
};

use super::{Asked, Conn, Due, NotMade, Setup, World};
use crate::{
    Peer, QpLimits, Start,
    sim::{
        ConnId, EventKind, Face, Side, StepKind, What,
        end::{End, Link},
    },
};

impl World {
    pub(in crate::sim) fn connect(&mut self, node: IpAddr, to: SocketAddr, mut start: Start) -> ConnId {
        self.made += 1;
        let conn = self.made;
        let port = self.ports.entry(node).or_insert(40_000);
        *port = port.checked_add(1).unwrap_or(40_001);
        let from = SocketAddr::new(node, *port);
        let limits = self.profile.limits;
        start.recvs.truncate(limits.recvs.min(start.limits.recvs));
        let recvs = start.recvs.len();
        let limits = QpLimits {
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

    pub(super) fn request(&mut self, conn: ConnId) {
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
    pub(in crate::sim) fn asked(&mut self, conn: ConnId) -> Option<Asked> {
        let c = self.conns.get_mut(&conn)?;
        if matches!(c.setup, Setup::Asked) { c.asked.clone() } else { None }
    }

    pub(in crate::sim) fn peer_addr(&mut self, conn: ConnId) -> Option<SocketAddr> {
        Some(self.conns.get_mut(&conn)?.asked.as_ref()?.from)
    }

    /// The passive side takes the connection.
    pub(in crate::sim) fn accept(&mut self, conn: ConnId, mut start: Start) -> bool {
        let after = self.begin(conn, Side::Passive, StepKind::Accept);
        let device = self.profile.limits;
        let Some(c) = self.conns.get_mut(&conn) else { return false };
        let (Setup::Asked, Some(asked)) = (&c.setup, c.asked.clone()) else {
            self.finish(conn, after);
            return false;
        };
        start.recvs.truncate(device.recvs.min(start.limits.recvs));
        let recvs = start.recvs.len();
        let limits = QpLimits {
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
    pub(in crate::sim) fn reject(&mut self, conn: ConnId, why: NotMade) {
        self.fail_setup(conn, why);
    }

    pub(super) fn established(&mut self, conn: ConnId) {
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
            self.tell(conn, Side::Active, EventKind::Made);
            let latency = self.draw(self.profile.latency.clone());
            self.schedule(self.now + latency, Due::Ready(conn));
        }
        self.finish(conn, after);
    }

    pub(super) fn ready(&mut self, conn: ConnId) {
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
            self.tell(conn, Side::Passive, EventKind::Made);
        }
        self.finish(conn, after);
    }

    pub(super) fn wake_waiting(&mut self, conn: ConnId) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.waiting.iter_mut().filter_map(Option::take).for_each(Waker::wake);
        }
    }

    pub(in crate::sim) fn describe_peer(&mut self, conn: ConnId, side: Side) -> Option<Peer> {
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
}
