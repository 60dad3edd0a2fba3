//! A generated image: a real OCI manifest, config and tar layers whose content nobody can compress or guess.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shoal_proto::digest::{Algorithm, Digest};

/// Media type of the manifest.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the config.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the layers: plain tar, so that a layer's digest is its diff id too.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Fewest bytes in a layer: a tar with one small file.
pub const LAYER_MIN: u64 = 4096;
/// Most layers of an image: what container engines can mount.
pub const LAYERS_MAX: usize = 127;

/// What the size of a tar is a multiple of.
pub(super) const TAR_BLOCK: u64 = 512;
/// A header in front of the file, two empty blocks at the end of the archive.
const TAR_OVERHEAD: u64 = 3 * TAR_BLOCK;
/// Bytes that are generated, hashed and written in one go.
const PIECE: usize = 256 * 1024;

/// What to generate.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// Repository at the origin, for example `demo/image`.
    pub repository: String,
    /// Tag of the manifest.
    pub tag: String,
    /// Bytes of each layer, lowest first; rounded down to a multiple of 512.
    pub layers: Vec<u64>,
    /// The same seed gives the same image.
    pub seed: u64,
}

/// Why an image cannot be generated.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The numbers do not make an image.
    #[error(
        "{bytes} bytes cannot be split into {layers} layers: 1 to {LAYERS_MAX} layers of at least {LAYER_MIN} bytes each are possible"
    )]
    Shape {
        /// Bytes in all layers together.
        bytes: u64,
        /// How many layers.
        layers: usize,
    },
    /// Its files cannot be written.
    #[error("cannot write the generated image: {0}")]
    Write(#[from] io::Error),
}

/// An image ready to be served by an [`Origin`](super::origin::Origin).
#[derive(Debug, Clone)]
pub struct Image {
    /// Repository at the origin.
    pub repository: String,
    /// Tag of the manifest.
    pub tag: String,
    /// The manifest.
    pub manifest: Blob,
    /// The config.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

/// Content with its name and size.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Bytes in it.
    pub size: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Memory(Bytes),
    File(Arc<File>),
}

impl Blob {
    /// Small content that stays in memory.
    #[must_use]
    pub fn in_memory(content: Bytes) -> Self {
        Self {
            digest: Digest::of(Algorithm::Sha256, &content),
            size: content.len() as u64,
            content: Content::Memory(content),
        }
    }

    /// The whole content if it lies in memory.
    #[must_use]
    pub fn memory(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Memory(content) => Some(content),
            Content::File(_) => None,
        }
    }

    /// Reads `length` bytes at `offset`. Blocks on the disk if the content lies there.
    ///
    /// # Errors
    /// The range is beyond the end, or the disk fails.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        match &self.content {
            Content::Memory(content) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let end = start.checked_add(length).filter(|&end| end <= content.len());
                end.map(|end| content.slice(start..end)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Content::File(file) => {
                let mut piece = vec![0; length];
                file.read_exact_at(&mut piece, offset)?;
                Ok(piece.into())
            }
        }
    }
}

impl Image {
    /// Generates an image with its layers as files in `dir`; each byte is hashed once on its way to the disk.
    /// Blocks: layers are generated on as many threads as there are processors.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn generate(dir: &Path, spec: &ImageSpec) -> Result<Self, ImageError> {
        let sizes: Vec<u64> = spec.layers.iter().map(|size| size / TAR_BLOCK * TAR_BLOCK).collect();
        if sizes.is_empty() || sizes.len() > LAYERS_MAX || sizes.iter().any(|size| *size < LAYER_MIN) {
            return Err(ImageError::Shape {
                bytes: sizes.iter().fold(0, |sum, size| sum.saturating_add(*size)),
                layers: sizes.len(),
            });
        }
        let layers = generate_layers(dir, spec.seed, &sizes)?;
        let config = config(&layers);
        let manifest = manifest(&config, &layers);
        Ok(Self { repository: spec.repository.clone(), tag: spec.tag.clone(), manifest, config, layers })
    }

    /// Everything that is asked for under `/blobs/`: config first, then the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// Bytes in manifest, config and layers: what one client must receive.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.manifest.size + self.blobs().map(|blob| blob.size).sum::<u64>()
    }
}

fn generate_layers(dir: &Path, seed: u64, sizes: &[u64]) -> io::Result<Vec<Blob>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(sizes.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    let mine = sizes.iter().enumerate().skip(first).step_by(threads);
                    mine.map(|(layer, &size)| Ok((layer, generate_layer(dir, seed, layer, size)?))).collect()
                })
            })
            .collect();
        let mut layers = Vec::with_capacity(sizes.len());
        for worker in workers {
            let made: io::Result<Vec<(usize, Blob)>> =
                worker.join().unwrap_or_else(|_| Err(io::Error::other("the generator panicked")));
            layers.extend(made?);
        }
        layers.sort_by_key(|(layer, _)| *layer);
        Ok(layers.into_iter().map(|(_, blob)| blob).collect())
    })
}

