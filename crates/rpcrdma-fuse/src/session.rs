//! Mounting and unmounting.
//!
//! # Operation
//! [`Mounting::mount`] asks the server for the root, hands the kernel a file descriptor of `/dev/fuse`, and starts the
//! threads that read requests. The mount ends when somebody unmounts it, or through [`Mounted::unmount`], which first
//! makes everything durable.
//!
//! # When it breaks
//! If this process dies, the mount stays in the tree and every use of it fails with ENOTCONN. [`clear_dead_mount`] takes
//! such a mount away; mounting over one does it by itself.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use fuser::{Config, MountOption, Session, SessionACL};
use rpcrdma::{
    client::{Identity, Mount},
    error::Error,
    metrics::ClientMetrics,
};
use rustix::{fs::statfs, io::Errno, mount::UnmountFlags};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use crate::{
    fs::{Fs, READ_AHEAD},
    inode::Inodes,
    options::MountOptions,
    shared::Shared,
    user::Users,
};

/// Threads that read requests.
const THREADS: usize = 4;
/// How long the first question to a new mount may take before others are let in.
const READ_AHEAD_WAIT: Duration = Duration::from_secs(2);

/// What to mount, and how.
pub struct Mounting {
    /// The export, mounted on behalf of `identity`.
    pub mount: Mount,
    /// Who that is.
    pub identity: Identity,
    /// Everybody acts as `identity`, instead of as themselves.
    pub one_identity: bool,
    /// Everything else.
    pub options: MountOptions,
    /// What `/proc/mounts` says is mounted.
    pub source: String,
}

/// Why nothing was mounted.
#[non_exhaustive]
#[derive(Debug)]
pub enum MountError {
    /// The server does not say what the root is.
    Root(Error),
    /// The kernel or fusermount refuses.
    Fuse(io::Error),
    /// The place to mount on is no good.
    Place(PathBuf, io::Error),
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(e) => write!(f, "the server does not show the mounted directory: {e}"),
            Self::Fuse(e) => write!(f, "FUSE: {e}"),
            Self::Place(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}

impl std::error::Error for MountError {}

impl Mounting {
    /// Mounts on a directory. Needs a runtime, on which everything runs until the mount ends.
    ///
    /// # Errors
    /// If the server, the kernel or the place does not allow it.
    pub async fn mount(self, on: &Path) -> Result<Mounted, MountError> {
        let Self { mount, identity, one_identity, options, source } = self;
        let place = |e: io::Error| MountError::Place(on.to_owned(), e);
        clear_dead_mount(on).map_err(place)?;
        let on = std::fs::canonicalize(on).map_err(place)?;
        let root = mount.root();
        let attributes = mount.getattr(root).await.map_err(MountError::Root)?;
        let size = |wanted: Option<u32>| wanted.unwrap_or(u32::MAX).min(mount.io_size());
        // Pages are what the kernel reads.
        let rsize = size(options.rsize).max(4096) / 4096 * 4096;
        let wsize = size(options.wsize);
        let config = config(&options, &source, rsize);
        let users = Users::new(mount, identity, one_identity);
        let inodes = Inodes::new(root, &attributes);
        let shared = Arc::new(Shared::new(users, inodes, options, wsize, Handle::current()));
        let fs = Fs(Arc::clone(&shared));
        let path = on.clone();
        let session = tokio::task::spawn_blocking(move || Session::new(fs, path, &config));
        let session = session.await.map_err(io::Error::other).and_then(|s| s).map_err(MountError::Fuse)?;
        // Set once, here.
        let _ = shared.notifier.set(session.notifier());
        let (ended, end) = watch::channel(false);
        let run = move || {
            if let Err(e) = session.run() {
                tracing::error!("the session with the kernel has failed: {e}");
            }
            // Nobody need be waiting.
            let _ = ended.send(true);
        };
        thread::Builder::new().name("fuse".to_owned()).spawn(run).map_err(MountError::Fuse)?;
        let path = on.clone();
        // It asks the new file system, whose server may have gone meanwhile. As long as it does the mount is in use.
        let _ = timeout(READ_AHEAD_WAIT, tokio::task::spawn_blocking(move || read_ahead(&path))).await;
        Ok(Mounted { on, shared, end })
    }
}

fn config(options: &MountOptions, source: &str, rsize: u32) -> Config {
    // Root's options go to the kernel as they are, others' through fusermount, which splits them at commas.
    let root = rustix::process::geteuid().is_root();
    let source = if root { source.to_owned() } else { source.replace(',', "\\,") };
    let choose = |yes, on, off| if yes { on } else { off };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source),
        MountOption::CUSTOM("subtype=rpcrdma".to_owned()),
        MountOption::CUSTOM(format!("max_read={rsize}")),
        MountOption::DefaultPermissions,
        choose(options.read_only, MountOption::RO, MountOption::RW),
        choose(options.suid, MountOption::Suid, MountOption::NoSuid),
        choose(options.dev, MountOption::Dev, MountOption::NoDev),
        choose(options.exec, MountOption::Exec, MountOption::NoExec),
        choose(options.sync, MountOption::Sync, MountOption::Async),
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

/// Lets the kernel read ahead further than it does by default. Only root may; others have 128 KiB.
fn read_ahead(on: &Path) {
    let set = || -> io::Result<()> {
        let device = rustix::fs::stat(on)?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        std::fs::write(file, (READ_AHEAD / 1024).to_string())
    };
    if let Err(e) = set() {
        tracing::debug!("the kernel reads ahead as far as it does by default: {e}");
    }
}

/// A mount that exists. Dropping it does not end it.
pub struct Mounted {
    on: PathBuf,
    shared: Arc<Shared>,
    end: watch::Receiver<bool>,
}

impl Mounted {
    /// Where it is.
    #[must_use]
    pub fn on(&self) -> &Path {
        &self.on
    }

