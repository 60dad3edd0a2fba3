//! Leases at work: streaming from the origin what no peer has, or importing it into a zone.

use rand::RngExt;

use super::{
    Context, Event, FetchError, OriginFailure, Output, RunId,
    connections::{Connections, Intake},
    fetch::Fetch,
    supply::is_open,
};
use crate::{
    chain::{LinkEnd, State},
    chunk::ChunkIndex,
    time::Time,
    wire::{Epoch, Grant, Held, Scope},
};

/// The right to fetch from the origin, or into a zone.
#[derive(Debug)]
pub(super) struct Lease {
    /// What a tracker gave; none if no tracker gave it.
    grant: Option<Grant>,
    /// Taken because nothing else helped: the word of peers that never sent anything does not count.
    greedy: bool,
    runs: Vec<Run>,
    connections: Connections,
    /// A stream was opened under it.
    active: bool,
    /// A stream brought a chunk: only then other leases may gather here, since a node whose link is slow shall not get all.
    carries: bool,
    /// It is to be given back when the chunk that is on its way is here.
    ending: bool,
    tries: u8,
    not_before: Option<Time>,
    /// When it was taken.
    since: Time,
    /// Bytes of streams that have ended.
    bytes: u64,
}

/// A stream from the origin.
#[derive(Debug)]
struct Run {
    id: RunId,
    next: ChunkIndex,
    /// The chunk in front of which it stops; none for the blob's end.
    until: Option<ChunkIndex>,
    bytes: u64,
    /// When it was asked for, until the origin answers.
    asked: Option<Time>,
}

impl Run {
    fn ends_within(&self, chunks: u32) -> bool {
        self.until.is_some_and(|until| until.0.saturating_sub(self.next.0) <= chunks)
    }

    fn covers(&self, chunk: ChunkIndex) -> bool {
        self.next <= chunk && self.until.is_none_or(|until| chunk < until)
    }
}

/// A stream that is to be opened.
struct Opening {
    from: ChunkIndex,
    until: Option<ChunkIndex>,
    before: Option<State>,
}

impl Lease {
    fn new(now: Time, grant: Option<Grant>) -> Self {
        Self {
            grant,
            greedy: false,
            runs: Vec::new(),
            connections: Connections::default(),
            active: false,
            carries: false,
            ending: false,
            tries: 0,
            not_before: None,
            since: now,
            bytes: 0,
        }
    }

    /// A lease that nobody gave, for a fetch that makes no progress otherwise.
    pub(super) fn own(now: Time) -> Self {
        Self { greedy: true, ..Self::new(now, None) }
    }

    pub(super) const fn is_greedy(&self) -> bool {
        self.greedy
    }

    /// Taken because no tracker answered.
    pub(super) const fn is_untracked(&self) -> bool {
        self.grant.is_none() && !self.greedy
    }

    pub(super) fn is_import(&self) -> bool {
        self.grant.is_some_and(|grant| grant.scope == Scope::Zone)
    }

    /// For heartbeats.
    pub(super) fn report(&self) -> Option<Held> {
        let Grant { epoch, scope } = self.grant?;
        let streams = u8::try_from(self.runs.len()).unwrap_or(u8::MAX);
        Some(Held { epoch, scope, bytes: self.total(), left: u32::MAX, streams })
    }

    /// Whether streams were opened under it.
    pub(super) const fn is_active(&self) -> bool {
        self.active
    }

    /// Whether a stream brought a chunk.
    pub(super) const fn carries(&self) -> bool {
        self.carries
    }

    /// Whether another stream is to be opened: of those that go on for more than `ahead` chunks, so many are wanted.
    fn has_room(&self, wanted: usize, ahead: u32) -> bool {
        let lasting = self.runs.iter().filter(|run| !run.ends_within(ahead)).count();
        lasting < wanted && self.runs.len() < wanted * 2
    }

    /// When it was taken.
    pub(super) const fn since(&self) -> Time {
        self.since
    }

    /// Whether a stream brings a chunk.
    pub(super) fn covers(&self, chunk: ChunkIndex) -> bool {
        self.runs.iter().any(|run| run.covers(chunk))
    }

    fn total(&self) -> u64 {
        self.bytes + self.runs.iter().map(|run| run.bytes).sum::<u64>()
    }

    pub(super) fn deadline(&self, now: Time) -> Option<Time> {
        if self.ending || self.is_import() {
            // Nothing is opened: time brings nothing.
            return None;
        }
        if self.runs.is_empty() {
            return self.not_before;
        }
        self.connections.due(now).map(|due| self.not_before.map_or(due, |pause| pause.max(due)))
    }
}

impl Fetch {
    pub(super) fn take_lease(&mut self, cx: &mut Context<'_>, grant: Grant) {
        self.imported |= grant.scope == Scope::Zone;
        match &mut self.lease {
            Some(lease) => {
                lease.grant = Some(grant);
                lease.ending = false;
            }
            None => {
                let mut lease = Lease::new(cx.now, Some(grant));
                lease.not_before = Some(cx.now + cx.limits.holders_patience);
                self.lease = Some(lease);
                cx.out.push(Output::Report(Event::Leased { digest: self.digest }));
                self.heartbeat(cx);
            }
        }
    }

    pub(super) fn take_untracked(&mut self, cx: &mut Context<'_>) {
        if self.lease.is_none() && self.shut.is_none() {
            cx.out.push(Output::Report(Event::Untracked { digest: self.digest }));
            self.lease = Some(Lease::new(cx.now, None));
        }
    }

