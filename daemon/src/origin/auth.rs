//! Challenges of registries (RFC 9110 section 11, Distribution's token authentication) and which of them we answer.

use http_auth::{ChallengeRef, parser::ChallengeParser};
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use url::{Host, Url};

use crate::origin::reach;

/// Longest `WWW-Authenticate` line that is read.
const CHALLENGE_BYTES: usize = 8 * 1024;

/// Scopes that are passed on from one challenge.
const SCOPES: usize = 8;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// The password itself.
    Basic,
    /// A token from the realm.
    Bearer(Bearer),
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    /// As the registry wrote it: not yet checked.
    pub(super) realm: String,
    pub(super) service: Option<String>,
    /// Empty if the registry named none.
    pub(super) scopes: Vec<String>,
}

/// The challenges of a 401 that we can answer, in order. What cannot be parsed hides none of the others.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|line| line.to_str().ok());
    lines
        .filter(|line| line.len() <= CHALLENGE_BYTES)
        .flat_map(pieces)
        .flat_map(|piece| ChallengeParser::new(piece).map_while(Result::ok))
        .filter_map(|challenge| known(&challenge))
        .collect()
}

/// A line cut in front of every scheme that we know: others may be followed by what the parser does not read (`NTLM abc==`).
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let (mut cuts, mut quoted, mut escaped, mut first) = (vec![0], false, false, true);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => (quoted, first) = (!quoted, false),
            b',' if !quoted => first = true,
            b' ' | b'\t' => {}
            _ => {
                if first && !quoted && begins_known_scheme(&line.as_bytes()[at..]) {
                    cuts.push(at);
                }
                first = false;
            }
        }
    }
    cuts.push(line.len());
    let bounds: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
    bounds.into_iter().map(|bounds| line[bounds].trim_matches([',', ' ', '\t']))
}

fn begins_known_scheme(text: &[u8]) -> bool {
    let end = text.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(text.len());
    let (scheme, rest) = text.split_at(end);
    let is_known = scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"basic");
    // `basic=...` would be a parameter.
    is_known && matches!(rest.first(), None | Some(b' ' | b'\t' | b','))
}

fn known(challenge: &ChallengeRef<'_>) -> Option<Challenge> {
    let parameter = |name: &str| {
        let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    if challenge.scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !challenge.scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let scopes = parameter("scope").unwrap_or_default();
    Some(Challenge::Bearer(Bearer {
        realm: parameter("realm")?,
        service: parameter("service").filter(|service| !service.is_empty()),
        scopes: scopes.split_ascii_whitespace().take(SCOPES).map(str::to_owned).collect(),
    }))
}

/// Why a token realm is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RealmError {
    #[error("the token realm is not a URL with a host")]
    Form,
    #[error("the token realm is not https")]
    Plain,
    #[error(
        "the token realm is on another site than the registry; if that is right, add it to this upstream's realm hosts"
    )]
    Site,
}

/// Checks that a realm may be given this registry's credentials: same site, and https unless the registry itself is plain HTTP on the
/// same host or both are on loopback.
pub(super) fn check_realm(registry: &Url, realm: &str, trusted: &[String]) -> Result<Url, RealmError> {
    let realm = Url::parse(realm).map_err(|_| RealmError::Form)?;
    let (Some(home), Some(host)) = (registry.host(), realm.host()) else { return Err(RealmError::Form) };
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err(RealmError::Form);
    }
    let both_loopback = reach::is_loopback(registry) && reach::is_loopback(&realm);
    match realm.scheme() {
        "https" => {}
        "http" if registry.scheme() == "http" && (home == host || both_loopback) => {}
        _ => return Err(RealmError::Plain),
    }
    let is_trusted = realm.host_str().is_some_and(|host| trusted.iter().any(|name| name.eq_ignore_ascii_case(host)));
    if home == host || both_loopback || is_trusted || same_site(&home, &host) {
        return Ok(realm);
    }
    Err(RealmError::Site)
}

/// Suffixes under which anybody can have a name, so that sharing them says nothing. Not the Public Suffix List: those that
/// registries and token servers are seen under.
const SHARED_SUFFIXES: [&str; 18] = [
    "amazonaws.com",
    "appspot.com",
    "azure.com",
    "azurecr.io",
    "azurewebsites.net",
    "cloudfront.net",
    "digitaloceanspaces.com",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "nip.io",
    "pages.dev",
    "pkg.dev",
    "run.app",
    "sslip.io",
    "svc.cluster.local",
    "windows.net",
    "workers.dev",
];

/// Second labels that are a suffix under a country: `co.uk`, `com.au`, `ac.jp`.
const COUNTRY_SECOND_LEVELS: [&str; 16] =
    ["ac", "asso", "co", "com", "edu", "gob", "gouv", "gov", "ltd", "mil", "ne", "net", "nom", "or", "org", "sch"];

/// Whether two names share their registrable domain, as far as can be told without the Public Suffix List: unsure means no.
fn same_site(one: &Host<&str>, other: &Host<&str>) -> bool {
    let (Host::Domain(one), Host::Domain(other)) = (one, other) else { return false };
    let (Some(one), Some(other)) = (site(one), site(other)) else { return false };
    one == other
}

