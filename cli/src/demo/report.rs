//! What came out of a demo, for people and for programs.

use std::fmt::{self, Write as _};

use serde::Serialize;
use shoal_proto::units::Rate;

use super::{fault::Fault, origin::OriginCounts};
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
    /// Images that the origin sent: its `copies`.
    pub copies: f64,
    /// Time of the slowest healthy node over `bound_seconds`; null without a bound, or if one failed.
    pub max_over_bound: Option<f64>,
    /// Whether every survivor received every byte, or is slow and had no failure until the others were done.
    pub verified: bool,
    /// What `--fault` asked for.
    pub fault: Option<Fault>,
    /// What broke and when, in words; null if nothing did, which is a failure of a demo with a fault.
    pub broken: Option<String>,
    /// Nodes that were not killed.
    pub survivors: usize,
    /// Names of those that were.
    pub killed: Vec<String>,
    /// Names of those that were made slow.
    pub slow: Vec<String>,
}

/// What was to break, and what did.
#[derive(Debug, Default)]
pub(super) struct Broken {
    pub(super) fault: Option<Fault>,
    pub(super) story: Option<String>,
    /// The node that was made slow, counted from 0.
    pub(super) slow: Option<usize>,
}

/// How the pull through a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every byte came, and every digest was right.
    Complete,
    /// Anything else, without an excuse.
    Failed,
    /// The daemon was killed on purpose.
    Killed,
    /// It was going on well, but slow on purpose, when the other nodes were done.
    Unfinished,
}

/// One node's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeReport {
    /// `node1`, ...
    pub name: String,
    /// How its pull ended.
    pub outcome: Outcome,
    /// From the common start to the last byte that its client has checked; null if it failed.
    pub seconds: Option<f64>,
    /// Bytes that its client received.
    pub received: u64,
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
    /// GETs that it answered with 429; the others are not counted among them.
    pub refused: u64,
    /// Bodies that it broke off.
    pub broken: u64,
}

impl OriginReport {
    pub(super) fn new(counts: OriginCounts, image_bytes: u64) -> Self {
        Self {
            bytes: counts.body_bytes,
            blob_gets: counts.blob_gets,
            manifest_gets: counts.manifest_gets,
            copies: rounded(counts.body_bytes as f64 / image_bytes as f64, 6),
            refused: counts.refused,
            broken: counts.broken,
        }
    }
}

impl Report {
    pub(super) fn new(
        image_bytes: u64,
        caps: Caps,
        nodes: Vec<NodeReport>,
        origin: OriginReport,
        broken: Broken,
    ) -> Self {
        let names = |nodes: &[&NodeReport]| nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
        let slow: Vec<&NodeReport> = broken.slow.and_then(|slow| nodes.get(slow)).into_iter().collect();
        let (killed, survivors): (Vec<&NodeReport>, Vec<_>) =
            nodes.iter().partition(|node| node.outcome == Outcome::Killed);
        let (slow, killed) = (names(&slow), names(&killed));
        let healthy: Vec<&NodeReport> = survivors.iter().copied().filter(|node| !slow.contains(&node.name)).collect();
        let bound = bound_seconds(image_bytes, healthy.len(), caps.origin, caps.link);
        let max_over_bound = bound.zip(slowest(&healthy)).map(|(bound, slowest)| rounded(slowest / bound, 4));
        let verified = survivors.iter().all(|node| match node.outcome {
            Outcome::Complete => true,
            Outcome::Unfinished => slow.contains(&node.name),
            Outcome::Failed | Outcome::Killed => false,
        });
        Self {
            image_bytes,
            bound_seconds: bound.map(|bound| rounded(bound, 4)),
            copies: origin.copies,
            max_over_bound,
            verified,
            fault: broken.fault,
            broken: broken.story,
            survivors: survivors.len(),
            killed,
            slow,
            origin,
            nodes,
        }
    }

    /// Whether every survivor has every byte (or is slow on purpose), and what was to break did.
    #[must_use]
    pub const fn succeeded(&self) -> bool {
        self.verified && self.fault.is_some() == self.broken.is_some()
    }

    /// The survivors that were not made slow.
    fn healthy(&self) -> Vec<&NodeReport> {
        let healthy = |node: &&NodeReport| node.outcome != Outcome::Killed && !self.slow.contains(&node.name);
        self.nodes.iter().filter(healthy).collect()
    }

    /// The report for people: a table and what it means.
    pub(super) fn text(&self, words: &Words<'_>) -> Result<String, fmt::Error> {
        let mut text = table(&self.nodes);
        let Words { layers, blobs, .. } = words;
        writeln!(text)?;
        writeln!(text, "image    {} ({}), {}", words.image, human(self.image_bytes), counted(*layers, "layer"))?;
        match (self.fault, &self.broken) {
            (None, _) => {}
            (Some(_), Some(story)) => writeln!(text, "broken   {story}")?,
            (Some(_), None) => writeln!(text, "broken   NOTHING: the fault did not come about")?,
        }
        let OriginReport { bytes, blob_gets, manifest_gets, copies, .. } = self.origin;
        writeln!(
            text,
            "origin   sent {copies:.3} x the image ({}): {} for {}, {}",
            human(bytes),
            counted(blob_gets, "blob GET"),
            counted(*blobs, "blob"),
            counted(manifest_gets, "manifest GET")
        )?;
        let healthy = self.healthy();
        let kind = if self.fault.is_some() { "healthy node" } else { "node" };
        let nodes = counted(healthy.len() as u64, kind);
        match slowest(&healthy) {
            None => writeln!(text, "time     some nodes failed")?,
            Some(slowest) => {
                write!(text, "time     {slowest:.2} s until the last of {nodes} had it all")?;
                if let (Some(bound), Some(over)) = (self.bound_seconds, self.max_over_bound) {
                    write!(text, ", {over:.2} x the least possible ({bound:.2} s with {})", words.caps)?;
                }
                writeln!(text)?;
            }
        }
        for node in self.nodes.iter().filter(|node| node.outcome == Outcome::Unfinished) {
            let (so_far, all) = (human(node.received), human(self.image_bytes));
            writeln!(text, "slow     {} had {so_far} of {all} then; nobody waited for it", node.name)?;
        }
        let good = healthy.iter().filter(|node| node.verified).count();
        writeln!(text, "checked  {good} of {nodes}: every byte, against its SHA-256 digest")?;
        Ok(text)
    }
}

