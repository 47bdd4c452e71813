//! `rpcrdma cat`.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
};

use clap::Args;
use rpcrdma::{client::Target, fabric::Region, memory::Pools};
use tokio::task::{JoinHandle, spawn_blocking};

use super::exit;
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    fs::{FsError, Kind, Source},
    out, units,
};

/// READs under way at one time.
const AHEAD: usize = 8;

/// Print the contents of files
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma cat nfs://server/srv/data/README
  rpcrdma cat --offset 1G --length 64K nfs://server/srv/disk.img | xxd | head")]
pub(crate) struct Cat {
    /// Files, as nfs://HOST[:PORT]/PATH
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Target>,

    /// Begin so many bytes into each file
    #[arg(long, value_name = "BYTES", value_parser = units::parse_size, default_value = "0")]
    offset: u64,

    /// Print at most so many bytes of each file [default: to the end]
    #[arg(long, value_name = "BYTES", value_parser = units::parse_size)]
    length: Option<u64>,

    #[command(flatten)]
    client: ClientOptions,
}

impl Cat {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let mut failures = 0;
        for url in &self.urls {
            match self.one(&mut session, url).await {
                Err(failure) if failure.is_silent() => return Err(failure),
                Err(failure) => {
                    out::failure(&failure);
                    failures += 1;
                }
                Ok(()) => {}
            }
        }
        Ok(exit(failures))
    }

    async fn one(&self, session: &mut Session, url: &Target) -> Result<(), Failure> {
        let (place, object) = session.existing(url).await?;
        match object.meta.kind {
            Kind::File => {}
            Kind::Dir => return Err(Failure::of(url, "Is a directory")),
            kind => return Err(Failure::of(url, format!("it is a {}", kind.words()))),
        }
        let Some((dir, name)) = place.parent else { return Err(Failure::of(url, "Is a directory")) };
        let source = dir.open(&name, &object).await.map_err(|e| Failure::of(url, e))?;
        let chunk = dir.io_size();
        let pools = Pools::new(AHEAD + 1);
        let end = self.length.map_or(u64::MAX, |n| self.offset.saturating_add(n));
        let mut at = self.offset;
        let mut ahead: VecDeque<JoinHandle<Result<(u32, Region), FsError>>> = VecDeque::new();
        loop {
            // Behind the end that the file had, one READ at a time finds out whether it has grown.
            while at < end && (ahead.is_empty() || (ahead.len() < AHEAD && at < object.meta.size)) {
                let len = (end - at).min(u64::from(chunk)) as u32;
                ahead.push_back(start(&source, &pools, at, len));
                at += u64::from(len);
            }
            let Some(next) = ahead.pop_front() else { return Ok(()) };
            let (n, buf) =
                next.await.map_err(|e| Failure::of(url, e.to_string()))?.map_err(|e| Failure::of(url, e))?;
            if n == 0 {
                return Ok(());
            }
            let printed = spawn_blocking(move || {
                let mut stdout = io::stdout().lock();
                stdout.write_all(buf.get(..n as usize).unwrap_or_default())?;
                stdout.flush()
            });
            let printed = printed.await.map_err(|e| Failure::of("standard output", e.to_string()))?;
            printed.map_err(|e| Failure::of("standard output", e))?;
            if n < chunk {
                // The end of the file, or of what was asked for.
                return Ok(());
            }
        }
    }
}

fn start(source: &Source, pools: &Pools, at: u64, len: u32) -> JoinHandle<Result<(u32, Region), FsError>> {
    let source = source.clone();
    let buf = pools.take(len as usize).unwrap_or_else(|| Region::alloc(len as usize));
    tokio::spawn(async move { source.read(at, len, buf).await })
}
