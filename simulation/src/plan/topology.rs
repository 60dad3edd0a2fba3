//! Where nodes stand: zones, racks, and the links between them.

use std::time::Duration;

use serde::Deserialize;
use shoal_proto::units::Rate;

use super::{Plan, Span};

/// Zones of racks of hosts. Without this table all nodes stand in one rack whose switch is never the bottleneck.
///
/// Nodes are dealt to racks in turn: node `i` stands in rack `i % (zones * racks)`, and rack `r` in zone `r % zones`, so
/// that neither a node's number nor its time of arrival says where it stands.
///
/// A transfer from one rack to another runs through the uplink of the sender's rack and the downlink of the receiver's.
/// One from zone to zone also runs through both zones' links, where they have a rate. The origin stands outside of all
/// zones: what it sends to a node runs through the downlinks of the node's zone and rack. Messages are not counted there.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// Zones.
    pub zones: usize,
    /// Racks in each zone.
    pub racks: usize,
    /// Hosts that a rack is built for. Without: as many as `nodes` need.
    pub hosts: Option<usize>,
    /// A rack's uplink is `hosts * link_up / oversubscription`, its downlink `hosts * link_down / oversubscription`.
    /// 1: a rack's switch is never the bottleneck.
    pub oversubscription: f64,
    /// What a zone sends to others and the origin at most, and takes in at most. Without: as much as its racks can.
    pub zone_rate: Option<Rate>,
}

/// Where a node stands. Both numbers count from 0; racks are counted over all zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Its zone.
    pub zone: usize,
    /// Its rack.
    pub rack: usize,
}

impl Default for Topology {
    fn default() -> Self {
        Self { zones: 1, racks: 1, hosts: None, oversubscription: 1.0, zone_rate: None }
    }
}

impl Topology {
    /// All racks of all zones.
    #[must_use]
    pub const fn all_racks(&self) -> usize {
        self.zones * self.racks
    }

    /// The hosts that all racks are built for, if that is said.
    #[must_use]
    pub fn all_hosts(&self) -> Option<usize> {
        self.hosts.map(|hosts| hosts.saturating_mul(self.all_racks()))
    }

    /// Where a node stands.
    #[must_use]
    pub const fn site(&self, node: usize) -> Site {
        let rack = node % self.all_racks();
        Site { zone: rack % self.zones, rack }
    }
}

impl Plan {
    /// What a rack sends to others at most and what it takes in at most, in bytes per second; None where the rack's switch
    /// is never the bottleneck.
    #[must_use]
    pub fn rack_rates(&self) -> Option<(u64, u64)> {
        let topology = &self.topology;
        if topology.oversubscription <= 1.0 || topology.all_racks() == 1 {
            return None;
        }
        let hosts = topology.hosts.unwrap_or_else(|| self.nodes.div_ceil(topology.all_racks())) as f64;
        let rate = |link: Rate| (hosts * link.bytes_per_second() as f64 / topology.oversubscription).max(1.0) as u64;
        Some((rate(self.link_up), rate(self.link_down)))
    }

    /// What a zone sends and takes in at most, each, in bytes per second; None for no limit of its own.
    #[must_use]
    pub fn zone_rate(&self) -> Option<u64> {
        self.topology.zone_rate.filter(|_| self.topology.zones > 1).map(Rate::bytes_per_second)
    }

    /// The round trip between two nodes. A node's messages to itself take no time.
    #[must_use]
    pub fn round_trip(&self, one: usize, other: usize) -> Duration {
        let (a, b) = (self.topology.site(one), self.topology.site(other));
        let Span(span) = if one == other {
            Span::default()
        } else if a.rack == b.rack {
            self.rtt
        } else if a.zone == b.zone {
            self.zone_rtt()
        } else {
            self.far_rtt()
        };
        span
    }

    /// The round trip between racks of a zone.
    #[must_use]
    pub fn zone_rtt(&self) -> Span {
        self.zone_rtt.unwrap_or(self.rtt)
    }

    /// The round trip between zones.
    #[must_use]
    pub fn far_rtt(&self) -> Span {
        self.far_rtt.unwrap_or_else(|| self.zone_rtt())
    }
}
