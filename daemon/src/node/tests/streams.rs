//! Streams from the origin that begin where the state is not known, and orders to sign.

use axum::{
    Router,
    extract::State as Content,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use bytes::Bytes;
use shoal_proto::{
    chain::{Link, LinkEnd, State},
    swarm::RunId,
};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// An origin with one blob, which answers every range with exactly that.
async fn origin(content: Vec<u8>) -> (Source, AbortOnDropHandle<()>) {
    async fn answer(Content(content): Content<Bytes>, headers: HeaderMap) -> impl IntoResponse {
        let range = headers[header::RANGE].to_str().unwrap().strip_prefix("bytes=").unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().unwrap_or(content.len() - 1);
        let range = format!("bytes {from}-{to}/{}", content.len());
        (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], content.slice(from..=to))
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let router = Router::new().route("/{*path}", get(answer)).with_state(Bytes::from(content));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let settings = UpstreamSettings { allow_private: true, ..UpstreamSettings::new("a.test", url) };
    let upstream = Arc::new(Upstream::new(settings).unwrap());
    (Source { upstream, repository: "app".to_owned(), kind: Kind::Blob }, AbortOnDropHandle::new(server))
}

/// The states in front of the content's chunks, and what their links end in.
fn chain_of(content: &[u8]) -> (Vec<State>, Vec<LinkEnd>) {
    let layout = Layout::new(content.len() as u64).unwrap();
    let (mut states, mut ends) = (vec![State::INITIAL], Vec::new());
    for chunk in layout.chunks() {
        let range = layout.range(chunk);
        let mut link = Link::new(layout, chunk, states[chunk.at()]);
        link.update(&content[range.start as usize..range.end as usize]);
        let end = link.end(layout, chunk).unwrap();
        ends.push(end);
        if let LinkEnd::State(state) = end {
            states.push(state);
        }
    }
    (states, ends)
}

impl World {
    /// Begins a fetch that has room, and may ask the origin.
    async fn begin_at(&mut self, source: Source) -> (Arc<Job>, Arc<Flight>) {
        let (flight, _) = self.node.shared.flights.join(self.digest);
        let job = Arc::new(Job::new(Some(source), Arc::clone(&flight)));
        self.driver.jobs.insert(self.digest, Arc::clone(&job));
        let size = self.content.len() as u64;
        let have = ChunkSet::empty(Layout::new(size).unwrap().count());
        let restored = Some(Restored { size, segments: Vec::new(), have });
        self.driver.swarm(Input::Wanted { digest: self.digest, restored });
        let room = self.room().await;
        self.driver.fact(room);
        (job, flight)
    }

    async fn next_fact(&mut self, wanted: impl Fn(&Fact) -> bool) -> Fact {
        loop {
            let fact = timeout(PATIENCE, self.driver.facts_in.recv()).await.unwrap().unwrap();
            if wanted(&fact) {
                return fact;
            }
        }
    }

    /// How a stream told of its next chunk.
    async fn next_chunk(&mut self) -> (RunId, ChunkIndex, Option<LinkEnd>) {
        match self.next_fact(|fact| matches!(fact, Fact::Swarm(Input::OriginChunk { .. }))).await {
            Fact::Swarm(Input::OriginChunk { run, chunk, end, .. }) => (run, chunk, end),
            other => panic!("{other:?}"),
        }
    }

    async fn next_hashed(&mut self) -> Fact {
        self.next_fact(|fact| matches!(fact, Fact::Hashed { .. })).await
    }

    fn stream(&mut self, run: u64, from: u32, until: Option<u32>, before: Option<State>) {
        let (from, until) = (ChunkIndex(from), until.map(ChunkIndex));
        self.driver.obey(Output::PullOrigin { digest: self.digest, run: RunId(run), from, until, before });
    }
}

#[tokio::test]
async fn what_came_without_a_known_state_is_stored_unread_and_proven_by_hashing_it() {
    let mut world = world().await;
    let (source, _server) = origin(world.content.clone()).await;
    let (job, flight) = world.begin_at(source).await;
    let (states, ends) = chain_of(&world.content);
    // The later streams begin before the first has come there.
    world.stream(1, 2, None, None);
    assert_eq!(world.next_chunk().await, (RunId(1), ChunkIndex(2), None));
    world.stream(2, 1, Some(2), None);
    assert_eq!(world.next_chunk().await, (RunId(2), ChunkIndex(1), None));
    world.stream(3, 0, Some(1), Some(State::INITIAL));
    assert_eq!(world.next_chunk().await, (RunId(3), ChunkIndex(0), Some(ends[0])));
    for chunk in 0..3 {
        let progress = flight.progress(|_| ChunkIndex(chunk), false);
        assert!(matches!(progress, Progress::Waiting { some: false, .. }), "{progress:?}");
    }
    assert_eq!(job.sources(), (256 * 1024, 0), "only what was hashed counts");
    for chunk in [1, 2] {
        let before = states[chunk];
        world.driver.obey(Output::Hash { digest: world.digest, chunk: ChunkIndex(chunk as u32), before });
        let hashed = world.next_hashed().await;
        assert!(matches!(&hashed, Fact::Hashed { end: Some(end), .. } if *end == ends[chunk]), "{hashed:?}");
    }
    assert_eq!(ends[2], LinkEnd::Digest(world.digest));
    assert_eq!(job.sources(), (world.content.len() as u64, 0));
}

#[tokio::test]
async fn a_stored_chunk_that_is_hashed_from_another_state_ends_elsewhere() {
    let mut world = world().await;
    let (source, _server) = origin(world.content.clone()).await;
    world.begin_at(source).await;
    let (_, ends) = chain_of(&world.content);
    world.stream(1, 1, Some(2), None);
    world.next_chunk().await;
    world.driver.obey(Output::Hash { digest: world.digest, chunk: ChunkIndex(1), before: State([9; 32]) });
    let hashed = world.next_hashed().await;
    assert!(matches!(&hashed, Fact::Hashed { end: Some(end), .. } if *end != ends[1]), "{hashed:?}");
}

#[tokio::test]
async fn a_chunk_that_cannot_be_read_back_is_told_as_such() {
    let mut world = world().await;
    let (source, _server) = origin(world.content.clone()).await;
    world.begin_at(source).await;
    let path = world.dir.path().join("partial").join(world.digest.to_string().split_once(':').unwrap().1);
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    world.driver.obey(Output::Hash { digest: world.digest, chunk: ChunkIndex(1), before: State::INITIAL });
    let hashed = world.next_hashed().await;
    assert!(matches!(hashed, Fact::Hashed { end: None, .. }), "{hashed:?}");
}

#[tokio::test]
async fn states_are_signed_in_the_turn_that_orders_it() {
    let mut world = world().await;
    let (source, _server) = origin(world.content.clone()).await;
    world.begin_at(source).await;
    let (digest, size) = (world.digest, world.content.len() as u64);
    // The machine takes a signature for states that it knows, and it knows the first one.
    let order = Output::Sign { digest, size, from: ChunkIndex::FIRST, states: vec![State::INITIAL] };
    world.driver.obey(order);
    let [segment] = world.driver.swarm.segments(&digest) else { panic!("not signed") };
    assert_eq!(segment.author, world.node.shared.parts.identity.peer());
    let bytes = shoal_proto::claim::Segment::signed_bytes(&digest, size, segment.from, &segment.states);
    assert!(crate::identity::verify(&segment.author, &bytes, &segment.signature));
}
