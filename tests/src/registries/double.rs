//! A registry with all its hosts, behind a proxy that leads every name to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::{Delivery, Heads, Row, SignIn, sign_in, sign_in::Signer, store};
use crate::{
    image::Image,
    origin::{Fault, OriginBody, Served, joined, lock, plain},
};

/// A request, and the host that it was for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Without the port 443.
    pub host: String,
    /// What was asked.
    pub served: Arc<Served>,
}

pub(super) struct State {
    pub(super) row: &'static Row,
    /// By digest: content and media type.
    pub(super) content: BTreeMap<String, (Bytes, &'static str)>,
    /// What the tag `v1` points at.
    pub(super) tagged: String,
    pub(super) signer: Signer,
    /// The password, once it is not the row's any more.
    pub(super) rotated: Mutex<Option<String>>,
    asked: Mutex<Vec<Asked>>,
    leaks: Mutex<Vec<String>>,
    /// For requests whose host and path contain the text.
    faults: Mutex<Vec<(String, u64, Fault)>>,
    /// How many signatures from now on are worth nothing.
    pub(super) expired: AtomicU64,
}

/// One row of the table at work: its registry, its token server and its stores, reached through a proxy. Stops when dropped.
pub struct RegistryDouble {
    proxy: SocketAddr,
    directory: TempDir,
    state: Arc<State>,
    server: AbortHandle,
}

impl RegistryDouble {
    /// Offers an image as `v1` of the row's repository.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(row: &'static Row, image: &Image) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let tls = certificate(&hosts(row), &directory.path().join("ca.pem"));
        let content = image.blobs().chain(image.manifests());
        let state = Arc::new(State {
            row,
            content: content.map(|blob| (blob.digest.clone(), (blob.bytes.clone(), blob.media_type))).collect(),
            tagged: image.index.digest.clone(),
            signer: Signer::default(),
            rotated: Mutex::default(),
            asked: Mutex::default(),
            leaks: Mutex::default(),
            faults: Mutex::default(),
            expired: 0.into(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let proxy = listener.local_addr().expect("a listener has an address");
        let server = tokio::spawn(serve(listener, tls, Arc::clone(&state))).abort_handle();
        Self { proxy, directory, state, server }
    }

    /// The proxy's URL.
    #[must_use]
    pub fn proxy(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// The row's part of a daemon's configuration, with its account and this password instead, if one is given.
    ///
    /// # Panics
    /// If the files beside it cannot be written.
    #[must_use]
    pub fn config(&self, password: Option<&str>) -> String {
        let mut text = self.table();
        if let Some(account) = &self.state.row.account {
            let secret = password.map_or_else(|| account.secret.text(), str::to_owned);
            let file = self.path("password");
            fs::write(&file, secret + "\n").expect("the password can be written");
            text += &format!("username = \"{}\"\npassword_file = \"{}\"\n", account.user, file.display());
        }
        text
    }

    /// The same with a file of docker's in place of the account: what it has for this registry.
    ///
    /// # Panics
    /// If the file cannot be written.
    #[must_use]
    pub fn config_with_file(&self, content: &serde_json::Value) -> String {
        let file = self.path("config.json");
        fs::write(&file, content.to_string()).expect("the file can be written");
        format!("{}credentials = \"{}\"\n", self.table(), file.display())
    }

    /// The head of the row's table.
    fn table(&self) -> String {
        let authority = self.path("ca.pem");
        format!("[upstreams.\"{}\"]\nca_file = \"{}\"\n", self.state.row.name, authority.display())
    }

    /// A token of the row's token server, as if somebody had signed in elsewhere.
    ///
    /// # Panics
    /// If the row has no token server.
    #[must_use]
    pub fn token(&self) -> String {
        let SignIn::Token(shape) = &self.state.row.sign_in else { panic!("{} has no tokens", self.state.row.name) };
        sign_in::token(&self.state, shape)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The next `times` requests with this in their host and path meet this fault.
    pub fn misbehave(&self, part: &str, times: u64, fault: Fault) {
        lock(&self.state.faults).push((part.to_owned(), times, fault));
    }

    /// The next `count` signatures are worth nothing when they are shown.
    pub fn expire(&self, count: u64) {
        self.state.expired.store(count, Ordering::Relaxed);
    }

    /// From now on this is the password.
    pub fn rotate(&self, password: &str) {
        *lock(&self.state.rotated) = Some(password.to_owned());
    }

    /// All requests so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.state.asked).clone()
    }

    /// Secrets that came where they do not belong, in words without them.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        lock(&self.state.leaks).clone()
    }

    /// The secrets of which this one must be silent: the password, all tokens and all signatures.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let password = self.state.row.account.as_ref().map(|account| account.secret.text());
        let rotated = lock(&self.state.rotated).clone();
        self.state.signer.issued().into_iter().chain(password).chain(rotated).collect()
    }
}

impl std::fmt::Debug for RegistryDouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryDouble").field("row", &self.state.row.name).finish_non_exhaustive()
    }
}

