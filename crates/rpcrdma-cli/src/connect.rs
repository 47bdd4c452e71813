//! From what the user typed to a server: connection options, URLs, and where in a tree a URL leads.
//!
//! # Operation
//! A URL's path is the path of an export with a path inside it, and nothing in it says where one ends. So MOUNT is
//! asked for the whole path first, which any server grants if it is a directory that may be mounted; if not, for the
//! directory above, and so on up, and the rest is looked up name by name.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{
    Args, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};
use rpcrdma::{
    client::{Identity, Mount, MountConfig, ParseTargetError, RdmaConfig, Target, Transport},
    error::Error,
    fabric::{FaultPlan, InjectConnector},
    iwarp,
    nfs::v3::{FileType, Status},
};

use crate::{
    failure::Failure,
    fs::{Dir, FsError, Kind, LocalDir, Object, Server, show},
    provider::Provider,
    units,
};

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// How to connect to servers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection options")]
pub(crate) struct ClientOptions {
    /// Use plain NFS over TCP instead of RDMA, to compare (default port 2049 instead of 20049)
    #[arg(long)]
    pub(crate) tcp: bool,

    /// What carries RDMA
    #[arg(long, value_name = "NAME", default_value = "softiwarp", conflicts_with = "tcp")]
    pub(crate) provider: Provider,

    /// Look for answers this long before sleeping, which costs processor time; done less where it does not pay off
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "tcp")]
    pub(crate) spin: Option<u32>,

    /// TCP port of the MOUNT service [default: the NFS ports are asked first, then rpcbind]
    #[arg(long, value_name = "PORT")]
    pub(crate) mount_port: Option<u16>,

    /// Connections to the server, over which requests are spread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) nconnect: u32,

    /// Most requests in flight on a connection; the server may grant fewer
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) credits: u32,

    /// Whether every frame of software iWARP carries a CRC32c; it does as soon as one side wants it [default: on]
    #[arg(long, value_name = "WHEN", conflicts_with = "tcp")]
    pub(crate) crc: Option<Switch>,

    /// Start software iWARP peer to peer (RFC 6581), if the server agrees: the first frame is one without a request
    #[arg(long, conflicts_with = "tcp")]
    pub(crate) peer_to_peer: bool,

    /// Inline threshold to offer: the largest message without RDMA, 1K to 64K
    #[arg(long, value_name = "BYTES", default_value = "4K", value_parser = parse_inline, conflicts_with = "tcp")]
    pub(crate) inline: u32,

    /// Give up after so long without an answer; 0 tries for ever [default: 60, for cp 0]
    #[arg(long, value_name = "SECS", value_parser = units::parse_seconds)]
    pub(crate) timeout: Option<Duration>,

    /// As a hard mount: never give up, as with --timeout 0
    #[arg(long, conflicts_with_all = ["timeout", "soft"])]
    pub(crate) hard: bool,

    /// As a soft mount: give up after --timeo, and --retrans times as long again
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) soft: bool,

    /// Tenths of a second without an answer after which a request is sent again, on a new connection
    #[arg(long, value_name = "TENTHS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=36000))]
    pub(crate) timeo: u32,

    /// How often --soft lets a request be sent again [default: 2]
    #[arg(long, value_name = "N", requires = "soft")]
    pub(crate) retrans: Option<u32>,

    /// Cut connections at random, to see that nothing is lost: disconnect=1/500,seed=7,times=20
    #[arg(long, value_name = "PLAN", conflicts_with = "tcp")]
    pub(crate) inject: Option<FaultPlan>,

    /// User to act as on the server [default: yours]
    #[arg(long, value_name = "UID")]
    pub(crate) uid: Option<u32>,

    /// Group to act as on the server [default: yours]
    #[arg(long, value_name = "GID")]
    pub(crate) gid: Option<u32>,
}

/// What `--spin` says.
pub(crate) fn micros(spin: u32) -> Duration {
    Duration::from_micros(spin.into())
}

/// Reads an inline threshold.
pub(crate) fn parse_inline(text: &str) -> Result<u32, String> {
    let bytes = units::parse_size(text)?;
    let fits = (1024..=65536).contains(&bytes) && bytes % 1024 == 0;
    if fits { Ok(bytes as u32) } else { Err("it is a multiple of 1 KiB from 1K to 64K".to_owned()) }
}

