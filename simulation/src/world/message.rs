//! Connections, and messages on them.

use std::time::Duration;

use shoal_proto::{
    chunk::ChunkIndex,
    digest::Digest,
    swarm::Input,
    tracker,
    wire::{FRAME_HEADER_BYTES, Message, encode_message},
};

use super::{Event, World, tally};
use crate::node::{Node, contact};

impl World {
    pub(super) fn send(&mut self, from: usize, to: usize, message: Message) {
        let connected = from == to || self.nodes[from].connected.contains(to);
        self.checks.rule(connected, || format!("node {from} sends to {to} without a connection: {message:?}"));
        if !connected {
            return;
        }
        if self.nodes[from].lie.is_some() && from != to {
            self.lie(from, to, message);
        } else {
            self.deliver(from, to, message);
        }
    }

    /// A message goes on its way.
    pub(super) fn deliver(&mut self, from: usize, to: usize, message: Message) {
        self.tally.count(tally::kind(&message));
        if let Message::Got { digest, chunks } = &message {
            let holding = &self.nodes[from].holdings[self.blob(digest)];
            let true_word = chunks.iter().all(|chunk| holding.have.contains(*chunk));
            self.checks.rule(true_word, || format!("node {from} tells of chunks that it lacks"));
        }
        let after = if from == to {
            Duration::ZERO
        } else {
            self.tally.control_bytes += bytes(&message) as u64;
            if self.generations[to] > 0 && !self.nodes[to].connected.contains(from) {
                return;
            }
            self.message_time(from, to)
        };
        let (from, to) = (from as u32, to as u32);
        let event = if let Message::Got { digest, chunks } = message {
            Event::Got { to, from, blob: self.blob(&digest) as u32, chunks }
        } else {
            Event::Message { to, from, message: Box::new(message) }
        };
        self.push(after, event);
    }

    /// A message reaches a node.
    pub(super) fn received(&mut self, node: usize, from: usize, message: Message) {
        let for_tracker = matches!(message, Message::Join(_) | Message::Leave { .. });
        self.note(if for_tracker { 2 } else { 1 }, node, u64::from(!for_tracker));
        self.tally.busiest = self.tally.busiest.max(self.nodes[node].load.message(self.now));
        if self.is_lost(node, from) {
            return;
        }
        let peer = self.nodes[from].peer;
        match message {
            Message::Join(join) => self.tracker(node, tracker::Input::Joined { contact: contact(peer), join }),
            Message::Leave { digest } => self.tracker(node, tracker::Input::Left { peer, digest }),
            Message::Subscribe { digest, .. } => {
                self.open(node, digest);
                self.swarm(node, Input::Received { peer, message });
            }
            Message::Joined { .. }
            | Message::Revoked { .. }
            | Message::Unsubscribe { .. }
            | Message::Have { .. }
            | Message::Got { .. }
            | Message::Fresh { .. }
            | Message::Peers { .. }
            | Message::Segment { .. }
            | Message::Unknown { .. }
            | Message::Entitled { .. }
            | Message::Tag { .. } => self.swarm(node, Input::Received { peer, message }),
        }
    }

    pub(super) fn dialled(&mut self, from: usize, to: usize) {
        self.note(5, from, to as u64);
        if !self.nodes[to].alive || self.is_cut(from, to) {
            // The rest of the time until a dial is given up.
            self.push(self.plan.detect.0, Event::Unreached { from, to });
            return;
        }
        if !self.nodes[from].alive || !self.nodes[from].connected.insert(to) {
            return;
        }
        // The other side may not have noticed yet that an earlier process is gone.
        self.disconnect(to, from);
        self.nodes[to].connected.insert(from);
        for (node, other) in [(from, to), (to, from)] {
            let work = self.handshake(node);
            if work == Duration::ZERO {
                self.connected(node, other);
            } else {
                self.push(work, Event::Connected { node, other });
            }
        }
    }

    /// A node has worked on a new connection.
    pub(super) fn connected(&mut self, node: usize, other: usize) {
        if self.nodes[node].connected.contains(other) {
            let Node { peer, place, .. } = self.nodes[other];
            self.swarm(node, Input::Connected { peer, place });
        }
    }

    /// A dial was in vain, unless the other side's came through meanwhile.
    pub(super) fn unreached(&mut self, from: usize, to: usize) {
        if !self.nodes[from].connected.contains(to) {
            let peer = self.nodes[to].peer;
            self.swarm(from, Input::Disconnected { peer });
        }
    }
}

/// Bytes of a message's frame. The many are counted without being encoded; the few are encoded.
fn bytes(message: &Message) -> usize {
    let body = match message {
        Message::Got { digest, chunks } | Message::Fresh { digest, chunks } => {
            let chunks: usize = chunks.iter().map(|chunk| number(u64::from(chunk.0))).sum::<usize>() + count(chunks);
            named(digest) + chunks
        }
        Message::Have { digest, size, chunks } => {
            let capacity = chunks.capacity();
            named(digest) + number(*size) + number(u64::from(capacity)) + capacity.div_ceil(8) as usize
        }
        Message::Segment { digest, size, segment } => {
            let states = count(&segment.states) + 32 * segment.states.len();
            named(digest) + number(*size) + 32 + index(segment.from) + states + 64
        }
        Message::Subscribe { digest, frontier } => named(digest) + index(*frontier),
        Message::Leave { digest } | Message::Unsubscribe { digest } | Message::Unknown { digest } => named(digest),
        Message::Entitled { digest, proof } => named(digest) + proof.len(),
        Message::Join(_)
        | Message::Joined { .. }
        | Message::Peers { .. }
        | Message::Revoked { .. }
        | Message::Tag { .. } => {
            return encode_message(message).len();
        }
    };
    FRAME_HEADER_BYTES + body
}

/// The kind of a message and its digest.
fn named(digest: &Digest) -> usize {
    2 + digest.as_bytes().len()
}

fn index(chunk: ChunkIndex) -> usize {
    number(u64::from(chunk.0))
}

const fn count<T>(things: &[T]) -> usize {
    number(things.len() as u64)
}

/// Bytes of a number on the wire.
const fn number(number: u64) -> usize {
    match number {
        0..251 => 1,
        251..0x1_0000 => 3,
        0x1_0000..0x1_0000_0000 => 5,
        0x1_0000_0000.. => 9,
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::{chunk::ChunkSet, digest::Digest};

    use super::*;
    use crate::node::Blob;

    #[test]
    fn messages_are_counted_as_they_are_encoded() {
        for size in [0, 200, 70_000, 300 << 20, 10_000 << 20] {
            let blob = Blob::new(1, 0, size);
            let (digest, last) = (blob.digest, blob.layout.last());
            let author = shoal_proto::peer::PeerId([7; 32]);
            let chunks: Vec<ChunkIndex> = [0, last.0 / 7, last.0 / 2, last.0].map(ChunkIndex).to_vec();
            let mut messages = vec![
                Message::Have { digest, size, chunks: ChunkSet::full(blob.layout.count()) },
                Message::Got { digest, chunks: chunks.clone() },
                Message::Fresh { digest: Digest::sha512([3; 64]), chunks },
                Message::Got { digest, chunks: (0..300).map(ChunkIndex).collect() },
                Message::Unknown { digest },
                Message::Leave { digest },
                Message::Unsubscribe { digest },
                Message::Subscribe { digest, frontier: last },
            ];
            messages.extend(blob.segments(author).into_iter().map(|segment| Message::Segment {
                digest,
                size,
                segment,
            }));
            for message in messages {
                assert_eq!(bytes(&message), encode_message(&message).len(), "{message:?}");
            }
        }
    }
}
