//! The duplicate request cache: what a server answered to Calls that must not be executed twice.
//!
//! # Operation
//! A client that lost its connection sends its unanswered Calls again on the next one, with the same XIDs. For a
//! REMOVE or a RENAME the second execution would fail, or worse. So before it executes such a Call the server asks
//! [`Cache::begin`]:
//!
//! * [`Begin::New`]: execute it, then hand the Reply to [`Cache::finish`] with the ticket;
//! * [`Begin::InProgress`]: the first copy is still being executed; drop this one, the client will ask again;
//! * [`Begin::Done`]: send these bytes, the Reply of the first copy.
//!
//! A Call is told apart from others by its [`Key`]: XID, program, version, procedure, credential, the length of its
//! arguments and a hash of their first bytes, and the client's address without port, because a client that
//! reconnects has a new port. The hash is keyed per cache, so nobody can prepare arguments that collide.
//!
//! Cached are the bytes of whole RPC Replies, so only procedures whose results travel inline belong here: the chunks
//! of a second Call are not those of the first.
//!
//! # When it breaks
//! A [`Ticket`] that is dropped (the execution failed before it began, its task died) takes its entry with it, and
//! the next copy of the Call is new. A Reply that was evicted too early makes a retried REMOVE fail; size the cache
//! for the Calls that all clients together may have outstanding, times a few.
//!
//! # Limits
//! Entries and bytes are bounded by [`Limits`]; the least recently used Replies go first, and none outlives its
//! lifetime. Entries in progress are never evicted: they are as many as the server executes Calls. In a steady state
//! nothing is allocated. Memory is the limit on bytes, about 150 bytes per entry, and a pool of at most 64 KiB.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::hash::Hasher;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;

use siphasher::sip::SipHasher13;

use crate::rpc::{CallHeader, Xid};

#[cfg(test)]
mod tests;

/// Bytes of the arguments that a [`Key`] looks at.
pub const HASHED_ARGS: usize = 256;

/// Replies are kept in multiples of this many bytes.
const UNIT: usize = 512;
/// Buffers of one unit that are kept for reuse.
const SPARES: usize = 128;
/// No slot.
const NIL: u32 = u32::MAX;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Replies. At least 1.
    pub max_entries: usize,
    /// Bytes in all Replies together, each rounded up to a multiple of 512.
    pub max_bytes: usize,
    /// How long a Reply is remembered after its last use.
    pub lifetime: Duration,
}

impl Default for Limits {
    /// 16384 Replies, 16 MiB, 120 seconds.
    fn default() -> Self {
        Self { max_entries: 16384, max_bytes: 16 << 20, lifetime: Duration::from_secs(120) }
    }
}

/// Where a Call came from. An IPv4 address is given in its IPv6-mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The client's address, without port.
    pub address: [u8; 16],
    /// A number for the kind of transport, as its user likes.
    pub transport: u8,
}

/// What identifies a Call. Made by [`Cache::key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    xid: Xid,
    prog: u32,
    vers: u32,
    proc: u32,
    client: Client,
    args_len: u64,
    args: u64,
    cred: u64,
    hash: u64,
}

/// The right and duty to execute a Call. Finished with [`Cache::finish`]; dropped, it forgets the Call.
#[derive(Debug)]
#[must_use = "a ticket that is dropped forgets the Call"]
pub struct Ticket {
    slot: u32,
    state: Option<Arc<State>>,
    lost: Arc<AtomicUsize>,
}

/// Shared by a slot and the ticket that is out for it.
#[derive(Debug, Default)]
struct State {
    abandoned: AtomicBool,
}

impl Ticket {
    /// Forgets the Call, as dropping the ticket does.
    pub fn abandon(self) {}
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            state.abandoned.store(true, Ordering::Release);
            self.lost.fetch_add(1, Ordering::Release);
        }
    }
}

