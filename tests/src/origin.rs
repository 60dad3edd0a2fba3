//! A registry in this process that counts what it serves and misbehaves on order.

mod api;
mod body;
mod serve;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};

pub(crate) use body::OriginBody;
pub(crate) use serve::{Content, content, corrupted, joined, plain};

use crate::image::{Blob, Image};

/// What goes wrong, for the requests that a [`Rule`] covers.
#[derive(Debug, Clone)]
pub enum Fault {
    /// No answer.
    HangBeforeHeaders,
    /// The answer stops after so many bytes of body and stays open.
    HangAfter(u64),
    /// The connection is closed after so many bytes of body.
    TruncateAfter(u64),
    /// This status and no content.
    Status(u16),
    /// 429 with `Retry-After` in seconds.
    TooManyRequests(u64),
    /// The byte at this offset of the content is another one.
    CorruptAt(u64),
    /// The whole content with 200, whatever range was asked for.
    IgnoreRange,
    /// 307 to the same path on another origin.
    RedirectTo(SocketAddr),
    /// This body instead, with 200 and the type of a manifest.
    Instead(Bytes),
}

/// Which requests are served differently.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Part of the path: a digest, `/blobs/`, `/manifests/`, or empty for all.
    pub path: String,
    /// How many requests; then the rule is used up.
    pub times: u64,
    /// Only each so-manieth request that it covers, beginning with the first.
    pub every: u64,
    /// How many it has covered.
    pub seen: u64,
    /// What happens.
    pub fault: Fault,
}

/// How callers prove who they are.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// They need not.
    #[default]
    Open,
    /// `Authorization: Basic` on every request.
    Basic(&'static str, &'static str),
    /// A token from `/token`, which is given for this account.
    Bearer(&'static str, &'static str),
}

/// One request as it was served.
#[derive(Debug)]
pub struct Served {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The query, empty if there was none.
    pub query: String,
    /// All headers, names in lower case; several of one name are joined by `, `.
    pub headers: BTreeMap<String, String>,
    /// The status of the answer; 0 as long as there is none.
    pub status: AtomicU64,
    /// Bytes of body that were handed to the connection.
    pub sent: AtomicU64,
}

impl Served {
    /// The `Range` header.
    #[must_use]
    pub fn range(&self) -> Option<&str> {
        self.headers.get("range").map(String::as_str)
    }

    /// Bytes of body so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn is_blob_get(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }
}

#[derive(Debug, Default)]
struct Shelf {
    /// By digest: content and media type.
    content: BTreeMap<String, (Bytes, String)>,
    /// By `repository:tag`: digest.
    tags: BTreeMap<String, String>,
    rules: Vec<Rule>,
    auth: Auth,
    /// What was sent of each upload that is open.
    uploads: BTreeMap<u64, Vec<u8>>,
    /// Whether it has neither pages nor referrers nor uploads in one request.
    old: bool,
    /// Goes with every answer.
    warnings: Vec<String>,
    /// The `Link` of every list, and the `Location` of every upload, instead of the right ones.
    link: Option<String>,
    location: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    shelf: Mutex<Shelf>,
    served: Mutex<Vec<Arc<Served>>>,
    connections: AtomicU64,
    /// Bytes per second of all bodies together; 0 for no limit.
    rate: AtomicU64,
    /// When the next byte may leave.
    next: Mutex<Option<Instant>>,
}

/// The registry. Stops when dropped.
#[derive(Debug)]
pub struct OriginDouble {
    address: SocketAddr,
    state: Arc<State>,
    server: Option<JoinHandle<()>>,
}

