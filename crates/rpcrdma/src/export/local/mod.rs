//! A directory of the machine.
//!
//! # Operation
//! Objects are reached by descriptors alone ([`objects`]): a handle leads to a descriptor, a name is resolved one
//! component at a time below the descriptor of its directory, and the kernel is told not to follow symlinks and not to
//! cross mounts. So nothing a client sends, and no symlink it makes, leads out of the export.
//!
//! How a handle leads to its object depends on what the server may do ([`LocalExport::describe`] tells):
//!
//! * With `CAP_DAC_READ_SEARCH` (root), handles hold the kernel's own file handle and are opened with it. They are
//!   valid until the object is removed, across restarts and renames, and on every server that serves the same
//!   filesystem with the same key and name.
//! * Otherwise, or where the filesystem cannot open handles (overlayfs by default, some FUSE filesystems), the server
//!   remembers where it found each object and looks there, or searches the export ([`table`]). Handles are still valid
//!   across restarts and renames, but the first use of one after a restart costs a walk through the export, and in an
//!   export larger than [`LocalOptions::search_limit`] it may fail with `STALE`. Where the filesystem has no handles at
//!   all, objects are known by their number and time of birth.
//!
//! As root, every operation runs under its caller's identity ([`identity`]); otherwise under the server's own. Since
//! NFS has no open files, the owner of a file may always read and write its data, and who may execute it may read it.
//!
//! Mounts below the root are not crossed. As root, the export is served from a private view of its filesystem without
//! them, so the covered directories show; otherwise, and for mounts made later, LOOKUP of a mount point is `ACCES`.
//!
//! READDIR cookies are the filesystem's own directory positions, which ext4, xfs, btrfs and tmpfs keep valid for as
//! long as the directory exists.
//!
//! # Ownership
//! Descriptors are kept in bounded caches and shared by reference count; an evicted one is closed when the last
//! operation on it ends. A cached descriptor never outlives a REMOVE of the last name, and a descriptor whose object
//! lost its last name otherwise is closed when that shows. No lock is held across a system call, except one per search.
//!
//! # When it breaks
//! A failed write-out of unstable data changes the write verifier, so that clients send the data again. A directory
//! that a local process moved out of the export becomes `STALE` within [`LocalOptions::recheck`]. A file that was
//! linked to a place outside keeps its handle: it was reachable, and no look at it can tell where its names are.
//!
//! # Limits
//! Descriptors: [`LocalOptions::max_descriptors`]. SETATTR of several attributes is several system calls, so it is not
//! atomic. Attributes from before an operation are given when no other operation *of this server* came between.

mod cache;
mod files;
mod identity;
mod listing;
mod names;
mod objects;
mod overlap;
mod sys;
mod table;

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rpcrdma_nfs::v3::{
    AccessMask, Attributes, CreateMode, FileType, FsInfo, FsStat, Handle, NfsTime, NodeKind, PathConf, Proc,
    SetAttributes, Stable, Status, WccData, WriteVerifier,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::handle::{HandleCodec, ObjectId};
use super::{
    Caller, Changed, Created, EntrySink, Export, ExportId, Found, HandleKey, Looked, Outcome, Patience,
    ReadDir, ReadDone, WouldBlock, Written, fsinfo_of, pathconf_of, wcc,
};
use cache::Cache;
use identity::Identity;
use objects::{Object, id_of, identity_of, status};
use overlap::Overlap;
use table::Table;

/// How objects are found again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// By kernel handle where that works, else by searching.
    #[default]
    Auto,
    /// By searching, even as root.
    Search,
}

/// Whose identity operations run under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunAs {
    /// The caller's if the server is root, else the server's own.
    #[default]
    Auto,
    /// The server's own, even as root: callers are not told apart.
    Server,
}

/// How a [`LocalExport`] works.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The name that goes into handles; the directory's absolute path unless given. Servers that share handles share
    /// it, and handles become stale when it changes.
    pub name: Option<String>,
    /// Whether creating, removing, renaming and setting attributes waits until the change is durable, as RFC 1813
    /// section 4.8 wants it; the `sync` and `async` of exports(5).
    pub sync: bool,
    /// How objects are found again.
    pub resolution: Resolution,
    /// Whose identity operations run under.
    pub run_as: RunAs,
    /// Whether a thread takes a caller's identity only if it may wait, so that those that receive Calls keep theirs for
    /// good. The kernel's RDMA refuses a thread that has had another one since a device was opened, so an export that is
    /// served over an RNIC needs this. Without it Calls that need not wait are served where they are received, which is
    /// faster.
    pub apart: bool,
    /// Most descriptors kept open. Never more than half of what the process may open.
    pub max_descriptors: usize,
    /// How long a directory is trusted to lie inside the export without another look.
    pub recheck: Duration,
    /// Most objects looked at in one search.
    pub search_limit: usize,
    /// Most places remembered for finding objects without a search.
    pub places: usize,
}

