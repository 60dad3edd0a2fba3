//! `shoal demo`: a whole rollout on one machine. An origin registry with a generated image, real daemons as processes, and
//! a client per node that pulls the image at the same instant and checks every byte.

pub mod client;
pub mod cluster;
pub mod fault;
pub mod image;
pub mod layers;
pub mod origin;
mod progress;
pub mod ready;
pub mod report;
mod rollout;
pub mod scratch;
pub mod usage;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use shoal_proto::units::{ByteSize, Rate};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    cluster::{Cluster, ClusterError, ClusterOptions, Node},
    fault::Fault,
    image::{Image, ImageError, ImageSpec},
    layers::Layers,
    origin::{Origin, OriginOptions},
    progress::Progress,
    report::{Broken, Caps, OriginReport, Report, Words, human},
    rollout::Rollout,
    scratch::ScratchError,
};

/// The name of the embedded origin among the nodes' upstreams.
const UPSTREAM: &str = "demo.test";
const REPOSITORY: &str = "demo/image";
const TAG: &str = "v1";
const SEED: u64 = 5050;
/// As shells have it for a program that ctrl-c has ended.
const INTERRUPTED: u8 = 130;

/// Show a whole rollout on this machine: an origin registry, daemons, and clients that check every byte
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// How many daemons pull the image
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub nodes: u16,
    /// Size of the image, all layers together [default: 512MiB]
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Layers of the image: how many, of uneven sizes; or the size of each, in place of --size: 160MiB,64MiB
    #[arg(long, value_name = "N|SIZE,...", default_value_t = Layers::Count(3))]
    pub layers: Layers,
    /// Cap on what each node sends to peers, and on what it receives, for example 25MB/s or 1Gbit/s
    #[arg(long, value_name = "RATE")]
    pub link_rate: Option<Rate>,
    /// Cap on what the origin sends to all nodes together
    #[arg(long, value_name = "RATE")]
    pub origin_rate: Option<Rate>,
    /// Break something on the way, and see that the rollout goes on
    #[arg(long, value_name = "FAULT")]
    pub fault: Option<Fault>,
    /// Leave everything running until ctrl-c, for pulls by docker, podman or containerd
    #[arg(long)]
    pub keep: bool,
    /// Print the report as JSON, and nothing else
    #[arg(long)]
    pub json: bool,
}

/// Why a demo cannot be shown. That a node fails to pull is no error but part of the report.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// No room.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// No image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No origin, no signals, no own path, or no standard output.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// No cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl DemoError {
    /// Whether the command line is to blame.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_) | Self::Image(ImageError::Shape { .. }))
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::System { what, source }
}

impl DemoArgs {
    /// The bytes of each layer, if all options go together.
    fn check(&self) -> Result<Vec<u64>, DemoError> {
        let refused = |why: &str| Err(DemoError::Usage(why.into()));
        if self.size.is_some() && matches!(self.layers, Layers::Sizes(_)) {
            return refused("--size: the sizes that --layers gives already say it; leave it out");
        }
        if let Some(fault) = self.fault {
            let named = clap::ValueEnum::to_possible_value(&fault);
            let name = named.as_ref().map_or("", clap::builder::PossibleValue::get_name);
            let checked = fault.check(self.nodes, self.link_rate);
            checked.map_err(|why| DemoError::Usage(format!("--fault {name}: {why}")))?;
        }
        let sizes = self.layers.sizes(self.size)?;
        match sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size)) {
            Some(_) => Ok(sizes),
            None => refused("--layers: too large"),
        }
    }
}

