//! The receiving half: from the byte stream to placed payload and completions.
//!
//! # Operation
//! An FPDU goes through three phases. In *header* its first bytes are gathered in the staging buffer and checked; that
//! decides where its payload belongs. In *payload* the driver reads straight into that memory. In *trailer* the
//! padding and the checksum are gathered, and then, only then, the segment counts: a message is delivered, a Read
//! Request is queued, a Read completes. A segment that breaks a rule is read to its end too, so that a damaged one is
//! reported as damaged and not as whatever its damage looks like.
//!
//! How many bytes are asked for in the header phase adapts. Where small FPDUs come in bursts, the window grows until
//! one read takes many of them, and their payload is copied out of the staging buffer. A large FPDU makes the window
//! small again, and inside a large one exactly its payload, its trailer and the next header are asked for, so that the
//! bytes which pass through the staging buffer stay few.
//!
//! # When it breaks
//! Each check has its Terminate code (RFC 5041 section 7, RFC 5040 section 7); the first violation stops the engine.
//!
//! # Limits
//! One untagged message is open at a time. Markers are never asked for, so none come.

use std::{collections::VecDeque, io::IoSliceMut};

use rpcrdma_fabric::{Access, Completion, Lost, Op, Region, Stag};

use super::{
    Engine, Failure,
    reads::{Reads, Unexpected},
    stags::{Refusal, Slot, StagTable},
};
use crate::{
    ddp::{
        Header, HeaderError, RawHeader, TAGGED_BYTES, Tagged, UNTAGGED_BYTES, Untagged, header_len, queue,
    },
    mpa::{
        crc::Crc32c,
        fpdu::{CRC_BYTES, LENGTH_BYTES, pad},
    },
    rdmap::{self, ErrorCode, MAX_TERMINATE_BYTES, Opcode, ReadRequest, Terminate},
};

/// Bytes of the staging buffer, and the most that is asked for at once in the header phase.
const STAGE: usize = 32 * 1024;
/// The window at the start of a connection.
const WINDOW: usize = 4096;
/// The window behind the last segment of a large message: what follows is often a short Send.
const WINDOW_AFTER_BULK: usize = 256;
/// From this payload on an FPDU is large.
const BULK: usize = 16 * 1024;
/// No header phase needs more bytes than the smallest window takes.
const _: () = assert!(WINDOW_AFTER_BULK >= LENGTH_BYTES + UNTAGGED_BYTES + MAX_TERMINATE_BYTES);

/// Where payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Nowhere: there is none of use, or it was looked at in place.
    Nowhere,
    /// The oldest posted Receive.
    Receive,
    /// An exposed region.
    Exposed(Slot),
    /// The memory of the oldest open Read.
    Sink,
}

/// What happens when an FPDU has arrived whole.
#[derive(Clone, Copy, Debug)]
enum Act {
    Nothing,
    /// A segment of a Send of this many bytes.
    Send {
        len: usize,
        last: bool,
        invalidate: Option<u32>,
    },
    /// The ready-to-receive Send, which no Receive is spent on.
    SwallowSend,
    ReadRequest(ReadRequest),
    ReadResponse {
        len: u32,
        last: bool,
    },
    Terminated(Terminate),
    /// The segment broke a rule.
    Fail(ErrorCode),
}

/// The FPDU that is being received.
#[derive(Clone, Copy, Debug)]
struct Current {
    ulpdu: usize,
    /// The header as it came, unless the FPDU is too short for one.
    raw: Option<RawHeader>,
    last: bool,
    bulk: bool,
    target: Target,
    /// Position in the target of the next byte, and bytes of payload to come.
    at: usize,
    left: usize,
    act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    Payload,
    Trailer,
}

impl Current {
    fn new(ulpdu: usize) -> Self {
        Self {
            ulpdu,
            raw: None,
            last: true,
            bulk: false,
            target: Target::Nowhere,
            at: 0,
            left: ulpdu,
            act: Act::Nothing,
        }
    }
}

/// The memory that payload goes to.
fn memory<'a>(
    target: Target,
    recvs: &'a mut VecDeque<Region>,
    stags: &'a mut StagTable,
    reads: &'a mut Reads,
) -> Option<&'a mut Region> {
    match target {
        Target::Nowhere => None,
        Target::Receive => recvs.front_mut(),
        Target::Exposed(slot) => stags.region_mut(slot),
        Target::Sink => reads.sink_mut(),
    }
}

