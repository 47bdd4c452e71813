//! libFuzzer's way into the target `mpa_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("mpa_frame")(bytes));
