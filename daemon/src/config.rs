//! The daemon's configuration: a TOML file, overruled by the environment (`SHOAL_*`), overruled by flags.
//!
//! [`Config::load`] is pure apart from reading the file: the environment and the flags come in as maps. Every key of
//! [`KEYS`] may come from all three places; the command line is built from the same table, so none can be forgotten.

mod gather;
mod keys;
#[cfg(test)]
mod tests;
mod upstreams;
mod values;

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;
use shoal_proto::units::Rate;
use url::Url;

pub use keys::{KEYS, Key};
pub use values::duration_text;
pub(crate) use values::quoted;

use crate::access::Policy;
use gather::Layers;

/// The port of the data and discovery plane, used where an address names none.
pub const P2P_PORT: u16 = 5051;

/// Everything the daemon may be told.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// Where blobs, the node's key and the control socket live.
    pub data_dir: PathBuf,
    /// Where the registry front listens.
    pub registry_listen: Vec<SocketAddr>,
    /// Where it listens with TLS.
    pub registry_tls_listen: Vec<SocketAddr>,
    /// The PEM file with the certificate to show there, and those that vouch for it. None: one of an authority of our own.
    pub registry_tls_cert: Option<PathBuf>,
    /// The PEM file with its private key.
    pub registry_tls_key: Option<PathBuf>,
    /// Where peers reach this node: TCP and UDP on one port number.
    pub p2p_listen: SocketAddr,
    /// Where health, metrics and status are served.
    pub observe_listen: SocketAddr,
    /// The file with the cluster secret. None: peers on loopback only.
    pub secret_file: Option<PathBuf>,
    /// Peers to begin with: `host:port`, `ip:port` or a multiaddr.
    pub bootstrap: Vec<String>,
    /// The registries that may be asked, sorted by name.
    pub upstreams: Vec<UpstreamConfig>,
    /// The upstream of a name that names none: always one of `upstreams`.
    pub default_upstream: Option<String>,
    /// Files with credentials for upstreams, asked in this order. See [`crate::credentials`].
    pub credential_files: Vec<PathBuf>,
    /// The kubelet's `CredentialProviderConfig`. Comes with `credential_provider_bin_dir`.
    pub credential_provider_config: Option<PathBuf>,
    /// Where the plugins lie that it names.
    pub credential_provider_bin_dir: Option<PathBuf>,
    /// The failure or network zone of this node.
    pub zone: Option<String>,
    /// The rack (or host group) inside the zone.
    pub rack: Option<String>,
    /// How log lines look.
    pub log: LogFormat,
    /// Which log lines are written: directives such as `info` or `info,shoal_daemon::dht=debug`.
    pub log_filter: String,
    /// When bytes of a blob may leave for a client.
    pub stream: StreamMode,
    /// How long a resolved tag is believed.
    #[serde(serialize_with = "values::serialize_duration")]
    pub tag_ttl: Duration,
    /// How much longer a tag is served, with a warning, while its origin cannot be asked; zero: not at all.
    #[serde(serialize_with = "values::serialize_duration")]
    pub stale_if_error: Duration,
    /// How long running requests may take to end after the first signal.
    #[serde(serialize_with = "values::serialize_duration")]
    pub shutdown_grace: Duration,
    /// Further names by which clients may address the registry front (HTTP `Host`).
    pub registry_hosts: Vec<String>,
    /// Caps on what this node moves.
    pub limits: LimitsConfig,
    /// What looks like a mistake but does not stop the daemon; one line each, to be logged.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Caps on what this node moves, in bytes per second. None: no cap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LimitsConfig {
    /// To peers.
    pub upload: Option<Rate>,
    /// From peers.
    pub download: Option<Rate>,
    /// From origins.
    pub origin: Option<Rate>,
}

