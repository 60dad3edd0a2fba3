//! Chunks on their way from node to node.

use shoal_proto::{
    chain::Expected,
    chunk::ChunkIndex,
    digest::Digest,
    peer::PeerId,
    swarm::{AskId, Input, PullId, Verdict},
    wire::Answer,
};

use super::{Ask, Carrier, Event, Stage, World, tally::Count};
use crate::{
    net::{FlowId, Path},
    node::{Bytes, Index, number},
    plan::Lie,
    timeline::Moved,
};

/// In the tag of a transfer from the origin.
const STREAM: u64 = 1 << 63;

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
        let sound = expected == truth.expected(chunk);
        self.checks.rule(sound || self.forgers && expected.end.is_some(), || {
            format!("node {node} pulls chunk {} without knowing its link", chunk.0)
        });
        // What a stream that was given up has left behind, the machine does not know of.
        let needed = !self.nodes[node].holdings[blob].arrived.contains(chunk);
        self.checks.rule(needed, || format!("node {node} pulls chunk {} that it has", chunk.0));
        let stage = Stage::Sent;
        let bytes = Bytes::TRUE;
        let [receiver, from, layer] = [node, sender, blob].map(Index::new);
        let ask =
            Ask { receiver, sender: from, blob: layer, chunk, pull, place: None, stage, flow: None, bytes, sound };
        let ask = AskId(self.asks.insert(ask));
        let place = self.pulls.open(node, pull, ask);
        if let Some(ask) = self.asks.get_mut(ask.0) {
            ask.place = Some(place);
        }
        if !sound {
            self.claims.insert(ask.0, expected);
        }
        self.tally.count(Count::Pulls);
        self.push(self.message_time(node, sender), Event::Asked(ask));
    }

    pub(super) fn asked(&mut self, id: AskId) {
        let Some(ask) = self.asks.get_mut(id.0) else { return };
        ask.stage = Stage::Waiting;
        let Ask { chunk, place, sound, .. } = *ask;
        let [receiver, sender, blob] = [ask.receiver, ask.sender, ask.blob].map(Index::at);
        if !self.nodes[sender].connected.contains(receiver) || self.is_cut(sender, receiver) {
            // It went down or is cut off, and the receiver has not noticed yet.
            self.pulls.close(receiver, place);
            self.asks.remove(id.0);
            return;
        }
        self.note(6, sender, u64::from(chunk.0));
        self.tally.busiest = self.tally.busiest.max(self.nodes[sender].load.message(self.now));
        if self.nodes[sender].lie.is_some() && self.lie_to_ask(id, sender) {
            return;
        }
        let (digest, peer) = (self.blobs[blob].digest, self.nodes[receiver].peer);
        let claimed = self.claims.get(&id.0).copied().filter(|_| !sound);
        let ends = claimed.unwrap_or_else(|| self.blobs[blob].expected(chunk)).ends();
        self.open(sender, digest);
        self.swarm(sender, Input::Asked { ask: id, peer, digest, chunk, ends });
    }

    pub(super) fn serve(&mut self, node: usize, id: AskId) {
        let Some(ask) = self.asks.get_mut(id.0).filter(|ask| ask.sender.at() == node && ask.stage == Stage::Waiting)
        else {
            self.checks.rule(false, || format!("node {node} serves what nobody waits for"));
            return;
        };
        let (sender, blob, chunk) = (ask.sender.at(), ask.blob.at(), ask.chunk);
        let holding = &self.nodes[sender].holdings[blob];
        let (truly, bytes) = (holding.have.contains(chunk), holding.bytes(chunk));
        self.checks.rule(truly, || format!("node {sender} serves chunk {} that it lacks", chunk.0));
        let spoils = self.nodes[sender].lie == Some(Lie::Corrupt);
        self.transmit(id, if spoils { Bytes::WRONG } else { bytes });
    }

    /// A chunk's bytes go on their way.
    pub(super) fn transmit(&mut self, id: AskId, bytes: Bytes) {
        let Some(ask) = self.asks.get_mut(id.0) else { return };
        (ask.stage, ask.bytes) = (Stage::Serving, bytes);
        let [receiver, sender, blob] = [ask.receiver, ask.sender, ask.blob].map(Index::at);
        let chunk = ask.chunk;
        if !self.nodes[receiver].alive || self.is_cut(sender, receiver) {
            return;
        }
        self.nodes[sender].uploads += 1;
        let uploads = self.nodes[sender].uploads;
        self.checks.rule(uploads as usize <= self.limits.uploads_max, || {
            format!("node {sender} serves {uploads} chunks at once")
        });
        let (path, bytes) = (self.path(sender, receiver), self.blobs[blob].layout.len(chunk));
        let flow = self.start(path, None, bytes, Carrier::Chunk(id));
        if let Some(ask) = self.asks.get_mut(id.0) {
            ask.flow = Some(flow);
        }
    }

    /// Starts a transfer.
    pub(super) fn start(&mut self, path: Path, cap: Option<u64>, bytes: u64, carrier: Carrier) -> FlowId {
        let tag = match carrier {
            Carrier::Chunk(ask) => ask.0,
            Carrier::Stream(node, run) => STREAM | self.carriers.insert((node, run)),
        };
        self.net.start(self.now, path, cap, bytes, tag)
    }

    /// Ends a transfer; returns the bytes that it still had to send.
    pub(super) fn stop(&mut self, flow: FlowId) -> u64 {
        if let Some(tag) = self.net.tag(flow).filter(|tag| tag & STREAM != 0) {
            self.carriers.remove(tag & !STREAM);
        }
        self.net.stop(self.now, flow)
    }

    pub(super) fn refuse(&mut self, id: AskId, answer: Answer) {
        let Some(ask) = self.asks.get_mut(id.0).filter(|ask| ask.stage == Stage::Waiting) else {
            self.checks.rule(false, || "an ask was answered twice".to_owned());
            return;
        };
        ask.stage = Stage::Done;
        let (sender, receiver) = (ask.sender.at(), ask.receiver.at());
        let verdict = match answer {
            Answer::Busy => {
                self.tally.count(Count::Busy);
                Verdict::Busy
            }
            Answer::Missing => {
                self.tally.count(Count::Missing);
                Verdict::Missing
            }
            Answer::Bytes => Verdict::Link,
        };
        self.push(self.message_time(sender, receiver), Event::Answered(id, verdict));
    }

    pub(super) fn flow_ended(&mut self, flow: FlowId) {
        let Some(tag) = self.net.tag(flow) else { return };
        if tag & STREAM == 0 {
            self.sent(AskId(tag));
        } else if let Some((node, run)) = self.carriers.get(tag & !STREAM).copied() {
            self.streamed(node, run);
        }
    }

    /// The last byte of a chunk left its sender.
    pub(super) fn sent(&mut self, id: AskId) {
        self.end_upload(id);
        let Some(ask) = self.asks.get(id.0).copied() else { return };
        let [receiver, sender, blob] = [ask.receiver, ask.sender, ask.blob].map(Index::at);
        let bytes = self.blobs[blob].layout.len(ask.chunk);
        let trip = self.half_trip(sender, receiver);
        let verified = self.verified(receiver, trip, bytes);
        let after = self.written(receiver, verified, bytes);
        let verdict = self.verdict(id, &ask);
        self.push(after, Event::Answered(id, verdict));
        if self.nodes[sender].streams > 0 {
            self.bin().holders_up += bytes;
        }
        self.swarm(sender, Input::Served { ask: id });
    }

    /// Ends the transfer of a chunk, if it runs. Returns the bytes that were sent in vain if it was not at its end.
    pub(super) fn end_upload(&mut self, id: AskId) -> u64 {
        let Some(ask) = self.asks.get_mut(id.0) else { return 0 };
        let Some(flow) = ask.flow.take() else { return 0 };
        ask.stage = Stage::Done;
        let (sender, bytes) = (ask.sender.at(), self.blobs[ask.blob.at()].layout.len(ask.chunk));
        self.nodes[sender].uploads -= 1;
        bytes.saturating_sub(self.stop(flow))
    }

    pub(super) fn answered(&mut self, id: AskId, verdict: Verdict) {
        let Some(ask) = self.asks.remove(id.0) else { return };
        let Ask { chunk, pull, .. } = ask;
        let [receiver, sender, blob] = [ask.receiver, ask.sender, ask.blob].map(Index::at);
        self.note(7, receiver, u64::from(chunk.0) << 8 | verdict as u64);
        let bytes = self.blobs[blob].layout.len(chunk);
        let wanted = ask.place.is_some();
        self.pulls.close(receiver, ask.place);
        if !ask.sound {
            self.claims.remove(&id.0);
        }
        if matches!(verdict, Verdict::Good | Verdict::Corrupt) {
            let stored = wanted && verdict == Verdict::Good;
            let new = stored && self.nodes[receiver].holdings[blob].store(chunk, ask.bytes);
            *(if new { &mut self.tally.useful_bytes } else { &mut self.tally.wasted_bytes }) += bytes;
            self.bin().down += bytes;
            let place = &self.plan.topology;
            self.tally.moved(place.site(sender), place.site(receiver), bytes);
        }
        if wanted {
            let digest = self.blobs[blob].digest;
            self.swarm(receiver, Input::Pulled { digest, pull, verdict });
        }
    }

    pub(super) fn bin(&mut self) -> &mut Moved {
        self.tally.timeline.now(self.now)
    }

    pub(super) fn cancel(&mut self, node: usize, pull: PullId) {
        let Some(id) = self.pulls.take(node, pull) else { return };
        self.tally.count(Count::Cancels);
        let sender = self.asks.get_mut(id.0).map_or(node, |ask| {
            ask.place = None;
            ask.sender.at()
        });
        self.push(self.message_time(node, sender), Event::Withdrawn(id));
    }

    pub(super) fn withdrawn(&mut self, id: AskId) {
        let Some(ask) = self.asks.get(id.0).copied() else { return };
        if ask.stage == Stage::Done {
            // Its answer is on the way, and will find that nobody wants it.
            return;
        }
        let (sender, receiver) = (ask.sender.at(), ask.receiver.at());
        self.note(8, sender, u64::from(ask.chunk.0));
        let wasted = self.end_upload(id);
        self.tally.wasted_bytes += wasted;
        self.bin().down += wasted;
        let place = &self.plan.topology;
        self.tally.moved(place.site(sender), place.site(receiver), wasted);
        self.asks.remove(id.0);
        self.swarm(sender, Input::Served { ask: id });
    }
}
