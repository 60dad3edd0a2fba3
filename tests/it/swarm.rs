//! Several daemons and one origin.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use shoal_tests::{
    daemon::{Cluster, Daemon},
    eventually,
    image::{Blob, Image},
    origin::OriginDouble,
};

use crate::{
    MIB, REPOSITORY, blob_path, copies_max,
    crash::{rot, wait_for_bytes},
    gets_max, manifest_path, origin_with, settings,
};

/// How long a transfer of these tests may take before something is wrong.
const TRANSFER: Duration = Duration::from_secs(60);

/// All of an image, as a client that asks for everything at once.
async fn pull(daemon: &Daemon, image: &Image) {
    let manifests = image.manifests().map(async |manifest| {
        let response = daemon.get(&manifest_path(&manifest.digest)).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), manifest.bytes);
    });
    join_all(manifests).await;
    join_all(image.blobs().map(|blob| pull_blob(daemon, blob))).await;
}

async fn pull_blob(daemon: &Daemon, blob: &Blob) {
    let (status, body) = daemon.try_blob(REPOSITORY, &blob.digest).await;
    assert!(status == 200 && !body.is_empty(), "{} was not served: {status}\n{}", blob.digest, daemon.log());
    assert!(body == blob.bytes, "wrong bytes for {}\n{}", blob.digest, daemon.log());
}

