//! The tracker machine: peers and the origin lease of the blobs whose digest is close to this node.
//!
//! A node that wants a blob joins at the blob's tracker. The answer is a random sample of the others and, if nobody has
//! or gets the next bytes, the *origin lease*: the right and duty to stream them from the origin. Joins are repeated as
//! heartbeats; all that a tracker knows comes from them, so a new tracker is up to date one heartbeat after the old one
//! died. A lease whose holder is gone, silent or stuck goes to the waiting member that has most.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::{
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId},
    time::Time,
    wire::{Epoch, Grant, Held, Join, Message, Scope, Standing},
};

/// The tracker of a node.
#[derive(Debug)]
pub struct Tracker {
    limits: Limits,
    rng: Pcg64Mcg,
    blobs: BTreeMap<Digest, Tracked>,
    epochs: u64,
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

#[derive(Debug, Default)]
struct Tracked {
    members: BTreeMap<PeerId, Member>,
    lease: Option<Lease>,
}

#[derive(Debug)]
struct Member {
    contact: Contact,
    have: u32,
    standing: Standing,
    /// Since when no peer that it knows has anything for it.
    starved: Option<Time>,
    heard: Time,
}

#[derive(Debug)]
struct Lease {
    holder: PeerId,
    epoch: Epoch,
    heard: Time,
    progress: (u32, u64),
    progressed: Time,
}

impl Tracker {
    /// A tracker that knows nothing yet.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self { limits, rng: Pcg64Mcg::seed_from_u64(seed), blobs: BTreeMap::new(), epochs: 0 }
    }

    /// Takes in a fact; orders are appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Send>) {
        match input {
            Input::Joined { contact, join } => self.joined(now, contact, &join, out),
            Input::Left { peer, digest } => {
                self.remove(now, &digest, peer, out);
            }
            Input::Disconnected { peer } => {
                let digests: Vec<Digest> = self
                    .blobs
                    .iter()
                    .filter(|(_, tracked)| tracked.members.contains_key(&peer))
                    .map(|(d, _)| *d)
                    .collect();
                for digest in digests {
                    self.remove(now, &digest, peer, out);
                }
            }
            Input::Elapsed => self.expire(now, out),
        }
    }

    /// When [`Input::Elapsed`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let leases = self.blobs.values().filter_map(|tracked| tracked.lease.as_ref());
        let lease = leases.map(|lease| self.lease_end(lease)).min();
        let members = self.blobs.values().flat_map(|tracked| tracked.members.values());
        let member = members.map(|member| self.member_end(member)).min();
        lease.into_iter().chain(member).min()
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

    fn lease_end(&self, lease: &Lease) -> Time {
        (lease.heard + self.limits.lease_timeout).min(lease.progressed + self.limits.lease_stall)
    }

    fn member_end(&self, member: &Member) -> Time {
        let timeout = match member.standing {
            Standing::Complete => self.limits.complete_timeout,
            Standing::Fetching | Standing::Starved | Standing::Shut => self.limits.member_timeout,
        };
        member.heard + timeout
    }

    fn joined(&mut self, now: Time, contact: Contact, join: &Join, out: &mut Vec<Send>) {
        if !self.blobs.contains_key(&join.digest) && self.blobs.len() >= self.limits.tracked_max {
            return;
        }
        let tracked = self.blobs.entry(join.digest).or_default();
        let peer = contact.peer;
        if !tracked.members.contains_key(&peer) && tracked.members.len() >= self.limits.members_max {
            return;
        }
        let starved = match join.standing {
            Standing::Starved => tracked.members.get(&peer).and_then(|member| member.starved).or(Some(now)),
            Standing::Fetching | Standing::Complete | Standing::Shut => None,
        };
        let member = Member { contact, have: join.have, standing: join.standing, starved, heard: now };
        tracked.members.insert(peer, member);
        tracked.hear_lease(now, peer, join, out);
        let mut lease = tracked.lease.as_ref().filter(|lease| lease.holder == peer).map(|lease| lease.epoch);
        // Somebody may say that it has the blob and yet be of no use: gone, rotten, or lying.
        let forsaken = starved.is_some_and(|since| since + self.limits.starved_patience <= now);
        let needed = tracked.needs_holder() || tracked.lease.is_none() && forsaken;
        if lease.is_none() && needed && may_hold(join.standing) {
            self.epochs += 1;
            lease = Some(tracked.grant(now, peer, Epoch(self.epochs)));
        }
        if join.standing == Standing::Complete {
            return;
        }
        let served = tracked.lease.as_ref().is_some_and(|lease| lease.holder != peer) || tracked.is_held();
        let peers = sample(&mut self.rng, tracked, peer, self.limits.sample);
        out.push(Send { peer, message: Message::Joined { digest: join.digest, peers, lease: lease.map(origin), served } });
    }

    fn remove(&mut self, now: Time, digest: &Digest, peer: PeerId, out: &mut Vec<Send>) {
        let Some(tracked) = self.blobs.get_mut(digest) else { return };
        tracked.members.remove(&peer);
        if tracked.lease.as_ref().is_some_and(|lease| lease.holder == peer) {
            tracked.lease = None;
        }
        self.settle(now, *digest, out);
    }

    /// Gives a free lease to whoever waits, and forgets blobs without members.
    fn settle(&mut self, now: Time, digest: Digest, out: &mut Vec<Send>) {
        let Some(tracked) = self.blobs.get_mut(&digest) else { return };
        if tracked.members.is_empty() {
            self.blobs.remove(&digest);
            return;
        }
        if !tracked.needs_holder() {
            return;
        }
        let candidates = tracked.members.iter().filter(|(_, member)| may_hold(member.standing));
        let Some(peer) = candidates.max_by_key(|(_, member)| member.have).map(|(peer, _)| *peer) else { return };
        self.epochs += 1;
        let epoch = tracked.grant(now, peer, Epoch(self.epochs));
        let peers = sample(&mut self.rng, tracked, peer, self.limits.sample);
        out.push(Send { peer, message: Message::Joined { digest, peers, lease: Some(origin(epoch)), served: false } });
    }

    fn expire(&mut self, now: Time, out: &mut Vec<Send>) {
        let digests: Vec<Digest> = self.blobs.keys().copied().collect();
        for digest in digests {
            let Some(tracked) = self.blobs.get(&digest) else { continue };
            let lease_over = tracked.lease.as_ref().is_some_and(|lease| self.lease_end(lease) <= now);
            let silent: Vec<PeerId> = tracked
                .members
                .iter()
                .filter(|(_, member)| self.member_end(member) <= now)
                .map(|(peer, _)| *peer)
                .collect();
            if !lease_over && silent.is_empty() {
                continue;
            }
            let Some(tracked) = self.blobs.get_mut(&digest) else { continue };
            for peer in silent {
                tracked.members.remove(&peer);
            }
            if lease_over && let Some(lease) = tracked.lease.take() {
                // It must ask again before it can be given the lease once more.
                tracked.members.remove(&lease.holder);
                out.push(Send { peer: lease.holder, message: Message::Revoked { digest, epoch: lease.epoch } });
            }
            self.settle(now, digest, out);
        }
    }
}

