//! Responder: from a received message to the header of its Reply, on one connection (RFC 8166 sections 3.3 and 4).
//!
//! # Operation
//! Every message that arrives goes through [`Responder::receive`]. A Call becomes a [`HeldCall`], which names the chunks
//! to pull ([`HeldCall::reads`]) before it can be executed. With the results at hand, [`Responder::reply`] decides how
//! the Reply travels and writes nothing yet: a [`ReplyPlan`] holds the header, where the eligible result goes, and the
//! handle to invalidate. A message that is refused is answered with [`Responder::refuse`].
//!
//! # Why no promise is empty
//! Every header of a Reply, RDMA_ERROR included, takes its grant from [`Promises::answer`], which gives no more than
//! the posted Receives can take and nothing at all while none is posted. A HeldCall is not `Clone` and is consumed by
//! its Reply, so every Call retires exactly one credit.
//!
//! # Ownership
//! The Responder owns no memory. The driver keeps the received message and the sinks of RDMA Reads with the HeldCall, and
//! moves each along the [`Stage`]s.
//!
//! # When it breaks
//! A flood beyond the grant is counted and served as far as Receives are posted; beyond that the transport ends the
//! connection. A Call whose Reply has no room gets ERR_CHUNK. Nothing here ends the connection.
//!
//! # Limits
//! [`Limits`] bounds the chunk lists, and the bytes to pull, of one Call; the grant bounds the Calls.

use super::{
    Answer, Body, Credits, Header, HeaderError, Limits, ReadChunks, Role, WriteChunk, Xid,
    credits::{NoReceive, Promises},
    shape::{ItemPlace, NoRoom, ReplyShape},
};

/// A Call in our hands. It is answered exactly once.
#[derive(Debug)]
pub struct HeldCall {
    header: Header,
    reads: ReadChunks,
    payload: usize,
}

impl HeldCall {
    /// Its XID.
    #[must_use]
    pub fn xid(&self) -> Xid {
        self.header.xid
    }

    /// What to pull before it can be executed.
    #[must_use]
    pub fn reads(&self) -> &ReadChunks {
        &self.reads
    }

    /// Offset in the received message of the RPC message; for a Long Call, the RPC message is what `reads().call` pulls.
    #[must_use]
    pub fn payload(&self) -> usize {
        self.payload
    }

    /// Checks the RPC message that a Long Call's Position Zero Read chunk brought.
    ///
    /// # Errors
    /// If its XID is not the header's; refuse the Call then.
    pub fn check(&self, message: &[u8]) -> Result<(), HeaderError> {
        self.header.check_xid(message)
    }

    /// The handle that the Reply may have invalidated: one that belongs to this Call. Preferably one that the Reply
    /// filled, because the Requester waits for it.
    fn handle(&self) -> Option<u32> {
        let lists = self.header.body.lists()?;
        let written = lists.write.iter().chain(&lists.reply).flat_map(|c| c.iter().map(|s| s.handle)).next();
        written.or_else(|| lists.read.first().map(|s| s.segment.handle))
    }
}

/// A message that is answered with RDMA_ERROR.
#[derive(Debug)]
pub struct Refusal {
    answer: Answer,
}

/// What became of a message.
#[expect(clippy::large_enum_variant, reason = "boxing a Call would allocate for every message")]
#[derive(Debug)]
pub enum Arrived {
    /// A Call.
    Call(HeldCall),
    /// Not a usable Call: [`Responder::refuse`] has the answer.
    Refused(Refusal, HeaderError),
    /// Nothing to answer. Count it and post the Receive again.
    Dropped(DroppedMessage),
}

/// Why a message is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DroppedMessage {
    /// Too short to be attributed, or of a type that is never answered.
    Header(HeaderError),
    /// An RDMA_ERROR, or a Reply in the reverse direction: we have no Calls of our own outstanding.
    NotACall(Xid),
}

/// How a Reply travels.
#[derive(Debug)]
pub struct ReplyPlan {
    /// The transport header, with the grant and the returned lists.
    pub header: Header,
    /// Where the eligible result goes, if the Reply has one.
    pub item: Option<ItemPlace>,
    /// The handle to have invalidated by the Send, if both sides allow it.
    pub invalidate: Option<u32>,
}

