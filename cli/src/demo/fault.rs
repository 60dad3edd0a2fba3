//! What `--fault` breaks, and how: always from outside, as the world would. The daemons are those that everybody runs.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use shoal_proto::units::Rate;
use tokio::time::{Instant, sleep};

use super::{
    cluster::{ClusterOptions, Node, Slow},
    origin::{Origin, OriginCounts},
    report::{counted, rounded},
};

/// The share of the image, in hundredths, that has left the origin when something breaks on the way.
const PROGRESS: u64 = 40;
/// The slow node's rate is the others' divided by this.
const SLOWNESS: u64 = 50;
/// How long the origin refuses.
const REFUSAL: Duration = Duration::from_secs(3);
/// A secret file holds at most so many keys, and without the DHT each node needs one of its own.
const KEYS_MAX: u16 = 16;
/// Between two looks at who streams from the origin.
const LOOK_POLL: Duration = Duration::from_millis(10);

/// What breaks during a demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The daemon that streams from the origin is killed (SIGKILL) when 40 % of the image has left the origin
    KillHolder,
    /// The last node sends and receives at a fiftieth of --link-rate; the demo ends when the others are done
    SlowNode,
    /// At 40 % the origin breaks off what it sends, and answers GETs with 429 and Retry-After: 1 for 3 s
    #[value(name = "origin-429")]
    #[serde(rename = "origin-429")]
    Origin429,
    /// No two nodes meet in the DHT: each has another first key in its secret file, as in the middle of a rotation
    NoDht,
}

impl Fault {
    /// Whether a demo of so many nodes and with this cap can show it.
    ///
    /// # Errors
    /// What it lacks.
    pub(super) fn check(self, nodes: u16, link_rate: Option<Rate>) -> Result<(), String> {
        match self {
            Self::KillHolder | Self::SlowNode if nodes < 2 => Err("it needs --nodes 2 or more".into()),
            Self::SlowNode if link_rate.is_none() => {
                Err("it needs --link-rate, of which the slow node has less".into())
            }
            Self::NoDht if nodes > KEYS_MAX => {
                Err(format!("it needs --nodes {KEYS_MAX} or fewer: each has a key of its own in all secret files"))
            }
            Self::KillHolder | Self::SlowNode | Self::Origin429 | Self::NoDht => Ok(()),
        }
    }

    /// Breaks what is broken from the beginning.
    pub(super) fn prepare(self, options: &mut ClusterOptions) {
        match self {
            Self::SlowNode => {
                let rate = options.link_rate.map(|rate| Rate((rate.0 / SLOWNESS).max(1)));
                options.slow = rate.map(|rate| Slow { number: options.nodes, rate });
            }
            Self::NoDht => options.dht = false,
            Self::KillHolder | Self::Origin429 => {}
        }
    }

    /// The node that is slow from the beginning, counted from 0.
    pub(super) fn slow_node(self, nodes: usize) -> Option<usize> {
        match self {
            Self::SlowNode => nodes.checked_sub(1),
            Self::KillHolder | Self::Origin429 | Self::NoDht => None,
        }
    }

    /// Breaks what breaks on the way, once, and tells what. If the moment never comes, it waits for ever.
    pub(super) async fn strike(self, nodes: &[Node], origin: &Origin, image_bytes: u64, start: Instant) -> Struck {
        let moment = origin.sent(image_bytes / 100 * PROGRESS);
        let what = match self {
            Self::SlowNode => What::Slow,
            Self::NoDht => What::NoDht,
            Self::Origin429 => {
                moment.await;
                origin.refuse(REFUSAL);
                What::Refusal
            }
            Self::KillHolder => {
                moment.await;
                What::Killed { node: kill_holder(nodes).await }
            }
        };
        let sent = origin.counts().body_bytes.saturating_mul(100).checked_div(image_bytes).unwrap_or(100);
        Struck { what, seconds: rounded(start.elapsed().as_secs_f64(), 2), percent: sent }
    }
}

