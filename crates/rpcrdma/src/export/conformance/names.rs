//! LOOKUP, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME and LINK.

use super::*;
use rpcrdma_nfs::v3::{CreateVerifier, FileType, NodeKind, SetAttributes};

pub(super) fn looking_up(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file");
    let found = t.export.lookup(&t.me, &dir, b"file");
    assert_eq!(found.attrs.unwrap(), t.attrs(&dir));
    let found = found.result.unwrap();
    assert_eq!((found.handle, found.attrs), (file, Some(t.attrs(&file))));
    assert_eq!(t.find(&dir, "."), Ok(dir));
    assert_eq!(t.find(&dir, ".."), Ok(root));
    assert_eq!(t.find(&root, "."), Ok(root));
    assert_eq!(t.find(&root, ".."), Ok(root));
    let missing = t.export.lookup(&t.me, &dir, b"missing");
    assert_eq!((missing.status(), missing.attrs), (Status::NOENT, Some(t.attrs(&dir))));
    assert_eq!(t.find(&file, "x"), Err(Status::NOTDIR));
    assert_eq!(t.find(&file, ".."), Err(Status::NOTDIR));
}

pub(super) fn bad_names(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&root, "file");
    let long = [b'n'; 256];
    let cases: [(&[u8], Status); 5] = [
        (b"", Status::INVAL),
        (b"a/b", Status::INVAL),
        (b"../dir", Status::INVAL),
        (b"a\0b", Status::INVAL),
        (&long, Status::NAMETOOLONG),
    ];
    let none = SetAttributes::default();
    for (name, status) in cases {
        assert_eq!(t.export.lookup(&t.me, &root, name).status(), status);
        assert_eq!(t.export.create(&t.me, &root, name, &CreateMode::Unchecked(none)).status(), status);
        assert_eq!(t.export.mkdir(&t.me, &root, name, &none).status(), status);
        assert_eq!(t.export.symlink(&t.me, &root, name, &none, b"x").status(), status);
        assert_eq!(t.export.mknod(&t.me, &root, name, &NodeKind::Fifo(none)).status(), status);
        assert_eq!(t.export.remove(&t.me, &root, name).status(), status);
        assert_eq!(t.export.rmdir(&t.me, &root, name).status(), status);
        assert_eq!(t.export.rename(&t.me, (&root, name), (&root, b"x")).status(), status);
        assert_eq!(t.export.rename(&t.me, (&root, b"file"), (&root, name)).status(), status);
        assert_eq!(t.export.link(&t.me, &file, &root, name).status(), status);
    }
    for dot in [b".".as_slice(), b".."] {
        assert_eq!(t.export.create(&t.me, &dir, dot, &CreateMode::Unchecked(none)).status(), Status::EXIST);
        assert_eq!(t.export.mkdir(&t.me, &dir, dot, &none).status(), Status::EXIST);
        assert_eq!(t.export.link(&t.me, &file, &dir, dot).status(), Status::EXIST);
        assert_eq!(t.export.remove(&t.me, &dir, dot).status(), Status::ISDIR);
        assert_eq!(t.export.rename(&t.me, (&dir, dot), (&root, b"x")).status(), Status::INVAL);
        assert_eq!(t.export.rename(&t.me, (&root, b"file"), (&dir, dot)).status(), Status::INVAL);
    }
    assert_eq!(t.export.rmdir(&t.me, &dir, b".").status(), Status::INVAL);
    assert_eq!(t.export.rmdir(&t.me, &dir, b"..").status(), Status::EXIST);
    assert_eq!(t.list(&root), [".", "..", "dir", "file"]);
    let longest = "n".repeat(255);
    t.file(&root, &longest);
    assert!(t.find(&root, &longest).is_ok());
    // Names are bytes.
    let odd = b"\xff \n\\".as_slice();
    assert_eq!(t.export.mkdir(&t.me, &root, odd, &none).status(), Status::OK);
    assert_eq!(t.export.rmdir(&t.me, &root, odd).status(), Status::OK);
}

