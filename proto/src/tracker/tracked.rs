//! One blob of a tracker: who shall hold which lease, and what a member is told.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::{
    Send,
    lease::{Key, Lease, Leases, Line, Returned, revoked},
    members::{Member, Members},
    sample::{Wish, sample},
    trial::{Progress, Report, Trial, Verdict},
};
use crate::{
    digest::Digest,
    limits::Limits,
    peer::{PeerId, Place},
    time::Time,
    wire::{Grant, Join, Message, Scope},
};

/// Members that are drawn at random to find one that can take a lease.
const DRAWS: usize = 32;
/// Of so many that can, the one that has most gets it. Few, since what it has is its own word.
const CANDIDATES: usize = 4;

/// A blob.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    pub(super) members: Members,
    pub(super) leases: Leases,
    /// When it is looked at: never later than something may be over.
    pub(super) due: Option<Time>,
}

impl Tracked {
    pub(super) fn next_due(&self, limits: &Limits) -> Option<Time> {
        let ends = |(_, line): (Key, &Line)| line.lease.as_ref().map_or(line.rests, |lease| Some(lease.end(limits)));
        self.leases.lines().filter_map(ends).chain(self.members.due()).min()
    }

    /// Whether nobody has the whole blob or streams it from the origin, or nobody brings it into a zone.
    pub(super) fn is_needed(&self, now: Time, key: Key) -> bool {
        let source = self.leases.source();
        if self.leases.line(key).is_some_and(|line| line.rests.is_some_and(|rests| rests > now)) {
            return false;
        }
        match key {
            Key::Origin => source.is_none() && !self.members.is_held(),
            Key::Zone(number) => {
                let Some(zone) = self.members.zone(number) else { return false };
                let inside = |peer| self.members.get(peer).is_some_and(|member| member.place.zone == number);
                let free = self.leases.line(key).is_none_or(|line| line.lease.is_none());
                let elsewhere = self.members.zone_count() > 1 && (source.is_some() || self.members.is_held());
                free && elsewhere && !zone.is_held() && !source.is_some_and(inside)
            }
        }
    }

    /// The lease that a member shall have and has not.
    pub(super) fn need_for(&self, now: Time, peer: PeerId, limits: &Limits) -> Option<Key> {
        let member = self.members.get(peer)?;
        let import = Key::Zone(member.place.zone);
        // Somebody may say that it has the blob and yet be of no use: gone, rotten, or lying.
        let forsaken = member.starved.is_some_and(|since| since + limits.starved_patience <= now);
        let origin = self.is_needed(now, Key::Origin) || self.leases.source().is_none() && forsaken;
        if self.leases.is_barred(peer) {
            return None;
        }
        if origin && member.may_hold(Scope::Origin) {
            return Some(Key::Origin);
        }
        let holds = self.leases.held_by(peer, member.place.zone).is_some();
        (!holds && member.may_hold(Scope::Zone) && self.is_needed(now, import)).then_some(import)
    }

    /// Whoever gets the origin's lease needs none to import.
    pub(super) fn give(&mut self, now: Time, peer: PeerId, key: Key) {
        if let (Key::Origin, Some(member)) = (key, self.members.get(peer)) {
            self.leases.forget(peer, member.place.zone);
        }
        self.leases.give(now, peer, key);
    }

    /// What a member is told: its lease, and `count` others, among them `with`.
    pub(super) fn answer(
        &mut self,
        rng: &mut Pcg64Mcg,
        digest: Digest,
        peer: PeerId,
        count: usize,
        with: Option<PeerId>,
    ) -> Send {
        let place = self.members.get(peer).map_or_else(Place::default, |member| member.place);
        let held = self.leases.held_by(peer, place.zone).filter(|(_, lease)| lease.ending.is_none());
        let lease = held.map(|(key, lease)| Grant { epoch: lease.epoch, scope: key.scope() });
        let source = self.leases.source();
        let served = source.is_some_and(|source| source != peer) || self.members.is_held();
        let imports = lease.is_some_and(|grant| grant.scope == Scope::Zone);
        let peers = sample(rng, &mut self.members, Wish { asker: peer, place, count, imports, source, with });
        let sources = self.leases.sources().collect();
        Send { peer, message: Message::Joined { digest, peers, lease, served, sources } }
    }

