//! The leases of one blob: for the origin, and for the import into each zone.
//!
//! Trackers hear of one another's leases from the holders, who report to all of them. Where two leases are for the same
//! the one with the higher epoch counts, then the smaller holder, so that all trackers decide alike; a tracker numbers a
//! new lease higher than all that it heard of.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{Send, trial::Trial};
use crate::{
    digest::Digest,
    limits::Limits,
    peer::PeerId,
    time::Time,
    wire::{Epoch, Grant, Held, Join, Message, SOURCES_MAX, Scope, Standing},
};

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The origin.
    Origin,
    /// The import into a zone.
    Zone(u32),
}

impl Key {
    pub(super) const fn scope(self) -> Scope {
        match self {
            Self::Origin => Scope::Origin,
            Self::Zone(_) => Scope::Zone,
        }
    }

    pub(super) const fn of(scope: Scope, zone: u32) -> Self {
        match scope {
            Scope::Origin => Self::Origin,
            Scope::Zone => Self::Zone(zone),
        }
    }
}

/// Whether a member that stands so can hold a lease.
pub(super) const fn may_hold(standing: Standing, scope: Scope) -> bool {
    match (standing, scope) {
        (Standing::Fetching | Standing::Starved, _) | (Standing::Shut, Scope::Zone) => true,
        (Standing::Complete, _) | (Standing::Shut, Scope::Origin) => false,
    }
}

/// A lease that somebody holds.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) holder: PeerId,
    pub(super) epoch: Epoch,
    given: Time,
    heard: Time,
    /// Chunks that its holder lacks.
    left: u32,
    progress: (u32, u64),
    progressed: Time,
    /// Some member gets nothing since the holder was last heard.
    missed: bool,
    /// Given by this tracker.
    pub(super) own: bool,
    /// Its holder has reported it, so that a report without it gives it back.
    pub(super) confirmed: bool,
    /// When it was asked back. As long as bytes come in, the holder may take a while to finish its chunk.
    pub(super) ending: Option<Time>,
    /// It was asked back because next to nothing comes in: that is not waited for.
    pub(super) hopeless: bool,
}

impl Lease {
    const fn new(now: Time, holder: PeerId, epoch: Epoch, own: bool) -> Self {
        Self {
            holder,
            epoch,
            given: now,
            heard: now,
            left: 0,
            progress: (0, 0),
            progressed: now,
            missed: false,
            own,
            confirmed: false,
            ending: None,
            hopeless: false,
        }
    }

    fn hear(&mut self, now: Time, held: Held, have: u32) {
        self.epoch = held.epoch;
        self.left = held.left;
        self.heard = now;
        self.missed = false;
        self.confirmed = true;
        if self.progress != (have, held.bytes) {
            self.progress = (have, held.bytes);
            self.progressed = now;
        }
    }

    /// When its holder counts as dead or stuck: dead after half the time if somebody waits for it.
    pub(super) fn end(&self, limits: &Limits) -> Time {
        let silence = if self.missed { limits.lease_timeout / 2 } else { limits.lease_timeout };
        let end = (self.heard + silence).min(self.progressed + limits.lease_stall);
        let over = |asked: Time| {
            let progressed = if self.hopeless { asked } else { asked.max(self.progressed) };
            (progressed + limits.lease_handover).min(asked + limits.lease_stall)
        };
        self.ending.map_or(end, |asked| over(asked).min(end))
    }

    /// Whether it may go to a member that streams other blobs: it streams for a moment, and will for a while.
    fn may_move(&self, now: Time) -> bool {
        let settled = self.own && self.confirmed && self.ending.is_none() && self.progress.1 > 0;
        settled && self.given + GATHER_AFTER <= now && self.left != u32::MAX && self.left >= GATHER_LEFT
    }

    fn rank(&self) -> (Epoch, Reverse<PeerId>) {
        (self.epoch, Reverse(self.holder))
    }
}

/// One lease after the other for the same.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) lease: Option<Lease>,
    /// The last lease that ended, and whose it was: whoever still reports it, or an older one, is told.
    ended: Option<(Epoch, PeerId)>,
    /// Its holder gave it back of its own accord, most often because another tracker knows a better one: until then that
    /// one is waited for.
    pub(super) rests: Option<Time>,
    pub(super) trial: Trial,
}

