//! Follows every end of every connection through the tables.

use std::{
    collections::{BTreeMap, HashMap},
    io::ErrorKind,
    net::SocketAddr,
};

use rpcrdma::{
    fabric::{
        Completion, Lost, Op, Shutdown, WorkId,
        sim::{ConnId, Event, EventKind, Reclaim, Side, What},
    },
    proto::rpcrdma::{
        Answer, Body, ChunkLists, Header, Limits, Role, Xid,
        responder::{Stage, Step},
    },
    server::service::Served,
};

use super::{
    Axis, Coverage, Table, tables as all_tables,
    tables::{Account, Link, LinkEvent, Promise, PromiseEvent, RequestEvent},
};

/// What is known of one connection.
#[derive(Debug)]
struct Conn {
    /// Whether client and server are ours.
    ours: [bool; 2],
    addr: SocketAddr,
    links: [Link; 2],
    lost: [bool; 2],
    gone: [bool; 2],
    client: Client,
    server: Server,
}

/// The Requester's account, as its driver sees it.
#[derive(Debug, Default)]
struct Client {
    requested: u32,
    granted: Option<u32>,
    posted: usize,
    /// Calls outstanding, with what they offer.
    calls: BTreeMap<Xid, ChunkLists>,
}

/// The Responder's account, as its driver sees it.
#[derive(Debug, Default)]
struct Server {
    promised: u32,
    replied: bool,
    /// Messages in hand.
    held: u32,
    /// There may be Calls of one XID among them, so which of them a step is of, only the server can tell. It takes a client
    /// that sends one twice, be it in a form that is refused, or a Long Call whose message has another XID than its header.
    blurred: bool,
    /// The XIDs of messages that were refused.
    refused: Vec<Xid>,
    calls: Vec<Held>,
}

/// A Call in a server.
#[derive(Debug)]
struct Held {
    xid: Xid,
    stage: Stage,
    /// What its RDMA Reads read.
    handles: Vec<u32>,
    /// Its Reply.
    sent: Option<WorkId>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Watcher {
    conns: HashMap<ConnId, Conn>,
    by_addr: HashMap<SocketAddr, ConnId>,
    coverage: Coverage,
    /// Where the counts of each table begin.
    starts: [usize; 5],
}

/// Every message begins with its XID.
fn xid_of(message: &[u8]) -> Option<Xid> {
    message.first_chunk().map(|word| Xid(u32::from_be_bytes(*word)))
}

impl Client {
    fn window(&self) -> u32 {
        self.granted.map_or(1, |g| g.clamp(1, self.requested.max(1)))
    }

    fn state(&self, lost: bool) -> Account {
        let (out, window) = (self.calls.len(), self.window() as usize);
        match self.granted {
            _ if lost => Account::Lost,
            None if out == 0 => Account::New,
            None => Account::First,
            Some(_) if out > window => Account::Over,
            Some(_) if out == window => Account::Full,
            Some(_) if self.posted <= out => Account::Bare,
            Some(_) if out == 0 => Account::Idle,
            Some(_) => Account::Open,
        }
    }

    /// A message is handed to the driver: what it is to the Requester.
    fn handed(&mut self, bytes: &[u8], invalidated: Option<u32>) -> RequestEvent {
        self.posted = self.posted.saturating_sub(1);
        let parsed = Header::open(bytes, &Limits::REPLY);
        let waiting = parsed.as_ref().ok().and_then(|(h, _)| self.calls.get(&h.xid));
        if let Some(stag) = invalidated
            && !waiting.is_some_and(|offered| offered.handles().any(|h| h == stag))
        {
            return RequestEvent::Foreign;
        }
        let Ok((header, payload)) = parsed else { return RequestEvent::Garbage };
        let bare = matches!(&header.body, Body::Msg(lists) if lists.is_empty());
        if bare && payload.get(4..8) == Some(&[0; 4]) {
            return RequestEvent::Reverse;
        }
        let Some(offered) = self.calls.remove(&header.xid) else { return RequestEvent::Stray };
        let before = self.window();
        let known = self.granted.replace(header.credit.0).is_some();
        let after = self.window();
        if matches!(header.body, Body::Error(_)) {
            RequestEvent::Error
        } else if header.placed(&offered).is_err() {
            RequestEvent::Broken
        } else if after > before || !known {
            RequestEvent::Opens
        } else if after < before {
            RequestEvent::Closes
        } else {
            RequestEvent::Keeps
        }
    }
}

impl Server {
    fn state(&self, lost: bool) -> Promise {
        let promised = self.promised.max(1);
        match self.held {
            _ if lost => Promise::Lost,
            n if n > promised => Promise::Flooded,
            0 if !self.replied => Promise::New,
            _ if !self.replied => Promise::First,
            0 => Promise::Idle,
            n if n == promised => Promise::Full,
            _ => Promise::Busy,
        }
    }

