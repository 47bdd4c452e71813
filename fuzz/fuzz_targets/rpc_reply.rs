//! libFuzzer's way into the target `rpc_reply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("rpc_reply")(bytes));
