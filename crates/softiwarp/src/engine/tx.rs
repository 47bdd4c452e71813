//! The sending half: from posted work to byte ranges for a vectored write.
//!
//! # Operation
//! [`Engine::fill`] turns work, Read Responses and control frames into FPDUs, until enough bytes are queued or there is
//! nothing to send. An FPDU is up to three *pieces*: header and trailer lie in the arena, the payload stays in its
//! region; what lies next to each other in the arena is one piece, and short payloads are copied there. The driver
//! writes the pieces and says how far it came.
//!
//! A DDP message, once begun, is finished before another begins. Read Responses and our own work take turns.
//!
//! # Ownership
//! Work owns its region in `works` until its last byte is written; a Read Response pins the region it is read from.
//! Pieces name regions by the running number of their work, so a region is found without searching.
//!
//! # Limits
//! At most [`PIECES`] pieces and [`QUEUED`] bytes are queued at one time; the arena is used from front to back and
//! starts over whenever all is written.

use std::{
    collections::VecDeque,
    io::{ErrorKind, IoSlice},
    time::Instant,
};

use rpcrdma_fabric::{Completion, Lost, RemoteSegment, Stag, Work};
use smallvec::{SmallVec, smallvec};

use super::{
    Engine, Failure,
    stags::{Slot, StagTable},
};
use crate::{
    ddp::{TAGGED_BYTES, Tagged, UNTAGGED_BYTES, Untagged, queue},
    mpa::{
        crc::Crc32c,
        fpdu::{CRC_BYTES, LENGTH_BYTES, pad},
    },
    rdmap::{MAX_TERMINATE_BYTES, Opcode, ReadRequest, Terminate},
};

/// Bytes of the arena.
const ARENA: usize = 32 * 1024;
/// Payload up to this many bytes is copied to the arena: an entry of a vectored write costs more.
const COPY: usize = 512;
/// The most that one FPDU takes of the arena.
const ARENA_PER_FPDU: usize = LENGTH_BYTES + UNTAGGED_BYTES + COPY + 3 + CRC_BYTES;
/// Pieces queued at one time.
const PIECES: usize = 256;
/// Bytes after which no further FPDU is queued.
const QUEUED: u64 = 1024 * 1024;
/// The most pieces handed to one system call.
pub const MAX_SLICES: usize = 64;

/// Byte ranges for one vectored write.
pub type Slices<'a> = SmallVec<[IoSlice<'a>; MAX_SLICES]>;

/// Where a piece's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Arena,
    /// The work with this running number.
    Work(u64),
    /// The region of an exposed entry.
    Exposed(Slot),
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    from: From,
    at: usize,
    len: usize,
}

/// A piece of work, from posting to completion.
struct Posted {
    /// None once it is a Read that has begun.
    work: Option<Work>,
    /// Segment that is being written.
    segment: usize,
    /// Bytes of the current DDP message that are queued.
    sent: usize,
    /// Bytes of the work's memory in earlier segments.
    earlier: usize,
    /// Position in the stream behind its last byte; unknown until that is queued.
    end: Option<u64>,
}

/// A Read Request of the peer's that is being answered.
struct Response {
    slot: Option<Slot>,
    at: usize,
    len: usize,
    sink_stag: u32,
    sink_to: u64,
    sent: usize,
    end: Option<u64>,
}

/// A frame that is not the user's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Zero-length RDMA Write: ready to receive, or a nudge.
    Write,
    /// Zero-length Read: ready to receive.
    Read,
    /// Zero-length Send: ready to receive.
    Send,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    None,
    Work,
    Response,
}

/// State of the sending half.
pub(super) struct Tx {
    arena: Box<[u8]>,
    arena_used: usize,
    pieces: VecDeque<Piece>,
    /// Bytes queued and written since the start.
    queued: u64,
    written: u64,
    /// Ends of the FPDUs that are not written in full, and where the first of them starts.
    ends: VecDeque<u64>,
    fpdu_start: u64,
    /// Posted work; the first `built` are queued in full.
    works: VecDeque<Posted>,
    first_work: u64,
    built: usize,
    responses: VecDeque<Response>,
    responses_built: usize,
    control: VecDeque<Control>,
    /// The DDP message that is begun and not finished.
    open: Message,
    /// Whose turn it is when both could begin.
    response_next: bool,
    /// Numbers of the next messages on the untagged queues.
    send_msn: u32,
    request_msn: u32,
    max_ulpdu: usize,
    crc: Option<Crc32c>,
    /// The passive side may not send before it has received.
    held: bool,
    /// Every Send asks for an event at the peer (RFC 5040 section 4.3).
    solicited: bool,
}