    /// A message is handed to the driver: what it is to the Responder. `ours`: whether its client is.
    fn handed(&mut self, bytes: &[u8], ours: bool) -> PromiseEvent {
        let parsed = Header::open(bytes, &Limits::default()).and_then(|(header, payload)| {
            let reads = header.read_chunks()?;
            Ok((header, reads, payload))
        });
        match parsed {
            Ok((header, reads, payload)) => {
                let answer = match &header.body {
                    Body::Error(_) => true,
                    Body::Msg(lists) => lists.is_empty() && payload.get(4..8) == Some(&[0, 0, 0, 1]),
                    Body::Nomsg(_) => false,
                };
                if answer {
                    return PromiseEvent::Dropped;
                }
                let chunks = reads.call.iter().chain(&reads.items);
                let handles = chunks.flat_map(|c| c.segments.iter().map(|s| s.handle)).collect();
                self.blurred |= !ours && matches!(header.body, Body::Nomsg(_));
                self.blurred |= self.calls.iter().any(|c| c.xid == header.xid);
                self.blurred |= self.refused.contains(&header.xid);
                self.calls.push(Held { xid: header.xid, stage: Stage::NeedBuffer, handles, sent: None });
                self.held += 1;
                PromiseEvent::Call
            }
            Err(e) if e.answer(Role::Responder) == Answer::Drop => PromiseEvent::Dropped,
            Err(_) => {
                if let Some(xid) = xid_of(bytes) {
                    self.blurred |= self.calls.iter().any(|c| c.xid == xid);
                    self.refused.push(xid);
                }
                self.held += 1;
                PromiseEvent::Refused
            }
        }
    }
}

impl Default for Watcher {
    fn default() -> Self {
        let mut starts = [0; 5];
        let mut next = 0;
        for (start, table) in starts.iter_mut().zip(all_tables::all()) {
            *start = next;
            next += Table::pairs(&table);
        }
        Self { conns: HashMap::new(), by_addr: HashMap::new(), coverage: Coverage::default(), starts }
    }
}

impl Watcher {
    /// What has been reached.
    #[must_use]
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Takes an event in. `ours` says whether client and server of its connection are ours.
    pub fn see(&mut self, event: &Event<'_>, ours: [bool; 2]) {
        if let EventKind::Connect { .. } = event.kind {
            self.by_addr.insert(event.addr, event.conn);
            let conn = Conn {
                ours,
                addr: event.addr,
                links: [Link::Asked; 2],
                lost: [false; 2],
                gone: [false; 2],
                client: Client::default(),
                server: Server::default(),
            };
            self.conns.insert(event.conn, conn);
            return;
        }
        let Some(conn) = self.conns.get_mut(&event.conn) else { return };
        let mut counts = Counts { coverage: &mut self.coverage, starts: &self.starts };
        if conn.ours[event.side as usize] {
            match event.side {
                Side::Active => conn.requester(event, &mut counts),
                Side::Passive => conn.responder(event, &mut counts),
            }
            conn.link(event, &mut counts);
        }
        let lost = matches!(event.kind, EventKind::Lost(_));
        conn.lost[event.side as usize] |= lost;
        if !matches!(event.kind, EventKind::Dropped) {
            return;
        }
        conn.gone[event.side as usize] = true;
        if conn.gone[0] && (conn.gone[1] || conn.links[1] == Link::Asked) {
            self.by_addr.remove(&conn.addr);
            self.conns.remove(&event.conn);
        }
    }

