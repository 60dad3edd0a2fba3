//! The command line's grammar.

use std::{collections::BTreeMap, path::PathBuf};

use clap::{Arg, ArgAction, ArgMatches, FromArgMatches, Parser, Subcommand};
use shoal_daemon::config::{ConfigSources, KEYS, Key};

use crate::{blobs, configure, daemon, demo, key, peers, pull, status};

const EXAMPLES: &str = "\
Begin:
  shoal demo                                 a cluster on this machine, in one command
  shoal key generate --output cluster.key    a secret for a cluster of several machines
  shoal daemon --secret-file cluster.key --bootstrap node1:5051
  shoal configure containerd                 let containerd pull through the daemon

Exit codes: 0 done, 1 failed, 64 wrong usage or configuration, 69 no daemon running,
73 cannot write a file, 77 no permission.";

/// Pull container images from the cluster itself
///
/// Every node runs one daemon. It is the node's OCI registry mirror: layers come in verified chunks from the other
/// nodes, and from the upstream registry only once for the whole cluster.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, after_help = EXAMPLES, max_term_width = 110, disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon of this node
    #[command(after_help = daemon::AFTER_HELP)]
    Daemon(daemon::DaemonArgs),
    /// Show how this node's daemon is doing
    Status(status::StatusArgs),
    /// List the peers that this node knows
    Peers(peers::PeersArgs),
    /// List the blobs that this node has or is fetching
    Blobs(blobs::BlobsArgs),
    /// Fetch an image into this node's store before anybody asks for it
    #[command(after_help = pull::AFTER_HELP)]
    Pull(pull::PullArgs),
    /// Make cluster secrets
    Key(key::KeyArgs),
    /// Point a container runtime at the daemon
    Configure(configure::ConfigureArgs),
    /// Show a cluster at work on this machine
    Demo(demo::DemoArgs),
}

/// Every key of the configuration as a flag, and the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConfigArgs {
    pub(crate) config: Option<PathBuf>,
    pub(crate) flags: BTreeMap<String, Vec<String>>,
}

impl ConfigArgs {
    /// Together with this process's environment.
    pub(crate) fn sources(&self) -> ConfigSources {
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        let from_env = || env.get("SHOAL_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from);
        ConfigSources {
            file: self.config.clone().or_else(from_env),
            flags: self.flags.clone(),
            root: rustix::process::geteuid().is_root(),
            env,
        }
    }
}

impl clap::Args for ConfigArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.arg(config_arg()).args(KEYS.iter().map(key_arg))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = BTreeMap::new();
        for key in KEYS {
            if let Some(values) = matches.get_many::<String>(key.flag) {
                flags.insert(key.flag.to_owned(), values.cloned().collect());
            }
        }
        Ok(Self { config: matches.get_one("config").cloned(), flags })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Where a command finds the daemon of this node.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct NodeArgs {
    /// The daemon's configuration file, if its data directory is set there [env: SHOAL_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's data directory, which holds its control socket [env: SHOAL_DATA_DIR] [default: as the daemon's]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl NodeArgs {
    pub(crate) fn sources(&self) -> ConfigSources {
        let data_dir = self.data_dir.iter().map(|directory| ("data-dir".to_owned(), vec![directory.clone()]));
        ConfigArgs { config: self.config.clone(), flags: data_dir.collect() }.sources()
    }
}

fn config_arg() -> Arg {
    Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Read this TOML file; the environment overrules it, flags overrule both [env: SHOAL_CONFIG]")
}

fn key_arg(key: &Key) -> Arg {
    let more = if key.many { " (repeatable)" } else { "" };
    let default = if key.default == "none" { String::new() } else { format!(" [default: {}]", key.default) };
    let arg = Arg::new(key.flag).long(key.flag).value_name(key.form).help(format!(
        "{}{more} [env: {}]{default}",
        key.meaning,
        key.env()
    ));
    if key.many { arg.action(ArgAction::Append).value_delimiter(',') } else { arg.action(ArgAction::Set) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_grammar_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_takes_json() {
        let lines = [
            "shoal --json daemon --check",
            "shoal daemon --json",
            "shoal status --json",
            "shoal peers --json",
            "shoal blobs --json",
            "shoal pull alpine --json",
            "shoal key generate --json",
            "shoal configure containerd --json",
            "shoal configure --json k3s --remove",
            "shoal demo --json",
        ];
        for line in lines {
            assert!(parse(line).unwrap().json, "{line}");
        }
    }

    #[test]
    fn flags_reach_the_configuration_under_their_keys() {
        let line = "shoal daemon --zone z --upstream a.test=https://a.test --upstream b.test=https://b.test \
                    --bootstrap a:1,b:2 --limits-upload 1MB/s --config /f";
        let Command::Daemon(args) = parse(line).unwrap().command else { unreachable!("a daemon command") };
        let flags = &args.config.flags;
        assert_eq!(args.config.config, Some(PathBuf::from("/f")));
        assert_eq!(flags["zone"], ["z"]);
        assert_eq!(flags["upstream"], ["a.test=https://a.test", "b.test=https://b.test"]);
        assert_eq!(flags["bootstrap"], ["a:1", "b:2"]);
        assert_eq!(flags["limits-upload"], ["1MB/s"]);
        assert_eq!(flags.len(), 4, "what is not given does not hide the file's value");
    }

    #[test]
    fn wrong_usage_is_an_error_and_help_is_not() {
        for line in ["shoal", "shoal frobnicate", "shoal daemon --frobnicate", "shoal pull", "shoal key"] {
            assert!(parse(line).unwrap_err().use_stderr(), "{line}");
        }
        for line in ["shoal --help", "shoal --version", "shoal daemon --help", "shoal configure containerd --help"] {
            assert!(!parse(line).unwrap_err().use_stderr(), "{line}");
        }
    }
}
