//! `rpcrdma bench`: NFS over RDMA beside what TCP by itself does, in one run.
//!
//! # Operation
//! Every measurement alternates with one of raw TCP that moves the same sizes, because machines drift: what counts is
//! the ratio of the two neighbours, and of all ratios the median. Client and server run in this process on threads of
//! their own and share the machine, as the two ends of the raw connection do.

mod raw;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use rpcrdma::{
    client::{Mount, Target},
    fabric::Region,
    nfs::v3::{CreateMode, Handle, SetAttributes, Stable},
    server::ServerConfig,
};
use serde::Serialize;

use super::loopback::Loopback;
use crate::{
    connect::{ClientOptions, Session, Switch},
    failure::{Failure, Outcome},
    latency::{Latency, Summary},
    out::Out,
    provider::Provider,
    units,
};

/// Measure NFS over RDMA against raw TCP
///
/// A server and a client in this process, and beside them raw TCP connections that move the same sizes, take turns.
/// Rates are medians, "of raw" is the median of the ratios of neighbours. All is measured without and with CRC32c,
/// unless --crc says which. With --url a server elsewhere is measured, without comparison.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma bench                   everything, with and without CRC: a minute
  rpcrdma bench --only read,write --crc off --seconds 2
  rpcrdma bench --url nfs://server/srv/scratch")]
pub(crate) struct Bench {
    /// What to measure [default: everything]
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<What>,

    /// Pairs of measurements, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,

    /// Length of a measurement
    #[arg(long, value_name = "SECS", default_value = "0.3", value_parser = units::parse_seconds)]
    seconds: Duration,

    /// Length of the file that is read and written
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = units::parse_size)]
    size: u64,

    /// Where the file is, which is served from the page cache [default: the directory for temporary files]
    #[arg(long, value_name = "DIR", conflicts_with = "url", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,

    /// Measure the server of this directory instead, in which a file is made and removed
    #[arg(long)]
    url: Option<Target>,

    /// One JSON object per measurement
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    client: ClientOptions,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// 1 MiB READs one after the other, 4 in flight
    Read,
    /// 1 MiB WRITEs one after the other, 4 in flight
    Write,
    /// 4 KiB READs at random, 1, 16 and 64 in flight
    Random,
    /// NULL, 1 and 64 in flight
    Null,
    /// GETATTR, 1 and 64 in flight
    Getattr,
}

const MIB: u32 = 1 << 20;
/// Bytes of a Call and of a Reply without data, about.
const SMALL: usize = 64;
const ATTRIBUTES: usize = 128;

/// One measurement.
struct Sample {
    ops: u64,
    bytes: u64,
    time: Duration,
    latency: Latency,
}

impl Sample {
    fn rate(&self) -> f64 {
        units::per_second(self.ops, self.time)
    }
}

/// A kind of measurement.
#[derive(Clone, Copy)]
struct Test {
    name: &'static str,
    op: Op,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Read(u32),
    Random(u32),
    Write(u32),
    Null,
    Getattr,
}

const fn test(name: &'static str, op: Op, depth: usize) -> Test {
    Test { name, op, depth }
}

impl What {
    fn tests(self) -> &'static [Test] {
        const READ: &[Test] = &[test("READ 1 MiB", Op::Read(MIB), 4)];
        const WRITE: &[Test] = &[test("WRITE 1 MiB", Op::Write(MIB), 4)];
        const RANDOM: &[Test] = &[
            test("READ 4 KiB", Op::Random(4096), 1),
            test("READ 4 KiB", Op::Random(4096), 16),
            test("READ 4 KiB", Op::Random(4096), 64),
        ];
        const NULL: &[Test] = &[test("NULL", Op::Null, 1), test("NULL", Op::Null, 64)];
        const GETATTR: &[Test] = &[test("GETATTR", Op::Getattr, 1), test("GETATTR", Op::Getattr, 64)];
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::Random => RANDOM,
            Self::Null => NULL,
            Self::Getattr => GETATTR,
        }
    }
}

/// What came out of one kind of measurement. Rates are calls a second, or bytes a second for 1 MiB.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    depth: usize,
    transport: String,
    /// `bytes/s` or `calls/s`.
    unit: &'static str,
    rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_rate: Option<f64>,
    /// Median of the ratios of neighbours, ours to raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_p50_ns: Option<u64>,
    /// Processor time of client and server per GiB moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_s_per_gib: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_cpu_s_per_gib: Option<f64>,
    pairs: u32,
    latency: Summary,
}

