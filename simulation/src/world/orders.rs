//! Orders of the swarm machines, obeyed to the letter.

use std::{sync::Arc, time::Duration};

use shoal_proto::{
    chunk::ChunkIndex,
    claim::{Segment, Signature},
    digest::Digest,
    swarm::{Event as Told, Input, Output},
};

use super::{Event, READER, World, tally::Count};
use crate::node::number;

impl World {
    pub(super) fn obey(&mut self, node: usize, order: Output) {
        match order {
            Output::Locate { digest } => {
                let trackers = self.dht.trackers(&digest, self.plan.trackers);
                let holders = self.dht.holders(self.blob(&digest), self.nodes[node].peer);
                self.push(self.plan.locate.0, Event::Swarm(node, Input::Located { digest, trackers }));
                self.push(self.plan.locate.0, Event::Swarm(node, Input::Holders { digest, holders }));
            }
            Output::Announce { digest } => {
                let blob = self.blob(&digest);
                let proven = self.nodes[node].holdings[blob].proven.is_some();
                self.checks.announced(node, blob, proven);
                self.push(self.plan.locate.0, Event::Announced(node, blob));
            }
            Output::Dial { contact } => {
                let to = number(contact.peer);
                self.tally.count(Count::Dials);
                self.push(self.half_trip(node, to) * 3, Event::Dialled { from: node, to });
            }
            Output::Send { peer, message } => self.send(node, number(peer), message),
            Output::Pull { pull, peer, digest, chunk, expected } => {
                self.pull(node, pull, peer, &digest, chunk, expected)
            }
            Output::CancelPull { pull } => self.cancel(node, pull),
            Output::PullOrigin { digest, run, from, until, before } => {
                let blob = self.blob(&digest);
                self.checks.rule(before.is_none_or(|before| before == self.blobs[blob].state(from)), || {
                    format!("node {node} streams from a false state")
                });
                self.origin.request(node, run, blob, from, until, before.is_none());
                self.nodes[node].streams += 1;
                self.tally.fetchers_max = self.tally.fetchers_max.max(self.origin.fetchers());
                self.request(node, run);
                self.faults_at_holder();
            }
            Output::StopOrigin { run, .. } => self.stop_stream(node, run),
            Output::Serve { ask } => self.serve(node, ask),
            Output::Refuse { ask, answer } => self.refuse(ask, answer),
            Output::Arrived { digest, chunk } => self.arrived(node, &digest, chunk),
            Output::Proven { digest } => self.proven(node, &digest),
            Output::Failed { digest, why } => {
                let blob = self.blob(&digest);
                self.tally.count(Count::FailedFetches);
                self.nodes[node].holdings[blob].failed = Some(why);
            }
            Output::Discard { .. } => self.checks.rule(false, || format!("node {node} distrusts a true claim")),
            Output::Report(told) => self.told(told),
            Output::Sized { .. } => {}
            Output::Sign { digest, from, states, .. } => {
                let author = self.nodes[node].peer;
                let segment = Arc::new(Segment { author, from, states, signature: Signature([0; 64]) });
                self.push(Duration::ZERO, Event::Swarm(node, Input::Signed { digest, segment }));
            }
            Output::Hash { digest, chunk, before } => self.hash(node, digest, chunk, before),
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::CorruptChunk { .. } => self.checks.rule(false, || "a true chunk was called corrupt".to_owned()),
            Told::Disputed { .. } => self.checks.rule(false, || "true claims were disputed".to_owned()),
            Told::Untracked { .. } => self.tally.count(Count::Untracked),
            Told::Leased { .. } => self.tally.count(Count::Leases),
            Told::Stalled { .. } => self.tally.count(Count::Stalls),
        }
    }

    fn arrived(&mut self, node: usize, digest: &Digest, chunk: ChunkIndex) {
        let blob = self.blob(digest);
        let count = ChunkIndex(self.blobs[blob].layout.count());
        let holding = &mut self.nodes[node].holdings[blob];
        self.checks
            .rule(holding.have.contains(chunk), || format!("chunk {} arrived at node {node} without bytes", chunk.0));
        holding.arrived.insert(chunk);
        if !self.plan.readers || chunk != holding.reader {
            return;
        }
        let (digest, reader) = (*digest, READER);
        let input = match holding.have.first_missing(chunk) {
            Some(next) => {
                holding.reader = next;
                Input::Reading { digest, reader, chunk: next }
            }
            None => {
                holding.reader = count;
                Input::ReaderLeft { digest, reader }
            }
        };
        self.push(Duration::ZERO, Event::Swarm(node, input));
    }

    fn proven(&mut self, node: usize, digest: &Digest) {
        let blob = self.blob(digest);
        let holding = &mut self.nodes[node].holdings[blob];
        self.checks.rule(holding.have.is_full(), || format!("node {node} proved layer {blob} without all its chunks"));
        self.checks.rule(holding.proven.is_none(), || format!("node {node} proved layer {blob} twice"));
        let new = holding.proven.replace(self.now).is_none();
        if new && self.nodes[node].is_complete() {
            self.unfinished -= 1;
        }
        let segments = self.seal(node, blob);
        self.push(Duration::ZERO, Event::Swarm(node, Input::Sealed { digest: *digest, segments }));
    }

    /// The whole chain of a layer, signed. All say the same, so the first to have it lends its word: ten thousand copies would
    /// fill the memory.
    pub(super) fn seal(&mut self, node: usize, blob: usize) -> Vec<Arc<Segment>> {
        let author = self.nodes[node].peer;
        self.sealed[blob].get_or_insert_with(|| self.blobs[blob].segments(author)).clone()
    }
}
