//! Helpers for tests: byte vectors as hex text.

use alloc::vec::Vec;

/// Bytes from hex digits; white space is skipped.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    assert_eq!(digits.len() % 2, 0, "an odd number of hex digits");
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}