/// How long interactive commands try without an answer.
const PATIENCE: Duration = Duration::from_secs(60);

impl ClientOptions {
    /// The settings of software iWARP that the options describe.
    pub(crate) fn iwarp(&self) -> iwarp::Config {
        let mut config = iwarp::Config::default();
        config.crc = self.crc != Some(Switch::Off);
        config.peer_to_peer = self.peer_to_peer;
        config.spin = self.spin.map(micros);
        config
    }

    /// The transport that the options describe.
    pub(crate) fn transport(&self) -> Transport {
        if self.tcp {
            return Transport::Tcp;
        }
        let connector = self.provider.connector(self.iwarp());
        Transport::Rdma(match self.inject {
            Some(plan) => Arc::new(InjectConnector::new(connector, plan)),
            None => connector,
        })
    }

    /// Says how long to wait and to try: as the user says, or else as long as `patience`, of which zero is for ever.
    fn patience(&self, config: RdmaConfig, patience: Duration) -> RdmaConfig {
        let timeo = Duration::from_millis(u64::from(self.timeo) * 100);
        if self.soft {
            return config.soft(timeo, self.retrans.unwrap_or(2));
        }
        let mut config = config.hard(timeo);
        if !self.hard {
            config.give_up = Some(self.timeout.unwrap_or(patience)).filter(|t| !t.is_zero());
        }
        config
    }

    /// The mount options; `patience` says how long to try unless the user does.
    pub(crate) fn config(&self, patience: Duration) -> MountConfig {
        let mut config = MountConfig {
            nconnect: self.nconnect as usize,
            mount_port: self.mount_port,
            ..MountConfig::default()
        };
        config.rdma.credits = self.credits;
        config.calls = self.credits as usize;
        config.rdma.inline = self.inline;
        config.rdma = self.patience(config.rdma, patience);
        let Identity { uid, gid, gids, .. } = &mut config.identity;
        if self.uid.is_some() || self.gid.is_some() {
            // Groups belong to the user that we are not.
            gids.clear();
        }
        *uid = self.uid.unwrap_or(*uid);
        *gid = self.gid.unwrap_or(*gid);
        config
    }
}

/// A path of this machine or a URL.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    Local(PathBuf),
    Url(Target),
}

impl Location {
    /// Reads it from an argument, which need not be UTF-8 if it is a path.
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| {
            if !text.as_encoded_bytes().starts_with(b"nfs://") {
                let empty = "a path has at least one character".to_owned();
                return if text.is_empty() { Err(empty) } else { Ok(Self::Local(text.into())) };
            }
            let text = text
                .to_str()
                .ok_or_else(|| "bytes of a URL that are not UTF-8 are written as %xx".to_owned())?;
            text.parse().map(Self::Url).map_err(|e: ParseTargetError| e.to_string())
        })
    }
}

/// Where a location leads: an object, or a name that nothing has yet.
pub(crate) struct Place {
    /// The directory it is in, and its name there. `None` for a directory that was reached as such: the root of a
    /// mount, or `.`.
    pub(crate) parent: Option<(Dir, Vec<u8>)>,
    /// What is there.
    pub(crate) found: Option<Object>,
    /// The directory, if it is one.
    pub(crate) dir: Option<Dir>,
    /// The last component of the location, as a name for a copy; empty if it has none.
    pub(crate) name: Vec<u8>,
    /// What to call it in messages.
    pub(crate) shown: String,
}

impl Place {
    /// What to say when nothing is there.
    pub(crate) fn missing(&self) -> Failure {
        match &self.parent {
            Some((Dir::Local(_), _)) => Failure::of(&self.shown, rustix::io::Errno::NOENT),
            _ => Failure::of(&self.shown, no_entry()),
        }
    }
}

/// Connections of one command, by server.
pub(crate) struct Session {
    options: ClientOptions,
    patience: Duration,
    transport: Transport,
    servers: Vec<(String, Mount)>,
}

impl Session {
    /// A session of a command that a person waits for.
    pub(crate) fn new(options: &ClientOptions) -> Self {
        Self::with_patience(options, PATIENCE)
    }

    /// A session that gives up after `patience` unless the user says otherwise; zero is never.
    pub(crate) fn with_patience(options: &ClientOptions, patience: Duration) -> Self {
        Self { transport: options.transport(), options: options.clone(), patience, servers: Vec::new() }
    }

