//! A probe: what does this RPC-over-RDMA server do, and is it what the RFCs say?
//!
//! # Operation
//! [`run`] makes the [`CHECKS`] one after the other. Each has a connection of its own, so that none suffers from what
//! another did to the server's patience; it starts with a NULL round trip where the check is not about just that, then
//! sends what the check is about, and puts what came back into words. What came back gets a [`Verdict`].
//!
//! Most checks need no file: NULL does nothing, and a WRITE to a file handle that no server gave has its Read chunk pulled
//! and its arguments decoded before it is refused. Others read a file of an export, or write one of their own
//! ([`Options::path`], [`Options::write`]).
//!
//! # When it breaks
//! A connection that ends is an observation, too. Where a check cannot even begin, because the server does not connect or
//! does not answer NULL, it is skipped with the reason.
//!
//! # Limits
//! Every wait ends after [`Options::limit`]. Checks that could harm a server under load (a flood, memory that cannot be
//! read) are made only if [`Options::hostile`] is set. NFSv3 is what is called; a server without it answers in RPC, which
//! is enough for most checks.

mod chunks;
mod credits;
mod data;
mod headers;
mod hostile;
mod setup;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use rpcrdma_fabric::{BoxFuture, Connector};
use rpcrdma_proto::rpcrdma::Credits;

use crate::{
    client::{Identity, Servers, Target, credential},
    error::Error,
};
use data::File;
use wire::{Halt, Wire};

/// What is thought of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It is what the section says.
    Conforms,
    /// The section leaves it open or advises otherwise, and peers can live with it.
    Tolerated,
    /// It is not what the section says.
    Deviates,
    /// Nothing was observed; the reason is told instead.
    Skipped,
}

impl Verdict {
    /// One word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conforms => "conforms",
            Self::Tolerated => "tolerated",
            Self::Deviates => "deviates",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// How a connection is made.
    Setup,
    /// Grants and windows.
    Credits,
    /// Headers that a server refuses or ignores.
    Headers,
    /// Long messages, chunks and their padding, remote invalidation.
    Chunks,
    /// The data of a file.
    Data,
    /// What a rude client can do.
    Hostile,
}

impl Group {
    /// One or two words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "connection",
            Self::Credits => "credits",
            Self::Headers => "headers",
            Self::Chunks => "chunks",
            Self::Data => "file data",
            Self::Hostile => "hostile",
        }
    }

    /// A check of this group, which needs what the group needs.
    const fn check(self, id: &'static str, title: &'static str, section: &'static str, run: Run) -> Check {
        let needs = match self {
            Self::Hostile => Needs::Hostile,
            _ => Needs::Nothing,
        };
        Check { id, group: self, title, section, needs, run }
    }
}

/// What a check needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// A server.
    Nothing,
    /// A file with so many bytes.
    File(usize),
    /// A file that may be written.
    OwnFile,
    /// The permission to be rude.
    Hostile,
}

/// Makes a check.
type Run = for<'a> fn(&'a Probe) -> BoxFuture<'a, Result<Judged, Halt>>;

/// One thing to find out.
pub struct Check {
    /// Names it, for scripts.
    pub id: &'static str,
    /// What it is about.
    pub group: Group,
    /// What is done.
    pub title: &'static str,
    /// Where the rule is.
    pub section: &'static str,
    needs: Needs,
    run: Run,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("id", &self.id).field("section", &self.section).finish_non_exhaustive()
    }
}

/// All checks, in the order in which they are made.
pub const CHECKS: [&[Check]; 6] =
    [&setup::CHECKS, &credits::CHECKS, &headers::CHECKS, &chunks::CHECKS, &data::CHECKS, &hostile::CHECKS];

/// An observation and what is thought of it.
type Judged = (Verdict, String);

fn conforms(observed: impl Into<String>) -> Judged {
    (Verdict::Conforms, observed.into())
}

fn tolerated(observed: impl Into<String>) -> Judged {
    (Verdict::Tolerated, observed.into())
}

fn deviates(observed: impl Into<String>) -> Judged {
    (Verdict::Deviates, observed.into())
}

fn skipped(why: impl Into<String>) -> Judged {
    (Verdict::Skipped, why.into())
}

/// What a check found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// [`Check::id`].
    pub id: &'static str,
    /// [`Check::group`].
    pub group: Group,
    /// [`Check::title`].
    pub title: &'static str,
    /// [`Check::section`].
    pub section: &'static str,
    /// What is thought of it.
    pub verdict: Verdict,
    /// What was observed, or why nothing was, in words.
    pub observed: String,
}

/// What a probe found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The server.
    pub server: SocketAddr,
    /// The provider of the first connection, in words.
    pub transport: String,
    /// One for each check, in order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|f| f.verdict == verdict).count()
    }
}

