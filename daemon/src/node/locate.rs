//! Where to ask about a blob: its trackers and holders in the DHT; where that names none, whoever is at the bootstrap
//! addresses; and for what no peer may know of, this node alone.

use std::sync::Arc;

use rand::seq::IteratorRandom;
use shoal_proto::{digest::Digest, peer::Contact, swarm::Input};

use super::{
    driver::{Driver, Fact},
    parts::Parts,
};

/// Connected peers that a fetch gets to know where the DHT names no trackers.
const KNOWN_MAX: usize = 20;

impl Driver {
    /// Finds out who hands out the peers of a blob, and who has it.
    pub(super) fn locate(&mut self, digest: Digest) {
        let name = self.gate.name(&digest);
        let (parts, facts) = (Arc::clone(&self.parts), self.facts.clone());
        if self.gate.hides(&digest) {
            // This node leases it to itself.
            let own = Contact { peer: parts.identity.peer(), address: parts.plane.local_address() };
            self.tasks.spawn(async move {
                facts.send(Fact::Swarm(Input::Located { digest, trackers: vec![own], known: Vec::new() })).await.ok();
                facts.send(Fact::Swarm(Input::Holders { digest, holders: Vec::new() })).await.ok();
            });
            return;
        }
        let known = self.contacts.values().copied().sample(&mut rand::rng(), KNOWN_MAX);
        self.tasks.spawn(async move {
            let key = parts.secret.blob_key(&name);
            let trackers = async {
                let trackers = parts.trackers(&name).await;
                facts.send(Fact::Swarm(Input::Located { digest, trackers, known })).await.ok();
            };
            let holders = async {
                let holders = parts.dht.holders(key).await;
                facts.send(Fact::Swarm(Input::Holders { digest, holders })).await.ok();
            };
            tokio::join!(trackers, holders);
        });
    }
}

impl Parts {
    /// The trackers of a blob or a tag, first choice first: of the DHT, or where that names none but this node, those that
    /// the bootstrap addresses lead to.
    pub(super) async fn trackers(&self, name: &Digest) -> Vec<Contact> {
        let trackers = self.dht.trackers(self.secret.blob_key(name)).await;
        if trackers.iter().any(|tracker| tracker.peer != self.identity.peer()) {
            return trackers;
        }
        self.rendezvous.trackers(&self.plane, name).await
    }
}
