//! The streams under a lease: which are opened, what they bring, and how they end.

use rand::RngExt;

use super::{
    super::{Context, FetchError, OriginFailure, Output, RunId, connections::Intake, fetch::Fetch, supply::is_open},
    Run,
};
use crate::{
    chain::{LinkEnd, State},
    chunk::ChunkIndex,
    time::Time,
};

/// A stream that is to be opened.
struct Opening {
    from: ChunkIndex,
    until: Option<ChunkIndex>,
    before: Option<State>,
}

impl Fetch {
    /// Opens streams of the first chunks that no peer has: one, and more if each is slower than all together.
    pub(in crate::swarm) fn tend_origin(&mut self, cx: &mut Context<'_>) {
        if self.shut.is_some() || !self.may_open(cx.now) {
            return;
        }
        let shown = self.awaits_show().filter(|end| *end > cx.now);
        let Some(lease) = &mut self.lease else { return };
        lease.not_before = shown;
        if let Some(end) = shown {
            self.arm(end);
            return;
        }
        let content = self.content.as_ref();
        let chunk_bytes = content.map(|content| content.layout().chunk_bytes());
        let missing = content.map(|content| u64::from(content.missing()) * content.layout().chunk_bytes());
        let intake = Intake {
            bytes: lease.total(),
            all: cx.links.bytes_in,
            remaining: missing,
            grain: chunk_bytes,
            uploads: cx.links.uploads > 0,
        };
        let wanted = lease.connections.wanted(cx.now, intake);
        let ahead = chunk_bytes.map_or(1, |bytes| lease.connections.ahead(bytes));
        // The next stripe is asked for while the last chunks of one come in, so that no answer is waited for in between.
        while self.lease.as_ref().is_some_and(|lease| lease.has_room(wanted, ahead)) {
            let Some(Opening { from, until, before }) = self.next_run(cx.now, wanted) else { break };
            let run = RunId(cx.next_id());
            let Some(lease) = &mut self.lease else { return };
            lease.runs.push(Run { id: run, next: from, until, bytes: 0, asked: Some(cx.now) });
            lease.active = true;
            cx.links.pace.opened();
            cx.out.push(Output::PullOrigin { digest: self.digest, run, from, until, before });
        }
        if let Some(due) = self.lease.as_ref().and_then(|lease| lease.deadline(cx.now)) {
            self.arm(due);
        }
    }

    /// Whether a stream may start: a lease on the origin, not pausing, and no peer left that may turn out to have it all.
    fn may_open(&self, now: Time) -> bool {
        let Some(lease) = self.lease.as_ref().filter(|lease| !lease.ending && !lease.is_import()) else { return false };
        if lease.not_before.is_none_or(|time| time <= now) {
            return true;
        }
        let settled = self.tracking.is_confirmed()
            && self.tracking.holders_known()
            && self.remotes.subscribed.iter().all(|slot| self.remotes[slot].answered);
        lease.tries == 0 && settled
    }

    /// Where the next stream begins and ends: with several at once, each takes a stripe, so that what comes in stays
    /// close to what is hashed.
    fn next_run(&mut self, now: Time, streams: usize) -> Option<Opening> {
        let lease = self.lease.as_mut()?;
        let Some(content) = &self.content else {
            return lease.runs.is_empty().then_some(Opening {
                from: ChunkIndex::FIRST,
                until: None,
                before: Some(State::INITIAL),
            });
        };
        let layout = content.layout();
        let believed = self.remotes.believed(lease, now);
        // Shorter ones at the end, so that no stream is left alone with a long one.
        let short = (content.missing() / (2 * streams as u32)).max(1);
        let stripe = lease.connections.stripe(layout.chunk_bytes()).min(short);
        let stripe = if streams > 1 { stripe } else { layout.count() };
        if streams > 1
            && let Some(endless) = lease.runs.iter_mut().find(|run| run.until.is_none())
        {
            // The first stream was to bring all the rest: it ends where the others' stripes begin.
            endless.until = Some(ChunkIndex(endless.next.0.saturating_add(stripe).min(layout.count())));
        }
        let from = layout.chunks().find(|chunk| is_open(content, lease, *chunk, believed))?;
        let most = ChunkIndex(from.0.saturating_add(stripe).min(layout.count()));
        let taken = (from.0..most.0).map(ChunkIndex).find(|chunk| !is_open(content, lease, *chunk, believed));
        let until = taken.or((most.0 < layout.count()).then_some(most));
        Some(Opening { from, until, before: content.chain.state(from) })
    }

    pub(in crate::swarm) fn origin_opened(&mut self, cx: &mut Context<'_>, id: RunId, size: u64) {
        if let Some(asked) = self.run(id).and_then(|run| run.asked.take())
            && let Some(lease) = &mut self.lease
        {
            lease.connections.answered(cx.now.since(asked));
        }
        if self.runs(id) && !self.size_up(cx, size) && !self.is_failed() {
            self.distrust(cx);
        }
    }

