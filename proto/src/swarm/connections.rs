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
const MEASURE_MIN: Duration = Duration::from_millis(200);
const MEASURE_MAX: Duration = Duration::from_secs(1);
/// After a change, what comes in is not counted for so many times what the origin takes to answer, the answer included.
const SETTLE: u32 = 3;
const SETTLE_MIN: Duration = Duration::from_millis(20);
/// Twice as many connections are kept if they bring so many times the rate. Beside two streams of other nodes at the same
/// origin, they take half as much again from these.
const GAIN: f64 = 1.6;
/// A fetch that would be over sooner is not worth a trial.
const WORTH: Duration = Duration::from_secs(5);
/// Time between trials once one did not help.
const PAUSE: Duration = Duration::from_secs(20);
/// Where the uplink was busy it is looked at again sooner.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Where a connection gets less than so many bytes a second, more of them would take too long for each chunk.
const RATE_MIN: f64 = 2e6;
/// What a stripe takes about, at one connection's rate.
const STRIPE: Duration = Duration::from_secs(1);

/// How many connections are wanted, and what is being found out.
#[derive(Debug)]
pub(super) struct Connections {
    wanted: usize,
    /// No second one is tried.
    alone: bool,
    phase: Phase,
    /// The second half of the connections is on trial.
    trying: bool,
    /// The rates before it, of this lease and of the node, in bytes per second.
    before: f64,
    all_before: f64,
    /// How long the origin took to answer at most.
    latency: Duration,
    /// Looks at the uploads during a measurement, and how often there were any.
    looks: (u32, u32),
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Nothing has come in yet.
    Opening,
    /// The number changed a moment ago, or is left alone for a while.
    Settling { until: Time },
    /// What comes in is counted: under this lease, and at this node from wherever.
    Measuring { since: Time, bytes: u64, all: u64 },
}

/// What came in so far, and what is to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Intake {
    /// Bytes from the origin under this lease.
    pub(super) bytes: u64,
    /// Bytes that this node took in of all blobs, from the origin and from peers: connections that only take from one
    /// another, or from pulls, are of no use.
    pub(super) all: u64,
    /// Bytes that are still to come, if that is known.
    pub(super) remaining: Option<u64>,
    /// Bytes that come in at once, as one chunk, if that is known.
    pub(super) grain: Option<u64>,
    /// This node uploads something at this moment.
    pub(super) uploads: bool,
}

/// A measurement takes so many chunks at least.
const GRAINS: u64 = 4;
/// But no longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// One that is not over yet is looked at again after this.
const LOOK: Duration = Duration::from_millis(25);

impl Default for Connections {
    fn default() -> Self {
        Self {
            wanted: 1,
            alone: false,
            phase: Phase::Opening,
            trying: false,
            before: 0.0,
            all_before: 0.0,
            latency: Duration::ZERO,
            looks: (0, 0),
        }
    }
}

impl Connections {
    /// When it has to be asked again.
    pub(super) fn due(&self, now: Time) -> Option<Time> {
        if self.alone {
            return None;
        }
        match self.phase {
            Phase::Opening => None,
            Phase::Settling { until } => Some(until),
            Phase::Measuring { since, .. } => Some((since + self.measure()).max(now + LOOK)),
        }
    }

    /// The origin began to answer after so long.
    pub(super) fn answered(&mut self, took: Duration) {
        self.latency = self.latency.max(took).min(MEASURE_MAX / MEASURE);
    }

    /// The origin ignores ranges, so that each connection brings all of the blob: from now on there is one.
    pub(super) const fn stay_alone(&mut self) {
        self.alone = true;
    }

    fn measure(&self) -> Duration {
        (self.latency * MEASURE).max(MEASURE_MIN)
    }

    fn settle(&self) -> Duration {
        (self.latency * SETTLE).max(SETTLE_MIN)
    }

    /// The number of connections to have now.
    pub(super) fn wanted(&mut self, now: Time, intake: Intake) -> usize {
        if self.alone {
            return 1;
        }
        let Intake { bytes, all, uploads, .. } = intake;
        self.looks = (self.looks.0 + 1, self.looks.1 + u32::from(uploads));
        match self.phase {
            Phase::Opening if bytes > 0 => self.phase = Phase::Settling { until: now + SETTLE_MIN },
            Phase::Settling { until } if until <= now => {
                self.phase = Phase::Measuring { since: now, bytes, all };
                self.looks = (1, u32::from(uploads));
            }
            Phase::Measuring { since, bytes: before, all: all_before } if since + self.measure() <= now => {
                let (came, all_came) = (bytes.saturating_sub(before), all.saturating_sub(all_before));
                let enough = intake.grain.is_some_and(|grain| all_came >= grain * GRAINS);
                if enough || since + PATIENCE <= now {
                    let seconds = now.since(since).as_secs_f64();
                    self.judge(now, came as f64 / seconds, all_came as f64 / seconds, intake);
                }
            }
            Phase::Opening | Phase::Settling { .. } | Phase::Measuring { .. } => {}
        }
        self.wanted
    }

