//! NFS version 3 over an [`Export`]: from decoded arguments to an encoded result.
//!
//! # Operation
//! [`place`] finds the export that a Call is about and the identity it runs under; [`execute`] calls the export's
//! method and writes the result, status word first. A Call that gets no further than its handle or its credentials is
//! answered by [`refuse`]. RPC, the duplicate request cache and the transports are no business of this module.
//!
//! # Ownership
//! WRITE passes on the data where it lies, in the message or in a chunk. READ and READLINK take a region from the
//! pools, let the export fill it, and hand it to the Reply; the message has a hole in its place.
//!
//! # When it breaks
//! A READ that finds the pools empty waits for a thread that may wait, and then makes do with a smaller region: fewer
//! bytes than were asked for are a legal answer. With none at all it is JUKEBOX, and the client comes back.
//!
//! # Limits
//! READ and WRITE move at most [`TRANSFER_MAX`] bytes, a directory listing has at most [`LISTING_MAX`].

use std::{net::IpAddr, ops::ControlFlow};

use rpcrdma_fabric::Region;
use rpcrdma_nfs::v3::{
    Attributes, CookieVerifier, Data, Failure, FsInfo, Handle, Outcome, Proc, Stable, Status, WccData,
    args::{Args, ReadArgs},
    dirlist::{DirWriter, Entry, EntryPlus, Push},
    results::{
        AccessOk, CommitOk, CreateOk, FsInfoOk, FsStatOk, LinkInfo, LookupOk, PathConfOk, ReadLinkOk, ReadOk,
        RenameInfo, WriteOk,
    },
};
use rpcrdma_proto::{
    rpc::Auth,
    xdr::{Encode, Writer},
};

use crate::{
    export::{
        self, Caller, Changed, Created, Credentials, DirEntry, EntrySink, Export, ExportEntry, Exports,
        Looked, ReadDir, WouldBlock,
    },
    memory::Pools,
    server::service::Patience,
};

/// Most bytes of one READ or WRITE.
pub(super) const TRANSFER_MAX: u32 = 1 << 20;

/// Most bytes of a directory listing, whatever the client has room for. Listings do not come from the pools, so this is
/// what bounds the memory, and the time without others, that a Call of a few bytes costs.
pub(super) const LISTING_MAX: u32 = 128 << 10;

/// What a READ makes do with when the pools are short, in bytes.
const SMALLER: [usize; 2] = [128 << 10, 16 << 10];

/// Where and as whom a Call is executed.
pub(super) struct Place<'a> {
    pub(super) export: &'a dyn Export,
    pub(super) caller: Caller,
    exports: &'a Exports,
}

/// The object that a Call is about first of all; `None` for NULL.
pub(super) fn object<'a>(args: &'a Args<'_>) -> Option<&'a Handle> {
    Some(match args {
        Args::Null(_) => return None,
        Args::GetAttr(a) => &a.object,
        Args::SetAttr(a) => &a.object,
        Args::Lookup(a) => &a.what.dir,
        Args::Access(a) => &a.object,
        Args::ReadLink(a) => &a.symlink,
        Args::Read(a) => &a.file,
        Args::Write(a) => &a.file,
        Args::Create(a) => &a.at.dir,
        Args::MkDir(a) => &a.at.dir,
        Args::SymLink(a) => &a.at.dir,
        Args::MkNod(a) => &a.at.dir,
        Args::Remove(a) => &a.what.dir,
        Args::RmDir(a) => &a.what.dir,
        Args::Rename(a) => &a.from.dir,
        Args::Link(a) => &a.file,
        Args::ReadDir(a) => &a.dir,
        Args::ReadDirPlus(a) => &a.dir,
        Args::FsStat(a) => &a.root,
        Args::FsInfo(a) => &a.root,
        Args::PathConf(a) => &a.object,
        Args::Commit(a) => &a.file,
    })
}

