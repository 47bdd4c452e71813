//! libFuzzer's way into the target `ddp_rdmap`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("ddp_rdmap")(bytes));
