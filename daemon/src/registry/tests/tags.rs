//! What other nodes say of tags, as the front takes it.

use super::*;

const PATH: &str = "/v2/docker.io/team/x/manifests/v1";
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

#[tokio::test]
async fn the_word_of_another_node_is_taken_if_there_is_what_it_names() {
    let front = Front::new(Fake::default().with_content(MANIFEST).with_word(MANIFEST)).await;
    let reply = front.get(PATH).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, MANIFEST));
    assert_eq!(front.fake.resolved_own.load(Relaxed), 0);
}

#[tokio::test]
async fn a_false_word_of_another_node_costs_a_question_and_no_pull() {
    let front = Front::new(Fake::default().with_tag("v1", MANIFEST).with_word(b"nowhere to be had")).await;
    for _ in 0..2 {
        let reply = front.get(PATH).await;
        assert_eq!((reply.status, reply.body.as_slice()), (200, MANIFEST));
        assert_eq!(front.fake.resolved.load(Relaxed), 2, "then the origin's answer is remembered");
        assert_eq!(front.fake.resolved_own.load(Relaxed), 1);
    }
}
