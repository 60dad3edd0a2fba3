//! The report at the end of a run.

use std::time::Duration;

use shoal_proto::time::Time;

use super::World;
use crate::{
    bound::Fate,
    report::{BINS, Ended, Report, Slice, Traffic},
};

impl World {
    pub(super) fn report(self) -> Report {
        let after = |time: Time| time.since(Time::ZERO);
        let mut unmet: Vec<String> = self.checks.breaches().to_vec();
        let mut unmet_count = self.checks.count();
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive && !node.is_complete()) {
            let views: Vec<String> =
                node.swarm.fetches().map(|view| format!("{} of {} chunks", view.have, view.chunks)).collect();
            let failed: Vec<_> = node.holdings.iter().filter_map(|holding| holding.failed).collect();
            unmet.push(format!("node {at} did not get its layers: {} {failed:?}", views.join(", ")));
            unmet_count += 1;
        }
        let fate =
            |node: &crate::node::Node| Fate { begins: after(node.begins), left_out: !node.alive, ..Fate::default() };
        let ended = Ended {
            at: after(self.now),
            fates: self.nodes.iter().map(fate).collect(),
            done: self.nodes.iter().map(|node| node.completed().map(after).filter(|_| node.alive)).collect(),
            unmet_count,
            unmet,
            origin_bytes: self.origin.bytes.iter().sum(),
            origin_gets: self.origin.gets.iter().sum(),
            useful_bytes: self.tally.useful_bytes,
            wasted_bytes: self.tally.wasted_bytes,
            control_bytes: self.tally.control_bytes,
            events: self.tally.events,
            trace: self.trace,
            counts: self.tally.counts(),
            slices: self.slices(after(self.now)),
            zones: vec![Traffic::default()],
            ..Ended::default()
        };
        Report::new(&self.plan, ended)
    }

    fn slices(&self, end: Duration) -> Vec<Slice> {
        let (bound, end) = (self.bound.as_secs_f64(), end.as_secs_f64());
        let edge = |bin: usize| if bin > BINS { end.max(bound) } else { bound / BINS as f64 * bin as f64 };
        let bins = self.tally.bins.iter().enumerate();
        let slices = bins.map(|(at, bin)| Slice {
            from_s: edge(at),
            to_s: edge(at + 1),
            down: bin.down,
            origin: bin.origin,
            holders_up: bin.holders_up,
        });
        slices.collect()
    }
}
