//! A server process, commands, and trees to compare.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, UNIX_EPOCH},
};

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rpcrdma"));
    command.env_remove("RPCRDMA_LOG").env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a command to its end.
pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    program().args(args).output().expect("the program starts").into()
}

/// Runs a command that has to succeed, and returns what it printed.
pub(crate) fn ok<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let ended = run(args);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "");
    ended.stdout
}

/// Runs a command that has to fail with this status, and returns its message.
pub(crate) fn fails<S: AsRef<OsStr>>(code: i32, args: impl IntoIterator<Item = S>) -> String {
    let ended = run(args);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(!ended.stderr.is_empty());
    ended.stderr
}

/// A server process with a directory of its own.
pub(crate) struct Serving {
    child: Child,
    /// The directory, which is gone with the server unless it came from elsewhere.
    pub(crate) dir: PathBuf,
    scratch: tempfile::TempDir,
    options: Vec<String>,
    pub(crate) rdma: String,
    pub(crate) tcp: Option<String>,
}

impl Serving {
    /// Serves a new directory, with these options besides.
    pub(crate) fn new(options: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("srv");
        fs::create_dir(&dir).unwrap();
        // Who serves as root must serve others too.
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self::start(scratch, dir, options)
    }

    /// As root's files are, so that tests see the same as root and as anybody else.
    pub(crate) fn unsquashed() -> Self {
        Self::new(&["--no-root-squash"])
    }

    fn start(scratch: tempfile::TempDir, dir: PathBuf, options: &[&str]) -> Self {
        let dir = fs::canonicalize(dir).unwrap();
        let any = "127.0.0.1:0".to_owned();
        let tcp = (!options.contains(&"--tcp")).then(|| any.clone());
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        let (child, rdma, tcp) = spawn(scratch.path(), &dir, &options, &any, tcp.as_deref());
        Self { child, dir, scratch, options, rdma, tcp }
    }

    /// Stops the server's processor time: its connections stay, and nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Undoes [`Self::freeze`].
    pub(crate) fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Another server of the same directory, with the same key, and so with the same file handles.
    pub(crate) fn beside(&self) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::copy(self.scratch.path().join("key"), scratch.path().join("key")).unwrap();
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Self::start(scratch, self.dir.clone(), &options)
    }

    /// Ends the server without a word.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends the server without a word, and starts another one in its place.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Starts a server in the place of one that is dead.
    pub(crate) fn restart(&mut self) {
        let (child, rdma, tcp) =
            spawn(self.scratch.path(), &self.dir, &self.options, &self.rdma, self.tcp.as_deref());
        assert_eq!((&rdma, &tcp), (&self.rdma, &self.tcp));
        self.child = child;
    }

    /// URL of a path below the directory.
    pub(crate) fn url(&self, path: &str) -> String {
        self.at(&self.rdma, path)
    }

    /// URL of a path on this server, or else on another one.
    pub(crate) fn url_or(&self, other: &Self, path: &str) -> String {
        self.at(&format!("{},{}", self.rdma, other.rdma), path)
    }

    /// The same for `--tcp`.
    pub(crate) fn tcp_url(&self, path: &str) -> String {
        self.at(self.tcp.as_ref().unwrap(), path)
    }

    fn at(&self, addr: &str, path: &str) -> String {
        let slash = if path.is_empty() { "" } else { "/" };
        format!("nfs://{addr}{}{slash}{path}", self.dir.display())
    }

    /// A directory that is not served.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops the server in good order and returns what it printed.
    pub(crate) fn stop(mut self) -> Ended {
        use std::io::Read as _;
        self.signal(rustix::process::Signal::TERM);
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let code = self.child.wait().unwrap().code();
        Ended { code, stdout, stderr: String::new() }
    }
}

