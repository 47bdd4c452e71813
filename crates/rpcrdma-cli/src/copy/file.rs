//! One file, from the first look to the last attribute.
//!
//! # Operation
//! The contents go to `.NAME.rpcrdma-part` beside the destination, in chunks, many of them in flight; the part is then
//! given its mode and times and renamed. Chunks may arrive in any order but *retire* in order, and none is started
//! further than [`WINDOW`] ahead of the oldest one that has not retired. So however a copy is interrupted, all that
//! lies more than a window before the part's end has been written.
//!
//! # Resuming
//! A part can be continued when three things are the same as when it was written: the source file (number, size, time
//! of change), the life of the destination (the boot of this machine, or the write verifier of the server, which
//! changes whenever unstable data may have been lost), and the part itself. The first two are hashed into a *stamp*,
//! and the stamp is stored as the part's time of last access, which no write touches and every read spoils: whoever
//! looked into the part may have changed it. Any other time means to start over.
//!
//! # When it breaks
//! WRITEs are UNSTABLE and a COMMIT follows. If its verifier is not that of the WRITEs, the server restarted in between,
//! and the ranges that it may have lost are copied again.
//!
//! # Limits
//! Files below [`RESUME_FROM`] bytes start over. Two copies of one file to one name at one time are not kept apart.

use std::{
    collections::VecDeque,
    hash::Hasher as _,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rpcrdma::fabric::Region;
use siphasher::sip::SipHasher24;
use tokio::task::JoinHandle;

use super::{BUDGET, Job, UNIT, add};
use crate::{
    failure::Failure,
    fs::{Change, Dir, FsError, Kind, Meta, Object, Sink, Source, Special, Time, Written},
};

/// How far chunks may be ahead of the oldest one that is not done, in bytes.
const WINDOW: u64 = 16 << 20;
/// Files shorter than this are not worth continuing.
const RESUME_FROM: u64 = 2 * WINDOW;
/// Data is committed whenever so much of it has been written, so that a server is not left with all of it at the end.
const COMMIT_EVERY: u64 = 256 << 20;
/// How often a file that changes is copied again.
const ATTEMPTS: u32 = 3;
/// How often data that a restarting server lost is written again.
const REWRITES: u32 = 16;
const SUFFIX: &[u8] = b".rpcrdma-part";
const NAME_MAX: usize = 255;

/// A range that has been written, and what it takes to make it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    end: u64,
    written: Written,
}

/// A chunk on its way.
type Chunk = (Range<u64>, JoinHandle<Result<Written, Side>>);

/// The temporary name for a file.
pub(super) fn part_name(name: &[u8]) -> Vec<u8> {
    let whole = [b".", name, SUFFIX].concat();
    if whole.len() <= NAME_MAX {
        return whole;
    }
    // Too long: the start of the name and a hash of all of it.
    let mut hash = SipHasher24::new();
    hash.write(name);
    let tail = format!("~{:016x}", hash.finish());
    let keep = NAME_MAX - 1 - tail.len() - SUFFIX.len();
    [b".", &name[..keep.min(name.len())], tail.as_bytes(), SUFFIX].concat()
}

/// The time of last access that marks a part as the first part of this file, in this life of the destination.
fn stamp(source: &Meta, life: &[u8]) -> Time {
    let mut hash = SipHasher24::new();
    for n in [source.id.0, source.id.1, source.size, source.mtime.secs as u64, u64::from(source.mtime.nanos)]
    {
        hash.write_u64(n);
    }
    hash.write(life);
    let hash = hash.finish();
    // Positive seconds before 2038, so that any file system can keep them.
    Time { secs: (hash >> 33) as i64, nanos: (hash as u32) % 1_000_000_000 }
}

/// Whether the destination is what a copy of the source would be.
fn unchanged(job: &Job, source: &Meta, there: &Meta) -> bool {
    job.options.resume
        && job.options.preserve
        && there.kind == Kind::File
        && there.size == source.size
        && there.mtime.may_be(source.mtime)
}

/// What has to be set on a copy.
pub(super) fn attributes(job: &Job, source: &Meta) -> Change {
    // Otherwise what a new file would get here.
    let mode = if job.options.preserve { source.mode } else { source.mode & 0o777 & !umask() };
    if job.options.preserve && Time::from(source.mtime.to_nfs()) != source.mtime {
        job.totals.bent_times.store(true, Ordering::Relaxed);
    }
    Change {
        mode: Some(mode),
        owner: job.options.owner.then_some((source.uid, source.gid)),
        times: job.options.preserve.then_some((source.atime, source.mtime)),
        size: None,
    }
}

