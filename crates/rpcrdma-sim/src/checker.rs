//! Watches a simulated fabric and knows the rules.
//!
//! It reads the bytes of every message itself and keeps its own accounts, so that it finds what the accounts of client
//! and server have wrong. What it checks, after every event:
//!
//! * Calls outstanding are within the smaller of what was asked for and granted (RFC 8166 section 3.3.1), and at most one
//!   before the first Reply of a connection (section 3.3.3).
//! * A Receive is posted at the client for every Call whose Reply has not arrived (section 3.3.1).
//! * Receives posted at the server and Calls in its hands cover the largest grant that it has sent, and no grant is 0
//!   (section 3.3.1).
//! * An XID is used once on a connection, and stands for the same RPC message on every other (sections 4.2.1 and 4.5).
//! * Every Call that the server answers is one that it holds: it is answered once (section 4.2.1).
//! * No message finds itself without a Receive (section 3.3.1), and no memory is touched that is not exposed (section 4.4).
//! * The memory that a Call names is exposed when the Call leaves, for exactly these bytes, and only to be read, if they are
//!   its arguments, or only to be written (section 4.4).
//! * No connection is lost unless something broke ("The bug that cannot be written" in ARCHITECTURE.md).
//!
//! What takes more than the fabric to see is checked by [`crate::rig`] and [`crate::workload`], at the end of each
//! operation or of the run: every Call ends, once ("Every Call ends once" in ARCHITECTURE.md) and with the right bytes;
//! what must not be repeated is executed once; nothing is exposed when no operation is under way (section 4.4.1); nothing
//! waits for ever once the network is whole; and what connections held is given back.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use rpcrdma::{
    fabric::{
        Access, Completion, Lost, Shutdown, Stag,
        sim::{ConnId, Event, EventKind, Side, View, What},
    },
    proto::rpcrdma::{Body, ChunkLists, Header, Limits, ReadChunk, Segment, Xid},
};

/// What is known of one connection.
#[derive(Debug, Default)]
pub struct Account {
    /// What the last Call asked for.
    pub requested: u32,
    /// The latest grant that the client was given.
    pub granted: Option<u32>,
    /// Calls sent whose Reply the client was not given.
    pub outstanding: BTreeSet<Xid>,
    /// Those of them whose Reply has not even arrived.
    pub awaited: BTreeSet<Xid>,
    /// Every XID sent.
    sent: BTreeSet<Xid>,
    /// The largest grant that the server has sent.
    pub promised: u32,
    /// Calls that arrived at the server and are not answered.
    pub held: BTreeSet<Xid>,
    /// The client's node.
    node: Option<IpAddr>,
    /// Whether client and server are ours.
    pub ours: [bool; 2],
    /// Something broke it.
    faulted: bool,
    /// It is closed in good order.
    closed: bool,
    /// Receives posted at the client and at the server.
    pub posted: [usize; 2],
    /// Ends that have been dropped.
    gone: [bool; 2],
    /// Regions exposed by the client.
    pub exposed: usize,
    /// What the peer can reach of them: first byte, length, and for what.
    reach: BTreeMap<Stag, (u64, u32, Access)>,
}

impl Account {
    /// Calls that may be outstanding.
    #[must_use]
    pub fn window(&self) -> usize {
        self.granted.map_or(1, |g| g.clamp(1, self.requested.max(1))) as usize
    }

    /// A segment of a Call that is not what is exposed under its tag.
    fn not_as_named<'a>(&self, lists: &'a ChunkLists) -> Option<&'a Segment> {
        let arguments = lists.read.iter().map(|read| (&read.segment, Access::RemoteRead));
        let results = lists.write.iter().chain(&lists.reply).flatten().map(|s| (s, Access::RemoteWrite));
        let exact =
            |s: &Segment, access| self.reach.get(&Stag(s.handle)) == Some(&(s.offset, s.length, access));
        arguments.chain(results).find(|(s, access)| !exact(s, *access)).map(|(s, _)| s)
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Checker {
    /// Nodes that keep no rules.
    odd: BTreeSet<IpAddr>,
    conns: BTreeMap<ConnId, Account>,
    /// What every XID of a client stands for.
    messages: BTreeMap<(IpAddr, Xid), u64>,
    /// A device has been away, or patience is short: connections are lost for a reason.
    removed: bool,
    /// A peer has gone without a word: until its server notices, it holds memory that others may wait for too long.
    silenced: bool,
    /// Nodes whose connections something broke.
    struck: BTreeSet<IpAddr>,
    broken: Vec<String>,
    /// Calls sent, and how many of them again.
    pub calls: (u64, u64),
}

impl Checker {
    /// From now on nothing is expected of this node, and of its peers only what does not depend on it.
    pub fn odd(&mut self, node: IpAddr) {
        self.odd.insert(node);
    }

    /// The first rule that was broken, if any was.
    #[must_use]
    pub fn verdict(&self) -> Option<&str> {
        self.broken.first().map(String::as_str)
    }

