//! The memory that this end of a connection has given names: exposed regions, and the sinks of its RDMA Reads.
//!
//! # Operation
//! A name is 32 random bits from the operating system, never used twice in a row, so a peer cannot guess one and a
//! stale one does not fit. Tagged offsets start at a random place too. A region that is being sent out as a Read
//! Response is *pinned*: it can be revoked, but it leaves the table only when the last pin is gone.
//!
//! # Limits
//! The number of exposed regions is the queue pair's limit; sinks are bounded by the posted work.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use rpcrdma_fabric::{Access, Exposed, Region, Stag};

/// STags up to this value are never given out: 0 reads as "none", and 1 is what peers put into frames whose STag
/// nobody checks.
const RESERVED: u32 = 1;

/// Position of an entry in the table.
pub(super) type Slot = usize;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    Exposed(Access),
    /// Closed to the peer, and still pinned.
    Revoked,
    /// A Read of ours. Its memory is kept with the Read.
    Sink,
}

struct Entry {
    stag: u32,
    used: Use,
    region: Option<Region>,
    base: u64,
    len: u32,
    /// Read Responses that are yet to be sent from it.
    pins: u32,
}

/// Why the peer may not touch a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such STag.
    Stag,
    /// Outside the exposed bytes.
    Bounds,
    /// Not this way.
    Rights,
    /// The tagged offset wraps.
    Wrap,
}

/// See the module's head.
pub(super) struct StagTable {
    entries: Vec<Entry>,
    free: Vec<Slot>,
    index: HashMap<u32, Slot, BuildHasherDefault<Spread>>,
    exposed: usize,
    random: Random,
}

impl StagTable {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            index: HashMap::default(),
            exposed: 0,
            random: Random::new(),
        }
    }

    /// Regions exposed and not yet given back.
    pub(super) fn exposed(&self) -> usize {
        self.exposed
    }

    fn insert(&mut self, (stag, base): (u32, u64), used: Use, region: Option<Region>, len: u32) -> Slot {
        let entry = Entry { stag, used, region, base, len, pins: 0 };
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.entries.get_mut(slot) {
                    *place = entry;
                }
                slot
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        self.index.insert(stag, slot);
        slot
    }

    /// An STag and a base offset; `None` if the operating system has no randomness to give.
    fn fresh_name(&mut self) -> Option<(u32, u64)> {
        let stag = loop {
            let stag = self.random.next()?;
            if stag > RESERVED && !self.index.contains_key(&stag) {
                break stag;
            }
        };
        // A page-aligned place in the lower half of a 48-bit address space, like the address it might be elsewhere;
        // 32 bits of length cannot wrap from there.
        let base = u64::from(self.random.next()?) << 15;
        Some((stag, base & !0xfff))
    }

    /// Exposes a region.
    ///
    /// # Errors
    /// Gives it back if no name could be made.
    pub(super) fn expose(&mut self, region: Region, len: u32, access: Access) -> Result<Exposed, Region> {
        let Some(name) = self.fresh_name() else { return Err(region) };
        self.insert(name, Use::Exposed(access), Some(region), len);
        self.exposed += 1;
        Ok(Exposed { stag: Stag(name.0), offset: name.1, len })
    }

    /// Makes a name for the sink of a Read.
    pub(super) fn add_sink(&mut self) -> Option<Slot> {
        let name = self.fresh_name()?;
        Some(self.insert(name, Use::Sink, None, 0))
    }

    /// STag and base offset of an entry.
    pub(super) fn name(&self, slot: Slot) -> (u32, u64) {
        self.entries.get(slot).map_or((0, 0), |e| (e.stag, e.base))
    }

    pub(super) fn remove_sink(&mut self, slot: Slot) {
        if self.entries.get(slot).is_some_and(|e| e.used == Use::Sink) {
            self.forget_name(slot);
            self.release(slot);
        }
    }

    /// Checks an access of the peer's; gives the entry and the position in its region.
    pub(super) fn check(
        &self,
        stag: u32,
        to: u64,
        len: u32,
        access: Access,
    ) -> Result<(Slot, usize), Refusal> {
        let slot = *self.index.get(&stag).ok_or(Refusal::Stag)?;
        let entry = self.entries.get(slot).ok_or(Refusal::Stag)?;
        if entry.used != Use::Exposed(access) {
            return Err(Refusal::Rights);
        }
        let end = to.checked_add(u64::from(len)).ok_or(Refusal::Wrap)?;
        let at = to.checked_sub(entry.base).ok_or(Refusal::Bounds)?;
        if end - entry.base > u64::from(entry.len) {
            return Err(Refusal::Bounds);
        }
        Ok((slot, usize::try_from(at).map_err(|_| Refusal::Bounds)?))
    }

    pub(super) fn region(&self, slot: Slot) -> Option<&Region> {
        self.entries.get(slot)?.region.as_ref()
    }

    pub(super) fn region_mut(&mut self, slot: Slot) -> Option<&mut Region> {
        self.entries.get_mut(slot)?.region.as_mut()
    }

    pub(super) fn pin(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.pins += 1;
        }
    }

    /// Takes a pin away; gives the region back if it was the last of a revoked one.
    pub(super) fn unpin(&mut self, slot: Slot) -> Option<(Stag, Region)> {
        let entry = self.entries.get_mut(slot)?;
        entry.pins = entry.pins.saturating_sub(1);
        if entry.pins == 0 && entry.used == Use::Revoked { self.release(slot) } else { None }
    }

    /// The entry behind an exposed STag.
    pub(super) fn find_exposed(&self, stag: u32) -> Option<Slot> {
        let slot = *self.index.get(&stag)?;
        matches!(self.entries.get(slot)?.used, Use::Exposed(_)).then_some(slot)
    }

    /// Closes an exposed region to the peer; gives it back unless it is pinned.
    pub(super) fn revoke(&mut self, slot: Slot) -> Option<(Stag, Region)> {
        self.forget_name(slot);
        let entry = self.entries.get_mut(slot)?;
        entry.used = Use::Revoked;
        if entry.pins == 0 { self.release(slot) } else { None }
    }

    fn forget_name(&mut self, slot: Slot) {
        if let Some(entry) = self.entries.get(slot) {
            self.index.remove(&entry.stag);
        }
    }

    fn release(&mut self, slot: Slot) -> Option<(Stag, Region)> {
        let entry = self.entries.get_mut(slot)?;
        entry.used = Use::Free;
        let stag = Stag(entry.stag);
        let region = entry.region.take();
        self.free.push(slot);
        let region = region?;
        self.exposed -= 1;
        Some((stag, region))
    }

    /// Takes every exposed region out, pinned or not.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Stag, Region)) {
        for entry in &mut self.entries {
            if let Some(region) = entry.region.take() {
                each(Stag(entry.stag), region);
            }
        }
        self.entries.clear();
        self.free.clear();
        self.index.clear();
        self.exposed = 0;
    }
}

