//! Finding objects without the right to open them by handle.
//!
//! # Operation
//! A server that is not root can ask the kernel for an object's handle, but not open one. So it remembers where it
//! found each object: its directory, and its name there. To resolve a handle, the directory is resolved in the same
//! way, the name opened in it, and the handle of what stands there compared. If that fails, because the place was
//! forgotten, the object was renamed by a local process, or the server was restarted, the whole export is searched
//! once; the search remembers every place it passes, so the next ones are cheap.
//!
//! # When it breaks
//! What no search finds is `STALE`, and is not searched for again for a while: a client cannot make the server walk
//! the tree by repeating an old handle.
//!
//! # Limits
//! A bounded number of places is remembered, and a bounded number of objects is looked at per search; in a larger tree
//! an object beyond may be `STALE` after a restart although it exists. Directories that the server's user may not read
//! are not searched. One search runs at a time, the others wait for it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rpcrdma_nfs::v3::Status;
use rustix::fs::{FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::super::handle::ObjectId;
use super::cache::Cache;
use super::objects::{id_of, open_name};
use super::{LocalExport, locked};

/// How long an object that no search found counts as gone.
const GONE_FOR: Duration = Duration::from_secs(5);
/// How many such objects are remembered.
const GONE_MAX: usize = 4096;
/// How many directories below each other a search goes down, each with an open descriptor.
const DEPTH_MAX: usize = 128;
/// How long a chain of places may be.
const CHAIN_MAX: usize = 512;

/// Where an object is.
struct Place {
    parent: ObjectId,
    name: Box<[u8]>,
}

/// Where all objects are, as far as is known.
pub(super) struct Table {
    places: Mutex<Cache<ObjectId, Place>>,
    gone: Mutex<Cache<ObjectId, Instant>>,
    searching: Mutex<()>,
    search_limit: usize,
}

/// A directory whose subdirectories are being searched.
struct Level {
    fd: OwnedFd,
    subdirectories: Vec<Box<[u8]>>,
}

impl Table {
    pub(super) fn new(capacity: usize, search_limit: usize) -> Self {
        Self {
            places: Mutex::new(Cache::new(capacity)),
            gone: Mutex::new(Cache::new(GONE_MAX)),
            searching: Mutex::new(()),
            search_limit,
        }
    }

    /// Remembers where an object is.
    pub(super) fn note(&self, id: &ObjectId, parent: &ObjectId, name: &[u8]) {
        let mut places = locked(&self.places);
        if let Some(place) = places.get(id) {
            // Usually nothing has changed, and then nothing is allocated.
            if place.parent == *parent && *place.name == *name {
                return;
            }
        }
        let _old = places.insert(*id, Place { parent: *parent, name: name.into() });
        locked(&self.gone).remove(id);
    }

    pub(super) fn knows(&self, id: &ObjectId) -> bool {
        locked(&self.places).contains(id)
    }

    /// Opens an object with `O_PATH`. `depth` counts the steps from the object that was asked for.
    pub(super) fn find(&self, export: &LocalExport, id: &ObjectId, depth: usize) -> Result<OwnedFd, Status> {
        if depth > CHAIN_MAX {
            return Err(Status::STALE);
        }
        if let Some(fd) = self.at_known_place(export, id, depth) {
            return Ok(fd);
        }
        let was_gone = |at: &mut Instant| at.elapsed() < GONE_FOR;
        if locked(&self.gone).get(id).is_some_and(was_gone) {
            return Err(Status::STALE);
        }
        let known = self.knows(id);
        let mut one_at_a_time = locked(&self.searching);
        // Somebody else's search may have passed it, or missed it, while this one waited.
        if locked(&self.gone).get(id).is_some_and(was_gone) {
            return Err(Status::STALE);
        }
        if !known && self.knows(id) {
            // Without the lock, because looking for the directory may take another search.
            drop(one_at_a_time);
            if let Some(fd) = self.at_known_place(export, id, depth) {
                return Ok(fd);
            }
            one_at_a_time = locked(&self.searching);
        }
        let _held = one_at_a_time;
        match self.search(export, id) {
            Ok(Some(fd)) => Ok(fd),
            Ok(None) => {
                let _old = locked(&self.gone).insert(*id, Instant::now());
                Err(Status::STALE)
            }
            Err(errno) => Err(super::objects::status(errno)),
        }
    }

    fn at_known_place(&self, export: &LocalExport, id: &ObjectId, depth: usize) -> Option<OwnedFd> {
        let (parent, name) = locked(&self.places).get(id).map(|place| (place.parent, place.name.clone()))?;
        let parent = export.object_by_id(&parent, depth + 1).ok()?;
        let fd = open_name(parent.as_fd(), &name, OFlags::PATH, Mode::empty()).ok()?;
        (id_of(export.naming, fd.as_fd()) == Ok(*id)).then_some(fd)
    }

    /// Walks the whole export, depth first.
    fn search(&self, export: &LocalExport, id: &ObjectId) -> Result<Option<OwnedFd>, Errno> {
        let mut left = self.search_limit;
        let mut levels: Vec<Level> = Vec::new();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let mut next = Some((
            rustix::fs::openat(export.mount.as_fd(), c".", flags | OFlags::CLOEXEC, Mode::empty())?,
            export.root.id,
        ));
        let mut buffer = Vec::with_capacity(32 * 1024);
        loop {
            if let Some((fd, dir)) = next.take() {
                let mut subdirectories = Vec::new();
                let mut entries = RawDir::new(fd.as_fd(), buffer.spare_capacity_mut());
                while let Some(entry) = entries.next() {
                    let Ok(entry) = entry else { break };
                    let name = entry.file_name().to_bytes();
                    if name == b"." || name == b".." {
                        continue;
                    }
                    if left == 0 {
                        tracing::warn!(
                            limit = self.search_limit,
                            "a search for a file handle ended early: the export has too many objects"
                        );
                        return Ok(None);
                    }
                    left -= 1;
                    let Ok(found) = open_name(fd.as_fd(), name, OFlags::PATH, Mode::empty()) else {
                        continue;
                    };
                    let Ok(found_id) = id_of(export.naming, found.as_fd()) else { continue };
                    self.note(&found_id, &dir, name);
                    if found_id == *id {
                        return Ok(Some(found));
                    }
                    if matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                        subdirectories.push(name.into());
                    }
                }
                if levels.len() < DEPTH_MAX {
                    levels.push(Level { fd, subdirectories });
                }
            }
            let Some(level) = levels.last_mut() else { return Ok(None) };
            let Some(name) = level.subdirectories.pop() else {
                levels.pop();
                continue;
            };
            next = open_name(level.fd.as_fd(), &name, flags, Mode::empty())
                .and_then(|fd| Ok((id_of(export.naming, fd.as_fd())?, fd)))
                .ok()
                .map(|(id, fd)| (fd, id));
        }
    }
}
