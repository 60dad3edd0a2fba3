//! TLS for the registry front: which certificate it shows, and how a handshake is bounded.

use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    NoKeyLog, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::authority::Authority;
use crate::config::Config;

/// The only protocol of the front.
const ALPN: &[u8] = b"http/1.1";
/// Longest handshake, with the wait for its turn. Clients of this machine need milliseconds.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Most handshakes at once: each costs a signature. The others wait; how many can is bounded by the connections.
const HANDSHAKES: usize = 64;
/// Longest file of certificates or keys.
const FILE_BYTES: u64 = 1 << 20;
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often our own certificate is checked for its end, which is weeks away when it is made anew.
const RENEW_EVERY: Duration = Duration::from_hours(1);

/// Why the TLS listener has no certificate. Prints no key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A given file cannot be used.
    #[error("{key}: {} {problem}", path.display())]
    File {
        /// The configuration key that names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Certificate and key do not go together.
    #[error("registry_tls_cert and registry_tls_key: {0}; the first certificate must be the key's")]
    Pair(rustls::Error),
    /// No certificate of our own can be kept in the data directory.
    #[error("cannot make a certificate in {}: {source}", directory.display())]
    Own {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl CertificateError {
    /// Whether the configuration is at fault, rather than the machine.
    #[must_use]
    pub const fn is_configured(&self) -> bool {
        !matches!(self, Self::Own { .. })
    }
}

/// The certificate of the TLS listeners, read anew when its files change. Cheap to clone.
#[derive(Clone)]
pub struct RegistryTls {
    inner: Arc<Inner>,
}

struct Inner {
    files: Files,
    current: Mutex<Current>,
    handshakes: Semaphore,
    handshake_deadline: Duration,
}

/// Where the certificate comes from.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// Makes them, if they are our own.
    authority: Option<Authority>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// Of the files as they were last looked at, good or bad.
    stamp: Stamp,
    /// When it was last checked that our own are good for a while.
    prepared: SystemTime,
}

/// What changes about a file when its content does: by being written or replaced.
type Stamp = [Option<(u64, i64, i64, u64)>; 2];

impl fmt::Debug for RegistryTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryTls").field("files", &self.inner.files).finish_non_exhaustive()
    }
}

impl RegistryTls {
    /// Reads the given certificate and key, or makes them. None without a TLS listener. `node` names this node.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn open(config: &Config, node: &str) -> Result<Option<Self>, CertificateError> {
        if config.registry_tls_listen.is_empty() {
            return Ok(None);
        }
        let files = match (&config.registry_tls_cert, &config.registry_tls_key) {
            (Some(certificate), Some(key)) => {
                Files { certificate: certificate.clone(), key: key.clone(), authority: None }
            }
            // The configuration has both or none.
            _ => {
                let addresses = config.registry_tls_listen.iter().map(std::net::SocketAddr::ip);
                let names = addresses.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
                let names = names.chain(config.registry_hosts.iter().cloned());
                let authority = Authority::new(config.data_dir.join("tls"), node, names);
                Files { certificate: authority.leaf(), key: authority.leaf(), authority: Some(authority) }
            }
        };
        let prepared = SystemTime::now();
        files.prepare(prepared)?;
        let stamp = files.stamp();
        let current = Mutex::new(Current { config: files.load()?, stamp, prepared });
        let handshakes = Semaphore::new(HANDSHAKES);
        let inner = Inner { files, current, handshakes, handshake_deadline: HANDSHAKE_DEADLINE };
        Ok(Some(Self { inner: Arc::new(inner) }))
    }

    /// Checks the given files without keeping anything.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn check(config: &Config) -> Result<(), CertificateError> {
        if let (Some(certificate), Some(key)) = (&config.registry_tls_cert, &config.registry_tls_key) {
            Files { certificate: certificate.clone(), key: key.clone(), authority: None }.load()?;
        }
        Ok(())
    }

    /// The certificate of the authority that clients must trust, if it is our own.
    #[must_use]
    pub fn authority(&self) -> Option<PathBuf> {
        self.inner.files.authority.as_ref().map(Authority::certificate)
    }

    /// Keeps the certificate fresh until `shutdown`.
    pub(crate) async fn watch(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let tls = self.clone();
            // Files may lie on a slow disk.
            tokio::task::spawn_blocking(move || tls.refresh(SystemTime::now())).await.ok();
        }
    }

    /// Looks at the files, and takes what is new and good.
    fn refresh(&self, now: SystemTime) {
        let files = &self.inner.files;
        let (seen, prepared) = {
            let current = self.current();
            (current.stamp, current.prepared)
        };
        if files.stamp() != seen || now > prepared + RENEW_EVERY {
            self.current().prepared = now;
            if let Err(error) = files.prepare(now) {
                warn!(%error, "cannot renew the registry's certificate");
            }
        }
        let stamp = files.stamp();
        if stamp == seen {
            return;
        }
        let loaded = files.load();
        let mut current = self.current();
        // A file that is half written is looked at again when it changes, which it will.
        current.stamp = stamp;
        match loaded {
            Ok(config) => {
                current.config = config;
                info!(certificate = %files.certificate.display(), "read the registry's certificate anew");
            }
            Err(error) => warn!(%error, "the registry goes on with the certificate of before"),
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.inner.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shakes hands, after those that came before.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let _permit = self.inner.handshakes.acquire().await.map_err(io::Error::other)?;
            let acceptor = TlsAcceptor::from(Arc::clone(&self.current().config));
            acceptor.accept(stream).await
        };
        timeout(self.inner.handshake_deadline, handshake).await?
    }
}

impl Files {
    fn prepare(&self, now: SystemTime) -> Result<(), CertificateError> {
        let Some(authority) = &self.authority else { return Ok(()) };
        let own = |source| CertificateError::Own {
            directory: self.certificate.parent().unwrap_or(Path::new("")).to_owned(),
            source,
        };
        if authority.prepare(now).map_err(own)? {
            info!(ca = %authority.certificate().display(), "made a certificate authority: clients of the TLS listener must trust it");
        }
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
        })
    }

    fn load(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let refused =
            |key, path: &Path, problem: String| CertificateError::File { key, path: path.to_owned(), problem };
        let certificate = |problem| refused("registry_tls_cert", &self.certificate, problem);
        let private = |problem| refused("registry_tls_key", &self.key, problem);
        let text = read(&self.certificate).map_err(certificate)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|_| certificate("is not a PEM file".to_owned()))?;
        if chain.is_empty() {
            return Err(certificate("has no certificate in it; it must be a PEM file".to_owned()));
        }
        let mode = fs::metadata(&self.key).map_or(0, |found| found.permissions().mode());
        if mode & 0o007 != 0 {
            return Err(private(format!("is open to everybody; run: chmod 600 {}", self.key.display())));
        }
        let text = read(&self.key).map_err(private)?;
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| private("has no private key in it; it must be a PEM file without a passphrase".to_owned()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(CertificateError::Pair)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(CertificateError::Pair)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.key_log = Arc::new(NoKeyLog {});
        Ok(Arc::new(config))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let mut text = Vec::new();
    fs::File::open(path).map_err(cannot)?.take(FILE_BYTES + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > FILE_BYTES { Err("is longer than 1 MiB".to_owned()) } else { Ok(text) }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
