//! Pulling chunks from peers: which next, from whom, and what becomes of it.

use std::time::Duration;

use rand::RngExt;

use super::{
    Context, Event, FetchError, Output, PullId, Verdict,
    content::{Content, Pull, average},
    fetch::Fetch,
    neighbour::Remote,
    peers::PeerMap,
    pick,
};
use crate::{chunk::ChunkIndex, peer::PeerId, time::Time};

/// A whole zone waits for what its importer gets: it asks for so many times as much at once, since the peers that it asks
/// serve others at the same time.
const IMPORT_SHARE: usize = 2;

/// A claim counts as false once so many peers sent bytes of one chunk that do not fit it.
const CORRUPT_MAX: usize = 4;

impl Fetch {
    /// Asks for whatever can be asked for now.
    pub(super) fn pull_more(&mut self, cx: &mut Context<'_>) {
        if self.content.is_none() || self.remotes.len() == 0 {
            return;
        }
        self.settle_duty(cx.me);
        self.pull_fresh(cx);
        while self.has_room(cx) {
            let Some((peer, chunk)) = self.next_pull(cx) else { break };
            self.start_pull(cx, peer, chunk, false);
        }
        self.hedge(cx);
    }

    /// Asks one peer that has something new for it, if there is room.
    pub(super) fn pull_from(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.pull_fresh(cx);
        while self.has_room(cx) {
            let Some(content) = &self.content else { return };
            let Some(remote) = self.remotes.get(peer) else { return };
            let free = remote.pulls < cx.limits.pulls_per_peer_max && remote.may_be_asked(cx.now);
            if !free || remote.is_slow(content.pull_time) || !self.may_ask(cx, remote) {
                return;
            }
            let Some(chunk) = self.choose(cx, content, remote) else { return };
            self.start_pull(cx, peer, chunk, false);
        }
    }

    /// Whether another pull may go out: within this fetch's share and the node's.
    fn has_room(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(content) = &self.content else { return false };
        let own = content.pulls.iter().filter(|(_, pull)| !pull.fresh).count();
        let share = if self.imports() { IMPORT_SHARE } else { 1 };
        if own >= content.pulls_max(cx.limits) * share {
            return false;
        }
        let bytes = content.layout().chunk_bytes();
        let room = cx.links.pulls < cx.pulls_max() * share
            && cx.links.pull_bytes.saturating_add(bytes) <= cx.limits.pull_bytes_max.max(bytes * 2);
        if !room {
            cx.links.crowded.insert(self.digest);
        }
        room
    }

    /// Whom to ask for what: a peer with few of our pulls, the first of these from a random one on.
    fn next_pull(&self, cx: &mut Context<'_>) -> Option<(PeerId, ChunkIndex)> {
        let content = self.content.as_ref()?;
        let hungry = self.is_rack_hungry(cx.now);
        let start = cx.rng.random_range(0..self.remotes.len());
        let mut best: Option<(usize, PeerId)> = None;
        let mut crowded = 0;
        for (peer, remote) in self.remotes.around(start) {
            let rank = remote.pulls + if remote.is_slow(content.pull_time) { 100 } else { 0 };
            let worse = best.is_some_and(|(least, _)| least <= rank);
            if worse || !remote.may_be_asked(cx.now) || !self.may_ask(cx, remote) {
                continue;
            }
            if !remote.offers(|theirs| self.wants_any(content, remote, theirs, hungry)) {
                continue;
            }
            if rank >= cx.limits.pulls_per_peer_max && rank != 100 {
                crowded += 1;
                continue;
            }
            best = Some((rank, peer));
            if rank == 0 {
                break;
            }
        }
        if let Some((_, peer)) = best {
            return Some((peer, self.choose(cx, content, self.remotes.get(peer)?)?));
        }
        // Only peers that were asked their share already are of use: the share is for where others can be asked too.
        let share = pick::share(content.pulls_max(cx.limits), cx.limits.pulls_per_peer_max, crowded);
        let able = |remote: &Remote| {
            let useful = remote.offers(|theirs| self.wants_any(content, remote, theirs, hungry));
            remote.pulls < share && remote.may_be_asked(cx.now) && self.may_ask(cx, remote) && useful
        };
        let fit = self.remotes.around(start).filter(|(_, remote)| able(remote));
        let (peer, remote) = fit.min_by_key(|(_, remote)| remote.pulls)?;
        Some((peer, self.choose(cx, content, remote)?))
    }

