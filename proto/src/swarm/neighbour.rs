//! The peers of one blob: what they have, what they know, and how well they serve.

use std::{sync::Arc, time::Duration};

use rand::{Rng, RngExt};

use super::{Context, Event, Output, Verdict, fetch::Fetch, near::Near};
use crate::{
    chain::ChainError,
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    peer::{Contact, PeerId},
    time::Time,
    wire::{GOT_CHUNKS_MAX, Message},
};

/// A chunk is rare if at most one in so many peers has it.
const RARE: usize = 3;
/// States that are missing are asked for again after so long.
const STATES_PATIENCE: Duration = Duration::from_millis(50);

/// A peer in one fetch.
#[derive(Debug, Default)]
pub(super) struct Remote {
    /// We asked to be told what it has.
    pub(super) subscribed: bool,
    /// It asked to be told what we have.
    pub(super) subscriber: bool,
    /// It has told, even if nothing.
    pub(super) answered: bool,
    pub(super) have: Option<ChunkSet>,
    /// The size of the blob, as it says.
    size: u64,
    /// Up to which chunk it knows the states.
    pub(super) frontier: ChunkIndex,
    /// We told it that we need no states from it.
    pruned: bool,
    /// Our pulls on their way from it.
    pub(super) pulls: usize,
    /// Where it is reached, if this node was told.
    contact: Option<Contact>,
    /// When it was last told whom else to ask.
    suggested: Option<Time>,
    /// How near it is.
    pub(super) near: Near,
    /// Moving average of how long good pulls from it take; at least as long as the last that was overtaken.
    pub(super) pace: Duration,
    /// When it last said or sent something.
    heard: Time,
    busy_until: Option<Time>,
    strikes: u8,
}

/// A peer whose pulls take so many times longer than the others' is asked only for what nobody else has.
const SLOW: u32 = 4;
/// Peers named to one that is turned away.
const SUGGESTED: usize = 4;
/// Shortest time between two such messages to one peer.
const SUGGEST_PAUSE: Duration = Duration::from_secs(5);

impl Remote {
    pub(super) fn may_be_asked(&self, now: Time) -> bool {
        self.busy_until.is_none_or(|until| until <= now)
    }

    pub(super) fn offers(&self, test: impl FnOnce(&ChunkSet) -> bool) -> bool {
        self.have.as_ref().is_some_and(test)
    }

    /// Whether pulls from it take much longer than others do.
    pub(super) fn is_slow(&self, pull_time: Duration) -> bool {
        !pull_time.is_zero() && self.pace > pull_time * SLOW
    }

    /// Forgets a pause that has passed.
    pub(super) fn rest_over(&mut self, now: Time) {
        self.busy_until = self.busy_until.filter(|until| *until > now);
    }

    pub(super) const fn retry_at(&self) -> Option<Time> {
        self.busy_until
    }

    /// Draws the consequence of a pull's end for asking this peer again.
    pub(super) fn judge(&mut self, verdict: Verdict, now: Time, pull_time: Duration, rng: &mut impl Rng) {
        match verdict {
            Verdict::Good => {
                self.strikes = 0;
                self.heard = now;
                self.busy_until = None;
            }
            Verdict::Busy => {
                self.heard = now;
                let pause = (pull_time / 2).clamp(Duration::from_millis(2), Duration::from_millis(500));
                self.busy_until = Some(now + pause.mul_f64(rng.random_range(0.5..1.5)));
            }
            Verdict::Link => {
                self.strikes = self.strikes.saturating_add(1);
                let pause = Duration::from_millis(200) * u32::from(self.strikes);
                self.busy_until = Some(now + pause.mul_f64(rng.random_range(0.5..1.5)));
            }
            Verdict::Corrupt => self.strikes = self.strikes.saturating_add(2),
            Verdict::Missing | Verdict::Disk => {}
        }
    }
}

