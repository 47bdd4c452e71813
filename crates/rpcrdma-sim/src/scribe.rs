//! Puts events of the fabric into words, and gives them the numbers of their connection.
//!
//! # Operation
//! The scribe remembers what a timeline needs and single events do not tell: the procedure behind an XID, how many
//! messages each end has sent, and the client's window before.
//!
//! # Limits
//! The RPC message of a Long Call is not looked at, so its procedure is not named. Only the latest connections and Calls
//! are remembered.

use std::collections::BTreeMap;

use rpcrdma::{
    fabric::{
        Completion, Lost, Op,
        sim::{ConnId, Event, EventKind, Reclaim, Side},
    },
    nfs::{mount, v3},
    proto::rpcrdma::{Body, Header, Limits, RdmaError, Xid},
};

use crate::{
    checker::Account,
    plan,
    timeline::{Entry, Mark, Numbers},
};

/// Connections that are remembered.
const CONNECTIONS: usize = 256;
/// Calls whose procedures are remembered.
const CALLS: usize = 8192;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Scribe {
    /// The procedure of each Call.
    names: BTreeMap<Xid, String>,
    conns: BTreeMap<ConnId, Known>,
}

/// What is remembered of a connection.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Messages sent and arrived, by the side that sends.
    sent: [u64; 2],
    arrived: [u64; 2],
    /// The client's window.
    window: usize,
}

impl Scribe {
    /// The event as an entry of a timeline. `account` is its connection's, after the event.
    pub(crate) fn entry(&mut self, event: &Event<'_>, account: Option<&Account>) -> Entry {
        let numbers = account.map(numbers).unwrap_or_default();
        let (mark, words) = self.words(event, &numbers);
        if event.side == Side::Active {
            self.known(event.conn).window = numbers.window;
        }
        Entry { step: event.step, at: event.at, conn: event.conn, side: event.side, mark, words, numbers }
    }

    fn known(&mut self, conn: ConnId) -> &mut Known {
        while self.conns.len() > CONNECTIONS {
            self.conns.pop_first();
        }
        self.conns.entry(conn).or_insert(Known { sent: [0; 2], arrived: [0; 2], window: 1 })
    }

    fn words(&mut self, event: &Event<'_>, numbers: &Numbers) -> (Mark, String) {
        match &event.kind {
            EventKind::Connect { to } => (Mark::Setup, format!("{} connects to {to}", event.addr.ip())),
            EventKind::Request => (Mark::Setup, "is asked for a connection".to_owned()),
            EventKind::Born { recvs: 1 } => (Mark::Receive, "starts with 1 Receive".to_owned()),
            EventKind::Born { recvs } => (Mark::Receive, format!("starts with {recvs} Receives")),
            EventKind::NotMade => (Mark::Lost, "the connection is not made".to_owned()),
            EventKind::Made => (Mark::Setup, "is connected".to_owned()),
            EventKind::RecvPosted => (Mark::Receive, "posts a Receive".to_owned()),
            EventKind::SendPosted { bytes, invalidate, .. } => {
                let nth = count(&mut self.known(event.conn).sent, event.side);
                let suffix = if invalidate.is_some() { ", invalidates" } else { "" };
                (Mark::Sent(nth), format!("{}{suffix}", self.message(bytes, event.side)))
            }
            EventKind::Arrived { bytes } => {
                let from = event.side.other();
                let nth = count(&mut self.known(event.conn).arrived, from);
                (Mark::Arrived(nth), self.message(bytes, from))
            }
            EventKind::Posted { op, len, .. } => (Mark::Data(*op), format!("RDMA {op:?} of {len} bytes")),
            EventKind::Exposed { stag, len, access, .. } => {
                (Mark::Memory, format!("exposes {len} bytes, {access:?}, {stag:?}"))
            }
            EventKind::NotExposed => (Mark::Memory, "cannot expose a region".to_owned()),
            EventKind::Invalidating { stag } => (Mark::Detail, format!("invalidates {stag:?}")),
            EventKind::Reclaimed { stag, how } => {
                let how = match how {
                    Reclaim::Local => "",
                    Reclaim::Remote => " by the Reply",
                    Reclaim::Flush => " by the loss",
                };
                (Mark::Memory, format!("{stag:?} is closed{how}"))
            }
            EventKind::Placed { stag, len } => (Mark::Detail, format!("{len} bytes are placed in {stag:?}")),
            EventKind::Fetched { stag, len } => {
                (Mark::Detail, format!("{len} bytes are fetched from {stag:?}"))
            }
            EventKind::NoRecv => (Mark::Lost, "A MESSAGE FINDS NO RECEIVE".to_owned()),
            EventKind::Violation(what) => (Mark::Lost, format!("VIOLATION: {what}")),
            EventKind::Handed(c) => self.handed(event, c, numbers),
            EventKind::Fault(fault) => (Mark::Fault, plan::in_words(fault)),
            EventKind::Lost(lost) => (Mark::Lost, format!("LOST: {}", reason(lost))),
            EventKind::Shutdown(how) => (Mark::End, format!("shuts down ({how:?})")),
            EventKind::Dropped => (Mark::End, "drops its end".to_owned()),
        }
    }

