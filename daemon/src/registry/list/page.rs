//! Which part of a list a client asks for, and how it gets to the next.

use hyper::header::HeaderValue;
use url::form_urlencoded;

use super::super::{
    error::{Code, Failure},
    name::NAME_BYTES,
};
use crate::origin::Listing;

/// Longest query, in bytes. The marks of registries for the next page stay far below.
const QUERY_BYTES: usize = 4096;
/// Most parameters in it.
const PARAMETERS: usize = 16;
/// Most names in one page, whatever was asked for: a client can go on by `Link`.
const N_MAX: usize = 1000;

/// A page of a list as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Page {
    /// The path as the client wrote it, which is where the next page is too.
    path: String,
    /// The `ns` parameter, likewise.
    namespace: Option<String>,
    n: Option<usize>,
    last: Option<String>,
    artifact_type: Option<String>,
    /// All parameters that are for the origin but `n`: those above, and whatever it put into its `Link`.
    rest: Vec<(String, String)>,
}

impl Page {
    /// Reads the query of a list at `path`, which has been parsed already.
    ///
    /// # Errors
    /// 400 for a number that is none, for names that no repository or tag can have, and for a query beyond its bounds.
    pub(in super::super) fn parse(path: &str, query: Option<&str>) -> Result<Self, Failure> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY_BYTES {
            return Err(refused("the query is too long"));
        }
        let path = path.to_owned();
        let mut page = Self { path, namespace: None, n: None, last: None, artifact_type: None, rest: Vec::new() };
        for (key, value) in form_urlencoded::parse(query.as_bytes()).into_owned() {
            match key.as_str() {
                "ns" => {
                    page.namespace = Some(value);
                    continue;
                }
                "n" if page.n.is_some() => return Err(refused("more than one n")),
                "n" => {
                    page.n = Some(number(&value).ok_or_else(|| refused("n is not a number"))?);
                    continue;
                }
                "last" => once(&mut page.last, &value, "last")?,
                "artifactType" => once(&mut page.artifact_type, &value, "artifactType")?,
                _ => {}
            }
            page.rest.push((key, value));
        }
        if page.rest.len() > PARAMETERS {
            return Err(refused("the query has too many parameters"));
        }
        Ok(page)
    }

    /// Most names that were asked for, as far as we go.
    pub(super) const fn n(&self) -> Option<usize> {
        self.n
    }

    /// The name after which the page begins.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    pub(super) fn artifact_type(&self) -> Option<&str> {
        self.artifact_type.as_deref()
    }

    /// The query to send to the origin.
    pub(super) fn for_origin(&self, listing: &Listing) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.rest);
        if let (Some(n), Listing::Tags | Listing::Catalog) = (self.n, listing) {
            // Some take none for all. Whether the list exists shows as well with one.
            query.append_pair("n", &n.max(1).to_string());
        }
        query.finish()
    }

    /// The query of the page that begins after `last`.
    pub(super) fn after(&self, last: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.rest.iter().filter(|(key, _)| key != "last"));
        query.append_pair("last", last);
        query.extend_pairs(self.n.map(|n| ("n", n.to_string())));
        query.finish()
    }

    /// The `Link` to the page with this query at the origin: the same path here, so that it leads through us.
    pub(super) fn link(&self, next: Option<&str>) -> Result<Option<HeaderValue>, Failure> {
        let Some(next) = next else { return Ok(None) };
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(form_urlencoded::parse(next.as_bytes()).filter(|(key, _)| key != "ns"));
        query.extend_pairs(self.namespace.iter().map(|namespace| ("ns", namespace)));
        let (path, query) = (&self.path, query.finish());
        if query.len() > QUERY_BYTES {
            return Err(Failure::unavailable("the origin's mark of the next page is too long"));
        }
        let link = HeaderValue::try_from(format!("<{path}?{query}>; rel=\"next\""));
        link.map(Some).map_err(|_| Failure::unavailable("the origin's mark of the next page is no header"))
    }
}

