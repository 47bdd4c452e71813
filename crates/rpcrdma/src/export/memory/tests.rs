//! Checked by the suite that all exports share, and here where only this one can tell.

use std::sync::Arc;

use super::super::conformance::{Names, key, with_mode};
use super::*;

fn small(capacity: u64) -> MemoryExport {
    MemoryExport::new(key(), MemoryOptions { capacity, ..MemoryOptions::default() })
}

fn root() -> Caller {
    Caller::superuser()
}

fn create(export: &MemoryExport, name: &str) -> Result<Handle, Status> {
    let how = CreateMode::Guarded(with_mode(0o644));
    let made = export.create(&root(), &export.root(), name.as_bytes(), &how);
    made.result.map(|made| made.handle.unwrap())
}

fn free(export: &MemoryExport) -> u64 {
    export.fsstat(&root(), &export.root()).result.unwrap().free_bytes
}

#[test]
fn what_does_not_fit_is_refused_and_what_goes_makes_room() {
    let export = small(20_000);
    let before = free(&export);
    let file = create(&export, "file").unwrap();
    let write = |offset, len: usize| {
        export.write(&root(), &file, offset, &vec![1; len], Stable::Unstable).result.map(|done| done.count)
    };
    // Four pages fit: what is beyond them is cut off, and then there is nothing left.
    assert_eq!(write(0, 100_000), Ok(16_384));
    assert_eq!(write(16_384, 1), Err(Status::NOSPC));
    assert_eq!(write(10, 16_374), Ok(16_374), "writing over what exists takes no room");
    assert_eq!(write(1000, 100_000), Ok(15_384));
    let cut = SetAttributes { size: Some(5), ..SetAttributes::default() };
    assert_eq!(export.setattr(&root(), &file, &cut, None).status(), Status::OK);
    assert_eq!(write(1 << 40, 4096), Ok(4096), "a hole takes no room");
    assert_eq!(export.remove(&root(), &export.root(), b"file").status(), Status::OK);
    assert_eq!(free(&export), before);
}

#[test]
fn nothing_leaks_room() {
    let export = small(1 << 20);
    let (before, top) = (free(&export), export.root());
    let none = SetAttributes::default();
    for _ in 0..3 {
        let file = create(&export, "file").unwrap();
        let _ = export.write(&root(), &file, 0, &[1; 10_000], Stable::Unstable).result.unwrap();
        export.symlink(&root(), &top, b"link", &none, &[b'x'; 1000]).result.unwrap();
        let dir = export.mkdir(&root(), &top, b"dir", &none).result.unwrap().handle.unwrap();
        export.link(&root(), &file, &dir, b"another name").result.unwrap();
        export.rename(&root(), (&top, b"file"), (&dir, b"a much longer name")).result.unwrap();
        export.rename(&root(), (&dir, b"a much longer name"), (&dir, b"x")).result.unwrap();
        export.rename(&root(), (&top, b"link"), (&dir, b"another name")).result.unwrap();
        for name in [b"x".as_slice(), b"another name"] {
            export.remove(&root(), &dir, name).result.unwrap();
        }
        export.rmdir(&root(), &top, b"dir").result.unwrap();
        assert_eq!(free(&export), before);
    }
    let mut made = 0;
    while create(&export, &format!("{made}")).is_ok() {
        made += 1;
    }
    assert_eq!(create(&export, "x"), Err(Status::NOSPC));
    assert!(made > 1000 && free(&export) < 1024, "{made} {}", free(&export));
}

#[test]
fn two_that_see_the_same_are_the_same() {
    let build = || {
        let clock = Arc::new(LogicalClock::at(5_000_000_000));
        let options = MemoryOptions { clock: Box::new(clock.clone()), ..MemoryOptions::default() };
        let export = MemoryExport::new(key(), options);
        for n in 0..100_u64 {
            create(&export, &format!("{}", n * 7919 % 100)).unwrap();
            clock.set(5_000_000_000 + n / 10 * 1_000);
        }
        let mut all = Names::new(usize::MAX);
        let from = ReadDir { cookie: 0, verifier: CookieVerifier::default(), plus: true, room: 0 };
        assert_eq!(export.readdir(&root(), &export.root(), &from, &mut all).result, Ok(true));
        all.taken
    };
    let (one, other) = (build(), build());
    assert_eq!(one.len(), 102);
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
    let mut times: Vec<_> = one.iter().skip(2).map(|entry| entry.attrs.unwrap().ctime).collect();
    assert!(times.is_sorted());
    times.dedup();
    assert_eq!(times.len(), 100, "no two changes have the same time, though the clock stood still");
}

#[test]
fn the_largest_file_ends_where_offsets_do() {
    let export = small(1 << 20);
    let file = create(&export, "file").unwrap();
    let write =
        |offset| export.write(&root(), &file, offset, b"abcd", Stable::Unstable).result.map(|d| d.count);
    let last = i64::MAX as u64;
    assert_eq!(write(last - 4), Ok(4));
    assert_eq!(write(last - 2), Ok(2));
    assert_eq!(write(last), Err(Status::FBIG));
    assert_eq!(export.getattr(&root(), &file).unwrap().size, last);
}
