//! Requester: from a permit to a Reply, on one connection (RFC 8166 sections 3.3 and 4).
//!
//! # Operation
//! A [`Requester`] is born when a connection is, with no Receive and no grant. The driver tells it of every Receive it
//! posts. When a Call is waiting, the driver asks for a [`CallPermit`]; if there is one, it exposes the Call's memory on
//! this connection ([`CallPermit::registered`]), and spends the permit, which writes the transport header. Every
//! message that arrives goes through [`Requester::receive`], which says which Call it ends, and how.
//!
//! # Why no Call can leave too early
//! * A header can be written only through a permit, and [`Account`] makes a permit only while the grant of *this*
//!   connection has room and a Receive posted on *this* connection is left over for the Reply.
//! * A permit takes only [`Registered`] memory, and only that of the same connection.
//! * [`Requester::lost`] consumes the Requester. What it leaves are the keys of the Calls that have no Reply yet; the
//!   driver sends them on the next connection, from nothing, under the same XID.
//!
//! # Ownership
//! The Requester owns no memory but its table of outstanding Calls. Regions stay with the driver under the Call's key;
//! it may hand them back to the caller only after the region is invalidated.
//!
//! # When it breaks
//! A Reply that breaks a rule fails its Call. A message that belongs to nothing is counted and dropped, and its Receive
//! posted again. A peer that invalidates memory of another Call ends the connection, because that Call could wait for
//! a Reply that cannot come.
//!
//! # Limits
//! At most as many Calls are outstanding as were asked for; the table is allocated once.

use alloc::vec::Vec;
use core::{fmt, time::Duration};

use super::{
    Body, ChunkLists, Credits, Header, HeaderError, Limits, PeerMisbehaved, RdmaError, Segment, WriteChunk,
    Xid,
    credits::{Account, Permit},
};

/// Tells connections apart, so that memory registered on one cannot be named on another. Unique in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// What the driver calls a Call; comes back with its end.
pub type CallKey = usize;

/// Memory that is exposed on one connection.
#[derive(Debug)]
pub struct Registered {
    connection: ConnectionId,
    segment: Segment,
}

/// The memory that a Call exposes.
#[derive(Debug, Default)]
pub struct CallChunks {
    /// The RPC message itself, as Position Zero Read chunk: makes it a Long Call.
    pub call: Option<Registered>,
    /// The eligible argument, and its position in the unreduced message.
    pub argument: Option<(u32, Registered)>,
    /// Room for the eligible result: a Write chunk.
    pub result: Option<Registered>,
    /// Room for the whole Reply: the Reply chunk.
    pub reply: Option<Registered>,
}

/// Why a Call was not sent. The permit is not spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Memory of another connection.
    ForeignMemory,
    /// The XID is outstanding on this connection: a Call is never sent twice on a connection that lives (RFC 8166
    /// section 4.5 leaves retransmission to a new connection).
    XidInUse(Xid),
    /// The header does not fit the Send buffer.
    NoRoom,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignMemory => f.write_str("the Call's memory is registered on another connection"),
            Self::XidInUse(xid) => write!(f, "XID {xid} is outstanding on this connection already"),
            Self::NoRoom => f.write_str("the transport header does not fit the Send buffer"),
        }
    }
}

impl core::error::Error for SendError {}

/// Where a Reply's RPC message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMessage {
    /// In the received message, from this offset to its end.
    Inline(usize),
    /// In the Reply chunk, this many bytes of it.
    ReplyChunk(u64),
}

/// How a message ended a Call, or did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The Reply of a Call.
    Reply {
        /// The Call.
        key: CallKey,
        /// Its RPC message.
        message: ReplyMessage,
        /// Bytes written to the Write chunk, if one was offered.
        result: Option<u64>,
    },
    /// The Call failed for good; sending it again would fail again.
    Failed {
        /// The Call.
        key: CallKey,
        /// Why.
        why: CallFault,
    },
    /// The message belongs to no Call of ours. Count it, post the Receive again.
    Dropped(Dropped),
    /// The connection has to end.
    Fatal(PeerMisbehaved),
}

