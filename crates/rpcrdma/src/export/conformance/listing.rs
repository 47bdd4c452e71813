//! READDIR and READDIRPLUS.

use std::collections::BTreeMap;

use super::*;
use rpcrdma_nfs::v3::SetAttributes;

fn from(cookie: u64, plus: bool) -> ReadDir {
    ReadDir { cookie, verifier: CookieVerifier::default(), plus, room: 1000 }
}

pub(super) fn entries_and_dots(t: &Fixture) {
    let root = t.root();
    let dir = t.dir(&root, "dir");
    let file = t.file(&dir, "file");
    let sub = t.dir(&dir, "sub");
    let none = SetAttributes::default();
    let link = t.export.symlink(&t.me, &dir, b"link", &none, b"/etc").result.unwrap().handle.unwrap();
    for plus in [false, true] {
        let mut names = Names::new(usize::MAX);
        let listed = t.export.readdir(&t.me, &dir, &from(0, plus), &mut names);
        assert_eq!(listed.result, Ok(true));
        assert_eq!(names.begun.unwrap().0.unwrap().fileid, t.attrs(&dir).fileid);
        let entries: BTreeMap<_, _> = names.taken.iter().map(|e| (e.name.as_str(), e)).collect();
        let expected = [(".", dir), ("..", root), ("file", file), ("link", link), ("sub", sub)];
        assert_eq!(names.taken.len(), expected.len());
        for (name, handle) in expected {
            let entry = entries[name];
            assert_eq!(entry.fileid, t.attrs(&handle).fileid, "{name}");
            assert_ne!(entry.cookie, 0);
            if plus {
                assert_eq!(entry.handle, Some(handle), "{name}");
                assert_eq!(entry.attrs.unwrap().fileid, entry.fileid);
                assert_eq!(entry.attrs.unwrap().file_type, t.attrs(&handle).file_type);
            } else {
                assert!(entry.handle.is_none() && entry.attrs.is_none());
            }
        }
        let mut names = Names::new(usize::MAX);
        assert_eq!(t.export.readdir(&t.me, &root, &from(0, plus), &mut names).result, Ok(true));
        let above = names.taken.iter().find(|e| e.name == "..").unwrap();
        assert_eq!(above.fileid, t.attrs(&root).fileid, "nothing lies above the root");
        assert_eq!(above.handle, plus.then_some(root));
    }
}

/// Lists with room for so many entries per call, and calls `between` after each.
fn list_slowly(t: &Fixture, dir: &Handle, room: usize, mut between: impl FnMut(&[Entry])) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut verifier = CookieVerifier::default();
    loop {
        let cookie = all.last().map_or(0, |entry: &Entry| entry.cookie);
        let mut names = Names::new(room);
        let from = ReadDir { cookie, verifier, plus: false, room: room * 32 };
        let done = t.export.readdir(&t.me, dir, &from, &mut names).result.unwrap();
        verifier = names.begun.unwrap().1;
        assert!(done || !names.taken.is_empty(), "a listing gets ahead");
        between(&names.taken);
        all.extend(names.taken);
        if done {
            return all;
        }
    }
}

pub(super) fn one_entry_at_a_time(t: &Fixture) {
    let dir = t.dir(&t.root(), "dir");
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for n in 0..50 {
        let name = format!("file{n:02}");
        t.file(&dir, &name);
        expected.push(name);
    }
    let listed = list_slowly(t, &dir, 1, |_| {});
    let mut names: Vec<_> = listed.iter().map(|e| e.name.clone()).collect();
    names.sort();
    assert_eq!(names, expected);
    // Every cookie can be gone on from, in any order, and leads to the same rest.
    for (at, entry) in listed.iter().enumerate().rev() {
        let mut rest = Names::new(usize::MAX);
        assert_eq!(t.export.readdir(&t.me, &dir, &from(entry.cookie, false), &mut rest).result, Ok(true));
        let rest: Vec<_> = rest.taken.iter().map(|e| (&e.name, e.cookie)).collect();
        let expected: Vec<_> = listed[at + 1..].iter().map(|e| (&e.name, e.cookie)).collect();
        assert_eq!(rest, expected);
    }
}

pub(super) fn ten_thousand_entries_while_others_come_and_go(t: &Fixture) {
    let dir = t.dir(&t.root(), "dir");
    let none = SetAttributes::default();
    // Every third entry is only there to be removed.
    let total = t.many;
    for n in 0..total {
        let name = format!("{}{n:05}", if n % 3 == 0 { "doomed" } else { "stays" });
        let status = t.export.symlink(&t.me, &dir, name.as_bytes(), &none, b"x").status();
        assert_eq!(status, Status::OK);
    }
    let mut doomed = (0..total).step_by(3);
    let mut created = 0;
    let listed = list_slowly(t, &dir, 97, |_| {
        for _ in 0..40 {
            if let Some(n) = doomed.next() {
                let name = format!("doomed{n:05}");
                assert_eq!(t.export.remove(&t.me, &dir, name.as_bytes()).status(), Status::OK);
            }
            let name = format!("new{created:05}");
            assert_eq!(t.export.symlink(&t.me, &dir, name.as_bytes(), &none, b"x").status(), Status::OK);
            created += 1;
        }
    });
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &listed {
        *seen.entry(&entry.name).or_default() += 1;
    }
    for n in (0..total).filter(|n| n % 3 != 0) {
        assert_eq!(seen.get(format!("stays{n:05}").as_str()), Some(&1), "{n}");
    }
    assert!(seen.values().all(|times| *times == 1), "no entry comes twice");
    assert_eq!((seen.get("."), seen.get("..")), (Some(&1), Some(&1)));
}

pub(super) fn bad_listings(t: &Fixture) {
    let file = t.file(&t.root(), "file");
    let mut names = Names::new(10);
    let listed = t.export.readdir(&t.me, &file, &from(0, false), &mut names);
    assert_eq!(listed.status(), Status::NOTDIR);
    assert!(listed.attrs.is_some() && names.begun.is_none());
    // Nobody handed these out; whatever the answer is, it is an answer, and no entry comes twice.
    for cookie in [12_345, u64::from(u32::MAX), i64::MAX as u64, 1 << 63, u64::MAX] {
        let mut names = Names::new(10);
        let listed = t.export.readdir(&t.me, &t.root(), &from(cookie, true), &mut names);
        assert!(matches!(listed.result, Ok(_) | Err(Status::BAD_COOKIE)), "{cookie:#x} {listed:?}");
        assert!(names.taken.len() <= 3);
    }
    let dir = t.dir(&t.root(), "dir");
    let mut names = Names::new(0);
    assert_eq!(t.export.readdir(&t.me, &dir, &from(0, false), &mut names).result, Ok(false));
    assert!(names.begun.is_some());
    assert_eq!(t.export.rmdir(&t.me, &t.root(), b"dir").status(), Status::OK);
    let mut names = Names::new(10);
    assert_eq!(t.export.readdir(&t.me, &dir, &from(0, false), &mut names).status(), Status::STALE);
}
