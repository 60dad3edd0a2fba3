//! From a raw path and query to what is asked of which upstream. Only allow-listed upstreams are ever named by a
//! [`Target`], so nothing a client writes can make the daemon talk to another host.

use std::{collections::BTreeMap, sync::Arc};

use url::form_urlencoded;

use super::{
    error::{Code, Failure},
    list::Page,
    name::{self, NAME_BYTES, Reference},
    push::Asked,
};
use crate::{
    access::Scope,
    origin::{Listing, Upstream},
};

/// What a path asks for.
#[derive(Debug)]
pub(super) enum Route {
    /// `/v2/`: whether this is a registry.
    Base,
    /// `/v2/<name>/manifests/<reference>`.
    Manifest(Target, Reference),
    /// `/v2/<name>/blobs/<digest>`.
    Blob(Target, shoal_proto::digest::Digest),
    /// `/v2/<name>/tags/list`, `/v2/<name>/referrers/<digest>`, `/v2/[<upstream>/]_catalog`.
    List(Target, Listing, Page),
    /// A request that pushes.
    Push(Target, Asked),
}

/// A repository of an allow-listed upstream.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The registry.
    pub(super) upstream: Arc<Upstream>,
    /// The repository there; empty for the list of repositories.
    pub(super) repository: String,
    /// The `ns` parameter as the client wrote it, to be answered as `OCI-Namespace`.
    pub(super) namespace: Option<String>,
    /// Under which right it is asked for. As long as nobody has looked, the one that opens least.
    pub(super) scope: Scope,
    /// Why it is asked for without this node's credential, if it should have been with it.
    pub(super) problem: Option<String>,
}

impl Route {
    /// Which repository is meant, if any.
    pub(super) const fn target_mut(&mut self) -> Option<&mut Target> {
        match self {
            Self::Base => None,
            Self::Manifest(target, _) | Self::Blob(target, _) | Self::List(target, ..) | Self::Push(target, _) => {
                Some(target)
            }
        }
    }
}

/// The allow-list of upstreams.
#[derive(Debug)]
pub(super) struct Upstreams {
    by_name: BTreeMap<String, Arc<Upstream>>,
    default: Option<Arc<Upstream>>,
}

impl Upstreams {
    /// The upstreams by the name clients use; `default` names the one for requests that name none.
    pub(super) fn new(by_name: BTreeMap<String, Arc<Upstream>>, default: Option<&str>) -> Self {
        let default = default.and_then(|name| {
            let found = by_name.get(name).cloned();
            if found.is_none() {
                tracing::warn!(
                    name,
                    "the default upstream is not one of the upstreams: requests that name none are refused"
                );
            }
            found
        });
        Self { by_name, default }
    }

    /// Parses a request's path and query, both undecoded.
    ///
    /// # Errors
    /// A failure that is ready to be answered: malformed names and digests with 400, everything unknown with 404.
    pub(super) fn route(&self, path: &str, query: Option<&str>) -> Result<Route, Failure> {
        let rest = path.strip_prefix("/v2/").ok_or_else(unknown_path)?;
        if rest.is_empty() {
            return Ok(Route::Base);
        }
        if rest == "_catalog" || rest.ends_with("/_catalog") {
            let target = self.catalog(rest, query)?;
            return Ok(Route::List(target, Listing::Catalog, Page::parse(path, query)?));
        }
        let (before, last) = rest.rsplit_once('/').ok_or_else(unknown_path)?;
        let (name, collection) = before.rsplit_once('/').ok_or_else(unknown_path)?;
        match collection {
            "manifests" => {
                let target = self.target(name, query)?;
                Ok(Route::Manifest(target, Reference::parse(last)?))
            }
            "blobs" => {
                let target = self.target(name, query)?;
                Ok(Route::Blob(target, name::digest(last)?))
            }
            "tags" if last == "list" => {
                let target = self.target(name, query)?;
                Ok(Route::List(target, Listing::Tags, Page::parse(path, query)?))
            }
            "referrers" => {
                let target = self.target(name, query)?;
                let listing = Listing::Referrers(name::digest(last)?);
                Ok(Route::List(target, listing, Page::parse(path, query)?))
            }
            // An escaped slash or dot-dot would otherwise read as merely unknown; say what is wrong with it.
            _ if path.contains('%') => Err(bad_name()),
            _ => Err(unknown_path()),
        }
    }

    /// Chooses the upstream: `ns`, else a first component that names an upstream, else the default. A first component
    /// that repeats what `ns` says (containerd with `override_path`) is not part of the repository.
    pub(super) fn target(&self, name: &str, query: Option<&str>) -> Result<Target, Failure> {
        if name.len() > NAME_BYTES {
            return Err(bad_name());
        }
        let prefix = name.split_once('/');
        if let Some(namespace) = namespace(query)? {
            let upstream = self.find(&namespace).ok_or_else(unknown_registry)?;
            let repository = prefix.filter(|(first, _)| *first == upstream.name).map_or(name, |(_, rest)| rest);
            return target(upstream, repository, Some(namespace));
        }
        if let Some((first, repository)) = prefix {
            if let Some(upstream) = self.by_name.get(first) {
                return target(upstream, repository, None);
            }
            if first.contains(':') && name::is_registry(first) {
                return Err(unknown_registry());
            }
        }
        if !name::is_repository(name) {
            return Err(bad_name());
        }
        target(self.default.as_ref().ok_or_else(unknown_registry)?, name, None)
    }

