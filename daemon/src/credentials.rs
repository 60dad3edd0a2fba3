//! Who this node logs in as at upstream registries, and where it knows that from.
//!
//! An upstream's own `username` and password win over everything. Else its own `credentials` file is asked, then the
//! configured `credential_files` in their order (docker's `config.json`, podman's `auth.json`, pull secrets, with the
//! credential helpers that they name), then the kubelet's credential provider plugins. Files are read anew when they
//! change; see `CREDENTIALS.md` beside this crate's manifest for the operator's side.

mod command;
mod docker;
mod fields;
mod helper;
mod lookup;
mod open;
mod pattern;
mod provider;
mod scope;
mod shared;
#[cfg(test)]
mod tests;
mod watched;

use std::{fmt, sync::Arc};

use lookup::Lookup;

pub use open::{OpenedCredentials, open};

/// What a registry or its token server is shown. Its parts are never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password: Basic, or the password grant of OAuth2.
    Basic {
        /// Without a colon.
        username: String,
        /// Anything.
        password: String,
    },
    /// An identity token (`identitytoken` of docker's `config.json`, user `<token>` of a credential helper): a refresh token
    /// of the registry's token server.
    Identity(String),
    /// A ready bearer token (`registrytoken` of docker's `config.json`).
    Bearer(String),
}

impl Credential {
    /// A user and a password, if Basic can carry them.
    fn basic(username: &str, password: &str) -> Result<Self, &'static str> {
        if username.contains(':') {
            return Err("the user name holds a colon, which Basic cannot carry");
        }
        Ok(Self::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credential::Basic",
            Self::Identity(_) => "Credential::Identity",
            Self::Bearer(_) => "Credential::Bearer",
        })
    }
}

/// Where this node's credentials for one upstream come from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    fixed: Option<Credential>,
    lookup: Option<Arc<Lookup>>,
}

impl Credentials {
    /// One for everything, or none.
    #[must_use]
    pub const fn fixed(credential: Option<Credential>) -> Self {
        Self { fixed: credential, lookup: None }
    }

    /// The credential for a repository (`library/alpine`) of a registry (`docker.io`, `registry.test:5000`); none: anonymous.
    ///
    /// Those that [`open()`] made belong to one upstream: `registry` is its name, or the `host[:port]` of one of its mirrors.
    /// May run a credential helper or plugin, which takes up to half a minute; what it says is kept for a while.
    ///
    /// # Errors
    /// No source has a credential and at least one failed; see [`CredentialError`].
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        match &self.lookup {
            None => Ok(self.fixed.clone()),
            Some(lookup) => lookup.find(registry, repository).await,
        }
    }

    /// The registry refused what [`Credentials::find`] gave: the next call asks helpers and plugins anew.
    pub fn forget(&self, registry: &str, repository: &str) {
        if let Some(lookup) = &self.lookup {
            lookup.forget(registry, repository);
        }
    }
}

impl From<Lookup> for Credentials {
    fn from(lookup: Lookup) -> Self {
        Self { fixed: None, lookup: Some(Arc::new(lookup)) }
    }
}

/// Why a credential could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct CredentialError {
    /// The file, helper or provider.
    pub place: String,
    /// What failed, and what to do; never the secret.
    pub problem: String,
}

impl CredentialError {
    fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}
