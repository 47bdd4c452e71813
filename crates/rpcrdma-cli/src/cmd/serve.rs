//! `rpcrdma serve`.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use clap::Args;
use ipnet::IpNet;
use rpcrdma::{
    client::Target,
    export::{ExportRules, Exports, HandleKey, LocalExport, LocalOptions, Squash},
    fabric::{FaultPlan, InjectListener, Listener},
    iwarp,
    metrics::ServerMetrics,
    nfs::v3::{self, Proc},
    server::{Server, ServerConfig, Service, rpc::RpcService, rpcbind, tcp},
};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    address::ListenAt,
    connect::{Switch, micros, parse_inline},
    failure::{Failure, Outcome},
    out::{self, Out},
    provider::Provider,
    units,
};

/// Serve directories over NFS/RDMA and NFS/TCP
///
/// The export is named by the directory's absolute path, as in /etc/exports. MOUNT is answered on both ports, so
/// nothing else has to run. No root is needed; as root, every operation runs under its caller's identity, with root
/// squashed unless you say otherwise.
///
/// The first line on standard output says where the server listens: "serving rdma=ADDR:PORT tcp=ADDR:PORT". SIGUSR1
/// prints counters, SIGINT and SIGTERM stop the server.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma serve /srv/data
  rpcrdma serve --read-only --allow 192.168.0.0/16 /srv/data
  rpcrdma serve --export /music=/home/me/Music --export /pictures=/home/me/Pics
  rpcrdma serve --listen 127.0.0.1:0 --tcp none .   any free port, RDMA only")]
pub(crate) struct Serve {
    /// Directory to serve under its absolute path
    #[arg(value_name = "DIR", required_unless_present = "exports")]
    dirs: Vec<PathBuf>,

    /// Serve DIR under another name, which begins with a slash; may be repeated
    #[arg(long = "export", value_name = "NAME=DIR")]
    exports: Vec<NamedDir>,

    /// Where to listen for RDMA: an address or name, a port, or both [default: port 20049 of all addresses]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<ListenAt>,

    /// Where to listen for NFS and MOUNT over TCP, or "none" [default: port 2049 of the addresses of --listen]
    #[arg(long, value_name = "ADDR:PORT")]
    tcp: Option<TcpAddress>,

    /// Do not register with the rpcbind of this machine
    #[arg(long)]
    no_rpcbind: bool,

    /// Write where the server listens to FILE, as JSON, when it does
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,

    /// Print counters every so many seconds
    #[arg(long, value_name = "SECS", value_parser = units::parse_seconds)]
    stats: Option<Duration>,

    #[command(flatten)]
    rules: Rules,

    #[command(flatten)]
    tuning: Tuning,
}

/// Who may do what.
#[derive(Args)]
#[command(next_help_heading = "Access")]
struct Rules {
    /// Let nobody change anything
    #[arg(long)]
    read_only: bool,

    /// Serve this network or address only; may be repeated
    #[arg(long, value_name = "NET", value_parser = parse_net)]
    allow: Vec<IpNet>,

    /// Let root of clients be root here
    #[arg(long, conflicts_with = "all_squash")]
    no_root_squash: bool,

    /// Let everybody be the anonymous user
    #[arg(long)]
    all_squash: bool,

    /// User id of the anonymous user
    #[arg(long, value_name = "UID", default_value_t = 65534)]
    anon_uid: u32,

    /// Group id of the anonymous user
    #[arg(long, value_name = "GID", default_value_t = 65534)]
    anon_gid: u32,

    /// Answer changes of directories and attributes before they are on disk: faster, not safe in a power cut
    #[arg(long = "async")]
    asynchronous: bool,

    /// Where the key lies that authenticates file handles [default: /var/lib/rpcrdma/handle.key for root, else
    /// ~/.local/state/rpcrdma/handle.key]
    #[arg(long, value_name = "FILE", overrides_with = "handle_key")]
    handle_key: Option<PathBuf>,
}

/// How the transport behaves.
#[derive(Args)]
#[command(next_help_heading = "Transport")]
struct Tuning {
    /// Credits to grant: requests that a client may have in flight on a connection
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    grant: u32,

    /// Inline threshold to offer: the largest message without RDMA, 1K to 64K
    #[arg(long, value_name = "BYTES", default_value = "4K", value_parser = parse_inline)]
    inline: u32,

    /// What carries RDMA
    #[arg(long, value_name = "NAME", default_value = "softiwarp")]
    provider: Provider,

