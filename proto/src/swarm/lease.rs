//! The origin lease at work: streaming from the origin what no peer has.

use rand::RngExt;

use super::{Context, Event, FetchError, OriginFailure, Output, RunId, fetch::Fetch};
use crate::{
    chain::{LinkEnd, State},
    chunk::ChunkIndex,
    claim::Segment,
    peer::PeerId,
    time::Time,
    wire::Epoch,
};

/// The right to stream from the origin.
#[derive(Debug)]
pub(super) struct Lease {
    /// The tracker's number for it; none if no tracker gave it.
    epoch: Option<Epoch>,
    /// Taken because nothing else helped: the origin alone counts.
    greedy: bool,
    run: Option<Run>,
    tries: u8,
    not_before: Option<Time>,
    /// Bytes of streams that have ended.
    bytes: u64,
}

/// A stream from the origin.
#[derive(Debug)]
struct Run {
    id: RunId,
    next: ChunkIndex,
    bytes: u64,
}

impl Lease {
    const fn new(epoch: Option<Epoch>) -> Self {
        Self { epoch, greedy: false, run: None, tries: 0, not_before: None, bytes: 0 }
    }

    /// A lease that nobody gave, for a fetch that makes no progress otherwise.
    pub(super) const fn own() -> Self {
        Self { greedy: true, ..Self::new(None) }
    }

    pub(super) const fn is_greedy(&self) -> bool {
        self.greedy
    }

    /// Taken because no tracker answered.
    pub(super) const fn is_untracked(&self) -> bool {
        self.epoch.is_none() && !self.greedy
    }

    /// For heartbeats: the epoch and the bytes that came in.
    pub(super) fn report(&self) -> Option<(Epoch, u64)> {
        Some((self.epoch?, self.bytes + self.run.as_ref().map_or(0, |run| run.bytes)))
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        if self.run.is_some() { None } else { self.not_before }
    }
}

