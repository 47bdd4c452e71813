//! The service driven with RPC bytes made by hand, against exports in memory.

use std::{net::SocketAddr, sync::Arc};

use rpcrdma_nfs::v3::{
    AccessMask, CookieVerifier, CreateMode, CreateVerifier, Data, FileType, Handle, NfsTime, NodeKind,
    Procedure, SetAttributes, SetTime, Stable, Status, args::*, results::*,
};
use rpcrdma_proto::{
    rpc::{AuthSys, CallHeader, Flavor, Groups, OpaqueAuth, ReplyHeader},
    xdr::{Chunk, Decode, Encode, XdrError, pad},
};

use super::*;
use crate::{
    export::{Export, ExportRules, HandleKey, MemoryExport, MemoryOptions},
    server::service::Origin,
};

mod duplicates;
mod faults;
mod mounts;

const ALICE: u32 = 1000;

pub(super) fn origin(peer: &str) -> Origin {
    Origin { peer: peer.parse::<SocketAddr>().unwrap(), carrier: Carrier::Tcp }
}

pub(super) fn memory(name: &str) -> Arc<MemoryExport> {
    let options = MemoryOptions { name: name.to_owned(), ..MemoryOptions::default() };
    Arc::new(MemoryExport::new(HandleKey::from_bytes([7; 16]), options))
}

/// A service with three exports: `/main` for everybody, `/ro` read-only, `/private` for 10.0.0.0/8.
pub(super) struct Rig {
    pub(super) service: RpcService,
    pub(super) pools: Pools,
    pub(super) main: Arc<MemoryExport>,
    pub(super) ro: Arc<MemoryExport>,
    pub(super) private: Arc<MemoryExport>,
    pub(super) origin: Origin,
    next: u32,
}

impl Rig {
    pub(super) fn new() -> Self {
        let (main, ro, private) = (memory("/main"), memory("/ro"), memory("/private"));
        let mut exports = Exports::new();
        exports.add("/main", main.clone(), ExportRules::default()).unwrap();
        exports.add("/ro", ro.clone(), ExportRules { read_only: true, ..ExportRules::default() }).unwrap();
        let rules = ExportRules { allow: vec!["10.0.0.0/8".parse().unwrap()], ..ExportRules::default() };
        exports.add("/private", private.clone(), rules).unwrap();
        let origin = origin("192.0.2.1:700");
        Self { service: RpcService::new(exports), pools: Pools::new(2), main, ro, private, origin, next: 100 }
    }

