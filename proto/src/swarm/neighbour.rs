//! The peers of one blob: who becomes one, what they tell, and when one is given up.

use super::{
    Context,
    content::Content,
    fetch::Fetch,
    slots::{Slot, Slots},
};
use crate::{
    chunk::{ChunkIndex, ChunkSet, Layout},
    peer::{Contact, PeerId},
    time::Time,
    wire::Message,
};

/// Peers named to one that is turned away.
const SUGGESTED: usize = 4;
/// Shortest time between two such messages to one peer.
const SUGGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);
/// Peers that were given up in one fetch are remembered, up to so many.
const SHUNNED_MAX: usize = 256;

impl Fetch {
    /// Makes a peer a neighbour, if there is room.
    pub(super) fn meet(&mut self, cx: &mut Context<'_>, contact: Contact) {
        self.meet_within(cx, contact, cx.limits.neighbours_max);
    }

    /// The same as long as there are not so many.
    pub(super) fn meet_within(&mut self, cx: &mut Context<'_>, contact: Contact, most: usize) {
        let peer = contact.peer;
        if peer == cx.me || self.solo || !self.is_fetching() || self.is_shunned(cx.now, peer) {
            return;
        }
        // Whoever imports needs peers of other zones, however many of the own one found it first.
        let full = match &self.lease {
            Some(lease) if lease.is_import() => self.remotes.far.len() >= most,
            Some(_) => self.remotes.subscribed.len() >= most * 2,
            None => self.remotes.subscribed.len() >= most,
        };
        if full || self.remotes.is_subscribed(peer) {
            return;
        }
        let up = cx.reach(contact);
        let Some(slot) = self.remotes.find_or_insert(peer, up) else { return };
        self.remotes.subscribed.insert(slot);
        self.remotes[slot].contact = Some(contact);
        if up {
            self.place(cx, slot);
            self.subscribe(cx, slot);
        }
    }

    pub(super) fn is_shunned(&self, now: Time, peer: PeerId) -> bool {
        self.claims.is_banned(peer) || self.shunned.get(&peer).is_some_and(|until| *until > now)
    }

    /// Has nothing to do with a peer until then.
    pub(super) fn shun(&mut self, peer: PeerId, until: Time) {
        if self.shunned.len() < SHUNNED_MAX || self.shunned.contains_key(&peer) {
            self.shunned.insert(peer, until);
        }
    }

    /// Notes how near a connected peer is.
    fn place(&mut self, cx: &Context<'_>, slot: Slot) {
        self.remotes[slot].up = true;
        let near = cx.near(self.remotes[slot].peer);
        self.remotes.place(slot, near);
    }

    pub(super) fn subscribe(&mut self, cx: &mut Context<'_>, slot: Slot) {
        let frontier = self.content.as_ref().map_or(ChunkIndex::FIRST, |content| content.chain.frontier());
        let remote = &mut self.remotes[slot];
        remote.pruned = false;
        cx.send(remote.peer, Message::Subscribe { digest: self.digest, frontier });
    }

    pub(super) fn connected(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        if let Some(slot) = self.remotes.find(peer).filter(|slot| self.remotes.subscribed.contains(*slot)) {
            self.place(cx, slot);
            self.subscribe(cx, slot);
        }
        self.track_connected(cx, peer);
    }

    pub(super) fn disconnected(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        if let Some(slot) = self.remotes.find(peer) {
            self.remotes[slot].up = false;
            self.drop_remote(cx, slot);
        }
        self.track_disconnected(cx, peer);
        self.advance(cx);
    }

    pub(super) fn received(&mut self, cx: &mut Context<'_>, peer: PeerId, message: Message) {
        let slot = self.remotes.find(peer);
        if let Some(slot) = slot {
            self.remotes[slot].heard = cx.now;
        }
        match (message, slot) {
            (Message::Got { chunks, .. }, Some(slot)) => {
                self.they_got(cx, slot, &chunks);
                if self.is_fetching() {
                    self.pull_from(cx, slot);
                } else {
                    self.release(cx);
                }
                return;
            }
            (Message::Joined { peers, lease, served, sources, .. }, _) => {
                self.joined(cx, peer, &peers, lease, served, &sources);
            }
            (Message::Revoked { epoch, .. }, _) => self.revoked(cx, peer, epoch),
            (Message::Subscribe { frontier, .. }, _) => self.subscribed(cx, peer, frontier),
            (Message::Unsubscribe { .. }, Some(slot)) => {
                self.remotes.subscribers.remove(slot);
                if !self.remotes.subscribed.contains(slot) {
                    self.drop_remote(cx, slot);
                }
            }
            (Message::Have { size, chunks, .. }, Some(slot)) => self.they_have(cx, slot, size, chunks),
            // Only from those whom this node asked: nobody else shall make it dial.
            (Message::Peers { peers, .. }, Some(slot)) if self.remotes.subscribed.contains(slot) => {
                for contact in peers {
                    self.meet(cx, contact);
                }
            }
            (Message::Fresh { chunks, .. }, Some(slot)) => {
                self.they_got(cx, slot, &chunks);
                if let Some(content) = &mut self.content {
                    let layout = content.layout();
                    let known = chunks.into_iter().filter(|chunk| layout.contains(*chunk));
                    content.fresh.extend(known.map(|chunk| (chunk, slot)));
                }
            }
            (Message::Segment { size, segment, .. }, Some(slot)) => self.they_claim(cx, slot, size, segment),
            (Message::Unknown { .. }, Some(slot)) => self.remotes[slot].answered = true,
            (
                Message::Join(_)
                | Message::Leave { .. }
                | Message::Got { .. }
                | Message::Unsubscribe { .. }
                | Message::Have { .. }
                | Message::Peers { .. }
                | Message::Fresh { .. }
                | Message::Segment { .. }
                | Message::Unknown { .. }
                | Message::Entitled { .. }
                | Message::Tag { .. },
                _,
            ) => {}
        }
        self.advance(cx);
    }