impl ReplyPlan {
    /// The Write chunk to fill with the eligible result: its segments have the lengths to write.
    #[must_use]
    pub fn result_chunk(&self) -> Option<&WriteChunk> {
        match self.item {
            Some(ItemPlace::WriteChunk(index)) => self.header.body.lists()?.write.get(index),
            _ => None,
        }
    }

    /// The Reply chunk to fill with the RPC message, if it does not go inline.
    #[must_use]
    pub fn reply_chunk(&self) -> Option<&WriteChunk> {
        match &self.header.body {
            Body::Nomsg(lists) => lists.reply.as_ref(),
            _ => None,
        }
    }
}

/// Why there is no plan for a Reply. The Call is given back.
#[derive(Debug)]
pub enum ReplyFault {
    /// Post a Receive first, then try again.
    NoReceive(HeldCall),
    /// The Reply does not fit what the Call offered; answer with [`Responder::error`].
    NoRoom(HeldCall, NoRoom),
}

/// The Responder's side of one connection.
#[derive(Debug)]
pub struct Responder {
    promises: Promises,
    limits: Limits,
    threshold: u32,
    invalidate: bool,
    overruns: u64,
}

impl Responder {
    /// The Responder of a new connection that would like to grant `grant` credits. `threshold` is the inline threshold
    /// of Replies; `invalidate` says whether both sides allow remote invalidation (RFC 8797 section 4.1).
    #[must_use]
    pub fn new(grant: u32, threshold: u32, invalidate: bool, limits: Limits) -> Self {
        Self { promises: Promises::new(grant), limits, threshold, invalidate, overruns: 0 }
    }

    /// The account, to be looked at.
    #[must_use]
    pub fn promises(&self) -> &Promises {
        &self.promises
    }

    /// Calls that came although the client had no credit for them.
    #[must_use]
    pub fn overruns(&self) -> u64 {
        self.overruns
    }

    /// Receives to post now.
    #[must_use]
    pub fn receives_wanted(&self) -> u32 {
        self.promises.receives_wanted()
    }

    /// Receives to post before a Call in hand is answered.
    #[must_use]
    pub fn receives_wanted_to_answer(&self) -> u32 {
        self.promises.receives_wanted_to_answer()
    }

    /// A Receive has been posted on this connection.
    pub fn receive_posted(&mut self) {
        self.promises.receive_posted();
    }

    /// Changes what later Replies grant.
    pub fn set_grant(&mut self, grant: u32) {
        self.promises.set_wanted(grant);
    }

    /// A message has arrived in one of our Receives.
    pub fn receive(&mut self, message: &[u8]) -> Arrived {
        self.promises.receive_consumed();
        let parsed = Header::open(message, &self.limits).and_then(|(header, payload)| {
            let reads = header.read_chunks()?;
            Ok((header, reads, payload))
        });
        match parsed {
            Ok((header, _, payload)) if not_a_call(&header, payload) => {
                Arrived::Dropped(DroppedMessage::NotACall(header.xid))
            }
            Ok((header, reads, payload)) => {
                self.hold();
                Arrived::Call(HeldCall { header, reads, payload: message.len() - payload.len() })
            }
            Err(e) => match e.answer(Role::Responder) {
                Answer::Drop => Arrived::Dropped(DroppedMessage::Header(e)),
                answer => {
                    self.hold();
                    Arrived::Refused(Refusal { answer }, e)
                }
            },
        }
    }

    fn hold(&mut self) {
        if !self.promises.hold() {
            self.overruns += 1;
        }
    }

    /// The header that answers a refused message.
    ///
    /// # Errors
    /// [`NoReceive`], with the refusal: post a Receive first.
    pub fn refuse(&mut self, refusal: Refusal) -> Result<Header, (NoReceive, Refusal)> {
        match self.promises.answer() {
            Ok(grant) => Ok(refusal
                .answer
                .header(Credits(grant))
                .unwrap_or_else(|| Header::error_chunk(Xid(0), Credits(grant)))),
            Err(e) => Err((e, refusal)),
        }
    }

    /// Turns a Call in hand into a refusal with ERR_CHUNK.
    #[must_use]
    pub fn error(call: HeldCall) -> Refusal {
        Refusal { answer: Answer::ErrChunk { xid: call.header.xid } }
    }

