//! `rpcrdma stat`.

use clap::Args;
use rpcrdma::client::Target;
use serde::Serialize;

use super::{
    exit,
    ls::{local_time, mode_text},
};
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    fs::{Kind, show},
    out::{self, Out},
    units,
};

/// Show the attributes of files and directories
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma stat nfs://server/srv/data/README
  rpcrdma stat --json nfs://server/srv/data | jq .mtime")]
pub(crate) struct Stat {
    /// Objects, as nfs://HOST[:PORT]/PATH
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Target>,

    /// One JSON object per line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    client: ClientOptions,
}

#[derive(Serialize)]
struct Record {
    url: String,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    used: u64,
    fsid: u64,
    fileid: u64,
    atime: String,
    mtime: String,
    handle: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
}

/// ISO 8601 with nanoseconds and the zone's offset.
const PRECISE: &str = "%Y-%m-%dT%H:%M:%S.%9f%:z";

impl Stat {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let mut out = Out::new();
        let mut failures = 0;
        for (i, url) in self.urls.iter().enumerate() {
            match self.one(&mut session, &mut out, url, i > 0).await {
                Err(failure) if failure.is_silent() => return Err(failure),
                Err(failure) => {
                    out.flush()?;
                    out::failure(&failure);
                    failures += 1;
                }
                Ok(()) => {}
            }
        }
        out.flush()?;
        Ok(exit(failures))
    }

    async fn one(
        &self,
        session: &mut Session,
        out: &mut Out,
        url: &Target,
        gap: bool,
    ) -> Result<(), Failure> {
        let (place, object) = session.existing(url).await?;
        let meta = object.meta;
        let target = match (&place.parent, meta.kind) {
            (Some((dir, name)), Kind::Symlink) => {
                Some(show(&dir.read_link(name, &object).await.map_err(|e| Failure::of(url, e))?))
            }
            _ => None,
        };
        let device = matches!(meta.kind, Kind::Block | Kind::Char).then_some(meta.rdev);
        let handle = object.handle.map(|h| h.to_string()).unwrap_or_default();
        if self.json {
            return out.json(&Record {
                url: url.to_string(),
                kind: meta.kind.words(),
                mode: format!("{:04o}", meta.mode),
                links: meta.nlink,
                uid: meta.uid,
                gid: meta.gid,
                size: meta.size,
                used: meta.used,
                fsid: meta.id.0,
                fileid: meta.id.1,
                atime: local_time(meta.atime, PRECISE),
                mtime: local_time(meta.mtime, PRECISE),
                handle,
                target,
                device,
            });
        }
        if gap {
            out.line("")?;
        }
        let arrow = target.map(|t| format!(" -> {t}")).unwrap_or_default();
        let unit = if meta.size < 1024 { String::new() } else { format!(" ({})", units::size(meta.size)) };
        let numbers = device.map(|(major, minor)| format!(", {major}:{minor}")).unwrap_or_default();
        for (label, value) in [
            ("URL", format!("{url}{arrow}")),
            ("Type", format!("{}{numbers}", meta.kind.words())),
            ("Size", format!("{} bytes{unit}, {} on disk", units::count(meta.size), units::size(meta.used))),
            ("Mode", format!("{:04o} {}", meta.mode, mode_text(&object))),
            ("Owner", format!("uid {}, gid {}", meta.uid, meta.gid)),
            ("Links", meta.nlink.to_string()),
            ("Changed", local_time(meta.mtime, "%Y-%m-%d %H:%M:%S.%9f %z")),
            ("Accessed", local_time(meta.atime, "%Y-%m-%d %H:%M:%S.%9f %z")),
            ("File id", format!("{} in file system {:x}", meta.id.1, meta.id.0)),
            ("Handle", handle),
        ] {
            out.line(format!("{label:>9}: {value}"))?;
        }
        Ok(())
    }
}
