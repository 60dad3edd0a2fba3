//! What a plugin says: `CredentialProviderResponse`.

use std::{fmt, time::Duration};

use crate::credentials::{
    Credential,
    fields::{at, inner_object, json, object, text},
    pattern::ImagePattern,
    provider::config::duration,
};

/// What an answer holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheKeyType {
    /// The very image.
    Image,
    /// All images of its registry.
    Registry,
    /// Every image.
    Global,
}

impl CacheKeyType {
    /// In the order in which they are looked for.
    pub(super) const ALL: [Self; 3] = [Self::Image, Self::Registry, Self::Global];

    /// Under which an answer for `image` is kept. An image's name has a slash, a registry's has none.
    pub(super) fn key(self, image: &str) -> &str {
        match self {
            Self::Image => image,
            Self::Registry => image.split_once('/').map_or(image, |(registry, _)| registry),
            Self::Global => "",
        }
    }
}

/// A parsed answer. Prints no credential.
pub(super) struct Answer {
    pub(super) key_type: CacheKeyType,
    /// None: the configured default. Zero: not at all.
    pub(super) cache_duration: Option<Duration>,
    /// Most specific first.
    auth: Vec<(ImagePattern, Result<Option<Credential>, String>)>,
}

impl Answer {
    /// Reads what a plugin wrote. `api_version` is the one it was asked in.
    pub(super) fn parse(said: &[u8], api_version: &str) -> Result<Self, String> {
        let document = json(said).map_err(|problem| format!("what it says: {problem}"))?;
        let top = object(&document, "what it says")?;
        if text(top, "kind", "")? != Some("CredentialProviderResponse") {
            return Err("what it says is no CredentialProviderResponse".to_owned());
        }
        if text(top, "apiVersion", "")? != Some(api_version) {
            return Err(format!("it answers in another apiVersion than {api_version}"));
        }
        let key_type = match text(top, "cacheKeyType", "")? {
            Some("Image") => CacheKeyType::Image,
            Some("Registry") => CacheKeyType::Registry,
            Some("Global") => CacheKeyType::Global,
            _ => return Err("its cacheKeyType is none of Image, Registry and Global".to_owned()),
        };
        let cache_duration = match text(top, "cacheDuration", "")? {
            Some(text) => Some(duration(text).map_err(|problem| format!("cacheDuration {problem}"))?),
            None => None,
        };
        let mut auth = Vec::new();
        for (key, entry) in inner_object(top, "auth", "")?.into_iter().flatten() {
            let place = at("auth", key);
            let entry = object(entry, &place)?;
            let (user, password) = (text(entry, "username", &place)?, text(entry, "password", &place)?);
            let credential = match (user, password) {
                (Some(user), Some(password)) => {
                    Credential::basic(user, password).map(Some).map_err(|problem| format!("{place}: {problem}"))
                }
                _ => Ok(None),
            };
            match ImagePattern::parse(bare(key)) {
                Ok(pattern) => auth.push((pattern, credential)),
                Err(problem) => tracing::warn!("a credential provider's {place} is left out: {problem}"),
            }
        }
        auth.sort_by(|(one, _), (other, _)| ImagePattern::specific_first(one, other));
        Ok(Self { key_type, cache_duration, auth })
    }

    /// The credential of the most specific pattern that matches. An answer without one says that none is needed.
    pub(super) fn credential(&self, image: &str) -> Result<Option<Credential>, String> {
        let of = |image: &str| self.auth.iter().find(|(pattern, _)| pattern.matches(image));
        // The kubelet takes Docker Hub's old name too, if nothing else is there.
        let old_hub = || image.starts_with("docker.io/").then(|| of(&format!("index.{image}"))).flatten();
        of(image).or_else(old_hub).map_or(Ok(None), |(_, credential)| credential.clone())
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("key_type", &self.key_type)
            .field("cache_duration", &self.cache_duration)
            .field("auth", &self.auth)
            .finish()
    }
}

