//! `rpcrdma probe`.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use rpcrdma::{
    client::{Identity, Target},
    iwarp,
    probe::{self, CHECKS, Finding, Options, Report, Verdict},
};
use serde::Serialize;

use super::exit;
use crate::{
    connect::Switch,
    failure::{Failure, Outcome},
    out::{self, Out},
    units,
};

/// Look at what an RPC-over-RDMA server does, and compare it with the RFCs
///
/// For people who build servers. Each check makes a connection of its own, sends one thing, and says what came back,
/// where the rule for it is, and whether it conforms, deviates, or is neither and tolerated by clients. Checks that need
/// a file are skipped unless the URL has a path that can be mounted; then a file there is read, or with --write a new one
/// is written and removed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma probe nfs://server                          what needs no file
  rpcrdma probe --write nfs://server/srv/data         all but what is hostile
  rpcrdma probe --only flood --hostile nfs://server   one check
  rpcrdma probe --list                                all checks

Exit status: 0 if nothing deviates, 1 if something does, or if the server cannot be reached.")]
pub(crate) struct Probe {
    /// The server, as nfs://HOST[:PORT][/PATH]
    #[arg(required_unless_present = "list")]
    url: Option<Target>,

    /// Write a file in PATH, and remove it in the end
    #[arg(long)]
    write: bool,

    /// Do what a server under load may suffer from, too
    #[arg(long)]
    hostile: bool,

    /// Make only these checks
    #[arg(long, value_name = "CHECK", value_delimiter = ',', value_parser = parse_check)]
    only: Vec<String>,

    /// Print the checks there are, and where their rules are
    #[arg(long, conflicts_with_all = ["url", "write", "hostile", "only"])]
    list: bool,

    /// One JSON object
    #[arg(long)]
    json: bool,

    /// How long to wait for each answer
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = parse_limit)]
    timeout: Duration,

    /// TCP port of the MOUNT service [default: the NFS ports are asked first, then rpcbind]
    #[arg(long, value_name = "PORT")]
    mount_port: Option<u16>,

    /// Whether every frame carries a CRC32c
    #[arg(long, value_name = "WHEN", default_value = "on")]
    crc: Switch,

    /// User to act as on the server [default: yours]
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,

    /// Group to act as on the server [default: yours]
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
}

/// Reads the name of a check.
fn parse_check(text: &str) -> Result<String, String> {
    let known = CHECKS.into_iter().flatten().any(|c| c.id == text);
    if known { Ok(text.to_owned()) } else { Err("there is no such check; see --list".to_owned()) }
}

/// Reads a time limit.
fn parse_limit(text: &str) -> Result<Duration, String> {
    let limit = units::parse_seconds(text)?;
    if limit.is_zero() { Err("it is more than 0".to_owned()) } else { Ok(limit) }
}

#[derive(Serialize)]
struct CheckRecord {
    check: &'static str,
    group: &'static str,
    title: &'static str,
    section: &'static str,
}

#[derive(Serialize)]
struct FindingRecord {
    #[serde(flatten)]
    check: CheckRecord,
    verdict: &'static str,
    observed: String,
}

#[derive(Serialize)]
struct Record {
    url: String,
    server: String,
    transport: String,
    findings: Vec<FindingRecord>,
    counts: BTreeMap<&'static str, usize>,
}

const VERDICTS: [Verdict; 4] = [Verdict::Conforms, Verdict::Tolerated, Verdict::Deviates, Verdict::Skipped];

impl Record {
    fn new(url: &Target, report: Report) -> Self {
        let counts = VERDICTS.into_iter().map(|v| (v.name(), report.count(v))).collect();
        let record = |f: Finding| FindingRecord {
            check: CheckRecord { check: f.id, group: f.group.name(), title: f.title, section: f.section },
            verdict: f.verdict.name(),
            observed: f.observed,
        };
        Self {
            url: url.to_string(),
            server: report.server.to_string(),
            transport: report.transport,
            findings: report.findings.into_iter().map(record).collect(),
            counts,
        }
    }
}

impl Probe {
    pub(super) async fn run(self) -> Outcome {
        let mut out = Out::new();
        let Some(url) = &self.url else {
            self.list(&mut out)?;
            out.flush()?;
            return Ok(exit(0));
        };
        let has_path = url.path.iter().any(|b| *b != b'/');
        if self.write && !has_path {
            return Err(Failure::usage("--write needs a URL with a path"));
        }
        let mut config = iwarp::Config::default();
        config.crc = self.crc == Switch::On;
        let mut options = Options::new(config);
        options.path = has_path;
        options.write = self.write;
        options.hostile = self.hostile;
        options.mount_port = self.mount_port;
        options.limit = self.timeout;
        options.only.clone_from(&self.only);
        let Identity { uid, gid, gids, .. } = &mut options.identity;
        if self.uid.is_some() || self.gid.is_some() {
            // Groups belong to the user that we are not.
            gids.clear();
        }
        *uid = self.uid.unwrap_or(*uid);
        *gid = self.gid.unwrap_or(*gid);
        let mut table = Table { group: "", failed: None };
        let shown = !self.json && !out::quiet();
        let tell = |finding: &Finding| {
            if shown && table.failed.is_none() {
                table.failed = table.print(&mut out, finding).err();
            }
        };
        let report = probe::run(url, options, tell).await.map_err(|e| Failure::of(url, e))?;
        if let Some(failure) = table.failed {
            return Err(failure);
        }
        let deviations = report.count(Verdict::Deviates) as u64;
        if self.json {
            out.json(&Record::new(url, report))?;
        } else {
            let counts: Vec<String> = VERDICTS
                .into_iter()
                .map(|v| out.paint(colour(v), &format!("{} {v}", report.count(v))))
                .collect();
            out.line(format!("\n{} over {}: {}", report.server, report.transport, counts.join(", ")))?;
        }
        out.flush()?;
        Ok(exit(deviations))
    }

    fn list(&self, out: &mut Out) -> Result<(), Failure> {
        let width = CHECKS.into_iter().flatten().map(|c| c.id.len()).max().unwrap_or(0);
        let sections = CHECKS.into_iter().flatten().map(|c| c.section.len()).max().unwrap_or(0);
        for c in CHECKS.into_iter().flatten() {
            if self.json {
                out.json(&CheckRecord {
                    check: c.id,
                    group: c.group.name(),
                    title: c.title,
                    section: c.section,
                })?;
            } else {
                out.line(format!("{:width$}  {:sections$}  {}", c.id, c.section, c.title))?;
            }
        }
        Ok(())
    }
}

/// The colour of a verdict.
fn colour(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Conforms => "32",
        Verdict::Tolerated => "33",
        Verdict::Deviates => "31;1",
        Verdict::Skipped => "2",
    }
}

/// Findings, each in a line for what was done and one for what was seen.
struct Table {
    group: &'static str,
    failed: Option<Failure>,
}

impl Table {
    fn print(&mut self, out: &mut Out, finding: &Finding) -> Result<(), Failure> {
        let group = finding.group.name();
        if self.group != group {
            let gap = if self.group.is_empty() { "" } else { "\n" };
            self.group = group;
            out.line(format!("{gap}{}", out.paint("1", group)))?;
        }
        let verdict = out.paint(colour(finding.verdict), &format!("{:9}", finding.verdict));
        out.line(format!("  {verdict}  {:14}  {}", finding.section, finding.title))?;
        out.line(format!("  {:9}  {:14}  -> {}", "", "", finding.observed))?;
        out.flush()
    }
}
