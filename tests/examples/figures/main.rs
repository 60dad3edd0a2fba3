//! What Shoal costs on this machine: `cargo run --release -p shoal-tests --example figures [-- --json]`.
//!
//! Build the daemon first: `cargo build --release -p shoal-cli`. Everything is measured in one run, in rounds that take
//! turns, because other load shifts all figures together: quote ratios of one run, not figures of two. Each round starts
//! fresh daemons:
//!
//! - *origin*: the first node pulls the blob from an origin registry (in this process) through its `/v2`;
//! - *local hit*: the first node serves the sealed blob over its `/v2`, beside nginx with `sendfile` on the same file;
//! - *node to node*: the second node pulls it through its `/v2` from the first, the origin sending nothing; beside one
//!   connection of the data plane alone, from memory to nowhere, both ends in this process.
//!
//! Several `--program NAME=PATH` compare builds of the daemon in one run.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a measuring tool")]

mod fetch;
mod nginx;
mod options;
mod plane;
mod results;

use std::{
    error::Error,
    io::Write as _,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use shoal_cli::demo::{
    cluster::{Cluster, ClusterOptions, Node},
    image::{Image, ImageSpec},
    origin::{Origin, OriginOptions},
};

use self::{
    nginx::Nginx,
    options::{Options, Program},
    results::{Results, Sample, Subject},
};

type Failure = Box<dyn Error + Send + Sync>;

const UPSTREAM: &str = "figures.test";
const REPOSITORY: &str = "figures/blob";
/// Times that each server serves the blob in one round: processor time is counted in ticks of 10 ms.
const HITS: usize = 3;
/// Longest wait for a blob to be durable.
const SEAL_DEADLINE: Duration = Duration::from_secs(60);
const SEAL_POLL: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("figures: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let options = Options::from_args(std::env::args().skip(1))?;
    let scratch = tempfile::Builder::new().prefix("shoal-figures-").tempdir()?;
    let bench = Bench::prepare(&options, scratch.path()).await?;
    let mut results = Results::new(&options, bench.nginx_version.clone());
    for round in 0..options.rounds {
        // Each program is first as often as any other.
        for turn in 0..options.programs.len() {
            let program = &options.programs[(round + turn) % options.programs.len()];
            let dir = scratch.path().join(format!("round{round}-{turn}"));
            std::fs::create_dir(&dir)?;
            let mut cluster = Cluster::default();
            let outcome = tokio::select! {
                outcome = bench.round(round, program, &dir, &mut cluster, &mut results) => outcome,
                _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            };
            cluster.stop().await;
            outcome?;
            std::fs::remove_dir_all(&dir)?;
        }
        eprintln!("round {} of {} done", round + 1, options.rounds);
    }
    results.finish(scratch).print(options.json)
}

/// Fills as much memory as a pull will, and gives it back. The host of a virtual machine takes freed pages away, and their
/// next use costs the guest up to 2 s/GB of processor time: more than everything that is measured here.
async fn warm(dir: &Path, bytes: u64) -> Result<(), Failure> {
    let path = dir.join("warm");
    tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::create(&path)?;
        let piece = vec![1; 1 << 20];
        for _ in 0..bytes.div_ceil(1 << 20) * 5 / 4 {
            file.write_all(&piece)?;
        }
        drop(file);
        std::fs::remove_file(&path)
    })
    .await??;
    Ok(())
}

/// Waits until a blob has its name: its last byte goes out a little earlier.
async fn sealed(file: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + SEAL_DEADLINE;
    while !file.exists() {
        if Instant::now() > deadline {
            return Err(format!("{} is not there", file.display()).into());
        }
        tokio::time::sleep(SEAL_POLL).await;
    }
    Ok(())
}

/// What all rounds share.
struct Bench {
    image: Image,
    origin: Origin,
    nginx_version: Option<String>,
}

impl Bench {
    async fn prepare(options: &Options, dir: &Path) -> Result<Self, Failure> {
        let spec = ImageSpec { repository: REPOSITORY.into(), tag: "v1".into(), layers: vec![options.size.0], seed: 1 };
        let dir = dir.to_owned();
        let image = tokio::task::spawn_blocking(move || Image::generate(&dir, &spec)).await??;
        let origin = Origin::start(OriginOptions::of(image.clone())).await?;
        Ok(Self { image, origin, nginx_version: nginx::version().await })
    }

