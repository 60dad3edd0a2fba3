//! `shoal demo`: a whole rollout on one machine. An origin registry with a generated image, real daemons as processes, and
//! a client per node that pulls the image at the same instant and checks every byte.

pub mod client;
pub mod cluster;
pub mod image;
pub mod origin;
mod progress;
pub mod ready;
pub mod report;
pub mod scratch;
pub mod usage;

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use futures_util::future::join_all;
use shoal_proto::units::{ByteSize, Rate};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    client::{Pull, PullError},
    cluster::{Cluster, ClusterError, ClusterOptions, Node, Received},
    image::{Image, ImageError, ImageSpec},
    origin::{Origin, OriginOptions},
    progress::Progress,
    report::{NodeReport, OriginReport, Report, Words, human},
    scratch::ScratchError,
    usage::Usage,
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
    /// Size of the image, all layers together
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub size: ByteSize,
    /// Layers of the image, of uneven sizes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=127))]
    pub layers: u8,
    /// Cap on what each node sends to peers, and on what it receives, for example 25MB/s or 1Gbit/s
    #[arg(long, value_name = "RATE")]
    pub link_rate: Option<Rate>,
    /// Cap on what the origin sends to all nodes together
    #[arg(long, value_name = "RATE")]
    pub origin_rate: Option<Rate>,
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

fn system(what: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |source| DemoError::System { what, source }
}

/// Runs the demo and prints its report. Exit code 0 if every node has every byte, 1 if not, 130 after ctrl-c.
///
/// # Errors
/// See [`DemoError`]. Whatever the outcome: no process and no file is left behind.
pub async fn run(args: DemoArgs) -> Result<ExitCode, DemoError> {
    // A few sockets and pipes for each node go beyond the usual soft limit in large demos.
    crate::daemon::raise_file_limit();
    let mut signals = Signals::new().map_err(system("listen for signals"))?;
    let progress = Progress::new(args.json);
    let scratch = scratch::create(scratch::needed(args.size.0, args.nodes.into()))?;
    let mut cluster = Cluster::default();
    let played = tokio::select! {
        played = play(&args, progress, scratch.path(), &mut cluster) => played.map(Some),
        () = signals.next() => Ok(None),
    };
    let outcome = match played {
        Ok(Some((report, _origin))) => {
            if args.keep {
                progress::warn(&how_to_pull(cluster.nodes()));
                signals.next().await;
            }
            Ok(if report.verified() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    progress: Progress,
    dir: &std::path::Path,
    cluster: &mut Cluster,
) -> Result<(Report, Origin), DemoError> {
    let nodes = usize::from(args.nodes);
    let layers = report::counted(args.layers.into(), "layer");
    progress.say(&format!("Generating an image of {} in {layers}", human(args.size.0)));
    let image = generate(args, dir).await?;
    let origin = Origin::start(OriginOptions { rate: args.origin_rate, ..OriginOptions::of(image.clone()) });
    let origin = origin.await.map_err(system("start the origin registry"))?;
    let daemons = report::counted(args.nodes.into(), "daemon");
    progress.say(&format!("Starting {daemons} beside an origin registry at {}", origin.address()));
    let options = ClusterOptions {
        program: std::env::current_exe().map_err(system("find the program itself"))?,
        dir: dir.to_owned(),
        nodes,
        upstreams: vec![format!("{UPSTREAM}=http://{}", origin.address())],
        link_rate: args.link_rate,
        flags: Vec::new(),
    };
    cluster.start(&options).await?;
    progress.say(&format!("Pulling {UPSTREAM}/{REPOSITORY}:{TAG} through every daemon at the same instant"));
    let http = client::plain().map_err(io::Error::other).map_err(system("start an HTTP client"))?;
    let nodes = roll_out(&http, cluster.nodes(), &image, progress).await;
    let bound = report::bound_seconds(image.bytes(), nodes.len(), args.origin_rate, args.link_rate);
    let report = Report::new(image.bytes(), bound, nodes, OriginReport::new(origin.counts(), image.bytes()));
    print(args, &image, &report).map_err(system("write the report"))?;
    Ok((report, origin))
}

async fn generate(args: &DemoArgs, dir: &std::path::Path) -> Result<Image, DemoError> {
    let spec = ImageSpec {
        repository: REPOSITORY.into(),
        tag: TAG.into(),
        layers_bytes: args.size.0,
        layers: args.layers.into(),
        seed: SEED,
    };
    let dir = dir.to_owned();
    let made = tokio::task::spawn_blocking(move || Image::generate(&dir, &spec)).await;
    Ok(made.map_err(io::Error::other).map_err(system("generate the image"))??)
}

/// The image through every node, from one common start.
async fn roll_out(http: &reqwest::Client, nodes: &[Node], image: &Image, progress: Progress) -> Vec<NodeReport> {
    let before: Vec<(Usage, Received)> = join_all(nodes.iter().map(async |node| {
        // A node that cannot tell fails its pull too, and that will be in the report.
        (node.usage(), node.received().await.unwrap_or_default())
    }))
    .await;
    let received: Vec<Arc<AtomicU64>> = nodes.iter().map(|_| Arc::default()).collect();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let start = Instant::now();
    let pulls = join_all(nodes.iter().zip(&received).map(async |(node, received)| {
        let pull = Pull {
            registry: node.addresses.registry,
            repository: format!("{UPSTREAM}/{REPOSITORY}"),
            tag: TAG.into(),
            manifest: image.manifest.digest,
        };
        let outcome = client::pull(http, &pull, received).await;
        (outcome, start.elapsed().as_secs_f64())
    }));
    let pulled = tokio::select! {
        pulled = pulls => pulled,
        () = progress.watch(&names, &received, image.bytes()) => Vec::new(),
    };
    let reports = nodes.iter().zip(before).zip(pulled);
    join_all(reports.map(async |((node, before), (outcome, seconds))| {
        node_report(node, before, outcome, seconds, image.bytes()).await
    }))
    .await
}

async fn node_report(
    node: &Node,
    (idle, before): (Usage, Received),
    outcome: Result<u64, PullError>,
    seconds: f64,
    expected: u64,
) -> NodeReport {
    let verified = match outcome {
        Ok(bytes) => bytes == expected,
        Err(error) => {
            progress::warn(&format!("{}: {error}{}", node.name, node.log_tail()));
            false
        }
    };
    let after = node.received().await;
    if let Err(why) = &after {
        progress::warn(&format!("{}: cannot ask what it received: {why}", node.name));
    }
    let after = after.ok();
    let usage = node.usage();
    NodeReport {
        name: node.name.clone(),
        seconds: verified.then(|| report::rounded(seconds, 4)),
        from_origin: after.map(|after| after.from_origin.saturating_sub(before.from_origin)),
        from_peers: after.map(|after| after.from_peers.saturating_sub(before.from_peers)),
        verified,
        rss_idle_bytes: idle.rss_bytes,
        rss_peak_bytes: usage.rss_peak_bytes,
        cpu_seconds: usage.cpu_seconds.map(|seconds| report::rounded(seconds, 2)),
    }
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
