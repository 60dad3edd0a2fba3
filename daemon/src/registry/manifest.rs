//! `/v2/<name>/manifests/<reference>`: a tag is resolved at the origin, the document comes by digest from wherever it is.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use hyper::{
    HeaderMap, Response,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue, WARNING},
};
use shoal_proto::digest::Digest;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Inner, Request,
    answers::Told,
    blob,
    body::Body,
    content::TagQuestion,
    error::{Code, Failure},
    media,
    name::Reference,
    respond,
    route::Target,
};
use crate::{
    node::TagAnswer,
    origin::{Kind, Resolved, warning},
};

/// Largest manifest, in bytes; containerd refuses more than this too.
pub(super) const MANIFEST_BYTES: u64 = 4 << 20;
/// Most memory that manifests on their way to clients may take.
const BUDGET_BYTES: u64 = 64 << 20;
/// The unit in which that memory is handed out.
pub(super) const PERMIT_BYTES: u64 = 1 << 10;
/// Permits for [`Inner::manifests`].
pub(super) const PERMITS: usize = (BUDGET_BYTES / PERMIT_BYTES) as usize;
/// Longest `Accept`, all lines together, in bytes. The longest known client sends some 700.
const ACCEPT_BYTES: usize = 4096;

/// A manifest in memory, proven and of a known type.
struct Manifest {
    bytes: Bytes,
    media_type: String,
    permit: OwnedSemaphorePermit,
}

/// Answers a GET or HEAD.
pub(super) async fn answer(
    inner: &Inner,
    target: &Target,
    reference: &Reference,
    request: &Request<'_>,
) -> Result<Response<Body>, Failure> {
    match reference {
        Reference::Digest(digest) => {
            if request.head && target.upstream.push {
                blob::there(inner, &target.want(digest, Kind::Manifest), request).await?;
            }
            let manifest = read(inner, target, digest, None, request).await?;
            document(request, digest, manifest)
        }
        Reference::Tag(tag) => by_tag(inner, target, tag, request).await,
    }
}

async fn by_tag(inner: &Inner, target: &Target, tag: &str, request: &Request<'_>) -> Result<Response<Body>, Failure> {
    let mut question = TagQuestion {
        upstream: Arc::clone(&target.upstream),
        repository: target.repository.clone(),
        tag: tag.to_owned(),
        accept: accept(request.headers)?,
        own: false,
    };
    let (mut told, mut answered) = ask(inner, target, &question, request).await?;
    if answered.is_err() && told.value.resolver.is_some() && told.stale.is_none() {
        // What another node says is not worth a failed pull.
        question.own = true;
        (told, answered) = ask(inner, target, &question, request).await?;
    }
    let mut response = answered?;
    let stale = told.stale.and_then(|age| {
        let (host, age) = (&target.upstream.name, age.as_secs());
        warning(&format!("{host} cannot be asked: this is what the tag pointed at {age} s ago"))
    });
    for warning in stale.into_iter().chain(told.value.resolved.warnings) {
        response.headers_mut().append(WARNING, warning);
    }
    Ok(response)
}

/// Finds out what a tag points at, and answers for that.
async fn ask(
    inner: &Inner,
    target: &Target,
    question: &TagQuestion,
    request: &Request<'_>,
) -> Result<(Told<TagAnswer>, Result<Response<Body>, Failure>), Failure> {
    let told = inner.tags.resolve(&inner.content, question.clone()).await;
    let told = told.map_err(|error| Failure::from_origin(&error, Kind::Manifest))?;
    let answered = resolved(inner, target, &told.value.resolved, request).await;
    if answered.is_err() && told.stale.is_none() {
        // The tag may have moved, or the answer was a lie: ask again next time.
        inner.tags.forget(question);
    }
    Ok((told, answered))
}

/// Answers for what a tag points at.
async fn resolved(
    inner: &Inner,
    target: &Target,
    resolved: &Resolved,
    request: &Request<'_>,
) -> Result<Response<Body>, Failure> {
    let media_type = media::essence(&resolved.media_type).ok_or_else(|| {
        Failure::unavailable(format!("origin {} told no media type for the tag", target.upstream.name))
    })?;
    check_size(resolved.size)?;
    if request.head {
        return head(request, &resolved.digest, resolved.size, &media_type);
    }
    if respond::not_modified(request.headers, &resolved.digest) {
        return Ok(respond::unmodified(&resolved.digest));
    }
    let manifest = read(inner, target, &resolved.digest, Some(&media_type), request).await?;
    document(request, &resolved.digest, manifest)
}

