//! Liars: honest machines whose words and deeds are distorted on their way out.

use shoal_proto::{
    chunk::ChunkSet,
    digest::Digest,
    swarm::{AskId, Verdict},
    wire::{Answer, Message},
};

use super::{Ask, Stage, World};
use crate::{node::Bytes, plan::Lie};

impl World {
    /// Sends what a liar says in place of what its machine says.
    pub(super) fn lie(&mut self, from: usize, to: usize, message: Message) {
        let (lie, forges) = (self.nodes[from].lie, self.nodes[from].signs != Bytes::TRUE);
        let boasts = matches!(lie, Some(Lie::LyingAvailability | Lie::ForgedChain));
        match message {
            Message::Have { digest, .. } | Message::Unknown { digest } if boasts => {
                let layout = self.blobs[self.blob(&digest)].layout;
                let chunks = ChunkSet::full(layout.count());
                self.deliver(from, to, Message::Have { digest, size: layout.size(), chunks });
                self.forge(from, to, digest);
            }
            Message::Have { digest, .. } if forges => {
                self.deliver(from, to, message);
                self.forge(from, to, digest);
            }
            // It has said so already, of all of them.
            Message::Segment { .. } if forges => {}
            Message::Got { .. } | Message::Fresh { .. } if lie == Some(Lie::ForgedChain) => {}
            Message::Got { .. }
            | Message::Fresh { .. }
            | Message::Segment { .. }
            | Message::Have { .. }
            | Message::Unknown { .. }
            | Message::Join(_)
            | Message::Leave { .. }
            | Message::Joined { .. }
            | Message::Revoked { .. }
            | Message::Subscribe { .. }
            | Message::Entitled { .. }
            | Message::Unsubscribe { .. }
            | Message::Peers { .. }
            | Message::Tag { .. } => self.deliver(from, to, message),
        }
    }

    /// A liar hands out its chain of made-up states.
    fn forge(&mut self, from: usize, to: usize, digest: Digest) {
        let (blob, signs) = (self.blob(&digest), self.nodes[from].signs);
        if signs == Bytes::TRUE {
            return;
        }
        let (truth, author) = (&self.blobs[blob], self.nodes[from].peer);
        let forged = self.forged.entry((from, blob)).or_insert_with(|| truth.segments_of(author, signs)).clone();
        let size = truth.layout.size();
        for segment in forged {
            self.deliver(from, to, Message::Segment { digest, size, segment });
        }
    }

    /// Does with an ask what a liar does; returns false where that is what its machine does.
    pub(super) fn lie_to_ask(&mut self, id: AskId, sender: usize) -> bool {
        match self.nodes[sender].lie {
            Some(Lie::Silent) => true,
            Some(Lie::ForgedChain) => {
                if (self.nodes[sender].uploads as usize) < self.limits.uploads_max {
                    self.transmit(id, self.nodes[sender].signs);
                } else {
                    self.refuse(id, Answer::Busy);
                }
                true
            }
            Some(Lie::Corrupt | Lie::LyingAvailability) | None => false,
        }
    }

    /// Whether the bytes that were sent verify.
    pub(super) fn verdict(&self, id: AskId, ask: &Ask) -> Verdict {
        debug_assert_eq!(ask.stage, Stage::Done, "its last byte was sent");
        let truth = &self.blobs[ask.blob.at()];
        let good = if ask.sound {
            ask.bytes == Bytes::TRUE
        } else {
            self.claims
                .get(&id.0)
                .is_some_and(|claim| claim.end == Some(truth.link(claim.before, ask.chunk, ask.bytes)))
        };
        if good { Verdict::Good } else { Verdict::Corrupt }
    }
}
