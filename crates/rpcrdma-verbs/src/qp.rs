//! A queue pair of a device behind the seam.
//!
//! # Operation
//! Posting and exposing put work into a queue here. `poll` posts it, Receives first, in chains of up to 32 requests with
//! one call each, of which only the last is signalled, and Reads, and what Linux's siw would otherwise lend to TCP; then it
//! takes completions until there are none, asks the device for an event, looks once more, and waits for the completion
//! channel and the connection manager. An exposure through a window is a request too and precedes the Send that tells the
//! peer about it, in the same chain.
//!
//! # Who owns which memory
//! Receives, work and exposures are in one of three places: `recvs`, `pending` with `ledger`, and `exposures`. They leave
//! them when the device has completed the request, or the invalidation, or when the queue pair is destroyed.
//!
//! # When it breaks
//! A failed completion names the cause, and what completed before it is taken first. Requests that are merely flushed say
//! nothing, so the connection manager's word is waited for, though not for long. Then the windows are freed, the queue pair
//! is destroyed, and everything comes back; see `ending`.
//!
//! What the device does not let go of does not come back. If that is one registration, the connection ends; if it is the
//! queue pair, that is tried again and again, behind the back of who drops it if need be.
//!
//! # Limits
//! [`QpLimits`] as asked for, within what the device has; what the Send queue has no room for waits in `pending`.
#![allow(unsafe_code, reason = "posting work on memory that is owned here")]

mod ending;
mod posting;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    io::{self, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rpcrdma_fabric::{
    Access, Completion, Exposed, Lost, Peer, QpLimits, QueuePair, Region, RejectReason, Rejected, Shutdown,
    Spin, Stag, Work,
};
use smallvec::SmallVec;
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep},
};

use crate::{
    connect::{failed, not_connected},
    devices::registration_failed,
    ffi::verbs::{self, Wc, status},
    ledger::Ledger,
    qp::posting::{Manner, Posting, fits},
    sys::{BlockMr, Domain, Event, Happened, Id, Mr, Qp, Request, Rights, Trouble, Window, status_text},
};

/// Work requests that one call posts, and completions that one call takes.
const BATCH: usize = 32;
/// Batches of completions that one poll takes before others run.
const ROUNDS: usize = 32;
/// Marks completions of Receives.
const RECEIVE: u64 = 1 << 63;
/// How long to wait for the reason when requests are flushed.
const REASON: Duration = Duration::from_secs(1);
/// After connecting over iWARP: how long to wait for the peer's first message before the first nudge, and how many nudges.
const NUDGE: (Duration, u32) = (Duration::from_millis(20), 6);

/// What is to be posted.
enum Pending {
    /// A request whose completion concerns nobody.
    Bare(Request),
    Invalidate {
        tag: u32,
    },
    Work(Posting),
}

/// What the device is doing.
enum UnderWay {
    Bare,
    Invalidate { tag: u32 },
    Work { work: Work, sink: Option<Mr> },
}

/// A region that the peer can reach.
struct Exposure {
    /// In front of the region: nobody can reach it when it is dropped.
    guard: Guard,
    region: Region,
    /// Its invalidation is on its way.
    closing: bool,
}

/// What opens it to the peer.
enum Guard {
    /// With the registration behind it, if that is this region's alone.
    Window(Window, Option<Mr>),
    /// Given up to close it.
    Registration(Mr),
    /// Nothing: an empty region.
    Empty,
}

/// What came of connecting.
pub(crate) struct Terms {
    /// RDMA Reads that the peer may have open at us, and that we may have open at it.
    pub(crate) reads_in: u8,
    pub(crate) reads_out: u8,
    pub(crate) private_data: Vec<u8>,
    /// The peer's provider may overlook what comes too early.
    pub(crate) nudge: bool,
}