    /// Bytes that the Reply to `call` would put into the Reply chunk, which are to be gathered in registered memory first;
    /// 0 if it travels another way. The lengths are those of [`Self::reply`].
    #[must_use]
    pub fn long_reply(&self, call: &HeldCall, inline_len: usize, item: Option<u32>) -> usize {
        let Some(offered) = call.header.body.lists().filter(|lists| lists.reply.is_some()) else { return 0 };
        let items = [item];
        let items = if item.is_some() { &items[..] } else { &[] };
        match ReplyShape::choose(offered, inline_len, items, self.threshold).map(|shape| shape.body) {
            Ok(Body::Nomsg(lists)) => lists.reply.map_or(0, |chunk| chunk.length() as usize),
            _ => 0,
        }
    }

    /// Decides how the Reply to `call` travels: an RPC message of `inline_len` bytes, and an eligible result of `item`
    /// bytes that is not counted in it.
    ///
    /// # Errors
    /// [`ReplyFault`]; nothing has happened then.
    #[expect(clippy::result_large_err, reason = "the Call goes back to its holder, without an allocation")]
    pub fn reply(
        &mut self,
        call: HeldCall,
        inline_len: usize,
        item: Option<u32>,
    ) -> Result<ReplyPlan, ReplyFault> {
        let empty = super::ChunkLists::default();
        let offered = call.header.body.lists().unwrap_or(&empty);
        let items = [item];
        let shape = match ReplyShape::choose(
            offered,
            inline_len,
            if item.is_some() { &items } else { &[] },
            self.threshold,
        ) {
            Ok(shape) => shape,
            Err(e) => return Err(ReplyFault::NoRoom(call, e)),
        };
        let Ok(grant) = self.promises.answer() else { return Err(ReplyFault::NoReceive(call)) };
        let invalidate = if self.invalidate { call.handle() } else { None };
        Ok(ReplyPlan {
            header: Header::new(call.header.xid, Credits(grant), shape.body),
            item: shape.items.first().copied().flatten(),
            invalidate,
        })
    }

    /// Drops a Call that will not be answered: a duplicate of one that is being executed, whose answer the client gets
    /// on another connection.
    pub fn forget(&mut self, _call: HeldCall) {
        self.promises.abandon();
    }
}

/// RDMA_ERROR, or an RPC message of type REPLY: an answer, and we asked nothing.
fn not_a_call(header: &Header, payload: &[u8]) -> bool {
    match &header.body {
        Body::Error(_) => true,
        Body::Msg(lists) => lists.is_empty() && payload.get(4..8) == Some(&[0, 0, 0, 1]),
        Body::Nomsg(_) => false,
    }
}

/// Where a Call stands on its way through a server. Each wait has its own name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Waits for memory to pull its chunks into.
    NeedBuffer,
    /// Its RDMA Reads are under way.
    Reading,
    /// Is being executed, here or on a blocking thread.
    Executing,
    /// Its RDMA Writes and its Send are in the queue.
    Sending,
    /// Has been answered, or its connection is gone.
    Done,
}

/// What moves a Call along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Its chunks, if it has any, have memory: RDMA Reads are posted.
    ReadsPosted,
    /// All of the RPC message is here.
    Complete,
    /// The Reply is in the queue.
    Replied,
    /// The Send has completed, or there was nothing to send.
    Sent,
    /// The connection is gone.
    Flushed,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 5] = [Self::NeedBuffer, Self::Reading, Self::Executing, Self::Sending, Self::Done];

    /// The stage after a step; `None` if the step cannot happen here.
    #[must_use]
    pub fn next(self, step: Step) -> Option<Self> {
        Some(match (self, step) {
            (Self::NeedBuffer, Step::ReadsPosted) => Self::Reading,
            (Self::NeedBuffer | Self::Reading, Step::Complete) => Self::Executing,
            (Self::Executing, Step::Replied) => Self::Sending,
            (Self::Executing | Self::Sending, Step::Sent) => Self::Done,
            (Self::Done, _) => return None,
            (_, Step::Flushed) => Self::Done,
            _ => return None,
        })
    }
}

impl Step {
    /// Every step.
    pub const ALL: [Self; 5] = [Self::ReadsPosted, Self::Complete, Self::Replied, Self::Sent, Self::Flushed];
}

#[cfg(test)]
#[path = "responder_tests.rs"]
mod tests;
