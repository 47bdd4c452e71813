//! The basic types of NFS version 3 (RFC 1813 sections 2.2 to 2.6), with their XDR form.
//!
//! Everything here is a small `Copy` value that owns its bytes; what is variable and large (names, paths, data)
//! appears in [`args`](super::args) and [`results`](super::results) as a borrowed slice. Names and paths are byte
//! strings: NFS gives them no character set.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::ops::{BitAnd, BitOr, BitOrAssign, Not};

use rpcrdma_proto::xdr::{Decode, Encode, Reader, Writer, XdrError};

use super::status::Status;

/// RPC program number of NFS.
pub const PROGRAM: u32 = 100_003;
/// Version number of the protocol in this module.
pub const VERSION: u32 = 3;
/// Port of NFS over TCP.
pub const PORT_TCP: u16 = 2049;
/// Port of NFS over RPC-over-RDMA (RFC 8267 section 6).
pub const PORT_RDMA: u16 = 20049;
/// Most bytes in a file handle.
pub const HANDLE_MAX: usize = 64;
/// Most bytes in one file name that is not answered with `NAMETOOLONG`.
pub const NAME_MAX: usize = 255;
/// Most bytes in a symlink's target; also the most that a name may have and still decode.
pub const PATH_MAX: usize = 4096;
/// Bytes in cookie, create and write verifiers.
pub const VERIFIER_LEN: usize = 8;

/// A file handle: up to 64 opaque bytes that the server chose.
///
/// An empty one decodes; no server hands one out, so servers answer it with
/// [`BADHANDLE`](super::Status::BADHANDLE).
#[derive(Clone, Copy)]
pub struct Handle {
    bytes: [u8; HANDLE_MAX],
    len: u8,
}

impl Handle {
    /// The handle without bytes, which stands for no object.
    pub const EMPTY: Self = Self { bytes: [0; HANDLE_MAX], len: 0 };

    /// A handle of these bytes; `None` if there are more than [`HANDLE_MAX`].
    #[must_use]
    pub fn new(v: &[u8]) -> Option<Self> {
        let mut bytes = [0; HANDLE_MAX];
        bytes.get_mut(..v.len())?.copy_from_slice(v);
        Some(Self { bytes, len: v.len() as u8 })
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether it has no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Handle {}

impl Hash for Handle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle(")?;
        fmt::Display::fmt(self, f)?;
        f.write_str(")")
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Encode for Handle {
    fn encode(&self, w: &mut Writer) {
        w.opaque(self.as_bytes());
    }
}

impl Decode<'_> for Handle {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        let v = r.opaque(HANDLE_MAX)?;
        Self::new(v).ok_or(XdrError::TooLong { len: v.len() as u32, max: HANDLE_MAX })
    }
}

/// Whether `name` may name a directory entry: not empty, no `/`, no NUL, at most [`NAME_MAX`] bytes.
///
/// `.` and `..` pass: LOOKUP takes them, everybody else has to refuse them.
///
/// # Errors
/// The status to answer: [`Status::INVAL`] or [`Status::NAMETOOLONG`].
pub fn check_name(name: &[u8]) -> Result<(), Status> {
    if name.len() > NAME_MAX {
        return Err(Status::NAMETOOLONG);
    }
    if name.is_empty() || name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(Status::INVAL);
    }
    Ok(())
}

/// A point in time since 1970: `nfstime3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NfsTime {
    /// Seconds.
    pub seconds: u32,
    /// Nanoseconds. A peer may send 1,000,000,000 and more; see [`NfsTime::is_valid`].
    pub nanos: u32,
}

impl NfsTime {
    /// The time of these seconds and nanoseconds.
    #[must_use]
    pub const fn new(seconds: u32, nanos: u32) -> Self {
        Self { seconds, nanos }
    }

    /// Whether the nanoseconds are below a second.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.nanos < 1_000_000_000
    }
}

impl Encode for NfsTime {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.seconds);
        w.u32(self.nanos);
    }
}

impl Decode<'_> for NfsTime {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self { seconds: r.u32()?, nanos: r.u32()? })
    }
}

/// What kind of object a file is: `ftype3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FileType {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A block device.
    Block = 3,
    /// A character device.
    Character = 4,
    /// A symbolic link.
    Symlink = 5,
    /// A socket.
    Socket = 6,
    /// A named pipe.
    Fifo = 7,
}