impl Default for LocalOptions {
    /// Durable changes, everything else as good as the server's rights allow, over any provider; 2,048 descriptors, a look per second, a
    /// million objects per search, and 256 Ki places, about 50 MiB.
    fn default() -> Self {
        Self {
            name: None,
            sync: true,
            resolution: Resolution::Auto,
            run_as: RunAs::Auto,
            apart: true,
            max_descriptors: 2048,
            recheck: Duration::from_secs(1),
            search_limit: 1 << 20,
            places: 1 << 18,
        }
    }
}

/// Why a directory cannot be served.
#[non_exhaustive]
#[derive(Debug)]
pub enum LocalError {
    /// It cannot be opened, or is no directory.
    Open(PathBuf, io::Error),
    /// The system cannot do what is needed: the words say what.
    System(PathBuf, &'static str, io::Error),
}

impl fmt::Display for LocalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(path, error) => write!(f, "cannot serve {}: {error}", path.display()),
            Self::System(path, what, error) => write!(f, "cannot serve {}: {what}: {error}", path.display()),
        }
    }
}

impl std::error::Error for LocalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open(_, error) | Self::System(_, _, error) => Some(error),
        }
    }
}

/// What identifies an object in a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// The kernel's handle.
    Kernel,
    /// Number and time of birth.
    Inode,
}

/// What leads from that to the object.
enum Resolver {
    Kernel,
    Search(Box<Table>),
}

/// What is known of a caller's rights on an object, as of the attributes it was found out with.
#[derive(Clone, Copy)]
struct Rights {
    known: u32,
    allowed: u32,
    mode: u32,
    owner: (u32, u32),
    mtime: NfsTime,
    ctime: NfsTime,
    at: Instant,
}

/// An [`Export`] of a local directory.
pub struct LocalExport {
    codec: HandleCodec,
    /// The root, never evicted.
    root: Arc<Object>,
    /// The root, opened for listing: kernel handles are resolved relative to it.
    mount: OwnedFd,
    root_identity: (u32, u32, u64),
    naming: Naming,
    resolver: Resolver,
    identity: Identity,
    /// Identities are taken where it may be waited, and nowhere else.
    apart: bool,
    /// `/proc/self/fd`, through which a descriptor can be opened again with other rights.
    own_descriptors: Option<OwnedFd>,
    /// The process's umask, which hides permissions of new objects.
    umask: u32,
    fsid: u64,
    sync: bool,
    /// The filesystem lives in memory, so that no read waits.
    in_memory: bool,
    /// Writing over what exists takes no new space.
    in_place: bool,
    limits: (u64, u32),
    recheck: u64,
    started: Instant,
    verifier: AtomicU64,
    overlap: Overlap,
    objects: Mutex<Cache<ObjectId, Arc<Object>>>,
    /// Open files, by whether they are writable.
    files: Mutex<Cache<(ObjectId, bool), Arc<OwnedFd>>>,
    rights: Mutex<Cache<(ObjectId, Caller), Rights>>,
    /// Directories open for listing that nobody is listing.
    directories: Mutex<Vec<(ObjectId, OwnedFd)>>,
    /// Held while a file's mode is changed for a moment to open it.
    opening_as_owner: Mutex<()>,
}

// Nothing under these locks is left half done by a panic, so a poisoned one is as good as another.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const EXT_MAGIC: u64 = 0xef53;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const XFS_MAGIC: u64 = 0x5846_5342;
const BTRFS_MAGIC: u64 = 0x9123_683e;

impl fmt::Debug for LocalExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalExport").field("id", &self.codec.export()).finish_non_exhaustive()
    }
}

