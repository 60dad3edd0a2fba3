//! One allow-listed registry: where it is, who we are there, and the HTTP clients that speak to it.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::Client;
use tokio::time::Instant;
use url::Url;

use crate::{
    access::Policy,
    credentials::{Credential, Credentials},
    origin::{
        Kind, OriginTimeouts,
        account::Account,
        auth::Challenge,
        client::Clients,
        connect,
        memory::Memory,
        reach::{self, Guard, Refused},
        token::Tokens,
    },
};

/// Mirrors of one upstream: a client waits for each that does not answer.
const MIRRORS: usize = 8;

/// How to reach one registry.
#[derive(Clone)]
pub struct UpstreamSettings {
    /// The name clients use, for example `docker.io` or `registry.test:5000`.
    pub name: String,
    /// `http://` or `https://`, a host, perhaps a path: `/v2/` goes behind the path unless the path starts with `/v2`.
    pub url: Url,
    /// Other places of the same content, asked in this order before the URL. One that fails is asked last for a while.
    pub mirrors: Vec<Url>,
    /// Who to log in as. Takes precedence over `credentials`, and is never shown to mirrors.
    pub username: Option<String>,
    /// Goes with the user name.
    pub password: Option<String>,
    /// Where credentials are looked up: by `name` for the URL, by `host` or `host:port` for a mirror.
    pub credentials: Credentials,
    /// PEM file of certificate authorities to trust on top of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate (and its chain) that is shown to the registry and its mirrors, and to nobody else.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub client_key_file: Option<PathBuf>,
    /// Lets redirects and token realms of a public registry lead to private (never loopback or link-local) addresses.
    pub allow_private: bool,
    /// Hosts beyond the registry's own site that may be its token realm and get its credentials.
    pub realm_hosts: Vec<String>,
    /// Lets clients push through this node.
    pub push: bool,
    /// Who may have its content.
    pub access: Policy,
    /// Tags are resolved once for the whole cluster and believed for so long; none: by each node.
    pub shared_tags: Option<Duration>,
}

impl UpstreamSettings {
    /// An anonymous upstream with the system's certificate authorities.
    #[must_use]
    pub fn new(name: impl Into<String>, url: Url) -> Self {
        Self {
            name: name.into(),
            url,
            mirrors: Vec::new(),
            username: None,
            password: None,
            credentials: Credentials::default(),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            allow_private: false,
            realm_hosts: Vec::new(),
            push: false,
            access: Policy::Node,
            shared_tags: None,
        }
    }
}

impl fmt::Debug for UpstreamSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamSettings")
            .field("name", &self.name)
            .field("host", &authority(&self.url))
            .finish_non_exhaustive()
    }
}

/// Why an upstream cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("upstream {name}: {problem}")]
pub struct UpstreamError {
    /// Its configured name.
    pub name: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// One allow-listed upstream registry, ready for use. Holds its connections, its login state and its tokens. A mirror is an
/// upstream of its own.
pub struct Upstream {
    /// The name clients use, for example `docker.io` or `registry.test:5000`.
    pub name: String,
    /// By what answers are kept: its name, and which client they are for if they are for one only.
    pub(super) cache_key: String,
    /// Whether clients may push through this node.
    pub push: bool,
    /// Who may have its content.
    pub access: Policy,
    /// For how long a tag that another node resolved is believed; none: not at all.
    pub shared_tags: Option<Duration>,
    /// Ends in `/v2/`, or with `/v2/some/prefix/`.
    pub(super) base: Url,
    pub(super) host: String,
    pub(super) account: Account,
    pub(super) realm_hosts: Vec<String>,
    pub(super) guard: Arc<Guard>,
    /// For the registry itself.
    pub(super) home: Client,
    /// For everything it points at.
    pub(super) abroad: Client,
    /// What it asked for last; none until it asked.
    pub(super) challenge: Mutex<Option<Challenge>>,
    pub(super) tokens: Tokens,
    pub(super) memory: Arc<Memory>,
    pub(super) mirrors: Vec<Self>,
    pub(super) clients: Clients,
    pub(super) is_mirror: bool,
}

impl Upstream {
    /// Prepares an upstream with the default connect deadline. Reads its certificate files; does not connect.
    ///
    /// # Errors
    /// The URL, a mirror or the credentials cannot be used, or a certificate file cannot be read.
    pub fn new(settings: UpstreamSettings) -> Result<Self, UpstreamError> {
        Self::with_timeouts(settings, &OriginTimeouts::default())
    }

