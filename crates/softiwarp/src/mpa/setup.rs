//! What the two start-up frames agree on (RFC 5044 section 7, RFC 6581 sections 4 to 9).
//!
//! # Operation
//! The active side makes a [`request`], and [`conclude`]s when the Reply is there. The passive side turns the Request
//! into an [`Incoming`], looks at its private data, and [`accept`](Incoming::accept)s or
//! [`reject`](Incoming::reject)s it. Both end with the same [`Agreed`]. No side speaks again before that: the active
//! side sends the first FPDU, and the passive side none before it has one.
//!
//! # When it breaks
//! A frame that is no frame ends the TCP connection. A proper Request that cannot be met is answered with a rejection,
//! and an unusable Reply with a Terminate where RFC 6581 has a code for it.

use std::fmt;

use super::frame::{DEPTH_UNKNOWN, Enhanced, Frame, Kind, MAX_PRIVATE_DATA};

/// The most RDMA Reads that we let a peer ask us to hold, beyond what we wanted. A held Read costs us a few dozen
/// bytes.
pub const MAX_IRD: u32 = 1024;

/// What this side wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Revision to ask for: 1 or 2. The passive side follows the Request.
    pub revision: u8,
    /// Ask for CRCs. They are used if either side asks.
    pub crc: bool,
    /// Ask for the peer-to-peer model.
    pub peer_to_peer: bool,
    /// RDMA Reads that the peer may have open.
    pub ird: u32,
    /// RDMA Reads that we want to have open.
    pub ord: u32,
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We did; ours is the first FPDU.
    Active,
    /// The peer did.
    Passive,
}

/// A kind of ready-to-receive frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rtr {
    /// A zero-length RDMA Write.
    Write,
    /// A zero-length RDMA Read.
    Read,
    /// A zero-length Send.
    Send,
}

/// What both sides have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Who we are.
    pub role: Role,
    /// FPDUs carry CRCs in both directions.
    pub crc: bool,
    /// The peer-to-peer model's first frame.
    pub rtr: Option<Rtr>,
    /// RDMA Reads that the peer may have open.
    pub ird: u32,
    /// RDMA Reads that we may have open.
    pub ord: u32,
}

/// Why the frames do not make a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The peer said no; its private data, without the enhanced part.
    Rejected(Vec<u8>),
    /// The peer wants Markers, which we do not make.
    Markers,
    /// A Request where a Reply belongs, or the reverse: two active or two passive sides met.
    WrongKind,
    /// A revision that we do not speak, or that we did not ask for.
    Revision(u8),
    /// The S flag is not what the revision and the Request make it.
    EnhancedMismatch,
    /// The S flag is set and the four bytes behind it are missing.
    EnhancedMissing,
    /// The passive side wants more RDMA Reads open than we can hold; it must be told by Terminate.
    InsufficientIrd(u16),
    /// The passive side takes none of our ready-to-receive frames; it must be told by Terminate.
    NoCommonRtr,
    /// Our own private data does not fit into a frame.
    PrivateDataTooLong(usize),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(_) => f.write_str("the peer rejected the connection"),
            Self::Markers => f.write_str("the peer demands MPA markers"),
            Self::WrongKind => f.write_str("both sides connect, or both were connected to"),
            Self::Revision(r) => write!(f, "MPA revision {r} does not fit"),
            Self::EnhancedMismatch => f.write_str("the enhanced set-up flag does not fit"),
            Self::EnhancedMissing => f.write_str("the enhanced set-up data is missing"),
            Self::InsufficientIrd(n) => write!(f, "the peer wants {n} RDMA Reads open"),
            Self::NoCommonRtr => f.write_str("no ready-to-receive frame in common"),
            Self::PrivateDataTooLong(n) => write!(f, "{n} bytes of private data do not fit"),
        }
    }
}

impl std::error::Error for SetupError {}

/// A depth for the wire. The value that means "not negotiated" is never sent by chance.
fn wire_depth(depth: u32) -> u16 {
    u16::try_from(depth).unwrap_or(DEPTH_UNKNOWN).min(DEPTH_UNKNOWN - 1)
}

