//! How work leaves one end and packets arrive at the other.

use std::{io::ErrorKind, time::Duration};

use super::{Due, World};
use crate::{
    Access, Completion, Lost, Op, Region, RemoteSegment, Stag, Work,
    sim::{
        ConnId, EventKind, Face, Reclaim, Side, StepKind,
        end::{OpenRead, Packet, Sent},
    },
};

impl World {
    /// Puts a packet on its way.
    pub(super) fn send(&mut self, conn: ConnId, from: Side, packet: Packet) {
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
    pub(in crate::sim) fn kick(&mut self, conn: ConnId, side: Side) {
        let delay = self.draw(self.profile.device.clone());
        let now = self.now;
        let Some(end) = self.open(conn, side) else { return };
        if end.transmitting {
            return;
        }
        end.transmitting = true;
        self.schedule(now + delay, Due::Transmit(conn, side));
    }

    pub(super) fn transmit(&mut self, conn: ConnId, side: Side) {
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
        self.expect_timeout(conn, side);
        let mut at = at;
        for s in from {
            let len = s.len as usize;
            self.send(conn, side, Packet::ReadRequest { read, at, stag: s.stag, offset: s.offset, len });
            at += len;
        }
    }

    /// A Send or Write has left: its completion will come.
    fn sent(&mut self, conn: ConnId, side: Side, sent: Sent) {
        if let Some(end) = self.open(conn, side) {
            end.sent.push_back(sent);
        }
        self.expect_timeout(conn, side);
        self.expect_completion(conn, side);
    }

    /// On a silent connection no acknowledgement will come, which an InfiniBand-like fabric notices.
    pub(super) fn expect_timeout(&mut self, conn: ConnId, side: Side) {
        let silent = self.conns.get(&conn).is_some_and(|c| c.silent);
        let waits = self.open(conn, side).is_some_and(|e| !(e.sent.is_empty() && e.reads.is_empty()));
        if silent && waits && self.profile.face != Face::Iwarp {
            let timeout = Duration::from_millis(self.profile.transport_timeout);
            self.schedule(self.now + timeout, Due::Timeout(conn, side));
        }
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

    pub(super) fn complete(&mut self, conn: ConnId, side: Side) {
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

    pub(super) fn arrive(&mut self, conn: ConnId, to: Side) {
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
}
