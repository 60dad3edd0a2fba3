//! A token bucket that keeps a byte stream under a rate.

use std::{fmt, sync::Arc, time::Duration};

use shoal_proto::units::Rate;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep_until},
};

/// How much unused time a bucket saves up for later: enough to make up for a timer that fires late, and for a process that
/// a busy machine does not run at once; too little to show in a measurement of a few seconds.
const BURST_TIME: Duration = Duration::from_millis(25);
/// A bucket always saves up this much, so that a slow one does not wait for each small piece.
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// Longest time that is reckoned with; a rate of a few bytes a second would leave what a clock can express.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Bytes that are paid for at once: a caller that goes first waits for so many of the others at most.
const QUANTUM_BYTES: u64 = 64 * 1024;

/// A token bucket shared by all its clones. Callers are served in the order in which they came, but for those that go first.
///
/// A take may be larger than the burst; it then waits until the excess is paid for.
#[derive(Clone)]
pub struct Bucket {
    limit: Option<Arc<Line>>,
}

/// Who waits at a bucket. Both locks are fair and held while their owners wait: hence the order.
struct Line {
    /// Held for a whole take, by those that do not go first: only one of them at a time stands at the ledger.
    turn: Mutex<()>,
    /// Held for a quantum.
    ledger: Mutex<Ledger>,
}

impl Bucket {
    /// A bucket that refills at `rate` bytes per second. It starts full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let ledger = Mutex::new(Ledger::new(rate, Instant::now()));
        Self { limit: Some(Arc::new(Line { turn: Mutex::new(()), ledger })) }
    }

    /// A bucket that never makes anybody wait.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { limit: None }
    }

    /// A bucket of `rate`, or an unlimited one.
    #[must_use]
    pub fn optional(rate: Option<Rate>) -> Self {
        rate.map_or_else(Self::unlimited, Self::new)
    }

    /// Whether takes can wait at all.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// Waits until `bytes` may pass. Dropping the future gives up the place in the queue and takes no more.
    pub async fn take(&self, bytes: u64) {
        if self.is_limited() {
            self.turn().await.take(bytes).await;
        }
    }

    /// The same, but ahead of all who wait for their turn. Callers of this one that never pause leave them half of the rate
    /// or less, and always something.
    pub async fn take_first(&self, bytes: u64) {
        if let Some(line) = &self.limit {
            line.pay(bytes).await;
        }
    }

    /// Waits for a turn, which lasts until it is dropped: for those who take in parts what is of use as a whole only.
    pub async fn turn(&self) -> Turn<'_> {
        let line = match &self.limit {
            Some(line) => Some((line.turn.lock().await, &**line)),
            None => None,
        };
        Turn { line }
    }
}

/// The place at the head of the queue of a [`Bucket`].
pub struct Turn<'a> {
    line: Option<(MutexGuard<'a, ()>, &'a Line)>,
}

impl Turn<'_> {
    /// Waits until `bytes` may pass, as [`Bucket::take`] does.
    pub async fn take(&self, bytes: u64) {
        if let Some((_, line)) = &self.line {
            line.pay(bytes).await;
        }
    }
}

impl fmt::Debug for Turn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turn")
    }
}

impl Line {
    async fn pay(&self, bytes: u64) {
        let mut missing = bytes;
        while missing > 0 {
            let quantum = missing.min(QUANTUM_BYTES);
            let mut ledger = self.ledger.lock().await;
            let now = Instant::now();
            let due = ledger.charge(now, quantum);
            if due > now {
                sleep_until(due).await;
            }
            // Booked after the wait only: a caller that gave up has not taken it.
            ledger.paid = due;
            missing -= quantum;
        }
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_limited() { "Bucket(limited)" } else { "Bucket(unlimited)" })
    }
}

/// The arithmetic of a bucket, without a clock: debts are kept as the moment at which they are paid for.
struct Ledger {
    /// Bytes per second, at least 1.
    rate: u64,
    /// Time in which the burst refills.
    burst: Duration,
    /// When all that was taken is paid for; at most one burst ago counts as saved up.
    paid: Instant,
}

impl Ledger {
    fn new(rate: Rate, now: Instant) -> Self {
        let mut ledger = Self { rate: rate.0.max(1), burst: BURST_TIME, paid: now };
        ledger.burst = BURST_TIME.max(ledger.duration(BURST_BYTES_MIN)).min(TIME_MAX);
        // Full, unless the machine's clock started less than a burst ago.
        ledger.paid = now.checked_sub(ledger.burst).unwrap_or(now);
        ledger
    }

    /// Time in which `bytes` refill, within bounds that a clock can express.
    fn duration(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        u64::try_from(nanos).map_or(TIME_MAX, Duration::from_nanos).min(TIME_MAX)
    }

