//! Local directories, by descriptor.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::Path,
    sync::{Arc, OnceLock},
};

use rpcrdma::fabric::Region;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid},
    io::Errno,
};
use tokio::{sync::Semaphore, task::spawn_blocking};

use super::{Change, Entry, FsError, Kind, Meta, Object, Special, Time, Written};

/// Names per page of a listing.
const PAGE: usize = 256;

/// A local directory. Clones share its descriptor.
#[derive(Clone)]
pub(crate) struct LocalDir {
    fd: Arc<OwnedFd>,
}

/// An open file. Clones share its descriptor.
#[derive(Clone)]
pub(crate) struct File {
    file: Arc<std::fs::File>,
    /// Turns to write.
    writers: Arc<Semaphore>,
}

impl From<OwnedFd> for File {
    fn from(fd: OwnedFd) -> Self {
        Self { file: Arc::new(fd.into()), writers: Arc::new(Semaphore::new(1)) }
    }
}

pub(crate) struct Lister {
    dir: LocalDir,
    state: Option<rustix::fs::Dir>,
    done: bool,
}

/// Runs something that may block.
async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, FsError> + Send + 'static,
) -> Result<T, FsError> {
    match spawn_blocking(f).await {
        Ok(done) => done,
        Err(e) => Err(io::Error::other(e).into()),
    }
}

/// Differs after every boot of the machine.
pub(super) fn boot_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(text.bytes().filter(|b| *b != b'-').collect::<Vec<_>>().chunks(2))
        {
            *to = from.iter().fold(0, |n, b| n << 4 | (char::from(*b).to_digit(16).unwrap_or(0) as u8));
        }
        id
    })
}

fn meta_of(stat: &Stat) -> Meta {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::BlockDevice => Kind::Block,
        FileType::CharacterDevice => Kind::Char,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        _ => Kind::File,
    };
    Meta {
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        used: stat.st_blocks as u64 * 512,
        rdev: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        id: (stat.st_dev, stat.st_ino),
        atime: Time { secs: stat.st_atime, nanos: stat.st_atime_nsec as u32 },
        mtime: Time { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
    }
}

fn timestamps(times: (Time, Time)) -> Timestamps {
    let spec = |t: Time| Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() };
    Timestamps { last_access: spec(times.0), last_modification: spec(times.1) }
}