    /// [`Upstream::new`] with another connect deadline.
    ///
    /// # Errors
    /// As [`Upstream::new`].
    pub fn with_timeouts(settings: UpstreamSettings, timeouts: &OriginTimeouts) -> Result<Self, UpstreamError> {
        let name = settings.name.clone();
        let fail = |problem: String| UpstreamError { name: name.clone(), problem };
        if settings.mirrors.len() > MIRRORS {
            return Err(fail(format!("more than {MIRRORS} mirrors")));
        }
        let mirrors = settings.mirrors.iter().map(|url| {
            let mirror = Self::with_timeouts(mirror(&settings, url), timeouts)?;
            Ok::<_, UpstreamError>(Self { is_mirror: true, ..mirror })
        });
        let mirrors = mirrors.collect::<Result<_, _>>().map_err(|error| fail(error.to_string()))?;
        let base = base_url(&settings.url).map_err(|problem| fail(problem.to_owned()))?;
        let credentials = credentials(&settings).map_err(|problem| fail(problem.to_owned()))?;
        let guard = Arc::new(Guard::new(&base, settings.allow_private));
        let (home, abroad) = connect::clients(&settings, &base, &guard, timeouts).map_err(fail)?;
        Ok(Self {
            account: Account::new(credentials, settings.name.clone()),
            cache_key: settings.name.clone(),
            name: settings.name,
            push: settings.push,
            access: settings.access,
            shared_tags: settings.shared_tags,
            host: authority(&base),
            base,
            realm_hosts: settings.realm_hosts,
            guard,
            home,
            abroad,
            challenge: Mutex::new(None),
            tokens: Tokens::default(),
            memory: Arc::default(),
            mirrors,
            clients: Clients::default(),
            is_mirror: false,
        })
    }

    /// Everybody who may have the content, in the order to ask: mirrors, then the registry itself; those that failed lately last.
    pub(super) fn in_order(&self) -> Vec<&Self> {
        let mut all: Vec<_> = self.mirrors.iter().chain([self]).collect();
        let now = Instant::now();
        all.sort_by_cached_key(|upstream| upstream.memory.is_failing(now));
        all
    }

    /// Whether this is the registry itself, and not one of its mirrors.
    pub(super) const fn is_registry(&self) -> bool {
        !self.is_mirror
    }

    /// By what answers of this upstream are kept: those for one client are for no other.
    #[must_use]
    pub fn cache_key(&self) -> &str {
        &self.cache_key
    }

    /// `host` or `host:port` of the registry, as in errors.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where a manifest or blob is. Path segments that would climb out are dropped, so the caller checks names first.
    pub(super) fn content_url(&self, repository: &str, kind: Kind, reference: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            let kind = match kind {
                Kind::Blob => "blobs",
                Kind::Manifest => "manifests",
            };
            path.pop_if_empty().extend(repository.split('/')).push(kind).push(reference);
        }
        url
    }

    /// The API root, where every registry challenges.
    pub(super) const fn root_url(&self) -> &Url {
        &self.base
    }

    pub(super) fn is_home(&self, url: &Url) -> bool {
        same_origin(&self.base, url)
    }

    /// The client for a URL that [`Upstream::permit`] let pass.
    pub(super) fn client(&self, url: &Url) -> &Client {
        if self.is_home(url) { &self.home } else { &self.abroad }
    }

    /// Whether this registry may send us to `url`, as far as the URL itself tells; names are checked when they are looked up.
    pub(super) fn permit(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("refused to follow to a URL with credentials in it".to_owned());
        }
        match url.scheme() {
            "https" => {}
            "http" if self.base.scheme() == "http" => {}
            _ => return Err(format!("refused to follow from {} to {}", self.base.scheme(), url.scheme())),
        }
        match reach::literal(url) {
            Some(address) if !self.is_home(url) && !self.guard.permits(address) => {
                Err(Refused(address.to_string()).to_string())
            }
            _ => Ok(()),
        }
    }

    /// Who we are there.
    pub(super) const fn account(&self) -> &Account {
        &self.account
    }

    pub(super) fn realm_hosts(&self) -> &[String] {
        &self.realm_hosts
    }

    /// What this registry asked for last.
    pub(super) fn challenge(&self) -> Option<Challenge> {
        self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn remember(&self, challenge: Option<Challenge>) {
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = challenge;
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).field("host", &self.host).finish_non_exhaustive()
    }
}

/// Where a registry is if only its name is known: `https://NAME`, and Docker Hub at its API host.
///
/// # Errors
/// The name is not `host` or `host:port`.
pub fn default_url(name: &str) -> Result<Url, UpstreamError> {
    let fail = || UpstreamError {
        name: name.to_owned(),
        problem: "the name is not a host or host:port; give its URL".to_owned(),
    };
    if name.contains(['/', '\\', '?', '#', '@']) {
        return Err(fail());
    }
    let mut url = Url::parse(&format!("https://{name}")).map_err(|_| fail())?;
    at_docker_hub(&mut url);
    Ok(url)
}

/// The website of Docker Hub does not serve its registry.
fn at_docker_hub(url: &mut Url) {
    if matches!(url.host_str(), Some("docker.io" | "index.docker.io"))
        && url.set_host(Some("registry-1.docker.io")).is_err()
    {
        tracing::warn!("Docker Hub's API host could not be set");
    }
}

