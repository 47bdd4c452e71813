//! One end of an iWARP connection, without a socket and without a clock.
//!
//! # What flows through
//! The user of an [`Engine`] posts Receives and work, and exposes memory. Its driver alternates between two halves:
//!
//! * sending: [`fill`](Engine::fill) queues FPDUs, [`output`](Engine::output) gives byte ranges for one vectored
//!   write, [`wrote`](Engine::wrote) says how many bytes the transport took;
//! * receiving: [`input`](Engine::input) gives places for one vectored read, [`received`](Engine::received) says how
//!   many bytes came. The first place is, whenever possible, the memory that the bytes are meant for.
//!
//! Both append [`Completion`]s. Time is needed for one thing only, the nudge ([`next_timeout`](Engine::next_timeout)).
//!
//! # Who owns which memory
//! All of it is the engine's from posting to completion. The places that `input` gives are borrowed for one call, so
//! between two calls nobody else can write to a region.
//!
//! # When it breaks
//! The first rule that the peer breaks, or its Terminate, or the end of the stream, is the engine's
//! [`failure`](Engine::failure). From then on it takes and sends nothing. The driver then takes the
//! [`last words`](Engine::last_words), which is what may still be sent, and [`flush`](Engine::flush)es all memory out.
//!
//! # Limits
//! The queues are bounded by [`QpLimits`]; the engine's own buffers are 32 KiB each way.

mod reads;
mod rx;
mod stags;
mod tx;

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use rpcrdma_fabric::{
    Access, Completion, Exposed, Lost, Op, QpLimits, Region, RejectReason, Rejected, RemoteSegments, Stag,
    Work,
};

use self::{
    reads::Reads,
    rx::Rx,
    stags::StagTable,
    tx::{Control, Tx},
};
use crate::{
    ddp::UNTAGGED_BYTES,
    mpa::{
        fpdu::{MAX_ULPDU, pad},
        setup::{Agreed, Role, Rtr},
    },
    rdmap::Terminate,
};

pub use tx::{MAX_SLICES, Slices, terminate_fpdu};

/// Smallest ULPDU that we cut messages into: room for a header and a useful payload.
pub const MIN_MAX_ULPDU: usize = 128;

/// Why an engine has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For our user.
    pub lost: Lost,
    /// For the peer.
    pub terminate: Option<Terminate>,
}

/// The reminders that the active side sends when its first FPDU seems to have been overlooked.
///
/// A peer that switches from start-up to full operation after it has answered can miss that bytes are already there,
/// until more come. A zero-length RDMA Write is harmless, so one is sent when nothing comes back for a while; the time
/// to the next doubles.
struct Nudge {
    left: u32,
    delay: Duration,
    due: Option<Instant>,
}

/// First wait of a [`Nudge`], the longest, and how many there are.
const NUDGE_FIRST: Duration = Duration::from_millis(5);
const NUDGE_LONGEST: Duration = Duration::from_millis(40);
const NUDGES: u32 = 6;

impl Nudge {
    fn new(wanted: bool) -> Self {
        Self { left: if wanted { NUDGES } else { 0 }, delay: NUDGE_FIRST, due: None }
    }

    fn sent(&mut self, now: Instant) {
        if self.left > 0 && self.due.is_none() {
            self.due = Some(now + self.delay);
        }
    }

    fn fire(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| due > now) {
            return false;
        }
        self.left -= 1;
        self.delay = (self.delay * 2).min(NUDGE_LONGEST);
        self.due = (self.left > 0).then(|| now + self.delay);
        true
    }

    fn disarm(&mut self) {
        (self.left, self.due) = (0, None);
    }
}

/// How an engine is to behave beyond what was agreed with the peer.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The longest ULPDU to send; clamped to what is possible.
    pub max_ulpdu: usize,
    /// Nudge the peer if its first FPDU does not come.
    pub nudge: bool,
    /// Send with Solicited Event.
    pub solicited: bool,
}

/// What is sent at most unless somebody says otherwise: near the 64,768 that RFC 5044 asks senders for. An FPDU of this
/// length needs no pad, so its checksum is one word at a multiple of four, and as long as TCP cuts the stream at words
/// it is never cut itself. Linux siw (6.12) puts one that two TCP segments share together wrongly, and breaks off.
const MAX_ULPDU_SENT: usize = 64_766;
const _: () = assert!(pad(MAX_ULPDU_SENT) == 0);

impl Default for Options {
    fn default() -> Self {
        Self { max_ulpdu: MAX_ULPDU_SENT, nudge: true, solicited: false }
    }
}

