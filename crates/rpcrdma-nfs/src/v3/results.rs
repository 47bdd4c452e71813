//! Results of the 22 procedures (RFC 1813 section 3.3).
//!
//! # Operation
//! Except for NULL and GETATTR's failure arm, a result carries attributes whether the call succeeded or not. An
//! [`Outcome`] is a `Result` with the XDR form of such a union: a status word, then one arm or the other. READ's
//! data and READLINK's target may be chunks; directory listings are in [`dirlist`](super::dirlist).

use rpcrdma_proto::xdr::{Decode, Encode, Reader, Writer, XdrError};

use super::dirlist::{Entries, EntriesPlus};
use super::field::{DATA_MAX, Data, Get, Put, fields, message};
use super::status::Status;
use super::types::{
    AccessMask, Attributes, CookieVerifier, FsInfo, FsStat, Handle, PATH_MAX, PathConf, Proc, Stable,
    WccData, WriteVerifier,
};

/// Why a procedure failed, and the attributes that came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<F> {
    /// What went wrong; never [`Status::OK`] when it was decoded.
    pub status: Status,
    /// Attributes, as far as the server gave them.
    pub info: F,
}

/// The union of a status and either the successful result or what a failure carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<T, F>(pub Result<T, Failure<F>>);

impl<T, F> Outcome<T, F> {
    /// Success.
    #[must_use]
    pub const fn ok(v: T) -> Self {
        Self(Ok(v))
    }

    /// Failure. [`Status::OK`] is no failure: it would be sent as [`Status::SERVERFAULT`].
    #[must_use]
    pub const fn fail(status: Status, info: F) -> Self {
        Self(Err(Failure { status, info }))
    }

    /// The status word.
    #[must_use]
    pub fn status(&self) -> Status {
        match &self.0 {
            Ok(_) => Status::OK,
            Err(f) if f.status.is_ok() => Status::SERVERFAULT,
            Err(f) => f.status,
        }
    }
}

impl<'a, T: Get<'a>, F: Get<'a>> Decode<'a> for Outcome<T, F> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        let status = Status::decode(r)?;
        Ok(Self(if status.is_ok() { Ok(T::get(r)?) } else { Err(Failure { status, info: F::get(r)? }) }))
    }
}

impl<T: Put, F: Put> Encode for Outcome<T, F> {
    fn encode(&self, w: &mut Writer) {
        self.status().encode(w);
        match &self.0 {
            Ok(v) => v.put(w),
            Err(f) => f.info.put(w),
        }
    }
}

message! {
    /// Of NULL: nothing, not even a status.
    #[derive(Default)]
    pub struct NullResult {}
}

impl NullResult {
    /// Always success.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status::OK
    }
}

/// Of GETATTR.
pub type GetAttrResult = Outcome<Attributes, ()>;

/// Of SETATTR, REMOVE and RMDIR: the object, or the directory, before and after.
pub type WccResult = Outcome<WccData, WccData>;

/// A handle in a result, which may not be empty.
fn handle(r: &mut Reader<'_>) -> Result<Handle, XdrError> {
    let handle = Handle::decode(r)?;
    if handle.is_empty() { Err(XdrError::Empty) } else { Ok(handle) }
}

/// What LOOKUP found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupOk {
    /// The object; never empty when it was decoded.
    pub object: Handle,
    /// The object's attributes.
    pub attributes: Option<Attributes>,
    /// The directory's attributes.
    pub dir_attributes: Option<Attributes>,
}

impl Decode<'_> for LookupOk {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self { object: handle(r)?, attributes: Get::get(r)?, dir_attributes: Get::get(r)? })
    }
}

impl Encode for LookupOk {
    fn encode(&self, w: &mut Writer) {
        self.object.put(w);
        self.attributes.put(w);
        self.dir_attributes.put(w);
    }
}

fields!(LookupOk);

/// Of LOOKUP; a failure carries the directory's attributes.
pub type LookupResult = Outcome<LookupOk, Option<Attributes>>;

message! {
    /// What ACCESS grants.
    pub struct AccessOk {
        /// The object's attributes.
        pub attributes: Option<Attributes>,
        /// The rights granted, of those asked for.
        pub access: AccessMask,
    }
}

/// Of ACCESS; a failure carries the object's attributes.
pub type AccessResult = Outcome<AccessOk, Option<Attributes>>;

/// What READLINK read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLinkOk<'a> {
    /// The symlink's attributes.
    pub attributes: Option<Attributes>,
    /// Where it points to, at most [`PATH_MAX`] bytes; may be a chunk.
    pub target: Data<'a>,
}

impl<'a> Decode<'a> for ReadLinkOk<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self { attributes: Get::get(r)?, target: Data::get(r, PATH_MAX)? })
    }
}

