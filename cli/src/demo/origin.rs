//! A small origin registry on loopback: the pull half of the OCI distribution API over generated images, with counters, a log
//! of requests and a real rate cap. It behaves, until it is told to break off.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use shoal_daemon::rate::Bucket;
use shoal_proto::{digest::Digest, units::Rate};
use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::image::{Blob, Image, MANIFEST_TYPE};

/// Requests kept in the log; later ones are counted only.
const LOG_MAX: usize = 10_000;
/// Bytes read and sent in one go if no rate cap asks for smaller pieces.
const PIECE_MAX: usize = 512 << 10;
/// Fewest bytes that are worth it.
const PIECE_MIN: usize = 16 << 10;

/// How to start an [`Origin`].
#[derive(Debug)]
pub struct OriginOptions {
    /// Where it listens; port 0 for any.
    pub listen: SocketAddr,
    /// What it has.
    pub images: Vec<Image>,
    /// Cap on the bytes per second of all its bodies together.
    pub rate: Option<Rate>,
}

impl OriginOptions {
    /// One image on any loopback port, without a cap.
    #[must_use]
    pub fn of(image: Image) -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 0).into(), images: vec![image], rate: None }
    }
}

/// A running registry; dropping it stops it and breaks off what it is sending.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

/// What an origin was asked for and has sent, since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct OriginCounts {
    /// Bytes of blobs and manifests handed to the sockets, without headers and error bodies.
    pub body_bytes: u64,
    /// GETs of blobs that it has, ranges included.
    pub blob_gets: u64,
    /// GETs of manifests that it has.
    pub manifest_gets: u64,
    /// HEADs of either.
    pub heads: u64,
    /// GETs of either that it answered with 429; they are not among the others.
    pub refused: u64,
    /// Bodies that it broke off.
    pub broken: u64,
}

/// One line of the request log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRequest {
    /// For example `GET`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The answer.
    pub status: u16,
}

impl Origin {
    /// Binds and serves until dropped.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(options: OriginOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        // Where BBR is the system's default it halves the speed of loopback; accepted sockets inherit this. Without Cubic
        // the default stays.
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::net::sockopt::set_tcp_congestion(&listener, "cubic") {
            tracing::debug!(%error, "the origin keeps the default congestion control");
        }
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            images: options.images,
            piece: options.rate.map_or(PIECE_MAX, piece),
            bucket: Bucket::optional(options.rate),
            sent: watch::Sender::new(0),
            bodies: Mutex::new(stop.child_token()),
            refusing: Mutex::default(),
            counters: Counters::default(),
            log: Mutex::default(),
            stop: stop.clone(),
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let listener = listener.tap_io(|socket| {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "the origin serves a connection without TCP_NODELAY");
            }
        });
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future());
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked for and has sent so far.
    #[must_use]
    pub fn counts(&self) -> OriginCounts {
        let Counters { blob_gets, manifest_gets, heads, refused, broken } = &self.shared.counters;
        OriginCounts {
            body_bytes: *self.shared.sent.borrow(),
            blob_gets: blob_gets.load(Ordering::Relaxed),
            manifest_gets: manifest_gets.load(Ordering::Relaxed),
            heads: heads.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            broken: broken.load(Ordering::Relaxed),
        }
    }

    /// Waits until it has sent so many bytes of bodies, which may never be.
    pub async fn sent(&self, bytes: u64) {
        // The sender lives as long as this.
        self.shared.sent.subscribe().wait_for(|sent| *sent >= bytes).await.ok();
    }

    /// Breaks off all bodies that it is sending, and answers every GET with 429 and `Retry-After: 1` for so long.
    pub fn refuse(&self, time: Duration) {
        *self.shared.refusing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + time);
        let next = self.shared.stop.child_token();
        std::mem::replace(&mut *self.shared.bodies.lock().unwrap_or_else(PoisonError::into_inner), next).cancel();
    }

    /// The first 10,000 requests, in the order of their answers.
    #[must_use]
    pub fn requests(&self) -> Vec<OriginRequest> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug)]
struct Shared {
    images: Vec<Image>,
    bucket: Bucket,
    piece: usize,
    /// Bytes of bodies.
    sent: watch::Sender<u64>,
    /// Cancelled to break off the bodies that are being sent; those that come later have another one.
    bodies: Mutex<CancellationToken>,
    /// GETs are refused until then.
    refusing: Mutex<Option<Instant>>,
    counters: Counters,
    log: Mutex<Vec<OriginRequest>>,
    stop: CancellationToken,
}

