//! A connection with nothing behind it: messages out, messages in, memory lent and taken back.
//!
//! # Who owns which memory
//! What is exposed belongs to the queue pair until [`Wire::take_back`]; what was sent is dropped when it completes. A
//! Receive is posted again as soon as its message has been copied out of it: a probe sends a few messages and may copy.
//!
//! # When it breaks
//! A lost connection is an observation like any other ([`Seen::Lost`]); messages that came before it are seen first.
//!
//! # Limits
//! Every wait ends after the limit of [`Options`](super::Options).

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use rpcrdma_fabric::{
    Access, BoxQueuePair, Completion, ConnectError, Connector, Lost, QpLimits, Region, RejectReason,
    Shutdown, Stag, Start, Work,
};
use rpcrdma_nfs::v3::{self, Procedure, Status, args::NullArgs};
use rpcrdma_proto::{
    rpc::{CallHeader, Fault, Flavor, OpaqueAuth, ReplyHeader, Xid},
    rpcrdma::{Body, ChunkLists, Credits, Header, Limits, PrivateData, RdmaError, Segment, Thresholds},
    xdr::{Encode, Hole, Reader, Writer},
};
use tokio::time::timeout;

use crate::client::Xids;

/// Size of our Sends and Receives in bytes, as our private data says.
pub(super) const INLINE: u32 = 4096;
/// Credits that our Calls ask for.
pub(super) const CREDITS: Credits = Credits(128);
/// Most messages kept that nobody has asked for yet.
const MAX_INBOX: usize = 1024;

/// A connection.
pub(super) struct Wire {
    qp: BoxQueuePair,
    done: Vec<Completion>,
    inbox: VecDeque<Message>,
    reclaimed: Vec<(Stag, Region)>,
    lost: Option<Lost>,
    limit: Duration,
}

/// What a Send of the server brought.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    /// The tag of ours that it had invalidated.
    pub(super) invalidated: Option<Stag>,
}

/// Why a check could not be made.
pub(super) enum Halt {
    /// No connection.
    Connect(ConnectError),
    /// Something that every server does was not done; in words.
    Broken(String),
    /// Our own provider did not take what was posted.
    Refused(RejectReason),
}

impl From<ConnectError> for Halt {
    fn from(e: ConnectError) -> Self {
        Self::Connect(e)
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(e) => e.fmt(f),
            Self::Broken(what) => f.write_str(what),
            Self::Refused(why) => write!(f, "the message could not be sent: {why}"),
        }
    }
}

/// What came after a message was sent.
pub(super) enum Seen {
    /// An RPC Reply, inline or in a Reply chunk.
    Reply(Reply),
    /// An RDMA_ERROR.
    Error { header: Header, error: RdmaError },
    /// A message that is neither; in words.
    Garbled(String),
    /// Nothing, for so long.
    Silence(Duration),
    /// The end of the connection.
    Lost(Lost),
}

/// A message with a transport header that carries a Reply.
pub(super) struct Reply {
    pub(super) header: Header,
    /// What follows the header.
    pub(super) payload: Vec<u8>,
    /// The tag of ours that it had invalidated.
    pub(super) invalidated: Option<Stag>,
}

impl Reply {
    pub(super) fn lists(&self) -> &ChunkLists {
        static NONE: std::sync::OnceLock<ChunkLists> = std::sync::OnceLock::new();
        self.header.body.lists().unwrap_or_else(|| NONE.get_or_init(ChunkLists::default))
    }

    /// Whether the RPC message is in the Reply chunk.
    pub(super) fn is_nomsg(&self) -> bool {
        matches!(self.header.body, Body::Nomsg(_))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(reply) if reply.is_nomsg() => f.write_str("a Reply in the Reply chunk"),
            Self::Reply(reply) => match rpc_outcome(reply.header.xid, &reply.payload) {
                Ok(Outcome { status: Ok(()), .. }) => f.write_str("an RPC Reply: success"),
                Ok(Outcome { status: Err(fault), .. }) => write!(f, "an RPC Reply: {fault}"),
                Err(what) => write!(f, "a Reply that does not decode: {what}"),
            },
            Self::Error { error: RdmaError::Chunk, .. } => f.write_str("ERR_CHUNK"),
            Self::Error { error: RdmaError::Vers { low, high }, .. } => {
                write!(f, "ERR_VERS, versions {low} to {high}")
            }
            Self::Garbled(what) => write!(f, "a message that does not decode: {what}"),
            Self::Silence(limit) => write!(f, "nothing in {} s", limit.as_secs_f64()),
            Self::Lost(lost) => write!(f, "the end of the connection: {lost}"),
        }
    }
}

/// What an RPC Reply says.
pub(super) struct Outcome {
    pub(super) status: Result<(), Fault>,
    /// Offset of the results.
    pub(super) results: usize,
}

