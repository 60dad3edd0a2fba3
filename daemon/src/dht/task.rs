//! The task that owns the swarm: connections, the routing table, bootstrap. Lookups are in [`super::queries`].

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use libp2p::{
    PeerId, Swarm,
    core::ConnectedPoint,
    identify, kad, ping,
    swarm::{
        ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use shoal_proto::peer::Contact;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::dht::{
    DhtPeer, JOIN_DEADLINE, Key, address,
    announce::Announcements,
    lookup::Lookups,
    seeds::{self, Resolved, Seed},
    swarm::{Behaviour, BehaviourEvent, KAD_PROTOCOL},
};

/// After a start or a loss the seeds are tried again after this; twice as long each time, without any peer up to the
/// maximum.
const LONELY_MIN: Duration = Duration::from_millis(250);
const LONELY_MAX: Duration = Duration::from_secs(5);

/// With peers, the seeds are looked at this often, to find the other half of a cluster that fell apart.
const SETTLED: Duration = Duration::from_secs(30);

/// Seeds dialed in one round.
const DIALS_PER_ROUND: usize = 16;

/// How often expired records are swept.
const SWEEP: Duration = Duration::from_secs(60);

/// How long the goodbye to the peers may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// What a handle asks of the task.
#[derive(Debug)]
pub(super) enum Command {
    Trackers { key: Key, reply: oneshot::Sender<Vec<Contact>> },
    Holders { key: Key, reply: oneshot::Sender<Vec<Contact>> },
    Peers { reply: oneshot::Sender<Vec<DhtPeer>> },
}

/// One connection.
struct Link {
    remote: SocketAddr,
    dialed: bool,
}

/// A peer that is connected or in the routing table. Bounded by the limits of both.
#[derive(Default)]
pub(super) struct Peer {
    pub(super) address: Option<SocketAddr>,
    pub(super) rtt: Option<Duration>,
    /// It has told who it is since it connected.
    identified: bool,
}

/// Where the search for the first peers stands.
struct Join {
    seeds: Vec<Seed>,
    addresses: Vec<SocketAddr>,
    resolving: Option<JoinHandle<Resolved>>,
    next_round: Instant,
    pause: Duration,
    /// Dials to seeds under way.
    dialing: HashMap<ConnectionId, SocketAddr>,
    /// Who answered at a seed address last; only for current addresses.
    answered: HashMap<SocketAddr, PeerId>,
    /// Seed addresses that are this node; only current ones.
    own: HashSet<SocketAddr>,
    /// Seeds whose failure was logged already.
    warned: HashSet<String>,
    walk: Option<kad::QueryId>,
    walked: bool,
}

pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) own: Contact,
    /// Every address that this node listens on.
    listening: Vec<SocketAddr>,
    orders: mpsc::Receiver<Command>,
    pub(super) announcements: Arc<Announcements>,
    /// Announcements under way.
    pub(super) announcing: HashSet<kad::QueryId>,
    pub(super) lookups: Lookups,
    pub(super) peers: HashMap<PeerId, Peer>,
    links: HashMap<ConnectionId, Link>,
    join: Join,
    ready: watch::Sender<bool>,
}

