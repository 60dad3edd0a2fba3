//! What a daemon says no to, without asking anybody.

use shoal_tests::{
    image::{digest_of, media},
    origin::OriginDouble,
    raw,
};

use crate::{ANSWER, REPOSITORY, manifest_path, one_daemon};

#[tokio::test(flavor = "multi_thread")]
async fn registries_outside_the_allow_list_are_refused_and_nobody_is_connected_to() {
    let (origin, _, daemon) = one_daemon(300, &[10]).await;
    let decoy = OriginDouble::start().await;
    let inside = decoy.address();
    let digest = digest_of(b"x");
    let mut paths: Vec<String> = [
        inside.to_string(),
        origin.address().to_string(),
        format!("http://{inside}"),
        format!("origin.test@{inside}"),
        format!("origin.test%40{inside}"),
        format!("{inside}%23origin.test"),
        String::from("169.254.169.254"),
        String::from("metadata.google.internal"),
        String::from("localhost"),
        String::from("[::1]"),
        String::from("origin.test.evil.example"),
        String::from("origin.test%00"),
        String::from("%2e%2e"),
    ]
    .iter()
    .flat_map(|name| {
        [
            format!("/v2/x/manifests/v1?ns={name}"),
            format!("/v2/x/blobs/{digest}?ns={name}"),
            format!("/v2/{name}/x/manifests/v1"),
        ]
    })
    .collect();
    // Two answers to "which registry?": neither may win by accident.
    paths.push(format!("/v2/x/manifests/v1?ns={inside}&ns=origin.test"));
    paths.push(String::from("/v2/x/manifests/v1"));
    for path in paths {
        let answer = raw::get(daemon.registry(), &path, &[("X-Dragonfly-Registry", &decoy.url())], ANSWER).await;
        assert!([400, 403, 404, 421].contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(decoy.connections(), 0);
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_names_and_digests_are_refused_and_never_reach_the_origin() {
    let (origin, _, daemon) = one_daemon(301, &[10]).await;
    let hex = "a".repeat(64);
    let upper = "A".repeat(64);
    let cases = [
        String::from("/v2/../x/manifests/v1"),
        String::from("/v2/origin.test/../../etc/passwd/manifests/v1"),
        String::from("/v2/origin.test/%2e%2e%2fx/manifests/v1"),
        String::from("/v2/origin.test/x%2fy/manifests/v1"),
        String::from("/v2/origin.test//x/manifests/v1"),
        String::from("/v2/origin.test/Upper/manifests/v1"),
        String::from("/v2/origin.test/x/manifests/.v1"),
        String::from("/v2/origin.test/x/manifests/"),
        format!("/v2/origin.test/x/manifests/{}", "t".repeat(129)),
        String::from("/v2/origin.test/x/manifests/sha256:baddigeststring"),
        String::from("/v2/origin.test/x/blobs/sha256:baddigeststring"),
        format!("/v2/origin.test/x/blobs/sha256:{upper}"),
        format!("/v2/origin.test/x/blobs/sha384:{hex}"),
        format!("/v2/origin.test/x/blobs/sha512:{hex}"),
        format!("/v2/origin.test/x/blobs/sha256:{hex}a"),
        format!("/v2/origin.test/x/blobs/{hex}"),
        String::from("/v2/origin.test/x/blobs/latest"),
        String::from("/v2/origin.test/x/blobs/sha256:..%2f..%2fnode.key"),
        String::from("/v2/_catalog"),
        String::from("/etc/passwd"),
    ];
    for path in cases {
        let answer = raw::get(daemon.registry(), &path, &[], ANSWER).await;
        assert!([400, 404].contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_reading_is_offered_and_web_pages_are_turned_away() {
    let (origin, _, daemon) = one_daemon(302, &[10]).await;
    let address = daemon.registry();
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
        let request = format!(
            "{method} {} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            manifest_path("v1")
        );
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        assert_eq!(raw::exchange(stream, request.as_bytes(), ANSWER).await.status, 405, "{method}");
    }
    for (name, value) in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
        assert_eq!(raw::get(address, &manifest_path("v1"), &[(name, value)], ANSWER).await.status, 403, "{name}");
    }
    let rebound = format!("GET /v2/ HTTP/1.1\r\nHost: evil.example:{}\r\nConnection: close\r\n\r\n", address.port());
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(raw::exchange(stream, rebound.as_bytes(), ANSWER).await.status, 421, "a name that is not ours");
    assert_eq!(origin.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_clients_would_refuse_is_refused_here() {
    let (origin, image, daemon) = one_daemon(303, &[10]).await;
    let padded = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","annotations":{{"a":"{}"}}}}"#,
        media::MANIFEST,
        "x".repeat(5 << 20)
    );
    let both = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[],"config":{},"layers":[]}}"#,
        media::MANIFEST,
        image.native().config.descriptor()
    );
    for (tag, text) in [("large", padded), ("both", both)] {
        let digest = digest_of(text.as_bytes());
        origin.offer_content(&digest, text.into(), media::MANIFEST);
        origin.tag(REPOSITORY, tag, &digest);
        for reference in [tag, &digest] {
            let answer = raw::get(daemon.registry(), &manifest_path(reference), &[], ANSWER).await;
            assert!([400, 404, 502, 503].contains(&answer.status), "{tag}, {reference}: {}", answer.status);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_never_served_under_a_type_that_it_denies() {
    let (origin, _, daemon) = one_daemon(304, &[10]).await;
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::INDEX);
    let digest = digest_of(text.as_bytes());
    origin.offer_content(&digest, text.into(), media::MANIFEST);
    origin.tag(REPOSITORY, "other", &digest);
    for reference in ["other", &digest] {
        let answer = raw::get(daemon.registry(), &manifest_path(reference), &[], ANSWER).await;
        let refused = [400, 404, 502, 503].contains(&answer.status);
        assert!(refused || answer.headers["content-type"] == media::INDEX, "{reference}: {answer:?}");
    }
}
