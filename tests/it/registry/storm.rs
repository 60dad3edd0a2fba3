//! A storm of pulls on one node, before an origin that wants to be left alone.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use serde_json::json;
use shoal_tests::{
    daemon::Daemon,
    image::{Blob, media},
    origin::{Fault, OriginDouble},
};

use crate::{REPOSITORY, manifest_path, settings};

/// Requests of the storm.
const REQUESTS: usize = 5000;
/// Different manifests among them.
const MANIFESTS: usize = 100;
/// Requests that clients have under way at once.
const AT_ONCE: usize = 400;
/// Requests that the origin refuses, each of which asks for a second of rest.
const REFUSALS: u64 = 12;
/// The daemon comes back to the origin on its own; so long at most until everything is served again.
const RELENTS: Duration = Duration::from_secs(60);

/// Manifests that differ in one label, each tagged with its number.
fn manifests(origin: &OriginDouble) -> Vec<Blob> {
    let config = Blob::new(media::CONFIG, b"{}".to_vec());
    let manifest = |number: usize| {
        let document = json!({
            "schemaVersion": 2,
            "mediaType": media::MANIFEST,
            "config": config.descriptor(),
            "layers": [],
            "annotations": { "number": number.to_string() },
        });
        let manifest = Blob::new(media::MANIFEST, serde_json::to_vec(&document).unwrap());
        origin.offer_content(&manifest.digest, manifest.bytes.clone(), media::MANIFEST);
        origin.tag(REPOSITORY, &format!("v{number}"), &manifest.digest);
        manifest
    };
    (0..MANIFESTS).map(manifest).collect()
}

/// Asks for every manifest again and again, by tag and by digest in turn, and counts what clients were told. An answer with
/// content is the right one.
async fn storm(daemon: &Daemon, manifests: &[Blob]) -> BTreeMap<u16, usize> {
    let requests = (0..REQUESTS).map(async |at| {
        let (number, round) = (at % MANIFESTS, at / MANIFESTS);
        let manifest = &manifests[number];
        let reference = if round % 2 == 0 { format!("v{number}") } else { manifest.digest.clone() };
        let response = daemon.get(&manifest_path(&reference)).send().await.unwrap();
        let status = response.status().as_u16();
        for forbidden in ["retry-after", "www-authenticate"] {
            assert!(
                !response.headers().contains_key(forbidden),
                "{status} with {forbidden}: clients would wait or sign in"
            );
        }
        if status == 200 {
            assert_eq!(response.headers()["docker-content-digest"], manifest.digest.as_str());
            assert_eq!(response.bytes().await.unwrap(), manifest.bytes);
        }
        status
    });
    let statuses = stream::iter(requests).buffer_unordered(AT_ONCE);
    statuses
        .fold(BTreeMap::new(), async |mut told, status| {
            *told.entry(status).or_default() += 1;
            told
        })
        .await
}

/// GETs that the origin answered with this manifest.
fn given(origin: &OriginDouble, manifest: &Blob, number: usize) -> usize {
    let paths = [format!("/manifests/{}", manifest.digest), format!("/manifests/v{number}")];
    let is_one = |path: &str| paths.iter().any(|end| path.ends_with(end));
    origin.gets("/manifests/").iter().filter(|get| is_one(&get.path) && get.status.load(Relaxed) == 200).count()
}

/// Lines of a log about a manifest.
fn about(log: &str, manifest: &Blob) -> String {
    log.lines().filter(|line| line.contains(&manifest.digest[7..15])).collect::<Vec<_>>().join("\n")
}

fn too_many(origin: &OriginDouble) -> usize {
    origin.requests().iter().filter(|served| served.status.load(Relaxed) == 429).count()
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "what the storm cost")]
async fn five_thousand_pulls_of_manifests_cost_a_limiting_origin_one_get_each_and_no_client_sees_its_429() {
    let origin = OriginDouble::start().await;
    let manifests = manifests(&origin);
    let daemon = Daemon::start(settings(&origin.url()).with("--tag-ttl=1h")).await;
    // Every other request, HEAD or GET, is one too many. The origin relents before the node's patience with a fetch that
    // gets nothing ends (12 s): then it would begin anew, and what is on its way at that moment might be asked for twice.
    origin.misbehave_every("/manifests/", 2, REFUSALS, Fault::TooManyRequests(1));
    let told = storm(&daemon, &manifests).await;
    let refused = too_many(&origin);
    println!("limiting: {told:?} to clients, {refused} times 429 to the daemon");
    assert_eq!(refused as u64, REFUSALS, "the origin did not get to refuse so often");
    assert_eq!(told.values().sum::<usize>(), REQUESTS);
    for status in told.keys() {
        assert!([200, 404, 503].contains(status), "{told:?}: a client would not fall back on {status}");
    }

    let until = Instant::now() + RELENTS;
    loop {
        let told = storm(&daemon, &manifests).await;
        println!("relenting: {told:?} to clients");
        if told.keys().eq([&200]) {
            break;
        }
        assert!(Instant::now() < until, "the origin gives all, and clients are still told {told:?}");
    }
    for (number, manifest) in manifests.iter().enumerate() {
        let gets = origin.gets(&manifest.digest);
        assert_eq!(given(&origin, manifest, number), 1, "v{number}: {gets:?}\n{}", about(&daemon.log(), manifest));
    }
    // Not one question more: everything is known now.
    origin.forget();
    assert_eq!(storm(&daemon, &manifests).await, BTreeMap::from([(200, REQUESTS)]));
    assert_eq!(origin.requests().len(), 0);
}
