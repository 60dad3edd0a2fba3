//! Streams from the origin to nodes.

use std::time::Duration;

use shoal_proto::{
    chain::{LinkEnd, State},
    chunk::ChunkIndex,
    digest::Digest,
    swarm::{Input, RunId},
};

use super::{Carrier, Event, LOOK, World};
use crate::origin::Stream;

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
        let blob = &self.blobs[stream.blob];
        let left = stream.flow.map_or(0, |flow| self.net.left(self.now, flow));
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
        let link_end = if chunk == last { LinkEnd::Digest(digest) } else { LinkEnd::State(truth.state(chunk.next())) };
        let link_end = (!stream.raw).then_some(link_end);
        let next_bytes = if end { 0 } else { stream.comes(truth.layout.len(chunk.next())) };
        self.origin.bytes[blob] += bytes;
        self.note(10, node, u64::from(chunk.0));
        if let Some(flow) = flow {
            if end {
                self.stop(flow);
                self.origin.streams.remove(&(node, run));
                self.nodes[node].streams -= 1;
            } else {
                self.net.go_on(self.now, flow, next_bytes);
            }
        }
        let new = self.nodes[node].holdings[blob].have.insert(chunk);
        *(if new { &mut self.tally.useful_bytes } else { &mut self.tally.wasted_bytes }) += bytes;
        let bin = self.bin();
        bin.down += bytes;
        bin.origin += bytes;
        self.tally.zones[self.plan.topology.site(node).zone].origin += bytes;
        self.swarm(node, Input::OriginProgress { digest, run, bytes: so_far });
        self.swarm(node, Input::OriginChunk { digest, run, chunk, end: link_end });
        if end {
            self.swarm(node, Input::OriginEnded { digest, run, failure: None });
        }
        self.faults_at_progress();
    }

    /// A node hashes a chunk that it has stored.
    pub(super) fn hash(&mut self, node: usize, digest: Digest, chunk: ChunkIndex, before: State) {
        let blob = self.blob(&digest);
        let truth = &self.blobs[blob];
        let stored = self.nodes[node].holdings[blob].have.contains(chunk);
        self.checks.rule(stored && before == truth.state(chunk), || format!("node {node} hashes what it cannot"));
        let end = if chunk == truth.layout.last() {
            LinkEnd::Digest(digest)
        } else {
            LinkEnd::State(truth.state(chunk.next()))
        };
        let bytes = truth.layout.len(chunk) as f64;
        let took = self
            .plan
            .verify_rate
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes / rate.bytes_per_second() as f64));
        self.push(took, Event::Swarm(node, Input::Hashed { digest, chunk, end: Some(end) }));
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
