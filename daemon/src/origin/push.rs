//! The push half of the distribution specification: one request of an upload at a time, bodies streamed.
//!
//! A body that came from the client is gone once it is sent, so only requests without one are tried again: after a login, or once
//! when the connection broke. Else the client goes on or begins anew. No redirect is followed, and a [`Location`] is only ever one that this registry named on its own host.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use reqwest::{
    Method, Response, StatusCode,
    header::{
        AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
    },
};
use serde::Deserialize;
use shoal_proto::digest::Digest;
use tokio::time::{sleep, timeout, timeout_at};
use url::Url;

use super::{
    Kind, Origin, OriginError, Upstream,
    error::{Failure, Retry},
    exchange::{self, Request, refusal},
    upstream::authority,
    warning::warnings,
};

/// Longest time without a byte that moves. The registry may also be writing, so this is longer than for what it sends.
const IDLE: Duration = Duration::from_secs(60);
/// How many times as long a registry is waited for once it has every byte of a blob: large ones are put together then.
const IDLE_AT_END: u32 = 5;
/// Largest error document that is read, in bytes.
const REFUSAL_BYTES: usize = 64 * 1024;
/// Longest `Location` and its likes, in bytes.
const HEADER_BYTES: usize = 8 * 1024;

const RANGE: HeaderName = HeaderName::from_static("range");
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Where an upload goes on: on the host of its registry, as that one said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(Url);

/// What an upload asks next.
#[derive(Debug)]
pub enum Step {
    /// `POST /v2/<name>/blobs/uploads/` with this query; a mount may have to read from another repository.
    Begin {
        /// Ready to be sent.
        query: String,
        /// The repository to mount from.
        from: Option<String>,
    },
    /// A request to where the upload goes on; `digest` ends it.
    Go {
        /// `GET`, `PATCH`, `PUT` or `DELETE`.
        method: Method,
        /// As the registry said last.
        location: Location,
        /// What the whole blob must be.
        digest: Option<Digest>,
    },
    /// `PUT /v2/<name>/manifests/<reference>`.
    Manifest {
        /// A tag or a digest.
        reference: String,
    },
}

/// What a request carries.
pub enum Payload {
    /// Nothing.
    Empty,
    /// Bytes at hand.
    Bytes(Bytes),
    /// Bytes that are still coming, and how many, if that is known.
    Stream(BoxStream<'static, io::Result<Bytes>>, Option<u64>),
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Stream(_, length) => write!(f, "Stream({length:?})"),
        }
    }
}

/// One request of an upload.
#[derive(Debug)]
pub struct Push {
    /// The registry.
    pub upstream: Arc<Upstream>,
    /// The repository there.
    pub repository: String,
    /// What is asked.
    pub step: Step,
    /// Its body.
    pub payload: Payload,
    /// The type of the body.
    pub content_type: Option<HeaderValue>,
    /// Which bytes of the blob the body is: first and last.
    pub content_range: Option<(u64, u64)>,
    /// The client's own account, as it wrote it; without, that of the upstream is used.
    pub authorization: Option<HeaderValue>,
}

/// How the registry answered.
#[derive(Debug)]
pub struct Pushed {
    /// A success, or a refusal that the client must hear of (400, 404, 405, 409, 413, 415, 416, 422).
    pub status: StatusCode,
    /// Where the upload goes on.
    pub location: Option<Location>,
    /// The last byte that the registry has.
    pub last: Option<u64>,
    /// The least length of a chunk that it wants.
    pub chunk_min_length: Option<u64>,
    /// What it says the content is.
    pub digest: Option<Digest>,
    /// The subject of a manifest, if it keeps referrers.
    pub subject: Option<Digest>,
    /// The error code of a refusal.
    pub code: Option<String>,
    /// What it wants people to be told.
    pub warnings: Vec<HeaderValue>,
}

/// How far a body is, for whoever watches that it moves.
#[derive(Debug, Default)]
struct Moves(AtomicU64);

impl Moves {
    const ENDED: u64 = u64::MAX;
}

