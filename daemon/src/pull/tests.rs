//! Pulls by a real node from a small registry on loopback.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode, header},
    routing::get,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use shoal_proto::{
    digest::{Algorithm, Digest},
    limits::Limits,
    peer::Place,
    status::{PullProgress, PullRequest},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::{AbortOnDropHandle, TaskTracker},
};

use super::Puller;
use crate::{
    dht::{Dht, DhtConfig},
    identity::Identity,
    metrics::Metrics,
    node::{Node, Parts, Rendezvous},
    origin::{Origin, OriginTimeouts, Upstream, UpstreamSettings},
    quic::{DataPlane, DataPlaneConfig, PlaneEvent},
    registry::media::{OCI_INDEX, OCI_MANIFEST},
    secret::Secret,
    store::Store,
    verify::Verifier,
};

const NAME: &str = "origin.test:5000";

/// What the registry has.
#[derive(Debug, Default)]
struct Shelf {
    content: HashMap<String, Bytes>,
    /// Digests whose bodies never come.
    stuck: Vec<String>,
    /// Digests that were asked for, in order.
    asked: Mutex<Vec<String>>,
    ask: Notify,
}

impl Shelf {
    fn put(&mut self, content: impl Into<Bytes>) -> Digest {
        let content = content.into();
        let digest = Digest::of(Algorithm::Sha256, &content);
        self.content.insert(digest.to_string(), content);
        digest
    }

    fn put_named(&mut self, tag: &str, document: &Value) -> Digest {
        let bytes = Bytes::from(document.to_string());
        self.content.insert(tag.to_owned(), bytes.clone());
        self.put(bytes)
    }

    fn descriptor(&mut self, content: &[u8]) -> Value {
        json!({ "digest": self.put(content.to_vec()), "size": content.len() })
    }

    fn image(&mut self, tag: &str, layers: &[&[u8]]) -> Digest {
        let config = self.descriptor(format!("the config of {tag}").as_bytes());
        let layers: Vec<Value> = layers.iter().map(|layer| self.descriptor(layer)).collect();
        self.put_named(tag, &json!({ "mediaType": OCI_MANIFEST, "config": config, "layers": layers }))
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(State(shelf): State<Arc<Shelf>>, Path((kind, reference)): Path<(String, String)>) -> Response<Body> {
    shelf.asked.lock().unwrap_or_else(PoisonError::into_inner).push(reference.clone());
    shelf.ask.notify_one();
    let Some(content) = shelf.content.get(&reference).cloned() else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap();
    };
    let mut response = Response::builder()
        .header("docker-content-digest", Digest::of(Algorithm::Sha256, &content).to_string())
        .header(header::CONTENT_LENGTH, content.len());
    if kind == "manifests" {
        response = response.header(header::CONTENT_TYPE, OCI_MANIFEST);
    }
    let body = if shelf.stuck.contains(&reference) {
        Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>().boxed())
    } else {
        Body::from(content)
    };
    response.body(body).unwrap()
}

/// A node with one upstream.
struct World {
    puller: Puller,
    store: Store,
    shelf: Arc<Shelf>,
    _dir: tempfile::TempDir,
    _registry: AbortOnDropHandle<()>,
    _node: DropGuard,
}

async fn world(shelf: Shelf) -> World {
    let shelf = Arc::new(shelf);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let router = Router::new().route("/v2/app/{kind}/{reference}", get(answer)).with_state(Arc::clone(&shelf));
    let registry = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let upstream = UpstreamSettings { allow_private: true, ..UpstreamSettings::new(NAME, url) };
    let upstreams = BTreeMap::from([(NAME.to_owned(), Arc::new(Upstream::new(upstream).unwrap()))]);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (events, events_in) = mpsc::channel(64);
    let identity = Identity::generate();
    let (dht, plane) = bind(&identity, events).await;
    let metrics = Arc::new(Metrics::new());
    let origin = Origin::new(OriginTimeouts::default(), Vec::new(), Arc::clone(&metrics));
    let parts = Parts {
        identity,
        place: Place::default(),
        secret: Secret::none(),
        store: store.clone(),
        verifier: Verifier::default(),
        rendezvous: Rendezvous::new(dht.own(), &[]).unwrap(),
        dht,
        plane,
        origin: origin.clone(),
        access: Arc::default(),
        metrics,
        limits: Limits::default(),
        sealed_only: false,
    };
    let stop = CancellationToken::new();
    let node = Node::start(parts, events_in, &TaskTracker::new(), stop.clone());
    let puller = Puller::new(upstreams, None, node, origin);
    World { puller, store, shelf, _dir: dir, _registry: AbortOnDropHandle::new(registry), _node: stop.drop_guard() }
}

/// A port that is free for TCP and for UDP.
async fn bind(identity: &Identity, events: mpsc::Sender<PlaneEvent>) -> (Dht, DataPlane) {
    for _ in 0..16 {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let settings = DhtConfig { listen, identity: identity.clone(), secret: Secret::none(), bootstrap: Vec::new() };
        let (dht, listen) = Dht::start(settings).await.unwrap();
        let settings = DataPlaneConfig::new(listen, identity.clone(), Secret::none());
        if let Ok(plane) = DataPlane::bind(settings, events.clone()) {
            return (dht, plane);
        }
    }
    unreachable!("so many ports are free")
}

impl World {
    fn start(&self, image: &str, platform: Option<&str>) -> mpsc::Receiver<PullProgress> {
        let request = PullRequest { image: image.to_owned(), platform: platform.map(str::to_owned) };
        (self.puller.clone().source())(request)
    }