/// Starts a server process and waits until it listens. Returns where.
fn spawn(
    scratch: &Path,
    dir: &Path,
    options: &[String],
    rdma: &str,
    tcp: Option<&str>,
) -> (Child, String, Option<String>) {
    let ready = scratch.join("ready");
    // Left by a server before this one.
    let _ = fs::remove_file(&ready);
    let mut command = program();
    command.args(["serve", "--no-rpcbind", "--async", "--listen", rdma]);
    if let Some(tcp) = tcp {
        command.args(["--tcp", tcp]);
    }
    command.arg("--ready-file").arg(&ready).arg("--handle-key").arg(scratch.join("key")).args(options);
    if !options.iter().any(|o| o == "--export") {
        command.arg(dir);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let text = loop {
        match fs::read_to_string(&ready) {
            Ok(text) => break text,
            Err(_) => assert!(child.try_wait().unwrap().is_none(), "the server did not start"),
        }
        std::thread::yield_now();
    };
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    (child, said["rdma"].as_str().unwrap().to_owned(), said["tcp"].as_str().map(str::to_owned))
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that do not repeat.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Makes a tree with one of everything that a copy has to keep.
pub(crate) fn plant(top: &Path) {
    let dir = |name: &str| fs::create_dir_all(top.join(name)).unwrap();
    let file = |name: &[u8], data: &[u8]| fs::write(top.join(OsStr::from_bytes(name)), data).unwrap();
    let mode =
        |name: &str, mode| fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).unwrap();
    dir("deep/er/and/deeper");
    dir("empty dir");
    dir("locked");
    file(b"empty", b"");
    file(b"small", b"a few bytes");
    file(b"deep/er/and/deeper/odd", &noise(1_234_567, 3));
    file(b"exact", &noise(1 << 20, 4));
    file(b"large", &noise((3 << 20) + 17, 5));
    file(b"locked/inside", b"in a directory that nobody may write to");
    file(b"script", b"#!/bin/sh\n");
    file("sp ace ü %41 \n\\".as_bytes(), b"odd name");
    file(b"not utf-8 \xff\xfe", b"odd bytes");
    file(&[b'n'; 255], b"longest name");
    file(b".hidden", b"dot");
    for i in 0..300 {
        file(format!("deep/er/{i:03}").as_bytes(), &noise(i * 37, i as u64));
    }
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 4 << 20).unwrap();
    symlink("small", top.join("link")).unwrap();
    symlink("/nowhere/at all", top.join("deep/dangling")).unwrap();
    mode("script", 0o755);
    mode("small", 0o640);
    mode("exact", 0o444);
    mode("empty dir", 0o1777);
    mode("locked", 0o555);
    let mut stack = vec![top.to_owned()];
    let mut n = 0;
    while let Some(path) = stack.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                stack.push(path.clone());
            }
            n += 1;
            age(&path, n);
        }
    }
    age(top, 0);
}

/// Gives an object a time of change in the past, to the nanosecond.
pub(crate) fn age(path: &Path, n: i64) {
    let stamp = rustix::fs::Timespec { tv_sec: 1_600_000_000 + n * 1000, tv_nsec: 123_456_789 };
    let stamps = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &stamps, nofollow).unwrap();
}

/// What a tree is, without what a copy does not keep.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    kind: &'static str,
    mode: u32,
    mtime: (i64, i64),
    data: Vec<u8>,
}

/// Everything below a directory, and the directory itself under an empty name.
pub(crate) fn tree(top: &Path) -> BTreeMap<PathBuf, Leaf> {
    let mut all = BTreeMap::new();
    let mut stack = vec![top.to_owned()];
    while let Some(path) = stack.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let (kind, data) = if meta.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            ("directory", Vec::new())
        } else if meta.is_symlink() {
            ("symlink", fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else if meta.is_file() {
            ("file", fs::read(&path).unwrap())
        } else {
            ("special", Vec::new())
        };
        let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
        let leaf = Leaf { kind, mode, mtime: (meta.mtime(), meta.mtime_nsec()), data };
        all.insert(path.strip_prefix(top).unwrap().to_owned(), leaf);
    }
    all
}

/// Two trees are the same; if not, says where without printing megabytes.
#[track_caller]
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (tree(a), tree(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (path, leaf) in &a {
        let other = &b[path];
        assert!(
            leaf.data == other.data,
            "{} differs: {} and {} bytes",
            path.display(),
            leaf.data.len(),
            other.data.len()
        );
        assert_eq!(
            (leaf.kind, leaf.mode, leaf.mtime),
            (other.kind, other.mode, other.mtime),
            "{} differs",
            path.display()
        );
    }
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Waits until something is so. It has to become so, or the test hangs and says where.
pub(crate) fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        std::thread::yield_now();
    }
}

/// A time that no test gives to a file.
pub(crate) fn long_ago() -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}