    /// Nothing helps: the origin is used whether or not a tracker gave the lease. One that it gave is kept, so that it
    /// gives no other.
    pub(super) fn take_anyhow(&mut self, cx: &mut Context<'_>) {
        self.stop_origin(cx);
        match &mut self.lease {
            Some(lease) if !lease.is_import() => {
                (lease.greedy, lease.not_before, lease.since) = (true, None, cx.now);
            }
            Some(_) | None => {
                self.drop_lease(cx);
                self.lease = Some(Lease::own(cx.now));
            }
        }
    }

    /// Whether this node may ask other zones.
    pub(super) fn imports(&self) -> bool {
        self.lease.is_some()
    }

    /// The tracker wants the lease back: after the chunk that is on its way, so that no byte of it comes twice.
    pub(super) fn revoked(&mut self, cx: &mut Context<'_>, peer: crate::peer::PeerId, epoch: Epoch) {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.grant.is_some_and(|grant| grant.epoch == epoch))
        else {
            return;
        };
        if !self.tracking.includes(peer) {
            return;
        }
        if lease.greedy && std::mem::replace(&mut self.robbed, true) {
            // Nothing else helped, and nothing has since it was taken away before.
            lease.grant = None;
            self.tracking.returned(epoch);
        } else if lease.runs.is_empty() {
            self.give_back(cx);
        } else {
            lease.ending = true;
        }
    }

    /// Ends the lease and tells the tracker, and everybody what was held back for one peer each.
    fn give_back(&mut self, cx: &mut Context<'_>) {
        if let Some(grant) = self.lease.as_ref().and_then(|lease| lease.grant) {
            self.tracking.returned(grant.epoch);
        }
        self.drop_lease(cx);
        if let Some(content) = &mut self.content {
            for chunk in content.releases.open() {
                content.news.add(cx.now, chunk, cx.limits);
            }
            content.news.due = content.news.due.map(|_| cx.now);
        }
        self.tell_due(cx);
        self.heartbeat(cx);
    }

    pub(super) fn drop_lease(&mut self, cx: &mut Context<'_>) {
        self.stop_origin(cx);
        let Some(lease) = self.lease.take() else { return };
        if lease.carries {
            cx.links.leases = cx.links.leases.saturating_sub(1);
            cx.links.burden_changed = true;
            self.hasten(cx);
        }
    }

    pub(super) fn stop_origin(&mut self, cx: &mut Context<'_>) {
        let Some(lease) = &mut self.lease else { return };
        for run in lease.runs.drain(..) {
            cx.links.pace.ended();
            lease.bytes += run.bytes;
            cx.out.push(Output::StopOrigin { digest: self.digest, run: run.id });
        }
    }

    /// Opens streams of the first chunks that no peer has: one, and more if each is slower than all together.
    pub(super) fn tend_origin(&mut self, cx: &mut Context<'_>) {
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
        let chunk_bytes = self.content.as_ref().map_or(u64::MAX, |content| content.layout().chunk_bytes());
        let intake = Intake {
            bytes: lease.total(),
            all: cx.links.bytes_in,
            remaining: self.content.as_ref().map(|content| u64::from(content.missing()) * chunk_bytes),
            grain: chunk_bytes,
            uploads: cx.links.uploads > 0,
        };
        let wanted = lease.connections.wanted(cx.now, intake);
        let ahead = lease.connections.ahead(chunk_bytes);
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

    pub(super) fn origin_opened(&mut self, cx: &mut Context<'_>, id: RunId, size: u64) {
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
    pub(super) fn origin_ignores_ranges(&mut self) {
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

    pub(super) fn origin_progress(&mut self, cx: &mut Context<'_>, id: RunId, bytes: u64) {
        if let Some(run) = self.run(id).filter(|run| run.bytes < bytes) {
            cx.links.bytes_in += bytes - run.bytes;
            run.bytes = bytes;
            self.progressed = cx.now;
        }
    }

    /// A chunk came from the origin, hashed if the state in front of it was known when its stream began.
    pub(super) fn origin_chunk(&mut self, cx: &mut Context<'_>, id: RunId, chunk: ChunkIndex, end: Option<LinkEnd>) {
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
    pub(super) fn hash_next(&mut self, cx: &mut Context<'_>) {
        let Some(content) = self.content.as_mut().filter(|content| content.hashing.is_none()) else { return };
        let Some(chunk) = content.raw.iter().next() else { return };
        let Some(before) = content.chain.state(chunk) else { return };
        content.hashing = Some(chunk);
        cx.out.push(Output::Hash { digest: self.digest, chunk, before });
    }

    pub(super) fn hashed(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, end: Option<LinkEnd>) {
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

    pub(super) fn origin_ended(&mut self, cx: &mut Context<'_>, id: RunId, failure: Option<OriginFailure>) {
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

    /// Ends a fetch that neither the origin nor any peer can serve, as soon as that is sure.
    pub(super) fn fail_if_hopeless(&mut self, cx: &mut Context<'_>) {
        let Some(failure) = self.shut else { return };
        let open = self.remotes.iter().any(|(slot, remote)| {
            let early = remote.early.as_ref().is_some_and(|(_, chunks)| !chunks.is_empty());
            remote.has > 0 || early || self.remotes.subscribed.contains(slot) && !remote.answered
        });
        if !open && self.tracking.holders_known() && !self.tracking.is_served() {
            self.fail(cx, FetchError::Origin(failure));
        }
    }
}
