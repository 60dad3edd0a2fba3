//! The Docker engine: images of Docker Hub by a mirror, all others by the daemon's address.

use std::{net::SocketAddr, path::Path, process::Command, sync::Arc, time::Duration};

use shoal_tests::{
    daemon::Daemon, docker::Docker, eventually, image::ImageSpec, layout::Format, process::must,
    registry::DockerRegistry, tools::available,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Mutex,
};

use crate::{MIB, SHOAL, settings};

const PROGRAMS: [&str; 4] = ["dockerd", "docker", "docker-registry", "skopeo"];

/// A proxy that lets nobody through and remembers who was asked for.
#[derive(Clone, Default)]
struct Nowhere {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Nowhere {
    async fn start() -> (Self, SocketAddr) {
        let nowhere = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::clone(&nowhere.asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.unwrap_or(0);
                let line = String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned();
                asked.lock().await.push(line);
                stream
                    .write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .await
                    .ok();
            }
        });
        (nowhere, address)
    }
}

fn configure(file: &Path, daemon: &Daemon, remove: bool) -> Command {
    let mut command = Command::new(SHOAL);
    command.args(["configure", "docker", "--daemon-json"]).arg(file);
    command.arg("--endpoint").arg(format!("http://{}", daemon.registry()));
    command.args(remove.then_some("--remove"));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_hub_images_by_the_mirror_that_configure_wrote_and_goes_to_the_hub_without_it() {
    if !available(&PROGRAMS, true) {
        return;
    }
    let registry = DockerRegistry::start().await;
    let image = ImageSpec::new(740, &[2 * MIB, 30]).build();
    registry.push(&image, Format::Oci, "library/app", "v1").await;
    registry.push(&image, Format::DockerV2s2, "library/app", "docker").await;
    let plain = ImageSpec::new(741, &[MIB]).plain().build();
    registry.push(&plain, Format::Oci, "library/app", "plain").await;
    registry.forget();
    let mut settings = settings(&registry.url());
    settings.upstreams = vec![format!("docker.io={}", registry.url())];
    let mut daemon = Daemon::start(settings).await;
    let mut docker = Docker::prepare();
    must(configure(&docker.configuration(), &daemon, false)).await;
    let (nowhere, proxy) = Nowhere::start().await;
    docker.start(proxy).await;
    docker.pull("app:v1").await;
    for blob in image.native().blobs() {
        let of_it: u64 =
            registry.blob_gets().iter().filter(|get| get.path.contains(&blob.digest)).map(|get| get.bytes).sum();
        assert_eq!(of_it, blob.size(), "{:?}", registry.blob_gets());
    }
    docker.pull("docker.io/library/app:docker").await;
    docker.pull("library/app:plain").await;
    assert_eq!(*nowhere.asked.lock().await, Vec::<String>::new(), "nothing but the mirror was needed");

    for tag in ["app:v1", "app:docker"] {
        docker.forget(tag).await;
    }
    registry.forget();
    docker.pull("app:v1").await;
    assert_eq!(registry.blob_gets(), [], "warm");

    daemon.kill();
    let failed = docker.run(&["pull", "app:other"]).await;
    assert!(!failed.status.success());
    let asked = nowhere.asked.lock().await.clone();
    assert!(asked.iter().any(|line| line.starts_with("CONNECT registry-1.docker.io:443")), "{asked:?}");
    docker.stop().await;
    must(configure(&docker.configuration(), &daemon, true)).await;
    assert!(!docker.configuration().exists(), "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_images_of_any_registry_by_the_daemons_address() {
    if !available(&PROGRAMS, true) {
        return;
    }
    let (registry, image) = super::registry_with(742).await;
    let daemon = Daemon::start(settings(&registry.url())).await;
    let mut docker = Docker::prepare();
    let (nowhere, proxy) = Nowhere::start().await;
    docker.start(proxy).await;
    let name = format!("{}/origin.test/{}:v1", daemon.registry(), crate::REPOSITORY);
    docker.pull(&name).await;
    assert!(registry.accesses().iter().all(|access| !access.agent.contains("docker/")), "{:?}", registry.accesses());
    let layers: u64 = registry.blob_gets().iter().map(|get| get.bytes).sum();
    assert_eq!(layers, image.native().blob_bytes());
    docker.forget(&name).await;
    registry.forget();
    docker.pull(&name).await;
    assert_eq!(registry.blob_gets(), [], "warm");
    assert_eq!(*nowhere.asked.lock().await, Vec::<String>::new());

    must(configure(&docker.configuration(), &daemon, false)).await;
    docker.reload();
    let endpoint = daemon.registry().to_string();
    eventually(Duration::from_secs(20), "the engine using the mirror without a restart", || async {
        let said = docker.run(&["info", "--format", "{{.RegistryConfig.Mirrors}}"]).await;
        String::from_utf8_lossy(&said.stdout).contains(&endpoint).then_some(())
    })
    .await;
}
