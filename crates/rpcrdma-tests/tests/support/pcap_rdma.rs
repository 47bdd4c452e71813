//! Follows a recorded iWARP connection that carries RPC-over-RDMA: start-up frames, FPDUs, DDP segments, RDMAP
//! messages, transport headers, and the RPC messages with their chunks.
//!
//! # Operation
//! Deliveries of the TCP stream come in order. Each FPDU is decoded, encoded again and compared; segments are joined
//! to messages. RDMA Writes and Read Responses are kept by the memory they name until the Reply says which of it
//! belongs to the Call. A Call with a Read list is decoded when it is answered, because only then all of its chunks
//! are certain to have been pulled.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use rpcrdma_proto::rpc::{MessageType, peek};
use rpcrdma_proto::rpcrdma::{Body, Header, Limits, PrivateData, Segment, Thresholds};
use rpcrdma_proto::xdr::{Chunk, Encode, Writer};
use softiwarp::ddp::{self, Tagged, Untagged, queue};
use softiwarp::mpa::fpdu;
use softiwarp::mpa::frame::{Enhanced, Frame, Kind};
use softiwarp::rdmap::{self, Opcode, ReadRequest};

use super::pcap::Delivery;
use super::pcap_rpc::{Asked, Seen, check_call, check_reply};

/// What a connection was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) fpdus: usize,
    /// FPDUs whose padding is not zeros.
    pub(crate) dirty_pads: usize,
    /// Of all four kinds.
    pub(crate) sends: usize,
    pub(crate) sends_with_invalidate: usize,
    /// Whole RDMA Writes, which may have had several segments.
    pub(crate) writes: usize,
    pub(crate) read_requests: usize,
    pub(crate) read_response_segments: usize,
    pub(crate) nomsg: usize,
    /// Calls with a Read list, a Write list, a Reply chunk.
    pub(crate) read_lists: usize,
    pub(crate) write_lists: usize,
    pub(crate) reply_chunks: usize,
    /// Calls from the server to the client.
    pub(crate) reverse_calls: usize,
    /// Calls that the capture ends without an answer to.
    pub(crate) unanswered: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("FPDUs", self.fpdus),
            ("dirty pads", self.dirty_pads),
            ("Sends", self.sends),
            ("of them with Invalidate", self.sends_with_invalidate),
            ("RDMA Writes", self.writes),
            ("Read Requests", self.read_requests),
            ("Read Response segments", self.read_response_segments),
            ("RDMA_NOMSG", self.nomsg),
            ("Read lists", self.read_lists),
            ("Write lists", self.write_lists),
            ("Reply chunks", self.reply_chunks),
            ("reverse Calls", self.reverse_calls),
            ("unanswered Calls", self.unanswered),
        ];
        counts.iter().filter(|(_, n)| *n > 0).try_for_each(|(name, n)| writeln!(f, "    {name}: {n}"))
    }
}

/// Follows one connection.
pub(crate) struct Link {
    crc: bool,
    thresholds: Thresholds,
    /// From the client, from the server.
    sides: [Side; 2],
    /// Calls by who made them and by XID.
    calls: HashMap<(bool, u32), PendingCall>,
    counts: Counts,
}

/// What one end sends.
#[derive(Default)]
struct Side {
    /// Bytes not yet consumed.
    stream: Vec<u8>,
    frame: Option<Frame>,
    /// The last MSN on each untagged queue.
    msn: [u32; 3],
    /// The untagged message that is under way, and how much of its memory a tagged one has filled.
    send: Vec<u8>,
    tagged: Option<OpenTagged>,
    /// Bytes that RDMA Writes put into the other end's memory, by STag and tagged offset.
    written: HashMap<u32, BTreeMap<u64, Vec<u8>>>,
    /// This end's Read Requests that are not answered in full.
    reads: VecDeque<(ReadRequest, Vec<u8>)>,
    /// Bytes that its Read Requests fetched from the other end's memory.
    pulled: HashMap<u32, BTreeMap<u64, Vec<u8>>>,
}

struct OpenTagged {
    stag: u32,
    to: u64,
    bytes: Vec<u8>,
}