/// Finds the export of `object`, and what the peer's credentials become there.
///
/// # Errors
/// BADHANDLE, STALE, or ACCES if the export does not serve this peer.
pub(super) fn place<'a>(
    exports: &'a Exports,
    object: &Handle,
    peer: IpAddr,
    auth: &Auth<'_>,
) -> Result<Place<'a>, Status> {
    let entry: &ExportEntry = exports.of_handle(object)?;
    let credentials = match auth {
        Auth::None => Credentials::None,
        Auth::Sys(sys) => Credentials::Sys { uid: sys.uid, gid: sys.gid, groups: sys.groups.as_slice() },
    };
    let caller = entry.rules.caller(peer, credentials).map_err(|_| Status::ACCES)?;
    Ok(Place { export: &*entry.export, caller, exports })
}

/// Writes the failure of a Call that was not executed.
pub(super) fn refuse(proc: Proc, status: Status, w: &mut Writer) {
    status.encode(w);
    let absent = match proc {
        Proc::Null | Proc::GetAttr => 0,
        Proc::Lookup
        | Proc::Access
        | Proc::ReadLink
        | Proc::Read
        | Proc::ReadDir
        | Proc::ReadDirPlus
        | Proc::FsStat
        | Proc::FsInfo
        | Proc::PathConf => 1,
        Proc::SetAttr
        | Proc::Write
        | Proc::Create
        | Proc::MkDir
        | Proc::SymLink
        | Proc::MkNod
        | Proc::Remove
        | Proc::RmDir
        | Proc::Commit => 2,
        Proc::Link => 3,
        Proc::Rename => 4,
    };
    for _ in 0..absent {
        w.bool(false);
    }
}

/// Whether a Call may have to wait; if so it belongs on a thread that may. A READ is simply tried.
pub(super) fn may_block(place: &Place<'_>, args: &Args<'_>) -> bool {
    let stable = match args {
        Args::Null(_) | Args::Read(_) => return false,
        Args::Write(a) => a.stable,
        _ => Stable::Unstable,
    };
    object(args).is_some_and(|object| place.export.may_block(args.proc(), object, stable))
}

/// Executes a Call and writes its result.
///
/// # Errors
/// [`WouldBlock`], only for a READ and only if `patience` is [`Patience::Now`]. `w` is then as it was.
pub(super) fn execute(
    place: &Place<'_>,
    args: &Args<'_>,
    patience: Patience,
    pools: &Pools,
    w: &mut Writer,
    data: &mut Option<Region>,
) -> Result<(), WouldBlock> {
    let Place { export, caller, exports } = place;
    match args {
        Args::Null(_) => {}
        Args::GetAttr(a) => put(w, export.getattr(caller, &a.object), ()),
        Args::SetAttr(a) => changed(w, export.setattr(caller, &a.object, &a.new, a.guard)),
        Args::Lookup(a) => {
            let Looked { result, attrs } = export.lookup(caller, &a.what.dir, a.what.name);
            let ok = result.map(|found| LookupOk {
                object: found.handle,
                attributes: found.attrs,
                dir_attributes: attrs,
            });
            put(w, ok, attrs);
        }
        Args::Access(a) => {
            let Looked { result, attrs } = export.access(caller, &a.object, a.access);
            put(w, result.map(|access| AccessOk { attributes: attrs, access: access & a.access }), attrs);
        }
        Args::ReadLink(a) => readlink(place, &a.symlink, pools, w, data),
        Args::Read(a) => read(place, a, patience, pools, w, data)?,
        Args::Write(a) => {
            let bytes = a.data.bytes().unwrap_or_default();
            let bytes = bytes.get(..TRANSFER_MAX as usize).unwrap_or(bytes);
            let Changed { result, attrs } = export.write(caller, &a.file, a.offset, bytes, a.stable);
            let ok = result.map(|done| WriteOk {
                wcc: attrs,
                count: done.count as u32,
                committed: done.committed,
                verifier: done.verifier,
            });
            put(w, ok, attrs);
        }
        Args::Create(a) => created(w, export.create(caller, &a.at.dir, a.at.name, &a.how)),
        Args::MkDir(a) => created(w, export.mkdir(caller, &a.at.dir, a.at.name, &a.attributes)),
        Args::SymLink(a) => {
            let target = a.target.bytes().unwrap_or_default();
            created(w, export.symlink(caller, &a.at.dir, a.at.name, &a.attributes, target));
        }
        Args::MkNod(a) => created(w, export.mknod(caller, &a.at.dir, a.at.name, &a.node)),
        Args::Remove(a) => changed(w, export.remove(caller, &a.what.dir, a.what.name)),
        Args::RmDir(a) => changed(w, export.rmdir(caller, &a.what.dir, a.what.name)),
        Args::Rename(a) => match same_export(place, exports, &a.to.dir) {
            Err(status) => refuse(Proc::Rename, status, w),
            Ok(()) => {
                let from = (&a.from.dir, a.from.name);
                let done = export.rename(caller, from, (&a.to.dir, a.to.name));
                let info = RenameInfo { from: done.attrs.0, to: done.attrs.1 };
                put(w, done.result.map(|()| info), info);
            }
        },
        Args::Link(a) => match same_export(place, exports, &a.to.dir) {
            Err(status) => refuse(Proc::Link, status, w),
            Ok(()) => {
                let done = export.link(caller, &a.file, &a.to.dir, a.to.name);
                let info = LinkInfo { attributes: done.attrs.0, dir_wcc: done.attrs.1 };
                put(w, done.result.map(|()| info), info);
            }
        },
        Args::ReadDir(a) => {
            let count = a.count.min(LISTING_MAX);
            let from = ReadDir { cookie: a.cookie, verifier: a.verifier, plus: false, room: count as usize };
            list(place, &a.dir, &from, Budget { dircount: None, count }, w);
        }
        Args::ReadDirPlus(a) => {
            let count = a.maxcount.min(LISTING_MAX);
            let from = ReadDir { cookie: a.cookie, verifier: a.verifier, plus: true, room: count as usize };
            list(place, &a.dir, &from, Budget { dircount: Some(a.dircount), count }, w);
        }
        Args::FsStat(a) => {
            let Looked { result, attrs } = export.fsstat(caller, &a.root);
            put(w, result.map(|stat| FsStatOk { attributes: attrs, stat }), attrs);
        }
        Args::FsInfo(a) => {
            let Looked { result, attrs } = export.fsinfo(caller, &a.root);
            put(w, result.map(|info| FsInfoOk { attributes: attrs, info: carried(info) }), attrs);
        }
        Args::PathConf(a) => {
            let Looked { result, attrs } = export.pathconf(caller, &a.object);
            put(w, result.map(|conf| PathConfOk { attributes: attrs, conf }), attrs);
        }
        Args::Commit(a) => {
            let Changed { result, attrs } = export.commit(caller, &a.file, a.offset, a.count);
            put(w, result.map(|verifier| CommitOk { wcc: attrs, verifier }), attrs);
        }
    }
    Ok(())
}

