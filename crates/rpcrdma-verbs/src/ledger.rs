//! Accounts for the Send queue: which work requests are with the device, and which work is done.
//!
//! # Operation
//! Work requests are numbered in the order of posting. Only some are signalled: the last of each chain, and the last of each
//! RDMA Read. A completion says that all requests before it are complete, too, except for Reads: iWARP devices complete a
//! Send while the answer to an earlier Read is still on its way, so a Read is done only by a completion of its own. Reads
//! complete in order among themselves. A piece of work is some requests in a row, or none. Work is reported in the order of
//! posting.
//!
//! # Limits
//! At most `depth` requests are with the device. It need not be more than the Send queue holds, and every chain that fills
//! the room ends with a signalled request, so that room comes back.

use std::collections::VecDeque;

/// A piece of work whose requests are all posted.
struct Entry<T> {
    /// Numbers of its first request, of a Read of the first that may not be complete, and of the one behind its last.
    start: u64,
    end: u64,
    /// A Read without its completion.
    waits: bool,
    work: T,
}

/// The account, with a `T` for each piece of work.
pub(crate) struct Ledger<T> {
    depth: u64,
    /// Requests posted so far: the number of the next one.
    posted: u64,
    /// Requests that are complete, if they are not Reads: all with lower numbers.
    completed: u64,
    /// Where the last piece of work ends.
    end: u64,
    under_way: VecDeque<Entry<T>>,
}

impl<T> Ledger<T> {
    pub(crate) fn new(depth: u32) -> Self {
        Self { depth: u64::from(depth), posted: 0, completed: 0, end: 0, under_way: VecDeque::new() }
    }

    /// Requests that may be posted now.
    pub(crate) fn room(&self) -> usize {
        // What a Read has not given back is counted with all that was posted after it.
        let oldest = match self.under_way.front() {
            Some(entry) if entry.waits => entry.start.min(self.completed),
            _ => self.completed,
        };
        usize::try_from(self.depth.saturating_sub(self.posted - oldest)).unwrap_or(usize::MAX)
    }

