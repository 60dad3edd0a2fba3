//! A token server as Distribution's specification has it: tokens are JWTs, signed with a key whose certificate the registry
//! knows.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::CertifiedKey;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

use crate::origin::{OriginBody, plain};

struct Signer {
    account: String,
    certificate: CertifiedKey,
    key: EcdsaKeyPair,
    granted: AtomicU64,
}

/// The server. Stops when dropped.
pub struct TokenServer {
    address: SocketAddr,
    signer: Arc<Signer>,
    server: AbortHandle,
}

impl TokenServer {
    /// Whom its tokens are for.
    pub const SERVICE: &str = "registry.test";
    /// How it names itself.
    pub const ISSUER: &str = "token-server.test";

    /// Serves one account on a free port of the loopback interface, with a new key.
    ///
    /// # Panics
    /// If it cannot listen.
    pub async fn start(user: &str, password: &str) -> Self {
        let certificate = rcgen::generate_simple_self_signed([Self::ISSUER.to_owned()]);
        let certificate = certificate.expect("a certificate for a name can be made");
        let key = certificate.key_pair.serialize_der();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key).expect("the default key is P-256");
        let account = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")));
        let signer = Arc::new(Signer { account, certificate, key, granted: 0.into() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let server = tokio::spawn(serve(listener, Arc::clone(&signer))).abort_handle();
        Self { address, signer, server }
    }

    /// For the registry's configuration.
    #[must_use]
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The certificate in PEM form, for the registry to trust.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.signer.certificate.cert.pem()
    }

    /// How many tokens were given.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.signer.granted.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for TokenServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, signer: Arc<Signer>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let signer = Arc::clone(&signer);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let answer = signer.answer(&request);
                async move { Ok::<_, Infallible>(answer) }
            });
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Signer {
    fn answer(&self, request: &Request<Incoming>) -> Response<OriginBody> {
        let query = request.uri().query().unwrap_or_default();
        let fields: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if given != Some(self.account.as_str()) {
            return plain(StatusCode::UNAUTHORIZED, "");
        }
        let scope = fields.get("scope").map(String::as_str).unwrap_or_default();
        // `repository:NAME:ACTIONS`
        let parts: Vec<_> = scope.split(':').collect();
        let ("/token", Some(TokenServer::SERVICE), [kind, name, actions]) =
            (request.uri().path(), fields.get("service").map(String::as_str), parts.as_slice())
        else {
            return plain(StatusCode::BAD_REQUEST, "");
        };
        let access = json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() });
        self.granted.fetch_add(1, Ordering::Relaxed);
        plain(StatusCode::OK, &json!({ "token": self.token(&access), "expires_in": 300 }).to_string())
    }

    fn token(&self, access: &Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = json!({
            "typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(self.certificate.cert.der())]
        });
        let claims = json!({
            "iss": TokenServer::ISSUER, "aud": TokenServer::SERVICE, "sub": "alice", "access": [access],
            "iat": now, "nbf": now - 10, "exp": now + 300, "jti": format!("{:016x}", rand::random::<u64>()),
        });
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a key signs");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}