impl Drop for RegistryDouble {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Every host of a row, without ports.
fn hosts(row: &Row) -> BTreeSet<String> {
    let mut hosts = vec![row.registry];
    if let SignIn::Token(shape) = &row.sign_in {
        hosts.push(shape.host);
    }
    for delivery in [&row.manifests, &row.blobs] {
        if let Delivery::Mirror(host) | Delivery::Signed(host) = delivery {
            hosts.push(host);
        }
    }
    hosts.iter().map(|host| host.split(':').next().unwrap_or_default().to_owned()).collect()
}

/// A certificate for these hosts, which is its own authority and is written to `file`.
fn certificate(hosts: &BTreeSet<String>, file: &std::path::Path) -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(hosts.iter().cloned().collect::<Vec<_>>());
    let made = made.expect("a certificate for names can be made");
    fs::write(file, made.cert.pem()).expect("the certificate can be written");
    let key = PrivatePkcs8KeyDer::from(made.key_pair.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.expect("the provider has all versions").with_no_client_auth();
    let tls = tls.with_single_cert(vec![made.cert.der().clone()], key.into()).expect("the key is the certificate's");
    Arc::new(tls).into()
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).ok();
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let tunnels = service_fn(|request| {
                let (tls, state) = (tls.clone(), Arc::clone(&state));
                async move { Ok::<_, Infallible>(tunnel(request, tls, state)) }
            });
            let proxy = hyper::server::conn::http1::Builder::new();
            proxy.serve_connection(TokioIo::new(stream), tunnels).with_upgrades().await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers CONNECT and plays the host at its other end. All else is refused: nothing of a row is plain HTTP.
fn tunnel(request: Request<Incoming>, tls: TlsAcceptor, state: Arc<State>) -> Response<OriginBody> {
    let Some(target) = request.uri().authority().filter(|_| request.method() == Method::CONNECT) else {
        return plain(StatusCode::BAD_REQUEST, "");
    };
    let host = target.as_str().trim_end_matches(":443").to_owned();
    tokio::spawn(async move {
        let Ok(inner) = hyper::upgrade::on(request).await else { return };
        let Ok(stream) = tls.accept(TokioIo::new(inner)).await else { return };
        let service = service_fn(|request| {
            let (state, host) = (Arc::clone(&state), host.clone());
            async move { Ok::<_, Infallible>(answer(&state, host, request).await) }
        });
        // Ends with an error when a fault is served.
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
    });
    plain(StatusCode::OK, "")
}

/// A request with its body.
pub(super) struct Question {
    pub(super) host: String,
    pub(super) body: String,
    pub(super) served: Arc<Served>,
}

async fn answer(state: &Arc<State>, host: String, request: Request<Incoming>) -> Response<OriginBody> {
    let served = Arc::new(Served {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: joined(request.headers()),
        status: 0.into(),
        sent: 0.into(),
    });
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let question = Question { host, body: String::from_utf8_lossy(&body).into_owned(), served };
    lock(&state.asked).push(Asked { host: question.host.clone(), served: Arc::clone(&question.served) });
    lock(&state.leaks).extend(sign_in::leak(state, &question));
    let fault = fault(state, &question);
    let response = match fault {
        Some(Fault::HangBeforeHeaders) => std::future::pending().await,
        Some(Fault::Status(code)) => plain(StatusCode::from_u16(code).expect("tests name real statuses"), ""),
        Some(Fault::TooManyRequests(seconds)) => {
            let mut response = plain(StatusCode::TOO_MANY_REQUESTS, r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#);
            response.headers_mut().insert("retry-after", seconds.into());
            response
        }
        fault => respond(state, &question, fault),
    };
    question.served.status.store(response.status().as_u16().into(), Ordering::Relaxed);
    response
}

fn fault(state: &State, question: &Question) -> Option<Fault> {
    let place = format!("{}{}", question.host, question.served.path);
    let mut faults = lock(&state.faults);
    let (_, times, fault) = faults.iter_mut().find(|(part, times, _)| *times > 0 && place.contains(part.as_str()))?;
    *times -= 1;
    Some(fault.clone())
}

fn respond(state: &Arc<State>, question: &Question, fault: Option<Fault>) -> Response<OriginBody> {
    let row = state.row;
    if let SignIn::Token(shape) = &row.sign_in
        && let Some(response) = sign_in::token_server(state, shape, question)
    {
        return response;
    }
    if question.host != row.registry {
        return store::store(state, question, fault);
    }
    if let Some(refusal) = sign_in::refusal(state, question) {
        return refusal;
    }
    if row.heads == Heads::Refused && question.served.method == "HEAD" {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    store::registry(state, question, fault)
}
