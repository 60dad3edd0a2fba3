//! The tracker machine: peers and the origin lease of the blobs whose digest is close to this node.
//!
//! A node that wants a blob joins at the blob's tracker. The answer is a random sample of the others and, if nobody has
//! or gets the next bytes, the *origin lease*: the right and duty to stream them from the origin. Joins are repeated as
//! heartbeats; all that a tracker knows comes from them, so a new tracker is up to date one heartbeat after the old one
//! died. A lease whose holder is gone, silent or stuck goes to the waiting member that has most; whether its holder is slow
//! is tried out. Where members stand in several zones, one of each imports into it, under a lease of its own.
//!
//! A join costs the same whatever the number of members, and so does a turn in which nobody fell silent.

mod lease;
mod members;
mod sample;
#[cfg(test)]
mod tests;
mod tracked;
mod trial;

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use self::{
    lease::{Key, Line, Returned, revoked},
    tracked::Tracked,
};
use crate::{
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId},
    time::Time,
    wire::{Join, Message, Standing},
};

/// The tracker of a node.
#[derive(Debug)]
pub struct Tracker {
    limits: Limits,
    rng: Pcg64Mcg,
    blobs: BTreeMap<Digest, Tracked>,
    /// What each member has joined.
    joined: BTreeMap<PeerId, BTreeSet<Digest>>,
    /// When to look at which blob: at [`Tracked::due`], one entry each.
    looks: BTreeSet<(Time, Digest)>,
}

/// A fact for the tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A member joined, or sent its heartbeat.
    Joined {
        /// Who, and where others reach it.
        contact: Contact,
        /// What it said.
        join: Join,
    },
    /// A member left a blob.
    Left {
        /// Who.
        peer: PeerId,
        /// Which blob.
        digest: Digest,
    },
    /// The connection to a member broke.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// Time has passed.
    Elapsed,
}

/// An order of the tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// To whom; possibly this node itself.
    pub peer: PeerId,
    /// What.
    pub message: Message,
}

