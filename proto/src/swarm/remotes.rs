//! The table of a blob's peers: what is known of each, and sets of those that have something in common.

use std::{ops::Index, ops::IndexMut, time::Duration};

use rand::{Rng, RngExt};

use super::{
    Verdict,
    near::Near,
    slots::{Slot, Slots},
};
use crate::{
    chunk::{ChunkIndex, ChunkSet},
    peer::{Contact, PeerId},
    time::Time,
};

/// A peer whose pulls take so many times longer than the others' is asked only for what nobody else has.
const SLOW: u32 = 4;
/// A peer that was busy so often, in twos, is asked no more rarely.
const REFUSALS_MAX: u8 = 4;

/// A peer in one fetch.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) peer: PeerId,
    /// Where it is reached, if this node was told.
    pub(super) contact: Option<Contact>,
    /// Whether a connection stands.
    pub(super) up: bool,
    /// It has told what it has, even if nothing.
    pub(super) answered: bool,
    /// What it told before the size of the blob was sure: the size as it says, and chunks.
    pub(super) early: Option<(u64, ChunkSet)>,
    /// How many chunks it has, as it says.
    pub(super) has: u32,
    /// The furthest of them.
    pub(super) furthest: ChunkIndex,
    /// Up to which chunk it knows the states.
    pub(super) frontier: ChunkIndex,
    /// We told it that we need no states from it.
    pub(super) pruned: bool,
    /// How much of the news it was told.
    pub(super) told: u32,
    /// Our pulls on their way from it.
    pub(super) pulls: usize,
    /// When it was last told whom else to ask.
    pub(super) suggested: Option<Time>,
    /// Moving average of how long good pulls from it take; at least as long as the last that was overtaken.
    pub(super) pace: Duration,
    /// When it last said or sent something.
    pub(super) heard: Time,
    /// When it last sent a good chunk.
    pub(super) good: Time,
    /// When it may be asked again, while it rests.
    pub(super) rests_until: Time,
    /// How often it was busy since the last good pull.
    pub(super) refusals: u8,
    /// Failures since the last good pull.
    pub(super) strikes: u8,
    /// Chunks that it did not have although it said so, or that did not verify, less those that were good.
    pub(super) lies: u8,
    /// Chunks from it that did not verify although it holds them under the same claim.
    pub(super) corrupt: u8,
}

/// The peers of one fetch.
#[derive(Debug, Default)]
pub(super) struct Remotes {
    /// For each place the beginning of the peer's name, to find it by.
    keys: Vec<u64>,
    places: Vec<Option<Remote>>,
    used: Slots,
    /// Those that we asked to tell us what they have.
    pub(super) subscribed: Slots,
    /// Those that asked us.
    pub(super) subscribers: Slots,
    /// Those that are not to be asked for chunks for a while.
    resting: Slots,
    /// Those that have as many of our pulls as one peer gets while there are others.
    full: Slots,
    /// Those that took much longer than others when they were last asked.
    slow: Slots,
    /// Those that sent a good chunk.
    proven: Slots,
    /// Those of the own rack.
    pub(super) rack: Slots,
    /// Those of other zones.
    pub(super) far: Slots,
}

impl Index<Slot> for Remotes {
    type Output = Remote;

    fn index(&self, slot: Slot) -> &Remote {
        self.places[slot.at()].as_ref().expect("a slot is used while its peer is in the table")
    }
}

impl IndexMut<Slot> for Remotes {
    fn index_mut(&mut self, slot: Slot) -> &mut Remote {
        self.places[slot.at()].as_mut().expect("a slot is used while its peer is in the table")
    }
}

impl Remotes {
    pub(super) const fn len(&self) -> usize {
        self.used.len()
    }

    /// All places that are used.
    pub(super) const fn all(&self) -> Slots {
        self.used
    }

    pub(super) fn find(&self, peer: PeerId) -> Option<Slot> {
        let key = key(peer);
        let fits = |slot: &Slot| self.keys[slot.at()] == key && self[*slot].peer == peer;
        self.used.iter().find(fits)
    }

