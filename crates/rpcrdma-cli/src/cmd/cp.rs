//! `rpcrdma cp`.

use std::{
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use clap::Args;

use super::exit;
use crate::{
    connect::{ClientOptions, Location, Place, Session},
    copy::{Bar, Job, Options, Top, get, marker},
    failure::{EXIT_INTERRUPTED, Failure, Outcome},
    fs::{Dir, Kind, join},
    out, units,
};

/// Copy files and trees from, to and between servers
///
/// Many files, and many chunks of a large file, are in flight at one time. Modes and times are kept. A file appears
/// under its name only when it is whole.
///
/// A copy that was interrupted goes on when the same command runs again: files that are there with the right size and
/// time of change are not copied again, and a large file that was begun is continued. What is not complete shows by
/// names that end in .rpcrdma-part.
///
/// Lost connections are made again, and nothing is lost with them. cp waits for a server that is gone until it is back,
/// or as long as --timeout says.
#[derive(Args)]
#[command(override_usage = "rpcrdma cp [OPTIONS] <SOURCE>... <DESTINATION>")]
#[command(after_help = "\
Examples:
  rpcrdma cp nfs://server/srv/data/file .             one file, to here
  rpcrdma cp -r nfs://server/srv/data/src copy        a tree
  rpcrdma cp -r photos music nfs://server/srv/data    trees, to a server
  rpcrdma cp -r --tcp nfs://server/srv/data/src copy  over plain NFS")]
pub(crate) struct Cp {
    /// Sources and destination: nfs://HOST[:PORT]/PATH or local paths; if the destination is a directory, copies go
    /// into it
    #[arg(required = true, value_name = "PATH", value_parser = Location::parser())]
    paths: Vec<Location>,

    /// Directories and all in them; symlinks as symlinks
    #[arg(short, long, visible_short_alias = 'R')]
    recursive: bool,

    /// Everything as it is: -r, --hard-links, special files, and as root --owner
    #[arg(short, long)]
    archive: bool,

    /// Modes and times as new files have them
    #[arg(long)]
    no_preserve: bool,

    /// Keep owner and group; needs root, and on a server no_root_squash
    #[arg(long)]
    owner: bool,

    /// Names of one file stay names of one file
    #[arg(short = 'H', long)]
    hard_links: bool,

    /// Copy everything again, even what is there already
    #[arg(long)]
    no_resume: bool,

    /// Files to work on at one time
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,

    /// Show no progress bar
    #[arg(long)]
    no_progress: bool,

    #[command(flatten)]
    client: ClientOptions,
}

impl Cp {
    pub(super) fn run(self) -> Outcome {
        let Some((destination, sources)) = self.paths.split_last().filter(|(_, sources)| !sources.is_empty())
        else {
            return Err(Failure::usage("a destination is missing behind the source"));
        };
        if !self.paths.iter().any(|p| matches!(p, Location::Url(_))) {
            return Err(Failure::usage(
                "neither source nor destination is an nfs:// URL; cp(1) copies local files",
            ));
        }
        let runtime = super::runtime()?;
        let done = runtime.block_on(async {
            let mut session = Session::with_patience(&self.client, Duration::ZERO);
            let job = Job::new(self.options(), out::failure);
            let copy = self.copy(&job, &mut session, sources, destination);
            let interrupted = tokio::select! {
                done = copy => { done?; false }
                _ = tokio::signal::ctrl_c() => true,
            };
            job.abort();
            out::set_bar(None);
            self.summary(&job, &session, interrupted);
            Ok(if interrupted { ExitCode::from(EXIT_INTERRUPTED) } else { exit(get(&job.totals.failures)) })
        });
        out::set_bar(None);
        runtime.shutdown_background();
        done
    }

    fn options(&self) -> Options {
        Options {
            jobs: self.jobs as usize,
            preserve: !self.no_preserve,
            owner: self.owner || (self.archive && rustix::process::geteuid().is_root()),
            specials: self.archive,
            hard_links: self.hard_links || self.archive,
            resume: !self.no_resume,
            exclude: Vec::new(),
        }
    }

    async fn copy(
        &self,
        job: &Arc<Job>,
        session: &mut Session,
        sources: &[Location],
        to: &Location,
    ) -> Result<(), Failure> {
        let to = session.resolve(to).await?;
        if to.dir.is_none() && sources.len() > 1 {
            return Err(Failure::of(&to.shown, "it has to be a directory for several sources to go into"));
        }
        let mut found = Vec::new();
        for source in sources {
            match session.resolve(source).await {
                Ok(place) => found.push(place),
                Err(failure) => job.failed(&failure),
            }
        }
        let _bar = self.bar(job, &found);
        for from in &found {
            if let Err(failure) = self.one(job, from, &to).await {
                job.failed(&failure);
            }
        }
        Ok(())
    }

    fn bar(&self, job: &Arc<Job>, sources: &[Place]) -> Option<Bar> {
        if self.no_progress || out::quiet() || !out::stderr_is_terminal() {
            return None;
        }
        let dirs = sources.iter().filter_map(|p| p.dir.clone()).collect();
        for object in sources.iter().filter(|p| p.dir.is_none()).filter_map(|p| p.found) {
            job.expect(&object.meta);
        }
        tokio::spawn(Arc::clone(job).count(dirs));
        let bar = Bar::hidden();
        out::set_bar(Some(bar.clone()));
        Some(Bar::start(job, bar))
    }

    async fn one(&self, job: &Arc<Job>, from: &Place, to: &Place) -> Result<(), Failure> {
        let Some(object) = from.found else {
            return Err(from.missing());
        };
        let recursive = self.recursive || self.archive;
        let linked = object.meta.kind == Kind::Symlink;
        let Some(dir) = from.dir.clone().filter(|_| !(linked && recursive)) else {
            return self.one_file(job, from, object, to, recursive).await;
        };
        if !recursive {
            return Err(Failure::of(&from.shown, "Is a directory; -r copies it with all that is in it"));
        }
        let source = (dir, from.shown.clone());
        let fail = |e| Failure::of(&to.shown, e);
        let incomplete = marker(&object.meta);
        let (dir, shown, fresh, marker) = match (&to.dir, &to.parent, to.found) {
            // A source without a name, such as `.`, has only contents.
            (Some(dir), ..) if from.name.is_empty() => (dir.clone(), to.shown.clone(), false, None),
            (Some(dir), ..) if !self.no_resume && dir.find(&incomplete).await.map_err(fail)?.is_some() => {
                (dir.clone(), to.shown.clone(), false, Some(incomplete))
            }
            // Into the directory, under the source's name.
            (Some(dir), ..) => {
                let (dir, fresh) = dir.make_dir(&from.name).await.map_err(fail)?;
                (dir, join(&to.shown, &from.name), fresh, None)
            }
            (None, Some((parent, name)), None) => {
                let (dir, fresh) = parent.make_dir(name).await.map_err(fail)?;
                (dir, to.shown.clone(), fresh, Some(incomplete))
            }
            _ => {
                return Err(Failure::of(
                    &to.shown,
                    "it is not a directory, so a directory cannot be copied to it",
                ));
            }
        };
        let top = Top { dir, shown, fresh, marker };
        inside(&source, &top)?;
        job.copy_contents(source, top).await
    }

    async fn one_file(
        &self,
        job: &Arc<Job>,
        from: &Place,
        mut object: crate::fs::Object,
        to: &Place,
        recursive: bool,
    ) -> Result<(), Failure> {
        let Some((dir, name)) = &from.parent else {
            return Err(Failure::of(&from.shown, "it is not a file"));
        };
        let (mut dir, mut name) = (dir.clone(), name.clone());
        if object.meta.kind == Kind::Symlink && !recursive {
            // Without -r a symlink on the command line stands for what it leads to.
            (dir, name, object) = follow(from).await?;
        }
        // Nor is one replaced by a file: it stands for what it leads to on both ends.
        let through = match to.found {
            Some(there)
                if there.meta.kind == Kind::Symlink
                    && to.dir.is_none()
                    && object.meta.kind != Kind::Symlink =>
            {
                Some(follow(to).await?)
            }
            _ => None,
        };
        let (target, target_name, shown) = match (&through, &to.dir, &to.parent) {
            (Some((dir, name, _)), ..) => (dir, name, to.shown.clone()),
            (None, Some(dir), _) => (dir, &from.name, join(&to.shown, &from.name)),
            (None, None, Some(_)) if self.wants_directory() => {
                return Err(Failure::of(&to.shown, "there is no such directory"));
            }
            (None, None, Some((parent, name))) => (parent, name, to.shown.clone()),
            (None, None, None) => return Err(Failure::of(&to.shown, "there is nothing to copy to")),
        };
        job.copy_one((&dir, &name, object), (target, target_name), (&from.shown, &shown)).await;
        Ok(())
    }

    /// Whether the destination ends with a slash, as only a directory's may.
    fn wants_directory(&self) -> bool {
        use std::os::unix::ffi::OsStrExt as _;
        match self.paths.last() {
            Some(Location::Url(target)) => target.path.ends_with(b"/"),
            Some(Location::Local(path)) => path.as_os_str().as_bytes().ends_with(b"/"),
            None => false,
        }
    }

    fn summary(&self, job: &Job, session: &Session, interrupted: bool) {
        if out::quiet() {
            return;
        }
        let t = &job.totals;
        let time = job.started.elapsed();
        let bytes = get(&t.bytes);
        let mut parts = vec![format!(
            "{} {}, {} in {}, {}",
            if interrupted { "interrupted: copied" } else { "copied" },
            units::things(get(&t.files), "file", "files"),
            units::size(bytes),
            units::time(time),
            units::rate(bytes, time),
        )];
        let mut more = |n: u64, one: &str, many: &str| {
            if n > 0 {
                parts.push(units::things(n, one, many));
            }
        };
        more(get(&t.links), "link", "links");
        more(get(&t.dirs), "directory", "directories");
        more(get(&t.unchanged), "unchanged", "unchanged");
        more(session.reconnects(), "reconnect", "reconnects");
        more(get(&t.failures), "failure", "failures");
        let end = if interrupted { "; run the same command to go on" } else { "" };
        println(&format!("{}{end}", parts.join(", ")));
        if t.bent_times.load(Relaxed) {
            out::note(
                "some times are not from 1970 to 2106, which is all that NFS version 3 can say: set as near as can be",
            );
        }
    }
}

/// Prints a line; that nobody reads it is no failure of a copy.
fn println(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Where a symlink on the command line leads, on this machine.
async fn follow(from: &Place) -> Result<(Dir, Vec<u8>, crate::fs::Object), Failure> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};
    let Some((Dir::Local(_), _)) = &from.parent else {
        return Err(Failure::of(
            &from.shown,
            "it is a symlink; name what it leads to, or copy links with -r",
        ));
    };
    let path = std::fs::canonicalize(&from.shown).map_err(|e| Failure::of(&from.shown, e))?;
    let name = path.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default();
    let above = path.parent().unwrap_or(Path::new(OsStr::new("/")));
    let dir = Dir::Local(crate::fs::LocalDir::at(above).await.map_err(|e| Failure::of(&from.shown, e))?);
    match dir.find(&name).await.map_err(|e| Failure::of(&from.shown, e))? {
        Some(object) => Ok((dir, name, object)),
        None => Err(Failure::of(&from.shown, "the symlink leads nowhere")),
    }
}

/// Refuses to copy a directory onto itself; copying it into itself would not end.
fn inside(from: &(Dir, String), to: &Top) -> Result<(), Failure> {
    let same_end = match (&from.0, &to.dir) {
        (Dir::Nfs(a), Dir::Nfs(b)) => a.handle() == b.handle(),
        _ => false,
    };
    if same_end {
        Err(Failure::of(&to.shown, "source and destination are the same directory"))
    } else {
        Ok(())
    }
}
