//! Connections, messages, and their ends.

use std::sync::Arc;

use shoal_proto::wire::GOT_CHUNKS_MAX;

use super::*;
use crate::quic::SendError;

#[tokio::test]
async fn messages_go_both_ways_in_order() {
    let (mut a, mut b) = pair().await;
    for number in 0..500 {
        a.plane.send(b.peer, numbered(number)).unwrap();
        b.plane.send(a.peer, numbered(number + 1000)).unwrap();
    }
    for number in 0..500 {
        assert_eq!(b.message().await, (a.peer, numbered(number)));
        assert_eq!(a.message().await, (b.peer, numbered(number + 1000)));
    }
}

#[tokio::test]
async fn three_planes_tell_their_peers_apart() {
    let secret = fresh_secret();
    let mut nodes = [(); 3].map(|()| Node::start(config(&secret)));
    let [a, b, c] = &mut nodes;
    connect(a, b).await;
    connect(b, c).await;
    connect(c, a).await;
    for from in 0..3 {
        for to in [(from + 1) % 3, (from + 2) % 3] {
            nodes[from].plane.send(nodes[to].peer, numbered(from as u32)).unwrap();
            let sender = nodes[from].peer;
            assert_eq!(nodes[to].message().await, (sender, numbered(from as u32)));
        }
        assert_eq!(nodes[from].plane.connected().len(), 2);
    }
}

#[tokio::test]
async fn a_connected_peer_is_reported_with_its_address_and_traffic() {
    let (a, mut b) = pair().await;
    a.plane.send(b.peer, numbered(1)).unwrap();
    b.message().await;
    let [report] = a.plane.connected().try_into().unwrap();
    assert_eq!((report.peer, report.address), (b.peer, b.plane.local_address()));
    assert!(report.bytes_in > 0 && report.bytes_out > 0 && report.rtt > Duration::ZERO);
}

#[tokio::test]
async fn both_ends_learn_where_the_other_stands() {
    let secret = fresh_secret();
    let places = [Place::named(Some("eu-1"), Some("r7")), Place::named(Some("eu-2"), None)];
    let [mut a, mut b] = places.map(|place| Node::start(DataPlaneConfig { place, ..config(&secret) }));
    a.plane.dial(b.contact());
    let peers = [a.peer, b.peer];
    for (node, peer, expected) in [(&mut a, peers[1], places[1]), (&mut b, peers[0], places[0])] {
        match node.event().await {
            PlaneEvent::Connected { contact, place } => assert_eq!((contact.peer, place), (peer, expected)),
            other => panic!("expected a connection, got {other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_is_dropped_while_events_are_not_taken() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let mut b = Node::with_queue(config(&secret), 1);
    connect(&mut a, &mut b).await;
    for number in 0..1000 {
        a.plane.send(b.peer, numbered(number)).unwrap();
    }
    for number in 0..1000 {
        assert_eq!(b.message().await, (a.peer, numbered(number)));
    }
}

#[tokio::test]
async fn a_peer_that_takes_no_messages_is_cut_off() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let mut b = Node::with_queue(config(&secret), 1);
    connect(&mut a, &mut b).await;
    let chunks: Vec<_> = (0..GOT_CHUNKS_MAX as u32).map(|i| ChunkIndex(1 + i * 50)).collect();
    let message = Message::Got { digest: Digest::sha256([9; 32]), chunks };
    let mut result = Ok(());
    until("the queue is full", || {
        result = a.plane.send(b.peer, message.clone());
        result.is_err()
    })
    .await;
    assert_eq!(result, Err(SendError::Full));
    assert_eq!(a.disconnected().await, b.peer);
    assert_eq!(a.plane.send(b.peer, numbered(0)), Err(SendError::NotConnected));
}

#[tokio::test]
async fn a_second_dial_of_a_connected_peer_changes_nothing() {
    let (a, mut b) = pair().await;
    a.plane.dial(b.contact());
    b.plane.dial(a.contact());
    a.plane.send(b.peer, numbered(1)).unwrap();
    assert_eq!(b.message().await, (a.peer, numbered(1)));
    assert_eq!((a.plane.connected().len(), b.plane.connected().len()), (1, 1));
}

/// Both ends dial at the same instant. Whatever the interleaving, each sees one connection and no message is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_make_one_connection_and_lose_no_message() {
    let secret = Secret::none();
    for round in 0..30 {
        let a = Node::start(config(&secret));
        let b = Node::start(config(&secret));
        let start = Arc::new(tokio::sync::Barrier::new(2));
        let talk = |mut node: Node, other: Contact| {
            let start = Arc::clone(&start);
            tokio::spawn(async move {
                start.wait().await;
                node.plane.dial(other);
                assert_eq!(node.connected().await, other);
                for number in 0..20 {
                    node.plane.send(other.peer, numbered(number)).unwrap();
                }
                for number in 0..20 {
                    assert_eq!(node.message().await, (other.peer, numbered(number)), "round {round}");
                }
                node
            })
        };
        let (a_contact, b_contact) = (a.contact(), b.contact());
        let (a, b) = (talk(a, b_contact), talk(b, a_contact));
        let (mut a, mut b) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!((a.plane.connected().len(), b.plane.connected().len()), (1, 1));
        assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err(), "round {round}");
        a.plane.hangup(b.peer);
        assert_eq!(a.disconnected().await, b.peer);
        assert_eq!(b.disconnected().await, a.peer);
    }
}

