//! Write-behind: what programs have written, on its way to the server's disk.
//!
//! # Operation
//! A write is copied into the file's *tail*, which grows as long as writes continue it, and the program goes on at once. A
//! full tail, or one that something else has to wait for, leaves as an UNSTABLE WRITE; many are under way at a time. What
//! the server has acknowledged stays here until a COMMIT has made it durable: if the verifier of the COMMIT is not
//! that of the WRITE, the server has restarted in between, and the data is written again. A file that is closed or
//! synchronised with nothing but a tail needs one FILE_SYNC WRITE and no COMMIT.
//!
//! # Order
//! A WRITE does not leave while another one for some of its bytes is under way, because servers execute Calls in any
//! order; until then, new data for them is kept aside. When data has to be written again, everything of the file is, one
//! WRITE after the other in the order of the program, and nothing new leaves meanwhile.
//!
//! # Ownership
//! Data is in exactly one [`Chunk`] from the moment the program's write returns until it is durable or its failure has
//! been recorded. WRITEs and COMMITs are tasks of their own: a program that waits for them can be killed without harm to
//! the data.
//!
//! # When it breaks
//! A WRITE or COMMIT that fails for good (no space, soft mount, stale handle) is recorded; each open file learns of it
//! once, from its next write, fsync or close. Its data is dropped.
//!
//! # Where the file ends
//! For programs that append, the kernel says where it thinks that the file ends, and does not ask for that. So it is kept
//! here: what the server has said last, unless it may be from before a write of ours, and what we have written since.
//!
//! # Limits
//! Those of [`chunk`](crate::chunk): when there is too much, everything is sent and committed, and writers wait. A file with
//! [`UNCOMMITTED_MAX`] bytes is committed on the side; every file is, every [`FLUSH_PERIOD`].

use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rpcrdma::{
    error::Error,
    nfs::v3::{Attributes, NfsTime, Stable, WriteVerifier},
};
use tokio::{runtime::Handle, sync::Notify};

use crate::{
    chunk::{Chunk, Store},
    errno_of,
    inode::Inode,
    user::User,
};

/// Bytes of one file that are acknowledged and not committed.
const UNCOMMITTED_MAX: u64 = 16 << 20;
/// How often everything that lies around is sent and committed.
pub(crate) const FLUSH_PERIOD: Duration = Duration::from_secs(5);

/// The writes of one file.
#[derive(Default)]
pub(crate) struct WriteBack {
    state: Mutex<State>,
    /// Something has left or come back.
    changed: Notify,
}

#[derive(Default)]
struct State {
    tail: Option<Extent>,
    flights: Vec<Flight>,
    /// [`Writer::epoch`] when a WRITE was answered last.
    answered: u64,
    /// Acknowledged, not durable.
    unstable: Vec<Extent>,
    unstable_bytes: u64,
    /// Where the last full tail ended.
    full_to: Option<u64>,
    /// Where the file ends, and the ctime of the server's word for it.
    end: Option<(u64, NfsTime)>,
    committing: bool,
    /// Everything is being written again; nothing may leave meanwhile.
    rewriting: bool,
    next: u64,
    failures: u64,
    errno: i32,
    /// In the list of files with something to do.
    listed: bool,
}

/// A WRITE under way.
struct Flight {
    seq: u64,
    range: Range<u64>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Consecutive bytes of a file.
struct Extent {
    seq: u64,
    offset: u64,
    len: usize,
    chunk: Chunk,
    user: Arc<User>,
    /// Of the server that has acknowledged it; `None` if there were several.
    verifier: Option<WriteVerifier>,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + self.len as u64
    }

    fn range(&self) -> Range<u64> {
        self.offset..self.end()
    }
}

/// Why a program has to wait after a write.
pub(crate) struct Delay {
    /// What has not been taken over, because WRITEs of the same bytes are under way.
    rest: Option<Extent>,
}

