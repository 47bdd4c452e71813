//! Work requests for a piece of work.
//!
//! A piece of work that is larger than the Send queue has room for, or than a message may be, becomes several requests, which
//! may leave in several chains. What is not posted yet is kept as a position in the peer's segments.

use rpcrdma_fabric::{Region, RejectReason, RemoteSegments, Work};

use crate::sys::{Mr, Request};

/// A piece of work on its way to the device.
pub(super) struct Posting {
    pub(super) work: Work,
    lkey: u32,
    /// The registration of an iWARP Read's destination, which the peer writes to.
    pub(super) sink: Option<Mr>,
    /// The next segment, and how much of it is posted.
    segment: usize,
    within: u32,
    /// Bytes posted in all.
    posted: usize,
}

/// How the device wants its requests.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// The longest message.
    pub(super) longest: u32,
    pub(super) can_invalidate: bool,
    /// The longest message that a request can carry in itself.
    pub(super) inline_max: u32,
    /// As in the device's `Abilities`.
    pub(super) lent_from: Option<u32>,
}

impl Posting {
    /// Work with the local key of its memory.
    pub(super) fn new(work: Work, lkey: u32, sink: Option<Mr>) -> Self {
        Self { work, lkey, sink, segment: 0, within: 0, posted: 0 }
    }

    /// The next request, if there is one.
    pub(super) fn next(&mut self, manner: Manner) -> Option<Request> {
        let Manner { longest, can_invalidate, inline_max, lent_from } = manner;
        let lkey = self.lkey;
        let lent = |len: u32| lent_from.is_some_and(|from| len >= from);
        let (buf, at, segments, write) = match &self.work {
            Work::Send { buf, len, invalidate, .. } => {
                self.posted = *len;
                self.segment = 1;
                let len = u32::try_from(*len).unwrap_or(u32::MAX);
                // Without it the peer invalidates for itself.
                let invalidate = invalidate.filter(|_| can_invalidate).map(|stag| stag.0);
                let inline = len > 0 && len <= inline_max;
                let (addr, signal) = (buf.as_ptr() as u64, lent(len));
                return Some(Request::Send { addr, len, lkey, invalidate, inline, signal });
            }
            Work::Write { buf, at, to, .. } => (buf, *at, to, true),
            Work::Read { buf, at, from, .. } => (buf, *at, from, false),
        };
        while segments.get(self.segment).is_some_and(|s| s.len == self.within) {
            self.segment += 1;
            self.within = 0;
        }
        let segment = segments.get(self.segment)?;
        let len = (segment.len - self.within).min(longest);
        let addr = buf.as_ptr() as u64 + at as u64 + self.posted as u64;
        let remote = segment.offset.wrapping_add(u64::from(self.within));
        let rkey = segment.stag.0;
        self.within += len;
        self.posted += len as usize;
        Some(if write {
            Request::Write { addr, len, lkey, to: remote, rkey, signal: lent(len) }
        } else {
            let signal = self.is_done();
            Request::Read { addr, len, lkey, from: remote, rkey, signal }
        })
    }

    /// Whether all requests have been made.
    pub(super) fn is_done(&self) -> bool {
        match &self.work {
            Work::Send { .. } => self.segment > 0,
            Work::Write { to: segments, .. } | Work::Read { from: segments, .. } => {
                let left = segments.iter().skip(self.segment).map(|s| u64::from(s.len)).sum::<u64>();
                left == u64::from(self.within)
            }
        }
    }
}

/// The bytes of a transfer, if they are inside the region.
pub(super) fn fits(buf: &Region, at: usize, segments: &RemoteSegments) -> Result<usize, RejectReason> {
    let total: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
    let room = buf.len().checked_sub(at).ok_or(RejectReason::OutOfRange)?;
    usize::try_from(total).ok().filter(|total| *total <= room).ok_or(RejectReason::OutOfRange)
}
