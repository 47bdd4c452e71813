//! The contents and attributes of files: open, read, write, synchronise, change.

use std::sync::{Arc, atomic::Ordering};

use fuser::{Errno, FopenFlags};
use rpcrdma::{
    fabric::Region,
    nfs::v3::{AccessMask, FileType, SetAttributes},
};

use crate::{
    inode::Inode,
    open::OpenFile,
    serve::Fail,
    shared::{Shared, Shown},
    user::User,
};

const O_ACCMODE: i32 = 0o3;
const O_WRONLY: i32 = 0o1;
const O_RDWR: i32 = 0o2;
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;
/// Set by the kernel when a file is opened to be executed.
const FMODE_EXEC: i32 = 0o40;

impl Shared {
    /// Opens a file that exists.
    pub(crate) async fn open(
        &self,
        user: Arc<User>,
        inode: Arc<Inode>,
        flags: i32,
    ) -> Result<(u64, FopenFlags), Fail> {
        if !self.options.close_to_open && inode.has_cache() {
            return Ok(self.opened(user, inode, flags, true));
        }
        let readable = match flags & O_ACCMODE {
            O_WRONLY => AccessMask::default(),
            // Whoever may execute a file may have it read, to be executed.
            _ if flags & FMODE_EXEC != 0 => AccessMask::EXECUTE,
            _ => AccessMask::READ,
        };
        let writable = match flags & O_ACCMODE {
            O_WRONLY | O_RDWR => AccessMask::MODIFY | AccessMask::EXTEND,
            _ => AccessMask::default(),
        };
        let wanted = readable | writable;
        let epoch = self.writer.epoch();
        let access = user.mount.access(inode.handle, wanted).await?;
        if !access.access.contains(wanted) {
            return Err(Fail(Errno::EACCES));
        }
        let attributes = match access.attributes {
            Some(attributes) => attributes,
            None => user.mount.getattr(inode.handle).await?,
        };
        inode.writes.ends(&attributes, epoch);
        let cached = inode.opened(&attributes);
        if !cached.attributes {
            self.drop_attributes(&inode);
        }
        Ok(self.opened(user, inode, flags, cached.data))
    }

    /// A number for an open file.
    pub(crate) fn opened(
        &self,
        user: Arc<User>,
        inode: Arc<Inode>,
        flags: i32,
        keep: bool,
    ) -> (u64, FopenFlags) {
        let mut how = FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        if keep {
            how |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        if flags & O_ACCMODE == 0 {
            // Nothing to wait for when it is closed.
            how |= FopenFlags::FOPEN_NOFLUSH;
        }
        let file = OpenFile::new(inode, user, flags & O_DIRECT != 0);
        (self.files.add(file), how)
    }

    /// Closes a file for good. Returns it if nobody else has it open, for what may have to be [uncovered](Self::uncover).
    pub(crate) fn release(&self, number: u64) -> Option<Arc<Inode>> {
        let file = self.files.remove(number)?;
        (file.inode.opens.fetch_sub(1, Ordering::AcqRel) == 1).then(|| Arc::clone(&file.inode))
    }

    /// Reads `size` bytes, less at the end of the file.
    pub(crate) async fn read(
        &self,
        file: &OpenFile,
        offset: u64,
        size: u32,
    ) -> Result<(Region, usize), Fail> {
        let OpenFile { inode, user, .. } = file;
        let pending = inode.writes.is_pending();
        if pending {
            // What was written elsewhere in the file is not waited for.
            self.writer.flush_range(inode, offset..offset.saturating_add(size.into())).await;
        }
        let read = self.read_server(inode, user, offset, size).await?;
        if !pending || read.1 == size as usize {
            return Ok(read);
        }
        // The file may end for the server where for us it goes on: beyond may be what it has not seen yet.
        drop(read);
        self.writer.flush(inode).await;
        self.read_server(inode, user, offset, size).await
    }

    async fn read_server(
        &self,
        inode: &Inode,
        user: &User,
        offset: u64,
        size: u32,
    ) -> Result<(Region, usize), Fail> {
        // Never closed, and there is a region for everybody who is let in.
        let _place = self.readers.acquire().await.map_err(|_| Fail(Errno::EIO))?;
        let mut region = self.read_memory.take(size as usize).ok_or(Fail(Errno::ENOMEM))?;
        let mut done = 0;
        loop {
            let rest = region.split_off(done as usize);
            let (result, rest) =
                user.mount.read(inode.handle, offset + u64::from(done), size - done, rest).await;
            let rest = rest.ok_or(Fail(Errno::EIO))?;
            // The front is not reachable for anybody, so the halves are neighbours still.
            region.unsplit(rest).map_err(|_| Fail(Errno::EIO))?;
            let read = result?;
            done += read.len;
            // A server may give less than there is.
            if read.eof || read.len == 0 || done >= size {
                return Ok((region, done as usize));
            }
        }
    }

    /// Waits for a write of a file that was opened with O_DIRECT.
    pub(crate) async fn write_through(&self, file: &OpenFile) -> Result<(), Fail> {
        self.writer.flush(&file.inode).await;
        self.heard(file)
    }

    /// Makes what was written durable.
    pub(crate) async fn sync(&self, file: &OpenFile) -> Result<(), Fail> {
        self.writer.sync(&file.inode).await;
        self.heard(file)
    }

    /// The file is closed once; it may be open elsewhere.
    pub(crate) async fn flush(&self, file: &OpenFile) -> Result<(), Fail> {
        if self.options.close_to_open { self.sync(file).await } else { self.heard(file) }
    }

    /// Tells an open file of a failure that it has not heard of.
    pub(crate) fn heard(&self, file: &OpenFile) -> Result<(), Fail> {
        file.inode.writes.failure_since(&file.heard).map_or(Ok(()), |errno| Err(Fail::errno(errno)))
    }

    /// Changes attributes.
    pub(crate) async fn setattr(
        &self,
        user: &User,
        inode: &Arc<Inode>,
        set: SetAttributes,
    ) -> Result<Shown, Fail> {
        if set == SetAttributes::default() {
            return self.attributes(inode).await;
        }
        if inode.file_type == FileType::Regular {
            // A WRITE that comes later, perhaps because the server has restarted, would undo times and modes, and may be
            // refused under another mode or owner.
            self.writer.sync(inode).await;
        }
        let edit = inode.begin_edit();
        let done = user.mount.setattr(inode.handle, set, None).await?;
        if let Some(size) = set.size {
            inode.writes.cut(size, done.after.as_ref());
        }
        edit.answered(&done);
        drop(edit);
        self.writer.advance();
        match done.after {
            Some(attributes) => Ok(self.show(inode, &attributes, None)),
            None => self.attributes(inode).await,
        }
    }
}
