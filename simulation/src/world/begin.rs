//! The world at its beginning.

use std::{collections::BTreeMap, time::Duration};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use shoal_proto::{chunk::ChunkSet, time::Time};

use super::{Costs, Event, Links, Pulls, Queue, Slab, Tally, World};
use crate::{
    bound::{Fate, bound},
    check::Checks,
    dht::Dht,
    net::{Net, Soonest},
    node::{Blob, Bytes, Node, mix},
    origin::Origin,
    plan::{Lie, Plan, PlanError},
};

impl World {
    /// A world at its beginning.
    ///
    /// # Errors
    /// A plan with limits that do not exist.
    pub fn new(plan: &Plan) -> Result<Self, PlanError> {
        let limits = plan.limits()?;
        let seed = mix(plan.seed, 0x5ea);
        let sizes = plan.layers.iter().enumerate();
        let blobs: Vec<Blob> = sizes.map(|(at, size)| Blob::new(seed, at, size.bytes())).collect();
        let mut names: Vec<_> = blobs.iter().enumerate().map(|(at, blob)| (blob.digest, at)).collect();
        names.sort_unstable();
        let mut net = Net::default();
        let origin = Origin::new(net.link(plan.origin_rate.bytes_per_second()), blobs.len());
        let mut nodes: Vec<Node> = Vec::new();
        let mut dht = Dht::new(plan.dht.providers_max);
        for (at, lie) in plan.lies().into_iter().enumerate() {
            let links = (net.link(plan.link_up.bytes_per_second()), net.link(plan.link_down.bytes_per_second()));
            let mut node = Node::new(seed, at, Self::place(plan, at), &limits, links, &blobs);
            node.lie = lie;
            node.signs = signs(plan, at, lie);
            dht.join(node.peer);
            nodes.push(node);
        }
        let mut timers = Soonest::default();
        timers.reserve(2 * nodes.len());
        let links = Links::new(plan, &mut net);
        let mut delays = vec![Duration::ZERO];
        delays.extend(links.halves().into_iter().map(|half| half + plan.message_cost.0));
        let mut world = Self {
            plan: plan.clone(),
            now: Time::ZERO,
            queue: Queue::new(delays),
            timers,
            sealed: vec![None; blobs.len()],
            blobs,
            names,
            generations: vec![0; nodes.len()],
            pulls: Pulls::new(nodes.len()),
            unfinished: nodes.iter().filter(|node| node.lie.is_none()).count(),
            liars: nodes.iter().any(|node| node.lie.is_some()),
            forgers: nodes.iter().any(|node| node.signs != Bytes::TRUE),
            forged: BTreeMap::new(),
            claims: BTreeMap::new(),
            nodes,
            net,
            origin,
            dht,
            asks: Slab::default(),
            carriers: Slab::default(),
            faults_to_come: Vec::new(),
            holders_to_come: Vec::new(),
            chance: Pcg64Mcg::seed_from_u64(mix(seed, 0xfa17)),
            limits,
            checks: Checks::default(),
            tally: Tally::new(plan, Duration::from_secs_f64(bound(plan, &Fate::planned(plan)).last)),
            trace: mix(plan.seed, plan.nodes as u64),
            links,
            costs: Costs::new(plan),
            slow: Vec::new(),
            cuts: Vec::new(),
            parted: false,
            pending: 0,
            orders: Vec::new(),
            sends: Vec::new(),
        };
        world.begin();
        Ok(world)
    }

    /// Some nodes hold layers from the start: their stores have them, and they announced them when they came up.
    fn hold(&mut self) {
        for (blob, held) in self.plan.held().into_iter().enumerate() {
            let full = ChunkSet::full(self.blobs[blob].layout.count());
            for node in (0..held.len()).filter(|node| held[*node]) {
                let Node { peer, begins, holdings, .. } = &mut self.nodes[node];
                let holding = &mut holdings[blob];
                (holding.have, holding.arrived, holding.proven) = (full.clone(), full.clone(), Some(*begins));
                self.dht.announce(blob, *peer);
            }
        }
        self.unfinished = self.nodes.iter().filter(|node| node.counts_as_unfinished()).count();
    }

    fn begin(&mut self) {
        for (at, wait) in self.plan.starts().into_iter().enumerate() {
            self.nodes[at].begins = Time::ZERO + wait;
            self.push(wait, Event::Begin(at));
        }
        self.hold();
        self.plan_faults();
        self.plan_outages();
    }
}

/// The chain that a node signs: each forger one of its own, or all liars the same.
fn signs(plan: &Plan, node: usize, lie: Option<Lie>) -> Bytes {
    let colluding = plan.liars.as_ref().is_some_and(|liars| liars.colluding && liars.kinds.contains(&Lie::ForgedChain));
    match lie {
        Some(_) if colluding => Bytes(1),
        Some(Lie::ForgedChain) => Bytes(node as u32 + 1),
        Some(Lie::Corrupt | Lie::LyingAvailability | Lie::Silent) | None => Bytes::TRUE,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::world::tests::{ended, small};

    #[test]
    fn layers_that_some_hold_from_the_start_come_from_them() {
        let report = ended("base = [{ layer = 0, share = 0.3 }]");
        assert_eq!((report.unmet, report.origin_blob_gets), (Vec::new(), 0));
        let late = ended("base = [{ layer = 0, share = 0.9 }]\nlate = [{ nodes = 10, at = \"100s\" }]");
        assert_eq!((late.unmet, late.origin_blob_gets), (Vec::new(), 0));
    }

    #[test]
    fn nobody_is_in_a_hurry_who_holds_all_from_the_start() {
        let world = World::new(&small("base = [{ layer = 0 }]")).unwrap();
        assert_eq!(world.unfinished, 0);
        let report = world.run();
        assert_eq!((report.unmet, report.max_s, report.origin_blob_gets), (Vec::new(), 0.0, 0));
    }

    #[test]
    fn a_run_goes_on_until_its_faults_are_over() {
        let report = ended("faults = [{ at = \"20s\", who = 3, kind = \"restart\", after = \"2s\", disk = \"lost\" }]");
        assert_eq!((report.unmet, report.counts["restarts"]), (Vec::new(), 1));
        assert!(report.max_s > 22.0, "{}", report.max_s);
    }
}
