//! A filesystem in memory.
//!
//! # Operation
//! A tree of objects behind one lock: readers share it, writers have it alone, so every operation is atomic and weak
//! cache consistency is exact. It decides permissions as Linux would (see [`tree`]). Given the same calls and the same
//! [`Clock`], two exports hold the same bytes, numbers, times and orders, which is what a simulation needs; handles are
//! equal too if the keys are.
//!
//! Nothing survives the process. All data counts as committed, and COMMIT has nothing to do. Reading does not move a
//! file's atime.
//!
//! # When it breaks
//! Beyond [`MemoryOptions::capacity`] writes and new objects are `NOSPC`.
//!
//! # Limits
//! An [`EntrySink`] runs under the lock and must not call the same export.

mod pages;
mod tree;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use rpcrdma_nfs::v3::{
    AccessMask, Attributes, CookieVerifier, CreateMode, FileType, FsInfo, FsStat, Handle, NfsTime, NodeKind,
    PathConf, Proc, SetAttributes, Stable, Status, WccData, WriteVerifier, check_name,
};

use super::handle::{HandleCodec, ObjectId};
use super::{
    Caller, Changed, Created, DirEntry, EntrySink, Export, ExportId, Found, HandleKey, Looked, Outcome,
    Patience, ReadDir, ReadDone, VerifierTimes, WouldBlock, Written, check_new_name, check_remove,
    check_rename, check_rmdir, check_set, check_target, fsinfo_of, wcc,
};
use tree::{FILE_MAX, LINK_MAX, MAY_EXEC, MAY_READ, MAY_WRITE, Node, ROOT, Tree};

/// Object type in the handles of a memory export.
const KIND: u8 = 0;

/// Tells a [`MemoryExport`] the time.
pub trait Clock: Send + Sync + 'static {
    /// The time now. It need not advance between calls: an export never gives two changes the same time.
    fn now(&self) -> NfsTime;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> NfsTime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        NfsTime { seconds: now.as_secs() as u32, nanos: now.subsec_nanos() }
    }
}

/// A clock that somebody else moves: the same in every run.
#[derive(Debug, Default)]
pub struct LogicalClock(AtomicU64);

impl LogicalClock {
    /// A clock that stands at this many nanoseconds since 1970.
    #[must_use]
    pub const fn at(nanos: u64) -> Self {
        Self(AtomicU64::new(nanos))
    }

    /// Sets it to this many nanoseconds since 1970.
    pub fn set(&self, nanos: u64) {
        self.0.store(nanos, Ordering::Relaxed);
    }
}

impl Clock for LogicalClock {
    fn now(&self) -> NfsTime {
        let nanos = self.0.load(Ordering::Relaxed);
        NfsTime { seconds: (nanos / 1_000_000_000) as u32, nanos: (nanos % 1_000_000_000) as u32 }
    }
}

impl<C: Clock> Clock for std::sync::Arc<C> {
    fn now(&self) -> NfsTime {
        (**self).now()
    }
}

/// How a [`MemoryExport`] starts.
pub struct MemoryOptions {
    /// Its name, from which its id derives.
    pub name: String,
    /// Most bytes that data, names and objects may take together. An object counts for 512 bytes.
    pub capacity: u64,
    /// Mode of the root directory.
    pub root_mode: u32,
    /// User and group of the root directory.
    pub root_owner: (u32, u32),
    /// Its clock.
    pub clock: Box<dyn Clock>,
    /// The instance it claims to be in WRITE and COMMIT.
    pub verifier: WriteVerifier,
}

impl Default for MemoryOptions {
    /// "/memory", 1 GiB, a root directory that everybody may write, a logical clock that stands at one second.
    fn default() -> Self {
        Self {
            name: "/memory".to_owned(),
            capacity: 1 << 30,
            root_mode: 0o777,
            root_owner: (0, 0),
            clock: Box::new(LogicalClock::at(1_000_000_000)),
            verifier: WriteVerifier(*b"memory\0\x01"),
        }
    }
}

