//! Host patterns, by the rules of the kubelet (`URLsMatch` in `pkg/credentialprovider/keyring.go`).

use std::cmp::Ordering;

/// Splits `host[:port]`; the port is empty if there is none.
pub(super) fn split_port(authority: &str) -> (&str, &str) {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (host, port),
        _ => (authority, ""),
    }
}

/// Whether `host[:port]` matches a pattern of the same form: as many labels, each matched on its own (`*` is any run of
/// characters within one), and the very same port.
pub(super) fn host_matches(pattern: &str, authority: &str) -> bool {
    let ((pattern, pattern_port), (host, port)) = (split_port(pattern), split_port(authority));
    pattern_port == port
        && pattern.split('.').count() == host.split('.').count()
        && pattern.split('.').zip(host.split('.')).all(|(glob, label)| label_matches(glob.as_bytes(), label.as_bytes()))
}

/// `*` in `glob` stands for any run of bytes, also none.
fn label_matches(glob: &[u8], label: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star stood, and what it has swallowed up to.
    let mut star: Option<(usize, usize)> = None;
    while from < label.len() {
        if glob.get(at) == Some(&b'*') {
            star = Some((at, from));
            at += 1;
        } else if glob.get(at) == Some(&label[from]) {
            at += 1;
            from += 1;
        } else if let Some((place, swallowed)) = star {
            star = Some((place, swallowed + 1));
            at = place + 1;
            from = swallowed + 1;
        } else {
            return false;
        }
    }
    glob[at..].iter().all(|&byte| byte == b'*')
}

/// A pattern for images: a host pattern and the beginning of a path. From `matchImages` and from the answers of plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImagePattern {
    host: String,
    /// Empty, or with a slash in front. Not cut at segments: the kubelet compares the plain beginning.
    path: String,
}

impl ImagePattern {
    /// Reads `HOST[:PORT][/PATH]`.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let (host, path) = match text.find('/') {
            Some(slash) => text.split_at(slash),
            None => (text, ""),
        };
        if text.contains("://") {
            return Err("it has a scheme; the form is HOST[:PORT][/PATH]");
        }
        if host.is_empty() || text.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
            return Err("it is not HOST[:PORT][/PATH]");
        }
        if host.contains(['[', ']', '?', '\\', '@', '#']) {
            return Err("its host has a character that no host has; the only wildcard is *");
        }
        if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_err()) {
            return Err("its port is not a number");
        }
        if path.contains('*') {
            return Err("* is allowed in the host only");
        }
        Ok(Self { host: host.to_owned(), path: path.to_owned() })
    }

    /// Whether `image` (`docker.io/library/alpine`, without tag and digest) matches.
    pub(super) fn matches(&self, image: &str) -> bool {
        let (host, path) = image.split_at(image.find('/').unwrap_or(image.len()));
        path.starts_with(&self.path) && host_matches(&self.host, host)
    }

    /// Most specific first, as the kubelet has it: in reverse order of the text, so that longer ones come before what they
    /// begin with, and plain ones before wildcards.
    pub(super) fn specific_first(one: &Self, other: &Self) -> Ordering {
        (&other.host, &other.path).cmp(&(&one.host, &one.path))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn matches(pattern: &str, image: &str) -> bool {
        ImagePattern::parse(pattern).unwrap().matches(image)
    }

    #[test]
    fn each_label_of_the_host_is_matched_by_itself() {
        let image = "1234.dkr.ecr.eu-west-1.amazonaws.com/team/app";
        for pattern in ["*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-*-1.amazonaws.com", "*.*.*.*.*.*"] {
            assert!(matches(pattern, image), "{pattern}");
        }
        for pattern in [
            "*.amazonaws.com",
            "*",
            "*.dkr.ecr.*.amazonaws.com.cn",
            "dkr.ecr.*.amazonaws.com",
            "*.dkr.ecr.us-*.amazonaws.com",
        ] {
            assert!(!matches(pattern, image), "{pattern}");
        }
        assert!(matches("*.azurecr.*", "team.azurecr.io/x") && matches("app*.k8s.io", "app.k8s.io/x"));
        assert!(!matches("app*.k8s.io", "ap.k8s.io/x") && !matches("*.io", "a.b.io/x"));
    }

    #[test]
    fn ports_are_compared_and_paths_are_plain_beginnings() {
        assert!(matches("a.test:5000", "a.test:5000/x"));
        assert!(!matches("a.test", "a.test:5000/x") && !matches("a.test:5000", "a.test/x"));
        assert!(matches("a.test/team", "a.test/team/x") && matches("a.test/team", "a.test/teams/x"));
        assert!(!matches("a.test/team", "a.test/other/x") && !matches("a.test/team/", "a.test/teams/x"));
    }

    #[test]
    fn the_most_specific_pattern_comes_first() {
        let mut patterns: Vec<_> =
            ["*.test", "a.test", "a.test/team/x", "a.test/team"].map(|text| ImagePattern::parse(text).unwrap()).into();
        patterns.sort_by(ImagePattern::specific_first);
        let order: Vec<_> = patterns.iter().map(|pattern| format!("{}{}", pattern.host, pattern.path)).collect();
        assert_eq!(order, ["a.test/team/x", "a.test/team", "a.test", "*.test"]);
    }

    #[test]
    fn patterns_of_another_form_are_refused() {
        for text in [
            "",
            "/x",
            "https://a.test",
            "a b.test",
            "a.test\n",
            "a[0-9].test",
            "a.test/*",
            "a?.test",
            "u@a.test",
            "a.test:*",
            "a.test:",
        ] {
            assert!(ImagePattern::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn many_stars_do_not_make_a_match_slow() {
        let glob = "*a".repeat(200);
        assert!(!label_matches(glob.as_bytes(), "a".repeat(150).as_bytes()));
        assert!(label_matches(glob.as_bytes(), "a".repeat(60_000).as_bytes()));
    }
}
