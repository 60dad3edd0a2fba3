//! A node of the world: its two machines, and what it truly has and does.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use shoal_proto::{
    chain::{Expected, LinkEnd, State},
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::{Segment, Signature},
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId, Place},
    swarm::{FetchError, Restored, Swarm},
    time::Time,
    tracker::Tracker,
    wire::SEGMENT_STATES_MAX,
};

use crate::{
    net::{FOREVER, LinkId},
    peers::Peers,
    plan::{Lie, Window},
    timeline::Load,
};

/// A layer that all nodes want. Its states are made up: nothing is hashed in this world.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its name.
    pub digest: Digest,
    /// How it is cut.
    pub layout: Layout,
}

/// The number of a node or of a layer, where many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Index(u32);

impl Index {
    pub(crate) const fn new(at: usize) -> Self {
        Self(at as u32)
    }

    pub(crate) const fn at(self) -> usize {
        self.0 as usize
    }
}

/// What a chunk's bytes are: nothing is hashed here, so bytes are known by who made them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u32);

impl Bytes {
    /// The layer's own.
    pub const TRUE: Self = Self(0);
    /// Such as fit no chain.
    pub const WRONG: Self = Self(u32::MAX);
}

/// A node.
///
/// Among thousands of nodes, what an event costs is what it reads of the memory: what each event looks at stands in the
/// first cache lines, what is seldom looked at behind the machines.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Node {
    /// Until when its processor works on what came before.
    pub(crate) busy_until: Time,
    /// When its swarm wants time.
    pub(crate) swarm_timer: Timer,
    /// Until when it verifies what came before.
    pub(crate) verifies_until: Time,
    /// Until when it writes what came before.
    pub(crate) writes_until: Time,
    /// Messages that it took in.
    pub(crate) load: Load,
    /// Chunks that it sends.
    pub(crate) uploads: u32,
    /// Streams that it has asked the origin for.
    pub(crate) streams: u32,
    /// Whether it is up.
    pub(crate) alive: bool,
    /// How it lies.
    pub(crate) lie: Option<Lie>,
    pub(crate) up: LinkId,
    /// Who it is.
    pub peer: PeerId,
    pub(crate) down: LinkId,
    /// Layers, in the plan's order.
    pub(crate) holdings: Vec<Holding>,
    /// Whom it has a connection with.
    pub(crate) connected: Peers,
    /// What its rates are multiplied by.
    pub(crate) pace: Pace,
    pub(crate) swarm: Swarm,
    pub(crate) tracker: Tracker,
    /// When its tracker wants time.
    pub(crate) tracker_timer: Timer,
    pub(crate) place: Place,
    /// The chain that it signs.
    pub(crate) signs: Bytes,
    /// Whether it is down for good.
    pub(crate) gone: bool,
    /// Whether the DHT found that it was down.
    pub(crate) removed: bool,
    /// Whether its process has wished for its layers.
    pub(crate) wants: bool,
    /// Whether it was ever made slow.
    pub(crate) slowed: bool,
    /// When it was down.
    pub(crate) down_times: Vec<Window>,
    /// Until when it was down the last time that it lost its disk, after the start.
    pub(crate) lost: Option<Duration>,
    seed: u64,
    /// When it begins to want the layers.
    pub(crate) begins: Time,
}

/// When a machine wants time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timer {
    /// When it does.
    pub(crate) due: Time,
    /// When it is looked at next: not after that. Most machines put their time off again and again.
    pub(crate) filed: Time,
}

impl Timer {
    const NEVER: Self = Self { due: FOREVER, filed: FOREVER };
}

/// What the rates of a node are multiplied by.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Its uplink.
    pub(crate) up: f64,
    /// Its downlink.
    pub(crate) down: f64,
    /// Verifying and writing.
    pub(crate) disk: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { up: 1.0, down: 1.0, disk: 1.0 }
    }
}

