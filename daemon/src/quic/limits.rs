//! Bounds and timings of the data plane, and the QUIC transport parameters made of them.

use std::{sync::Arc, time::Duration};

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::reset;
use crate::identity::Identity;

/// Largest UDP payload that is tried, in bytes: a jumbo frame of 9000 bytes with an IPv6 header. Path-MTU discovery
/// finds what the network really takes.
pub(super) const MTU_BOUND: u16 = 8952;

/// Most time until it is known who is at an address. Somebody waits for it with a fetch, and there is always another way.
pub(super) const IDENTIFY_DEADLINE: Duration = Duration::from_millis(700);
/// Most time from a dial's first packet to a finished TLS handshake.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Most time from then to a proof of the cluster secret. Longer than [`CONNECT_DEADLINE`]: a listener that dials the same peer
/// itself lets it wait for the end of its own dial.
pub(super) const PROOF_DEADLINE: Duration = Duration::from_secs(3);
/// Silence after which a peer counts as dead: a killed process says nothing. Six keep-alives fit in.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Most time that a stream may be without any progress: a chunk's answer, a request, the control stream.
pub(super) const STALL_DEADLINE: Duration = Duration::from_secs(10);
/// Most time that sending a chunk may take in all, as long as the asker waits at most: a peer that takes a byte now and
/// then must not keep an upload slot.
pub(super) const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// Most time to say goodbye to peers at a shutdown.
pub(super) const SHUTDOWN_DEADLINE: Duration = Duration::from_millis(300);

/// Messages that may wait for one peer. A peer that lets more pile up is cut off.
pub(super) const QUEUE_MESSAGES: usize = 8192;
/// Chunk streams that one peer may have open to us.
pub(super) const PEER_STREAMS: u32 = 128;
/// Connections that may be in their handshake with us as the listener.
pub(super) const HANDSHAKES_MAX: usize = 256;
/// From so many such handshakes on, dialers must prove that their address is theirs.
pub(super) const HANDSHAKES_TRUSTED: usize = 64;
/// Connections and dials, unless configured otherwise.
pub(super) const CONNECTIONS_MAX: usize = 4096;

/// Bytes that a peer may send ahead on all streams before it has proven the secret.
const UNPROVEN_WINDOW: u32 = 64 * 1024;
/// Bytes that a peer may send ahead on all streams.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Bytes that a peer may send ahead on one stream.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// Bytes that we send ahead on all streams of a connection before they are acknowledged.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;

/// Bytes of handshakes that wait to be looked at.
const INCOMING_BUFFER_BYTES: u64 = 64 * 1024;
const INCOMING_BUFFER_BYTES_TOTAL: u64 = 8 * 1024 * 1024;

/// Parameters of one end of a connection that has proven nothing yet; `streams` is what the peer may open meanwhile.
pub(super) fn unproven_transport(streams: u32) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_BOUND);
    let idle = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(UNPROVEN_WINDOW.into())
        .send_window(SEND_WINDOW)
        // One chunk after the other: the first is whole, and can go on to the next peer, in half the time of two at once.
        .send_fairness(false)
        .mtu_discovery_config(Some(mtu));
    Arc::new(transport)
}

/// Gives a peer that has proven the secret the whole window and all its streams.
pub(super) fn widen(connection: &quinn::Connection) {
    connection.set_receive_window(CONNECTION_WINDOW.into());
    connection.set_max_concurrent_bi_streams(PEER_STREAMS.into());
}

/// Parameters of the endpoint: datagrams up to [`MTU_BOUND`] are taken.
pub(super) fn endpoint(identity: &Identity) -> Result<EndpointConfig, quinn::ConfigError> {
    let mut config = reset::endpoint(identity);
    config.max_udp_payload_size(MTU_BOUND)?;
    Ok(config)
}

/// Bounds what dialers can make us keep before their handshake begins.
pub(super) fn bound_incoming(config: &mut quinn::ServerConfig) {
    config
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFER_BYTES_TOTAL);
}
