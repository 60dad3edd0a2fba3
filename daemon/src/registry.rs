//! The registry front: the `/v2/` endpoint that containerd, podman, Docker and the rest pull from.
//!
//! It answers GET and HEAD of manifests and blobs for allow-listed upstreams. Content by digest comes from the node (store,
//! peers, origin); tags are resolved and lists are asked at the origin only. Everything is answered or refused within the answer deadline, with
//! a status that makes clients fall back (the `error` module says which and why).

mod answers;
mod authority;
mod blob;
mod body;
mod content;
mod error;
#[cfg(test)]
mod fake;
mod guard;
mod list;
mod manifest;
pub(crate) mod media;
pub(crate) mod name;
mod push;
mod range;
mod record;
mod respond;
mod route;
mod serve;
mod tags;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
mod tls;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use shoal_proto::digest::Digest;
use tokio::{sync::Semaphore, time::timeout};

use self::{
    body::Body,
    content::{Content, Daemon, Deadline},
    error::{Code, Failure},
    guard::Guard,
    list::Lists,
    name::Reference,
    push::{Call, Uploads},
    record::Record,
    route::{Route, Target, Upstreams},
    tags::Tags,
};
pub use self::{
    serve::serve,
    tls::{CertificateError, RegistryTls},
};
use crate::{
    access::{Policy, Scope},
    metrics::Metrics,
    node::{Node, Want},
    origin::{self, Kind, Listing, Origin, Source, Upstream},
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// How long an answer may take beyond its deadline, for an inner deadline to say what went wrong.
const GRACE: Duration = Duration::from_millis(500);

/// How a [`Registry`] is set up.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// The allow-list: upstreams by the name clients use (`docker.io`, `registry.test:5000`), in lower case.
    pub upstreams: BTreeMap<String, Arc<Upstream>>,
    /// The name of the upstream for requests that name none; without it they are refused.
    pub default_upstream: Option<String>,
    /// Host names to answer to, beyond localhost and the address of the connection.
    pub hosts: Vec<String>,
    /// How long the origin's answer about a tag is believed.
    pub tag_ttl: Duration,
    /// How much longer that answer may be told, with a warning, while the origin cannot be asked; zero: not at all.
    pub stale_if_error: Duration,
    /// How long finding out what to answer may take; bodies may take longer. Clients wait for 30 s or for ever, so
    /// this is what keeps a pull from hanging on us.
    pub answer_deadline: Duration,
    /// Whether no byte of a blob is sent before the whole blob is proven.
    pub stream_sealed: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            upstreams: BTreeMap::new(),
            default_upstream: None,
            hosts: Vec::new(),
            tag_ttl: Duration::from_secs(10),
            stale_if_error: Duration::ZERO,
            answer_deadline: Duration::from_secs(4),
            stream_sealed: false,
        }
    }
}

/// The registry front; a cheap handle. [`serve()`] runs it on a listener.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    upstreams: Upstreams,
    guard: Guard,
    content: Arc<dyn Content>,
    tags: Tags,
    lists: Lists,
    uploads: Uploads,
    answer_deadline: Duration,
    stream_sealed: bool,
    /// Memory for manifests on their way to clients, in units of the `manifest` module.
    manifests: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("upstreams", &self.upstreams).finish_non_exhaustive()
    }
}

/// What the handlers need of a request.
struct Request<'a> {
    head: bool,
    headers: &'a HeaderMap,
    deadline: Deadline,
}

impl Registry {
    /// A front for `node`, which asks `origin` about tags and sizes. It counts in the node's metrics.
    #[must_use]
    pub fn new(config: RegistryConfig, node: Node, origin: Arc<Origin>) -> Self {
        let metrics = Arc::clone(node.metrics());
        Self::with_content(config, Arc::new(Daemon { node, origin }), metrics)
    }

    fn with_content(config: RegistryConfig, content: Arc<dyn Content>, metrics: Arc<Metrics>) -> Self {
        let RegistryConfig { upstreams, default_upstream, hosts, .. } = config;
        let RegistryConfig { tag_ttl, stale_if_error, answer_deadline, stream_sealed, .. } = config;
        let inner = Inner {
            upstreams: Upstreams::new(upstreams, default_upstream.as_deref()),
            guard: Guard::new(&hosts),
            content,
            tags: Tags::new(tag_ttl, stale_if_error, answer_deadline),
            lists: Lists::new(answer_deadline),
            uploads: Uploads::default(),
            answer_deadline,
            stream_sealed,
            manifests: Arc::new(Semaphore::new(manifest::PERMITS)),
            metrics,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Answers a request that came in on a connection whose own end is `local`; `overloaded` says that the connection
    /// is one too many.
    async fn answer<B>(&self, request: hyper::Request<B>, local: SocketAddr, overloaded: bool) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let body = body.map_err(std::io::Error::other).boxed_unsync();
        let admitted = if overloaded {
            Err(Failure::unavailable("this node has too many open connections"))
        } else {
            self.admit(&head, local)
        };
        let subject = admitted.as_ref().map(ToString::to_string).unwrap_or_default();
        let kind = admitted.as_ref().ok().and_then(Route::kind);
        let answer = match admitted {
            Ok(mut route) => match self.inner.enter(&mut route, &head.headers).await {
                Ok(()) => {
                    let call = Call { method: &head.method, headers: &head.headers, body: Some(body) };
                    self.inner.dispatch(route, call).await
                }
                Err(failure) => Err(failure),
            },
            Err(failure) => Err(failure),
        };
        let mut response = answer.unwrap_or_else(|failure| failure.response());
        response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let record = Record::new(&self.inner.metrics, started, head.method, (subject, kind), response.status());
        response.map(|body| body.recorded(record))
    }

    /// Everything that can be refused without asking anybody.
    fn admit(&self, head: &hyper::http::request::Parts, local: SocketAddr) -> Result<Route, Failure> {
        self.inner.guard.check(&head.uri, &head.headers, local)?;
        let (path, query) = (head.uri.path(), head.uri.query());
        if let Some((target, asked)) = self.inner.upstreams.pushes(&head.method, path, query)? {
            if local.ip().to_canonical().is_loopback() {
                return Ok(Route::Push(target, asked));
            }
            let message = "pushing is for clients on this machine: use an address on loopback";
            return Err(Failure::new(StatusCode::FORBIDDEN, Code::Denied, message));
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            let message = "this registry is for pulling: only GET and HEAD";
            return Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message));
        }
        self.inner.upstreams.route(path, query)
    }
}

