//! A stream from the origin goes before pulls: the whole swarm waits for what it brings, while any peer can bring the rest.
//!
//! Both share this node's downlink, and a full number of pulls would leave a stream one share among many. So a stream
//! counts for as many pulls as bring the same: its rate is measured while hardly any pull is out, now and then anew, and
//! in between only so many pulls go out as leave it that rate.

use std::time::Duration;

use crate::time::Time;

/// Chunks from the origin that a measurement takes; the first one begins it.
const SAMPLES: u32 = 4;
/// Time from one measurement to the next.
const KEPT: Duration = Duration::from_secs(1);

/// How many pulls go beside the streams.
#[derive(Debug, Default)]
pub(super) struct Pace {
    streams: usize,
    /// The running measurement: when it began, chunks and bytes since then.
    measuring: Option<(Time, u32, u64)>,
    /// When the next one is due.
    due: Option<Time>,
    /// What the streams bring if pulls do not hinder them, in bytes per second; none before it was measured.
    stream: Option<f64>,
    /// What one pull brings, in bytes per second (moving average).
    pull: f64,
}

impl Pace {
    /// A stream was opened.
    pub(super) fn opened(&mut self) {
        if self.streams == 0 {
            *self = Self { pull: self.pull, ..Self::default() };
        }
        self.streams += 1;
    }

    /// A stream ended.
    pub(super) const fn ended(&mut self) {
        self.streams = self.streams.saturating_sub(1);
    }

    /// Whether any stream is open.
    pub(super) const fn is_streaming(&self) -> bool {
        self.streams > 0
    }

    /// A chunk of so many bytes came from the origin.
    pub(super) fn came(&mut self, now: Time, bytes: u64) {
        match &mut self.measuring {
            Some((since, chunks, sum)) => {
                *chunks += 1;
                *sum += bytes;
                if *chunks >= SAMPLES {
                    let took = now.since(*since).as_secs_f64().max(1e-6);
                    self.stream = Some(*sum as f64 / took);
                    self.measuring = None;
                    self.due = Some(now + KEPT);
                }
            }
            None if self.due.is_none_or(|due| due <= now) => self.measuring = Some((now, 0, 0)),
            None => {}
        }
    }

    /// A pull of so many bytes took so long.
    pub(super) fn pulled(&mut self, bytes: u64, took: Duration) {
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        self.pull = if self.pull > 0.0 { self.pull * 0.9 + rate * 0.1 } else { rate };
    }

    /// Pulls to have out at most, where `most` would be right without streams.
    pub(super) fn pulls_max(&self, most: usize) -> usize {
        if self.streams == 0 {
            return most;
        }
        match self.stream {
            Some(stream) if self.measuring.is_none() && self.pull > 0.0 => {
                let worth = (stream / self.pull).min(most as f64).ceil() as usize;
                (most - worth).max(1)
            }
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pulls of so many bytes a second each are out beside a stream that could have `stream`, most of the time.
    fn settle(link: f64, stream: f64, pull: f64) -> usize {
        let (mut pace, mut now) = (Pace::default(), Time::ZERO);
        let mut seen = [0; 9];
        pace.opened();
        for _ in 0..1000 {
            let pulls = pace.pulls_max(8);
            seen[pulls] += 1;
            let rate = stream.min(link - pulls as f64 * pull).max(link / 9.0);
            now = now + Duration::from_secs_f64(1e6 / rate);
            pace.came(now, 1_000_000);
            pace.pulled(1_000_000, Duration::from_secs_f64(1e6 / pull));
        }
        (0..9).max_by_key(|pulls| seen[*pulls]).unwrap_or(0)
    }

    #[test]
    fn pulls_take_what_a_stream_leaves() {
        assert_eq!(settle(300e6, 150e6, 37.5e6), 4);
        assert_eq!(settle(300e6, 300e6, 37.5e6), 1);
        assert_eq!(settle(300e6, 10e6, 37.5e6), 7);
    }

    #[test]
    fn without_streams_nothing_is_held_back() {
        let mut pace = Pace::default();
        pace.opened();
        assert_eq!(pace.pulls_max(8), 1);
        pace.ended();
        assert_eq!(pace.pulls_max(8), 8);
    }
}
