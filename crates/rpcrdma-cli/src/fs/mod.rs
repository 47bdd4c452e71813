//! The two ends of a copy: local directories and directories of an NFS server, behind one set of operations.
//!
//! # Operation
//! A [`Dir`] is a directory that is held by descriptor or by handle, never by path; everything is reached one name at a
//! time and no symlink is followed on the way. So a server that changes its mind about what a name is cannot lead a
//! copy out of its destination. Local operations run on the runtime's blocking threads.
//!
//! # Ownership
//! Data moves in [`Region`]s that are passed in and come back, so the same few regions carry a file of any size.

mod local;
mod remote;

use std::{fmt, io};

use rpcrdma::{
    fabric::Region,
    nfs::v3::{FileType, Handle, NfsTime, Status, WriteVerifier},
};

pub(crate) use local::LocalDir;
pub(crate) use remote::{NfsDir, Server};

/// What went wrong on either end.
#[derive(Debug)]
pub(crate) enum FsError {
    Local(io::Error),
    Remote(rpcrdma::error::Error),
}

impl FsError {
    /// The error's number as the operating system counts.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Local(e) => e.raw_os_error(),
            Self::Remote(e) => Some(e.errno()),
        }
    }

    /// Whether nothing has this name.
    pub(crate) fn is_not_found(&self) -> bool {
        self.errno() == Some(rustix::io::Errno::NOENT.raw_os_error())
    }

    /// Whether something has this name already.
    pub(crate) fn is_exists(&self) -> bool {
        self.errno() == Some(rustix::io::Errno::EXIST.raw_os_error())
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(e) => e.fmt(f),
            Self::Remote(e) => e.fmt(f),
        }
    }
}

impl From<io::Error> for FsError {
    fn from(e: io::Error) -> Self {
        Self::Local(e)
    }
}

impl From<rustix::io::Errno> for FsError {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Local(e.into())
    }
}

impl From<rpcrdma::error::Error> for FsError {
    fn from(e: rpcrdma::error::Error) -> Self {
        Self::Remote(e)
    }
}

impl From<FsError> for crate::failure::Reason {
    fn from(e: FsError) -> Self {
        match e {
            FsError::Local(e) => e.into(),
            FsError::Remote(e) => e.into(),
        }
    }
}

/// What kind of object a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Block,
    Char,
    Fifo,
    Socket,
}

impl From<FileType> for Kind {
    fn from(t: FileType) -> Self {
        match t {
            FileType::Regular => Self::File,
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::Block => Self::Block,
            FileType::Character => Self::Char,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
        }
    }
}

impl Kind {
    /// The letter that `ls -l` begins with.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Dir => 'd',
            Self::Symlink => 'l',
            Self::Block => 'b',
            Self::Char => 'c',
            Self::Fifo => 'p',
            Self::Socket => 's',
        }
    }

    /// In words.
    /// Whether it is neither data nor a name for something else.
    pub(crate) fn is_special(self) -> bool {
        matches!(self, Self::Block | Self::Char | Self::Fifo | Self::Socket)
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::File => "regular file",
            Self::Dir => "directory",
            Self::Symlink => "symbolic link",
            Self::Block => "block device",
            Self::Char => "character device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub(crate) secs: i64,
    pub(crate) nanos: u32,
}

impl Time {
    /// As NFSv3 can say it: from 1970 to 2106.
    pub(crate) fn to_nfs(self) -> NfsTime {
        match u32::try_from(self.secs) {
            Ok(secs) => NfsTime::new(secs, self.nanos.min(999_999_999)),
            Err(_) if self.secs < 0 => NfsTime::new(0, 0),
            Err(_) => NfsTime::new(u32::MAX, 0),
        }
    }

    /// Whether this, read back from a file, may be `set`, which was stored there: file systems keep times as exactly
    /// as they can.
    pub(crate) fn may_be(self, set: Self) -> bool {
        let set = Self::from(set.to_nfs());
        self == set || (self.secs == set.secs && self.nanos == 0)
    }
}

impl From<NfsTime> for Time {
    fn from(t: NfsTime) -> Self {
        Self { secs: i64::from(t.seconds), nanos: t.nanos.min(999_999_999) }
    }
}

/// What there is to know of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) kind: Kind,
    /// The low 12 bits.
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    /// Bytes allocated.
    pub(crate) used: u64,
    pub(crate) rdev: (u32, u32),
    /// File system and number in it.
    pub(crate) id: (u64, u64),
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
}

/// Something that a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object {
    pub(crate) meta: Meta,
    /// On a server.
    pub(crate) handle: Option<Handle>,
}

/// An object with its name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) object: Object,
}

/// Attributes to set; what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    pub(crate) mode: Option<u32>,
    /// User and group.
    pub(crate) owner: Option<(u32, u32)>,
    /// Last access and last change.
    pub(crate) times: Option<(Time, Time)>,
    pub(crate) size: Option<u64>,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.mode.is_none() && self.owner.is_none() && self.times.is_none() && self.size.is_none()
    }
}