/// What a node truly has of a layer.
#[derive(Debug)]
pub struct Holding {
    pub(crate) have: ChunkSet,
    /// The chunks that its machine took as verified and stored.
    pub(crate) arrived: ChunkSet,
    /// What the next process finds of it.
    pub(crate) restored: Option<Restored>,
    /// Chunks whose bytes are not the layer's, and what they are.
    pub(crate) wrong: BTreeMap<ChunkIndex, Bytes>,
    /// The chunk that the local reader needs next.
    pub(crate) reader: ChunkIndex,
    pub(crate) proven: Option<Time>,
    pub(crate) failed: Option<FetchError>,
}

impl Blob {
    /// The `at`-th layer of a world.
    ///
    /// # Panics
    /// If the size has no layout.
    #[must_use]
    pub fn new(seed: u64, at: usize, size: u64) -> Self {
        let layout = Layout::new(size).expect("the plan was checked");
        Self { digest: Digest::sha256(name(seed ^ 0xb10b, at)), layout }
    }

    /// The state in front of a chunk.
    #[must_use]
    pub fn state(&self, chunk: ChunkIndex) -> State {
        self.state_of(Bytes::TRUE, chunk)
    }

    /// The state in front of a chunk if all bytes before it are such.
    fn state_of(&self, bytes: Bytes, chunk: ChunkIndex) -> State {
        if chunk == ChunkIndex::FIRST {
            return State::INITIAL;
        }
        let mut state = [0; 32];
        state.copy_from_slice(&self.digest.as_bytes()[..32]);
        state[..4].copy_from_slice(&chunk.0.to_le_bytes());
        for (byte, mark) in state[4..8].iter_mut().zip(bytes.0.to_le_bytes()) {
            *byte ^= mark;
        }
        State(state)
    }

    /// What the link of a chunk with such bytes ends in.
    #[must_use]
    pub fn link(&self, before: State, chunk: ChunkIndex, bytes: Bytes) -> LinkEnd {
        let (known, last) = (before == self.state_of(bytes, chunk), chunk == self.layout.last());
        if known && !last {
            return LinkEnd::State(self.state_of(bytes, chunk.next()));
        }
        if known && bytes == Bytes::TRUE {
            return LinkEnd::Digest(self.digest);
        }
        // Anything else that follows from these bytes and from what is in front of them.
        let words = before.0.chunks_exact(8).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        let seed = words.fold(u64::from(bytes.0) << 32 | u64::from(chunk.0), mix);
        let end = name(seed, usize::MAX);
        if last { LinkEnd::Digest(Digest::sha256(end)) } else { LinkEnd::State(State(end)) }
    }

    /// What the link of a chunk must be.
    #[must_use]
    pub fn expected(&self, chunk: ChunkIndex) -> Expected {
        let before = self.state(chunk);
        Expected { before, end: Some(self.link(before, chunk, Bytes::TRUE)) }
    }

    /// One node's word for the states from `from` up to `until`, both included.
    fn segment(&self, author: PeerId, bytes: Bytes, from: ChunkIndex, until: ChunkIndex) -> Arc<Segment> {
        let states = (from.0..=until.0).map(|chunk| self.state_of(bytes, ChunkIndex(chunk))).collect();
        Arc::new(Segment { author, from, states, signature: Signature([0; 64]) })
    }

    /// One node's word for the whole chain.
    #[must_use]
    pub fn segments(&self, author: PeerId) -> Vec<Arc<Segment>> {
        self.segments_of(author, Bytes::TRUE)
    }

    /// One node's word for the chain of such bytes.
    #[must_use]
    pub fn segments_of(&self, author: PeerId, bytes: Bytes) -> Vec<Arc<Segment>> {
        let last = self.layout.last();
        let step = SEGMENT_STATES_MAX as u32 - 1;
        let starts = (0..last.0.max(1)).step_by(step as usize);
        let until = |from: u32| ChunkIndex((from + step).min(last.0));
        starts.map(|from| self.segment(author, bytes, ChunkIndex(from), until(from))).collect()
    }
}