struct PendingCall {
    header: Header,
    message: Vec<u8>,
    /// Set when the message has been checked.
    asked: Option<Asked>,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            crc: false,
            thresholds: Thresholds::default(),
            sides: <[Side; 2]>::default(),
            calls: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// Takes a delivery.
    pub(crate) fn feed(&mut self, delivery: &Delivery, seen: &mut Seen) {
        let from = usize::from(!delivery.from_client);
        self.sides[from].stream.extend_from_slice(&delivery.bytes);
        let mut stream = std::mem::take(&mut self.sides[from].stream);
        let mut at = 0;
        if self.sides[from].frame.is_none() {
            match Frame::decode(&stream) {
                Ok((frame, len)) => {
                    self.frame(from, frame, &stream[..len]);
                    at = len;
                }
                Err(softiwarp::mpa::frame::FrameError::Truncated { .. }) => {}
                Err(e) => panic!("start-up frame: {e}"),
            }
        }
        while self.sides[from].frame.is_some()
            && let Some(fpdu) = fpdu::decode(&stream[at..])
        {
            assert!(self.sides[1 - from].frame.is_some(), "an FPDU before the Reply frame");
            let bytes = &stream[at..at + fpdu.len];
            assert!(!self.crc || fpdu.crc_matches, "a wrong CRC");
            let mut again = Vec::new();
            fpdu::encode(fpdu.ulpdu, self.crc, &mut again);
            // Linux leaves whatever it finds in the padding, which its checksum then covers.
            let pad = fpdu::LENGTH_BYTES + fpdu.ulpdu.len()..fpdu.len - fpdu::CRC_BYTES;
            if bytes[pad.clone()].iter().all(|b| *b == 0) {
                assert_eq!(again, bytes, "an FPDU encodes differently");
            } else {
                self.counts.dirty_pads += 1;
                assert_eq!(again[..pad.start], bytes[..pad.start], "an FPDU encodes differently");
                assert_eq!(again.len(), bytes.len());
            }
            self.counts.fpdus += 1;
            self.segment(from, fpdu.ulpdu, seen);
            at += fpdu.len;
        }
        stream.drain(..at);
        self.sides[from].stream = stream;
    }

    /// Ends the connection. Unless the capture was `cut` off, nothing may be left over.
    pub(crate) fn finish(mut self, cut: bool) -> Counts {
        self.counts.unanswered = self.calls.len();
        for side in self.sides.iter().filter(|_| !cut) {
            assert!(side.stream.is_empty() && side.send.is_empty() && side.tagged.is_none());
            assert!(side.reads.is_empty(), "a Read Request without Response");
            assert!(side.written.is_empty(), "RDMA Writes to memory that no Reply claims");
            assert!(side.pulled.is_empty(), "RDMA Reads of memory that no Call offered");
        }
        self.counts
    }

    fn frame(&mut self, from: usize, frame: Frame, bytes: &[u8]) {
        assert_eq!(frame.encode(), bytes, "the start-up frame encodes differently");
        assert_eq!(frame.kind, [Kind::Request, Kind::Reply][from]);
        assert!(frame.enhanced && frame.revision == 2 && !frame.markers && !frame.rejected);
        let enhanced = Enhanced::decode(&frame.private_data).expect("the enhanced part");
        assert_eq!(enhanced.encode(), frame.private_data[..Enhanced::BYTES]);
        let ours = PrivateData::parse(&frame.private_data).expect("RPC-over-RDMA's private data");
        assert_eq!(ours.encode(), frame.private_data[Enhanced::BYTES..]);
        self.sides[from].frame = Some(frame);
        if let [Some(request), Some(reply)] = [&self.sides[0].frame, &self.sides[1].frame] {
            self.crc = request.crc || reply.crc;
            let said = |f: &Frame| PrivateData::parse(&f.private_data).unwrap_or_default();
            self.thresholds = Thresholds::agree(said(request), said(reply));
        }
    }

