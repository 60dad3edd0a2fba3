//! From the method, path and query of a push to what is asked.

use hyper::Method;
use shoal_proto::digest::Digest;
use url::form_urlencoded;

use super::super::{
    error::{Code, Failure},
    name::{self, Reference},
    route::{Target, Upstreams},
};

/// What a client that pushes asks.
#[derive(Debug)]
pub(in super::super) struct Asked {
    /// `/v2/<name>` as the client wrote it.
    root: String,
    pub(super) what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    /// To begin an upload, or with a digest to do it at once.
    Begin {
        /// For the origin.
        query: String,
        /// What the body is.
        digest: Option<Digest>,
        /// What to mount.
        mount: Option<Digest>,
        /// From which repository of the same upstream.
        from: Option<String>,
    },
    /// To go on with an upload; with a digest, to end it.
    Go {
        /// Its number here.
        id: String,
        /// What the blob must be.
        digest: Option<Digest>,
    },
    /// To put a manifest.
    Manifest(Reference),
}

impl Asked {
    /// A path below the repository, as the client would write it.
    pub(super) fn path(&self, target: &Target, below: &str) -> String {
        format!("{}/{below}{}", self.root, super::namespace(target))
    }

    pub(super) const fn mount(&self) -> Option<Digest> {
        match self.what {
            What::Begin { mount, .. } => mount,
            What::Go { .. } | What::Manifest(_) => None,
        }
    }
}

impl Upstreams {
    /// Parses a request that pushes; none if it does not, or its upstream does not allow it.
    ///
    /// # Errors
    /// As [`Upstreams::route`].
    pub(in super::super) fn pushes(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
    ) -> Result<Option<(Target, Asked)>, Failure> {
        let Some((name, rest)) = path.strip_prefix("/v2/").and_then(|path| place(method, path)) else {
            return Ok(None);
        };
        let target = self.target(name, query)?;
        if !target.upstream.push {
            return Ok(None);
        }
        let parameter = |wanted: &str| {
            let mut all = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
            all.find(|(key, _)| key == wanted).map(|(_, value)| value.into_owned())
        };
        let digest = |wanted: &str| parameter(wanted).map(|text| name::digest(&text)).transpose();
        let what = match rest {
            Place::Uploads => self.begin(
                &target,
                digest("digest")?,
                digest("mount")?,
                parameter("from"),
                parameter("digest-algorithm"),
            )?,
            Place::Upload(id) => What::Go { id: id.to_owned(), digest: digest("digest")? },
            Place::Manifest(reference) => What::Manifest(Reference::parse(reference)?),
        };
        Ok(Some((target, Asked { root: format!("/v2/{name}"), what })))
    }

    fn begin(
        &self,
        target: &Target,
        digest: Option<Digest>,
        mount: Option<Digest>,
        from: Option<String>,
        algorithm: Option<String>,
    ) -> Result<What, Failure> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        // A blob of another registry cannot be mounted: then it is an upload like any other, as the specification wants it.
        let from = from.map(|from| self.mounted_from(target, &from)).transpose()?.flatten();
        let mount = mount.filter(|_| from.is_some());
        if let (Some(mount), Some(from)) = (&mount, &from) {
            query.append_pair("mount", &mount.to_string()).append_pair("from", from);
        }
        query.extend_pairs(digest.map(|digest| ("digest", digest.to_string())));
        if let Some(algorithm) = algorithm {
            if !matches!(algorithm.as_str(), "sha256" | "sha512") {
                return Err(Failure::bad_request(Code::Unsupported, "the digest algorithm is not sha256 or sha512"));
            }
            query.append_pair("digest-algorithm", &algorithm);
        }
        Ok(What::Begin { query: query.finish(), digest, mount, from })
    }

    /// The repository at the same upstream that a client means by `from`; none if it is at another.
    fn mounted_from(&self, target: &Target, from: &str) -> Result<Option<String>, Failure> {
        let named = if target.namespace.is_some() { None } else { from.split_once('/') };
        let (upstream, repository) = match named.and_then(|(first, rest)| Some((self.named(first)?, rest))) {
            Some((upstream, rest)) => (upstream, rest),
            None => (&target.upstream, from),
        };
        if !name::is_repository(repository) {
            return Err(Failure::bad_request(Code::NameInvalid, "malformed name of the repository to mount from"));
        }
        let same = upstream.name == target.upstream.name;
        Ok(same.then(|| name::at_upstream(&upstream.name, repository)))
    }
}

