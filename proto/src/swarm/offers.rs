//! Who has which chunk, and which chunks can be asked for now.

use rand::{Rng, RngExt};

use super::slots::{Slot, Slots};
use crate::chunk::ChunkIndex;

/// Chunks that fit, of which the rarest is taken: of so many it is rare enough, and a choice costs the same in any blob.
const COMPARED: usize = 48;
/// Chunks that are looked at for one choice at most.
const LOOKED_AT: usize = 4096;
/// No place in the list of open chunks.
const NOWHERE: u32 = u32::MAX;

/// Who has which chunk of a blob, and which are *open*: lacking, on their way from nobody, verifiable, and held by a peer.
#[derive(Debug)]
pub(super) struct Offers {
    /// For each chunk the peers that have it.
    holders: Vec<Slots>,
    open: Vec<ChunkIndex>,
    /// For each chunk its place in `open`.
    places: Vec<u32>,
}

impl Offers {
    pub(super) fn new(count: u32) -> Self {
        Self { holders: vec![Slots::NONE; count as usize], open: Vec::new(), places: vec![NOWHERE; count as usize] }
    }

    /// The peers that have a chunk; nobody has one beyond the blob.
    pub(super) fn holders(&self, chunk: ChunkIndex) -> Slots {
        self.holders.get(chunk.at()).copied().unwrap_or_default()
    }

    pub(super) fn is_held(&self, chunk: ChunkIndex) -> bool {
        !self.holders(chunk).is_empty()
    }

    /// A peer has a chunk. Returns whether that is news; [`Self::settle`] is to follow.
    pub(super) fn list(&mut self, slot: Slot, chunk: ChunkIndex) -> bool {
        let Some(holders) = self.holders.get_mut(chunk.at()) else { return false };
        let new = !holders.contains(slot);
        holders.insert(slot);
        new
    }

    /// A peer does not have a chunk. Returns whether it counted as having it.
    pub(super) fn unlist(&mut self, slot: Slot, chunk: ChunkIndex) -> bool {
        let Some(holders) = self.holders.get_mut(chunk.at()).filter(|holders| holders.contains(slot)) else {
            return false;
        };
        holders.remove(slot);
        if holders.is_empty() {
            self.close(chunk);
        }
        true
    }

    /// Nothing counts any more that a peer has.
    pub(super) fn unlist_all(&mut self, slot: Slot) {
        for at in 0..self.holders.len() {
            self.unlist(slot, ChunkIndex(at as u32));
        }
    }

    /// Opens or closes a chunk after a change; `wanted` if it is lacking, on its way from nobody, and verifiable.
    pub(super) fn settle(&mut self, chunk: ChunkIndex, wanted: bool) {
        if !wanted || !self.is_held(chunk) {
            self.close(chunk);
        } else if self.places[chunk.at()] == NOWHERE {
            self.places[chunk.at()] = self.open.len() as u32;
            self.open.push(chunk);
        }
    }

    fn close(&mut self, chunk: ChunkIndex) {
        let Some(place) = self.places.get_mut(chunk.at()) else { return };
        let at = std::mem::replace(place, NOWHERE);
        if at == NOWHERE {
            return;
        }
        self.open.swap_remove(at as usize);
        if let Some(moved) = self.open.get(at as usize) {
            self.places[moved.at()] = at;
        }
    }

    pub(super) fn is_open(&self, chunk: ChunkIndex) -> bool {
        self.places.get(chunk.at()).is_some_and(|place| *place != NOWHERE)
    }

    pub(super) fn any_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Peers that have open chunks which they may be asked for, as far as some of these show. If none of `free` has any of
    /// those, because all are to be had from few peers alone that are asked enough, it is looked further for one of `peers`.
    pub(super) fn useful(&self, peers: Slots, free: Slots, allowed: impl Fn(ChunkIndex) -> Slots) -> Slots {
        let able = |chunk: &ChunkIndex| self.holders[chunk.at()] & allowed(*chunk);
        let (some, others) = self.open.split_at(self.open.len().min(COMPARED));
        let useful = some.iter().fold(Slots::NONE, |all, chunk| all | able(chunk));
        if useful.meets(free) {
            return useful;
        }
        let further = others.iter().take(LOOKED_AT).map(able).find(|able| able.meets(peers));
        useful | further.unwrap_or_default()
    }