#[tokio::test]
async fn a_hangup_ends_the_session_at_both_ends_and_a_new_dial_works() {
    let (mut a, mut b) = pair().await;
    a.plane.hangup(b.peer);
    assert_eq!(a.disconnected().await, b.peer);
    assert_eq!(b.disconnected().await, a.peer);
    connect(&mut b, &mut a).await;
}

#[tokio::test]
async fn a_redial_right_after_the_disconnection_is_not_lost() {
    let (mut a, mut b) = pair().await;
    for _ in 0..20 {
        a.plane.hangup(b.peer);
        assert_eq!(a.disconnected().await, b.peer);
        a.plane.dial(b.contact());
        assert_eq!(a.connected().await, b.contact());
        assert_eq!(b.disconnected().await, a.peer);
        assert_eq!(b.connected().await, a.contact());
    }
}

#[tokio::test]
async fn a_shutdown_is_told_to_peers() {
    let (mut a, b) = pair().await;
    b.plane.shutdown().await;
    assert_eq!(a.disconnected().await, b.peer);
}

#[tokio::test]
async fn a_dial_of_nobody_fails() {
    let mut a = Node::start(config(&Secret::none()));
    // Bound and silent: the address is nobody else's during the test.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let contact = Contact { peer: Identity::generate().peer(), address: silent.local_addr().unwrap() };
    a.plane.dial(contact);
    assert_eq!(a.dial_failed().await, contact.peer);
}

#[tokio::test]
async fn a_dial_of_another_identity_fails() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let mut b = Node::start(config(&secret));
    let stranger = Identity::generate().peer();
    a.plane.dial(Contact { peer: stranger, ..b.contact() });
    assert_eq!(a.dial_failed().await, stranger);
    connect(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_dial_of_oneself_fails() {
    let mut a = Node::start(config(&Secret::none()));
    a.plane.dial(a.contact());
    assert_eq!(a.dial_failed().await, a.peer);
}

#[tokio::test]
async fn a_peer_with_another_secret_never_connects() {
    let mut a = Node::start(config(&fresh_secret()));
    let mut b = Node::start(config(&fresh_secret()));
    a.plane.dial(b.contact());
    assert_eq!(a.dial_failed().await, b.peer);
    b.plane.dial(a.contact());
    assert_eq!(b.dial_failed().await, a.peer);
    assert!(a.events.try_recv().is_err() && b.events.try_recv().is_err());
    assert!(a.plane.connected().is_empty() && b.plane.connected().is_empty());
}

#[tokio::test]
async fn a_node_takes_no_more_connections_than_it_may() {
    let secret = Secret::none();
    let mut a = Node::start(DataPlaneConfig { connections: 1, ..config(&secret) });
    let mut b = Node::start(config(&secret));
    let mut c = Node::start(config(&secret));
    connect(&mut a, &mut b).await;
    c.plane.dial(a.contact());
    assert_eq!(c.dial_failed().await, a.peer);
    a.plane.dial(c.contact());
    assert_eq!(a.dial_failed().await, c.peer);
    b.plane.hangup(a.peer);
    assert_eq!(a.disconnected().await, b.peer);
    connect(&mut c, &mut a).await;
}

/// A node in a runtime of its own, which can be killed without a word to its peers.
async fn mortal(config: DataPlaneConfig) -> (tokio::runtime::Runtime, Node) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let node = runtime.spawn(async move { Node::start(config) }).await.unwrap();
    (runtime, node)
}

#[tokio::test]
async fn a_killed_peer_is_noticed() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let (runtime, mut b) = mortal(config(&secret)).await;
    connect(&mut a, &mut b).await;
    runtime.shutdown_background();
    assert_eq!(a.disconnected().await, b.peer);
}

#[tokio::test]
async fn a_restarted_peer_takes_the_place_of_its_former_self() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let identity = Identity::generate();
    let (runtime, mut b) = mortal(DataPlaneConfig { identity: identity.clone(), ..config(&secret) }).await;
    connect(&mut a, &mut b).await;
    runtime.shutdown_background();
    let mut reborn = Node::start(DataPlaneConfig { identity, ..config(&secret) });
    reborn.plane.dial(a.contact());
    assert_eq!(reborn.connected().await, a.contact());
    assert_eq!(a.disconnected().await, b.peer);
    assert_eq!(a.connected().await, reborn.contact());
    a.plane.send(b.peer, numbered(3)).unwrap();
    assert_eq!(reborn.message().await, (a.peer, numbered(3)));
}
