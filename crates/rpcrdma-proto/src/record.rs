//! Record marking: RPC messages on a byte stream such as TCP (RFC 5531 section 11). Not used on RDMA.
//!
//! # Operation
//! A record is one RPC message, cut into fragments, each behind a four-byte mark. [`RecordReader`] follows the stream
//! however it is split, and holds nothing but counters, so the bytes stay where the driver read them:
//!
//! * [`RecordReader::feed`] takes bytes that were read in bulk and hands back the message bytes among them;
//! * [`RecordReader::wants`] says what comes next in the stream, so that a driver may read the body of a large message
//!   straight to its place, and report it with [`RecordReader::body`].
//!
//! # When it breaks
//! There is no error Reply in record marking: a stream that breaks a rule can only be closed ([`RecordError`]).
//!
//! # Limits
//! The length of a record is checked at each mark, before its bytes arrive. A record has at most
//! [`MAX_FRAGMENTS`] fragments, so that empty ones cannot go on forever.

use core::fmt;

/// Length of a fragment's mark in bytes.
pub const MARK: usize = 4;

/// Most fragments of one record.
pub const MAX_FRAGMENTS: u32 = 1024;

/// Fewest bytes of a record: an XID and a type.
const MIN_RECORD: usize = 8;

const LAST: u32 = 1 << 31;

/// The mark of a record of `len` bytes that is sent as one fragment, or `None` if a fragment cannot be so long.
#[must_use]
pub const fn mark(len: usize) -> Option<[u8; MARK]> {
    if len < LAST as usize { Some((LAST | len as u32).to_be_bytes()) } else { None }
}

/// A stream of records that cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// A record longer than is accepted.
    TooLong {
        /// Its length in bytes so far, with the fragment that goes too far.
        len: u64,
        /// The most that is accepted.
        max: usize,
    },
    /// A record in more than [`MAX_FRAGMENTS`] fragments.
    TooManyFragments,
    /// A record too short for any RPC message.
    TooShort {
        /// Its length in bytes.
        len: usize,
    },
    /// A record whose length is not a multiple of 4, which no RPC message has.
    Unaligned {
        /// Its length in bytes.
        len: usize,
    },
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLong { len, max } => {
                write!(f, "a record of at least {len} bytes, where {max} is the most")
            }
            Self::TooManyFragments => write!(f, "a record in more than {MAX_FRAGMENTS} fragments"),
            Self::TooShort { len } => write!(f, "a record of {len} bytes is too short for an RPC message"),
            Self::Unaligned { len } => write!(f, "a record of {len} bytes, which is not a multiple of 4"),
        }
    }
}

impl core::error::Error for RecordError {}

/// What comes next in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// This many bytes of a mark, 1 to 4.
    Mark(usize),
    /// This many bytes of the message, at least 1.
    Body {
        /// Bytes left in this fragment.
        fragment: usize,
        /// Whether the record ends with this fragment.
        last: bool,
    },
}

