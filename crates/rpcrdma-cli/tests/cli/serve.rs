//! `serve`: rules, ports, signals.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::support::{Serving, fails, is_root, ok};

#[test]
fn a_server_tells_where_it_is_and_what_it_did() {
    let server = Serving::unsquashed();
    fs::write(server.dir.join("f"), "x").unwrap();
    ok(["cat", &server.url("f")]);
    ok(["cat", "--tcp", &server.tcp_url("f")]);
    server.signal(rustix::process::Signal::USR1);
    let (rdma, tcp, dir) = (server.rdma.clone(), server.tcp.clone().unwrap(), server.dir.clone());
    ok(["ping", "-c", "1", "-i", "0", &format!("nfs://{rdma}")]);
    let ended = server.stop();
    assert_eq!(ended.code, Some(0));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[0], format!("serving rdma={rdma} tcp={tcp}"));
    let port = tcp.rsplit(':').next().unwrap();
    assert!(ended.stdout.contains(&format!("rpcrdma cp -r nfs://{rdma}{} copy", dir.display())), "{ended:?}");
    assert!(
        ended.stdout.contains(&format!("proto=rdma,port={}", rdma.rsplit(':').next().unwrap())),
        "{ended:?}"
    );
    assert!(
        ended.stdout.contains(&format!("mountport={port} 127.0.0.1:{} /mnt", dir.display())),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("LOOKUP"), "SIGUSR1 prints counters: {ended:?}");
    assert!(lines.last().unwrap().starts_with("served "), "{ended:?}");
    assert!(lines.last().unwrap().contains("3 connections (2 RDMA, 1 TCP)"), "{ended:?}");
}

#[test]
fn a_read_only_export_is_read_only() {
    let server = Serving::new(&["--read-only", "--no-root-squash"]);
    fs::write(server.dir.join("f"), "x").unwrap();
    assert_eq!(ok(["cat", &server.url("f")]), "x");
    for args in [
        vec!["mkdir".to_owned(), server.url("d")],
        vec!["rm".to_owned(), server.url("f")],
        vec!["cp".to_owned(), server.url("f"), server.url("g")],
    ] {
        let said = fails(1, &args);
        assert!(said.contains("Read-only file system (server: NFS3ERR_ROFS)"), "{said}");
    }
    assert_eq!(fs::read_dir(&server.dir).unwrap().count(), 1);
}

#[test]
fn strangers_are_turned_away() {
    let server = Serving::new(&["--allow", "10.99.0.0/16", "--allow", "fd00::1"]);
    let said = fails(1, ["ls", &server.url("")]);
    assert!(said.contains("Permission denied (server: "), "{said}");
    let server = Serving::new(&["--allow", "127.0.0.0/8", "--no-root-squash"]);
    ok(["ls", &server.url("")]);
    let said = fails(2, ["serve", "--allow", "10.0.0.0/99", "."]);
    assert!(said.contains("192.168.0.0/16"), "an example helps: {said}");
}

#[test]
fn exports_have_the_names_they_are_given() {
    let scratch = tempfile::tempdir().unwrap();
    let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
    fs::create_dir_all(a.join("sub")).unwrap();
    fs::create_dir(&b).unwrap();
    fs::write(b.join("in b"), "").unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = Serving::new(&[
        "--export",
        &format!("/one={}", a.display()),
        "--export",
        &format!("/two/deep={}", b.display()),
    ]);
    let url = |path: &str| format!("nfs://{}{path}", server.rdma);
    assert_eq!(ok(["ls", &url("/one")]), "sub\n");
    assert_eq!(ok(["ls", &url("/two/deep")]), "in b\n");
    assert_eq!(ok(["ls", &url("/one/sub")]), "");
    fails(1, ["ls", &url("/two")]);
    for bad in ["one=/tmp", "/one", "/one="] {
        fails(2, ["serve", "--export", bad]);
    }
    let said = fails(2, ["serve", "--listen", "127.0.0.1:0", "--export", "/x/../y=/"]);
    assert!(said.contains("absolute path"), "{said}");
}

#[test]
fn root_is_squashed_unless_told_otherwise() {
    if !is_root() {
        println!("skipped: only root is squashed");
        return;
    }
    let server = Serving::new(&[]);
    fs::write(server.dir.join("secret"), "x").unwrap();
    fs::set_permissions(server.dir.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let said = fails(1, ["cat", &server.url("secret")]);
    assert!(said.contains("NFS3ERR_ACCES"), "{said}");
    let owner = |server: &Serving| {
        fs::set_permissions(&server.dir, fs::Permissions::from_mode(0o777)).unwrap();
        ok(["mkdir", &server.url("d")]);
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(server.dir.join("d")).unwrap())
    };
    assert_eq!(owner(&server), 65534);
    assert_eq!(owner(&Serving::new(&["--all-squash", "--anon-uid", "77", "--anon-gid", "78"])), 77);
    assert_eq!(owner(&Serving::unsquashed()), 0);
    // Another user by choice.
    let server = Serving::unsquashed();
    fs::set_permissions(&server.dir, fs::Permissions::from_mode(0o777)).unwrap();
    ok(["mkdir", "--uid", "4711", "--gid", "4712", &server.url("d")]);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(server.dir.join("d")).unwrap()), 4711);
}

#[test]
fn a_server_without_tcp_serves_mount_over_rdma() {
    let server = Serving::new(&["--tcp", "none", "--no-root-squash"]);
    assert_eq!(server.tcp, None);
    fs::write(server.dir.join("f"), "x").unwrap();
    assert_eq!(ok(["ls", &server.url("")]), "f\n");
}

#[test]
fn what_cannot_be_served_is_said() {
    let said = fails(1, ["serve", "--listen", "127.0.0.1:0", "/does/not/exist"]);
    assert_eq!(said, "rpcrdma: serve: /does/not/exist: No such file or directory\n");
    let said = fails(1, ["serve", "--listen", "127.0.0.1:0", "/dev/null"]);
    assert!(said.contains("cannot serve /dev/null"), "{said}");
    let server = Serving::unsquashed();
    let dir = server.dir.to_str().unwrap();
    let said = fails(1, ["serve", "--listen", &server.rdma, "--tcp", "none", dir]);
    assert!(said.contains("cannot listen for RDMA at") && said.contains("--listen"), "{said}");
    let tcp = server.tcp.clone().unwrap();
    let said = fails(1, ["serve", "--listen", "127.0.0.1:0", "--tcp", &tcp, dir]);
    assert!(said.contains("cannot listen for NFS over TCP at") && said.contains("--tcp"), "{said}");
    fails(2, ["serve"]);
    fails(2, ["serve", "--inline", "3000", "."]);
}

#[test]
fn handles_survive_a_restart_with_the_same_key() {
    let mut server = Serving::unsquashed();
    fs::write(server.dir.join("f"), "x").unwrap();
    let handle = |server: &Serving| {
        let said = ok(["stat", "--json", &server.url("f")]);
        serde_json::from_str::<serde_json::Value>(&said).unwrap()["handle"].as_str().unwrap().to_owned()
    };
    let first = handle(&server);
    server.kill_and_restart();
    assert_eq!(handle(&server), first);
    let another = server.outside("another key");
    let server = Serving::new(&["--no-root-squash", "--handle-key", another.to_str().unwrap()]);
    assert!(another.exists());
    drop(server);
    let said = fails(1, ["serve", "--listen", "127.0.0.1:0", "--handle-key", "/dev/null/x", "/"]);
    assert!(said.contains("/dev/null/x"), "{said}");
}