impl Fetch {
    pub(super) fn take_lease(&mut self, cx: &mut Context<'_>, epoch: Epoch) {
        match &mut self.lease {
            Some(lease) => lease.epoch = Some(epoch),
            None => {
                let mut lease = Lease::new(Some(epoch));
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
            self.lease = Some(Lease::new(None));
        }
    }

    pub(super) fn revoked(&mut self, cx: &mut Context<'_>, peer: PeerId, epoch: Epoch) {
        let Some(lease) = self.lease.as_mut().filter(|lease| lease.epoch == Some(epoch)) else { return };
        if !self.tracking.includes(peer) {
            return;
        }
        lease.epoch = None;
        if !lease.greedy {
            self.drop_lease(cx);
        }
    }

    pub(super) fn drop_lease(&mut self, cx: &mut Context<'_>) {
        self.stop_origin(cx);
        self.lease = None;
    }

    pub(super) fn stop_origin(&mut self, cx: &mut Context<'_>) {
        let Some(lease) = &mut self.lease else { return };
        if let Some(run) = lease.run.take() {
            lease.bytes += run.bytes;
            cx.out.push(Output::StopOrigin { digest: self.digest, run: run.id });
        }
    }

    /// Starts a stream of the first chunks that no peer has.
    pub(super) fn tend_origin(&mut self, cx: &mut Context<'_>) {
        if self.shut.is_some() || !self.may_open(cx.now) {
            return;
        }
        if let Some(lease) = &mut self.lease {
            lease.not_before = None;
        }
        let Some((from, until, before)) = self.next_run() else { return };
        let run = RunId(cx.next_id());
        let Some(lease) = &mut self.lease else { return };
        lease.run = Some(Run { id: run, next: from, bytes: 0 });
        cx.out.push(Output::PullOrigin { digest: self.digest, run, from, until, before });
    }

    /// Whether a stream may start: a lease without one, not pausing, and no peer left that may turn out to have it all.
    fn may_open(&self, now: Time) -> bool {
        let Some(lease) = self.lease.as_ref().filter(|lease| lease.run.is_none()) else { return false };
        if lease.not_before.is_none_or(|time| time <= now) {
            return true;
        }
        let settled =
            self.tracking.holders_known() && self.remotes.values().all(|remote| remote.answered || !remote.subscribed);
        lease.tries == 0 && settled
    }

    fn next_run(&self) -> Option<(ChunkIndex, Option<ChunkIndex>, State)> {
        let Some(content) = &self.content else { return Some((ChunkIndex::FIRST, None, State::INITIAL)) };
        let greedy = self.lease.as_ref().is_some_and(Lease::is_greedy);
        let elsewhere = |chunk: ChunkIndex| {
            content.have.contains(chunk) || !greedy && (content.rarity[chunk.at()] > 0 || content.busy.contains(chunk))
        };
        let from = content.layout().chunks().find(|chunk| !elsewhere(*chunk))?;
        let until = (from.0..content.layout().count()).map(ChunkIndex).find(|chunk| elsewhere(*chunk));
        Some((from, until, content.chain.state(from)?))
    }

    fn run(&mut self, id: RunId) -> Option<&mut Run> {
        self.lease.as_mut()?.run.as_mut().filter(|run| run.id == id)
    }

    pub(super) fn origin_opened(&mut self, cx: &mut Context<'_>, id: RunId, size: u64) {
        if self.run(id).is_some() && !self.size_up(cx, size) && !self.is_failed() {
            self.distrust(cx);
        }
    }

    pub(super) fn origin_progress(&mut self, cx: &Context<'_>, id: RunId, bytes: u64) {
        if let Some(run) = self.run(id).filter(|run| run.bytes < bytes) {
            run.bytes = bytes;
            self.progressed = cx.now;
        }
    }

    pub(super) fn origin_chunk(
        &mut self,
        cx: &mut Context<'_>,
        id: RunId,
        chunk: ChunkIndex,
        end: LinkEnd,
        segment: Option<Segment>,
    ) {
        let Some(run) = self.run(id).filter(|run| run.next == chunk) else { return };
        run.next = chunk.next();
        let Some(content) = &mut self.content else { return };
        let Some(expected) = content.chain.expected(chunk) else { return };
        match expected.end {
            Some(known) if known != end => {
                self.distrust(cx);
                return;
            }
            Some(_) => {}
            None => {
                let Some(segment) = segment else { return };
                if content.chain.extend(segment.from, &segment.states).is_err() {
                    return;
                }
                self.pass_on(cx, segment);
            }
        }
        if let Some(lease) = &mut self.lease {
            lease.tries = 0;
        }
        let new = self.arrived(cx, chunk);
        let Some(content) = &mut self.content else { return };
        let unique = content.rarity[chunk.at()] == 0;
        if new && unique && content.layout().count() >= cx.limits.release_chunks_min {
            content.releases.add(chunk);
        } else if new {
            content.untold.push(chunk);
        }
        self.tell_due(cx);
        self.check_complete(cx);
    }

    pub(super) fn origin_ended(&mut self, cx: &mut Context<'_>, id: RunId, failure: Option<OriginFailure>) {
        if self.run(id).is_none() {
            return;
        }
        let Some(lease) = &mut self.lease else { return };
        if let Some(run) = lease.run.take() {
            lease.bytes += run.bytes;
        }
        match failure {
            None => {}
            Some(OriginFailure::Transient) if lease.tries + 1 < cx.limits.origin_tries => {
                let pause = cx.limits.origin_backoff * (1 << lease.tries.min(6));
                lease.tries += 1;
                lease.not_before = Some(cx.now + pause.mul_f64(cx.rng.random_range(0.5..1.5)));
            }
            Some(OriginFailure::Disk) => self.fail(cx, FetchError::Disk),
            Some(OriginFailure::Corrupt) => self.distrust(cx),
            Some(failure @ (OriginFailure::Refused | OriginFailure::Transient)) => self.shut_origin(cx, failure),
        }
    }

    /// The origin does not help this node. Others may have the blob, or be allowed to get it.
    fn shut_origin(&mut self, cx: &mut Context<'_>, failure: OriginFailure) {
        self.shut = Some(failure);
        self.lease = None;
        self.heartbeat(cx);
    }

    /// Ends a fetch that neither the origin nor any peer can serve, as soon as that is sure.
    pub(super) fn fail_if_hopeless(&mut self, cx: &mut Context<'_>) {
        let Some(failure) = self.shut else { return };
        let open = self
            .remotes
            .values()
            .any(|remote| remote.offers(|theirs| !theirs.is_empty()) || remote.subscribed && !remote.answered);
        if !open && self.tracking.holders_known() && !self.tracking.is_served() {
            self.fail(cx, FetchError::Origin(failure));
        }
    }
}
