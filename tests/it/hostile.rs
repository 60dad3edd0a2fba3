//! A member of the cluster that lies about a blob: no client ever gets a false blob as a whole, and pulls succeed all the
//! same.

use std::time::Duration;

use shoal_tests::{
    daemon::{Cluster, Daemon},
    eventually,
    hostile::{Liar, Lie},
    image::{Blob, random_bytes},
};

use crate::{MIB, REPOSITORY, crash::wait_for_bytes, origin_with, settings};

const TRANSFER: Duration = Duration::from_secs(60);

/// Pulls until the blob is there. No answer may be a whole one and wrong.
async fn pull(daemon: &Daemon, blob: &Blob, lie: Lie) {
    let succeed = async {
        loop {
            let (status, body) = daemon.try_blob(REPOSITORY, &blob.digest).await;
            // A body that broke counts as empty.
            let whole = status == 200 && !body.is_empty();
            assert!(!whole || body == blob.bytes, "{lie:?}: false content was served as a whole\n{}", daemon.log());
            if whole {
                break;
            }
        }
    };
    let succeeded = tokio::time::timeout(TRANSFER, succeed).await;
    assert!(succeeded.is_ok(), "{lie:?}: no pull succeeded within {TRANSFER:?}\n{}", daemon.log());
}

async fn a_lie_does_no_harm(seed: u64, lie: Lie) {
    let (mut origin, image) = origin_with(seed, &[6 * MIB]).await;
    let cluster = Cluster::start(settings(&origin.url()), 3).await;
    let layer = &image.native().layers[0];
    let mut content = layer.bytes.to_vec();
    // The first chunk is true: a lie that begins like the truth.
    let from = content.len() / 3;
    let length = content.len() - from;
    content[from..].copy_from_slice(&random_bytes(seed + 1, length as u64));
    let mut nodes = Vec::new();
    for node in &cluster.nodes {
        nodes.push(node.contact().await);
    }
    let liar = Liar::start(&cluster.secret_file(), &nodes, layer, content, lie).await;
    let known = liar.contact().peer.to_string();
    for node in &cluster.nodes {
        eventually(TRANSFER, "the liar being a peer", || async {
            node.status().await.peers.iter().any(|peer| peer.name.short == known).then_some(())
        })
        .await;
    }
    pull(&cluster.nodes[0], layer, lie).await;
    assert!(liar.asked() > 0, "nobody believed it: the test tested nothing");
    wait_for_bytes(&cluster.nodes[0], layer, u64::MAX).await;
    // Now there is an honest holder, and no origin to fall back to.
    origin.down().await;
    pull(&cluster.nodes[1], layer, lie).await;
    pull(&cluster.nodes[2], layer, lie).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_sends_false_bytes_does_no_harm() {
    a_lie_does_no_harm(1000, Lie::Bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_signs_a_false_chain_does_no_harm() {
    a_lie_does_no_harm(1001, Lie::Chain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_never_sends_what_it_promised_does_no_harm() {
    a_lie_does_no_harm(1002, Lie::Silence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_sends_too_much_does_no_harm() {
    a_lie_does_no_harm(1003, Lie::Excess).await;
}
