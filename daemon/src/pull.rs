//! Pulling a whole image into the store, for `shoal pull`: a tag is resolved at its origin, everything else comes by
//! digest through the node, as it does for clients of the registry front.

mod bring;
mod document;
mod name;
mod platform;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use futures_util::TryStreamExt as _;
use shoal_proto::{
    digest::Digest,
    status::{PullProgress, PullRequest},
};
use tokio::sync::mpsc;

use self::{
    bring::{Part, Target},
    document::{Document, DocumentError, Piece},
    name::{ImageName, NameError, Reference},
    platform::{Platform, PlatformError},
};
use crate::{
    access::Scope,
    credentials::CredentialError,
    node::{Node, OpenError, Want},
    origin::{Kind, MANIFEST_BYTES, Origin, OriginError, Source, Upstream},
    registry::name::at_upstream,
};

/// Lines of progress that wait for the client.
const LINES_MAX: usize = 64;
/// Longest time without any byte of the image before the pull is given up.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for a stored manifest to be read.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// Indexes that lead to an image, one by the other; in the wild there is one.
const INDEXES_MAX: usize = 4;

/// Pulls images for local users.
#[derive(Debug, Clone)]
pub struct Puller {
    upstreams: BTreeMap<String, Arc<Upstream>>,
    default_upstream: Option<String>,
    node: Node,
    origin: Origin,
    idle: Duration,
}

/// Why a pull ends without the image. The messages do not repeat the image's name.
#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(
        "{name} is not one of this daemon's upstreams ({known}): to allow it, add it to the key upstreams of its \
         configuration, or start it with --upstream {name}=https://{name}"
    )]
    Upstream { name: String, known: String },
    #[error("the image names no registry, and this daemon has no default: name one, or set the key default_upstream")]
    NoDefault,
    #[error(
        "access to {0} is private: its images go to clients that show their own credential to the registry port, not to \
         `shoal pull`"
    )]
    Private(String),
    #[error("no credential for the origin: {0}")]
    Credential(#[from] CredentialError),
    #[error("{host} has no tag {tag} of {repository}")]
    NoTag { host: String, repository: String, tag: String },
    #[error("cannot resolve the tag {tag}: {source}")]
    Tag { tag: String, source: OriginError },
    #[error("{part}: {source}")]
    Part { part: Box<Part>, source: OpenError },
    #[error("{part}: {source}")]
    Document { part: Box<Part>, source: DocumentError },
    #[error("{part} has {size} bytes, but its size is said to be {}", part.size.unwrap_or_default())]
    Size { part: Box<Part>, size: u64 },
    #[error("nothing arrived for {} s; waited for {waiting}. What arrived so far is kept", idle.as_secs())]
    Idle { idle: Duration, waiting: String },
    #[error("more than {INDEXES_MAX} indexes lead from one to the other")]
    Nesting,
}

impl Puller {
    /// A puller for the allow-listed upstreams.
    #[must_use]
    pub fn new(
        upstreams: BTreeMap<String, Arc<Upstream>>,
        default_upstream: Option<String>,
        node: Node,
        origin: Origin,
    ) -> Self {
        Self { upstreams, default_upstream, node, origin, idle: IDLE_DEADLINE }
    }

    /// The puller as the admin interfaces call it: inside the runtime, once for each pull. A pull whose receiver is
    /// dropped asks for nothing more; what is on its way already still arrives.
    #[must_use]
    pub fn source(self) -> Arc<dyn Fn(PullRequest) -> mpsc::Receiver<PullProgress> + Send + Sync> {
        Arc::new(move |request| {
            let (lines, receiver) = mpsc::channel(LINES_MAX);
            tokio::spawn(self.clone().run(request, lines));
            receiver
        })
    }

