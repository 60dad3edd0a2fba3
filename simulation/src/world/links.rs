//! Between nodes: which links a transfer runs through, and how long a message takes.

use std::time::Duration;

use shoal_proto::peer::Place;

use super::World;
use crate::{
    net::{LinkId, Net, Path},
    plan::{Plan, Site},
};

/// One link for each direction.
#[derive(Debug, Clone, Copy)]
struct Trunk {
    up: LinkId,
    down: LinkId,
}

/// What lies between the nodes.
#[derive(Debug)]
pub(super) struct Links {
    /// Of each rack, if they can be a bottleneck.
    racks: Vec<Trunk>,
    /// Of each zone, if they have a rate.
    zones: Vec<Trunk>,
    /// Whether all nodes stand in one rack.
    together: bool,
    /// Half a round trip in a rack, between racks of a zone, between zones.
    halves: [Duration; 3],
}

impl Links {
    pub(super) fn new(plan: &Plan, net: &mut Net) -> Self {
        let mut trunks = |count: usize, (up, down): (u64, u64)| -> Vec<Trunk> {
            (0..count).map(|_| Trunk { up: net.link(up), down: net.link(down) }).collect()
        };
        let racks = plan.rack_rates().map(|rates| trunks(plan.topology.all_racks(), rates));
        let zones = plan.zone_rate().map(|rate| trunks(plan.topology.zones, (rate, rate)));
        Self {
            racks: racks.unwrap_or_default(),
            zones: zones.unwrap_or_default(),
            together: plan.topology.all_racks() == 1,
            halves: [plan.rtt, plan.zone_rtt(), plan.far_rtt()].map(|trip| trip.0 / 2),
        }
    }

    /// Half round trips that there are.
    pub(super) const fn halves(&self) -> [Duration; 3] {
        self.halves
    }
}

impl World {
    /// Where a node stands, as its configuration says: numbers where the plan has several zones or racks.
    pub(super) fn place(plan: &Plan, node: usize) -> Place {
        let Site { zone, rack } = plan.topology.site(node);
        let named = |number: usize, several: bool| if several { number as u32 + 1 } else { 0 };
        let racks = plan.topology.racks > 1 || plan.rack_rates().is_some();
        Place { zone: named(zone, plan.topology.zones > 1), rack: named(rack, racks) }
    }

    /// How long a message takes from one node to another.
    pub(super) fn half_trip(&self, from: usize, to: usize) -> Duration {
        let [near, zone, far] = self.links.halves;
        if from == to {
            return Duration::ZERO;
        }
        if self.links.together {
            return near;
        }
        let (a, b) = (self.plan.topology.site(from), self.plan.topology.site(to));
        if a.rack == b.rack {
            near
        } else if a.zone == b.zone {
            zone
        } else {
            far
        }
    }

    /// The links between two nodes.
    pub(super) fn path(&self, from: usize, to: usize) -> Path {
        let (own, last) = (self.nodes[from].up, self.nodes[to].down);
        if self.links.racks.is_empty() && self.links.zones.is_empty() {
            return Path::new(&[own, last]);
        }
        let (a, b) = (self.plan.topology.site(from), self.plan.topology.site(to));
        let mut path = Path::new(&[own]);
        if a.rack != b.rack {
            path.extend(self.links.racks.get(a.rack).map(|trunk| trunk.up));
        }
        if a.zone != b.zone {
            path.extend(self.links.zones.get(a.zone).map(|trunk| trunk.up));
            path.extend(self.links.zones.get(b.zone).map(|trunk| trunk.down));
        }
        if a.rack != b.rack {
            path.extend(self.links.racks.get(b.rack).map(|trunk| trunk.down));
        }
        path.extend(Some(last));
        path
    }

