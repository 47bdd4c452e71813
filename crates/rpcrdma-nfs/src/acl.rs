//! NFS_ACL, the side-band program that some NFSv3 clients look for on the NFS port.
//!
//! ACLs are not served. The numbers are here because a Linux client calls the NULL procedure while it mounts; either
//! an empty success or PROG_UNAVAIL lets it carry on without ACLs.

/// RPC program number.
pub const PROGRAM: u32 = 100_227;
/// Lowest version in use.
pub const VERSION_LOW: u32 = 2;
/// Highest version in use; it goes with NFSv3.
pub const VERSION_HIGH: u32 = 3;
/// The procedure that does nothing.
pub const NULL: u32 = 0;
