//! Runs the real `rpcrdma` binary: servers on free ports, and every command against them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod commands;
mod copies;
mod demo;
mod gateways;
mod mounts;
mod resume;
mod serve;
mod sim;
mod support;
mod words;