    /// Under this lease no stream is opened beside another: each would cost the origin all of the blob.
    pub(in crate::swarm) fn origin_ignores_ranges(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.connections.stay_alone();
        }
    }

    fn runs(&self, id: RunId) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.runs.iter().any(|run| run.id == id))
    }

    fn run(&mut self, id: RunId) -> Option<&mut Run> {
        self.lease.as_mut()?.runs.iter_mut().find(|run| run.id == id)
    }

    pub(in crate::swarm) fn origin_progress(&mut self, cx: &mut Context<'_>, id: RunId, bytes: u64) {
        if let Some(run) = self.run(id).filter(|run| run.bytes < bytes) {
            cx.links.bytes_in += bytes - run.bytes;
            run.bytes = bytes;
            self.progressed = cx.now;
        }
    }

    /// A chunk came from the origin, hashed if the state in front of it was known when its stream began.
    pub(in crate::swarm) fn origin_chunk(
        &mut self,
        cx: &mut Context<'_>,
        id: RunId,
        chunk: ChunkIndex,
        end: Option<LinkEnd>,
    ) {
        let Some(run) = self.run(id).filter(|run| run.next == chunk) else { return };
        run.next = chunk.next();
        let over = run.until == Some(run.next);
        cx.links.pace.came(cx.now, self.content.as_ref().map_or(0, |content| content.layout().len(chunk)));
        if let Some(lease) = &mut self.lease {
            lease.tries = 0;
            if !std::mem::replace(&mut lease.carries, true) {
                cx.links.leases += 1;
                cx.links.burden_changed = true;
                // A trial of the lease begins when the tracker hears that something comes in.
                self.hasten(cx);
            }
        }
        match end {
            Some(end) => self.link(cx, chunk, end),
            None => {
                if let Some(content) = &mut self.content {
                    content.insert_raw(chunk);
                }
                self.progressed = cx.now;
                self.hash_next(cx);
            }
        }
        let ending = self.lease.as_ref().is_some_and(|lease| lease.ending);
        let met = self.is_elsewhere(cx.now, chunk.next());
        // Two that stream without a tracker's leave may keep step with each other: then neither is ahead.
        if ending || (met || self.are_others_at(cx.now, chunk)) && self.yields(cx) {
            self.give_back(cx);
        } else if over || met {
            self.end_run(cx, id);
        }
    }

    /// Several nodes may have gone to the origin when no tracker answered or nothing came. Where one meets what another has
    /// brought, it gives way as often as not.
    fn yields(&self, cx: &mut Context<'_>) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.grant.is_none()) && !self.solo && cx.rng.random_bool(0.5)
    }

    fn end_run(&mut self, cx: &mut Context<'_>, id: RunId) {
        let Some(lease) = &mut self.lease else { return };
        let Some(at) = lease.runs.iter().position(|run| run.id == id) else { return };
        let run = lease.runs.remove(at);
        cx.links.pace.ended();
        lease.bytes += run.bytes;
        cx.out.push(Output::StopOrigin { digest: self.digest, run: id });
    }

    /// A chunk of the origin is stored and its link known: it extends the chain or must agree with it.
    fn link(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, end: LinkEnd) {
        let Some(content) = &mut self.content else { return };
        let Some(expected) = content.chain.expected(chunk) else { return };
        match expected.end {
            Some(known) if known != end => {
                self.disproved(cx, chunk);
                return;
            }
            Some(_) => {}
            None => {
                let LinkEnd::State(after) = end else { return };
                if self.computed(chunk, &[expected.before, after]).is_err() {
                    return;
                }
                self.sign_due(cx);
            }
        }
        if self.arrived(cx, chunk) {
            self.show(cx, chunk, None);
        }
        self.check_complete(cx);
        self.hash_next(cx);
    }

    /// Has the next stored chunk hashed, if the state in front of it is known by now.
    pub(in crate::swarm) fn hash_next(&mut self, cx: &mut Context<'_>) {
        let Some(content) = self.content.as_mut().filter(|content| content.hashing.is_none()) else { return };
        let Some(chunk) = content.raw.iter().next() else { return };
        let Some(before) = content.chain.state(chunk) else { return };
        content.hashing = Some(chunk);
        cx.out.push(Output::Hash { digest: self.digest, chunk, before });
    }

    pub(in crate::swarm) fn hashed(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, end: Option<LinkEnd>) {
        let Some(content) = self.content.as_mut().filter(|content| content.hashing == Some(chunk)) else { return };
        content.hashing = None;
        let Some(end) = end else {
            self.fail(cx, FetchError::Disk);
            return;
        };
        if content.take_raw(chunk) {
            self.link(cx, chunk, end);
        } else {
            self.hash_next(cx);
        }
    }

    pub(in crate::swarm) fn origin_ended(&mut self, cx: &mut Context<'_>, id: RunId, failure: Option<OriginFailure>) {
        let Some(lease) = &mut self.lease else { return };
        let Some(at) = lease.runs.iter().position(|run| run.id == id) else { return };
        let run = lease.runs.remove(at);
        cx.links.pace.ended();
        lease.bytes += run.bytes;
        match failure {
            None => {}
            // An origin that wants to be left alone for longer than anybody waits is no help to this fetch.
            Some(OriginFailure::Transient { retry_after })
                if lease.tries + 1 < cx.limits.origin_tries
                    && retry_after.is_none_or(|rest| rest <= cx.limits.retry_after_max) =>
            {
                let pause = cx.limits.origin_backoff * (1 << lease.tries.min(6));
                lease.tries += 1;
                let pause = pause.mul_f64(cx.rng.random_range(0.5..1.5)).max(retry_after.unwrap_or_default());
                let due = cx.now + pause.min(cx.limits.retry_after_max);
                lease.not_before = Some(due);
                self.arm(due);
            }
            Some(OriginFailure::Disk) => self.fail(cx, FetchError::Disk),
            Some(OriginFailure::Corrupt) => self.distrust(cx),
            Some(failure @ (OriginFailure::Refused | OriginFailure::Transient { .. })) => self.shut_origin(cx, failure),
        }
        if self.lease.as_ref().is_some_and(|lease| lease.ending && lease.runs.is_empty()) {
            self.give_back(cx);
        }
    }

    /// The origin does not help this node. Others may have the blob, or be allowed to get it.
    fn shut_origin(&mut self, cx: &mut Context<'_>, failure: OriginFailure) {
        self.shut = Some(failure);
        self.drop_lease(cx);
        self.heartbeat(cx);
    }
}