impl LocalExport {
    /// Serves the directory at `path`. Handles are authenticated with `key`.
    ///
    /// # Errors
    /// If it is no directory or cannot be opened, or the system lacks something: Linux 5.8 is needed, and without the
    /// rights of root also a mounted `/proc`.
    pub fn open(path: &Path, key: &HandleKey, options: LocalOptions) -> Result<Self, LocalError> {
        let opened = |e: Errno| LocalError::Open(path.to_owned(), e.into());
        let system = |what| move |e: Errno| LocalError::System(path.to_owned(), what, e.into());
        let absolute = std::fs::canonicalize(path).map_err(|e| LocalError::Open(path.to_owned(), e))?;
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let direct = rustix::fs::open(&absolute, OFlags::PATH | directory, Mode::empty()).map_err(opened)?;
        // A mount of its own, without the mounts below it. Only root may do that; others see mount points.
        let view =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let root = rustix::mount::open_tree(&direct, c"", view).unwrap_or(direct);
        let mount =
            rustix::fs::openat(&root, c".", OFlags::RDONLY | directory, Mode::empty()).map_err(opened)?;
        objects::open_name(mount.as_fd(), b".", OFlags::PATH, Mode::empty())
            .map_err(system("Linux 5.8 or newer is needed"))?;
        sys::access(root.as_fd(), 4).map_err(system("the directory cannot be read"))?;

        let kernel_id = sys::name_to_handle(root.as_fd());
        let naming = if kernel_id.is_ok() { Naming::Kernel } else { Naming::Inode };
        let root_id = id_of(naming, root.as_fd()).map_err(opened)?;
        let by_handle = kernel_id.is_ok()
            && options.resolution == Resolution::Auto
            && sys::open_by_handle(mount.as_fd(), &root_id, OFlags::PATH).is_ok();
        let own_descriptors = own_descriptors();
        if !by_handle && let Err(errno) = own_descriptors {
            return Err(system("/proc is needed by a server that is not root")(errno));
        }
        let resolver = if by_handle {
            Resolver::Kernel
        } else {
            Resolver::Search(Box::new(Table::new(options.places, options.search_limit)))
        };
        let identity = match options.run_as {
            RunAs::Auto => Identity::detect().map_err(system("the process's identity cannot be read"))?,
            RunAs::Server => Identity::own(),
        };

        let root_identity = identity_of(root.as_fd()).map_err(opened)?;
        let statfs = rustix::fs::fstatfs(&root).map_err(opened)?;
        let own_fsid = rustix::fs::fstatvfs(&root).map_err(opened)?.f_fsid;
        let device = u64::from(root_identity.0) << 32 | u64::from(root_identity.1);
        let fsid = if own_fsid == 0 { device } else { own_fsid };
        let name = options.name.unwrap_or_else(|| absolute.to_string_lossy().into_owned());
        let parts: [&[u8]; 4] = [
            b"local",
            name.as_bytes(),
            &own_fsid.to_be_bytes(),
            &[&[root_id.kind()], root_id.bytes()].concat(),
        ];
        let id = ExportId::derive(&parts);

        let mut verifier = [0; 8];
        getrandom::fill(&mut verifier)
            .map_err(|e| LocalError::System(path.to_owned(), "no random numbers", io::Error::other(e)))?;
        let soft_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let descriptors =
            options.max_descriptors.min(soft_limit.map_or(usize::MAX, |n| n as usize / 2)).max(16);
        let magic = statfs.f_type as u64 & 0xffff_ffff;
        let limits = match magic {
            EXT_MAGIC => (0xfff_ffff_f000, 65_000),
            XFS_MAGIC => (i64::MAX as u64, i32::MAX as u32),
            BTRFS_MAGIC => (i64::MAX as u64, 65_535),
            _ => (i64::MAX as u64, 255),
        };
        Ok(Self {
            codec: HandleCodec::new(key, id),
            root: Arc::new(Object::root(root_id, root)),
            mount,
            root_identity,
            naming,
            resolver,
            apart: options.apart && matches!(identity, Identity::Caller { .. }),
            identity,
            own_descriptors: own_descriptors.ok(),
            umask: process_umask(),
            fsid,
            sync: options.sync,
            in_memory: matches!(magic, TMPFS_MAGIC | RAMFS_MAGIC),
            in_place: matches!(magic, TMPFS_MAGIC | EXT_MAGIC),
            limits,
            recheck: options.recheck.as_millis() as u64,
            started: Instant::now(),
            verifier: AtomicU64::new(u64::from_ne_bytes(verifier)),
            overlap: Overlap::new(),
            objects: Mutex::new(Cache::new(descriptors / 2)),
            files: Mutex::new(Cache::new(descriptors / 2 - descriptors / 16)),
            rights: Mutex::new(Cache::new(4096)),
            directories: Mutex::new(Vec::with_capacity(listing::IDLE_MAX)),
            opening_as_owner: Mutex::new(()),
        })
    }

