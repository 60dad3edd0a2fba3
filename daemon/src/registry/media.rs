//! The media type of a manifest, from its verified content. One document must not be an index to one client and an
//! image to another (CVE-2021-41190), so ambiguous documents are refused.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

/// OCI image index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker's name for an index.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's name for an image manifest.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Deepest nesting of arrays and objects in a manifest. Real ones stay below ten.
const DEPTH: usize = 64;
/// Longest media type RFC 6838 allows: 127 bytes on either side of the slash.
const MEDIA_TYPE_BYTES: usize = 255;

/// Why a document is not served as a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MediaError {
    /// Not a JSON object, or one key twice.
    #[error("the manifest is not valid JSON: {0}")]
    Json(String),
    /// Nested beyond any manifest.
    #[error("the manifest is nested deeper than {DEPTH} levels")]
    Depth,
    /// Both an index and an image.
    #[error("the manifest is both an index and an image")]
    Ambiguous,
    /// The obsolete schema 1, whose digest does not cover its bytes.
    #[error("Docker schema 1 manifests are not supported")]
    Schema1,
    /// No media type, and no shape that tells it.
    #[error("the document is neither an index nor an image manifest")]
    Shapeless,
    /// The field is not a media type.
    #[error("the manifest's mediaType is malformed")]
    Malformed,
    /// The declared type and the content, or the origin's Content-Type, contradict each other.
    #[error("the manifest's mediaType does not match its {0}")]
    Mismatch(&'static str),
}

/// The two shapes of manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Index,
    Image,
}

impl Shape {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            OCI_INDEX | DOCKER_LIST => Some(Self::Index),
            OCI_MANIFEST | DOCKER_MANIFEST => Some(Self::Image),
            _ => None,
        }
    }

    const fn oci(self) -> &'static str {
        match self {
            Self::Index => OCI_INDEX,
            Self::Image => OCI_MANIFEST,
        }
    }
}

/// The media type of `document`; `told` is what the origin's Content-Type said, if anybody did.
///
/// # Errors
/// See [`MediaError`].
pub(crate) fn media_type(document: &[u8], told: Option<&str>) -> Result<String, MediaError> {
    if depth(document) > DEPTH {
        return Err(MediaError::Depth);
    }
    let outline: Outline = serde_json::from_slice(document).map_err(|error| MediaError::Json(error.to_string()))?;
    if outline.fs_layers {
        return Err(MediaError::Schema1);
    }
    let image = outline.config || outline.layers;
    if outline.manifests && image {
        return Err(MediaError::Ambiguous);
    }
    let told = told.and_then(essence);
    if let Some(declared) = outline.media_type.filter(|declared| !declared.is_empty()) {
        let declared = essence(&declared).filter(|essence| *essence == declared).ok_or(MediaError::Malformed)?;
        match Shape::of(&declared) {
            Some(Shape::Index) if image => return Err(MediaError::Mismatch("content")),
            Some(Shape::Image) if outline.manifests => return Err(MediaError::Mismatch("content")),
            _ => {}
        }
        if told.is_some_and(|told| told != declared) {
            return Err(MediaError::Mismatch("Content-Type at the origin"));
        }
        return Ok(declared);
    }
    let shape = match (outline.manifests, outline.config && outline.layers) {
        (true, _) => Shape::Index,
        (false, true) => Shape::Image,
        (false, false) => return Err(MediaError::Shapeless),
    };
    match told.as_deref().and_then(Shape::of) {
        Some(other) if other != shape => Err(MediaError::Mismatch("Content-Type at the origin")),
        Some(_) => Ok(told.unwrap_or_default()),
        None => Ok(shape.oci().to_owned()),
    }
}

/// `type/subtype` in lower case without parameters; none if it is not that.
pub(super) fn essence(text: &str) -> Option<String> {
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (kind, subtype) = essence.split_once('/')?;
    let token = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    (essence.len() <= MEDIA_TYPE_BYTES && token(kind) && token(subtype)).then_some(essence)
}