impl Fetch {
    /// Makes a peer a neighbour, if there is room.
    pub(super) fn meet(&mut self, cx: &mut Context<'_>, contact: Contact) {
        let peer = contact.peer;
        if peer == cx.me || self.solo || !self.is_fetching() || self.banned.contains(&peer) {
            return;
        }
        let most = cx.limits.neighbours_max * if self.imports() { 2 } else { 1 };
        let room = self.remotes.values().filter(|remote| remote.subscribed).count() < most;
        if self.remotes.get(peer).is_some_and(|remote| remote.subscribed) || !room {
            return;
        }
        let remote = self.remotes.get_or_default(peer);
        remote.subscribed = true;
        remote.contact = Some(contact);
        if cx.reach(contact) {
            self.place(cx, peer);
            self.subscribe(cx, peer);
        }
    }

    /// Notes how near a connected peer is.
    fn place(&mut self, cx: &Context<'_>, peer: PeerId) {
        let near = cx.near(peer);
        if let Some(remote) = self.remotes.get_mut(peer) {
            remote.near = near;
            if near == Near::Rack {
                self.duty.touch();
            }
        }
    }

    fn subscribe(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        if let Some(remote) = self.remotes.get_mut(peer) {
            remote.pruned = false;
        }
        let frontier = self.content.as_ref().map_or(ChunkIndex::FIRST, |content| content.chain.frontier());
        cx.send(peer, Message::Subscribe { digest: self.digest, frontier });
    }

    pub(super) fn connected(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        if self.remotes.get(peer).is_some_and(|remote| remote.subscribed) {
            self.place(cx, peer);
            self.subscribe(cx, peer);
        }
        self.track_connected(cx, peer);
    }

    pub(super) fn disconnected(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.drop_remote(cx, peer);
        self.track_disconnected(cx, peer);
        self.advance(cx);
    }

    pub(super) fn received(&mut self, cx: &mut Context<'_>, peer: PeerId, message: Message) {
        if let Some(remote) = self.remotes.get_mut(peer) {
            remote.heard = cx.now;
        }
        match message {
            Message::Joined { peers, lease, served, .. } => self.joined(cx, peer, &peers, lease, served),
            Message::Revoked { epoch, .. } => self.revoked(cx, peer, epoch),
            Message::Subscribe { frontier, .. } => self.subscribed(cx, peer, frontier),
            Message::Unsubscribe { .. } => {
                if let Some(remote) = self.remotes.get_mut(peer) {
                    remote.subscriber = false;
                    if !remote.subscribed {
                        self.drop_remote(cx, peer);
                    }
                }
            }
            Message::Have { size, chunks, .. } => self.they_have(cx, peer, size, chunks),
            Message::Got { chunks, .. } => {
                self.they_got(cx, peer, &chunks);
                if self.is_fetching() {
                    self.pull_from(cx, peer);
                }
                return;
            }
            // Only from those whom this node asked: nobody else shall make it dial.
            Message::Peers { peers, .. } if self.remotes.get(peer).is_some_and(|remote| remote.subscribed) => {
                for contact in peers {
                    self.meet(cx, contact);
                }
            }
            Message::Peers { .. } => {}
            Message::Fresh { chunks, .. } => {
                self.they_got(cx, peer, &chunks);
                if let Some(content) = &mut self.content {
                    let layout = content.layout();
                    content.fresh.extend(chunks.into_iter().filter(|chunk| layout.contains(*chunk)));
                }
            }
            Message::Segment { size, segment, .. } => self.they_claim(cx, peer, size, segment),
            Message::Unknown { .. } => {
                if let Some(remote) = self.remotes.get_mut(peer) {
                    remote.answered = true;
                }
            }
            Message::Join(_) | Message::Leave { .. } => {}
        }
        self.advance(cx);
    }

    fn subscribed(&mut self, cx: &mut Context<'_>, peer: PeerId, frontier: ChunkIndex) {
        let room = self.remotes.len() < cx.limits.remotes_max;
        if !self.remotes.contains_key(peer) && !room {
            cx.send(peer, Message::Unknown { digest: self.digest });
            self.suggest(cx, peer);
            return;
        }
        let back = self.is_fetching() && !self.solo && !self.banned.contains(&peer);
        let known = self.remotes.get(peer).is_some_and(|remote| remote.subscriber);
        let remote = self.remotes.get_or_default(peer);
        remote.subscriber = true;
        remote.frontier = frontier;
        let back = back && !remote.subscribed;
        remote.subscribed |= back;
        self.place(cx, peer);
        let needs_nothing = self.content.as_ref().is_some_and(|content| frontier >= content.layout().last());
        if known && needs_nothing {
            // It only says that it gets the states from others.
        } else if self.content.is_some() {
            self.send_have(cx, peer);
        } else {
            cx.send(peer, Message::Unknown { digest: self.digest });
        }
        if back {
            self.subscribe(cx, peer);
        }
    }

