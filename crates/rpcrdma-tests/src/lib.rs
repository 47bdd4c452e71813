//! Scenarios that span crates, and what they need: a rig that runs the real client and the real server on a simulated
//! fabric, a checker that watches the fabric, workloads, and plans of faults.
//!
//! # Operation
//! [`rig::run`] makes a world from a seed, serves a file system in memory in it, and gives a workload the means to mount
//! it, all in one thread and on virtual time. Everything that happens on the fabric goes through [`record::Log`], which
//! hashes it, keeps the last events as a readable timeline, and shows it to the [`checker::Checker`]. A run fails with
//! the first rule that was broken; what it prints (seed, plan, timeline) is enough to run it again.
//!
//! # By hand
//! `cargo test -p rpcrdma-tests --test sim_random` runs 2,000 seeds. In its environment `RPCRDMA_SIM_SEED=N` runs seed N
//! alone and prints its timeline, of which `RPCRDMA_SIM_KEEP=N` keeps more than the last 60 events; the ignored test
//! `as_many_seeds_as_there_is_time` runs new seeds for `RPCRDMA_SIM_SECONDS`. `scripts/mutants` applies the mistakes in
//! `mutants/` to a copy and shows the seed that finds each.
//!
//! # Limits
//! What a blocking thread executes is executed at once in virtual time, so no two executions overlap; duplicates that meet
//! the first copy half way are tested with threads, in the crate `rpcrdma`. One world runs in one thread. Worlds share nothing, so many may run at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this crate is tests from end to end")]

pub mod checker;
pub mod odd;
pub mod plan;
pub mod record;
pub mod rig;
pub mod workload;
