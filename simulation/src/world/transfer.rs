//! Chunks on their way from node to node.

use std::time::Duration;

use shoal_proto::{
    chain::{Expected, LinkEnd},
    chunk::ChunkIndex,
    digest::Digest,
    peer::PeerId,
    swarm::{AskId, Input, PullId, Verdict},
    time::Time,
    wire::Answer,
};

use super::{Ask, Carrier, Event, Stage, World};
use crate::{
    net::FlowId,
    node::number,
    report::{BINS, Bin},
};

impl World {
    pub(super) fn pull(
        &mut self,
        node: usize,
        pull: PullId,
        from: PeerId,
        digest: &Digest,
        chunk: ChunkIndex,
        expected: Expected,
    ) {
        let (sender, blob) = (number(from), self.blob(digest));
        let truth = &self.blobs[blob];
        let end = if chunk == truth.layout.last() {
            LinkEnd::Digest(*digest)
        } else {
            LinkEnd::State(truth.state(chunk.next()))
        };
        let sound = expected == Expected { before: truth.state(chunk), end: Some(end) };
        self.checks.rule(sound, || format!("node {node} pulls chunk {} without knowing its link", chunk.0));
        let needed = !self.nodes[node].holdings[blob].have.contains(chunk);
        self.checks.rule(needed, || format!("node {node} pulls chunk {} that it has", chunk.0));
        let ask = AskId(self.sequence + 1);
        let stage = Stage::Sent;
        self.asks.insert(ask, Ask { receiver: node, sender, blob, chunk, pull, stage, flow: None });
        self.pulls.insert((node, pull), ask);
        self.tally.count("pulls");
        self.push(self.half_trip(), Event::Asked(ask));
    }

    pub(super) fn asked(&mut self, id: AskId) {
        let Some(ask) = self.asks.get_mut(&id) else { return };
        ask.stage = Stage::Waiting;
        let Ask { receiver, sender, blob, chunk, .. } = *ask;
        self.note(6, sender, u64::from(chunk.0));
        let (digest, peer) = (self.blobs[blob].digest, self.nodes[receiver].peer);
        self.swarm(sender, Input::Asked { ask: id, peer, digest, chunk });
    }

    pub(super) fn serve(&mut self, node: usize, id: AskId) {
        let Some(ask) = self.asks.get_mut(&id).filter(|ask| ask.sender == node && ask.stage == Stage::Waiting) else {
            self.checks.rule(false, || format!("node {node} serves what nobody waits for"));
            return;
        };
        ask.stage = Stage::Serving;
        let Ask { receiver, sender, blob, chunk, .. } = *ask;
        let truly = self.nodes[sender].holdings[blob].have.contains(chunk);
        self.checks.rule(truly, || format!("node {sender} serves chunk {} that it lacks", chunk.0));
        if !self.nodes[receiver].alive {
            return;
        }
        self.uploads[sender] += 1;
        let uploads = self.uploads[sender];
        self.checks.rule(uploads <= self.uploads_max, || format!("node {sender} serves {uploads} chunks at once"));
        let (from, to) = (self.nodes[sender].up, self.nodes[receiver].down);
        let flow = self.net.start(self.now, from, to, None, self.blobs[blob].layout.len(chunk));
        if let Some(ask) = self.asks.get_mut(&id) {
            ask.flow = Some(flow);
        }
        self.carriers.insert(flow, Carrier::Chunk(id));
    }

    pub(super) fn refuse(&mut self, id: AskId, answer: Answer) {
        let Some(ask) = self.asks.get_mut(&id).filter(|ask| ask.stage == Stage::Waiting) else {
            self.checks.rule(false, || "an ask was answered twice".to_owned());
            return;
        };
        ask.stage = Stage::Done;
        let (what, verdict) = match answer {
            Answer::Busy => ("busy", Verdict::Busy),
            Answer::Missing => ("missing", Verdict::Missing),
            Answer::Bytes => ("", Verdict::Link),
        };
        self.tally.count(what);
        self.push(self.half_trip(), Event::Answered(id, verdict));
    }

