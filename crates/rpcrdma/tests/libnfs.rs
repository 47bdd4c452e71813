//! A foreign client, the tools of libnfs, against a directory served over TCP.
//!
//! The tests print why and pass if the tools (Debian package libnfs-utils) are not installed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    future::pending,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use rpcrdma::{
    export::{ExportRules, Exports, HandleKey, LocalExport, LocalOptions, Squash},
    memory::Pools,
    server::{
        Offload, RpcService, Service,
        tcp::{Limits, serve_tcp},
    },
};
use tokio::net::TcpListener;

/// A directory that is served.
struct Served {
    dir: tempfile::TempDir,
    port: u16,
}

impl Served {
    async fn start(rules: ExportRules) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = HandleKey::random().unwrap();
        let export = LocalExport::open(dir.path(), &key, LocalOptions::default()).unwrap();
        let mut exports = Exports::new();
        exports.add(dir.path().to_str().unwrap(), Arc::new(export), rules).unwrap();
        let service: Arc<dyn Service> = Arc::new(RpcService::new(exports));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve_tcp(
            listener,
            service,
            Pools::new(16),
            Offload::default(),
            Limits::default(),
            Arc::default(),
            pending(),
        ));
        Self { dir, port }
    }

    /// For the user that runs the tests, whoever it is.
    async fn open() -> Self {
        Self::start(ExportRules { squash: Squash::None, ..ExportRules::default() }).await
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        let Self { dir, port } = self;
        let dir = dir.path().display();
        format!("nfs://127.0.0.1{dir}/{name}?version=3&nfsport={port}&mountport={port}")
    }
}

/// Runs a tool while the server goes on.
async fn run(tool: &'static str, args: &[&str]) -> Output {
    let args: Vec<String> = args.iter().map(ToString::to_string).collect();
    tokio::task::spawn_blocking(move || Command::new(tool).args(args).output().unwrap()).await.unwrap()
}

async fn ok(tool: &'static str, args: &[&str]) -> Vec<u8> {
    let out = run(tool, args).await;
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{tool} {args:?}: {} {error}", out.status);
    out.stdout
}

fn installed() -> bool {
    let found = ["nfs-ls", "nfs-cat", "nfs-cp"].iter().all(|tool| Command::new(tool).output().is_ok());
    if !found {
        println!("skipped: the tools of libnfs (libnfs-utils) are not installed");
    }
    found
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_listed() {
    if !installed() {
        return;
    }
    let served = Served::open().await;
    let mut names: Vec<String> = (0..1500).map(|i| format!("a file with number {i}")).collect();
    names.iter().for_each(|n| write(&served.path(n), n.as_bytes()));
    fs::create_dir(served.path("sub")).unwrap();
    std::os::unix::fs::symlink("nowhere", served.path("link")).unwrap();
    names.extend(["sub".into(), "link".into()]);
    names.sort();
    let out = String::from_utf8(ok("nfs-ls", &[&served.url("")]).await).unwrap();
    let mut seen: Vec<&str> =
        names.iter().map(String::as_str).filter(|n| out.lines().any(|l| l.ends_with(n))).collect();
    seen.sort_unstable();
    assert_eq!(seen.len(), names.len());
    assert_eq!(out.lines().filter(|l| l.starts_with("-rw")).count(), 1500);
    assert!(out.lines().any(|l| l.starts_with('d') && l.ends_with("sub")));
    assert!(out.lines().any(|l| l.starts_with('l') && l.contains("link")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_and_written() {
    if !installed() {
        return;
    }
    let served = Served::open().await;
    let local = tempfile::tempdir().unwrap();
    for len in [0, 1, 4095, 1_000_003, 9 << 20] {
        let data = pattern(len);
        write(&served.path("there"), &data);
        assert!(ok("nfs-cat", &[&served.url("there")]).await == data, "nfs-cat of {len} bytes");

        let (from, back) = (local.path().join("from"), local.path().join("back"));
        write(&from, &data);
        // The tool wants to create its destination.
        let _ = (fs::remove_file(served.path("new")), fs::remove_file(&back));
        ok("nfs-cp", &[from.to_str().unwrap(), &served.url("new")]).await;
        assert!(fs::read(served.path("new")).unwrap() == data, "nfs-cp of {len} bytes");
        ok("nfs-cp", &[&served.url("new"), back.to_str().unwrap()]).await;
        assert!(fs::read(&back).unwrap() == data, "nfs-cp back of {len} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subdirectories_are_mounted_and_missing_ones_are_not() {
    if !installed() {
        return;
    }
    let served = Served::open().await;
    fs::create_dir_all(served.path("deep/er")).unwrap();
    write(&served.path("deep/er/f"), b"content");
    assert_eq!(ok("nfs-cat", &[&served.url("deep/er/f")]).await, b"content");
    assert!(!run("nfs-ls", &[&served.url("none/")]).await.status.success());
    assert!(!run("nfs-cat", &[&served.url("deep/none")]).await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_export_takes_no_files() {
    if !installed() {
        return;
    }
    let served = Served::start(ExportRules { read_only: true, ..ExportRules::default() }).await;
    let local = tempfile::tempdir().unwrap();
    let from = local.path().join("from");
    write(&from, b"data");
    assert!(!run("nfs-cp", &[from.to_str().unwrap(), &served.url("new")]).await.status.success());
    assert!(!served.path("new").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_not_served_cannot_mount() {
    if !installed() {
        return;
    }
    let allow = vec!["10.0.0.0/8".parse().unwrap()];
    let served = Served::start(ExportRules { allow, ..ExportRules::default() }).await;
    write(&served.path("f"), b"secret");
    let out = run("nfs-cat", &[&served.url("f")]).await;
    assert!(!out.status.success() && out.stdout.is_empty());
}
