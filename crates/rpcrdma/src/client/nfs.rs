//! NFSv3 procedures on a [`Mount`].
//!
//! # Operation
//! Each method is one Call: it encodes its arguments into a recycled buffer, waits, and decodes the Reply in place. READ and
//! WRITE take the caller's [`Region`] and give it back with the result, so that data moves between the network and that
//! memory directly. A server that asks for patience (NFS3ERR_JUKEBOX) is asked again, with a new XID, after a while.
//!
//! # When it breaks
//! Lost connections are not seen here: a Call is sent again until it is answered, or until its time is up on a soft
//! mount. Errors are the server's status, or say who is at fault; see [`Error`].

use std::time::Duration;

use rpcrdma_fabric::Region;
use rpcrdma_nfs::v3::{
    self, AccessMask, Attributes, CookieVerifier, CreateMode, Data, FsInfo, FsStat, Handle, NfsTime,
    NodeKind, Outcome, PathConf, Proc, Procedure, SetAttributes, Stable, Status, WccData, WriteVerifier,
    args::{
        AccessArgs, CommitArgs, CreateArgs, DirOp, FsInfoArgs, FsStatArgs, GetAttrArgs, LinkArgs, LookupArgs,
        MkDirArgs, MkNodArgs, NullArgs, PathConfArgs, ReadArgs, ReadDirArgs, ReadDirPlusArgs, ReadLinkArgs,
        RemoveArgs, RenameArgs, RmDirArgs, SetAttrArgs, SymLinkArgs, WriteArgs,
    },
    results::{
        AccessOk, CreateOk, FsInfoOk, LinkInfo, LookupOk, ReadDirOk, ReadDirPlusOk, ReadHead, ReadHeadResult,
        RenameInfo, WriteOk,
    },
};
use rpcrdma_proto::{
    rpc::{CallHeader, OpaqueAuth, ReplyHeader, Xid},
    rpcrdma::PeerMisbehaved,
    xdr::{Decode, Encode, Reader},
};
use tokio::time::sleep;

use super::{
    channel::{Call, Finished, Reply},
    mount::{Inner, Mount},
};
use crate::error::Error;

/// The longest wait before a server that asked for patience is asked again.
const JUKEBOX_MAX: Duration = Duration::from_secs(5);

/// What a READ brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDone {
    /// Bytes read, from the region's first byte on.
    pub len: u32,
    /// Whether they reach the end of the file.
    pub eof: bool,
    /// The file's attributes.
    pub attributes: Option<Attributes>,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name: bytes, never empty, without `/` and zero bytes; `.` and `..` are left out.
    pub name: Vec<u8>,
    /// Its number in the file system.
    pub fileid: u64,
    /// Continues the listing behind it.
    pub cookie: u64,
    /// Its attributes, if the server gave them.
    pub attributes: Option<Attributes>,
    /// Its handle, if the server gave it.
    pub handle: Option<Handle>,
}

/// Part of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirPage {
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// The cookie with which to continue. `.` and `..` have cookies too, so this may be behind the last entry.
    pub next: u64,
    /// To be passed back with it.
    pub verifier: CookieVerifier,
    /// Whether that was all.
    pub eof: bool,
}

/// An answered Call.
struct Answer {
    reply: Reply,
    /// Offset of the results in the RPC message.
    results: usize,
}

impl Answer {
    fn reader(&self) -> Reader<'_> {
        Reader::new(self.reply.message().get(self.results..).unwrap_or_default())
    }

    fn decode<'a, T: Decode<'a>>(&'a self) -> Result<T, Error> {
        Ok(T::decode(&mut self.reader())?)
    }

    fn status(&self) -> Option<Status> {
        self.reader().u32().ok().map(Status)
    }
}

/// The memory that a Call takes along.
#[derive(Default)]
struct Memory {
    argument: Option<Region>,
    result: Option<Region>,
}

fn ok<T, F>(proc: Proc, outcome: Outcome<T, F>) -> Result<T, Error> {
    outcome.0.map_err(|f| Error::Nfs { procedure: proc.name(), status: f.status })
}

impl Inner {
    /// One Call, repeated while the server asks for patience.
    async fn transact<P: Procedure>(&self, args: &P, memory: &mut Memory) -> Result<Answer, Error> {
        let mut patience = Duration::from_millis(100);
        loop {
            let answer = self.transact_once(args, memory).await?;
            // NULL has no status.
            if P::PROC == Proc::Null || answer.status() != Some(Status::JUKEBOX) {
                return Ok(answer);
            }
            sleep(patience).await;
            patience = (patience * 2).min(JUKEBOX_MAX);
        }
    }

