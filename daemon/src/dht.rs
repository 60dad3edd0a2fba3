//! The DHT: who is there, who tracks a blob, and who says that it holds one.
//!
//! libp2p's Kademlia over TCP, inside a private network (the cluster secret as pre-shared key) and noise. One task owns
//! the swarm; a [`Dht`] is a cheap handle to it. Nothing here carries blob bytes, and keys are keyed hashes of digests.
//!
//! The routing table keeps to the living: its peers are pinged, a broken connection is dialed again at once, and a peer
//! that cannot be reached leaves the table. A cluster of fewer than [`TABLE_ANSWERS`] peers fits into one bucket of
//! every node's table, so the closest nodes to a key are known without asking anybody.

mod address;
mod announce;
mod lookup;
mod providers;
mod queries;
pub(crate) mod seeds;
mod swarm;
mod task;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use shoal_proto::peer::{Contact, PeerId};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    dht::{
        announce::Announcements,
        task::{Command, Task},
    },
    identity::Identity,
    secret::Secret,
};

/// The key of a blob in the DHT: [`Secret::blob_key`].
pub type Key = [u8; 32];

/// Trackers that [`Dht::trackers`] names at most.
pub const TRACKERS_MAX: usize = 8;

/// Holders that [`Dht::holders`] names at most.
pub const HOLDERS_MAX: usize = 20;

/// With fewer known peers than this, the routing table alone answers who is closest to a key. It is Kademlia's bucket
/// size: a table that small has never refused a peer.
pub const TABLE_ANSWERS: usize = 20;

/// How long a lookup may take before it is answered with what is known by then.
pub const LOOKUP_DEADLINE: Duration = Duration::from_secs(1);

/// How long [`Dht::ready`] waits for the first peers at most.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(5);

/// Commands that may wait for the task.
const COMMANDS_MAX: usize = 256;

/// On top of the lookup's own deadline: what a busy task may take to read the command and send the answer.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// How long an orderly goodbye to the peers may take.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(2);

/// What a DHT node needs to start.
#[derive(Debug, Clone)]
pub struct DhtConfig {
    /// TCP address to listen on. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Who this node is.
    pub identity: Identity,
    /// Who may take part.
    pub secret: Secret,
    /// Where other nodes are found first: `host:port`, `ip:port` or multiaddrs. Names may stand for many nodes.
    pub bootstrap: Vec<String>,
}

/// Why there is no DHT.
#[derive(Debug, thiserror::Error)]
pub enum DhtError {
    /// Without a secret, anybody who reaches the port would be a member.
    #[error("listening for peers on {0} needs a cluster secret; set one (`shoal key generate`) or listen on loopback")]
    NeedsSecret(SocketAddr),
    /// A bootstrap entry cannot be read.
    #[error("cannot read the bootstrap address {0:?}; write host:port, ip:port or /dns4/host/tcp/port")]
    Bootstrap(String),
    /// Too many bootstrap entries.
    #[error(
        "{given} bootstrap addresses are too many; at most {} are used, and one name may stand for many nodes",
        seeds::SEEDS_MAX
    )]
    BootstrapCount {
        /// How many there are.
        given: usize,
    },
    /// The port cannot be listened on.
    #[error("cannot listen for peers on {address}: {reason}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// The node's key does not make a noise identity.
    #[error("cannot set up the encryption of peer connections: {0}")]
    Noise(String),
}

/// What the DHT knows of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Located {
    /// The nodes closest to the key, closest first, this node included at its place; at most [`TRACKERS_MAX`].
    pub trackers: Vec<Contact>,
    /// Peers that announced the key, in no order, without this node; at most [`HOLDERS_MAX`].
    pub holders: Vec<Contact>,
}

/// A peer in the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhtPeer {
    /// Who.
    pub peer: PeerId,
    /// Where it listens, as seen from here.
    pub address: SocketAddr,
    /// Whether a connection is open.
    pub connected: bool,
    /// Round trip time of the last ping.
    pub rtt: Option<Duration>,
}

