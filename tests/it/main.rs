//! The integration tests: real daemons, and everything else as real as it can be had.
//!
//! Tests of real clients say `SKIPPED: ...` in one line and pass where a program or root is missing, unless
//! `SHOAL_REQUIRE_CLIENTS=1` is set.

#![allow(clippy::unwrap_used, reason = "tests")]

mod access;
mod checks;
mod clients;
mod config;
mod conformance;
mod crash;
mod demo;
mod deploy;
mod distribution;
mod hostile;
mod namespaces;
mod registries;
mod registry;
mod shapes;
mod swarm;
mod tags;
mod tls;

use std::time::Duration;

use shoal_tests::{
    daemon::{Daemon, Settings},
    image::{Image, ImageSpec},
    origin::OriginDouble,
};

/// What clients wait for at the very least: an answer must begin within it, whatever hangs.
const ANSWER: Duration = Duration::from_secs(5);

/// The repository of the tests' images at `origin.test`.
const REPOSITORY: &str = "team/app";

/// The program under test.
const SHOAL: &str = env!("CARGO_BIN_EXE_shoal-under-test");

/// The daemon under test with one upstream, `origin.test`.
fn settings(origin: &str) -> Settings {
    Settings::new(SHOAL, origin)
}

/// A path of the blob endpoint.
fn blob_path(digest: &str) -> String {
    format!("/v2/origin.test/{REPOSITORY}/blobs/{digest}")
}

/// A path of the manifest endpoint.
fn manifest_path(reference: &str) -> String {
    format!("/v2/origin.test/{REPOSITORY}/manifests/{reference}")
}

/// An origin with one image of one platform and layers of these sizes, tagged `v1`, and a daemon before it.
async fn one_daemon(seed: u64, layers: &[u64]) -> (OriginDouble, Image, Daemon) {
    let (origin, image) = origin_with(seed, layers).await;
    let daemon = Daemon::start(settings(&origin.url())).await;
    (origin, image, daemon)
}

/// How many GETs of a blob a rollout may cost, each for other bytes: the lease of one with more than 48 chunks to come may
/// move to the node that streams the others, which asks for the rest; or it is tried whether another gets more, which a
/// busy machine may bring about, and moves back.
const fn gets_max(size: u64) -> usize {
    if size > 12 * MIB { 3 } else { 1 }
}

/// How many copies of an image a rollout without faults may cost: what the origin has on its way when a lease moves comes
/// twice, up to its and the holder's socket buffers. If none moved, not a byte does.
const fn copies_max(moved: bool) -> f64 {
    if moved { 1.05 } else { 1.0 }
}

/// An origin with one image of one platform and layers of these sizes, tagged `v1`.
async fn origin_with(seed: u64, layers: &[u64]) -> (OriginDouble, Image) {
    let image = ImageSpec::new(seed, layers).one_platform().build();
    let origin = OriginDouble::start().await;
    origin.offer(&image, REPOSITORY, "v1");
    (origin, image)
}

/// Bytes of one mebibyte.
const MIB: u64 = 1024 * 1024;
