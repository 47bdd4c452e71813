//! `rpcrdma mount`, as processes. Needs /dev/fuse and the right to mount; without, the tests say so and pass.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Serving, fails, program};

/// A mount by a process in the foreground, whose standard error tells when it is there.
struct Mount {
    child: Child,
    on: tempfile::TempDir,
}

fn can_mount() -> bool {
    let can = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok()
        && rustix::process::geteuid().is_root();
    if !can {
        eprintln!("SKIP: /dev/fuse cannot be opened, or we are not root");
    }
    can
}

fn is_mounted(on: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == on.to_str() && line.contains(" fuse.rpcrdma "))
}

impl Mount {
    fn of(serving: &Serving, options: &[&str]) -> Self {
        let on = tempfile::tempdir().unwrap();
        let mut command = program();
        command.arg("mount").args(options).arg(serving.url("")).arg(on.path());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
        assert!(line.contains("is mounted on"), "{line}");
        // Whatever else it says must find a reader.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { child, on }
    }

    fn dir(&self) -> PathBuf {
        self.on.path().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_mounted(self.on.path()) {
            // Behind a test that has failed already.
            let _ = self.child.kill();
            let _ = Command::new("umount").arg("-l").arg(self.on.path()).status();
        }
        let _ = self.child.wait();
    }
}

#[test]
fn a_signal_writes_out_unmounts_and_ends_it() {
    if !can_mount() {
        return;
    }
    let serving = Serving::unsquashed();
    let mut mount = Mount::of(&serving, &[]);
    fs::write(mount.dir().join("file"), b"text").unwrap();
    mount.signal(Signal::TERM);
    assert!(mount.child.wait().unwrap().success());
    assert!(!is_mounted(mount.on.path()));
    assert_eq!(fs::read(serving.dir.join("file")).unwrap(), b"text");
}

#[test]
fn it_ends_when_somebody_unmounts() {
    if !can_mount() {
        return;
    }
    let serving = Serving::unsquashed();
    let mut mount = Mount::of(&serving, &["-o", "ro"]);
    assert!(Command::new("umount").arg(mount.on.path()).status().unwrap().success());
    assert!(mount.child.wait().unwrap().success());
}

/// By this mount(8) knows that there is nothing left to do for a line of /etc/fstab.
#[test]
fn the_list_of_mounts_has_the_source_as_it_was_given() {
    if !can_mount() {
        return;
    }
    let serving = Serving::unsquashed();
    let url = serving.url("");
    let (at, path) = url.strip_prefix("nfs://").and_then(|rest| rest.split_once('/')).unwrap();
    let (host, port) = at.rsplit_once(':').unwrap();
    let given = format!("{host}:/{path}");
    let on = tempfile::tempdir().unwrap();
    let mut mount = program();
    mount.args(["mount", "-b", "-o", &format!("port={port}"), &given]).arg(on.path());
    assert!(mount.status().unwrap().success());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(Command::new("umount").arg(on.path()).status().unwrap().success());
    let ours = mounts.lines().find(|line| line.split(' ').nth(1) == on.path().to_str());
    assert_eq!(ours.and_then(|line| line.split(' ').next()), Some(given.as_str()));
}

#[test]
fn a_dead_mount_is_taken_away_by_the_next_one() {
    if !can_mount() {
        return;
    }
    let serving = Serving::unsquashed();
    let mut mount = Mount::of(&serving, &[]);
    mount.child.kill().unwrap();
    mount.child.wait().unwrap();
    assert_eq!(fs::read_dir(mount.on.path()).unwrap_err().raw_os_error(), Some(107));
    let mut again = program();
    let again = again.args(["mount", "--background"]).arg(serving.url("")).arg(mount.on.path()).status();
    assert!(again.unwrap().success());
    fs::write(mount.dir().join("file"), b"text").unwrap();
    assert_eq!(fs::read(serving.dir.join("file")).unwrap(), b"text");
    assert!(Command::new("umount").arg(mount.on.path()).status().unwrap().success());
}

#[test]
fn whoever_waits_for_a_dead_server_can_be_killed_and_others_go_on() {
    if !can_mount() {
        return;
    }
    let mut serving = Serving::unsquashed();
    let mount = Mount::of(&serving, &["-o", "actimeo=0"]);
    fs::write(mount.dir().join("file"), b"text").unwrap();
    serving.kill();
    let cat = || {
        let mut cat = Command::new("cat");
        cat.arg(mount.dir().join("file")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let (mut victim, other) = (cat(), cat());
    victim.kill().unwrap();
    // It ends although nobody answers it.
    assert!(!victim.wait().unwrap().success());
    serving.restart();
    let read = other.wait_with_output().unwrap();
    assert!(read.status.success());
    assert_eq!(read.stdout, b"text");
}

#[test]
fn what_cannot_be_mounted_is_explained() {
    let serving = Serving::unsquashed();
    let on = tempfile::tempdir().unwrap();
    let on = on.path().to_str().unwrap();
    let url = serving.url("");
    assert!(fails(2, ["mount", "-o", "vers=4.2", &url, on]).contains("vers=4.2"));
    assert!(fails(2, ["mount", "-f", "-o", "frob", &url, on]).contains("frob"));
    // Nothing is mounted, and nobody asked.
    let fake = program()
        .args(["mount", "-b", "-sf", "-o", "frob", "nfs://127.0.0.1:1/x", "/no/such/place"])
        .output();
    let fake = fake.unwrap();
    assert!(fake.status.success());
    assert!(String::from_utf8_lossy(&fake.stderr).contains("frob"));
    assert!(fails(2, ["mount", "server", on]).contains("HOST:/PATH"));
    assert!(fails(1, ["mount", &serving.url("/nothing"), on]).contains("nothing"));
    if can_mount() {
        assert!(fails(1, ["mount", &url, "/no/such/place"]).contains("/no/such/place"));
    }
}