/// Private data behind an enhanced part.
fn with_enhanced(enhanced: Option<Enhanced>, private_data: &[u8]) -> Result<Vec<u8>, SetupError> {
    let mut out = Vec::with_capacity(Enhanced::BYTES + private_data.len());
    out.extend(enhanced.map(Enhanced::encode).into_iter().flatten());
    out.extend_from_slice(private_data);
    if out.len() > MAX_PRIVATE_DATA {
        Err(SetupError::PrivateDataTooLong(private_data.len()))
    } else {
        Ok(out)
    }
}

/// The private data of a peer's frame without its enhanced part.
fn users_part(frame: &Frame) -> Vec<u8> {
    let skip = if frame.enhanced { Enhanced::BYTES } else { 0 };
    frame.private_data.get(skip..).unwrap_or_default().to_vec()
}

/// The frame that opens a connection.
///
/// # Errors
/// [`SetupError::Revision`] and [`SetupError::PrivateDataTooLong`]: our own settings.
pub fn request(local: &Local, private_data: &[u8]) -> Result<Frame, SetupError> {
    let enhanced = match local.revision {
        1 => None,
        2 => Some(Enhanced {
            peer_to_peer: local.peer_to_peer,
            rtr_send: local.peer_to_peer,
            rtr_write: local.peer_to_peer,
            rtr_read: local.peer_to_peer && local.ord > 0,
            ird: wire_depth(local.ird),
            ord: wire_depth(local.ord),
        }),
        other => return Err(SetupError::Revision(other)),
    };
    Ok(Frame {
        kind: Kind::Request,
        markers: false,
        crc: local.crc,
        rejected: false,
        enhanced: enhanced.is_some(),
        revision: local.revision,
        private_data: with_enhanced(enhanced, private_data)?,
    })
}

/// Takes the Reply to our [`request`]; also returns the peer's private data.
///
/// # Errors
/// If there is no connection; see [`SetupError`] for which errors the peer must be told.
pub fn conclude(local: &Local, reply: &Frame) -> Result<(Agreed, Vec<u8>), SetupError> {
    if reply.kind != Kind::Reply {
        return Err(SetupError::WrongKind);
    }
    if reply.rejected {
        return Err(SetupError::Rejected(users_part(reply)));
    }
    if reply.markers {
        return Err(SetupError::Markers);
    }
    if reply.revision != local.revision {
        return Err(SetupError::Revision(reply.revision));
    }
    if reply.enhanced != (local.revision == 2) {
        return Err(SetupError::EnhancedMismatch);
    }
    let mut agreed =
        Agreed { role: Role::Active, crc: local.crc || reply.crc, rtr: None, ird: local.ird, ord: local.ord };
    if reply.enhanced {
        let theirs = Enhanced::decode(&reply.private_data).ok_or(SetupError::EnhancedMissing)?;
        if theirs.ord != DEPTH_UNKNOWN && u32::from(theirs.ord) > local.ird {
            if u32::from(theirs.ord) > MAX_IRD {
                return Err(SetupError::InsufficientIrd(theirs.ord));
            }
            agreed.ird = u32::from(theirs.ord);
        }
        if theirs.ird != DEPTH_UNKNOWN {
            agreed.ord = local.ord.min(u32::from(theirs.ird));
        }
        if local.peer_to_peer && theirs.peer_to_peer {
            agreed.rtr = Some(if theirs.rtr_write {
                Rtr::Write
            } else if theirs.rtr_read && agreed.ord > 0 {
                Rtr::Read
            } else if theirs.rtr_send {
                Rtr::Send
            } else {
                return Err(SetupError::NoCommonRtr);
            });
        }
    }
    Ok((agreed, users_part(reply)))
}

/// A Request that can be accepted.
#[derive(Debug)]
pub struct Incoming {
    revision: u8,
    crc: bool,
    enhanced: Option<Enhanced>,
    private_data: Vec<u8>,
}

/// A Request that cannot, and the Reply that says so, if it deserves one.
#[derive(Debug)]
pub struct Unacceptable {
    /// What is wrong with it.
    pub why: SetupError,
    /// What to send before closing.
    pub reply: Option<Frame>,
}

