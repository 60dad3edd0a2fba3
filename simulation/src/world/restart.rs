//! Nodes that go down, and those that come back.

use std::{sync::Arc, time::Duration};

use shoal_proto::{
    chain::Chain,
    chunk::{ChunkIndex, ChunkSet},
    claim::Segment,
    swarm::{AskId, Input, Restored, RunId},
    time::Time,
    tracker,
};

use super::{Ask, Event, Stage, World, tally::Count};
use crate::{
    net::FOREVER,
    node::Node,
    plan::{Disk, Span, Window},
};

impl World {
    /// A node is gone for good.
    pub(super) fn crash(&mut self, node: usize) {
        self.note(11, node, 0);
        self.tally.count(Count::Deaths);
        self.unfinished -= usize::from(self.nodes[node].counts_as_unfinished());
        self.nodes[node].gone = true;
        self.go_down(node);
    }

    /// A node is gone for some time.
    pub(super) fn restart(&mut self, node: usize, after: Duration, disk: Disk) {
        self.note(14, node, 0);
        self.tally.count(Count::Restarts);
        self.unfinished -= usize::from(self.nodes[node].counts_as_unfinished());
        let from = self.now.since(Time::ZERO);
        let to = from + after;
        match disk {
            Disk::Kept => self.keep(node),
            Disk::Lost => {
                self.nodes[node].lose_disk(&self.blobs);
                self.nodes[node].lost = Some(to);
                self.checks.forget(node);
            }
        }
        self.nodes[node].down_times.push(Window { from: Span(from), to: Span(to) });
        self.go_down(node);
        self.unfinished += usize::from(self.nodes[node].counts_as_unfinished());
        self.push_fault(after, Event::Back(node));
    }

    /// Ends all that a node takes part in.
    fn go_down(&mut self, dead: usize) {
        self.nodes[dead].alive = false;
        self.generations[dead] += 1;
        self.nodes[dead].swarm_timer.due = FOREVER;
        self.nodes[dead].tracker_timer.due = FOREVER;
        let streams = self.origin.streams.keys().filter(|(node, _)| *node == dead);
        let runs: Vec<RunId> = streams.map(|(_, run)| *run).collect();
        for run in runs {
            self.stop_stream(dead, run);
        }
        let detect = self.plan.detect.0;
        let touched = self.asks.iter().filter(|(_, ask)| ask.sender.at() == dead || ask.receiver.at() == dead);
        let touched: Vec<(AskId, Ask)> = touched.map(|(id, ask)| (AskId(id), *ask)).collect();
        for (id, ask) in touched {
            let wasted = self.end_upload(id);
            self.tally.wasted_bytes += wasted;
            if ask.receiver.at() == dead && matches!(ask.stage, Stage::Waiting | Stage::Serving) {
                // A sender learns of its receiver's death with the connection's end, and may serve until then.
                if let Some(ask) = self.asks.get_mut(id.0) {
                    ask.place = None;
                }
                self.push(detect, Event::Ended(id));
            } else if ask.receiver.at() == dead || ask.stage != Stage::Done {
                self.asks.remove(id.0);
            }
        }
        self.pulls.clear(dead);
        for node in std::mem::take(&mut self.nodes[dead].connected).sorted() {
            self.push(detect, Event::Lost { node, dead });
        }
        self.push(self.plan.dht.staleness.0, Event::Removed(dead));
    }

    /// The connection that an ask came over has ended.
    pub(super) fn ended(&mut self, id: AskId) {
        let wasted = self.end_upload(id);
        self.tally.wasted_bytes += wasted;
        if let Some(ask) = self.asks.remove(id.0) {
            self.swarm(ask.sender.at(), Input::Served { ask: id });
        }
    }

    /// Puts aside what a node's next process finds: chunks that are verified and covered by signed states.
    fn keep(&mut self, node: usize) {
        for at in 0..self.blobs.len() {
            let blob = &self.blobs[at];
            let Node { swarm, holdings, .. } = &mut self.nodes[node];
            let holding = &mut holdings[at];
            holding.reader = ChunkIndex::FIRST;
            holding.failed = None;
            if holding.proven.is_some() {
                continue;
            }
            let segments = swarm.segments(&blob.digest).to_vec();
            let mut have = ChunkSet::empty(blob.layout.count());
            if let Some(mut chain) = Chain::new(blob.digest, blob.layout) {
                let fits = |segment: &Arc<Segment>| chain.extend(segment.from, &segment.states).is_ok();
                let covered = segments.iter().all(fits);
                debug_assert!(covered, "a machine keeps only states that fit");
                for chunk in holding.arrived.iter().filter(|chunk| chain.can_verify(*chunk)) {
                    have.insert(chunk);
                }
            }
            holding.have = have.clone();
            holding.wrong.retain(|chunk, _| have.contains(*chunk));
            holding.arrived = ChunkSet::empty(blob.layout.count());
            let size = blob.layout.size();
            holding.restored = (!segments.is_empty()).then_some(Restored { size, segments, have });
        }
    }

    /// A node is back: new machines with the old name.
    pub(super) fn back(&mut self, node: usize) {
        if self.nodes[node].alive || self.nodes[node].gone {
            return;
        }
        self.note(15, node, 0);
        let seed = u64::from(self.generations[node]);
        self.nodes[node].renew(&self.limits, seed, self.now);
        for blob in 0..self.blobs.len() {
            if self.nodes[node].holdings[blob].proven.is_some() {
                let segments = self.seal(node, blob);
                let (digest, size) = (self.blobs[blob].digest, self.blobs[blob].layout.size());
                self.swarm(node, Input::Held { digest, size, segments });
            }
        }
        if std::mem::take(&mut self.nodes[node].removed) {
            self.push(self.plan.dht.publish.0, Event::Returned(node));
        }
        if self.now >= self.nodes[node].begins {
            self.want(node);
        }
    }

    /// The DHT finds that a node is gone, if it still is.
    pub(super) fn removed(&mut self, node: usize) {
        if !self.nodes[node].alive {
            self.nodes[node].removed = true;
            self.dht.remove(self.nodes[node].peer);
        }
    }

    /// The DHT finds a node that is back, and the layers that it still has.
    pub(super) fn returned(&mut self, node: usize) {
        let Node { peer, alive: true, ref holdings, .. } = self.nodes[node] else { return };
        self.dht.join(peer);
        for (blob, _) in holdings.iter().enumerate().filter(|(_, holding)| holding.proven.is_some()) {
            self.dht.announce(blob, peer);
        }
    }

    /// A node finds that its connection to one that went down is gone, unless there is a new one.
    pub(super) fn lost(&mut self, node: usize, dead: usize) {
        if !self.nodes[dead].connected.contains(node) {
            self.disconnect(node, dead);
        }
    }

    pub(super) fn disconnect(&mut self, node: usize, other: usize) {
        let peer = self.nodes[other].peer;
        if self.nodes[node].connected.remove(other) {
            self.swarm(node, Input::Disconnected { peer });
            self.tracker(node, tracker::Input::Disconnected { peer });
        }
    }
}
