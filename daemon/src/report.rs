//! The daemon's status, gathered from its parts.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Instant,
};

use shoal_proto::{
    chunk::Layout,
    peer::PeerId,
    status::{Addresses, BlobStatus, FetchStatus, PeerStatus, Status},
};
use tokio::{runtime::Handle, sync::watch};

use crate::{
    dht::{Dht, DhtPeer},
    metrics::Metrics,
    node::{Node, NodeFetch},
    quic::DataPlane,
    store::Store,
};

/// Where the parts of a status come from.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    pub(crate) peer: PeerId,
    pub(crate) registry_addresses: Vec<SocketAddr>,
    pub(crate) registry_tls_addresses: Vec<SocketAddr>,
    pub(crate) registry_ca: Option<PathBuf>,
    /// Known once the admin interfaces are bound.
    pub(crate) observe: Arc<OnceLock<SocketAddr>>,
    pub(crate) started: Instant,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) node: Node,
    pub(crate) store: Store,
    pub(crate) dht: Dht,
    pub(crate) plane: DataPlane,
    pub(crate) metrics: Arc<Metrics>,
}

impl Reporter {
    /// The reporter as the admin interfaces call it: from a blocking thread inside the runtime.
    pub(crate) fn source(self) -> Arc<dyn Fn() -> Status + Send + Sync> {
        Arc::new(move || Handle::current().block_on(self.status()))
    }

    async fn status(&self) -> Status {
        let views = self.node.fetches().await;
        let known = self.dht.peers().await;
        let p2p = self.plane.local_address();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: self.peer.into(),
            addresses: Addresses {
                registry: self.registry_addresses.clone(),
                registry_tls: self.registry_tls_addresses.clone(),
                registry_ca: self.registry_ca.clone(),
                p2p,
                observe: self.observe.get().copied().unwrap_or(p2p),
            },
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: *self.ready.borrow(),
            dht_peers: u32::try_from(known.len()).unwrap_or(u32::MAX),
            peers: self.peers(known),
            blobs: self.blobs(),
            fetches: views.iter().filter(|fetch| !fetch.view.complete).map(fetch_status).collect(),
            totals: self.metrics.totals(),
        }
    }

    /// Everybody that discovery knows, with the figures of those that the data plane is connected to.
    fn peers(&self, known: Vec<DhtPeer>) -> Vec<PeerStatus> {
        let connected = self.plane.connected();
        let ids: HashSet<PeerId> = connected.iter().map(|peer| peer.peer).collect();
        let connected = connected.into_iter().map(|peer| PeerStatus {
            name: peer.peer.into(),
            address: peer.address,
            connected: true,
            rtt_ms: peer.rtt.as_secs_f64() * 1000.0,
            bytes_in: peer.bytes_in,
            bytes_out: peer.bytes_out,
        });
        let others = known.into_iter().filter(|peer| !ids.contains(&peer.peer)).map(|peer| PeerStatus {
            name: peer.peer.into(),
            address: peer.address,
            connected: false,
            rtt_ms: 0.0,
            bytes_in: 0,
            bytes_out: 0,
        });
        connected.chain(others).collect()
    }

    fn blobs(&self) -> Vec<BlobStatus> {
        let blobs = self.store.list().into_iter();
        blobs.map(|blob| BlobStatus { digest: blob.digest, size: blob.size, sealed: blob.sealed }).collect()
    }
}

fn fetch_status(fetch: &NodeFetch) -> FetchStatus {
    let view = &fetch.view;
    let bytes = view
        .size
        .and_then(Layout::new)
        .map_or(0, |layout| (u64::from(view.have) * layout.chunk_bytes()).min(layout.size()));
    let state = match (view.leased, view.chunks) {
        (true, _) => "streaming from the origin",
        (false, 0) => "locating",
        (false, _) => "pulling from peers",
    };
    FetchStatus {
        digest: view.digest,
        size: view.size,
        have_chunks: view.have,
        chunks: view.chunks,
        bytes,
        from_origin: fetch.from_origin,
        from_peers: fetch.from_peers,
        lease: view.leased,
        state: state.to_owned(),
        readers: view.readers,
    }
}
