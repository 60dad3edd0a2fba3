//! Which peer has which connection, and which one stays when two nodes dial each other at once.
//!
//! Each peer has one slot: at most one dial of ours, one dial of its, and one session. Both nodes must come to the same
//! choice without asking. The rule: the dial of the node with the smaller id wins.
//! - The node with the smaller id lets the other's dial wait, unanswered, until its own has an end. If its own succeeds,
//!   the other is closed; if it fails (one-way reachability), the other goes on.
//! - The node with the larger id gives its own dial up as soon as the other's has proven the secret. It has then not
//!   yet confirmed its own, so that no end has a session of it and no message can be lost.
//!
//! A peer dials only when it has no session with us. So a confirmed dial of a peer that we have a session with means
//! that the peer has lost that session (a restart): the new one takes its place.

use std::{collections::HashMap, sync::Arc};

use shoal_proto::peer::PeerId;
use tokio_util::sync::CancellationToken;

/// What sits in a slot.
pub(super) trait Occupant {
    /// Whose slot it is.
    fn peer(&self) -> PeerId;
    /// Whether its connection is up, as far as this end knows.
    fn is_live(&self) -> bool;
}

/// A handshake under way: ours or a peer's.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) peer: PeerId,
    /// Fires when another attempt or the caller ends this one.
    pub(super) cancelled: CancellationToken,
    number: u64,
}

#[derive(Debug)]
struct Dial {
    attempt: Attempt,
    /// Fires when the dial has succeeded or failed.
    done: CancellationToken,
}

#[derive(Debug)]
struct Slot<S> {
    dial: Option<Dial>,
    accept: Option<Attempt>,
    /// A dial was given up in favour of `accept`: if that fails too, the caller must hear of it.
    wanted: bool,
    session: Option<Arc<S>>,
}

impl<S> Default for Slot<S> {
    fn default() -> Self {
        Self { dial: None, accept: None, wanted: false, session: None }
    }
}

impl<S: Occupant> Slot<S> {
    fn live(&self) -> Option<&Arc<S>> {
        self.session.as_ref().filter(|session| session.is_live())
    }

    const fn is_empty(&self) -> bool {
        self.dial.is_none() && self.accept.is_none() && self.session.is_none()
    }
}

/// What to do with a peer's dial.
#[derive(Debug)]
pub(super) enum Acceptance {
    /// Answer it.
    Answer(Attempt),
    /// Wait until our own dial has an end, then ask again.
    Wait(CancellationToken),
    /// Our own dial won.
    Duplicate,
}

/// All slots.
#[derive(Debug)]
pub(super) struct Peers<S> {
    us: PeerId,
    slots: HashMap<PeerId, Slot<S>>,
    attempts: u64,
}

impl<S: Occupant> Peers<S> {
    pub(super) fn new(us: PeerId) -> Self {
        Self { us, slots: HashMap::new(), attempts: 0 }
    }

    fn attempt(&mut self, peer: PeerId) -> Attempt {
        self.attempts += 1;
        Attempt { peer, cancelled: CancellationToken::new(), number: self.attempts }
    }

    /// Begins a dial, unless there is a session or a handshake with the peer already.
    pub(super) fn begin_dial(&mut self, peer: PeerId) -> Option<Attempt> {
        let attempt = self.attempt(peer);
        let slot = self.slots.entry(peer).or_default();
        if slot.live().is_some() || slot.dial.is_some() {
            return None;
        }
        if slot.accept.is_some() {
            slot.wanted = true;
            return None;
        }
        slot.dial = Some(Dial { attempt: attempt.clone(), done: CancellationToken::new() });
        Some(attempt)
    }

    /// Decides about a dial of a peer that has proven the secret. `waited` says that it has waited for ours before.
    pub(super) fn begin_accept(&mut self, peer: PeerId, waited: bool) -> Acceptance {
        let attempt = self.attempt(peer);
        let ours_wins = self.us < peer;
        let slot = self.slots.entry(peer).or_default();
        if waited && slot.live().is_some() {
            return Acceptance::Duplicate;
        }
        match slot.dial.take() {
            Some(dial) if ours_wins => {
                let done = dial.done.clone();
                slot.dial = Some(dial);
                return Acceptance::Wait(done);
            }
            Some(dial) => {
                dial.attempt.cancelled.cancel();
                dial.done.cancel();
                slot.wanted = true;
            }
            None => {}
        }
        if let Some(older) = slot.accept.replace(attempt.clone()) {
            older.cancelled.cancel();
        }
        Acceptance::Answer(attempt)
    }

