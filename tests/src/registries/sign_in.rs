//! Challenges, token servers, and where secrets belong.

use std::{collections::BTreeMap, sync::Mutex};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{Response, StatusCode, header::WWW_AUTHENTICATE};
use serde_json::json;

use super::{
    Grant, SignIn, TokenShape,
    double::{Question, State},
};
use crate::origin::{OriginBody, lock, plain};

/// What a double gave out.
#[derive(Debug, Default)]
pub(super) struct Signer {
    /// Tokens, with the scope that each is for.
    tokens: Mutex<BTreeMap<String, String>>,
    /// Signatures that are still good.
    signatures: Mutex<Vec<String>>,
    /// Everything, good or not.
    issued: Mutex<Vec<String>>,
}

/// The refresh token behind [`Grant::Exchange`].
const REFRESH_TOKEN: &str = "refresh-token-of-the-exchange";

impl Signer {
    pub(super) fn issued(&self) -> Vec<String> {
        lock(&self.issued).clone()
    }

    fn issue(&self, what: &str) -> String {
        let text = format!("{what}-{:016x}", rand::random::<u64>());
        lock(&self.issued).push(text.clone());
        text
    }

    /// For one request.
    pub(super) fn sign(&self) -> String {
        let signature = self.issue("signature");
        lock(&self.signatures).push(signature.clone());
        signature
    }

