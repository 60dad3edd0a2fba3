//! Zones and racks: who brings a chunk in, and who hears of it.

use super::{
    rig::{Rig, layout, name, pulls, streamed},
    *,
};
use crate::wire::{Epoch, Grant, Scope};

/// A node in the first rack of a zone.
fn node(zone: u32) -> Rig {
    Rig::new(Place { zone, rack: 1 })
}

/// A peer tells states.
fn learn(rig: &mut Rig, from: usize) -> Vec<Output> {
    let segment = streamed(peer(from), layout());
    rig.hear(from, Message::Segment { digest: digest(), size: SIZE, segment: segment.into() })
}

/// A tracker, node 3 of the own zone, gives the lease to import.
fn lease(rig: &mut Rig, zone: u32) {
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    rig.tell(Input::Connected { peer: peer(3), place: Place { zone, rack: 3 } });
    let lease = Some(Grant { epoch: Epoch(1), scope: Scope::Zone });
    let (peers, sources) = (Vec::new(), vec![peer(1), peer(2), peer(3)]);
    rig.hear(3, Message::Joined { digest: digest(), peers, lease, served: true, sources });
}

fn none() -> ChunkSet {
    ChunkSet::empty(layout().count())
}

#[test]
fn a_chunk_shown_first_is_asked_for_again_after_a_refusal_whoevers_turn_it_is() {
    let mut rig = node(1);
    for mate in 10..20 {
        rig.meet(mate, Place { zone: 1, rack: 1 }, none());
    }
    for input in name(peer(1)) {
        rig.tell(input);
    }
    rig.meet(1, Place { zone: 1, rack: 2 }, none());
    learn(&mut rig, 1);
    // More than two at once are asked only of a peer that has sent something.
    for (pull, ..) in pulls(&rig.hear(1, Message::Fresh { digest: digest(), chunks: vec![ChunkIndex(1)] })) {
        rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Good });
    }
    let chunks: Vec<ChunkIndex> = (2..6).map(ChunkIndex).collect();
    let asked = pulls(&rig.hear(1, Message::Fresh { digest: digest(), chunks: chunks.clone() }));
    assert_eq!(asked.len(), chunks.len());
    for (pull, ..) in asked {
        rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Busy });
    }
    let again = pulls(&rig.wait(Duration::from_millis(10)));
    let again: BTreeSet<ChunkIndex> = again.into_iter().map(|(_, _, chunk)| chunk).collect();
    assert_eq!(again, chunks.into_iter().collect());
}

#[test]
fn what_an_importer_released_stays_with_one_peer_though_other_zones_have_it() {
    let mut rig = node(2);
    lease(&mut rig, 2);
    for near in [5, 6] {
        rig.meet(near, Place { zone: 2, rack: 2 }, none());
    }
    rig.meet(2, Place { zone: 1, rack: 2 }, none());
    rig.meet(1, Place { zone: 1, rack: 2 }, ChunkSet::full(layout().count()));
    let asked = pulls(&learn(&mut rig, 1));
    let (pull, from, chunk) = *asked.first().expect("an importer asks another zone");
    assert_eq!(from, peer(1));
    let out = rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Good });
    let shown = |order: &&Output| matches!(order, Output::Send { message: Message::Fresh { .. }, .. });
    assert_eq!(out.iter().filter(shown).count(), 1);
    let mut out = rig.hear(2, Message::Got { digest: digest(), chunks: vec![chunk] });
    out.extend(rig.wait(Duration::from_millis(50)));
    let told = |order: &Output| {
        let Output::Send { peer: to, message: Message::Got { .. } } = order else { return false };
        [peer(5), peer(6)].contains(to)
    };
    assert!(!out.iter().any(told), "{out:?}");
}

#[test]
fn an_importer_that_gets_nothing_does_not_ask_for_time_again_and_again() {
    let mut rig = node(2);
    lease(&mut rig, 2);
    rig.wait(Duration::from_secs(1));
}

#[test]
fn a_chunk_shown_first_is_asked_of_whoever_shows_it_and_not_of_another_zone() {
    let mut rig = node(1);
    for input in name(peer(1)) {
        rig.tell(input);
    }
    let mut all = none();
    all.insert(ChunkIndex(1));
    // The far one comes first in every list.
    rig.meet(2, Place { zone: 2, rack: 1 }, all);
    rig.meet(1, Place { zone: 1, rack: 2 }, none());
    learn(&mut rig, 1);
    let asked = pulls(&rig.hear(1, Message::Fresh { digest: digest(), chunks: vec![ChunkIndex(1)] }));
    let asked: Vec<_> = asked.into_iter().map(|(_, from, chunk)| (from, chunk)).collect();
    assert_eq!(asked, [(peer(1), ChunkIndex(1))]);
}

#[test]
fn what_came_into_a_rack_is_told_to_its_members_at_once() {
    let mut rig = node(1);
    for input in name(peer(1)) {
        rig.tell(input);
    }
    let mates = [10, 11, 12];
    for mate in mates {
        rig.meet(mate, Place { zone: 1, rack: 1 }, none());
    }
    rig.meet(1, Place { zone: 1, rack: 2 }, none());
    learn(&mut rig, 1);
    let asked = pulls(&rig.hear(1, Message::Got { digest: digest(), chunks: vec![ChunkIndex(1)] }));
    let [(pull, ..)] = asked[..] else { panic!("one chunk is there to be asked for: {asked:?}") };
    let out = rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Good });
    let told = |order: &Output| {
        if let Output::Send { peer, message: Message::Got { .. } } = order { Some(*peer) } else { None }
    };
    let told: BTreeSet<PeerId> = out.iter().filter_map(told).collect();
    assert_eq!(told, mates.into_iter().map(peer).collect());
}

#[test]
fn an_importer_whose_table_its_own_zone_filled_still_meets_other_zones() {
    let mut rig = node(2);
    for near in 10..50 {
        rig.meet(near, Place { zone: 2, rack: 2 }, none());
    }
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    rig.tell(Input::Connected { peer: peer(3), place: Place { zone: 2, rack: 3 } });
    let grant = Some(Grant { epoch: Epoch(1), scope: Scope::Zone });
    let joined = |lease| Message::Joined {
        digest: digest(),
        peers: vec![contact(1)],
        lease,
        served: true,
        sources: vec![peer(1)],
    };
    let dials =
        |out: &[Output]| out.iter().any(|order| matches!(order, Output::Dial { contact } if contact.peer == peer(1)));
    assert!(!dials(&rig.hear(3, joined(None))), "it imports nothing and knows enough peers");
    assert!(dials(&rig.hear(3, joined(grant))));
}
