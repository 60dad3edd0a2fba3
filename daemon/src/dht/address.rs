//! Which one of a peer's addresses to use.
//!
//! A node that listens on every interface reports them all: loopback, container bridges and other addresses that mean
//! somebody else when used from here. What certainly leads to the peer is the address that a connection came from.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// The socket address in `/ip4|ip6/../tcp/..`, with or without `/p2p/..` behind it.
#[allow(clippy::wildcard_enum_match_arm, reason = "of libp2p's many protocols two are addresses")]
pub(super) fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        // A dual-stack socket shows IPv4 peers as mapped addresses.
        Protocol::Ip6(ip) => IpAddr::V6(ip).to_canonical(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    Some(SocketAddr::new(ip, port))
}

/// `address` as `/ip4|ip6/../tcp/..`.
pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// The one address to use for a peer: on the IP that its connection shows, and with a port that it listens on.
///
/// `remote` is the far end of the connection, with the listening port if we `dialed` it. `listen` is what the peer
/// says, `own` is where this node listens. None if there is no port to choose.
pub(super) fn choose(
    remote: SocketAddr,
    dialed: bool,
    listen: &[SocketAddr],
    own: &[SocketAddr],
) -> Option<SocketAddr> {
    // Two nodes of one host may meet on loopback; others, whom we tell, must not look for the peer on theirs.
    if remote.ip().is_loopback() {
        let outside = own.iter().filter(|own| !own.ip().is_loopback());
        let shared = outside.filter_map(|own| listen.iter().find(|address| address.ip() == own.ip())).next();
        if let Some(shared) = shared {
            return Some(*shared);
        }
    }
    if dialed {
        return Some(remote);
    }
    if let Some(same) = listen.iter().find(|address| address.ip() == remote.ip()) {
        return Some(*same);
    }
    listen.first().map(|first| SocketAddr::new(remote.ip(), first.port()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const WILDCARD: [&str; 4] = ["127.0.0.1:5051", "172.17.0.1:5051", "10.0.0.2:5051", "[fd00::2]:5051"];

    fn wildcard() -> Vec<SocketAddr> {
        WILDCARD.map(at).to_vec()
    }

    #[test]
    fn of_many_addresses_the_one_that_the_connection_came_from_is_used() {
        let own = [at("10.0.0.1:5051")];
        assert_eq!(choose(at("10.0.0.2:40000"), false, &wildcard(), &own), Some(at("10.0.0.2:5051")));
        assert_eq!(choose(at("[fd00::2]:40000"), false, &wildcard(), &own), Some(at("[fd00::2]:5051")));
    }

    #[test]
    fn behind_an_address_translation_the_visible_ip_and_the_listening_port_are_used() {
        let listen = [at("127.0.0.1:5051"), at("172.17.0.2:5051")];
        assert_eq!(choose(at("10.0.0.9:40000"), false, &listen, &[]), Some(at("10.0.0.9:5051")));
    }

    #[test]
    fn an_address_that_was_dialed_is_good() {
        assert_eq!(choose(at("10.0.0.9:6000"), true, &wildcard(), &[]), Some(at("10.0.0.9:6000")));
        assert_eq!(choose(at("127.0.0.1:6000"), true, &[at("127.0.0.1:6000")], &[]), Some(at("127.0.0.1:6000")));
    }

    #[test]
    fn neighbours_on_one_host_that_meet_on_loopback_are_named_by_the_address_of_the_host() {
        let own = [at("127.0.0.1:6000"), at("10.0.0.2:6000")];
        for dialed in [true, false] {
            assert_eq!(choose(at("127.0.0.1:5051"), dialed, &wildcard(), &own), Some(at("10.0.0.2:5051")));
        }
    }

    #[test]
    fn a_peer_that_dialed_and_listens_nowhere_has_no_address() {
        assert_eq!(choose(at("10.0.0.9:40000"), false, &[], &[]), None);
    }

    #[test]
    fn socket_addresses_translate_to_multiaddrs_and_back() {
        for text in ["10.0.0.2:5051", "[fd00::2]:5051"] {
            assert_eq!(socket(&multiaddr(at(text))), Some(at(text)));
        }
        let named: Multiaddr = "/dns4/node/tcp/5051".parse().unwrap();
        let datagram: Multiaddr = "/ip4/10.0.0.2/udp/5051/quic-v1".parse().unwrap();
        let mapped: Multiaddr = "/ip6/::ffff:10.0.0.2/tcp/5051".parse().unwrap();
        assert_eq!(socket(&named), None);
        assert_eq!(socket(&datagram), None);
        assert_eq!(socket(&mapped), Some(at("10.0.0.2:5051")));
    }
}
