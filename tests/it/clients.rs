use std::time::Duration;
use shoal_tests::{containerd::Containerd, image::ImageSpec, layout::Format, process::Place, registry::DockerRegistry, tools::available, origin::OriginDouble, daemon::Daemon};

#[tokio::test(flavor = "multi_thread")]
async fn stand_in() {
    if !available(&["containerd", "ctr", "docker-registry", "skopeo"], true) {
        return;
    }
    let registry = DockerRegistry::start().await;
    let image = ImageSpec::new(1, &[1_000_000, 3_000_000]).build();
    registry.push(&image, Format::Oci, "team/a", "v1").await;
    registry.push(&image, Format::DockerV2s2, "team/a", "v2").await;
    let origin = OriginDouble::start().await;
    origin.offer(&image, "team/a", "v1");
    let containerd = Containerd::start(&Place::Here).await;
    registry.forget();
    containerd.mirror(&registry.url(), &registry.url());
    containerd.pull("origin.test/team/a:v1").await.expect_ok();
    containerd.pull("origin.test/team/a:v2").await.expect_ok();
    println!("{:?}", registry.accesses());
    println!("{:?}", containerd.cri_pull("origin.test/team/a:v1", None).await);
    println!("{:?}", containerd.cri_pull("origin.test/team/a:v3", None).await);
    containerd.mirror(&origin.url(), &origin.url());
    containerd.pull("origin.test/team/a:v1").await.expect_ok();
    println!("{:?}", origin.requests());
    let daemon = Daemon::start(crate::settings(&origin.url())).await;
    println!("{:?}", daemon.status().await);
    containerd.mirror(&format!("http://{}", daemon.registry()), &origin.url());
    let pulled = containerd.pull("origin.test/team/a:v1").await;
    println!("{:?}", pulled);
    println!("{}", daemon.log());
    println!("{:?}", daemon.status().await);
    let _ = Duration::from_secs(1);
}