/// Whether this is the temporary name of some file. Such files are not copied: they would be taken for parts.
pub(super) fn is_part(name: &[u8]) -> bool {
    name.starts_with(b".") && name.ends_with(SUFFIX)
}

/// Copies anything that is not a directory, to a directory that may be `fresh`: made by this copy. `shown` names source
/// and destination in messages.
pub(super) async fn copy_object(
    job: &Arc<Job>,
    from: (&Dir, &[u8], Object),
    to: (&Dir, &[u8]),
    fresh: bool,
    shown: (&str, &str),
) -> Result<(), Failure> {
    let meta = from.2.meta;
    let there = if fresh { None } else { to.0.find(to.1).await.map_err(|e| Failure::of(shown.1, e))? };
    // What is no data is not replaced by data: /dev/null is more than a name.
    if let Some(kind) = there.map(|o| o.meta.kind)
        && (kind == Kind::Dir || kind.is_special() && kind != meta.kind)
    {
        let hint = if kind.is_special() { "; rpcrdma cat writes to one" } else { "" };
        return Err(Failure::of(shown.1, format!("a {} is in the way of {}{hint}", kind.words(), shown.0)));
    }
    match meta.kind {
        Kind::File => copy_file(job, from, (to.0, to.1, there), shown).await,
        Kind::Symlink => copy_symlink(job, from, (to.0, to.1, there), shown).await,
        Kind::Dir => Err(Failure::of(shown.0, "is a directory")),
        _ if job.options.specials => {
            copy_special(job, &meta, (to.0, to.1, there)).await.map_err(|e| Failure::of(shown.1, e))
        }
        kind => Err(Failure::of(shown.0, format!("a {} is not copied without --archive", kind.words()))),
    }
}

async fn copy_symlink(
    job: &Arc<Job>,
    (from, from_name, object): (&Dir, &[u8], Object),
    (to, to_name, there): (&Dir, &[u8], Option<Object>),
    shown: (&str, &str),
) -> Result<(), Failure> {
    let target = from.read_link(from_name, &object).await.map_err(|e| Failure::of(shown.0, e))?;
    let done = async {
        if let Some(there) = there {
            if there.meta.kind == Kind::Symlink && to.read_link(to_name, &there).await? == target {
                add(&job.totals.unchanged, 1);
                return Ok(());
            }
            // A new link beside it, then a rename: the name never stands for nothing.
            let part = part_name(to_name);
            match to.symlink(&part, &target).await {
                Err(e) if e.is_exists() => {
                    to.remove(&part).await?;
                    to.symlink(&part, &target).await?;
                }
                made => made?,
            }
            rename(to, &part, to_name, |o| o.meta.kind == Kind::Symlink).await?;
        } else {
            match to.symlink(to_name, &target).await {
                // A repeated Call whose first copy did the work.
                Err(e) if e.is_exists() => {
                    let found = to.find(to_name).await?;
                    let same = match found {
                        Some(o) if o.meta.kind == Kind::Symlink => to.read_link(to_name, &o).await? == target,
                        _ => false,
                    };
                    if !same {
                        return Err(e);
                    }
                }
                made => made?,
            }
        }
        let change = Change { mode: None, ..attributes(job, &object.meta) };
        if !change.is_empty() {
            to.change(to_name, Kind::Symlink, change).await?;
        }
        add(&job.totals.links, 1);
        Ok::<_, FsError>(())
    };
    done.await.map_err(|e| Failure::of(shown.1, e))
}

async fn copy_special(
    job: &Arc<Job>,
    meta: &Meta,
    (to, name, there): (&Dir, &[u8], Option<Object>),
) -> Result<(), FsError> {
    if there.is_some_and(|there| there.meta.kind == meta.kind && there.meta.rdev == meta.rdev) {
        add(&job.totals.unchanged, 1);
        return Ok(());
    }
    // Beside it, then a rename: what is there stays until there is something in its place.
    let part = part_name(name);
    let special = || Special { kind: meta.kind, mode: meta.mode, rdev: meta.rdev };
    match to.make_special(&part, special()).await {
        Err(e) if e.is_exists() => {
            to.remove(&part).await?;
            to.make_special(&part, special()).await?;
        }
        made => made?,
    }
    let finish = async {
        to.change(&part, meta.kind, attributes(job, meta)).await?;
        rename(to, &part, name, |o| o.meta.kind == meta.kind).await
    };
    if let Err(e) = finish.await {
        let _ = to.remove(&part).await;
        return Err(e);
    }
    add(&job.totals.files, 1);
    Ok(())
}

