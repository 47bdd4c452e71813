//! From handles and names to descriptors, and from descriptors to attributes.
//!
//! Every object is represented by a descriptor opened with `O_PATH`: it names the object whatever happens to its name,
//! and gives no right to its data. Names are resolved one component at a time, relative to the descriptor of their
//! directory, and the kernel is told to follow neither symlinks nor mounts; no path string exists anywhere.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rpcrdma_nfs::v3::{Attributes, FileType, Handle, NfsTime, Status};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

use super::super::handle::ObjectId;
use super::{LocalExport, Naming, Resolver, locked, sys};

/// How names are resolved: a single component, to what itself stands there.
const ONE_STEP: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Handle type of objects that are named by number and birth time. The kernel never uses it (`FILEID_INVALID`).
pub(super) const KIND_INODE: u8 = 0xff;

/// How deep directories may lie below the root. Linux itself gets into trouble with longer paths.
const DEPTH_MAX: usize = 4096;

/// An object of the export.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) id: ObjectId,
    /// Opened with `O_PATH`, or for a file that was just created with more; used as if it was the former.
    pub(super) fd: Arc<OwnedFd>,
    pub(super) kind: FileType,
    /// When the object was last known to lie inside the export, in milliseconds since the export was opened.
    contained: AtomicU64,
}

impl Object {
    /// The root of an export: it is not looked for outside of itself.
    pub(super) fn always_inside(id: ObjectId, kind: FileType, fd: Arc<OwnedFd>) -> Self {
        Self { id, fd, kind, contained: AtomicU64::new(u64::MAX) }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }
}

/// The status of a system call's failure.
pub(super) fn status(errno: Errno) -> Status {
    Status::from_errno(errno.raw_os_error())
}

/// The status of a failure to resolve a name: mounts are not crossed.
fn name_status(errno: Errno) -> Status {
    match errno {
        Errno::XDEV => Status::ACCES,
        Errno::LOOP => Status::NOTDIR,
        other => status(other),
    }
}

fn file_type(mode: u16) -> FileType {
    match rustix::fs::FileType::from_raw_mode(mode.into()) {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::BlockDevice => FileType::Block,
        rustix::fs::FileType::CharacterDevice => FileType::Character,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::Fifo => FileType::Fifo,
        _ => FileType::Regular,
    }
}

/// As near as NFSv3 can say it, which knows the years 1970 to 2106.
fn time(stamp: StatxTimestamp) -> NfsTime {
    match u32::try_from(stamp.tv_sec) {
        Ok(seconds) => NfsTime { seconds, nanos: stamp.tv_nsec },
        Err(_) if stamp.tv_sec < 0 => NfsTime { seconds: 0, nanos: 0 },
        Err(_) => NfsTime { seconds: u32::MAX, nanos: 0 },
    }
}

pub(super) fn statx(fd: BorrowedFd<'_>, mask: StatxFlags) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask)
}

/// Device and number: what an object is known by as long as it is open.
pub(super) fn identity_of(fd: BorrowedFd<'_>) -> Result<(u32, u32, u64), Errno> {
    let stat = statx(fd, StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino))
}

pub(super) fn parent_of(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        dir,
        c"..",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens a single name.
pub(super) fn open_name(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, ONE_STEP)
}

/// What identifies the object behind a descriptor.
pub(super) fn id_of(naming: Naming, fd: BorrowedFd<'_>) -> Result<ObjectId, Errno> {
    match naming {
        Naming::Kernel => sys::name_to_handle(fd),
        Naming::Inode => {
            let stat = statx(fd, StatxFlags::INO | StatxFlags::BTIME)?;
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(&stat.stx_ino.to_be_bytes());
            if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
                bytes[8..16].copy_from_slice(&stat.stx_btime.tv_sec.to_be_bytes());
                bytes[16..20].copy_from_slice(&stat.stx_btime.tv_nsec.to_be_bytes());
            }
            let device = stat.stx_dev_major.rotate_left(20) ^ stat.stx_dev_minor;
            bytes[20..].copy_from_slice(&device.to_be_bytes());
            ObjectId::new(KIND_INODE, &bytes).ok_or(Errno::OVERFLOW)
        }
    }
}

