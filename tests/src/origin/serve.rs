//! How the double answers.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::JoinSet};

use super::{Auth, Fault, Served, State, api, body, body::OriginBody, lock};

const TOKEN: &str = "token-of-the-origin-double";

/// Accepts until it is aborted, which closes all connections too.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        state.connections.fetch_add(1, Ordering::Relaxed);
        stream.set_nodelay(true).ok();
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(&state, request).await) }
            });
            // Ends with an error when a fault is served: that is what faults are for.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Response<OriginBody> {
    let path = request.uri().path().to_owned();
    let served = Arc::new(Served {
        method: request.method().to_string(),
        path: path.clone(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: joined(request.headers()),
        status: 0.into(),
        sent: 0.into(),
    });
    lock(&state.served).push(Arc::clone(&served));
    let mut response = match state.fault(&path) {
        Some(Fault::HangBeforeHeaders) => std::future::pending().await,
        fault => {
            let (head, body) = request.into_parts();
            // Who sends half of an upload gets no answer that it could read.
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            respond(state, &Request::from_parts(head, body), &served, fault)
        }
    };
    api::warn(&mut response, &lock(&state.shelf).warnings);
    served.status.store(response.status().as_u16().into(), Ordering::Relaxed);
    response
}

fn respond(
    state: &Arc<State>,
    request: &Request<Bytes>,
    served: &Arc<Served>,
    fault: Option<Fault>,
) -> Response<OriginBody> {
    let path = request.uri().path();
    if path == "/token" {
        return token(state, &served.headers);
    }
    if let Some(refusal) = unauthorized(state, request.headers()) {
        return refusal;
    }
    match &fault {
        Some(Fault::Status(code)) => {
            return plain(StatusCode::from_u16(*code).expect("tests name real statuses"), "");
        }
        Some(Fault::TooManyRequests(seconds)) => {
            let mut response = plain(StatusCode::TOO_MANY_REQUESTS, "");
            response.headers_mut().insert(RETRY_AFTER, (*seconds).into());
            return response;
        }
        Some(Fault::RedirectTo(other)) => {
            let mut response = plain(StatusCode::TEMPORARY_REDIRECT, "");
            let location = format!("http://{other}{path}?signed=1");
            response.headers_mut().insert(LOCATION, location.parse().expect("an address and a path are a URL"));
            return response;
        }
        _ => {}
    }
    if path == "/v2/" {
        return plain(StatusCode::OK, "{}");
    }
    let asked = api::Asked {
        method: request.method(),
        uri: request.uri(),
        headers: request.headers(),
        body: request.body().clone(),
    };
    if let Some(answer) = api::answer(state, &asked) {
        return answer;
    }
    let Some((digest, bytes, media_type)) = find(state, path) else {
        return plain(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}"#);
    };
    let bytes = match &fault {
        Some(Fault::Instead(other)) => other.clone(),
        Some(Fault::CorruptAt(at)) => corrupted(&bytes, *at),
        _ => bytes,
    };
    let range = match (&fault, request.headers().get("range")) {
        (Some(Fault::IgnoreRange), _) | (_, None) => None,
        (_, Some(range)) => range.to_str().ok(),
    };
    let ranges_allowed = path.contains("/blobs/");
    content(
        state,
        request.method() == Method::HEAD,
        served,
        &Content { digest, bytes, media_type, range: range.filter(|_| ranges_allowed) },
        fault,
    )
}

/// What is handed out, and which part of it was asked for.
pub(crate) struct Content<'a> {
    pub(crate) digest: String,
    pub(crate) bytes: Bytes,
    pub(crate) media_type: String,
    pub(crate) range: Option<&'a str>,
}