/// The caps of a demo.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Caps {
    pub(super) origin: Option<Rate>,
    pub(super) link: Option<Rate>,
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
fn slowest(nodes: &[&NodeReport]) -> Option<f64> {
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
            String::from(match node.outcome {
                Outcome::Complete => "yes",
                Outcome::Failed => "NO",
                Outcome::Killed => "killed",
                Outcome::Unfinished => "slow",
            }),
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
            outcome: if seconds.is_some() { Outcome::Complete } else { Outcome::Failed },
            seconds,
            received: 500 << 20,
            from_origin: Some(100 << 20),
            from_peers: Some(400 << 20),
            verified: seconds.is_some(),
            rss_idle_bytes: Some(9 << 20),
            rss_peak_bytes: None,
            cpu_seconds: Some(1.5),
        }
    }

    fn report(nodes: Vec<NodeReport>) -> Report {
        broken_report(nodes, Broken::default())
    }

    fn broken_report(nodes: Vec<NodeReport>, broken: Broken) -> Report {
        let counts = OriginCounts { body_bytes: 500 << 20, blob_gets: 4, manifest_gets: 1, ..OriginCounts::default() };
        let caps = Caps { origin: Some(Rate(125 << 20)), link: None };
        Report::new(500 << 20, caps, nodes, OriginReport::new(counts, 500 << 20), broken)
    }

    fn words() -> Words<'static> {
        Words { image: "demo.test/demo/image:v1", layers: 3, blobs: 4, caps: String::new() }
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
        assert_eq!(
            keys(&json),
            [
                "bound_seconds",
                "broken",
                "copies",
                "fault",
                "image_bytes",
                "killed",
                "max_over_bound",
                "nodes",
                "origin",
                "slow",
                "survivors",
                "verified"
            ]
        );
        assert_eq!(keys(&json["origin"]), ["blob_gets", "broken", "bytes", "copies", "manifest_gets", "refused"]);
        assert_eq!(
            keys(&json["nodes"][0]),
            [
                "cpu_seconds",
                "from_origin",
                "from_peers",
                "name",
                "outcome",
                "received",
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
        assert!(!report.verified && !report.succeeded());
        assert_eq!(report.max_over_bound, None);
        assert!(report.text(&words()).unwrap().contains("checked  1 of 2 nodes"));
    }

    fn broken(fault: Fault, slow: Option<usize>) -> Broken {
        Broken { fault: Some(fault), story: Some("it broke".into()), slow }
    }

    #[test]
    fn a_killed_node_is_none_of_the_survivors_and_its_time_does_not_count() {
        let killed = NodeReport { outcome: Outcome::Killed, ..node("node2", None) };
        let nodes = vec![node("node1", Some(4.0)), killed, node("node3", Some(5.0))];
        let report = broken_report(nodes, broken(Fault::KillHolder, None));
        assert!(report.succeeded());
        assert_eq!(
            (report.survivors, &report.killed[..], report.max_over_bound),
            (2, &["node2".into()][..], Some(1.25))
        );
        assert!(report.text(&words()).unwrap().contains("checked  2 of 2 healthy nodes"));
    }

    #[test]
    fn a_slow_node_may_be_unfinished_but_must_not_fail() {
        for (outcome, good) in [(Outcome::Unfinished, true), (Outcome::Complete, true), (Outcome::Failed, false)] {
            let slow = NodeReport { outcome, seconds: None, ..node("node2", None) };
            let report = broken_report(vec![node("node1", Some(4.0)), slow], broken(Fault::SlowNode, Some(1)));
            assert_eq!(report.succeeded(), good, "{outcome:?}");
            assert_eq!((report.max_over_bound, &report.slow[..]), (Some(1.0), &["node2".into()][..]));
        }
        let unfinished = NodeReport { outcome: Outcome::Unfinished, ..node("node1", None) };
        let report = broken_report(vec![unfinished, node("node2", Some(4.0))], broken(Fault::SlowNode, Some(1)));
        assert!(!report.succeeded(), "only the one that was made slow is excused");
    }

    #[test]
    fn a_fault_that_did_not_come_about_is_no_success() {
        let missed = Broken { story: None, ..broken(Fault::Origin429, None) };
        let report = broken_report(vec![node("node1", Some(4.0))], missed);
        assert!(report.verified && !report.succeeded());
        assert!(report.text(&words()).unwrap().contains("NOTHING"));
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
