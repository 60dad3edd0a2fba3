//! How many range connections to the origin: more than one only where each is slower than all together.
//!
//! Some registries and object stores give a connection much less than they could send. Whether another connection helps
//! is tried out: the rate with twice as many is held against the rate before, and what does not help is not kept.

use std::time::Duration;

use crate::time::Time;

/// Most connections of one fetch.
const CONNECTIONS_MAX: usize = 8;
/// How long a number of connections is measured: so many times what the origin takes to answer, within limits. A connection
/// needs some round trips to get to its rate.
const MEASURE: u32 = 8;
const MEASURE_MIN: Duration = Duration::from_millis(150);
const MEASURE_MAX: Duration = Duration::from_secs(1);
/// After a change, what comes in is not counted for so many times what the origin takes to answer, the answer included.
const SETTLE: u32 = 3;
const SETTLE_MIN: Duration = Duration::from_millis(20);
/// Twice as many connections are kept if they bring so many times the rate.
const GAIN: f64 = 1.25;
/// A fetch that would be over sooner is not worth a trial.
const WORTH: Duration = Duration::from_secs(5);
/// Time between trials once one did not help.
const PAUSE: Duration = Duration::from_secs(20);
/// Where a connection gets less than so many bytes a second, more of them would take too long for each chunk.
const RATE_MIN: f64 = 2e6;
/// What a stripe takes about, at one connection's rate.
const STRIPE: Duration = Duration::from_secs(1);

/// How many connections are wanted, and what is being found out.
#[derive(Debug)]
pub(super) struct Connections {
    wanted: usize,
    phase: Phase,
    /// The second half of the connections is on trial.
    trying: bool,
    /// The rate before it, in bytes per second.
    before: f64,
    /// How long the origin took to answer at most.
    latency: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing has come in yet.
    Opening,
    /// The number changed a moment ago, or is left alone for a while.
    Settling { until: Time },
    /// What comes in is counted.
    Measuring { since: Time, bytes: u64 },
}

impl Default for Connections {
    fn default() -> Self {
        Self { wanted: 1, phase: Phase::Opening, trying: false, before: 0.0, latency: Duration::ZERO }
    }
}

impl Connections {
    /// When it has to be asked again.
    pub(super) fn due(&self) -> Option<Time> {
        match self.phase {
            Phase::Opening => None,
            Phase::Settling { until } => Some(until),
            Phase::Measuring { since, .. } => Some(since + self.measure()),
        }
    }

    /// The origin began to answer after so long.
    pub(super) fn answered(&mut self, took: Duration) {
        self.latency = self.latency.max(took).min(MEASURE_MAX / MEASURE);
    }

    fn measure(&self) -> Duration {
        (self.latency * MEASURE).max(MEASURE_MIN)
    }

    fn settle(&self) -> Duration {
        (self.latency * SETTLE).max(SETTLE_MIN)
    }

    /// The number of connections to have now, given the bytes that came in so far and those that are still to come, if
    /// that is known.
    pub(super) fn wanted(&mut self, now: Time, bytes: u64, remaining: Option<u64>) -> usize {
        match self.phase {
            Phase::Opening if bytes > 0 => self.phase = Phase::Settling { until: now + SETTLE_MIN },
            Phase::Settling { until } if until <= now => self.phase = Phase::Measuring { since: now, bytes },
            Phase::Measuring { since, bytes: before } if since + self.measure() <= now => {
                let rate = bytes.saturating_sub(before) as f64 / now.since(since).as_secs_f64();
                self.judge(now, rate, remaining);
            }
            Phase::Opening | Phase::Settling { .. } | Phase::Measuring { .. } => {}
        }
        self.wanted
    }

    fn judge(&mut self, now: Time, rate: f64, remaining: Option<u64>) {
        let pause = Phase::Settling { until: now + PAUSE };
        if self.trying {
            self.trying = false;
            if rate < self.before * GAIN {
                self.wanted = (self.wanted / 2).max(1);
                self.phase = pause;
                return;
            }
        }
        self.before = rate;
        let left = remaining.map_or(0.0, |remaining| remaining as f64 / rate.max(1.0));
        if self.wanted < CONNECTIONS_MAX && left > WORTH.as_secs_f64() && rate > RATE_MIN * self.wanted as f64 {
            self.wanted *= 2;
            self.trying = true;
            self.phase = Phase::Settling { until: now + self.settle() };
        } else {
            self.phase = pause;
        }
    }

    /// Chunks that one connection brings while the origin takes its time to answer on the next; at least one.
    pub(super) fn ahead(&self, chunk_bytes: u64) -> u32 {
        let one = self.before / self.wanted as f64;
        ((one * self.latency.as_secs_f64() / chunk_bytes as f64).ceil() as u32).clamp(1, 16)
    }

    /// Chunks of a stripe.
    pub(super) fn stripe(&self, chunk_bytes: u64) -> u32 {
        let one = self.before / self.wanted as f64;
        let chunks = one * STRIPE.as_secs_f64() / chunk_bytes as f64;
        (chunks as u32).clamp(4, 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a fetch at an origin with so many bytes per second a connection and in all comes to.
    fn settle(connection: f64, all: f64) -> usize {
        let (mut connections, mut bytes, mut open) = (Connections::default(), 0.0, 1);
        let mut now = Time::ZERO;
        for _ in 0..1500 {
            open = connections.wanted(now, bytes as u64, Some(u64::MAX));
            now = now + Duration::from_millis(10);
            bytes += (open as f64 * connection).min(all) * 0.01;
        }
        open
    }

    #[test]
    fn as_many_connections_as_help_are_used() {
        assert_eq!(settle(25e6, 100e6), 4);
        assert_eq!(settle(25e6, 1e9), CONNECTIONS_MAX);
    }

    #[test]
    fn one_connection_that_gets_everything_stays_alone() {
        assert_eq!(settle(100e6, 100e6), 1);
    }

    #[test]
    fn a_fetch_that_is_soon_over_tries_nothing() {
        let mut connections = Connections::default();
        let mut now = Time::ZERO;
        let mut open = 0;
        for step in 0..500_u64 {
            open = connections.wanted(now, step * 1_000_000, Some(100_000_000));
            now = now + Duration::from_millis(10);
        }
        assert_eq!(open, 1);
    }
}
