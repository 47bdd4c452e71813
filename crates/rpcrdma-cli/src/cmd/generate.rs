//! `rpcrdma completions` and `rpcrdma man`: what a distribution wants to install.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;
use clap_complete::Shell;

use super::command_line;
use crate::failure::{Failure, Outcome};

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  source <(rpcrdma completions bash)
  rpcrdma completions zsh > ~/.zfunc/_rpcrdma
  rpcrdma completions fish > ~/.config/fish/completions/rpcrdma.fish")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command_line(), "rpcrdma", &mut script);
        std::io::stdout().write_all(&script).map_err(|e| Failure::of("standard output", e))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Write manual pages to a directory
#[derive(Args)]
#[command(after_help = "\
Example:
  rpcrdma man /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// The directory; it is made if it does not exist
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Outcome {
        let fail = |e: std::io::Error| Failure::of(self.dir.display(), e);
        std::fs::create_dir_all(&self.dir).map_err(fail)?;
        clap_mangen::generate_to(command_line(), &self.dir).map_err(fail)?;
        Ok(ExitCode::SUCCESS)
    }
}