fn name_of(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl LocalDir {
    /// The directory at a path that the user gave; symlinks are followed.
    pub(crate) async fn at(path: &Path) -> Result<Self, FsError> {
        let path = path.to_owned();
        blocking(move || {
            let fd = rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty())?;
            Ok(Self { fd: Arc::new(fd) })
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        name: &[u8],
        f: impl FnOnce(&OwnedFd, &OsStr) -> Result<T, FsError> + Send + 'static,
    ) -> Result<T, FsError> {
        let fd = Arc::clone(&self.fd);
        let name = name.to_vec();
        blocking(move || f(&fd, name_of(&name))).await
    }

    pub(super) fn list(&self) -> Lister {
        Lister { dir: self.clone(), state: None, done: false }
    }

    pub(super) async fn meta(&self) -> Result<Meta, FsError> {
        self.run(b".", |fd, _| Ok(meta_of(&rustix::fs::fstat(fd)?))).await
    }

    pub(super) async fn find(&self, name: &[u8]) -> Result<Object, FsError> {
        self.run(name, |fd, name| {
            let stat = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(Object { meta: meta_of(&stat), handle: None })
        })
        .await
    }

    pub(super) async fn enter(&self, name: &[u8]) -> Result<Self, FsError> {
        self.run(name, |fd, name| {
            let fd = rustix::fs::openat(fd, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            Ok(Self { fd: Arc::new(fd) })
        })
        .await
    }

    pub(super) async fn make_dir(&self, name: &[u8]) -> Result<(Self, bool), FsError> {
        self.run(name, |fd, name| {
            let new = match rustix::fs::mkdirat(fd, name, Mode::RWXU) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(e) => return Err(e.into()),
            };
            let fd = rustix::fs::openat(fd, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            Ok((Self { fd: Arc::new(fd) }, new))
        })
        .await
    }

    pub(super) async fn open(&self, name: &[u8]) -> Result<File, FsError> {
        self.open_as(name, OFlags::RDONLY).await
    }

    pub(super) async fn open_to_write(&self, name: &[u8]) -> Result<File, FsError> {
        self.open_as(name, OFlags::WRONLY).await
    }

    async fn open_as(&self, name: &[u8], how: OFlags) -> Result<File, FsError> {
        self.run(name, move |fd, name| {
            // A fifo must not make us wait for its other end.
            let flags = how | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
            let fd = rustix::fs::openat(fd, name, flags, Mode::empty())?;
            if !FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_file() {
                return Err(Errno::INVAL.into());
            }
            Ok(File::from(fd))
        })
        .await
    }

    pub(super) async fn create(&self, name: &[u8]) -> Result<File, FsError> {
        self.run(name, |dir, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let create = || rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR);
            let fd = match create() {
                Err(Errno::EXIST) => {
                    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                    create()?
                }
                other => other?,
            };
            Ok(File::from(fd))
        })
        .await
    }

    pub(super) async fn read_link(&self, name: &[u8]) -> Result<Vec<u8>, FsError> {
        self.run(name, |fd, name| Ok(rustix::fs::readlinkat(fd, name, Vec::new())?.into_bytes())).await
    }

    pub(super) async fn symlink(&self, name: &[u8], target: &[u8]) -> Result<(), FsError> {
        let target = target.to_vec();
        self.run(name, move |fd, name| Ok(rustix::fs::symlinkat(name_of(&target), fd, name)?)).await
    }

    pub(super) async fn make_special(&self, name: &[u8], special: Special) -> Result<(), FsError> {
        self.run(name, move |fd, name| {
            let kind = match special.kind {
                Kind::Block => FileType::BlockDevice,
                Kind::Char => FileType::CharacterDevice,
                Kind::Socket => FileType::Socket,
                _ => FileType::Fifo,
            };
            let device = rustix::fs::makedev(special.rdev.0, special.rdev.1);
            Ok(rustix::fs::mknodat(fd, name, kind, Mode::from_raw_mode(special.mode), device)?)
        })
        .await
    }

    pub(super) async fn link(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<(), FsError> {
        let (to, new) = (to.clone(), new.to_vec());
        self.run(name, move |fd, name| {
            Ok(rustix::fs::linkat(fd, name, &*to.fd, name_of(&new), AtFlags::empty())?)
        })
        .await
    }

    pub(super) async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FsError> {
        let to = to.to_vec();
        self.run(from, move |fd, from| Ok(rustix::fs::renameat(fd, from, fd, name_of(&to))?)).await
    }

    pub(super) async fn remove(&self, name: &[u8]) -> Result<(), FsError> {
        self.run(name, |fd, name| Ok(rustix::fs::unlinkat(fd, name, AtFlags::empty())?)).await
    }

    /// Modes of symlinks cannot be set and are left alone.
    pub(super) async fn change(&self, name: &[u8], kind: Kind, change: Change) -> Result<(), FsError> {
        self.run(name, move |fd, name| {
            let here = AtFlags::SYMLINK_NOFOLLOW;
            if let Some((uid, gid)) = change.owner {
                rustix::fs::chownat(fd, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), here)?;
            }
            if let Some(mode) = change.mode.filter(|_| kind != Kind::Symlink) {
                // By descriptor where there is one, because chmod by name would follow a symlink.
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let path = rustix::fs::openat(fd, name, flags, Mode::empty())?;
                chmod_path(&path, mode)?;
            }
            if let Some(times) = change.times {
                rustix::fs::utimensat(fd, name, &timestamps(times), here)?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn change_self(&self, change: Change) -> Result<(), FsError> {
        self.run(b".", move |fd, _| set(fd, change)).await
    }
}

/// chmod of what a path descriptor stands for. /proc leads back to the object without looking at its name again.
fn chmod_path(path: &OwnedFd, mode: u32) -> Result<(), FsError> {
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", path.as_fd().as_raw_fd());
    Ok(rustix::fs::chmod(link, Mode::from_raw_mode(mode))?)
}

/// Sets attributes by descriptor, in the order in which none undoes another.
fn set(fd: &OwnedFd, change: Change) -> Result<(), FsError> {
    if let Some(size) = change.size {
        rustix::fs::ftruncate(fd, size)?;
    }
    if let Some((uid, gid)) = change.owner {
        rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    if let Some(mode) = change.mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
    }
    if let Some(times) = change.times {
        rustix::fs::futimens(fd, &timestamps(times))?;
    }
    Ok(())
}

impl Lister {
    pub(super) async fn next(&mut self) -> Result<Vec<Entry>, FsError> {
        if self.done {
            return Ok(Vec::new());
        }
        let dir = self.dir.clone();
        let state = self.state.take();
        let (page, state) = blocking(move || {
            let mut state = match state {
                Some(state) => state,
                None => rustix::fs::Dir::read_from(&*dir.fd)?,
            };
            let mut page = Vec::new();
            while page.len() < PAGE {
                let Some(entry) = state.next() else { return Ok((page, None)) };
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let stat = match rustix::fs::statat(&*dir.fd, name_of(name), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e.into()),
                };
                page.push(Entry {
                    name: name.to_vec(),
                    object: Object { meta: meta_of(&stat), handle: None },
                });
            }
            Ok((page, Some(state)))
        })
        .await?;
        self.done = state.is_none();
        self.state = state;
        Ok(page)
    }
}

impl File {
    pub(super) async fn read(&self, at: u64, len: u32, mut buf: Region) -> Result<(u32, Region), FsError> {
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut done = 0;
            let len = (len as usize).min(buf.len());
            while done < len {
                match file.read_at(&mut buf[done..len], at + done as u64) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Ok((done as u32, buf))
        })
        .await
    }

    pub(super) async fn write(&self, at: u64, len: u32, buf: Region) -> Result<(Written, Region), FsError> {
        // The system lets one write at a time into a file; threads that wait for each other there burn processor time.
        let _turn = self.writers.acquire().await;
        let file = Arc::clone(&self.file);
        blocking(move || {
            let data = buf.get(..len as usize).unwrap_or_default();
            file.write_all_at(data, at)?;
            Ok((Written::Done, buf))
        })
        .await
    }

    pub(super) async fn meta(&self) -> Result<Meta, FsError> {
        let file = Arc::clone(&self.file);
        blocking(move || Ok(meta_of(&rustix::fs::fstat(&*file)?))).await
    }

    pub(super) async fn change(&self, change: Change) -> Result<(), FsError> {
        let file = Arc::clone(&self.file);
        blocking(move || {
            let fd = file.as_fd().try_clone_to_owned()?;
            set(&fd, change)
        })
        .await
    }
}
