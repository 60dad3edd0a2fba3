//! What befalls nodes: when, and whom.

use std::time::Duration;

use rand::{RngExt, seq::SliceRandom};

use super::{Event, World};
use crate::{
    node::number,
    plan::{Fault, FaultKind, Moment, Victims},
};

impl World {
    /// Plans the faults whose time is known.
    pub(super) fn plan_faults(&mut self) {
        for (at, fault) in self.plan.faults.clone().into_iter().enumerate() {
            match fault.at {
                Moment::After(wait) => self.push(wait.0, Event::Fault(at)),
                Moment::Progress(_) => self.faults_to_come.push(at),
            }
        }
    }

    /// Lets those faults come that wait for the origin's work.
    pub(super) fn faults_at_progress(&mut self) {
        if self.faults_to_come.is_empty() {
            return;
        }
        let sent: u64 = self.origin.bytes.iter().sum();
        let share = sent as f64 / self.plan.bytes() as f64;
        let faults = &self.plan.faults;
        let due = |fault: &usize| matches!(faults[*fault].at, Moment::Progress(at) if at <= share);
        let (due, to_come) = self.faults_to_come.iter().partition(|fault| due(fault));
        self.faults_to_come = to_come;
        let due: Vec<usize> = due;
        for fault in due {
            self.push(Duration::ZERO, Event::Fault(fault));
        }
    }

    /// A fault begins.
    pub(super) fn begin_fault(&mut self, at: usize) {
        let fault = self.plan.faults[at];
        if fault.who == Victims::LeaseHolder && self.streaming_most().is_none() {
            self.holders_to_come.push(at);
            return;
        }
        let victims = self.victims(fault.who);
        let step = fault.over.0 / victims.len().max(1) as u32;
        for (place, node) in victims.into_iter().enumerate() {
            if fault.over.0.is_zero() {
                self.strike(at, node);
            } else {
                self.push(step * place as u32, Event::Strike { fault: at, node });
            }
        }
    }

    /// A node began to stream from the origin: faults may wait for one.
    pub(super) fn faults_at_holder(&mut self) {
        for fault in std::mem::take(&mut self.holders_to_come) {
            self.push(Duration::ZERO, Event::Fault(fault));
        }
    }

    /// Something befalls a node, unless it is down.
    pub(super) fn strike(&mut self, fault: usize, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        let fault: Fault = self.plan.faults[fault];
        match fault.kind {
            FaultKind::Crash => self.crash(node),
            FaultKind::Restart => self.restart(node, fault.down().0, fault.disk()),
            FaultKind::Partition | FaultKind::Slow => {}
        }
    }

    /// The node that streams the largest layer from the origin.
    fn streaming_most(&self) -> Option<usize> {
        self.origin.streaming(|blob| self.blobs[blob].layout.size())
    }

    /// The nodes that are meant now, in the order in which they are hit.
    pub(super) fn victims(&mut self, who: Victims) -> Vec<usize> {
        let all = 0..self.nodes.len();
        let place = self.plan.topology;
        match who {
            Victims::Node(node) => vec![node],
            Victims::Share(share) => {
                let mut up: Vec<usize> = all.filter(|node| self.nodes[*node].alive).collect();
                let count = share.of(up.len());
                up.partial_shuffle(&mut self.chance, count).0.to_vec()
            }
            Victims::LeaseHolder => self.streaming_most().into_iter().collect(),
            Victims::Tracker => self.trackers(1),
            Victims::Trackers => self.trackers(self.plan.dht.trackers),
            Victims::Rack(rack) => {
                let rack = rack.unwrap_or_else(|| self.chance.random_range(0..place.all_racks()));
                all.filter(|node| place.site(*node).rack == rack).collect()
            }
            Victims::Zone(zone) => {
                let zone = zone.unwrap_or_else(|| self.chance.random_range(0..place.zones));
                all.filter(|node| place.site(*node).zone == zone).collect()
            }
        }
    }

    /// The first trackers that the DHT names for the largest layer.
    fn trackers(&mut self, count: usize) -> Vec<usize> {
        let Some(largest) = self.blobs.iter().max_by_key(|blob| blob.layout.size()) else { return Vec::new() };
        let named = self.dht.trackers(&largest.digest, self.plan.dht.trackers);
        named.into_iter().take(count).map(|contact| number(contact.peer)).collect()
    }
}