    async fn run(self, request: PullRequest, lines: mpsc::Sender<PullProgress>) {
        tracing::info!(image = request.image, "pull asked for");
        let pulled = tokio::select! {
            pulled = self.pull(&request, &lines) => pulled,
            () = lines.closed() => {
                tracing::info!(image = request.image, "the client that asked for the pull is gone");
                return;
            }
        };
        let last = match pulled {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(image = request.image, %error, "pull failed");
                PullProgress::Failed { message: error.to_string() }
            }
        };
        // Nobody is left to tell if this fails.
        lines.send_timeout(last, self.idle).await.ok();
    }

    async fn pull(&self, request: &PullRequest, lines: &mpsc::Sender<PullProgress>) -> Result<PullProgress, PullError> {
        let started = Instant::now();
        let platform = match &request.platform {
            Some(platform) => platform.parse()?,
            None => Platform::of_machine(),
        };
        let image = ImageName::parse(&request.image, |name| self.upstreams.contains_key(name))?;
        let target = self.target(&image).await?;
        let (digest, pieces) = self.find(&target, &image.reference, &platform).await?;
        let bytes = pieces.iter().fold(0, |sum: u64, piece| sum.saturating_add(piece.size));
        let layers = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        lines.send_timeout(PullProgress::Resolved { digest, layers, bytes }, self.idle).await.ok();
        let parts: Vec<Part> = pieces.iter().map(Part::from).collect();
        self.bring(&target, &parts, Some(lines)).await?;
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(PullProgress::Done { digest, bytes, milliseconds })
    }

    /// Where the image is: only at upstreams that the configuration allows.
    async fn target(&self, image: &ImageName) -> Result<Target, PullError> {
        let name = image.registry.as_ref().or(self.default_upstream.as_ref()).ok_or(PullError::NoDefault)?;
        let upstream = self.upstreams.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.upstreams.keys().map(String::as_str).collect();
            PullError::Upstream { name: name.clone(), known: known.join(", ") }
        })?;
        let repository = at_upstream(name, &image.repository);
        let scope = self.node.scope(upstream, &repository).await?;
        if scope == Scope::Private {
            return Err(PullError::Private(name.clone()));
        }
        Ok(Target { upstream: upstream.under(scope), repository, scope })
    }

    /// What the reference means, and the pieces of the image for the platform.
    async fn find(
        &self,
        target: &Target,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Digest, Vec<Piece>), PullError> {
        let tag = match reference {
            Reference::Digest(digest) => return Ok((*digest, self.describe(target, *digest, platform).await?)),
            Reference::Tag(tag) => tag,
        };
        let Target { upstream, repository, .. } = target;
        // Without an Accept of its own the origin client takes any type of manifest.
        let answer = self.node.resolve_tag(upstream, repository, tag, "").await;
        let answer = answer.map_err(|error| unresolved(error, target, tag))?;
        let digest = answer.resolved.digest;
        match self.describe(target, digest, platform).await {
            // What another node says is not worth a failed pull.
            Err(_) if answer.resolver.is_some() => {
                let resolved = self.origin.resolve(upstream, repository, tag, "").await;
                let digest = resolved.map_err(|error| unresolved(error, target, tag))?.digest;
                Ok((digest, self.describe(target, digest, platform).await?))
            }
            pieces => Ok((digest, pieces?)),
        }
    }

    /// Follows manifests from `digest` to the image for the platform: its config and layers.
    async fn describe(&self, target: &Target, digest: Digest, wanted: &Platform) -> Result<Vec<Piece>, PullError> {
        let mut part = Part::manifest(digest, None);
        for _ in 0..=INDEXES_MAX {
            let document = |source| PullError::Document { part: part.into(), source };
            match Document::parse(&self.read(target, part).await?).map_err(document)? {
                Document::Image(pieces) => return Ok(pieces),
                Document::Index(choices) => {
                    let choice = document::choose(&choices, wanted).map_err(document)?;
                    part = Part::manifest(choice.digest, Some(choice.size));
                }
            }
        }
        Err(PullError::Nesting)
    }

    /// Brings a manifest into the store and reads it.
    async fn read(&self, target: &Target, part: Part) -> Result<BytesMut, PullError> {
        self.bring(target, &[part], None).await?;
        let failed = |source| PullError::Part { part: part.into(), source };
        let blob = self.node.open(target.want(&part), 0, READ_DEADLINE).await.map_err(failed)?;
        let size = blob.size();
        if size > MANIFEST_BYTES {
            let why = format!("it has {size} bytes, more than a manifest may have ({MANIFEST_BYTES})");
            return Err(PullError::Document { part: part.into(), source: DocumentError::Malformed(why) });
        }
        let read = blob.read(0..size).try_fold(BytesMut::new(), async |mut whole, bytes| {
            whole.extend_from_slice(&bytes);
            Ok(whole)
        });
        read.await.map_err(|error| failed(OpenError::Disk(error.to_string())))
    }
}

fn unresolved(error: OriginError, target: &Target, tag: &str) -> PullError {
    let tag = tag.to_owned();
    match error {
        OriginError::NotFound { host } => PullError::NoTag { host, repository: target.repository.clone(), tag },
        source @ (OriginError::Denied { .. }
        | OriginError::Unavailable { .. }
        | OriginError::RateLimited { .. }
        | OriginError::Protocol { .. }) => PullError::Tag { tag, source },
    }
}

impl Target {
    fn want(&self, part: &Part) -> Want {
        let kind = if part.is_manifest() { Kind::Manifest } else { Kind::Blob };
        let source = Source { upstream: Arc::clone(&self.upstream), repository: self.repository.clone(), kind };
        Want { digest: part.digest, source, scope: self.scope }
    }
}
