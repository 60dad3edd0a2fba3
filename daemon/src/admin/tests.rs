#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{Read, Write},
    sync::Mutex,
    time::Duration,
};

use shoal_proto::{
    digest::{Algorithm, Digest},
    peer::PeerId,
    status::{Addresses, Totals},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::*;

/// Far beyond what any answer takes; only a hanging test ever waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"shoal")
}

fn report() -> Status {
    let address = "127.0.0.1:5051".parse().unwrap();
    Status {
        version: String::from("0.1.0"),
        name: PeerId([7; 32]).into(),
        addresses: Addresses {
            registry: vec![address],
            registry_tls: Vec::new(),
            registry_ca: None,
            p2p: address,
            observe: address,
        },
        uptime_seconds: 1,
        ready: true,
        peers: Vec::new(),
        dht_peers: 0,
        blobs: Vec::new(),
        fetches: Vec::new(),
        totals: Totals { bytes_to_peers: 99, ..Totals::default() },
    }
}

fn no_pulls(_: PullRequest) -> mpsc::Receiver<PullProgress> {
    mpsc::channel(1).1
}

/// A daemon's interfaces and what drives them.
struct Rig {
    admin: Admin,
    ready: watch::Sender<bool>,
    sources: AdminSources,
    directory: TempDir,
}

impl Rig {
    fn start() -> Self {
        Self::start_with(Arc::new(report), Arc::new(no_pulls))
    }

