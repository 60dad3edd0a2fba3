//! Content for tests: what the node and the origin would answer, written down.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{self, BoxFuture},
    stream,
};
use shoal_proto::{
    digest::{Algorithm, Digest},
    peer::PeerId,
};

use super::content::{Content, ListQuestion, Opened, TagQuestion};
use crate::{
    access::Scope,
    credentials::CredentialError,
    node::{OpenError, TagAnswer, Want},
    origin::{Kind, List, OriginError, Payload, Push, Pushed, Resolved, Source, Upstream, warning},
    store::{Draft, Store},
};

/// Bytes in each item of a body, so that bodies come in several.
const PART_BYTES: usize = 7;

/// An upstream of that name, for the allow-list.
pub(super) fn upstream(name: &str) -> Arc<Upstream> {
    let url = url::Url::parse("http://127.0.0.1:9").expect("a URL");
    Arc::new(Upstream::new(crate::origin::UpstreamSettings::new(name, url)).expect("a plain upstream"))
}

/// The same, which may be pushed to.
pub(super) fn upstream_with_push(name: &str) -> Arc<Upstream> {
    let url = url::Url::parse("http://127.0.0.1:9").expect("a URL");
    let settings = crate::origin::UpstreamSettings { push: true, ..crate::origin::UpstreamSettings::new(name, url) };
    Arc::new(Upstream::new(settings).expect("a plain upstream"))
}

/// Answers from what it was given, and counts what it was asked.
#[derive(Debug, Default)]
pub(super) struct Fake {
    content: HashMap<Digest, Bytes>,
    sealed: bool,
    tags: HashMap<String, Resolved>,
    /// What another node says of every tag.
    word: Option<Resolved>,
    /// By repository and query.
    lists: HashMap<(String, String), List>,
    silent: bool,
    breaks_at: Option<usize>,
    open_error: Option<OpenError>,
    origin_error: Option<OriginError>,
    credential_error: Option<CredentialError>,
    /// Questions about tags.
    pub(super) resolved: AtomicU64,
    /// Those that were for the origin alone.
    pub(super) resolved_own: AtomicU64,
    /// Opened blobs.
    pub(super) opened: AtomicU64,
    /// Offset of the last one.
    pub(super) offset: AtomicU64,
    /// Questions about sizes.
    pub(super) sized: AtomicU64,
    /// Questions about lists.
    pub(super) listed: AtomicU64,
    /// Requests of uploads.
    pub(super) pushed: AtomicU64,
    /// Where drafts lie, if pushes succeed.
    store: Option<Store>,
    /// Pushes that were kept.
    pub(super) kept: AtomicU64,
    /// While it is set, the origin cannot be asked.
    pub(super) down: AtomicBool,
}

impl Fake {
    pub(super) fn with_content(mut self, bytes: &[u8]) -> Self {
        self.content.insert(Digest::of(Algorithm::Sha256, bytes), Bytes::copy_from_slice(bytes));
        self
    }

    /// All content is in the store.
    pub(super) fn sealed(mut self) -> Self {
        self.sealed = true;
        self
    }

    /// A tag of `manifest`, as an OCI index.
    pub(super) fn with_tag(mut self, tag: &str, manifest: &[u8]) -> Self {
        self.tags.insert(tag.to_owned(), index(manifest));
        self.with_content(manifest)
    }

    /// Another node says that all tags point at `manifest`.
    pub(super) fn with_word(mut self, manifest: &[u8]) -> Self {
        self.word = Some(index(manifest));
        self
    }

    /// All answers about tags carry this warning.
    pub(super) fn warning(mut self, text: &str) -> Self {
        self.tags.values_mut().for_each(|resolved| resolved.warnings.extend(warning(text)));
        self
    }

    /// A list of this repository, for this query.
    pub(super) fn with_list(mut self, repository: &str, query: &str, list: List) -> Self {
        self.lists.insert((repository.to_owned(), query.to_owned()), list);
        self
    }

    /// Never answers anything.
    pub(super) fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// Every body breaks at this byte of the blob.
    pub(super) fn breaking_at(mut self, offset: usize) -> Self {
        self.breaks_at = Some(offset);
        self
    }

    pub(super) fn refusing(mut self, error: OpenError) -> Self {
        self.open_error = Some(error);
        self
    }

    pub(super) fn origin_failing(mut self, error: OriginError) -> Self {
        self.origin_error = Some(error);
        self
    }

    pub(super) fn without_credentials(mut self, error: CredentialError) -> Self {
        self.credential_error = Some(error);
        self
    }

    /// Pushes succeed, and their drafts lie in this store.
    pub(super) fn taking(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    pub(super) fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }

    fn say<T: Send + 'static>(&self, answer: T) -> BoxFuture<'static, T> {
        if self.silent { future::pending().boxed() } else { future::ready(answer).boxed() }
    }
}

fn index(manifest: &[u8]) -> Resolved {
    Resolved {
        digest: Digest::of(Algorithm::Sha256, manifest),
        size: manifest.len() as u64,
        media_type: String::from("application/vnd.oci.image.index.v1+json"),
        warnings: Vec::new(),
    }
}

