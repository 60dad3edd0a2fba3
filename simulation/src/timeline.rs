//! What is counted over time: bytes in bins of equal width, and messages of a node.

use std::time::Duration;

use shoal_proto::time::Time;

/// Bins at most: when there are more, each two become one.
const BINS_MAX: usize = 100;

/// Bytes that moved in a part of the time.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Into nodes, from nodes and the origin.
    pub down: u64,
    /// Out of the origin.
    pub origin: u64,
    /// Out of nodes that stream from the origin, to nodes.
    pub holders_up: u64,
}

/// Bytes over time. Its resolution halves as the time doubles, so that it stays small however long a run takes.
#[derive(Debug)]
pub struct Timeline {
    /// Nanoseconds of a bin.
    width: u64,
    /// When the last bin ends.
    end: u64,
    bins: Vec<Moved>,
}

/// Messages that a node took in within the current second.
#[derive(Debug, Default, Clone, Copy)]
pub struct Load {
    second: u32,
    count: u32,
}

impl Timeline {
    /// A timeline that is at its best for runs of about so long.
    #[must_use]
    pub fn new(expected: Duration) -> Self {
        let width = (u64::try_from(expected.as_nanos()).unwrap_or(u64::MAX) / (BINS_MAX as u64 / 2)).max(1);
        Self { width, end: width, bins: vec![Moved::default()] }
    }

    /// What moves now. Time never goes back.
    pub fn now(&mut self, now: Time) -> &mut Moved {
        while now.as_nanos() >= self.end {
            if self.bins.len() == BINS_MAX {
                self.halve();
            } else {
                self.bins.push(Moved::default());
                self.end += self.width;
            }
        }
        let last = self.bins.len() - 1;
        &mut self.bins[last]
    }

    fn halve(&mut self) {
        let both = |pair: &[Moved]| {
            pair.iter().fold(Moved::default(), |sum, bin| Moved {
                down: sum.down + bin.down,
                origin: sum.origin + bin.origin,
                holders_up: sum.holders_up + bin.holders_up,
            })
        };
        self.bins = self.bins.chunks(2).map(both).collect();
        self.width *= 2;
        self.end = self.width * self.bins.len() as u64;
    }

    /// All bins, each with its begin and end in seconds; the last one ends with the run.
    pub fn bins(&self, end: Time) -> impl Iterator<Item = (f64, f64, Moved)> {
        let (width, end) = (self.width as f64 / 1e9, end.as_nanos() as f64 / 1e9);
        let last = self.bins.len() - 1;
        let edges = move |at: usize| (width * at as f64, if at == last { end } else { width * (at + 1) as f64 });
        self.bins.iter().enumerate().map(move |(at, bin)| (edges(at).0, edges(at).1, *bin))
    }
}

impl Load {
    /// The node takes in a message; returns how many it took in within this second.
    pub const fn message(&mut self, now: Time) -> u32 {
        let second = (now.as_nanos() / 1_000_000_000) as u32;
        if self.second != second {
            *self = Self { second, count: 0 };
        }
        self.count += 1;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn nothing_is_lost_when_a_run_takes_longer_than_expected() {
        let mut timeline = Timeline::new(Duration::from_secs(200));
        for second in 0..5000 {
            timeline.now(at(second)).down += 1;
        }
        let bins: Vec<_> = timeline.bins(at(5000)).collect();
        assert!(bins.len() <= BINS_MAX, "{}", bins.len());
        assert_eq!(bins.iter().map(|(_, _, bin)| bin.down).sum::<u64>(), 5000);
        for (from, to, bin) in bins {
            assert!((to - from - bin.down as f64).abs() < 1e-6, "{from} {to} {bin:?}");
        }
    }

    #[test]
    fn messages_are_counted_anew_in_each_second() {
        let mut load = Load::default();
        assert_eq!([0, 0, 1, 2, 2, 2, 3].map(|second| load.message(at(second))), [1, 2, 1, 1, 2, 3, 1]);
    }
}
