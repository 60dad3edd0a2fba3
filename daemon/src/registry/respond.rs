//! What answers with content have in common: digest, length, entity tag and the conditional headers.

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CONTENT_LENGTH, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE},
};
use shoal_proto::digest::Digest;

use super::body::Body;

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An answer that says all about content but carries none yet.
pub(super) fn content(digest: &Digest, size: u64) -> Response<Body> {
    let mut response = unmodified(digest);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_LENGTH, size.into());
    response
}

/// 304: the client has it.
pub(super) fn unmodified(digest: &Digest) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    // Digests are header-safe; the fallback cannot be reached.
    let value = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    response.headers_mut().insert(DOCKER_CONTENT_DIGEST, value(digest.to_string()));
    response.headers_mut().insert(ETAG, value(tag(digest)));
    response
}

/// Whether `If-None-Match` names this content (or `*`: any, and it exists once this is asked).
pub(super) fn not_modified(headers: &HeaderMap, digest: &Digest) -> bool {
    let ours = tag(digest);
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok()).any(|line| {
        line.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == ours)
    })
}

/// Whether a range may be served: no `If-Range`, or one that names this content. Dates never do: there are none here.
pub(super) fn range_applies(headers: &HeaderMap, digest: &Digest) -> bool {
    headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == tag(digest).as_bytes())
}

fn tag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_compared_as_rfc_9110_says() {
        let digest = Digest::sha256([1; 32]);
        let (ours, other) = (tag(&digest), tag(&Digest::sha256([2; 32])));
        let map = |name: HeaderName, value: &str| HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]);
        for (value, matches) in [
            (ours.clone(), true),
            (format!("W/{ours}"), true),
            (format!("{other}, {ours}"), true),
            (String::from("*"), true),
            (other.clone(), false),
            (digest.to_string(), false),
        ] {
            assert_eq!(not_modified(&map(IF_NONE_MATCH, &value), &digest), matches, "{value}");
        }
        for (value, applies) in [
            (ours.clone(), true),
            (format!("W/{ours}"), false),
            (other, false),
            (String::from("Sat, 21 Nov 2026 05:00:00 GMT"), false),
        ] {
            assert_eq!(range_applies(&map(IF_RANGE, &value), &digest), applies, "{value}");
        }
        assert!(range_applies(&HeaderMap::new(), &digest));
        assert!(!not_modified(&HeaderMap::new(), &digest));
    }
}