impl Origin {
    /// Sends one request of an upload. Waits as long as bytes move.
    ///
    /// # Errors
    /// See [`OriginError`]; refusals that a client can mend are no errors.
    pub async fn push(&self, push: Push) -> Result<Pushed, OriginError> {
        let Push { upstream, repository, step, payload, content_type, content_range, authorization: own } = push;
        let (method, url) = target(&upstream, &repository, &step);
        let request = Request {
            upstream: &upstream,
            repository: &repository,
            kind: Kind::Blob,
            reference: String::new(),
            method,
            accept: None,
            range: None,
            place: None,
            scopes: scopes(&repository, &step),
        };
        let mut headers = HeaderMap::new();
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        headers.extend(content_range.and_then(|(first, last)| {
            let value = HeaderValue::try_from(format!("{first}-{last}")).ok()?;
            Some((CONTENT_RANGE, value))
        }));
        let repeated = match &payload {
            Payload::Empty => Some(Bytes::new()),
            Payload::Bytes(bytes) => Some(bytes.clone()),
            Payload::Stream(..) => None,
        };
        let authorization = match &own {
            Some(own) => Some(own.clone()),
            None => self.push_authorization(&request, repeated.is_none()).await?,
        };
        let idle_at_end = match &step {
            Step::Go { digest: Some(_), .. } => IDLE_AT_END,
            Step::Begin { .. } if repeated.is_none() => IDLE_AT_END,
            Step::Begin { .. } | Step::Go { .. } | Step::Manifest { .. } => 1,
        };
        // Whoever ends an upload twice is told that there is none.
        let again = repeated.clone().filter(|_| !matches!(step, Step::Go { .. }));
        let call = (&request, &url, idle_at_end);
        let response = match (self.deliver(call, headers.clone(), authorization.as_ref(), payload).await, again) {
            (Err(failure), Some(bytes)) if failure.retry != Retry::Never => {
                self.metrics.origin_retries.inc();
                self.deliver(call, headers.clone(), authorization.as_ref(), Payload::Bytes(bytes)).await
            }
            (delivered, _) => delivered,
        };
        let response = response.map_err(|failure| failure.error)?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return judge(&upstream, &url, response).await;
        }
        // A body that came from the client is gone; and its own account was refused, not ours.
        let (Some(bytes), None) = (repeated, own) else { return Err(OriginError::Denied { host: authority(&url) }) };
        let login = self.log_in(&request, response.headers(), authorization.as_ref());
        let authorization = timeout_at(self.deadline(), login).await.map_err(|_| late(&upstream))?;
        let authorization = authorization.map_err(|failure| failure.error)?;
        let response = self.deliver(call, headers, Some(&authorization), Payload::Bytes(bytes)).await;
        judge(&upstream, &url, response.map_err(|failure| failure.error)?).await
    }

    /// What to show with the first try. Before a body that cannot be sent twice, a registry that has not been asked yet is
    /// asked at its root how it wants to be shown who we are.
    async fn push_authorization(
        &self,
        request: &Request<'_>,
        only_once: bool,
    ) -> Result<Option<HeaderValue>, OriginError> {
        let upstream = request.upstream;
        let known = async {
            if only_once && upstream.challenge().is_none() {
                let root = self.headers_of(upstream, Method::GET, upstream.root_url(), HeaderMap::new()).await?;
                if root.status() == StatusCode::UNAUTHORIZED {
                    return self.log_in(request, root.headers(), None).await.map(Some);
                }
            }
            self.known_authorization(request).await
        };
        let known = timeout_at(self.deadline(), known).await.map_err(|_| late(upstream))?;
        known.map_err(|failure| failure.error)
    }

    /// One exchange up to the response headers, given up only when nothing moves.
    async fn deliver(
        &self,
        (request, url, idle_at_end): (&Request<'_>, &Url, u32),
        mut headers: HeaderMap,
        authorization: Option<&HeaderValue>,
        payload: Payload,
    ) -> Result<Response, Failure> {
        self.metrics.origin_pushes.inc();
        headers.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
        let moves = Arc::new(Moves::default());
        let body = match payload {
            Payload::Empty => Bytes::new().into(),
            Payload::Bytes(bytes) => bytes.into(),
            Payload::Stream(stream, length) => {
                headers.extend(length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
                watched(stream, Arc::clone(&moves))
            }
        };
        if !matches!(request.method, Method::GET | Method::DELETE) && body.as_bytes().is_some_and(<[u8]>::is_empty) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        if body.as_bytes().is_some() {
            moves.0.store(Moves::ENDED, Relaxed);
        }
        let sent =
            request.upstream.client(url).request(request.method.clone(), url.clone()).headers(headers).body(body);
        let host = authority(url);
        tokio::select! {
            sent = sent.send() => sent.map_err(|error| Failure::transport(&host, error)),
            () = stalled(&moves, idle_at_end) => {
                Err(Failure::fatal(OriginError::unavailable(host.as_str(), "the upload stalled")))
            }
        }
    }
}

fn late(upstream: &Upstream) -> OriginError {
    OriginError::unavailable(upstream.host(), "no login within the deadline")
}

fn target(upstream: &Upstream, repository: &str, step: &Step) -> (Method, Url) {
    match step {
        Step::Begin { query, .. } => {
            let mut url = upstream.content_url(repository, Kind::Blob, "uploads");
            if let Ok(mut path) = url.path_segments_mut() {
                path.push("");
            }
            url.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
            (Method::POST, url)
        }
        Step::Go { method, location, digest } => {
            let mut url = location.0.clone();
            if let Some(digest) = digest {
                url.query_pairs_mut().append_pair("digest", &digest.to_string());
            }
            (method.clone(), url)
        }
        Step::Manifest { reference } => (Method::PUT, upstream.content_url(repository, Kind::Manifest, reference)),
    }
}

/// What a token must be good for. The same for every step, because the token of the first is used by the others.
fn scopes(repository: &str, step: &Step) -> Vec<String> {
    let mut scopes = vec![format!("repository:{repository}:pull,push")];
    if let Step::Begin { from: Some(from), .. } = step {
        scopes.push(format!("repository:{from}:pull"));
    }
    scopes
}

/// A body that notes whenever a piece of it leaves.
fn watched(stream: BoxStream<'static, io::Result<Bytes>>, moves: Arc<Moves>) -> reqwest::Body {
    let stream = futures_util::stream::unfold((stream, moves), async |(mut stream, moves)| {
        let next = stream.next().await;
        let moved = if next.is_some() { moves.0.load(Relaxed) + 1 } else { Moves::ENDED };
        moves.0.store(moved, Relaxed);
        next.map(|item| (item, (stream, moves)))
    });
    reqwest::Body::wrap_stream(stream)
}

/// Ends when nothing has moved for too long.
async fn stalled(moves: &Moves, idle_at_end: u32) {
    let mut watch = Watch { seen: moves.0.load(Relaxed), idle: 0, idle_at_end };
    loop {
        sleep(IDLE).await;
        if watch.gives_up(moves.0.load(Relaxed)) {
            return;
        }
    }
}

/// Looks at a body once in a while.
struct Watch {
    seen: u64,
    /// Looks in a row at which nothing had moved.
    idle: u32,
    /// How many of them it takes once everything is sent.
    idle_at_end: u32,
}

impl Watch {
    fn gives_up(&mut self, now: u64) -> bool {
        self.idle = if now == self.seen { self.idle + 1 } else { 0 };
        self.seen = now;
        self.idle >= if now == Moves::ENDED { self.idle_at_end } else { 1 }
    }
}

/// Sorts a final response into what the client must hear of and failures.
async fn judge(upstream: &Upstream, url: &Url, response: Response) -> Result<Pushed, OriginError> {
    let (status, host) = (response.status(), authority(url));
    let headers = response.headers();
    let refused = match status.as_u16() {
        200..=299 => false,
        400 | 404 | 405 | 409 | 413 | 415 | 416 | 422 => true,
        300..=399 => return Err(OriginError::protocol(host, "redirects an upload")),
        _ => return Err(refusal(status, headers, host).error),
    };
    let location = match headers.get(LOCATION) {
        Some(location) if status == StatusCode::ACCEPTED || status == StatusCode::NO_CONTENT => {
            Some(location_of(upstream, url, location).map_err(|why| OriginError::protocol(host.as_str(), why))?)
        }
        _ => None,
    };
    let mut pushed = Pushed {
        status,
        location,
        last: header(headers, &RANGE).and_then(last_byte),
        chunk_min_length: header(headers, &CHUNK_MIN_LENGTH).and_then(number),
        digest: header(headers, &CONTENT_DIGEST).and_then(|text| text.parse().ok()),
        subject: header(headers, &SUBJECT).and_then(|text| text.parse().ok()),
        code: None,
        warnings: warnings(headers),
    };
    if refused && let Ok(Ok(body)) = timeout(IDLE, exchange::collect(response, REFUSAL_BYTES)).await {
        pushed.code = code(&body);
    }
    Ok(pushed)
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Where an upload goes on, if that is on the registry's own host.
fn location_of(upstream: &Upstream, url: &Url, location: &HeaderValue) -> Result<Location, &'static str> {
    let location = location.to_str().ok().filter(|location| location.len() <= HEADER_BYTES);
    let next = location.and_then(|location| url.join(location).ok()).ok_or("an upload that goes on at no URL")?;
    if !upstream.is_home(&next) || !next.username().is_empty() || next.password().is_some() {
        return Err("an upload that goes on at another host");
    }
    Ok(Location(next))
}

/// The last byte of `Range: 0-last`, with or without the unit.
fn last_byte(text: &str) -> Option<u64> {
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    (number(first)? == 0).then(|| number(last))?
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The first error code in an error document.
fn code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Envelope {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: String,
    }
    serde_json::from_slice::<Envelope>(body).ok()?.errors.into_iter().next().map(|entry| entry.code)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{super::UpstreamSettings, *};

    fn upstream() -> Upstream {
        Upstream::new(UpstreamSettings::new("test", "https://a.test/mirror".parse().unwrap())).unwrap()
    }

    fn location(text: &str) -> Result<String, &'static str> {
        let url = "https://a.test/mirror/v2/x/blobs/uploads/".parse().unwrap();
        location_of(&upstream(), &url, &HeaderValue::from_str(text).unwrap()).map(|location| location.0.to_string())
    }

    #[test]
    fn an_upload_goes_on_at_its_own_registry_only() {
        for (text, url) in [
            ("/mirror/v2/x/blobs/uploads/1?_state=a%3D", "https://a.test/mirror/v2/x/blobs/uploads/1?_state=a%3D"),
            ("https://a.test:443/artifacts-uploads/y", "https://a.test/artifacts-uploads/y"),
            ("1", "https://a.test/mirror/v2/x/blobs/uploads/1"),
            ("?upload=2", "https://a.test/mirror/v2/x/blobs/uploads/?upload=2"),
        ] {
            assert_eq!(location(text).as_deref(), Ok(url));
        }
        for text in [
            "http://a.test/v2/x",
            "https://a.test:444/v2/x",
            "https://evil.test/v2/x",
            "//evil.test/v2/x",
            "\\\\evil.test/v2/x",
            "https://user@a.test/v2/x",
            "https://a.test@evil.test/",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
            "https://[",
            &format!("/{}", "x".repeat(HEADER_BYTES)),
        ] {
            assert!(location(text).is_err(), "{text:.60}");
        }
    }

    #[test]
    fn the_digest_is_added_to_whatever_query_an_upload_has() {
        let digest = Digest::sha256([0; 32]);
        let location = Location("https://a.test/u?_state=a%3D%26b".parse().unwrap());
        let step = Step::Go { method: Method::PUT, location, digest: Some(digest) };
        let (_, url) = target(&upstream(), "x", &step);
        assert_eq!(url.as_str(), format!("https://a.test/u?_state=a%3D%26b&digest=sha256%3A{}", digest.hex()));
        let step = Step::Begin { query: "mount=y".to_owned(), from: None };
        assert_eq!(target(&upstream(), "x/y", &step).1.as_str(), "https://a.test/mirror/v2/x/y/blobs/uploads/?mount=y");
    }

    #[test]
    fn what_the_registry_has_is_read_strictly() {
        for (text, last) in [
            ("0-0", Some(0)),
            ("0-1023", Some(1023)),
            ("bytes=0-5", Some(5)),
            ("1-5", None),
            ("0-", None),
            ("0-+5", None),
            ("0-5-6", None),
            ("0-99999999999999999999", None),
            ("5", None),
            ("", None),
        ] {
            assert_eq!(last_byte(text), last, "{text}");
        }
    }

    #[test]
    fn of_an_error_document_only_the_code_is_read() {
        assert_eq!(
            code(br#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"x"}]}"#).as_deref(),
            Some("BLOB_UPLOAD_UNKNOWN")
        );
        for body in
            [&b""[..], b"x", b"[]", b"{}", br#"{"errors":[]}"#, br#"{"errors":[{"code":1}]}"#, br#"{"errors":{}}"#]
        {
            assert_eq!(code(body), None, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn an_upload_is_given_up_when_nothing_moves_and_later_at_its_end() {
        let mut watch = Watch { seen: 0, idle: 0, idle_at_end: IDLE_AT_END };
        for (now, given_up) in [(1, false), (5, false), (5, true)] {
            assert_eq!(watch.gives_up(now), given_up);
        }
        assert!(!watch.gives_up(Moves::ENDED));
        let looks: Vec<bool> = (0..IDLE_AT_END).map(|_| watch.gives_up(Moves::ENDED)).collect();
        assert_eq!(looks.iter().position(|given_up| *given_up), Some(IDLE_AT_END as usize - 1));
    }
}
