//! One node and what its peers tell it.

use super::{
    rig::{Rig, layout, name, pulls, streamed},
    *,
};

#[test]
fn fresh_chunks_are_taken_at_once_beside_all_other_pulls() {
    let limits = Limits { pulls_max: 2, ..Limits::default() };
    let mut swarm = Swarm::new(peer(9), Place::default(), limits, 1);
    let mut out = Vec::new();
    let layout = Layout::new(SIZE).expect("small");
    let fresh = ChunkIndex(layout.last().0 - 2);
    let mut most = ChunkSet::full(layout.count());
    most.remove(fresh);
    most.remove(layout.last());
    let segment = streamed(peer(1), layout);
    let digest = digest();
    let mut tell = |input| {
        out.clear();
        swarm.handle(Time::ZERO, input, &mut out);
        out.iter()
            .filter_map(|order| if let Output::Pull { peer, chunk, .. } = order { Some((*peer, *chunk)) } else { None })
            .collect::<Vec<_>>()
    };
    tell(Input::Wanted { digest, restored: None });
    name(peer(1)).into_iter().for_each(|input| drop(tell(input)));
    let empty = ChunkSet::empty(layout.count());
    for (from, chunks) in [(1, most), (2, empty)] {
        tell(Input::Connected { peer: peer(from), place: Place::default() });
        tell(Input::Received { peer: peer(from), message: Message::Subscribe { digest, frontier: ChunkIndex::FIRST } });
        tell(Input::Received { peer: peer(from), message: Message::Have { digest, size: SIZE, chunks } });
    }
    let pulls = tell(Input::Received {
        peer: peer(1),
        message: Message::Segment { digest, size: SIZE, segment: segment.into() },
    });
    assert_eq!(pulls.len(), 2);
    let pulls = tell(Input::Received { peer: peer(2), message: Message::Fresh { digest, chunks: vec![fresh] } });
    assert_eq!(pulls, [(peer(2), fresh)]);
}

#[test]
fn a_peer_whose_states_are_known_is_told_to_send_no_more() {
    let mut swarm = Swarm::new(peer(9), Place::default(), Limits::default(), 1);
    let mut out = Vec::new();
    let layout = Layout::new(SIZE).expect("small");
    let segment = streamed(peer(1), layout);
    let digest = digest();
    swarm.handle(Time::ZERO, Input::Wanted { digest, restored: None }, &mut out);
    name(peer(1)).into_iter().for_each(|input| swarm.handle(Time::ZERO, input, &mut out));
    for from in [1, 2] {
        swarm.handle(Time::ZERO, Input::Connected { peer: peer(from), place: Place::default() }, &mut out);
        let message = Message::Subscribe { digest, frontier: ChunkIndex::FIRST };
        swarm.handle(Time::ZERO, Input::Received { peer: peer(from), message }, &mut out);
        out.clear();
        let message = Message::Segment { digest, size: SIZE, segment: segment.clone().into() };
        swarm.handle(Time::ZERO, Input::Received { peer: peer(from), message }, &mut out);
        let enough = Output::Send { peer: peer(from), message: Message::Subscribe { digest, frontier: layout.last() } };
        assert_eq!(out.contains(&enough), from == 2, "{out:?}");
    }
}

#[test]
fn a_size_that_nobody_signed_makes_no_room() {
    let mut swarm = Swarm::new(peer(9), Place::default(), Limits::default(), 1);
    let mut out = Vec::new();
    let digest = digest();
    swarm.handle(Time::ZERO, Input::Wanted { digest, restored: None }, &mut out);
    swarm.handle(Time::ZERO, Input::Connected { peer: peer(1), place: Place::default() }, &mut out);
    let subscribe = Message::Subscribe { digest, frontier: ChunkIndex::FIRST };
    swarm.handle(Time::ZERO, Input::Received { peer: peer(1), message: subscribe }, &mut out);
    let size = 200 << 30;
    let chunks = ChunkSet::full(Layout::new(size).expect("large, but allowed").count());
    swarm.handle(
        Time::ZERO,
        Input::Received { peer: peer(1), message: Message::Have { digest, size, chunks } },
        &mut out,
    );
    assert!(!out.iter().any(|order| matches!(order, Output::Sized { .. })), "{out:?}");
}