    /// Makes `session` the peer's session, if `attempt` has not been given up. Returns the session that it replaces:
    /// its end must be reported before the new one is.
    pub(super) fn commit(&mut self, attempt: &Attempt, session: Arc<S>) -> Result<Option<Arc<S>>, GivenUp> {
        let slot = self.slots.get_mut(&attempt.peer).filter(|slot| slot.owns(attempt)).ok_or(GivenUp)?;
        if attempt.cancelled.is_cancelled() {
            return Err(GivenUp);
        }
        slot.clear(attempt);
        slot.wanted = false;
        Ok(slot.session.replace(session))
    }

    /// Ends a failed attempt. True if the caller of a dial must be told.
    pub(super) fn abandon(&mut self, attempt: &Attempt) -> bool {
        let Some(slot) = self.slots.get_mut(&attempt.peer) else { return false };
        if !slot.owns(attempt) {
            return false;
        }
        let dialed = slot.dial.as_ref().is_some_and(|dial| dial.attempt.number == attempt.number);
        slot.clear(attempt);
        let report = (dialed || std::mem::take(&mut slot.wanted)) && slot.live().is_none();
        self.tidy(attempt.peer);
        report
    }

    /// Forgets a session whose end was reported.
    pub(super) fn ended(&mut self, session: &Arc<S>) {
        if let Some(slot) = self.slots.get_mut(&session.peer())
            && slot.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session))
        {
            slot.session = None;
            self.tidy(session.peer());
        }
    }

    /// Cancels handshakes with a peer and returns its session.
    pub(super) fn hangup(&self, peer: PeerId) -> Option<Arc<S>> {
        let slot = self.slots.get(&peer)?;
        for attempt in slot.dial.iter().map(|dial| &dial.attempt).chain(&slot.accept) {
            attempt.cancelled.cancel();
        }
        slot.live().cloned()
    }

    /// The session with a peer.
    pub(super) fn session(&self, peer: PeerId) -> Option<&Arc<S>> {
        self.slots.get(&peer)?.live()
    }

    /// All sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Arc<S>> {
        self.slots.values().filter_map(Slot::live)
    }

    fn tidy(&mut self, peer: PeerId) {
        if self.slots.get(&peer).is_some_and(Slot::is_empty) {
            self.slots.remove(&peer);
        }
    }
}

impl<S> Slot<S> {
    fn owns(&self, attempt: &Attempt) -> bool {
        let dial = self.dial.as_ref().map(|dial| &dial.attempt);
        dial.into_iter().chain(&self.accept).any(|current| current.number == attempt.number)
    }

    fn clear(&mut self, attempt: &Attempt) {
        if let Some(dial) = self.dial.take_if(|dial| dial.attempt.number == attempt.number) {
            dial.done.cancel();
        }
        self.accept.take_if(|accept| accept.number == attempt.number);
    }
}

