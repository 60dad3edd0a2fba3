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

mod content;
mod fetch;
mod input;
mod lease;
mod neighbour;
mod output;
mod pick;
mod pulls;
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

use self::{
    fetch::Fetch,
    serve::{Upload, Uploads},
};
pub use self::{
    input::{AskId, Input, OriginFailure, PullId, ReaderId, Restored, RunId, Verdict},
    output::{Event, FetchError, FetchView, Output, Timer},
};
use crate::{
    claim::Segment,
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId},
    time::Time,
    wire::Message,
};

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