impl Encode for ReadLinkOk<'_> {
    fn encode(&self, w: &mut Writer) {
        self.attributes.put(w);
        self.target.put(w);
    }
}

fields!(ReadLinkOk<'a>);

/// Of READLINK; a failure carries the symlink's attributes.
pub type ReadLinkResult<'a> = Outcome<ReadLinkOk<'a>, Option<Attributes>>;

/// What READ read. The count word of the protocol is the length of the data; a message where the two differ does
/// not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOk<'a> {
    /// The file's attributes.
    pub attributes: Option<Attributes>,
    /// Whether the data ends at or behind the end of the file.
    pub eof: bool,
    /// The data; may be a chunk.
    pub data: Data<'a>,
}

impl<'a> Decode<'a> for ReadOk<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        let attributes = Get::get(r)?;
        let count = r.u32()?;
        let eof = r.bool()?;
        let data = Data::get(r, DATA_MAX)?;
        if data.len() != count {
            return Err(XdrError::CountMismatch { count, len: data.len() as usize });
        }
        Ok(Self { attributes, eof, data })
    }
}

impl Encode for ReadOk<'_> {
    fn encode(&self, w: &mut Writer) {
        self.attributes.put(w);
        w.u32(self.data.len());
        w.bool(self.eof);
        self.data.put(w);
    }
}

fields!(ReadOk<'a>);

/// Of READ; a failure carries the file's attributes.
pub type ReadResult<'a> = Outcome<ReadOk<'a>, Option<Attributes>>;

/// READ's successful result up to and including the length word of the data, for a client whose data is already in
/// memory of its own. The message position after decoding is where the data would be inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadHead {
    /// The file's attributes.
    pub attributes: Option<Attributes>,
    /// Length of the data in bytes.
    pub len: u32,
    /// Whether the data ends at or behind the end of the file.
    pub eof: bool,
}

impl Decode<'_> for ReadHead {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        let attributes = Get::get(r)?;
        let count = r.u32()?;
        let eof = r.bool()?;
        let len = r.u32()?;
        if len != count {
            return Err(XdrError::CountMismatch { count, len: len as usize });
        }
        Ok(Self { attributes, len, eof })
    }
}

impl Encode for ReadHead {
    fn encode(&self, w: &mut Writer) {
        self.attributes.put(w);
        w.u32(self.len);
        w.bool(self.eof);
        w.chunkable(self.len);
    }
}

fields!(ReadHead);

/// Of READ, without the data.
pub type ReadHeadResult = Outcome<ReadHead, Option<Attributes>>;

message! {
    /// What WRITE wrote.
    pub struct WriteOk {
        /// The file before and after.
        pub wcc: WccData,
        /// How many bytes were written, from the first one on.
        pub count: u32,
        /// How durable they are; no less than what was asked for.
        pub committed: Stable,
        /// The server instance that has them.
        pub verifier: WriteVerifier,
    }
}

/// Of WRITE; a failure carries the file before and after.
pub type WriteResult = Outcome<WriteOk, WccData>;

/// What CREATE, MKDIR, SYMLINK or MKNOD created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOk {
    /// The new object; never empty when it was decoded.
    pub object: Option<Handle>,
    /// The new object's attributes.
    pub attributes: Option<Attributes>,
    /// The directory before and after.
    pub dir_wcc: WccData,
}

impl Decode<'_> for CreateOk {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(Self { object: r.option(handle)?, attributes: Get::get(r)?, dir_wcc: Get::get(r)? })
    }
}

impl Encode for CreateOk {
    fn encode(&self, w: &mut Writer) {
        self.object.put(w);
        self.attributes.put(w);
        self.dir_wcc.put(w);
    }
}

fields!(CreateOk);

/// Of CREATE, MKDIR, SYMLINK and MKNOD; a failure carries the directory before and after.
pub type CreateResult = Outcome<CreateOk, WccData>;

message! {
    /// The two directories of a RENAME, whether it succeeded or not.
    #[derive(Default)]
    pub struct RenameInfo {
        /// The old name's directory.
        pub from: WccData,
        /// The new name's directory.
        pub to: WccData,
    }
}

/// Of RENAME.
pub type RenameResult = Outcome<RenameInfo, RenameInfo>;

message! {
    /// The object and the directory of a LINK, whether it succeeded or not.
    #[derive(Default)]
    pub struct LinkInfo {
        /// The object's attributes.
        pub attributes: Option<Attributes>,
        /// The directory before and after.
        pub dir_wcc: WccData,
    }
}

/// Of LINK.
pub type LinkResult = Outcome<LinkInfo, LinkInfo>;