    /// Whether a signature is good; it is not any more then.
    pub(super) fn take(&self, signature: &str) -> bool {
        let mut signatures = lock(&self.signatures);
        let at = signatures.iter().position(|good| good == signature);
        at.map(|at| signatures.swap_remove(at)).is_some()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn account(state: &State) -> Option<(&'static str, String)> {
    let rotated = lock(&state.rotated).clone();
    state.row.account.as_ref().map(|account| (account.user, rotated.unwrap_or_else(|| account.secret.text())))
}

/// The registry's refusal of callers who are not signed in.
pub(super) fn refusal(state: &State, question: &Question) -> Option<Response<OriginBody>> {
    let given = question.served.headers.get("authorization").map(String::as_str).unwrap_or_default();
    let lines = match &state.row.sign_in {
        SignIn::Open => return None,
        SignIn::Basic(lines) => {
            let (user, password) = account(state)?;
            if given == basic(user, &password) {
                return None;
            }
            lines
        }
        SignIn::Token(shape) => {
            let scope = scope(state, shape);
            let tokens = lock(&state.signer.tokens);
            if given.strip_prefix("Bearer ").and_then(|token| tokens.get(token)).is_some_and(|held| *held == scope) {
                return None;
            }
            shape.challenge
        }
    };
    let mut response = plain(StatusCode::UNAUTHORIZED, "not signed in");
    for line in lines {
        let line = line.replace("{repository}", state.row.repository);
        response.headers_mut().append(WWW_AUTHENTICATE, line.parse().expect("a challenge is plain text"));
    }
    Some(response)
}

fn scope(state: &State, shape: &TokenShape) -> String {
    shape.scope.replace("{repository}", state.row.repository)
}

/// The token server's answer; none if the question is for somebody else.
pub(super) fn token_server(state: &State, shape: &TokenShape, question: &Question) -> Option<Response<OriginBody>> {
    let served = &question.served;
    if question.host != shape.host {
        return None;
    }
    if served.path == "/oauth2/exchange" && shape.grant == Grant::Exchange {
        return Some(exchange(state, shape, question));
    }
    if served.path != shape.path {
        return None;
    }
    let (method, text) = if shape.grant == Grant::Get { ("GET", &served.query) } else { ("POST", &question.body) };
    if served.method != method {
        return Some(plain(StatusCode::METHOD_NOT_ALLOWED, ""));
    }
    let fields = fields(text);
    let field = |name: &str| fields.get(name).map(String::as_str);
    if field("service") != shape.service || field("scope") != Some(scope(state, shape).as_str()) {
        return Some(plain(StatusCode::BAD_REQUEST, "wrong service or scope"));
    }
    let given = served.headers.get("authorization").map(String::as_str);
    let is_known = match (shape.grant, account(state)) {
        (Grant::Get, None) => given.is_none(),
        (Grant::Get, Some((user, password))) => given == Some(basic(user, &password).as_str()),
        (Grant::Password, Some((user, password))) => {
            field("grant_type") == Some("password")
                && field("username") == Some(user)
                && field("password") == Some(password.as_str())
        }
        (Grant::Refresh, Some((_, password))) => is_refresh(&fields, &password),
        (Grant::Exchange, Some(_)) => is_refresh(&fields, REFRESH_TOKEN),
        (Grant::Password | Grant::Refresh | Grant::Exchange, None) => false,
    };
    if !is_known || (shape.grant != Grant::Get && field("client_id").is_none()) {
        return Some(plain(StatusCode::UNAUTHORIZED, "unknown account"));
    }
    let token = token(state, shape);
    Some(plain(StatusCode::OK, &json!({ shape.field: token, "expires_in": 300 }).to_string()))
}

/// A new one.
pub(super) fn token(state: &State, shape: &TokenShape) -> String {
    let token = state.signer.issue("token");
    lock(&state.signer.tokens).insert(token.clone(), scope(state, shape));
    token
}

fn is_refresh(fields: &BTreeMap<String, String>, token: &str) -> bool {
    let field = |name: &str| fields.get(name).map(String::as_str);
    field("grant_type") == Some("refresh_token") && field("refresh_token") == Some(token)
}

fn exchange(state: &State, shape: &TokenShape, question: &Question) -> Response<OriginBody> {
    let fields = fields(&question.body);
    let field = |name: &str| fields.get(name).map(String::as_str);
    let password = account(state).map(|(_, password)| password);
    let is_known = field("grant_type") == Some("access_token")
        && field("service") == shape.service
        && field("access_token") == password.as_deref();
    if question.served.method != "POST" || !is_known {
        return plain(StatusCode::UNAUTHORIZED, "");
    }
    lock(&state.signer.issued).push(REFRESH_TOKEN.to_owned());
    plain(StatusCode::OK, &json!({ "refresh_token": REFRESH_TOKEN }).to_string())
}

fn fields(text: &str) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// A secret that comes where it does not belong. The password belongs to whoever gives tokens for it, or else to the registry; a
/// token belongs to the registry alone; a store gets neither. Nothing belongs into a URL.
pub(super) fn leak(state: &State, question: &Question) -> Option<String> {
    let (served, row) = (&question.served, state.row);
    let given = served.headers.get("authorization").map(String::as_str);
    let place = format!("{} {}{}", served.method, question.host, served.path);
    let token_server = match &row.sign_in {
        SignIn::Token(shape) => {
            question.host == shape.host && (served.path == shape.path || served.path == "/oauth2/exchange")
        }
        SignIn::Open | SignIn::Basic(_) => false,
    };
    let expected = match &row.sign_in {
        _ if token_server => Some("Basic "),
        _ if question.host != row.registry => None,
        SignIn::Open => None,
        SignIn::Basic(_) => Some("Basic "),
        SignIn::Token(_) => Some("Bearer "),
    };
    if let Some(given) = given
        && !expected.is_some_and(|scheme| given.starts_with(scheme))
    {
        return Some(format!("{place}: Authorization"));
    }
    let mut secrets = state.signer.issued();
    secrets.retain(|secret| !secret.starts_with("signature-"));
    secrets.extend(account(state).map(|(_, password)| password));
    let query = fields(&served.query);
    let others = served.headers.iter().filter(|(name, _)| *name != "authorization").map(|(_, value)| value);
    let mut open = query.values().chain(others).chain([&served.path]);
    if open.any(|text| secrets.iter().any(|secret| text.contains(secret.as_str()))) {
        return Some(format!("{place}: in its URL or a header"));
    }
    (!question.body.is_empty() && !token_server).then(|| format!("{place}: a body"))
}