    /// From now on connections may be lost because somebody ran out of patience.
    pub fn impatient(&mut self) {
        self.removed = true;
    }

    /// Whether something broke a connection of this client's node.
    #[must_use]
    pub fn struck(&self, node: IpAddr) -> bool {
        self.removed || self.struck.contains(&node)
    }

    /// Notes a broken rule.
    pub fn fail(&mut self, what: String) {
        self.broken.push(what);
    }

    /// What is known of a connection.
    #[must_use]
    pub fn account(&self, conn: ConnId) -> Option<&Account> {
        self.conns.get(&conn)
    }

    /// Regions that clients of ours have exposed, on all connections.
    #[must_use]
    pub fn exposed(&self) -> usize {
        self.conns.values().filter(|a| a.ours[0]).map(|a| a.exposed).sum()
    }

    /// Takes an event in.
    pub fn see(&mut self, event: &Event<'_>) {
        let conn = event.conn;
        let account = self.conns.entry(conn).or_default();
        account.posted[event.side as usize] = event.view.posted();
        let [client, server] = account.ours;
        if event.side == Side::Active {
            account.exposed = event.view.exposed();
        }
        match &event.kind {
            EventKind::Connect { to } => {
                account.promised = 1;
                let nodes = [event.addr.ip(), to.ip()];
                account.ours = nodes.map(|node| !self.odd.contains(&node));
                account.node = Some(nodes[0]);
            }
            EventKind::Fault(fault) => match fault.what {
                What::Registration => {}
                What::Remove { .. } => self.removed = true,
                what => {
                    self.silenced |= matches!(what, What::Silence);
                    account.faulted = true;
                    self.struck.extend(account.node);
                }
            },
            EventKind::Shutdown(Shutdown::Graceful) => account.closed = true,
            EventKind::Lost(lost) => self.lost(conn, lost),
            EventKind::NoRecv if client && server => self.fail(format!(
                "connection {conn}: a message reached the {:?} side without a Receive (RFC 8166 section 3.3.1)",
                event.side
            )),
            EventKind::Violation(what) if client && server => {
                self.fail(format!("connection {conn}: {what}, at the {:?} side", event.side));
            }
            EventKind::SendPosted { bytes, .. } => match event.side {
                Side::Active if client => self.call_posted(conn, bytes, event),
                Side::Passive if server => self.reply_posted(conn, bytes),
                _ => {}
            },
            EventKind::Exposed { stag, offset, len, access } if event.side == Side::Active => {
                account.reach.insert(*stag, (*offset, *len, *access));
            }
            EventKind::Reclaimed { stag, .. } if event.side == Side::Active => {
                account.reach.remove(stag);
            }
            EventKind::Arrived { bytes } => self.arrived(conn, event.side, bytes),
            EventKind::Handed(Completion::Received { buf, len, .. }) if event.side == Side::Active => {
                self.reply_handed(conn, buf.get(..*len).unwrap_or_default());
            }
            EventKind::Dropped => {
                account.gone[event.side as usize] = true;
            }
            _ => {}
        }
        if event.view.is_open() {
            self.covered(conn, event.side, event.view);
        }
        if self.conns.get(&conn).is_some_and(|a| a.gone == [true; 2]) {
            self.conns.remove(&conn);
        }
    }

    fn lost(&mut self, conn: ConnId, lost: &Lost) {
        let Some(account) = self.conns.get(&conn) else { return };
        if account.ours == [true; 2] && !account.faulted && !account.closed && !self.removed && !self.silenced
        {
            self.fail(format!("connection {conn} was lost although nothing broke: {lost}"));
        }
    }

    fn covered(&mut self, conn: ConnId, side: Side, view: View<'_>) {
        let Some(account) = self.conns.get(&conn) else { return };
        let posted = view.posted();
        if account.ours != [true; 2] {
            return;
        }
        match side {
            Side::Active if posted < account.awaited.len() => {
                let awaited = account.awaited.len();
                self.fail(format!(
                    "connection {conn}: {awaited} Replies are awaited and {posted} Receives are posted \
                     (RFC 8166 section 3.3.1)"
                ));
            }
            Side::Passive => {
                let Account { promised, held, .. } = account;
                if (posted + held.len()) < *promised as usize {
                    let why = format!(
                        "connection {conn}: {promised} credits were granted, {posted} Receives are posted and {} \
                         Calls in hand (RFC 8166 section 3.3.1)",
                        held.len()
                    );
                    self.fail(why);
                }
            }
            Side::Active => {}
        }
    }

