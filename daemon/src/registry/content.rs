//! What the front needs of the rest of the daemon, as one trait: the node for content by digest, the origin for tags, sizes
//! and lists. The seam lets the front be tested over real sockets without a swarm behind it.

use std::{fmt, future::Future, io, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use shoal_proto::digest::Digest;
use tokio::time::{Instant, timeout_at};

use super::error::Failure;
use crate::{
    access::{Policy, Scope},
    credentials::CredentialError,
    node::{Blob, Node, OpenError, TagAnswer, Want},
    origin::{List, Listing, Origin, OriginError, Push, Pushed, Source, Upstream},
    store::Draft,
};

/// The bytes of a range in order; an error item means that the body must end early.
pub(super) type Bytestream = BoxStream<'static, io::Result<Bytes>>;

/// Where content comes from.
pub(super) trait Content: fmt::Debug + Send + Sync + 'static {
    /// See [`Node::sealed_size`].
    fn sealed_size(&self, digest: &Digest) -> Option<u64>;
    /// See [`Node::scope`].
    fn scope(&self, upstream: Arc<Upstream>, repository: String) -> BoxFuture<'static, Result<Scope, CredentialError>>;
    /// See [`Node::admit`].
    fn admit(&self, want: Want) -> BoxFuture<'static, Result<(), OpenError>>;
    /// See [`Node::open`].
    fn open(&self, want: Want, offset: u64, deadline: Duration) -> BoxFuture<'static, Result<Opened, OpenError>>;
    /// See [`Origin::size`].
    fn size(&self, source: Source, digest: Digest) -> BoxFuture<'static, Result<u64, OriginError>>;
    /// See [`Node::resolve_tag`].
    fn resolve(&self, question: TagQuestion) -> BoxFuture<'static, Result<TagAnswer, OriginError>>;
    /// See [`Origin::list`].
    fn list(&self, question: ListQuestion) -> BoxFuture<'static, Result<List, OriginError>>;
    /// See [`Origin::push`].
    fn push(&self, push: Push) -> BoxFuture<'static, Result<Pushed, OriginError>>;
    /// See [`Node::draft`].
    fn draft(&self) -> BoxFuture<'static, Result<Draft, OpenError>>;
    /// See [`Node::keep`].
    fn keep(&self, draft: Draft, want: Want) -> BoxFuture<'static, Result<(), OpenError>>;
}

/// What is asked about a tag.
#[derive(Debug, Clone)]
pub(super) struct TagQuestion {
    /// The registry.
    pub(super) upstream: Arc<Upstream>,
    /// The repository there.
    pub(super) repository: String,
    /// The tag.
    pub(super) tag: String,
    /// The media types the client accepts, as one header value.
    pub(super) accept: String,
    /// This node asks the origin itself, whoever knows the answer.
    pub(super) own: bool,
}

/// Which page of a list is asked for.
#[derive(Debug, Clone)]
pub(super) struct ListQuestion {
    /// The registry.
    pub(super) upstream: Arc<Upstream>,
    /// The repository there; empty for the list of repositories.
    pub(super) repository: String,
    /// Which list.
    pub(super) listing: Listing,
    /// The query that chooses the page.
    pub(super) query: String,
}

/// An open blob whose reading has not begun.
pub(super) struct Opened {
    /// Bytes in the blob.
    pub(super) size: u64,
    read: Box<dyn FnOnce(Range<u64>) -> Bytestream + Send>,
}

impl Opened {
    pub(super) fn new(size: u64, read: impl FnOnce(Range<u64>) -> Bytestream + Send + 'static) -> Self {
        Self { size, read: Box::new(read) }
    }

    /// Reads a range, which lies within the size.
    pub(super) fn read(self, range: Range<u64>) -> Bytestream {
        (self.read)(range)
    }
}

impl From<Blob> for Opened {
    fn from(blob: Blob) -> Self {
        Self::new(blob.size(), |range| blob.read(range))
    }
}

/// The daemon itself.
#[derive(Debug)]
pub(super) struct Daemon {
    /// Content by digest.
    pub(super) node: Node,
    /// Tags and sizes.
    pub(super) origin: Arc<Origin>,
}

impl Content for Daemon {
    fn sealed_size(&self, digest: &Digest) -> Option<u64> {
        self.node.sealed_size(digest)
    }

    fn scope(&self, upstream: Arc<Upstream>, repository: String) -> BoxFuture<'static, Result<Scope, CredentialError>> {
        let node = self.node.clone();
        Box::pin(async move {
            if upstream.access != Policy::Node {
                return node.scope(&upstream, &repository).await;
            }
            // A helper that is slower than the client's patience still ends, so that the next request has its answer.
            let scope = tokio::spawn(async move { node.scope(&upstream, &repository).await });
            scope.await.unwrap_or_else(|error| {
                Err(CredentialError { place: String::from("the lookup"), problem: error.to_string() })
            })
        })
    }

    fn admit(&self, want: Want) -> BoxFuture<'static, Result<(), OpenError>> {
        let node = self.node.clone();
        Box::pin(async move { node.admit(&want).await })
    }

    fn open(&self, want: Want, offset: u64, deadline: Duration) -> BoxFuture<'static, Result<Opened, OpenError>> {
        let node = self.node.clone();
        Box::pin(async move { node.open(want, offset, deadline).await.map(Opened::from) })
    }

    fn size(&self, source: Source, digest: Digest) -> BoxFuture<'static, Result<u64, OriginError>> {
        let origin = Arc::clone(&self.origin);
        Box::pin(async move { origin.size(&source, &digest).await })
    }

    fn resolve(&self, question: TagQuestion) -> BoxFuture<'static, Result<TagAnswer, OriginError>> {
        let (node, origin) = (self.node.clone(), Arc::clone(&self.origin));
        Box::pin(async move {
            let TagQuestion { upstream, repository, tag, accept, own } = question;
            if own {
                return origin.resolve(&upstream, &repository, &tag, &accept).await.map(TagAnswer::from);
            }
            node.resolve_tag(&upstream, &repository, &tag, &accept).await
        })
    }

    fn list(&self, question: ListQuestion) -> BoxFuture<'static, Result<List, OriginError>> {
        let origin = Arc::clone(&self.origin);
        Box::pin(async move {
            let ListQuestion { upstream, repository, listing, query } = question;
            origin.list(&upstream, &repository, &listing, &query).await
        })
    }

    fn push(&self, push: Push) -> BoxFuture<'static, Result<Pushed, OriginError>> {
        let origin = Arc::clone(&self.origin);
        Box::pin(async move { origin.push(push).await })
    }

    fn draft(&self) -> BoxFuture<'static, Result<Draft, OpenError>> {
        let node = self.node.clone();
        Box::pin(async move { node.draft().await })
    }

    fn keep(&self, draft: Draft, want: Want) -> BoxFuture<'static, Result<(), OpenError>> {
        let node = self.node.clone();
        Box::pin(async move { node.keep(draft, want).await })
    }
}

/// The time by which a request must be answered, whoever is being waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    total: Duration,
}

impl Deadline {
    pub(super) fn after(total: Duration) -> Self {
        Self { at: Instant::now() + total, total }
    }

    /// What is left of it.
    pub(super) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Runs `work` until the deadline and `grace` beyond, within which an inner deadline may report something more
    /// truthful than that time ran out.
    pub(super) async fn bound<T>(
        &self,
        grace: Duration,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout_at(self.at + grace, work).await.unwrap_or_else(|_| Err(Failure::deadline(self.total)))
    }
}
