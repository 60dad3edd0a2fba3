//! Which states of a chain are believed, and what becomes of those that turn out false.
//!
//! States come in signed segments. One is believed if its author is a holder of the origin's lease, as a tracker says, or
//! if it continues what is believed already. A *whole* chain proves itself in part: its last chunk must lead from its last
//! state to the digest. So a whole chain is only a *candidate* until that chunk was pulled from whoever offers the chain;
//! whoever signed and sent what leads elsewhere is caught by its own word. A part of a chain that no tracker's word stands
//! for waits until nothing better came for a while.

mod ask;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Context, FetchError, PullId, Verdict,
    content::{Content, Pull},
    fetch::Fetch,
    sign::STREAMED_STATES_MAX,
    slots::Slot,
};
use crate::{
    chain::{Chain, ChainError, State},
    chunk::{ChunkIndex, Layout},
    claim::Segment,
    peer::PeerId,
    time::Time,
    wire::Message,
};

/// A part of a chain that no tracker's word stands for is believed if nothing better came for so long.
const PART_PATIENCE: Duration = Duration::from_millis(300);
/// Tries to get a candidate's last chunk from the peer that offers it, but for those while it was busy.
const PROBES_MAX: u8 = 4;
/// So long a peer that did not show its last chunk is not asked for it again.
const UNABLE_TIME: Duration = Duration::from_secs(1);
/// A tracker's word is enough for chains of so few chunks: little is lost if it is wrong.
const SHORT: u32 = 16;

/// Authors that are remembered as refused, and as caught: anybody can make up names of authors.
const AUTHORS_MAX: usize = 256;

/// What is claimed of a blob beside what is believed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    candidate: Option<Candidate>,
    /// Authors whose chains led elsewhere, or contradict better ones.
    refused: BTreeSet<PeerId>,
    /// Peers that did not show the end of the chain that they offer, and until when they are not asked again.
    unable: BTreeMap<PeerId, Time>,
    /// Authors of false states, and senders of bytes that do not fit their own word.
    banned: BTreeSet<PeerId>,
    /// The last of these, for the trackers.
    accused: Option<PeerId>,
}

/// A chain that is not believed yet.
#[derive(Debug)]
struct Candidate {
    /// Who offers it.
    peer: PeerId,
    /// What is believed, and what it says beyond.
    chain: Chain,
    /// The latter as it was signed.
    segments: Vec<Arc<Segment>>,
    since: Time,
    /// Its last chunk on its way.
    probe: Option<PullId>,
    probes: u8,
}

impl Claims {
    pub(super) fn is_banned(&self, peer: PeerId) -> bool {
        self.banned.contains(&peer)
    }

    /// Has nothing to do with what a peer says any more. Returns whether that is new.
    pub(super) fn ban(&mut self, peer: PeerId) -> bool {
        let new = self.banned.len() < AUTHORS_MAX && self.banned.insert(peer);
        self.accused = if new { Some(peer) } else { self.accused };
        new
    }

    /// The last that was banned.
    pub(super) const fn accused(&self) -> Option<PeerId> {
        self.accused
    }

    pub(super) fn is_refused(&self, author: PeerId) -> bool {
        self.refused.contains(&author)
    }

    /// Considers no chain of these authors any more.
    pub(super) fn refuse(&mut self, authors: impl Iterator<Item = PeerId>) {
        let room = AUTHORS_MAX.saturating_sub(self.refused.len());
        self.refused.extend(authors.take(room));
    }

    /// One whose word seemed better was caught: whoever gave way to it is heard again.
    pub(super) fn hear_again(&mut self) {
        self.refused.clear();
    }

    pub(super) fn drop_candidate(&mut self) {
        self.candidate = None;
    }

    /// When a chain is believed although nobody stands for it and its end is not to be had.
    pub(super) fn due(&self) -> Option<Time> {
        let candidate = self.candidate.as_ref().filter(|candidate| candidate.probe.is_none())?;
        Some(candidate.since + PART_PATIENCE)
    }

    pub(super) fn is_probe(&self, pull: PullId) -> bool {
        self.candidate.as_ref().is_some_and(|candidate| candidate.probe == Some(pull))
    }

    fn is_unable(&self, now: Time, peer: PeerId) -> bool {
        self.unable.get(&peer).is_some_and(|until| *until > now)
    }