    /// The registry whose repositories are asked for: by `ns`, by its name before `/_catalog`, or the default.
    fn catalog(&self, rest: &str, query: Option<&str>) -> Result<Target, Failure> {
        let namespace = namespace(query)?;
        let upstream = match (rest.strip_suffix("/_catalog"), &namespace) {
            (Some(name), None) => self.by_name.get(name),
            (None, Some(namespace)) => self.find(namespace),
            (None, None) => self.default.as_ref(),
            (Some(_), Some(_)) => None,
        };
        let upstream = Arc::clone(upstream.ok_or_else(unknown_registry)?);
        Ok(Target { upstream, repository: String::new(), namespace, scope: Scope::Private, problem: None })
    }

    /// The upstream of exactly this name.
    pub(super) fn named(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// Host names do not differ by case; the allow-list is lower-case.
    fn find(&self, namespace: &str) -> Option<&Arc<Upstream>> {
        if !name::is_registry(namespace) {
            return None;
        }
        self.by_name.get(namespace).or_else(|| self.by_name.get(&namespace.to_ascii_lowercase()))
    }
}

/// The `ns` query parameter, decoded (containerd escapes the colon of a port). Two different ones are refused.
fn namespace(query: Option<&str>) -> Result<Option<String>, Failure> {
    let mut found = None;
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if key == "ns" && found.as_deref().is_some_and(|earlier: &str| earlier != value) {
            return Err(Failure::bad_request(Code::NameInvalid, "more than one ns parameter"));
        }
        if key == "ns" {
            found = Some(value.into_owned());
        }
    }
    Ok(found)
}

fn target(upstream: &Arc<Upstream>, repository: &str, namespace: Option<String>) -> Result<Target, Failure> {
    if !name::is_repository(repository) {
        return Err(bad_name());
    }
    let repository = name::at_upstream(&upstream.name, repository);
    Ok(Target { upstream: Arc::clone(upstream), repository, namespace, scope: Scope::Private, problem: None })
}

fn bad_name() -> Failure {
    Failure::bad_request(Code::NameInvalid, "malformed repository name")
}

fn unknown_path() -> Failure {
    Failure::not_found(
        Code::Unsupported,
        "only /v2/, manifests, blobs, tags, referrers and the catalog are served here",
    )
}