/// The file and the mount that are measured.
struct Bed {
    mount: Mount,
    file: Handle,
    size: u64,
    next: Arc<AtomicU64>,
}

impl Bench {
    pub(super) fn run(self) -> Outcome {
        if self.size < u64::from(MIB) {
            return Err(Failure::usage("--size is at least 1M"));
        }
        let mut out = Out::new();
        if let Some(url) = &self.url {
            let runtime = super::runtime()?;
            let done = runtime.block_on(self.remote(&mut out, url));
            runtime.shutdown_background();
            return done.map(|()| super::exit(0));
        }
        let which: &[bool] = match self.client.crc {
            // An RNIC does as it likes.
            None if self.client.provider == Provider::Verbs => &[false],
            None => &[false, true],
            Some(Switch::On) => &[true],
            Some(Switch::Off) => &[false],
        };
        for (i, crc) in which.iter().enumerate() {
            if i > 0 && !self.json {
                out.line("")?;
            }
            self.local(&mut out, *crc)?;
        }
        out.flush()?;
        Ok(super::exit(0))
    }

    /// Measures a server in this process.
    fn local(&self, out: &mut Out, crc: bool) -> Result<(), Failure> {
        let above = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("rpcrdma-bench-")
            .tempdir_in(&above)
            .map_err(|e| Failure::of(above.display(), e))?;
        let crc = if crc { Switch::On } else { Switch::Off };
        let client = ClientOptions { crc: Some(crc), ..self.client.clone() };
        let over = (client.provider, &client.iwarp());
        let server = Loopback::start(dir.path(), ServerConfig::default(), over, None)?;
        let runtime = super::runtime()?;
        let done = runtime.block_on(async {
            let mut session = Session::new(&client);
            self.all(out, &mut session, &server.target(dir.path()), true).await
        });
        runtime.shutdown_background();
        server.stop();
        // The system cleans up behind us if we cannot.
        let _ = dir.close();
        done
    }

    /// Measures a server elsewhere.
    async fn remote(&self, out: &mut Out, url: &Target) -> Result<(), Failure> {
        let mut session = Session::new(&self.client);
        self.all(out, &mut session, url, false).await
    }

    async fn all(
        &self,
        out: &mut Out,
        session: &mut Session,
        url: &Target,
        compare: bool,
    ) -> Result<(), Failure> {
        let connection = session.connect(url).await?;
        let mount = connection.mount(&url.path).await.map_err(|e| Failure::of(url, e))?;
        let name = format!(".rpcrdma-bench-{}", std::process::id());
        let bed = self.make(&mount, url, name.as_bytes()).await?;
        let done = self.measure(out, &bed, url, compare).await;
        mount.remove(mount.root(), name.as_bytes()).await.map_err(|e| Failure::of(url, e))?;
        done
    }

    /// Makes the file and writes all of it, so that no measurement is the first to touch a page.
    async fn make(&self, mount: &Mount, url: &Target, name: &[u8]) -> Result<Bed, Failure> {
        let fail = |e| Failure::of(url, e);
        let set = SetAttributes { mode: Some(0o600), size: Some(0), ..SetAttributes::default() };
        let made = mount.create(mount.root(), name, CreateMode::Unchecked(set)).await.map_err(fail)?;
        let file = match made.object {
            Some(file) => file,
            None => mount.lookup(mount.root(), name).await.map_err(fail)?.object,
        };
        let size = self.size - self.size % u64::from(MIB);
        let bed = Bed { mount: mount.clone(), file, size, next: Arc::default() };
        let mut buf = Region::alloc(MIB as usize);
        buf.fill(0x5a);
        for at in (0..size).step_by(MIB as usize) {
            let mut done = 0;
            while done < MIB {
                let (wrote, back) =
                    mount.write(file, at + u64::from(done), MIB - done, buf, Stable::Unstable).await;
                done += wrote.map_err(fail)?.count;
                buf = back.unwrap_or_else(|| Region::alloc(MIB as usize));
            }
        }
        Ok(bed)
    }

