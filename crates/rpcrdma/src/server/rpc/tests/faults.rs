//! What is not executed, and why.

use super::*;

fn hex(s: &str) -> Vec<u8> {
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).unwrap()).collect()
}

fn fault(reply: &[u8]) -> Fault {
    ReplyHeader::decode(&mut Reader::new(reply)).unwrap().status.unwrap_err()
}

/// One Call of each procedure that has arguments, on these handles.
fn one_of_each(object: Handle, other: Handle) -> Vec<(Proc, Vec<u8>)> {
    let set = SetAttributes::default();
    let at = DirOp { dir: object, name: b"name" };
    let verifier = CookieVerifier::default();
    let all = [
        Args::GetAttr(GetAttrArgs { object }),
        Args::SetAttr(SetAttrArgs { object, new: set, guard: None }),
        Args::Lookup(LookupArgs { what: at }),
        Args::Access(AccessArgs { object, access: AccessMask::ALL }),
        Args::ReadLink(ReadLinkArgs { symlink: object }),
        Args::Read(ReadArgs { file: object, offset: 0, count: 4 }),
        Args::Write(WriteArgs {
            file: object,
            offset: 0,
            stable: Stable::Unstable,
            data: Data::Here(b"data"),
        }),
        Args::Create(CreateArgs { at, how: CreateMode::Unchecked(set) }),
        Args::MkDir(MkDirArgs { at, attributes: set }),
        Args::SymLink(SymLinkArgs { at, attributes: set, target: Data::Here(b"t") }),
        Args::MkNod(MkNodArgs { at, node: NodeKind::Fifo(set) }),
        Args::Remove(RemoveArgs { what: at }),
        Args::RmDir(RmDirArgs { what: at }),
        Args::Rename(RenameArgs { from: at, to: DirOp { dir: other, name: b"to" } }),
        Args::Link(LinkArgs { file: object, to: DirOp { dir: other, name: b"to" } }),
        Args::ReadDir(ReadDirArgs { dir: object, cookie: 0, verifier, count: 1000 }),
        Args::ReadDirPlus(ReadDirPlusArgs {
            dir: object,
            cookie: 0,
            verifier,
            dircount: 500,
            maxcount: 1000,
        }),
        Args::FsStat(FsStatArgs { root: object }),
        Args::FsInfo(FsInfoArgs { root: object }),
        Args::PathConf(PathConfArgs { object }),
        Args::Commit(CommitArgs { file: object, offset: 0, count: 0 }),
    ];
    assert_eq!(all.len(), Proc::ALL.len() - 1);
    all.iter().map(|a| (a.proc(), call_as(ALICE, 1, (v3::PROGRAM, 3, a.proc() as u32), a))).collect()
}

/// Decodes the results of any procedure and returns their status; nothing may follow them.
fn status(proc: Proc, bytes: &[u8]) -> Status {
    fn check<'r, T: Decode<'r>>(r: &mut Reader<'r>) {
        T::decode(r).unwrap();
    }
    let mut r = Reader::new(bytes);
    match proc {
        Proc::Null => check::<NullResult>(&mut r),
        Proc::GetAttr => check::<GetAttrResult>(&mut r),
        Proc::SetAttr | Proc::Remove | Proc::RmDir => check::<WccResult>(&mut r),
        Proc::Lookup => check::<LookupResult>(&mut r),
        Proc::Access => check::<AccessResult>(&mut r),
        Proc::ReadLink => check::<ReadLinkResult<'_>>(&mut r),
        Proc::Read => check::<ReadResult<'_>>(&mut r),
        Proc::Write => check::<WriteResult>(&mut r),
        Proc::Create | Proc::MkDir | Proc::SymLink | Proc::MkNod => check::<CreateResult>(&mut r),
        Proc::Rename => check::<RenameResult>(&mut r),
        Proc::Link => check::<LinkResult>(&mut r),
        Proc::ReadDir => check::<ReadDirResult<'_>>(&mut r),
        Proc::ReadDirPlus => check::<ReadDirPlusResult<'_>>(&mut r),
        Proc::FsStat => check::<FsStatResult>(&mut r),
        Proc::FsInfo => check::<FsInfoResult>(&mut r),
        Proc::PathConf => check::<PathConfResult>(&mut r),
        Proc::Commit => check::<CommitResult>(&mut r),
    }
    assert_eq!(r.remaining(), 0, "{proc}");
    Status::decode(&mut Reader::new(bytes)).unwrap()
}

