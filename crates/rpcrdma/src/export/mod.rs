//! What a server serves: the filesystem behind NFS version 3.
//!
//! # Operation
//! [`Export`] has one method per NFSv3 procedure and knows nothing of RPC, of transports or of tasks: arguments come
//! as plain values, READ fills a buffer that the caller owns, WRITE takes a borrowed slice, and READDIR hands its
//! entries to an [`EntrySink`] one by one. Two implementations live here: [`LocalExport`] serves a directory of the
//! machine, [`MemoryExport`] a tree that exists in memory only. [`Exports`] is the table of a server's exports, with
//! their names and [`ExportRules`]; it says which export a MOUNT path or a file handle belongs to, and what
//! [`Caller`] a peer's credentials become there.
//!
//! Methods are synchronous, because the system calls under them are. A server calls those that normally cost
//! microseconds on the task that received the Call and moves the others to a pool of threads; [`Export::may_block`]
//! tells which is which, and a READ may be tried first with [`Patience::Now`].
//!
//! # Ownership
//! An export keeps no reference to any argument after a method returned. Data buffers belong to the caller and may be
//! registered memory, provided that no peer may write it at that time.
//!
//! # When it breaks
//! Every failure is an NFS [`Status`] that says what is wrong, together with the attributes that the protocol reports
//! with failures, inside an [`Outcome`]. A handle that was not made with the export's key is [`Status::BADHANDLE`],
//! one whose object is gone is [`Status::STALE`]. Nothing a client sends makes a method panic.
//!
//! # Limits
//! Handles have at most 64 bytes, names 255, symlink targets 4095, callers 16 supplementary groups.

mod access;
mod exports;
mod handle;
mod local;
mod memory;

use std::ops::ControlFlow;

use rpcrdma_nfs::v3::{
    AccessMask, Attributes, CookieVerifier, CreateMode, CreateVerifier, FileType, FsInfo, FsStat, Handle,
    NfsTime, NodeKind, PathConf, Proc, SetAttributes, SetTime, Stable, Status, WccAttr, WccData,
    WriteVerifier,
};

pub use access::{Caller, Credentials, Denied, ExportRules, Squash, UnknownSquash};
pub use exports::{ExportEntry, Exports, NameTaken};
pub use handle::{ExportId, HandleKey};
pub use local::{LocalError, LocalExport, LocalOptions, Resolution, RunAs};
pub use memory::{Clock, LogicalClock, MemoryExport, MemoryOptions, SystemClock};

/// What an operation did, and the attributes that NFS reports with it, be it a success or a failure.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<T, A> {
    /// The result proper. [`Status::OK`] never stands in `Err`.
    pub result: Result<T, Status>,
    /// Attributes of the objects the operation was about; what could not be had is `None`.
    pub attrs: A,
}

/// [`Outcome`] of an operation that changes nothing: the object's attributes after it.
pub type Looked<T> = Outcome<T, Option<Attributes>>;

/// [`Outcome`] of an operation that changes an object: its attributes before and after.
pub type Changed<T> = Outcome<T, WccData>;

impl<T, A: Default> Outcome<T, A> {
    /// A failure about whose object nothing is known.
    pub fn fail(status: Status) -> Self {
        Self { result: Err(status), attrs: A::default() }
    }
}

impl<T, A> Outcome<T, A> {
    /// What was done, with its attributes.
    pub const fn new(result: Result<T, Status>, attrs: A) -> Self {
        Self { result, attrs }
    }

    /// The wire status of the result.
    pub const fn status(&self) -> Status {
        match &self.result {
            Ok(_) => Status::OK,
            Err(status) => *status,
        }
    }
}

/// An object that LOOKUP found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its handle.
    pub handle: Handle,
    /// Its attributes.
    pub attrs: Option<Attributes>,
}

/// An object that CREATE, MKDIR, SYMLINK or MKNOD made. A field is `None` when the object vanished right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its handle.
    pub handle: Option<Handle>,
    /// Its attributes.
    pub attrs: Option<Attributes>,
}

/// What READ put into the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDone {
    /// Bytes, from the front of the buffer.
    pub count: usize,
    /// Whether these bytes reach the end of the file.
    pub eof: bool,
}