impl FileType {
    /// The type of this wire value.
    #[must_use]
    pub const fn from_u32(v: u32) -> Option<Self> {
        Some(match v {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Block,
            4 => Self::Character,
            5 => Self::Symlink,
            6 => Self::Socket,
            7 => Self::Fifo,
            _ => return None,
        })
    }
}

impl Encode for FileType {
    fn encode(&self, w: &mut Writer) {
        w.u32(*self as u32);
    }
}

impl Decode<'_> for FileType {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        let v = r.u32()?;
        Self::from_u32(v).ok_or(XdrError::BadEnum(v))
    }
}

/// Everything a server says about an object: `fattr3`, 84 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// What kind of object it is.
    pub file_type: FileType,
    /// Permission bits and set-id bits: the low 12 bits only, no type bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes; of a symlink, its target's length.
    pub size: u64,
    /// Bytes allocated on disk.
    pub used: u64,
    /// Major and minor device numbers of a device.
    pub rdev: (u32, u32),
    /// Which file system the object is on.
    pub fsid: u64,
    /// The object's number within its file system; never 0.
    pub fileid: u64,
    /// Last access.
    pub atime: NfsTime,
    /// Last change of the data.
    pub mtime: NfsTime,
    /// Last change of data or attributes. Linux clients take it for a change counter.
    pub ctime: NfsTime,
}

impl Attributes {
    /// Bytes of the encoded form.
    pub const WIRE_LEN: usize = 84;

    /// The part that weak cache consistency compares.
    #[must_use]
    pub const fn wcc(&self) -> WccAttr {
        WccAttr { size: self.size, mtime: self.mtime, ctime: self.ctime }
    }
}

impl Encode for Attributes {
    fn encode(&self, w: &mut Writer) {
        self.file_type.encode(w);
        w.u32(self.mode);
        w.u32(self.nlink);
        w.u32(self.uid);
        w.u32(self.gid);
        w.u64(self.size);
        w.u64(self.used);
        w.u32(self.rdev.0);
        w.u32(self.rdev.1);
        w.u64(self.fsid);
        w.u64(self.fileid);
        self.atime.encode(w);
        self.mtime.encode(w);
        self.ctime.encode(w);
    }
}

impl Decode<'_> for Attributes {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            file_type: FileType::decode(r)?,
            mode: r.u32()?,
            nlink: r.u32()?,
            uid: r.u32()?,
            gid: r.u32()?,
            size: r.u64()?,
            used: r.u64()?,
            rdev: (r.u32()?, r.u32()?),
            fsid: r.u64()?,
            fileid: r.u64()?,
            atime: NfsTime::decode(r)?,
            mtime: NfsTime::decode(r)?,
            ctime: NfsTime::decode(r)?,
        })
    }
}

/// Attributes before an operation: `wcc_attr`, 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WccAttr {
    /// Length in bytes.
    pub size: u64,
    /// Last change of the data.
    pub mtime: NfsTime,
    /// Last change of data or attributes.
    pub ctime: NfsTime,
}

impl Encode for WccAttr {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.size);
        self.mtime.encode(w);
        self.ctime.encode(w);
    }
}

impl Decode<'_> for WccAttr {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self { size: r.u64()?, mtime: NfsTime::decode(r)?, ctime: NfsTime::decode(r)? })
    }
}

/// Weak cache consistency: an object before and after an operation that may have changed it.
///
/// `before` belongs there only if nothing else could come between the two; a client that finds it equal to what it
/// has cached keeps its cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WccData {
    /// Before the operation.
    pub before: Option<WccAttr>,
    /// After the operation.
    pub after: Option<Attributes>,
}

impl Encode for WccData {
    fn encode(&self, w: &mut Writer) {
        w.option(self.before, |w, v| v.encode(w));
        w.option(self.after, |w, v| v.encode(w));
    }
}

impl Decode<'_> for WccData {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self { before: r.option(WccAttr::decode)?, after: r.option(Attributes::decode)? })
    }
}

/// How SETATTR treats one time stamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SetTime {
    /// Leave it.
    #[default]
    DontChange,
    /// Set it to the server's clock.
    Server,
    /// Set it to this.
    Client(NfsTime),
}

impl Encode for SetTime {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::DontChange => w.u32(0),
            Self::Server => w.u32(1),
            Self::Client(t) => {
                w.u32(2);
                t.encode(w);
            }
        }
    }
}