/// A Reply that turns the connection down.
fn rejection(revision: u8, crc: bool, enhanced: bool, private_data: &[u8]) -> Result<Frame, SetupError> {
    let private_data = with_enhanced(enhanced.then(Enhanced::default), private_data)?;
    Ok(Frame { kind: Kind::Reply, markers: false, crc, rejected: true, enhanced, revision, private_data })
}

impl Incoming {
    /// Looks at a Request.
    ///
    /// # Errors
    /// If no Reply of ours could make it a connection.
    pub fn new(request: Frame) -> Result<Self, Unacceptable> {
        if request.kind != Kind::Request {
            return Err(Unacceptable { why: SetupError::WrongKind, reply: None });
        }
        if !(1..=2).contains(&request.revision) {
            return Err(Unacceptable { why: SetupError::Revision(request.revision), reply: None });
        }
        let refuse = |why, request: &Frame| {
            let enhanced = request.enhanced && request.revision >= 2;
            Unacceptable { why, reply: rejection(request.revision, request.crc, enhanced, &[]).ok() }
        };
        if request.markers {
            return Err(refuse(SetupError::Markers, &request));
        }
        if request.enhanced && request.revision < 2 {
            return Err(refuse(SetupError::EnhancedMismatch, &request));
        }
        let mut enhanced = None;
        if request.enhanced {
            enhanced = Enhanced::decode(&request.private_data);
            if enhanced.is_none() {
                return Err(refuse(SetupError::EnhancedMissing, &request));
            }
        }
        let private_data = users_part(&request);
        Ok(Self { revision: request.revision, crc: request.crc, enhanced, private_data })
    }

    /// The peer's private data.
    #[must_use]
    pub fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    /// The Reply that accepts, and what is agreed with it.
    ///
    /// # Errors
    /// [`SetupError::PrivateDataTooLong`] for our own; [`SetupError::NoCommonRtr`] if the peer asks for the
    /// peer-to-peer model and offers no first frame, in which case it is to be rejected.
    pub fn accept(&self, local: &Local, private_data: &[u8]) -> Result<(Frame, Agreed), SetupError> {
        let mut agreed = Agreed {
            role: Role::Passive,
            crc: local.crc || self.crc,
            rtr: None,
            ird: local.ird,
            ord: local.ord,
        };
        let mut ours = None;
        if let Some(theirs) = self.enhanced {
            let mut answer = Enhanced::default();
            if theirs.ird == DEPTH_UNKNOWN {
                answer.ord = DEPTH_UNKNOWN;
            } else {
                agreed.ord = local.ord.min(u32::from(theirs.ird));
                answer.ord = wire_depth(agreed.ord);
            }
            if theirs.peer_to_peer {
                answer.peer_to_peer = true;
                agreed.rtr = Some(if theirs.rtr_write {
                    answer.rtr_write = true;
                    Rtr::Write
                } else if theirs.rtr_read {
                    answer.rtr_read = true;
                    agreed.ird = agreed.ird.max(1);
                    Rtr::Read
                } else if theirs.rtr_send {
                    answer.rtr_send = true;
                    Rtr::Send
                } else {
                    return Err(SetupError::NoCommonRtr);
                });
            }
            if theirs.ord == DEPTH_UNKNOWN {
                answer.ird = DEPTH_UNKNOWN;
            } else {
                agreed.ird = agreed.ird.max(u32::from(theirs.ord).min(MAX_IRD));
                answer.ird = wire_depth(agreed.ird);
            }
            ours = Some(answer);
        }
        let frame = Frame {
            kind: Kind::Reply,
            markers: false,
            crc: agreed.crc,
            rejected: false,
            enhanced: ours.is_some(),
            revision: self.revision,
            private_data: with_enhanced(ours, private_data)?,
        };
        Ok((frame, agreed))
    }

    /// The Reply that turns the connection down.
    ///
    /// # Errors
    /// [`SetupError::PrivateDataTooLong`].
    pub fn reject(&self, local: &Local, private_data: &[u8]) -> Result<Frame, SetupError> {
        rejection(self.revision, local.crc || self.crc, self.enhanced.is_some(), private_data)
    }
}
