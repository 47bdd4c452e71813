//! The memory of write-behind.
//!
//! Data of programs is copied once, into a [`Chunk`], from which it is sent; only the first small writes of a file are copied
//! again, when they have outgrown theirs. A chunk can always be had, so nothing that has been read from the kernel has to be
//! put anywhere else; who has taken one while there is too much waits until there is [room](Store::room) before the program
//! goes on. So memory is bounded by [`HELD_MAX`] and the requests that wait, of which programs that write have one each.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rpcrdma::{fabric::Region, memory::Pools};
use tokio::sync::Notify;

/// Bytes in chunks above which writers wait.
const HELD_MAX: usize = 64 << 20;
/// Chunks of the largest size that are used again.
const LARGE_MAX: usize = 80;

/// Memory for data on its way out.
pub(crate) struct Chunk {
    /// Away only while it is sent.
    pub(crate) region: Option<Region>,
    size: usize,
    store: Arc<Store>,
}

impl Chunk {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.region.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        drop(self.region.take());
        self.store.held.fetch_sub(self.size, Ordering::AcqRel);
        self.store.freed.notify_waiters();
    }
}

/// The memory of all files of a mount.
pub(crate) struct Store {
    pools: Pools,
    /// Bytes in chunks.
    held: AtomicUsize,
    freed: Notify,
    waiting: AtomicUsize,
}

impl Store {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pools: Pools::new(LARGE_MAX),
            held: AtomicUsize::new(0),
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    /// A chunk of at least `len` bytes with arbitrary content.
    pub(crate) fn chunk(self: &Arc<Self>, len: usize) -> Chunk {
        let region = self.pools.take_fitting(len).unwrap_or_else(|| Region::alloc(len));
        let size = region.len();
        self.held.fetch_add(size, Ordering::AcqRel);
        Chunk { region: Some(region), size, store: Arc::clone(self) }
    }

    /// Whether those who write have to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.held.load(Ordering::Acquire) > HELD_MAX
    }

    /// Has those who wait for room look, and have some made, again.
    pub(crate) fn look_again(&self) {
        self.freed.notify_waiters();
    }

    /// Whether somebody waits for room.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Waits until there is room, and has some `made` as long as there is none.
    pub(crate) async fn room(&self, made: impl Fn()) {
        let _waiting = Waiting::new(&self.waiting);
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on nothing is missed.
            freed.as_mut().enable();
            if !self.is_full() {
                return;
            }
            made();
            freed.await;
        }
    }
}

/// Somebody who waits for room.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_chunk_can_always_be_had_and_writers_wait_for_room() {
        let store = Store::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut chunks = Vec::new();
        while !store.is_full() {
            chunks.push(store.chunk(1 << 20));
        }
        // More than is kept for use again.
        chunks.extend((0..LARGE_MAX).map(|_| store.chunk(1 << 20)));
        let asked = AtomicUsize::new(0);
        let mut room = Box::pin(store.room(|| _ = asked.fetch_add(1, Ordering::Relaxed)));
        assert!(room.as_mut().poll(&mut context).is_pending());
        assert!(store.is_waited_for());
        while store.is_full() {
            assert!(room.as_mut().poll(&mut context).is_pending());
            drop(chunks.pop());
        }
        assert!(room.as_mut().poll(&mut context).is_ready());
        drop(room);
        assert!(asked.into_inner() > LARGE_MAX, "asked again after each that was freed");
        assert!(!store.is_waited_for());
        drop(chunks);
        assert_eq!(store.held.load(Ordering::Relaxed), 0);
    }
}
