//! `rpcrdma demo`: the whole thing on one machine, with the connection cut underneath it.

mod compare;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use rpcrdma::{
    client::{Mount, MountConfig, Transport},
    fabric::{FaultCounters, FaultPlan, InjectConnector},
    iwarp,
    metrics::ClientMetrics,
    server::ServerConfig,
};
use serde::Serialize;

use self::compare::Comparison;
use super::loopback::Loopback;
use crate::{
    connect::Switch,
    copy::{Bar, Job, Options, Top, get},
    failure::{EXIT_FAILURE, EXIT_INTERRUPTED, Failure, Outcome},
    fs::{Dir, LocalDir, Server},
    latency::{Latency, Summary},
    out::{self, Out},
    provider::Provider,
    units,
};

/// See it work: copy a tree while the connection is cut
///
/// A server and a client in this process talk RPC-over-RDMA, over software iWARP on the loopback address unless
/// --provider says otherwise. Both ends cut connections at random while the client copies the tree with 64 calls in
/// flight. Then source and copy are compared: every byte, mode and time. Small trees are copied several times, until
/// there were enough cuts.
///
/// The exit status is 1 if anything differs, or if a rule of the protocol was seen broken.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma demo                      this project, or the current directory
  rpcrdma demo --cuts 200 /usr/lib  a larger tree, and more cuts
  rpcrdma demo --inject disconnect=1/20,seed=3 .")]
pub(crate) struct Demo {
    /// The tree to copy [default: the workspace that cargo runs this in, without target and .git, or else the current
    /// directory]
    dir: Option<PathBuf>,

    /// Copy until the connection has been cut so often
    #[arg(long, value_name = "N", default_value_t = 24)]
    cuts: u64,

    /// How often both ends cut: each of a connection's steps is the last with this probability
    #[arg(long, value_name = "PLAN", default_value = "disconnect=1/150,seed=1")]
    inject: FaultPlan,

    /// Files to work on at one time
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,

    /// What carries RDMA; an RNIC is used at an address of its own
    #[arg(long, value_name = "NAME", default_value = "softiwarp")]
    provider: Provider,

    /// Whether every frame of software iWARP carries a CRC32c
    #[arg(long, value_name = "WHEN", default_value = "on")]
    crc: Switch,

    /// Copy into a new directory in DIR [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Leave the last copy behind
    #[arg(long)]
    keep: bool,

    /// One JSON object instead of a report
    #[arg(long)]
    json: bool,
}

/// Rounds after which a tree is too small for the cuts that are wanted.
const MOST_ROUNDS: u32 = 1000;

/// What came out.
#[derive(Default, Serialize)]
struct Report {
    dir: PathBuf,
    rounds: u32,
    files: u64,
    directories: u64,
    bytes: u64,
    copied_bytes: u64,
    seconds: f64,
    calls: u64,
    replies: u64,
    retransmissions: u64,
    connections: u64,
    reconnects: u64,
    cuts: u64,
    answered_connections: u64,
    single_call_starts: u64,
    early_sends: u64,
    overruns: u64,
    most_in_flight: u64,
    most_granted: u64,
    differences: u64,
    failures: u64,
    changed_meanwhile: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Summary>,
    /// What was wrong; empty if nothing was.
    wrong: Vec<String>,
}

impl Demo {
    /// The settings of software iWARP.
    fn iwarp(&self) -> iwarp::Config {
        let mut config = iwarp::Config::default();
        config.crc = self.crc == Switch::On;
        config
    }

