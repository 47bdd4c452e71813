//! Where work that may block is done.

use std::{fmt, sync::Arc};

/// Work that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// Does work that may block somewhere else than on the caller's thread: by default on the runtime's blocking threads. A
/// simulation does it in its own time.
#[derive(Clone)]
pub struct Offload(Arc<dyn Fn(Job) + Send + Sync>);

impl Offload {
    /// Work is done by this function, now or later. A job that is dropped is a Call that is never answered.
    #[must_use]
    pub fn new(run: impl Fn(Job) + Send + Sync + 'static) -> Self {
        Self(Arc::new(run))
    }

    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        (self.0)(Box::new(job));
    }
}

impl Default for Offload {
    fn default() -> Self {
        Self::new(|job| drop(tokio::task::spawn_blocking(job)))
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offload")
    }
}
