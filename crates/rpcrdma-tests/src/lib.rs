//! Tests that span crates. They live in `tests/`; this library is empty.
//!
//! # By hand
//! `cargo test -p rpcrdma-tests --test sim_random` runs 2,000 seeds. In its environment `RPCRDMA_SIM_SEED=N` runs seed N
//! alone and prints its timeline, of which `RPCRDMA_SIM_KEEP=N` keeps more than the last 250 events; the ignored test
//! `as_many_seeds_as_there_is_time` runs new seeds for `RPCRDMA_SIM_SECONDS`. What fails prints the `rpcrdma sim` command
//! that shows it. `scripts/mutants` applies the mistakes in `mutants/` to a copy and shows the seed that finds each. The
//! simulation itself is the crate `rpcrdma-sim`.
