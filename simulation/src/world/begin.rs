//! The world at its beginning.

use std::time::Duration;

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use shoal_proto::time::Time;

use super::{Event, LOOK, Links, Queue, Slab, Tally, World};
use crate::{
    bound::{Fate, bound},
    check::Checks,
    dht::Dht,
    net::{Net, Soonest},
    node::{Blob, Node, mix},
    origin::Origin,
    plan::{Plan, PlanError},
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
        let mut nodes = Vec::new();
        let mut dht = Dht::default();
        for at in 0..plan.nodes {
            let links = (net.link(plan.link_up.bytes_per_second()), net.link(plan.link_down.bytes_per_second()));
            let node = Node::new(seed, at, Self::place(plan, at), &limits, links, &blobs);
            dht.join(node.peer);
            nodes.push(node);
        }
        let mut timers = Soonest::default();
        timers.reserve(2 * nodes.len());
        let links = Links::new(plan, &mut net);
        let mut delays = vec![Duration::ZERO, plan.locate.0, plan.detect.0, plan.origin_latency.0, LOOK];
        delays.extend(links.halves().into_iter().flat_map(|half| [half, half * 3]));
        let mut world = Self {
            plan: plan.clone(),
            now: Time::ZERO,
            queue: Queue::new(delays),
            timers,
            sealed: vec![None; blobs.len()],
            blobs,
            names,
            generations: vec![0; nodes.len()],
            unfinished: nodes.len(),
            nodes,
            net,
            origin,
            dht,
            asks: Slab::default(),
            carriers: Vec::new(),
            faults_to_come: Vec::new(),
            holders_to_come: Vec::new(),
            chance: Pcg64Mcg::seed_from_u64(mix(seed, 0xfa17)),
            limits,
            checks: Checks::default(),
            tally: Tally::new(plan, Duration::from_secs_f64(bound(plan, &Fate::planned(plan)).last)),
            trace: mix(plan.seed, plan.nodes as u64),
            links,
            orders: Vec::new(),
            sends: Vec::new(),
        };
        world.begin();
        Ok(world)
    }

    fn begin(&mut self) {
        for (at, wait) in self.plan.starts().into_iter().enumerate() {
            self.nodes[at].begins = Time::ZERO + wait;
            self.push(wait, Event::Begin(at));
        }
        self.plan_faults();
        self.plan_outages();
    }
}
