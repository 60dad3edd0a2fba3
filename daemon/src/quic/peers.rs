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

use super::session::Session;

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

#[derive(Debug, Default)]
struct Slot {
    dial: Option<Dial>,
    accept: Option<Attempt>,
    /// A dial was given up in favour of `accept`: if that fails too, the caller must hear of it.
    wanted: bool,
    session: Option<Arc<Session>>,
}

impl Slot {
    fn live(&self) -> Option<&Arc<Session>> {
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
pub(super) struct Peers {
    us: PeerId,
    slots: HashMap<PeerId, Slot>,
    attempts: u64,
}

impl Peers {
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
    pub(super) fn commit(&mut self, attempt: &Attempt, session: Arc<Session>) -> Result<Option<Arc<Session>>, GivenUp> {
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
    pub(super) fn ended(&mut self, session: &Arc<Session>) {
        if let Some(slot) = self.slots.get_mut(&session.peer)
            && slot.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session))
        {
            slot.session = None;
            self.tidy(session.peer);
        }
    }

    /// Cancels handshakes with a peer and returns its session.
    pub(super) fn hangup(&self, peer: PeerId) -> Option<Arc<Session>> {
        let slot = self.slots.get(&peer)?;
        for attempt in slot.dial.iter().map(|dial| &dial.attempt).chain(&slot.accept) {
            attempt.cancelled.cancel();
        }
        slot.live().cloned()
    }

    /// The session with a peer.
    pub(super) fn session(&self, peer: PeerId) -> Option<&Arc<Session>> {
        self.slots.get(&peer)?.live()
    }

    /// All sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.slots.values().filter_map(Slot::live)
    }

    fn tidy(&mut self, peer: PeerId) {
        if self.slots.get(&peer).is_some_and(Slot::is_empty) {
            self.slots.remove(&peer);
        }
    }
}

impl Slot {
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