impl Line {
    pub(super) fn is_held_by(&self, peer: PeerId) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.holder == peer)
    }

    /// Ends the lease.
    pub(super) fn end(&mut self) -> Option<Lease> {
        let lease = self.lease.take()?;
        self.ended = self.ended.max(Some((lease.epoch, lease.holder)));
        Some(lease)
    }

    /// Takes in that a peer holds this lease. Returns what has to be revoked, and of whom.
    fn claim(&mut self, now: Time, peer: PeerId, held: Held, have: u32) -> Option<(PeerId, Epoch)> {
        if let Some(lease) = self.lease.as_mut().filter(|lease| lease.holder == peer && lease.epoch <= held.epoch) {
            lease.own &= lease.epoch == held.epoch;
            lease.hear(now, held, have);
            return None;
        }
        let mut lease = Lease::new(now, peer, held.epoch, false);
        lease.hear(now, held, have);
        let stale =
            self.ended.is_some_and(|(epoch, holder)| held.epoch < epoch || held.epoch == epoch && holder == peer);
        if stale || self.lease.as_ref().is_some_and(|known| known.rank() > lease.rank()) {
            return Some((peer, held.epoch));
        }
        self.trial = Trial::default();
        self.rests = None;
        let old = self.lease.replace(lease)?;
        (old.holder != peer).then_some((old.holder, old.epoch))
    }
}

/// A lease that a report gave back.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) key: Key,
    /// It was asked back.
    pub(super) asked: bool,
    /// Its holder could go on with it.
    pub(super) free: bool,
}

/// All leases of one blob.
#[derive(Debug, Default)]
pub(super) struct Leases {
    pub(super) origin: Line,
    pub(super) imports: BTreeMap<u32, Line>,
    /// The highest epoch given or heard of.
    epoch: u64,
    /// Who holds or held the origin's lease, the latest last.
    sources: VecDeque<PeerId>,
    /// Who says of whom that it was caught by its own word.
    accusers: BTreeMap<PeerId, BTreeSet<PeerId>>,
    /// How often each has said so.
    accusations: BTreeMap<PeerId, u8>,
    /// Those that enough have caught: they get no lease.
    barred: BTreeSet<PeerId>,
    /// Members that stream other blobs from the origin.
    carriers: BTreeSet<PeerId>,
}

/// A lease is left where it is for so long, since its holder and others may just begin to stream other blobs.
const GATHER_AFTER: Duration = Duration::from_millis(40);
/// With fewer chunks to come it is left, too.
const GATHER_LEFT: u32 = 48;
/// Carriers that are remembered.
const CARRIERS_MAX: usize = 256;

/// So many that caught a holder end its lease: fewer may lie themselves.
const ACCUSERS: usize = 3;
/// One member's accusations count for so many others, lest liars depose one holder after the other.
const ACCUSATIONS_MAX: u8 = 4;
/// Accused that are remembered.
const ACCUSED_MAX: usize = 256;

impl Leases {
    pub(super) fn line(&self, key: Key) -> Option<&Line> {
        match key {
            Key::Origin => Some(&self.origin),
            Key::Zone(zone) => self.imports.get(&zone),
        }
    }

    pub(super) fn line_mut(&mut self, key: Key) -> Option<&mut Line> {
        match key {
            Key::Origin => Some(&mut self.origin),
            Key::Zone(zone) => self.imports.get_mut(&zone),
        }
    }

