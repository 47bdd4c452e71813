//! Any sequence of operations has the same outcome in memory and on a disk.

use super::*;
use proptest::prelude::*;
use rpcrdma_nfs::v3::{AccessMask, CreateVerifier, FileType, NfsTime, NodeKind, SetAttributes, SetTime};

#[derive(Clone, Copy, Debug)]
enum Op {
    Lookup(usize, u8),
    Create(usize, u8, CreateMode),
    MkDir(usize, u8, u32),
    SymLink(usize, u8),
    Fifo(usize, u8, u32),
    Remove(usize, u8),
    RmDir(usize, u8),
    Rename(usize, u8, usize, u8),
    Link(usize, usize, u8),
    SetAttr(usize, SetAttributes),
    Write(usize, u64, u8),
    Read(usize, u64),
    ReadLink(usize),
    Access(usize),
    List(usize),
    Commit(usize),
}

/// Few names, so that operations meet.
fn name(n: u8) -> &'static [u8] {
    [b"a".as_slice(), b"b", b"c", b".", b".."][usize::from(n)]
}

fn caller(n: u8) -> Caller {
    match n {
        0 => Caller::superuser(),
        1 => Caller::new(1000, 1000, &[]),
        _ => Caller::new(1001, 1001, &[1000, 7]),
    }
}

fn modes() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0o777),
        Just(0o755),
        Just(0o644),
        Just(0o1777),
        Just(0o2775),
        Just(0o4755),
        (0..0o10000_u32)
    ]
}

fn set() -> impl Strategy<Value = SetAttributes> {
    let id = || proptest::option::of(prop_oneof![Just(0_u32), Just(1000), Just(1001), Just(7)]);
    let time = || {
        prop_oneof![
            Just(SetTime::DontChange),
            Just(SetTime::Server),
            (0..1000_u32).prop_map(|s| SetTime::Client(NfsTime::new(s, 5)))
        ]
    };
    let size = proptest::option::of(prop_oneof![Just(0_u64), 0..10_000_u64]);
    (proptest::option::of(modes()), id(), id(), size, time(), time())
        .prop_map(|(mode, uid, gid, size, atime, mtime)| SetAttributes { mode, uid, gid, size, atime, mtime })
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..8_usize;
    // Mostly real names, now and then a dot.
    let name = || prop_oneof![8 => 0..3_u8, 1 => 3..5_u8];
    let create = prop_oneof![
        modes().prop_map(|mode| CreateMode::Unchecked(with_mode(mode))),
        Just(CreateMode::Unchecked(SetAttributes { size: Some(0), ..SetAttributes::default() })),
        modes().prop_map(|mode| CreateMode::Guarded(with_mode(mode))),
        (0..2_u8).prop_map(|v| CreateMode::Exclusive(CreateVerifier([v + 1; 8]))),
    ];
    prop_oneof![
        (at(), name()).prop_map(|(d, n)| Op::Lookup(d, n)),
        (at(), name(), create).prop_map(|(d, n, how)| Op::Create(d, n, how)),
        (at(), name(), modes()).prop_map(|(d, n, m)| Op::MkDir(d, n, m)),
        (at(), name()).prop_map(|(d, n)| Op::SymLink(d, n)),
        (at(), name(), modes()).prop_map(|(d, n, m)| Op::Fifo(d, n, m)),
        (at(), name()).prop_map(|(d, n)| Op::Remove(d, n)),
        (at(), name()).prop_map(|(d, n)| Op::RmDir(d, n)),
        (at(), name(), at(), name()).prop_map(|(d, n, e, m)| Op::Rename(d, n, e, m)),
        (at(), at(), name()).prop_map(|(o, d, n)| Op::Link(o, d, n)),
        (at(), set()).prop_map(|(o, s)| Op::SetAttr(o, s)),
        (at(), 0..9000_u64, any::<u8>()).prop_map(|(o, a, b)| Op::Write(o, a, b)),
        (at(), 0..9000_u64).prop_map(|(o, a)| Op::Read(o, a)),
        at().prop_map(Op::ReadLink),
        at().prop_map(Op::Access),
        at().prop_map(Op::List),
        at().prop_map(Op::Commit),
    ]
}

/// What an operation said that has to be the same everywhere.
#[derive(Debug, PartialEq)]
struct Said {
    status: Status,
    handle: bool,
    content: Vec<u8>,
    attrs: Option<(FileType, u32, u32, u32, u64, bool)>,
}

fn attrs_that_count(attrs: &Attributes, export: &dyn Export) -> (FileType, u32, u32, u32, u64, bool) {
    // A directory's size and links are the filesystem's own business; so is nothing else.
    let file = attrs.file_type != FileType::Directory;
    let size = if file { attrs.size } else { 0 };
    let root = export.getattr(&Caller::superuser(), &export.root()).unwrap();
    (attrs.file_type, attrs.mode, attrs.uid, attrs.gid, size, attrs.fileid == root.fileid)
}

