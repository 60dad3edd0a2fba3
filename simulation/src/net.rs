//! Links and transfers: who sends how fast to whom.
//!
//! A transfer runs through the sender's uplink and the receiver's downlink, and all transfers of a link share it fairly:
//! *max-min*, as flow-controlled streams settle to. Each link offers every transfer an equal share, and what a transfer
//! cannot use, because its other link offers less, is given to the rest. Offers are worked out again from the link where
//! something changed outwards, until no offer changes by more than `TOLERANCE`; then rates and ends follow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_proto::time::Time;

/// Offers that change by less than this share are not passed on.
const TOLERANCE: f64 = 0.002;
/// Links worked out at most after one change; far ones hardly matter.
const REACH: usize = 400;

/// One direction of a node's connection to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(usize);

/// One transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(u64);

/// All links and transfers.
#[derive(Debug, Default)]
pub struct Net {
    links: Vec<Link>,
    flows: BTreeMap<FlowId, Flow>,
    ends: BTreeSet<(Time, FlowId)>,
    ids: u64,
}

#[derive(Debug)]
struct Link {
    /// Bytes per second.
    rate: f64,
    /// What it offers to each transfer, bytes per second.
    offer: f64,
    flows: Vec<FlowId>,
}

#[derive(Debug)]
struct Flow {
    from: LinkId,
    to: LinkId,
    /// What it can use at most.
    cap: f64,
    /// Bytes left at `since`.
    left: f64,
    rate: f64,
    since: Time,
    end: Time,
}

impl Net {
    /// Adds a link of so many bytes per second.
    pub fn link(&mut self, rate: u64) -> LinkId {
        let rate = rate as f64;
        self.links.push(Link { rate, offer: rate, flows: Vec::new() });
        LinkId(self.links.len() - 1)
    }

    /// Starts a transfer.
    pub fn start(&mut self, now: Time, from: LinkId, to: LinkId, cap: Option<u64>, bytes: u64) -> FlowId {
        self.ids += 1;
        let id = FlowId(self.ids);
        let cap = cap.map_or(f64::INFINITY, |cap| cap as f64);
        let flow = Flow { from, to, cap, left: bytes as f64, rate: 0.0, since: now, end: FOREVER };
        self.flows.insert(id, flow);
        self.ends.insert((FOREVER, id));
        self.links[from.0].flows.push(id);
        self.links[to.0].flows.push(id);
        self.share(now, [from, to]);
        id
    }

    /// Lets a transfer that came to its end go on with more bytes.
    pub fn go_on(&mut self, now: Time, id: FlowId, bytes: u64) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.settle(now);
            flow.left += bytes as f64;
            self.ends.remove(&(flow.end, id));
            flow.end = flow.ends_at();
            self.ends.insert((flow.end, id));
        }
    }

    /// Ends a transfer; returns the bytes that it still had to send.
    pub fn stop(&mut self, now: Time, id: FlowId) -> u64 {
        let Some(mut flow) = self.flows.remove(&id) else { return 0 };
        self.ends.remove(&(flow.end, id));
        flow.settle(now);
        for link in [flow.from, flow.to] {
            self.links[link.0].flows.retain(|other| *other != id);
        }
        self.share(now, [flow.from, flow.to]);
        flow.left.max(0.0) as u64
    }

    /// The bytes that a transfer still has to send.
    #[must_use]
    pub fn left(&self, now: Time, id: FlowId) -> u64 {
        let left = |flow: &Flow| flow.left - flow.rate * now.since(flow.since).as_secs_f64();
        self.flows.get(&id).map_or(0, |flow| left(flow).max(0.0) as u64)
    }

    /// The transfer that ends next, and when.
    #[must_use]
    pub fn next_end(&self) -> Option<(Time, FlowId)> {
        self.ends.first().copied().filter(|(end, _)| *end < FOREVER)
    }

    /// The share of a link that is in use, 0 to 1.
    #[must_use]
    pub fn usage(&self, link: LinkId) -> f64 {
        let link = &self.links[link.0];
        link.flows.iter().map(|flow| self.flows[flow].rate).sum::<f64>() / link.rate
    }

    fn share(&mut self, now: Time, changed: [LinkId; 2]) {
        let mut queue = VecDeque::from(changed);
        let mut touched = BTreeSet::new();
        for _ in 0..REACH {
            let Some(link) = queue.pop_front() else { break };
            let offer = self.fair_offer(link);
            let old = std::mem::replace(&mut self.links[link.0].offer, offer);
            let news = (offer - old).abs() > old * TOLERANCE;
            touched.extend(self.links[link.0].flows.iter().copied());
            if !news {
                continue;
            }
            for id in &self.links[link.0].flows {
                let other = self.flows[id].other(link);
                // Only a link that is held back by this one, or now will be, has to think again.
                let matters = self.links[other.0].offer > old.min(offer);
                if matters && !queue.contains(&other) {
                    queue.push_back(other);
                }
            }
        }
        for id in touched {
            self.set_rate(now, id);
        }
    }

    /// The equal share of a link that is left when transfers held back elsewhere take what they can.
    fn fair_offer(&self, link: LinkId) -> f64 {
        let elsewhere = |id: &FlowId| {
            let flow = &self.flows[id];
            self.links[flow.other(link).0].offer.min(flow.cap)
        };
        let mut wishes: Vec<f64> = self.links[link.0].flows.iter().map(elsewhere).collect();
        wishes.sort_unstable_by(f64::total_cmp);
        let mut left = self.links[link.0].rate;
        let mut count = wishes.len();
        for wish in &wishes {
            let fair = left / count as f64;
            if *wish > fair {
                return fair;
            }
            left -= wish;
            count -= 1;
        }
        // All are held back elsewhere: any one of them could have the rest.
        left + wishes.last().copied().unwrap_or(0.0)
    }

    fn set_rate(&mut self, now: Time, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let rate = self.links[flow.from.0].offer.min(self.links[flow.to.0].offer).min(flow.cap);
        if (rate - flow.rate).abs() <= rate * 1e-9 {
            return;
        }
        flow.settle(now);
        flow.rate = rate;
        self.ends.remove(&(flow.end, id));
        flow.end = flow.ends_at();
        self.ends.insert((flow.end, id));
    }
}