impl Tx {
    pub(super) fn new(max_ulpdu: usize, crc: bool, held: bool, solicited: bool) -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            arena_used: 0,
            pieces: VecDeque::with_capacity(PIECES),
            queued: 0,
            written: 0,
            ends: VecDeque::with_capacity(PIECES),
            fpdu_start: 0,
            works: VecDeque::new(),
            first_work: 0,
            built: 0,
            responses: VecDeque::new(),
            responses_built: 0,
            control: VecDeque::new(),
            open: Message::None,
            response_next: true,
            send_msn: 1,
            request_msn: 1,
            max_ulpdu,
            crc: crc.then(Crc32c::new),
            held,
            solicited,
        }
    }

    #[cfg(test)]
    pub(super) fn set_next_messages(&mut self, msn: u32) {
        (self.send_msn, self.request_msn) = (msn, msn);
    }

    pub(super) fn release(&mut self) {
        self.held = false;
    }

    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    pub(super) fn push_control(&mut self, control: Control) {
        self.control.push_back(control);
    }

    /// Posted work that has not completed, Reads that have begun aside.
    pub(super) fn works(&self) -> usize {
        self.works.len()
    }

    pub(super) fn post(&mut self, work: Work) {
        self.works.push_back(Posted { work: Some(work), segment: 0, sent: 0, earlier: 0, end: None });
    }

    /// Read Requests of the peer's that are not answered in full.
    pub(super) fn open_responses(&self) -> usize {
        self.responses.len()
    }

    /// Queues the answer to a Read Request that was checked; `source` is pinned.
    pub(super) fn respond(&mut self, request: &ReadRequest, source: Option<(Slot, usize)>) {
        self.responses.push_back(Response {
            slot: source.map(|(slot, _)| slot),
            at: source.map_or(0, |(_, at)| at),
            len: if source.is_some() { request.len as usize } else { 0 },
            sink_stag: request.sink_stag,
            sink_to: request.sink_to,
            sent: 0,
            end: None,
        });
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether anything is queued, or waits to be.
    pub(super) fn is_idle(&self) -> bool {
        self.pieces.is_empty()
            && self.built == self.works.len()
            && self.responses_built == self.responses.len()
            && self.control.is_empty()
    }

    fn has_room(&self) -> bool {
        self.queued - self.written < QUEUED
            && self.arena.len() - self.arena_used >= ARENA_PER_FPDU
            && self.pieces.len() + 3 <= PIECES
            && self.ends.len() < PIECES
    }

    /// Copies bytes to the arena and queues them. The caller knows that there is room.
    fn push_arena(&mut self, bytes: &[u8]) {
        let at = self.arena_used;
        let Some(place) = self.arena.get_mut(at..at + bytes.len()) else {
            debug_assert!(false, "has_room leaves room for a whole FPDU");
            return;
        };
        place.copy_from_slice(bytes);
        self.arena_used += bytes.len();
        self.queued += bytes.len() as u64;
        match self.pieces.back_mut() {
            Some(last) if last.from == From::Arena && last.at + last.len == at => last.len += bytes.len(),
            _ => self.pieces.push_back(Piece { from: From::Arena, at, len: bytes.len() }),
        }
    }

    /// Adds what the arena holds from `start` on to the running checksum.
    fn sum_arena(&mut self, start: usize) {
        if let Some(crc) = &mut self.crc {
            crc.update(self.arena.get(start..self.arena_used).unwrap_or_default());
        }
    }

    /// Queues one FPDU. `at` is the position of `payload` in the memory that `from` names.
    fn push_fpdu(&mut self, header: &[u8], extra: &[u8], payload: &[u8], from: From, at: usize) {
        let ulpdu = header.len() + extra.len() + payload.len();
        let mut unsummed = self.arena_used;
        self.push_arena(&(ulpdu as u16).to_be_bytes());
        self.push_arena(header);
        self.push_arena(extra);
        if payload.len() <= COPY {
            self.push_arena(payload);
        } else {
            self.sum_arena(unsummed);
            unsummed = self.arena_used;
            self.pieces.push_back(Piece { from, at, len: payload.len() });
            self.queued += payload.len() as u64;
            if let Some(crc) = &mut self.crc {
                crc.update(payload);
            }
        }
        self.push_arena([0; 3].get(..pad(ulpdu)).unwrap_or_default());
        self.sum_arena(unsummed);
        let trailer = self.crc.as_mut().map_or([0; CRC_BYTES], Crc32c::take);
        self.push_arena(&trailer);
        self.ends.push_back(self.queued);
    }

    fn untagged(&mut self, opcode: Opcode, qn: u32, invalidate: u32) -> Untagged {
        let msn = if qn == queue::SEND { &mut self.send_msn } else { &mut self.request_msn };
        let header = Untagged { last: true, rdmap: opcode.control(), invalidate, qn, msn: *msn, mo: 0 };
        *msn = msn.wrapping_add(1);
        header
    }

    fn push_request(&mut self, request: &ReadRequest) {
        let header = self.untagged(Opcode::READ_REQUEST, queue::READ_REQUEST, 0).encode();
        self.push_fpdu(&header, &request.encode(), &[], From::Arena, 0);
    }

    /// Queues the next FPDU of the oldest unanswered Read Request.
    fn push_response(&mut self, stags: &StagTable) -> bool {
        let Some(response) = self.responses.get(self.responses_built) else { return false };
        let most = self.max_ulpdu - TAGGED_BYTES;
        let (sent, n) = (response.sent, (response.len - response.sent).min(most));
        let last = sent + n == response.len;
        let header = Tagged {
            last,
            rdmap: Opcode::READ_RESPONSE.control(),
            stag: response.sink_stag,
            to: response.sink_to.wrapping_add(sent as u64),
        };
        let (at, slot) = (response.at + sent, response.slot);
        let payload = slot.and_then(|slot| stags.region(slot)?.get(at..at + n)).unwrap_or_default();
        self.push_fpdu(&header.encode(), &[], payload, slot.map_or(From::Arena, From::Exposed), at);
        let end = self.queued;
        if let Some(response) = self.responses.get_mut(self.responses_built) {
            response.sent += n;
            response.end = last.then_some(end);
        }
        self.responses_built += usize::from(last);
        self.open = if last { Message::None } else { Message::Response };
        true
    }

    /// Ends of the bytes of `pieces`, in order, for one system call.
    fn slices<'a>(&'a self, stags: &'a StagTable, out: &mut Slices<'a>) {
        for piece in self.pieces.iter().take(MAX_SLICES) {
            let bytes = self.piece(stags, piece);
            debug_assert_eq!(bytes.len(), piece.len);
            out.push(IoSlice::new(bytes));
        }
    }

    fn piece<'a>(&'a self, stags: &'a StagTable, piece: &Piece) -> &'a [u8] {
        let all: Option<&[u8]> = match piece.from {
            From::Arena => Some(&self.arena),
            From::Work(number) => number
                .checked_sub(self.first_work)
                .and_then(|i| self.works.get(usize::try_from(i).ok()?))
                .and_then(|posted| posted.work.as_ref())
                .map(|work| match work {
                    Work::Send { buf, .. } | Work::Write { buf, .. } | Work::Read { buf, .. } => &buf[..],
                }),
            From::Exposed(slot) => stags.region(slot).map(|region| &region[..]),
        };
        all.and_then(|all| all.get(piece.at..piece.at + piece.len)).unwrap_or_default()
    }

    /// The rest of an FPDU that is half written, followed by a Terminate: what may still be sent after an error.
    pub(super) fn last_words(&self, stags: &StagTable, terminate: Option<&Terminate>) -> Vec<u8> {
        let mut out = Vec::new();
        if self.written > self.fpdu_start
            && let Some(end) = self.ends.front()
        {
            let mut left = usize::try_from(end - self.written).unwrap_or(0);
            for piece in &self.pieces {
                let bytes = self.piece(stags, piece);
                let bytes = bytes.get(..left).unwrap_or(bytes);
                out.extend_from_slice(bytes);
                left -= bytes.len();
            }
        }
        // An acceptor sends nothing before it has taken the initiator's first FPDU (RFC 5044 section 7.1.2).
        if let Some(terminate) = terminate.filter(|_| !self.held) {
            out.extend_from_slice(&terminate_fpdu(terminate, self.crc.is_some()));
        }
        out
    }

    /// Takes out every piece of work that has not completed, oldest first, with its memory.
    pub(super) fn flush_works(&mut self, mut each: impl FnMut(Work)) {
        self.pieces.clear();
        self.works.drain(..).filter_map(|posted| posted.work).for_each(&mut each);
        self.responses.clear();
        self.control.clear();
        self.ends.clear();
        (self.built, self.responses_built, self.open) = (0, 0, Message::None);
    }
}

