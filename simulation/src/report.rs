//! What a run came to.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    bound::{Bound, Fate, Rule, bound},
    plan::Plan,
};

/// Quantiles of the nodes' times in a report: 0, 1/200, ... 1.
const QUANTILES: usize = 200;
/// Texts of what was unmet in a report; further ones are only counted.
const TEXTS_MAX: usize = 40;

/// What a run came to. Times are in seconds of the simulated world. Except for `unmet` and `failures`, nodes that died, lie
/// or were made slow do not count.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The plan's name, or the path of its file.
    pub plan: String,
    /// The seed of all chance.
    pub seed: u64,
    /// Before this, not all nodes can be done, whatever the scheme: seconds after the start.
    pub bound_s: f64,
    /// What sets the bound.
    pub bound_rule: Rule,
    /// Median of the nodes' times, each from its own first wish.
    pub p50_s: f64,
    /// The same, 99 of 100.
    pub p99_s: f64,
    /// The same, 999 of 1000.
    pub p999_s: f64,
    /// When the last node was done, after the start.
    pub max_s: f64,
    /// `max_s / bound_s`.
    pub max_over_bound: f64,
    /// Each node's own time over its own bound, both from its own first wish: 99 of 100 nodes.
    pub own_p99_over_bound: f64,
    /// The same, the worst node.
    pub own_max_over_bound: f64,
    /// When the last node was done that was made slow, after the start; 0 without such nodes.
    pub slow_max_s: f64,
    /// Bytes that the origin sent over the bytes of all layers.
    pub origin_copies: f64,
    /// Requests for layers to the origin.
    pub origin_blob_gets: u64,
    /// Nodes that streamed from the origin at one time, at most.
    pub origin_fetchers_max: u64,
    /// Bytes that nodes took in for nothing over the bytes that they needed.
    pub duplicate_ratio: f64,
    /// Bytes that nodes of a zone took in from nodes of other zones, over the bytes of all layers: the worst zone.
    pub cross_zone_copies: f64,
    /// Bytes of messages sent, without chunks, a node.
    pub control_bytes_per_node: f64,
    /// Messages that one node took in within one second, at most.
    pub busiest_messages_per_s: u64,
    /// Bytes that a node took for good, or gave a reader, and that were not the layer's.
    pub wrong_bytes: u64,
    /// Verdicts of honest nodes against honest nodes.
    pub honest_blamed: u64,
    /// How much should have come about and did not: breaches of safety, and nodes that did not get their layers.
    #[serde(rename = "unmet")]
    pub unmet_count: u64,
    /// What that is, as far as texts were kept.
    #[serde(rename = "failures")]
    pub unmet: Vec<String>,
    /// Events of the world.
    pub events: u64,
    /// How long the run took, in seconds of ours; the only number that differs between equal runs.
    pub wall_s: f64,
    /// Hash of all events: equal runs have equal ones.
    pub trace: String,
    /// The command that runs this again.
    pub replay: String,
    /// Nodes of the plan.
    pub nodes: u64,
    /// Bytes of all layers.
    pub bytes: u64,
    /// What the origin sends at most, bytes per second.
    pub origin_rate: u64,
    /// What a node takes in at most, bytes per second.
    pub link_rate: u64,
    /// Counts of what the machines did.
    pub counts: BTreeMap<String, u64>,
    /// Quantiles of the nodes' times, each from its own first wish, evenly from the first to the last node.
    pub completion_s: Vec<f64>,
    /// The same of the nodes' own bounds.
    pub completion_bound_s: Vec<f64>,
    /// What was in use at which time.
    pub timeline: Vec<Usage>,
    /// What each zone took in.
    pub zones: Vec<Traffic>,
}

/// Shares of what could have been sent in some time.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Begin of this time, seconds after the start.
    pub from_s: f64,
    /// Its end.
    pub to_s: f64,
    /// Of all downlinks.
    pub down: f64,
    /// Of the origin's rate.
    pub origin: f64,
    /// Of the uplinks of nodes that stream from the origin, in links: with a slow one, the swarm starves.
    pub holders_up: f64,
}

/// Bytes that the nodes of a zone took in, by where they came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// From the origin.
    pub origin: u64,
    /// From the same rack.
    pub rack: u64,
    /// From other racks of the zone.
    pub zone: u64,
    /// From other zones.
    pub far: u64,
}

/// The value below which a share of sorted values lies; 0 for none.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Bytes moved in some time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Slice {
    pub(crate) from_s: f64,
    pub(crate) to_s: f64,
    pub(crate) down: u64,
    pub(crate) origin: u64,
    pub(crate) holders_up: u64,
}

