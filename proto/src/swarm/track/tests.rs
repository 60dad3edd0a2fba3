//! One node and its trackers, message by message.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use super::{ask::meeting_point, *};
use crate::{
    peer::Place,
    swarm::{Input, Swarm},
    wire::Epoch,
};

const GRANT: Grant = Grant { epoch: Epoch(1), scope: Scope::Origin };

fn tracker(id: u8) -> Contact {
    Contact { peer: PeerId([id; 32]), address: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000 + u16::from(id))) }
}

fn digest() -> Digest {
    Digest::sha256([7; 32])
}

struct Node {
    swarm: Swarm,
    out: Vec<Output>,
}

impl Node {
    /// A node that knows the four trackers of what it wants.
    fn new(seed: u64) -> Self {
        let swarm = Swarm::new(PeerId([99; 32]), Place::default(), Limits::default(), seed);
        let mut node = Self { swarm, out: Vec::new() };
        node.handle(Input::Wanted { digest: digest(), restored: None });
        node.handle(Input::Holders { digest: digest(), holders: Vec::new() });
        node.out.clear();
        node.handle(Input::Located { digest: digest(), trackers: (1..=4).map(tracker).collect(), known: Vec::new() });
        node
    }

    fn handle(&mut self, input: Input) {
        self.handle_at(Duration::ZERO, input);
    }

    fn handle_at(&mut self, since: Duration, input: Input) {
        self.swarm.handle(Time::ZERO + since, input, &mut self.out);
    }

    /// The trackers that it dials.
    fn dialled(&mut self) -> Vec<PeerId> {
        let dials = |order| if let Output::Dial { contact } = order { Some(contact.peer) } else { None };
        self.out.drain(..).filter_map(dials).collect()
    }

    fn connect(&mut self, peer: PeerId) {
        self.handle(Input::Connected { peer, place: Place::default() });
    }

    fn hear(&mut self, peer: PeerId, lease: Option<Grant>) {
        let (peers, sources) = (Vec::new(), Vec::new());
        let message = Message::Joined { digest: digest(), peers, lease, served: lease.is_none(), sources };
        self.handle(Input::Received { peer, message });
    }

    /// To whom it sends joins, and whether they report a lease.
    fn joins(&mut self) -> Vec<(PeerId, bool)> {
        let mut joins = Vec::new();
        for order in self.out.drain(..) {
            if let Output::Send { peer, message: Message::Join(join) } = order {
                joins.push((peer, join.lease.is_some()));
            }
        }
        joins.sort_unstable();
        joins
    }

    fn streams(&self) -> bool {
        self.out.iter().any(|order| matches!(order, Output::PullOrigin { .. }))
    }

    /// A node that is connected to all trackers and got the lease from its own. Returns the other trackers too.
    fn leased() -> (Self, PeerId, Vec<PeerId>) {
        let mut node = Self::new(1);
        let own = node.dialled()[0];
        let others: Vec<PeerId> = (1..=4).map(|id| tracker(id).peer).filter(|peer| *peer != own).collect();
        for peer in std::iter::once(own).chain(others.iter().copied()) {
            node.connect(peer);
        }
        node.out.clear();
        node.hear(own, Some(GRANT));
        (node, own, others)
    }
}

#[test]
fn nodes_that_start_at_once_spread_over_the_trackers() {
    let (mut first, mut second) = ([0; 5], 0);
    for seed in 0..400 {
        let dialled = Node::new(seed).dialled();
        first[usize::from(dialled[0].0[0])] += 1;
        if let [one, other] = dialled[..] {
            assert_ne!(one, other);
            second += 1;
        }
    }
    assert!(first[1..].iter().all(|nodes| (60..140).contains(nodes)), "{first:?}");
    assert!((60..140).contains(&second), "one in four asks one more, so that the groups mix: {second}");
}

#[test]
fn where_the_tracker_knows_few_members_the_others_are_asked_once() {
    let mut node = Node::new(3);
    let own = node.dialled()[0];
    (1..=4).for_each(|id| node.connect(tracker(id).peer));
    node.out.clear();
    node.hear(own, None);
    let asked: Vec<PeerId> = node.joins().into_iter().map(|(peer, _)| peer).collect();
    assert!(asked.len() >= 2 && !asked.contains(&own), "{asked:?}");
    node.hear(own, None);
    assert_eq!(node.joins(), []);
}

#[test]
fn no_stream_opens_before_every_tracker_confirmed_the_lease() {
    let (mut node, _, others) = Node::leased();
    assert_eq!(node.joins(), others_and_own(true));
    for (at, peer) in others.iter().enumerate() {
        assert!(!node.streams(), "after {at} of 3");
        node.hear(*peer, Some(GRANT));
    }
    assert!(node.streams());
}

#[test]
fn a_tracker_that_is_lost_is_not_waited_for() {
    let (mut node, _, others) = Node::leased();
    node.hear(others[0], Some(GRANT));
    node.hear(others[1], Some(GRANT));
    assert!(!node.streams());
    node.handle(Input::Disconnected { peer: others[2] });
    assert!(node.streams());
}

#[test]
fn a_lease_that_another_tracker_revokes_is_given_back_to_all_and_nothing_streams() {
    let (mut node, own, others) = Node::leased();
    node.out.clear();
    let message = Message::Revoked { digest: digest(), epoch: GRANT.epoch };
    node.handle(Input::Received { peer: others[1], message });
    for peer in others.iter().chain([&own]) {
        node.hear(*peer, None);
    }
    assert!(!node.streams());
    assert_eq!(node.joins(), others_and_own(false));
}

fn others_and_own(leased: bool) -> Vec<(PeerId, bool)> {
    (1..=4).map(|id| (tracker(id).peer, leased)).collect()
}

