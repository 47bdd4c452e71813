//! From a byte stream to records, with as few copies as the stream allows.
//!
//! # Operation
//! The driver reads into [`Inbox::room`], says how much with [`Inbox::filled`], and takes records with
//! [`Inbox::next`] until none is whole. A record that fits into the buffer and came in one fragment is served where it
//! lies. Any other is put together in a region of its own, and once such a record has begun, the room *is* that region.
//!
//! # Limits
//! Lengths and fragments are checked at each mark, before memory is taken. If the pools are empty an inbox may
//! allocate one region itself, so that peers which hold the pools cannot lock others out.

use std::fmt;

use rpcrdma_fabric::Region;
use rpcrdma_proto::record::MARK;

use crate::memory::Pools;

/// Length of the buffer.
const BUFFER: usize = 16 << 10;
/// The bit of a record mark that says "last fragment".
const LAST: u32 = 1 << 31;

/// A record that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadRecord {
    /// More bytes than allowed: so many, with the fragment that goes too far.
    TooLong(u64),
    /// More fragments than allowed.
    TooManyFragments,
    /// So many bytes, which is not a multiple of 4.
    NotWords(usize),
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "a record of at least {len} bytes is too long"),
            Self::TooManyFragments => f.write_str("a record of too many fragments"),
            Self::NotWords(len) => write!(f, "a record of {len} bytes, which is not a multiple of 4"),
        }
    }
}

/// A record that is put together in memory of its own.
struct Partial {
    region: Region,
    /// Bytes there.
    len: usize,
    /// Bytes that this fragment still has to bring.
    left: usize,
    last: bool,
    fragments: u32,
    /// Not from the pools.
    own: bool,
}

/// A whole record in memory of its own. Goes back with [`Inbox::recycle`].
pub(super) struct Apart {
    region: Region,
    len: usize,
    own: bool,
}

impl Apart {
    /// The message.
    pub(super) fn message(&self) -> &[u8] {
        self.region.get(..self.len).unwrap_or_default()
    }
}

/// What an inbox has to offer.
pub(super) enum Next {
    /// A record, at this place of the [buffer](Inbox::message).
    InPlace { at: usize, len: usize },
    /// A record in memory of its own.
    Apart(Apart),
    /// Nothing whole.
    Incomplete,
    /// A record wants a region, and all are in use, this inbox's own too.
    NoMemory,
}

/// The receiving side of a connection.
pub(super) struct Inbox {
    pools: Pools,
    /// Most bytes and fragments in a record.
    limits: (usize, u32),
    /// Unread bytes are `buffer[start..end]`.
    buffer: Region,
    start: usize,
    end: usize,
    partial: Option<Partial>,
    /// Whether the region beyond the pools is in use.
    own: bool,
}

impl Inbox {
    /// An empty inbox for records of at most so many bytes and fragments.
    pub(super) fn new(pools: Pools, most_bytes: usize, most_fragments: u32) -> Self {
        Self {
            pools,
            limits: (most_bytes, most_fragments),
            buffer: Region::alloc(BUFFER),
            start: 0,
            end: 0,
            partial: None,
            own: false,
        }
    }

    /// Whether a record has begun and is not whole.
    pub(super) fn is_amid_record(&self) -> bool {
        self.partial.is_some() || self.start != self.end
    }

