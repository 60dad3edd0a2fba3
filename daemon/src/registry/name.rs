//! Names that clients put into paths: repositories, tags, digests and hosts. Parsed from the raw, undecoded text, so
//! that an escape (`%2f`) can never mean something here and something else elsewhere.

use shoal_proto::digest::Digest;

use super::error::{Code, Failure};

/// The one registry whose single-component names mean something else: `alpine` is `library/alpine`.
const DOCKER_HUB: &str = "docker.io";
/// Longest repository name (with its registry prefix) that clients agree on, in bytes.
pub(super) const NAME_BYTES: usize = 255;
/// Longest tag the distribution specification allows, in bytes.
const TAG_BYTES: usize = 128;
/// Longest DNS name, in bytes.
const HOST_BYTES: usize = 253;

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reference {
    /// A tag, which only the origin may resolve.
    Tag(String),
    /// A digest.
    Digest(Digest),
}

impl Reference {
    /// Parses the last path component of `/manifests/<reference>`. A colon makes it a digest: tags have none.
    ///
    /// A malformed tag is `MANIFEST_UNKNOWN` with 404, not 400: no registry can have it, and the conformance suite
    /// asks for `.INVALID_MANIFEST_NAME` and wants 404.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        if text.contains(':') {
            return digest(text).map(Self::Digest);
        }
        if is_tag(text) {
            return Ok(Self::Tag(text.to_owned()));
        }
        Err(Failure::not_found(Code::ManifestUnknown, "not a tag and not a digest"))
    }
}

/// Parses a digest, or says why it is none.
pub(super) fn digest(text: &str) -> Result<Digest, Failure> {
    text.parse().map_err(|error| Failure::bad_request(Code::DigestInvalid, format!("{error}")))
}

/// A repository as the upstream knows it: Docker Hub keeps names of a single component under `library/`.
pub(crate) fn at_upstream(upstream: &str, repository: &str) -> String {
    if upstream == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    }
}

/// Whether `text` is a repository name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, components joined by `/`.
pub(crate) fn is_repository(text: &str) -> bool {
    text.len() <= NAME_BYTES && text.split('/').all(is_component)
}

/// One component: runs of lower-case letters and digits, joined by one of `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let run = rest.iter().take_while(|byte| alphanumeric(byte)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        let separator = rest.iter().take_while(|byte| !alphanumeric(byte)).count();
        match &rest[..separator] {
            [] => return rest.is_empty(),
            [b'.'] | [b'_'] | [b'_', b'_'] => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            _ => return false,
        }
        rest = &rest[separator..];
    }
}

/// Whether `text` is a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= TAG_BYTES
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// Whether `text` is written as `host` or `host:port` and as nothing else: no scheme, user, path or escape.
pub(crate) fn is_registry(text: &str) -> bool {
    split_port(text).is_some_and(|(host, _)| {
        host.strip_prefix('[').map_or_else(|| is_host_name(host), |rest| rest.strip_suffix(']').is_some_and(is_ipv6))
    })
}

/// Splits `host[:port]`; an IPv6 literal stays in its brackets. None if the port is no number below 65536.
pub(super) fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (host, port) = text.split_at(end);
    if port.is_empty() {
        return Some((host, None));
    }
    let digits = port.strip_prefix(':')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((host, Some(digits.parse().ok()?)))
}

fn is_host_name(text: &str) -> bool {
    text.len() <= HOST_BYTES
        && text.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

fn is_ipv6(text: &str) -> bool {
    text.parse::<std::net::Ipv6Addr>().is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar_of_the_distribution_specification() {
        for good in ["a", "library/alpine", "a.b/c_d/e__f/g-h/i---j", "0/1", "quay.io/x", &"a".repeat(NAME_BYTES)] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "..",
            "a/../b",
            "a..b",
            "a/.",
            ".a",
            "a.",
            "-a",
            "a-",
            "a___b",
            "a._b",
            "A",
            "library/Alpine",
            "a%2fb",
            "%2e%2e",
            "a b",
            "a:5000",
            "a:5000/b",
            "a\\b",
            "é",
            "a\u{0}",
            "a@b",
            &"a".repeat(NAME_BYTES + 1),
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
    }

    #[test]
    fn a_reference_is_a_tag_or_a_strict_digest() {
        let hex = "0".repeat(64);
        for tag in ["latest", "v1.2-3_4", "_x", "V1", &"t".repeat(TAG_BYTES)] {
            assert_eq!(Reference::parse(tag).unwrap(), Reference::Tag(tag.to_owned()));
        }
        for tag in ["", ".x", "-x", "a%20b", "a/b", "a+b", "é", &"t".repeat(TAG_BYTES + 1)] {
            assert_eq!(Reference::parse(tag).unwrap_err().code, Code::ManifestUnknown, "{tag}");
        }
        assert!(matches!(Reference::parse(&format!("sha256:{hex}")), Ok(Reference::Digest(_))));
        assert!(matches!(Reference::parse(&format!("sha512:{hex}{hex}")), Ok(Reference::Digest(_))));
        for text in [
            String::from("sha256:baddigeststring"),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha384:{hex}"),
            format!("sha256:{hex}/.."),
            String::from("a:b"),
            String::from(":"),
        ] {
            assert_eq!(Reference::parse(&text).unwrap_err().code, Code::DigestInvalid, "{text}");
        }
    }

    #[test]
    fn a_registry_is_a_host_and_perhaps_a_port_and_nothing_else() {
        for good in ["docker.io", "localhost", "registry.test:5000", "127.0.0.1:5901", "[::1]:5000", "a_b"] {
            assert!(is_registry(good), "{good}");
        }
        for bad in [
            "",
            ":5000",
            "a:",
            "a:b",
            "a:+1",
            "a:65536",
            "a:1:2",
            "http://x",
            "a@b",
            "a/b",
            "a b",
            "a..b",
            ".a",
            "a.",
            "[::1",
            "[x]",
            "[::1]5000",
            "::1",
            "a%2eb",
            "a?b",
            "a#b",
            &"a".repeat(HOST_BYTES + 1),
        ] {
            assert!(!is_registry(bad), "{bad}");
        }
    }
}