/// Runs an operation, on the objects found so far, and returns what it said and the object it found or made.
fn run(export: &dyn Export, handles: &[Handle], who: &Caller, op: &Op) -> (Said, Option<Handle>) {
    // Objects are numbered in the order they were found, so both sides mean the same.
    let at = |n: usize| &handles[n % handles.len()];
    let mut content = Vec::new();
    let (status, new, object) = match *op {
        Op::Lookup(d, n) => {
            let found = export.lookup(who, at(d), name(n));
            (found.status(), found.result.ok().map(|f| f.handle), at(d))
        }
        Op::Create(d, n, how) => {
            let made = export.create(who, at(d), name(n), &how);
            (made.status(), made.result.ok().and_then(|c| c.handle), at(d))
        }
        Op::MkDir(d, n, mode) => {
            let made = export.mkdir(who, at(d), name(n), &with_mode(mode));
            (made.status(), made.result.ok().and_then(|c| c.handle), at(d))
        }
        Op::SymLink(d, n) => {
            let made = export.symlink(who, at(d), name(n), &SetAttributes::default(), b"a/b");
            (made.status(), made.result.ok().and_then(|c| c.handle), at(d))
        }
        Op::Fifo(d, n, mode) => {
            let made = export.mknod(who, at(d), name(n), &NodeKind::Fifo(with_mode(mode)));
            (made.status(), made.result.ok().and_then(|c| c.handle), at(d))
        }
        Op::Remove(d, n) => (export.remove(who, at(d), name(n)).status(), None, at(d)),
        Op::RmDir(d, n) => (export.rmdir(who, at(d), name(n)).status(), None, at(d)),
        Op::Rename(d, n, e, m) => {
            (export.rename(who, (at(d), name(n)), (at(e), name(m))).status(), None, at(e))
        }
        Op::Link(o, d, n) => (export.link(who, at(o), at(d), name(n)).status(), None, at(o)),
        Op::SetAttr(o, set) => (export.setattr(who, at(o), &set, None).status(), None, at(o)),
        Op::Write(o, offset, byte) => {
            let data = vec![byte; 1 + usize::from(byte)];
            (export.write(who, at(o), offset, &data, Stable::Unstable).status(), None, at(o))
        }
        Op::Read(o, offset) => {
            content = vec![0; 300];
            let read = export.read(who, at(o), offset, &mut content, Patience::Wait).unwrap();
            let status = read.status();
            content.truncate(read.result.as_ref().map_or(0, |done| done.count));
            content.push(u8::from(read.result.is_ok_and(|done| done.eof)));
            (status, None, at(o))
        }
        Op::ReadLink(o) => (export.readlink(who, at(o), &mut content).status(), None, at(o)),
        Op::Access(o) => {
            let access = export.access(who, at(o), AccessMask::ALL);
            content.extend(access.result.iter().map(|mask| mask.0 as u8));
            (access.status(), None, at(o))
        }
        Op::List(d) => {
            let mut names = Names::new(usize::MAX);
            let from = ReadDir { cookie: 0, verifier: CookieVerifier::default(), plus: false, room: 4096 };
            let status = export.readdir(who, at(d), &from, &mut names).status();
            let mut names: Vec<_> = names.taken.into_iter().map(|e| e.name).collect();
            names.sort();
            content = names.join("/").into_bytes();
            (status, None, at(d))
        }
        Op::Commit(o) => (export.commit(who, at(o), 0, 0).status(), None, at(o)),
    };
    let after = export.getattr(who, new.as_ref().unwrap_or(object));
    let attrs = after.ok().map(|attrs| attrs_that_count(&attrs, export));
    (Said { status, handle: new.is_some(), content, attrs }, new)
}

fn same_everywhere(other: &Fixture, callers: u8, ops: &[(u8, Op)]) -> Result<(), TestCaseError> {
    let memory = Fixture::memory();
    let mut known = [vec![memory.root()], vec![other.root()]];
    for (step, (who, op)) in ops.iter().enumerate() {
        let who = if callers == 1 { other.me } else { caller(who % callers) };
        let (expected, new) = run(&*memory.export, &known[0], &who, op);
        let (said, other_new) = run(&*other.export, &known[1], &who, op);
        prop_assert_eq!(&said, &expected, "step {}: {:?} as {:?}", step, op, who);
        if let (Some(new), Some(other_new)) = (new, other_new) {
            // Two handles are equal on one side if and only if they are on the other.
            let places = [(new, 0), (other_new, 1)].map(|(h, side)| known[side].iter().position(|k| *k == h));
            prop_assert_eq!(places[0], places[1], "step {}: {:?}", step, op);
            if places[0].is_none() {
                known[0].push(new);
                known[1].push(other_new);
            }
        }
    }
    Ok(())
}

/// Hard links to other people's files are a matter of configuration.
fn links_are_protected() -> bool {
    std::fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|s| s.trim() == "1")
}

fn ops(len: usize) -> impl Strategy<Value = Vec<(u8, Op)>> {
    proptest::collection::vec((any::<u8>(), op()), 1..len)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_and_disk_say_the_same(ops in ops(60)) {
        let callers = if is_root() && links_are_protected() { 3 } else { 1 };
        same_everywhere(&Fixture::local_in(&std::env::temp_dir(), |_| {}), callers, &ops)?;
    }

    #[test]
    fn memory_and_a_searched_disk_say_the_same(ops in ops(60)) {
        let callers = if is_root() && links_are_protected() { 3 } else { 1 };
        let disk = Fixture::local_in(&std::env::temp_dir(), |options| {
            options.resolution = Resolution::Search;
            (options.max_descriptors, options.places) = (1, 2);
        });
        same_everywhere(&disk, callers, &ops)?;
    }
}
