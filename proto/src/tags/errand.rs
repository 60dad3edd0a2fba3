//! The errand of a node that wants to know what a tag points at.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::Record;
use crate::{
    peer::{Contact, PeerId},
    wire::{Age, TagWord},
};

/// Trackers that are asked before the node asks the origin itself.
const TRACKERS_MAX: usize = 2;
/// How long each may take for its first word, the handshake included.
const ANSWER: Duration = Duration::from_millis(400);
/// When the record of another node is not waited for any more, from the errand's begin: a client's patience has to do for
/// the origin too.
const PATIENCE: Duration = Duration::from_millis(2200);

/// One question about one tag, from the first tracker to its end.
#[derive(Debug)]
pub struct Errand {
    believed: Age,
    trackers: VecDeque<Contact>,
    asked: Option<PeerId>,
    /// The tracker said that another node resolves the tag.
    pending: bool,
    until: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask this tracker, then listen to it alone.
    Ask(Contact),
    /// Listen until [`Errand::deadline`].
    Listen,
    /// Ask the origin; a tracker that is named waits to hear what comes of it. The errand is over.
    Resolve(Option<PeerId>),
    /// Take this record, of this age. The errand is over.
    Take(Arc<Record>, Age),
}

impl Errand {
    /// An errand to these trackers, first choice first. Records up to the age of `believed` will do.
    #[must_use]
    pub fn new(believed: Age, trackers: impl IntoIterator<Item = Contact>) -> Self {
        let trackers = trackers.into_iter().take(TRACKERS_MAX).collect();
        Self { believed, trackers, asked: None, pending: false, until: Duration::ZERO }
    }

    /// Until when to listen, counted as `now` of the other functions is: from when the errand began.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.until
    }

    /// Goes to the first tracker; to the next one where a tracker cannot be reached, breaks off, is silent until the
    /// deadline, or sent a record that does not hold.
    pub fn go_on(&mut self, now: Duration) -> Next {
        let Some(tracker) = self.trackers.pop_front().filter(|_| !self.pending) else { return Next::Resolve(None) };
        self.asked = Some(tracker.peer);
        self.until = now + ANSWER;
        Next::Ask(tracker)
    }

    /// The tracker said something.
    pub fn heard(&mut self, now: Duration, word: TagWord) -> Next {
        match word {
            TagWord::Duty => Next::Resolve(self.asked),
            TagWord::Record { record, age } if age <= self.believed => Next::Take(record, age),
            // Whoever believes less long than the others has to ask by itself.
            TagWord::Record { .. } => Next::Resolve(None),
            TagWord::Pending if !self.pending => {
                self.pending = true;
                self.until = PATIENCE.max(now);
                Next::Listen
            }
            // Said twice, it makes nobody wait longer; the others are for trackers.
            TagWord::Pending | TagWord::Wanted { .. } | TagWord::Resolved { .. } | TagWord::Dropped => Next::Listen,
        }
    }
}
