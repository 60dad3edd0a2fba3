//! What becomes of words that contradict each other: who is believed, who is caught, and beginning anew.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Context, Event, FetchError, OriginFailure, Output,
    fetch::Fetch,
    lease::Lease,
    slots::{Slot, Slots},
};
use crate::{chunk::ChunkIndex, claim::Segment, peer::PeerId, time::Time};

/// States under which nothing came for so long give way to others that a tracker's word stands for.
const BARREN: Duration = Duration::from_millis(300);
/// A peer with another claim is left alone for so long.
const DISPUTE_PAUSE: Duration = Duration::from_millis(500);
/// So often a fetch begins anew because the origin says something else; then it believes the origin alone.
const DISPROVED_MAX: u8 = 8;

impl Fetch {
    /// A peer's states say something else than those that are believed. The latter stay if they were shown to lead to the
    /// digest, if they are as good, or as long as chunks come in under them.
    pub(super) fn contest(&mut self, cx: &mut Context<'_>, slot: Slot, size: u64, segment: Arc<Segment>) {
        let Some(content) = &self.content else { return };
        let shown = content.chain.is_whole() && content.have.contains(content.layout().last());
        let authors: BTreeSet<PeerId> = content.segments.iter().map(|segment| segment.author).collect();
        let named = authors.iter().all(|author| self.trusts(cx, *author)) && !authors.is_empty();
        let patience = if content.have.is_empty() { BARREN } else { BARREN * 10 };
        let barren = self.begun.max(self.progressed) + patience <= cx.now;
        let better = match (self.trusts(cx, segment.author), named) {
            (true, false) => true,
            (true, true) => barren,
            (false, false) => content.have.is_empty() && self.begun + BARREN * 2 <= cx.now,
            (false, true) => false,
        };
        let refused = self.claims.is_refused(segment.author);
        if shown || !better || refused || authors.contains(&cx.me) {
            self.dispute(cx, slot);
            if !shown {
                // Its author may be the new holder of the lease.
                self.ask_tracker(cx);
            }
            return;
        }
        let less: Vec<PeerId> = authors.into_iter().filter(|author| !self.trusts(cx, *author)).collect();
        self.claims.refuse(less.into_iter());
        self.begin_anew(cx);
        self.they_claim(cx, slot, size, segment);
        // Others that say the same were left aside.
        self.shunned.retain(|_, until| *until == Time::MAX);
        self.ask_tracker(cx);
    }

    /// A peer holds another claim: it may be right, but its chunks cannot be judged under ours.
    pub(super) fn dispute(&mut self, cx: &mut Context<'_>, slot: Slot) {
        cx.out.push(Output::Report(Event::Disputed { digest: self.digest }));
        self.shun(self.remotes[slot].peer, cx.now + DISPUTE_PAUSE);
        self.drop_remote(cx, slot);
    }

    /// A claim turned out false: drop all that rests on it and believe only the origin from now on.
    pub(super) fn distrust(&mut self, cx: &mut Context<'_>) {
        cx.out.push(Output::Report(Event::Disputed { digest: self.digest }));
        if self.solo || self.shut.is_some() {
            self.fail(cx, FetchError::Origin(self.shut.unwrap_or(OriginFailure::Corrupt)));
            return;
        }
        self.solo = true;
        self.begin_anew(cx);
        self.drop_lease(cx);
        self.lease = Some(Lease::own(cx.now));
    }

    /// A chunk from the origin does not lead to the next state as it is believed. Whoever signed that one signed the state in
    /// front of the chunk, too, and so is caught.
    pub(super) fn disproved(&mut self, cx: &mut Context<'_>, chunk: ChunkIndex) {
        let author = self.content.as_ref().and_then(|content| content.author_of(chunk.next()));
        let Some(liar) = author.filter(|author| *author != cx.me && self.disproved < DISPROVED_MAX) else {
            self.distrust(cx);
            return;
        };
        self.disproved += 1;
        cx.out.push(Output::Report(Event::Disputed { digest: self.digest }));
        self.begin_anew(cx);
        self.convict(cx, liar);
        self.tracking.start(cx, self.digest);
    }

    /// A peer is caught by its own word: it is left out, and the trackers are told.
    pub(super) fn convict(&mut self, cx: &mut Context<'_>, liar: PeerId) {
        if !self.claims.ban(liar) {
            return;
        }
        self.claims.hear_again();
        cx.out.push(Output::Report(Event::Convicted { peer: liar, digest: self.digest }));
        if let Some(slot) = self.remotes.find(liar) {
            self.drop_remote(cx, slot);
        }
        self.accuse(cx);
    }

    /// The last chunk under the believed states does not lead to the digest, and whoever signed the last of them sent it.
    pub(super) fn convict_author(&mut self, cx: &mut Context<'_>, liar: PeerId) {
        cx.out.push(Output::Report(Event::Disputed { digest: self.digest }));
        self.begin_anew(cx);
        self.convict(cx, liar);
        // It may have been the tracker too, and have hidden the honest.
        self.tracking.start(cx, self.digest);
    }

    /// Drops all that rests on a false claim, and asks all peers anew.
    pub(super) fn begin_anew(&mut self, cx: &mut Context<'_>) {
        self.stop_origin(cx);
        self.cancel_pulls(cx);
        self.claims.drop_candidate();
        let Some(content) = self.content.take() else { return };
        self.begun = cx.now;
        cx.out.push(Output::Discard { digest: self.digest });
        if !content.have.is_empty() {
            // Else nothing is lost, and false words alone do not put off the way to the origin.
            self.progressed = cx.now;
        }
        self.remotes.forget_all();
        let asked = if self.solo { Slots::NONE } else { self.remotes.subscribed };
        for slot in asked.iter().filter(|slot| self.remotes[*slot].up).collect::<Vec<_>>() {
            self.subscribe(cx, slot);
        }
    }
}
