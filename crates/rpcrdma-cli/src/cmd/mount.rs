//! `rpcrdma mount`: an export in the tree of files of this machine.
//!
//! # In the background
//! A process with threads cannot be split in two. So `--background` starts this program again, in a session of its own,
//! and waits for a word on a pipe: that it is mounted, or nothing, if it failed and has said why.
//!
//! # As a helper of mount(8)
//! Called by a name that begins with `mount.`, the program takes the arguments that mount(8) gives to helpers.

use std::{
    ffi::{OsStr, OsString},
    io::{Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use rpcrdma::client::{self, Target, Transport};
use rpcrdma_fuse::{MountError, MountOptions, Mounted, Mounting, Proto};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    connect::ClientOptions,
    failure::{EXIT_FAILURE, Failure, Outcome},
    out, units,
};

/// Mount an export, so that any program can use it
///
/// Runs until the directory is unmounted (umount DIR) or a signal comes: SIGINT, SIGTERM or SIGHUP write out what has
/// been written, unmount, and end it. Writes are sent behind the programs' backs and are durable when fsync or close
/// return; a server that is away is waited for, unless the mount is soft. Locks are local to this machine.
///
/// Needs /dev/fuse, and root or the program fusermount3.
#[derive(Args)]
#[command(after_help = "\
Mount options (-o), by the names of nfs(5), with their defaults:
  ro, rw             nothing may be changed, or anything (rw)
  hard, soft         wait for a server that is away for ever (hard), or fail with EIO
  timeo=N            tenths of a second without an answer after which a request is sent again (600)
  retrans=N          soft gives up after timeo and this many times as long again (2)
  rsize=N, wsize=N   most bytes per READ and WRITE (what the server likes best, at most 1 MiB)
  nconnect=N         connections (1)
  port=N, mountport=N, proto=rdma|tcp
  acregmin=N, acregmax=N, acdirmin=N, acdirmax=N   seconds that attributes are believed (3, 60, 30, 60)
  actimeo=N, noac    all four; none, and writes wait for the disk
  nocto              do not ask the server at each open, do not wait at each close
  sync               every write waits for the disk
  lookupcache=all|positive|none   which names are believed (all): not that there is none, or none at all
  allow_other, suid, dev, noexec

Examples:
  rpcrdma mount nfs://server/srv/data /mnt
  rpcrdma mount --background -o ro,soft,timeo=50 nfs://server/srv/data /mnt
  in /etc/fstab, with /sbin/mount.rpcrdma a link to rpcrdma:
  nfs://server/srv/data  /mnt  rpcrdma  allow_other,_netdev  0 0")]
pub(crate) struct Mount {
    /// What to mount: nfs://HOST[:PORT]/PATH, or HOST:/PATH
    #[arg(value_name = "URL", value_parser = parse_source)]
    source: Source,

    /// Where; an existing directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Mount options, with commas between them; may be repeated
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,

    /// Let mount options pass that are not known, with a warning
    #[arg(short, long)]
    sloppy: bool,

    /// Check the arguments, and mount nothing
    #[arg(short, long)]
    fake: bool,

    /// Let other users in, each acting as themselves; without it only who mounts may use it
    #[arg(long)]
    allow_other: bool,

    /// Return when it is mounted
    #[arg(short, long)]
    background: bool,

    #[command(flatten)]
    client: ClientOptions,
}

/// Set for the process that stays in the background.
const BACKGROUND: &str = "RPCRDMA_MOUNT_BACKGROUND";
/// What it says when it is mounted.
const MOUNTED: u8 = b'+';

/// What to mount.
#[derive(Clone, Debug)]
struct Source {
    /// As it was said, which is how mount(8) knows again what is mounted already.
    given: String,
    target: Target,
}

fn parse_source(text: &str) -> Result<Source, String> {
    let parse = |url: &str| {
        let target = url.parse::<Target>().map_err(|e| e.to_string())?;
        Ok(Source { given: text.to_owned(), target })
    };
    if text.starts_with("nfs://") {
        return parse(text);
    }
    let (host, path) = text
        .rsplit_once(":/")
        .filter(|(host, _)| !host.is_empty() && !host.contains('/'))
        .ok_or_else(|| "it is nfs://HOST[:PORT]/PATH or HOST:/PATH".to_owned())?;
    let path: String = path.bytes().map(|b| format!("%{b:02x}")).collect();
    parse(&format!("nfs://{host}/{path}"))
}

/// The arguments of a call as a helper of mount(8), as arguments of `rpcrdma mount`; all others as they are.
pub(crate) fn as_helper(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.peekable();
    let name = args.peek().and_then(|a| Path::new(a).file_name()).unwrap_or_default();
    if !name.as_bytes().starts_with(b"mount.") {
        return args.collect();
    }
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    out.push("mount".into());
    out.push("--background".into());
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"-o" => out.extend([arg, args.next().unwrap_or_default()]),
            // A type and a namespace, which mount(8) has entered already.
            b"-t" | b"-N" => drop(args.next()),
            // Sloppy and fake are ours, too. Nobody writes /etc/mtab any more.
            [b'-', flags @ ..] if !flags.is_empty() && flags.iter().all(|b| b"sfn".contains(b)) => {
                let ours = flags.iter().filter(|b| **b != b'n');
                out.extend(ours.map(|b| OsString::from(format!("-{}", char::from(*b)))));
            }
            _ => out.push(arg),
        }
    }
    out
}