    pub(super) fn xid(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Serves a message as a transport does: at first without patience.
    pub(super) fn serve(&self, message: &[u8], chunks: &[Chunk<'_>]) -> (Served, Vec<u8>) {
        let call = IncomingCall { origin: self.origin, message, chunks };
        let mut reply = OutgoingReply::default();
        let mut served = self.service.serve(&call, Patience::Now, &self.pools, &mut reply);
        if served == Served::WouldBlock {
            assert!(reply.message.is_empty() && reply.data.is_none(), "untouched");
            served = self.service.serve(&call, Patience::Wait, &self.pools, &mut reply);
        }
        assert_ne!(served, Served::WouldBlock);
        (served, whole(reply))
    }

    /// The Reply to a message that gets one.
    pub(super) fn answer(&self, message: &[u8]) -> Vec<u8> {
        let (served, reply) = self.serve(message, &[]);
        assert_eq!(served, Served::Reply);
        reply
    }

    /// Calls a procedure and returns its results' bytes, from the status on.
    fn call<A: Procedure>(&mut self, args: &A) -> Vec<u8> {
        let xid = self.xid();
        let reply = self.answer(&nfs_call(xid, args));
        results(xid, &reply).to_vec()
    }

    fn status<A: Procedure>(&mut self, args: &A) -> Status {
        let bytes = self.call(args);
        let mut r = Reader::new(&bytes);
        A::Results::decode(&mut r).unwrap();
        assert_eq!(r.remaining(), 0, "{}: nothing behind the result", A::PROC);
        Status::decode(&mut Reader::new(&bytes)).unwrap()
    }

    fn root(&self) -> Handle {
        self.main.root()
    }

    /// Creates a file with this content and returns its handle.
    fn file(&mut self, name: &[u8], content: &[u8]) -> Handle {
        let set = SetAttributes { mode: Some(0o644), ..SetAttributes::default() };
        let at = DirOp { dir: self.root(), name };
        let bytes = self.call(&CreateArgs { at, how: CreateMode::Guarded(set) });
        let file = ok(CreateResult::decode(&mut Reader::new(&bytes))).object.unwrap();
        if !content.is_empty() {
            let args = WriteArgs { file, offset: 0, stable: Stable::FileSync, data: Data::Here(content) };
            assert_eq!(self.status(&args), Status::OK);
        }
        file
    }
}

fn ok<T, F: std::fmt::Debug>(outcome: Result<Outcome<T, F>, XdrError>) -> T {
    match outcome.unwrap().0 {
        Ok(v) => v,
        Err(f) => panic!("{f:?}"),
    }
}

/// A Reply as it looks on a stream.
fn whole(reply: OutgoingReply) -> Vec<u8> {
    let (mut message, hole) = reply.message.into_parts();
    assert_eq!(hole.is_some(), reply.data.is_some(), "data where it was announced");
    if let (Some(hole), Some(data)) = (hole, reply.data) {
        let mut bytes = data[..hole.len].to_vec();
        bytes.resize(hole.len + pad(hole.len), 0);
        message.splice(hole.at..hole.at, bytes);
    }
    assert!(message.len().is_multiple_of(4));
    message
}

pub(super) fn auth_sys(uid: u32) -> Vec<u8> {
    let mut w = Writer::new();
    let sys = AuthSys { stamp: 0, machine_name: b"c", uid, gid: uid, groups: Groups::truncated(&[4, 5]) };
    sys.encode(&mut w);
    w.as_slice().to_vec()
}

/// A Call of user `uid`.
pub(super) fn call_as(
    uid: u32,
    xid: u32,
    (prog, vers, proc): (u32, u32, u32),
    args: &impl Encode,
) -> Vec<u8> {
    let body = auth_sys(uid);
    let cred = OpaqueAuth { flavor: Flavor::SYS, body: &body };
    let mut w = Writer::new();
    CallHeader { xid: Xid(xid), prog, vers, proc, cred, verf: OpaqueAuth::NONE }.encode(&mut w);
    args.encode(&mut w);
    w.as_slice().to_vec()
}

pub(super) fn nfs_call<A: Procedure>(xid: u32, args: &A) -> Vec<u8> {
    call_as(ALICE, xid, (v3::PROGRAM, v3::VERSION, A::PROC as u32), args)
}

/// What is behind the header of a successful Reply.
pub(super) fn results(xid: u32, reply: &[u8]) -> &[u8] {
    let mut r = Reader::new(reply);
    let header = ReplyHeader::decode(&mut r).unwrap();
    assert_eq!((header.xid, header.status), (Xid(xid), Ok(())));
    r.rest()
}

#[test]
fn null_needs_no_credentials() {
    let rig = Rig::new();
    let mut w = Writer::new();
    let none = OpaqueAuth::NONE;
    CallHeader { xid: Xid(9), prog: v3::PROGRAM, vers: 3, proc: 0, cred: none, verf: none }.encode(&mut w);
    let reply = rig.answer(w.as_slice());
    assert_eq!(reply.len(), 24);
    assert!(results(9, &reply).is_empty());
}

#[test]
fn attributes_are_read_and_set() {
    let mut rig = Rig::new();
    let file = rig.file(b"f", b"hello");
    let get = |rig: &mut Rig| {
        let bytes = rig.call(&GetAttrArgs { object: file });
        ok(GetAttrResult::decode(&mut Reader::new(&bytes)))
    };
    let before = get(&mut rig);
    assert_eq!(
        (before.file_type, before.size, before.uid, before.mode),
        (FileType::Regular, 5, ALICE, 0o644)
    );
    let mtime = SetTime::Client(NfsTime::new(77, 5));
    let new = SetAttributes { mode: Some(0o600), size: Some(2), mtime, ..SetAttributes::default() };
    let stale_guard = Some(NfsTime::new(1, 1));
    assert_eq!(rig.status(&SetAttrArgs { object: file, new, guard: stale_guard }), Status::NOT_SYNC);
    let bytes = rig.call(&SetAttrArgs { object: file, new, guard: Some(before.ctime) });
    let wcc = ok(WccResult::decode(&mut Reader::new(&bytes)));
    assert_eq!(wcc.before.unwrap().size, 5);
    let after = get(&mut rig);
    assert_eq!(wcc.after, Some(after));
    assert_eq!((after.size, after.mode, after.mtime), (2, 0o600, NfsTime::new(77, 5)));
}

#[test]
fn names_are_found_and_rights_are_told() {
    let mut rig = Rig::new();
    let file = rig.file(b"f", b"");
    let root = rig.root();
    let bytes = rig.call(&LookupArgs { what: DirOp { dir: root, name: b"f" } });
    let found = ok(LookupResult::decode(&mut Reader::new(&bytes)));
    assert_eq!(found.object, file);
    assert!(found.attributes.is_some() && found.dir_attributes.is_some());
    assert_eq!(rig.status(&LookupArgs { what: DirOp { dir: root, name: b"g" } }), Status::NOENT);
    let long = [b'x'; 256];
    assert_eq!(rig.status(&LookupArgs { what: DirOp { dir: root, name: &long } }), Status::NAMETOOLONG);

    let wanted = AccessMask::READ | AccessMask::MODIFY | AccessMask::EXECUTE;
    let bytes = rig.call(&AccessArgs { object: file, access: wanted });
    let granted = ok(AccessResult::decode(&mut Reader::new(&bytes))).access;
    assert_eq!(granted, AccessMask::READ | AccessMask::MODIFY);
}

#[test]
fn data_is_written_read_and_committed() {
    let mut rig = Rig::new();
    let data: Vec<u8> = (0..300_001u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let file = rig.file(b"f", b"");
    let args = WriteArgs { file, offset: 5, stable: Stable::Unstable, data: Data::Here(&data) };
    let bytes = rig.call(&args);
    let written = ok(WriteResult::decode(&mut Reader::new(&bytes)));
    assert_eq!(written.count, 300_001);
    let bytes = rig.call(&CommitArgs { file, offset: 0, count: 0 });
    assert_eq!(ok(CommitResult::decode(&mut Reader::new(&bytes))).verifier, written.verifier);

    let read = |rig: &mut Rig, offset, count| {
        let bytes = rig.call(&ReadArgs { file, offset, count });
        let done = ok(ReadResult::decode(&mut Reader::new(&bytes)));
        assert_eq!(done.attributes.map_or(300_006, |a| a.size), 300_006);
        (done.data.bytes().unwrap().to_vec(), done.eof)
    };
    assert_eq!(read(&mut rig, 5, 300_001), (data.clone(), true));
    assert_eq!(read(&mut rig, 6, 1001), (data[1..1002].to_vec(), false));
    assert_eq!(read(&mut rig, 300_003, u32::MAX), (data[299_998..].to_vec(), true));
    assert_eq!(read(&mut rig, 1 << 40, 10), (vec![], true));
    assert_eq!(read(&mut rig, 0, 0).0, []);
    assert_eq!(rig.pools.in_use(), 0);
    let root = rig.root();
    assert_ne!(rig.status(&ReadArgs { file: root, offset: 0, count: 4 }), Status::OK);
    assert_eq!(rig.pools.in_use(), 0, "a READ that failed gave its region back");
}

#[test]
fn all_kinds_of_objects_are_made_and_removed() {
    let mut rig = Rig::new();
    let root = rig.root();
    let at = |name| DirOp { dir: root, name };
    let set = SetAttributes { mode: Some(0o700), ..SetAttributes::default() };
    let made = |rig: &mut Rig, bytes: Vec<u8>, kind| {
        let new = ok(CreateResult::decode(&mut Reader::new(&bytes)));
        assert_eq!(new.attributes.unwrap().file_type, kind);
        let (before, after) = (new.dir_wcc.before.unwrap(), new.dir_wcc.after.unwrap());
        assert!(before.ctime < after.ctime);
        let bytes = rig.call(&GetAttrArgs { object: new.object.unwrap() });
        assert_eq!(ok(GetAttrResult::decode(&mut Reader::new(&bytes))), new.attributes.unwrap());
        new.object.unwrap()
    };

    let bytes = rig.call(&CreateArgs { at: at(b"u"), how: CreateMode::Unchecked(set) });
    let file = made(&mut rig, bytes, FileType::Regular);
    let again = CreateArgs { at: at(b"u"), how: CreateMode::Unchecked(set) };
    assert_eq!(rig.status(&again), Status::OK);
    assert_eq!(rig.status(&CreateArgs { at: at(b"u"), how: CreateMode::Guarded(set) }), Status::EXIST);
    let exclusive = |v| CreateArgs { at: at(b"x"), how: CreateMode::Exclusive(CreateVerifier([v; 8])) };
    let bytes = rig.call(&exclusive(1));
    made(&mut rig, bytes, FileType::Regular);
    assert_eq!(rig.status(&exclusive(1)), Status::OK, "a retry under another XID");
    assert_eq!(rig.status(&exclusive(2)), Status::EXIST);

    let bytes = rig.call(&MkDirArgs { at: at(b"d"), attributes: set });
    let dir = made(&mut rig, bytes, FileType::Directory);
    let target: Data<'_> = Data::Here(b"../else/where");
    let bytes = rig.call(&SymLinkArgs { at: at(b"s"), attributes: set, target });
    let link = made(&mut rig, bytes, FileType::Symlink);
    let bytes = rig.call(&ReadLinkArgs { symlink: link });
    let read = ok(ReadLinkResult::decode(&mut Reader::new(&bytes)));
    assert_eq!(read.target.bytes(), Some(&b"../else/where"[..]));
    assert_eq!(rig.status(&ReadLinkArgs { symlink: file }), Status::INVAL);
    let bytes = rig.call(&MkNodArgs { at: at(b"p"), node: NodeKind::Fifo(set) });
    made(&mut rig, bytes, FileType::Fifo);
    assert_eq!(rig.status(&MkNodArgs { at: at(b"q"), node: NodeKind::Other(1) }), Status::BADTYPE);

    let bytes = rig.call(&LinkArgs { file, to: DirOp { dir, name: b"second" } });
    let info = ok(LinkResult::decode(&mut Reader::new(&bytes)));
    assert_eq!(info.attributes.unwrap().nlink, 2);
    let rename = RenameArgs { from: DirOp { dir, name: b"second" }, to: at(b"third") };
    let bytes = rig.call(&rename);
    let info = ok(RenameResult::decode(&mut Reader::new(&bytes)));
    assert!(info.from.after.is_some() && info.to.after.is_some());
    assert_eq!(rig.status(&rename), Status::NOENT);

    assert_eq!(rig.status(&RemoveArgs { what: at(b"d") }), Status::ISDIR);
    assert_eq!(rig.status(&RmDirArgs { what: at(b"u") }), Status::NOTDIR);
    for name in [&b"u"[..], b"x", b"s", b"p", b"third"] {
        assert_eq!(rig.status(&RemoveArgs { what: at(name) }), Status::OK);
    }
    assert_eq!(rig.status(&RmDirArgs { what: at(b"d") }), Status::OK);
    assert_eq!(rig.status(&GetAttrArgs { object: file }), Status::STALE);
}

#[test]
fn directories_are_listed_within_the_budget() {
    let mut rig = Rig::new();
    let mut names: Vec<Vec<u8>> = (0..100).map(|i| format!("entry-{i:03}").into_bytes()).collect();
    for name in &names {
        rig.file(name, b"");
    }
    names.extend([b".".to_vec(), b"..".to_vec()]);
    names.sort();
    let dir = rig.root();
    for count in [200u32, 256, 1000, u32::MAX] {
        let (mut seen, mut cookie, mut verifier) = (Vec::new(), 0, CookieVerifier::default());
        loop {
            let bytes = rig.call(&ReadDirArgs { dir, cookie, verifier, count });
            assert!(bytes.len() - 4 <= count as usize);
            let part = ok(ReadDirResult::decode(&mut Reader::new(&bytes)));
            seen.extend(part.entries.map(|e| e.name.to_vec()));
            verifier = part.verifier;
            if part.eof {
                break;
            }
            cookie = part.entries.last_cookie().unwrap();
        }
        seen.sort();
        assert_eq!(seen, names);
    }
    let verifier = CookieVerifier::default();
    for (dircount, maxcount) in [(u32::MAX, 600), (100, 100_000), (1000, 4096)] {
        let (mut seen, mut cookie) = (Vec::new(), 0);
        loop {
            let bytes = rig.call(&ReadDirPlusArgs { dir, cookie, verifier, dircount, maxcount });
            assert!(bytes.len() - 4 <= maxcount as usize);
            let part = ok(ReadDirPlusResult::decode(&mut Reader::new(&bytes)));
            for e in part.entries {
                assert_eq!(e.attributes.unwrap().fileid, e.entry.fileid);
                seen.push(e.entry.name.to_vec());
                let bytes = rig.call(&GetAttrArgs { object: e.handle.unwrap() });
                assert_eq!(ok(GetAttrResult::decode(&mut Reader::new(&bytes))), e.attributes.unwrap());
            }
            if part.eof {
                break;
            }
            cookie = part.entries.last_cookie().unwrap();
        }
        seen.sort();
        assert_eq!(seen, names);
    }
    assert_eq!(rig.status(&ReadDirArgs { dir, cookie: 0, verifier, count: 20 }), Status::TOOSMALL);
    let plus = ReadDirPlusArgs { dir, cookie: 0, verifier, dircount: 8, maxcount: 4096 };
    assert_eq!(rig.status(&plus), Status::TOOSMALL);
}

#[test]
fn a_listing_is_no_longer_than_the_server_likes() {
    let mut rig = Rig::new();
    let dir = rig.root();
    (0..2000).for_each(|n| {
        rig.file(format!("{n:0>200}").as_bytes(), b"");
    });
    let verifier = CookieVerifier::default();
    let plain = rig.call(&ReadDirArgs { dir, cookie: 0, verifier, count: u32::MAX });
    let part = ok(ReadDirResult::decode(&mut Reader::new(&plain)));
    assert!(!part.eof && plain.len() <= (128 << 10) + 4, "{}", plain.len());
    let most = u32::MAX;
    let plus = rig.call(&ReadDirPlusArgs { dir, cookie: 0, verifier, dircount: most, maxcount: most });
    let part = ok(ReadDirPlusResult::decode(&mut Reader::new(&plus)));
    assert!(!part.eof && plus.len() <= (128 << 10) + 4, "{}", plus.len());
}

#[test]
fn filesystems_describe_themselves() {
    let mut rig = Rig::new();
    let root = rig.root();
    let bytes = rig.call(&FsInfoArgs { root });
    let info = ok(FsInfoResult::decode(&mut Reader::new(&bytes))).info;
    assert_eq!((info.rtmax, info.wtmax, info.dtpref), (1 << 20, 1 << 20, 128 << 10));
    let bytes = rig.call(&FsStatArgs { root });
    assert!(ok(FsStatResult::decode(&mut Reader::new(&bytes))).stat.total_bytes > 0);
    let bytes = rig.call(&PathConfArgs { object: root });
    assert_eq!(ok(PathConfResult::decode(&mut Reader::new(&bytes))).conf.name_max, 255);
}

#[test]
fn a_retransmission_gets_the_first_answer() {
    let mut rig = Rig::new();
    rig.file(b"f", b"");
    let remove = RemoveArgs { what: DirOp { dir: rig.root(), name: b"f" } };
    let first = rig.answer(&nfs_call(1, &remove));
    assert_eq!(rig.answer(&nfs_call(1, &remove)), first);
    rig.origin = origin("192.0.2.1:50000");
    assert_eq!(rig.answer(&nfs_call(1, &remove)), first, "a new port changes nothing");
    assert_eq!(WccResult::decode(&mut Reader::new(results(1, &first))).unwrap().status(), Status::OK);

    let status =
        |reply: Vec<u8>, xid| WccResult::decode(&mut Reader::new(results(xid, &reply))).unwrap().status();
    assert_eq!(status(rig.answer(&nfs_call(2, &remove)), 2), Status::NOENT, "another XID is another Call");
    let by_bob = call_as(1001, 1, (v3::PROGRAM, 3, Proc::Remove as u32), &remove);
    assert_eq!(status(rig.answer(&by_bob), 1), Status::NOENT, "another user");
    rig.origin = origin("192.0.2.2:700");
    assert_eq!(status(rig.answer(&nfs_call(1, &remove)), 1), Status::NOENT, "another client");
    assert_eq!(rig.service.counters().replayed.load(Ordering::Relaxed), 2);
}

#[test]
fn a_duplicate_is_executed_if_the_first_copy_is_given_up() {
    let mut rig = Rig::new();
    rig.file(b"f", b"");
    let message = nfs_call(1, &RemoveArgs { what: DirOp { dir: rig.root(), name: b"f" } });
    let ticket = {
        let call = IncomingCall { origin: rig.origin, message: &message, chunks: &[] };
        let (mut r, mut reply) = (Reader::new(&message), OutgoingReply::default());
        let header = rpc::receive(&mut r, PROGRAMS).unwrap();
        let mut job = Job { call: &call, patience: Patience::Wait, pools: &rig.pools, reply: &mut reply };
        rig.service.begin(&header, r.rest(), &mut job).unwrap()
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| rig.serve(&message, &[]));
        drop(ticket);
        assert_eq!(second.join().unwrap().0, Served::Reply);
    });
}

#[test]
fn chunks_take_the_place_of_data() {
    let mut rig = Rig::new();
    let file = rig.file(b"f", b"");
    let data: Vec<u8> = (0..5001u32).map(|i| i as u8).collect();
    let with = |xid, data| nfs_call(xid, &WriteArgs { file, offset: 0, stable: Stable::FileSync, data });
    let inline = with(1, Data::Here(&data));
    let reduced = with(1, Data::Apart(data.len() as u32));
    let position = reduced.len() as u32;
    assert_eq!(inline.len(), reduced.len() + 5004);
    let padded = [&data[..], &[0; 3]].concat();
    for (xid, bytes) in [(1, &data), (2, &padded)] {
        let message = with(xid, Data::Apart(5001));
        let (served, reply) = rig.serve(&message, &[Chunk { position, data: bytes }]);
        assert_eq!(served, Served::Reply);
        assert_eq!(ok(WriteResult::decode(&mut Reader::new(results(xid, &reply)))).count, 5001);
    }
    let fails = |rig: &Rig, message: &[u8], position, len| {
        let long = vec![0; len];
        let (served, reply) = rig.serve(message, &[Chunk { position, data: &long }]);
        let header = ReplyHeader::decode(&mut Reader::new(&reply)).unwrap();
        assert_eq!((served, header.status), (Served::Reply, Err(Fault::GarbageArgs)));
    };
    fails(&rig, &with(3, Data::Apart(5001)), position, 5000);
    fails(&rig, &with(3, Data::Apart(5001)), position, 5005);
    fails(&rig, &with(3, Data::Apart(5001)), position - 4, 5001);
    fails(&rig, &with(3, Data::Here(&data)), position + 4, 4);
    fails(&rig, &nfs_call(3, &GetAttrArgs { object: file }), 40, 8);
    fails(&rig, &nfs_call(3, &NullArgs {}), 0, 0);
}

#[test]
fn a_read_makes_do_with_less_memory() {
    let mut rig = Rig::new();
    let data = vec![9; 500_000];
    let file = rig.file(b"f", &data);
    let args = nfs_call(1, &ReadArgs { file, offset: 0, count: 500_000 });
    let call = IncomingCall { origin: rig.origin, message: &args, chunks: &[] };
    let large: Vec<_> = std::iter::from_fn(|| rig.pools.take(500_000)).collect();
    let mut reply = OutgoingReply::default();
    assert_eq!(rig.service.serve(&call, Patience::Now, &rig.pools, &mut reply), Served::WouldBlock);
    assert!(reply.message.is_empty());
    assert_eq!(rig.service.serve(&call, Patience::Wait, &rig.pools, &mut reply), Served::Reply);
    let reply = whole(reply);
    let done = ok(ReadResult::decode(&mut Reader::new(results(1, &reply))));
    assert_eq!((done.data.len(), done.eof), (128 << 10, false));

    let all: Vec<_> = std::iter::from_fn(|| rig.pools.take(1)).collect();
    assert_eq!(rig.status(&ReadArgs { file, offset: 0, count: 10 }), Status::JUKEBOX);
    drop((large, all));
    assert_eq!(rig.status(&ReadArgs { file, offset: 0, count: 10 }), Status::OK);
}