/// See the module's head.
pub(crate) struct VerbsQueuePair {
    /// `None` once the connection is over.
    qp: Option<Qp>,
    domain: Arc<Domain>,
    use_windows: bool,
    limits: QpLimits,
    peer: Peer,
    runtime: Handle,
    spin: Spin,
    /// Receives with their local keys, in order; the first `recvs_posted` are with the device.
    recvs: VecDeque<(Region, u32)>,
    recvs_posted: usize,
    /// Receives completed so far.
    recvs_done: u64,
    pending: VecDeque<Pending>,
    ledger: Ledger<UnderWay>,
    /// Pieces of work in `pending` and `ledger`.
    works: usize,
    exposures: HashMap<u32, Exposure>,
    /// Closed, and not reported.
    reclaimed: Vec<(u32, Region)>,
    /// Not bound to anything. The one that has been so for longest is taken first.
    free_windows: VecDeque<Window>,
    /// Invalidated by the peer while our own invalidation is on its way.
    late_windows: HashMap<u32, Window>,
    /// At the end: those that the device has not let go of.
    last_windows: Vec<Window>,
    /// For the tags of empty regions, which nothing stands behind.
    empty_tags: u32,
    /// An event was asked for.
    armed: bool,
    established: bool,
    closing: bool,
    aborted: bool,
    disconnected: bool,
    cause: Option<Lost>,
    /// Runs while requests are flushed and nobody has said why.
    reason_timer: Option<Pin<Box<Sleep>>>,
    nudge: Option<Nudge>,
    /// Reads that are done, with destinations that the device does not let go of.
    kept: Vec<(Work, Mr)>,
    /// Exposures whose tag the device has given out once more, which it must not.
    doubles: Vec<(u32, Exposure)>,
    /// Why it ends, and when to try the next time to destroy the queue pair.
    ending: Option<(Lost, Pin<Box<Sleep>>)>,
    /// It was said that the queue pair could not be destroyed.
    waits_for_device: bool,
    /// What `poll` answers when it is over.
    lost: Option<Lost>,
    /// It was said that the device takes no more memory.
    complained: Cell<bool>,
}

struct Nudge {
    timer: Pin<Box<Sleep>>,
    wait: Duration,
    left: u32,
}

/// Receives are posted like the rest of them, so that what counts as posted is.
fn post_receives(
    qp: &mut Qp,
    recvs: &VecDeque<(Region, u32)>,
    posted: &mut usize,
    done: u64,
) -> io::Result<()> {
    while *posted < recvs.len() {
        let batch: SmallVec<[(u64, u32, u32); BATCH]> = (recvs.iter().skip(*posted).take(BATCH))
            .map(|(buf, lkey)| (buf.as_ptr() as u64, u32::try_from(buf.len()).unwrap_or(u32::MAX), *lkey))
            .collect();
        // SAFETY: the regions are in `recvs`, which they leave only when the device says that they are filled or after the
        // queue pair is destroyed; a region keeps its block, and the block its registration, as long as there is this queue
        // pair.
        unsafe { qp.post_recv(RECEIVE | (done + *posted as u64), &batch) }?;
        *posted += batch.len();
    }
    Ok(())
}

impl VerbsQueuePair {
    /// A queue pair that is not connected. Must be called in a tokio runtime.
    pub(crate) fn new(qp: Qp, peer: Peer, limits: QpLimits, windows: bool, spin: Option<Duration>) -> Self {
        Self {
            domain: Arc::clone(&qp.domain),
            ledger: Ledger::new(qp.cap.max_send_wr),
            qp: Some(qp),
            use_windows: windows,
            limits,
            peer,
            runtime: Handle::current(),
            spin: Spin::new(spin),
            recvs: VecDeque::with_capacity(limits.recvs),
            recvs_posted: 0,
            recvs_done: 0,
            pending: VecDeque::new(),
            works: 0,
            exposures: HashMap::new(),
            reclaimed: Vec::new(),
            free_windows: VecDeque::new(),
            late_windows: HashMap::new(),
            last_windows: Vec::new(),
            empty_tags: 0,
            armed: false,
            established: false,
            closing: false,
            aborted: false,
            disconnected: false,
            cause: None,
            reason_timer: None,
            nudge: None,
            kept: Vec::new(),
            doubles: Vec::new(),
            ending: None,
            waits_for_device: false,
            lost: None,
            complained: Cell::new(false),
        }
    }