    fn line_or_new(&mut self, key: Key) -> &mut Line {
        match key {
            Key::Origin => &mut self.origin,
            Key::Zone(zone) => self.imports.entry(zone).or_default(),
        }
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = (Key, &Line)> {
        let imports = self.imports.iter().map(|(zone, line)| (Key::Zone(*zone), line));
        std::iter::once((Key::Origin, &self.origin)).chain(imports)
    }

    /// Who holds or held the origin's lease, the latest last, but for those that were caught.
    pub(super) fn sources(&self) -> impl Iterator<Item = PeerId> {
        self.sources.iter().copied().filter(|peer| !self.barred.contains(peer))
    }

    fn note_source(&mut self, peer: PeerId) {
        if self.sources.back() == Some(&peer) {
            return;
        }
        self.sources.retain(|other| *other != peer);
        if self.sources.len() >= SOURCES_MAX {
            self.sources.pop_front();
        }
        self.sources.push_back(peer);
    }

    /// A member streams so many other blobs from the origin.
    pub(super) fn note_burden(&mut self, peer: PeerId, burden: u8) {
        if burden == 0 {
            self.carriers.remove(&peer);
        } else if self.carriers.len() < CARRIERS_MAX {
            self.carriers.insert(peer);
        }
    }

    /// The member that the origin's lease shall go to because it streams other blobs, too.
    ///
    /// Streams of one image share the origin's rate, and a holder shares its link between its stream and what it pulls of
    /// the other blobs. With all leases at one node nothing is pulled there that hinders a stream. All trackers choose the
    /// same one: of those that stream, the one with the largest name.
    pub(super) fn gatherer(&self, now: Time) -> Option<PeerId> {
        let lease = self.origin.lease.as_ref().filter(|lease| lease.may_move(now))?;
        let able =
            |peer: &&PeerId| **peer > lease.holder && !self.origin.trial.was_tried(**peer) && !self.is_barred(**peer);
        self.carriers.iter().rev().find(able).copied()
    }

    /// Whether a member gets no lease.
    pub(super) fn is_barred(&self, peer: PeerId) -> bool {
        self.barred.contains(&peer)
    }

    /// A member says that it caught another by its own word. If enough say so, that one's leases end.
    pub(super) fn accuse(&mut self, accuser: PeerId, accused: PeerId, digest: Digest, out: &mut Vec<Send>) {
        let known = self.accusers.contains_key(&accused);
        if self.is_barred(accused) || !known && self.accusers.len() >= ACCUSED_MAX {
            return;
        }
        let by = self.accusers.entry(accused).or_default();
        let count = self.accusations.entry(accuser).or_default();
        if by.contains(&accuser) || *count >= ACCUSATIONS_MAX {
            return;
        }
        *count += 1;
        by.insert(accuser);
        if by.len() < ACCUSERS {
            return;
        }
        self.barred.insert(accused);
        for line in self.imports.values_mut().chain([&mut self.origin]).filter(|line| line.is_held_by(accused)) {
            line.trial = Trial::default();
            if let Some(lease) = line.end() {
                out.push(revoked(accused, digest, lease.epoch));
            }
        }
    }

    /// Who streams from the origin.
    pub(super) fn source(&self) -> Option<PeerId> {
        self.origin.lease.as_ref().map(|lease| lease.holder)
    }

    /// What a member of a zone holds; for the origin if both.
    pub(super) fn held_by(&self, peer: PeerId, zone: u32) -> Option<(Key, &Lease)> {
        [Key::Origin, Key::Zone(zone)].into_iter().find_map(|key| {
            let lease = self.line(key)?.lease.as_ref()?;
            (lease.holder == peer).then_some((key, lease))
        })
    }

    pub(super) fn give(&mut self, now: Time, holder: PeerId, key: Key) -> Grant {
        self.epoch = self.epoch.saturating_add(1);
        let epoch = Epoch(self.epoch);
        if key == Key::Origin {
            self.note_source(holder);
        }
        let line = self.line_or_new(key);
        line.lease = Some(Lease::new(now, holder, epoch, true));
        line.rests = None;
        Grant { epoch, scope: key.scope() }
    }

    /// Whoever was waited for did not come.
    pub(super) fn wake(&mut self, now: Time) {
        for line in self.imports.values_mut().chain([&mut self.origin]) {
            line.rests = line.rests.filter(|rests| *rests > now);
        }
    }

    /// Ends whatever a member held that is gone.
    pub(super) fn forget(&mut self, peer: PeerId, zone: u32) {
        self.carriers.remove(&peer);
        for key in [Key::Origin, Key::Zone(zone)] {
            if let Some(line) = self.line_mut(key).filter(|line| line.is_held_by(peer)) {
                line.end();
                line.trial = Trial::default();
            }
        }
    }

    /// Takes in what a member of a zone reports about leases: one that it holds, or one that it gave back.
    pub(super) fn hear(
        &mut self,
        now: Time,
        peer: PeerId,
        zone: u32,
        join: &Join,
        out: &mut Vec<Send>,
    ) -> Option<Returned> {
        if join.standing == Standing::Starved {
            for key in [Key::Origin, Key::Zone(zone)] {
                if let Some(lease) = self.line_mut(key).and_then(|line| line.lease.as_mut()) {
                    lease.missed |= lease.holder != peer;
                }
            }
        }
        let held = join.lease.filter(|held| may_hold(join.standing, held.scope) && !self.is_barred(peer));
        if let Some(held) = held {
            self.epoch = self.epoch.max(held.epoch.0);
            if held.scope == Scope::Origin {
                self.note_source(peer);
            }
            let line = self.line_or_new(Key::of(held.scope, zone));
            if let Some((peer, epoch)) = line.claim(now, peer, held, join.have) {
                out.push(revoked(peer, join.digest, epoch));
            }
        }
        let mut returned = None;
        for key in [Key::Origin, Key::Zone(zone)] {
            let Some(line) = self.line_mut(key).filter(|line| line.is_held_by(peer)) else { continue };
            let reported = held.is_some_and(|held| held.scope == key.scope());
            let free = may_hold(join.standing, key.scope());
            if !free || line.lease.as_ref().is_some_and(|lease| lease.confirmed && !reported) {
                let asked = line.end().is_some_and(|lease| lease.ending.is_some());
                returned = returned.or(Some(Returned { key, asked, free }));
            }
        }
        returned
    }
}

pub(super) const fn revoked(peer: PeerId, digest: Digest, epoch: Epoch) -> Send {
    Send { peer, message: Message::Revoked { digest, epoch } }
}
