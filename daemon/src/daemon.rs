//! Building and running a daemon from its configuration.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use shoal_proto::{limits::Limits, peer::Place};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::{Ledger, Policy},
    admin::{Admin, AdminConfig, AdminError, AdminSources, CONTROL_SOCKET},
    config::{Config, ConfigError, StreamMode, TagPolicy},
    credentials::{self, CredentialError, Credentials},
    dht::{Dht, DhtConfig, DhtError},
    identity::{Identity, IdentityError},
    metrics::Metrics,
    node::{Node, Parts, Rendezvous},
    origin::{Origin, OriginTimeouts, Upstream, UpstreamError, UpstreamSettings},
    pull::Puller,
    quic::{BindError, DataPlane, DataPlaneConfig, PlaneEvent},
    rate::Bucket,
    registry::{self, CertificateError, Registry, RegistryConfig, RegistryTls},
    report::Reporter,
    secret::{Secret, SecretError},
    store::{Store, StoreError},
    verify::Verifier,
};

/// Events of the data plane that wait for the loop; peers are held back when it is full.
const EVENTS_MAX: usize = 1024;
/// How often TCP and UDP are tried for one free port number.
const PORT_TRIES: usize = 16;
/// Pause when discovery's queue is full of announcements.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);
/// How long tasks get to end after the listeners have.
const TASKS_DEADLINE: Duration = Duration::from_secs(3);

/// A daemon that has bound all it listens on and is ready to run.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    secret: Secret,
    access: Arc<Ledger>,
    dht: Dht,
    plane: DataPlane,
    registry: Registry,
    listeners: Vec<TcpListener>,
    tls: Option<RegistryTls>,
    tls_listeners: Vec<TcpListener>,
    admin: Admin,
    ready: watch::Sender<bool>,
    tasks: TaskTracker,
    /// Cancelled first: no new work.
    shutdown: CancellationToken,
    /// Cancelled when running requests have ended: the node's loop stops.
    stop_node: CancellationToken,
    /// Held to the end: the data directory's lock goes with it.
    store: Store,
}