    /// All lines of a pull.
    async fn pull(&self, image: &str, platform: Option<&str>) -> Vec<PullProgress> {
        let mut lines = Vec::new();
        let mut receiver = self.start(image, platform);
        while let Some(line) = receiver.recv().await {
            lines.push(line);
        }
        lines
    }

    async fn failure(&self, image: &str) -> String {
        match self.pull(image, None).await.pop() {
            Some(PullProgress::Failed { message }) => message,
            other => unreachable!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_image_comes_with_all_its_parts_and_only_for_the_platform() {
    let mut shelf = Shelf::default();
    let layers: [&[u8]; 4] = [&[1; 300_000], b"two", b"three", b"four"];
    let wanted = shelf.image("arm", &layers);
    let other = shelf.image("amd", &[b"something else"]);
    let entry = |digest: Digest, architecture: &str, shelf: &Shelf| {
        let size = shelf.content[&digest.to_string()].len();
        json!({ "digest": digest, "size": size, "platform": { "os": "linux", "architecture": architecture } })
    };
    let entries = [entry(other, "amd64", &shelf), entry(wanted, "arm64", &shelf)];
    let index = shelf.put_named("v1", &json!({ "mediaType": OCI_INDEX, "manifests": entries }));
    let world = world(shelf).await;
    let lines = world.pull(&format!("{NAME}/app:v1"), Some("linux/arm64/v8")).await;
    let config = b"the config of arm".len() as u64;
    let bytes = config + layers.iter().map(|layer| layer.len() as u64).sum::<u64>();
    assert_eq!(lines[0], PullProgress::Resolved { digest: index, layers: 5, bytes });
    for layer in layers {
        let digest = Digest::of(Algorithm::Sha256, layer);
        let size = layer.len() as u64;
        assert!(lines.contains(&PullProgress::Layer { digest, size, have: size }), "{lines:?}");
        assert_eq!(world.store.sealed_size(&digest), Some(size));
    }
    assert!(
        matches!(lines.last(), Some(PullProgress::Done { digest, bytes: all, .. }) if *digest == index && *all == bytes)
    );
    assert!(world.store.sealed_size(&index).is_some() && world.store.sealed_size(&wanted).is_some());
    assert_eq!(world.store.sealed_size(&other), None);
    assert_eq!(world.store.list().len(), 7);
}

#[tokio::test]
async fn what_is_in_the_store_is_not_asked_for_again() {
    let mut shelf = Shelf::default();
    let digest = shelf.image("v1", &[b"one", b"two"]);
    let world = world(shelf).await;
    world.pull(&format!("{NAME}/app:v1"), None).await;
    let asked = world.shelf.asked().len();
    let lines = world.pull(&format!("{NAME}/app@{digest}"), None).await;
    assert!(matches!(lines.last(), Some(PullProgress::Done { .. })), "{lines:?}");
    assert_eq!(world.shelf.asked().len(), asked);
}

#[tokio::test]
async fn a_pull_that_cannot_be_is_told_why() {
    let mut shelf = Shelf::default();
    let config = json!({ "digest": shelf.put("config"), "size": 6 });
    let liar = json!({ "digest": shelf.put("seven b"), "size": 5 });
    let lost = json!({ "digest": Digest::of(Algorithm::Sha256, b"lost"), "size": 4 });
    shelf.put_named("liar", &json!({ "mediaType": OCI_MANIFEST, "config": config, "layers": [liar] }));
    shelf.put_named("lost", &json!({ "mediaType": OCI_MANIFEST, "config": config, "layers": [lost] }));
    shelf.put_named("thing", &json!({ "mediaType": "application/vnd.example+json" }));
    let world = world(shelf).await;
    for (image, told) in [
        ("evil.test/app", "--upstream evil.test=https://evil.test"),
        ("app", "default_upstream"),
        ("origin.test:5000/App", "not a repository name"),
        ("origin.test:5000/app:v9", "has no tag v9 of app"),
        ("origin.test:5000/app:liar", "has 7 bytes, but its size is said to be 5"),
        ("origin.test:5000/app:lost", "layer sha256:"),
        ("origin.test:5000/app:thing", "which is no image"),
    ] {
        let message = world.failure(image).await;
        assert!(message.contains(told), "{image}: {message}");
    }
}

#[tokio::test]
async fn a_pull_that_stands_still_ends_and_tells_what_it_waited_for() {
    let mut shelf = Shelf::default();
    shelf.image("v1", &[b"stuck", b"two"]);
    let stuck = Digest::of(Algorithm::Sha256, b"stuck");
    shelf.stuck.push(stuck.to_string());
    let mut world = world(shelf).await;
    world.puller.idle = Duration::from_millis(500);
    let message = world.failure(&format!("{NAME}/app:v1")).await;
    assert!(message.contains(&format!("waited for layer {stuck} (0 of 5 bytes)")), "{message}");
}

#[tokio::test]
async fn a_pull_whose_client_has_gone_asks_for_nothing_more() {
    let mut shelf = Shelf::default();
    let layers: [&[u8]; 3] = [b"one", b"two", b"three"];
    shelf.image("v1", &layers);
    let stuck = layers.map(|layer| Digest::of(Algorithm::Sha256, layer).to_string());
    shelf.stuck.push(Digest::of(Algorithm::Sha256, b"the config of v1").to_string());
    shelf.stuck.extend(stuck.clone());
    let world = world(shelf).await;
    let (lines, receiver) = mpsc::channel(64);
    let request = PullRequest { image: format!("{NAME}/app:v1"), platform: None };
    let pull = tokio::spawn(world.puller.clone().run(request, lines));
    while !world.shelf.asked().contains(&stuck[1]) {
        world.shelf.ask.notified().await;
    }
    drop(receiver);
    pull.await.unwrap();
    assert!(!world.shelf.asked().contains(&stuck[2]));
}
