#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, SocketAddr};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    chain::State,
    chunk::Layout,
    claim::Signature,
    digest::{Algorithm, Digest},
    peer::PeerId,
};

fn digest() -> impl Strategy<Value = Digest> {
    prop_oneof![
        any::<[u8; 32]>().prop_map(Digest::sha256),
        vec(any::<u8>(), 64).prop_map(|bytes| Digest::sha512(bytes.try_into().unwrap()))
    ]
}

fn contact() -> impl Strategy<Value = Contact> {
    (any::<[u8; 32]>(), any::<IpAddr>(), any::<u16>())
        .prop_map(|(peer, ip, port)| Contact { peer: PeerId(peer), address: SocketAddr::new(ip, port) })
}

fn chunk() -> impl Strategy<Value = ChunkIndex> {
    (0..65_536_u32).prop_map(ChunkIndex)
}

/// Sizes of blobs of one chunk, of few, and of as many as there can be.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..Layout::CHUNK_BYTES_MIN,
        0..64 * Layout::CHUNK_BYTES_MIN,
        0..=Layout::SIZE_MAX,
        Just(Layout::SIZE_MAX)
    ]
}

fn have() -> impl Strategy<Value = Message> {
    (digest(), size(), vec(any::<u32>(), 0..40), any::<bool>()).prop_map(|(digest, size, members, full)| {
        let count = Layout::new(size).unwrap().count();
        let mut chunks = if full { ChunkSet::full(count) } else { ChunkSet::empty(count) };
        for member in members {
            chunks.insert(ChunkIndex(member % count));
        }
        Message::Have { digest, size, chunks }
    })
}

fn segment() -> impl Strategy<Value = Message> {
    (digest(), size(), any::<[u8; 32]>(), any::<u8>(), any::<prop::sample::Index>(), any::<prop::sample::Index>())
        .prop_map(|(digest, size, author, seed, length, from)| {
            let count = Layout::new(size).unwrap().count() as usize;
            let most = count.min(SEGMENT_STATES_MAX);
            let least = count.min(2);
            let length = least + length.index(most - least + 1);
            let from = ChunkIndex(from.index(count - length + 1) as u32);
            let states = (0..length).map(|at| State([seed.wrapping_add(at as u8); 32])).collect();
            let segment = Segment { author: PeerId(author), from, states, signature: Signature([seed; 64]) };
            Message::Segment { digest, size, segment: Arc::new(segment) }
        })
}

fn place() -> impl Strategy<Value = Place> {
    (any::<u32>(), any::<u32>()).prop_map(|(zone, rack)| Place { zone, rack })
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Origin), Just(Scope::Zone)]
}

fn join() -> impl Strategy<Value = Message> {
    let standing =
        prop_oneof![Just(Standing::Fetching), Just(Standing::Starved), Just(Standing::Complete), Just(Standing::Shut)];
    let held = (epoch(), scope(), any::<u64>(), any::<u32>(), any::<u8>())
        .prop_map(|(epoch, scope, bytes, left, streams)| Held { epoch, scope, bytes, left, streams });
    let accused = proptest::option::of(peer());
    (digest(), 0..=65_536_u32, standing, place(), proptest::option::of(held), accused, any::<u8>()).prop_map(
        |(digest, have, standing, place, lease, accused, burden)| {
            Message::Join(Join { digest, have, standing, place, lease, accused, burden })
        },
    )
}

fn peer() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(PeerId)
}

fn ends() -> impl Strategy<Value = Ends> {
    let state = || any::<[u8; 32]>().prop_map(State);
    (state(), proptest::option::of(state())).prop_map(|(before, after)| Ends { before, after })
}

fn joined() -> impl Strategy<Value = Message> {
    let grant = (epoch(), scope()).prop_map(|(epoch, scope)| Grant { epoch, scope });
    let sources = vec(peer(), 0..=SOURCES_MAX);
    (digest(), contacts(), proptest::option::of(grant), any::<bool>(), sources)
        .prop_map(|(digest, peers, lease, served, sources)| Message::Joined { digest, peers, lease, served, sources })
}