fn generate_layer(dir: &Path, seed: u64, layer: usize, size: u64) -> io::Result<Blob> {
    let path = dir.join(format!("layer{layer}.tar"));
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    let mut sink = HashingFile { file, hash: Sha256::new() };
    let content = size - TAR_OVERHEAD;
    sink.write_all(&tar_header(&format!("layer{layer}.bin"), content))?;
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(layer as u64));
    let mut piece = vec![0; PIECE];
    let mut left = content;
    while left > 0 {
        let now = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        random.fill_bytes(&mut piece[..now]);
        sink.write_all(&piece[..now])?;
        left -= now as u64;
    }
    sink.write_all(&[0; 2 * TAR_BLOCK as usize])?;
    let digest = Digest::sha256(sink.hash.finalize().into());
    Ok(Blob { digest, size, content: Content::File(Arc::new(sink.file)) })
}

struct HashingFile {
    file: File,
    hash: Sha256,
}

impl HashingFile {
    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.hash.update(data);
        self.file.write_all(data)
    }
}

/// The ustar header of one regular file, owned by root.
fn tar_header(name: &str, size: u64) -> [u8; TAR_BLOCK as usize] {
    let mut header = [0; TAR_BLOCK as usize];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // Eleven octal digits end at 8 GiB; beyond, a set high bit means a big-endian number.
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    // The checksum counts itself as blanks.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn config(layers: &[Blob]) -> Blob {
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    let history: Vec<_> = layers
        .iter()
        .enumerate()
        .map(|(layer, blob)| {
            json!({ "created": CREATED, "created_by": format!("shoal demo: {} random bytes as layer{layer}.bin", blob.size - TAR_OVERHEAD) })
        })
        .collect();
    let text = json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    Blob::in_memory(text.to_string().into())
}

fn manifest(config: &Blob, layers: &[Blob]) -> Blob {
    let descriptor =
        |media_type: &str, blob: &Blob| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(LAYER_TYPE, layer)).collect();
    let text = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, config),
        "layers": layers,
    });
    Blob::in_memory(text.to_string().into())
}

/// Any fixed time will do; a fixed one keeps the image a function of its seed.
const CREATED: &str = "2026-01-01T00:00:00Z";

/// This machine's architecture as images name it, so that engines here accept the image.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::demo::layers::uneven;

    fn spec(bytes: u64, layers: usize, seed: u64) -> ImageSpec {
        ImageSpec { repository: "demo/image".into(), tag: "v1".into(), layers: uneven(bytes, layers).unwrap(), seed }
    }

    #[test]
    fn layers_have_the_sizes_asked_for_but_for_what_a_tar_cannot_have() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::generate(dir.path(), &ImageSpec { layers: vec![4096, 100_000, 8192], ..spec(4096, 1, 1) });
        let sizes: Vec<u64> = image.unwrap().layers.iter().map(|layer| layer.size).collect();
        assert_eq!(sizes, [4096, 99_840, 8192]);
    }

    #[test]
    fn an_image_has_layers_and_none_is_too_small_for_a_tar() {
        let dir = tempfile::tempdir().unwrap();
        for layers in [vec![], vec![4095], vec![8192, 0], vec![4096; LAYERS_MAX + 1]] {
            let refused = Image::generate(dir.path(), &ImageSpec { layers, ..spec(4096, 1, 1) });
            assert!(matches!(refused, Err(ImageError::Shape { .. })), "{refused:?}");
        }
    }

    #[test]
    fn every_digest_is_that_of_the_bytes_and_the_manifest_names_them_all() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::generate(dir.path(), &spec(1 << 20, 3, 1)).unwrap();
        for blob in image.blobs().chain([&image.manifest]) {
            let content = blob.read(0, usize::try_from(blob.size).unwrap()).unwrap();
            assert_eq!(Digest::of(Algorithm::Sha256, &content), blob.digest);
            assert!(blob.read(blob.size, 1).is_err());
        }
        let manifest: serde_json::Value = serde_json::from_slice(image.manifest.memory().unwrap()).unwrap();
        assert_eq!(manifest["config"]["digest"], image.config.digest.to_string());
        let config: serde_json::Value = serde_json::from_slice(image.config.memory().unwrap()).unwrap();
        for (layer, blob) in image.layers.iter().enumerate() {
            assert_eq!(manifest["layers"][layer]["digest"], blob.digest.to_string());
            assert_eq!(manifest["layers"][layer]["size"], blob.size);
            assert_eq!(config["rootfs"]["diff_ids"][layer], blob.digest.to_string());
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_image_and_another_seed_another() {
        let digest = |seed| {
            let dir = tempfile::tempdir().unwrap();
            Image::generate(dir.path(), &spec(64 << 10, 2, seed)).unwrap().manifest.digest
        };
        assert_eq!(digest(7), digest(7));
        assert_ne!(digest(7), digest(8));
    }

    #[test]
    fn layers_are_archives_that_tar_can_list() {
        let dir = tempfile::tempdir().unwrap();
        Image::generate(dir.path(), &spec(1 << 20, 1, 1)).unwrap();
        let listing =
            std::process::Command::new("tar").arg("-tvf").arg(dir.path().join("layer0.tar")).output().unwrap();
        assert!(listing.status.success(), "{listing:?}");
        let line = String::from_utf8(listing.stdout).unwrap();
        assert!(line.contains("layer0.bin") && line.contains(&((1 << 20) - TAR_OVERHEAD).to_string()), "{line}");
    }
}
