//! What came out of a demo, for people and for programs.

use std::fmt::{self, Write as _};

use serde::Serialize;
use shoal_proto::units::Rate;

use super::origin::OriginCounts;
use crate::output;

/// What came out of a demo; its JSON form is what `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Bytes in manifest, config and layers: what each node must receive.
    pub image_bytes: u64,
    /// The least time in which the last node can have the image at the given rates; null if no rate is capped.
    pub bound_seconds: Option<f64>,
    /// The nodes.
    pub nodes: Vec<NodeReport>,
    /// The origin.
    pub origin: OriginReport,
    /// Time of the slowest node over `bound_seconds`; null without a bound, or if a node failed.
    pub max_over_bound: Option<f64>,
}

/// One node's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeReport {
    /// `node1`, ...
    pub name: String,
    /// From the common start to the last byte that its client has checked; null if it failed.
    pub seconds: Option<f64>,
    /// Bytes that it took from the origin, by its own account; null if it could not be asked.
    pub from_origin: Option<u64>,
    /// Bytes that it took from peers, likewise.
    pub from_peers: Option<u64>,
    /// Whether its client has received every byte of the image and every digest was right.
    pub verified: bool,
    /// Resident bytes of the daemon before the pull; null where the system does not tell.
    pub rss_idle_bytes: Option<u64>,
    /// Most resident bytes of the daemon until the end of the pull.
    pub rss_peak_bytes: Option<u64>,
    /// Processor time of the daemon, its start included.
    pub cpu_seconds: Option<f64>,
}

/// The origin's part, by its own count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OriginReport {
    /// Bytes of bodies that it sent.
    pub bytes: u64,
    /// GETs of blobs.
    pub blob_gets: u64,
    /// GETs of manifests.
    pub manifest_gets: u64,
    /// `bytes` in images.
    pub copies: f64,
}

impl OriginReport {
    pub(super) fn new(counts: OriginCounts, image_bytes: u64) -> Self {
        Self {
            bytes: counts.body_bytes,
            blob_gets: counts.blob_gets,
            manifest_gets: counts.manifest_gets,
            copies: rounded(counts.body_bytes as f64 / image_bytes as f64, 6),
        }
    }
}

impl Report {
    pub(super) fn new(image_bytes: u64, bound: Option<f64>, nodes: Vec<NodeReport>, origin: OriginReport) -> Self {
        let slowest = slowest(&nodes);
        let max_over_bound = bound.zip(slowest).map(|(bound, slowest)| rounded(slowest / bound, 4));
        Self { image_bytes, bound_seconds: bound.map(|bound| rounded(bound, 4)), nodes, origin, max_over_bound }
    }

    /// Whether every node has every byte.
    #[must_use]
    pub fn verified(&self) -> bool {
        self.nodes.iter().all(|node| node.verified)
    }

    /// The report for people: a table and what it means.
    pub(super) fn text(&self, words: &Words<'_>) -> Result<String, fmt::Error> {
        let mut text = table(&self.nodes);
        let Words { layers, blobs, .. } = words;
        writeln!(text)?;
        writeln!(text, "image    {} ({}), {}", words.image, human(self.image_bytes), counted(*layers, "layer"))?;
        let OriginReport { bytes, blob_gets, manifest_gets, copies } = self.origin;
        writeln!(
            text,
            "origin   sent {copies:.3} x the image ({}): {} for {}, {}",
            human(bytes),
            counted(blob_gets, "blob GET"),
            counted(*blobs, "blob"),
            counted(manifest_gets, "manifest GET")
        )?;
        match slowest(&self.nodes) {
            None => writeln!(text, "time     some nodes failed")?,
            Some(slowest) => {
                write!(
                    text,
                    "time     {slowest:.2} s until the last of {} had it all",
                    counted(self.nodes.len() as u64, "node")
                )?;
                if let (Some(bound), Some(over)) = (self.bound_seconds, self.max_over_bound) {
                    write!(text, ", {over:.2} x the least possible ({bound:.2} s with {})", words.caps)?;
                }
                writeln!(text)?;
            }
        }
        let good = self.nodes.iter().filter(|node| node.verified).count();
        writeln!(
            text,
            "checked  {good} of {}: every byte, against its SHA-256 digest",
            counted(self.nodes.len() as u64, "node")
        )?;
        Ok(text)
    }
}

/// What the report for people says beside the numbers.
#[derive(Debug)]
pub(super) struct Words<'a> {
    pub(super) image: &'a str,
    pub(super) layers: u64,
    pub(super) blobs: u64,
    /// The caps that make the bound.
    pub(super) caps: String,
}

/// Time of the slowest node, if all have finished.
fn slowest(nodes: &[NodeReport]) -> Option<f64> {
    nodes.iter().try_fold(0.0_f64, |slowest, node| node.seconds.map(|seconds| slowest.max(seconds)))
}

