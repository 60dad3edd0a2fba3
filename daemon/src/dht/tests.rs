#![allow(clippy::unwrap_used, reason = "tests")]
//! Real nodes on loopback.

use std::{io::Write, os::unix::fs::PermissionsExt};

use tokio::time::{Instant, sleep};

use super::*;

/// How long a change may take to reach every node, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn new_secret() -> Secret {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    file.write_all(Secret::generate_line().as_bytes()).unwrap();
    Secret::load(file.path()).unwrap()
}

async fn start(secret: &Secret, bootstrap: &[SocketAddr]) -> Dht {
    let config = DhtConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        identity: Identity::generate(),
        secret: secret.clone(),
        bootstrap: bootstrap.iter().map(ToString::to_string).collect(),
    };
    Dht::start(config).await.unwrap().0
}

/// A cluster whose nodes know the first one.
async fn cluster(secret: &Secret, size: usize) -> Vec<Dht> {
    let mut nodes = vec![start(secret, &[]).await];
    let first = nodes[0].own.address;
    for _ in 1..size {
        nodes.push(start(secret, &[first]).await);
    }
    nodes
}

/// Asks again and again until `good`; fails with the last answer when [`PATIENCE`] is over.
async fn eventually<T: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> T, good: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if good(&answer) {
            return answer;
        }
        assert!(Instant::now() < end, "{what}: {answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn all_know_one_another(nodes: &[Dht]) {
    for node in nodes {
        let others = nodes.len() - 1;
        eventually(
            "every node knows every other",
            async || node.peers().await,
            |peers| peers.len() == others && peers.iter().all(|peer| peer.connected),
        )
        .await;
    }
}

/// The nodes closest to `key` by definition: distance of the SHA-256 of the libp2p names.
fn closest(nodes: &[Dht], key: Key) -> Vec<Contact> {
    let target = libp2p::kad::KBucketKey::new(key.to_vec());
    let mut contacts: Vec<_> = nodes.iter().map(|node| node.own).collect();
    contacts.sort_by_key(|contact| {
        target.distance(&libp2p::kad::KBucketKey::from(crate::identity::to_libp2p(&contact.peer).unwrap()))
    });
    contacts.truncate(TRACKERS_MAX);
    contacts
}

#[tokio::test]
async fn all_nodes_agree_on_the_trackers_of_a_key() {
    let nodes = cluster(&new_secret(), 5).await;
    all_know_one_another(&nodes).await;
    for key in [[1; 32], [2; 32], [3; 32]] {
        let expected = closest(&nodes, key);
        for node in &nodes {
            assert_eq!(node.trackers(key).await, expected);
        }
    }
}

#[tokio::test]
async fn a_holder_is_found_by_the_others_until_it_is_gone() {
    let nodes = cluster(&new_secret(), 4).await;
    all_know_one_another(&nodes).await;
    let (seeker, holder) = (&nodes[3], &nodes[1]);
    assert_eq!(seeker.holders([7; 32]).await, []);
    assert!(holder.provide([7; 32]));
    let found =
        eventually("the holder is found", async || seeker.locate([7; 32]).await, |found| found.holders == [holder.own])
            .await;
    assert_eq!(found.trackers, closest(&nodes, [7; 32]));
    assert_eq!(holder.holders([7; 32]).await, [], "a node is not told of itself");
    holder.shutdown().await;
    eventually("the holder is forgotten", async || seeker.holders([7; 32]).await, Vec::is_empty).await;
}

#[tokio::test]
async fn a_newcomer_finds_holders_that_announced_before_it_came() {
    let secret = new_secret();
    let mut nodes = cluster(&secret, 3).await;
    all_know_one_another(&nodes).await;
    assert!(nodes[1].provide([7; 32]));
    let holder = nodes[1].own;
    eventually("announced", async || nodes[2].holders([7; 32]).await, |found| *found == [holder]).await;
    nodes.push(start(&secret, &[nodes[0].own.address]).await);
    nodes[3].ready().await;
    assert_eq!(nodes[3].holders([7; 32]).await, [holder]);
}

#[tokio::test]
async fn callers_that_look_for_the_same_key_all_get_the_answer() {
    let nodes = cluster(&new_secret(), 3).await;
    all_know_one_another(&nodes).await;
    assert!(nodes[1].provide([7; 32]));
    let holder = nodes[1].own;
    eventually("announced", async || nodes[2].holders([7; 32]).await, |found| *found == [holder]).await;
    let answers = futures_util::future::join_all((0..50).map(|_| nodes[2].holders([7; 32]))).await;
    assert!(answers.iter().all(|answer| *answer == [holder]), "{answers:?}");
}

#[tokio::test]
async fn a_ready_node_knows_its_cluster() {
    let nodes = cluster(&new_secret(), 4).await;
    all_know_one_another(&nodes).await;
    for node in &nodes {
        node.ready().await;
        assert_eq!(node.peers().await.len(), 3);
    }
}

#[tokio::test]
async fn a_node_with_another_secret_cannot_join() {
    let nodes = cluster(&new_secret(), 2).await;
    all_know_one_another(&nodes).await;
    let stranger = start(&new_secret(), &[nodes[0].own.address]).await;
    // Its attempts fail until its patience ends.
    stranger.ready().await;
    assert_eq!(stranger.peers().await, []);
    assert_eq!(stranger.trackers([1; 32]).await, [stranger.own]);
    for node in &nodes {
        assert!(node.peers().await.iter().all(|peer| peer.peer != stranger.own.peer));
    }
}

