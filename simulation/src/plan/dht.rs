//! How the model of the DHT behaves.

use std::time::Duration;

use serde::Deserialize;

use super::{Span, Window};

/// The DHT: it names trackers and holders of a digest, some time after it was asked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DhtPlan {
    /// From a question to its answer.
    pub locate: Span,
    /// From an announcement until others can find it.
    pub publish: Span,
    /// From a node's death until it is no longer named, neither as a tracker nor as a holder. A node that is back before
    /// that was never gone; one that is back later is named again `publish` after its return.
    pub staleness: Span,
    /// Trackers named for a digest: the closest nodes.
    pub trackers: usize,
    /// Holders named for a digest: the first ones that announced it, later ones are dropped.
    pub providers_max: usize,
    /// When it answers nothing. A question asked then is answered, `locate` later, from what the node knows by itself (see
    /// `table`), without holders. An announcement made then counts as made when the outage ends.
    pub outages: Vec<Window>,
    /// Other nodes that each node knows by itself in an outage, drawn at random once: the closest `trackers` of them are
    /// named as trackers. 0: none at all.
    pub table: usize,
}

impl Default for DhtPlan {
    fn default() -> Self {
        Self {
            locate: Span::millis(2),
            publish: Span::millis(10),
            staleness: Span::millis(10_000),
            trackers: 8,
            providers_max: 20,
            outages: Vec::new(),
            table: 20,
        }
    }
}

impl DhtPlan {
    /// The end of the outage that a time after the start lies in.
    #[must_use]
    pub fn outage_until(&self, time: Duration) -> Option<Duration> {
        self.outages.iter().filter(|window| window.contains(time)).map(|window| window.to.0).max()
    }
}
