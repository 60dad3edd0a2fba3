//! Whose states are believed, and who is caught.

use super::*;

/// One machine, and its orders.
struct Rig {
    swarm: Swarm,
    now: Time,
}

impl Rig {
    fn new() -> Self {
        let swarm = Swarm::new(peer(9), Place::default(), Limits::default(), 1);
        let mut rig = Self { swarm, now: Time::ZERO };
        rig.tell(Input::Wanted { digest: digest(), restored: None });
        rig
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.swarm.handle(self.now, input, &mut out);
        out
    }

    fn wait(&mut self, time: Duration) -> Vec<Output> {
        let (end, mut out) = (self.now + time, Vec::new());
        while let Some(due) = self.swarm.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            out.extend(self.tell(Input::Elapsed));
        }
        self.now = end;
        out
    }

    /// A peer connects, subscribes, has everything as it says, and tells states.
    fn offer(&mut self, from: usize, states: Vec<State>) -> Vec<Output> {
        let (digest, size) = (digest(), SIZE);
        let segment = Segment { author: peer(from), from: ChunkIndex::FIRST, states, signature: Signature([0; 64]) };
        let chunks = ChunkSet::full(layout().count());
        let mut out = self.tell(Input::Connected { peer: peer(from), place: Place::default() });
        for message in [
            Message::Subscribe { digest, frontier: ChunkIndex::FIRST },
            Message::Have { digest, size, chunks },
            Message::Segment { digest, size, segment: segment.into() },
        ] {
            out.extend(self.tell(Input::Received { peer: peer(from), message }));
        }
        out
    }

    fn end(&mut self, pull: PullId, verdict: Verdict) -> Vec<Output> {
        self.tell(Input::Pulled { digest: digest(), pull, verdict })
    }
}

fn layout() -> Layout {
    Layout::new(SIZE).expect("small")
}

/// All states, as the honest or as a liar tells them.
fn states(forged: bool) -> Vec<State> {
    let forge = |chunk: ChunkIndex| State([100 + chunk.0 as u8; 32]);
    layout().chunks().map(|chunk| if forged && chunk.0 > 0 { forge(chunk) } else { state(chunk) }).collect()
}

fn pulls(out: &[Output]) -> Vec<(PullId, PeerId, ChunkIndex)> {
    let pull = |order: &Output| {
        let Output::Pull { pull, peer, chunk, .. } = order else { return None };
        Some((*pull, *peer, *chunk))
    };
    out.iter().filter_map(pull).collect()
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
    let mut rig = Rig::new();
    let asked = pulls(&rig.offer(1, states(false)));
    let [(pull, from, chunk)] = asked[..] else { panic!("more than the end was asked for: {asked:?}") };
    assert_eq!((from, chunk), (peer(1), layout().last()));
    assert!(pulls(&rig.end(pull, Verdict::Good)).len() > 1, "then all the others are");
}

#[test]
fn whoever_signed_an_end_that_leads_elsewhere_is_caught_and_the_next_is_asked() {
    let mut rig = Rig::new();
    let (pull, ..) = pulls(&rig.offer(1, states(true)))[0];
    let out = rig.end(pull, Verdict::Corrupt);
    assert_eq!((convicted(&out), pulls(&out)), (vec![peer(1)], Vec::new()));
    assert_eq!(pulls(&rig.offer(1, states(true))), [], "nothing more is asked of it");
    let (pull, from, _) = pulls(&rig.offer(2, states(false)))[0];
    assert_eq!(from, peer(2));
    assert_eq!(convicted(&rig.end(pull, Verdict::Good)), []);
}

#[test]
fn states_of_which_nobody_shows_the_end_are_never_believed() {
    let mut rig = Rig::new();
    let (pull, ..) = pulls(&rig.offer(1, states(true)))[0];
    assert_eq!(pulls(&rig.end(pull, Verdict::Missing)).len(), 1, "it is asked again");
    let asked: BTreeSet<ChunkIndex> = pulls(&rig.wait(Duration::from_secs(3))).iter().map(|pull| pull.2).collect();
    assert!(asked.iter().all(|chunk| *chunk == layout().last()), "{asked:?}");
}

#[test]
fn states_of_a_named_holder_take_the_place_of_those_that_nobody_stands_for() {
    let mut rig = Rig::new();
    let streamed = |forged| states(forged)[..20].to_vec();
    assert_eq!(pulls(&rig.offer(1, streamed(true))), [], "nobody stands for these");
    assert!(!pulls(&rig.wait(Duration::from_millis(400))).is_empty(), "but nothing better came");
    for input in name(peer(2)) {
        rig.tell(input);
    }
    let out = rig.offer(2, streamed(false));
    assert!(out.iter().any(|order| matches!(order, Output::Discard { .. })), "{out:?}");
    assert!(pulls(&out).iter().any(|(_, from, _)| *from == peer(2)), "{out:?}");
    assert_eq!(convicted(&out), [], "that is no proof");
}
