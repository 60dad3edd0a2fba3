//! Images as OCI layouts on disk, and from there into a registry.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use serde_json::json;

use crate::{image::Image, process::must};

/// Writes an OCI layout with one image in it.
///
/// # Panics
/// If the directory cannot be written.
pub fn write(directory: &Path, image: &Image, tag: &str) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("the layout's directory can be made");
    for blob in image.blobs().chain(image.manifests()) {
        let name = blob.digest.trim_start_matches("sha256:");
        fs::write(blobs.join(name), &blob.bytes).expect("a blob of the layout can be written");
    }
    let mut top = image.index.descriptor();
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    fs::write(directory.join("index.json"), index.to_string()).expect("the layout's index can be written");
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the layout can be marked");
}

/// How an image is to lie in a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As it is.
    Oci,
    /// As Docker's manifests of version 2, schema 2. Their digests differ from the image's.
    DockerV2s2,
}

/// Pushes an image with all its platforms to `repository:tag` of a registry without TLS, by skopeo.
///
/// # Panics
/// If skopeo fails.
pub async fn push(image: &Image, format: Format, registry: SocketAddr, repository: &str, tag: &str) {
    push_by(Command::new("skopeo"), image, format, registry, repository, tag).await;
}

/// As [`push`], by a command that runs skopeo somewhere else (in a network namespace).
///
/// # Panics
/// If it fails.
pub async fn push_by(
    mut skopeo: Command,
    image: &Image,
    format: Format,
    registry: SocketAddr,
    repository: &str,
    tag: &str,
) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    write(directory.path(), image, tag);
    // Not the tester's own settings and accounts.
    skopeo.env("HOME", directory.path()).env("XDG_RUNTIME_DIR", directory.path());
    skopeo.args(["copy", "--all", "--quiet", "--dest-tls-verify=false", "--insecure-policy"]);
    if format == Format::DockerV2s2 {
        skopeo.args(["--format", "v2s2"]);
    }
    skopeo.arg(format!("oci:{}:{tag}", directory.path().display()));
    skopeo.arg(format!("docker://{registry}/{repository}:{tag}"));
    must(skopeo).await;
}
