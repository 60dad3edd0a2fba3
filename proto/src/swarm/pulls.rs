//! Pulling chunks from peers: which next, from whom, and what becomes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::RngExt;

use super::{
    Context, Event, FetchError, Output, PullId, ReaderId, Verdict,
    content::{Content, Pull},
    fetch::Fetch,
    neighbour::Remote,
    pick,
};
use crate::{
    chunk::{ChunkIndex, Layout},
    digest::Digest,
    limits::Limits,
    peer::PeerId,
};

impl Fetch {
    pub(super) fn pull_more(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let urgent = urgent_chunks(&self.readers, content.layout(), cx.limits);
        while let Some((peer, chunk)) = choose_fresh(content, &self.remotes, cx) {
            start_pull(self.digest, content, &mut self.remotes, cx, peer, chunk, true);
        }
        while content.pulls.values().filter(|pull| !pull.fresh).count() < content.pulls_max(cx.limits) {
            let useful = |remote: &Remote| {
                remote.may_be_asked(cx.now) && remote.offers(|theirs| content.wanted(theirs).next().is_some())
            };
            let mut ready: Vec<(usize, u32, PeerId)> = Vec::new();
            for (peer, remote) in &self.remotes {
                if useful(remote) {
                    ready.push((remote.pulls, cx.rng.random(), *peer));
                }
            }
            let share = pick::share(content.pulls_max(cx.limits), cx.limits.pulls_per_peer_max, ready.len());
            ready.sort_unstable();
            let Some((_, _, peer)) = ready.into_iter().find(|(pulls, ..)| *pulls < share) else { break };
            let Some(chunk) = choose(content, &self.remotes[&peer], &urgent, cx) else { break };
            start_pull(self.digest, content, &mut self.remotes, cx, peer, chunk, false);
        }
        if content.in_endgame(cx.limits) {
            hedge(self.digest, content, &mut self.remotes, cx);
        }
    }

    pub(super) fn pulled(&mut self, cx: &mut Context<'_>, id: PullId, verdict: Verdict) {
        let Some(content) = &mut self.content else { return };
        let Some(pull) = content.drop_pull(id) else { return };
        let took = cx.now.since(pull.started);
        if let Some(remote) = self.remotes.get_mut(&pull.peer) {
            remote.pulls = remote.pulls.saturating_sub(1);
            remote.judge(verdict, cx.now, content.pull_time, cx.rng);
        }
        match verdict {
            Verdict::Good => {
                content.note_time(took);
                self.arrived(cx, pull.chunk);
                if let Some(content) = &mut self.content {
                    content.untold.push(pull.chunk);
                }
                self.tell_due(cx);
                self.check_complete(cx);
            }
            Verdict::Corrupt => self.corrupt(cx, pull),
            Verdict::Missing => self.unlist(pull.peer, pull.chunk),
            Verdict::Busy | Verdict::Link => {}
            Verdict::Disk => self.fail(cx, FetchError::Disk),
        }
        self.drop_struck(cx, pull.peer);
    }

    pub(super) fn corrupt(&mut self, cx: &mut Context<'_>, pull: Pull) {
        cx.out.push(Output::Report(Event::CorruptChunk { peer: pull.peer, digest: self.digest, chunk: pull.chunk }));
        let Some(content) = &mut self.content else { return };
        if pull.chunk == content.layout().last() && content.author_of(pull.chunk) == Some(pull.peer) {
            // The end of its own signed states does not lead to the digest. Elsewhere its disk may have rotted.
            self.convict(cx, pull.peer);
            return;
        }
        let first = *content.corrupt.entry(pull.chunk).or_insert(pull.peer);
        if first == pull.peer {
            self.unlist(pull.peer, pull.chunk);
        } else {
            // Two peers that both hold the chunk under this claim sent bytes that do not fit: the claim is false.
            self.distrust(cx);
        }
    }

    /// A chunk is verified and stored. Returns whether it is new.
    pub(super) fn arrived(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex) -> bool {
        let Some(content) = &mut self.content else { return false };
        if !content.have.insert(chunk) {
            return false;
        }
        self.progressed = cx.now;
        cx.out.push(Output::Arrived { digest: self.digest, chunk });
        let late: Vec<PullId> =
            content.pulls.iter().filter(|(_, pull)| pull.chunk == chunk).map(|(id, _)| *id).collect();
        for id in late {
            self.cancel_pull(cx, id);
        }
        true
    }

    pub(super) fn cancel_pull(&mut self, cx: &mut Context<'_>, id: PullId) {
        let Some(pull) = self.content.as_mut().and_then(|content| content.drop_pull(id)) else { return };
        if let Some(remote) = self.remotes.get_mut(&pull.peer) {
            remote.pulls = remote.pulls.saturating_sub(1);
        }
        cx.out.push(Output::CancelPull { pull: id });
    }