enum Place<'a> {
    Uploads,
    Upload(&'a str),
    Manifest(&'a str),
}

/// Splits what follows `/v2/` into a name and what is asked there.
fn place<'a>(method: &Method, path: &'a str) -> Option<(&'a str, Place<'a>)> {
    if *method == Method::POST {
        let name = path.strip_suffix("/blobs/uploads/").or_else(|| path.strip_suffix("/blobs/uploads"))?;
        return Some((name, Place::Uploads));
    }
    let (before, last) = path.rsplit_once('/')?;
    match (before.strip_suffix("/blobs/uploads"), before.strip_suffix("/manifests")) {
        (Some(name), _) if matches!(*method, Method::GET | Method::PATCH | Method::PUT | Method::DELETE) => {
            Some((name, Place::Upload(last)))
        }
        (_, Some(name)) if *method == Method::PUT => Some((name, Place::Manifest(last))),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{super::super::fake, *};

    fn upstreams() -> Upstreams {
        let names = ["a.test:5000", "b.test"].map(|name| (name.to_owned(), fake::upstream_with_push(name)));
        let without = (String::from("c.test"), fake::upstream("c.test"));
        Upstreams::new(names.into_iter().chain([without]).collect(), Some("b.test"))
    }

    fn asked(method: Method, path: &str, query: &str) -> Result<Option<(String, What)>, Code> {
        let pushes = upstreams().pushes(&method, path, Some(query));
        let asked = pushes.map_err(|failure| failure.code)?;
        Ok(asked.map(|(target, asked)| {
            (format!("{}/{} {}", target.upstream.name, target.repository, asked.root), asked.what)
        }))
    }

    #[test]
    fn only_what_pushes_to_an_upstream_that_allows_it_is_a_push() {
        for (method, path) in [
            (Method::POST, "/v2/c.test/x/blobs/uploads/"),
            (Method::PUT, "/v2/c.test/x/manifests/v1"),
            (Method::GET, "/v2/c.test/x/blobs/uploads/1"),
            (Method::POST, "/v2/x/manifests/v1"),
            (Method::DELETE, "/v2/x/manifests/v1"),
            (Method::DELETE, "/v2/x/blobs/sha256:00"),
            (Method::GET, "/v2/x/manifests/v1"),
            (Method::HEAD, "/v2/x/blobs/uploads/1"),
            (Method::PUT, "/v2/blobs/uploads/"),
            (Method::POST, "/v2/"),
            (Method::POST, "/x/blobs/uploads/"),
        ] {
            assert_eq!(asked(method.clone(), path, ""), Ok(None), "{method} {path}");
        }
        let begin = What::Begin { query: String::new(), digest: None, mount: None, from: None };
        let expected = Ok(Some((String::from("a.test:5000/x/y /v2/a.test:5000/x/y"), begin)));
        assert_eq!(asked(Method::POST, "/v2/a.test:5000/x/y/blobs/uploads/", ""), expected);
        let go = What::Go { id: String::from("1"), digest: None };
        for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
            let named =
                Ok(Some((String::from("a.test:5000/x /v2/x"), What::Go { id: String::from("1"), digest: None })));
            assert_eq!(asked(method, "/v2/x/blobs/uploads/1", "ns=a.test:5000"), named);
        }
        assert_eq!(asked(Method::PUT, "/v2/x/blobs/uploads/1", "").unwrap().unwrap().1, go);
    }

    #[test]
    fn a_mount_is_asked_for_within_one_registry_only() {
        let hex = "0".repeat(64);
        let mount = format!("mount=sha256%3A{hex}");
        for (path, query, sent) in [
            ("/v2/a.test:5000/x/blobs/uploads/", "from=a.test:5000/y/z", format!("{mount}&from=y%2Fz")),
            ("/v2/a.test:5000/x/blobs/uploads/", "from=y", format!("{mount}&from=y")),
            ("/v2/a.test:5000/x/blobs/uploads/", "from=b.test/y", String::new()),
            ("/v2/x/blobs/uploads/", "from=b.test/y&ns=a.test:5000", format!("{mount}&from=b.test%2Fy")),
            ("/v2/x/blobs/uploads/", "", String::new()),
        ] {
            let (_, what) = asked(Method::POST, path, &format!("mount=sha256:{hex}&{query}")).unwrap().unwrap();
            assert!(matches!(&what, What::Begin { query, .. } if *query == sent), "{path} {query}: {what:?}");
        }
        let from = |from: &str| asked(Method::POST, "/v2/x/blobs/uploads/", &format!("mount=sha256:{hex}&from={from}"));
        for name in ["../y", "A", "y%0d%0a", "http://evil.test/y", ""] {
            assert_eq!(from(name), Err(Code::NameInvalid), "{name}");
        }
    }

    #[test]
    fn digests_and_algorithms_are_checked_before_anybody_is_asked() {
        for query in ["digest=latest", "digest=sha256:00", "mount=x&from=y", "digest="] {
            assert_eq!(asked(Method::POST, "/v2/x/blobs/uploads/", query), Err(Code::DigestInvalid), "{query}");
        }
        assert_eq!(asked(Method::PUT, "/v2/x/blobs/uploads/1", "digest=sha384:00"), Err(Code::DigestInvalid));
        assert_eq!(asked(Method::POST, "/v2/x/blobs/uploads/", "digest-algorithm=md5"), Err(Code::Unsupported));
        assert_eq!(asked(Method::PUT, "/v2/x/manifests/sha256:00", ""), Err(Code::DigestInvalid));
        assert_eq!(asked(Method::PUT, "/v2/x/manifests/.x", ""), Err(Code::ManifestUnknown));
        assert_eq!(asked(Method::POST, "/v2/A/blobs/uploads/", ""), Err(Code::NameInvalid));
        assert_eq!(asked(Method::POST, "/v2/x/blobs/uploads/", "ns=evil.test"), Err(Code::NameUnknown));
    }
}
