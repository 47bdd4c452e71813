//! NFS version 3 and MOUNT version 3 as values: types, procedures, and which data may travel in chunks.
//!
//! No I/O happens here. What is decoded borrows from the received message; what is encoded is appended to an
//! [`xdr::Writer`](rpcrdma_proto::xdr::Writer) that the caller keeps between messages.
//!
//! * [`v3::types`] and [`v3::status`]: the vocabulary: handles, attributes, times, statuses.
//! * [`v3::args`] and [`v3::results`]: arguments and results of the 22 procedures.
//! * [`v3::dirlist`]: directory listings, written under a byte budget and read without allocation.
//! * [`v3::binding`]: the upper-layer binding of RFC 8267: chunks, the largest Reply, idempotence.
//! * [`mount`]: the protocol that turns a path into the first handle.
//! * [`acl`]: the side-band program whose NULL procedure Linux clients probe.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate alloc;

pub mod acl;
mod list;
pub mod mount;
pub mod v3;

/// The bytes that a test writes as hexadecimal digits; white space is skipped.
#[cfg(test)]
pub(crate) fn hex(s: &str) -> alloc::vec::Vec<u8> {
    let digits: alloc::vec::Vec<u8> =
        s.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
}
