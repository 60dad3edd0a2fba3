//! A few machines wired in memory: every message takes a millisecond, every chunk a fixed time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::{
    chain::{Expected, LinkEnd, State},
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Signature,
    tracker::{self, Tracker},
};

mod claims;
mod lease;
mod near;
mod peers;
mod rig;

const HOP: Duration = Duration::from_millis(1);
const CHUNK: Duration = Duration::from_millis(10);
const SIZE: u64 = 40 * 256 * 1024 - 7;

/// What the world does when its time comes.
#[derive(Debug)]
enum Event {
    Swarm(usize, Input),
    Tracker(usize, tracker::Input),
    Origin { node: usize, digest: Digest, run: RunId, chunk: ChunkIndex, until: Option<ChunkIndex>, opened: bool },
}

struct Node {
    swarm: Swarm,
    tracker: Tracker,
    alive: bool,
    complete: bool,
    failed: Option<FetchError>,
    have: BTreeSet<ChunkIndex>,
    cancelled: BTreeSet<PullId>,
    stopped: BTreeSet<RunId>,
    /// Streams whose chunks are stored unhashed.
    raw: BTreeSet<RunId>,
}

struct World {
    now: Time,
    sequence: u64,
    queue: BTreeMap<(Time, u64), Event>,
    nodes: Vec<Node>,
    size: u64,
    origin_bytes: u64,
    origin_runs: u32,
    origin: Option<OriginFailure>,
    origin_up: bool,
    liars: BTreeSet<usize>,
    corrupt_reports: BTreeSet<PeerId>,
    trackers: Vec<usize>,
}

fn peer(node: usize) -> PeerId {
    let mut id = [0; 32];
    id[0] = u8::try_from(node).expect("few nodes");
    PeerId(id)
}

fn contact(node: usize) -> Contact {
    Contact { peer: peer(node), address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1000 + node as u16)) }
}

fn digest() -> Digest {
    Digest::sha256([7; 32])
}

/// The true state in front of a chunk of the test's blob.
fn state(chunk: ChunkIndex) -> State {
    if chunk == ChunkIndex::FIRST { State::INITIAL } else { State([chunk.0 as u8; 32]) }
}

/// What a chunk's link truly ends in.
fn link_end(digest: Digest, layout: Layout, chunk: ChunkIndex) -> LinkEnd {
    if chunk == layout.last() { LinkEnd::Digest(digest) } else { LinkEnd::State(state(chunk.next())) }
}

impl World {
    fn new(nodes: usize, limits: &Limits) -> Self {
        let node = |at: usize| Node {
            swarm: Swarm::new(peer(at), Place::default(), limits.clone(), at as u64),
            tracker: Tracker::new(limits.clone(), at as u64),
            alive: true,
            complete: false,
            failed: None,
            have: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            stopped: BTreeSet::new(),
            raw: BTreeSet::new(),
        };
        Self {
            now: Time::ZERO,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: (0..nodes).map(node).collect(),
            size: SIZE,
            origin_bytes: 0,
            origin_runs: 0,
            origin: None,
            origin_up: true,
            liars: BTreeSet::new(),
            corrupt_reports: BTreeSet::new(),
            trackers: (0..nodes.min(3)).collect(),
        }
    }

