//! Files that were removed while they were open: how many live on in each directory, under names of ours.
//!
//! # Operation
//! Such a file is first open, then, when its last user has closed it, leaving: its removal is on its way to the server.
//! The kernel says that a file was closed after `close` has returned, so a program that closes, removes, and then removes
//! the directory can be faster; [`HiddenFiles::gone`] is where it waits.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

/// Files that live on, by the number of their directory.
#[derive(Default)]
pub(crate) struct HiddenFiles {
    dirs: Mutex<HashMap<u64, Files>>,
    changed: Notify,
}

#[derive(Clone, Copy, Default)]
struct Files {
    open: usize,
    leaving: usize,
}

impl HiddenFiles {
    fn dirs(&self) -> MutexGuard<'_, HashMap<u64, Files>> {
        // Nothing panics between the writes of a guarded section.
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file of this directory is open and has no name any more.
    pub(crate) fn hide(&self, dir: u64) {
        self.dirs().entry(dir).or_default().open += 1;
    }

    /// Nobody has one of them open any more.
    pub(crate) fn leaves(&self, dir: u64) {
        if let Some(files) = self.dirs().get_mut(&dir) {
            files.open = files.open.saturating_sub(1);
            files.leaving += 1;
        }
        self.changed.notify_waiters();
    }

    /// One that was leaving is gone.
    pub(crate) fn left(&self, dir: u64) {
        let mut dirs = self.dirs();
        if let Some(files) = dirs.get_mut(&dir) {
            files.leaving = files.leaving.saturating_sub(1);
            if files.open + files.leaving == 0 {
                dirs.remove(&dir);
            }
        }
        drop(dirs);
        self.changed.notify_waiters();
    }

    /// Waits until a directory has none of them. Says no if one is still open after `patience`; for those that are
    /// leaving it waits as long as it takes.
    pub(crate) async fn gone(&self, dir: u64, patience: Duration) -> bool {
        let closed = timeout(patience, self.until(dir, |files| files.open == 0)).await.is_ok();
        if closed {
            self.until(dir, |files| files.open + files.leaving == 0).await;
        }
        closed
    }

    async fn until(&self, dir: u64, is: impl Fn(Files) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is(self.dirs().get(&dir).copied().unwrap_or_default()) {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_open_file_is_waited_for_a_while() {
        let files = HiddenFiles::default();
        assert!(files.gone(1, PATIENCE).await);
        files.hide(1);
        assert!(!files.gone(1, PATIENCE).await);
        assert!(files.gone(2, PATIENCE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_leaves_is_waited_for_as_long_as_it_takes() {
        let files = HiddenFiles::default();
        files.hide(1);
        files.hide(1);
        files.leaves(1);
        let gone = files.gone(1, PATIENCE);
        tokio::pin!(gone);
        assert!(timeout(PATIENCE / 2, &mut gone).await.is_err());
        files.leaves(1);
        assert!(timeout(PATIENCE * 100, &mut gone).await.is_err());
        files.left(1);
        assert!(timeout(PATIENCE * 100, &mut gone).await.is_err());
        files.left(1);
        assert_eq!(timeout(PATIENCE, gone).await, Ok(true));
        assert!(files.dirs().is_empty());
    }
}
