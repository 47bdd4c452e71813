//! READ, WRITE, COMMIT, and the size of files.

use super::*;
use rpcrdma_nfs::v3::{NodeKind, SetAttributes};

fn size(size: u64) -> SetAttributes {
    SetAttributes { size: Some(size), ..SetAttributes::default() }
}

pub(super) fn reading_and_writing(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let written = t.export.write(&t.me, &file, 0, b"hello, world", Stable::Unstable);
    assert_moved(&written.attrs);
    assert_eq!(written.attrs.before.unwrap().size, 0);
    assert_eq!(written.attrs.after.unwrap().size, 12);
    assert_eq!(written.result.unwrap().count, 12);
    t.put(&file, 7, b"there");
    assert_eq!(t.get(&file, 0, 100), (b"hello, there".to_vec(), true));
    assert_eq!(t.get(&file, 3, 4), (b"lo, ".to_vec(), false));
    let empty = t.export.write(&t.me, &file, 5, b"", Stable::FileSync).result.unwrap();
    assert_eq!(empty.count, 0);
    assert_eq!(t.attrs(&file).size, 12);
    // What was just written is in memory, so nobody has to wait, unless the filesystem cannot tell.
    let mut buf = [0; 12];
    if let Ok(read) = t.export.read(&t.me, &file, 0, &mut buf, Patience::Now) {
        assert_eq!(read.result, Ok(ReadDone { count: 12, eof: true }));
        assert_eq!(&buf, b"hello, there");
        assert_eq!(read.attrs.unwrap().size, 12);
    }
}

pub(super) fn the_end_of_a_file(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    assert_eq!(t.get(&file, 0, 10), (vec![], true));
    t.put(&file, 0, b"0123456789");
    assert_eq!(t.get(&file, 0, 9), (b"012345678".to_vec(), false));
    assert_eq!(t.get(&file, 0, 10), (b"0123456789".to_vec(), true));
    assert_eq!(t.get(&file, 9, 1), (b"9".to_vec(), true));
    assert_eq!(t.get(&file, 10, 1), (vec![], true));
    assert_eq!(t.get(&file, 0, 0), (vec![], false));
    assert_eq!(t.get(&file, 10, 0), (vec![], true));
    for beyond in [11, i64::MAX as u64, 1 << 63, u64::MAX] {
        assert_eq!(t.get(&file, beyond, 5), (vec![], true), "{beyond:#x}");
    }
}

pub(super) fn holes_and_large_files(t: &Fixture) {
    let file = t.file(&t.root(), "large");
    let far = 5 << 30;
    t.put(&file, far, b"end");
    assert_eq!(t.attrs(&file).size, far + 3);
    assert!(t.attrs(&file).used < 1 << 20, "a hole takes no space");
    assert_eq!(t.get(&file, far - 2, 10), (b"\0\0end".to_vec(), true));
    assert_eq!(t.get(&file, 1 << 32, 3), (vec![0; 3], false));
    assert_eq!(t.set(&file, size((1 << 32) + 1)), Status::OK);
    assert_eq!(t.get(&file, 1 << 32, 3), (vec![0], true));
    for offset in [i64::MAX as u64, u64::MAX - 1] {
        let status = t.export.write(&t.me, &file, offset, b"xy", Stable::Unstable).status();
        assert!(matches!(status, Status::FBIG) || t.attrs(&file).size == i64::MAX as u64, "{status}");
    }
    assert_eq!(t.set(&file, size(1 << 63)), Status::FBIG);
}

pub(super) fn what_has_no_data(t: &Fixture) {
    let root = t.root();
    let link = t.export.symlink(&t.me, &root, b"link", &SetAttributes::default(), b"x").result.unwrap();
    let fifo = t.export.mknod(&t.me, &root, b"fifo", &NodeKind::Fifo(with_mode(0o644))).result.unwrap();
    let cases = [
        (t.dir(&root, "dir"), Status::ISDIR),
        (link.handle.unwrap(), Status::INVAL),
        (fifo.handle.unwrap(), Status::INVAL),
    ];
    for (object, status) in cases {
        let mut buf = [0; 4];
        let read = t.export.read(&t.me, &object, 0, &mut buf, Patience::Wait).unwrap();
        assert_eq!(read.status(), status);
        assert!(read.attrs.is_some(), "a failure brings attributes too");
        let write = t.export.write(&t.me, &object, 0, b"x", Stable::Unstable);
        assert_eq!(write.status(), status);
        assert_same(&write.attrs);
        assert_eq!(t.export.commit(&t.me, &object, 0, 0).status(), status);
        assert_eq!(t.set(&object, size(0)), status);
    }
}

pub(super) fn stable_writes_and_commit(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let mut verifier = None;
    for (at, stable) in [Stable::Unstable, Stable::DataSync, Stable::FileSync].into_iter().enumerate() {
        let written = t.export.write(&t.me, &file, at as u64 * 4, b"data", stable).result.unwrap();
        assert_eq!(written.count, 4);
        assert!(written.committed >= stable);
        assert_eq!(*verifier.get_or_insert(written.verifier), written.verifier);
    }
    let committed = t.export.commit(&t.me, &file, 0, 0);
    assert_eq!(committed.result, Ok(verifier.unwrap()));
    assert_eq!(committed.attrs.after.unwrap().size, 12);
    assert_eq!(t.get(&file, 0, 100), (b"datadatadata".to_vec(), true));
}

pub(super) fn setting_the_size(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    t.put(&file, 0, b"0123456789");
    let set = t.export.setattr(&t.me, &file, &size(4), None);
    assert_eq!(set.status(), Status::OK);
    assert_eq!((set.attrs.before.unwrap().size, set.attrs.after.unwrap().size), (10, 4));
    assert_eq!(t.set(&file, size(8)), Status::OK);
    assert_eq!(t.get(&file, 0, 10), (b"0123\0\0\0\0".to_vec(), true));
}

pub(super) fn removed_files_are_stale(t: &Fixture) {
    let root = t.root();
    let file = t.file(&root, "file");
    t.put(&file, 0, b"x");
    assert_eq!(t.get(&file, 0, 1).0, b"x");
    assert_eq!(t.export.remove(&t.me, &root, b"file").status(), Status::OK);
    let mut buf = [0; 1];
    assert_eq!(t.export.getattr(&t.me, &file), Err(Status::STALE));
    let read = t.export.read(&t.me, &file, 0, &mut buf, Patience::Wait).unwrap();
    assert_eq!((read.status(), read.attrs), (Status::STALE, None));
    assert_eq!(t.export.write(&t.me, &file, 0, b"y", Stable::Unstable).status(), Status::STALE);
    assert_eq!(t.export.commit(&t.me, &file, 0, 0).status(), Status::STALE);
    assert_eq!(t.set(&file, size(0)), Status::STALE);
    let again = t.file(&root, "file");
    assert_ne!(again, file, "a new file is another one even if it gets the same number");
    assert_eq!(t.export.getattr(&t.me, &file), Err(Status::STALE));
}
