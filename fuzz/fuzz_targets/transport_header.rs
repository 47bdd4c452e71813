//! libFuzzer's way into the target `transport_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("transport_header")(bytes));