    async fn transact_once<P: Procedure>(&self, args: &P, memory: &mut Memory) -> Result<Answer, Error> {
        let channel = self.channel();
        let mut w = channel.writer();
        let cred = if P::PROC == Proc::Null { OpaqueAuth::NONE } else { self.auth() };
        let (prog, vers, proc) = (v3::PROGRAM, v3::VERSION, P::PROC as u32);
        CallHeader { xid: Xid(0), prog, vers, proc, cred, verf: OpaqueAuth::NONE }.encode(&mut w);
        args.encode(&mut w);
        let (message, hole) = w.into_parts();
        let bound = args.reply_bound();
        let result = memory.result.take();
        // Without room for it the result comes with the message.
        let (reply_max, result_max) = match (&result, bound.chunkable) {
            (Some(room), Some(max)) => (bound.inline, max.min(room.len() as u32)),
            _ => (bound.whole(), 0),
        };
        let call = Call { message, hole, argument: memory.argument.take(), result, result_max, reply_max };
        let Finished { outcome, argument, result } = channel.call(call).await;
        *memory = Memory { argument, result };
        let reply = outcome?;
        let mut r = Reader::new(reply.message());
        ReplyHeader::decode(&mut r)?.status.map_err(Error::Rpc)?;
        let results = r.position();
        Ok(Answer { reply, results })
    }

    async fn simple<P: Procedure>(&self, args: &P) -> Result<Answer, Error> {
        self.transact(args, &mut Memory::default()).await
    }
}

impl Mount {
    /// NULL: does nothing, there and back.
    ///
    /// # Errors
    /// See [`Error`], here and below.
    pub async fn null(&self) -> Result<(), Error> {
        self.inner.simple(&NullArgs {}).await.map(|_| ())
    }

    /// GETATTR.
    pub async fn getattr(&self, object: Handle) -> Result<Attributes, Error> {
        let answer = self.inner.simple(&GetAttrArgs { object }).await?;
        ok(Proc::GetAttr, answer.decode::<v3::results::GetAttrResult>()?)
    }

    /// SETATTR; with a guard only if the object's ctime is still that.
    pub async fn setattr(
        &self,
        object: Handle,
        new: SetAttributes,
        guard: Option<NfsTime>,
    ) -> Result<WccData, Error> {
        let answer = self.inner.simple(&SetAttrArgs { object, new, guard }).await?;
        ok(Proc::SetAttr, answer.decode::<v3::results::WccResult>()?)
    }

    /// LOOKUP.
    pub async fn lookup(&self, dir: Handle, name: &[u8]) -> Result<LookupOk, Error> {
        let answer = self.inner.simple(&LookupArgs { what: DirOp { dir, name } }).await?;
        ok(Proc::Lookup, answer.decode::<v3::results::LookupResult>()?)
    }

    /// ACCESS: which of the rights asked for we have.
    pub async fn access(&self, object: Handle, access: AccessMask) -> Result<AccessOk, Error> {
        let answer = self.inner.simple(&AccessArgs { object, access }).await?;
        ok(Proc::Access, answer.decode::<v3::results::AccessResult>()?)
    }

    /// READLINK: the target, as it is stored.
    pub async fn readlink(&self, symlink: Handle) -> Result<Vec<u8>, Error> {
        let mut memory = Memory { result: self.inner.pools.take(v3::PATH_MAX), ..Memory::default() };
        let answer = self.inner.transact(&ReadLinkArgs { symlink }, &mut memory).await?;
        let mut r = answer.reader();
        let status = Status::decode(&mut r)?;
        r.option(Attributes::decode)?;
        if !status.is_ok() {
            return Err(Error::Nfs { procedure: Proc::ReadLink.name(), status });
        }
        let len = r.count(v3::PATH_MAX)?;
        match placed(&answer.reply, len as u32)? {
            true => Ok(memory.result.as_deref().and_then(|m| m.get(..len)).unwrap_or_default().to_vec()),
            false => Ok(r.bytes(len)?.to_vec()),
        }
    }

    /// READ of up to `len` bytes at `offset` into `buf`, from its first byte on. The region comes back in any case, unless
    /// the mount was closed; what is in it after an error is arbitrary.
    pub async fn read(
        &self,
        file: Handle,
        offset: u64,
        len: u32,
        buf: Region,
    ) -> (Result<ReadDone, Error>, Option<Region>) {
        let count = len.min(buf.len() as u32);
        let mut memory = Memory { result: Some(buf), ..Memory::default() };
        let done = self.inner.transact(&ReadArgs { file, offset, count }, &mut memory).await;
        let mut buf = memory.result;
        let done = done.and_then(|answer| read_done(&answer, count, buf.as_deref_mut()));
        (done, buf)
    }