/// Reads a manifest whole and tells its type, against what the origin `told` for the tag.
async fn read(
    inner: &Inner,
    target: &Target,
    digest: &Digest,
    told: Option<&str>,
    request: &Request<'_>,
) -> Result<Manifest, Failure> {
    let want = target.want(digest, Kind::Manifest);
    let opened = inner.content.open(want, 0, request.deadline.remaining()).await;
    let opened = opened.map_err(|error| Failure::from_open(&error, Kind::Manifest))?;
    let size = opened.size;
    check_size(size)?;
    // At most 4096 permits, far below what a u32 holds.
    let permits = u32::try_from(size.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    let permit = Arc::clone(&inner.manifests).acquire_many_owned(permits).await;
    let permit = permit.map_err(|_| Failure::unavailable("this node is shutting down"))?;
    let mut bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or_default());
    let mut parts = opened.read(0..size);
    while (bytes.len() as u64) < size {
        match parts.next().await {
            Some(Ok(part)) => bytes.extend_from_slice(&part),
            Some(Err(error)) => return Err(Failure::unavailable(format!("the manifest broke off: {error}"))),
            None => return Err(Failure::unavailable("the manifest broke off")),
        }
    }
    if bytes.len() as u64 != size {
        return Err(Failure::unavailable("the manifest is longer than announced"));
    }
    let media_type = media::media_type(&bytes, told)
        .map_err(|error| Failure::bad_request(Code::ManifestInvalid, error.to_string()))?;
    Ok(Manifest { bytes: bytes.freeze(), media_type, permit })
}

fn check_size(size: u64) -> Result<(), Failure> {
    if size <= MANIFEST_BYTES {
        return Ok(());
    }
    Err(Failure::bad_request(
        Code::ManifestInvalid,
        format!("the manifest has {size} bytes, more than {MANIFEST_BYTES}"),
    ))
}

fn document(request: &Request<'_>, digest: &Digest, manifest: Manifest) -> Result<Response<Body>, Failure> {
    if respond::not_modified(request.headers, digest) {
        return Ok(respond::unmodified(digest));
    }
    let mut response = head(request, digest, manifest.bytes.len() as u64, &manifest.media_type)?;
    if !request.head {
        *response.body_mut() = Body::full(manifest.bytes).holding(manifest.permit);
    }
    Ok(response)
}

/// The answer without its body.
fn head(request: &Request<'_>, digest: &Digest, size: u64, media_type: &str) -> Result<Response<Body>, Failure> {
    if respond::not_modified(request.headers, digest) {
        return Ok(respond::unmodified(digest));
    }
    let mut response = respond::content(digest, size);
    let media_type = HeaderValue::from_str(media_type)
        .map_err(|_| Failure::bad_request(Code::ManifestInvalid, "the manifest's mediaType is malformed"))?;
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    Ok(response)
}

/// All Accept lines as one value: podman sends one for each type. Whoever accepts anything is given all that containers
/// are made of, because some registries answer a bare `*/*` with 404.
fn accept(headers: &HeaderMap) -> Result<String, Failure> {
    let mut accept = String::new();
    for line in headers.get_all(ACCEPT) {
        let line = line.to_str().map_err(|_| bad_accept())?.trim();
        if line.is_empty() {
            continue;
        }
        if !accept.is_empty() {
            accept.push_str(", ");
        }
        accept.push_str(line);
    }
    if accept.len() > ACCEPT_BYTES {
        return Err(bad_accept());
    }
    if accept.is_empty() || accept == "*/*" {
        let known = [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST, "*/*"];
        return Ok(known.join(", "));
    }
    Ok(accept)
}

fn bad_accept() -> Failure {
    Failure::bad_request(Code::Unsupported, "the Accept header is malformed or too long")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (ACCEPT, HeaderValue::from_str(line).unwrap())).collect()
    }

    #[test]
    fn several_accept_lines_are_one_value() {
        assert_eq!(accept(&headers(&["a/b", "", " c/d;q=0.5, e/f "])).unwrap(), "a/b, c/d;q=0.5, e/f");
    }

    #[test]
    fn whoever_accepts_anything_is_given_every_known_type() {
        for lines in [&[][..], &["*/*"], &[""]] {
            let accept = accept(&headers(lines)).unwrap();
            assert!(accept.starts_with(media::OCI_INDEX) && accept.ends_with("*/*"), "{accept}");
        }
    }

    #[test]
    fn an_endless_accept_is_refused() {
        let line = "a/b, ".repeat(200);
        assert!(accept(&headers(&[line.as_str(); 3])).is_ok());
        assert_eq!(accept(&headers(&[line.as_str(); 5])).unwrap_err().status, 400);
    }
}
