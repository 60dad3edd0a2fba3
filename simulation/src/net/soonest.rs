//! Which of many things is due first: a tree of minima over a fixed set of moments.

use shoal_proto::time::Time;

/// Never due.
pub(crate) const FOREVER: Time = Time::from_nanos(u64::MAX);

/// Moments in a cache line.
const WIDTH: usize = 8;

/// A moment for each of a number of places; finds the earliest. Among equal ones the lowest place is first.
///
/// A moment that changes costs as many steps as minima above it change: one or two, mostly. Nothing is left behind of
/// the old one, as it would be in a heap. Eight moments have one minimum, so that a step is one cache line and ten
/// thousand places are five steps high.
#[derive(Debug)]
pub(crate) struct Soonest {
    /// The minimum of all.
    least: Time,
    /// Line 0 has the highest minima; each moment `at` is the minimum of the line `at + 1`. Places are the last moments.
    lines: Vec<Line>,
    /// The moment of the first place.
    first: usize,
}

#[derive(Debug, Clone)]
#[repr(align(64))]
struct Line([Time; WIDTH]);

impl Line {
    const NEVER: Self = Self([FOREVER; WIDTH]);

    fn least(&self) -> Time {
        self.0.iter().copied().fold(FOREVER, Time::min)
    }
}

impl Default for Soonest {
    fn default() -> Self {
        Self { least: FOREVER, lines: vec![Line::NEVER], first: 0 }
    }
}

impl Soonest {
    /// Makes room for places below `count`; new ones are never due.
    pub(crate) fn reserve(&mut self, count: usize) {
        let (mut places, mut first) = (WIDTH, 0);
        while places < count {
            first += places;
            places *= WIDTH;
        }
        if first <= self.first {
            return;
        }
        let old = std::mem::take(self);
        self.first = first;
        self.lines = vec![Line::NEVER; (first + places) / WIDTH];
        for (place, moment) in old.places().enumerate() {
            self.set(place, moment);
        }
    }

    fn places(&self) -> impl Iterator<Item = Time> {
        self.lines[self.first / WIDTH..].iter().flat_map(|line| line.0)
    }

    const fn at(at: usize) -> (usize, usize) {
        (at / WIDTH, at % WIDTH)
    }

    #[cfg(test)]
    fn get(&self, place: usize) -> Time {
        let (line, at) = Self::at(self.first + place);
        self.lines[line].0[at]
    }

    pub(crate) fn set(&mut self, place: usize, moment: Time) {
        let (mut line, at) = Self::at(self.first + place);
        let (mut old, mut new) = (std::mem::replace(&mut self.lines[line].0[at], moment), moment);
        while old != new {
            let above = line.checked_sub(1).map(Self::at);
            let before = above.map_or(self.least, |(line, at)| self.lines[line].0[at]);
            let least = if new <= before {
                new
            } else if old == before {
                self.lines[line].least()
            } else {
                return;
            };
            (old, new) = (before, least);
            let Some((above, at)) = above else {
                self.least = least;
                return;
            };
            self.lines[above].0[at] = least;
            line = above;
        }
    }

    /// When the first one is due.
    pub(crate) const fn moment(&self) -> Time {
        self.least
    }

    /// The place that is due first.
    pub(crate) fn first(&self) -> Option<(Time, usize)> {
        if self.least == FOREVER {
            return None;
        }
        let mut line = 0;
        loop {
            let at = line * WIDTH + self.lines[line].0.iter().position(|moment| *moment == self.least)?;
            if at >= self.first {
                return Some((self.least, at - self.first));
            }
            line = at + 1;
        }
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
