//! The report at the end of a run.

use shoal_proto::time::Time;

use super::World;
use crate::{
    bound::Fate,
    report::{Ended, Report, Slice},
    timeline::Moved,
};

impl World {
    pub(super) fn report(self) -> Report {
        let after = |time: Time| time.since(Time::ZERO);
        let mut unmet: Vec<String> = self.checks.breaches().to_vec();
        let mut unmet_count = self.checks.count();
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.counts_as_unfinished()) {
            let views: Vec<String> =
                node.swarm.fetches().map(|view| format!("{} of {} chunks", view.have, view.chunks)).collect();
            let failed: Vec<_> = node.holdings.iter().filter_map(|holding| holding.failed).collect();
            unmet.push(format!("node {at} did not get its layers: {} {failed:?}", views.join(", ")));
            unmet_count += 1;
        }
        let fate = |node: &crate::node::Node| Fate {
            begins: after(node.begins),
            down: node.down_times.clone(),
            lost: node.lost,
            left_out: node.gone || node.slowed || node.lie.is_some(),
        };
        let slices = self.tally.timeline.bins(self.now).map(|(from_s, to_s, moved)| {
            let Moved { down, origin, holders_up } = moved;
            Slice { from_s, to_s, down, origin, holders_up }
        });
        let ended = Ended {
            at: after(self.now),
            fates: self.nodes.iter().map(fate).collect(),
            done: self
                .nodes
                .iter()
                .map(|node| node.completed().map(after).filter(|_| !node.gone && node.lie.is_none()))
                .collect(),
            unmet_count,
            unmet,
            origin_bytes: self.origin.bytes.iter().sum(),
            origin_gets: self.origin.gets.iter().sum(),
            useful_bytes: self.tally.useful_bytes,
            wasted_bytes: self.tally.wasted_bytes,
            wrong_bytes: self.tally.wrong_bytes,
            honest_blamed: self.tally.honest_blamed,
            control_bytes: self.tally.control_bytes,
            events: self.tally.events,
            trace: self.trace,
            counts: self.tally.counts(),
            origin_fetchers_max: self.tally.fetchers_max,
            busiest_messages_per_s: u64::from(self.tally.busiest),
            slices: slices.collect(),
            zones: self.tally.zones,
        };
        Report::new(&self.plan, ended)
    }
}
