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

mod soonest;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use shoal_proto::time::Time;

pub(crate) use self::soonest::{FOREVER, Soonest};

/// Links of the longest path.
pub const PATH_MAX: usize = 6;
/// A link on which transfers together get more than this share beyond its rate thinks again.
const OVER: f64 = 0.01;
/// So does one of which more than this share is not used, although some transfer wants more than its offer.
const UNDER: f64 = 0.02;
/// With more transfers than this a link does not think again at each change.
const FEW: usize = 48;
/// Links worked out at most after one change beside those that changed.
const REACH: usize = 24;

/// One link: one direction of a connection to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(u32);

/// One transfer. The index is that of a place that is used again; the generation tells its users apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

/// The links that a transfer runs through, from the sender to the receiver. The last one is the receiver's own.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    links: [LinkId; PATH_MAX],
    len: u8,
}

/// All links and transfers.
///
/// What a change touches together lies together: numbers of a link in half a cache line, those of a transfer in one, and
/// each link's list names the other ends of its transfers, so that most of them need not be looked at.
#[derive(Debug, Default)]
pub struct Net {
    links: Vec<Link>,
    /// The transfers of each link.
    lists: Vec<Vec<Entry>>,
    flows: Vec<Flow>,
    /// By the place of a transfer: what only those have that are not plain.
    routes: Vec<Route>,
    /// Places of flows that have ended.
    free: Vec<u32>,
    /// For each link: no transfer for which it is the last of its path ends before this.
    ends: Soonest,
    /// Links that have to work out their offer.
    stale: VecDeque<u32>,
    /// Transfers without a rate as yet.
    fresh: Vec<u32>,
    /// The end that was found last, while nothing has changed.
    next: Option<(Time, FlowId)>,
    wishes: Vec<f64>,
}

#[derive(Debug)]
#[repr(align(32))]
struct Link {
    /// Bytes per second.
    rate: f64,
    /// What it offers to each transfer, bytes per second.
    offer: f64,
    /// What its transfers get together.
    used: f64,
    /// Whether some transfer wanted more than its offer.
    binds: bool,
    /// Whether it is among the stale ones.
    stale: bool,
}

/// A transfer in the list of a link.
#[derive(Debug, Clone, Copy)]
struct Entry {
    flow: u32,
    /// The other link of a plain transfer, or [`MANY`].
    other: u32,
}

/// No link: the transfer is not plain.
const MANY: u32 = u32::MAX;

/// Most transfers are *plain*: without a cap, through an uplink and a downlink and no more.
#[derive(Debug, Clone)]
#[repr(align(64))]
struct Flow {
    /// Bytes left at `since`.
    left: f64,
    rate: f64,
    since: Time,
    end: Time,
    generation: u32,
    plain: bool,
    /// The first and the last link of its path.
    ends: [LinkId; 2],
    /// Where it stands in the lists of these, if it is plain.
    slots: [u32; 2],
}

/// The way of a transfer that is not plain.
#[derive(Debug, Clone)]
struct Route {
    path: Path,
    /// Where it stands in the list of each link of its path.
    slots: [u32; PATH_MAX],
    /// What it can use at most.
    cap: f64,
}

impl FlowId {
    /// Its place: below the highest number of transfers that ran at once.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

impl Path {
    /// A path through links.
    ///
    /// # Panics
    /// Without a link, or with more than [`PATH_MAX`].
    #[must_use]
    pub fn new(links: &[LinkId]) -> Self {
        assert!(!links.is_empty(), "a path has a link");
        let mut path = Self { links: [LinkId(0); PATH_MAX], len: links.len() as u8 };
        path.links[..links.len()].copy_from_slice(links);
        path
    }

    /// Leads on through another link, if there is one.
    ///
    /// # Panics
    /// Beyond [`PATH_MAX`] links.
    pub fn extend(&mut self, link: Option<LinkId>) {
        if let Some(link) = link {
            self.links[usize::from(self.len)] = link;
            self.len += 1;
        }
    }

    fn links(&self) -> &[LinkId] {
        &self.links[..usize::from(self.len)]
    }
}

impl LinkId {
    const fn at(self) -> usize {
        self.0 as usize
    }
}

impl Net {
    /// Adds a link of so many bytes per second.
    pub fn link(&mut self, rate: u64) -> LinkId {
        let rate = rate.max(1) as f64;
        self.links.push(Link { rate, offer: rate, used: 0.0, binds: false, stale: false });
        self.lists.push(Vec::new());
        self.ends.reserve(self.links.len());
        LinkId(self.links.len() as u32 - 1)
    }

    /// Lets a link be faster or slower from now on.
    pub fn set_rate(&mut self, link: LinkId, rate: u64) {
        self.links[link.at()].rate = rate.max(1) as f64;
        self.doubt(link.at());
    }

