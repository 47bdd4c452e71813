//! Memory that can be handed to a device.
//!
//! # Operation
//! A [`Region`] is a range of a heap block. The block is allocated once, zeroed and page-aligned, and never moves;
//! regions of the same block never overlap. A region is made whole and can be [split](Region::split_off) and
//! [joined](Region::unsplit), which moves no bytes and allocates nothing.
//!
//! # Ownership
//! A region is owned by value, so whoever holds it is the only one that can reach its bytes, and it dereferences to
//! a slice. Giving memory to a provider means giving the region away; see the crate's head.
//!
//! A provider that has to register memory with a device can leave the registration with the block
//! ([`Region::registration`]): it is made once, serves every region of the block, and is dropped before the memory.
//!
//! # Unsafe
//! This is the only module of the crate with `unsafe`. All of it rests on one invariant: **the ranges of the live
//! regions of a block are disjoint and inside the block, and every region keeps its block alive.** `alloc` makes one
//! region of the whole block, `split_off` cuts one range in two, `unsplit` makes one of two adjacent ones.
#![allow(unsafe_code, reason = "regions of one block are disjoint, which the compiler cannot see")]

use std::{
    alloc::{self, Layout},
    any::{Any, TypeId},
    fmt,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use smallvec::SmallVec;

use crate::pool::Shelf;

/// Alignment of every block: the page size of the machines we run on, as O_DIRECT and registration like it.
const ALIGN: usize = 4096;

/// The heap memory behind regions.
struct Block {
    base: NonNull<u8>,
    layout: Layout,
    /// Where the block goes when its last region is dropped.
    home: Weak<Shelf>,
    /// What providers keep with the block, sorted.
    registrations: Mutex<SmallVec<[Kept; 1]>>,
}

/// A registration, by its type and its number.
type Kept = ((TypeId, usize), Box<dyn Any + Send + Sync>);

// SAFETY: a block is memory from the global allocator, which any thread may access and free; nothing in it refers to
// the thread that made it.
unsafe impl Send for Block {}
// SAFETY: a shared reference to a block gives access to its address and layout only, never to its bytes; registrations are
// behind a lock.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(shelf) = self.home.upgrade() {
            shelf.forget_block();
        }
        // The device lets go of the memory before it is freed.
        self.registrations.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: `base` came from `alloc_zeroed` with this `layout`, and this is its only owner's drop.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// What a provider keeps with the memory behind regions: its registration with a device, in one protection domain.
pub trait Registration: Any + Send + Sync {
    /// Whether it serves nobody any more, so that it may be dropped before the memory is.
    fn is_stale(&self) -> bool;
}

/// An exclusively owned range of device-ready memory.
pub struct Region {
    /// First byte of the range.
    ptr: NonNull<u8>,
    /// Length of the range in bytes.
    len: usize,
    block: ManuallyDrop<Arc<Block>>,
}

