//! Whom a node has a connection with.

/// Others that are kept in the node itself.
const NEAR: usize = 30;

/// A set of nodes, by their numbers. Most nodes have few connections, and each message asks for one: those lie in the
/// node itself, in no order.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Peers {
    near: [u32; NEAR],
    count: u32,
    /// Those for which there was no room, in order.
    more: Vec<u32>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { near: [u32::MAX; NEAR], count: 0, more: Vec::new() }
    }
}

impl Peers {
    fn near(&self) -> &[u32] {
        &self.near[..self.count as usize]
    }

    pub(crate) fn contains(&self, other: usize) -> bool {
        let other = other as u32;
        // A cache line at once: no one waits for another.
        let mut lines = self.near.chunks(16).map(|line| line.iter().fold(false, |found, one| found | (*one == other)));
        lines.any(|found| found) || !self.more.is_empty() && self.more.binary_search(&other).is_ok()
    }

    /// Adds a node; returns whether it is new.
    pub(crate) fn insert(&mut self, other: usize) -> bool {
        if self.contains(other) {
            return false;
        }
        if let Some(place) = self.near.get_mut(self.count as usize) {
            *place = other as u32;
            self.count += 1;
        } else if let Err(place) = self.more.binary_search(&(other as u32)) {
            self.more.insert(place, other as u32);
        }
        true
    }

    /// Takes a node out; returns whether it was there.
    pub(crate) fn remove(&mut self, other: usize) -> bool {
        let other = other as u32;
        if let Ok(place) = self.more.binary_search(&other) {
            self.more.remove(place);
            return true;
        }
        let Some(place) = self.near().iter().position(|one| *one == other) else { return false };
        self.count -= 1;
        self.near.swap(place, self.count as usize);
        self.near[self.count as usize] = u32::MAX;
        true
    }

    /// All of them, in order.
    pub(crate) fn sorted(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.near().iter().chain(&self.more).map(|other| *other as usize).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn peers_are_a_set_however_many_there_are() {
        for most in [20, 60] {
            let (mut peers, mut expected) = (Peers::default(), BTreeSet::new());
            for round in 0..2000_u64 {
                let chance = crate::node::mix(round, most);
                let other = (chance >> 32) as usize % most as usize;
                if chance.is_multiple_of(2) {
                    assert_eq!(peers.insert(other), expected.insert(other));
                } else {
                    assert_eq!(peers.remove(other), expected.remove(&other));
                }
                assert_eq!(peers.contains(other), expected.contains(&other));
                assert!(peers.sorted().into_iter().eq(expected.iter().copied()));
            }
        }
    }
}