impl Mount {
    pub(super) fn run(self) -> Outcome {
        if self.fake {
            return self.mount_options().map(|_| ExitCode::SUCCESS);
        }
        if self.background && std::env::var_os(BACKGROUND).is_none() {
            return start_in_background();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::of("the runtime cannot start", e))?;
        let done = runtime.block_on(self.stay());
        // A server that is away must not keep us.
        runtime.shutdown_background();
        done
    }

    fn mount_options(&self) -> Result<MountOptions, Failure> {
        let mut options = MountOptions::default();
        options.hard = !self.client.soft;
        options.timeo = Duration::from_millis(u64::from(self.client.timeo) * 100);
        options.retrans = self.client.retrans.unwrap_or(options.retrans);
        for list in &self.options {
            for unknown in options.apply_known(list).map_err(|e| Failure::usage(e.to_string()))? {
                if !self.sloppy {
                    return Err(Failure::usage(unknown.to_string()));
                }
                out::note(&format!("{unknown}; ignored"));
            }
        }
        options.allow_other |= self.allow_other;
        Ok(options)
    }

    async fn mount(&self) -> Result<Mounted, Failure> {
        let options = self.mount_options()?;
        let mut target = self.source.target.clone();
        if options.port.is_some() {
            target.port = options.port;
            target.also.iter_mut().for_each(|(_, port)| *port = options.port);
        }
        let mut config = self.client.config(Duration::ZERO);
        config.rdma = options.patience(config.rdma);
        if options.hard {
            config.rdma.give_up = self.client.timeout.filter(|t| !t.is_zero());
        }
        if let Some(nconnect) = options.nconnect {
            config.nconnect = nconnect as usize;
        }
        config.mount_port = options.mount_port.or(config.mount_port);
        let most = |size: Option<u32>| size.unwrap_or(1 << 20);
        config.io_size = most(options.rsize).max(most(options.wsize));
        let transport = match options.proto {
            Proto::Tcp => Transport::Tcp,
            Proto::Rdma => self.client.transport(),
        };
        let identity = config.identity.clone();
        let fail = |e| Failure::of(&target, e);
        let mount = client::Mount::new(&transport, &target, config).await.map_err(fail)?;
        let one_identity = self.client.uid.is_some() || self.client.gid.is_some();
        let mounting = Mounting { mount, identity, one_identity, options, source: self.source.given.clone() };
        mounting.mount(&self.dir).await.map_err(|e| match e {
            MountError::Place(path, e) => Failure::of(path.display(), e),
            e => Failure::of(&target, e.to_string()),
        })
    }