impl Decode<'_> for SetTime {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        match r.u32()? {
            0 => Ok(Self::DontChange),
            1 => Ok(Self::Server),
            2 => NfsTime::decode(r).map(Self::Client),
            v => Err(XdrError::BadEnum(v)),
        }
    }
}

/// Attributes to set: `sattr3`. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length: the file is cut, or extended with zeros.
    pub size: Option<u64>,
    /// Last access.
    pub atime: SetTime,
    /// Last change of the data.
    pub mtime: SetTime,
}

impl Encode for SetAttributes {
    fn encode(&self, w: &mut Writer) {
        w.option(self.mode, Writer::u32);
        w.option(self.uid, Writer::u32);
        w.option(self.gid, Writer::u32);
        w.option(self.size, Writer::u64);
        self.atime.encode(w);
        self.mtime.encode(w);
    }
}

impl Decode<'_> for SetAttributes {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            mode: r.option(Reader::u32)?,
            uid: r.option(Reader::u32)?,
            gid: r.option(Reader::u32)?,
            size: r.option(Reader::u64)?,
            atime: SetTime::decode(r)?,
            mtime: SetTime::decode(r)?,
        })
    }
}

/// How durable written data is, or has to be: `stable_how`. Later variants promise more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stable {
    /// May be lost until COMMIT.
    #[default]
    Unstable = 0,
    /// The data is on stable storage.
    DataSync = 1,
    /// The data and all metadata are on stable storage.
    FileSync = 2,
}

impl Encode for Stable {
    fn encode(&self, w: &mut Writer) {
        w.u32(*self as u32);
    }
}

impl Decode<'_> for Stable {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        match r.u32()? {
            0 => Ok(Self::Unstable),
            1 => Ok(Self::DataSync),
            2 => Ok(Self::FileSync),
            v => Err(XdrError::BadEnum(v)),
        }
    }
}

/// A set of access rights, as ACCESS asks for and grants them. Unknown bits are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AccessMask(pub u32);

impl AccessMask {
    /// Read a file, list a directory.
    pub const READ: Self = Self(0x01);
    /// Look up names in a directory.
    pub const LOOKUP: Self = Self(0x02);
    /// Change existing data or entries.
    pub const MODIFY: Self = Self(0x04);
    /// Append data, add entries.
    pub const EXTEND: Self = Self(0x08);
    /// Delete entries of a directory.
    pub const DELETE: Self = Self(0x10);
    /// Execute a file.
    pub const EXECUTE: Self = Self(0x20);
    /// All six.
    pub const ALL: Self = Self(0x3f);

    /// Whether every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for AccessMask {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl BitOrAssign for AccessMask {
    fn bitor_assign(&mut self, rhs: Self) {
        self.0 |= rhs.0;
    }
}

impl BitAnd for AccessMask {
    type Output = Self;
    fn bitand(self, rhs: Self) -> Self {
        Self(self.0 & rhs.0)
    }
}

impl Not for AccessMask {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl Encode for AccessMask {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.0);
    }
}

impl Decode<'_> for AccessMask {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        r.u32().map(Self)
    }
}

macro_rules! verifier {
    ($(#[$doc:meta])+ $name:ident) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub [u8; VERIFIER_LEN]);

        impl Encode for $name {
            fn encode(&self, w: &mut Writer) {
                w.fixed(&self.0);
            }
        }

        impl Decode<'_> for $name {
            fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
                r.fixed().map(Self)
            }
        }
    };
}

verifier! {
    /// Names a server instance. It changes when data acknowledged as [`Stable::Unstable`] may have been lost.
    WriteVerifier
}
verifier! {
    /// Names a state of a directory: the cookies of a listing are good for as long as it stays the same.
    CookieVerifier
}
verifier! {
    /// A client's token for one exclusive CREATE, stored with the file so that a retry is recognised.
    CreateVerifier
}

/// What CREATE does with an existing file, and what it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CreateMode {
    /// An existing file is fine; of the attributes only the size is applied to it.
    Unchecked(SetAttributes),
    /// An existing file is an error.
    Guarded(SetAttributes),
    /// An existing file is an error unless it was created with the same verifier.
    Exclusive(CreateVerifier),
}

impl Encode for CreateMode {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Unchecked(a) => {
                w.u32(0);
                a.encode(w);
            }
            Self::Guarded(a) => {
                w.u32(1);
                a.encode(w);
            }
            Self::Exclusive(v) => {
                w.u32(2);
                v.encode(w);
            }
        }
    }
}

