//! Whether anybody else changed an object while we did.
//!
//! Weak cache consistency wants the attributes from before and after an operation, and the former only if nothing can
//! have come between. No lock is held across system calls here; instead each change counts itself in and out, and
//! learns at its end whether it was alone. Objects share counters by hash, so a stranger's change may hide the
//! attributes from before, which costs a client a cache entry and nothing else. Changes by other processes of the
//! machine are not seen: between two system calls nothing can keep them out.

use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::handle::ObjectId;

const STRIPES: usize = 256;
/// The upper half counts changes under way, the lower half changes that ever began.
const UNDER_WAY: u64 = 1 << 32;

/// Counts of changes, for all objects of an export.
pub(super) struct Overlap {
    stripes: Box<[AtomicU64]>,
}

/// One change that is under way.
pub(super) struct Change<'a> {
    stripe: &'a AtomicU64,
    /// Its own number, if nobody else was there when it began.
    alone: Option<u32>,
}

impl Overlap {
    pub(super) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect() }
    }

    fn stripe(&self, id: &ObjectId) -> usize {
        let mut hasher = std::hash::DefaultHasher::new();
        id.hash(&mut hasher);
        hasher.finish() as usize % STRIPES
    }

    /// One change of two objects. The second is `None` if the first stands for both, because they share a counter.
    pub(super) fn begin_both(&self, one: &ObjectId, other: &ObjectId) -> (Change<'_>, Option<Change<'_>>) {
        let apart = self.stripe(one) != self.stripe(other);
        (self.begin(one), apart.then(|| self.begin(other)))
    }

    pub(super) fn begin(&self, id: &ObjectId) -> Change<'_> {
        let stripe = &self.stripes[self.stripe(id)];
        // Beginning is one addition in each half. The lower one wraps into the upper one every four billion changes;
        // taking that carry back keeps the upper half exact.
        let before = stripe.fetch_add(UNDER_WAY + 1, Ordering::AcqRel);
        if before as u32 == u32::MAX {
            stripe.fetch_sub(UNDER_WAY, Ordering::AcqRel);
        }
        let alone = (before < UNDER_WAY).then_some((before as u32).wrapping_add(1));
        Change { stripe, alone }
    }
}

impl Change<'_> {
    /// Whether no other change began, ended or went on since this one began.
    pub(super) fn was_alone(&self) -> bool {
        self.alone.is_some_and(|number| self.stripe.load(Ordering::Acquire) as u32 == number)
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.stripe.fetch_sub(UNDER_WAY, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ObjectId {
        ObjectId::new(0, &[n]).unwrap()
    }

    #[test]
    fn changes_of_one_object_see_each_other() {
        let overlap = Overlap::new();
        let first = overlap.begin(&id(1));
        assert!(first.was_alone());
        let second = overlap.begin(&id(1));
        assert!(!first.was_alone() && !second.was_alone());
        drop(second);
        assert!(!first.was_alone(), "somebody came and went");
        drop(first);
        assert!(overlap.begin(&id(1)).was_alone());
    }

    #[test]
    fn one_change_of_two_objects_does_not_see_itself() {
        let overlap = Overlap::new();
        for n in 0..=255 {
            let (one, other) = overlap.begin_both(&id(0), &id(n));
            assert!(one.was_alone() && other.as_ref().is_none_or(Change::was_alone), "{n}");
            assert!(n != 0 || other.is_none());
        }
    }

    #[test]
    fn the_count_wraps_cleanly() {
        let overlap = Overlap::new();
        for stripe in &overlap.stripes {
            stripe.store(u64::from(u32::MAX), Ordering::Relaxed);
        }
        let change = overlap.begin(&id(1));
        assert!(change.was_alone());
        drop(change);
        assert!(overlap.stripes.iter().any(|s| s.load(Ordering::Relaxed) == 0));
        assert!(overlap.begin(&id(1)).was_alone());
    }
}
