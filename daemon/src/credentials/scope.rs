//! The keys of credential files: which registry, and which part of it, an entry is for.

use crate::credentials::pattern::host_matches;

/// What a credential is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// `host[:port]`, as [`canonical_host`] makes it.
    pub(super) host: String,
    /// The repository at that host: `library/alpine`.
    pub(super) repository: String,
}

impl Target {
    /// As image references have it, without tag and digest.
    pub(super) fn image(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

/// Docker Hub, under whichever of its names.
pub(super) const DOCKER_HUB: &str = "docker.io";

/// One form for each registry: lower case, Docker Hub under one name.
pub(super) fn canonical_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "www.docker.io" => DOCKER_HUB.to_owned(),
        _ => host,
    }
}

/// How well a key fits; the greatest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fit {
    /// Its path covers the repository; else it is a URL, whose path docker does not look at.
    covers: bool,
    segments: usize,
    /// Its host has no wildcard.
    plain: bool,
}

/// A key of `auths` or `credHelpers`: `HOST[:PORT][/PATH]`, or a URL of docker's older days
/// (`https://index.docker.io/v1/`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    host: String,
    /// Without slashes around it. Empty: the whole registry.
    path: String,
    url: bool,
}

impl Scope {
    /// None if no registry can have this name.
    pub(super) fn parse(key: &str) -> Option<Self> {
        let (scheme, rest) = match key.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, key),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() || key.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
            return None;
        }
        let usual_port = if scheme == Some("http") { ":80" } else { ":443" };
        let path = path.trim_matches('/');
        Some(Self {
            host: canonical_host(authority.strip_suffix(usual_port).unwrap_or(authority)),
            // The API's version is no namespace.
            path: if matches!(path, "v1" | "v2") { String::new() } else { path.to_owned() },
            url: scheme.is_some(),
        })
    }

    /// How well this key fits; none if it does not.
    pub(super) fn fit(&self, target: &Target) -> Option<Fit> {
        if !host_matches(&self.host, &target.host) {
            return None;
        }
        let plain = !self.host.contains('*');
        let rest = target.repository.strip_prefix(&self.path);
        // Whole segments only: `team` is not the beginning of `teamsters`.
        if self.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            let segments = if self.path.is_empty() { 0 } else { self.path.split('/').count() };
            return Some(Fit { covers: true, segments, plain });
        }
        self.url.then_some(Fit { covers: false, segments: 0, plain })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn target(host: &str, repository: &str) -> Target {
        Target { host: canonical_host(host), repository: repository.to_owned() }
    }

    fn best<'a>(keys: &[&'a str], host: &str, repository: &str) -> Option<&'a str> {
        let target = target(host, repository);
        keys.iter()
            .filter_map(|key| Some((Scope::parse(key)?.fit(&target)?, *key)))
            .max_by_key(|(fit, _)| *fit)
            .map(|(_, key)| key)
    }

    #[test]
    fn docker_hub_is_known_by_all_its_names() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://registry-1.docker.io/v2/",
            "index.docker.io/v1/",
        ] {
            for host in ["docker.io", "registry-1.docker.io"] {
                assert_eq!(best(&[key], host, "library/alpine"), Some(key), "{key} for {host}");
            }
        }
        assert_eq!(best(&["https://index.docker.io/v1/"], "ghcr.io", "x"), None);
    }

    #[test]
    fn schemes_usual_ports_and_letter_case_make_no_difference() {
        for key in [
            "a.test",
            "https://a.test",
            "http://a.test/",
            "A.Test/v2/",
            "a.test:443",
            "http://a.test:80",
            "https://a.test/v1/",
        ] {
            assert_eq!(best(&[key], "a.test", "x"), Some(key));
        }
        for key in ["a.test:5000", "https://a.test:5000/v1/"] {
            assert_eq!(best(&[key], "a.test:5000", "x"), Some(key));
            assert_eq!(best(&[key], "a.test", "x"), None, "another port is another registry");
        }
    }

    #[test]
    fn the_most_specific_path_wins_and_paths_end_at_slashes() {
        let keys = ["a.test", "a.test/team", "a.test/team/app", "a.test/te"];
        for (repository, expected) in [
            ("team/app", "a.test/team/app"),
            ("team/app/part", "a.test/team/app"),
            ("team/apple", "a.test/team"),
            ("teams/x", "a.test"),
            ("x", "a.test"),
        ] {
            assert_eq!(best(&keys, "a.test", repository), Some(expected), "{repository}");
        }
        assert_eq!(best(&["a.test/team"], "a.test", "other/x"), None);
    }

    #[test]
    fn the_path_of_a_url_is_a_preference_only() {
        let keys = ["https://a.test/team", "https://a.test/"];
        assert_eq!(best(&keys, "a.test", "team/x"), Some(keys[0]));
        assert_eq!(best(&keys, "a.test", "other/x"), Some(keys[1]));
        assert_eq!(best(&keys[..1], "a.test", "other/x"), Some(keys[0]));
    }

    #[test]
    fn wildcards_match_whole_labels_and_come_after_plain_hosts() {
        assert_eq!(best(&["*.a.test", "r.a.test"], "r.a.test", "x"), Some("r.a.test"));
        assert_eq!(best(&["*.a.test"], "q.r.a.test", "x"), None);
    }

    #[test]
    fn keys_that_name_no_registry_fit_nothing() {
        for key in ["", "/", "https://", "a b", "a\u{7}.test", "\n"] {
            assert_eq!(Scope::parse(key), None, "{key:?}");
        }
    }
}
