//! Real daemons as processes of their own, on loopback, over one shared secret.

use std::{
    collections::VecDeque,
    fs, io,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::Rng as _;
use serde_json::Value;
use shoal_proto::units::Rate;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    client,
    ready::{Addresses, ready_line},
    usage::{self, Usage},
};

/// How long a daemon may take to log its `ready` line.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// How long the nodes may take to find one another.
const MEET_DEADLINE: Duration = Duration::from_secs(10);
const MEET_POLL: Duration = Duration::from_millis(50);
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a daemon may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// A routing table keeps 20 peers in each of its buckets: in a large cluster nobody sees all the others.
const PEERS_ENOUGH: usize = 20;
/// Tells a daemon the process id of its demo.
const DEMO_VARIABLE: &str = "SHOAL_DEMO_PROCESS";
/// Lines of a daemon's log that are kept for error messages, and bytes of one line.
const TAIL_LINES: usize = 20;
const LINE_MAX: u64 = 16 << 10;

/// How to start a [`Cluster`].
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// A binary that understands `daemon`.
    pub program: PathBuf,
    /// An existing directory for data, logs and the secret.
    pub dir: PathBuf,
    /// How many daemons.
    pub nodes: usize,
    /// Values of `--upstream`, `NAME=URL`.
    pub upstreams: Vec<String>,
    /// Cap of each node on bytes to peers, from peers and from origins.
    pub link_rate: Option<Rate>,
    /// Further flags for each daemon.
    pub flags: Vec<String>,
}

/// Why a cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A file or a process cannot be made.
    #[error("cannot {what}: {source}")]
    Setup {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A daemon ended or never got ready.
    #[error("{name} did not start: {why}{log}")]
    Start {
        /// Which one.
        name: String,
        /// What happened instead.
        why: String,
        /// The end of its log.
        log: LogTail,
    },
    /// The daemons run but do not see one another.
    #[error("the nodes did not find one another within {} s: {name} {why}{log}", MEET_DEADLINE.as_secs())]
    Meet {
        /// One that lacks peers.
        name: String,
        /// How many it sees, or why it cannot be asked.
        why: String,
        /// The end of its log.
        log: LogTail,
    },
}

fn setup(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    let what = what.into();
    |source| ClusterError::Setup { what, source }
}

/// The last lines that a daemon logged; prints as an indented block, or as nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail(Vec<String>);

impl std::fmt::Display for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.0.is_empty() {
            write!(f, "\n  its log ends with:")?;
        }
        self.0.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Running daemons. Dropping it kills them; [`Cluster::stop`] ends them in order.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Vec<Node>,
}

/// One running daemon.
#[derive(Debug)]
pub struct Node {
    /// `node1`, `node2`, ...
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub addresses: Addresses,
    http: reqwest::Client,
    process: Child,
    ready: Option<oneshot::Receiver<Addresses>>,
    tail: Arc<Mutex<VecDeque<String>>>,
    /// Reads its log as long as the node is watched.
    _reader: Option<AbortOnDropHandle<()>>,
}

/// What a node says that it has received so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Bytes from origins.
    pub from_origin: u64,
    /// Bytes from peers.
    pub from_peers: u64,
}

impl Cluster {
    /// Starts the daemons and waits until each is ready and sees all the others (in a
    /// large cluster: 20 of them). On an error (or when the future is
    /// dropped) what has started keeps running until `stop` or drop.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn start(&mut self, options: &ClusterOptions) -> Result<(), ClusterError> {
        let secret = options.dir.join("secret");
        write_secret(&secret).map_err(setup(format!("write {}", secret.display())))?;
        let http = client::plain().map_err(io::Error::other).map_err(setup("start an HTTP client"))?;
        let mut bootstrap = None;
        for number in 1..=options.nodes {
            self.nodes.push(Node::spawn(number, options, &secret, bootstrap, http.clone())?);
            if number == 1 {
                bootstrap = Some(self.nodes[0].ready().await?.p2p);
            }
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        self.meet().await
    }

