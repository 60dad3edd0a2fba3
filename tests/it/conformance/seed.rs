//! What was pushed through a node is served by it: a push from a build node is the beginning of a rollout.

use std::time::Duration;

use reqwest::Method;
use shoal_tests::{
    daemon::{Cluster, client},
    eventually,
    image::{Blob, Image, ImageSpec},
    layout::{self, Format},
    origin::OriginDouble,
    registry::DockerRegistry,
    tools::available,
};

use super::pushing;
use crate::{MIB, REPOSITORY};

/// Two nodes that pass pushes to this origin.
async fn two(origin: &str) -> (tempfile::TempDir, Cluster) {
    let (directory, settings) = pushing(origin, "");
    (directory, Cluster::start(settings, 2).await)
}

async fn pulled_by_the_other(cluster: &Cluster, image: &Image) {
    let [_, other] = &cluster.nodes[..] else { panic!("two nodes") };
    let tag = other.get(&format!("/v2/origin.test/{REPOSITORY}/manifests/v1")).send().await.unwrap();
    assert_eq!(tag.bytes().await.unwrap(), image.index.bytes);
    for manifest in image.manifests() {
        let path = format!("/v2/origin.test/{REPOSITORY}/manifests/{}", manifest.digest);
        assert_eq!(other.get(&path).send().await.unwrap().bytes().await.unwrap(), manifest.bytes);
    }
    for blob in image.blobs() {
        assert!(other.blob(REPOSITORY, &blob.digest).await == blob.bytes, "{}", blob.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skopeo_pushed_through_one_node_another_pulls_without_a_blob_get_at_the_origin() {
    if !available(&["docker-registry", "skopeo"], false) {
        return;
    }
    let registry = DockerRegistry::start().await;
    let (_directory, cluster) = two(&registry.url()).await;
    let image = ImageSpec::new(860, &[9 * MIB, 100]).build();
    let repository = format!("origin.test/{REPOSITORY}");
    layout::push(&image, Format::Oci, cluster.nodes[0].registry(), &repository, "v1").await;
    let stored: Vec<_> =
        cluster.nodes[0].status().await.blobs.iter().map(|blob| (blob.digest.to_string(), blob.sealed)).collect();
    for blob in image.blobs().chain(image.manifests()) {
        assert!(stored.contains(&(blob.digest.clone(), true)), "{} is not kept: {stored:?}", blob.digest);
    }
    registry.forget();
    pulled_by_the_other(&cluster, &image).await;
    assert_eq!(registry.blob_gets(), [], "all from the node that pushed");
    let accesses = registry.accesses();
    assert!(accesses.iter().all(|access| access.method == "HEAD"), "{accesses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_leaves_no_draft_behind_and_is_there_after_a_restart() {
    let double = OriginDouble::start().await;
    let (_directory, settings) = pushing(&double.url(), "");
    let mut node = shoal_tests::daemon::Daemon::start(settings).await;
    let blob = Blob::new("application/octet-stream", shoal_tests::image::random_bytes(861, 5 * MIB));
    let uploads = format!("http://{}/v2/origin.test/{REPOSITORY}/blobs/uploads/", node.registry());
    // One that is never ended, and one that is.
    let open = client().post(&uploads).send().await.unwrap().headers()["location"].to_str().unwrap().to_owned();
    let chunk = client().patch(format!("http://{}{open}", node.registry())).body(vec![7; 2 * MIB as usize]);
    assert_eq!(chunk.send().await.unwrap().status(), 202);
    let post = client().request(Method::POST, format!("{uploads}?digest={}", blob.digest)).body(blob.bytes.clone());
    assert_eq!(post.send().await.unwrap().status(), 201);
    node.kill();
    node.up().await;
    double.forget();
    assert!(node.blob(REPOSITORY, &blob.digest).await == blob.bytes);
    assert_eq!(double.gets("/blobs/").len(), 0);
    let partial = || std::fs::read_dir(node.data().join("partial")).unwrap().count();
    assert_eq!(partial(), 0, "what the crash left of the open upload is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_cannot_be_kept_goes_on() {
    let double = OriginDouble::start().await;
    let (_directory, settings) = pushing(&double.url(), "");
    let node = shoal_tests::daemon::Daemon::start(settings).await;
    // A store that has lost its directory, which also stops root.
    std::fs::rename(node.data().join("partial"), node.data().join("gone")).unwrap();
    let blob = Blob::new("application/octet-stream", shoal_tests::image::random_bytes(862, 2 * MIB));
    let path = format!("http://{}/v2/origin.test/{REPOSITORY}/blobs/uploads/?digest={}", node.registry(), blob.digest);
    let post = client().post(path).body(blob.bytes.clone()).send().await.unwrap();
    assert_eq!(post.status(), 201);
    assert!(double.content(&blob.digest).unwrap() == blob.bytes);
    eventually(Duration::from_secs(5), "a word about it in the log", || async {
        node.log().contains("cannot be kept here").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_push_of_a_large_blob_takes_little_memory() {
    let double = OriginDouble::start().await;
    let (_directory, settings) = pushing(&double.url(), "");
    let node = shoal_tests::daemon::Daemon::start(settings).await;
    let blob = Blob::new("application/octet-stream", shoal_tests::image::random_bytes(863, 192 * MIB));
    let before = node.peak_memory();
    let path = format!("http://{}/v2/origin.test/{REPOSITORY}/blobs/uploads/?digest={}", node.registry(), blob.digest);
    assert_eq!(client().post(path).body(blob.bytes.clone()).send().await.unwrap().status(), 201);
    let grown = node.peak_memory() - before;
    assert!(grown < 64 * MIB, "{grown} bytes more");
}
