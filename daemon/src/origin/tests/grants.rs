//! Token servers and the ways to ask them: GET, OAuth2, refresh tokens, exchanges, and credentials that run out.

use std::collections::HashMap;

use super::*;
use crate::credentials::{Credential, CredentialError, Credentials};

const ZERO_USER: &str = "00000000-0000-0000-0000-000000000000";

fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic { username: username.to_owned(), password: password.to_owned() }
}

fn source(server: &Server, credential: Credential) -> Source {
    let credentials = Credentials::fixed(Some(credential));
    blob_of(Arc::new(Upstream::new(UpstreamSettings { credentials, ..settings(server) }).unwrap()))
}

fn form(request: &server::Seen) -> HashMap<String, String> {
    url::form_urlencoded::parse(request.body.as_bytes()).into_owned().collect()
}

/// A registry that takes the token `good`, with a token server that answers POST by `grant` and refuses GET.
async fn oauth(grant: impl Fn(&server::Seen, &HashMap<String, String>) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request, own| match (request.method.as_str(), request.target.as_str()) {
        ("POST", _) => grant(request, &form(request)),
        (_, target) if target.starts_with("/oauth2/token") => Reply::status(405),
        _ if request.header("authorization") == Some("Bearer good") => Reply::ok(BLOB),
        _ => challenge(own, "/oauth2/token"),
    })
    .await
}