fn tag_word() -> impl Strategy<Value = TagWord> {
    let record = || {
        let record = (vec(any::<u8>(), 0..=tags::RECORD_BYTES_MAX), peer(), any::<u8>());
        record.prop_map(|(body, resolver, seed)| {
            Arc::new(tags::Record { body, resolver, signature: Signature([seed; 64]) })
        })
    };
    let age = || any::<u32>().prop_map(Age);
    prop_oneof![
        age().prop_map(|believed| TagWord::Wanted { believed }),
        Just(TagWord::Duty),
        Just(TagWord::Pending),
        (record(), age()).prop_map(|(record, age)| TagWord::Record { record, age }),
        (record(), age()).prop_map(|(record, age)| TagWord::Resolved { record, age }),
        Just(TagWord::Dropped),
    ]
}

fn contacts() -> impl Strategy<Value = Vec<Contact>> {
    vec(contact(), 0..=CONTACTS_MAX)
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        join(),
        joined(),
        (digest(), epoch()).prop_map(|(digest, epoch)| Message::Revoked { digest, epoch }),
        digest().prop_map(|digest| Message::Leave { digest }),
        (digest(), chunk()).prop_map(|(digest, frontier)| Message::Subscribe { digest, frontier }),
        digest().prop_map(|digest| Message::Unsubscribe { digest }),
        have(),
        (digest(), vec(chunk(), 0..=GOT_CHUNKS_MAX)).prop_map(|(digest, chunks)| Message::Got { digest, chunks }),
        (digest(), vec(chunk(), 0..=GOT_CHUNKS_MAX)).prop_map(|(digest, chunks)| Message::Fresh { digest, chunks }),
        segment(),
        digest().prop_map(|digest| Message::Unknown { digest }),
        (digest(), contacts()).prop_map(|(digest, peers)| Message::Peers { digest, peers }),
        (digest(), any::<[u8; 32]>()).prop_map(|(digest, proof)| Message::Entitled { digest, proof }),
        (digest(), tag_word()).prop_map(|(key, word)| Message::Tag { key, word }),
    ]
}

fn body(frame: &[u8]) -> &[u8] {
    let (body, rest) = split_frame(frame).unwrap().unwrap();
    assert!(rest.is_empty());
    body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_message_survives_its_frame(message in message()) {
        let frame = encode_message(&message);
        prop_assert_eq!(decode_message(body(&frame)), Ok(message));
    }

    #[test]
    fn hello_and_ask_survive_their_frames(proof in any::<[u8; 32]>(), place in place(), digest in digest(), chunk in chunk(), ends in ends()) {
        let hello = Hello { version: VERSION, proof, place };
        prop_assert_eq!(decode_hello(body(&encode_hello(&hello))), Ok(hello));
        let ask = Ask { digest, chunk, ends };
        prop_assert_eq!(decode_ask(body(&encode_ask(&ask))), Ok(ask));
    }

    #[test]
    fn frames_come_apart_wherever_the_stream_is_cut(first in message(), second in message(), cut in any::<prop::sample::Index>()) {
        let mut stream = encode_message(&first);
        let border = stream.len();
        stream.extend(encode_message(&second));
        let cut = cut.index(stream.len());
        match split_frame(&stream[..cut]).unwrap() {
            None => prop_assert!(cut < border),
            Some((body, rest)) => {
                prop_assert_eq!(decode_message(body), Ok(first));
                prop_assert_eq!(rest, &stream[border..cut]);
            }
        }
    }

    #[test]
    fn every_cut_body_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        let frame = encode_message(&message);
        let body = body(&frame);
        let cut = cut.index(body.len());
        let refusal = if cut == 0 { WireError::Length(0) } else { WireError::Truncated };
        prop_assert_eq!(decode_message(&body[..cut]), Err(refusal));
    }

    #[test]
    fn bytes_behind_a_message_are_refused(message in message(), extra in 1..5_usize) {
        let frame = encode_message(&message);
        let mut longer = body(&frame).to_vec();
        longer.resize(longer.len() + extra, 0);
        prop_assert_eq!(decode_message(&longer), Err(WireError::Trailing(extra)));
    }

    #[test]
    fn noise_never_yields_a_message_beyond_the_limits(noise in vec(any::<u8>(), 1..600), kind in 0..12_u8) {
        let mut body = noise;
        body[0] = kind;
        if let Ok(message) = decode_message(&body) {
            // `encode_message` asserts the limits.
            prop_assert_eq!(decode_message(self::body(&encode_message(&message))), Ok(message));
        }
    }
}

fn sha256(seed: u8) -> Digest {
    Digest::sha256([seed; 32])
}

fn contact_at(address: &str) -> Contact {
    Contact { peer: PeerId([0xcc; 32]), address: address.parse().unwrap() }
}

