//! Data: READ, WRITE, COMMIT, and setting attributes.
//!
//! An open file costs its opening once: the descriptor is kept and shared by all callers, and whether a caller may use
//! it is asked separately, of what is remembered. A READ is then one `preadv2` and one `statx`, a WRITE one `pwritev2`
//! between two `statx`. A WRITE that has to be durable says so to `pwritev2` itself.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rpcrdma_nfs::v3::{
    Attributes, FileType, Handle, NfsTime, SetAttributes, SetTime, Stable, Status, WriteVerifier,
};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::{Errno, ReadWriteFlags};

use super::super::{Caller, Looked, Outcome, Patience, ReadDone, WouldBlock, Written};
use super::identity::Assumed;
use super::objects::{Object, status};
use super::{LocalExport, locked, sys};

/// "No id" in `chown`.
const NO_ID: u32 = u32::MAX;

impl LocalExport {
    /// READ.
    pub(super) fn read_file(
        &self,
        caller: &Caller,
        handle: &Handle,
        offset: u64,
        buf: &mut [u8],
        patience: Patience,
    ) -> Result<Looked<ReadDone>, WouldBlock> {
        if patience == Patience::Now && self.needs_search(handle) {
            return Err(WouldBlock);
        }
        let object = match self.object(handle) {
            Ok(object) => object,
            Err(status) => return Ok(Outcome::fail(status)),
        };
        let read = self.file(&object, false).and_then(|fd| match self.fill(&fd, offset, buf, patience) {
            Ok(done) => Ok(Some(done)),
            Err(Errno::AGAIN) if patience == Patience::Now => Ok(None),
            Err(errno) => Err(status(errno)),
        });
        // After the data, so that the size says whether they reach the end; before anything leaves, so that nobody
        // gets data he may not read.
        let attrs = match self.attributes(&object) {
            Ok(attrs) => attrs,
            Err(status) => return Ok(Outcome::fail(status)),
        };
        let result = match read {
            Ok(None) => return Err(WouldBlock),
            Ok(Some(count)) => {
                let reached = offset.saturating_add(count as u64);
                if patience == Patience::Now && count < buf.len() && reached < attrs.size {
                    // Only the front was in memory.
                    return Err(WouldBlock);
                }
                let done = ReadDone { count, eof: reached >= attrs.size };
                self.may_use_data(caller, &object, &attrs, 4).map(|()| done)
            }
            Err(status) => Err(status),
        };
        Ok(Outcome::new(result, Some(attrs)))
    }

