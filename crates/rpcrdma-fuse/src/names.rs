//! Names: what finds, makes, moves and removes them.
//!
//! # Removing what is open
//! A server would forget a file with its last name. So the last name of a file that is open here is not removed but
//! changed to `.nfs` with the file's number, as other clients do, and that name is removed when the file is closed. A
//! directory with such a file in it cannot be removed yet. A file that is replaced by a rename gets the other name in
//! addition, and first: there is no moment without a file of the name, and nothing is lost if the rename fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fuser::Errno;
use rpcrdma::{
    error::Error,
    nfs::v3::{
        CreateMode, CreateVerifier, FileType, NAME_MAX, NodeKind, SetAttributes, SetTime, Status, WccData,
        results::CreateOk,
    },
};

use crate::{
    attr,
    inode::{Change, Hidden, Inode},
    serve::Fail,
    shared::{Shared, Shown},
    user::User,
};

/// How long the removal of a directory waits to hear that a file in it was closed, which has been removed.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFSOCK: u32 = 0o140_000;

/// What kind of object `mkdir`, `symlink` and `mknod` make.
pub(crate) enum Make {
    Directory { mode: u32 },
    Symlink { target: Vec<u8> },
    Node { mode: u32, device: u32 },
}

/// How `open` makes a file.
#[derive(Clone, Copy)]
pub(crate) struct CreateFile {
    pub(crate) mode: u32,
    /// It may not exist.
    pub(crate) exclusive: bool,
    /// If it exists, it is emptied.
    pub(crate) truncate: bool,
}

fn check(name: &[u8]) -> Result<(), Fail> {
    if name.len() > NAME_MAX { Err(Fail(Errno::ENAMETOOLONG)) } else { Ok(()) }
}