/// A Terminate message as it travels.
#[must_use]
pub fn terminate_fpdu(terminate: &Terminate, crc: bool) -> Vec<u8> {
    let header = Untagged {
        last: true,
        rdmap: Opcode::TERMINATE.control(),
        invalidate: 0,
        qn: queue::TERMINATE,
        msn: 1,
        mo: 0,
    };
    let mut ulpdu = Vec::with_capacity(UNTAGGED_BYTES + MAX_TERMINATE_BYTES);
    ulpdu.extend_from_slice(&header.encode());
    terminate.encode(&mut ulpdu);
    let mut out = Vec::with_capacity(ulpdu.len() + 16);
    crate::mpa::fpdu::encode(&ulpdu, crc, &mut out);
    out
}

impl Engine {
    /// Queues what can be sent, up to a bound. Call before [`Self::output`]. Work without bytes completes here.
    pub fn fill(&mut self, done: &mut Vec<Completion>) {
        if self.failure.is_some() || self.tx.held {
            return;
        }
        if self.tx.pieces.is_empty() {
            self.tx.arena_used = 0;
        }
        while self.tx.has_room() && self.push_next() {}
        // Only work that is nothing to do at all can be complete already.
        self.complete_written(done);
    }

    /// Queues one FPDU; false if there is none to send.
    fn push_next(&mut self) -> bool {
        match self.tx.open {
            Message::Work => return self.push_work(),
            Message::Response => return self.tx.push_response(&self.stags),
            Message::None => {}
        }
        if let Some(control) = self.tx.control.front().copied() {
            self.tx.control.pop_front();
            return self.push_control(control);
        }
        let response_first = self.tx.response_next;
        self.tx.response_next = !response_first;
        (response_first && self.tx.push_response(&self.stags))
            || self.push_work()
            || (!response_first && self.tx.push_response(&self.stags))
    }