    /// The links between the origin, which stands outside of all zones, and a node.
    pub(super) fn origin_path(&self, to: usize) -> Path {
        let site = self.plan.topology.site(to);
        let mut path = Path::new(&[self.origin.link]);
        path.extend(self.links.zones.get(site.zone).map(|trunk| trunk.down));
        path.extend(self.links.racks.get(site.rack).map(|trunk| trunk.down));
        path.extend(Some(self.nodes[to].down));
        path
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::world::Carrier;

    fn world(text: &str) -> World {
        World::new(&Plan::parse(text, &[]).unwrap()).unwrap()
    }

    /// Seconds until transfers of 10 MB each are over: of pairs of nodes, and from the origin.
    fn seconds(world: &mut World, pairs: &[(usize, usize)], origin: &[usize]) -> f64 {
        let mut paths: Vec<Path> = pairs.iter().map(|(from, to)| world.path(*from, *to)).collect();
        paths.extend(origin.iter().map(|to| world.origin_path(*to)));
        let carrier = Carrier::Stream(0, shoal_proto::swarm::RunId(0));
        let mut flows: Vec<_> = paths.into_iter().map(|path| world.start(path, None, 10_000_000, carrier)).collect();
        while !flows.is_empty() {
            let (time, flow) = world.net.next_end(world.now).unwrap();
            world.now = time;
            world.stop(flow);
            flows.retain(|other| *other != flow);
        }
        (world.now.as_nanos() as f64 / 1e9 * 1000.0).round() / 1000.0
    }

    const LINKS: &str = "link_up = \"100MB/s\"\nlink_down = \"100MB/s\"\norigin_rate = \"1GB/s\"\n";

    #[test]
    fn the_uplink_of_a_rack_of_a_quarter_holds_the_sum_of_what_runs_through_it() {
        // Even numbers are in rack 0, odd ones in rack 1; 4 hosts each, uplinks of 100 MB/s.
        let text = format!("{LINKS}topology = {{ racks = 2, hosts = 4, oversubscription = 4 }}");
        assert_eq!(seconds(&mut world(&text), &[(0, 1), (2, 3), (4, 5), (6, 7)], &[]), 0.4);
        assert_eq!(seconds(&mut world(&text), &[(0, 1), (3, 2), (4, 6), (5, 7)], &[]), 0.1);
        assert_eq!(seconds(&mut world(&text), &[(0, 1)], &[3, 5]), 0.3);
        let wide = text.replace("oversubscription = 4", "oversubscription = 1");
        assert_eq!(seconds(&mut world(&wide), &[(0, 1), (2, 3), (4, 5), (6, 7)], &[]), 0.1);
    }

    #[test]
    fn what_crosses_into_a_zone_shares_its_link_with_what_the_origin_sends_there() {
        let text = format!("{LINKS}nodes = 8\ntopology = {{ zones = 2, racks = 2, zone_rate = \"50MB/s\" }}");
        // Racks 0 to 3 are in the zones 0, 1, 0, 1.
        assert_eq!(seconds(&mut world(&text), &[(0, 1), (2, 3)], &[5]), 0.6);
        assert_eq!(seconds(&mut world(&text), &[(0, 2), (1, 3)], &[]), 0.1);
    }

    #[test]
    fn places_and_round_trips_follow_the_topology() {
        let far = "rtt = \"2ms\"\nzone_rtt = \"4ms\"\nfar_rtt = \"8ms\"\nnodes = 8\n";
        let world = world(&format!("{far}topology = {{ zones = 2, racks = 2 }}"));
        let trips = [0, 4, 2, 1].map(|to| world.half_trip(0, to).as_millis());
        assert_eq!(trips, [0, 1, 2, 4]);
        let (one, rack, zone) = (world.nodes[0].place, world.nodes[4].place, world.nodes[2].place);
        assert!(one.shares_rack(rack) && one.shares_zone(zone) && !one.shares_rack(zone));
        assert!(!one.shares_zone(world.nodes[1].place));
        assert_eq!(World::place(&Plan::default(), 3), Place::default());
    }
}
