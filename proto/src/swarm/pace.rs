//! A stream from the origin goes before pulls: the whole swarm waits for what it brings, while any peer can bring the rest.
//!
//! Both share this node's downlink, and a dozen pulls would leave the stream a thirteenth of it. So while a node streams,
//! it has only as many pulls out as leave the stream its rate: one more as long as the stream keeps it, fewer once not.

use std::time::Duration;

use crate::time::Time;

/// Chunks from the origin before the rate counts as known.
const SAMPLES: u32 = 4;
/// The stream keeps its rate if it has at least this share of the best lately.
const KEPT: f64 = 0.92;
/// The best rate is forgotten with this time constant: the origin may have become slower.
const MEMORY: Duration = Duration::from_secs(4);

/// How many pulls go beside the streams.
#[derive(Debug, Default)]
pub(super) struct Pace {
    streams: usize,
    samples: u32,
    last: Option<Time>,
    /// Moving average of the streams' rate, in bytes per second.
    rate: f64,
    /// The best of it lately.
    best: f64,
    allowed: f64,
}

impl Pace {
    /// A stream was opened.
    pub(super) fn opened(&mut self) {
        if self.streams == 0 {
            *self = Self { allowed: 1.0, ..Self::default() };
        }
        self.streams += 1;
    }

    /// A stream ended.
    pub(super) const fn ended(&mut self) {
        self.streams = self.streams.saturating_sub(1);
    }

    /// A chunk of so many bytes came.
    pub(super) fn came(&mut self, now: Time, bytes: u64) {
        let Some(last) = self.last.replace(now) else { return };
        let took = now.since(last).as_secs_f64().max(1e-6);
        let rate = bytes as f64 / took;
        self.samples += 1;
        self.rate = if self.samples == 1 { rate } else { self.rate * 0.8 + rate * 0.2 };
        self.best = (self.best * (-took / MEMORY.as_secs_f64()).exp()).max(self.rate);
        if self.samples >= SAMPLES {
            let step = if self.rate < self.best * KEPT { -0.5 } else { 0.25 };
            self.allowed = (self.allowed + step).clamp(1.0, 1000.0);
        }
    }

    /// Pulls to have out at most, where `most` would be right without streams.
    pub(super) fn pulls_max(&self, most: usize) -> usize {
        if self.streams == 0 {
            return most;
        }
        most.min(self.allowed as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pulls of so many bytes a second each are out in the end, beside a stream that could have `stream`.
    fn settle(link: f64, stream: f64, pull: f64) -> usize {
        let (mut pace, mut now) = (Pace::default(), Time::ZERO);
        pace.opened();
        for _ in 0..1000 {
            let pulls = pace.pulls_max(12) as f64 * pull;
            let rate = stream.min(link - pulls).max(link / 13.0);
            now = now + Duration::from_secs_f64(1e6 / rate);
            pace.came(now, 1_000_000);
        }
        pace.pulls_max(12)
    }

    #[test]
    fn pulls_take_what_a_stream_leaves() {
        assert!((4..=8).contains(&settle(300e6, 150e6, 25e6)), "{}", settle(300e6, 150e6, 25e6));
        assert!(settle(300e6, 300e6, 25e6) <= 2);
        assert_eq!(settle(300e6, 10e6, 20e6), 12);
    }

    #[test]
    fn without_streams_nothing_is_held_back() {
        let mut pace = Pace::default();
        pace.opened();
        assert_eq!(pace.pulls_max(12), 1);
        pace.ended();
        assert_eq!(pace.pulls_max(12), 12);
    }
}
