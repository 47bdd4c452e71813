//! NFS version 3 (RFC 1813).

pub mod status;
pub mod types;

pub use status::Status;
pub use types::*;