    /// The nodes in the order of their names.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Ends all daemons: SIGTERM, and after a while SIGKILL. Afterwards none of them runs.
    pub async fn stop(&mut self) {
        for node in &self.nodes {
            node.terminate();
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        for node in &mut self.nodes {
            if tokio::time::timeout_at(deadline, node.process.wait()).await.is_err() {
                tracing::debug!(node = node.name, "does not end, killed");
                if let Err(error) = node.process.kill().await {
                    tracing::debug!(node = node.name, %error, "cannot be killed");
                }
            }
        }
        self.nodes.clear();
    }

    async fn meet(&mut self) -> Result<(), ClusterError> {
        let deadline = Instant::now() + MEET_DEADLINE;
        let others = self.nodes.len() - 1;
        let enough = others.min(PEERS_ENOUGH);
        for node in &mut self.nodes {
            loop {
                let why = match node.status().await.map(|status| peers_seen(&status)) {
                    Ok(Some(seen)) if seen >= enough => break,
                    Ok(Some(seen)) => format!("sees {seen} of {others} peers"),
                    Ok(None) => String::from("is not ready"),
                    Err(why) => format!("cannot be asked: {why}"),
                };
                if let Ok(Some(status)) = node.process.try_wait() {
                    return Err(ClusterError::Start {
                        name: node.name.clone(),
                        why: ended(status),
                        log: node.log_tail(),
                    });
                }
                if Instant::now() >= deadline {
                    return Err(ClusterError::Meet { name: node.name.clone(), why, log: node.log_tail() });
                }
                tokio::time::sleep(MEET_POLL).await;
            }
        }
        Ok(())
    }
}

impl Node {
    fn spawn(
        number: usize,
        options: &ClusterOptions,
        secret: &Path,
        bootstrap: Option<SocketAddr>,
        http: reqwest::Client,
    ) -> Result<Self, ClusterError> {
        let name = format!("node{number}");
        let data_dir = options.dir.join(&name);
        fs::create_dir(&data_dir).map_err(setup(format!("create {}", data_dir.display())))?;
        let log_file = options.dir.join(format!("{name}.log"));
        let log_file = fs::File::create(&log_file).map_err(setup(format!("create {}", log_file.display())))?;
        let mut command = command(options, &data_dir, secret, bootstrap);
        let mut process = command.spawn().map_err(setup(format!("start {} daemon", options.program.display())))?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (tell, ready) = oneshot::channel();
        let reader = process.stderr.take().map(|log| {
            AbortOnDropHandle::new(tokio::spawn(follow(log, tokio::fs::File::from_std(log_file), tail.clone(), tell)))
        });
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            name,
            pid: process.id().unwrap_or_default(),
            data_dir,
            addresses: Addresses { registry: unknown, p2p: unknown, observe: unknown },
            http,
            process,
            ready: Some(ready),
            tail,
            _reader: reader,
        })
    }

    async fn ready(&mut self) -> Result<Addresses, ClusterError> {
        let Some(ready) = self.ready.take() else { return Ok(self.addresses) };
        let why = match timeout(READY_DEADLINE, ready).await {
            Ok(Ok(addresses)) => {
                self.addresses = addresses;
                return Ok(addresses);
            }
            // Its log has ended; so has the process, or will at once.
            Ok(Err(_)) => match timeout(STOP_DEADLINE, self.process.wait()).await {
                Ok(Ok(status)) => ended(status),
                _ => String::from("it closed its log"),
            },
            Err(_) => format!("no `ready` line within {} s", READY_DEADLINE.as_secs()),
        };
        Err(ClusterError::Start { name: self.name.clone(), why, log: self.log_tail() })
    }

    /// `/v1/status`, or why there is none.
    ///
    /// # Errors
    /// The daemon does not answer in time, or not with JSON.
    pub async fn status(&self) -> Result<Value, String> {
        let url = format!("http://{}/v1/status", self.addresses.observe);
        let answer =
            async { self.http.get(url).timeout(STATUS_DEADLINE).send().await?.error_for_status()?.json().await };
        answer.await.map_err(|error: reqwest::Error| super::chain_of(&error))
    }

    /// What it has received so far, by its own account.
    ///
    /// # Errors
    /// The status cannot be had or lacks the totals.
    pub async fn received(&self) -> Result<Received, String> {
        let status = self.status().await?;
        let total = |key: &str| status["totals"][key].as_u64().ok_or_else(|| format!("no totals.{key} in /v1/status"));
        Ok(Received { from_origin: total("bytes_from_origin")?, from_peers: total("bytes_from_peers")? })
    }

    /// What its process has used so far; empty where the system does not tell.
    #[must_use]
    pub fn usage(&self) -> Usage {
        usage::of(self.pid)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> LogTail {
        LogTail(self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
    }

    fn terminate(&self) {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        // Without an id it has ended and was waited for.
        if let Some(pid) = pid
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            tracing::debug!(node = self.name, %error, "cannot be told to end");
        }
    }
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("it ended with exit code {code}"),
        None => format!("it was killed ({status})"),
    }
}

fn command(options: &ClusterOptions, data_dir: &Path, secret: &Path, bootstrap: Option<SocketAddr>) -> Command {
    let mut command = Command::new(&options.program);
    command.arg("daemon").arg("--data-dir").arg(data_dir).arg("--secret-file").arg(secret);
    for listen in ["--registry-listen", "--p2p-listen", "--observe-listen"] {
        command.args([listen, "127.0.0.1:0"]);
    }
    command.args(["--log", "json"]);
    for upstream in &options.upstreams {
        command.args(["--upstream", upstream]);
    }
    if let Some(first) = bootstrap {
        command.arg("--bootstrap").arg(first.to_string());
    }
    command.args(&options.flags);
    // Settings for the user's own daemon must not reach these; only the log level may.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("SHOAL_") && key != "SHOAL_LOG" {
            command.env_remove(key);
        }
    }
    if let Some(rate) = options.link_rate {
        for limit in ["SHOAL_LIMITS_UPLOAD", "SHOAL_LIMITS_DOWNLOAD", "SHOAL_LIMITS_ORIGIN"] {
            command.env(limit, rate.to_string());
        }
    }
    command.env(DEMO_VARIABLE, std::process::id().to_string());
    // A group of their own keeps a terminal's ctrl-c away from the daemons, so that they are ended in order.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Makes this process end with the demo that has started it, however that ends, SIGKILL included. For `shoal daemon` to
