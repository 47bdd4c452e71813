//! RDMA Reads of ours: what was asked for, and where the answers go.
//!
//! Each remote segment is one Read Request. Responses come in the order of the requests (RFC 5040 section 5.2.2), so
//! the next response always belongs to the oldest request that is open, and anything else is an error of the peer's.

use std::collections::VecDeque;

use rpcrdma_fabric::{Region, RemoteSegment, RemoteSegments, WorkId};

use super::stags::{Slot, StagTable};
use crate::rdmap::ReadRequest;

/// One Read: a piece of work, or the zero-length Read that starts a peer-to-peer connection.
pub(super) struct ReadOp {
    id: WorkId,
    /// None for the ready-to-receive Read.
    buf: Option<Region>,
    at: usize,
    from: RemoteSegments,
    sink: Slot,
    /// Requests made, and their bytes.
    issued: usize,
    issued_bytes: u64,
    /// Requests answered in full, and their bytes.
    answered: usize,
    answered_bytes: u64,
    /// Bytes of the answer that is coming in.
    got: u32,
}

/// A Read that is done, or was flushed.
pub(super) struct Finished {
    pub(super) id: WorkId,
    /// None for the ready-to-receive Read.
    pub(super) buf: Option<Region>,
}

/// Why a Read Response is not the one that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unexpected {
    /// None is due, or for other memory.
    Stag,
    /// Not for these bytes.
    Bounds,
}

/// All open Reads.
pub(super) struct Reads {
    ops: VecDeque<ReadOp>,
    /// Requests sent and not answered.
    open: u32,
    /// The most that may be.
    ord: u32,
}

impl Reads {
    pub(super) fn new(ord: u32) -> Self {
        Self { ops: VecDeque::new(), open: 0, ord }
    }

    /// Works that have begun and not finished.
    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether another request may be sent.
    pub(super) fn may_issue(&self) -> bool {
        self.open < self.ord
    }

    /// Begins a Read; its requests follow by [`Self::issue`].
    pub(super) fn begin(
        &mut self,
        id: WorkId,
        buf: Option<Region>,
        at: usize,
        from: RemoteSegments,
        sink: Slot,
    ) {
        self.ops.push_back(ReadOp {
            id,
            buf,
            at,
            from,
            sink,
            issued: 0,
            issued_bytes: 0,
            answered: 0,
            answered_bytes: 0,
            got: 0,
        });
    }

    /// The next request of the Read begun last, and whether it is the last of that Read.
    pub(super) fn issue(&mut self, stags: &StagTable) -> Option<(ReadRequest, bool)> {
        let op = self.ops.back_mut()?;
        let segment: RemoteSegment = *op.from.get(op.issued)?;
        let (sink_stag, base) = stags.name(op.sink);
        let request = ReadRequest {
            sink_stag,
            sink_to: base + op.issued_bytes,
            len: segment.len,
            source_stag: segment.stag.0,
            source_to: segment.offset,
        };
        op.issued += 1;
        op.issued_bytes += u64::from(segment.len);
        self.open += 1;
        Some((request, op.issued == op.from.len()))
    }

    /// Whether a segment of a Read Response is the one that is due; gives the place of its payload.
    pub(super) fn check(
        &self,
        stags: &StagTable,
        stag: u32,
        to: u64,
        len: u32,
        last: bool,
    ) -> Result<usize, Unexpected> {
        let op = self.ops.front().filter(|op| op.answered < op.issued).ok_or(Unexpected::Stag)?;
        let due = op.from.get(op.answered).map_or(0, |segment| segment.len);
        let (sink_stag, base) = stags.name(op.sink);
        let before = op.answered_bytes + u64::from(op.got);
        // Of a response without bytes nothing but its place in the order counts.
        if !(due == 0 && len == 0) {
            if stag != sink_stag {
                return Err(Unexpected::Stag);
            }
            if base.checked_add(before) != Some(to) {
                return Err(Unexpected::Bounds);
            }
        }
        let got = op.got.checked_add(len).filter(|got| *got <= due).ok_or(Unexpected::Bounds)?;
        if (got == due) != last {
            return Err(Unexpected::Bounds);
        }
        usize::try_from(before).ok().and_then(|n| n.checked_add(op.at)).ok_or(Unexpected::Bounds)
    }

    /// Where the response that is coming in goes.
    pub(super) fn sink_mut(&mut self) -> Option<&mut Region> {
        self.ops.front_mut()?.buf.as_mut()
    }

    /// Takes note of a segment of the due response. Gives the Read if it is done.
    pub(super) fn answered(&mut self, stags: &mut StagTable, len: u32, last: bool) -> Option<Finished> {
        let op = self.ops.front_mut()?;
        op.got = op.got.saturating_add(len);
        if !last {
            return None;
        }
        op.answered += 1;
        op.answered_bytes += u64::from(op.got);
        op.got = 0;
        self.open = self.open.saturating_sub(1);
        if op.answered < op.from.len() {
            return None;
        }
        let op = self.ops.pop_front()?;
        stags.remove_sink(op.sink);
        Some(Finished { id: op.id, buf: op.buf })
    }

    /// Takes the oldest Read out, done or not.
    pub(super) fn flush_one(&mut self) -> Option<Finished> {
        self.ops.pop_front().map(|op| Finished { id: op.id, buf: op.buf })
    }
}
