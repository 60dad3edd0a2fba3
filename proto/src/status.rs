//! Reports that the daemon gives as JSON and the command line prints: its [`Status`], and the progress of a pull.
//!
//! Daemon and command line may be of different releases, so unknown fields are skipped and the numbers of [`Totals`] that
//! are missing read as 0. Sizes are in bytes, times in the unit that the field's name says.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, peer::PeerId};

/// A node's identity in reports: long for machines, short for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerName {
    /// The whole public key in 64 hex digits.
    pub peer: String,
    /// The first twelve of them, as logs print it.
    pub short: String,
}

impl From<PeerId> for PeerName {
    fn from(peer: PeerId) -> Self {
        Self { peer: Digest::sha256(peer.0).hex(), short: peer.to_string() }
    }
}

/// What `GET /v1/status` answers: the node at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's release.
    pub version: String,
    /// This node.
    #[serde(flatten)]
    pub name: PeerName,
    /// Where it listens.
    pub addresses: Addresses,
    /// Since its start.
    pub uptime_seconds: u64,
    /// Whether it takes part: listening, and past its first look for peers.
    pub ready: bool,
    /// The peers that it is connected to, and those that discovery knows.
    pub peers: Vec<PeerStatus>,
    /// How many other nodes discovery knows.
    #[serde(default)]
    pub dht_peers: u32,
    /// The blobs in its store.
    pub blobs: Vec<BlobStatus>,
    /// The blobs that are on their way.
    pub fetches: Vec<FetchStatus>,
    /// Counts since the start.
    #[serde(default)]
    pub totals: Totals,
}

/// Where a daemon listens, with the real port numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The registry front, for clients of this machine.
    pub registry: Vec<SocketAddr>,
    /// The registry front over TLS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registry_tls: Vec<SocketAddr>,
    /// The file with the certificate that its clients must trust, if the daemon made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_ca: Option<PathBuf>,
    /// The port for peers, TCP and UDP.
    pub p2p: SocketAddr,
    /// Health, metrics and status.
    pub observe: SocketAddr,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Who.
    #[serde(flatten)]
    pub name: PeerName,
    /// Where its data plane is.
    pub address: SocketAddr,
    /// Whether there is a connection for messages and chunks; there is one as soon as a blob is shared. Without one the
    /// figures below are 0.
    #[serde(default)]
    pub connected: bool,
    /// Round trip time in milliseconds, as the connection measures it.
    pub rtt_ms: f64,
    /// Bytes received over the present connection.
    pub bytes_in: u64,
    /// Bytes sent over the present connection.
    pub bytes_out: u64,
}

/// One blob in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStatus {
    /// Its name.
    pub digest: Digest,
    /// Bytes in it.
    pub size: u64,
    /// Whether it is complete and proven; else it is a partial blob that can be resumed.
    pub sealed: bool,
}

/// One blob that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchStatus {
    /// Its name.
    pub digest: Digest,
    /// Bytes in it; none until somebody told.
    pub size: Option<u64>,
    /// Chunks that have been verified and stored.
    pub have_chunks: u32,
    /// Chunks in it; 0 until its size is known.
    pub chunks: u32,
    /// Bytes that have been verified and stored.
    pub bytes: u64,
    /// Bytes that came from the origin, in this fetch.
    pub from_origin: u64,
    /// Bytes that came from peers, in this fetch.
    pub from_peers: u64,
    /// Whether this node holds the origin lease for it.
    pub lease: bool,
    /// What the fetch is doing, in a few words.
    pub state: String,
    /// How many clients are reading it.
    pub readers: u32,
}

/// Counts since the daemon's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Content bytes received from origins.
    pub bytes_from_origin: u64,
    /// Content bytes received from peers.
    pub bytes_from_peers: u64,
    /// Content bytes sent to peers.
    pub bytes_to_peers: u64,
    /// Content bytes sent to clients of the registry front.
    pub bytes_to_clients: u64,
    /// GET requests for blobs to origins.
    pub origin_blob_gets: u64,
    /// GET requests for manifests to origins.
    pub origin_manifest_gets: u64,
    /// HEAD requests to origins.
    pub origin_heads: u64,
    /// Chunks whose link held.
    pub chunks_verified: u64,
    /// Chunks whose link did not hold; they were thrown away.
    pub chunks_corrupt: u64,
    /// Fetches that began.
    pub fetches_started: u64,
    /// Fetches that ended in a sealed blob.
    pub fetches_finished: u64,
    /// Fetches that were given up.
    pub fetches_failed: u64,
}

