//! One request to a registry, from the first try to the response that counts: mirrors, redirects, retries, deadlines.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
    },
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use crate::origin::{
    Kind, Origin, OriginError,
    error::{Failure, Retry, describe},
    list::Place,
    login::explained,
    memory::Memory,
    retry,
    upstream::{Upstream, authority, same_origin},
};

/// Redirects that are followed for one request.
pub(super) const REDIRECTS: usize = 5;

/// What is asked of a registry.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) repository: &'a str,
    pub(super) kind: Kind,
    /// A tag or a digest.
    pub(super) reference: String,
    pub(super) method: Method,
    pub(super) accept: Option<HeaderValue>,
    pub(super) range: Option<HeaderValue>,
    /// Where it is, if it is not content.
    pub(super) place: Option<Place>,
    /// What a token must be good for; empty: what the registry asks for, or else to pull from the repository.
    pub(super) scopes: Vec<String>,
}

impl Request<'_> {
    fn url(&self) -> Url {
        match &self.place {
            Some(place) => place.under(self.upstream.root_url()),
            None => self.upstream.content_url(self.repository, self.kind, &self.reference),
        }
    }
}

/// A response that the caller must judge: 200, 206, 416, or for HEAD also a refusal of the method itself.
pub(super) struct Reply {
    pub(super) response: Response,
    /// Who answered, perhaps after redirects.
    pub(super) host: String,
    /// Of the upstream or mirror that was asked.
    pub(super) memory: Arc<Memory>,
}

impl Reply {
    /// `Content-Length` as sent (also of a HEAD, where the HTTP client itself sees an empty body).
    pub(super) fn length(&self) -> Option<u64> {
        number(self.response.headers().get(CONTENT_LENGTH)?)
    }

    pub(super) fn protocol(&self, why: impl Into<String>) -> OriginError {
        OriginError::protocol(self.host.as_str(), why)
    }
}