pub(crate) fn content(
    state: &Arc<State>,
    is_head: bool,
    served: &Arc<Served>,
    content: &Content<'_>,
    fault: Option<Fault>,
) -> Response<OriginBody> {
    let size = content.bytes.len() as u64;
    let (status, from, to) = match content.range.map(|range| parse_range(range, size)) {
        None => (StatusCode::OK, 0, size),
        Some(Some((from, to))) => (StatusCode::PARTIAL_CONTENT, from, to),
        Some(None) => {
            let mut response = plain(StatusCode::RANGE_NOT_SATISFIABLE, "");
            let all = format!("bytes */{size}");
            response.headers_mut().insert(CONTENT_RANGE, all.parse().expect("digits"));
            return response;
        }
    };
    let part = content.bytes.slice(from as usize..to as usize);
    let payload =
        if is_head { body::empty() } else { body::streamed(part, Arc::clone(state), Arc::clone(served), fault) };
    let blob = served.path.contains("/blobs/");
    let media_type = if blob { "application/octet-stream" } else { &content.media_type };
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, media_type)
        .header(CONTENT_LENGTH, to - from)
        .header("docker-content-digest", &content.digest)
        .header(ACCEPT_RANGES, "bytes");
    if status == StatusCode::PARTIAL_CONTENT {
        response = response.header(CONTENT_RANGE, format!("bytes {from}-{}/{size}", to - 1));
    }
    response.body(payload).expect("the parts of the answer are fine")
}

fn find(state: &State, path: &str) -> Option<(String, Bytes, String)> {
    let shelf = lock(&state.shelf);
    let rest = path.strip_prefix("/v2/")?;
    let digest = if let Some((_, digest)) = rest.split_once("/blobs/") {
        digest.to_owned()
    } else {
        let (repository, reference) = rest.split_once("/manifests/")?;
        shelf.tags.get(&format!("{repository}:{reference}")).cloned().unwrap_or_else(|| reference.to_owned())
    };
    let (bytes, media_type) = shelf.content.get(&digest)?;
    Some((digest, bytes.clone(), media_type.clone()))
}

/// A single range as `from` and the byte after its last; none if it cannot be satisfied.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (from, end) = match (from, to) {
        ("", last) => (size.saturating_sub(last.parse().ok()?), size),
        (from, "") => (from.parse().ok()?, size),
        (from, to) => (from.parse().ok()?, to.parse::<u64>().ok()?.saturating_add(1).min(size)),
    };
    (from < end).then_some((from, end))
}

fn unauthorized(state: &State, headers: &HeaderMap) -> Option<Response<OriginBody>> {
    let given = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (wanted, challenge) = match &lock(&state.shelf).auth {
        Auth::Open => return None,
        Auth::Basic(user, password) => (basic(user, password), String::from(r#"Basic realm="origin double""#)),
        Auth::Bearer(..) => {
            let host = headers.get("host").and_then(|value| value.to_str().ok()).unwrap_or_default();
            (
                format!("Bearer {TOKEN}"),
                format!(r#"Bearer realm="http://{host}/token",service="double",scope="repository:x:pull""#),
            )
        }
    };
    if given == wanted {
        return None;
    }
    let mut response = plain(StatusCode::UNAUTHORIZED, "");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().expect("a challenge is plain text"));
    Some(response)
}

fn token(state: &State, headers: &BTreeMap<String, String>) -> Response<OriginBody> {
    let given = headers.get("authorization").cloned().unwrap_or_default();
    match &lock(&state.shelf).auth {
        Auth::Bearer(user, password) if given == basic(user, password) => {
            let mut response = plain(StatusCode::OK, &format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#));
            response.headers_mut().insert(CONTENT_TYPE, "application/json".parse().expect("a type"));
            response
        }
        Auth::Open | Auth::Basic(..) | Auth::Bearer(..) => plain(StatusCode::UNAUTHORIZED, ""),
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

pub(crate) fn corrupted(bytes: &Bytes, at: u64) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at as usize] ^= 1;
    bytes.into()
}

pub(crate) fn plain(status: StatusCode, text: &str) -> Response<OriginBody> {
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    response
}

pub(crate) fn joined(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.to_string())
            .and_modify(|there| *there = format!("{there}, {value}"))
            .or_insert(value.into_owned());
    }
    all
}
