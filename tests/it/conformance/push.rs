//! Section "Push", for upstreams with `push = true`.

use reqwest::{Method, RequestBuilder, Response};
use shoal_tests::{
    image::{digest_of, media, random_bytes},
    origin::{Auth, Fault},
};

use super::{Stage, code, header, layer, modern, pushing, stages, unknown};
use crate::{MIB, REPOSITORY};

pub(super) fn sha512_of(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha512};
    use std::fmt::Write;
    Sha512::digest(bytes).iter().fold(String::from("sha512:"), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl Stage {
    /// A request to where an upload goes on, which is a path of ours.
    fn go_on(&self, method: Method, location: &str) -> RequestBuilder {
        let uploads = self.at("blobs/uploads/");
        let by_namespace = uploads.replacen("/origin.test", "", 1);
        assert!(location.starts_with(&uploads) || location.starts_with(&by_namespace), "{self}: {location}");
        self.call(method, location)
    }

    async fn begin(&self) -> String {
        let response = self.call(Method::POST, &self.at("blobs/uploads/")).send().await.unwrap();
        assert_eq!(response.status(), 202, "{self}");
        header(&response, "location").to_owned()
    }

    /// The blob is at the origin and here, as its digest says.
    async fn must_have(&self, digest: &str, bytes: &[u8]) {
        assert!(self.origin.has(&format!("/v2/{REPOSITORY}/blobs/{digest}")).await, "{self}: not at the origin");
        assert!(self.daemon.blob(REPOSITORY, digest).await == bytes, "{self}: {digest}");
    }
}

fn finish(location: &str, digest: &str) -> String {
    format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' })
}

fn blob_location(stage: &Stage, response: &Response, digest: &str) {
    assert_eq!(response.status(), 201, "{stage}");
    assert_eq!(header(response, "location"), stage.at(&format!("blobs/{digest}")), "{stage}");
    assert_eq!(header(response, "docker-content-digest"), digest, "{stage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn push_monolithic_post_must_be_202_with_a_location_and_its_put_201_with_the_blobs_location() {
    for stage in stages(840).await {
        let bytes = random_bytes(8400, 3 * MIB);
        let digest = digest_of(&bytes);
        let location = stage.begin().await;
        let put = stage.go_on(Method::PUT, &finish(&location, &digest));
        let put = put.header("content-type", "application/octet-stream").body(bytes.clone()).send().await.unwrap();
        blob_location(&stage, &put, &digest);
        stage.must_have(&digest, &bytes).await;
        let gone = stage.go_on(Method::PUT, &finish(&location, &digest)).send().await.unwrap();
        assert_eq!((gone.status().as_u16(), code(gone).await.as_str()), (404, "BLOB_UPLOAD_UNKNOWN"), "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_a_single_post_must_be_201_or_202_to_go_on() {
    for stage in stages(841).await {
        let bytes = random_bytes(8410, MIB);
        let digest = digest_of(&bytes);
        let post = stage.call(Method::POST, &stage.at(&format!("blobs/uploads/?digest={digest}")));
        let post = post.header("content-type", "application/octet-stream").body(bytes.clone()).send().await.unwrap();
        if post.status() == 202 {
            assert!(!stage.is_double());
            let location = header(&post, "location").to_owned();
            let put = stage.go_on(Method::PUT, &finish(&location, &digest)).body(bytes.clone()).send().await.unwrap();
            blob_location(&stage, &put, &digest);
        } else {
            blob_location(&stage, &post, &digest);
        }
        stage.must_have(&digest, &bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_chunks_must_be_202_with_location_and_range_and_end_with_201() {
    for stage in stages(842).await {
        let bytes = random_bytes(8420, 2 * MIB + 17);
        let digest = digest_of(&bytes);
        let mut location = stage.begin().await;
        let mut from = 0;
        for chunk in bytes.chunks(MIB as usize).take(2) {
            let to = from + chunk.len() - 1;
            let patch = stage.go_on(Method::PATCH, &location).header("content-range", format!("{from}-{to}"));
            let patch = patch.body(chunk.to_vec()).send().await.unwrap();
            assert_eq!(
                (patch.status().as_u16(), header(&patch, "range")),
                (202, format!("0-{to}").as_str()),
                "{stage}"
            );
            header(&patch, "location").clone_into(&mut location);
            from = to + 1;
        }
        let put = stage.go_on(Method::PUT, &finish(&location, &digest));
        let put = put.header("content-range", format!("{from}-{}", bytes.len() - 1)).body(bytes[from..].to_vec());
        blob_location(&stage, &put.send().await.unwrap(), &digest);
        stage.must_have(&digest, &bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_a_chunk_out_of_order_must_be_416_and_the_upload_can_be_asked_where_it_is() {
    for stage in stages(843).await {
        let bytes = random_bytes(8430, 1000);
        let digest = digest_of(&bytes);
        let location = stage.begin().await;
        let send = async |location: &str, from: usize, to: usize| {
            let patch = stage.go_on(Method::PATCH, location).header("content-range", format!("{from}-{}", to - 1));
            patch.body(bytes[from..to].to_vec()).send().await.unwrap()
        };
        let early = send(&location, 400, 1000).await;
        assert_eq!((early.status().as_u16(), code(early).await.as_str()), (416, "BLOB_UPLOAD_INVALID"), "{stage}");
        assert_eq!(send(&location, 0, 400).await.status(), 202, "{stage}");
        assert_eq!(send(&location, 0, 400).await.status(), 416, "{stage}: twice");
        let status = stage.go_on(Method::GET, &location).send().await.unwrap();
        assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-399"), "{stage}");
        let location = header(&status, "location").to_owned();
        assert_eq!(send(&location, 400, 1000).await.status(), 202, "{stage}");
        let put = stage.go_on(Method::PUT, &finish(&location, &digest)).send().await.unwrap();
        blob_location(&stage, &put, &digest);
        stage.must_have(&digest, &bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_hostile_content_ranges_are_refused_and_the_upload_goes_on() {
    let (stage, double) = modern(844).await;
    let location = stage.begin().await;
    double.forget();
    for range in ["", "x", "bytes 0-4/5", "4-0", "0-99999999999999999999", "0-3", "0-5"] {
        let patch = stage.go_on(Method::PATCH, &location).header("content-range", range).body("12345");
        assert_eq!(patch.send().await.unwrap().status(), 400, "{range}");
    }
    assert_eq!(double.requests().len(), 0);
    let patch = stage.go_on(Method::PATCH, &location).header("content-range", "0-4").body("12345");
    assert_eq!(patch.send().await.unwrap().status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_a_blob_that_is_not_its_digest_must_be_refused_and_is_nowhere() {
    for stage in stages(845).await {
        let digest = digest_of(b"something else");
        for query in
            [finish(&stage.begin().await, &digest), finish(&stage.begin().await, "latest"), stage.begin().await]
        {
            let put = stage.go_on(Method::PUT, &query).body("these bytes").send().await.unwrap();
            assert_eq!((put.status().as_u16(), code(put).await.as_str()), (400, "DIGEST_INVALID"), "{stage} {query}");
        }
        assert_eq!(stage.daemon.try_blob(REPOSITORY, &digest).await.0, 404, "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_a_mount_must_be_201_or_an_upload_that_goes_on() {
    for stage in stages(846).await {
        let blob = layer(&stage.image);
        let other = "/v2/origin.test/other/repository";
        for (from, statuses) in [
            (format!("origin.test/{REPOSITORY}"), &[201][..]),
            (REPOSITORY.to_owned(), &[201]),
            (String::from("elsewhere.test/x"), &[201, 202]),
        ] {
            let path = format!("{other}/blobs/uploads/?mount={}&from={from}", blob.digest);
            let post = stage.call(Method::POST, &path).send().await.unwrap();
            assert!(statuses.contains(&post.status().as_u16()), "{stage} {from}: {}", post.status());
            if post.status() == 201 {
                assert_eq!(header(&post, "location"), format!("{other}/blobs/{}", blob.digest), "{stage}");
            }
        }
        assert!(stage.origin.has(&format!("/v2/other/repository/blobs/{}", blob.digest)).await, "{stage}");
        let path = format!("{other}/blobs/uploads/?mount={}&from=origin.test/{REPOSITORY}", unknown());
        let post = stage.call(Method::POST, &path).send().await.unwrap();
        assert_eq!(post.status(), 202, "{stage}: nothing to mount");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_manifests_put_must_be_201_with_a_location_and_the_tag_is_served_at_once() {
    for stage in stages(847).await {
        // The old meaning of the tag is remembered when the new one comes.
        let _ = stage.daemon.get(&stage.at("manifests/v1")).send().await.unwrap();
        let manifest = &stage.image.native().manifest;
        for reference in [manifest.digest.as_str(), "v1", "new"] {
            let put = stage.call(Method::PUT, &stage.at(&format!("manifests/{reference}")));
            let put = put.header("content-type", media::MANIFEST).body(manifest.bytes.clone()).send().await.unwrap();
            assert_eq!(put.status(), 201, "{stage} {reference}");
            assert_eq!(header(&put, "location"), stage.at(&format!("manifests/{reference}")));
            assert_eq!(header(&put, "docker-content-digest"), manifest.digest);
            let got = stage.daemon.get(&stage.at(&format!("manifests/{reference}"))).send().await.unwrap();
            assert_eq!(got.bytes().await.unwrap(), manifest.bytes, "{stage} {reference}");
        }
        assert!(stage.origin.has(&format!("/v2/{REPOSITORY}/manifests/new")).await, "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_manifests_that_are_wrong_must_be_refused() {
    for stage in stages(848).await {
        let manifest = &stage.image.native().manifest;
        let text = String::from_utf8(manifest.bytes.to_vec()).unwrap();
        let missing = text.replace(&layer(&stage.image).digest, &unknown());
        let both = r#"{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}"#.to_owned();
        let large = format!("{text}{}", " ".repeat(4 * MIB as usize));
        for (reference, media_type, body, status, code) in [
            (unknown(), media::MANIFEST, text.clone(), 400, "DIGEST_INVALID"),
            (String::from("v2"), media::INDEX, text.clone(), 400, "MANIFEST_INVALID"),
            (String::from("v2"), media::MANIFEST, both, 400, "MANIFEST_INVALID"),
            (String::from("v2"), media::MANIFEST, large, 413, "SIZE_INVALID"),
            (String::from("v2"), media::MANIFEST, missing, 404, "MANIFEST_BLOB_UNKNOWN"),
        ] {
            let put = stage.call(Method::PUT, &stage.at(&format!("manifests/{reference}")));
            let put = put.header("content-type", media_type).body(body).send().await.unwrap();
            // Distribution says 400 for a blob that it does not have.
            let allowed = put.status().as_u16() == status || (status == 404 && put.status() == 400);
            assert!(allowed, "{stage} {reference} {code}: {}", put.status());
            assert_eq!(super::code(put).await, code, "{stage} {reference}");
        }
        assert!(!stage.origin.has(&format!("/v2/{REPOSITORY}/manifests/v2")).await, "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_an_upload_can_be_cancelled_and_nothing_can_be_deleted() {
    for stage in stages(849).await {
        let location = stage.begin().await;
        assert_eq!(stage.go_on(Method::DELETE, &location).send().await.unwrap().status(), 204, "{stage}");
        assert_eq!(stage.go_on(Method::GET, &location).send().await.unwrap().status(), 404, "{stage}");
        let blob = format!("blobs/{}", layer(&stage.image).digest);
        for path in ["manifests/v1", &blob] {
            let delete = stage.call(Method::DELETE, &stage.at(path)).send().await.unwrap();
            assert_eq!((delete.status().as_u16(), code(delete).await.as_str()), (405, "UNSUPPORTED"), "{stage}");
        }
        assert!(stage.origin.has(&format!("/v2/{REPOSITORY}/manifests/v1")).await, "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_existence_is_that_of_the_repository_at_the_origin_and_not_of_this_node() {
    let (stage, double) = modern(850).await;
    let bytes = random_bytes(8500, 1000);
    let digest = digest_of(&bytes);
    let put = stage.go_on(Method::PUT, &finish(&stage.begin().await, &digest)).body(bytes).send().await.unwrap();
    assert_eq!(put.status(), 201);
    let head = async || stage.daemon.head(&stage.at(&format!("blobs/{digest}"))).send().await.unwrap().status();
    assert_eq!(head().await, 200);
    double.misbehave(&digest, Fault::Status(404));
    assert_eq!(head().await, 404, "a client that is told it is there would not send it");
}

#[tokio::test(flavor = "multi_thread")]
async fn push_sha512_and_the_least_length_of_a_chunk_are_passed_through() {
    let (stage, double) = modern(851).await;
    let bytes = random_bytes(8510, MIB);
    let digest = sha512_of(&bytes);
    let post = stage.call(Method::POST, &stage.at("blobs/uploads/?digest-algorithm=sha512")).send().await.unwrap();
    assert_eq!((post.status().as_u16(), header(&post, "oci-chunk-min-length")), (202, "16"));
    let patch = stage.go_on(Method::PATCH, header(&post, "location")).body(bytes.clone()).send().await.unwrap();
    let put = stage.go_on(Method::PUT, &finish(header(&patch, "location"), &digest)).send().await.unwrap();
    blob_location(&stage, &put, &digest);
    assert!(double.content(&digest).unwrap() == bytes);
    double.forget();
    assert!(stage.daemon.blob(REPOSITORY, &digest).await == bytes);
    assert_eq!(double.gets("/blobs/").len(), 0, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn push_an_upload_goes_on_nowhere_but_at_its_registry() {
    let (stage, double) = modern(852).await;
    let trap = shoal_tests::origin::OriginDouble::start().await;
    for location in [
        trap.url(),
        format!("//{}/v2/x", trap.address()),
        String::from("http://169.254.169.254/latest"),
        String::from("file:///etc/passwd"),
        format!("http://user:word@{}/x", double.address()),
    ] {
        double.send_uploads_to(&location);
        let post = stage.call(Method::POST, &stage.at("blobs/uploads/")).send().await.unwrap();
        assert_eq!((post.status().as_u16(), header(&post, "location")), (503, ""), "{location}");
    }
    assert_eq!(trap.requests().len(), 0);
    for id in ["1", "../../x", "%2e%2e", &"f".repeat(32), &format!("http:%2f%2f{}", trap.address())] {
        let patch =
            stage.call(Method::PATCH, &stage.at(&format!("blobs/uploads/{id}"))).body("x").send().await.unwrap();
        assert!([404, 405].contains(&patch.status().as_u16()), "{id}: {}", patch.status());
    }
    assert_eq!(trap.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_an_upload_belongs_to_its_repository() {
    let (stage, _double) = modern(853).await;
    let location = stage.begin().await;
    let other = location.replace(REPOSITORY, "other/app");
    assert_eq!(stage.call(Method::PATCH, &other).body("x").send().await.unwrap().status(), 404);
    assert_eq!(stage.go_on(Method::PATCH, &location).body("x").send().await.unwrap().status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_shows_the_nodes_account_and_the_clients_own_where_it_sends_one() {
    for auth in [Auth::Basic("alice", "secret"), Auth::Bearer("alice", "secret")] {
        let (_, double) = modern(854).await;
        double.require(auth.clone());
        let (_directory, settings) = pushing(&double.url(), "username = \"alice\"\npassword = \"secret\"\n");
        let daemon = shoal_tests::daemon::Daemon::start(settings).await;
        let bytes = random_bytes(8540, MIB);
        let digest = digest_of(&bytes);
        let path = format!("http://{}/v2/origin.test/{REPOSITORY}/blobs/uploads/?digest={digest}", daemon.registry());
        let client = shoal_tests::daemon::client();
        let put = client.post(&path).body(bytes.clone()).send().await.unwrap();
        assert_eq!(put.status(), 201, "{auth:?}");
        assert!(double.content(&digest).unwrap() == bytes);
        let put = client.post(&path).basic_auth("mallory", Some("guess")).body(bytes).send().await.unwrap();
        assert_eq!(
            (put.status().as_u16(), code(put).await.as_str()),
            (403, "DENIED"),
            "{auth:?}: not with our account"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_trouble_at_the_origin_never_becomes_429_408_or_a_challenge() {
    let (stage, double) = modern(855).await;
    let trap = shoal_tests::origin::OriginDouble::start().await;
    for (fault, expected) in [
        (Fault::TooManyRequests(7), 503),
        (Fault::Status(408), 503),
        (Fault::Status(500), 503),
        (Fault::Status(401), 403),
        (Fault::Status(403), 403),
        (Fault::Status(413), 413),
        (Fault::RedirectTo(trap.address()), 503),
    ] {
        let location = stage.begin().await;
        double.misbehave("/blobs/uploads/", fault.clone());
        double.misbehave("/manifests/", fault.clone());
        let manifest = &stage.image.native().manifest;
        for request in [
            stage.call(Method::POST, &stage.at("blobs/uploads/")),
            stage.go_on(Method::PATCH, &location).body("12345"),
            stage.go_on(Method::PUT, &finish(&location, &digest_of(b"12345"))).body("12345"),
            stage.call(Method::PUT, &stage.at("manifests/v1")).body(manifest.bytes.clone()),
        ] {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), expected, "{fault:?}");
            assert_eq!(header(&response, "www-authenticate"), "");
            assert!(!code(response).await.is_empty());
        }
        double.behave();
    }
    assert_eq!(trap.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn push_a_client_that_breaks_off_can_go_on_where_the_origin_is() {
    let (stage, double) = modern(856).await;
    let bytes = random_bytes(8560, MIB);
    let digest = digest_of(&bytes);
    let location = stage.begin().await;
    let patch = stage.go_on(Method::PATCH, &location).body(bytes[..1000].to_vec()).send().await.unwrap();
    assert_eq!(patch.status(), 202);
    // Announces more than it sends, and leaves.
    let address = stage.daemon.registry();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 500000\r\n\r\n");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let sent = [head.as_bytes(), &bytes[1000..300_000]].concat();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &sent).await.unwrap();
    drop(stream);
    let status = stage.go_on(Method::GET, &location).send().await.unwrap();
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-999"));
    let put = stage.go_on(Method::PUT, &finish(&location, &digest)).body(bytes[1000..].to_vec()).send().await.unwrap();
    blob_location(&stage, &put, &digest);
    assert!(double.content(&digest).unwrap() == bytes);
    assert!(stage.daemon.blob(REPOSITORY, &digest).await == bytes, "kept or not, it is right");
}
