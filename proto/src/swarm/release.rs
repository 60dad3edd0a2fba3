//! Send-once: chunks from the origin are shown to one peer each at first.
//!
//! Everybody lacks a fresh chunk, so if all heard of it at once, the lease holder would spend its uplink on copies that
//! peers could pass among themselves. Each chunk is therefore *released* to one subscriber. When any peer says that it
//! has the chunk, it is *confirmed*; while chunks wait for release, confirmed ones are not offered again by this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Context,
    choose::share,
    content::average,
    fetch::Fetch,
    near::Near,
    slots::{Slot, Slots},
};
use crate::{
    chunk::{ChunkIndex, ChunkSet},
    limits::Limits,
    peer::PeerId,
    time::Time,
    wire::Message,
};

/// A release counts as lost after so many times what it usually takes until somebody says that it has the chunk.
const PATIENCE: u32 = 8;
/// What it is taken to take at most.
const PACE_MAX: Duration = Duration::from_secs(10);
/// But not before this.
const TIMEOUT_MIN: Duration = Duration::from_millis(400);

/// With so many peers in other racks, the own rack is shown nothing first.
const RACKS: usize = 3;

/// Where each chunk from the origin stands.
#[derive(Debug, Default)]
pub(super) struct Releases {
    /// Shown to nobody yet.
    waiting: BTreeSet<ChunkIndex>,
    /// Shown to one peer.
    pending: BTreeMap<ChunkIndex, (Slot, Time)>,
    /// With some peer; to be told to all when nothing waits.
    confirmed: Vec<ChunkIndex>,
    /// Moving average of the time from showing to confirmation.
    pace: Duration,
    /// Something was confirmed since a release was last lost.
    moving: bool,
    /// Peers that did not take what they were shown: they are shown no more as long as there are others.
    idle: Slots,
}

impl Releases {
    pub(super) fn add(&mut self, chunk: ChunkIndex) {
        self.waiting.insert(chunk);
    }

    /// Some peer has the chunk.
    pub(super) fn confirm(&mut self, chunk: ChunkIndex) {
        if self.is_idle() {
            return;
        }
        if self.waiting.remove(&chunk) || self.pending.remove(&chunk).is_some() {
            self.moving = true;
            self.confirmed.push(chunk);
        }
    }

    /// The only peer that a chunk was shown to.
    pub(super) fn shown_to(&self, chunk: ChunkIndex) -> Option<Slot> {
        self.pending.get(&chunk).map(|(to, _)| *to)
    }

    /// The peer that a chunk was shown to has been sent it.
    fn confirm_at(&mut self, now: Time, peer: Slot, chunk: ChunkIndex) {
        if let Some((_, since)) = self.pending.get(&chunk).filter(|(to, _)| *to == peer) {
            self.pace = average(self.pace, now.since(*since));
            self.confirm(chunk);
        }
    }

    /// Everything may be told to everybody; returns what that is.
    pub(super) fn open(&mut self) -> Vec<ChunkIndex> {
        let Self { waiting, pending, confirmed, .. } = std::mem::take(self);
        waiting.into_iter().chain(pending.into_keys()).chain(confirmed).collect()
    }

    /// Nobody waits for chunks: the next that comes may see all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A peer is gone: what was shown to it waits again.
    pub(super) fn forget(&mut self, peer: Slot) {
        self.idle.remove(peer);
        self.take_back(|to, _| to == peer);
    }

    /// What was shown to some waits again. Returns to whom that was.
    fn take_back(&mut self, lost: impl Fn(Slot, Time) -> bool) -> Slots {
        let mut from = Slots::NONE;
        let Self { pending, waiting, .. } = self;
        pending.retain(|chunk, (to, since)| {
            let lost = lost(*to, *since);
            if lost {
                waiting.insert(*chunk);
                from.insert(*to);
            }
            !lost
        });
        from
    }