/// Special files that a copy can make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Special {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) rdev: (u32, u32),
}

/// A directory on either end. Clones are the same directory.
#[derive(Clone)]
pub(crate) enum Dir {
    Local(LocalDir),
    Nfs(NfsDir),
}

/// Reads a directory page by page.
pub(crate) enum Lister {
    Local(local::Lister),
    Nfs(remote::Lister),
}

/// A file open for reading.
#[derive(Clone)]
pub(crate) enum Source {
    Local(local::File),
    Nfs(remote::File),
}

/// A file open for writing.
#[derive(Clone)]
pub(crate) enum Sink {
    Local(local::File),
    Nfs(remote::File),
}

/// How durable a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// As durable as it gets here.
    Done,
    /// It may be lost until it is committed under this verifier.
    Until(WriteVerifier),
}

/// Runs an operation on the object behind the enum.
macro_rules! either {
    ($self:expr, $d:ident => $e:expr) => {
        match $self {
            Self::Local($d) => $e,
            Self::Nfs($d) => $e,
        }
    };
}

impl Dir {
    /// Starts to list the directory.
    pub(crate) fn list(&self) -> Lister {
        match self {
            Self::Local(d) => Lister::Local(d.list()),
            Self::Nfs(d) => Lister::Nfs(d.list()),
        }
    }

    /// The directory itself.
    pub(crate) async fn meta(&self) -> Result<Meta, FsError> {
        either!(self, d => d.meta().await)
    }

