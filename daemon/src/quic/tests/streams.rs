//! Requests for chunks and their answers.

use shoal_proto::{units::Rate, wire::Answer};

use super::*;
use crate::{
    quic::{PullError, ReplyError},
    rate::Bucket,
};

const CHUNK: usize = 3 * 1024 * 1024 + 17;

/// Starts a pull of `expected` bytes by `a` and hands out the request as `b` sees it.
async fn start_pull(
    a: &Node,
    b: &mut Node,
    expected: usize,
    deadline: Duration,
) -> (tokio::task::JoinHandle<Result<Vec<Bytes>, PullError>>, Reply) {
    let (plane, from) = (a.plane.clone(), b.peer);
    let pull = tokio::spawn(async move { plane.pull(from, ask(5), expected as u64, deadline).await });
    let (peer, asked, reply) = b.asked().await;
    assert_eq!((peer, asked), (a.peer, ask(5)));
    (pull, reply)
}

#[tokio::test]
async fn a_pull_brings_the_bytes_that_were_sent() {
    let (a, mut b) = pair().await;
    let chunk = pattern(CHUNK);
    let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
    let (head, tail) = (chunk.slice(..1_000_000), chunk.slice(1_000_000..));
    reply.send(vec![head, Bytes::new(), tail]).await.unwrap();
    assert!(join(&pull.await.unwrap().unwrap()) == chunk);
}

#[tokio::test]
async fn both_ends_of_a_connection_can_pull_many_chunks_at_once() {
    let (a, b) = pair().await;
    let chunk = pattern(300_000);
    let mut pulls = tokio::task::JoinSet::new();
    for (from, to) in [(&a, b.peer), (&b, a.peer)] {
        for number in 0..200 {
            let plane = from.plane.clone();
            pulls.spawn(
                async move { (number, plane.pull(to, ask(number), 300_000 - u64::from(number), PATIENCE).await) },
            );
        }
    }
    for mut node in [a, b] {
        let chunk = chunk.clone();
        tokio::spawn(async move {
            loop {
                let (_, ask, reply) = node.asked().await;
                let chunk = chunk.slice(ask.chunk.0 as usize..);
                tokio::spawn(async move { reply.send(vec![chunk]).await.unwrap() });
            }
        });
    }
    while let Some(done) = pulls.join_next().await {
        let (number, frames) = done.unwrap();
        assert!(join(&frames.unwrap()) == chunk[number as usize..], "chunk {number}");
    }
}

#[tokio::test]
async fn bytes_are_the_same_under_caps() {
    let secret = Secret::none();
    let cap = Some(Rate(50_000_000));
    let mut a = Node::start(DataPlaneConfig { download: Bucket::optional(cap), ..config(&secret) });
    let mut b = Node::start(DataPlaneConfig { upload: cap, ..config(&secret) });
    connect(&mut a, &mut b).await;
    let chunk = pattern(CHUNK);
    let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
    reply.send(vec![chunk.slice(..9), chunk.slice(9..)]).await.unwrap();
    assert!(join(&pull.await.unwrap().unwrap()) == chunk);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let (a, mut b) = pair().await;
    for (answer, error) in [(Answer::Busy, PullError::Busy), (Answer::Missing, PullError::Missing)] {
        let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
        reply.refuse(answer);
        assert_eq!(pull.await.unwrap(), Err(error));
    }
}

#[tokio::test]
async fn answers_of_the_wrong_length_are_a_broken_link() {
    let (a, mut b) = pair().await;
    for length in [0, 99_999, 100_001, 10_000_000] {
        let (pull, reply) = start_pull(&a, &mut b, 100_000, PATIENCE).await;
        // The reader may give up before the writer is done.
        reply.send(vec![pattern(length)]).await.ok();
        assert_eq!(pull.await.unwrap(), Err(PullError::Link), "{length} bytes");
    }
}

#[tokio::test]
async fn a_request_dropped_unanswered_is_a_broken_link() {
    let (a, mut b) = pair().await;
    let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
    drop(reply);
    assert_eq!(pull.await.unwrap(), Err(PullError::Link));
}

