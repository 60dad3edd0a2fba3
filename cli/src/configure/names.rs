//! Names of registries and the daemon's address, as the command line gives them.

use url::Url;

use crate::failure::{Failure, USAGE};

/// The registries that a daemon without `upstreams` answers for.
pub(super) const WELL_KNOWN: [&str; 8] =
    ["docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "nvcr.io", "public.ecr.aws", "mcr.microsoft.com"];

/// A registry as image names have it. It becomes part of paths and configuration files, so nothing else may be in it.
pub(super) fn check(registry: &str) -> Result<(), Failure> {
    let plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
    };
    if !registry.is_empty() && !registry.starts_with('.') && registry.bytes().all(plain) {
        return Ok(());
    }
    Err(Failure::new(
        USAGE,
        format!(
            "--registry: {registry:?} is not a registry's name; the form is HOST or HOST:PORT as image names have it (docker.io)"
        ),
    ))
}

/// A registry that can be the first component of a repository: a colon may not stand there.
pub(super) fn check_as_path(registry: &str) -> Result<(), Failure> {
    check(registry)?;
    if !registry.contains([':', '[']) && registry != "_default" {
        return Ok(());
    }
    let message = format!(
        "--registry: {registry:?} cannot be mirrored for this client: it puts the registry's name into the path, where a colon \
         (or `_default`) may not stand"
    );
    Err(Failure::new(USAGE, message))
}

/// The daemon's address: scheme, host and port, without a slash at the end.
pub(super) fn endpoint(text: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Failure::new(
            USAGE,
            format!("--endpoint: {why}; the form is http://IP:PORT, where the daemon's registry listens"),
        )
    };
    let url = Url::parse(text).map_err(|error| wrong(&format!("{text:?} is not a URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong(&format!("{text:?} is not an http URL")));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(wrong("it says more than scheme, host and port"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