/// Why a daemon cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Something in the configuration only shows when it is used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record of who may have which content.
    #[error("cannot use the access ledger {}: {source}", path.display())]
    Access {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The node's key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file or a plugin with credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// An upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The data plane.
    #[error(transparent)]
    Plane(#[from] BindError),
    /// Discovery.
    #[error(transparent)]
    Dht(#[from] DhtError),
    /// Observe and control.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The registry port.
    #[error("cannot listen on {address} for the registry: {source} (choose another with --registry-listen)")]
    Registry {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate of the registry's TLS port.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Peers could reach this node, but nothing keeps strangers out.
    #[error(
        "p2p_listen is {0}, which others can reach: set secret_file (make one with `shoal key generate`), or listen on 127.0.0.1"
    )]
    NeedsSecret(SocketAddr),
}

/// Why a daemon ended other than by its shutdown.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part of it ended by itself.
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

impl Daemon {
    /// Opens the store, binds every listener, starts discovery and the node.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(config: Config) -> Result<Self, BuildError> {
        let secret = match &config.secret_file {
            Some(path) => Secret::load(path)?,
            None if config.p2p_listen.ip().is_loopback() => Secret::none(),
            None => return Err(BuildError::NeedsSecret(config.p2p_listen)),
        };
        let data_dir = config.data_dir.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&data_dir)).await;
        let store = store.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        let access = open_ledger(&config, &store).await?;
        let identity = Identity::load_or_create(&config.data_dir.join("node.key"))?;
        let mut metrics = Metrics::new();
        metrics.watch_store(store.clone());
        let metrics = Arc::new(metrics);
        let download = Bucket::optional(config.limits.download);
        let caps = vec![Bucket::optional(config.limits.origin), download.clone()];
        let origin = Origin::new(OriginTimeouts::default(), caps, Arc::clone(&metrics));
        let (events, events_in) = mpsc::channel(EVENTS_MAX);
        let (dht, plane) = bind_p2p(&config, &identity, &secret, download, events).await?;
        let shutdown = CancellationToken::new();
        let stop_node = CancellationToken::new();
        let tasks = TaskTracker::new();
        let parts = Parts {
            identity: identity.clone(),
            place: place_of(&config),
            secret: secret.clone(),
            store: store.clone(),
            verifier: Verifier::default(),
            dht: dht.clone(),
            rendezvous: Rendezvous::new(dht.own(), &config.bootstrap)?,
            plane: plane.clone(),
            origin: origin.clone(),
            access: Arc::clone(&access),
            metrics: Arc::clone(&metrics),
            limits: Limits::default(),
            sealed_only: config.stream == StreamMode::Sealed,
        };
        let node = Node::start(parts, events_in, &tasks, stop_node.clone());
        let upstreams = upstreams(&config)?;
        let settings = RegistryConfig {
            upstreams: upstreams.clone(),
            default_upstream: config.default_upstream.clone(),
            hosts: config.registry_hosts.clone(),
            tag_ttl: config.tag_ttl,
            stale_if_error: config.stale_if_error,
            stream_sealed: config.stream == StreamMode::Sealed,
            ..RegistryConfig::default()
        };
        let registry = Registry::new(settings, node.clone(), Arc::new(origin.clone()));
        let listeners = bind_registry(&config.registry_listen).await?;
        let tls = RegistryTls::open(&config, &identity.peer().to_string())?;
        let tls_listeners = bind_registry(&config.registry_tls_listen).await?;
        let (ready, ready_in) = watch::channel(false);
        let reporter = Reporter {
            peer: identity.peer(),
            registry_addresses: addresses_of(&listeners),
            registry_tls_addresses: addresses_of(&tls_listeners),
            registry_ca: tls.as_ref().and_then(RegistryTls::authority),
            observe: Arc::new(OnceLock::new()),
            started: Instant::now(),
            ready: ready_in.clone(),
            node: node.clone(),
            store: store.clone(),
            dht: dht.clone(),
            plane: plane.clone(),
            metrics: Arc::clone(&metrics),
        };
        let observe = Arc::clone(&reporter.observe);
        let puller = Puller::new(upstreams, config.default_upstream.clone(), node, origin);
        let sources = AdminSources {
            status: reporter.source(),
            pull: puller.source(),
            shutdown: shutdown.clone(),
            ready: ready_in,
            metrics,
        };
        let control = config.data_dir.join(CONTROL_SOCKET);
        let admin = Admin::start(AdminConfig { observe: config.observe_listen, control }, sources)?;
        observe.get_or_init(|| admin.observe_address());
        Ok(Self {
            config,
            secret,
            access,
            dht,
            plane,
            registry,
            listeners,
            tls,
            tls_listeners,
            admin,
            ready,
            tasks,
            shutdown,
            stop_node,
            store,
        })
    }

    /// Serves until `shutdown` completes or the control socket says so, then ends what runs within the grace period.
    ///
    /// # Errors
    /// If a part of the daemon ends by itself.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let servers = TaskTracker::new();
        let (plain, tls) = (joined(&self.listeners), joined(&self.tls_listeners));
        for listener in std::mem::take(&mut self.listeners) {
            servers.spawn(self.serve(listener, None));
        }
        for listener in std::mem::take(&mut self.tls_listeners) {
            servers.spawn(self.serve(listener, self.tls.clone()));
        }
        if let Some(tls) = &self.tls {
            self.tasks.spawn(tls.clone().watch(self.shutdown.clone()));
        }
        servers.close();
        let outcome = self.until_over(&servers, [plain, tls], shutdown).await;
        self.end(&servers).await;
        outcome
    }

    fn serve(&self, listener: TcpListener, tls: Option<RegistryTls>) -> impl Future<Output = ()> + use<> {
        registry::serve(listener, tls, self.registry.clone(), self.shutdown.clone(), self.config.shutdown_grace)
    }

    async fn until_over(
        &self,
        servers: &TaskTracker,
        registry: [String; 2],
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), RunError> {
        let begin = self.begin(registry);
        tokio::pin!(shutdown, begin);
        let mut begun = false;
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = self.shutdown.cancelled() => return Ok(()),
                () = servers.wait() => return Err(RunError::Ended("registry listener")),
                () = &mut begin, if !begun => begun = true,
            }
        }
    }

    /// Says where it serves once the other nodes are found, then tells them what it has.
    async fn begin(&self, [registry, tls]: [String; 2]) {
        self.dht.ready().await;
        let (p2p, observe) = (self.plane.local_address(), self.admin.observe_address());
        let tls = if tls.is_empty() { tls } else { format!(" registry_tls={tls}") };
        tracing::info!("ready registry={registry} p2p={p2p} observe={observe}{tls}");
        self.ready.send_replace(true);
        for blob in self.store.list().into_iter().filter(|blob| blob.sealed) {
            let Some(name) = self.access.announced(&blob.digest) else { continue };
            let key = self.secret.blob_key(&name);
            while !self.dht.provide(key) {
                tokio::time::sleep(ANNOUNCE_PAUSE).await;
            }
        }
    }

    /// Ends everything in the order in which parts need one another.
    async fn end(self, servers: &TaskTracker) {
        tracing::info!("shutting down");
        self.ready.send_replace(false);
        self.shutdown.cancel();
        // The registry front bounds this by its grace period.
        servers.wait().await;
        self.stop_node.cancel();
        self.tasks.close();
        if timeout(TASKS_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.plane.shutdown().await;
        self.dht.shutdown().await;
        self.admin.stop().await;
    }
}

