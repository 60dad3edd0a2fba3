//! The members of one blob: open to random draws, by place, and forgotten when silent.

use std::collections::{BTreeMap, BTreeSet};

use super::lease::{Key, may_hold};
use crate::{
    limits::Limits,
    peer::{Contact, PeerId, Place},
    time::Time,
    wire::{Join, Scope, Standing},
};

/// A node that wants a blob or has it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) contact: Contact,
    pub(super) place: Place,
    pub(super) have: u32,
    pub(super) standing: Standing,
    /// Since when no peer that it knows has anything for it.
    pub(super) starved: Option<Time>,
    pub(super) heard: Time,
    /// How often it was named to others.
    pub(super) named: u32,
    /// When it is looked whether it fell silent: never later than it may have.
    looked: Time,
    in_zone: usize,
    in_rack: usize,
}

impl Member {
    pub(super) const fn peer(&self) -> PeerId {
        self.contact.peer
    }

    pub(super) const fn may_hold(&self, scope: Scope) -> bool {
        may_hold(self.standing, scope)
    }

    const fn is_complete(&self) -> bool {
        matches!(self.standing, Standing::Complete)
    }

    fn end(&self, limits: &Limits) -> Time {
        let timeout = if self.is_complete() { limits.complete_timeout } else { limits.member_timeout };
        self.heard + timeout
    }
}

/// How many members there are of a kind.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    complete: usize,
    /// Those that can hold the origin's lease.
    willing: usize,
}

impl Tally {
    fn add(&mut self, member: &Member) {
        self.complete += usize::from(member.is_complete());
        self.willing += usize::from(member.may_hold(Scope::Origin));
    }

    fn take(&mut self, member: &Member) {
        self.complete -= usize::from(member.is_complete());
        self.willing -= usize::from(member.may_hold(Scope::Origin));
    }
}

/// The members of one zone, as positions in the list of all.
#[derive(Debug, Default)]
pub(super) struct Zone {
    members: Vec<usize>,
    racks: BTreeMap<u32, Vec<usize>>,
    tally: Tally,
}

impl Zone {
    pub(super) fn members(&self) -> &[usize] {
        &self.members
    }

    /// The members of a rack that has a name.
    pub(super) fn rack(&self, rack: u32) -> &[usize] {
        if rack == 0 {
            return &[];
        }
        self.racks.get(&rack).map_or(&[], Vec::as_slice)
    }

    pub(super) const fn is_held(&self) -> bool {
        self.tally.complete > 0
    }
}

/// All members of one blob.
#[derive(Debug, Default)]
pub(super) struct Members {
    list: Vec<Member>,
    index: BTreeMap<PeerId, usize>,
    zones: BTreeMap<u32, Zone>,
    tally: Tally,
    /// One entry for each member, at [`Member::looked`].
    looks: BTreeSet<(Time, PeerId)>,
}

impl Members {
    pub(super) const fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn at(&self, at: usize) -> &Member {
        &self.list[at]
    }

    pub(super) fn note_named(&mut self, at: usize) {
        self.list[at].named = self.list[at].named.saturating_add(1);
    }

    pub(super) fn position(&self, peer: PeerId) -> Option<usize> {
        self.index.get(&peer).copied()
    }

    pub(super) fn get(&self, peer: PeerId) -> Option<&Member> {
        self.position(peer).map(|at| &self.list[at])
    }

    pub(super) fn zone(&self, zone: u32) -> Option<&Zone> {
        self.zones.get(&zone)
    }

    pub(super) fn zones(&self) -> impl Iterator<Item = (u32, &Zone)> {
        self.zones.iter().map(|(number, zone)| (*number, zone))
    }

    pub(super) fn zone_count(&self) -> usize {
        self.zones.len()
    }

    /// Somebody has the whole blob.
    pub(super) const fn is_held(&self) -> bool {
        self.tally.complete > 0
    }

