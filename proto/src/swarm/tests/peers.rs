//! One node and what its peers tell it.

use super::{
    rig::{name, streamed},
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
