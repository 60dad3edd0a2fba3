//! The DHT as a model: it knows all nodes, takes some time to answer, and to notice that one died.

use std::collections::BTreeMap;

use shoal_proto::{
    digest::Digest,
    peer::{Contact, PeerId},
};

use crate::node::contact;

/// The DHT.
#[derive(Debug)]
pub struct Dht {
    /// Holders that it names for a digest.
    holders_max: usize,
    members: Vec<PeerId>,
    holders: BTreeMap<usize, Vec<PeerId>>,
    /// The members closest to digests, as long as these members stay the closest.
    closest: BTreeMap<Digest, Vec<Contact>>,
}

impl Dht {
    /// A DHT without members that names so many holders for a digest.
    pub(crate) const fn new(holders_max: usize) -> Self {
        Self { holders_max, members: Vec::new(), holders: BTreeMap::new(), closest: BTreeMap::new() }
    }

    pub(crate) fn join(&mut self, peer: PeerId) {
        self.members.push(peer);
        self.closest.clear();
    }

    /// A node was found dead.
    pub(crate) fn remove(&mut self, peer: PeerId) {
        self.members.retain(|member| *member != peer);
        self.closest.retain(|_, closest| closest.iter().all(|contact| contact.peer != peer));
        for holders in self.holders.values_mut() {
            holders.retain(|holder| *holder != peer);
        }
    }

    pub(crate) fn announce(&mut self, blob: usize, peer: PeerId) {
        let holders = self.holders.entry(blob).or_default();
        if holders.len() < self.holders_max && !holders.contains(&peer) {
            holders.push(peer);
        }
    }

    /// The members closest to a digest by XOR, closest first.
    pub(crate) fn trackers(&mut self, digest: &Digest, count: usize) -> Vec<Contact> {
        let enough = count.min(self.members.len());
        if let Some(closest) = self.closest.get(digest).filter(|closest| closest.len() >= enough) {
            return closest[..enough].to_vec();
        }
        let closest = closest(self.members.clone(), digest, enough);
        self.closest.insert(*digest, closest.clone());
        closest
    }

    pub(crate) fn holders(&self, blob: usize, asker: PeerId) -> Vec<Contact> {
        let holders = self.holders.get(&blob).into_iter().flatten();
        holders.filter(|holder| **holder != asker).map(|holder| contact(*holder)).collect()
    }
}

/// The `count` peers that are closest to a digest by XOR, closest first.
pub(crate) fn closest(mut peers: Vec<PeerId>, digest: &Digest, count: usize) -> Vec<Contact> {
    let distance = |peer: &PeerId| {
        let mut distance = peer.0;
        for (byte, key) in distance.iter_mut().zip(digest.as_bytes()) {
            *byte ^= key;
        }
        distance
    };
    if count < peers.len() {
        peers.select_nth_unstable_by_key(count, distance);
        peers.truncate(count);
    }
    peers.sort_unstable_by_key(distance);
    peers.into_iter().map(contact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_holders_the_first_ones_are_named() {
        let (digest, mut dht) = (0, Dht::new(2));
        for at in [1, 2, 2, 3] {
            dht.announce(digest, PeerId([at; 32]));
        }
        let named = |dht: &Dht, asker: u8| -> Vec<u8> {
            dht.holders(digest, PeerId([asker; 32])).iter().map(|contact| contact.peer.0[0]).collect()
        };
        assert_eq!((named(&dht, 9), named(&dht, 1)), (vec![1, 2], vec![2]));
        dht.remove(PeerId([1; 32]));
        dht.announce(digest, PeerId([3; 32]));
        assert_eq!(named(&dht, 9), [2, 3]);
    }

    #[test]
    fn the_closest_members_are_named_in_order_also_after_one_died() {
        let peers: Vec<PeerId> = (1..=40).map(|at: u8| PeerId([at; 32])).collect();
        let mut dht = Dht::new(20);
        for peer in &peers {
            dht.join(*peer);
        }
        let digest = Digest::sha256([0; 32]);
        let named = |dht: &mut Dht, count| -> Vec<u8> {
            dht.trackers(&digest, count).iter().map(|contact| contact.peer.0[0]).collect()
        };
        assert_eq!(named(&mut dht, 3), [1, 2, 3]);
        dht.remove(peers[1]);
        assert_eq!(named(&mut dht, 3), [1, 3, 4]);
        assert_eq!(named(&mut dht, 5), [1, 3, 4, 5, 6]);
        assert_eq!(named(&mut dht, 100).len(), 39);
        assert_eq!(named(&mut dht, 2), [1, 3]);
    }
}