/// Binds TCP (discovery) and UDP (data) to one port number; port 0 takes one that is free for both.
async fn bind_p2p(
    config: &Config,
    identity: &Identity,
    secret: &Secret,
    download: Bucket,
    events: mpsc::Sender<PlaneEvent>,
) -> Result<(Dht, DataPlane), BuildError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let settings = DhtConfig {
            listen: config.p2p_listen,
            identity: identity.clone(),
            secret: secret.clone(),
            bootstrap: config.bootstrap.clone(),
        };
        let (dht, listen) = Dht::start(settings).await?;
        let settings = DataPlaneConfig {
            place: place_of(config),
            upload: config.limits.upload,
            download: download.clone(),
            ..DataPlaneConfig::new(listen, identity.clone(), secret.clone())
        };
        match DataPlane::bind(settings, events.clone()) {
            Ok(plane) => return Ok((dht, plane)),
            Err(error) if config.p2p_listen.port() == 0 && tries < PORT_TRIES => {
                tracing::debug!(%listen, %error, "the port is free for TCP only; trying another");
                dht.shutdown().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn open_ledger(config: &Config, store: &Store) -> Result<Arc<Ledger>, BuildError> {
    let (path, store) = (config.data_dir.join("access"), store.clone());
    let opened = tokio::task::spawn_blocking({
        let path = path.clone();
        move || Ledger::open(&path, |digest| store.holds(digest))
    });
    let opened = opened.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    opened.map(Arc::new).map_err(|source| BuildError::Access { path, source })
}

fn place_of(config: &Config) -> Place {
    Place::named(config.zone.as_deref(), config.rack.as_deref())
}

fn addresses_of(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

fn joined(listeners: &[TcpListener]) -> String {
    addresses_of(listeners).iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

async fn bind_registry(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BuildError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.map_err(|source| BuildError::Registry { address: *address, source })?);
    }
    Ok(listeners)
}

fn upstreams(config: &Config) -> Result<BTreeMap<String, Arc<Upstream>>, BuildError> {
    let mut credentials = credentials::open(config)?.upstreams;
    let mut upstreams = BTreeMap::new();
    for upstream in &config.upstreams {
        let settings = UpstreamSettings {
            mirrors: upstream.mirrors.clone(),
            client_cert_file: upstream.client_cert_file.clone(),
            client_key_file: upstream.client_key_file.clone(),
            credentials: match upstream.access {
                Policy::Node => credentials.remove(&upstream.name).unwrap_or_default(),
                // What files and plugins have for it is not for these.
                Policy::Public | Policy::Private => Credentials::default(),
            },
            access: upstream.access,
            shared_tags: (upstream.tags == TagPolicy::Cluster).then_some(config.tag_ttl),
            realm_hosts: upstream.realm_hosts.clone(),
            ca_file: upstream.ca_file.clone(),
            allow_private: upstream.allow_private,
            push: upstream.push,
            ..UpstreamSettings::new(upstream.name.clone(), upstream.url.clone())
        };
        upstreams.insert(upstream.name.clone(), Arc::new(Upstream::new(settings)?));
    }
    Ok(upstreams)
}
