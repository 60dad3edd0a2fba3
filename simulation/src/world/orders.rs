//! Orders of the swarm machines, obeyed to the letter.

use std::{sync::Arc, time::Duration};

use shoal_proto::{
    chunk::ChunkIndex,
    claim::{Segment, Signature},
    digest::Digest,
    swarm::{Event as Told, Input, Output},
};

use super::{Event, READER, World, tally::Count};
use crate::node::{Node, number};

impl World {
    pub(super) fn obey(&mut self, node: usize, order: Output) {
        match order {
            Output::Locate { digest } => self.locate(node, digest),
            Output::Announce { digest } => {
                let blob = self.blob(&digest);
                let proven = self.nodes[node].holdings[blob].proven.is_some();
                self.checks.announced(node, blob, proven);
                self.announce(node, blob);
            }
            Output::Dial { contact } => {
                let to = number(contact.peer);
                self.tally.count(Count::Dials);
                let trip = self.half_trip(node, to) * 2;
                self.push(trip.mul_f64(self.plan.connect_trips), Event::Dialled { from: node, to });
            }
            Output::Send { peer, message } => self.send(node, number(peer), message),
            Output::Pull { pull, peer, digest, chunk, expected } => {
                self.pull(node, pull, peer, &digest, chunk, expected)
            }
            Output::CancelPull { pull } => self.cancel(node, pull),
            Output::PullOrigin { digest, run, from, until, before } => {
                let blob = self.blob(&digest);
                let sound = self.forgers || before.is_none_or(|before| before == self.blobs[blob].state(from));
                self.checks.rule(sound, || format!("node {node} streams from a false state"));
                self.origin.request(node, run, blob, from, until, before);
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
                self.set_aside(node, blob);
                self.push(self.plan.retry.0, Event::Again(node, blob));
            }
            Output::Discard { digest } => self.discard(node, digest),
            Output::Report(told) => self.told(node, told),
            Output::Sized { .. } => {}
            Output::Sign { digest, from, states, .. } => {
                let author = self.nodes[node].peer;
                let segment = Arc::new(Segment { author, from, states, signature: Signature([0; 64]) });
                self.push_fact(Duration::ZERO, node, Input::Signed { digest, segment });
            }
            Output::Hash { digest, chunk, before } => self.hash(node, digest, chunk, before),
        }
    }

    fn told(&mut self, node: usize, told: Told) {
        match told {
            Told::CorruptChunk { peer, .. } => {
                self.tally.count(Count::Corrupt);
                // Under a forged chain even true bytes are.
                let liar = self.forgers || self.nodes[number(peer)].lie.is_some();
                self.checks.rule(liar, || format!("node {node} called a true chunk corrupt"));
            }
            Told::Convicted { peer, .. } => {
                self.tally.count(Count::Convictions);
                if self.nodes[number(peer)].lie.is_none() && self.nodes[node].lie.is_none() {
                    self.tally.honest_blamed += 1;
                    self.checks.rule(false, || format!("node {node} convicted {}, which is honest", number(peer)));
                }
            }
            Told::Disputed { .. } => {
                self.tally.count(Count::Disputes);
                self.checks.rule(self.liars, || format!("node {node} disputed a true claim"));
            }
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
        if let Some(next) = holding.have.first_missing(chunk) {
            holding.reader = next;
            self.push(Duration::ZERO, Event::Reading { node: node as u32, blob: blob as u32, chunk: next });
        } else {
            holding.reader = count;
            self.push_fact(Duration::ZERO, node, Input::ReaderLeft { digest: *digest, reader: READER });
        }
    }

    /// A claim turned out false: what rested on it is dropped, and its readers end; clients come again.
    fn discard(&mut self, node: usize, digest: Digest) {
        self.tally.count(Count::Discards);
        self.checks.rule(self.liars, || format!("node {node} distrusts a true claim"));
        let blob = self.blob(&digest);
        let holding = &mut self.nodes[node].holdings[blob];
        self.checks.rule(holding.proven.is_none(), || format!("node {node} drops layer {blob} that it has proven"));
        let layout = self.blobs[blob].layout;
        let dropped: u64 = holding.have.iter().map(|chunk| layout.len(chunk)).sum();
        holding.discard();
        self.tally.useful_bytes -= dropped;
        self.tally.wasted_bytes += dropped;
        if self.plan.readers {
            let reader = READER;
            self.push_fact(Duration::ZERO, node, Input::ReaderLeft { digest, reader });
            self.push_fact(Duration::ZERO, node, Input::Reading { digest, reader, chunk: ChunkIndex::FIRST });
        }
    }

    fn proven(&mut self, node: usize, digest: &Digest) {
        let blob = self.blob(digest);
        let Node { holdings, lie, .. } = &mut self.nodes[node];
        let (holding, layout) = (&mut holdings[blob], self.blobs[blob].layout);
        if lie.is_none() && !holding.wrong.is_empty() {
            self.tally.wrong_bytes += holding.wrong.keys().map(|chunk| layout.len(*chunk)).sum::<u64>();
            self.checks.rule(false, || format!("node {node} took wrong bytes of layer {blob} for good"));
        }
        self.checks.rule(holding.have.is_full(), || format!("node {node} proved layer {blob} without all its chunks"));
        self.checks.rule(holding.proven.is_none(), || format!("node {node} proved layer {blob} twice"));
        let new = holding.proven.replace(self.now).is_none();
        if new && lie.is_none() && self.nodes[node].is_complete() {
            self.unfinished -= 1;
        }
        let segments = self.seal(node, blob);
        self.push_fact(Duration::ZERO, node, Input::Sealed { digest: *digest, segments });
    }

    /// The whole chain of a layer, signed. All say the same, so the first to have it lends its word: ten thousand copies would
    /// fill the memory.
    pub(super) fn seal(&mut self, node: usize, blob: usize) -> Vec<Arc<Segment>> {
        let author = self.nodes[node].peer;
        self.sealed[blob].get_or_insert_with(|| self.blobs[blob].segments(author)).clone()
    }
}
