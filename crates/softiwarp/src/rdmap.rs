//! RDMAP: what DDP segments mean (RFC 5040 section 4).
//!
//! Opcodes, the Read Request header, and the Terminate message in both of the bit orders that are seen on wires.
//! Pure functions; who may do what, and when, is the [engine](crate::engine)'s business.

use std::fmt;

use crate::ddp::RawHeader;

/// The only version that we speak.
pub const VERSION: u8 = 1;

/// What a message does. Unknown opcodes are kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Opcode(pub u8);

impl Opcode {
    /// RDMA Write.
    pub const WRITE: Self = Self(0);
    /// RDMA Read Request.
    pub const READ_REQUEST: Self = Self(1);
    /// RDMA Read Response.
    pub const READ_RESPONSE: Self = Self(2);
    /// Send.
    pub const SEND: Self = Self(3);
    /// Send with Invalidate.
    pub const SEND_INVALIDATE: Self = Self(4);
    /// Send with Solicited Event.
    pub const SEND_SOLICITED: Self = Self(5);
    /// Send with Solicited Event and Invalidate.
    pub const SEND_SOLICITED_INVALIDATE: Self = Self(6);
    /// Terminate.
    pub const TERMINATE: Self = Self(7);

    /// RDMAP's byte in a DDP header.
    #[must_use]
    pub const fn control(self) -> u8 {
        (VERSION << 6) | (self.0 & 0x0f)
    }

    /// The opcode in RDMAP's byte.
    #[must_use]
    pub const fn of(control: u8) -> Self {
        Self(control & 0x0f)
    }

    /// One of the four kinds of Send.
    #[must_use]
    pub const fn is_send(self) -> bool {
        self.0 >= 3 && self.0 <= 6
    }

    /// One of the two Sends that invalidate.
    #[must_use]
    pub const fn invalidates(self) -> bool {
        self.0 == 4 || self.0 == 6
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "RDMA Write",
            1 => "Read Request",
            2 => "Read Response",
            3 => "Send",
            4 => "Send with Invalidate",
            5 => "Send with Solicited Event",
            6 => "Send with Solicited Event and Invalidate",
            7 => "Terminate",
            other => return write!(f, "opcode {other}"),
        };
        f.write_str(name)
    }
}

/// The version in RDMAP's byte.
#[must_use]
pub const fn version(control: u8) -> u8 {
    control >> 6
}

/// The header of an RDMA Read Request, which is all of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// The requester's memory.
    pub sink_stag: u32,
    /// Tagged offset in it.
    pub sink_to: u64,
    /// Bytes to read.
    pub len: u32,
    /// The responder's memory.
    pub source_stag: u32,
    /// Tagged offset in it.
    pub source_to: u64,
}

impl ReadRequest {
    /// Length in bytes.
    pub const BYTES: usize = 28;

    /// Reads it; `None` if there are too few bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (sink_stag, rest) = bytes.split_first_chunk()?;
        let (sink_to, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (source_stag, rest) = rest.split_first_chunk()?;
        let source_to = rest.first_chunk()?;
        Some(Self {
            sink_stag: u32::from_be_bytes(*sink_stag),
            sink_to: u64::from_be_bytes(*sink_to),
            len: u32::from_be_bytes(*len),
            source_stag: u32::from_be_bytes(*source_stag),
            source_to: u64::from_be_bytes(*source_to),
        })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.sink_stag.to_be_bytes());
        out[4..12].copy_from_slice(&self.sink_to.to_be_bytes());
        out[12..16].copy_from_slice(&self.len.to_be_bytes());
        out[16..20].copy_from_slice(&self.source_stag.to_be_bytes());
        out[20..28].copy_from_slice(&self.source_to.to_be_bytes());
        out
    }
}

/// What a Terminate complains about: a layer, a type of error in it, and a code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode {
    /// 0 RDMAP, 1 DDP, 2 MPA.
    pub layer: u8,
    /// Type of error; 4 bits.
    pub etype: u8,
    /// The error.
    pub code: u8,
}

macro_rules! error_codes {
    ($($name:ident = $layer:literal, $etype:literal, $code:literal: $text:literal;)*) => {
        impl ErrorCode {
            /// Whether it is one of the codes that RFC 5040, 5041, 5044 or 6581 name.
            #[must_use]
            pub const fn is_known(self) -> bool {
                matches!(self, $(Self::$name)|*)
            }

            $(
                #[doc = $text]
                pub const $name: Self = Self { layer: $layer, etype: $etype, code: $code };
            )*

            /// The error in words.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self { layer: 0, etype: 0, .. } => "local catastrophic error",
                    Self { layer: 0, etype: 1, .. } => "remote protection error",
                    Self { layer: 0, etype: 2, .. } => "remote operation error",
                    Self { layer: 1, etype: 0, .. } => "local catastrophic error in DDP",
                    Self { layer: 1, etype: 1, .. } => "tagged buffer error",
                    Self { layer: 1, etype: 2, .. } => "untagged buffer error",
                    Self { layer: 2, .. } => "MPA error",
                    _ => "unknown error",
                }
            }
        }
    };
}

