//! Near and far: bytes come from the own rack and zone where they can.
//!
//! Into a zone one node imports, under a lease of that scope, as one node streams from the origin. Into a rack every node
//! imports its share: most of its pulls are for the rack's own members, and the others for what none of these has, so that
//! several bring in what all of them need. What a node brings into its rack it tells the rack's members at once, and where
//! they are all busy its share of outside pulls is free for whatever it lacks. The nodes of a rack meet at one tracker, since
//! by chance each would know two or three of twenty. What a node imports into its zone it shows to other racks first. Nothing
//! of this is needed for a fetch to end: a node that gets nothing for a moment asks whomever it can.

use std::time::Duration;

use super::{
    Context,
    content::Content,
    fetch::Fetch,
    slots::{Slot, Slots},
};
use crate::{chunk::ChunkIndex, peer::Place, time::Time};

/// One in so many pulls is for another rack, if the own one has many members.
const OUTSIDE: usize = 6;
/// A fetch that gets nothing for so long asks other racks as if it had none.
const RACK_PATIENCE: Duration = Duration::from_millis(60);
/// A fetch that lacks less than this part of its chunks waits for nobody: all of them together are little beside what
/// a rack's uplink carries.
const RACK_END: u32 = 32;
/// A fetch that gets nothing for so long asks other zones too.
const ZONE_PATIENCE: Duration = Duration::from_secs(2);

/// How near a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Near {
    /// In the same rack.
    Rack,
    /// In the same zone, as far as is known.
    #[default]
    Zone,
    /// In another zone.
    Far,
}

impl Near {
    pub(super) const fn of(one: Place, other: Place) -> Self {
        if one.shares_rack(other) {
            Self::Rack
        } else if one.shares_zone(other) {
            Self::Zone
        } else {
            Self::Far
        }
    }
}

impl Fetch {
    /// Whom chunks may be asked of at all: those of other zones only by whoever imports, or in need.
    pub(super) fn may_ask(&self, cx: &Context<'_>) -> Slots {
        if self.imports() || self.is_hungry(cx.now, ZONE_PATIENCE) { Slots::ALL } else { !self.remotes.far }
    }

    /// Whom a chunk may be asked of now: those of other racks only for what none of the own rack has, or in need.
    pub(super) fn may_fetch(&self, chunk: ChunkIndex, hungry: bool) -> Slots {
        let Some(content) = self.content.as_ref().filter(|_| !self.remotes.rack.is_empty() && !hungry) else {
            return Slots::ALL;
        };
        if (content.offers.holders(chunk) & self.remotes.rack).is_empty() { Slots::ALL } else { self.remotes.rack }
    }

    /// Whom to ask next: of what a rack of many needs, each brings in a part, so that few pulls are for other racks.
    pub(super) fn whose_turn(&self, cx: &Context<'_>) -> Slots {
        let (Some(content), mates) = (&self.content, self.remotes.rack.len()) else { return Slots::ALL };
        if mates == 0 || self.imports() {
            return Slots::ALL;
        }
        let all = content.pulls_max(cx.limits);
        // With few mates a fair part is more; a little more than fair, since not all is brought in once only.
        let most = all.div_ceil(OUTSIDE).max((all * 6).div_ceil(5 * (mates + 1)));
        let outside = content.pulls.iter().filter(|(_, pull)| !self.remotes.rack.contains(pull.peer)).count();
        if outside < most { Slots::ALL } else { self.remotes.rack }
    }

    /// Whether chunks that a peer has need not be released any more. Those in another zone had what was imported from them
    /// all along, and say so late: nobody in this zone has it for that.
    pub(super) fn confirms(&self, slot: Slot) -> bool {
        !self.remotes.far.contains(slot) || !self.imported
    }

    /// Whether this fetch waits no longer for its rack's members: it got nothing for a while, or little is missing.
    pub(super) fn is_rack_hungry(&self, now: Time) -> bool {
        let near_end = |content: &Content| content.missing() * RACK_END <= content.layout().count();
        let end = self.content.as_ref().is_some_and(near_end);
        !self.remotes.rack.is_empty() && (end || self.is_hungry(now, RACK_PATIENCE))
    }

    fn is_hungry(&self, now: Time, patience: Duration) -> bool {
        self.progressed + patience <= now
    }

    /// When a fetch that waits for its rack or zone stops waiting.
    pub(super) fn hunger_due(&self, now: Time) -> Option<Time> {
        let rack = (!self.remotes.rack.is_empty()).then(|| self.progressed + RACK_PATIENCE);
        let far = !self.remotes.far.is_empty() && !self.imports();
        let zone = far.then(|| self.progressed + ZONE_PATIENCE);
        rack.into_iter().chain(zone).filter(|due| *due > now).min()
    }
}
