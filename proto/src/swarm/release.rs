//! Send-once: chunks from the origin are shown to one peer each at first.
//!
//! Everybody lacks a fresh chunk, so if all heard of it at once, the lease holder would spend its uplink on copies that
//! peers could pass among themselves. Each chunk is therefore *released* to one subscriber. When any peer says that it
//! has the chunk, it is *confirmed*; while chunks wait for release, confirmed ones are not offered again by this node.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;

use super::{Context, fetch::Fetch, pick};
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

    /// Takes out of `have` what is not for everybody's eyes yet.
    pub(super) fn hide(&self, have: &mut ChunkSet) {
        for chunk in self.waiting.iter().chain(self.pending.keys()).chain(&self.confirmed) {
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

    /// Shows waiting chunks to subscribers, within the limits; offers confirmed ones when none waits.
    pub(super) fn release(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        content.releases.expire(cx.now, cx.limits);
        let mut shown: BTreeMap<PeerId, Vec<ChunkIndex>> = BTreeMap::new();
        let subscribers = self.remotes.values().filter(|remote| remote.subscriber).count();
        let per_peer = pick::share(cx.limits.releases_max, cx.limits.releases_per_peer_max, subscribers);
        let waiting: Vec<ChunkIndex> = content.releases.waiting.iter().copied().collect();
        for chunk in waiting {
            let room = |peer: PeerId| per_peer.saturating_sub(content.releases.pending_at(peer));
            let mut takers = self.remotes.iter().filter(|(_, remote)| remote.subscriber).peekable();
            let full = content.releases.pending.len() >= cx.limits.releases_max;
            if full || takers.peek().is_none() || !takers.clone().any(|(peer, _)| room(*peer) > 0) {
                break;
            }
            let lacking = takers.filter(|(_, remote)| !remote.offers(|theirs| theirs.contains(chunk)));
            let lacking: Vec<PeerId> = lacking.map(|(peer, _)| *peer).collect();
            if lacking.is_empty() {
                // Everybody has it from elsewhere.
                content.releases.confirm(chunk);
                continue;
            }
            let able = lacking.into_iter().filter(|peer| room(*peer) > 0);
            let random = &mut *cx.rng;
            let Some(peer) = able.max_by_key(|peer| (room(*peer), random.random::<u32>())) else { continue };
            content.releases.waiting.remove(&chunk);
            content.releases.pending.insert(chunk, (peer, cx.now));
            shown.entry(peer).or_default().push(chunk);
        }
        for (peer, chunks) in shown {
            cx.send(peer, Message::Fresh { digest: self.digest, chunks });
        }
        if content.releases.is_idle() && !content.releases.confirmed.is_empty() {
            content.untold.append(&mut content.releases.confirmed);
            self.tell_due(cx);
        }
    }
}