    /// When `bytes` may pass. This is also the new [`Self::paid`], if they do.
    fn charge(&self, now: Instant, bytes: u64) -> Instant {
        let oldest = now.checked_sub(self.burst).unwrap_or(self.paid);
        self.paid.max(oldest) + self.duration(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Mutex as SyncMutex;

    use futures_util::FutureExt;

    use super::*;

    /// 1 MB/s: its burst is 64 KiB, about 65.5 ms.
    const MEGABYTE: Rate = Rate(1_000_000);

    /// A ledger and a clock that jumps to the end of each wait.
    struct Clock {
        start: Instant,
        now: Instant,
        ledger: Ledger,
    }

    impl Clock {
        fn new(rate: Rate) -> Self {
            let start = Instant::now();
            Self { start, now: start, ledger: Ledger::new(rate, start) }
        }

        /// Takes `bytes` and returns the seconds since the start.
        fn take(&mut self, bytes: u64) -> f64 {
            self.ledger.paid = self.ledger.charge(self.now, bytes);
            self.now = self.now.max(self.ledger.paid);
            (self.now - self.start).as_secs_f64()
        }
    }

    #[test]
    fn a_long_stream_passes_at_the_rate() {
        let mut clock = Clock::new(MEGABYTE);
        let elapsed = (0..1000).map(|_| clock.take(10_000)).last();
        assert!(elapsed.is_some_and(|elapsed| (9.9..=10.0).contains(&elapsed)), "10 MB at 1 MB/s took {elapsed:?} s");
    }

    #[test]
    fn timers_that_fire_late_do_not_lower_the_rate() {
        let mut clock = Clock::new(Rate(100_000_000));
        let mut elapsed = 0.0;
        for _ in 0..1000 {
            elapsed = clock.take(100_000);
            clock.now += Duration::from_micros(900);
        }
        assert!((0.97..=1.0).contains(&elapsed), "100 MB at 100 MB/s took {elapsed} s");
    }

    #[test]
    fn a_take_larger_than_the_burst_waits_for_the_excess() {
        let elapsed = Clock::new(MEGABYTE).take(BURST_BYTES_MIN + 500_000);
        assert!((0.4999..=0.5001).contains(&elapsed), "{elapsed}");
    }

    #[test]
    fn an_idle_bucket_saves_up_one_burst_and_no_more() {
        let mut clock = Clock::new(MEGABYTE);
        clock.now += Duration::from_secs(60);
        assert!(clock.take(BURST_BYTES_MIN) <= 60.0);
        let elapsed = clock.take(100_000);
        assert!((60.0999..=60.1001).contains(&elapsed), "{elapsed}");
    }

    #[test]
    fn the_burst_of_a_fast_bucket_is_a_short_time() {
        let elapsed = Clock::new(Rate(1_000_000_000)).take(100_000_000);
        assert!((0.0749..=0.0751).contains(&elapsed), "{elapsed}");
    }

    #[test]
    fn the_slowest_and_the_fastest_rate_do_not_overflow() {
        assert!(Clock::new(Rate(1)).take(u64::MAX) > 1e6);
        assert!(Clock::new(Rate(u64::MAX)).take(u64::MAX) <= 1.0);
        assert!(Clock::new(Rate(0)).take(BURST_BYTES_MIN + 10) >= 9.0);
    }

    #[test]
    fn an_unlimited_bucket_never_waits() {
        assert!(Bucket::unlimited().take(u64::MAX).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_takes_no_more() {
        let bucket = Bucket::new(MEGABYTE);
        assert!(bucket.take(1_000_000_000).now_or_never().is_none());
        let line = bucket.limit.unwrap();
        assert!(line.turn.try_lock().is_ok());
        assert!(line.ledger.try_lock().unwrap().paid <= Instant::now());
    }

    #[tokio::test]
    async fn callers_are_served_in_the_order_in_which_they_came() {
        let bucket = Bucket::new(Rate(100_000_000));
        let order = SyncMutex::new(Vec::new());
        let caller = async |name: u8, bytes: u64| {
            bucket.take(bytes).await;
            if let Ok(mut order) = order.lock() {
                order.push(name);
            }
        };
        tokio::join!(caller(0, 2_000_000), caller(1, 10), caller(2, 1_500_000), caller(3, 1));
        assert_eq!(order.into_inner().ok(), Some(vec![0, 1, 2, 3]));
    }

    #[tokio::test]
    async fn a_turn_is_not_interrupted_by_those_who_wait_for_theirs_but_by_those_who_go_first() {
        let bucket = Bucket::new(Rate(100_000_000));
        let order = SyncMutex::new(Vec::new());
        let done = |name: &'static str| order.lock().unwrap().push(name);
        let turn = async {
            let turn = bucket.turn().await;
            for _ in 0..10 {
                turn.take(QUANTUM_BYTES * 8).await;
            }
            done("turn");
        };
        let other = async {
            bucket.take(1).await;
            done("other");
        };
        let first = async {
            bucket.take_first(QUANTUM_BYTES * 8).await;
            done("first");
        };
        tokio::join!(turn, other, first);
        assert_eq!(order.into_inner().unwrap(), ["first", "turn", "other"]);
    }
}
