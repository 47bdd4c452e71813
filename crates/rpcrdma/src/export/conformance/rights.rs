//! Who may do what: SETATTR, ACCESS, permissions, read-only callers; FSSTAT, FSINFO and PATHCONF.

use super::*;
use rpcrdma_nfs::v3::{AccessMask, FileType, FsInfo, NfsTime, NodeKind, SetAttributes, SetTime};

const ALICE: u32 = 1000;
const BOB: u32 = 1001;
const TEAM: u32 = 5000;

fn alice() -> Caller {
    Caller::new(ALICE, ALICE, &[])
}

fn bob() -> Caller {
    Caller::new(BOB, BOB, &[7, TEAM])
}

pub(super) fn setting_attributes(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let times = SetAttributes {
        atime: SetTime::Client(NfsTime::new(1_000_000, 123)),
        mtime: SetTime::Client(NfsTime::new(2_000_000, 999_999_999)),
        ..with_mode(0o604)
    };
    let set = t.export.setattr(&t.me, &file, &times, None);
    assert_eq!(set.status(), Status::OK);
    assert_moved(&set.attrs);
    let attrs = t.attrs(&file);
    assert_eq!(set.attrs.after, Some(attrs));
    assert_eq!(attrs.mode, 0o604);
    assert_eq!(
        (attrs.atime, attrs.mtime),
        (NfsTime::new(1_000_000, 123), NfsTime::new(2_000_000, 999_999_999))
    );
    let touch = SetAttributes { mtime: SetTime::Server, ..SetAttributes::default() };
    assert_eq!(t.set(&file, touch), Status::OK);
    assert!(t.attrs(&file).mtime != attrs.mtime && t.attrs(&file).atime == attrs.atime);
    assert_eq!(t.set(&file, SetAttributes::default()), Status::OK);
    let bad = SetAttributes { atime: SetTime::Client(NfsTime::new(1, 1_000_000_000)), ..with_mode(0) };
    assert_eq!(t.set(&file, bad), Status::INVAL);
    assert_eq!(t.attrs(&file).mode, 0o604);
    // Things that are not files have modes and times, too.
    let none = SetAttributes::default();
    let dir = t.dir(&t.root(), "dir");
    let fifo =
        t.export.mknod(&t.me, &t.root(), b"fifo", &NodeKind::Fifo(none)).result.unwrap().handle.unwrap();
    for object in [dir, fifo] {
        assert_eq!(t.set(&object, times), Status::OK);
        let attrs = t.attrs(&object);
        assert_eq!((attrs.mode, attrs.atime), (0o604, NfsTime::new(1_000_000, 123)));
    }
    let link = t.export.symlink(&t.me, &t.root(), b"link", &none, b"x").result.unwrap().handle.unwrap();
    let only_times = SetAttributes { mode: None, ..times };
    assert_eq!(t.set(&link, only_times), Status::OK);
    assert_eq!(t.attrs(&link).mtime, NfsTime::new(2_000_000, 999_999_999));
    if t.me.uid() == 0 {
        let owner = SetAttributes { uid: Some(ALICE), gid: Some(TEAM), ..none };
        for object in [file, dir, fifo, link] {
            assert_eq!(t.set(&object, owner), Status::OK);
            assert_eq!((t.attrs(&object).uid, t.attrs(&object).gid), (ALICE, TEAM));
        }
        // Given at birth.
        let made = t.export.create(&t.me, &t.root(), b"given", &CreateMode::Guarded(owner)).result.unwrap();
        assert_eq!((made.attrs.unwrap().uid, made.attrs.unwrap().gid), (ALICE, TEAM));
    }
}

pub(super) fn guards(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let ctime = t.attrs(&file).ctime;
    let wrong = NfsTime::new(ctime.seconds.wrapping_sub(1), ctime.nanos);
    let refused = t.export.setattr(&t.me, &file, &with_mode(0o600), Some(wrong));
    assert_eq!(refused.status(), Status::NOT_SYNC);
    assert_same(&refused.attrs);
    assert_eq!(t.attrs(&file).mode, 0o644);
    assert_eq!(t.export.setattr(&t.me, &file, &with_mode(0o600), Some(ctime)).status(), Status::OK);
    assert_eq!(t.attrs(&file).mode, 0o600);
}