/// See the module's head.
pub struct Engine {
    rx: Rx,
    tx: Tx,
    stags: StagTable,
    recvs: VecDeque<Region>,
    reads: Reads,
    /// Regions that were closed between two polls.
    reclaimed: VecDeque<(Stag, Region)>,
    limits: QpLimits,
    nudge: Nudge,
    failure: Option<Failure>,
}

impl Engine {
    /// An engine for a connection that was just agreed on, with its first Receives.
    #[must_use]
    pub fn new(agreed: &Agreed, limits: QpLimits, options: Options, recvs: Vec<Region>) -> Self {
        let active = agreed.role == Role::Active;
        let max_ulpdu = options.max_ulpdu.clamp(MIN_MAX_ULPDU, MAX_ULPDU);
        let limits = QpLimits { outbound_reads: agreed.ord, inbound_reads: agreed.ird, ..limits };
        let mut tx = Tx::new(max_ulpdu, agreed.crc, !active, options.solicited);
        if active {
            match agreed.rtr {
                Some(Rtr::Write) => tx.push_control(Control::Write),
                Some(Rtr::Read) => tx.push_control(Control::Read),
                Some(Rtr::Send) => tx.push_control(Control::Send),
                None => {}
            }
        }
        let send_is_rtr = !active && agreed.rtr == Some(Rtr::Send);
        Self {
            rx: Rx::new(agreed.crc, send_is_rtr),
            tx,
            stags: StagTable::new(),
            recvs: recvs.into(),
            reads: Reads::new(agreed.ord),
            reclaimed: VecDeque::new(),
            limits,
            nudge: Nudge::new(active && options.nudge),
            failure: None,
        }
    }

    /// What the connection takes, with what was agreed on.
    #[must_use]
    pub fn limits(&self) -> QpLimits {
        self.limits
    }

    /// Posts a Receive.
    ///
    /// # Errors
    /// As [`rpcrdma_fabric::QueuePair::post_recv`].
    pub fn post_recv(&mut self, buf: Region) -> Result<(), Rejected<Region>> {
        let why = if self.failure.is_some() {
            RejectReason::Lost
        } else if self.recvs.len() >= self.limits.recvs {
            RejectReason::QueueFull
        } else {
            self.recvs.push_back(buf);
            return Ok(());
        };
        Err(Rejected { why, item: buf })
    }

    /// Posts work.
    ///
    /// # Errors
    /// As [`rpcrdma_fabric::QueuePair::post`].
    pub fn post(&mut self, work: Work) -> Result<(), Rejected<Work>> {
        match self.check_work(&work) {
            Ok(()) => {
                self.tx.post(work);
                Ok(())
            }
            Err(why) => Err(Rejected { why, item: work }),
        }
    }

    fn check_work(&self, work: &Work) -> Result<(), RejectReason> {
        if self.failure.is_some() {
            return Err(RejectReason::Lost);
        }
        if self.tx.works() + self.reads.len() >= self.limits.sends {
            return Err(RejectReason::QueueFull);
        }
        let fits = match work {
            Work::Send { buf, len, .. } => *len <= buf.len() && u32::try_from(*len).is_ok(),
            Work::Write { buf, at, to: segments, .. } | Work::Read { buf, at, from: segments, .. } => {
                segments_fit(buf, *at, segments)
            }
        };
        if !fits {
            return Err(RejectReason::OutOfRange);
        }
        match work {
            Work::Read { .. } if self.limits.outbound_reads == 0 => Err(RejectReason::NoReads),
            _ => Ok(()),
        }
    }

    /// Lets the peer reach a region.
    ///
    /// # Errors
    /// As [`rpcrdma_fabric::QueuePair::expose`].
    pub fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Rejected<Region>> {
        let why = if self.failure.is_some() {
            RejectReason::Lost
        } else if len as usize > region.len() {
            RejectReason::OutOfRange
        } else if self.stags.exposed() >= self.limits.exposed {
            RejectReason::TooManyRegions
        } else {
            return self
                .stags
                .expose(region, len, access)
                .map_err(|item| Rejected { why: RejectReason::Registration, item });
        };
        Err(Rejected { why, item: region })
    }

    /// Closes an exposed region to the peer, at once. [`Completion::Reclaimed`] follows with the next poll, or when a
    /// Read Response that is being sent from the region is done. A message that the peer is in the middle of placing
    /// there is treated as one for an unknown STag.
    pub fn invalidate(&mut self, stag: Stag) {
        if let Some(slot) = self.stags.find_exposed(stag.0) {
            self.rx.abandon(slot);
            self.reclaimed.extend(self.stags.revoke(slot));
        }
    }