/// One registry that may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpstreamConfig {
    /// The name in image references: `docker.io`, `registry.test:5000`. Lower case.
    pub name: String,
    /// Where it is: `https://`, or `http://` for a registry without TLS, a host, perhaps a path.
    #[serde(serialize_with = "values::serialize_text")]
    pub url: Url,
    /// Other places of the same content, asked in this order before `url`.
    #[serde(serialize_with = "values::serialize_texts")]
    pub mirrors: Vec<Url>,
    /// The account to present when the registry asks for one. Comes with `password` or `password_file`.
    pub username: Option<String>,
    /// The account's password or token, given in the configuration itself.
    #[serde(skip)]
    pub password: Option<Password>,
    /// The file that holds it. See [`UpstreamConfig::read_password`].
    pub password_file: Option<PathBuf>,
    /// The environment variable that `password` came from: no program that we start gets to see it.
    pub password_env: Option<String>,
    /// A file with credentials for this upstream alone, asked before `credential_files`.
    pub credentials: Option<PathBuf>,
    /// PEM certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM certificate to show to the registry and its mirrors.
    pub client_cert_file: Option<PathBuf>,
    /// Its private key.
    pub client_key_file: Option<PathBuf>,
    /// Whether redirects and token realms of a public registry may lead to private addresses (never to loopback or
    /// link-local ones).
    pub allow_private: bool,
    /// Hosts beyond the registry's own site that may be its token realm and get its credentials.
    pub realm_hosts: Vec<String>,
    /// Whether clients on this machine may push through this node, with this upstream's account.
    pub push: bool,
    /// Who may have its content.
    pub access: Policy,
    /// Who asks it what its tags point at.
    pub tags: TagPolicy,
}

/// Who asks an upstream what its tags point at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TagPolicy {
    /// Each node for itself.
    Origin,
    /// One node for all, whose word the others take for `tag_ttl`.
    Cluster,
}

impl UpstreamConfig {
    /// Whether its URL leads to a loopback address.
    pub(crate) fn is_on_this_machine(&self) -> bool {
        match self.url.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        }
    }

    /// The password, from the configuration or from its file, without the line end. None: anonymous.
    ///
    /// # Errors
    /// The file cannot be read, or is empty.
    pub fn read_password(&self) -> Result<Option<Password>, ConfigError> {
        let Some(file) = &self.password_file else { return Ok(self.password.clone()) };
        let refused = |problem: String, hint: &str| ConfigError::Value {
            place: format!("password_file of upstream {}", self.name),
            problem,
            hint: hint.to_owned(),
        };
        let bytes = std::fs::read(file).map_err(|error| {
            refused(format!("cannot read {}: {error}", file.display()), "name a file that the daemon's user may read")
        })?;
        let password = Password::parse(&bytes).map_err(|problem| {
            refused(format!("{} {problem}", file.display()), "put the password or token on its first line")
        })?;
        Ok(Some(password))
    }
}

/// A password that never prints itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// From a file's bytes, without the line end.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err("is empty"),
            password => Ok(Self(password.to_owned())),
        }
    }

    /// The text, to be sent to its registry and nowhere else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// When bytes of a blob may leave for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamMode {
    /// Each chunk as soon as it is verified; the last one only after the seal.
    #[default]
    Verified,
    /// Nothing before the whole blob is proven.
    Sealed,
}

/// Where a configuration comes from. All of it is data: nothing global is read.
#[derive(Clone, Default)]
pub struct ConfigSources {
    /// The TOML file, if one was named.
    pub file: Option<PathBuf>,
    /// The environment: the `SHOAL_*` variables, `HOME` and `XDG_DATA_HOME` for the default data directory, and those that
    /// `username_env` and `password_env` of upstreams name.
    pub env: BTreeMap<String, String>,
    /// The flags that were given, by [`Key::flag`].
    pub flags: BTreeMap<String, Vec<String>>,
    /// Whether the daemon runs as root, which moves the default data directory.
    pub root: bool,
}

impl fmt::Debug for ConfigSources {
    /// The environment is full of secrets, also those of others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSources").field("file", &self.file).field("root", &self.root).finish_non_exhaustive()
    }
}