/// What to do with a Call.
#[derive(Debug)]
pub enum Begin<'a> {
    /// Execute it.
    New(Ticket),
    /// Drop it: it is being executed.
    InProgress,
    /// Send this Reply, without executing it.
    Done(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Free,
    InProgress,
    Done,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    stage: Stage,
    reply: Vec<u8>,
    /// Last use of a finished Reply.
    used: Duration,
    /// Neighbours in the order of last use, finished Replies only.
    older: u32,
    newer: u32,
    /// Next slot with the same bucket, or next free slot.
    next: u32,
    state: Arc<State>,
}

/// The cache. One per server: all connections share it, as the second copy of a Call comes on another one.
#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    seed: [u64; 2],
    slots: Vec<Slot>,
    /// Heads of the chains of slots, by hash of the key.
    buckets: Vec<u32>,
    free: u32,
    oldest: u32,
    newest: u32,
    entries: usize,
    bytes: usize,
    spares: Vec<Vec<u8>>,
    /// Tickets dropped whose entries are still here.
    lost: Arc<AtomicUsize>,
}

/// Bytes that a Reply of `len` bytes is counted as.
const fn cost(len: usize) -> usize {
    let units = len.div_ceil(UNIT);
    if units == 0 { UNIT } else { units.saturating_mul(UNIT) }
}

impl Cache {
    /// An empty cache. `seed` is random, and not known to clients.
    #[must_use]
    pub fn new(limits: Limits, seed: [u64; 2]) -> Self {
        let limits = Limits { max_entries: limits.max_entries.clamp(1, 1 << 24), ..limits };
        Self {
            limits,
            seed,
            slots: Vec::new(),
            buckets: vec![NIL; limits.max_entries.next_power_of_two()],
            free: NIL,
            oldest: NIL,
            newest: NIL,
            entries: 0,
            bytes: 0,
            spares: Vec::new(),
            lost: Arc::default(),
        }
    }

    /// Entries, finished or in progress.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes that the Replies are counted as.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The key of a Call: its header, what is there inline of its arguments, and their whole length in bytes
    /// including what travels as chunks.
    #[must_use]
    pub fn key(&self, call: &CallHeader<'_>, args: &[u8], args_len: u64, client: Client) -> Key {
        let [k0, k1] = self.seed;
        let digest = |parts: &[&[u8]]| {
            let mut h = SipHasher13::new_with_keys(k0, k1);
            parts.iter().for_each(|p| h.write(p));
            h.finish()
        };
        let args = digest(&[&args[..args.len().min(HASHED_ARGS)]]);
        let cred = digest(&[&call.cred.flavor.0.to_be_bytes(), call.cred.body]);
        let hash = digest(&[&call.xid.0.to_be_bytes(), &client.address, &args.to_be_bytes()]);
        let CallHeader { xid, prog, vers, proc, .. } = *call;
        Key { xid, prog, vers, proc, client, args_len, args, cred, hash }
    }

