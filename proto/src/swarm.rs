//! The swarm machine: a node's fetches, and what it serves to others.
//!
//! ```text
//!  Wanted ─► Locate ─► (Located) ─► Join a tracker ─► (Joined: peers, perhaps the origin lease)
//!                                                        │
//!            ┌───────────────────────────────────────────┤
//!            ▼                                           ▼ with the lease
//!   subscribe to peers, pull chunks that              stream from the origin what no peer has,
//!   verify, tell subscribers                          extend the chain, release each chunk once
//!            └───────────────────┬───────────────────────┘
//!                                ▼
//!               every link holds: Proven ─► (Sealed) ─► serve, Announce
//! ```
//!
//! Inputs are facts and outputs are orders. `handle` cannot fail and never waits. A chunk's bytes never come in here:
//! [`Output::Pull`] means fetch, verify against `expected` and store, and its answer is one [`Verdict`].

mod fetch;
mod lease;
mod neighbour;
mod pick;
mod release;
mod serve;
#[cfg(test)]
mod tests;
mod track;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use crate::{
    chain::{Expected, LinkEnd, State},
    chunk::{ChunkIndex, ChunkSet},
    claim::Segment,
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId},
    time::Time,
    wire::{Answer, Message},
};
use fetch::Fetch;
use serve::{Upload, Uploads};

/// The swarm of a node.
#[derive(Debug)]
pub struct Swarm {
    me: PeerId,
    limits: Limits,
    rng: Pcg64Mcg,
    fetches: BTreeMap<Digest, Fetch>,
    links: Links,
    uploads: Uploads,
    ids: u64,
}

/// One pull of a chunk from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PullId(pub u64);

/// One stream from the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// A peer's request for a chunk; named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// A local reader of a blob; named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Somebody local wants the blob.
    Wanted {
        /// Which.
        digest: Digest,
        /// What an earlier fetch left in the store, proven again under its claim.
        restored: Option<Restored>,
    },
    /// The store has the whole blob, proven; peers may have it.
    Held {
        /// Which.
        digest: Digest,
        /// Bytes in it.
        size: u64,
        /// Its whole chain, signed by this node or by others.
        segments: Vec<Segment>,
    },
    /// The blob is no longer in the store, or its fetch shall end.
    Forgotten {
        /// Which.
        digest: Digest,
    },
    /// The DHT's answer to [`Output::Locate`]: the nodes closest to the digest, closest first; this node may be among them.
    Located {
        /// Which blob.
        digest: Digest,
        /// Its trackers.
        trackers: Vec<Contact>,
    },
    /// The DHT's other answer to [`Output::Locate`]: nodes that announced the whole blob. Comes once, perhaps empty.
    Holders {
        /// Which blob.
        digest: Digest,
        /// Who has it.
        holders: Vec<Contact>,
    },
    /// A connection stands.
    Connected {
        /// With whom.
        peer: PeerId,
    },
    /// A connection broke, or could not be made.
    Disconnected {
        /// With whom.
        peer: PeerId,
    },
    /// A message came; its segments' signatures have been checked.
    Received {
        /// From whom (possibly this node's own tracker).
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// A peer asks for a chunk.
    Asked {
        /// The driver's name for it.
        ask: AskId,
        /// Who.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
    },
    /// An upload ended, well or not.
    Served {
        /// Which.
        ask: AskId,
    },
    /// A pull ended.
    Pulled {
        /// Which blob.
        digest: Digest,
        /// Which pull.
        pull: PullId,
        /// How.
        verdict: Verdict,
    },
    /// The origin answered.
    OriginOpened {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Bytes in the blob, as the origin says.
        size: u64,
    },
    /// Bytes came from the origin (for heartbeats; the driver may send it seldom).
    OriginProgress {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Bytes of this stream so far.
        bytes: u64,
    },
    /// A chunk came from the origin, is hashed and stored.
    OriginChunk {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Which chunk.
        chunk: ChunkIndex,
        /// What its link ended in.
        end: LinkEnd,
        /// This node's signed word for the states on both sides; none behind the last chunk.
        segment: Option<Segment>,
    },
    /// A stream from the origin ended by itself.
    OriginEnded {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
        /// Why, if before its end.
        failure: Option<OriginFailure>,
    },
    /// A local reader moved to a chunk.
    Reading {
        /// Which blob.
        digest: Digest,
        /// Which reader.
        reader: ReaderId,
        /// The chunk that it needs next.
        chunk: ChunkIndex,
    },
    /// A local reader is gone.
    ReaderLeft {
        /// Which blob.
        digest: Digest,
        /// Which reader.
        reader: ReaderId,
    },
    /// The answer to [`Output::Proven`]: the blob lies in the store under its digest.
    Sealed {
        /// Which blob.
        digest: Digest,
        /// Its whole chain, signed by this node.
        segments: Vec<Segment>,
    },
    /// Time has passed; due when [`Swarm::deadline`] says.
    Elapsed,
}

