//! `rpcrdma ls`.

use clap::Args;
use rpcrdma::client::Target;

use super::exit;
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    fs::{Dir, Entry, Kind, Object, Time, show},
    out::{self, Out},
    units,
};

/// List directories of a server, or what it exports
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma ls nfs://server               the paths that the server exports
  rpcrdma ls nfs://server/srv/data
  rpcrdma ls -lR nfs://server/srv/data/src")]
pub(crate) struct Ls {
    /// Directories or files, as nfs://HOST[:PORT]/PATH
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Target>,

    /// Long lines: mode, links, owner, group, size, time of change, name
    #[arg(short, long)]
    long: bool,

    /// Also names that begin with a dot
    #[arg(short, long)]
    all: bool,

    /// Directories below directories too
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Sizes with units, in long lines
    #[arg(long)]
    human: bool,

    #[command(flatten)]
    client: ClientOptions,
}

/// A line of a long listing, before its columns are as wide as they need to be.
struct Row {
    mode: String,
    links: String,
    uid: String,
    gid: String,
    size: String,
    time: String,
    name: String,
}

impl Ls {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let mut out = Out::new();
        let mut failures = 0;
        for url in &self.urls {
            match self.one(&mut session, &mut out, url).await {
                Err(failure) if failure.is_silent() => return Err(failure),
                Err(failure) => {
                    out.flush()?;
                    out::failure(&failure);
                    failures += 1;
                }
                Ok(failed) => failures += failed,
            }
        }
        out.flush()?;
        Ok(exit(failures))
    }

    /// Lists what a URL names; returns how many directories below it could not be listed.
    async fn one(&self, session: &mut Session, out: &mut Out, url: &Target) -> Result<u64, Failure> {
        if let Some(exports) = session.exports_instead(url).await? {
            for path in exports {
                out.line(show(&path))?;
            }
            return Ok(0);
        }
        let (place, object) = session.existing(url).await?;
        let Some(dir) = place.dir else {
            let entry = Entry { name: place.name, object };
            let parent = place.parent.map(|p| p.0);
            self.print(out, parent.as_ref(), vec![entry]).await?;
            return Ok(0);
        };
        let mut failures = 0;
        let headings = self.recursive || self.urls.len() > 1;
        let mut stack = vec![(dir, show(&url.path))];
        let mut first = true;
        while let Some((dir, path)) = stack.pop() {
            if headings {
                out.line(format!("{}{path}:", if first { "" } else { "\n" }))?;
            }
            first = false;
            let entries = match self.entries(&dir).await {
                Ok(entries) => entries,
                Err(e) if path == show(&url.path) => return Err(Failure::of(url, e)),
                Err(e) => {
                    out::failure(&Failure::of(&path, e));
                    failures += 1;
                    continue;
                }
            };
            if self.recursive {
                for entry in entries.iter().rev().filter(|e| e.object.meta.kind == Kind::Dir) {
                    match dir.enter(&entry.name, &entry.object).await {
                        Ok(below) => stack.push((below, crate::fs::join(&path, &entry.name))),
                        Err(e) => {
                            out::failure(&Failure::of(crate::fs::join(&path, &entry.name), e));
                            failures += 1;
                        }
                    }
                }
            }
            self.print(out, Some(&dir), entries).await?;
        }
        Ok(failures)
    }

    /// The entries of a directory in order of their names.
    async fn entries(&self, dir: &Dir) -> Result<Vec<Entry>, crate::fs::FsError> {
        let mut all = Vec::new();
        let mut lister = dir.list();
        loop {
            let page = lister.next().await?;
            if page.is_empty() {
                break;
            }
            all.extend(page.into_iter().filter(|e| self.all || !e.name.starts_with(b".")));
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    async fn print(&self, out: &mut Out, dir: Option<&Dir>, entries: Vec<Entry>) -> Result<(), Failure> {
        if !self.long {
            for entry in &entries {
                out.line(paint(out, entry))?;
            }
            return Ok(());
        }
        let mut rows = Vec::with_capacity(entries.len());
        for entry in &entries {
            let mut row = self.row(out, entry);
            if entry.object.meta.kind == Kind::Symlink
                && let Some(dir) = dir
                && let Ok(target) = dir.read_link(&entry.name, &entry.object).await
            {
                row.name.push_str(&format!(" -> {}", show(&target)));
            }
            rows.push(row);
        }
        let width = |f: fn(&Row) -> &str| rows.iter().map(|r| f(r).chars().count()).max().unwrap_or(0);
        let (links, uid, gid, size) =
            (width(|r| &r.links), width(|r| &r.uid), width(|r| &r.gid), width(|r| &r.size));
        for r in &rows {
            out.line(format!(
                "{} {:>links$} {:>uid$} {:>gid$} {:>size$} {} {}",
                r.mode, r.links, r.uid, r.gid, r.size, r.time, r.name
            ))?;
        }
        Ok(())
    }

    fn row(&self, out: &Out, entry: &Entry) -> Row {
        let meta = &entry.object.meta;
        let size = match meta.kind {
            Kind::Block | Kind::Char => format!("{}, {}", meta.rdev.0, meta.rdev.1),
            _ if self.human => units::size(meta.size),
            _ => meta.size.to_string(),
        };
        Row {
            mode: mode_text(&entry.object),
            links: meta.nlink.to_string(),
            uid: meta.uid.to_string(),
            gid: meta.gid.to_string(),
            size,
            time: local_time(meta.mtime, "%Y-%m-%d %H:%M"),
            name: paint(out, entry),
        }
    }
}

fn paint(out: &Out, entry: &Entry) -> String {
    let name = show(&entry.name);
    match entry.object.meta.kind {
        Kind::Dir => out.paint("1;34", &name),
        Kind::Symlink => out.paint("1;36", &name),
        Kind::File if entry.object.meta.mode & 0o111 != 0 => out.paint("1;32", &name),
        Kind::File => name,
        _ => out.paint("33", &name),
    }
}

/// Type and permissions as `ls` writes them: `drwxr-xr-x`.
pub(super) fn mode_text(object: &Object) -> String {
    let mode = object.meta.mode;
    let mut text = String::from(object.meta.kind.letter());
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A time on this machine's clock.
pub(super) fn local_time(t: Time, format: &str) -> String {
    let nanos = i32::try_from(t.nanos).unwrap_or(0);
    match jiff::Timestamp::new(t.secs, nanos) {
        Ok(stamp) => stamp.to_zoned(jiff::tz::TimeZone::system()).strftime(format).to_string(),
        Err(_) => format!("@{}", t.secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Meta;

    #[test]
    fn modes_are_written_as_everybody_does() {
        let object = |kind, mode| Object {
            meta: Meta {
                kind,
                mode,
                nlink: 1,
                uid: 0,
                gid: 0,
                size: 0,
                used: 0,
                rdev: (0, 0),
                id: (0, 0),
                atime: Time::default(),
                mtime: Time::default(),
            },
            handle: None,
        };
        assert_eq!(mode_text(&object(Kind::Dir, 0o755)), "drwxr-xr-x");
        assert_eq!(mode_text(&object(Kind::File, 0o4755)), "-rwsr-xr-x");
        assert_eq!(mode_text(&object(Kind::Dir, 0o1777)), "drwxrwxrwt");
        assert_eq!(mode_text(&object(Kind::File, 0o7000)), "---S--S--T");
    }
}
