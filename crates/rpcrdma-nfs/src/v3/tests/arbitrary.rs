//! Random arguments and results of every procedure, and the largest results there are.

use alloc::vec::Vec;

use super::*;
use crate::v3::args::*;
use crate::v3::dirlist::{DirWriter, Entry, EntryPlus, Push};
use crate::v3::results::*;

pub(super) fn handle() -> BoxedStrategy<Handle> {
    prop::collection::vec(any::<u8>(), 1..=HANDLE_MAX).prop_map(|v| Handle::new(&v).unwrap()).boxed()
}

fn time() -> BoxedStrategy<NfsTime> {
    any::<(u32, u32)>().prop_map(|(s, n)| NfsTime::new(s, n)).boxed()
}

pub(super) fn attributes() -> BoxedStrategy<Attributes> {
    (
        (1u32..=7).prop_map(|t| FileType::from_u32(t).unwrap()),
        any::<[u32; 6]>(),
        any::<[u64; 4]>(),
        time(),
        time(),
        time(),
    )
        .prop_map(
            |(file_type, [mode, nlink, uid, gid, major, minor], [size, used, fsid, fileid], a, m, c)| {
                Attributes {
                    file_type,
                    mode,
                    nlink,
                    uid,
                    gid,
                    size,
                    used,
                    rdev: (major, minor),
                    fsid,
                    fileid,
                    atime: a,
                    mtime: m,
                    ctime: c,
                }
            },
        )
        .boxed()
}

fn post_op() -> BoxedStrategy<Option<Attributes>> {
    prop::option::of(attributes()).boxed()
}

fn wcc() -> BoxedStrategy<WccData> {
    (prop::option::of(attributes().prop_map(|a| a.wcc())), post_op())
        .prop_map(|(before, after)| WccData { before, after })
        .boxed()
}

fn set_time() -> BoxedStrategy<SetTime> {
    prop_oneof![Just(SetTime::DontChange), Just(SetTime::Server), time().prop_map(SetTime::Client)].boxed()
}

fn set_attributes() -> BoxedStrategy<SetAttributes> {
    (any::<[Option<u32>; 3]>(), any::<Option<u64>>(), set_time(), set_time())
        .prop_map(|([mode, uid, gid], size, atime, mtime)| SetAttributes {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        })
        .boxed()
}

fn stable() -> BoxedStrategy<Stable> {
    prop_oneof![Just(Stable::Unstable), Just(Stable::DataSync), Just(Stable::FileSync)].boxed()
}

fn how() -> BoxedStrategy<CreateMode> {
    prop_oneof![
        set_attributes().prop_map(CreateMode::Unchecked),
        set_attributes().prop_map(CreateMode::Guarded),
        any::<[u8; 8]>().prop_map(|v| CreateMode::Exclusive(CreateVerifier(v))),
    ]
    .boxed()
}

fn node() -> BoxedStrategy<NodeKind> {
    prop_oneof![
        (set_attributes(), any::<(u32, u32)>()).prop_map(|(a, d)| NodeKind::Character(a, d)),
        (set_attributes(), any::<(u32, u32)>()).prop_map(|(a, d)| NodeKind::Block(a, d)),
        set_attributes().prop_map(NodeKind::Socket),
        set_attributes().prop_map(NodeKind::Fifo),
        prop_oneof![Just(1), Just(2), Just(5), 8u32..].prop_map(NodeKind::Other),
    ]
    .boxed()
}

/// Arguments with what they borrow.
#[derive(Clone, Debug)]
pub(super) struct OwnedArgs {
    proc: Proc,
    handles: [Handle; 2],
    names: [Vec<u8>; 2],
    set: SetAttributes,
    guard: Option<NfsTime>,
    how: CreateMode,
    node: NodeKind,
    stable: Stable,
    numbers: [u32; 2],
    offset: u64,
    verifier: [u8; 8],
}

