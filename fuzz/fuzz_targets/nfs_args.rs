//! libFuzzer's way into the target `nfs_args`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rpcrdma_fuzz::target("nfs_args")(bytes));
