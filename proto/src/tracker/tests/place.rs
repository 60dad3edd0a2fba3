//! Zones and racks: who is named to whom, and who imports.

use super::*;

fn at(zone: u32, rack: u32) -> Join {
    Join { place: Place { zone, rack }, ..join(Standing::Starved) }
}

/// Which of the contacts stand where ids are `of`.
fn count(peers: &[Contact], of: std::ops::Range<u8>) -> usize {
    peers.iter().filter(|contact| of.contains(&contact.peer.0[0])).count()
}

fn import(grant: Option<Grant>) -> bool {
    grant.is_some_and(|grant| grant.scope == Scope::Zone)
}

#[test]
fn two_thirds_of_a_sample_are_of_the_own_rack() {
    let mut rig = Rig::new();
    for id in 0..200 {
        rig.join(id, at(1, 1 + u32::from(id / 20)));
    }
    let peers = rig.answer(200, at(1, 4)).2;
    assert_eq!(peers.len(), Limits::default().sample);
    assert!((7..=9).contains(&count(&peers, 60..80)), "a third is of anywhere: {peers:?}");
}

#[test]
fn few_of_a_sample_are_of_other_zones() {
    let mut rig = Rig::new();
    for id in 0..200 {
        rig.join(id, at(1 + u32::from(id / 100), 0));
    }
    for _ in 0..50 {
        let peers = rig.answer(50, at(1, 0)).2;
        assert_eq!((peers.len(), count(&peers, 100..200) <= 2), (Limits::default().sample, true));
    }
}

#[test]
fn the_first_of_each_further_zone_imports_and_knows_who_streams() {
    let mut rig = Rig::new();
    assert_eq!(rig.answer(1, at(1, 0)).0, Some(first()));
    let (lease, served, peers) = rig.answer(2, at(2, 0));
    assert!(import(lease) && served);
    assert_eq!(peers, [contact(1)]);
    assert_eq!(rig.answer(3, at(2, 0)).0, None);
    assert_eq!(rig.answer(4, at(1, 0)).0, None);
    assert!(import(rig.answer(5, at(3, 0)).0));
}

#[test]
fn most_that_an_importer_is_told_of_are_in_the_zone_of_whoever_streams() {
    let mut rig = Rig::new();
    for id in 0..150 {
        rig.join(id, at(1 + u32::from(id / 50), 0));
    }
    let grant = rig.answer(50, at(2, 0)).0.expect("the first of its zone imports");
    let beat = Join { standing: Standing::Starved, place: Place { zone: 2, rack: 0 }, ..beat(grant, 0) };
    let peers = rig.answer(50, beat).2;
    assert!(peers.contains(&contact(0)));
    assert_eq!((count(&peers, 0..50), count(&peers, 50..100)), (7, 3));
}

#[test]
fn a_zone_in_which_somebody_has_it_all_needs_no_import() {
    let mut rig = Rig::new();
    rig.join(1, Join { standing: Standing::Complete, ..at(1, 0) });
    rig.join(2, Join { standing: Standing::Complete, ..at(2, 0) });
    assert_eq!(rig.answer(3, at(2, 0)).0, None);
    assert!(import(rig.answer(4, at(3, 0)).0));
}

#[test]
fn without_zones_nobody_imports() {
    let mut rig = Rig::new();
    for id in 0..20 {
        assert!(!import(rig.answer(id, at(0, u32::from(id))).0));
    }
}

#[test]
fn an_importer_that_is_gone_is_replaced_at_once_from_its_zone() {
    let mut rig = Rig::new();
    for (id, zone) in [(1, 1), (2, 2), (3, 2), (4, 1)] {
        rig.join(id, at(zone, 0));
    }
    let out = rig.handle(Input::Disconnected { peer: peer(2) });
    assert_eq!(granted(&out), [peer(3)]);
}

#[test]
fn an_importer_that_beats_but_does_not_move_is_replaced() {
    let mut rig = Rig::new();
    let limits = Limits::default();
    rig.join(1, at(1, 0));
    let grant = rig.answer(2, at(2, 0)).0.expect("the first of its zone imports");
    let place = Place { zone: 2, rack: 0 };
    let mut replaced = Vec::new();
    for step in 0..40 {
        rig.join(1, Join { place: Place { zone: 1, rack: 0 }, ..beat(first(), step) });
        rig.join(2, Join { place, ..beat(grant, 0) });
        rig.join(3, at(2, 0));
        replaced.extend(granted(&rig.wait(limits.lease_heartbeat)));
    }
    assert_eq!(replaced.first(), Some(&peer(3)));
}

#[test]
fn an_importer_that_gets_the_origin_leaves_the_import() {
    let mut rig = Rig::new();
    rig.join(1, at(1, 0));
    rig.join(2, Join { have: 9, ..at(2, 0) });
    rig.join(3, Join { have: 5, ..at(1, 0) });
    let out = rig.handle(Input::Disconnected { peer: peer(1) });
    assert_eq!(granted(&out), [peer(2), peer(3)]);
    let mut scopes = Vec::new();
    for send in &out {
        if let Message::Joined { lease: Some(grant), .. } = &send.message {
            scopes.push(grant.scope);
        }
    }
    assert_eq!(scopes, [Scope::Origin, Scope::Zone]);
    assert_eq!(rig.answer(4, at(2, 0)).0, None);
}

#[test]
fn a_node_that_the_origin_refuses_may_import() {
    let mut rig = Rig::new();
    rig.join(1, at(1, 0));
    assert!(import(rig.answer(2, Join { standing: Standing::Shut, ..at(2, 0) }).0));
}

#[test]
fn zones_beyond_the_limit_count_as_one_without_a_name() {
    let limits = Limits { zones_max: 2, ..Limits::default() };
    let mut rig = Rig { tracker: Tracker::new(limits, 1), now: Time::ZERO };
    rig.join(1, at(1, 0));
    assert!(import(rig.answer(2, at(2, 0)).0));
    assert!(import(rig.answer(3, at(3, 0)).0));
    assert_eq!(rig.answer(4, at(4, 0)).0, None);
}

#[test]
fn an_import_that_another_tracker_gave_for_the_zone_of_the_stream_is_revoked() {
    let mut rig = Rig::new();
    assert_eq!(rig.answer(1, at(1, 0)).0, Some(first()));
    rig.join(1, Join { place: Place { zone: 1, rack: 0 }, ..beat(first(), 1) });
    let grant = Grant { epoch: Epoch(7), scope: Scope::Zone };
    let out = rig.join(2, Join { place: Place { zone: 1, rack: 0 }, ..beat(grant, 0) });
    assert_eq!(revoked_of(&out), [peer(2)]);
    let out = rig.join(3, Join { place: Place { zone: 2, rack: 0 }, ..beat(grant, 0) });
    assert_eq!(revoked_of(&out), [], "another zone needs one");
}
