//! Regions of one size, used again and again.
//!
//! A region taken from a [`Pool`] finds its way back when it, or the last piece of it, is dropped, on whatever thread
//! that happens. In steady state taking and dropping neither allocates nor frees. The number of blocks in
//! existence is bounded, which is what bounds the memory of a server by its calls in flight.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::region::Region;

/// What a pool and its regions share.
pub(crate) struct Shelf {
    state: Mutex<State>,
}

struct State {
    free: Vec<Region>,
    /// Blocks in existence, free or in use.
    blocks: usize,
}

impl Shelf {
    fn state(&self) -> MutexGuard<'_, State> {
        // The guarded code does not panic between its writes, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put_back(&self, region: Region) {
        self.state().free.push(region);
    }

    pub(crate) fn forget_block(&self) {
        self.state().blocks -= 1;
    }
}

/// A bounded supply of regions of one length. Clones share it.
#[derive(Clone)]
pub struct Pool {
    shelf: Arc<Shelf>,
    len: usize,
    most: usize,
}

impl Pool {
    /// A pool of at most `most` regions of `len` bytes each. They are allocated when first needed.
    #[must_use]
    pub fn new(len: usize, most: usize) -> Self {
        let state = State { free: Vec::with_capacity(most.min(4096)), blocks: 0 };
        Self { shelf: Arc::new(Shelf { state: Mutex::new(state) }), len, most }
    }

    /// Length in bytes of this pool's regions.
    #[must_use]
    pub fn region_len(&self) -> usize {
        self.len
    }

    /// The most regions there can be.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.most
    }

    /// Takes a region. Its content is whatever its last user left in it. `None` when all are in use.
    #[must_use]
    pub fn take(&self) -> Option<Region> {
        {
            let mut state = self.shelf.state();
            if let Some(region) = state.free.pop() {
                return Some(region);
            }
            if state.blocks >= self.most {
                return None;
            }
            state.blocks += 1;
        }
        Some(Region::alloc_for(self.len, Arc::downgrade(&self.shelf)))
    }

    /// Regions in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let state = self.shelf.state();
        state.blocks - state.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_region_comes_back_whole() {
        let pool = Pool::new(64, 1);
        let mut a = pool.take().unwrap();
        let at = a.as_ptr();
        assert!(pool.take().is_none());
        let b = a.split_off(10);
        drop(a);
        assert!(pool.take().is_none(), "a piece is still out");
        drop(b);
        let c = pool.take().unwrap();
        assert_eq!((c.as_ptr(), c.len()), (at, 64));
    }

    #[test]
    fn the_bound_counts_blocks_in_existence() {
        let pool = Pool::new(8, 3);
        let taken: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        assert_eq!(pool.in_use(), 3);
        drop(taken);
        assert_eq!(pool.in_use(), 0);
        assert!(pool.take().is_some());
    }

    #[test]
    fn regions_outlive_their_pool() {
        let pool = Pool::new(8, 1);
        let mut a = pool.take().unwrap();
        drop(pool);
        a.fill(7);
        assert_eq!(a[7], 7);
    }
}
