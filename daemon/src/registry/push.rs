//! Pushing through to the origin, for upstreams that allow it: `/v2/<name>/blobs/uploads/` and `PUT` of manifests.
//!
//! Bodies stream to the origin; nothing is answered before it has answered. On the way past, the bytes are kept, so that
//! what was pushed from here is served from here. Clients never see where the origin keeps an upload: they get a number
//! of ours. Whoever may push is trusted with the node's account, hence only connections on loopback may.

mod asked;
mod kept;
mod manifest;
mod turn;
mod uploads;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body::Body as _;
use http_body_util::{BodyDataStream, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RANGE, WARNING},
};
use shoal_proto::digest::Digest;
use tokio::{task::spawn_blocking, time::timeout};
use url::form_urlencoded;

pub(super) use self::{asked::Asked, uploads::Uploads};
use self::{
    asked::What,
    kept::Kept,
    turn::Turn,
    uploads::{State, Upload},
};
use super::{
    Inner,
    body::Body,
    content::Bytestream,
    error::{Code, Failure},
    respond::DOCKER_CONTENT_DIGEST,
    route::Target,
};
use crate::{
    access::Scope,
    node::Want,
    origin::{Kind, OriginError, Payload, Push, Pushed, Step},
    store::Draft,
};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// How long the last answer about a blob waits until it is proven and shown to peers; it is kept in any case.
const KEEP_PATIENCE: Duration = Duration::from_secs(10);
/// How long a request waits for the one before it of the same upload.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes that are read of a body that is refused: a manifest that is too large, or a chunk.
const DRAIN_BYTES: usize = 16 << 20;

/// The body of a request.
pub(super) type Received = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request of a push.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    /// Gone once somebody reads it.
    pub(super) body: Option<Received>,
}

impl Call<'_> {
    /// Bytes in the body, if the client says how many.
    fn length(&self) -> Option<u64> {
        self.body.as_ref().map_or(Some(0), |body| body.size_hint().exact())
    }
}

/// Answers a request of a push.
pub(super) async fn answer(
    inner: &Inner,
    target: &Target,
    asked: &Asked,
    mut call: Call<'_>,
) -> Result<Response<Body>, Failure> {
    let answered = answered(inner, target, asked, &mut call).await;
    if let Some(body) = call.body {
        drain(body).await;
    }
    answered
}

/// Reads what nobody wanted: a client that is still sending when the connection ends sees a reset and no answer.
async fn drain(body: Received) {
    let rest = BodyDataStream::new(body).take_while(|piece| std::future::ready(piece.is_ok()));
    let mut left = DRAIN_BYTES;
    let enough = rest.take_while(|piece| {
        left = left.saturating_sub(piece.as_ref().map_or(left, Bytes::len));
        std::future::ready(left > 0)
    });
    timeout(TURN_PATIENCE, enough.for_each(|_| std::future::ready(()))).await.ok();
}

async fn answered(
    inner: &Inner,
    target: &Target,
    asked: &Asked,
    call: &mut Call<'_>,
) -> Result<Response<Body>, Failure> {
    match &asked.what {
        What::Begin { digest, .. } => begin(inner, target, asked, *digest, call).await,
        What::Go { id, digest } => {
            let upload = inner.uploads.find(id, target).ok_or_else(unknown_upload)?;
            let turn = timeout(TURN_PATIENCE, upload.state.lock()).await;
            let mut state = turn.map_err(|_| Failure::unavailable("another request of this upload is under way"))?;
            Turn { inner, target, asked, id, digest: *digest, method: call.method }.take(&mut state, call).await
        }
        What::Manifest(reference) => manifest::answer(inner, target, asked, reference, call).await,
    }
}

async fn begin(
    inner: &Inner,
    target: &Target,
    asked: &Asked,
    digest: Option<Digest>,
    call: &mut Call<'_>,
) -> Result<Response<Body>, Failure> {
    let What::Begin { query, from, .. } = &asked.what else { return Err(unknown_upload()) };
    let kept = Kept::default();
    // Without a digest a body means nothing here.
    let payload = match digest {
        Some(_) => payload(inner, call, &kept).await,
        None => Payload::Empty,
    };
    let step = Step::Begin { query: query.clone(), from: from.clone() };
    let mut push = request(target, step, payload, call.headers);
    push.content_type = call.headers.get(CONTENT_TYPE).cloned();
    let pushed = send(inner, push).await?;
    match pushed.status {
        StatusCode::CREATED => {
            if let Some(draft) = kept.take().await
                && let Some(digest) = digest
            {
                keep(inner, draft, target.want(&digest, Kind::Blob), call.headers).await;
            }
            // Of a mount the client knows the digest, or the origin says it.
            let content = digest.or(asked.mount()).or(pushed.digest);
            Ok(created(asked, target, &pushed, content))
        }
        StatusCode::ACCEPTED => {
            let location = pushed.location.clone().ok_or_else(|| odd(target, "it begins an upload nowhere"))?;
            let upload = Upload::new(target, State { location, have: Some(0), kept: Kept::default() });
            let id = inner.uploads.insert(upload).ok_or_else(|| Failure::unavailable("too many uploads are open"))?;
            Ok(accepted(asked, target, &id, &pushed, None))
        }
        _ => Err(refused(target, &pushed, Code::BlobUploadInvalid)),
    }
}