/// How to probe.
#[derive(Clone)]
pub struct Options {
    /// Makes the connections.
    pub connector: Arc<dyn Connector>,
    /// If they are software iWARP: its settings, of which some checks use variations. Otherwise these are skipped.
    pub iwarp: Option<softiwarp::Config>,
    /// Mount the target's path and use a file there.
    pub path: bool,
    /// Make a file there and remove it in the end; else one is looked for.
    pub write: bool,
    /// Make checks that may harm a server under load.
    pub hostile: bool,
    /// Who calls.
    pub identity: Identity,
    /// TCP port of the MOUNT service. `None`: the NFS ports, then rpcbind.
    pub mount_port: Option<u16>,
    /// How long to wait for anything.
    pub limit: Duration,
    /// Only the checks with these ids, if there are any.
    pub only: Vec<String>,
}

impl Options {
    /// Software iWARP, no file, nothing hostile, 5 seconds.
    #[must_use]
    pub fn new(iwarp: softiwarp::Config) -> Self {
        Self {
            connector: Arc::new(softiwarp::Connector::new(iwarp.clone())),
            iwarp: Some(iwarp),
            path: false,
            write: false,
            hostile: false,
            identity: Identity::current(),
            mount_port: None,
            limit: Duration::from_secs(5),
            only: Vec::new(),
        }
    }
}

/// What checks have in common.
struct Probe {
    to: SocketAddr,
    options: Options,
    /// Body of an AUTH_SYS credential.
    cred: Vec<u8>,
    /// The file, or why there is none.
    file: Result<File, String>,
}

impl Probe {
    /// Connects, with so many Receives.
    async fn connect(&self, recvs: usize, remote_invalidation: bool) -> Result<Wire, Halt> {
        let Options { connector, limit, .. } = &self.options;
        Ok(Wire::connect(connector, self.to, *limit, recvs, remote_invalidation).await?)
    }

    /// Connects and makes a NULL round trip; also returns the grant.
    async fn open(&self, recvs: usize, remote_invalidation: bool) -> Result<(Wire, Credits), Halt> {
        let mut wire = self.connect(recvs, remote_invalidation).await?;
        match wire.null().await? {
            Ok(grant) => Ok((wire, grant)),
            Err(seen) => Err(Halt::Broken(format!("a first NULL Call was answered by {seen}"))),
        }
    }

    /// A connection for one Call after another.
    async fn ready(&self) -> Result<Wire, Halt> {
        Ok(self.open(8, false).await?.0)
    }

    /// Why a check cannot be made.
    fn obstacle(&self, needs: Needs) -> Option<String> {
        match (needs, &self.file) {
            (Needs::Nothing, _) => None,
            (Needs::Hostile, _) if self.options.hostile => None,
            (Needs::Hostile, _) => Some("only with leave to be hostile".to_owned()),
            (Needs::File(_) | Needs::OwnFile, Err(why)) => Some(why.clone()),
            (Needs::File(len), Ok(file)) if file.data.len() < len => {
                Some(format!("the file has {} bytes, {len} are needed", file.data.len()))
            }
            (Needs::OwnFile, Ok(file)) if file.own.is_none() => Some("only with leave to write".to_owned()),
            (Needs::File(_) | Needs::OwnFile, Ok(_)) => None,
        }
    }

    async fn make(&self, check: &'static Check) -> Finding {
        let (verdict, observed) = match self.obstacle(check.needs) {
            Some(why) => skipped(why),
            None => (check.run)(self).await.unwrap_or_else(|halt| skipped(halt.to_string())),
        };
        let Check { id, group, title, section, .. } = *check;
        Finding { id, group, title, section, verdict, observed }
    }
}

/// Probes the first address of the target that can be connected to, and tells of each finding as it comes.
///
/// # Errors
/// If the target's hosts have no address, or no connection can be made at all.
pub async fn run(target: &Target, options: Options, mut tell: impl FnMut(&Finding)) -> Result<Report, Error> {
    let servers = Servers::resolve(target, rpcrdma_nfs::v3::PORT_RDMA).await?;
    let mut attempts = Vec::new();
    let (to, transport) = loop {
        let to = servers.route().to;
        match Wire::connect(&options.connector, to, options.limit, 8, false).await {
            Ok(first) => {
                let transport = first.transport().to_owned();
                first.close().await;
                break (to, transport);
            }
            Err(error) => attempts.push((to, error)),
        }
        if attempts.len() >= servers.count() {
            return Err(Error::Connect { attempts });
        }
        servers.failed(to);
    };
    let chosen = |check: &&'static Check| {
        options.only.is_empty() || options.only.iter().any(|id| id.as_str() == check.id)
    };
    let checks: Vec<&'static Check> = CHECKS.into_iter().flatten().filter(chosen).collect();
    let wants_file = checks.iter().any(|c| matches!(c.needs, Needs::File(_) | Needs::OwnFile));
    let file = match (options.path, wants_file) {
        (true, true) => File::find(target, &options).await.map_err(|e| e.to_string()),
        (true, false) => Err("not looked for".to_owned()),
        (false, _) => Err("needs a path with a file".to_owned()),
    };
    let cred = credential(&options.identity, None);
    let probe = Probe { to, options, cred, file };
    let mut findings = Vec::with_capacity(checks.len());
    for check in checks {
        let finding = probe.make(check).await;
        tell(&finding);
        findings.push(finding);
    }
    if let Ok(file) = probe.file {
        file.remove().await;
    }
    Ok(Report { server: to, transport, findings })
}