// SAFETY: a region is the only owner of its bytes (the module's invariant), and its block may be used and freed on any
// thread; moving it moves that ownership.
unsafe impl Send for Region {}
// SAFETY: through a shared reference a region's bytes can only be read.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `len` zero bytes, page-aligned. Pages are touched only when they are used.
    ///
    /// # Panics
    /// Aborts, as `Vec` does, if the memory cannot be had.
    #[must_use]
    pub fn alloc(len: usize) -> Self {
        Self::alloc_for(len, Weak::new())
    }

    /// A region whose block returns to `home` when its last piece is dropped.
    pub(crate) fn alloc_for(len: usize, home: Weak<Shelf>) -> Self {
        let Ok(layout) = Layout::from_size_align(len.max(1), ALIGN) else {
            alloc::handle_alloc_error(Layout::new::<u8>())
        };
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { alloc::handle_alloc_error(layout) };
        let block = Block { base, layout, home, registrations: Mutex::default() };
        Self { ptr: base, len, block: ManuallyDrop::new(Arc::new(block)) }
    }

    /// Cuts the region in two: it keeps `..at`, the result is `at..`.
    ///
    /// # Panics
    /// If `at` is beyond the region's end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "cannot split {} bytes at {at}", self.len);
        // SAFETY: `at <= len`, so the result points into the block or one past its end.
        let ptr = unsafe { self.ptr.add(at) };
        let tail = Self { ptr, len: self.len - at, block: ManuallyDrop::new(Arc::clone(&self.block)) };
        self.len = at;
        tail
    }

    /// Joins a region that starts where this one ends, in the same block; the reverse of [`Region::split_off`].
    ///
    /// # Errors
    /// Gives `tail` back if it is not adjacent.
    pub fn unsplit(&mut self, tail: Self) -> Result<(), UnsplitError> {
        // SAFETY: `len` bytes from `ptr` are inside the block, so the sum is at most one past its end.
        let end = unsafe { self.ptr.add(self.len) };
        if end != tail.ptr || !Arc::ptr_eq(&self.block, &tail.block) {
            return Err(UnsplitError(tail));
        }
        self.len += tail.len;
        let mut tail = ManuallyDrop::new(tail);
        // SAFETY: `tail` is never used or dropped again, so its block handle is dropped exactly once, here; `self`
        // holds another, so the block lives on.
        unsafe { ManuallyDrop::drop(&mut tail.block) }
        Ok(())
    }

    /// Restores a region to its whole block, if no other piece of the block is alive.
    fn reclaim_whole(&mut self) -> bool {
        let Some(block) = Arc::get_mut(&mut self.block) else { return false };
        self.ptr = block.base;
        self.len = block.layout.size();
        true
    }

    /// Looks up the registration of the region's block with this number, makes one if there is none or it is stale, and returns
    /// what `look` finds in it. It is dropped with the block, or, once stale, when another of its type is made. With many of
    /// them a look-up is a binary search.
    ///
    /// `make` gets the address and the length in bytes of the whole block, of which this region may be a part. Numbers are the
    /// provider's, each type of registration has its own.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn registration<R: Registration, T, E>(
        &self,
        number: usize,
        make: impl FnOnce(*const u8, usize) -> Result<R, E>,
        look: impl FnOnce(&R) -> T,
    ) -> Result<T, E> {
        let block = &**self.block;
        let key = (TypeId::of::<R>(), number);
        let mut kept = block.registrations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(at) = kept.binary_search_by_key(&key, |(key, _)| *key)
            && let Some(found) = kept.get(at).and_then(|(_, r)| r.downcast_ref::<R>())
            && !found.is_stale()
        {
            return Ok(look(found));
        }
        kept.retain(|(_, r)| r.downcast_ref::<R>().is_none_or(|r| !r.is_stale()));
        let made = make(block.base.as_ptr(), block.layout.size())?;
        let found = look(&made);
        let at = kept.partition_point(|(other, _)| *other < key);
        kept.insert(at, (key, Box::new(made)));
        Ok(found)
    }

    /// Address of the first byte, for providers that register memory with a device.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(shelf) = self.block.home.upgrade()
            && self.reclaim_whole()
        {
            // SAFETY: `self.block` is not touched again in this drop, and a `ManuallyDrop` field is not dropped by the
            // compiler; so the handle moves into the new region, which is the block's only one (`reclaim_whole`).
            let block = unsafe { ManuallyDrop::take(&mut self.block) };
            shelf.put_back(Self { ptr: self.ptr, len: self.len, block: ManuallyDrop::new(block) });
            return;
        }
        // SAFETY: dropped once, here; see above for the only other path, which returns.
        unsafe { ManuallyDrop::drop(&mut self.block) }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside a live block of initialised bytes (zeroed at birth), and by the module's
        // invariant nobody but the owner of `self`, which is borrowed, can write it.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<&[u8]> for Region {
    fn from(bytes: &[u8]) -> Self {
        let mut region = Self::alloc(bytes.len());
        region.copy_from_slice(bytes);
        region
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes)", self.len)
    }
}

