//! Near and far: bytes come from the own rack and zone where they can.
//!
//! Into a zone one node imports, under a lease of that scope, as one node streams from the origin. Into a rack every node
//! imports its share: of the rack's members that a node knows, the one whose hash with the chunk is largest brings that
//! chunk in, and the others wait for it. Nothing of this is needed for a fetch to end: a node that gets nothing for a
//! moment asks whomever it can.

use std::time::Duration;

use super::{
    Context,
    content::Content,
    fetch::Fetch,
    slots::{Slot, Slots},
};
use crate::{
    chunk::{ChunkIndex, ChunkSet},
    peer::{PeerId, Place},
    time::Time,
};

/// A fetch that gets nothing for so long asks other racks for chunks that are not its own to bring in.
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

/// Which chunks a node brings into its rack.
#[derive(Debug, Default)]
pub(super) struct Duty {
    /// None if all: no other member of the rack is known.
    chunks: Option<ChunkSet>,
    /// Members came or went.
    stale: bool,
}

impl Duty {
    /// Members of the rack came or went.
    pub(super) fn touch(&mut self) {
        self.stale = true;
    }
}

impl Fetch {
    /// Finds out anew which chunks are this node's to bring into its rack, if the members changed.
    pub(super) fn settle_duty(&mut self, me: PeerId) {
        let Some(content) = &self.content else { return };
        if !std::mem::take(&mut self.duty.stale) {
            return;
        }
        let mates: Vec<u64> = self.remotes.rack.iter().map(|slot| key(self.remotes[slot].peer)).collect();
        if mates.is_empty() {
            self.duty.chunks = None;
            return;
        }
        let me = key(me);
        let mut own = ChunkSet::empty(content.layout().count());
        for chunk in content.layout().chunks() {
            let weight = weigh(me, chunk);
            if mates.iter().all(|mate| weigh(*mate, chunk) < weight) {
                own.insert(chunk);
            }
        }
        self.duty.chunks = Some(own);
    }

    /// Whom chunks may be asked of at all: those of other zones only by whoever imports, or in need.
    pub(super) fn may_ask(&self, cx: &Context<'_>) -> Slots {
        if self.imports() || self.is_hungry(cx.now, ZONE_PATIENCE) { Slots::ALL } else { !self.remotes.far }
    }

    /// Whom a chunk may be asked of now: those of other racks only for what none of the own rack has, or in need.
    pub(super) fn may_fetch(&self, chunk: ChunkIndex, hungry: bool) -> Slots {
        let Some(content) = self.content.as_ref().filter(|_| !self.remotes.rack.is_empty() && !hungry) else {
            return Slots::ALL;
        };
        if (content.offers.holders(chunk) & self.remotes.rack).is_empty() {
            Slots::ALL
        } else {
            self.remotes.rack
        }
    }

    /// Whether another pull from outside of the rack may go out: of what a rack of many needs, each brings in a part.
    pub(super) fn may_leave_rack(&self, cx: &Context<'_>) -> bool {
        let (Some(content), mates) = (&self.content, self.remotes.rack.len()) else { return true };
        if mates == 0 || self.imports() {
            return true;
        }
        let share: f64 = std::env::var("OUT").ok().and_then(|x| x.parse().ok()).unwrap_or(0.25);
        let share = share.max(1.2 / (mates + 1) as f64);
        let most = (content.pulls_max(cx.limits) as f64 * share).ceil() as usize;
        let outside = content.pulls.iter().filter(|(_, pull)| !self.remotes.rack.contains(pull.peer)).count();
        outside < most
    }

    /// Whether chunks that a peer has need not be released any more. Those in another zone had what was imported from them
    /// all along, and say so late: nobody in this zone has it for that.
    pub(super) fn confirms(&self, slot: Slot) -> bool {
        !self.remotes.far.contains(slot) || !self.imported
    }

    /// Whether this fetch waits no longer for its rack's members: it got nothing for a while, or little is missing.
    pub(super) fn is_rack_hungry(&self, now: Time) -> bool {
        let near_end = |content: &Content| content.missing() * RACK_END <= content.layout().count();
        let e = |k: &str, d: u64| std::env::var(k).ok().and_then(|x| x.parse().ok()).unwrap_or(d);
        !self.remotes.rack.is_empty()
            && (self.is_hungry(now, Duration::from_millis(e("PAT", 60))) || e("END", 1) == 1 && self.content.as_ref().is_some_and(near_end))
    }

    fn is_hungry(&self, now: Time, patience: Duration) -> bool {
        self.progressed + patience <= now
    }

    /// When a fetch that waits for its rack or zone stops waiting.
    pub(super) fn hunger_due(&self, now: Time) -> Option<Time> {
        let rack = self.duty.chunks.as_ref().map(|_| self.progressed + RACK_PATIENCE);
        let far = !self.remotes.far.is_empty() && !self.imports();
        let zone = far.then(|| self.progressed + ZONE_PATIENCE);
        rack.into_iter().chain(zone).filter(|due| *due > now).min()
    }
}

/// A peer as a number, for weighing.
fn key(peer: PeerId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = peer.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What a peer weighs for a chunk (rendezvous hashing): all that know the same peers agree on the heaviest.
const fn weigh(peer: u64, chunk: ChunkIndex) -> u64 {
    let mut x = peer ^ (chunk.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
