//! libFuzzer's way into the target `rpcbind`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("rpcbind")(bytes));