impl Tracker {
    /// A tracker that knows nothing yet.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            rng: Pcg64Mcg::seed_from_u64(seed),
            blobs: BTreeMap::new(),
            joined: BTreeMap::new(),
            looks: BTreeSet::new(),
        }
    }

    /// Takes in a fact; orders are appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Send>) {
        match input {
            Input::Joined { contact, join } => self.joined(now, contact, &join, out),
            Input::Left { peer, digest } => self.left(now, digest, peer, out),
            Input::Disconnected { peer } => {
                for digest in self.joined.get(&peer).cloned().unwrap_or_default() {
                    self.left(now, digest, peer, out);
                }
            }
            Input::Elapsed => self.elapsed(now, out),
        }
    }

    /// When [`Input::Elapsed`] is due, or earlier.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.looks.first().map(|(due, _)| *due)
    }

    /// How many blobs have members here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Whether no blob has members here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Whether there is room for a join.
    fn admits(&self, peer: PeerId, digest: &Digest) -> bool {
        let tracked = self.blobs.get(digest);
        if tracked.is_some_and(|tracked| tracked.members.get(peer).is_some()) {
            return true;
        }
        let room = match tracked {
            Some(tracked) => tracked.members.len() < self.limits.members_max,
            None => self.blobs.len() < self.limits.tracked_max,
        };
        room && self.joined.get(&peer).is_none_or(|digests| digests.len() < self.limits.joins_per_peer_max)
    }

    fn joined(&mut self, now: Time, contact: Contact, join: &Join, out: &mut Vec<Send>) {
        let (peer, digest) = (contact.peer, join.digest);
        if !self.admits(peer, &digest) {
            return;
        }
        let tracked = self.blobs.entry(digest).or_default();
        let before = tracked.members.hear(now, contact, join, &self.limits);
        if before.is_none() {
            self.joined.entry(peer).or_default().insert(digest);
        }
        let returned = tracked.hear_leases(now, peer, before.as_ref(), join, (&self.limits, &mut self.rng), out);
        match returned {
            Some(Returned { key, asked: true, .. }) => self.hand_over(now, digest, key, peer, out),
            Some(Returned { key, free: true, .. }) => {
                if let Some(line) = tracked.leases.line_mut(key) {
                    line.rests = Some(now + self.limits.lease_heartbeat);
                }
            }
            // It shall not have it back at once.
            Some(Returned { .. }) => self.settle(now, digest, Some(peer), out),
            None => {}
        }
        let Some(tracked) = self.blobs.get_mut(&digest) else { return };
        let need = tracked.need_for(now, peer, &self.limits).filter(|_| returned.is_none());
        if let Some(key) = need {
            tracked.give(now, peer, key);
        }
        if join.standing != Standing::Complete {
            let knows_some = before.is_some() && need.is_none() && join.standing == Standing::Fetching;
            let count = if knows_some { self.limits.sample_more } else { self.limits.sample };
            out.push(tracked.answer(&mut self.rng, digest, peer, count, None));
        }
        self.rearm(digest);
    }

    fn left(&mut self, now: Time, digest: Digest, peer: PeerId, out: &mut Vec<Send>) {
        self.remove(&digest, peer);
        self.settle(now, digest, None, out);
        self.rearm(digest);
    }

    fn remove(&mut self, digest: &Digest, peer: PeerId) {
        let Some(tracked) = self.blobs.get_mut(digest) else { return };
        let Some(member) = tracked.members.remove(peer) else { return };
        tracked.leases.forget(peer, member.place.zone);
        if let Some(digests) = self.joined.get_mut(&peer) {
            digests.remove(digest);
            if digests.is_empty() {
                self.joined.remove(&peer);
            }
        }
    }

    /// Gives free leases to whoever waits, but not to `shunned`.
    fn settle(&mut self, now: Time, digest: Digest, shunned: Option<PeerId>, out: &mut Vec<Send>) {
        let Some(tracked) = self.blobs.get_mut(&digest) else { return };
        let zones = tracked.members.zones().map(|(zone, _)| Key::Zone(zone));
        let keys: Vec<Key> = std::iter::once(Key::Origin).chain(zones).collect();
        for key in keys {
            if !tracked.is_needed(now, key) {
                continue;
            }
            let leases = &tracked.leases;
            let left_out = |peer: PeerId| Some(peer) == shunned || leases.is_barred(peer);
            let Some(peer) = tracked.members.richest(key, left_out) else { continue };
            tracked.give(now, peer, key);
            out.push(tracked.answer(&mut self.rng, digest, peer, self.limits.sample, None));
        }
    }

    /// Gives a lease that was asked back to somebody else, who has to know what the old holder has.
    fn hand_over(&mut self, now: Time, digest: Digest, key: Key, old: PeerId, out: &mut Vec<Send>) {
        let Some(tracked) = self.blobs.get_mut(&digest) else { return };
        let Some(peer) = tracked.successor(key) else {
            self.settle(now, digest, None, out);
            return;
        };
        tracked.give(now, peer, key);
        out.push(tracked.answer(&mut self.rng, digest, peer, self.limits.sample, Some(old)));
    }

    /// Looks at the blobs that are due.
    fn elapsed(&mut self, now: Time, out: &mut Vec<Send>) {
        while let Some((_, digest)) = self.looks.first().copied().filter(|(due, _)| *due <= now) {
            self.expire(now, digest, out);
            if let Some(tracked) = self.blobs.get_mut(&digest)
                && let Some(due) = tracked.due.take()
            {
                self.looks.remove(&(due, digest));
            }
            self.rearm(digest);
        }
    }

    /// Forgets the members of a blob that fell silent, and ends the leases that are over.
    fn expire(&mut self, now: Time, digest: Digest, out: &mut Vec<Send>) {
        while let Some(tracked) = self.blobs.get_mut(&digest)
            && let Some(peer) = tracked.members.silent(now, &self.limits)
        {
            self.remove(&digest, peer);
        }
        let Some(tracked) = self.blobs.get_mut(&digest) else { return };
        tracked.leases.wake(now);
        let mut over = Vec::new();
        for (key, line) in tracked.leases.lines() {
            if let Some(lease) = line.lease.as_ref().filter(|lease| lease.end(&self.limits) <= now) {
                over.push((key, lease.ending.is_some_and(|ending| ending <= now)));
            }
        }
        for (key, asked) in over {
            let Some(tracked) = self.blobs.get_mut(&digest) else { return };
            let Some(lease) = tracked.leases.line_mut(key).and_then(Line::end) else { continue };
            out.push(revoked(lease.holder, digest, lease.epoch));
            if asked {
                self.hand_over(now, digest, key, lease.holder, out);
            } else {
                // It must ask again before it can be given the lease once more.
                self.remove(&digest, lease.holder);
            }
        }
        self.settle(now, digest, None, out);
    }

    /// Sees to it that a blob is looked at in time, and forgets it if it has no members.
    fn rearm(&mut self, digest: Digest) {
        let Some(tracked) = self.blobs.get_mut(&digest) else { return };
        let next = tracked.next_due(&self.limits);
        if tracked.members.is_empty() {
            if let Some(due) = tracked.due {
                self.looks.remove(&(due, digest));
            }
            self.blobs.remove(&digest);
            return;
        }
        if let Some(next) = next.filter(|next| tracked.due.is_none_or(|due| *next < due)) {
            if let Some(due) = tracked.due.replace(next) {
                self.looks.remove(&(due, digest));
            }
            self.looks.insert((next, digest));
        }
    }
}