impl OriginDouble {
    /// Serves on a free port of the loopback interface.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(State::default());
        let server = Some(tokio::spawn(serve::serve(listener, Arc::clone(&state))));
        Self { address, state, server }
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As an upstream's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the port and all connections, as a registry that crashed.
    pub async fn down(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            // Cancelled: that is what was asked for.
            server.await.ok();
        }
    }

    /// Serves again where it did.
    ///
    /// # Panics
    /// If the port was taken meanwhile.
    pub async fn up(&mut self) {
        if self.server.is_none() {
            let listener = TcpListener::bind(self.address).await.expect("the port is still free");
            self.server = Some(tokio::spawn(serve::serve(listener, Arc::clone(&self.state))));
        }
    }

    /// Offers an image under a tag.
    pub fn offer(&self, image: &Image, repository: &str, tag: &str) {
        for blob in image.blobs().chain(image.manifests()) {
            self.offer_content(&blob.digest, blob.bytes.clone(), blob.media_type);
        }
        self.tag(repository, tag, &image.index.digest);
    }

    /// Offers one blob.
    pub fn offer_blob(&self, blob: &Blob) {
        self.offer_content(&blob.digest, blob.bytes.clone(), blob.media_type);
    }

    /// Offers any bytes under any digest.
    pub fn offer_content(&self, digest: &str, bytes: Bytes, media_type: &str) {
        self.shelf().content.insert(digest.to_owned(), (bytes, media_type.to_owned()));
    }

    /// Points a tag at a digest.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        self.shelf().tags.insert(format!("{repository}:{tag}"), digest.to_owned());
    }

    /// From now on requests whose path contains `path` meet this fault, until [`Self::behave`].
    pub fn misbehave(&self, path: &str, fault: Fault) {
        self.misbehave_times(path, u64::MAX, fault);
    }

    /// The next `times` such requests meet it.
    pub fn misbehave_times(&self, path: &str, times: u64, fault: Fault) {
        self.shelf().rules.push(Rule { path: path.to_owned(), times, every: 1, seen: 0, fault });
    }

    /// One such request of every `every` meets it, the first to begin with, until `times` have.
    pub fn misbehave_every(&self, path: &str, every: u64, times: u64, fault: Fault) {
        self.shelf().rules.push(Rule { path: path.to_owned(), times, every, seen: 0, fault });
    }

    /// No more faults.
    pub fn behave(&self) {
        self.shelf().rules.clear();
    }

    /// Whom it serves.
    pub fn require(&self, auth: Auth) {
        self.shelf().auth = auth;
    }

    /// From now on it is a registry of before specification 1.1: no pages, no referrers, no upload in one request.
    pub fn be_old(&self) {
        self.shelf().old = true;
    }

    /// From now on every answer has these `Warning` headers.
    pub fn warn(&self, warnings: &[&str]) {
        self.shelf().warnings = warnings.iter().map(|&warning| warning.to_owned()).collect();
    }

    /// From now on every list has this `Link`.
    pub fn link(&self, link: &str) {
        self.shelf().link = Some(link.to_owned());
    }

    /// From now on every upload goes on there.
    pub fn send_uploads_to(&self, location: &str) {
        self.shelf().location = Some(location.to_owned());
    }

    /// What it has under this digest.
    #[must_use]
    pub fn content(&self, digest: &str) -> Option<Bytes> {
        self.shelf().content.get(digest).map(|(bytes, _)| bytes.clone())
    }

    /// Caps all bodies together, in bytes per second.
    pub fn limit(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// All requests so far, in order.
    #[must_use]
    pub fn requests(&self) -> Vec<Arc<Served>> {
        lock(&self.state.served).clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        lock(&self.state.served).clear();
    }

    /// How many TCP connections were accepted since the start.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Bytes of blobs that left, in all.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.requests().iter().filter(|served| served.is_blob_get()).map(|served| served.sent()).sum()
    }

    /// Bytes that left of what has this in its path.
    #[must_use]
    pub fn bytes_of(&self, path: &str) -> u64 {
        self.requests().iter().filter(|served| served.path.contains(path)).map(|served| served.sent()).sum()
    }

    /// GET requests with this in their path.
    #[must_use]
    pub fn gets(&self, path: &str) -> Vec<Arc<Served>> {
        let is_one = |served: &Arc<Served>| served.method == "GET" && served.path.contains(path);
        self.requests().into_iter().filter(is_one).collect()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        lock(&self.state.shelf)
    }
}

impl Drop for OriginDouble {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of the lock panics")
}

impl State {
    fn fault(&self, path: &str) -> Option<Fault> {
        let mut shelf = lock(&self.shelf);
        let rule = shelf.rules.iter_mut().find(|rule| rule.times > 0 && path.contains(&rule.path))?;
        let hit = rule.seen % rule.every == 0;
        rule.seen += 1;
        rule.times -= u64::from(hit);
        hit.then(|| rule.fault.clone())
    }

    /// When `bytes` more may leave under the cap.
    fn pace(&self, bytes: u64) -> Option<Instant> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let mut next = lock(&self.next);
        let now = Instant::now();
        let from = next.map_or(now, |next| next.max(now));
        *next = Some(from + Duration::from_secs_f64(bytes as f64 / rate as f64));
        Some(from)
    }
}