    /// Takes in what a member reports about leases, and how far it is under those of others.
    pub(super) fn hear_leases(
        &mut self,
        now: Time,
        peer: PeerId,
        before: Option<&Member>,
        join: &Join,
        (limits, rng): (&Limits, &mut Pcg64Mcg),
        out: &mut Vec<Send>,
    ) -> Option<Returned> {
        let zone = self.members.get(peer)?.place.zone;
        if let Some(accused) = join.accused {
            self.leases.accuse(peer, accused, join.digest, out);
        }
        if let Some(before) = before {
            if before.place.zone != zone {
                self.leases.forget(peer, before.place.zone);
            }
            let progress = Progress { peer, from: (before.heard, before.have), to: (now, join.have) };
            self.count(zone, progress);
        }
        let known = self.leases.held_by(peer, zone).is_some_and(|(_, lease)| lease.confirmed);
        let returned = self.leases.hear(now, peer, zone, join, out);
        self.end_needless_import(join.digest, out);
        if let Some((key, Lease { own: true, ending: None, epoch, .. })) = self.leases.held_by(peer, zone)
            && let Some(held) = join.lease
        {
            let epoch = *epoch;
            let begun = key != Key::Origin || held.bytes > 0;
            let amount = if key == Key::Origin { held.bytes } else { u64::from(join.have) };
            let members = self.members.zone(zone).map_or(0, |zone| zone.members().len());
            let members = u32::try_from(members).unwrap_or(u32::MAX);
            let report = Report { at: now, have: join.have, left: held.left, amount, streams: held.streams, members };
            let Some(line) = self.leases.line_mut(key) else { return returned };
            if !known {
                line.trial.begin(peer, report);
            } else if begun {
                let verdict = line.trial.judge(report, limits);
                if self.ask_back(now, key, verdict, (limits, rng)) {
                    out.push(revoked(peer, join.digest, epoch));
                }
            }
        }
        self.leases.note_burden(peer, join.burden);
        self.gather(now, join.digest, out);
        returned
    }

    /// Asks the origin's lease back for a member that streams other blobs, too.
    fn gather(&mut self, now: Time, digest: Digest, out: &mut Vec<Send>) {
        let Some(next) = self.leases.gatherer(now).and_then(|peer| self.able(Key::Origin, peer)) else { return };
        let Some(lease) = &mut self.leases.origin.lease else { return };
        lease.ending = Some(now);
        out.push(revoked(lease.holder, digest, lease.epoch));
        self.leases.origin.trial.ask_back(next);
    }

    /// The zone of whoever streams from the origin needs no import. A tracker that had not heard of it may have given one.
    fn end_needless_import(&mut self, digest: Digest, out: &mut Vec<Send>) {
        let source = self.leases.source().and_then(|source| self.members.get(source));
        let Some(zone) = source.map(|source| source.place.zone) else { return };
        if let Some(line) = self.leases.line_mut(Key::Zone(zone))
            && let Some(lease) = line.end()
        {
            line.trial = Trial::default();
            out.push(revoked(lease.holder, digest, lease.epoch));
        }
    }

    /// Counts a member's progress for the lease under which it was made.
    fn count(&mut self, zone: u32, progress: Progress) {
        let source = self.leases.source().and_then(|source| self.members.get(source));
        let key = if source.is_some_and(|source| source.place.zone == zone) { Key::Origin } else { Key::Zone(zone) };
        if let Some(line) = self.leases.line_mut(key) {
            line.trial.count(progress);
        }
    }

    /// Prepares what was decided about a lease. Returns whether its holder shall give it back.
    fn ask_back(&mut self, now: Time, key: Key, verdict: Verdict, (limits, rng): (&Limits, &mut Pcg64Mcg)) -> bool {
        let next = match verdict {
            Verdict::Stay => return false,
            // The better one may be gone, or have told only its own tracker for a while: whoever it is that gets the lease, it
            // will do better, too.
            Verdict::Back { to, .. } => self
                .able(key, to)
                .or_else(|| self.candidate(rng, key, true))
                .or_else(|| self.candidate(rng, key, false)),
            Verdict::Another => self.candidate(rng, key, true),
        };
        let Some(line) = self.leases.line_mut(key) else { return false };
        let (Some(next), Some(lease)) = (next, &mut line.lease) else {
            line.trial.settle(limits);
            return false;
        };
        lease.ending = Some(now);
        lease.hopeless = matches!(verdict, Verdict::Back { hopeless: true, .. });
        line.trial.ask_back(next);
        true
    }

    fn able(&self, key: Key, peer: PeerId) -> Option<PeerId> {
        self.members.get(peer).filter(|member| member.may_hold(key.scope())).map(Member::peer)
    }

    /// A random member of the holder's zone that can hold a lease, and did not if it shall be `untried`: of a few the one that
    /// has most, since one whose link is slow has less than others.
    fn candidate(&self, rng: &mut Pcg64Mcg, key: Key, untried: bool) -> Option<PeerId> {
        let line = self.leases.line(key)?;
        let holder = line.lease.as_ref()?.holder;
        let zone = self.members.zone(self.members.get(holder)?.place.zone)?;
        let drawn = (0..DRAWS).map(|_| zone.members()[rng.random_range(0..zone.members().len())]);
        let able = drawn.map(|at| self.members.at(at)).filter(|member| {
            let fresh = member.peer() != holder && !(untried && line.trial.was_tried(member.peer()));
            fresh && member.may_hold(key.scope()) && !self.leases.is_barred(member.peer())
        });
        able.take(CANDIDATES).reduce(|one, other| if other.have > one.have { other } else { one }).map(Member::peer)
    }

    /// For whom a lease was asked back, if it can still take it.
    pub(super) fn successor(&self, key: Key) -> Option<PeerId> {
        let next = self.leases.line(key).filter(|line: &&Line| line.lease.is_none())?.trial.next()?;
        self.able(key, next)
    }
}
