//! Nodes that are slow for a time, and those that cannot reach one another.

use std::{sync::Arc, time::Duration};

use shoal_proto::{
    chunk::ChunkSet,
    claim::Segment,
    swarm::{AskId, Restored},
};

use super::{Ask, Event, Stage, World};
use crate::{node::Pace, plan::What};

/// A partition that lasts, or whose connections are not given up yet.
#[derive(Debug)]
pub(super) struct Cut {
    fault: usize,
    /// Of each node, on which side it is.
    side: Vec<bool>,
    severed: bool,
    healed: bool,
}

impl Cut {
    fn is_between(&self, one: usize, other: usize) -> bool {
        self.side[one] != self.side[other]
    }
}

impl World {
    /// A node's rates are multiplied by a fault's factor from now on.
    pub(super) fn slow_down(&mut self, fault: usize, node: usize) {
        self.note(20, node, fault as u64);
        self.nodes[node].slowed = true;
        self.slow.push((node, fault));
        self.set_pace(node);
        if let Some(time) = self.plan.faults[fault].lasts() {
            self.push_fault(time.0, Event::Quick { fault, node });
        }
    }

    /// A slow time is over.
    pub(super) fn quicken(&mut self, fault: usize, node: usize) {
        self.note(21, node, fault as u64);
        if let Some(at) = self.slow.iter().position(|slow| *slow == (node, fault)) {
            self.slow.remove(at);
        }
        self.set_pace(node);
    }

    fn set_pace(&mut self, node: usize) {
        let mut pace = Pace::default();
        for (_, fault) in self.slow.iter().filter(|(other, _)| *other == node) {
            let fault = &self.plan.faults[*fault];
            let (what, factor) = (fault.what(), fault.factor());
            if matches!(what, What::Both | What::Up) {
                pace.up *= factor;
            }
            if matches!(what, What::Both | What::Down) {
                pace.down *= factor;
            }
            if what == What::Disk {
                pace.disk *= factor;
            }
        }
        self.nodes[node].pace = pace;
        let (up, down) = (self.nodes[node].up, self.nodes[node].down);
        self.net.set_rate(up, (self.plan.link_up.bytes_per_second() as f64 * pace.up) as u64);
        self.net.set_rate(down, (self.plan.link_down.bytes_per_second() as f64 * pace.down) as u64);
    }

    /// Some nodes and the others cannot reach one another from now on.
    pub(super) fn part(&mut self, fault: usize, nodes: &[usize]) {
        self.note(22, nodes.len(), fault as u64);
        let mut side = vec![false; self.nodes.len()];
        for node in nodes {
            side[*node] = true;
        }
        let cut = Cut { fault, side, severed: false, healed: false };
        self.drop_asks(&cut, self.plan.detect.0);
        self.cuts.push(cut);
        self.parted = true;
        let lasts = self.plan.faults[fault].lasts().unwrap_or_default();
        self.push(self.plan.detect.0, Event::Severed(fault));
        self.push_fault(lasts.0, Event::Healed(fault));
    }

    /// Ends all asks across a cut. Their senders notice after some time, and may serve until then; so do their receivers.
    fn drop_asks(&mut self, cut: &Cut, notice: Duration) {
        let across = self.asks.iter().filter(|(_, ask)| cut.is_between(ask.sender.at(), ask.receiver.at()));
        let across: Vec<(AskId, Ask)> = across.map(|(id, ask)| (AskId(id), *ask)).collect();
        for (id, ask) in across {
            let wasted = self.end_upload(id);
            self.tally.wasted_bytes += wasted;
            self.bin().down += wasted;
            self.pulls.close(ask.receiver.at(), ask.place);
            if let Some(ask) = self.asks.get_mut(id.0) {
                ask.place = None;
            }
            if matches!(ask.stage, Stage::Waiting | Stage::Serving) {
                self.push(notice, Event::Ended(id));
            } else {
                self.asks.remove(id.0);
            }
        }
    }

    /// The connections across a cut are given up, whether or not it is healed.
    pub(super) fn severed(&mut self, fault: usize) {
        let Some(at) = self.cuts.iter().position(|cut| cut.fault == fault && !cut.severed) else { return };
        self.note(23, self.cuts.len(), fault as u64);
        let mut cut = self.cuts.swap_remove(at);
        self.drop_asks(&cut, Duration::ZERO);
        for node in 0..self.nodes.len() {
            for other in self.nodes[node].connected.sorted() {
                if cut.is_between(node, other) {
                    self.disconnect(node, other);
                }
            }
        }
        cut.severed = true;
        if !cut.healed {
            self.cuts.push(cut);
        }
    }

    /// A partition is over.
    pub(super) fn healed(&mut self, fault: usize) {
        let Some(at) = self.cuts.iter().position(|cut| cut.fault == fault && !cut.healed) else { return };
        self.note(24, self.cuts.len(), fault as u64);
        self.cuts[at].healed = true;
        if self.cuts[at].severed {
            self.cuts.swap_remove(at);
        }
    }

    /// Whether two nodes cannot reach one another.
    pub(super) fn is_cut(&self, one: usize, other: usize) -> bool {
        !self.cuts.is_empty() && self.cuts.iter().any(|cut| !cut.healed && cut.is_between(one, other))
    }

    /// Whether a message is lost on its way to a node.
    pub(super) fn is_lost(&self, node: usize, from: usize) -> bool {
        // What was on its way when a connection was given up goes nowhere.
        self.parted && (self.is_cut(node, from) || node != from && !self.nodes[node].connected.contains(from))
    }

