//! A fetch and its trackers: what they answered, what is due when, and the lease that they give.

mod ask;
mod beat;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::RngExt;

use super::{Context, Output, fetch::Fetch, lease::Lease};
use crate::{
    digest::Digest,
    limits::Limits,
    peer::{Contact, PeerId},
    time::Time,
    wire::{Epoch, Grant, Message, Scope},
};

/// A fetch that gets nothing for so long looks whether its tracker is alive. The first that joins becomes the lease
/// holder, most often the tracker itself, so the two die together, long before the connection is found dead.
const HUNGER: Duration = Duration::from_millis(300);
/// So long a holder reports more often, so that a slow one is found out before much is lost.
const YOUTH: Duration = Duration::from_secs(1);
/// A tracker that is connected and does not answer a heartbeat of a hungry fetch for so long is taken for dead.
const SILENCE: Duration = Duration::from_millis(250);

/// Where a fetch stands with its trackers.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    trackers: Vec<Contact>,
    /// Those that are asked if none of these answers any more.
    reserve: Vec<Contact>,
    /// The one that gets the heartbeats.
    at: usize,
    /// Another one that is asked once, so that the groups of the trackers mix.
    second: Option<PeerId>,
    /// The one at which the nodes of this node's rack meet.
    meeting_point: Option<PeerId>,
    /// Trackers that have not said yet that the lease is this node's.
    unconfirmed: Vec<PeerId>,
    /// When the lease was given.
    granted: Option<Time>,
    /// The last leases that were given back, so that they are not taken again.
    over: VecDeque<Epoch>,
    /// All trackers were told of a lease and shall hear when it is over.
    told_lease: bool,
    /// All trackers were asked, since the first knew few members.
    all_asked: bool,
    state: State,
    /// When the DHT was last asked.
    looked: Option<Time>,
    /// It was asked once more, since neither the origin nor anybody known can serve.
    looked_again: bool,
    holders_known: bool,
    /// Holders that were not asked yet.
    spare: Vec<Contact>,
    /// When a tracker last said that somebody else has or gets the blob; none since it said the contrary.
    assured: Option<Time>,
    /// Holders of the origin's lease, as each tracker last named them: those that were caught, they name no more.
    named: BTreeMap<PeerId, Vec<PeerId>>,
    /// No tracker was there to name any.
    trackless: bool,
    /// When the tracker was last asked out of turn.
    asked: Option<Time>,
    /// When the next heartbeat is due at the latest, since something changed.
    hasty: Option<Time>,
    /// All trackers were told that this node streams other blobs, and shall hear when it does not.
    told_burden: bool,
}

/// An answer of the DHT that is younger is not asked for anew before a fetch fails.
const FRESH: Duration = Duration::from_secs(1);
/// Holders of the whole blob that are asked beside the peers that the tracker names.
const HOLDERS: usize = 2;
/// Peers that a tracker names, with fewer of which the other holders are asked too.
const FEW: usize = 6;
/// Leases that were given back are remembered, the last so many.
const OVER_MAX: usize = 8;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not begun.
    #[default]
    Idle,
    /// The DHT was asked.
    Locating { since: Time },
    /// The first tracker was asked, or is being dialled.
    Joining { since: Time },
    /// It was silent; all the others were asked at once.
    Asking { since: Time },
    /// A tracker answered; the next heartbeat follows the last one. Heartbeats are answered too: one may still be open.
    Joined { beat: Time, unanswered: Option<Time> },
    /// No tracker answers; the origin is used from then on.
    Fallback { due: Time },
    /// The whole blob is here and the tracker shall know.
    Completing,
}

impl Tracking {
    pub(super) fn start(&mut self, cx: &mut Context<'_>, digest: Digest) {
        self.state = State::Locating { since: cx.now };
        self.looked = Some(cx.now);
        cx.out.push(Output::Locate { digest });
    }

    /// Asks the DHT once more before the fetch fails, if its answer is old: whoever has the blob may have come, or come
    /// back, since. Returns whether it did.
    pub(super) fn look_again(&mut self, cx: &mut Context<'_>, digest: Digest) -> bool {
        let fresh = self.looked.is_some_and(|looked| looked + FRESH > cx.now);
        if fresh || std::mem::replace(&mut self.looked_again, true) {
            return false;
        }
        self.holders_known = false;
        self.start(cx, digest);
        true
    }

    /// Whether there may be holders of whom nothing was heard yet.
    pub(super) const fn is_looking(&self) -> bool {
        let asking = matches!(self.state, State::Locating { .. } | State::Joining { .. } | State::Asking { .. });
        !self.holders_known || self.looked_again && asking
    }

    pub(super) const fn holders_known(&self) -> bool {
        self.holders_known
    }

    /// When a tracker last said that somebody else has or gets the blob.
    pub(super) const fn assured(&self) -> Option<Time> {
        self.assured
    }

    /// Whether somebody else has or gets the blob, as the tracker says.
    pub(super) const fn is_served(&self) -> bool {
        self.assured.is_some()
    }

