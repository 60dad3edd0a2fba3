//! A certificate authority of this node's own, for the TLS listener of the registry front when no certificate is given.
//!
//! Some clients (Charliecloud) speak HTTPS only, and loopback names get no certificate from anybody. The authority's key
//! and certificate are kept, so that clients need to be told of it once; the listener's certificate is made anew before it
//! expires and when its names change.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

const DAY: Duration = Duration::from_hours(24);
/// For clocks that do not agree.
const BACKDATED: Duration = DAY;
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(24 * 3650);
/// Not longer than what TLS clients accept of anybody (398 days).
const LEAF_LIFETIME: Duration = Duration::from_hours(24 * 365);
/// How long before its end a certificate is made anew.
const AUTHORITY_RENEWAL: Duration = Duration::from_hours(24 * 400);
const LEAF_RENEWAL: Duration = Duration::from_hours(24 * 60);

/// Where the authority and the listener's certificate are kept.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    directory: PathBuf,
    /// Tells this node's authority from those of others in one bundle.
    name: String,
    names: BTreeSet<String>,
}

impl Authority {
    /// An authority in this directory, which vouches for these names and addresses, and for those of the loopback.
    pub(super) fn new(directory: PathBuf, name: &str, names: impl IntoIterator<Item = String>) -> Self {
        let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let names = names.into_iter().map(|name| name.to_ascii_lowercase()).chain(loopback).collect();
        Self { directory, name: format!("Shoal node {name}"), names }
    }

    /// The authority's certificate, for clients to trust.
    pub(super) fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The listener's certificate and its key, in one file: a crash cannot leave one without the other.
    pub(super) fn leaf(&self) -> PathBuf {
        self.directory.join("registry.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    /// Makes what is not there, is about to expire, or is for other names. Returns whether the authority is a new one.
    pub(super) fn prepare(&self, now: SystemTime) -> io::Result<bool> {
        fs::create_dir_all(&self.directory)?;
        fs::set_permissions(&self.directory, fs::Permissions::from_mode(0o700))?;
        let kept = fs::read_to_string(self.key()).ok().and_then(|pem| KeyPair::from_pem(&pem).ok());
        let kept = kept.filter(|key| {
            let held = Held::read(&self.certificate());
            held.is_some_and(|held| held.ends > now + AUTHORITY_RENEWAL && held.key == key.public_key_der())
        });
        let (key, is_new) = match kept {
            Some(key) => (key, false),
            None => (KeyPair::generate().map_err(io::Error::other)?, true),
        };
        let leaf = self.leaf();
        if !is_new && self.is_good(now) {
            return Ok(false);
        }
        // Signed by its name and key alone: one made anew of the same two vouches as the one that clients have.
        let authority = self.authority(&key, now).map_err(io::Error::other)?;
        if is_new {
            // Else a crash could leave one that the new authority does not vouch for.
            absent(&leaf)?;
            write(&self.key(), &key.serialize_pem(), 0o600)?;
            write(&self.certificate(), &authority.pem(), 0o644)?;
        }
        let (certificate, key) = self.signed(&authority, &key, now).map_err(io::Error::other)?;
        write(&leaf, &(certificate.pem() + &key.serialize_pem()), 0o600)?;
        Ok(is_new)
    }

    fn authority(&self, key: &KeyPair, now: SystemTime) -> Result<Certificate, rcgen::Error> {
        let mut params = self.params(&self.name, now, AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.self_signed(key)
    }

    fn signed(&self, by: &Certificate, key: &KeyPair, now: SystemTime) -> Result<(Certificate, KeyPair), rcgen::Error> {
        let mut params = self.params(&format!("{}, registry", self.name), now, LEAF_LIFETIME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        for name in &self.names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let own = KeyPair::generate()?;
        Ok((params.signed_by(&own, by, key)?, own))
    }

    fn params(&self, name: &str, now: SystemTime, lifetime: Duration) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + lifetime).into();
        params
    }

    /// Whether the listener's certificate is for our names and will be for a while.
    fn is_good(&self, now: SystemTime) -> bool {
        Held::read(&self.leaf()).is_some_and(|held| held.ends > now + LEAF_RENEWAL && held.names == self.names)
    }
}

/// What a certificate that is kept says.
struct Held {
    ends: SystemTime,
    names: BTreeSet<String>,
    /// Its public key, as certificates have it.
    key: Vec<u8>,
}

impl Held {
    /// None if there is none that can be read.
    fn read(pem: &Path) -> Option<Self> {
        let der = CertificateDer::from_pem_file(pem).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        let ends = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        Some(Self {
            ends: SystemTime::UNIX_EPOCH + Duration::from_secs(ends),
            names: names.filter_map(name_of).collect(),
            key: certificate.public_key().raw.to_vec(),
        })
    }
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
}

/// A crash leaves the old file or the new one, and a key is never open to others.
fn write(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    absent(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn absent(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn files(authority: &Authority) -> [String; 2] {
        [authority.certificate(), authority.leaf()].map(|path| fs::read_to_string(path).unwrap())
    }

    #[test]
    fn an_authority_is_kept_and_its_certificate_renewed_before_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(directory.path().join("tls"), "ab", [String::from("Shoal.test")]);
        let now = SystemTime::now();
        assert!(authority.prepare(now).unwrap());
        let first = files(&authority);
        assert!(!authority.prepare(now).unwrap());
        assert_eq!(files(&authority), first, "nothing to do");
        assert!(!authority.prepare(now + DAY * 310).unwrap());
        let renewed = files(&authority);
        assert_eq!(renewed[0], first[0]);
        assert_ne!(renewed[1], first[1]);
        assert!(authority.prepare(now + DAY * 3300).unwrap(), "clients must be told of a new one in time");
        assert_ne!(files(&authority)[0], first[0]);
    }

    #[test]
    fn other_names_need_another_certificate_of_the_same_authority() {
        let directory = tempfile::tempdir().unwrap();
        let authority = |names: &[&str]| {
            Authority::new(directory.path().to_owned(), "ab", names.iter().map(|&name| name.to_owned()))
        };
        let now = SystemTime::now();
        authority(&["10.0.0.1"]).prepare(now).unwrap();
        let names = Held::read(&authority(&[]).leaf()).unwrap().names;
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["10.0.0.1", "127.0.0.1", "::1", "localhost"]);
        let first = files(&authority(&[]));
        assert!(!authority(&["10.0.0.2"]).prepare(now).unwrap());
        let second = files(&authority(&[]));
        assert!(first[0] == second[0] && first[1] != second[1]);
    }

    #[test]
    fn keys_are_closed_to_others_and_damage_is_repaired() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(directory.path().to_owned(), "ab", []);
        let now = SystemTime::now();
        for damaged in [authority.certificate(), authority.key(), authority.leaf()] {
            authority.prepare(now).unwrap();
            fs::write(&damaged, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
            authority.prepare(now).unwrap();
            let (certificate, leaf) = (Held::read(&authority.certificate()), Held::read(&authority.leaf()));
            let key = KeyPair::from_pem(&fs::read_to_string(authority.key()).unwrap()).unwrap();
            assert_eq!(certificate.unwrap().key, key.public_key_der());
            assert!(leaf.is_some());
        }
        for key in [authority.key(), authority.leaf()] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
