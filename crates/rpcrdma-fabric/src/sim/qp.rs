//! The seam's view of one end of a connection.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::{ConnId, EventKind, Shared, Side, StepKind, end::Memory};
use crate::{
    Access, Completion, Exposed, Lost, Op, Peer, QpLimits, QueuePair, Region, RejectReason, Rejected,
    Shutdown, Stag, Work,
};

/// One end of a simulated connection.
pub(super) struct SimQueuePair {
    shared: Arc<Shared>,
    conn: ConnId,
    side: Side,
    limits: QpLimits,
    peer: Peer,
}

impl SimQueuePair {
    pub(super) fn new(shared: Arc<Shared>, conn: ConnId, side: Side, limits: QpLimits, peer: Peer) -> Self {
        Self { shared, conn, side, limits, peer }
    }
}

impl Drop for SimQueuePair {
    fn drop(&mut self) {
        self.shared.world().drop_end(self.conn, self.side);
    }
}

impl QueuePair for SimQueuePair {
    fn limits(&self) -> QpLimits {
        self.limits
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        let (conn, side) = (self.conn, self.side);
        let mut world = self.shared.world();
        let after =
            if world.is_open(conn, side) { world.begin(conn, side, StepKind::PostRecv) } else { None };
        // A queue pair that is lost but not flushed may take work all the same.
        let dying = world.coin();
        let refuse = match world.end(conn, side) {
            Some(e) if e.lost.is_some() && (e.flushed || dying) => Some(RejectReason::Lost),
            None => Some(RejectReason::Lost),
            Some(e) if e.recvs.len() >= self.limits.recvs => Some(RejectReason::QueueFull),
            Some(_) => None,
        };
        if let Some(why) = refuse {
            world.finish(conn, after);
            return Err(Rejected { why, item: buf });
        }
        if let Some(end) = world.end(conn, side) {
            end.recvs.push_back(buf);
        }
        world.tell(conn, side, EventKind::RecvPosted);
        world.finish(conn, after);
        Ok(())
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        let (conn, side) = (self.conn, self.side);
        let (op, len, fits) = match &work {
            Work::Send { buf, len, .. } => (Op::Send, *len as u64, *len <= buf.len()),
            Work::Write { buf, at, to, .. } => {
                let len: u64 = to.iter().map(|s| u64::from(s.len)).sum();
                (Op::Write, len, len.checked_add(*at as u64).is_some_and(|end| end <= buf.len() as u64))
            }
            Work::Read { buf, at, from, .. } => {
                let len: u64 = from.iter().map(|s| u64::from(s.len)).sum();
                (Op::Read, len, len.checked_add(*at as u64).is_some_and(|end| end <= buf.len() as u64))
            }
        };
        let mut world = self.shared.world();
        let after =
            if world.is_open(conn, side) { world.begin(conn, side, StepKind::Post(op)) } else { None };
        let dying = world.coin();
        let refuse = match world.end(conn, side) {
            Some(e) if e.lost.is_some() && (e.flushed || dying) => Some(RejectReason::Lost),
            None => Some(RejectReason::Lost),
            Some(_) if !fits => Some(RejectReason::OutOfRange),
            Some(e) if op == Op::Read && e.ord == 0 => Some(RejectReason::NoReads),
            Some(e) if e.slots >= self.limits.sends => Some(RejectReason::QueueFull),
            Some(_) => None,
        };
        if let Some(why) = refuse {
            world.finish(conn, after);
            return Err(Rejected { why, item: work });
        }
        match &work {
            Work::Send { id, buf, len, invalidate } => {
                let bytes = buf.get(..*len).unwrap_or_default();
                world.tell(conn, side, EventKind::SendPosted { id: *id, bytes, invalidate: *invalidate });
            }
            Work::Write { to: segments, .. } | Work::Read { from: segments, .. } => {
                world.tell(conn, side, EventKind::Posted { op, len, segments });
            }
        }
        if let Some(end) = world.end(conn, side) {
            end.queue.push_back(work);
            end.slots += 1;
        }
        world.finish(conn, after);
        Ok(())
    }

    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        let (conn, side) = (self.conn, self.side);
        let mut world = self.shared.world();
        let after = if world.is_open(conn, side) { world.begin(conn, side, StepKind::Expose) } else { None };
        let fails = world.registration_fails();
        let dying = world.coin();
        let refuse = match world.end(conn, side) {
            Some(e) if e.lost.is_some() && (e.flushed || dying) => Some(RejectReason::Lost),
            None => Some(RejectReason::Lost),
            Some(_) if len as usize > region.len() => Some(RejectReason::OutOfRange),
            Some(e) if e.exposed.len() >= self.limits.exposed => Some(RejectReason::TooManyRegions),
            Some(_) if fails => Some(RejectReason::Registration),
            Some(_) => None,
        };
        if let Some(why) = refuse {
            world.tell(conn, side, EventKind::NotExposed);
            world.finish(conn, after);
            return Err(Rejected { why, item: region });
        }
        let (stag, offset) = world.new_tag(conn, side);
        if let Some(end) = world.end(conn, side) {
            end.exposed.insert(stag, Memory { region, offset, len, access });
        }
        world.tell(conn, side, EventKind::Exposed { stag, offset, len, access });
        world.finish(conn, after);
        Ok(Exposed { stag, offset, len })
    }

    fn invalidate(&mut self, stag: Stag) {
        self.shared.world().invalidate(self.conn, self.side, stag);
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        let (conn, side) = (self.conn, self.side);
        let mut world = self.shared.world();
        world.close_if_idle(conn, side);
        let Some(end) = world.end(conn, side) else { return Poll::Ready(Err(Lost::Closed)) };
        match &mut end.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        if !end.queue.is_empty() {
            world.kick(conn, side);
        }
        if !world.is_told(conn, side) {
            return Poll::Pending;
        }
        let batch = world.profile.batch;
        let ready = world.end(conn, side).map_or(0, |e| e.completions.len());
        let count = if ready == 0 { 0 } else { world.up_to(batch).min(ready) };
        for _ in 0..count {
            let Some(end) = world.end(conn, side) else { break };
            let Some(completion) = end.completions.pop_front() else { break };
            if let Completion::Done { op, .. } | Completion::Flushed { op, .. } = &completion
                && *op != Op::Recv
            {
                end.slots = end.slots.saturating_sub(1);
            }
            world.tell(conn, side, EventKind::Handed(&completion));
            done.push(completion);
        }
        // The last completions may come together with the loss, or one call ahead of it.
        let together = world.coin();
        let Some(end) = world.end(conn, side) else { return Poll::Ready(Err(Lost::Closed)) };
        let left = !end.completions.is_empty();
        if !left
            && end.flushed
            && (count == 0 || together)
            && let Some(lost) = &end.lost
        {
            return Poll::Ready(Err(lost.clone()));
        }
        if left || (count > 0 && end.flushed) {
            cx.waker().wake_by_ref();
        }
        if count > 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn shutdown(&mut self, how: Shutdown) {
        let (conn, side) = (self.conn, self.side);
        let mut world = self.shared.world();
        world.tell(conn, side, EventKind::Shutdown(how));
        match how {
            Shutdown::Abort => world.abort(conn, side),
            Shutdown::Graceful => {
                if let Some(end) = world.end(conn, side) {
                    end.closing = true;
                    end.wake();
                }
            }
        }
    }
}
