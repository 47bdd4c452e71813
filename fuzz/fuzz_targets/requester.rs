//! libFuzzer's way into the target `requester`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("requester")(bytes));
