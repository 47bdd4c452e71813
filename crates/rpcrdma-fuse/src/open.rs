//! Open files and directories, by the numbers that the kernel hands back with each request.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use slab::Slab;

use crate::{inode::Inode, user::User};

/// A file that somebody has opened.
pub(crate) struct OpenFile {
    pub(crate) inode: Arc<Inode>,
    pub(crate) user: Arc<User>,
    /// Every write has to be with the server when it returns.
    pub(crate) direct: bool,
    /// Failures of the file's write-behind that it has heard of.
    pub(crate) heard: AtomicU64,
}

impl OpenFile {
    pub(crate) fn new(inode: Arc<Inode>, user: Arc<User>, direct: bool) -> Arc<Self> {
        inode.opens.fetch_add(1, Ordering::AcqRel);
        let heard = AtomicU64::new(inode.writes.failures());
        Arc::new(Self { inode, user, direct, heard })
    }
}

/// Things by number.
pub(crate) struct Numbered<T>(Mutex<Slab<Arc<T>>>);

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Numbered<T> {
    fn slab(&self) -> MutexGuard<'_, Slab<Arc<T>>> {
        // Nothing panics between the writes of a guarded section.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab().is_empty()
    }

    pub(crate) fn add(&self, thing: Arc<T>) -> u64 {
        self.slab().insert(thing) as u64
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.slab().get(usize::try_from(number).ok()?).cloned()
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.slab().try_remove(usize::try_from(number).ok()?)
    }
}