    /// What its connections count.
    #[must_use]
    pub fn metrics(&self) -> &Arc<ClientMetrics> {
        self.shared.users.owner().mount.metrics()
    }

    /// Waits until the mount has ended, and everything that was written is durable.
    pub async fn ended(&self) {
        let mut end = self.end.clone();
        // An error is an end, too.
        let _ = end.wait_for(|ended| *ended).await;
        self.shared.writer.sync_all().await;
    }

    /// Makes everything that was written so far durable. On a hard mount this takes as long as the server is away.
    pub async fn sync(&self) {
        self.shared.writer.sync_all().await;
    }

    /// Takes the mount out of the tree. What is in use can be used until it is closed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn unmount(&self) -> io::Result<()> {
        let on = self.on.clone();
        tokio::task::spawn_blocking(move || unmount(&on)).await.map_err(io::Error::other)?
    }
}

/// Unmounts a directory, or at least takes it out of the tree if it is in use.
///
/// # Errors
/// If the kernel, or for users other than root fusermount, refuses.
pub fn unmount(on: &Path) -> io::Result<()> {
    match rustix::mount::unmount(on, UnmountFlags::empty()) {
        Err(Errno::BUSY) => Ok(rustix::mount::unmount(on, UnmountFlags::DETACH)?),
        Err(Errno::PERM) => {
            let failed = |_| io::Error::from(Errno::PERM);
            let mut helper = std::process::Command::new("fusermount3");
            let status = helper.args(["-u", "-z", "--"]).arg(on).status().map_err(failed)?;
            if status.success() { Ok(()) } else { Err(Errno::PERM.into()) }
        }
        done => Ok(done?),
    }
}

/// Takes away a FUSE mount whose process has died. Does nothing to anything else.
///
/// # Errors
/// If it cannot be taken away.
pub fn clear_dead_mount(on: &Path) -> io::Result<()> {
    // A dead connection answers nothing else, and nothing else answers this.
    match statfs(on) {
        Err(Errno::NOTCONN) => unmount(on),
        _ => Ok(()),
    }
}
