//! The registry front: what one daemon answers, whatever its origin does.

mod faults;
mod ranges;
mod refusals;
mod storm;

use shoal_tests::{
    daemon::{Daemon, client},
    image::{Blob, digest_of, media, random_bytes},
    origin::{Auth, Fault, OriginDouble},
    raw,
};

use crate::{ANSWER, MIB, REPOSITORY, blob_path, manifest_path, one_daemon, origin_with, settings};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_served_byte_by_byte_as_its_digests_say_and_costs_the_origin_one_copy() {
    let (origin, image, daemon) = one_daemon(100, &[3 * MIB, 20 * MIB, 10]).await;
    for _ in 0..2 {
        for manifest in image.manifests() {
            let response = daemon.get(&manifest_path(&manifest.digest)).send().await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.bytes().await.unwrap(), manifest.bytes);
        }
        for blob in image.blobs() {
            assert!(daemon.blob(REPOSITORY, &blob.digest).await == blob.bytes, "{}", blob.digest);
        }
    }
    assert_eq!(origin.blob_bytes(), image.native().blob_bytes(), "asked for twice, fetched once");
    let totals = daemon.status().await.totals;
    assert_eq!(
        totals.bytes_to_clients,
        2 * (image.native().blob_bytes() + image.manifests().map(Blob::size).sum::<u64>())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_the_headers_that_clients_need() {
    let (_origin, image, daemon) = one_daemon(101, &[MIB]).await;
    let layer = &image.native().layers[0];
    let by_namespace = format!("/v2/{REPOSITORY}/blobs/{}?ns=origin.test", layer.digest);
    for path in [blob_path(&layer.digest), by_namespace] {
        for request in [daemon.head(&path), daemon.get(&path)] {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            let headers = response.headers();
            assert_eq!(headers["docker-content-digest"], layer.digest.as_str());
            assert_eq!(headers["content-length"], layer.size().to_string().as_str());
            assert_eq!(headers["content-type"], "application/octet-stream");
            assert_eq!(headers["docker-distribution-api-version"], "registry/2.0");
            assert!(
                !headers.contains_key("content-encoding"),
                "a client would decode the blob and its digest would fail"
            );
            assert!(!headers.contains_key("access-control-allow-origin"), "web pages must not read");
            assert_eq!(headers.contains_key("oci-namespace"), path.contains("?ns="), "{path}");
        }
    }
    for reference in ["v1", &image.index.digest] {
        let response = daemon.head(&manifest_path(reference)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["docker-content-digest"], image.index.digest.as_str());
        assert_eq!(response.headers()["content-type"], media::INDEX);
        assert_eq!(response.headers()["content-length"], image.index.size().to_string().as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_a_blob_costs_no_body_at_the_origin() {
    let (origin, image, daemon) = one_daemon(102, &[8 * MIB]).await;
    let layer = &image.native().layers[0];
    let response = daemon.head(&blob_path(&layer.digest)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-length"], layer.size().to_string().as_str());
    assert!(response.bytes().await.unwrap().is_empty());
    assert_eq!(origin.bytes_of("/blobs/"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_it_already_is_told_so_without_a_body() {
    let (_origin, image, daemon) = one_daemon(103, &[MIB]).await;
    let layer = &image.native().layers[0];
    let tag = daemon.get(&blob_path(&layer.digest)).send().await.unwrap().headers()["etag"].clone();
    let again = daemon.get(&blob_path(&layer.digest)).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(again.status(), 304);
    assert_eq!(again.headers()["docker-content-digest"], layer.digest.as_str());
    assert!(again.bytes().await.unwrap().is_empty());
    let other = daemon.get(&blob_path(&layer.digest)).header("if-none-match", "\"sha256:00\"").send().await.unwrap();
    assert_eq!(other.status(), 200, "the client has something else");
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_lines_are_joined_for_the_origin() {
    let (origin, image, daemon) = one_daemon(104, &[10]).await;
    let headers = [("Accept", media::MANIFEST), ("Accept", media::INDEX), ("accept", "application/json;q=0.5")];
    let answer = raw::get(daemon.registry(), &manifest_path("v1"), &headers, ANSWER).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, image.index.bytes.as_ref()));
    let asked = origin.requests();
    let asked = asked.iter().find(|served| served.path.ends_with("/manifests/v1")).unwrap();
    for (_, media_type) in headers {
        let accept = &asked.headers["accept"];
        assert!(accept.contains(media_type), "{media_type} is missing in {accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sha512_blob_is_served_and_a_wrong_one_is_not() {
    let (origin, _, daemon) = one_daemon(105, &[10]).await;
    let bytes = random_bytes(1, 5 * MIB + 17);
    let digest = sha512_of(&bytes);
    origin.offer_content(&digest, bytes.clone().into(), "application/octet-stream");
    assert!(daemon.blob(REPOSITORY, &digest).await == bytes);
    let lie = sha512_of(b"something else");
    origin.offer_content(&lie, bytes.clone().into(), "application/octet-stream");
    let (status, body) = daemon.try_blob(REPOSITORY, &lie).await;
    assert!(status != 200 || body.is_empty(), "status {status}, {} bytes", body.len());
    assert!(daemon.status().await.blobs.iter().all(|blob| blob.digest.to_string() != lie || !blob.sealed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_is_noticed_after_its_time_to_live() {
    let (origin, first) = origin_with(106, &[10]).await;
    let (_, second) = origin_with(107, &[10]).await;
    let daemon = Daemon::start(settings(&origin.url()).with("--tag-ttl=0s")).await;
    let digest = async || {
        let response = daemon.head(&manifest_path("v1")).send().await.unwrap();
        response.headers()["docker-content-digest"].to_str().unwrap().to_owned()
    };
    assert_eq!(digest().await, first.index.digest);
    origin.offer(&second, REPOSITORY, "v1");
    assert_eq!(digest().await, second.index.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_greeting_on_the_plain_port_gets_an_http_answer() {
    let (_origin, _, daemon) = one_daemon(108, &[10]).await;
    // The head of a ClientHello. Go's client takes an answer that begins with `HTTP/` for a plain server, and goes on in plain.
    let hello = [&[0x16, 3, 1, 0, 4, 1, 0, 0, 0][..], &[0; 64]].concat();
    let stream = tokio::net::TcpStream::connect(daemon.registry()).await.unwrap();
    let answer = raw::exchange(stream, &hello, ANSWER).await;
    assert_eq!(answer.status, 400);
}

/// A daemon whose upstream has an account in its file.
async fn with_account(origin: &OriginDouble) -> (tempfile::TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shoal.toml");
    let text = format!(
        "[upstreams.\"origin.test\"]\nurl = \"{}\"\nusername = \"alice\"\npassword = \"secret\"\n",
        origin.url()
    );
    std::fs::write(&file, text).unwrap();
    let mut settings = settings(&origin.url()).with("--config").with(file.display().to_string());
    settings.upstreams.clear();
    (directory, Daemon::start(settings).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_asks_for_an_account_gets_ours_and_clients_are_never_asked() {
    for auth in [Auth::Basic("alice", "secret"), Auth::Bearer("alice", "secret")] {
        let (origin, image) = origin_with(109, &[2 * MIB]).await;
        origin.require(auth.clone());
        let (_directory, daemon) = with_account(&origin).await;
        assert_eq!(daemon.get(&manifest_path("v1")).send().await.unwrap().status(), 200, "{auth:?}");
        for blob in image.blobs() {
            assert!(daemon.blob(REPOSITORY, &blob.digest).await == blob.bytes, "{auth:?}");
        }
        let without = Daemon::start(settings(&origin.url())).await;
        let response = without.get(&manifest_path("v1")).send().await.unwrap();
        assert!([403, 404, 502, 503].contains(&response.status().as_u16()), "{auth:?}: {}", response.status());
        assert!(!response.headers().contains_key("www-authenticate"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirected_blob_arrives_and_its_store_sees_no_credentials() {
    let (origin, image) = origin_with(110, &[2 * MIB]).await;
    origin.require(Auth::Basic("alice", "secret"));
    let store = OriginDouble::start().await;
    image.blobs().for_each(|blob| store.offer_blob(blob));
    origin.misbehave("/blobs/", Fault::RedirectTo(store.address()));
    let (_directory, daemon) = with_account(&origin).await;
    let layer = &image.native().layers[0];
    assert!(daemon.blob(REPOSITORY, &layer.digest).await == layer.bytes);
    let seen = store.requests();
    assert!(!seen.is_empty());
    for request in seen {
        assert!(!request.headers.contains_key("authorization"), "{} {}", request.method, request.path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_status_are_answered_beside_the_registry() {
    let (_origin, image, daemon) = one_daemon(111, &[MIB]).await;
    daemon.blob(REPOSITORY, &image.native().layers[0].digest).await;
    let page = async |path: &str| {
        let url = format!("http://{}{path}", daemon.addresses().observe);
        let response = client().get(url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.text().await.unwrap()
    };
    page("/healthz").await;
    page("/readyz").await;
    let layer = image.native().layers[0].size();
    let metrics = page("/metrics").await;
    let received =
        metrics.lines().find(|line| line.starts_with("shoal_received_bytes_total{from=\"origin\"}")).unwrap();
    assert!(received.ends_with(&format!(" {layer}")), "{received}");
    assert!(metrics.ends_with("# EOF\n"));
    assert!(page("/v1/status").await.contains(&image.native().layers[0].digest));
}

fn sha512_of(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha512};
    use std::fmt::Write;
    let mut text = String::from("sha512:");
    for byte in Sha512::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// A blob of random bytes that the origin has.
fn offer_random(origin: &OriginDouble, seed: u64, size: u64) -> Blob {
    let bytes = random_bytes(seed, size);
    let blob = Blob { digest: digest_of(&bytes), media_type: "application/octet-stream", bytes: bytes.into() };
    origin.offer_blob(&blob);
    blob
}
