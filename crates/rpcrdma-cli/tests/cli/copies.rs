//! `cp` in all directions.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
    },
    process::Stdio,
};

use rustix::fs::{FileType, Mode};

use crate::support::{Serving, assert_same, fails, is_root, long_ago, noise, ok, plant, program, run};

#[test]
fn a_tree_comes_over_whole() {
    let server = Serving::unsquashed();
    plant(&server.dir);
    let copy = server.outside("copy");
    let said = ok(["cp", "-r", &server.url(""), copy.to_str().unwrap()]);
    assert!(said.starts_with("copied 312 files"), "{said}");
    assert!(said.contains("2 links") && said.contains("6 directories"), "{said}");
    assert_same(&server.dir, &copy);
    assert!(fs::metadata(copy.join("sparse")).unwrap().blocks() * 512 < 4 << 20, "holes stay holes");
}

#[test]
fn a_tree_goes_to_a_server_and_back_over_tcp() {
    let server = Serving::unsquashed();
    let original = server.outside("original");
    fs::create_dir(&original).unwrap();
    plant(&original);
    ok(["cp", "-r", original.to_str().unwrap(), &server.url("up")]);
    assert_same(&original, &server.dir.join("up"));
    let back = server.outside("back");
    ok(["cp", "-r", "--tcp", &server.tcp_url("up"), back.to_str().unwrap()]);
    assert_same(&original, &back);
}

#[test]
fn a_tree_survives_cuts_on_both_ends_in_both_directions() {
    let server = Serving::new(&["--no-root-squash", "--inject", "disconnect=1/60,seed=5"]);
    let original = server.outside("original");
    fs::create_dir(&original).unwrap();
    plant(&original);
    let cut = ["--inject", "disconnect=1/60,seed=9"];
    let said = ok([&["cp", "-r"][..], &cut, &[original.to_str().unwrap(), &server.url("up")]].concat());
    assert!(said.contains("reconnect"), "{said}");
    assert_same(&original, &server.dir.join("up"));
    let back = server.outside("back");
    let said = ok([&["cp", "-r"][..], &cut, &[&server.url("up"), back.to_str().unwrap()]].concat());
    assert!(said.contains("reconnect"), "{said}");
    assert_same(&original, &back);
}

#[test]
fn a_tree_goes_from_server_to_server() {
    let (from, to) = (Serving::unsquashed(), Serving::unsquashed());
    plant(&from.dir);
    ok(["cp", "-r", &from.url(""), &to.url("copy")]);
    assert_same(&from.dir, &to.dir.join("copy"));
    // And within one.
    ok(["cp", "-r", &from.url("deep"), &from.url("deep too")]);
    assert_same(&from.dir.join("deep"), &from.dir.join("deep too"));
}

#[test]
fn destinations_are_those_of_cp() {
    let server = Serving::unsquashed();
    fs::create_dir(server.dir.join("a")).unwrap();
    fs::write(server.dir.join("a/x"), "x").unwrap();
    fs::write(server.dir.join("y"), "y").unwrap();
    let out = server.outside("out");
    let out_text = out.to_str().unwrap();
    // To a name that is not there, then into what is.
    ok(["cp", "-r", &server.url("a"), out_text]);
    assert_eq!(fs::read_to_string(out.join("x")).unwrap(), "x");
    ok(["cp", "-r", &server.url("a"), &server.url("y"), out_text]);
    assert_eq!(fs::read_to_string(out.join("a/x")).unwrap(), "x");
    assert_eq!(fs::read_to_string(out.join("y")).unwrap(), "y");
    // A file to a new name, over an old one, and into a directory on the server.
    ok(["cp", &server.url("y"), &server.url("z")]);
    fs::write(out.join("new"), "new").unwrap();
    ok(["cp", out.join("new").to_str().unwrap(), &server.url("z")]);
    assert_eq!(fs::read_to_string(server.dir.join("z")).unwrap(), "new");
    ok(["cp", out.join("new").to_str().unwrap(), &server.url("a")]);
    assert_eq!(fs::read_to_string(server.dir.join("a/new")).unwrap(), "new");
    // No part is left behind anywhere.
    for dir in [&server.dir, &server.dir.join("a"), &out, &out.join("a")] {
        let parts = fs::read_dir(dir)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("part"));
        assert_eq!(parts.count(), 0);
    }
}

