//! An upstream as one of our clients sees it: asked with the client's own credential, for content whose access is private.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::header::HeaderValue;
use tokio::time::Instant;

use super::{
    account::{Account, Who},
    token::Tokens,
    upstream::Upstream,
};
use crate::{
    access::{GroupKey, Policy, Scope},
    credentials::{Credential, CredentialError, Credentials},
    secret::Secret,
};

/// Clients whose tokens are kept, for each upstream.
const CLIENTS_MAX: usize = 256;
/// Longest header that is read as a credential, in bytes; tokens of clouds have some thousand.
const HEADER_BYTES: usize = 32 * 1024;

/// Numbers for upstreams as clients see them.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// The clients of one upstream.
#[derive(Default)]
pub(super) struct Clients(Mutex<HashMap<Who, (Instant, Arc<Upstream>)>>);

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

/// The credential of an `Authorization` header; none: anonymous, and so is what we cannot read.
#[must_use]
pub fn credential_of(header: Option<&HeaderValue>) -> Option<Credential> {
    let text = header?.to_str().ok().filter(|text| text.len() <= HEADER_BYTES)?;
    let (scheme, value) = text.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return (!value.is_empty()).then(|| Credential::Bearer(value.to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(BASE64_STANDARD.decode(value).ok()?).ok()?;
    let (username, password) = pair.split_once(':')?;
    // What podman says if it knows nobody.
    if username.is_empty() && password.is_empty() {
        return None;
    }
    Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() })
}

impl Upstream {
    /// Under which right this node has what it gets of a repository.
    ///
    /// # Errors
    /// Whether there is a credential for it cannot be told.
    pub async fn scope(&self, secret: &Secret, repository: &str) -> Result<Scope, CredentialError> {
        match self.access {
            Policy::Public => Ok(Scope::Public),
            Policy::Private => Ok(Scope::Private),
            Policy::Node => {
                // What a mirror gives to a credential of its own is for everybody as little.
                for upstream in std::iter::once(self).chain(&self.mirrors) {
                    if let Some(credential) = upstream.account().find(repository).await? {
                        return Ok(Scope::Node(GroupKey::derive(secret, &upstream.name, &credential)));
                    }
                }
                // Without one, the origin gives what it gives to anybody.
                Ok(Scope::Public)
            }
        }
    }

    /// This upstream, asked for what is had under a scope. What is to be everybody's is asked for without any credential,
    /// even if one turns up meanwhile.
    #[must_use]
    pub fn under(self: &Arc<Self>, scope: Scope) -> Arc<Self> {
        if scope != Scope::Public || self.access != Policy::Node {
            return Arc::clone(self);
        }
        self.known(Who::of(None), || {
            let nobody = || Credentials::fixed(None);
            let mirrors = self.mirrors.iter().map(|mirror| mirror.asked_by(nobody(), Vec::new())).collect();
            self.asked_by(nobody(), mirrors)
        })
    }

    /// This upstream, asked with this credential and no other. Mirrors are left out: a client's password is for the registry
    /// that the client knows.
    #[must_use]
    pub fn for_client(&self, credential: Option<Credential>) -> Arc<Self> {
        self.known(Who::of(credential.as_ref()), || self.asked_by(Credentials::fixed(credential), Vec::new()))
    }

    /// The upstream as it is for this client; made if the client is new.
    fn known(&self, who: Who, make: impl FnOnce() -> Self) -> Arc<Self> {
        let mut clients = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((used, client)) = clients.get_mut(&who) {
            *used = now;
            return Arc::clone(client);
        }
        if clients.len() >= CLIENTS_MAX
            && let Some(oldest) = clients.iter().min_by_key(|(_, (used, _))| *used).map(|(who, _)| *who)
        {
            clients.remove(&oldest);
        }
        let client = Arc::new(make());
        clients.insert(who, (now, Arc::clone(&client)));
        client
    }