    /// Which chunk to ask a peer for: one that a reader waits for, if not too many of those are on their way; else the
    /// rarest.
    fn choose(&self, cx: &mut Context<'_>, content: &Content, remote: &Remote) -> Option<ChunkIndex> {
        let theirs = remote.have.as_ref()?;
        // The last link ends in the digest itself: it shows a false claim before much rests on it.
        if let Some(last) = content.last_wanted(theirs) {
            return Some(last);
        }
        let hungry = self.is_rack_hungry(cx.now);
        let open = |chunk: &ChunkIndex| self.may_fetch(remote, *chunk, hungry);
        let window = cx.limits.urgent_chunks;
        let is_urgent = |chunk: ChunkIndex| self.readers.values().any(|at| chunk >= *at && chunk.0 - at.0 < window);
        if content.pulls.iter().filter(|(_, pull)| is_urgent(pull.chunk)).count() < cx.limits.urgent_pulls_max {
            let urgent = self.readers.values().flat_map(|at| (at.0..at.0.saturating_add(window)).map(ChunkIndex));
            let mut urgent = urgent.filter(|chunk| theirs.contains(*chunk) && content.wants(*chunk));
            if let Some(chunk) = urgent.find(open) {
                return Some(chunk);
            }
        }
        pick::rarest(content.wanted(theirs).filter(open), &content.rarity, cx.rng)
    }

    /// Asks for chunks that we were shown first, beyond the number that others may be out: everybody waits for them.
    fn pull_fresh(&mut self, cx: &mut Context<'_>) {
        loop {
            let Some(content) = &mut self.content else { return };
            let most = if cx.links.pace.is_streaming() { cx.pulls_max() } else { cx.limits.node_pulls_max * 2 };
            if content.fresh.is_empty() || cx.links.pulls >= most {
                return;
            }
            let end = content.verifiable_end();
            let Content { fresh, have, busy, rarity, .. } = content;
            let offered = |chunk: &ChunkIndex| rarity.get(chunk.at()).is_some_and(|peers| *peers > 0);
            // One that is on its way stays: it may come to nothing, and be nobody else's to bring in.
            fresh.retain(|chunk| !have.contains(*chunk) && offered(chunk));
            let able = |chunk: &ChunkIndex| {
                let holder = |(_, remote): &(PeerId, &Remote)| {
                    remote.may_be_asked(cx.now) && remote.offers(|theirs| theirs.contains(*chunk))
                };
                self.remotes.iter().find(holder).map(|(peer, _)| (peer, *chunk))
            };
            let mut open = fresh.iter().filter(|chunk| **chunk < end && !busy.contains(**chunk));
            let Some((peer, chunk)) = open.find_map(able) else { return };
            self.start_pull(cx, peer, chunk, true);
        }
    }

    fn start_pull(&mut self, cx: &mut Context<'_>, peer: PeerId, chunk: ChunkIndex, fresh: bool) {
        let Some(content) = &mut self.content else { return };
        let Some(expected) = content.chain.expected(chunk) else { return };
        let id = PullId(cx.next_id());
        let pull = Pull { peer, chunk, started: cx.now, fresh, hedged: false };
        let due = content.pull_due(&pull, cx.limits);
        content.pulls.push((id, pull));
        content.busy.insert(chunk);
        cx.links.pulls += 1;
        cx.links.pull_bytes += content.layout().chunk_bytes();
        if let Some(remote) = self.remotes.get_mut(peer) {
            remote.pulls += 1;
        }
        cx.out.push(Output::Pull { pull: id, peer, digest: self.digest, chunk, expected });
        self.arm(due);
    }

    /// Takes a pull off the books.
    fn end_pull(&mut self, cx: &mut Context<'_>, id: PullId) -> Option<Pull> {
        let content = self.content.as_mut()?;
        let pull = content.drop_pull(id)?;
        cx.links.pulls = cx.links.pulls.saturating_sub(1);
        cx.links.pull_bytes = cx.links.pull_bytes.saturating_sub(content.layout().chunk_bytes());
        if let Some(remote) = self.remotes.get_mut(pull.peer) {
            remote.pulls = remote.pulls.saturating_sub(1);
        }
        Some(pull)
    }

