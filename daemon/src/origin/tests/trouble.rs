//! Refusals, overload, silence, and wrong turns.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Gives `first` to the first `times` requests, the blob to all after.
async fn after(times: usize, first: Reply) -> Server {
    let number = AtomicUsize::new(0);
    Server::start(
        move |_, _| if number.fetch_add(1, Ordering::Relaxed) < times { first.clone() } else { Reply::ok(BLOB) },
    )
    .await
}

#[tokio::test]
async fn what_is_not_there_is_not_asked_for_again() {
    let server = after(1, Reply::status(404)).await;
    let missing = fetch(&client(), &blob(&server), 0).await;
    assert_eq!(missing.unwrap_err(), OriginError::NotFound { host: server.url.replace("http://", "") });
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn passing_failures_are_tried_three_times() {
    for passing in
        [Reply::status(500), Reply::status(502), Reply::status(503), Reply::status(429), Reply::Raw(Vec::new())]
    {
        let server = after(2, passing.clone()).await;
        let client = client();
        assert_eq!(fetch(&client, &blob(&server), 0).await.unwrap(), BLOB);
        assert_eq!((client.metrics.origin_blob_gets.get(), client.metrics.origin_retries.get()), (3, 2));
    }
    let server = after(3, Reply::status(500)).await;
    assert_unavailable(fetch(&client(), &blob(&server), 0).await, "answered 500");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_short_rest_is_waited_for_and_a_long_one_is_reported_at_once() {
    for status in [429, 503] {
        let server = after(1, Reply::status(status).with("Retry-After", "0")).await;
        assert_eq!(fetch(&client(), &blob(&server), 0).await.unwrap(), BLOB);
        for later in ["3600", "Wed, 21 Oct 2099 07:28:00 GMT"] {
            let server = after(1, Reply::status(status).with("Retry-After", later)).await;
            let limited = fetch(&client(), &blob(&server), 0).await;
            assert!(
                matches!(limited, Err(OriginError::RateLimited { retry_after: Some(after), .. }) if after >= HOUR),
                "{limited:?}"
            );
            assert_eq!(server.seen().len(), 1);
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_origin_that_asked_to_be_left_alone_is_not_asked_by_anybody() {
    let limited = Reply::status(429).with("Retry-After", "3600").with("RateLimit-Remaining", "0;w=21600");
    let server = after(1, limited).await;
    let (client, source) = (client(), blob(&server));
    let first = fetch(&client, &source, 0).await;
    assert!(matches!(first, Err(OriginError::RateLimited { .. })), "{first:?}");
    let other = Source { repository: "team/other".to_owned(), ..source.clone() };
    let tag = client.resolve(&source.upstream, "team/app", "v1", "").await.map(drop);
    for refused in [fetch(&client, &other, 0).await.map(drop), client.size(&source, &digest()).await.map(drop), tag] {
        let Err(OriginError::RateLimited { host, retry_after: Some(rest) }) = refused else { panic!("{refused:?}") };
        assert!(rest <= HOUR && host == source.upstream.host(), "{host} {rest:?}");
    }
    assert_eq!(server.seen().len(), 1);
    let page = client.metrics.encode();
    assert!(page.contains("shoal_origin_ratelimit_remaining{upstream=\"registry.test\"} 0\n"), "{page}");
    assert!(page.contains("shoal_origin_rest_until_timestamp_seconds{upstream=\"registry.test\"} "), "{page}");
}

#[tokio::test]
async fn a_token_server_that_asks_to_be_left_alone_is_left_alone() {
    let server = Server::start(|request, own| match request.target.starts_with("/token") {
        true => Reply::status(429).with("Retry-After", "60"),
        false => {
            let realm = own.replace("127.0.0.1", "localhost");
            Reply::status(401).with("WWW-Authenticate", format!(r#"Bearer realm="{realm}/token""#))
        }
    })
    .await;
    let (client, source) = (client(), blob(&server));
    for repository in ["team/one", "team/two"] {
        let source = Source { repository: repository.to_owned(), ..source.clone() };
        let limited = fetch(&client, &source, 0).await;
        let Err(OriginError::RateLimited { host, .. }) = limited else { panic!("{limited:?}") };
        assert!(host.starts_with("localhost:"), "{host}");
    }
    assert_eq!(server.seen().iter().filter(|request| request.target.starts_with("/token")).count(), 1);
}

#[tokio::test]
async fn a_store_that_ignores_ranges_is_asked_for_no_others() {
    let store = after(0, Reply::ok(b"")).await;
    let to = store.url.clone();
    let server = Server::start(move |_, _| Reply::redirect(&to)).await;
    let (client, source) = (client(), blob(&server));
    let ignores = async || client.open(&source, &digest(), 0).await.unwrap().ignores_ranges();
    assert!(!ignores().await, "it was never asked for one");
    for from in [12, 15] {
        assert_eq!(fetch(&client, &source, from).await.unwrap(), &BLOB[from as usize..]);
        assert!(ignores().await);
    }
    let seen = store.seen();
    let asked: Vec<_> = seen.iter().filter_map(|request| request.header("range")).collect();
    assert_eq!(asked, ["bytes=12-"]);
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_unavailable() {
    let server = Server::start(|_, _| Reply::ok(BLOB)).await;
    let source = blob(&server);
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let settings = UpstreamSettings::new("gone", format!("http://127.0.0.1:{port}").parse().unwrap());
    let gone = Source { upstream: Arc::new(Upstream::new(settings).unwrap()), ..source };
    assert_unavailable(fetch(&client(), &gone, 0).await, "cannot connect");
}

#[tokio::test]
async fn silence_before_the_headers_meets_its_deadline() {
    let server = after(usize::MAX, Reply::Stall(b"HTTP/1.1 200 OK\r\n".to_vec())).await;
    let client = Origin::new(hasty(), Vec::new(), Arc::default());
    assert_unavailable(fetch(&client, &blob(&server), 0).await, "no response headers");
    assert_eq!(client.metrics.origin_retries.get(), 2);
}

#[tokio::test]
async fn the_whole_call_meets_its_deadline_whatever_each_step_may_take() {
    let server = after(usize::MAX, Reply::Stall(Vec::new())).await;
    let timeouts = OriginTimeouts { open: Duration::from_millis(100), ..patient() };
    assert_unavailable(
        fetch(&Origin::new(timeouts, Vec::new(), Arc::default()), &blob(&server), 0).await,
        "no answer within the deadline",
    );
    // The manifest body belongs to the call if its size is not known.
    let server =
        after(usize::MAX, Reply::Stall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec())).await;
    assert_unavailable(
        fetch(&Origin::new(timeouts, Vec::new(), Arc::default()), &manifest(&server), 0).await,
        "within the deadline",
    );
}

#[tokio::test]
async fn silence_within_a_body_meets_its_deadline() {
    let server = after(usize::MAX, Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n01234".to_vec())).await;
    let timeouts = OriginTimeouts { idle: Duration::from_millis(100), ..patient() };
    let mut body = Origin::new(timeouts, Vec::new(), Arc::default()).open(&blob(&server), &digest(), 0).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "01234");
    assert_unavailable(body.next().await, "no bytes within");
}

#[tokio::test]
async fn a_redirect_loop_ends_after_five() {
    let server = Server::start(|_, _| Reply::redirect("/again")).await;
    let client = client();
    assert_protocol(fetch(&client, &blob(&server), 0).await, "more than 5 redirects");
    assert_eq!((server.seen().len(), client.metrics.origin_blob_gets.get()), (6, 1));
    let server = Server::start(|_, _| Reply::status(302)).await;
    assert_protocol(fetch(&client, &blob(&server), 0).await, "Location");
}

#[tokio::test]
async fn a_pre_signed_url_that_ran_out_is_asked_of_the_registry_again() {
    for status in [400, 403, 410] {
        let store = after(1, Reply::status(status)).await;
        let to = store.url.clone();
        let server = Server::start(move |_, _| Reply::redirect(&to)).await;
        assert_eq!(fetch(&client(), &blob(&server), 0).await.unwrap(), BLOB);
        assert_eq!((store.seen().len(), server.seen().len()), (2, 2));
    }
}

#[tokio::test]
async fn redirects_into_the_link_or_to_other_schemes_are_refused() {
    for target in [
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://u:p@127.0.0.1/",
    ] {
        let server = Server::start(move |_, _| Reply::redirect(target)).await;
        assert_protocol(fetch(&client(), &blob(&server), 0).await, "refused to follow");
        assert_eq!(server.seen().len(), 1, "a refusal is final");
    }
}

#[tokio::test]
async fn a_public_registry_cannot_lead_to_a_name_on_loopback() {
    let server = Server::start(|_, _| Reply::ok(BLOB)).await;
    let public =
        Upstream::new(UpstreamSettings::new("public", "http://registry.example.com".parse().unwrap())).unwrap();
    let url: url::Url = server.url.replace("127.0.0.1", "localhost").parse().unwrap();
    assert_eq!(public.permit(&url), Ok(()), "the text alone is no reason");
    let error = public.client(&url).get(url.clone()).send().await.unwrap_err();
    assert_protocol(
        Err::<(), _>(error::Failure::transport("registry.example.com", error).error),
        "refused to follow to localhost",
    );
    assert_eq!(server.seen().len(), 0);
}

#[tokio::test]
async fn a_certificate_is_trusted_by_the_ca_file_of_its_upstream_only() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.key_pair.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = Server::start_tls(tls.with_single_cert(vec![made.cert.der().clone()], key.into()).unwrap(), |_, _| {
        Reply::ok(BLOB)
    })
    .await;
    let trusting = UpstreamSettings { ca_file: Some(ca_file), ..settings(&server) };
    assert_eq!(fetch(&client(), &blob_of(Arc::new(Upstream::new(trusting).unwrap())), 0).await.unwrap(), BLOB);
    // Without it there is no client at all on a machine without CA certificates, and no connection on any other.
    if let Ok(wary) = Upstream::new(settings(&server)) {
        assert_unavailable(fetch(&client(), &blob_of(Arc::new(wary)), 0).await, "certificate");
    }
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_registry_and_not_to_its_stores() {
    let directory = tempfile::tempdir().unwrap();
    let [(cert_file, _), (client_cert_file, client_key_file)] = ["server", "client"].map(|name| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (directory.path().join(name), directory.path().join(format!("{name}.key")));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.key_pair.serialize_pem()).unwrap();
        (cert, key)
    });
    let shown = |file: &std::path::Path| {
        use rustls::pki_types::pem::PemObject as _;
        rustls::pki_types::CertificateDer::from_pem_file(file).unwrap()
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shown(&client_cert_file)).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let tls = || {
        use rustls::pki_types::pem::PemObject as _;
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(directory.path().join("server.key")).unwrap();
        let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
        (tls.with_safe_default_protocol_versions().unwrap(), shown(&cert_file), key)
    };
    let (strict, certificate, key) = tls();
    let strict = strict.with_client_cert_verifier(verifier.build().unwrap());
    let strict = strict.with_single_cert(vec![certificate], key).unwrap();
    let store = Server::start_tls(strict.clone(), |_, _| Reply::ok(BLOB)).await;
    let to = store.url.clone();
    let server = Server::start_tls(strict, move |request, _| match request.target.contains("/blobs/") {
        true => Reply::redirect(&to),
        false => Reply::ok(BLOB),
    })
    .await;
    let with_certificate = UpstreamSettings {
        ca_file: Some(cert_file.clone()),
        client_cert_file: Some(client_cert_file),
        client_key_file: Some(client_key_file.clone()),
        ..settings(&server)
    };
    let upstream = Arc::new(Upstream::new(with_certificate.clone()).unwrap());
    let manifest = Source { kind: Kind::Manifest, ..blob_of(Arc::clone(&upstream)) };
    assert_eq!(fetch(&client(), &manifest, 0).await.unwrap(), BLOB);
    assert!(fetch(&client(), &blob_of(upstream), 0).await.is_err(), "the store asks for a certificate, and gets none");
    assert!(!server.seen().is_empty() && store.seen().is_empty());
    for wrong in [
        UpstreamSettings { client_key_file: None, ..with_certificate.clone() },
        UpstreamSettings { client_cert_file: Some(client_key_file), ..with_certificate.clone() },
        UpstreamSettings { client_key_file: Some("/nonexistent.key".into()), ..with_certificate },
    ] {
        let error = Upstream::new(wrong).unwrap_err().to_string();
        assert!(error.contains("key") && !error.contains("BEGIN"), "{error}");
    }
}