    /// The place of a peer, a new one if it had none; none if the table is full.
    pub(super) fn find_or_insert(&mut self, peer: PeerId, up: bool) -> Option<Slot> {
        if let Some(slot) = self.find(peer) {
            return Some(slot);
        }
        let slot = self.used.first_free()?;
        if slot.at() == self.places.len() {
            self.keys.push(0);
            self.places.push(None);
        }
        self.keys[slot.at()] = key(peer);
        self.places[slot.at()] = Some(Remote::new(peer, up));
        self.used.insert(slot);
        Some(slot)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Remote> {
        let Self { used, subscribed, subscribers, resting, full, slow, proven, rack, far, .. } = self;
        for set in [used, subscribed, subscribers, resting, full, slow, proven, rack, far] {
            set.remove(slot);
        }
        self.places[slot.at()].take()
    }

    /// Forgets what all peers have and know of the blob.
    pub(super) fn forget_all(&mut self) {
        for remote in self.places.iter_mut().flatten() {
            (remote.early, remote.has, remote.furthest) = (None, 0, ChunkIndex::FIRST);
            (remote.frontier, remote.pruned, remote.told) = (ChunkIndex::FIRST, false, 0);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Remote)> {
        self.used.iter().map(|slot| (slot, &self[slot]))
    }

    pub(super) fn is_subscribed(&self, peer: PeerId) -> bool {
        self.find(peer).is_some_and(|slot| self.subscribed.contains(slot))
    }

    pub(super) fn place(&mut self, slot: Slot, near: Near) {
        self.rack.set(slot, near == Near::Rack);
        self.far.set(slot, near == Near::Far);
    }

    /// Those that may be asked for another chunk.
    pub(super) fn ready(&mut self, now: Time) -> Slots {
        for slot in self.resting.iter() {
            if self[slot].rests_until <= now {
                self.resting.remove(slot);
            }
        }
        self.free()
    }

    /// The same, as it was when that was last looked at.
    pub(super) fn free(&self) -> Slots {
        self.used & !self.resting & !self.full
    }

    /// Those that take much longer than what is usual by now.
    pub(super) fn slow(&mut self, usual: Duration) -> Slots {
        for slot in self.slow.iter() {
            if self[slot].pace <= usual * SLOW {
                self.slow.remove(slot);
            }
        }
        self.slow
    }

    /// Those that could be asked if they had fewer of our pulls.
    pub(super) fn full(&self) -> Slots {
        self.full & !self.resting
    }

    /// Those that sent a good chunk.
    pub(super) const fn proven(&self) -> Slots {
        self.proven
    }

    /// When the next peer that rests may be asked again.
    pub(super) fn rest_end(&self, now: Time) -> Option<Time> {
        self.resting.iter().map(|slot| self[slot].rests_until).filter(|end| *end > now).min()
    }

    /// A pull goes out to a peer.
    pub(super) fn began(&mut self, slot: Slot, per_peer_max: usize) {
        self[slot].pulls += 1;
        self.full.set(slot, self[slot].pulls >= per_peer_max);
    }

    /// A pull is no longer out.
    pub(super) fn ended(&mut self, slot: Slot, per_peer_max: usize) {
        self[slot].pulls = self[slot].pulls.saturating_sub(1);
        self.full.set(slot, self[slot].pulls >= per_peer_max);
    }

    fn rest(&mut self, slot: Slot, until: Time) {
        self[slot].rests_until = until;
        self.resting.insert(slot);
    }

    /// Notes how long a pull of a peer took, or takes already.
    pub(super) fn note_pace(&mut self, slot: Slot, pace: Duration, usual: Duration) {
        self[slot].pace = pace;
        self.slow.set(slot, !usual.is_zero() && pace > usual * SLOW);
    }

    /// Draws the consequence of a pull's end for asking this peer again. `usual` is how long pulls take.
    pub(super) fn judge(&mut self, slot: Slot, verdict: Verdict, now: Time, usual: Duration, rng: &mut impl Rng) {
        let remote = &mut self[slot];
        match verdict {
            Verdict::Good => {
                (remote.strikes, remote.heard, remote.good) = (0, now, now);
                remote.lies = remote.lies.saturating_sub(1);
                remote.refusals = 0;
                self.resting.remove(slot);
                self.proven.insert(slot);
            }
            Verdict::Busy => {
                remote.heard = now;
                // Twice as long after each refusal: where all slots are taken, asking again and again helps nobody.
                let pause = (usual / 2).clamp(Duration::from_millis(2), Duration::from_millis(500));
                let pause = pause * (1 << (remote.refusals / 2).min(REFUSALS_MAX));
                remote.refusals = remote.refusals.saturating_add(1);
                self.rest(slot, now + pause.mul_f64(rng.random_range(0.5..1.5)));
            }
            Verdict::Link => {
                remote.strikes = remote.strikes.saturating_add(1);
                let pause = Duration::from_millis(200) * u32::from(remote.strikes);
                self.rest(slot, now + pause.mul_f64(rng.random_range(0.5..1.5)));
            }
            Verdict::Corrupt => {
                remote.lies = remote.lies.saturating_add(2);
                remote.corrupt = remote.corrupt.saturating_add(1);
            }
            Verdict::Missing => remote.lies = remote.lies.saturating_add(1),
            Verdict::Disk => {}
        }
    }
}

impl Remote {
    const fn new(peer: PeerId, up: bool) -> Self {
        Self {
            peer,
            contact: None,
            up,
            answered: false,
            early: None,
            has: 0,
            furthest: ChunkIndex::FIRST,
            frontier: ChunkIndex::FIRST,
            pruned: false,
            told: 0,
            pulls: 0,
            suggested: None,
            pace: Duration::ZERO,
            heard: Time::ZERO,
            good: Time::ZERO,
            rests_until: Time::ZERO,
            refusals: 0,
            strikes: 0,
            lies: 0,
            corrupt: 0,
        }
    }
}

/// The beginning of a peer's name.
fn key(peer: PeerId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = peer.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(at: u8) -> PeerId {
        let mut name = [7; 32];
        name[31] = at;
        PeerId(name)
    }

    #[test]
    fn peers_whose_names_begin_alike_are_told_apart_and_places_are_used_again() {
        let mut remotes = Remotes::default();
        let slots: Vec<Slot> = (0..64).filter_map(|at| remotes.find_or_insert(peer(at), true)).collect();
        assert_eq!((slots.len(), remotes.len()), (64, 64));
        assert_eq!((remotes.find(peer(9)), remotes.find(peer(64))), (Some(slots[9]), None));
        assert_eq!(remotes.find_or_insert(peer(64), true), None, "the table is full");
        remotes.subscribed.insert(slots[9]);
        assert!(remotes.remove(slots[9]).is_some_and(|gone| gone.peer == peer(9)));
        assert_eq!(remotes.find(peer(9)), None);
        assert_eq!(remotes.find_or_insert(peer(64), true), Some(slots[9]));
        assert!(!remotes.is_subscribed(peer(64)), "a new peer has nothing of the one before");
    }
}
