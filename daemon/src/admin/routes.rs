//! What the admin interfaces answer.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use shoal_proto::status::{PullProgress, PullRequest};
use tokio::{runtime::Handle, sync::mpsc, task::spawn_blocking, time::timeout};

use super::AdminSources;
use crate::metrics;

/// Largest body of a request, in bytes.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// How long the node may take to describe itself.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// The dashboard loads nothing from elsewhere and shows whatever peers sent as text only.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the handlers share.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) sources: AdminSources,
    /// The runtime of the node, in whose context the closures run.
    pub(super) main: Handle,
}

/// The read-only interface.
pub(super) fn observe(sources: Sources) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_page))
        .route("/v1/status", get(status))
        .with_state(Arc::new(sources))
}

/// The interface that changes something.
pub(super) fn control(sources: Sources) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/pull", post(pull))
        .route("/v1/shutdown", post(shutdown))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(Arc::new(sources))
}

async fn page() -> Response {
    let headers = [(header::CONTENT_SECURITY_POLICY, PAGE_POLICY), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, Html(include_str!("page.html"))).into_response()
}

async fn ready(State(shared): State<Arc<Sources>>) -> Response {
    let sources = &shared.sources;
    if sources.shutdown.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response()
    } else if *sources.ready.borrow() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response()
    }
}

async fn metrics_page(State(shared): State<Arc<Sources>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], shared.sources.metrics.encode()).into_response()
}

async fn status(State(shared): State<Arc<Sources>>) -> Response {
    // Off this thread: a node that holds its lock for long must not silence the health checks.
    let report = spawn_blocking(move || {
        let _context = shared.main.enter();
        (shared.sources.status)()
    });
    match timeout(STATUS_DEADLINE, report).await {
        Ok(Ok(status)) => ([(header::CACHE_CONTROL, "no-store")], Json(status)).into_response(),
        Ok(Err(_)) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the status report failed; see the daemon's log"),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "the node did not describe itself in time"),
    }
}

async fn shutdown(State(shared): State<Arc<Sources>>) -> Response {
    tracing::info!("shutdown asked for on the control socket");
    shared.sources.shutdown.cancel();
    (StatusCode::ACCEPTED, Json(json!({ "shutting_down": true }))).into_response()
}

async fn pull(State(shared): State<Arc<Sources>>, body: Bytes) -> Response {
    let request: PullRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &format!("not a pull request: {error}")),
    };
    if shared.sources.shutdown.is_cancelled() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down");
    }
    let progress = {
        let _context = shared.main.enter();
        (shared.sources.pull)(request)
    };
    let lines = stream::unfold(Some(progress), next_line);
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

type Progress = Option<mpsc::Receiver<PullProgress>>;

/// The next line of a pull's answer. There is always a final one, so that the client can tell an end from a cut.
async fn next_line(progress: Progress) -> Option<(Result<Vec<u8>, Infallible>, Progress)> {
    let mut progress = progress?;
    let event = progress.recv().await.unwrap_or_else(|| PullProgress::Failed {
        message: String::from("the daemon gave the pull up without a reason; see its log"),
    });
    let mut line = serde_json::to_vec(&event).unwrap_or_else(|error| unreachable!("progress is plain data: {error}"));
    line.push(b'\n');
    Some((Ok(line), (!event.is_final()).then_some(progress)))
}

fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
