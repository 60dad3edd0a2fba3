//! Which trackers a fetch asks: one, and another so that their groups mix; all others if it is silent; the next closest if
//! they all are; and none any more in the end.

use std::time::Duration;

use rand::RngExt;

use super::{
    super::{Context, fetch::Fetch},
    State,
};
use crate::{
    digest::{Algorithm, Digest},
    peer::{Contact, PeerId, Place},
};

/// How many nodes ask a second tracker: enough to mix the groups, few enough that thousands which start at once do not
/// wait for one another's handshakes.
const SECOND: f64 = 0.25;

impl Fetch {
    pub(in crate::swarm) fn located(&mut self, cx: &mut Context<'_>, mut trackers: Vec<Contact>, known: Vec<Contact>) {
        trackers.retain(|contact| !self.claims.is_banned(contact.peer));
        let mut reserve = trackers.split_off(trackers.len().min(cx.limits.trackers_max));
        if trackers.iter().all(|contact| cx.is_silent(contact.peer)) && !reserve.is_empty() {
            trackers = std::mem::take(&mut reserve);
        }
        trackers.truncate(cx.limits.trackers_max);
        reserve.truncate(cx.limits.trackers_max);
        self.tracking.reserve = reserve;
        if !self.is_fetching() {
            if self.tracking.state == State::Completing {
                self.tracking.trackers = trackers;
                self.join_complete(cx);
            }
            return;
        }
        // Those that did not answer a moment ago come last, so that not every fetch waits for them anew. Of the others one
        // is chosen at random: thousands that start at once shall not all connect to the same node.
        trackers.sort_by_key(|contact| cx.is_silent(contact.peer));
        let live = trackers.iter().filter(|contact| !cx.is_silent(contact.peer)).count();
        self.tracking.at = if live > 1 { cx.rng.random_range(0..live) } else { 0 };
        let other = (live > 1 && cx.rng.random_bool(SECOND))
            .then(|| (self.tracking.at + cx.rng.random_range(1..live)) % live)
            .and_then(|at| trackers.get(at))
            .map(|contact| contact.peer);
        self.tracking.meeting_point = meeting_point(cx.place, &trackers[..live]);
        self.tracking.second = self.tracking.meeting_point.or(other);
        self.tracking.named.retain(|tracker, _| trackers.iter().any(|contact| contact.peer == *tracker));
        self.tracking.trackers = trackers;
        if self.tracking.trackers.is_empty() {
            self.tracking.spare.extend(known);
        }
        self.join(cx);
    }

    /// Asks the first tracker; without any, prepares the fallback.
    pub(super) fn join(&mut self, cx: &mut Context<'_>) {
        let Some(tracker) = self.tracking.tracker() else {
            self.fall_back(cx);
            return;
        };
        self.tracking.state = State::Joining { since: cx.now };
        let second = self.tracking.trackers.iter().find(|contact| Some(contact.peer) == self.tracking.second).copied();
        for contact in std::iter::once(tracker).chain(second) {
            if cx.reach(contact) {
                self.send_join(cx, contact.peer);
            }
        }
    }

    /// Gives the tracker up and asks all the others at once: whoever answers first is the new one. Should two give the
    /// lease to two nodes, the holders' heartbeats to all trackers settle it.
    pub(super) fn next_tracker(&mut self, cx: &mut Context<'_>) {
        let silent = self.tracking.tracker();
        if let Some(tracker) = silent {
            cx.note_silent(tracker.peer);
        }
        let others = self.tracking.trackers.iter().filter(|contact| Some(**contact) != silent);
        let others = others.copied().collect();
        self.ask_all(cx, others);
    }

    /// None of the trackers answers: the next closest are asked, as everybody will that finds the same. Only then is there
    /// nobody to be asked. The others stay trackers: an answer of theirs may only be late, and a lease that is given is told
    /// to them too.
    pub(super) fn ask_reserve(&mut self, cx: &mut Context<'_>) {
        let reserve = std::mem::take(&mut self.tracking.reserve);
        if !reserve.is_empty() {
            for tracker in &self.tracking.trackers {
                cx.note_silent(tracker.peer);
            }
            self.tracking.trackers.extend(&reserve);
        }
        self.ask_all(cx, reserve);
    }

    /// Asks several trackers at once, whichever answers first; without any, prepares the fallback.
    fn ask_all(&mut self, cx: &mut Context<'_>, trackers: Vec<Contact>) {
        self.tracking.at = self.tracking.trackers.len();
        if trackers.is_empty() {
            self.fall_back(cx);
            return;
        }
        self.tracking.state = State::Asking { since: cx.now };
        for tracker in trackers {
            if cx.reach(tracker) {
                self.send_join(cx, tracker.peer);
            }
        }
    }

    fn fall_back(&mut self, cx: &mut Context<'_>) {
        self.meet_spare(cx);
        let due = cx.now + fallback_wait(cx);
        self.tracking.state = State::Fallback { due };
        self.tracking.trackless = true;
    }

    /// The tracker knows few members: each may know some.
    pub(super) fn ask_others(&mut self, cx: &mut Context<'_>) {
        if std::mem::replace(&mut self.tracking.all_asked, true) || self.lease.is_some() {
            return;
        }
        let asked = [self.tracking.tracker().map(|contact| contact.peer), self.tracking.second];
        let others = self.tracking.trackers.iter().filter(|contact| !asked.contains(&Some(contact.peer)));
        for tracker in others.copied().collect::<Vec<_>>() {
            if cx.reach(tracker) {
                self.send_join(cx, tracker.peer);
            }
        }
    }
}

/// The tracker at which the nodes of this node's rack meet, if it has a name: else each would know only those of them that
/// happened to choose the same tracker. Rendezvous hashing, since trackers' names begin alike: by distance, one of four had
/// half of all racks.
pub(super) fn meeting_point(place: Place, trackers: &[Contact]) -> Option<PeerId> {
    let Place { zone, rack } = place;
    let weight = |peer: &PeerId| {
        let named = [&peer.0[..], &zone.to_be_bytes(), &rack.to_be_bytes()].concat();
        Digest::of(Algorithm::Sha256, &named)
    };
    trackers.iter().map(|contact| contact.peer).filter(|_| rack != 0).max_by_key(weight)
}

/// A random wait, most often near the end of the window: of many nodes that draw one, few draw an early one, and the
/// others then find them (truncated exponential, after Nonnenmacher and Biersack's feedback suppression).
fn fallback_wait(cx: &mut Context<'_>) -> Duration {
    const STEEPNESS: f64 = 10.0;
    let uniform: f64 = cx.rng.random();
    let share = (uniform * STEEPNESS.exp_m1()).ln_1p() / STEEPNESS;
    cx.limits.fallback_window.mul_f64(share.clamp(0.0, 1.0))
}
