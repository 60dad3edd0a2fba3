#![allow(clippy::unwrap_used, reason = "tests")]
//! The client against scripted servers on loopback.

use bytes::Bytes;
use shoal_proto::digest::Algorithm;

use super::*;

mod content;
mod grants;
mod login;
mod mirrors;
mod server;
mod trouble;

use server::{Reply, Server};

const BLOB: &[u8] = b"0123456789abcdefghij";

/// Deadlines that a busy machine keeps, but no pauses.
fn patient() -> OriginTimeouts {
    let pause = Duration::from_millis(1);
    let (open, headers) = (Duration::from_secs(30), Duration::from_secs(20));
    OriginTimeouts { open, headers, first_pause: pause, longest_pause: pause, ..Default::default() }
}

/// Deadlines for servers that never answer.
fn hasty() -> OriginTimeouts {
    let short = Duration::from_millis(100);
    OriginTimeouts { open: Duration::from_secs(5), headers: short, idle: short, ..patient() }
}

fn client() -> Origin {
    Origin::new(patient(), Vec::new(), Arc::default())
}

fn settings(server: &Server) -> UpstreamSettings {
    UpstreamSettings::new("registry.test", server.url.parse().unwrap())
}

fn upstream(server: &Server) -> Arc<Upstream> {
    Arc::new(Upstream::new(settings(server)).unwrap())
}

/// With the user name `robot` and the password `hunter2`.
fn upstream_with_password(server: &Server) -> Arc<Upstream> {
    let settings = UpstreamSettings {
        username: Some("robot".to_owned()),
        password: Some("hunter2".to_owned()),
        ..settings(server)
    };
    Arc::new(Upstream::new(settings).unwrap())
}

const BASIC: &str = "Basic cm9ib3Q6aHVudGVyMg==";

fn blob_of(upstream: Arc<Upstream>) -> Source {
    Source { upstream, repository: "team/app".to_owned(), kind: Kind::Blob }
}

fn blob(server: &Server) -> Source {
    blob_of(upstream(server))
}

fn manifest(server: &Server) -> Source {
    Source { kind: Kind::Manifest, ..blob(server) }
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, BLOB)
}

fn blob_path() -> String {
    format!("/v2/team/app/blobs/{}", digest())
}

async fn read(body: &mut Body) -> Result<Bytes, OriginError> {
    let mut all = Vec::new();
    while let Some(piece) = body.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

async fn fetch(client: &Origin, source: &Source, from: u64) -> Result<Bytes, OriginError> {
    read(&mut client.open(source, &digest(), from).await?).await
}

#[track_caller]
fn assert_protocol<T: std::fmt::Debug>(outcome: Result<T, OriginError>, part: &str) {
    match outcome {
        Err(OriginError::Protocol { why, .. }) if why.contains(part) => {}
        other => panic!("expected a protocol error about {part:?}, got {other:?}"),
    }
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, OriginError>, part: &str) {
    match outcome {
        Err(OriginError::Unavailable { why, .. }) if why.contains(part) => {}
        other => panic!("expected unavailability by {part:?}, got {other:?}"),
    }
}
