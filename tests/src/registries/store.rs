//! Content, and where it is handed out.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use hyper::{Response, StatusCode, header::LOCATION};

use super::{
    Delivery, Ranges,
    double::{Question, State},
};
use crate::origin::{Content, Fault, OriginBody, content, corrupted, plain};

/// The registry's answer to somebody who is signed in.
pub(super) fn registry(state: &Arc<State>, question: &Question, fault: Option<Fault>) -> Response<OriginBody> {
    let path = question.served.path.as_str();
    if path == "/v2/" {
        return plain(StatusCode::OK, "{}");
    }
    if let Some(path) = path.strip_prefix("/moved") {
        return hand_out(state, question, path, fault);
    }
    if find(state, path).is_none() {
        return plain(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}"#);
    }
    let delivery = if is_blob(path) { &state.row.blobs } else { &state.row.manifests };
    let location = match delivery {
        Delivery::Here => return hand_out(state, question, path, fault),
        Delivery::Elsewhere => format!("/moved{path}"),
        Delivery::Mirror(host) => format!("https://{host}{path}"),
        Delivery::Signed(host) => {
            format!("https://{host}{path}?X-Amz-Expires=1200&X-Amz-Signature={}", state.signer.sign())
        }
    };
    let mut response = plain(StatusCode::TEMPORARY_REDIRECT, "");
    response.headers_mut().insert(LOCATION, location.parse().expect("a URL"));
    with_headers(state, response)
}

/// A store's answer: only to the signature, or to anybody if it asks for none.
pub(super) fn store(state: &Arc<State>, question: &Question, fault: Option<Fault>) -> Response<OriginBody> {
    let served = &question.served;
    let delivery = if is_blob(&served.path) { &state.row.blobs } else { &state.row.manifests };
    match delivery {
        Delivery::Mirror(host) if *host == question.host => {}
        Delivery::Signed(host) if *host == question.host => {
            // S3: "Only one auth mechanism allowed".
            if served.headers.contains_key("authorization") {
                return plain(StatusCode::BAD_REQUEST, "");
            }
            let signature = served.query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Signature="));
            let is_good = signature.is_some_and(|signature| state.signer.take(signature));
            let is_get = served.method == "GET";
            let ran_out = is_get
                && state.expired.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            // One for a GET is not one for a HEAD.
            if !is_good || ran_out || !is_get {
                return plain(StatusCode::FORBIDDEN, "<Error><Code>AccessDenied</Code></Error>");
            }
        }
        Delivery::Here | Delivery::Elsewhere | Delivery::Mirror(_) | Delivery::Signed(_) => {
            return plain(StatusCode::NOT_FOUND, "");
        }
    }
    hand_out(state, question, &served.path, fault)
}

fn hand_out(state: &Arc<State>, question: &Question, path: &str, fault: Option<Fault>) -> Response<OriginBody> {
    let served = &question.served;
    let Some((digest, bytes, media_type)) = find(state, path) else { return plain(StatusCode::NOT_FOUND, "") };
    let bytes = match &fault {
        Some(Fault::CorruptAt(at)) => corrupted(&bytes, *at),
        _ => bytes,
    };
    let ranges = state.row.ranges == Ranges::Answered && is_blob(path);
    let range = served.headers.get("range").filter(|_| ranges).map(String::as_str);
    let part = Content { digest, bytes, media_type: media_type.to_owned(), range };
    let mut response = content(&Arc::default(), served.method == "HEAD", served, &part, fault);
    if !state.row.tells_digest || question.host != state.row.registry {
        response.headers_mut().remove("docker-content-digest");
    }
    with_headers(state, response)
}

fn with_headers(state: &State, mut response: Response<OriginBody>) -> Response<OriginBody> {
    for (name, value) in state.row.headers {
        response.headers_mut().insert(*name, value.parse().expect("a header"));
    }
    response
}

fn is_blob(path: &str) -> bool {
    path.contains("/blobs/")
}

fn find(state: &State, path: &str) -> Option<(String, Bytes, &'static str)> {
    let rest = path.strip_prefix("/v2/")?.strip_prefix(state.row.repository)?;
    let digest = match rest.strip_prefix("/blobs/") {
        Some(digest) => digest,
        None => match rest.strip_prefix("/manifests/")? {
            "v1" => &state.tagged,
            reference => reference,
        },
    };
    let (bytes, media_type) = state.content.get(digest)?;
    Some((digest.to_owned(), bytes.clone(), media_type))
}