    /// A fetch failed: what its node has of the layer waits for the next wish, as far as it was verified.
    pub(super) fn set_aside(&mut self, node: usize, blob: usize) {
        let layout = self.blobs[blob].layout;
        let author = self.nodes[node].peer;
        let holding = &mut self.nodes[node].holdings[blob];
        if !holding.wrong.is_empty() {
            // The states that its process leaves are as false as the bytes: the next would begin with both.
            let dropped: u64 = holding.have.iter().map(|chunk| layout.len(chunk)).sum();
            holding.discard();
            holding.restored = None;
            self.tally.useful_bytes -= dropped;
            self.tally.wasted_bytes += dropped;
            return;
        }
        let unverified = holding.have.iter().filter(|chunk| !holding.arrived.contains(*chunk));
        let dropped: u64 = unverified.map(|chunk| layout.len(chunk)).sum();
        let have = std::mem::replace(&mut holding.arrived, ChunkSet::empty(layout.count()));
        holding.have = have.clone();
        // States up to the end of the last chunk were known, or it could not have been verified.
        let known = have.last().map_or(0, |last| last.next().0);
        let segments = self.blobs[blob].segments(author).into_iter().filter(|segment| segment.from.0 < known);
        let segments = segments.map(|segment| {
            let states = segment.states.iter().take((known - segment.from.0) as usize + 1).copied().collect();
            Arc::new(Segment { states, ..Segment::clone(&segment) })
        });
        let segments = segments.collect();
        self.tally.useful_bytes -= dropped;
        self.tally.wasted_bytes += dropped;
        let holding = &mut self.nodes[node].holdings[blob];
        holding.restored = (!have.is_empty()).then_some(Restored { size: layout.size(), segments, have });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use shoal_proto::swarm::FetchError;

    use super::*;
    use crate::world::tests::{ended, small};

    #[test]
    fn a_slow_node_gets_its_layers_later_and_does_not_count() {
        let slow = |what: &str| {
            ended(&format!("faults = [{{ at = \"0s\", who = 3, kind = \"slow\", factor = 0.1, what = \"{what}\" }}]"))
        };
        for what in ["down", "disk", "both"] {
            let report = slow(what);
            assert_eq!(report.unmet, Vec::<String>::new());
            assert!(report.slow_max_s > 8.0 && report.max_s < 4.0, "{what}: {report}");
        }
        let up = slow("up");
        assert!(up.unmet.is_empty() && up.slow_max_s < 4.0, "{up}");
    }

    #[test]
    fn slow_times_add_up_and_end() {
        let mut world = World::new(&small(
            "faults = [{ at = \"1s\", who = 3, kind = \"slow\", factor = 0.5, for = \"4s\" },\n\
             { at = \"2s\", who = 3, kind = \"slow\", factor = 0.1, what = \"up\", for = \"2s\" }]",
        ))
        .unwrap();
        let mut paces = vec![(1.0, 1.0)];
        while world.step() {
            let Pace { up, down, .. } = world.nodes[3].pace;
            if paces.last() != Some(&(up, down)) {
                paces.push((up, down));
            }
        }
        assert_eq!(paces, [(1.0, 1.0), (0.5, 0.5), (0.05, 0.5), (0.5, 0.5), (1.0, 1.0)]);
    }

    const PARTED: &str = "topology = { zones = 2 }\nlayers = [\"32MiB\"]\nfaults = [{ at = 0.3, who = \"zone:1\", \
                          kind = \"partition\", for = \"8s\" }]";

    #[test]
    fn nothing_crosses_a_partition_and_all_are_done_after_it() {
        let mut world = World::new(&small(PARTED)).unwrap();
        while world.cuts.is_empty() {
            assert!(world.step());
        }
        let across = |world: &World| world.tally.zones.iter().map(|zone| zone.far).sum::<u64>();
        let (far, mut connected) = (across(&world), true);
        while !world.cuts.is_empty() {
            assert_eq!(across(&world), far);
            connected = world.nodes[0].connected.sorted().iter().any(|other| other % 2 == 1);
            assert!(world.step());
        }
        assert!(!connected, "connections are given up");
        let report = world.run();
        assert_eq!(report.unmet, Vec::<String>::new());
    }

    #[test]
    fn each_side_of_a_partition_goes_on_by_itself() {
        let report = ended(&PARTED.replace("8s", "100s"));
        assert_eq!(report.unmet, Vec::<String>::new());
        // Each side has the origin.
        assert!(report.max_s < 60.0 && report.origin_copies > 1.2 && report.origin_copies < 2.5, "{report}");
    }

    #[test]
    fn a_partition_that_ends_before_anybody_noticed_harms_nobody() {
        let report = ended(&PARTED.replace("8s", "0.5s"));
        assert_eq!(report.unmet, Vec::<String>::new());
    }

    #[test]
    fn a_wish_that_failed_is_made_again_and_goes_on_from_there() {
        let mut world = World::new(&small("retry = \"1s\"")).unwrap();
        while world.nodes[3].holdings[0].arrived.len() < 5 {
            assert!(world.step());
        }
        let digest = world.blobs[0].digest;
        let why = FetchError::Forgotten;
        world.swarm(3, shoal_proto::swarm::Input::Forgotten { digest });
        if world.nodes[3].holdings[0].failed.is_none() {
            world.obey(3, shoal_proto::swarm::Output::Failed { digest, why });
        }
        let failed = world.now;
        assert!(!world.nodes[3].swarm.knows(&digest));
        while !world.nodes[3].swarm.knows(&digest) {
            assert!(world.step());
        }
        assert_eq!(world.now.since(failed), Duration::from_secs(1));
        assert!(world.nodes[3].swarm.fetch(&digest).is_some_and(|view| view.have >= 5));
        assert_eq!(world.run().unmet, Vec::<String>::new());
    }
}