    /// Posts the first Receives, before the peer can send anything.
    pub(crate) fn begin(&mut self, recvs: Vec<Region>) -> io::Result<()> {
        let (count, most) = (recvs.len(), self.limits.recvs);
        if count > most {
            let why = format!("the device takes {most} Receives, and {count} are wanted: use fewer credits");
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        for buf in recvs {
            let lkey = local_key(&self.domain, &buf).map_err(|e| failed(&e, registration_failed(&e)))?;
            self.recvs.push_back((buf, lkey));
        }
        let Some(qp) = &mut self.qp else { return Err(not_connected()) };
        post_receives(qp, &self.recvs, &mut self.recvs_posted, self.recvs_done)
    }

    /// Our end in the connection manager's books, to connect it.
    pub(crate) fn id(&mut self) -> io::Result<&mut Id> {
        self.qp.as_mut().and_then(Qp::id).ok_or_else(not_connected)
    }

    /// The peer has agreed.
    pub(crate) fn established(&mut self, terms: Terms) {
        let Terms { reads_in, reads_out, private_data, nudge } = terms;
        self.established = true;
        self.limits.inbound_reads = u32::from(reads_in);
        self.limits.outbound_reads = u32::from(reads_out);
        self.peer.private_data = private_data;
        self.nudge = nudge.then(|| Nudge { timer: Box::pin(sleep(NUDGE.0)), wait: NUDGE.0, left: NUDGE.1 });
    }

    /// Whether nothing can be posted any more.
    fn is_over(&self) -> bool {
        self.lost.is_some() || self.ending.is_some()
    }

    /// The device does not let go of memory, so the connection ends. The memory comes back after its queue pair has gone.
    fn stuck(&mut self, e: &io::Error) {
        tracing::error!("the connection ends, as the device does not let go of memory: {e}");
        self.cause.get_or_insert(Lost::Io(e.kind()));
    }

    /// Takes an exposure from the peer, and from the books, unless the device does not let go of it. Its window, if it has one,
    /// has been invalidated.
    fn shut(&mut self, tag: u32) -> Option<Exposure> {
        let exposure = self.exposures.get_mut(&tag)?;
        let registration = match &mut exposure.guard {
            Guard::Registration(mr) => Some(mr),
            Guard::Window(_, backing) => backing.as_mut(),
            Guard::Empty => None,
        };
        if let Some(Err(e)) = registration.map(Mr::deregister) {
            self.stuck(&e);
            return None;
        }
        self.exposures.remove(&tag)
    }

    /// The local key of a region.
    fn register(&self, region: &Region) -> Result<u32, RejectReason> {
        local_key(&self.domain, region).map_err(|e| self.refused(&e))
    }

    /// Says why the device does not take memory, once: who wants it will try again.
    fn refused(&self, e: &io::Error) -> RejectReason {
        if !self.complained.replace(true) {
            tracing::warn!("{}", registration_failed(e));
        }
        RejectReason::Registration
    }

    /// Checks a piece of work and prepares its memory.
    fn prepare(&self, work: &Work) -> Result<(u32, Option<Mr>), RejectReason> {
        if self.is_over() {
            return Err(RejectReason::Lost);
        }
        if self.works >= self.limits.sends {
            return Err(RejectReason::QueueFull);
        }
        let longest = u64::from(self.domain.device().port.max_message);
        match work {
            Work::Send { buf, len, .. } => {
                if *len > buf.len() || *len as u64 > longest {
                    return Err(RejectReason::OutOfRange);
                }
                Ok((self.register(buf)?, None))
            }
            Work::Write { buf, at, to, .. } => {
                fits(buf, *at, to)?;
                Ok((self.register(buf)?, None))
            }
            Work::Read { buf, at, from, .. } => {
                let len = fits(buf, *at, from)?;
                if self.limits.outbound_reads == 0 {
                    return Err(RejectReason::NoReads);
                }
                if !self.domain.device().abilities.iwarp || len == 0 {
                    return Ok((self.register(buf)?, None));
                }
                // The response is tagged with the destination's own key, so the peer must be allowed to write there: to
                // these bytes, and only until they have come.
                // SAFETY: the registration goes with the work, which keeps the region, and which comes back when the device
                // has let go of it, or after the queue pair is destroyed.
                let sink = unsafe { Mr::of_region(&self.domain, buf, *at, len, Rights::RemoteWrite) };
                let sink = sink.map_err(|e| self.refused(&e))?;
                Ok((sink.lkey, Some(sink)))
            }
        }
    }

    /// Posts what the Send queue has room for.
    fn post_sends(&mut self) -> io::Result<()> {
        let Some(qp) = &mut self.qp else { return Ok(()) };
        let device = self.domain.device();
        let manner = Manner {
            longest: device.port.max_message.max(1),
            can_invalidate: device.abilities.can_invalidate(),
            inline_max: qp.cap.max_inline_data,
            lent_from: device.abilities.lent_from,
        };
        while !self.pending.is_empty() {
            let first = self.ledger.next();
            let room = self.ledger.room().min(BATCH);
            let mut batch: SmallVec<[Request; BATCH]> = SmallVec::new();
            while batch.len() < room {
                let end = first + batch.len() as u64;
                match self.pending.pop_front() {
                    None => break,
                    Some(Pending::Bare(request)) => {
                        batch.push(request);
                        self.ledger.push(end + 1, false, UnderWay::Bare);
                    }
                    Some(Pending::Invalidate { tag }) => {
                        batch.push(Request::Invalidate { tag });
                        self.ledger.push(end + 1, false, UnderWay::Invalidate { tag });
                    }
                    Some(Pending::Work(mut posting)) => {
                        let request = posting.next(manner);
                        let end = end + u64::from(request.is_some());
                        batch.extend(request);
                        if posting.is_done() {
                            let Posting { work, sink, .. } = posting;
                            let read = matches!(work, Work::Read { .. });
                            self.ledger.push(end, read, UnderWay::Work { work, sink });
                        } else {
                            self.pending.push_front(Pending::Work(posting));
                        }
                    }
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            // SAFETY: the work of these requests is in `ledger` or at the head of `pending`, with its memory, and leaves
            // only when its last request is complete or after the queue pair is destroyed. What a binding opens is in
            // `exposures` until the invalidation is complete or the windows are freed. Windows are owned by this queue
            // pair. Regions keep their blocks, and blocks their registrations, as long as the domain has queue pairs.
            unsafe { qp.post_send(first, &batch) }?;
            self.ledger.posted(batch.len());
        }
        Ok(())
    }

    /// Reports the work that is done.
    fn take_done(&mut self, done: &mut Vec<Completion>) {
        while let Some(item) = self.ledger.pop_done() {
            match item {
                UnderWay::Bare => {}
                UnderWay::Work { work, mut sink } => {
                    self.works -= 1;
                    if let Some(Err(e)) = sink.as_mut().map(Mr::deregister) {
                        self.stuck(&e);
                        self.kept.extend(sink.map(|sink| (work, sink)));
                        continue;
                    }
                    let (id, op, buf) = work.into_parts();
                    done.push(Completion::Done { id, op, buf });
                }
                UnderWay::Invalidate { tag } => match self.shut(tag) {
                    Some(exposure) => {
                        self.recycle(tag, exposure.guard);
                        done.push(Completion::Reclaimed { stag: Stag(tag), buf: exposure.region });
                    }
                    // The peer was faster.
                    None => {
                        if let Some(window) = self.late_windows.remove(&tag) {
                            self.recycle(tag, Guard::Window(window, None));
                        }
                    }
                },
            }
        }
    }

    /// What opened a region to the peer does so no more.
    fn recycle(&mut self, tag: u32, guard: Guard) {
        if let Guard::Window(mut window, _) = guard {
            window.bound(tag);
            self.free_windows.push_back(window);
        }
    }

    /// Takes one batch of completions; whether there were any.
    fn take_completions(&mut self, done: &mut Vec<Completion>) -> Result<bool, Lost> {
        let mut wcs = [Wc::default(); BATCH];
        let Some(qp) = &mut self.qp else { return Ok(false) };
        let n = qp.completions.poll(&mut wcs).map_err(|e| Lost::Io(e.kind()))?;
        for wc in wcs.iter().take(n) {
            if wc.status != status::SUCCESS {
                self.failed(wc);
            } else if wc.wr_id & RECEIVE != 0 {
                self.received(wc, done)?;
            } else if !self.ledger.complete(wc.wr_id) {
                return Err(Lost::Io(ErrorKind::InvalidData));
            }
        }
        self.take_done(done);
        Ok(n > 0)
    }

    fn received(&mut self, wc: &Wc, done: &mut Vec<Completion>) -> Result<(), Lost> {
        let in_order = wc.wr_id == RECEIVE | self.recvs_done && self.recvs_posted > 0;
        let Some((buf, _)) = self.recvs.pop_front().filter(|_| in_order) else {
            return Err(Lost::Io(ErrorKind::InvalidData));
        };
        self.recvs_done += 1;
        self.recvs_posted -= 1;
        self.nudge = None;
        let mut invalidated = None;
        let soft_roce = self.domain.device().abilities.soft_roce;
        // The other meaning of the kernel's bit, and of the library's to the kernel, is a checksum of raw packets.
        let flags =
            if soft_roce { verbs::WC_WITH_INV | verbs::WC_WITH_INV_KERNEL } else { verbs::WC_WITH_INV };
        if wc.wc_flags & flags != 0 {
            let tag = wc.invalidated_rkey;
            invalidated = Some(Stag(tag));
            if let Some(Exposure { region, guard, closing }) = self.shut(tag) {
                match guard {
                    Guard::Window(window, _) if closing => drop(self.late_windows.insert(tag, window)),
                    guard => self.recycle(tag, guard),
                }
                done.push(Completion::Reclaimed { stag: Stag(tag), buf: region });
            }
        }
        let len = (wc.byte_len as usize).min(buf.len());
        done.push(Completion::Received { buf, len, invalidated });
        Ok(())
    }

    /// A request has failed: the connection is over. The first failure that is more than a consequence is the cause.
    fn failed(&mut self, wc: &Wc) {
        if wc.status == status::WR_FLUSH_ERR {
            self.wait_for_reason();
            return;
        }
        let receive = wc.wr_id & RECEIVE != 0;
        let text = || match &self.qp {
            Some(qp) => status_text(qp.domain.device().lib(), wc.status),
            None => String::new(),
        };
        let lost = match wc.status {
            status::LOC_LEN_ERR if receive => {
                Lost::PeerMisbehaved("a message is longer than its Receive".to_owned())
            }
            status::RNR_RETRY_EXC_ERR => {
                Lost::Terminated("it has no Receive posted for a message".to_owned())
            }
            status::REM_ACCESS_ERR | status::REM_INV_REQ_ERR | status::REM_OP_ERR => Lost::Terminated(text()),
            status::RETRY_EXC_ERR => Lost::Io(ErrorKind::TimedOut),
            status::LOC_PROT_ERR | status::LOC_ACCESS_ERR if receive => Lost::PeerMisbehaved(text()),
            _ => {
                tracing::debug!(status = text(), vendor = wc.vendor_err, receive, "a work request failed");
                Lost::Io(ErrorKind::ConnectionReset)
            }
        };
        self.cause.get_or_insert(lost);
    }

    fn happened(&mut self, event: Event) {
        let cause = match event.what {
            Happened::Disconnected => {
                self.disconnected = true;
                return;
            }
            Happened::DeviceRemoved => {
                self.domain.device().remove();
                Lost::Io(ErrorKind::NotConnected)
            }
            Happened::AddressChanged => Lost::Io(ErrorKind::AddrNotAvailable),
            Happened::ConnectError | Happened::Unreachable | Happened::Rejected => {
                Lost::Io(ErrorKind::ConnectionReset)
            }
            _ => return,
        };
        self.cause.get_or_insert(cause);
    }

    /// The device reports that something has failed.
    fn troubled(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Device => {
                self.cause.get_or_insert(Lost::Io(ErrorKind::NotConnected));
            }
            Trouble::Port => {
                self.cause.get_or_insert(Lost::Io(ErrorKind::NetworkDown));
            }
            Trouble::Queues => self.wait_for_reason(),
        }
    }

    /// It is over, and completions or the connection manager are about to say why.
    fn wait_for_reason(&mut self) {
        if self.reason_timer.is_none() {
            self.reason_timer = Some(Box::pin(sleep(REASON)));
        }
    }

    /// Drives the connection until it waits. `Ready` if there is something to report or others are to have their turn.
    fn drive(
        &mut self,
        cx: &mut Context<'_>,
        done: &mut Vec<Completion>,
        before: usize,
    ) -> Result<Poll<()>, Lost> {
        if self.aborted {
            return Err(Lost::Closed);
        }
        let broken = |e: io::Error| Lost::Io(e.kind());
        let mut rounds = 0;
        loop {
            if let Some(qp) = &mut self.qp
                && self.cause.is_none()
            {
                post_receives(qp, &self.recvs, &mut self.recvs_posted, self.recvs_done).map_err(broken)?;
                self.post_sends().map_err(broken)?;
                self.take_done(done);
            }
            if self.closing && self.pending.is_empty() && self.ledger.len() == 0 {
                return Err(Lost::Closed);
            }
            if self.take_completions(done)? {
                rounds += 1;
                if rounds >= ROUNDS {
                    return Ok(Poll::Ready(()));
                }
                continue;
            }
            if done.len() > before {
                return Ok(Poll::Ready(()));
            }
            if let Some(cause) = self.cause.take() {
                return Err(cause);
            }
            if self.disconnected {
                return Err(Lost::PeerClosed);
            }
            let Some(qp) = &mut self.qp else { return Err(Lost::Closed) };
            if let Some(id) = qp.id()
                && let Poll::Ready(event) = id.channel().poll_event(cx)
            {
                self.happened(event.map_err(broken)?);
                continue;
            }
            let Some(qp) = &mut self.qp else { return Err(Lost::Closed) };
            if let Poll::Ready(trouble) = qp.alarm.poll(cx) {
                self.troubled(trouble);
                continue;
            }
            if !self.armed {
                if self.spin(done)? {
                    continue;
                }
                let Some(qp) = &mut self.qp else { return Err(Lost::Closed) };
                qp.completions.arm().map_err(broken)?;
                self.armed = true;
                continue;
            }
            if let Poll::Ready(event) = qp.completions.poll_event(cx) {
                event.map_err(broken)?;
                self.armed = false;
                continue;
            }
            if self.tick(cx) {
                continue;
            }
            return Ok(Poll::Pending);
        }
    }

    /// Looks for completions without sleeping, if that has paid off lately. Whether there were any.
    fn spin(&mut self, done: &mut Vec<Completion>) -> Result<bool, Lost> {
        let Some(until) = self.spin.begin(std::time::Instant::now) else { return Ok(false) };
        loop {
            if self.take_completions(done)? {
                self.spin.hit();
                return Ok(true);
            }
            if std::time::Instant::now() >= until {
                self.spin.miss();
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Looks at the timers; whether there is something to do.
    fn tick(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(timer) = &mut self.reason_timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.cause.get_or_insert(Lost::Io(ErrorKind::ConnectionReset));
            self.reason_timer = None;
            return true;
        }
        let idle = self.ledger.next() == 0;
        if let Some(nudge) = &mut self.nudge
            && nudge.timer.as_mut().poll(cx).is_ready()
        {
            if !idle {
                nudge.left -= 1;
            }
            nudge.wait *= 2;
            nudge.timer.as_mut().reset(Instant::now() + nudge.wait);
            let more = nudge.left > 0;
            if !more {
                self.nudge = None;
            }
            if !idle {
                // An empty RDMA Write: nothing is written, whatever it names.
                let empty = Request::Write { addr: 0, len: 0, lkey: 0, to: 0, rkey: 0, signal: false };
                self.pending.push_back(Pending::Bare(empty));
            }
            return true;
        }
        false
    }

    /// Opens a region to the peer.
    fn open(&mut self, region: &Region, len: u32, access: Access) -> io::Result<(u32, Guard)> {
        if len == 0 {
            // No bytes can be reached, so nothing is opened. The tag is one that devices do not give out.
            let mut tags = (1..=EMPTY_COUNT).map(|n| EMPTY_TAGS + (self.empty_tags + n) % EMPTY_COUNT);
            let tag = tags.find(|tag| !self.exposures.contains_key(tag));
            let tag = tag.ok_or_else(|| io::Error::other("too many regions without bytes"))?;
            self.empty_tags = tag % EMPTY_COUNT;
            return Ok((tag, Guard::Empty));
        }
        if !self.use_windows {
            let rights = match access {
                Access::RemoteRead => Rights::RemoteRead,
                Access::RemoteWrite => Rights::RemoteWrite,
            };
            // SAFETY: the region goes into `exposures` with the registration, and comes out when the device has let go of
            // that, or after the queue pair is destroyed.
            let mr = unsafe { Mr::of_region(&self.domain, region, 0, len as usize, rights) }?;
            return Ok((mr.rkey, Guard::Registration(mr)));
        }
        let (block, backing) = if self.domain.device().abilities.soft_roce {
            // SAFETY: as above; the window is closed or freed before.
            let mr = unsafe {
                Mr::of_region(&self.domain, region, 0, len as usize, Rights::Local { windows: true })
            }?;
            (mr.handle(), Some(mr))
        } else {
            (BlockMr::of(&self.domain, region)?.1, None)
        };
        let mut window = match self.free_windows.pop_front() {
            Some(window) => window,
            None => Window::new(&self.domain)?,
        };
        let tag = window.next_tag();
        self.pending.push_back(Pending::Bare(Request::Bind {
            window: window.handle(),
            block,
            addr: region.as_ptr() as u64,
            len,
            tag,
            write: access == Access::RemoteWrite,
        }));
        Ok((tag, Guard::Window(window, backing)))
    }
}

/// Tags of regions without bytes: the first one, and how many there are.
const EMPTY_TAGS: u32 = 0xffff_ff00;
const EMPTY_COUNT: u32 = 256;

/// The local key of a region, whose block is registered if it is not yet.
fn local_key(domain: &Arc<Domain>, region: &Region) -> io::Result<u32> {
    BlockMr::of(domain, region).map(|(lkey, _)| lkey)
}

impl QueuePair for VerbsQueuePair {
    fn limits(&self) -> QpLimits {
        self.limits
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        let why = if self.is_over() {
            RejectReason::Lost
        } else if self.recvs.len() >= self.limits.recvs {
            RejectReason::QueueFull
        } else {
            match self.register(&buf) {
                Ok(lkey) => {
                    self.recvs.push_back((buf, lkey));
                    return Ok(());
                }
                Err(why) => why,
            }
        };
        Err(Rejected { why, item: buf })
    }

    fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        match self.prepare(&work) {
            Ok((lkey, sink)) => {
                self.works += 1;
                self.pending.push_back(Pending::Work(Posting::new(work, lkey, sink)));
                Ok(())
            }
            Err(why) => Err(Rejected { why, item: work }),
        }
    }

    fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        let why = if self.is_over() {
            RejectReason::Lost
        } else if self.exposures.len() >= self.limits.exposed {
            RejectReason::TooManyRegions
        } else if len as usize > region.len() {
            RejectReason::OutOfRange
        } else {
            match self.open(&region, len, access) {
                Ok((tag, guard)) => {
                    let offset = region.as_ptr() as u64;
                    let exposure = Exposure { region, guard, closing: false };
                    if let Some(other) = self.exposures.insert(tag, exposure) {
                        // Nobody knows what the tag opens now.
                        self.doubles.push((tag, other));
                        self.cause.get_or_insert(Lost::Io(ErrorKind::AlreadyExists));
                    }
                    return Ok(Exposed { stag: Stag(tag), offset, len });
                }
                Err(e) => self.refused(&e),
            }
        };
        Err(Rejected { why, item: region })
    }

    fn invalidate(&mut self, stag: Stag) {
        // Then it comes back with everything else.
        if self.is_over() {
            return;
        }
        let Some(exposure) = self.exposures.get_mut(&stag.0) else { return };
        if exposure.closing {
            return;
        }
        exposure.closing = true;
        if matches!(exposure.guard, Guard::Window(..)) {
            self.pending.push_back(Pending::Invalidate { tag: stag.0 });
            return;
        }
        if let Some(Exposure { region, .. }) = self.shut(stag.0) {
            self.reclaimed.push((stag.0, region));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Completion>) -> Poll<Result<(), Lost>> {
        if let Some(lost) = &self.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        let before = done.len();
        if let Some((lost, mut again)) = self.ending.take() {
            if again.as_mut().poll(cx).is_pending() {
                self.ending = Some((lost, again));
                return Poll::Pending;
            }
            return self.end(lost, cx, done, before);
        }
        let reclaimed = self.reclaimed.drain(..);
        done.extend(reclaimed.map(|(tag, buf)| Completion::Reclaimed { stag: Stag(tag), buf }));
        match self.drive(cx, done, before) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) if done.len() > before => Poll::Ready(Ok(())),
            Ok(Poll::Ready(())) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(lost) => self.end(lost, cx, done, before),
        }
    }

    fn shutdown(&mut self, how: Shutdown) {
        match how {
            Shutdown::Graceful => self.closing = true,
            Shutdown::Abort => self.aborted = true,
        }
    }
}
