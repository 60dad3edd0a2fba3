//! Policy, as pure functions: which chunk next, and from whom.

use rand::{Rng, RngExt};

use crate::chunk::ChunkIndex;

/// The rarest of some chunks; ties are broken at random.
///
/// Random ties are what keeps peers from all asking for the same chunk: with ties broken by order, a swarm takes five
/// times as long and the origin sends as many copies.
pub(super) fn rarest(
    chunks: impl Iterator<Item = ChunkIndex>,
    rarity: &[u16],
    rng: &mut impl Rng,
) -> Option<ChunkIndex> {
    let mut best: Option<(u16, ChunkIndex)> = None;
    let mut ties = 0_u32;
    for chunk in chunks {
        let holders = rarity.get(chunk.at()).copied().unwrap_or(0);
        match best {
            Some((least, _)) if holders > least => {}
            Some((least, _)) if holders == least => {
                ties += 1;
                if rng.random_range(0..ties) == 0 {
                    best = Some((holders, chunk));
                }
            }
            Some(_) | None => {
                ties = 1;
                best = Some((holders, chunk));
            }
        }
    }
    best.map(|(_, chunk)| chunk)
}

/// How many chunks one peer may be asked for at once: a few, but all of them if it is the only one.
pub(super) const fn share(pulls_max: usize, per_peer_max: usize, peers: usize) -> usize {
    let fair = pulls_max.div_ceil(if peers == 0 { 1 } else { peers });
    if fair > per_peer_max { fair } else { per_peer_max }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    use super::*;

    #[test]
    fn the_rarest_chunk_wins_and_ties_are_random() {
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let rarity = [3, 1, 2, 1, 1];
        let seen: BTreeSet<u32> =
            (0..100).filter_map(|_| rarest((0..5).map(ChunkIndex), &rarity, &mut rng)).map(|chunk| chunk.0).collect();
        assert_eq!(seen, BTreeSet::from([1, 3, 4]));
        assert_eq!(rarest([].into_iter(), &rarity, &mut rng), None);
    }

    #[test]
    fn a_lone_peer_is_asked_for_everything() {
        assert_eq!(share(6, 2, 1), 6);
        assert_eq!(share(6, 2, 3), 2);
        assert_eq!(share(6, 2, 20), 2);
    }
}
