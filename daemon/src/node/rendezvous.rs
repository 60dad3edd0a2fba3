//! Where nodes meet that the DHT does not bring together: while its port is blocked, while a new secret rolls out, or
//! before its first walk is over.
//!
//! The bootstrap addresses lead to the data plane too: the port is the same, and QUIC needs nothing of the DHT. So a node
//! that knows nobody asks who is there, and takes those for the trackers of the blob. All nodes with the same list come
//! to the same trackers, so that the origin still sends one copy.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use shoal_proto::{
    digest::{Algorithm, Digest},
    peer::{Contact, PeerId},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    dht::{
        DhtError,
        seeds::{self, Seed},
    },
    quic::DataPlane,
};

/// Trackers that are named at most; a fetch would ask one more.
const TRACKERS: usize = 3;

/// How long an answer, or its lack, is believed.
const BELIEVED: Duration = Duration::from_secs(30);

/// Longest time that a fetch waits for its trackers.
const DEADLINE: Duration = Duration::from_millis(1500);

/// The bootstrap addresses, and who was there last.
#[derive(Debug)]
pub struct Rendezvous {
    own: Contact,
    seeds: Vec<Seed>,
    /// Held while somebody looks, so that all fetches of one moment share the look.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    resolved: Option<Instant>,
    /// Who answered, if anybody; addresses that are not current any more are forgotten.
    peers: HashMap<SocketAddr, (Instant, Option<PeerId>)>,
}

impl Rendezvous {
    /// `bootstrap`: as for the DHT.
    ///
    /// # Errors
    /// [`DhtError::Bootstrap`] and [`DhtError::BootstrapCount`].
    pub fn new(own: Contact, bootstrap: &[String]) -> Result<Self, DhtError> {
        Ok(Self { own, seeds: seeds::parse(bootstrap)?, known: Mutex::default() })
    }

    /// The trackers of a blob, first choice first. Never empty: if nobody is there, it is this node.
    pub async fn trackers(&self, plane: &DataPlane, digest: &Digest) -> Vec<Contact> {
        if self.seeds.is_empty() {
            return vec![self.own];
        }
        let found = timeout(DEADLINE, self.look(plane, digest)).await.unwrap_or_default();
        if found.is_empty() { vec![self.own] } else { found }
    }

    async fn look(&self, plane: &DataPlane, digest: &Digest) -> Vec<Contact> {
        let mut known = self.known.lock().await;
        let fresh = |since: Instant| since.elapsed() < BELIEVED;
        if !known.resolved.is_some_and(fresh) {
            known.addresses = seeds::resolve(self.seeds.clone()).await.addresses;
            known.resolved = Some(Instant::now());
            let Known { addresses, peers, .. } = &mut *known;
            peers.retain(|address, _| addresses.contains(address));
        }
        known.peers.retain(|_, (since, _)| fresh(*since));
        let Known { addresses, peers, .. } = &mut *known;
        let mut trackers: Vec<Contact> = Vec::new();
        // A few at a time, until somebody has answered.
        for some in ranked(digest, addresses).chunks(TRACKERS) {
            let answers = some.iter().filter(|address| !peers.contains_key(address));
            let answers = join_all(answers.map(async |address| (*address, plane.identify(*address).await))).await;
            peers.extend(answers.into_iter().map(|(address, peer)| (address, (Instant::now(), peer))));
            for address in some {
                let Some((_, Some(peer))) = peers.get(address) else { continue };
                let own = *peer == self.own.peer;
                let contact = if own { self.own } else { Contact { peer: *peer, address: *address } };
                // One node may be known by several addresses.
                if trackers.iter().all(|tracker| tracker.peer != contact.peer) {
                    trackers.push(contact);
                }
            }
            if !trackers.is_empty() {
                break;
            }
        }
        trackers
    }
}

/// The addresses in an order that each blob has its own of, the same at every node.
fn ranked(digest: &Digest, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut ranked = addresses.to_vec();
    ranked.sort_by_cached_key(|address| Digest::of(Algorithm::Sha256, format!("{digest} {address}").as_bytes()));
    ranked
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{identity::Identity, quic::DataPlaneConfig, secret::Secret};

    fn plane() -> (DataPlane, Contact) {
        let identity = Identity::generate();
        let (events, _) = mpsc::channel(8);
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let plane = DataPlane::bind(DataPlaneConfig::new(listen, identity.clone(), Secret::none()), events).unwrap();
        let contact = Contact { peer: identity.peer(), address: plane.local_address() };
        (plane, contact)
    }

    fn at(own: Contact, seeds: &[Contact]) -> Rendezvous {
        let seeds: Vec<String> = seeds.iter().map(|seed| seed.address.to_string()).collect();
        Rendezvous::new(own, &seeds).unwrap()
    }

    fn blob(name: &str) -> Digest {
        Digest::of(Algorithm::Sha256, name.as_bytes())
    }

    #[tokio::test]
    async fn nodes_with_the_same_list_come_to_the_same_trackers() {
        let nodes = [plane(), plane(), plane(), plane()];
        let contacts: Vec<Contact> = nodes.iter().map(|(_, contact)| *contact).collect();
        for name in ["a", "b", "c"] {
            let found =
                join_all(nodes.iter().map(async |(plane, own)| at(*own, &contacts).trackers(plane, &blob(name)).await))
                    .await;
            assert_eq!(found[0].len(), TRACKERS);
            assert!(found.iter().all(|trackers| *trackers == found[0]), "{found:?}");
        }
    }

    #[tokio::test]
    async fn where_nobody_answers_the_node_is_its_own_tracker() {
        let (plane, own) = plane();
        assert_eq!(at(own, &[]).trackers(&plane, &blob("a")).await, [own]);
        let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let nobody = Contact { address: silent.local_addr().unwrap(), ..own };
        assert_eq!(at(own, &[nobody]).trackers(&plane, &blob("a")).await, [own]);
    }

    #[tokio::test]
    async fn those_who_answer_are_trackers_whoever_else_does_not() {
        let (plane, own) = plane();
        let (_other, other) = self::plane();
        let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let nobody = Contact { address: silent.local_addr().unwrap(), ..own };
        assert_eq!(at(own, &[nobody, other]).trackers(&plane, &blob("a")).await, [other]);
    }

    #[test]
    fn blobs_have_orders_of_their_own() {
        let addresses: Vec<SocketAddr> = (1..=20).map(|port| (Ipv4Addr::LOCALHOST, port).into()).collect();
        let mut backwards = addresses.clone();
        backwards.reverse();
        assert_eq!(ranked(&blob("a"), &addresses), ranked(&blob("a"), &backwards));
        assert_ne!(ranked(&blob("a"), &addresses), ranked(&blob("b"), &addresses));
    }
}
