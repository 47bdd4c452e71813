//! Arguments of the 22 procedures (RFC 1813 section 3.3).
//!
//! # Operation
//! Every procedure has a struct that implements [`Procedure`], which ties it to its number, to the type of its
//! results and to what RPC-over-RDMA wants to know about the call. [`Args::decode`] is the server's way in: it
//! reads the arguments of whichever procedure was called. Names and small data borrow from the message.
//!
//! WRITE's data and SYMLINK's target may be chunks. A server that pulled WRITE data into registered memory of its
//! own uses [`WriteHead`], which reads everything but the data.

use rpcrdma_proto::xdr::{Decode, Encode, Reader, Writer, XdrError};

use super::binding::{self, ReplyBound};
use super::field::{DATA_MAX, Data, message};
use super::results::{
    AccessResult, CommitResult, CreateResult, FsInfoResult, FsStatResult, GetAttrResult, LinkResult,
    LookupResult, NullResult, PathConfResult, ReadDirPlusResult, ReadDirResult, ReadLinkResult, ReadResult,
    RenameResult, WccResult, WriteResult,
};
use super::types::{
    AccessMask, CookieVerifier, CreateMode, Handle, NfsTime, NodeKind, PATH_MAX, Proc, SetAttributes, Stable,
};

/// The arguments of one procedure, and what belongs to them.
pub trait Procedure: Encode {
    /// The procedure.
    const PROC: Proc;
    /// What it returns.
    type Results<'r>: Decode<'r> + Encode;

    /// The largest Reply this call can get.
    fn reply_bound(&self) -> ReplyBound;

    /// Whether executing the call twice in a row leaves what executing it once leaves, and answers the same.
    fn idempotent(&self) -> bool {
        true
    }
}

message! {
    /// A name in a directory: `diropargs3`.
    pub struct DirOp<'a> {
        /// The directory.
        pub dir: Handle,
        /// The name. See [`check_name`](super::types::check_name).
        pub name: &'a [u8],
    }
}

message! {
    /// Of NULL: nothing.
    #[derive(Default)]
    pub struct NullArgs {}
}

message! {
    /// Of GETATTR.
    pub struct GetAttrArgs {
        /// The object.
        pub object: Handle,
    }
}

message! {
    /// Of SETATTR.
    pub struct SetAttrArgs {
        /// The object.
        pub object: Handle,
        /// What to set.
        pub new: SetAttributes,
        /// Only if the object's ctime is this; otherwise `NOT_SYNC`.
        pub guard: Option<NfsTime>,
    }
}

message! {
    /// Of LOOKUP.
    pub struct LookupArgs<'a> {
        /// The name to find.
        pub what: DirOp<'a>,
    }
}

message! {
    /// Of ACCESS.
    pub struct AccessArgs {
        /// The object.
        pub object: Handle,
        /// The rights asked for.
        pub access: AccessMask,
    }
}

message! {
    /// Of READLINK.
    pub struct ReadLinkArgs {
        /// The symlink.
        pub symlink: Handle,
    }
}

message! {
    /// Of READ.
    pub struct ReadArgs {
        /// The file.
        pub file: Handle,
        /// First byte to read.
        pub offset: u64,
        /// Most bytes to read.
        pub count: u32,
    }
}

/// Of WRITE. The count word of the protocol is the length of the data; a message where the two differ does not
/// decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteArgs<'a> {
    /// The file.
    pub file: Handle,
    /// Where to write.
    pub offset: u64,
    /// How durable the data has to be before the Reply.
    pub stable: Stable,
    /// The data; may be a chunk.
    pub data: Data<'a>,
}

impl<'a> Decode<'a> for WriteArgs<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        let file = Handle::decode(r)?;
        let offset = r.u64()?;
        let count = r.u32()?;
        let stable = Stable::decode(r)?;
        let data = Data::get(r, DATA_MAX)?;
        if data.len() != count {
            return Err(XdrError::CountMismatch { count, len: data.len() as usize });
        }
        Ok(Self { file, offset, stable, data })
    }
}

impl Encode for WriteArgs<'_> {
    fn encode(&self, w: &mut Writer) {
        self.file.encode(w);
        w.u64(self.offset);
        w.u32(self.data.len());
        self.stable.encode(w);
        self.data.put(w);
    }
}

/// WRITE's arguments up to and including the length word of the data, for a server whose data is already in memory
/// of its own. The message position after decoding is where the data would be inline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteHead {
    /// The file.
    pub file: Handle,
    /// Where to write.
    pub offset: u64,
    /// How durable the data has to be before the Reply.
    pub stable: Stable,
    /// Length of the data in bytes. The chunk that holds it is as long, or longer by the XDR pad.
    pub len: u32,
}

impl Decode<'_> for WriteHead {
    fn decode(r: &mut Reader<'_>) -> Result<Self, XdrError> {
        let file = Handle::decode(r)?;
        let offset = r.u64()?;
        let count = r.u32()?;
        let stable = Stable::decode(r)?;
        let len = r.u32()?;
        if len != count {
            return Err(XdrError::CountMismatch { count, len: len as usize });
        }
        Ok(Self { file, offset, stable, len })
    }
}