pub(super) fn read_only_callers(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file");
    t.put(&file, 0, b"content");
    let me = t.me.with_read_only(true);
    let none = SetAttributes::default();
    let statuses = [
        t.export.setattr(&me, &file, &none, None).status(),
        t.export.write(&me, &file, 0, b"x", Stable::Unstable).status(),
        t.export.create(&me, &root, b"x", &CreateMode::Unchecked(none)).status(),
        t.export.create(&me, &root, b"file", &CreateMode::Unchecked(none)).status(),
        t.export.mkdir(&me, &root, b"x", &none).status(),
        t.export.symlink(&me, &root, b"x", &none, b"x").status(),
        t.export.mknod(&me, &root, b"x", &NodeKind::Fifo(none)).status(),
        t.export.remove(&me, &root, b"file").status(),
        t.export.rmdir(&me, &root, b"x").status(),
        t.export.rename(&me, (&root, b"file"), (&root, b"x")).status(),
        t.export.link(&me, &file, &root, b"x").status(),
        t.export.commit(&me, &file, 0, 0).status(),
    ];
    assert_eq!(statuses, [Status::ROFS; 12]);
    let access = t.export.access(&me, &file, AccessMask::ALL).result.unwrap();
    assert_eq!(access, AccessMask::READ);
    let mut buf = [0; 7];
    assert_eq!(t.export.read(&me, &file, 0, &mut buf, Patience::Wait).unwrap().status(), Status::OK);
    assert_eq!(&buf, b"content");
    assert_eq!(t.list(&root), [".", "..", "file"]);
}

pub(super) fn permissions(t: &Fixture) {
    if !t.identities {
        return;
    }
    let root = t.root();
    let mut buf = [0; 6];
    let mut read = |caller: &Caller, file: &Handle| {
        t.export.read(caller, file, 0, &mut buf, Patience::Wait).unwrap().status()
    };
    let write =
        |caller: &Caller, file: &Handle| t.export.write(caller, file, 0, b"x", Stable::Unstable).status();
    let secret = t.file_as(&t.me, &root, "secret", 0o600);
    t.put(&secret, 0, b"secret");
    assert_eq!(read(&t.me, &secret), Status::OK);
    assert_eq!(read(&alice(), &secret), Status::ACCES);
    assert_eq!(write(&alice(), &secret), Status::ACCES);
    assert_eq!(t.export.commit(&alice(), &secret, 0, 0).status(), Status::ACCES);
    let cut = SetAttributes { size: Some(0), ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&alice(), &secret, &cut, None).status(), Status::ACCES);
    assert_eq!(t.export.setattr(&alice(), &secret, &with_mode(0o666), None).status(), Status::PERM);
    let chown = SetAttributes { uid: Some(ALICE), ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&alice(), &secret, &chown, None).status(), Status::PERM);
    let touch = SetAttributes { atime: SetTime::Server, mtime: SetTime::Server, ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&alice(), &secret, &touch, None).status(), Status::ACCES);

    // The group may read, and who is in it by a supplementary group may.
    let group = SetAttributes { gid: Some(TEAM), ..with_mode(0o640) };
    assert_eq!(t.set(&secret, group), Status::OK);
    assert_eq!((read(&alice(), &secret), read(&bob(), &secret)), (Status::ACCES, Status::OK));
    assert_eq!(write(&bob(), &secret), Status::ACCES);
    // Rights that are taken away are gone at once, whatever was remembered.
    assert_eq!(t.set(&secret, with_mode(0o600)), Status::OK);
    assert_eq!(read(&bob(), &secret), Status::ACCES);
    assert_eq!(t.set(&secret, with_mode(0o666)), Status::OK);
    assert_eq!((read(&alice(), &secret), write(&alice(), &secret)), (Status::OK, Status::OK));
    assert_eq!(t.set(&secret, with_mode(0o711)), Status::OK);
    assert_eq!(
        (read(&alice(), &secret), write(&alice(), &secret)),
        (Status::OK, Status::ACCES),
        "to execute"
    );

    // Directories: w to change, x to look up, r to list.
    let dir = t.dir_as(&t.me, &root, "dir", 0o755);
    t.file(&dir, "file");
    let create = |caller: &Caller, name: &[u8]| {
        t.export.create(caller, &dir, name, &CreateMode::Guarded(with_mode(0o644))).status()
    };
    let from = ReadDir { cookie: 0, verifier: CookieVerifier::default(), plus: true, room: 4096 };
    assert_eq!(create(&alice(), b"new"), Status::ACCES);
    assert_eq!(create(&alice(), b"file"), Status::EXIST, "that it exists is no secret");
    assert_eq!(t.export.remove(&alice(), &dir, b"file").status(), Status::ACCES);
    assert_eq!(t.export.mkdir(&alice(), &dir, b"x", &with_mode(0o755)).status(), Status::ACCES);
    assert_eq!(t.export.lookup(&alice(), &dir, b"file").status(), Status::OK);
    assert_eq!(t.set(&dir, with_mode(0o744)), Status::OK);
    assert_eq!(t.export.lookup(&alice(), &dir, b"file").status(), Status::ACCES);
    let mut names = Names::new(10);
    assert_eq!(t.export.readdir(&alice(), &dir, &from, &mut names).result, Ok(true));
    assert!(names.taken.iter().all(|e| e.handle.is_none() && e.attrs.is_none()), "names only");
    assert_eq!(t.set(&dir, with_mode(0o711)), Status::OK);
    assert_eq!(t.export.readdir(&alice(), &dir, &from, &mut Names::new(10)).status(), Status::ACCES);
    assert_eq!(t.set(&dir, with_mode(0o777)), Status::OK);
    assert_eq!(create(&alice(), b"new"), Status::OK);
    let new = t.find(&dir, "new").unwrap();
    assert_eq!((t.attrs(&new).uid, t.attrs(&new).gid), (ALICE, ALICE));
    let give_away = SetAttributes { uid: Some(BOB), ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&alice(), &new, &give_away, None).status(), Status::PERM);
    let own_group = SetAttributes { gid: Some(TEAM), ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&alice(), &new, &own_group, None).status(), Status::PERM);
    let device = NodeKind::Character(SetAttributes::default(), (1, 3));
    assert_eq!(t.export.mknod(&alice(), &dir, b"null", &device).status(), Status::PERM);
}

