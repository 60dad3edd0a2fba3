//! Who this node logs in as at upstream registries.

use std::fmt;

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

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Credential::Basic",
            Self::Identity(_) => "Credential::Identity",
            Self::Bearer(_) => "Credential::Bearer",
        })
    }
}

/// Where this node's credentials come from.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    fixed: Option<Credential>,
}

impl Credentials {
    /// One for everything, or none.
    #[must_use]
    pub const fn fixed(credential: Option<Credential>) -> Self {
        Self { fixed: credential }
    }

    /// The credential for a repository (`library/alpine`) of a registry (`docker.io`, `registry.test:5000`); none: anonymous.
    ///
    /// # Errors
    /// See [`CredentialError`].
    #[allow(clippy::unused_async, reason = "helpers and files are asked here")]
    pub async fn find(&self, _registry: &str, _repository: &str) -> Result<Option<Credential>, CredentialError> {
        Ok(self.fixed.clone())
    }

    /// The registry refused what [`Credentials::find`] gave: the next call looks it up anew.
    pub fn forget(&self, _registry: &str, _repository: &str) {}
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
