//! NFS over RDMA as a mounted file system, through FUSE and without libfuse.
//!
//! # Operation
//! The kernel's requests are read by a few threads of [`fuser`]. Each becomes a task on the caller's tokio runtime, which
//! makes Calls and answers the kernel when they are done; no thread waits for a Call, and any number of requests are in
//! flight. Writes are answered at once and go to the server behind the program's back (see `write.rs`); reads ahead are
//! the kernel's, which is told to have many in flight. What is read goes from the region into which the network has placed
//! it to the kernel; what is written is copied once, from the buffer of the request.
//!
//! # Who keeps what
//! The kernel caches names, attributes and data for as long as it is told. What has been written is kept here until the
//! server has made it durable.
//!
//! # Consistency
//! Close-to-open, as NFS users expect: when a file is opened the server is asked whether it has changed, and when it is
//! closed everything written is durable, or `close` says why not. In between, attributes and names are believed for the
//! times of `acregmin`, `acregmax`, `acdirmin` and `acdirmax`. Locks are between the processes of one machine.
//!
//! # When it breaks
//! On a hard mount requests wait for the server for as long as it takes; a program that waits can be killed, as with the
//! kernel's client. On a soft mount they fail with EIO when their time is up.
//!
//! # Limits
//! NFSv3: no extended attributes, no ACLs, times from 1970 to 2106, 16 supplementary groups. Permissions are checked by
//! the kernel, from modes and owners, and again by the server; where the server would allow more than modes say, the
//! kernel's word counts.

mod attr;
mod chunk;
mod data;
mod dir;
mod fs;
mod hidden;
mod inode;
mod names;
mod open;
mod options;
mod serve;
mod session;
mod shared;
mod user;
mod write;

use rpcrdma::{client::CallError, error::Error};

pub use options::{CacheTime, MountOptions, NameCache, OptionError, Proto};
pub use session::{MountError, Mounted, Mounting, clear_dead_mount, unmount};

/// What a program is told of an error: what the kernel's client tells.
fn errno_of(error: &Error) -> i32 {
    const EIO: i32 = 5;
    match error {
        Error::Call(CallError::TimedOut { .. }) => EIO,
        error => error.errno(),
    }
}
