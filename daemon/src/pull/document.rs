//! What a manifest or index names.

use serde::Deserialize;
use shoal_proto::digest::Digest;

use super::platform::Platform;
use crate::registry::media::{self, DOCKER_LIST, DOCKER_MANIFEST, MediaError, OCI_INDEX, OCI_MANIFEST};

/// A proven document, in so far as a pull needs it.
#[derive(Debug)]
pub(super) enum Document {
    /// One image for each of several platforms.
    Index(Vec<Choice>),
    /// One image: its config, then its layers, each once.
    Image(Vec<Piece>),
}

/// An entry of an index.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) digest: Digest,
    /// Bytes in it.
    pub(super) size: u64,
    /// What it is for, if the index says.
    pub(super) platform: Option<Platform>,
}

/// A config or layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) role: Role,
    pub(super) digest: Digest,
    /// Bytes in it.
    pub(super) size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Config,
    Layer,
}

/// Why a document names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DocumentError {
    /// Not fit to be served either.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// Something else that registries keep.
    #[error("it is of the type {0}, which is no image")]
    Type(String),
    /// A field that is missing or malformed.
    #[error("{0}")]
    Malformed(String),
    /// An index without an image that runs here.
    #[error("no image for {wanted}; there is {offered}: choose one with --platform")]
    Platform {
        /// The platform that was asked for.
        wanted: String,
        /// Those that there are.
        offered: String,
    },
    /// An index that names no image at all.
    #[error("the index names no image")]
    Empty,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<IndexEntry>,
}

#[derive(Debug, Deserialize)]
struct IndexEntry {
    digest: Digest,
    size: u64,
    platform: Option<EntryPlatform>,
}

#[derive(Debug, Deserialize)]
struct EntryPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Image {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: Digest,
    size: u64,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    urls: Vec<String>,
}

impl Descriptor {
    /// Licensed layers that registries do not keep; engines get them from elsewhere.
    fn is_foreign(&self) -> bool {
        !self.urls.is_empty() && (self.media_type.contains("nondistributable") || self.media_type.contains("foreign"))
    }
}

impl Document {
    /// Reads a document whose bytes are proven.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let media_type = media::media_type(bytes, None)?;
        let malformed = |error: serde_json::Error| DocumentError::Malformed(error.to_string());
        match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => {
                let index: Index = serde_json::from_slice(bytes).map_err(malformed)?;
                Ok(Self::Index(index.manifests.into_iter().map(Choice::from).collect()))
            }
            OCI_MANIFEST | DOCKER_MANIFEST => {
                let image: Image = serde_json::from_slice(bytes).map_err(malformed)?;
                Ok(Self::Image(pieces(&image)))
            }
            other => Err(DocumentError::Type(other.to_owned())),
        }
    }
}

fn pieces(image: &Image) -> Vec<Piece> {
    let config = (Role::Config, &image.config);
    let layers = image.layers.iter().filter(|layer| !layer.is_foreign()).map(|layer| (Role::Layer, layer));
    let mut seen = std::collections::HashSet::new();
    std::iter::once(config)
        .chain(layers)
        .filter(|(_, named)| seen.insert(named.digest))
        .map(|(role, named)| Piece { role, digest: named.digest, size: named.size })
        .collect()
}

impl From<IndexEntry> for Choice {
    fn from(entry: IndexEntry) -> Self {
        let platform = entry.platform.map(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref()));
        Self { digest: entry.digest, size: entry.size, platform }
    }
}

/// The entry of an index for a platform. An index with a single entry that does not say what it is for has no other.
pub(super) fn choose<'a>(choices: &'a [Choice], wanted: &Platform) -> Result<&'a Choice, DocumentError> {
    if let Some(at) = wanted.choose(choices.iter().map(|choice| choice.platform.as_ref())) {
        return Ok(&choices[at]);
    }
    if let [only @ Choice { platform: None, .. }] = choices {
        return Ok(only);
    }
    let mut offered: Vec<String> = choices
        .iter()
        .filter_map(|choice| choice.platform.as_ref())
        .filter(|platform| !platform.is_unknown())
        .map(ToString::to_string)
        .collect();
    offered.dedup();
    if offered.is_empty() {
        return Err(DocumentError::Empty);
    }
    Err(DocumentError::Platform { wanted: wanted.to_string(), offered: offered.join(", ") })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::{Value, json};
    use shoal_proto::digest::Algorithm;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn parse(document: &Value) -> Result<Document, DocumentError> {
        Document::parse(document.to_string().as_bytes())
    }

    fn index(entries: &[Value]) -> Vec<Choice> {
        match parse(&json!({ "manifests": entries })).unwrap() {
            Document::Index(choices) => choices,
            Document::Image(_) => unreachable!("an index"),
        }
    }

    fn entry(name: &str, os: &str, architecture: &str) -> Value {
        json!({ "digest": digest(name), "size": 5, "platform": { "os": os, "architecture": architecture } })
    }

    #[test]
    fn an_image_is_its_config_and_its_layers_each_once() {
        let layer = |name: &str| json!({ "digest": digest(name), "size": 7 });
        let foreign = json!({
            "digest": digest("windows"), "size": 9, "urls": ["https://example.test/layer"],
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        });
        let document = json!({
            "config": { "digest": digest("config"), "size": 3 },
            "layers": [layer("b"), layer("a"), foreign, layer("b")],
        });
        let Document::Image(pieces) = parse(&document).unwrap() else { unreachable!("an image") };
        let piece = |role, name, size| Piece { role, digest: digest(name), size };
        let expected = [piece(Role::Config, "config", 3), piece(Role::Layer, "b", 7), piece(Role::Layer, "a", 7)];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_reason() {
        for document in [
            json!({ "config": { "digest": digest("x"), "size": -1 }, "layers": [] }),
            json!({ "config": { "digest": "sha256:x", "size": 1 }, "layers": [] }),
            json!({ "config": {}, "layers": [] }),
            json!({ "manifests": [{ "size": 1 }] }),
            json!({ "mediaType": OCI_MANIFEST, "config": { "digest": digest("x"), "size": 1 } }),
        ] {
            assert!(matches!(parse(&document), Err(DocumentError::Malformed(_))), "{document}");
        }
        let artifact = json!({ "mediaType": "application/vnd.example+json" });
        assert_eq!(parse(&artifact).unwrap_err(), DocumentError::Type("application/vnd.example+json".to_owned()));
        let both = json!({ "manifests": [], "layers": [] });
        assert_eq!(parse(&both).unwrap_err(), DocumentError::Media(MediaError::Ambiguous));
    }

    #[test]
    fn an_index_gives_the_image_for_the_platform_or_says_which_there_are() {
        let choices = index(&[
            entry("amd", "linux", "amd64"),
            entry("proof", "unknown", "unknown"),
            entry("arm", "linux", "arm64"),
        ]);
        let wanted = |text: &str| text.parse::<Platform>().unwrap();
        assert_eq!(choose(&choices, &wanted("linux/arm64")).unwrap().digest, digest("arm"));
        let error = choose(&choices, &wanted("linux/s390x")).unwrap_err().to_string();
        assert_eq!(error, "no image for linux/s390x; there is linux/amd64, linux/arm64: choose one with --platform");
        let only = index(&[json!({ "digest": digest("only"), "size": 5 })]);
        assert_eq!(choose(&only, &wanted("linux/arm64")).unwrap().digest, digest("only"));
        assert_eq!(choose(&[], &wanted("linux/arm64")).unwrap_err(), DocumentError::Empty);
    }
}
