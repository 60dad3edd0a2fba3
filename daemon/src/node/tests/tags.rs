//! Words about tags from peers that keep no rule.

use shoal_proto::{
    tags::Record,
    wire::{Age, Message, TagWord},
};

use super::*;
use crate::node::tags::TagCommand;

const KEY: Digest = Digest::sha256([9; 32]);
const TTL: Age = Age(30_000);

/// A record of this body, signed for this key.
fn record(identity: &Identity, key: &Digest) -> Arc<Record> {
    let body = b"body".to_vec();
    let signature = identity.sign(&Record::signed_bytes(key, &body));
    Arc::new(Record { body, resolver: identity.peer(), signature })
}

impl World {
    fn said(&mut self, peer: PeerId, word: TagWord) {
        self.driver.event(PlaneEvent::Message { peer, message: Message::Tag { key: KEY, word } });
    }

    /// This node asks a tracker.
    fn ask_about_tag(&mut self, tracker: PeerId) -> mpsc::Receiver<TagWord> {
        let (words, heard) = mpsc::channel(4);
        let tracker = Contact { peer: tracker, address: (Ipv4Addr::LOCALHOST, 1).into() };
        self.driver.command(Command::Tag(TagCommand::Ask { key: KEY, tracker, believed: TTL, words }));
        heard
    }
}

#[tokio::test]
async fn a_record_that_its_resolver_did_not_sign_for_this_tag_goes_to_nobody() {
    let (holder, other) = (Identity::generate(), Identity::generate());
    let forged = |change: fn(&mut Record)| {
        let mut record = Record::clone(&record(&holder, &KEY));
        change(&mut record);
        Arc::new(record)
    };
    for bad in [
        record(&holder, &Digest::sha256([8; 32])),
        record(&other, &KEY),
        forged(|record| record.body.push(0)),
        forged(|record| record.signature.0[0] ^= 1),
        forged(|record| record.resolver = PeerId([0xff; 32])),
    ] {
        let mut world = world().await;
        let me = world.driver.me;
        world.said(holder.peer(), TagWord::Wanted { believed: TTL });
        let mut heard = world.ask_about_tag(me);
        assert_eq!(heard.try_recv(), Ok(TagWord::Pending));
        world.said(holder.peer(), TagWord::Resolved { record: bad, age: Age(0) });
        assert_eq!(heard.try_recv(), Ok(TagWord::Duty), "the next one's turn");
    }
}

#[tokio::test]
async fn a_good_record_reaches_whoever_waits_and_one_of_a_stranger_does_not() {
    let (holder, stranger) = (Identity::generate(), Identity::generate());
    let mut world = world().await;
    let me = world.driver.me;
    world.said(holder.peer(), TagWord::Wanted { believed: TTL });
    let mut heard = world.ask_about_tag(me);
    assert_eq!(heard.try_recv(), Ok(TagWord::Pending));
    world.said(stranger.peer(), TagWord::Resolved { record: record(&stranger, &KEY), age: Age(0) });
    world.said(stranger.peer(), TagWord::Record { record: record(&stranger, &KEY), age: Age(0) });
    assert!(heard.try_recv().is_err(), "nobody asked it");
    let good = record(&holder, &KEY);
    world.said(holder.peer(), TagWord::Resolved { record: Arc::clone(&good), age: Age(5) });
    assert_eq!(heard.try_recv(), Ok(TagWord::Record { record: good, age: Age(5) }));
}

#[tokio::test]
async fn a_duty_that_nobody_here_waits_for_is_given_back() {
    let (first, mut world) = (Identity::generate(), world().await);
    let me = world.driver.me;
    world.said(first.peer(), TagWord::Wanted { believed: TTL });
    drop(world.ask_about_tag(me));
    world.said(first.peer(), TagWord::Dropped);
    // Given to this node, given back, and nobody else waits: the next one who asks has it.
    let mut heard = world.ask_about_tag(me);
    assert_eq!(heard.try_recv(), Ok(TagWord::Duty));
}

#[tokio::test]
async fn whoever_waits_for_a_tracker_that_cannot_be_reached_hears_of_it_at_once() {
    let mut world = world().await;
    let tracker = PeerId([3; 32]);
    let mut heard = world.ask_about_tag(tracker);
    world.driver.event(PlaneEvent::DialFailed { peer: tracker });
    assert_eq!(heard.recv().await, None);
}