/// Why a Call failed for good on the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFault {
    /// The Responder answered RDMA_ERROR.
    Error(RdmaError),
    /// The Reply broke a rule.
    Misbehaved(PeerMisbehaved),
}

impl fmt::Display for CallFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(e) => e.fmt(f),
            Self::Misbehaved(m) => m.fmt(f),
        }
    }
}

/// A message that ended no Call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its header does not parse.
    Header(HeaderError),
    /// A Reply that nobody waits for, or a Call that nobody asked for.
    Stray(PeerMisbehaved),
}

#[derive(Debug)]
struct Outstanding {
    key: CallKey,
    /// Order of sending on this connection.
    nth: u64,
    sent: Duration,
    offered: ChunkLists,
}

/// The Requester's side of one connection.
#[derive(Debug)]
pub struct Requester {
    id: ConnectionId,
    account: Account,
    /// Receives to keep posted beyond the window: they take messages that answer nothing.
    spare: u32,
    limits: Limits,
    /// XIDs of `calls`, apart so that looking one up touches little memory.
    xids: Vec<Xid>,
    calls: Vec<Outstanding>,
    sent: u64,
    /// When the Call that was sent last, of those with a Reply, was sent.
    answered: Option<Duration>,
}

impl Requester {
    /// The Requester of a new connection, which will ask for `requested` credits in every Call.
    #[must_use]
    pub fn new(id: ConnectionId, requested: u32) -> Self {
        let table = requested.min(4096) as usize;
        Self {
            id,
            account: Account::new(requested),
            spare: 2,
            limits: Limits::REPLY,
            xids: Vec::with_capacity(table),
            calls: Vec::with_capacity(table),
            sent: 0,
            answered: None,
        }
    }

    /// The account, to be looked at.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Receives to post now, so that the window can be used and a stray message does no harm.
    #[must_use]
    pub fn receives_wanted(&self) -> u32 {
        self.account
            .window()
            .max(self.account.outstanding())
            .saturating_add(self.spare)
            .saturating_sub(self.account.posted())
    }

    /// A Receive has been posted on this connection.
    pub fn receive_posted(&mut self) {
        self.account.receive_posted();
    }

    /// The right to send one Call, if there is one now.
    pub fn permit(&mut self) -> Option<CallPermit<'_>> {
        let permit = self.account.permit()?;
        Some(CallPermit {
            permit,
            id: self.id,
            xids: &mut self.xids,
            calls: &mut self.calls,
            sent: &mut self.sent,
        })
    }

    /// A message has arrived in one of our Receives; `invalidated` is the STag that it had invalidated.
    pub fn receive(&mut self, message: &[u8], invalidated: Option<u32>) -> Received {
        self.account.receive_consumed();
        let parsed = Header::open(message, &self.limits);
        let waiting = parsed.as_ref().ok().and_then(|(h, _)| Some((h, self.find(h.xid)?)));
        if let Some(stag) = invalidated {
            let ours = waiting.is_some_and(|(_, i)| self.calls[i].offered.handles().any(|h| h == stag));
            if !ours {
                return Received::Fatal(PeerMisbehaved::ForeignInvalidation { stag });
            }
        }
        let (header, payload) = match &parsed {
            Ok(parsed) => parsed,
            Err(e) => return Received::Dropped(Dropped::Header(*e)),
        };
        if let Some(stray) = reverse_call(header, payload) {
            return Received::Dropped(Dropped::Stray(stray));
        }
        let Some((_, index)) = waiting else {
            return Received::Dropped(Dropped::Stray(PeerMisbehaved::ReplyToUnknownXid(header.xid)));
        };
        self.xids.swap_remove(index);
        let Outstanding { key, offered, sent, .. } = self.calls.swap_remove(index);
        self.answered = self.answered.max(Some(sent));
        self.account.retire(header.credit.0);
        if let Body::Error(e) = header.body {
            return Received::Failed { key, why: CallFault::Error(e) };
        }
        match header.placed(&offered) {
            Ok(placed) => {
                let message = match placed.reply {
                    Some(len) => ReplyMessage::ReplyChunk(len),
                    None => ReplyMessage::Inline(message.len() - payload.len()),
                };
                Received::Reply { key, message, result: placed.write.first().copied() }
            }
            Err(rule) => Received::Failed { key, why: CallFault::Misbehaved(rule) },
        }
    }

    fn find(&self, xid: Xid) -> Option<usize> {
        self.xids.iter().position(|x| *x == xid)
    }

    /// When the Call that has waited longest for its Reply was sent.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        self.calls.iter().map(|c| c.sent).min()
    }

    /// When the Call that was sent last, of those that have a Reply, was sent. If that is long after [`Self::oldest`],
    /// the oldest Call was not slow but forgotten.
    #[must_use]
    pub fn latest_answered(&self) -> Option<Duration> {
        self.answered
    }

    /// The connection is gone: the Calls that have no Reply, in the order in which they were sent. All else that this
    /// connection knew goes with it.
    #[must_use]
    pub fn lost(mut self) -> Vec<CallKey> {
        self.calls.sort_unstable_by_key(|c| c.nth);
        self.calls.iter().map(|c| c.key).collect()
    }
}

