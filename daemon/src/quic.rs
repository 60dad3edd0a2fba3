//! The data plane: one QUIC endpoint that carries all messages and all bytes between nodes.
//!
//! One UDP port dials and listens. A connection becomes a session after three checks: the TLS certificate proves the
//! peer's identity, a [`Hello`](shoal_proto::wire::Hello) in each direction proves the cluster secret (bound to that
//! TLS session), and at most one connection per peer stays (`peers`). A session has one control stream with framed
//! [`Message`]s both ways, and one stream per requested chunk: the [`Ask`], then an answer byte and the chunk.
//!
//! Mechanism only: what to dial, ask, answer and send is decided by the [`node`](crate::node).

mod close;
mod endpoint;
mod frame;
mod handshake;
mod limits;
mod peers;
mod pull;
mod reply;
mod reset;
mod session;
mod socket;
mod tls;

#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use shoal_proto::{
    peer::{Contact, PeerId, Place},
    units::Rate,
    wire::{Ask, Message},
};
use tokio::{sync::mpsc, time::timeout};

use self::{close::Close, endpoint::Inner};
pub use self::{
    pull::PullError,
    reply::{Reply, ReplyError},
    tls::TlsError,
};
use crate::{identity::Identity, rate::Bucket, secret::Secret};

/// Label of the TLS exporter that proofs about access are bound to.
const ACCESS_LABEL: &[u8] = b"EXPORTER-shoal-access-1";

/// What a data plane is made of.
#[derive(Debug, Clone)]
pub struct DataPlaneConfig {
    /// UDP address to listen on; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Who this node is.
    pub identity: Identity,
    /// Where it stands, for its peers to know.
    pub place: Place,
    /// What its peers must know.
    pub secret: Secret,
    /// Cap on the bytes of chunks that are sent, over all peers.
    pub upload: Option<Rate>,
    /// Cap on the bytes of chunks that are received, over all peers; shared with whatever else counts as download.
    pub download: Bucket,
    /// Most sessions and dials at once.
    pub connections: usize,
}

impl DataPlaneConfig {
    /// Default of [`Self::connections`].
    pub const CONNECTIONS: usize = limits::CONNECTIONS_MAX;

    /// A configuration without caps and without a place.
    #[must_use]
    pub fn new(listen: SocketAddr, identity: Identity, secret: Secret) -> Self {
        Self {
            listen,
            identity,
            place: Place::default(),
            secret,
            upload: None,
            download: Bucket::optional(None),
            connections: Self::CONNECTIONS,
        }
    }
}

/// What the data plane tells its owner.
///
/// Per peer, `Connected` and `Disconnected` alternate, and everything of a session comes between its two.
#[derive(Debug)]
pub enum PlaneEvent {
    /// There is a session with a peer, and both ends have proven the secret.
    Connected {
        /// Who, and the address at which it is reached.
        contact: Contact,
        /// Where it stands, as it says.
        place: Place,
    },
    /// The session ended; messages on their way may be lost.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// A dial came to nothing.
    DialFailed {
        /// Who was dialed.
        peer: PeerId,
    },
    /// A message came in.
    Message {
        /// Its sender.
        peer: PeerId,
        /// The message, within the limits of the wire.
        message: Message,
    },
    /// A peer asks for a chunk.
    Asked {
        /// Who asks.
        peer: PeerId,
        /// For what.
        ask: Ask,
        /// Takes the answer.
        reply: Reply,
    },
}

/// One connected peer, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectedPeer {
    /// Who.
    pub peer: PeerId,
    /// Where its endpoint is now.
    pub address: SocketAddr,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// UDP payload received from it, in bytes.
    pub bytes_in: u64,
    /// UDP payload sent to it, in bytes.
    pub bytes_out: u64,
}

/// Why there is no data plane.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The UDP socket could not be had.
    #[error("cannot listen for peers on {address} (UDP): {source}")]
    Socket {
        /// The wanted address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate or the TLS parameters could not be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The QUIC library refused our parameters.
    #[error("cannot set up QUIC: {0}")]
    Quic(#[from] quinn::ConfigError),
}

/// Why a message was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no session with the peer.
    #[error("no connection to the peer")]
    NotConnected,
    /// The peer has not taken the former messages; its connection is closed for it.
    #[error("the peer does not take its messages")]
    Full,
}

