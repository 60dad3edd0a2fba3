//! Who we are at one registry: credentials as they are looked up, and looked up again when they have run out.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::credentials::{Credential, CredentialError, Credentials};

/// Least time between two renewals: a registry that refuses a good credential must not keep the helpers of this node busy.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);

/// This node's credentials at one registry.
pub(super) struct Account {
    credentials: Credentials,
    /// The name under which they are looked up.
    registry: String,
    renewed: Mutex<Option<Instant>>,
    /// What is found after a renewal, in place of what `credentials` has; a failure at once.
    #[cfg(test)]
    pub(super) next: Mutex<Option<Result<Credential, CredentialError>>>,
}

impl Account {
    pub(super) const fn new(credentials: Credentials, registry: String) -> Self {
        Self {
            credentials,
            registry,
            renewed: Mutex::new(None),
            #[cfg(test)]
            next: Mutex::new(None),
        }
    }

    /// The credential for a repository; none: anonymous.
    pub(super) async fn find(&self, repository: &str) -> Result<Option<Credential>, CredentialError> {
        #[cfg(test)]
        if let Some(next) = self.next.lock().unwrap_or_else(PoisonError::into_inner).clone()
            && (next.is_err() || self.renewed.lock().unwrap_or_else(PoisonError::into_inner).is_some())
        {
            return next.map(Some);
        }
        self.credentials.find(&self.registry, repository).await
    }

    /// Another credential than the one that was refused, if there is one now.
    pub(super) async fn renew(
        &self,
        repository: &str,
        refused: Option<&Credential>,
        now: Instant,
    ) -> Option<Credential> {
        {
            let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
            if renewed.is_none_or(|last| now.duration_since(last) >= RENEWAL_PAUSE) {
                *renewed = Some(now);
                self.credentials.forget(&self.registry, repository);
            }
        }
        // Within the pause somebody else may have renewed it.
        self.find(repository).await.ok().flatten().filter(|found| Some(found) != refused)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// A credential without its secret: what tokens are kept by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Who([u8; 32]);

impl Who {
    pub(super) fn of(credential: Option<&Credential>) -> Self {
        let parts = match credential {
            None => ["", "", ""],
            Some(Credential::Basic { username, password }) => ["basic", username, password],
            Some(Credential::Identity(token)) => ["identity", token, ""],
            Some(Credential::Bearer(token)) => ["bearer", token, ""],
        };
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }
}

impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Who")
    }
}

/// `Basic` as a header.
pub(super) fn basic(username: &str, password: &str) -> Result<HeaderValue, &'static str> {
    if username.contains(':') {
        return Err("the username must not contain a colon");
    }
    sensitive(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
}

/// A ready bearer token as a header.
pub(super) fn bearer(token: &str) -> Result<HeaderValue, &'static str> {
    sensitive(format!("Bearer {token}"))
}

fn sensitive(text: String) -> Result<HeaderValue, &'static str> {
    let mut header = HeaderValue::try_from(text).map_err(|_| "the credential does not fit into a header")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn basic_of(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn credentials_are_told_apart_by_every_part_and_never_printed() {
        let all = [
            None,
            Some(basic_of("a", "bc")),
            Some(basic_of("ab", "c")),
            Some(Credential::Identity("abc".to_owned())),
            Some(Credential::Bearer("abc".to_owned())),
        ];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                assert_eq!(Who::of(one.as_ref()) == Who::of(other.as_ref()), at == other_at, "{one:?} {other:?}");
            }
        }
        assert_eq!(format!("{:?}", Who::of(all[1].as_ref())), "Who");
    }

    #[test]
    fn keys_of_many_kilobytes_with_line_ends_fit_into_basic_and_a_broken_token_does_not_fit_into_bearer() {
        let key = format!("{{\n\"private_key\": \"{}\"\r\n}}", "k\\n".repeat(8000));
        let header = basic("_json_key", &key).unwrap();
        let text = BASE64_STANDARD.decode(&header.as_bytes()["Basic ".len()..]).unwrap();
        assert_eq!(text, format!("_json_key:{key}").as_bytes());
        assert!(header.is_sensitive());
        assert!(basic("a:b", "c").is_err());
        for token in ["a\nb", "a\0b", "a\r\nX-Other: y"] {
            assert!(bearer(token).is_err(), "{token:?}");
        }
    }

    #[tokio::test]
    async fn a_refused_credential_is_looked_up_again_but_not_all_the_time() {
        let (old, now) = (basic_of("AWS", "old"), Instant::now());
        let account = Account::new(Credentials::fixed(Some(old.clone())), "registry.test".to_owned());
        assert_eq!(account.renew("a", Some(&old), now).await, None, "the same again is no renewal");
        account.renew("a", Some(&old), now + RENEWAL_PAUSE / 2).await;
        assert_eq!(*account.renewed.lock().unwrap(), Some(now));
        account.renew("a", Some(&old), now + RENEWAL_PAUSE).await;
        assert_eq!(*account.renewed.lock().unwrap(), Some(now + RENEWAL_PAUSE));
    }
}