    fn push_control(&mut self, control: Control) -> bool {
        match control {
            Control::Write => {
                let header = Tagged { last: true, rdmap: Opcode::WRITE.control(), stag: 1, to: 0 };
                self.tx.push_fpdu(&header.encode(), &[], &[], From::Arena, 0);
            }
            Control::Send => {
                let header = self.tx.untagged(Opcode::SEND, queue::SEND, 0).encode();
                self.tx.push_fpdu(&header, &[], &[], From::Arena, 0);
            }
            Control::Read => {
                let Some(sink) = self.stags.add_sink() else { return self.fail_without_randomness() };
                let nothing = RemoteSegment { stag: Stag(1), offset: 0, len: 0 };
                self.reads.begin(0, None, 0, smallvec![nothing], sink);
                if let Some((request, _)) = self.reads.issue(&self.stags) {
                    self.tx.push_request(&request);
                }
            }
        }
        true
    }

    /// Queues the next FPDU of the oldest unfinished work.
    fn push_work(&mut self) -> bool {
        let tx = &mut self.tx;
        let number = tx.first_work + tx.built as u64;
        let Some(posted) = tx.works.get_mut(tx.built) else { return false };
        let finished = match posted.work.take() {
            Some(work @ Work::Read { .. }) => {
                let empty = matches!(&work, Work::Read { from, .. } if from.is_empty());
                if empty {
                    posted.work = Some(work);
                    true
                } else {
                    if !self.reads.may_issue() {
                        posted.work = Some(work);
                        return false;
                    }
                    let Some(sink) = self.stags.add_sink() else {
                        posted.work = Some(work);
                        return self.fail_without_randomness();
                    };
                    if let Work::Read { id, buf, at, from } = work {
                        self.reads.begin(id, Some(buf), at, from, sink);
                    }
                    self.push_read_request()
                }
            }
            // A Read that has begun, with requests left to send.
            None => {
                if !self.reads.may_issue() {
                    return false;
                }
                self.push_read_request()
            }
            Some(work @ Work::Send { .. }) => {
                let sent = posted.sent;
                let finished = self.push_send(&work, sent, number);
                if let Some(posted) = self.tx.works.get_mut(self.tx.built) {
                    posted.work = Some(work);
                }
                finished
            }
            Some(work @ Work::Write { .. }) => {
                let (segment, sent, earlier) = (posted.segment, posted.sent, posted.earlier);
                let finished = self.push_write(&work, segment, sent, earlier, number);
                if let Some(posted) = self.tx.works.get_mut(self.tx.built) {
                    posted.work = Some(work);
                }
                finished
            }
        };
        let tx = &mut self.tx;
        if finished {
            if let Some(posted) = tx.works.get_mut(tx.built) {
                posted.end = Some(tx.queued);
            }
            tx.built += 1;
        }
        true
    }

    fn fail_without_randomness(&mut self) -> bool {
        self.fail(Failure { lost: Lost::Io(ErrorKind::Other), terminate: None });
        false
    }

    /// Queues one request of the Read begun last; true if it was that Read's last.
    fn push_read_request(&mut self) -> bool {
        let Some((request, last)) = self.reads.issue(&self.stags) else { return true };
        self.tx.push_request(&request);
        last
    }

