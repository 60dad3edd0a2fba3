//! What a fetch knows of its blob once the size is known: states, chunks, and what is on its way.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    PullId,
    news::News,
    offers::Offers,
    release::Releases,
    sign::Signing,
    slots::{Slot, Slots},
    width::Width,
};
use crate::{
    chain::Chain,
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    limits::Limits,
    peer::PeerId,
    time::Time,
};

/// A pull counts as lost after so many times what pulls take.
pub(super) const PULL_PATIENCE: u32 = 6;
/// What pulls are taken to take at most.
pub(super) const PULL_TIME_MAX: Duration = Duration::from_secs(20);
/// After so many times what pulls take, one is asked of a second peer too.
const HEDGE_PATIENCE: u32 = 4;
/// But not before this.
const HEDGE_MIN: Duration = Duration::from_millis(20);

/// What is known of a blob whose size is known.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) chain: Chain,
    /// The signed states that the chain was made of, in order.
    pub(super) segments: Vec<Arc<Segment>>,
    /// States that this node computed itself and has to sign.
    pub(super) signing: Signing,
    pub(super) have: ChunkSet,
    /// Chunks that were stored unhashed, since the states in front of them are not known. They count as busy.
    pub(super) raw: ChunkSet,
    /// The chunk of these that is being hashed.
    pub(super) hashing: Option<ChunkIndex>,
    /// The peer that brought the last new states.
    pub(super) feeder: Option<PeerId>,
    /// When states were last asked for again.
    pub(super) states_asked: Time,
    /// Chunks that we were shown first, and by whom.
    pub(super) fresh: BTreeMap<ChunkIndex, Slot>,
    /// Chunks that are being pulled.
    busy: ChunkSet,
    /// Who has which chunk.
    pub(super) offers: Offers,
    pub(super) pulls: Vec<(PullId, Pull)>,
    /// How many of these are not fresh from the origin.
    pub(super) common_pulls: usize,
    /// Whether any pull was good: until then, slow and silent peers look alike.
    pub(super) supplied: bool,
    /// When the last good one ended.
    supplied_at: Time,
    /// Moving average of how long a good pull takes.
    pub(super) pull_time: Duration,
    /// How many pulls fit.
    width: Width,
    pub(super) releases: Releases,
    pub(super) news: News,
}

/// A chunk on its way from a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pull {
    pub(super) peer: Slot,
    pub(super) chunk: ChunkIndex,
    pub(super) started: Time,
    /// It is of those that we were shown first, and takes no room from others.
    pub(super) fresh: bool,
    /// Since when it is waited for, until another peer is asked: anew after each try, since that one may be busy, or gone, too.
    /// None if nobody else is asked.
    pub(super) waited: Option<Time>,
}

impl Pull {
    /// Whether it was time to ask another peer, or none else can be asked.
    pub(super) fn is_slow(&self) -> bool {
        self.waited != Some(self.started)
    }
}

impl Content {
    pub(super) fn new(chain: Chain, have: ChunkSet) -> Self {
        let count = chain.layout().count();
        Self {
            chain,
            segments: Vec::new(),
            signing: Signing::default(),
            have,
            raw: ChunkSet::empty(count),
            hashing: None,
            feeder: None,
            states_asked: Time::ZERO,
            fresh: BTreeMap::new(),
            busy: ChunkSet::empty(count),
            offers: Offers::new(count),
            pulls: Vec::new(),
            common_pulls: 0,
            supplied: false,
            supplied_at: Time::ZERO,
            pull_time: Duration::ZERO,
            width: Width::default(),
            releases: Releases::default(),
            news: News::default(),
        }
    }

    pub(super) const fn layout(&self) -> Layout {
        self.chain.layout()
    }

    /// The chunks in front of which all states are known end here.
    pub(super) fn verifiable_end(&self) -> ChunkIndex {
        if self.chain.is_whole() { ChunkIndex(self.layout().count()) } else { self.chain.frontier() }
    }

    /// Whether a chunk is lacking, on its way from nobody, and can be verified.
    pub(super) fn wants(&self, chunk: ChunkIndex) -> bool {
        chunk < self.verifiable_end() && !self.have.contains(chunk) && !self.busy.contains(chunk)
    }

    /// Opens or closes a chunk for being asked for, after anything about it changed.
    fn settle(&mut self, chunk: ChunkIndex) {
        let wanted = self.wants(chunk);
        self.offers.settle(chunk, wanted);
    }

    /// States became known: chunks from `before` on may be verifiable now.
    pub(super) fn extended(&mut self, before: ChunkIndex) {
        for chunk in before.0..self.verifiable_end().0 {
            self.settle(ChunkIndex(chunk));
        }
    }

    /// A chunk is here. Returns whether that is new.
    pub(super) fn insert(&mut self, chunk: ChunkIndex) -> bool {
        let new = self.have.insert(chunk);
        self.settle(chunk);
        new
    }

    /// Whether one of these peers was asked for a chunk.
    pub(super) fn is_pulled_from(&self, chunk: ChunkIndex, peers: Slots) -> bool {
        self.busy.contains(chunk) && self.pulls.iter().any(|(_, pull)| pull.chunk == chunk && peers.contains(pull.peer))
    }

    /// A chunk is stored and will be hashed when the state in front of it is known.
    pub(super) fn insert_raw(&mut self, chunk: ChunkIndex) {
        if !self.have.contains(chunk) {
            self.raw.insert(chunk);
            self.busy.insert(chunk);
            self.settle(chunk);
        }
    }