    /// WRITE of the first `len` bytes of `buf` at `offset`. The region comes back in any case, unless the mount was
    /// closed.
    pub async fn write(
        &self,
        file: Handle,
        offset: u64,
        len: u32,
        buf: Region,
        stable: Stable,
    ) -> (Result<WriteOk, Error>, Option<Region>) {
        let len = len.min(buf.len() as u32);
        let mut memory = Memory { argument: Some(buf), ..Memory::default() };
        let args = WriteArgs { file, offset, stable, data: Data::Apart(len) };
        let done = self.inner.transact(&args, &mut memory).await;
        let done = done.and_then(|answer| {
            let done = ok(Proc::Write, answer.decode::<v3::results::WriteResult>()?)?;
            if done.count > len || (done.count == 0 && len > 0) {
                return Err(Error::BadReply(format!("{} bytes written of {len}", done.count)));
            }
            Ok(done)
        });
        (done, memory.argument)
    }

    /// CREATE.
    pub async fn create(&self, dir: Handle, name: &[u8], how: CreateMode) -> Result<CreateOk, Error> {
        let answer = self.inner.simple(&CreateArgs { at: DirOp { dir, name }, how }).await?;
        ok(Proc::Create, answer.decode::<v3::results::CreateResult>()?)
    }

    /// MKDIR.
    pub async fn mkdir(
        &self,
        dir: Handle,
        name: &[u8],
        attributes: SetAttributes,
    ) -> Result<CreateOk, Error> {
        let answer = self.inner.simple(&MkDirArgs { at: DirOp { dir, name }, attributes }).await?;
        ok(Proc::MkDir, answer.decode::<v3::results::CreateResult>()?)
    }

    /// SYMLINK.
    pub async fn symlink(
        &self,
        dir: Handle,
        name: &[u8],
        target: &[u8],
        attributes: SetAttributes,
    ) -> Result<CreateOk, Error> {
        let args = SymLinkArgs { at: DirOp { dir, name }, attributes, target: Data::Here(target) };
        ok(Proc::SymLink, self.inner.simple(&args).await?.decode::<v3::results::CreateResult>()?)
    }

    /// MKNOD.
    pub async fn mknod(&self, dir: Handle, name: &[u8], node: NodeKind) -> Result<CreateOk, Error> {
        let answer = self.inner.simple(&MkNodArgs { at: DirOp { dir, name }, node }).await?;
        ok(Proc::MkNod, answer.decode::<v3::results::CreateResult>()?)
    }

    /// REMOVE.
    pub async fn remove(&self, dir: Handle, name: &[u8]) -> Result<WccData, Error> {
        let answer = self.inner.simple(&RemoveArgs { what: DirOp { dir, name } }).await?;
        ok(Proc::Remove, answer.decode::<v3::results::WccResult>()?)
    }

    /// RMDIR.
    pub async fn rmdir(&self, dir: Handle, name: &[u8]) -> Result<WccData, Error> {
        let answer = self.inner.simple(&RmDirArgs { what: DirOp { dir, name } }).await?;
        ok(Proc::RmDir, answer.decode::<v3::results::WccResult>()?)
    }

    /// RENAME.
    pub async fn rename(&self, from: (Handle, &[u8]), to: (Handle, &[u8])) -> Result<RenameInfo, Error> {
        let args =
            RenameArgs { from: DirOp { dir: from.0, name: from.1 }, to: DirOp { dir: to.0, name: to.1 } };
        ok(Proc::Rename, self.inner.simple(&args).await?.decode::<v3::results::RenameResult>()?)
    }

    /// LINK.
    pub async fn link(&self, file: Handle, dir: Handle, name: &[u8]) -> Result<LinkInfo, Error> {
        let answer = self.inner.simple(&LinkArgs { file, to: DirOp { dir, name } }).await?;
        ok(Proc::Link, answer.decode::<v3::results::LinkResult>()?)
    }

