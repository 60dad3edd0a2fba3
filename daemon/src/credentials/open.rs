//! From the configuration to each upstream's [`Credentials`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    config::{Config, Password, UpstreamConfig},
    credentials::{
        Credential, CredentialError, Credentials,
        command::Runner,
        helper::Helpers,
        lookup::{CredentialFile, Lookup, Source},
        provider::Plugins,
        watched::Watched,
    },
};

/// Where a directory is given, which file of it is meant: those of mounted pull secrets, of docker, of podman.
const NAMES_IN_DIRECTORY: [&str; 4] = [".dockerconfigjson", ".dockercfg", "config.json", "auth.json"];

/// What [`open()`] found.
#[derive(Debug)]
pub struct OpenedCredentials {
    /// Each upstream's, by its name.
    pub upstreams: BTreeMap<String, Credentials>,
    /// What looks like a mistake but harms nothing yet; one line each, to be logged.
    pub warnings: Vec<String>,
}

/// Reads every file with credentials that the configuration names, and looks for the plugins. Asks no helper and no plugin.
///
/// # Errors
/// A file or a plugin is missing, unreadable, too large or broken: the first one found.
pub fn open(config: &Config) -> Result<OpenedCredentials, CredentialError> {
    let hidden = config.upstreams.iter().filter_map(|upstream| upstream.password_env.clone()).collect();
    open_with(config, Runner::new(hidden))
}

pub(super) fn open_with(config: &Config, runner: Runner) -> Result<OpenedCredentials, CredentialError> {
    let runner = Arc::new(runner);
    let mut opener = Opener { helpers: Arc::new(Helpers::new(Arc::clone(&runner))), runner, warnings: Vec::new() };
    let mut common = Vec::new();
    for path in &config.credential_files {
        common.push(Source::File(opener.file(path).map_err(|error| named("credential_files", error))?));
    }
    common.extend(opener.plugins(config)?.map(Source::Plugins));
    let mut upstreams = BTreeMap::new();
    for upstream in &config.upstreams {
        upstreams.insert(upstream.name.clone(), opener.upstream(upstream, &common)?);
    }
    Ok(OpenedCredentials { upstreams, warnings: opener.warnings })
}

fn named(key: &str, error: CredentialError) -> CredentialError {
    CredentialError::new(format!("{key}: {}", error.place), error.problem)
}

struct Opener {
    runner: Arc<Runner>,
    helpers: Arc<Helpers>,
    warnings: Vec<String>,
}

impl Opener {
    fn kept<T>(&mut self, (opened, warning): (T, Option<String>)) -> Arc<T> {
        self.warnings.extend(warning);
        Arc::new(opened)
    }

    fn file(&mut self, path: &Path) -> Result<Arc<CredentialFile>, CredentialError> {
        let opened = CredentialFile::open(in_directory(path)?, Arc::clone(&self.helpers))?;
        Ok(self.kept(opened))
    }

    fn plugins(&mut self, config: &Config) -> Result<Option<Arc<Plugins>>, CredentialError> {
        let lacks = |key: &str, other: &str| Err(CredentialError::new(key, format!("it needs {other} too")));
        match (&config.credential_provider_config, &config.credential_provider_bin_dir) {
            (None, None) => Ok(None),
            (Some(_), None) => lacks("credential_provider_config", "credential_provider_bin_dir"),
            (None, Some(_)) => lacks("credential_provider_bin_dir", "credential_provider_config"),
            (Some(file), Some(bin_dir)) => {
                let opened = Plugins::open(file.clone(), bin_dir.clone(), Arc::clone(&self.runner));
                let opened = opened.map_err(|error| named("credential_provider_config", error))?;
                Ok(Some(self.kept(opened)))
            }
        }
    }

    fn upstream(&mut self, upstream: &UpstreamConfig, common: &[Source]) -> Result<Credentials, CredentialError> {
        let place = |key: &str| format!("{key} of upstream {}", upstream.name);
        let mut sources = Vec::new();
        if let Some(username) = &upstream.username {
            let password = upstream.password.as_ref().map_or("", Password::expose);
            let credential = Credential::basic(username, password);
            let credential = credential.map_err(|problem| CredentialError::new(place("username"), problem))?;
            sources.push(match &upstream.password_file {
                None => Source::Account(credential),
                Some(file) => {
                    let opened = Watched::open(file.clone(), |bytes| Password::parse(bytes).map_err(str::to_owned));
                    let opened = opened.map_err(|error| named(&place("password_file"), error))?;
                    Source::AccountFile { username: username.clone(), password: self.kept(opened) }
                }
            });
        }
        if let Some(path) = &upstream.credentials {
            let file = self.file(path).map_err(|error| named(&place("credentials"), error))?;
            sources.push(Source::OwnFile(file));
        }
        sources.extend_from_slice(common);
        if sources.is_empty() {
            return Ok(Credentials::default());
        }
        Ok(Lookup::new(upstream, sources).into())
    }
}

fn in_directory(path: &Path) -> Result<PathBuf, CredentialError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = NAMES_IN_DIRECTORY.iter().map(|name| path.join(name)).find(|file| file.exists());
    found.ok_or_else(|| {
        CredentialError::new(path.display().to_string(), format!("it holds none of {}", NAMES_IN_DIRECTORY.join(", ")))
    })
}
