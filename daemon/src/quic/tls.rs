//! TLS for the data plane: libp2p's certificates, so that a peer has one identity on both planes.
//!
//! A certificate is self-signed, made anew at each start, and carries the node's Ed25519 public key with a signature by
//! it over the certificate's own key (the libp2p TLS specification). Configurations are our own, for three reasons:
//! libp2p-tls prefers ChaCha20, which costs half as much again as AES-128 in hardware; it logs session keys where
//! `SSLKEYLOGFILE` says; and it makes a new certificate for every dial.

use std::sync::Arc;

use libp2p_tls::certificate;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, NoKeyLog, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use shoal_proto::peer::PeerId;

use crate::identity::{self, Identity};

/// Names the protocol and its version in the TLS handshake.
const ALPN: &[u8] = b"shoal/1";
/// Sent by nobody: peers are known by their keys.
pub(super) const SERVER_NAME: &str = "shoal";

/// Why no configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate could be made for the node's key.
    #[error("cannot make a certificate for this node's key: {0}")]
    Certificate(#[from] certificate::GenError),
    /// The library refused our parameters.
    #[error("cannot set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The library lacks the cipher that QUIC begins with.
    #[error("cannot set up TLS for QUIC: {0}")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// This node's certificate, and configurations made of it.
#[derive(Debug)]
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    certificate: Arc<SingleCertAndKey>,
}

impl Tls {
    pub(super) fn new(identity: &Identity) -> Result<Self, TlsError> {
        let (certificate, key) = certificate::generate(identity.keypair())?;
        let key = aws_lc_rs::sign::any_ecdsa_type(&key)?;
        let mut provider = aws_lc_rs::default_provider();
        // The server takes the client's first choice, so that this order holds between any two nodes.
        provider.cipher_suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        // The library gathers entropy at its first use, for some 30 ms: now, not at the first handshake of a rollout.
        provider.secure_random.fill(&mut [0; 32]).map_err(rustls::Error::from)?;
        // Not checked against its key: the libp2p extension is critical and unknown to webpki, which would refuse it.
        let certificate = CertifiedKey::new(vec![certificate], key);
        Ok(Self { provider: Arc::new(provider), certificate: Arc::new(SingleCertAndKey::from(certificate)) })
    }

    /// For the dial of one peer: no other can answer it. Without one, whoever is there can.
    pub(super) fn client(&self, peer: Option<PeerId>) -> Result<QuicClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(&self.provider, peer)))
            .with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(&self.certificate));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.key_log = Arc::new(NoKeyLog {});
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config.try_into()?)
    }

    /// For any peer that dials us.
    pub(super) fn server(&self) -> Result<QuicServerConfig, TlsError> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Verifier::new(&self.provider, None)))
            .with_cert_resolver(Arc::<SingleCertAndKey>::clone(&self.certificate));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.key_log = Arc::new(NoKeyLog {});
        // Every connection checks certificates afresh.
        config.send_tls13_tickets = 0;
        Ok(config.try_into()?)
    }
}

/// Who is at the other end of a connection whose TLS handshake is over. None for keys that are no node's.
pub(super) fn remote_peer(connection: &quinn::Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    peer_of(identity.first()?).ok()
}

/// Checks a certificate's signatures and reads the node's key.
fn peer_of(certificate: &CertificateDer<'_>) -> Result<PeerId, rustls::Error> {
    let certificate = certificate::parse(certificate)?;
    identity::from_libp2p(&certificate.peer_id())
        .ok_or(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
}

/// Takes libp2p certificates of Ed25519 keys, or of one key only.
#[derive(Debug)]
struct Verifier {
    expected: Option<PeerId>,
    schemes: Vec<SignatureScheme>,
}

impl Verifier {
    fn new(provider: &CryptoProvider, expected: Option<PeerId>) -> Self {
        Self { expected, schemes: provider.signature_verification_algorithms.supported_schemes() }
    }

    fn verify(&self, certificate: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if !chain.is_empty() {
            return Err(rustls::Error::General("a peer shows exactly one certificate".into()));
        }
        let peer = peer_of(certificate)?;
        match self.expected {
            Some(expected) if expected != peer => {
                Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    certificate::parse(certificate)?.verify_signature(signed.scheme, message, signed.signature())?;
    Ok(HandshakeSignatureValid::assertion())
}

/// Both configurations allow TLS 1.3 only.
fn tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(certificate, chain).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(certificate, chain).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