    /// How objects are found and under whose identity operations run, in words for an administrator.
    #[must_use]
    pub fn describe(&self) -> String {
        let handles = match (&self.resolver, self.naming) {
            (Resolver::Kernel, _) => "kernel file handles",
            (Resolver::Search(_), Naming::Kernel) => "kernel file handles, found by searching the export",
            (Resolver::Search(_), Naming::Inode) => {
                "inode numbers and birth times, found by searching the export"
            }
        };
        match &self.identity {
            Identity::Caller { .. } => format!("{handles}; operations run as their caller"),
            Identity::Own { uid } => format!("{handles}; operations run as user {uid}, whoever calls"),
        }
    }

    fn handle_of(&self, id: &ObjectId) -> Handle {
        self.codec.encode(id)
    }

    /// Looks at one object.
    fn looked<T>(
        &self,
        handle: &Handle,
        look: impl FnOnce(&Arc<Object>, &Attributes) -> Result<T, Status>,
    ) -> Looked<T> {
        let seen = || {
            let object = self.object(handle)?;
            let attrs = self.attributes(&object)?;
            Ok((object, attrs))
        };
        match seen() {
            Ok((object, attrs)) => Outcome::new(look(&object, &attrs), Some(attrs)),
            Err(status) => Outcome::fail(status),
        }
    }

    /// Changes one object. `check` stands for what can be said without the object.
    fn changed<T>(
        &self,
        caller: &Caller,
        handle: &Handle,
        check: Result<(), Status>,
        change: impl FnOnce(&Arc<Object>, &Attributes) -> Result<T, Status>,
    ) -> Changed<T> {
        let object = match self.object(handle) {
            Ok(object) => object,
            Err(status) => return Outcome::fail(status),
        };
        let under_way = self.overlap.begin(&object.id);
        let before = match self.attributes(&object) {
            Ok(before) => before,
            Err(status) => return Outcome::fail(status),
        };
        let result = if caller.read_only() {
            Err(Status::ROFS)
        } else {
            check.and_then(|()| change(&object, &before))
        };
        let after = self.stat(object.as_fd()).ok();
        let before = under_way.was_alone().then(|| before.wcc());
        Outcome::new(result, wcc(before, after))
    }

    /// Which of the rights in `want` (4, 2, 1: read, write, execute) the caller has, as the kernel decides it.
    fn rights(&self, caller: &Caller, object: &Object, attrs: &Attributes, want: u32) -> Result<u32, Status> {
        /// For how long a change of data is taken to have changed nothing else.
        const TRUST: Duration = Duration::from_secs(1);
        let key = (object.id, self.identity.key(caller));
        let remembered = locked(&self.rights).get(&key).copied().filter(|rights| {
            // Mode and owner are compared; a change of an access control list moves ctime. A write moves ctime too,
            // but with it mtime, and does not take anybody's rights away.
            (rights.mode, rights.owner) == (attrs.mode, (attrs.uid, attrs.gid))
                && (rights.ctime == attrs.ctime || rights.mtime != attrs.mtime && rights.at.elapsed() < TRUST)
        });
        if let Some(rights) = remembered
            && rights.known & want == want
        {
            return Ok(rights.allowed & want);
        }
        let mut rights = remembered.unwrap_or(Rights {
            known: 0,
            allowed: 0,
            mode: attrs.mode,
            owner: (attrs.uid, attrs.gid),
            mtime: attrs.mtime,
            ctime: attrs.ctime,
            at: Instant::now(),
        });
        {
            let _assumed = self.identity.assume(caller).map_err(status)?;
            for right in [4, 2, 1] {
                if want & !rights.known & right == 0 {
                    continue;
                }
                match sys::access(object.as_fd(), right) {
                    Ok(()) => rights.allowed |= right,
                    Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY) => {}
                    Err(errno) => return Err(status(errno)),
                }
                rights.known |= right;
            }
        }
        let _old = locked(&self.rights).insert(key, rights);
        Ok(rights.allowed & want)
    }

    /// The caller has all of these rights on the object itself.
    fn check(&self, caller: &Caller, object: &Object, attrs: &Attributes, want: u32) -> Result<(), Status> {
        if self.rights(caller, object, attrs, want)? == want { Ok(()) } else { Err(Status::ACCES) }
    }

    /// A directory in which the caller may look up names.
    fn check_searchable(&self, caller: &Caller, dir: &Object, attrs: &Attributes) -> Result<(), Status> {
        if !dir.is_directory() {
            return Err(Status::NOTDIR);
        }
        self.check(caller, dir, attrs, 1)
    }
}

