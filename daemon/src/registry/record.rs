//! Figures and one log line for every answer. Neither headers nor queries are logged: the first may hold credentials.

use std::{io, sync::Arc, time::Instant};

use hyper::{Method, StatusCode};
use tracing::{debug, info, warn};

use crate::{
    metrics::{Held, Metrics},
    origin::Kind,
};

/// One answer under way; dropping it counts and logs it.
#[derive(Debug)]
pub(super) struct Record {
    metrics: Arc<Metrics>,
    started: Instant,
    method: Method,
    subject: String,
    status: StatusCode,
    /// What the body is a part of; none for refusals and the like.
    content: Option<Kind>,
    promised: u64,
    sent: u64,
    /// Counts the client among the readers of blobs.
    reader: Option<Held>,
    error: Option<String>,
}

impl Record {
    /// `subject` is what was asked for, in parsed form, or empty; `kind` is what kind of content that is, if it is any.
    pub(super) fn new(
        metrics: &Arc<Metrics>,
        started: Instant,
        method: Method,
        (subject, kind): (String, Option<Kind>),
        status: StatusCode,
    ) -> Self {
        let metrics = Arc::clone(metrics);
        let content = kind.filter(|_| status.is_success());
        Self { metrics, started, method, subject, status, content, promised: 0, sent: 0, reader: None, error: None }
    }

    /// Says how long the body is. A HEAD has none, whatever its length says.
    pub(super) fn promise(&mut self, bytes: u64) {
        self.promised = if self.method == Method::HEAD { 0 } else { bytes };
        let reads = self.promised > 0 && self.content == Some(Kind::Blob);
        self.reader = reads.then(|| Held::new(&self.metrics.open_readers));
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        if self.sent == 0 && self.content == Some(Kind::Blob) {
            self.metrics.first_byte_seconds.observe(self.started.elapsed().as_secs_f64());
        }
        self.sent += bytes;
        if self.content.is_some() {
            self.metrics.bytes_to_clients.inc_by(bytes);
        }
    }

    pub(super) fn failed(&mut self, error: &io::Error) {
        self.error = Some(error.to_string());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { metrics, started, method, subject, status, promised, sent, error, .. } = self;
        let (status, milliseconds) = (status.as_u16(), started.elapsed().as_millis());
        metrics.count_response(status);
        if sent < promised {
            metrics.cut_bodies.inc();
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