    /// Tells a subscriber all: chunks and the states that it does not know.
    pub(super) fn send_have(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        let (Some(content), Some(remote)) = (&self.content, self.remotes.get_mut(peer)) else { return };
        let mut chunks = content.have.clone();
        content.releases.hide(&mut chunks, peer);
        let size = content.layout().size();
        cx.send(peer, Message::Have { digest: self.digest, size, chunks });
        for segment in content.segments.iter().filter(|segment| segment.end() > remote.frontier) {
            cx.send(peer, Message::Segment { digest: self.digest, size, segment: Arc::clone(segment) });
        }
        remote.frontier = remote.frontier.max(content.chain.frontier());
    }

    /// A peer tells what it has. The size it names is nobody's signed word: it counts only once a segment or the origin
    /// says the same, except for blobs of one chunk, which have no states to sign and are small.
    fn they_have(&mut self, cx: &mut Context<'_>, peer: PeerId, size: u64, chunks: ChunkSet) {
        if !self.remotes.contains_key(peer) || self.solo || self.banned.contains(&peer) {
            return;
        }
        let single = Layout::new(size).is_some_and(|layout| layout.count() == 1);
        if single && self.content.is_none() && !self.size_up(cx, size) {
            return;
        }
        if self.content.as_ref().is_some_and(|content| content.layout().size() != size) {
            self.dispute(cx, peer);
            return;
        }
        self.unlist_all(peer);
        let confirms = self.confirms(peer);
        let Some(remote) = self.remotes.get_mut(peer) else { return };
        remote.answered = true;
        remote.size = size;
        if let Some(content) = &mut self.content {
            content.list(&chunks, confirms);
        }
        remote.have = Some(chunks);
        self.ask_states(cx, peer);
    }

    fn they_got(&mut self, cx: &mut Context<'_>, peer: PeerId, chunks: &[ChunkIndex]) {
        let confirms = self.confirms(peer);
        let Some(have) = self.remotes.get_mut(peer).and_then(|remote| remote.have.as_mut()) else { return };
        for chunk in chunks {
            if have.insert(*chunk)
                && let Some(content) = &mut self.content
            {
                content.list_one(*chunk, confirms);
            }
        }
        self.ask_states(cx, peer);
    }

    /// Counts what peers told before the size was sure; forgets what they said about another size.
    pub(super) fn list_early(&mut self, size: u64) {
        let Some(content) = &mut self.content else { return };
        for remote in self.remotes.values_mut() {
            if remote.size != size {
                remote.have = None;
            }
            if let Some(have) = &remote.have {
                content.list(have, true);
            }
        }
    }

    /// Takes back all that a peer counts for.
    fn unlist_all(&mut self, peer: PeerId) {
        let have = self.remotes.get_mut(peer).and_then(|remote| remote.have.take());
        let (Some(content), Some(have)) = (&mut self.content, have) else { return };
        for chunk in have.iter() {
            content.rarity[chunk.at()] = content.rarity[chunk.at()].saturating_sub(1);
        }
    }

    /// Asks a peer for states again if it has chunks that cannot be verified without: whoever sent states before is gone or slow.
    fn ask_states(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        let (Some(content), Some(remote)) = (&mut self.content, self.remotes.get(peer)) else { return };
        if !remote.pruned || content.chain.is_whole() {
            return;
        }
        let end = content.verifiable_end();
        let behind = remote.offers(|theirs| theirs.last().is_some_and(|last| last >= end));
        if behind && content.states_asked + STATES_PATIENCE <= cx.now {
            content.states_asked = cx.now;
            self.subscribe(cx, peer);
        }
    }

