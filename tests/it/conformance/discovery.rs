//! Section "Content Discovery": tags, referrers, and the catalog that registries have beside it.

use serde_json::{Value, json};
use shoal_tests::image::{Blob, media};

use super::{Stage, code, header, modern, stages, unknown};
use crate::REPOSITORY;

async fn list(stage: &Stage, path: &str) -> (Vec<String>, String) {
    let response = stage.daemon.get(path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{stage} {path}");
    assert_eq!(header(&response, "content-type"), "application/json");
    let link = header(&response, "link").to_owned();
    let document: Value = response.json().await.unwrap();
    let names = document.get("tags").or(document.get("repositories")).unwrap();
    (serde_json::from_value(names.clone()).unwrap(), link)
}

/// Gives the image more tags through the daemon.
async fn tag(stage: &Stage, tags: &[&str]) {
    for tag in tags {
        let manifest = &stage.image.index;
        let put = stage.call(reqwest::Method::PUT, &stage.at(&format!("manifests/{tag}")));
        let put = put.header("content-type", manifest.media_type).body(manifest.bytes.clone());
        assert_eq!(put.send().await.unwrap().status(), 201, "{stage} {tag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_tags_must_be_200_with_all_of_them_and_404_for_an_unknown_repository() {
    for stage in stages(820).await {
        tag(&stage, &["b", "a"]).await;
        for path in [stage.at("tags/list"), format!("/v2/{REPOSITORY}/tags/list?ns=origin.test")] {
            let (mut tags, link) = list(&stage, &path).await;
            tags.sort();
            assert_eq!((tags.join(" "), link.as_str()), ("a b v1".to_owned(), ""), "{stage}");
        }
        let response = stage.daemon.get("/v2/origin.test/no/such/tags/list").send().await.unwrap();
        assert_eq!(response.status(), 404, "{stage}");
        assert_eq!(code(response).await, "NAME_UNKNOWN");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_tags_must_not_exceed_n_and_the_link_should_lead_to_the_rest_through_us() {
    for stage in stages(821).await {
        tag(&stage, &["a", "b", "c", "d"]).await;
        for (start, namespace) in
            [(stage.at("tags/list"), ""), (format!("/v2/{REPOSITORY}/tags/list"), "&ns=origin.test")]
        {
            let (mut path, mut all) = (format!("{start}?n=2{namespace}"), Vec::new());
            loop {
                let (tags, link) = list(&stage, &path).await;
                assert!(tags.len() <= 2, "{stage}: {tags:?}");
                all.extend(tags);
                let Some(next) = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")) else {
                    break;
                };
                assert!(next.starts_with(&start) && next.contains("ns=") != namespace.is_empty(), "{stage}: {next}");
                next.clone_into(&mut path);
            }
            assert_eq!(all, ["a", "b", "c", "d", "v1"], "{stage}");
            let (tags, _) = list(&stage, &format!("{start}?n=9&last=c{namespace}")).await;
            assert_eq!(tags, ["d", "v1"], "{stage}");
            let (tags, link) = list(&stage, &format!("{start}?n=0{namespace}")).await;
            assert_eq!((tags.len(), link.as_str()), (0, ""), "{stage}: of none there is no next page");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_hostile_questions_are_refused_without_asking_the_origin() {
    let (stage, double) = modern(822).await;
    double.forget();
    for query in ["n=-1", "n=x", "n=1&n=2", "last=a%0d%0aX:%20y", "last=%00", &format!("last={}", "x".repeat(300))] {
        let response = stage.daemon.get(&stage.at(&format!("tags/list?{query}"))).send().await.unwrap();
        assert_eq!(response.status(), 400, "{query}");
    }
    assert_eq!(double.requests().len(), 0);
    let (_, _) = list(&stage, &stage.at("tags/list?n=99999999999999999999")).await;
    assert_eq!(double.requests()[0].query, "n=1000", "nobody gets a list without end");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_a_hostile_link_of_the_origin_is_not_passed_on() {
    for link in [
        "<http://evil.test/v2/x/tags/list?last=a>; rel=\"next\"",
        "</v2/other/tags/list?last=a>; rel=\"next\"",
        "</v2/team/app/tags/list>; rel=\"next\"",
    ] {
        let (stage, double) = modern(823).await;
        double.link(link);
        let response = stage.daemon.get(&stage.at("tags/list")).send().await.unwrap();
        assert_eq!(response.status(), 503, "{link}");
        assert_eq!(header(&response, "link"), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_the_catalog_is_passed_through_with_its_pages() {
    for stage in stages(824).await {
        let (names, _) = list(&stage, "/v2/origin.test/_catalog").await;
        assert_eq!(names, [REPOSITORY], "{stage}");
        let (names, _) = list(&stage, "/v2/_catalog?n=5&ns=origin.test").await;
        assert_eq!(names, [REPOSITORY], "{stage}");
    }
}

/// A manifest that refers to the image.
fn artifact(stage: &Stage, artifact_type: &str) -> Blob {
    let config = &stage.image.native().config;
    let document = json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "artifactType": artifact_type,
        "config": config.descriptor(),
        "layers": [],
        "subject": stage.image.index.descriptor(),
    });
    Blob::new(media::MANIFEST, serde_json::to_vec(&document).unwrap())
}

async fn referrers(stage: &Stage, query: &str) -> (Vec<String>, String) {
    let path = stage.at(&format!("referrers/{}{query}", stage.image.index.digest));
    let response = stage.daemon.get(&path).send().await.unwrap();
    assert_eq!((response.status().as_u16(), header(&response, "content-type")), (200, media::INDEX), "{stage} {query}");
    let filters = header(&response, "oci-filters-applied").to_owned();
    let index: Value = response.json().await.unwrap();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(media::INDEX)));
    let manifests = index["manifests"].as_array().unwrap();
    (manifests.iter().map(|manifest| manifest["artifactType"].as_str().unwrap().to_owned()).collect(), filters)
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_referrers_must_be_an_index_and_not_404_even_if_there_are_none() {
    for stage in stages(825).await {
        assert_eq!(referrers(&stage, "").await, (Vec::new(), String::new()), "{stage}");
        assert_eq!(referrers(&stage, "?artifactType=a/b").await, (Vec::new(), String::from("artifactType")), "{stage}");
        let path = stage.at(&format!("referrers/{}", unknown()));
        assert_eq!(stage.daemon.head(&path).send().await.unwrap().status(), 200, "{stage}");
        let malformed = stage.daemon.get(&stage.at("referrers/latest")).send().await.unwrap();
        assert_eq!(malformed.status(), 400, "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_referrers_should_be_filtered_by_artifact_type_and_say_so() {
    for stage in stages(826).await {
        let artifacts = ["application/a", "application/b"].map(|kind| artifact(&stage, kind));
        for artifact in &artifacts {
            let put = stage.call(reqwest::Method::PUT, &stage.at(&format!("manifests/{}", artifact.digest)));
            let put =
                put.header("content-type", artifact.media_type).body(artifact.bytes.clone()).send().await.unwrap();
            assert_eq!(put.status(), 201, "{stage}");
            // A registry that knows of subjects says so; else the client keeps the list itself.
            let subject = if stage.is_double() { stage.image.index.digest.as_str() } else { "" };
            assert_eq!(header(&put, "oci-subject"), subject, "{stage}");
        }
        if !stage.is_double() {
            let entries = artifacts.iter().zip(["application/a", "application/b"]).map(|(artifact, kind)| {
                let mut entry = artifact.descriptor();
                entry["artifactType"] = json!(kind);
                entry
            });
            let index =
                json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": entries.collect::<Vec<_>>() });
            let tag = stage.image.index.digest.replace(':', "-");
            let put = stage.call(reqwest::Method::PUT, &stage.at(&format!("manifests/{tag}")));
            let put = put.header("content-type", media::INDEX).body(index.to_string()).send().await.unwrap();
            assert_eq!(put.status(), 201);
        }
        let (mut all, filters) = referrers(&stage, "").await;
        all.sort();
        assert_eq!((all.join(" "), filters.as_str()), (String::from("application/a application/b"), ""), "{stage}");
        let (some, filters) = referrers(&stage, "?artifactType=application/b").await;
        assert_eq!((some.join(" "), filters.as_str()), (String::from("application/b"), "artifactType"), "{stage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_discovery_questions_that_come_together_are_one_at_the_origin() {
    let (stage, double) = modern(827).await;
    double.forget();
    let path = stage.at("tags/list?n=7");
    let asked = futures_util::future::join_all((0..30).map(|_| stage.daemon.get(&path).send())).await;
    assert!(asked.into_iter().all(|response| response.unwrap().status() == 200));
    assert_eq!(double.gets("/tags/list").len(), 1);
}