impl LocalExport {
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// An object from its descriptor. Does not say that it lies inside the export; the caller knows.
    pub(super) fn object_of(&self, fd: OwnedFd) -> Result<(Arc<Object>, Attributes), Errno> {
        let id = id_of(self.naming, fd.as_fd())?;
        let attrs = self.stat(fd.as_fd())?;
        let kept = locked(&self.objects).get(&id).map(|object| object.clone());
        let object = match kept {
            Some(object) if object.kind == attrs.file_type => {
                object.contained.store(self.now(), Ordering::Relaxed);
                object
            }
            _ => self.new_object(id, attrs.file_type, Arc::new(fd)),
        };
        Ok((object, attrs))
    }

    pub(super) fn new_object(&self, id: ObjectId, kind: FileType, fd: Arc<OwnedFd>) -> Arc<Object> {
        Arc::new(Object { id, fd, kind, contained: AtomicU64::new(self.now()) })
    }

    /// Keeps an object for later calls.
    pub(super) fn keep(&self, object: &Arc<Object>) {
        if object.id == self.root.id {
            return;
        }
        // What goes is dropped, and so closed, after the lock.
        let _evicted = locked(&self.objects).insert(object.id, object.clone());
    }

    /// Closes everything that is open for an object.
    pub(super) fn forget(&self, id: &ObjectId) {
        let _object = locked(&self.objects).remove(id);
        let _files = {
            let mut files = locked(&self.files);
            (files.remove(&(*id, false)), files.remove(&(*id, true)))
        };
        let _directories: Vec<_> = locked(&self.directories).extract_if(.., |(of, _)| of == id).collect();
    }

    /// The object that a handle names.
    pub(super) fn object(&self, handle: &Handle) -> Result<Arc<Object>, Status> {
        self.object_by_id(&self.codec.decode(handle)?, 0)
    }

    pub(super) fn object_by_id(&self, id: &ObjectId, depth: usize) -> Result<Arc<Object>, Status> {
        if *id == self.root.id {
            return Ok(self.root.clone());
        }
        let kept = locked(&self.objects).get(id).map(|object| object.clone());
        let object = match kept {
            Some(object) => object,
            None => {
                let fd = match &self.resolver {
                    Resolver::Kernel => self.open_kernel_handle(id).map_err(status)?,
                    Resolver::Search(table) => table.find(self, id, depth)?,
                };
                let kind = file_type(statx(fd.as_fd(), StatxFlags::TYPE).map_err(status)?.stx_mode);
                let object =
                    Arc::new(Object { id: *id, fd: Arc::new(fd), kind, contained: AtomicU64::new(0) });
                if object.is_directory() {
                    self.check_contained(&object)?;
                }
                self.keep(&object);
                return Ok(object);
            }
        };
        if object.is_directory() {
            let known = object.contained.load(Ordering::Relaxed);
            if self.now().saturating_sub(known) >= self.recheck {
                self.check_contained(&object)?;
            }
        }
        Ok(object)
    }

    fn open_kernel_handle(&self, id: &ObjectId) -> Result<OwnedFd, Errno> {
        /// How often a shortage is not believed.
        const TRIES: u32 = 16;
        for _ in 0..TRIES {
            match sys::open_by_handle(self.mount.as_fd(), id, OFlags::PATH | OFlags::NOFOLLOW) {
                // Linux also says so of a directory that is being removed at this moment, and then soon says ESTALE.
                Err(Errno::NOMEM) => std::thread::yield_now(),
                // The handle is one of ours, so whatever the filesystem has against it: the object is gone.
                Err(Errno::INVAL) => return Err(Errno::STALE),
                result => return result,
            }
        }
        Err(Errno::NOMEM)
    }

    /// Makes sure that a directory still lies below the root, by walking up. A local process may have moved it out.
    pub(super) fn check_contained(&self, dir: &Object) -> Result<(), Status> {
        let now = self.now();
        if self.is_inside(dir.as_fd())? {
            dir.contained.store(now, Ordering::Relaxed);
            Ok(())
        } else {
            self.forget(&dir.id);
            Err(Status::STALE)
        }
    }