impl OwnedArgs {
    pub(super) fn with(&self, f: impl FnOnce(&Args<'_>)) {
        let [object, other] = self.handles;
        let at = DirOp { dir: object, name: &self.names[0] };
        let [count, count2] = self.numbers;
        let (offset, attributes) = (self.offset, self.set);
        let verifier = CookieVerifier(self.verifier);
        f(&match self.proc {
            Proc::Null => Args::Null(NullArgs {}),
            Proc::GetAttr => Args::GetAttr(GetAttrArgs { object }),
            Proc::SetAttr => Args::SetAttr(SetAttrArgs { object, new: attributes, guard: self.guard }),
            Proc::Lookup => Args::Lookup(LookupArgs { what: at }),
            Proc::Access => Args::Access(AccessArgs { object, access: AccessMask(count) }),
            Proc::ReadLink => Args::ReadLink(ReadLinkArgs { symlink: object }),
            Proc::Read => Args::Read(ReadArgs { file: object, offset, count }),
            Proc::Write => Args::Write(WriteArgs {
                file: object,
                offset,
                stable: self.stable,
                data: Data::Here(&self.names[1]),
            }),
            Proc::Create => Args::Create(CreateArgs { at, how: self.how }),
            Proc::MkDir => Args::MkDir(MkDirArgs { at, attributes }),
            Proc::SymLink => {
                Args::SymLink(SymLinkArgs { at, attributes, target: Data::Here(&self.names[1]) })
            }
            Proc::MkNod => Args::MkNod(MkNodArgs { at, node: self.node }),
            Proc::Remove => Args::Remove(RemoveArgs { what: at }),
            Proc::RmDir => Args::RmDir(RmDirArgs { what: at }),
            Proc::Rename => {
                Args::Rename(RenameArgs { from: at, to: DirOp { dir: other, name: &self.names[1] } })
            }
            Proc::Link => Args::Link(LinkArgs { file: other, to: at }),
            Proc::ReadDir => Args::ReadDir(ReadDirArgs { dir: object, cookie: offset, verifier, count }),
            Proc::ReadDirPlus => Args::ReadDirPlus(ReadDirPlusArgs {
                dir: object,
                cookie: offset,
                verifier,
                dircount: count,
                maxcount: count2,
            }),
            Proc::FsStat => Args::FsStat(FsStatArgs { root: object }),
            Proc::FsInfo => Args::FsInfo(FsInfoArgs { root: object }),
            Proc::PathConf => Args::PathConf(PathConfArgs { object }),
            Proc::Commit => Args::Commit(CommitArgs { file: object, offset, count }),
        });
    }
}

pub(super) fn args() -> BoxedStrategy<OwnedArgs> {
    let name = || prop::collection::vec(any::<u8>(), 0..40);
    (
        (prop::sample::select(&Proc::ALL[..]), handle(), handle(), name(), name()),
        (set_attributes(), prop::option::of(time()), how(), node(), stable()),
        (any::<[u32; 2]>(), any::<u64>(), any::<[u8; 8]>()),
    )
        .prop_map(|(a, b, c)| OwnedArgs {
            proc: a.0,
            handles: [a.1, a.2],
            names: [a.3, a.4],
            set: b.0,
            guard: b.1,
            how: b.2,
            node: b.3,
            stable: b.4,
            numbers: c.0,
            offset: c.1,
            verifier: c.2,
        })
        .boxed()
}

/// File id, name, attributes and handle.
type OwnedEntry = (u64, Vec<u8>, Option<Attributes>, Option<Handle>);

/// Results with what they borrow.
#[derive(Clone, Debug)]
pub(super) struct OwnedResults {
    proc: Proc,
    status: Status,
    handle: Handle,
    some_handle: bool,
    post_ops: [Option<Attributes>; 2],
    attributes: Attributes,
    wccs: [WccData; 2],
    data: Vec<u8>,
    flags: [bool; 4],
    stable: Stable,
    numbers: [u32; 8],
    longs: [u64; 6],
    verifier: [u8; 8],
    entries: Vec<OwnedEntry>,
}

impl OwnedResults {
    fn outcome<T, F>(&self, ok: T, info: F) -> Outcome<T, F> {
        if self.status.is_ok() { Outcome::ok(ok) } else { Outcome::fail(self.status, info) }
    }

