//! One blob in the machine: being fetched, or complete and served to others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::RngExt;

use super::{
    Context, Event, FetchError, FetchView, Input, OriginFailure, Output, PullId, ReaderId, Restored, Timer, Verdict,
    lease::Lease,
    neighbour::Remote,
    pick,
    release::Releases,
    track::Tracking,
};
use crate::{
    chain::Chain,
    chunk::{ChunkIndex, ChunkSet, Layout},
    claim::Segment,
    digest::Digest,
    limits::Limits,
    peer::PeerId,
    time::Time,
    wire::Message,
};

/// A pull counts as lost after so many times what pulls take.
const PULL_PATIENCE: u32 = 6;
/// Pulls that take longer than this are too many at once.
const PULL_TIME_AIM: Duration = Duration::from_secs(1);
/// What pulls are taken to take at most.
const PULL_TIME_MAX: Duration = Duration::from_secs(20);

/// A fetch, from the wish to the end of serving.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) digest: Digest,
    pub(super) phase: Phase,
    /// Known once the size is.
    pub(super) content: Option<Content>,
    pub(super) remotes: BTreeMap<PeerId, Remote>,
    pub(super) tracking: Tracking,
    pub(super) lease: Option<Lease>,
    /// The origin will not help this node any more.
    pub(super) shut: Option<OriginFailure>,
    /// A claim was false: only the origin is believed, and no peer's claim.
    pub(super) solo: bool,
    pub(super) readers: BTreeMap<ReaderId, ChunkIndex>,
    /// Authors of false states.
    pub(super) banned: BTreeSet<PeerId>,
    /// When the last chunk came, or the last bytes from the origin.
    pub(super) progressed: Time,
    /// When somebody last asked for a chunk of it.
    pub(super) used: Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Fetching,
    Complete,
    Failed,
}

/// What is known of a blob whose size is known.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) chain: Chain,
    /// The signed states that the chain was made of, in order.
    pub(super) segments: Vec<Segment>,
    pub(super) have: ChunkSet,
    /// The peer that brought the last new states.
    pub(super) feeder: Option<PeerId>,
    /// When states were last asked for again.
    pub(super) states_asked: Time,
    /// Chunks that we were shown first.
    pub(super) fresh: BTreeSet<ChunkIndex>,
    /// Chunks that are being pulled.
    pub(super) busy: ChunkSet,
    /// How many peers have each chunk.
    pub(super) rarity: Vec<u16>,
    pub(super) pulls: BTreeMap<PullId, Pull>,
    /// Moving average of how long a good pull takes.
    pub(super) pull_time: Duration,
    pub(super) releases: Releases,
    /// Chunks that subscribers have not been told of.
    pub(super) untold: Vec<ChunkIndex>,
    /// When they were last told.
    pub(super) told: Time,
    /// Who sent a chunk that did not verify, the first time.
    corrupt: BTreeMap<ChunkIndex, PeerId>,
}

/// A chunk on its way from a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pull {
    pub(super) peer: PeerId,
    pub(super) chunk: ChunkIndex,
    pub(super) started: Time,
    /// It is of those that we were shown first, and takes no room from others.
    fresh: bool,
    /// It was time to ask a second peer, and that was tried.
    hedged: bool,
}

impl Content {
    fn new(chain: Chain, have: ChunkSet) -> Self {
        let count = chain.layout().count();
        Self {
            chain,
            segments: Vec::new(),
            have,
            feeder: None,
            states_asked: Time::ZERO,
            fresh: BTreeSet::new(),
            busy: ChunkSet::empty(count),
            rarity: vec![0; count as usize],
            pulls: BTreeMap::new(),
            pull_time: Duration::ZERO,
            releases: Releases::default(),
            untold: Vec::new(),
            told: Time::ZERO,
            corrupt: BTreeMap::new(),
        }
    }

    pub(super) const fn layout(&self) -> Layout {
        self.chain.layout()
    }

    /// The chunks in front of which all states are known end here.
    pub(super) fn verifiable_end(&self) -> ChunkIndex {
        if self.chain.is_whole() { ChunkIndex(self.layout().count()) } else { self.chain.frontier() }
    }

