//! Lists, warnings, and tags while the origin is down.

use super::*;
use crate::origin::{List, warning};

/// A list as an origin would give it.
fn list(body: &str, next: Option<&str>) -> List {
    let warnings = warning("gone soon").into_iter().collect();
    List { body: Bytes::copy_from_slice(body.as_bytes()), next: next.map(str::to_owned), filtered: false, warnings }
}

#[tokio::test]
async fn a_list_is_passed_through_with_a_link_that_leads_through_us_and_costs_the_origin_one_question() {
    let fake = Fake::default()
        .with_list("team/x", "n=2", list(r#"{"name":"team/x","tags":["a","b"]}"#, Some("last=b&n=2")))
        .with_list("team/x", "last=b&n=2", list(r#"{"name":"team/x","tags":["c"]}"#, None))
        .with_list("", "", list(r#"{"repositories":["team/x"]}"#, None));
    let front = Front::with(fake, |config| config.default_upstream = Some(String::from("docker.io"))).await;
    for (path, ns) in
        [("/v2/registry.test:5000/team/x/tags/list", ""), ("/v2/team/x/tags/list", "ns=registry.test%3A5000")]
    {
        for method in ["GET", "HEAD", "GET"] {
            let reply = front.ask(method, &format!("{path}?n=2&{ns}"), &[]).await;
            let link = format!("<{path}?last=b&n=2{}{ns}>; rel=\"next\"", if ns.is_empty() { "" } else { "&" });
            assert_eq!((reply.status, reply.header("Link")), (200, Some(link.as_str())));
            assert_eq!(reply.header("Content-Type"), Some("application/json"));
            assert_eq!(reply.header("Warning"), Some(r#"299 - "gone soon""#));
            assert_eq!(reply.header("Content-Length"), Some("34"));
            assert_eq!(reply.body.is_empty(), method == "HEAD");
            assert_eq!(reply.header("OCI-Namespace").is_some(), !ns.is_empty());
        }
        let last = front.get(&format!("{path}?last=b&n=2&{ns}")).await;
        assert_eq!((last.status, last.header("Link")), (200, None));
        assert_eq!(last.body, br#"{"name":"team/x","tags":["c"]}"#);
    }
    assert_eq!(front.fake.listed.load(Relaxed), 2, "each page once");
    for path in ["/v2/_catalog", "/v2/registry.test:5000/_catalog", "/v2/_catalog?ns=docker.io"] {
        assert_eq!(front.get(path).await.body, br#"{"repositories":["team/x"]}"#, "{path}");
    }
}

#[tokio::test]
async fn a_list_that_fails_or_is_none_makes_clients_fall_back() {
    for (body, status) in [("<html>", 503), ("{}", 503), (r#"{"tags":[{}]}"#, 503)] {
        let front = Front::new(Fake::default().with_list("x", "", list(body, None))).await;
        let reply = front.get("/v2/x/tags/list?ns=registry.test:5000").await;
        assert_eq!((reply.status, reply.code().as_str()), (status, "UNAVAILABLE"));
    }
    let host = || String::from("registry.test");
    for (error, status, code) in [
        (OriginError::NotFound { host: host() }, 404, "NAME_UNKNOWN"),
        (OriginError::Denied { host: host() }, 404, "NAME_UNKNOWN"),
        (OriginError::RateLimited { host: host(), retry_after: None }, 503, "UNAVAILABLE"),
    ] {
        let front = Front::new(Fake::default().origin_failing(error)).await;
        for path in ["docker.io/x/tags/list", "docker.io/_catalog", &format!("docker.io/x/referrers/{}", digest(b""))] {
            let reply = front.get(&format!("/v2/{path}")).await;
            assert_eq!((reply.status, reply.code().as_str()), (status, code), "{path}");
        }
    }
}

#[tokio::test]
async fn referrers_are_an_index_even_if_there_are_none() {
    let subject = digest(INDEX);
    let one = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"artifactType":"a/b"}]}"#;
    let fake = Fake::default()
        .with_list("library/x", "", List::default())
        .with_list("library/x", "artifactType=a%2Fb", list(one, None))
        .with_list("library/x", "artifactType=c%2Fd", list(one, None));
    let front = Front::new(fake).await;
    let path = format!("/v2/docker.io/x/referrers/{subject}");
    for (query, filtered, count) in
        [("", None, 0), ("?artifactType=a/b", Some("artifactType"), 1), ("?artifactType=c/d", Some("artifactType"), 0)]
    {
        let reply = front.get(&format!("{path}{query}")).await;
        assert_eq!((reply.status, reply.header("Content-Type")), (200, Some(OCI_INDEX)));
        assert_eq!(reply.header("OCI-Filters-Applied"), filtered);
        let index: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), count, "{query}");
    }
}

#[tokio::test]
async fn the_warnings_of_the_origin_reach_whoever_asks_by_tag() {
    let front = Front::new(Fake::default().with_tag("v1", INDEX).warning("gone \"soon\"")).await;
    let path = "/v2/docker.io/x/manifests/v1";
    let tag = format!("\"{}\"", digest(INDEX));
    for (method, headers, status) in
        [("GET", &[][..], 200), ("HEAD", &[], 200), ("GET", &[("If-None-Match", tag.as_str())], 304)]
    {
        let reply = front.ask(method, path, headers).await;
        assert_eq!((reply.status, reply.header("Warning")), (status, Some(r#"299 - "gone \"soon\"""#)));
    }
    let by_digest = front.get(&format!("/v2/docker.io/x/manifests/{}", digest(INDEX))).await;
    assert_eq!((by_digest.status, by_digest.header("Warning")), (200, None), "the origin was not asked");
}

#[tokio::test]
async fn while_the_origin_is_down_a_tag_is_served_with_a_warning_if_that_is_configured() {
    for (stale_if_error, status) in [(Duration::ZERO, 503), (Duration::from_secs(3600), 200)] {
        let fake = Fake::default().with_tag("v1", INDEX);
        let front = Front::with(fake, |config| {
            (config.tag_ttl, config.stale_if_error) = (Duration::ZERO, stale_if_error);
        });
        let front = front.await;
        let path = "/v2/docker.io/x/manifests/v1";
        assert_eq!(front.get(path).await.header("Warning"), None);
        front.fake.down.store(true, Relaxed);
        for method in ["HEAD", "GET"] {
            let reply = front.ask(method, path, &[]).await;
            assert_eq!(reply.status, status);
            let warned =
                reply.header("Warning").is_some_and(|text| text.starts_with("299 - \"docker.io cannot be asked"));
            assert_eq!(warned, status == 200);
        }
        front.fake.down.store(false, Relaxed);
        assert_eq!(front.get(path).await.header("Warning"), None, "the origin is back");
    }
}