macro_rules! listing {
    ($(#[$meta:meta])* $name:ident, $entries:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<'a> {
            /// The directory's attributes.
            pub attributes: Option<Attributes>,
            /// To be sent along when the listing is continued.
            pub verifier: CookieVerifier,
            /// The entries.
            pub entries: $entries<'a>,
            /// Whether the listing ends here.
            pub eof: bool,
        }

        impl<'a> Decode<'a> for $name<'a> {
            fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
                Ok(Self {
                    attributes: Get::get(r)?,
                    verifier: Get::get(r)?,
                    entries: $entries::decode(r)?,
                    eof: r.bool()?,
                })
            }
        }

        impl Encode for $name<'_> {
            fn encode(&self, w: &mut Writer) {
                self.attributes.put(w);
                self.verifier.put(w);
                self.entries.encode(w);
                w.bool(self.eof);
            }
        }

        fields!($name<'a>);
    };
}

listing! {
    /// A part of a directory, as READDIR lists it. Servers write it with
    /// [`DirWriter`](super::dirlist::DirWriter).
    ReadDirOk, Entries
}

/// Of READDIR; a failure carries the directory's attributes.
pub type ReadDirResult<'a> = Outcome<ReadDirOk<'a>, Option<Attributes>>;

listing! {
    /// A part of a directory, as READDIRPLUS lists it. Servers write it with
    /// [`DirWriter`](super::dirlist::DirWriter).
    ReadDirPlusOk, EntriesPlus
}

/// Of READDIRPLUS; a failure carries the directory's attributes.
pub type ReadDirPlusResult<'a> = Outcome<ReadDirPlusOk<'a>, Option<Attributes>>;

message! {
    /// How full the file system is.
    pub struct FsStatOk {
        /// The object's attributes.
        pub attributes: Option<Attributes>,
        /// The numbers.
        pub stat: FsStat,
    }
}

/// Of FSSTAT; a failure carries the object's attributes.
pub type FsStatResult = Outcome<FsStatOk, Option<Attributes>>;

message! {
    /// What the file system can do.
    pub struct FsInfoOk {
        /// The object's attributes.
        pub attributes: Option<Attributes>,
        /// The numbers.
        pub info: FsInfo,
    }
}

/// Of FSINFO; a failure carries the object's attributes.
pub type FsInfoResult = Outcome<FsInfoOk, Option<Attributes>>;

message! {
    /// The limits on names and links.
    pub struct PathConfOk {
        /// The object's attributes.
        pub attributes: Option<Attributes>,
        /// The limits.
        pub conf: PathConf,
    }
}

/// Of PATHCONF; a failure carries the object's attributes.
pub type PathConfResult = Outcome<PathConfOk, Option<Attributes>>;

message! {
    /// What COMMIT committed.
    pub struct CommitOk {
        /// The file before and after.
        pub wcc: WccData,
        /// The server instance; written data is durable if it is the one that took it.
        pub verifier: WriteVerifier,
    }
}

/// Of COMMIT; a failure carries the file before and after.
pub type CommitResult = Outcome<CommitOk, WccData>;

macro_rules! results {
    ($($variant:ident($ty:ty),)+) => {
        /// The results of some procedure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Results<'a> {
            $(
                #[doc = concat!("Of `", stringify!($variant), "`.")]
                $variant($ty),
            )+
        }

        impl<'a> Results<'a> {
            /// Reads the results of `proc`.
            ///
            /// # Errors
            /// If they do not decode.
            pub fn decode(proc: Proc, r: &mut Reader<'a>) -> Result<Self, XdrError> {
                Ok(match proc {
                    $(Proc::$variant => Self::$variant(Decode::decode(r)?),)+
                })
            }

            /// Which procedure they are of.
            #[must_use]
            pub const fn proc(&self) -> Proc {
                match self {
                    $(Self::$variant(_) => Proc::$variant,)+
                }
            }

            /// The status word; [`Status::OK`] for NULL, which has none.
            #[must_use]
            pub fn status(&self) -> Status {
                match self {
                    $(Self::$variant(v) => v.status(),)+
                }
            }
        }

        impl Encode for Results<'_> {
            fn encode(&self, w: &mut Writer) {
                match self {
                    $(Self::$variant(v) => v.encode(w),)+
                }
            }
        }
    };
}

results! {
    Null(NullResult),
    GetAttr(GetAttrResult),
    SetAttr(WccResult),
    Lookup(LookupResult),
    Access(AccessResult),
    ReadLink(ReadLinkResult<'a>),
    Read(ReadResult<'a>),
    Write(WriteResult),
    Create(CreateResult),
    MkDir(CreateResult),
    SymLink(CreateResult),
    MkNod(CreateResult),
    Remove(WccResult),
    RmDir(WccResult),
    Rename(RenameResult),
    Link(LinkResult),
    ReadDir(ReadDirResult<'a>),
    ReadDirPlus(ReadDirPlusResult<'a>),
    FsStat(FsStatResult),
    FsInfo(FsInfoResult),
    PathConf(PathConfResult),
    Commit(CommitResult),
}