    /// What a peer has, we lack, nobody sends yet, and could be verified.
    fn wanted<'a>(&'a self, theirs: &'a ChunkSet) -> impl Iterator<Item = ChunkIndex> + 'a {
        let end = self.verifiable_end();
        theirs.without(&self.have, &self.busy).take_while(move |chunk| *chunk < end)
    }

    pub(super) fn missing(&self) -> u32 {
        self.layout().count() - self.have.len()
    }

    /// A chunk is no longer on its way from this pull; it may still be from another.
    fn drop_pull(&mut self, pull: PullId) -> Option<Pull> {
        let dropped = self.pulls.remove(&pull)?;
        if !self.pulls.values().any(|other| other.chunk == dropped.chunk) {
            self.busy.remove(dropped.chunk);
        }
        Some(dropped)
    }

    fn note_time(&mut self, took: Duration) {
        self.pull_time = if self.pull_time.is_zero() { took } else { (self.pull_time * 7 + took) / 8 };
    }

    /// A pull that was given up may just be slow, and the next ones with it: give them more time.
    fn note_late(&mut self, took: Duration) {
        self.pull_time = self.pull_time.max(took).min(PULL_TIME_MAX);
    }

    /// Pulls to have out at once: many hide the way there and back, but where each takes long, they only delay each other.
    fn pulls_max(&self, limits: &Limits) -> usize {
        if self.pull_time <= PULL_TIME_AIM {
            return limits.pulls_max;
        }
        let share = PULL_TIME_AIM.as_secs_f64() / self.pull_time.as_secs_f64();
        ((limits.pulls_max as f64 * share) as usize).clamp(2.min(limits.pulls_max), limits.pulls_max)
    }

    /// When a pull counts as lost.
    fn pull_end(&self, pull: &Pull, limits: &Limits) -> Time {
        pull.started + limits.pull_timeout_min.max(self.pull_time * PULL_PATIENCE)
    }

    fn in_endgame(&self, limits: &Limits) -> bool {
        self.missing() <= limits.endgame_chunks
    }

    /// When a slow pull of the endgame is asked of a second peer too.
    fn hedge_at(&self, pull: &Pull) -> Time {
        pull.started + (self.pull_time * 2).max(Duration::from_millis(20))
    }
}

impl Fetch {
    pub(super) fn new(digest: Digest, now: Time) -> Self {
        Self {
            digest,
            phase: Phase::Fetching,
            content: None,
            remotes: BTreeMap::new(),
            tracking: Tracking::default(),
            lease: None,
            shut: None,
            solo: false,
            readers: BTreeMap::new(),
            banned: BTreeSet::new(),
            progressed: now,
            used: now,
        }
    }

    /// A blob that the store has; none if its chain is not whole.
    pub(super) fn held(digest: Digest, size: u64, segments: Vec<Segment>, now: Time) -> Option<Self> {
        let mut chain = Chain::new(digest, Layout::new(size)?)?;
        for segment in &segments {
            chain.extend(segment.from, &segment.states).ok()?;
        }
        if !chain.is_whole() {
            return None;
        }
        let mut content = Content::new(chain, ChunkSet::full(Layout::new(size)?.count()));
        content.segments = segments;
        let mut fetch = Self::new(digest, now);
        fetch.phase = Phase::Complete;
        fetch.content = Some(content);
        Some(fetch)
    }

    pub(super) fn start(&mut self, cx: &mut Context<'_>, restored: Option<Restored>) {
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
        for chunk in restored.have.iter().filter(|chunk| content.chain.can_verify(*chunk)) {
            content.have.insert(chunk);
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
        self.is_failed() || self.phase == Phase::Complete && self.used + idle <= now
    }

    pub(super) fn segments(&self) -> &[Segment] {
        self.content.as_ref().map_or(&[], |content| &content.segments)
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
            Input::Located { trackers, .. } => self.located(cx, trackers),
            Input::Holders { holders, .. } => self.holders(cx, holders),
            Input::Pulled { pull, verdict, .. } => self.pulled(cx, pull, verdict),
            Input::OriginOpened { run, size, .. } => self.origin_opened(cx, run, size),
            Input::OriginProgress { run, bytes, .. } => self.origin_progress(cx, run, bytes),
            Input::OriginChunk { run, chunk, end, segment, .. } => self.origin_chunk(cx, run, chunk, end, segment),
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
            self.tend_origin(cx);
            self.pull_more(cx);
        }
        self.release(cx);
    }