/// Runs the demo and prints its report. Exit code 0 if every surviving node has every byte and what was to break did, 1
/// if not, 130 after ctrl-c.
///
/// # Errors
/// See [`DemoError`]. Whatever the outcome: no process and no file is left behind.
pub async fn run(args: DemoArgs) -> Result<ExitCode, DemoError> {
    let sizes = args.check()?;
    // A few sockets and pipes for each node go beyond the usual soft limit in large demos.
    crate::daemon::raise_file_limit();
    let mut signals = Signals::new().map_err(system("listen for signals"))?;
    let progress = Progress::new(args.json);
    let scratch = scratch::create(scratch::needed(sizes.iter().sum(), args.nodes.into()))?;
    let mut cluster = Cluster::default();
    let played = tokio::select! {
        played = play(&args, sizes, progress, scratch.path(), &mut cluster) => played.map(Some),
        () = signals.next() => Ok(None),
    };
    let outcome = match played {
        Ok(Some((report, _origin))) => {
            if args.keep {
                progress::warn(&how_to_pull(cluster.nodes()));
                signals.next().await;
            }
            Ok(if report.succeeded() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Ok(None) => Ok(ExitCode::from(INTERRUPTED)),
        Err(error) => Err(error),
    };
    cluster.stop().await;
    if let Err(error) = scratch.close() {
        progress::warn(&format!("shoal demo: cannot remove its temporary directory: {error}"));
    }
    outcome
}

/// SIGINT, SIGTERM and SIGHUP.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

async fn play(
    args: &DemoArgs,
    sizes: Vec<u64>,
    progress: Progress,
    dir: &std::path::Path,
    cluster: &mut Cluster,
) -> Result<(Report, Origin), DemoError> {
    let nodes = usize::from(args.nodes);
    let layers = report::counted(sizes.len() as u64, "layer");
    progress.say(&format!("Generating an image of {} in {layers}", human(sizes.iter().sum())));
    let image = generate(sizes, dir).await?;
    let origin = Origin::start(OriginOptions { rate: args.origin_rate, ..OriginOptions::of(image.clone()) });
    let origin = origin.await.map_err(system("start the origin registry"))?;
    let daemons = report::counted(args.nodes.into(), "daemon");
    progress.say(&format!("Starting {daemons} beside an origin registry at {}", origin.address()));
    let mut options = ClusterOptions {
        program: std::env::current_exe().map_err(system("find the program itself"))?,
        dir: dir.to_owned(),
        nodes,
        upstreams: vec![format!("{UPSTREAM}=http://{}", origin.address())],
        link_rate: args.link_rate,
        ..ClusterOptions::default()
    };
    if let Some(fault) = args.fault {
        fault.prepare(&mut options);
    }
    cluster.start(&options).await?;
    progress.say(&format!("Pulling {UPSTREAM}/{REPOSITORY}:{TAG} through every daemon at the same instant"));
    let http = client::plain().map_err(io::Error::other).map_err(system("start an HTTP client"))?;
    let rollout = Rollout { http: &http, nodes: cluster.nodes(), image: &image, origin: &origin, fault: args.fault };
    let (reports, struck) = rollout.run(progress).await;
    let counts = origin.counts();
    let story = match &struck {
        Some(struck) => struck.story(cluster.nodes(), &counts).await,
        None => None,
    };
    let slow = args.fault.and_then(|fault| fault.slow_node(nodes));
    let broken = Broken { fault: args.fault, story, slow };
    let caps = Caps { origin: args.origin_rate, link: args.link_rate };
    let report = Report::new(image.bytes(), caps, reports, OriginReport::new(counts, image.bytes()), broken);
    print(args, &image, &report).map_err(system("write the report"))?;
    Ok((report, origin))
}

async fn generate(layers: Vec<u64>, dir: &std::path::Path) -> Result<Image, DemoError> {
    let spec = ImageSpec { repository: REPOSITORY.into(), tag: TAG.into(), layers, seed: SEED };
    let dir = dir.to_owned();
    let made = tokio::task::spawn_blocking(move || Image::generate(&dir, &spec)).await;
    Ok(made.map_err(io::Error::other).map_err(system("generate the image"))??)
}

fn print(args: &DemoArgs, image: &Image, report: &Report) -> io::Result<()> {
    let text = if args.json {
        let mut json = serde_json::to_string_pretty(report)?;
        json.push('\n');
        json
    } else {
        let caps: Vec<String> = [("origin", args.origin_rate), ("each link", args.link_rate)]
            .into_iter()
            .filter_map(|(what, rate)| rate.map(|rate| format!("{what} at {rate}")))
            .collect();
        let words = Words {
            image: &format!("{UPSTREAM}/{REPOSITORY}:{TAG}"),
            layers: image.layers.len() as u64,
            blobs: image.blobs().count() as u64,
            caps: caps.join(" and "),
        };
        let text = report.text(&words).map_err(io::Error::other)?;
        format!("\n{text}")
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `shoal demo | head` has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn how_to_pull(nodes: &[Node]) -> String {
    let mut text = String::from("\nEverything keeps running until ctrl-c. The nodes' registries:\n");
    for node in nodes {
        let addresses = &node.addresses;
        text.push_str(&format!(
            "  {:<8} {}   status at http://{}/\n",
            node.name, addresses.registry, addresses.observe
        ));
    }
    if let Some(node) = nodes.first() {
        let image = format!("{}/{UPSTREAM}/{REPOSITORY}:{TAG}", node.addresses.registry);
        text.push_str(&format!(
            "Pull with your own engine (the image holds random bytes, there is nothing to run in it):\n  \
             docker pull {image}\n  \
             podman pull --tls-verify=false {image}\n  \
             ctr images pull --plain-http {image}\n"
        ));
    }
    text
}

/// An error with its causes, which reqwest does not print by itself.
fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
