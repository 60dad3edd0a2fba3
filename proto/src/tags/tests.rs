#![allow(clippy::unwrap_used, reason = "tests")]

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    peer::Contact,
    time::Time,
    wire::{Age, TagWord},
};

const TTL: Age = Age(30_000);

fn peer(number: u8) -> PeerId {
    PeerId([number; 32])
}

fn key(number: u8) -> Digest {
    Digest::sha256([number; 32])
}

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn record(resolver: u8) -> Arc<Record> {
    Arc::new(Record { body: vec![resolver], resolver: peer(resolver), signature: Signature([0; 64]) })
}

/// What the board says, to whom: of one tag.
#[derive(Debug, Default)]
struct Rig(Board);

type Said = Vec<(u8, TagWord)>;

fn said(out: Vec<Send>) -> Said {
    out.into_iter().map(|Send { peer, word, .. }| (peer.0[0], word)).collect()
}

impl Rig {
    fn wanted(&mut self, now: u64, from: u8, tag: u8) -> Said {
        self.wanted_for(now, from, tag, TTL)
    }

    fn wanted_for(&mut self, now: u64, from: u8, tag: u8, believed: Age) -> Said {
        let mut out = Vec::new();
        self.0.wanted(at(now), peer(from), key(tag), believed, &mut out);
        said(out)
    }

    fn resolved(&mut self, now: u64, from: u8, tag: u8, (record, age): (Arc<Record>, u32)) -> Said {
        let mut out = Vec::new();
        self.0.resolved(at(now), peer(from), key(tag), (record, Age(age)), &mut out);
        said(out)
    }

    fn dropped(&mut self, now: u64, from: u8, tag: u8) -> Said {
        let mut out = Vec::new();
        self.0.dropped(at(now), peer(from), key(tag), &mut out);
        said(out)
    }

    fn disconnected(&mut self, now: u64, from: u8) -> Said {
        let mut out = Vec::new();
        self.0.disconnected(at(now), peer(from), &mut out);
        said(out)
    }

    fn elapsed(&mut self, now: u64) -> Said {
        let mut out = Vec::new();
        self.0.elapsed(at(now), &mut out);
        said(out)
    }
}

fn told(record: &Arc<Record>, age: u32) -> TagWord {
    TagWord::Record { record: Arc::clone(record), age: Age(age) }
}

#[test]
fn one_resolves_and_all_who_ask_meanwhile_or_later_get_its_record() {
    let mut rig = Rig::default();
    assert_eq!(rig.wanted(0, 1, 9), [(1, TagWord::Duty)]);
    assert_eq!(rig.wanted(1, 2, 9), [(2, TagWord::Pending)]);
    assert_eq!(rig.wanted(2, 3, 9), [(3, TagWord::Pending)]);
    assert_eq!(rig.wanted(3, 1, 8), [(1, TagWord::Duty)], "another tag is another matter");
    let record = record(1);
    assert_eq!(rig.resolved(50, 1, 9, (Arc::clone(&record), 40)), [(2, told(&record, 40)), (3, told(&record, 40))]);
    assert_eq!(rig.wanted(1050, 4, 9), [(4, told(&record, 1040))], "its age is counted from the origin's answer");
}

#[test]
fn a_record_ends_one_ttl_after_the_origin_was_asked() {
    let mut rig = Rig::default();
    rig.wanted(0, 1, 9);
    rig.resolved(2000, 1, 9, (record(1), 2000));
    assert_eq!(rig.wanted(29_999, 2, 9), [(2, told(&record(1), 29_999))]);
    assert_eq!(rig.0.deadline(), Some(at(30_000)));
    assert!(rig.elapsed(30_000).is_empty() && rig.0.is_empty());
    assert_eq!(rig.wanted(30_001, 2, 9), [(2, TagWord::Duty)]);
}

#[test]
fn whoever_believes_less_long_resolves_anew() {
    let mut rig = Rig::default();
    rig.wanted(0, 1, 9);
    rig.resolved(0, 1, 9, (record(1), 0));
    assert_eq!(rig.wanted_for(5001, 2, 9, Age(5000)), [(2, TagWord::Duty)]);
    assert_eq!(rig.resolved(5002, 2, 9, (record(2), 1)), []);
    assert_eq!(rig.wanted(5003, 3, 9), [(3, told(&record(2), 2))]);
}

#[test]
fn the_duty_goes_on_when_its_holder_fails_is_gone_or_silent() {
    let failures: [fn(&mut Rig) -> Said; 3] =
        [|rig| rig.dropped(100, 1, 9), |rig| rig.disconnected(100, 1), |rig| rig.elapsed(1200)];
    for fail in failures {
        let mut rig = Rig::default();
        for from in [1, 2, 3] {
            rig.wanted(0, from, 9);
        }
        assert_eq!(fail(&mut rig), [(2, TagWord::Duty)], "one at a time");
        assert_eq!(rig.resolved(1600, 1, 9, (record(1), 0)), [], "too late: it is not its duty any more");
        assert_eq!(rig.resolved(1700, 2, 9, (record(2), 0)), [(3, told(&record(2), 0))]);
    }
}

#[test]
fn nobody_is_left_on_the_board_when_all_fail_or_go() {
    let mut rig = Rig::default();
    for from in [1, 2, 3] {
        rig.wanted(0, from, 9);
    }
    assert_eq!(rig.disconnected(1, 2), [], "it only waited");
    assert_eq!(rig.dropped(2, 1, 9), [(3, TagWord::Duty)]);
    assert_eq!(rig.dropped(3, 3, 9), []);
    assert!(rig.0.is_empty() && rig.0.deadline().is_none());
}