#[test]
fn what_cannot_be_copied_is_said_and_the_rest_is_copied() {
    let server = Serving::unsquashed();
    let tree = server.dir.join("t");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), "a").unwrap();
    fs::write(tree.join("c"), "c").unwrap();
    let _socket = UnixListener::bind(tree.join("b")).unwrap();
    let out = server.outside("out");
    let ended = run(["cp", "-r", &server.url("t"), out.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("t/b: a socket is not copied without --archive"), "{ended:?}");
    assert!(ended.stdout.contains("copied 2 files") && ended.stdout.contains("1 failure"), "{ended:?}");
    assert_eq!(fs::read_to_string(out.join("c")).unwrap(), "c");
    // A directory where a file has to go, and the other way round.
    fs::remove_file(out.join("a")).unwrap();
    fs::create_dir(out.join("a")).unwrap();
    let said = fails(1, ["cp", "-r", &server.url("t/a"), out.to_str().unwrap()]);
    assert!(said.contains("a directory is in the way"), "{said}");
    let said = fails(1, ["cp", "-r", &server.url("t"), out.join("c").to_str().unwrap()]);
    assert!(said.contains("not a directory"), "{said}");
    let said = fails(1, ["cp", &server.url("t"), out.to_str().unwrap()]);
    assert!(said.contains("Is a directory; -r"), "{said}");
    let said = fails(1, ["cp", &server.url("none"), out.to_str().unwrap()]);
    assert!(said.contains("none: No such file or directory (server: NFS3ERR_NOENT)"), "{said}");
    let said = fails(1, ["cp", &server.url("t/a"), &server.url("t/c"), out.join("c").to_str().unwrap()]);
    assert!(said.contains("has to be a directory"), "{said}");
}

#[test]
fn wrong_usage_is_told_apart() {
    let said = fails(2, ["cp", "a", "b"]);
    assert!(said.contains("cp(1)"), "{said}");
    let said = fails(2, ["cp", "nfs://h/x"]);
    assert!(said.contains("destination"), "{said}");
    let said = fails(2, ["cp", "nfs:///x", "y"]);
    assert!(said.contains("the host is missing"), "{said}");
    fails(2, ["cp", "--inline", "100", "nfs://h/x", "y"]);
    fails(2, ["cp", "--inject", "disconnect=2", "nfs://h/x", "y"]);
}

#[test]
fn symlinks_of_the_destination_are_never_followed() {
    let server = Serving::unsquashed();
    fs::create_dir(server.dir.join("t")).unwrap();
    fs::create_dir(server.dir.join("t/sub")).unwrap();
    fs::write(server.dir.join("t/sub/file"), "new").unwrap();
    fs::write(server.dir.join("t/name"), "new").unwrap();
    let elsewhere = server.outside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("kept"), "kept").unwrap();
    let out = server.outside("out");
    fs::create_dir(&out).unwrap();
    // A link to a directory, a link to a file, and a link where the part goes.
    symlink(&elsewhere, out.join("sub")).unwrap();
    symlink(elsewhere.join("kept"), out.join("name")).unwrap();
    symlink(elsewhere.join("kept"), out.join(".name.rpcrdma-part")).unwrap();
    let ended = run(["cp", "-r", &format!("{}/.", server.url("t")), &format!("{}/.", out.display())]);
    assert_eq!(ended.code, Some(0), "the source is named t, so it went into out/t: {ended:?}");
    let ended = run(["cp", "-r", &server.url("t/sub"), &server.url("t/name"), out.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(elsewhere.join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(out.join("name")).unwrap(), "new");
    assert!(fs::symlink_metadata(out.join("name")).unwrap().is_file());
}

#[test]
fn a_copy_into_its_own_source_ends() {
    let server = Serving::unsquashed();
    fs::create_dir_all(server.dir.join("a/b")).unwrap();
    fs::write(server.dir.join("a/x"), "x").unwrap();
    let inside = server.dir.join("a/b/copy");
    for to in [inside.to_str().unwrap(), &server.url("a/b/other")] {
        let ended = run(["cp", "-r", &server.url("a"), to]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("the copy is being made here"), "{ended:?}");
    }
    assert_eq!(fs::read_to_string(inside.join("x")).unwrap(), "x");
}

#[test]
fn archive_keeps_hard_links_and_special_files() {
    let server = Serving::unsquashed();
    let tree = server.dir.join("t");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("first"), "one file").unwrap();
    fs::hard_link(tree.join("first"), tree.join("second")).unwrap();
    // Enough of them that several names of one file are met at the same time.
    for file in 0..30 {
        fs::write(tree.join(format!("{file}-a")), format!("file {file}")).unwrap();
        for name in ["b", "c"] {
            fs::hard_link(tree.join(format!("{file}-a")), tree.join(format!("{file}-{name}"))).unwrap();
        }
    }
    rustix::fs::mkfifoat(rustix::fs::CWD, tree.join("fifo"), Mode::RUSR).unwrap();
    for (to, there) in [
        (server.outside("out").to_str().unwrap().to_owned(), server.outside("out")),
        (server.url("again"), server.dir.join("again")),
    ] {
        ok(["cp", "-a", &server.url("t"), &to]);
        let id = |name: &str| fs::metadata(there.join(name)).unwrap().ino();
        assert_eq!(id("first"), id("second"));
        for file in 0..30 {
            let names = ["a", "b", "c"].map(|name| id(&format!("{file}-{name}")));
            assert_eq!(names, [names[0]; 3], "file {file}");
        }
        assert!(std::os::unix::fs::FileTypeExt::is_fifo(
            &fs::metadata(there.join("fifo")).unwrap().file_type()
        ));
        assert_same(&tree, &there);
    }
}