#[tokio::test]
async fn a_killed_node_is_no_tracker_any_more() {
    let secret = new_secret();
    let mut nodes = cluster(&secret, 3).await;
    // On a runtime of its own it can be ended at any point, as by a signal: without a goodbye.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let first = nodes[0].own.address;
    let doomed = runtime.spawn(async move { start(&secret, &[first]).await }).await.unwrap();
    nodes.push(doomed);
    all_know_one_another(&nodes).await;
    runtime.shutdown_background();
    let doomed = nodes.pop().unwrap();
    for node in &nodes {
        let left = eventually(
            "the dead leave",
            async || node.trackers([1; 32]).await,
            |trackers| trackers.iter().all(|tracker| tracker.peer != doomed.own.peer),
        )
        .await;
        assert_eq!(left, closest(&nodes, [1; 32]));
    }
}

#[tokio::test]
async fn a_node_that_restarts_elsewhere_is_found_there() {
    let secret = new_secret();
    let mut nodes = cluster(&secret, 3).await;
    all_know_one_another(&nodes).await;
    let identity = Identity::generate();
    let first = nodes[0].own.address;
    let config =
        DhtConfig { listen: "127.0.0.1:0".parse().unwrap(), identity, secret, bootstrap: vec![first.to_string()] };
    let (before, old) = Dht::start(config.clone()).await.unwrap();
    nodes.push(before);
    all_know_one_another(&nodes).await;
    // Both run for a moment, so that the address is a new one and the peers see the overlap of a quick restart.
    let (after, new) = Dht::start(config).await.unwrap();
    assert_ne!(old, new);
    nodes.pop().unwrap().shutdown().await;
    nodes.push(after);
    for key in [[1; 32], [2; 32]] {
        let expected = closest(&nodes, key);
        for node in &nodes {
            eventually("the new address", async || node.trackers(key).await, |found| *found == expected).await;
        }
    }
}

#[tokio::test]
async fn a_cluster_that_outgrows_the_table_still_agrees_on_trackers() {
    let nodes = cluster(&new_secret(), TABLE_ANSWERS + 2).await;
    for node in &nodes {
        eventually("a full table", async || node.peers().await.len(), |known| *known >= TABLE_ANSWERS).await;
    }
    assert!(nodes[5].provide([1; 32]));
    let expected = closest(&nodes, [1; 32]);
    for node in [&nodes[0], &nodes[1], &nodes[12], &nodes[21]] {
        eventually("the same trackers", async || node.trackers([1; 32]).await, |found| *found == expected).await;
        eventually("the holder", async || node.holders([1; 32]).await, |found| *found == [nodes[5].own]).await;
    }
}

#[tokio::test]
async fn a_node_alone_is_ready_at_once_and_its_own_tracker() {
    let node = start(&Secret::none(), &[]).await;
    node.ready().await;
    assert_eq!(node.locate([1; 32]).await, Located { trackers: vec![node.own], holders: Vec::new() });
}

#[tokio::test]
async fn a_node_whose_only_seed_is_itself_is_ready_and_alone() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = DhtConfig {
        listen: free,
        identity: Identity::generate(),
        secret: Secret::none(),
        bootstrap: vec![free.to_string(), format!("/dns4/localhost/tcp/{}", free.port())],
    };
    let (node, _) = Dht::start(config).await.unwrap();
    node.ready().await;
    assert_eq!(node.peers().await, []);
}

#[tokio::test]
async fn nodes_that_know_one_another_before_they_run_find_together() {
    let secret = new_secret();
    let late = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let early = start(&secret, &[late]).await;
    let config = DhtConfig {
        listen: late,
        identity: Identity::generate(),
        secret,
        bootstrap: vec![early.own.address.to_string()],
    };
    let (node, _) = Dht::start(config).await.unwrap();
    all_know_one_another(&[early, node]).await;
}

#[tokio::test]
async fn without_a_secret_only_loopback_is_listened_on() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let config = DhtConfig {
            listen: listen.parse().unwrap(),
            identity: Identity::generate(),
            secret: Secret::none(),
            bootstrap: Vec::new(),
        };
        assert!(matches!(Dht::start(config).await, Err(DhtError::NeedsSecret(_))));
    }
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_the_address() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config =
        DhtConfig { listen: address, identity: Identity::generate(), secret: Secret::none(), bootstrap: Vec::new() };
    let error = Dht::start(config).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn after_the_shutdown_a_node_still_answers_for_itself() {
    let node = start(&Secret::none(), &[]).await;
    node.shutdown().await;
    assert_eq!(node.trackers([1; 32]).await, [node.own]);
    assert_eq!(node.holders([1; 32]).await, []);
}

#[tokio::test]
async fn nodes_that_listen_everywhere_are_named_by_addresses_that_work() {
    let secret = new_secret();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bootstrap = nodes.first().map(|first: &Dht| format!("127.0.0.1:{}", first.own.address.port()));
        let config = DhtConfig {
            listen: "0.0.0.0:0".parse().unwrap(),
            identity: Identity::generate(),
            secret: secret.clone(),
            bootstrap: bootstrap.into_iter().collect(),
        };
        nodes.push(Dht::start(config).await.unwrap().0);
    }
    all_know_one_another(&nodes).await;
    for node in &nodes {
        for peer in node.peers().await {
            let same = nodes.iter().find(|other| other.own.peer == peer.peer).unwrap();
            assert_eq!(peer.address.port(), same.own.address.port());
            assert!(!peer.address.ip().is_unspecified());
            tokio::net::TcpStream::connect(peer.address).await.unwrap();
        }
    }
}
