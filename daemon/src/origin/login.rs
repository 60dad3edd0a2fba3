//! Signing in: from a challenge of a registry to the header that answers it.

use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use tokio::time::{Instant, timeout};
use url::{Url, form_urlencoded};

use crate::{
    credentials::Credential,
    origin::{
        Origin, OriginError,
        account::{self, Who},
        auth::{self, Bearer, Challenge},
        error::{Failure, Retry},
        exchange::{REDIRECTS, Request, collect, is_redirect, redirect_target, refusal},
        token::{self, Grant, RefreshToken, Token},
        upstream::{Upstream, authority, same_origin},
    },
};

/// Largest answer of a token server.
const TOKEN_BYTES: usize = 64 * 1024;

/// How we name ourselves to OAuth2 token servers.
const CLIENT_ID: &str = "shoal";

/// The user of Azure's registry whose password is a token and not a password.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// Where tokens for a repository come from.
struct TokenServer<'a> {
    upstream: &'a Upstream,
    repository: &'a str,
    bearer: &'a Bearer,
    realm: Url,
}

impl Origin {
    /// The header to send with the first request: what the registry asked for before, so that it need not refuse first.
    pub(super) async fn known_authorization(&self, request: &Request<'_>) -> Result<Option<HeaderValue>, Failure> {
        let upstream = request.upstream;
        let Some(challenge) = upstream.challenge() else { return Ok(None) };
        // What goes wrong here is told when the registry refuses.
        let credential = upstream.account().find(request.repository).await.unwrap_or_default();
        let bearer = match challenge {
            Challenge::Basic => return Ok(basic_of(credential.as_ref()).and_then(Result::ok)),
            Challenge::Bearer(bearer) => Bearer { scopes: Vec::new(), ..bearer },
        };
        match self.bearer_header(request, &bearer, credential.as_ref(), None).await {
            Ok(header) => Ok(Some(header)),
            // The registry may have moved to another way of signing in, or the credential has run out: let it say so.
            Err(failure) if failure.retry == Retry::Never => {
                upstream.remember(None);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// What answers a refusal of the registry; none if the response is no refusal, or one that no credential would change. `refused` is
    /// the header that it came for.
    pub(super) async fn answer(
        &self,
        request: &Request<'_>,
        response: &Response,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Failure> {
        match (response.status(), refused) {
            (StatusCode::UNAUTHORIZED, _) => self.log_in(request, response.headers(), refused).await.map(Some),
            // So ECR says that a password has run out.
            (StatusCode::FORBIDDEN, Some(refused)) if request.upstream.challenge() == Some(Challenge::Basic) => {
                let account = request.upstream.account();
                let old = account.find(request.repository).await.unwrap_or_default();
                let new = account.renew(request.repository, old.as_ref(), Instant::now()).await;
                Ok(basic_of(new.as_ref().or(old.as_ref())).and_then(Result::ok).filter(|header| header != refused))
            }
            _ => Ok(None),
        }
    }

    /// Answers a 401.
    pub(super) async fn log_in(
        &self,
        request: &Request<'_>,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Failure> {
        let (upstream, repository) = (request.upstream, request.repository);
        let mut challenges = auth::challenges(headers);
        if challenges.is_empty() {
            // Some registries refuse content without saying how to sign in; their API root says it.
            let response = self.headers_of(upstream, Method::GET, upstream.root_url(), HeaderMap::new()).await?;
            challenges = auth::challenges(response.headers());
        }
        // What is public can be had without one that cannot be had now.
        let credential = upstream.account().find(repository).await.unwrap_or_default();
        let denied = match self.meet_challenges(request, &challenges, credential.as_ref(), refused).await {
            Err(failure) if matches!(failure.error, OriginError::Denied { .. }) => failure,
            outcome => return outcome,
        };
        // Passwords and tokens run out, ECR's after twelve hours.
        match upstream.account().renew(repository, credential.as_ref(), Instant::now()).await {
            Some(renewed) => self.meet_challenges(request, &challenges, Some(&renewed), refused).await,
            None => Err(explained(upstream, repository, denied).await),
        }
    }

    /// Bearer if it is offered by a token server that we may ask, else Basic.
    async fn meet_challenges(
        &self,
        request: &Request<'_>,
        challenges: &[Challenge],
        credential: Option<&Credential>,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Failure> {
        let upstream = request.upstream;
        let is_basic_possible = challenges.contains(&Challenge::Basic);
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        if let Some(bearer) = bearer
            && (!is_basic_possible || realm_of(upstream, bearer).is_ok())
        {
            let header = self.bearer_header(request, bearer, credential, refused).await?;
            upstream.remember(Some(Challenge::Bearer(bearer.clone())));
            return Ok(header);
        }
        match basic_of(credential).filter(|_| is_basic_possible) {
            // The same password is not offered twice.
            Some(Ok(basic)) if refused != Some(&basic) => {
                upstream.remember(Some(Challenge::Basic));
                Ok(basic)
            }
            Some(Err(why)) => Err(Failure::fatal(OriginError::protocol(upstream.host(), why))),
            _ => Err(denied(upstream.host())),
        }
    }

    async fn bearer_header(
        &self,
        request: &Request<'_>,
        bearer: &Bearer,
        credential: Option<&Credential>,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Failure> {
        let upstream = request.upstream;
        if let Some(Credential::Bearer(token)) = credential {
            let header =
                account::bearer(token).map_err(|why| Failure::fatal(OriginError::protocol(upstream.host(), why)))?;
            return if refused == Some(&header) { Err(denied(upstream.host())) } else { Ok(header) };
        }
        // Tokens for more than to pull are kept apart: whoever pulls must not replace what an upload under way needs.
        let apart = (!request.scopes.is_empty()).then(|| request.scopes.join(" "));
        let wider = Bearer { scopes: request.scopes.clone(), ..bearer.clone() };
        let bearer = if apart.is_some() { &wider } else { bearer };
        let fetch = |refresh| self.fetch_grant(request, bearer, credential, refresh);
        let key = (apart.as_deref().unwrap_or(request.repository), Who::of(credential));
        let Token { header, .. } = upstream.tokens.get(Instant::now(), key, refused, fetch).await?;
        Ok(header)
    }

    /// Asks the realm for a token, in the way that fits the credential.
    async fn fetch_grant(
        &self,
        request: &Request<'_>,
        bearer: &Bearer,
        credential: Option<&Credential>,
        refresh: Option<RefreshToken>,
    ) -> Result<Grant, Failure> {
        let (upstream, repository) = (request.upstream, request.repository);
        let server = TokenServer { upstream, repository, bearer, realm: realm_of(upstream, bearer)? };
        if let Some(refresh) = refresh {
            match self.grant_by_refresh(&server, refresh).await {
                // It ran out or was withdrawn: from the beginning.
                Err(failure) if failure.retry == Retry::Never => {}
                outcome => return outcome,
            }
        }
        match credential {
            None | Some(Credential::Bearer(_)) => self.grant_by_get(&server, None).await,
            Some(Credential::Identity(token)) => self.grant_by_refresh(&server, RefreshToken(token.clone())).await,
            Some(Credential::Basic { username, password }) if username == TOKEN_USER => {
                self.grant_by_token_user(&server, password).await
            }
            Some(Credential::Basic { username, password }) => self.grant_by_password(&server, username, password).await,
        }
    }

    /// GET with the password as Basic, which every token server takes but some; those get the password as OAuth2 has it.
    async fn grant_by_password(
        &self,
        server: &TokenServer<'_>,
        username: &str,
        password: &str,
    ) -> Result<Grant, Failure> {
        let basic = account::basic(username, password).map_err(|why| server.fatal(why))?;
        match self.grant_by_get(server, Some(basic)).await {
            Err(failure) if is_refused_method(&failure) => {
                let fields = [("grant_type", "password"), ("username", username), ("password", password)];
                self.post(server, &server.realm, &fields).await.and_then(|(body, asked)| server.grant(&body, asked))
            }
            outcome => outcome,
        }
    }

    /// Azure: the password is a refresh token of the registry, or an access token of the cloud that its exchange turns into one.
    async fn grant_by_token_user(&self, server: &TokenServer<'_>, password: &str) -> Result<Grant, Failure> {
        match self.grant_by_refresh(server, RefreshToken(password.to_owned())).await {
            Err(failure) if is_refused_method(&failure) => self.grant_by_password(server, TOKEN_USER, password).await,
            Err(failure) if failure.retry == Retry::Never => {
                let Some(exchange) = exchange_url(&server.realm) else { return Err(failure) };
                let fields = [("grant_type", "access_token"), ("access_token", password)];
                // An exchange that is not there says nothing; the refusal before does.
                let Ok((body, _)) = self.post(server, &exchange, &fields).await else { return Err(failure) };
                let refresh = token::parse_refresh_token(&body);
                let refresh = refresh.ok_or_else(|| server.fatal("the exchange gave no refresh token"))?;
                self.grant_by_refresh(server, refresh).await
            }
            outcome => outcome,
        }
    }

    async fn grant_by_refresh(&self, server: &TokenServer<'_>, refresh: RefreshToken) -> Result<Grant, Failure> {
        let fields = [("grant_type", "refresh_token"), ("refresh_token", refresh.0.as_str())];
        let (body, asked) = self.post(server, &server.realm, &fields).await?;
        let mut grant = server.grant(&body, asked)?;
        grant.refresh.get_or_insert(refresh);
        Ok(grant)
    }

    async fn grant_by_get(&self, server: &TokenServer<'_>, basic: Option<HeaderValue>) -> Result<Grant, Failure> {
        let url = token_url(&server.realm, server.bearer, server.repository);
        let headers = basic.map(|basic| (AUTHORIZATION, basic)).into_iter().collect();
        let (body, asked) = self.ask(server.upstream, Method::GET, url, headers, None).await?;
        server.grant(&body, asked)
    }

    /// POST of an OAuth2 form; a refusal of the form is a refusal of what is in it.
    async fn post(
        &self,
        server: &TokenServer<'_>,
        url: &Url,
        fields: &[(&str, &str)],
    ) -> Result<(bytes::Bytes, Instant), Failure> {
        let form = token_form(server.bearer, server.repository, fields);
        self.ask(server.upstream, Method::POST, url.clone(), HeaderMap::new(), Some(form)).await
    }

    /// One question to a token server, with redirects within it.
    async fn ask(
        &self,
        upstream: &Upstream,
        method: Method,
        mut url: Url,
        headers: HeaderMap,
        form: Option<String>,
    ) -> Result<(bytes::Bytes, Instant), Failure> {
        let asked = Instant::now();
        for _ in 0..=REDIRECTS {
            let host = authority(&url);
            let fatal = |why: &str| Failure::fatal(OriginError::protocol(host.as_str(), why));
            upstream.permit(&url).map_err(|why| fatal(&why))?;
            self.metrics.origin_token_requests.inc();
            let response = self.headers_with(upstream, method.clone(), &url, headers.clone(), form.clone()).await?;
            let status = response.status();
            if is_redirect(status) {
                let next = redirect_target(upstream, &url, response.headers()).map_err(|why| fatal(&why))?;
                if !same_origin(&url, &next) {
                    return Err(fatal("the token server redirects to another server"));
                }
                url = next;
                continue;
            }
            match status {
                StatusCode::OK => {}
                // It is not the content that is missing.
                StatusCode::NOT_FOUND => return Err(fatal(NO_TOKEN_SERVER)),
                StatusCode::METHOD_NOT_ALLOWED => return Err(fatal(OTHER_METHOD)),
                StatusCode::BAD_REQUEST if form.is_some() => return Err(denied(&host)),
                _ => return Err(refusal(status, response.headers(), host)),
            }
            let body = timeout(self.timeouts.headers, collect(response, TOKEN_BYTES)).await;
            let body = body
                .map_err(|_| Failure::passing(OriginError::unavailable(host.as_str(), "the token server stalled")))?;
            return Ok((body.map_err(|error| error.at(&host))?, asked));
        }
        Err(Failure::fatal(OriginError::protocol(
            authority(&url),
            format!("the token server sent more than {REDIRECTS} redirects"),
        )))
    }
}

const NO_TOKEN_SERVER: &str = "there is no token server (404)";
const OTHER_METHOD: &str = "the token server refuses this way of asking (405)";

impl TokenServer<'_> {
    fn fatal(&self, why: &str) -> Failure {
        Failure::fatal(OriginError::protocol(authority(&self.realm), why))
    }

    fn grant(&self, body: &[u8], asked: Instant) -> Result<Grant, Failure> {
        Grant::parse(body, asked).ok_or_else(|| self.fatal("the token server granted no token"))
    }
}

fn is_refused_method(failure: &Failure) -> bool {
    matches!(&failure.error, OriginError::Protocol { why, .. } if why == NO_TOKEN_SERVER || why == OTHER_METHOD)
}

fn denied(host: &str) -> Failure {
    Failure::fatal(OriginError::Denied { host: host.to_owned() })
}

/// A refusal by the registry is the fault of whoever should have given the credential, if he could not.
pub(super) async fn explained(upstream: &Upstream, repository: &str, failure: Failure) -> Failure {
    if !matches!(failure.error, OriginError::Denied { .. }) {
        return failure;
    }
    match upstream.account().find(repository).await {
        Ok(_) => failure,
        Err(problem) => {
            let why = format!("access denied without a credential: {problem}");
            Failure::fatal(OriginError::unavailable(upstream.host(), why))
        }
    }
}

fn basic_of(credential: Option<&Credential>) -> Option<Result<HeaderValue, &'static str>> {
    match credential? {
        Credential::Basic { username, password } => Some(account::basic(username, password)),
        Credential::Identity(_) | Credential::Bearer(_) => None,
    }
}

fn realm_of(upstream: &Upstream, bearer: &Bearer) -> Result<Url, Failure> {
    auth::check_realm(upstream.root_url(), &bearer.realm, upstream.realm_hosts())
        .map_err(|error| Failure::fatal(OriginError::protocol(upstream.host(), error.to_string())))
}

/// Beside Azure's token server; none at any other.
fn exchange_url(realm: &Url) -> Option<Url> {
    (realm.path() == "/oauth2/token").then(|| realm.join("/oauth2/exchange").ok()).flatten()
}

fn scopes(bearer: &Bearer, repository: &str) -> Vec<String> {
    if bearer.scopes.is_empty() { vec![format!("repository:{repository}:pull")] } else { bearer.scopes.clone() }
}

/// The realm with service and scopes added to whatever query it has.
fn token_url(realm: &Url, bearer: &Bearer, repository: &str) -> Url {
    let mut url = realm.clone();
    let given: Vec<(String, String)> = realm.query_pairs().into_owned().collect();
    let scopes = scopes(bearer, repository);
    let service = bearer.service.iter().map(|service| ("service", service));
    let wanted = service.chain(scopes.iter().map(|scope| ("scope", scope)));
    let missing: Vec<_> =
        wanted.filter(|(key, value)| !given.iter().any(|(name, held)| name == key && held == *value)).collect();
    if !missing.is_empty() {
        url.query_pairs_mut().extend_pairs(missing);
    }
    url
}

/// The form of OAuth2, with all scopes in one field.
fn token_form(bearer: &Bearer, repository: &str, fields: &[(&str, &str)]) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields).append_pair("client_id", CLIENT_ID);
    if let Some(service) = &bearer.service {
        form.append_pair("service", service);
    }
    form.append_pair("scope", &scopes(bearer, repository).join(" "));
    form.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scopes: &[&str]) -> Bearer {
        Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        }
    }