/// Reads the header of an RPC Reply.
///
/// # Errors
/// In words.
pub(super) fn rpc_outcome(xid: Xid, message: &[u8]) -> Result<Outcome, String> {
    let mut r = Reader::new(message);
    let header = ReplyHeader::decode(&mut r).map_err(|e| e.to_string())?;
    if header.xid != xid {
        return Err(format!("it answers XID {}", header.xid));
    }
    Ok(Outcome { status: header.status, results: r.position() })
}

/// The NFS status of a Reply; an RPC fault is an error, in words.
pub(super) fn nfs_status(xid: Xid, message: &[u8]) -> Result<(Status, usize), String> {
    let outcome = rpc_outcome(xid, message)?;
    outcome.status.map_err(|fault| fault.to_string())?;
    let mut r = Reader::new(message.get(outcome.results..).unwrap_or_default());
    let status = r.u32().map_err(|e| e.to_string())?;
    Ok((Status(status), outcome.results + 4))
}

/// A transport message of version 1.
pub(super) fn message(xid: Xid, body: Body, payload: &[u8]) -> Vec<u8> {
    raw_message(&Header::new(xid, CREDITS, body), payload)
}

/// A transport message.
pub(super) fn raw_message(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; header.encoded_len()];
    let len = header.encode_into(&mut out).unwrap_or(0);
    out.truncate(len);
    out.extend_from_slice(payload);
    out
}

/// A new XID.
pub(super) fn next_xid() -> Xid {
    Xids::of_process().next()
}

/// The RPC message of an NFS Call, and where an argument is missing that travels apart. `cred` is the body of an AUTH_SYS
/// credential.
pub(super) fn call<P: Procedure>(xid: Xid, cred: Option<&[u8]>, args: &P) -> (Vec<u8>, Option<Hole>) {
    let mut w = Writer::new();
    let cred = cred.map_or(OpaqueAuth::NONE, |body| OpaqueAuth { flavor: Flavor::SYS, body });
    let (prog, vers, proc) = (v3::PROGRAM, v3::VERSION, P::PROC as u32);
    CallHeader { xid, prog, vers, proc, cred, verf: OpaqueAuth::NONE }.encode(&mut w);
    args.encode(&mut w);
    w.into_parts()
}

/// The RPC message of a NULL Call.
pub(super) fn null(xid: Xid) -> Vec<u8> {
    call(xid, None, &NullArgs {}).0
}

/// Our private data.
pub(super) fn private_data(remote_invalidation: bool) -> PrivateData {
    PrivateData::new(INLINE, INLINE, remote_invalidation)
}

impl Wire {
    /// Connects, with so many Receives.
    pub(super) async fn connect(
        connector: &dyn Connector,
        to: SocketAddr,
        limit: Duration,
        recvs: usize,
        remote_invalidation: bool,
    ) -> Result<Self, ConnectError> {
        let start = Start {
            private_data: private_data(remote_invalidation).encode().to_vec(),
            recvs: (0..recvs).map(|_| Region::alloc(INLINE as usize)).collect(),
            limits: QpLimits { recvs: recvs + 16, ..QpLimits::default() },
        };
        let qp = timeout(limit, connector.connect(to, start)).await.unwrap_or(Err(ConnectError::TimedOut))?;
        Ok(Self { qp, done: Vec::new(), inbox: VecDeque::new(), reclaimed: Vec::new(), lost: None, limit })
    }

    /// The provider in words.
    pub(super) fn transport(&self) -> &str {
        &self.qp.peer().transport
    }

    /// The server's private data.
    pub(super) fn private_data(&self) -> &[u8] {
        &self.qp.peer().private_data
    }

    /// The inline thresholds of this connection.
    pub(super) fn thresholds(&self) -> Thresholds {
        let theirs = PrivateData::parse(self.private_data()).unwrap_or_default();
        Thresholds::agree(private_data(false), theirs)
    }

    /// Lends the server memory that starts with `bytes` and has `len` bytes; the segment names all of them.
    pub(super) fn lend(&mut self, bytes: &[u8], len: usize, access: Access) -> Result<Segment, Halt> {
        let mut region = Region::alloc(len.max(bytes.len()));
        region[..bytes.len()].copy_from_slice(bytes);
        let whole = region.len() as u32;
        let exposed = self.qp.expose(region, whole, access).map_err(|e| Halt::Refused(e.why))?;
        Ok(Segment { handle: exposed.stag.0, length: exposed.len, offset: exposed.offset })
    }

    /// Closes memory to the server and returns what is in it now. `None` if the connection was lost and has forgotten it.
    pub(super) async fn take_back(&mut self, segment: Segment) -> Option<Region> {
        let stag = Stag(segment.handle);
        self.qp.invalidate(stag);
        let limit = self.limit;
        let back = poll_fn(|cx| {
            self.turn(cx);
            if let Some(at) = self.reclaimed.iter().position(|(s, _)| *s == stag) {
                return Poll::Ready(Some(self.reclaimed.swap_remove(at).1));
            }
            if self.lost.is_some() { Poll::Ready(None) } else { Poll::Pending }
        });
        timeout(limit, back).await.unwrap_or_default()
    }