impl Tracked {
    /// Somebody has the whole blob.
    fn is_held(&self) -> bool {
        self.members.values().any(|member| member.standing == Standing::Complete)
    }

    fn needs_holder(&self) -> bool {
        self.lease.is_none() && !self.is_held()
    }

    fn grant(&mut self, now: Time, holder: PeerId, epoch: Epoch) -> Epoch {
        self.lease = Some(Lease { holder, epoch, heard: now, progress: (0, 0), progressed: now });
        epoch
    }

    /// Takes in what a join says about leases: progress, one that this tracker did not know of, or one given up.
    fn hear_lease(&mut self, now: Time, peer: PeerId, join: &Join, out: &mut Vec<Send>) {
        let done = matches!(join.standing, Standing::Complete | Standing::Shut);
        match (&mut self.lease, join.lease) {
            (Some(lease), _) if lease.holder == peer && done => self.lease = None,
            (Some(lease), Some(Held { bytes, .. })) if lease.holder == peer => {
                lease.heard = now;
                if lease.progress != (join.have, bytes) {
                    lease.progress = (join.have, bytes);
                    lease.progressed = now;
                }
            }
            // Two trackers gave the lease to two nodes. The smaller id keeps it, so that all trackers decide alike.
            (Some(lease), Some(Held { epoch, .. })) if lease.holder < peer || done => {
                out.push(Send { peer, message: Message::Revoked { digest: join.digest, epoch } });
            }
            (known, Some(Held { epoch, bytes, .. })) if !done => {
                let lease = Lease { holder: peer, epoch, heard: now, progress: (join.have, bytes), progressed: now };
                if let Some(old) = known.replace(lease) {
                    let message = Message::Revoked { digest: join.digest, epoch: old.epoch };
                    out.push(Send { peer: old.holder, message });
                }
            }
            (_, None | Some(_)) => {}
        }
    }
}

const fn origin(epoch: Epoch) -> Grant {
    Grant { epoch, scope: Scope::Origin }
}

const fn may_hold(standing: Standing) -> bool {
    match standing {
        Standing::Fetching | Standing::Starved => true,
        Standing::Complete | Standing::Shut => false,
    }
}

/// Up to `count` random members other than `asker`.
fn sample(rng: &mut Pcg64Mcg, tracked: &Tracked, asker: PeerId, count: usize) -> Vec<Contact> {
    let mut chosen: Vec<Contact> = Vec::with_capacity(count);
    let others = tracked.members.iter().filter(|(peer, _)| **peer != asker);
    for (seen, (_, member)) in others.enumerate() {
        if chosen.len() < count {
            chosen.push(member.contact);
        } else {
            let at = rng.random_range(0..=seen);
            if at < count {
                chosen[at] = member.contact;
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