    fn call_posted(&mut self, conn: ConnId, bytes: &[u8], event: &Event<'_>) {
        let (header, payload) = match Header::open(bytes, &Limits::default()) {
            Ok(parsed) => parsed,
            Err(e) => return self.fail(format!("connection {conn}: the client sent {e}")),
        };
        let xid = header.xid;
        let message = match unreduced(&header, payload, event.view) {
            Ok(message) => message,
            Err(why) => return self.fail(format!("connection {conn}: Call {xid}: {why}")),
        };
        let Some(account) = self.conns.get_mut(&conn) else { return };
        let wrong = header.body.lists().and_then(|lists| account.not_as_named(lists));
        let again = !account.sent.insert(xid);
        account.requested = header.credit.0;
        account.outstanding.insert(xid);
        account.awaited.insert(xid);
        let outstanding = account.outstanding.len();
        let window = account.window();
        let granted = account.granted;
        let requested = account.requested;
        if let Some(segment) = wrong {
            self.fail(format!(
                "connection {conn}: Call {xid} names {segment:?}, and the peer can reach other bytes, or more, or not \
                 for that (RFC 8166 section 4.4)"
            ));
        }
        if again {
            self.fail(format!(
                "connection {conn}: XID {xid} was sent twice on a connection that lives (RFC 8166 section 4.5)"
            ));
        }
        if outstanding > window {
            self.fail(match granted {
                None => format!(
                    "connection {conn}: {outstanding} Calls before the first Reply (RFC 8166 section 3.3.3)"
                ),
                Some(granted) => format!(
                    "connection {conn}: {outstanding} Calls where {granted} were granted and {requested} asked for \
                     (RFC 8166 section 3.3.1)"
                ),
            });
        }
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let hash = hasher.finish();
        self.calls.0 += 1;
        match self.messages.insert((event.addr.ip(), xid), hash) {
            Some(before) if before != hash => {
                self.fail(format!("XID {xid} was sent again with another message (RFC 8166 section 4.5)"));
            }
            Some(_) => self.calls.1 += 1,
            None => {}
        }
    }

    fn reply_posted(&mut self, conn: ConnId, bytes: &[u8]) {
        let Ok((header, _)) = Header::decode(bytes, &Limits::REPLY) else {
            return self.fail(format!("connection {conn}: the server sent bytes that are no header"));
        };
        let Some(account) = self.conns.get_mut(&conn) else { return };
        account.promised = account.promised.max(header.credit.0);
        let held = account.held.remove(&header.xid);
        let client = account.ours[0];
        if header.credit.0 == 0 {
            self.fail(format!("connection {conn}: a grant of 0 (RFC 8166 section 3.3.1)"));
        }
        if !held && client {
            self.fail(format!("connection {conn}: a Reply to XID {}, which is not in hand", header.xid));
        }
    }

    fn arrived(&mut self, conn: ConnId, side: Side, bytes: &[u8]) {
        let Ok((header, _)) = Header::decode(bytes, &Limits::REPLY) else { return };
        let Some(account) = self.conns.get_mut(&conn) else { return };
        match side {
            Side::Active => account.awaited.remove(&header.xid),
            Side::Passive => account.held.insert(header.xid),
        };
    }

    fn reply_handed(&mut self, conn: ConnId, bytes: &[u8]) {
        let Ok((header, payload)) = Header::open(bytes, &Limits::REPLY) else { return };
        // A Call in the reverse direction may have any XID.
        if payload.get(4..8) == Some(&[0; 4]) && header.body.lists().is_some_and(ChunkLists::is_empty) {
            return;
        }
        let Some(account) = self.conns.get_mut(&conn) else { return };
        if account.outstanding.remove(&header.xid) {
            account.granted = Some(header.credit.0);
        }
    }

    /// After everything has ended: what must not be left.
    pub fn end(&mut self) {
        let left = self.exposed();
        if left > 0 {
            self.fail(format!("{left} regions are exposed after all Calls have ended"));
        }
    }
}

/// The RPC message of a Call with everything that was moved out of it put back.
fn unreduced(header: &Header, payload: &[u8], view: View<'_>) -> Result<Vec<u8>, String> {
    let Some(lists) = header.body.lists() else { return Err("an RDMA_ERROR as a Call".to_owned()) };
    let fetch = |s: &Segment| {
        view.bytes(Stag(s.handle), s.offset, s.length as usize)
            .ok_or_else(|| format!("memory {:#x} is named but not exposed", s.handle))
    };
    let whole = |chunk: &ReadChunk| -> Result<Vec<u8>, String> {
        let parts: Result<Vec<&[u8]>, String> = chunk.segments.iter().map(fetch).collect();
        Ok(parts?.concat())
    };
    for chunk in lists.write.iter().chain(&lists.reply) {
        for segment in chunk {
            fetch(segment)?;
        }
    }
    let chunks = header.read_chunks().map_err(|e| e.to_string())?;
    let reduced = match (&header.body, &chunks.call) {
        (Body::Nomsg(_), Some(call)) => whole(call)?,
        _ => payload.to_vec(),
    };
    let mut message = reduced;
    for item in &chunks.items {
        let mut data = whole(item)?;
        data.resize(data.len().next_multiple_of(4), 0);
        let at = item.position as usize;
        if at > message.len() {
            return Err(format!("a Read chunk at {at} of a message of {} bytes", message.len()));
        }
        message.splice(at..at, data);
    }
    Ok(message)
}