/// call first; does nothing in a process that no cluster has started.
pub fn end_with_demo() {
    #[cfg(target_os = "linux")]
    if let Some(demo) = std::env::var_os(DEMO_VARIABLE) {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
            tracing::debug!(%error, "may outlive the demo");
        }
        // It may have ended before the signal was asked for.
        let parent = getppid().map(|parent| parent.as_raw_nonzero().to_string());
        if parent.as_deref() != demo.to_str() {
            std::process::exit(0);
        }
    }
}

fn write_secret(path: &Path) -> io::Result<()> {
    let mut key = [0; 32];
    rand::rng().fill_bytes(&mut key);
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", BASE64_STANDARD.encode(key))
}

/// Copies a daemon's log to a file, keeps its end, and tells the addresses of the first `ready` line.
async fn follow(
    log: impl AsyncRead + Unpin,
    mut file: tokio::fs::File,
    tail: Arc<Mutex<VecDeque<String>>>,
    tell: oneshot::Sender<Addresses>,
) {
    let mut tell = Some(tell);
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut log).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        // A full disk must not block the daemon: keep reading.
        if let Err(error) = file.write_all(&line).await {
            tracing::debug!(%error, "a line of a daemon's log is lost");
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if tell.is_some()
            && let Some(addresses) = ready_line(text)
            && let Some(tell) = tell.take()
            && tell.send(addresses).is_err()
        {
            tracing::debug!("nobody waits for a daemon that got ready");
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.to_owned());
    }
    if let Err(error) = file.flush().await {
        tracing::debug!(%error, "the end of a daemon's log is lost");
    }
}

/// How many peers a node knows in the DHT, by its status. A daemon that does not tell has met them when it is ready.
fn peers_seen(status: &Value) -> Option<usize> {
    let seen = &status["dht_peers"];
    match seen.as_u64() {
        Some(seen) => usize::try_from(seen).ok(),
        None => seen.as_array().map(Vec::len).or_else(|| (status["ready"] == true).then_some(usize::MAX)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn peers_are_counted_by_the_dht_and_else_the_node_must_be_ready() {
        for (status, seen) in [
            (serde_json::json!({ "dht_peers": 4, "ready": true }), Some(4)),
            (serde_json::json!({ "dht_peers": [{}, {}], "ready": true }), Some(2)),
            (serde_json::json!({ "ready": true }), Some(usize::MAX)),
            (serde_json::json!({ "ready": false }), None),
            (serde_json::json!({}), None),
        ] {
            assert_eq!(peers_seen(&status), seen, "{status}");
        }
    }

    #[test]
    fn the_secret_is_one_line_of_32_bytes_that_only_its_owner_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_secret(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(BASE64_STANDARD.decode(text.strip_suffix('\n').unwrap()).unwrap().len(), 32);
    }

    /// A stand-in for the daemon: a shell script.
    fn script(dir: &Path, body: &str) -> ClusterOptions {
        let program = dir.join("fake");
        fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        ClusterOptions {
            program,
            dir: dir.to_owned(),
            nodes: 1,
            upstreams: vec!["demo.test=http://127.0.0.1:1".into()],
            link_rate: None,
            flags: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_daemon_that_ends_before_it_is_ready_is_reported_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let options = script(dir.path(), "echo 'bad configuration: no such zone' >&2; exit 64");
        let error = Cluster::default().start(&options).await.unwrap_err().to_string();
        assert!(error.contains("node1 did not start: it ended with exit code 64"), "{error}");
        assert!(error.ends_with("bad configuration: no such zone"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions { program: "/nonexistent/shoal".into(), ..script(dir.path(), "") };
        let error = Cluster::default().start(&options).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot start /nonexistent/shoal daemon: "), "{error}");
    }

    #[tokio::test]
    async fn daemons_get_their_flags_and_are_gone_after_stop() {
        let dir = tempfile::tempdir().unwrap();
        let body = format!(
            "echo \"$@\" > {}/flags\necho ready registry=127.0.0.1:1 p2p=127.0.0.1:2 observe=127.0.0.1:3 >&2\nexec sleep 600",
            dir.path().display()
        );
        let options = script(dir.path(), &body);
        let mut cluster = Cluster::default();
        cluster
            .nodes
            .push(Node::spawn(1, &options, &dir.path().join("secret"), None, client::plain().unwrap()).unwrap());
        let addresses = cluster.nodes[0].ready().await.unwrap();
        assert_eq!(addresses.observe.port(), 3);
        let flags = fs::read_to_string(dir.path().join("flags")).unwrap();
        for flag in [
            "daemon --data-dir",
            "--p2p-listen 127.0.0.1:0",
            "--upstream demo.test=http://127.0.0.1:1",
            "--secret-file",
        ] {
            assert!(flags.contains(flag), "{flags}");
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(cluster.nodes[0].pid).unwrap()).unwrap();
        cluster.stop().await;
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