/// Deepest nesting of brackets outside strings. Exact for valid JSON, and an upper bound for what any parser that stops
/// at the first error can reach.
fn depth(document: &[u8]) -> usize {
    let (mut open, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in document {
        match (quoted, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => quoted = !quoted,
            (false, b'[' | b'{') => {
                open += 1;
                deepest = deepest.max(open);
            }
            (false, b']' | b'}') => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The top-level keys that tell a manifest's type.
#[derive(Debug, Default)]
struct Outline {
    media_type: Option<String>,
    manifests: bool,
    layers: bool,
    config: bool,
    fs_layers: bool,
}

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OutlineVisitor)
    }
}

struct OutlineVisitor;

impl<'de> Visitor<'de> for OutlineVisitor {
    type Value = Outline;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
        let mut outline = Outline::default();
        let mut typed = false;
        while let Some(key) = map.next_key::<String>()? {
            let seen = match folded(&key).as_str() {
                "mediatype" => {
                    outline.media_type = map.next_value()?;
                    if typed {
                        return Err(A::Error::custom("mediaType twice"));
                    }
                    typed = true;
                    continue;
                }
                "manifests" => &mut outline.manifests,
                "layers" => &mut outline.layers,
                "config" => &mut outline.config,
                "fslayers" => &mut outline.fs_layers,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.next_value::<IgnoredAny>()?;
            if std::mem::replace(seen, true) {
                return Err(A::Error::custom(format_args!("{key:.16} twice")));
            }
        }
        Ok(outline)
    }
}

/// A key as Go's JSON decoder compares it, because the clients that act on the manifest are written in Go: without
/// regard to case, with the two letters outside ASCII that fold into it.
fn folded(key: &str) -> String {
    key.chars()
        .map(|letter| match letter {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn derived(document: &str, told: Option<&str>) -> Result<String, MediaError> {
        media_type(document.as_bytes(), told)
    }

    #[test]
    fn the_declared_type_counts_and_otherwise_the_shape() {
        let declared = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{{}},"layers":[]}}"#);
        for (document, told, expected) in [
            (declared.as_str(), None, DOCKER_MANIFEST),
            (&declared, Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
            (&declared, Some("Application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"), DOCKER_MANIFEST),
            (r#"{"manifests":[]}"#, None, OCI_INDEX),
            (r#"{"manifests":[]}"#, Some(DOCKER_LIST), DOCKER_LIST),
            (r#"{"manifests":[]}"#, Some("application/json"), OCI_INDEX),
            (r#"{"config":{},"layers":[]}"#, None, OCI_MANIFEST),
            (r#"{"config":{},"layers":[],"mediaType":null}"#, None, OCI_MANIFEST),
            (
                r#"{"mediaType":"application/vnd.example.artifact+json","blobs":[]}"#,
                None,
                "application/vnd.example.artifact+json",
            ),
        ] {
            assert_eq!(derived(document, told).as_deref(), Ok(expected), "{document}");
        }
    }

    #[test]
    fn a_document_that_two_clients_could_read_differently_is_refused() {
        let index = |rest: &str| format!(r#"{{"mediaType":"{OCI_INDEX}",{rest}}}"#);
        for document in [
            r#"{"manifests":[],"layers":[]}"#,
            r#"{"manifests":[],"config":{}}"#,
            r#"{"Manifests":[],"config":{},"layers":[]}"#,
            r#"{"manifeſts":[],"config":{},"layers":[]}"#,
            r#"{"manifests":null,"config":{},"layers":[]}"#,
            r#"{"\u006danifests":[],"config":{},"layers":[]}"#,
        ] {
            assert_eq!(derived(document, None), Err(MediaError::Ambiguous), "{document}");
        }
        assert_eq!(derived(&index(r#""layers":[]"#), None), Err(MediaError::Mismatch("content")));
        let image = format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#);
        assert_eq!(derived(&image, None), Err(MediaError::Mismatch("content")));
        for (document, told) in
            [(index(r#""manifests":[]"#), OCI_MANIFEST), (String::from(r#"{"manifests":[]}"#), OCI_MANIFEST)]
        {
            let error = derived(&document, Some(told)).unwrap_err();
            assert_eq!(error, MediaError::Mismatch("Content-Type at the origin"), "{document}");
        }
        for document in [
            r#"{"mediaType":"a/b","mediaType":"a/b"}"#,
            r#"{"mediaType":"a/b","MEDIATYPE":"c/d"}"#,
            r#"{"layers":[],"layers":[],"config":{}}"#,
            r#"{"mediaType":1}"#,
            r#"{"layers":[]"#,
            r#"{"layers":[],"config":{}} {}"#,
            "[]",
            "\"layers\"",
            "",
        ] {
            assert!(matches!(derived(document, None), Err(MediaError::Json(_))), "{document}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        assert_eq!(derived("{}", None), Err(MediaError::Shapeless));
        assert_eq!(derived(r#"{"layers":[]}"#, None), Err(MediaError::Shapeless));
        assert_eq!(derived(r#"{"fsLayers":[],"history":[]}"#, None), Err(MediaError::Schema1));
        for media_type in ["x", "a/b; c=d", "a/b\\r\\nX: y", "A/B", "a/", " a/b"] {
            let document = format!(r#"{{"mediaType":"{media_type}"}}"#);
            assert_eq!(derived(&document, None), Err(MediaError::Malformed), "{media_type}");
        }
    }

    #[test]
    fn nesting_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested = |levels: usize| format!(r#"{{"manifests":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
        assert_eq!(derived(&nested(DEPTH - 1), None).as_deref(), Ok(OCI_INDEX));
        assert_eq!(derived(&nested(DEPTH), None), Err(MediaError::Depth));
        let text = format!(r#"{{"manifests":[],"a":"{}\"{}"}}"#, "[".repeat(DEPTH), "{".repeat(DEPTH));
        assert_eq!(derived(&text, None).as_deref(), Ok(OCI_INDEX));
    }
}