impl Decode<'_> for CreateMode {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        match r.u32()? {
            0 => SetAttributes::decode(r).map(Self::Unchecked),
            1 => SetAttributes::decode(r).map(Self::Guarded),
            2 => CreateVerifier::decode(r).map(Self::Exclusive),
            v => Err(XdrError::BadEnum(v)),
        }
    }
}

/// What MKNOD creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// A character device with major and minor number.
    Character(SetAttributes, (u32, u32)),
    /// A block device with major and minor number.
    Block(SetAttributes, (u32, u32)),
    /// A socket.
    Socket(SetAttributes),
    /// A named pipe.
    Fifo(SetAttributes),
    /// Any other type value: decodes, carries nothing, and is to be answered with
    /// [`BADTYPE`](super::Status::BADTYPE).
    Other(u32),
}

impl NodeKind {
    fn device(r: &mut Reader<'_>) -> Result<(SetAttributes, (u32, u32)), XdrError> {
        Ok((SetAttributes::decode(r)?, (r.u32()?, r.u32()?)))
    }
}

impl Encode for NodeKind {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Character(a, (major, minor)) | Self::Block(a, (major, minor)) => {
                let kind =
                    if matches!(self, Self::Block(..)) { FileType::Block } else { FileType::Character };
                kind.encode(w);
                a.encode(w);
                w.u32(*major);
                w.u32(*minor);
            }
            Self::Socket(a) => {
                FileType::Socket.encode(w);
                a.encode(w);
            }
            Self::Fifo(a) => {
                FileType::Fifo.encode(w);
                a.encode(w);
            }
            Self::Other(v) => w.u32(*v),
        }
    }
}

impl Decode<'_> for NodeKind {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        let v = r.u32()?;
        Ok(match FileType::from_u32(v) {
            Some(FileType::Character) => Self::device(r).map(|(a, d)| Self::Character(a, d))?,
            Some(FileType::Block) => Self::device(r).map(|(a, d)| Self::Block(a, d))?,
            Some(FileType::Socket) => Self::Socket(SetAttributes::decode(r)?),
            Some(FileType::Fifo) => Self::Fifo(SetAttributes::decode(r)?),
            _ => Self::Other(v),
        })
    }
}

/// How full a file system is: what FSSTAT tells besides attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FsStat {
    /// Size in bytes.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Free bytes available to the caller.
    pub available_bytes: u64,
    /// Number of file slots.
    pub total_files: u64,
    /// Free file slots.
    pub free_files: u64,
    /// Free file slots available to the caller.
    pub available_files: u64,
    /// Seconds for which the above is not expected to change; 0 if unknown.
    pub invarsec: u32,
}

impl Encode for FsStat {
    fn encode(&self, w: &mut Writer) {
        w.u64(self.total_bytes);
        w.u64(self.free_bytes);
        w.u64(self.available_bytes);
        w.u64(self.total_files);
        w.u64(self.free_files);
        w.u64(self.available_files);
        w.u32(self.invarsec);
    }
}

impl Decode<'_> for FsStat {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            total_bytes: r.u64()?,
            free_bytes: r.u64()?,
            available_bytes: r.u64()?,
            total_files: r.u64()?,
            free_files: r.u64()?,
            available_files: r.u64()?,
            invarsec: r.u32()?,
        })
    }
}

/// What a file system and its server can do: what FSINFO tells besides attributes. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FsInfo {
    /// Most that a READ returns.
    pub rtmax: u32,
    /// READ size the server likes best.
    pub rtpref: u32,
    /// READ sizes should be multiples of this.
    pub rtmult: u32,
    /// Most that a WRITE takes.
    pub wtmax: u32,
    /// WRITE size the server likes best.
    pub wtpref: u32,
    /// WRITE sizes should be multiples of this.
    pub wtmult: u32,
    /// READDIR size the server likes best.
    pub dtpref: u32,
    /// Largest file.
    pub maxfilesize: u64,
    /// Granularity of time stamps.
    pub time_delta: NfsTime,
    /// A sum of the `FSF` constants below.
    pub properties: u32,
}

impl FsInfo {
    /// Hard links are supported.
    pub const FSF_LINK: u32 = 0x01;
    /// Symbolic links are supported.
    pub const FSF_SYMLINK: u32 = 0x02;
    /// PATHCONF answers the same for every object.
    pub const FSF_HOMOGENEOUS: u32 = 0x08;
    /// SETATTR can set times.
    pub const FSF_CANSETTIME: u32 = 0x10;
}

