//! Directory listings, as the kernel pages through them.
//!
//! # Operation
//! An open directory fetches the server's listing page by page and hands it out in whatever portions the kernel asks
//! for. The kernel's position is the index of an entry; for each index the server's cookie is kept, so that a program
//! may go back to any position it has seen. Position 0 begins anew, with what the directory holds then.
//!
//! # Limits
//! [`ENTRIES_MAX`] entries in one listing, 8 bytes of memory each.

use std::sync::Arc;

use fuser::Errno;
use rpcrdma::{
    client::{DirEntry, Mount},
    error::Error,
    nfs::v3::{CookieVerifier, Handle, Status},
};

use crate::{
    inode::{Inode, Inodes},
    serve::Fail,
    shared::{Shared, Shown},
    user::User,
};

/// Entries of one listing.
const ENTRIES_MAX: usize = 1 << 26;
/// Bytes asked for at a time.
const PAGE: u32 = 64 << 10;

/// A directory that somebody has opened.
pub(crate) struct OpenDir {
    pub(crate) inode: Arc<Inode>,
    pub(crate) user: Arc<User>,
    pub(crate) listing: tokio::sync::Mutex<Listing>,
}

/// How far a directory has been read.
#[derive(Default)]
pub(crate) struct Listing {
    /// The cookie of each entry so far.
    cookies: Vec<u64>,
    /// Index of the first entry of the page.
    first: usize,
    page: Vec<DirEntry>,
    /// Where the next page begins.
    next: u64,
    verifier: CookieVerifier,
    eof: bool,
    started: bool,
    /// [`Writer::epoch`](crate::write::Writer::epoch) from before the page was asked for.
    epoch: u64,
}

impl Listing {
    /// Forgets the page at hand if something was changed since it was asked for: the kernel would take names and
    /// attributes from before for those of now.
    fn refresh(&mut self, epoch: u64) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.page.clear();
            // A jump to wherever is asked for next.
            self.started = false;
        }
    }

    /// The entry with this index, from the page at hand or from the server. `None` behind the last one.
    async fn entry(&mut self, mount: &Mount, dir: &Inode, index: usize) -> Result<Option<&DirEntry>, Error> {
        loop {
            let behind = self.first + self.page.len();
            if (self.first..behind).contains(&index) {
                break;
            }
            if index == behind && self.eof && self.started {
                return Ok(None);
            }
            if index != behind || !self.started {
                // A jump. Where nobody has been, there is nothing.
                self.next = match index.checked_sub(1).map(|before| self.cookies.get(before)) {
                    None => 0,
                    Some(Some(cookie)) => *cookie,
                    Some(None) => return Ok(None),
                };
                // Until the page is there: a listing can be given up at any moment.
                self.started = false;
            }
            self.fetch(mount, dir, index).await?;
        }
        Ok(self.page.get(index - self.first))
    }

    async fn fetch(&mut self, mount: &Mount, dir: &Inode, index: usize) -> Result<(), Error> {
        let verifier = if self.next == 0 { CookieVerifier::default() } else { self.verifier };
        let page = match mount.readdirplus(dir.handle, self.next, verifier, PAGE).await {
            Err(e) if e.status() == Some(Status::NOTSUPP) => {
                mount.readdir(dir.handle, self.next, verifier, PAGE).await?
            }
            page => page?,
        };
        self.cookies.truncate(index);
        if self.cookies.len() + page.entries.len() > ENTRIES_MAX {
            return Err(Error::BadReply(format!("a directory of more than {ENTRIES_MAX} entries")));
        }
        self.cookies.extend(page.entries.iter().map(|e| e.cookie));
        self.first = index;
        self.page = page.entries;
        self.started = true;
        (self.next, self.verifier, self.eof) = (page.next, page.verifier, page.eof);
        Ok(())
    }
}

/// References for the kernel, which are taken back if nobody answers it.
struct Given<'a> {
    inodes: &'a Inodes,
    numbers: Vec<u64>,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        for number in &self.numbers {
            self.inodes.forget(*number, 1);
        }
    }
}

/// Positions of `.` and `..`, which are ours and not the server's.
const DOTS: u64 = 2;

impl Shared {
    /// Lists a directory from a position on. `add` takes the position behind an entry, its name, and what it is, and
    /// says that there was no room for it. With `plus` the kernel gets a reference to each object.
    pub(crate) async fn list(
        &self,
        number: u64,
        offset: u64,
        plus: bool,
        mut add: impl FnMut(u64, &[u8], &Shown) -> bool,
    ) -> Result<(), Fail> {
        let dir = self.dirs.get(number).ok_or(Fail(Errno::EBADF))?;
        let mut listing = dir.listing.lock().await;
        if offset == 0 {
            *listing = Listing::default();
        }
        listing.refresh(self.writer.epoch());
        let mut given = Given { inodes: &self.inodes, numbers: Vec::new() };
        for position in offset.. {
            let (name, shown) = match position {
                0 => (b".".to_vec(), Shown::directory(dir.inode.number)),
                1 => (b"..".to_vec(), Shown::directory(dir.inode.parent)),
                _ => match self.entry(&dir, &mut listing, position - DOTS, plus).await {
                    Ok(Some(Some(found))) => found,
                    Ok(Some(None)) => continue,
                    Ok(None) => break,
                    // What was found before is worth having; the error will come again.
                    Err(_) if position > offset => break,
                    Err(e) => return Err(e),
                },
            };
            let referred = (plus && position >= DOTS).then_some(shown.attr.ino.0);
            if add(position + 1, &name, &shown) {
                referred.into_iter().for_each(|number| self.inodes.forget(number, 1));
                break;
            }
            given.numbers.extend(referred);
        }
        given.numbers.clear();
        Ok(())
    }

    /// The entry with this index; `None` behind the last one, `Some(None)` if the object has gone meanwhile.
    async fn entry(
        &self,
        dir: &OpenDir,
        listing: &mut Listing,
        index: u64,
        plus: bool,
    ) -> Result<Option<Option<(Vec<u8>, Shown)>>, Fail> {
        let index = usize::try_from(index).map_err(|_| Fail(Errno::EINVAL))?;
        let mount = &dir.user.mount;
        let Some(entry) = listing.entry(mount, &dir.inode, index).await? else {
            return Ok(None);
        };
        let DirEntry { name, mut attributes, mut handle, .. } = entry.clone();
        let mut epoch = listing.epoch;
        if attributes.is_none() || handle.is_none() {
            // Servers may leave it out, for one where another file system begins.
            epoch = self.writer.epoch();
            match mount.lookup(dir.inode.handle, &name).await {
                Err(e) if e.status() == Some(Status::NOENT) => return Ok(Some(None)),
                found => {
                    let found = found?;
                    (handle, attributes) = (Some(found.object), found.attributes);
                }
            }
        }
        let handle = handle.unwrap_or(Handle::EMPTY);
        let shown = match attributes {
            Some(attributes) if !plus => {
                Shown::unreferenced(self.inodes.number(&handle, &attributes), &attributes)
            }
            attributes => {
                let (inode, _, shown) = self.show_entry(handle, attributes, dir.inode.number, epoch).await?;
                if !plus {
                    self.inodes.forget(inode.number, 1);
                }
                shown
            }
        };
        Ok(Some(Some((name, shown))))
    }
}