#[tokio::test]
async fn an_answer_broken_off_is_a_broken_link() {
    let (a, mut b) = pair().await;
    let (pull, reply) = start_pull(&a, &mut b, 64 << 20, PATIENCE).await;
    let sending = tokio::spawn(reply.send(vec![Bytes::from(vec![1; 1 << 20]); 1 << 20]));
    until("bytes arrive", || a.plane.connected().first().is_some_and(|peer| peer.bytes_in > 4 << 20)).await;
    sending.abort();
    assert_eq!(pull.await.unwrap(), Err(PullError::Link));
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_a_broken_link() {
    let (a, mut b) = pair().await;
    let (pull, _reply) = start_pull(&a, &mut b, CHUNK, Duration::from_millis(50)).await;
    assert_eq!(pull.await.unwrap(), Err(PullError::Link));
}

#[tokio::test]
async fn a_pull_without_a_connection_is_a_broken_link() {
    let a = Node::start(config(&Secret::none()));
    let stranger = Identity::generate().peer();
    assert_eq!(a.plane.pull(stranger, ask(1), 1, PATIENCE).await, Err(PullError::Link));
}

#[tokio::test]
async fn dropping_a_pull_stops_the_sender() {
    let (a, mut b) = pair().await;
    let (pull, reply) = start_pull(&a, &mut b, 1 << 40, PATIENCE).await;
    // A terabyte: only the stop ends this.
    let sending = tokio::spawn(reply.send(vec![Bytes::from(vec![1; 1 << 20]); 1 << 20]));
    until("bytes arrive", || a.plane.connected().first().is_some_and(|peer| peer.bytes_in > 4 << 20)).await;
    pull.abort();
    let sent = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(sent, Err(ReplyError::GivenUp)), "{sent:?}");
}

#[tokio::test]
async fn dropping_a_pull_stops_a_sender_that_waits_for_its_upload_cap() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let mut b = Node::start(DataPlaneConfig { upload: Some(Rate(1)), ..config(&secret) });
    connect(&mut a, &mut b).await;
    let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
    let sending = tokio::spawn(reply.send(vec![pattern(CHUNK)]));
    pull.abort();
    let sent = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(sent, Err(ReplyError::GivenUp)), "{sent:?}");
}

#[tokio::test]
async fn a_peer_that_takes_bytes_but_not_all_in_time_is_given_up() {
    let secret = Secret::none();
    let mut a = Node::start(config(&secret));
    let mut b = Node::start(DataPlaneConfig { upload: Some(Rate(1)), ..config(&secret) });
    connect(&mut a, &mut b).await;
    let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
    let sent = timeout(PATIENCE, reply.send_within(Duration::from_millis(50), vec![pattern(CHUNK)])).await.unwrap();
    assert!(matches!(sent, Err(ReplyError::Slow(_))), "{sent:?}");
    assert_eq!(pull.await.unwrap(), Err(PullError::Link));
}

#[tokio::test]
async fn a_request_that_is_given_up_before_its_answer_says_so() {
    let (a, mut b) = pair().await;
    let (pull, reply) = start_pull(&a, &mut b, CHUNK, PATIENCE).await;
    pull.abort();
    timeout(PATIENCE, reply.given_up()).await.unwrap();
}

#[tokio::test]
async fn messages_overtake_the_bytes_of_chunks() {
    let (a, mut b) = pair().await;
    let (pull, reply) = start_pull(&a, &mut b, 1 << 40, PATIENCE).await;
    let sending = tokio::spawn(reply.send(vec![Bytes::from(vec![1; 1 << 20]); 1 << 20]));
    let mut a = a;
    until("bytes arrive", || a.plane.connected().first().is_some_and(|peer| peer.bytes_in > 4 << 20)).await;
    b.plane.send(a.peer, numbered(1)).unwrap();
    assert_eq!(a.message().await, (b.peer, numbered(1)));
    assert!(!sending.is_finished());
    pull.abort();
}