pub(super) fn creating_files(t: &Fixture) {
    let root = t.root();
    let set = SetAttributes { size: Some(5), ..with_mode(0o640) };
    let made = t.export.create(&t.me, &root, b"file", &CreateMode::Guarded(set));
    assert_moved(&made.attrs);
    let made = made.result.unwrap();
    let file = made.handle.unwrap();
    assert_eq!(made.attrs, Some(t.attrs(&file)));
    let attrs = t.attrs(&file);
    assert_eq!((attrs.file_type, attrs.mode, attrs.nlink, attrs.size), (FileType::Regular, 0o640, 1, 5));
    assert_eq!((attrs.uid, attrs.gid), (t.me.uid(), t.me.gid()));
    assert_ne!(attrs.fileid, 0);
    assert_eq!(t.find(&root, "file"), Ok(file));
    // Every bit that a client asks for, whatever the server's umask says.
    for mode in [0o000, 0o777, 0o666, 0o755] {
        let name = format!("mode{mode:o}");
        assert_eq!(t.attrs(&t.file_as(&t.me, &root, &name, mode)).mode, mode);
        assert_eq!(t.attrs(&t.dir_as(&t.me, &root, &format!("dir{mode:o}"), mode)).mode & 0o777, mode);
    }

    t.put(&file, 0, b"01234");
    let again = t.export.create(&t.me, &root, b"file", &CreateMode::Guarded(set));
    assert_eq!(again.status(), Status::EXIST);
    assert_same(&again.attrs);
    let unchecked = CreateMode::Unchecked(with_mode(0o600));
    let same = t.export.create(&t.me, &root, b"file", &unchecked).result.unwrap();
    assert_eq!(same.handle, Some(file));
    assert_eq!((t.attrs(&file).mode, t.attrs(&file).size), (0o640, 5), "an existing file keeps its mode");
    let cut = CreateMode::Unchecked(SetAttributes { size: Some(2), ..with_mode(0o600) });
    assert_eq!(t.export.create(&t.me, &root, b"file", &cut).status(), Status::OK);
    assert_eq!(t.get(&file, 0, 9), (b"01".to_vec(), true));

    t.dir(&root, "dir");
    let none = SetAttributes::default();
    assert_eq!(t.export.symlink(&t.me, &root, b"link", &none, b"file").status(), Status::OK);
    assert_eq!(t.export.symlink(&t.me, &root, b"dangling", &none, b"nowhere").status(), Status::OK);
    for name in ["dir", "link", "dangling"] {
        assert_eq!(
            t.export.create(&t.me, &root, name.as_bytes(), &unchecked).status(),
            Status::EXIST,
            "{name}"
        );
    }
    assert_eq!(t.find(&root, "nowhere"), Err(Status::NOENT), "nothing is created through a symlink");
    assert_eq!(t.export.create(&t.me, &file, b"x", &unchecked).status(), Status::NOTDIR);
}

pub(super) fn creating_exclusively(t: &Fixture) {
    let root = t.root();
    let once = CreateMode::Exclusive(CreateVerifier(*b"\xff234\x8567\xff"));
    let other = CreateMode::Exclusive(CreateVerifier(*b"\xff234\x8567\xfe"));
    let first = t.export.create(&t.me, &root, b"file", &once).result.unwrap();
    let retry = t.export.create(&t.me, &root, b"file", &once).result.unwrap();
    assert_eq!(first.handle, retry.handle);
    assert_eq!(t.export.create(&t.me, &root, b"file", &other).status(), Status::EXIST);
    // As soon as the file was used, a late retry is somebody else's attempt.
    t.put(&first.handle.unwrap(), 0, b"x");
    assert_eq!(t.export.create(&t.me, &root, b"file", &once).status(), Status::EXIST);
    t.dir(&root, "dir");
    assert_eq!(t.export.create(&t.me, &root, b"dir", &once).status(), Status::EXIST);
}

pub(super) fn making_directories(t: &Fixture) {
    let root = t.root();
    let links = t.attrs(&root).nlink;
    let made = t.export.mkdir(&t.me, &root, b"dir", &with_mode(0o750));
    assert_moved(&made.attrs);
    let dir = made.result.unwrap().handle.unwrap();
    let attrs = t.attrs(&dir);
    assert_eq!((attrs.file_type, attrs.mode, attrs.nlink), (FileType::Directory, 0o750, 2));
    assert_eq!(t.attrs(&root).nlink, links + 1);
    assert_eq!(t.export.mkdir(&t.me, &root, b"dir", &with_mode(0o750)).status(), Status::EXIST);
    let file = t.file(&dir, "file");
    assert_eq!(t.export.mkdir(&t.me, &file, b"x", &with_mode(0o750)).status(), Status::NOTDIR);
    let full = t.export.rmdir(&t.me, &root, b"dir");
    assert_eq!(full.status(), Status::NOTEMPTY);
    assert_same(&full.attrs);
    assert_eq!(t.export.remove(&t.me, &dir, b"file").status(), Status::OK);
    let removed = t.export.rmdir(&t.me, &root, b"dir");
    assert_eq!(removed.status(), Status::OK);
    assert_moved(&removed.attrs);
    assert_eq!(t.attrs(&root).nlink, links);
    assert_eq!(t.export.getattr(&t.me, &dir), Err(Status::STALE));
    assert_eq!(t.find(&dir, "."), Err(Status::STALE));
    assert_eq!(t.export.mkdir(&t.me, &dir, b"x", &with_mode(0o755)).status(), Status::STALE);
    assert_eq!(t.export.rmdir(&t.me, &root, b"dir").status(), Status::NOENT);
}

