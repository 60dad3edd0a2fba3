//! A token bucket that keeps a byte stream under a rate.

use std::{fmt, sync::Arc, time::Duration};

use shoal_proto::units::Rate;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

/// How much unused time a bucket saves up for later: enough to make up for a timer that fires late, too little to
/// show in a measurement of a second or more.
const BURST_TIME: Duration = Duration::from_millis(10);
/// A bucket always saves up this much, so that a slow one does not wait for each small piece.
const BURST_BYTES_MIN: u64 = 64 * 1024;
/// Longest time that is reckoned with; a rate of a few bytes a second would leave what a clock can express.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A token bucket shared by all its clones. Callers are served in the order in which they came.
///
/// A take may be larger than the burst; it then waits until the excess is paid for.
#[derive(Clone)]
pub struct Bucket {
    /// The lock is fair and held while its owner waits: hence the order.
    limit: Option<Arc<Mutex<Ledger>>>,
}

impl Bucket {
    /// A bucket that refills at `rate` bytes per second. It starts full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { limit: Some(Arc::new(Mutex::new(Ledger::new(rate, Instant::now())))) }
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

    /// Waits until `bytes` may pass. Dropping the future gives up the place in the queue and takes nothing.
    pub async fn take(&self, bytes: u64) {
        let Some(limit) = &self.limit else { return };
        if bytes == 0 {
            return;
        }
        let mut ledger = limit.lock().await;
        let now = Instant::now();
        let due = ledger.charge(now, bytes);
        if due > now {
            sleep_until(due).await;
        }
        // Booked after the wait only: a caller that gave up has taken nothing.
        ledger.paid = due;
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

