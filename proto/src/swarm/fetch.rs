//! One blob in the machine: being fetched, or complete and served to others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::RngExt;

use super::{
    Context, Event, FetchError, FetchView, Input, OriginFailure, Output, ReaderId, Restored,
    claims::Claims,
    content::{Content, PULL_PATIENCE},
    lease::Lease,
    remotes::Remotes,
    track::Tracking,
};
use crate::{
    chain::{Chain, State},
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    digest::Digest,
    limits::Limits,
    peer::PeerId,
    time::Time,
    wire::Message,
};

/// A fetch, from the wish to the end of serving.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) digest: Digest,
    pub(super) phase: Phase,
    /// The complete blob lies in the store.
    pub(super) sealed: bool,
    /// Known once the size is.
    pub(super) content: Option<Content>,
    pub(super) remotes: Remotes,
    /// Peers that were given up because their word could not be relied on, and until when.
    pub(super) shunned: BTreeMap<PeerId, Time>,
    pub(super) claims: Claims,
    pub(super) tracking: Tracking,
    pub(super) lease: Option<Lease>,
    /// A lease was asked back although nothing else had helped: once, for another may do better, but not again and again.
    pub(super) robbed: bool,
    /// It has, or had, a lease to import into its zone.
    pub(super) imported: bool,
    /// The origin will not help this node any more.
    pub(super) shut: Option<OriginFailure>,
    /// A claim was false: only the origin is believed, and no peer's claim.
    pub(super) solo: bool,
    /// How often the origin said something else than what was believed.
    pub(super) disproved: u8,
    /// When what is known of the blob was begun.
    pub(super) begun: Time,
    pub(super) readers: BTreeMap<ReaderId, ChunkIndex>,
    /// How much longer than the limit this fetch waits for progress, so that not all nodes stall in the same instant.
    calm: f64,
    /// When the last chunk came, or the last bytes from the origin.
    pub(super) progressed: Time,
    /// When somebody last asked for a chunk of it.
    pub(super) used: Time,
    /// When it needs time next, or earlier: whatever is put off moves it forward, and only the passing of time looks anew.
    wake: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Fetching,
    Complete,
    Failed,
}

impl Fetch {
    pub(super) fn new(digest: Digest, now: Time) -> Self {
        Self {
            digest,
            phase: Phase::Fetching,
            sealed: false,
            content: None,
            remotes: Remotes::default(),
            shunned: BTreeMap::new(),
            claims: Claims::default(),
            tracking: Tracking::default(),
            lease: None,
            robbed: false,
            imported: false,
            shut: None,
            solo: false,
            disproved: 0,
            begun: now,
            readers: BTreeMap::new(),
            calm: 1.0,
            progressed: now,
            used: now,
            wake: None,
        }
    }

    /// A blob that the store has; none if its chain is not whole.
    pub(super) fn held(digest: Digest, size: u64, segments: Vec<Arc<Segment>>, now: Time) -> Option<Self> {
        let mut chain = Chain::new(digest, Layout::new(size)?)?;
        for segment in &segments {
            chain.extend(segment.from, &segment.states).ok()?;
        }
        if !chain.is_whole() {
            return None;
        }
        let mut content = Content::new(chain, ChunkSet::full(Layout::new(size)?.count()));
        content.segments = segments;
        content.signing.cover(content.chain.frontier());
        let mut fetch = Self::new(digest, now);
        fetch.phase = Phase::Complete;
        fetch.sealed = true;
        fetch.content = Some(content);
        fetch.wake = Some(now);
        Some(fetch)
    }

    pub(super) fn start(&mut self, cx: &mut Context<'_>, restored: Option<Restored>) {
        self.calm = cx.rng.random_range(1.0..1.5);
        if let Some(restored) = restored {
            self.restore(cx, restored);
        }
        self.tracking.start(cx, self.digest);
        self.check_complete(cx);
    }

    fn restore(&mut self, cx: &mut Context<'_>, restored: Restored) {
        if !self.size_up(cx, restored.size) {
            return;
        }
        let Some(content) = &mut self.content else { return };
        for segment in restored.segments {
            if content.chain.extend(segment.from, &segment.states).is_ok() {
                content.segments.push(segment);
            }
        }
        content.signing.cover(content.chain.frontier());
        content.extended(ChunkIndex::FIRST);
        for chunk in restored.have.iter() {
            if !content.chain.can_verify(chunk) {
                continue;
            }
            content.insert(chunk);
            cx.out.push(Output::Arrived { digest: self.digest, chunk });
        }
    }