    /// What `name` stands for, if anything.
    pub(crate) async fn find(&self, name: &[u8]) -> Result<Option<Object>, FsError> {
        let found = either!(self, d => d.find(name).await);
        match found {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The directory that `name`, found as `object`, stands for.
    pub(crate) async fn enter(&self, name: &[u8], object: &Object) -> Result<Self, FsError> {
        Ok(match self {
            Self::Local(d) => Self::Local(d.enter(name).await?),
            Self::Nfs(d) => Self::Nfs(d.enter(name, object).await?),
        })
    }

    /// Makes a directory that only we may use, or takes the one that has this name. Says whether it was made.
    pub(crate) async fn make_dir(&self, name: &[u8]) -> Result<(Self, bool), FsError> {
        Ok(match self {
            Self::Local(d) => d.make_dir(name).await.map(|(d, new)| (Self::Local(d), new))?,
            Self::Nfs(d) => d.make_dir(name).await.map(|(d, new)| (Self::Nfs(d), new))?,
        })
    }

    /// Opens a file for reading.
    pub(crate) async fn open(&self, name: &[u8], object: &Object) -> Result<Source, FsError> {
        Ok(match self {
            Self::Local(d) => Source::Local(d.open(name).await?),
            Self::Nfs(d) => Source::Nfs(d.open(name, object).await?),
        })
    }

    /// Makes an empty file that only we may use; what had the name before, unless it is a directory, is gone.
    pub(crate) async fn create(&self, name: &[u8]) -> Result<Sink, FsError> {
        Ok(match self {
            Self::Local(d) => Sink::Local(d.create(name).await?),
            Self::Nfs(d) => Sink::Nfs(d.create(name).await?),
        })
    }

    /// Opens an existing file for writing.
    pub(crate) async fn open_to_write(&self, name: &[u8], object: &Object) -> Result<Sink, FsError> {
        Ok(match self {
            Self::Local(d) => Sink::Local(d.open_to_write(name).await?),
            Self::Nfs(d) => Sink::Nfs(d.open(name, object).await?),
        })
    }

    /// Where a symlink points to.
    pub(crate) async fn read_link(&self, name: &[u8], object: &Object) -> Result<Vec<u8>, FsError> {
        match self {
            Self::Local(d) => d.read_link(name).await,
            Self::Nfs(d) => d.read_link(name, object).await,
        }
    }

    /// Makes a symlink.
    pub(crate) async fn symlink(&self, name: &[u8], target: &[u8]) -> Result<(), FsError> {
        either!(self, d => d.symlink(name, target).await)
    }

    /// Makes a special file.
    pub(crate) async fn make_special(&self, name: &[u8], special: Special) -> Result<(), FsError> {
        either!(self, d => d.make_special(name, special).await)
    }

    /// Gives the file `name` of this directory a further name in another one. `false` if they are not on one end.
    pub(crate) async fn link(&self, name: &[u8], to: &Self, new: &[u8]) -> Result<bool, FsError> {
        match (self, to) {
            (Self::Local(d), Self::Local(to)) => d.link(name, to, new).await?,
            (Self::Nfs(d), Self::Nfs(to)) => d.link(name, to, new).await?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Gives the object `from` of this directory another name, `to`, in place of what has that name.
    pub(crate) async fn rename(&self, from: &[u8], to: &[u8]) -> Result<(), FsError> {
        either!(self, d => d.rename(from, to).await)
    }

    /// Removes a name that is not a directory's.
    pub(crate) async fn remove(&self, name: &[u8]) -> Result<(), FsError> {
        either!(self, d => d.remove(name).await)
    }

    /// Sets attributes of what `name` stands for, a symlink itself included.
    pub(crate) async fn change(&self, name: &[u8], kind: Kind, change: Change) -> Result<(), FsError> {
        either!(self, d => d.change(name, kind, change).await)
    }

    /// Sets attributes of the directory itself.
    pub(crate) async fn change_self(&self, change: Change) -> Result<(), FsError> {
        either!(self, d => d.change_self(change).await)
    }

    /// What tells one life of this file system from the next: data that was written but not yet durable survives as
    /// long as this stays the same. `None` if it is not known without a file.
    pub(crate) fn life(&self) -> Option<[u8; 16]> {
        if let Self::Local(_) = self { Some(local::boot_id()) } else { None }
    }

    /// Bytes per read or write that suit it.
    pub(crate) fn io_size(&self) -> u32 {
        match self {
            Self::Local(_) => 1 << 20,
            Self::Nfs(d) => d.io_size(),
        }
    }
}

impl Lister {
    /// The next entries, without `.` and `..`; none at the end. A name whose object vanished meanwhile is left out.
    pub(crate) async fn next(&mut self) -> Result<Vec<Entry>, FsError> {
        either!(self, l => l.next().await)
    }
}

impl Source {
    /// Reads up to `len` bytes at `at` to the region's start. Less only at the end of the file.
    pub(crate) async fn read(&self, at: u64, len: u32, buf: Region) -> Result<(u32, Region), FsError> {
        either!(self, f => f.read(at, len, buf).await)
    }

    /// The file as it is now.
    pub(crate) async fn meta(&self) -> Result<Meta, FsError> {
        either!(self, f => f.meta().await)
    }
}

impl Sink {
    /// Writes the first `len` bytes of the region at `at`, as durably as asked.
    pub(crate) async fn write(
        &self,
        at: u64,
        len: u32,
        buf: Region,
        durable: bool,
    ) -> Result<(Written, Region), FsError> {
        match self {
            Self::Local(f) => f.write(at, len, buf).await,
            Self::Nfs(f) => f.write(at, len, buf, durable).await,
        }
    }

    /// Makes what was written durable, and says under which verifier; a local file needs none.
    pub(crate) async fn commit(&self, at: u64, len: u32) -> Result<Option<WriteVerifier>, FsError> {
        match self {
            Self::Local(_) => Ok(None),
            Self::Nfs(f) => f.commit(at, len).await.map(Some),
        }
    }

    /// Sets attributes.
    pub(crate) async fn change(&self, change: Change) -> Result<(), FsError> {
        either!(self, f => f.change(change).await)
    }
}

/// The regions a copy may hold more of are gone: the connection was closed while one was out.
pub(crate) fn lost_region() -> FsError {
    FsError::Remote(rpcrdma::error::Error::Call(rpcrdma::client::CallError::Closed))
}

/// A status of the server as an error of an operation.
pub(crate) fn status_error(procedure: &'static str, status: Status) -> FsError {
    FsError::Remote(rpcrdma::error::Error::Nfs { procedure, status })
}

/// A name for people: control characters and what is not UTF-8 are escaped.
pub(crate) fn show(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_invisible(c) { out.extend(c.escape_default()) } else { out.push(c) }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

/// Characters that take no room or turn the direction of those behind them, so that a name looks like another one.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// A path of two parts, for people.
pub(crate) fn join(dir: &str, name: &[u8]) -> String {
    let slash = if dir.is_empty() || dir.ends_with('/') { "" } else { "/" };
    format!("{dir}{slash}{}", show(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_tricks() {
        assert_eq!(show(b"plain"), "plain");
        assert_eq!(show("txt.\u{202e}exe".as_bytes()), "txt.\\u{202e}exe");
        assert_eq!(show("ü\n\x1b[31m".as_bytes()), "ü\\n\\u{1b}[31m");
        assert_eq!(show(b"a\xffb"), "a\\xffb");
        assert_eq!(join("", b"x"), "x");
        assert_eq!(join("/", b"x"), "/x");
        assert_eq!(join("a", b"x"), "a/x");
    }

    #[test]
    fn times_survive_coarse_file_systems_and_the_protocols_range() {
        let t = |secs, nanos| Time { secs, nanos };
        assert!(t(5, 7).may_be(t(5, 7)));
        assert!(t(5, 0).may_be(t(5, 7)));
        assert!(!t(5, 6).may_be(t(5, 7)));
        assert!(!t(6, 0).may_be(t(5, 7)));
        assert_eq!(t(-3, 9).to_nfs(), NfsTime::new(0, 0));
        assert_eq!(t(1 << 40, 9).to_nfs(), NfsTime::new(u32::MAX, 0));
        assert!(t(0, 0).may_be(t(-3, 9)));
    }
}