/// Why a configuration is refused. Prints as one line: which key where, what is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration file: {why}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The file is not TOML.
    #[error("{}:{line}: this is not TOML: {why}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
    /// The file has a key that means nothing.
    #[error("{}: unknown key `{key}`{}; {hint}", file.display(), section.as_ref().map_or(String::new(), |section| format!(" in [{section}]")))]
    UnknownKey {
        /// Which file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The table it stands in; none at the top.
        section: Option<String>,
        /// The nearest key, or all of them.
        hint: String,
    },
    /// A value is not of its key's form, or does not go with another.
    #[error("{place}: {problem}; {hint}")]
    Value {
        /// The key and where it was given: `SHOAL_ZONE`, `--zone`, ``key `zone` in FILE``.
        place: String,
        /// What is wrong.
        problem: String,
        /// The allowed form, or the way out.
        hint: String,
    },
}

impl Config {
    /// Puts the sources together and checks the result.
    ///
    /// # Errors
    /// See [`ConfigError`]: the first problem found.
    pub fn load(sources: ConfigSources) -> Result<Self, ConfigError> {
        let layers = Layers::gather(&sources)?;
        let upstreams = upstreams::load(&layers, &sources.env)?;
        let default_upstream = upstreams::default(&layers, &upstreams)?;
        let secret_file = layers.one("secret_file", values::path)?;
        let p2p_listen = layers.one("p2p_listen", values::address)?.unwrap_or_else(|| {
            let host = if secret_file.is_some() { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
            SocketAddr::from((host, P2P_PORT))
        });
        let (log, log_filter) = values::log(&layers)?;
        let mut config = Self {
            data_dir: data_dir(&layers, &sources)?,
            registry_listen: layers
                .list("registry_listen", values::address)?
                .unwrap_or_else(|| vec![SocketAddr::from(([127, 0, 0, 1], 5050))]),
            registry_tls_listen: layers.list("registry_tls_listen", values::address)?.unwrap_or_default(),
            registry_tls_cert: layers.one("registry_tls_cert", values::path)?,
            registry_tls_key: layers.one("registry_tls_key", values::path)?,
            p2p_listen,
            observe_listen: layers
                .one("observe_listen", values::address)?
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 5052))),
            secret_file,
            bootstrap: layers.list("bootstrap", values::bootstrap)?.unwrap_or_default(),
            warnings: [layers.warnings.clone(), upstreams::warnings(&upstreams)].concat(),
            upstreams,
            default_upstream,
            credential_files: layers.list("credential_files", values::path)?.unwrap_or_default(),
            credential_provider_config: layers.one("credential_provider_config", values::path)?,
            credential_provider_bin_dir: layers.one("credential_provider_bin_dir", values::path)?,
            zone: layers.one("zone", values::label)?,
            rack: layers.one("rack", values::label)?,
            log,
            log_filter,
            stream: layers.one("stream", values::stream)?.unwrap_or_default(),
            tag_ttl: layers.one("tag_ttl", values::duration)?.unwrap_or(Duration::from_secs(30)),
            stale_if_error: layers.one("stale_if_error", values::duration)?.unwrap_or_default(),
            shutdown_grace: layers.one("shutdown_grace", values::duration)?.unwrap_or(Duration::from_secs(20)),
            registry_hosts: layers.list("registry_hosts", values::host)?.unwrap_or_default(),
            limits: LimitsConfig {
                upload: layers.one("limits.upload", values::rate)?,
                download: layers.one("limits.download", values::rate)?,
                origin: layers.one("limits.origin", values::rate)?,
            },
        };
        config.check_secret(&layers)?;
        config.check_ports(&layers)?;
        config.check_certificate(&layers)?;
        config.warn_of_isolation();
        config.warn_of_pushes();
        Ok(config)
    }

    /// The data directory alone, for commands that only look for the control socket.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn data_dir(sources: &ConfigSources) -> Result<PathBuf, ConfigError> {
        data_dir(&Layers::gather(sources)?, sources)
    }

    /// Without a secret anybody who reaches the port could join.
    fn check_secret(&self, layers: &Layers) -> Result<(), ConfigError> {
        if self.secret_file.is_some() || self.p2p_listen.ip().is_loopback() {
            return Ok(());
        }
        Err(ConfigError::Value {
            place: layers.place("p2p_listen"),
            problem: format!("{} is not a loopback address and no secret is given", self.p2p_listen),
            hint: "make one with `shoal key generate --output FILE` and give secret_file (SHOAL_SECRET_FILE, --secret-file)".to_owned(),
        })
    }

    /// Allowed (a cluster on one machine), but most likely the secret was forgotten.
    fn warn_of_isolation(&mut self) {
        let elsewhere = |peer: &&String| {
            let loopback = peer.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
            !loopback
                && !peer.starts_with("localhost:")
                && !peer.starts_with("/ip4/127.")
                && !peer.starts_with("/ip6/::1/")
        };
        if self.secret_file.is_none()
            && let Some(peer) = self.bootstrap.iter().find(elsewhere)
        {
            self.warnings.push(format!(
                "bootstrap: without secret_file this node talks to peers on loopback only, so it will not join {peer}"
            ));
        }
    }

    /// A certificate is of no use without its key, nor both without a listener.
    fn check_certificate(&mut self, layers: &Layers) -> Result<(), ConfigError> {
        let (given, missing) = match (&self.registry_tls_cert, &self.registry_tls_key) {
            (Some(_), None) => ("registry_tls_cert", "registry_tls_key"),
            (None, Some(_)) => ("registry_tls_key", "registry_tls_cert"),
            (Some(_), Some(_)) if self.registry_tls_listen.is_empty() => {
                self.warnings
                    .push("registry_tls_cert: it is not used, because registry_tls_listen is not set".to_owned());
                return Ok(());
            }
            _ => return Ok(()),
        };
        Err(ConfigError::Value {
            place: layers.place(given),
            problem: format!("{missing} is missing"),
            hint: "give both, or neither for a certificate that the daemon makes itself".to_owned(),
        })
    }

    /// Whoever reaches the registry port pushes with the node's account.
    fn warn_of_pushes(&mut self) {
        let pushed: Vec<&str> =
            (self.upstreams.iter().filter(|upstream| upstream.push)).map(|upstream| upstream.name.as_str()).collect();
        let elsewhere = self.registry_listen.iter().find(|address| !address.ip().is_loopback());
        if let (Some(address), false) = (elsewhere, pushed.is_empty()) {
            self.warnings.push(format!(
                "registry_listen: pushes to {} are taken on loopback addresses only, not on {address}",
                pushed.join(", ")
            ));
        }
    }

    /// Two TCP listeners on one address would fail at start with a less helpful message.
    fn check_ports(&self, layers: &Layers) -> Result<(), ConfigError> {
        let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
        let listeners = (self.registry_listen.iter().map(|&address| ("registry_listen", address)))
            .chain(self.registry_tls_listen.iter().map(|&address| ("registry_tls_listen", address)))
            .chain([("p2p_listen", self.p2p_listen), ("observe_listen", self.observe_listen)]);
        for (key, address) in listeners {
            let clash = taken.iter().find(|(_, other)| {
                address.port() != 0
                    && address.port() == other.port()
                    && (address.ip() == other.ip() || address.ip().is_unspecified() || other.ip().is_unspecified())
            });
            if let Some((other_key, other)) = clash {
                return Err(ConfigError::Value {
                    place: layers.place(key),
                    problem: format!("{address} collides with {other_key} {other}"),
                    hint: "give each listener a port of its own".to_owned(),
                });
            }
            taken.push((key, address));
        }
        Ok(())
    }
}

fn data_dir(layers: &Layers, sources: &ConfigSources) -> Result<PathBuf, ConfigError> {
    if let Some(given) = layers.one("data_dir", values::path)? {
        return Ok(given);
    }
    if sources.root {
        return Ok(PathBuf::from("/var/lib/shoal"));
    }
    let directory = |name: &str| sources.env.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    directory("XDG_DATA_HOME")
        .or_else(|| directory("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("shoal"))
        .ok_or_else(|| ConfigError::Value {
            place: "data_dir".to_owned(),
            problem: "there is no default: neither XDG_DATA_HOME nor HOME is an absolute path".to_owned(),
            hint: "give data_dir (SHOAL_DATA_DIR, --data-dir)".to_owned(),
        })
}
