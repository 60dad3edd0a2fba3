//! Joins in, answers out.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::peer::Place;

fn peer(id: u8) -> PeerId {
    PeerId([id; 32])
}

fn contact(id: u8) -> Contact {
    Contact { peer: peer(id), address: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000 + u16::from(id))) }
}

fn digest() -> Digest {
    Digest::sha256([1; 32])
}

fn join(standing: Standing) -> Join {
    Join { digest: digest(), have: 0, standing, place: Place::default(), lease: None }
}

fn held(epoch: Epoch, bytes: u64) -> Held {
    Held { epoch, scope: Scope::Origin, bytes }
}

struct Rig {
    tracker: Tracker,
    now: Time,
}

impl Rig {
    fn new() -> Self {
        Self { tracker: Tracker::new(Limits::default(), 1), now: Time::ZERO }
    }

    fn handle(&mut self, input: Input) -> Vec<Send> {
        let mut out = Vec::new();
        self.tracker.handle(self.now, input, &mut out);
        out
    }

    fn join(&mut self, id: u8, join: Join) -> Vec<Send> {
        self.handle(Input::Joined { contact: contact(id), join })
    }

    /// Joins and returns the answer to the joiner: the lease, whether somebody serves, and the peers.
    fn answer(&mut self, id: u8, join: Join) -> (Option<Epoch>, bool, Vec<Contact>) {
        let out = self.join(id, join);
        let found = out.into_iter().filter(|send| send.peer == peer(id)).find_map(|send| {
            let Message::Joined { lease, served, peers, .. } = send.message else { return None };
            Some((lease.map(|grant| grant.epoch), served, peers))
        });
        found.expect("every joiner but a complete one is answered")
    }

    fn wait(&mut self, time: Duration) -> Vec<Send> {
        self.now = self.now + time;
        self.handle(Input::Elapsed)
    }
}

fn granted(out: &[Send]) -> Vec<PeerId> {
    let grants = out.iter().filter(|send| matches!(send.message, Message::Joined { lease: Some(_), .. }));
    grants.map(|send| send.peer).collect()
}

#[test]
fn the_first_gets_the_lease_and_the_others_its_contact() {
    let mut rig = Rig::new();
    let (lease, served, peers) = rig.answer(1, join(Standing::Starved));
    assert!(lease.is_some() && !served && peers.is_empty());
    let (lease, served, peers) = rig.answer(2, join(Standing::Starved));
    assert_eq!((lease, served, peers), (None, true, vec![contact(1)]));
}

#[test]
fn no_lease_is_given_where_somebody_has_it_all() {
    let mut rig = Rig::new();
    assert!(rig.join(1, join(Standing::Complete)).is_empty());
    let (lease, served, peers) = rig.answer(2, join(Standing::Starved));
    assert_eq!((lease, served, peers), (None, true, vec![contact(1)]));
}

#[test]
fn a_node_that_the_origin_refuses_never_gets_the_lease() {
    let mut rig = Rig::new();
    let (lease, served, _) = rig.answer(1, join(Standing::Shut));
    assert_eq!((lease, served), (None, false));
}

#[test]
fn a_lost_holder_is_replaced_at_once_by_whoever_has_most() {
    let mut rig = Rig::new();
    rig.join(1, join(Standing::Starved));
    rig.join(2, join(Standing::Starved));
    rig.join(3, Join { have: 7, ..join(Standing::Fetching) });
    let out = rig.handle(Input::Disconnected { peer: peer(1) });
    assert_eq!(granted(&out), [peer(3)]);
}

#[test]
fn a_silent_holder_is_replaced_and_told() {
    let mut rig = Rig::new();
    let limits = Limits::default();
    let (lease, ..) = rig.answer(1, join(Standing::Starved));
    rig.now = rig.now + limits.lease_timeout / 2;
    rig.join(2, join(Standing::Starved));
    let out = rig.wait(limits.lease_timeout / 2);
    assert_eq!(granted(&out), [peer(2)]);
    let told = Message::Revoked { digest: digest(), epoch: lease.expect("first") };
    assert!(out.contains(&Send { peer: peer(1), message: told }));
}

#[test]
fn a_holder_that_beats_but_does_not_move_is_replaced() {
    let mut rig = Rig::new();
    let limits = Limits::default();
    let (lease, ..) = rig.answer(1, join(Standing::Starved));
    let beats = limits.lease_stall.as_millis() / limits.lease_heartbeat.as_millis() + 1;
    let mut grants = Vec::new();
    for _ in 0..beats {
        rig.join(1, Join { lease: lease.map(|epoch| held(epoch, 5)), ..join(Standing::Starved) });
        rig.join(2, join(Standing::Starved));
        grants.extend(granted(&rig.wait(limits.lease_heartbeat)));
    }
    assert_eq!(grants.first(), Some(&peer(2)));
}

#[test]
fn two_leases_for_one_blob_end_with_the_same_one_at_every_tracker() {
    for order in [[1, 2], [2, 1]] {
        let mut rig = Rig::new();
        let mut revoked = Vec::new();
        for id in order {
            let out = rig.join(id, Join { lease: Some(held(Epoch(1), 10)), ..join(Standing::Fetching) });
            revoked.extend(out.into_iter().filter(|send| matches!(send.message, Message::Revoked { .. })));
        }
        assert_eq!(revoked.iter().map(|send| send.peer).collect::<Vec<_>>(), [peer(2)]);
    }
}

#[test]
fn a_sample_names_others_only_and_is_bounded() {
    let mut rig = Rig::new();
    for id in 1..100 {
        rig.join(id, join(Standing::Starved));
    }
    let (_, _, peers) = rig.answer(1, join(Standing::Starved));
    assert_eq!(peers.len(), Limits::default().sample);
    assert!(!peers.contains(&contact(1)));
}

#[test]
fn members_that_fall_silent_are_forgotten() {
    let mut rig = Rig::new();
    rig.join(1, join(Standing::Starved));
    rig.join(2, join(Standing::Complete));
    rig.wait(Limits::default().member_timeout);
    assert_eq!(rig.tracker.len(), 1);
    rig.wait(Limits::default().complete_timeout);
    assert!(rig.tracker.is_empty() && rig.tracker.deadline().is_none());
}

#[test]
fn a_node_that_a_complete_member_is_of_no_use_to_gets_the_lease() {
    let mut rig = Rig::new();
    rig.join(1, join(Standing::Complete));
    assert_eq!(rig.answer(2, join(Standing::Starved)).0, None);
    rig.now = rig.now + Limits::default().starved_patience / 2;
    assert_eq!(rig.answer(2, join(Standing::Starved)).0, None);
    rig.now = rig.now + Limits::default().starved_patience / 2;
    assert!(rig.answer(2, join(Standing::Starved)).0.is_some());
}