impl fmt::Debug for MemoryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryOptions").field("name", &self.name).field("capacity", &self.capacity).finish()
    }
}

struct State {
    tree: Tree,
    /// Time of the last change.
    last: NfsTime,
}

/// An [`Export`] that lives in memory.
pub struct MemoryExport {
    codec: HandleCodec,
    clock: Box<dyn Clock>,
    verifier: WriteVerifier,
    state: RwLock<State>,
}

impl fmt::Debug for MemoryExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryExport").field("id", &self.codec.export()).finish_non_exhaustive()
    }
}

impl MemoryExport {
    /// An empty filesystem whose handles are authenticated with `key`.
    #[must_use]
    pub fn new(key: HandleKey, options: MemoryOptions) -> Self {
        let id = ExportId::derive(&[b"memory", options.name.as_bytes()]);
        let now = options.clock.now();
        let tree = Tree::new(id.as_u64(), options.capacity, options.root_mode, options.root_owner, now);
        Self {
            codec: HandleCodec::new(&key, id),
            clock: options.clock,
            verifier: options.verifier,
            state: RwLock::new(State { tree, last: now }),
        }
    }

    // A panic under the lock cannot leave the tree half changed in a way that memory safety or a peer depends on, so
    // a poisoned lock is still served.
    fn look(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self, handle: &Handle) -> Result<u64, Status> {
        let object = self.codec.decode(handle)?;
        let number = object.bytes().try_into().map_err(|_| Status::BADHANDLE)?;
        if object.kind() == KIND { Ok(u64::from_be_bytes(number)) } else { Err(Status::BADHANDLE) }
    }

    fn handle(&self, number: u64) -> Option<Handle> {
        Some(self.codec.encode(&ObjectId::new(KIND, &number.to_be_bytes())?))
    }

    /// A later time than any before.
    fn tick(&self, state: &mut State) -> NfsTime {
        let after = match state.last {
            NfsTime { seconds, nanos: 999_999_999.. } => {
                NfsTime { seconds: seconds.wrapping_add(1), nanos: 0 }
            }
            NfsTime { seconds, nanos } => NfsTime { seconds, nanos: nanos + 1 },
        };
        state.last = after.max(self.clock.now());
        state.last
    }

    /// Looks at one object under the shared lock.
    fn looked<T>(&self, object: &Handle, look: impl FnOnce(&Tree, u64) -> Result<T, Status>) -> Looked<T> {
        let number = match self.number(object) {
            Ok(number) => number,
            Err(status) => return Outcome::fail(status),
        };
        let state = self.look();
        let result = state.tree.get(number).and_then(|_| look(&state.tree, number));
        Outcome::new(result, state.tree.attributes(number))
    }

    /// Changes one object under the exclusive lock. `check` stands for what can be said without the object.
    fn changed<T>(
        &self,
        caller: &Caller,
        object: &Handle,
        check: Result<(), Status>,
        change: impl FnOnce(&mut Tree, u64, NfsTime) -> Result<T, Status>,
    ) -> Changed<T> {
        let number = match self.number(object) {
            Ok(number) => number,
            Err(status) => return Outcome::fail(status),
        };
        let mut state = self.change();
        let before = state.tree.attributes(number).map(|a| a.wcc());
        let allowed = || {
            state.tree.get(number)?;
            if caller.read_only() { Err(Status::ROFS) } else { check }
        };
        let result = match allowed() {
            Err(status) => Err(status),
            Ok(()) => {
                let now = self.tick(&mut state);
                change(&mut state.tree, number, now)
            }
        };
        Outcome::new(result, wcc(before, state.tree.attributes(number)))
    }

    fn created(&self, tree: &Tree, number: u64) -> Created {
        Created { handle: self.handle(number), attrs: tree.attributes(number) }
    }