/// What the write-behind of all files of a mount has in common.
pub(crate) struct Writer {
    store: Arc<Store>,
    wsize: usize,
    runtime: Handle,
    /// Files with something to do.
    listed: Mutex<Vec<Arc<Inode>>>,
    /// Counts changes of ours.
    epoch: AtomicU64,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics between the writes of a guarded section.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WriteBack {
    /// Whether the server has not seen everything yet.
    pub(crate) fn is_pending(&self) -> bool {
        lock(&self.state).is_pending()
    }

    /// Whether attributes that were asked for at this [`Writer::epoch`] may be from before a write of ours.
    pub(crate) fn may_have_passed(&self, epoch: u64) -> bool {
        lock(&self.state).may_have_passed(epoch)
    }

    /// Whether there is something that is not durable yet.
    pub(crate) fn is_at_work(&self) -> bool {
        lock(&self.state).is_at_work()
    }

    /// The server has just said how long the file is; it was asked at this [`Writer::epoch`].
    pub(crate) fn ends(&self, attributes: &Attributes, epoch: u64) {
        let mut state = lock(&self.state);
        // A server that has restarted may have forgotten what will be written to it again.
        let forgotten = state.is_at_work() && state.end.is_some_and(|(end, _)| attributes.size < end);
        // Replies may overtake each other.
        if !state.may_have_passed(epoch)
            && !forgotten
            && state.end.is_none_or(|(_, ctime)| ctime <= attributes.ctime)
        {
            state.end = Some((attributes.size, attributes.ctime));
        }
    }

    /// Where the file ends, if it is known better than from the kernel.
    pub(crate) fn end(&self) -> Option<u64> {
        lock(&self.state).end.map(|(size, _)| size)
    }

    /// How many failures there were. A file that is opened has not to answer for those.
    pub(crate) fn failures(&self) -> u64 {
        lock(&self.state).failures
    }

    /// The errno of a failure that an open file has not heard of, and now has.
    pub(crate) fn failure_since(&self, heard: &AtomicU64) -> Option<i32> {
        let state = lock(&self.state);
        (heard.swap(state.failures, Ordering::Relaxed) < state.failures).then_some(state.errno)
    }

    /// The file was cut, and left like this: what lies beyond must not be written again.
    pub(crate) fn cut(&self, size: u64, after: Option<&Attributes>) {
        let mut state = lock(&self.state);
        state.end = after.map(|after| (size, after.ctime));
        state.unstable.retain_mut(|extent| {
            if extent.end() > size {
                extent.len = size.saturating_sub(extent.offset) as usize;
            }
            extent.len > 0
        });
        state.unstable_bytes = state.unstable.iter().map(|e| e.len as u64).sum();
    }
}

impl Writer {
    /// Writes of at most `wsize` bytes. Tasks run on the runtime.
    pub(crate) fn new(wsize: usize, runtime: Handle) -> Arc<Self> {
        let writer = Arc::new(Self {
            store: Store::new(),
            wsize,
            runtime,
            listed: Mutex::default(),
            epoch: AtomicU64::new(0),
        });
        writer.runtime.spawn(flush_now_and_then(Arc::downgrade(&writer)));
        writer
    }