    pub(super) fn elapsed(&mut self, cx: &mut Context<'_>) {
        self.tell_due(cx);
        if !self.is_fetching() {
            self.release(cx);
            return;
        }
        for remote in self.remotes.values_mut() {
            remote.rest_over(cx.now);
        }
        self.track_due(cx);
        self.drop_late_pulls(cx);
        self.check_stall(cx);
        self.advance(cx);
    }

    pub(super) fn deadline(&self, limits: &Limits) -> Option<(Time, Timer)> {
        let content = self.content.as_ref();
        let tell = content.filter(|content| !content.untold.is_empty());
        let tell = tell.map(|content| (content.told + limits.got_delay, Timer::Tell));
        let release = content.and_then(|content| content.releases.deadline(limits)).map(|time| (time, Timer::Release));
        if !self.is_fetching() {
            let idle = Some((self.used + limits.held_idle, Timer::Idle));
            return [tell, release, idle].into_iter().flatten().min();
        }
        let pull = content.and_then(|content| {
            let ends = content.pulls.values().map(|pull| content.pull_end(pull, limits));
            let hedges = content.pulls.values().filter(|pull| !pull.hedged && content.in_endgame(limits));
            ends.chain(hedges.map(|pull| content.hedge_at(pull))).min()
        });
        let retry = self.remotes.values().filter_map(Remote::retry_at).min();
        let origin = self.lease.as_ref().and_then(Lease::deadline);
        [
            tell,
            release,
            pull.map(|time| (time, Timer::Pull)),
            retry.map(|time| (time, Timer::Retry)),
            origin.map(|time| (time, Timer::Origin)),
            self.tracking.deadline(self.lease.is_some(), self.progressed, limits).map(|time| (time, Timer::Track)),
            Some((self.stall_end(limits), Timer::Stall)),
        ]
        .into_iter()
        .flatten()
        .min()
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
        cx.out.push(Output::Sized { digest: self.digest, size });
        let subscribers: Vec<PeerId> =
            self.remotes.iter().filter(|(_, remote)| remote.subscriber).map(|(peer, _)| *peer).collect();
        for peer in subscribers {
            self.send_have(cx, peer);
        }
        true
    }