impl Node {
    pub(crate) fn new(
        seed: u64,
        at: usize,
        place: Place,
        limits: &Limits,
        links: (LinkId, LinkId),
        blobs: &[Blob],
    ) -> Self {
        let peer = PeerId(name(seed, at));
        let own = mix(seed, at as u64);
        Self {
            busy_until: Time::ZERO,
            swarm_timer: Timer::NEVER,
            verifies_until: Time::ZERO,
            writes_until: Time::ZERO,
            load: Load::default(),
            uploads: 0,
            streams: 0,
            alive: true,
            lie: None,
            up: links.0,
            peer,
            down: links.1,
            holdings: blobs.iter().map(Holding::new).collect(),
            connected: Peers::default(),
            pace: Pace::default(),
            swarm: Swarm::new(peer, place, limits.clone(), own),
            tracker: Tracker::new(limits.clone(), own ^ 1),
            tracker_timer: Timer::NEVER,
            place,
            signs: Bytes::TRUE,
            gone: false,
            removed: false,
            wants: false,
            slowed: false,
            down_times: Vec::new(),
            lost: None,
            seed: own,
            begins: Time::ZERO,
        }
    }

    /// A new process with the same name and disk.
    pub(crate) fn renew(&mut self, limits: &Limits, generation: u64, now: Time) {
        let own = mix(self.seed, generation);
        self.swarm = Swarm::new(self.peer, self.place, limits.clone(), own);
        self.tracker = Tracker::new(limits.clone(), own ^ 1);
        self.alive = true;
        self.wants = false;
        self.uploads = 0;
        (self.busy_until, self.verifies_until, self.writes_until) = (now, now, now);
    }

    pub(crate) fn lose_disk(&mut self, blobs: &[Blob]) {
        self.holdings = blobs.iter().map(Holding::new).collect();
    }

    /// Whether the run waits for it.
    #[must_use]
    pub fn counts_as_unfinished(&self) -> bool {
        !self.gone && self.lie.is_none() && !self.is_complete()
    }

    /// Whether it has every layer, proven.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.holdings.iter().all(|holding| holding.proven.is_some())
    }

    /// When the last layer was proven.
    pub(crate) fn completed(&self) -> Option<Time> {
        self.holdings.iter().map(|holding| holding.proven).collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

impl Holding {
    /// What the bytes of a chunk are.
    pub(crate) fn bytes(&self, chunk: ChunkIndex) -> Bytes {
        self.wrong.get(&chunk).copied().unwrap_or(Bytes::TRUE)
    }

    /// A chunk is stored; returns whether it is new.
    pub(crate) fn store(&mut self, chunk: ChunkIndex, bytes: Bytes) -> bool {
        if bytes != Bytes::TRUE {
            self.wrong.insert(chunk, bytes);
        } else if !self.wrong.is_empty() {
            self.wrong.remove(&chunk);
        }
        self.have.insert(chunk)
    }

    /// All that is stored is dropped.
    pub(crate) fn discard(&mut self) {
        let count = self.have.capacity();
        (self.have, self.arrived) = (ChunkSet::empty(count), ChunkSet::empty(count));
        self.wrong.clear();
        self.reader = ChunkIndex::FIRST;
    }

    fn new(blob: &Blob) -> Self {
        let have = ChunkSet::empty(blob.layout.count());
        let arrived = have.clone();
        let wrong = BTreeMap::new();
        Self { have, arrived, restored: None, wrong, reader: ChunkIndex::FIRST, proven: None, failed: None }
    }
}

/// Where a node is reached.
#[must_use]
pub fn contact(peer: PeerId) -> Contact {
    let [.., a, b, c] = peer.0;
    Contact { peer, address: SocketAddr::from((Ipv4Addr::new(10, a, b, c), 5051)) }
}

/// The number of a node by its name.
#[must_use]
pub fn number(peer: PeerId) -> usize {
    let [.., a, b, c, d] = peer.0;
    u32::from_be_bytes([a, b, c, d]) as usize
}

/// 32 bytes that look random and end in a number.
fn name(seed: u64, at: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (step, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(mix(seed, step as u64), at as u64).to_be_bytes());
    }
    bytes[28..].copy_from_slice(&(at as u32).to_be_bytes());
    bytes
}

/// Mixes two numbers well (splitmix64).
#[must_use]
pub const fn mix(one: u64, other: u64) -> u64 {
    let mut x = one.wrapping_add(other.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::Node;

    #[test]
    fn what_is_often_looked_at_fills_cache_lines() {
        assert_eq!((offset_of!(Node, peer), offset_of!(Node, connected)), (64, 128));
    }
}