    pub(super) fn forget(&mut self, peer: PeerId) -> bool {
        let offered = self.candidate.as_ref().is_some_and(|candidate| candidate.peer == peer);
        if offered {
            self.candidate = None;
        }
        offered
    }
}

/// What a segment is to the believed chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// All its states are known.
    Known,
    /// It goes on from what is known.
    New,
    /// It begins behind what is known.
    Gap,
    /// It says something else.
    Other,
}

impl Fit {
    fn of(chain: &Chain, segment: &Segment) -> Self {
        let states = chain.states();
        let Some(known) = states.get(segment.from.at()..) else { return Self::Gap };
        let both = known.len().min(segment.states.len());
        let beyond = segment.from.at() + segment.states.len() > chain.layout().count() as usize;
        if both == 0 {
            Self::Gap
        } else if beyond || known[..both] != segment.states[..both] {
            Self::Other
        } else if segment.states.len() > both {
            Self::New
        } else {
            Self::Known
        }
    }
}

impl Fetch {
    /// Whether an author's word is good enough to begin with.
    pub(super) fn trusts(&self, cx: &Context<'_>, author: PeerId) -> bool {
        author == cx.me || self.tracking.names(author)
    }

    pub(super) fn they_claim(&mut self, cx: &mut Context<'_>, slot: Slot, size: u64, segment: Arc<Segment>) {
        if !self.is_fetching() || self.solo || self.claims.is_banned(segment.author) {
            return;
        }
        let remote = &mut self.remotes[slot];
        let peer = remote.peer;
        remote.frontier = remote.frontier.max(segment.end());
        let trusted = self.trusts(cx, segment.author);
        if !trusted && self.claims.is_refused(segment.author) {
            // It gave way to a better word: were it taken again behind what others say, it would have to give way again, for ever.
            return;
        }
        let Some(content) = &self.content else {
            if trusted && !is_of_whole(size, &segment) {
                if self.size_up(cx, size) {
                    self.adopt(cx, peer, segment);
                }
            } else {
                self.consider(cx, peer, size, segment);
            }
            return;
        };
        if content.layout().size() != size {
            self.contest(cx, slot, size, segment);
            return;
        }
        let begun = content.chain.frontier() > ChunkIndex::FIRST;
        match Fit::of(&content.chain, &segment) {
            Fit::Known if segment.author != peer => self.prune(cx, slot),
            Fit::Known => {}
            Fit::New if is_of_whole(size, &segment) && content.have.len() * 2 < content.layout().count() => {
                self.consider(cx, peer, size, segment);
            }
            Fit::New if trusted || begun => self.adopt(cx, peer, segment),
            Fit::New => self.consider(cx, peer, size, segment),
            Fit::Gap if self.continues_candidate(peer, &segment) => self.consider(cx, peer, size, segment),
            Fit::Gap => self.ask_again(cx, slot),
            Fit::Other => self.contest(cx, slot, size, segment),
        }
    }

    fn continues_candidate(&self, peer: PeerId, segment: &Segment) -> bool {
        self.claims
            .candidate
            .as_ref()
            .is_some_and(|candidate| candidate.peer == peer && Fit::of(&candidate.chain, segment) != Fit::Gap)
    }

    /// Takes states into the believed chain, and tells others of them.
    fn adopt(&mut self, cx: &mut Context<'_>, from: PeerId, segment: Arc<Segment>) {
        let Some(content) = &mut self.content else { return };
        let before = content.chain.frontier();
        if content.chain.extend(segment.from, &segment.states).is_err() || content.chain.frontier() == before {
            return;
        }
        content.feeder = Some(from);
        content.extended(before);
        self.pass_on(cx, segment);
        self.hash_next(cx);
        // What waited may be said by now.
        let done = |candidate: &Candidate, content: &Content| {
            candidate.probe.is_none() && candidate.chain.frontier() <= content.chain.frontier()
        };
        if let (Some(candidate), Some(content)) = (&self.claims.candidate, &self.content)
            && done(candidate, content)
        {
            self.claims.candidate = None;
        }
    }