    /// Whether a tracker named this one as a holder of the origin's lease, or no tracker is there to name any.
    pub(super) fn names(&self, peer: PeerId) -> bool {
        self.trackless || self.named.values().any(|named| named.contains(&peer))
    }

    /// A lease was given back: answers that were on their way meanwhile may still name it.
    pub(super) fn returned(&mut self, epoch: Epoch) {
        if self.over.len() == OVER_MAX {
            self.over.pop_front();
        }
        self.over.push_back(epoch);
    }

    /// Whether no tracker that answers has given the lease to anybody else.
    pub(super) const fn is_confirmed(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    fn is_at(&self, peer: PeerId) -> bool {
        self.tracker().is_some_and(|contact| contact.peer == peer)
    }

    /// Whether the peer is one of the blob's trackers.
    pub(super) fn includes(&self, peer: PeerId) -> bool {
        self.trackers.iter().any(|contact| contact.peer == peer)
    }

    /// Makes the peer the tracker, if it is one of them.
    fn turn_to(&mut self, peer: PeerId) {
        if let Some(at) = self.trackers.iter().position(|contact| contact.peer == peer) {
            self.at = at;
        }
    }

    fn tracker(&self) -> Option<Contact> {
        self.trackers.get(self.at).copied()
    }

    /// `progressed`: when the fetch last got anything.
    pub(super) fn deadline(&self, leased: bool, progressed: Time, limits: &Limits) -> Option<Time> {
        match self.state {
            State::Idle | State::Completing => None,
            State::Locating { since } => Some(since + limits.join_timeout * 3),
            State::Joining { since } => Some(since + limits.join_timeout),
            // With several asked, one would have answered sooner.
            State::Asking { since } if !self.reserve.is_empty() => Some(since + limits.join_timeout / 3),
            State::Asking { since } => Some(since + limits.join_timeout),
            State::Joined { beat, unanswered } => {
                let hungry = progressed + HUNGER;
                let early = hungry.max(beat + limits.lease_heartbeat);
                let young = self.granted.is_some_and(|granted| beat < granted + YOUTH);
                let often = if young { limits.lease_heartbeat / 4 } else { limits.lease_heartbeat };
                let next = if leased { beat + often } else { early.min(beat + limits.heartbeat) };
                let silent = unanswered.map(|since| hungry.max(since + SILENCE));
                [Some(next), silent, self.hasty].into_iter().flatten().min()
            }
            State::Fallback { due } => Some(due),
        }
    }

    pub(super) fn leave(&self, cx: &mut Context<'_>, digest: Digest) {
        let told = match self.state {
            State::Idle | State::Locating { .. } | State::Fallback { .. } => &[],
            State::Joining { .. } | State::Joined { .. } | State::Asking { .. } | State::Completing => &*self.trackers,
        };
        for tracker in told {
            if cx.is_up(tracker.peer) {
                cx.send(tracker.peer, Message::Leave { digest });
            }
        }
    }
}

impl Fetch {
    /// The DHT names holders: always the same few, so that they are left alone as far as the tracker names others.
    pub(super) fn holders(&mut self, cx: &mut Context<'_>, mut holders: Vec<Contact>) {
        self.tracking.holders_known = true;
        for at in (1..holders.len()).rev() {
            holders.swap(at, cx.rng.random_range(0..=at));
        }
        for contact in holders.drain(..HOLDERS.min(holders.len())) {
            self.meet(cx, contact);
        }
        self.tracking.spare = holders;
        if !matches!(self.tracking.state, State::Locating { .. } | State::Joining { .. }) && !self.tracking.is_served()
        {
            self.meet_spare(cx);
        }
    }

    /// Nobody names anybody else: all holders that the DHT knows are asked.
    fn meet_spare(&mut self, cx: &mut Context<'_>) {
        for contact in std::mem::take(&mut self.tracking.spare) {
            self.meet(cx, contact);
        }
    }

    pub(super) fn track_due(&mut self, cx: &mut Context<'_>) {
        let due =
            self.tracking.deadline(self.lease.is_some(), self.progressed, cx.limits).is_some_and(|due| due <= cx.now);
        if !due {
            return;
        }
        match self.tracking.state {
            State::Idle | State::Completing => {}
            State::Locating { .. } => self.join(cx),
            State::Joining { .. } => self.next_tracker(cx),
            State::Asking { .. } => self.ask_reserve(cx),
            State::Joined { unanswered: Some(since), .. }
                if since + SILENCE <= cx.now && self.progressed + HUNGER <= cx.now =>
            {
                self.next_tracker(cx);
            }
            State::Joined { unanswered, .. } => {
                self.tracking.state = State::Joined { beat: cx.now, unanswered: unanswered.or(Some(cx.now)) };
                self.heartbeat(cx);
            }
            State::Fallback { .. } => {
                // Somebody among the peers that this node knows may have been first: then there is more to come from it.
                if !self.is_fed(cx) {
                    self.take_untracked(cx);
                }
                // Trackers may come back: they then learn of this fetch and of what it has.
                self.tracking.start(cx, self.digest);
            }
        }
    }

