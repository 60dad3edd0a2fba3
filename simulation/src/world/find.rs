//! What nodes ask the DHT, and tell it.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shoal_proto::{
    digest::Digest,
    peer::{Contact, PeerId},
    swarm::Input,
    time::Time,
};

use super::{Event, World};
use crate::{dht::closest, node::mix};

impl World {
    /// A node asks for the trackers and holders of a layer.
    pub(super) fn locate(&mut self, node: usize, digest: Digest) {
        let out = self.plan.dht.outage_until(self.now.since(Time::ZERO)).is_some();
        let (trackers, holders) = if out {
            (self.known(node, &digest), Vec::new())
        } else {
            let holders = self.dht.holders(self.blob(&digest), self.nodes[node].peer);
            (self.dht.trackers(&digest, self.plan.dht.trackers), holders)
        };
        let wait = self.plan.dht.locate.0;
        self.push(wait, Event::Swarm(node, Input::Located { digest, trackers }));
        self.push(wait, Event::Swarm(node, Input::Holders { digest, holders }));
    }

    /// Those closest to a digest of the few nodes that a node knows by itself.
    fn known(&self, node: usize, digest: &Digest) -> Vec<Contact> {
        let others = self.nodes.len() - 1;
        let mut rng = Pcg64Mcg::seed_from_u64(mix(self.plan.seed ^ 0x7ab1e, node as u64));
        let mut known: Vec<usize> = Vec::new();
        while known.len() < self.plan.dht.table.min(others) {
            let drawn = rng.random_range(0..others);
            let other = drawn + usize::from(drawn >= node);
            if !known.contains(&other) {
                known.push(other);
            }
        }
        let peers: Vec<PeerId> = known.into_iter().map(|other| self.nodes[other].peer).collect();
        closest(peers, digest, self.plan.dht.trackers)
    }

    /// A node tells that it holds a layer.
    pub(super) fn announce(&mut self, node: usize, blob: usize) {
        let now = self.now.since(Time::ZERO);
        let begins = self.plan.dht.outage_until(now).unwrap_or(now);
        self.push(begins - now + self.plan.dht.publish.0, Event::Announced(node, blob));
    }
}
