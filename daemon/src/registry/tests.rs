//! The front over real sockets, with written-down content behind it.

mod lists;
mod pushes;
mod tags;

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};

use shoal_proto::digest::Algorithm;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{fake::Fake, *};
use crate::{credentials::CredentialError, node::OpenError, origin::OriginError};

const BLOB: &[u8] = b"The quick brown fox jumps over the lazy dog";
const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A served front and what is behind it.
struct Front {
    address: SocketAddr,
    fake: Arc<Fake>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    served: JoinHandle<()>,
}

/// An answer as it came off the wire.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The code in the error envelope.
    fn code(&self) -> String {
        let envelope: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        envelope["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn message(&self) -> String {
        let envelope: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        envelope["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Front {
    async fn new(fake: Fake) -> Self {
        Self::with(fake, |_| {}).await
    }

    async fn with(fake: Fake, change: impl FnOnce(&mut RegistryConfig)) -> Self {
        let names = ["docker.io", "registry.test:5000"];
        let mut config = RegistryConfig {
            upstreams: names.into_iter().map(|name| (name.to_owned(), fake::upstream(name))).collect(),
            ..RegistryConfig::default()
        };
        change(&mut config);
        let fake = fake.shared();
        let metrics = Arc::<Metrics>::default();
        let registry = Registry::with_content(config, fake.clone(), Arc::clone(&metrics));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let grace = Duration::from_secs(30);
        let served = tokio::spawn(serve(listener, None, registry, shutdown.clone(), grace));
        Self { address, fake, metrics, shutdown, served }
    }

    /// Sends raw bytes and reads to the end, which must be a FIN and not a reset.
    async fn raw(&self, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        reply
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if headers.iter().all(|(name, _)| *name != "Host") {
            request.push_str("Host: localhost\r\n");
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let reply = self.raw(request.as_bytes()).await;
        let end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(reply[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head, body: reply[end + 4..].to_vec() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[]).await
    }

    /// Nobody behind the front was asked anything.
    fn nobody_was_asked(&self) -> bool {
        [&self.fake.resolved, &self.fake.opened, &self.fake.sized, &self.fake.listed]
            .iter()
            .all(|count| count.load(Relaxed) == 0)
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn blob_path() -> String {
    format!("/v2/docker.io/team/x/blobs/{}", digest(BLOB))
}

#[tokio::test]
async fn the_base_says_that_this_is_a_registry_and_never_challenges() {
    let front = Front::new(Fake::default()).await;
    let reply = front.get("/v2/").await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, b"{}".as_slice()));
    assert_eq!(reply.header("Docker-Distribution-Api-Version"), Some("registry/2.0"));
    let reply = front.ask("HEAD", "/v2/", &[]).await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert_eq!(reply.header("Content-Length"), Some("2"));
}

#[tokio::test]
async fn what_is_not_for_us_is_refused_without_asking_anybody() {
    let front = Front::new(Fake::default()).await;
    let bad = "/v2/docker.io/x/blobs/sha256:baddigeststring";
    let upper = format!("/v2/docker.io/x/manifests/sha256:{}", "A".repeat(64));
    let hex = "0".repeat(64);
    for (method, path, headers, status, code) in [
        ("GET", "/", &[][..], 404, "UNSUPPORTED"),
        ("GET", "/v2/_catalog", &[], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/docker.io/x/tags", &[], 404, "UNSUPPORTED"),
        ("GET", "/v2/docker.io/x/tags/list?n=x", &[], 400, "UNSUPPORTED"),
        ("GET", "/v2/docker.io/x/referrers/sha256:00", &[], 400, "DIGEST_INVALID"),
        ("GET", "/v2/x/tags/list?ns=evil.example", &[], 404, "NAME_UNKNOWN"),
        ("POST", "/v2/docker.io/x/blobs/uploads/", &[], 405, "UNSUPPORTED"),
        ("DELETE", "/v2/docker.io/x/manifests/v1", &[], 405, "UNSUPPORTED"),
        ("OPTIONS", "/v2/", &[], 405, "UNSUPPORTED"),
        ("GET", bad, &[], 400, "DIGEST_INVALID"),
        ("GET", &upper, &[], 400, "DIGEST_INVALID"),
        ("GET", &format!("/v2/docker.io/x/blobs/sha384:{hex}"), &[], 400, "DIGEST_INVALID"),
        ("GET", &format!("/v2/docker.io/x/blobs/sha256%3A{hex}"), &[], 400, "DIGEST_INVALID"),
        ("GET", "/v2/docker.io/x/manifests/.INVALID_MANIFEST_NAME", &[], 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/A/manifests/v1", &[], 400, "NAME_INVALID"),
        ("GET", "/v2/../x/manifests/v1", &[], 400, "NAME_INVALID"),
        ("GET", "/v2/docker.io/%2e%2e%2fx/manifests/v1", &[], 400, "NAME_INVALID"),
        ("GET", "/v2/docker.io//x/manifests/v1", &[], 400, "NAME_INVALID"),
        ("GET", "/v2/a/manifests/v1", &[], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/v1?ns=169.254.169.254", &[], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/v1?ns=127.0.0.1:5901", &[], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/v1?ns=http://x", &[], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/a/manifests/v1?ns=a@b", &[], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/", &[("Host", "evil.example:5050")], 421, "DENIED"),
        ("GET", "/v2/", &[("Origin", "http://evil.example")], 403, "DENIED"),
        ("GET", "/v2/", &[("Sec-Fetch-Site", "cross-site")], 403, "DENIED"),
        ("GET", "http://evil.example/v2/", &[], 421, "DENIED"),
    ] {
        let reply = front.ask(method, path, headers).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{method} {path} {headers:?}");
        assert_eq!(reply.header("Allow").is_some(), status == 405);
    }
    assert!(front.nobody_was_asked());
}

#[tokio::test]
async fn noise_on_the_port_is_answered_with_400_and_not_with_content() {
    let front = Front::new(Fake::default()).await;
    let hello = b"\x16\x03\x01\x00\x31\x01\x00\x00\x2d\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x00\x00\x02\x13\x01\x01\x00\x00\x00";
    for noise in
        [hello.as_slice(), b"GET /v2/\x00 HTTP/1.1\r\n\r\n", b"GET /v2/ x HTTP/1.1\r\n\r\n", b"GET /v2/\r\n\r\n"]
    {
        let reply = front.raw(noise).await;
        assert!(reply.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&reply));
    }
    let reply = front.raw(b"GET /v2/ HTTP/1.0\r\n\r\n").await;
    assert!(reply.starts_with(b"HTTP/1.0 400"), "{}", String::from_utf8_lossy(&reply));
    let endless = format!("GET /v2/ HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert!(front.raw(endless.as_bytes()).await.starts_with(b"HTTP/1.1 431"));
    assert!(front.nobody_was_asked());
}

#[tokio::test]
async fn a_blob_comes_whole_with_all_that_clients_check() {
    let front = Front::new(Fake::default().with_content(BLOB)).await;
    let reply = front.ask("GET", &blob_path(), &[("Accept-Encoding", "zstd, gzip")]).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, BLOB));
    let digest = digest(BLOB).to_string();
    for (name, value) in [
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", "43"),
        ("Accept-Ranges", "bytes"),
        ("Docker-Content-Digest", &digest),
        ("ETag", &format!("\"{digest}\"")),
    ] {
        assert_eq!(reply.header(name), Some(value));
    }
    assert_eq!(reply.header("Content-Encoding"), None);
    assert_eq!(front.metrics.bytes_to_clients.get(), BLOB.len() as u64);

    let head = front.ask("HEAD", &blob_path(), &[("Range", "bytes=0-1")]).await;
    assert_eq!((head.status, head.header("Content-Length"), head.body.len()), (200, Some("43"), 0));
    assert_eq!(front.fake.opened.load(Relaxed), 1, "a HEAD costs no body");
}

#[tokio::test]
async fn one_range_is_served_and_a_wrong_one_never_becomes_a_whole_body() {
    for sealed in [false, true] {
        let fake = Fake::default().with_content(BLOB);
        let front = Front::new(if sealed { fake.sealed() } else { fake }).await;
        for (range, content_range, body, offset) in [
            ("bytes=0-0", "bytes 0-0/43", &BLOB[..1], 0),
            ("bytes=0-", "bytes 0-42/43", BLOB, 0),
            ("bytes=5-", "bytes 5-42/43", &BLOB[5..], 5),
            ("bytes=5-9", "bytes 5-9/43", &BLOB[5..10], 5),
            ("bytes=40-99", "bytes 40-42/43", &BLOB[40..], 40),
            ("bytes=-10", "bytes 33-42/43", &BLOB[33..], if sealed { 33 } else { 0 }),
        ] {
            let reply = front.ask("GET", &blob_path(), &[("Range", range)]).await;
            assert_eq!((reply.status, reply.body.as_slice()), (206, body), "{range}");
            assert_eq!(reply.header("Content-Range"), Some(content_range));
            assert_eq!(reply.header("Content-Length"), Some(body.len().to_string().as_str()));
            assert_eq!(front.fake.offset.load(Relaxed), offset, "{range}");
        }
        for range in ["bytes=43-", "bytes=500-600", "bytes=500-0", "bytes=abc", "bytes=-0"] {
            let reply = front.ask("GET", &blob_path(), &[("Range", range)]).await;
            assert_eq!((reply.status, reply.header("Content-Range")), (416, Some("bytes */43")), "{range}");
        }
        for range in ["bytes=0-4,10-14", "items=0-1"] {
            let reply = front.ask("GET", &blob_path(), &[("Range", range)]).await;
            assert_eq!((reply.status, reply.body.as_slice()), (200, BLOB), "{range}");
        }
    }
}

#[tokio::test]
async fn conditional_requests_compare_the_digest() {
    let front = Front::new(Fake::default().with_content(BLOB)).await;
    let tag = format!("\"{}\"", digest(BLOB));
    let reply = front.ask("GET", &blob_path(), &[("If-None-Match", &tag)]).await;
    assert_eq!((reply.status, reply.body.len(), reply.header("ETag")), (304, 0, Some(tag.as_str())));
    let reply = front.ask("GET", &blob_path(), &[("If-None-Match", "\"other\"")]).await;
    assert_eq!(reply.status, 200);
    for (if_range, status) in [(tag.as_str(), 206), ("\"other\"", 200)] {
        let reply = front.ask("GET", &blob_path(), &[("Range", "bytes=1-2"), ("If-Range", if_range)]).await;
        assert_eq!(reply.status, status);
    }
}

#[tokio::test]
async fn a_body_that_breaks_ends_early_by_fin_with_nothing_wrong_in_it() {
    let front = Front::new(Fake::default().with_content(BLOB).breaking_at(20)).await;
    let reply = front.get(&blob_path()).await;
    assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("43")));
    assert_eq!(reply.body, &BLOB[..20]);
    front.shutdown.cancel();
    front.served.await.unwrap();
    assert_eq!(front.metrics.cut_bodies.get(), 1);
}

#[tokio::test]
async fn in_sealed_mode_no_byte_goes_out_before_the_end_was_reached() {
    let front = Front::with(Fake::default().with_content(BLOB), |config| config.stream_sealed = true).await;
    assert_eq!(front.get(&blob_path()).await.body, BLOB);
    assert_eq!(front.fake.opened.load(Relaxed), 2);
    let corrupt = Fake::default().with_content(BLOB).breaking_at(BLOB.len() - 1);
    let front = Front::with(corrupt, |config| config.stream_sealed = true).await;
    assert_eq!(front.get(&blob_path()).await.body, b"");
}

#[tokio::test]
async fn an_empty_blob_is_served() {
    let front = Front::new(Fake::default().with_content(b"")).await;
    let reply = front.get(&format!("/v2/docker.io/x/blobs/{}", digest(b""))).await;
    assert_eq!((reply.status, reply.header("Content-Length"), reply.body.len()), (200, Some("0"), 0));
}

#[tokio::test]
async fn a_manifest_by_digest_gets_its_type_from_its_content() {
    let front = Front::new(Fake::default().with_content(INDEX)).await;
    let path = format!("/v2/library/x/manifests/{}?ns=docker.io", digest(INDEX));
    for (method, body) in [("GET", INDEX), ("HEAD", b"")] {
        let reply = front.ask(method, &path, &[]).await;
        assert_eq!((reply.status, reply.body.as_slice()), (200, body));
        assert_eq!(reply.header("Content-Type"), Some(OCI_INDEX));
        assert_eq!(reply.header("Content-Length"), Some(INDEX.len().to_string().as_str()));
        assert_eq!(reply.header("Docker-Content-Digest"), Some(digest(INDEX).to_string().as_str()));
        assert_eq!(reply.header("OCI-Namespace"), Some("docker.io"));
    }
    assert_eq!(front.fake.resolved.load(Relaxed), 0);
}

#[tokio::test]
async fn the_head_of_a_tag_is_answered_by_the_resolution_alone() {
    let front = Front::new(Fake::default().with_tag("v1", INDEX)).await;
    let path = "/v2/registry.test:5000/team/x/manifests/v1";
    let head = front.ask("HEAD", path, &[]).await;
    assert_eq!((head.status, head.header("Content-Type")), (200, Some(OCI_INDEX)));
    assert_eq!(head.header("Content-Length"), Some(INDEX.len().to_string().as_str()));
    assert_eq!(front.fake.opened.load(Relaxed), 0);
    let reply = front.get(path).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, INDEX));
    assert_eq!(reply.header("Docker-Content-Digest"), head.header("Docker-Content-Digest"));
    assert_eq!(front.fake.resolved.load(Relaxed), 1, "the answer is believed for its time");
    let tag = format!("\"{}\"", digest(INDEX));
    assert_eq!(front.ask("GET", path, &[("If-None-Match", &tag)]).await.status, 304);
}

#[tokio::test]
async fn confused_and_oversized_manifests_are_refused_and_not_remembered() {
    let both = br#"{"manifests":[],"layers":[]}"#.as_slice();
    let image = br#"{"config":{},"layers":[]}"#.as_slice();
    let large = vec![b' '; (4 << 20) + 1];
    for document in [both, image, large.as_slice()] {
        let front = Front::new(Fake::default().with_tag("v1", document)).await;
        for asked in 1..=2 {
            let reply = front.get("/v2/docker.io/x/manifests/v1").await;
            assert_eq!((reply.status, reply.code().as_str()), (400, "MANIFEST_INVALID"));
            if document.len() < large.len() {
                assert_eq!(front.fake.resolved.load(Relaxed), asked);
            }
        }
    }
    let front = Front::new(Fake::default().with_content(both).with_content(&large)).await;
    for document in [both, large.as_slice()] {
        let reply = front.get(&format!("/v2/docker.io/x/manifests/{}", digest(document))).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "MANIFEST_INVALID"));
    }
}