    async fn measure(&self, out: &mut Out, bed: &Bed, url: &Target, compare: bool) -> Result<(), Failure> {
        if !self.json {
            let what =
                if compare { "beside raw TCP on the loopback address".to_owned() } else { url.to_string() };
            out.line(format!("{}, {what}; medians of {} pairs", bed.mount.transport(), self.pairs))?;
            out.line(format!(
                "{:<11} {:>5} {:>11} {:>11} {:>6} {:>8} {:>8} {:>8}",
                "", "depth", "raw", "NFS", "of raw", "raw p50", "p50", "p99"
            ))?;
            out.flush()?;
        }
        let every = [What::Read, What::Write, What::Random, What::Null, What::Getattr];
        let wanted = every.iter().filter(|w| self.only.is_empty() || self.only.contains(w));
        for test in wanted.flat_map(|w| w.tests()) {
            let row = self.row(bed, test, url, compare).await?;
            if self.json {
                out.json(&row)?;
            } else {
                row.print(out)?;
            }
            out.flush()?;
        }
        Ok(())
    }

    async fn row(&self, bed: &Bed, test: &Test, url: &Target, compare: bool) -> Result<Row, Failure> {
        let (mut ours, mut raws, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut cpu, mut raw_cpu) = (Vec::new(), Vec::new());
        let mut latency = Latency::new();
        let mut raw_latency = Latency::new();
        for pair in 0..=self.pairs {
            let before = cpu_time();
            let raw =
                if compare { Some(self.raw(test).map_err(|e| Failure::of("raw TCP", e))?) } else { None };
            let between = cpu_time();
            let sample = self.ours(bed, test).await.map_err(|e| Failure::of(url, e))?;
            let after = cpu_time();
            if pair == 0 {
                // Warming up.
                continue;
            }
            ours.push(sample.rate());
            cpu.push(per_gib(after.saturating_sub(between), sample.bytes));
            latency.add(&sample.latency);
            if let Some(raw) = raw {
                raw_cpu.push(per_gib(between.saturating_sub(before), raw.bytes));
                raw_latency.add(&raw.latency);
                ratios.push(sample.rate() / raw.rate());
                raws.push(raw.rate());
            }
        }
        let bulk = matches!(test.op, Op::Read(_) | Op::Write(_));
        let scale = if bulk { f64::from(MIB) } else { 1.0 };
        let known = |v: &mut Vec<f64>| if v.is_empty() { None } else { Some(median(v)) };
        Ok(Row {
            name: test.name,
            depth: test.depth,
            transport: bed.mount.transport().to_owned(),
            unit: if bulk { "bytes/s" } else { "calls/s" },
            rate: median(&mut ours) * scale,
            raw_rate: known(&mut raws).map(|r| r * scale),
            ratio: known(&mut ratios),
            raw_p50_ns: (raw_latency.count() > 0).then(|| raw_latency.summary().p50_ns),
            // The processor time of a server elsewhere is not known.
            cpu_s_per_gib: (bulk && compare).then(|| median(&mut cpu)),
            raw_cpu_s_per_gib: if bulk { known(&mut raw_cpu) } else { None },
            pairs: self.pairs,
            latency: latency.summary(),
        })
    }

    fn raw(&self, test: &Test) -> io::Result<Sample> {
        match test.op {
            Op::Read(size) | Op::Write(size) => raw::stream(size as usize, self.seconds),
            Op::Random(size) => raw::ping_pong(SMALL, size as usize, test.depth, self.seconds),
            Op::Null => raw::ping_pong(SMALL, SMALL, test.depth, self.seconds),
            Op::Getattr => raw::ping_pong(SMALL, ATTRIBUTES, test.depth, self.seconds),
        }
    }

    async fn ours(&self, bed: &Bed, test: &Test) -> Result<Sample, rpcrdma::error::Error> {
        let start = Instant::now();
        let deadline = start + self.seconds;
        let workers: Vec<_> = (0..test.depth)
            .map(|i| {
                let worker = Worker {
                    mount: bed.mount.clone(),
                    file: bed.file,
                    size: bed.size,
                    next: Arc::clone(&bed.next),
                    dice: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(i as u64 + 1),
                    op: test.op,
                };
                tokio::spawn(worker.run(deadline))
            })
            .collect();
        let mut all = Sample { ops: 0, bytes: 0, time: Duration::ZERO, latency: Latency::new() };
        for worker in workers {
            let one = worker.await.map_err(|e| rpcrdma::error::Error::BadReply(e.to_string()))??;
            all.ops += one.ops;
            all.bytes += one.bytes;
            all.latency.add(&one.latency);
        }
        all.time = start.elapsed();
        Ok(all)
    }
}