impl Shared {
    /// Finds a name. `None` if it does not exist.
    pub(crate) async fn lookup(&self, user: &User, dir: &Inode, name: &[u8]) -> Result<Option<Shown>, Fail> {
        check(name)?;
        let epoch = self.writer.epoch();
        match user.mount.lookup(dir.handle, name).await {
            Ok(found) => {
                let (.., shown) = self.show_entry(found.object, found.attributes, dir.number, epoch).await?;
                Ok(Some(shown))
            }
            Err(e) if e.status() == Some(Status::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Shows what was just made. Servers need not say what it is.
    async fn show_made(
        &self,
        user: &User,
        dir: &Inode,
        name: &[u8],
        made: CreateOk,
        change: Change<'_>,
    ) -> Result<(Arc<Inode>, Shown), Fail> {
        change.left(made.dir_wcc.after.as_ref());
        let epoch = self.writer.advance();
        let (handle, attributes) = match made.object {
            Some(handle) => (handle, made.attributes),
            None => {
                let found = user.mount.lookup(dir.handle, name).await?;
                (found.object, found.attributes)
            }
        };
        let (inode, attributes, shown) = self.show_entry(handle, attributes, dir.number, epoch).await?;
        // What is written to it from now on is in the kernel's cache.
        inode.opened(&attributes);
        Ok((inode, shown))
    }

    /// Makes anything but an open file.
    pub(crate) async fn make(
        &self,
        user: &User,
        dir: &Inode,
        name: &[u8],
        what: Make,
    ) -> Result<Shown, Fail> {
        check(name)?;
        let mode = |mode: u32| SetAttributes { mode: Some(mode & 0o7777), ..SetAttributes::default() };
        let mount = &user.mount;
        let change = dir.begin_change();
        let made = match what {
            Make::Directory { mode: bits } => mount.mkdir(dir.handle, name, mode(bits)).await?,
            Make::Symlink { target } => {
                mount.symlink(dir.handle, name, &target, SetAttributes::default()).await?
            }
            Make::Node { mode: bits, device } => {
                let set = mode(bits);
                let device = attr::from_device(device);
                let node = match bits & S_IFMT {
                    0 | S_IFREG => {
                        let made = mount.create(dir.handle, name, CreateMode::Guarded(set)).await?;
                        return Ok(self.show_made(user, dir, name, made, change).await?.1);
                    }
                    S_IFIFO => NodeKind::Fifo(set),
                    S_IFSOCK => NodeKind::Socket(set),
                    S_IFCHR => NodeKind::Character(set, device),
                    S_IFBLK => NodeKind::Block(set, device),
                    _ => return Err(Fail(Errno::EINVAL)),
                };
                mount.mknod(dir.handle, name, node).await?
            }
        };
        Ok(self.show_made(user, dir, name, made, change).await?.1)
    }

    /// Makes a file that will be open.
    pub(crate) async fn create(
        &self,
        user: &User,
        dir: &Inode,
        name: &[u8],
        how: CreateFile,
    ) -> Result<(Arc<Inode>, Shown), Fail> {
        check(name)?;
        let mount = &user.mount;
        let change = dir.begin_change();
        let mode = Some(how.mode & 0o7777);
        let set = SetAttributes { mode, size: how.truncate.then_some(0), ..SetAttributes::default() };
        if !how.exclusive {
            let made = mount.create(dir.handle, name, CreateMode::Unchecked(set)).await?;
            return self.show_made(user, dir, name, made, change).await;
        }
        let verifier = CreateVerifier(unique().to_be_bytes());
        let mut made = match mount.create(dir.handle, name, CreateMode::Exclusive(verifier)).await {
            Err(e) if e.status() == Some(Status::NOTSUPP) => {
                let made = mount.create(dir.handle, name, CreateMode::Guarded(set)).await?;
                return self.show_made(user, dir, name, made, change).await;
            }
            made => made?,
        };
        // The server has kept the verifier in the times, and chosen the mode.
        let handle = match made.object {
            Some(handle) => handle,
            None => mount.lookup(dir.handle, name).await?.object,
        };
        let set =
            SetAttributes { mode, atime: SetTime::Server, mtime: SetTime::Server, ..Default::default() };
        made.object = Some(handle);
        made.attributes = mount.setattr(handle, set, None).await?.after;
        self.show_made(user, dir, name, made, change).await
    }

    /// Gives an object another name.
    pub(crate) async fn link(
        &self,
        user: &User,
        inode: &Arc<Inode>,
        dir: &Inode,
        name: &[u8],
    ) -> Result<Shown, Fail> {
        check(name)?;
        let epoch = self.writer.epoch();
        let change = dir.begin_change();
        let edit = inode.begin_edit();
        let linked = user.mount.link(inode.handle, dir.handle, name).await?;
        change.left(linked.dir_wcc.after.as_ref());
        edit.answered(&WccData { before: None, after: linked.attributes });
        drop(edit);
        self.writer.advance();
        Ok(self.show_entry(inode.handle, linked.attributes, dir.number, epoch).await?.2)
    }

    /// Removes a name that is not a directory's.
    pub(crate) async fn unlink(&self, user: &Arc<User>, dir: &Arc<Inode>, name: &[u8]) -> Result<(), Fail> {
        check(name)?;
        let open = self.find_open(user, dir, name).await?;
        let change = dir.begin_change();
        match open {
            None => change.left(user.mount.remove(dir.handle, name).await?.after.as_ref()),
            Some(file) => {
                let spare = free_name(user, dir, &file).await?;
                let moved = user.mount.rename((dir.handle, name), (dir.handle, &spare)).await?;
                change.left(moved.to.after.as_ref());
                self.hide(user, dir, spare, &file.inode).await;
            }
        }
        self.writer.advance();
        Ok(())
    }

    /// Removes a directory.
    pub(crate) async fn rmdir(&self, user: &User, dir: &Inode, name: &[u8]) -> Result<(), Fail> {
        check(name)?;
        let remove = async || {
            let change = dir.begin_change();
            let done = user.mount.rmdir(dir.handle, name).await?;
            change.left(done.after.as_ref());
            Ok(())
        };
        let done: Result<(), Error> = remove().await;
        self.writer.advance();
        let error = match done {
            Err(e) if matches!(e.status(), Some(Status::NOTEMPTY | Status::EXIST)) => e,
            done => return Ok(done?),
        };
        // The kernel says that a file was closed after `close` has returned.
        let found = user.mount.lookup(dir.handle, name).await?;
        let attributes = match found.attributes {
            Some(attributes) => attributes,
            None => user.mount.getattr(found.object).await?,
        };
        let Some(inode) = self.inodes.find(found.object, &attributes) else { return Err(error.into()) };
        if !self.hidden.gone(inode.number, CLOSE_WAIT).await {
            return Err(error.into());
        }
        // Also if nothing is hidden any more: it may have gone since the server answered.
        Ok(remove().await?)
    }

    /// Renames.
    pub(crate) async fn rename(
        &self,
        user: &Arc<User>,
        from: (&Arc<Inode>, &[u8]),
        to: (&Arc<Inode>, &[u8]),
    ) -> Result<(), Fail> {
        check(from.1)?;
        check(to.1)?;
        let change = from.0.begin_change();
        let elsewhere = (from.0.handle != to.0.handle).then(|| to.0.begin_change());
        // What is replaced may be open.
        let replaced = match self.find_open(user, to.0, to.1).await? {
            // Two names of one file: nothing happens to it.
            Some(file) if user.mount.lookup(from.0.handle, from.1).await?.object == file.inode.handle => None,
            Some(file) => Some((spare(user, to.0, to.1, &file).await?, file.inode)),
            None => None,
        };
        let renamed = match user.mount.rename((from.0.handle, from.1), (to.0.handle, to.1)).await {
            Ok(renamed) => renamed,
            Err(e) => {
                // If nobody knows what has become of it, both names may be needed.
                if let Some((spare, _)) = replaced.filter(|_| e.status().is_some()) {
                    spare.give_up(user, to.0, to.1).await;
                }
                return Err(e.into());
            }
        };
        change.left(renamed.from.after.as_ref());
        if let Some(change) = elsewhere {
            change.left(renamed.to.after.as_ref());
        }
        if let Some((spare, inode)) = replaced {
            self.hide(user, to.0, spare.name, &inode).await;
        }
        self.writer.advance();
        Ok(())
    }

    /// The file of this name, if it is open here and has no other.
    async fn find_open(&self, user: &User, dir: &Inode, name: &[u8]) -> Result<Option<Found>, Fail> {
        if self.files.is_empty() {
            return Ok(None);
        }
        let found = match user.mount.lookup(dir.handle, name).await {
            Err(e) if e.status() == Some(Status::NOENT) => return Ok(None),
            found => found?,
        };
        let attributes = match found.attributes {
            Some(attributes) => attributes,
            None => user.mount.getattr(found.object).await?,
        };
        if attributes.file_type == FileType::Directory || attributes.nlink > 1 {
            return Ok(None);
        }
        let open = |inode: &Arc<Inode>| inode.opens.load(Ordering::Acquire) > 0 && !inode.is_hidden();
        let inode = self.inodes.find(found.object, &attributes).filter(open);
        Ok(inode.map(|inode| Found { inode, id: attributes.fileid }))
    }

    /// Remembers the name that an open file has only for us.
    async fn hide(&self, user: &Arc<User>, dir: &Arc<Inode>, name: Vec<u8>, inode: &Inode) {
        self.hidden.hide(dir.number);
        inode.hide(Hidden { dir: Arc::clone(dir), name, user: Arc::clone(user) });
        // Its last program may have gone meanwhile.
        if inode.opens.load(Ordering::Acquire) == 0 {
            self.uncover(inode).await;
        }
    }

    /// Removes a file that nobody has open any more and that has no name of its own.
    pub(crate) async fn uncover(&self, inode: &Inode) {
        let Some(Hidden { dir, name, user }) = inode.take_hidden() else { return };
        self.hidden.leaves(dir.number);
        let change = dir.begin_change();
        match user.mount.remove(dir.handle, &name).await {
            Ok(done) => change.left(done.after.as_ref()),
            // The file or the directory is gone already.
            Err(e @ Error::Nfs { status, .. }) if !matches!(status, Status::NOENT | Status::STALE) => {
                tracing::warn!(name = %String::from_utf8_lossy(&name), "a removed file stays behind: {e}");
            }
            _ => {}
        }
        self.hidden.left(dir.number);
    }
}

/// A file that is open here, as it was found by its only name.
struct Found {
    inode: Arc<Inode>,
    /// Its number on the server.
    id: u64,
}

impl Found {
    /// A name of ours for it, which hardly anybody uses.
    fn another_name(&self) -> Vec<u8> {
        format!(".nfs{:016x}{:08x}", self.id, unique() as u32).into_bytes()
    }
}

/// A name for a file that loses its own: one that nobody uses.
async fn free_name(user: &User, dir: &Inode, file: &Found) -> Result<Vec<u8>, Fail> {
    loop {
        let candidate = file.another_name();
        match user.mount.lookup(dir.handle, &candidate).await {
            Err(e) if e.status() == Some(Status::NOENT) => return Ok(candidate),
            taken => drop(taken?),
        }
    }
}

/// A name that a file has been given because it is about to lose its own.
struct Spare {
    name: Vec<u8>,
    /// It has lost its own already.
    moved: bool,
}

/// Gives an open file a spare name.
async fn spare(user: &User, dir: &Inode, name: &[u8], file: &Found) -> Result<Spare, Fail> {
    loop {
        let spare = file.another_name();
        match user.mount.link(file.inode.handle, dir.handle, &spare).await {
            Ok(_) => return Ok(Spare { name: spare, moved: false }),
            Err(e) if e.status() == Some(Status::EXIST) => {}
            // A server that makes no links, or not this one.
            Err(e) if e.status().is_some() => break,
            Err(e) => return Err(e.into()),
        }
    }
    let spare = free_name(user, dir, file).await?;
    user.mount.rename((dir.handle, name), (dir.handle, &spare)).await?;
    Ok(Spare { name: spare, moved: true })
}

impl Spare {
    /// The file keeps its own name after all.
    async fn give_up(self, user: &User, dir: &Inode, name: &[u8]) {
        let done = if self.moved {
            user.mount.rename((dir.handle, &self.name), (dir.handle, name)).await.map(drop)
        } else {
            user.mount.remove(dir.handle, &self.name).await.map(drop)
        };
        if let Err(e) = done {
            tracing::warn!(name = %String::from_utf8_lossy(&self.name), "a file keeps a name of ours: {e}");
        }
    }
}

/// A number that this mount, and with some luck no other one, uses once.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let start = || getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()) << 32) | 1;
    // Ordering matters to nobody; zero is the state before the first use.
    let _ = NEXT.compare_exchange(0, start(), Ordering::Relaxed, Ordering::Relaxed);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
