//! The loop, turn by turn.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod streams;
mod tags;

use std::{fs, io::Write as _, net::Ipv4Addr};

use futures_util::FutureExt as _;
use shoal_proto::{
    chunk::{ChunkIndex, ChunkSet, Layout},
    digest::Algorithm,
    limits::Limits,
    peer::{Contact, PeerId, Place},
    swarm::{Input, Output, Restored},
    time::Time,
};
use tokio_util::task::TaskTracker;

use super::{
    Rendezvous,
    driver::{Driver, Fact},
    job::Job,
    *,
};
use crate::{
    access::Scope,
    dht::{Dht, DhtConfig},
    identity::Identity,
    metrics::Metrics,
    origin::{Kind, Origin, OriginTimeouts, Upstream, UpstreamSettings},
    quic::{DataPlane, DataPlaneConfig, PlaneEvent},
    secret::Secret,
    verify::Verifier,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A loop that turns when it is told to.
struct World {
    driver: Driver,
    node: Node,
    commands: mpsc::Receiver<Command>,
    content: Vec<u8>,
    digest: Digest,
    dir: tempfile::TempDir,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let identity = Identity::generate();
    let (events, _) = mpsc::channel(64);
    let (dht, plane) = bind(&identity, &events).await;
    let parts = Arc::new(Parts {
        identity,
        place: Place::default(),
        secret: Secret::none(),
        store: store.clone(),
        verifier: Verifier::default(),
        rendezvous: Rendezvous::new(dht.own(), &[]).unwrap(),
        dht,
        plane,
        origin: Origin::new(OriginTimeouts::default(), Vec::new(), Arc::default()),
        access: Arc::default(),
        metrics: Arc::new(Metrics::new()),
        limits: Limits::default(),
        sealed_only: false,
    });
    let (sender, commands) = mpsc::channel(1);
    let flights = Flights::new(Arc::clone(&parts.access));
    let shelf = Arc::new(Shelf::new(Arc::clone(&parts), sender.clone()));
    let driver = Driver::new(Arc::clone(&parts), flights.clone(), Arc::clone(&shelf), TaskTracker::new());
    let shared =
        Shared { commands: sender, store, sealed_only: false, readers: AtomicU64::new(1), flights, shelf, parts };
    let content = vec![7; 600 * 1024];
    let digest = Digest::of(Algorithm::Sha256, &content);
    World { driver, node: Node { shared: Arc::new(shared) }, commands, content, digest, dir }
}

/// Both planes on a port that is free for TCP and for UDP.
async fn bind(identity: &Identity, events: &mpsc::Sender<PlaneEvent>) -> (Dht, DataPlane) {
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
    fn want(&self) -> Want {
        let settings = UpstreamSettings {
            allow_private: true,
            ..UpstreamSettings::new("a.test", "http://127.0.0.1:1".parse().unwrap())
        };
        let upstream = Arc::new(Upstream::new(settings).unwrap());
        let source = Source { upstream, repository: "app".to_owned(), kind: Kind::Blob };
        Want { digest: self.digest, source, scope: Scope::Public }
    }

    fn store(&self) -> &Store {
        &self.node.shared.store
    }

    /// Begins a fetch of a blob of a size that an earlier one has left.
    fn begin(&mut self, size: u64) -> (Arc<Job>, Arc<Flight>) {
        let (flight, new) = self.node.shared.flights.join(self.digest);
        assert!(new);
        let job = Arc::new(Job::new(None, Arc::clone(&flight)));
        self.driver.jobs.insert(self.digest, Arc::clone(&job));
        let have = ChunkSet::empty(Layout::new(size).unwrap().count());
        let restored = Some(Restored { size, segments: Vec::new(), have });
        self.driver.swarm(Input::Wanted { digest: self.digest, restored });
        (job, flight)
    }

    /// The next fact about room in the store.
    async fn room(&mut self) -> Fact {
        loop {
            let fact = timeout(PATIENCE, self.driver.facts_in.recv()).await.unwrap().unwrap();
            if matches!(fact, Fact::Room { .. }) {
                return fact;
            }
        }
    }

    /// The next wish that readers send to the loop.
    async fn wanted(&mut self) -> Want {
        loop {
            let command = timeout(PATIENCE, self.commands.recv()).await.unwrap().unwrap();
            if let Command::Want { want, .. } = command {
                return want;
            }
        }
    }

    fn seal(&self) {
        let partial = self.store().create(&self.digest, self.content.len() as u64).unwrap();
        partial.file().write(0, &[self.content.clone().into()]).unwrap();
        partial.seal(&[]).unwrap();
    }
}

#[tokio::test]
async fn room_for_a_job_that_is_over_is_made_again_for_the_one_after_it() {
    let mut world = world().await;
    let size = world.content.len() as u64;
    let (former, flight) = world.begin(size);
    let late = world.room().await;
    world.driver.obey(Output::Discard { digest: world.digest });
    let current = Arc::clone(&world.driver.jobs[&world.digest]);
    world.driver.obey(Output::Sized { digest: world.digest, size });
    world.driver.fact(late);
    assert!(former.partial.borrow().is_none() && current.partial.borrow().is_none());
    assert!(matches!(flight.progress(|_| ChunkIndex::FIRST, false), Progress::Failed(OpenError::Corrupt)));
    let room = world.room().await;
    assert!(matches!(&room, Fact::Room { job, partial: Ok(_), .. } if Arc::ptr_eq(job, &current)), "{room:?}");
    world.driver.fact(room);
    let partial = current.partial.borrow().clone().flatten().unwrap();
    partial.file().write(0, &[world.content.clone().into()]).unwrap();
    partial.seal(&[]).unwrap();
}

#[tokio::test]
async fn room_of_another_size_than_the_machine_works_with_ends_the_fetch_and_is_not_kept() {
    let mut world = world().await;
    let (digest, size) = (world.digest, world.content.len() as u64);
    let (job, flight) = world.begin(size);
    let Fact::Room { partial, .. } = world.room().await else { panic!("no room") };
    partial.unwrap().discard().unwrap();
    let partial = world.store().create(&digest, size + 1);
    world.driver.fact(Fact::Room { digest, job, partial });
    assert!(matches!(flight.progress(|_| ChunkIndex::FIRST, false), Progress::Failed(_)));
    assert!(!world.driver.swarm.knows(&digest) && world.store().list().is_empty());
}

#[tokio::test]
async fn a_failed_dial_of_a_connected_peer_does_not_disconnect_it() {
    let mut world = world().await;
    let contact = Contact { peer: PeerId([3; 32]), address: (Ipv4Addr::LOCALHOST, 1).into() };
    let digest = world.digest;
    world.driver.event(PlaneEvent::Connected { contact, place: Place::default() });
    world.driver.event(PlaneEvent::DialFailed { peer: contact.peer });
    let mut out = Vec::new();
    world.driver.swarm.handle(Time::from_nanos(1), Input::Wanted { digest, restored: None }, &mut out);
    world.driver.swarm.handle(
        Time::from_nanos(2),
        Input::Located { digest, trackers: vec![contact], known: Vec::new() },
        &mut out,
    );
    assert!(out.iter().any(|order| matches!(order, Output::Send { peer, .. } if *peer == contact.peer)), "{out:?}");
    assert!(!out.iter().any(|order| matches!(order, Output::Dial { .. })), "{out:?}");
}

#[tokio::test]
async fn private_content_that_the_store_has_lost_goes_to_no_peer_from_the_open_file() {
    let mut world = world().await;
    let (digest, peer) = (world.digest, PeerId([3; 32]));
    assert!(world.driver.admits(peer, &digest), "there is nothing to see");
    // Of one chunk, which needs no segments.
    world.driver.swarm(Input::Held { digest, size: 7, segments: Vec::new() });
    assert!(world.driver.swarm.knows(&digest) && world.store().sealed_size(&digest).is_none());
    assert!(!world.driver.admits(peer, &digest));
}

#[tokio::test]
async fn a_fetch_for_another_repository_that_fails_there_is_begun_anew_for_whoever_joined_it() {
    let mut world = world().await;
    let denied = || Err(OpenError::Origin(OriginError::Denied { host: "a.test".to_owned() }));
    for (repository, anew) in [("elsewhere", true), ("app", false)] {
        let (flight, _) = world.node.shared.flights.join(world.digest);
        flight.ask_at(&Source { repository: repository.to_owned(), ..world.want().source });
        let opened = tokio::spawn({
            let (node, want) = (world.node.clone(), world.want());
            async move { node.open(want, 0, PATIENCE).await.map(drop) }
        });
        // It is aboard as soon as it has the flight.
        while Arc::strong_count(&flight) < 3 {
            tokio::task::yield_now().await;
        }
        world.node.shared.flights.end(&world.digest, denied());
        if anew {
            assert_eq!(world.wanted().await.source.repository, "app");
            world.node.shared.flights.end(&world.digest, denied());
        }
        assert!(matches!(opened.await.unwrap(), Err(OpenError::Origin(OriginError::Denied { .. }))));
        let more = std::iter::from_fn(|| world.commands.try_recv().ok());
        assert!(!more.into_iter().any(|command| matches!(command, Command::Want { .. })), "nothing more is wanted");
    }
}

/// A wish at an origin that says once that every blob has this size.
async fn answered(world: &World, size: usize) -> (Want, impl Future<Output = ()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let upstream = Upstream::new(UpstreamSettings::new("a.test", url.parse().unwrap())).unwrap();
    let source = Source { upstream: Arc::new(upstream), ..world.want().source };
    let answer = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
    };
    (Want { source, ..world.want() }, answer)
}

