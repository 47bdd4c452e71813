//! The commands, one module each, and what they have in common.

mod bench;
mod cat;
mod cp;
mod demo;
mod devices;
mod df;
mod generate;
mod loopback;
mod ls;
mod mkdir;
mod mount;
mod ping;
mod probe;
mod rm;
mod serve;
mod sim;
mod stat;

use std::{future::Future, process::ExitCode};

use clap::{ArgAction, CommandFactory as _, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    failure::{Failure, Outcome},
    out,
};

/// NFS over RDMA in userspace: serve a directory, copy from it and to it, look at it, measure it.
///
/// RPC-over-RDMA (RFC 8166) and NFSv3 run over software iWARP, that is, over any TCP network, without kernel modules
/// and without root; a Linux client with siw or an RNIC speaks the same protocol.
///
/// Servers are named by URLs: nfs://HOST[:RDMA-PORT]/PATH, where PATH is an export and a path inside it, and %20 is a
/// space. Several servers of the same files are tried in turn: nfs://HOST,HOST2:PORT/PATH.
#[derive(Parser)]
#[command(
    name = "rpcrdma",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  rpcrdma demo                              see it work while it is cut
  rpcrdma serve /srv/data                   serve a directory
  rpcrdma cp -r nfs://server/srv/data copy  copy it, from another machine
  rpcrdma ls -l nfs://server/srv/data       look at it
  rpcrdma mount nfs://server/srv/data /mnt  use it with any program
  rpcrdma ping nfs://server                 see how fast it answers

Exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted."
)]
pub(crate) struct Cli {
    /// Say more: -v about connections, -vv about decisions, -vvv about everything
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    verbose: u8,

    /// Print nothing but errors
    #[arg(short, long, global = true, display_order = 901)]
    quiet: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    Ls(ls::Ls),
    Cat(cat::Cat),
    Stat(stat::Stat),
    Cp(cp::Cp),
    Rm(rm::Rm),
    Mkdir(mkdir::Mkdir),
    Mount(mount::Mount),
    Df(df::Df),
    Ping(ping::Ping),
    Probe(probe::Probe),
    Demo(demo::Demo),
    Bench(bench::Bench),
    Sim(sim::Sim),
    Devices(devices::Devices),
    Completions(generate::Completions),
    Man(generate::Man),
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::Serve(_) => "serve",
            Self::Ls(_) => "ls",
            Self::Cat(_) => "cat",
            Self::Stat(_) => "stat",
            Self::Cp(_) => "cp",
            Self::Rm(_) => "rm",
            Self::Mkdir(_) => "mkdir",
            Self::Mount(_) => "mount",
            Self::Df(_) => "df",
            Self::Ping(_) => "ping",
            Self::Probe(_) => "probe",
            Self::Demo(_) => "demo",
            Self::Bench(_) => "bench",
            Self::Sim(_) => "sim",
            Self::Devices(_) => "devices",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
        }
    }

    fn run(self) -> Outcome {
        match self {
            Self::Serve(c) => c.run(),
            Self::Ls(c) => block_on(c.run()),
            Self::Cat(c) => block_on(c.run()),
            Self::Stat(c) => block_on(c.run()),
            Self::Cp(c) => c.run(),
            Self::Rm(c) => block_on(c.run()),
            Self::Mkdir(c) => block_on(c.run()),
            Self::Mount(c) => c.run(),
            Self::Df(c) => block_on(c.run()),
            Self::Ping(c) => block_on(c.run()),
            Self::Probe(c) => block_on(c.run()),
            Self::Demo(c) => c.run(),
            Self::Bench(c) => c.run(),
            Self::Sim(c) => c.run(),
            Self::Devices(c) => c.run(),
            Self::Completions(c) => c.run(),
            Self::Man(c) => c.run(),
        }
    }
}

/// Runs the command that the arguments ask for.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse_from(mount::as_helper(std::env::args_os()));
    out::set_up(cli.command.name(), cli.quiet);
    log(cli.verbose, cli.quiet);
    more_descriptors();
    match cli.command.run() {
        Ok(code) => code,
        Err(failure) => {
            out::failure(&failure);
            failure.code()
        }
    }
}

/// The complete command line, for completions and manual pages.
fn command_line() -> clap::Command {
    Cli::command()
}

/// Logs to standard error. `RPCRDMA_LOG` takes precedence, in the syntax of tracing's `EnvFilter`.
fn log(verbose: u8, quiet: bool) {
    let level = match (verbose, quiet) {
        (0, true) => "off",
        // A program that is killed while it waits for a mount does not take its answer any more.
        (0, false) => "error,fuser::reply=off",
        (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("RPCRDMA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = out::stderr_is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}

/// Takes all the descriptors that the system lets us have: a server keeps files open, and a copy directories.
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // What was there before is enough for most.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A runtime for a command that talks to servers: one thread drives connections, a few more do local I/O.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .map_err(|e| Failure::of("the runtime cannot start", e))
}

/// Runs a command on a runtime of its own.
fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = runtime()?;
    let done = runtime.block_on(command);
    // Local I/O that hangs must not keep us.
    runtime.shutdown_background();
    done
}

/// The status of a command that may have reported failures along the way.
fn exit(failures: u64) -> ExitCode {
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::from(crate::failure::EXIT_FAILURE) }
}