/// The body of `POST /v1/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The image as a user writes it, for example `docker.io/library/alpine:3` or `registry.test:5000/app@sha256:…`.
    pub image: String,
    /// Which one of a multi-platform image, as `os/architecture[/variant]`; the daemon's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// One line of the answer to `POST /v1/pull`. The last line is [`Self::Done`] or [`Self::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullProgress {
    /// The image's name was resolved to the content to pull.
    Resolved {
        /// What the name stands for: the digest of a manifest, or of an index of several platforms.
        digest: Digest,
        /// How many layers and configs it names.
        layers: u32,
        /// Bytes in all of them.
        bytes: u64,
    },
    /// How far one layer (or config) is.
    Layer {
        /// Its name.
        digest: Digest,
        /// Bytes in it.
        size: u64,
        /// Bytes of it in this node's store, verified.
        have: u64,
    },
    /// Everything is in the store, proven.
    Done {
        /// What the name stands for, as in [`Self::Resolved`].
        digest: Digest,
        /// Bytes in all layers and configs.
        bytes: u64,
        /// How long it took.
        milliseconds: u64,
    },
    /// The pull ended without the image.
    Failed {
        /// Why, and what to do.
        message: String,
    },
}

impl PullProgress {
    /// Whether no line follows.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;
    use crate::digest::Algorithm;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"")
    }

    fn status() -> Status {
        let address = "10.0.0.1:5051".parse().unwrap();
        Status {
            version: String::from("0.1.0"),
            name: PeerId([0xab; 32]).into(),
            addresses: Addresses {
                registry: vec!["127.0.0.1:5050".parse().unwrap()],
                registry_tls: vec!["127.0.0.1:5053".parse().unwrap()],
                registry_ca: Some("/d/tls/ca.pem".into()),
                p2p: address,
                observe: address,
            },
            uptime_seconds: 3,
            ready: true,
            dht_peers: 2,
            peers: vec![PeerStatus {
                name: PeerId([1; 32]).into(),
                address,
                connected: true,
                rtt_ms: 0.25,
                bytes_in: 5,
                bytes_out: 6,
            }],
            blobs: vec![BlobStatus { digest: digest(), size: 0, sealed: true }],
            fetches: vec![FetchStatus {
                digest: digest(),
                size: None,
                have_chunks: 0,
                chunks: 0,
                bytes: 0,
                from_origin: 0,
                from_peers: 0,
                lease: false,
                state: String::from("looking for peers"),
                readers: 1,
            }],
            totals: Totals { bytes_from_origin: 7, ..Totals::default() },
        }
    }

    #[test]
    fn a_status_survives_json_and_names_its_fields_as_documented() {
        let json = to_value(status()).unwrap();
        assert_eq!(from_value::<Status>(json.clone()).unwrap(), status());
        assert_eq!(json["peer"], "ab".repeat(32));
        assert_eq!(json["short"], "abababababab");
        assert_eq!(json["peers"][0]["peer"], "01".repeat(32));
        assert_eq!(json["addresses"]["p2p"], "10.0.0.1:5051");
        assert_eq!(json["blobs"][0]["digest"], digest().to_string());
        assert_eq!(json["fetches"][0]["size"], Value::Null);
        assert_eq!(json["totals"]["bytes_from_origin"], 7);
    }

    #[test]
    fn a_status_of_another_release_is_still_read() {
        let mut json = to_value(status()).unwrap();
        json["new"] = json!({});
        json["totals"] = json!({ "bytes_from_origin": 7, "new": 1 });
        assert_eq!(from_value::<Status>(json).unwrap(), status());
    }

    #[test]
    fn progress_is_told_apart_by_its_event() {
        let layer = PullProgress::Layer { digest: digest(), size: 10, have: 5 };
        let json = to_value(&layer).unwrap();
        assert_eq!(json, json!({ "event": "layer", "digest": digest().to_string(), "size": 10, "have": 5 }));
        assert_eq!(from_value::<PullProgress>(json).unwrap(), layer);
        assert!(!layer.is_final());
        let failed = from_value::<PullProgress>(json!({ "event": "failed", "message": "no" })).unwrap();
        assert!(failed.is_final());
    }

    #[test]
    fn a_pull_request_needs_an_image_and_nothing_unknown() {
        let request = from_value::<PullRequest>(json!({ "image": "alpine" })).unwrap();
        assert_eq!(request, PullRequest { image: String::from("alpine"), platform: None });
        assert!(from_value::<PullRequest>(json!({})).is_err());
        assert!(from_value::<PullRequest>(json!({ "image": "alpine", "imgae": "x" })).is_err());
    }
}
