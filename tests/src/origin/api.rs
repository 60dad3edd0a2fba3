//! The double as a registry of distribution specification 1.1: lists and uploads, beside the content that it serves.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, LINK, LOCATION, RANGE},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::{Shelf, State, body, body::OriginBody, lock};
use crate::image::{digest_of, media};

/// A request whose body was read.
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: Bytes,
}

impl Asked<'_> {
    fn parameter(&self, name: &str) -> Option<String> {
        let query = self.uri.query().unwrap_or_default();
        let url = reqwest::Url::parse(&format!("http://double/?{query}")).expect("a query makes a URL");
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

/// Answers lists and uploads; none for what is merely content.
pub(super) fn answer(state: &Arc<State>, asked: &Asked<'_>) -> Option<Response<OriginBody>> {
    let path = asked.uri.path().strip_prefix("/v2/")?;
    let reads = matches!(*asked.method, Method::GET | Method::HEAD);
    let mut shelf = lock(&state.shelf);
    if reads && path == "_catalog" {
        let mut names: Vec<_> = shelf.tags.keys().filter_map(|tag| Some(tag.rsplit_once(':')?.0.to_owned())).collect();
        names.dedup();
        return Some(page(&shelf, asked, "repositories", names));
    }
    if let Some(repository) = path.strip_suffix("/tags/list").filter(|_| reads) {
        let prefix = format!("{repository}:");
        let tags = shelf.tags.keys().filter_map(|tag| tag.strip_prefix(&prefix)).map(str::to_owned);
        return Some(page(&shelf, asked, "tags", tags.collect()));
    }
    if let Some((_, subject)) = path.split_once("/referrers/").filter(|_| reads && !shelf.old) {
        return Some(referrers(&shelf, asked, subject));
    }
    if let Some((repository, upload)) = path.split_once("/blobs/uploads/") {
        return Some(self::upload(&mut shelf, asked, repository, upload));
    }
    let (repository, reference) = path.split_once("/manifests/").filter(|_| *asked.method == Method::PUT)?;
    Some(manifest(&mut shelf, asked, repository, reference))
}

/// A page of names; an old registry knows no pages.
fn page(shelf: &Shelf, asked: &Asked<'_>, field: &str, mut names: Vec<String>) -> Response<OriginBody> {
    if names.is_empty() {
        return refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
    }
    let mut next = None;
    if !shelf.old {
        names.retain(|name| asked.parameter("last").is_none_or(|last| *name > last));
        if let Some(n) = asked.parameter("n").and_then(|n| n.parse::<usize>().ok())
            && names.len() > n
        {
            names.truncate(n);
            let last = names.last().cloned().unwrap_or_default();
            next = Some(format!("<{}?last={last}&n={n}>; rel=\"next\"", asked.uri.path()));
        }
    }
    let mut response = document(&json!({ "name": "double", field: names }), "application/json");
    if let Some(link) = shelf.link.clone().or(next) {
        response.headers_mut().insert(LINK, value(&link));
    }
    response
}

fn referrers(shelf: &Shelf, asked: &Asked<'_>, subject: &str) -> Response<OriginBody> {
    let wanted = asked.parameter("artifactType");
    let manifests = shelf.content.iter().filter_map(|(digest, (bytes, media_type))| {
        let document: Value = serde_json::from_slice(bytes).ok()?;
        let artifact_type = document["artifactType"].as_str()?;
        let fits =
            document["subject"]["digest"] == subject && wanted.as_ref().is_none_or(|wanted| wanted == artifact_type);
        let size = bytes.len();
        fits.then(|| json!({ "mediaType": media_type, "digest": digest, "size": size, "artifactType": artifact_type }))
    });
    let manifests: Vec<_> = manifests.collect();
    let index = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests });
    let mut response = document(&index, media::INDEX);
    if wanted.is_some() {
        response.headers_mut().insert("oci-filters-applied", value("artifactType"));
    }
    response
}

