//! What upstream registries say about how often they may be asked.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use reqwest::header::HeaderMap;

/// The registry's configured name, or the host of a mirror: bounded by the configuration.
type Upstream = [(&'static str, String); 1];

/// Gauges by upstream. One shows up with the first answer that says something.
#[derive(Debug, Default)]
pub struct UpstreamGauges {
    limit: Family<Upstream, Gauge>,
    remaining: Family<Upstream, Gauge>,
    window: Family<Upstream, Gauge>,
    rest_until: Family<Upstream, Gauge>,
}

impl UpstreamGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "origin_ratelimit_limit",
            "Requests that the upstream grants in a window (ratelimit-limit)",
            gauges.limit.clone(),
        );
        registry.register(
            "origin_ratelimit_remaining",
            "Requests that it has left for this node (ratelimit-remaining)",
            gauges.remaining.clone(),
        );
        registry.register_with_unit(
            "origin_ratelimit_window",
            "Length of that window",
            Unit::Seconds,
            gauges.window.clone(),
        );
        registry.register_with_unit(
            "origin_rest_until_timestamp",
            "Until when the upstream asked to be left alone (Retry-After), since the Unix epoch",
            Unit::Seconds,
            gauges.rest_until.clone(),
        );
        gauges
    }

    /// Reads `ratelimit-limit: 100;w=21600` and `ratelimit-remaining: 76;w=21600`, as Docker Hub has them.
    pub fn note_ratelimit(&self, upstream: &str, headers: &HeaderMap) {
        let read = |name: &str| parse(headers.get(name)?.to_str().ok()?);
        for (name, gauge) in [("ratelimit-limit", &self.limit), ("ratelimit-remaining", &self.remaining)] {
            let Some((count, window)) = read(name) else { continue };
            gauge.get_or_create(&label(upstream)).set(count);
            if let Some(window) = window {
                self.window.get_or_create(&label(upstream)).set(window);
            }
        }
    }

    /// The upstream asked to be left alone for so long from now on.
    pub fn note_rest(&self, upstream: &str, rest: Duration) {
        let until = (SystemTime::now() + rest).duration_since(UNIX_EPOCH).unwrap_or_default();
        self.rest_until.get_or_create(&label(upstream)).set(i64::try_from(until.as_secs()).unwrap_or(i64::MAX));
    }
}

fn label(upstream: &str) -> Upstream {
    [("upstream", upstream.to_owned())]
}

/// A count, and the window in seconds if it is named.
fn parse(text: &str) -> Option<(i64, Option<i64>)> {
    let mut parts = text.split(';').map(str::trim);
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    let count = number(parts.next()?)?;
    Some((count, parts.find_map(|part| number(part.strip_prefix("w=")?))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_with_and_without_their_window_and_nonsense_is_not() {
        assert_eq!(parse("100;w=21600"), Some((100, Some(21600))));
        assert_eq!(parse(" 76 ; w=21600"), Some((76, Some(21600))));
        assert_eq!(parse("5;x=1"), Some((5, None)));
        for nonsense in ["", ";w=1", "-1", "+1", "1.5", "many;w=1", "99999999999999999999"] {
            assert_eq!(parse(nonsense), None, "{nonsense}");
        }
        assert_eq!(parse("7;w=99999999999999999999"), Some((7, None)));
    }

    #[test]
    fn what_upstreams_say_is_on_the_page() {
        let mut registry = Registry::with_prefix("shoal");
        let gauges = UpstreamGauges::register(&mut registry);
        let headers = [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        gauges.note_ratelimit("docker.io", &headers.into_iter().collect());
        gauges.note_ratelimit("quay.io", &HeaderMap::new());
        gauges.note_rest("docker.io", Duration::from_secs(60));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            "shoal_origin_ratelimit_limit{upstream=\"docker.io\"} 100\n",
            "shoal_origin_ratelimit_remaining{upstream=\"docker.io\"} 76\n",
            "shoal_origin_ratelimit_window_seconds{upstream=\"docker.io\"} 21600\n",
            "shoal_origin_rest_until_timestamp_seconds{upstream=\"docker.io\"} ",
        ] {
            assert!(page.contains(line), "{line} is missing from {page}");
        }
        assert!(!page.contains("quay.io"));
    }
}