    /// Reads until the buffer is full or the file ends.
    fn fill(&self, fd: &OwnedFd, offset: u64, buf: &mut [u8], patience: Patience) -> Result<usize, Errno> {
        // No file reaches further, and the kernel takes no range that does.
        let most = (i64::MAX as u64).saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..most as usize];
        let flags = if patience == Patience::Now && !self.in_memory {
            ReadWriteFlags::NOWAIT
        } else {
            ReadWriteFlags::empty()
        };
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let mut slices = [IoSliceMut::new(&mut buf[done..])];
            match rustix::io::preadv2(fd, &mut slices, at, flags) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                // The filesystem cannot tell whether it would wait.
                Err(Errno::OPNOTSUPP) if !flags.is_empty() => return Err(Errno::AGAIN),
                Err(Errno::AGAIN) if done > 0 => break,
                Err(errno) => return Err(errno),
            }
            // A short read is the end of the file, or of what is in memory; the caller tells which.
            if !flags.is_empty() {
                break;
            }
        }
        Ok(done)
    }

    /// WRITE, except for its attributes.
    pub(super) fn write_file(
        &self,
        caller: &Caller,
        object: &Arc<Object>,
        attrs: &Attributes,
        offset: u64,
        data: &[u8],
        stable: Stable,
    ) -> Result<Written, Status> {
        regular(object)?;
        self.may_use_data(caller, object, attrs, 2)?;
        let verifier = self.verifier();
        if !data.is_empty() && offset.checked_add(data.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Status::FBIG);
        }
        let fd = self.file(object, true)?;
        let mut count = 0;
        {
            let end = offset.saturating_add(data.len() as u64);
            let _assumed = self.assume_to_write(caller, attrs, end)?;
            while count < data.len() {
                match write_at(&fd, offset + count as u64, &data[count..], stable) {
                    Ok(0) => break,
                    Ok(written) => count += written,
                    Err(Errno::INTR) => {}
                    // What was written is written; the client sends the rest again, and learns why.
                    Err(_) if count > 0 => break,
                    Err(errno) => {
                        if stable != Stable::Unstable {
                            self.lost_data(errno);
                        }
                        return Err(status(errno));
                    }
                }
            }
        }
        if count == 0 && !data.is_empty() {
            return Err(Status::IO);
        }
        Ok(Written { count, committed: stable, verifier })
    }

    /// Takes as much of the caller's identity as a change of data up to `end` needs: the user for quotas and reserved
    /// space, the groups too if the kernel has to decide whether a set-group-id bit may stay, and nothing if neither
    /// can matter, because changing identities costs more than writing a page.
    fn assume_to_write(
        &self,
        caller: &Caller,
        attrs: &Attributes,
        end: u64,
    ) -> Result<Option<Assumed<'_>>, Status> {
        if attrs.mode & 0o6000 != 0 {
            return self.identity.assume(caller).map(Some).map_err(status);
        }
        if self.in_place && end <= attrs.size && attrs.size <= attrs.used {
            return Ok(None);
        }
        self.identity.assume_user(caller).map(Some).map_err(status)
    }

    /// COMMIT, except for its attributes.
    pub(super) fn commit_file(
        &self,
        caller: &Caller,
        object: &Arc<Object>,
        attrs: &Attributes,
    ) -> Result<WriteVerifier, Status> {
        regular(object)?;
        self.may_use_data(caller, object, attrs, 2)?;
        let fd = self.file(object, true)?;
        // The verifier is read first: if data are lost meanwhile, the client sees the change at its next WRITE.
        let verifier = self.verifier();
        match rustix::fs::fsync(&fd) {
            Ok(()) => Ok(verifier),
            Err(errno) => {
                self.lost_data(errno);
                Err(status(errno))
            }
        }
    }

    pub(super) fn verifier(&self) -> WriteVerifier {
        WriteVerifier(self.verifier.load(Ordering::Acquire).to_be_bytes())
    }

    /// Data that were acknowledged may be gone: whoever holds a copy has to send it again.
    pub(super) fn lost_data(&self, errno: Errno) {
        tracing::error!(%errno, "writing out failed; clients are told to send unstable data again");
        self.verifier.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the caller may read (4) or write (2) the data of an object: its owner always, and the reader also if he
    /// may execute it.
    pub(super) fn may_use_data(
        &self,
        caller: &Caller,
        object: &Object,
        attrs: &Attributes,
        want: u32,
    ) -> Result<(), Status> {
        let uid = self.identity.uid(caller);
        if uid == 0 || uid == attrs.uid {
            return Ok(());
        }
        match self.check(caller, object, attrs, want) {
            Err(Status::ACCES) if want == 4 => self.check(caller, object, attrs, 1),
            other => other,
        }
    }

    /// The open file, from the cache or opened with the server's own rights.
    pub(super) fn file(&self, object: &Arc<Object>, write: bool) -> Result<Arc<OwnedFd>, Status> {
        regular(object)?;
        {
            let mut files = locked(&self.files);
            // A writable descriptor is readable too.
            for writable in [write, true] {
                if let Some(fd) = files.get(&(object.id, writable)) {
                    return Ok(fd.clone());
                }
            }
        }
        let flags = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let fd = match self.reopen(object, flags) {
            Err(Errno::ACCESS) => self.open_as_owner(object, flags),
            other => other,
        };
        let fd = Arc::new(fd.map_err(|errno| match errno {
            Errno::NOENT => Status::STALE,
            other => status(other),
        })?);
        self.keep_file(object, write, &fd);
        Ok(fd)
    }

    pub(super) fn keep_file(&self, object: &Object, write: bool, fd: &Arc<OwnedFd>) {
        let _evicted = locked(&self.files).insert((object.id, write), fd.clone());
    }

    /// Opens a file of the server's own user although its mode forbids that, by giving the owner the right for a
    /// moment: clients check modes when they open, and then expect to be able to go on.
    fn open_as_owner(&self, object: &Object, flags: OFlags) -> Result<OwnedFd, Errno> {
        let super::Identity::Own { uid } = self.identity else { return Err(Errno::ACCESS) };
        // One at a time, or one would take another's widened mode for the file's own.
        let _alone = locked(&self.opening_as_owner);
        let attrs = self.stat(object.as_fd())?;
        if attrs.uid != uid || attrs.mode & 0o600 == 0o600 {
            return Err(Errno::ACCESS);
        }
        self.change_mode(object, attrs.mode | 0o600)?;
        let opened = self.reopen(object, flags);
        self.change_mode(object, attrs.mode)?;
        opened
    }

    /// Changes the mode under the identity the thread has now.
    pub(super) fn change_mode(&self, object: &Object, mode: u32) -> Result<(), Errno> {
        match (sys::change_mode(object.as_fd(), mode), &self.own_descriptors) {
            (Err(Errno::NOSYS), Some(descriptors)) if object.kind != FileType::Symlink => {
                use std::os::fd::AsRawFd as _;
                let name = object.as_fd().as_raw_fd().to_string();
                rustix::fs::chmodat(descriptors, name, Mode::from_raw_mode(mode), AtFlags::empty())
            }
            (result, _) => result,
        }
    }

    /// Applies attributes: size, owner, mode, times.
    pub(super) fn set_attributes(
        &self,
        caller: &Caller,
        object: &Arc<Object>,
        attrs: &Attributes,
        set: &SetAttributes,
    ) -> Result<(), Status> {
        if let Some(size) = set.size {
            regular(object)?;
            self.may_use_data(caller, object, attrs, 2)?;
            if size > i64::MAX as u64 {
                return Err(Status::FBIG);
            }
            let fd = self.file(object, true)?;
            let _assumed = self.assume_to_write(caller, attrs, size)?;
            rustix::fs::ftruncate(&fd, size).map_err(status)?;
        }
        if set.uid == Some(NO_ID) || set.gid == Some(NO_ID) {
            return Err(Status::INVAL);
        }
        let times = set.atime != SetTime::DontChange || set.mtime != SetTime::DontChange;
        if set.uid.is_none() && set.gid.is_none() && set.mode.is_none() && !times {
            return Ok(());
        }
        let _assumed = self.identity.assume(caller).map_err(status)?;
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            rustix::fs::chownat(object.as_fd(), c"", uid, gid, AtFlags::EMPTY_PATH).map_err(status)?;
        }
        if let Some(mode) = set.mode {
            self.change_mode(object, mode & 0o7777).map_err(status)?;
        }
        if times {
            let times =
                Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
            rustix::fs::utimensat(object.as_fd(), c"", &times, AtFlags::EMPTY_PATH).map_err(status)?;
        }
        Ok(())
    }

    /// Waits until an object's attributes and, if it is a directory, its entries are durable.
    pub(super) fn make_durable(&self, object: &Arc<Object>) -> Result<(), Status> {
        if !self.sync || self.in_memory {
            return Ok(());
        }
        let synced = match object.kind {
            FileType::Directory => self.open_listing(object).and_then(|fd| {
                rustix::fs::fsync(&fd)?;
                self.keep_listing(object, fd);
                Ok(())
            }),
            FileType::Regular => match self.file(object, false).or_else(|_| self.file(object, true)) {
                Ok(fd) => rustix::fs::fsync(&fd),
                Err(_) => Err(Errno::ACCESS),
            },
            // Nothing else can be opened without side effects; its directory's next change takes it along.
            _ => return Ok(()),
        };
        let synced = match synced {
            // What may be changed but not opened is written out together with everything else.
            Err(Errno::ACCESS | Errno::PERM) => rustix::fs::syncfs(&self.mount),
            // Some filesystems have nothing to write out for a directory, and say so.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
            result => result,
        };
        synced.map_err(|errno| {
            self.lost_data(errno);
            status(errno)
        })
    }
}