    /// Makes an object and applies what attributes are not given at birth.
    fn make(
        &self,
        caller: &Caller,
        (dir, name): (&Handle, &[u8]),
        check: Result<(), Status>,
        set: &SetAttributes,
        default_mode: u32,
        node: impl FnOnce() -> Node,
    ) -> Changed<Created> {
        let check = check_new_name(name).and(check).and_then(|()| check_set(set));
        self.changed(caller, dir, check, |tree, dir, now| {
            let number = tree.make(caller, (dir, name), node(), set.mode.unwrap_or(default_mode), now)?;
            tree.set_attributes(caller, number, &rest_of(caller, set), now)?;
            Ok(self.created(tree, number))
        })
    }
}

/// What is left to set after an object was made with its mode: nobody but the superuser gives it to others.
fn rest_of(caller: &Caller, set: &SetAttributes) -> SetAttributes {
    let owner = caller.uid() == 0;
    SetAttributes { mode: None, uid: set.uid.filter(|_| owner), gid: set.gid.filter(|_| owner), ..*set }
}

impl Export for MemoryExport {
    fn id(&self) -> ExportId {
        self.codec.export()
    }

    fn root(&self) -> Handle {
        self.handle(ROOT).unwrap_or_else(|| unreachable!("8 bytes fit into a handle"))
    }

    fn may_block(&self, _proc: Proc, _object: &Handle, _stable: Stable) -> bool {
        false
    }

    fn getattr(&self, _caller: &Caller, object: &Handle) -> Result<Attributes, Status> {
        let number = self.number(object)?;
        self.look().tree.attributes(number).ok_or(Status::STALE)
    }

    fn setattr(
        &self,
        caller: &Caller,
        object: &Handle,
        set: &SetAttributes,
        guard: Option<NfsTime>,
    ) -> Changed<()> {
        self.changed(caller, object, check_set(set), |tree, number, now| {
            if guard.is_some_and(|guard| tree.get(number).is_ok_and(|inode| inode.ctime != guard)) {
                return Err(Status::NOT_SYNC);
            }
            tree.set_attributes(caller, number, set, now)
        })
    }