    /// Queues the next FPDU of a Send; true if it was the last.
    fn push_send(&mut self, work: &Work, sent: usize, number: u64) -> bool {
        let Work::Send { buf, len, invalidate, .. } = work else { return true };
        let tx = &mut self.tx;
        let n = (len - sent).min(tx.max_ulpdu - UNTAGGED_BYTES);
        let last = sent + n == *len;
        let opcode = match (tx.solicited, invalidate) {
            (false, None) => Opcode::SEND,
            (false, Some(_)) => Opcode::SEND_INVALIDATE,
            (true, None) => Opcode::SEND_SOLICITED,
            (true, Some(_)) => Opcode::SEND_SOLICITED_INVALIDATE,
        };
        let header = Untagged {
            last,
            rdmap: opcode.control(),
            invalidate: invalidate.map_or(0, |stag| stag.0),
            qn: queue::SEND,
            msn: tx.send_msn,
            mo: sent as u32,
        };
        let payload = buf.get(sent..sent + n).unwrap_or_default();
        tx.push_fpdu(&header.encode(), &[], payload, From::Work(number), sent);
        if let Some(posted) = tx.works.get_mut(tx.built) {
            posted.sent += n;
        }
        if last {
            tx.send_msn = tx.send_msn.wrapping_add(1);
        }
        tx.open = if last { Message::None } else { Message::Work };
        last
    }

    /// Queues the next FPDU of a Write; true if it was the last of its last segment.
    fn push_write(&mut self, work: &Work, segment: usize, sent: usize, earlier: usize, number: u64) -> bool {
        let Work::Write { buf, at, to, .. } = work else { return true };
        let Some(target) = to.get(segment) else { return true };
        let tx = &mut self.tx;
        let len = target.len as usize;
        let n = (len - sent).min(tx.max_ulpdu - TAGGED_BYTES);
        let last = sent + n == len;
        let header = Tagged {
            last,
            rdmap: Opcode::WRITE.control(),
            stag: target.stag.0,
            to: target.offset.wrapping_add(sent as u64),
        };
        let from = at + earlier + sent;
        let payload = buf.get(from..from + n).unwrap_or_default();
        tx.push_fpdu(&header.encode(), &[], payload, From::Work(number), from);
        if let Some(posted) = tx.works.get_mut(tx.built) {
            posted.sent += n;
            if last {
                posted.segment += 1;
                posted.earlier += len;
                posted.sent = 0;
            }
        }
        tx.open = if last { Message::None } else { Message::Work };
        last && segment + 1 >= to.len()
    }

    /// Puts the next bytes to write into `out`; nothing if there are none.
    pub fn output<'a>(&'a self, out: &mut Slices<'a>) {
        self.tx.slices(&self.stags, out);
    }

    /// Whether [`Self::output`] would give anything.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.tx.pieces.is_empty()
    }

    /// Takes note that the transport has taken the first `n` bytes of [`Self::output`].
    pub fn wrote(&mut self, n: usize, now: Instant, done: &mut Vec<Completion>) {
        let tx = &mut self.tx;
        let mut left = n;
        while left > 0
            && let Some(piece) = tx.pieces.front_mut()
        {
            let k = left.min(piece.len);
            (piece.at, piece.len, left) = (piece.at + k, piece.len - k, left - k);
            tx.written += k as u64;
            if piece.len == 0 {
                tx.pieces.pop_front();
            }
        }
        while let Some(end) = tx.ends.front().copied().filter(|end| *end <= tx.written) {
            tx.fpdu_start = end;
            tx.ends.pop_front();
        }
        self.nudge.sent(now);
        self.complete_written(done);
    }

    /// Completes what has been written in full.
    fn complete_written(&mut self, done: &mut Vec<Completion>) {
        let tx = &mut self.tx;
        let written = |end: Option<u64>| end.is_some_and(|end| end <= tx.written);
        while tx.works.front().is_some_and(|posted| written(posted.end)) {
            tx.first_work += 1;
            tx.built -= 1;
            if let Some(work) = tx.works.pop_front().and_then(|posted| posted.work) {
                let (id, op, buf) = work.into_parts();
                done.push(Completion::Done { id, op, buf });
            }
        }
        while tx.responses.front().is_some_and(|response| written(response.end)) {
            tx.responses_built -= 1;
            let slot = tx.responses.pop_front().and_then(|response| response.slot);
            if let Some((stag, buf)) = slot.and_then(|slot| self.stags.unpin(slot)) {
                done.push(Completion::Reclaimed { stag, buf });
            }
        }
    }
}
