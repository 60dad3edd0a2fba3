//! Lookups under way: who waits for them, and until when.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::Instant,
};

use libp2p::{PeerId, kad::QueryId};
use shoal_proto::peer::Contact;
use tokio::sync::oneshot;

use crate::dht::{Key, LOOKUP_DEADLINE};

/// Queries that may be under way for callers.
const LOOKUPS_MAX: usize = 512;

/// Queries that may have started within the last [`LOOKUP_DEADLINE`].
const DEADLINES_MAX: usize = 4096;

/// Callers that may wait for one query.
const WAITERS_MAX: usize = 1024;

/// Holders that one query collects.
const FOUND_MAX: usize = 64;

/// What is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// The nodes closest to a key.
    Trackers(Key),
    /// The peers that announced a key.
    Holders(Key),
}

/// One query and its callers.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) subject: Subject,
    /// Holders found so far; those without a known address are being dialed.
    pub(super) found: HashSet<PeerId>,
    /// The query has ended, but the address of a found peer is missing yet.
    pub(super) ended: bool,
    waiters: Vec<oneshot::Sender<Vec<Contact>>>,
}

impl Lookup {
    /// Notes a holder; false if it was known or there is no room.
    pub(super) fn add(&mut self, peer: PeerId) -> bool {
        self.found.len() < FOUND_MAX && self.found.insert(peer)
    }

    /// Gives every caller the answer.
    pub(super) fn answer(self, contacts: &[Contact]) {
        for waiter in self.waiters {
            // A caller that went away needs no answer.
            drop(waiter.send(contacts.to_vec()));
        }
    }
}

/// All lookups under way. Bounded in number, callers and time.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    queries: HashMap<QueryId, Lookup>,
    subjects: HashMap<Subject, QueryId>,
    /// In order of time, because all have the same deadline. Entries of answered lookups stay until theirs.
    deadlines: VecDeque<(Instant, QueryId)>,
}

impl Lookups {
    /// Lets a caller wait for a query that is under way already; gives it back if there is none or no room.
    pub(super) fn join(
        &mut self,
        subject: Subject,
        waiter: oneshot::Sender<Vec<Contact>>,
    ) -> Option<oneshot::Sender<Vec<Contact>>> {
        let lookup = self.subjects.get(&subject).and_then(|query| self.queries.get_mut(query));
        match lookup {
            Some(lookup) if lookup.waiters.len() < WAITERS_MAX => {
                lookup.waiters.push(waiter);
                None
            }
            Some(_) | None => Some(waiter),
        }
    }

    /// Whether another query may start for `subject`.
    pub(super) fn has_room(&self, subject: Subject) -> bool {
        let room = self.queries.len() < LOOKUPS_MAX && self.deadlines.len() < DEADLINES_MAX;
        room && !self.subjects.contains_key(&subject)
    }

    /// Notes a query that has just started.
    pub(super) fn start(
        &mut self,
        query: QueryId,
        subject: Subject,
        waiter: oneshot::Sender<Vec<Contact>>,
        now: Instant,
    ) {
        let lookup = Lookup { subject, found: HashSet::new(), ended: false, waiters: vec![waiter] };
        self.queries.insert(query, lookup);
        self.subjects.insert(subject, query);
        self.deadlines.push_back((now + LOOKUP_DEADLINE, query));
    }

    /// The lookup of `query`, if callers still wait for it.
    pub(super) fn get_mut(&mut self, query: QueryId) -> Option<&mut Lookup> {
        self.queries.get_mut(&query)
    }

    /// Takes the lookup of `query` out, to answer it.
    pub(super) fn remove(&mut self, query: QueryId) -> Option<Lookup> {
        let lookup = self.queries.remove(&query)?;
        self.subjects.remove(&lookup.subject);
        Some(lookup)
    }

    /// Lookups whose query has ended and which wait for `peer` or others to be reached.
    pub(super) fn waiting_for(&self, peer: PeerId) -> Vec<QueryId> {
        let waiting = self.queries.iter().filter(|(_, lookup)| lookup.ended && lookup.found.contains(&peer));
        waiting.map(|(query, _)| *query).collect()
    }

    /// A peer cannot be reached: it is no answer.
    pub(super) fn unreachable(&mut self, peer: PeerId) {
        for lookup in self.queries.values_mut() {
            lookup.found.remove(&peer);
        }
    }

    /// When [`Self::overdue`] is worth a call.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Takes one lookup whose deadline is over at `now`.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<(QueryId, Lookup)> {
        while self.deadline().is_some_and(|deadline| deadline <= now) {
            let (_, query) = self.deadlines.pop_front()?;
            if let Some(lookup) = self.remove(query) {
                return Some((query, lookup));
            }
        }
        None
    }
}
