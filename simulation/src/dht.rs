//! The DHT as a model: it knows all nodes, takes some time to answer, and to notice that one died.

use std::collections::BTreeMap;

use shoal_proto::{
    digest::Digest,
    peer::{Contact, PeerId},
};

use crate::node::contact;

/// Holders that it names for a digest.
const HOLDERS_MAX: usize = 20;

/// The DHT.
#[derive(Debug, Default)]
pub struct Dht {
    members: Vec<PeerId>,
    holders: BTreeMap<usize, Vec<PeerId>>,
}

impl Dht {
    pub(crate) fn join(&mut self, peer: PeerId) {
        self.members.push(peer);
    }

    /// A node was found dead.
    pub(crate) fn remove(&mut self, peer: PeerId) {
        self.members.retain(|member| *member != peer);
        for holders in self.holders.values_mut() {
            holders.retain(|holder| *holder != peer);
        }
    }

    pub(crate) fn announce(&mut self, blob: usize, peer: PeerId) {
        let holders = self.holders.entry(blob).or_default();
        if holders.len() < HOLDERS_MAX {
            holders.push(peer);
        }
    }

    /// The members closest to a digest by XOR, closest first.
    pub(crate) fn trackers(&self, digest: &Digest, count: usize) -> Vec<Contact> {
        let distance = |peer: &PeerId| {
            let mut distance = peer.0;
            for (byte, key) in distance.iter_mut().zip(digest.as_bytes()) {
                *byte ^= key;
            }
            distance
        };
        let mut closest: Vec<PeerId> = self.members.clone();
        closest.sort_unstable_by_key(distance);
        closest.truncate(count);
        closest.into_iter().map(contact).collect()
    }

    pub(crate) fn holders(&self, blob: usize, asker: PeerId) -> Vec<Contact> {
        let holders = self.holders.get(&blob).into_iter().flatten();
        holders.filter(|holder| **holder != asker).map(|holder| contact(*holder)).collect()
    }
}
