//! Leases at work: streaming from the origin what no peer has, or importing it into a zone.

mod stream;

use super::{Context, Event, FetchError, Output, RunId, connections::Connections, fetch::Fetch};
use crate::{
    chunk::ChunkIndex,
    peer::PeerId,
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
    pub(super) fn revoked(&mut self, cx: &mut Context<'_>, peer: PeerId, epoch: Epoch) {
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

    /// Ends a fetch that neither the origin nor any peer can serve, as soon as that is sure.
    pub(super) fn fail_if_hopeless(&mut self, cx: &mut Context<'_>) {
        let Some(failure) = self.shut else { return };
        let open = self.remotes.iter().any(|(slot, remote)| {
            let early = remote.early.as_ref().is_some_and(|(_, chunks)| !chunks.is_empty());
            remote.has > 0 || early || self.remotes.subscribed.contains(slot) && !remote.answered
        });
        if open || self.tracking.is_served() || self.tracking.is_looking() {
            return;
        }
        if self.tracking.look_again(cx, self.digest) {
            self.rearm(cx);
        } else {
            self.fail(cx, FetchError::Origin(failure));
        }
    }
}
