//! libFuzzer's way into the target `iwarp_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("iwarp_stream")(bytes));