    /// Look for calls this long before sleeping, which costs processor time; done less where it does not pay off
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    spin: Option<u32>,

    /// Whether every frame of software iWARP carries a CRC32c; it does as soon as one side wants it
    #[arg(long, value_name = "WHEN", default_value = "on")]
    crc: Switch,

    /// Transfers of 1 MiB in flight at one time over all connections, which bounds the server's memory
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    transfers: u32,

    /// Threads [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Option<u32>,

    /// Cut connections at random, to see that nothing is lost: disconnect=1/500,seed=7,times=20
    #[arg(long, value_name = "PLAN")]
    inject: Option<FaultPlan>,
}

/// `NAME=DIR`.
#[derive(Clone, Debug)]
struct NamedDir {
    name: String,
    dir: PathBuf,
}

impl FromStr for NamedDir {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, dir)) if name.starts_with('/') && !dir.is_empty() => {
                Ok(Self { name: name.to_owned(), dir: dir.into() })
            }
            Some(_) => Err("the name begins with a slash, and a directory follows the =".to_owned()),
            None => Err("it has the form NAME=DIR".to_owned()),
        }
    }
}

/// An address, or `none`.
#[derive(Clone, Debug)]
struct TcpAddress(Option<ListenAt>);

impl FromStr for TcpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|at| Self(Some(at)))
    }
}

/// A network, or an address by itself.
fn parse_net(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "it is an address or a network, such as 192.168.0.0/16".to_owned())
}

/// Where a server listens, for scripts.
#[derive(Serialize)]
struct Ready {
    rdma: SocketAddr,
    tcp: Option<SocketAddr>,
    exports: Vec<String>,
}

impl Serve {
    pub(super) fn run(self) -> Outcome {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all();
        // What blocks waits for disks, not for processors; many more threads than that would only fight over them.
        builder.max_blocking_threads(64);
        if let Some(n) = self.tuning.threads {
            builder.worker_threads(n as usize);
        }
        let runtime = builder.build().map_err(|e| Failure::of("the runtime cannot start", e))?;
        let done = runtime.block_on(self.serve());
        runtime.shutdown_timeout(Duration::from_secs(1));
        done
    }