    pub(super) fn drop_late_pulls(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &self.content else { return };
        let late: Vec<(PullId, PeerId, Duration)> = content
            .pulls
            .iter()
            .filter(|(_, pull)| content.pull_end(pull, cx.limits) <= cx.now)
            .map(|(id, pull)| (*id, pull.peer, cx.now.since(pull.started)))
            .collect();
        let pull_time = content.pull_time;
        for (id, peer, took) in late {
            self.cancel_pull(cx, id);
            if let Some(content) = &mut self.content {
                content.note_late(took);
            }
            if let Some(remote) = self.remotes.get_mut(&peer) {
                remote.judge(Verdict::Link, cx.now, pull_time, cx.rng);
            }
            self.drop_struck(cx, peer);
        }
    }
}

/// The chunks that readers need next.
fn urgent_chunks(readers: &BTreeMap<ReaderId, ChunkIndex>, layout: Layout, limits: &Limits) -> BTreeSet<ChunkIndex> {
    let windows = readers.values().flat_map(|at| at.0..at.0.saturating_add(limits.urgent_chunks));
    windows.map(ChunkIndex).filter(|chunk| layout.contains(*chunk)).collect()
}

/// A chunk that we were shown first, and who has it.
fn choose_fresh(
    content: &mut Content,
    remotes: &BTreeMap<PeerId, Remote>,
    cx: &mut Context<'_>,
) -> Option<(PeerId, ChunkIndex)> {
    if content.pulls.len() >= content.pulls_max(cx.limits) * 2 {
        return None;
    }
    let end = content.verifiable_end();
    let Content { fresh, have, busy, rarity, .. } = content;
    let offered = |chunk: &ChunkIndex| rarity.get(chunk.at()).is_some_and(|peers| *peers > 0);
    fresh.retain(|chunk| !have.contains(*chunk) && !busy.contains(*chunk) && offered(chunk));
    let able = |chunk: &ChunkIndex| {
        let holder = |(_, remote): &(&PeerId, &Remote)| {
            remote.may_be_asked(cx.now) && remote.offers(|theirs| theirs.contains(*chunk))
        };
        remotes.iter().find(holder).map(|(peer, _)| (*peer, *chunk))
    };
    fresh.iter().filter(|chunk| **chunk < end).find_map(able)
}

/// Which chunk to ask a peer for: one that a reader waits for, if not too many of those are on their way; else the rarest.
fn choose(
    content: &Content,
    remote: &Remote,
    urgent: &BTreeSet<ChunkIndex>,
    cx: &mut Context<'_>,
) -> Option<ChunkIndex> {
    let theirs = remote.have.as_ref()?;
    // The last link ends in the digest itself: it shows a false claim before much rests on it.
    if let Some(last) = content.last_wanted(theirs) {
        return Some(last);
    }
    let pulled = content.pulls.values().filter(|pull| urgent.contains(&pull.chunk)).count();
    if pulled < cx.limits.urgent_pulls_max
        && let Some(chunk) = content.wanted(theirs).find(|chunk| urgent.contains(chunk))
    {
        return Some(chunk);
    }
    pick::rarest(content.wanted(theirs), &content.rarity, cx.rng)
}

fn start_pull(
    digest: Digest,
    content: &mut Content,
    remotes: &mut BTreeMap<PeerId, Remote>,
    cx: &mut Context<'_>,
    peer: PeerId,
    chunk: ChunkIndex,
    fresh: bool,
) {
    let Some(expected) = content.chain.expected(chunk) else { return };
    let pull = PullId(cx.next_id());
    content.pulls.insert(pull, Pull { peer, chunk, started: cx.now, fresh, hedged: false });
    content.busy.insert(chunk);
    if let Some(remote) = remotes.get_mut(&peer) {
        remote.pulls += 1;
    }
    cx.out.push(Output::Pull { pull, peer, digest, chunk, expected });
}

/// Asks a second peer for the chunks that take too long at the end; whichever comes first cancels the other.
fn hedge(digest: Digest, content: &mut Content, remotes: &mut BTreeMap<PeerId, Remote>, cx: &mut Context<'_>) {
    let slow: Vec<Pull> = content.pulls.values().filter(|pull| content.hedge_at(pull) <= cx.now).copied().collect();
    for pull in content.pulls.values_mut().filter(|pull| slow.iter().any(|slow| slow.chunk == pull.chunk)) {
        pull.hedged = true;
    }
    for pull in slow {
        if content.pulls.values().filter(|other| other.chunk == pull.chunk).count() > 1 {
            continue;
        }
        let able = remotes.iter().filter(|(peer, remote)| {
            **peer != pull.peer && remote.may_be_asked(cx.now) && remote.offers(|theirs| theirs.contains(pull.chunk))
        });
        let Some(peer) = able.min_by_key(|(_, remote)| remote.pulls).map(|(peer, _)| *peer) else { continue };
        start_pull(digest, content, remotes, cx, peer, pull.chunk, false);
    }
}