async fn copy_file(
    job: &Arc<Job>,
    (from, from_name, mut object): (&Dir, &[u8], Object),
    (to, to_name, there): (&Dir, &[u8], Option<Object>),
    shown: (&str, &str),
) -> Result<(), Failure> {
    if let Some(there) = there.filter(|o| unchanged(job, &object.meta, &o.meta)) {
        let mut fix = attributes(job, &object.meta);
        fix.times = None;
        fix.mode = fix.mode.filter(|mode| *mode != there.meta.mode);
        fix.owner = fix.owner.filter(|owner| *owner != (there.meta.uid, there.meta.gid));
        if !fix.is_empty() {
            to.change(to_name, Kind::File, fix).await.map_err(|e| Failure::of(shown.1, e))?;
        }
        add(&job.totals.unchanged, 1);
        add(&job.totals.skipped_bytes, object.meta.size);
        return Ok(());
    }
    let source = from.open(from_name, &object).await.map_err(|e| Failure::of(shown.0, e))?;
    let part = part_name(to_name);
    for _ in 0..ATTEMPTS {
        let meta = object.meta;
        let copy =
            Copy { job, source: &source, meta, chunk: from.io_size().min(to.io_size()).max(512), shown };
        // A short part is not continued, so it only takes room.
        let give_up = async |failure: Failure| {
            if meta.size < RESUME_FROM && !failure.is_fatal() {
                let _ = to.remove(&part).await;
            }
            Err(failure)
        };
        let sink = match copy.contents(to, &part).await {
            Ok(sink) => sink,
            Err(failure) => return give_up(failure).await,
        };
        let now = source.meta().await.map_err(|e| Failure::of(shown.0, e))?;
        if now.size != meta.size || now.mtime != meta.mtime {
            object.meta = now;
            continue;
        }
        let finish = async {
            // A hole at the end has not been written.
            let size = copy.sparse().then_some(meta.size);
            sink.change(Change { size, ..attributes(job, &meta) }).await?;
            let ours = |o: &Object| o.meta.kind == Kind::File && o.meta.size == meta.size;
            rename(to, &part, to_name, ours).await
        };
        if let Err(e) = finish.await {
            return give_up(Failure::of(shown.1, e)).await;
        }
        add(&job.totals.files, 1);
        return Ok(());
    }
    // What was written is a mixture, so it must not be continued.
    let _ = to.remove(&part).await;
    Err(Failure::of(shown.0, format!("it changed while it was copied, {ATTEMPTS} times in a row")))
}

/// The mode bits that new files of this process do not get.
fn umask() -> u32 {
    use std::sync::OnceLock;
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("Umask:"));
        line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o022)
    })
}

/// Renames the part. When a server has forgotten that it carried out an earlier copy of the same Call, it says that
/// there is no such name; then what has the new name must be `ours`.
async fn rename(dir: &Dir, part: &[u8], name: &[u8], ours: impl Fn(&Object) -> bool) -> Result<(), FsError> {
    match dir.rename(part, name).await {
        Err(e) if e.is_not_found() && dir.find(name).await?.is_some_and(|o| ours(&o)) => Ok(()),
        done => done,
    }
}

/// The copying of one file's contents.
struct Copy<'a> {
    job: &'a Arc<Job>,
    source: &'a Source,
    meta: Meta,
    chunk: u32,
    shown: (&'a str, &'a str),
}

/// A failure on the source's side or on the destination's.
enum Side {
    From(FsError),
    To(FsError),
}