    /// A server's service has been asked to execute a Call of the client at `peer`.
    pub fn served(&mut self, peer: SocketAddr, message: &[u8], served: Served) {
        let Some(xid) = xid_of(message) else { return };
        let Some(conn) = self.by_addr.get(&peer).and_then(|c| self.conns.get_mut(c)) else { return };
        if !conn.ours[1] {
            return;
        }
        let lost = conn.lost[1];
        let server = &mut conn.server;
        let state = server.state(lost);
        let mut counts = Counts { coverage: &mut self.coverage, starts: &self.starts };
        let waiting = |s: Stage| matches!(s, Stage::NeedBuffer | Stage::Reading);
        if let Some(call) = server.calls.iter_mut().find(|c| c.xid == xid && waiting(c.stage)) {
            counts.step(call, Step::Complete, server.blurred);
        }
        if served == Served::Silent
            && let Some(at) = server.calls.iter().position(|c| c.xid == xid && c.stage == Stage::Executing)
        {
            let mut call = server.calls.swap_remove(at);
            counts.step(&mut call, Step::Sent, server.blurred);
            counts.pair(1, state, PromiseEvent::Silent);
            server.held = server.held.saturating_sub(1);
        }
    }
}

/// Where pairs are counted.
struct Counts<'a> {
    coverage: &'a mut Coverage,
    starts: &'a [usize; 5],
}

impl Counts<'_> {
    fn pair<S: Axis, E: Axis>(&mut self, table: usize, state: S, event: E) {
        let start = self.starts.get(table).copied().unwrap_or(0);
        self.coverage.count(start, S::ALL.len(), state.index(), event.index());
    }

    fn step(&mut self, call: &mut Held, step: Step, blurred: bool) {
        if !blurred {
            self.pair(2, call.stage, step);
        }
        call.stage = call.stage.next(step).unwrap_or(call.stage);
    }
}

impl Conn {
    fn requester(&mut self, event: &Event<'_>, counts: &mut Counts<'_>) {
        let before = self.client.state(self.lost[0]);
        let what = match &event.kind {
            EventKind::Born { recvs } => {
                self.client.posted = *recvs;
                return;
            }
            EventKind::RecvPosted => {
                self.client.posted += 1;
                RequestEvent::Receive
            }
            EventKind::SendPosted { bytes, .. } => {
                if let Ok((header, _)) = Header::open(bytes, &Limits::default()) {
                    self.client.requested = header.credit.0;
                    let lists = header.body.lists().cloned().unwrap_or_default();
                    self.client.calls.insert(header.xid, lists);
                }
                RequestEvent::Call
            }
            EventKind::Handed(Completion::Received { buf, len, invalidated }) => {
                self.client.handed(buf.get(..*len).unwrap_or_default(), invalidated.map(|s| s.0))
            }
            EventKind::Lost(_) if self.links[0] != Link::Asked => RequestEvent::Loss,
            _ => return,
        };
        counts.pair(0, before, what);
    }

    fn responder(&mut self, event: &Event<'_>, counts: &mut Counts<'_>) {
        let lost = self.lost[1];
        let server = &mut self.server;
        let before = server.state(lost);
        let what = match &event.kind {
            EventKind::RecvPosted => PromiseEvent::Receive,
            EventKind::Handed(Completion::Received { buf, len, .. }) => {
                server.handed(buf.get(..*len).unwrap_or_default(), self.ours[0])
            }
            EventKind::Posted { op: Op::Read, segments, .. } => {
                let read = |c: &Held| segments.iter().any(|s| c.handles.contains(&s.stag.0));
                let mut calls = server.calls.iter_mut();
                if let Some(call) = calls.find(|c| c.stage == Stage::NeedBuffer && read(c)) {
                    counts.step(call, Step::ReadsPosted, server.blurred);
                }
                return;
            }
            EventKind::SendPosted { id, bytes, .. } => {
                let Ok((header, _)) = Header::decode(bytes, &Limits::REPLY) else { return };
                server.replied = true;
                server.promised = server.promised.max(header.credit.0);
                server.held = server.held.saturating_sub(1);
                let error = matches!(header.body, Body::Error(_));
                // A Call may be refused before it is whole.
                let due = |c: &Held| c.xid == header.xid && c.sent.is_none();
                if let Some(at) = server.calls.iter().position(due)
                    && let Some(call) = server.calls.get_mut(at)
                {
                    match (error, call.stage) {
                        (false, _) => {
                            counts.step(call, Step::Replied, server.blurred);
                            call.sent = Some(*id);
                        }
                        (true, stage) => {
                            if stage == Stage::Reading {
                                counts.step(call, Step::Complete, server.blurred);
                            }
                            if call.stage == Stage::Executing {
                                counts.step(call, Step::Sent, server.blurred);
                            }
                            server.calls.swap_remove(at);
                        }
                    }
                }
                if error { PromiseEvent::Error } else { PromiseEvent::Reply }
            }
            EventKind::Handed(Completion::Done { id, op: Op::Send, .. }) => {
                if let Some(at) = server.calls.iter().position(|c| c.sent == Some(*id)) {
                    let mut call = server.calls.swap_remove(at);
                    counts.step(&mut call, Step::Sent, server.blurred);
                }
                return;
            }
            EventKind::NoRecv => PromiseEvent::NoReceive,
            EventKind::Lost(_) => PromiseEvent::Loss,
            EventKind::Dropped => {
                for mut call in server.calls.drain(..) {
                    counts.step(&mut call, Step::Flushed, server.blurred);
                }
                return;
            }
            _ => return,
        };
        counts.pair(1, before, what);
    }

