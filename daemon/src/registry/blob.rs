//! `/v2/<name>/blobs/<digest>`: whole or one range, from the store or while it is still arriving.

use std::{io, ops::Range, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryFutureExt as _};
use hyper::{
    Response, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE},
};
use shoal_proto::digest::Digest;
use tokio::time::timeout;

use super::{
    Inner, Request,
    body::Body,
    content::{Bytestream, Content, Opened},
    error::{Code, Failure},
    range::Wanted,
    respond,
    route::Target,
};
use crate::{
    node::Want,
    origin::{Kind, OriginError},
};

/// Longest pause in a body before it is ended. The node's own deadlines are shorter; this is the last resort.
const IDLE: Duration = Duration::from_secs(60);
/// The same while a whole blob is being sealed before its first byte may go out. containerd gives up after 300 s.
const IDLE_UNTIL_SEALED: Duration = Duration::from_secs(280);

/// Answers a GET or HEAD.
pub(super) async fn answer(
    inner: &Inner,
    target: &Target,
    digest: &Digest,
    request: &Request<'_>,
) -> Result<Response<Body>, Failure> {
    let want = target.want(digest, Kind::Blob);
    if respond::not_modified(request.headers, digest) {
        size(inner, want, request).await?;
        return Ok(respond::unmodified(digest));
    }
    if request.head {
        let known = if target.upstream.push { there(inner, &want, request).await? } else { None };
        let size = match known {
            Some(size) => size,
            None => size(inner, want, request).await?,
        };
        return Ok(head(digest, size));
    }
    let wanted = if respond::range_applies(request.headers, digest) {
        Wanted::parse(request.headers.get(RANGE))
    } else {
        Wanted::Whole
    };
    if wanted == Wanted::Unsatisfiable {
        return Ok(unsatisfiable(size(inner, want, request).await?));
    }
    let sealed = inner.content.sealed_size(digest);
    let offset = sealed.and_then(|size| wanted.of(size)).map_or_else(|| wanted.offset(), |range| range.start);
    let opened = inner.content.open(want.clone(), offset, request.deadline.remaining()).await;
    let opened = opened.map_err(|error| Failure::from_open(&error, Kind::Blob))?;
    let size = opened.size;
    let Some(range) = wanted.of(size) else { return Ok(unsatisfiable(size)) };
    let mut response = head(digest, size);
    if wanted != Wanted::Whole {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let span = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        response.headers_mut().insert(CONTENT_RANGE, header(&span));
        response.headers_mut().insert(CONTENT_LENGTH, (range.end - range.start).into());
    }
    *response.body_mut() = body(inner, want, opened, range, sealed.is_none());
    Ok(response)
}

fn body(inner: &Inner, want: Want, opened: Opened, range: Range<u64>, arriving: bool) -> Body {
    let length = range.end - range.start;
    if length == 0 {
        return Body::empty();
    }
    if inner.stream_sealed && arriving {
        let stream = once_sealed(Arc::clone(&inner.content), want, opened, range, inner.answer_deadline);
        return Body::stream(stream, length, IDLE_UNTIL_SEALED);
    }
    Body::stream(opened.read(range), length, IDLE)
}

/// Reads a range, but nothing before the whole blob is sealed. The last chunk comes out of the node only then, so its
/// last byte is the sign.
fn once_sealed(
    content: Arc<dyn Content>,
    want: Want,
    arriving: Opened,
    range: Range<u64>,
    deadline: Duration,
) -> Bytestream {
    let sealed = async move {
        let end = arriving.size;
        let mut last = arriving.read(end.saturating_sub(1)..end);
        while let Some(part) = last.next().await {
            part?;
        }
        drop(last);
        let opened = content.open(want, range.start, deadline).await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(opened.read(range))
    };
    sealed.try_flatten_stream().boxed()
}

/// The size of content in its repository at the origin. Whoever pushes asks so whether to send it: that another repository has it,
/// or this node, is no answer. None if the origin cannot be asked.
pub(super) async fn there(inner: &Inner, want: &Want, request: &Request<'_>) -> Result<Option<u64>, Failure> {
    let asked = inner.content.size(want.source.clone(), want.digest);
    match timeout(request.deadline.remaining() / 2, asked).await {
        Ok(Err(error @ (OriginError::NotFound { .. } | OriginError::Denied { .. }))) => {
            Err(Failure::from_origin(&error, want.source.kind))
        }
        Ok(answer) => Ok(answer.ok()),
        Err(_) => Ok(None),
    }
}

/// The size of a blob: known here, told by the origin for the price of a HEAD, or else by whoever has the blob.
async fn size(inner: &Inner, want: Want, request: &Request<'_>) -> Result<u64, Failure> {
    if let Some(size) = inner.content.sealed_size(&want.digest) {
        let admitted = timeout(request.deadline.remaining(), inner.content.admit(want)).await;
        let admitted = admitted.map_err(|_| Failure::deadline(request.deadline.remaining()))?;
        return admitted.map(|()| size).map_err(|error| Failure::from_open(&error, Kind::Blob));
    }
    let asked = inner.content.size(want.source.clone(), want.digest);
    // Half of the time for the origin; if it is down, peers must still have time to answer.
    match timeout(request.deadline.remaining() / 2, asked).await {
        Ok(Ok(size)) => return Ok(size),
        Ok(Err(error @ (OriginError::NotFound { .. } | OriginError::Denied { .. }))) => {
            return Err(Failure::from_origin(&error, Kind::Blob));
        }
        Ok(Err(_)) | Err(_) => {}
    }
    let opened = inner.content.open(want, 0, request.deadline.remaining()).await;
    opened.map(|opened| opened.size).map_err(|error| Failure::from_open(&error, Kind::Blob))
}

fn head(digest: &Digest, size: u64) -> Response<Body> {
    let mut response = respond::content(digest, size);
    // Always this: a blob must not be run or rendered as what its sender would like it to be.
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    response
}

fn unsatisfiable(size: u64) -> Response<Body> {
    let message = format!("no byte of this range is within the blob's {size} bytes");
    let mut response = Failure::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, message).response();
    response.headers_mut().insert(CONTENT_RANGE, header(&format!("bytes */{size}")));
    response
}

/// Numbers and punctuation are header-safe; the fallback cannot be reached.
fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}
