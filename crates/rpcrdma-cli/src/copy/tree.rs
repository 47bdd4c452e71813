//! Directories: who lists them, in what order, and when they are done.
//!
//! # Operation
//! Directories that are still to be listed lie on a stack, so a tree is walked depth first and the stack stays as small
//! as the tree is narrow. Up to [`WALKERS`] of them are listed at a time. A listing that meets a file waits for a
//! free place and leaves the file to a task; that is what keeps a directory of a million names from becoming a million
//! tasks.
//!
//! A [`Node`] counts what is unfinished in a directory: its own listing, its files, its directories. Whoever finishes
//! the last of it sets the directory's mode and times, and then has finished one thing in the parent.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::task::JoinSet;

use super::{Job, Top, add, file, get};
use crate::{
    failure::Failure,
    fs::{Change, Dir, Entry, FsError, Kind, Meta, join},
};

/// Directories listed at one time.
const WALKERS: usize = 8;

/// The first name of a file that has several, once it has been copied.
pub(super) type Names = Arc<tokio::sync::Mutex<Option<FirstName>>>;

/// A name at the destination.
#[derive(Clone)]
pub(super) struct FirstName {
    dir: Dir,
    name: Vec<u8>,
}

/// A directory that is not finished.
struct Node {
    parent: Option<Arc<Node>>,
    to: Dir,
    /// It was made just now, so nothing is in it that we did not put there.
    fresh: bool,
    change: Change,
    shown: String,
    unfinished: AtomicUsize,
}

/// A directory to be listed.
struct Todo {
    from: Dir,
    node: Arc<Node>,
    root: Arc<Root>,
    /// What to call the source in messages.
    shown: String,
}

/// The directory at the top of the copy, which must not be copied into itself.
struct Root {
    to: Dir,
    number: Option<u64>,
}

/// Turns a task that does not come to its end into a failure, so that no file is missing without a word.
struct Accounted {
    job: Arc<Job>,
    done: bool,
}

impl Drop for Accounted {
    fn drop(&mut self) {
        if !self.done {
            self.job.failed(&Failure::new("a file was not copied because of an internal error"));
        }
    }
}

impl Node {
    fn begin_top(to: Dir, change: Change, shown: String, fresh: bool) -> Arc<Self> {
        Arc::new(Self { parent: None, to, fresh, change, shown, unfinished: AtomicUsize::new(1) })
    }

    /// A directory in this one, which is then not finished before it.
    fn below(self: &Arc<Self>, to: Dir, change: Change, shown: String, fresh: bool) -> Arc<Self> {
        self.begin();
        let parent = Some(Arc::clone(self));
        Arc::new(Self { parent, to, fresh, change, shown, unfinished: AtomicUsize::new(1) })
    }

    fn begin(&self) {
        self.unfinished.fetch_add(1, Ordering::Relaxed);
    }
}

/// One thing in a directory is finished.
async fn finished(job: &Job, node: Arc<Node>) {
    let mut next = Some(node);
    while let Some(node) = next {
        // The last one has to see all that the others did.
        if node.unfinished.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if !node.change.is_empty()
            && !job.is_aborted()
            && let Err(e) = node.to.change_self(node.change).await
        {
            job.failed(&Failure::of(&node.shown, e));
        }
        next = node.parent.clone();
    }
}

/// Copies all that is in a directory, then waits until it is done.
pub(super) async fn run(job: &Arc<Job>, from: (Dir, String), to: Top, meta: Meta) {
    let Top { dir, shown, fresh, marker } = to;
    let failures = get(&job.totals.failures);
    if fresh && let Some(marker) = &marker {
        // If it cannot be made, what has to be copied cannot either, and that is reported.
        let _ = dir.create(marker).await;
    }
    let number = dir.meta().await.ok().map(|m| m.id.1);
    if !fresh {
        open_up(&dir).await;
    }
    let root = Arc::new(Root { to: dir.clone(), number });
    let node = Node::begin_top(dir.clone(), file::attributes(job, &meta), shown, fresh);
    // The directory is not finished as long as the marker is in it.
    node.begin();
    let mut stack = vec![Todo { from: from.0, node: Arc::clone(&node), root, shown: from.1 }];
    let mut walkers: JoinSet<Vec<Todo>> = JoinSet::new();
    loop {
        while walkers.len() < WALKERS
            && let Some(todo) = stack.pop()
        {
            walkers.spawn(walk(Arc::clone(job), todo));
        }
        match walkers.join_next().await {
            Some(Ok(found)) => stack.extend(found),
            Some(Err(e)) => job.failed(&Failure::of("a directory could not be listed", e.to_string())),
            None => break,
        }
    }
    // Every place is free again when the last file is done.
    let _ = job.places.acquire_many(job.options.jobs.max(1) as u32).await;
    if let Some(marker) = marker.filter(|_| get(&job.totals.failures) == failures) {
        match dir.remove(&marker).await {
            Err(e) if !e.is_not_found() => job.failed(&Failure::of(&node.shown, e)),
            _ => {}
        }
    }
    finished(job, node).await;
}

/// Lists one directory; returns the directories in it.
async fn walk(job: Arc<Job>, todo: Todo) -> Vec<Todo> {
    let mut found = Vec::new();
    if let Err(failure) = list(&job, &todo, &mut found).await {
        job.failed(&failure);
    }
    finished(&job, todo.node).await;
    found
}