fn number(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?;
    // `parse` alone would take a plus sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl Origin {
    /// Sends a request to whoever may have the content, one after the other, until one has a usable response.
    pub(super) async fn send(&self, request: &Request<'_>, deadline: Instant) -> Result<Reply, OriginError> {
        let all = request.upstream.in_order();
        let count = all.len();
        let mut failed = None;
        for (at, upstream) in all.into_iter().enumerate() {
            let request = Request { upstream, ..request.clone() };
            let outcome = if at + 1 < count {
                // The next one must get its turn while the client still waits.
                let soon = deadline.min(Instant::now() + self.timeouts.headers / 2);
                self.send_to(&request, soon, 1).await
            } else {
                self.send_to(&request, deadline, retry::TRIES).await
            };
            let error = match outcome {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if count > 1 {
                tracing::debug!(upstream = upstream.name, %error, "one of several places of the content failed");
            }
            // What the registry itself says weighs more than the word of its mirrors.
            if failed.is_none() || upstream.is_registry() {
                failed = Some(error);
            }
        }
        Err(failed.unwrap_or_else(|| OriginError::unavailable(request.upstream.host(), "was not asked")))
    }

    /// Sends a request until it has a usable response, the tries are used up, or the deadline is too near.
    async fn send_to(&self, request: &Request<'_>, deadline: Instant, tries: u32) -> Result<Reply, OriginError> {
        let upstream = request.upstream;
        let mut tried = 0;
        let mut last = None;
        loop {
            self.let_rest(upstream, deadline, tries).await?;
            let Ok(outcome) = timeout_at(deadline, self.attempt(request)).await else {
                upstream.memory.failed(Instant::now());
                return Err(
                    last.unwrap_or_else(|| OriginError::unavailable(upstream.host(), "no answer within the deadline"))
                );
            };
            let failure = match outcome {
                Ok(reply) => {
                    upstream.memory.works();
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            tried += 1;
            let pause = retry::pause(failure.retry, tried, deadline, &self.timeouts).filter(|_| tried < tries);
            let Some(pause) = pause else {
                if matches!(failure.error, OriginError::Unavailable { .. }) {
                    upstream.memory.failed(Instant::now());
                }
                return Err(failure.error);
            };
            tracing::debug!(error = %failure.error, tried, ?pause, "origin request failed, trying again");
            last = Some(failure.error);
            self.metrics.origin_retries.inc();
            sleep(pause).await;
        }
    }

    /// Waits until the registry may be asked again, if that is soon; whoever asked before heard it for everybody.
    async fn let_rest(&self, upstream: &Upstream, deadline: Instant, tries: u32) -> Result<(), OriginError> {
        while let Some(rest) = upstream.memory.resting(upstream.host(), Instant::now()) {
            let pause = retry::pause(Retry::After(rest), 0, deadline, &self.timeouts).filter(|_| tries > 1);
            let Some(pause) = pause else {
                return Err(OriginError::RateLimited { host: upstream.host().to_owned(), retry_after: Some(rest) });
            };
            sleep(pause).await;
        }
        Ok(())
    }

    /// One try: at most one sign-in, then redirects.
    async fn attempt(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        let upstream = request.upstream;
        let start = request.url();
        let mut authorization = self.known_authorization(request).await?;
        let mut url = start.clone();
        // Once a redirect has left the registry, nothing carries its credentials, not even the way back.
        let mut at_home = true;
        let mut challenged = false;
        let mut redirects = 0;
        loop {
            let host = authority(&url);
            if redirects == 0 {
                self.count_request(request);
            }
            let response = self.exchange(request, &url, authorization.as_ref().filter(|_| at_home)).await?;
            if at_home && !challenged {
                let answer = self.answer(request, &response, authorization.as_ref()).await?;
                if answer.is_some() {
                    challenged = true;
                    authorization = answer;
                    (url, redirects) = (start.clone(), 0);
                    continue;
                }
            }
            if !is_redirect(response.status()) {
                let reply = Reply { response, host, memory: Arc::clone(&upstream.memory) };
                return match judge(request, reply, at_home) {
                    Err(failure) if at_home => Err(explained(upstream, request.repository, failure).await),
                    outcome => outcome,
                };
            }
            redirects += 1;
            if redirects > REDIRECTS {
                return Err(Failure::fatal(OriginError::protocol(host, format!("more than {REDIRECTS} redirects"))));
            }
            let next = redirect_target(upstream, &url, response.headers());
            let next = next.map_err(|why| Failure::fatal(OriginError::protocol(host, why)))?;
            at_home &= same_origin(&url, &next);
            url = next;
        }
    }

    /// One HTTP exchange up to the response headers.
    async fn exchange(
        &self,
        request: &Request<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(ACCEPT, request.accept.clone().unwrap_or_else(|| HeaderValue::from_static("*/*")));
        let ignores_ranges = request.upstream.memory.ranges(&authority(url), Instant::now()) == Some(false);
        headers.extend(request.range.clone().filter(|_| !ignores_ranges).map(|range| (RANGE, range)));
        headers.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
        self.headers_of(request.upstream, request.method.clone(), url, headers).await
    }

    /// Any HTTP exchange with an upstream or what it points at, up to the response headers.
    pub(super) async fn headers_of(
        &self,
        upstream: &Upstream,
        method: Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, Failure> {
        self.headers_with(upstream, method, url, headers, None).await
    }

    /// The same with a form as the body.
    pub(super) async fn headers_with(
        &self,
        upstream: &Upstream,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        form: Option<String>,
    ) -> Result<Response, Failure> {
        let host = authority(url);
        if let Some(rest) = upstream.memory.resting(&host, Instant::now()) {
            let error = OriginError::RateLimited { host, retry_after: Some(rest) };
            return Err(Failure { error, retry: Retry::After(rest) });
        }
        let mut sent = upstream.client(url).request(method, url.clone()).headers(headers);
        if let Some(form) = form {
            sent = sent.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
        }
        match timeout(self.timeouts.headers, sent.send()).await {
            Ok(Ok(response)) => {
                self.note(upstream, &host, &response);
                Ok(response)
            }
            Ok(Err(error)) => Err(Failure::transport(&host, error)),
            Err(_) => {
                let why = format!("no response headers within {:?}", self.timeouts.headers);
                Err(Failure::passing(OriginError::unavailable(host, why)))
            }
        }
    }

    /// Keeps what a response says about how often its host may be asked.
    fn note(&self, upstream: &Upstream, host: &str, response: &Response) {
        self.metrics.upstreams.note_ratelimit(&upstream.name, response.headers());
        if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return;
        }
        if let Some(wanted) = retry::retry_after(response.headers()) {
            upstream.memory.rest(host, wanted, Instant::now());
            let rest = upstream.memory.resting(host, Instant::now()).unwrap_or_default();
            self.metrics.upstreams.note_rest(&upstream.name, rest);
            tracing::info!(host, ?rest, "the origin asks to be left alone");
        }
    }
}

/// Why a small body could not be read as a whole.
pub(super) enum CollectError {
    TooLarge(usize),
    Broken(reqwest::Error),
}

impl CollectError {
    pub(super) fn at(self, host: &str) -> Failure {
        match self {
            Self::TooLarge(limit) => {
                Failure::fatal(OriginError::protocol(host, format!("the answer is larger than {limit} bytes")))
            }
            Self::Broken(error) => Failure::passing(OriginError::unavailable(host, describe(error))),
        }
    }
}

/// A body of at most `limit` bytes.
pub(super) async fn collect(mut response: Response, limit: usize) -> Result<Bytes, CollectError> {
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(CollectError::Broken)? {
        if body.len() + piece.len() > limit {
            return Err(CollectError::TooLarge(limit));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads, if we may go there. The reason otherwise names no URL: it may be pre-signed.
pub(super) fn redirect_target(upstream: &Upstream, url: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .ok_or("a redirect without a readable Location")?;
    let next = url.join(location).map_err(|_| "a redirect to something that is no URL")?;
    upstream.permit(&next)?;
    Ok(next)
}

/// Sorts final responses into those for the caller and failures.
fn judge(request: &Request<'_>, reply: Reply, at_home: bool) -> Result<Reply, Failure> {
    let status = reply.response.status();
    let is_head = request.method == Method::HEAD;
    match status.as_u16() {
        200 | 206 | 416 => Ok(reply),
        405 | 501 if is_head => Ok(reply),
        // Object stores sign a URL for one method.
        403 if is_head && !at_home => Ok(reply),
        _ => {
            let mut failure = refusal(status, reply.response.headers(), reply.host);
            if !at_home && matches!(status.as_u16(), 400 | 403 | 410) {
                // A pre-signed URL that ran out, as stores put it: the registry signs another.
                failure.retry = Retry::Backoff;
            }
            Err(failure)
        }
    }
}

pub(super) fn refusal(status: StatusCode, headers: &HeaderMap, host: String) -> Failure {
    let retry_after = retry::retry_after(headers);
    let retry = retry_after.map_or(Retry::Backoff, Retry::After);
    match status.as_u16() {
        401 | 403 => Failure::fatal(OriginError::Denied { host }),
        404 => Failure::fatal(OriginError::NotFound { host }),
        429 => Failure { error: OriginError::RateLimited { host, retry_after }, retry },
        503 if retry_after.is_some() => Failure { error: OriginError::RateLimited { host, retry_after }, retry },
        408 | 500..=599 => Failure::passing(OriginError::unavailable(host, format!("answered {}", status.as_u16()))),
        _ => Failure::fatal(OriginError::protocol(host, format!("unexpected status {}", status.as_u16()))),
    }
}
