//! A link: its numbers, and the list of its transfers.

use shoal_proto::time::Time;

use super::FOREVER;

/// A link on which transfers together get more than this share beyond its rate thinks again.
const OVER: f64 = 0.01;
/// So does one of which more than this share is not used, although some transfer wants more than its offer.
const UNDER: f64 = 0.02;
/// No link: the transfer is not plain.
pub(super) const MANY: u32 = u32::MAX;
/// Transfers that are listed in the link itself.
const NEAR: usize = 8;

/// A link fills two cache lines. What concerns its neighbours stands in the first, its transfers in the second.
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Link {
    /// Bytes per second.
    pub(super) rate: f64,
    /// What it offers to each transfer, bytes per second.
    pub(super) offer: f64,
    /// What its transfers get together.
    pub(super) used: f64,
    /// No transfer for which it is the last of its path ends before this.
    pub(super) filed: Time,
    /// Whether some transfer wanted more than its offer.
    pub(super) binds: bool,
    /// Whether it has to work out its offer.
    pub(super) stale: bool,
    /// How many transfers it has.
    len: u32,
    /// Those for which there is no room in `near`.
    more: Vec<Entry>,
    near: [Entry; NEAR],
}

/// A transfer in the list of a link.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) flow: u32,
    /// The other link of a plain transfer, or [`MANY`].
    pub(super) other: u32,
}

impl Link {
    pub(super) const fn new(rate: f64) -> Self {
        Self {
            rate,
            offer: rate,
            used: 0.0,
            filed: FOREVER,
            binds: false,
            stale: false,
            len: 0,
            more: Vec::new(),
            near: [Entry { flow: 0, other: 0 }; NEAR],
        }
    }

    /// Whether what its transfers get has drifted from what it has.
    pub(super) fn is_off(&self) -> bool {
        self.used > self.rate * (1.0 + OVER) || (self.binds && self.used < self.rate * (1.0 - UNDER))
    }

    /// How many transfers it has.
    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    /// Its transfers, in the order of their places.
    pub(super) fn flows(&self) -> impl Iterator<Item = &Entry> {
        self.near[..self.len().min(NEAR)].iter().chain(&self.more)
    }

    pub(super) fn flow(&self, at: u32) -> Option<&Entry> {
        let at = at as usize;
        if at >= NEAR { self.more.get(at - NEAR) } else { self.near[..self.len().min(NEAR)].get(at) }
    }

    /// Lists a transfer; returns its place.
    pub(super) fn push(&mut self, entry: Entry) -> u32 {
        match self.near.get_mut(self.len as usize) {
            Some(place) => *place = entry,
            None => self.more.push(entry),
        }
        self.len += 1;
        self.len - 1
    }

    /// Takes one out. The last one takes its place; returns that if it is another.
    pub(super) fn take(&mut self, at: u32) -> Option<Entry> {
        self.len -= 1;
        let last = self.more.pop().unwrap_or(self.near[self.len().min(NEAR - 1)]);
        if at == self.len {
            return None;
        }
        match self.near.get_mut(at as usize) {
            Some(place) => *place = last,
            None => self.more[at as usize - NEAR] = last,
        }
        Some(last)
    }
}

/// The equal share of a link that is left when transfers held back elsewhere take what they can, and whether some
/// transfer wants more than that.
pub(super) fn fair_offer(rate: f64, wishes: &[(u32, f64)]) -> (f64, bool) {
    let (mut offer, mut held_before) = (rate / wishes.len().max(1) as f64, 0);
    loop {
        let (mut sum, mut held) = (0.0, 0);
        for (_, wish) in wishes {
            // Without branches, which nothing could foretell.
            let is_held = *wish <= offer;
            sum += if is_held { *wish } else { 0.0 };
            held += usize::from(is_held);
        }
        if held == wishes.len() {
            // All are held back elsewhere: any one of them could have the rest.
            let most = wishes.iter().map(|(_, wish)| *wish).fold(0.0, f64::max);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_fills_two_cache_lines_and_its_neighbours_look_at_one() {
        assert_eq!((size_of::<Link>(), std::mem::offset_of!(Link, near)), (128, 64));
    }

    #[test]
    fn a_list_is_like_a_vector_however_long_it_gets() {
        let (mut list, mut expected) = (Link::new(1.0), Vec::new());
        for round in 0..2000_u64 {
            let chance = crate::node::mix(round, 5);
            if chance % 20 < if round < 1000 { 11 } else { 9 } {
                assert_eq!(list.push(Entry { flow: round as u32, other: 0 }) as usize, expected.len());
                expected.push(round as u32);
            } else if !expected.is_empty() {
                let at = (chance >> 32) as usize % expected.len();
                expected.swap_remove(at);
                let moved = list.take(at as u32).map(|entry| entry.flow);
                assert_eq!(moved, expected.get(at).copied());
            }
            assert!(list.flows().map(|entry| entry.flow).eq(expected.iter().copied()));
            assert_eq!(list.flow(9).map(|entry| entry.flow), expected.get(9).copied());
            assert_eq!(list.len(), expected.len());
        }
    }
}
