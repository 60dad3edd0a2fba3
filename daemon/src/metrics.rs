//! Counters, gauges and histograms of the daemon, all named `shoal_*`, in the OpenMetrics text format.
//!
//! Every public field is a handle that can be cloned into hot paths: an atomic add, no lock, no look-up.

mod upstreams;

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};
use shoal_proto::status::Totals;

pub use upstreams::UpstreamGauges;

use crate::store::Store;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label with its value.
type Label = [(&'static str, &'static str); 1];

/// Nothing is answered with 1xx.
const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Upper bounds of the histograms in seconds: from a blob at hand to the slowest pull that a client waits for.
const SECONDS: [f64; 13] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];

/// All metrics of a daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Bytes of manifest and blob bodies from origins, skipped ones included.
    pub bytes_from_origin: Counter,
    /// Bytes of whole chunks from peers, whatever became of them.
    pub bytes_from_peers: Counter,
    /// Bytes of whole chunks sent to peers.
    pub bytes_to_peers: Counter,
    /// Bytes of manifests and blobs handed to the connections of clients.
    pub bytes_to_clients: Counter,
    /// GET requests for blobs to origins, refused ones and further tries included; not those to redirect targets.
    pub origin_blob_gets: Counter,
    /// GET requests for manifests to origins, likewise.
    pub origin_manifest_gets: Counter,
    /// HEAD requests to origins, likewise.
    pub origin_heads: Counter,
    /// GET requests for lists (tags, referrers, repositories) to origins, likewise.
    pub origin_list_gets: Counter,
    /// Requests of uploads to origins.
    pub origin_pushes: Counter,
    /// Requests to token servers of origins.
    pub origin_token_requests: Counter,
    /// Tries after the first of a request to an origin.
    pub origin_retries: Counter,
    /// Chunks from peers and origins whose link held.
    pub chunks_verified: Counter,
    /// Chunks from peers and origins whose link did not hold; they were thrown away.
    pub chunks_corrupt: Counter,
    /// Times that two claims about a blob contradicted each other.
    pub claims_disputed: Counter,
    /// Claims that turned out false: what rested on them was thrown away.
    pub claims_false: Counter,
    /// Sealed blobs that no longer matched their digest and were removed.
    pub blobs_rotten: Counter,
    /// Fetches that began.
    pub fetches_started: Counter,
    /// Fetches that ended in a sealed blob.
    pub fetches_finished: Counter,
    /// Fetches that were given up.
    pub fetches_failed: Counter,
    /// Origin leases that trackers granted to this node.
    pub leases_granted: Counter,
    /// Fetches that turned to the origin without a lease from a tracker, because none answered.
    pub fallbacks_untracked: Counter,
    /// Fetches that turned to the origin without a lease from a tracker, because nothing came from peers.
    pub fallbacks_stalled: Counter,
    /// Bodies that ended early, by this node or by the client.
    pub cut_bodies: Counter,
    /// Open connections of clients; see [`Held`].
    pub client_connections: Gauge,
    /// Clients that are being sent a blob now; see [`Held`].
    pub open_readers: Gauge,
    /// Leases by which this node may stream from origins now.
    pub leases_held: Gauge,
    /// Peers that the data plane is connected to now.
    pub connected_peers: Gauge,
    /// Seconds from the start of a fetch to its seal.
    pub fetch_seconds: Histogram,
    /// Seconds from a client's request for a blob to the first byte of its body.
    pub first_byte_seconds: Histogram,
    /// What upstreams say about their limits.
    pub upstreams: UpstreamGauges,
    responses: [Counter; STATUS_CLASSES.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("shoal");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running release", version);

        let received = Family::<Label, Counter>::default();
        registry.register_with_unit(
            "received",
            "Content bytes received, verified or not",
            Unit::Bytes,
            received.clone(),
        );
        let sent = Family::<Label, Counter>::default();
        registry.register_with_unit(
            "sent",
            "Content bytes sent to peers (whole chunks) and clients",
            Unit::Bytes,
            sent.clone(),
        );
        let origin = Family::<Label, Counter>::default();
        registry.register("origin_requests", "Requests to origins and their token servers", origin.clone());
        let chunks = Family::<Label, Counter>::default();
        registry.register("chunks", "Chunks from peers and origins, checked against their link", chunks.clone());
        let claims = Family::<Label, Counter>::default();
        registry.register(
            "claims",
            "Claims about a blob: contradicted by another one (disputed), or proven false",
            claims.clone(),
        );
        let fallbacks = Family::<Label, Counter>::default();
        registry.register(
            "fallbacks",
            "Fetches that turned to the origin without a tracker's lease",
            fallbacks.clone(),
        );
        let ended = Family::<Label, Counter>::default();
        registry.register("fetches_ended", "Fetches that ended", ended.clone());
        let responses = Family::<Label, Counter>::default();
        registry.register("http_responses", "Responses of the registry front", responses.clone());
        let mut counter = |name, help| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let fetches_started = counter("fetches_started", "Fetches that began");
        let leases_granted = counter("leases_granted", "Origin leases that trackers granted to this node");
        let origin_retries = counter("origin_retries", "Tries after the first of a request to an origin");
        let blobs_rotten = counter("blobs_rotten", "Sealed blobs that no longer matched their digest and were removed");
        let cut_bodies = counter("cut_bodies", "Bodies that ended early, by this node or by the client");

        let mut gauge = |name, help| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let client_connections = gauge("client_connections", "Open connections of clients to the registry front");
        let open_readers = gauge("open_readers", "Clients that are being sent a blob");
        let leases_held = gauge("leases_held", "Leases by which this node may stream from origins");
        let connected_peers = gauge("connected_peers", "Peers that the data plane is connected to");

        let mut histogram = |name, help| {
            let histogram = Histogram::new(SECONDS);
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let fetch_seconds = histogram("fetch", "From the start of a fetch to its seal");
        let first_byte_seconds =
            histogram("first_byte", "From a client's request for a blob to the first byte of its body");

        let upstreams = UpstreamGauges::register(&mut registry);

        Self {
            upstreams,
            bytes_from_origin: received.get_or_create_owned(&[("from", "origin")]),
            bytes_from_peers: received.get_or_create_owned(&[("from", "peers")]),
            bytes_to_peers: sent.get_or_create_owned(&[("to", "peers")]),
            bytes_to_clients: sent.get_or_create_owned(&[("to", "clients")]),
            origin_blob_gets: origin.get_or_create_owned(&[("kind", "blob_get")]),
            origin_manifest_gets: origin.get_or_create_owned(&[("kind", "manifest_get")]),
            origin_heads: origin.get_or_create_owned(&[("kind", "head")]),
            origin_list_gets: origin.get_or_create_owned(&[("kind", "list_get")]),
            origin_pushes: origin.get_or_create_owned(&[("kind", "push")]),
            origin_token_requests: origin.get_or_create_owned(&[("kind", "token")]),
            origin_retries,
            chunks_verified: chunks.get_or_create_owned(&[("verdict", "verified")]),
            chunks_corrupt: chunks.get_or_create_owned(&[("verdict", "corrupt")]),
            claims_disputed: claims.get_or_create_owned(&[("verdict", "disputed")]),
            claims_false: claims.get_or_create_owned(&[("verdict", "false")]),
            blobs_rotten,
            fetches_started,
            fetches_finished: ended.get_or_create_owned(&[("result", "sealed")]),
            fetches_failed: ended.get_or_create_owned(&[("result", "failed")]),
            leases_granted,
            fallbacks_untracked: fallbacks.get_or_create_owned(&[("why", "untracked")]),
            fallbacks_stalled: fallbacks.get_or_create_owned(&[("why", "stalled")]),
            cut_bodies,
            client_connections,
            open_readers,
            leases_held,
            connected_peers,
            fetch_seconds,
            first_byte_seconds,
            responses: STATUS_CLASSES.map(|class| responses.get_or_create_owned(&[("class", class)])),
            registry,
        }
    }

    /// Puts what `store` has on the page: looked up in memory whenever the page is asked for.
    pub fn watch_store(&mut self, store: Store) {
        self.registry.register_collector(Box::new(Stored(store)));
    }

    /// Counts a response of the registry front by its status code, for example 404.
    pub fn count_response(&self, status: u16) {
        if let Some(class) = usize::from(status / 100).checked_sub(2).and_then(|class| self.responses.get(class)) {
            class.inc();
        }
    }

    /// The counters as the status report shows them.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            bytes_from_origin: self.bytes_from_origin.get(),
            bytes_from_peers: self.bytes_from_peers.get(),
            bytes_to_peers: self.bytes_to_peers.get(),
            bytes_to_clients: self.bytes_to_clients.get(),
            origin_blob_gets: self.origin_blob_gets.get(),
            origin_manifest_gets: self.origin_manifest_gets.get(),
            origin_heads: self.origin_heads.get(),
            chunks_verified: self.chunks_verified.get(),
            chunks_corrupt: self.chunks_corrupt.get(),
            fetches_started: self.fetches_started.get(),
            fetches_finished: self.fetches_finished.get(),
            fetches_failed: self.fetches_failed.get(),
        }
    }

    /// Everything in the OpenMetrics text format; see [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut page = String::with_capacity(8 * 1024);
        let written: fmt::Result = text::encode(&mut page, &self.registry);
        written.unwrap_or_else(|_| unreachable!("a string takes every line"));
        page
    }
}