impl Task {
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        own: Contact,
        listening: Vec<SocketAddr>,
        seeds: Vec<Seed>,
        orders: mpsc::Receiver<Command>,
        announcements: Arc<Announcements>,
        ready: watch::Sender<bool>,
    ) -> Self {
        let join = Join {
            seeds,
            addresses: Vec::new(),
            resolving: None,
            next_round: Instant::now(),
            pause: LONELY_MIN,
            dialing: HashMap::new(),
            answered: HashMap::new(),
            own: HashSet::new(),
            warned: HashSet::new(),
            walk: None,
            walked: false,
        };
        Self {
            swarm,
            own,
            listening,
            orders,
            announcements,
            announcing: HashSet::new(),
            lookups: Lookups::default(),
            peers: HashMap::new(),
            links: HashMap::new(),
            join,
            ready,
        }
    }

    /// Runs until `stop`, or until every handle is gone.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let started = Instant::now();
        let mut sweep = tokio::time::interval(SWEEP);
        self.check_ready(started);
        loop {
            let wake = self.wake(started);
            tokio::select! {
                () = stop.cancelled() => break,
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                () = self.announcements.changed() => {}
                resolved = finished(&mut self.join.resolving) => self.dial_seeds(resolved),
                _ = sweep.tick() => self.swarm.behaviour_mut().kad.store_mut().sweep(Instant::now()),
                () = sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            self.answer_overdue(now);
            self.announce();
            self.look_for_seeds(now);
            self.check_ready(started);
        }
        self.orders.close();
        self.say_goodbye().await;
    }

    /// The next moment at which time alone changes something.
    fn wake(&self, started: Instant) -> Instant {
        let seeds = (!self.join.seeds.is_empty() && self.join.resolving.is_none()).then_some(self.join.next_round);
        let ready = (!*self.ready.borrow()).then_some(started + JOIN_DEADLINE);
        let soonest = [self.lookups.deadline(), seeds, ready].into_iter().flatten().min();
        soonest.unwrap_or_else(|| Instant::now() + SWEEP)
    }

    fn obey(&mut self, order: Command) {
        match order {
            Command::Trackers { key, reply } => self.trackers(key, reply),
            Command::Holders { key, reply } => self.holders(key, reply),
            // A caller that went away needs no answer.
            Command::Peers { reply } => drop(reply.send(self.table())),
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "libp2p tells much that changes nothing here")]
    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Kad(event)) => self.on_kad(event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                connection_id,
                peer_id,
                info,
            })) => self.on_identified(connection_id, peer_id, &info),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(&event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.links.remove(&connection_id);
                if num_established == 0 {
                    self.look_again_soon();
                    self.on_disconnected(peer_id);
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "a caller was turned away");
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if let Some(address) = address::socket(&address)
                    && !self.listening.contains(&address)
                {
                    self.listening.push(address);
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let expired = address::socket(&address);
                self.listening.retain(|known| Some(*known) != expired);
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening for peers failed"),
            SwarmEvent::ListenerClosed { reason, .. } => {
                tracing::error!(?reason, "no longer listening for peers: others cannot reach this node");
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        if let Some(seed) = self.join.dialing.remove(&connection) {
            self.join.answered.insert(seed, peer);
            self.join.warned.remove(&seed.to_string());
        }
        if let Some(remote) = address::socket(endpoint.get_remote_address()) {
            self.links.insert(connection, Link { remote, dialed: endpoint.is_dialer() });
        }
        self.peers.entry(peer).or_default();
    }

    fn on_identified(&mut self, connection: ConnectionId, peer: PeerId, info: &identify::Info) {
        let Some(link) = self.links.get(&connection) else { return };
        let listen: Vec<_> = info.listen_addrs.iter().filter_map(address::socket).collect();
        let chosen = address::choose(link.remote, link.dialed, &listen, &self.listening);
        let entry = self.peers.entry(peer).or_default();
        entry.identified = true;
        let Some(chosen) = chosen.filter(|_| info.protocols.contains(&KAD_PROTOCOL)) else {
            tracing::debug!(%peer, remote = %link.remote, "a peer without an address or the DHT protocol");
            return;
        };
        let before = entry.address.replace(chosen);
        let kad = &mut self.swarm.behaviour_mut().kad;
        let update = kad.add_address(&peer, address::multiaddr(chosen));
        tracing::debug!(%peer, address = %chosen, ?update, "peer");
        if let Some(before) = before.filter(|before| *before != chosen) {
            kad.remove_address(&peer, &address::multiaddr(before));
        }
        if !self.join.walked && self.join.walk.is_none() {
            self.join.walk = kad.bootstrap().ok();
        }
        self.settle_waiting_for(peer);
    }

    fn on_ping(&mut self, event: &ping::Event) {
        match &event.result {
            Ok(rtt) => {
                if let Some(peer) = self.peers.get_mut(&event.peer) {
                    peer.rtt = Some(*rtt);
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                tracing::debug!(peer = %event.peer, %error, "a peer does not answer: closing the connection");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    /// The last connection to `peer` is gone: whether it lives shows a new one.
    fn on_disconnected(&mut self, peer: PeerId) {
        let known = self.in_table(peer);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.identified = false;
        let Some(address) = entry.address.filter(|_| known) else {
            self.peers.remove(&peer);
            return;
        };
        let dial = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(vec![address::multiaddr(address)])
            .build();
        match self.swarm.dial(dial) {
            // A dial that is under way already will show it as well; limits say nothing about the peer.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_) | DialError::Denied { .. }) => {}
            Err(error) => self.forget(peer, &error),
        }
    }

    fn on_dial_failed(&mut self, connection: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        if let Some(seed) = self.join.dialing.remove(&connection) {
            if matches!(error, DialError::LocalPeerId { .. }) {
                self.join.own.insert(seed);
            } else if self.join.warned.insert(seed.to_string()) {
                tracing::info!(address = %seed, error = brief(error), "bootstrap address not reached: will try again");
            }
        }
        let Some(peer) = peer else { return };
        let says_nothing =
            matches!(error, DialError::Denied { .. } | DialError::DialPeerConditionFalse(_) | DialError::Aborted);
        if !says_nothing && !self.swarm.is_connected(&peer) {
            self.forget(peer, error);
        }
    }

    /// `peer` cannot be reached: nobody is told of it any more. It comes back when it connects.
    fn forget(&mut self, peer: PeerId, error: &DialError) {
        if self.swarm.behaviour_mut().kad.remove_peer(&peer).is_some() {
            tracing::info!(%peer, error = brief(error), "peer lost");
        }
        self.peers.remove(&peer);
        self.give_up_on(peer);
    }

    pub(super) fn in_table(&mut self, peer: PeerId) -> bool {
        let bucket = self.swarm.behaviour_mut().kad.kbucket(peer);
        bucket.is_some_and(|bucket| bucket.iter().any(|entry| *entry.node.key.preimage() == peer))
    }

    /// A walk through the DHT ended, perhaps the first.
    pub(super) fn on_walked(&mut self, query: kad::QueryId) {
        if self.join.walk == Some(query) {
            self.join.walk = None;
            self.join.walked = true;
        }
    }

    fn check_ready(&mut self, started: Instant) {
        if *self.ready.borrow() {
            return;
        }
        let join = &self.join;
        let alone = !join.addresses.is_empty() && join.addresses.iter().all(|address| join.own.contains(address));
        let met = join.walked && self.peers.values().all(|peer| peer.identified);
        if join.seeds.is_empty() || alone || met || started.elapsed() >= JOIN_DEADLINE {
            tracing::info!(peers = self.peers.len(), "DHT ready");
            self.ready.send_replace(true);
        }
    }

    fn look_for_seeds(&mut self, now: Instant) {
        let join = &mut self.join;
        if now < join.next_round || join.resolving.is_some() || join.seeds.is_empty() {
            return;
        }
        join.resolving = Some(tokio::spawn(seeds::resolve(join.seeds.clone())));
    }

    /// Dials the seeds that nobody is connected through, and plans the next round.
    fn dial_seeds(&mut self, resolved: Resolved) {
        self.join.resolving = None;
        for (host, reason) in resolved.failed {
            if self.join.warned.insert(host.clone()) {
                tracing::warn!(host, reason, "bootstrap name not resolved: will try again");
            }
        }
        let join = &mut self.join;
        let current: HashSet<_> = resolved.addresses.iter().copied().collect();
        join.addresses = resolved.addresses;
        join.own.retain(|address| current.contains(address));
        join.answered.retain(|address, _| current.contains(address));
        if join.warned.len() > 4 * current.len() + 4 * seeds::SEEDS_MAX {
            join.warned.clear();
        }
        let lonely = self.swarm.connected_peers().next().is_none();
        let connected: HashSet<_> = self.peers.values().filter_map(|peer| peer.address).collect();
        let mut dialed = 0;
        for &address in &self.join.addresses {
            let through = self.join.answered.get(&address).is_some_and(|peer| self.swarm.is_connected(peer));
            let own = self.listening.contains(&address) || self.join.own.contains(&address);
            let under_way = self.join.dialing.values().any(|dialing| *dialing == address);
            if through || own || under_way || connected.contains(&address) {
                continue;
            }
            let dial = DialOpts::unknown_peer_id().address(address::multiaddr(address)).build();
            let connection = dial.connection_id();
            match self.swarm.dial(dial) {
                Ok(()) => {
                    self.join.dialing.insert(connection, address);
                }
                Err(error) => tracing::debug!(%address, %error, "bootstrap address not dialed"),
            }
            dialed += 1;
            if dialed == DIALS_PER_ROUND {
                break;
            }
        }
        for &address in &self.listening {
            if current.contains(&address) {
                self.join.own.insert(address);
            }
        }
        let pause = self.join.pause;
        self.join.pause = (pause * 2).min(if lonely { LONELY_MAX } else { SETTLED });
        self.join.next_round = Instant::now() + pause.mul_f64(rand::random_range(0.5..1.5));
    }

    /// A peer is gone. If it was a seed that restarts, it may know nobody: look for it soon, then ever less often.
    fn look_again_soon(&mut self) {
        let soon = Instant::now() + LONELY_MIN.mul_f64(rand::random_range(0.5..1.5));
        self.join.pause = LONELY_MIN;
        self.join.next_round = self.join.next_round.min(soon);
    }

    /// Closes every connection in good order, so that the peers know at once.
    async fn say_goodbye(&mut self) {
        let connected: Vec<_> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            // An error means that the peer is gone already.
            if self.swarm.disconnect_peer_id(peer).is_err() {
                tracing::trace!(%peer, "gone before the goodbye");
            }
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        if timeout(GOODBYE, closed).await.is_err() {
            tracing::debug!("some connections did not close in time");
        }
    }
}

/// Waits for a resolution that is under way, or forever.
async fn finished(resolving: &mut Option<JoinHandle<Resolved>>) -> Resolved {
    match resolving {
        // The resolution cannot panic or be cancelled; if it were, the next round starts over.
        Some(handle) => handle.await.unwrap_or_default(),
        None => pending().await,
    }
}

/// What went wrong, without libp2p's list of every address and layer.
fn brief(error: &DialError) -> String {
    if let DialError::Transport(failures) = error
        && let Some((_, failure)) = failures.first()
    {
        let mut cause: &dyn std::error::Error = failure;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        return cause.to_string();
    }
    error.to_string()
}
