//! Charliecloud: HTTPS only, by the daemon's address, with the certificates that `shoal configure` wrote.

use std::{
    process::{Command, Output},
    time::Duration,
};

use shoal_tests::{
    daemon::Daemon,
    image::ImageSpec,
    layout::Format,
    process::{must, run},
    tools::available,
};
use tempfile::TempDir;

use crate::{MIB, REPOSITORY, SHOAL, settings};

/// `ch-image pull` into a storage of its own that starts empty.
async fn pull(directory: &TempDir, storage: &str, image: &str) -> Output {
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(format!(". '{}'; exec ch-image pull \"$0\"", directory.path().join("charliecloud.sh").display()));
    // Its build cache wants an account in git.
    command.env("CH_IMAGE_CACHE", "disabled");
    command.arg(image).env("CH_IMAGE_STORAGE", directory.path().join(storage)).env("USER", "tester");
    // The distribution's Python, which has the modules that ch-image needs.
    command.env("PATH", "/usr/bin:/bin").env("HOME", directory.path()).env("TMPDIR", directory.path());
    run(command, Duration::from_secs(120)).await.unwrap()
}

fn succeeded(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn charliecloud_pulls_over_tls_with_what_configure_wrote() {
    if !available(&["ch-image", "docker-registry", "skopeo"], false) {
        return;
    }
    let (registry, image) = super::registry_with(750).await;
    registry.push(&image, Format::DockerV2s2, REPOSITORY, "docker").await;
    let plain = ImageSpec::new(751, &[MIB, 10]).plain().build();
    registry.push(&plain, Format::Oci, REPOSITORY, "plain").await;
    registry.forget();
    let mut daemon = Daemon::start(settings(&registry.url()).with("--registry-tls-listen=127.0.0.1:0")).await;
    let addresses = daemon.status().await.addresses;
    let directory = tempfile::tempdir().unwrap();
    let port = addresses.registry_tls[0].port();
    let configure = |remove: bool| {
        let mut command = Command::new(SHOAL);
        command.args(["configure", "charliecloud", "--registry", "origin.test"]);
        command.arg("--endpoint").arg(format!("https://localhost:{port}"));
        command.arg("--ca").arg(addresses.registry_ca.as_ref().unwrap()).arg("--dir").arg(directory.path());
        command.args(remove.then_some("--remove"));
        command
    };
    must(configure(false)).await;
    let name = |tag: &str| format!("localhost:{port}/origin.test/{REPOSITORY}:{tag}");
    succeeded(&pull(&directory, "one", &name("v1")).await);
    for blob in image.native().blobs() {
        let of_it: u64 =
            registry.blob_gets().iter().filter(|get| get.path.contains(&blob.digest)).map(|get| get.bytes).sum();
        assert_eq!(of_it, blob.size(), "{:?}", registry.blob_gets());
    }
    let layer = directory.path().join("one/img").join(name("v1").replace('/', "%").replace(':', "+")).join("layer-0");
    assert_eq!(std::fs::metadata(layer).unwrap().len(), 3 * MIB, "it is unpacked");

    registry.forget();
    succeeded(&pull(&directory, "two", &name("v1")).await);
    assert_eq!(registry.blob_gets(), [], "warm");
    succeeded(&pull(&directory, "three", &name("docker")).await);
    succeeded(&pull(&directory, "four", &name("plain")).await);
    succeeded(&pull(&directory, "five", &format!("{REPOSITORY}:v1")).await);

    daemon.kill();
    assert!(!pull(&directory, "six", &name("v1")).await.status.success(), "it knows no other way");
    must(configure(true)).await;
    assert!(
        !directory.path().join("charliecloud.sh").exists() && !directory.path().join("charliecloud-ca.pem").exists()
    );
}
