//! The kernel's requests, one function each: takes apart what was asked, and starts a task that answers.

use std::{ffi::OsStr, future::Future, io, os::unix::ffi::OsStrExt, path::Path, sync::Arc, time::SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rpcrdma::{
    fabric::Region,
    nfs::v3::{FsStat, SetAttributes},
};

use crate::{
    attr,
    dir::OpenDir,
    names::{CreateFile, Make},
    serve::{Fail, Refuse, serve, serve_whole, unless_killed},
    shared::{Shared, Shown},
    user::User,
};

/// Requests that the kernel makes on its own account, such as reading ahead, at one time.
const BACKGROUND: u16 = 256;
/// Bytes that the kernel reads ahead of a program at most.
pub(crate) const READ_AHEAD: u32 = 8 << 20;
/// No number is used for another object while the kernel knows it.
const GENERATION: Generation = Generation(0);
const O_EXCL: i32 = 0o200;
const O_TRUNC: i32 = 0o1000;
const O_APPEND: i32 = 0o2000;

/// A mount, as the kernel talks to it.
pub(crate) struct Fs(pub(crate) Arc<Shared>);

fn name_of(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn answer_entry(reply: ReplyEntry, shown: Shown) {
    reply.entry_with_ttls(&shown.belief, &shown.name, &shown.attr, GENERATION);
}

fn answer_attr(reply: ReplyAttr, shown: Shown) {
    reply.attr(&shown.belief, &shown.attr);
}

fn answer_ok(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

fn answer_open(reply: ReplyOpen, (number, how): (u64, FopenFlags)) {
    reply.opened(FileHandle(number), how);
}

/// A file that was made and opened, the number of the open file, and how the kernel is to handle it.
type Created = (Shown, u64, FopenFlags);

/// Nothing is to be undone.
async fn nothing<T>(_fs: Arc<Shared>, _value: T) {}

/// The kernel was not told of this object, and gives no reference back.
async fn no_entry(fs: Arc<Shared>, shown: Shown) {
    fs.inodes.forget(shown.attr.ino.0, 1);
}

/// The kernel was not told of this open file, and does not close it.
async fn not_created(fs: Arc<Shared>, (shown, number, _): Created) {
    if let Some(inode) = fs.release(number) {
        fs.uncover(&inode).await;
    }
    no_entry(fs, shown).await;
}

impl Fs {
    /// Starts a task. Its end is its answer.
    fn go(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.runtime.spawn(task));
    }

    /// Starts what a request asks for, and has it answered.
    fn start<R: Refuse, T: 'static, W: Future<Output = Result<T, Fail>> + Send + 'static>(
        &self,
        request: &Request,
        reply: R,
        answer: impl FnOnce(R, T) + Send + 'static,
        work: impl FnOnce(Arc<Shared>) -> W,
    ) {
        self.go(serve(request.pid(), reply, work(Arc::clone(&self.0)), answer));
    }

    /// Starts what somebody asks for on their own behalf, and has it answered.
    fn start_as<R: Refuse, T: 'static, W: Future<Output = Result<T, Fail>> + Send + 'static>(
        &self,
        request: &Request,
        reply: R,
        answer: impl FnOnce(R, T) + Send + 'static,
        work: impl FnOnce(Arc<Shared>, Arc<User>) -> W,
    ) {
        let user = self.0.users.of(request);
        self.start(request, reply, answer, |fs| work(fs, user));
    }

    /// Starts a change that somebody asks for on their own behalf, and has it answered. It is made to its end, and what
    /// then nobody is there to be told of is for `undo`.
    fn start_change<R, T, W, U>(
        &self,
        request: &Request,
        reply: R,
        answer: impl FnOnce(R, T) + Send + 'static,
        undo: fn(Arc<Shared>, T) -> U,
        work: impl FnOnce(Arc<Shared>, Arc<User>) -> W,
    ) where
        R: Refuse,
        T: Send + 'static,
        W: Future<Output = Result<T, Fail>> + Send + 'static,
        U: Future<Output = ()> + Send + 'static,
    {
        let (fs, user) = (Arc::clone(&self.0), self.0.users.of(request));
        let work = work(Arc::clone(&fs), user);
        self.go(serve_whole(request.pid(), reply, work, answer, move |value| undo(fs, value)));
    }

    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, what: Make, reply: ReplyEntry) {
        let name = name_of(name);
        self.start_change(request, reply, answer_entry, no_entry, |fs, user| async move {
            fs.make(&user, &*fs.inode(parent)?, &name, what).await
        });
    }

    /// Lists a directory from a position on, with a reference to each object for the kernel if `plus`. `add` puts an
    /// entry into the reply and says whether it was full.
    fn list<R: Refuse>(
        &self,
        request: &Request,
        (fh, offset, plus): (FileHandle, u64, bool),
        mut reply: R,
        add: fn(&mut R, u64, &OsStr, &Shown) -> bool,
        answer: fn(R),
    ) {
        let (fs, thread) = (Arc::clone(&self.0), request.pid());
        self.go(async move {
            let add =
                |next, name: &[u8], shown: &Shown| add(&mut reply, next, OsStr::from_bytes(name), shown);
            match unless_killed(thread, fs.list(fh.0, offset, plus, add)).await {
                Ok(()) => answer(reply),
                Err(Fail(errno)) => reply.refuse(errno),
            }
        });
    }
}

/// Why the kernel cannot have what belongs to this file number.
const NO_FILE: Fail = Fail(Errno::EBADF);

impl Filesystem for Fs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // The server clears set-id bits when a file is written, cut or given away.
            InitFlags::FUSE_HANDLE_KILLPRIV,
        ];
        for capability in wanted {
            if let Err(missing) = config.add_capabilities(capability) {
                tracing::debug!(?missing, "the kernel is too old for a capability");
            }
        }
        if self.0.options.files.max.is_zero() {
            // Who believes no attributes does not believe in data that they may belong to either.
            let _ = config.add_capabilities(InitFlags::FUSE_AUTO_INVAL_DATA);
        }
        // Both are within what fuser takes; if not, the nearest that it takes will do.
        let _ = config.set_max_write(self.0.wsize.max(4096));
        let _ = config.set_max_readahead(READ_AHEAD).or_else(|most| config.set_max_readahead(most));
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, no_name) = (name_of(name), self.0.no_name_time());
        let answer = move |reply: ReplyEntry, shown| match shown {
            Some(shown) => answer_entry(reply, shown),
            // Number 0 is how FUSE says, and remembers, that there is nothing.
            None if no_name.is_zero() => reply.error(Errno::ENOENT),
            None => answer_entry(reply, Shown::nothing(no_name)),
        };
        self.start_as(request, reply, answer, |fs, user| async move {
            fs.lookup(&user, &*fs.inode(parent)?, &name).await
        });
    }

    fn forget(&self, _request: &Request, number: INodeNo, lookups: u64) {
        self.0.inodes.forget(number.0, lookups);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.start(request, reply, answer_attr, |fs| async move { fs.attributes(&fs.inode(number)?).await });
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mode = mode.map(|m| m & 0o7777);
        let (atime, mtime) = (attr::set_time(atime), attr::set_time(mtime));
        let set = SetAttributes { mode, uid, gid, size, atime, mtime };
        self.start_change(request, reply, answer_attr, nothing, |fs, user| async move {
            fs.setattr(&user, &fs.inode(number)?, set).await
        });
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        let answer = |reply: ReplyData, target: Vec<u8>| reply.data(&target);
        self.start_as(request, reply, answer, |fs, user| async move {
            Ok(user.mount.readlink(fs.inode(number)?.handle).await?)
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, Make::Node { mode, device }, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.make(request, parent, name, Make::Directory { mode }, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = name_of(target.as_os_str());
        self.make(request, parent, name, Make::Symlink { target }, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name_of(name);
        self.start_change(request, reply, answer_ok, nothing, |fs, user| async move {
            fs.unlink(&user, &fs.inode(parent)?, &name).await
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name_of(name);
        self.start_change(request, reply, answer_ok, nothing, |fs, user| async move {
            fs.rmdir(&user, &*fs.inode(parent)?, &name).await
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            // NFSv3 can neither exchange two names nor leave the second one alone.
            return reply.error(Errno::EINVAL);
        }
        let (name, newname) = (name_of(name), name_of(newname));
        self.start_change(request, reply, answer_ok, nothing, |fs, user| async move {
            let (from, to) = (fs.inode(parent)?, fs.inode(newparent)?);
            fs.rename(&user, (&from, &name), (&to, &newname)).await
        });
    }

    fn link(
        &self,
        request: &Request,
        number: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = name_of(newname);
        self.start_change(request, reply, answer_entry, no_entry, |fs, user| async move {
            let (inode, dir) = (fs.inode(number)?, fs.inode(newparent)?);
            fs.link(&user, &inode, &dir, &name).await
        });
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.start_as(request, reply, answer_open, |fs, user| async move {
            let inode = fs.inode(number)?;
            fs.open(user, inode, flags.0).await
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name_of(name);
        let how = CreateFile { mode, exclusive: flags & O_EXCL != 0, truncate: flags & O_TRUNC != 0 };
        let answer = |reply: ReplyCreate, (shown, number, how): Created| {
            // One time for name and attributes.
            reply.created(&shown.belief.min(shown.name), &shown.attr, GENERATION, FileHandle(number), how);
        };
        self.start_change(request, reply, answer, not_created, |fs, user| async move {
            let dir = fs.inode(parent)?;
            let (inode, shown) = fs.create(&user, &dir, &name, how).await?;
            let (number, how) = fs.opened(user, inode, flags, false);
            Ok((shown, number, how))
        });
    }

    fn read(
        &self,
        request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = |reply: ReplyData, (region, len): (Region, usize)| {
            // From where the network has placed it.
            reply.data(region.get(..len).unwrap_or_default());
        };
        self.start(request, reply, answer, |fs| async move {
            let file = fs.files.get(fh.0).ok_or(NO_FILE)?;
            fs.read(&file, offset, size).await
        });
    }

    fn write(
        &self,
        request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(file) = self.0.files.get(fh.0) else { return reply.error(Errno::EBADF) };
        if let Err(Fail(errno)) = self.0.heard(&file) {
            return reply.error(errno);
        }
        let mut offset = offset;
        if flags.0 & O_APPEND != 0 {
            let end = file.inode.writes.end().unwrap_or(offset);
            if end != offset {
                // Appends to a file come one after the other.
                offset = end;
                file.inode.misplaced();
                self.0.drop_data(&file.inode);
            }
        }
        // The kernel does not know where the server's files end at most, and the server would only say it when the
        // program has gone on.
        let room = usize::try_from(self.0.largest.saturating_sub(offset)).unwrap_or(usize::MAX);
        if room == 0 {
            return reply.error(Errno::EFBIG);
        }
        let data = &data[..data.len().min(room)];
        let len = data.len() as u32;
        let delay = self.0.writer.accept(&file.inode, &file.user, offset, data);
        if delay.is_none() && !file.direct {
            return reply.written(len);
        }
        let answer = move |reply: ReplyWrite, ()| reply.written(len);
        self.start(request, reply, answer, |fs| async move {
            if let Some(delay) = delay {
                fs.writer.wait(&file.inode, delay).await;
            }
            if file.direct { fs.write_through(&file).await } else { Ok(()) }
        });
    }

    fn flush(&self, request: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.start(request, reply, answer_ok, |fs| async move {
            fs.flush(&*fs.files.get(fh.0).ok_or(NO_FILE)?).await
        });
    }

    fn fsync(&self, request: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.start(request, reply, answer_ok, |fs| async move {
            fs.sync(&*fs.files.get(fh.0).ok_or(NO_FILE)?).await
        });
    }

    fn release(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Here and not in a task: whoever has closed a file may remove it next, and it should not look open then.
        let Some(inode) = self.0.release(fh.0).filter(|inode| inode.is_hidden()) else { return reply.ok() };
        let fs = Arc::clone(&self.0);
        // Nobody waits for it, so nobody can be killed meanwhile.
        self.go(async move {
            fs.uncover(&inode).await;
            reply.ok();
        });
    }

    fn poll(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel asks once, and takes files for ready from then on.
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, request: &Request, number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let inode = match self.0.inode(number) {
            Ok(inode) => inode,
            Err(Fail(errno)) => return reply.error(errno),
        };
        let dir = OpenDir { inode, user: self.0.users.of(request), listing: tokio::sync::Mutex::default() };
        reply.opened(FileHandle(self.0.dirs.add(Arc::new(dir))), FopenFlags::empty());
    }

    fn readdir(
        &self,
        request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let add = |reply: &mut ReplyDirectory, next, name: &OsStr, shown: &Shown| {
            reply.add(shown.attr.ino, next, shown.attr.kind, name)
        };
        self.list(request, (fh, offset, false), reply, add, ReplyDirectory::ok);
    }

    fn readdirplus(
        &self,
        request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let add = |reply: &mut ReplyDirectoryPlus, next, name: &OsStr, shown: &Shown| {
            reply.add(shown.attr.ino, next, name, &shown.belief, &shown.attr, GENERATION)
        };
        self.list(request, (fh, offset, true), reply, add, ReplyDirectoryPlus::ok);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _number: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        drop(self.0.dirs.remove(fh.0));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // NFSv3 answers changes of directories when they are durable.
        reply.ok();
    }

    fn statfs(&self, request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let answer = |reply: ReplyStatfs, stat: FsStat| {
            const BLOCK: u32 = 4096;
            let blocks = |bytes: u64| bytes / u64::from(BLOCK);
            let (total, free, available) = (stat.total_bytes, stat.free_bytes, stat.available_bytes);
            let (files, free_files) = (stat.total_files, stat.free_files);
            let name_max = rpcrdma::nfs::v3::NAME_MAX as u32;
            let (total, free, available) = (blocks(total), blocks(free), blocks(available));
            reply.statfs(total, free, available, files, free_files, BLOCK, name_max, BLOCK);
        };
        self.start(request, reply, answer, |fs| async move {
            let mount = &fs.users.owner().mount;
            Ok(mount.fsstat(mount.root()).await?)
        });
    }

    // NFSv3 has no extended attributes, and ACLs only in a protocol of their own. The kernel remembers that none can be read
    // or set, does not ask again, and tells programs EOPNOTSUPP, as it does of an NFSv3 mount of its own.

    fn setxattr(
        &self,
        _request: &Request,
        _number: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _number: INodeNo, size: u32, reply: ReplyXattr) {
        // To have none is no error, of which tar(1) and the like would tell for each file.
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }

    fn removexattr(&self, _request: &Request, _number: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: ReplyEmpty) {
        // The kernel has checked it.
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // There are none, such as chattr(1) would need.
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _request: &Request,
        _number: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: fuser::ReplyLseek,
    ) {
        // The kernel then takes every file for one without holes.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