/// State of the receiving half.
pub(super) struct Rx {
    stage: Box<[u8]>,
    start: usize,
    end: usize,
    window: usize,
    /// Bytes asked for by the last [`Engine::input`].
    asked: usize,
    phase: Phase,
    /// Of no meaning in the header phase.
    current: Current,
    crc: Option<Crc32c>,
    /// The next Send message, and the bytes of it that are here.
    send_msn: u32,
    send_len: usize,
    /// RDMAP's fields in the first segment of an open Send: all others repeat them.
    send_open: Option<(u8, u32)>,
    request_msn: u32,
    send_is_rtr: bool,
    heard: bool,
}

impl Rx {
    pub(super) fn new(crc: bool, send_is_rtr: bool) -> Self {
        Self {
            stage: vec![0; STAGE].into_boxed_slice(),
            start: 0,
            end: 0,
            window: WINDOW,
            asked: 0,
            phase: Phase::Header,
            current: Current::new(0),
            crc: crc.then(Crc32c::new),
            send_msn: 1,
            send_len: 0,
            send_open: None,
            request_msn: 1,
            send_is_rtr,
            heard: false,
        }
    }

    #[cfg(test)]
    pub(super) fn set_next_messages(&mut self, msn: u32) {
        (self.send_msn, self.request_msn) = (msn, msn);
    }

    /// Whether the stream could end here in good order.
    pub(super) fn between_fpdus(&self) -> bool {
        self.phase == Phase::Header && self.start == self.end
    }

    /// Stops placing bytes into a region that is being closed.
    pub(super) fn abandon(&mut self, slot: Slot) {
        if self.phase == Phase::Payload && self.current.target == Target::Exposed(slot) {
            self.current.target = Target::Nowhere;
            self.current.bulk = false;
            self.current.act = Act::Fail(ErrorCode::TAGGED_STAG);
        }
    }

    /// Forgets what is being received.
    pub(super) fn stop(&mut self) {
        self.phase = Phase::Header;
        (self.start, self.end) = (0, 0);
    }

    fn staged(&self) -> &[u8] {
        self.stage.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes `n` bytes from the staging buffer through the checksum.
    fn consume_summed(&mut self, n: usize) {
        let to = (self.start + n).min(self.end);
        if let Some(crc) = &mut self.crc {
            crc.update(self.stage.get(self.start..to).unwrap_or_default());
        }
        self.start = to;
    }

    /// Bytes to ask for in the staging buffer.
    fn stage_window(&self) -> usize {
        if self.phase == Phase::Payload && self.current.bulk {
            let trailer = pad(self.current.ulpdu) + CRC_BYTES;
            trailer + if self.current.last { WINDOW_AFTER_BULK } else { LENGTH_BYTES + TAGGED_BYTES }
        } else {
            self.window
        }
    }

    fn take_crc(&mut self) -> Option<[u8; 4]> {
        self.crc.as_mut().map(Crc32c::take)
    }
}

impl Engine {
    /// Places for one vectored read, in order: first the memory that the next bytes are meant for, which may be empty,
    /// then room for what follows. Both empty once the engine has failed.
    pub fn input(&mut self) -> [IoSliceMut<'_>; 2] {
        if self.failure.is_some() {
            self.rx.asked = 0;
            return [IoSliceMut::new(&mut []), IoSliceMut::new(&mut [])];
        }
        let rx = &mut self.rx;
        if rx.start > 0 {
            // At most a partial header or trailer: whatever was whole has been consumed.
            rx.stage.copy_within(rx.start..rx.end, 0);
            (rx.start, rx.end) = (0, rx.end - rx.start);
        }
        let window = rx.stage_window().min(rx.stage.len() - rx.end);
        let direct: &mut [u8] = if rx.phase == Phase::Payload {
            let Current { target, at, left, .. } = rx.current;
            memory(target, &mut self.recvs, &mut self.stags, &mut self.reads)
                .and_then(|region| region.get_mut(at..at + left))
                .unwrap_or_default()
        } else {
            &mut []
        };
        let staged = rx.stage.get_mut(rx.end..rx.end + window).unwrap_or_default();
        rx.asked = direct.len() + staged.len();
        [IoSliceMut::new(direct), IoSliceMut::new(staged)]
    }

