//! A server and a mount of it in this process, and a program's view of the two.
//!
//! They need `/dev/fuse` and the right to mount; without, they say so and pass.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::fd::AsRawFd,
    os::unix::{
        fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
        process::CommandExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use common::Rig;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

const O_DIRECT: i32 = 0o40000;

#[test]
fn what_programs_do_with_names_works() {
    let Some(rig) = Rig::start("") else { return };
    let dir = rig.dir();
    fs::create_dir(dir.join("a")).unwrap();
    fs::DirBuilder::new().mode(0o2750).create(dir.join("b")).unwrap();
    fs::write(dir.join("a/file"), b"hello").unwrap();
    assert_eq!(fs::read(rig.served().join("a/file")).unwrap(), b"hello");
    fs::hard_link(dir.join("a/file"), dir.join("b/link")).unwrap();
    assert_eq!(fs::metadata(dir.join("b/link")).unwrap().nlink(), 2);
    symlink("../a/file", dir.join("b/symlink")).unwrap();
    assert_eq!(fs::read_link(dir.join("b/symlink")).unwrap().to_str(), Some("../a/file"));
    assert_eq!(fs::read(dir.join("b/symlink")).unwrap(), b"hello");
    fs::rename(dir.join("a/file"), dir.join("b/renamed")).unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.join("b"))
        .unwrap()
        .map(|e| (e.as_ref().unwrap().file_name().into_string().unwrap(), e.unwrap().file_type().unwrap()))
        .map(|(name, kind)| format!("{name}{}", if kind.is_symlink() { "@" } else { "" }))
        .collect();
    names.sort();
    assert_eq!(names, ["link", "renamed", "symlink@"]);
    assert_eq!(fs::remove_dir(dir.join("b")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(fs::create_dir(dir.join("a")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::metadata(dir.join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    let long = "n".repeat(256);
    assert_eq!(fs::metadata(dir.join(long)).unwrap_err().raw_os_error(), Some(36));
    let fifo = dir.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
    for name in ["b/link", "b/renamed", "b/symlink", "fifo"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::remove_dir(dir.join("b")).unwrap();
    fs::remove_dir(dir.join("a")).unwrap();
    assert_eq!(fs::read_dir(rig.served()).unwrap().count(), 0);
}

#[test]
fn a_directory_is_known_from_the_replies_about_its_entries() {
    let Some(rig) = Rig::start("") else { return };
    let dir = rig.dir().join("dir");
    fs::create_dir(&dir).unwrap();
    let same = || {
        let (seen, served) = (fs::metadata(&dir).unwrap(), fs::metadata(rig.served().join("dir")).unwrap());
        let of =
            |m: &fs::Metadata| (m.nlink(), m.size(), m.mtime(), m.mtime_nsec(), m.ctime_nsec(), m.mode());
        assert_eq!(of(&seen), of(&served));
    };
    let calls = rig.calls();
    for n in 0..10 {
        fs::create_dir(dir.join(format!("a{n}"))).unwrap();
        same();
    }
    // LOOKUP and MKDIR.
    assert_eq!(rig.calls() - calls, 20);
    fs::rename(dir.join("a0"), dir.join("b")).unwrap();
    same();
    fs::rename(dir.join("b"), dir.join("a1/b")).unwrap();
    same();
    fs::remove_dir(dir.join("a2")).unwrap();
    same();
    // Whatever was known of a4 went when its attributes were set.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).unwrap();
    same();
    // Without belief nothing is taken from a reply to something else.
    let Some(rig) = Rig::start("noac") else { return };
    let dir = rig.dir().join("dir");
    fs::create_dir(&dir).unwrap();
    let calls = rig.calls();
    fs::metadata(&dir).unwrap();
    assert!(rig.calls() > calls);
}

#[test]
fn changes_of_a_directory_at_the_same_time_leave_the_last() {
    let Some(rig) = Rig::start("") else { return };
    let dir = rig.dir();
    for round in 0..30 {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let dir = &dir;
                scope.spawn(move || {
                    for n in 0..4 {
                        let path = dir.join(format!("{thread}-{n}"));
                        fs::create_dir(&path).unwrap();
                        if (round + thread + n) % 2 == 0 {
                            fs::remove_dir(&path).unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(fs::metadata(&dir).unwrap().nlink(), fs::metadata(rig.served()).unwrap().nlink());
        for entry in fs::read_dir(&dir).unwrap() {
            fs::remove_dir(entry.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn attributes_are_set_and_seen() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    fs::write(&path, b"0123456789").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    // Data that has not left yet must not move the time along when it does.
    file.write_at(b"x", 3).unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    let seen = fs::metadata(&path).unwrap();
    assert_eq!((seen.mode() & 0o7777, seen.size(), seen.modified().unwrap()), (0o640, 10, time));
    let served = fs::metadata(rig.served().join("file")).unwrap();
    assert_eq!((served.mode() & 0o7777, served.modified().unwrap()), (0o640, time));
    assert_eq!(seen.ino(), served.ino());
    File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"012x");
    File::options().write(true).open(&path).unwrap().set_len(6).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"012x\0\0");
    let huge = (1 << 40) + 5;
    File::options().write(true).open(&path).unwrap().write_at(b"far", huge).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().size(), huge + 3);
    assert!(rustix::fs::statvfs(&path).unwrap().f_blocks > 0);
}

#[test]
fn a_hole_before_unsent_data_is_read_whole() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    // For the server, the file ends before it or in it.
    for (at, size) in [(1_000_000, 5000), (3_000_000, 2_000_001)] {
        file.write_all_at(b"far", at).unwrap();
        let mut hole = vec![7; size];
        file.read_exact_at(&mut hole, at - size as u64).unwrap();
        assert!(hole.iter().all(|b| *b == 0 || b"far".contains(b)));
        assert_eq!(file.metadata().unwrap().size(), at + 3);
        let mut end = [0; 5];
        assert_eq!(file.read_at(&mut end, at - 1).unwrap(), 4);
        assert_eq!(&end, b"\0far\0");
    }
}

#[test]
fn a_file_that_would_be_too_large_is_refused_at_once() {
    let Some(rig) = Rig::start("") else { return };
    let file = File::create(rig.dir().join("file")).unwrap();
    // What the server says of ext4 with its usual blocks.
    let largest = 0xfff_ffff_f000;
    let served = OpenOptions::new().write(true).open(rig.served().join("file")).unwrap();
    if served.set_len(largest).is_err() || served.set_len(largest + 1).is_ok() {
        eprintln!("SKIP: files may have another length where temporary files are");
        return;
    }
    assert_eq!(file.write_at(b"beyond", largest).unwrap_err().raw_os_error(), Some(27));
    assert_eq!(file.write_at(b"four", largest - 1).unwrap(), 1);
    file.sync_all().unwrap();
    assert_eq!(served.metadata().unwrap().size(), largest);
}

#[test]
fn exclusive_and_appending_opens_keep_their_promises() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    let new = || OpenOptions::new().write(true).create_new(true).mode(0o400).open(&path);
    let mut file = new().unwrap();
    assert_eq!(new().unwrap_err().kind(), ErrorKind::AlreadyExists);
    // It may not be opened for writing now, but it is open.
    file.write_all(b"first ").unwrap();
    drop(file);
    let seen = fs::metadata(&path).unwrap();
    assert_eq!(seen.mode() & 0o7777, 0o400);
    let age = seen.modified().unwrap().elapsed().unwrap_or_default();
    assert!(age.as_secs() < 3600, "the times of an exclusive create are not real");
    let mut one = OpenOptions::new().append(true).open(&path).unwrap();
    let mut two = OpenOptions::new().append(true).open(&path).unwrap();
    one.write_all(b"second ").unwrap();
    two.write_all(b"third").unwrap();
    drop((one, two));
    assert_eq!(fs::read(rig.served().join("file")).unwrap(), b"first second third");
}

#[test]
fn a_file_lives_on_without_a_name() {
    let Some(rig) = Rig::start("") else { return };
    fs::create_dir(rig.dir().join("d")).unwrap();
    let path = rig.dir().join("d/file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    // Replaced by a rename while it is open.
    let other = rig.dir().join("d/other");
    fs::write(&other, b"old").unwrap();
    let mut old = File::open(&other).unwrap();
    fs::write(rig.dir().join("d/new"), b"new").unwrap();
    fs::rename(rig.dir().join("d/new"), &other).unwrap();
    file.write_all(b", and more").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here, and moreold");
    assert_eq!(fs::read(&other).unwrap(), b"new");
    fs::remove_file(&other).unwrap();
    drop((file, old));
    // Nothing is left behind, so the directory goes.
    fs::remove_dir(rig.dir().join("d")).unwrap();
    assert_eq!(fs::read_dir(rig.served()).unwrap().count(), 0);
}

/// Pipes belong to the kernel of the machine, and the server may use the number of one that has lost its name again.
#[test]
fn pipes_live_on_without_a_name() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("pipe");
    let mut pipes: Vec<File> = (0..8)
        .map(|_| {
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            let pipe = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            fs::remove_file(&path).unwrap();
            pipe
        })
        .collect();
    for (i, pipe) in pipes.iter_mut().enumerate() {
        let attributes = pipe.metadata().unwrap();
        assert!(attributes.file_type().is_fifo() && attributes.nlink() == 0);
        pipe.write_all(&[i as u8]).unwrap();
    }
    for (i, pipe) in pipes.iter_mut().enumerate() {
        let mut byte = [0];
        pipe.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [i as u8]);
    }
}

#[test]
fn a_rename_that_fails_leaves_the_open_file_its_name() {
    let Some(rig) = Rig::start("") else { return };
    let (from, to) = (rig.dir().join("from"), rig.dir().join("to"));
    fs::write(&from, b"new").unwrap();
    fs::write(&to, b"old").unwrap();
    let open = File::open(&to).unwrap();
    // Behind the back of the kernel, which would not even ask.
    fs::remove_file(rig.served().join("from")).unwrap();
    fs::create_dir(rig.served().join("from")).unwrap();
    assert_eq!(fs::rename(&from, &to).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(fs::read(rig.served().join("to")).unwrap(), b"old");
    drop(open);
    assert_eq!(fs::read(&to).unwrap(), b"old");
    assert_eq!(fs::read_dir(rig.served()).unwrap().count(), 2);
}

/// Linux lets nobody link to a file that they may not write, unless told otherwise.
#[test]
fn an_open_file_that_cannot_be_linked_is_replaced() {
    let Some(rig) = Rig::start("allow_other") else { return };
    let protected = fs::read_to_string("/proc/sys/fs/protected_hardlinks").unwrap_or_default();
    if protected.trim() != "1" || !rustix::process::getuid().is_root() {
        return eprintln!("SKIP: this needs root, and that Linux protects hard links");
    }
    let [from, dir] = ["from", "d"].map(|name| rig.dir().join(name));
    for dir in [&from, &dir] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    fs::set_permissions(rig.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut old = OpenOptions::new();
    old.read(true).write(true).create_new(true).mode(0o600);
    let mut old = old.open(dir.join("to")).unwrap();
    old.write_all(b"old").unwrap();
    fs::write(from.join("file"), b"new").unwrap();
    let moved = || {
        let mut somebody = Command::new("mv");
        somebody.args(["-f", "from/file", "d/to"]).current_dir(rig.dir()).uid(4711).gid(4711);
        somebody.status().unwrap().success()
    };
    // Behind the back of the kernel, which would not even ask.
    let [served_from, served] = ["from", "d"].map(|name| rig.served().join(name));
    fs::set_permissions(&served_from, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!moved());
    assert_eq!(fs::read(served.join("to")).unwrap(), b"old");
    assert_eq!(fs::read_dir(&served).unwrap().count(), 1);
    fs::set_permissions(&served_from, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(moved());
    assert_eq!(fs::read(dir.join("to")).unwrap(), b"new");
    let mut text = String::new();
    old.rewind().unwrap();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    drop(old);
    fs::remove_file(dir.join("to")).unwrap();
    // The other name has gone with the file.
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn a_name_that_is_given_to_other_files_is_always_there() {
    // Each open asks for the name.
    let Some(rig) = Rig::start("noac") else { return };
    let (from, to) = (rig.dir().join("from"), rig.dir().join("to"));
    fs::write(&to, b"first").unwrap();
    let replaced = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                // Open when it is replaced.
                let held = File::open(&to).unwrap();
                fs::write(&from, b"another").unwrap();
                fs::rename(&from, &to).unwrap();
                drop(held);
            }
            replaced.store(true, Ordering::Release);
        });
        while !replaced.load(Ordering::Acquire) {
            File::open(&to).unwrap();
        }
    });
    assert_eq!(fs::read(&to).unwrap(), b"another");
}

/// Of one that is gone the kernel may know, when the server gives its file id to the next.
#[test]
fn a_file_that_is_gone_is_stale() {
    const ESTALE: i32 = 116;
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    // Known, but not open.
    let known: Vec<_> = (0..8)
        .map(|i| {
            fs::write(&path, [i]).unwrap();
            let known = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
            fs::remove_file(&path).unwrap();
            known
        })
        .collect();
    fs::write(&path, b"the last").unwrap();
    for known in known {
        let error = File::open(format!("/proc/self/fd/{}", known.as_raw_fd())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ESTALE));
    }
    assert_eq!(fs::read(&path).unwrap(), b"the last");
}

#[test]
fn opening_shows_what_others_have_written() {
    let Some(rig) = Rig::start("actimeo=600") else { return };
    let (here, there) = (rig.dir().join("file"), rig.served().join("file"));
    fs::write(&here, b"ours").unwrap();
    assert_eq!(fs::read(&here).unwrap(), b"ours");
    fs::write(&there, b"theirs, and longer").unwrap();
    assert_eq!(fs::read(&here).unwrap(), b"theirs, and longer");
    fs::write(&there, b"short").unwrap();
    assert_eq!(fs::read(&here).unwrap(), b"short");
    // What others have appended is not overwritten, although nobody has asked for the size.
    OpenOptions::new().append(true).open(&there).unwrap().write_all(b", not cut").unwrap();
    let mut append = OpenOptions::new().append(true).open(&here).unwrap();
    append.write_all(b", and").unwrap();
    append.write_all(b" ours").unwrap();
    drop(append);
    assert_eq!(fs::read(&here).unwrap(), b"short, not cut, and ours");
    assert_eq!(fs::read(&there).unwrap(), b"short, not cut, and ours");
}

/// A clock that is coarser than this cannot tell one change from the next.
fn let_the_clock_go_on() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn appends_go_where_the_file_ends_for_the_server() {
    let Some(rig) = Rig::start("") else { return };
    let (path, served) = (rig.dir().join("log"), rig.served().join("log"));
    let append = |path: &Path, text: &str| {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    for (path, text) in
        [(&path, "one "), (&served, "two "), (&path, "three "), (&served, "four "), (&path, "5")]
    {
        append(path, text);
    }
    assert_eq!(fs::read_to_string(&served).unwrap(), "one two three four 5");
    // It may have become shorter, too: before it is opened, or while it is open.
    fs::write(&served, "x").unwrap();
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    log.write_all(b" and").unwrap();
    log.sync_all().unwrap();
    assert_eq!(fs::read_to_string(&served).unwrap(), "x and");
    let_the_clock_go_on();
    fs::write(&served, "y").unwrap();
    append(&path, " or");
    log.write_all(b" not").unwrap();
    log.set_len(6).unwrap();
    log.write_all(b"!").unwrap();
    drop(log);
    assert_eq!(fs::read_to_string(&served).unwrap(), "y or n!");
}

#[test]
fn data_that_others_have_changed_is_read_again_though_we_write_as_well() {
    const LEN: usize = 8 << 20;
    let Some(rig) = Rig::start("") else { return };
    let (path, served) = (rig.dir().join("file"), rig.served().join("file"));
    fs::write(&served, vec![1; 100_000]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    let_the_clock_go_on();
    OpenOptions::new().write(true).open(&served).unwrap().write_all_at(&[2], 0).unwrap();
    let_the_clock_go_on();
    file.write_all_at(&[3], 90_000).unwrap();
    drop(file);
    let data = fs::read(&path).unwrap();
    assert_eq!((data[0], data[90_000]), (2, 3));
    // But not what only we have written.
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.write_all_at(&vec![4; LEN], 0).unwrap();
    drop(file);
    let before = rig.calls();
    assert!(fs::read(&path).unwrap() == vec![4; LEN]);
    assert!(rig.calls() - before <= 2, "an ACCESS and a GETATTR, but no READ");
}

#[test]
fn a_mount_that_believes_nothing_reads_again_what_is_open() {
    let Some(rig) = Rig::start("noac") else { return };
    let (path, served) = (rig.dir().join("file"), rig.served().join("file"));
    fs::write(&path, [1; 5000]).unwrap();
    let file = File::open(&path).unwrap();
    let mut bytes = [0; 5000];
    for round in 2..5 {
        file.read_exact_at(&mut bytes, 0).unwrap();
        let_the_clock_go_on();
        OpenOptions::new().write(true).open(&served).unwrap().write_all_at(&[round; 5000], 0).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == [round; 5000], "round {round}");
    }
}

#[test]
fn times_that_are_set_stay_when_the_server_restarts() {
    let Some(rig) = Rig::start("") else { return };
    let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 0);
    let path = rig.dir().join("file");
    let file = File::create(&path).unwrap();
    // Two WRITEs, which need a COMMIT.
    for at in [10_000, 0] {
        file.write_all_at(b"data", at).unwrap();
    }
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    rig.restart_server();
    drop(file);
    assert_eq!(fs::metadata(rig.served().join("file")).unwrap().modified().unwrap(), time);
}

#[test]
fn what_is_not_written_yet_is_found_when_the_kernel_has_forgotten_the_file() {
    let Some(rig) = Rig::start("nocto") else { return };
    let path = rig.dir().join("file");
    for len in 1..6 {
        fs::write(&path, vec![1; len]).unwrap();
        // Has the kernel drop what it knows of files that nobody uses.
        if fs::write("/proc/sys/vm/drop_caches", "2").is_err() {
            return eprintln!("SKIP: this needs root");
        }
        assert_eq!(fs::metadata(&path).unwrap().size(), len as u64);
        assert_eq!(fs::read(&path).unwrap(), vec![1; len]);
    }
}

#[test]
fn a_large_directory_is_listed_once_and_whole() {
    let Some(rig) = Rig::start("") else { return };
    for n in 0..3000 {
        File::create(rig.served().join(format!("file-{n:05}"))).unwrap();
    }
    let list = || {
        let mut names: Vec<_> =
            fs::read_dir(rig.dir()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let expected: Vec<_> = (0..3000).map(|n| format!("file-{n:05}")).collect();
    assert_eq!(list(), expected);
    // Removing what was listed must not hide what was not.
    for (n, entry) in fs::read_dir(rig.dir()).unwrap().enumerate() {
        if n % 2 == 0 {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    assert_eq!(list().len(), 1500);
    assert_eq!(fs::read_dir(rig.served()).unwrap().count(), 1500);
}

#[test]
fn a_read_only_mount_and_a_limit_on_sizes_hold() {
    let Some(rig) = Rig::start("ro,rsize=8192,wsize=8192") else { return };
    let data: Vec<u8> = (0..100_000u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(rig.served().join("file"), &data).unwrap();
    assert_eq!(fs::read(rig.dir().join("file")).unwrap(), data);
    assert_eq!(fs::write(rig.dir().join("new"), b"").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn direct_io_reads_and_writes_the_server() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    let open = |o: &mut OpenOptions| o.custom_flags(O_DIRECT).open(&path).unwrap();
    let file = open(OpenOptions::new().write(true).create(true));
    // Memory and length of direct transfers come in whole sectors.
    let block = rpcrdma::fabric::Region::alloc(1 << 20);
    file.write_all_at(&block, 0).unwrap();
    assert_eq!(fs::metadata(rig.served().join("file")).unwrap().size(), 1 << 20);
    fs::write(rig.served().join("file"), vec![7; 1 << 20]).unwrap();
    let mut back = rpcrdma::fabric::Region::alloc(1 << 20);
    open(OpenOptions::new().read(true)).read_exact_at(&mut back, 0).unwrap();
    assert!(back.iter().all(|b| *b == 7));
}

#[test]
fn a_hard_mount_waits_and_a_soft_one_fails() {
    let Some(rig) = Rig::start("") else { return };
    fs::write(rig.dir().join("file"), b"before").unwrap();
    let at = rig.stop_server();
    let dir = rig.dir();
    let waiting = std::thread::spawn(move || {
        fs::write(dir.join("file"), b"after").unwrap();
        fs::read(dir.join("file")).unwrap()
    });
    // Whether it waits already or not, it has no server to answer it.
    rig.start_server(at);
    assert_eq!(waiting.join().unwrap(), b"after");
    drop(rig);
    let Some(rig) = Rig::start("soft,timeo=2,retrans=1,actimeo=0") else { return };
    fs::write(rig.dir().join("file"), b"before").unwrap();
    let at = rig.stop_server();
    assert_eq!(fs::metadata(rig.dir().join("file")).unwrap_err().raw_os_error(), Some(5));
    rig.start_server(at);
    assert_eq!(fs::read(rig.dir().join("file")).unwrap(), b"before");
}

#[test]
fn programs_wait_when_the_mount_holds_too_much() {
    const MIB: usize = 1 << 20;
    let Some(rig) = Rig::start("") else { return };
    let files = ["a", "b"].map(|name| {
        let mut file = File::create(rig.dir().join(name)).unwrap();
        file.write_all(&[0]).unwrap();
        file
    });
    let at = rig.stop_server();
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for file in &files {
            scope.spawn(|| {
                for block in 0..60 {
                    file.write_all_at(&vec![block as u8; MIB], (block * MIB) as u64).unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
                // While earlier ones of the same bytes are under way.
                for n in 100..103 {
                    file.write_all_at(&vec![n; 2 * MIB], 500).unwrap();
                }
            });
        }
        while written.load(Ordering::Relaxed) < 60 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(100));
        assert!(written.load(Ordering::Relaxed) <= 64);
        rig.start_server(at);
    });
    drop(files);
    for name in ["a", "b"] {
        let data = fs::read(rig.served().join(name)).unwrap();
        let right = |(at, byte): (usize, &u8)| {
            *byte == if (500..500 + 2 * MIB).contains(&at) { 102 } else { (at / MIB) as u8 }
        };
        assert!(data.len() == 60 * MIB && data.iter().enumerate().all(right));
    }
}

/// What the old server has forgotten is written again, and what comes meanwhile is newer.
#[test]
fn writes_while_others_are_repeated_stay() {
    const BLOCKS: usize = 250;
    let Some(rig) = Rig::start("") else { return };
    for round in 0..6 {
        let path = rig.dir().join(format!("file{round}"));
        let file = File::create(&path).unwrap();
        let another = OpenOptions::new().write(true).open(&path).unwrap();
        let mut model = vec![0_u32; BLOCKS];
        let mut count = 0;
        // Backwards, so that each is a WRITE of its own.
        let mut write = |block: usize| {
            count += 1;
            model[block] = count;
            file.write_all_at(&count.to_be_bytes(), block as u64 * 4096).unwrap();
        };
        for block in (0..BLOCKS).rev().chain((0..BLOCKS).rev()) {
            write(block);
        }
        let at = rig.stop_server();
        std::thread::scope(|scope| {
            // The kernel lets nobody write while it synchronises, but while it closes.
            let syncing = scope.spawn(|| drop(another));
            rig.start_server(at);
            let mut block = 0;
            while !syncing.is_finished() {
                block = (block + 101) % BLOCKS;
                write(block);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        file.sync_all().unwrap();
        let data = fs::read(rig.served().join(format!("file{round}"))).unwrap();
        let found = |block: usize| u32::from_be_bytes(data[block * 4096..][..4].try_into().unwrap());
        let wrong: Vec<_> = (0..BLOCKS).filter(|block| found(*block) != model[*block]).collect();
        assert!(wrong.is_empty(), "round {round}: {wrong:?}");
    }
}

#[test]
fn a_mount_that_ends_leaves_the_next_one_in_its_place() {
    let Some(mut rig) = Rig::start("") else { return };
    let mut file = File::create(rig.dir().join("file")).unwrap();
    rig.replace_mount(move || {
        file.write_all(b"to the first").unwrap();
        drop(file);
    });
    assert_eq!(fs::read(rig.dir().join("file")).unwrap(), b"to the first");
}

/// Kills a program and says whether it has ended; waits for it long enough for it to be no question of how fast.
fn kill(mut child: Child) -> bool {
    child.kill().unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        child.wait().unwrap();
        let _ = ended.send(());
    });
    end.recv_timeout(Duration::from_secs(60)).is_ok()
}

#[test]
fn a_killed_program_leaves_what_it_has_written() {
    let Some(rig) = Rig::start("") else { return };
    let file = File::create(rig.dir().join("file")).unwrap();
    // Nothing else has the file open when it writes, and nothing closes it but the end of the shell.
    let shell = Command::new("sh")
        .args(["-c", "read word; printf written; read word"])
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .unwrap();
    shell.stdin.as_ref().unwrap().write_all(b"go\n").unwrap();
    let position = format!("/proc/{}/fdinfo/1", shell.id());
    while !fs::read_to_string(&position).unwrap().contains("pos:\t7\n") {
        std::thread::yield_now();
    }
    let at = rig.stop_server();
    let ended = kill(shell);
    rig.start_server(at);
    assert!(ended, "it waits for the server");
    assert_eq!(fs::read(rig.dir().join("file")).unwrap(), b"written");
    assert_eq!(fs::read(rig.served().join("file")).unwrap(), b"written");
}

#[test]
fn the_kernel_lets_go_of_a_mount_whose_server_is_away() {
    let Some(rig) = Rig::start("nocto") else { return };
    let mut file = File::create(rig.dir().join("file")).unwrap();
    let at = rig.stop_server();
    file.write_all(b"text").unwrap();
    // Without `nocto` this would wait.
    drop(file);
    rig.leave();
    rig.start_server(at);
    rig.synced();
    assert_eq!(fs::read(rig.served().join("file")).unwrap(), b"text");
}

/// Waits until a program waits for an answer of the mount, which has taken the request.
fn asks(rig: &Rig, child: &Child) {
    while !fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap().contains("wait_answer") {
        std::thread::yield_now();
    }
    // Requests are taken in their order, and the mount answers this one by itself.
    drop(fs::read_dir(rig.dir()).unwrap());
}

#[test]
fn a_change_in_which_a_program_was_killed_is_made_whole() {
    let Some(rig) = Rig::start("actimeo=600") else { return };
    if fs::read_to_string("/proc/self/wchan").is_err() {
        return eprintln!("SKIP: the kernel does not say what programs wait for");
    }
    // The kernel lets one program at a time change a directory.
    let [removing, making] = ["removing", "making"].map(|name| rig.dir().join(name));
    let (old, new) = (removing.join("old"), making.join("new"));
    for dir in [&removing, &making] {
        fs::create_dir(dir).unwrap();
    }
    let open = File::create(&old).unwrap();
    // All that the kernel wants to know before it asks for the changes.
    assert!(fs::metadata(&new).is_err());
    for known in [&old, &removing, &making, &rig.dir()] {
        fs::metadata(known).unwrap();
    }
    let at = rig.stop_server();
    let programs = ["exec unlink removing/old", ": >making/new"].map(|script| {
        let child = Command::new("sh").args(["-c", script]).current_dir(rig.dir()).spawn().unwrap();
        asks(&rig, &child);
        child
    });
    let ended = programs.map(kill);
    rig.start_server(at);
    assert_eq!(ended, [true; 2], "they wait for the server");
    let has = |dir: &str, wanted: &dyn Fn(&[String]) -> bool| loop {
        let entries = fs::read_dir(rig.served().join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        if wanted(&names) {
            return;
        }
        std::thread::yield_now();
    };
    has("removing", &|names| matches!(names, [hidden] if hidden.starts_with(".nfs")));
    has("making", &|names| names == ["new"]);
    // What was removed lives as long as it is open, and what was made is not open.
    drop(open);
    has("removing", &|names| names.is_empty());
    // By a name of which the kernel does not believe yet that there is no such file.
    fs::rename(rig.served().join("making/new"), rig.served().join("making/other")).unwrap();
    fs::remove_file(making.join("other")).unwrap();
    has("making", &|names| names.is_empty());
}

#[test]
fn only_the_mount_itself_is_unmounted() {
    let Some(rig) = Rig::start("") else { return };
    fs::write(rig.dir().join("file"), b"text").unwrap();
    rig.cover_mount();
    assert_eq!(fs::read(rig.dir().join("file")).unwrap(), b"text");
}

#[test]
fn a_file_has_no_extended_attributes() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    fs::write(&path, b"").unwrap();
    assert_eq!(rustix::fs::listxattr(&path, &mut [0u8; 0]), Ok(0));
    assert_eq!(rustix::fs::listxattr(&path, &mut [0u8; 100]), Ok(0));
    let read = rustix::fs::getxattr(&path, "user.name", &mut [0u8; 100]);
    assert_eq!(read, Err(rustix::io::Errno::OPNOTSUPP));
}

#[test]
fn names_are_believed_as_far_as_asked_for() {
    for (options, present, absent) in [
        ("actimeo=600", false, false),
        ("actimeo=600,lookupcache=positive", false, true),
        ("actimeo=600,lookupcache=none", true, true),
    ] {
        let Some(rig) = Rig::start(options) else { return };
        let [file, none] = ["file", "none"].map(|name| rig.dir().join(name));
        fs::write(&file, b"").unwrap();
        let asks = |name: &Path| {
            let _ = fs::metadata(name);
            let calls = rig.calls();
            let _ = fs::metadata(name);
            rig.calls() > calls
        };
        assert_eq!((asks(&file), asks(&none)), (present, absent), "{options}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize),
    Read(u64, usize),
    Cut(u64),
    Sync,
    Reopen,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = || 0..3_000_000u64;
    let len = || prop_oneof![4 => 1..20_000usize, 1 => 1..1_500_000usize];
    let step = prop_oneof![
        8 => (offset(), len()).prop_map(|(at, len)| Step::Write(at, len)),
        4 => (offset(), len()).prop_map(|(at, len)| Step::Read(at, len)),
        1 => offset().prop_map(Step::Cut),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

#[test]
fn a_file_is_what_was_written_to_it() {
    let Some(rig) = Rig::start("") else { return };
    let path = rig.dir().join("file");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let open =
        |path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    let checked = runner.run(&steps(), |steps| {
        let _ = fs::remove_file(&path);
        let mut file = open(&path);
        let mut model: Vec<u8> = Vec::new();
        for (n, step) in steps.iter().enumerate() {
            match *step {
                Step::Write(at, len) => {
                    let data: Vec<u8> = (0..len).map(|i| (i * 31 + n * 7 + 1) as u8).collect();
                    file.write_all_at(&data, at).unwrap();
                    let end = at as usize + len;
                    if model.len() < end {
                        model.resize(end, 0);
                    }
                    model[at as usize..end].copy_from_slice(&data);
                }
                Step::Read(at, len) => {
                    let mut data = vec![0; len];
                    let mut got = 0;
                    while got < len {
                        match file.read_at(&mut data[got..], at + got as u64).unwrap() {
                            0 => break,
                            n => got += n,
                        }
                    }
                    let end = model.len().min(at as usize + len);
                    prop_assert_eq!(
                        &data[..got] == model.get(at as usize..end).unwrap_or_default(),
                        true,
                        "step {}",
                        n
                    );
                }
                Step::Cut(at) => {
                    file.set_len(at).unwrap();
                    model.resize(at as usize, 0);
                }
                Step::Sync => file.sync_all().unwrap(),
                Step::Reopen => {
                    drop(file);
                    prop_assert!(fs::read(rig.served().join("file")).unwrap() == model, "step {}", n);
                    file = open(&path);
                }
                Step::Restart => rig.restart_server(),
            }
        }
        drop(file);
        prop_assert!(fs::read(rig.served().join("file")).unwrap() == model);
        Ok(())
    });
    if let Err(e) = checked {
        panic!("{e}");
    }
}