    pub(super) const fn is_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed)
    }

    pub(super) fn is_fetching(&self) -> bool {
        self.phase == Phase::Fetching
    }

    pub(super) fn is_idle(&self, now: Time, idle: Duration) -> bool {
        self.is_failed() || self.sealed && self.used + idle <= now
    }

    pub(super) fn segments(&self) -> &[Arc<Segment>] {
        self.content.as_ref().map_or(&[], |content| &content.segments)
    }

    pub(super) fn states(&self) -> &[State] {
        self.content.as_ref().map_or(&[], |content| content.chain.states())
    }

    pub(super) fn agrees(&self, size: u64, segment: &Segment) -> bool {
        self.content.as_ref().is_some_and(|content| {
            let from = segment.from.at();
            let known = content.chain.states().get(from..from.saturating_add(segment.states.len()));
            content.layout().size() == size && known == Some(segment.states.as_slice())
        })
    }

    pub(super) fn view(&self) -> FetchView {
        let content = self.content.as_ref();
        FetchView {
            digest: self.digest,
            size: content.map(|content| content.layout().size()),
            have: content.map_or(0, |content| content.have.len()),
            chunks: content.map_or(0, |content| content.layout().count()),
            complete: self.phase == Phase::Complete,
            leased: self.lease.is_some(),
            peers: self.remotes.len(),
            readers: self.readers.len() as u32,
        }
    }

    pub(super) fn handle(&mut self, cx: &mut Context<'_>, input: Input) {
        match input {
            Input::Located { trackers, known, .. } => self.located(cx, trackers, known),
            Input::Holders { holders, .. } => self.holders(cx, holders),
            Input::Pulled { pull, verdict, .. } => self.pulled(cx, pull, verdict),
            Input::OriginOpened { run, size, .. } => self.origin_opened(cx, run, size),
            Input::OriginIgnoresRanges { .. } => self.origin_ignores_ranges(),
            Input::OriginProgress { run, bytes, .. } => self.origin_progress(cx, run, bytes),
            Input::OriginChunk { run, chunk, end, .. } => self.origin_chunk(cx, run, chunk, end),
            Input::Hashed { chunk, end, .. } => self.hashed(cx, chunk, end),
            Input::Signed { segment, .. } => self.signed(cx, segment),
            Input::OriginEnded { run, failure, .. } => self.origin_ended(cx, run, failure),
            Input::Reading { reader, chunk, .. } => {
                self.readers.insert(reader, chunk);
            }
            Input::ReaderLeft { reader, .. } => {
                self.readers.remove(&reader);
            }
            Input::Sealed { segments, .. } => self.sealed(cx, segments),
            Input::Wanted { .. }
            | Input::Held { .. }
            | Input::Forgotten { .. }
            | Input::Connected { .. }
            | Input::Disconnected { .. }
            | Input::Received { .. }
            | Input::Asked { .. }
            | Input::Served { .. }
            | Input::Elapsed => {}
        }
        self.advance(cx);
    }

    /// Starts whatever can be started.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) {
        if self.is_fetching() {
            self.fail_if_hopeless(cx);
        }
        if self.is_fetching() {
            self.tend_candidate(cx);
            self.tend_origin(cx);
            self.pull_more(cx);
        }
        self.release(cx);
        self.tell_due(cx);
    }

    /// Sees to it that this fetch gets time at a moment.
    pub(super) fn arm(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    pub(super) fn elapsed(&mut self, cx: &mut Context<'_>) {
        self.wake = None;
        self.act(cx);
        self.rearm(cx);
    }

    fn act(&mut self, cx: &mut Context<'_>) {
        self.tell_due(cx);
        if !self.is_fetching() {
            self.release(cx);
            return;
        }
        self.track_due(cx);
        self.drop_late_pulls(cx);
        self.check_stall(cx);
        self.ask_for_states(cx);
        self.sign_due(cx);
        self.advance(cx);
    }

    /// When time must pass for it at the latest.
    pub(super) const fn deadline(&self) -> Option<Time> {
        self.wake
    }

    /// All that is put off, looked at anew.
    fn next_due(&self, now: Time, limits: &Limits) -> Option<Time> {
        let content = self.content.as_ref();
        let tell = content.and_then(|content| content.news.due);
        let release = content.and_then(|content| content.releases.deadline(limits));
        if !self.is_fetching() {
            let idle = self.sealed.then(|| self.used + limits.held_idle);
            return [tell, release, idle].into_iter().flatten().min();
        }
        let pulls = content.into_iter().flat_map(|content| content.pulls.iter().map(move |pull| (content, pull)));
        [
            tell,
            release,
            pulls.map(|(content, (_, pull))| content.pull_due(pull, limits)).min(),
            self.remotes.rest_end(now),
            self.claims.due().filter(|due| *due > now),
            self.states_due(),
            self.lease.as_ref().and_then(|lease| lease.deadline(now)),
            self.tracking.deadline(self.lease.is_some(), self.progressed, limits),
            self.hunger_due(now),
            Some(self.stall_end(limits)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Looks anew for what is put off, after something that may have moved much of it.
    pub(super) fn rearm(&mut self, cx: &Context<'_>) {
        if let Some(due) = self.next_due(cx.now, cx.limits) {
            self.arm(due);
        }
    }

    /// Takes a size as given. Returns false if it cannot be or contradicts what is known.
    pub(super) fn size_up(&mut self, cx: &mut Context<'_>, size: u64) -> bool {
        if let Some(content) = &self.content {
            return content.layout().size() == size;
        }
        let Some(chain) = Layout::new(size).and_then(|layout| Chain::new(self.digest, layout)) else {
            self.fail(cx, FetchError::Limit);
            return false;
        };
        let have = ChunkSet::empty(chain.layout().count());
        self.content = Some(Content::new(chain, have));
        self.begun = cx.now;
        self.list_early(size);
        cx.out.push(Output::Sized { digest: self.digest, size });
        for slot in self.remotes.subscribers.iter() {
            self.send_have(cx, slot);
        }
        true
    }

    pub(super) fn check_complete(&mut self, cx: &mut Context<'_>) {
        if !self.is_fetching() || !self.content.as_ref().is_some_and(|content| content.have.is_full()) {
            return;
        }
        self.phase = Phase::Complete;
        self.used = cx.now;
        self.drop_lease(cx);
        cx.out.push(Output::Proven { digest: self.digest });
        if self.content.as_ref().is_some_and(|content| content.releases.is_idle()) {
            self.unsubscribe_all(cx);
        }
        // Now, not when it is sealed: that may take the disk longer than a lease lives.
        self.join_complete(cx);
    }

    fn sealed(&mut self, cx: &mut Context<'_>, segments: Vec<Arc<Segment>>) {
        if let Some(content) = &mut self.content {
            content.segments = segments;
        }
        if self.remotes.subscribers.is_empty()
            && let Some(content) = &mut self.content
        {
            content.releases.clear();
            self.unsubscribe_all(cx);
        }
        self.sealed = true;
        cx.out.push(Output::Announce { digest: self.digest });
    }

    /// Whether others bring this fetch on: something came a moment ago, or is there to be asked for.
    pub(super) fn is_fed(&self, cx: &Context<'_>) -> bool {
        let Some(content) = &self.content else { return false };
        let recent = !content.have.is_empty() && self.progressed + cx.limits.fallback_window > cx.now;
        recent || !content.pulls.is_empty() || content.have.missing().any(|chunk| content.offers.is_held(chunk))
    }

    /// When no progress becomes too much; where chunks take long, later.
    fn stall_end(&self, limits: &Limits) -> Time {
        let content = self.content.as_ref().filter(|content| content.supplied);
        let pull_time = content.map_or(Duration::ZERO, |content| content.pull_time);
        let alone = self.progressed + (limits.stall_timeout + pull_time * PULL_PATIENCE).mul_f64(self.calm);
        // While a tracker says that somebody is at it, there is no use in going to the origin too, up to a point.
        let assured = self.tracking.assured().map(|at| at + limits.stall_timeout / 2);
        let assured = assured.map(|at| at.min(self.progressed + limits.stall_timeout * 3));
        assured.map_or(alone, |assured| assured.max(alone))
    }

    fn check_stall(&mut self, cx: &mut Context<'_>) {
        if self.stall_end(cx.limits) > cx.now {
            return;
        }
        self.progressed = cx.now;
        match (&self.shut, &self.lease) {
            (Some(failure), _) => self.fail(cx, FetchError::Origin(*failure)),
            (None, Some(lease)) if lease.is_greedy() => self.fail(cx, FetchError::Origin(OriginFailure::TRANSIENT)),
            (None, _) => {
                cx.out.push(Output::Report(Event::Stalled { digest: self.digest }));
                self.take_anyhow(cx);
            }
        }
    }

    pub(super) fn fail(&mut self, cx: &mut Context<'_>, why: FetchError) {
        if self.is_failed() {
            return;
        }
        self.leave(cx);
        cx.out.push(Output::Failed { digest: self.digest, why });
    }

    /// Ends everything that others do for this fetch.
    pub(super) fn leave(&mut self, cx: &mut Context<'_>) {
        self.drop_lease(cx);
        self.cancel_pulls(cx);
        for slot in self.remotes.subscribed.iter() {
            let remote = &self.remotes[slot];
            if remote.up {
                cx.send(remote.peer, Message::Unsubscribe { digest: self.digest });
            }
        }
        self.tracking.leave(cx, self.digest);
        self.phase = Phase::Failed;
        self.content = None;
    }
}
