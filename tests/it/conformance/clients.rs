//! Real clients that push: podman, buildah and skopeo, through the daemon into a real registry.

use std::{fs, process::Command};

use shoal_tests::{
    daemon::Daemon,
    image::{Image, ImageSpec},
    layout::{self, Format},
    process::must,
    registry::DockerRegistry,
    tools::available,
};
use tempfile::TempDir;

use super::pushing;
use crate::{MIB, REPOSITORY};

struct Stage {
    registry: DockerRegistry,
    daemon: Daemon,
    image: Image,
    home: TempDir,
    _directory: TempDir,
}

impl Stage {
    async fn set(seed: u64) -> Self {
        let registry = DockerRegistry::start().await;
        let (directory, settings) = pushing(&registry.url(), "");
        let daemon = Daemon::start(settings).await;
        let image = ImageSpec::new(seed, &[3 * MIB, 20]).one_platform().build();
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        Self { registry, daemon, image, home, _directory: directory }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    /// A client with settings and storage of its own.
    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in ["HOME", "XDG_RUNTIME_DIR", "TMPDIR"] {
            command.env(variable, self.home.path());
        }
        if program != "skopeo" {
            command.args(["--root", &self.path("storage"), "--runroot", &self.path("run"), "--storage-driver", "vfs"]);
        }
        if program == "podman" {
            command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir", &self.path("tmp")]);
        }
        command
    }

    /// What has arrived is what the client had.
    async fn must_have(&self, tag: &str) {
        let url = format!("{}/v2/{REPOSITORY}/manifests/{tag}", self.registry.url());
        let request = shoal_tests::daemon::client().get(url).header("accept", shoal_tests::image::media::MANIFEST);
        let manifest: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
        let digest = manifest["config"]["digest"].as_str().unwrap_or_else(|| panic!("{manifest}"));
        assert_eq!(digest, self.image.native().config.digest, "the same image");
        assert!(!self.daemon.blob(REPOSITORY, digest).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_buildah_push_through_the_daemon() {
    for program in ["podman", "buildah"] {
        if !available(&[program, "docker-registry", "skopeo"], true) {
            continue;
        }
        let stage = Stage::set(870).await;
        stage.registry.push(&stage.image, Format::Oci, "source/app", "v1").await;
        let mut pull = stage.client(program);
        pull.args(["pull", "--quiet", "--tls-verify=false", "--signature-policy", &stage.path("policy.json")]);
        pull.arg(format!("docker://{}/source/app:v1", stage.registry.address()));
        let id = must(pull).await;
        let mut push = stage.client(program);
        push.args(["push", "--quiet", "--tls-verify=false", "--signature-policy", &stage.path("policy.json")]);
        push.arg(id.trim()).arg(format!("docker://{}/origin.test/{REPOSITORY}:{program}", stage.daemon.registry()));
        must(push).await;
        stage.must_have(program).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_both_formats_and_mounts_what_is_there() {
    if !available(&["skopeo", "docker-registry"], false) {
        return;
    }
    let stage = Stage::set(871).await;
    let at = |repository: &str| format!("origin.test/{repository}");
    layout::push(&stage.image, Format::Oci, stage.daemon.registry(), &at(REPOSITORY), "oci").await;
    layout::push(&stage.image, Format::DockerV2s2, stage.daemon.registry(), &at(REPOSITORY), "docker").await;
    let mut copy = stage.client("skopeo");
    copy.args(["copy", "--quiet", "--all", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"]);
    let named = |repository: &str| format!("docker://{}/{}:oci", stage.daemon.registry(), at(repository));
    copy.arg(named(REPOSITORY)).arg(named("other/app"));
    must(copy).await;
    for repository in [REPOSITORY, "other/app"] {
        let url = format!("{}/v2/{repository}/manifests/{}", stage.registry.url(), stage.image.index.digest);
        let request = shoal_tests::daemon::client().get(url).header("accept", shoal_tests::image::media::INDEX);
        assert_eq!(request.send().await.unwrap().bytes().await.unwrap(), stage.image.index.bytes, "{repository}");
    }
}