impl Object {
    fn root(id: ObjectId, fd: OwnedFd) -> Self {
        Self::always_inside(id, FileType::Directory, Arc::new(fd))
    }
}

/// `/proc/self/fd`, if it is what it seems to be.
fn own_descriptors() -> Result<OwnedFd, Errno> {
    const PROC_MAGIC: u64 = 0x9fa0;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&fd)?.f_type as u64 == PROC_MAGIC { Ok(fd) } else { Err(Errno::NODEV) }
}

/// The process's umask, which can only be read from `/proc` without changing it; 0 if it cannot.
fn process_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    umask.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0)
}

impl Export for LocalExport {
    fn id(&self) -> ExportId {
        self.codec.export()
    }

    fn root(&self) -> Handle {
        self.handle_of(&self.root.id)
    }

    fn may_block(&self, proc: Proc, object: &Handle, stable: Stable) -> bool {
        let anybody = matches!(
            proc,
            Proc::Null | Proc::GetAttr | Proc::ReadLink | Proc::FsStat | Proc::FsInfo | Proc::PathConf
        );
        if self.apart && !anybody {
            return true;
        }
        let slow = match proc {
            Proc::Commit | Proc::ReadDir | Proc::ReadDirPlus | Proc::Remove | Proc::Rename => true,
            Proc::Write => stable != Stable::Unstable,
            Proc::SetAttr
            | Proc::Create
            | Proc::MkDir
            | Proc::SymLink
            | Proc::MkNod
            | Proc::RmDir
            | Proc::Link => self.sync,
            _ => false,
        };
        if self.in_memory && !matches!(self.resolver, Resolver::Search(_)) {
            return matches!(proc, Proc::ReadDir | Proc::ReadDirPlus);
        }
        slow || self.needs_search(object)
    }

    fn getattr(&self, _caller: &Caller, object: &Handle) -> Result<Attributes, Status> {
        let object = self.object(object)?;
        self.attributes(&object)
    }

    fn setattr(
        &self,
        caller: &Caller,
        object: &Handle,
        set: &SetAttributes,
        guard: Option<NfsTime>,
    ) -> Changed<()> {
        self.changed(caller, object, super::check_set(set), |object, attrs| {
            if guard.is_some_and(|guard| guard != attrs.ctime) {
                return Err(Status::NOT_SYNC);
            }
            self.set_attributes(caller, object, attrs, set)?;
            self.make_durable(object)
        })
    }

