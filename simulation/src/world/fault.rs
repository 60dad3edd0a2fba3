//! What befalls nodes.

use std::time::Duration;

use shoal_proto::swarm::{AskId, Input, RunId};

use super::{Ask, Event, Stage, World};
use crate::plan::{Kill, Moment, Who};

impl World {
    pub(super) fn kill_at_progress(&mut self) {
        let sent: u64 = self.origin.bytes.iter().sum();
        let share = sent as f64 / self.plan.bytes() as f64;
        let due = |kill: &Kill| matches!(kill.at, Moment::Progress(at) if at <= share);
        while let Some(at) = self.kills.iter().position(due) {
            let kill = self.kills.remove(at);
            self.push(Duration::ZERO, Event::Kill(kill.who));
        }
    }

    pub(super) fn kill(&mut self, who: Who) {
        let dead = match who {
            Who::Node(node) => node,
            Who::LeaseHolder => match self.origin.streaming(|blob| self.blobs[blob].layout.size()) {
                Some(node) => node,
                None => return,
            },
        };
        if !self.nodes[dead].alive {
            return;
        }
        self.note(11, dead, 0);
        self.tally.count("deaths");
        self.nodes[dead].alive = false;
        let runs: Vec<RunId> =
            self.origin.streams.keys().filter(|(node, _)| *node == dead).map(|(_, run)| *run).collect();
        for run in runs {
            self.stop_stream(dead, run);
        }
        let detect = self.plan.detect.0;
        let touched = self.asks.iter().filter(|(_, ask)| ask.sender == dead || ask.receiver == dead);
        let touched: Vec<(AskId, Ask)> = touched.map(|(id, ask)| (*id, *ask)).collect();
        for (id, ask) in touched {
            let wasted = self.end_upload(id);
            self.tally.wasted_bytes += wasted;
            // A sender learns of its receiver's death with the connection's end, and may serve until then.
            if ask.receiver == dead && matches!(ask.stage, Stage::Waiting | Stage::Serving) {
                self.push(detect, Event::Swarm(ask.sender, Input::Served { ask: id }));
            } else {
                self.asks.remove(&id);
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].connected.contains(&dead) {
                self.push(detect, Event::Lost { node, dead });
            }
        }
        self.push(detect, Event::Removed(dead));
    }
}
