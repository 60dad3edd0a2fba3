//! A lease that a tracker gives and takes.

use super::{
    rig::{Rig, layout},
    *,
};
use crate::wire::{Epoch, Grant, Scope};

fn joined(epoch: u64) -> Message {
    let lease = Some(Grant { epoch: Epoch(epoch), scope: Scope::Origin });
    Message::Joined { digest: digest(), peers: Vec::new(), lease, served: false, sources: Vec::new() }
}

fn revoked(epoch: u64) -> Message {
    Message::Revoked { digest: digest(), epoch: Epoch(epoch) }
}

/// A node that just began to stream under a lease, since nobody has the blob.
fn streaming() -> (Rig, RunId) {
    let mut rig = Rig::new(Place::default());
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    rig.tell(Input::Connected { peer: peer(3), place: Place::default() });
    rig.hear(3, joined(1));
    let out = rig.tell(Input::Holders { digest: digest(), holders: Vec::new() });
    let opened = |order: &Output| if let Output::PullOrigin { run, .. } = order { Some(*run) } else { None };
    let run = out.iter().find_map(opened).expect("a stream");
    (rig, run)
}

/// A node that streams under a lease, but got nothing for so long that it would go to the origin anyhow.
fn stalled() -> (Rig, RunId) {
    let mut rig = Rig::new(Place::default());
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    rig.tell(Input::Holders { digest: digest(), holders: Vec::new() });
    rig.tell(Input::Connected { peer: peer(3), place: Place::default() });
    rig.hear(3, joined(1));
    let mut run = None;
    for order in rig.wait(Limits::default().stall_timeout * 2) {
        if let Output::PullOrigin { run: opened, .. } = order {
            run = Some(opened);
        }
    }
    (rig, run.expect("a stream"))
}

/// The first chunk comes. Returns whether the stream goes on.
fn goes_on(rig: &mut Rig, run: RunId) -> bool {
    let (digest, chunk) = (digest(), ChunkIndex::FIRST);
    rig.tell(Input::OriginOpened { digest, run, size: SIZE });
    let end = Some(link_end(digest, layout(), chunk));
    let out = rig.tell(Input::OriginChunk { digest, run, chunk, end });
    !out.iter().any(|order| matches!(order, Output::StopOrigin { .. }))
}

#[test]
fn a_tracker_takes_back_once_what_nothing_else_helped_but_not_again() {
    let (mut rig, run) = stalled();
    rig.hear(3, revoked(1));
    assert!(!goes_on(&mut rig, run), "somebody else may do better");
    let (mut rig, run) = stalled();
    rig.hear(3, revoked(1));
    rig.hear(3, joined(2));
    rig.hear(3, revoked(2));
    assert!(goes_on(&mut rig, run));
}

#[test]
fn a_lease_that_was_given_back_is_not_taken_from_an_answer_that_comes_late() {
    let mut rig = Rig::new(Place::default());
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    rig.tell(Input::Connected { peer: peer(3), place: Place::default() });
    rig.hear(3, joined(1));
    rig.hear(3, revoked(1));
    assert_eq!(rig.hear(3, joined(1)), [], "nobody is told of a lease that is over");
    let out = rig.hear(3, joined(2));
    assert!(out.iter().any(|order| matches!(order, Output::Send { message: Message::Join(_), .. })), "{out:?}");
}

#[test]
fn a_holder_that_has_it_all_hears_of_what_it_showed_until_others_have_that() {
    let unsubscribes = |out: &[Output]| {
        out.iter().any(|order| matches!(order, Output::Send { message: Message::Unsubscribe { .. }, .. }))
    };
    let (mut rig, run) = stalled();
    rig.tell(Input::OriginOpened { digest: digest(), run, size: SIZE });
    for from in [1, 2] {
        rig.meet(from, Place::default(), ChunkSet::empty(layout().count()));
    }
    let mut out = Vec::new();
    for chunk in layout().chunks() {
        let end = Some(link_end(digest(), layout(), chunk));
        out.extend(rig.tell(Input::OriginChunk { digest: digest(), run, chunk, end }));
    }
    assert!(out.iter().any(|order| matches!(order, Output::Proven { .. })), "it has it all");
    assert!(!unsubscribes(&out), "the others have nothing of it yet");
    let out = rig.hear(1, Message::Got { digest: digest(), chunks: layout().chunks().collect() });
    assert!(unsubscribes(&out), "they have it: {out:?}");
}