fn statuses(rig: &Rig, object: Handle, other: Handle) -> Vec<(Proc, Status)> {
    one_of_each(object, other)
        .into_iter()
        .map(|(proc, message)| (proc, status(proc, results(1, &rig.answer(&message)))))
        .collect()
}

#[test]
fn handles_that_are_none_are_told_apart() {
    let rig = Rig::new();
    let elsewhere = memory("/elsewhere").root();
    let mut forged = rig.root().as_bytes().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let forged = Handle::new(&forged).unwrap();
    for (handle, want) in [
        (Handle::new(b"").unwrap(), Status::BADHANDLE),
        (Handle::new(&[0xff; 64]).unwrap(), Status::BADHANDLE),
        (forged, Status::BADHANDLE),
        (elsewhere, Status::STALE),
    ] {
        for (proc, got) in statuses(&rig, handle, handle) {
            assert_eq!(got, want, "{proc} {handle:?}");
        }
    }
}

#[test]
fn peers_that_an_export_does_not_serve_are_refused() {
    let mut rig = Rig::new();
    let root = rig.private.root();
    for (proc, got) in statuses(&rig, root, root) {
        assert_eq!(got, Status::ACCES, "{proc}");
    }
    assert_eq!(rig.service.counters().turned_away.load(Ordering::Relaxed), 21);
    rig.origin = origin("[::ffff:10.1.2.3]:700");
    assert_eq!(rig.status(&GetAttrArgs { object: root }), Status::OK);
}

#[test]
fn a_read_only_export_is_not_changed() {
    let rig = Rig::new();
    let root = rig.ro.root();
    for (proc, got) in statuses(&rig, root, root) {
        if binding::cached(proc) {
            assert_eq!(got, Status::ROFS, "{proc}");
        } else {
            assert_ne!(got, Status::ROFS, "{proc}");
        }
    }
}

#[test]
fn names_do_not_move_between_exports() {
    let mut rig = Rig::new();
    let file = rig.file(b"f", b"");
    let to = DirOp { dir: rig.ro.root(), name: b"g" };
    let from = DirOp { dir: rig.root(), name: b"f" };
    assert_eq!(rig.status(&RenameArgs { from, to }), Status::XDEV);
    assert_eq!(rig.status(&LinkArgs { file, to }), Status::XDEV);
    let to = DirOp { dir: memory("/elsewhere").root(), name: b"g" };
    assert_eq!(rig.status(&RenameArgs { from, to }), Status::STALE);
}

#[test]
fn root_is_nobody_and_nobody_is_root() {
    let rig = Rig::new();
    let owner = |uid, xid| {
        let at = DirOp { dir: rig.root(), name: &[b'a' + uid as u8 % 26] };
        let args = CreateArgs { at, how: CreateMode::Unchecked(SetAttributes::default()) };
        let reply = rig.answer(&call_as(uid, xid, (v3::PROGRAM, 3, Proc::Create as u32), &args));
        ok(CreateResult::decode(&mut Reader::new(results(xid, &reply)))).attributes.unwrap().uid
    };
    assert_eq!(owner(0, 1), 65534);
    assert_eq!(owner(1001, 2), 1001);
}

#[test]
fn arguments_that_do_not_decode_are_garbage() {
    let rig = Rig::new();
    let root = rig.root();
    let header = call_as(ALICE, 1, (v3::PROGRAM, 3, 0), &NullArgs {}).len();
    for (proc, message) in one_of_each(root, root) {
        for len in (header..message.len()).step_by(4) {
            assert_eq!(fault(&rig.answer(&message[..len])), Fault::GarbageArgs, "{proc} cut to {len}");
        }
        let longer = [&message[..], &[0; 8]].concat();
        assert_eq!(ReplyHeader::decode(&mut Reader::new(&rig.answer(&longer))).unwrap().status, Ok(()));
    }
    let mut huge = nfs_call(1, &GetAttrArgs { object: root });
    huge[header..header + 4].copy_from_slice(&65u32.to_be_bytes());
    assert_eq!(fault(&rig.answer(&huge)), Fault::GarbageArgs);
    assert!(rig.service.cache.iter().all(|c| c.lock().len() <= 10), "garbage leaves no entries");
}

