//! libFuzzer's way into the target `server_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("server_stream")(bytes));
