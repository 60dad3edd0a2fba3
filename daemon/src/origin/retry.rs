//! When to try again: at most three tries, a growing jittered pause, never beyond the deadline.

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

use crate::origin::{OriginTimeouts, error::Retry};

/// Tries in all for one request.
const TRIES: u32 = 3;

/// How long to wait before the try after try number `tried` (from 1); none if it is over.
pub(super) fn pause(retry: Retry, tried: u32, deadline: Instant, timeouts: &OriginTimeouts) -> Option<Duration> {
    if tried >= TRIES {
        return None;
    }
    let pause = match retry {
        Retry::Never => return None,
        // Jitter only upwards: the origin said not before.
        Retry::After(least) => least.saturating_add(timeouts.first_pause.mul_f64(rand::random::<f64>())),
        Retry::Backoff => {
            let full = timeouts.first_pause.saturating_mul(1 << (tried - 1)).min(timeouts.longest_pause);
            full.mul_f64(0.5 + rand::random::<f64>() / 2.0)
        }
    };
    (pause < deadline.saturating_duration_since(Instant::now())).then_some(pause)
}

/// What `Retry-After` asks for. Its date form is rare and needs a correct clock: it counts as too long to wait for.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    Some(value.parse().map_or(Duration::MAX, Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn pauses_grow_with_jitter_up_to_the_bound_and_end_after_three_tries() {
        let timeouts = OriginTimeouts { longest_pause: Duration::from_millis(150), ..OriginTimeouts::default() };
        for _ in 0..100 {
            let first = pause(Retry::Backoff, 1, far(), &timeouts).expect("a second try");
            assert!((Duration::from_millis(50)..=Duration::from_millis(100)).contains(&first), "{first:?}");
            let second = pause(Retry::Backoff, 2, far(), &timeouts).expect("a third try");
            assert!((Duration::from_millis(75)..=Duration::from_millis(150)).contains(&second), "{second:?}");
        }
        assert_eq!(pause(Retry::Backoff, 3, far(), &timeouts), None);
        assert_eq!(pause(Retry::Never, 1, far(), &timeouts), None);
    }

    #[test]
    fn retry_after_is_obeyed_if_it_fits_before_the_deadline() {
        let timeouts = OriginTimeouts::default();
        let asked = Retry::After(Duration::from_secs(7));
        assert!(pause(asked, 1, far(), &timeouts).is_some_and(|pause| pause >= Duration::from_secs(7)));
        assert_eq!(pause(asked, 1, Instant::now() + Duration::from_secs(5), &timeouts), None);
        assert_eq!(pause(Retry::After(Duration::MAX), 1, far(), &timeouts), None);
    }

    #[test]
    fn retry_after_reads_seconds_and_takes_a_date_for_too_long() {
        let read =
            |value: &'static str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().expect("a header"))]));
        assert_eq!(read("12"), Some(Duration::from_secs(12)));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::MAX));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
