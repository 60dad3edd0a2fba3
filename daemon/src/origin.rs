//! The origin client: manifests and blobs from upstream registries.
//!
//! A plain mechanism: it asks when it is told to. It speaks the client's side of the OCI distribution specification, logs in (Basic or
//! bearer token), follows redirects without carrying credentials along, and bounds every wait. What it hands out is *not* verified.

use std::{sync::Arc, time::Duration};

use reqwest::{
    Method, StatusCode,
    header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING},
};
use shoal_proto::digest::Digest;
use tokio::time::{Instant, timeout_at};

mod account;
mod auth;
mod body;
mod client;
mod connect;
mod error;
mod exchange;
mod list;
mod login;
mod memory;
mod push;
mod reach;
mod retry;
#[cfg(test)]
mod tests;
mod token;
mod upstream;
mod warning;

pub use body::Body;
pub use client::credential_of;
pub use error::OriginError;
pub use list::{List, Listing};
pub use push::{Location, Payload, Push, Pushed, Step};
pub use upstream::{Upstream, UpstreamError, UpstreamSettings, default_url};
pub(crate) use warning::warning;

use crate::{metrics::Metrics, rate::Bucket};
use body::Flow;
use exchange::{Reply, Request};
use memory::Memory;
use warning::warnings;

/// Largest manifest that is read, in bytes.
pub const MANIFEST_BYTES: u64 = 4 * 1024 * 1024;

/// What a manifest by digest may be; its bytes decide, so anything else is taken too.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, application/vnd.docker.distribution.manifest.v1+prettyjws, */*";

/// Where a blob comes from if no peer has it.
#[derive(Debug, Clone)]
pub struct Source {
    /// The registry.
    pub upstream: Arc<Upstream>,
    /// The repository at that registry, for example `library/alpine`.
    pub repository: String,
    /// Whether it is asked for under `/manifests/` or `/blobs/`.
    pub kind: Kind,
}

/// The two kinds of content by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Layers, configs, anything.
    Blob,
    /// Manifests and indexes; at most 4 MiB.
    Manifest,
}

/// What a HEAD (or GET) of a manifest by tag told.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the tag points at.
    pub digest: Digest,
    /// Bytes in the manifest.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// What the origin wants people to be told, at most 4096 bytes.
    pub warnings: Vec<HeaderValue>,
}

/// Deadlines and pauses of the origin client.
#[derive(Debug, Clone, Copy)]
pub struct OriginTimeouts {
    /// To look up, connect and shake hands; set when an [`Upstream`] is made.
    pub connect: Duration,
    /// From one request to its response headers, connecting included.
    pub headers: Duration,
    /// A whole call, with logins, redirects and retries, up to the body.
    pub open: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// Before the second try; doubles with each.
    pub first_pause: Duration,
    /// Bound of that growth, and of a `Retry-After` that is waited for within a call.
    pub longest_pause: Duration,
}

impl Default for OriginTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            headers: Duration::from_secs(4),
            open: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
        }
    }
}

/// The client for all upstreams. Clones share caps and metrics.
#[derive(Debug, Clone)]
pub struct Origin {
    timeouts: OriginTimeouts,
    limits: Arc<[Bucket]>,
    metrics: Arc<Metrics>,
}

impl Origin {
    /// A client whose bodies pass through each of `limits` (say, one for origins and one for all downloads). What it does is
    /// counted in `metrics`.
    #[must_use]
    pub fn new(timeouts: OriginTimeouts, limits: Vec<Bucket>, metrics: Arc<Metrics>) -> Self {
        Self { timeouts, limits: limits.into(), metrics }
    }