    /// Where the next bytes of the stream go; not empty once [`Inbox::next`] had nothing whole.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if let Some(p) = self.partial.as_mut().filter(|p| p.left > 0) {
            return p.region.get_mut(p.len..p.len + p.left).unwrap_or_default();
        }
        // What is left is part of a record that fits, or of a mark; it moves to the front.
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `n` bytes of the room have been filled.
    pub(super) fn filled(&mut self, n: usize) {
        match self.partial.as_mut().filter(|p| p.left > 0) {
            Some(p) => {
                p.len += n;
                p.left -= n;
            }
            None => self.end += n,
        }
    }

    /// The bytes of a record in place, until the room is asked for.
    pub(super) fn message(&self, at: usize, len: usize) -> &[u8] {
        self.buffer.get(at..at + len).unwrap_or_default()
    }

    /// Gives back the memory of a record.
    pub(super) fn recycle(&mut self, record: Apart) {
        self.own &= !record.own;
    }

    /// Cuts the next record out of what has been received.
    pub(super) fn next(&mut self) -> Result<Next, BadRecord> {
        loop {
            if self.partial.as_ref().is_some_and(|p| p.left > 0) {
                if self.start == self.end {
                    return Ok(Next::Incomplete);
                }
                self.move_to_partial();
                continue;
            }
            if let Some(Partial { region, len, own, .. }) = self.partial.take_if(|p| p.last) {
                whole(len)?;
                return Ok(Next::Apart(Apart { region, len, own }));
            }
            let unread = self.buffer.get(self.start..self.end).unwrap_or_default();
            let Some(mark) = unread.first_chunk::<MARK>() else { return Ok(Next::Incomplete) };
            let mark = u32::from_be_bytes(*mark);
            let (len, last) = ((mark & !LAST) as usize, mark & LAST != 0);
            let before = self.partial.as_ref().map_or(0, |p| p.len);
            let total = before as u64 + len as u64;
            if total > self.limits.0 as u64 {
                return Err(BadRecord::TooLong(total));
            }
            if self.partial.is_none() && last {
                if unread.len() >= MARK + len {
                    let at = self.start + MARK;
                    self.start = at + len;
                    whole(len)?;
                    return Ok(Next::InPlace { at, len });
                }
                if MARK + len <= self.buffer.len() {
                    return Ok(Next::Incomplete);
                }
            }
            if !self.begin_fragment(before + len, len, last)? {
                return Ok(Next::NoMemory);
            }
        }
    }

    /// Makes room for a fragment of `len` bytes, with which its record has `total`, and takes its mark. False if there
    /// is no memory.
    fn begin_fragment(&mut self, total: usize, len: usize, last: bool) -> Result<bool, BadRecord> {
        let fragments = self.partial.as_ref().map_or(0, |p| p.fragments) + 1;
        if fragments > self.limits.1 {
            return Err(BadRecord::TooManyFragments);
        }
        if self.partial.as_ref().is_none_or(|p| p.region.len() < total) {
            let (mut region, own) = match self.pools.take(total) {
                Some(region) => (region, false),
                // As long as any record, so that it never has to grow.
                None if !self.own => (Region::alloc(self.limits.0), true),
                None => return Ok(false),
            };
            self.own |= own;
            let len = self.partial.as_ref().map_or(0, |p| p.len);
            if let Some(old) = self.partial.take() {
                region[..len].copy_from_slice(&old.region[..len]);
            }
            self.partial = Some(Partial { region, len, left: 0, last: false, fragments: 0, own });
        }
        if let Some(p) = &mut self.partial {
            (p.left, p.last, p.fragments) = (len, last, fragments);
        }
        self.start += MARK;
        Ok(true)
    }

    /// Moves what the buffer has of the current fragment.
    fn move_to_partial(&mut self) {
        let Some(p) = &mut self.partial else { return };
        let n = p.left.min(self.end - self.start);
        p.region[p.len..p.len + n].copy_from_slice(&self.buffer[self.start..self.start + n]);
        p.len += n;
        p.left -= n;
        self.start += n;
    }
}