/// Plugins may write keys as docker does: with a scheme, and with the API's version behind the host.
fn bare(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.strip_suffix('/').unwrap_or(key);
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn answer(rest: &str) -> Result<Answer, String> {
        let text = format!(r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}",{rest}}}"#);
        Answer::parse(text.as_bytes(), V1)
    }

    fn user(answer: &Answer, image: &str) -> Option<String> {
        match answer.credential(image).unwrap() {
            Some(Credential::Basic { username, .. }) => Some(username),
            Some(Credential::Identity(_) | Credential::Bearer(_)) | None => None,
        }
    }

    #[test]
    fn the_most_specific_pattern_that_matches_gives_the_credential() {
        let answer = answer(
            r#""cacheKeyType":"Registry","auth":{
            "*.test":{"username":"any","password":"p"},
            "a.test":{"username":"host","password":"p"},
            "https://b.test/v2/":{"username":"url","password":"p"},
            "a.test/team":{"username":"team","password":"p"},
            "index.docker.io":{"username":"hub","password":"p"}}"#,
        )
        .unwrap();
        for (image, expected) in [
            ("a.test/team/x", Some("team")),
            ("a.test/x", Some("host")),
            ("b.test/x", Some("url")),
            ("c.test/x", Some("any")),
            ("docker.io/library/x", Some("hub")),
            ("ghcr.io/x", None),
        ] {
            assert_eq!(user(&answer, image).as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn no_credential_and_none_needed_are_the_same() {
        for auth in ["", r#","auth":null"#, r#","auth":{}"#, r#","auth":{"a.test":{"username":"","password":""}}"#] {
            let answer = answer(&format!(r#""cacheKeyType":"Image"{auth}"#)).unwrap();
            assert_eq!(answer.credential("a.test/x"), Ok(None), "{auth}");
        }
    }

    #[test]
    fn the_cache_duration_may_be_missing_or_zero() {
        let duration = |text: &str| answer(&format!(r#""cacheKeyType":"Image"{text}"#)).unwrap().cache_duration;
        assert_eq!(duration(""), None);
        assert_eq!(duration(r#","cacheDuration":null"#), None);
        assert_eq!(duration(r#","cacheDuration":"0s""#), Some(Duration::ZERO));
        assert_eq!(duration(r#","cacheDuration":"6h0m0s""#), Some(Duration::from_secs(6 * 3600)));
    }

    #[test]
    fn answers_of_another_form_are_refused_without_their_secrets() {
        let deep = format!(r#""cacheKeyType":"Image","auth":{}"#, "[".repeat(100_000));
        let bad = [
            r#""auth":{}"#,
            r#""cacheKeyType":"Pod""#,
            r#""cacheKeyType":7"#,
            r#""cacheKeyType":"Image","cacheDuration":"hunter2""#,
            r#""cacheKeyType":"Image","cacheDuration":"-1s""#,
            r#""cacheKeyType":"Image","auth":"hunter2""#,
            r#""cacheKeyType":"Image","auth":["hunter2"]"#,
            r#""cacheKeyType":"Image","auth":{"a.test":"hunter2"}"#,
            r#""cacheKeyType":"Image","auth":{"a.test":{"username":"u","password":["hunter2"]}}"#,
            &deep,
        ];
        for rest in bad {
            let problem = answer(rest).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        for said in [&b""[..], b"hunter2", b"\xff\xfe", b"[]", b"{}", b"{\"kind\":\"CredentialProviderResponse\"}"] {
            assert!(!Answer::parse(said, V1).unwrap_err().contains("hunter2"));
        }
        let other = answer(r#""cacheKeyType":"Image""#).map(|_| ()).and_then(|()| {
            let text = r#"{"kind":"CredentialProviderResponse","apiVersion":"v2","cacheKeyType":"Image"}"#;
            Answer::parse(text.as_bytes(), V1).map(|_| ())
        });
        assert_eq!(other.unwrap_err(), format!("it answers in another apiVersion than {V1}"));
    }

    #[test]
    fn one_bad_entry_harms_nobody_else_and_the_last_of_two_counts() {
        let answer = answer(
            r#""cacheKeyType":"Image","auth":{
            "":{"username":"u","password":"p"},
            "a.test":{"username":"a:b","password":"hunter2"},
            "b.test":{"username":"first","password":"p"},
            "b.test":{"username":"last","password":"p\u0000\n\u001b"}}"#,
        )
        .unwrap();
        let problem = answer.credential("a.test/x").unwrap_err();
        assert!(problem.contains("colon") && problem.contains("a.test") && !problem.contains("hunter2"), "{problem}");
        assert_eq!(user(&answer, "b.test/x").as_deref(), Some("last"));
        assert!(!format!("{answer:?}").contains("last"));
    }
}
