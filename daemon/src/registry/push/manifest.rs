//! `PUT /v2/<name>/manifests/<reference>`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use shoal_proto::digest::{Algorithm, Digest};
use tokio::time::timeout;

use super::{
    super::{
        Inner,
        body::Body,
        error::{Code, Failure},
        manifest::{MANIFEST_BYTES, PERMIT_BYTES},
        media::{self, MediaError},
        name::Reference,
        respond::DOCKER_CONTENT_DIGEST,
        route::Target,
    },
    Asked, Call, Received, SUBJECT, empty, keep, odd, put, refused, request, send, warn,
};
use crate::{
    node::Want,
    origin::{Kind, Payload, Step},
};

/// How long a manifest may take to come in.
const READ_PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn answer(
    inner: &Inner,
    target: &Target,
    asked: &Asked,
    reference: &Reference,
    call: &mut Call<'_>,
) -> Result<Response<Body>, Failure> {
    let size = call.length().unwrap_or(MANIFEST_BYTES);
    if size > MANIFEST_BYTES {
        return Err(too_large());
    }
    // At most 4096 permits, far below what a u32 holds.
    let permits = u32::try_from(size.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    let permit = Arc::clone(&inner.manifests).acquire_many_owned(permits).await;
    let _permit = permit.map_err(|_| Failure::unavailable("this node is shutting down"))?;
    let bytes = match call.body.take() {
        Some(body) => read(body).await?,
        None => Bytes::new(),
    };
    let told = call.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let servable = check(&bytes, told)?;
    let (written, given) = match reference {
        Reference::Tag(tag) => (tag.clone(), None),
        Reference::Digest(digest) => (digest.to_string(), Some(*digest)),
    };
    if given.is_some_and(|given| given != Digest::of(given.algorithm(), &bytes)) {
        return Err(Failure::bad_request(Code::DigestInvalid, "the manifest does not match the digest in the path"));
    }
    let step = Step::Manifest { reference: written.clone() };
    let mut push = request(target, step, Payload::Bytes(bytes.clone()), call.headers);
    push.content_type = call.headers.get(CONTENT_TYPE).cloned();
    let pushed = send(inner, push).await;
    // Whatever became of it: nobody knows what the origin has now.
    inner.tags.forget_repository(target);
    inner.lists.forget_repository(target);
    let pushed = pushed?;
    if pushed.status != StatusCode::CREATED {
        return Err(refused(target, &pushed, Code::ManifestInvalid));
    }
    let algorithm = given.or(pushed.digest).map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let digest = Digest::of(algorithm, &bytes);
    if pushed.digest.is_some_and(|said| said.algorithm() == algorithm && said != digest) {
        return Err(odd(target, "it took the manifest for another"));
    }
    if servable {
        keep_document(inner, target.want(&digest, Kind::Manifest), bytes, call.headers).await;
    }
    let mut response = empty(StatusCode::CREATED);
    put(&mut response, LOCATION, &asked.path(target, &format!("manifests/{written}")));
    put(&mut response, DOCKER_CONTENT_DIGEST, &digest.to_string());
    if let Some(subject) = &pushed.subject {
        put(&mut response, SUBJECT, &subject.to_string());
    }
    warn(&mut response, &pushed);
    Ok(response)
}

async fn read(body: Received) -> Result<Bytes, Failure> {
    let limit = usize::try_from(MANIFEST_BYTES).unwrap_or(usize::MAX);
    match timeout(READ_PATIENCE, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::bad_request(Code::ManifestInvalid, "the manifest broke off")),
        Err(_) => Err(Failure::unavailable("the manifest did not come in time")),
    }
}

/// Whether this node would serve it. What two clients could read differently is refused at once; what is merely of no kind that
/// we know is the origin's to judge.
fn check(bytes: &[u8], told: Option<&str>) -> Result<bool, Failure> {
    match media::media_type(bytes, told) {
        Ok(_) => Ok(true),
        Err(error @ (MediaError::Ambiguous | MediaError::Mismatch(_))) => {
            Err(Failure::bad_request(Code::ManifestInvalid, error.to_string()))
        }
        Err(
            MediaError::Json(_)
            | MediaError::Depth
            | MediaError::Schema1
            | MediaError::Shapeless
            | MediaError::Malformed,
        ) => Ok(false),
    }
}

async fn keep_document(inner: &Inner, want: Want, bytes: Bytes, headers: &HeaderMap) {
    let kept = super::Kept::default();
    kept.begin(&inner.content).await;
    kept.add(bytes).await;
    if let Some(draft) = kept.take().await {
        keep(inner, draft, want, headers).await;
    }
}

fn too_large() -> Failure {
    let message = format!("the manifest has more than {MANIFEST_BYTES} bytes");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message)
}