    /// To be taken before a Call whose attributes may be from before a write of ours; see
    /// [`WriteBack::may_have_passed`].
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Something was changed: what was asked for before may be from before.
    pub(crate) fn advance(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Takes over data. What is returned is to be [waited for](Self::wait) before the program goes on.
    pub(crate) fn accept(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        user: &Arc<User>,
        offset: u64,
        data: &[u8],
    ) -> Option<Delay> {
        let mut state = lock(&inode.writes.state);
        self.list(inode, &mut state);
        let mut done = 0;
        while done < data.len() {
            let (from, data) = (offset + done as u64, &data[done..]);
            let place = state.tail.as_ref().and_then(|tail| {
                let at = usize::try_from(from.checked_sub(tail.offset)?).ok()?;
                (at <= tail.len && at < self.wsize && Arc::ptr_eq(&tail.user, user)).then_some(at)
            });
            if place.is_none() {
                self.seal(inode, &mut state, Stable::Unstable);
            }
            let at = place.unwrap_or(0);
            let len = data.len().min(self.wsize - at);
            if state.is_busy(&(from..from + len as u64)) {
                return Some(Delay { rest: Some(self.extent(user, from, data, data.len())) });
            }
            match &mut state.tail {
                Some(tail) => self.put(tail, at, &data[..len]),
                None => {
                    // Where the file was written in one go so far, that will go on.
                    let size = if state.full_to == Some(from) { self.wsize } else { len };
                    state.tail = Some(self.extent(user, from, &data[..len], size));
                }
            }
            state.reaches(from + len as u64);
            self.seal_full(inode, &mut state);
            done += len;
        }
        self.store.is_full().then_some(Delay { rest: None })
    }

    /// Waits until a program may go on.
    pub(crate) async fn wait(self: &Arc<Self>, inode: &Arc<Inode>, delay: Delay) {
        let mut rest = delay.rest;
        self.until(inode, |state| {
            let Some(range) = rest.as_ref().map(Extent::range) else { return true };
            self.seal(inode, state, Stable::Unstable);
            if state.is_busy(&range) {
                return false;
            }
            self.list(inode, state);
            state.reaches(range.end);
            state.tail = rest.take();
            self.seal_full(inode, state);
            true
        })
        .await;
        self.store.room(|| self.press()).await;
    }

    fn list(&self, inode: &Arc<Inode>, state: &mut State) {
        if !state.listed {
            state.listed = true;
            lock(&self.listed).push(Arc::clone(inode));
        }
    }

    /// Data in a chunk of this size.
    fn extent(&self, user: &Arc<User>, offset: u64, data: &[u8], size: usize) -> Extent {
        let mut chunk = self.store.chunk(size);
        chunk.bytes()[..data.len()].copy_from_slice(data);
        Extent { seq: 0, offset, len: data.len(), chunk, user: Arc::clone(user), verifier: None }
    }

    /// Puts data into the tail, which it continues.
    fn put(&self, tail: &mut Extent, at: usize, data: &[u8]) {
        let end = at + data.len();
        if end > tail.chunk.bytes().len() {
            let mut larger = self.store.chunk(end);
            larger.bytes()[..tail.len].copy_from_slice(&tail.chunk.bytes()[..tail.len]);
            tail.chunk = larger;
        }
        tail.chunk.bytes()[at..end].copy_from_slice(data);
        tail.len = tail.len.max(end);
    }

    fn seal_full(self: &Arc<Self>, inode: &Arc<Inode>, state: &mut State) {
        if let Some(tail) = state.tail.as_ref().filter(|tail| tail.len >= self.wsize) {
            state.full_to = Some(tail.end());
            self.seal(inode, state, Stable::Unstable);
        }
    }

    /// Sends the tail. Not while something is written again, which would come after it.
    fn seal(self: &Arc<Self>, inode: &Arc<Inode>, state: &mut State, stable: Stable) {
        if state.rewriting {
            return;
        }
        let Some(mut extent) = state.tail.take() else { return };
        extent.seq = state.next;
        state.next += 1;
        state.flights.push(Flight { seq: extent.seq, range: extent.range() });
        self.runtime.spawn(Arc::clone(self).carry(Arc::clone(inode), extent, stable));
    }

    /// One WRITE, to its end.
    async fn carry(self: Arc<Self>, inode: Arc<Inode>, mut extent: Extent, stable: Stable) {
        let done = self.transmit(&inode, &mut extent, stable).await;
        let epoch = self.advance();
        let mut state = lock(&inode.writes.state);
        state.answered = state.answered.max(epoch);
        state.flights.retain(|f| f.seq != extent.seq);
        match done {
            Ok(Stable::FileSync) => {}
            Ok(_) => {
                state.unstable_bytes += extent.len as u64;
                state.unstable.push(extent);
                if self.store.is_waited_for() || state.unstable_bytes > UNCOMMITTED_MAX {
                    self.start_commit(&inode, &mut state);
                }
            }
            Err(e) => state.fail(&inode, &e),
        }
        drop(state);
        inode.writes.changed.notify_waiters();
    }

    /// Writes an extent, in several steps if the server takes less at a time. Says how durable it is.
    async fn transmit(&self, inode: &Inode, extent: &mut Extent, stable: Stable) -> Result<Stable, Error> {
        let mut least = Stable::FileSync;
        let mut first = true;
        let mut done = 0;
        while done < extent.len {
            let lost = || Error::BadReply("the mount was closed".to_owned());
            let mut front = extent.chunk.region.take().ok_or_else(lost)?;
            let rest = front.split_off(done);
            let mount = &extent.user.mount;
            let edit = inode.begin_edit();
            let len = (extent.len - done).min(self.wsize) as u32;
            let (result, rest) =
                mount.write(inode.handle, extent.offset + done as u64, len, rest, stable).await;
            // The front is not reachable for anybody, so the halves are neighbours still.
            front.unsplit(rest.ok_or_else(lost)?).map_err(|_| lost())?;
            extent.chunk.region = Some(front);
            let ok = result?;
            edit.answered(&ok.wcc);
            least = least.min(ok.committed);
            extent.verifier =
                if first { Some(ok.verifier) } else { extent.verifier.filter(|v| *v == ok.verifier) };
            first = false;
            done += ok.count as usize;
        }
        Ok(least)
    }

    fn start_commit(self: &Arc<Self>, inode: &Arc<Inode>, state: &mut State) {
        if state.committing || state.rewriting || state.unstable.is_empty() {
            return;
        }
        state.committing = true;
        state.unstable_bytes = 0;
        let batch = std::mem::take(&mut state.unstable);
        self.runtime.spawn(Arc::clone(self).commit(Arc::clone(inode), batch));
    }

    /// Makes a batch of acknowledged extents durable.
    async fn commit(self: Arc<Self>, inode: Arc<Inode>, batch: Vec<Extent>) {
        let Some(first) = batch.first() else { return };
        let done = first.user.mount.commit(inode.handle, 0, 0).await;
        match done {
            Ok(verifier) if batch.iter().all(|e| e.verifier == Some(verifier)) => {}
            Ok(_) => self.write_again(&inode, batch).await,
            Err(e) => lock(&inode.writes.state).fail(&inode, &e),
        }
        lock(&inode.writes.state).committing = false;
        inode.writes.changed.notify_waiters();
        // There may be more to commit.
        self.store.look_again();
    }

    /// The server has forgotten what it acknowledged: writes it again, and all that came after it.
    async fn write_again(self: &Arc<Self>, inode: &Arc<Inode>, mut batch: Vec<Extent>) {
        lock(&inode.writes.state).rewriting = true;
        loop {
            let changed = inode.writes.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = lock(&inode.writes.state);
                if state.flights.is_empty() {
                    batch.append(&mut state.unstable);
                    state.unstable_bytes = 0;
                    break;
                }
            }
            changed.await;
        }
        batch.sort_by_key(|extent| extent.seq);
        tracing::info!(file = %inode.handle, extents = batch.len(), "the server has restarted; writing again");
        for mut extent in batch {
            if let Err(e) = self.transmit(inode, &mut extent, Stable::FileSync).await {
                lock(&inode.writes.state).fail(inode, &e);
            }
        }
        lock(&inode.writes.state).rewriting = false;
    }

