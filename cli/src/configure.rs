//! `shoal configure`: lets a container runtime or builder pull through the daemon.

mod charliecloud;
mod check;
mod containerd;
mod containers;
mod docker;
mod edit;
#[cfg(test)]
mod hostile_tests;
mod hosts;
mod k3s;
mod names;
mod report;

use std::{path::Path, process::ExitCode};

use clap::Subcommand;

use self::{
    containers::Client,
    edit::{Part, Plan},
    report::Report,
};
use crate::{failure::Failure, output::Output};

const AFTER_HELP: &str = "\
While the daemon is away every client goes to the registry itself, except Charliecloud, and Docker by the daemon's address.

Each command keeps a copy of a file that it changes (NAME.shoal-backup), changes nothing when run again, and takes back \
exactly what it did with --remove. --dry-run prints the changes and makes none.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ConfigureArgs {
    #[command(subcommand)]
    command: ConfigureCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigureCommand {
    /// Make the daemon a registry mirror of containerd (Kubernetes, nerdctl, ctr with --hosts-dir)
    #[command(long_about = containerd::LONG_ABOUT)]
    Containerd(containerd::ContainerdArgs),
    /// Make the daemon the mirror of Docker Hub for the Docker engine
    #[command(long_about = docker::LONG_ABOUT)]
    Docker(docker::DockerArgs),
    /// Make the daemon a registry mirror of podman, buildah and skopeo
    #[command(long_about = containers::PODMAN)]
    Podman(containers::ContainersArgs),
    /// Make the daemon a registry mirror of CRI-O
    #[command(long_about = containers::CRIO)]
    Crio(containers::ContainersArgs),
    /// Make the daemon a registry mirror of k3s (RKE2 with --file)
    #[command(long_about = k3s::LONG_ABOUT)]
    K3s(k3s::K3sArgs),
    /// Make the daemon a registry mirror of Apptainer and SingularityCE
    #[command(long_about = containers::APPTAINER)]
    Apptainer(containers::ContainersArgs),
    /// Let Charliecloud's ch-image trust the daemon's TLS listener
    #[command(long_about = charliecloud::LONG_ABOUT)]
    Charliecloud(charliecloud::CharliecloudArgs),
}

pub(crate) fn run(args: ConfigureArgs, output: Output) -> Result<ExitCode, Failure> {
    let report = match args.command {
        ConfigureCommand::Containerd(args) => containerd::configure(&args),
        ConfigureCommand::Docker(args) => docker::configure(&args),
        ConfigureCommand::Podman(args) => containers::configure(&args, Client::Podman),
        ConfigureCommand::Crio(args) => containers::configure(&args, Client::Crio),
        ConfigureCommand::K3s(args) => k3s::configure(&args),
        ConfigureCommand::Apptainer(args) => containers::configure(&args, Client::Apptainer),
        ConfigureCommand::Charliecloud(args) => charliecloud::configure(&args),
    }?;
    output.report(&report, report::text)?;
    Ok(ExitCode::SUCCESS)
}

/// What every client's command takes.
#[derive(Debug, Clone, Default, clap::Args)]
struct MirrorArgs {
    /// A registry to mirror, as image names have it (docker.io); repeatable [default: as told above; with --remove: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    registry: Vec<String>,
    /// Where the daemon's registry listens
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5050")]
    endpoint: String,
    /// Take the mirror away and restore what was there
    #[arg(long)]
    remove: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl MirrorArgs {
    fn endpoint(&self) -> Result<String, Failure> {
        names::endpoint(&self.endpoint)
    }

    /// Puts the part in or takes it out, as was asked.
    fn plan(&self, path: &Path, part: &impl Part) -> Result<Plan, Failure> {
        if self.remove { Plan::take(path, part) } else { Plan::put(path, part) }
    }

    /// Does what was planned, if it is to be done. All is planned before anything is written, so that a refusal leaves
    /// nothing half done.
    fn carry_out(&self, plans: Vec<Plan>) -> Result<Report, Failure> {
        if !self.dry_run {
            plans.iter().try_for_each(Plan::carry_out)?;
        }
        Ok(Report::new(plans, self.dry_run, self.remove))
    }
}
