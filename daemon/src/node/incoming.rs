//! What peers send: messages for the machines, and asks for chunks. Those that concern a blob which is in the store, but
//! which the machine does not know (any more), wait until it is open.

use std::sync::Arc;

use shoal_proto::{
    claim::Segment,
    digest::Digest,
    peer::PeerId,
    swarm::{AskId, Input},
    tracker,
    wire::{Answer, Ask, Message},
};

use super::{
    driver::{Asked, Driver, Fact},
    vouched::Vouched,
};
use crate::{identity, quic::PlaneEvent};

/// Messages kept for one blob while it is being opened in the store.
const WAITING_MAX: usize = 256;

/// A peer's word about a blob that is still being opened in the store.
#[derive(Debug)]
pub(super) enum Waiting {
    Message(PeerId, Message),
    Asked(PeerId, Asked),
}

impl Driver {
    pub(super) fn opened(&mut self, digest: Digest, sealed: Option<Arc<Vouched>>) {
        if let Some(sealed) = sealed {
            let (size, segments) = (sealed.layout().size(), sealed.segments().to_vec());
            self.held.insert(digest, sealed);
            self.swarm(Input::Held { digest, size, segments });
        }
        for waiting in self.opening.remove(&digest).unwrap_or_default() {
            match waiting {
                Waiting::Message(peer, message) => self.swarm(Input::Received { peer, message }),
                Waiting::Asked(peer, asked) => self.asked(peer, asked),
            }
        }
    }

    pub(super) fn event(&mut self, event: PlaneEvent) {
        match event {
            PlaneEvent::Connected { contact, place } => {
                self.contacts.insert(contact.peer, contact);
                if let Some(exporter) = self.parts.plane.exporter(contact.peer) {
                    self.gate.connected(contact.peer, exporter);
                }
                self.count_peers();
                self.tags_connected(contact.peer);
                self.swarm(Input::Connected { peer: contact.peer, place });
            }
            PlaneEvent::Disconnected { peer } => {
                self.contacts.remove(&peer);
                self.gate.disconnected(peer);
                self.count_peers();
                self.tags_disconnected(peer);
                self.swarm(Input::Disconnected { peer });
                self.track(tracker::Input::Disconnected { peer });
            }
            // The peer's own dial may have come through meanwhile: then its session is what counts.
            PlaneEvent::DialFailed { peer } if self.contacts.contains_key(&peer) => {}
            PlaneEvent::DialFailed { peer } => {
                self.tags_disconnected(peer);
                self.swarm(Input::Disconnected { peer });
            }
            PlaneEvent::Message { peer, message } => self.message(peer, message),
            PlaneEvent::Asked { peer, ask, reply } => {
                if !self.admits(peer, &ask.digest) {
                    reply.refuse(Answer::Missing);
                    return;
                }
                let asked = Asked { ask, reply };
                if self.is_closed(&ask.digest) {
                    self.open(ask.digest, Waiting::Asked(peer, asked));
                } else {
                    self.asked(peer, asked);
                }
            }
        }
    }

    fn message(&mut self, peer: PeerId, message: Message) {
        if let Message::Join(_) | Message::Leave { .. } = message {
            if let Some(contact) = self.contacts.get(&peer).copied() {
                self.tracked(contact, message);
            }
            return;
        }
        if let Message::Tag { key, word } = message {
            self.tag_word(peer, key, word);
            return;
        }
        // States that are known already teach nothing: no need for the signature that most copies of a segment cost.
        if let Message::Segment { digest, size, segment } = &message
            && !self.swarm.agrees(digest, *size, segment)
            && !is_signed(digest, *size, segment)
        {
            tracing::warn!(%peer, author = %segment.author, "a segment with a bad signature; closing the connection");
            self.parts.plane.hangup(peer);
            return;
        }
        let message = self.gate.unveil(message);
        if let Message::Entitled { digest, proof } = message {
            self.gate.shown(peer, digest, proof);
            return;
        }
        if let Message::Subscribe { digest, .. } = message {
            if !self.admits(peer, &digest) {
                self.send(peer, Message::Unknown { digest });
                return;
            }
            if self.is_closed(&digest) {
                self.open(digest, Waiting::Message(peer, message));
                return;
            }
        }
        self.swarm(Input::Received { peer, message });
    }

    /// Whether a peer may see what is here of a blob.
    pub(super) fn admits(&mut self, peer: PeerId, digest: &Digest) -> bool {
        // The machine may know what the store has lost: it is served from the open file.
        let here = self.swarm.knows(digest)
            || self.jobs.contains_key(digest)
            || self.parts.store.sealed_size(digest).is_some();
        self.gate.admits(peer, digest, here)
    }

    /// The store has the blob, but the machine does not know it (any more).
    fn is_closed(&self, digest: &Digest) -> bool {
        !self.swarm.knows(digest) && self.parts.store.sealed_size(digest).is_some()
    }

    /// Opens a sealed blob for peers; what they said about it waits.
    fn open(&mut self, digest: Digest, waiting: Waiting) {
        if let Some(others) = self.opening.get_mut(&digest) {
            match waiting {
                waiting if others.len() < WAITING_MAX => others.push(waiting),
                // Dropped, it would look like a broken link.
                Waiting::Asked(_, asked) => asked.reply.refuse(Answer::Busy),
                Waiting::Message(..) => {}
            }
            return;
        }
        self.opening.insert(digest, vec![waiting]);
        let (shelf, facts) = (Arc::clone(&self.shelf), self.facts.clone());
        self.tasks.spawn(async move {
            let sealed = match shelf.take(digest).await {
                Ok(sealed) => sealed,
                Err(error) => {
                    tracing::error!(digest = %digest.short(), %error, "cannot open a sealed blob");
                    None
                }
            };
            facts.send(Fact::Opened { digest, sealed }).await.ok();
        });
    }

    fn asked(&mut self, peer: PeerId, asked: Asked) {
        self.ask_ids += 1;
        let ask = AskId(self.ask_ids);
        let Ask { digest, chunk, ends } = asked.ask;
        self.asks.insert(ask, asked);
        self.swarm(Input::Asked { ask, peer, digest, chunk, ends });
    }
}

pub(super) fn is_signed(digest: &Digest, size: u64, segment: &Segment) -> bool {
    let bytes = Segment::signed_bytes(digest, size, segment.from, &segment.states);
    identity::verify(&segment.author, &bytes, &segment.signature)
}
