//! DDP segment headers (RFC 5041 section 4).
//!
//! A segment is tagged, and names the memory that its payload belongs to, or untagged, and names a queue, a message
//! and an offset in the message. The second byte of either header belongs to RDMAP; here it is only carried.
//! Pure functions; nothing is checked but lengths and the version.

/// Length of a tagged header.
pub const TAGGED_BYTES: usize = 14;
/// Length of an untagged header.
pub const UNTAGGED_BYTES: usize = 18;
/// The only version there is.
pub const VERSION: u8 = 1;

const TAGGED: u8 = 0x80;
const LAST: u8 = 0x40;
const VERSION_MASK: u8 = 0x03;

/// The untagged queues that RDMAP uses (RFC 5040 section 4.1).
pub mod queue {
    /// All kinds of Send.
    pub const SEND: u32 = 0;
    /// RDMA Read Requests.
    pub const READ_REQUEST: u32 = 1;
    /// Terminate.
    pub const TERMINATE: u32 = 2;
}

/// Header of a tagged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// L: the last segment of its message.
    pub last: bool,
    /// RDMAP's byte.
    pub rdmap: u8,
    /// The memory that the payload belongs to.
    pub stag: u32,
    /// Tagged offset of the first payload byte.
    pub to: u64,
}

/// Header of an untagged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untagged {
    /// L: the last segment of its message.
    pub last: bool,
    /// RDMAP's byte.
    pub rdmap: u8,
    /// RDMAP's four bytes: the STag to invalidate, for the Sends that have one.
    pub invalidate: u32,
    /// Queue number.
    pub qn: u32,
    /// Number of the message in its queue and direction; the first is 1.
    pub msn: u32,
    /// Offset of the payload in the message.
    pub mo: u32,
}

/// Header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Of a tagged one.
    Tagged(Tagged),
    /// Of an untagged one.
    Untagged(Untagged),
}

/// Why bytes do not start with a segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// They are too few.
    Short,
    /// The version is not [`VERSION`].
    Version {
        /// Of a tagged segment.
        tagged: bool,
        /// What it says.
        version: u8,
    },
}

/// Length of the header that starts with this byte.
#[must_use]
pub const fn header_len(control: u8) -> usize {
    if control & TAGGED != 0 { TAGGED_BYTES } else { UNTAGGED_BYTES }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}

impl Header {
    /// Reads the header at the start of a segment.
    ///
    /// # Errors
    /// If there are too few bytes, or the version is wrong; a wrong version shows even if the rest is missing.
    pub fn decode(segment: &[u8]) -> Result<Self, HeaderError> {
        let &[control, rdmap] = segment.first_chunk().ok_or(HeaderError::Short)?;
        let (tagged, last, version) = (control & TAGGED != 0, control & LAST != 0, control & VERSION_MASK);
        if version != VERSION {
            return Err(HeaderError::Version { tagged, version });
        }
        let fields = || {
            Some(if tagged {
                Self::Tagged(Tagged { last, rdmap, stag: be32(segment, 2)?, to: be64(segment, 6)? })
            } else {
                Self::Untagged(Untagged {
                    last,
                    rdmap,
                    invalidate: be32(segment, 2)?,
                    qn: be32(segment, 6)?,
                    msn: be32(segment, 10)?,
                    mo: be32(segment, 14)?,
                })
            })
        };
        fields().ok_or(HeaderError::Short)
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Tagged(_) => TAGGED_BYTES,
            Self::Untagged(_) => UNTAGGED_BYTES,
        }
    }

    /// Never: a header has bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// L: the last segment of its message.
    #[must_use]
    pub const fn last(&self) -> bool {
        match self {
            Self::Tagged(h) => h.last,
            Self::Untagged(h) => h.last,
        }
    }

    /// RDMAP's byte.
    #[must_use]
    pub const fn rdmap(&self) -> u8 {
        match self {
            Self::Tagged(h) => h.rdmap,
            Self::Untagged(h) => h.rdmap,
        }
    }
}

impl Tagged {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; TAGGED_BYTES] {
        let mut out = [0; TAGGED_BYTES];
        let last = if self.last { LAST } else { 0 };
        out[0] = TAGGED | last | VERSION;
        out[1] = self.rdmap;
        out[2..6].copy_from_slice(&self.stag.to_be_bytes());
        out[6..14].copy_from_slice(&self.to.to_be_bytes());
        out
    }
}

impl Untagged {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; UNTAGGED_BYTES] {
        let mut out = [0; UNTAGGED_BYTES];
        let last = if self.last { LAST } else { 0 };
        out[0] = last | VERSION;
        out[1] = self.rdmap;
        out[2..6].copy_from_slice(&self.invalidate.to_be_bytes());
        out[6..10].copy_from_slice(&self.qn.to_be_bytes());
        out[10..14].copy_from_slice(&self.msn.to_be_bytes());
        out[14..18].copy_from_slice(&self.mo.to_be_bytes());
        out
    }
}

/// A header as it travelled, for error messages that quote it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawHeader {
    bytes: [u8; UNTAGGED_BYTES],
    len: u8,
}

impl RawHeader {
    /// Copies the header at the start of a segment; `None` if it is not all there. Its version does not matter.
    #[must_use]
    pub fn copy(segment: &[u8]) -> Option<Self> {
        let len = header_len(*segment.first()?);
        let mut bytes = [0; UNTAGGED_BYTES];
        bytes.get_mut(..len)?.copy_from_slice(segment.get(..len)?);
        Some(Self { bytes, len: len as u8 })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Debug for RawHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawHeader({:02x?})", self.bytes())
    }
}