    pub(super) fn run(self) -> Outcome {
        let (dir, own) = match &self.dir {
            Some(dir) => (dir.clone(), false),
            None => (project().unwrap_or_else(|| PathBuf::from(".")), true),
        };
        let dir = std::fs::canonicalize(&dir).map_err(|e| Failure::of(dir.display(), e))?;
        if !dir.is_dir() {
            return Err(Failure::of(dir.display(), "it is not a directory"));
        }
        let above = self.to.clone().unwrap_or_else(std::env::temp_dir);
        let above = std::fs::canonicalize(&above).map_err(|e| Failure::of(above.display(), e))?;
        if above.starts_with(&dir) {
            let hint = "the copy would be inside the tree; --to names another directory";
            return Err(Failure::of(above.display(), hint));
        }
        let scratch = tempfile::Builder::new()
            .prefix("rpcrdma-demo-")
            .tempdir_in(&above)
            .map_err(|e| Failure::of(above.display(), e))?;
        let mut config = ServerConfig::default();
        config.rdma.grant = 64;
        let server_plan = FaultPlan { seed: self.inject.seed.wrapping_add(1), ..self.inject };
        let server = Loopback::start(&dir, config, (self.provider, &self.iwarp()), Some(server_plan))?;
        let runtime = super::runtime()?;
        let exclude = if own { vec![b"target".to_vec(), b".git".to_vec()] } else { Vec::new() };
        let done = runtime.block_on(async {
            tokio::select! {
                done = self.rounds(&dir, exclude, scratch.path(), &server) => done.map(Some),
                _ = tokio::signal::ctrl_c() => Ok(None),
            }
        });
        out::set_bar(None);
        runtime.shutdown_background();
        server.stop();
        if self.keep {
            let kept = scratch.keep();
            out::note(&format!("the copy is in {}", kept.display()));
        } else {
            // The system cleans up behind us if we cannot.
            let _ = remove(scratch.path());
        }
        Ok(match done? {
            Some(report) if report.wrong.is_empty() => ExitCode::SUCCESS,
            Some(_) => ExitCode::from(EXIT_FAILURE),
            None => ExitCode::from(EXIT_INTERRUPTED),
        })
    }

    async fn rounds(
        &self,
        dir: &Path,
        exclude: Vec<Vec<u8>>,
        scratch: &Path,
        server: &Loopback,
    ) -> Result<Report, Failure> {
        let connector = InjectConnector::new(self.provider.connector(self.iwarp()), self.inject);
        let faults = connector.counters();
        let transport = Transport::Rdma(Arc::new(connector));
        let target = server.target(dir);
        let mut config = MountConfig::default();
        config.rdma.backoff.first = Duration::from_millis(1);
        let mount = Mount::new(&transport, &target, config).await.map_err(|e| Failure::of(&target, e))?;
        let latency = Arc::new(Mutex::new(Latency::new()));
        let source = Server::timed(mount.clone(), Arc::clone(&latency));
        let talk = !self.json && !out::quiet();
        let mut out = Out::new();
        if talk {
            self.introduce(&mut out, dir, server, &mount)?;
        }

        let mut report = Report { dir: dir.to_owned(), ..Report::default() };
        let mut copying = Duration::ZERO;
        while report.rounds < MOST_ROUNDS && (report.rounds == 0 || cuts(&faults, server) < self.cuts) {
            let before = cuts(&faults, server);
            report.rounds += 1;
            let copy = scratch.join(format!("copy-{}", report.rounds));
            let made = std::fs::create_dir(&copy).and_then(|()| std::fs::metadata(&copy));
            let started = compare::change_time(&made.map_err(|e| Failure::of(copy.display(), e))?);
            let clock = Instant::now();
            let job = self.copy(&source, &exclude, &copy).await?;
            let took = clock.elapsed();
            copying += took;
            let compared = self.compare(dir, &copy, &exclude, started).await?;
            let bytes = get(&job.totals.bytes);
            report.copied_bytes += bytes;
            report.failures += get(&job.totals.failures);
            report.differences += compared.differences;
            report.changed_meanwhile += compared.changed;
            (report.files, report.directories, report.bytes) =
                (compared.files, compared.directories, compared.bytes);
            if talk && (report.rounds < 10 || report.rounds.is_multiple_of(10) || compared.differences > 0) {
                out.line(format!(
                    "  round {:<3}      {} in {} ({}), {}: {}",
                    report.rounds,
                    units::size(bytes),
                    units::time(took),
                    units::rate(bytes, took),
                    units::things(cuts(&faults, server) - before, "cut", "cuts"),
                    if compared.differences == 0 {
                        "identical".to_owned()
                    } else {
                        out.paint("1;31", "DIFFERENT")
                    },
                ))?;
                out.flush()?;
            }
            for what in &compared.first {
                out::note(what);
            }
            if compared.files == 0 && compared.directories == 0 {
                // Nothing to copy, so nothing to cut.
                break;
            }
            if cuts(&faults, server) < self.cuts || !self.keep {
                remove(&copy).map_err(|e| Failure::of(copy.display(), e))?;
            }
        }
        report.seconds = copying.as_secs_f64();
        report.cuts = cuts(&faults, server);
        report.fill(mount.metrics(), server);
        let latency = latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.latency = Some(latency.summary());
        report.judge(self.cuts, server.metrics().overruns.get());
        if self.json {
            out.json(&report)?;
        } else {
            report.print(&mut out, &latency, copying)?;
        }
        out.flush()?;
        Ok(report)
    }