/// What [`RecordReader::feed`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// All input is consumed, and there is nothing to do before more arrives.
    More,
    /// Bytes of the message; it goes on.
    Part(&'a [u8]),
    /// The last bytes of the message, possibly none.
    End(&'a [u8]),
}

/// Follows a stream of records.
#[derive(Clone, Debug)]
pub struct RecordReader {
    max: usize,
    /// The mark that is being read.
    mark: [u8; MARK],
    /// Bytes of it that have arrived; 0 also while a body is read.
    marked: usize,
    /// Bytes left in the current fragment.
    fragment: usize,
    /// Whether a body is being read rather than a mark.
    in_body: bool,
    last: bool,
    /// Bytes of the record in the fragments announced so far.
    len: usize,
    fragments: u32,
}

impl RecordReader {
    /// A reader at the beginning of a stream, for records of at most `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            max,
            mark: [0; MARK],
            marked: 0,
            fragment: 0,
            in_body: false,
            last: false,
            len: 0,
            fragments: 0,
        }
    }

    /// What comes next in the stream.
    #[must_use]
    pub fn wants(&self) -> Wants {
        if self.in_body {
            Wants::Body { fragment: self.fragment, last: self.last }
        } else {
            Wants::Mark(MARK - self.marked)
        }
    }

    /// Whether the stream stands between two records, so that its end there loses nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.in_body && self.marked == 0 && self.fragments == 0
    }

    /// Bytes of the current record in the fragments announced so far.
    #[must_use]
    pub fn record_len(&self) -> usize {
        self.len
    }

    /// Consumes bytes from the front of `input`: at most one mark and the message bytes behind it. Returns what was
    /// found and how many bytes were consumed; call again with the rest until it is [`Piece::More`].
    ///
    /// # Errors
    /// [`RecordError`]; the stream is to be closed.
    pub fn feed<'a>(&mut self, input: &'a [u8]) -> Result<(Piece<'a>, usize), RecordError> {
        let mut at = 0;
        while !self.in_body {
            let missing = &mut self.mark[self.marked..];
            let n = missing.len().min(input.len() - at);
            missing[..n].copy_from_slice(&input[at..at + n]);
            self.marked += n;
            at += n;
            if self.marked < MARK {
                return Ok((Piece::More, at));
            }
            if self.begin_fragment()? {
                return Ok((Piece::End(&[]), at));
            }
        }
        let n = self.fragment.min(input.len() - at);
        if n == 0 {
            return Ok((Piece::More, at));
        }
        let data = &input[at..at + n];
        Ok((if self.body(n) { Piece::End(data) } else { Piece::Part(data) }, at + n))
    }

    /// Takes note of `n` bytes of the body that were read past this reader, and says whether they complete the
    /// record.
    ///
    /// # Panics
    /// In debug builds, if `n` is more than [`RecordReader::wants`] said: a mistake of the driver.
    pub fn body(&mut self, n: usize) -> bool {
        debug_assert!(self.in_body && n <= self.fragment, "{n} bytes of a fragment of {}", self.fragment);
        self.fragment = self.fragment.saturating_sub(n);
        if self.fragment > 0 {
            return false;
        }
        self.in_body = false;
        if self.last {
            self.len = 0;
            self.fragments = 0;
        }
        self.last
    }

    /// Reads the complete mark; true if it ends the record without a byte.
    fn begin_fragment(&mut self) -> Result<bool, RecordError> {
        self.marked = 0;
        let word = u32::from_be_bytes(self.mark);
        self.last = word & LAST != 0;
        let fragment = word & !LAST;
        let len = self.len as u64 + u64::from(fragment);
        if len > self.max as u64 {
            return Err(RecordError::TooLong { len, max: self.max });
        }
        self.fragment = fragment as usize;
        self.len += self.fragment;
        self.fragments += 1;
        if self.last && self.len < MIN_RECORD {
            return Err(RecordError::TooShort { len: self.len });
        }
        if self.last && !self.len.is_multiple_of(4) {
            return Err(RecordError::Unaligned { len: self.len });
        }
        if !self.last && self.fragments >= MAX_FRAGMENTS {
            return Err(RecordError::TooManyFragments);
        }
        self.in_body = true;
        Ok(if self.fragment > 0 { false } else { self.body(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::hex;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// All records of a stream that arrives in reads of the given sizes, in turn.
    fn records(stream: &[u8], max: usize, sizes: &[usize]) -> Result<Vec<Vec<u8>>, RecordError> {
        let mut reader = RecordReader::new(max);
        let (mut out, mut record, mut at, mut turn) = (vec![], vec![], 0, 0);
        while at < stream.len() {
            let size = sizes[turn % sizes.len()].max(1);
            turn += 1;
            let mut input = &stream[at..(at + size).min(stream.len())];
            at += input.len();
            loop {
                let (piece, n) = reader.feed(input)?;
                input = &input[n..];
                match piece {
                    Piece::More => break,
                    Piece::Part(data) => record.extend(data),
                    Piece::End(data) => {
                        record.extend(data);
                        out.push(core::mem::take(&mut record));
                        assert!(reader.is_idle());
                    }
                }
            }
            assert!(input.is_empty());
        }
        assert_eq!(reader.is_idle(), record.is_empty() && reader.wants() == Wants::Mark(4));
        Ok(out)
    }

    #[test]
    fn a_reply_in_two_fragments() {
        let stream = hex("0000000c000000110000000100000000 8000000c000000000000000000000000");
        let expected = hex("00000011 00000001 00000000 00000000 00000000 00000000");
        for size in 1..=stream.len() {
            assert_eq!(records(&stream, 24, &[size]), Ok(vec![expected.clone()]));
        }
        assert_eq!(records(&stream, 23, &[9]), Err(RecordError::TooLong { len: 24, max: 23 }));
    }

    #[test]
    fn marks() {
        assert_eq!(mark(56), Some([0x80, 0, 0, 56]));
        assert_eq!(mark(0x7fff_ffff), Some([0xff; 4]));
        assert_eq!(mark(0x8000_0000), None);
    }

    #[test]
    fn a_long_record_is_refused_at_its_mark() {
        let mut reader = RecordReader::new(1000);
        assert_eq!(reader.feed(&[0xff; 4]), Err(RecordError::TooLong { len: 0x7fff_ffff, max: 1000 }));
    }

    #[test]
    fn records_too_short_or_crooked_are_refused() {
        assert_eq!(records(&hex("80000000"), 99, &[4]), Err(RecordError::TooShort { len: 0 }));
        assert_eq!(records(&hex("80000004 00000000"), 99, &[8]), Err(RecordError::TooShort { len: 4 }));
        assert_eq!(records(&hex("80000009 00"), 99, &[8]), Err(RecordError::Unaligned { len: 9 }));
        assert_eq!(
            records(&hex("00000009 000000000000000000 80000004"), 99, &[3]),
            Err(RecordError::Unaligned { len: 13 })
        );
    }

    #[test]
    fn empty_fragments_are_legal_and_counted() {
        let stream = hex("00000000 00000008 0000000100000002 00000000 80000000 80000008 0000000300000004");
        let expected = vec![hex("0000000100000002"), hex("0000000300000004")];
        for size in 1..=stream.len() {
            assert_eq!(records(&stream, 8, &[size]), Ok(expected.clone()));
        }
        let mut endless = vec![0; 4 * (MAX_FRAGMENTS as usize - 1)];
        let mut whole = endless.clone();
        whole.extend(hex("80000008 0000000100000002"));
        assert_eq!(records(&whole, 8, &[1000]), Ok(vec![hex("0000000100000002")]));
        endless.extend([0; 4]);
        assert_eq!(records(&endless, 8, &[1000]), Err(RecordError::TooManyFragments));
    }

    #[test]
    fn a_body_may_be_read_past_the_reader() {
        let mut reader = RecordReader::new(1 << 20);
        assert_eq!(reader.wants(), Wants::Mark(4));
        assert_eq!(reader.feed(&[0x80, 0]), Ok((Piece::More, 2)));
        assert_eq!(reader.wants(), Wants::Mark(2));
        assert!(!reader.is_idle());
        assert_eq!(reader.feed(&[0x10, 0, 1, 2]), Ok((Piece::Part(&[1, 2]), 4)));
        assert_eq!(reader.wants(), Wants::Body { fragment: 4094, last: true });
        assert_eq!(reader.record_len(), 4096);
        assert!(!reader.body(4000));
        assert_eq!(reader.wants(), Wants::Body { fragment: 94, last: true });
        assert!(reader.body(94));
        assert!(reader.is_idle());
        assert_eq!(reader.wants(), Wants::Mark(4));
    }

    proptest! {
        #[test]
        fn any_fragments_in_any_reads_give_the_records(
            records_in in prop::collection::vec(prop::collection::vec(any::<u32>(), 2..40), 1..6),
            cuts in prop::collection::vec(0..30usize, 1..20),
            sizes in prop::collection::vec(1..50usize, 1..8),
        ) {
            let expected: Vec<Vec<u8>> = records_in
                .iter()
                .map(|words| words.iter().flat_map(|w| w.to_be_bytes()).collect())
                .collect();
            let mut stream = vec![];
            let mut cut = cuts.iter().cycle();
            for record in &expected {
                let mut rest = &record[..];
                // A record's last fragment ends what the cuts left; at most 20 fragments may be empty in a row.
                for _ in 0..200 {
                    let n = *cut.next().unwrap();
                    if n >= rest.len() {
                        break;
                    }
                    stream.extend((n as u32).to_be_bytes());
                    stream.extend(&rest[..n]);
                    rest = &rest[n..];
                }
                stream.extend(mark(rest.len()).unwrap());
                stream.extend(rest);
            }
            prop_assert_eq!(records(&stream, 4 * 40, &sizes), Ok(expected));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), any::<u8>()], 0..200), size in 1..20usize) {
            let mut reader = RecordReader::new(64);
            for mut input in bytes.chunks(size) {
                loop {
                    match reader.feed(input) {
                        Ok((Piece::More, n)) => {
                            prop_assert_eq!(n, input.len());
                            break;
                        }
                        Ok((_, n)) => input = &input[n..],
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }
}