    fn asked_by(&self, credentials: Credentials, mirrors: Vec<Self>) -> Self {
        Self {
            account: Account::new(credentials, self.name.clone()),
            name: self.name.clone(),
            cache_key: format!("{} for client {}", self.name, NUMBERS.fetch_add(1, Ordering::Relaxed)),
            push: self.push,
            access: self.access,
            // One client's tags are for nobody else; those that anybody may see are.
            shared_tags: self.shared_tags.filter(|_| self.access != Policy::Private),
            host: self.host.clone(),
            base: self.base.clone(),
            realm_hosts: self.realm_hosts.clone(),
            guard: Arc::clone(&self.guard),
            home: self.home.clone(),
            abroad: self.abroad.clone(),
            challenge: Mutex::new(None),
            tokens: Tokens::default(),
            memory: Arc::clone(&self.memory),
            mirrors,
            clients: Clients::default(),
            is_mirror: self.is_mirror,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::origin::UpstreamSettings;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    fn upstream(access: Policy, credential: Option<Credential>) -> Upstream {
        let settings = UpstreamSettings {
            access,
            credentials: Credentials::fixed(credential),
            ..UpstreamSettings::new("a.test", "https://a.test".parse().unwrap())
        };
        Upstream::new(settings).unwrap()
    }

    #[test]
    fn a_client_is_known_by_its_authorization_header_and_anonymous_without() {
        let read = |text: &str| credential_of(Some(&HeaderValue::from_str(text).unwrap()));
        let encoded = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert_eq!(read(&encoded("alice:a:b")), Some(basic("alice", "a:b")));
        assert_eq!(read("bearer abc.def"), Some(Credential::Bearer("abc.def".to_owned())));
        let long = format!("Bearer {}", "x".repeat(HEADER_BYTES));
        for nobody in [&encoded(":"), &encoded("alice"), "Basic !", "Basic", "Bearer ", "Digest abc", "", &long] {
            assert_eq!(read(nobody), None, "{}", &nobody[..nobody.len().min(40)]);
        }
        assert_eq!(read(&format!("Basic {}", BASE64_STANDARD.encode(b"\xff:\xfe"))), None);
        assert_eq!(credential_of(None), None);
    }

    #[tokio::test]
    async fn the_scope_follows_from_the_policy_and_the_credential() {
        let (secret, robot) = (Secret::none(), basic("robot", "word"));
        let scope = async |access, credential| upstream(access, credential).scope(&secret, "team/x").await.unwrap();
        let key = GroupKey::derive(&secret, "a.test", &robot);
        assert_eq!(scope(Policy::Node, Some(robot.clone())).await, Scope::Node(key));
        assert_eq!(scope(Policy::Node, None).await, Scope::Public);
        assert_eq!(scope(Policy::Public, None).await, Scope::Public);
        assert_eq!(scope(Policy::Private, Some(robot)).await, Scope::Private);
    }

    #[tokio::test]
    async fn what_a_mirror_gives_to_its_own_credential_is_not_for_everybody() {
        let mut upstream = upstream(Policy::Node, None);
        let settings = UpstreamSettings {
            credentials: Credentials::fixed(Some(basic("robot", "word"))),
            ..UpstreamSettings::new("mirror.test", "https://mirror.test".parse().unwrap())
        };
        upstream.mirrors.push(Upstream { is_mirror: true, ..Upstream::new(settings).unwrap() });
        let key = GroupKey::derive(&Secret::none(), "mirror.test", &basic("robot", "word"));
        assert_eq!(upstream.scope(&Secret::none(), "team/x").await.unwrap(), Scope::Node(key));
        // If it is asked for everybody all the same, it is asked as anybody would.
        let open = Arc::new(upstream).under(Scope::Public);
        assert!(!open.mirrors[0].is_registry());
        assert_eq!(open.mirrors[0].account().find("team/x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_to_be_everybodys_is_asked_for_without_the_credential_that_turned_up_meanwhile() {
        let upstream = Arc::new(upstream(Policy::Node, Some(basic("robot", "word"))));
        let open = upstream.under(Scope::Public);
        assert_eq!(open.account().find("team/x").await.unwrap(), None);
        assert!(Arc::ptr_eq(&open, &upstream.under(Scope::Public)), "it keeps its tokens");
        assert_ne!(open.cache_key(), upstream.cache_key());
        let key = GroupKey::derive(&Secret::none(), "a.test", &basic("robot", "word"));
        assert!(Arc::ptr_eq(&upstream, &upstream.under(Scope::Node(key))));
    }

    #[tokio::test]
    async fn clients_with_one_credential_share_a_login_and_others_do_not() {
        let upstream = upstream(Policy::Private, Some(basic("node", "word")));
        let [alice, again, bob, nobody] =
            [Some(basic("alice", "a")), Some(basic("alice", "a")), Some(basic("bob", "b")), None]
                .map(|credential| upstream.for_client(credential));
        assert!(Arc::ptr_eq(&alice, &again) && !Arc::ptr_eq(&alice, &bob));
        assert_ne!(alice.cache_key(), bob.cache_key());
        assert_ne!(alice.cache_key(), upstream.cache_key());
        assert_eq!(alice.account().find("x").await.unwrap(), Some(basic("alice", "a")));
        assert_eq!(nobody.account().find("x").await.unwrap(), None, "never the node's own");
    }

    #[test]
    fn the_client_that_was_here_longest_ago_makes_room() {
        let upstream = upstream(Policy::Private, None);
        let first = upstream.for_client(Some(basic("0", "x")));
        for number in 1..=CLIENTS_MAX {
            drop(upstream.for_client(Some(basic(&number.to_string(), "x"))));
        }
        assert_eq!(upstream.clients.0.lock().unwrap().len(), CLIENTS_MAX);
        assert!(!Arc::ptr_eq(&first, &upstream.for_client(Some(basic("0", "x")))));
    }
}
