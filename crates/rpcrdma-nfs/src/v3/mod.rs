//! NFS version 3 (RFC 1813).

pub mod args;
pub mod binding;
pub mod dirlist;
pub mod field;
pub mod results;
pub mod status;
pub mod types;

pub use args::Procedure;
pub use field::Data;
pub use results::{Failure, Outcome};
pub use status::Status;
pub use types::*;

#[cfg(test)]
mod tests;
