//! Images made from a seed: valid, unpackable, and of bytes that no other seed has.

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Media types of the parts of an OCI image.
pub mod media {
    /// Several platforms.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// One platform.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// What to run.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer as it is.
    pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A compressed layer.
    pub const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A layer compressed in the newer way.
    pub const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
}

/// What an image is to look like.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// Different seeds have no byte sequence in common.
    pub seed: u64,
    /// Bytes of payload in each layer of each platform; the blob is a little larger.
    pub layers: Vec<u64>,
    /// Architectures, the first of which is asked for by clients of this machine.
    pub architectures: Vec<&'static str>,
    /// How layers are compressed (the payload is random: they become no smaller).
    pub compression: Compression,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip.
    Gzip,
    /// By zstd.
    Zstd,
}

impl ImageSpec {
    /// Two platforms with gzip layers of these sizes.
    #[must_use]
    pub fn new(seed: u64, layers: &[u64]) -> Self {
        Self {
            seed,
            layers: layers.to_vec(),
            architectures: vec![native_architecture(), other_architecture()],
            compression: Compression::Gzip,
        }
    }

    /// With layers that are not compressed.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.compression = Compression::None;
        self
    }

    /// With layers that are compressed by zstd.
    #[must_use]
    pub fn zstd(mut self) -> Self {
        self.compression = Compression::Zstd;
        self
    }

    /// With the platform of this machine only.
    #[must_use]
    pub fn one_platform(mut self) -> Self {
        self.architectures.truncate(1);
        self
    }

    /// Makes it.
    #[must_use]
    pub fn build(&self) -> Image {
        let mut platforms = Vec::new();
        for (at, architecture) in self.architectures.iter().enumerate() {
            platforms.push(self.platform(at as u64, architecture));
        }
        let manifests: Vec<Value> = platforms
            .iter()
            .zip(&self.architectures)
            .map(|(platform, architecture)| {
                let mut descriptor = platform.manifest.descriptor();
                descriptor["platform"] = json!({ "architecture": architecture, "os": "linux" });
                descriptor
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": manifests });
        Image { index: Blob::json(media::INDEX, &index), platforms }
    }

    fn platform(&self, at: u64, architecture: &str) -> Platform {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        let mut history = Vec::new();
        for (number, &size) in self.layers.iter().enumerate() {
            let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(at * 1009 + number as u64);
            let tar = tar_of(&format!("layer-{number}"), &random_bytes(seed, size));
            diff_ids.push(digest_of(&tar));
            history.push(json!({ "created": "2026-01-01T00:00:00Z", "created_by": format!("layer {number}") }));
            layers.push(match self.compression {
                Compression::None => Blob::new(media::TAR, tar),
                Compression::Gzip => Blob::new(media::TAR_GZIP, gzip_stored(&tar)),
                Compression::Zstd => Blob::new(media::TAR_ZSTD, zstd_stored(&tar)),
            });
        }
        let config = Blob::json(
            media::CONFIG,
            &json!({
                "created": "2026-01-01T00:00:00Z",
                "architecture": architecture,
                "os": "linux",
                "config": { "Cmd": ["/bin/true"], "Labels": { "seed": self.seed.to_string() } },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
                "history": history,
            }),
        );
        let manifest = Blob::json(
            media::MANIFEST,
            &json!({
                "schemaVersion": 2,
                "mediaType": media::MANIFEST,
                "config": config.descriptor(),
                "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
            }),
        );
        Platform { manifest, config, layers }
    }
}

/// One piece of content.
#[derive(Debug, Clone)]
pub struct Blob {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    /// What it is.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Bytes,
}

impl Blob {
    /// Content of a kind.
    #[must_use]
    pub fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { digest: digest_of(&bytes), media_type, bytes: bytes.into() }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, serde_json::to_vec(value).expect("JSON values can be written"))
    }

    /// As manifests name it.
    #[must_use]
    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }

    /// Bytes in it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// What is pulled for one platform.
#[derive(Debug, Clone)]
pub struct Platform {
    /// Names the others.
    pub manifest: Blob,
    /// What to run.
    pub config: Blob,
    /// From the bottom up.
    pub layers: Vec<Blob>,
}

impl Platform {
    /// Config and layers: what is fetched as blobs.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// Bytes in config and layers.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.blobs().map(Blob::size).sum()
    }
}

/// An image of one or more platforms.
#[derive(Debug, Clone)]
pub struct Image {
    /// Names the manifests.
    pub index: Blob,
    /// In the order of [`ImageSpec::architectures`].
    pub platforms: Vec<Platform>,
}

impl Image {
    /// The platform of this machine.
    #[must_use]
    pub fn native(&self) -> &Platform {
        &self.platforms[0]
    }

    /// Everything but manifests.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.platforms.iter().flat_map(Platform::blobs)
    }

    /// Index and manifests.
    pub fn manifests(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.index).chain(self.platforms.iter().map(|platform| &platform.manifest))
    }
}

/// As image configurations call the machine that the tests run on.
#[must_use]
pub fn native_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn other_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" }
}

/// `size` bytes that follow from `seed`.
#[must_use]
pub fn random_bytes(seed: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// The SHA-256 digest in its usual form.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("writing to a string works");
    }
    text
}

/// A tar archive with one file (ustar).
fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, field) in [
        (100, "0000644\0"),
        (108, "0000000\0"),
        (116, "0000000\0"),
        (124, &format!("{:011o}\0", content.len())),
        (136, "00000000000\0"),
        (148, "        "),
        (156, "0"),
        (257, "ustar\0"),
        (263, "00"),
    ] {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// A gzip file that compresses nothing: random bytes would not shrink anyway.
fn gzip_stored(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks = content.chunks(65_535);
    let last = blocks.len().saturating_sub(1);
    for (at, block) in blocks.enumerate() {
        let length = block.len() as u16;
        out.push(u8::from(at == last));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&crc32(content).to_le_bytes());
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out
}

/// A zstd file that compresses nothing: one frame (RFC 8878) of raw blocks.
fn zstd_stored(content: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 128 << 10;
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd];
    // A window as large as a block, and no content size: what a stream's first byte would say.
    out.extend_from_slice(&[0x00, 0x38]);
    let blocks = content.chunks(BLOCK);
    let last = blocks.len().saturating_sub(1);
    for (at, block) in blocks.enumerate() {
        let header = u32::from(at == last) | (block.len() as u32) << 3;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut table = [0_u32; 256];
    for (at, entry) in table.iter_mut().enumerate() {
        *entry = (0..8).fold(at as u32, |value, _| (value >> 1) ^ (0xedb8_8320 & (value & 1).wrapping_neg()));
    }
    !bytes.iter().fold(!0, |sum, &byte| (sum >> 8) ^ table[usize::from(sum as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn an_image_follows_from_its_seed_and_shares_nothing_with_another() {
        let (one, same, other) = (
            ImageSpec::new(1, &[1000, 70_000]),
            ImageSpec::new(1, &[1000, 70_000]),
            ImageSpec::new(2, &[1000, 70_000]),
        );
        let (one, same, other) = (one.build(), same.build(), other.build());
        assert_eq!(one.index.digest, same.index.digest);
        for blob in one.blobs() {
            assert!(other.blobs().all(|theirs| theirs.digest != blob.digest), "{}", blob.digest);
        }
        assert_ne!(one.platforms[0].layers[0].digest, one.platforms[1].layers[0].digest);
    }
}