#[test]
fn owners_are_kept_when_asked_for() {
    if !is_root() {
        println!("skipped: only root can give files away");
        return;
    }
    let server = Serving::unsquashed();
    fs::write(server.dir.join("f"), "x").unwrap();
    std::os::unix::fs::chown(server.dir.join("f"), Some(1234), Some(4321)).unwrap();
    let out = server.outside("out");
    let owner = || fs::metadata(&out).map(|m| (m.uid(), m.gid())).unwrap();
    ok(["cp", &server.url("f"), out.to_str().unwrap()]);
    assert_eq!(owner(), (0, 0));
    ok(["cp", "--owner", &server.url("f"), out.to_str().unwrap()]);
    assert_eq!(owner(), (1234, 4321), "fixed although the contents are right");
    ok(["cp", "--owner", out.to_str().unwrap(), &server.url("g")]);
    assert_eq!(fs::metadata(server.dir.join("g")).unwrap().uid(), 1234);
}

#[test]
fn without_preserve_files_are_new() {
    let server = Serving::unsquashed();
    let source = server.dir.join("f");
    fs::write(&source, "x").unwrap();
    fs::File::open(&source).unwrap().set_modified(long_ago()).unwrap();
    fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o4711)).unwrap();
    let out = server.outside("out");
    ok(["cp", "--no-preserve", &server.url("f"), out.to_str().unwrap()]);
    let meta = fs::metadata(&out).unwrap();
    assert_ne!(meta.modified().unwrap(), long_ago());
    assert_eq!(meta.mode() & 0o7000, 0);
}

#[test]
fn parts_of_other_copies_are_not_copied() {
    let server = Serving::unsquashed();
    fs::create_dir(server.dir.join("t")).unwrap();
    fs::write(server.dir.join("t/x"), "right").unwrap();
    fs::write(server.dir.join("t/.x.rpcrdma-part"), "wrong").unwrap();
    let out = server.outside("out");
    let said = fails(1, ["cp", "-r", &server.url("t"), out.to_str().unwrap()]);
    assert!(said.contains(".x.rpcrdma-part: left out"), "{said}");
    assert!(!out.join(".x.rpcrdma-part").exists());
    assert_eq!(fs::read_to_string(out.join("x")).unwrap(), "right");
}

#[test]
fn local_names_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt as _;
    let server = Serving::unsquashed();
    let odd = server.outside("x").with_file_name(std::ffi::OsStr::from_bytes(b"odd\xff"));
    fs::write(&odd, "odd").unwrap();
    ok([std::ffi::OsStr::new("cp"), odd.as_os_str(), server.url("").as_ref()]);
    let there = server.dir.join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    assert_eq!(fs::read_to_string(there).unwrap(), "odd");
    assert_eq!(ok(["cat", &server.url("odd%FF")]), "odd");
}

