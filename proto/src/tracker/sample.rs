//! Which members a tracker names to one of them: two thirds near it, one third anywhere in its zone.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;

use super::members::Members;
use crate::peer::{Contact, PeerId, Place};

/// Contacts in other zones for a node that imports nothing: it asks them only in need.
const FAR: usize = 2;
/// Draws for each contact that is wanted; more would only be needed where nearly all are named already.
const DRAWS: usize = 4;

/// For whom, and how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) asker: PeerId,
    pub(super) place: Place,
    pub(super) count: usize,
    /// It imports into its zone, so that most of the sample is of other zones.
    pub(super) imports: bool,
    /// Who streams from the origin.
    pub(super) source: Option<PeerId>,
    /// Somebody that it has to know.
    pub(super) with: Option<PeerId>,
}

/// Up to `count` random members other than the asker.
pub(super) fn sample(rng: &mut Pcg64Mcg, members: &mut Members, wish: Wish) -> Vec<Contact> {
    let all = &*members;
    let mut draw = Draw { rng, members: all, asker: all.position(wish.asker), chosen: Vec::with_capacity(wish.count) };
    let count = wish.count;
    if let Some(known) = wish.with {
        draw.name(known);
    }
    let most = (count * 2).div_ceil(3);
    if wish.imports {
        draw.import(wish.place, wish.source, most);
    }
    if let Some(zone) = all.zone(wish.place.zone) {
        let far = if all.zone_count() > 1 && !wish.imports { FAR } else { 0 };
        draw.take(zone.rack(wish.place.rack), most);
        draw.take(zone.members(), count.saturating_sub(far));
        if all.zone_count() > 1 {
            let room = count.min(draw.chosen.len() + far);
            draw.take_any(all.len(), |at| at, room);
        }
    }
    let chosen = draw.chosen;
    for at in &chosen {
        members.note_named(*at);
    }
    chosen.iter().map(|at| members.at(*at).contact).collect()
}

struct Draw<'a> {
    rng: &'a mut Pcg64Mcg,
    members: &'a Members,
    asker: Option<usize>,
    chosen: Vec<usize>,
}

impl Draw<'_> {
    fn name(&mut self, peer: PeerId) {
        if let Some(at) = self.members.position(peer) {
            self.add(at);
        }
    }

    fn add(&mut self, at: usize) {
        if Some(at) != self.asker && !self.chosen.contains(&at) {
            self.chosen.push(at);
        }
    }

    /// Names members of other zones: the source, its zone, zones where somebody has it all, any.
    fn import(&mut self, own: Place, source: Option<PeerId>, until: usize) {
        let members = self.members;
        let from = source.and_then(|peer| members.get(peer)).map(|member| member.place.zone);
        if let Some(peer) = source {
            self.name(peer);
        }
        if let Some(zone) = from.filter(|zone| *zone != own.zone).and_then(|zone| members.zone(zone)) {
            self.take(zone.members(), until);
        }
        for held in [true, false] {
            for (_, zone) in members.zones().filter(|(zone, group)| *zone != own.zone && group.is_held() == held) {
                self.take(zone.members(), until);
            }
        }
    }

    fn take(&mut self, from: &[usize], until: usize) {
        self.take_any(from.len(), |at| from[at], until);
    }

    /// Draws until so many are named in all, or nobody new is likely to be left.
    fn take_any(&mut self, len: usize, at: impl Fn(usize) -> usize, until: usize) {
        let wanted = until.saturating_sub(self.chosen.len());
        if wanted == 0 || len == 0 {
            return;
        }
        if len <= until * 2 + 1 {
            let mut all: Vec<usize> = (0..len).map(at).collect();
            for last in (0..all.len()).rev() {
                if self.chosen.len() >= until {
                    return;
                }
                let other = self.rng.random_range(0..=last);
                all.swap(last, other);
                self.add(all[last]);
            }
            return;
        }
        for _ in 0..wanted * DRAWS {
            if self.chosen.len() >= until {
                return;
            }
            let (one, other) = (at(self.rng.random_range(0..len)), at(self.rng.random_range(0..len)));
            let named = |at: usize| self.members.at(at).named;
            self.add(if named(other) < named(one) { other } else { one });
        }
    }
}