/// A handle to the DHT. Cheap to clone; the node leaves when [`Dht::shutdown`] is called or the last handle is gone.
#[derive(Debug, Clone)]
pub struct Dht {
    own: Contact,
    commands: mpsc::Sender<Command>,
    announcements: Arc<Announcements>,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl Dht {
    /// Listens, starts to look for peers, and returns the handle with the address that it listens on.
    ///
    /// An unreachable bootstrap address is no error: it is tried again for as long as the node runs.
    ///
    /// # Errors
    /// [`DhtError`] if the address needs a secret or cannot be listened on, or a bootstrap entry cannot be read.
    pub async fn start(config: DhtConfig) -> Result<(Self, SocketAddr), DhtError> {
        if config.secret.is_none() && !config.listen.ip().is_loopback() {
            return Err(DhtError::NeedsSecret(config.listen));
        }
        let seeds = seeds::parse(&config.bootstrap)?;
        let mut swarm = swarm::build(&config.identity, &config.secret)?;
        let (bound, listening) = swarm::listen(&mut swarm, config.listen).await?;
        let own = Contact { peer: config.identity.peer(), address: bound };
        let (commands, orders) = mpsc::channel(COMMANDS_MAX);
        let (ready_set, ready) = watch::channel(false);
        let announcements = Arc::new(Announcements::default());
        let stop = CancellationToken::new();
        let task = Task::new(swarm, own, listening, seeds, orders, Arc::clone(&announcements), ready_set);
        tokio::spawn(task.run(stop.clone()));
        Ok((Self { own, commands, announcements, ready, stop }, bound))
    }

    /// This node, as others know it.
    #[must_use]
    pub const fn own(&self) -> Contact {
        self.own
    }

    /// [`Self::trackers`] and [`Self::holders`] of `key`, at the same time.
    pub async fn locate(&self, key: Key) -> Located {
        let (trackers, holders) = tokio::join!(self.trackers(key), self.holders(key));
        Located { trackers, holders }
    }

    /// The nodes closest to `key`, closest first, this node included at its place; at most [`TRACKERS_MAX`].
    ///
    /// Answered at once from the routing table while fewer than [`TABLE_ANSWERS`] peers are known; else by a query of
    /// at most about [`LOOKUP_DEADLINE`]. Never empty: without any answer it names this node.
    pub async fn trackers(&self, key: Key) -> Vec<Contact> {
        let found = self.ask(|reply| Command::Trackers { key, reply }).await;
        found.unwrap_or_else(|| vec![self.own])
    }

    /// Peers that announced `key`, in no order, without this node; at most [`HOLDERS_MAX`]. Always a query, of at most
    /// about [`LOOKUP_DEADLINE`]; queries for the same key are shared.
    pub async fn holders(&self, key: Key) -> Vec<Contact> {
        self.ask(|reply| Command::Holders { key, reply }).await.unwrap_or_default()
    }

    /// Announces that this node holds `key`, now and again until [`Self::stop_providing`]. Never waits: announcements
    /// are made in the background, a few at a time. Returns false if too many keys wait to be announced already.
    pub fn provide(&self, key: Key) -> bool {
        self.announcements.set(key, true)
    }

    /// No longer announces `key`. Peers forget the last announcement when it expires, after half an hour.
    pub fn stop_providing(&self, key: Key) -> bool {
        self.announcements.set(key, false)
    }

    /// The peers in the routing table, in no order.
    pub async fn peers(&self) -> Vec<DhtPeer> {
        self.ask(|reply| Command::Peers { reply }).await.unwrap_or_default()
    }

    /// Waits until the first peers are known: the first walk through the DHT is over. At once without bootstrap
    /// addresses, and after [`JOIN_DEADLINE`] in any case.
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        // An error means that the task has ended: there is nothing left to wait for.
        if ready.wait_for(|ready| *ready).await.is_err() {
            tracing::debug!("the DHT ended before it was ready");
        }
    }

    /// Leaves the DHT: closes every connection, so that the peers know at once. Bounded by two seconds.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if timeout(SHUTDOWN_DEADLINE, self.commands.closed()).await.is_err() {
            tracing::warn!("the DHT did not end in time");
        }
    }

    /// Sends a command and waits for its answer; none when the task is gone or far too busy.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.commands.send(command(reply)).await.ok()?;
            answer.await.ok()
        };
        timeout(LOOKUP_DEADLINE + ANSWER_GRACE, exchange).await.ok().flatten()
    }
}