fn table(nodes: &[NodeReport]) -> String {
    let unknown = || String::from("?");
    let size = |bytes: Option<u64>| bytes.map_or_else(unknown, human);
    let head =
        ["node", "seconds", "from origin", "from peers", "verified", "memory idle", "memory peak", "cpu seconds"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(nodes.iter().map(|node| {
        vec![
            node.name.clone(),
            node.seconds.map_or_else(|| String::from("-"), |seconds| format!("{seconds:.2}")),
            size(node.from_origin),
            size(node.from_peers),
            String::from(if node.verified { "yes" } else { "NO" }),
            size(node.rss_idle_bytes),
            size(node.rss_peak_bytes),
            node.cpu_seconds.map_or_else(unknown, |seconds| format!("{seconds:.2}")),
        ]
    }));
    // Names to the left, numbers to the right.
    output::table(&rows, &[1, 2, 3, 4, 5, 6, 7])
}

/// The least time until the last of `nodes` has `bytes`: the origin must send them once, each node must receive them
/// once, and all copies must leave the origin and the nodes together. None without any cap.
pub(super) fn bound_seconds(bytes: u64, nodes: usize, origin: Option<Rate>, link: Option<Rate>) -> Option<f64> {
    let (bytes, nodes) = (bytes as f64, nodes as f64);
    let rate = |rate: Rate| rate.0.max(1) as f64;
    match (origin.map(rate), link.map(rate)) {
        (None, None) => None,
        (Some(origin), None) => Some(bytes / origin),
        (None, Some(link)) => Some(bytes / link),
        (Some(origin), Some(link)) => {
            Some((bytes / origin).max(bytes / link).max(nodes * bytes / (origin + nodes * link)))
        }
    }
}

/// `1 node`, `2 nodes`.
pub(super) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A size for people, always with one digit behind the point so that columns line up.
pub(super) fn human(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

pub(super) fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn node(name: &str, seconds: Option<f64>) -> NodeReport {
        NodeReport {
            name: name.into(),
            seconds,
            from_origin: Some(100 << 20),
            from_peers: Some(400 << 20),
            verified: seconds.is_some(),
            rss_idle_bytes: Some(9 << 20),
            rss_peak_bytes: None,
            cpu_seconds: Some(1.5),
        }
    }

    fn report(nodes: Vec<NodeReport>) -> Report {
        let counts = OriginCounts { body_bytes: 500 << 20, blob_gets: 4, manifest_gets: 1, heads: 5 };
        Report::new(500 << 20, Some(4.0), nodes, OriginReport::new(counts, 500 << 20))
    }

    #[test]
    fn the_bound_is_the_tightest_of_origin_link_and_all_uploads_together() {
        let rate = |rate| Some(Rate(rate));
        for (nodes, origin, link, bound) in [
            (5, None, None, None),
            (5, rate(100), None, Some(10.0)),
            (5, None, rate(50), Some(20.0)),
            (5, rate(100), rate(500), Some(10.0)),
            (5, rate(400), rate(100), Some(10.0)),
            (1, rate(100), rate(100), Some(10.0)),
            (1_000_000, rate(1_000), rate(1), Some(1000.0)),
        ] {
            assert_eq!(bound_seconds(1000, nodes, origin, link), bound, "{nodes} {origin:?} {link:?}");
        }
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let json = serde_json::to_value(report(vec![node("node1", Some(4.0)), node("node2", Some(5.0))])).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), ["bound_seconds", "image_bytes", "max_over_bound", "nodes", "origin"]);
        assert_eq!(keys(&json["origin"]), ["blob_gets", "bytes", "copies", "manifest_gets"]);
        assert_eq!(
            keys(&json["nodes"][0]),
            [
                "cpu_seconds",
                "from_origin",
                "from_peers",
                "name",
                "rss_idle_bytes",
                "rss_peak_bytes",
                "seconds",
                "verified"
            ]
        );
        assert_eq!(json["max_over_bound"], 1.25);
        assert_eq!(json["origin"]["copies"], 1.0);
    }

    #[test]
    fn one_failed_node_makes_the_report_unverified_and_leaves_no_time_to_compare() {
        let report = report(vec![node("node1", Some(4.0)), node("node2", None)]);
        assert!(!report.verified());
        assert_eq!(report.max_over_bound, None);
        let words = Words { image: "demo.test/demo/image:v1", layers: 3, blobs: 4, caps: String::new() };
        assert!(report.text(&words).unwrap().contains("checked  1 of 2 nodes"));
    }

    #[test]
    fn columns_line_up() {
        let text = table(&[node("node1", Some(4.0)), node("node10", Some(12.345))]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        let column = lines[0].find("seconds").unwrap() + "seconds".len();
        assert!(lines[1][..column].ends_with("4.00") && lines[2][..column].ends_with("12.35"), "{text}");
    }
}
