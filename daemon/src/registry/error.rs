//! Failures as clients see them: a status and the OCI error envelope with a short, truthful message.
//!
//! The status steers the client more than the text. 404 and 503 make every client fall back (to the next mirror or the
//! origin); 401 would make containerd hand over the pod's credentials, 408 and 429 make clients hammer or sleep. So no
//! failure here is one of those, whatever the origin said.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;

use super::body::Body;
use crate::{
    node::OpenError,
    origin::{Kind, OriginError},
};

/// Longest message, in bytes: clients show it in one line, and what the origin said is not ours to amplify.
const MESSAGE_BYTES: usize = 256;

/// Codes of the error envelope. `Unavailable` is ours: the specification has none for "not now".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Code {
    /// The blob exists neither here nor at the origin.
    BlobUnknown,
    /// The upload is not as the registry wants it.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// Host or browser checks refused the request.
    Denied,
    /// The digest is malformed or of an unsupported algorithm.
    DigestInvalid,
    /// A manifest refers to a blob that the origin does not have.
    ManifestBlobUnknown,
    /// The content is not a manifest, or not the one it claims to be.
    ManifestInvalid,
    /// The manifest exists neither here nor at the origin.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The registry that was asked for is not on the allow-list.
    NameUnknown,
    /// The range lies outside the blob.
    SizeInvalid,
    /// Neither we, nor peers, nor the origin can answer now.
    Unavailable,
    /// No such operation here.
    Unsupported,
}

impl Code {
    /// A code that an origin wrote, if a client that pushes is to hear it.
    pub(super) fn known(text: &str) -> Option<Self> {
        Some(match text {
            "BLOB_UNKNOWN" => Self::BlobUnknown,
            "BLOB_UPLOAD_INVALID" => Self::BlobUploadInvalid,
            "BLOB_UPLOAD_UNKNOWN" => Self::BlobUploadUnknown,
            "DIGEST_INVALID" => Self::DigestInvalid,
            "MANIFEST_BLOB_UNKNOWN" => Self::ManifestBlobUnknown,
            "MANIFEST_INVALID" => Self::ManifestInvalid,
            "MANIFEST_UNKNOWN" => Self::ManifestUnknown,
            "NAME_INVALID" => Self::NameInvalid,
            "NAME_UNKNOWN" => Self::NameUnknown,
            "SIZE_INVALID" => Self::SizeInvalid,
            "UNSUPPORTED" => Self::Unsupported,
            _ => return None,
        })
    }
}

/// Why a request gets no content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// HTTP status.
    pub(super) status: StatusCode,
    /// Code in the envelope.
    pub(super) code: Code,
    /// What failed, where; one short line.
    pub(super) message: Cow<'static, str>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn bad_request(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn not_found(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
    }

    /// Nobody answered in time.
    pub(super) fn deadline(waited: Duration) -> Self {
        Self::unavailable(format!("no answer from peers or origin within {waited:?}"))
    }

    /// What the origin's refusal means for a client asking for `kind`.
    pub(super) fn from_origin(error: &OriginError, kind: Kind) -> Self {
        Self::from_origin_as(
            error,
            match kind {
                Kind::Blob => Code::BlobUnknown,
                Kind::Manifest => Code::ManifestUnknown,
            },
        )
    }

    /// The same for a client to whom `unknown` says what is not there.
    pub(super) fn from_origin_as(error: &OriginError, unknown: Code) -> Self {
        match error {
            OriginError::NotFound { host } => Self::not_found(unknown, format!("not found at origin {host}")),
            OriginError::Denied { host } => Self::not_found(unknown, format!("access denied at origin {host}")),
            OriginError::RateLimited { host, .. } => Self::unavailable(format!("rate limited by origin {host}")),
            OriginError::Unavailable { host, why } => Self::unavailable(format!("origin {host} failed: {why}")),
            OriginError::Protocol { host, why } => {
                Self::unavailable(format!("origin {host} answered as no registry should: {why}"))
            }
        }
    }

    /// Why the node could not open content of `kind`.
    pub(super) fn from_open(error: &OpenError, kind: Kind) -> Self {
        match error {
            OpenError::Origin(error) => Self::from_origin(error, kind),
            OpenError::Deadline(waited) => Self::deadline(*waited),
            OpenError::Corrupt => Self::unavailable("what peers and origin sent does not match the digest"),
            OpenError::Disk(why) => Self::unavailable(format!("this node cannot keep the blob: {why}")),
            OpenError::Overloaded(why) => Self::unavailable(format!("this node cannot serve now: {why}")),
        }
    }

    /// The answer, with the envelope as its body.
    pub(super) fn response(&self) -> Response<Body> {
        let envelope = Envelope { errors: [Entry { code: self.code, message: shortened(&self.message) }] };
        // Serialising strings and a unit enum cannot fail; an empty body is still a valid answer.
        let body = serde_json::to_vec(&envelope).unwrap_or_default();
        let mut response = Response::new(Body::full(Bytes::from(body)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: Code,
    message: &'a str,
}

/// `text` up to the bound, cut between characters.
fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MESSAGE_BYTES)]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn host() -> String {
        String::from("registry.test")
    }

    #[test]
    fn every_failure_makes_clients_fall_back_and_names_who_failed() {
        let why = || String::from("connection refused");
        for (error, status, code, part) in [
            (OriginError::NotFound { host: host() }, 404, Code::BlobUnknown, "not found at origin registry.test"),
            (OriginError::Denied { host: host() }, 404, Code::BlobUnknown, "access denied at origin registry.test"),
            (
                OriginError::RateLimited { host: host(), retry_after: None },
                503,
                Code::Unavailable,
                "rate limited by origin registry.test",
            ),
            (OriginError::Unavailable { host: host(), why: why() }, 503, Code::Unavailable, "connection refused"),
            (OriginError::Protocol { host: host(), why: why() }, 503, Code::Unavailable, "registry.test"),
        ] {
            let failure = Failure::from_open(&OpenError::Origin(error), Kind::Blob);
            assert_eq!((failure.status.as_u16(), failure.code), (status, code));
            assert!(failure.message.contains(part), "{}", failure.message);
        }
        for error in [OpenError::Deadline(Duration::from_secs(4)), OpenError::Corrupt, OpenError::Overloaded("full")] {
            let failure = Failure::from_open(&error, Kind::Manifest);
            assert_eq!((failure.status.as_u16(), failure.code), (503, Code::Unavailable), "{error}");
        }
        let unknown = Failure::from_origin(&OriginError::NotFound { host: host() }, Kind::Manifest);
        assert_eq!(unknown.code, Code::ManifestUnknown);
    }

    #[tokio::test]
    async fn the_envelope_is_json_with_the_codes_of_the_specification() {
        let failure = Failure::bad_request(Code::NameInvalid, "a \"quoted\"\r\nname");
        let body = failure.response().into_body().collect().await.unwrap().to_bytes();
        let envelope: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(envelope["errors"][0]["code"], "NAME_INVALID");
        assert_eq!(envelope["errors"][0]["message"], "a \"quoted\"\r\nname");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let text = format!("{}é and more", "x".repeat(MESSAGE_BYTES - 1));
        assert_eq!(shortened(&text), "x".repeat(MESSAGE_BYTES - 1));
    }
}