    pub(super) fn with(&self, f: impl FnOnce(&Results<'_>)) {
        let [attributes, dir_attributes] = self.post_ops;
        let [wcc, wcc2] = self.wccs;
        let verifier = WriteVerifier(self.verifier);
        let object = self.handle;
        let created = CreateOk { object: self.some_handle.then_some(object), attributes, dir_wcc: wcc };
        let n = self.numbers;
        let l = self.longs;
        let listing = self.listing();
        f(&match self.proc {
            Proc::Null => Results::Null(NullResult {}),
            Proc::GetAttr => Results::GetAttr(self.outcome(self.attributes, ())),
            Proc::SetAttr => Results::SetAttr(self.outcome(wcc, wcc)),
            Proc::Lookup => {
                Results::Lookup(self.outcome(LookupOk { object, attributes, dir_attributes }, dir_attributes))
            }
            Proc::Access => {
                Results::Access(self.outcome(AccessOk { attributes, access: AccessMask(n[0]) }, attributes))
            }
            Proc::ReadLink => Results::ReadLink(
                self.outcome(ReadLinkOk { attributes, target: Data::Here(&self.data) }, attributes),
            ),
            Proc::Read => {
                let ok = ReadOk { attributes, eof: self.flags[0], data: Data::Here(&self.data) };
                Results::Read(self.outcome(ok, attributes))
            }
            Proc::Write => {
                let ok = WriteOk { wcc, count: n[0], committed: self.stable, verifier };
                Results::Write(self.outcome(ok, wcc))
            }
            Proc::Create => Results::Create(self.outcome(created, wcc)),
            Proc::MkDir => Results::MkDir(self.outcome(created, wcc)),
            Proc::SymLink => Results::SymLink(self.outcome(created, wcc)),
            Proc::MkNod => Results::MkNod(self.outcome(created, wcc)),
            Proc::Remove => Results::Remove(self.outcome(wcc, wcc)),
            Proc::RmDir => Results::RmDir(self.outcome(wcc, wcc)),
            Proc::Rename => {
                let info = RenameInfo { from: wcc, to: wcc2 };
                Results::Rename(self.outcome(info, info))
            }
            Proc::Link => {
                let info = LinkInfo { attributes, dir_wcc: wcc };
                Results::Link(self.outcome(info, info))
            }
            Proc::ReadDir => Results::ReadDir(decoded(&listing)),
            Proc::ReadDirPlus => Results::ReadDirPlus(decoded(&listing)),
            Proc::FsStat => {
                let stat = FsStat {
                    total_bytes: l[0],
                    free_bytes: l[1],
                    available_bytes: l[2],
                    total_files: l[3],
                    free_files: l[4],
                    available_files: l[5],
                    invarsec: n[0],
                };
                Results::FsStat(self.outcome(FsStatOk { attributes, stat }, attributes))
            }
            Proc::FsInfo => {
                let info = FsInfo {
                    rtmax: n[0],
                    rtpref: n[1],
                    rtmult: n[2],
                    wtmax: n[3],
                    wtpref: n[4],
                    wtmult: n[5],
                    dtpref: n[6],
                    maxfilesize: l[0],
                    time_delta: NfsTime::new(n[7], n[0]),
                    properties: n[1],
                };
                Results::FsInfo(self.outcome(FsInfoOk { attributes, info }, attributes))
            }
            Proc::PathConf => {
                let [no_trunc, chown_restricted, case_insensitive, case_preserving] = self.flags;
                let conf = PathConf {
                    linkmax: n[0],
                    name_max: n[1],
                    no_trunc,
                    chown_restricted,
                    case_insensitive,
                    case_preserving,
                };
                Results::PathConf(self.outcome(PathConfOk { attributes, conf }, attributes))
            }
            Proc::Commit => Results::Commit(self.outcome(CommitOk { wcc, verifier }, wcc)),
        });
    }

    /// The bytes of a listing; empty for other procedures.
    fn listing(&self) -> Vec<u8> {
        let mut w = Writer::new();
        let plus = match self.proc {
            Proc::ReadDir => false,
            Proc::ReadDirPlus => true,
            _ => return Vec::new(),
        };
        let verifier = CookieVerifier(self.verifier);
        let mut list = DirWriter::readdirplus(&mut w, self.post_ops[0], verifier, u32::MAX, u32::MAX);
        for (i, (fileid, name, attributes, handle)) in self.entries.iter().enumerate() {
            let entry = Entry { fileid: *fileid, name, cookie: i as u64 };
            let pushed = if plus {
                list.push_plus(&EntryPlus { entry, attributes: *attributes, handle: *handle })
            } else {
                list.push(&entry)
            };
            assert_eq!(pushed, Push::Added);
        }
        if self.status.is_ok() {
            list.finish(self.flags[0]);
        } else {
            list.fail(self.status);
        }
        w.into_parts().0
    }
}

pub(super) fn results() -> BoxedStrategy<OwnedResults> {
    let status = prop_oneof![
        2 => Just(Status::OK),
        1 => prop_oneof![prop::sample::select(Status::ALL), any::<u32>().prop_map(Status)],
    ];
    let name = || prop::collection::vec(any::<u8>(), 0..40);
    let entry = (any::<u64>(), name(), post_op(), prop::option::of(handle()));
    (
        (prop::sample::select(&Proc::ALL[..]), status, handle(), any::<bool>(), stable(), name()),
        (post_op(), post_op(), attributes(), wcc(), wcc()),
        (any::<[bool; 4]>(), any::<[u32; 8]>(), any::<[u64; 6]>(), any::<[u8; 8]>()),
        prop::collection::vec(entry, 0..5),
    )
        .prop_map(|(a, b, c, entries)| OwnedResults {
            proc: a.0,
            status: a.1,
            handle: a.2,
            some_handle: a.3,
            stable: a.4,
            data: a.5,
            post_ops: [b.0, b.1],
            attributes: b.2,
            wccs: [b.3, b.4],
            flags: c.0,
            numbers: c.1,
            longs: c.2,
            verifier: c.3,
            entries,
        })
        .boxed()
}

/// The largest success and the largest failure of a procedure, without data, target or entries.
pub(super) fn largest(proc: Proc) -> Vec<OwnedEncoded> {
    let t = NfsTime::new(u32::MAX, u32::MAX);
    let attributes = Attributes {
        file_type: FileType::Regular,
        mode: 0o7777,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: u64::MAX,
        used: u64::MAX,
        rdev: (0, 0),
        fsid: 1,
        fileid: 1,
        atime: t,
        mtime: t,
        ctime: t,
    };
    let wcc = WccData { before: Some(attributes.wcc()), after: Some(attributes) };
    [Status::OK, Status::TOOSMALL]
        .into_iter()
        .map(|status| {
            let r = OwnedResults {
                proc,
                status,
                handle: Handle::new(&[0xff; HANDLE_MAX]).unwrap(),
                some_handle: true,
                post_ops: [Some(attributes); 2],
                attributes,
                wccs: [wcc; 2],
                data: Vec::new(),
                flags: [true; 4],
                stable: Stable::FileSync,
                numbers: [u32::MAX; 8],
                longs: [u64::MAX; 6],
                verifier: [0xff; 8],
                entries: Vec::new(),
            };
            let mut out = OwnedEncoded { status: Status::OK, bytes: Vec::new() };
            r.with(|r| out = OwnedEncoded { status: r.status(), bytes: encoded(r) });
            out
        })
        .collect()
}

/// The encoded form of some results.
pub(super) struct OwnedEncoded {
    status: Status,
    bytes: Vec<u8>,
}

impl OwnedEncoded {
    pub(super) fn status(&self) -> Status {
        self.status
    }
}

impl Encode for OwnedEncoded {
    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.bytes);
    }
}
