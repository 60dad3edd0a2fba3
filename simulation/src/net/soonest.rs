//! Which of many things is due first: a tree of minima over a fixed set of moments.

use shoal_proto::time::Time;

/// Never due.
pub(crate) const FOREVER: Time = Time::from_nanos(u64::MAX);

/// A moment for each of a number of places; finds the earliest. Among equal ones the lowest place is first.
///
/// A moment that changes costs as many steps as minima above it change: one or two, mostly. Nothing is left behind of
/// the old one, as it would be in a heap.
#[derive(Debug, Default)]
pub(crate) struct Soonest {
    /// Node `i` has the children `2 i` and `2 i + 1`; the places are the last half.
    moments: Vec<Time>,
}

impl Soonest {
    fn places(&self) -> usize {
        self.moments.len() / 2
    }

    /// Makes room for places below `count`; new ones are never due.
    pub(crate) fn reserve(&mut self, count: usize) {
        if count <= self.places() {
            return;
        }
        let places = count.next_power_of_two().max(2);
        let mut moments = vec![FOREVER; 2 * places];
        let old = &self.moments[self.places()..];
        moments[places..places + old.len()].copy_from_slice(old);
        for at in (1..places).rev() {
            moments[at] = moments[2 * at].min(moments[2 * at + 1]);
        }
        self.moments = moments;
    }

    /// When a place is due.
    pub(crate) fn get(&self, place: usize) -> Time {
        self.moments[self.places() + place]
    }

    pub(crate) fn set(&mut self, place: usize, moment: Time) {
        let mut at = self.places() + place;
        self.moments[at] = moment;
        while at > 1 {
            at /= 2;
            let least = self.moments[2 * at].min(self.moments[2 * at + 1]);
            if self.moments[at] == least {
                break;
            }
            self.moments[at] = least;
        }
    }

    /// Sets a moment unless an earlier one is set.
    pub(crate) fn lower(&mut self, place: usize, moment: Time) {
        if moment < self.moments[self.places() + place] {
            self.set(place, moment);
        }
    }

    /// Sets a moment unless a later one is set.
    pub(crate) fn raise(&mut self, place: usize, moment: Time) {
        if moment > self.moments[self.places() + place] {
            self.set(place, moment);
        }
    }

    /// When the first one is due.
    pub(crate) fn moment(&self) -> Time {
        self.moments.get(1).copied().unwrap_or(FOREVER)
    }

    /// The place that is due first.
    pub(crate) fn first(&self) -> Option<(Time, usize)> {
        let moment = self.moment();
        if moment == FOREVER {
            return None;
        }
        let mut at = 1;
        while at < self.places() {
            at = if self.moments[2 * at] == moment { 2 * at } else { 2 * at + 1 };
        }
        Some((moment, at - self.places()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_of_many_moments_is_found_whatever_changes() {
        let mut soonest = Soonest::default();
        assert_eq!(soonest.first(), None);
        let mut x = 1_u64;
        for round in 0..2000 {
            soonest.reserve(1 + round / 20);
            x = crate::node::mix(x, 1);
            let place = (x >> 32) as usize % (1 + round / 20);
            let moment = if x.is_multiple_of(5) { FOREVER } else { Time::from_nanos(x % 50) };
            soonest.set(place, moment);
            let all = (0..1 + round / 20).map(|place| (soonest.get(place), place));
            let first = all.min().filter(|(moment, _)| *moment < FOREVER);
            assert_eq!(soonest.first(), first);
        }
    }
}