    /// Takes out of `have` what a peer shall not know of yet. What was shown to it stays: it may ask for everything anew
    /// before it had the states to verify that, and nobody else would fetch it.
    pub(super) fn hide(&self, have: &mut ChunkSet, peer: Slot) {
        let elsewhere = self.pending.iter().filter(|(_, (to, _))| *to != peer).map(|(chunk, _)| chunk);
        for chunk in self.waiting.iter().chain(elsewhere).chain(&self.confirmed) {
            have.remove(*chunk);
        }
    }

    fn timeout(&self, limits: &Limits) -> Duration {
        if self.pace.is_zero() { limits.release_timeout } else { (self.pace * PATIENCE).max(TIMEOUT_MIN) }
    }

    pub(super) fn deadline(&self, limits: &Limits) -> Option<Time> {
        self.pending.values().map(|(_, since)| *since).min().map(|since| since + self.timeout(limits))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.pending.is_empty()
    }

    fn expire(&mut self, now: Time, limits: &Limits) {
        let timeout = self.timeout(limits);
        let late = self.take_back(|_, since| since + timeout <= now);
        if !late.is_empty() {
            self.idle = self.idle | late;
            if !std::mem::take(&mut self.moving) {
                // Not that peer is slow, but everything.
                self.pace = self.pace.max(timeout / PATIENCE * 2).min(PACE_MAX);
            }
        }
    }

    fn pending_at(&self, peer: Slot) -> usize {
        self.pending.values().filter(|(to, _)| *to == peer).count()
    }
}

impl Fetch {
    /// A chunk went out to a peer.
    pub(super) fn uploaded(&mut self, cx: &mut Context<'_>, peer: PeerId, chunk: ChunkIndex) {
        if let Some(content) = self.content.as_mut().filter(|content| !content.releases.is_idle())
            && let Some(slot) = self.remotes.find(peer)
        {
            content.releases.confirm_at(cx.now, slot, chunk);
            self.release(cx);
        }
    }

    /// Lets others know of a new chunk: one peer at first if this node brought it in (from the origin, or from another
    /// zone), else all subscribers.
    pub(super) fn show(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, from: Option<PeerId>) {
        let near = from.map(|peer| self.near(peer));
        let Some(content) = &mut self.content else { return };
        let holders = content.offers.holders(chunk);
        let unique = match near {
            None => holders.is_empty(),
            Some(Near::Far) => self.lease.is_some() && (holders & !self.remotes.far).is_empty(),
            Some(Near::Rack | Near::Zone) => false,
        };
        if unique && content.layout().count() >= cx.limits.release_chunks_min {
            content.releases.add(chunk);
        } else {
            let imported = !self.remotes.rack.is_empty() && near.is_some_and(|near| near != Near::Rack);
            self.tell(cx, chunk, imported);
        }
    }

    /// How near a peer is that may be gone meanwhile.
    fn near(&self, peer: PeerId) -> Near {
        match self.remotes.find(peer) {
            Some(slot) if self.remotes.far.contains(slot) => Near::Far,
            Some(slot) if self.remotes.rack.contains(slot) => Near::Rack,
            Some(_) | None => Near::Zone,
        }
    }

    /// Shows waiting chunks to subscribers, within the limits; offers confirmed ones when none waits.
    pub(super) fn release(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        if content.releases.is_idle() && content.releases.confirmed.is_empty() {
            return;
        }
        content.releases.expire(cx.now, cx.limits);
        let shown = self.show_waiting(cx);
        for (slot, chunks) in shown {
            cx.send(self.remotes[slot].peer, Message::Fresh { digest: self.digest, chunks });
        }
        let Some(content) = &mut self.content else { return };
        if let Some(due) = content.releases.deadline(cx.limits) {
            self.arm(due);
        }
        let Some(content) = &mut self.content else { return };
        if content.releases.is_idle() && !content.releases.confirmed.is_empty() {
            for chunk in std::mem::take(&mut content.releases.confirmed) {
                content.news.add(cx.now, chunk, cx.limits);
            }
            self.tell_due(cx);
            if !self.is_fetching() {
                // Until now others' news said what need not be released any more.
                self.unsubscribe_all(cx);
            }
        }
    }