#[tokio::test]
async fn an_origin_that_says_yes_to_everything_opens_nothing() {
    let world = world().await;
    world.seal();
    for (size, admitted) in [(1234, false), (world.content.len(), true)] {
        let (want, answer) = answered(&world, size).await;
        let (answer_of_node, ()) = tokio::join!(world.node.admit(&want), answer);
        assert_eq!(answer_of_node.is_ok(), admitted, "{answer_of_node:?}");
        let share = world.node.shared.parts.access.share(&world.digest);
        assert_eq!(share == crate::access::Share::All, admitted);
    }
}

#[tokio::test]
async fn what_came_under_another_scope_meanwhile_is_asked_for_at_the_origin_and_not_refused() {
    let world = world().await;
    let (want, answer) = answered(&world, world.content.len()).await;
    let (flight, _) = world.node.shared.flights.join(world.digest);
    assert!(!world.node.shared.parts.access.begin(&world.digest, Scope::Private));
    let (boarded, ()) = tokio::join!(world.node.board(want), answer);
    assert!(Arc::ptr_eq(&boarded.unwrap().unwrap(), &flight));
}

#[tokio::test]
async fn a_reader_that_leaves_while_the_queue_is_full_leaves_no_flight_behind() {
    let world = world().await;
    world.node.shared.commands.try_send(Command::ReaderLeft { digest: world.digest, reader: ReaderId(0) }).unwrap();
    assert!(world.node.open(world.want(), 0, PATIENCE).now_or_never().is_none());
    assert!(world.node.shared.flights.current(&world.digest).is_none());
}