fn upload(shelf: &mut Shelf, asked: &Asked<'_>, repository: &str, upload: &str) -> Response<OriginBody> {
    if *asked.method == Method::POST {
        return begin(shelf, asked, repository);
    }
    let Some(number) = upload.parse::<u64>().ok().filter(|number| shelf.uploads.contains_key(number)) else {
        return refusal(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    };
    let have = shelf.uploads[&number].len();
    // Every answer names another place, as registries that keep their state in it do.
    if asked.parameter("_state") != Some(have.to_string()) {
        return refusal(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    }
    let range = asked.headers.get("content-range").and_then(|range| range.to_str().ok());
    if range.is_some_and(|range| range.split('-').next() != Some(&have.to_string())) {
        let mut response = refusal(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID");
        go_on(shelf, &mut response, repository, number);
        return response;
    }
    match asked.method.as_str() {
        "PATCH" => {
            shelf.uploads.entry(number).or_default().extend_from_slice(&asked.body);
            let mut response = plain(StatusCode::ACCEPTED);
            go_on(shelf, &mut response, repository, number);
            response
        }
        "PUT" => {
            let mut bytes = shelf.uploads.remove(&number).unwrap_or_default();
            bytes.extend_from_slice(&asked.body);
            finish(shelf, asked, repository, bytes.into())
        }
        "GET" => {
            let mut response = plain(StatusCode::NO_CONTENT);
            go_on(shelf, &mut response, repository, number);
            response
        }
        _ => {
            shelf.uploads.remove(&number);
            plain(StatusCode::NO_CONTENT)
        }
    }
}

fn begin(shelf: &mut Shelf, asked: &Asked<'_>, repository: &str) -> Response<OriginBody> {
    if let Some(mounted) = asked.parameter("mount").filter(|mounted| shelf.content.contains_key(mounted)) {
        return created(repository, "blobs", &mounted);
    }
    if asked.parameter("digest").is_some() && !shelf.old {
        return finish(shelf, asked, repository, asked.body.clone());
    }
    let number = shelf.uploads.keys().next_back().map_or(1, |last| last + 1);
    shelf.uploads.insert(number, Vec::new());
    let mut response = plain(StatusCode::ACCEPTED);
    go_on(shelf, &mut response, repository, number);
    response.headers_mut().insert("oci-chunk-min-length", 16.into());
    response
}

fn go_on(shelf: &Shelf, response: &mut Response<OriginBody>, repository: &str, number: u64) {
    let have = shelf.uploads[&number].len();
    let location = format!("/v2/{repository}/blobs/uploads/{number}?_state={have}");
    response.headers_mut().insert(LOCATION, value(shelf.location.as_ref().unwrap_or(&location)));
    response.headers_mut().insert(RANGE, value(&format!("0-{}", have.saturating_sub(1))));
    response.headers_mut().insert("docker-upload-uuid", number.into());
}

fn finish(shelf: &mut Shelf, asked: &Asked<'_>, repository: &str, bytes: Bytes) -> Response<OriginBody> {
    let digest = asked.parameter("digest").unwrap_or_default();
    if digest != digest_like(&digest, &bytes) {
        return refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    }
    shelf.content.insert(digest.clone(), (bytes, String::from("application/octet-stream")));
    created(repository, "blobs", &digest)
}

fn manifest(shelf: &mut Shelf, asked: &Asked<'_>, repository: &str, reference: &str) -> Response<OriginBody> {
    let digest = digest_like(reference, &asked.body);
    if reference.contains(':') && reference != digest {
        return refusal(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    }
    let media_type = asked.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let document: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    for blob in document["layers"].as_array().into_iter().flatten().chain(document.get("config")) {
        if blob["digest"].as_str().is_some_and(|digest| !shelf.content.contains_key(digest)) {
            return refusal(StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN");
        }
    }
    shelf.content.insert(digest.clone(), (asked.body.clone(), media_type.to_owned()));
    if !reference.contains(':') {
        shelf.tags.insert(format!("{repository}:{reference}"), digest.clone());
    }
    let mut response = created(repository, "manifests", &digest);
    if let Some(subject) = document["subject"]["digest"].as_str() {
        response.headers_mut().insert("oci-subject", value(subject));
    }
    response
}

fn created(repository: &str, kind: &str, digest: &str) -> Response<OriginBody> {
    let mut response = plain(StatusCode::CREATED);
    response.headers_mut().insert(LOCATION, value(&format!("/v2/{repository}/{kind}/{digest}")));
    response.headers_mut().insert("docker-content-digest", value(digest));
    response
}

/// The digest of bytes, by the algorithm of `like`.
fn digest_like(like: &str, bytes: &[u8]) -> String {
    use std::fmt::Write;
    if !like.starts_with("sha512:") {
        return digest_of(bytes);
    }
    Sha512::digest(bytes).iter().fold(String::from("sha512:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string works");
        text
    })
}

fn document(document: &Value, media_type: &str) -> Response<OriginBody> {
    let mut response = Response::new(body::full(&document.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, value(media_type));
    response
}

fn refusal(status: StatusCode, code: &str) -> Response<OriginBody> {
    let mut response =
        document(&json!({ "errors": [{ "code": code, "message": "says the double" }] }), "application/json");
    *response.status_mut() = status;
    response
}

fn plain(status: StatusCode) -> Response<OriginBody> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = status;
    response
}

/// Adds what everybody shall read.
pub(super) fn warn(response: &mut Response<OriginBody>, warnings: &[String]) {
    for warning in warnings {
        response.headers_mut().append(HeaderName::from_static("warning"), value(warning));
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("tests write headers that are headers")
}
