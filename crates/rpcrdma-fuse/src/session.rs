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
    ffi::CString,
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
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
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statfs},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
    process::{getgid, getuid},
};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use crate::{
    fs::{Fs, READ_AHEAD},
    inode::Inodes,
    options::MountOptions,
    shared::Shared,
    user::Users,
};

/// What kind of FUSE file system `/proc/mounts` says it is.
const SUBTYPE: &str = "rpcrdma";
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
        let place = Place { on: on.clone(), source, flags: flags(&options), rsize };
        let config = config(&options);
        let users = Users::new(mount, identity, one_identity);
        let inodes = Inodes::new(root, &attributes);
        let shared = Arc::new(Shared::new(users, inodes, options, wsize, Handle::current()));
        let fs = Fs(Arc::clone(&shared));
        let session = tokio::task::spawn_blocking(move || place.session(fs, config));
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
        let device = device(&on);
        let path = on.clone();
        // It asks the new file system, whose server may have gone meanwhile. As long as it does the mount is in use.
        let _ = timeout(READ_AHEAD_WAIT, tokio::task::spawn_blocking(move || read_ahead(&path))).await;
        Ok(Mounted { on, device, shared, end })
    }
}

fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

fn flags(options: &MountOptions) -> MountFlags {
    let flags = [
        (options.read_only, MountFlags::RDONLY),
        (!options.suid, MountFlags::NOSUID),
        (!options.dev, MountFlags::NODEV),
        (!options.exec, MountFlags::NOEXEC),
        (options.sync, MountFlags::SYNCHRONOUS),
    ];
    flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect()
}

/// Where to mount, and what the kernel has to know for it.
struct Place {
    on: PathBuf,
    source: String,
    flags: MountFlags,
    rsize: u32,
}

impl Place {
    /// Mounts a file system, and greets the kernel.
    fn session(&self, fs: Fs, config: Config) -> io::Result<Session<Fs>> {
        match self.mount(config.acl) {
            Ok(device) => Session::from_fd(fs, device, config.acl, config).inspect_err(|_| {
                // Whatever went wrong first is what counts.
                let _ = unmount(&self.on);
            }),
            Err(Errno::PERM) => self.with_fusermount(fs, config),
            Err(e) => Err(e.into()),
        }
    }

    /// As those do who may. The session of [`fuser`] would, when the mount has ended, unmount the directory once more: if
    /// it was in use until then, perhaps something else that is mounted there now.
    fn mount(&self, acl: SessionACL) -> rustix::io::Result<OwnedFd> {
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let (fd, rsize) = (device.as_raw_fd(), self.rsize);
        let (user, group) = (getuid().as_raw(), getgid().as_raw());
        let others = if acl == SessionACL::All { ",allow_other" } else { "" };
        let data = format!(
            "fd={fd},rootmode=40000,user_id={user},group_id={group},default_permissions,max_read={rsize},\
             subtype={SUBTYPE}{others}"
        );
        let data = CString::new(data).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount(self.source.as_str(), &self.on, c"fuse", self.flags, data.as_c_str())?;
        Ok(device)
    }

    /// Through a program that may do it for everybody.
    fn with_fusermount(&self, fs: Fs, mut config: Config) -> io::Result<Session<Fs>> {
        let choose = |flag, on, off| if self.flags.contains(flag) { on } else { off };
        config.mount_options = vec![
            // It splits options at commas.
            MountOption::FSName(self.source.replace(',', "\\,")),
            MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
            MountOption::CUSTOM(format!("max_read={}", self.rsize)),
            MountOption::DefaultPermissions,
            choose(MountFlags::RDONLY, MountOption::RO, MountOption::RW),
            choose(MountFlags::NOSUID, MountOption::NoSuid, MountOption::Suid),
            choose(MountFlags::NODEV, MountOption::NoDev, MountOption::Dev),
            choose(MountFlags::NOEXEC, MountOption::NoExec, MountOption::Exec),
            choose(MountFlags::SYNCHRONOUS, MountOption::Sync, MountOption::Async),
        ];
        Session::new(fs, &self.on, &config)
    }
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
    /// Of the file system; `None` if the kernel did not say.
    device: Option<(u32, u32)>,
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
        self.left().await;
        self.shared.writer.sync_all().await;
    }

    /// Waits until the mount has ended for the kernel, whatever is not durable then.
    pub async fn left(&self) {
        let mut end = self.end.clone();
        // An error is an end, too.
        let _ = end.wait_for(|ended| *ended).await;
    }

    /// Makes everything that was written so far durable. On a hard mount this takes as long as the server is away.
    pub async fn sync(&self) {
        self.shared.writer.sync_all().await;
    }

    /// Takes the mount out of the tree. What is in use can be used until it is closed. Says whether it was there: if its
    /// directory shows another file system, in its place or on top of it, nothing is done.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn unmount(&self) -> io::Result<bool> {
        let (on, ours) = (self.on.clone(), self.device);
        let unmount = move || {
            let there = ours.is_none() || device(&on) == ours;
            if there { unmount(&on).map(|()| true) } else { Ok(false) }
        };
        tokio::task::spawn_blocking(unmount).await.map_err(io::Error::other)?
    }
}

/// The device number of what is mounted on a directory, without asking its server.
fn device(on: &Path) -> Option<(u32, u32)> {
    let seen = rustix::fs::statx(CWD, on, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()).ok()?;
    Some((seen.stx_dev_major, seen.stx_dev_minor))
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