#[test]
fn other_leases_are_drawn_to_a_node_only_once_its_stream_brought_a_chunk() {
    let (mut rig, run) = stalled();
    let other = Digest::sha256([8; 32]);
    rig.tell(Input::Wanted { digest: other, restored: None });
    rig.tell(Input::Holders { digest: other, holders: Vec::new() });
    let mut out = rig.tell(Input::Located { digest: other, trackers: vec![contact(3)], known: Vec::new() });
    let answer = Message::Joined { digest: other, peers: Vec::new(), lease: None, served: true, sources: Vec::new() };
    out.extend(rig.hear(3, answer.clone()));
    // It gets nothing, so that it soon tells its tracker how it stands.
    out.extend(rig.wait(Duration::from_millis(400)));
    rig.hear(3, answer);
    let burdens = |out: &[Output]| -> BTreeSet<u8> {
        let burden = |order: &Output| {
            let Output::Send { message: Message::Join(join), .. } = order else { return None };
            (join.digest == other).then_some(join.burden)
        };
        out.iter().filter_map(burden).collect()
    };
    assert_eq!(burdens(&out), BTreeSet::from([0]), "its link may be slow");
    assert!(goes_on(&mut rig, run));
    let out = rig.wait(Duration::from_millis(20));
    assert_eq!(burdens(&out), BTreeSet::from([1]), "the trackers hear of it at once");
}

#[test]
fn a_holder_reports_as_soon_as_its_first_chunk_is_here() {
    let (mut rig, run) = streaming();
    let reports = |out: &[Output]| {
        let report = |order: &&Output| matches!(order, Output::Send { message: Message::Join(join), .. } if join.lease.is_some());
        out.iter().filter(report).count()
    };
    assert_eq!(reports(&rig.wait(Duration::from_millis(20))), 0, "there is nothing to tell yet");
    assert!(goes_on(&mut rig, run));
    assert_eq!(reports(&rig.wait(Duration::from_millis(20))), 1, "the lease's trial begins then");
}

/// A node that only knows itself as a tracker, whose origin fails for good after `tried`. Returns what it then orders.
fn shut(tried: Duration) -> (Rig, Vec<Output>) {
    let (mut rig, run) = streaming();
    rig.wait(tried);
    let failure = Some(OriginFailure::Refused);
    let out = rig.tell(Input::OriginEnded { digest: digest(), run, failure });
    (rig, out)
}

fn looks(out: &[Output]) -> bool {
    out.iter().any(|order| matches!(order, Output::Locate { .. }))
}

fn fails(out: &[Output]) -> bool {
    out.iter().any(|order| matches!(order, Output::Failed { .. }))
}

#[test]
fn before_it_gives_up_it_asks_the_dht_whether_a_holder_came_meanwhile() {
    let (mut rig, out) = shut(Duration::from_secs(3));
    assert!(looks(&out) && !fails(&out), "the DHT's answer is old: {out:?}");
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    let out = rig.tell(Input::Holders { digest: digest(), holders: vec![contact(4)] });
    assert!(out.iter().any(|order| matches!(order, Output::Dial { contact: dialled } if *dialled == contact(4))));
    let none = Message::Joined { digest: digest(), peers: Vec::new(), lease: None, served: false, sources: Vec::new() };
    assert!(!fails(&rig.hear(3, none)), "the holder is being dialled");
    let out = rig.meet(4, Place::default(), ChunkSet::full(layout().count()));
    let asks = |order: &Output| matches!(order, Output::Send { peer: to, message: Message::Subscribe { .. } } if *to == peer(4));
    assert!(!fails(&out) && out.iter().any(asks), "{out:?}");
}

#[test]
fn it_gives_up_once_the_dht_knows_nobody_either_and_at_once_if_it_said_so_just_now() {
    let (_, out) = shut(Duration::from_millis(500));
    assert!(fails(&out) && !looks(&out), "{out:?}");
    let (mut rig, _) = shut(Duration::from_secs(3));
    rig.tell(Input::Located { digest: digest(), trackers: vec![contact(3)], known: Vec::new() });
    assert!(
        !fails(&rig.tell(Input::Holders { digest: digest(), holders: Vec::new() })),
        "the tracker may name somebody"
    );
    let none = Message::Joined { digest: digest(), peers: Vec::new(), lease: None, served: false, sources: Vec::new() };
    let out = rig.hear(3, none);
    assert!(fails(&out) && !looks(&out), "{out:?}");
    let (mut rig, _) = shut(Duration::from_secs(3));
    assert!(fails(&rig.wait(Limits::default().stall_timeout * 2)), "a DHT that is silent holds nobody up for ever");
}
