//! The world at its beginning.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use shoal_proto::{time::Time, units::Rate};

use super::{Event, LOOK, Queue, Slab, Tally, World};
use crate::{
    check::Checks,
    dht::Dht,
    net::{Net, Soonest},
    node::{Blob, Node, mix},
    origin::Origin,
    plan::{Moment, Plan, PlanError},
    report::BINS,
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
            let node = Node::new(seed, at, &limits, links, &blobs);
            dht.join(node.peer);
            nodes.push(node);
        }
        let mut timers = Soonest::default();
        timers.reserve(2 * nodes.len());
        let half_trip = plan.rtt.0 / 2;
        let delays =
            vec![Duration::ZERO, half_trip, half_trip * 3, plan.locate.0, plan.detect.0, plan.origin_latency.0, LOOK];
        let mut world = Self {
            plan: plan.clone(),
            now: Time::ZERO,
            queue: Queue::new(delays),
            timers,
            blobs,
            names,
            unfinished: nodes.len(),
            nodes,
            net,
            origin,
            dht,
            asks: Slab::default(),
            carriers: Vec::new(),
            kills: plan.kill.clone(),
            uploads_max: limits.uploads_max,
            checks: Checks::default(),
            tally: Tally::default(),
            trace: mix(plan.seed, plan.nodes as u64),
            bound: Duration::ZERO,
            bin_nanos: 1,
            half_trip,
            orders: Vec::new(),
            sends: Vec::new(),
        };
        world.begin(seed);
        Ok(world)
    }

    fn begin(&mut self, seed: u64) {
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let mut late: Vec<Duration> = Vec::new();
        for group in &self.plan.late {
            late.extend(std::iter::repeat_n(group.at.0, group.nodes));
        }
        for at in 0..self.nodes.len() {
            let wait = match late.get(self.nodes.len() - 1 - at) {
                Some(wait) => *wait,
                None => self.plan.jitter.0.mul_f64(rng.random()),
            };
            self.nodes[at].begins = Time::ZERO + wait;
            self.push(wait, Event::Begin(at));
        }
        for kill in std::mem::take(&mut self.kills) {
            match kill.at {
                Moment::After(wait) => self.push(wait.0, Event::Kill(kill.who)),
                Moment::Progress(_) => self.kills.push(kill),
            }
        }
        self.bound = self.lower_bound();
        self.bin_nanos = (self.bound.as_nanos() as u64 / BINS as u64).max(1);
    }

    /// When the last node can be done at best (Kumar and Ross; a late node needs the time that its downlink takes).
    fn lower_bound(&self) -> Duration {
        let bytes = self.plan.bytes() as f64;
        let rate = |rate: Rate| rate.bytes_per_second() as f64;
        let nodes = self.nodes.len() as f64;
        let (origin, up, down) = (rate(self.plan.origin_rate), rate(self.plan.link_up), rate(self.plan.link_down));
        let begins = || self.nodes.iter().map(|node| node.begins.since(Time::ZERO).as_secs_f64());
        let first = begins().fold(f64::INFINITY, f64::min);
        let last = begins().fold(0.0, f64::max);
        let bounds = [first + bytes / origin, last + bytes / down, first + nodes * bytes / (origin + nodes * up)];
        Duration::from_secs_f64(bounds.into_iter().fold(0.0, f64::max))
    }
}