/// What is left of an earlier fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Bytes in the blob.
    pub size: u64,
    /// The chain's states, as far as known.
    pub segments: Vec<Segment>,
    /// The chunks that verify under them.
    pub have: ChunkSet,
}

/// How a pull ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The chunk verified and is stored.
    Good,
    /// The bytes did not verify.
    Corrupt,
    /// The peer's upload slots are taken.
    Busy,
    /// The peer does not have the chunk.
    Missing,
    /// The connection or the peer failed, or it took too long.
    Link,
    /// Our own disk failed.
    Disk,
}

/// Why the origin did not give what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginFailure {
    /// It will not: not found, denied.
    Refused,
    /// It may, later: unreachable, 5xx, broken off.
    Transient,
    /// Its bytes contradict the digest.
    Corrupt,
    /// Our own disk failed.
    Disk,
}

/// Why a fetch ended without its blob. The driver knows the details of origin and disk failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchError {
    /// The origin failed, and no peer has the blob.
    Origin(OriginFailure),
    /// Our own disk failed.
    Disk,
    /// Too many fetches at once, or a size beyond all layouts.
    Limit,
    /// It was ended from outside.
    Forgotten,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Ask the DHT for the blob's trackers and holders.
    Locate {
        /// Which blob.
        digest: Digest,
    },
    /// Tell the DHT that this node holds the blob.
    Announce {
        /// Which blob.
        digest: Digest,
    },
    /// Connect to a peer; answered by [`Input::Connected`] or [`Input::Disconnected`].
    Dial {
        /// To whom.
        contact: Contact,
    },
    /// Send a message, possibly to this node's own tracker.
    Send {
        /// To whom.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// The blob's size is known (as a claim): make room for it.
    Sized {
        /// Which blob.
        digest: Digest,
        /// Bytes in it.
        size: u64,
    },
    /// Get a chunk from a peer, verify it, store it.
    Pull {
        /// The name of this pull.
        pull: PullId,
        /// From whom.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
        /// What its link must be.
        expected: Expected,
    },
    /// Stop a pull; no answer wanted.
    CancelPull {
        /// Which.
        pull: PullId,
    },
    /// Stream chunks from the origin.
    PullOrigin {
        /// Which blob.
        digest: Digest,
        /// The name of this stream.
        run: RunId,
        /// The first chunk.
        from: ChunkIndex,
        /// The chunk in front of which to stop; none for the end.
        until: Option<ChunkIndex>,
        /// The state in front of `from`.
        before: State,
    },
    /// Stop a stream from the origin; no answer wanted.
    StopOrigin {
        /// Which blob.
        digest: Digest,
        /// Which stream.
        run: RunId,
    },
    /// Send a chunk to the peer that asked.
    Serve {
        /// Which ask.
        ask: AskId,
    },
    /// Tell the peer that asked that it gets nothing.
    Refuse {
        /// Which ask.
        ask: AskId,
        /// Why.
        answer: Answer,
    },
    /// A chunk is here; readers may have it.
    Arrived {
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
    },
    /// Every link of the chain holds: publish the blob in the store.
    Proven {
        /// Which blob.
        digest: Digest,
    },
    /// What was fetched rested on a false claim: drop it, end its readers, and begin anew.
    Discard {
        /// Which blob.
        digest: Digest,
    },
    /// The fetch is over without its blob.
    Failed {
        /// Which blob.
        digest: Digest,
        /// Why.
        why: FetchError,
    },
    /// Something worth counting.
    Report(Event),
}

/// The machine's only telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A peer sent bytes that do not verify.
    CorruptChunk {
        /// Who.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
        /// Which chunk.
        chunk: ChunkIndex,
    },
    /// Two claims for one digest differ.
    Disputed {
        /// Which blob.
        digest: Digest,
    },
    /// No tracker answered in time; the origin is used after a random wait.
    Untracked {
        /// Which blob.
        digest: Digest,
    },
    /// This node got the origin lease.
    Leased {
        /// Which blob.
        digest: Digest,
    },
    /// A fetch made no progress and takes the origin by itself.
    Stalled {
        /// Which blob.
        digest: Digest,
    },
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A heartbeat, a tracker's answer, or the fallback.
    Track,
    /// A pull is late.
    Pull,
    /// A peer that was busy may be asked again.
    Retry,
    /// Chunks wait to be told to subscribers.
    Tell,
    /// A released chunk was not confirmed.
    Release,
    /// The origin may be tried (again).
    Origin,
    /// No progress at all.
    Stall,
    /// A complete blob was not used for long.
    Idle,
}

