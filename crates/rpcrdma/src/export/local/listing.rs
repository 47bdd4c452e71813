//! READDIR and READDIRPLUS.
//!
//! Cookies are the directory positions that the filesystem gives out with each entry; a listing goes on by seeking
//! there. So the server keeps nothing per listing, and a client may go on after any time, or a restart. Descriptors of
//! directories that were listed lately are kept, one listing having each at a time.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rpcrdma_nfs::v3::{Attributes, CookieVerifier, Status};
use rustix::fs::{OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::super::{Caller, DirEntry, EntrySink, ReadDir};
use super::objects::{Object, status};
use super::{LocalExport, locked};

/// Most directories kept open while nobody lists them.
pub(super) const IDLE_MAX: usize = 32;
/// Bytes of entries that are read from the kernel at once, at least and at most.
const READ_AHEAD: (usize, usize) = (4096, 64 * 1024);

thread_local! {
    /// Holds entries between the kernel and the sink.
    static BUFFER: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}

impl LocalExport {
    /// The directory open for reading.
    pub(super) fn open_listing(&self, dir: &Object) -> Result<OwnedFd, Errno> {
        let idle = {
            let mut directories = locked(&self.directories);
            let at = directories.iter().position(|(id, _)| *id == dir.id);
            at.map(|at| directories.swap_remove(at).1)
        };
        idle.map_or_else(|| self.reopen(dir, OFlags::RDONLY | OFlags::DIRECTORY), Ok)
    }

    /// Keeps a directory open for whoever needs it next.
    pub(super) fn keep_listing(&self, dir: &Object, fd: OwnedFd) {
        let _too_many = {
            let mut directories = locked(&self.directories);
            let oldest = (directories.len() >= IDLE_MAX).then(|| directories.remove(0));
            directories.push((dir.id, fd));
            oldest
        };
    }

    /// Gives the entries after a cookie to a sink.
    pub(super) fn list(
        &self,
        caller: &Caller,
        dir: &Arc<Object>,
        attrs: &Attributes,
        from: &ReadDir,
        sink: &mut dyn EntrySink,
    ) -> Result<bool, Status> {
        if !dir.is_directory() {
            return Err(Status::NOTDIR);
        }
        self.check(caller, dir, attrs, 4)?;
        let plus = from.plus && self.rights(caller, dir, attrs, 1)? != 0;
        let fd = self.open_listing(dir).map_err(status)?;
        let (given, result) = self.list_open(dir, &fd, attrs, from, plus, sink);
        // Where nothing was read the filesystem may not have noticed where it was to read. ext4, if asked for the end
        // first, goes on to find nothing at the beginning.
        if given {
            self.keep_listing(dir, fd);
        }
        result
    }

    /// Says whether there was an entry, and what READDIR says of the end.
    fn list_open(
        &self,
        dir: &Arc<Object>,
        fd: &OwnedFd,
        attrs: &Attributes,
        from: &ReadDir,
        plus: bool,
        sink: &mut dyn EntrySink,
    ) -> (bool, Result<bool, Status>) {
        if rustix::fs::seek(fd, SeekFrom::Start(from.cookie)).is_err() {
            return (false, Err(Status::BAD_COOKIE));
        }
        let mut buffer = BUFFER.take();
        buffer.reserve(from.room.clamp(READ_AHEAD.0, READ_AHEAD.1));
        let room = from.room.clamp(READ_AHEAD.0, READ_AHEAD.1).min(buffer.capacity());
        let mut entries = RawDir::new(fd.as_fd(), &mut buffer.spare_capacity_mut()[..room]);
        let mut begun = false;
        let result = loop {
            let entry = match entries.next() {
                None => break Ok(true),
                Some(Err(Errno::NOENT)) => break Err(Status::STALE),
                // A position that this filesystem never gave out.
                Some(Err(Errno::INVAL)) if !begun => break Err(Status::BAD_COOKIE),
                Some(Err(errno)) => break Err(status(errno)),
                Some(Ok(entry)) => entry,
            };
            if !begun {
                begun = true;
                sink.begin(Some(*attrs), CookieVerifier::default());
            }
            let name = entry.file_name().to_bytes();
            // The kernel tells the number of the directory above the export, which is nobody's business here.
            let above = name == b".." && dir.id == self.root.id;
            let fileid = if above { self.root_identity.2 } else { entry.ino() };
            let mut given =
                DirEntry { name, fileid, cookie: entry.next_entry_cookie(), attrs: None, handle: None };
            if plus && let Ok((object, attrs)) = self.child(dir, name) {
                given.attrs = Some(attrs);
                given.fileid = attrs.fileid;
                given.handle = Some(self.handle_of(&object.id));
            }
            if sink.entry(&given).is_break() {
                break Ok(false);
            }
        };
        if !begun && result == Ok(true) {
            sink.begin(Some(*attrs), CookieVerifier::default());
        }
        BUFFER.set(buffer);
        (begun, result)
    }
}
