//! `tags = "cluster"`: the origin is asked once for all nodes.

use std::{path::PathBuf, sync::atomic::Ordering::Relaxed, time::Duration};

use futures_util::future::join_all;
use rustix::process::Signal;
use shoal_tests::{
    daemon::{Cluster, Daemon, Settings},
    eventually,
    image::ImageSpec,
    origin::{Auth, Fault, OriginDouble},
};
use tempfile::TempDir;

use crate::{REPOSITORY, SHOAL, manifest_path, origin_with};

/// How long things of these tests may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
const ACCOUNT: &str = "username = \"robot\"\npassword = \"word\"\n";

/// Settings of nodes whose upstream `origin.test` has these keys beside its URL; the directory holds their file.
fn settings(origin: &OriginDouble, keys: &str, ttl: &str) -> (Settings, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shoal.toml");
    let config = format!("[upstreams.\"origin.test\"]\nurl = \"{}\"\ntags = \"cluster\"\n{keys}", origin.url());
    std::fs::write(&file, config).unwrap();
    let settings = Settings { upstreams: Vec::new(), ..Settings::new(PathBuf::from(SHOAL), "") };
    (settings.with("--config").with(file.display().to_string()).with("--tag-ttl").with(ttl), directory)
}

/// Status and digest of a HEAD of a tag.
async fn head(node: &Daemon, tag: &str) -> (u16, String) {
    let response = node.head(&manifest_path(tag)).send().await.unwrap();
    let digest = response.headers().get("docker-content-digest");
    (response.status().as_u16(), digest.map(|digest| digest.to_str().unwrap().to_owned()).unwrap_or_default())
}

/// What clients do: the tag, then the manifest that it points at.
async fn pull(node: &Daemon, tag: &str) -> (u16, String) {
    let (status, digest) = head(node, tag).await;
    if status == 200 {
        let manifest = node.get(&manifest_path(&digest)).send().await.unwrap();
        assert_eq!(manifest.status(), 200, "{tag} = {digest}\n{}", node.log());
    }
    (status, digest)
}

async fn pulls(nodes: &[Daemon], tag: &str) -> Vec<(u16, String)> {
    join_all(nodes.iter().map(|node| pull(node, tag))).await
}

/// How often the origin was asked what the tag points at.
fn asked(origin: &OriginDouble, tag: &str) -> usize {
    let end = format!("/manifests/{tag}");
    origin.requests().iter().filter(|request| request.path.ends_with(&end)).count()
}

fn logs(cluster: &Cluster) -> String {
    cluster.nodes.iter().map(|node| format!("{}:\n{}", node.addresses().p2p, node.log())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_at_once_ask_the_origin_once_and_see_a_moved_tag_when_its_time_is_over() {
    let (origin, image) = origin_with(2400, &[1000]).await;
    let (settings, _directory) = settings(&origin, "", "8s");
    let cluster = Cluster::start(settings, 5).await;
    let expected = vec![(200, image.index.digest.clone()); 5];
    assert_eq!(pulls(&cluster.nodes, "v1").await, expected);
    assert_eq!(asked(&origin, "v1"), 1, "{}", logs(&cluster));
    let newer = ImageSpec::new(2401, &[1000]).one_platform().build();
    origin.offer(&newer, REPOSITORY, "v1");
    for node in &cluster.nodes {
        eventually(PATIENCE, "the node seeing the tag move", || async {
            let (status, digest) = pull(node, "v1").await;
            assert_eq!(status, 200, "{}", node.log());
            (digest == newer.index.digest).then_some(())
        })
        .await;
    }
    assert_eq!(asked(&origin, "v1"), 2, "once more for all\n{}", logs(&cluster));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_asked_pulls_by_a_tag_while_the_origin_is_down() {
    let (mut origin, image) = origin_with(2402, &[1000]).await;
    let (settings, _directory) = settings(&origin, "", "10m");
    let cluster = Cluster::start(settings, 3).await;
    assert_eq!(pulls(&cluster.nodes[..2], "v1").await, vec![(200, image.index.digest.clone()); 2]);
    origin.down().await;
    assert_eq!(pull(&cluster.nodes[2], "v1").await, (200, image.index.digest.clone()), "{}", logs(&cluster));
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_whose_trackers_are_dead_or_hang_are_resolved_all_the_same() {
    let (origin, image) = origin_with(2403, &[1000]).await;
    let tags: Vec<String> = (0..16).map(|number| format!("v{number}")).collect();
    for tag in &tags {
        origin.tag(REPOSITORY, tag, &image.index.digest);
    }
    let (settings, _directory) = settings(&origin, "", "10m");
    let mut cluster = Cluster::start(settings, 5).await;
    // Some have their record at those that end, and had them for their resolvers.
    for (at, tag) in tags.iter().take(8).enumerate() {
        assert_eq!(pull(&cluster.nodes[at % 5], tag).await.0, 200);
    }
    cluster.kill(0);
    cluster.nodes[1].signal(Signal::STOP);
    for tag in &tags {
        let expected = vec![(200, image.index.digest.clone()); 3];
        assert_eq!(pulls(&cluster.nodes[2..], tag).await, expected, "{tag}\n{}", logs(&cluster));
    }
    cluster.nodes[1].signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_asked_too_often_fails_nobody() {
    let (origin, image) = origin_with(2404, &[1000]).await;
    let (settings, _directory) = settings(&origin, "", "10m");
    let cluster = Cluster::start(settings, 5).await;
    origin.misbehave_times("/manifests/v1", 1, Fault::TooManyRequests(1));
    assert_eq!(pulls(&cluster.nodes, "v1").await, vec![(200, image.index.digest.clone()); 5], "{}", logs(&cluster));
    origin.tag(REPOSITORY, "v2", &image.index.digest);
    origin.misbehave("/manifests/v2", Fault::TooManyRequests(3600));
    for (status, _) in pulls(&cluster.nodes, "v2").await {
        assert_eq!(status, 503, "what makes clients go on\n{}", logs(&cluster));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_with_the_credential_share_what_it_shows() {
    let (origin, image) = origin_with(2405, &[1000]).await;
    origin.require(Auth::Basic("robot", "word"));
    let (with, _with) = settings(&origin, ACCOUNT, "10m");
    let (without, _without) = settings(&origin, "", "10m");
    let first = Daemon::start(with.clone()).await;
    let bootstrap = vec![first.addresses().p2p];
    let second = Daemon::start(Settings { bootstrap: bootstrap.clone(), ..with }).await;
    let stranger = Daemon::start(Settings { bootstrap, ..without }).await;
    for node in [&first, &second, &stranger] {
        node.wait_for_peers(2).await;
    }
    let granted = || {
        let requests = origin.requests();
        let granted = requests.iter().filter(|request| request.path.ends_with("/manifests/v1"));
        granted.filter(|request| request.status.load(Relaxed) == 200).count()
    };
    for node in [&first, &second] {
        assert_eq!(pull(node, "v1").await, (200, image.index.digest.clone()), "{}", node.log());
    }
    assert_eq!(granted(), 1, "{}{}", first.log(), second.log());
    assert_eq!(head(&stranger, "v1").await.0, 404);
    assert_eq!(granted(), 1);
}
