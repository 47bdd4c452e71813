//! `rpcrdma rm`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use clap::Args;
use rpcrdma::client::Target;
use tokio::{sync::Semaphore, task::JoinSet};

use super::exit;
use crate::{
    connect::{ClientOptions, Session},
    failure::{Failure, Outcome},
    fs::{Dir, Kind, NfsDir, join},
    out,
};

/// Remove files, and with -r directories and all in them
#[derive(Args)]
#[command(after_help = "\
Examples:
  rpcrdma rm nfs://server/srv/data/old
  rpcrdma rm -rf nfs://server/srv/data/tmp")]
pub(crate) struct Rm {
    /// What to remove, as nfs://HOST[:PORT]/PATH
    #[arg(required = true, value_name = "URL")]
    urls: Vec<Target>,

    /// Directories with all that is in them
    #[arg(short, long)]
    recursive: bool,

    /// What does not exist is removed already
    #[arg(short, long)]
    force: bool,

    /// Files to remove at one time
    #[arg(short, long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: u32,

    #[command(flatten)]
    client: ClientOptions,
}

/// A removal under way.
struct Removal {
    places: Arc<Semaphore>,
    failures: AtomicU64,
}

impl Removal {
    fn failed(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        out::failure(failure);
    }
}

impl Rm {
    pub(super) async fn run(self) -> Outcome {
        let mut session = Session::new(&self.client);
        let removal = Arc::new(Removal {
            places: Arc::new(Semaphore::new(self.jobs as usize)),
            failures: AtomicU64::new(0),
        });
        for url in &self.urls {
            if let Err(failure) = self.one(&mut session, url, &removal).await {
                removal.failed(&failure);
            }
        }
        Ok(exit(removal.failures.load(Ordering::Relaxed)))
    }

    async fn one(&self, session: &mut Session, url: &Target, removal: &Arc<Removal>) -> Result<(), Failure> {
        let place = if self.force {
            let place = session.resolve_url(url).await?;
            if place.found.is_none() {
                return Ok(());
            }
            place
        } else {
            session.existing(url).await?.0
        };
        let (parent, name) = match place.parent {
            Some(parent) => parent,
            // It was mounted as a directory; its entry is in the directory above.
            None => self.above(session, url).await?,
        };
        let Dir::Nfs(parent) = parent else { return Err(Failure::of(url, "it is not on a server")) };
        match place.dir {
            Some(_) if !self.recursive => {
                Err(Failure::of(url, "Is a directory; -r removes it with all that is in it"))
            }
            Some(Dir::Nfs(dir)) => {
                remove_tree(removal, dir, &place.shown).await;
                gone(parent.remove_dir(&name).await).map_err(|e| Failure::of(url, e))
            }
            _ => gone(Dir::Nfs(parent).remove(&name).await).map_err(|e| Failure::of(url, e)),
        }
    }

    /// The directory above the one that the URL names, and the name in it.
    async fn above(&self, session: &mut Session, url: &Target) -> Result<(Dir, Vec<u8>), Failure> {
        let mut components: Vec<&[u8]> =
            url.path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
        let name = components.pop().map(<[u8]>::to_vec).unwrap_or_default();
        let path = [b"/", components.join(&b'/').as_slice()].concat();
        let whole = || Failure::of(url, "it is an export as a whole, which is not removed over NFS");
        if name.is_empty() {
            return Err(whole());
        }
        let parent = match session.resolve_url(&Target { path, ..url.clone() }).await {
            Err(failure) if !failure.is_fatal() => return Err(whole()),
            parent => parent?,
        };
        parent.dir.map(|dir| (dir, name)).ok_or_else(whole)
    }
}

/// Something that is gone already is as good as removed: the Call may have been carried out twice.
fn gone(done: Result<(), crate::fs::FsError>) -> Result<(), crate::fs::FsError> {
    match done {
        Err(e) if e.is_not_found() => Ok(()),
        done => done,
    }
}

/// Removes all that is in a directory, files side by side, directories one after the other.
async fn remove_tree(removal: &Arc<Removal>, root: NfsDir, shown: &str) {
    enum Step {
        /// Empty this directory.
        Empty(NfsDir, String),
        /// Remove this name of an emptied one.
        Remove(NfsDir, Vec<u8>, String),
    }
    let mut stack = vec![Step::Empty(root, shown.to_owned())];
    while let Some(step) = stack.pop() {
        let (dir, shown) = match step {
            Step::Empty(dir, shown) => (dir, shown),
            Step::Remove(dir, name, shown) => {
                if let Err(e) = gone(dir.remove_dir(&name).await) {
                    removal.failed(&Failure::of(shown, e));
                }
                continue;
            }
        };
        let mut files = JoinSet::new();
        let mut lister = Dir::Nfs(dir.clone()).list();
        loop {
            let page = match lister.next().await {
                Ok(page) if page.is_empty() => break,
                Ok(page) => page,
                Err(e) => {
                    removal.failed(&Failure::of(&shown, e));
                    break;
                }
            };
            for entry in page {
                let path = join(&shown, &entry.name);
                if entry.object.meta.kind == Kind::Dir {
                    match Dir::Nfs(dir.clone()).enter(&entry.name, &entry.object).await {
                        Ok(Dir::Nfs(below)) => {
                            stack.push(Step::Remove(dir.clone(), entry.name, path.clone()));
                            stack.push(Step::Empty(below, path));
                        }
                        Ok(Dir::Local(_)) => {}
                        Err(e) => removal.failed(&Failure::of(path, e)),
                    }
                    continue;
                }
                // The places are never closed.
                let place = Arc::clone(&removal.places).acquire_owned().await;
                let (removal, dir) = (Arc::clone(removal), dir.clone());
                files.spawn(async move {
                    if let Err(e) = gone(Dir::Nfs(dir).remove(&entry.name).await) {
                        removal.failed(&Failure::of(path, e));
                    }
                    drop(place);
                });
                while files.try_join_next().is_some() {}
            }
        }
        while files.join_next().await.is_some() {}
    }
}