fn whole(len: usize) -> Result<(), BadRecord> {
    if len.is_multiple_of(4) { Ok(()) } else { Err(BadRecord::NotWords(len)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 200_000;

    /// All records of a stream that arrives in pieces of these lengths, again and again, and what ended it.
    fn records(stream: &[u8], pieces: &[usize], pools: &Pools) -> (Vec<Vec<u8>>, Result<bool, BadRecord>) {
        let mut inbox = Inbox::new(pools.clone(), MOST, 8);
        let (mut out, mut at) = (Vec::new(), 0);
        for piece in pieces.iter().cycle() {
            loop {
                match inbox.next() {
                    Ok(Next::InPlace { at, len }) => out.push(inbox.message(at, len).to_vec()),
                    Ok(Next::Apart(record)) => {
                        out.push(record.message().to_vec());
                        inbox.recycle(record);
                    }
                    Ok(Next::Incomplete) => break,
                    Ok(Next::NoMemory) => panic!("one record at a time always has memory"),
                    Err(bad) => return (out, Err(bad)),
                }
            }
            if at == stream.len() {
                break;
            }
            let room = inbox.room();
            let n = room.len().min(*piece).min(stream.len() - at);
            assert!(n > 0, "there is always room");
            room[..n].copy_from_slice(&stream[at..at + n]);
            inbox.filled(n);
            at += n;
        }
        (out, Ok(inbox.is_amid_record()))
    }

    /// The stream of a record whose fragments have these lengths.
    fn stream(fragments: &[usize], seed: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut wire, mut record) = (Vec::new(), Vec::new());
        for (i, len) in fragments.iter().enumerate() {
            let last = if i + 1 == fragments.len() { LAST } else { 0 };
            let bytes: Vec<u8> = (0..*len).map(|n| (n * 7 + i + seed) as u8).collect();
            wire.extend((*len as u32 | last).to_be_bytes());
            wire.extend(&bytes);
            record.extend(bytes);
        }
        (wire, record)
    }

    proptest! {
        #[test]
        fn records_do_not_depend_on_how_they_arrive(
            shapes in prop::collection::vec(
                prop::collection::vec(
                    prop_oneof![Just(0usize), 1..100usize, 1..5000usize, 12_000..30_000usize],
                    1..=6,
                ),
                1..6,
            ),
            pieces in prop::collection::vec(prop_oneof![1..8usize, 1..3000usize, Just(1 << 20)], 1..6),
            poor in any::<bool>(),
        ) {
            let pools = Pools::new(if poor { 0 } else { 1 });
            let (mut wire, mut want) = (Vec::new(), Vec::new());
            for (seed, mut shape) in shapes.into_iter().enumerate() {
                let odd = shape.iter().sum::<usize>() % 4;
                shape[0] += (4 - odd) % 4;
                let (bytes, record) = stream(&shape, seed);
                wire.extend(bytes);
                want.push(record);
            }
            let (got, end) = records(&wire, &pieces, &pools);
            prop_assert!(got == want);
            prop_assert_eq!(end, Ok(false));
            prop_assert_eq!(pools.in_use(), 0);
            // Cut anywhere, it has the records before the cut, and is amid one unless the cut is between two.
            let cut = wire.len() - 1;
            let (got, end) = records(&wire[..cut], &pieces, &pools);
            prop_assert!(got == want[..want.len() - 1]);
            prop_assert_eq!(end, Ok(true));
        }

        #[test]
        fn any_bytes_are_records_or_an_error(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), any::<u8>()], 0..300),
            pieces in prop::collection::vec(1..40usize, 1..4),
        ) {
            let (got, _) = records(&bytes, &pieces, &Pools::new(1));
            prop_assert!(got.iter().all(|r| r.len().is_multiple_of(4)));
        }
    }

    #[test]
    fn broken_rules_have_names() {
        let pools = Pools::new(1);
        let end = |wire: &[u8]| records(wire, &[usize::MAX], &pools).1;
        let mark = |len: u32| len.to_be_bytes().to_vec();
        assert_eq!(end(&mark(u32::MAX)), Err(BadRecord::TooLong((1 << 31) - 1)));
        assert_eq!(end(&mark(MOST as u32 + 1)), Err(BadRecord::TooLong(MOST as u64 + 1)));
        let (mut wire, _) = stream(&[MOST - 4, 8], 0);
        assert_eq!(end(&wire), Err(BadRecord::TooLong(MOST as u64 + 4)));
        wire = stream(&[6], 0).0;
        assert_eq!(end(&wire), Err(BadRecord::NotWords(6)));
        wire = stream(&[4, 1], 0).0;
        assert_eq!(end(&wire), Err(BadRecord::NotWords(5)));
        assert_eq!(end(&mark(0).repeat(9)), Err(BadRecord::TooManyFragments));
        assert_eq!(end(&mark(0).repeat(8)), Ok(true));
    }

    #[test]
    fn one_record_beyond_the_pools_is_allowed() {
        let mut inbox = Inbox::new(Pools::new(0), MOST, 8);
        let wire = stream(&[50_000], 0).0;
        let mut receive = || {
            let mut at = 0;
            loop {
                match inbox.next() {
                    Ok(Next::Apart(record)) => return (Some(record), inbox.is_amid_record()),
                    Ok(Next::NoMemory) => return (None, true),
                    Ok(Next::Incomplete) => {}
                    _ => panic!("a long record"),
                }
                let room = inbox.room();
                let n = room.len().min(wire.len() - at);
                room[..n].copy_from_slice(&wire[at..at + n]);
                inbox.filled(n);
                at += n;
            }
        };
        let (first, _) = receive();
        let first = first.unwrap();
        assert!(receive().0.is_none(), "the first one is not back yet");
        inbox.recycle(first);
        assert!(!matches!(inbox.next(), Ok(Next::NoMemory)));
    }
}