    fn judge(&mut self, now: Time, rate: f64, all: f64, intake: Intake) {
        let pause = Phase::Settling { until: now + PAUSE };
        if self.trying {
            self.trying = false;
            if rate < self.before * GAIN || all < self.all_before + self.before * (GAIN - 1.0) {
                self.wanted = (self.wanted / 2).max(1);
                self.phase = pause;
                return;
            }
        }
        (self.before, self.all_before) = (rate, all);
        let left = intake.remaining.map_or(0.0, |remaining| remaining as f64 / rate.max(1.0));
        // An uplink that is in use most of the time has as much to do as it can: whatever came in faster would only wait there.
        let (looks, uploads) = self.looks;
        let busy = uploads * 2 > looks;
        let worth = left > WORTH.as_secs_f64() && !busy;
        if self.wanted < CONNECTIONS_MAX && worth && rate > RATE_MIN * self.wanted as f64 {
            self.wanted *= 2;
            self.trying = true;
            self.phase = Phase::Settling { until: now + self.settle() };
        } else if busy {
            self.phase = Phase::Settling { until: now + BUSY_PAUSE };
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

    /// What a fetch at an origin with so many bytes per second a connection and in all comes to, at a node with such a
    /// downlink, on which another stream runs beside.
    fn settle(connection: f64, all: f64, link: f64, beside: bool) -> usize {
        let (mut connections, mut bytes, mut other, mut open) = (Connections::default(), 0.0, 0.0, 1);
        let mut now = Time::ZERO;
        for _ in 0..1500 {
            let intake = Intake {
                bytes: bytes as u64,
                all: (bytes + other) as u64,
                remaining: Some(u64::MAX),
                grain: Some(1_000_000),
                uploads: false,
            };
            open = connections.wanted(now, intake);
            now = now + Duration::from_millis(10);
            let streams = open + usize::from(beside);
            let each = (link / streams as f64).min(connection).min(all / streams as f64);
            bytes += each * open as f64 * 0.01;
            other += if beside { each * 0.01 } else { 0.0 };
        }
        open
    }

    #[test]
    fn as_many_connections_as_help_are_used() {
        assert_eq!(settle(25e6, 100e6, 1e9, false), 4);
        assert_eq!(settle(25e6, 1e9, 1e9, false), CONNECTIONS_MAX);
    }

    #[test]
    fn one_connection_that_gets_everything_stays_alone() {
        assert_eq!(settle(100e6, 100e6, 1e9, false), 1);
    }

    #[test]
    fn connections_that_take_from_another_blobs_stream_are_not_kept() {
        assert_eq!(settle(1e9, 1e9, 300e6, true), 1);
        assert_eq!(settle(25e6, 1e9, 300e6, true), CONNECTIONS_MAX);
    }

    #[test]
    fn an_origin_that_ignores_ranges_gets_one_connection_however_slow_it_is() {
        let (mut connections, mut now) = (Connections::default(), Time::ZERO);
        connections.stay_alone();
        for step in 0..1500_u64 {
            let bytes = step * 100_000;
            let intake =
                Intake { bytes, all: bytes, remaining: Some(u64::MAX), grain: Some(1_000_000), uploads: false };
            assert_eq!(connections.wanted(now, intake), 1);
            assert_eq!(connections.due(now), None, "there is nothing to be found out");
            now = now + Duration::from_millis(10);
        }
    }

    #[test]
    fn a_fetch_that_is_soon_over_tries_nothing() {
        let mut connections = Connections::default();
        let mut now = Time::ZERO;
        let mut open = 0;
        for step in 0..500_u64 {
            let bytes = step * 1_000_000;
            let remaining = Some(100_000_000);
            let intake = Intake { bytes, all: bytes, remaining, grain: Some(1_000_000), uploads: false };
            open = connections.wanted(now, intake);
            now = now + Duration::from_millis(10);
        }
        assert_eq!(open, 1);
    }

    #[test]
    fn what_a_chunk_is_may_be_forgotten_while_something_is_measured() {
        let mut connections = Connections::default();
        let at = |milliseconds: u64| Time::ZERO + Duration::from_millis(milliseconds);
        let intake = |grain| Intake { bytes: 1, all: 1, remaining: None, grain, uploads: false };
        connections.wanted(at(0), intake(Some(100_000)));
        connections.wanted(at(1_000), intake(Some(100_000)));
        assert!(matches!(connections.phase, Phase::Measuring { .. }), "{connections:?}");
        assert_eq!(connections.wanted(at(2_000), intake(None)), 1);
    }
}