    /// Takes note that the first `n` bytes of the places that [`Self::input`] gave were filled.
    pub fn received(&mut self, n: usize, done: &mut Vec<Completion>) {
        let rx = &mut self.rx;
        let n = n.min(rx.asked);
        let full = n == rx.asked;
        let mut direct = 0;
        if rx.phase == Phase::Payload && rx.current.target != Target::Nowhere {
            let current = &mut rx.current;
            direct = n.min(current.left);
            if let Some(crc) = &mut rx.crc {
                let region = memory(current.target, &mut self.recvs, &mut self.stags, &mut self.reads);
                let came = region.and_then(|region| region.get(current.at..current.at + direct));
                crc.update(came.unwrap_or_default());
            }
            current.at += direct;
            current.left -= direct;
        }
        if full && !rx.current.bulk {
            rx.grow();
        }
        rx.end += n - direct;
        while self.failure.is_none() && self.step(done) {}
    }

    /// One step of the current FPDU; false if more bytes are needed.
    fn step(&mut self, done: &mut Vec<Completion>) -> bool {
        match self.rx.phase {
            Phase::Header => {
                let Some(current) = self.begin() else { return false };
                let header = current.raw.map_or(0, |raw| raw.bytes().len());
                self.rx.consume_summed(LENGTH_BYTES + header);
                if current.bulk {
                    self.rx.window = WINDOW_AFTER_BULK;
                }
                (self.rx.phase, self.rx.current) = (Phase::Payload, current);
                true
            }
            Phase::Payload => {
                self.take_staged();
                let whole = self.rx.current.left == 0;
                if whole {
                    self.rx.phase = Phase::Trailer;
                }
                whole
            }
            Phase::Trailer => {
                let current = self.rx.current;
                let padding = pad(current.ulpdu);
                if self.rx.staged().len() < padding + CRC_BYTES {
                    return false;
                }
                self.rx.consume_summed(padding);
                let trailer = self.rx.staged().first_chunk().copied();
                self.rx.start += CRC_BYTES;
                (self.rx.phase, self.rx.current.bulk) = (Phase::Header, false);
                let expected = self.rx.take_crc();
                if expected.is_some() && expected != trailer {
                    self.violated(ErrorCode::CRC, &current);
                } else {
                    self.act(&current, done);
                }
                true
            }
        }
    }

    /// Moves payload that came with the header to where it belongs.
    fn take_staged(&mut self) {
        let rx = &mut self.rx;
        let current = rx.current;
        let k = current.left.min(rx.end - rx.start);
        if k == 0 {
            return;
        }
        let bytes = rx.stage.get(rx.start..rx.start + k).unwrap_or_default();
        let region = memory(current.target, &mut self.recvs, &mut self.stags, &mut self.reads);
        if let Some(place) = region.and_then(|region| region.get_mut(current.at..current.at + k)) {
            place.copy_from_slice(bytes);
        }
        rx.consume_summed(k);
        rx.current.at += k;
        rx.current.left -= k;
    }

    /// Looks at the staged start of an FPDU; `None` if more of it is needed.
    fn begin(&self) -> Option<Current> {
        let staged = self.rx.staged();
        let (length, rest) = staged.split_first_chunk::<LENGTH_BYTES>()?;
        let ulpdu = usize::from(u16::from_be_bytes(*length));
        let mut current = Current::new(ulpdu);
        let needed = if ulpdu == 0 { TAGGED_BYTES } else { header_len(*rest.first()?) };
        if ulpdu < needed {
            current.act = Act::Fail(ErrorCode::LENGTH);
            return Some(current);
        }
        let raw = RawHeader::copy(rest)?;
        let len = ulpdu - needed;
        (current.raw, current.left) = (Some(raw), len);
        let looked = match Header::decode(raw.bytes()) {
            Ok(header) if rdmap::version(header.rdmap()) != rdmap::VERSION => Err(ErrorCode::RDMAP_VERSION),
            Ok(Header::Tagged(header)) => {
                current.last = header.last;
                self.begin_tagged(&header, len)
            }
            Ok(Header::Untagged(header)) => {
                current.last = header.last;
                self.begin_untagged(&header, len, rest.get(UNTAGGED_BYTES..)?)?
            }
            Err(HeaderError::Version { tagged: true, .. }) => Err(ErrorCode::TAGGED_VERSION),
            Err(HeaderError::Version { tagged: false, .. }) => Err(ErrorCode::UNTAGGED_VERSION),
            Err(HeaderError::Short) => Err(ErrorCode::LENGTH),
        };
        match looked {
            Ok((target, at, act)) => {
                current.bulk = target != Target::Nowhere && len >= BULK;
                (current.target, current.at, current.act) = (target, at, act);
            }
            Err(code) => current.act = Act::Fail(code),
        }
        Some(current)
    }

