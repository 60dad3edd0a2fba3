//! Challenges, tokens, and where credentials go.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A registry with a token server beside it. Takes the tokens for which `takes` says so; token number n (from 1) is `secret-n`.
async fn registry(takes: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |request, own| {
        if request.is("GET", "/token") {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            return Reply::ok(format!(r#"{{"token":"secret-{number}","expires_in":300}}"#).as_bytes());
        }
        match request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if takes(token) => Reply::ok(BLOB),
            _ => Reply::status(401).with(
                "WWW-Authenticate",
                format!(r#"Bearer realm="{own}/token?x=1",service="a, b",scope="repository:team/app:pull""#),
            ),
        }
    })
    .await
}

fn tokens(server: &Server) -> usize {
    server.seen().iter().filter(|request| request.is("GET", "/token")).count()
}

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_then_kept() {
    let server = registry(|token| token == "secret-1").await;
    let (client, source) = (client(), blob_of(upstream_with_password(&server)));
    for _ in 0..2 {
        assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    }
    let seen = server.seen();
    assert_eq!(seen.len(), 4, "401, token, content, content");
    assert_eq!(seen[0].header("authorization"), None);
    assert_eq!(seen[1].target, "/token?x=1&service=a%2C+b&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(seen[1].header("authorization"), Some(BASIC));
    assert_eq!((client.metrics.origin_token_requests.get(), client.metrics.origin_blob_gets.get()), (1, 3));
}

#[tokio::test]
async fn another_repository_gets_its_own_token_without_being_refused_first() {
    let server = registry(|_| true).await;
    let (client, source) = (client(), blob(&server));
    fetch(&client, &source, 0).await.unwrap();
    fetch(&client, &Source { repository: "team/other".to_owned(), ..source }, 0).await.unwrap();
    let seen = server.seen();
    assert!(seen[3].target.contains("team%2Fother"), "{}", seen[3].target);
    assert_eq!(
        (seen.len(), seen[3].header("authorization"), seen[4].header("authorization")),
        (5, None, Some("Bearer secret-2"))
    );
}

#[tokio::test]
async fn many_at_once_share_one_token_request() {
    let server = registry(|_| true).await;
    let (client, source) = (client(), blob(&server));
    let all = futures_util::future::join_all((0..8).map(|_| fetch(&client, &source, 0))).await;
    assert!(all.into_iter().all(|read| read.unwrap() == BLOB));
    assert_eq!(tokens(&server), 1);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen_broken = Arc::clone(&broken);
    let server = registry(move |token| !seen_broken.load(Ordering::Relaxed) || token == "secret-2").await;
    let (client, source) = (client(), blob(&server));
    fetch(&client, &source, 0).await.unwrap();
    broken.store(true, Ordering::Relaxed);
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    assert_eq!(tokens(&server), 2);

    let never = registry(|_| false).await;
    let denied = fetch(&client, &blob(&never), 0).await;
    assert!(matches!(denied, Err(OriginError::Denied { .. })), "{denied:?}");
    assert_eq!((never.seen().len(), tokens(&never)), (3, 1), "401, token, 401");
}

#[tokio::test]
async fn basic_is_offered_when_asked_for_and_a_wrong_password_only_once() {
    let server = Server::start(|request, _| match request.header("authorization") {
        Some(BASIC) => Reply::ok(BLOB),
        _ => Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x",service="y""#),
    })
    .await;
    let (client, source) = (client(), blob_of(upstream_with_password(&server)));
    for _ in 0..2 {
        assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    }
    assert_eq!(server.seen().len(), 3);

    let wrong = UpstreamSettings {
        username: Some("robot".to_owned()),
        password: Some("wrong".to_owned()),
        ..settings(&server)
    };
    for credentials in [wrong, settings(&server)] {
        let denied = fetch(&client, &blob_of(Arc::new(Upstream::new(credentials).unwrap())), 0).await;
        assert!(matches!(denied, Err(OriginError::Denied { .. })), "{denied:?}");
    }
    assert_eq!(server.seen().len(), 3 + 2 + 1);
}

#[tokio::test]
async fn a_refusal_without_a_challenge_is_explained_by_the_api_root() {
    let server = Server::start(|request, _| match (request.target.as_str(), request.header("authorization")) {
        ("/v2/", _) => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
        (_, Some(BASIC)) => Reply::ok(BLOB),
        _ => Reply::status(401),
    })
    .await;
    assert_eq!(fetch(&client(), &blob_of(upstream_with_password(&server)), 0).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_registry_may_change_its_way_of_logging_in() {
    let moved = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let has_moved = Arc::clone(&moved);
    let server =
        Server::start(move |request, own| match (has_moved.load(Ordering::Relaxed), request.header("authorization")) {
            (false, _) if request.is("GET", "/token") => Reply::ok(br#"{"token":"x"}"#),
            (false, Some("Bearer x")) | (true, Some(BASIC)) if request.target.starts_with("/v2/") => Reply::ok(BLOB),
            (false, _) => Reply::status(401).with("WWW-Authenticate", format!(r#"Bearer realm="{own}/token""#)),
            (true, _) if request.is("GET", "/token") => Reply::status(404),
            (true, _) => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
        })
        .await;
    let (client, source) = (client(), blob_of(upstream_with_password(&server)));
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    moved.store(true, Ordering::Relaxed);
    for repository in ["team/other", "team/app"] {
        let source = Source { repository: repository.to_owned(), ..source.clone() };
        assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    }
}

#[tokio::test]
async fn a_foreign_realm_is_not_asked() {
    let server =
        Server::start(|_, _| Reply::status(401).with("WWW-Authenticate", r#"Bearer realm="https://tokens.invalid/t""#))
            .await;
    let client = client();
    assert_protocol(fetch(&client, &blob_of(upstream_with_password(&server)), 0).await, "another site");
    assert_eq!(client.metrics.origin_token_requests.get(), 0);
}

#[tokio::test]
async fn token_servers_that_misbehave_are_errors_of_the_registry() {
    let elsewhere = Server::start(|_, _| Reply::ok(br#"{"token":"x"}"#)).await;
    let away = format!("{}/token", elsewhere.url);
    for (answer, part) in [
        (Reply::redirect(&away), "redirects to another server"),
        (Reply::redirect("/token"), "more than 5 redirects"),
        (Reply::ok(&[b' '; 65 * 1024]), "larger than"),
        (Reply::ok(b"{}"), "granted no token"),
        (Reply::status(404), "no token server"),
    ] {
        let server = Server::start(move |request, own| match request.target.starts_with("/token") {
            true => answer.clone(),
            false => Reply::status(401).with("WWW-Authenticate", format!(r#"Bearer realm="{own}/token""#)),
        })
        .await;
        assert_protocol(fetch(&client(), &blob_of(upstream_with_password(&server)), 0).await, part);
    }
    assert_eq!(elsewhere.seen().len(), 0);
}

#[tokio::test]
async fn a_redirect_to_another_server_carries_no_authorization_and_neither_does_the_way_back() {
    let home = Arc::new(std::sync::OnceLock::<String>::new());
    let back = Arc::clone(&home);
    let store = Server::start(move |request, _| match request.target.as_str() {
        "/back" => Reply::redirect(&format!("{}/open", back.get().unwrap())),
        _ => Reply::ok(BLOB),
    })
    .await;
    let to = store.url.clone();
    let server = Server::start(move |request, _| match (request.target.as_str(), request.header("authorization")) {
        ("/open", _) => Reply::redirect("/opened"),
        ("/opened", _) => Reply::ok(BLOB),
        (path, Some(BASIC)) if path.contains("/team/app/") => {
            Reply::redirect(&format!("{to}/object?signature=hunter3"))
        }
        (_, Some(BASIC)) => Reply::redirect(&format!("{to}/back")),
        _ => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
    })
    .await;
    home.set(server.url.clone()).unwrap();
    let (client, source) = (client(), blob_of(upstream_with_password(&server)));
    assert_eq!(fetch(&client, &source, 12).await.unwrap(), &BLOB[12..]);
    fetch(&client, &Source { repository: "back".to_owned(), ..source }, 0).await.unwrap();
    let abroad = store.seen();
    assert_eq!((abroad.len(), abroad[0].header("range")), (2, Some("bytes=12-")));
    assert!(abroad.iter().all(|request| request.header("authorization").is_none()));
    let way_back = server.seen().split_off(3);
    let way_back: Vec<_> =
        way_back.iter().map(|request| (request.target.as_str(), request.header("authorization"))).collect();
    assert_eq!(way_back, [("/open", None), ("/opened", None)]);
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_authorization() {
    let server = Server::start(|request, _| match (request.target.as_str(), request.header("authorization")) {
        ("/moved", Some(BASIC)) => Reply::ok(BLOB),
        (_, Some(BASIC)) => Reply::redirect("/moved"),
        _ => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
    })
    .await;
    assert_eq!(fetch(&client(), &blob_of(upstream_with_password(&server)), 0).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_challenge_from_a_redirect_target_is_not_answered() {
    let store = Server::start(|_, _| Reply::status(401).with("WWW-Authenticate", "Basic realm=x")).await;
    let to = store.url.clone();
    let server = Server::start(move |_, _| Reply::redirect(&to)).await;
    let denied = fetch(&client(), &blob_of(upstream_with_password(&server)), 0).await;
    assert!(matches!(denied, Err(OriginError::Denied { .. })), "{denied:?}");
    assert_eq!(store.seen().len(), 1);
}

#[tokio::test]
async fn neither_errors_nor_debug_output_show_secrets() {
    let closed = Server::start(|_, _| Reply::Raw(Vec::new())).await;
    let stalled = Server::start(|_, _| Reply::Stall(Vec::new())).await;
    let mut texts = Vec::new();
    for target in [
        format!("{}/object?signature=hunter3", closed.url),
        format!("{}/object?signature=hunter3", stalled.url),
        "https://user:hunter3@127.0.0.1/".to_owned(),
        "http://169.254.169.254/?signature=hunter3".to_owned(),
        "gopher://x?signature=hunter3".to_owned(),
        "http://[bad/?signature=hunter3".to_owned(),
        "http://127.0.0.1:1/?signature=hunter3".to_owned(),
    ] {
        let server = Server::start(move |request, _| match request.header("authorization") {
            Some(BASIC) => Reply::redirect(&target),
            _ => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
        })
        .await;
        let source = blob_of(upstream_with_password(&server));
        let error = fetch(&Origin::new(hasty(), Vec::new(), Arc::default()), &source, 0).await.unwrap_err();
        texts.push(format!("{error} {error:?} {source:?}"));
    }
    let store = Server::start(|_, _| Reply::ok(BLOB)).await;
    let to = format!("{}/?signature=hunter3", store.url);
    let server = Server::start(move |_, _| Reply::redirect(&to)).await;
    let client = client();
    let body = client.open(&blob(&server), &digest(), 0).await.unwrap();
    texts.push(format!("{body:?} {client:?}"));
    let server = registry(|_| true).await;
    let source = blob_of(upstream_with_password(&server));
    fetch(&client, &source, 0).await.unwrap();
    texts.push(format!("{source:?} {client:?} {:?}", source.upstream.tokens));
    for text in texts {
        for secret in ["hunter", "signature", "secret-", "robot", "cm9ib3"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
