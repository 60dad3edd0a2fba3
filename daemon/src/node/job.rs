//! What the loop keeps of a fetch and of its streams.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::flight::Flight;
use crate::{
    origin::{OriginError, Source},
    store::PartialBlob,
};

/// What the driver keeps of a fetch beside the machine.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) source: Option<Source>,
    pub(super) flight: Arc<Flight>,
    /// The blob's place in the store, once there is one; an error closes the channel's wait by `Some(None)`.
    pub(super) partial: watch::Sender<Option<Option<PartialBlob>>>,
    pub(super) from_origin: AtomicU64,
    pub(super) from_peers: AtomicU64,
    origin_error: Mutex<Option<OriginError>>,
    pub(super) started: Instant,
}

impl Job {
    pub(super) fn new(source: Option<Source>, flight: Arc<Flight>) -> Self {
        Self {
            source,
            flight,
            partial: watch::Sender::new(None),
            from_origin: AtomicU64::new(0),
            from_peers: AtomicU64::new(0),
            origin_error: Mutex::default(),
            started: Instant::now(),
        }
    }

    pub(super) fn note_origin_error(&self, error: OriginError) {
        *self.origin_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn origin_error(&self) -> Option<OriginError> {
        self.origin_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes that came from the origin and from peers.
    pub(super) fn sources(&self) -> (u64, u64) {
        (self.from_origin.load(Ordering::Relaxed), self.from_peers.load(Ordering::Relaxed))
    }

    pub(super) fn count_origin(&self, bytes: u64) {
        self.from_origin.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A stream from the origin.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) task: AbortHandle,
    pub(super) stopped: CancellationToken,
}

impl Stream {
    /// Ends it. From here on nothing that it has read is written.
    pub(super) fn stop(self) {
        self.stopped.cancel();
        self.task.abort();
    }
}