    fn subscribed(&mut self, cx: &mut Context<'_>, peer: PeerId, frontier: ChunkIndex) {
        let room = self.remotes.len() < cx.limits.remotes_max || self.remotes.find(peer).is_some();
        let Some(slot) = room.then(|| self.remotes.find_or_insert(peer, true)).flatten() else {
            cx.send(peer, Message::Unknown { digest: self.digest });
            self.suggest(cx, peer);
            return;
        };
        let known = self.remotes.subscribers.contains(slot);
        self.remotes.subscribers.insert(slot);
        self.remotes[slot].frontier = frontier;
        let back = self.is_fetching() && !self.solo && !self.is_shunned(cx.now, peer);
        let back = back && !self.remotes.subscribed.contains(slot);
        if back {
            self.remotes.subscribed.insert(slot);
        }
        self.place(cx, slot);
        let needs_nothing = self.content.as_ref().is_some_and(|content| frontier >= content.layout().last());
        if known && needs_nothing {
            // It only says that it gets the states from others.
        } else if self.content.is_some() {
            self.send_have(cx, slot);
        } else {
            cx.send(peer, Message::Unknown { digest: self.digest });
        }
        if back {
            self.subscribe(cx, slot);
        }
    }

    /// Tells a subscriber all: chunks and the states that it does not know.
    pub(super) fn send_have(&mut self, cx: &mut Context<'_>, slot: Slot) {
        let Some(content) = &self.content else { return };
        let remote = &mut self.remotes[slot];
        let mut chunks = content.have.clone();
        content.releases.hide(&mut chunks, slot);
        remote.told = content.news.len();
        let size = content.layout().size();
        cx.send(remote.peer, Message::Have { digest: self.digest, size, chunks });
        for segment in content.segments.iter().filter(|segment| segment.end() > remote.frontier) {
            cx.send(remote.peer, Message::Segment { digest: self.digest, size, segment: segment.clone() });
        }
        remote.frontier = remote.frontier.max(content.chain.frontier());
    }

    /// A peer tells what it has. The size it names is nobody's signed word: it counts only once a segment or the origin
    /// says the same, except for blobs of one chunk, which have no states to sign and are small.
    fn they_have(&mut self, cx: &mut Context<'_>, slot: Slot, size: u64, chunks: ChunkSet) {
        if self.solo || self.claims.is_banned(self.remotes[slot].peer) {
            return;
        }
        let single = Layout::new(size).is_some_and(|layout| layout.count() == 1);
        if single && self.content.is_none() && !self.size_up(cx, size) {
            return;
        }
        self.remotes[slot].answered = true;
        let confirms = self.confirms(slot);
        let Some(content) = &mut self.content else {
            self.remotes[slot].early = Some((size, chunks));
            return;
        };
        if content.layout().size() != size {
            self.dispute(cx, slot);
            return;
        }
        forget_offers(content, &mut self.remotes[slot], slot);
        list(content, &mut self.remotes[slot], slot, chunks.iter(), confirms);
        self.ask_states(cx, slot);
    }

    fn they_got(&mut self, cx: &mut Context<'_>, slot: Slot, chunks: &[ChunkIndex]) {
        let confirms = self.confirms(slot);
        let remote = &mut self.remotes[slot];
        match (&mut self.content, &mut remote.early) {
            (Some(content), _) => {
                list(content, remote, slot, chunks.iter().copied(), confirms);
                self.ask_states(cx, slot);
            }
            (None, Some((_, early))) => {
                for chunk in chunks {
                    early.insert(*chunk);
                }
            }
            (None, None) => {}
        }
    }

    /// Counts what peers told before the size was sure; forgets what they said about another size.
    pub(super) fn list_early(&mut self, size: u64) {
        let Some(content) = &mut self.content else { return };
        for slot in self.remotes.all().iter() {
            let remote = &mut self.remotes[slot];
            if let Some((_, chunks)) = remote.early.take().filter(|(said, _)| *said == size) {
                list(content, remote, slot, chunks.iter(), true);
            }
        }
    }

