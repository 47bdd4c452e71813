//! Scenarios that span crates, and what they need: a rig that runs the real client and the real server on a simulated
//! fabric, a checker that watches the fabric, workloads, and plans of faults.
//!
//! # Operation
//! [`rig::run`] makes a world from a seed, serves a file system in memory in it, and gives a workload the means to mount
//! it, all in one thread and on virtual time. Everything that happens on the fabric goes through [`record::Log`], which
//! hashes it, keeps the last events as a readable timeline, and shows it to the [`checker::Checker`]. A run fails with
//! the first rule that was broken; what it prints (seed, plan, timeline) is enough to run it again.
//!
//! # Limits
//! One world runs in one thread. Worlds share nothing, so many may run at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this crate is tests from end to end")]

pub mod checker;
pub mod odd;
pub mod plan;
pub mod record;
pub mod rig;
pub mod workload;
