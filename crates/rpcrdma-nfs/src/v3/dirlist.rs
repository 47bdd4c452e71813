//! Directory listings: the results of READDIR and READDIRPLUS.
//!
//! # Operation
//! A server appends entries one by one with [`DirWriter`], which knows the client's byte budget and says when the
//! next entry does not fit. A client gets [`Entries`] or [`EntriesPlus`]: the list is checked once, when the result
//! is decoded, and iterating it afterwards can neither fail nor allocate. Names borrow from the message.
//!
//! # Budgets
//! READDIR's `count` and READDIRPLUS' `maxcount` bound everything behind the status word: attributes, verifier,
//! entries, the end of the list and the eof word. `dircount` bounds file ids, names and cookies only.
//!
//! # Limits
//! Names come from the peer: a client that makes paths of them has to pass each through
//! [`check_name`](super::types::check_name) first.

use rpcrdma_proto::xdr::{Encode, Writer, padded};

use super::field::{Put, message};
use super::status::Status;
use super::types::{Attributes, CookieVerifier, Handle};
use crate::list::list;

message! {
    /// One entry of READDIR.
    pub struct Entry<'a> {
        /// The object's number within its file system.
        pub fileid: u64,
        /// The name.
        pub name: &'a [u8],
        /// Continues the listing behind this entry.
        pub cookie: u64,
    }
}

message! {
    /// One entry of READDIRPLUS.
    pub struct EntryPlus<'a> {
        /// What READDIR would say.
        pub entry: Entry<'a>,
        /// The object's attributes.
        pub attributes: Option<Attributes>,
        /// The object's handle.
        pub handle: Option<Handle>,
    }
}

list! {
    /// The entries of READDIR.
    Entries, Entry
}

list! {
    /// The entries of READDIRPLUS.
    EntriesPlus, EntryPlus
}

/// What became of an entry that was to be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Push {
    /// It is in.
    Added,
    /// It does not fit, and no later one should be tried: the listing has to be finished without eof.
    Full,
}

/// Writes the result of READDIR or READDIRPLUS, status word included, within the client's budget.
#[derive(Debug)]
pub struct DirWriter<'w> {
    w: &'w mut Writer,
    /// Where the status word is.
    start: usize,
    attributes: Option<Attributes>,
    /// Bytes left for entries, the two final words already set aside; `None` if not even the head fits.
    room: Option<usize>,
    /// Bytes of file ids, names and cookies left.
    dir_room: usize,
    any: bool,
    full: bool,
}

/// The end of the list and the eof word.
const TAIL: usize = 8;

impl<'w> DirWriter<'w> {
    /// Begins a READDIR result of at most `count` bytes behind the status word.
    ///
    /// Attributes that would take the room away from a small `count` are left out.
    pub fn readdir(
        w: &'w mut Writer,
        attributes: Option<Attributes>,
        verifier: CookieVerifier,
        count: u32,
    ) -> Self {
        Self::new(w, attributes, verifier, u32::MAX, count)
    }

    /// Begins a READDIRPLUS result of at most `maxcount` bytes behind the status word, of which at most `dircount`
    /// are file ids, names and cookies.
    pub fn readdirplus(
        w: &'w mut Writer,
        attributes: Option<Attributes>,
        verifier: CookieVerifier,
        dircount: u32,
        maxcount: u32,
    ) -> Self {
        Self::new(w, attributes, verifier, dircount, maxcount)
    }

    fn new(
        w: &'w mut Writer,
        attributes: Option<Attributes>,
        verifier: CookieVerifier,
        dircount: u32,
        count: u32,
    ) -> Self {
        let start = w.len();
        Status::OK.encode(w);
        let head = w.len();
        let fits = count as usize >= 4 + Attributes::WIRE_LEN + verifier.0.len() + TAIL;
        attributes.filter(|_| fits).put(w);
        verifier.put(w);
        let room = (count as usize).checked_sub(w.len() - head + TAIL);
        Self { w, start, attributes, room, dir_room: dircount as usize, any: false, full: false }
    }

    /// Appends an entry to a READDIR result.
    pub fn push(&mut self, entry: &Entry<'_>) -> Push {
        self.append(entry.name.len(), entry)
    }

    /// Appends an entry to a READDIRPLUS result.
    pub fn push_plus(&mut self, entry: &EntryPlus<'_>) -> Push {
        self.append(entry.entry.name.len(), entry)
    }

    fn append(&mut self, name_len: usize, entry: &impl Encode) -> Push {
        // Only what the client's dircount is about; attributes and handle count against the whole.
        let dir_bytes = 8 + 4 + padded(name_len) + 8;
        let Some(room) =
            self.room.filter(|r| !self.full && 4 + dir_bytes <= *r && dir_bytes <= self.dir_room)
        else {
            self.full = true;
            return Push::Full;
        };
        let at = self.w.len();
        self.w.bool(true);
        entry.encode(self.w);
        let Some(left) = room.checked_sub(self.w.len() - at) else {
            self.w.truncate(at);
            self.full = true;
            return Push::Full;
        };
        self.room = Some(left);
        self.dir_room -= dir_bytes;
        self.any = true;
        Push::Added
    }

    /// Whether an entry has been appended.
    #[must_use]
    pub fn any(&self) -> bool {
        self.any
    }

    /// Ends the listing; `eof` says that the directory has no more entries.
    ///
    /// A listing with neither an entry nor the end would make a client ask forever; it becomes the failure
    /// [`Status::TOOSMALL`]. Returns the status that was written.
    pub fn finish(self, eof: bool) -> Status {
        // An entry that was refused is still to come, whatever the caller believes.
        let eof = eof && !self.full;
        if self.room.is_none() || !(self.any || eof) {
            return self.fail(Status::TOOSMALL);
        }
        self.w.bool(false);
        self.w.bool(eof);
        Status::OK
    }

    /// Gives the listing up and writes a failure in its place. Returns the status that was written.
    pub fn fail(self, status: Status) -> Status {
        let status = if status.is_ok() { Status::SERVERFAULT } else { status };
        self.w.truncate(self.start);
        status.encode(self.w);
        self.attributes.put(self.w);
        status
    }
}

impl<'a> Entries<'a> {
    /// The last entry's cookie, which continues the listing; `None` if there are no entries.
    #[must_use]
    pub fn last_cookie(self) -> Option<u64> {
        self.last().map(|e| e.cookie)
    }
}

impl<'a> EntriesPlus<'a> {
    /// The last entry's cookie, which continues the listing; `None` if there are no entries.
    #[must_use]
    pub fn last_cookie(self) -> Option<u64> {
        self.last().map(|e| e.entry.cookie)
    }
}
