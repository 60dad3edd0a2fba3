//! The image through every node, from one common start.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    REPOSITORY, TAG, UPSTREAM,
    client::{self, Pull, PullError},
    cluster::{Node, Received},
    fault::{Fault, Struck},
    image::Image,
    origin::Origin,
    progress::{self, Progress},
    report::{self, NodeReport, Outcome},
    usage::Usage,
};

/// What takes part.
pub(super) struct Rollout<'a> {
    pub(super) http: &'a reqwest::Client,
    pub(super) nodes: &'a [Node],
    pub(super) image: &'a Image,
    pub(super) origin: &'a Origin,
    pub(super) fault: Option<Fault>,
}

/// How a pull through one node ended.
enum Pulled {
    Done(Result<u64, PullError>),
    /// The others were done, and nobody expected it of this one.
    BrokenOff,
}

impl Rollout<'_> {
    /// Pulls through every node, while the fault strikes. What came out for each node, and what broke.
    pub(super) async fn run(&self, progress: Progress) -> (Vec<NodeReport>, Option<Struck>) {
        let before: Vec<(Usage, Received)> = join_all(self.nodes.iter().map(async |node| {
            // A node that cannot tell fails its pull too, and that will be in the report.
            (node.usage(), node.received().await.unwrap_or_default())
        }))
        .await;
        let received: Vec<Arc<AtomicU64>> = self.nodes.iter().map(|_| Arc::default()).collect();
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let (pulled, struck) = tokio::select! {
            outcome = self.pull_and_strike(&received) => outcome,
            () = progress.watch(&names, &received, self.image.bytes()) => (Vec::new(), None),
        };
        let parts = self.nodes.iter().zip(before).zip(pulled).zip(&received).enumerate();
        let reports = join_all(parts.map(async |(at, (((node, before), (pulled, seconds)), received))| {
            let outcome = self.outcome(node, pulled, struck.as_ref().and_then(Struck::killed) == Some(at));
            let facts = Facts { seconds, before, received: received.load(Ordering::Relaxed) };
            node_report(node, outcome, facts).await
        }))
        .await;
        (reports, struck)
    }

    async fn pull_and_strike(&self, received: &[Arc<AtomicU64>]) -> (Vec<(Pulled, f64)>, Option<Struck>) {
        let start = Instant::now();
        let slow = self.fault.and_then(|fault| fault.slow_node(self.nodes.len()));
        let healthy = AtomicUsize::new(self.nodes.len() - usize::from(slow.is_some()));
        let all_done = CancellationToken::new();
        let pulls = join_all(self.nodes.iter().zip(received).enumerate().map(async |(at, (node, received))| {
            let pull = self.pull(node, received);
            let pulled = if slow == Some(at) {
                tokio::select! {
                    done = pull => Pulled::Done(done),
                    () = all_done.cancelled() => Pulled::BrokenOff,
                }
            } else {
                let done = pull.await;
                if healthy.fetch_sub(1, Ordering::Relaxed) == 1 {
                    all_done.cancel();
                }
                Pulled::Done(done)
            };
            (pulled, start.elapsed().as_secs_f64())
        }));
        let strike = async {
            match self.fault {
                Some(fault) => fault.strike(self.nodes, self.origin, self.image.bytes(), start).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(pulls, strike);
        let mut struck = None;
        loop {
            tokio::select! {
                pulled = &mut pulls => return (pulled, struck),
                what = &mut strike, if struck.is_none() => struck = Some(what),
            }
        }
    }

    async fn pull(&self, node: &Node, received: &Arc<AtomicU64>) -> Result<u64, PullError> {
        let pull = Pull {
            registry: node.addresses.registry,
            repository: format!("{UPSTREAM}/{REPOSITORY}"),
            tag: TAG.into(),
            manifest: self.image.manifest.digest,
        };
        client::pull(self.http, &pull, received).await
    }

    fn outcome(&self, node: &Node, pulled: Pulled, killed: bool) -> Outcome {
        match pulled {
            _ if killed => Outcome::Killed,
            Pulled::BrokenOff => Outcome::Unfinished,
            Pulled::Done(Ok(bytes)) if bytes == self.image.bytes() => Outcome::Complete,
            Pulled::Done(Ok(_)) => Outcome::Failed,
            Pulled::Done(Err(error)) => {
                progress::warn(&format!("{}: {error}{}", node.name, node.log_tail()));
                Outcome::Failed
            }
        }
    }
}

/// What was seen of a node.
struct Facts {
    /// From the common start to the end of its pull.
    seconds: f64,
    before: (Usage, Received),
    /// Bytes, by its client.
    received: u64,
}

async fn node_report(node: &Node, outcome: Outcome, facts: Facts) -> NodeReport {
    let Facts { seconds, before: (idle, before), received } = facts;
    let after = if outcome == Outcome::Killed { None } else { Some(node.received().await) };
    if let Some(Err(why)) = &after {
        progress::warn(&format!("{}: cannot ask what it received: {why}", node.name));
    }
    let after = after.and_then(Result::ok);
    let usage = node.usage();
    let complete = outcome == Outcome::Complete;
    NodeReport {
        name: node.name.clone(),
        outcome,
        seconds: complete.then(|| report::rounded(seconds, 4)),
        received,
        from_origin: after.map(|after| after.from_origin.saturating_sub(before.from_origin)),
        from_peers: after.map(|after| after.from_peers.saturating_sub(before.from_peers)),
        verified: complete,
        rss_idle_bytes: idle.rss_bytes,
        rss_peak_bytes: usage.rss_peak_bytes,
        cpu_seconds: usage.cpu_seconds.map(|seconds| report::rounded(seconds, 2)),
    }
}
