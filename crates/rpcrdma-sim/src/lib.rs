//! Whole clients and servers on a simulated fabric, from a seed: a rig that runs the real client and the real server, a
//! checker that watches the fabric, workloads, and plans of faults.
//!
//! # Operation
//! [`rig::run`] makes a world from a seed, serves a file system in memory in it, and gives a workload the means to mount
//! it, all in one thread and on virtual time. Everything that happens on the fabric goes through [`record::Log`], which
//! hashes it, keeps the last events as a [`timeline`], and shows it to the [`checker::Checker`] and to the
//! [`coverage::Watcher`]. A run fails with the first rule that was broken. A [`spec::Spec`] is a run in writing: what a
//! failed run prints is enough to run it again. A [`campaign`] is many of them.
//!
//! # Who uses it
//! The tests in `rpcrdma-tests`, and the command `rpcrdma sim`, which runs and replays seeds for people. It is not among
//! the tests because a program may not depend on those.
//!
//! # Limits
//! What a blocking thread executes is executed at once in virtual time, so no two executions overlap; duplicates that meet
//! the first copy half way are tested with threads, in the crate `rpcrdma`. One world runs in one thread. Worlds share
//! nothing, so many may run at a time.

pub mod campaign;
pub mod checker;
pub mod coverage;
pub mod odd;
pub mod plan;
pub mod record;
pub mod rig;
mod scribe;
pub mod spec;
pub mod svg;
pub mod timeline;
pub mod whims;
pub mod workload;
