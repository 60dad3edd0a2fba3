//! Places in the table of a blob's peers, and sets of them.
//!
//! A fetch knows some dozens of peers and asks at each turn which of them have this chunk, are free, are near. A peer's
//! place is a number below [`SLOTS_MAX`], so that each such question is one word and its answer one operation.

use std::ops::{BitAnd, BitOr, Not};

use rand::{Rng, RngExt};

/// Places in a table.
pub(super) const SLOTS_MAX: usize = 64;

/// The place of a peer in the table of one fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(u8);

impl Slot {
    /// As an index into slices.
    pub(super) const fn at(self) -> usize {
        self.0 as usize
    }
}

/// A set of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Slots(u64);

impl Slots {
    pub(super) const NONE: Self = Self(0);
    pub(super) const ALL: Self = Self(u64::MAX);

    pub(super) const fn only(slot: Slot) -> Self {
        Self(1 << slot.0)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(super) const fn contains(self, slot: Slot) -> bool {
        self.0 >> slot.0 & 1 == 1
    }

    /// Whether both have a place in common.
    pub(super) const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn insert(&mut self, slot: Slot) {
        self.0 |= 1 << slot.0;
    }

    pub(super) const fn remove(&mut self, slot: Slot) {
        self.0 &= !(1 << slot.0);
    }

    pub(super) const fn set(&mut self, slot: Slot, within: bool) {
        if within { self.insert(slot) } else { self.remove(slot) }
    }

    /// The lowest place.
    pub(super) const fn first(self) -> Option<Slot> {
        if self.0 == 0 { None } else { Some(Slot(self.0.trailing_zeros() as u8)) }
    }

    /// The lowest place that is not in the set.
    pub(super) const fn first_free(self) -> Option<Slot> {
        Self(!self.0).first()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Slot> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let first = rest.first()?;
            rest.0 &= rest.0 - 1;
            Some(first)
        })
    }

    /// One of the places, each as likely as the others.
    pub(super) fn any(self, rng: &mut impl Rng) -> Option<Slot> {
        let mut rest = self;
        let skip = match self.len() {
            0 => return None,
            1 => 0,
            count => rng.random_range(0..count),
        };
        for _ in 0..skip {
            rest.0 &= rest.0 - 1;
        }
        rest.first()
    }
}

impl BitAnd for Slots {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Slots {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for Slots {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_pcg::Pcg64Mcg;

    use super::*;

    fn set(slots: &[u8]) -> Slots {
        slots.iter().fold(Slots::NONE, |set, slot| set | Slots::only(Slot(*slot)))
    }

    #[test]
    fn sets_hold_what_was_put_in_and_draw_each_place() {
        let slots = set(&[0, 7, 63]);
        assert_eq!(slots.iter().map(Slot::at).collect::<Vec<_>>(), [0, 7, 63]);
        assert_eq!((slots.len(), slots.first_free()), (3, Some(Slot(1))));
        assert_eq!((slots & set(&[7, 8])).first(), Some(Slot(7)));
        assert_eq!((Slots::ALL.first_free(), Slots::NONE.first()), (None, None));
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let drawn: BTreeSet<usize> = (0..100).filter_map(|_| slots.any(&mut rng)).map(Slot::at).collect();
        assert_eq!(drawn, BTreeSet::from([0, 7, 63]));
        assert_eq!(Slots::NONE.any(&mut rng), None);
    }
}
