//! Uploads that are open: a number of ours for each place that an origin named.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{super::route::Target, kept::Kept};
use crate::origin::Location;

/// Most uploads open at once. Clients send a few layers side by side.
const UPLOADS: usize = 256;
/// How long an upload waits for its next request. Origins forget them too.
const IDLE: Duration = Duration::from_secs(3600);

/// An open upload.
#[derive(Debug)]
pub(super) struct Upload {
    upstream: String,
    repository: String,
    /// One request at a time.
    pub(super) state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Where it goes on at the origin.
    pub(super) location: Location,
    /// Bytes that the origin has, if that is known.
    pub(super) have: Option<u64>,
    /// What of it is kept here.
    pub(super) kept: Kept,
}

impl Upload {
    pub(super) fn new(target: &Target, state: State) -> Self {
        let (upstream, repository) = (target.upstream.cache_key().to_owned(), target.repository.clone());
        Self { upstream, repository, state: tokio::sync::Mutex::new(state) }
    }
}

/// All open uploads.
#[derive(Debug, Default)]
pub(in super::super) struct Uploads {
    open: Mutex<HashMap<String, (Instant, Arc<Upload>)>>,
}

impl Uploads {
    /// Takes an upload in and returns its number; none if too many are open.
    pub(super) fn insert(&self, upload: Upload) -> Option<String> {
        let mut open = self.open();
        let now = Instant::now();
        open.retain(|_, (used, upload)| now.saturating_duration_since(*used) < IDLE || Arc::strong_count(upload) > 1);
        if open.len() >= UPLOADS {
            return None;
        }
        // Not to be guessed: another user of this machine must not write into it.
        let id = rand::random::<[u8; 16]>().iter().fold(String::new(), |mut text, byte| {
            // Writing to a string cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        });
        open.insert(id.clone(), (now, Arc::new(upload)));
        Some(id)
    }

    /// The upload of this number, if it is of this repository.
    pub(super) fn find(&self, id: &str, target: &Target) -> Option<Arc<Upload>> {
        let mut open = self.open();
        let (used, upload) = open.get_mut(id)?;
        let ours = upload.upstream == target.upstream.cache_key() && upload.repository == target.repository;
        *used = Instant::now();
        ours.then(|| Arc::clone(upload))
    }

    pub(super) fn remove(&self, id: &str) {
        self.open().remove(id);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, (Instant, Arc<Upload>)>> {
        // Every critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