message! {
    /// Of CREATE.
    pub struct CreateArgs<'a> {
        /// The new name.
        pub at: DirOp<'a>,
        /// What to do about an existing file, and what to set.
        pub how: CreateMode,
    }
}

message! {
    /// Of MKDIR.
    pub struct MkDirArgs<'a> {
        /// The new name.
        pub at: DirOp<'a>,
        /// What to set.
        pub attributes: SetAttributes,
    }
}

/// Of SYMLINK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SymLinkArgs<'a> {
    /// The new name.
    pub at: DirOp<'a>,
    /// What to set.
    pub attributes: SetAttributes,
    /// What it points to, at most [`PATH_MAX`] bytes; may be a chunk.
    pub target: Data<'a>,
}

impl<'a> Decode<'a> for SymLinkArgs<'a> {
    fn decode(r: &mut Reader<'a>) -> Result<Self, XdrError> {
        Ok(Self {
            at: DirOp::decode(r)?,
            attributes: SetAttributes::decode(r)?,
            target: Data::get(r, PATH_MAX)?,
        })
    }
}

impl Encode for SymLinkArgs<'_> {
    fn encode(&self, w: &mut Writer) {
        self.at.encode(w);
        self.attributes.encode(w);
        self.target.put(w);
    }
}

message! {
    /// Of MKNOD.
    pub struct MkNodArgs<'a> {
        /// The new name.
        pub at: DirOp<'a>,
        /// What to create.
        pub node: NodeKind,
    }
}

message! {
    /// Of REMOVE.
    pub struct RemoveArgs<'a> {
        /// The name to remove.
        pub what: DirOp<'a>,
    }
}

message! {
    /// Of RMDIR.
    pub struct RmDirArgs<'a> {
        /// The name to remove.
        pub what: DirOp<'a>,
    }
}

message! {
    /// Of RENAME.
    pub struct RenameArgs<'a> {
        /// The old name.
        pub from: DirOp<'a>,
        /// The new name.
        pub to: DirOp<'a>,
    }
}

message! {
    /// Of LINK.
    pub struct LinkArgs<'a> {
        /// The object.
        pub file: Handle,
        /// Its new name.
        pub to: DirOp<'a>,
    }
}

message! {
    /// Of READDIR.
    pub struct ReadDirArgs {
        /// The directory.
        pub dir: Handle,
        /// 0, or the cookie of the last entry seen.
        pub cookie: u64,
        /// Zeros, or what came with that cookie.
        pub verifier: CookieVerifier,
        /// Most bytes of the result, from the attributes to the eof word.
        pub count: u32,
    }
}

message! {
    /// Of READDIRPLUS.
    pub struct ReadDirPlusArgs {
        /// The directory.
        pub dir: Handle,
        /// 0, or the cookie of the last entry seen.
        pub cookie: u64,
        /// Zeros, or what came with that cookie.
        pub verifier: CookieVerifier,
        /// Most bytes of file ids, names and cookies.
        pub dircount: u32,
        /// Most bytes of the result, from the attributes to the eof word.
        pub maxcount: u32,
    }
}

message! {
    /// Of FSSTAT.
    pub struct FsStatArgs {
        /// Any object of the file system.
        pub root: Handle,
    }
}

message! {
    /// Of FSINFO.
    pub struct FsInfoArgs {
        /// Any object of the file system.
        pub root: Handle,
    }
}

message! {
    /// Of PATHCONF.
    pub struct PathConfArgs {
        /// The object.
        pub object: Handle,
    }
}

message! {
    /// Of COMMIT.
    pub struct CommitArgs {
        /// The file.
        pub file: Handle,
        /// First byte to make durable.
        pub offset: u64,
        /// How many bytes; 0 is up to the end.
        pub count: u32,
    }
}

macro_rules! procedure {
    ($name:ident $(<$lt:lifetime>)?, $proc:ident, $results:ident $(<$rlt:lifetime>)?,
        |$bound:ident| $reply:expr $(, |$args:ident| $idempotent:expr)?) => {
        impl$(<$lt>)? Procedure for $name$(<$lt>)? {
            const PROC: Proc = Proc::$proc;
            type Results<'r> = $results$(<$rlt>)?;

            fn reply_bound(&self) -> ReplyBound {
                let $bound = self;
                $reply
            }

            $(
                fn idempotent(&self) -> bool {
                    let $args = self;
                    $idempotent
                }
            )?
        }
    };
}

