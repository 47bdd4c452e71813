//! Fuzz targets: one function per decoder, and the server's whole receive path.
//!
//! # Operation
//! A target is a function of bytes that must not panic. Most do more than look for panics: what decodes has to encode
//! to something that decodes to the same value, a stream has to mean the same however it is cut, and a server has to
//! answer only what was asked and promise only Receives that it has posted.
//!
//! The targets know nothing of a fuzzing engine. `fuzz_targets/` hands them to libFuzzer; `tests/corpus.rs` runs them
//! on the committed corpus, which [`seeds`] makes, without any engine.

mod decoders;
mod iwarp;
pub mod seeds;
mod server;

/// A fuzz target.
pub type Target = fn(&[u8]);

/// All targets with their names, which are those of their corpus directories too.
pub const TARGETS: &[(&str, Target)] = &[
    ("transport_header", decoders::transport_header),
    ("private_data", decoders::private_data),
    ("requester", decoders::requester),
    ("rpc_call", decoders::rpc_call),
    ("rpc_reply", decoders::rpc_reply),
    ("auth_sys", decoders::auth_sys),
    ("record_marking", decoders::record_marking),
    ("rpcbind", decoders::rpcbind),
    ("nfs_args", decoders::nfs_args),
    ("nfs_results", decoders::nfs_results),
    ("mount", decoders::mount),
    ("file_handle", server::file_handle),
    ("mpa_frame", iwarp::mpa_frame),
    ("ddp_rdmap", iwarp::ddp_rdmap),
    ("iwarp_stream", iwarp::stream),
    ("server_messages", server::messages),
    ("server_stream", server::stream),
];

/// The target with this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    TARGETS.iter().find(|(n, _)| *n == name).map(|(_, run)| *run).expect("a target of the table")
}