/// Digits only; more than we give counts as what we give.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(N_MAX).min(N_MAX))
}

/// Takes a parameter that may be given once. It is sent on escaped, so that only its length and invisible parts matter.
fn once(place: &mut Option<String>, value: &str, name: &'static str) -> Result<(), Failure> {
    if value.len() > NAME_BYTES || value.chars().any(char::is_control) {
        return Err(refused(format!("{name} is malformed")));
    }
    if place.replace(value.to_owned()).is_some() {
        return Err(refused(format!("more than one {name}")));
    }
    Ok(())
}

/// The specification has no code for it.
fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::bad_request(Code::Unsupported, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const PATH: &str = "/v2/origin.test/team/x/tags/list";

    fn page(query: &str) -> Page {
        Page::parse(PATH, Some(query)).unwrap()
    }

    #[test]
    fn n_is_a_number_within_bounds() {
        for (query, n) in [
            ("", None),
            ("n=0", Some(0)),
            ("n=17", Some(17)),
            ("n=1000", Some(1000)),
            ("n=1001", Some(1000)),
            ("n=99999999999999999999999999", Some(1000)),
        ] {
            assert_eq!(page(query).n(), n, "{query}");
        }
        for query in ["n=", "n", "n=-1", "n=+1", "n=1.0", "n=0x1", "n=1%00", "n=%D9%A1", "n=1&n=1", "n=1&n=2"] {
            assert_eq!(Page::parse(PATH, Some(query)).unwrap_err().status, 400, "{query}");
        }
    }

    #[test]
    fn hostile_queries_are_refused_or_sent_on_escaped() {
        for query in [
            &format!("last={}", "x".repeat(NAME_BYTES + 1)),
            "last=a%0d%0aX:%20y",
            "last=a%00",
            "last=a&last=b",
            "artifactType=a%0ab",
            "artifactType=a/b&artifactType=c/d",
            &format!("x={}", "y".repeat(QUERY_BYTES)),
            &"x=y&".repeat(PARAMETERS + 1),
        ] {
            assert_eq!(Page::parse(PATH, Some(query)).unwrap_err().status, 400, "{query:.40}");
        }
        let sent = page("last=a%26n%3D5%23/../%20%22%3E&n=2").for_origin(&Listing::Tags);
        assert_eq!(sent, "last=a%26n%3D5%23%2F..%2F+%22%3E&n=2");
    }

    #[test]
    fn what_the_origin_put_into_its_link_comes_back_to_it_and_the_namespace_does_not() {
        let page = page("ns=origin.test&page_token=a%2Fb&n=7");
        assert_eq!(page.for_origin(&Listing::Tags), "page_token=a%2Fb&n=7");
        assert_eq!(
            page.for_origin(&Listing::Referrers(shoal_proto::digest::Digest::sha256([0; 32]))),
            "page_token=a%2Fb"
        );
        let link = page.link(Some("page_token=c&ns=evil.example")).unwrap().unwrap();
        assert_eq!(link, format!("<{PATH}?page_token=c&ns=origin.test>; rel=\"next\"").as_str());
    }

    #[test]
    fn a_link_stays_one_header_whatever_the_origin_put_into_it() {
        let link = page("").link(Some("last=%3E;%20rel=%22next%22%0d%0aX:%20y")).unwrap().unwrap();
        assert_eq!(link, format!("<{PATH}?last=%3E%3B+rel%3D%22next%22%0D%0AX%3A+y>; rel=\"next\"").as_str());
        assert!(page("").link(Some(&format!("x={}", "\"".repeat(QUERY_BYTES / 2)))).is_err());
        assert_eq!(page("").link(None).unwrap(), None);
    }

    #[test]
    fn nothing_asked_for_is_asked_as_one() {
        assert_eq!(page("n=0").for_origin(&Listing::Tags), "n=1");
        assert_eq!(page("n=3&last=b&x=y").after("d"), "x=y&last=d&n=3");
    }
}
