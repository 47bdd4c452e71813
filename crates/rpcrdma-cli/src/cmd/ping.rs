//! `rpcrdma ping`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use rpcrdma::client::{Mount, Target};
use serde::Serialize;

use super::exit;
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    latency::{Latency, Summary},
    out::{self, Out},
    units,
};

/// Measure how fast a server answers
///
/// Makes NULL round trips and shows a histogram of their times. No export is needed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma ping nfs://server                       ten, one a second
  rpcrdma ping -c 100000 -i 0 nfs://server        as fast as it goes
  rpcrdma ping -c 100000 -i 0 -d 64 nfs://server  with 64 in flight")]
pub(crate) struct Ping {
    /// The server, as nfs://HOST[:PORT]; a path is not needed
    url: Target,

    /// Round trips; 0 goes on until Ctrl-C
    #[arg(short, long, value_name = "N", default_value_t = 10)]
    count: u64,

    /// Seconds between them
    #[arg(short, long, value_name = "SECS", default_value = "1", value_parser = units::parse_seconds)]
    interval: Duration,

    /// Round trips in flight at one time
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,

    /// One JSON object at the end
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    client: ClientOptions,
}

#[derive(Serialize)]
struct Record {
    url: String,
    transport: String,
    seconds: f64,
    per_second: f64,
    failures: u64,
    reconnects: u64,
    #[serde(flatten)]
    latency: Summary,
}

impl Ping {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let connecting = Instant::now();
        let mount = session.connect(&self.url).await?;
        let set_up = connecting.elapsed();
        let mut out = Out::new();
        // Every line of a slow ping, no line of a fast one.
        let each = !self.json && !out::quiet() && self.interval >= Duration::from_millis(10);
        if !self.json && !out::quiet() {
            out.line(format!("{}: {}, connected in {}", self.url, mount.transport(), units::time(set_up)))?;
            out.flush()?;
        }
        let started = Instant::now();
        let left = Arc::new(AtomicU64::new(if self.count == 0 { u64::MAX } else { self.count }));
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let tell = each.then_some(tell);
        let (end, ends) = tokio::sync::watch::channel(false);
        let start = |_| {
            tokio::spawn(worker(mount.clone(), Arc::clone(&left), self.interval, tell.clone(), ends.clone()))
        };
        let workers: Vec<_> = (0..self.depth).map(start).collect();
        drop(tell);
        let stop = tokio::signal::ctrl_c();
        tokio::pin!(stop);
        let mut seq = 0_u64;
        let gather = async {
            let mut all = Latency::new();
            let mut failures = 0;
            let mut last = None;
            for w in workers {
                let (latency, failure) = w.await.map_err(|e| Failure::of(&self.url, e.to_string()))?;
                all.add(&latency);
                if let Some(failure) = failure {
                    failures += 1;
                    last = Some(failure);
                }
            }
            Ok::<_, Failure>((all, failures, last))
        };
        tokio::pin!(gather);
        let (latency, failures, last) = loop {
            tokio::select! {
                biased;
                Some(time) = told.recv() => {
                    seq += 1;
                    out.line(format!("{seq:>6}  {}", units::time(time)))?;
                    out.flush()?;
                }
                _ = &mut stop, if !*end.borrow() => {
                    end.send_replace(true);
                }
                done = &mut gather => break done?,
            }
        };
        let took = started.elapsed();
        if let Some(failure) = last {
            out::failure(&Failure::of(&self.url, failure));
        }
        if self.json {
            out.json(&Record {
                url: self.url.to_string(),
                transport: mount.transport().to_owned(),
                seconds: took.as_secs_f64(),
                per_second: units::per_second(latency.count(), took),
                failures,
                reconnects: mount.metrics().losses.get(),
                latency: latency.summary(),
            })?;
        } else {
            self.print(&mut out, &latency, took, &mount)?;
        }
        out.flush()?;
        Ok(exit(failures))
    }

    fn print(&self, out: &mut Out, latency: &Latency, took: Duration, mount: &Mount) -> Result<(), Failure> {
        let rows = latency.rows();
        let most = rows.iter().map(|r| r.1).max().unwrap_or(0).max(1);
        if rows.len() > 1 && !out::quiet() {
            out.line("")?;
            for (bound, n) in rows {
                let width = (n as f64 / most as f64 * 40.0).round() as usize;
                let bar = out.paint("36", &"█".repeat(width.max(usize::from(n > 0))));
                out.line(format!("  < {:>8} {:>10}  {bar}", units::time(bound), units::count(n)))?;
            }
            out.line("")?;
        }
        let reconnects = match mount.metrics().losses.get() {
            0 => String::new(),
            n => format!(", {}", units::things(n, "reconnect", "reconnects")),
        };
        out.line(format!(
            "{} in {}, {}/s{reconnects}",
            units::things(latency.count(), "round trip", "round trips"),
            units::time(took),
            units::count(units::per_second(latency.count(), took) as u64),
        ))?;
        out.line(format!(
            "p50 {}   p90 {}   p99 {}   max {}",
            units::time(latency.quantile(0.5)),
            units::time(latency.quantile(0.9)),
            units::time(latency.quantile(0.99)),
            units::time(latency.max()),
        ))
    }
}

/// Makes round trips until there are none left to make, or it is told to stop, which gives up the one that is under way: a
/// server that is away may not answer it for long.
async fn worker(
    mount: Mount,
    left: Arc<AtomicU64>,
    interval: Duration,
    tell: Option<tokio::sync::mpsc::UnboundedSender<Duration>>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) -> (Latency, Option<rpcrdma::error::Error>) {
    let mut latency = Latency::new();
    let trips = async {
        let mut first = true;
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            if !first && !interval.is_zero() {
                tokio::time::sleep(interval).await;
            }
            first = false;
            let start = Instant::now();
            mount.null().await?;
            let time = start.elapsed();
            latency.record(time);
            if let Some(tell) = &tell {
                // The receiver is gone only when we are about to end.
                let _ = tell.send(time);
            }
        }
        Ok(())
    };
    let failure = tokio::select! {
        // The sender outlives its workers.
        _ = stop.wait_for(|stop| *stop) => None,
        done = trips => done.err(),
    };
    (latency, failure)
}
