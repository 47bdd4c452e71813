//! The Request and Reply frames that open an MPA connection (RFC 5044 section 7.1, RFC 6581 section 4).
//!
//! A [`Frame`] is what travels; [`Enhanced`] is the part of its private data that revision 2 gives a meaning.
//! [`FrameReader`] takes a frame from a stream without taking a byte more.
//!
//! # Limits
//! Private data is at most 512 bytes, which bounds a frame to 532.

use std::fmt;

const REQUEST_KEY: [u8; 16] = *b"MPA ID Req Frame";
const REPLY_KEY: [u8; 16] = *b"MPA ID Rep Frame";

/// Bytes in front of the private data.
pub const FIXED_BYTES: usize = 20;
/// The most private data that a frame carries.
pub const MAX_PRIVATE_DATA: usize = 512;

/// Which of the two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the one that connects.
    Request,
    /// From the one that was connected to.
    Reply,
}

/// A start-up frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Request or Reply.
    pub kind: Kind,
    /// M: the sender wants Markers in what it receives.
    pub markers: bool,
    /// C: the sender wants CRCs. One that wants them is enough.
    pub crc: bool,
    /// R, in a Reply: the connection is turned down.
    pub rejected: bool,
    /// S, from revision 2 on: the private data starts with an [`Enhanced`].
    pub enhanced: bool,
    /// Revision of the protocol: 1 or 2.
    pub revision: u8,
    /// Private data, the enhanced part included.
    pub private_data: Vec<u8>,
}

mod flag {
    pub(super) const MARKERS: u8 = 0x80;
    pub(super) const CRC: u8 = 0x40;
    pub(super) const REJECTED: u8 = 0x20;
    pub(super) const ENHANCED: u8 = 0x10;
}

/// Why bytes are not a start-up frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The frame is longer than what is there; holds how long it is as far as known.
    Truncated {
        /// Bytes that the frame has at least.
        need: usize,
    },
    /// It starts with neither key: the peer does not speak MPA.
    NotMpa,
    /// It announces more than [`MAX_PRIVATE_DATA`] bytes.
    TooMuchPrivateData(u16),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need } => write!(f, "the MPA frame is cut short of its {need} bytes"),
            Self::NotMpa => f.write_str("the peer's first bytes are no MPA frame"),
            Self::TooMuchPrivateData(n) => write!(f, "an MPA frame announces {n} bytes of private data"),
        }
    }
}

impl std::error::Error for FrameError {}

impl Frame {
    /// Takes the frame at the start of `bytes`; also returns its length.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] as long as bytes are missing, though a wrong key shows at once.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), FrameError> {
        let key = bytes.get(..16).unwrap_or(bytes);
        let kind = if REQUEST_KEY.starts_with(key) {
            Kind::Request
        } else if REPLY_KEY.starts_with(key) {
            Kind::Reply
        } else {
            return Err(FrameError::NotMpa);
        };
        let Some(&[flags, revision, l0, l1]) = bytes.get(16..FIXED_BYTES) else {
            return Err(FrameError::Truncated { need: FIXED_BYTES });
        };
        let announced = u16::from_be_bytes([l0, l1]);
        let length = usize::from(announced);
        if length > MAX_PRIVATE_DATA {
            return Err(FrameError::TooMuchPrivateData(announced));
        }
        let need = FIXED_BYTES + length;
        let private_data = bytes.get(FIXED_BYTES..need).ok_or(FrameError::Truncated { need })?.to_vec();
        let has = |bit| flags & bit != 0;
        let frame = Self {
            kind,
            markers: has(flag::MARKERS),
            crc: has(flag::CRC),
            rejected: has(flag::REJECTED),
            enhanced: has(flag::ENHANCED),
            revision,
            private_data,
        };
        Ok((frame, need))
    }

    /// The frame's bytes.
    ///
    /// # Panics
    /// If there is more than [`MAX_PRIVATE_DATA`]; see [`super::setup`], which checks.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.private_data.len() <= MAX_PRIVATE_DATA, "too much private data for an MPA frame");
        let mut out = Vec::with_capacity(FIXED_BYTES + self.private_data.len());
        out.extend_from_slice(match self.kind {
            Kind::Request => &REQUEST_KEY,
            Kind::Reply => &REPLY_KEY,
        });
        let bit = |set, bit| if set { bit } else { 0 };
        out.push(
            bit(self.markers, flag::MARKERS)
                | bit(self.crc, flag::CRC)
                | bit(self.rejected, flag::REJECTED)
                | bit(self.enhanced, flag::ENHANCED),
        );
        out.push(self.revision);
        out.extend_from_slice(&(self.private_data.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.private_data);
        out
    }
}