fn unknown_registry() -> Failure {
    Failure::not_found(Code::NameUnknown, "this registry is not one of the configured upstreams")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use hyper::StatusCode;

    use super::{super::fake, *};

    fn upstreams(default: Option<&str>) -> Upstreams {
        let names = ["docker.io", "registry.test:5000", "quay.io"];
        Upstreams::new(names.into_iter().map(|name| (name.to_owned(), fake::upstream(name))).collect(), default)
    }

    fn chosen(default: Option<&str>, name: &str, query: Option<&str>) -> Result<(String, String), Code> {
        let path = format!("/v2/{name}/manifests/v1");
        match upstreams(default).route(&path, query) {
            Ok(Route::Manifest(target, Reference::Tag(_))) => Ok((target.upstream.name.clone(), target.repository)),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.code),
        }
    }

    #[test]
    fn the_upstream_is_chosen_by_ns_then_by_prefix_then_by_default() {
        let hub = Some("docker.io");
        let ok = |upstream: &str, repository: &str| Ok((upstream.to_owned(), repository.to_owned()));
        for (default, name, query, expected) in [
            (None, "library/x", Some("ns=docker.io"), ok("docker.io", "library/x")),
            (None, "x", Some("ns=docker.io"), ok("docker.io", "library/x")),
            (None, "x", Some("ns=Docker.IO"), ok("docker.io", "library/x")),
            (None, "team/x", Some("ns=registry.test%3A5000"), ok("registry.test:5000", "team/x")),
            (None, "team/x", Some("a=b&ns=registry.test:5000&c"), ok("registry.test:5000", "team/x")),
            (None, "x", Some("ns=quay.io"), ok("quay.io", "x")),
            (hub, "docker.io/team/x", Some("ns=quay.io"), ok("quay.io", "docker.io/team/x")),
            (hub, "quay.io/team/x", Some("ns=quay.io"), ok("quay.io", "team/x")),
            (hub, "team/x", Some("ns=quay.io&ns=quay.io"), ok("quay.io", "team/x")),
            (None, "registry.test:5000/team/x", None, ok("registry.test:5000", "team/x")),
            (hub, "quay.io/x", None, ok("quay.io", "x")),
            (None, "docker.io/x", None, ok("docker.io", "library/x")),
            (None, "docker.io/library/x", None, ok("docker.io", "library/x")),
            (hub, "x", None, ok("docker.io", "library/x")),
            (hub, "library/x", None, ok("docker.io", "library/x")),
            (hub, "docker.io", None, ok("docker.io", "library/docker.io")),
        ] {
            assert_eq!(chosen(default, name, query), expected, "{name} {query:?}");
        }
    }

    #[test]
    fn no_client_can_name_a_registry_that_is_not_on_the_list() {
        for query in [
            "ns=169.254.169.254",
            "ns=127.0.0.1:5901",
            "ns=http://x",
            "ns=a@b",
            "ns=evil.example",
            "ns=docker.io:443",
            "ns=user@docker.io",
            "ns=docker.io/",
            "ns=docker.io%00",
            "ns=",
            "ns",
        ] {
            assert_eq!(chosen(Some("docker.io"), "a", Some(query)), Err(Code::NameUnknown), "{query}");
        }
        for name in ["evil.example:80/x", "127.0.0.1:22/x", "registry.test:5001/x", "registry.test:05000/x"] {
            assert_eq!(chosen(Some("docker.io"), name, None), Err(Code::NameUnknown), "{name}");
        }
        assert_eq!(chosen(None, "team/x", None), Err(Code::NameUnknown));
        assert_eq!(chosen(None, "a", Some("ns=docker.io&ns=quay.io")), Err(Code::NameInvalid));
    }

    #[test]
    fn malformed_names_are_refused_before_anything_else_looks_at_them() {
        for name in [
            "",
            "A",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "/a",
            "a%2fb",
            "%2e%2e/x",
            "quay.io/..",
            "quay.io/",
            "quay.io//x",
            "quay.io%2fx",
            "a/registry.test:5000/x",
            "registry.test:5000/quay.io:1/x",
            "registry.test:5000",
            &"a".repeat(NAME_BYTES + 1),
        ] {
            assert_eq!(chosen(Some("docker.io"), name, None), Err(Code::NameInvalid), "{name}");
        }
    }

    #[test]
    fn only_the_base_content_and_lists_are_routes() {
        let hex = "0".repeat(64);
        let upstreams = upstreams(Some("docker.io"));
        assert!(matches!(upstreams.route("/v2/", None), Ok(Route::Base)));
        assert!(matches!(upstreams.route(&format!("/v2/a/blobs/sha256:{hex}"), None), Ok(Route::Blob(..))));
        assert!(matches!(
            upstreams.route("/v2/a/manifests/manifests/v1", None),
            Ok(Route::Manifest(target, Reference::Tag(tag))) if target.repository == "a/manifests" && tag == "v1"
        ));
        for (path, query, name, repository) in [
            ("/v2/a/tags/list", None, "docker.io", "library/a"),
            ("/v2/tags/list/tags/list", Some("n=1"), "docker.io", "tags/list"),
            ("/v2/a/tags/list", Some("ns=quay.io"), "quay.io", "a"),
            ("/v2/registry.test:5000/a/tags/list", None, "registry.test:5000", "a"),
            (&format!("/v2/quay.io/a/referrers/sha256:{hex}"), None, "quay.io", "a"),
            ("/v2/_catalog", None, "docker.io", ""),
            ("/v2/_catalog", Some("n=5&ns=quay.io"), "quay.io", ""),
            ("/v2/registry.test:5000/_catalog", None, "registry.test:5000", ""),
        ] {
            match upstreams.route(path, query) {
                Ok(Route::List(target, ..)) => {
                    assert_eq!((target.upstream.name.as_str(), target.repository.as_str()), (name, repository));
                }
                other => panic!("{path}: {other:?}"),
            }
        }
        for path in [
            "",
            "/",
            "*",
            "/v2",
            "/v1/",
            "/V2/",
            "//v2/",
            "/v2//",
            "/v2/_catalog/",
            "/v2/x_catalog",
            "/v2/quay.io:1/_catalog",
            "/v2/tags/list",
            "/v2/a/tags/list/",
            "/v2/a/tags/",
            "/v2/a/tags/x",
            "/v2/a/blobs/uploads/x",
            "/v2/manifests/v1",
            "/v2/a/manifests",
            "/metrics",
        ] {
            let failure = upstreams.route(path, None).unwrap_err();
            assert_eq!(failure.status, StatusCode::NOT_FOUND, "{path}");
        }
        for (path, code) in [
            ("/v2/a/manifests/", Code::ManifestUnknown),
            ("/v2/a/blobs/", Code::DigestInvalid),
            ("/v2/a/blobs/latest", Code::DigestInvalid),
            ("/v2/a/referrers/", Code::DigestInvalid),
            ("/v2/a/referrers/latest", Code::DigestInvalid),
            ("/v2/a%2ftags/list", Code::Unsupported),
            ("/v2/evil.example/_catalog", Code::NameUnknown),
            ("/v2/quay.io/x/_catalog", Code::NameUnknown),
            ("/v2/a%2fmanifests%2fv1", Code::Unsupported),
            ("/v2/a/manifests%2fv1/x", Code::NameInvalid),
            ("/v2/a/manifests/..", Code::ManifestUnknown),
        ] {
            assert_eq!(upstreams.route(path, None).unwrap_err().code, code, "{path}");
        }
    }
}
