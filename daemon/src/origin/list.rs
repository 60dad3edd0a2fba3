//! Lists that only the origin has: the tags of a repository, the referrers of a manifest, the repositories of a registry.

use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue, LINK},
};
use shoal_proto::digest::Digest;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    Kind, Origin, OriginError, Upstream,
    exchange::{self, Reply, Request},
    warning::warnings,
};

/// Largest list that is read, in bytes.
const LIST_BYTES: usize = 4 * 1024 * 1024;
/// Longest `Link` header and longest query in one, in bytes. The marks that registries put there stay far below.
const LINK_BYTES: usize = 4096;
/// Digits of a digest in the name of its referrers tag.
const REFERRERS_TAG_HEX: usize = 64;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Listing {
    /// The tags of a repository.
    Tags,
    /// The manifests whose subject this is.
    Referrers(Digest),
    /// All repositories of the registry; it has no repository of its own.
    Catalog,
}

/// One page of a list as the origin gave it. The body is not checked.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// The document, at most 4 MiB; empty if there is none, for referrers.
    pub body: Bytes,
    /// The query that leads to the next page.
    pub next: Option<String>,
    /// Whether the origin says that it applied the filter by artifact type.
    pub filtered: bool,
    /// What the origin wants people to be told.
    pub warnings: Vec<HeaderValue>,
}

/// Where a list is, below the API root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    segments: Vec<String>,
    query: String,
}

impl Place {
    fn new(repository: &str, listing: &Listing, query: &str) -> Self {
        let end = match listing {
            Listing::Tags => vec![String::from("tags"), String::from("list")],
            Listing::Referrers(subject) => vec![String::from("referrers"), subject.to_string()],
            Listing::Catalog => vec![String::from("_catalog")],
        };
        let names = repository.split('/').filter(|name| !name.is_empty()).map(str::to_owned);
        Self { segments: names.chain(end).collect(), query: query.to_owned() }
    }

    /// As a URL below this root.
    pub(super) fn under(&self, root: &Url) -> Url {
        let mut url = root.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&self.segments);
        }
        url.set_query(Some(self.query.as_str()).filter(|query| !query.is_empty()));
        url
    }
}

impl Origin {
    /// One page of a list. `query` is that of the request, ready to be sent. A registry without the referrers API (404) is
    /// asked for the referrers tag instead; without that one the list is empty.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn list(
        &self,
        upstream: &Upstream,
        repository: &str,
        listing: &Listing,
        query: &str,
    ) -> Result<List, OriginError> {
        let deadline = self.deadline();
        let place = Place::new(repository, listing, query);
        let scopes = match listing {
            Listing::Catalog => vec![String::from("registry:catalog:*")],
            Listing::Tags | Listing::Referrers(_) => Vec::new(),
        };
        let request = Request {
            upstream,
            repository,
            kind: Kind::Manifest,
            reference: String::new(),
            method: Method::GET,
            accept: Some(HeaderValue::from_static("application/json, application/vnd.oci.image.index.v1+json, */*")),
            range: None,
            place: Some(place.clone()),
            scopes,
        };
        match (self.send(&request, deadline).await, listing) {
            (Ok(reply), _) => self.page(reply, upstream, &place, deadline).await,
            (Err(OriginError::NotFound { .. }), Listing::Referrers(subject)) => {
                self.referrers_by_tag(upstream, repository, subject, deadline).await
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn page(
        &self,
        reply: Reply,
        upstream: &Upstream,
        place: &Place,
        deadline: Instant,
    ) -> Result<List, OriginError> {
        let status = reply.response.status();
        if status != StatusCode::OK {
            return Err(reply.protocol(format!("unexpected status {} to a list", status.as_u16())));
        }
        let headers = reply.response.headers();
        let next = next_query(headers, &place.under(upstream.root_url())).map_err(|why| reply.protocol(why))?;
        let filtered = headers.get_all(FILTERS_APPLIED).iter().filter_map(|value| value.to_str().ok());
        let filtered = filtered.flat_map(|value| value.split(',')).any(|filter| filter.trim() == "artifactType");
        let warnings = warnings(headers);
        let body = self.document(reply, deadline).await?;
        Ok(List { body, next, filtered, warnings })
    }

    /// What clients keep under a tag of their own where the registry has no referrers API.
    async fn referrers_by_tag(
        &self,
        upstream: &Upstream,
        repository: &str,
        subject: &Digest,
        deadline: Instant,
    ) -> Result<List, OriginError> {
        let request = Request {
            upstream,
            repository,
            kind: Kind::Manifest,
            reference: referrers_tag(subject),
            method: Method::GET,
            accept: Some(HeaderValue::from_static(OCI_INDEX)),
            range: None,
            place: None,
            scopes: Vec::new(),
        };
        match self.send(&request, deadline).await {
            Ok(reply) if reply.response.status() == StatusCode::OK => {
                let warnings = warnings(reply.response.headers());
                let body = self.document(reply, deadline).await?;
                Ok(List { body, warnings, ..List::default() })
            }
            Ok(reply) => Err(reply.protocol("unexpected status to the referrers tag")),
            Err(OriginError::NotFound { .. }) => Ok(List::default()),
            Err(error) => Err(error),
        }
    }

    /// The whole body, within its bound.
    async fn document(&self, reply: Reply, deadline: Instant) -> Result<Bytes, OriginError> {
        let host = reply.host;
        let read = timeout_at(deadline, exchange::collect(reply.response, LIST_BYTES)).await;
        let read = read.map_err(|_| OriginError::unavailable(host.as_str(), "no whole list within the deadline"))?;
        let body = read.map_err(|error| error.at(&host).error)?;
        for limit in &*self.limits {
            limit.take(body.len() as u64).await;
        }
        Ok(body)
    }
}

/// The tag under which clients keep the referrers of `subject` (distribution specification, "Referrers Tag Schema").
fn referrers_tag(subject: &Digest) -> String {
    let mut hex = subject.hex();
    hex.truncate(REFERRERS_TAG_HEX);
    format!("{}-{hex}", subject.algorithm().name())
}

/// The query of the next page, which must be one of the list at `asked`: of a `Link` nothing else is ever used. A list whose
/// continuation cannot be read is refused, because a list that looks complete and is not misleads whoever cleans up by it.
fn next_query(headers: &HeaderMap, asked: &Url) -> Result<Option<String>, &'static str> {
    let mut lines = headers.get_all(LINK).iter();
    let Some(target) = lines.find_map(|line| next_target(line.to_str().ok()?)) else { return Ok(None) };
    if target.len() > LINK_BYTES {
        return Err("the Link to the next page is too long");
    }
    let next = asked.join(target).map_err(|_| "the Link to the next page is no URL")?;
    // Behind a proxy the host that a registry takes itself for may be another one.
    if next.path() != asked.path() {
        return Err("the Link to the next page leads to something else");
    }
    match next.query() {
        Some(query) if !query.is_empty() => Ok(Some(query.to_owned())),
        _ => Err("the Link to the next page leads to the first"),
    }
}

/// The target of the link with `rel="next"` in a `Link` header (RFC 8288).
fn next_target(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        let (target, parameters) = rest.split_once('<')?.1.split_once('>')?;
        let end = end_of_link(parameters);
        if parameters[..end].split(';').any(is_next) {
            return Some(target);
        }
        rest = &parameters[end..];
    }
}