impl Inner {
    /// Finds out under which right a request comes. Where access is private, it is asked as the client itself would ask.
    async fn enter(&self, route: &mut Route, headers: &HeaderMap) -> Result<(), Failure> {
        let is_push = matches!(route, Route::Push(..));
        let Some(target) = route.target_mut() else { return Ok(()) };
        if target.upstream.access == Policy::Private {
            target.upstream = target.upstream.for_client(origin::credential_of(headers.get(AUTHORIZATION)));
        }
        let scope = self.content.scope(Arc::clone(&target.upstream), target.repository.clone());
        let problem = match timeout(self.answer_deadline, scope).await {
            Ok(Ok(scope)) => {
                target.scope = scope;
                None
            }
            Ok(Err(error)) => Some(format!("no credential for the origin: {error}")),
            Err(_) => Some(format!("no credential for the origin within {:?}", self.answer_deadline)),
        };
        match problem {
            // Whoever pushes means the node's account.
            Some(why) if is_push => return Err(Failure::unavailable(why)),
            Some(_) => target.scope = Scope::Public,
            None => {}
        }
        target.problem = problem;
        target.upstream = target.upstream.under(target.scope);
        Ok(())
    }

    async fn dispatch(&self, route: Route, call: Call<'_>) -> Result<Response<Body>, Failure> {
        let deadline = Deadline::after(self.answer_deadline);
        let request = Request { head: *call.method == Method::HEAD, headers: call.headers, deadline };
        let (target, response) = match &route {
            Route::Base => return Ok(base()),
            Route::Manifest(target, reference) => {
                (target, deadline.bound(GRACE, manifest::answer(self, target, reference, &request)).await)
            }
            Route::Blob(target, digest) => {
                (target, deadline.bound(GRACE, blob::answer(self, target, digest, &request)).await)
            }
            Route::List(target, listing, page) => {
                (target, deadline.bound(GRACE, list::answer(self, target, listing, page)).await)
            }
            // Takes as long as bytes move, and has bounds of its own.
            Route::Push(target, asked) => (target, push::answer(self, target, asked, call).await),
        };
        // What is public was to be had all the same; for what is not, this is the reason.
        let response = response.map_err(|failure| match &target.problem {
            Some(why) if failure.status == StatusCode::NOT_FOUND => Failure::unavailable(why.clone()),
            _ => failure,
        });
        if let Some(namespace) = target.namespace.as_deref().and_then(|name| HeaderValue::from_str(name).ok()) {
            let mut answered = response.unwrap_or_else(|failure| failure.response());
            answered.headers_mut().insert(NAMESPACE, namespace);
            return Ok(answered);
        }
        response
    }
}

/// The answer to "is this a registry?". Never a challenge: it would make clients send us their credentials.
fn base() -> Response<Body> {
    let mut response = Response::new(Body::full(Bytes::from_static(b"{}")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Target {
    fn want(&self, digest: &Digest, kind: Kind) -> Want {
        let source = Source { upstream: Arc::clone(&self.upstream), repository: self.repository.clone(), kind };
        Want { digest: *digest, source, scope: self.scope }
    }
}

impl Route {
    /// What kind of content is asked for, if it is any.
    const fn kind(&self) -> Option<Kind> {
        match self {
            Self::Base | Self::List(..) | Self::Push(..) => None,
            Self::Manifest(..) => Some(Kind::Manifest),
            Self::Blob(..) => Some(Kind::Blob),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => Ok(()),
            Self::Manifest(target, Reference::Tag(tag)) => {
                write!(f, "{}/{}:{tag}", target.upstream.name, target.repository)
            }
            Self::Manifest(target, Reference::Digest(digest)) | Self::Blob(target, digest) => {
                write!(f, "{}/{}@{digest:?}", target.upstream.name, target.repository)
            }
            Self::List(target, Listing::Tags, _) => write!(f, "tags of {}/{}", target.upstream.name, target.repository),
            Self::List(target, Listing::Referrers(subject), _) => {
                write!(f, "referrers of {}/{}@{subject:?}", target.upstream.name, target.repository)
            }
            Self::Push(target, _) => write!(f, "push to {}/{}", target.upstream.name, target.repository),
            Self::List(target, Listing::Catalog, _) => write!(f, "repositories of {}", target.upstream.name),
        }
    }
}
