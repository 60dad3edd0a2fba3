//! Send-once: chunks from the origin are shown to one peer each at first.
//!
//! Everybody lacks a fresh chunk, so if all heard of it at once, the lease holder would spend its uplink on copies that
//! peers could pass among themselves. Each chunk is therefore *released* to one subscriber. When any peer says that it
//! has the chunk, it is *confirmed*; while chunks wait for release, confirmed ones are not offered again by this node.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;

use super::{Context, fetch::Fetch, near::Near, neighbour::Remote, pick};
use crate::{
    chunk::{ChunkIndex, ChunkSet},
    limits::Limits,
    peer::PeerId,
    time::Time,
    wire::Message,
};

/// Where each chunk from the origin stands.
#[derive(Debug, Default)]
pub(super) struct Releases {
    /// Shown to nobody yet.
    waiting: BTreeSet<ChunkIndex>,
    /// Shown to one peer.
    pending: BTreeMap<ChunkIndex, (PeerId, Time)>,
    /// With some peer; to be told to all when nothing waits.
    confirmed: Vec<ChunkIndex>,
}

impl Releases {
    pub(super) fn add(&mut self, chunk: ChunkIndex) {
        self.waiting.insert(chunk);
    }

    /// Some peer has the chunk.
    pub(super) fn confirm(&mut self, chunk: ChunkIndex) {
        if self.waiting.remove(&chunk) || self.pending.remove(&chunk).is_some() {
            self.confirmed.push(chunk);
        }
    }

    /// The peer that a chunk was shown to has been sent it.
    fn confirm_at(&mut self, peer: PeerId, chunk: ChunkIndex) {
        if self.pending.get(&chunk).is_some_and(|(to, _)| *to == peer) {
            self.confirm(chunk);
        }
    }

    /// Everything may be told to everybody; returns what that is.
    pub(super) fn open(&mut self) -> Vec<ChunkIndex> {
        let Self { waiting, pending, confirmed } = std::mem::take(self);
        waiting.into_iter().chain(pending.into_keys()).chain(confirmed).collect()
    }

    /// Nobody waits for chunks: the next that comes may see all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A peer is gone: what was shown to it waits again.
    pub(super) fn forget(&mut self, peer: PeerId) {
        let lost: Vec<ChunkIndex> =
            self.pending.iter().filter(|(_, (to, _))| *to == peer).map(|(chunk, _)| *chunk).collect();
        for chunk in lost {
            self.pending.remove(&chunk);
            self.waiting.insert(chunk);
        }
    }

    /// Takes out of `have` what a peer shall not know of yet. What was shown to it stays: it may ask for everything anew
    /// before it had the states to verify that, and nobody else would fetch it.
    pub(super) fn hide(&self, have: &mut ChunkSet, peer: PeerId) {
        let elsewhere = self.pending.iter().filter(|(_, (to, _))| *to != peer).map(|(chunk, _)| chunk);
        for chunk in self.waiting.iter().chain(elsewhere).chain(&self.confirmed) {
            have.remove(*chunk);
        }
    }

    pub(super) fn deadline(&self, limits: &Limits) -> Option<Time> {
        self.pending.values().map(|(_, since)| *since + limits.release_timeout).min()
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.pending.is_empty()
    }

    fn expire(&mut self, now: Time, limits: &Limits) {
        let late: Vec<ChunkIndex> = self
            .pending
            .iter()
            .filter(|(_, (_, since))| *since + limits.release_timeout <= now)
            .map(|(chunk, _)| *chunk)
            .collect();
        for chunk in late {
            self.pending.remove(&chunk);
            self.waiting.insert(chunk);
        }
    }

    fn pending_at(&self, peer: PeerId) -> usize {
        self.pending.values().filter(|(to, _)| *to == peer).count()
    }
}

impl Fetch {
    /// A chunk went out to a peer.
    pub(super) fn uploaded(&mut self, cx: &mut Context<'_>, peer: PeerId, chunk: ChunkIndex) {
        if let Some(content) = &mut self.content {
            content.releases.confirm_at(peer, chunk);
        }
        self.release(cx);
    }

    /// Lets others know of a new chunk: one peer at first if this node brought it in (from the origin, or from another
    /// zone), else all subscribers.
    pub(super) fn show(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, from: Option<PeerId>) {
        let Some(content) = &mut self.content else { return };
        let near = from.map(|peer| self.remotes.get(peer).map_or(Near::Zone, |remote| remote.near));
        let unique = match near {
            None => content.rarity[chunk.at()] == 0,
            Some(Near::Far) if self.lease.is_some() => {
                let near = |remote: &Remote| remote.near != Near::Far && remote.offers(|theirs| theirs.contains(chunk));
                !self.remotes.values().any(near)
            }
            Some(Near::Rack | Near::Zone | Near::Far) => false,
        };
        if unique && content.layout().count() >= cx.limits.release_chunks_min {
            content.releases.add(chunk);
        } else {
            self.tell_later(cx, chunk);
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
        for (peer, chunks) in shown {
            cx.send(peer, Message::Fresh { digest: self.digest, chunks });
        }
        let Some(content) = &mut self.content else { return };
        if let Some(due) = content.releases.deadline(cx.limits) {
            self.arm(due);
        }
        let Some(content) = &mut self.content else { return };
        if content.releases.is_idle() && !content.releases.confirmed.is_empty() {
            content.untold.append(&mut content.releases.confirmed);
            content.tell_at.get_or_insert(content.told + cx.limits.got_delay);
            self.tell_due(cx);
        }
    }

    /// Picks a peer for each waiting chunk while there is room: of the own zone if there are any, at random among those
    /// that were shown the fewest.
    fn show_waiting(&mut self, cx: &mut Context<'_>) -> BTreeMap<PeerId, Vec<ChunkIndex>> {
        let mut shown: BTreeMap<PeerId, Vec<ChunkIndex>> = BTreeMap::new();
        let Some(content) = &mut self.content else { return shown };
        let near = self.remotes.values().any(|remote| remote.subscriber && remote.near != Near::Far);
        let takes = |remote: &Remote| remote.subscriber && (!near || remote.near != Near::Far);
        let takers: Vec<(PeerId, &Remote)> = self.remotes.iter().filter(|(_, remote)| takes(remote)).collect();
        let per_peer = pick::share(cx.limits.releases_max, cx.limits.releases_per_peer_max, takers.len());
        let mut next = ChunkIndex::FIRST;
        while content.releases.pending.len() < cx.limits.releases_max
            && let Some(chunk) = content.releases.waiting.range(next..).next().copied()
        {
            next = chunk.next();
            let room = |peer: PeerId| per_peer.saturating_sub(content.releases.pending_at(peer));
            if !takers.iter().any(|(peer, _)| room(*peer) > 0) {
                break;
            }
            let lacking = takers.iter().filter(|(_, remote)| !remote.offers(|theirs| theirs.contains(chunk)));
            let mut lacking = lacking.map(|(peer, _)| *peer).peekable();
            if lacking.peek().is_none() {
                // Everybody has it from elsewhere.
                drop(lacking);
                content.releases.confirm(chunk);
                continue;
            }
            let random = &mut *cx.rng;
            let able = lacking.filter(|peer| room(*peer) > 0);
            let Some(peer) = able.max_by_key(|peer| (room(*peer), random.random::<u32>())) else { continue };
            content.releases.waiting.remove(&chunk);
            content.releases.pending.insert(chunk, (peer, cx.now));
            shown.entry(peer).or_default().push(chunk);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_asks_anew_still_hears_of_what_it_alone_was_shown() {
        let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
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
}