    fn start_with(
        status: Arc<dyn Fn() -> Status + Send + Sync>,
        pull: Arc<dyn Fn(PullRequest) -> mpsc::Receiver<PullProgress> + Send + Sync>,
    ) -> Self {
        let (ready, readiness) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let sources = AdminSources { status, pull, shutdown, ready: readiness, metrics: Arc::new(Metrics::new()) };
        let directory = tempfile::tempdir().unwrap();
        let admin = Admin::start(config(&directory), sources.clone()).unwrap();
        Self { admin, ready, sources, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(CONTROL_SOCKET)
    }

    async fn observe(&self, method: &str, path: &str) -> Answer {
        let stream = TcpStream::connect(self.admin.observe_address()).await.unwrap();
        exchange(stream, method, path, "").await
    }

    async fn control(&self, method: &str, path: &str, body: &str) -> Answer {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        exchange(stream, method, path, body).await
    }
}

fn config(directory: &TempDir) -> AdminConfig {
    AdminConfig { observe: "127.0.0.1:0".parse().unwrap(), control: directory.path().join(CONTROL_SOCKET) }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    /// The JSON lines of a chunked body; lengths and empty lines of the chunked encoding fall out.
    fn events(&self) -> Vec<PullProgress> {
        self.body.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str, body: &str) -> Answer {
    stream.write_all(request(method, path, body).as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    Answer::of(&text)
}

#[tokio::test]
async fn observe_shows_health_metrics_status_and_a_page() {
    let rig = Rig::start();
    rig.sources.metrics.bytes_from_origin.inc_by(5);
    assert_eq!(rig.observe("GET", "/healthz").await.status, 200);
    let metrics = rig.observe("GET", "/metrics").await;
    assert!(metrics.head.contains("content-type: application/openmetrics-text"), "{metrics:?}");
    assert!(metrics.body.contains("shoal_received_bytes_total{from=\"origin\"} 5\n"), "{metrics:?}");
    let status = rig.observe("GET", "/v1/status").await;
    assert_eq!(serde_json::from_str::<Status>(&status.body).unwrap(), report());
    let page = rig.observe("GET", "/").await;
    assert!(page.head.contains("content-type: text/html"), "{page:?}");
    assert!(page.head.contains("content-security-policy: default-src 'none'"), "{page:?}");
    assert!(page.body.contains("v1/status") && !page.body.contains("://"), "the page must not load from elsewhere");
    assert_eq!(rig.observe("HEAD", "/healthz").await.body, "");
}

#[tokio::test]
async fn readiness_follows_the_node_and_ends_with_shutdown() {
    let rig = Rig::start();
    assert_eq!(rig.observe("GET", "/readyz").await.status, 503);
    rig.ready.send_replace(true);
    assert_eq!(rig.observe("GET", "/readyz").await.status, 200);
    rig.sources.shutdown.cancel();
    let answer = rig.observe("GET", "/readyz").await;
    assert_eq!((answer.status, answer.body.as_str()), (503, "shutting down\n"));
    assert_eq!(rig.observe("GET", "/healthz").await.status, 200);
}

#[tokio::test]
async fn observe_changes_nothing_and_speaks_to_no_other_web_site() {
    let rig = Rig::start();
    for path in ["/v1/shutdown", "/v1/pull"] {
        assert_eq!(rig.observe("POST", path).await.status, 404);
    }
    assert_eq!(rig.observe("POST", "/v1/status").await.status, 405);
    assert!(!rig.sources.shutdown.is_cancelled());
    let answer = rig.observe("GET", "/v1/status").await;
    assert!(!answer.head.contains("access-control-allow"), "{answer:?}");
}

#[tokio::test]
async fn control_is_for_the_daemons_user_alone_and_shows_the_status() {
    let rig = Rig::start();
    let mode = fs::metadata(rig.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let status = rig.control("GET", "/v1/status", "").await;
    assert_eq!(serde_json::from_str::<Status>(&status.body).unwrap(), report());
}

#[tokio::test]
async fn shutdown_on_the_control_socket_is_answered_and_passed_on() {
    let rig = Rig::start();
    assert_eq!(rig.control("GET", "/v1/shutdown", "").await.status, 405);
    assert!(!rig.sources.shutdown.is_cancelled());
    assert_eq!(rig.control("POST", "/v1/shutdown", "").await.status, 202);
    assert!(rig.sources.shutdown.is_cancelled());
    assert_eq!(rig.control("POST", "/v1/pull", r#"{"image":"alpine"}"#).await.status, 503);
}

/// Interfaces whose pulls are led by the test: each hands out its request and the sender of its progress.
fn led_pulls() -> (Rig, mpsc::Receiver<(PullRequest, mpsc::Sender<PullProgress>)>) {
    let (pulls, led) = mpsc::channel(4);
    let pull = move |request| {
        // As the daemon does: the context must be that of a runtime.
        Handle::current();
        let (sender, progress) = mpsc::channel(4);
        pulls.try_send((request, sender)).unwrap();
        progress
    };
    (Rig::start_with(Arc::new(report), Arc::new(pull)), led)
}

#[tokio::test]
async fn a_pull_tells_its_progress_line_by_line_as_it_happens() {
    let (rig, mut led) = led_pulls();
    let stream = UnixStream::connect(rig.socket()).await.unwrap();
    let mut stream = BufReader::new(stream);
    stream.write_all(request("POST", "/v1/pull", r#"{"image":"alpine:3"}"#).as_bytes()).await.unwrap();
    let (asked, progress) = timeout(PATIENCE, led.recv()).await.unwrap().unwrap();
    assert_eq!(asked, PullRequest { image: String::from("alpine:3"), platform: None });
    let layer = |have| PullProgress::Layer { digest: digest(), size: 2, have };
    let done = PullProgress::Done { digest: digest(), bytes: 2, milliseconds: 1 };
    for event in [layer(1), layer(2), done] {
        progress.send(event.clone()).await.unwrap();
        let mut line = String::new();
        while !line.starts_with('{') {
            line.clear();
            assert_ne!(timeout(PATIENCE, stream.read_line(&mut line)).await.unwrap().unwrap(), 0, "ended too early");
        }
        assert_eq!(serde_json::from_str::<PullProgress>(&line).unwrap(), event);
    }
    let mut rest = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert!(!rest.contains('{'), "{rest}");
}

#[tokio::test]
async fn a_pull_that_is_given_up_still_ends_with_a_final_line() {
    let rig = Rig::start();
    let answer = rig.control("POST", "/v1/pull", r#"{"image":"alpine:3"}"#).await;
    assert_eq!(answer.status, 200);
    assert!(matches!(answer.events().as_slice(), [PullProgress::Failed { .. }]), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_pull_along() {
    let (rig, mut led) = led_pulls();
    let mut stream = UnixStream::connect(rig.socket()).await.unwrap();
    stream.write_all(request("POST", "/v1/pull", r#"{"image":"alpine"}"#).as_bytes()).await.unwrap();
    let (_, progress) = timeout(PATIENCE, led.recv()).await.unwrap().unwrap();
    drop(stream);
    timeout(PATIENCE, progress.closed()).await.unwrap();
}

#[tokio::test]
async fn malformed_pulls_are_refused_with_a_reason() {
    let (rig, mut led) = led_pulls();
    for body in ["", "alpine", "{}", r#"{"image":"a","imgae":"b"}"#] {
        let answer = rig.control("POST", "/v1/pull", body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.body.contains("not a pull request"), "{answer:?}");
    }
    let huge = format!(r#"{{"image":"{}"}}"#, "a".repeat(64 * 1024));
    assert_eq!(rig.control("POST", "/v1/pull", &huge).await.status, 413);
    assert!(led.try_recv().is_err());
}

#[tokio::test]
async fn health_is_answered_while_the_status_hangs() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let status = move || {
        held.lock().unwrap().recv().ok();
        report()
    };
    let rig = Rig::start_with(Arc::new(status), Arc::new(no_pulls));
    let mut hanging = TcpStream::connect(rig.admin.observe_address()).await.unwrap();
    hanging.write_all(request("GET", "/v1/status", "").as_bytes()).await.unwrap();
    assert_eq!(rig.observe("GET", "/healthz").await.status, 200);
    drop(release);
    let mut text = String::new();
    timeout(PATIENCE, hanging.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(Answer::of(&text).status, 200);
}

#[test]
fn the_interfaces_answer_while_the_nodes_runtime_is_stuck() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rig = runtime.block_on(async { Rig::start() });
    // From here on nothing drives the runtime.
    for path in ["/healthz", "/metrics", "/v1/status"] {
        let mut stream = std::net::TcpStream::connect(rig.admin.observe_address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request("GET", path, "").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(Answer::of(&text).status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_socket_of_a_dead_daemon_is_replaced_and_ours_is_removed_at_the_end() {
    let rig = Rig::start();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join(CONTROL_SOCKET);
    drop(UnixListener::bind(&socket).unwrap());
    assert!(UnixStream::connect(&socket).await.is_err(), "nobody listens there");
    let admin = Admin::start(config(&directory), rig.sources.clone()).unwrap();
    let stream = UnixStream::connect(&socket).await.unwrap();
    assert_eq!(exchange(stream, "GET", "/v1/status", "").await.status, 200);
    let address = admin.observe_address();
    admin.stop().await;
    assert!(!socket.exists());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn what_is_in_the_way_is_named() {
    let rig = Rig::start();
    let directory = tempfile::tempdir().unwrap();
    let taken = AdminConfig { observe: rig.admin.observe_address(), ..config(&directory) };
    let error = Admin::start(taken, rig.sources.clone()).unwrap_err();
    assert!(matches!(error, AdminError::Observe { address, .. } if address == rig.admin.observe_address()), "{error}");

    let file = directory.path().join(CONTROL_SOCKET);
    fs::write(&file, "precious").unwrap();
    let error = Admin::start(config(&directory), rig.sources.clone()).unwrap_err();
    assert!(matches!(&error, AdminError::Occupied(path) if *path == file), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let deep = AdminConfig { control: directory.path().join("d".repeat(120)), ..config(&directory) };
    let error = Admin::start(deep, rig.sources.clone()).unwrap_err();
    assert!(matches!(error, AdminError::Control { .. }), "{error}");
}
