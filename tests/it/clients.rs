//! Real containerd (by `ctr` and by CRI), podman, skopeo, buildah, Docker and Charliecloud, before a real registry.

mod charliecloud;
mod containers;
mod docker;

use std::time::Duration;

use shoal_tests::{
    containerd::Containerd,
    cri::CriError,
    daemon::{Cluster, Daemon},
    eventually,
    image::{Image, ImageSpec},
    layout::Format,
    origin::OriginDouble,
    process::Place,
    registry::DockerRegistry,
    tools::available,
};

use crate::{MIB, REPOSITORY, manifest_path, origin_with, settings};

const CONTAINERD: [&str; 4] = ["containerd", "ctr", "docker-registry", "skopeo"];
const TRANSFER: Duration = Duration::from_secs(60);

/// A registry with an image of two platforms, a daemon before it, and a containerd that uses the daemon.
struct Stage {
    registry: DockerRegistry,
    image: Image,
    daemon: Daemon,
    containerd: Containerd,
}

impl Stage {
    async fn set(seed: u64) -> Self {
        let (registry, image) = registry_with(seed).await;
        let daemon = Daemon::start(settings(&registry.url())).await;
        let containerd = Containerd::start(&Place::Here).await;
        containerd.mirror(&mirror(&daemon), &registry.url());
        Self { registry, image, daemon, containerd }
    }
}

async fn registry_with(seed: u64) -> (DockerRegistry, Image) {
    let registry = DockerRegistry::start().await;
    let image = ImageSpec::new(seed, &[3 * MIB, 20, 9 * MIB]).build();
    registry.push(&image, Format::Oci, REPOSITORY, "v1").await;
    registry.forget();
    (registry, image)
}

fn mirror(daemon: &Daemon) -> String {
    format!("http://{}", daemon.registry())
}

fn tagged(tag: &str) -> String {
    format!("origin.test/{REPOSITORY}:{tag}")
}

