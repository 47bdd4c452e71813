//! libFuzzer's way into the target `record_marking`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("record_marking")(bytes));