impl Copy<'_> {
    fn failure(&self, side: Side) -> Failure {
        match side {
            Side::From(e) => Failure::of(self.shown.0, e),
            Side::To(e) => Failure::of(self.shown.1, e),
        }
    }

    /// Writes all contents to the part, durable where that is asked of a server.
    async fn contents(&self, to: &Dir, part: &[u8]) -> Result<Sink, Failure> {
        let open = async {
            if self.meta.size >= RESUME_FROM {
                return self.open_part(to, part).await;
            }
            Ok((to.create(part).await?, Extent { start: 0, end: 0, written: Written::Done }))
        };
        let (sink, there) = open.await.map_err(|e| self.failure(Side::To(e)))?;
        add(&self.job.totals.skipped_bytes, there.end);
        self.write_all(&sink, there).await.map_err(|side| self.failure(side))?;
        Ok(sink)
    }

    /// Opens the part to be continued, if there is one, or makes it. Returns what is there already.
    async fn open_part(&self, to: &Dir, part: &[u8]) -> Result<(Sink, Extent), FsError> {
        let there = if self.job.options.resume { to.find(part).await? } else { None };
        if let Some(there) = there.filter(|o| o.meta.kind == Kind::File && o.meta.size <= self.meta.size)
            && let Ok(sink) = to.open_to_write(part, &there).await
        {
            let (life, written) = life(to, &sink).await?;
            if there.meta.atime == stamp(&self.meta, &life) {
                let trusted = there.meta.size.saturating_sub(WINDOW);
                let end = trusted - trusted % u64::from(self.chunk);
                return Ok((sink, Extent { start: 0, end, written }));
            }
        }
        let sink = to.create(part).await?;
        let stamp = stamp(&self.meta, &life(to, &sink).await?.0);
        // The time of change is of no interest, but both are set together.
        sink.change(Change { times: Some((stamp, stamp)), ..Change::default() }).await?;
        Ok((sink, Extent { start: 0, end: 0, written: Written::Done }))
    }

    /// Writes what is not there yet, and makes all of it durable on a server.
    async fn write_all(&self, sink: &Sink, there: Extent) -> Result<(), Side> {
        let size = self.meta.size;
        // A file of one chunk is made durable by its one WRITE.
        let durable = size <= u64::from(self.chunk);
        let mut extents = self.write_range(sink, there.end..size, durable).await?;
        if there.end > 0 {
            extents.insert(0, there);
        }
        for _ in 0..REWRITES {
            extents.retain(|e| e.written != Written::Done);
            if extents.is_empty() {
                return Ok(());
            }
            let verifier = sink.commit(0, 0).await.map_err(Side::To)?;
            for lost in std::mem::take(&mut extents) {
                if Some(lost.written) != verifier.map(Written::Until) {
                    tracing::info!(
                        "the server restarted: writing bytes {} to {} again",
                        lost.start,
                        lost.end
                    );
                    extents.extend(self.write_range(sink, lost.start..lost.end, false).await?);
                }
            }
        }
        let error = std::io::Error::other("the server keeps losing what is written to it");
        Err(Side::To(error.into()))
    }

    /// Whether the source has holes.
    fn sparse(&self) -> bool {
        self.meta.used < self.meta.size
    }

    /// Copies a range, many chunks at a time, and says what has to be committed.
    async fn write_range(&self, sink: &Sink, range: Range<u64>, durable: bool) -> Result<Vec<Extent>, Side> {
        let mut pending: VecDeque<Chunk> = VecDeque::new();
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = range.start;
        let mut committed = range.start;
        let outcome = loop {
            let oldest = pending.front().map_or(at, |(r, _)| r.start);
            let len = (range.end - at).min(u64::from(self.chunk)) as u32;
            if at < range.end && at + u64::from(len) - oldest <= WINDOW {
                pending.push_back((at..at + u64::from(len), self.start_chunk(sink, at, len, durable).await));
                at += u64::from(len);
                continue;
            }
            let Some((done, handle)) = pending.pop_front() else { break Ok(()) };
            let written = match handle.await {
                Ok(Ok(written)) => written,
                Ok(Err(side)) => break Err(side),
                Err(e) => break Err(Side::From(std::io::Error::other(e).into())),
            };
            match extents.last_mut() {
                Some(last) if last.written == written && last.end == done.start => last.end = done.end,
                _ => extents.push(Extent { start: done.start, end: done.end, written }),
            }
            if done.end - committed >= COMMIT_EVERY {
                match self.commit_some(sink, committed..done.end, &mut extents).await {
                    Ok(()) => committed = done.end,
                    Err(e) => break Err(Side::To(e)),
                }
            }
        };
        for (_, handle) in &pending {
            handle.abort();
        }
        outcome.map(|()| extents)
    }

    /// Commits a range in the middle of a file; what is durable then needs no more.
    async fn commit_some(
        &self,
        sink: &Sink,
        range: Range<u64>,
        extents: &mut [Extent],
    ) -> Result<(), FsError> {
        let len = u32::try_from(range.end - range.start).unwrap_or(0);
        let Some(verifier) = sink.commit(range.start, len).await? else { return Ok(()) };
        for e in extents.iter_mut().filter(|e| e.end <= range.end && e.written == Written::Until(verifier)) {
            e.written = Written::Done;
        }
        Ok(())
    }

    /// Starts a chunk on its way, when there is memory for it.
    async fn start_chunk(
        &self,
        sink: &Sink,
        at: u64,
        len: u32,
        durable: bool,
    ) -> JoinHandle<Result<Written, Side>> {
        let units = (len as usize).div_ceil(UNIT).clamp(1, BUDGET / UNIT) as u32;
        // The budget is never closed, so this is always a permit.
        let paid = Arc::clone(&self.job.budget).acquire_many_owned(units).await;
        let job = Arc::clone(self.job);
        let (source, sink) = (self.source.clone(), sink.clone());
        let skip_zeros = self.sparse();
        tokio::spawn(async move {
            let buf = job.pools.take(len as usize).unwrap_or_else(|| Region::alloc(len as usize));
            let (n, buf) = source.read(at, len, buf).await.map_err(Side::From)?;
            // A file that became shorter is found out when it is looked at again.
            let hole = skip_zeros && buf.get(..n as usize).is_some_and(|data| data.iter().all(|b| *b == 0));
            let written = if n == 0 || hole {
                Written::Done
            } else {
                sink.write(at, n, buf, durable).await.map_err(Side::To)?.0
            };
            add(&job.totals.bytes, u64::from(n));
            drop(paid);
            Ok(written)
        })
    }
}

