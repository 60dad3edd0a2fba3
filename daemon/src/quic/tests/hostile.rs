//! Peers that break the protocol, built on a bare QUIC endpoint.

use std::sync::Arc;

use quinn::{Connection, Endpoint};
use shoal_proto::wire::{self, FRAME_BYTES_MAX, Hello, VERSION};

use super::*;
use crate::{
    quic::{
        close::Close,
        handshake::{Control, Handshake},
        limits,
        tls::{SERVER_NAME, Tls},
    },
    secret::Role,
};

/// An endpoint with a sound certificate and bad manners.
struct Rogue {
    endpoint: Endpoint,
    identity: Identity,
}

impl Rogue {
    fn new() -> Self {
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        Self { endpoint, identity: Identity::generate() }
    }

    /// Connects up to the end of the TLS handshake.
    async fn connect(&self, to: Contact) -> Connection {
        let client = Tls::new(&self.identity).unwrap().client(Some(to.peer)).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(client));
        config.transport_config(limits::unproven_transport(128));
        self.endpoint.connect_with(config, to.address, SERVER_NAME).unwrap().await.unwrap()
    }

    /// Connects and proves the secret.
    async fn join(&self, to: &mut Node, secret: &Secret) -> (Connection, Control) {
        let connection = self.connect(to.contact()).await;
        let mut control = Handshake::dial(&connection, secret, Place::default()).await.unwrap().into_control();
        control.confirm().await.unwrap();
        assert_eq!(to.connected().await.peer, self.identity.peer());
        (connection, control)
    }
}

async fn closed(connection: &Connection) -> Close {
    let error = timeout(PATIENCE, connection.closed()).await.unwrap();
    Close::of_peer(&error).unwrap_or_else(|| panic!("closed by {error}"))
}

fn exporter(connection: &Connection) -> [u8; 32] {
    let mut exporter = [0; 32];
    connection.export_keying_material(&mut exporter, b"EXPORTER-shoal-1", b"").unwrap();
    exporter
}

/// Shows that nothing but a sound peer that connects now has ever reached the plane's events.
async fn nothing_happened(node: &mut Node, secret: &Secret) {
    let mut sound = Node::start(config(secret));
    sound.plane.dial(node.contact());
    assert_eq!(node.connected().await, sound.contact());
    assert_eq!(sound.connected().await, node.contact());
    assert_eq!(node.plane.connected().len(), 1);
}

#[tokio::test]
async fn a_peer_that_proves_nothing_is_refused_unheard() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let connection = rogue.connect(node.contact()).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    // A message where the hello belongs, of a kind that reads as another version, and a confirmation that nobody asked for.
    let message = Message::Unknown { digest: Digest::sha256([1; 32]) };
    send.write_all(&wire::encode_message(&message)).await.unwrap();
    send.write_all(&[1]).await.unwrap();
    assert_eq!(closed(&connection).await, Close::Version);
    assert!(receive.read(&mut [0; 1]).await.is_err(), "nothing was answered");
    nothing_happened(&mut node, &secret).await;
}

#[tokio::test]
async fn a_wrong_proof_is_answered_by_nothing_but_the_close() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let connection = rogue.connect(node.contact()).await;
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let proof = fresh_secret().prove(&exporter(&connection), Role::Dialer);
    send.write_all(&wire::encode_hello(&Hello { version: VERSION, proof, place: Place::default() })).await.unwrap();
    assert_eq!(closed(&connection).await, Close::Proof);
    assert!(receive.read(&mut [0; 1]).await.is_err(), "nothing was answered");
    nothing_happened(&mut node, &secret).await;
}

#[tokio::test]
async fn a_proof_of_another_connection_or_role_is_wrong() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let other = rogue.connect(node.contact()).await;
    for reflected in [false, true] {
        let connection = rogue.connect(node.contact()).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let proof = if reflected {
            secret.prove(&exporter(&connection), Role::Listener)
        } else {
            secret.prove(&exporter(&other), Role::Dialer)
        };
        send.write_all(&wire::encode_hello(&Hello { version: VERSION, proof, place: Place::default() })).await.unwrap();
        assert_eq!(closed(&connection).await, Close::Proof);
    }
    nothing_happened(&mut node, &secret).await;
}

#[tokio::test]
async fn another_version_is_refused() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let connection = rogue.connect(node.contact()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let proof = secret.prove(&exporter(&connection), Role::Dialer);
    send.write_all(&wire::encode_hello(&Hello { version: VERSION + 1, proof, place: Place::default() })).await.unwrap();
    assert_eq!(closed(&connection).await, Close::Version);
    nothing_happened(&mut node, &secret).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_dropped() {
    let node = Node::start(config(&Secret::none()));
    let rogue = Rogue::new();
    let connection = rogue.connect(node.contact()).await;
    assert_eq!(closed(&connection).await, Close::Late);
}

#[tokio::test]
async fn a_dialer_that_does_not_confirm_is_never_connected() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let connection = rogue.connect(node.contact()).await;
    let _control = Handshake::dial(&connection, &secret, Place::default()).await.unwrap().into_control();
    assert_eq!(closed(&connection).await, Close::Late);
    nothing_happened(&mut node, &secret).await;
}

#[tokio::test]
async fn an_unproven_peer_has_no_streams_and_little_window() {
    let node = Node::start(config(&Secret::none()));
    let rogue = Rogue::new();
    let connection = rogue.connect(node.contact()).await;
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    // A hello that never ends: claims the largest body, and more is sent than that.
    let length = (FRAME_BYTES_MAX as u32).to_le_bytes();
    send.write_all(&length).await.unwrap();
    let flood = vec![0; 1 << 20];
    let second = tokio::select! {
        biased;
        stream = connection.open_bi() => stream.is_ok(),
        Ok(()) = send.write_all(&flood) => panic!("the whole flood was taken"),
        _ = connection.closed() => false,
    };
    assert!(!second, "a second stream was opened before the proof");
}

#[tokio::test]
async fn hostile_frame_lengths_close_the_connection() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    for length in [0, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        let rogue = Rogue::new();
        let (connection, mut control) = rogue.join(&mut node, &secret).await;
        control.send.write_all(&length.to_le_bytes()).await.unwrap();
        assert_eq!(closed(&connection).await, Close::Protocol);
        assert_eq!(node.disconnected().await, rogue.identity.peer());
    }
}

#[tokio::test]
async fn a_frame_without_a_message_closes_the_connection() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let (connection, mut control) = rogue.join(&mut node, &secret).await;
    control.send.write_all(&[3, 0, 0, 0, 255, 255, 255]).await.unwrap();
    assert_eq!(closed(&connection).await, Close::Protocol);
    assert_eq!(node.disconnected().await, rogue.identity.peer());
}

#[tokio::test]
async fn a_broken_request_costs_its_own_stream_only() {
    let secret = fresh_secret();
    let mut node = Node::start(config(&secret));
    let rogue = Rogue::new();
    let (connection, mut control) = rogue.join(&mut node, &secret).await;
    let whole = wire::encode_ask(&ask(1));
    let twice = [&whole[..], &whole[..]].concat();
    for request in [&b""[..], &[1, 0, 0], &whole[..whole.len() - 1], &twice, &[0; 4096]] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        // The node may refuse to read on before all is written.
        send.write_all(request).await.ok();
        send.finish().ok();
        assert!(receive.read(&mut [0; 1]).await.is_err(), "{request:?}");
    }
    control.send.write_all(&wire::encode_message(&numbered(4))).await.unwrap();
    assert_eq!(node.message().await, (rogue.identity.peer(), numbered(4)));
}
