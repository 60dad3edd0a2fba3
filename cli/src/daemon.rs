//! `shoal daemon`: parse, build, run.

use std::{
    fmt::Write as _,
    fs::File,
    future::Future,
    io::{self, IsTerminal},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde::Serialize;
use shoal_daemon::{
    BuildError, Daemon,
    config::{Config, LogFormat, duration_text},
    credentials,
    registry::RegistryTls,
    secret::Secret,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::EnvFilter;

use crate::{
    args::ConfigArgs,
    demo::cluster::end_with_demo,
    failure::{Failure, GENERAL, SYSTEM, USAGE},
    output::Output,
};

pub(crate) const AFTER_HELP: &str = "\
Every flag may also come from the environment (SHOAL_*) or from the TOML file, which alone may hold credentials \
of upstreams:

  zone = \"eu-1a\"
  secret_file = \"/etc/shoal/cluster.key\"
  bootstrap = [\"shoal.kube-system.svc:5051\"]
  [limits]
  upload = \"1Gbit/s\"
  [upstreams.\"docker.io\"]
  username = \"team\"
  password_file = \"/etc/shoal/docker.token\"

A line `ready registry=... p2p=... observe=...` is logged when it serves.
SIGTERM or SIGINT end it in order, a second one at once.
Exit codes: 0 ended in order, 1 failed, 64 wrong configuration.";

/// Threads for file work at most: enough to keep a disk busy, few enough to bound memory.
const MAX_BLOCKING_THREADS: usize = 64;
/// How long file work that nobody waits for any more may hold up the exit.
const RUNTIME_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(crate) struct DaemonArgs {
    /// Check the configuration, print what it comes to, and exit
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

pub(crate) fn run(args: &DaemonArgs, output: Output) -> Result<ExitCode, Failure> {
    end_with_demo();
    let mut config = Config::load(args.config.sources()).map_err(|error| Failure::new(USAGE, error.to_string()))?;
    if output.is_json() {
        config.log = LogFormat::Json;
    }
    check_files(&mut config)?;
    if args.check {
        output.report(&Checked { configuration: &config, warnings: &config.warnings }, checked_text)?;
        return Ok(ExitCode::SUCCESS);
    }
    start_log(&config)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    raise_file_limit();
    let runtime = runtime()?;
    let code = match runtime.block_on(serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            failure.exit_code()
        }
    };
    runtime.shutdown_timeout(RUNTIME_GRACE);
    Ok(code)
}

/// The runtime of everything that moves bytes: one worker a core.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_name("shoal")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(SYSTEM, format!("cannot start a runtime: {error}")))
}

async fn serve(config: Config) -> Result<(), Failure> {
    // Watched from before the build, so that no early signal is missed.
    let stop = watch_signals()?;
    tokio::pin!(stop);
    let daemon = tokio::select! {
        built = Daemon::build(config) => built.map_err(|error| cannot_start(&error))?,
        () = &mut stop => return Ok(()),
    };
    daemon.run(stop).await.map_err(|error| Failure::new(GENERAL, error.to_string()))
}

/// What only shows when it is used is a mistake in the configuration all the same.
fn cannot_start(error: &BuildError) -> Failure {
    let configured = matches!(
        error,
        BuildError::Config(_)
            | BuildError::Secret(_)
            | BuildError::Credentials(_)
            | BuildError::Upstream(_)
            | BuildError::NeedsSecret(_)
    ) || matches!(error, BuildError::Certificate(error) if error.is_configured());
    Failure::new(if configured { USAGE } else { GENERAL }, format!("cannot start: {error}"))
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process on the spot.
fn watch_signals() -> Result<impl Future<Output = ()>, Failure> {
    let watch = |kind| signal(kind).map_err(|error| Failure::new(SYSTEM, format!("cannot watch for signals: {error}")));
    let mut terminate = watch(SignalKind::terminate())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let (first, stopped) = oneshot::channel();
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await.0;
        tracing::info!(signal = name, "stopping; a second signal ends at once");
        first.send(()).ok();
        let (name, number) = either(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "ending at once");
        std::process::exit(128 + number);
    });
    Ok(async move {
        // The watcher never drops its end before it has spoken.
        stopped.await.ok();
    })
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}

/// Finds out now, and as a mistake in the configuration, what would else fail in the middle of the start.
fn check_files(config: &mut Config) -> Result<(), Failure> {
    if let Some(file) = &config.secret_file {
        Secret::load(file).map_err(|error| Failure::new(USAGE, format!("secret_file: {error}")))?;
    }
    RegistryTls::check(config).map_err(|error| Failure::new(USAGE, error.to_string()))?;
    for upstream in &config.upstreams {
        if let Some(file) = &upstream.ca_file {
            readable(file).map_err(|error| {
                let place = format!("ca_file of upstream {}", upstream.name);
                Failure::new(USAGE, format!("{place}: cannot read {}: {error}", file.display()))
            })?;
        }
    }
    let opened = credentials::open(config).map_err(|error| Failure::new(USAGE, error.to_string()))?;
    config.warnings.extend(opened.warnings);
    Ok(())
}

fn readable(file: &Path) -> io::Result<()> {
    if File::open(file)?.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
}

fn start_log(config: &Config) -> Result<(), Failure> {
    // Unless told otherwise: what libraries say about single packets and peers is not for the operator.
    let quiet = if config.log_filter == "info" { "libp2p_swarm=warn,libp2p_kad=error," } else { "" };
    let filter = EnvFilter::try_new(format!("{quiet}{}", config.log_filter)).map_err(|error| {
        Failure::new(USAGE, format!("log: {error}; the form is a level or TARGET=LEVEL, with commas between"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match config.log {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(SYSTEM, format!("cannot start the log: {error}")))
}

/// A rollout holds a few thousand sockets; the soft limit of 1024 is a default of another age.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

#[derive(Serialize)]
struct Checked<'a> {
    configuration: &'a Config,
    warnings: &'a [String],
}

/// Every key and what it comes to; the upstreams have lines of their own.
fn checked_keys(config: &Config) -> Vec<(&'static str, String)> {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let addresses = |of: &[SocketAddr]| list(&of.iter().map(ToString::to_string).collect::<Vec<_>>());
    let file = |file: &Option<PathBuf>| or_none(file.as_ref().map(|file| file.display().to_string()));
    let files = |files: &[PathBuf]| files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
    let rate = |rate: &Option<shoal_proto::units::Rate>| or_none(rate.as_ref().map(ToString::to_string));
    vec![
        ("data_dir", config.data_dir.display().to_string()),
        ("registry_listen", addresses(&config.registry_listen)),
        ("registry_tls_listen", addresses(&config.registry_tls_listen)),
        ("registry_tls_cert", file(&config.registry_tls_cert)),
        ("registry_tls_key", file(&config.registry_tls_key)),
        ("p2p_listen", config.p2p_listen.to_string()),
        ("observe_listen", config.observe_listen.to_string()),
        ("secret_file", file(&config.secret_file)),
        ("bootstrap", list(&config.bootstrap)),
        ("default_upstream", or_none(config.default_upstream.clone())),
        ("credential_files", list(&files(&config.credential_files))),
        ("credential_provider_config", file(&config.credential_provider_config)),
        ("credential_provider_bin_dir", file(&config.credential_provider_bin_dir)),
        ("zone", or_none(config.zone.clone())),
        ("rack", or_none(config.rack.clone())),
        ("log", format!("{},{}", format!("{:?}", config.log).to_lowercase(), config.log_filter)),
        ("stream", format!("{:?}", config.stream).to_lowercase()),
        ("tag_ttl", duration_text(config.tag_ttl)),
        ("stale_if_error", duration_text(config.stale_if_error)),
        ("shutdown_grace", duration_text(config.shutdown_grace)),
        ("registry_hosts", list(&config.registry_hosts)),
        ("limits.upload", rate(&config.limits.upload)),
        ("limits.download", rate(&config.limits.download)),
        ("limits.origin", rate(&config.limits.origin)),
    ]
}

fn checked_text(checked: &Checked<'_>) -> String {
    let config = checked.configuration;
    let mut text = String::from("The configuration is fine.\n");
    // Writing to a string cannot fail.
    for (key, value) in checked_keys(config) {
        writeln!(text, "  {key:<27} {value}").ok();
    }
    for upstream in &config.upstreams {
        let account = upstream.username.as_ref().map_or(String::new(), |user| format!(" as {user}"));
        let file = upstream.credentials.as_ref();
        let file = file.map_or(String::new(), |file| format!(" with credentials from {}", file.display()));
        let access = upstream.access.name();
        let push = if upstream.push { ", pushes pass" } else { "" };
        let (name, url) = (&upstream.name, &upstream.url);
        writeln!(text, "  {:<27} {name} at {url}{account}{file}, access {access}{push}", "upstream").ok();
    }
    for warning in checked.warnings {
        writeln!(text, "warning: {warning}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use shoal_daemon::config::{ConfigSources, KEYS};

    use super::*;

    #[test]
    fn the_check_shows_every_key_by_its_name_and_values_as_they_can_be_written() {
        let config = Config::load(ConfigSources { root: true, ..ConfigSources::default() }).expect("defaults are fine");
        let shown = checked_keys(&config);
        let names: Vec<_> = shown.iter().map(|(key, _)| *key).collect();
        let keys: Vec<_> = KEYS.iter().map(|key| key.name).filter(|name| *name != "upstreams").collect();
        assert_eq!(names, keys);
        let written = shown.into_iter().filter(|(_, value)| value != "none");
        let env = written.map(|(name, value)| {
            let key = KEYS.iter().find(|key| key.name == name).expect("just compared");
            (key.env(), value)
        });
        let again =
            Config::load(ConfigSources { env: env.collect(), ..ConfigSources::default() }).expect("what is shown");
        assert_eq!(checked_keys(&again), checked_keys(&config));
    }
}
