//! The report at the end of a run.

use shoal_proto::time::Time;

use super::World;
use crate::report::{BINS, Report, Usage, percentile};

impl World {
    pub(super) fn report(self) -> Report {
        let seconds = |time: Time| time.since(Time::ZERO).as_secs_f64();
        let survivors = || self.nodes.iter().filter(|node| node.alive);
        let mut times: Vec<f64> =
            survivors().filter_map(|node| node.completed().map(|time| time.since(node.begins).as_secs_f64())).collect();
        times.sort_unstable_by(f64::total_cmp);
        let last = survivors().map(|node| seconds(node.completed().unwrap_or(self.now))).fold(0.0, f64::max);
        let mut unmet: Vec<String> = self.checks.breaches().to_vec();
        let breaches = self.checks.count();
        if breaches > unmet.len() as u64 {
            unmet.push(format!("{breaches} breaches in all"));
        }
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive && !node.is_complete()) {
            let views: Vec<String> =
                node.swarm.fetches().map(|view| format!("{} of {} chunks", view.have, view.chunks)).collect();
            let failed: Vec<_> = node.holdings.iter().filter_map(|holding| holding.failed).collect();
            unmet.push(format!("node {at} did not get its layers: {} {failed:?}", views.join(", ")));
        }
        unmet.truncate(40);
        let bytes = self.plan.bytes().max(1) as f64;
        let bound = self.bound.as_secs_f64();
        let events = self.tally.events;
        let width = bound / BINS as f64;
        let nodes = self.nodes.len() as f64;
        let all = nodes * self.plan.link_down.bytes_per_second() as f64;
        let (up, rate) = (self.plan.link_up.bytes_per_second() as f64, self.plan.origin_rate.bytes_per_second() as f64);
        let timeline = self.tally.bins.iter().enumerate().map(|(at, bin)| {
            let width = if at < BINS { width } else { (last - bound).max(1e-9) };
            Usage {
                down: bin.down as f64 / width / all,
                origin: bin.origin as f64 / width / rate,
                holders_up: bin.holders_up as f64 / width / up,
            }
        });
        Report {
            bound_s: bound,
            p50_s: percentile(&times, 0.5),
            p99_s: percentile(&times, 0.99),
            max_s: last,
            max_over_bound: last / bound,
            origin_copies: self.origin.bytes.iter().sum::<u64>() as f64 / bytes,
            origin_blob_gets: self.origin.gets.iter().sum(),
            duplicate_ratio: self.tally.wasted_bytes as f64 / self.tally.useful_bytes.max(1) as f64,
            control_bytes_per_node: self.tally.control_bytes as f64 / nodes,
            unmet,
            events,
            wall_s: 0.0,
            trace: format!("{:016x}", self.trace),
            counts: self.tally.counts(),
            timeline: timeline.collect(),
        }
    }
}