pub(super) fn symlinks(t: &Fixture) {
    let root = t.root();
    let none = SetAttributes::default();
    let target = b"/etc/../\xff not a path\\";
    let made = t.export.symlink(&t.me, &root, b"link", &none, target).result.unwrap();
    let link = made.handle.unwrap();
    let attrs = t.attrs(&link);
    assert_eq!((attrs.file_type, attrs.size), (FileType::Symlink, target.len() as u64));
    let mut content = b"before ".to_vec();
    assert_eq!(t.export.readlink(&t.me, &link, &mut content).status(), Status::OK);
    assert_eq!(content, [b"before ".as_slice(), target].concat());
    assert_eq!(t.export.symlink(&t.me, &root, b"link", &none, b"x").status(), Status::EXIST);
    assert_eq!(t.export.symlink(&t.me, &root, b"l", &none, b"").status(), Status::INVAL);
    assert_eq!(t.export.symlink(&t.me, &root, b"l", &none, b"a\0b").status(), Status::INVAL);
    assert_eq!(t.export.symlink(&t.me, &root, b"l", &none, &[b'x'; 4096]).status(), Status::NAMETOOLONG);
    let longest = [b'x'; 4095];
    let made = t.export.symlink(&t.me, &root, b"l", &none, &longest).result.unwrap();
    let mut content = Vec::new();
    assert_eq!(t.export.readlink(&t.me, &made.handle.unwrap(), &mut content).status(), Status::OK);
    assert_eq!(content, longest);
    // A symlink is never followed, wherever it leads.
    assert_eq!(t.find(&link, "passwd"), Err(Status::NOTDIR));
    t.dir(&root, "dir");
    let inside = t.export.symlink(&t.me, &root, b"inside", &none, b"dir").result.unwrap().handle.unwrap();
    assert_eq!(t.find(&inside, "."), Err(Status::NOTDIR));
    assert_eq!(t.export.create(&t.me, &inside, b"f", &CreateMode::Guarded(none)).status(), Status::NOTDIR);
    let file = t.file(&root, "file");
    assert_eq!(t.export.readlink(&t.me, &file, &mut content).status(), Status::INVAL);
    assert_eq!(t.export.readlink(&t.me, &root, &mut content).status(), Status::INVAL);
}

pub(super) fn special_files(t: &Fixture) {
    let root = t.root();
    let set = with_mode(0o640);
    for (name, kind, file_type) in
        [("fifo", NodeKind::Fifo(set), FileType::Fifo), ("socket", NodeKind::Socket(set), FileType::Socket)]
    {
        let made = t.export.mknod(&t.me, &root, name.as_bytes(), &kind).result.unwrap();
        let attrs = t.attrs(&made.handle.unwrap());
        assert_eq!((attrs.file_type, attrs.mode), (file_type, 0o640));
        assert_eq!(t.find(&root, name), Ok(made.handle.unwrap()));
        assert_eq!(t.export.mknod(&t.me, &root, name.as_bytes(), &kind).status(), Status::EXIST);
    }
    let device = NodeKind::Character(set, (7, 300));
    let made = t.export.mknod(&t.me, &root, b"device", &device);
    if t.me.uid() == 0 {
        let attrs = t.attrs(&made.result.unwrap().handle.unwrap());
        assert_eq!((attrs.file_type, attrs.rdev), (FileType::Character, (7, 300)));
        let block = t.export.mknod(&t.me, &root, b"block", &NodeKind::Block(set, (8, 1))).result.unwrap();
        assert_eq!(block.attrs.unwrap().file_type, FileType::Block);
    } else {
        assert_eq!(made.status(), Status::PERM);
    }
    let other = t.export.mknod(&t.me, &root, b"x", &NodeKind::Other(1));
    assert_eq!(other.status(), Status::BADTYPE);
    assert_same(&other.attrs);
    assert_eq!(t.find(&root, "x"), Err(Status::NOENT));
}

