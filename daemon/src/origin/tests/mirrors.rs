//! Several places of the same content.

use super::*;
use crate::credentials::{Credential, Credentials};

fn with_mirrors(server: &Server, mirrors: &[&str]) -> Source {
    let mirrors = mirrors.iter().map(|url| url.parse().unwrap()).collect();
    blob_of(Arc::new(Upstream::new(UpstreamSettings { mirrors, ..settings(server) }).unwrap()))
}

async fn healthy() -> Server {
    Server::start(|_, _| Reply::ok(BLOB)).await
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last() {
    let (first, second, registry) = (Server::start(|_, _| Reply::status(404)).await, healthy().await, healthy().await);
    let source = with_mirrors(&registry, &[&first.url, &second.url]);
    for _ in 0..2 {
        assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
    }
    assert_eq!(
        (first.seen().len(), second.seen().len(), registry.seen().len()),
        (2, 2, 0),
        "what a mirror does not have says nothing of what it will have"
    );
}

#[tokio::test]
async fn a_mirror_that_fails_is_asked_last_for_a_while() {
    let gone = "http://127.0.0.1:1";
    for trouble in [Reply::status(500), Reply::status(503), Reply::Raw(Vec::new())] {
        let (mirror, registry) = (Server::start(move |_, _| trouble.clone()).await, healthy().await);
        let source = with_mirrors(&registry, &[gone, &mirror.url]);
        for _ in 0..3 {
            assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
        }
        assert_eq!((mirror.seen().len(), registry.seen().len()), (1, 3));
    }
}

#[tokio::test]
async fn a_mirror_that_hangs_leaves_the_registry_its_turn() {
    let (mirror, registry) = (Server::start(|_, _| Reply::Stall(Vec::new())).await, healthy().await);
    let source = with_mirrors(&registry, &[&mirror.url]);
    let client = Origin::new(hasty(), Vec::new(), Arc::default());
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    assert_eq!(mirror.seen().len(), 1);
}

#[tokio::test]
async fn a_mirror_that_breaks_off_is_not_asked_for_the_rest() {
    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n01234".to_vec();
    let mirror = Server::start(move |_, _| Reply::Raw(cut.clone())).await;
    let registry = healthy().await;
    let (client, source) = (client(), with_mirrors(&registry, &[&mirror.url]));
    assert_unavailable(fetch(&client, &source, 0).await, "body");
    assert_eq!(fetch(&client, &source, 5).await.unwrap(), &BLOB[5..]);
    assert_eq!((mirror.seen().len(), registry.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_mirror_that_wants_to_be_left_alone_or_knows_us_not_costs_nothing() {
    for (refusal, asked) in
        [(Reply::status(429).with("Retry-After", "60"), 1), (Reply::status(401), 4), (Reply::status(403), 2)]
    {
        let (mirror, registry) = (Server::start(move |_, _| refusal.clone()).await, healthy().await);
        let source = with_mirrors(&registry, &[&mirror.url]);
        for _ in 0..2 {
            assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
        }
        assert_eq!((mirror.seen().len(), registry.seen().len()), (asked, 2));
    }
}

#[tokio::test]
async fn when_all_fail_the_registry_has_the_last_word() {
    let mirror = Server::start(|_, _| Reply::status(500)).await;
    let registry = Server::start(|_, _| Reply::status(404)).await;
    let source = with_mirrors(&registry, &[&mirror.url]);
    for _ in 0..2 {
        let missing = fetch(&client(), &source, 0).await.unwrap_err();
        assert_eq!(missing, OriginError::NotFound { host: source.upstream.host().to_owned() });
    }
}

#[tokio::test]
async fn a_mirror_has_its_own_login_and_never_sees_the_password_of_the_registry() {
    let challenge = || Reply::status(401).with("WWW-Authenticate", "Basic realm=x");
    let mirror = Server::start(move |_, _| challenge()).await;
    let registry = Server::start(move |request, _| match request.header("authorization") {
        Some(BASIC) => Reply::ok(BLOB),
        _ => challenge(),
    })
    .await;
    let settings = UpstreamSettings {
        mirrors: vec![mirror.url.parse().unwrap()],
        username: Some("robot".to_owned()),
        password: Some("hunter2".to_owned()),
        ..settings(&registry)
    };
    let source = blob_of(Arc::new(Upstream::new(settings.clone()).unwrap()));
    assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
    assert!(mirror.seen().iter().all(|request| request.header("authorization").is_none()));

    let open = Server::start(|request, _| match request.header("authorization") {
        Some("Bearer ready") => Reply::ok(BLOB),
        _ => Reply::status(401).with("WWW-Authenticate", r#"Bearer realm="http://127.0.0.1/t""#),
    })
    .await;
    let credentials = Credentials::fixed(Some(Credential::Bearer("ready".to_owned())));
    let settings = UpstreamSettings { mirrors: vec![open.url.parse().unwrap()], credentials, ..settings };
    let source = blob_of(Arc::new(Upstream::new(settings).unwrap()));
    assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
    assert_eq!(open.seen().len(), 2);
}

#[test]
fn mirrors_are_checked_like_the_registry() {
    let settings = UpstreamSettings::new("a.test", "https://a.test".parse().unwrap());
    for (urls, part) in [(vec!["https://user:hunter2@b.test"], "b.test"), (vec!["https://b.test"; 9], "8 mirrors")] {
        let mirrors = urls.iter().map(|url| url.parse().unwrap()).collect();
        let error = Upstream::new(UpstreamSettings { mirrors, ..settings.clone() }).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("a.test") && !error.contains("hunter2"), "{error}");
    }
}