fn taken() -> Pushed {
    Pushed {
        status: hyper::StatusCode::CREATED,
        location: None,
        last: None,
        chunk_min_length: None,
        digest: None,
        subject: None,
        code: None,
        warnings: Vec::new(),
    }
}

fn unknown(host: &str) -> OriginError {
    OriginError::NotFound { host: host.to_owned() }
}

impl Content for Fake {
    fn sealed_size(&self, digest: &Digest) -> Option<u64> {
        self.content.get(digest).filter(|_| self.sealed).map(|bytes| bytes.len() as u64)
    }

    fn scope(
        &self,
        _upstream: Arc<Upstream>,
        _repository: String,
    ) -> BoxFuture<'static, Result<Scope, CredentialError>> {
        future::ready(self.credential_error.clone().map_or(Ok(Scope::Public), Err)).boxed()
    }

    fn admit(&self, _want: Want) -> BoxFuture<'static, Result<(), OpenError>> {
        future::ready(Ok(())).boxed()
    }

    fn open(&self, want: Want, offset: u64, _deadline: Duration) -> BoxFuture<'static, Result<Opened, OpenError>> {
        self.opened.fetch_add(1, Relaxed);
        self.offset.store(offset, Relaxed);
        if let Some(error) = self.open_error.clone() {
            return self.say(Err(error));
        }
        let breaks_at = self.breaks_at.unwrap_or(usize::MAX);
        let opened = self.content.get(&want.digest).cloned().map(|bytes| {
            Opened::new(bytes.len() as u64, move |range| {
                let (start, end) = (usize::try_from(range.start).unwrap_or(0), usize::try_from(range.end).unwrap_or(0));
                let good = bytes.slice(start..end.min(breaks_at.max(start)));
                let broken = (end > breaks_at).then(|| Err(io::Error::other("corrupt")));
                let parts: Vec<_> = good.chunks(PART_BYTES).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
                stream::iter(parts.into_iter().chain(broken)).boxed()
            })
        });
        self.say(opened.ok_or_else(|| unknown(&want.source.upstream.name).into()))
    }

    fn size(&self, source: Source, digest: Digest) -> BoxFuture<'static, Result<u64, OriginError>> {
        assert!(source.kind == Kind::Blob || self.store.is_some(), "manifests are small enough to be opened");
        self.sized.fetch_add(1, Relaxed);
        if let Some(error) = self.origin_error.clone() {
            return self.say(Err(error));
        }
        let size = self.content.get(&digest).map(|bytes| bytes.len() as u64);
        self.say(size.ok_or_else(|| unknown(&source.upstream.name)))
    }

    fn resolve(&self, question: TagQuestion) -> BoxFuture<'static, Result<TagAnswer, OriginError>> {
        self.resolved.fetch_add(1, Relaxed);
        self.resolved_own.fetch_add(u64::from(question.own), Relaxed);
        if let Some(resolved) = self.word.clone().filter(|_| !question.own) {
            let resolver = Some(PeerId([7; 32]));
            return self.say(Ok(TagAnswer { resolver, ..TagAnswer::from(resolved) }));
        }
        if let Some(error) = self.origin_error.clone() {
            return self.say(Err(error));
        }
        if self.down.load(Relaxed) {
            let why = String::from("connection refused");
            return self.say(Err(OriginError::Unavailable { host: question.upstream.name.clone(), why }));
        }
        let resolved = self.tags.get(&question.tag).cloned().map(TagAnswer::from);
        self.say(resolved.ok_or_else(|| unknown(&question.upstream.name)))
    }

    fn list(&self, question: ListQuestion) -> BoxFuture<'static, Result<List, OriginError>> {
        self.listed.fetch_add(1, Relaxed);
        if let Some(error) = self.origin_error.clone() {
            return self.say(Err(error));
        }
        let list = self.lists.get(&(question.repository, question.query)).cloned();
        self.say(list.ok_or_else(|| unknown(&question.upstream.name)))
    }

    fn push(&self, push: Push) -> BoxFuture<'static, Result<Pushed, OriginError>> {
        self.pushed.fetch_add(1, Relaxed);
        if self.store.is_some() {
            return async move {
                if let Payload::Stream(body, _) = push.payload {
                    body.for_each(|_| future::ready(())).await;
                }
                Ok(taken())
            }
            .boxed();
        }
        let host = push.upstream.name.clone();
        self.say(Err(self.origin_error.clone().unwrap_or(OriginError::NotFound { host })))
    }

    fn draft(&self) -> BoxFuture<'static, Result<Draft, OpenError>> {
        let no_disk = || OpenError::Disk(String::from("no disk"));
        self.say(self.store.as_ref().ok_or_else(no_disk).and_then(|store| store.draft().map_err(|_| no_disk())))
    }

    fn keep(&self, _draft: Draft, _want: Want) -> BoxFuture<'static, Result<(), OpenError>> {
        self.kept.fetch_add(1, Relaxed);
        self.say(Ok(()))
    }
}