/// What the destination's unstable data lives by, and how durable data is that was written in that life.
async fn life(to: &Dir, sink: &Sink) -> Result<(Vec<u8>, Written), FsError> {
    match (to.life(), sink.commit(0, 0).await?) {
        (_, Some(verifier)) => Ok((verifier.0.to_vec(), Written::Until(verifier))),
        (life, None) => Ok((life.unwrap_or_default().to_vec(), Written::Done)),
    }
}

/// Adds an object that is not a directory to what there is to copy.
pub(super) fn count_file(expected: &(AtomicU64, AtomicU64), meta: &Meta) {
    add(&expected.0, 1);
    if meta.kind == Kind::File {
        add(&expected.1, meta.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            kind: Kind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 1 << 30,
            used: 1 << 30,
            rdev: (0, 0),
            id: (1, 2),
            atime: Time::default(),
            mtime: Time { secs: 1_700_000_000, nanos: 5 },
        }
    }

    #[test]
    fn parts_have_names_that_fit_and_differ() {
        assert_eq!(part_name(b"x"), b".x.rpcrdma-part");
        let long = [b'a'; 255];
        let mut other = long;
        other[254] = b'b';
        assert_eq!(part_name(&long).len(), 255);
        assert_ne!(part_name(&long), part_name(&other));
        assert_eq!(part_name(&[b'a'; 241]).len(), 255);
        assert_eq!(part_name(&[b'a'; 242]).len(), 255);
        assert!(is_part(&part_name(b"x")) && is_part(&part_name(&long)));
        assert!(!is_part(b"x") && !is_part(b"x.rpcrdma-part"));
    }

    #[test]
    fn a_stamp_knows_the_file_and_the_life_of_the_destination() {
        let m = meta();
        let s = stamp(&m, b"life");
        assert_eq!(s, stamp(&m, b"life"));
        assert_ne!(s, stamp(&m, b"another"));
        assert_ne!(s, stamp(&Meta { size: m.size + 1, ..m }, b"life"));
        assert_ne!(s, stamp(&Meta { id: (1, 3), ..m }, b"life"));
        assert_ne!(s, stamp(&Meta { mtime: Time { secs: m.mtime.secs, nanos: 6 }, ..m }, b"life"));
        assert!(s.secs >= 0 && s.secs < 1 << 31 && s.nanos < 1_000_000_000);
        assert_eq!(Time::from(s.to_nfs()), s, "the protocol can carry it");
    }
}
