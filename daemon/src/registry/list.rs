//! `/v2/<name>/tags/list`, `/v2/<name>/referrers/<digest>` and `/v2/_catalog`: passed through, page by page.
//!
//! The documents are the origin's, but nothing is passed on unread: names must be a list of names, referrers an index. An
//! origin that knows no pages or no filter is helped out here.

mod names;
mod page;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{
    Response,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, LINK, WARNING},
};
use serde_json::Value;

pub(super) use self::page::Page;
use super::{
    Inner,
    answers::{Aged, Answers, Bounds},
    body::Body,
    content::{Content, ListQuestion},
    error::{Code, Failure},
    media,
    route::Target,
};
use crate::origin::{List, Listing, OriginError};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Most lists remembered or on their way, of at most 4 MiB each.
const ENTRIES: usize = 32;
/// How long a list is believed: what is in it may have changed meanwhile.
const TTL: Duration = Duration::from_secs(2);

/// An index without manifests: the referrers of what nobody refers to.
const NO_REFERRERS: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// What decides the origin's answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    upstream: String,
    repository: String,
    listing: Listing,
    query: String,
}

/// The lists of a short while ago; a cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Lists(Answers<Key, Arc<List>>);

impl Aged for Arc<List> {}

impl Lists {
    /// The origin is given `patience` to answer.
    pub(super) fn new(patience: Duration) -> Self {
        Self(Answers::new(Bounds { entries: ENTRIES, ttl: TTL, stale: Duration::ZERO, patience }))
    }

    /// Forgets all lists of a repository: it was pushed to.
    pub(super) fn forget_repository(&self, target: &Target) {
        self.0.forget(|key| key.upstream == target.upstream.cache_key() && key.repository == target.repository);
    }

    async fn get(&self, content: &Arc<dyn Content>, question: ListQuestion) -> Result<Arc<List>, OriginError> {
        let ListQuestion { upstream, repository, listing, query } = question.clone();
        let host = upstream.name.clone();
        let key = Key { upstream: upstream.cache_key().to_owned(), repository, listing, query };
        let asked = || {
            let list = content.list(question);
            Box::pin(async move { list.await.map(Arc::new) }) as _
        };
        self.0.get(key, &host, asked).await.map(|told| told.value)
    }
}

/// Answers a GET or HEAD.
pub(super) async fn answer(
    inner: &Inner,
    target: &Target,
    listing: &Listing,
    page: &Page,
) -> Result<Response<Body>, Failure> {
    let question = ListQuestion {
        upstream: Arc::clone(&target.upstream),
        repository: target.repository.clone(),
        listing: *listing,
        query: page.for_origin(listing),
    };
    let list = inner.lists.get(&inner.content, question).await;
    let list = list.map_err(|error| Failure::from_origin_as(&error, Code::NameUnknown))?;
    let odd = |why: &str| {
        Failure::unavailable(format!("origin {} answered as no registry should: {why}", target.upstream.name))
    };
    let mut response = match listing {
        Listing::Tags | Listing::Catalog => {
            let field = if *listing == Listing::Tags { "tags" } else { "repositories" };
            let cut = names::cut(&list.body, field, page, list.next.is_some()).map_err(odd)?;
            let next = if page.n() == Some(0) { None } else { list.next.clone().or(cut.next) };
            document(Bytes::from(cut.document), "application/json", page.link(next.as_deref())?)
        }
        Listing::Referrers(_) => {
            let (index, filtered) = referrers(&list, page.artifact_type()).map_err(|why| odd(&why))?;
            let mut response = document(index, media::OCI_INDEX, page.link(list.next.as_deref())?);
            if filtered {
                response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
            }
            response
        }
    };
    for warning in &list.warnings {
        response.headers_mut().append(WARNING, warning.clone());
    }
    Ok(response)
}

fn document(body: Bytes, media_type: &'static str, link: Option<HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(link) = link {
        response.headers_mut().insert(LINK, link);
    }
    response
}

/// The index of referrers, and whether only those of `artifact_type` are in it, if one was asked for.
fn referrers(list: &List, artifact_type: Option<&str>) -> Result<(Bytes, bool), String> {
    if list.body.is_empty() {
        return Ok((Bytes::from_static(NO_REFERRERS), artifact_type.is_some()));
    }
    let media_type = media::media_type(&list.body, None).map_err(|error| error.to_string())?;
    if media_type != media::OCI_INDEX {
        return Err(String::from("the referrers are no index"));
    }
    let Some(artifact_type) = artifact_type.filter(|_| !list.filtered) else {
        return Ok((list.body.clone(), artifact_type.is_some()));
    };
    let mut index: Value = serde_json::from_slice(&list.body).map_err(|error| error.to_string())?;
    let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
    let manifests = manifests.ok_or_else(|| String::from("the referrers are no list"))?;
    manifests.retain(|manifest| manifest.get("artifactType").and_then(Value::as_str) == Some(artifact_type));
    let filtered = serde_json::to_vec(&index).map_err(|error| error.to_string())?;
    Ok((filtered.into(), true))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn list(body: &str, filtered: bool) -> List {
        List { body: Bytes::copy_from_slice(body.as_bytes()), filtered, ..List::default() }
    }

    #[test]
    fn referrers_are_filtered_here_only_if_the_origin_did_not() {
        let both = r#"{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"artifactType":"a/b","size":1},{"artifactType":"c/d"},{}]}"#;
        let (whole, filtered) = referrers(&list(both, false), None).unwrap();
        assert!(whole == both.as_bytes() && !filtered, "byte by byte");
        let (trusted, filtered) = referrers(&list(both, true), Some("a/b")).unwrap();
        assert!(trusted == both.as_bytes() && filtered, "the origin knows what it applied");
        let (here, filtered) = referrers(&list(both, false), Some("a/b")).unwrap();
        let index: Value = serde_json::from_slice(&here).unwrap();
        assert!(filtered && index["manifests"].as_array().unwrap().len() == 1, "{index}");
        assert_eq!(index["manifests"][0]["size"], 1);
        for artifact_type in [None, Some("a/b")] {
            let (empty, filtered) = referrers(&List::default(), artifact_type).unwrap();
            assert!(empty == NO_REFERRERS && filtered == artifact_type.is_some());
        }
    }

    #[test]
    fn what_is_no_index_is_not_passed_on_as_one() {
        for body in [
            "{}",
            "[]",
            "x",
            r#"{"manifests":[],"layers":[]}"#,
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#,
            r#"{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}"#,
            &format!(r#"{{"manifests":{}{}}}"#, "[".repeat(100), "]".repeat(100)),
        ] {
            assert!(referrers(&list(body, false), None).is_err(), "{body:.80}");
        }
        assert!(referrers(&list(r#"{"manifests":{}}"#, false), Some("a/b")).is_err());
    }

    #[test]
    fn the_empty_index_is_an_index() {
        assert_eq!(media::media_type(NO_REFERRERS, None).unwrap(), media::OCI_INDEX);
    }
}