impl Shared {
    fn is_refusing(&self) -> bool {
        let until = *self.refusing.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

#[derive(Debug, Default)]
struct Counters {
    blob_gets: AtomicU64,
    manifest_gets: AtomicU64,
    heads: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (method, target) = (request.method().to_string(), request.uri().to_string());
    let range =
        request.headers().get(header::RANGE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let response = route(&shared, request.method(), request.uri().path(), request.headers());
    let mut log = shared.log.lock().unwrap_or_else(PoisonError::into_inner);
    if log.len() < LOG_MAX {
        log.push(OriginRequest { method, target, range, status: response.status().as_u16() });
    }
    response
}

fn route(shared: &Arc<Shared>, method: &Method, path: &str, headers: &HeaderMap) -> Response {
    let head = match *method {
        Method::GET => false,
        Method::HEAD => true,
        _ => return refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "only pulls are possible"),
    };
    let Some(rest) = path.strip_prefix("/v2/") else {
        return refuse(StatusCode::NOT_FOUND, "UNSUPPORTED", "not part of the registry API");
    };
    if rest.is_empty() {
        return ([API_VERSION], "{}").into_response();
    }
    if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
        let Some(manifest) = find_manifest(&shared.images, repository, reference) else {
            return refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        let counter = if head { &shared.counters.heads } else { &shared.counters.manifest_gets };
        return limited(shared, head, counter, || content(shared, manifest, MANIFEST_TYPE, head, headers));
    }
    if let Some((repository, reference)) = rest.rsplit_once("/blobs/") {
        let Some(blob) = find_blob(&shared.images, repository, reference) else {
            return refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let counter = if head { &shared.counters.heads } else { &shared.counters.blob_gets };
        return limited(shared, head, counter, || content(shared, blob, "application/octet-stream", head, headers));
    }
    refuse(StatusCode::NOT_FOUND, "UNSUPPORTED", "not part of the pull API")
}

/// The answer to a request for what it has; 429 to a GET while it refuses.
fn limited(shared: &Shared, head: bool, counter: &AtomicU64, answer: impl FnOnce() -> Response) -> Response {
    if !head && shared.is_refusing() {
        shared.counters.refused.fetch_add(1, Ordering::Relaxed);
        let refusal = refuse(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many requests");
        return ([(header::RETRY_AFTER, "1")], refusal).into_response();
    }
    counter.fetch_add(1, Ordering::Relaxed);
    answer()
}

fn find_manifest<'a>(images: &'a [Image], repository: &str, reference: &str) -> Option<&'a Blob> {
    let digest = reference.parse::<Digest>().ok();
    images
        .iter()
        .find(|image| {
            image.repository == repository && (image.tag == reference || Some(image.manifest.digest) == digest)
        })
        .map(|image| &image.manifest)
}

fn find_blob<'a>(images: &'a [Image], repository: &str, reference: &str) -> Option<&'a Blob> {
    let digest: Digest = reference.parse().ok()?;
    let mut blobs = images.iter().filter(|image| image.repository == repository).flat_map(Image::blobs);
    blobs.find(|blob| blob.digest == digest)
}

const API_VERSION: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    (status, [API_VERSION], axum::Json(body)).into_response()
}

fn content(shared: &Arc<Shared>, blob: &Blob, media_type: &str, head: bool, headers: &HeaderMap) -> Response {
    let answer = Response::builder()
        .header(API_VERSION.0, API_VERSION.1)
        .header(header::CONTENT_TYPE, media_type)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{}\"", blob.digest))
        .header("docker-content-digest", blob.digest.to_string());
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (answer, range) = match range.map_or(Asked::Whole, |range| asked(range, blob.size)) {
        Asked::Whole => (answer.status(StatusCode::OK), 0..blob.size),
        Asked::Part(range) => {
            let shown = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.size);
            (answer.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, shown), range)
        }
        Asked::Beyond => {
            let shown = format!("bytes */{}", blob.size);
            (answer.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, shown), 0..0)
        }
    };
    let answer = answer.header(header::CONTENT_LENGTH, range.end - range.start);
    let body = if head || range.is_empty() {
        Body::empty()
    } else {
        Body::from_stream(send(shared.clone(), blob.clone(), range))
    };
    answer.body(body).unwrap_or_else(|error| {
        tracing::debug!(%error, "the origin cannot build an answer");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

/// What a `Range` header means for content of a certain size.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Malformed, of another unit, or of several ranges: as if it were not there.
    Whole,
    /// Never empty.
    Part(Range<u64>),
    /// Nothing of it exists.
    Beyond,
}

fn asked(range: &str, size: u64) -> Asked {
    let Some((first, last)) = range.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::Whole;
    };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(count)) if first.trim().is_empty() => size.saturating_sub(count)..size,
        _ => return Asked::Whole,
    };
    if range.is_empty() { Asked::Beyond } else { Asked::Part(range) }
}