fn tag_record(bytes: usize) -> Arc<tags::Record> {
    let (body, resolver) = (vec![0x66; bytes], PeerId([0xdd; 32]));
    Arc::new(tags::Record { body, resolver, signature: Signature([0xee; 64]) })
}

/// One message of each kind, small.
fn samples() -> Vec<Message> {
    let digest = sha256(0xaa);
    let mut chunks = ChunkSet::empty(11);
    chunks.insert(ChunkIndex(0));
    chunks.insert(ChunkIndex(10));
    let size = 10 * Layout::CHUNK_BYTES_MIN + 1;
    vec![
        Message::Join(Join {
            digest,
            have: 300,
            standing: Standing::Starved,
            place: Place { zone: 0x0403_0201, rack: 9 },
            lease: Some(Held { epoch: Epoch(7), scope: Scope::Zone, bytes: 1 << 40, left: 3, streams: 2 }),
            accused: Some(PeerId([0xdd; 32])),
            burden: 4,
        }),
        Message::Joined {
            digest,
            peers: vec![contact_at("10.0.0.1:5051"), contact_at("[fd00::1]:5051")],
            lease: Some(Grant { epoch: Epoch(7), scope: Scope::Origin }),
            served: true,
            sources: vec![PeerId([0xdd; 32])],
        },
        Message::Revoked { digest, epoch: Epoch(7) },
        Message::Leave { digest: Digest::sha512([0xbb; 64]) },
        Message::Subscribe { digest, frontier: ChunkIndex(5) },
        Message::Unsubscribe { digest },
        Message::Have { digest, size, chunks },
        Message::Got { digest, chunks: vec![ChunkIndex(1), ChunkIndex(65_535)] },
        Message::Segment {
            digest,
            size,
            segment: Arc::new(Segment {
                author: PeerId([0xdd; 32]),
                from: ChunkIndex(9),
                states: vec![State([0x11; 32]), State([0x22; 32])],
                signature: Signature([0xee; 64]),
            }),
        },
        Message::Unknown { digest },
        Message::Peers { digest, peers: vec![contact_at("10.0.0.1:5051")] },
        Message::Fresh { digest, chunks: vec![ChunkIndex(1), ChunkIndex(65_535)] },
        Message::Entitled { digest, proof: [0x77; 32] },
        Message::Tag { key: digest, word: TagWord::Wanted { believed: Age(30_000) } },
        Message::Tag { key: digest, word: TagWord::Duty },
        Message::Tag { key: digest, word: TagWord::Pending },
        Message::Tag { key: digest, word: TagWord::Record { record: tag_record(2), age: Age(7) } },
        Message::Tag { key: digest, word: TagWord::Resolved { record: tag_record(1), age: Age(7) } },
        Message::Tag { key: digest, word: TagWord::Dropped },
    ]
}

#[test]
fn no_single_changed_byte_breaks_the_decoder() {
    for message in samples() {
        let frame = encode_message(&message);
        for at in 0..body(&frame).len() {
            for flip in 1..=255 {
                let mut bytes = body(&frame).to_vec();
                bytes[at] ^= flip;
                if let Ok(other) = decode_message(&bytes) {
                    // A changed message is fine; one that cannot be sent on is not (`encode_message` asserts it).
                    assert!(!encode_message(&other).is_empty());
                }
            }
        }
    }
}

#[test]
fn a_frame_length_is_checked_before_its_body_comes() {
    for length in [0, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        assert_eq!(split_frame(&length.to_le_bytes()), Err(WireError::Length(length as usize)));
    }
    assert_eq!(body_bytes((FRAME_BYTES_MAX as u32).to_le_bytes()), Ok(FRAME_BYTES_MAX));
    assert_eq!(split_frame(&[1, 0, 0]), Ok(None));
    assert_eq!(decode_message(&vec![0; FRAME_BYTES_MAX + 1]), Err(WireError::Length(FRAME_BYTES_MAX + 1)));
}

