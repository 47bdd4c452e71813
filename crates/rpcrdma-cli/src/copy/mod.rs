//! Copies files and trees between this machine and NFS servers, in either direction or between servers.
//!
//! # Operation
//! A few walkers list directories, depth first, and start a task per file as long as there are fewer than
//! [`Options::jobs`] of them ([`tree`]); a large file keeps many chunks in flight by itself ([`file`]). A file is
//! written under a temporary name and renamed when it is whole, with its mode and times set, so a name that exists is
//! a file that is complete. Directories get their mode and times when all that is in them is done.
//!
//! # Ownership
//! Chunks travel in regions from the copy's own pools, and a copy holds at most [`BUDGET`] bytes of them, however many
//! files there are and however long they are.
//!
//! # When it breaks
//! What fails is reported and counted, and the rest goes on; only the loss of the server for good ends the copy. A copy
//! that was interrupted goes on where it was: files whose size and time of change are right are not copied again, and a
//! large file continues from what has arrived ([`file`] says how that is known). A directory at the top that is not
//! complete is marked as such ([`marker`]).
//!
//! # Limits
//! A file that changes while it is copied is copied again, up to three times. Names, not contents, decide what
//! corresponds to what. Hard links are kept apart unless asked for ([`Options::hard_links`]).

mod file;
mod progress;
mod tree;

use std::{
    collections::HashMap,
    hash::Hasher as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use rpcrdma::memory::Pools;
use siphasher::sip::SipHasher24;
use tokio::sync::Semaphore;

use crate::{
    failure::Failure,
    fs::{Dir, Meta, Object},
};

pub(crate) use progress::Bar;

/// Most bytes of file contents that a copy holds at one time.
pub(crate) const BUDGET: usize = 20 << 20;
/// Unit of the budget: the smallest region there is.
const UNIT: usize = 16 << 10;

/// How to copy.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Files that are worked on at one time.
    pub(crate) jobs: usize,
    /// Keep modes and times.
    pub(crate) preserve: bool,
    /// Keep owner and group.
    pub(crate) owner: bool,
    /// Copy devices, fifos and sockets too; otherwise they are reported.
    pub(crate) specials: bool,
    /// Names of one file stay names of one file.
    pub(crate) hard_links: bool,
    /// Leave what is there already, and continue large files.
    pub(crate) resume: bool,
    /// Names that are left out, wherever they are.
    pub(crate) exclude: Vec<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            jobs: 64,
            preserve: true,
            owner: false,
            specials: false,
            hard_links: false,
            resume: true,
            exclude: Vec::new(),
        }
    }
}

/// What has been done so far.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) files: AtomicU64,
    pub(crate) dirs: AtomicU64,
    pub(crate) links: AtomicU64,
    /// Bytes of files copied, holes included.
    pub(crate) bytes: AtomicU64,
    /// Files that were there already.
    pub(crate) unchanged: AtomicU64,
    /// Their bytes, and those of files that were continued.
    pub(crate) skipped_bytes: AtomicU64,
    pub(crate) failures: AtomicU64,
    /// A time of modification could not be kept, because NFSv3 cannot say it.
    pub(crate) bent_times: AtomicBool,
    /// Files seen by the count of what is to be done, and their bytes.
    pub(crate) expected: (AtomicU64, AtomicU64),
    /// The count is complete.
    pub(crate) counted: AtomicBool,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Where a tree goes.
pub(crate) struct Top {
    /// A directory that exists.
    pub(crate) dir: Dir,
    /// What to call it in messages.
    pub(crate) shown: String,
    /// It was made just now and is empty.
    pub(crate) fresh: bool,
    /// A name that is there as long as the copy is not complete; see [`marker`].
    pub(crate) marker: Option<Vec<u8>>,
}

/// The name that marks a directory as the incomplete copy of another one.
///
/// A copy to a name that does not exist makes a directory of that name, and the same command, run again, would copy into
/// it, one level deeper. The marker tells the second run that it is to go on with the first one's work.
pub(crate) fn marker(from: &Meta) -> Vec<u8> {
    let mut hash = SipHasher24::new();
    hash.write_u64(from.id.0);
    hash.write_u64(from.id.1);
    file::part_name(format!("copy-of-{:016x}", hash.finish()).as_bytes())
}

/// Whether this is the name of a [`marker`]. It says something of the place where it is, so it is not copied.
fn is_marker(name: &[u8]) -> bool {
    name.starts_with(b".copy-of-") && file::is_part(name)
}

/// A copy under way; shared by all of its tasks.
pub(crate) struct Job {
    pub(crate) options: Options,
    pub(crate) totals: Totals,
    pub(crate) started: Instant,
    pools: Pools,
    /// Free [`UNIT`]s of the budget.
    budget: Arc<Semaphore>,
    /// Free places for files.
    places: Arc<Semaphore>,
    /// The server is gone for good.
    aborted: AtomicBool,
    /// First names of files with several. Who copies the first one holds the lock of its entry meanwhile.
    seen: Mutex<HashMap<(u64, u64), tree::Names>>,
    report: Box<dyn Fn(&Failure) + Send + Sync>,
}

impl Job {
    /// A copy; `report` is told of everything that fails.
    pub(crate) fn new(options: Options, report: impl Fn(&Failure) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            totals: Totals::default(),
            started: Instant::now(),
            // As many of the largest as the budget pays for; the smaller classes are bounded by it too.
            pools: Pools::new((BUDGET >> 20).max(options.jobs.div_ceil(4))),
            budget: Arc::new(Semaphore::new(BUDGET / UNIT)),
            places: Arc::new(Semaphore::new(options.jobs.max(1))),
            aborted: AtomicBool::new(false),
            seen: Mutex::default(),
            report: Box::new(report),
            options,
        })
    }

    /// Reports a failure and goes on, or not.
    pub(crate) fn failed(&self, failure: &Failure) {
        if self.aborted.load(Ordering::Relaxed) {
            return;
        }
        if failure.is_fatal() && self.aborted.swap(true, Ordering::Relaxed) {
            return;
        }
        add(&self.totals.failures, 1);
        (self.report)(failure);
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Ends the copy where it stands; what fails from now on is not reported.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// The names that a file with several has at the destination.
    fn names(&self, id: (u64, u64)) -> tree::Names {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(seen.entry(id).or_default())
    }

    /// Copies the contents of a directory, which comes with what to call it in messages, and all below it.
    pub(crate) async fn copy_contents(self: &Arc<Self>, from: (Dir, String), to: Top) -> Result<(), Failure> {
        let meta = from.0.meta().await.map_err(|e| Failure::of(&from.1, e))?;
        tree::run(self, from, to, meta).await;
        Ok(())
    }

    /// Copies one object that is not a directory to a name in a directory.
    pub(crate) async fn copy_one(
        self: &Arc<Self>,
        from: (&Dir, &[u8], Object),
        to: (&Dir, &[u8]),
        shown: (&str, &str),
    ) {
        if let Err(failure) = file::copy_object(self, from, to, false, shown).await {
            self.failed(&failure);
        }
    }

    /// Adds an object to what there is to copy.
    pub(crate) fn expect(&self, meta: &Meta) {
        file::count_file(&self.totals.expected, meta);
    }

    /// Counts what there is to copy, for the progress bar.
    pub(crate) async fn count(self: Arc<Self>, dirs: Vec<Dir>) {
        tree::count(&self, dirs).await;
        self.totals.counted.store(true, Ordering::Relaxed);
    }
}