    /// Mounts, and stays until the mount has ended.
    async fn stay(self) -> Outcome {
        let mut signals = Signals::catch().map_err(|e| Failure::of("signals", e))?;
        let mounted = tokio::select! {
            mounted = self.mount() => mounted?,
            () = signals.any() => return Err(Failure::new("interrupted before it was mounted")),
        };
        let on = mounted.on().display().to_string();
        let metrics = Arc::clone(mounted.metrics());
        let first = metrics.connects.get();
        let done = Self::keep(&mounted, &on, signals, &self.source.target).await;
        let reconnects = metrics.connects.get().saturating_sub(first);
        out::note(&format!(
            "{}, {}, {} sent again",
            units::things(metrics.calls.get(), "call", "calls"),
            units::things(reconnects, "reconnect", "reconnects"),
            units::count(metrics.retransmissions.get()),
        ));
        done
    }

    /// Stays until the mount has ended.
    async fn keep(mounted: &Mounted, on: &str, mut signals: Signals, source: &Target) -> Outcome {
        if std::env::var_os(BACKGROUND).is_some() {
            let fail = |e: std::io::Error| Failure::of("cannot go to the background", e);
            go_to_background().map_err(fail)?;
        } else {
            out::note(&format!("{source} is mounted on {on}"));
        }
        tokio::select! {
            () = mounted.ended() => return Ok(ExitCode::SUCCESS),
            () = signals.any() => {}
        }
        let synced = tokio::select! {
            () = mounted.sync() => true,
            () = signals.any() => {
                out::note("unmounting without waiting for the server");
                false
            }
        };
        if !mounted.unmount().await.map_err(|e| Failure::of(on, e))? {
            out::note(&format!("{on} shows another file system, which stays there"));
            return Ok(ExitCode::SUCCESS);
        }
        let end = async { if synced { mounted.ended().await } else { mounted.left().await } };
        tokio::select! {
            () = end => Ok(ExitCode::SUCCESS),
            () = signals.any() => {
                out::note(&format!("{on} was in use"));
                Ok(ExitCode::from(EXIT_FAILURE))
            }
        }
    }
}

/// Starts this program again and waits until it has mounted.
fn start_in_background() -> Outcome {
    let fail = |e: std::io::Error| Failure::of("cannot start in the background", e);
    let mut args = std::env::args_os();
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env(BACKGROUND, OsStr::new("1")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(fail)?;
    let mut word = [0];
    let said = child.stdout.take().map(|mut pipe| pipe.read_exact(&mut word));
    if matches!(said, Some(Ok(()))) && word[0] == MOUNTED {
        return Ok(ExitCode::SUCCESS);
    }
    // It has said why on the standard error that we share.
    let status = child.wait().map_err(fail)?;
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(EXIT_FAILURE)))
}

/// Tells the one who waits, and lets go of terminal and directory.
fn go_to_background() -> std::io::Result<()> {
    // Fails for the leader of a group, who has nothing to leave.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    std::io::stdout().write_all(&[MOUNTED])?;
    std::io::stdout().flush()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The signals that end it.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(args: &[&str]) -> Vec<String> {
        let args = args.iter().map(OsString::from);
        as_helper(args).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn the_arguments_of_mount_are_understood() {
        assert_eq!(
            helper(&["/sbin/mount.rpcrdma", "nfs://h/x", "/mnt", "-sfn", "-o", "rw,soft", "-t", "rpcrdma"]),
            [
                "/sbin/mount.rpcrdma",
                "mount",
                "--background",
                "nfs://h/x",
                "/mnt",
                "-s",
                "-f",
                "-o",
                "rw,soft"
            ]
        );
        assert_eq!(helper(&["rpcrdma", "ls", "-t"]), ["rpcrdma", "ls", "-t"]);
        assert_eq!(helper(&[]), [""; 0]);
    }

    #[test]
    fn both_ways_to_name_an_export_are_understood() {
        for (text, url) in [
            ("nfs://h:1/a%20b", "nfs://h:1/a%20b"),
            ("h:/a b", "nfs://h/a%20b"),
            ("[::1]:/x", "nfs://[::1]/x"),
            ("h:/", "nfs://h/"),
        ] {
            let source = parse_source(text).unwrap();
            assert_eq!((source.target.to_string().as_str(), source.given.as_str()), (url, text));
        }
        for bad in ["/x", "h", "h:x", ":/x", ""] {
            assert!(parse_source(bad).is_err(), "{bad}");
        }
    }
}
