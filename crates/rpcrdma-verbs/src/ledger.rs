//! Accounts for the Send queue: which work requests are with the device, and which work is done.
//!
//! # Operation
//! Work requests are numbered in the order of posting. Only the last of a chain is signalled; its completion says that all
//! before it are complete, because requests of one queue pair complete in order. A piece of work is some requests in a row,
//! or none, and is done when its last one is.
//!
//! # Limits
//! At most `depth` requests are with the device. It need not be more than the Send queue holds, and every chain that fills
//! the room ends with a signalled request, so that room comes back.

use std::collections::VecDeque;

/// The account, with a `T` for each piece of work.
pub(crate) struct Ledger<T> {
    depth: u64,
    /// Requests posted so far: the number of the next one.
    posted: u64,
    /// Requests that are complete: all with lower numbers.
    completed: u64,
    /// Work whose requests are all posted, each with the number behind its last request.
    under_way: VecDeque<(u64, T)>,
}

impl<T> Ledger<T> {
    pub(crate) fn new(depth: u32) -> Self {
        Self { depth: u64::from(depth), posted: 0, completed: 0, under_way: VecDeque::new() }
    }

    /// Requests that may be posted now.
    pub(crate) fn room(&self) -> usize {
        usize::try_from(self.depth.saturating_sub(self.posted - self.completed)).unwrap_or(usize::MAX)
    }

    /// The number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.posted
    }

    /// Requests have been posted.
    pub(crate) fn posted(&mut self, requests: usize) {
        self.posted += requests as u64;
    }

    /// The last request of a piece of work will be, or has been, the one before `end`.
    pub(crate) fn push(&mut self, end: u64, work: T) {
        self.under_way.push_back((end, work));
    }

    /// The device has completed a signalled request. `false` if there is no such request.
    pub(crate) fn complete(&mut self, number: u64) -> bool {
        let known = (self.completed..self.posted).contains(&number);
        if known {
            self.completed = number + 1;
        }
        known
    }

    /// The next piece of work that is done.
    pub(crate) fn pop_done(&mut self) -> Option<T> {
        let (end, _) = self.under_way.front()?;
        if *end > self.completed {
            return None;
        }
        self.under_way.pop_front().map(|(_, work)| work)
    }

    /// Pieces of work that are not known to be done.
    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// All that is left, when the queue pair is gone.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.under_way.drain(..).map(|(_, work)| work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_completion_is_for_all_before_it() {
        let mut ledger = Ledger::new(8);
        assert_eq!(ledger.room(), 8);
        ledger.push(2, "two requests");
        ledger.push(3, "one");
        ledger.push(3, "none");
        ledger.posted(3);
        assert_eq!((ledger.room(), ledger.next(), ledger.pop_done()), (5, 3, None));
        ledger.push(4, "later");
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
        ledger.push(3, ());
        assert!(ledger.complete(2));
        assert_eq!(ledger.pop_done(), Some(()));
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
        ledger.push(ledger.next(), 1);
        assert_eq!(ledger.pop_done(), Some(1));
    }
}