    /// Reports the regions that were closed since the last call.
    pub fn report_reclaimed(&mut self, done: &mut Vec<Completion>) {
        done.extend(self.reclaimed.drain(..).map(|(stag, buf)| Completion::Reclaimed { stag, buf }));
    }

    /// Whether everything that was posted has been handed to the transport, or must not be: the passive side may not
    /// send before it has heard from its peer.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tx.is_held() || self.tx.is_idle()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.nudge.due.filter(|_| self.failure.is_none())
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.nudge.fire(now) {
            self.tx.push_control(Control::Write);
        }
    }

    /// Takes note that the peer sends no more.
    pub fn end_of_stream(&mut self) {
        let lost =
            if self.rx.between_fpdus() { Lost::PeerClosed } else { Lost::Io(io::ErrorKind::UnexpectedEof) };
        self.fail(Failure { lost, terminate: None });
    }

    /// Stops the engine, unless it has stopped already: the first reason counts.
    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Why the engine has stopped, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The bytes that may still be sent after a failure: the rest of an FPDU that is half sent, and the Terminate if
    /// there is one. Call before [`Self::flush`].
    #[must_use]
    pub fn last_words(&self) -> Vec<u8> {
        let terminate = self.failure.as_ref().and_then(|failure| failure.terminate.as_ref());
        self.tx.last_words(&self.stags, terminate)
    }

    /// Hands out everything that the engine holds. It must have failed.
    pub fn flush(&mut self, done: &mut Vec<Completion>) {
        debug_assert!(self.failure.is_some(), "only a stopped engine is flushed");
        self.report_reclaimed(done);
        self.rx.stop();
        while let Some(read) = self.reads.flush_one() {
            if let Some(buf) = read.buf {
                done.push(Completion::Flushed { id: read.id, op: Op::Read, buf });
            }
        }
        self.tx.flush_works(|work| {
            let (id, op, buf) = work.into_parts();
            done.push(Completion::Flushed { id, op, buf });
        });
        done.extend(self.recvs.drain(..).map(|buf| Completion::Flushed { id: 0, op: Op::Recv, buf }));
        self.stags.drain(|stag, buf| done.push(Completion::Reclaimed { stag, buf }));
    }

    /// Bytes written so far, for statistics and tests.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.tx.written()
    }
}

/// Whether the segments together fit behind `at`, and none of them wraps.
fn segments_fit(buf: &Region, at: usize, segments: &RemoteSegments) -> bool {
    let mut end = at as u64;
    for segment in segments {
        if segment.offset.checked_add(u64::from(segment.len)).is_none() {
            return false;
        }
        let Some(sum) = end.checked_add(u64::from(segment.len)) else { return false };
        end = sum;
    }
    end <= buf.len() as u64
}

const _: () = assert!(MIN_MAX_ULPDU > UNTAGGED_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mpa::setup::Role;

    fn engine(role: Role) -> Engine {
        let agreed = Agreed { role, crc: true, rtr: None, ird: 4, ord: 4 };
        let recvs = (0..4).map(|_| Region::alloc(8)).collect();
        Engine::new(&agreed, QpLimits::default(), Options { nudge: false, ..Options::default() }, recvs)
    }

    #[test]
    fn message_numbers_wrap() {
        let (mut a, mut b) = (engine(Role::Active), engine(Role::Passive));
        a.tx.set_next_messages(u32::MAX);
        b.rx.set_next_messages(u32::MAX);
        let e = b.expose(Region::alloc(8), 8, Access::RemoteRead).unwrap();
        let from = rpcrdma_fabric::RemoteSegment { stag: e.stag, offset: e.offset, len: 8 };
        for id in 0..3 {
            a.post(Work::Send { id, buf: Region::alloc(1), len: 1, invalidate: None }).unwrap();
            let from = std::iter::once(from).collect();
            a.post(Work::Read { id, buf: Region::alloc(8), at: 0, from }).unwrap();
        }
        let mut done = Vec::new();
        a.fill(&mut done);
        let mut bytes = Vec::new();
        {
            let mut slices = Slices::new();
            a.output(&mut slices);
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        }
        for byte in bytes {
            {
                let [direct, staged] = &mut b.input();
                let place = if direct.is_empty() { staged } else { direct };
                place[0] = byte;
            }
            b.received(1, &mut done);
        }
        assert_eq!(b.failure(), None);
        assert_eq!(done.len(), 3);
        assert_eq!(b.tx.open_responses(), 3);
    }
}