pub(super) fn owners_keep_their_data(t: &Fixture) {
    // A client that made a file read-only, or made it so, still writes what it has open.
    let root = t.root();
    let owner = if t.identities { alice() } else { t.me };
    let file = t.file_as(&owner, &root, "file", 0o000);
    let written = t.export.write(&owner, &file, 0, b"content", Stable::Unstable);
    assert_eq!(written.status(), Status::OK);
    let mut buf = [0; 7];
    assert_eq!(t.export.read(&owner, &file, 0, &mut buf, Patience::Wait).unwrap().status(), Status::OK);
    assert_eq!(&buf, b"content");
    assert_eq!(t.export.commit(&owner, &file, 0, 0).status(), Status::OK);
    let cut = SetAttributes { size: Some(3), ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&owner, &file, &cut, None).status(), Status::OK);
    assert_eq!((t.attrs(&file).mode, t.attrs(&file).size), (0, 3));
}

pub(super) fn sticky_directories(t: &Fixture) {
    if !t.identities {
        return;
    }
    let root = t.root();
    let dir = t.dir_as(&t.me, &root, "dir", 0o1777);
    t.file_as(&alice(), &dir, "hers", 0o666);
    assert_eq!(t.export.remove(&bob(), &dir, b"hers").status(), Status::PERM);
    assert_eq!(t.export.rename(&bob(), (&dir, b"hers"), (&dir, b"his")).status(), Status::PERM);
    t.file_as(&bob(), &dir, "his", 0o666);
    assert_eq!(t.export.rename(&bob(), (&dir, b"his"), (&dir, b"hers")).status(), Status::PERM);
    assert_eq!(t.export.rename(&alice(), (&dir, b"hers"), (&dir, b"mine")).status(), Status::OK);
    assert_eq!(t.export.remove(&alice(), &dir, b"mine").status(), Status::OK);
    assert_eq!(t.export.remove(&t.me, &dir, b"his").status(), Status::OK);
}

pub(super) fn group_inheritance(t: &Fixture) {
    if !t.identities {
        return;
    }
    let dir = t.dir_as(&t.me, &t.root(), "dir", 0o755);
    let set = SetAttributes { gid: Some(TEAM), ..with_mode(0o2777) };
    assert_eq!(t.set(&dir, set), Status::OK);
    let file = t.file_as(&alice(), &dir, "file", 0o644);
    assert_eq!((t.attrs(&file).uid, t.attrs(&file).gid), (ALICE, TEAM));
    let sub = t.dir_as(&alice(), &dir, "sub", 0o755);
    assert_eq!((t.attrs(&sub).gid, t.attrs(&sub).mode), (TEAM, 0o2755));
}