    fn lookup(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Looked<Found> {
        self.looked(dir, |dir, attrs| {
            rpcrdma_nfs::v3::check_name(name)?;
            self.check_searchable(caller, dir, attrs)?;
            let (object, attrs) = self.child(dir, name)?;
            self.keep(&object);
            Ok(Found { handle: self.handle_of(&object.id), attrs: Some(attrs) })
        })
    }

    fn access(&self, caller: &Caller, object: &Handle, wanted: AccessMask) -> Looked<AccessMask> {
        self.looked(object, |object, attrs| {
            let all = super::access_mask(object.kind, 7, false);
            let mut want = 0;
            for (right, mask) in [(4, AccessMask::READ), (1, AccessMask::LOOKUP | AccessMask::EXECUTE)] {
                if (mask & wanted & all).0 != 0 {
                    want |= right;
                }
            }
            if (wanted & all & !(AccessMask::READ | AccessMask::LOOKUP | AccessMask::EXECUTE)).0 != 0 {
                want |= 2;
            }
            let rights = self.rights(caller, object, attrs, want)?;
            Ok(super::access_mask(object.kind, rights, caller.read_only()) & wanted)
        })
    }

    fn readlink(&self, _caller: &Caller, object: &Handle, target: &mut Vec<u8>) -> Looked<()> {
        self.looked(object, |object, _| {
            if object.kind != FileType::Symlink {
                return Err(Status::INVAL);
            }
            let content = rustix::fs::readlinkat(object.as_fd(), c"", Vec::new()).map_err(status)?;
            target.extend_from_slice(content.as_bytes());
            Ok(())
        })
    }

    fn read(
        &self,
        caller: &Caller,
        file: &Handle,
        offset: u64,
        buf: &mut [u8],
        patience: Patience,
    ) -> Result<Looked<ReadDone>, WouldBlock> {
        if self.apart && patience == Patience::Now {
            return Err(WouldBlock);
        }
        self.read_file(caller, file, offset, buf, patience)
    }

    fn write(
        &self,
        caller: &Caller,
        file: &Handle,
        offset: u64,
        data: &[u8],
        stable: Stable,
    ) -> Changed<Written> {
        self.changed(caller, file, Ok(()), |object, attrs| {
            self.write_file(caller, object, attrs, offset, data, stable)
        })
    }

    fn create(&self, caller: &Caller, dir: &Handle, name: &[u8], how: &CreateMode) -> Changed<Created> {
        self.create_file(caller, dir, name, how)
    }

    fn mkdir(&self, caller: &Caller, dir: &Handle, name: &[u8], set: &SetAttributes) -> Changed<Created> {
        self.make_directory(caller, dir, name, set)
    }

    fn symlink(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        set: &SetAttributes,
        target: &[u8],
    ) -> Changed<Created> {
        self.make_symlink(caller, dir, name, set, target)
    }

    fn mknod(&self, caller: &Caller, dir: &Handle, name: &[u8], kind: &NodeKind) -> Changed<Created> {
        self.make_special(caller, dir, name, kind)
    }

    fn remove(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Changed<()> {
        let check = super::check_remove(name);
        self.changed(caller, dir, check, |dir, _| self.remove_name(caller, dir, name, false))
    }

    fn rmdir(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Changed<()> {
        let check = super::check_rmdir(name);
        self.changed(caller, dir, check, |dir, _| self.remove_name(caller, dir, name, true))
    }

    fn rename(
        &self,
        caller: &Caller,
        from: (&Handle, &[u8]),
        to: (&Handle, &[u8]),
    ) -> Outcome<(), (WccData, WccData)> {
        self.rename_name(caller, from, to)
    }

    fn link(
        &self,
        caller: &Caller,
        object: &Handle,
        dir: &Handle,
        name: &[u8],
    ) -> Outcome<(), (Option<Attributes>, WccData)> {
        self.link_name(caller, object, dir, name)
    }

    fn readdir(
        &self,
        caller: &Caller,
        dir: &Handle,
        from: &ReadDir,
        sink: &mut dyn EntrySink,
    ) -> Looked<bool> {
        self.looked(dir, |dir, attrs| self.list(caller, dir, attrs, from, sink))
    }

    fn fsstat(&self, _caller: &Caller, object: &Handle) -> Looked<FsStat> {
        self.looked(object, |object, _| {
            let stat = rustix::fs::fstatvfs(object.as_fd()).map_err(status)?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            Ok(FsStat {
                total_bytes: bytes(stat.f_blocks),
                free_bytes: bytes(stat.f_bfree),
                available_bytes: bytes(stat.f_bavail),
                total_files: stat.f_files,
                free_files: stat.f_ffree,
                available_files: stat.f_favail,
                invarsec: 0,
            })
        })
    }

    fn fsinfo(&self, _caller: &Caller, object: &Handle) -> Looked<FsInfo> {
        self.looked(object, |_, _| Ok(fsinfo_of(self.limits.0)))
    }

    fn pathconf(&self, _caller: &Caller, object: &Handle) -> Looked<PathConf> {
        self.looked(object, |_, _| Ok(pathconf_of(self.limits.1, rpcrdma_nfs::v3::NAME_MAX as u32)))
    }

    fn commit(&self, caller: &Caller, file: &Handle, _offset: u64, _count: u32) -> Changed<WriteVerifier> {
        self.changed(caller, file, Ok(()), |object, attrs| self.commit_file(caller, object, attrs))
    }
}

impl LocalExport {
    /// Whether resolving a handle may take a walk through the export.
    fn needs_search(&self, handle: &Handle) -> bool {
        match &self.resolver {
            Resolver::Kernel => false,
            Resolver::Search(table) => self.codec.decode(handle).is_ok_and(|id| {
                id != self.root.id && !locked(&self.objects).contains(&id) && !table.knows(&id)
            }),
        }
    }
}

#[cfg(test)]
mod tests;