    /// A peer sent states that were known: another one is quicker, and this one needs to send no more.
    fn prune(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        let (Some(content), Some(remote)) = (&self.content, self.remotes.get_mut(peer)) else { return };
        if !remote.pruned && remote.subscribed && content.feeder.is_some_and(|feeder| feeder != peer) {
            remote.pruned = true;
            cx.send(peer, Message::Subscribe { digest: self.digest, frontier: content.layout().last() });
        }
    }

    fn they_claim(&mut self, cx: &mut Context<'_>, peer: PeerId, size: u64, segment: Arc<Segment>) {
        if !self.is_fetching() || self.solo || self.banned.contains(&segment.author) || !self.remotes.contains_key(peer)
        {
            return;
        }
        if !self.size_up(cx, size) {
            self.dispute(cx, peer);
            return;
        }
        let (Some(content), Some(remote)) = (&mut self.content, self.remotes.get_mut(peer)) else { return };
        remote.frontier = remote.frontier.max(segment.end());
        let known = content.chain.frontier();
        match content.chain.extend(segment.from, &segment.states) {
            Ok(()) if content.chain.frontier() > known => {
                content.feeder = Some(peer);
                self.pass_on(cx, segment);
                self.hash_next(cx);
            }
            Ok(()) if segment.author != peer => self.prune(cx, peer),
            Ok(()) => {}
            Err(ChainError::Gap) => {
                if content.states_asked + STATES_PATIENCE <= cx.now {
                    content.states_asked = cx.now;
                    self.subscribe(cx, peer);
                }
            }
            Err(ChainError::Beyond | ChainError::Contradiction) => self.dispute(cx, peer),
        }
    }

    /// Keeps a segment that brought news and tells it to subscribers that do not know its states. Those who have them
    /// from elsewhere say so, so that the paths by which they come first are left: mostly straight from the author, who
    /// tells everybody.
    pub(super) fn pass_on(&mut self, cx: &mut Context<'_>, segment: Arc<Segment>) {
        let Some(content) = &mut self.content else { return };
        let size = content.layout().size();
        for (peer, remote) in self.remotes.iter_mut() {
            if remote.subscriber && (segment.author == cx.me || remote.frontier < segment.end()) {
                remote.frontier = remote.frontier.max(segment.end());
                cx.send(peer, Message::Segment { digest: self.digest, size, segment: Arc::clone(&segment) });
            }
        }
        content.signing.cover(segment.end());
        content.segments.push(segment);
    }

    /// A peer holds another claim: it may be right, but its chunks cannot be judged under ours.
    fn dispute(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        cx.out.push(Output::Report(Event::Disputed { digest: self.digest }));
        self.drop_remote(cx, peer);
    }

    /// A peer does not have a chunk that it said it has.
    pub(super) fn unlist(&mut self, peer: PeerId, chunk: ChunkIndex) {
        let (Some(content), Some(remote)) = (&mut self.content, self.remotes.get_mut(peer)) else { return };
        let Some(have) = &mut remote.have else { return };
        if have.contains(chunk) {
            have.remove(chunk);
            content.rarity[chunk.at()] = content.rarity[chunk.at()].saturating_sub(1);
        }
    }

    /// Nothing more is needed of anybody: the others' slots are for those who need them.
    pub(super) fn unsubscribe_all(&mut self, cx: &mut Context<'_>) {
        let subscribed = self.remotes.iter_mut().filter(|(_, remote)| remote.subscribed);
        let told: Vec<(PeerId, bool)> = subscribed
            .map(|(peer, remote)| {
                remote.subscribed = false;
                (peer, remote.subscriber)
            })
            .collect();
        for (peer, subscriber) in told {
            if cx.is_up(peer) {
                cx.send(peer, Message::Unsubscribe { digest: self.digest });
            }
            if !subscriber {
                self.drop_remote(cx, peer);
            }
        }
    }