    /// A peer does not have a chunk that it said it has.
    pub(super) fn unlist(&mut self, slot: Slot, chunk: ChunkIndex) {
        if let Some(content) = &mut self.content
            && content.offers.unlist(slot, chunk)
        {
            let has = &mut self.remotes[slot].has;
            *has = has.saturating_sub(1);
        }
    }

    /// Nothing more is needed of anybody: the others' slots are for those who need them.
    pub(super) fn unsubscribe_all(&mut self, cx: &mut Context<'_>) {
        for slot in std::mem::replace(&mut self.remotes.subscribed, Slots::NONE).iter() {
            let remote = &self.remotes[slot];
            if remote.up {
                cx.send(remote.peer, Message::Unsubscribe { digest: self.digest });
            }
            if !self.remotes.subscribers.contains(slot) {
                self.drop_remote(cx, slot);
            }
        }
    }

    /// Tells a peer that is turned away whom else to ask: a few of those that have most, once in a while.
    pub(super) fn suggest(&mut self, cx: &mut Context<'_>, asker: PeerId) {
        if let Some(slot) = self.remotes.find(asker) {
            let remote = &mut self.remotes[slot];
            if remote.suggested.is_some_and(|at| at + SUGGEST_PAUSE > cx.now) {
                return;
            }
            remote.suggested = Some(cx.now);
        }
        let known = self.remotes.iter().filter(|(_, remote)| remote.peer != asker && remote.has > 0);
        let mut known: Vec<(u32, Contact)> =
            known.filter_map(|(_, remote)| Some((remote.has, remote.contact?))).collect();
        known.sort_unstable_by_key(|(has, contact)| (std::cmp::Reverse(*has), contact.peer));
        let peers: Vec<Contact> = known.into_iter().take(SUGGESTED).map(|(_, contact)| contact).collect();
        if !peers.is_empty() && cx.is_up(asker) {
            cx.send(asker, Message::Peers { digest: self.digest, peers });
        }
    }

    /// Gives a peer up that failed too often.
    pub(super) fn drop_struck(&mut self, cx: &mut Context<'_>, slot: Slot) {
        let remote = &self.remotes[slot];
        let lies = remote.lies >= cx.limits.strikes_max;
        let given_up = lies || remote.strikes >= cx.limits.strikes_max;
        if lies {
            self.shun(remote.peer, Time::MAX);
        }
        if given_up {
            self.drop_remote(cx, slot);
        }
    }

    pub(super) fn drop_remote(&mut self, cx: &mut Context<'_>, slot: Slot) {
        if let Some(content) = &mut self.content {
            content.offers.unlist_all(slot);
            content.releases.forget(slot);
            let lost = content.pulls.iter().filter(|(_, pull)| pull.peer == slot).map(|(id, _)| *id);
            for id in lost.collect::<Vec<_>>() {
                self.cancel_pull(cx, id);
            }
        }
        let subscribed = self.remotes.subscribed.contains(slot);
        let Some(remote) = self.remotes.remove(slot) else { return };
        if subscribed && remote.up {
            cx.send(remote.peer, Message::Unsubscribe { digest: self.digest });
        }
        if let Some(content) = &mut self.content {
            content.feeder = content.feeder.filter(|feeder| *feeder != remote.peer);
        }
        if self.claims.forget(remote.peer) {
            self.ask_all_again(cx);
        }
    }

    /// A pull of a peer came to nothing. One that was silent since then may be gone, long before its connection is found
    /// dead: what it has does not count until it says so again.
    pub(super) fn doubt(&mut self, cx: &mut Context<'_>, slot: Slot, since: Time) {
        let silent = self.remotes[slot].heard <= since && self.remotes.subscribed.contains(slot);
        if let Some(content) = self.content.as_mut().filter(|_| silent) {
            forget_offers(content, &mut self.remotes[slot], slot);
            self.subscribe(cx, slot);
        }
    }

    /// Whether a chunk is here.
    pub(super) fn has(&self, chunk: ChunkIndex) -> bool {
        self.content.as_ref().is_some_and(|content| content.have.contains(chunk))
    }
}

/// Counts chunks that a peer has.
fn list(
    content: &mut Content,
    remote: &mut super::remotes::Remote,
    slot: Slot,
    chunks: impl Iterator<Item = ChunkIndex>,
    confirms: bool,
) {
    for chunk in chunks {
        if content.list(slot, chunk, confirms) {
            remote.has += 1;
            remote.furthest = remote.furthest.max(chunk);
        }
    }
}

/// Takes back all that a peer counts for.
fn forget_offers(content: &mut Content, remote: &mut super::remotes::Remote, slot: Slot) {
    if remote.has > 0 {
        content.offers.unlist_all(slot);
        (remote.has, remote.furthest) = (0, ChunkIndex::FIRST);
    }
}