/// Kills the node with the most left to stream from the origin.
async fn kill_holder(nodes: &[Node]) -> usize {
    loop {
        let streams = join_all(nodes.iter().map(Node::streaming)).await;
        let streams = streams.iter().enumerate().filter_map(|(at, stream)| stream.map(|stream| (stream.left, at)));
        if let Some((_, at)) = streams.max()
            && nodes[at].kill().is_ok()
        {
            return at;
        }
        sleep(LOOK_POLL).await;
    }
}

/// What broke, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Struck {
    pub(super) what: What,
    /// From the common start.
    pub(super) seconds: f64,
    /// Of the image, that had left the origin.
    pub(super) percent: u64,
}

/// What broke. Nodes are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Killed { node: usize },
    Slow,
    Refusal,
    NoDht,
}

impl Struck {
    pub(super) const fn killed(&self) -> Option<usize> {
        match self.what {
            What::Killed { node } => Some(node),
            What::Slow | What::Refusal | What::NoDht => None,
        }
    }

    /// What happened, in one sentence; none if what was broken did not get in anybody's way.
    pub(super) async fn story(&self, nodes: &[Node], origin: &OriginCounts) -> Option<String> {
        let Self { what, seconds, percent } = self;
        let when = format!("after {seconds:.2} s, when {percent} % of the image had left the origin");
        match *what {
            What::Killed { node } => {
                Some(format!("{}, which streamed from the origin, was killed (SIGKILL) {when}", nodes[node].name))
            }
            What::Slow => {
                let name = nodes.last().map(|node| &node.name)?;
                Some(format!("{name} sent and received at a fiftieth of the others' rate"))
            }
            What::Refusal if origin.broken == 0 && origin.refused == 0 => None,
            What::Refusal => Some(format!(
                "{when}, the origin broke off {} and answered all GETs with 429 for {} s: {} of them",
                counted(origin.broken, "stream"),
                REFUSAL.as_secs(),
                origin.refused
            )),
            What::NoDht => {
                let known = join_all(nodes.iter().map(Node::dht_peers)).await;
                let alone = known.iter().all(|known| known.is_none_or(|known| known == 0));
                alone.then(|| String::from("no node met another one in the DHT"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn a_fault_has_one_name_on_the_command_line_and_in_the_report() {
        for fault in Fault::value_variants() {
            let name = fault.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(serde_json::to_value(fault).ok(), name.map(serde_json::Value::from), "{fault:?}");
        }
    }

    #[test]
    fn a_demo_that_cannot_show_a_fault_is_told_what_it_lacks() {
        let rate = Some(Rate(1000));
        for (fault, nodes, link_rate, good) in [
            (Fault::KillHolder, 1, rate, false),
            (Fault::KillHolder, 2, None, true),
            (Fault::SlowNode, 1, rate, false),
            (Fault::SlowNode, 5, None, false),
            (Fault::SlowNode, 5, rate, true),
            (Fault::Origin429, 1, None, true),
            (Fault::NoDht, 16, None, true),
            (Fault::NoDht, 17, None, false),
        ] {
            assert_eq!(fault.check(nodes, link_rate).is_ok(), good, "{fault:?} {nodes} {link_rate:?}");
        }
    }

    #[test]
    fn the_last_node_is_the_slow_one() {
        let mut options = ClusterOptions { nodes: 5, link_rate: Some(Rate(1000)), ..ClusterOptions::default() };
        Fault::SlowNode.prepare(&mut options);
        assert_eq!(options.slow, Some(Slow { number: 5, rate: Rate(20) }));
        assert!(options.dht);
    }

    #[test]
    fn without_the_dht_only_the_dht_is_broken() {
        let mut options = ClusterOptions::default();
        Fault::NoDht.prepare(&mut options);
        assert_eq!((options.dht, options.slow), (false, None));
    }
}