const FOREVER: Time = Time::from_nanos(u64::MAX);

impl Flow {
    fn other(&self, link: LinkId) -> LinkId {
        if self.from == link { self.to } else { self.from }
    }

    /// Counts what was sent until now.
    fn settle(&mut self, now: Time) {
        self.left -= self.rate * now.since(self.since).as_secs_f64();
        // Less than a byte is rounding.
        if self.left.abs() < 1.0 {
            self.left = 0.0;
        }
        self.since = now;
    }

    fn ends_at(&self) -> Time {
        if self.left <= 0.0 {
            return self.since;
        }
        match Duration::try_from_secs_f64(self.left / self.rate) {
            Ok(rest) => self.since + rest + Duration::from_nanos(1),
            Err(_) => FOREVER,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn near(time: Time, seconds: f64) -> bool {
        (time.since(Time::ZERO).as_secs_f64() - seconds).abs() < 1e-3
    }

    #[test]
    fn transfers_share_a_link_and_one_that_cannot_use_its_share_leaves_it_to_the_others() {
        let mut net = Net::default();
        let (up, slow, fast, spare) = (net.link(100), net.link(10), net.link(1000), net.link(1000));
        let held_back = net.start(Time::ZERO, up, slow, None, 100);
        let first = net.start(Time::ZERO, up, fast, None, 90);
        let second = net.start(Time::ZERO, up, spare, None, 90);
        // 10 to the slow one, 45 to each of the others.
        let (end, flow) = net.next_end().unwrap();
        assert!(near(end, 2.0) && flow == first, "{end:?}");
        assert!((net.usage(up) - 1.0).abs() < 0.01);
        net.stop(end, first);
        net.stop(end, second);
        let (end, flow) = net.next_end().unwrap();
        assert!(near(end, 10.0) && flow == held_back, "{end:?}");
    }

    #[test]
    fn a_stopped_transfer_says_what_it_had_left_and_frees_its_share() {
        let mut net = Net::default();
        let (up, one, two) = (net.link(100), net.link(100), net.link(100));
        let stopped = net.start(Time::ZERO, up, one, None, 1000);
        let other = net.start(Time::ZERO, up, two, None, 1000);
        let later = Time::ZERO + Duration::from_secs(10);
        assert_eq!(net.stop(later, stopped), 500);
        let (end, flow) = net.next_end().unwrap();
        assert!(near(end, 15.0) && flow == other, "{end:?}");
    }

    #[test]
    fn a_cap_holds_and_a_transfer_goes_on_at_its_rate() {
        let mut net = Net::default();
        let (up, down) = (net.link(100), net.link(100));
        let flow = net.start(Time::ZERO, up, down, Some(20), 20);
        let (end, _) = net.next_end().unwrap();
        assert!(near(end, 1.0));
        net.go_on(end, flow, 40);
        assert!(near(net.next_end().unwrap().0, 3.0));
    }
}