/// Writes a result that has the same attributes whether it succeeded or not.
fn put<T, F>(w: &mut Writer, result: Result<T, Status>, info: F)
where
    Outcome<T, F>: Encode,
{
    Outcome(result.map_err(|status| Failure { status, info })).encode(w);
}

/// Writes the result of what changes one object and returns nothing else.
fn changed(w: &mut Writer, done: Changed<()>) {
    put(w, done.result.map(|()| done.attrs), done.attrs);
}

/// Writes the result of what makes an object.
fn created(w: &mut Writer, done: Changed<Created>) {
    let dir_wcc: WccData = done.attrs;
    let ok = done.result.map(|new| CreateOk { object: new.handle, attributes: new.attrs, dir_wcc });
    put(w, ok, dir_wcc);
}

/// Whether a Call's second handle belongs to the export of its first.
fn same_export(place: &Place<'_>, exports: &Exports, other: &Handle) -> Result<(), Status> {
    if exports.of_handle(other)?.export.id() == place.export.id() { Ok(()) } else { Err(Status::XDEV) }
}

/// What FSINFO says, within what the transports carry.
fn carried(info: FsInfo) -> FsInfo {
    FsInfo {
        rtmax: info.rtmax.min(TRANSFER_MAX),
        rtpref: info.rtpref.min(TRANSFER_MAX),
        wtmax: info.wtmax.min(TRANSFER_MAX),
        wtpref: info.wtpref.min(TRANSFER_MAX),
        dtpref: info.dtpref.min(LISTING_MAX),
        ..info
    }
}

