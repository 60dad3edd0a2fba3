//! Links and transfers: who sends how fast to whom.
//!
//! A transfer runs through a path of links: the sender's uplink, the receiver's downlink, and what lies between. All
//! transfers of a link share it fairly: *max-min*, as flow-controlled streams settle to. Each link offers every transfer
//! the same share, and what a transfer cannot use, because another link of its path offers less, is given to the rest.
//! A transfer's rate is the least of what the links of its path offer, and its cap.
//!
//! A link works out its offer anew when a transfer starts or ends on it, and when what its transfers use has drifted
//! from its rate because offers elsewhere changed (`OVER`, `UNDER`). Links with many transfers (uplinks of racks and
//! zones, the origin) do so only then. What one change brings about is worked out before time goes on, up to `REACH`
//! links; the rest follows with the next change.

mod flow;
mod link;
mod soonest;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use shoal_proto::time::Time;

pub use self::flow::{FlowId, LinkId, PATH_MAX, Path};
pub(crate) use self::soonest::{FOREVER, Soonest};
use self::{
    flow::{Flow, Route, seconds},
    link::{Entry, Link, MANY, fair_offer},
};

/// With more transfers than this a link does not think again at each change.
const FEW: usize = 48;
/// Links worked out at most after one change beside those that changed.
const REACH: usize = 24;

/// All links and transfers.
///
/// What a change touches together lies together: in a world of thousands of links, that is what a change costs.
#[derive(Debug, Default)]
pub struct Net {
    links: Vec<Link>,
    flows: Vec<Flow>,
    /// By the place of a transfer: what only those have that are not plain.
    routes: Vec<Route>,
    /// Places of flows that have ended.
    free: Vec<u32>,
    /// [`Link::filed`] of each link.
    ends: Soonest,
    /// Links that have to work out their offer.
    stale: VecDeque<u32>,
    /// Transfers without a rate as yet.
    fresh: Vec<u32>,
    /// The end that was found last, while nothing has changed.
    next: Option<(Time, FlowId)>,
    /// The transfers of a link and what they can use: room that is used again.
    wishes: Vec<(u32, f64)>,
}

impl Net {
    /// Adds a link of so many bytes per second.
    pub fn link(&mut self, rate: u64) -> LinkId {
        self.links.push(Link::new(rate.max(1) as f64));
        self.ends.reserve(self.links.len());
        LinkId(self.links.len() as u32 - 1)
    }

    /// Lets a link be faster or slower from now on.
    pub fn set_rate(&mut self, link: LinkId, rate: u64) {
        self.links[link.at()].rate = rate.max(1) as f64;
        self.doubt(link.at());
    }

    /// Starts a transfer. Its tag is told again by [`Self::tag`].
    pub fn start(&mut self, now: Time, path: Path, cap: Option<u64>, bytes: u64, tag: u64) -> FlowId {
        let index = self.free.pop().unwrap_or(self.flows.len() as u32);
        let generation = self.flows.get(index as usize).map_or(0, |flow| flow.generation);
        let (links, plain) = (path.links(), path.len == 2 && cap.is_none());
        let mut slots = [0; PATH_MAX];
        for (at, (slot, link)) in slots.iter_mut().zip(links).enumerate() {
            let other = if plain { links[1 - at].0 } else { MANY };
            *slot = self.links[link.at()].push(Entry { flow: index, other });
        }
        let flow = Flow {
            left: bytes as f64,
            rate: 0.0,
            since: now,
            end: FOREVER,
            tag,
            generation,
            plain,
            ends: [links[0], links[links.len() - 1]],
            slots: [slots[0], slots[1]],
        };
        match self.flows.get_mut(index as usize) {
            Some(place) => *place = flow,
            None => self.flows.push(flow),
        }
        if !plain {
            let route = Route { path, slots, cap: cap.map_or(f64::INFINITY, |cap| cap as f64) };
            if self.routes.len() <= index as usize {
                self.routes.resize(index as usize + 1, route.clone());
            }
            self.routes[index as usize] = route;
        }
        self.fresh.push(index);
        self.changed(&path);
        FlowId { index, generation }
    }

    fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id.index()).filter(|flow| flow.generation == id.generation)
    }

    fn flow_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation)
    }

    /// What a transfer was started with.
    #[must_use]
    pub fn tag(&self, id: FlowId) -> Option<u64> {
        self.flow(id).map(|flow| flow.tag)
    }

    /// Lets a transfer that came to its end go on with more bytes.
    pub fn go_on(&mut self, now: Time, id: FlowId, bytes: u64) {
        let Some(flow) = self.flow_mut(id) else { return };
        flow.settle(now);
        flow.left += bytes as f64;
        flow.end = flow.ends_at();
        let (last, end) = (flow.last(), flow.end);
        self.file(last, end);
        self.next = None;
    }

    /// Ends a transfer; returns the bytes that it still had to send.
    pub fn stop(&mut self, now: Time, id: FlowId) -> u64 {
        let Some(flow) = self.flow_mut(id) else { return 0 };
        flow.settle(now);
        flow.generation += 1;
        let (rate, left) = (flow.rate, flow.left);
        let (path, slots) = self.way(id.index());
        for (link, slot) in path.links().iter().zip(slots) {
            let place = &mut self.links[link.at()];
            place.used -= rate;
            if let Some(moved) = place.take(slot) {
                self.moved(moved.flow as usize, *link, slot);
            }
        }
        self.free.push(id.index);
        self.changed(&path);
        left.max(0.0) as u64
    }

    /// A transfer stands elsewhere in the list of a link.
    fn moved(&mut self, index: usize, link: LinkId, slot: u32) {
        let flow = &mut self.flows[index];
        if flow.plain {
            flow.slots[usize::from(flow.ends[0] != link)] = slot;
        } else {
            let route = &mut self.routes[index];
            let place = route.path.links().iter().position(|other| *other == link).unwrap_or(0);
            route.slots[place] = slot;
        }
    }

    /// The path of a transfer, and where it stands in the lists of its links.
    fn way(&self, index: usize) -> (Path, [u32; PATH_MAX]) {
        let flow = &self.flows[index];
        if flow.plain {
            let mut slots = [0; PATH_MAX];
            slots[..2].copy_from_slice(&flow.slots);
            (Path::new(&flow.ends), slots)
        } else {
            let Route { path, slots, .. } = &self.routes[index];
            (*path, *slots)
        }
    }

    /// The bytes that a transfer still has to send.
    #[must_use]
    pub fn left(&self, now: Time, id: FlowId) -> u64 {
        self.flow(id).map_or(0, |flow| (flow.left - flow.rate * seconds(flow.since, now)).max(0.0) as u64)
    }

    /// The transfer that ends next, and when. To be asked with the time of the last change.
    pub fn next_end(&mut self, now: Time) -> Option<(Time, FlowId)> {
        if self.next.is_some() && self.stale.is_empty() && self.fresh.is_empty() {
            return self.next;
        }
        self.share(now);
        loop {
            let (moment, link) = self.ends.first()?;
            let (mut end, mut index) = (FOREVER, 0);
            self.links[link].flows().for_each(|entry| {
                let flow = &self.flows[entry.flow as usize];
                if flow.end < end && flow.last() == link {
                    (end, index) = (flow.end, entry.flow);
                }
            });
            if end == moment {
                self.next = Some((end, FlowId { index, generation: self.flows[index as usize].generation }));
                return self.next;
            }
            self.links[link].filed = end;
            self.ends.set(link, end);
        }
    }

    /// The share of a link that is in use, 0 to 1 and a little more.
    #[must_use]
    pub fn usage(&self, link: LinkId) -> f64 {
        let link = &self.links[link.at()];
        link.used / link.rate
    }

    /// A transfer started or ended on these links.
    fn changed(&mut self, path: &Path) {
        self.next = None;
        for at in path.links() {
            let link = &self.links[at.at()];
            if link.len() <= FEW || link.is_off() {
                self.doubt(at.at());
            }
        }
    }

    fn doubt(&mut self, link: usize) {
        if !std::mem::replace(&mut self.links[link].stale, true) {
            self.stale.push_back(link as u32);
        }
    }

    /// Works out what the changes since the last time come to.
    fn share(&mut self, now: Time) {
        self.next = None;
        for _ in 0..self.stale.len() + REACH {
            let Some(link) = self.stale.pop_front() else { break };
            self.refresh(now, link as usize);
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        for index in fresh.drain(..) {
            // Links with many transfers do not look at each new one.
            if self.flows[index as usize].rate == 0.0 && self.is_listed(index) {
                let rate = self.wish(index, usize::MAX);
                self.give(now, index, rate, usize::MAX);
            }
        }
        self.fresh = fresh;
    }

    /// Whether a transfer has not ended.
    fn is_listed(&self, index: u32) -> bool {
        let flow = &self.flows[index as usize];
        let slot = if flow.plain {
            flow.slots[1]
        } else {
            let Route { path, slots, .. } = &self.routes[index as usize];
            slots[usize::from(path.len) - 1]
        };
        self.links[flow.last()].flow(slot).is_some_and(|entry| entry.flow == index)
    }

    /// Works out a link's offer, and the rates of its transfers.
    fn refresh(&mut self, now: Time, at: usize) {
        let mut wishes = std::mem::take(&mut self.wishes);
        wishes.clear();
        wishes.extend(self.links[at].flows().map(|entry| match self.links.get(entry.other as usize) {
            Some(other) => (entry.flow, other.offer),
            None => (entry.flow, self.wish(entry.flow, at)),
        }));
        let link = &mut self.links[at];
        (link.offer, link.binds) = fair_offer(link.rate, &wishes);
        let offer = link.offer;
        let mut used = 0.0;
        for (flow, wish) in wishes.drain(..) {
            let rate = least(wish, offer);
            used += rate;
            self.give(now, flow, rate, at);
        }
        let link = &mut self.links[at];
        link.used = used;
        link.stale = false;
        self.wishes = wishes;
    }

    /// What a transfer can use at most, as far as the links of its path other than `but` say.
    fn wish(&self, index: u32, but: usize) -> f64 {
        let flow = &self.flows[index as usize];
        let (links, cap) = if flow.plain {
            (flow.ends.as_slice(), f64::INFINITY)
        } else {
            let Route { path, cap, .. } = &self.routes[index as usize];
            (path.links(), *cap)
        };
        let others = links.iter().filter(|link| link.at() != but);
        others.map(|link| self.links[link.at()].offer).fold(cap, least)
    }

    /// A transfer has another rate; the link `but` knows.
    fn give(&mut self, now: Time, index: u32, rate: f64, but: usize) {
        let flow = &mut self.flows[index as usize];
        let more = rate - flow.rate;
        if more.abs() <= rate * 1e-9 {
            return;
        }
        flow.settle(now);
        flow.rate = rate;
        flow.end = flow.ends_at();
        let (last, end) = (flow.last(), flow.end);
        let links = if flow.plain { flow.ends.as_slice() } else { self.routes[index as usize].path.links() };
        for link in links.iter().filter(|link| link.at() != but) {
            let other = &mut self.links[link.at()];
            other.used += more;
            if !other.stale && other.is_off() {
                other.stale = true;
                self.stale.push_back(link.0);
            }
        }
        self.file(last, end);
    }

    /// A transfer that has this link as the last one ends then.
    fn file(&mut self, last: usize, end: Time) {
        let link = &mut self.links[last];
        if end < link.filed {
            link.filed = end;
            self.ends.set(last, end);
        }
    }
}

/// The lower of two numbers, both of which are some.
const fn least(one: f64, other: f64) -> f64 {
    if one < other { one } else { other }
}