/// What streams take at a time under a cap: 10 ms worth, so that they share it evenly and smoothly.
fn piece(rate: Rate) -> usize {
    usize::try_from(rate.0 / 100).unwrap_or(PIECE_MAX).clamp(PIECE_MIN, PIECE_MAX)
}

fn send(shared: Arc<Shared>, blob: Blob, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let over = shared.bodies.lock().unwrap_or_else(PoisonError::into_inner).clone();
    stream::try_unfold((shared, blob, range, over), move |(shared, blob, range, over)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let length = usize::try_from(range.end - range.start).map_or(shared.piece, |left| left.min(shared.piece));
        let piece = async {
            shared.bucket.take(length as u64).await;
            read(&blob, range.start, length).await
        };
        let piece = tokio::select! {
            piece = piece => piece?,
            () = over.cancelled() => {
                shared.counters.broken.fetch_add(1, Ordering::Relaxed);
                return Err(io::Error::other("the origin breaks off"));
            }
        };
        shared.sent.send_modify(|sent| *sent += length as u64);
        let rest = range.start + length as u64..range.end;
        Ok(Some((piece, (shared, blob, rest, over))))
    })
}

/// Reads a piece, off the async threads if it lies on disk.
async fn read(blob: &Blob, offset: u64, length: usize) -> io::Result<Bytes> {
    if blob.memory().is_some() {
        return blob.read(offset, length);
    }
    let blob = blob.clone();
    tokio::task::spawn_blocking(move || blob.read(offset, length)).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use shoal_proto::digest::Algorithm;

    use super::*;
    use crate::demo::{image::ImageSpec, layers::uneven};

    async fn origin(bytes: u64, rate: Option<Rate>) -> (tempfile::TempDir, Image, Origin) {
        let dir = tempfile::tempdir().unwrap();
        let layers = uneven(bytes, 3).unwrap();
        let spec = ImageSpec { repository: "demo/image".into(), tag: "v1".into(), layers, seed: 1 };
        let image = Image::generate(dir.path(), &spec).unwrap();
        let origin = Origin::start(OriginOptions { rate, ..OriginOptions::of(image.clone()) }).await.unwrap();
        (dir, image, origin)
    }

    fn url(origin: &Origin, path: &str) -> String {
        format!("http://{}/v2/{path}", origin.address())
    }

    async fn ranged(origin: &Origin, blob: &Blob, range: &str) -> (StatusCode, Option<String>, Bytes) {
        let url = url(origin, &format!("demo/image/blobs/{}", blob.digest));
        let response = reqwest::Client::new().get(url).header("range", range).send().await.unwrap();
        let shown = response.headers().get("content-range").map(|value| value.to_str().unwrap().to_owned());
        (StatusCode::from_u16(response.status().as_u16()).unwrap(), shown, response.bytes().await.unwrap())
    }

    #[tokio::test]
    async fn a_client_can_pull_the_whole_image_and_each_body_byte_is_counted_once() {
        let (_dir, image, origin) = origin(3 << 20, None).await;
        let client = reqwest::Client::new();
        assert_eq!(client.get(url(&origin, "")).send().await.unwrap().status(), 200);
        let manifest = client.get(url(&origin, "demo/image/manifests/v1")).send().await.unwrap();
        assert_eq!(manifest.headers()["content-type"], MANIFEST_TYPE);
        assert_eq!(manifest.headers()["docker-content-digest"], image.manifest.digest.to_string());
        assert_eq!(&manifest.bytes().await.unwrap(), image.manifest.memory().unwrap());
        for blob in image.blobs() {
            let response = client.get(url(&origin, &format!("demo/image/blobs/{}", blob.digest))).send().await.unwrap();
            assert_eq!(response.content_length(), Some(blob.size));
            assert_eq!(Digest::of(Algorithm::Sha256, &response.bytes().await.unwrap()), blob.digest);
        }
        let counts =
            OriginCounts { body_bytes: image.bytes(), blob_gets: 4, manifest_gets: 1, ..OriginCounts::default() };
        assert_eq!(origin.counts(), counts);
        assert_eq!(origin.requests()[1].target, "/v2/demo/image/manifests/v1");
        assert_eq!(origin.requests().len(), 6);
    }

    #[tokio::test]
    async fn a_head_tells_size_and_digest_and_costs_no_body_bytes() {
        let (_dir, image, origin) = origin(1 << 20, None).await;
        let layer = format!("demo/image/blobs/{}", image.layers[0].digest);
        for (path, blob) in [("demo/image/manifests/v1", &image.manifest), (layer.as_str(), &image.layers[0])] {
            let response = reqwest::Client::new().head(url(&origin, path)).send().await.unwrap();
            assert_eq!(response.headers()["content-length"], blob.size.to_string());
            assert_eq!(response.headers()["docker-content-digest"], blob.digest.to_string());
        }
        assert_eq!(origin.counts(), OriginCounts { heads: 2, ..OriginCounts::default() });
    }

    #[tokio::test]
    async fn ranges_are_answered_with_just_those_bytes() {
        let (_dir, image, origin) = origin(3 << 20, None).await;
        let layer = &image.layers[0];
        let whole = layer.read(0, usize::try_from(layer.size).unwrap()).unwrap();
        for (range, expected) in [
            ("bytes=0-99", 0..100),
            ("bytes=700000-", 700_000..whole.len()),
            ("bytes=-10", whole.len() - 10..whole.len()),
        ] {
            let (status, shown, body) = ranged(&origin, layer, range).await;
            assert_eq!(status, StatusCode::PARTIAL_CONTENT);
            assert_eq!(shown, Some(format!("bytes {}-{}/{}", expected.start, expected.end - 1, whole.len())));
            assert_eq!(body, whole[expected]);
        }
        let (status, shown, _) = ranged(&origin, layer, &format!("bytes={}-", layer.size)).await;
        assert_eq!((status, shown), (StatusCode::RANGE_NOT_SATISFIABLE, Some(format!("bytes */{}", layer.size))));
    }

    #[test]
    fn odd_range_headers_are_ignored_or_unsatisfiable() {
        for range in ["bytes=5-4", "items=0-1", "bytes=a-b", "bytes=0-1,4-5", "bytes=-", ""] {
            assert_eq!(asked(range, 10), Asked::Whole, "{range}");
        }
        assert_eq!(asked("bytes=10-", 10), Asked::Beyond);
        assert_eq!(asked("bytes=-0", 10), Asked::Beyond);
        assert_eq!(asked("bytes=0-18446744073709551615", 10), Asked::Part(0..10));
        assert_eq!(asked("bytes=-99", 10), Asked::Part(0..10));
    }

    #[tokio::test]
    async fn what_it_does_not_have_is_refused_with_a_registry_error_and_not_counted() {
        let (_dir, image, origin) = origin(1 << 20, None).await;
        let elsewhere = format!("other/image/blobs/{}", image.layers[0].digest);
        for (path, code) in [
            ("demo/image/manifests/v2", "MANIFEST_UNKNOWN"),
            (elsewhere.as_str(), "BLOB_UNKNOWN"),
            ("demo/image/tags/list", "UNSUPPORTED"),
        ] {
            let response = reqwest::get(url(&origin, path)).await.unwrap();
            assert_eq!(response.status(), 404);
            let body: serde_json::Value = response.json().await.unwrap();
            assert_eq!(body["errors"][0]["code"], code);
        }
        assert_eq!(origin.counts(), OriginCounts::default());
    }

    #[tokio::test]
    async fn a_stopped_origin_ends_its_bodies_early_and_answers_no_more() {
        let (_dir, image, origin) = origin(3 << 20, Some(Rate(100_000))).await;
        let target = url(&origin, &format!("demo/image/blobs/{}", image.layers[0].digest));
        let mut response = reqwest::get(&target).await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
        drop(origin);
        let error = loop {
            match response.chunk().await {
                Ok(piece) => assert!(piece.is_some(), "the body must not end as if complete"),
                Err(error) => break error,
            }
        };
        assert!(error.is_body() || error.is_decode(), "{error:?}");
    }

    #[tokio::test]
    async fn while_it_refuses_gets_are_answered_with_429_and_what_it_was_sending_is_broken_off() {
        let (_dir, image, origin) = origin(3 << 20, Some(Rate(100_000))).await;
        let target = url(&origin, &format!("demo/image/blobs/{}", image.layers[0].digest));
        let mut response = reqwest::get(&target).await.unwrap();
        origin.sent(1).await;
        origin.refuse(Duration::from_secs(3600));
        while let Ok(piece) = response.chunk().await {
            assert!(piece.is_some(), "the body must not end as if complete");
        }
        for target in [target.clone(), url(&origin, "demo/image/manifests/v1")] {
            let refused = reqwest::get(target).await.unwrap();
            assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
        }
        let head = reqwest::Client::new().head(&target).send().await.unwrap();
        assert_eq!(head.status(), 200, "HEADs go on");
        let counts = origin.counts();
        assert_eq!((counts.refused, counts.broken, counts.blob_gets, counts.manifest_gets), (2, 1, 1, 0));
        origin.refuse(Duration::ZERO);
        assert_eq!(reqwest::get(&target).await.unwrap().status(), 200);
    }
}
