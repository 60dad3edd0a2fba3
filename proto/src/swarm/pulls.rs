//! Pulling chunks from peers: when, and what becomes of it. Which and from whom: [`choose`](super::choose).

use std::time::Duration;

use super::{
    Context, Event, FetchError, Output, PullId, Verdict,
    content::{Content, Pull, average},
    fetch::Fetch,
    slots::{Slot, Slots},
};
use crate::{chain::Expected, chunk::ChunkIndex};

/// A whole zone waits for what its importer gets: it asks for so many times as much at once, since the peers that it asks
/// serve others at the same time.
const IMPORT_SHARE: usize = 2;
/// A peer that sent so many chunks which do not fit the claim that it holds itself is caught: links and disks fail, too, but
/// not as often.
const CORRUPT_MAX: u8 = 2;
/// Peers that are asked for one chunk at the same time.
const ASKED_MAX: usize = 3;

impl Fetch {
    /// Asks for whatever can be asked for now.
    pub(super) fn pull_more(&mut self, cx: &mut Context<'_>) {
        if self.content.is_none() || self.remotes.len() == 0 {
            return;
        }
        self.pull_fresh(cx);
        while self.has_room(cx) {
            let Some((slot, chunk)) = self.next_pull(cx) else { break };
            self.start_pull(cx, slot, chunk, false);
        }
        self.hedge(cx);
    }

    /// Asks one peer that has news, or whose upload slot is free at this moment.
    pub(super) fn pull_from(&mut self, cx: &mut Context<'_>, slot: Slot) {
        self.pull_fresh(cx);
        while self.has_room(cx)
            && let Some(chunk) = self.next_from(cx, slot)
        {
            self.start_pull(cx, slot, chunk, false);
        }
    }

