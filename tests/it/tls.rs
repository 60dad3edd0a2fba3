//! The registry over TLS, with a certificate that the daemon made.

use std::{fs, path::Path};

use reqwest::{Certificate, Client};
use shoal_tests::daemon::Daemon;

use crate::{blob_path, manifest_path, origin_with, settings};

/// A client that trusts the daemon's authority and nobody else.
fn client(ca: &Path) -> Client {
    let ca = Certificate::from_pem(&fs::read(ca).unwrap()).unwrap();
    Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_registry_is_served_over_tls_and_its_authority_outlives_the_daemon() {
    let (origin, image) = origin_with(780, &[100]).await;
    let mut daemon = Daemon::start(settings(&origin.url()).with("--registry-tls-listen=127.0.0.1:0")).await;
    let addresses = daemon.status().await.addresses;
    let ca = addresses.registry_ca.unwrap();
    assert!(ca.starts_with(daemon.data()), "{}", ca.display());
    let client = client(&ca);
    let port = addresses.registry_tls[0].port();
    assert!(daemon.log().contains(&format!("registry_tls=127.0.0.1:{port}")), "the line `ready` has it");
    let manifest = &image.native().manifest;
    for host in ["localhost", "127.0.0.1"] {
        let url = |path: &str| format!("https://{host}:{port}{path}");
        assert_eq!(client.get(url("/v2/")).send().await.unwrap().status(), 200);
        let answer = client.get(url(&manifest_path(&manifest.digest))).send().await.unwrap();
        assert_eq!(answer.headers()["docker-content-digest"], manifest.digest);
        assert_eq!(answer.bytes().await.unwrap(), manifest.bytes);
        let layer = &image.native().layers[0];
        let answer = client.get(url(&blob_path(&layer.digest))).send().await.unwrap();
        assert_eq!(answer.bytes().await.unwrap(), layer.bytes);
    }
    let browser = client.get(format!("https://localhost:{port}/v2/")).header("origin", "https://evil.example");
    assert_eq!(browser.send().await.unwrap().status(), 403, "the same guard");
    let plain = Client::builder().no_proxy().build().unwrap();
    assert!(plain.get(format!("http://127.0.0.1:{port}/v2/")).send().await.is_err());

    assert!(daemon.terminate().await.success());
    daemon.up().await;
    let port = daemon.status().await.addresses.registry_tls[0].port();
    let answer = client.get(format!("https://localhost:{port}/v2/")).send().await.unwrap();
    assert_eq!(answer.status(), 200, "trusted as before");
}
