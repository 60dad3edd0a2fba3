//! The daemon under test, one or many.

use std::{
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Client, RequestBuilder};
use rustix::process::Signal;
use shoal_proto::{
    digest::Digest,
    peer::{Contact, PeerId},
    status::Status,
};
use tempfile::TempDir;

use crate::{
    eventually,
    image::random_bytes,
    process::{Place, Process, read_log},
    raw,
};

/// How long a daemon may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program, with the command line of `shoal`.
    pub binary: PathBuf,
    /// Upstreams as `NAME=URL`.
    pub upstreams: Vec<String>,
    /// Peers to begin with.
    pub bootstrap: Vec<SocketAddr>,
    /// The file with the cluster secret.
    pub secret: Option<PathBuf>,
    /// Registry, p2p and observe.
    pub listen: [String; 3],
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
    /// Which network it sees.
    pub place: Place,
}

impl Settings {
    /// On free loopback ports, with one upstream `origin.test` at this URL.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, origin: &str) -> Self {
        Self {
            binary: binary.into(),
            upstreams: vec![format!("origin.test={origin}")],
            bootstrap: Vec::new(),
            secret: None,
            listen: ["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"].map(String::from),
            arguments: Vec::new(),
            environment: Vec::new(),
            place: Place::Here,
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn with(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The command line that starts a daemon on a data directory.
    #[must_use]
    pub fn command(&self, data: &Path) -> std::process::Command {
        let mut command = self.place.command(&self.binary);
        command.arg("daemon").arg("--data-dir").arg(data);
        for (flag, address) in ["--registry-listen", "--p2p-listen", "--observe-listen"].iter().zip(&self.listen) {
            command.arg(flag).arg(address);
        }
        for upstream in &self.upstreams {
            command.arg("--upstream").arg(upstream);
        }
        for address in &self.bootstrap {
            command.arg("--bootstrap").arg(address.to_string());
        }
        if let Some(secret) = &self.secret {
            command.arg("--secret-file").arg(secret);
        }
        command.args(&self.arguments);
        // Nothing of the tester's own settings shall leak in.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SHOAL_")) {
            command.env_remove(name);
        }
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command.env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().cloned());
        command
    }
}

/// Where a ready daemon listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// For clients.
    pub registry: SocketAddr,
    /// For peers.
    pub p2p: SocketAddr,
    /// Health, metrics, status.
    pub observe: SocketAddr,
}

/// One daemon. Killed when dropped, its data directory deleted.
#[derive(Debug)]
pub struct Daemon {
    settings: Settings,
    directory: TempDir,
    process: Option<Process>,
    addresses: Addresses,
    client: Client,
}

impl Daemon {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready: with its log.
    pub async fn start(settings: Settings) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Self {
            settings,
            directory,
            process: None,
            addresses: Addresses { registry: nowhere, p2p: nowhere, observe: nowhere },
            client: client(),
        };
        daemon.up().await;
        daemon
    }

    /// Starts it again on the same data directory and the same ports.
    ///
    /// # Panics
    /// If it does not become ready: with its log.
    pub async fn up(&mut self) {
        let from = self.log().len();
        let command = self.settings.command(&self.data());
        let mut process = Process::spawn(command, &self.log_file());
        let log_file = self.log_file();
        let addresses = eventually(READY, "the line `ready registry=... p2p=... observe=...`", || {
            let log = read_log(&log_file).split_off(from);
            let ended = process.ended();
            async move {
                assert!(ended.is_none(), "the daemon ended with {ended:?}:\n{log}");
                log.lines().find_map(parse_ready)
            }
        })
        .await;
        self.process = Some(process);
        self.addresses = addresses;
        let Addresses { registry, p2p, observe } = addresses;
        self.settings.listen = [registry, p2p, observe].map(|address| address.to_string());
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Panics
    /// If it is not running, or takes longer than 30 seconds.
    pub async fn terminate(&mut self) -> ExitStatus {
        let process = self.process.take().expect("the daemon is running");
        process.terminate(READY).await
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.ended().is_none())
    }

    /// The most memory that its process has had at once, in bytes.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let process = self.process.as_ref().expect("the daemon is running");
        let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a process has a status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.and_then(|peak| peak.trim().parse::<u64>().ok()).expect("it tells its peak") * 1024
    }

    /// How it was started; changes count from the next [`Self::up`] on.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// For clients: `IP:PORT`.
    #[must_use]
    pub fn registry(&self) -> SocketAddr {
        self.addresses.registry
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Everything that it logged, in all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(&self.log_file())
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// A GET of a path of its registry.
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("http://{}{path}", self.addresses.registry))
    }

    /// A HEAD of a path of its registry.
    pub fn head(&self, path: &str) -> RequestBuilder {
        self.client.head(format!("http://{}{path}", self.addresses.registry))
    }

    /// The whole of a blob.
    ///
    /// # Panics
    /// If it is not served in full.
    pub async fn blob(&self, repository: &str, digest: &str) -> Vec<u8> {
        let (status, body) = self.try_blob(repository, digest).await;
        assert_eq!(status, 200, "{digest}: {}", String::from_utf8_lossy(&body[..body.len().min(300)]));
        body
    }

    /// Status and body of a GET of a blob; the body is empty if it broke.
    ///
    /// # Panics
    /// If there is no answer.
    pub async fn try_blob(&self, repository: &str, digest: &str) -> (u16, Vec<u8>) {
        let request = self.get(&format!("/v2/origin.test/{repository}/blobs/{digest}"));
        let response = request.send().await.unwrap_or_else(|error| panic!("GET {digest}: {error}\n{}", self.log()));
        let status = response.status().as_u16();
        (status, response.bytes().await.map(|bytes| bytes.to_vec()).unwrap_or_default())
    }

    /// Its report, over the control socket (reachable from every network namespace). None while it is not running.
    pub async fn try_status(&self) -> Option<Status> {
        let request = "GET /v1/status HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n";
        let socket = self.data().join("control.sock");
        let answer = raw::over_unix(&socket, request, Duration::from_secs(10)).await.ok()?;
        (answer.status == 200).then(|| serde_json::from_slice(&answer.body).expect("a status report is valid JSON"))
    }

    /// Its report.
    ///
    /// # Panics
    /// If it gives none.
    pub async fn status(&self) -> Status {
        self.try_status().await.unwrap_or_else(|| panic!("no status report\n{}", self.log()))
    }

    /// Who and where it is, for its peers.
    ///
    /// # Panics
    /// If it does not tell.
    pub async fn contact(&self) -> Contact {
        let hex = self.status().await.name.peer;
        let digest: Digest = format!("sha256:{hex}").parse().expect("64 hex digits");
        let peer = PeerId(digest.as_bytes().try_into().expect("32 bytes"));
        Contact { peer, address: self.addresses.p2p }
    }

    /// Waits until discovery knows so many other nodes.
    pub async fn wait_for_peers(&self, count: u32) {
        let what = format!("{} knowing {count} peers", self.addresses.p2p);
        eventually(READY, &what, || async {
            self.try_status().await.filter(|status| status.dht_peers >= count).map(drop)
        })
        .await;
    }
}