pub(super) fn set_id_bits(t: &Fixture) {
    if !t.identities {
        return;
    }
    let root = t.root();
    let file = t.file_as(&alice(), &root, "file", 0o666);
    assert_eq!(t.set(&file, with_mode(0o6777)), Status::OK);
    assert_eq!(t.export.write(&bob(), &file, 0, b"x", Stable::Unstable).status(), Status::OK);
    assert_eq!(t.attrs(&file).mode, 0o777, "a write by somebody takes the bits away");
    assert_eq!(t.set(&file, with_mode(0o6777)), Status::OK);
    let cut = SetAttributes { size: Some(0), ..SetAttributes::default() };
    assert_eq!(t.export.setattr(&bob(), &file, &cut, None).status(), Status::OK);
    assert_eq!(t.attrs(&file).mode, 0o777);
    assert_eq!(t.set(&file, with_mode(0o6777)), Status::OK);
    let chown = SetAttributes { uid: Some(BOB), ..SetAttributes::default() };
    assert_eq!(t.set(&file, chown), Status::OK);
    assert_eq!(t.attrs(&file).mode, 0o777);
    // Set-group-id for a group one is not in is not to be had.
    let group = SetAttributes { gid: Some(TEAM), uid: Some(ALICE), ..SetAttributes::default() };
    assert_eq!(t.set(&file, group), Status::OK);
    assert_eq!(t.export.setattr(&alice(), &file, &with_mode(0o2755), None).status(), Status::OK);
    assert_eq!(t.attrs(&file).mode, 0o755);
}

pub(super) fn what_access_says(t: &Fixture) {
    let root = t.root();
    let file = t.file_as(&t.me, &root, "file", 0o750);
    let dir = t.dir_as(&t.me, &root, "dir", 0o755);
    let access = |caller: &Caller, object: &Handle, mask: AccessMask| {
        let outcome = t.export.access(caller, object, mask);
        assert!(outcome.attrs.is_some());
        outcome.result.unwrap().0
    };
    let all = AccessMask::ALL;
    assert_eq!(access(&t.me, &file, all), 0x2d);
    assert_eq!(access(&t.me, &dir, all), 0x1f);
    assert_eq!(access(&t.me, &file, AccessMask::READ), 0x01, "only what was asked for");
    assert_eq!(access(&t.me, &file, AccessMask(0)), 0);
    if t.identities {
        assert_eq!(access(&alice(), &file, all), 0);
        assert_eq!(access(&alice(), &dir, all), 0x03);
        let plain = t.file_as(&t.me, &root, "plain", 0o644);
        assert_eq!(access(&t.me, &plain, all), 0x0d, "even root cannot execute it");
        assert_eq!(access(&alice(), &plain, all), 0x01);
        assert_eq!(t.set(&plain, SetAttributes { gid: Some(TEAM), ..with_mode(0o664) }), Status::OK);
        assert_eq!(access(&bob(), &plain, all), 0x0d);
        assert_eq!(access(&alice(), &plain, all), 0x01);
    }
}

pub(super) fn limits_and_totals(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let stat = t.export.fsstat(&t.me, &t.root());
    assert!(stat.attrs.is_some());
    let stat = stat.result.unwrap();
    assert!(stat.total_bytes >= stat.free_bytes && stat.free_bytes >= stat.available_bytes);
    assert!(stat.total_bytes > 0 && stat.total_files >= stat.free_files);
    let info = t.export.fsinfo(&t.me, &file).result.unwrap();
    assert!(info.rtmax >= info.rtpref && info.wtmax >= info.wtpref && info.maxfilesize > 1 << 40);
    assert_eq!(info.properties, 0x1b);
    assert_eq!(info.properties & FsInfo::FSF_LINK, 1);
    let conf = t.export.pathconf(&t.me, &file).result.unwrap();
    assert_eq!((conf.name_max, conf.no_trunc, conf.case_insensitive), (255, true, false));
    let attrs = t.attrs(&file);
    assert_eq!(attrs.file_type, FileType::Regular);
    assert_eq!(attrs.fsid, t.attrs(&t.root()).fsid);
    assert_eq!(ExportId::of(&file), Some(t.export.id()));
}