    async fn serve(self) -> Outcome {
        let exports = self.open_exports()?;
        let names: Vec<String> = exports.iter().map(|e| e.name.clone()).collect();
        let service = Arc::new(RpcService::new(exports));
        let mut config =
            ServerConfig { transfers: self.tuning.transfers as usize, ..ServerConfig::default() };
        config.rdma.grant = self.tuning.grant;
        config.rdma.inline = self.tuning.inline;
        let mut server = Server::new(Arc::clone(&service) as Arc<dyn Service>, config);

        let wanted = self.listen.clone().unwrap_or_default();
        let mut soft = iwarp::Config::default();
        soft.crc = self.tuning.crc == Switch::On;
        soft.spin = self.tuning.spin.map(micros);
        let listener = wanted
            .bind(v3::PORT_RDMA, |a| self.tuning.provider.listen(a, &soft))
            .map_err(|(at, e)| in_use(&at, "RDMA", "--listen", e))?;
        let rdma = listener.local_addr();
        let listener: Box<dyn Listener> = match self.tuning.inject {
            Some(plan) => Box::new(InjectListener::new(listener, plan)),
            None => listener,
        };
        let tcp = match &self.tcp {
            Some(TcpAddress(wanted)) => wanted.clone(),
            None => Some(ListenAt { host: wanted.host, port: None }),
        };
        let tcp = match tcp {
            None => None,
            Some(wanted) => {
                let listener = wanted
                    .bind(v3::PORT_TCP, listen_tcp)
                    .map_err(|(at, e)| in_use(&at, "NFS over TCP", "--tcp", e))?;
                let local = listener.local_addr().map_err(|e| Failure::of("the TCP listener", e))?;
                server.listen_tcp(listener);
                Some(local)
            }
        };
        server.listen_rdma(listener);
        let registered = if self.no_rpcbind { None } else { Some(rpcbind::register(tcp, Some(rdma)).await) };

        let ready = Ready { rdma, tcp, exports: names };
        // Before anybody is told that we are here and may send one.
        let signals = Signals::catch().map_err(|e| Failure::of("signals", e))?;
        self.announce(&ready)?;
        let started = Instant::now();
        self.wait(signals, &server, &service, started).await?;
        if let Some(registered) = registered {
            registered.unregister().await;
        }
        let (metrics, counters) = (server.metrics(), server.tcp_counters());
        server.stop().await;
        if !out::quiet() {
            let mut out = Out::new();
            out.line(totals(&metrics, &counters, started.elapsed()))?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn open_exports(&self) -> Result<Exports, Failure> {
        let key = self.key()?;
        let rules = ExportRules {
            read_only: self.rules.read_only,
            allow: self.rules.allow.clone(),
            squash: match (self.rules.all_squash, self.rules.no_root_squash) {
                (true, _) => Squash::All,
                (_, true) => Squash::None,
                _ => Squash::Root,
            },
            anon_uid: self.rules.anon_uid,
            anon_gid: self.rules.anon_gid,
        };
        let mut exports = Exports::new();
        let mut add = |name: Option<&str>, dir: &Path| {
            let absolute = std::fs::canonicalize(dir).map_err(|e| Failure::of(dir.display(), e))?;
            let name = name.map_or_else(|| absolute.to_string_lossy().into_owned(), str::to_owned);
            let options = LocalOptions {
                name: Some(name.clone()),
                sync: !self.rules.asynchronous,
                apart: self.tuning.provider.keeps_threads(),
                ..LocalOptions::default()
            };
            let export =
                LocalExport::open(&absolute, &key, options).map_err(|e| Failure::new(e.to_string()))?;
            tracing::info!(name, dir = %absolute.display(), "{}", export.describe());
            exports.add(&name, Arc::new(export), rules.clone()).map_err(|e| Failure::usage(e.to_string()))
        };
        for dir in &self.dirs {
            add(None, dir)?;
        }
        for NamedDir { name, dir } in &self.exports {
            add(Some(name), dir)?;
        }
        Ok(exports)
    }

    fn key(&self) -> Result<HandleKey, Failure> {
        let random = || HandleKey::random().map_err(|e| Failure::of("no random numbers for a handle key", e));
        if let Some(path) = &self.rules.handle_key {
            return HandleKey::load_or_create(path).map_err(|e| Failure::new(e.to_string()));
        }
        match HandleKey::default_path() {
            None => {
                out::note(
                    "no home for a handle key: file handles will not survive a restart; --handle-key names a file",
                );
                random()
            }
            Some(path) => HandleKey::load_or_create(&path).or_else(|e| {
                out::note(&format!(
                    "{e}: file handles will not survive a restart; --handle-key names another file"
                ));
                random()
            }),
        }
    }

    /// Says where the server listens, to scripts and to people.
    fn announce(&self, ready: &Ready) -> Result<(), Failure> {
        let mut out = Out::new();
        let tcp = ready.tcp.map_or_else(|| "none".to_owned(), |a| a.to_string());
        out.line(format!("serving rdma={} tcp={tcp}", ready.rdma))?;
        if !out::quiet() {
            let host = reachable(ready.rdma.ip());
            for name in &ready.exports {
                let port = Some(ready.rdma.port()).filter(|p| *p != v3::PORT_RDMA);
                let url = Target::new(host.clone(), port, name.as_bytes());
                let rules = if self.rules.read_only { " (read-only)" } else { "" };
                out.line("")?;
                out.line(format!("{}{rules}", out.paint("1", name)))?;
                let url = quoted(&url.to_string());
                out.line(format!("  copy it      rpcrdma cp -r {url} copy"))?;
                out.line(format!("  look at it   rpcrdma ls -l {url}"))?;
                if let Some(tcp) = ready.tcp {
                    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                    let source = quoted(&format!("{host}:{name}"));
                    let common = format!("vers=3,nolock,mountproto=tcp,mountport={}", tcp.port());
                    for (label, proto, port) in
                        [("Linux, RDMA", "rdma", ready.rdma.port()), ("Linux, TCP ", "tcp", tcp.port())]
                    {
                        let options = format!("proto={proto},port={port},{common}");
                        out.line(format!("  {label}  mount -t nfs -o {options} {source} /mnt"))?;
                    }
                }
            }
        }
        out.flush()?;
        if let Some(file) = &self.ready_file {
            write_whole(file, ready).map_err(|e| Failure::of(file.display(), e))?;
        }
        Ok(())
    }

    /// Waits for a signal to stop; prints counters meanwhile.
    async fn wait(
        &self,
        mut signals: Signals,
        server: &Server,
        service: &RpcService,
        started: Instant,
    ) -> Result<(), Failure> {
        let period = self.stats.filter(|t| !t.is_zero());
        let mut ticks = tokio::time::interval(period.unwrap_or(Duration::from_secs(3600)));
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.usr1.recv() => {}
                _ = ticks.tick() => if period.is_none() { continue },
            }
            let mut out = Out::new();
            out.line(counters(&server.metrics(), &server.tcp_counters(), service, started.elapsed()))?;
            out.flush()?;
        }
    }
}