    /// Whether a directory is the root or lies below it.
    fn is_inside(&self, dir: BorrowedFd<'_>) -> Result<bool, Status> {
        let mut here = identity_of(dir).map_err(status)?;
        let mut above: Option<OwnedFd> = None;
        for _ in 0..DEPTH_MAX {
            if here == self.root_identity {
                return Ok(true);
            }
            let fd = above.as_ref().map_or(dir, |fd| fd.as_fd());
            let parent = match parent_of(fd) {
                Ok(parent) => parent,
                // What the kernel says of a directory that is not connected to the root of its mount any more, and of
                // one that was removed.
                Err(Errno::NOENT | Errno::STALE) => return Ok(false),
                Err(errno) => return Err(status(errno)),
            };
            let next = identity_of(parent.as_fd()).map_err(status)?;
            if next == here {
                return Ok(false);
            }
            here = next;
            above = Some(parent);
        }
        Ok(false)
    }

    /// What stands under a name in a directory, with its attributes, found with the server's own rights.
    pub(super) fn child(&self, dir: &Object, name: &[u8]) -> Result<(Arc<Object>, Attributes), Status> {
        let kept = |object: Arc<Object>| {
            let attrs = self.stat(object.as_fd()).map_err(status)?;
            Ok((object, attrs))
        };
        match name {
            b"." => return kept(self.object_by_id(&dir.id, 0)?),
            b".." if dir.id == self.root.id => return kept(self.root.clone()),
            b".." => {
                // Exact, not remembered: this is the one step that could lead out.
                self.check_contained(dir)?;
                let parent = parent_of(dir.as_fd()).map_err(status)?;
                if !self.is_inside(parent.as_fd())? {
                    return Err(Status::STALE);
                }
                return self.object_of(parent).map_err(status);
            }
            _ => {}
        }
        let fd = open_name(dir.as_fd(), name, OFlags::PATH, Mode::empty()).map_err(name_status)?;
        let (object, attrs) = self.object_of(fd).map_err(status)?;
        self.note_place(&object.id, &dir.id, name);
        Ok((object, attrs))
    }

    /// Tells the table of an unprivileged server where an object is.
    pub(super) fn note_place(&self, id: &ObjectId, parent: &ObjectId, name: &[u8]) {
        if let Resolver::Search(table) = &self.resolver {
            table.note(id, parent, name);
        }
    }

    /// Attributes of the object behind a descriptor.
    pub(super) fn stat(&self, fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
        let stat = statx(fd, StatxFlags::BASIC_STATS)?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let (root_major, root_minor, _) = self.root_identity;
        // Numbers are unique per device only, and one mount may show several (btrfs subvolumes).
        let other = if device == (root_major, root_minor) {
            0
        } else {
            (u64::from(device.0) << 32 | u64::from(device.1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        Ok(Attributes {
            file_type: file_type(stat.stx_mode),
            mode: u32::from(stat.stx_mode) & 0o7777,
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            used: stat.stx_blocks.saturating_mul(512),
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
            fsid: self.fsid ^ other,
            fileid: stat.stx_ino,
            atime: time(stat.stx_atime),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
        })
    }

    /// Attributes of an object that still has a name.
    pub(super) fn attributes(&self, object: &Object) -> Result<Attributes, Status> {
        let attrs = self.stat(object.as_fd()).map_err(status)?;
        self.still_linked(object, &attrs)?;
        Ok(attrs)
    }

    /// A descriptor keeps a removed object alive; its handle shall not.
    pub(super) fn still_linked(&self, object: &Object, attrs: &Attributes) -> Result<(), Status> {
        if attrs.nlink == 0 {
            self.forget(&object.id);
            return Err(Status::STALE);
        }
        Ok(())
    }

    /// Opens a regular file or a directory for data, with the server's own rights.
    pub(super) fn reopen(&self, object: &Object, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match (&self.resolver, &self.own_descriptors) {
            (Resolver::Kernel, _) if object.id != self.root.id => {
                sys::open_by_handle(self.mount.as_fd(), &object.id, flags | OFlags::NOFOLLOW)
            }
            _ if object.is_directory() => {
                rustix::fs::openat(object.as_fd(), c".", flags | OFlags::DIRECTORY, Mode::empty())
            }
            (_, Some(descriptors)) => {
                let name = object.as_fd().as_raw_fd().to_string();
                rustix::fs::openat(descriptors, name, flags, Mode::empty())
            }
            (_, None) => Err(Errno::OPNOTSUPP),
        }
    }
}