/// A fetch as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchView {
    /// Which blob.
    pub digest: Digest,
    /// Bytes in it, if known.
    pub size: Option<u64>,
    /// Chunks here.
    pub have: u32,
    /// Chunks in all; 0 while the size is unknown.
    pub chunks: u32,
    /// Whether the blob is proven.
    pub complete: bool,
    /// Whether this node holds the origin lease.
    pub leased: bool,
    /// Peers of the blob.
    pub peers: usize,
    /// Local readers that wait for chunks.
    pub readers: u32,
}

/// Connections of the node, as far as the machine needs them.
#[derive(Debug, Default)]
struct Links {
    up: BTreeSet<PeerId>,
    dialing: BTreeSet<PeerId>,
    /// Trackers that did not answer, and when.
    silent: BTreeMap<PeerId, Time>,
}

/// How long a tracker that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);

/// All that a fetch may touch beside itself.
struct Context<'a> {
    now: Time,
    me: PeerId,
    limits: &'a Limits,
    rng: &'a mut Pcg64Mcg,
    links: &'a mut Links,
    ids: &'a mut u64,
    out: &'a mut Vec<Output>,
}

impl Context<'_> {
    fn next_id(&mut self) -> u64 {
        *self.ids += 1;
        *self.ids
    }

    fn send(&mut self, peer: PeerId, message: Message) {
        self.out.push(Output::Send { peer, message });
    }

    fn is_up(&self, peer: PeerId) -> bool {
        peer == self.me || self.links.up.contains(&peer)
    }

    fn note_silent(&mut self, peer: PeerId) {
        let now = self.now;
        self.links.silent.retain(|_, since| *since + SILENCE > now);
        self.links.silent.insert(peer, now);
    }

    fn is_silent(&self, peer: PeerId) -> bool {
        self.links.silent.get(&peer).is_some_and(|since| *since + SILENCE > self.now)
    }

    /// Dials unless connected or dialing. Returns whether the connection stands.
    fn reach(&mut self, contact: Contact) -> bool {
        if self.is_up(contact.peer) {
            return true;
        }
        if self.links.dialing.insert(contact.peer) {
            self.out.push(Output::Dial { contact });
        }
        false
    }
}

impl Swarm {
    /// A swarm without fetches.
    #[must_use]
    pub fn new(me: PeerId, limits: Limits, seed: u64) -> Self {
        Self {
            me,
            limits,
            rng: Pcg64Mcg::seed_from_u64(seed),
            fetches: BTreeMap::new(),
            links: Links::default(),
            uploads: Uploads::default(),
            ids: 0,
        }
    }

