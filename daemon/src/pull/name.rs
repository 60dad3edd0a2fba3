//! Image names as users write them.

use shoal_proto::digest::{Digest, DigestError};

use crate::registry::name::{is_registry, is_repository, is_tag};

/// What a name without tag and digest means, for every client.
const DEFAULT_TAG: &str = "latest";

/// An image name, `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageName {
    /// The registry, if one is named; in lower case.
    pub(super) registry: Option<String>,
    /// As written: without Docker Hub's `library/`.
    pub(super) repository: String,
    pub(super) reference: Reference,
}

/// Which of a repository's images. A tag beside a digest means nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    Tag(String),
    Digest(Digest),
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    /// Copied from a browser or from a tool that has transports.
    #[error("write the image without {0}")]
    Scheme(String),
    /// Not a repository.
    #[error("{0:?} is not a repository name (lower case letters, digits, and . _ - between them)")]
    Repository(String),
    /// Not a tag.
    #[error("{0:?} is not a tag (at most 128 letters, digits, . _ -)")]
    Tag(String),
    /// Not a digest.
    #[error("{text:?} is not a digest: {source}")]
    Digest {
        /// What stands behind the `@`.
        text: String,
        /// What is wrong with it.
        source: DigestError,
    },
}

impl ImageName {
    /// Parses a name. The first component is a registry if it looks like one (it has a `.` or `:`, or is `localhost`), as
    /// everywhere, or if `is_upstream` knows it.
    pub(super) fn parse(text: &str, is_upstream: impl Fn(&str) -> bool) -> Result<Self, NameError> {
        let text = text.trim();
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(NameError::Scheme(format!("{scheme}://")));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if looks_like_registry(first) || is_upstream(first) => {
                (Some(first.to_ascii_lowercase()), rest)
            }
            _ => (None, rest),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(parse_tag(tag)?)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(NameError::Repository(repository.to_owned()));
        }
        let tag = tag.unwrap_or_else(|| DEFAULT_TAG.to_owned());
        let reference = digest.map_or(Reference::Tag(tag), Reference::Digest);
        Ok(Self { registry, repository: repository.to_owned(), reference })
    }
}

fn looks_like_registry(text: &str) -> bool {
    is_registry(text) && (text.contains(['.', ':']) || text == "localhost")
}

fn parse_digest(text: &str) -> Result<Digest, NameError> {
    text.parse().map_err(|source| NameError::Digest { text: text.to_owned(), source })
}

fn parse_tag(text: &str) -> Result<String, NameError> {
    if is_tag(text) { Ok(text.to_owned()) } else { Err(NameError::Tag(text.to_owned())) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ImageName, NameError> {
        ImageName::parse(text, |name| name == "mirror")
    }

    fn parts(text: &str) -> (Option<String>, String, Reference) {
        let ImageName { registry, repository, reference } = parse(text).unwrap();
        (registry, repository, reference)
    }

    #[test]
    fn names_are_read_as_every_client_reads_them() {
        let tag = |tag: &str| Reference::Tag(tag.to_owned());
        for (text, registry, repository, reference) in [
            ("alpine", None, "alpine", tag("latest")),
            ("alpine:3", None, "alpine", tag("3")),
            (" library/alpine:3 ", None, "library/alpine", tag("3")),
            ("docker.io/library/alpine", Some("docker.io"), "library/alpine", tag("latest")),
            ("GHCR.io/team/app:v1", Some("ghcr.io"), "team/app", tag("v1")),
            ("registry.test:5000/app", Some("registry.test:5000"), "app", tag("latest")),
            ("registry.test:5000/team/app:V1.2_x", Some("registry.test:5000"), "team/app", tag("V1.2_x")),
            ("localhost/app", Some("localhost"), "app", tag("latest")),
            ("localhost:5000", None, "localhost", tag("5000")),
            ("[::1]:5000/app", Some("[::1]:5000"), "app", tag("latest")),
            ("mirror/app", Some("mirror"), "app", tag("latest")),
            ("team/app", None, "team/app", tag("latest")),
        ] {
            let expected = (registry.map(str::to_owned), repository.to_owned(), reference);
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_counts_and_a_tag_beside_it_does_not() {
        let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        for text in [format!("registry.test:5000/app@{digest}"), format!("registry.test:5000/app:v1@{digest}")] {
            let registry = Some("registry.test:5000".to_owned());
            assert_eq!(parts(&text), (registry, "app".to_owned(), Reference::Digest(digest)), "{text}");
        }
    }

    #[test]
    fn what_names_no_image_is_told_by_the_part_that_is_wrong() {
        for text in ["", "Alpine", "docker.io/", "docker.io/Team/app", "a//b", "a/../b", "a b", "/a", "-/a", "a%2fb"] {
            assert!(matches!(parse(text), Err(NameError::Repository(_))), "{text}");
        }
        for text in ["a:", "a:b:c", "a:b/c", "a:.x", "registry.test:port/app", &format!("a:{}", "t".repeat(129))] {
            assert!(matches!(parse(text), Err(NameError::Tag(_))), "{text}");
        }
        for text in ["a@", "a@latest", "a@sha256:abc", "a@sha256:abc@sha256:abc", "a:v1@md5:abc"] {
            assert!(matches!(parse(text), Err(NameError::Digest { .. })), "{text}");
        }
        assert_eq!(parse("docker://alpine").unwrap_err().to_string(), "write the image without docker://");
    }
}