    async fn round(
        &self,
        round: usize,
        program: &Program,
        dir: &Path,
        cluster: &mut Cluster,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let options = ClusterOptions {
            program: program.path.clone(),
            dir: dir.to_owned(),
            nodes: 2,
            upstreams: vec![format!("{UPSTREAM}=http://{}", self.origin.address())],
            ..ClusterOptions::default()
        };
        cluster.start(&options).await?;
        let [first, second] = cluster.nodes() else { return Err("there are not two nodes".into()) };
        let idle = [first.usage().rss_bytes, second.usage().rss_bytes];
        warm(dir, self.image.layers[0].size).await?;
        let sample = self.pull(first, &[first]).await?;
        results.add(&program.name, Subject::Origin, sample);
        self.local_hits(round, program, first, dir, results).await?;
        results.add("data plane", Subject::Peer, plane::sample(self.image.layers[0].size).await?);
        warm(dir, self.image.layers[0].size).await?;
        let before = self.origin.counts().body_bytes;
        let sample = self.pull(second, &[first, second]).await?;
        if self.origin.counts().body_bytes != before {
            return Err("the second node asked the origin: this was no pull from node to node".into());
        }
        results.add(&program.name, Subject::Peer, sample);
        results.memory(&program.name, idle, [first.usage().rss_peak_bytes, second.usage().rss_peak_bytes]);
        if round == 0 {
            let (address, path) = self.place(second);
            fetch::verify(address, path, self.image.layers[0].digest).await?;
        }
        Ok(())
    }

    /// The sealed blob from the first node, beside nginx on the very same file.
    async fn local_hits(
        &self,
        round: usize,
        program: &Program,
        node: &Node,
        dir: &Path,
        results: &mut Results,
    ) -> Result<(), Failure> {
        let blob = &self.image.layers[0];
        let hex = blob.digest.to_string().split_once(':').map(|(_, hex)| hex.to_owned()).unwrap_or_default();
        let file = node.data_dir.join("blobs/sha256").join(&hex[..2]).join(&hex);
        sealed(&file).await?;
        let nginx = match &self.nginx_version {
            Some(_) => Some(Nginx::start(dir, &file)?),
            None => None,
        };
        for turn in 0..2 {
            if (round + turn).is_multiple_of(2) {
                results.add(&program.name, Subject::Local, self.pull_times(node, HITS).await?);
            } else if let Some(nginx) = &nginx {
                let before = nginx.cpu_seconds();
                let seconds = fetch::times(nginx.address(), nginx::PATH.into(), blob.size, HITS).await?;
                results.add(
                    "nginx",
                    Subject::Local,
                    Sample::new(blob.size, seconds, &[(before, nginx.cpu_seconds())], HITS),
                );
            }
        }
        if let Some(nginx) = nginx {
            nginx.stop().await?;
        }
        Ok(())
    }

    async fn pull_times(&self, node: &Node, times: usize) -> Result<Sample, Failure> {
        let (address, path) = self.place(node);
        let size = self.image.layers[0].size;
        let before = node.usage().cpu_seconds;
        let seconds = fetch::times(address, path, size, times).await?;
        Ok(Sample::new(size, seconds, &[(before, node.usage().cpu_seconds)], times))
    }

    /// One pull through `node`, and the processor time of all of `watched`.
    async fn pull(&self, node: &Node, watched: &[&Node]) -> Result<Sample, Failure> {
        let (address, path) = self.place(node);
        let size = self.image.layers[0].size;
        let before: Vec<_> = watched.iter().map(|node| node.usage().cpu_seconds).collect();
        let seconds = fetch::times(address, path, size, 1).await?;
        let after = watched.iter().map(|node| node.usage().cpu_seconds);
        let spent: Vec<_> = before.into_iter().zip(after).collect();
        Ok(Sample::new(size, seconds, &spent, 1))
    }

    fn place(&self, node: &Node) -> (std::net::SocketAddr, String) {
        let digest = self.image.layers[0].digest;
        (node.addresses.registry, format!("/v2/{UPSTREAM}/{REPOSITORY}/blobs/{digest}"))
    }
}