    /// Checks a tagged segment (RFC 5041 section 5.2, RFC 5040 section 5).
    fn begin_tagged(&self, header: &Tagged, len: usize) -> Result<(Target, usize, Act), ErrorCode> {
        let bytes = len as u32;
        match Opcode::of(header.rdmap) {
            Opcode::WRITE if len == 0 => Ok((Target::Nowhere, 0, Act::Nothing)),
            Opcode::WRITE => match self.stags.check(header.stag, header.to, bytes, Access::RemoteWrite) {
                Ok((slot, at)) => Ok((Target::Exposed(slot), at, Act::Nothing)),
                Err(Refusal::Stag) => Err(ErrorCode::TAGGED_STAG),
                Err(Refusal::Bounds) => Err(ErrorCode::TAGGED_BOUNDS),
                Err(Refusal::Rights) => Err(ErrorCode::ACCESS_RIGHTS),
                Err(Refusal::Wrap) => Err(ErrorCode::TAGGED_WRAP),
            },
            Opcode::READ_RESPONSE => {
                let at = self.reads.check(&self.stags, header.stag, header.to, bytes, header.last).map_err(
                    |unexpected| match unexpected {
                        Unexpected::Stag => ErrorCode::TAGGED_STAG,
                        Unexpected::Bounds => ErrorCode::TAGGED_BOUNDS,
                    },
                )?;
                let target = if len == 0 { Target::Nowhere } else { Target::Sink };
                Ok((target, at, Act::ReadResponse { len: bytes, last: header.last }))
            }
            _ => Err(ErrorCode::UNEXPECTED_OPCODE),
        }
    }

    /// Checks an untagged segment (RFC 5041 section 5.3, RFC 5040 section 5). `payload` is what is staged of it; `None`
    /// if that must be more.
    fn begin_untagged(
        &self,
        header: &Untagged,
        len: usize,
        payload: &[u8],
    ) -> Option<Result<(Target, usize, Act), ErrorCode>> {
        let opcode = Opcode::of(header.rdmap);
        let queue = match opcode {
            Opcode::READ_REQUEST => queue::READ_REQUEST,
            Opcode::TERMINATE => queue::TERMINATE,
            _ if opcode.is_send() => queue::SEND,
            _ => return Some(Err(ErrorCode::UNEXPECTED_OPCODE)),
        };
        if header.qn > queue::TERMINATE {
            return Some(Err(ErrorCode::UNTAGGED_QUEUE));
        }
        if header.qn != queue {
            return Some(Err(ErrorCode::UNEXPECTED_OPCODE));
        }
        match queue {
            queue::SEND => Some(self.begin_send(header, opcode, len)),
            queue::READ_REQUEST => {
                let code = if header.msn != self.rx.request_msn {
                    ErrorCode::UNTAGGED_MSN
                } else if header.mo != 0 {
                    ErrorCode::UNTAGGED_MO
                } else if len < ReadRequest::BYTES {
                    ErrorCode::LENGTH
                } else if len > ReadRequest::BYTES || !header.last {
                    ErrorCode::MESSAGE_TOO_LONG
                } else {
                    let request = ReadRequest::decode(payload)?;
                    return Some(Ok((Target::Nowhere, 0, Act::ReadRequest(request))));
                };
                Some(Err(code))
            }
            _ => {
                // Nothing of a Terminate matters enough to complain about it, except that it must be one.
                if len < 4 {
                    return Some(Err(ErrorCode::LENGTH));
                }
                let payload = payload.get(..len.min(MAX_TERMINATE_BYTES))?;
                let (terminate, _) = Terminate::decode(payload)?;
                Some(Ok((Target::Nowhere, 0, Act::Terminated(terminate))))
            }
        }
    }

    fn begin_send(
        &self,
        header: &Untagged,
        opcode: Opcode,
        len: usize,
    ) -> Result<(Target, usize, Act), ErrorCode> {
        let rx = &self.rx;
        if header.msn != rx.send_msn {
            return Err(ErrorCode::UNTAGGED_MSN);
        }
        if u32::try_from(rx.send_len) != Ok(header.mo) {
            return Err(ErrorCode::UNTAGGED_MO);
        }
        if rx.send_open.is_some_and(|first| first != (header.rdmap, header.invalidate)) {
            return Err(ErrorCode::UNEXPECTED_OPCODE);
        }
        if rx.send_is_rtr && !rx.heard && len == 0 && header.last {
            return Ok((Target::Nowhere, 0, Act::SwallowSend));
        }
        let recv = self.recvs.front().ok_or(ErrorCode::NO_BUFFER)?;
        if rx.send_len.checked_add(len).is_none_or(|end| end > recv.len()) {
            return Err(ErrorCode::MESSAGE_TOO_LONG);
        }
        let invalidate = opcode.invalidates().then_some(header.invalidate);
        Ok((Target::Receive, rx.send_len, Act::Send { len, last: header.last, invalidate }))
    }

