//! Joins in, answers out.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngExt;

use super::{members::Members, *};
use crate::{
    peer::Place,
    wire::{Epoch, Grant, Held, Scope},
};

mod place;
mod slow;

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
    Join { digest: digest(), have: 0, standing, place: Place::default(), lease: None, accused: None, burden: 0 }
}

/// The join of a holder that has so much, and lacks a lot.
fn beat(grant: Grant, have: u32) -> Join {
    let held = Held { epoch: grant.epoch, scope: grant.scope, bytes: u64::from(have) << 20, left: 10_000, streams: 1 };
    Join { have, lease: Some(held), ..join(Standing::Fetching) }
}

const fn first() -> Grant {
    Grant { epoch: Epoch(1), scope: Scope::Origin }
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
    fn answer(&mut self, id: u8, join: Join) -> (Option<Grant>, bool, Vec<Contact>) {
        let out = self.join(id, join);
        let found = out.into_iter().filter(|send| send.peer == peer(id)).find_map(|send| {
            let Message::Joined { lease, served, peers, .. } = send.message else { return None };
            Some((lease, served, peers))
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

fn revoked_of(out: &[Send]) -> Vec<PeerId> {
    let revoked = out.iter().filter(|send| matches!(send.message, Message::Revoked { .. }));
    revoked.map(|send| send.peer).collect()
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
    assert_eq!(lease, Some(first()));
    assert_eq!(revoked_of(&out), [peer(1)]);
}

#[test]
fn a_holder_that_beats_but_does_not_move_is_replaced() {
    let mut rig = Rig::new();
    let limits = Limits::default();
    let (lease, ..) = rig.answer(1, join(Standing::Starved));
    let beats = limits.lease_stall.as_millis() / limits.lease_heartbeat.as_millis() + 1;
    let mut grants = Vec::new();
    for _ in 0..beats {
        rig.join(1, beat(lease.expect("first"), 0));
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
            revoked.extend(revoked_of(&rig.join(id, beat(first(), 10))));
        }
        assert_eq!(revoked, [peer(2)]);
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

#[test]
fn a_lease_that_follows_another_counts_at_every_tracker_whoever_holds_it() {
    for order in [[1, 2], [2, 1]] {
        let mut rig = Rig::new();
        let mut revoked = Vec::new();
        for id in order {
            let grant = Grant { epoch: Epoch(u64::from(id)), ..first() };
            revoked.extend(revoked_of(&rig.join(id, beat(grant, 10))));
        }
        assert_eq!(revoked, [peer(1)]);
    }
}

#[test]
fn a_lease_that_was_heard_of_is_confirmed_and_no_second_one_is_given() {
    let mut rig = Rig::new();
    let grant = Grant { epoch: Epoch(7), ..first() };
    assert_eq!(rig.answer(1, beat(grant, 3)).0, Some(grant));
    let (lease, served, _) = rig.answer(2, join(Standing::Starved));
    assert_eq!((lease, served), (None, true));
}

#[test]
fn a_lease_is_numbered_higher_than_all_that_were_heard_of() {
    let mut rig = Rig::new();
    rig.join(1, beat(Grant { epoch: Epoch(7), ..first() }, 3));
    rig.join(2, join(Standing::Starved));
    rig.handle(Input::Left { peer: peer(1), digest: digest() });
    assert_eq!(rig.answer(2, join(Standing::Starved)).0, Some(Grant { epoch: Epoch(8), ..first() }));
}

#[test]
fn a_report_that_crossed_the_grant_does_not_give_the_lease_back() {
    let mut rig = Rig::new();
    rig.join(1, join(Standing::Starved));
    assert_eq!(rig.answer(1, join(Standing::Starved)).0, Some(first()));
}

#[test]
fn a_lease_that_its_holder_gave_back_waits_for_one_that_another_tracker_gave_and_then_goes_on() {
    for another in [true, false] {
        let mut rig = Rig::new();
        rig.join(2, join(Standing::Starved));
        rig.join(2, beat(first(), 2));
        rig.join(3, join(Standing::Starved));
        assert!(granted(&rig.join(2, Join { have: 3, ..join(Standing::Fetching) })).is_empty());
        assert!(granted(&rig.join(3, join(Standing::Starved))).is_empty());
        if another {
            assert_eq!(rig.answer(4, beat(first(), 2)).0, Some(first()));
        }
        let later = granted(&rig.wait(Limits::default().lease_heartbeat));
        assert_eq!(later.is_empty(), another, "{later:?}");
    }
}

#[test]
fn whoever_reports_a_lease_that_ended_is_told_so() {
    let mut rig = Rig::new();
    rig.join(1, join(Standing::Starved));
    rig.join(2, join(Standing::Shut));
    assert_eq!(revoked_of(&rig.wait(Limits::default().lease_timeout)), [peer(1)]);
    assert_eq!(revoked_of(&rig.join(1, beat(first(), 2))), [peer(1)]);
}

#[test]
fn a_member_that_gets_on_is_told_of_few_others_and_one_that_starves_of_many() {
    let mut rig = Rig::new();
    let limits = Limits::default();
    for id in 1..100 {
        rig.join(id, join(Standing::Starved));
    }
    assert_eq!(rig.answer(100, join(Standing::Fetching)).2.len(), limits.sample);
    assert_eq!(rig.answer(100, join(Standing::Fetching)).2.len(), limits.sample_more);
    assert_eq!(rig.answer(100, join(Standing::Starved)).2.len(), limits.sample);
}

#[test]
fn everybody_is_named_about_as_often_as_everybody_else() {
    let mut rig = Rig::new();
    let mut named = [0_u32; 200];
    for id in 0..200 {
        rig.join(id, join(Standing::Starved));
    }
    for _ in 0..2000 {
        for contact in rig.answer(0, join(Standing::Starved)).2 {
            named[usize::from(contact.peer.0[0])] += 1;
        }
    }
    // 10 of 199 each time: 100 times on average.
    assert_eq!(named[0], 0);
    assert!(named[1..].iter().all(|times| (60..140).contains(times)), "{named:?}");
}

#[test]
fn a_peer_that_joins_too_much_is_not_heard_and_may_join_again_once_it_left() {
    let limits = Limits { joins_per_peer_max: 2, ..Limits::default() };
    let mut rig = Rig { tracker: Tracker::new(limits, 1), now: Time::ZERO };
    let other = |id: u8| Join { digest: Digest::sha256([id; 32]), ..join(Standing::Starved) };
    assert!(!rig.join(1, other(1)).is_empty());
    assert!(!rig.join(1, other(2)).is_empty());
    assert!(rig.join(1, other(3)).is_empty());
    assert!(!rig.join(2, other(3)).is_empty());
    rig.handle(Input::Left { peer: peer(1), digest: other(1).digest });
    assert!(!rig.join(1, other(3)).is_empty());
}

#[test]
fn a_peer_that_is_gone_is_forgotten_in_every_blob() {
    let mut rig = Rig::new();
    for id in 1..=3 {
        rig.join(1, Join { digest: Digest::sha256([id; 32]), ..join(Standing::Starved) });
    }
    assert_eq!(rig.tracker.len(), 3);
    rig.handle(Input::Disconnected { peer: peer(1) });
    assert!(rig.tracker.is_empty() && rig.tracker.deadline().is_none());
}

#[test]
fn a_deadline_that_came_early_is_put_off_and_nobody_is_lost() {
    let mut rig = Rig::new();
    let limits = Limits::default();
    rig.join(1, join(Standing::Complete));
    rig.join(2, join(Standing::Fetching));
    let early = rig.tracker.deadline().expect("a member may fall silent");
    rig.wait(limits.member_timeout / 2);
    rig.join(2, join(Standing::Fetching));
    assert_eq!(rig.tracker.deadline(), Some(early));
    rig.wait(limits.member_timeout / 2);
    assert_eq!(rig.tracker.deadline(), Some(early + limits.member_timeout / 2));
    rig.wait(limits.member_timeout / 2);
    assert_eq!(rig.answer(3, join(Standing::Fetching)).2, [contact(1)]);
}

#[test]
fn members_are_found_by_place_whatever_came_and_went() {
    let limits = Limits { zones_max: 3, ..Limits::default() };
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let mut members = Members::default();
    let mut truth: BTreeMap<PeerId, (Place, Standing)> = BTreeMap::new();
    for step in 0..5000_u32 {
        let now = Time::ZERO + Duration::from_millis(u64::from(step) * 20);
        let id = rng.random_range(0..60);
        if rng.random_bool(0.3) {
            assert_eq!(members.remove(peer(id)).is_some(), truth.remove(&peer(id)).is_some());
        } else {
            let place = Place { zone: rng.random_range(0..3), rack: rng.random_range(0..4) };
            let standing = [Standing::Fetching, Standing::Complete, Standing::Shut][rng.random_range(0..3)];
            members.hear(now, contact(id), &Join { place, ..join(standing) }, &limits);
            truth.insert(peer(id), (place, standing));
        }
        while let Some(silent) = members.silent(now, &limits) {
            members.remove(silent);
            assert!(truth.remove(&silent).is_some());
        }
        assert_eq!(members.len(), truth.len());
        for zone in 0..3 {
            let found =
                |positions: &[usize]| positions.iter().map(|at| members.at(*at).peer()).collect::<BTreeSet<_>>();
            let here = |rack: Option<u32>| {
                let inside = |place: Place| place.zone == zone && rack.is_none_or(|rack| rack == place.rack);
                truth.iter().filter(|(_, (place, _))| inside(*place)).map(|(peer, _)| *peer).collect::<BTreeSet<_>>()
            };
            let Some(group) = members.zone(zone) else {
                assert!(here(None).is_empty());
                continue;
            };
            assert_eq!(found(group.members()), here(None));
            assert_eq!(found(group.rack(2)), here(Some(2)));
            let held = truth.values().any(|(place, standing)| place.zone == zone && *standing == Standing::Complete);
            assert_eq!(group.is_held(), held);
        }
    }
}