    fn introduce(&self, out: &mut Out, dir: &Path, server: &Loopback, mount: &Mount) -> Result<(), Failure> {
        out.line(out.paint("1", "NFS over RDMA, with the cable pulled again and again"))?;
        out.line("")?;
        out.line(format!("  tree           {}", dir.display()))?;
        out.line(format!("  server         {}, {}", server.addr(), mount.transport()))?;
        out.line(format!(
            "  faults         both ends cut 1 step in {}; at least {}",
            self.inject.one_in,
            units::things(self.cuts, "cut", "cuts"),
        ))?;
        out.flush()
    }

    async fn copy(&self, source: &Server, exclude: &[Vec<u8>], copy: &Path) -> Result<Arc<Job>, Failure> {
        let options = Options {
            jobs: self.jobs as usize,
            specials: true,
            resume: false,
            exclude: exclude.to_vec(),
            ..Options::default()
        };
        let job = Job::new(options, out::failure);
        let from = Dir::Nfs(source.root());
        let to = LocalDir::at(copy).await.map_err(|e| Failure::of(copy.display(), e))?;
        let bar = (!out::quiet() && !self.json && out::stderr_is_terminal()).then(|| {
            tokio::spawn(Arc::clone(&job).count(vec![from.clone()]));
            let bar = Bar::hidden();
            out::set_bar(Some(bar.clone()));
            Bar::start(&job, bar)
        });
        let top = Top { dir: Dir::Local(to), shown: copy.display().to_string(), fresh: true, marker: None };
        job.copy_contents((from, String::new()), top).await?;
        out::set_bar(None);
        drop(bar);
        Ok(job)
    }

    async fn compare(
        &self,
        dir: &Path,
        copy: &Path,
        exclude: &[Vec<u8>],
        started: SystemTime,
    ) -> Result<Comparison, Failure> {
        let (dir, copy, exclude) = (dir.to_owned(), copy.to_owned(), exclude.to_vec());
        tokio::task::spawn_blocking(move || compare::trees(&dir, &copy, &exclude, started))
            .await
            .map_err(|e| Failure::of("the comparison", e.to_string()))?
            .map_err(|(path, e)| Failure::of(path.display(), e))
    }
}

/// Connections cut by either end.
fn cuts(client: &FaultCounters, server: &Loopback) -> u64 {
    client.cuts() + server.cuts()
}

/// Removes a copy, also where it is as read-only as its source.
fn remove(top: &Path) -> std::io::Result<()> {
    use std::{fs, os::unix::fs::PermissionsExt as _};
    let mut stack = vec![top.to_owned()];
    while let Some(dir) = stack.pop() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(top)
}

/// The workspace that cargo runs us in.
fn project() -> Option<PathBuf> {
    let manifest = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let is_workspace = |dir: &&Path| {
        std::fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]"))
    };
    manifest.ancestors().find(is_workspace).map(Path::to_owned)
}