    fn handed(&self, event: &Event<'_>, completion: &Completion, numbers: &Numbers) -> (Mark, String) {
        match completion {
            Completion::Received { buf, len, .. } => {
                let before = self.conns.get(&event.conn).map_or(1, |c| c.window);
                if event.side == Side::Active && before != numbers.window {
                    let verb = if before < numbers.window { "opens" } else { "closes" };
                    return (Mark::Window, format!("the window {verb}: {before} to {}", numbers.window));
                }
                let message = self.name(buf.get(..*len).unwrap_or_default(), event.side.other());
                (Mark::Detail, format!("is given {message}"))
            }
            Completion::Done { op, .. } => (Mark::Detail, format!("is told that a {op:?} is done")),
            Completion::Flushed { op: Op::Recv, .. } => (Mark::Detail, "has a Receive flushed".to_owned()),
            Completion::Flushed { op, .. } => (Mark::Detail, format!("has a {op:?} flushed")),
            Completion::Reclaimed { stag, .. } => (Mark::Detail, format!("is given {stag:?} back")),
        }
    }

    /// Names a message that `from` has sent, and remembers what it calls.
    fn message(&mut self, bytes: &[u8], from: Side) -> String {
        if from == Side::Active
            && let Ok((header, at)) = Header::decode(bytes, &Limits::default())
            && matches!(header.body, Body::Msg(_))
            && let Some(name) = procedure(bytes.get(at..).unwrap_or_default())
        {
            while self.names.len() >= CALLS {
                self.names.pop_first();
            }
            self.names.insert(header.xid, name);
        }
        self.name(bytes, from)
    }

    fn name(&self, bytes: &[u8], from: Side) -> String {
        let header = match Header::decode(bytes, &Limits::REPLY) {
            Ok((header, _)) => header,
            Err(e) => return e.to_string(),
        };
        let (xid, credits) = (header.xid, header.credit.0);
        let name = self.names.get(&xid).map_or("", String::as_str);
        let gap = if name.is_empty() { "" } else { " " };
        match (&header.body, from) {
            (Body::Error(RdmaError::Chunk), _) => format!("ERR_CHUNK {xid}, grant {credits}"),
            (Body::Error(_), _) => format!("RDMA_ERROR {xid}, grant {credits}"),
            (Body::Nomsg(_), Side::Active) => format!("Long Call{gap}{name} {xid}"),
            (_, Side::Active) => format!("Call{gap}{name} {xid}"),
            (Body::Nomsg(_), Side::Passive) => format!("Long Reply{gap}{name} {xid}, grant {credits}"),
            (_, Side::Passive) => format!("Reply{gap}{name} {xid}, grant {credits}"),
        }
    }
}

fn count(counts: &mut [u64; 2], side: Side) -> u64 {
    let n = &mut counts[side as usize];
    *n += 1;
    *n
}

fn numbers(a: &Account) -> Numbers {
    let window = a.window();
    Numbers {
        posted: a.posted,
        granted: a.granted,
        window,
        outstanding: a.outstanding.len(),
        permits: window.saturating_sub(a.outstanding.len()).min(a.posted[0].saturating_sub(a.awaited.len())),
        held: a.held.len(),
        exposed: a.exposed,
    }
}

/// Why a connection was lost, in few words.
fn reason(lost: &Lost) -> String {
    match lost {
        Lost::Io(kind) => kind.to_string(),
        Lost::PeerClosed => "the peer said goodbye".to_owned(),
        Lost::Closed => "closed here".to_owned(),
        Lost::Terminated(why) => format!("terminated, {why}"),
        Lost::PeerMisbehaved(what) => what.clone(),
        other => other.to_string(),
    }
}

/// The procedure that an RPC message calls.
fn procedure(rpc: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u32::from_be_bytes(*rpc.get(at..)?.first_chunk()?));
    let (program, number) = (word(12)?, word(20)?);
    Some(match program {
        v3::PROGRAM => v3::Proc::from_u32(number)?.to_string(),
        mount::PROGRAM => "MOUNT".to_owned(),
        _ => return None,
    })
}