#[test]
fn what_decodes_badly_is_not_remembered() {
    let rig = Rig::new();
    let root = rig.root();
    let whole =
        nfs_call(8, &MkDirArgs { at: DirOp { dir: root, name: b"d" }, attributes: SetAttributes::default() });
    assert_eq!(fault(&rig.answer(&whole[..whole.len() - 4])), Fault::GarbageArgs);
    let reply = rig.answer(&whole);
    assert_eq!(CreateResult::decode(&mut Reader::new(results(8, &reply))).unwrap().status(), Status::OK);
}

#[test]
fn headers_are_checked_in_order() {
    let rig = Rig::new();
    let call = |prog, vers, proc| call_as(ALICE, 0x11, (prog, vers, proc), &NullArgs {});
    let answer = |message: &[u8]| rig.answer(message);
    assert_eq!(
        answer(&call(v3::PROGRAM, 4, 0)),
        hex("0000001100000001000000000000000000000000000000020000000300000003")
    );
    assert_eq!(
        answer(&call(v3::PROGRAM, 2, 99)),
        hex("0000001100000001000000000000000000000000000000020000000300000003")
    );
    assert_eq!(fault(&answer(&call(mount::PROGRAM, 1, 1))), Fault::ProgMismatch { low: 3, high: 3 });
    assert_eq!(answer(&call(100_227, 3, 0)), hex("000000110000000100000000000000000000000000000001"));
    assert_eq!(fault(&answer(&call(v3::PROGRAM, 3, 22))), Fault::ProcUnavail);
    assert_eq!(fault(&answer(&call(mount::PROGRAM, 3, 6))), Fault::ProcUnavail);

    let mut wrong_rpc = call(v3::PROGRAM, 3, 0);
    wrong_rpc[11] = 3;
    assert_eq!(answer(&wrong_rpc), hex("000000110000000100000001000000000000000200000002"));
    let mut gss = call(100_227, 3, 0);
    gss[27] = 6;
    assert_eq!(fault(&answer(&gss)), Fault::Auth(rpc::AuthStat::BAD_CRED), "before the program is looked at");
    let mut verf = call(v3::PROGRAM, 9, 0);
    let at = verf.len() - 5;
    verf[at] = 1;
    assert_eq!(fault(&answer(&verf)), Fault::Auth(rpc::AuthStat::BAD_VERF));
    assert_eq!(fault(&answer(&call(v3::PROGRAM, 3, 0)[..32])), Fault::GarbageArgs);

    assert_eq!(rig.serve(&call(v3::PROGRAM, 3, 0)[..20], &[]), (Served::Close, vec![]));
    assert_eq!(rig.serve(&[], &[]), (Served::Close, vec![]));
    let mut reply = call(v3::PROGRAM, 3, 0);
    reply[7] = 1;
    assert_eq!(rig.serve(&reply, &[]), (Served::Silent, vec![]));
    reply[7] = 9;
    assert_eq!(rig.serve(&reply, &[]), (Served::Silent, vec![]));
}

proptest::proptest! {
    #[test]
    fn any_bytes_get_a_whole_answer_or_none(
        which in 0..21usize,
        flips in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 1..=255u8), 0..4),
        cut in proptest::prelude::any::<proptest::sample::Index>(),
    ) {
        let rig = Rig::new();
        let root = rig.root();
        let (_, mut message) = one_of_each(root, root).swap_remove(which);
        for (at, bits) in &flips {
            let at = at.index(message.len());
            message[at] ^= bits;
        }
        if flips.len() > 2 {
            message.truncate(cut.index(message.len() + 1));
        }
        let (served, reply) = rig.serve(&message, &[]);
        match served {
            Served::Reply => {
                let header = ReplyHeader::decode(&mut Reader::new(&reply)).unwrap();
                proptest::prop_assert_eq!(&header.xid.0.to_be_bytes()[..], &message[..4]);
            }
            Served::Silent | Served::Close => proptest::prop_assert!(reply.is_empty()),
            Served::WouldBlock => proptest::prop_assert!(false),
        }
        proptest::prop_assert_eq!(rig.pools.in_use(), 0);
    }
}