    /// A connection to the target's server.
    pub(crate) async fn connect(&mut self, target: &Target) -> Result<Mount, Failure> {
        let authority = target.authority();
        if let Some((.., mount)) = self.servers.iter().find(|(known, _)| *known == authority) {
            return Ok(mount.clone());
        }
        let config = self.options.config(self.patience);
        let give_up = config.rdma.give_up;
        let mount =
            Mount::connect(&self.transport, target, config).await.map_err(|e| Failure::of(target, e))?;
        watch(&mount, &authority, give_up, self.options.tcp);
        self.servers.push((authority, mount.clone()));
        Ok(mount)
    }

    /// Follows a location to its end.
    pub(crate) async fn resolve(&mut self, location: &Location) -> Result<Place, Failure> {
        match location {
            Location::Url(target) => self.resolve_url(target).await,
            Location::Local(path) => resolve_path(path).await,
        }
    }

    /// Follows a URL to its end.
    pub(crate) async fn resolve_url(&mut self, target: &Target) -> Result<Place, Failure> {
        let connection = self.connect(target).await?;
        let fail = |e: Error| Failure::of(target, e);
        let shown = target.to_string();
        let components: Vec<&[u8]> =
            target.path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
        let name = components.last().map(|c| c.to_vec()).unwrap_or_default();
        let mut first = None;
        let mut depth = components.len();
        let mount = loop {
            let path = [b"/", components[..depth].join(&b'/').as_slice()].concat();
            match connection.mount(&path).await {
                Ok(mount) if depth == 0 => break mount,
                Ok(mount) => {
                    // Linux mounts files, too. Those are found in their directory like on any server.
                    let root = mount.getattr(mount.root()).await.map_err(fail)?;
                    if root.file_type == FileType::Directory {
                        break mount;
                    }
                    depth -= 1;
                }
                Err(e @ Error::Mount { .. }) if depth > 0 => {
                    first.get_or_insert(e);
                    depth -= 1;
                }
                Err(Error::Mount { .. }) if components.is_empty() => {
                    let hint = format!("this is no export; rpcrdma ls {target} shows what is");
                    return Err(Failure::of(target, hint));
                }
                Err(e) => return Err(fail(first.unwrap_or(e))),
            }
        };
        let server = Server::new(mount);
        let mut dir = Dir::Nfs(server.root());
        let rest = &components[depth..];
        let Some((last, above)) = rest.split_last() else {
            let meta = dir.meta().await.map_err(|e| Failure::of(target, e))?;
            let found = Some(Object { meta, handle: Some(server.mount().root()) });
            return Ok(Place { parent: None, found, dir: Some(dir), name, shown });
        };
        for component in above {
            let found = dir.find(component).await.map_err(|e| Failure::of(target, e))?;
            let found = found.ok_or_else(|| fail(no_entry()))?;
            dir = dir.enter(component, &found).await.map_err(|e| Failure::of(target, e))?;
        }
        let found = dir.find(last).await.map_err(|e| Failure::of(target, e))?;
        let below = match &found {
            Some(object) if object.meta.kind == Kind::Dir => {
                Some(dir.enter(last, object).await.map_err(|e| Failure::of(target, e))?)
            }
            _ => None,
        };
        Ok(Place { parent: Some((dir, last.to_vec())), found, dir: below, name, shown })
    }

    /// What a server exports, for a URL that names nothing but the server, unless its root can be mounted.
    pub(crate) async fn exports_instead(&mut self, target: &Target) -> Result<Option<Vec<Vec<u8>>>, Failure> {
        if target.path.iter().any(|b| *b != b'/') {
            return Ok(None);
        }
        let exports = self.connect(target).await?.exports().await.map_err(|e| Failure::of(target, e))?;
        Ok((!exports.iter().any(|path| path == b"/")).then_some(exports))
    }

    /// Connections that were lost and made again.
    pub(crate) fn reconnects(&self) -> u64 {
        let first = u64::from(self.options.nconnect);
        self.servers.iter().map(|(.., mount)| mount.metrics().connects.get().saturating_sub(first)).sum()
    }

