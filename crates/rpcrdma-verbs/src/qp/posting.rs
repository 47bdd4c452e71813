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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rpcrdma_fabric::{RemoteSegment, Stag};

    use super::*;

    const LKEY: u32 = 5;
    const AT: usize = 3;

    fn manner() -> Manner {
        Manner { longest: 1 << 31, can_invalidate: true, inline_max: 128, lent_from: None }
    }

    /// All requests of a piece of work; it says of itself that it is done behind the last one, and nowhere else.
    fn requests(work: Work, manner: Manner) -> Vec<Request> {
        let mut posting = Posting::new(work, LKEY, None);
        let mut all = Vec::new();
        while !posting.is_done() {
            all.push(posting.next(manner).expect("not done, so there is one"));
        }
        all
    }

    fn send(len: usize, manner: Manner) -> Request {
        let work = Work::Send { id: 1, buf: Region::alloc(len), len, invalidate: Some(Stag(9)) };
        let all = requests(work, manner);
        assert_eq!(all.len(), 1);
        all.into_iter().next().unwrap()
    }

    proptest! {
        /// The bytes of the region from `AT` on, one behind the other, to or from each segment from its offset on, in
        /// messages that are not too long and not empty; of a Read, the last one is signalled, and of a Write, those that
        /// are lent.
        #[test]
        fn transfers_cover_their_segments_once_and_in_order(
            lens in prop::collection::vec(prop_oneof![3 => 0u32..200, 1 => Just(0)], 0..20),
            longest in 1u32..100,
            lent in prop::option::of(1u32..100),
            write: bool,
        ) {
            let mut segments = RemoteSegments::new();
            for (i, len) in lens.iter().enumerate() {
                // The last one ends where offsets do.
                let offset = if i + 1 == lens.len() { u64::MAX - u64::from(*len) } else { 1000 * i as u64 };
                segments.push(RemoteSegment { stag: Stag(i as u32), offset, len: *len });
            }
            let total: usize = lens.iter().map(|len| *len as usize).sum();
            let buf = Region::alloc(AT + total);
            let mut local = buf.as_ptr() as u64 + AT as u64;
            let work = if write {
                Work::Write { id: 1, buf, at: AT, to: segments.clone() }
            } else {
                Work::Read { id: 1, buf, at: AT, from: segments.clone() }
            };
            let all = requests(work, Manner { longest, lent_from: lent, ..manner() });
            let count = all.len();
            let mut all = all.into_iter().enumerate();
            for segment in &segments {
                let mut within = 0;
                while within < segment.len {
                    let (i, request) = all.next().expect("bytes are left");
                    let (seen, signal) = match request {
                        Request::Write { addr, len, lkey, to, rkey, signal } if write => ((addr, len, lkey, to, rkey), signal),
                        Request::Read { addr, len, lkey, from, rkey, signal } if !write => ((addr, len, lkey, from, rkey), signal),
                        _ => panic!("another kind of request"),
                    };
                    let len = longest.min(segment.len - within);
                    let remote = segment.offset.wrapping_add(u64::from(within));
                    prop_assert_eq!(seen, (local, len, LKEY, remote, segment.stag.0));
                    let expected = if write { lent.is_some_and(|from| len >= from) } else { i + 1 == count };
                    prop_assert_eq!(signal, expected);
                    within += len;
                    local += u64::from(len);
                }
            }
            prop_assert!(all.next().is_none(), "more requests than bytes");
        }
    }

    #[test]
    fn a_transfer_of_nothing_has_no_request() {
        for lens in [&[][..], &[0], &[0, 0]] {
            let to: RemoteSegments =
                lens.iter().map(|len| RemoteSegment { stag: Stag(1), offset: 0, len: *len }).collect();
            let mut posting =
                Posting::new(Work::Write { id: 1, buf: Region::alloc(1), at: 0, to }, LKEY, None);
            assert!(posting.next(manner()).is_none() && posting.is_done());
        }
    }

    #[test]
    fn a_send_carries_itself_if_it_is_small_and_names_a_tag_if_the_device_can() {
        for (len, small) in [(0, false), (1, true), (128, true), (129, false)] {
            let Request::Send { len: seen, lkey, invalidate, inline, signal, .. } = send(len, manner())
            else {
                panic!("no Send")
            };
            assert_eq!((seen as usize, lkey, invalidate, inline, signal), (len, LKEY, Some(9), small, false));
        }
        let plain = Manner { can_invalidate: false, inline_max: 0, lent_from: Some(50), ..manner() };
        for (len, lent) in [(49, false), (50, true)] {
            let Request::Send { invalidate, inline, signal, .. } = send(len, plain) else {
                panic!("no Send")
            };
            assert_eq!((invalidate, inline, signal), (None, false, lent));
        }
    }

    #[test]
    fn what_does_not_fit_into_the_region_is_refused() {
        let buf = Region::alloc(10);
        let of = |lens: &[u32]| -> RemoteSegments {
            lens.iter().map(|len| RemoteSegment { stag: Stag(1), offset: 0, len: *len }).collect()
        };
        assert_eq!(fits(&buf, 0, &of(&[4, 0, 6])), Ok(10));
        assert_eq!(fits(&buf, 10, &of(&[])), Ok(0));
        for (at, lens) in [(0, &[11][..]), (1, &[4, 6]), (11, &[]), (usize::MAX, &[1]), (0, &[u32::MAX; 3])] {
            assert_eq!(fits(&buf, at, &of(lens)), Err(RejectReason::OutOfRange), "{at} {lens:?}");
        }
    }
}
