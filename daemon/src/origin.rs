//! The origin client: manifests and blobs from upstream registries.
// STUB of the agreed surface; the owner of this module replaces bodies and may add, not rename.

use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::digest::Digest;

/// One allow-listed upstream registry, ready for use.
#[derive(Debug)]
pub struct Upstream {
    /// The name clients use, for example `docker.io` or `registry.test:5000`.
    pub name: String,
}

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
}

/// Why the origin did not give what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// 404: it does not have it.
    #[error("{host}: not found")]
    NotFound { host: String },
    /// 401 or 403 with all the credentials we have.
    #[error("{host}: access denied")]
    Denied { host: String },
    /// 429, or 503 with Retry-After, and patience ran out.
    #[error("{host}: rate limited")]
    RateLimited { host: String },
    /// Unreachable, timed out, 5xx.
    #[error("{host}: {why}")]
    Unavailable { host: String, why: String },
    /// It answered, but not as a registry should (wrong size, wrong range, oversized manifest).
    #[error("{host}: {why}")]
    Protocol { host: String, why: String },
}

/// An open body of content from the origin.
#[derive(Debug)]
pub struct Body {
    /// Bytes in the whole content, from Content-Length or Content-Range.
    pub size: u64,
}

impl Body {
    /// The next bytes, in order from the asked offset; none at the end. Waits at most the idle deadline.
    ///
    /// # Errors
    /// The stream broke, stalled, or ended too early or too late.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        unimplemented!()
    }
}

/// The client for all upstreams.
#[derive(Debug)]
pub struct Origin {}

impl Origin {
    /// Resolves a tag: HEAD, and only if that tells no digest, GET.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn resolve(&self, _upstream: &Upstream, _repository: &str, _tag: &str, _accept: &str) -> Result<Resolved, OriginError> {
        unimplemented!()
    }

    /// The size of content by digest, by HEAD.
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn size(&self, _source: &Source, _digest: &Digest) -> Result<u64, OriginError> {
        unimplemented!()
    }

    /// Opens content by digest from byte `from` on (`Range: bytes=from-` unless 0; a 200 answer is skipped up to it).
    ///
    /// # Errors
    /// See [`OriginError`].
    pub async fn open(&self, _source: &Source, _digest: &Digest, _from: u64) -> Result<Body, OriginError> {
        unimplemented!()
    }
}