/// The registrable domain of a name: one label more than its public suffix.
fn site(name: &str) -> Option<&str> {
    let is_under =
        |suffix: &str| name.strip_suffix(suffix).is_some_and(|front| front.is_empty() || front.ends_with('.'));
    let suffix_labels = match SHARED_SUFFIXES.iter().find(|suffix| is_under(suffix)) {
        Some(suffix) => suffix.split('.').count(),
        None => {
            let mut labels = name.rsplit('.');
            let (top, second) = (labels.next()?, labels.next()?);
            if top.len() == 2 && COUNTRY_SECOND_LEVELS.contains(&second) { 2 } else { 1 }
        }
    };
    let dots: Vec<_> = name.rmatch_indices('.').map(|(at, _)| at).collect();
    match dots.len().checked_sub(suffix_labels)? {
        0 => Some(name),
        _ => dots.get(suffix_labels).map(|at| &name[at + 1..]),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Vec<Challenge> {
        challenges(&lines.iter().map(|line| (WWW_AUTHENTICATE, line.parse().unwrap())).collect())
    }

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        })
    }

    #[test]
    fn several_challenges_with_quoted_commas_are_told_apart() {
        let bearer_part =
            r#"Bearer realm="https://a/token",service="s, t",scope="repository:x:pull,push repository:y:pull""#;
        assert_eq!(
            parse(&[&format!(r#"Negotiate, {bearer_part}, basic realm="z""#)]),
            [
                bearer("https://a/token", Some("s, t"), &["repository:x:pull,push", "repository:y:pull"]),
                Challenge::Basic
            ]
        );
    }

    #[test]
    fn schemes_that_are_not_ours_hide_none_behind_them() {
        let both = [bearer("https://a/t", None, &[]), Challenge::Basic];
        for line in [
            r#"NTLM abc==, Bearer realm="https://a/t", Basic"#,
            r#"Digest realm="x, Basic y",qop="auth",bearer ReAlM="https://a/t" ,,  BASIC realm=z"#,
            r#"Signature keyId="\", Bearer realm=\"no",	Bearer realm="https://a/t", basic realm="""#,
        ] {
            assert_eq!(parse(&[line]), both, "{line}");
        }
        assert_eq!(parse(&[r#"Digest basic="x", bearer="y", realm="z""#]), []);
    }

    proptest::proptest! {
        #[test]
        fn no_line_breaks_the_parser(line in "[ -~\t]{0,200}") {
            parse(&[&line, "Basic"]).pop().unwrap();
        }
    }

    #[test]
    fn an_unreadable_line_does_not_hide_the_next() {
        assert_eq!(parse(&["Negotiate abc==", r#"BEARER Realm="https://a""#]), [bearer("https://a", None, &[])]);
        assert_eq!(parse(&[r#"Bearer service="no realm""#]), []);
        assert_eq!(parse(&[&format!(r#"Basic realm="{}""#, "x".repeat(CHALLENGE_BYTES))]), []);
    }

    fn realm(registry: &str, realm: &str) -> Result<(), RealmError> {
        check_realm(&Url::parse(registry).unwrap(), realm, &["sso.elsewhere.org".to_owned()]).map(drop)
    }

    #[test]
    fn a_realm_of_the_same_site_is_asked() {
        for (registry, at) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("https://registry.example.co.uk", "https://login.example.co.uk/t"),
            ("https://a.harbor.svc.cluster.local", "https://b.harbor.svc.cluster.local/t"),
            ("https://registry:5000", "https://registry:5001/t"),
            ("https://10.0.0.1", "https://10.0.0.1:8443/t"),
            ("http://registry:5000", "http://registry:5001/t"),
            ("http://127.0.0.1:5000", "http://localhost:5001/t"),
            ("https://registry.example.com", "https://sso.elsewhere.org/t"),
        ] {
            assert_eq!(realm(registry, at), Ok(()), "{registry} {at}");
        }
    }

    #[test]
    fn a_realm_of_another_site_or_in_plain_http_is_refused() {
        for (registry, at, error) in [
            ("https://registry.example.com", "https://evil.org/token", RealmError::Site),
            ("https://registry.example.com", "https://notexample.com/token", RealmError::Site),
            ("https://registry.example.com", "https://com/token", RealmError::Site),
            ("https://registry.one.co.uk", "https://two.co.uk/t", RealmError::Site),
            ("https://one.azurecr.io", "https://two.azurecr.io/t", RealmError::Site),
            ("https://a.one.svc.cluster.local", "https://a.two.svc.cluster.local/t", RealmError::Site),
            ("https://registry", "https://other/t", RealmError::Site),
            ("https://10.0.0.1", "https://10.0.0.2/t", RealmError::Site),
            ("https://registry.example.com", "http://registry.example.com/t", RealmError::Plain),
            ("http://registry.example.com", "http://auth.example.com/t", RealmError::Plain),
            ("https://127.0.0.1", "http://127.0.0.1/t", RealmError::Plain),
            ("https://registry.example.com", "file:///etc/passwd", RealmError::Form),
            ("https://registry.example.com", "https://user@registry.example.com/t", RealmError::Form),
            ("https://registry.example.com", "/token", RealmError::Form),
        ] {
            assert_eq!(realm(registry, at), Err(error), "{registry} {at}");
        }
    }
}