procedure!(NullArgs, Null, NullResult, |_a| binding::fixed_bound(Proc::Null));
procedure!(GetAttrArgs, GetAttr, GetAttrResult, |_a| binding::fixed_bound(Proc::GetAttr));
procedure!(SetAttrArgs, SetAttr, WccResult, |_a| binding::fixed_bound(Proc::SetAttr), |a| a.guard.is_none());
procedure!(LookupArgs<'a>, Lookup, LookupResult, |_a| binding::fixed_bound(Proc::Lookup));
procedure!(AccessArgs, Access, AccessResult, |_a| binding::fixed_bound(Proc::Access));
procedure!(ReadLinkArgs, ReadLink, ReadLinkResult<'r>, |_a| binding::readlink_bound(PATH_MAX as u32));
procedure!(ReadArgs, Read, ReadResult<'r>, |a| binding::read_bound(a.count));
procedure!(WriteArgs<'a>, Write, WriteResult, |_a| binding::fixed_bound(Proc::Write));
procedure!(CreateArgs<'a>, Create, CreateResult, |_a| binding::fixed_bound(Proc::Create), |a| matches!(
    a.how,
    CreateMode::Exclusive(_)
));
procedure!(MkDirArgs<'a>, MkDir, CreateResult, |_a| binding::fixed_bound(Proc::MkDir), |_b| false);
procedure!(SymLinkArgs<'a>, SymLink, CreateResult, |_a| binding::fixed_bound(Proc::SymLink), |_b| false);
procedure!(MkNodArgs<'a>, MkNod, CreateResult, |_a| binding::fixed_bound(Proc::MkNod), |_b| false);
procedure!(RemoveArgs<'a>, Remove, WccResult, |_a| binding::fixed_bound(Proc::Remove), |_b| false);
procedure!(RmDirArgs<'a>, RmDir, WccResult, |_a| binding::fixed_bound(Proc::RmDir), |_b| false);
procedure!(RenameArgs<'a>, Rename, RenameResult, |_a| binding::fixed_bound(Proc::Rename), |_b| false);
procedure!(LinkArgs<'a>, Link, LinkResult, |_a| binding::fixed_bound(Proc::Link), |_b| false);
procedure!(ReadDirArgs, ReadDir, ReadDirResult<'r>, |a| binding::readdir_bound(a.count));
procedure!(ReadDirPlusArgs, ReadDirPlus, ReadDirPlusResult<'r>, |a| binding::readdir_bound(a.maxcount));
procedure!(FsStatArgs, FsStat, FsStatResult, |_a| binding::fixed_bound(Proc::FsStat));
procedure!(FsInfoArgs, FsInfo, FsInfoResult, |_a| binding::fixed_bound(Proc::FsInfo));
procedure!(PathConfArgs, PathConf, PathConfResult, |_a| binding::fixed_bound(Proc::PathConf));
procedure!(CommitArgs, Commit, CommitResult, |_a| binding::fixed_bound(Proc::Commit));

macro_rules! args {
    ($($variant:ident($ty:ty),)+) => {
        /// The arguments of some procedure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Args<'a> {
            $(
                #[doc = concat!("Of `", stringify!($variant), "`.")]
                $variant($ty),
            )+
        }

        impl<'a> Args<'a> {
            /// Reads the arguments of `proc`.
            ///
            /// # Errors
            /// If they do not decode; a server answers GARBAGE_ARGS.
            pub fn decode(proc: Proc, r: &mut Reader<'a>) -> Result<Self, XdrError> {
                Ok(match proc {
                    $(Proc::$variant => Self::$variant(Decode::decode(r)?),)+
                })
            }

            /// Which procedure they are for.
            #[must_use]
            pub const fn proc(&self) -> Proc {
                match self {
                    $(Self::$variant(_) => Proc::$variant,)+
                }
            }

            /// The largest Reply the call can get.
            #[must_use]
            pub fn reply_bound(&self) -> ReplyBound {
                match self {
                    $(Self::$variant(a) => a.reply_bound(),)+
                }
            }

            /// As [`Procedure::idempotent`].
            #[must_use]
            pub fn idempotent(&self) -> bool {
                match self {
                    $(Self::$variant(a) => a.idempotent(),)+
                }
            }
        }

        impl Encode for Args<'_> {
            fn encode(&self, w: &mut Writer) {
                match self {
                    $(Self::$variant(a) => a.encode(w),)+
                }
            }
        }
    };
}

args! {
    Null(NullArgs),
    GetAttr(GetAttrArgs),
    SetAttr(SetAttrArgs),
    Lookup(LookupArgs<'a>),
    Access(AccessArgs),
    ReadLink(ReadLinkArgs),
    Read(ReadArgs),
    Write(WriteArgs<'a>),
    Create(CreateArgs<'a>),
    MkDir(MkDirArgs<'a>),
    SymLink(SymLinkArgs<'a>),
    MkNod(MkNodArgs<'a>),
    Remove(RemoveArgs<'a>),
    RmDir(RmDirArgs<'a>),
    Rename(RenameArgs<'a>),
    Link(LinkArgs<'a>),
    ReadDir(ReadDirArgs),
    ReadDirPlus(ReadDirPlusArgs),
    FsStat(FsStatArgs),
    FsInfo(FsInfoArgs),
    PathConf(PathConfArgs),
    Commit(CommitArgs),
}