    /// Waits until the server has seen everything that was written so far.
    pub(crate) async fn flush(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.flush_range(inode, 0..u64::MAX).await;
    }

    /// Waits until the server has seen everything that was written to these bytes so far.
    pub(crate) async fn flush_range(self: &Arc<Self>, inode: &Arc<Inode>, range: Range<u64>) {
        let mut bound = None;
        self.until(inode, |state| {
            if state.rewriting {
                return false;
            }
            let bound = *bound.get_or_insert_with(|| {
                if state.tail.as_ref().is_some_and(|tail| overlap(&range, &tail.range())) {
                    self.seal(inode, state, Stable::Unstable);
                }
                state.next
            });
            !state.flights.iter().any(|f| f.seq < bound && overlap(&range, &f.range))
        })
        .await;
    }

    /// Waits until everything that was written so far is durable, or its failure recorded.
    pub(crate) async fn sync(self: &Arc<Self>, inode: &Arc<Inode>) {
        let mut bound = None;
        self.until(inode, |state| {
            if state.rewriting {
                return false;
            }
            let bound = *bound.get_or_insert_with(|| {
                let alone = state.flights.is_empty() && state.unstable.is_empty() && !state.committing;
                let stable = if alone { Stable::FileSync } else { Stable::Unstable };
                self.seal(inode, state, stable);
                state.next
            });
            if state.committing || state.flights.iter().any(|f| f.seq < bound) {
                return false;
            }
            if state.unstable.iter().any(|e| e.seq < bound) {
                self.start_commit(inode, state);
                return false;
            }
            true
        })
        .await;
    }