/// The store's figures.
#[derive(Debug)]
struct Stored(Store);

impl Collector for Stored {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, unit: Option<&Unit>, value: u64| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        gauge("stored_blobs", "Sealed blobs in the store.", None, self.0.sealed_count() as u64)?;
        gauge("stored", "Bytes that blobs in the store take or have reserved.", Some(&Unit::Bytes), self.0.bytes())
    }
}

/// One more in a gauge for as long as this lives, on every way out.
#[derive(Debug)]
#[must_use = "the gauge goes down when this is dropped"]
pub struct Held(Gauge);

impl Held {
    /// Raises the gauge by one.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::digest::{Algorithm, Digest};

    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        metrics.encode().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_metric_is_on_the_page_from_the_start() {
        let lines = lines(&Metrics::new());
        for line in [
            concat!("shoal_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "shoal_received_bytes_total{from=\"origin\"} 0",
            "shoal_received_bytes_total{from=\"peers\"} 0",
            "shoal_sent_bytes_total{to=\"peers\"} 0",
            "shoal_sent_bytes_total{to=\"clients\"} 0",
            "shoal_origin_requests_total{kind=\"blob_get\"} 0",
            "shoal_origin_requests_total{kind=\"manifest_get\"} 0",
            "shoal_origin_requests_total{kind=\"head\"} 0",
            "shoal_origin_requests_total{kind=\"list_get\"} 0",
            "shoal_origin_requests_total{kind=\"push\"} 0",
            "shoal_origin_requests_total{kind=\"token\"} 0",
            "shoal_origin_retries_total 0",
            "shoal_chunks_total{verdict=\"verified\"} 0",
            "shoal_chunks_total{verdict=\"corrupt\"} 0",
            "shoal_claims_total{verdict=\"disputed\"} 0",
            "shoal_claims_total{verdict=\"false\"} 0",
            "shoal_blobs_rotten_total 0",
            "shoal_leases_granted_total 0",
            "shoal_fallbacks_total{why=\"untracked\"} 0",
            "shoal_fallbacks_total{why=\"stalled\"} 0",
            "shoal_fetches_started_total 0",
            "shoal_fetches_ended_total{result=\"sealed\"} 0",
            "shoal_fetches_ended_total{result=\"failed\"} 0",
            "shoal_http_responses_total{class=\"5xx\"} 0",
            "shoal_cut_bodies_total 0",
            "shoal_client_connections 0",
            "shoal_open_readers 0",
            "shoal_leases_held 0",
            "shoal_connected_peers 0",
            "shoal_fetch_seconds_count 0",
            "shoal_first_byte_seconds_count 0",
            "# EOF",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is missing from {lines:#?}");
        }
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "tests")]
    fn the_page_shows_what_the_store_has_when_it_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut metrics = Metrics::new();
        metrics.watch_store(store.clone());
        let shows = |blobs: &str, bytes: &str| {
            let lines = lines(&metrics);
            for line in [blobs, bytes, "# TYPE shoal_stored_bytes gauge", "# UNIT shoal_stored_bytes bytes"] {
                assert!(lines.iter().any(|found| found == line), "{line} is missing from {lines:#?}");
            }
        };
        shows("shoal_stored_blobs 0", "shoal_stored_bytes 0");
        let partial = store.create(&Digest::of(Algorithm::Sha512, b"abc"), 3).unwrap();
        shows("shoal_stored_blobs 0", "shoal_stored_bytes 3");
        partial.file().write(0, &[b"abc".as_slice().into()]).unwrap();
        partial.seal(&[]).unwrap();
        shows("shoal_stored_blobs 1", "shoal_stored_bytes 3");
    }

    #[test]
    fn what_is_counted_shows_on_the_page_and_in_the_totals() {
        let metrics = Metrics::new();
        metrics.bytes_from_peers.inc_by(1 << 40);
        metrics.chunks_corrupt.inc();
        metrics.fetch_seconds.observe(0.3);
        assert_eq!(metrics.totals(), Totals { bytes_from_peers: 1 << 40, chunks_corrupt: 1, ..Totals::default() });
        let lines = lines(&metrics);
        for line in [
            "shoal_received_bytes_total{from=\"peers\"} 1099511627776",
            "shoal_chunks_total{verdict=\"corrupt\"} 1",
            "shoal_fetch_seconds_bucket{le=\"0.25\"} 0",
            "shoal_fetch_seconds_bucket{le=\"0.5\"} 1",
        ] {
            assert!(lines.iter().any(|found| found == line), "{line} is missing from {lines:#?}");
        }
    }

    #[test]
    fn responses_are_counted_by_class_and_nonsense_is_ignored() {
        let metrics = Metrics::new();
        for status in [200, 206, 404, 503, 0, 99, 100, 600, u16::MAX] {
            metrics.count_response(status);
        }
        assert_eq!(metrics.responses.each_ref().map(Counter::get), [2, 0, 1, 1]);
    }

    #[test]
    fn a_held_gauge_goes_down_when_its_holder_is_dropped() {
        let metrics = Metrics::new();
        let first = Held::new(&metrics.open_readers);
        let second = Held::new(&metrics.open_readers);
        assert_eq!(metrics.open_readers.get(), 2);
        drop((first, second));
        assert_eq!(metrics.open_readers.get(), 0);
    }
}
