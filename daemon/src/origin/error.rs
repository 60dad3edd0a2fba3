//! What can go wrong at an origin, in words without secrets: no header values, no query strings, no server text.

use std::error::Error as _;

use crate::origin::reach::Refused;

/// Why the origin did not give what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// 404: it does not have it.
    #[error("{host}: not found")]
    NotFound {
        /// `host` or `host:port` that said so.
        host: String,
    },
    /// 401 or 403 with all the credentials we have.
    #[error("{host}: access denied; check the credentials of this upstream")]
    Denied {
        /// `host` or `host:port` that said so.
        host: String,
    },
    /// 429, or 503 with Retry-After, and patience ran out.
    #[error("{host}: rate limited")]
    RateLimited {
        /// `host` or `host:port` that said so.
        host: String,
        /// How long it (still) asks to be left alone.
        retry_after: Option<std::time::Duration>,
    },
    /// Unreachable, timed out, 5xx.
    #[error("{host}: {why}")]
    Unavailable {
        /// `host` or `host:port` that was asked.
        host: String,
        /// What happened.
        why: String,
    },
    /// It answered, but not as a registry should (wrong size, wrong range, oversized manifest).
    #[error("{host}: {why}")]
    Protocol {
        /// `host` or `host:port` that answered.
        host: String,
        /// What is wrong with the answer.
        why: String,
    },
}

impl OriginError {
    pub(super) fn unavailable(host: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unavailable { host: host.into(), why: why.into() }
    }

    pub(super) fn protocol(host: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Protocol { host: host.into(), why: why.into() }
    }
}

/// An error of one try, and what it means for the next.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: OriginError,
    pub(super) retry: Retry,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The same answer would come again.
    Never,
    /// Perhaps, after a growing pause.
    Backoff,
    /// The origin named the pause.
    After(std::time::Duration),
}

impl Failure {
    pub(super) const fn fatal(error: OriginError) -> Self {
        Self { error, retry: Retry::Never }
    }

    pub(super) const fn passing(error: OriginError) -> Self {
        Self { error, retry: Retry::Backoff }
    }

    /// A request that got no response at all.
    pub(super) fn transport(host: &str, error: reqwest::Error) -> Self {
        let refused = chain(&error).any(|cause| cause.is::<Refused>());
        let why = describe(error);
        if refused {
            Self::fatal(OriginError::protocol(host, why))
        } else {
            Self::passing(OriginError::unavailable(host, why))
        }
    }
}

fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// The innermost cause without the URL, which may be pre-signed.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let what = if error.is_connect() {
        "cannot connect"
    } else if error.is_body() || error.is_decode() {
        "body broke off"
    } else {
        "request failed"
    };
    chain(&error).last().map_or_else(|| what.to_owned(), |cause| format!("{what}: {cause}"))
}