fn read(
    place: &Place<'_>,
    a: &ReadArgs,
    patience: Patience,
    pools: &Pools,
    w: &mut Writer,
    data: &mut Option<Region>,
) -> Result<(), WouldBlock> {
    let want = a.count.min(TRANSFER_MAX) as usize;
    let wait = patience == Patience::Wait;
    let (mut region, want) = match pools.take(want) {
        Some(region) => (region, want),
        None if !wait => return Err(WouldBlock),
        None => {
            let smaller = SMALLER.into_iter().map(|n| n.min(want));
            match smaller.filter_map(|n| Some((pools.take(n)?, n))).next() {
                Some(found) => found,
                None => {
                    refuse(Proc::Read, Status::JUKEBOX, w);
                    return Ok(());
                }
            }
        }
    };
    let room = region.get_mut(..want).unwrap_or_default();
    let patience = if wait { export::Patience::Wait } else { export::Patience::Now };
    let Looked { result, attrs } = place.export.read(&place.caller, &a.file, a.offset, room, patience)?;
    let ok = result.map(|done| {
        let count = done.count.min(want) as u32;
        let bytes = if count == 0 { Data::Here(&[]) } else { Data::Apart(count) };
        ReadOk { attributes: attrs, eof: done.eof, data: bytes }
    });
    if ok.is_ok_and(|ok| !ok.data.is_empty()) {
        *data = Some(region);
    }
    put(w, ok, attrs);
    Ok(())
}

fn readlink(place: &Place<'_>, symlink: &Handle, pools: &Pools, w: &mut Writer, data: &mut Option<Region>) {
    let mut target = Vec::new();
    let Looked { result, attrs } = place.export.readlink(&place.caller, symlink, &mut target);
    // Where the client has room for it as a chunk it must be one, so there has to be a region; it is small, and there are
    // no more of them than Calls in hand.
    let apart = (result.is_ok() && !target.is_empty()).then(|| {
        let mut region = pools.take(target.len()).unwrap_or_else(|| Region::alloc(target.len()));
        region[..target.len()].copy_from_slice(&target);
        region
    });
    let bytes = if apart.is_some() { Data::Apart(target.len() as u32) } else { Data::Here(&[]) };
    put(w, result.map(|()| ReadLinkOk { attributes: attrs, target: bytes }), attrs);
    *data = apart;
}

/// How much a directory listing may hold.
#[derive(Clone, Copy)]
struct Budget {
    /// READDIRPLUS only.
    dircount: Option<u32>,
    count: u32,
}

/// Takes a directory's entries straight into the Reply.
struct Sink<'w> {
    budget: Budget,
    /// Until the listing begins.
    w: Option<&'w mut Writer>,
    list: Option<DirWriter<'w>>,
}

impl EntrySink for Sink<'_> {
    fn begin(&mut self, dir: Option<Attributes>, verifier: CookieVerifier) {
        let Some(w) = self.w.take() else { return };
        let Budget { dircount, count } = self.budget;
        self.list = Some(match dircount {
            Some(dircount) => DirWriter::readdirplus(w, dir, verifier, dircount, count),
            None => DirWriter::readdir(w, dir, verifier, count),
        });
    }

    fn entry(&mut self, e: &DirEntry<'_>) -> ControlFlow<()> {
        let Some(list) = &mut self.list else { return ControlFlow::Break(()) };
        let entry = Entry { fileid: e.fileid, name: e.name, cookie: e.cookie };
        let pushed = match self.budget.dircount {
            Some(_) => list.push_plus(&EntryPlus { entry, attributes: e.attrs, handle: e.handle }),
            None => list.push(&entry),
        };
        match pushed {
            Push::Added => ControlFlow::Continue(()),
            Push::Full => ControlFlow::Break(()),
        }
    }
}

fn list(place: &Place<'_>, dir: &Handle, from: &ReadDir, budget: Budget, w: &mut Writer) {
    let mut sink = Sink { budget, w: Some(w), list: None };
    let Looked { result, attrs } = place.export.readdir(&place.caller, dir, from, &mut sink);
    match (sink.list, sink.w, result) {
        (Some(list), _, Ok(eof)) => {
            let _ = list.finish(eof);
        }
        (Some(list), _, Err(status)) => {
            let _ = list.fail(status);
        }
        (None, Some(w), result) => {
            // An export that succeeds has begun its listing.
            let status = result.err().unwrap_or(Status::SERVERFAULT);
            put(w, Err::<FsStatOk, _>(status), attrs);
        }
        (None, None, _) => {}
    }
}
