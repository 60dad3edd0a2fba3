//! The mechanisms that a node is built from.

use std::sync::Arc;

use shoal_proto::{limits::Limits, peer::Place};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Flights, Node, Shared, driver::Driver, rendezvous::Rendezvous, vouched::Shelf};
use crate::{
    access::Ledger,
    dht::Dht,
    identity::Identity,
    metrics::Metrics,
    origin::Origin,
    quic::{DataPlane, PlaneEvent},
    secret::Secret,
    store::Store,
    verify::Verifier,
};

/// Commands that wait for the loop.
const COMMANDS_MAX: usize = 4096;

/// What the node's loop and its tasks use.
#[derive(Debug)]
pub struct Parts {
    /// Who this node is.
    pub identity: Identity,
    /// Where this node stands.
    pub place: Place,
    /// What the cluster shares.
    pub secret: Secret,
    /// Blobs on disk.
    pub store: Store,
    /// Hashing off the async threads.
    pub verifier: Verifier,
    /// Trackers and holders.
    pub dht: Dht,
    /// Trackers where the DHT names none but this node.
    pub rendezvous: Rendezvous,
    /// Messages and chunks.
    pub plane: DataPlane,
    /// Upstream registries.
    pub origin: Origin,
    /// Under which scopes blobs were had.
    pub access: Arc<Ledger>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// All bounds.
    pub limits: Limits,
    /// Serve only what is proven as a whole.
    pub sealed_only: bool,
}

impl Node {
    /// Starts the loop. It ends when `shutdown` is cancelled; its tasks are tracked by `tasks`.
    #[must_use]
    pub fn start(
        parts: Parts,
        events: mpsc::Receiver<PlaneEvent>,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let parts = Arc::new(parts);
        let flights = Flights::new(Arc::clone(&parts.access));
        let shelf = Arc::new(Shelf::new(Arc::clone(&parts), commands.clone()));
        let shared = Shared {
            commands,
            store: parts.store.clone(),
            sealed_only: parts.sealed_only,
            readers: std::sync::atomic::AtomicU64::new(1),
            flights: flights.clone(),
            shelf: Arc::clone(&shelf),
            parts: Arc::clone(&parts),
        };
        let driver = Driver::new(parts, flights, shelf, tasks.clone());
        tasks.spawn(driver.run(receiver, events, shutdown));
        Self { shared: Arc::new(shared) }
    }
}
