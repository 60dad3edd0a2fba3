//! One upstream's sources, in their order, and the names under which they are asked.

use std::{path::PathBuf, sync::Arc};

use url::Url;

use crate::{
    config::{Password, UpstreamConfig},
    credentials::{
        Credential, CredentialError,
        docker::{DockerConfig, Said},
        helper::Helpers,
        pattern::split_port,
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
    /// The upstream's own account: for itself, never for its mirrors.
    Account(Credential),
    /// The same, with the password in a file.
    AccountFile { username: String, password: Arc<Watched<Password>> },
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
    pub(super) fn new(upstream: &UpstreamConfig, sources: Vec<Source>) -> Self {
        let url = &upstream.url;
        let host = url.host_str().unwrap_or_default();
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let home = Name { host: canonical_host(&authority), prefix: prefix(url) };
        let registry = canonical_host(&upstream.name);
        let called =
            Name { host: registry.strip_suffix(":443").unwrap_or(&registry).to_owned(), prefix: String::new() };
        let bound = upstream.is_on_this_machine() || without_port(&called.host) == without_port(&home.host);
        let called = Some(called).filter(|called| called.host != home.host);
        Self { registry, home, called, bound, sources }
    }

    /// The credential for a repository of the upstream, or of the mirror of it that is at `registry`.
    pub(super) async fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        let mut failed = None;
        for (source, target) in self.targets(registry, repository) {
            match source.find(&target).await {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Drops what helpers and plugins said.
    pub(super) fn forget(&self, registry: &str, repository: &str) {
        for (source, target) in self.targets(registry, repository) {
            source.forget(&target);
        }
    }

    /// Whom to ask, and under which name.
    fn targets(&self, registry: &str, repository: &str) -> Vec<(&Source, Target)> {
        let registry = canonical_host(registry);
        let itself = registry == self.registry || registry == self.home.host;
        let mirror = Name { host: registry, prefix: String::new() };
        let mut targets = Vec::new();
        for source in &self.sources {
            let account = matches!(source, Source::Account(_) | Source::AccountFile { .. });
            let names: Vec<&Name> = match (itself, account) {
                (true, true) => vec![&self.home],
                (true, false) => self.names(source).collect(),
                (false, true) => Vec::new(),
                (false, false) => vec![&mirror],
            };
            targets.extend(names.into_iter().map(|name| (source, name.target(repository))));
        }
        targets
    }

    /// Another host must not be shown what was meant for the registry in whose place it stands, unless the upstream's own
    /// table says so.
    fn names(&self, source: &Source) -> impl Iterator<Item = &Name> {
        let under_both = self.bound || matches!(source, Source::OwnFile(_));
        std::iter::once(&self.home).chain(self.called.iter().filter(move |_| under_both))
    }
}

impl Source {
    async fn find(&self, target: &Target) -> Result<Option<Credential>, CredentialError> {
        match self {
            Self::Account(credential) => Ok(Some(credential.clone())),
            Self::AccountFile { username, password } => {
                let word = password.current().await;
                Ok(Some(Credential::Basic { username: username.clone(), password: word.expose().to_owned() }))
            }
            Self::OwnFile(file) | Self::File(file) => file.find(target).await,
            Self::Plugins(plugins) => plugins.find(target).await.map_err(|error| {
                CredentialError::new(format!("{}, {}", plugins.path().display(), error.place), error.problem)
            }),
        }
    }

    fn forget(&self, target: &Target) {
        match self {
            Self::Account(_) | Self::AccountFile { .. } => {}
            Self::OwnFile(file) | Self::File(file) => file.helpers.forget(target),
            Self::Plugins(plugins) => plugins.forget(target),
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
    split_port(authority).0
}
