//! One daemon: its process, and what it says of itself.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    process::Child,
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ClusterError, ClusterOptions,
    command::command,
    log::{LogTail, Tail, follow},
    setup,
};
use crate::demo::{
    chain_of,
    ready::Addresses,
    usage::{self, Usage},
};

/// How long a daemon may take to log its `ready` line.
const READY_DEADLINE: Duration = Duration::from_secs(20);
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a daemon whose log has ended may take to end too.
const END_DEADLINE: Duration = Duration::from_secs(5);

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
    tail: Tail,
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

/// What a node streams from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// Bytes of the blob that it does not have yet.
    pub left: u64,
}

impl Node {
    pub(super) fn spawn(
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
        let mut command = command(options, number, &data_dir, secret, bootstrap);
        let mut process = command.spawn().map_err(setup(format!("start {} daemon", options.program.display())))?;
        let tail = Tail::default();
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

    pub(super) async fn ready(&mut self) -> Result<Addresses, ClusterError> {
        let Some(ready) = self.ready.take() else { return Ok(self.addresses) };
        let why = match timeout(READY_DEADLINE, ready).await {
            Ok(Ok(addresses)) => {
                self.addresses = addresses;
                return Ok(addresses);
            }
            // Its log has ended; so has the process, or will at once.
            Ok(Err(_)) => match timeout(END_DEADLINE, self.process.wait()).await {
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
        answer.await.map_err(|error: reqwest::Error| chain_of(&error))
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

    /// The largest rest of a blob that it streams from the origin; none if it streams nothing, or cannot be asked.
    pub async fn streaming(&self) -> Option<Streaming> {
        largest_stream(&self.status().await.ok()?)
    }

    /// How many peers it knows through the DHT; none if it cannot be asked or does not tell.
    pub async fn dht_peers(&self) -> Option<u64> {
        self.status().await.ok()?["dht_peers"].as_u64()
    }

    /// What its process has used so far; empty where the system does not tell.
    #[must_use]
    pub fn usage(&self) -> Usage {
        usage::of(self.pid)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> LogTail {
        self.tail.so_far()
    }

    /// Why its process has ended, if it has.
    pub(super) fn end(&mut self) -> Option<String> {
        self.process.try_wait().ok().flatten().map(ended)
    }

    /// Ends the process as a crash would: SIGKILL, no goodbye to anybody.
    ///
    /// # Errors
    /// The system refuses, or it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    pub(super) fn terminate(&self) {
        if let Err(error) = self.signal(Signal::TERM) {
            tracing::debug!(node = self.name, %error, "cannot be told to end");
        }
    }

    /// Waits for the end of the process; kills it at the deadline.
    pub(super) async fn ended_by(&mut self, deadline: Instant) {
        if timeout_at(deadline, self.process.wait()).await.is_err() {
            tracing::debug!(node = self.name, "does not end, killed");
            if let Err(error) = self.process.kill().await {
                tracing::debug!(node = self.name, %error, "cannot be killed");
            }
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // Without an id it has ended and was waited for.
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(kill_process(pid.ok_or(io::ErrorKind::NotFound)?, signal)?)
    }
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("it ended with exit code {code}"),
        None => format!("it was killed ({status})"),
    }
}

fn largest_stream(status: &Value) -> Option<Streaming> {
    let fetches = status["fetches"].as_array()?.iter();
    let streams = fetches.filter(|fetch| fetch["lease"] == true && fetch["from_origin"].as_u64() > Some(0));
    let left = |fetch: &Value| fetch["size"].as_u64()?.checked_sub(fetch["bytes"].as_u64()?);
    streams.filter_map(left).filter(|left| *left > 0).max().map(|left| Streaming { left })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_streams_what_it_holds_the_lease_of_and_has_begun_and_not_finished() {
        let fetch = |lease: bool, from_origin: u64, bytes: u64| json!({ "lease": lease, "from_origin": from_origin, "bytes": bytes, "size": 100 });
        for (fetches, left) in [
            (vec![], None),
            (vec![fetch(false, 50, 50)], None),
            (vec![fetch(true, 0, 50)], None),
            (vec![fetch(true, 100, 100)], None),
            (vec![fetch(true, 90, 90), fetch(true, 10, 40), fetch(false, 1, 1)], Some(60)),
        ] {
            let status = json!({ "fetches": fetches });
            assert_eq!(largest_stream(&status).map(|streaming| streaming.left), left, "{status}");
        }
        assert_eq!(largest_stream(&json!({})), None);
    }
}