    /// Of the open chunks that some of `peers` have and may be asked for, the rarest, and which of them have it.
    /// `allowed` says whom a chunk may be asked of.
    ///
    /// Ties are broken at random: that is what keeps peers from all asking for the same chunk. With ties broken by order a
    /// swarm takes five times as long, and the origin sends as many copies.
    pub(super) fn rarest(
        &self,
        rng: &mut impl Rng,
        peers: Slots,
        allowed: impl Fn(ChunkIndex) -> Slots,
    ) -> Option<(ChunkIndex, Slots)> {
        if peers.is_empty() || self.open.is_empty() {
            return None;
        }
        let (front, back) = self.open.split_at(rng.random_range(0..self.open.len()));
        let (mut best, mut least, mut ties, mut compared) = (None, usize::MAX, 0_u32, 0);
        for chunk in back.iter().chain(front).take(LOOKED_AT) {
            let holders = self.holders[chunk.at()];
            if !holders.meets(peers) {
                continue;
            }
            let able = holders & peers & allowed(*chunk);
            if able.is_empty() {
                continue;
            }
            let rarity = holders.len();
            if rarity < least {
                (best, least, ties) = (Some((*chunk, able)), rarity, 1);
            } else if rarity == least {
                ties += 1;
                if rng.random_range(0..ties) == 0 {
                    best = Some((*chunk, able));
                }
            }
            compared += 1;
            if compared == COMPARED {
                break;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    use super::*;

    fn slot(at: usize) -> Slot {
        Slots::ALL.iter().nth(at).expect("below the most")
    }

    /// Chunk `i` is held by the first `held[i]` peers, and open.
    fn offers(held: &[usize]) -> Offers {
        let mut offers = Offers::new(held.len() as u32);
        for (chunk, peers) in held.iter().enumerate() {
            let chunk = ChunkIndex(chunk as u32);
            for peer in 0..*peers {
                assert!(offers.list(slot(peer), chunk));
            }
            offers.settle(chunk, true);
        }
        offers
    }

    fn drawn(offers: &Offers, peers: Slots) -> BTreeSet<u32> {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let draw = |_| offers.rarest(&mut rng, peers, |_| Slots::ALL);
        (0..200).filter_map(draw).map(|(chunk, _)| chunk.0).collect()
    }

    #[test]
    fn the_rarest_chunk_wins_and_ties_are_random() {
        let offers = offers(&[3, 1, 2, 1, 1]);
        assert_eq!(drawn(&offers, Slots::ALL), BTreeSet::from([1, 3, 4]));
        assert_eq!(drawn(&offers, Slots::only(slot(1))), BTreeSet::from([2]));
        assert_eq!(drawn(&offers, Slots::NONE), BTreeSet::new());
    }

    #[test]
    fn only_chunks_that_may_be_asked_of_a_peer_are_drawn() {
        let offers = offers(&[2, 2, 2]);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let allowed = |chunk: ChunkIndex| if chunk.0 == 2 { Slots::only(slot(1)) } else { Slots::NONE };
        let (chunk, able) = offers.rarest(&mut rng, Slots::ALL, allowed).expect("chunk 2");
        assert_eq!((chunk.0, able), (2, Slots::only(slot(1))));
    }

    #[test]
    fn what_others_have_is_seen_behind_many_chunks_that_only_a_peer_has_which_is_asked_enough() {
        let mut offers = offers(&[1; COMPARED * 2]);
        let behind = ChunkIndex(COMPARED as u32 + 7);
        offers.list(slot(5), behind);
        let [first, other] = [0, 5].map(|at| Slots::only(slot(at)));
        let useful = |free: Slots| offers.useful(other, free, |_| Slots::ALL);
        assert_eq!(useful(first | other), first, "the first chunks show somebody who is free");
        assert!(useful(other).meets(other), "nobody who is free has any of the first chunks");
        assert!(!offers.useful(other, other, |_| first).meets(other), "whom it may not be asked of");
    }

    #[test]
    fn chunks_close_when_wanted_no_more_or_when_their_last_holder_goes() {
        let mut offers = offers(&[1, 2, 2, 0]);
        assert!(!offers.is_open(ChunkIndex(3)) && offers.is_open(ChunkIndex(2)));
        offers.settle(ChunkIndex(2), false);
        offers.unlist_all(slot(0));
        assert_eq!((0..4).filter(|at| offers.is_open(ChunkIndex(*at))).collect::<Vec<_>>(), [1]);
        assert!(offers.unlist(slot(1), ChunkIndex(1)) && !offers.unlist(slot(1), ChunkIndex(1)));
        assert!(!offers.any_open() && !offers.is_open(ChunkIndex(9)) && !offers.is_held(ChunkIndex(9)));
    }
}