#[tokio::test]
async fn unknown_content_is_404_and_says_where_it_is_unknown() {
    let front = Front::new(Fake::default()).await;
    let manifest = format!("/v2/docker.io/x/manifests/{}", digest(INDEX));
    for (path, code) in [
        (blob_path(), "BLOB_UNKNOWN"),
        (manifest, "MANIFEST_UNKNOWN"),
        (String::from("/v2/docker.io/x/manifests/v1"), "MANIFEST_UNKNOWN"),
    ] {
        let reply = front.get(&path).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, code), "{path}");
        assert_eq!(reply.message(), "not found at origin docker.io");
        assert_eq!(front.ask("HEAD", &path, &[]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn refusals_of_the_node_become_503() {
    let fake = Fake::default().refusing(OpenError::Overloaded("shutting down"));
    let front = Front::new(fake).await;
    let reply = front.get(&blob_path()).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "UNAVAILABLE"));
    assert_eq!(reply.message(), "this node cannot serve now: shutting down");
}

#[tokio::test]
async fn silence_on_all_sides_is_answered_with_503_by_our_own_deadline() {
    let silent = Fake::default().silent();
    let front = Front::with(silent, |config| config.answer_deadline = Duration::from_millis(20)).await;
    let manifest = format!("/v2/docker.io/x/manifests/{}", digest(INDEX));
    for path in [blob_path(), manifest, String::from("/v2/docker.io/x/manifests/v1")] {
        for method in ["GET", "HEAD"] {
            let reply = front.ask(method, &path, &[]).await;
            assert_eq!(reply.status, 503, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn with_the_origin_down_a_size_is_learnt_from_peers() {
    let down = OriginError::Unavailable { host: String::from("docker.io"), why: String::from("refused") };
    let front = Front::new(Fake::default().with_content(BLOB).origin_failing(down)).await;
    let reply = front.ask("HEAD", &blob_path(), &[]).await;
    assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("43")));
    let reply = front.get("/v2/docker.io/x/manifests/v1").await;
    assert_eq!((reply.status, reply.message().as_str()), (503, "origin docker.io failed: refused"));
    let denied = OriginError::Denied { host: String::from("docker.io") };
    let front = Front::new(Fake::default().with_content(BLOB).origin_failing(denied)).await;
    assert_eq!(front.ask("HEAD", &blob_path(), &[]).await.status, 404);
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let front = Front::new(Fake::default().with_content(BLOB)).await;
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", blob_path());
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        while !reply.ends_with(BLOB) {
            assert_ne!(stream.read_buf(&mut reply).await.unwrap(), 0, "closed too early");
        }
        assert_eq!(front.metrics.client_connections.get(), 1);
    }
    // The idle connection must not hold up the end.
    front.shutdown.cancel();
    front.served.await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(front.metrics.client_connections.get(), 0);
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let registry = Registry::with_content(RegistryConfig::default(), Fake::default().shared(), Arc::default());
    let request = hyper::Request::get("/v2/").body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let response = registry.answer(request, "127.0.0.1:5050".parse().unwrap(), true).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn every_answer_is_counted_once_it_is_over() {
    let front = Front::new(Fake::default().with_content(BLOB).refusing(OpenError::Corrupt)).await;
    for path in ["/v2/", "/", &blob_path()] {
        front.get(path).await;
    }
    front.shutdown.cancel();
    front.served.await.unwrap();
    let metrics = &front.metrics;
    let page = metrics.encode();
    for (class, count) in [("2xx", 1), ("4xx", 1), ("5xx", 1)] {
        assert!(page.contains(&format!("shoal_http_responses_total{{class=\"{class}\"}} {count}\n")), "{page}");
    }
    assert_eq!(metrics.cut_bodies.get(), 0);
    assert_eq!(metrics.bytes_to_clients.get(), 0, "refusals are no content");
    assert!(page.contains("shoal_first_byte_seconds_count 0\n"), "{page}");
}

#[tokio::test]
async fn a_client_is_a_reader_while_it_is_sent_a_blob_and_the_first_byte_is_timed_once() {
    let metrics = Arc::<Metrics>::default();
    let config = RegistryConfig {
        upstreams: [("docker.io".to_owned(), fake::upstream("docker.io"))].into(),
        ..RegistryConfig::default()
    };
    let content = Fake::default().with_content(BLOB).with_content(INDEX).shared();
    let registry = Registry::with_content(config, content, Arc::clone(&metrics));
    let manifest_path = format!("/v2/docker.io/team/x/manifests/{}", digest(INDEX));
    let answer = async |method: &str, path: &str| {
        let request = hyper::Request::builder().method(method).uri(path).header("Host", "localhost");
        registry
            .answer(
                request.body(http_body_util::Empty::<Bytes>::new()).unwrap(),
                "127.0.0.1:5050".parse().unwrap(),
                false,
            )
            .await
    };
    let timed = |count: u32| metrics.encode().contains(&format!("shoal_first_byte_seconds_count {count}\n"));

    let blob = answer("GET", &blob_path()).await;
    assert_eq!((blob.status(), metrics.open_readers.get()), (StatusCode::OK, 1));
    assert!(timed(0));
    let sent = http_body_util::BodyExt::collect(blob.into_body()).await.unwrap().to_bytes();
    assert_eq!(
        (sent.as_ref(), metrics.open_readers.get(), metrics.bytes_to_clients.get()),
        (BLOB, 0, BLOB.len() as u64)
    );
    assert!(timed(1));

    let head = answer("HEAD", &blob_path()).await;
    let manifest = answer("GET", &manifest_path).await;
    assert_eq!((head.status(), manifest.status()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(metrics.open_readers.get(), 0, "neither reads a blob");
    http_body_util::BodyExt::collect(manifest.into_body()).await.unwrap();
    assert!(timed(1));
    assert_eq!(metrics.bytes_to_clients.get(), (BLOB.len() + INDEX.len()) as u64);
}

#[tokio::test]
async fn after_the_grace_what_is_left_is_cut() {
    let registry = Registry::with_content(RegistryConfig::default(), Fake::default().silent().shared(), Arc::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(serve(listener, None, registry.clone(), shutdown.clone(), Duration::ZERO));
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A request that never ends keeps its connection busy.
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v2/ HTTP/1.1\r\n").await.unwrap();
    assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
    shutdown.cancel();
    served.await.unwrap();
    assert_eq!(registry.inner.metrics.client_connections.get(), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_broken_credential_helper_costs_nothing_but_what_it_has_the_credential_for() {
    let broken = || CredentialError { place: String::from("helper x"), problem: String::from("it failed") };
    let front = Front::new(Fake::default().with_content(BLOB).without_credentials(broken())).await;
    assert_eq!(front.get(&blob_path()).await.body, BLOB, "what is public");
    let secret = Fake::default().without_credentials(broken());
    let denied = OriginError::Denied { host: String::from("docker.io") };
    let front = Front::new(secret.refusing(OpenError::Origin(denied))).await;
    let reply = front.get(&blob_path()).await;
    assert_eq!(reply.status, 503);
    assert!(reply.message().contains("helper x: it failed"), "{}", reply.message());
}