#[test]
fn whoever_has_chunks_of_unknown_states_is_asked_for_the_states_until_they_come() {
    let mut rig = Rig::new(Place::default());
    name(peer(1)).into_iter().for_each(|input| drop(rig.tell(input)));
    rig.meet(1, Place::default(), ChunkSet::empty(layout().count()));
    let mut begun = streamed(peer(1), layout());
    begun.states.truncate(3);
    rig.hear(1, Message::Segment { digest: digest(), size: SIZE, segment: begun.into() });
    let mut out = rig.meet(2, Place::default(), ChunkSet::full(layout().count()));
    // All that can be verified is here.
    loop {
        let pulled = pulls(&out);
        if pulled.is_empty() {
            break;
        }
        out = pulled
            .into_iter()
            .flat_map(|(pull, ..)| rig.tell(Input::Pulled { digest: digest(), pull, verdict: Verdict::Good }))
            .collect();
    }
    let asked = |out: &[Output]| {
        let asks = out.iter().filter(|order| {
            matches!(order, Output::Send { peer: to, message: Message::Subscribe { frontier, .. } }
                if *to == peer(2) && *frontier < layout().last())
        });
        asks.count()
    };
    assert_eq!(asked(&rig.wait(Duration::from_millis(900))), 0);
    assert_eq!(asked(&rig.wait(Duration::from_millis(2200))), 3, "once a second");
    let whole = streamed(peer(1), layout());
    let out = rig.hear(2, Message::Segment { digest: digest(), size: SIZE, segment: whole.into() });
    assert!(!pulls(&out).is_empty(), "they came");
}

#[test]
fn a_chunk_that_does_not_come_is_asked_of_one_peer_after_another_but_of_three_at_once() {
    let mut rig = Rig::new(Place::default());
    name(peer(1)).into_iter().for_each(|input| drop(rig.tell(input)));
    let mut out = Vec::new();
    for from in 1..=6 {
        out.extend(rig.meet(from, Place::default(), ChunkSet::full(layout().count())));
    }
    let segment = streamed(peer(1), layout()).into();
    out.extend(rig.hear(1, Message::Segment { digest: digest(), size: SIZE, segment }));
    let (_, first, late) = pulls(&out)[0];
    // All others come at once.
    while let pulled @ [_, ..] = &pulls(&out)[..] {
        rig.now = rig.now + HOP;
        let good = pulled.iter().filter(|(.., chunk)| *chunk != late);
        let good = good.map(|(pull, ..)| Input::Pulled { digest: digest(), pull: *pull, verdict: Verdict::Good });
        out = good.flat_map(|input| rig.tell(input)).collect();
    }
    let mut asked = BTreeSet::from([first]);
    let mut next = |rig: &mut Rig| {
        let more = pulls(&rig.wait(Duration::from_millis(25)));
        assert!(more.iter().all(|(_, from, chunk)| *chunk == late && asked.insert(*from)), "{more:?} after {asked:?}");
        more.iter().map(|(pull, ..)| *pull).collect::<Vec<_>>()
    };
    let second = next(&mut rig);
    assert_eq!(second.len(), 1, "it takes too long");
    rig.tell(Input::Pulled { digest: digest(), pull: second[0], verdict: Verdict::Busy });
    assert_eq!((next(&mut rig).len(), next(&mut rig).len()), (1, 1), "the second one was of no use, then those, too");
    assert_eq!((next(&mut rig).len(), next(&mut rig).len()), (0, 0), "three are enough");
}