    fn pull_more(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let urgent = urgent_chunks(&self.readers, content.layout(), cx.limits);
        while let Some((peer, chunk)) = choose_fresh(content, &self.remotes, cx) {
            start_pull(self.digest, content, &mut self.remotes, cx, peer, chunk, true);
        }
        while content.pulls.values().filter(|pull| !pull.fresh).count() < content.pulls_max(cx.limits) {
            let useful = |remote: &Remote| remote.may_be_asked(cx.now) && remote.offers(|theirs| content.wanted(theirs).next().is_some());
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

    fn pulled(&mut self, cx: &mut Context<'_>, id: PullId, verdict: Verdict) {
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

    fn corrupt(&mut self, cx: &mut Context<'_>, pull: Pull) {
        cx.out.push(Output::Report(Event::CorruptChunk { peer: pull.peer, digest: self.digest, chunk: pull.chunk }));
        let Some(content) = &mut self.content else { return };
        let first = *content.corrupt.entry(pull.chunk).or_insert(pull.peer);
        if first == pull.peer {
            self.unlist(pull.peer, pull.chunk);
        } else {
            // Two peers that both hold the chunk under this claim sent bytes that do not fit: the claim is false.
            self.distrust(cx);
        }
    }

    /// A chunk is verified and stored.
    pub(super) fn arrived(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex) {
        let Some(content) = &mut self.content else { return };
        if !content.have.insert(chunk) {
            return;
        }
        self.progressed = cx.now;
        cx.out.push(Output::Arrived { digest: self.digest, chunk });
        let late: Vec<PullId> =
            content.pulls.iter().filter(|(_, pull)| pull.chunk == chunk).map(|(id, _)| *id).collect();
        for id in late {
            self.cancel_pull(cx, id);
        }
    }

    pub(super) fn cancel_pull(&mut self, cx: &mut Context<'_>, id: PullId) {
        let Some(pull) = self.content.as_mut().and_then(|content| content.drop_pull(id)) else { return };
        if let Some(remote) = self.remotes.get_mut(&pull.peer) {
            remote.pulls = remote.pulls.saturating_sub(1);
        }
        cx.out.push(Output::CancelPull { pull: id });
    }

    fn drop_late_pulls(&mut self, cx: &mut Context<'_>) {
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

    pub(super) fn check_complete(&mut self, cx: &mut Context<'_>) {
        if !self.is_fetching() || !self.content.as_ref().is_some_and(|content| content.have.is_full()) {
            return;
        }
        self.phase = Phase::Complete;
        self.used = cx.now;
        self.stop_origin(cx);
        self.lease = None;
        cx.out.push(Output::Proven { digest: self.digest });
    }

    fn sealed(&mut self, cx: &mut Context<'_>, segments: Vec<Segment>) {
        if let Some(content) = &mut self.content {
            content.segments = segments;
        }
        if !self.remotes.values().any(|remote| remote.subscriber)
            && let Some(content) = &mut self.content
        {
            content.releases.clear();
        }
        cx.out.push(Output::Announce { digest: self.digest });
        self.join_complete(cx);
    }

    /// A claim turned out false: drop all that rests on it and believe only the origin from now on.
    pub(super) fn distrust(&mut self, cx: &mut Context<'_>) {
        cx.out.push(Output::Report(Event::Disputed { digest: self.digest }));
        if self.solo {
            self.fail(cx, FetchError::Origin(OriginFailure::Corrupt));
            return;
        }
        self.solo = true;
        self.stop_origin(cx);
        let Some(content) = self.content.take() else { return };
        for id in content.pulls.keys() {
            cx.out.push(Output::CancelPull { pull: *id });
        }
        self.banned.extend(content.segments.iter().map(|segment| segment.author).filter(|author| *author != cx.me));
        for (peer, remote) in std::mem::take(&mut self.remotes) {
            if remote.subscribed {
                cx.send(peer, Message::Unsubscribe { digest: self.digest });
            }
        }
        cx.out.push(Output::Discard { digest: self.digest });
        self.progressed = cx.now;
        self.lease = Some(Lease::own());
    }

    /// When no progress becomes too much; where chunks take long, later.
    fn stall_end(&self, limits: &Limits) -> Time {
        let pull_time = self.content.as_ref().map_or(Duration::ZERO, |content| content.pull_time);
        self.progressed + limits.stall_timeout + pull_time * PULL_PATIENCE
    }

    fn check_stall(&mut self, cx: &mut Context<'_>) {
        if self.stall_end(cx.limits) > cx.now {
            return;
        }
        self.progressed = cx.now;
        match (&self.shut, &self.lease) {
            (Some(failure), _) => self.fail(cx, FetchError::Origin(*failure)),
            (None, Some(lease)) if lease.is_greedy() => self.fail(cx, FetchError::Origin(OriginFailure::Transient)),
            (None, _) => {
                cx.out.push(Output::Report(Event::Stalled { digest: self.digest }));
                self.stop_origin(cx);
                self.lease = Some(Lease::own());
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
        self.stop_origin(cx);
        for id in self.content.iter().flat_map(|content| content.pulls.keys()) {
            cx.out.push(Output::CancelPull { pull: *id });
        }
        for (peer, remote) in &self.remotes {
            if remote.subscribed && cx.is_up(*peer) {
                cx.send(*peer, Message::Unsubscribe { digest: self.digest });
            }
        }
        self.tracking.leave(cx, self.digest);
        self.phase = Phase::Failed;
        self.content = None;
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
fn choose(content: &Content, remote: &Remote, urgent: &BTreeSet<ChunkIndex>, cx: &mut Context<'_>) -> Option<ChunkIndex> {
    let theirs = remote.have.as_ref()?;
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
