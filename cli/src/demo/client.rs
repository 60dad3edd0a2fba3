//! A client that pulls as container engines do, and believes nothing: every byte is checked against its digest.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Client, Response};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shoal_proto::digest::{Algorithm, Digest};
use tokio_util::task::AbortOnDropHandle;

use super::image::MANIFEST_TYPE;

/// Blobs at a time, as containerd does.
const PARALLEL: usize = 3;
/// Longest silence before a connection, a header or a piece of a body.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Largest manifest that is read.
const MANIFEST_MAX: u64 = 4 << 20;

/// What to pull and where.
#[derive(Debug, Clone)]
pub struct Pull {
    /// A registry that speaks plain HTTP.
    pub registry: SocketAddr,
    /// The repository there, for example `demo.test/demo/image`.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// What the tag must point at.
    pub manifest: Digest,
}

/// Why a pull failed or must not be believed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No connection, no answer in time, or a body that broke off.
    #[error("{what}: {why}")]
    Http {
        /// `manifest v1` or `blob sha256:...`.
        what: String,
        /// What went wrong.
        why: String,
    },
    /// An answer other than 200.
    #[error("{what}: answered with {status}")]
    Status {
        /// What was asked for.
        what: String,
        /// The answer.
        status: u16,
    },
    /// More or fewer bytes than the manifest says.
    #[error("{what}: {got} bytes instead of {expected}")]
    Length {
        /// What was asked for.
        what: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// The bytes are not those of the digest.
    #[error("{what}: the content has the digest {got}")]
    Digest {
        /// What was asked for.
        what: String,
        /// What the bytes hash to, or what the header says.
        got: String,
    },
    /// Proven bytes, but no image manifest.
    #[error("{what}: not an image manifest: {why}")]
    Manifest {
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, Deserialize)]
struct Descriptor {
    digest: Digest,
    size: u64,
}

/// A client for plain HTTP on loopback: no proxies, no certificates to load, no silence longer than a minute. One will do
/// for all nodes: connections are kept by address.
///
/// # Errors
/// The TLS library, which is not even needed, does not start.
pub fn plain() -> reqwest::Result<Client> {
    Client::builder().no_proxy().tls_certs_only([]).connect_timeout(IDLE_DEADLINE).read_timeout(IDLE_DEADLINE).build()
}

/// Pulls manifest, config and layers, a few blobs at a time; adds to `received` as bytes arrive. Returns the bytes in
/// all, each of them proven.
///
/// # Errors
/// See [`PullError`]: the first thing that failed; the rest is broken off.
pub async fn pull(client: &Client, pull: &Pull, received: &Arc<AtomicU64>) -> Result<u64, PullError> {
    let (manifest, manifest_bytes) = pull_manifest(client, pull, received).await?;
    let blobs: Vec<Descriptor> = std::iter::once(manifest.config).chain(manifest.layers).collect();
    let bytes = stream::iter(blobs)
        .map(|blob| {
            let (client, received) = (client.clone(), received.clone());
            let url = format!("http://{}/v2/{}/blobs/{}", pull.registry, pull.repository, blob.digest);
            // A task each, so that several processors hash.
            let task = tokio::spawn(async move { pull_blob(&client, &url, &blob, &received).await });
            let task = AbortOnDropHandle::new(task);
            async move {
                task.await
                    .unwrap_or_else(|error| Err(PullError::Http { what: String::from("blob"), why: error.to_string() }))
            }
        })
        .buffer_unordered(PARALLEL)
        .try_fold(0, async |sum, bytes| Ok(sum + bytes))
        .await?;
    Ok(manifest_bytes + bytes)
}

async fn pull_manifest(client: &Client, pull: &Pull, received: &AtomicU64) -> Result<(Manifest, u64), PullError> {
    let what = format!("manifest {}", pull.tag);
    let url = format!("http://{}/v2/{}/manifests/{}", pull.registry, pull.repository, pull.tag);
    let response = client.get(url).header("accept", MANIFEST_TYPE).send().await;
    let mut response = accepted(&what, response)?;
    let shown = response
        .headers()
        .get("docker-content-digest")
        .map(|shown| String::from_utf8_lossy(shown.as_bytes()).into_owned());
    let mut body = Vec::new();
    while let Some(piece) = next(&what, &mut response).await? {
        received.fetch_add(piece.len() as u64, Ordering::Relaxed);
        body.extend_from_slice(&piece);
        let got = body.len() as u64;
        if got > MANIFEST_MAX {
            return Err(PullError::Length { what, expected: MANIFEST_MAX, got });
        }
    }
    let digest = Digest::of(Algorithm::Sha256, &body);
    if digest != pull.manifest {
        return Err(PullError::Digest { what, got: digest.to_string() });
    }
    if let Some(got) = shown.filter(|shown| *shown != digest.to_string()) {
        return Err(PullError::Digest { what, got });
    }
    let manifest =
        serde_json::from_slice(&body).map_err(|error| PullError::Manifest { what, why: error.to_string() })?;
    Ok((manifest, body.len() as u64))
}

