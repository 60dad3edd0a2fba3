//! Sections "Pull", "Error Codes" and "Warnings".

use shoal_tests::image::media;

use super::{code, header, layer, modern, stages, unknown};
use crate::{MIB, REPOSITORY};

#[tokio::test(flavor = "multi_thread")]
async fn pull_manifests_get_must_be_200_with_the_manifest_and_404_if_there_is_none() {
    for stage in stages(800).await {
        for reference in ["v1", &stage.image.index.digest, &stage.image.native().manifest.digest] {
            let response = stage.daemon.get(&stage.at(&format!("manifests/{reference}"))).send().await.unwrap();
            assert_eq!(response.status(), 200, "{reference}");
            let expected =
                stage.image.manifests().find(|manifest| manifest.digest == header(&response, "docker-content-digest"));
            let expected = expected.expect("the digest header names what was asked for");
            assert_eq!(header(&response, "content-type"), expected.media_type, "{reference}");
            assert_eq!(response.bytes().await.unwrap(), expected.bytes, "{reference}");
        }
        for reference in ["none", ".INVALID_MANIFEST_NAME", &unknown()] {
            let response = stage.daemon.get(&stage.at(&format!("manifests/{reference}"))).send().await.unwrap();
            assert_eq!(response.status(), 404, "{reference}");
            assert_eq!(code(response).await, "MANIFEST_UNKNOWN", "{reference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_existing_head_must_be_200_with_digest_and_length_or_404() {
    for stage in stages(801).await {
        let (index, layer) = (&stage.image.index, layer(&stage.image));
        for (path, digest, size) in [
            ("manifests/v1".to_owned(), &index.digest, index.size()),
            (format!("manifests/{}", index.digest), &index.digest, index.size()),
            (format!("blobs/{}", layer.digest), &layer.digest, layer.size()),
        ] {
            let response = stage.daemon.head(&stage.at(&path)).send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            assert_eq!(header(&response, "docker-content-digest"), digest, "{path}");
            assert_eq!(header(&response, "content-length"), size.to_string(), "{path}");
            assert!(response.bytes().await.unwrap().is_empty());
        }
        for path in ["manifests/none".to_owned(), format!("manifests/{}", unknown()), format!("blobs/{}", unknown())] {
            assert_eq!(stage.daemon.head(&stage.at(&path)).send().await.unwrap().status(), 404, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_blobs_get_must_be_200_with_the_digest_and_its_bytes_and_404_if_there_is_none() {
    for stage in stages(802).await {
        for blob in stage.image.blobs() {
            let response = stage.daemon.get(&stage.at(&format!("blobs/{}", blob.digest))).send().await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(header(&response, "docker-content-digest"), blob.digest);
            assert!(response.bytes().await.unwrap() == blob.bytes, "{}", blob.digest);
        }
        let response = stage.daemon.get(&stage.at(&format!("blobs/{}", unknown()))).send().await.unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(code(response).await, "BLOB_UNKNOWN");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_blobs_get_should_support_ranges_as_rfc_9110_says() {
    for stage in stages(803).await {
        let blob = layer(&stage.image);
        let (path, size) = (stage.at(&format!("blobs/{}", blob.digest)), blob.size());
        for (range, from, to) in
            [("0-0", 0, 1), ("5-", 5, size), ("5-99", 5, 100), ("-500", size - 500, size), ("9-99999999999", 9, size)]
        {
            let request = stage.daemon.get(&path).header("range", format!("bytes={range}"));
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 206, "{range}");
            assert_eq!(header(&response, "content-range"), format!("bytes {from}-{}/{size}", to - 1), "{range}");
            assert!(response.bytes().await.unwrap() == blob.bytes[from as usize..to as usize], "{range}");
        }
        for range in [format!("{size}-"), String::from("500-0")] {
            let response = stage.daemon.get(&path).header("range", format!("bytes={range}")).send().await.unwrap();
            assert_eq!(response.status(), 416, "{range}");
            assert_eq!(header(&response, "content-range"), format!("bytes */{size}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_what_the_client_has_is_not_sent_again() {
    for stage in stages(804).await {
        for path in [format!("blobs/{}", layer(&stage.image).digest), "manifests/v1".to_owned()] {
            let path = stage.at(&path);
            let tag = stage.daemon.get(&path).send().await.unwrap().headers()["etag"].clone();
            for request in [stage.daemon.get(&path), stage.daemon.head(&path)] {
                let again = request.header("if-none-match", &tag).send().await.unwrap();
                assert_eq!((again.status().as_u16(), &again.headers()["etag"]), (304, &tag), "{path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_a_malformed_digest_must_be_refused_and_reaches_no_origin() {
    let (stage, double) = modern(805).await;
    double.forget();
    for digest in
        ["sha256:baddigeststring", &format!("sha256:{}", "A".repeat(64)), &format!("sha384:{}", "0".repeat(96))]
    {
        for kind in ["blobs", "manifests", "referrers"] {
            let response = stage.daemon.get(&stage.at(&format!("{kind}/{digest}"))).send().await.unwrap();
            assert_eq!(response.status(), 400, "{kind}/{digest}");
            assert_eq!(code(response).await, "DIGEST_INVALID");
        }
    }
    assert_eq!(double.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_digests_may_be_sha512() {
    let (stage, double) = modern(806).await;
    let bytes = shoal_tests::image::random_bytes(8060, MIB);
    let digest = super::push::sha512_of(&bytes);
    double.offer_content(&digest, bytes.clone().into(), "application/octet-stream");
    let response = stage.daemon.get(&stage.at(&format!("blobs/{digest}"))).send().await.unwrap();
    assert_eq!((response.status().as_u16(), header(&response, "docker-content-digest")), (200, digest.as_str()));
    assert!(response.bytes().await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_a_manifest_whose_media_type_is_another_than_its_content_type_is_refused_and_not_remembered() {
    let (stage, double) = modern(807).await;
    for (number, document) in [
        format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, media::INDEX),
        r#"{"schemaVersion":2,"manifests":[],"config":{},"layers":[]}"#.to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let digest = shoal_tests::image::digest_of(document.as_bytes());
        double.offer_content(&digest, document.into(), media::MANIFEST);
        double.tag(REPOSITORY, &format!("odd{number}"), &digest);
        for _ in 0..2 {
            double.forget();
            let response = stage.daemon.get(&stage.at(&format!("manifests/odd{number}"))).send().await.unwrap();
            assert_eq!(response.status(), 400);
            assert_eq!(code(response).await, "MANIFEST_INVALID");
            assert!(!double.requests().is_empty(), "asked again");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_should_reach_the_client_in_their_one_form_and_within_4096_bytes() {
    let (stage, double) = modern(808).await;
    let long = format!("299 - \"{}\"", "x".repeat(3000));
    double.warn(&["299 - \"gone \\\"soon\\\"\"", "299 example.com \"not of the form\"", &long, &long]);
    let referrers = format!("referrers/{}", stage.image.index.digest);
    for path in ["manifests/v1", "tags/list", &referrers] {
        for request in [stage.daemon.get(&stage.at(path)), stage.daemon.head(&stage.at(path))] {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            let warnings: Vec<_> = response.headers().get_all("warning").iter().collect();
            assert_eq!(warnings, ["299 - \"gone \\\"soon\\\"\"", long.as_str()], "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_outlives_its_origin_if_that_is_configured_and_is_marked_so() {
    for (argument, status) in [("--stale-if-error=1h", 200), ("--stale-if-error=0", 503)] {
        let (mut double, image) = crate::origin_with(809, &[10]).await;
        let settings = crate::settings(&double.url()).with("--tag-ttl=0s").with(argument);
        let daemon = shoal_tests::daemon::Daemon::start(settings).await;
        let path = crate::manifest_path("v1");
        let fresh = daemon.get(&path).send().await.unwrap();
        assert_eq!((fresh.status().as_u16(), header(&fresh, "warning")), (200, ""));
        double.down().await;
        let stale = daemon.get(&path).send().await.unwrap();
        assert_eq!(stale.status(), status, "{argument}");
        let marked = header(&stale, "warning").starts_with("299 - \"origin.test cannot be asked");
        assert_eq!(marked, status == 200, "{argument}");
        if status == 200 {
            assert_eq!(header(&stale, "docker-content-digest"), image.index.digest);
        }
    }
}
