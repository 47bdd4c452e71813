//! ONC RPC version 2 (RFC 5531).

use core::fmt;

/// A transaction identifier: chosen by the Requester, copied by the Responder, compared for equality only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub u32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}