    pub(super) fn joined(
        &mut self,
        cx: &mut Context<'_>,
        peer: PeerId,
        peers: &[Contact],
        lease: Option<Grant>,
        served: bool,
        sources: &[PeerId],
    ) {
        // An answer that comes late, when others were asked or the fallback was prepared, is as good.
        if matches!(self.tracking.state, State::Asking { .. } | State::Fallback { .. }) {
            self.tracking.turn_to(peer);
        }
        if !self.tracking.includes(peer) || !self.is_fetching() {
            return;
        }
        self.tracking.trackless = false;
        self.tracking.named.insert(peer, sources.to_vec());
        let mut named = cx.limits.sample;
        if self.tracking.is_at(peer) {
            self.tracking.state = match self.tracking.state {
                State::Joined { beat, .. } => State::Joined { beat, unanswered: None },
                State::Idle
                | State::Locating { .. }
                | State::Joining { .. }
                | State::Asking { .. }
                | State::Fallback { .. }
                | State::Completing => State::Joined { beat: cx.now, unanswered: None },
            };
            self.tracking.assured = served.then_some(cx.now);
            if self.tracking.meeting_point.is_some_and(|point| point != peer) {
                named = named.min(FEW);
            }
        } else if self.tracking.meeting_point != Some(peer) {
            named = named.div_ceil(3);
        }
        match lease {
            Some(grant) if self.shut.is_none() || grant.scope == Scope::Zone => self.granted(cx, peer, grant),
            None if served && self.lease.as_ref().is_some_and(Lease::is_untracked) => self.drop_lease(cx),
            Some(_) | None => {}
        }
        // Behind the lease, since whoever imports has room for more.
        // Others may have found this node meanwhile; whom it meets in its rack, it cannot do without.
        let room = if self.tracking.meeting_point == Some(peer) { 2 } else { 1 };
        for contact in peers.iter().take(named) {
            self.meet_within(cx, *contact, cx.limits.neighbours_max * room);
        }
        if self.remotes.subscribed.len() < FEW {
            self.meet_spare(cx);
            self.ask_others(cx);
        }
    }

    /// A tracker gives the lease, or says that it is this node's as far as it knows. No stream is opened until all the
    /// trackers that can be asked have said so, since two of them may have given it to two nodes in the same instant.
    fn granted(&mut self, cx: &mut Context<'_>, peer: PeerId, grant: Grant) {
        // Nothing can be imported where nothing but the origin helped.
        let vain = grant.scope == Scope::Zone && self.lease.as_ref().is_some_and(Lease::is_greedy);
        if vain || self.tracking.over.contains(&grant.epoch) {
            return;
        }
        let held = self.lease.as_ref().and_then(Lease::report);
        if held.is_some_and(|held| held.epoch == grant.epoch && held.scope == grant.scope) {
            self.tracking.unconfirmed.retain(|tracker| *tracker != peer);
            return;
        }
        self.take_lease(cx, grant);
        self.tracking.granted = Some(cx.now);
        let trackers = self.tracking.trackers.iter().map(|contact| contact.peer);
        self.tracking.unconfirmed = trackers.filter(|tracker| *tracker != peer && !cx.is_silent(*tracker)).collect();
    }

    pub(super) fn track_connected(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        match self.tracking.state {
            State::Joining { .. } | State::Joined { .. }
                if self.tracking.is_at(peer)
                    || self.tracking.second == Some(peer)
                    || self.tracking.all_asked && self.tracking.includes(peer)
                    || self.tracking.unconfirmed.contains(&peer) =>
            {
                self.send_join(cx, peer);
            }
            State::Completing | State::Asking { .. } if self.tracking.includes(peer) => self.send_join(cx, peer),
            State::Joining { .. }
            | State::Asking { .. }
            | State::Joined { .. }
            | State::Completing
            | State::Idle
            | State::Locating { .. }
            | State::Fallback { .. } => {}
        }
    }

    pub(super) fn track_disconnected(&mut self, cx: &mut Context<'_>, peer: PeerId) {
        self.tracking.unconfirmed.retain(|tracker| *tracker != peer);
        let waiting = matches!(self.tracking.state, State::Joining { .. } | State::Joined { .. });
        if waiting && self.tracking.is_at(peer) {
            self.next_tracker(cx);
        }
    }

    /// Tells that this node has the whole blob: its tracker, even if that has to be dialled, and those that are connected.
    pub(super) fn join_complete(&mut self, cx: &mut Context<'_>) {
        self.tracking.state = State::Completing;
        for tracker in self.tracking.trackers.clone() {
            let own = self.tracking.is_at(tracker.peer) && cx.reach(tracker);
            if own || cx.is_up(tracker.peer) {
                self.send_join(cx, tracker.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests;