pub(super) fn removing(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    t.file(&dir, "file");
    let refused = t.export.remove(&t.me, &root, b"dir");
    assert_eq!(refused.status(), Status::ISDIR);
    assert_same(&refused.attrs);
    assert_eq!(t.export.rmdir(&t.me, &dir, b"file").status(), Status::NOTDIR);
    let removed = t.export.remove(&t.me, &dir, b"file");
    assert_eq!(removed.status(), Status::OK);
    assert_moved(&removed.attrs);
    assert_eq!(t.export.remove(&t.me, &dir, b"file").status(), Status::NOENT);
    let file = t.file(&root, "file");
    assert_eq!(t.export.remove(&t.me, &file, b"x").status(), Status::NOTDIR);
    assert_eq!(t.export.rmdir(&t.me, &file, b"x").status(), Status::NOTDIR);
    let none = SetAttributes::default();
    assert_eq!(t.export.symlink(&t.me, &root, b"link", &none, b"file").status(), Status::OK);
    assert_eq!(t.export.remove(&t.me, &root, b"link").status(), Status::OK);
    assert!(t.find(&root, "file").is_ok(), "the symlink goes, not what it leads to");
}

pub(super) fn renaming(t: &Fixture) {
    let root = t.root();
    let (a, b) = (t.dir(&root, "a"), t.dir(&root, "b"));
    let file = t.file(&a, "file");
    t.put(&file, 0, b"content");
    let renamed = t.export.rename(&t.me, (&a, b"file"), (&b, b"moved"));
    assert_eq!(renamed.status(), Status::OK);
    assert_moved(&renamed.attrs.0);
    assert_moved(&renamed.attrs.1);
    assert_eq!(renamed.attrs.1.after, Some(t.attrs(&b)));
    assert_eq!(t.find(&a, "file"), Err(Status::NOENT));
    assert_eq!(t.find(&b, "moved"), Ok(file));
    assert_eq!(t.get(&file, 0, 99).0, b"content", "the handle survives");
    assert_eq!(t.export.rename(&t.me, (&b, b"moved"), (&b, b"again")).status(), Status::OK);
    assert_eq!(t.list(&b), [".", "..", "again"]);
    let missing = t.export.rename(&t.me, (&a, b"file"), (&b, b"x"));
    assert_eq!(missing.status(), Status::NOENT);
    assert_same(&missing.attrs.0);
    assert_eq!(t.export.rename(&t.me, (&file, b"x"), (&b, b"x")).status(), Status::NOTDIR);
    assert_eq!(t.export.rename(&t.me, (&b, b"again"), (&file, b"x")).status(), Status::NOTDIR);
}

pub(super) fn renaming_over(t: &Fixture) {
    let root = t.root();
    let (first, second) = (t.file(&root, "first"), t.file(&root, "second"));
    let (full, empty, other) = (t.dir(&root, "full"), t.dir(&root, "empty"), t.dir(&root, "other"));
    t.file(&full, "x");
    let rename = |from: &str, to: &str| {
        t.export.rename(&t.me, (&root, from.as_bytes()), (&root, to.as_bytes())).status()
    };
    assert_eq!(rename("first", "first"), Status::OK);
    assert_eq!(rename("first", "second"), Status::OK);
    assert_eq!(t.find(&root, "second"), Ok(first));
    assert_eq!(t.export.getattr(&t.me, &second), Err(Status::STALE));
    assert_eq!(rename("second", "empty"), Status::ISDIR);
    assert_eq!(rename("empty", "second"), Status::NOTDIR);
    assert_eq!(rename("empty", "full"), Status::NOTEMPTY);
    assert_eq!(rename("full", "empty"), Status::OK);
    assert_eq!(t.export.getattr(&t.me, &empty), Err(Status::STALE));
    assert_eq!(t.find(&root, "empty"), Ok(full));
    assert_eq!(rename("empty", "other"), Status::OK);
    assert_eq!(t.export.getattr(&t.me, &other), Err(Status::STALE));
    assert!(t.find(&full, "x").is_ok());
    // Two names of one object: nothing happens.
    assert_eq!(t.export.link(&t.me, &first, &root, b"twin").status(), Status::OK);
    assert_eq!(rename("second", "twin"), Status::OK);
    assert_eq!(t.list(&root), [".", "..", "other", "second", "twin"]);
}