    pub(super) fn flow_ended(&mut self, flow: FlowId) {
        match self.carriers.get(&flow).copied() {
            Some(Carrier::Chunk(ask)) => self.sent(ask),
            Some(Carrier::Stream(node, run)) => self.streamed(node, run),
            None => {
                self.net.stop(self.now, flow);
            }
        }
    }

    /// The last byte of a chunk left its sender.
    pub(super) fn sent(&mut self, id: AskId) {
        self.end_upload(id);
        let Some(ask) = self.asks.get(&id).copied() else { return };
        let bytes = self.blobs[ask.blob].layout.len(ask.chunk);
        let receiver = &mut self.nodes[ask.receiver];
        let arrival = self.now + self.plan.rtt.0 / 2;
        let verify = self
            .plan
            .verify_rate
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate.bytes_per_second() as f64));
        receiver.verifies_until = receiver.verifies_until.max(arrival) + verify;
        let after = receiver.verifies_until.since(self.now);
        self.push(after, Event::Answered(id, Verdict::Good));
        if self.origin.streams.keys().any(|(node, _)| *node == ask.sender) {
            self.bin().holders_up += bytes;
        }
        self.swarm(ask.sender, Input::Served { ask: id });
    }

    /// Ends the transfer of a chunk, if it runs. Returns the bytes that were sent in vain if it was not at its end.
    pub(super) fn end_upload(&mut self, id: AskId) -> u64 {
        let Some(ask) = self.asks.get_mut(&id) else { return 0 };
        let Some(flow) = ask.flow.take() else { return 0 };
        ask.stage = Stage::Done;
        let (sender, bytes) = (ask.sender, self.blobs[ask.blob].layout.len(ask.chunk));
        self.uploads[sender] -= 1;
        self.carriers.remove(&flow);
        bytes.saturating_sub(self.net.stop(self.now, flow))
    }

    pub(super) fn answered(&mut self, id: AskId, verdict: Verdict) {
        let Some(ask) = self.asks.remove(&id) else { return };
        let Ask { receiver, blob, chunk, pull, .. } = ask;
        self.note(7, receiver, u64::from(chunk.0) << 8 | verdict as u64);
        let bytes = self.blobs[blob].layout.len(chunk);
        let wanted = self.pulls.remove(&(receiver, pull)).is_some();
        if verdict == Verdict::Good {
            let new = wanted && self.nodes[receiver].holdings[blob].have.insert(chunk);
            *(if new { &mut self.tally.useful_bytes } else { &mut self.tally.wasted_bytes }) += bytes;
            self.bin().down += bytes;
        }
        if wanted {
            let digest = self.blobs[blob].digest;
            self.swarm(receiver, Input::Pulled { digest, pull, verdict });
        }
    }

    pub(super) fn bin(&mut self) -> &mut Bin {
        let share = self.now.since(Time::ZERO).as_secs_f64() / self.bound.as_secs_f64();
        self.tally.bin(((share * BINS as f64) as usize).min(BINS))
    }

    pub(super) fn cancel(&mut self, node: usize, pull: PullId) {
        let Some(ask) = self.pulls.remove(&(node, pull)) else { return };
        self.tally.count("cancels");
        self.push(self.half_trip(), Event::Withdrawn(ask));
    }

    pub(super) fn withdrawn(&mut self, id: AskId) {
        let Some(ask) = self.asks.get(&id).copied() else { return };
        if ask.stage == Stage::Done {
            // Its answer is on the way, and will find that nobody wants it.
            return;
        }
        self.note(8, ask.sender, u64::from(ask.chunk.0));
        let wasted = self.end_upload(id);
        self.tally.wasted_bytes += wasted;
        self.bin().down += wasted;
        self.asks.remove(&id);
        self.swarm(ask.sender, Input::Served { ask: id });
    }
}