#[test]
fn huge_counts_are_refused_before_they_cost_memory() {
    let kind_and_digest = |kind: u8| {
        let mut body = vec![kind, 0];
        body.extend([0xaa; 32]);
        body
    };
    // 253 introduces a u64 in bincode's variable-length integers.
    for count in [1 << 20, 1 << 32, u64::MAX] {
        for kind in [1, 7, 10, 11] {
            let mut body = kind_and_digest(kind);
            body.push(253);
            body.extend(count.to_le_bytes());
            assert_eq!(decode_message(&body), Err(WireError::Oversized), "kind {kind}, count {count}");
        }
    }
    let mut have = kind_and_digest(6);
    have.extend([0, 252]);
    have.extend(u32::MAX.to_le_bytes());
    assert_eq!(decode_message(&have), Err(WireError::Limit("chunk set of more chunks than any blob has")));
}

/// Like [`encode_message`], for messages that a sound node does not send.
fn decode_unsound(message: &Message) -> Result<Message, WireError> {
    let bytes = bincode::encode_to_vec(message, bincode::config::standard()).unwrap();
    decode_message(&bytes)
}

fn limit(message: &Message) -> &'static str {
    match decode_unsound(message) {
        Err(WireError::Limit(limit)) => limit,
        other => panic!("{message:?} gives {other:?}"),
    }
}

#[test]
fn counts_and_places_beyond_the_limits_are_refused() {
    let digest = sha256(1);
    let segment = |size, from, states| Message::Segment {
        digest,
        size,
        segment: Arc::new(Segment {
            author: PeerId([0; 32]),
            from: ChunkIndex(from),
            states: vec![State([0; 32]); states],
            signature: Signature([0; 64]),
        }),
    };
    let two_chunks = 2 * Layout::CHUNK_BYTES_MIN;
    let beyond = Layout::SIZE_MAX + 1;
    let have = |size, count| Message::Have { digest, size, chunks: ChunkSet::empty(count) };
    let subscribe = |at| Message::Subscribe { digest, frontier: ChunkIndex(at) };
    let join = |have| {
        let (standing, place) = (Standing::Complete, Place::default());
        Message::Join(Join { digest, have, standing, place, lease: None, accused: None, burden: 0 })
    };
    let joined = |peers, sources| {
        let sources = vec![PeerId([0; 32]); sources];
        Message::Joined { digest, peers, lease: None, served: false, sources }
    };
    let tag = |bytes| {
        let word = TagWord::Resolved { record: tag_record(bytes), age: Age(0) };
        Message::Tag { key: digest, word }
    };
    let many = || vec![contact_at("1.2.3.4:5"); CONTACTS_MAX + 1];
    for (message, expected) in [
        (joined(many(), 0), "too many contacts"),
        (joined(Vec::new(), SOURCES_MAX + 1), "too many holders"),
        (Message::Peers { digest, peers: many() }, "too many contacts"),
        (Message::Fresh { digest, chunks: vec![ChunkIndex(0); GOT_CHUNKS_MAX + 1] }, "too many chunks"),
        (Message::Got { digest, chunks: vec![ChunkIndex(0); GOT_CHUNKS_MAX + 1] }, "too many chunks"),
        (Message::Got { digest, chunks: vec![ChunkIndex(u32::MAX)] }, "chunk index beyond any blob"),
        (subscribe(65_536), "chunk index beyond any blob"),
        (join(65_537), "more chunks than the largest blob has"),
        (have(two_chunks, 1), "the chunk set does not fit the blob's size"),
        (have(two_chunks, 3), "the chunk set does not fit the blob's size"),
        (have(beyond, 1), "blob larger than any"),
        (segment(beyond, 0, 2), "blob larger than any"),
        (segment(u64::MAX, 0, 2), "blob larger than any"),
        (segment(Layout::SIZE_MAX, 0, SEGMENT_STATES_MAX + 1), "too many states"),
        (segment(two_chunks, 0, 0), "too few states"),
        (segment(two_chunks, 0, 1), "too few states"),
        (segment(two_chunks, 1, 2), "the states leave the blob"),
        (segment(1, 0, 2), "the states leave the blob"),
        (tag(tags::RECORD_BYTES_MAX + 1), "too large a record of a tag"),
    ] {
        assert_eq!(limit(&message), expected);
    }
    for sound in [segment(two_chunks, 0, 2), segment(1, 0, 1), have(two_chunks, 2), subscribe(65_535), join(65_536)] {
        assert_eq!(decode_unsound(&sound), Ok(sound));
    }
}

