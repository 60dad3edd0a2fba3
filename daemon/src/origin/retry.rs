//! When to try again: at most three tries, a growing jittered pause, never beyond the deadline. A longer rest that the origin
//! asks for is not waited for: the caller learns of it at once.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use tokio::time::Instant;

use crate::origin::{OriginTimeouts, error::Retry};

/// Tries in all for one request.
pub(super) const TRIES: u32 = 3;

/// How long to wait before the try after try number `tried` (from 1); none if it is over.
pub(super) fn pause(retry: Retry, tried: u32, deadline: Instant, timeouts: &OriginTimeouts) -> Option<Duration> {
    if tried >= TRIES {
        return None;
    }
    let pause = match retry {
        Retry::Never => return None,
        Retry::After(least) if least > timeouts.longest_pause => return None,
        // Jitter only upwards: the origin said not before.
        Retry::After(least) => least.saturating_add(timeouts.first_pause.mul_f64(rand::random::<f64>())),
        Retry::Backoff => {
            let full = timeouts.first_pause.saturating_mul(1 << (tried - 1)).min(timeouts.longest_pause);
            full.mul_f64(0.5 + rand::random::<f64>() / 2.0)
        }
    };
    (pause < deadline.saturating_duration_since(Instant::now())).then_some(pause)
}

/// What `Retry-After` asks for: seconds, or a date, which is compared with the clock of the origin if it tells the time. None if it
/// cannot be read.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let value = text(RETRY_AFTER)?;
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(value.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
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
    fn a_short_rest_is_waited_for_if_it_fits_before_the_deadline_and_a_long_one_is_not() {
        let timeouts = OriginTimeouts::default();
        let second = Duration::from_secs(1);
        assert!(pause(Retry::After(second), 1, far(), &timeouts).is_some_and(|pause| pause >= second));
        assert_eq!(pause(Retry::After(second), 1, Instant::now() + second / 2, &timeouts), None);
        for long in [timeouts.longest_pause + second, Duration::MAX] {
            assert_eq!(pause(Retry::After(long), 1, far(), &timeouts), None);
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date_by_the_clock_of_the_origin() {
        let read = |value: &'static str, date: Option<&'static str>| {
            let date = date.map(|date| (DATE, date.parse().expect("a header")));
            retry_after(&[(RETRY_AFTER, value.parse().expect("a header"))].into_iter().chain(date).collect())
        };
        let date = Some("Wed, 21 Oct 2015 07:27:30 GMT");
        assert_eq!(read(" 12 ", None), Some(Duration::from_secs(12)));
        assert_eq!(read("99999999999999999999999", None), Some(Duration::MAX));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT", date), Some(Duration::from_secs(30)));
        assert_eq!(read("Wed, 21 Oct 2015 07:00:00 GMT", date), Some(Duration::ZERO));
        assert!(read("Wed, 21 Oct 2099 07:28:00 GMT", None).is_some_and(|rest| rest > Duration::from_secs(3600)));
        for nonsense in ["", "soon", "-1", "+5", "1.5", "Wed, 99 Oct 2015 99:28:00 GMT"] {
            assert_eq!(read(nonsense, date), None, "{nonsense}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