/// Two regions are not neighbours; holds the one that was to be joined.
#[derive(Debug)]
pub struct UnsplitError(pub Region);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_join_again() {
        let mut a = Region::alloc(100);
        let mut b = a.split_off(30);
        let mut c = b.split_off(50);
        a.fill(1);
        b.fill(2);
        c.fill(3);
        assert_eq!((a.len(), b.len(), c.len()), (30, 50, 20));
        let Err(UnsplitError(c)) = a.unsplit(c) else { panic!("30 and 80 are not neighbours") };
        b.unsplit(c).unwrap();
        a.unsplit(b).unwrap();
        assert!(a[..30].iter().all(|x| *x == 1));
        assert!(a[30..80].iter().all(|x| *x == 2));
        assert!(a[80..].iter().all(|x| *x == 3));
    }

    #[test]
    fn regions_of_different_blocks_do_not_join() {
        let mut a = Region::alloc(0);
        assert!(a.unsplit(Region::alloc(0)).is_err());
    }

    #[test]
    fn a_piece_keeps_its_block_alive_on_another_thread() {
        let mut a = Region::from(&b"hello world"[..]);
        let b = a.split_off(6);
        drop(a);
        let b = std::thread::spawn(move || {
            assert_eq!(&b[..], b"world");
            b
        });
        assert_eq!(&b.join().unwrap()[..], b"world");
    }

    #[test]
    fn registrations_stay_with_the_block_until_they_are_stale() {
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

        struct Counted {
            domain: usize,
            stale: Arc<AtomicBool>,
            alive: Arc<AtomicUsize>,
        }
        impl Registration for Counted {
            fn is_stale(&self) -> bool {
                self.stale.load(SeqCst)
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                self.alive.fetch_sub(1, SeqCst);
            }
        }
        let (stale, alive) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let register = |region: &Region, domain: usize, stale: &Arc<AtomicBool>| {
            region.registration(
                domain,
                |at, len| {
                    assert_eq!((at, len), (region.block.base.as_ptr().cast_const(), 100), "the whole block");
                    alive.fetch_add(1, SeqCst);
                    Ok::<_, ()>(Counted { domain, stale: Arc::clone(stale), alive: Arc::clone(&alive) })
                },
                |r| r.domain,
            )
        };
        let never = Arc::new(AtomicBool::new(false));
        let mut a = Region::alloc(100);
        let b = a.split_off(40);
        assert_eq!(register(&a, 1, &stale), Ok(1));
        assert_eq!(register(&b, 1, &stale), Ok(1));
        assert_eq!(alive.load(SeqCst), 1, "one serves both regions");
        assert_eq!(register(&b, 2, &never), Ok(2));
        stale.store(true, SeqCst);
        assert_eq!((register(&a, 2, &never), alive.load(SeqCst)), (Ok(2), 2));
        assert_eq!((register(&a, 3, &never), alive.load(SeqCst)), (Ok(3), 2), "the stale one has gone");
        let failed = a.registration(4, |_, _| Err::<Counted, _>("no memory"), |_| ());
        assert_eq!(failed, Err("no memory"));
        let passing = Arc::new(AtomicBool::new(false));
        for domain in [9, 0, 7, 5, 8] {
            assert_eq!(register(&a, domain, &passing), Ok(domain));
        }
        for domain in [0, 2, 3, 5, 7, 8, 9] {
            assert_eq!(
                (register(&b, domain, &never), alive.load(SeqCst)),
                (Ok(domain), 7),
                "{domain} is known"
            );
        }
        passing.store(true, SeqCst);
        assert_eq!((register(&b, 7, &never), alive.load(SeqCst)), (Ok(7), 3), "a new one for the stale one");
        drop(a);
        assert_eq!(alive.load(SeqCst), 3);
        drop(b);
        assert_eq!(alive.load(SeqCst), 0, "all go with the block");
    }

    #[test]
    fn a_new_region_is_zero_and_aligned() {
        let a = Region::alloc(10_000);
        assert!(a.iter().all(|x| *x == 0));
        assert_eq!(a.as_ptr() as usize % ALIGN, 0);
    }
}