#[test]
fn unknown_kinds_algorithms_and_answers_are_refused() {
    assert!(matches!(decode_message(&[14]), Err(WireError::Malformed(_))));
    let mut leave = vec![3, 2];
    leave.extend([0; 64]);
    assert_eq!(decode_message(&leave), Err(WireError::Limit("unknown digest algorithm")));
    let known: Vec<_> = (0..=255).filter_map(Answer::from_byte).collect();
    assert_eq!(known, [Answer::Bytes, Answer::Busy, Answer::Missing]);
    assert!(known.iter().all(|answer| Answer::from_byte(answer.to_byte()) == Some(*answer)));
}

#[test]
fn a_hello_of_another_version_is_named_as_such_whatever_follows() {
    assert_eq!(decode_hello(&[1]), Err(WireError::Version(1)));
    let hello = Hello { version: 77, proof: [0; 32], place: Place::default() };
    assert_eq!(decode_hello(body(&encode_hello(&hello))), Err(WireError::Version(77)));
    assert_eq!(decode_hello(&[VERSION as u8]), Err(WireError::Truncated));
}

#[test]
fn the_largest_messages_fit_into_a_frame() {
    let digest = Digest::of(Algorithm::Sha512, b"");
    let size = Layout::SIZE_MAX;
    let count = Layout::new(size).unwrap().count();
    let states = vec![State([0xff; 32]); SEGMENT_STATES_MAX];
    let segment = Segment {
        author: PeerId([0xff; 32]),
        from: ChunkIndex(count - SEGMENT_STATES_MAX as u32),
        states,
        signature: Signature([0xff; 64]),
    };
    for message in [
        Message::Have { digest, size, chunks: ChunkSet::full(count) },
        Message::Got { digest, chunks: vec![ChunkIndex(count - 1); GOT_CHUNKS_MAX] },
        Message::Joined {
            digest,
            peers: vec![contact_at("[ff::ff]:65535"); CONTACTS_MAX],
            lease: None,
            served: true,
            sources: vec![PeerId([0xff; 32]); SOURCES_MAX],
        },
        Message::Segment { digest, size, segment: Arc::new(segment) },
        Message::Peers { digest, peers: vec![contact_at("[ff::ff]:65535"); CONTACTS_MAX] },
    ] {
        assert_eq!(decode_message(body(&encode_message(&message))), Ok(message));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A change of these strings is a change of the protocol: it needs a new [`VERSION`].
#[test]
fn the_encoding_stays_as_it_is() {
    let aa = "aa".repeat(32);
    let (cc, dd) = ("cc".repeat(32), "dd".repeat(32));
    let (one, two, ee) = ("11".repeat(32), "22".repeat(32), "ee".repeat(64));
    let ipv6 = format!("fd{}01", "00".repeat(14));
    let golden = [
        format!("0000{aa}fb2c0101fc0102030409010701fd0000000000010000030201{dd}04"),
        format!("0100{aa}02{cc}000a000001fbbb13{cc}01{ipv6}fbbb130107000101{dd}"),
        format!("0200{aa}07"),
        format!("0301{}", "bb".repeat(64)),
        format!("0400{aa}05"),
        format!("0500{aa}"),
        format!("0600{aa}fc010028000b0104"),
        format!("0700{aa}0201fbffff"),
        format!("0800{aa}fc01002800{}0902{one}{two}{ee}", "dd".repeat(32)),
        format!("0900{aa}"),
        format!("0a00{aa}01{cc}000a000001fbbb13"),
        format!("0b00{aa}0201fbffff"),
        format!("0c00{aa}{}", "77".repeat(32)),
        format!("0d00{aa}00fb3075"),
        format!("0d00{aa}01"),
        format!("0d00{aa}02"),
        format!("0d00{aa}03026666{dd}{ee}07"),
        format!("0d00{aa}040166{dd}{ee}07"),
        format!("0d00{aa}05"),
    ];
    assert_eq!(golden.len(), samples().len());
    for (message, golden) in samples().iter().zip(golden) {
        assert_eq!(hex(body(&encode_message(message))), golden, "{message:?}");
    }
    let hello = Hello { version: VERSION, proof: [0x55; 32], place: Place { zone: 0x0403_0201, rack: 9 } };
    assert_eq!(hex(&encode_hello(&hello)), format!("2700000004{}fc0102030409", "55".repeat(32)));
    let ends = Ends { before: State([0x11; 32]), after: Some(State([0x22; 32])) };
    let ask = Ask { digest: sha256(0xaa), chunk: ChunkIndex(251), ends };
    assert_eq!(hex(&encode_ask(&ask)), format!("6500000000{aa}fbfb00{one}01{two}"));
}