error_codes! {
    READ_STAG = 0, 1, 0x00: "Read Request with an invalid STag";
    READ_BOUNDS = 0, 1, 0x01: "Read Request outside its memory";
    ACCESS_RIGHTS = 0, 1, 0x02: "access that the STag does not allow";
    READ_STREAM = 0, 1, 0x03: "STag of another connection";
    READ_WRAP = 0, 1, 0x04: "Read Request whose tagged offset wraps";
    CANNOT_INVALIDATE = 0, 1, 0x09: "STag that cannot be invalidated";
    RDMAP_VERSION = 0, 2, 0x05: "wrong RDMAP version";
    UNEXPECTED_OPCODE = 0, 2, 0x06: "unexpected opcode";
    STREAM_CATASTROPHIC = 0, 2, 0x07: "more RDMA Reads open than agreed";
    CANNOT_INVALIDATE_OPERATION = 0, 2, 0x09: "STag that cannot be invalidated";
    TAGGED_STAG = 1, 1, 0x00: "tagged segment with an invalid STag";
    TAGGED_BOUNDS = 1, 1, 0x01: "tagged segment outside its memory";
    TAGGED_STREAM = 1, 1, 0x02: "tagged segment for another connection's STag";
    TAGGED_WRAP = 1, 1, 0x03: "tagged segment whose tagged offset wraps";
    TAGGED_VERSION = 1, 1, 0x04: "tagged segment of a wrong DDP version";
    UNTAGGED_QUEUE = 1, 2, 0x01: "untagged segment for an unknown queue";
    NO_BUFFER = 1, 2, 0x02: "message without a posted Receive";
    UNTAGGED_MSN = 1, 2, 0x03: "untagged segment with an unexpected message number";
    UNTAGGED_MO = 1, 2, 0x04: "untagged segment with an unexpected message offset";
    MESSAGE_TOO_LONG = 1, 2, 0x05: "message longer than its Receive";
    UNTAGGED_VERSION = 1, 2, 0x06: "untagged segment of a wrong DDP version";
    CONNECTION_LOST = 2, 0, 0x01: "TCP connection lost";
    CRC = 2, 0, 0x02: "CRC mismatch";
    LENGTH = 2, 0, 0x03: "FPDU length does not fit its content";
    START_UP = 2, 0, 0x04: "invalid MPA start-up frame";
    LOCAL = 2, 0, 0x05: "local catastrophic error in MPA";
    INSUFFICIENT_IRD = 2, 0, 0x06: "insufficient IRD";
    NO_RTR = 2, 0, 0x07: "no ready-to-receive frame in common";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, etype, code } = *self;
        write!(f, "{} (layer {layer} type {etype} code {code:#04x})", self.text())
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which way round the bit fields of a Terminate are (RFC 5040 section 4.8 has one order).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitOrder {
    /// As the RFC draws them.
    Rfc,
    /// Nibbles and flags mirrored, as Linux siw sends them from little-endian machines.
    Mirrored,
}

/// A Terminate message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminate {
    /// What went wrong.
    pub error: ErrorCode,
    /// The segment it is about: its length, and its header.
    pub segment: Option<(u16, RawHeader)>,
    /// The Read Request it is about.
    pub read_request: Option<ReadRequest>,
}

/// Longest Terminate payload: control field, segment length, untagged header, Read Request header.
pub const MAX_TERMINATE_BYTES: usize = 4 + 2 + 18 + ReadRequest::BYTES;

const M_RFC: u8 = 0x80;
const D_RFC: u8 = 0x40;
const R_RFC: u8 = 0x20;

impl Terminate {
    /// A Terminate about no segment in particular.
    #[must_use]
    pub const fn bare(error: ErrorCode) -> Self {
        Self { error, segment: None, read_request: None }
    }

    /// Reads one in either bit order. What it quotes is taken as far as it is there.
    ///
    /// Which order it is shows in the third byte, whose flags sit at one end or the other. A Terminate without flags
    /// does not show it; then the order is the RFC's, unless only the mirror image is an error that exists.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<(Self, BitOrder)> {
        let (&[kind, code, flags, _], rest) = payload.split_first_chunk()?;
        let rfc = ErrorCode { layer: kind >> 4, etype: kind & 0x0f, code };
        let mirrored = ErrorCode { layer: kind & 0x0f, etype: kind >> 4, code };
        let order = if flags & (M_RFC | D_RFC | R_RFC) != 0 {
            BitOrder::Rfc
        } else if flags & 0x07 != 0 || (!rfc.is_known() && mirrored.is_known()) {
            BitOrder::Mirrored
        } else {
            BitOrder::Rfc
        };
        let (error, flags) = match order {
            BitOrder::Rfc => (rfc, flags),
            BitOrder::Mirrored => (mirrored, flags.reverse_bits()),
        };
        let mut terminate = Self::bare(error);
        if flags & D_RFC != 0
            && let Some((length, rest)) = rest.split_first_chunk()
            && let Some(header) = RawHeader::copy(rest)
        {
            terminate.segment = Some((u16::from_be_bytes(*length), header));
            if flags & R_RFC != 0 {
                let behind = rest.get(header.bytes().len()..).unwrap_or_default();
                terminate.read_request = ReadRequest::decode(behind);
            }
        }
        Some((terminate, order))
    }

    /// Appends its payload to `out`, in the RFC's bit order.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let ErrorCode { layer, etype, code } = self.error;
        let mut flags = 0;
        if self.segment.is_some() {
            flags |= M_RFC | D_RFC;
        }
        // A Read Request is quoted behind its DDP header, so never without one.
        let read_request = self.read_request.filter(|_| self.segment.is_some());
        if read_request.is_some() {
            flags |= R_RFC;
        }
        out.extend_from_slice(&[(layer << 4) | (etype & 0x0f), code, flags, 0]);
        if let Some((length, header)) = self.segment {
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(header.bytes());
        }
        if let Some(request) = read_request {
            out.extend_from_slice(&request.encode());
        }
    }
}

impl fmt::Display for Terminate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}
