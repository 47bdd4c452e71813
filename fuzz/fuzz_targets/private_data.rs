//! libFuzzer's way into the target `private_data`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("private_data")(bytes));
