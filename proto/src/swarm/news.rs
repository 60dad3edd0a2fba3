//! What a fetch has got, told to those that asked to be told.
//!
//! A chunk that few have goes to a few peers at once, so that it spreads like a rumour, and to all others with what came
//! meanwhile, a moment later: a message for each chunk and peer would be most of what a node does.

use super::{Context, fetch::Fetch, slots::Slots};
use crate::{
    chunk::ChunkIndex,
    limits::Limits,
    time::Time,
    wire::{GOT_CHUNKS_MAX, Message},
};

/// A chunk is rare if at most one in so many peers has it.
const RARE: usize = 3;

/// So many of the own rack hear at once of what came into it.
const MATES: usize = 8;

/// Chunks that may be told of, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct News {
    chunks: Vec<ChunkIndex>,
    /// When all are told.
    pub(super) due: Option<Time>,
}

impl News {
    /// How many there are.
    pub(super) const fn len(&self) -> u32 {
        self.chunks.len() as u32
    }

    fn since(&self, told: u32) -> &[ChunkIndex] {
        self.chunks.get(told as usize..).unwrap_or_default()
    }

    /// Adds a chunk that all may hear of; nobody is told at once.
    pub(super) fn add(&mut self, now: Time, chunk: ChunkIndex, limits: &Limits) {
        self.chunks.push(chunk);
        self.due.get_or_insert(now + limits.got_delay);
    }
}

impl Fetch {
    /// Tells of a new chunk: a few peers at once if few have it, all of them with others that came meanwhile.
    pub(super) fn tell(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, imported: bool) {
        let Some(content) = &mut self.content else { return };
        content.news.add(cx.now, chunk, cx.limits);
        let holders = content.offers.holders(chunk);
        if imported {
            let mut mates = self.remotes.rack & self.remotes.subscribers & !holders;
            for _ in 0..MATES {
                let Some(slot) = mates.any(cx.rng) else { break };
                mates.remove(slot);
                self.tell_these(cx, Slots::only(slot));
            }
            return;
        }
        if holders.len() * RARE > self.remotes.len() {
            return;
        }
        let mut lacking = self.remotes.subscribers & !holders;
        for _ in 0..cx.limits.hints {
            let Some(slot) = lacking.any(cx.rng) else { return };
            lacking.remove(slot);
            self.tell_these(cx, Slots::only(slot));
        }
    }

    /// Tells subscribers of new chunks when it is time.
    pub(super) fn tell_due(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let Some(due) = content.news.due else { return };
        if due > cx.now {
            self.arm(due);
            return;
        }
        content.news.due = None;
        self.tell_these(cx, self.remotes.subscribers);
    }

    /// Tells some subscribers all that they have not been told and do not have.
    fn tell_these(&mut self, cx: &mut Context<'_>, peers: Slots) {
        let Some(content) = &self.content else { return };
        let all = content.news.len();
        for slot in peers.iter() {
            let remote = &mut self.remotes[slot];
            let lacking = |chunk: &&ChunkIndex| !content.offers.holders(**chunk).contains(slot);
            let news: Vec<ChunkIndex> = content.news.since(remote.told).iter().filter(lacking).copied().collect();
            remote.told = all;
            let peer = remote.peer;
            for chunks in news.chunks(GOT_CHUNKS_MAX) {
                cx.send(peer, Message::Got { digest: self.digest, chunks: chunks.to_vec() });
            }
        }
    }
}
