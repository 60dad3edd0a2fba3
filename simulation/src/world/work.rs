//! What a node works on: messages and new connections on its processor, chunks on their way to its disk.

use std::time::Duration;

use shoal_proto::{
    digest::Digest,
    swarm::{Input, Verdict},
};

use super::{Event, World};
use crate::plan::Plan;

/// Nanoseconds that a byte takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    verify: f64,
    write: f64,
    /// On a slow disk, before that is multiplied.
    slow_write: f64,
}

impl Costs {
    pub(super) fn new(plan: &Plan) -> Self {
        let nanos = |rate: u64| 1e9 / rate.max(1) as f64;
        let write = plan.write_rate.map(|rate| nanos(rate.bytes_per_second()));
        Self {
            verify: plan.verify_rate.map_or(0.0, |rate| nanos(rate.bytes_per_second())),
            write: write.unwrap_or(0.0),
            slow_write: write.unwrap_or_else(|| nanos(plan.link_down.bytes_per_second())),
        }
    }
}

impl World {
    /// How long a message is on its way and in work, if no other is before it.
    pub(super) fn message_time(&self, from: usize, to: usize) -> Duration {
        self.half_trip(from, to) + self.plan.message_cost.0
    }

    /// Lets an event wait that is a message to a node whose processor is at work on another; returns what can happen now.
    ///
    /// Messages come here when they would have been worked on by an idle processor, so that only those that have to wait
    /// cost another event.
    pub(super) fn work(&mut self, generation: u32, event: Event) -> Option<Event> {
        let cost = self.plan.message_cost.0;
        if cost == Duration::ZERO {
            return Some(event);
        }
        let Some(node) = self.worker(&event) else { return Some(event) };
        let busy = &mut self.nodes[node].busy_until;
        *busy = *busy + cost;
        if *busy <= self.now {
            *busy = self.now;
            return Some(event);
        }
        let until = *busy;
        self.queue.put_off(until, (generation, event));
        None
    }

    /// The node whose processor works on an event. What it says to itself costs nothing.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are no messages")]
    fn worker(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Got { to, from, .. } | Event::Message { to, from, .. } => (to != from).then_some(*to as usize),
            Event::Asked(ask) | Event::Withdrawn(ask) => self.asks.get(ask.0).map(|ask| ask.sender.at()),
            Event::Answered(ask, Verdict::Busy | Verdict::Missing) => self.asks.get(ask.0).map(|ask| ask.receiver.at()),
            _ => None,
        }
    }

    /// A node's processor works on a new connection, after all that came before. Returns how long from now that takes.
    pub(super) fn handshake(&mut self, node: usize) -> Duration {
        let cost = self.plan.connect_cost.0;
        if cost == Duration::ZERO {
            return cost;
        }
        let busy = &mut self.nodes[node].busy_until;
        *busy = (*busy).max(self.now) + cost;
        busy.since(self.now)
    }

    /// A node verifies bytes that it has some time from now. Returns how long from now that takes.
    pub(super) fn verified(&mut self, node: usize, arrive: Duration, bytes: u64) -> Duration {
        let node = &mut self.nodes[node];
        let nanos = bytes as f64 * self.costs.verify / node.pace.disk;
        node.verifies_until = node.verifies_until.max(self.now + arrive) + Duration::from_nanos(nanos as u64);
        node.verifies_until.since(self.now)
    }

    /// A node writes bytes that it has some time from now. Returns how long from now that takes.
    pub(super) fn written(&mut self, node: usize, arrive: Duration, bytes: u64) -> Duration {
        let node = &mut self.nodes[node];
        let pace = node.pace.disk;
        let cost = if pace < 1.0 { self.costs.slow_write / pace } else { self.costs.write };
        if cost == 0.0 {
            return arrive;
        }
        let nanos = bytes as f64 * cost;
        node.writes_until = node.writes_until.max(self.now + arrive) + Duration::from_nanos(nanos as u64);
        node.writes_until.since(self.now)
    }

    /// The store of a node has a layer that peers speak of, but its machine does not know it (any more).
    pub(super) fn open(&mut self, node: usize, digest: Digest) {
        let blob = self.blob(&digest);
        if self.nodes[node].holdings[blob].proven.is_none() || self.nodes[node].swarm.knows(&digest) {
            return;
        }
        let (size, segments) = (self.blobs[blob].layout.size(), self.seal(node, blob));
        self.swarm(node, Input::Held { digest, size, segments });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::time::Duration;

    use shoal_proto::wire::Message;

    use crate::world::{
        World,
        tests::{ended, small},
    };

    fn world(text: &str) -> World {
        World::new(&small(text)).unwrap()
    }

    /// When each of three messages that are sent at once is handled, in microseconds.
    fn handled(text: &str) -> Vec<u64> {
        let mut world = world(&format!("{text}\nlate = [{{ nodes = 10, at = \"5s\" }}]\nrtt = \"1ms\""));
        let digest = world.blobs[0].digest;
        for from in 1..4 {
            world.nodes[from].connected.insert(0);
            world.send(from, 0, Message::Unknown { digest });
        }
        let mut times = Vec::new();
        while times.len() < 3 {
            let before = world.tally.events;
            assert!(world.step());
            if world.tally.events > before {
                times.push(world.now.as_nanos() / 1000);
            }
        }
        times
    }

    #[test]
    fn messages_that_come_together_are_worked_on_one_after_another() {
        assert_eq!(handled("message_cost = \"0s\""), [500, 500, 500]);
        assert_eq!(handled("message_cost = \"20us\""), [520, 540, 560]);
    }

    #[test]
    fn connections_are_worked_on_in_the_same_queue_as_messages() {
        let mut world = world("connect_cost = \"3ms\"\nmessage_cost = \"1ms\"\nrtt = \"0ms\"");
        assert_eq!([world.handshake(0), world.handshake(0)].map(|work| work.as_millis()), [3, 6]);
        assert_eq!(world.handshake(1), Duration::from_millis(3));
        assert_eq!(world.nodes[0].busy_until.as_nanos(), 6_000_000);
    }

    #[test]
    fn a_rollout_with_costly_messages_and_connections_takes_longer() {
        let (cheap, dear) = (ended("message_cost = \"0s\"\nconnect_cost = \"0s\""), ended("message_cost = \"5ms\""));
        assert_eq!((cheap.unmet_count, dear.unmet_count), (0, 0));
        assert!(dear.p50_s > cheap.p50_s, "{cheap}\n{dear}");
        let slow = ended("message_cost = \"0s\"\nconnect_cost = \"200ms\"");
        assert!(slow.p50_s > cheap.p50_s + 0.3, "{cheap}\n{slow}");
    }

    #[test]
    fn chunks_wait_for_one_another_to_be_verified_and_written() {
        let mut world = world("verify_rate = \"1MB/s\"\nwrite_rate = \"500kB/s\"");
        let mut times = [0; 2];
        for time in &mut times {
            let verified = world.verified(0, Duration::from_millis(10), 100_000);
            *time = world.written(0, verified, 100_000).as_millis();
        }
        assert_eq!(times, [310, 510]);
        let (fast, slow) = (ended(""), ended("write_rate = \"5MB/s\""));
        assert_eq!(slow.unmet, Vec::<String>::new());
        assert!(slow.max_s > 16.0 / 5.0 && fast.max_s < slow.max_s / 2.0, "{fast}\n{slow}");
    }
}