    /// Keeps states that are not believed yet.
    fn consider(&mut self, cx: &mut Context<'_>, peer: PeerId, size: u64, segment: Arc<Segment>) {
        if self.claims.is_refused(segment.author) || self.claims.is_unable(cx.now, peer) {
            return;
        }
        if self.claims.candidate.is_none() {
            let believed = self.content.as_ref().map(|content| content.chain.clone());
            let Some(chain) = believed.or_else(|| Chain::new(self.digest, Layout::new(size)?)) else { return };
            self.claims.candidate =
                Some(Candidate { peer, chain, segments: Vec::new(), since: cx.now, probe: None, probes: 0 });
            // Its author may be the new holder of the lease.
            self.ask_tracker(cx);
        }
        let Some(candidate) = &mut self.claims.candidate else { return };
        if candidate.chain.layout().size() != size {
            return;
        }
        match Fit::of(&candidate.chain, &segment) {
            Fit::New if candidate.peer == peer => {
                if candidate.chain.extend(segment.from, &segment.states) == Ok(()) {
                    candidate.segments.push(segment);
                }
            }
            Fit::Known | Fit::New | Fit::Gap | Fit::Other => {}
        }
        self.tend_candidate(cx);
    }

    /// Brings the candidate to a decision, if one can be made.
    pub(super) fn tend_candidate(&mut self, cx: &mut Context<'_>) {
        let Some(candidate) = &self.claims.candidate else { return };
        if candidate.probe.is_some() {
            return;
        }
        let named = candidate.segments.iter().any(|segment| self.trusts(cx, segment.author));
        let short = named && candidate.chain.layout().count() <= SHORT;
        if candidate.chain.is_whole() && !short && self.offers_last(candidate) {
            self.probe(cx);
            return;
        }
        let patient = candidate.since + PART_PATIENCE > cx.now;
        let known = self.content.as_ref().map_or(ChunkIndex::FIRST, |content| content.chain.frontier());
        let long = candidate.segments.iter().any(|segment| segment.states.len() > STREAMED_STATES_MAX);
        let whole = long || candidate.chain.is_whole() && !short && !self.ends_stream(candidate);
        // Whoever has the whole chain shows its end, or is not believed.
        if whole && (long || !named) && !patient {
            let peer = candidate.peer;
            self.refuse(cx, peer);
        } else if candidate.chain.frontier() > known && (!patient || named && !whole) {
            self.believe(cx);
        }
    }

    /// Whether a candidate adds the last states to what the same author has streamed so far. Its holder shows the last
    /// chunks to one peer each, so that whoever passes the states on has no last chunk to show.
    fn ends_stream(&self, candidate: &Candidate) -> bool {
        let Some(content) = &self.content else { return false };
        let followed = content.segments.last().map(|segment| segment.author);
        let more = candidate.chain.frontier().at().checked_sub(content.chain.frontier().at());
        let same = candidate.segments.iter().all(|segment| Some(segment.author) == followed);
        same && content.chain.frontier() > ChunkIndex::FIRST && more.is_some_and(|more| more <= STREAMED_STATES_MAX)
    }

    /// Whether the peer that offers a chain has its last chunk, as it says: a holder that still streams has not.
    fn offers_last(&self, candidate: &Candidate) -> bool {
        let last = candidate.chain.layout().last();
        self.remotes.find(candidate.peer).is_some_and(|slot| match (&self.content, &self.remotes[slot].early) {
            (Some(content), _) => content.offers.holders(last).contains(slot) || content.have.contains(last),
            (None, Some((_, chunks))) => chunks.contains(last),
            (None, None) => false,
        })
    }

    /// The candidate becomes what is believed.
    fn believe(&mut self, cx: &mut Context<'_>) {
        let Some(candidate) = self.claims.candidate.take() else { return };
        if !self.size_up(cx, candidate.chain.layout().size()) {
            return;
        }
        for segment in candidate.segments {
            self.adopt(cx, candidate.peer, segment);
        }
    }

    /// Pulls the last chunk of a whole chain from the peer that offers it.
    fn probe(&mut self, cx: &mut Context<'_>) {
        let Some(candidate) = self.claims.candidate.as_ref().filter(|candidate| candidate.probe.is_none()) else {
            return;
        };
        let (peer, size) = (candidate.peer, candidate.chain.layout().size());
        let last = candidate.chain.layout().last();
        if self.content.as_ref().is_some_and(|content| content.have.contains(last)) {
            self.believe(cx);
            return;
        }
        if self.content.as_ref().is_some_and(|content| content.raw.contains(last)) {
            // It came from the origin, and is hashed once the states in front of it are known.
            return;
        }
        let Some(expected) = candidate.chain.expected(last) else { return };
        let Some(slot) = self.remotes.find(peer).filter(|slot| self.remotes.ready(cx.now).contains(*slot)) else {
            return;
        };
        if !self.size_up(cx, size) {
            self.refuse(cx, peer);
            return;
        }
        let id = PullId(cx.next_id());
        let pull = Pull { peer: slot, chunk: last, started: cx.now, fresh: true, waited: None };
        self.send_pull(cx, id, pull, expected);
        if let Some(candidate) = &mut self.claims.candidate {
            candidate.probe = Some(id);
            candidate.probes += 1;
        }
    }