/// What the world knows at the end of a run, from which a report is made.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// When the run ended, after the start.
    pub(crate) at: Duration,
    /// What befell each node.
    pub(crate) fates: Vec<Fate>,
    /// When each node last came to have all its layers, after the start.
    pub(crate) done: Vec<Option<Duration>>,
    pub(crate) unmet_count: u64,
    pub(crate) unmet: Vec<String>,
    pub(crate) origin_bytes: u64,
    pub(crate) origin_gets: u64,
    pub(crate) origin_fetchers_max: u64,
    pub(crate) useful_bytes: u64,
    pub(crate) wasted_bytes: u64,
    pub(crate) control_bytes: u64,
    pub(crate) busiest_messages_per_s: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) honest_blamed: u64,
    pub(crate) events: u64,
    pub(crate) trace: u64,
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) slices: Vec<Slice>,
    /// By zone.
    pub(crate) zones: Vec<Traffic>,
}

/// The times of the nodes that count.
struct Times {
    /// From own first wishes, sorted.
    own: Vec<f64>,
    /// Bounds of these, sorted.
    own_bounds: Vec<f64>,
    /// Own times over own bounds, sorted.
    ratios: Vec<f64>,
    /// When the last one was done, after the start.
    last: f64,
}

impl Times {
    fn new(ended: &Ended, bound: &Bound) -> Self {
        let mut times = Self { own: Vec::new(), own_bounds: Vec::new(), ratios: Vec::new(), last: 0.0 };
        let nodes = ended.fates.iter().zip(&ended.done).zip(&bound.nodes);
        for ((fate, done), bound) in nodes.filter(|((fate, _), _)| !fate.left_out) {
            let begins = fate.begins.as_secs_f64();
            // Who is not done by the end takes at least that long.
            let done = done.unwrap_or(ended.at).as_secs_f64();
            times.own.push(done - begins);
            times.own_bounds.push(bound - begins);
            times.ratios.push(ratio(done - begins, bound - begins));
            times.last = times.last.max(done);
        }
        for values in [&mut times.own, &mut times.own_bounds, &mut times.ratios] {
            values.sort_unstable_by(f64::total_cmp);
        }
        times
    }
}

/// 1 where there was nothing to do.
fn ratio(time: f64, bound: f64) -> f64 {
    if bound > 0.0 { time / bound } else { 1.0 }
}

fn quantiles(sorted: &[f64]) -> Vec<f64> {
    if sorted.is_empty() {
        return Vec::new();
    }
    (0..=QUANTILES).map(|at| round(sorted[(sorted.len() - 1) * at / QUANTILES])).collect()
}

/// To a microsecond, or a millionth: what is further behind the point only makes files long.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

impl Report {
    /// The report of a run that ended; `wall_s`, `plan` and `replay` are left empty.
    pub(crate) fn new(plan: &Plan, ended: Ended) -> Self {
        let bound = bound(plan, &ended.fates);
        let times = Times::new(&ended, &bound);
        let slow = ended.fates.iter().zip(&ended.done).filter(|(fate, _)| fate.left_out).filter_map(|(_, done)| *done);
        let bytes = plan.bytes().max(1) as f64;
        let (origin, down) = (plan.origin_rate.bytes_per_second(), plan.link_down.bytes_per_second());
        let usage = |slice: &Slice| {
            let over = |bytes: u64, rate: f64| round(bytes as f64 / ((slice.to_s - slice.from_s).max(1e-9) * rate));
            Usage {
                from_s: round(slice.from_s),
                to_s: round(slice.to_s),
                down: over(slice.down, down as f64 * plan.nodes as f64),
                origin: over(slice.origin, origin as f64),
                holders_up: over(slice.holders_up, plan.link_up.bytes_per_second() as f64),
            }
        };
        Self {
            seed: plan.seed,
            bound_s: bound.last,
            bound_rule: bound.rule,
            p50_s: percentile(&times.own, 0.5),
            p99_s: percentile(&times.own, 0.99),
            p999_s: percentile(&times.own, 0.999),
            max_s: times.last,
            max_over_bound: ratio(times.last, bound.last),
            own_p99_over_bound: percentile(&times.ratios, 0.99),
            own_max_over_bound: percentile(&times.ratios, 1.0),
            slow_max_s: slow.max().unwrap_or_default().as_secs_f64(),
            origin_copies: ended.origin_bytes as f64 / bytes,
            origin_blob_gets: ended.origin_gets,
            origin_fetchers_max: ended.origin_fetchers_max,
            duplicate_ratio: ended.wasted_bytes as f64 / ended.useful_bytes.max(1) as f64,
            cross_zone_copies: ended.zones.iter().map(|zone| zone.far).max().unwrap_or(0) as f64 / bytes,
            control_bytes_per_node: ended.control_bytes as f64 / plan.nodes as f64,
            busiest_messages_per_s: ended.busiest_messages_per_s,
            wrong_bytes: ended.wrong_bytes,
            honest_blamed: ended.honest_blamed,
            unmet_count: ended.unmet_count.max(ended.unmet.len() as u64),
            unmet: ended.unmet.into_iter().take(TEXTS_MAX).collect(),
            events: ended.events,
            trace: format!("{:016x}", ended.trace),
            nodes: plan.nodes as u64,
            bytes: plan.bytes(),
            origin_rate: origin,
            link_rate: down,
            counts: ended.counts,
            completion_s: quantiles(&times.own),
            completion_bound_s: quantiles(&times.own_bounds),
            timeline: ended.slices.iter().map(usage).collect(),
            zones: ended.zones,
            ..Self::default()
        }
    }

