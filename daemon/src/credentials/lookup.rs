//! One upstream's sources, in their order, and the names under which they are asked.

use std::{path::PathBuf, sync::Arc};

use url::Url;

use crate::{
    config::Password,
    credentials::{
        Credential, CredentialError,
        docker::{DockerConfig, Said},
        helper::Helpers,
        provider::Plugins,
        scope::{Target, canonical_host},
        watched::Watched,
    },
};

/// A credential file, and the helpers that it may name.
#[derive(Debug)]
pub(super) struct CredentialFile {
    file: Watched<DockerConfig>,
    helpers: Arc<Helpers>,
}

impl CredentialFile {
    /// Reads the file for the first time. The second part is a warning.
    pub(super) fn open(path: PathBuf, helpers: Arc<Helpers>) -> Result<(Self, Option<String>), CredentialError> {
        let name = path.clone();
        let (file, warning) = Watched::open(path, move |bytes| DockerConfig::parse(bytes, &name))?;
        Ok((Self { file, helpers }, warning))
    }

    async fn find(&self, target: &Target) -> Result<Option<Credential>, CredentialError> {
        match self.file.current().await.say(target) {
            Said::Credential(credential) => Ok(Some(credential)),
            Said::Ask(helper) => self.helpers.ask(&helper, target).await.map_err(|error| {
                CredentialError::new(format!("{}, {}", self.file.path().display(), error.place), error.problem)
            }),
            Said::Nothing => Ok(None),
        }
    }
}

/// Where a credential may come from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// The upstream's own account, whose password stands in a file.
    Account {
        username: String,
        password: Arc<Watched<Password>>,
    },
    /// A file that the upstream names itself.
    OwnFile(Arc<CredentialFile>),
    /// A file for all upstreams.
    File(Arc<CredentialFile>),
    /// The plugins, for all upstreams.
    Plugins(Arc<Plugins>),
}

/// An upstream under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    host: String,
    /// What the upstream's URL puts before each repository; empty, or with a slash behind.
    prefix: String,
}

impl Name {
    fn target(&self, repository: &str) -> Target {
        Target { host: self.host.clone(), repository: format!("{}{repository}", self.prefix) }
    }
}

/// Finds the credentials of one upstream.
#[derive(Debug)]
pub(super) struct Lookup {
    /// As clients name it.
    registry: String,
    /// As its URL has it: what it really is.
    home: Name,
    /// As it is called, if that is something else.
    called: Option<Name>,
    /// Whether what stands in a source for all upstreams under the name that it is called may go to where it is.
    bound: bool,
    sources: Vec<Source>,
}

impl Lookup {
    pub(super) fn new(registry: &str, url: &Url, sources: Vec<Source>) -> Self {
        let host = url.host_str().unwrap_or_default();
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let home = Name { host: canonical_host(&authority), prefix: prefix(url) };
        let registry = canonical_host(registry);
        let called = Name { host: registry.strip_suffix(":443").unwrap_or(&registry).to_owned(), prefix: String::new() };
        let bound = is_loopback(url) || without_port(&called.host) == without_port(&home.host);
        let called = Some(called).filter(|called| called.host != home.host);
        Self { registry, home, called, bound, sources }
    }

    pub(super) async fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        let registry = canonical_host(registry);
        if registry != self.registry && registry != self.home.host {
            return Ok(None);
        }
        let mut failed = None;
        for source in &self.sources {
            for name in self.names(source) {
                match source.find(&name.target(repository)).await {
                    Ok(Some(credential)) => return Ok(Some(credential)),
                    Ok(None) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// A mirror must not be shown what was meant for the registry that it mirrors, unless its own table says so.
    fn names(&self, source: &Source) -> impl Iterator<Item = &Name> {
        let under_both = match source {
            Source::Account { .. } => false,
            Source::OwnFile(_) => true,
            Source::File(_) | Source::Plugins(_) => self.bound,
        };
        std::iter::once(&self.home).chain(self.called.iter().filter(move |_| under_both))
    }
}

impl Source {
    async fn find(&self, target: &Target) -> Result<Option<Credential>, CredentialError> {
        match self {
            Self::Account { username, password } => {
                let word = password.current().await;
                Ok(Some(Credential::Basic { username: username.clone(), password: word.expose().to_owned() }))
            }
            Self::OwnFile(file) | Self::File(file) => file.find(target).await,
            Self::Plugins(plugins) => plugins.find(target).await.map_err(|error| {
                CredentialError::new(format!("{}, {}", plugins.path().display(), error.place), error.problem)
            }),
        }
    }
}

/// What stands behind `/v2/` in the URL is the beginning of each repository's name there.
fn prefix(url: &Url) -> String {
    let path = url.path().trim_matches('/');
    match path.strip_prefix("v2/") {
        Some(rest) => format!("{rest}/"),
        None => String::new(),
    }
}

fn without_port(authority: &str) -> &str {
    super::pattern::split_port(authority).0
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
