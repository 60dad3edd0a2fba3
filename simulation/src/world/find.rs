//! What nodes ask the DHT, and tell it.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shoal_proto::{digest::Digest, peer::Contact, swarm::Input, time::Time};

use super::{Event, World};
use crate::node::{contact, mix};

impl World {
    /// A node asks for the trackers and holders of a layer.
    pub(super) fn locate(&mut self, node: usize, digest: Digest) {
        let out = self.plan.dht.outage_until(self.now.since(Time::ZERO)).is_some();
        let (trackers, holders, known) = if out {
            (Vec::new(), Vec::new(), self.known(node))
        } else {
            let holders = self.dht.holders(self.blob(&digest), self.nodes[node].peer);
            (self.dht.trackers(&digest, self.plan.dht.trackers), holders, Vec::new())
        };
        let wait = self.plan.dht.locate.0;
        self.push_fact(wait, node, Input::Located { digest, trackers, known });
        self.push_fact(wait, node, Input::Holders { digest, holders });
    }

    /// The few nodes that a node knows by itself.
    fn known(&self, node: usize) -> Vec<Contact> {
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
        known.into_iter().map(|other| contact(self.nodes[other].peer)).collect()
    }

    /// A node tells that it holds a layer.
    pub(super) fn announce(&mut self, node: usize, blob: usize) {
        let now = self.now.since(Time::ZERO);
        let begins = self.plan.dht.outage_until(now).unwrap_or(now);
        self.push(begins - now + self.plan.dht.publish.0, Event::Announced(node, blob));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use shoal_proto::swarm::Input;

    use super::*;
    use crate::world::tests::{ended, small};

    /// Trackers and holders that a node is told of now.
    #[expect(clippy::wildcard_enum_match_arm, reason = "nothing else is looked at")]
    fn found(world: &mut World, node: usize) -> (Vec<usize>, Vec<usize>) {
        let digest = world.blobs[0].digest;
        world.locate(node, digest);
        let number =
            |contacts: Vec<Contact>| contacts.iter().map(|contact| crate::node::number(contact.peer)).collect();
        let (mut trackers, mut holders) = (Vec::new(), None);
        while holders.is_none() {
            let Event::Swarm(_, input) = world.queue.pop().unwrap().1.1 else { continue };
            match *input {
                Input::Located { trackers: named, known, .. } => {
                    trackers = number(if named.is_empty() { known } else { named });
                }
                Input::Holders { holders: named, .. } => holders = Some(number(named)),
                _ => {}
            }
        }
        (trackers, holders.unwrap())
    }

    #[test]
    fn in_an_outage_a_node_finds_only_those_that_it_knows_by_itself() {
        let held = "base = [{ layer = 0, share = 0.5 }]\ndht = { trackers = 3, table = 5";
        let mut up = World::new(&small(&format!("{held} }}"))).unwrap();
        let mut out = World::new(&small(&format!("{held}, outages = [{{ to = \"1s\" }}] }}"))).unwrap();
        let (trackers, holders) = found(&mut up, 1);
        assert_eq!((trackers.len(), found(&mut up, 2).0), (3, trackers));
        assert!(holders.len() >= 4);
        let ((known, none), (others, _)) = (found(&mut out, 1), found(&mut out, 2));
        assert_eq!((known.len(), others.len(), none), (5, 5, Vec::new()));
        assert!(!known.contains(&1) && known != others, "{known:?} {others:?}");
        assert_eq!(found(&mut out, 1).0, known);
    }

    #[test]
    fn a_dht_that_is_out_holds_nobody_back_for_long() {
        let out = ended("dht = { outages = [{ to = \"60s\" }] }");
        assert_eq!(out.unmet, Vec::<String>::new());
        assert!(out.max_s < 30.0, "{out}");
        let alone = ended("dht = { outages = [{ to = \"60s\" }], table = 0 }");
        assert_eq!(alone.unmet, Vec::<String>::new());
        assert!(alone.origin_copies > 5.0, "{alone}");
    }

    #[test]
    fn an_announcement_is_found_after_its_time_and_after_an_outage() {
        let after = |outages: &str| {
            let mut world = World::new(&small(&format!("dht = {{ publish = \"70ms\"{outages} }}"))).unwrap();
            let peer = world.nodes[1].peer;
            world.announce(0, 0);
            while world.dht.holders(0, peer).is_empty() {
                assert!(world.step());
            }
            world.now.as_nanos() / 1_000_000
        };
        assert_eq!(after(""), 70);
        assert_eq!(after(", outages = [{ to = \"300ms\" }]"), 370);
    }
}