/// The attempt lost against another one, or the caller has hung up.
#[derive(Debug)]
pub(super) struct GivenUp;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const SMALL: PeerId = PeerId([1; 32]);
    const LARGE: PeerId = PeerId([2; 32]);

    struct Fake {
        peer: PeerId,
        live: AtomicBool,
    }

    impl Occupant for Fake {
        fn peer(&self) -> PeerId {
            self.peer
        }

        fn is_live(&self) -> bool {
            self.live.load(Ordering::Relaxed)
        }
    }

    fn session(peer: PeerId) -> Arc<Fake> {
        Arc::new(Fake { peer, live: AtomicBool::new(true) })
    }

    fn answer(acceptance: Acceptance) -> Attempt {
        match acceptance {
            Acceptance::Answer(attempt) => attempt,
            Acceptance::Wait(_) | Acceptance::Duplicate => panic!("not answered"),
        }
    }

    #[test]
    fn the_smaller_node_lets_a_dial_wait_for_its_own() {
        let mut peers = Peers::new(SMALL);
        let dial = peers.begin_dial(LARGE).unwrap();
        let Acceptance::Wait(done) = peers.begin_accept(LARGE, false) else { panic!("answered") };
        assert!(!done.is_cancelled());
        assert!(peers.commit(&dial, session(LARGE)).unwrap().is_none());
        assert!(done.is_cancelled());
        assert!(matches!(peers.begin_accept(LARGE, true), Acceptance::Duplicate));
    }

    #[test]
    fn the_waiting_dial_goes_on_when_the_own_one_fails() {
        let mut peers = Peers::new(SMALL);
        let dial = peers.begin_dial(LARGE).unwrap();
        let Acceptance::Wait(done) = peers.begin_accept(LARGE, false) else { panic!("answered") };
        assert!(peers.abandon(&dial), "the caller is told");
        assert!(done.is_cancelled());
        let accept = answer(peers.begin_accept(LARGE, true));
        assert!(peers.commit(&accept, session(LARGE)).unwrap().is_none());
    }

    #[test]
    fn the_larger_node_gives_its_dial_up() {
        let mut peers = Peers::new(LARGE);
        let dial = peers.begin_dial(SMALL).unwrap();
        let accept = answer(peers.begin_accept(SMALL, false));
        assert!(dial.cancelled.is_cancelled());
        assert!(peers.commit(&dial, session(SMALL)).is_err());
        assert!(!peers.abandon(&dial), "the other connection answers for it");
        assert!(peers.commit(&accept, session(SMALL)).is_ok());
    }

    #[test]
    fn a_dial_given_up_is_reported_when_the_other_connection_fails_too() {
        let mut peers = Peers::<Fake>::new(LARGE);
        let dial = peers.begin_dial(SMALL).unwrap();
        let accept = answer(peers.begin_accept(SMALL, false));
        assert!(!peers.abandon(&dial));
        assert!(peers.abandon(&accept));
        assert!(peers.slots.is_empty());
    }

    #[test]
    fn a_dial_during_a_handshake_is_reported_when_that_fails() {
        let mut peers = Peers::<Fake>::new(LARGE);
        let accept = answer(peers.begin_accept(SMALL, false));
        assert!(peers.begin_dial(SMALL).is_none());
        assert!(peers.abandon(&accept));
        let unwanted = answer(peers.begin_accept(SMALL, false));
        assert!(!peers.abandon(&unwanted));
    }

    #[test]
    fn a_confirmed_dial_replaces_a_live_session() {
        let mut peers = Peers::new(SMALL);
        let first = answer(peers.begin_accept(LARGE, false));
        let former = session(LARGE);
        peers.commit(&first, Arc::clone(&former)).unwrap();
        let second = answer(peers.begin_accept(LARGE, false));
        let replaced = peers.commit(&second, session(LARGE)).unwrap().unwrap();
        assert!(Arc::ptr_eq(&replaced, &former));
        peers.ended(&former);
        assert!(peers.session(LARGE).is_some(), "the end of the former is not the end of the newer");
    }

    #[test]
    fn a_newer_dial_of_a_peer_ends_its_older_one() {
        let mut peers = Peers::new(SMALL);
        let older = answer(peers.begin_accept(LARGE, false));
        let newer = answer(peers.begin_accept(LARGE, false));
        assert!(older.cancelled.is_cancelled());
        assert!(peers.commit(&older, session(LARGE)).is_err());
        assert!(!peers.abandon(&older));
        assert!(peers.commit(&newer, session(LARGE)).is_ok());
    }

    #[test]
    fn a_dead_session_does_not_stop_a_dial_and_hands_over_in_order() {
        let mut peers = Peers::new(SMALL);
        let first = peers.begin_dial(LARGE).unwrap();
        let former = session(LARGE);
        peers.commit(&first, Arc::clone(&former)).unwrap();
        assert!(peers.begin_dial(LARGE).is_none(), "connected");
        former.live.store(false, Ordering::Relaxed);
        assert!(peers.session(LARGE).is_none());
        let second = peers.begin_dial(LARGE).unwrap();
        assert!(peers.commit(&second, session(LARGE)).unwrap().is_some(), "its end may not be reported yet");
    }

    #[test]
    fn a_hangup_cancels_handshakes() {
        let mut peers = Peers::<Fake>::new(SMALL);
        let dial = peers.begin_dial(LARGE).unwrap();
        assert!(peers.hangup(LARGE).is_none());
        assert!(peers.commit(&dial, session(LARGE)).is_err());
        assert!(peers.abandon(&dial), "the caller is told");
        assert!(peers.slots.is_empty());
    }
}
