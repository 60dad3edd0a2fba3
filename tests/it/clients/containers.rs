//! podman, skopeo and buildah: one library, pointed at the daemon by what `shoal configure podman` writes.

use std::{fs, path::Path, process::Command};

use shoal_tests::{
    daemon::Daemon,
    image::{Blob, Image, ImageSpec, media},
    layout::Format,
    origin::OriginDouble,
    process::must,
    registry::DockerRegistry,
    tools::available,
};
use tempfile::TempDir;

use super::{registry_with, tagged};
use crate::{MIB, REPOSITORY, SHOAL, settings};

/// A registry, a daemon before it, and the configuration of the clients.
struct Stage {
    registry: DockerRegistry,
    image: Image,
    daemon: Daemon,
    directory: TempDir,
}

impl Stage {
    async fn set(seed: u64) -> Self {
        Self::set_with(seed, &[]).await
    }

    /// With more arguments for `shoal configure`.
    async fn set_with(seed: u64, arguments: &[&str]) -> Self {
        let (registry, image) = registry_with(seed).await;
        let daemon = Daemon::start(settings(&registry.url())).await;
        let directory = tempfile::tempdir().unwrap();
        let mut configure = Command::new(SHOAL);
        configure.args(["configure", "podman", "--registry", "origin.test", "--conf-dir"]).arg(directory.path());
        configure.args(arguments);
        must({
            configure.arg("--endpoint").arg(format!("http://{}", daemon.registry()));
            configure
        })
        .await;
        let text = fs::read_to_string(directory.path().join("50-shoal.conf")).unwrap();
        // The registry behind that name is not where a resolver would find it, nor does it speak TLS.
        let location = format!("location = \"{}\"\ninsecure = true\n", registry.address());
        let here = text.replace("location = \"origin.test\"\n", &location);
        assert_ne!(here, text);
        fs::write(directory.path().join("registries.conf"), here).unwrap();
        fs::write(directory.path().join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        Self { registry, image, daemon, directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// podman or buildah with storage of their own that starts empty.
    fn with_storage(&self, program: &str, storage: &str) -> Command {
        let mut command = Command::new(program);
        command.env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"));
        command.env("REGISTRIES_CONFIG_PATH", self.path("registries.conf"));
        self.isolate(&mut command);
        command.arg("--root").arg(self.path(storage)).arg("--runroot").arg(self.path(&format!("{storage}-run")));
        command.args(["--storage-driver", "vfs"]);
        if program == "podman" {
            command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
            command.arg("--tmpdir").arg(self.path("podman-tmp"));
        }
        command
    }

    /// From the tester's own settings and accounts.
    fn isolate(&self, command: &mut Command) {
        for variable in ["HOME", "XDG_RUNTIME_DIR", "TMPDIR"] {
            command.env(variable, self.directory.path());
        }
    }

    async fn pull(&self, program: &str, storage: &str, image: &str) {
        let mut command = self.with_storage(program, storage);
        command.args(["pull", "--quiet", "--signature-policy"]).arg(self.path("policy.json")).arg(image);
        must(command).await;
    }

    fn skopeo(&self) -> Command {
        let mut command = Command::new("skopeo");
        self.isolate(&mut command);
        command.arg("--registries-conf").arg(self.path("registries.conf"));
        command.arg("--policy").arg(self.path("policy.json")).args(["copy", "--quiet"]);
        command
    }

    /// What left the origin since it was last forgotten must be each blob of one platform once, for the daemon.
    fn each_blob_left_once_for_the_daemon(&self) {
        let gets = self.registry.blob_gets();
        assert!(gets.iter().all(|get| !agent_is_client(&get.agent)), "{gets:?}");
        for blob in self.image.native().blobs() {
            let of_it: u64 = gets.iter().filter(|get| get.path.contains(&blob.digest)).map(|get| get.bytes).sum();
            assert_eq!(of_it, blob.size(), "{gets:?}");
        }
    }
}

fn agent_is_client(agent: &str) -> bool {
    ["containers/", "skopeo", "podman", "buildah", "Go-http-client"].iter().any(|name| agent.contains(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_and_buildah_unpack_docker_manifests_and_plain_and_zstd_layers() {
    if !available(&["podman", "buildah", "docker-registry", "skopeo"], true) {
        return;
    }
    let stage = Stage::set(725).await;
    stage.registry.push(&stage.image, Format::DockerV2s2, REPOSITORY, "docker").await;
    for (tag, spec) in
        [("plain", ImageSpec::new(726, &[MIB, 10]).plain()), ("zstd", ImageSpec::new(727, &[MIB, 10]).zstd())]
    {
        stage.registry.push(&spec.build(), Format::Oci, REPOSITORY, tag).await;
    }
    stage.registry.forget();
    for tag in ["docker", "plain", "zstd"] {
        stage.pull("podman", tag, &tagged(tag)).await;
        stage.pull("buildah", &format!("{tag}-buildah"), &tagged(tag)).await;
    }
    let accesses = stage.registry.accesses();
    assert!(accesses.iter().all(|access| !agent_is_client(&access.agent)), "{accesses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_a_tag_through_the_daemon_and_without_it() {
    if !available(&["podman", "docker-registry", "skopeo"], true) {
        return;
    }
    let mut stage = Stage::set(720).await;
    stage.pull("podman", "one", &tagged("v1")).await;
    stage.each_blob_left_once_for_the_daemon();
    stage.registry.forget();
    stage.pull("podman", "two", &format!("origin.test/{REPOSITORY}@{}", stage.image.index.digest)).await;
    assert_eq!(stage.registry.accesses(), [], "warm and by digest");
    stage.daemon.kill();
    stage.pull("podman", "three", &tagged("v1")).await;
    assert_eq!(stage.registry.blob_gets().len(), stage.image.native().blobs().count(), "from the origin itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_asks_the_daemon_for_digests_only_where_that_is_configured() {
    if !available(&["podman", "docker-registry", "skopeo"], true) {
        return;
    }
    let stage = Stage::set_with(729, &["--pull-from-mirror", "digest-only"]).await;
    stage.pull("podman", "one", &tagged("v1")).await;
    assert_eq!(stage.daemon.status().await.totals.bytes_to_clients, 0, "a tag is none of its business");
    stage.registry.forget();
    stage.pull("podman", "two", &format!("origin.test/{REPOSITORY}@{}", stage.image.index.digest)).await;
    stage.each_blob_left_once_for_the_daemon();
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pulls_through_the_daemon_and_without_it() {
    if !available(&["buildah", "docker-registry", "skopeo"], true) {
        return;
    }
    let mut stage = Stage::set(721).await;
    stage.pull("buildah", "one", &tagged("v1")).await;
    stage.each_blob_left_once_for_the_daemon();
    stage.registry.forget();
    stage.pull("buildah", "two", &tagged("v1")).await;
    assert_eq!(stage.registry.blob_gets(), [], "warm");
    stage.daemon.kill();
    stage.pull("buildah", "three", &tagged("v1")).await;
    assert_eq!(stage.registry.blob_gets().len(), stage.image.native().blobs().count(), "from the origin itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_the_same_image_by_mirror_by_path_and_without_the_daemon() {
    if !available(&["docker-registry", "skopeo"], false) {
        return;
    }
    let mut stage = Stage::set(722).await;
    let mut by_mirror = stage.skopeo();
    by_mirror.arg(format!("docker://{}", tagged("v1"))).arg(format!("dir:{}", stage.path("mirror").display()));
    must(by_mirror).await;
    stage.each_blob_left_once_for_the_daemon();
    let mut by_path = stage.skopeo();
    by_path.arg("--src-tls-verify=false");
    by_path.arg(format!("docker://{}/origin.test/{REPOSITORY}:v1", stage.daemon.registry()));
    by_path.arg(format!("dir:{}", stage.path("path").display()));
    must(by_path).await;
    assert_eq!(files(&stage.path("mirror")), files(&stage.path("path")));
    stage.daemon.kill();
    let mut without = stage.skopeo();
    without.arg(format!("docker://{}", tagged("v1"))).arg(format!("dir:{}", stage.path("without").display()));
    must(without).await;
    assert_eq!(files(&stage.path("mirror")), files(&stage.path("without")));
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_all_platforms_and_docker_manifests_unchanged() {
    if !available(&["docker-registry", "skopeo"], false) {
        return;
    }
    let stage = Stage::set(723).await;
    let plain = ImageSpec::new(724, &[MIB, 10]).plain().build();
    stage.registry.push(&plain, Format::Oci, REPOSITORY, "plain").await;
    let zstd = ImageSpec::new(730, &[MIB, 10]).zstd().build();
    stage.registry.push(&zstd, Format::Oci, REPOSITORY, "zstd").await;
    stage.registry.push(&stage.image, Format::DockerV2s2, REPOSITORY, "docker").await;
    for tag in ["v1", "plain", "zstd", "docker"] {
        let mut through = stage.skopeo();
        through.args(["--all", "--preserve-digests"]).arg(format!("docker://{}", tagged(tag)));
        through.arg(format!("dir:{}", stage.path(&format!("through-{tag}")).display()));
        must(through).await;
        let mut direct = stage.skopeo();
        direct.args(["--all", "--preserve-digests", "--src-tls-verify=false"]);
        direct.arg(format!("docker://{}/{REPOSITORY}:{tag}", stage.registry.address()));
        direct.arg(format!("dir:{}", stage.path(&format!("direct-{tag}")).display()));
        must(direct).await;
        assert_eq!(
            files(&stage.path(&format!("through-{tag}"))),
            files(&stage.path(&format!("direct-{tag}"))),
            "{tag}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_finds_the_drop_in_where_configure_puts_it() {
    if !available(&["docker-registry", "skopeo"], false) {
        return;
    }
    let stage = Stage::set(728).await;
    let settings = stage.path(".config/containers");
    let configure = |more: &[&str]| {
        let mut command = Command::new(SHOAL);
        command.args(["configure", "podman", "--registry", "origin.test", "--conf-dir"]);
        command.arg(settings.join("registries.conf.d")).args(more);
        command.arg("--endpoint").arg(format!("http://{}", stage.daemon.registry()));
        command
    };
    let copy = {
        let mut command = Command::new("skopeo");
        stage.isolate(&mut command);
        command.arg("--policy").arg(stage.path("policy.json")).args(["copy", "--quiet"]);
        command.arg(format!("docker://{}", tagged("v1"))).arg(format!("dir:{}", stage.path("copy").display()));
        command
    };
    // Instead of the machine's own.
    fs::create_dir_all(&settings).unwrap();
    fs::write(settings.join("registries.conf"), "").unwrap();
    let planned = must(configure(&["--dry-run"])).await;
    assert!(
        planned.contains("+location = \"origin.test\"") && !settings.join("registries.conf.d").exists(),
        "{planned}"
    );
    must(configure(&[])).await;
    must(copy).await;
    stage.each_blob_left_once_for_the_daemon();
    must(configure(&["--remove"])).await;
    assert_eq!(fs::read_dir(settings.join("registries.conf.d")).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_lists_tags_and_copies_an_artifact_that_the_referrers_of_an_image_name() {
    if !available(&["docker-registry", "skopeo"], false) {
        return;
    }
    let mut stage = Stage::set(731).await;
    // Distribution 2.8 has no list of referrers.
    let origin = OriginDouble::start().await;
    origin.offer(&stage.image, REPOSITORY, "v1");
    let (artifact, signature) = artifact_of(&stage.image);
    for blob in [&artifact, &signature, &Blob::new(EMPTY, b"{}".to_vec())] {
        origin.offer_blob(blob);
    }
    stage.daemon.settings().upstreams = vec![format!("origin.test={}", origin.url())];
    stage.daemon.terminate().await;
    stage.daemon.up().await;

    let mut list = Command::new("skopeo");
    stage.isolate(&mut list);
    list.args(["list-tags", "--tls-verify=false"]);
    list.arg(format!("docker://{}/origin.test/{REPOSITORY}", stage.daemon.registry()));
    let tags: serde_json::Value = serde_json::from_str(&must(list).await).unwrap();
    assert_eq!(tags["Tags"], serde_json::json!(["v1"]));

    for state in ["cold", "warm"] {
        let path = format!("/v2/origin.test/{REPOSITORY}/referrers/{}", stage.image.index.digest);
        let list: serde_json::Value = stage.daemon.get(&path).send().await.unwrap().json().await.unwrap();
        let digest = list["manifests"][0]["digest"].as_str().unwrap().to_owned();
        assert_eq!(digest, artifact.digest, "{state}");
        let mut copy = stage.skopeo();
        copy.arg("--src-tls-verify=false");
        copy.arg(format!("docker://{}/origin.test/{REPOSITORY}@{digest}", stage.daemon.registry()));
        must({
            copy.arg(format!("dir:{}", stage.path(state).display()));
            copy
        })
        .await;
        let files = files(&stage.path(state));
        assert_eq!(files["manifest.json"], artifact.bytes, "{state}");
        assert_eq!(files[signature.digest.trim_start_matches("sha256:")], signature.bytes, "{state}");
    }
    assert_eq!(origin.gets(&signature.digest).len(), 1, "warm the second time");
}

const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// A manifest that refers to an image, and its one layer.
fn artifact_of(image: &Image) -> (Blob, Blob) {
    let signature = Blob::new("application/vnd.example.signature.v1+json", b"signed, the tests".to_vec());
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "artifactType": signature.media_type,
        "config": Blob::new(EMPTY, b"{}".to_vec()).descriptor(),
        "layers": [signature.descriptor()],
        "subject": image.index.descriptor(),
    });
    (Blob::new(media::MANIFEST, serde_json::to_vec(&document).unwrap()), signature)
}

/// Names and contents of the files of a directory.
fn files(directory: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).unwrap())).collect()
}