/// Takes one frame from a byte stream, asking for exactly the bytes that belong to it.
#[derive(Debug)]
pub struct FrameReader {
    bytes: [u8; FIXED_BYTES + MAX_PRIVATE_DATA],
    have: usize,
    need: usize,
}

impl FrameReader {
    /// A reader that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: [0; FIXED_BYTES + MAX_PRIVATE_DATA], have: 0, need: FIXED_BYTES }
    }

    /// Where the next bytes go. Never empty before the frame is complete.
    pub fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.have..self.need).unwrap_or_default()
    }

    /// Takes note that the first `n` bytes of [`Self::space`] were filled. `Some` when the frame is complete.
    ///
    /// # Errors
    /// If the bytes cannot become a frame.
    pub fn filled(&mut self, n: usize) -> Result<Option<Frame>, FrameError> {
        self.have = self.have.saturating_add(n).min(self.need);
        match Frame::decode(self.bytes.get(..self.have).unwrap_or_default()) {
            Ok((frame, _)) => Ok(Some(frame)),
            Err(FrameError::Truncated { need }) => {
                self.need = need;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

impl Default for FrameReader {
    fn default() -> Self {
        Self::new()
    }
}

/// What revision 2 puts in front of the private data (RFC 6581 section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enhanced {
    /// A: the connection follows the peer-to-peer model, so the initiator's first FPDU is a ready-to-receive frame.
    pub peer_to_peer: bool,
    /// B: that frame may be a zero-length Send.
    pub rtr_send: bool,
    /// RDMA Reads that the sender of the frame holds at one time; 14 bits.
    pub ird: u16,
    /// C: the ready-to-receive frame may be a zero-length RDMA Write.
    pub rtr_write: bool,
    /// D: it may be a zero-length RDMA Read.
    pub rtr_read: bool,
    /// RDMA Reads that the sender of the frame wants to have open; 14 bits.
    pub ord: u16,
}

/// In a depth: not negotiated here.
pub const DEPTH_UNKNOWN: u16 = 0x3fff;

impl Enhanced {
    /// Length in bytes.
    pub const BYTES: usize = 4;

    /// Reads it from the start of private data; `None` if that is too short.
    #[must_use]
    pub fn decode(private_data: &[u8]) -> Option<Self> {
        let &[a, b, c, d] = private_data.first_chunk::<4>()?;
        let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Some(Self {
            peer_to_peer: first & 0x8000 != 0,
            rtr_send: first & 0x4000 != 0,
            ird: first & DEPTH_UNKNOWN,
            rtr_write: second & 0x8000 != 0,
            rtr_read: second & 0x4000 != 0,
            ord: second & DEPTH_UNKNOWN,
        })
    }

    /// Its bytes. Depths are cut to 14 bits.
    #[must_use]
    pub fn encode(self) -> [u8; Self::BYTES] {
        let bits = |high: bool, low: bool, depth: u16| {
            (u16::from(high) << 15) | (u16::from(low) << 14) | (depth & DEPTH_UNKNOWN)
        };
        let [a, b] = bits(self.peer_to_peer, self.rtr_send, self.ird).to_be_bytes();
        let [c, d] = bits(self.rtr_write, self.rtr_read, self.ord).to_be_bytes();
        [a, b, c, d]
    }
}