    /// Resolves a tag: HEAD, and only if that tells no digest, GET. `accept` is the client's, joined into one line.
    ///
    /// The digest of a HEAD is the registry's word; that of a GET is computed from the manifest.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn resolve(
        &self,
        upstream: &Upstream,
        repository: &str,
        tag: &str,
        accept: &str,
    ) -> Result<Resolved, OriginError> {
        let deadline = self.deadline();
        let accept = HeaderValue::try_from(accept).ok().filter(|accept| !accept.is_empty());
        let accept = Some(accept.unwrap_or_else(|| HeaderValue::from_static(MANIFEST_TYPES)));
        let reference = tag.to_owned();
        let mut request = Request {
            upstream,
            repository,
            kind: Kind::Manifest,
            reference,
            method: Method::HEAD,
            accept,
            range: None,
            place: None,
            scopes: Vec::new(),
        };
        let reply = self.send(&request, deadline).await?;
        if reply.response.status() == StatusCode::OK
            && let (Some(digest), Some(size)) = (content_digest(&reply), reply.length())
        {
            check_manifest_size(&reply, size)?;
            let warnings = warnings(reply.response.headers());
            return Ok(Resolved { digest, size, media_type: media_type(&reply), warnings });
        }
        request.method = Method::GET;
        let reply = self.send(&request, deadline).await?;
        if reply.response.status() != StatusCode::OK {
            return Err(reply.protocol(format!("unexpected status {}", reply.response.status().as_u16())));
        }
        let (named, media_type) = (content_digest(&reply), media_type(&reply));
        let warnings = warnings(reply.response.headers());
        let host = reply.host.clone();
        let manifest = self.whole_manifest(reply, deadline).await?;
        let algorithm = named.map_or(shoal_proto::digest::Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, &manifest);
        if named.is_some_and(|named| named != digest) {
            return Err(OriginError::protocol(host, "the manifest does not match its Docker-Content-Digest"));
        }
        Ok(Resolved { digest, size: manifest.len() as u64, media_type, warnings })
    }

    /// The size of content by digest: by HEAD, or by a GET of one byte where HEAD is refused or tells nothing.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn size(&self, source: &Source, digest: &Digest) -> Result<u64, OriginError> {
        let deadline = self.deadline();
        if let Some(size) = self.size_by_head(source, digest, deadline).await? {
            return Ok(size);
        }
        let range = Some(HeaderValue::from_static("bytes=0-0"));
        let reply = self.send(&Request { range, ..request(source, digest, Method::GET) }, deadline).await?;
        let size = match reply.response.status() {
            StatusCode::PARTIAL_CONTENT => content_range(&reply).map(|range| range.total),
            StatusCode::OK => reply.length(),
            // No first byte.
            StatusCode::RANGE_NOT_SATISFIABLE if *digest == Digest::of(digest.algorithm(), b"") => Some(0),
            _ => None,
        };
        let size = size.ok_or_else(|| reply.protocol("does not tell the size"))?;
        if source.kind == Kind::Manifest {
            check_manifest_size(&reply, size)?;
        }
        Ok(size)
    }

    async fn size_by_head(
        &self,
        source: &Source,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Option<u64>, OriginError> {
        let reply = self.send(&request(source, digest, Method::HEAD), deadline).await?;
        let Some(size) = reply.length().filter(|_| reply.response.status() == StatusCode::OK) else { return Ok(None) };
        if source.kind == Kind::Manifest {
            check_manifest_size(&reply, size)?;
        }
        Ok(Some(size))
    }

    /// Opens content by digest from byte `from` on (`Range: bytes=from-` unless 0; a 200 answer is skipped up to it).
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn open(&self, source: &Source, digest: &Digest, from: u64) -> Result<Body, OriginError> {
        self.open_range(source, digest, from, None).await
    }

    /// Opens the bytes of content by digest from `from` up to `end` (none: to its end), so that the origin sends no more
    /// than what is wanted. An origin that ignores ranges sends more; the caller stops reading then.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn open_range(
        &self,
        source: &Source,
        digest: &Digest,
        from: u64,
        end: Option<u64>,
    ) -> Result<Body, OriginError> {
        let deadline = self.deadline();
        let mut request = request(source, digest, Method::GET);
        let asked = match end {
            Some(end) => format!("bytes={from}-{}", end.saturating_sub(1)),
            None => format!("bytes={from}-"),
        };
        let ranged = from > 0 || end.is_some();
        if ranged {
            request.range = HeaderValue::try_from(asked.as_str()).ok();
        }
        let reply = self.send(&request, deadline).await?;
        note_ranges(source, &reply, ranged.then_some((from, end)));
        match reply.response.status() {
            StatusCode::OK => self.whole(source, digest, reply, from, deadline).await,
            StatusCode::PARTIAL_CONTENT if ranged => {
                let range = content_range(&reply).filter(|range| {
                    range.first == from && range.last + 1 == end.unwrap_or(range.total).min(range.total)
                });
                let range =
                    range.ok_or_else(|| reply.protocol(format!("answered another range than the asked {asked}")))?;
                let expected = range.last + 1 - from;
                if reply.length().is_some_and(|length| length != expected) {
                    return Err(reply.protocol("Content-Length contradicts Content-Range"));
                }
                if source.kind == Kind::Manifest {
                    check_manifest_size(&reply, range.total)?;
                }
                Ok(self.body(range.total, 0, expected, reply))
            }
            status => Err(reply.protocol(format!("unexpected status {} to {asked}", status.as_u16()))),
        }
    }

    /// A 200: the whole content, of which the caller wants the part from `from` on.
    async fn whole(
        &self,
        source: &Source,
        digest: &Digest,
        reply: Reply,
        from: u64,
        deadline: Instant,
    ) -> Result<Body, OriginError> {
        let size = match (reply.length(), source.kind) {
            (Some(size), _) => size,
            (None, Kind::Manifest) => {
                let sender = (reply.host.clone(), Arc::clone(&reply.memory));
                let manifest = self.whole_manifest(reply, deadline).await?;
                let size = manifest.len() as u64;
                let body = self.bare_body(size, from, size, sender, Flow::Memory([manifest].into()));
                return check_offset(body, from);
            }
            // Sent in chunks: the size is needed before the first byte.
            (None, Kind::Blob) => match self.size_by_head(source, digest, deadline).await? {
                Some(size) => size,
                None => return Err(reply.protocol("does not tell the size of the blob")),
            },
        };
        if source.kind == Kind::Manifest {
            check_manifest_size(&reply, size)?;
        }
        check_offset(self.body(size, from, size, reply), from)
    }

    fn body(&self, size: u64, skip: u64, remaining: u64, reply: Reply) -> Body {
        let Reply { response, host, memory } = reply;
        self.bare_body(size, skip, remaining, (host, memory), Flow::Network(response))
    }

    fn bare_body(
        &self,
        size: u64,
        skip: u64,
        remaining: u64,
        (host, memory): (String, Arc<Memory>),
        flow: Flow,
    ) -> Body {
        let (limits, received) = (Arc::clone(&self.limits), self.metrics.bytes_from_origin.clone());
        Body { size, host, memory, flow, skip, remaining, idle: self.timeouts.idle, limits, received, held: None }
    }

    /// Reads a manifest into memory. Refuses one whose end cannot be told from a broken connection.
    async fn whole_manifest(&self, reply: Reply, deadline: Instant) -> Result<bytes::Bytes, OriginError> {
        if reply.length().is_none() && !reply.response.headers().contains_key(TRANSFER_ENCODING) {
            return Err(reply.protocol("manifest without Content-Length"));
        }
        if let Some(size) = reply.length() {
            check_manifest_size(&reply, size)?;
        }
        let host = reply.host;
        let read = timeout_at(
            deadline,
            exchange::collect(reply.response, usize::try_from(MANIFEST_BYTES).unwrap_or(usize::MAX)),
        )
        .await;
        let read =
            read.map_err(|_| OriginError::unavailable(host.as_str(), "no whole manifest within the deadline"))?;
        let manifest = read.map_err(|error| error.at(&host).error)?;
        self.metrics.bytes_from_origin.inc_by(manifest.len() as u64);
        for limit in &*self.limits {
            limit.take(manifest.len() as u64).await;
        }
        Ok(manifest)
    }

    fn count_request(&self, request: &Request<'_>) {
        let counter = match (&request.method, request.kind) {
            _ if request.place.is_some() => &self.metrics.origin_list_gets,
            (&Method::HEAD, _) => &self.metrics.origin_heads,
            (_, Kind::Blob) => &self.metrics.origin_blob_gets,
            (_, Kind::Manifest) => &self.metrics.origin_manifest_gets,
        };
        counter.inc();
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeouts.open
    }
}