    #[test]
    fn the_token_url_keeps_the_query_of_the_realm_and_repeats_nothing() {
        let url = |realm: &str, service: Option<&str>, scopes: &[&str]| {
            token_url(&realm.parse().unwrap(), &bearer(realm, service, scopes), "a/b").to_string()
        };
        assert_eq!(
            url("https://h/t?x=1", Some("s,t"), &["repository:c:pull,push", "y"]),
            "https://h/t?x=1&service=s%2Ct&scope=repository%3Ac%3Apull%2Cpush&scope=y"
        );
        assert_eq!(url("https://h/t?scope=repository:a/b:pull", None, &[]), "https://h/t?scope=repository:a/b:pull");
    }

    #[test]
    fn the_form_escapes_what_it_carries() {
        let bearer = bearer("https://h/t", Some("s&t"), &["repository:a:pull", "b"]);
        assert_eq!(
            token_form(&bearer, "a", &[("password", "p&q=\n+ %")]),
            "password=p%26q%3D%0A%2B+%25&client_id=shoal&service=s%26t&scope=repository%3Aa%3Apull+b"
        );
    }

    #[test]
    fn only_azures_token_server_has_an_exchange() {
        let exchange = |realm: &str| exchange_url(&realm.parse().unwrap()).map(|url| url.to_string());
        assert_eq!(exchange("https://x.azurecr.io/oauth2/token").unwrap(), "https://x.azurecr.io/oauth2/exchange");
        assert_eq!(exchange("https://auth.docker.io/token"), None);
    }
}
