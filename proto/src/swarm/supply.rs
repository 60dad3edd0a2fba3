//! What others bring, so that the origin need not: whose word counts for it.

use std::time::Duration;

use super::{
    content::Content,
    fetch::Fetch,
    lease::Lease,
    remotes::{Remote, Remotes},
    slots::Slots,
};
use crate::{chunk::ChunkIndex, time::Time};

/// Where peers say that they have what this node has nothing of, the first stream waits so long for one to show it.
const SHOW_TIME: Duration = Duration::from_millis(150);
/// Until then the peers' word is taken for what they have; from then on only that of those that sent something.
const PROOF_TIME: Duration = Duration::from_millis(400);

impl Fetch {
    /// Peers have what this node has nothing of, as they say, and none has shown it: until when that is waited for.
    pub(super) fn awaits_show(&self) -> Option<Time> {
        let lease = self.lease.as_ref().filter(|lease| !lease.is_active() && !lease.is_greedy())?;
        let nothing = self.content.as_ref().is_none_or(|content| content.have.is_empty());
        let said =
            |remote: &Remote| remote.has > 0 || remote.early.as_ref().is_some_and(|(_, chunks)| !chunks.is_empty());
        (nothing && self.remotes.iter().any(|(_, remote)| said(remote))).then(|| lease.since() + SHOW_TIME)
    }

    /// Others have the next chunk meanwhile: the stream skips what they have.
    pub(super) fn is_elsewhere(&self, now: Time, chunk: ChunkIndex) -> bool {
        let (Some(content), Some(lease)) = (&self.content, &self.lease) else { return false };
        let to_be_had = || is_to_be_had(content, chunk, self.remotes.believed(lease, now));
        content.layout().contains(chunk) && (content.have.contains(chunk) || to_be_had())
    }

    /// Whether others, whose word counts, have a chunk that came from the origin just now.
    pub(super) fn are_others_at(&self, now: Time, chunk: ChunkIndex) -> bool {
        let (Some(content), Some(lease)) = (&self.content, &self.lease) else { return false };
        !(content.offers.holders(chunk) & self.remotes.believed(lease, now)).is_empty()
    }
}

impl Remotes {
    /// Whose word counts for what they have.
    pub(super) fn believed(&self, lease: &Lease, now: Time) -> Slots {
        if lease.is_greedy() {
            // All that was said until then has not helped.
            let helps = self.iter().filter(|(_, remote)| remote.good > lease.since());
            return helps.fold(Slots::NONE, |all, (slot, _)| all | Slots::only(slot));
        }
        let early = lease.since() + PROOF_TIME > now;
        if early || lease.is_untracked() { self.all() } else { self.proven() }
    }
}

/// Whether a chunk is for a new stream to bring: nobody has it, and none brings it already.
pub(super) fn is_open(content: &Content, lease: &Lease, chunk: ChunkIndex, believed: Slots) -> bool {
    let here = content.have.contains(chunk) || content.raw.contains(chunk);
    let elsewhere = is_to_be_had(content, chunk, believed) || content.is_pulled_from(chunk, believed);
    !here && !elsewhere && !lease.covers(chunk)
}

/// Whether peers have a chunk that they can be asked for. What cannot be verified cannot be asked for: whoever truly has it
/// has the states for it, too, and tells them.
fn is_to_be_had(content: &Content, chunk: ChunkIndex, believed: Slots) -> bool {
    chunk < content.verifiable_end() && !(content.offers.holders(chunk) & believed).is_empty()
}