    /// Takes in a fact; orders are appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Wanted { digest, restored } => self.wanted(now, digest, restored, out),
            Input::Held { digest, size, segments } => {
                let (fetches, ..) = self.parts(now, out);
                if let Some(fetch) = Fetch::held(digest, size, segments, now) {
                    fetches.entry(digest).or_insert(fetch);
                }
            }
            Input::Connected { peer } => {
                self.links.dialing.remove(&peer);
                self.links.up.insert(peer);
                self.each(now, out, |fetch, cx| fetch.connected(cx, peer));
            }
            Input::Disconnected { peer } => {
                self.links.dialing.remove(&peer);
                self.links.up.remove(&peer);
                self.each(now, out, |fetch, cx| fetch.disconnected(cx, peer));
            }
            Input::Received { peer, message } => self.received(now, peer, message, out),
            Input::Asked { ask, peer, digest, chunk } => {
                let (fetches, uploads, mut cx) = self.parts(now, out);
                let available = fetches.get_mut(&digest).is_some_and(|fetch| fetch.asked(&cx, chunk));
                uploads.asked(&mut cx, ask, Upload { peer, digest, chunk }, available);
            }
            Input::Served { ask } => {
                let (fetches, uploads, mut cx) = self.parts(now, out);
                if let Some(done) = uploads.served(&mut cx, ask)
                    && let Some(fetch) = fetches.get_mut(&done.digest)
                {
                    fetch.uploaded(&mut cx, done.peer, done.chunk);
                }
            }
            Input::Elapsed => {
                self.each(now, out, Fetch::elapsed);
                let idle = self.limits.held_idle;
                self.fetches.retain(|_, fetch| !fetch.is_idle(now, idle));
            }
            Input::Forgotten { digest } => self.forget(now, digest, out),
            Input::Located { digest, .. }
            | Input::Holders { digest, .. }
            | Input::Pulled { digest, .. }
            | Input::OriginOpened { digest, .. }
            | Input::OriginProgress { digest, .. }
            | Input::OriginChunk { digest, .. }
            | Input::OriginEnded { digest, .. }
            | Input::Reading { digest, .. }
            | Input::ReaderLeft { digest, .. }
            | Input::Sealed { digest, .. } => {
                let (fetches, _, mut cx) = self.parts(now, out);
                if let Some(fetch) = fetches.get_mut(&digest) {
                    fetch.handle(&mut cx, input);
                }
                self.bury(&digest);
            }
        }
    }

    /// When [`Input::Elapsed`] is due next, and what for.
    #[must_use]
    pub fn deadline(&self) -> Option<(Time, Timer)> {
        self.fetches.values().filter_map(|fetch| fetch.deadline(&self.limits)).min()
    }

    /// Whether the machine knows the blob, so that peers' messages about it mean something.
    #[must_use]
    pub fn knows(&self, digest: &Digest) -> bool {
        self.fetches.contains_key(digest)
    }

    /// The fetches and held blobs.
    pub fn fetches(&self) -> impl Iterator<Item = FetchView> {
        self.fetches.values().map(Fetch::view)
    }

    /// One fetch or held blob.
    #[must_use]
    pub fn fetch(&self, digest: &Digest) -> Option<FetchView> {
        self.fetches.get(digest).map(Fetch::view)
    }

    /// Whether all states of a segment are known already and equal, so that its signature does not matter.
    #[must_use]
    pub fn agrees(&self, digest: &Digest, size: u64, segment: &Segment) -> bool {
        self.fetches.get(digest).is_some_and(|fetch| fetch.agrees(size, segment))
    }

    /// All signed states of a blob, for keeping beside its bytes.
    #[must_use]
    pub fn segments(&self, digest: &Digest) -> &[Segment] {
        self.fetches.get(digest).map_or(&[], Fetch::segments)
    }

    fn parts<'a>(
        &'a mut self,
        now: Time,
        out: &'a mut Vec<Output>,
    ) -> (&'a mut BTreeMap<Digest, Fetch>, &'a mut Uploads, Context<'a>) {
        let Self { me, limits, rng, fetches, links, uploads, ids } = self;
        (fetches, uploads, Context { now, me: *me, limits, rng, links, ids, out })
    }

    fn each(&mut self, now: Time, out: &mut Vec<Output>, mut act: impl FnMut(&mut Fetch, &mut Context<'_>)) {
        let (fetches, _, mut cx) = self.parts(now, out);
        for fetch in fetches.values_mut() {
            act(fetch, &mut cx);
        }
        self.fetches.retain(|_, fetch| !fetch.is_failed());
    }

    fn wanted(&mut self, now: Time, digest: Digest, restored: Option<Restored>, out: &mut Vec<Output>) {
        if self.fetches.contains_key(&digest) {
            return;
        }
        if self.fetches.len() >= self.limits.fetches_max {
            out.push(Output::Failed { digest, why: FetchError::Limit });
            return;
        }
        let (fetches, _, mut cx) = self.parts(now, out);
        let fetch = fetches.entry(digest).or_insert_with(|| Fetch::new(digest, now));
        fetch.start(&mut cx, restored);
        self.bury(&digest);
    }

    fn received(&mut self, now: Time, peer: PeerId, message: Message, out: &mut Vec<Output>) {
        self.links.silent.remove(&peer);
        let digest = match &message {
            Message::Joined { digest, .. }
            | Message::Revoked { digest, .. }
            | Message::Subscribe { digest, .. }
            | Message::Unsubscribe { digest }
            | Message::Have { digest, .. }
            | Message::Got { digest, .. }
            | Message::Fresh { digest, .. }
            | Message::Segment { digest, .. }
            | Message::Unknown { digest } => *digest,
            // For the tracker.
            Message::Join(_) | Message::Leave { .. } => return,
        };
        let (fetches, _, mut cx) = self.parts(now, out);
        match (fetches.get_mut(&digest), message) {
            (Some(fetch), message) => fetch.received(&mut cx, peer, message),
            (None, Message::Subscribe { digest, .. }) => cx.send(peer, Message::Unknown { digest }),
            (None, _) => {}
        }
        self.bury(&digest);
    }

    fn forget(&mut self, now: Time, digest: Digest, out: &mut Vec<Output>) {
        let (fetches, _, mut cx) = self.parts(now, out);
        if let Some(mut fetch) = fetches.remove(&digest) {
            fetch.leave(&mut cx);
        }
    }

    /// Takes out a fetch that has failed.
    fn bury(&mut self, digest: &Digest) {
        if self.fetches.get(digest).is_some_and(Fetch::is_failed) {
            self.fetches.remove(digest);
        }
    }
}