async fn pull_blob(client: &Client, url: &str, blob: &Descriptor, received: &AtomicU64) -> Result<u64, PullError> {
    let what = format!("blob {}", blob.digest);
    let mut response = accepted(&what, client.get(url).send().await)?;
    let mut hash = Sha256::new();
    let mut got = 0;
    while let Some(piece) = next(&what, &mut response).await? {
        hash.update(&piece);
        got += piece.len() as u64;
        received.fetch_add(piece.len() as u64, Ordering::Relaxed);
        if got > blob.size {
            break;
        }
    }
    if got != blob.size {
        return Err(PullError::Length { what, expected: blob.size, got });
    }
    let digest = Digest::sha256(hash.finalize().into());
    if digest != blob.digest {
        return Err(PullError::Digest { what, got: digest.to_string() });
    }
    Ok(got)
}

fn accepted(what: &str, response: reqwest::Result<Response>) -> Result<Response, PullError> {
    let response = response.map_err(|error| http(what, &error))?;
    match response.status().as_u16() {
        200 => Ok(response),
        status => Err(PullError::Status { what: what.to_owned(), status }),
    }
}

async fn next(what: &str, response: &mut Response) -> Result<Option<Bytes>, PullError> {
    response.chunk().await.map_err(|error| http(what, &error))
}

fn http(what: &str, error: &reqwest::Error) -> PullError {
    PullError::Http { what: what.to_owned(), why: super::chain_of(error) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::demo::{
        image::{Image, ImageSpec},
        layers::uneven,
        origin::{Origin, OriginOptions},
    };

    async fn origin(dir: &tempfile::TempDir) -> (Image, Origin, Pull) {
        let spec = ImageSpec {
            repository: "demo/image".into(),
            tag: "v1".into(),
            layers: uneven(3 << 20, 5).unwrap(),
            seed: 1,
        };
        let image = Image::generate(dir.path(), &spec).unwrap();
        let origin = Origin::start(OriginOptions::of(image.clone())).await.unwrap();
        let pull = Pull {
            registry: origin.address(),
            repository: "demo/image".into(),
            tag: "v1".into(),
            manifest: image.manifest.digest,
        };
        (image, origin, pull)
    }

    #[tokio::test]
    async fn a_pull_returns_the_bytes_of_the_whole_image() {
        let dir = tempfile::tempdir().unwrap();
        let (image, _origin, target) = origin(&dir).await;
        let received = Arc::default();
        assert_eq!(pull(&plain().unwrap(), &target, &received).await.unwrap(), image.bytes());
        assert_eq!(received.load(Ordering::Relaxed), image.bytes());
    }

    #[tokio::test]
    async fn one_wrong_byte_in_one_layer_fails_the_pull() {
        let dir = tempfile::tempdir().unwrap();
        let (image, _origin, target) = origin(&dir).await;
        let path = dir.path().join("layer3.tar");
        let mut content = std::fs::read(&path).unwrap();
        content[5000] ^= 1;
        // In place: the origin keeps the file open.
        std::io::Write::write_all(&mut std::fs::File::options().write(true).open(path).unwrap(), &content).unwrap();
        let error = pull(&plain().unwrap(), &target, &Arc::default()).await.unwrap_err();
        let named = image.layers[3].digest.to_string();
        assert!(matches!(&error, PullError::Digest { what, .. } if what.contains(&named)), "{error}");
    }

    #[tokio::test]
    async fn a_tag_that_points_elsewhere_fails_the_pull() {
        let dir = tempfile::tempdir().unwrap();
        let (image, _origin, target) = origin(&dir).await;
        let error = pull(&plain().unwrap(), &Pull { manifest: image.config.digest, ..target }, &Arc::default())
            .await
            .unwrap_err();
        assert!(matches!(error, PullError::Digest { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_is_told_with_its_status() {
        let dir = tempfile::tempdir().unwrap();
        let (_image, _origin, target) = origin(&dir).await;
        let error = pull(&plain().unwrap(), &Pull { tag: "v2".into(), ..target }, &Arc::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "manifest v2: answered with 404");
    }
}