    fn lookup(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Looked<Found> {
        self.looked(dir, |tree, dir| {
            check_name(name)?;
            let directory = tree.searchable(caller, dir)?;
            let number = match name {
                b"." => dir,
                b".." => directory.parent,
                _ => directory.get(name).ok_or(Status::NOENT)?,
            };
            let handle = self.handle(number).ok_or(Status::SERVERFAULT)?;
            Ok(Found { handle, attrs: tree.attributes(number) })
        })
    }

    fn access(&self, caller: &Caller, object: &Handle, wanted: AccessMask) -> Looked<AccessMask> {
        self.looked(object, |tree, number| {
            let inode = tree.get(number)?;
            let rights = inode.rights(caller, MAY_READ | MAY_WRITE | MAY_EXEC);
            Ok(super::access_mask(inode.file_type(), rights, caller.read_only()) & wanted)
        })
    }

    fn readlink(&self, _caller: &Caller, object: &Handle, target: &mut Vec<u8>) -> Looked<()> {
        self.looked(object, |tree, number| match &tree.get(number)?.node {
            Node::Symlink(content) => {
                target.extend_from_slice(content);
                Ok(())
            }
            _ => Err(Status::INVAL),
        })
    }

    fn read(
        &self,
        caller: &Caller,
        file: &Handle,
        offset: u64,
        buf: &mut [u8],
        _patience: Patience,
    ) -> Result<Looked<ReadDone>, WouldBlock> {
        Ok(self.looked(file, |tree, number| {
            let inode = tree.get(number)?;
            let pages = inode.file()?;
            inode.check_data(caller, MAY_READ)?;
            let count = pages.read(offset, buf);
            Ok(ReadDone { count, eof: offset.saturating_add(count as u64) >= pages.len() })
        }))
    }

    fn write(
        &self,
        caller: &Caller,
        file: &Handle,
        offset: u64,
        data: &[u8],
        _stable: Stable,
    ) -> Changed<Written> {
        self.changed(caller, file, Ok(()), |tree, number, now| {
            let count = tree.write(caller, number, offset, data, now)?;
            Ok(Written { count, committed: Stable::FileSync, verifier: self.verifier })
        })
    }

    fn create(&self, caller: &Caller, dir: &Handle, name: &[u8], how: &CreateMode) -> Changed<Created> {
        let new = || Node::File(pages::Pages::default());
        match how {
            CreateMode::Guarded(set) => self.make(caller, (dir, name), Ok(()), set, 0o644, new),
            CreateMode::Unchecked(set) => {
                let check = check_new_name(name).and_then(|()| check_set(set));
                self.changed(caller, dir, check, |tree, dir, now| {
                    let number = match tree.searchable(caller, dir)?.get(name) {
                        Some(number) if tree.get(number)?.file_type() != FileType::Regular => {
                            return Err(Status::EXIST);
                        }
                        Some(number) => {
                            if let Some(size) = set.size {
                                tree.truncate(caller, number, size, now)?;
                            }
                            number
                        }
                        None => {
                            let mode = set.mode.unwrap_or(0o644);
                            let number = tree.make(caller, (dir, name), new(), mode, now)?;
                            tree.set_attributes(caller, number, &rest_of(caller, set), now)?;
                            number
                        }
                    };
                    Ok(self.created(tree, number))
                })
            }
            CreateMode::Exclusive(verifier) => {
                self.changed(caller, dir, check_new_name(name), |tree, dir, now| {
                    let times = VerifierTimes::new(*verifier);
                    if let Some(number) = tree.searchable(caller, dir)?.get(name) {
                        let inode = tree.get(number)?;
                        let empty = inode.file().is_ok_and(|pages| pages.len() == 0);
                        return if empty && times.are_on(inode.mtime, inode.atime) {
                            Ok(self.created(tree, number))
                        } else {
                            Err(Status::EXIST)
                        };
                    }
                    let number = tree.make(caller, (dir, name), new(), 0o600, now)?;
                    tree.set_attributes(caller, number, &times.set(), now)?;
                    Ok(self.created(tree, number))
                })
            }
        }
    }

    fn mkdir(&self, caller: &Caller, dir: &Handle, name: &[u8], set: &SetAttributes) -> Changed<Created> {
        let set = SetAttributes { size: None, ..*set };
        self.make(caller, (dir, name), Ok(()), &set, 0o755, Tree::new_directory)
    }

    fn symlink(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        set: &SetAttributes,
        target: &[u8],
    ) -> Changed<Created> {
        let set = SetAttributes { mode: Some(0o777), size: None, ..*set };
        self.make(caller, (dir, name), check_target(target), &set, 0o777, || Node::Symlink(target.to_vec()))
    }

    fn mknod(&self, caller: &Caller, dir: &Handle, name: &[u8], kind: &NodeKind) -> Changed<Created> {
        let (set, node) = match *kind {
            NodeKind::Character(set, numbers) => (set, Node::Device(FileType::Character, numbers)),
            NodeKind::Block(set, numbers) => (set, Node::Device(FileType::Block, numbers)),
            NodeKind::Socket(set) => (set, Node::Other(FileType::Socket)),
            NodeKind::Fifo(set) => (set, Node::Other(FileType::Fifo)),
            NodeKind::Other(_) => {
                return self.changed(caller, dir, Err(Status::BADTYPE), |_, _, _| Err(Status::BADTYPE));
            }
        };
        let set = SetAttributes { size: None, ..set };
        self.make(caller, (dir, name), Ok(()), &set, 0o644, || node)
    }

    fn remove(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Changed<()> {
        self.changed(caller, dir, check_remove(name), |tree, dir, now| {
            tree.unlink(caller, (dir, name), false, now)
        })
    }

    fn rmdir(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Changed<()> {
        self.changed(caller, dir, check_rmdir(name), |tree, dir, now| {
            tree.unlink(caller, (dir, name), true, now)
        })
    }

    fn rename(
        &self,
        caller: &Caller,
        (from, from_name): (&Handle, &[u8]),
        (to, to_name): (&Handle, &[u8]),
    ) -> Outcome<(), (WccData, WccData)> {
        let numbers = || Ok((self.number(from)?, self.number(to)?));
        let (from, to) = match numbers() {
            Ok(numbers) => numbers,
            Err(status) => return Outcome::fail(status),
        };
        let mut state = self.change();
        let before = [from, to].map(|dir| state.tree.attributes(dir).map(|a| a.wcc()));
        let allowed = || {
            state.tree.get(from)?;
            state.tree.get(to)?;
            if caller.read_only() {
                return Err(Status::ROFS);
            }
            check_rename(from_name)?;
            check_rename(to_name)
        };
        let result = match allowed() {
            Err(status) => Err(status),
            Ok(()) => {
                let now = self.tick(&mut state);
                state.tree.rename(caller, (from, from_name), (to, to_name), now)
            }
        };
        let after = [from, to].map(|dir| state.tree.attributes(dir));
        Outcome::new(result, (wcc(before[0], after[0]), wcc(before[1], after[1])))
    }

    fn link(
        &self,
        caller: &Caller,
        object: &Handle,
        dir: &Handle,
        name: &[u8],
    ) -> Outcome<(), (Option<Attributes>, WccData)> {
        let known = self.number(object).and_then(|number| {
            self.look().tree.get(number)?;
            Ok(number)
        });
        let number = match known {
            Ok(number) => number,
            Err(status) => return Outcome::fail(status),
        };
        let mut attrs = None;
        let outcome = self.changed(caller, dir, check_new_name(name), |tree, dir, now| {
            let result = tree.link(caller, number, (dir, name), now);
            attrs = tree.attributes(number);
            result
        });
        Outcome::new(outcome.result, (attrs, outcome.attrs))
    }

    fn readdir(
        &self,
        caller: &Caller,
        dir: &Handle,
        from: &ReadDir,
        sink: &mut dyn EntrySink,
    ) -> Looked<bool> {
        self.looked(dir, |tree, number| {
            let inode = tree.get(number)?;
            let directory = inode.directory()?;
            inode.check(caller, MAY_READ)?;
            let plus = from.plus && inode.check(caller, MAY_EXEC).is_ok();
            sink.begin(tree.attributes(number), CookieVerifier::default());
            for (cookie, name, object) in directory.after(from.cookie, number) {
                let attrs = if plus { tree.attributes(object) } else { None };
                let handle = if plus { self.handle(object) } else { None };
                let entry = DirEntry { name, fileid: object, cookie, attrs, handle };
                if sink.entry(&entry).is_break() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn fsstat(&self, _caller: &Caller, object: &Handle) -> Looked<FsStat> {
        self.looked(object, |tree, _| {
            let (total_bytes, free_bytes, total_files, free_files) = tree.room();
            Ok(FsStat {
                total_bytes,
                free_bytes,
                available_bytes: free_bytes,
                total_files,
                free_files,
                available_files: free_files,
                invarsec: 0,
            })
        })
    }

    fn fsinfo(&self, _caller: &Caller, object: &Handle) -> Looked<FsInfo> {
        self.looked(object, |_, _| Ok(fsinfo_of(FILE_MAX)))
    }

    fn pathconf(&self, _caller: &Caller, object: &Handle) -> Looked<PathConf> {
        self.looked(object, |_, _| Ok(super::pathconf_of(LINK_MAX, 255)))
    }

    fn commit(&self, caller: &Caller, file: &Handle, _offset: u64, _count: u32) -> Changed<WriteVerifier> {
        let looked = self.looked(file, |tree, number| {
            let inode = tree.get(number)?;
            inode.file()?;
            if caller.read_only() {
                return Err(Status::ROFS);
            }
            inode.check_data(caller, MAY_WRITE)?;
            Ok(self.verifier)
        });
        Outcome::new(looked.result, wcc(looked.attrs.map(|a| a.wcc()), looked.attrs))
    }
}

#[cfg(test)]
mod tests;