    pub(super) fn pulled(&mut self, cx: &mut Context<'_>, id: PullId, verdict: Verdict) {
        let Some(pull) = self.end_pull(cx, id) else { return };
        let took = cx.now.since(pull.started);
        let pull_time = self.content.as_ref().map_or(Duration::ZERO, |content| content.pull_time);
        if let Some(remote) = self.remotes.get_mut(pull.peer) {
            remote.judge(verdict, cx.now, pull_time, cx.rng);
            if verdict == Verdict::Good {
                remote.pace = average(remote.pace, took);
            }
            if let Some(retry) = remote.retry_at() {
                self.arm(retry);
            }
        }
        match verdict {
            Verdict::Good => {
                if let Some(content) = &mut self.content {
                    content.note_time(took);
                    cx.links.pace.pulled(content.layout().len(pull.chunk), took);
                }
                self.arrived(cx, pull.chunk);
                self.show(cx, pull.chunk, Some(pull.peer));
                self.check_complete(cx);
                // Its slot is free at this moment; another peer's may not be.
                if self.is_fetching() {
                    self.pull_from(cx, pull.peer);
                }
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
        let senders = content.corrupt.entry(pull.chunk).or_default();
        if !senders.contains(&pull.peer) {
            senders.push(pull.peer);
        }
        let senders = senders.len();
        self.unlist(pull.peer, pull.chunk);
        let others = self.content.as_ref().is_some_and(|content| content.rarity[pull.chunk.at()] > 0);
        if senders >= CORRUPT_MAX || senders > 1 && !others {
            // So many peers that hold the chunk under this claim sent bytes that do not fit: the claim is false.
            self.distrust(cx);
        }
    }

    /// A chunk is verified and stored. Returns whether it is new.
    pub(super) fn arrived(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex) -> bool {
        let Some(content) = &mut self.content else { return false };
        if !content.have.insert(chunk) {
            return false;
        }
        if content.raw.contains(chunk) {
            content.raw.remove(chunk);
            content.busy.remove(chunk);
        }
        self.progressed = cx.now;
        cx.out.push(Output::Arrived { digest: self.digest, chunk });
        while let Some((id, pull)) = self
            .content
            .as_ref()
            .and_then(|content| content.pulls.iter().find(|(_, pull)| pull.chunk == chunk).copied())
        {
            // Whoever is asked twice was slow the first time.
            let took = cx.now.since(pull.started);
            if let Some(remote) = self.remotes.get_mut(pull.peer).filter(|_| pull.hedged) {
                remote.pace = remote.pace.max(took);
            }
            self.cancel_pull(cx, id);
        }
        true
    }

    pub(super) fn cancel_pull(&mut self, cx: &mut Context<'_>, id: PullId) {
        if self.end_pull(cx, id).is_some() {
            cx.out.push(Output::CancelPull { pull: id });
        }
    }

    /// Cancels all pulls, before their fetch or what it knows goes.
    pub(super) fn cancel_pulls(&mut self, cx: &mut Context<'_>) {
        while let Some((id, _)) = self.content.as_ref().and_then(|content| content.pulls.last().copied()) {
            self.cancel_pull(cx, id);
        }
    }

    pub(super) fn drop_late_pulls(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &self.content else { return };
        let is_late = |(_, pull): &&(PullId, Pull)| content.pull_end(pull, cx.limits) <= cx.now;
        let late: Vec<(PullId, Pull)> = content.pulls.iter().filter(is_late).copied().collect();
        let pull_time = content.pull_time;
        for (id, pull) in late {
            self.cancel_pull(cx, id);
            if let Some(content) = &mut self.content {
                content.note_late(cx.now.since(pull.started));
            }
            if let Some(remote) = self.remotes.get_mut(pull.peer) {
                remote.judge(Verdict::Link, cx.now, pull_time, cx.rng);
            }
            self.doubt(cx, pull.peer, pull.started);
            self.drop_struck(cx, pull.peer);
        }
    }

    /// Asks a second peer for the chunks that take too long; whichever comes first cancels the other.
    fn hedge(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let limits = cx.limits;
        let is_due = |content: &Content, pull: &Pull| content.hedge_at(pull, limits).is_some_and(|at| at <= cx.now);
        let slow: Vec<Pull> =
            content.pulls.iter().filter(|(_, pull)| is_due(content, pull)).map(|(_, pull)| *pull).collect();
        for pull in &slow {
            for (_, other) in content.pulls.iter_mut().filter(|(_, other)| other.chunk == pull.chunk) {
                other.hedged = true;
            }
        }
        for pull in slow {
            let Some(content) = &self.content else { return };
            if content.pulls.iter().filter(|(_, other)| other.chunk == pull.chunk).count() > 1 {
                continue;
            }
            if let Some(peer) = second_peer(&self.remotes, &pull, content.pull_time, cx.now) {
                self.start_pull(cx, peer, pull.chunk, false);
            }
        }
    }
}

/// Another peer that has a pull's chunk, the one with the fewest of our pulls.
fn second_peer(remotes: &PeerMap<Remote>, pull: &Pull, pull_time: Duration, now: Time) -> Option<PeerId> {
    let able = |peer: PeerId, remote: &Remote| {
        let other = peer != pull.peer && remote.may_be_asked(now) && !remote.is_slow(pull_time);
        other && remote.offers(|theirs| theirs.contains(pull.chunk))
    };
    let able = remotes.iter().filter(|(peer, remote)| able(*peer, remote));
    able.min_by_key(|(_, remote)| remote.pulls).map(|(peer, _)| peer)
}
