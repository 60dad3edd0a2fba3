//! Bootstrap addresses: reading them, and finding out again and again where they lead.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use libp2p::{Multiaddr, multiaddr::Protocol};
use rand::seq::SliceRandom;
use tokio::{net::lookup_host, time::timeout};

use crate::dht::DhtError;

/// Bootstrap entries that are used.
pub(crate) const SEEDS_MAX: usize = 64;

/// Addresses kept of one resolution. A headless service may name thousands of pods.
const ADDRESSES_MAX: usize = 256;

/// How long one name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

/// A bootstrap entry: a host, which may stand for many nodes, and their port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seed {
    host: String,
    port: u16,
}

/// Where the seeds lead now.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// All addresses, shuffled, at most [`ADDRESSES_MAX`].
    pub(crate) addresses: Vec<SocketAddr>,
    /// Hosts that could not be resolved, and why.
    pub(crate) failed: Vec<(String, String)>,
}

/// Reads bootstrap entries.
///
/// # Errors
/// [`DhtError::Bootstrap`] names the first entry that cannot be read; [`DhtError::BootstrapCount`] if they are too many.
pub(crate) fn parse(entries: &[String]) -> Result<Vec<Seed>, DhtError> {
    if entries.len() > SEEDS_MAX {
        return Err(DhtError::BootstrapCount { given: entries.len() });
    }
    entries.iter().map(|text| parse_one(text.trim()).ok_or_else(|| DhtError::Bootstrap(text.clone()))).collect()
}

fn parse_one(text: &str) -> Option<Seed> {
    if text.starts_with('/') {
        return from_multiaddr(&text.parse().ok()?);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return seed(address.ip().to_string(), address.port());
    }
    let (host, port) = text.rsplit_once(':')?;
    if host.is_empty() || host.contains([':', '/', '[', ']', ' ']) {
        return None;
    }
    seed(host.to_owned(), port.parse().ok()?)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "of libp2p's many protocols five are hosts")]
fn from_multiaddr(address: &Multiaddr) -> Option<Seed> {
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => ip.to_string(),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    // Who is there shows when it answers: an address in a configuration outlives a node's key.
    match parts.next() {
        None | Some(Protocol::P2p(_)) => seed(host, port),
        Some(_) => None,
    }
}

fn seed(host: String, port: u16) -> Option<Seed> {
    (port != 0).then_some(Seed { host, port })
}

/// Looks up all seeds at the same time. Takes a few seconds at most.
pub(crate) async fn resolve(seeds: Vec<Seed>) -> Resolved {
    let mut resolved = Resolved::default();
    let answers = join_all(seeds.iter().map(resolve_one)).await;
    for (seed, answer) in seeds.into_iter().zip(answers) {
        match answer {
            Ok(addresses) => resolved.addresses.extend(addresses),
            Err(reason) => resolved.failed.push((seed.host, reason)),
        }
    }
    resolved.addresses.sort_unstable();
    resolved.addresses.dedup();
    // Many nodes that start together must not all call at the same one first.
    resolved.addresses.shuffle(&mut rand::rng());
    resolved.addresses.truncate(ADDRESSES_MAX);
    resolved
}

async fn resolve_one(seed: &Seed) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = seed.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, seed.port)]);
    }
    match timeout(RESOLVE_DEADLINE, lookup_host((seed.host.as_str(), seed.port))).await {
        Ok(Ok(addresses)) => Ok(addresses.take(16 * ADDRESSES_MAX).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(String::from("the name server did not answer in time")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn addresses_names_and_multiaddrs_are_read() {
        for (text, host, port) in [
            ("10.0.0.1:5051", "10.0.0.1", 5051),
            ("[fd00::1]:5051", "fd00::1", 5051),
            (" shoal.kube-system.svc:5051 ", "shoal.kube-system.svc", 5051),
            ("/ip4/10.0.0.1/tcp/6000", "10.0.0.1", 6000),
            ("/dns4/node-1/tcp/6000", "node-1", 6000),
            ("/dns/node-1/tcp/6000/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "node-1", 6000),
        ] {
            let seeds = parse(&[text.to_owned()]).unwrap();
            assert_eq!(seeds, [Seed { host: host.to_owned(), port }], "{text}");
        }
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_named() {
        for text in [
            "",
            "host",
            "host:",
            ":5051",
            "host:0",
            "host:99999",
            "fd00::1:5051x",
            "http://host:5051",
            "/ip4/10.0.0.1/udp/5051",
        ] {
            let error = parse(&[String::from("10.0.0.1:5051"), text.to_owned()]).unwrap_err();
            assert!(matches!(error, DhtError::Bootstrap(ref named) if named == text), "{text}: {error}");
        }
    }

    #[test]
    fn too_many_entries_are_refused() {
        let entries = vec![String::from("10.0.0.1:5051"); SEEDS_MAX + 1];
        assert!(matches!(parse(&entries), Err(DhtError::BootstrapCount { given }) if given == SEEDS_MAX + 1));
    }

    #[tokio::test]
    async fn what_resolves_is_used_and_what_does_not_is_reported() {
        let entries = ["127.0.0.1:5051", "127.0.0.1:5051", "localhost:5051", "no-such-host.invalid:5051"];
        let seeds = parse(&entries.map(String::from)).unwrap();
        let resolved = resolve(seeds).await;
        let loopback = "127.0.0.1:5051".parse().unwrap();
        assert_eq!(resolved.addresses.iter().filter(|address| **address == loopback).count(), 1);
        assert_eq!(resolved.failed.len(), 1);
        assert_eq!(resolved.failed[0].0, "no-such-host.invalid");
    }
}
