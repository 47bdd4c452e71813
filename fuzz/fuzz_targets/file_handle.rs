//! libFuzzer's way into the target `file_handle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("file_handle")(bytes));