fn request<'a>(source: &'a Source, digest: &Digest, method: Method) -> Request<'a> {
    Request {
        upstream: &source.upstream,
        repository: &source.repository,
        kind: source.kind,
        reference: digest.to_string(),
        method,
        accept: (source.kind == Kind::Manifest).then(|| HeaderValue::from_static(MANIFEST_TYPES)),
        range: None,
        place: None,
        scopes: Vec::new(),
    }
}

fn check_manifest_size(reply: &Reply, size: u64) -> Result<(), OriginError> {
    if size > MANIFEST_BYTES {
        return Err(reply.protocol(format!("manifest of {size} bytes is larger than {MANIFEST_BYTES}")));
    }
    Ok(())
}

fn check_offset(body: Body, from: u64) -> Result<Body, OriginError> {
    if from > body.size {
        return Err(OriginError::protocol(
            body.host,
            format!("byte {from} was asked, but the content has {}", body.size),
        ));
    }
    Ok(body)
}

/// Remembers who served a blob, and whether he answers ranges. `asked` is the range, if it was one.
fn note_ranges(source: &Source, reply: &Reply, asked: Option<(u64, Option<u64>)>) {
    if source.kind != Kind::Blob {
        return;
    }
    let Some((from, end)) = asked else { return };
    match reply.response.status() {
        StatusCode::PARTIAL_CONTENT => reply.memory.answered_range(&reply.host, true, Instant::now()),
        // The whole for a range that is the whole says nothing.
        StatusCode::OK if from > 0 || reply.length() != end => {
            reply.memory.answered_range(&reply.host, false, Instant::now());
        }
        _ => {}
    }
}

fn content_digest(reply: &Reply) -> Option<Digest> {
    reply.response.headers().get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

/// `Content-Type` without parameters.
fn media_type(reply: &Reply) -> String {
    let value = reply.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_owned()
}

/// What a 206 holds: bytes `first` to `last` of `total`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: u64,
}

fn content_range(reply: &Reply) -> Option<ContentRange> {
    parse_content_range(reply.response.headers().get(CONTENT_RANGE)?.to_str().ok()?)
}

fn parse_content_range(text: &str) -> Option<ContentRange> {
    let (unit, range) = text.trim().split_once(' ')?;
    let (bounds, total) = range.split_once('/')?;
    let (first, last) = bounds.split_once('-')?;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let range = ContentRange { first: number(first)?, last: number(last)?, total: number(total)? };
    (unit.eq_ignore_ascii_case("bytes") && range.first <= range.last && range.last < range.total).then_some(range)
}