    /// Follows a URL to something that exists.
    pub(crate) async fn existing(&mut self, target: &Target) -> Result<(Place, Object), Failure> {
        let place = self.resolve_url(target).await?;
        match place.found {
            Some(object) => Ok((place, object)),
            None => Err(Failure::of(target, no_entry())),
        }
    }
}

/// What LOOKUP says of a name that nothing has.
pub(crate) fn no_entry() -> Error {
    Error::Nfs { procedure: "LOOKUP", status: Status::NOENT }
}

async fn resolve_path(path: &std::path::Path) -> Result<Place, Failure> {
    use std::os::unix::ffi::OsStrExt as _;
    let shown = show(path.as_os_str().as_bytes());
    let fail = |e: FsError| Failure::of(&shown, e);
    let Some(name) = path.file_name().map(|n| n.as_bytes().to_vec()) else {
        let dir = Dir::Local(LocalDir::at(path).await.map_err(fail)?);
        let found = Some(Object { meta: dir.meta().await.map_err(fail)?, handle: None });
        return Ok(Place { parent: None, found, dir: Some(dir), name: Vec::new(), shown });
    };
    let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let parent = Dir::Local(LocalDir::at(above).await.map_err(fail)?);
    let found = parent.find(&name).await.map_err(fail)?;
    let dir = match found.map(|o| o.meta.kind) {
        Some(Kind::Dir) => Some(Dir::Local(LocalDir::at(path).await.map_err(fail)?)),
        // A symlink to a directory is one to go through, where it is the user who says so.
        Some(Kind::Symlink) => LocalDir::at(path).await.ok().map(Dir::Local),
        _ => None,
    };
    Ok(Place { parent: Some((parent, name.clone())), found, dir, name, shown })
}

/// Tells the user when the server has gone, and when it is back.
fn watch(mount: &Mount, host: &str, give_up: Option<Duration>, tcp: bool) {
    let metrics = Arc::downgrade(mount.metrics());
    let host = host.to_owned();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let (mut connects, mut gone, mut mute) = (0, 0, false);
        loop {
            ticks.tick().await;
            let Some(metrics) = metrics.upgrade() else { return };
            if !mute && metrics.replies.get() == 0 && metrics.losses.get() > 2 {
                mute = true;
                let hint = if tcp { "; if it is a port for RDMA, leave --tcp out" } else { "" };
                crate::out::note(&format!(
                    "{host} takes connections and closes them without an answer{hint}"
                ));
            }
            if metrics.connects.get() > connects {
                if gone > 1 {
                    crate::out::note(&format!("connected to {host} again"));
                }
                (connects, gone) = (metrics.connects.get(), 0);
            } else if metrics.connect_failures.get() > 0 && metrics.losses.get() >= connects {
                gone += 1;
                if gone == 2 {
                    let end =
                        give_up.map(|after| format!(" for {} s", after.as_secs_f64())).unwrap_or_default();
                    crate::out::note(&format!("{host} does not answer; trying{end}, Ctrl-C to stop"));
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        client: ClientOptions,
    }

    /// How long a Call may be silent, and how long it is tried, in seconds.
    fn limits(line: &str) -> (f64, Option<f64>) {
        let words = std::iter::once("rpcrdma").chain(line.split_whitespace());
        let rdma = Line::try_parse_from(words).unwrap().client.config(PATIENCE).rdma;
        (rdma.call_timeout.as_secs_f64(), rdma.give_up.map(|t| t.as_secs_f64()))
    }

    #[test]
    fn hard_and_soft_mean_what_mounts_mean() {
        for (line, want) in [
            ("", (60.0, Some(60.0))),
            ("--timeout 5", (60.0, Some(5.0))),
            ("--timeout 0", (60.0, None)),
            ("--hard", (60.0, None)),
            ("--hard --timeo 15", (1.5, None)),
            ("--soft", (60.0, Some(180.0))),
            ("--soft --timeo 50 --retrans 0", (5.0, Some(5.0))),
            ("--soft --timeo 7 --retrans 4", (0.7, Some(3.5))),
        ] {
            assert_eq!(limits(line), want, "{line:?}");
        }
        for bad in ["--hard --soft", "--hard --timeout 3", "--soft --timeout 3", "--retrans 2", "--timeo 0"] {
            let words = std::iter::once("rpcrdma").chain(bad.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{bad}");
        }
    }
}