    /// READDIR: entries behind `cookie` (0 at first), in at most `count` bytes.
    pub async fn readdir(
        &self,
        dir: Handle,
        cookie: u64,
        verifier: CookieVerifier,
        count: u32,
    ) -> Result<DirPage, Error> {
        let answer = self.inner.simple(&ReadDirArgs { dir, cookie, verifier, count }).await?;
        let page: ReadDirOk<'_> = ok(Proc::ReadDir, answer.decode::<v3::results::ReadDirResult<'_>>()?)?;
        let next = page.entries.last_cookie().unwrap_or(cookie);
        let entries = page.entries.map(|e| DirEntry {
            name: e.name.to_vec(),
            fileid: e.fileid,
            cookie: e.cookie,
            attributes: None,
            handle: None,
        });
        dir_page(entries, next, cookie, page.verifier, page.eof)
    }

    /// READDIRPLUS: entries with attributes and handles behind `cookie` (0 at first), in at most `count` bytes.
    pub async fn readdirplus(
        &self,
        dir: Handle,
        cookie: u64,
        verifier: CookieVerifier,
        count: u32,
    ) -> Result<DirPage, Error> {
        let args = ReadDirPlusArgs { dir, cookie, verifier, dircount: count, maxcount: count };
        let answer = self.inner.simple(&args).await?;
        let page: ReadDirPlusOk<'_> =
            ok(Proc::ReadDirPlus, answer.decode::<v3::results::ReadDirPlusResult<'_>>()?)?;
        let next = page.entries.last_cookie().unwrap_or(cookie);
        let entries = page.entries.map(|e| DirEntry {
            name: e.entry.name.to_vec(),
            fileid: e.entry.fileid,
            cookie: e.entry.cookie,
            attributes: e.attributes,
            handle: e.handle,
        });
        dir_page(entries, next, cookie, page.verifier, page.eof)
    }

    /// FSSTAT: space and files.
    pub async fn fsstat(&self, root: Handle) -> Result<FsStat, Error> {
        let answer = self.inner.simple(&FsStatArgs { root }).await?;
        ok(Proc::FsStat, answer.decode::<v3::results::FsStatResult>()?).map(|o| o.stat)
    }

    /// FSINFO: sizes and properties.
    pub async fn fs_info(&self, root: Handle) -> Result<FsInfo, Error> {
        let answer = self.inner.simple(&FsInfoArgs { root }).await?;
        let FsInfoOk { info, .. } = ok(Proc::FsInfo, answer.decode::<v3::results::FsInfoResult>()?)?;
        Ok(info)
    }

    /// PATHCONF.
    pub async fn pathconf(&self, object: Handle) -> Result<PathConf, Error> {
        let answer = self.inner.simple(&PathConfArgs { object }).await?;
        ok(Proc::PathConf, answer.decode::<v3::results::PathConfResult>()?).map(|o| o.conf)
    }

    /// COMMIT: what was written UNSTABLE from `offset` on, `count` bytes or (0) all of it. The data is safe if the
    /// verifier is that of the WRITEs.
    pub async fn commit(&self, file: Handle, offset: u64, count: u32) -> Result<WriteVerifier, Error> {
        let answer = self.inner.simple(&CommitArgs { file, offset, count }).await?;
        ok(Proc::Commit, answer.decode::<v3::results::CommitResult>()?).map(|o| o.verifier)
    }
}

/// Whether a result of `len` bytes was placed in the room for it. If not, it is in the message.
fn placed(reply: &Reply, len: u32) -> Result<bool, Error> {
    match reply.placed {
        None => Ok(false),
        Some(n) if n == u64::from(len) => Ok(true),
        Some(0) => Err(Error::BadReply(PeerMisbehaved::ChunkIgnored { bytes: len }.to_string())),
        Some(bytes) => Err(Error::BadReply(PeerMisbehaved::ChunkUnexpected { bytes }.to_string())),
    }
}

fn read_done(answer: &Answer, asked: u32, room: Option<&mut [u8]>) -> Result<ReadDone, Error> {
    let mut r = answer.reader();
    let ReadHead { attributes, len, eof } = ok(Proc::Read, ReadHeadResult::decode(&mut r)?)?;
    if len > asked {
        return Err(Error::BadReply(format!("{len} bytes read where {asked} were asked for")));
    }
    if !placed(&answer.reply, len)? {
        let data = r.bytes(len as usize)?;
        let room = room.and_then(|room| room.get_mut(..data.len()));
        room.ok_or_else(|| Error::BadReply("no room for a result".to_owned()))?.copy_from_slice(data);
    }
    Ok(ReadDone { len, eof, attributes })
}

/// Leaves out `.`, `..` and names that could not be names.
fn dir_page(
    entries: impl Iterator<Item = DirEntry>,
    next: u64,
    cookie: u64,
    verifier: CookieVerifier,
    eof: bool,
) -> Result<DirPage, Error> {
    if next == cookie && !eof {
        return Err(Error::BadReply("a directory listing that does not go on".to_owned()));
    }
    let entries =
        entries.filter(|e| v3::check_name(&e.name).is_ok() && e.name != b"." && e.name != b"..").collect();
    Ok(DirPage { entries, next, verifier, eof })
}
