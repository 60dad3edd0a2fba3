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

mod choose;
mod claims;
mod conflict;
mod connections;
mod content;
mod fetch;
mod input;
mod lease;
mod near;
mod neighbour;
mod news;
mod offers;
mod output;
mod pace;
mod pulls;
mod release;
mod remotes;
mod serve;
mod sign;
mod slots;
mod supply;
#[cfg(test)]
mod tests;
mod track;
mod width;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::{
    fetch::Fetch,
    near::Near,
    pace::Pace,
    serve::{Stock, Upload, Uploads},
};
pub use self::{
    input::{AskId, Input, OriginFailure, PullId, ReaderId, Restored, RunId, Verdict},
    output::{Event, FetchError, FetchView, Output},
};
use crate::{
    chain::State,
    claim::Segment,
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId, Place},
    time::Time,
    wire::Message,
};

/// The swarm of a node.
#[derive(Debug)]
pub struct Swarm {
    me: PeerId,
    place: Place,
    limits: Limits,
    rng: Pcg64Mcg,
    /// Boxed: a map of so large things that has but one spreads what each search looks at over many pages.
    fetches: BTreeMap<Digest, Box<Fetch>>,
    links: Links,
    uploads: Uploads,
    ids: u64,
    /// When time must pass next, or earlier.
    wake: Option<Time>,
}

/// Connections of the node, as far as the machine needs them.
#[derive(Debug, Default)]
struct Links {
    up: BTreeMap<PeerId, Place>,
    dialing: BTreeSet<PeerId>,
    /// Trackers that did not answer, and when.
    silent: BTreeMap<PeerId, Time>,
    /// Pulls that are out, over all fetches.
    pulls: usize,
    /// Their bytes.
    pull_bytes: u64,
    /// What streams from the origin leave for pulls, over all fetches.
    pace: Pace,
    /// Chunks that are being uploaded.
    uploads: usize,
    /// Bytes that came in, from the origin and from peers.
    bytes_in: u64,
    /// Origin leases under which this node streams.
    leases: usize,
    /// That number changed: trackers of other blobs shall hear of it.
    burden_changed: bool,
    /// Fetches that would ask for more if those were fewer.
    crowded: BTreeSet<Digest>,
}

/// Largest [`Limits::remotes_max`].
pub const REMOTES_MAX: usize = slots::SLOTS_MAX;

/// How long a tracker that did not answer is asked last.
const SILENCE: Duration = Duration::from_secs(10);