    /// The last chunk of a whole chain came, or did not.
    pub(super) fn probed(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex, verdict: Verdict) {
        let Some(candidate) = &mut self.claims.candidate else { return };
        candidate.probe = None;
        let peer = candidate.peer;
        match verdict {
            Verdict::Good => {
                self.believe(cx);
                self.arrived(cx, chunk);
                self.show(cx, chunk, Some(peer));
                self.check_complete(cx);
            }
            Verdict::Corrupt => {
                let authors: BTreeSet<PeerId> = candidate.segments.iter().map(|segment| segment.author).collect();
                let signed = candidate.segments.last().is_some_and(|segment| segment.author == peer);
                self.misled(cx, peer, &authors, signed);
            }
            Verdict::Busy if candidate.since + UNABLE_TIME > cx.now => candidate.probes -= 1,
            Verdict::Link | Verdict::Missing if candidate.probes < PROBES_MAX => {}
            Verdict::Busy | Verdict::Link | Verdict::Missing => self.refuse(cx, peer),
            Verdict::Disk => self.fail(cx, FetchError::Disk),
        }
    }

    /// A whole chain leads elsewhere, with the bytes of the peer that offers it; if it signed the end, it is caught by its
    /// own word.
    fn misled(&mut self, cx: &mut Context<'_>, peer: PeerId, authors: &BTreeSet<PeerId>, signed: bool) {
        self.claims.refuse(authors.iter().copied().filter(|author| *author != cx.me));
        let rests = |content: &Content| {
            let begun = content.segments.iter().any(|segment| authors.contains(&segment.author));
            // Its word was all that there was for the size, too.
            begun || content.segments.is_empty() && content.have.is_empty()
        };
        if self.content.as_ref().is_some_and(rests) {
            self.begin_anew(cx);
        }
        // Whoever has that chunk found out, too: it does not have it, or its disk fails.
        self.shun(peer, Time::MAX);
        if signed {
            self.convict(cx, peer);
        }
        self.refuse(cx, peer);
    }

    /// A peer's chain is not considered any more: others are asked for theirs.
    fn refuse(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.claims.unable.retain(|_, until| *until > cx.now);
        self.claims.unable.insert(peer, cx.now + UNABLE_TIME);
        self.claims.candidate = None;
        if let Some(slot) = self.remotes.find(peer).filter(|_| self.is_shunned(cx.now, peer)) {
            self.drop_remote(cx, slot);
        }
        self.ask_all_again(cx);
    }

    /// Keeps a segment that brought news and tells it to subscribers that do not know its states. Those who have them
    /// from elsewhere say so, so that the paths by which they come first are left: mostly straight from the author, who
    /// tells everybody.
    pub(super) fn pass_on(&mut self, cx: &mut Context<'_>, segment: Arc<Segment>) {
        let Some(content) = &mut self.content else { return };
        let size = content.layout().size();
        for slot in self.remotes.subscribers.iter() {
            let remote = &mut self.remotes[slot];
            if segment.author == cx.me || remote.frontier < segment.end() {
                remote.frontier = remote.frontier.max(segment.end());
                cx.send(remote.peer, Message::Segment { digest: self.digest, size, segment: Arc::clone(&segment) });
            }
        }
        content.signing.cover(segment.end());
        content.segments.push(segment);
    }

    /// Takes in what this node computed itself; see [`Chain::extend`].
    pub(super) fn computed(&mut self, chunk: ChunkIndex, states: &[State]) -> Result<(), ChainError> {
        let Some(content) = &mut self.content else { return Ok(()) };
        let before = content.chain.frontier();
        content.chain.extend(chunk, states)?;
        content.extended(before);
        Ok(())
    }
}

/// Whether a segment is of a whole chain, as those have it who have the whole blob: it brings the last state, or more
/// states at once than are signed while chunks come in.
fn is_of_whole(size: u64, segment: &Segment) -> bool {
    let long = segment.states.len() > STREAMED_STATES_MAX;
    long || Layout::new(size).is_some_and(|layout| segment.end() >= layout.last())
}
