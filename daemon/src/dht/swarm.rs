//! The libp2p swarm: transport, behaviours and their limits.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport,
    connection_limits::{self, ConnectionLimits},
    core::{
        transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
        upgrade::Version,
    },
    identify, kad, noise, ping,
    pnet::{PnetConfig, PreSharedKey},
    swarm::{self, NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tokio::time::timeout;

use crate::{
    dht::{DhtError, TABLE_ANSWERS, address, providers::Providers},
    identity::Identity,
    secret::Secret,
};

/// Nodes that speak this one make up the DHT.
pub(super) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/kad/1");

const IDENTIFY_PROTOCOL: &str = "/shoal/1";

/// From the first packet of a dial to an encrypted, multiplexed connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(4);

/// How long the listener may take to say where it listens.
const LISTEN_DEADLINE: Duration = Duration::from_secs(5);

/// A ping this often, and lost when not answered for as long. Two lost in a row (libp2p forgives the first) are reported.
const PING_INTERVAL: Duration = Duration::from_secs(3);

/// An unused connection is closed after this; those of the routing table are dialed again.
const IDLE: Duration = Duration::from_secs(600);

/// Ends a query that dead peers hold up. Callers of lookups do not wait that long.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);

/// An announcement lives this long and is repeated this often: an evicted blob is soon forgotten, and two repetitions
/// may get lost.
const PROVIDER_TTL: Duration = Duration::from_secs(30 * 60);
const PROVIDER_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// How often the node walks the DHT to fill gaps in its routing table.
const WALK_INTERVAL: Duration = Duration::from_secs(120);

/// Established connections in all. A node knows at most some 300 peers of a large cluster; the others come and go.
const CONNECTIONS_MAX: u32 = 2048;

/// Two nodes that dial each other at the same time have two; a reconnect may overlap with both.
const CONNECTIONS_PER_PEER: u32 = 4;

/// Connections that are being set up, each way.
const PENDING_MAX: u32 = 256;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    ping: ping::Behaviour,
    identify: identify::Behaviour,
    pub(super) kad: kad::Behaviour<Providers>,
}

/// A swarm that does not listen yet.
pub(super) fn build(identity: &Identity, secret: &Secret) -> Result<Swarm<Behaviour>, DhtError> {
    let keypair = identity.keypair();
    let local = keypair.public().to_peer_id();
    let noise = noise::Config::new(keypair).map_err(|error| DhtError::Noise(error.to_string()))?;
    let network = PnetConfig::new(PreSharedKey::new(secret.pre_shared_key()));
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    let transport = FreshPort(tcp)
        .and_then(move |socket, _| network.handshake(socket))
        .upgrade(Version::V1)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(CONNECT_DEADLINE)
        .boxed();
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(PENDING_MAX))
        .with_max_pending_outgoing(Some(PENDING_MAX))
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER));
    let agent = concat!("shoal/", env!("CARGO_PKG_VERSION")).to_owned();
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_INTERVAL)),
        identify: identify::Behaviour::new(
            // No cache: it would offer a peer's every address, also those that mean somebody else here.
            identify::Config::new(String::from(IDENTIFY_PROTOCOL), keypair.public())
                .with_agent_version(agent)
                .with_cache_size(0),
        ),
        kad: kademlia(local),
    };
    let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
    Ok(Swarm::new(transport, behaviour, local, config))
}

fn kademlia(local: PeerId) -> kad::Behaviour<Providers> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_query_timeout(QUERY_DEADLINE)
        .set_substreams_timeout(CONNECT_DEADLINE)
        .set_replication_factor(NonZeroUsize::new(TABLE_ANSWERS).unwrap_or(kad::K_VALUE))
        // Peers enter the table under the one address that is known to lead to them, and records after a look at them.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_record_ttl(Some(PROVIDER_TTL))
        .set_provider_publication_interval(Some(PROVIDER_INTERVAL))
        // No values are stored.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled)
        .set_periodic_bootstrap_interval(Some(WALK_INTERVAL));
    let mut kad = kad::Behaviour::with_config(local, Providers::new(local), config);
    // The automatic choice waits for a confirmed public address, which a cluster never has.
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Listens on `wanted`; returns it with the real port, and every address that it stands for.
pub(super) async fn listen(
    swarm: &mut Swarm<Behaviour>,
    wanted: SocketAddr,
) -> Result<(SocketAddr, Vec<SocketAddr>), DhtError> {
    let failed = |reason: String| DhtError::Listen { address: wanted, reason };
    swarm.listen_on(address::multiaddr(wanted)).map_err(|error| failed(error.to_string()))?;
    let first = timeout(LISTEN_DEADLINE, async {
        loop {
            let event = swarm.select_next_some().await;
            if let SwarmEvent::NewListenAddr { address, .. } = &event {
                return address::socket(address).ok_or_else(|| failed(format!("no TCP address: {address}")));
            }
            if let SwarmEvent::ListenerError { error, .. } = &event {
                return Err(failed(error.to_string()));
            }
            if let SwarmEvent::ListenerClosed { reason, .. } = &event {
                return Err(failed(format!("the listener closed: {reason:?}")));
            }
        }
    });
    let first = first.await.map_err(|_| failed(String::from("the listener did not start in time")))??;
    Ok((SocketAddr::new(wanted.ip(), first.port()), vec![first]))
}

/// Dials from a fresh port always.
///
/// libp2p likes to dial from its listening port, for the sake of hole punching. Two nodes that dial each other at the
/// same moment, as both do after a broken connection, would then meet in one TCP connection that both think to have
/// opened, and the handshake fails.
struct FreshPort<T>(T);

impl<T: Transport + Unpin> Transport for FreshPort<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.0.dial(address, DialOpts { port_use: PortUse::New, ..options })
    }

    fn poll(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.get_mut().0).poll(context)
    }
}
