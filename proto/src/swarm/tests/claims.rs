//! Whose states are believed, and who is caught.

use super::{
    rig::{Rig, layout, name, pulls},
    *,
};

/// A peer connects, subscribes, has everything as it says, and tells states.
fn offer(rig: &mut Rig, from: usize, states: Vec<State>) -> Vec<Output> {
    let segment = Segment { author: peer(from), from: ChunkIndex::FIRST, states, signature: Signature([0; 64]) };
    let mut out = rig.meet(from, Place::default(), ChunkSet::full(layout().count()));
    out.extend(rig.hear(from, Message::Segment { digest: digest(), size: SIZE, segment: segment.into() }));
    out
}

fn end(rig: &mut Rig, pull: PullId, verdict: Verdict) -> Vec<Output> {
    rig.tell(Input::Pulled { digest: digest(), pull, verdict })
}

/// All states, as the honest or as a liar tells them.
fn states(forged: bool) -> Vec<State> {
    let forge = |chunk: ChunkIndex| State([100 + chunk.0 as u8; 32]);
    layout().chunks().map(|chunk| if forged && chunk.0 > 0 { forge(chunk) } else { state(chunk) }).collect()
}

fn convicted(out: &[Output]) -> Vec<PeerId> {
    let convicted = |order: &Output| {
        let Output::Report(super::super::Event::Convicted { peer, .. }) = order else { return None };
        Some(*peer)
    };
    out.iter().filter_map(convicted).collect()
}

#[test]
fn whoever_has_a_whole_chain_shows_its_end_before_it_is_believed() {
    let mut rig = Rig::new(Place::default());
    let asked = pulls(&offer(&mut rig, 1, states(false)));
    let [(pull, from, chunk)] = asked[..] else { panic!("more than the end was asked for: {asked:?}") };
    assert_eq!((from, chunk), (peer(1), layout().last()));
    assert!(pulls(&end(&mut rig, pull, Verdict::Good)).len() > 1, "then all the others are");
}

#[test]
fn whoever_signed_an_end_that_leads_elsewhere_is_caught_and_the_next_is_asked() {
    let mut rig = Rig::new(Place::default());
    let (pull, ..) = pulls(&offer(&mut rig, 1, states(true)))[0];
    let out = end(&mut rig, pull, Verdict::Corrupt);
    assert_eq!((convicted(&out), pulls(&out)), (vec![peer(1)], Vec::new()));
    assert_eq!(pulls(&offer(&mut rig, 1, states(true))), [], "nothing more is asked of it");
    let (pull, from, _) = pulls(&offer(&mut rig, 2, states(false)))[0];
    assert_eq!(from, peer(2));
    assert_eq!(convicted(&end(&mut rig, pull, Verdict::Good)), []);
}

#[test]
fn states_of_which_nobody_shows_the_end_are_never_believed() {
    let mut rig = Rig::new(Place::default());
    let (pull, ..) = pulls(&offer(&mut rig, 1, states(true)))[0];
    assert_eq!(pulls(&end(&mut rig, pull, Verdict::Missing)).len(), 1, "it is asked again");
    let asked: BTreeSet<ChunkIndex> = pulls(&rig.wait(Duration::from_secs(3))).iter().map(|pull| pull.2).collect();
    assert!(asked.iter().all(|chunk| *chunk == layout().last()), "{asked:?}");
}

#[test]
fn states_of_a_named_holder_take_the_place_of_those_that_nobody_stands_for() {
    let mut rig = Rig::new(Place::default());
    let streamed = |forged| states(forged)[..20].to_vec();
    assert_eq!(pulls(&offer(&mut rig, 1, streamed(true))), [], "nobody stands for these");
    assert!(!pulls(&rig.wait(Duration::from_millis(400))).is_empty(), "but nothing better came");
    for input in name(peer(2)) {
        rig.tell(input);
    }
    let out = offer(&mut rig, 2, streamed(false));
    assert!(out.iter().any(|order| matches!(order, Output::Discard { .. })), "{out:?}");
    assert!(pulls(&out).iter().any(|(_, from, _)| *from == peer(2)), "{out:?}");
    assert_eq!(convicted(&out), [], "that is no proof");
}

#[test]
fn the_last_states_of_a_stream_are_believed_before_anybody_has_the_last_chunk_to_show() {
    let mut rig = Rig::new(Place::default());
    name(peer(1)).into_iter().for_each(|input| drop(rig.tell(input)));
    rig.meet(1, Place::default(), ChunkSet::empty(layout().count()));
    let say = |rig: &mut Rig, from: usize, end: usize| {
        let (author, from, states) = (peer(1), ChunkIndex(from as u32), states(false)[from..end].to_vec());
        let segment = Segment { author, from, states, signature: Signature([0; 64]) };
        rig.hear(1, Message::Segment { digest: digest(), size: SIZE, segment: segment.into() });
    };
    say(&mut rig, 0, 31);
    say(&mut rig, 30, 40);
    let shown = ChunkIndex(35);
    let out = rig.hear(1, Message::Fresh { digest: digest(), chunks: vec![shown] });
    assert_eq!(pulls(&out).iter().map(|pull| pull.2).collect::<Vec<_>>(), [shown], "without any wait");
}

#[test]
fn an_author_whose_word_gave_way_to_a_better_one_is_not_heard_again_behind_others() {
    let mut rig = Rig::new(Place::default());
    name(peer(1)).into_iter().for_each(|input| drop(rig.tell(input)));
    let (peers, sources) = (Vec::new(), vec![peer(1), peer(4)]);
    rig.hear(3, Message::Joined { digest: digest(), peers, lease: None, served: true, sources });
    for from in [1, 2, 4] {
        rig.meet(from, Place::default(), ChunkSet::empty(layout().count()));
    }
    let mut discards = Vec::new();
    for _ in 0..3 {
        let mut out = Vec::new();
        // The second goes on from what the first says, and no tracker stands for it. The fourth contradicts both.
        for (author, from, states) in
            [(1, 0, &states(false)[..3]), (2, 2, &states(false)[2..20]), (4, 0, &states(true))]
        {
            let (author, states, signature) = (peer(author), states.to_vec(), Signature([0; 64]));
            let segment = Segment { author, from: ChunkIndex(from), states, signature };
            let message = Message::Segment { digest: digest(), size: SIZE, segment: segment.into() };
            out.extend(rig.tell(Input::Received { peer: author, message }));
        }
        discards.push(out.iter().filter(|order| matches!(order, Output::Discard { .. })).count());
    }
    assert_eq!(discards, [1, 0, 0]);
}