    /// Starts a transfer.
    pub fn start(&mut self, now: Time, path: Path, cap: Option<u64>, bytes: u64) -> FlowId {
        let index = self.free.pop().unwrap_or(self.flows.len() as u32);
        let generation = self.flows.get(index as usize).map_or(0, |flow| flow.generation);
        let (links, plain) = (path.links(), path.len == 2 && cap.is_none());
        let mut slots = [0; PATH_MAX];
        for (at, (slot, link)) in slots.iter_mut().zip(links).enumerate() {
            let other = if plain { links[1 - at].0 } else { MANY };
            let list = &mut self.lists[link.at()];
            *slot = list.len() as u32;
            list.push(Entry { flow: index, other });
        }
        let flow = Flow {
            left: bytes as f64,
            rate: 0.0,
            since: now,
            end: FOREVER,
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

    /// Lets a transfer that came to its end go on with more bytes.
    pub fn go_on(&mut self, now: Time, id: FlowId, bytes: u64) {
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else { return };
        flow.settle(now);
        flow.left += bytes as f64;
        flow.end = flow.ends_at();
        self.ends.lower(flow.last(), flow.end);
        self.next = None;
    }

    /// Ends a transfer; returns the bytes that it still had to send.
    pub fn stop(&mut self, now: Time, id: FlowId) -> u64 {
        let Some(flow) = self.flows.get_mut(id.index()).filter(|flow| flow.generation == id.generation) else {
            return 0;
        };
        flow.settle(now);
        flow.generation += 1;
        let (rate, left) = (flow.rate, flow.left);
        let (path, slots) = self.way(id.index());
        for (link, slot) in path.links().iter().zip(slots) {
            self.links[link.at()].used -= rate;
            let list = &mut self.lists[link.at()];
            list.swap_remove(slot as usize);
            if let Some(moved) = list.get(slot as usize) {
                let moved = moved.flow as usize;
                self.moved(moved, *link, slot);
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
        let flow = self.flows.get(id.index()).filter(|flow| flow.generation == id.generation);
        flow.map_or(0, |flow| (flow.left - flow.rate * seconds(flow.since, now)).max(0.0) as u64)
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
            for entry in &self.lists[link] {
                let flow = &self.flows[entry.flow as usize];
                if flow.end < end && flow.last() == link {
                    (end, index) = (flow.end, entry.flow);
                }
            }
            if end == moment {
                self.next = Some((end, FlowId { index, generation: self.flows[index as usize].generation }));
                return self.next;
            }
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
        for link in path.links() {
            if self.lists[link.at()].len() <= FEW || self.links[link.at()].is_off() {
                self.doubt(link.at());
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
                self.give(now, index, rate);
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
        self.lists[flow.last()].get(slot as usize).is_some_and(|entry| entry.flow == index)
    }

    /// Works out a link's offer, and the rates of its transfers.
    fn refresh(&mut self, now: Time, at: usize) {
        let list = std::mem::take(&mut self.lists[at]);
        let mut wishes = std::mem::take(&mut self.wishes);
        wishes.clear();
        wishes.extend(list.iter().map(|entry| match self.links.get(entry.other as usize) {
            Some(other) => other.offer,
            None => self.wish(entry.flow, at),
        }));
        let link = &mut self.links[at];
        (link.offer, link.binds) = fair_offer(link.rate, &wishes);
        let offer = link.offer;
        let mut used = 0.0;
        for (entry, wish) in list.iter().zip(&wishes) {
            let rate = wish.min(offer);
            used += rate;
            self.give(now, entry.flow, rate);
        }
        let link = &mut self.links[at];
        link.used = used;
        link.stale = false;
        self.lists[at] = list;
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
        others.map(|link| self.links[link.at()].offer).fold(cap, f64::min)
    }

    fn give(&mut self, now: Time, index: u32, rate: f64) {
        let flow = &mut self.flows[index as usize];
        let more = rate - flow.rate;
        if more.abs() <= rate * 1e-9 {
            return;
        }
        flow.settle(now);
        flow.rate = rate;
        flow.end = flow.ends_at();
        self.ends.lower(flow.last(), flow.end);
        let links = if flow.plain { flow.ends.as_slice() } else { self.routes[index as usize].path.links() };
        for link in links {
            let other = &mut self.links[link.at()];
            other.used += more;
            if !other.stale && other.is_off() {
                other.stale = true;
                self.stale.push_back(link.0);
            }
        }
    }
}

/// The equal share of a link that is left when transfers held back elsewhere take what they can, and whether some
/// transfer wants more than that.
fn fair_offer(rate: f64, wishes: &[f64]) -> (f64, bool) {
    let (mut offer, mut held_before) = (rate / wishes.len().max(1) as f64, 0);
    loop {
        let (mut sum, mut held) = (0.0, 0);
        for wish in wishes {
            // Without branches, which nothing could foretell.
            let is_held = *wish <= offer;
            sum += if is_held { *wish } else { 0.0 };
            held += usize::from(is_held);
        }
        if held == wishes.len() {
            // All are held back elsewhere: any one of them could have the rest.
            let most = wishes.iter().copied().fold(0.0, f64::max);
            return (rate - sum + most, false);
        }
        // Offers only grow, but for rounding.
        if held <= held_before {
            return (offer, true);
        }
        held_before = held;
        offer = (rate - sum) / (wishes.len() - held) as f64;
    }
}

fn seconds(from: Time, to: Time) -> f64 {
    to.as_nanos().saturating_sub(from.as_nanos()) as f64 * 1e-9
}

impl Link {
    /// Whether what its transfers get has drifted from what it has.
    fn is_off(&self) -> bool {
        self.used > self.rate * (1.0 + OVER) || (self.binds && self.used < self.rate * (1.0 - UNDER))
    }
}

impl Flow {
    const fn last(&self) -> usize {
        self.ends[1].at()
    }

    /// Counts what was sent until now.
    fn settle(&mut self, now: Time) {
        self.left -= self.rate * seconds(self.since, now);
        // Less than a byte is rounding.
        if self.left < 1.0 {
            self.left = 0.0;
        }
        self.since = now;
    }

    fn ends_at(&self) -> Time {
        if self.left <= 0.0 {
            return self.since;
        }
        // A float beyond the integers' end becomes that end.
        let rest = (self.left / self.rate * 1e9) as u64;
        Time::from_nanos(self.since.as_nanos().saturating_add(rest).saturating_add(1))
    }
}