impl Report {
    fn fill(&mut self, m: &ClientMetrics, server: &Loopback) {
        self.calls = m.calls.get();
        self.replies = m.replies.get();
        self.retransmissions = m.retransmissions.get();
        self.connections = m.connects.get();
        self.reconnects = m.connects.get().saturating_sub(1);
        self.single_call_starts = m.single_starts.get();
        self.early_sends = m.early_sends.get();
        self.answered_connections = m.single_starts.get() + m.early_sends.get();
        self.overruns = m.overruns.get() + server.metrics().overruns.get();
        self.most_in_flight = m.most_outstanding.get();
        self.most_granted = m.most_granted.get();
    }

    /// Finds what is wrong.
    fn judge(&mut self, wanted: u64, server_overruns: u64) {
        let mut wrong = Vec::new();
        let mut check = |bad: bool, what: String| {
            if bad {
                wrong.push(what);
            }
        };
        check(self.differences > 0, units::things(self.differences, "difference", "differences"));
        check(self.failures > 0, units::things(self.failures, "failure to copy", "failures to copy"));
        check(
            self.early_sends > 0,
            format!(
                "{} before the first Reply had brought a grant",
                units::things(
                    self.early_sends,
                    "connection carried a second Call",
                    "connections carried a second Call"
                )
            ),
        );
        check(
            self.overruns > 0,
            format!(
                "{} beyond the grant, {server_overruns} of them seen by the server",
                units::things(self.overruns, "Call", "Calls")
            ),
        );
        check(
            self.most_in_flight > self.most_granted,
            format!("{} Calls in flight under a grant of {}", self.most_in_flight, self.most_granted),
        );
        check(
            self.cuts < wanted,
            format!("only {} of {wanted} cuts happened: the tree is too small", self.cuts),
        );
        self.wrong = wrong;
    }

    fn print(&self, out: &mut Out, latency: &Latency, copying: Duration) -> Result<(), Failure> {
        let rows = [
            (
                "copied",
                format!(
                    "{}, {}, {}{}",
                    units::things(self.files, "file", "files"),
                    units::things(self.directories, "directory", "directories"),
                    units::size(self.bytes),
                    if self.rounds > 1 {
                        format!(", {} times", units::count(self.rounds.into()))
                    } else {
                        String::new()
                    },
                ),
            ),
            (
                "rate",
                format!(
                    "{} while being cut, {} in all",
                    units::rate(self.copied_bytes, copying),
                    units::time(copying)
                ),
            ),
            (
                "calls",
                format!(
                    "{} sent, {} replies, {} retransmitted",
                    units::count(self.calls),
                    units::count(self.replies),
                    units::count(self.retransmissions),
                ),
            ),
            (
                "connections",
                format!(
                    "{}: {} reconnects after {} cuts",
                    units::count(self.connections),
                    units::count(self.reconnects),
                    units::count(self.cuts)
                ),
            ),
            (
                "one-Call start",
                format!(
                    "{} of {} connections that brought a Reply",
                    units::count(self.single_call_starts),
                    units::count(self.answered_connections)
                ),
            ),
            (
                "in flight",
                format!("at most {} Calls, under a grant of {}", self.most_in_flight, self.most_granted),
            ),
            (
                "latency",
                format!(
                    "p50 {}, p99 {}, max {}, reconnects included",
                    units::time(latency.quantile(0.5)),
                    units::time(latency.quantile(0.99)),
                    units::time(latency.max()),
                ),
            ),
        ];
        if !out::quiet() {
            out.line("")?;
            for (label, value) in rows {
                out.line(format!("  {label:<14} {value}"))?;
            }
            if self.changed_meanwhile > 0 {
                out.line(format!(
                    "  {:<14} {} changed by somebody else meanwhile, not compared",
                    "left out",
                    units::things(self.changed_meanwhile, "object", "objects"),
                ))?;
            }
            out.line("")?;
        }
        if self.wrong.is_empty() {
            return out.line(format!(
                "{}  every byte, mode and time is the same, and no rule was broken",
                out.paint("1;32", "PASS")
            ));
        }
        out.line(format!("{}  {}", out.paint("1;31", "FAIL"), self.wrong.join("; ")))
    }
}
