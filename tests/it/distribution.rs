//! Debian's `docker-registry` with each of its ways of signing in, and mirrors of an origin.

#![allow(clippy::print_stdout, reason = "a failed test shall tell which row it was at")]

use shoal_tests::{
    daemon::Daemon,
    image::{Image, ImageSpec},
    layout::Format,
    origin::{Fault, OriginDouble},
    registry::DockerRegistry,
    token_server::TokenServer,
    tools,
};

use crate::{ANSWER, MIB, REPOSITORY, blob_path, manifest_path, origin_with, settings};

/// bcrypt of `secret`.
const HTPASSWD: &str = "alice:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A daemon with these lines in the table of `origin.test`.
async fn daemon_with(lines: &str) -> (tempfile::TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shoal.toml");
    std::fs::write(&file, format!("[upstreams.\"origin.test\"]\n{lines}")).unwrap();
    let mut settings = settings("").with("--config").with(file.display().to_string());
    settings.upstreams.clear();
    (directory, Daemon::start(settings).await)
}

async fn assert_pulls(daemon: &Daemon, image: &Image) {
    let response = daemon.get(&manifest_path("v1")).send().await.unwrap();
    assert_eq!(response.status(), 200, "{}", daemon.log());
    assert_eq!(response.bytes().await.unwrap(), image.index.bytes);
    let platform = image.native();
    let range = daemon.get(&blob_path(&platform.layers[0].digest)).header("range", "bytes=1000-1999");
    let range = range.send().await.unwrap();
    assert_eq!(range.status(), 206);
    assert!(range.bytes().await.unwrap() == platform.layers[0].bytes.slice(1000..2000));
    for manifest in image.manifests() {
        let response = daemon.get(&manifest_path(&manifest.digest)).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.bytes().await.unwrap()), (200, manifest.bytes.clone()));
    }
    for blob in image.blobs() {
        assert!(daemon.blob(REPOSITORY, &blob.digest).await == blob.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn distribution_is_pulled_from_without_sign_in_with_htpasswd_and_with_tokens() {
    if !tools::available(&["docker-registry", "skopeo"], false) {
        return;
    }
    let image = ImageSpec::new(900, &[2 * MIB]).one_platform().build();
    let mut registry = DockerRegistry::start().await;
    registry.push(&image, Format::Oci, REPOSITORY, "v1").await;
    let url = registry.url();
    let account = format!("url = \"{url}\"\nusername = \"alice\"\npassword = \"secret\"\n");
    let wrong = account.replace("secret", "wrong");
    println!("none");
    assert_pulls(&daemon_with(&format!("url = \"{url}\"\n")).await.1, &image).await;

    println!("htpasswd");
    let file = registry.write("htpasswd", HTPASSWD);
    registry.restart(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display())).await;
    assert_pulls(&daemon_with(&account).await.1, &image).await;
    assert_refused(&[&wrong, &format!("url = \"{url}\"\n")]).await;

    println!("token");
    let tokens = TokenServer::start("alice", "secret").await;
    let bundle = registry.write("token.pem", &tokens.certificate());
    let auth = format!(
        "auth: {{token: {{realm: \"{}\", service: {}, issuer: {}, rootcertbundle: {}}}}}\n",
        tokens.realm(),
        TokenServer::SERVICE,
        TokenServer::ISSUER,
        bundle.display()
    );
    registry.restart(&auth).await;
    assert_pulls(&daemon_with(&account).await.1, &image).await;
    assert_eq!(tokens.granted(), 1, "one token for one repository");
    assert_refused(&[&wrong, &format!("url = \"{url}\"\n")]).await;
    assert_eq!(tokens.granted(), 1);
}

async fn assert_refused(tables: &[&str]) {
    for table in tables {
        let (_directory, daemon) = daemon_with(table).await;
        let response = daemon.get(&manifest_path("v1")).send().await.unwrap();
        assert_eq!(response.status(), 404);
        assert!(!response.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_before_the_registry_and_the_registry_when_they_fail() {
    let (registry, image) = origin_with(910, &[2 * MIB]).await;
    let mirror = OriginDouble::start().await;
    mirror.offer(&image, REPOSITORY, "v1");
    let table = format!("url = \"{}\"\nmirrors = [\"http://127.0.0.1:1\", \"{}\"]\n", registry.url(), mirror.url());
    assert_pulls(&daemon_with(&table).await.1, &image).await;
    assert!(registry.requests().is_empty(), "the mirror had it all");

    for fault in [Fault::Status(500), Fault::Status(404), Fault::TooManyRequests(60), Fault::HangBeforeHeaders] {
        println!("{fault:?}");
        mirror.behave();
        mirror.misbehave("", fault);
        let (_directory, daemon) = daemon_with(&table).await;
        let asked = tokio::time::timeout(ANSWER, daemon.get(&manifest_path("v1")).send()).await;
        assert_eq!(asked.unwrap().unwrap().status(), 200, "{}", daemon.log());
        assert_pulls(&daemon, &image).await;
    }

    println!("breaks off");
    mirror.behave();
    mirror.misbehave("/blobs/", Fault::TruncateAfter(MIB));
    assert_pulls(&daemon_with(&table).await.1, &image).await;
}
