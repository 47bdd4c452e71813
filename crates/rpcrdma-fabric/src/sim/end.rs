//! One end of a connection, and what is under way from it to the other.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    task::Waker,
    time::Duration,
};

use super::PacketKind;
use crate::{Access, Completion, Lost, Op, QpLimits, Region, Stag, Work, WorkId};

/// Exposed memory.
pub(super) struct Memory {
    pub(super) region: Region,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) access: Access,
}

impl Memory {
    /// Where `len` bytes at `offset` are in the region, if they are exposed.
    pub(super) fn range(&self, offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let at = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let end = at.checked_add(len)?;
        (end <= self.len as usize).then_some(at..end)
    }
}

/// A Send or Write that has left.
pub(super) struct Sent {
    pub(super) id: WorkId,
    pub(super) op: Op,
    pub(super) buf: Region,
}

/// An RDMA Read that has left.
pub(super) struct OpenRead {
    pub(super) id: WorkId,
    pub(super) buf: Region,
    /// Bytes that have not come.
    pub(super) left: usize,
}

/// One end. Its fate: open, then lost, then flushed, then dropped.
pub(super) struct End {
    pub(super) addr: SocketAddr,
    pub(super) limits: QpLimits,
    /// RDMA Reads that the other end lets us have open.
    pub(super) ord: u32,
    pub(super) recvs: VecDeque<Region>,
    /// Posted, not transmitted.
    pub(super) queue: VecDeque<Work>,
    /// A transmission is due.
    pub(super) transmitting: bool,
    /// Transmitted, not completed; in order.
    pub(super) sent: VecDeque<Sent>,
    /// A completion is due.
    pub(super) completing: bool,
    pub(super) reads: BTreeMap<u64, OpenRead>,
    pub(super) exposed: BTreeMap<Stag, Memory>,
    pub(super) completions: VecDeque<Completion>,
    /// When the user is told of them; `None` when there were none.
    pub(super) told: Option<Duration>,
    /// Slots of the Send queue in use: from the post until the user has its completion.
    pub(super) slots: usize,
    pub(super) closing: bool,
    pub(super) lost: Option<Lost>,
    /// Everything has gone to `completions`.
    pub(super) flushed: bool,
    pub(super) dropped: bool,
    pub(super) waker: Option<Waker>,
}

impl End {
    pub(super) fn new(addr: SocketAddr, limits: QpLimits, ord: u32, recvs: Vec<Region>) -> Self {
        Self {
            addr,
            limits,
            ord,
            recvs: recvs.into(),
            queue: VecDeque::new(),
            transmitting: false,
            sent: VecDeque::new(),
            completing: false,
            reads: BTreeMap::new(),
            exposed: BTreeMap::new(),
            completions: VecDeque::new(),
            told: None,
            slots: 0,
            closing: false,
            lost: None,
            flushed: false,
            dropped: false,
            waker: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.lost.is_none() && !self.dropped
    }

    /// Nothing is left to send or to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty() && self.reads.is_empty()
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Gives up all memory.
    pub(super) fn clear(&mut self) {
        self.recvs.clear();
        self.queue.clear();
        self.sent.clear();
        self.reads.clear();
        self.exposed.clear();
        self.completions.clear();
        self.slots = 0;
    }
}

/// One end of a connection, to be looked at.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) end: Option<&'a End>,
}

impl<'a> View<'a> {
    /// Receives posted and not consumed.
    #[must_use]
    pub fn posted(&self) -> usize {
        self.end.map_or(0, |e| e.recvs.len())
    }

    /// Regions that the peer can reach.
    #[must_use]
    pub fn exposed(&self) -> usize {
        self.end.map_or(0, |e| e.exposed.len())
    }

    /// Whether the connection has not been lost at this end.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end.is_some_and(End::is_open)
    }

    /// Bytes of an exposed region, if these are exposed.
    #[must_use]
    pub fn bytes(&self, stag: Stag, offset: u64, len: usize) -> Option<&'a [u8]> {
        let memory = self.end?.exposed.get(&stag)?;
        memory.region.get(memory.range(offset, len)?)
    }
}

/// What travels.
pub(super) enum Packet {
    Send { bytes: Vec<u8>, invalidate: Option<Stag> },
    Write { stag: Stag, offset: u64, bytes: Vec<u8> },
    ReadRequest { read: u64, at: usize, stag: Stag, offset: u64, len: usize },
    ReadResponse { read: u64, at: usize, bytes: Vec<u8> },
    End(Lost),
}

impl Packet {
    pub(super) fn kind(&self) -> PacketKind {
        match self {
            Self::Send { .. } => PacketKind::Send,
            Self::Write { .. } => PacketKind::Write,
            Self::ReadRequest { .. } => PacketKind::ReadRequest,
            Self::ReadResponse { .. } => PacketKind::ReadResponse,
            Self::End(_) => PacketKind::End,
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Send { bytes, .. } | Self::Write { bytes, .. } | Self::ReadResponse { bytes, .. } => {
                bytes.len()
            }
            Self::ReadRequest { .. } | Self::End(_) => 0,
        }
    }
}

/// What is under way in one direction, in order.
#[derive(Default)]
pub(super) struct Link {
    pub(super) packets: VecDeque<(Duration, Packet)>,
    /// When the last packet will arrive.
    pub(super) last: Duration,
    /// An arrival is due.
    pub(super) arriving: bool,
    /// How often the packet ahead found no Receive.
    pub(super) retries: u8,
}