    /// Takes in what a member says. Returns what it said before.
    pub(super) fn hear(&mut self, now: Time, contact: Contact, join: &Join, limits: &Limits) -> Option<Member> {
        let peer = contact.peer;
        let known = self.position(peer);
        let before = known.map(|at| self.list[at].clone());
        // Zones cost more than members: those beyond the limit count as one without a name.
        let room = self.zones.contains_key(&join.place.zone) || self.zones.len() < limits.zones_max;
        let place = if room { join.place } else { Place::default() };
        let starved = match join.standing {
            Standing::Starved => before.as_ref().and_then(|member| member.starved).or(Some(now)),
            Standing::Fetching | Standing::Complete | Standing::Shut => None,
        };
        let mut member = Member {
            contact,
            place,
            have: join.have,
            standing: join.standing,
            starved,
            heard: now,
            named: before.as_ref().map_or(0, |before| before.named),
            looked: now,
            in_zone: 0,
            in_rack: 0,
        };
        let end = member.end(limits);
        member.looked = before.as_ref().map_or(end, |before| before.looked.min(end));
        match (known, &before) {
            (Some(at), Some(before)) if before.place == place => {
                self.tally.take(before);
                self.tally.add(&member);
                if let Some(zone) = self.zones.get_mut(&place.zone) {
                    zone.tally.take(before);
                    zone.tally.add(&member);
                }
                if before.looked != member.looked {
                    self.looks.remove(&(before.looked, peer));
                    self.looks.insert((member.looked, peer));
                }
                (member.in_zone, member.in_rack) = (before.in_zone, before.in_rack);
                self.list[at] = member;
            }
            (known, _) => {
                if known.is_some() {
                    self.remove(peer);
                }
                self.insert(member);
            }
        }
        before
    }

    fn insert(&mut self, mut member: Member) {
        let (at, peer) = (self.list.len(), member.peer());
        let zone = self.zones.entry(member.place.zone).or_default();
        member.in_zone = zone.members.len();
        zone.members.push(at);
        zone.tally.add(&member);
        let rack = zone.racks.entry(member.place.rack).or_default();
        member.in_rack = rack.len();
        rack.push(at);
        self.tally.add(&member);
        self.looks.insert((member.looked, peer));
        self.index.insert(peer, at);
        self.list.push(member);
    }

    pub(super) fn remove(&mut self, peer: PeerId) -> Option<Member> {
        let at = self.index.remove(&peer)?;
        let member = self.list[at].clone();
        self.looks.remove(&(member.looked, peer));
        self.tally.take(&member);
        self.take_from_groups(&member);
        self.list.swap_remove(at);
        if let Some(moved) = self.list.get(at) {
            self.index.insert(moved.peer(), at);
            if let Some(zone) = self.zones.get_mut(&moved.place.zone) {
                zone.members[moved.in_zone] = at;
                if let Some(rack) = zone.racks.get_mut(&moved.place.rack) {
                    rack[moved.in_rack] = at;
                }
            }
        }
        Some(member)
    }

    /// Takes a member out of its zone and rack, whose last members take its positions.
    fn take_from_groups(&mut self, member: &Member) {
        let Place { zone, rack } = member.place;
        let Some(group) = self.zones.get_mut(&zone) else { return };
        group.tally.take(member);
        group.members.swap_remove(member.in_zone);
        if let Some(moved) = group.members.get(member.in_zone) {
            self.list[*moved].in_zone = member.in_zone;
        }
        if let Some(mates) = group.racks.get_mut(&rack) {
            mates.swap_remove(member.in_rack);
            if let Some(moved) = mates.get(member.in_rack) {
                self.list[*moved].in_rack = member.in_rack;
            }
            if mates.is_empty() {
                group.racks.remove(&rack);
            }
        }
        if group.members.is_empty() {
            self.zones.remove(&zone);
        }
    }

    /// When a member may have fallen silent.
    pub(super) fn due(&self) -> Option<Time> {
        self.looks.first().map(|(due, _)| *due)
    }

    /// A member that was not heard of for too long. Those that were looked at too early are put off.
    pub(super) fn silent(&mut self, now: Time, limits: &Limits) -> Option<PeerId> {
        while let Some((due, peer)) = self.looks.first().copied().filter(|(due, _)| *due <= now) {
            let at = self.position(peer)?;
            let end = self.list[at].end(limits);
            if end <= now {
                return Some(peer);
            }
            self.looks.remove(&(due, peer));
            self.looks.insert((end, peer));
            self.list[at].looked = end;
        }
        None
    }

    /// Of those that can hold a lease the one that has most.
    pub(super) fn richest(&self, key: Key, shunned: impl Fn(PeerId) -> bool) -> Option<PeerId> {
        let able = |member: &&Member| member.may_hold(key.scope()) && !shunned(member.peer());
        let wealth = |member: &&Member| (member.have, member.peer());
        let best = match key {
            Key::Origin if self.tally.willing > 0 => self.list.iter().filter(able).max_by_key(wealth),
            Key::Origin => None,
            Key::Zone(zone) => {
                let members = self.zones.get(&zone).into_iter().flat_map(|zone| &zone.members);
                members.map(|at| &self.list[*at]).filter(able).max_by_key(wealth)
            }
        };
        best.map(Member::peer)
    }
}