fn copies(origin: &OriginDouble, image: &Image) -> f64 {
    origin.blob_bytes() as f64 / image.native().blob_bytes() as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_at_once_cost_the_origin_one_copy() {
    let (origin, image) = origin_with(500, &[6 * MIB, 100, 20 * MIB, MIB]).await;
    let cluster = Cluster::start(settings(&origin.url()), 5).await;
    origin.limit(20 * MIB);
    join_all(cluster.nodes.iter().map(|node| pull(node, &image))).await;
    let (mut moved, mut twice) = (false, 0);
    for content in image.blobs().chain(image.manifests()) {
        let (gets, most) = (origin.gets(&content.digest).len(), gets_max(content.size()));
        moved |= gets > 1;
        twice += usize::from(gets == 2 && most == 1);
        assert!(
            (1..=most.max(2)).contains(&gets),
            "{gets} GETs of {} ({} bytes)\n{}",
            content.digest,
            content.size(),
            logs(&cluster)
        );
    }
    // Two trackers that are asked in the same instant give a lease each. Where the machine is so busy that they do not hear of it
    // within `holders_patience`, as with other tests beside this one, both holders begin. It stays an exception.
    assert!(twice <= 1, "{twice} small ones came twice\n{}", logs(&cluster));
    let copies = copies(&origin, &image);
    assert!((1.0..=copies_max(moved)).contains(&copies), "{copies} copies\n{}", logs(&cluster));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_node_takes_nothing_from_the_origin() {
    let (origin, image) = origin_with(501, &[5 * MIB, 200]).await;
    let mut cluster = Cluster::start(settings(&origin.url()), 2).await;
    pull(&cluster.nodes[0], &image).await;
    origin.forget();
    pull(&cluster.nodes[1], &image).await;
    let late = cluster.add().await;
    pull(late, &image).await;
    let asked: Vec<_> = origin.requests().iter().map(|served| format!("{} {}", served.method, served.path)).collect();
    assert_eq!(asked, Vec::<String>::new(), "{}", logs(&cluster));
}

fn logs(cluster: &Cluster) -> String {
    cluster.nodes.iter().map(|node| format!("{}:\n{}", node.addresses().p2p, node.log())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_serve_while_the_origin_is_down() {
    let (mut origin, image) = origin_with(502, &[5 * MIB, 200]).await;
    let cluster = Cluster::start(settings(&origin.url()), 3).await;
    pull(&cluster.nodes[0], &image).await;
    origin.down().await;
    pull(&cluster.nodes[1], &image).await;
    pull(&cluster.nodes[2], &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_lease_holder_is_killed_the_others_complete_and_the_origin_sends_hardly_more() {
    the_lease_holder_ends(503, 0, |cluster, holder| cluster.kill(holder)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_lease_holder_freezes_the_others_complete_and_the_origin_sends_hardly_more() {
    // The kernel goes on taking in what the origin sends to a frozen process, up to its buffers.
    the_lease_holder_ends(507, 8 * MIB, |cluster, holder| cluster.nodes[holder].signal(Signal::STOP)).await;
}

async fn the_lease_holder_ends(seed: u64, buffers: u64, end: impl FnOnce(&mut Cluster, usize)) {
    let (origin, image) = origin_with(seed, &[24 * MIB]).await;
    let mut cluster = Cluster::start(settings(&origin.url()), 5).await;
    let layer = image.native().layers[0].clone();
    origin.limit(8 * MIB);
    let readers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| {
            let request = node.get(&blob_path(&layer.digest));
            tokio::spawn(async move { request.send().await?.bytes().await })
        })
        .collect();
    let holder = eventually(TRANSFER, "a lease holder being a third through", || lease_holder(&cluster, &layer)).await;
    end(&mut cluster, holder);
    for (at, reader) in readers.into_iter().enumerate().filter(|(at, _)| *at != holder) {
        let body = tokio::time::timeout(TRANSFER, reader).await.unwrap().unwrap();
        let body = body.unwrap_or_else(|error| panic!("node {at}: {error}\n{}", cluster.nodes[at].log()));
        assert!(body == layer.bytes, "node {at}: {} bytes", body.len());
    }
    let sent = origin.bytes_of(&layer.digest).saturating_sub(buffers);
    let copies = sent as f64 / layer.size() as f64;
    assert!(copies <= 1.1, "{copies:.3} copies");
}

/// Which node streams a blob from the origin, once it has a third of it.
async fn lease_holder(cluster: &Cluster, blob: &Blob) -> Option<usize> {
    for (at, node) in cluster.nodes.iter().enumerate() {
        let fetches = node.status().await.fetches;
        let ours = fetches.iter().find(|fetch| fetch.digest.to_string() == blob.digest);
        if ours.is_some_and(|fetch| fetch.lease && fetch.bytes > blob.size() / 3) {
            return Some(at);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_peer_dies_in_the_middle_the_answer_goes_on_from_elsewhere() {
    let (origin, image) = origin_with(504, &[24 * MIB]).await;
    let mut cluster = Cluster::start(settings(&origin.url()).with("--limits-upload=6MB/s"), 2).await;
    let layer = image.native().layers[0].clone();
    pull(&cluster.nodes[0], &image).await;
    origin.forget();
    let request = cluster.nodes[1].get(&blob_path(&layer.digest));
    let reader = tokio::spawn(async move { request.send().await?.bytes().await });
    eventually(TRANSFER, "a third having come from the peer", || async {
        let fetches = cluster.nodes[1].status().await.fetches;
        fetches.iter().any(|fetch| fetch.from_peers > layer.size() / 3).then_some(())
    })
    .await;
    cluster.kill(0);
    let body = tokio::time::timeout(TRANSFER, reader).await.unwrap().unwrap().unwrap();
    assert!(body == layer.bytes);
    let again = origin.bytes_of(&layer.digest);
    assert!(again > 0 && again < layer.size() * 3 / 4, "{again} of {} bytes came from the origin", layer.size());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_secret_is_no_peer() {
    let (origin, image) = origin_with(505, &[2 * MIB]).await;
    let cluster = Cluster::start(settings(&origin.url()), 2).await;
    pull(&cluster.nodes[0], &image).await;
    let stranger = Cluster::start(settings(&origin.url()), 1).await;
    let mut settings = settings(&origin.url());
    settings.secret = Some(stranger.secret_file());
    settings.bootstrap = cluster.nodes.iter().map(|node| node.addresses().p2p).collect();
    let outsider = Daemon::start(settings).await;
    origin.forget();
    pull(&outsider, &image).await;
    assert_eq!(origin.blob_bytes(), image.native().blob_bytes(), "all of it came from the origin");
    assert_eq!(outsider.status().await.dht_peers, 0);
    for node in &cluster.nodes {
        assert_eq!(node.status().await.dht_peers, 1, "only the other member");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_disk_rotted_does_no_harm() {
    let (mut origin, image) = origin_with(506, &[8 * MIB]).await;
    let mut cluster = Cluster::start(settings(&origin.url()), 3).await;
    let layer = image.native().layers[0].clone();
    pull(&cluster.nodes[0], &image).await;
    wait_for_bytes(&cluster.nodes[0], &layer, u64::MAX).await;
    rot(&cluster.nodes[0].data(), &layer.digest, 3 * MIB);
    pull_blob(&cluster.nodes[1], &layer).await;
    // With nobody else to ask the body may only end early.
    cluster.kill(1);
    origin.down().await;
    let (status, body) = cluster.nodes[2].try_blob(REPOSITORY, &layer.digest).await;
    assert!(status != 200 || body.is_empty(), "served whole: status {status}, {} bytes", body.len());
}
