//! The HTTP clients of an upstream: one for the registry itself, one for everything it points at.

use std::{path::Path, sync::Arc};

use reqwest::{Certificate, Client, ClientBuilder, Identity, redirect};
use url::Url;

use crate::origin::{
    OriginTimeouts,
    reach::{self, Guard, GuardedResolver, HomeResolver},
    upstream::UpstreamSettings,
};

/// Both clients. Only the first shows the client certificate: to a redirect's target it would tell who we are.
pub(super) fn clients(
    settings: &UpstreamSettings,
    base: &Url,
    guard: &Arc<Guard>,
    timeouts: &OriginTimeouts,
) -> Result<(Client, Client), String> {
    let certificates = match &settings.ca_file {
        None => Vec::new(),
        Some(path) => certificates(path).map_err(|why| format!("CA file {}: {why}", path.display()))?,
    };
    let identity = identity(settings)?;
    let host = base.host_str().unwrap_or_default();
    let home = || {
        let builder = client_builder(base, timeouts)
            .dns_resolver(HomeResolver { guard: Arc::clone(guard), host: host.to_owned() });
        match &identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    };
    let abroad = || {
        client_builder(base, timeouts)
            .dns_resolver(GuardedResolver { guard: Arc::clone(guard), proxies: reach::proxy_names() })
    };
    Ok((build(home, &certificates, base)?, build(abroad, &certificates, base)?))
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| error.to_string())?;
    if found.is_empty() { Err("no PEM certificate in it".to_owned()) } else { Ok(found) }
}

fn identity(settings: &UpstreamSettings) -> Result<Option<Identity>, String> {
    let (certificate, key) = match (&settings.client_cert_file, &settings.client_key_file) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        _ => return Err("a client certificate needs a key and the other way round".to_owned()),
    };
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    let mut pem = read(certificate)?;
    pem.push(b'\n');
    pem.extend(read(key)?);
    let identity = Identity::from_pem(&pem).map_err(|_| {
        // What the parser says may hold parts of the key.
        format!("{} and {} are no certificate and private key in PEM form", certificate.display(), key.display())
    })?;
    Ok(Some(identity))
}

fn client_builder(base: &Url, timeouts: &OriginTimeouts) -> ClientBuilder {
    let builder = Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .connect_timeout(timeouts.connect);
    if reach::is_loopback(base) { builder.no_proxy() } else { builder }
}

/// Builds a client; a machine without any system certificates still serves plain registries and those with a CA file.
fn build(builder: impl Fn() -> ClientBuilder, certificates: &[Certificate], base: &Url) -> Result<Client, String> {
    let certificates = || certificates.iter().cloned();
    let error = match builder().tls_certs_merge(certificates()).build() {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    if base.scheme() == "http" || certificates().next().is_some() {
        return builder().tls_certs_only(certificates()).build().map_err(|error| error.to_string());
    }
    Err(format!("no HTTPS client: {error}; install the system's CA certificates or set ca_file"))
}