    fn link(&mut self, event: &Event<'_>, counts: &mut Counts<'_>) {
        let side = event.side as usize;
        let before = self.links[side];
        let first = event.side == Side::Passive;
        let mut after = before;
        let what = match &event.kind {
            EventKind::Connect { .. } | EventKind::Request => return,
            EventKind::Born { .. } => {
                // The passive end is there when it has accepted; the active one, when it has heard of that.
                if first {
                    self.links[side] = Link::New;
                }
                return;
            }
            EventKind::Made => {
                if before == Link::Asked {
                    after = Link::New;
                }
                LinkEvent::Made
            }
            EventKind::NotMade => LinkEvent::NotMade,
            EventKind::RecvPosted => LinkEvent::Receive,
            EventKind::SendPosted { .. } => LinkEvent::Send,
            EventKind::Posted { .. } => LinkEvent::Data,
            EventKind::Arrived { .. } => {
                if before == Link::New {
                    after = Link::Open;
                }
                LinkEvent::Arrival
            }
            EventKind::Exposed { .. } => LinkEvent::Exposed,
            EventKind::NotExposed => LinkEvent::NotExposed,
            EventKind::Invalidating { .. } => return,
            EventKind::Reclaimed { how: Reclaim::Local, .. } => LinkEvent::Closed,
            EventKind::Reclaimed { how: Reclaim::Remote, .. } => LinkEvent::Invalidated,
            EventKind::Reclaimed { how: Reclaim::Flush, .. } => LinkEvent::Flushed,
            EventKind::Placed { .. } => LinkEvent::Placed,
            EventKind::Fetched { .. } => LinkEvent::Fetched,
            EventKind::Handed(Completion::Done { .. }) => LinkEvent::Done,
            EventKind::Handed(Completion::Flushed { .. }) => LinkEvent::Flushed,
            EventKind::Handed(_) => return,
            EventKind::NoRecv => LinkEvent::NoReceive,
            EventKind::Violation(_) => LinkEvent::Violation,
            EventKind::Fault(fault) => match fault.what {
                What::Reset { .. } => LinkEvent::Reset,
                What::Silence => LinkEvent::Silence,
                What::Remove { .. } => LinkEvent::Removal,
                // What comes of them is an event of its own.
                What::Registration | What::Refuse => return,
            },
            EventKind::Lost(lost) => {
                after = Link::Lost;
                match lost {
                    Lost::PeerClosed => LinkEvent::LostClosed,
                    Lost::Io(ErrorKind::TimedOut) => LinkEvent::LostTimeout,
                    Lost::Io(ErrorKind::NotConnected) => LinkEvent::LostDevice,
                    Lost::Terminated(_) => LinkEvent::LostTerminated,
                    Lost::PeerMisbehaved(_) => LinkEvent::LostMisbehaved,
                    Lost::Closed => LinkEvent::LostHere,
                    _ => LinkEvent::LostReset,
                }
            }
            EventKind::Shutdown(Shutdown::Abort) => LinkEvent::Cut,
            EventKind::Shutdown(Shutdown::Graceful) => {
                if before != Link::Lost {
                    after = Link::Closing;
                }
                LinkEvent::Goodbye
            }
            EventKind::Dropped => LinkEvent::Dropped,
        };
        counts.pair(3 + side, before, what);
        self.links[side] = after;
    }
}