    /// Takes a chunk out of those that wait to be hashed; returns whether it was one.
    pub(super) fn take_raw(&mut self, chunk: ChunkIndex) -> bool {
        let waited = self.raw.contains(chunk);
        if waited {
            self.raw.remove(chunk);
            self.busy.remove(chunk);
            self.settle(chunk);
        }
        waited
    }

    /// A peer has this chunk. It `confirms` its release unless it stands where the chunk was imported from. Returns whether
    /// that is news.
    pub(super) fn list(&mut self, slot: Slot, chunk: ChunkIndex, confirms: bool) -> bool {
        if !self.offers.list(slot, chunk) {
            return false;
        }
        self.settle(chunk);
        if confirms {
            self.releases.confirm(chunk);
        }
        true
    }

    /// Who signed the state in front of a chunk.
    pub(super) fn author_of(&self, chunk: ChunkIndex) -> Option<PeerId> {
        let covers = |segment: &&Arc<Segment>| segment.from < chunk && chunk <= segment.end();
        self.segments.iter().find(covers).map(|segment| segment.author)
    }

    pub(super) fn missing(&self) -> u32 {
        self.layout().count() - self.have.len()
    }

    /// A pull is out.
    pub(super) fn add_pull(&mut self, id: PullId, pull: Pull) {
        self.busy.insert(pull.chunk);
        self.settle(pull.chunk);
        self.common_pulls += usize::from(!pull.fresh);
        self.pulls.push((id, pull));
    }

    /// A chunk is no longer on its way from this pull; it may still be from another.
    pub(super) fn drop_pull(&mut self, pull: PullId) -> Option<Pull> {
        let at = self.pulls.iter().position(|(other, _)| *other == pull)?;
        let (_, dropped) = self.pulls.swap_remove(at);
        self.common_pulls -= usize::from(!dropped.fresh);
        if !self.pulls.iter().any(|(_, other)| other.chunk == dropped.chunk) {
            self.busy.remove(dropped.chunk);
            self.settle(dropped.chunk);
        }
        Some(dropped)
    }

    /// A good pull took so long while so many were out.
    pub(super) fn note_time(&mut self, now: Time, took: Duration, at_once: usize) {
        self.supplied = true;
        self.supplied_at = now;
        self.pull_time = average(self.pull_time, took);
        self.width.note(took, at_once);
    }

    /// A pull was given up. All may just be slow: give the next ones twice the time. But if others were good meanwhile, and the
    /// peer never was, it is this peer: nobody else shall be waited for longer.
    pub(super) fn note_late(&mut self, started: Time, now: Time, proven: bool) {
        if self.supplied_at > started && !proven {
            return;
        }
        let took = now.since(started);
        self.pull_time = self.pull_time.max(took * 2 / PULL_PATIENCE).min(PULL_TIME_MAX);
    }

    /// Pulls to have out at once: many hide the way there and back, but where each takes long, they only delay each other,
    /// and large chunks take memory.
    pub(super) fn pulls_max(&self, limits: &Limits) -> usize {
        let room = (limits.pull_bytes_max / self.layout().chunk_bytes()).max(2) as usize;
        let most = limits.pulls_max.min(room);
        self.width.at_once(most)
    }

    /// When a pull counts as lost.
    pub(super) fn pull_end(&self, pull: &Pull, limits: &Limits) -> Time {
        let first = if self.supplied { limits.pull_timeout_min } else { limits.pull_timeout_first };
        pull.started + first.max(self.pull_time * PULL_PATIENCE)
    }

    pub(super) fn in_endgame(&self, limits: &Limits) -> bool {
        self.missing() <= limits.endgame_chunks
    }

    /// When a slow pull is asked of another peer too: soon where it holds up the end, later in between.
    pub(super) fn hedge_at(&self, pull: &Pull, limits: &Limits) -> Option<Time> {
        let patience = if self.in_endgame(limits) { 2 } else { HEDGE_PATIENCE };
        let since = pull.waited.filter(|_| self.supplied)?;
        Some(since + (self.pull_time * patience).max(HEDGE_MIN))
    }

    /// When something is to be done about a pull.
    pub(super) fn pull_due(&self, pull: &Pull, limits: &Limits) -> Time {
        let end = self.pull_end(pull, limits);
        self.hedge_at(pull, limits).map_or(end, |hedge| hedge.min(end))
    }
}

/// A moving average of times; the first one counts in full.
pub(super) fn average(before: Duration, took: Duration) -> Duration {
    if before.is_zero() { took } else { (before * 7 + took) / 8 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_peer_that_does_not_answer_makes_others_wait_longer_only_if_they_do_not_answer_either() {
        let layout = Layout::new(64 << 20).expect("small");
        let chain = Chain::new(Digest::sha256([1; 32]), layout).expect("a chain of SHA-256");
        let mut content = Content::new(chain, ChunkSet::empty(layout.count()));
        let at = |milliseconds| Time::ZERO + Duration::from_millis(milliseconds);
        let usual = Duration::from_millis(10);
        content.note_time(at(100), usual, 1);
        let twice = Duration::from_millis(800) / PULL_PATIENCE;
        content.note_late(at(90), at(490), false);
        assert_eq!(content.pull_time, usual, "others came meanwhile, nothing ever of this one");
        content.note_late(at(110), at(510), false);
        assert_eq!(content.pull_time, twice, "nothing came of anybody: twice the time");
        content.pull_time = usual;
        content.note_late(at(90), at(490), true);
        assert_eq!(content.pull_time, twice, "it did send before: the link may be slow");
    }
}
