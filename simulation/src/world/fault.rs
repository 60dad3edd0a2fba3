//! What befalls nodes.

use std::time::Duration;

use shoal_proto::swarm::{AskId, Input, RunId};

use super::{Ask, Event, Stage, World, tally::Count};
use crate::{
    net::FOREVER,
    plan::{Kill, Moment, Who},
};

impl World {
    pub(super) fn kill_at_progress(&mut self) {
        if self.kills.is_empty() {
            return;
        }
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
        self.tally.count(Count::Deaths);
        self.nodes[dead].alive = false;
        if !self.nodes[dead].is_complete() {
            self.unfinished -= 1;
        }
        self.timers.set(2 * dead, FOREVER);
        self.timers.set(2 * dead + 1, FOREVER);
        let runs: Vec<RunId> =
            self.origin.streams.keys().filter(|(node, _)| *node == dead).map(|(_, run)| *run).collect();
        for run in runs {
            self.stop_stream(dead, run);
        }
        let detect = self.plan.detect.0;
        let touched = self.asks.iter().filter(|(_, ask)| ask.sender == dead || ask.receiver == dead);
        let touched: Vec<(AskId, Ask)> = touched.map(|(id, ask)| (AskId(id), *ask)).collect();
        for (id, ask) in touched {
            let wasted = self.end_upload(id);
            self.tally.wasted_bytes += wasted;
            // A sender learns of its receiver's death with the connection's end, and may serve until then.
            if ask.receiver == dead && matches!(ask.stage, Stage::Waiting | Stage::Serving) {
                self.push(detect, Event::Swarm(ask.sender, Input::Served { ask: id }));
            } else {
                self.nodes[ask.receiver].close_pull(ask.pull);
                self.asks.remove(id.0);
            }
        }
        for node in std::mem::take(&mut self.nodes[dead].connected) {
            self.push(detect, Event::Lost { node: node as usize, dead });
        }
        self.push(detect, Event::Removed(dead));
    }
}