/// A READ would have had to wait, and was told not to ([`Patience::Now`]). The buffer may have been written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WouldBlock;

/// Whether an operation may wait for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Give up rather than wait.
    Now,
    /// Wait as long as it takes.
    Wait,
}

/// What WRITE did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes taken, from the front of the data; 0 only if there were none.
    pub count: usize,
    /// How durable they are: never less than was asked for.
    pub committed: Stable,
    /// The server instance that acknowledged them.
    pub verifier: WriteVerifier,
}

/// Where to start listing a directory, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDir {
    /// 0, or the cookie of the last entry that was taken.
    pub cookie: u64,
    /// As [`EntrySink::begin`] gave it for the listing's first part; zero at its start.
    pub verifier: CookieVerifier,
    /// Whether entries shall have attributes and handles (READDIRPLUS).
    pub plus: bool,
    /// About how many bytes of entries the client has room for. A hint for how far to read ahead, no limit.
    pub room: usize,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Name: not empty, no `/`, no NUL.
    pub name: &'a [u8],
    /// The object's number within its filesystem; never 0.
    pub fileid: u64,
    /// Continues the listing after this entry; never 0, unique within a listing.
    pub cookie: u64,
    /// Attributes, if they were asked for and could be had.
    pub attrs: Option<Attributes>,
    /// Handle, if it was asked for and could be had.
    pub handle: Option<Handle>,
}

/// Takes the entries of a directory, normally straight into a Reply.
pub trait EntrySink {
    /// Called once before the first entry, and only if the listing succeeds so far.
    fn begin(&mut self, dir: Option<Attributes>, verifier: CookieVerifier);

    /// Takes an entry, or breaks because there is no room for it: that entry is then not part of the listing, and
    /// the listing ends here.
    fn entry(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()>;
}

/// A filesystem that can be served over NFS version 3.
///
/// Each method is one procedure of RFC 1813 section 3.3. `caller` is the identity *after* squashing, see
/// [`ExportRules::caller`]; if it is [read-only](Caller::read_only), whatever would change something is
/// [`Status::ROFS`]. Names are checked here, so callers pass them on as they came.
///
/// Everybody may fail with `BADHANDLE`, `STALE`, `IO`, `JUKEBOX` and `SERVERFAULT`.
pub trait Export: Send + Sync + 'static {
    /// Names this export in its handles: stable across restarts, different from all other exports of the server.
    fn id(&self) -> ExportId;

    /// Handle of the root directory.
    fn root(&self) -> Handle;

    /// Whether this operation is likely to wait for a device or to work for long, so that it belongs on a thread that
    /// may wait. `stable` matters for WRITE only. READs are better tried with [`Patience::Now`].
    fn may_block(&self, proc: Proc, object: &Handle, stable: Stable) -> bool;

    /// GETATTR: attributes of any object.
    ///
    /// # Errors
    /// Only what everybody may fail with.
    fn getattr(&self, caller: &Caller, object: &Handle) -> Result<Attributes, Status>;

    /// SETATTR: changes attributes, if the object's ctime still is `guard`. What is asked for is applied in the order
    /// size, owner, mode, times, and stops at the first error; it is not undone.
    fn setattr(
        &self,
        caller: &Caller,
        object: &Handle,
        set: &SetAttributes,
        guard: Option<NfsTime>,
    ) -> Changed<()>;