    /// Picks a peer for each waiting chunk while there is room: of the own zone if there are any, at random among those
    /// that were shown the fewest.
    fn show_waiting(&mut self, cx: &mut Context<'_>) -> BTreeMap<Slot, Vec<ChunkIndex>> {
        let mut shown: BTreeMap<Slot, Vec<ChunkIndex>> = BTreeMap::new();
        let Some(content) = &mut self.content else { return shown };
        let subscribers = self.remotes.subscribers;
        let near = subscribers & !self.remotes.far;
        let takers = if near.is_empty() { subscribers } else { near };
        // The others of the own rack would all pass them on through the same uplink.
        let outside = takers & !self.remotes.rack;
        let takers = if outside.len() >= RACKS { outside } else { takers };
        let takers =
            if (takers & !content.releases.idle).is_empty() { takers } else { takers & !content.releases.idle };
        let per_peer = share(cx.limits.releases_max, cx.limits.releases_per_peer_max, takers.len());
        let mut next = ChunkIndex::FIRST;
        while content.releases.pending.len() < cx.limits.releases_max
            && let Some(chunk) = content.releases.waiting.range(next..).next().copied()
        {
            next = chunk.next();
            let room = |slot: Slot| per_peer.saturating_sub(content.releases.pending_at(slot));
            let most = takers.iter().map(room).max().unwrap_or(0);
            if most == 0 {
                break;
            }
            let lacking = takers & !content.offers.holders(chunk);
            if lacking.is_empty() {
                // Everybody has it from elsewhere.
                content.releases.confirm(chunk);
                continue;
            }
            let most = lacking.iter().map(room).max().unwrap_or(0);
            let able = lacking.iter().filter(|slot| room(*slot) == most && most > 0);
            let able = able.fold(Slots::NONE, |all, slot| all | Slots::only(slot));
            let Some(slot) = able.any(cx.rng) else { continue };
            content.releases.waiting.remove(&chunk);
            content.releases.pending.insert(chunk, (slot, cx.now));
            shown.entry(slot).or_default().push(chunk);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_anew_still_hears_of_what_it_alone_was_shown() {
        let mut slots = Slots::ALL.iter();
        let (Some(one), Some(other)) = (slots.next(), slots.next()) else { unreachable!("there are 64") };
        let mut releases = Releases::default();
        releases.pending.insert(ChunkIndex(3), (one, Time::ZERO));
        releases.add(ChunkIndex(4));
        let seen = |peer| {
            let mut chunks = ChunkSet::full(6);
            releases.hide(&mut chunks, peer);
            chunks.iter().map(|chunk| chunk.0).collect::<Vec<_>>()
        };
        assert_eq!(seen(one), [0, 1, 2, 3, 5]);
        assert_eq!(seen(other), [0, 1, 2, 5]);
    }

    #[test]
    fn what_a_peer_does_not_take_is_shown_to_another() {
        let mut slots = Slots::ALL.iter();
        let (Some(one), Some(other)) = (slots.next(), slots.next()) else { unreachable!("there are 64") };
        let (mut releases, limits, at) =
            (Releases::default(), Limits::default(), |ms| Time::ZERO + Duration::from_millis(ms));
        for (chunk, slot) in [(0, one), (1, other)] {
            releases.pending.insert(ChunkIndex(chunk), (slot, at(0)));
        }
        releases.confirm_at(at(100), one, ChunkIndex(0));
        assert_eq!(releases.deadline(&limits), Some(at(800)), "eight times what the first took");
        releases.expire(at(800), &limits);
        assert!(releases.waiting.contains(&ChunkIndex(1)) && releases.idle.contains(other));
    }
}
