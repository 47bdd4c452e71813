//! The `rpcrdma` command: serves directories over NFS/RDMA, and copies to and from such servers.

mod address;
mod cmd;
mod connect;
mod copy;
mod failure;
mod fs;
mod latency;
mod out;
mod provider;
mod units;

use std::process::ExitCode;

fn main() -> ExitCode {
    cmd::main()
}