    /// Tells a peer that is turned away whom else to ask: a few of those that have most, once in a while.
    pub(super) fn suggest(&mut self, cx: &mut Context<'_>, asker: PeerId) {
        if let Some(remote) = self.remotes.get_mut(asker) {
            if remote.suggested.is_some_and(|at| at + SUGGEST_PAUSE > cx.now) {
                return;
            }
            remote.suggested = Some(cx.now);
        }
        let known = self.remotes.iter().filter(|(peer, _)| *peer != asker);
        let mut known: Vec<(u32, Contact)> = known
            .filter_map(|(_, remote)| Some((remote.have.as_ref()?.len(), remote.contact?)))
            .filter(|(have, _)| *have > 0)
            .collect();
        known.sort_unstable_by_key(|(have, contact)| (std::cmp::Reverse(*have), contact.peer));
        let peers: Vec<Contact> = known.into_iter().take(SUGGESTED).map(|(_, contact)| contact).collect();
        if !peers.is_empty() && cx.is_up(asker) {
            cx.send(asker, Message::Peers { digest: self.digest, peers });
        }
    }

    /// Gives a peer up that failed too often.
    pub(super) fn drop_struck(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        if self.remotes.get(peer).is_some_and(|remote| remote.strikes >= cx.limits.strikes_max) {
            self.drop_remote(cx, peer);
        }
    }

    fn drop_remote(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.unlist_all(peer);
        let Some(remote) = self.remotes.remove(peer) else { return };
        if remote.near == Near::Rack {
            self.duty.touch();
        }
        if remote.subscribed && cx.is_up(peer) {
            cx.send(peer, Message::Unsubscribe { digest: self.digest });
        }
        let Some(content) = &mut self.content else { return };
        content.releases.forget(peer);
        content.feeder = content.feeder.filter(|feeder| *feeder != peer);
        let lost: Vec<_> = content.pulls.iter().filter(|(_, pull)| pull.peer == peer).map(|(id, _)| *id).collect();
        for id in lost {
            self.cancel_pull(cx, id);
        }
    }

    /// A pull of a peer came to nothing. One that was silent since then may be gone, long before its connection is found
    /// dead: what it has does not count until it says so again.
    pub(super) fn doubt(&mut self, cx: &mut Context<'_>, peer: PeerId, since: Time) {
        if self.remotes.get(peer).is_some_and(|remote| remote.heard <= since && remote.subscribed) {
            self.unlist_all(peer);
            self.subscribe(cx, peer);
        }
    }

    /// Notes a new chunk for the subscribers: at once if few have it, together with others if many do.
    pub(super) fn tell_later(&mut self, cx: &Context<'_>, chunk: ChunkIndex) {
        let peers = self.remotes.len();
        let Some(content) = &mut self.content else { return };
        let rare = usize::from(content.rarity[chunk.at()]) * RARE <= peers;
        let patience = if rare { Duration::ZERO } else { cx.limits.got_delay_common };
        let due = (content.told + cx.limits.got_delay).max(cx.now + patience);
        content.untold.push(chunk);
        content.tell_at = Some(content.tell_at.map_or(due, |at| at.min(due)));
    }

    /// Tells subscribers of new chunks when it is time.
    pub(super) fn tell_due(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let Some(due) = content.tell_at else { return };
        if due > cx.now {
            self.arm(due);
            return;
        }
        content.told = cx.now;
        content.tell_at = None;
        let untold = std::mem::take(&mut content.untold);
        for (peer, remote) in self.remotes.iter().filter(|(_, remote)| remote.subscriber) {
            let news: Vec<ChunkIndex> =
                untold.iter().filter(|chunk| !remote.offers(|theirs| theirs.contains(**chunk))).copied().collect();
            for chunks in news.chunks(GOT_CHUNKS_MAX) {
                cx.send(peer, Message::Got { digest: self.digest, chunks: chunks.to_vec() });
            }
        }
    }

    /// A peer asks for a chunk. Returns whether it is here.
    pub(super) fn asked(&mut self, cx: &Context<'_>, chunk: ChunkIndex) -> bool {
        self.used = cx.now;
        self.has(chunk)
    }

    /// Whether a chunk is here.
    pub(super) fn has(&self, chunk: ChunkIndex) -> bool {
        self.content.as_ref().is_some_and(|content| content.have.contains(chunk))
    }
}