    /// The number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.posted
    }

    /// Requests have been posted.
    pub(crate) fn posted(&mut self, requests: usize) {
        self.posted += requests as u64;
    }

    /// The last request of a piece of work will be, or has been, the one before `end`. `read` says that it is signalled, and
    /// that nothing else tells of its completion.
    pub(crate) fn push(&mut self, end: u64, read: bool, work: T) {
        let start = std::mem::replace(&mut self.end, end);
        self.under_way.push_back(Entry { start, end, waits: read && end > start, work });
    }

    /// The device has completed a signalled request. `false` if there can be no such request.
    pub(crate) fn complete(&mut self, number: u64) -> bool {
        if number >= self.posted {
            return false;
        }
        let at = self.under_way.partition_point(|entry| entry.end <= number);
        let read = self.under_way.get_mut(at).filter(|entry| entry.waits && entry.start <= number);
        let late = number < self.completed;
        if let Some(entry) = read {
            // A chain may end within a Read, and the rest of it, and what is behind it, be in the next.
            entry.start = number + 1;
            entry.waits = entry.start < entry.end;
        } else if late {
            return false;
        }
        self.completed = self.completed.max(number + 1);
        true
    }

    /// The next piece of work that is done.
    pub(crate) fn pop_done(&mut self) -> Option<T> {
        let entry = self.under_way.front()?;
        if entry.waits || entry.end > self.completed {
            return None;
        }
        self.under_way.pop_front().map(|entry| entry.work)
    }

    /// Pieces of work that are not known to be done.
    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// All that is left, when the queue pair is gone.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.under_way.drain(..).map(|entry| entry.work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_completion_is_for_all_before_it() {
        let mut ledger = Ledger::new(8);
        assert_eq!(ledger.room(), 8);
        ledger.push(2, false, "two requests");
        ledger.push(3, false, "one");
        ledger.push(3, false, "none");
        ledger.posted(3);
        assert_eq!((ledger.room(), ledger.next(), ledger.pop_done()), (5, 3, None));
        ledger.push(4, false, "later");
        ledger.posted(1);
        assert!(ledger.complete(2));
        let done: Vec<_> = std::iter::from_fn(|| ledger.pop_done()).collect();
        assert_eq!(done, ["two requests", "one", "none"]);
        assert_eq!((ledger.room(), ledger.len()), (7, 1));
        assert_eq!(ledger.drain().collect::<Vec<_>>(), ["later"]);
    }

    #[test]
    fn work_that_does_not_fit_at_once_frees_its_room_before_it_is_done() {
        let mut ledger = Ledger::new(2);
        ledger.posted(2);
        assert_eq!(ledger.room(), 0);
        assert!(ledger.complete(1));
        assert_eq!((ledger.room(), ledger.pop_done()), (2, None));
        ledger.posted(1);
        ledger.push(3, false, ());
        assert!(ledger.complete(2));
        assert_eq!(ledger.pop_done(), Some(()));
    }

    #[test]
    fn a_read_is_done_by_its_own_completion_alone() {
        let mut ledger = Ledger::new(6);
        ledger.push(1, false, "write");
        ledger.push(3, true, "read");
        ledger.push(4, false, "send");
        ledger.posted(4);
        assert!(ledger.complete(3), "the Send");
        assert_eq!((ledger.pop_done(), ledger.pop_done()), (Some("write"), None));
        assert_eq!(ledger.room(), 3, "the Read has its two, and the Send stands behind it");
        assert!(ledger.complete(2), "the Read, late");
        assert_eq!((ledger.pop_done(), ledger.pop_done(), ledger.room()), (Some("read"), Some("send"), 6));
        assert!(!ledger.complete(2), "not twice");
    }

    #[test]
    fn a_read_that_a_chain_ends_within_may_complete_behind_a_later_send() {
        let mut ledger = Ledger::new(64);
        ledger.push(3, false, "write");
        ledger.posted(4);
        ledger.push(6, true, "read");
        ledger.push(7, false, "send");
        ledger.posted(3);
        assert!(ledger.complete(6), "the Send");
        assert_eq!((ledger.pop_done(), ledger.pop_done(), ledger.room()), (Some("write"), None, 60));
        assert!(ledger.complete(3), "the Read's first part");
        assert!(!ledger.complete(3), "not twice");
        assert_eq!((ledger.pop_done(), ledger.room()), (None, 61));
        assert!(ledger.complete(5), "the Read");
        assert_eq!((ledger.pop_done(), ledger.pop_done(), ledger.room()), (Some("read"), Some("send"), 64));
        assert!(!ledger.complete(4) && !ledger.complete(5), "all of it is done");
    }

    #[test]
    fn a_read_that_a_chain_ends_within_is_not_done_by_its_first_part() {
        let mut ledger = Ledger::new(8);
        ledger.posted(2);
        ledger.push(3, true, "read");
        ledger.posted(1);
        assert!(ledger.complete(1), "its first two, in time");
        assert_eq!((ledger.pop_done(), ledger.room()), (None, 7));
        assert!(!ledger.complete(0) && !ledger.complete(1), "not twice");
        assert!(ledger.complete(2));
        assert_eq!((ledger.pop_done(), ledger.room()), (Some("read"), 8));
    }

    #[test]
    fn completions_of_nothing_are_refused() {
        let mut ledger = Ledger::<()>::new(4);
        assert!(!ledger.complete(0));
        ledger.posted(2);
        assert!(!ledger.complete(2));
        assert!(ledger.complete(1));
        assert!(!ledger.complete(1) && !ledger.complete(0), "not twice");
    }

    #[test]
    fn work_without_requests_is_done_when_nothing_is_ahead_of_it() {
        let mut ledger = Ledger::new(4);
        ledger.push(ledger.next(), false, 1);
        assert_eq!(ledger.pop_done(), Some(1));
    }
}
