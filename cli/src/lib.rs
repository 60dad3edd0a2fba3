//! The command line: one binary, `shoal`.
//!
//! `shoal daemon` and `shoal demo` run the daemon library; every other command talks to a running daemon through its
//! control socket, or writes the configuration of a client.

mod args;
mod blobs;
mod configure;
mod control;
mod daemon;
pub mod demo;
mod failure;
mod key;
mod output;
mod peers;
mod pull;
mod status;

use std::{future::Future, process::ExitCode};

use clap::Parser;

use args::{Args, Command};
use failure::Failure;
use output::Output;

/// Parses the command line, runs the command and tells how it went.
#[must_use]
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell if not even this can be printed.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(failure::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match run(args) {
        Ok(code) => code,
        Err(failure) => {
            output::complain(&failure);
            failure.exit_code()
        }
    }
}

fn run(args: Args) -> Result<ExitCode, Failure> {
    let output = Output::new(args.json);
    match args.command {
        Command::Daemon(args) => daemon::run(&args, output),
        Command::Status(args) => on_one_thread(status::run(args, output)),
        Command::Peers(args) => on_one_thread(peers::run(args, output)),
        Command::Blobs(args) => on_one_thread(blobs::run(args, output)),
        Command::Pull(args) => on_one_thread(pull::run(args, output)),
        Command::Key(args) => key::run(args, output),
        Command::Configure(args) => configure::run(args, output),
        Command::Demo(args) => daemon::runtime()?.block_on(demo::run(args)).map_err(|error| {
            let code = if error.is_usage() { failure::USAGE } else { failure::GENERAL };
            Failure::new(code, format!("the demo failed: {error}"))
        }),
    }
}

/// Commands that only talk to a daemon need no more.
fn on_one_thread(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(failure::SYSTEM, format!("cannot start a runtime: {error}")))?
        .block_on(command)
}