/// The signals that mean something to a server.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    usr1: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }
}

fn listen_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    // The standard library sets SO_REUSEADDR, so a restart need not wait for old connections.
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn in_use(addr: &str, what: &str, option: &str, e: io::Error) -> Failure {
    let hint = match e.kind() {
        io::ErrorKind::AddrInUse => format!("; another server has it, {option} names another address"),
        _ => String::new(),
    };
    let reason = crate::failure::without_number(&e.to_string());
    Failure::new(format!("cannot listen for {what} at {addr}: {reason}{hint}"))
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/.:_-+=%@,".contains(&b) || !b.is_ascii();
    if word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What others call an address of ours.
fn reachable(ip: IpAddr) -> String {
    if ip.is_unspecified() {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    ip.to_string()
}

/// Writes a file that appears when it is whole.
fn write_whole(file: &Path, ready: &Ready) -> io::Result<()> {
    let text = serde_json::to_string(ready).map_err(io::Error::other)?;
    if std::fs::metadata(file).is_ok_and(|there| !there.is_file()) {
        // A fifo or a terminal is to be written to, not to be replaced.
        return std::fs::write(file, text + "\n");
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, text + "\n")?;
    std::fs::rename(&part, file)
}

/// One line: what the server has done.
fn totals(m: &ServerMetrics, t: &tcp::Counters, up: Duration) -> String {
    format!(
        "served {} over {} ({} RDMA, {} TCP) in {}: {} out, {} in over RDMA",
        units::things(m.calls.get() + t.records.load(Ordering::Relaxed), "call", "calls"),
        units::things(m.connections.get() + t.accepted.load(Ordering::Relaxed), "connection", "connections"),
        units::count(m.connections.get()),
        units::count(t.accepted.load(Ordering::Relaxed)),
        units::time(up),
        units::size(m.bytes_out.get()),
        units::size(m.bytes_in.get()),
    )
}

/// All counters that are not zero.
fn counters(m: &ServerMetrics, t: &tcp::Counters, service: &RpcService, up: Duration) -> String {
    let mut text = totals(m, t, up);
    let mut group = |name: &str, values: &[(&str, u64)]| {
        let shown: Vec<String> = values
            .iter()
            .filter(|v| v.1 > 0)
            .map(|(what, n)| format!("{what} {}", units::count(*n)))
            .collect();
        if !shown.is_empty() {
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {name:<5} {}", shown.join(", "));
        }
    };
    group(
        "rdma",
        &[
            ("connections", m.connections.get()),
            ("closed", m.closed.get()),
            ("for breaking the rules", m.misbehaved.get()),
            ("turned away", m.refused.get()),
            ("calls", m.calls.get()),
            ("replies", m.replies.get()),
            ("bad headers", m.refused_calls.get()),
            ("no room for reply", m.no_room.get()),
            ("dropped", m.dropped.get()),
            ("beyond the grant", m.overruns.get()),
        ],
    );
    let load = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    group(
        "tcp",
        &[
            ("connections", load(&t.accepted)),
            ("turned away", load(&t.refused)),
            ("calls", load(&t.records)),
            ("replies", load(&t.replies)),
            ("misbehaved", load(&t.misbehaved)),
            ("stalled", load(&t.stalled)),
        ],
    );
    let s = service.counters();
    let nfs: Vec<(&str, u64)> = Proc::ALL.iter().zip(&s.nfs).map(|(p, n)| (p.name(), load(n))).collect();
    group("nfs", &nfs);
    group(
        "rpc",
        &[
            ("MOUNT", load(&s.mount)),
            ("refused", load(&s.refused)),
            ("garbage", load(&s.garbage)),
            ("not calls", load(&s.not_calls)),
            ("replayed", load(&s.replayed)),
            ("in progress", load(&s.in_progress)),
            ("turned away", load(&s.turned_away)),
        ],
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_change_is_quoted() {
        assert_eq!(quoted("nfs://h:1/srv/a-b_c.d%20e"), "nfs://h:1/srv/a-b_c.d%20e");
        assert_eq!(quoted("h:/two words"), "'h:/two words'");
        assert_eq!(quoted("h:/it's $1"), r"'h:/it'\''s $1'");
    }
}