    /// Sends bytes as they are.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Halt> {
        let work = Work::Send { id: 0, buf: Region::from(bytes), len: bytes.len(), invalidate: None };
        match self.qp.post(work) {
            // What became of the connection is seen by who waits for the answer.
            Ok(()) => Ok(()),
            Err(refused) if refused.why == RejectReason::Lost => Ok(()),
            Err(refused) => Err(Halt::Refused(refused.why)),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) {
        while self.lost.is_none() {
            let polled = self.qp.poll(cx, &mut self.done);
            for completion in self.done.drain(..) {
                match completion {
                    Completion::Received { buf, len, invalidated } => {
                        let bytes = buf.get(..len).unwrap_or_default().to_vec();
                        if self.inbox.len() < MAX_INBOX {
                            self.inbox.push_back(Message { bytes, invalidated });
                        }
                        // On a lost connection it does not matter.
                        let _ = self.qp.post_recv(buf);
                    }
                    Completion::Reclaimed { stag, buf } => self.reclaimed.push((stag, buf)),
                    Completion::Done { .. } | Completion::Flushed { .. } => {}
                }
            }
            match polled {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(lost)) => self.lost = Some(lost),
            }
        }
    }

    /// The next message. `None` after the limit.
    pub(super) async fn next(&mut self) -> Option<Result<Message, Lost>> {
        let limit = self.limit;
        let next = poll_fn(|cx| {
            self.turn(cx);
            match (self.inbox.pop_front(), &self.lost) {
                (Some(message), _) => Poll::Ready(Ok(message)),
                (None, Some(lost)) => Poll::Ready(Err(lost.clone())),
                (None, None) => Poll::Pending,
            }
        });
        timeout(limit, next).await.ok()
    }

    /// What comes next, and for which XID, if it has one.
    pub(super) async fn seen(&mut self) -> (Option<Xid>, Seen) {
        let Message { bytes, invalidated } = match self.next().await {
            None => return (None, Seen::Silence(self.limit)),
            Some(Err(lost)) => return (None, Seen::Lost(lost)),
            Some(Ok(message)) => message,
        };
        match Header::decode(&bytes, &Limits::REPLY) {
            Err(e) => (e.xid, Seen::Garbled(e.to_string())),
            Ok((header, at)) => {
                let xid = Some(header.xid);
                if let Body::Error(error) = header.body {
                    return (xid, Seen::Error { header, error });
                }
                let payload = bytes.get(at..).unwrap_or_default().to_vec();
                (xid, Seen::Reply(Reply { header, payload, invalidated }))
            }
        }
    }

    /// What answers `xid`. Messages about others are passed over.
    pub(super) async fn answer(&mut self, xid: Xid) -> Seen {
        for _ in 0..MAX_INBOX {
            let (about, seen) = self.seen().await;
            if about.is_none_or(|about| about == xid) {
                return seen;
            }
        }
        Seen::Silence(self.limit)
    }

    /// Sends a message and waits for what answers it.
    pub(super) async fn exchange(&mut self, xid: Xid, message: &[u8]) -> Result<Seen, Halt> {
        self.send(message)?;
        Ok(self.answer(xid).await)
    }

    /// A NULL round trip; returns the grant as it stands in the Reply.
    pub(super) async fn null(&mut self) -> Result<Result<Credits, Seen>, Halt> {
        let xid = next_xid();
        let call = message(xid, Body::Msg(ChunkLists::default()), &null(xid));
        Ok(match self.exchange(xid, &call).await? {
            Seen::Reply(reply) => match rpc_outcome(xid, &reply.payload) {
                Ok(Outcome { status: Ok(()), .. }) => Ok(reply.header.credit),
                _ => Err(Seen::Reply(reply)),
            },
            other => Err(other),
        })
    }

    /// Whether the connection still answers, in words.
    pub(super) async fn health(&mut self) -> Result<&'static str, Halt> {
        Ok(match self.null().await? {
            Ok(_) => "the connection goes on",
            Err(Seen::Lost(_)) => "the connection is closed",
            Err(_) => "the connection answers no more",
        })
    }

    /// Says goodbye.
    pub(super) async fn close(mut self) {
        self.qp.shutdown(Shutdown::Graceful);
        let limit = Duration::from_secs(1).min(self.limit);
        let end = poll_fn(|cx| {
            self.turn(cx);
            if self.lost.is_some() { Poll::Ready(()) } else { Poll::Pending }
        });
        // A server that does not want to hear of it is left alone.
        let _ = timeout(limit, end).await;
    }
}