    fn segment(&mut self, from: usize, ulpdu: &[u8], seen: &mut Seen) {
        let header = ddp::Header::decode(ulpdu).expect("a DDP header");
        assert_eq!(rdmap::version(header.rdmap()), rdmap::VERSION);
        let opcode = Opcode::of(header.rdmap());
        assert_eq!(opcode.control(), header.rdmap(), "RDMAP's byte encodes differently");
        let (head, payload) = ulpdu.split_at(header.len());
        match header {
            ddp::Header::Tagged(h) => {
                assert_eq!(h.encode(), head, "a tagged header encodes differently");
                self.tagged(from, opcode, h, payload);
            }
            ddp::Header::Untagged(h) => {
                assert_eq!(h.encode(), head, "an untagged header encodes differently");
                self.untagged(from, opcode, h, payload, seen);
            }
        }
    }

    fn tagged(&mut self, from: usize, opcode: Opcode, h: Tagged, payload: &[u8]) {
        let (side, other) = two(&mut self.sides, from);
        if opcode == Opcode::READ_RESPONSE {
            self.counts.read_response_segments += 1;
            let (request, bytes) = other.reads.front_mut().expect("a Read Request for the Response");
            assert_eq!((h.stag, h.to), (request.sink_stag, request.sink_to + bytes.len() as u64));
            bytes.extend_from_slice(payload);
            assert_eq!(h.last, bytes.len() == request.len as usize, "a Read Response of another length");
            if h.last {
                let (request, bytes) = other.reads.pop_front().expect("it is there");
                other.pulled.entry(request.source_stag).or_default().insert(request.source_to, bytes);
            }
            return;
        }
        assert_eq!(opcode, Opcode::WRITE);
        let open =
            side.tagged.get_or_insert_with(|| OpenTagged { stag: h.stag, to: h.to, bytes: Vec::new() });
        assert_eq!((h.stag, h.to), (open.stag, open.to + open.bytes.len() as u64), "a gap between segments");
        open.bytes.extend_from_slice(payload);
        if h.last {
            self.counts.writes += 1;
            let done = side.tagged.take().expect("it is there");
            // Without bytes it is a ready-to-receive frame, and names no memory.
            if !done.bytes.is_empty() {
                side.written.entry(done.stag).or_default().insert(done.to, done.bytes);
            }
        }
    }

    fn untagged(&mut self, from: usize, opcode: Opcode, h: Untagged, payload: &[u8], seen: &mut Seen) {
        let side = &mut self.sides[from];
        let msn = &mut side.msn[h.qn as usize];
        if h.mo == 0 {
            *msn += 1;
        }
        assert_eq!((h.msn, h.mo as usize), (*msn, side.send.len()), "MSN and MO on queue {}", h.qn);
        assert!(opcode.invalidates() || h.invalidate == 0);
        match h.qn {
            queue::SEND => {
                assert!(opcode.is_send());
                side.send.extend_from_slice(payload);
                if h.last {
                    let message = std::mem::take(&mut side.send);
                    self.counts.sends += 1;
                    let invalidate = opcode.invalidates().then_some(h.invalidate);
                    self.counts.sends_with_invalidate += usize::from(invalidate.is_some());
                    self.transport(from, &message, invalidate, seen);
                }
            }
            queue::READ_REQUEST => {
                assert!(opcode == Opcode::READ_REQUEST && h.last);
                let request = ReadRequest::decode(payload).expect("a Read Request");
                assert_eq!(request.encode(), payload, "a Read Request encodes differently");
                self.counts.read_requests += 1;
                side.reads.push_back((request, Vec::new()));
            }
            qn => panic!("a message on queue {qn}"),
        }
    }

