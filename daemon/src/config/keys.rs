//! The table of keys: the one place that knows their names, forms, defaults and meanings.

/// One key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its place in the TOML file: `zone`, `limits.upload`.
    pub name: &'static str,
    /// The flag, without the dashes: `limits-upload`.
    pub flag: &'static str,
    /// The allowed form, as help shows it: `IP:PORT`.
    pub form: &'static str,
    /// Whether it takes several values: a list in TOML, commas in the environment, a repeated flag.
    pub many: bool,
    /// What it is when not given, in words.
    pub default: &'static str,
    /// What it does, in one sentence.
    pub meaning: &'static str,
}

impl Key {
    /// The environment variable: `SHOAL_LIMITS_UPLOAD`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("SHOAL_{}", self.flag.replace('-', "_").to_ascii_uppercase())
    }

    /// The table it stands in, and its name there.
    pub(super) fn split(&self) -> (Option<&'static str>, &'static str) {
        match self.name.split_once('.') {
            Some((section, key)) => (Some(section), key),
            None => (None, self.name),
        }
    }
}

const fn one(
    name: &'static str,
    flag: &'static str,
    form: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, flag, form, many: false, default, meaning }
}

const fn many(
    name: &'static str,
    flag: &'static str,
    form: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key { name, flag, form, many: true, default, meaning }
}

/// Every key, in the order of the help text.
pub const KEYS: &[Key] = &[
    one(
        "data_dir",
        "data-dir",
        "DIR",
        "/var/lib/shoal as root, else $XDG_DATA_HOME/shoal or ~/.local/share/shoal",
        "Where blobs, the node's key and the control socket live",
    ),
    many(
        "registry_listen",
        "registry-listen",
        "IP:PORT",
        "127.0.0.1:5050",
        "Where container runtimes pull from (registry API)",
    ),
    many(
        "registry_tls_listen",
        "registry-tls-listen",
        "IP:PORT",
        "none",
        "Where clients that need HTTPS pull from, for example 127.0.0.1:5053",
    ),
    one(
        "registry_tls_cert",
        "registry-tls-cert",
        "FILE",
        "made by the daemon, with a CA in DATA/tls/ca.pem that clients must trust",
        "The certificate to show there and its chain, PEM; read anew when it changes",
    ),
    one("registry_tls_key", "registry-tls-key", "FILE", "none", "Its private key, PEM; not readable by everybody"),
    one(
        "p2p_listen",
        "p2p-listen",
        "IP:PORT",
        "0.0.0.0:5051 with a secret, else 127.0.0.1:5051",
        "Where peers reach this node, TCP and UDP; anything but loopback needs a secret",
    ),
    one("observe_listen", "observe-listen", "IP:PORT", "127.0.0.1:5052", "Where health, metrics and status are served"),
    one(
        "secret_file",
        "secret-file",
        "FILE",
        "none",
        "The cluster secret, from `shoal key generate`; the file must be readable by its owner only",
    ),
    many(
        "bootstrap",
        "bootstrap",
        "HOST:PORT",
        "none",
        "Peers to begin with; a DNS name stands for all its addresses, multiaddrs are allowed",
    ),
    many(
        "upstreams",
        "upstream",
        "NAME=URL",
        "docker.io, ghcr.io, quay.io, registry.k8s.io, gcr.io, nvcr.io, public.ecr.aws, mcr.microsoft.com",
        "The only registries that may be asked; giving any replaces the default set",
    ),
    one(
        "default_upstream",
        "default-upstream",
        "NAME",
        "docker.io, if it is an upstream",
        "The upstream of requests that name no registry",
    ),
    many(
        "credential_files",
        "credential-files",
        "FILE",
        "none",
        "Credentials for upstreams: docker's config.json, podman's auth.json, a mounted pull secret; asked in this order",
    ),
    one(
        "credential_provider_config",
        "credential-provider-config",
        "FILE",
        "none",
        "The kubelet's CredentialProviderConfig: its plugins are asked after the files",
    ),
    one(
        "credential_provider_bin_dir",
        "credential-provider-bin-dir",
        "DIR",
        "none",
        "Where the plugins of credential_provider_config lie",
    ),
    one(
        "zone",
        "zone",
        "TEXT",
        "none",
        "The zone of this node; one node imports a blob into a zone, the others get it there",
    ),
    one("rack", "rack", "TEXT", "none", "The rack of this node inside its zone; peers of the same rack are preferred"),
    one(
        "log",
        "log",
        "FORMAT|FILTER",
        "text,info",
        "How and what to log: text or json, a level, TARGET=LEVEL, or several with commas (json,debug)",
    ),
    one(
        "stream",
        "stream",
        "MODE",
        "verified",
        "When clients get bytes: `verified` chunk by chunk as they are checked, `sealed` after the whole blob is proven",
    ),
    one("tag_ttl", "tag-ttl", "TIME", "30s", "How long a tag that the origin resolved is believed"),
    one(
        "stale_if_error",
        "stale-if-error",
        "TIME",
        "0",
        "How much longer a tag is served, with a warning, while its registry cannot be asked; 0: not at all",
    ),
    one(
        "shutdown_grace",
        "shutdown-grace",
        "TIME",
        "20s",
        "How long running requests may take to end after the first signal",
    ),
    many(
        "registry_hosts",
        "registry-hosts",
        "HOST",
        "none",
        "Further names by which clients address the registry (HTTP Host); loopback names and the listen addresses always work",
    ),
    one("limits.upload", "limits-upload", "RATE", "none", "Cap on bytes to peers, for example 25MB/s or 1Gbit/s"),
    one(
        "limits.download",
        "limits-download",
        "RATE",
        "none",
        "Cap on bytes from peers and upstream registries together",
    ),
    one("limits.origin", "limits-origin", "RATE", "none", "Cap on bytes from upstream registries"),
];

/// The key with this name. Asking for a name that is not in the table is a mistake in this crate.
pub(super) fn key(name: &str) -> &'static Key {
    match KEYS.iter().find(|key| key.name == name) {
        Some(key) => key,
        None => unreachable!("no key is called {name}"),
    }
}

/// "did you mean `x`?" if one of `known` is near `given`, else all of them.
pub(super) fn hint<'a>(given: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(given, known.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The nearest of `known` to `given`, if it is near enough to be a slip of the hand.
fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_ascii_lowercase().replace('-', "_");
    known
        .map(|name| (distance(&given, name), name))
        .min()
        .filter(|&(distance, name)| distance <= 1 + name.len() / 4 && distance < name.len())
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let mut best = (above[j] + 1).min(row[j - 1] + 1).min(above[j - 1] + usize::from(a[i - 1] != b[j - 1]));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}
