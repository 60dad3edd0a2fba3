//! The task's lookups and announcements.

use std::{net::SocketAddr, num::NonZeroUsize, time::Instant};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        self, GetClosestPeersError, GetClosestPeersOk, GetProvidersOk, InboundRequest, KBucketKey, PeerInfo,
        ProviderRecord, QueryId, QueryResult, RecordKey, store::RecordStore,
    },
    swarm::{
        DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use shoal_proto::peer::Contact;
use tokio::sync::oneshot;

use crate::{
    dht::{
        DhtPeer, HOLDERS_MAX, Key, TABLE_ANSWERS, TRACKERS_MAX, address,
        lookup::{Lookup, Subject},
        task::Task,
    },
    identity,
};

/// Announcements under way at the same time.
const ANNOUNCING_MAX: usize = 32;

/// A tracker query asks until this many of the closest have answered.
const WANTED: NonZeroUsize = NonZeroUsize::new(TRACKERS_MAX).unwrap();

/// Addresses kept of a provider that has not told who it is yet.
const RECORD_ADDRESSES_MAX: usize = 4;

impl Task {
    /// Answers with the nodes closest to `key`: at once if the table knows, else by a query.
    pub(super) fn trackers(&mut self, key: Key, reply: oneshot::Sender<Vec<Contact>>) {
        let subject = Subject::Trackers(key);
        let known: usize = self.swarm.behaviour_mut().kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        if known < TABLE_ANSWERS {
            let nearest = self.nearest(key, &[]);
            return drop(reply.send(nearest));
        }
        let Some(reply) = self.lookups.join(subject, reply) else { return };
        if !self.lookups.has_room(subject) {
            let nearest = self.nearest(key, &[]);
            return drop(reply.send(nearest));
        }
        let query = self.swarm.behaviour_mut().kad.get_n_closest_peers(key.to_vec(), WANTED);
        self.lookups.start(query, subject, reply, Instant::now());
    }

    /// Answers with the peers that announced `key`, by a query.
    pub(super) fn holders(&mut self, key: Key, reply: oneshot::Sender<Vec<Contact>>) {
        let subject = Subject::Holders(key);
        let Some(reply) = self.lookups.join(subject, reply) else { return };
        if !self.lookups.has_room(subject) {
            let records = self.swarm.behaviour_mut().kad.store_mut().providers(&RecordKey::new(&key));
            let known = records.iter().filter_map(|record| self.contact(record.provider));
            return drop(reply.send(known.take(HOLDERS_MAX).collect()));
        }
        let query = self.swarm.behaviour_mut().kad.get_providers(RecordKey::new(&key));
        self.lookups.start(query, subject, reply, Instant::now());
    }

    /// The routing table.
    pub(super) fn table(&mut self) -> Vec<DhtPeer> {
        let entries = self.entries();
        let peers = entries.into_iter().filter_map(|(name, address)| {
            let rtt = self.peers.get(&name).and_then(|peer| peer.rtt);
            Some(DhtPeer {
                peer: identity::from_libp2p(&name)?,
                address,
                connected: self.swarm.is_connected(&name),
                rtt,
            })
        });
        peers.collect()
    }

    /// Starts the announcements that there is room for.
    pub(super) fn announce(&mut self) {
        while self.announcing.len() < ANNOUNCING_MAX {
            let Some((key, announced)) = self.announcements.take() else { return };
            let key = RecordKey::new(&key);
            let kad = &mut self.swarm.behaviour_mut().kad;
            if !announced {
                kad.stop_providing(&key);
                continue;
            }
            match kad.start_providing(key) {
                Ok(query) => {
                    self.announcing.insert(query);
                }
                Err(error) => tracing::warn!(%error, "a blob is not announced"),
            }
        }
    }

    /// Answers the lookups whose time is over with what is known.
    pub(super) fn answer_overdue(&mut self, now: Instant) {
        while let Some((query, lookup)) = self.lookups.overdue(now) {
            if let Some(mut running) = self.swarm.behaviour_mut().kad.query_mut(&query) {
                running.finish();
            }
            self.answer(lookup, &[]);
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "libp2p tells much that changes nothing here")]
    pub(super) fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => self.on_query(id, result, step.last),
            kad::Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.on_announced(record);
            }
            kad::Event::RoutingUpdated { peer, old_peer, .. } => {
                tracing::trace!(%peer, "routing table changed");
                if let Some(evicted) = old_peer
                    && !self.swarm.is_connected(&evicted)
                {
                    self.peers.remove(&evicted);
                }
            }
            _ => {}
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "values are neither stored nor looked up")]
    fn on_query(&mut self, query: QueryId, result: QueryResult, last: bool) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                for provider in providers {
                    self.on_holder(query, provider);
                }
                self.finish_if_enough(query);
            }
            QueryResult::GetProviders(Ok(GetProvidersOk::FinishedWithNoAdditionalRecord { .. }) | Err(_)) => {
                if let Some(lookup) = self.lookups.get_mut(query) {
                    lookup.ended = true;
                }
                self.settle(query);
            }
            QueryResult::GetClosestPeers(
                Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. }),
            ) => {
                if let Some(lookup) = self.lookups.remove(query) {
                    self.answer(lookup, &peers);
                }
            }
            QueryResult::StartProviding(result) => {
                self.announcing.remove(&query);
                if let Err(error) = result {
                    tracing::debug!(%error, "an announcement did not reach every tracker: repeated later");
                }
            }
            QueryResult::Bootstrap(_) if last => self.on_walked(query),
            _ => {}
        }
    }

    /// A query found a holder: note it, and find out where it is if that is not known.
    fn on_holder(&mut self, query: QueryId, peer: PeerId) {
        let local = *self.swarm.local_peer_id();
        let Some(lookup) = self.lookups.get_mut(query) else { return };
        if peer == local || !lookup.add(peer) || self.contact(peer).is_some() {
            return;
        }
        // The answer's addresses stay inside the query and are used for dials while it runs.
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
        match self.swarm.dial(dial) {
            // Connected or being dialed: who it is will show.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                tracing::trace!(%peer, %error, "holder not dialed");
                self.give_up_on(peer);
            }
        }
    }

    /// Ends a query for holders that has found as many as an answer takes: the rest of the walk adds nothing.
    fn finish_if_enough(&mut self, query: QueryId) {
        let Some(lookup) = self.lookups.get_mut(query) else { return };
        let found = lookup.found.clone();
        if found.into_iter().filter_map(|peer| self.contact(peer)).count() < HOLDERS_MAX {
            return;
        }
        if let Some(mut running) = self.swarm.behaviour_mut().kad.query_mut(&query) {
            running.finish();
        }
        if let Some(lookup) = self.lookups.remove(query) {
            self.answer(lookup, &[]);
        }
    }

    /// A peer announces a key here. What it says of its addresses is replaced by where it really is.
    fn on_announced(&mut self, mut record: ProviderRecord) {
        match self.peers.get(&record.provider).and_then(|peer| peer.address) {
            Some(known) => record.addresses = vec![address::multiaddr(known)],
            None => record.addresses.truncate(RECORD_ADDRESSES_MAX),
        }
        if let Err(error) = self.swarm.behaviour_mut().kad.store_mut().add_provider(record) {
            tracing::debug!(%error, "an announcement is not kept");
        }
    }

    /// `peer` has an address now.
    pub(super) fn settle_waiting_for(&mut self, peer: PeerId) {
        for query in self.lookups.waiting_for(peer) {
            self.settle(query);
        }
    }

    /// `peer` cannot be reached.
    pub(super) fn give_up_on(&mut self, peer: PeerId) {
        let waiting = self.lookups.waiting_for(peer);
        self.lookups.unreachable(peer);
        for query in waiting {
            self.settle(query);
        }
    }

    /// Answers a lookup for holders when its query has ended and each found peer has an address.
    fn settle(&mut self, query: QueryId) {
        let Some(lookup) = self.lookups.get_mut(query) else { return };
        if !lookup.ended {
            return;
        }
        let found = lookup.found.clone();
        if found.into_iter().any(|peer| self.contact(peer).is_none()) {
            return;
        }
        if let Some(lookup) = self.lookups.remove(query) {
            self.answer(lookup, &[]);
        }
    }

    fn answer(&mut self, lookup: Lookup, found: &[PeerInfo]) {
        let contacts = match lookup.subject {
            Subject::Trackers(key) => self.nearest(key, found),
            Subject::Holders(_) => {
                let known = lookup.found.iter().filter_map(|peer| self.contact(*peer));
                known.take(HOLDERS_MAX).collect()
            }
        };
        lookup.answer(&contacts);
    }

    /// The closest to `key` of the routing table, of `found` and of this node.
    fn nearest(&mut self, key: Key, found: &[PeerInfo]) -> Vec<Contact> {
        let target = KBucketKey::new(key.to_vec());
        let found = found.iter().filter_map(|peer| {
            let known = self.peers.get(&peer.peer_id).and_then(|known| known.address);
            Some((peer.peer_id, known.or_else(|| reachable(&peer.addrs))?))
        });
        let mut nodes: Vec<_> = found.collect();
        nodes.extend(self.entries());
        nodes.push((*self.swarm.local_peer_id(), self.own.address));
        nodes.sort_by_cached_key(|(peer, _)| target.distance(&KBucketKey::from(*peer)));
        nodes.dedup_by_key(|(peer, _)| *peer);
        let contacts = nodes
            .into_iter()
            .filter_map(|(peer, address)| Some(Contact { peer: identity::from_libp2p(&peer)?, address }));
        contacts.take(TRACKERS_MAX).collect()
    }

    /// Peers and addresses of the routing table.
    fn entries(&mut self) -> Vec<(PeerId, SocketAddr)> {
        let mut entries = Vec::new();
        for bucket in self.swarm.behaviour_mut().kad.kbuckets() {
            for entry in bucket.iter() {
                let peer = *entry.node.key.preimage();
                let known = self.peers.get(&peer).and_then(|peer| peer.address);
                let address = known.or_else(|| address::socket(entry.node.value.first()));
                entries.extend(address.map(|address| (peer, address)));
            }
        }
        entries
    }

    /// A peer with a known address.
    fn contact(&self, peer: PeerId) -> Option<Contact> {
        let address = self.peers.get(&peer)?.address?;
        Some(Contact { peer: identity::from_libp2p(&peer)?, address })
    }
}

/// Of addresses that others tell, one that does not mean this host.
fn reachable(addresses: &[Multiaddr]) -> Option<SocketAddr> {
    let mut usable: Vec<_> = addresses.iter().filter_map(address::socket).collect();
    usable.sort_by_key(|address| address.ip().is_loopback());
    usable.first().copied()
}