    /// Whether another pull may go out: within this fetch's share and the node's.
    fn has_room(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(content) = &self.content else { return false };
        if !content.offers.any_open() {
            return false;
        }
        let share = if self.imports() { IMPORT_SHARE } else { 1 };
        if content.common_pulls >= content.pulls_max(cx.limits) * share {
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

    /// Asks for chunks that we were shown first, beyond the number that others may be out: everybody waits for them.
    fn pull_fresh(&mut self, cx: &mut Context<'_>) {
        while self.content.as_ref().is_some_and(|content| !content.fresh.is_empty()) {
            let near = self.may_ask(cx);
            let Some(content) = &mut self.content else { return };
            let most = if cx.links.pace.is_streaming() { cx.pulls_max() } else { cx.limits.node_pulls_max * 2 };
            if cx.links.pulls >= most {
                return;
            }
            let Content { fresh, have, offers, .. } = content;
            // One that is on its way stays: it may come to nothing, and be nobody else's to bring in.
            fresh.retain(|chunk, _| !have.contains(*chunk) && offers.is_held(*chunk));
            let able = self.remotes.ready(cx.now) | self.remotes.full() & self.remotes.proven();
            let mut open = fresh.iter().filter(|(chunk, _)| offers.is_open(**chunk));
            let found = open.find_map(|(chunk, shower)| {
                // Not of the shower alone: it may be slow, and others have the chunk by now.
                let slot = (offers.holders(*chunk) & able & (near | Slots::only(*shower))).first()?;
                Some((slot, *chunk))
            });
            let Some((slot, chunk)) = found else { return };
            self.start_pull(cx, slot, chunk, true);
        }
    }

    fn start_pull(&mut self, cx: &mut Context<'_>, slot: Slot, chunk: ChunkIndex, fresh: bool) {
        let Some(expected) = self.content.as_ref().and_then(|content| content.chain.expected(chunk)) else { return };
        let id = PullId(cx.next_id());
        let pull = Pull { peer: slot, chunk, started: cx.now, fresh, waited: Some(cx.now) };
        self.send_pull(cx, id, pull, expected);
    }

    pub(super) fn send_pull(&mut self, cx: &mut Context<'_>, id: PullId, pull: Pull, expected: Expected) {
        let Some(content) = &mut self.content else { return };
        let due = content.pull_due(&pull, cx.limits);
        content.add_pull(id, pull);
        cx.links.pulls += 1;
        cx.links.pull_bytes += content.layout().chunk_bytes();
        self.remotes.began(pull.peer, cx.limits.pulls_per_peer_max);
        let peer = self.remotes[pull.peer].peer;
        cx.out.push(Output::Pull { pull: id, peer, digest: self.digest, chunk: pull.chunk, expected });
        self.arm(due);
    }

    /// Takes a pull off the books.
    fn end_pull(&mut self, cx: &mut Context<'_>, id: PullId) -> Option<Pull> {
        let content = self.content.as_mut()?;
        let pull = content.drop_pull(id)?;
        cx.links.pulls = cx.links.pulls.saturating_sub(1);
        cx.links.pull_bytes = cx.links.pull_bytes.saturating_sub(content.layout().chunk_bytes());
        self.remotes.ended(pull.peer, cx.limits.pulls_per_peer_max);
        Some(pull)
    }

    pub(super) fn pulled(&mut self, cx: &mut Context<'_>, id: PullId, verdict: Verdict) {
        let Some(pull) = self.end_pull(cx, id) else { return };
        let (slot, took) = (pull.peer, cx.now.since(pull.started));
        let usual = self.content.as_ref().map_or(Duration::ZERO, |content| content.pull_time);
        self.remotes.judge(slot, verdict, cx.now, usual, cx.rng);
        if verdict != Verdict::Good
            && let Some(retry) = self.remotes.rest_end(cx.now)
        {
            self.arm(retry);
        }
        if self.claims.is_probe(id) {
            self.probed(cx, pull.chunk, verdict);
            return;
        }
        match verdict {
            Verdict::Good => self.pulled_well(cx, &pull, took),
            Verdict::Corrupt => self.corrupt(cx, &pull),
            Verdict::Missing => {
                self.unlist(slot, pull.chunk);
                self.drop_struck(cx, slot);
            }
            Verdict::Busy => {}
            Verdict::Link => self.drop_struck(cx, slot),
            Verdict::Disk => self.fail(cx, FetchError::Disk),
        }
    }

    fn pulled_well(&mut self, cx: &mut Context<'_>, pull: &Pull, took: Duration) {
        let Some(content) = &mut self.content else { return };
        content.note_time(cx.now, took, cx.links.pulls + 1);
        cx.links.bytes_in += content.layout().len(pull.chunk);
        cx.links.pace.pulled(content.layout().len(pull.chunk), took);
        let pace = average(self.remotes[pull.peer].pace, took);
        self.remotes.note_pace(pull.peer, pace, content.pull_time);
        let peer = self.remotes[pull.peer].peer;
        self.arrived(cx, pull.chunk);
        self.show(cx, pull.chunk, Some(peer));
        self.check_complete(cx);
        // Its slot is free at this moment; another peer's may not be.
        if self.is_fetching() {
            self.pull_from(cx, pull.peer);
        }
    }

    fn corrupt(&mut self, cx: &mut Context<'_>, pull: &Pull) {
        let peer = self.remotes[pull.peer].peer;
        cx.out.push(Output::Report(Event::CorruptChunk { peer, digest: self.digest, chunk: pull.chunk }));
        let Some(content) = &self.content else { return };
        if pull.chunk == content.layout().last() && content.author_of(pull.chunk) == Some(peer) {
            // The end of its own signed states does not lead to the digest. Elsewhere its disk may have rotted.
            self.convict_author(cx, peer);
            return;
        }
        self.unlist(pull.peer, pull.chunk);
        if self.remotes[pull.peer].corrupt >= CORRUPT_MAX {
            self.convict(cx, peer);
        } else {
            self.drop_struck(cx, pull.peer);
        }
    }

    /// A chunk is verified and stored. Returns whether it is new.
    pub(super) fn arrived(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex) -> bool {
        let Some(content) = &mut self.content else { return false };
        if !content.insert(chunk) {
            return false;
        }
        content.take_raw(chunk);
        self.progressed = cx.now;
        cx.out.push(Output::Arrived { digest: self.digest, chunk });
        self.overtake(cx, chunk);
        true
    }

    /// Other pulls of a chunk that is here are in vain.
    fn overtake(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex) {
        loop {
            let Some(content) = &self.content else { return };
            let Some((id, pull)) = content.pulls.iter().find(|(_, pull)| pull.chunk == chunk).copied() else { return };
            if pull.is_slow() {
                // Whoever is asked twice was slow the first time.
                let pace = self.remotes[pull.peer].pace.max(cx.now.since(pull.started));
                self.remotes.note_pace(pull.peer, pace, content.pull_time);
            }
            self.cancel_pull(cx, id);
        }
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
        let usual = content.pull_time;
        for (id, pull) in late {
            // Giving up on a peer ends all its pulls.
            if self.content.as_ref().is_none_or(|content| !content.pulls.iter().any(|(other, _)| *other == id)) {
                continue;
            }
            let probe = self.claims.is_probe(id);
            self.cancel_pull(cx, id);
            if let Some(content) = &mut self.content {
                content.note_late(pull.started, cx.now, self.remotes.proven().contains(pull.peer));
            }
            self.remotes.judge(pull.peer, Verdict::Link, cx.now, usual, cx.rng);
            if probe {
                self.probed(cx, pull.chunk, Verdict::Link);
            } else {
                self.doubt(cx, pull.peer, pull.started);
                self.drop_struck(cx, pull.peer);
            }
        }
    }

    /// Asks another peer for the chunks that take too long, and a third where that one, too, takes too long: both may be gone.
    /// Whichever comes first cancels the others.
    fn hedge(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let limits = cx.limits;
        let is_due = |content: &Content, pull: &Pull| content.hedge_at(pull, limits).is_some_and(|at| at <= cx.now);
        if !content.pulls.iter().any(|(_, pull)| is_due(content, pull)) {
            return;
        }
        let slow = content.pulls.iter().filter(|(_, pull)| is_due(content, pull)).map(|(_, pull)| *pull);
        let slow: Vec<Pull> = slow.collect();
        for pull in &slow {
            for (_, other) in content.pulls.iter_mut().filter(|(_, other)| other.chunk == pull.chunk) {
                other.waited = other.waited.map(|_| cx.now);
            }
        }
        for pull in slow {
            let Some(content) = &self.content else { return };
            let asked = content.pulls.iter().filter(|(_, other)| other.chunk == pull.chunk);
            let asked = asked.fold(Slots::NONE, |asked, (_, other)| asked | Slots::only(other.peer));
            if asked.len() >= ASKED_MAX {
                continue;
            }
            let others = content.offers.holders(pull.chunk) & self.may_ask(cx) & !asked;
            let able = others & self.remotes.ready(cx.now) & !self.remotes.slow(content.pull_time);
            if let Some(slot) = self.least_asked(cx, able) {
                self.start_pull(cx, slot, pull.chunk, false);
            }
        }
    }
}
