//! Refusals of pushes; what they do is shown by the integration tests, before real registries.

use super::*;

#[tokio::test]
async fn nothing_is_pushed_to_an_upstream_that_does_not_allow_it() {
    let front = Front::new(Fake::default()).await;
    for (method, path) in [
        ("POST", "/v2/docker.io/x/blobs/uploads/"),
        ("POST", "/v2/docker.io/x/blobs/uploads/?digest=x"),
        ("PATCH", "/v2/docker.io/x/blobs/uploads/1"),
        ("PUT", "/v2/docker.io/x/blobs/uploads/1?digest=x"),
        ("DELETE", "/v2/docker.io/x/blobs/uploads/1"),
        ("PUT", "/v2/docker.io/x/manifests/v1"),
        ("DELETE", "/v2/docker.io/x/manifests/v1"),
    ] {
        let reply = front.ask(method, path, &[]).await;
        assert_eq!((reply.status, reply.code().as_str()), (405, "UNSUPPORTED"), "{method} {path}");
    }
    assert_eq!(front.fake.pushed.load(Relaxed), 0);
}

fn pushing(config: &mut RegistryConfig) {
    let name = "registry.test:5000";
    config.upstreams.insert(name.to_owned(), fake::upstream_with_push(name));
}

#[tokio::test]
async fn a_push_that_fails_is_told_truthfully_and_never_with_a_challenge() {
    let host = || String::from("registry.test");
    for (error, status, code) in [
        (OriginError::NotFound { host: host() }, 404, "NAME_UNKNOWN"),
        (OriginError::Denied { host: host() }, 403, "DENIED"),
        (OriginError::RateLimited { host: host(), retry_after: None }, 503, "UNAVAILABLE"),
        (OriginError::Unavailable { host: host(), why: host() }, 503, "UNAVAILABLE"),
    ] {
        let front = Front::with(Fake::default().origin_failing(error), pushing).await;
        let reply = front.ask("POST", "/v2/registry.test:5000/x/blobs/uploads/", &[]).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code));
        assert_eq!(reply.header("WWW-Authenticate"), None);
    }
}

#[tokio::test]
async fn a_push_that_makes_no_sense_is_refused_without_asking_anybody() {
    let front = Front::with(Fake::default(), pushing).await;
    let at = |rest: &str| format!("/v2/registry.test:5000/x/{rest}");
    let sha = digest(b"");
    for (method, path, headers, status, code) in [
        ("PATCH", at("blobs/uploads/1"), &[][..], 404, "BLOB_UPLOAD_UNKNOWN"),
        ("PUT", at(&format!("blobs/uploads/http://evil.test/?digest={sha}")), &[], 405, "UNSUPPORTED"),
        ("GET", at("blobs/uploads/..%2f..%2fetc"), &[], 404, "BLOB_UPLOAD_UNKNOWN"),
        ("POST", at("blobs/uploads/?digest=latest"), &[], 400, "DIGEST_INVALID"),
        ("DELETE", at("manifests/v1"), &[], 405, "UNSUPPORTED"),
        ("DELETE", at(&format!("blobs/{sha}")), &[], 405, "UNSUPPORTED"),
        ("PUT", at("manifests/v1"), &[("Content-Length", "4194305")], 413, "SIZE_INVALID"),
        ("POST", at("blobs/uploads/"), &[("Origin", "http://evil.example")], 403, "DENIED"),
        ("POST", at("blobs/uploads/"), &[("Host", "evil.example")], 421, "DENIED"),
    ] {
        let reply = front.ask(method, &path, headers).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{method} {path}");
        assert_eq!(front.fake.pushed.load(Relaxed), 0, "{method} {path}");
    }
}

#[tokio::test]
async fn what_a_client_pushes_by_its_own_account_is_kept_only_if_this_node_may_have_it_too() {
    let manifest = ("PUT", String::from("/v2/registry.test:5000/x/manifests/v1"), INDEX);
    let blob = ("POST", format!("/v2/registry.test:5000/x/blobs/uploads/?digest={}", digest(BLOB)), BLOB);
    for (method, path, body) in [manifest, blob] {
        for (account, given, kept) in
            [("", false, 1), ("Authorization: Basic YTpi\r\n", false, 0), ("Authorization: Basic YTpi\r\n", true, 1)]
        {
            let directory = tempfile::tempdir().unwrap();
            let fake = Fake::default().taking(crate::store::Store::open(directory.path()).unwrap());
            // Content that it has is what the origin gives to this node.
            let front = Front::with(if given { fake.with_content(body) } else { fake }, pushing).await;
            let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{account}");
            let head = format!("{head}Content-Type: {OCI_INDEX}\r\nContent-Length: {}\r\n\r\n", body.len());
            let reply = front.raw(&[head.as_bytes(), body].concat()).await;
            assert!(reply.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&reply));
            assert_eq!(front.fake.kept.load(Relaxed), kept, "{method} {account} {given}");
        }
    }
}
