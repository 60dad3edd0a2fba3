//! Real daemons as processes of their own, on loopback, over one shared secret.

mod command;
mod log;
mod node;

use std::{io, path::PathBuf, time::Duration};

use serde_json::Value;
use shoal_proto::units::Rate;
use tokio::time::Instant;

use super::client;

pub use self::{
    command::end_with_demo,
    log::LogTail,
    node::{Node, Received, Streaming},
};

/// How long the nodes may take to find one another.
const MEET_DEADLINE: Duration = Duration::from_secs(10);
const MEET_POLL: Duration = Duration::from_millis(50);
/// How long a daemon may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// A routing table keeps 20 peers in each of its buckets: in a large cluster nobody sees all the others.
const PEERS_ENOUGH: usize = 20;

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
    /// One of the nodes gets another cap.
    pub slow: Option<Slow>,
    /// Whether the nodes can find one another in the DHT. Without, there can be no more nodes than a secret file may
    /// have keys: 16.
    pub dht: bool,
}

/// A node with a cap of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// Which, from 1.
    pub number: usize,
    /// In place of the others' cap.
    pub rate: Rate,
}

impl Default for ClusterOptions {
    /// No nodes, no caps, no faults.
    fn default() -> Self {
        Self {
            program: PathBuf::new(),
            dir: PathBuf::new(),
            nodes: 0,
            upstreams: Vec::new(),
            link_rate: None,
            flags: Vec::new(),
            slow: None,
            dht: true,
        }
    }
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

/// Running daemons. Dropping it kills them; [`Cluster::stop`] ends them in order.
#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts the daemons and waits until each is ready and, with the DHT, sees all the others (in a large cluster: 20
    /// of them). On an error (or when the future is dropped) what has started keeps running until `stop` or drop.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn start(&mut self, options: &ClusterOptions) -> Result<(), ClusterError> {
        let secrets = command::write_secrets(options);
        let secrets = secrets.map_err(setup(format!("write a secret in {}", options.dir.display())))?;
        let http = client::plain().map_err(io::Error::other).map_err(setup("start an HTTP client"))?;
        let mut bootstrap = None;
        for (number, secret) in (1..).zip(&secrets) {
            self.nodes.push(Node::spawn(number, options, secret, bootstrap, http.clone())?);
            if number == 1 {
                bootstrap = Some(self.nodes[0].ready().await?.p2p);
            }
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        if options.dht { self.meet().await } else { Ok(()) }
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
            node.ended_by(deadline).await;
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
                if let Some(why) = node.end() {
                    return Err(ClusterError::Start { name: node.name.clone(), why, log: node.log_tail() });
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
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

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
            ..ClusterOptions::default()
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
            "echo \"$@\" upload $SHOAL_LIMITS_UPLOAD >> {}/flags\necho ready registry=127.0.0.1:1 p2p=127.0.0.1:2 observe=127.0.0.1:3 >&2\nexec sleep 600",
            dir.path().display()
        );
        let options = ClusterOptions {
            nodes: 2,
            link_rate: Some(Rate(5000)),
            slow: Some(Slow { number: 2, rate: Rate(100) }),
            ..script(dir.path(), &body)
        };
        let mut cluster = Cluster::default();
        for number in [1, 2] {
            let http = client::plain().unwrap();
            cluster.nodes.push(Node::spawn(number, &options, &dir.path().join("secret"), None, http).unwrap());
            let addresses = cluster.nodes[number - 1].ready().await.unwrap();
            assert_eq!(addresses.observe.port(), 3);
        }
        let flags = fs::read_to_string(dir.path().join("flags")).unwrap();
        for flag in [
            "daemon --data-dir",
            "--p2p-listen 127.0.0.1:0",
            "--upstream demo.test=http://127.0.0.1:1",
            "--secret-file",
            "upload 5kB/s",
            "upload 100B/s",
        ] {
            assert!(flags.contains(flag), "{flags}");
        }
        let pids =
            [0, 1].map(|at| rustix::process::Pid::from_raw(i32::try_from(cluster.nodes[at].pid).unwrap()).unwrap());
        cluster.nodes[0].kill().unwrap();
        cluster.stop().await;
        assert!(pids.iter().all(|pid| rustix::process::test_kill_process(*pid).is_err()));
    }
}
