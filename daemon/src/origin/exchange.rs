//! One request to a registry, from the first try to the response that counts: login, redirects, retries, deadlines.

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RANGE},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use crate::origin::{
    Kind, Origin, OriginError,
    auth::{self, Bearer, Challenge},
    error::{Failure, Retry, describe},
    list::Place,
    retry,
    token::Token,
    upstream::{Upstream, authority, same_origin},
};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 5;

/// Largest answer of a token server.
const TOKEN_BYTES: usize = 64 * 1024;

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
    /// Sends a request until it has a usable response, the tries are used up, or the deadline is too near.
    pub(super) async fn send(&self, request: &Request<'_>, deadline: Instant) -> Result<Reply, OriginError> {
        let mut tried = 0;
        let mut last = None;
        loop {
            let Ok(outcome) = timeout_at(deadline, self.attempt(request)).await else {
                return Err(last.unwrap_or_else(|| {
                    OriginError::unavailable(request.upstream.host(), "no answer within the deadline")
                }));
            };
            let failure = match outcome {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            tried += 1;
            let Some(pause) = retry::pause(failure.retry, tried, deadline, &self.timeouts) else {
                return Err(failure.error);
            };
            tracing::debug!(error = %failure.error, tried, ?pause, "origin request failed, trying again");
            last = Some(failure.error);
            self.metrics.origin_retries.inc();
            sleep(pause).await;
        }
    }

    /// One try: at most one login, then redirects.
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
            if response.status() == StatusCode::UNAUTHORIZED && at_home && !challenged {
                challenged = true;
                authorization = Some(self.log_in(request, response.headers(), authorization.as_ref()).await?);
                (url, redirects) = (start.clone(), 0);
                continue;
            }
            if !is_redirect(response.status()) {
                return judge(request, Reply { response, host }, at_home);
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
        headers.extend(request.range.clone().map(|range| (RANGE, range)));
        headers.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
        self.headers_of(request.upstream, request.method.clone(), url, headers).await
    }

    pub(super) async fn headers_of(
        &self,
        upstream: &Upstream,
        method: Method,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<Response, Failure> {
        let host = authority(url);
        let sent = upstream.client(url).request(method, url.clone()).headers(headers).send();
        match timeout(self.timeouts.headers, sent).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::transport(&host, error)),
            Err(_) => {
                let why = format!("no response headers within {:?}", self.timeouts.headers);
                Err(Failure::passing(OriginError::unavailable(host, why)))
            }
        }
    }

    /// The header to send with the first request: what the registry asked for before, so that it need not refuse first.
    pub(super) async fn known_authorization(&self, request: &Request<'_>) -> Result<Option<HeaderValue>, Failure> {
        match request.upstream.challenge() {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(request.upstream.basic().cloned()),
            Some(Challenge::Bearer(bearer)) => {
                match self.token(request, &Bearer { scopes: Vec::new(), ..bearer }, None).await {
                    Ok(token) => Ok(Some(token.header)),
                    // The registry may have moved to another way of logging in: let it say so.
                    Err(failure) if failure.retry == Retry::Never => {
                        request.upstream.remember(None);
                        Ok(None)
                    }
                    Err(failure) => Err(failure),
                }
            }
        }
    }

    /// Answers a 401. `refused` is the header that it came for.
    pub(super) async fn log_in(
        &self,
        request: &Request<'_>,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Failure> {
        let upstream = request.upstream;
        let mut challenges = auth::challenges(headers);
        if challenges.is_empty() {
            // Some registries refuse content without saying how to log in; their API root says it.
            let response = self.headers_of(upstream, Method::GET, upstream.root_url(), HeaderMap::new()).await?;
            challenges = auth::challenges(response.headers());
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        if let Some(bearer) = bearer {
            let token = self.token(request, bearer, refused).await?;
            upstream.remember(Some(Challenge::Bearer(bearer.clone())));
            return Ok(token.header);
        }
        match upstream.basic() {
            // The same password is not offered twice.
            Some(basic) if challenges.contains(&Challenge::Basic) && refused != Some(basic) => {
                upstream.remember(Some(Challenge::Basic));
                Ok(basic.clone())
            }
            _ => Err(Failure::fatal(OriginError::Denied { host: upstream.host().to_owned() })),
        }
    }

    async fn token(
        &self,
        request: &Request<'_>,
        bearer: &Bearer,
        refused: Option<&HeaderValue>,
    ) -> Result<Token, Failure> {
        if request.scopes.is_empty() {
            let fetch = self.fetch_token(request, bearer);
            return request.upstream.tokens.get(Instant::now(), request.repository, refused, fetch).await;
        }
        // Kept apart from those to pull: whoever pulls must not replace what an upload under way needs.
        let bearer = Bearer { scopes: request.scopes.clone(), ..bearer.clone() };
        let fetch = self.fetch_token(request, &bearer);
        request.upstream.tokens.get(Instant::now(), &request.scopes.join(" "), refused, fetch).await
    }

    /// Asks the realm for a token.
    async fn fetch_token(&self, request: &Request<'_>, bearer: &Bearer) -> Result<Token, Failure> {
        let upstream = request.upstream;
        let realm = auth::check_realm(upstream.root_url(), &bearer.realm, upstream.realm_hosts())
            .map_err(|error| Failure::fatal(OriginError::protocol(upstream.host(), error.to_string())))?;
        let mut url = token_url(&realm, bearer, request.repository);
        let asked = Instant::now();
        for _ in 0..=REDIRECTS {
            let host = authority(&url);
            let fatal = |why: &str| Failure::fatal(OriginError::protocol(host.as_str(), why));
            upstream.permit(&url).map_err(|why| fatal(&why))?;
            let headers = upstream.basic().map(|basic| (AUTHORIZATION, basic.clone())).into_iter().collect();
            self.metrics.origin_token_requests.inc();
            let response = self.headers_of(upstream, Method::GET, &url, headers).await?;
            if is_redirect(response.status()) {
                let next = redirect_target(upstream, &url, response.headers()).map_err(|why| fatal(&why))?;
                if !same_origin(&url, &next) {
                    return Err(fatal("the token server redirects to another server"));
                }
                url = next;
                continue;
            }
            if response.status() != StatusCode::OK {
                return Err(match response.status() {
                    // It is not the content that is missing.
                    StatusCode::NOT_FOUND => fatal("there is no token server (404)"),
                    status => refusal(status, response.headers(), host),
                });
            }
            let body = timeout(self.timeouts.headers, collect(response, TOKEN_BYTES)).await;
            let body = body
                .map_err(|_| Failure::passing(OriginError::unavailable(host.as_str(), "the token server stalled")))?;
            let body = body.map_err(|error| error.at(&host))?;
            return Token::parse(&body, asked).ok_or_else(|| fatal("the token server granted no token"));
        }
        Err(Failure::fatal(OriginError::protocol(
            authority(&url),
            format!("the token server sent more than {REDIRECTS} redirects"),
        )))
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

/// The realm with service and scopes added to whatever query it has.
fn token_url(realm: &Url, bearer: &Bearer, repository: &str) -> Url {
    let mut url = realm.clone();
    let given: Vec<(String, String)> = realm.query_pairs().into_owned().collect();
    let default = [format!("repository:{repository}:pull")];
    let scopes = if bearer.scopes.is_empty() { &default[..] } else { &bearer.scopes };
    let service = bearer.service.iter().map(|service| ("service", service));
    let wanted = service.chain(scopes.iter().map(|scope| ("scope", scope)));
    let missing: Vec<_> =
        wanted.filter(|(key, value)| !given.iter().any(|(name, held)| name == key && held == *value)).collect();
    if !missing.is_empty() {
        url.query_pairs_mut().extend_pairs(missing);
    }
    url
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads, if we may go there. The reason otherwise names no URL: it may be pre-signed.
fn redirect_target(upstream: &Upstream, url: &Url, headers: &HeaderMap) -> Result<Url, String> {
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
            if !at_home && status == StatusCode::FORBIDDEN {
                // A pre-signed URL that ran out: the registry signs another.
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_token_url_keeps_the_query_of_the_realm_and_repeats_nothing() {
        let url = |realm: &str, service: Option<&str>, scopes: &[&str]| {
            let bearer = Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
            };
            token_url(&realm.parse().unwrap(), &bearer, "a/b").to_string()
        };
        assert_eq!(
            url("https://h/t?x=1", Some("s,t"), &["repository:c:pull,push", "y"]),
            "https://h/t?x=1&service=s%2Ct&scope=repository%3Ac%3Apull%2Cpush&scope=y"
        );
        assert_eq!(url("https://h/t?scope=repository:a/b:pull", None, &[]), "https://h/t?scope=repository:a/b:pull");
    }
}