    fn layout(&self) -> Layout {
        Layout::new(self.size).expect("small")
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    fn want(&mut self, node: usize) {
        self.push(Duration::ZERO, Event::Swarm(node, Input::Wanted { digest: digest(), restored: None }));
    }

    fn kill(&mut self, dead: usize) {
        self.nodes[dead].alive = false;
        for node in 0..self.nodes.len() {
            self.push(HOP * 20, Event::Swarm(node, Input::Disconnected { peer: peer(dead) }));
            self.push(HOP * 20, Event::Tracker(node, tracker::Input::Disconnected { peer: peer(dead) }));
        }
    }

    /// Runs until `done` holds or `limit` has passed; returns whether it held.
    fn run(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            let timers = self.nodes.iter().enumerate().filter(|(_, node)| node.alive).flat_map(|(at, node)| {
                let swarm = node.swarm.deadline().map(|time| (time, at, false));
                let tracker = node.tracker.deadline().map(|time| (time, at, true));
                swarm.into_iter().chain(tracker)
            });
            let timer = timers.min();
            let event = self.queue.keys().next().copied();
            match (timer, event) {
                (Some((time, at, tracker)), event) if event.is_none_or(|(next, _)| time < next) => {
                    assert!(time > self.now || self.sequence < 1_000_000, "a machine spins at {time:?}");
                    self.sequence += 1;
                    self.now = self.now.max(time);
                    if self.now > end {
                        return false;
                    }
                    let event = if tracker {
                        Event::Tracker(at, tracker::Input::Elapsed)
                    } else {
                        Event::Swarm(at, Input::Elapsed)
                    };
                    self.happen(event);
                }
                (_, Some(key)) => {
                    self.now = self.now.max(key.0);
                    if self.now > end {
                        return false;
                    }
                    let event = self.queue.remove(&key).expect("just seen");
                    self.happen(event);
                }
                (_, None) => return false,
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Swarm(at, input) if self.nodes[at].alive => {
                if let Input::Pulled { pull, verdict, .. } = &input {
                    if self.nodes[at].cancelled.contains(pull) {
                        return;
                    }
                    assert_ne!(*verdict, Verdict::Disk);
                }
                let mut out = Vec::new();
                self.nodes[at].swarm.handle(self.now, input, &mut out);
                for order in out {
                    self.obey(at, order);
                }
            }
            Event::Tracker(at, input) if self.nodes[at].alive => {
                let mut out = Vec::new();
                self.nodes[at].tracker.handle(self.now, input, &mut out);
                for tracker::Send { peer: to, message } in out {
                    let input = Input::Received { peer: peer(at), message };
                    self.push(HOP, Event::Swarm(usize::from(to.0[0]), input));
                }
            }
            Event::Origin { node, digest, run, chunk, until, opened } => {
                self.origin(node, digest, run, chunk, until, opened)
            }
            Event::Swarm(..) | Event::Tracker(..) => {}
        }
    }

    fn origin(
        &mut self,
        node: usize,
        digest: Digest,
        run: RunId,
        chunk: ChunkIndex,
        until: Option<ChunkIndex>,
        opened: bool,
    ) {
        if !self.nodes[node].alive || self.nodes[node].stopped.contains(&run) {
            return;
        }
        if !self.origin_up {
            let failure = Some(self.origin.unwrap_or(OriginFailure::TRANSIENT));
            self.push(HOP, Event::Swarm(node, Input::OriginEnded { digest, run, failure }));
            return;
        }
        let layout = self.layout();
        if !opened {
            self.push(HOP, Event::Swarm(node, Input::OriginOpened { digest, run, size: self.size }));
            self.push(CHUNK, Event::Origin { node, digest, run, chunk, until, opened: true });
            return;
        }
        self.origin_bytes += layout.len(chunk);
        self.nodes[node].have.insert(chunk);
        let end = (!self.nodes[node].raw.contains(&run)).then(|| link_end(digest, layout, chunk));
        self.push(Duration::ZERO, Event::Swarm(node, Input::OriginChunk { digest, run, chunk, end }));
        if chunk == layout.last() || until == Some(chunk.next()) {
            self.push(HOP, Event::Swarm(node, Input::OriginEnded { digest, run, failure: None }));
        } else {
            self.push(CHUNK, Event::Origin { node, digest, run, chunk: chunk.next(), until, opened: true });
        }
    }

    fn obey(&mut self, at: usize, order: Output) {
        match order {
            Output::Locate { digest } => {
                let trackers = self.trackers.iter().map(|node| contact(*node)).collect();
                self.push(HOP, Event::Swarm(at, Input::Located { digest, trackers, known: Vec::new() }));
                self.push(HOP, Event::Swarm(at, Input::Holders { digest, holders: Vec::new() }));
            }
            Output::Dial { contact } => {
                let to = usize::from(contact.peer.0[0]);
                if self.nodes[to].alive {
                    self.push(HOP * 2, Event::Swarm(at, Input::Connected { peer: peer(to), place: Place::default() }));
                    self.push(HOP * 2, Event::Swarm(to, Input::Connected { peer: peer(at), place: Place::default() }));
                } else {
                    self.push(HOP * 500, Event::Swarm(at, Input::Disconnected { peer: peer(to) }));
                }
            }
            Output::Send { peer: to, message } => self.deliver(at, usize::from(to.0[0]), message),
            Output::Pull { pull, peer: from, digest, chunk, expected } => {
                self.pull(at, pull, usize::from(from.0[0]), digest, chunk, expected);
            }
            Output::CancelPull { pull } => {
                self.nodes[at].cancelled.insert(pull);
            }
            Output::PullOrigin { digest, run, from, until, before } => {
                match before {
                    Some(before) => assert_eq!(before, state(from)),
                    None => {
                        self.nodes[at].raw.insert(run);
                    }
                }
                self.origin_runs += 1;
                self.push(HOP, Event::Origin { node: at, digest, run, chunk: from, until, opened: false });
            }
            Output::Hash { digest, chunk, before } => {
                assert_eq!(before, state(chunk));
                assert!(self.nodes[at].have.contains(&chunk), "only what is stored can be hashed");
                let end = Some(link_end(digest, self.layout(), chunk));
                self.push(HOP, Event::Swarm(at, Input::Hashed { digest, chunk, end }));
            }
            Output::Sign { digest, from, states, .. } => {
                let segment = Segment { author: peer(at), from, states, signature: Signature([0; 64]) };
                self.push(Duration::ZERO, Event::Swarm(at, Input::Signed { digest, segment: segment.into() }));
            }
            Output::StopOrigin { run, .. } => {
                self.nodes[at].stopped.insert(run);
            }
            Output::Proven { digest } => {
                self.nodes[at].complete = true;
                assert_eq!(self.nodes[at].have.len() as u32, self.layout().count());
                let states = self.layout().chunks().map(state).collect();
                let segment =
                    Segment { author: peer(at), from: ChunkIndex::FIRST, states, signature: Signature([0; 64]) };
                self.push(HOP, Event::Swarm(at, Input::Sealed { digest, segments: vec![segment.into()] }));
            }
            Output::Failed { why, .. } => self.nodes[at].failed = Some(why),
            Output::Report(super::Event::CorruptChunk { peer, .. }) => {
                self.corrupt_reports.insert(peer);
            }
            Output::Discard { .. } => self.nodes[at].have.clear(),
            Output::Serve { .. }
            | Output::Refuse { .. }
            | Output::Announce { .. }
            | Output::Sized { .. }
            | Output::Arrived { .. }
            | Output::Report(_) => {}
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let event = match message {
            Message::Join(join) => Event::Tracker(to, tracker::Input::Joined { contact: contact(from), join }),
            Message::Leave { digest } => Event::Tracker(to, tracker::Input::Left { peer: peer(from), digest }),
            Message::Joined { .. }
            | Message::Revoked { .. }
            | Message::Subscribe { .. }
            | Message::Unsubscribe { .. }
            | Message::Have { .. }
            | Message::Got { .. }
            | Message::Fresh { .. }
            | Message::Peers { .. }
            | Message::Segment { .. }
            | Message::Unknown { .. }
            | Message::Entitled { .. }
            | Message::Tag { .. } => Event::Swarm(to, Input::Received { peer: peer(from), message }),
        };
        self.push(HOP, event);
    }

    fn pull(&mut self, at: usize, pull: PullId, from: usize, digest: Digest, chunk: ChunkIndex, expected: Expected) {
        assert_eq!(expected.before, state(chunk));
        assert!(expected.end.is_some(), "a chunk must be verifiable before it is asked for");
        if self.nodes[from].alive {
            let ask = AskId(self.sequence);
            let served = Event::Swarm(from, Input::Served { ask });
            let ends = expected.ends();
            self.push(HOP, Event::Swarm(from, Input::Asked { ask, peer: peer(at), digest, chunk, ends }));
            self.push(CHUNK, served);
        }
        let (after, verdict) = if !self.nodes[from].alive {
            (HOP * 100, Verdict::Link)
        } else if self.liars.contains(&from) {
            (CHUNK, Verdict::Corrupt)
        } else if self.nodes[from].have.contains(&chunk) {
            self.nodes[at].have.insert(chunk);
            (CHUNK, Verdict::Good)
        } else {
            (HOP, Verdict::Missing)
        };
        self.push(after, Event::Swarm(at, Input::Pulled { digest, pull, verdict }));
    }

    fn all_complete(&self) -> bool {
        self.nodes.iter().all(|node| !node.alive || node.complete)
    }

    fn describe(&self) -> String {
        let nodes = self.nodes.iter().map(|node| format!("{:?} {:?}", node.swarm.fetches().next(), node.failed));
        format!("at {:?}, {} runs: {}", self.now, self.origin_runs, nodes.collect::<Vec<_>>().join("\n"))
    }

    fn copies(&self) -> f64 {
        self.origin_bytes as f64 / self.size as f64
    }
}

fn flash_crowd(nodes: usize) -> World {
    let mut world = World::new(nodes, &Limits::default());
    for node in 0..nodes {
        world.want(node);
    }
    world
}

#[test]
fn one_node_alone_fetches_from_the_origin() {
    let mut world = flash_crowd(1);
    assert!(world.run(Duration::from_secs(10), World::all_complete));
    assert_eq!((world.origin_bytes, world.origin_runs), (SIZE, 1));
}

#[test]
fn a_crowd_that_starts_at_once_costs_the_origin_one_copy() {
    for nodes in [2, 5, 8, 40] {
        let mut world = flash_crowd(nodes);
        assert!(world.run(Duration::from_secs(20), World::all_complete), "{nodes} nodes: {}", world.describe());
        assert_eq!((world.origin_bytes, world.origin_runs), (SIZE, 1), "{nodes} nodes");
    }
}

#[test]
fn a_dead_lease_holder_is_replaced_at_the_first_missing_byte() {
    for dead in 0..5 {
        let mut world = flash_crowd(5);
        let half = SIZE / 2;
        assert!(world.run(Duration::from_secs(10), |world| world.origin_bytes > half));
        world.kill(dead);
        assert!(world.run(Duration::from_secs(30), World::all_complete), "node {dead} killed");
        assert!(world.copies() <= 1.3, "{} copies after node {dead} was killed", world.copies());
    }
}

#[test]
fn a_late_node_takes_nothing_from_the_origin() {
    let mut world = World::new(4, &Limits::default());
    world.want(1);
    assert!(world.run(Duration::from_secs(10), |world| world.nodes[1].complete));
    world.want(3);
    assert!(world.run(Duration::from_secs(10), |world| world.nodes[3].complete));
    assert_eq!(world.origin_bytes, SIZE);
}

#[test]
fn without_any_tracker_a_pull_still_completes() {
    let mut world = World::new(3, &Limits::default());
    world.trackers = Vec::new();
    for node in 0..3 {
        world.want(node);
    }
    assert!(world.run(Duration::from_secs(20), World::all_complete));
}

#[test]
fn a_missing_blob_fails_at_once_and_a_flaky_origin_does_not() {
    let mut world = flash_crowd(3);
    world.origin_up = false;
    world.origin = Some(OriginFailure::Refused);
    assert!(world.run(Duration::from_secs(4), |world| world.nodes.iter().all(|node| node.failed.is_some())));

    let mut world = flash_crowd(3);
    world.origin_up = false;
    world.run(Duration::from_millis(300), |_| false);
    world.origin_up = true;
    assert!(world.run(Duration::from_secs(20), World::all_complete));
    assert_eq!(world.origin_bytes, SIZE);
}

#[test]
fn a_liar_is_reported_and_does_not_stop_the_others() {
    let mut world = flash_crowd(6);
    world.liars.insert(5);
    assert!(world.run(Duration::from_secs(30), |world| world.nodes.iter().take(5).all(|node| node.complete)));
    assert!(world.corrupt_reports.is_subset(&BTreeSet::from([peer(5)])));
}

#[test]
fn a_small_blob_goes_to_everybody_too() {
    for size in [0, 1, 1000, 256 * 1024, 256 * 1024 + 1] {
        let mut world = World::new(5, &Limits::default());
        world.size = size;
        for node in 0..5 {
            world.want(node);
        }
        assert!(world.run(Duration::from_secs(10), World::all_complete), "{size} bytes");
        assert_eq!((world.origin_bytes, world.origin_runs), (size, 1), "{size} bytes");
    }
}

#[test]
fn a_tracker_that_died_in_silence_is_left_long_before_its_connection_breaks() {
    for dead in 0..3 {
        let mut world = flash_crowd(5);
        assert!(world.run(Duration::from_secs(10), |world| world.origin_bytes > SIZE / 2));
        world.nodes[dead].alive = false;
        assert!(world.run(Duration::from_secs(5), World::all_complete), "node {dead} died: {}", world.describe());
    }
}

#[test]
fn chunks_that_others_have_do_not_hold_back_those_they_lack() {
    // Node 1 has the first half, and the lease holder streams all of it again.
    let mut world = World::new(2, &Limits::default());
    let half = world.layout().count() / 2;
    let mut have = ChunkSet::empty(world.layout().count());
    for chunk in (0..half).map(ChunkIndex) {
        have.insert(chunk);
        world.nodes[1].have.insert(chunk);
    }
    let states = (0..=half).map(|at| state(ChunkIndex(at))).collect();
    let segment = Segment { author: peer(1), from: ChunkIndex::FIRST, states, signature: Signature([0; 64]) };
    let restored = Some(Restored { size: SIZE, segments: vec![segment.into()], have });
    world.want(0);
    world.push(HOP * 8, Event::Swarm(1, Input::Wanted { digest: digest(), restored }));
    assert!(world.run(Duration::from_secs(5), World::all_complete), "{}", world.describe());
}
