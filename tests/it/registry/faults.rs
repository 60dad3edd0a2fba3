//! An origin that misbehaves: clients get an answer in time that lets them go on, and never a wrong byte as a whole.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use shoal_tests::{
    daemon::{Cluster, Daemon},
    eventually,
    image::Image,
    origin::Fault,
    raw::{self, Ending},
};

use super::offer_random;
use crate::{ANSWER, MIB, REPOSITORY, blob_path, manifest_path, one_daemon, origin_with, settings};

/// Statuses that make every client go on to its next host.
const GO_ON: [u16; 5] = [403, 404, 500, 502, 503];

/// What a pull asks for, in the order of a pull.
fn paths(image: &Image) -> Vec<String> {
    let platform = image.native();
    vec![
        manifest_path("v1"),
        manifest_path(&image.index.digest),
        manifest_path(&platform.manifest.digest),
        blob_path(&platform.config.digest),
        blob_path(&platform.layers[0].digest),
    ]
}

/// All of an image is asked for at once; every answer must begin in time with a status that makes clients go on.
async fn everything_is_refused_in_time(daemon: &Daemon, image: &Image, why: &str) {
    let paths = paths(image);
    let answers = paths.iter().flat_map(|path| [daemon.get(path), daemon.head(path)]).map(async |request| {
        let response = tokio::time::timeout(ANSWER, request.send()).await;
        let response = response.unwrap_or_else(|_| panic!("{why}: no answer within {ANSWER:?}")).unwrap();
        assert!(GO_ON.contains(&response.status().as_u16()), "{why}: {} for {}", response.status(), response.url());
        assert!(!response.headers().contains_key("www-authenticate"), "{why}");
        assert!(!response.headers().contains_key("retry-after"), "{why}");
    });
    join_all(answers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_origin_is_answered_for_in_time() {
    let (origin, image, daemon) = one_daemon(400, &[MIB]).await;
    origin.misbehave("", Fault::HangBeforeHeaders);
    everything_is_refused_in_time(&daemon, &image, "the origin hangs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_origin_and_hanging_peers_are_answered_for_in_time() {
    let (origin, image) = origin_with(401, &[4 * MIB]).await;
    let cluster = Cluster::start(settings(&origin.url()), 4).await;
    for path in paths(&image) {
        // The others have it all, and know one another.
        for peer in &cluster.nodes[1..] {
            assert_eq!(
                peer.get(&path).send().await.unwrap().bytes().await.map(|bytes| bytes.is_empty()).ok(),
                Some(false)
            );
        }
    }
    origin.misbehave("", Fault::HangBeforeHeaders);
    for peer in &cluster.nodes[1..] {
        peer.signal(Signal::STOP);
    }
    everything_is_refused_in_time(&cluster.nodes[0], &image, "the origin and all peers hang").await;
    origin.behave();
    let layer = &image.native().layers[0];
    let body = eventually(Duration::from_secs(30), "a pull completing from the origin that is back", || async {
        let (status, body) = cluster.nodes[0].try_blob(REPOSITORY, &layer.digest).await;
        (status == 200 && !body.is_empty()).then_some(body)
    })
    .await;
    assert!(body == layer.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_peers_do_not_keep_an_answer_from_a_good_origin() {
    let (origin, image) = origin_with(412, &[4 * MIB]).await;
    let cluster = Cluster::start(settings(&origin.url()), 4).await;
    for peer in &cluster.nodes[1..] {
        peer.signal(Signal::STOP);
    }
    let gets = paths(&image).into_iter().map(async |path| {
        let response = tokio::time::timeout(ANSWER, cluster.nodes[0].get(&path).send()).await;
        let response = response.unwrap_or_else(|_| panic!("no answer within {ANSWER:?}")).unwrap();
        assert_eq!(response.status(), 200, "{path}\n{}", cluster.nodes[0].log());
        response.bytes().await.unwrap()
    });
    let bodies = join_all(gets).await;
    assert!(bodies.last() == Some(&image.native().layers[0].bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_refusal_of_the_origin_is_passed_on_as_it_is() {
    let (origin, image, daemon) = one_daemon(402, &[MIB]).await;
    let statuses = [400, 401, 403, 404, 408, 410, 418, 500, 502, 503, 504];
    let faults =
        statuses.map(Fault::Status).into_iter().chain([Fault::TooManyRequests(1), Fault::TooManyRequests(3600)]);
    for fault in faults {
        origin.behave();
        origin.misbehave("", fault.clone());
        everything_is_refused_in_time(&daemon, &image, &format!("{fault:?}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_down_is_answered_for_at_once() {
    let (mut origin, image, daemon) = one_daemon(403, &[MIB]).await;
    origin.down().await;
    everything_is_refused_in_time(&daemon, &image, "the origin is down").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_recovers_serves_again() {
    let (origin, image, daemon) = one_daemon(404, &[2 * MIB]).await;
    let layer = &image.native().layers[0];
    for fault in [Fault::Status(500), Fault::TooManyRequests(1), Fault::TruncateAfter(MIB / 2)] {
        origin.misbehave_times(&layer.digest, 1, fault);
    }
    let body = eventually(Duration::from_secs(30), "the blob being served", || async {
        let (status, body) = daemon.try_blob(REPOSITORY, &layer.digest).await;
        (status == 200 && !body.is_empty()).then_some(body)
    })
    .await;
    assert!(body == layer.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_or_breaks_at_the_origin_is_continued_where_it_ended() {
    let (origin, _, daemon) = one_daemon(405, &[10]).await;
    for (seed, fault) in [(4050, Fault::TruncateAfter(3 * MIB)), (4051, Fault::HangAfter(3 * MIB))] {
        let blob = offer_random(&origin, seed, 8 * MIB);
        origin.misbehave_times(&blob.digest, 1, fault.clone());
        assert!(daemon.blob(REPOSITORY, &blob.digest).await == blob.bytes, "{fault:?}");
        let gets = origin.gets(&blob.digest);
        assert!(gets.len() >= 2 && gets[1..].iter().all(|get| get.range().is_some()), "{fault:?}: {gets:?}");
        let sent = origin.bytes_of(&blob.digest);
        assert!(sent <= blob.size() + MIB, "{fault:?}: {sent} bytes for {}", blob.size());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_ignores_ranges_is_read_from_the_start() {
    let (origin, _, daemon) = one_daemon(406, &[10]).await;
    let blob = offer_random(&origin, 4060, 5 * MIB);
    origin.misbehave_times(&blob.digest, 1, Fault::TruncateAfter(2 * MIB));
    origin.misbehave(&blob.digest, Fault::IgnoreRange);
    let range =
        daemon.get(&blob_path(&blob.digest)).header("range", format!("bytes={}-", 4 * MIB)).send().await.unwrap();
    assert_eq!(range.status(), 206);
    assert!(range.bytes().await.unwrap() == blob.bytes.slice(4 * MIB as usize..));
    assert!(daemon.blob(REPOSITORY, &blob.digest).await == blob.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_known_to_ignore_ranges_gets_no_second_stream_of_a_blob() {
    let (origin, _, daemon) = one_daemon(411, &[10]).await;
    let broken = offer_random(&origin, 4110, 2 * MIB);
    origin.misbehave_times(&broken.digest, 1, Fault::TruncateAfter(MIB + 10));
    origin.misbehave("/blobs/", Fault::IgnoreRange);
    assert!(daemon.blob(REPOSITORY, &broken.digest).await == broken.bytes);
    assert!(origin.gets(&broken.digest).iter().any(|get| get.range().is_some()), "it was asked for a range, once");
    // So slow that a second stream would be tried, and each would bring all of it.
    let slow = offer_random(&origin, 4111, 64 * MIB);
    origin.limit(8 * MIB);
    assert!(daemon.blob(REPOSITORY, &slow.digest).await == slow.bytes);
    let gets = origin.gets(&slow.digest);
    assert_eq!(gets.len(), 1, "{gets:?}");
    assert_eq!(origin.bytes_of(&slow.digest), slow.size());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_completed_ends_early_and_in_order() {
    let (origin, _, daemon) = one_daemon(407, &[10]).await;
    let blob = offer_random(&origin, 4070, 8 * MIB);
    // Every try ends after the same few bytes from where it began, and soon there are no more tries.
    origin.misbehave_times(&blob.digest, 1, Fault::TruncateAfter(5 * MIB));
    origin.misbehave(&blob.digest, Fault::Status(500));
    let answer = raw::get(daemon.registry(), &blob_path(&blob.digest), &[], Duration::from_secs(60)).await;
    assert_eq!((answer.status, answer.ending), (200, Ending::Fin), "a reset would fail the pull for good");
    assert!((answer.body.len() as u64) < blob.size());
    assert!(answer.body == blob.bytes[..answer.body.len()], "what came is right");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_with_a_wrong_byte_is_never_served_whole_and_never_kept() {
    let (origin, _, daemon) = one_daemon(408, &[10]).await;
    for (seed, size, at) in
        [(4080, 8 * MIB, 4 * MIB), (4081, 8 * MIB, 0), (4082, 8 * MIB, 8 * MIB - 1), (4083, 100, 50)]
    {
        let blob = offer_random(&origin, seed, size);
        origin.misbehave(&blob.digest, Fault::CorruptAt(at));
        let answer = raw::get(daemon.registry(), &blob_path(&blob.digest), &[], Duration::from_secs(60)).await;
        assert_eq!(answer.ending, Ending::Fin, "{size} bytes, wrong at {at}");
        if answer.status == 200 {
            assert!((answer.body.len() as u64) < size, "{size} bytes, wrong at {at}: served whole");
        } else {
            assert!(GO_ON.contains(&answer.status), "{}", answer.status);
        }
        let blobs = daemon.status().await.blobs;
        assert!(!blobs.iter().any(|kept| kept.sealed && kept.digest.to_string() == blob.digest), "kept");
        origin.behave();
        // A try that began before may still fail.
        let body = eventually(Duration::from_secs(20), "the blob being served by a good origin", || async {
            let (status, body) = daemon.try_blob(REPOSITORY, &blob.digest).await;
            (status == 200 && !body.is_empty()).then_some(body)
        })
        .await;
        assert!(body == blob.bytes, "{size} bytes, once wrong at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_manifest_is_not_served() {
    let (origin, image, daemon) = one_daemon(409, &[10]).await;
    origin.misbehave("/manifests/", Fault::CorruptAt(20));
    for reference in ["v1", &image.index.digest, &image.native().manifest.digest] {
        let answer = raw::get(daemon.registry(), &manifest_path(reference), &[], ANSWER).await;
        assert!(GO_ON.contains(&answer.status), "{reference}: {}", answer.status);
    }
    origin.behave();
    let response = daemon.get(&manifest_path(&image.index.digest)).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap(), image.index.bytes);
}
