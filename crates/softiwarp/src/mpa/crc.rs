//! CRC32c, the checksum of an FPDU (RFC 5044 section 4.4).
//!
//! Computed in pieces, while the bytes are in the processor's caches: over a header when it is written or parsed, and
//! over payload when it has just been received or is about to be sent.

use crc_fast::{CrcAlgorithm, Digest};

/// A running CRC32c.
#[derive(Clone, Copy)]
pub struct Crc32c(Digest);

impl Crc32c {
    /// A checksum of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.update(bytes);
        }
    }

    /// The checksum as it travels, least significant byte first; starts anew.
    pub fn take(&mut self) -> [u8; 4] {
        let value = self.0.finalize() as u32;
        self.0.reset();
        value.to_le_bytes()
    }

    /// The checksum of one slice, as it travels.
    #[must_use]
    pub fn of(bytes: &[u8]) -> [u8; 4] {
        let mut crc = Self::new();
        crc.update(bytes);
        crc.take()
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc32c({:#010x})", self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value() {
        assert_eq!(Crc32c::of(b"123456789"), 0xe306_9283_u32.to_le_bytes());
    }

    #[test]
    fn pieces_make_the_whole_and_taking_starts_anew() {
        let mut crc = Crc32c::new();
        for _ in 0..2 {
            crc.update(b"1234");
            crc.update(b"");
            crc.update(b"56789");
            assert_eq!(crc.take(), Crc32c::of(b"123456789"));
        }
    }

    /// The marker in front of the first FPDU of RFC 5044's example is covered by its CRC.
    #[test]
    fn the_example_of_rfc_5044() {
        let mut bytes =
            vec![0, 0, 0, 0, 0x00, 0x2a, 0x41, 0x43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        bytes.resize(4 + 2 + 0x2a, 0);
        assert_eq!(Crc32c::of(&bytes), [0x52, 0x23, 0x99, 0x83]);
    }
}
