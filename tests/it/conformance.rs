//! The distribution specification 1.1 as far as it concerns a mirror: a test for each MUST and SHOULD, named by its section,
//! before Debian's `docker-registry` (Distribution 2.8, where installed) and before a double that knows all of it.

mod clients;
mod discovery;
mod pull;
mod push;
mod seed;

use std::{fmt, sync::Arc};

use reqwest::{Method, RequestBuilder, Response};
use shoal_tests::{
    daemon::{Daemon, Settings, client},
    image::{Blob, Image, ImageSpec, media},
    layout::Format,
    origin::OriginDouble,
    registry::DockerRegistry,
    tools::available,
};
use tempfile::TempDir;

use crate::{MIB, REPOSITORY, settings};

/// An origin of one of two kinds.
enum Origin {
    Double(Arc<OriginDouble>),
    Registry(DockerRegistry),
}

impl Origin {
    fn url(&self) -> String {
        match self {
            Self::Double(double) => double.url(),
            Self::Registry(registry) => registry.url(),
        }
    }

    /// Whether a blob, a manifest or a tag is there, seen without us.
    async fn has(&self, path: &str) -> bool {
        let request = client().get(format!("{}{path}", self.url()));
        let request = request.header("accept", format!("{}, {}, */*", media::INDEX, media::MANIFEST));
        request.send().await.unwrap().status() == 200
    }
}

/// An origin with an image, tagged `v1`, and a daemon before it that passes pushes through.
struct Stage {
    origin: Origin,
    image: Image,
    daemon: Daemon,
    _directory: TempDir,
}

impl Stage {
    async fn set(origin: Origin, image: Image) -> Self {
        let (directory, settings) = pushing(&origin.url(), "");
        Self { origin, image, daemon: Daemon::start(settings).await, _directory: directory }
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        client().request(method, format!("http://{}{path}", self.daemon.registry()))
    }

    /// Of a repository of the origin, in the form with its name in the path.
    fn at(&self, rest: &str) -> String {
        format!("/v2/origin.test/{REPOSITORY}/{rest}")
    }

    fn is_double(&self) -> bool {
        matches!(self.origin, Origin::Double(_))
    }
}

/// In messages.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_double() { "double" } else { "docker-registry" })
    }
}

/// The settings of a daemon that passes pushes to this origin, with more lines for its table.
fn pushing(origin: &str, more: &str) -> (TempDir, Settings) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shoal.toml");
    std::fs::write(&file, format!("[upstreams.\"origin.test\"]\nurl = \"{origin}\"\npush = true\n{more}")).unwrap();
    let mut settings = settings(origin).with("--config").with(file.display().to_string());
    settings.upstreams.clear();
    (directory, settings)
}

/// A stage of each kind that can be had here, with an image of one platform.
async fn stages(seed: u64) -> Vec<Stage> {
    let mut stages = vec![modern(seed).await.0];
    if available(&["docker-registry", "skopeo"], false) {
        let (registry, image) = (DockerRegistry::start().await, image(seed));
        registry.push(&image, Format::Oci, REPOSITORY, "v1").await;
        stages.push(Stage::set(Origin::Registry(registry), image).await);
    }
    stages
}

/// A stage with the double alone, for what Distribution 2.8 does not know.
async fn modern(seed: u64) -> (Stage, Arc<OriginDouble>) {
    let image = image(seed);
    let double = Arc::new(OriginDouble::start().await);
    double.offer(&image, REPOSITORY, "v1");
    (Stage::set(Origin::Double(Arc::clone(&double)), image).await, double)
}

fn image(seed: u64) -> Image {
    ImageSpec::new(seed, &[MIB, 10]).one_platform().build()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// The error code of a refusal, in the envelope of the specification.
async fn code(response: Response) -> String {
    assert_eq!(header(&response, "content-type"), "application/json");
    let envelope: serde_json::Value = response.json().await.unwrap();
    envelope["errors"][0]["code"].as_str().unwrap().to_owned()
}

fn unknown() -> String {
    format!("sha256:{}", "0".repeat(64))
}

fn layer(image: &Image) -> &Blob {
    &image.native().layers[0]
}