/// A mirror has the trust of its upstream, but neither its name nor its password.
fn mirror(settings: &UpstreamSettings, url: &Url) -> UpstreamSettings {
    UpstreamSettings {
        name: authority(url),
        url: url.clone(),
        mirrors: Vec::new(),
        username: None,
        password: None,
        ..settings.clone()
    }
}

fn credentials(settings: &UpstreamSettings) -> Result<Credentials, &'static str> {
    let (username, password) = match (&settings.username, &settings.password) {
        (None, None) => return Ok(settings.credentials.clone()),
        (Some(username), Some(password)) => (username.clone(), password.clone()),
        _ => return Err("a username needs a password and the other way round"),
    };
    if username.contains(':') {
        return Err("a username must not contain a colon");
    }
    Ok(Credentials::fixed(Some(Credential::Basic { username, password })))
}

/// `host` or `host:port`: what errors and logs show of a URL.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Same scheme, host and port.
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

fn base_url(url: &Url) -> Result<Url, &'static str> {
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("the URL must start with http:// or https:// and name a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL must not hold credentials: set username and password instead");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL must not have a query or a fragment");
    }
    let mut base = url.clone();
    at_docker_hub(&mut base);
    let has_version = base.path_segments().and_then(|mut path| path.next()) == Some("v2");
    if let Ok(mut path) = base.path_segments_mut() {
        path.pop_if_empty();
        if !has_version {
            path.push("v2");
        }
        path.push("");
    }
    Ok(base)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn upstream(url: &str) -> Result<Upstream, UpstreamError> {
        Upstream::new(UpstreamSettings::new("test", url.parse().unwrap()))
    }

    #[test]
    fn docker_hub_is_asked_at_its_api_host() {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            assert_eq!(default_url(name).unwrap().as_str(), "https://registry-1.docker.io/");
        }
        assert_eq!(upstream("https://docker.io").unwrap().host(), "registry-1.docker.io");
        assert_eq!(default_url("registry.test:5000").unwrap().as_str(), "https://registry.test:5000/");
        for name in ["", "a/b", "user@host", "https://ghcr.io", "host?x", "host:port"] {
            assert!(default_url(name).is_err(), "{name}");
        }
    }

    #[test]
    fn content_lies_under_the_api_root_whatever_the_path_of_the_upstream() {
        for (url, expected) in [
            ("https://a.test", "https://a.test/v2/team/x/blobs/sha256:0"),
            ("https://a.test/mirror/", "https://a.test/mirror/v2/team/x/blobs/sha256:0"),
            ("https://a.test:444/v2/proxy", "https://a.test:444/v2/proxy/team/x/blobs/sha256:0"),
        ] {
            assert_eq!(upstream(url).unwrap().content_url("team/x", Kind::Blob, "sha256:0").as_str(), expected);
        }
    }

    #[test]
    fn names_cannot_climb_out_of_the_api_root() {
        let url = upstream("https://a.test").unwrap().content_url("../../x?y#z", Kind::Manifest, "../a/b");
        assert_eq!((url.host_str(), url.query(), url.fragment()), (Some("a.test"), None, None));
        assert!(url.path().starts_with("/v2/") && !url.path().contains("/../"), "{url}");
    }

    #[test]
    fn unusable_settings_are_refused() {
        for url in ["ftp://a.test", "https://user:word@a.test", "https://a.test/?x=1", "unix:/run/x"] {
            assert!(upstream(url).is_err(), "{url}");
        }
        let settings = UpstreamSettings::new("test", "https://a.test".parse().unwrap());
        let half = UpstreamSettings { username: Some("me".to_owned()), ..settings.clone() };
        assert!(Upstream::new(half).is_err());
        let missing = UpstreamSettings { ca_file: Some("/nonexistent.pem".into()), ..settings };
        assert!(Upstream::new(missing).unwrap_err().to_string().contains("/nonexistent.pem"));
    }

    #[test]
    fn credentials_are_not_printed() {
        let settings = UpstreamSettings {
            username: Some("robot".to_owned()),
            password: Some("hunter2".to_owned()),
            ..UpstreamSettings::new("test", "https://a.test".parse().unwrap())
        };
        let text = format!("{settings:?} {:?}", Upstream::new(settings.clone()).unwrap());
        assert!(!text.contains("hunter2") && !text.contains("robot") && text.contains("a.test"), "{text}");
    }

    #[test]
    fn downgrades_and_credentials_in_redirects_are_refused() {
        let secure = upstream("https://a.test").unwrap();
        for url in [
            "http://a.test/x",
            "http://b.test/x",
            "https://u:p@b.test/x",
            "ftp://b.test/",
            "https://169.254.169.254/",
            "https://[::1]/",
        ] {
            assert!(secure.permit(&url.parse().unwrap()).is_err(), "{url}");
        }
        assert_eq!(secure.permit(&"https://b.test/x".parse().unwrap()), Ok(()));
    }
}