/// Random words, fetched from the operating system a batch at a time.
struct Random {
    words: [u8; 256],
    used: usize,
}

impl Random {
    fn new() -> Self {
        Self { words: [0; 256], used: 256 }
    }

    fn next(&mut self) -> Option<u32> {
        if self.used >= self.words.len() {
            getrandom::fill(&mut self.words).ok()?;
            self.used = 0;
        }
        let word = self.words.get(self.used..)?.first_chunk()?;
        self.used += 4;
        Some(u32::from_ne_bytes(*word))
    }
}

/// Hash of an STag. STags are random and ours, so no more is needed than to spread them over 64 bits.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(len: usize, exposed: u32, access: Access) -> (StagTable, Exposed) {
        let mut table = StagTable::new();
        let exposed = table.expose(Region::alloc(len), exposed, access).unwrap();
        (table, exposed)
    }

    #[test]
    fn access_is_exact_to_the_byte() {
        let (table, e) = table(100, 64, Access::RemoteWrite);
        let check = |to, len| table.check(e.stag.0, to, len, Access::RemoteWrite).map(|(_, at)| at);
        assert_eq!(check(e.offset, 64), Ok(0));
        assert_eq!(check(e.offset + 63, 1), Ok(63));
        assert_eq!(check(e.offset + 64, 0), Ok(64));
        assert_eq!(check(e.offset, 65), Err(Refusal::Bounds));
        assert_eq!(check(e.offset + 64, 1), Err(Refusal::Bounds));
        assert_eq!(
            check(e.offset.wrapping_sub(1), 1),
            Err(if e.offset == 0 { Refusal::Wrap } else { Refusal::Bounds })
        );
        assert_eq!(check(u64::MAX, 1), Err(Refusal::Wrap));
        assert_eq!(check(u64::MAX, 0), Err(Refusal::Bounds));
        assert_eq!(
            table.check(e.stag.0, e.offset, 1, Access::RemoteRead),
            Err(Refusal::Rights),
            "a region for writing is not for reading"
        );
        assert_eq!(table.check(e.stag.0 ^ 1, e.offset, 1, Access::RemoteWrite), Err(Refusal::Stag));
    }

    #[test]
    fn a_pinned_region_waits_for_its_last_pin() {
        let (mut table, e) = table(8, 8, Access::RemoteRead);
        let slot = table.find_exposed(e.stag.0).unwrap();
        table.pin(slot);
        table.pin(slot);
        assert!(table.revoke(slot).is_none());
        assert_eq!(table.check(e.stag.0, e.offset, 1, Access::RemoteRead), Err(Refusal::Stag));
        assert!(table.unpin(slot).is_none());
        assert_eq!(table.exposed(), 1);
        let (stag, region) = table.unpin(slot).unwrap();
        assert_eq!((stag, region.len()), (e.stag, 8));
        assert_eq!(table.exposed(), 0);
    }

    #[test]
    fn a_sink_is_no_memory_for_the_peer() {
        let mut table = StagTable::new();
        let slot = table.add_sink().unwrap();
        let (stag, base) = table.name(slot);
        for access in [Access::RemoteRead, Access::RemoteWrite] {
            assert_eq!(table.check(stag, base, 0, access), Err(Refusal::Rights));
        }
        assert!(table.find_exposed(stag).is_none());
        table.remove_sink(slot);
        assert_eq!(table.check(stag, base, 0, Access::RemoteWrite), Err(Refusal::Stag));
    }

    #[test]
    fn names_are_fresh_and_spread() {
        let mut table = StagTable::new();
        let mut seen = std::collections::HashSet::new();
        let mut ones = [0_u32; 32];
        for _ in 0..4096 {
            let e = table.expose(Region::alloc(1), 1, Access::RemoteRead).unwrap();
            assert!(e.stag.0 > RESERVED && seen.insert(e.stag));
            assert!(e.offset.checked_add(u64::from(u32::MAX)).is_some_and(|end| end < 1 << 48));
            for (bit, n) in ones.iter_mut().enumerate() {
                *n += (e.stag.0 >> bit) & 1;
            }
            let slot = table.find_exposed(e.stag.0).unwrap();
            assert!(table.revoke(slot).is_some());
        }
        assert!(ones.iter().all(|n| (1500..2600).contains(n)), "{ones:?}");
        assert_eq!(table.entries.len(), 1, "slots are used again");
    }
}