fn challenge(own: &str, path: &str) -> Reply {
    let line = format!(r#"Bearer realm="{own}{path}",service="reg,istry",scope="repository:team/app:pull""#);
    Reply::status(401).with("WWW-Authenticate", line)
}

fn granted(rest: &str) -> Reply {
    Reply::ok(format!(r#"{{"access_token":"good"{rest}}}"#).as_bytes())
}

fn posts(server: &Server) -> Vec<HashMap<String, String>> {
    server.seen().iter().filter(|request| request.method == "POST").map(form).collect()
}

#[tokio::test]
async fn a_token_server_without_get_is_given_the_password_as_oauth2_has_it() {
    let server = oauth(|_, form| match form["password"].as_str() {
        "hunter2&\n" => granted(""),
        _ => Reply::status(400),
    })
    .await;
    assert_eq!(fetch(&client(), &source(&server, basic("robot", "hunter2&\n")), 0).await.unwrap(), BLOB);
    let posts = posts(&server);
    assert_eq!(posts.len(), 1);
    for (field, value) in [
        ("grant_type", "password"),
        ("username", "robot"),
        ("service", "reg,istry"),
        ("client_id", "shoal"),
        ("scope", "repository:team/app:pull"),
    ] {
        assert_eq!(posts[0][field], value);
    }
    let wrong = fetch(&client(), &source(&server, basic("robot", "wrong")), 0).await;
    assert!(matches!(wrong, Err(OriginError::Denied { .. })), "{wrong:?}");
}

#[tokio::test]
async fn an_identity_token_is_a_refresh_token_and_a_new_one_replaces_it() {
    let server = oauth(|_, form| match (form["grant_type"].as_str(), form["refresh_token"].as_str()) {
        ("refresh_token", "identity") => granted(r#","refresh_token":"second","expires_in":1"#),
        ("refresh_token", "second") => granted(r#","expires_in":300"#),
        _ => Reply::status(401),
    })
    .await;
    let (client, source) = (client(), source(&server, Credential::Identity("identity".to_owned())));
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    let shown: Vec<_> = posts(&server).iter().map(|form| form["refresh_token"].clone()).collect();
    assert_eq!(shown, ["identity", "second"]);
}

#[tokio::test]
async fn a_refresh_token_that_was_withdrawn_is_replaced_by_way_of_the_credential() {
    let server = Server::start(|request, own| match request.header("authorization") {
        _ if request.method == "POST" => Reply::status(400),
        Some(BASIC) => Reply::ok(br#"{"token":"good","refresh_token":"r","expires_in":1}"#),
        Some("Bearer good") => Reply::ok(BLOB),
        _ => challenge(own, "/token"),
    })
    .await;
    let (client, source) = (client(), source(&server, basic("robot", "hunter2")));
    fetch(&client, &source, 0).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB);
    assert_eq!(posts(&server).len(), 1);
}

#[tokio::test]
async fn azures_token_user_has_a_refresh_token_or_what_the_exchange_makes_one_of() {
    let server = oauth(|request, form| match (request.target.as_str(), form["grant_type"].as_str()) {
        ("/oauth2/exchange", "access_token") if form["access_token"] == "cloud" && form["service"] == "reg,istry" => {
            Reply::ok(br#"{"refresh_token":"acr"}"#)
        }
        ("/oauth2/token", "refresh_token") if form["refresh_token"] == "acr" => granted(""),
        _ => Reply::status(401),
    })
    .await;
    for (password, asked) in [("acr", 1), ("cloud", 4)] {
        assert_eq!(fetch(&client(), &source(&server, basic(ZERO_USER, password)), 0).await.unwrap(), BLOB);
        assert_eq!(posts(&server).len(), asked);
    }
    let wrong = fetch(&client(), &source(&server, basic(ZERO_USER, "wrong")), 0).await;
    assert!(matches!(wrong, Err(OriginError::Denied { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_ready_token_is_sent_as_it_is_and_only_once_if_refused() {
    let server = Server::start(|request, own| match request.header("authorization") {
        Some("Bearer ready") => Reply::ok(BLOB),
        _ => challenge(own, "/token"),
    })
    .await;
    let (client, ready) = (client(), source(&server, Credential::Bearer("ready".to_owned())));
    for _ in 0..2 {
        assert_eq!(fetch(&client, &ready, 0).await.unwrap(), BLOB);
    }
    assert_eq!(server.seen().len(), 3);
    let stale = fetch(&client, &source(&server, Credential::Bearer("stale".to_owned())), 0).await;
    assert!(matches!(stale, Err(OriginError::Denied { .. })), "{stale:?}");
    assert_eq!(server.seen().len(), 3 + 2);
    assert!(server.seen().iter().all(|request| !request.target.starts_with("/token")));
}

#[tokio::test]
async fn a_password_that_ran_out_is_looked_up_once_more() {
    let new = "Basic QVdTOm5ldw==";
    for refusal in [401, 403] {
        let server = Server::start(move |request, _| match request.header("authorization") {
            Some(header) if header == new || request.target.contains("team/old") => Reply::ok(BLOB),
            Some(_) => {
                Reply::status(refusal).with("WWW-Authenticate", r#"Basic realm="x",service="ecr.amazonaws.com""#)
            }
            None => Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x",service="ecr.amazonaws.com""#),
        })
        .await;
        let (client, source) = (client(), source(&server, basic("AWS", "old")));
        fetch(&client, &Source { repository: "team/old".to_owned(), ..source.clone() }, 0).await.unwrap();
        *source.upstream.account().next.lock().unwrap() = Some(Ok(basic("AWS", "new")));
        for _ in 0..2 {
            assert_eq!(fetch(&client, &source, 0).await.unwrap(), BLOB, "{refusal}");
        }
        let shown = server.seen().iter().filter(|request| request.header("authorization") == Some(new)).count();
        assert_eq!((shown, server.seen().len()), (2, 2 + 1 + 2), "{refusal}");
    }
}

#[tokio::test]
async fn a_token_servers_refusal_of_an_old_password_is_answered_with_the_new_one() {
    let server = Server::start(|request, own| match request.header("authorization") {
        Some("Bearer good") => Reply::ok(BLOB),
        Some("Basic QVdTOm5ldw==") if request.target.starts_with("/token") => Reply::ok(br#"{"token":"good"}"#),
        _ if request.target.starts_with("/token") => Reply::status(401),
        _ => challenge(own, "/token"),
    })
    .await;
    let source = source(&server, basic("AWS", "old"));
    *source.upstream.account().next.lock().unwrap() = Some(Ok(basic("AWS", "new")));
    assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_credential_that_cannot_be_had_is_no_matter_for_what_is_public_and_is_told_for_what_is_not() {
    let server = Server::start(|request, own| match request.header("authorization") {
        None if request.target.starts_with("/token") => Reply::ok(br#"{"token":"anonymous"}"#),
        Some("Bearer anonymous") if request.target.contains("/team/app/") => Reply::ok(BLOB),
        _ if request.target.contains("/basic/") => Reply::status(401).with("WWW-Authenticate", "Basic realm=x"),
        _ => challenge(own, "/token"),
    })
    .await;
    let source = source(&server, basic("robot", "hunter2"));
    let problem = CredentialError { place: "helper x".to_owned(), problem: "ended with 1".to_owned() };
    *source.upstream.account().next.lock().unwrap() = Some(Err(problem));
    assert_eq!(fetch(&client(), &source, 0).await.unwrap(), BLOB);
    for repository in ["private", "basic"] {
        let source = Source { repository: repository.to_owned(), ..source.clone() };
        let refused = fetch(&client(), &source, 0).await;
        assert_unavailable(refused, "access denied without a credential: helper x: ended with 1");
    }
}

#[tokio::test]
async fn every_shape_of_challenge_is_answered() {
    let own_realm = |own: &str| format!(r#"Bearer realm="{own}/token""#);
    type Lines = fn(&str, String) -> Vec<String>;
    let shapes: [(&str, Lines); 8] = [
        ("no service", |_, own| vec![own]),
        ("unknown schemes first, on one line", |_, own| vec![format!(r#"Negotiate, NTLM abc==, {own},scope="a""#)]),
        ("unknown schemes first, on lines of their own", |_, own| vec!["Negotiate".to_owned(), own]),
        ("Basic first on one line", |_, own| vec![format!(r#"Basic realm="x", {own}"#)]),
        ("Basic on a line of its own", |_, own| vec!["Basic realm=x".to_owned(), own]),
        ("a realm with a query", |own, _| vec![format!(r#"Bearer realm="{own}/token?scope=x&y=z""#)]),
        ("a realm that must not be asked, and Basic", |_, _| {
            vec![r#"Bearer realm="https://tokens.invalid/t", Basic realm="x""#.to_owned()]
        }),
        ("rubbish between", |_, own| vec!["=,=".to_owned(), "\"".to_owned(), own]),
    ];
    for (what, lines) in shapes {
        let server = Server::start(move |request, own| match request.header("authorization") {
            Some(BASIC) if request.target.starts_with("/token") => Reply::ok(br#"{"token":"good"}"#),
            Some(BASIC | "Bearer good") => Reply::ok(BLOB),
            _ => lines(own, own_realm(own))
                .into_iter()
                .fold(Reply::status(401), |reply, line| reply.with("WWW-Authenticate", line)),
        })
        .await;
        assert_eq!(fetch(&client(), &blob_of(upstream_with_password(&server)), 0).await.unwrap(), BLOB, "{what}");
    }
}

#[tokio::test]
async fn hostile_challenges_and_grants_are_refused_without_their_text() {
    let long = "x".repeat(100 * 1024);
    for answer in [
        Reply::ok(format!(r#"{{"token":"hunter9","refresh_token":"{long}"}}"#).as_bytes()),
        Reply::ok(br#"{"token":"hunter9\r\nX-Evil: 1"}"#),
        Reply::ok(br#"{"token":["hunter9"]}"#),
        Reply::ok(br#"{"token":"hunter9","expires_in":-1}"#),
        Reply::ok(br#"{"token":"hunter9","expires_in":"x"}"#),
        Reply::ok(&b"[".repeat(60 * 1024)),
        Reply::ok(b"\xff\xfehunter9"),
        Reply::status(400).with("X-Reason", "hunter9"),
    ] {
        let server = oauth(move |_, _| answer.clone()).await;
        let identity = source(&server, Credential::Identity("hunter8".to_owned()));
        let error = fetch(&client(), &identity, 0).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter") && text.contains("127.0.0.1"), "{text}");
    }
    for line in [
        "Bearer realm=\"\"",
        "Bearer realm=\"hunter9\"",
        "Bearer realm=\"http://169.254.169.254/latest\"",
        "Bearer realm=\"http://user:hunter9@127.0.0.1/\"",
        "Bearer realm=\"javascript:hunter9\"",
        "Bearer hunter9",
        "Basic",
        "\"unterminated hunter9",
        ",,,,",
    ] {
        let server = Server::start(move |_, _| Reply::status(401).with("WWW-Authenticate", line)).await;
        let error = fetch(&client(), &source(&server, Credential::Identity("hunter8".to_owned())), 0).await;
        let text = format!("{:?}", error.unwrap_err());
        assert!(!text.contains("hunter"), "{text}");
    }
}