    fn transport(&mut self, from: usize, message: &[u8], invalidate: Option<u32>, seen: &mut Seen) {
        let limit = [self.thresholds.call, self.thresholds.reply][from];
        assert!(message.len() <= limit as usize, "{} bytes inline where {limit} are agreed", message.len());
        let (header, payload) = Header::open(message, &Limits::default()).expect("a transport header");
        let mut w = Writer::new();
        header.encode(&mut w);
        assert_eq!(w.as_slice(), &message[..message.len() - payload.len()], "the header encodes differently");
        assert_eq!(w.len(), header.encoded_len());
        self.counts.nomsg += usize::from(matches!(header.body, Body::Nomsg(_)));

        let from_client = from == 0;
        let reply_to = self.calls.contains_key(&(!from_client, header.xid.0))
            && peek(payload).is_none_or(|(_, t)| t == MessageType::Reply);
        if reply_to {
            let call = self.calls.remove(&(!from_client, header.xid.0)).expect("it is there");
            self.reply(from, call, &header, payload, invalidate, seen);
            return;
        }
        let lists = header.body.lists().expect("a Call, not an error");
        assert_eq!(invalidate, None, "a Call that invalidates");
        self.counts.read_lists += usize::from(!lists.read.is_empty());
        self.counts.write_lists += usize::from(!lists.write.is_empty());
        self.counts.reply_chunks += usize::from(lists.reply.is_some());
        self.counts.reverse_calls += usize::from(!from_client);
        let asked = lists.read.is_empty().then(|| check_call(payload, &[], seen));
        let key = (from_client, header.xid.0);
        let call = PendingCall { header, message: payload.to_vec(), asked };
        assert!(self.calls.insert(key, call).is_none(), "two Calls with one XID");
    }

    /// `from` answers `call`.
    fn reply(
        &mut self,
        from: usize,
        call: PendingCall,
        header: &Header,
        payload: &[u8],
        invalidate: Option<u32>,
        seen: &mut Seen,
    ) {
        let offered = call.header.body.lists().expect("a Call has lists");
        if let Some(stag) = invalidate {
            assert!(offered.handles().any(|h| h == stag), "invalidates memory that is not the Call's");
        }
        let side = &mut self.sides[from];
        let asked = call.asked.unwrap_or_else(|| {
            let chunks = call.header.read_chunks().expect("a sane Read list");
            let message = chunks.call.map(|c| gather(&mut side.pulled, &c.segments));
            let items: Vec<_> =
                chunks.items.iter().map(|c| (c.position, gather(&mut side.pulled, &c.segments))).collect();
            let items: Vec<_> =
                items.iter().map(|(position, data)| Chunk { position: *position, data }).collect();
            check_call(message.as_ref().unwrap_or(&call.message), &items, seen)
        });

        let placed = header.placed(offered).expect("the lists as they were offered");
        let returned = header.body.lists().expect("a Reply, not an error");
        let message =
            placed.reply.map(|_| gather(&mut side.written, returned.reply.as_ref().expect("it is there")));
        let message = message.as_deref().unwrap_or(payload);
        let used = returned.write.iter().zip(&placed.write).filter(|(_, bytes)| **bytes > 0);
        let data: Vec<_> = used.map(|(chunk, _)| gather(&mut side.written, chunk)).collect();
        // NFSv3 has one chunkable result, which is the last thing in the message.
        let position = message.len() as u32;
        let chunks: Vec<_> = data.iter().map(|data| Chunk { position, data }).collect();
        check_reply(message, &chunks, &asked, seen);
    }
}

/// The bytes of the segments, in order, out of `memory`, which forgets them.
fn gather(memory: &mut HashMap<u32, BTreeMap<u64, Vec<u8>>>, segments: &[Segment]) -> Vec<u8> {
    let mut out = Vec::new();
    for s in segments.iter().filter(|s| s.length > 0) {
        let pieces = memory.get_mut(&s.handle).expect("memory that was written or read");
        let (mut at, end) = (s.offset, s.offset + u64::from(s.length));
        while at < end {
            let piece = pieces.remove(&at).unwrap_or_else(|| panic!("nothing moved at {at:#x}"));
            at += piece.len() as u64;
            out.extend(piece);
        }
        assert_eq!(at, end, "more was moved than the segment says");
        if pieces.is_empty() {
            memory.remove(&s.handle);
        }
    }
    out
}

/// The sender's side and the other one.
fn two(sides: &mut [Side; 2], from: usize) -> (&mut Side, &mut Side) {
    let [client, server] = sides;
    if from == 0 { (client, server) } else { (server, client) }
}
