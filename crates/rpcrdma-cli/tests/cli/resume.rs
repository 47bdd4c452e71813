//! Copies that were interrupted.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    process::Stdio,
};

use crate::support::{Serving, age, assert_same, noise, ok, plant, program, until};

const LARGE: usize = 160 << 20;

/// Starts a copy and kills it when so much of the part has arrived. Tries again when the copy was faster.
fn kill_in_the_middle(args: &[&str], part: &Path, whole: &Path, at: u64) {
    for _ in 0..20 {
        // Gone with the copy that came too far.
        let _ = fs::remove_file(whole);
        let mut child = program().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        loop {
            if fs::metadata(part).is_ok_and(|m| m.len() >= at) {
                child.kill().unwrap();
                child.wait().unwrap();
                if part.exists() {
                    return;
                }
            }
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::yield_now();
        }
    }
    panic!("the copy was always faster than its killer");
}

/// MiB that a copy says it copied.
fn copied(said: &str) -> f64 {
    let (_, rest) = said.split_once("copied 1 file, ").expect(said);
    let (number, _) = rest.split_once(" MiB").expect(said);
    number.parse().unwrap()
}

#[test]
fn a_large_file_is_continued_after_kill_9_in_both_directions() {
    let server = Serving::unsquashed();
    let data = noise(LARGE, 77);
    fs::write(server.dir.join("big"), &data).unwrap();
    age(&server.dir.join("big"), 1);
    let out = server.outside("out");
    fs::create_dir(&out).unwrap();
    let down = out.join("big");

    let args = ["cp", &server.url("big"), down.to_str().unwrap()];
    kill_in_the_middle(&args, &out.join(".big.rpcrdma-part"), &down, 80 << 20);
    assert!(!down.exists(), "half a file has no name");
    let said = ok(args);
    assert!(copied(&said) < 150.0, "{said}");
    assert!(fs::read(&down).unwrap() == data);
    assert_eq!(fs::metadata(&down).unwrap().mtime(), 1_600_001_000);

    let up = server.dir.join("up");
    let args = ["cp", down.to_str().unwrap(), &server.url("up")];
    kill_in_the_middle(&args, &server.dir.join(".up.rpcrdma-part"), &up, 80 << 20);
    assert!(!up.exists());
    let said = ok(args);
    assert!(copied(&said) < 150.0, "{said}");
    assert!(fs::read(&up).unwrap() == data);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "no part is left");
}

#[test]
fn a_part_of_another_file_is_not_continued() {
    let server = Serving::unsquashed();
    let source = server.dir.join("big");
    fs::write(&source, noise(64 << 20, 1)).unwrap();
    let out = server.outside("out");
    fs::create_dir(&out).unwrap();
    let (down, part) = (out.join("big"), out.join(".big.rpcrdma-part"));
    let args = ["cp", &server.url("big"), down.to_str().unwrap()];

    // Nobody's part.
    fs::write(&part, noise(48 << 20, 9)).unwrap();
    ok(args);
    assert!(fs::read(&down).unwrap() == noise(64 << 20, 1));

    // A part of what the file was before.
    kill_in_the_middle(&args, &part, &down, 40 << 20);
    fs::write(&source, noise(64 << 20, 2)).unwrap();
    ok(args);
    assert!(fs::read(&down).unwrap() == noise(64 << 20, 2));

    // A part that somebody has looked into and changed.
    kill_in_the_middle(&args, &part, &down, 40 << 20);
    let file = fs::File::options().write(true).open(&part).unwrap();
    file.write_all_at(b"changed", 5).unwrap();
    age(&part, 3);
    ok(args);
    assert!(fs::read(&down).unwrap() == noise(64 << 20, 2));
}

#[test]
fn a_tree_is_completed_and_what_is_there_is_left_alone() {
    let server = Serving::unsquashed();
    plant(&server.dir);
    let out = server.outside("out");
    let args = ["cp", "-r", &server.url(""), out.to_str().unwrap()];
    ok(args);
    let numbers = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    let untouched = numbers("large");
    fs::remove_file(out.join("small")).unwrap();
    fs::write(out.join("script"), "short").unwrap();
    fs::set_permissions(out.join("exact"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(out.join("link")).unwrap();
    // Into `out` this time, so say what is meant.
    let contents = format!("{}/", server.url(""));
    let parent = server.outside("parent");
    fs::create_dir(&parent).unwrap();
    fs::rename(&out, parent.join("srv")).unwrap();
    let said = ok(["cp", "-r", &contents, parent.to_str().unwrap()]);
    assert!(said.starts_with("copied 2 files"), "{said}");
    assert!(said.contains("1 link") && said.contains("311 unchanged"), "{said}");
    assert_same(&server.dir, &parent.join("srv"));
    assert_eq!(fs::metadata(parent.join("srv/large")).unwrap().ino(), untouched);

    let said = ok(["cp", "-r", "--no-resume", &contents, parent.to_str().unwrap()]);
    assert!(said.starts_with("copied 312 files"), "{said}");
    assert_same(&server.dir, &parent.join("srv"));
}

#[test]
fn a_copy_goes_on_when_the_server_was_killed_and_started_again() {
    let mut server = Serving::unsquashed();
    let data = noise(LARGE, 78);
    let out = server.outside("big");
    fs::write(&out, &data).unwrap();
    let part = server.dir.join(".up.rpcrdma-part");
    let args = ["cp", out.to_str().unwrap(), &server.url("up")].map(str::to_owned);
    let mut child = program().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    for at in [20 << 20, 60 << 20] {
        // If the copy is faster than we are, it has at least met one server less.
        until(|| fs::metadata(&part).is_ok_and(|m| m.len() >= at) || child.try_wait().unwrap().is_some());
        server.kill_and_restart();
    }
    assert!(child.wait().unwrap().success());
    assert!(fs::read(server.dir.join("up")).unwrap() == data);
}

/// Names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

#[test]
fn the_same_command_goes_on_with_a_tree_and_then_copies_into_it() {
    let server = Serving::unsquashed();
    let tree = server.dir.join("t");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/big"), noise(LARGE, 5)).unwrap();
    fs::write(tree.join("small"), "small").unwrap();
    age(&tree, 7);
    let out = server.outside("out");
    let args = ["cp", "-r", &server.url("t"), out.to_str().unwrap()];
    let part = out.join("sub/.big.rpcrdma-part");
    for _ in 0..20 {
        let mut child = program().args(args).stdout(Stdio::null()).spawn().unwrap();
        until(|| {
            fs::metadata(&part).is_ok_and(|m| m.len() > 60 << 20) || child.try_wait().unwrap().is_some()
        });
        child.kill().unwrap();
        if child.wait().unwrap().code().is_none() && part.exists() {
            break;
        }
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(names(&out).iter().any(|n| n.starts_with(".copy-of-")), "{:?}", names(&out));
    let said = ok(args);
    assert!(said.contains("unchanged") || said.contains("copied 2 files"), "{said}");
    assert_same(&tree, &out);
    // It is complete now, so the next copy is a copy into it, as with cp.
    ok(args);
    assert_eq!(names(&out), ["small", "sub", "t"]);
    assert_same(&tree, &out.join("t"));
}