    /// Looks a Call up, and makes an entry for it if it is new. `now` is the time since any fixed moment.
    pub fn begin(&mut self, key: &Key, now: Duration) -> Begin<'_> {
        self.sweep();
        self.expire(now);
        if let Some(at) = self.find(key) {
            return match self.slot(at).stage {
                Stage::Done => {
                    self.unlink(at);
                    self.link_newest(at, now);
                    Begin::Done(&self.slot(at).reply)
                }
                _ => Begin::InProgress,
            };
        }
        while self.entries >= self.limits.max_entries && self.oldest != NIL {
            self.remove(self.oldest);
        }
        let at = self.insert(*key);
        Begin::New(Ticket {
            slot: at,
            state: Some(Arc::clone(&self.slot(at).state)),
            lost: Arc::clone(&self.lost),
        })
    }

    /// Remembers the Reply of a Call. One that is longer than the whole cache is forgotten.
    pub fn finish(&mut self, mut ticket: Ticket, reply: &[u8], now: Duration) {
        let (at, Some(state)) = (ticket.slot, ticket.state.take()) else { return };
        // A ticket of another cache has nothing to say here.
        if !self.slots.get(at as usize).is_some_and(|s| Arc::ptr_eq(&s.state, &state)) {
            return;
        }
        if cost(reply.len()) > self.limits.max_bytes {
            return self.remove(at);
        }
        let mut buffer = match self.spares.pop() {
            Some(spare) if reply.len() <= UNIT => spare,
            spare => {
                self.spares.extend(spare);
                Vec::with_capacity(cost(reply.len()))
            }
        };
        buffer.extend_from_slice(reply);
        let slot = &mut self.slots[at as usize];
        slot.reply = buffer;
        slot.stage = Stage::Done;
        self.bytes += cost(reply.len());
        self.link_newest(at, now);
        while self.bytes > self.limits.max_bytes && self.oldest != NIL {
            self.remove(self.oldest);
        }
    }

    /// Removes what was not used for its lifetime. [`Cache::begin`] does so too; a server that is idle may call this
    /// now and then to give memory back.
    pub fn expire(&mut self, now: Duration) {
        while self.oldest != NIL && now.saturating_sub(self.slot(self.oldest).used) >= self.limits.lifetime {
            self.remove(self.oldest);
        }
    }

    /// Removes the entries whose tickets were dropped.
    fn sweep(&mut self) {
        if self.lost.swap(0, Ordering::Acquire) == 0 {
            return;
        }
        for at in 0..self.slots.len() as u32 {
            let slot = self.slot(at);
            if slot.stage == Stage::InProgress && slot.state.abandoned.load(Ordering::Acquire) {
                self.remove(at);
            }
        }
    }

    fn slot(&self, at: u32) -> &Slot {
        &self.slots[at as usize]
    }

    fn bucket(&self, key: &Key) -> usize {
        key.hash as usize & (self.buckets.len() - 1)
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let mut at = self.buckets[self.bucket(key)];
        while at != NIL {
            let slot = self.slot(at);
            if slot.key == *key {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    fn insert(&mut self, key: Key) -> u32 {
        let bucket = self.bucket(&key);
        let next = self.buckets[bucket];
        let at = self.free;
        let at = if let Some(slot) = self.slots.get_mut(at as usize) {
            self.free = slot.next;
            slot.state.abandoned.store(false, Ordering::Relaxed);
            (slot.key, slot.stage, slot.next) = (key, Stage::InProgress, next);
            at
        } else {
            let at = self.slots.len() as u32;
            self.slots.push(Slot {
                key,
                stage: Stage::InProgress,
                reply: Vec::new(),
                used: Duration::ZERO,
                older: NIL,
                newer: NIL,
                next,
                state: Arc::default(),
            });
            at
        };
        self.buckets[bucket] = at;
        self.entries += 1;
        at
    }

    fn remove(&mut self, at: u32) {
        if self.slot(at).stage == Stage::Done {
            self.unlink(at);
            self.bytes -= cost(self.slot(at).reply.len());
        }
        let bucket = self.bucket(&self.slot(at).key);
        let next = self.slot(at).next;
        let mut link = self.buckets[bucket];
        if link == at {
            self.buckets[bucket] = next;
        } else {
            while self.slot(link).next != at {
                link = self.slot(link).next;
            }
            self.slots[link as usize].next = next;
        }
        let free = self.free;
        let slot = &mut self.slots[at as usize];
        let mut reply = core::mem::take(&mut slot.reply);
        slot.stage = Stage::Free;
        slot.next = free;
        self.free = at;
        self.entries -= 1;
        if reply.capacity() == UNIT && self.spares.len() < SPARES {
            reply.clear();
            self.spares.push(reply);
        }
    }

    fn link_newest(&mut self, at: u32, now: Duration) {
        let newest = self.newest;
        let slot = &mut self.slots[at as usize];
        (slot.used, slot.older, slot.newer) = (now, newest, NIL);
        match self.slots.get_mut(newest as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let (older, newer) = (self.slot(at).older, self.slot(at).newer);
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
    }
}