impl Encode for FsInfo {
    fn encode(&self, w: &mut Writer) {
        for v in [self.rtmax, self.rtpref, self.rtmult, self.wtmax, self.wtpref, self.wtmult, self.dtpref] {
            w.u32(v);
        }
        w.u64(self.maxfilesize);
        self.time_delta.encode(w);
        w.u32(self.properties);
    }
}

impl Decode<'_> for FsInfo {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            rtmax: r.u32()?,
            rtpref: r.u32()?,
            rtmult: r.u32()?,
            wtmax: r.u32()?,
            wtpref: r.u32()?,
            wtmult: r.u32()?,
            dtpref: r.u32()?,
            maxfilesize: r.u64()?,
            time_delta: NfsTime::decode(r)?,
            properties: r.u32()?,
        })
    }
}

/// Limits on names and links: what PATHCONF tells besides attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathConf {
    /// Most hard links to one object.
    pub linkmax: u32,
    /// Most bytes in a name.
    pub name_max: u32,
    /// Longer names are refused, not cut.
    pub no_trunc: bool,
    /// Only a privileged caller may give a file away.
    pub chown_restricted: bool,
    /// Names that differ in case only are the same.
    pub case_insensitive: bool,
    /// Names keep the case they were created with.
    pub case_preserving: bool,
}

impl Encode for PathConf {
    fn encode(&self, w: &mut Writer) {
        w.u32(self.linkmax);
        w.u32(self.name_max);
        w.bool(self.no_trunc);
        w.bool(self.chown_restricted);
        w.bool(self.case_insensitive);
        w.bool(self.case_preserving);
    }
}

impl Decode<'_> for PathConf {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            linkmax: r.u32()?,
            name_max: r.u32()?,
            no_trunc: r.bool()?,
            chown_restricted: r.bool()?,
            case_insensitive: r.bool()?,
            case_preserving: r.bool()?,
        })
    }
}

macro_rules! procedures {
    ($($variant:ident = $value:literal, $doc:literal;)+) => {
        /// The procedures of NFS version 3.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Proc {
            $(#[doc = $doc] $variant = $value,)+
        }

        impl Proc {
            /// All of them, in order of their numbers.
            pub const ALL: [Self; 22] = [$(Self::$variant),+];

            /// The procedure with this number.
            #[must_use]
            pub const fn from_u32(v: u32) -> Option<Self> {
                match v {
                    $($value => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

procedures! {
    Null = 0, "Does nothing.";
    GetAttr = 1, "Attributes of an object.";
    SetAttr = 2, "Changes attributes.";
    Lookup = 3, "Finds a name in a directory.";
    Access = 4, "What the caller may do with an object.";
    ReadLink = 5, "Target of a symlink.";
    Read = 6, "Reads from a file.";
    Write = 7, "Writes to a file.";
    Create = 8, "Creates a regular file.";
    MkDir = 9, "Creates a directory.";
    SymLink = 10, "Creates a symlink.";
    MkNod = 11, "Creates a special file.";
    Remove = 12, "Removes a name that is not a directory's.";
    RmDir = 13, "Removes an empty directory.";
    Rename = 14, "Renames.";
    Link = 15, "Gives an object another name.";
    ReadDir = 16, "Lists a directory: names.";
    ReadDirPlus = 17, "Lists a directory: names, attributes and handles.";
    FsStat = 18, "How full a file system is.";
    FsInfo = 19, "What a file system can do.";
    PathConf = 20, "Limits on names and links.";
    Commit = 21, "Makes unstable writes durable.";
}

impl Proc {
    /// Its name as RFC 1813 writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::GetAttr => "GETATTR",
            Self::SetAttr => "SETATTR",
            Self::Lookup => "LOOKUP",
            Self::Access => "ACCESS",
            Self::ReadLink => "READLINK",
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Create => "CREATE",
            Self::MkDir => "MKDIR",
            Self::SymLink => "SYMLINK",
            Self::MkNod => "MKNOD",
            Self::Remove => "REMOVE",
            Self::RmDir => "RMDIR",
            Self::Rename => "RENAME",
            Self::Link => "LINK",
            Self::ReadDir => "READDIR",
            Self::ReadDirPlus => "READDIRPLUS",
            Self::FsStat => "FSSTAT",
            Self::FsInfo => "FSINFO",
            Self::PathConf => "PATHCONF",
            Self::Commit => "COMMIT",
        }
    }
}

impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
