//! Planes on loopback, and peers that do not play by the rules.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod hostile;
mod sessions;
mod streams;

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use shoal_proto::{
    chain::{Ends, State},
    chunk::ChunkIndex,
    digest::Digest,
    peer::{Contact, PeerId, Place},
    wire::{Ask, Message},
};
use tokio::{sync::mpsc, time::timeout};

use super::{DataPlane, DataPlaneConfig, PlaneEvent, Reply};
use crate::{identity::Identity, secret::Secret};

/// Long enough for a busy machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A plane and its events.
struct Node {
    plane: DataPlane,
    events: mpsc::Receiver<PlaneEvent>,
    peer: PeerId,
}

fn config(secret: &Secret) -> DataPlaneConfig {
    DataPlaneConfig::new(([127, 0, 0, 1], 0).into(), Identity::generate(), secret.clone())
}

impl Node {
    fn start(config: DataPlaneConfig) -> Self {
        Self::with_queue(config, 64)
    }

    fn with_queue(config: DataPlaneConfig, events: usize) -> Self {
        let (sender, events) = mpsc::channel(events);
        let peer = config.identity.peer();
        Self { plane: DataPlane::bind(config, sender).unwrap(), events, peer }
    }

    fn contact(&self) -> Contact {
        Contact { peer: self.peer, address: self.plane.local_address() }
    }

    async fn event(&mut self) -> PlaneEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("a running plane")
    }

    async fn connected(&mut self) -> Contact {
        match self.event().await {
            PlaneEvent::Connected { contact, .. } => contact,
            other => panic!("expected a connection, got {other:?}"),
        }
    }

    async fn disconnected(&mut self) -> PeerId {
        match self.event().await {
            PlaneEvent::Disconnected { peer } => peer,
            other => panic!("expected a disconnection, got {other:?}"),
        }
    }

    async fn dial_failed(&mut self) -> PeerId {
        match self.event().await {
            PlaneEvent::DialFailed { peer } => peer,
            other => panic!("expected a failed dial, got {other:?}"),
        }
    }

    async fn message(&mut self) -> (PeerId, Message) {
        match self.event().await {
            PlaneEvent::Message { peer, message } => (peer, message),
            other => panic!("expected a message, got {other:?}"),
        }
    }

    async fn asked(&mut self) -> (PeerId, Ask, Reply) {
        match self.event().await {
            PlaneEvent::Asked { peer, ask, reply } => (peer, ask, reply),
            other => panic!("expected a request, got {other:?}"),
        }
    }
}

/// Two connected planes with the same secret.
async fn pair() -> (Node, Node) {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let mut b = Node::start(config(&secret));
    connect(&mut a, &mut b).await;
    (a, b)
}

async fn connect(a: &mut Node, b: &mut Node) {
    a.plane.dial(b.contact());
    assert_eq!(a.connected().await, b.contact());
    assert_eq!(b.connected().await, a.contact());
}

/// A secret that is no other test's.
fn fresh_secret() -> Secret {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path).unwrap();
    writeln!(file, "{}", Secret::generate_line()).unwrap();
    Secret::load(&path).unwrap()
}

fn ask(chunk: u32) -> Ask {
    let ends = Ends { before: State::INITIAL, after: None };
    Ask { digest: Digest::sha256([7; 32]), chunk: ChunkIndex(chunk), ends }
}

/// A message that carries a number.
fn numbered(number: u32) -> Message {
    Message::Subscribe { digest: Digest::sha256([9; 32]), frontier: ChunkIndex(number) }
}

/// Bytes that differ at every place within reach of a test.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn join(frames: &[Bytes]) -> Vec<u8> {
    frames.concat()
}

/// Yields until `done`, or panics after [`PATIENCE`].
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::task::yield_now().await;
    }
}
