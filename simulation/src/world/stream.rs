//! Streams from the origin to nodes.

use std::time::Duration;

use shoal_proto::{
    chain::{LinkEnd, State},
    chunk::ChunkIndex,
    digest::Digest,
    swarm::{Input, RunId},
};

use super::{Carrier, Event, LOOK, World};
use crate::{
    node::{Blob, Bytes},
    origin::Stream,
};

impl World {
    pub(super) fn streaming(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get(&(node, run)).copied() else { return };
        self.note(9, node, run.0);
        let blob = &self.blobs[stream.blob];
        let (digest, size, bytes) = (blob.digest, blob.layout.size(), stream.comes(blob.layout.len(stream.chunk)));
        let cap = self.plan.origin_connection_rate.map(|rate| rate.bytes_per_second());
        let flow = self.start(self.origin_path(node), cap, bytes, Carrier::Stream(node, run));
        self.origin.streams.insert((node, run), Stream { flow: Some(flow), ..stream });
        self.swarm(node, Input::OriginOpened { digest, run, size });
        self.push(LOOK, Event::Looked(node, run));
    }

    /// Tells a node how many bytes of a stream have come, in the middle of chunks too.
    pub(super) fn look(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get(&(node, run)).copied() else { return };
        // Without a transfer it is at its end.
        let Some(flow) = stream.flow else { return };
        let (blob, left) = (&self.blobs[stream.blob], self.net.left(self.now, flow));
        let bytes = stream.bytes + stream.comes(blob.layout.len(stream.chunk)).saturating_sub(left);
        let digest = blob.digest;
        self.note(12, node, bytes);
        self.swarm(node, Input::OriginProgress { digest, run, bytes });
        self.push(LOOK, Event::Looked(node, run));
    }

    /// A chunk came from the origin.
    pub(super) fn streamed(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.get_mut(&(node, run)) else { return };
        let (blob, chunk, flow) = (stream.blob, stream.chunk, stream.flow);
        let truth = &self.blobs[blob];
        let bytes = truth.layout.len(chunk);
        if stream.comes(bytes) < bytes {
            self.refused(node, run, None);
            return;
        }
        stream.bytes += bytes;
        stream.chunk = chunk.next();
        let (so_far, digest, last) = (stream.bytes, truth.digest, truth.layout.last());
        let end = chunk == last || stream.until == Some(chunk.next());
        // It ends when its last chunk is written.
        stream.flow = flow.filter(|_| !end);
        let link_end = stream.state.map(|before| truth.link(before, chunk, Bytes::TRUE));
        if let Some(LinkEnd::State(state)) = link_end {
            stream.state = Some(state);
        }
        let next_bytes = if end { 0 } else { stream.comes(truth.layout.len(chunk.next())) };
        self.origin.bytes[blob] += bytes;
        self.note(10, node, u64::from(chunk.0));
        if let Some(flow) = flow {
            if end {
                self.stop(flow);
            } else {
                self.net.go_on(self.now, flow, next_bytes);
            }
        }
        let bin = self.bin();
        bin.down += bytes;
        bin.origin += bytes;
        self.tally.zones[self.plan.topology.site(node).zone].origin += bytes;
        self.swarm(node, Input::OriginProgress { digest, run, bytes: so_far });
        let verified = if link_end.is_some() { self.verified(node, Duration::ZERO, bytes) } else { Duration::ZERO };
        let after = self.written(node, verified, bytes);
        self.push(after, Event::Stored { node, run, chunk, end: link_end.map(Box::new) });
        self.faults_at_progress();
    }

    /// A chunk from the origin is verified, if the state in front of it is known, and written.
    pub(super) fn stored(&mut self, node: usize, run: RunId, chunk: ChunkIndex, end: Option<LinkEnd>) {
        let Some(Stream { blob, until, flow, .. }) = self.origin.streams.get(&(node, run)).copied() else {
            return;
        };
        self.note(19, node, u64::from(chunk.0));
        let Blob { digest, layout } = self.blobs[blob];
        let bytes = layout.len(chunk);
        let new = self.nodes[node].holdings[blob].store(chunk, Bytes::TRUE);
        *(if new { &mut self.tally.useful_bytes } else { &mut self.tally.wasted_bytes }) += bytes;
        let last = flow.is_none() && (chunk == layout.last() || until == Some(chunk.next()));
        if last {
            self.origin.streams.remove(&(node, run));
            self.nodes[node].streams -= 1;
        }
        self.swarm(node, Input::OriginChunk { digest, run, chunk, end });
        if last {
            self.swarm(node, Input::OriginEnded { digest, run, failure: None });
        }
    }

    /// A node hashes a chunk that it has stored.
    pub(super) fn hash(&mut self, node: usize, digest: Digest, chunk: ChunkIndex, before: State) {
        let blob = self.blob(&digest);
        let truth = &self.blobs[blob];
        let holding = &self.nodes[node].holdings[blob];
        let sound = holding.have.contains(chunk) && (self.forgers || before == truth.state(chunk));
        self.checks.rule(sound, || format!("node {node} hashes what it cannot"));
        let end = truth.link(before, chunk, holding.bytes(chunk));
        let bytes = truth.layout.len(chunk);
        let took = self.verified(node, Duration::ZERO, bytes);
        self.push_fact(took, node, Input::Hashed { digest, chunk, end: Some(end) });
    }

    pub(super) fn stop_stream(&mut self, node: usize, run: RunId) {
        let Some(stream) = self.origin.streams.remove(&(node, run)) else { return };
        self.nodes[node].streams -= 1;
        let Some(flow) = stream.flow else { return };
        let left = self.stop(flow);
        let sent = stream.comes(self.blobs[stream.blob].layout.len(stream.chunk)).saturating_sub(left);
        self.origin.bytes[stream.blob] += sent;
        self.tally.wasted_bytes += sent;
        self.tally.zones[self.plan.topology.site(node).zone].origin += sent;
        let bin = self.bin();
        bin.down += sent;
        bin.origin += sent;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use crate::world::{World, tests::small};

    #[test]
    fn a_stream_is_over_when_its_last_chunk_is_written() {
        let mut world = World::new(&small("write_rate = \"10MB/s\"")).unwrap();
        let mut most = 0;
        while world.step() {
            most = most.max(world.origin.streams.len());
        }
        assert!(most > 0 && world.origin.streams.is_empty());
        assert!(world.nodes.iter().all(|node| node.streams == 0 && node.holdings[0].have.is_full()));
    }
}
