//! The board of a tracker: who resolves which tag, who waits for it, and what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::Record;
use crate::{
    digest::Digest,
    peer::PeerId,
    time::Time,
    wire::{Age, TagWord},
};

/// Limits of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Tags on the board.
    pub tags_max: usize,
    /// Those of them that one peer resolves or has resolved.
    pub tags_per_peer_max: usize,
    /// Peers that wait for one tag.
    pub waiting_max: usize,
    /// A duty that is not done after so long goes to the next who waits.
    pub duty_timeout: Duration,
    /// Longest time that a record stays.
    pub kept_max: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            tags_max: 8192,
            tags_per_peer_max: 1024,
            waiting_max: 20_000,
            duty_timeout: Duration::from_millis(1200),
            kept_max: Duration::from_secs(24 * 3600),
        }
    }
}

/// An order of the board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// To whom; possibly this node itself.
    pub peer: PeerId,
    /// About which tag.
    pub key: Digest,
    /// What.
    pub word: TagWord,
}

/// The board. Whom it has no room for it lets resolve by himself.
#[derive(Debug, Default)]
pub struct Board {
    bounds: Bounds,
    tags: BTreeMap<Digest, Tag>,
    /// Tags by the peer that answers for them.
    charged: BTreeMap<PeerId, usize>,
    /// When to look at which tag, one entry each.
    looks: BTreeSet<(Time, Digest)>,
}

#[derive(Debug)]
struct Tag {
    /// Who resolves it, or has.
    by: PeerId,
    /// When the duty or the record ends.
    until: Time,
    state: State,
}

#[derive(Debug)]
enum State {
    /// For how long the resolver believes what it finds out, and who waits for it, with the same.
    Resolving { believed: Age, waiting: BTreeMap<PeerId, Age> },
    /// The record, and how old it was when it came.
    Known { record: Arc<Record>, age: Age, heard: Time },
}

impl Board {
    /// A board that knows nothing yet.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// A peer asks for a tag, and would believe a record that is not older than `believed`. Orders are appended to `out`.
    pub fn wanted(&mut self, now: Time, peer: PeerId, key: Digest, believed: Age, out: &mut Vec<Send>) {
        let waiting_max = self.bounds.waiting_max;
        let duty = Send { peer, key, word: TagWord::Duty };
        match self.tags.get_mut(&key) {
            Some(Tag { state: State::Known { record, age, heard }, .. })
                if age.after(now.since(*heard)) <= believed =>
            {
                let word = TagWord::Record { record: Arc::clone(record), age: age.after(now.since(*heard)) };
                out.push(Send { peer, key, word });
                return;
            }
            Some(Tag { by, state: State::Resolving { waiting, .. }, .. }) if *by != peer => {
                if waiting.len() < waiting_max || waiting.contains_key(&peer) {
                    waiting.insert(peer, believed);
                    out.push(Send { peer, key, word: TagWord::Pending });
                } else {
                    out.push(duty);
                }
                return;
            }
            // It has the duty; the word may have been lost.
            Some(Tag { state: State::Resolving { .. }, .. }) => {}
            Some(Tag { state: State::Known { .. }, .. }) | None => {
                self.take(&key);
                if self.admits(peer) {
                    self.charge(now, peer, key, believed, BTreeMap::new());
                }
            }
        }
        out.push(duty);
    }

    /// Whether a peer is to resolve a tag. Whoever is not need not be listened to, nor its signatures checked.
    #[must_use]
    pub fn has_duty(&self, peer: PeerId, key: &Digest) -> bool {
        self.tags.get(key).is_some_and(|tag| tag.by == peer && matches!(tag.state, State::Resolving { .. }))
    }

    /// A peer has done its duty: `age` ago the origin was asked. The record bears its signature for this key.
    pub fn resolved(
        &mut self,
        now: Time,
        peer: PeerId,
        key: Digest,
        (record, age): (Arc<Record>, Age),
        out: &mut Vec<Send>,
    ) {
        if !self.has_duty(peer, &key) || record.resolver != peer {
            return;
        }
        let Some(Tag { state: State::Resolving { believed, waiting }, .. }) = self.take(&key) else { return };
        if age > believed {
            self.pass_on(now, key, waiting, out);
            return;
        }
        out.extend(waiting.into_keys().map(|peer| {
            let word = TagWord::Record { record: Arc::clone(&record), age };
            Send { peer, key, word }
        }));
        let left = Duration::from_millis(u64::from(believed.0 - age.0)).min(self.bounds.kept_max);
        self.put(key, Tag { by: peer, until: now + left, state: State::Known { record, age, heard: now } });
    }

    /// A peer cannot do its duty.
    pub fn dropped(&mut self, now: Time, peer: PeerId, key: Digest, out: &mut Vec<Send>) {
        if self.has_duty(peer, &key)
            && let Some(Tag { state: State::Resolving { waiting, .. }, .. }) = self.take(&key)
        {
            self.pass_on(now, key, waiting, out);
        }
    }

    /// The connection to a peer broke. Its records stay: they are signed.
    pub fn disconnected(&mut self, now: Time, peer: PeerId, out: &mut Vec<Send>) {
        let mut left = Vec::new();
        for (key, tag) in &mut self.tags {
            if let State::Resolving { waiting, .. } = &mut tag.state {
                waiting.remove(&peer);
                left.extend((tag.by == peer).then_some(*key));
            }
        }
        for key in left {
            self.dropped(now, peer, key, out);
        }
    }

    /// Time has passed.
    pub fn elapsed(&mut self, now: Time, out: &mut Vec<Send>) {
        while let Some((_, key)) = self.looks.first().copied().filter(|(due, _)| *due <= now) {
            if let Some(Tag { state: State::Resolving { waiting, .. }, .. }) = self.take(&key) {
                self.pass_on(now, key, waiting, out);
            }
        }
    }

    /// When [`Self::elapsed`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.looks.first().map(|(due, _)| *due)
    }

    /// How many tags are on the board.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Gives the duty to the next who waits. One at a time: an origin that has just failed is not asked by all at once.
    fn pass_on(&mut self, now: Time, key: Digest, mut waiting: BTreeMap<PeerId, Age>, out: &mut Vec<Send>) {
        while let Some((peer, believed)) = waiting.pop_first() {
            out.push(Send { peer, key, word: TagWord::Duty });
            if self.admits(peer) {
                self.charge(now, peer, key, believed, waiting);
                return;
            }
        }
    }

    fn admits(&self, peer: PeerId) -> bool {
        let charged = self.charged.get(&peer).copied().unwrap_or_default();
        self.tags.len() < self.bounds.tags_max && charged < self.bounds.tags_per_peer_max
    }

    fn charge(&mut self, now: Time, by: PeerId, key: Digest, believed: Age, waiting: BTreeMap<PeerId, Age>) {
        let until = now + self.bounds.duty_timeout;
        self.put(key, Tag { by, until, state: State::Resolving { believed, waiting } });
    }

    fn put(&mut self, key: Digest, tag: Tag) {
        self.looks.insert((tag.until, key));
        *self.charged.entry(tag.by).or_default() += 1;
        self.tags.insert(key, tag);
    }

    fn take(&mut self, key: &Digest) -> Option<Tag> {
        let tag = self.tags.remove(key)?;
        self.looks.remove(&(tag.until, *key));
        if let Some(charged) = self.charged.get_mut(&tag.by) {
            *charged -= 1;
            if *charged == 0 {
                self.charged.remove(&tag.by);
            }
        }
        Some(tag)
    }
}