    /// An FPDU has arrived whole and undamaged.
    fn act(&mut self, current: &Current, done: &mut Vec<Completion>) {
        if !self.rx.heard {
            self.rx.heard = true;
            self.nudge.disarm();
            self.tx.release();
        }
        match current.act {
            Act::Nothing => {}
            Act::SwallowSend => self.rx.send_msn = self.rx.send_msn.wrapping_add(1),
            Act::Send { len, last, invalidate } => self.deliver(current, len, last, invalidate, done),
            Act::ReadRequest(request) => self.serve(current, &request),
            Act::ReadResponse { len, last } => {
                if let Some(read) = self.reads.answered(&mut self.stags, len, last)
                    && let Some(buf) = read.buf
                {
                    done.push(Completion::Done { id: read.id, op: Op::Read, buf });
                }
            }
            Act::Terminated(terminate) => {
                self.fail(Failure { lost: Lost::Terminated(terminate.to_string()), terminate: None });
            }
            Act::Fail(code) => self.violated(code, current),
        }
    }

    /// A segment of a Send is here; with the last one the message is delivered.
    fn deliver(
        &mut self,
        current: &Current,
        len: usize,
        last: bool,
        invalidate: Option<u32>,
        done: &mut Vec<Completion>,
    ) {
        self.rx.send_len += len;
        if !last {
            let first = current.raw.and_then(|raw| Header::decode(raw.bytes()).ok());
            if let Some(Header::Untagged(header)) = first {
                self.rx.send_open = Some((header.rdmap, header.invalidate));
            }
            return;
        }
        if let Some(stag) = invalidate {
            // A region that a Read Response is still being sent from does not come back at once, and the peer that asks
            // for that has not waited for what it asked for before.
            match self.stags.find_exposed(stag).and_then(|slot| self.stags.revoke(slot)) {
                Some((stag, buf)) => done.push(Completion::Reclaimed { stag, buf }),
                None => return self.violated(ErrorCode::CANNOT_INVALIDATE, current),
            }
        }
        let Some(buf) = self.recvs.pop_front() else { return };
        let len = self.rx.send_len;
        (self.rx.send_len, self.rx.send_open) = (0, None);
        self.rx.send_msn = self.rx.send_msn.wrapping_add(1);
        done.push(Completion::Received { buf, len, invalidated: invalidate.map(Stag) });
    }

    /// Checks a Read Request (RFC 5040 section 5.2.1) and queues its answer.
    fn serve(&mut self, current: &Current, request: &ReadRequest) {
        self.rx.request_msn = self.rx.request_msn.wrapping_add(1);
        if self.tx.open_responses() >= self.limits.inbound_reads as usize {
            return self.violated(ErrorCode::STREAM_CATASTROPHIC, current);
        }
        if request.len == 0 {
            return self.tx.respond(request, None);
        }
        let checked =
            self.stags.check(request.source_stag, request.source_to, request.len, Access::RemoteRead);
        let code = match checked {
            Ok((slot, at)) => {
                self.stags.pin(slot);
                return self.tx.respond(request, Some((slot, at)));
            }
            Err(Refusal::Stag) => ErrorCode::READ_STAG,
            Err(Refusal::Bounds) => ErrorCode::READ_BOUNDS,
            Err(Refusal::Rights) => ErrorCode::ACCESS_RIGHTS,
            Err(Refusal::Wrap) => ErrorCode::READ_WRAP,
        };
        self.violated(code, current);
    }

    /// Stops the engine because of what the peer sent.
    fn violated(&mut self, code: ErrorCode, current: &Current) {
        let mut terminate = Terminate::bare(code);
        if code.layer < 2 {
            terminate.segment = current.raw.map(|raw| (current.ulpdu as u16, raw));
            // Only the errors of layer 0 are about what a Read Request asks for.
            if let (0, Act::ReadRequest(request)) = (code.layer, current.act) {
                terminate.read_request = Some(request);
            }
        }
        self.fail(Failure { lost: Lost::PeerMisbehaved(code.to_string()), terminate: Some(terminate) });
    }
}

impl Rx {
    /// A read came back full: there is more, so ask for more next time.
    fn grow(&mut self) {
        self.window = (self.window * 4).min(STAGE);
    }
}
