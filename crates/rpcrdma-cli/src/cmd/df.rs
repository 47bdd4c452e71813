//! `rpcrdma df`.

use clap::Args;
use rpcrdma::client::Target;
use serde::Serialize;

use super::exit;
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    out::{self, Out},
    units,
};

/// Show how full the file systems behind exports are
#[derive(Args)]
#[command(after_help = "\
Example:
  rpcrdma df nfs://server/srv/data nfs://other/home")]
pub(crate) struct Df {
    /// Exports or anything in them, as nfs://HOST[:PORT]/PATH
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Target>,

    /// Sizes in bytes
    #[arg(short, long)]
    bytes: bool,

    /// Files instead of bytes
    #[arg(short, long)]
    inodes: bool,

    /// One JSON object per line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    client: ClientOptions,
}

#[derive(Serialize)]
struct Record {
    url: String,
    total_bytes: u64,
    free_bytes: u64,
    available_bytes: u64,
    total_files: u64,
    free_files: u64,
    available_files: u64,
}

impl Df {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let mut out = Out::new();
        let mut failures = 0;
        let mut rows = Vec::new();
        for url in &self.urls {
            match one(&mut session, url).await {
                Ok(record) => rows.push(record),
                Err(failure) => {
                    out::failure(&failure);
                    failures += 1;
                }
            }
        }
        if self.json {
            for row in &rows {
                out.json(row)?;
            }
        } else if !rows.is_empty() {
            self.print(&mut out, &rows)?;
        }
        out.flush()?;
        Ok(exit(failures))
    }

    fn print(&self, out: &mut Out, rows: &[Record]) -> Result<(), Failure> {
        let number = |n: u64| match (self.inodes, self.bytes) {
            (true, _) => units::count(n),
            (_, true) => n.to_string(),
            _ => units::size(n),
        };
        let cells: Vec<[String; 5]> = rows
            .iter()
            .map(|r| {
                let (total, free, available) = if self.inodes {
                    (r.total_files, r.free_files, r.available_files)
                } else {
                    (r.total_bytes, r.free_bytes, r.available_bytes)
                };
                let used = total.saturating_sub(free);
                // Of what this user could use, as df(1) has it.
                let usable = used.saturating_add(available);
                let share = if usable == 0 {
                    "-".to_owned()
                } else {
                    format!("{:.0} %", used as f64 * 100.0 / usable as f64)
                };
                [number(total), number(used), number(available), share, r.url.clone()]
            })
            .collect();
        let head = [if self.inodes { "Files" } else { "Size" }, "Used", "Available", "Use", "Export"]
            .map(str::to_owned);
        let width = |i: usize| cells.iter().chain([&head]).map(|c| c[i].chars().count()).max().unwrap_or(0);
        let (a, b, c, d) = (width(0), width(1), width(2), width(3));
        for [total, used, available, share, url] in std::iter::once(&head).chain(&cells) {
            out.line(format!("{total:>a$}  {used:>b$}  {available:>c$}  {share:>d$}  {url}"))?;
        }
        Ok(())
    }
}

async fn one(session: &mut Session, url: &Target) -> Result<Record, Failure> {
    let (_, object) = session.existing(url).await?;
    let mount = session.connect(url).await?;
    let handle = object.handle.unwrap_or(mount.root());
    let stat = mount.fsstat(handle).await.map_err(|e| Failure::of(url, e))?;
    Ok(Record {
        url: url.to_string(),
        total_bytes: stat.total_bytes,
        free_bytes: stat.free_bytes,
        available_bytes: stat.available_bytes,
        total_files: stat.total_files,
        free_files: stat.free_files,
        available_files: stat.available_files,
    })
}