fn by_digest(image: &Image) -> String {
    format!("origin.test/{REPOSITORY}@{}", image.index.digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_a_cold_image_and_each_blob_leaves_the_origin_once() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let stage = Stage::set(700).await;
    stage.containerd.pull(&tagged("v1")).await.expect_ok();
    let gets = stage.registry.blob_gets();
    for blob in stage.image.native().blobs() {
        let of_it: Vec<_> = gets.iter().filter(|get| get.path.contains(&blob.digest)).collect();
        assert_eq!(of_it.iter().map(|get| get.bytes).sum::<u64>(), blob.size(), "{of_it:?}");
        assert_eq!(of_it.len(), 1, "{of_it:?}");
    }
    let accesses = stage.registry.accesses();
    assert!(accesses.iter().all(|access| !access.agent.contains("containerd")), "{accesses:?}");
    assert!(accesses.iter().all(|access| !access.path.contains("ns=")), "the origin is no mirror: {accesses:?}");

    stage.registry.forget();
    stage.containerd.pull(&tagged("v1")).await.expect_ok();
    let warm = stage.registry.accesses();
    assert!(warm.len() <= 1 && warm.iter().all(|access| access.method == "HEAD"), "warm: {warm:?}");

    stage.registry.forget();
    stage.containerd.pull(&by_digest(&stage.image)).await.expect_ok();
    assert_eq!(stage.registry.accesses(), [], "by digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_images_in_docker_format_and_with_plain_and_zstd_layers() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let stage = Stage::set(701).await;
    stage.registry.push(&stage.image, Format::DockerV2s2, REPOSITORY, "docker").await;
    let plain = ImageSpec::new(702, &[2 * MIB, 100]).plain().one_platform().build();
    stage.registry.push(&plain, Format::Oci, REPOSITORY, "plain").await;
    let zstd = ImageSpec::new(711, &[2 * MIB, 100]).zstd().build();
    stage.registry.push(&zstd, Format::Oci, REPOSITORY, "zstd").await;
    stage.registry.forget();
    for tag in ["docker", "plain", "zstd"] {
        stage.containerd.pull(&tagged(tag)).await.expect_ok();
        stage.containerd.cri_pull(&tagged(tag), None).await.unwrap();
    }
    stage.containerd.pull_with(&tagged("v1"), &["--all-platforms"]).await.expect_ok();
    for blob in stage.image.blobs() {
        let gets = stage.registry.blob_gets();
        assert_eq!(gets.iter().filter(|get| get.path.contains(&blob.digest)).count(), 1, "{gets:?}");
    }
    let accesses = stage.registry.accesses();
    assert!(accesses.iter().all(|access| !access.agent.contains("containerd")), "{accesses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_pulls_by_the_daemons_address_with_nothing_configured() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let stage = Stage::set(713).await;
    let name = format!("{}/origin.test/{REPOSITORY}:v1", stage.daemon.registry());
    stage.containerd.pull(&name).await.expect_ok();
    let accesses = stage.registry.accesses();
    assert!(accesses.iter().all(|access| !access.agent.contains("containerd")), "{accesses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_goes_to_the_origin_while_the_daemon_is_down() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let mut stage = Stage::set(703).await;
    stage.daemon.kill();
    stage.containerd.pull(&tagged("v1")).await.expect_ok();
    let gets = stage.registry.blob_gets();
    assert_eq!(gets.len(), stage.image.native().blobs().count(), "{gets:?}");
    assert!(gets.iter().all(|get| get.agent.contains("containerd")), "{gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_origin_down_a_warm_digest_is_pulled_and_a_cold_one_fails_with_a_message() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let mut stage = Stage::set(704).await;
    stage.containerd.pull(&tagged("v1")).await.expect_ok();
    stage.registry.down();
    stage.containerd.pull(&by_digest(&stage.image)).await.expect_ok();
    let cold = ImageSpec::new(705, &[100]).build();
    let pulled = stage.containerd.pull(&by_digest(&cold)).await;
    assert!(!pulled.ok);
    assert!(pulled.output.contains("origin.test"), "{}", pulled.output);
    assert!(pulled.took < Duration::from_secs(60), "it hung for {:?}", pulled.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_served_by_a_peer_of_its_daemon() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let (registry, _image) = registry_with(706).await;
    let cluster = Cluster::start(settings(&registry.url()), 2).await;
    let containerd = Containerd::start(&Place::Here).await;
    containerd.mirror(&mirror(&cluster.nodes[0]), &registry.url());
    containerd.pull(&tagged("v1")).await.expect_ok();
    registry.forget();
    containerd.mirror(&mirror(&cluster.nodes[1]), &registry.url());
    containerd.pull(&tagged("v1")).await.expect_ok();
    assert_eq!(registry.blob_gets(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_sees_one_request_when_a_peer_dies_in_the_middle() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let (origin, image) = origin_with(707, &[24 * MIB]).await;
    let mut cluster = Cluster::start(settings(&origin.url()).with("--limits-upload=6MB/s"), 2).await;
    let layer = &image.native().layers[0];
    cluster.nodes[0].blob(REPOSITORY, &layer.digest).await;
    let containerd = Containerd::start(&Place::Here).await;
    containerd.mirror(&mirror(&cluster.nodes[1]), &origin.url());
    origin.forget();
    let tag = tagged("v1");
    let pull = containerd.pull(&tag);
    let cut = async {
        eventually(TRANSFER, "a third having come from the peer", || async {
            let fetches = cluster.nodes[1].status().await.fetches;
            fetches.iter().any(|fetch| fetch.from_peers > layer.size() / 3).then_some(())
        })
        .await;
        cluster.kill(0);
    };
    let (pulled, ()) = tokio::join!(pull, cut);
    pulled.expect_ok();
    let direct = origin.requests().into_iter().filter(|served| served.headers["user-agent"].contains("containerd"));
    assert_eq!(direct.count(), 0, "containerd never had to go to the origin itself");
    let asked = cluster.nodes[1]
        .log()
        .matches(&format!("method=GET subject=\"origin.test/{REPOSITORY}@{}", &layer.digest[..19]))
        .count();
    assert_eq!(asked, 1, "{}", cluster.nodes[1].log());
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_finishes_at_the_origin_when_its_daemon_is_killed_in_the_middle() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let (origin, image) = origin_with(708, &[24 * MIB]).await;
    let mut daemon = Daemon::start(settings(&origin.url())).await;
    let containerd = Containerd::start(&Place::Here).await;
    containerd.mirror(&mirror(&daemon), &origin.url());
    origin.limit(10 * MIB);
    let layer = &image.native().layers[0];
    let tag = tagged("v1");
    let pull = containerd.pull(&tag);
    let cut = async {
        eventually(TRANSFER, "a third being here", || async {
            let fetches = daemon.status().await.fetches;
            fetches.iter().any(|fetch| fetch.bytes > layer.size() / 3).then_some(())
        })
        .await;
        origin.limit(0);
        daemon.kill();
    };
    let (pulled, ()) = tokio::join!(pull, cut);
    pulled.expect_ok();
    let gets = origin.gets(&layer.digest);
    let last = gets.last().unwrap();
    assert!(last.headers["user-agent"].contains("containerd"), "{gets:?}");
    assert!(last.range().is_some_and(|range| range != "bytes=0-"), "{gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_pulls_over_cri_and_its_pull_secret_is_never_asked_for() {
    if !available(&["containerd"], true) {
        return;
    }
    let origin = OriginDouble::start().await;
    let image = ImageSpec::new(709, &[2 * MIB, 100]).build();
    origin.offer(&image, REPOSITORY, "v1");
    let daemon = Daemon::start(settings(&origin.url())).await;
    let containerd = Containerd::start(&Place::Here).await;
    containerd.mirror(&mirror(&daemon), &origin.url());
    let reference = containerd.cri_pull(&tagged("v1"), Some(("alice", "secret"))).await.unwrap();
    assert_eq!(reference, image.native().config.digest);
    for served in origin.requests() {
        assert!(!served.headers.contains_key("authorization"), "{served:?}");
        assert!(!served.headers["user-agent"].contains("containerd"), "{served:?}");
    }
    let missing = containerd.cri_pull(&tagged("nothing"), None).await;
    assert!(matches!(&missing, Err(CriError::Status(_, message)) if message.contains("not found")), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_pulls_warm_and_without_the_daemon() {
    if !available(&CONTAINERD, true) {
        return;
    }
    let mut stage = Stage::set(712).await;
    let second = Containerd::start(&Place::Here).await;
    second.mirror(&mirror(&stage.daemon), &stage.registry.url());
    let third = Containerd::start(&Place::Here).await;
    third.mirror(&mirror(&stage.daemon), &stage.registry.url());
    stage.containerd.cri_pull(&tagged("v1"), None).await.unwrap();
    assert_eq!(stage.registry.blob_gets().len(), stage.image.native().blobs().count(), "cold");
    stage.registry.forget();
    second.cri_pull(&tagged("v1"), None).await.unwrap();
    assert_eq!(stage.registry.blob_gets(), [], "warm");
    stage.daemon.kill();
    third.cri_pull(&tagged("v1"), None).await.unwrap();
    let gets = stage.registry.blob_gets();
    assert_eq!(gets.len(), stage.image.native().blobs().count(), "{gets:?}");
    assert!(gets.iter().all(|get| get.agent.contains("containerd")), "{gets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_is_told_in_time_when_origin_and_daemon_can_do_nothing() {
    if !available(&["containerd"], true) {
        return;
    }
    let (mut origin, _image) = origin_with(710, &[100]).await;
    let daemon = Daemon::start(settings(&origin.url())).await;
    let containerd = Containerd::start(&Place::Here).await;
    containerd.mirror(&mirror(&daemon), &origin.url());
    origin.down().await;
    let pulled = tokio::time::timeout(TRANSFER, containerd.cri_pull(&tagged("v1"), None)).await.unwrap();
    assert!(matches!(pulled, Err(CriError::Status(..))), "{pulled:?}");
    assert!(daemon.get(&manifest_path("v1")).send().await.unwrap().status().as_u16() >= 404);
}