/// A message that is a Call of the peer's, not a Reply (RFC 8167 section 4.1): no chunks, message type CALL.
fn reverse_call(header: &Header, payload: &[u8]) -> Option<PeerMisbehaved> {
    let Body::Msg(lists) = &header.body else { return None };
    let is_call = lists.is_empty() && payload.get(4..8) == Some(&[0; 4]);
    is_call.then_some(PeerMisbehaved::UnexpectedCall(header.xid))
}

/// The right to send one Call on one connection. Dropped unspent, nothing has happened.
#[must_use = "a permit that is dropped sends nothing"]
#[derive(Debug)]
pub struct CallPermit<'a> {
    permit: Permit<'a>,
    id: ConnectionId,
    xids: &'a mut Vec<Xid>,
    calls: &'a mut Vec<Outstanding>,
    sent: &'a mut u64,
}

impl CallPermit<'_> {
    /// Memory has been exposed, for this Call, on this connection.
    #[must_use]
    pub fn registered(&self, segment: Segment) -> Registered {
        Registered { connection: self.id, segment }
    }

    /// Sends a Call: writes its transport header to the front of `out` and returns the header's length. The rest of the
    /// Send, which the caller adds, is the inline part of the RPC message; a Long Call has none.
    ///
    /// # Errors
    /// [`SendError`]; then the permit is not spent, and the Call is not outstanding.
    pub fn send(
        self,
        xid: Xid,
        key: CallKey,
        chunks: CallChunks,
        now: Duration,
        out: &mut [u8],
    ) -> Result<usize, SendError> {
        if self.xids.contains(&xid) {
            return Err(SendError::XidInUse(xid));
        }
        let long = chunks.call.is_some();
        let offered = chunks.lists(self.id)?;
        let credit = Credits(self.permit.requested());
        let body = if long { Body::Nomsg(offered) } else { Body::Msg(offered) };
        let header = Header::new(xid, credit, body);
        let len = header.encode_into(out).ok_or(SendError::NoRoom)?;
        let (Body::Msg(offered) | Body::Nomsg(offered)) = header.body else { return Err(SendError::NoRoom) };
        self.xids.push(xid);
        self.calls.push(Outstanding { key, nth: *self.sent, sent: now, offered });
        *self.sent += 1;
        self.permit.spend();
        Ok(len)
    }
}

impl CallChunks {
    fn lists(self, on: ConnectionId) -> Result<ChunkLists, SendError> {
        let take =
            |r: Registered| if r.connection == on { Ok(r.segment) } else { Err(SendError::ForeignMemory) };
        let mut lists = ChunkLists::default();
        if let Some(call) = self.call {
            lists.read.push_chunk(0, [take(call)?]);
        }
        if let Some((position, argument)) = self.argument {
            lists.read.push_chunk(position, [take(argument)?]);
        }
        if let Some(result) = self.result {
            lists.write.push(WriteChunk::from_iter([take(result)?]));
        }
        if let Some(reply) = self.reply {
            lists.reply = Some(WriteChunk::from_iter([take(reply)?]));
        }
        Ok(lists)
    }
}

#[cfg(test)]
#[path = "requester_tests.rs"]
mod tests;