    /// LOOKUP: finds a name in a directory, including `.` and `..`; `..` of the root is the root.
    fn lookup(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Looked<Found>;

    /// ACCESS: which of the rights in `wanted` the caller has.
    fn access(&self, caller: &Caller, object: &Handle, wanted: AccessMask) -> Looked<AccessMask>;

    /// READLINK: appends a symlink's target to `target`.
    fn readlink(&self, caller: &Caller, object: &Handle, target: &mut Vec<u8>) -> Looked<()>;

    /// READ: fills `buf` from `offset` on. Fewer bytes than asked for come only at the end of the file.
    ///
    /// # Errors
    /// [`WouldBlock`] if that would have to wait and `patience` is [`Patience::Now`].
    fn read(
        &self,
        caller: &Caller,
        file: &Handle,
        offset: u64,
        buf: &mut [u8],
        patience: Patience,
    ) -> Result<Looked<ReadDone>, WouldBlock>;

    /// WRITE: writes `data` at `offset`, as durable as `stable` says.
    fn write(
        &self,
        caller: &Caller,
        file: &Handle,
        offset: u64,
        data: &[u8],
        stable: Stable,
    ) -> Changed<Written>;

    /// CREATE: makes a regular file. The attributes are the directory's.
    fn create(&self, caller: &Caller, dir: &Handle, name: &[u8], how: &CreateMode) -> Changed<Created>;

    /// MKDIR: makes a directory.
    fn mkdir(&self, caller: &Caller, dir: &Handle, name: &[u8], set: &SetAttributes) -> Changed<Created>;

    /// SYMLINK: makes a symlink. Its target is not interpreted.
    fn symlink(
        &self,
        caller: &Caller,
        dir: &Handle,
        name: &[u8],
        set: &SetAttributes,
        target: &[u8],
    ) -> Changed<Created>;

    /// MKNOD: makes a device, a socket or a named pipe.
    fn mknod(&self, caller: &Caller, dir: &Handle, name: &[u8], kind: &NodeKind) -> Changed<Created>;

    /// REMOVE: removes a name that is not a directory's.
    fn remove(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Changed<()>;

    /// RMDIR: removes an empty directory.
    fn rmdir(&self, caller: &Caller, dir: &Handle, name: &[u8]) -> Changed<()>;

    /// RENAME: the attributes are those of the directory the object leaves, and of the one it enters.
    fn rename(
        &self,
        caller: &Caller,
        from: (&Handle, &[u8]),
        to: (&Handle, &[u8]),
    ) -> Outcome<(), (WccData, WccData)>;

    /// LINK: gives `object` another name. The attributes are the object's, and the directory's.
    fn link(
        &self,
        caller: &Caller,
        object: &Handle,
        dir: &Handle,
        name: &[u8],
    ) -> Outcome<(), (Option<Attributes>, WccData)>;

    /// READDIR and READDIRPLUS: gives the entries after `from.cookie` to `sink`, until it has no more room or the
    /// directory ends. `Ok(true)` means that the directory ended. An entry that exists during the whole listing comes
    /// exactly once, whatever happens to other entries meanwhile. `.` and `..` are included.
    fn readdir(
        &self,
        caller: &Caller,
        dir: &Handle,
        from: &ReadDir,
        sink: &mut dyn EntrySink,
    ) -> Looked<bool>;

    /// FSSTAT: how full the filesystem is.
    fn fsstat(&self, caller: &Caller, object: &Handle) -> Looked<FsStat>;

    /// FSINFO: what the filesystem can do. The server lowers transfer sizes to what its transports carry.
    fn fsinfo(&self, caller: &Caller, object: &Handle) -> Looked<FsInfo>;

    /// PATHCONF: limits on names and links.
    fn pathconf(&self, caller: &Caller, object: &Handle) -> Looked<PathConf>;

    /// COMMIT: makes unstable writes durable, at least those in the given range; `count` 0 means to the end.
    fn commit(&self, caller: &Caller, file: &Handle, offset: u64, count: u32) -> Changed<WriteVerifier>;
}

/// Largest READ and WRITE an export offers.
const TRANSFER_MAX: u32 = 1 << 20;

/// Most bytes in a symlink's target.
const TARGET_MAX: usize = 4095;

/// What both exports say in FSINFO.
fn fsinfo_of(maxfilesize: u64) -> FsInfo {
    FsInfo {
        rtmax: TRANSFER_MAX,
        rtpref: TRANSFER_MAX,
        rtmult: 4096,
        wtmax: TRANSFER_MAX,
        wtpref: TRANSFER_MAX,
        wtmult: 4096,
        dtpref: TRANSFER_MAX,
        maxfilesize,
        time_delta: NfsTime { seconds: 0, nanos: 1 },
        properties: FsInfo::FSF_LINK | FsInfo::FSF_SYMLINK | FsInfo::FSF_HOMOGENEOUS | FsInfo::FSF_CANSETTIME,
    }
}

/// What both exports say in PATHCONF.
fn pathconf_of(linkmax: u32, name_max: u32) -> PathConf {
    PathConf {
        linkmax,
        name_max,
        no_trunc: true,
        chown_restricted: true,
        case_insensitive: false,
        case_preserving: true,
    }
}

/// The ACCESS bits that read, write and execute rights (4, 2, 1) on an object of this type amount to.
fn access_mask(file_type: FileType, rights: u32, read_only: bool) -> AccessMask {
    let mut mask = AccessMask::default();
    let directory = file_type == FileType::Directory;
    if rights & 4 != 0 {
        mask |= AccessMask::READ;
    }
    if rights & 2 != 0 && !read_only {
        mask |= AccessMask::MODIFY | AccessMask::EXTEND;
        if directory {
            mask |= AccessMask::DELETE;
        }
    }
    if rights & 1 != 0 {
        mask |= if directory { AccessMask::LOOKUP } else { AccessMask::EXECUTE };
    }
    mask
}

/// Whether a name is one of the two that every directory has.
fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// The name check of everything that makes an entry: the two dots exist already.
fn check_new_name(name: &[u8]) -> Result<(), Status> {
    rpcrdma_nfs::v3::check_name(name)?;
    if is_dot(name) { Err(Status::EXIST) } else { Ok(()) }
}

/// The name check of RENAME, for either side.
fn check_rename(name: &[u8]) -> Result<(), Status> {
    rpcrdma_nfs::v3::check_name(name)?;
    if is_dot(name) { Err(Status::INVAL) } else { Ok(()) }
}

/// The name check of REMOVE: both dots are directories.
fn check_remove(name: &[u8]) -> Result<(), Status> {
    rpcrdma_nfs::v3::check_name(name)?;
    if is_dot(name) { Err(Status::ISDIR) } else { Ok(()) }
}

/// The name check of RMDIR (RFC 1813 section 3.3.13 gives the two dots a status each).
fn check_rmdir(name: &[u8]) -> Result<(), Status> {
    rpcrdma_nfs::v3::check_name(name)?;
    match name {
        b"." => Err(Status::INVAL),
        b".." => Err(Status::EXIST),
        _ => Ok(()),
    }
}

/// The check of a symlink's target.
fn check_target(target: &[u8]) -> Result<(), Status> {
    if target.len() > TARGET_MAX {
        Err(Status::NAMETOOLONG)
    } else if target.is_empty() || target.contains(&0) {
        Err(Status::INVAL)
    } else {
        Ok(())
    }
}

/// The check of attributes to set: times have less than a second of nanoseconds.
fn check_set(set: &SetAttributes) -> Result<(), Status> {
    for time in [set.atime, set.mtime] {
        if matches!(time, SetTime::Client(t) if !t.is_valid()) {
            return Err(Status::INVAL);
        }
    }
    Ok(())
}

/// Where an exclusive CREATE leaves its verifier so that a retry is recognised: its halves in the seconds of mtime and
/// atime, without the top bits, because many filesystems keep times as signed numbers; and the second half once more in
/// the nanoseconds of mtime, because a reader moves atime.
struct VerifierTimes {
    mtime: NfsTime,
    atime: NfsTime,
}

impl VerifierTimes {
    fn new(verifier: CreateVerifier) -> Self {
        let [a, b, c, d, e, f, g, h] = verifier.0;
        let (first, second) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        let seconds = |half| half & 0x7fff_ffff;
        Self {
            mtime: NfsTime { seconds: seconds(first), nanos: second % 1_000_000_000 },
            atime: NfsTime { seconds: seconds(second), nanos: 0 },
        }
    }

    /// What SETATTR leaves them with.
    fn set(&self) -> SetAttributes {
        SetAttributes {
            atime: SetTime::Client(self.atime),
            mtime: SetTime::Client(self.mtime),
            ..SetAttributes::default()
        }
    }

    /// Whether a file has them. Some filesystems keep no nanoseconds; there atime has to do.
    fn are_on(&self, mtime: NfsTime, atime: NfsTime) -> bool {
        mtime == self.mtime || (mtime.seconds, atime.seconds) == (self.mtime.seconds, self.atime.seconds)
    }
}

/// Both sides of weak cache consistency.
fn wcc(before: Option<WccAttr>, after: Option<Attributes>) -> WccData {
    WccData { before, after }
}

#[cfg(test)]
mod conformance;
