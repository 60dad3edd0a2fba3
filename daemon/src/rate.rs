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

/// A token bucket shared by all its clones. Callers are served in the order in which they came.
///
/// A take may be larger than the burst; it then waits until the excess is paid for.
#[derive(Clone)]
pub struct Bucket {
    limit: Option<Arc<Limit>>,
}

struct Limit {
    /// Bytes per second, at least 1.
    rate: u64,
    /// Time in which the burst refills.
    burst: Duration,
    /// When all that was taken is paid for. The lock is fair and held while its owner waits, hence the order; the
    /// value changes after the wait only, hence a caller that gives up has taken nothing.
    paid: Mutex<Instant>,
}

impl Limit {
    fn duration(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Bucket {
    /// A bucket that refills at `rate` bytes per second. It starts full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let rate = rate.0.max(1);
        let mut limit = Limit { rate, burst: Duration::ZERO, paid: Mutex::new(Instant::now()) };
        limit.burst = BURST_TIME.max(limit.duration(BURST_BYTES_MIN));
        // Full: everything up to one burst ago is paid for. `take` clamps to that anyway if it cannot be expressed.
        if let Some(full) = Instant::now().checked_sub(limit.burst) {
            *limit.paid.get_mut() = full;
        }
        Self { limit: Some(Arc::new(limit)) }
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
        let mut paid = limit.paid.lock().await;
        let now = Instant::now();
        let start = now.checked_sub(limit.burst).map_or(*paid, |oldest| oldest.max(*paid));
        // A sum past the end of time (a rate of a few bytes a second) becomes a very long wait.
        let end = start.checked_add(limit.duration(bytes)).unwrap_or_else(far_future);
        let due = end.checked_sub(limit.burst).unwrap_or(now);
        if due > now {
            sleep_until(due).await;
        }
        *paid = end;
    }
}

fn far_future() -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + YEAR
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.limit {
            None => f.write_str("Bucket(unlimited)"),
            Some(limit) => write!(f, "Bucket({} B/s)", limit.rate),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// 1 MB/s: its burst is 64 KiB, about 65.5 ms.
    fn megabyte() -> Bucket {
        Bucket::new(Rate(1_000_000))
    }

    #[tokio::test(start_paused = true)]
    async fn an_unlimited_bucket_never_waits() {
        let start = Instant::now();
        Bucket::unlimited().take(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_stream_passes_at_the_rate() {
        let bucket = megabyte();
        let start = Instant::now();
        for _ in 0..1000 {
            bucket.take(10_000).await;
        }
        let elapsed = start.elapsed().as_secs_f64();
        assert!((9.9..=10.1).contains(&elapsed), "10 MB at 1 MB/s took {elapsed} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_take_larger_than_the_burst_waits_for_the_excess() {
        let bucket = megabyte();
        let start = Instant::now();
        bucket.take(BURST_BYTES_MIN + 500_000).await;
        let elapsed = start.elapsed();
        assert!((Duration::from_millis(499)..Duration::from_millis(502)).contains(&elapsed), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_bucket_saves_up_one_burst_and_no_more() {
        let bucket = megabyte();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        bucket.take(BURST_BYTES_MIN).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        bucket.take(100_000).await;
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_burst_of_a_fast_bucket_is_a_short_time() {
        let bucket = Bucket::new(Rate(1_000_000_000));
        let start = Instant::now();
        bucket.take(100_000_000).await;
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(100) - BURST_TIME, "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_are_served_in_the_order_in_which_they_came() {
        let bucket = megabyte();
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, bytes) in [(0, 400_000), (1, 10), (2, 200_000), (3, 1)] {
            let (bucket, order) = (bucket.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                bucket.take(bytes).await;
                order.lock().unwrap().push(name);
            }));
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_take_equal_pieces_get_equal_shares() {
        let bucket = megabyte();
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let bucket = bucket.clone();
            tasks.push(tokio::spawn(async move {
                let end = Instant::now() + Duration::from_secs(10);
                let mut bytes = 0_u64;
                while Instant::now() < end {
                    bucket.take(65_536).await;
                    bytes += 65_536;
                }
                bytes
            }));
        }
        let mut shares = Vec::new();
        for task in tasks {
            shares.push(task.await.unwrap());
        }
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 65_536, "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_has_taken_nothing() {
        let bucket = megabyte();
        let late = tokio::time::timeout(Duration::from_millis(10), bucket.take(1_000_000_000)).await;
        assert!(late.is_err());
        let start = Instant::now();
        bucket.take(BURST_BYTES_MIN).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