#[test]
fn a_holder_that_asks_again_is_told_again() {
    let mut rig = Rig::default();
    rig.wanted(0, 1, 9);
    assert_eq!(rig.wanted(10, 1, 9), [(1, TagWord::Duty)]);
    assert_eq!(rig.0.deadline(), Some(at(1200)), "which makes nobody wait longer");
}

#[test]
fn records_that_nobody_was_to_make_are_refused() {
    let mut rig = Rig::default();
    assert_eq!(rig.resolved(0, 1, 9, (record(1), 0)), []);
    assert!(rig.0.is_empty());
    rig.wanted(0, 1, 9);
    rig.wanted(0, 2, 9);
    for (from, tag, resolver) in [(2, 9, 2), (3, 9, 3), (1, 8, 1), (1, 9, 2)] {
        assert_eq!(rig.resolved(1, from, tag, (record(resolver), 0)), [], "{from} about {tag} by {resolver}");
        assert!(rig.0.has_duty(peer(1), &key(9)));
    }
}

#[test]
fn a_record_that_is_too_old_when_it_comes_is_of_no_use() {
    let mut rig = Rig::default();
    rig.wanted(0, 1, 9);
    rig.wanted(0, 2, 9);
    assert_eq!(rig.resolved(1, 1, 9, (record(1), TTL.0 + 1)), [(2, TagWord::Duty)]);
    assert_eq!(rig.resolved(1, 2, 9, (record(2), u32::MAX)), []);
    assert!(rig.0.is_empty());
}

#[test]
fn floods_fill_no_more_than_their_share_and_the_board_no_more_than_its_limit() {
    let bounds = Bounds { tags_max: 10, tags_per_peer_max: 4, waiting_max: 2, ..Bounds::default() };
    let mut rig = Rig(Board::new(bounds));
    for tag in 0..100 {
        assert_eq!(rig.wanted(0, 1, tag), [(1, TagWord::Duty)], "without room everybody resolves by himself");
    }
    assert_eq!(rig.0.len(), 4);
    for tag in 0..4 {
        rig.resolved(1, 1, tag, (record(1), 0));
    }
    assert_eq!(rig.wanted(2, 1, 99), [(1, TagWord::Duty)]);
    assert_eq!(rig.0.len(), 4, "records count too");
    for from in 2..20 {
        rig.wanted(2, from, 100 + from);
    }
    assert_eq!(rig.0.len(), 10);
    let words: Said = (20..24).flat_map(|from| rig.wanted(3, from, 102)).collect();
    let expected = [(20, TagWord::Pending), (21, TagWord::Pending), (22, TagWord::Duty), (23, TagWord::Duty)];
    assert_eq!(words, expected);
    // Those two waited, and have their turns one after the other.
    for now in [40_000, 50_000, 60_000] {
        rig.elapsed(now);
    }
    assert!(rig.0.is_empty(), "{:?}", rig.0);
}

#[test]
fn a_record_for_ever_is_kept_for_a_day() {
    let mut rig = Rig::default();
    rig.wanted_for(0, 1, 9, Age(u32::MAX));
    rig.resolved(0, 1, 9, (record(1), 0));
    assert_eq!(rig.0.deadline(), Some(Time::ZERO + Bounds::default().kept_max));
}

fn contact(number: u8) -> Contact {
    Contact { peer: peer(number), address: ([127, 0, 0, 1], 5051).into() }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn silent_trackers_cost_less_than_a_second_before_the_origin_is_asked() {
    let mut errand = Errand::new(TTL, (1..9).map(contact));
    let mut now = Duration::ZERO;
    for number in [1, 2] {
        assert_eq!(errand.go_on(now), Next::Ask(contact(number)));
        now = errand.deadline();
    }
    assert_eq!(errand.go_on(now), Next::Resolve(None));
    assert!(now < millis(1000));
    assert_eq!(Errand::new(TTL, []).go_on(Duration::ZERO), Next::Resolve(None));
}

#[test]
fn a_tracker_that_promises_a_record_is_waited_for_once() {
    let mut errand = Errand::new(TTL, [contact(1), contact(2)]);
    errand.go_on(Duration::ZERO);
    assert_eq!(errand.heard(millis(10), TagWord::Pending), Next::Listen);
    let until = errand.deadline();
    assert_eq!(until, millis(2200));
    assert_eq!(errand.heard(millis(2000), TagWord::Pending), Next::Listen);
    assert_eq!(errand.deadline(), until, "promises do not add up");
    assert_eq!(errand.go_on(until), Next::Resolve(None), "there is no time for another");
}

#[test]
fn an_errand_ends_with_the_duty_or_with_a_record_that_is_young_enough() {
    let errand = || {
        let mut errand = Errand::new(TTL, [contact(1), contact(2)]);
        errand.go_on(Duration::ZERO);
        errand
    };
    assert_eq!(errand().heard(millis(1), TagWord::Duty), Next::Resolve(Some(peer(1))));
    assert_eq!(errand().heard(millis(1), told(&record(7), TTL.0)), Next::Take(record(7), TTL));
    assert_eq!(errand().heard(millis(1), told(&record(7), TTL.0 + 1)), Next::Resolve(None));
    for word in [TagWord::Dropped, TagWord::Wanted { believed: TTL }] {
        assert_eq!(errand().heard(millis(1), word), Next::Listen, "that is for trackers");
    }
}

#[test]
fn a_signature_is_for_one_key_and_one_body() {
    let bytes = Record::signed_bytes(&key(1), b"body");
    for (key, body) in [(key(2), &b"body"[..]), (key(1), b"bodx"), (Digest::sha512([1; 64]), b"body")] {
        assert_ne!(Record::signed_bytes(&key, body), bytes);
    }
}
