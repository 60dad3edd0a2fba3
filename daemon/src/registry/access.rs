//! Counters and one log line for every answer. Neither headers nor queries are logged: the first may hold credentials.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use hyper::{Method, StatusCode};
use tracing::{debug, info, warn};

/// What the front has done since the start. All but `connections` only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of bodies handed to clients' connections.
    pub bytes_to_clients: AtomicU64,
    /// Requests answered, with whatever status.
    pub requests: AtomicU64,
    /// Requests answered with 503: we, peers and origin together could not.
    pub unavailable: AtomicU64,
    /// Bodies that ended early, by us or by the client.
    pub cut_bodies: AtomicU64,
    /// Open client connections.
    pub connections: AtomicU64,
}

/// One answer under way; dropping it counts and logs it.
#[derive(Debug)]
pub(super) struct Record {
    counters: Arc<Counters>,
    started: Instant,
    method: Method,
    subject: String,
    status: StatusCode,
    promised: u64,
    sent: u64,
    error: Option<String>,
}

impl Record {
    /// `subject` is what was asked for, in parsed form, or empty.
    pub(super) fn new(
        counters: &Arc<Counters>,
        started: Instant,
        method: Method,
        subject: String,
        status: StatusCode,
    ) -> Self {
        let counters = Arc::clone(counters);
        Self { counters, started, method, subject, status, promised: 0, sent: 0, error: None }
    }

    /// Says how long the body is. A HEAD has none, whatever its length says.
    pub(super) fn promise(&mut self, bytes: u64) {
        self.promised = if self.method == Method::HEAD { 0 } else { bytes };
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.counters.bytes_to_clients.fetch_add(bytes, Relaxed);
    }

    pub(super) fn failed(&mut self, error: &io::Error) {
        self.error = Some(error.to_string());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { counters, started, method, subject, status, promised, sent, error } = self;
        let (status, milliseconds) = (status.as_u16(), started.elapsed().as_millis());
        counters.requests.fetch_add(1, Relaxed);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            counters.unavailable.fetch_add(1, Relaxed);
        }
        if sent < promised {
            counters.cut_bodies.fetch_add(1, Relaxed);
        }
        if let Some(error) = error {
            warn!(%method, subject, status, sent, promised, milliseconds, error, "body ended early");
        } else if sent < promised {
            debug!(%method, subject, status, sent, promised, milliseconds, "client left before the end");
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            warn!(%method, subject, status, bytes = sent, milliseconds, "answered");
        } else if *method == Method::GET && !subject.is_empty() {
            info!(%method, subject, status, bytes = sent, milliseconds, "answered");
        } else {
            debug!(%method, subject, status, bytes = sent, milliseconds, "answered");
        }
    }
}
