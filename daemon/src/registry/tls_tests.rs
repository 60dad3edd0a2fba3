use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::config::ConfigSources;

struct Setup {
    directory: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate for localhost and its key, in files.
    fn give(&self) -> String {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(self.path("cert.pem"), made.cert.pem()).unwrap();
        self.give_key(&made.key_pair.serialize_pem());
        made.cert.pem()
    }

    fn give_key(&self, pem: &str) {
        fs::write(self.path("key.pem"), pem).unwrap();
        fs::set_permissions(self.path("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config(&self, given: bool) -> Config {
        let mut flags = std::collections::BTreeMap::from([
            ("data-dir".to_owned(), vec![self.directory.path().display().to_string()]),
            ("registry-tls-listen".to_owned(), vec!["127.0.0.1:0".to_owned()]),
        ]);
        if given {
            for (flag, file) in [("registry-tls-cert", "cert.pem"), ("registry-tls-key", "key.pem")] {
                flags.insert(flag.to_owned(), vec![self.path(file).display().to_string()]);
            }
        }
        Config::load(ConfigSources { flags, ..ConfigSources::default() }).unwrap()
    }

    fn open(&self, given: bool) -> Result<RegistryTls, CertificateError> {
        RegistryTls::open(&self.config(given), "ab").map(Option::unwrap)
    }
}

/// Whether a client that trusts only `pem` gets through by this name.
async fn trusts(tls: &RegistryTls, pem: &str, name: &'static str) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let (stream, other) = connected().await;
    let connector = TlsConnector::from(Arc::new(client));
    let connect = connector.connect(ServerName::try_from(name).unwrap(), stream);
    let accept = tls.accept(other);
    let (ours, theirs) = tokio::join!(connect, accept);
    ours.is_ok() && theirs.is_ok()
}

#[tokio::test]
async fn clients_that_trust_our_authority_reach_loopback_by_all_its_names() {
    let setup = Setup::new();
    let tls = setup.open(false).unwrap();
    let authority = fs::read_to_string(tls.authority().unwrap()).unwrap();
    for name in ["localhost", "127.0.0.1", "::1"] {
        assert!(trusts(&tls, &authority, name).await, "{name}");
    }
    assert!(!trusts(&tls, &authority, "elsewhere.test").await);
    // Made anew by the key that was kept, so that the certificate that clients have vouches for it.
    fs::remove_file(&tls.inner.files.certificate).unwrap();
    tls.refresh(SystemTime::now());
    assert!(trusts(&tls, &authority, "localhost").await);
    assert_eq!(fs::read_to_string(tls.authority().unwrap()).unwrap(), authority);
}

#[tokio::test]
async fn a_certificate_of_our_own_is_renewed_while_the_daemon_runs() {
    let setup = Setup::new();
    let tls = setup.open(false).unwrap();
    let leaf = || fs::read_to_string(&tls.inner.files.certificate).unwrap();
    let (first, shown) = (leaf(), Arc::clone(&tls.current().config));
    tls.refresh(SystemTime::now() + Duration::from_hours(24 * 200));
    assert_eq!(leaf(), first, "it is good for a while");
    assert!(Arc::ptr_eq(&shown, &tls.current().config));
    tls.refresh(SystemTime::now() + Duration::from_hours(24 * 310));
    assert_ne!(leaf(), first);
    assert!(!Arc::ptr_eq(&shown, &tls.current().config), "and shown");
}

#[tokio::test]
async fn given_files_are_shown_and_read_anew_when_they_change() {
    let setup = Setup::new();
    let first = setup.give();
    let tls = setup.open(true).unwrap();
    assert_eq!(tls.authority(), None);
    assert!(trusts(&tls, &first, "localhost").await);
    let second = setup.give();
    tls.refresh(SystemTime::now());
    assert!(trusts(&tls, &second, "localhost").await && !trusts(&tls, &first, "localhost").await);
}

#[tokio::test]
async fn bad_files_leave_the_certificate_of_before() {
    let setup = Setup::new();
    let first = setup.give();
    let tls = setup.open(true).unwrap();
    fs::write(setup.path("cert.pem"), "half").unwrap();
    tls.refresh(SystemTime::now());
    assert!(trusts(&tls, &first, "localhost").await);
    fs::remove_file(setup.path("key.pem")).unwrap();
    tls.refresh(SystemTime::now());
    assert!(trusts(&tls, &first, "localhost").await);
    let second = setup.give();
    tls.refresh(SystemTime::now());
    assert!(trusts(&tls, &second, "localhost").await);
}

#[test]
fn files_that_cannot_be_used_are_told_by_key_and_name_and_never_quoted() {
    let setup = Setup::new();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let body = other.lines().nth(1).unwrap().to_owned();
    let told = |what: &str| {
        let error = setup.open(true).unwrap_err();
        assert!(error.is_configured());
        let message = error.to_string();
        assert!(message.contains(what) && message.contains("registry_tls_") && !message.contains(&body), "{message}");
        RegistryTls::check(&setup.config(true)).unwrap_err();
    };
    told("cannot be read");
    setup.give();
    fs::write(setup.path("cert.pem"), "").unwrap();
    told("no certificate");
    fs::write(setup.path("cert.pem"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    told("not a PEM file");
    fs::write(setup.path("cert.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    told("registry_tls_cert and registry_tls_key");
    fs::write(setup.path("cert.pem"), vec![b'x'; 2 << 20]).unwrap();
    told("1 MiB");
    setup.give();
    setup.give_key("hello");
    told("no private key");
    setup.give_key(&other);
    told("registry_tls_cert and registry_tls_key");
    fs::set_permissions(setup.path("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    told("chmod 600");
    setup.give();
    assert!(setup.open(true).is_ok());
}

#[tokio::test]
async fn what_is_no_handshake_ends_the_connection() {
    let setup = Setup::new();
    let tls = setup.open(false).unwrap();
    let (mut client, stream) = connected().await;
    client.write_all(b"GET /v2/ HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(tls.accept(stream).await.is_err());
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP/"), "an alert at most: {answer:?}");
}

#[tokio::test]
async fn too_many_handshakes_wait_their_turn() {
    let setup = Setup::new();
    let tls = setup.open(false).unwrap();
    let authority = fs::read_to_string(tls.authority().unwrap()).unwrap();
    let busy = tls.inner.handshakes.acquire_many(HANDSHAKES as u32).await.unwrap();
    let mut waiting = Box::pin(trusts(&tls, &authority, "localhost"));
    // It gets as far as it can.
    for _ in 0..100 {
        assert!(futures_util::poll!(&mut waiting).is_pending());
        tokio::task::yield_now().await;
    }
    drop(busy);
    assert!(waiting.await);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_let_go_at_the_deadline() {
    let setup = Setup::new();
    let mut tls = setup.open(false).unwrap();
    Arc::get_mut(&mut tls.inner).unwrap().handshake_deadline = Duration::from_millis(50);
    let (_silent, stream) = connected().await;
    assert_eq!(tls.accept(stream).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
}

/// Both ends of a connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}
