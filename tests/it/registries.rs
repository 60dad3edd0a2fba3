//! Every registry of the table, one habit a test: a real daemon signs in, follows, pulls, and tells nobody.

#![allow(clippy::print_stdout, reason = "a failed test shall tell which row it was at")]

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use shoal_tests::{
    daemon::{Daemon, client},
    image::{Blob, Image, ImageSpec},
    origin::Fault,
    registries::{Delivery, REGISTRIES, RegistryDouble, Row, SignIn, registry},
};

use crate::{MIB, settings};

/// A row at work and a daemon in front of it.
struct Stage {
    row: &'static Row,
    image: Image,
    double: RegistryDouble,
    daemon: Daemon,
    _directory: tempfile::TempDir,
}

impl Stage {
    async fn set(row: &'static Row, seed: u64, layers: &[u64], password: Option<&str>) -> Self {
        Self::set_with(row, seed, layers, password, &[]).await
    }

    /// With further environment for the daemon.
    async fn set_with(
        row: &'static Row,
        seed: u64,
        layers: &[u64],
        password: Option<&str>,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::set_by(row, seed, layers, |double| double.config(password), environment).await
    }

    /// With this configuration for the daemon.
    async fn set_by(
        row: &'static Row,
        seed: u64,
        layers: &[u64],
        config: impl FnOnce(&RegistryDouble) -> String,
        environment: &[(&str, &str)],
    ) -> Self {
        println!("registry {}", row.name);
        let image = ImageSpec::new(seed, layers).one_platform().build();
        let double = RegistryDouble::start(row, &image).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("shoal.toml");
        std::fs::write(&file, config(&double)).unwrap();
        let mut settings = settings("").with("--config").with(file.display().to_string());
        settings.upstreams.clear();
        settings.environment.push(("HTTPS_PROXY".to_owned(), double.proxy()));
        settings.environment.push(("SHOAL_LOG".to_owned(), "shoal_daemon=debug,info".to_owned()));
        settings.environment.extend(environment.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        let daemon = Daemon::start(settings).await;
        Self { row, image, double, daemon, _directory: directory }
    }

    fn path(&self, kind: &str, reference: &str) -> String {
        format!("/v2/{}/{}/{kind}/{reference}", self.row.name, self.row.repository)
    }

    async fn manifest(&self, reference: &str, expected: &Blob) {
        let response = self.daemon.get(&self.path("manifests", reference)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{}: {}", self.row.name, self.daemon.log());
        assert_eq!(response.headers()["docker-content-digest"], expected.digest.as_str());
        assert_eq!(response.bytes().await.unwrap(), expected.bytes, "{}", self.row.name);
    }

    async fn blob(&self, blob: &Blob) {
        let response = self.daemon.get(&self.path("blobs", &blob.digest)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{}: {}", self.row.name, self.daemon.log());
        assert!(response.bytes().await.unwrap() == blob.bytes, "{}: {}", self.row.name, self.daemon.log());
    }

    async fn range(&self, blob: &Blob, first: usize, last: usize) {
        let request =
            self.daemon.get(&self.path("blobs", &blob.digest)).header("range", format!("bytes={first}-{last}"));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 206, "{}: {}", self.row.name, self.daemon.log());
        let expected = format!("bytes {first}-{last}/{}", blob.bytes.len());
        assert_eq!(response.headers()["content-range"], expected.as_str());
        assert!(response.bytes().await.unwrap() == blob.bytes.slice(first..=last), "{}", self.row.name);
    }

    /// No secret where it does not belong: neither at another host nor in the daemon's own log.
    fn assert_silent(&self) {
        assert_eq!(self.double.leaks(), Vec::<String>::new(), "{}", self.row.name);
        let log = self.daemon.log();
        for secret in self.double.secrets() {
            assert!(!log.contains(&secret), "{}: a secret is in the log", self.row.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_registry_is_pulled_from_by_tag_and_digest_whole_and_in_part_and_learns_no_secret_of_another() {
    for (seed, row) in (700..).zip(&REGISTRIES) {
        let stage = Stage::set(row, seed, &[100_000, 3 * MIB], None).await;
        let platform = stage.image.native();
        stage.manifest("v1", &stage.image.index).await;
        stage.manifest(&platform.manifest.digest, &platform.manifest).await;
        stage.range(&platform.layers[1], 2 << 20, (2 << 20) + 999).await;
        for blob in platform.blobs() {
            stage.blob(blob).await;
        }
        stage.assert_silent();
        // Where all that came from: every host of the row had its part, and signing in happened once.
        let asked = stage.double.asked();
        let store = match &row.blobs {
            Delivery::Mirror(host) | Delivery::Signed(host) => host,
            Delivery::Here | Delivery::Elsewhere => row.registry,
        };
        let sent: u64 = asked
            .iter()
            .filter(|asked| asked.host == *store && asked.served.path.contains("/blobs/"))
            .map(|asked| asked.served.sent())
            .sum();
        assert!(sent >= platform.blob_bytes(), "{}: {sent} bytes of blobs from {store}", row.name);
        if let SignIn::Token(shape) = &row.sign_in {
            let is_grant = |asked: &&shoal_tests::registries::Asked| {
                asked.host == shape.host
                    && asked.served.path == shape.path
                    && asked.served.status.load(std::sync::atomic::Ordering::Relaxed) == 200
            };
            assert_eq!(asked.iter().filter(is_grant).count(), 1, "{}: one token for one repository", row.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_not_found_for_clients_at_every_registry_and_never_a_challenge() {
    for (seed, row) in (740..).zip(REGISTRIES.iter().filter(|row| row.account.is_some())) {
        let stage = Stage::set(row, seed, &[10], Some("wrong-password")).await;
        let layer = &stage.image.native().layers[0];
        for path in [stage.path("manifests", "v1"), stage.path("blobs", &layer.digest)] {
            let response = stage.daemon.get(&path).send().await.unwrap();
            assert_eq!(response.status(), 404, "{}: {}", row.name, stage.daemon.log());
            assert!(!response.headers().contains_key("www-authenticate"));
            let text = response.text().await.unwrap();
            assert!(text.contains("access denied") && !text.contains("wrong-password"), "{text}");
        }
        assert!(!stage.daemon.log().contains("wrong-password"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_url_that_ran_out_is_signed_anew() {
    for (seed, row) in (780..).zip(REGISTRIES.iter().filter(|row| matches!(row.blobs, Delivery::Signed(_)))) {
        let stage = Stage::set(row, seed, &[MIB], None).await;
        stage.double.expire(1);
        stage.blob(&stage.image.native().layers[0]).await;
        stage.assert_silent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_breaks_off_stalls_or_lies_costs_another_signature_and_no_wrong_byte() {
    let row = registry("docker.io");
    let Delivery::Signed(store) = row.blobs else { panic!("Docker Hub signs") };
    let faults = [
        Fault::TruncateAfter(MIB),
        Fault::TruncateAfter(0),
        Fault::HangAfter(MIB),
        Fault::Status(500),
        Fault::CorruptAt(2 * MIB),
    ];
    for (seed, fault) in (820..).zip(faults) {
        println!("{fault:?}");
        let lies = matches!(fault, Fault::CorruptAt(_));
        let stage = Stage::set(row, seed, &[4 * MIB], None).await;
        let layer = &stage.image.native().layers[0];
        stage.double.misbehave(&format!("{store}/v2"), 1, fault);
        if lies {
            // It breaks off before its end, perhaps before its first byte.
            let response = stage.daemon.get(&stage.path("blobs", &layer.digest)).send().await.unwrap();
            let whole = response.status() == 200 && response.bytes().await.is_ok_and(|body| body != layer.bytes);
            assert!(!whole, "a body of wrong bytes came to its end");
        }
        stage.blob(layer).await;
        stage.assert_silent();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_official_image_of_docker_hub_may_be_asked_for_by_its_short_name() {
    let stage = Stage::set(registry("docker.io"), 860, &[10], None).await;
    let response = stage.daemon.get("/v2/docker.io/alpine/manifests/v1").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.unwrap(), stage.image.index.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_docker_hub_are_on_the_metrics_page() {
    let stage = Stage::set(registry("docker.io"), 861, &[10], None).await;
    stage.manifest("v1", &stage.image.index).await;
    let url = format!("http://{}/metrics", stage.daemon.addresses().observe);
    let page = client().get(url).send().await.unwrap().text().await.unwrap();
    for line in [
        "shoal_origin_ratelimit_limit{upstream=\"docker.io\"} 200\n",
        "shoal_origin_ratelimit_remaining{upstream=\"docker.io\"} 176\n",
        "shoal_origin_ratelimit_window_seconds{upstream=\"docker.io\"} 21600\n",
    ] {
        assert!(page.contains(line), "{line} is missing from {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_to_be_left_alone_is_asked_once_and_clients_fall_back_at_once() {
    let stage = Stage::set(registry("docker.io"), 862, &[10], None).await;
    stage.double.misbehave("registry-1.docker.io/v2/library", u64::MAX, Fault::TooManyRequests(600));
    let digest = &stage.image.native().manifest.digest;
    let layer = &stage.image.native().layers[0].digest;
    for path in [stage.path("manifests", "v1"), stage.path("manifests", digest), stage.path("blobs", layer)] {
        for _ in 0..3 {
            let response = stage.daemon.get(&path).send().await.unwrap();
            assert_eq!(response.status(), 503, "{path}");
            assert!(!response.headers().contains_key("retry-after"), "clients shall fall back, not wait");
            let text = response.text().await.unwrap();
            assert!(text.contains("rate limited"), "{path}: {text}\n{}", stage.daemon.log());
        }
    }
    let asked = stage.double.asked();
    assert_eq!(asked.iter().filter(|asked| asked.served.path.contains("/library/")).count(), 1);
}

/// All of the image.
async fn pull(stage: &Stage) {
    stage.manifest("v1", &stage.image.index).await;
    for blob in stage.image.native().blobs() {
        stage.blob(blob).await;
    }
    stage.assert_silent();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_of_a_docker_file_is_the_refresh_token() {
    let row = registry("team.azurecr.io");
    let token = row.account.as_ref().unwrap().secret.text();
    let file = json!({ "auths": { row.name: { "auth": "", "identitytoken": token } } });
    pull(&Stage::set_by(row, 870, &[MIB], |double| double.config_with_file(&file), &[]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_token_of_a_docker_file_is_shown_as_it_is_and_no_token_server_is_asked() {
    let row = registry("ghcr.io");
    let config = |double: &RegistryDouble| {
        double.config_with_file(&json!({ "auths": { row.name: { "registrytoken": double.token() } } }))
    };
    let stage = Stage::set_by(row, 871, &[MIB], config, &[]).await;
    pull(&stage).await;
    assert!(stage.double.asked().iter().all(|asked| asked.served.path != "/token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_a_credential_helper_that_ran_out_is_asked_for_anew() {
    let row = registry("123456789012.dkr.ecr.eu-west-1.amazonaws.com");
    let account = row.account.as_ref().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (helper, runs) = (directory.path().join("docker-credential-ecr-login"), directory.path().join("runs"));
    let password = directory.path().join("password");
    std::fs::write(&password, account.secret.text()).unwrap();
    let script = format!(
        r#"#!/bin/sh
read -r registry
echo "$1 $registry" >> '{}'
printf '{{"ServerURL":"%s","Username":"%s","Secret":"%s"}}' "$registry" '{}' "$(cat '{}')"
"#,
        runs.display(),
        account.user,
        password.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let file = json!({ "credHelpers": { row.name: "ecr-login" } });
    let stage =
        Stage::set_by(row, 872, &[MIB], |double| double.config_with_file(&file), &[("PATH", path.as_str())]).await;
    stage.manifest("v1", &stage.image.index).await;
    // Twelve hours later.
    std::fs::write(&password, "ecr-password-of-the-next-twelve-hours").unwrap();
    stage.double.rotate("ecr-password-of-the-next-twelve-hours");
    pull(&stage).await;
    let runs = std::fs::read_to_string(&runs).unwrap();
    assert_eq!(runs, format!("get {}\n", row.name).repeat(2), "asked again once, and then kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_under_no_proxy_is_not_asked_through_the_proxy() {
    let row = registry("open.registry.test");
    let stage = Stage::set_with(row, 863, &[10], None, &[("NO_PROXY", "other.test, registry.test")]).await;
    let response = stage.daemon.get(&stage.path("manifests", "v1")).send().await.unwrap();
    assert_eq!(response.status(), 503, "a name that only the proxy knows");
    assert_eq!(stage.double.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_tls_is_asked_through_the_proxy_of_plain_http() {
    let (proxy, image) = crate::origin_with(864, &[10]).await;
    let mut settings = settings("http://plain.registry.test");
    settings.environment.push(("HTTP_PROXY".to_owned(), proxy.url()));
    let daemon = Daemon::start(settings).await;
    let response = daemon.get(&crate::manifest_path("v1")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.bytes().await.unwrap()), (200, image.index.bytes));
    assert!(proxy.requests().iter().all(|request| request.headers["host"] == "plain.registry.test"));
}