pub(super) fn renaming_into_itself(t: &Fixture) {
    let root = t.root();
    let a = t.dir(&root, "a");
    let b = t.dir(&a, "b");
    t.dir(&b, "c");
    for (to, name) in [(&a, b"x".as_slice()), (&b, b"x"), (&b, b"c")] {
        assert_eq!(t.export.rename(&t.me, (&root, b"a"), (to, name)).status(), Status::INVAL);
    }
    assert_eq!(t.export.rename(&t.me, (&b, b"c"), (&root, b"a")).status(), Status::NOTEMPTY);
    assert_eq!(t.find(&b, ".."), Ok(a));
    assert_eq!(t.export.rename(&t.me, (&a, b"b"), (&root, b"b")).status(), Status::OK);
    assert_eq!(t.find(&b, ".."), Ok(root));
}

pub(super) fn hard_links(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&root, "file");
    t.put(&file, 0, b"shared");
    let linked = t.export.link(&t.me, &file, &dir, b"other");
    assert_eq!(linked.status(), Status::OK);
    assert_eq!(linked.attrs.0.unwrap().nlink, 2);
    assert_moved(&linked.attrs.1);
    assert_eq!(t.find(&dir, "other"), Ok(file));
    assert_eq!(t.export.link(&t.me, &file, &dir, b"other").status(), Status::EXIST);
    assert_eq!(t.export.link(&t.me, &dir, &root, b"x").status(), Status::INVAL);
    assert_eq!(t.export.link(&t.me, &file, &file, b"x").status(), Status::NOTDIR);
    assert_eq!(t.export.remove(&t.me, &root, b"file").status(), Status::OK);
    assert_eq!(t.attrs(&file).nlink, 1);
    assert_eq!(t.get(&file, 0, 99).0, b"shared", "the file lives under its other name");
    let none = SetAttributes::default();
    let symlink = t.export.symlink(&t.me, &root, b"link", &none, b"dir").result.unwrap().handle.unwrap();
    assert_eq!(t.export.link(&t.me, &symlink, &root, b"link2").status(), Status::OK);
    assert_eq!(t.find(&root, "link2"), Ok(symlink), "the link itself, not what it leads to");
    assert_eq!(t.export.remove(&t.me, &dir, b"other").status(), Status::OK);
    assert_eq!(t.export.link(&t.me, &file, &dir, b"back").status(), Status::STALE);
}

pub(super) fn handles_are_authenticated(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let bytes = file.as_bytes();
    let mut buf = [0; 1];
    let mut forgeries: Vec<Vec<u8>> = (0..bytes.len())
        .map(|at| {
            let mut forged = bytes.to_vec();
            forged[at] ^= 0x10;
            forged
        })
        .collect();
    forgeries.extend([vec![], vec![0; 64], bytes[1..].to_vec(), bytes[..bytes.len() - 1].to_vec()]);
    for forged in forgeries {
        let forged = Handle::new(&forged).unwrap();
        let bad = Status::BADHANDLE;
        assert_eq!(t.export.getattr(&t.me, &forged), Err(bad));
        assert_eq!(t.find(&forged, "x"), Err(bad));
        let read = t.export.read(&t.me, &forged, 0, &mut buf, Patience::Now).unwrap();
        assert_eq!(read, Outcome::fail(bad));
        assert_eq!(t.export.remove(&t.me, &forged, b"file").status(), bad);
        assert_eq!(t.export.rename(&t.me, (&t.root(), b"file"), (&forged, b"x")).status(), bad);
        assert_eq!(t.export.link(&t.me, &forged, &t.root(), b"x").status(), bad);
    }
    let options = MemoryOptions { name: "/another".to_owned(), ..MemoryOptions::default() };
    let stranger = MemoryExport::new(key(), options).root();
    assert_eq!(t.export.getattr(&t.me, &stranger), Err(Status::STALE));
}

pub(super) fn moving_a_directory_keeps_what_is_inside(t: &Fixture) {
    let root = t.root();
    let (a, b) = (t.dir(&root, "a"), t.dir(&root, "b"));
    let deep = t.dir(&t.dir(&a, "1"), "2");
    let file = t.file(&deep, "file");
    t.put(&file, 0, b"content");
    assert_eq!(t.export.rename(&t.me, (&root, b"a"), (&b, b"z")).status(), Status::OK);
    assert_eq!(t.get(&file, 0, 99).0, b"content");
    assert_eq!(t.find(&deep, "file"), Ok(file));
    assert_eq!(t.find(&a, ".."), Ok(b));
    assert_eq!(t.export.remove(&t.me, &deep, b"file").status(), Status::OK);
}