#[test]
fn the_nodes_of_a_rack_meet_at_one_tracker() {
    let asked = |place: Place| -> Vec<Vec<PeerId>> {
        let each = (0..8).map(|seed| {
            let mut node =
                Node { swarm: Swarm::new(PeerId([99; 32]), place, Limits::default(), seed), out: Vec::new() };
            node.handle(Input::Wanted { digest: digest(), restored: None });
            node.handle(Input::Holders { digest: digest(), holders: Vec::new() });
            node.out.clear();
            node.handle(Input::Located {
                digest: digest(),
                trackers: (1..=4).map(tracker).collect(),
                known: Vec::new(),
            });
            node.dialled()
        });
        each.collect()
    };
    let common =
        |all: &[Vec<PeerId>]| (1..=4).filter(|id| all.iter().all(|one| one.contains(&PeerId([*id; 32])))).count();
    for rack in 1..10 {
        let all = asked(Place { zone: 1, rack });
        assert!(common(&all) == 1 && all.iter().all(|one| one.len() <= 2), "rack {rack}: {all:?}");
    }
    assert_eq!(common(&asked(Place { zone: 1, rack: 0 })), 0, "nodes without a rack are spread over all");
}

#[test]
fn racks_spread_evenly_over_trackers_whose_names_begin_alike() {
    let alike =
        |id: u8| Contact { peer: PeerId(std::array::from_fn(|at| if at == 1 { id } else { 7 })), ..tracker(id) };
    let trackers: Vec<Contact> = (0..4).map(alike).collect();
    let racks = |tracker: &Contact| {
        let chosen = |rack: u32| meeting_point(Place { zone: 1, rack }, &trackers);
        (1..=400).filter(|rack| chosen(*rack) == Some(tracker.peer)).count()
    };
    let counts: Vec<usize> = trackers.iter().map(racks).collect();
    assert!(counts.iter().all(|count| (70..=130).contains(count)), "{counts:?}");
}

#[test]
fn where_all_trackers_are_silent_the_next_closest_are_asked_and_at_last_nobody() {
    let mut node = Node::new(1);
    let located = Input::Located { digest: digest(), trackers: (1..=8).map(tracker).collect(), known: Vec::new() };
    node.handle(located.clone());
    let mut rounds = vec![node.dialled()];
    let wait = Limits::default().join_timeout;
    for after in [wait, wait * 3 / 2, wait * 5 / 2] {
        node.handle_at(after, Input::Elapsed);
        rounds.push(node.dialled());
    }
    let asked = |round: &Vec<PeerId>| round.iter().map(|peer| peer.0[0]).collect::<BTreeSet<u8>>();
    let rounds: Vec<_> = rounds.iter().map(asked).collect();
    assert!(rounds[0].union(&rounds[1]).copied().eq(1..=4), "{rounds:?}");
    assert!(rounds[2].iter().copied().eq(5..=8), "{rounds:?}");
    assert!(rounds[3].is_empty(), "{rounds:?}");
    // Those that are known to be silent are passed over when the fetch begins anew.
    node.handle_at(wait * 5 / 2, located);
    let fetch = node.swarm.fetches.values().next().expect("it goes on");
    assert!(fetch.tracking.trackers.iter().map(|contact| contact.peer.0[0]).eq(5..=8));
}

#[test]
fn a_tracker_that_answers_late_counts_although_the_next_closest_were_asked_and_it_hears_of_their_lease() {
    let mut node = Node::new(1);
    let wait = Limits::default().join_timeout;
    let located = Input::Located { digest: digest(), trackers: (1..=8).map(tracker).collect(), known: Vec::new() };
    node.handle(located);
    for id in 1..=6 {
        node.connect(tracker(id).peer);
    }
    for after in [wait, wait * 3 / 2] {
        node.handle_at(after, Input::Elapsed);
    }
    node.joins();
    let answer = |lease: Option<Grant>| Message::Joined {
        digest: digest(),
        peers: Vec::new(),
        lease,
        served: lease.is_none(),
        sources: Vec::new(),
    };
    let (late, next) = (tracker(2).peer, tracker(6).peer);
    node.handle_at(wait * 3 / 2, Input::Received { peer: next, message: answer(Some(GRANT)) });
    assert!(node.joins().contains(&(late, true)), "it hears of the lease that another one gave");
    node.handle_at(wait * 3 / 2, Input::Received { peer: late, message: answer(None) });
    let fetch = node.swarm.fetches.values().next().expect("it goes on");
    assert!(fetch.tracking.named.contains_key(&late), "its answer counts");
}

#[test]
fn in_a_small_cluster_every_tracker_hears_of_every_node_again_and_again() {
    let told = |limits: Limits| -> BTreeSet<PeerId> {
        let swarm = Swarm::new(PeerId([99; 32]), Place::default(), limits.clone(), 1);
        let mut node = Node { swarm, out: Vec::new() };
        node.handle(Input::Wanted { digest: digest(), restored: None });
        node.handle(Input::Holders { digest: digest(), holders: Vec::new() });
        let trackers = (1..=4).map(tracker).collect();
        node.handle(Input::Located { digest: digest(), trackers, known: Vec::new() });
        for id in 1..=4 {
            node.connect(tracker(id).peer);
        }
        for (own, _) in node.joins() {
            node.hear(own, None);
        }
        node.joins();
        node.handle_at(limits.heartbeat, Input::Elapsed);
        node.joins().into_iter().map(|(tracker, _)| tracker).collect()
    };
    assert_eq!(told(Limits::default()).len(), 4);
    // A node that has as many neighbours as it wants is in a large one.
    assert_eq!(told(Limits { neighbours_max: 0, ..Limits::default() }).len(), 1);
}
