//! libFuzzer's way into the target `server_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("server_messages")(bytes));