/// Where the parameters of one link end: at the first comma that is not quoted.
fn end_of_link(parameters: &str) -> usize {
    let mut quoted = false;
    let end = parameters.bytes().position(|byte| {
        quoted ^= byte == b'"';
        byte == b',' && !quoted
    });
    end.unwrap_or(parameters.len())
}

fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return false };
    let relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations.into_iter().any(|relation| relation.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use shoal_proto::digest::Algorithm;

    use super::*;

    fn next(link: &str) -> Result<Option<String>, &'static str> {
        let asked = Url::parse("https://a.test/mirror/v2/team/x/tags/list?n=2").unwrap();
        next_query(&HeaderMap::from_iter([(LINK, HeaderValue::from_str(link).unwrap())]), &asked)
    }

    #[test]
    fn a_list_lies_below_the_api_root() {
        let root = Url::parse("https://a.test/mirror/v2/").unwrap();
        let subject = Digest::sha256([0; 32]);
        for (repository, listing, query, expected) in [
            ("team/x", Listing::Tags, "n=2&last=a%26b", "team/x/tags/list?n=2&last=a%26b".to_owned()),
            ("", Listing::Catalog, "", "_catalog".to_owned()),
            ("x", Listing::Referrers(subject), "", format!("x/referrers/{subject}")),
        ] {
            let url = Place::new(repository, &listing, query).under(&root);
            assert_eq!(url.as_str(), format!("https://a.test/mirror/v2/{expected}"));
        }
    }

    #[test]
    fn the_next_page_is_known_by_its_query_alone() {
        for (link, query) in [
            (r#"</mirror/v2/team/x/tags/list?last=b&n=2>; rel="next""#, Some("last=b&n=2")),
            (r#"<list?page_token=%2Fx>;rel=next"#, Some("page_token=%2Fx")),
            (
                r#"<https://inner:8443/mirror/v2/team/x/tags/list?last=b>; title="a, <b>"; REL="prev NEXT""#,
                Some("last=b"),
            ),
            (r#"<?last=a>; rel="first", <?last=c>; rel="next""#, Some("last=c")),
            (r#"<?last=a>; rel="prev""#, None),
            (r#"<?last=a>; rev="next""#, None),
            ("<?last=a", None),
            ("rel=next", None),
            ("", None),
        ] {
            assert_eq!(next(link).unwrap().as_deref(), query, "{link}");
        }
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_refused() {
        for link in [
            r#"</v2/other/tags/list?last=b>; rel="next""#,
            r#"<../../y/tags/list?last=b>; rel="next""#,
            r#"<http://169.254.169.254/latest?last=b>; rel="next""#,
            r#"<file:///etc/passwd?x>; rel="next""#,
            r#"<http://[>; rel="next""#,
            r#"</mirror/v2/team/x/tags/list>; rel="next""#,
            &format!(r#"<?last={}>; rel="next""#, "x".repeat(LINK_BYTES)),
        ] {
            assert!(next(link).is_err(), "{link:.80}");
        }
    }

    #[test]
    fn the_referrers_tag_holds_no_more_than_64_digits() {
        let subject = Digest::of(Algorithm::Sha512, b"x");
        let tag = referrers_tag(&subject);
        assert_eq!((tag.len(), &tag[..7]), (7 + 64, "sha512-"));
        assert!(subject.hex().starts_with(&tag[7..]));
    }
}