/// One Call in flight.
struct Worker {
    mount: Mount,
    file: Handle,
    size: u64,
    /// Sequential positions are shared by all workers.
    next: Arc<AtomicU64>,
    dice: u64,
    op: Op,
}

impl Worker {
    async fn run(mut self, deadline: Instant) -> Result<Sample, rpcrdma::error::Error> {
        let len = match self.op {
            Op::Read(n) | Op::Random(n) | Op::Write(n) => n,
            Op::Null | Op::Getattr => 0,
        };
        let mut buf = Some(Region::alloc(len as usize));
        let mut sample = Sample { ops: 0, bytes: 0, time: Duration::ZERO, latency: Latency::new() };
        loop {
            let start = Instant::now();
            if start >= deadline {
                return Ok(sample);
            }
            sample.bytes += u64::from(self.once(len, &mut buf).await?);
            sample.ops += 1;
            sample.latency.record(start.elapsed());
        }
    }

    fn place(&mut self, len: u32) -> u64 {
        if let Op::Random(_) = self.op {
            // xorshift: cheap, and random enough for positions.
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            return self.dice % (self.size / u64::from(len)) * u64::from(len);
        }
        self.next.fetch_add(u64::from(len), Ordering::Relaxed) % self.size
    }

    /// One Call; returns the bytes that it moved.
    async fn once(&mut self, len: u32, buf: &mut Option<Region>) -> Result<u32, rpcrdma::error::Error> {
        match self.op {
            Op::Null => self.mount.null().await.map(|()| 0),
            Op::Getattr => self.mount.getattr(self.file).await.map(|_| 0),
            Op::Read(_) | Op::Random(_) => {
                let at = self.place(len);
                let room = buf.take().unwrap_or_else(|| Region::alloc(len as usize));
                let (read, back) = self.mount.read(self.file, at, len, room).await;
                *buf = back;
                read.map(|r| r.len)
            }
            Op::Write(_) => {
                let at = self.place(len);
                let data = buf.take().unwrap_or_else(|| Region::alloc(len as usize));
                let (wrote, back) = self.mount.write(self.file, at, len, data, Stable::Unstable).await;
                *buf = back;
                wrote.map(|w| w.count)
            }
        }
    }
}

impl Row {
    fn print(&self, out: &mut Out) -> Result<(), Failure> {
        let bulk = self.unit == "bytes/s";
        let rate = |r: f64| {
            if bulk {
                format!("{}/s", units::size(r as u64))
            } else {
                format!("{}/s", units::count(r as u64))
            }
        };
        let time = |ns: u64| units::time(Duration::from_nanos(ns));
        let dash = || "-".to_owned();
        out.line(format!(
            "{:<11} {:>5} {:>11} {:>11} {:>6} {:>8} {:>8} {:>8}",
            self.name,
            self.depth,
            self.raw_rate.map_or_else(dash, rate),
            rate(self.rate),
            self.ratio.map_or_else(dash, |r| format!("{r:.2}")),
            self.raw_p50_ns.map_or_else(dash, time),
            time(self.latency.p50_ns),
            time(self.latency.p99_ns),
        ))?;
        if let (Some(ours), Some(raw)) = (self.cpu_s_per_gib, self.raw_cpu_s_per_gib) {
            out.line(format!("{:<11} {ours:.2} s of processor time per GiB, raw {raw:.2} s", ""))?;
        }
        Ok(())
    }
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

fn per_gib(cpu: Duration, bytes: u64) -> f64 {
    if bytes == 0 { 0.0 } else { cpu.as_secs_f64() * f64::from(1 << 30) / bytes as f64 }
}

/// The middle of some values, or the mean of the two in the middle; 0 of none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn processor_time_is_per_gib() {
        assert_eq!(per_gib(Duration::from_secs(2), 1 << 30), 2.0);
        assert_eq!(per_gib(Duration::from_secs(2), 0), 0.0);
    }
}
