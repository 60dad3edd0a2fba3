//! What this node announces, between the callers and the task.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::dht::Key;

/// Changes that may wait. A restart announces the whole store at once; beyond this, peers find out by asking.
const CHANGES_MAX: usize = 65_536;

/// Changes to what is announced, not yet made. The last word on a key counts, so that callers never wait and a key that
/// comes and goes costs one entry.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    changes: Mutex<HashMap<Key, bool>>,
    wake: Notify,
}

impl Announcements {
    /// Notes whether `key` is to be announced; false if there is no room.
    pub(super) fn set(&self, key: Key, announced: bool) -> bool {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() >= CHANGES_MAX && !changes.contains_key(&key) {
            tracing::debug!("too many announcements wait: one is dropped");
            return false;
        }
        changes.insert(key, announced);
        drop(changes);
        self.wake.notify_one();
        true
    }

    /// Takes one change.
    pub(super) fn take(&self) -> Option<(Key, bool)> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = *changes.keys().next()?;
        changes.remove_entry(&key)
    }

    /// Waits until a change was noted since the last call.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_a_key_counts() {
        let announcements = Announcements::default();
        assert!(announcements.set([1; 32], true));
        assert!(announcements.set([1; 32], false));
        assert_eq!(announcements.take(), Some(([1; 32], false)));
        assert_eq!(announcements.take(), None);
    }

    #[test]
    fn a_full_table_still_takes_changes_of_keys_that_it_has() {
        let announcements = Announcements::default();
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            key
        };
        assert!((0..CHANGES_MAX).all(|number| announcements.set(key(number), true)));
        assert!(!announcements.set(key(CHANGES_MAX), true));
        assert!(announcements.set(key(0), false));
    }
}
