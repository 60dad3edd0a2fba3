//! `shoal configure`: lets a container runtime pull through the daemon.

mod check;
mod containerd;
mod hosts;

use std::process::ExitCode;

use clap::Subcommand;

use crate::{failure::Failure, output::Output};

#[derive(Debug, clap::Args)]
pub(crate) struct ConfigureArgs {
    #[command(subcommand)]
    command: ConfigureCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigureCommand {
    /// Make the daemon a registry mirror of containerd (Kubernetes, nerdctl, ctr with --hosts-dir)
    #[command(long_about = containerd::LONG_ABOUT)]
    Containerd(containerd::ContainerdArgs),
}

pub(crate) fn run(args: ConfigureArgs, output: Output) -> Result<ExitCode, Failure> {
    match args.command {
        ConfigureCommand::Containerd(args) => containerd::run(&args, output),
    }
}
