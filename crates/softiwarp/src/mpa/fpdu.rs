//! FPDUs: a length, a DDP segment, padding and a checksum (RFC 5044 section 4).
//!
//! The engine builds and takes apart FPDUs in pieces, without ever having one in one place. The functions here that
//! handle whole FPDUs serve tests and tools that look at recorded streams.

use super::crc::Crc32c;

/// Bytes of the length field.
pub const LENGTH_BYTES: usize = 2;
/// Bytes of the checksum, which is there even if it is not used.
pub const CRC_BYTES: usize = 4;
/// The longest ULPDU that the length field can say. RFC 5044 asks senders for at most 64,768; Linux sends more on
/// loopback.
pub const MAX_ULPDU: usize = 0xffff;

/// Bytes of padding behind a ULPDU of this length: 0 to 3.
#[must_use]
pub const fn pad(ulpdu: usize) -> usize {
    LENGTH_BYTES.wrapping_add(ulpdu).wrapping_neg() & 3
}

/// Length of the whole FPDU around a ULPDU of this length.
#[must_use]
pub const fn fpdu_len(ulpdu: usize) -> usize {
    LENGTH_BYTES + ulpdu + pad(ulpdu) + CRC_BYTES
}

/// A whole FPDU, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fpdu<'a> {
    /// The DDP segment.
    pub ulpdu: &'a [u8],
    /// Length of the FPDU in bytes: where the next one starts.
    pub len: usize,
    /// Whether the trailer is the CRC32c of what is in front of it.
    pub crc_matches: bool,
}

/// Looks at the FPDU that starts `bytes`; `None` if it is not all there.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Fpdu<'_>> {
    let length = bytes.first_chunk::<LENGTH_BYTES>()?;
    let ulpdu = usize::from(u16::from_be_bytes(*length));
    let len = fpdu_len(ulpdu);
    let whole = bytes.get(..len)?;
    let (covered, crc) = whole.split_at_checked(len - CRC_BYTES)?;
    let segment = covered.get(LENGTH_BYTES..LENGTH_BYTES + ulpdu)?;
    Some(Fpdu { ulpdu: segment, len, crc_matches: Crc32c::of(covered) == crc })
}

/// Appends the FPDU around `ulpdu` to `out`; its trailer is a checksum, or zeros if `crc` is false.
///
/// # Panics
/// If `ulpdu` is longer than [`MAX_ULPDU`].
pub fn encode(ulpdu: &[u8], crc: bool, out: &mut Vec<u8>) {
    assert!(ulpdu.len() <= MAX_ULPDU, "a ULPDU of {} bytes does not fit", ulpdu.len());
    let start = out.len();
    out.extend_from_slice(&(ulpdu.len() as u16).to_be_bytes());
    out.extend_from_slice(ulpdu);
    out.resize(out.len() + pad(ulpdu.len()), 0);
    let trailer = if crc { Crc32c::of(out.get(start..).unwrap_or_default()) } else { [0; CRC_BYTES] };
    out.extend_from_slice(&trailer);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fpdus_end_on_a_multiple_of_four() {
        assert_eq!([0, 1, 2, 3, 4, 5, 86, 19].map(pad), [2, 1, 0, 3, 2, 1, 0, 3]);
        assert!((0..=MAX_ULPDU).all(|n| fpdu_len(n).is_multiple_of(4) && pad(n) < 4));
    }

    #[test]
    fn a_part_of_an_fpdu_is_not_one() {
        let mut bytes = Vec::new();
        encode(b"hello", true, &mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), None);
        }
        assert!(decode(&bytes).unwrap().crc_matches);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(
            ulpdu in prop::collection::vec(any::<u8>(), 0..200),
            tail in prop::collection::vec(any::<u8>(), 0..9),
            flip in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            encode(&ulpdu, true, &mut bytes);
            let len = bytes.len();
            bytes.extend_from_slice(&tail);
            let fpdu = decode(&bytes).unwrap();
            prop_assert_eq!(fpdu, Fpdu { ulpdu: &ulpdu, len, crc_matches: true });
            // One flipped bit outside the length field always shows.
            let at = 2 + flip.index(len - 2);
            bytes[at] ^= 0x10;
            prop_assert!(!decode(&bytes).unwrap().crc_matches);
        }
    }
}