/// A handle of the data plane. The plane runs until [`Self::shutdown`], whatever happens to the handles.
#[derive(Debug, Clone)]
pub struct DataPlane {
    inner: Arc<Inner>,
}

impl DataPlane {
    /// Listens, and reports to `events`. When `events` is full, peers wait; nothing is dropped.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(config: DataPlaneConfig, events: mpsc::Sender<PlaneEvent>) -> Result<Self, BindError> {
        Ok(Self { inner: Inner::bind(config, events)? })
    }

    /// The UDP address that is listened on.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Connects to a peer, in the background: `Connected` or `DialFailed` follows. Does nothing if there is a session,
    /// a dial, or a handshake with the peer already.
    pub fn dial(&self, contact: Contact) {
        self.inner.dial(contact);
    }

    /// Who is at an address; None if nobody answers within a second. They have shown a key, and not proven the secret:
    /// that is for [`Self::dial`].
    pub async fn identify(&self, address: SocketAddr) -> Option<PeerId> {
        self.inner.identify(address).await
    }

    /// Queues a message for a peer. Messages of one session arrive in order.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, peer: PeerId, message: Message) -> Result<(), SendError> {
        self.inner.peers().session(peer).ok_or(SendError::NotConnected)?.send(message)
    }

    /// Ends the session with a peer, and any handshake with it. `Disconnected` follows if there is a session, and
    /// `DialFailed` if there is a dial.
    pub fn hangup(&self, peer: PeerId) {
        let session = self.inner.peers().hangup(peer);
        if let Some(session) = session {
            Close::Hangup.apply(&session.connection);
        }
    }

    /// Asks a peer for a chunk of `expected_bytes` and waits for all of it, at most for `deadline`. The bytes are as
    /// they came from the network: checked for their number only, in frames of a datagram each. Dropping the future
    /// tells the peer to stop.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn pull(
        &self,
        peer: PeerId,
        ask: Ask,
        expected_bytes: u64,
        deadline: Duration,
    ) -> Result<Vec<Bytes>, PullError> {
        self.pull_watched(peer, ask, expected_bytes, deadline, || {}).await
    }

    /// [`Self::pull`], and calls `came` whenever some of the bytes are here: a slow link takes long for a whole chunk.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn pull_watched(
        &self,
        peer: PeerId,
        ask: Ask,
        expected_bytes: u64,
        deadline: Duration,
        came: impl Fn(),
    ) -> Result<Vec<Bytes>, PullError> {
        let connection = self.inner.peers().session(peer).ok_or(PullError::Link)?.connection.clone();
        pull::pull(connection, self.inner.download.clone(), ask, expected_bytes, deadline, came).await
    }

    /// Key material of the session with a peer, which both ends know and nobody else; for proofs about access.
    #[must_use]
    pub fn exporter(&self, peer: PeerId) -> Option<[u8; 32]> {
        let connection = self.inner.peers().session(peer)?.connection.clone();
        let mut exporter = [0; 32];
        connection.export_keying_material(&mut exporter, ACCESS_LABEL, b"").ok()?;
        Some(exporter)
    }

    /// All peers with a session.
    #[must_use]
    pub fn connected(&self) -> Vec<ConnectedPeer> {
        let sessions: Vec<_> = self.inner.peers().sessions().cloned().collect();
        let report = |session: &Arc<session::Session>| {
            let Contact { peer, address } = session.contact();
            let stats = session.connection.stats();
            ConnectedPeer {
                peer,
                address,
                rtt: stats.path.rtt,
                bytes_in: stats.udp_rx.bytes,
                bytes_out: stats.udp_tx.bytes,
            }
        };
        sessions.iter().map(report).collect()
    }

    /// Ends all sessions, telling the peers, and stops listening. Takes a third of a second at most.
    pub async fn shutdown(&self) {
        self.inner.endpoint.close(Close::Shutdown.var_int(), Close::Shutdown.reason().as_bytes());
        if timeout(limits::SHUTDOWN_DEADLINE, self.inner.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("some peers may learn of the shutdown by silence only");
        }
    }
}