#[tokio::test]
async fn a_blob_that_has_rotted_is_forgotten_and_the_next_one_stays() {
    let mut world = world().await;
    world.seal();
    let digest = world.digest;
    // The chain is made when a shelf takes the blob first; the next shelf finds it, and has checked nothing yet.
    assert!(world.node.shared.shelf.take(digest).await.unwrap().is_some());
    let shelf = Shelf::new(Arc::clone(&world.node.shared.parts), world.node.shared.commands.clone());
    let blob = shelf.take(digest).await.unwrap().unwrap();
    world.driver.fact(Fact::Opened { digest, sealed: Some(Arc::clone(&blob)) });
    assert!(world.driver.swarm.knows(&digest));
    let hex = digest.to_string().split_once(':').unwrap().1.to_owned();
    let path = world.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"rot").unwrap();
    let error = blob.ensure(&Verifier::default(), ChunkIndex::FIRST).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    shelf.discard(digest, blob.file()).await;
    let command = world.commands.try_recv().unwrap();
    world.driver.command(command);
    assert!(!world.driver.swarm.knows(&digest) && world.store().sealed_size(&digest).is_none());
    world.seal();
    shelf.discard(digest, blob.file()).await;
    assert!(world.commands.try_recv().is_err() && world.store().sealed_size(&digest).is_some());
}