/// Data belong to regular files.
fn regular(object: &Object) -> Result<(), Status> {
    match object.kind {
        FileType::Regular => Ok(()),
        FileType::Directory => Err(Status::ISDIR),
        _ => Err(Status::INVAL),
    }
}

fn write_at(fd: &OwnedFd, offset: u64, data: &[u8], stable: Stable) -> Result<usize, Errno> {
    let flags = match stable {
        Stable::Unstable => ReadWriteFlags::empty(),
        Stable::DataSync => ReadWriteFlags::DSYNC,
        Stable::FileSync => ReadWriteFlags::DSYNC | ReadWriteFlags::SYNC,
    };
    match rustix::io::pwritev2(fd, &[IoSlice::new(data)], offset, flags) {
        Err(Errno::OPNOTSUPP) if !flags.is_empty() => {
            let count = rustix::io::pwrite(fd, data, offset)?;
            match stable {
                Stable::FileSync => rustix::fs::fsync(fd)?,
                _ => rustix::fs::fdatasync(fd)?,
            }
            Ok(count)
        }
        result => result,
    }
}

fn timespec(time: SetTime) -> Timespec {
    match time {
        SetTime::DontChange => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        SetTime::Server => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        SetTime::Client(NfsTime { seconds, nanos }) => {
            Timespec { tv_sec: seconds.into(), tv_nsec: nanos.into() }
        }
    }
}