async fn list(job: &Arc<Job>, todo: &Todo, found: &mut Vec<Todo>) -> Result<(), Failure> {
    let mut lister = todo.from.list();
    loop {
        let page = lister.next().await.map_err(|e| Failure::of(&todo.shown, e))?;
        if page.is_empty() || job.is_aborted() {
            return Ok(());
        }
        for entry in page {
            if job.options.exclude.contains(&entry.name) {
                continue;
            }
            let shown = (join(&todo.shown, &entry.name), join(&todo.node.shown, &entry.name));
            if entry.object.meta.kind == Kind::Dir {
                match enter(job, todo, &entry, shown).await {
                    Ok(below) => found.push(below),
                    Err(failure) => job.failed(&failure),
                }
                continue;
            }
            // The places are never closed.
            let place = Arc::clone(&job.places).acquire_owned().await;
            let job = Arc::clone(job);
            let (from, node) = (todo.from.clone(), Arc::clone(&todo.node));
            node.begin();
            tokio::spawn(async move {
                let mut accounted = Accounted { job: Arc::clone(&job), done: false };
                if !job.is_aborted()
                    && let Err(failure) = one(&job, &from, &entry, &node, (&shown.0, &shown.1)).await
                {
                    job.failed(&failure);
                }
                finished(&job, node).await;
                accounted.done = true;
                drop(place);
            });
        }
    }
}

/// Goes down into a directory, which is made at the destination if it is not there.
async fn enter(job: &Job, todo: &Todo, entry: &Entry, shown: (String, String)) -> Result<Todo, Failure> {
    let from = todo.from.enter(&entry.name, &entry.object).await.map_err(|e| Failure::of(&shown.0, e))?;
    if Some(entry.object.meta.id.1) == todo.root.number && same(&from, &todo.root.to).await {
        return Err(Failure::of(&shown.0, "left out, because the copy is being made here"));
    }
    let (to, fresh) = todo.node.to.make_dir(&entry.name).await.map_err(|e| Failure::of(&shown.1, e))?;
    if !fresh {
        open_up(&to).await;
    }
    add(&job.totals.dirs, 1);
    let node = todo.node.below(to, file::attributes(job, &entry.object.meta), shown.1, fresh);
    Ok(Todo { from, node, root: Arc::clone(&todo.root), shown: shown.0 })
}

/// Lets the owner write to a directory that an earlier copy has finished. It gets its mode again in the end.
async fn open_up(to: &Dir) {
    if let Ok(meta) = to.meta().await
        && meta.mode & 0o700 != 0o700
    {
        // If it is not ours, whatever has to be written there says so.
        let _ = to.change_self(Change { mode: Some(meta.mode | 0o700), ..Change::default() }).await;
    }
}

/// Whether two directories are one, seen from two ends: a name made in one shows in the other.
async fn same(a: &Dir, b: &Dir) -> bool {
    let probe = format!(".{:016x}.rpcrdma-probe", RandomState::new().hash_one(0));
    let probe = probe.as_bytes();
    if b.create(probe).await.is_err() {
        return false;
    }
    let seen = a.find(probe).await.is_ok_and(|found| found.is_some());
    // It is empty and ours; one that cannot be removed does no harm.
    let _ = b.remove(probe).await;
    seen
}

async fn one(
    job: &Arc<Job>,
    from: &Dir,
    entry: &Entry,
    node: &Node,
    shown: (&str, &str),
) -> Result<(), Failure> {
    let (meta, to) = (&entry.object.meta, &node.to);
    if super::is_marker(&entry.name) {
        return Ok(());
    }
    if file::is_part(&entry.name) {
        return Err(Failure::of(shown.0, "left out, because it is the part of a copy that was interrupted"));
    }
    if !job.options.hard_links || meta.nlink < 2 {
        return file::copy_object(
            job,
            (from, &entry.name, entry.object),
            (to, &entry.name),
            node.fresh,
            shown,
        )
        .await;
    }
    // Further names wait for the first one to be copied.
    let names = job.names(meta.id);
    let mut first = names.lock().await;
    if let Some(first) = &*first
        && link(first, to, &entry.name).await.map_err(|e| Failure::of(shown.1, e))?
    {
        add(&job.totals.links, 1);
        return Ok(());
    }
    file::copy_object(job, (from, &entry.name, entry.object), (to, &entry.name), node.fresh, shown).await?;
    first.get_or_insert_with(|| FirstName { dir: to.clone(), name: entry.name.clone() });
    Ok(())
}

/// Makes a further name of a file that has been copied. `false` if the two ends differ.
async fn link(first: &FirstName, to: &Dir, name: &[u8]) -> Result<bool, FsError> {
    match to.find(name).await? {
        Some(there) if there.meta.kind == Kind::Dir => return Ok(false),
        Some(_) => to.remove(name).await?,
        None => {}
    }
    first.dir.link(&first.name, to, name).await
}

/// Counts files and bytes below some directories.
pub(super) async fn count(job: &Arc<Job>, dirs: Vec<Dir>) {
    let mut stack = dirs;
    while let Some(dir) = stack.pop() {
        let mut lister = dir.list();
        // What cannot be listed is reported by the copy itself.
        while let Ok(page) = lister.next().await
            && !page.is_empty()
            && !job.is_aborted()
        {
            for entry in page {
                if job.options.exclude.contains(&entry.name) {
                    continue;
                }
                if entry.object.meta.kind != Kind::Dir {
                    file::count_file(&job.totals.expected, &entry.object.meta);
                } else if let Ok(below) = dir.enter(&entry.name, &entry.object).await {
                    stack.push(below);
                }
            }
        }
    }
}