    async fn until(&self, inode: &Inode, mut done: impl FnMut(&mut State) -> bool) {
        loop {
            let changed = inode.writes.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if done(&mut lock(&inode.writes.state)) {
                return;
            }
            changed.await;
        }
    }

    /// Sends and commits whatever lies around.
    fn press(self: &Arc<Self>) {
        let listed = lock(&self.listed).clone();
        let mut done = HashSet::new();
        for inode in &listed {
            let mut state = lock(&inode.writes.state);
            self.seal(inode, &mut state, Stable::Unstable);
            self.start_commit(inode, &mut state);
            if !state.is_at_work() {
                state.listed = false;
                done.insert(Arc::as_ptr(inode));
            }
        }
        // Once each: it may be in the list again already.
        lock(&self.listed).retain(|inode| !done.remove(&Arc::as_ptr(inode)));
    }

    /// Makes everything durable, as far as it can be.
    pub(crate) async fn sync_all(self: &Arc<Self>) {
        let listed = lock(&self.listed).clone();
        for inode in &listed {
            self.sync(inode).await;
        }
    }
}

impl State {
    /// Whether the server has not seen everything yet.
    fn is_pending(&self) -> bool {
        self.tail.is_some() || !self.flights.is_empty() || self.rewriting
    }

    /// See [`WriteBack::may_have_passed`].
    fn may_have_passed(&self, epoch: u64) -> bool {
        self.is_pending() || self.answered > epoch
    }

    /// Something is written up to here.
    fn reaches(&mut self, to: u64) {
        if let Some((end, _)) = &mut self.end {
            *end = (*end).max(to);
        }
    }

    /// Whether there is something that is not durable yet.
    fn is_at_work(&self) -> bool {
        self.is_pending() || self.committing || !self.unstable.is_empty()
    }

    /// Whether nothing may be written to these bytes now.
    fn is_busy(&self, range: &Range<u64>) -> bool {
        self.rewriting || self.flights.iter().any(|f| overlap(range, &f.range))
    }

    fn fail(&mut self, inode: &Inode, error: &Error) {
        tracing::warn!(file = %inode.handle, "written data is lost: {error}");
        self.end = None;
        self.failures += 1;
        self.errno = errno_of(error);
    }
}

async fn flush_now_and_then(writer: Weak<Writer>) {
    let mut ticks = tokio::time::interval(FLUSH_PERIOD);
    loop {
        ticks.tick().await;
        let Some(writer) = writer.upgrade() else { return };
        writer.press();
    }
}

#[cfg(test)]
mod tests {
    use rpcrdma::nfs::v3::FileType;

    use super::*;
    use crate::shared::blank;

    #[test]
    fn the_end_of_a_file_stays_while_a_server_may_have_forgotten_it() {
        let writes = WriteBack::default();
        let said = |size| writes.ends(&Attributes { size, ..blank(FileType::Regular) }, 0);
        said(10);
        lock(&writes.state).committing = true;
        said(5);
        assert_eq!(writes.end(), Some(10));
        said(20);
        assert_eq!(writes.end(), Some(20));
        lock(&writes.state).committing = false;
        said(5);
        assert_eq!(writes.end(), Some(5));
        lock(&writes.state).answered = 1;
        said(7);
        assert_eq!(writes.end(), Some(5), "asked before a write was answered");
    }
}