/// Runs a copy and returns the most memory that it was seen to have, in KiB.
fn memory_of(args: &[&str]) -> u64 {
    let mut child = program().args(args).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let seen: Option<u64> = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse().ok());
        most = most.max(seen.unwrap_or(0));
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success());
            return most;
        }
        std::thread::yield_now();
    }
}

#[test]
fn memory_does_not_grow_with_the_file() {
    const MOST: u64 = 64 << 10;
    let server = Serving::unsquashed();
    // A hole crosses the network like data.
    let long = fs::File::create(server.dir.join("long")).unwrap();
    long.set_len(1 << 30).unwrap();
    let down = server.outside("down");
    let seen = memory_of(&["cp", &server.url("long"), down.to_str().unwrap()]);
    assert!(seen > 0 && seen < MOST, "{seen} KiB");
    assert_eq!(fs::metadata(&down).unwrap().len(), 1 << 30);
    let solid = server.outside("solid");
    fs::write(&solid, noise(100 << 20, 1)).unwrap();
    let seen = memory_of(&["cp", solid.to_str().unwrap(), &server.url("up")]);
    assert!(seen > 0 && seen < MOST, "{seen} KiB");
    let seen = memory_of(&["cat", &server.url("up")]);
    assert!(seen > 0 && seen < MOST, "{seen} KiB");
}

#[test]
fn times_that_the_protocol_cannot_say_are_told() {
    let server = Serving::unsquashed();
    let old = server.outside("old");
    fs::write(&old, "from before the epoch").unwrap();
    let before = std::time::UNIX_EPOCH - std::time::Duration::from_secs(86_400);
    fs::File::options().write(true).open(&old).unwrap().set_modified(before).unwrap();
    let args = ["cp", old.to_str().unwrap(), &server.url("old")];
    let done = run(args);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stderr.contains("from 1970 to 2106"), "{done:?}");
    assert_eq!(fs::metadata(server.dir.join("old")).unwrap().mtime(), 0);
    assert!(run(args).stdout.contains("1 unchanged"), "the nearest time is as good as the time");
}

#[test]
fn what_is_no_data_stays_when_data_comes() {
    let server = Serving::unsquashed();
    fs::write(server.dir.join("file"), "data").unwrap();
    let (fifo, link, real) = (server.outside("fifo"), server.outside("link"), server.outside("real"));
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    assert!(fails(1, ["cp", &server.url("file"), fifo.to_str().unwrap()]).contains("a fifo is in the way"));
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());

    symlink(&real, &link).unwrap();
    let args = ["cp", &server.url("file"), link.to_str().unwrap()];
    fails(1, args);
    fs::write(&real, "old").unwrap();
    ok(args);
    assert_eq!(fs::read(&real).unwrap(), b"data");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_refused_copy_leaves_what_was_there_and_nothing_else() {
    if !is_root() {
        return;
    }
    let server = Serving::new(&[]);
    fs::set_permissions(&server.dir, fs::Permissions::from_mode(0o777)).unwrap();
    let (special, file) = (server.outside("special"), server.outside("file"));
    let mode = Mode::from_raw_mode(0o644);
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &special, FileType::CharacterDevice, mode, null).unwrap();
    fs::write(&file, "data").unwrap();
    fs::write(server.dir.join("there"), "precious").unwrap();
    // Root is nobody there.
    fails(1, ["cp", "-a", special.to_str().unwrap(), &server.url("there")]);
    assert_eq!(fs::read(server.dir.join("there")).unwrap(), b"precious");
    fails(1, ["cp", "--owner", file.to_str().unwrap(), &server.url("new")]);
    assert_eq!(fs::read_dir(&server.dir).unwrap().count(), 1, "no part is left");
}

#[test]
fn a_name_that_ends_with_a_slash_is_a_directory_and_a_missing_source_is_missing_here() {
    let server = Serving::unsquashed();
    let file = server.outside("file");
    fs::write(&file, "data").unwrap();
    let said = fails(1, ["cp", file.to_str().unwrap(), &server.url("new/")]);
    assert!(said.contains("no such directory"), "{said}");
    let gone = server.outside("gone");
    let said = fails(1, ["cp", gone.to_str().unwrap(), &server.url("new")]);
    assert!(said.contains("No such file or directory") && !said.contains("server"), "{said}");
}
