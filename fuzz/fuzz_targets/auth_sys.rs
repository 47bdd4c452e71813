//! libFuzzer's way into the target `auth_sys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("auth_sys")(bytes));
