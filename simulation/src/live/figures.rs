//! What is compared.

use serde::{Deserialize, Serialize};

use crate::{Report, report::percentile};

/// The figures that both sides have. Times are in seconds from the common start, and those of healthy survivors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// No scheme can have the last node done earlier.
    pub bound_s: f64,
    /// Median of the nodes' times.
    pub p50_s: f64,
    /// When the last node was done.
    pub max_s: f64,
    /// `max_s / bound_s`.
    pub max_over_bound: f64,
    /// Bytes that the origin sent over the bytes of all layers.
    pub origin_copies: f64,
    /// Requests for layers to the origin.
    pub origin_blob_gets: f64,
    /// Bytes that nodes took in for nothing over the bytes that they needed.
    pub duplicate_ratio: f64,
}

impl Figures {
    pub(super) fn simulated(report: &Report) -> Self {
        Self {
            bound_s: report.bound_s,
            p50_s: report.p50_s,
            max_s: report.max_s,
            max_over_bound: report.max_over_bound,
            origin_copies: report.origin_copies,
            origin_blob_gets: report.origin_blob_gets as f64,
            duplicate_ratio: report.duplicate_ratio,
        }
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        Self {
            bound_s: self.bound_s - other.bound_s,
            p50_s: self.p50_s - other.p50_s,
            max_s: self.max_s - other.max_s,
            max_over_bound: self.max_over_bound - other.max_over_bound,
            origin_copies: self.origin_copies - other.origin_copies,
            origin_blob_gets: self.origin_blob_gets - other.origin_blob_gets,
            duplicate_ratio: self.duplicate_ratio - other.duplicate_ratio,
        }
    }

    /// Names for people, values, and digits behind the point.
    const fn rows(&self) -> [(&'static str, f64, usize); 7] {
        [
            ("bound, s", self.bound_s, 2),
            ("median node, s", self.p50_s, 2),
            ("last node, s", self.max_s, 2),
            ("last node over bound", self.max_over_bound, 3),
            ("copies from the origin", self.origin_copies, 4),
            ("GETs of layers", self.origin_blob_gets, 0),
            ("duplicates", self.duplicate_ratio, 4),
        ]
    }
}

/// Both sides and their difference, for people. What a side does not have is a dash.
pub(super) fn table(simulated: &Figures, live: &Figures) -> String {
    let number = |value: f64, digits: usize| {
        if value.is_finite() { format!("{value:.digits$}") } else { String::from("-") }
    };
    let mut text = format!("{:24}{:>12}{:>12}{:>12}\n", "", "simulated", "live", "difference");
    for ((name, simulated, digits), (_, live, _)) in simulated.rows().into_iter().zip(live.rows()) {
        let difference = live - simulated;
        let sign = if difference > 0.0 { "+" } else { "" };
        let difference = format!("{sign}{}", number(difference, digits));
        text += &format!("{name:24}{:>12}{:>12}{difference:>12}\n", number(simulated, digits), number(live, digits));
    }
    text
}

/// The report of `shoal demo --json`, as far as it is compared.
#[derive(Debug, Deserialize)]
pub(super) struct DemoReport {
    image_bytes: u64,
    bound_seconds: Option<f64>,
    max_over_bound: Option<f64>,
    copies: f64,
    pub(super) broken: Option<String>,
    /// Names of nodes whose times do not count.
    slow: Vec<String>,
    origin: DemoOrigin,
    nodes: Vec<DemoNode>,
}

#[derive(Debug, Deserialize)]
struct DemoOrigin {
    blob_gets: u64,
}

#[derive(Debug, Deserialize)]
struct DemoNode {
    name: String,
    seconds: Option<f64>,
    from_origin: Option<u64>,
    from_peers: Option<u64>,
    verified: bool,
}

impl DemoReport {
    pub(super) fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// What is not known is not a number.
    pub(super) fn figures(&self) -> Figures {
        let healthy = || self.nodes.iter().filter(|node| node.verified && !self.slow.contains(&node.name));
        let mut times: Vec<f64> = healthy().filter_map(|node| node.seconds).collect();
        times.sort_unstable_by(f64::total_cmp);
        let taken = healthy().map(|node| Some(node.from_origin? + node.from_peers?)).collect::<Option<Vec<u64>>>();
        let needed = (self.image_bytes * healthy().count() as u64) as f64;
        let taken = taken.map_or(f64::NAN, |taken| taken.iter().sum::<u64>() as f64);
        Figures {
            bound_s: self.bound_seconds.unwrap_or(f64::NAN),
            p50_s: if times.is_empty() { f64::NAN } else { percentile(&times, 0.5) },
            max_s: times.last().copied().unwrap_or(f64::NAN),
            max_over_bound: self.max_over_bound.unwrap_or(f64::NAN),
            origin_copies: self.copies,
            // Without the one of the config, which plans do not have.
            origin_blob_gets: self.origin.blob_gets.saturating_sub(1) as f64,
            duplicate_ratio: (taken - needed) / needed,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(nodes: serde_json::Value) -> DemoReport {
        let text = json!({
            "image_bytes": 1000, "bound_seconds": 2.0, "max_over_bound": null, "copies": 1.02, "more": "is not read",
            "broken": "node1 was killed", "slow": ["node4"], "origin": { "blob_gets": 4, "refused": 0 }, "nodes": nodes,
        });
        DemoReport::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn killed_and_slow_nodes_are_not_counted() {
        let node = |name: &str, seconds: Option<f64>| json!({ "name": name, "seconds": seconds, "from_origin": seconds.map(|_| 500), "from_peers": 500, "verified": seconds.is_some() });
        let nodes =
            json!([node("node1", None), node("node2", Some(3.0)), node("node3", Some(4.0)), node("node4", Some(99.0))]);
        let figures = report(nodes).figures();
        assert_eq!((figures.p50_s, figures.max_s, figures.origin_blob_gets), (3.0, 4.0, 3.0));
        assert_eq!((figures.duplicate_ratio, figures.origin_copies), (0.0, 1.02));
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let figures = report(json!([])).figures();
        let text = table(&figures, &figures);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(line("last node, s").matches('-').count(), 3, "{text}");
        assert!(line("copies").contains("1.0200"), "{text}");
    }
}
