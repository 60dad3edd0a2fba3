//! What a run came to.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// Bins of the timeline over the lower bound.
pub(crate) const BINS: usize = 20;

/// What a run came to. Times are in seconds of the simulated world, from the first wish.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// No scheme can have the last node done earlier.
    pub bound_s: f64,
    /// Median of the nodes' times, each from its own first wish.
    pub p50_s: f64,
    /// The same, 99 of 100.
    pub p99_s: f64,
    /// When the last node was done.
    pub max_s: f64,
    /// `max_s / bound_s`.
    pub max_over_bound: f64,
    /// Bytes that the origin sent over the bytes of all layers.
    pub origin_copies: f64,
    /// Requests for layers to the origin.
    pub origin_blob_gets: u64,
    /// Bytes that nodes took in for nothing over the bytes that they needed.
    pub duplicate_ratio: f64,
    /// Bytes of messages sent, without chunks, a node.
    pub control_bytes_per_node: f64,
    /// What should have come about and did not: breaches of safety, and nodes that did not get their layers.
    pub unmet: Vec<String>,
    /// Events of the world.
    pub events: u64,
    /// How long the run took, in seconds of ours; the only number that differs between equal runs.
    pub wall_s: f64,
    /// Hash of all events: equal runs have equal ones.
    pub trace: String,
    /// Counts of what the machines did.
    pub counts: BTreeMap<String, u64>,
    /// For each twentieth of the bound, and for the rest of the time: what was in use.
    pub timeline: Vec<Usage>,
}

/// Shares of what could have been sent in some time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usage {
    /// Of all downlinks.
    pub down: f64,
    /// Of the origin's rate.
    pub origin: f64,
    /// Of the uplinks of nodes that stream from the origin, in links: with a slow one, the swarm starves.
    pub holders_up: f64,
}

/// The value below which a share of sorted values lies; 0 for none.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

impl Report {
    /// Whether all came about that should have.
    #[must_use]
    pub const fn is_met(&self) -> bool {
        self.unmet.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "last node        {:.3} s, {:.3} times the bound of {:.3} s",
            self.max_s, self.max_over_bound, self.bound_s
        )?;
        writeln!(f, "a node           {:.3} s (median), {:.3} s (99 of 100)", self.p50_s, self.p99_s)?;
        writeln!(f, "origin           {:.4} copies in {} requests", self.origin_copies, self.origin_blob_gets)?;
        writeln!(f, "duplicates       {:.4} of all bytes", self.duplicate_ratio)?;
        writeln!(f, "messages         {:.0} bytes a node", self.control_bytes_per_node)?;
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(f, "counts           {}", counts.join(", "))?;
        let shares = |pick: fn(&Usage) -> f64| {
            let shares: Vec<String> = self.timeline.iter().map(|bin| format!("{:.0}", pick(bin) * 100.0)).collect();
            shares.join(" ")
        };
        writeln!(f, "downlinks, %     {}", shares(|usage| usage.down))?;
        writeln!(f, "origin, %        {}", shares(|usage| usage.origin))?;
        writeln!(f, "holders' up, %   {}", shares(|usage| usage.holders_up))?;
        writeln!(f, "run              {} events in {:.2} s, trace {}", self.events, self.wall_s, self.trace)?;
        for unmet in &self.unmet {
            writeln!(f, "UNMET            {unmet}")?;
        }
        Ok(())
    }
}