/// A client without proxies and without patience for a daemon that has none.
///
/// # Panics
/// If TLS cannot be set up.
#[must_use]
pub fn client() -> Client {
    Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().expect("an HTTP client can be built")
}

/// `... ready registry=A p2p=A observe=A`; several registry addresses have commas between.
fn parse_ready(line: &str) -> Option<Addresses> {
    let (_, rest) = line.split_once("ready registry=")?;
    let mut words = rest.split_whitespace();
    let registry = words.next()?.split(',').next()?.parse().ok()?;
    let p2p = words.next()?.strip_prefix("p2p=")?.parse().ok()?;
    let observe = words.next()?.strip_prefix("observe=")?.parse().ok()?;
    Some(Addresses { registry, p2p, observe })
}

/// Daemons that know one another.
#[derive(Debug)]
pub struct Cluster {
    /// In the order of their start.
    pub nodes: Vec<Daemon>,
    secret: TempDir,
    settings: Settings,
}

impl Cluster {
    /// Starts `count` daemons with a secret of their own and waits until each knows all the others.
    pub async fn start(settings: Settings, count: u32) -> Self {
        let secret = tempfile::tempdir().expect("a temporary directory can be made");
        let mut cluster = Self { nodes: Vec::new(), secret, settings };
        write_secret(&cluster.secret_file());
        for _ in 0..count {
            cluster.add_unknown().await;
        }
        cluster.wait_until_joined().await;
        cluster
    }

    /// Starts one more and waits until it and the others know one another.
    pub async fn add(&mut self) -> &Daemon {
        self.add_unknown().await;
        self.wait_until_joined().await;
        self.nodes.last().expect("one was just added")
    }

    /// The file with the cluster's secret.
    #[must_use]
    pub fn secret_file(&self) -> PathBuf {
        self.secret.path().join("cluster.key")
    }

    /// Ends one as a power cut would.
    pub fn kill(&mut self, at: usize) {
        self.nodes[at].kill();
    }

    async fn add_unknown(&mut self) {
        let mut settings = self.settings.clone();
        settings.secret = Some(self.secret_file());
        settings.bootstrap = self.nodes.iter().take(3).map(|node| node.addresses().p2p).collect();
        self.nodes.push(Daemon::start(settings).await);
    }

    async fn wait_until_joined(&self) {
        let others = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX).saturating_sub(1);
        for node in &self.nodes {
            node.wait_for_peers(others).await;
        }
    }
}

/// Writes a cluster secret that only its owner may read.
///
/// # Panics
/// If the file cannot be written.
pub fn write_secret(file: &Path) {
    let key = random_bytes(rand::random(), 32);
    fs::write(file, format!("{}\n", BASE64_STANDARD.encode(key))).expect("the secret can be written");
    fs::set_permissions(file, Permissions::from_mode(0o600)).expect("the secret can be made private");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read() {
        let line =
            "2026-11-21T06:00:00Z  INFO shoal: ready registry=127.0.0.1:1,[::1]:9 p2p=127.0.0.1:2 observe=127.0.0.1:3";
        let addresses = parse_ready(line).expect("this is such a line");
        assert_eq!([addresses.registry, addresses.p2p, addresses.observe].map(|a| a.port()), [1, 2, 3]);
        assert_eq!(parse_ready("ready to go"), None);
    }
}