    /// Whether all came about that should have.
    #[must_use]
    pub const fn is_met(&self) -> bool {
        self.unmet_count == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_s, max_over_bound, bound_s, p50_s, p99_s, p999_s, .. } = self;
        let rule = self.bound_rule;
        writeln!(f, "last node        {max_s:.3} s, {max_over_bound:.3} times the bound of {bound_s:.3} s ({rule})")?;
        writeln!(f, "a node           {p50_s:.3} s (median), {p99_s:.3} s (99 of 100), {p999_s:.3} s (999 of 1000)")?;
        let (most, worst) = (self.own_p99_over_bound, self.own_max_over_bound);
        writeln!(f, "over own bound   {most:.3} (99 of 100), {worst:.3} (the worst)")?;
        if self.slow_max_s > 0.0 {
            writeln!(f, "last slow node   {:.3} s", self.slow_max_s)?;
        }
        let (copies, gets, fetchers) = (self.origin_copies, self.origin_blob_gets, self.origin_fetchers_max);
        writeln!(f, "origin           {copies:.4} copies in {gets} requests, by {fetchers} nodes at once at most")?;
        writeln!(f, "duplicates       {:.4} of all bytes", self.duplicate_ratio)?;
        if self.zones.len() > 1 {
            writeln!(f, "between zones    {:.4} copies into the worst zone", self.cross_zone_copies)?;
        }
        let (bytes, busiest) = (self.control_bytes_per_node, self.busiest_messages_per_s);
        writeln!(f, "messages         {bytes:.0} bytes a node, {busiest} a second at the busiest node")?;
        writeln!(f, "wrong bytes      {}, honest nodes blamed {}", self.wrong_bytes, self.honest_blamed)?;
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(f, "counts           {}", counts.join(", "))?;
        let shares = |pick: fn(&Usage) -> f64| {
            let step = self.timeline.len().div_ceil(40).max(1);
            let shares = self.timeline.chunks(step).map(|bins| bins.iter().map(pick).sum::<f64>() / bins.len() as f64);
            shares.map(|share| format!("{:.0}", share * 100.0)).collect::<Vec<_>>().join(" ")
        };
        writeln!(f, "downlinks, %     {}", shares(|usage| usage.down))?;
        writeln!(f, "origin, %        {}", shares(|usage| usage.origin))?;
        writeln!(f, "holders' up, %   {}", shares(|usage| usage.holders_up))?;
        writeln!(f, "run              {} events in {:.2} s, trace {}", self.events, self.wall_s, self.trace)?;
        for unmet in &self.unmet {
            writeln!(f, "UNMET            {unmet}")?;
        }
        let more = self.unmet_count.saturating_sub(self.unmet.len() as u64);
        if more > 0 { writeln!(f, "UNMET            {more} more") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> Ended {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut fates = vec![Fate::default(); 4];
        fates[1].begins = Duration::from_secs(4);
        fates[3].left_out = true;
        Ended {
            at: Duration::from_secs(50),
            fates,
            done: vec![seconds(11), seconds(15), seconds(12), seconds(40)],
            origin_bytes: 150,
            slices: vec![Slice { from_s: 0.0, to_s: 2.0, down: 40, origin: 10, holders_up: 5 }],
            zones: vec![Traffic::default(), Traffic { far: 130, ..Traffic::default() }],
            ..Ended::default()
        }
    }

    fn plan() -> Plan {
        let rates = "link_up = \"10B/s\"\nlink_down = \"10B/s\"\norigin_rate = \"10B/s\"";
        Plan::parse(&format!("nodes = 4\nlayers = [\"100B\"]\n{rates}"), &[]).unwrap_or_default()
    }

    #[test]
    fn times_are_of_those_that_count_and_measured_from_their_first_wish() {
        let report = Report::new(&plan(), ended());
        assert_eq!((report.p50_s, report.p99_s, report.max_s), (11.0, 12.0, 15.0));
        assert_eq!((report.bound_s, report.max_over_bound, report.slow_max_s), (14.0, 15.0 / 14.0, 40.0));
        assert_eq!((report.own_max_over_bound, report.completion_s.len()), (1.2, 201));
        assert_eq!((report.origin_copies, report.cross_zone_copies), (1.5, 1.3));
        assert_eq!(
            (report.timeline[0].down, report.timeline[0].origin, report.timeline[0].holders_up),
            (0.5, 0.5, 0.25)
        );
    }

    #[test]
    fn who_is_not_done_counts_with_the_end_of_the_run() {
        let mut ended = ended();
        ended.done[2] = None;
        ended.unmet_count = 1;
        let report = Report::new(&plan(), ended);
        assert_eq!((report.max_s, report.is_met()), (50.0, false));
    }
}