/// All that a fetch may touch beside itself.
struct Context<'a> {
    now: Time,
    me: PeerId,
    place: Place,
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
        peer == self.me || self.links.up.contains_key(&peer)
    }

    /// How near a connected peer is.
    fn near(&self, peer: PeerId) -> Near {
        self.links.up.get(&peer).map_or(Near::Zone, |place| Near::of(self.place, *place))
    }

    fn note_silent(&mut self, peer: PeerId) {
        let now = self.now;
        self.links.silent.retain(|_, since| *since + SILENCE > now);
        self.links.silent.insert(peer, now);
    }

    fn is_silent(&self, peer: PeerId) -> bool {
        self.links.silent.get(&peer).is_some_and(|since| *since + SILENCE > self.now)
    }

    /// Most pulls that may be out.
    fn pulls_max(&self) -> usize {
        self.links.pace.pulls_max(self.limits.node_pulls_max)
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
    pub fn new(me: PeerId, place: Place, limits: Limits, seed: u64) -> Self {
        Self {
            me,
            place,
            limits,
            rng: Pcg64Mcg::seed_from_u64(seed),
            fetches: BTreeMap::new(),
            links: Links::default(),
            uploads: Uploads::default(),
            ids: 0,
            wake: None,
        }
    }

    /// Takes in a fact; orders are appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Wanted { digest, restored } => self.wanted(now, digest, restored, out),
            Input::Held { digest, size, segments } => self.held(now, digest, size, segments),
            Input::Connected { peer, place } => {
                self.links.dialing.remove(&peer);
                self.links.up.insert(peer, place);
                self.each(now, out, |fetch, cx| fetch.connected(cx, peer));
            }
            Input::Disconnected { peer } => {
                self.links.dialing.remove(&peer);
                self.links.up.remove(&peer);
                self.each(now, out, |fetch, cx| fetch.disconnected(cx, peer));
            }
            Input::Received { peer, message } => self.received(now, peer, message, out),
            Input::Asked { ask, peer, digest, chunk, ends } => {
                let (fetches, uploads, mut cx) = self.parts(now, out);
                let stock =
                    fetches.get_mut(&digest).map_or(Stock::Missing, |fetch| fetch.asked(&cx, peer, chunk, ends));
                let crowded = uploads.asked(&mut cx, ask, Upload { peer, digest, chunk, since: now }, stock);
                if let Some(fetch) = fetches.get_mut(&digest).filter(|_| crowded) {
                    fetch.suggest(&mut cx, peer);
                }
            }
            Input::Served { ask } => {
                let (fetches, uploads, mut cx) = self.parts(now, out);
                let is_here =
                    |upload: &Upload| fetches.get(&upload.digest).is_some_and(|fetch| fetch.has(upload.chunk));
                if let Some(done) = uploads.served(&mut cx, ask, is_here) {
                    self.one(now, &done.digest, out, |fetch, cx| fetch.uploaded(cx, done.peer, done.chunk));
                }
            }
            Input::Elapsed => self.elapsed(now, out),
            Input::Forgotten { digest } => self.forget(now, digest, out),
            Input::Pulled { digest, .. }
            | Input::OriginProgress { digest, .. }
            | Input::Reading { digest, .. }
            | Input::ReaderLeft { digest, .. } => self.one(now, &digest, out, |fetch, cx| fetch.handle(cx, input)),
            Input::Located { digest, .. }
            | Input::Holders { digest, .. }
            | Input::OriginOpened { digest, .. }
            | Input::OriginIgnoresRanges { digest }
            | Input::OriginChunk { digest, .. }
            | Input::OriginEnded { digest, .. }
            | Input::Hashed { digest, .. }
            | Input::Signed { digest, .. }
            | Input::Sealed { digest, .. } => self.one(now, &digest, out, |fetch, cx| {
                fetch.handle(cx, input);
                fetch.rearm(cx);
            }),
        }
        self.relieve(now, out);
        if std::mem::take(&mut self.links.burden_changed) {
            self.each(now, out, Fetch::hasten_burden);
        }
    }

    /// Lets one fetch act; takes it out if that was its end.
    fn one(
        &mut self,
        now: Time,
        digest: &Digest,
        out: &mut Vec<Output>,
        act: impl FnOnce(&mut Fetch, &mut Context<'_>),
    ) {
        let (fetches, _, mut cx) = self.parts(now, out);
        let Some(fetch) = fetches.get_mut(digest) else { return };
        act(fetch, &mut cx);
        let (failed, due) = (fetch.is_failed(), fetch.deadline());
        if failed {
            fetches.remove(digest);
        }
        self.arm(due);
    }

    fn arm(&mut self, due: Option<Time>) {
        self.wake = self.wake.into_iter().chain(due).min();
    }

    /// Lets the fetches whose time has come act.
    fn elapsed(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.wake.is_none_or(|wake| wake > now) {
            return;
        }
        let idle = self.limits.held_idle;
        let (fetches, _, mut cx) = self.parts(now, out);
        for fetch in fetches.values_mut().filter(|fetch| fetch.deadline().is_some_and(|due| due <= now)) {
            fetch.elapsed(&mut cx);
        }
        fetches.retain(|_, fetch| !fetch.is_idle(now, idle));
        self.wake = self.fetches.values().filter_map(|fetch| fetch.deadline()).min();
    }

    /// Lets fetches that had to wait for others' pulls ask for more, from a random one on, so that none starves.
    fn relieve(&mut self, now: Time, out: &mut Vec<Output>) {
        let most = self.links.pace.pulls_max(self.limits.node_pulls_max);
        while self.links.pulls < most && !self.links.crowded.is_empty() {
            let at = self.rng.random_range(0..self.links.crowded.len());
            let Some(digest) = self.links.crowded.iter().nth(at).copied() else { return };
            self.links.crowded.remove(&digest);
            self.one(now, &digest, out, |fetch, cx| fetch.advance(cx));
            if self.links.crowded.contains(&digest) {
                return;
            }
        }
    }

    /// When [`Input::Elapsed`] is due next, or earlier.
    #[must_use]
    pub const fn deadline(&self) -> Option<Time> {
        self.wake
    }

    /// Whether the machine knows the blob, so that peers' messages about it mean something.
    #[must_use]
    pub fn knows(&self, digest: &Digest) -> bool {
        self.fetches.contains_key(digest)
    }

    /// The fetches and held blobs.
    pub fn fetches(&self) -> impl Iterator<Item = FetchView> {
        self.fetches.values().map(|fetch| fetch.view())
    }

    /// One fetch or held blob.
    #[must_use]
    pub fn fetch(&self, digest: &Digest) -> Option<FetchView> {
        self.fetches.get(digest).map(|fetch| fetch.view())
    }

    /// Whether all states of a segment are known already and equal, so that its signature does not matter.
    #[must_use]
    pub fn agrees(&self, digest: &Digest, size: u64, segment: &Segment) -> bool {
        self.fetches.get(digest).is_some_and(|fetch| fetch.agrees(size, segment))
    }

    /// All signed states of a blob, for keeping beside its bytes.
    #[must_use]
    pub fn segments(&self, digest: &Digest) -> &[Arc<Segment>] {
        self.fetches.get(digest).map_or(&[], |fetch| fetch.segments())
    }

    /// The states of a blob's chain from the initial one, as far as known, signed or not.
    #[must_use]
    pub fn states(&self, digest: &Digest) -> &[State] {
        self.fetches.get(digest).map_or(&[], |fetch| fetch.states())
    }

    fn parts<'a>(
        &'a mut self,
        now: Time,
        out: &'a mut Vec<Output>,
    ) -> (&'a mut BTreeMap<Digest, Box<Fetch>>, &'a mut Uploads, Context<'a>) {
        let Self { me, place, limits, rng, fetches, links, uploads, ids, wake: _ } = self;
        (fetches, uploads, Context { now, me: *me, place: *place, limits, rng, links, ids, out })
    }

    fn each(&mut self, now: Time, out: &mut Vec<Output>, mut act: impl FnMut(&mut Fetch, &mut Context<'_>)) {
        let (fetches, _, mut cx) = self.parts(now, out);
        for fetch in fetches.values_mut() {
            act(fetch, &mut cx);
            fetch.rearm(&cx);
        }
        fetches.retain(|_, fetch| !fetch.is_failed());
        let due = self.fetches.values().filter_map(|fetch| fetch.deadline()).min();
        self.arm(due);
    }

    fn held(&mut self, now: Time, digest: Digest, size: u64, segments: Vec<Arc<Segment>>) {
        if let Some(fetch) = Fetch::held(digest, size, segments, now) {
            let due = self.fetches.entry(digest).or_insert_with(|| Box::new(fetch)).deadline();
            self.arm(due);
        }
    }

    fn wanted(&mut self, now: Time, digest: Digest, restored: Option<Restored>, out: &mut Vec<Output>) {
        if self.fetches.contains_key(&digest) {
            return;
        }
        if self.fetches.len() >= self.limits.fetches_max {
            out.push(Output::Failed { digest, why: FetchError::Limit });
            return;
        }
        self.fetches.insert(digest, Box::new(Fetch::new(digest, now)));
        self.one(now, &digest, out, |fetch, cx| {
            fetch.start(cx, restored);
            fetch.rearm(cx);
        });
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
            | Message::Peers { digest, .. }
            | Message::Segment { digest, .. }
            | Message::Unknown { digest } => *digest,
            // For the tracker, and for whoever carries the messages.
            Message::Join(_) | Message::Leave { .. } | Message::Entitled { .. } | Message::Tag { .. } => return,
        };
        if self.fetches.contains_key(&digest) {
            let often = matches!(message, Message::Got { .. });
            self.one(now, &digest, out, |fetch, cx| {
                fetch.received(cx, peer, message);
                if !often {
                    fetch.rearm(cx);
                }
            });
        } else if let Message::Subscribe { .. } = message {
            out.push(Output::Send { peer, message: Message::Unknown { digest } });
        }
    }

    fn forget(&mut self, now: Time, digest: Digest, out: &mut Vec<Output>) {
        let (fetches, _, mut cx) = self.parts(now, out);
        if let Some(mut fetch) = fetches.remove(&digest) {
            fetch.leave(&mut cx);
        }
    }
}