fn request(target: &Target, step: Step, payload: Payload, headers: &HeaderMap) -> Push {
    Push {
        upstream: Arc::clone(&target.upstream),
        repository: target.repository.clone(),
        step,
        payload,
        content_type: None,
        content_range: None,
        // Nobody here asks for an account: whoever sends one means it for the origin.
        authorization: headers.get(AUTHORIZATION).cloned(),
    }
}

async fn send(inner: &Inner, push: Push) -> Result<Pushed, Failure> {
    inner.content.push(push).await.map_err(|error| match &error {
        // Unlike a pull, a push has nowhere to fall back to: the truth helps more. Never a challenge.
        OriginError::Denied { host } => {
            Failure::new(StatusCode::FORBIDDEN, Code::Denied, format!("pushing is denied at origin {host}"))
        }
        OriginError::NotFound { .. }
        | OriginError::RateLimited { .. }
        | OriginError::Unavailable { .. }
        | OriginError::Protocol { .. } => Failure::from_origin_as(&error, Code::NameUnknown),
    })
}

/// The body of the client, on its way to the origin and to the disk.
async fn payload(inner: &Inner, call: &mut Call<'_>, kept: &Kept) -> Payload {
    let length = call.length();
    let Some(body) = call.body.take().filter(|_| length != Some(0)) else { return Payload::Empty };
    kept.begin(&inner.content).await;
    let kept = kept.clone();
    let pieces: Bytestream = BodyDataStream::new(body)
        .then(move |piece| {
            let kept = kept.clone();
            async move {
                let piece = piece?;
                kept.add(piece.clone()).await;
                Ok(piece)
            }
        })
        .boxed();
    Payload::Stream(pieces, length)
}

/// Keeps what was pushed by a request with these headers. It is no failure of the push if that fails.
async fn keep(inner: &Inner, draft: Draft, want: Want, headers: &HeaderMap) {
    let digest = want.digest;
    // What went in by the client's own account is perhaps not for whoever this node would show it to.
    let is_foreign = want.scope != Scope::Private && headers.contains_key(AUTHORIZATION);
    let content = Arc::clone(&inner.content);
    // Goes on when the client goes away, or has waited long enough.
    let task = tokio::spawn(async move {
        if is_foreign && let Err(error) = content.size(want.source.clone(), digest).await {
            tracing::info!(%digest, %error, "pushed by a client's own account and not kept here: this node cannot have it");
            // Its file is deleted, which may take a while.
            spawn_blocking(move || drop(draft)).await.ok();
            return;
        }
        if let Err(error) = content.keep(draft, want).await {
            tracing::warn!(%digest, %error, "pushed, but not kept here");
        }
    });
    timeout(KEEP_PATIENCE, task).await.ok();
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The blob is at the origin.
fn created(asked: &Asked, target: &Target, pushed: &Pushed, digest: Option<Digest>) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    if let Some(digest) = digest {
        put(&mut response, LOCATION, &asked.path(target, &format!("blobs/{digest}")));
        put(&mut response, DOCKER_CONTENT_DIGEST, &digest.to_string());
    }
    warn(&mut response, pushed);
    response
}

/// The upload goes on.
fn accepted(asked: &Asked, target: &Target, id: &str, pushed: &Pushed, status: Option<StatusCode>) -> Response<Body> {
    let mut response = empty(status.unwrap_or(StatusCode::ACCEPTED));
    place(&mut response, asked, target, id, pushed.last);
    if let Some(length) = pushed.chunk_min_length {
        response.headers_mut().insert(CHUNK_MIN_LENGTH, length.into());
    }
    warn(&mut response, pushed);
    response
}

/// Where an upload goes on, and how much of it is there.
fn place(response: &mut Response<Body>, asked: &Asked, target: &Target, id: &str, last: Option<u64>) {
    put(response, LOCATION, &asked.path(target, &format!("blobs/uploads/{id}")));
    put(response, UPLOAD_UUID, id);
    if let Some(last) = last {
        put(response, RANGE, &format!("0-{last}"));
    }
}

fn warn(response: &mut Response<Body>, pushed: &Pushed) {
    for warning in &pushed.warnings {
        response.headers_mut().append(WARNING, warning.clone());
    }
}

/// Names, digests and numbers are header-safe.
fn put(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A refusal of the origin in our words: its code, if the specification knows it, and none of its text.
fn refused(target: &Target, pushed: &Pushed, otherwise: Code) -> Failure {
    let code = pushed.code.as_deref().and_then(Code::known).unwrap_or(match pushed.status {
        StatusCode::METHOD_NOT_ALLOWED => Code::Unsupported,
        StatusCode::PAYLOAD_TOO_LARGE => Code::SizeInvalid,
        _ => otherwise,
    });
    Failure::new(pushed.status, code, format!("refused by origin {}", target.upstream.name))
}

fn odd(target: &Target, why: &str) -> Failure {
    Failure::unavailable(format!("origin {} answered as no registry should: {why}", target.upstream.name))
}

fn unknown_upload() -> Failure {
    Failure::not_found(Code::BlobUploadUnknown, "this upload is not known here: begin anew")
}

/// `?ns=`, if the client names its registry so.
fn namespace(target: &Target) -> String {
    let Some(namespace) = &target.namespace else { return String::new() };
    let query = form_urlencoded::Serializer::new(String::from("?")).append_pair("ns", namespace).finish();
    query.replacen("?&", "?", 1)
}
