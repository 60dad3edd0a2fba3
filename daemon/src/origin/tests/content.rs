//! Sizes, ranges, manifests, tags.

use super::*;

fn partial(range: &str, body: &[u8]) -> Reply {
    Reply::Full(206, vec![("Content-Range", range.to_owned())], body.to_vec())
}

#[tokio::test]
async fn a_blob_is_read_as_it_is_and_counted() {
    let server = Server::start(|_, _| Reply::ok(BLOB)).await;
    let client = client();
    let mut body = client.open(&blob(&server), &digest(), 0).await.unwrap();
    assert_eq!(body.size, BLOB.len() as u64);
    assert_eq!(read(&mut body).await.unwrap(), BLOB);
    assert_eq!(body.next().await.unwrap(), None);
    let seen = server.seen();
    assert!(seen[0].is("GET", &blob_path()));
    assert_eq!(seen[0].header("accept-encoding"), Some("identity"));
    assert_eq!((seen[0].header("range"), seen[0].header("authorization")), (None, None));
    let metrics = &client.metrics;
    assert_eq!(
        (metrics.bytes_from_origin.get(), metrics.origin_blob_gets.get(), metrics.origin_retries.get()),
        (20, 1, 0)
    );
}

#[tokio::test]
async fn a_range_continues_at_its_first_byte() {
    let server = Server::start(|_, _| partial("bytes 12-19/20", &BLOB[12..])).await;
    let client = client();
    let mut body = client.open(&blob(&server), &digest(), 12).await.unwrap();
    assert_eq!((body.size, read(&mut body).await.unwrap()), (20, Bytes::from_static(&BLOB[12..])));
    assert_eq!(server.seen()[0].header("range"), Some("bytes=12-"));
    assert_eq!(client.metrics.bytes_from_origin.get(), 8);
}

#[tokio::test]
async fn a_whole_answer_to_a_range_request_is_skipped_but_counted() {
    let server = Server::start(|_, _| Reply::ok(BLOB)).await;
    let client = client();
    assert_eq!(fetch(&client, &blob(&server), 12).await.unwrap(), &BLOB[12..]);
    assert_eq!(client.metrics.bytes_from_origin.get(), 20);
    assert_eq!(fetch(&client, &blob(&server), 20).await.unwrap(), "");
    assert_protocol(fetch(&client, &blob(&server), 21).await, "byte 21 was asked");
}

#[tokio::test]
async fn another_range_than_the_asked_one_is_refused() {
    for range in
        ["bytes 11-19/20", "bytes 12-18/20", "bytes 12-19/*", "bytes 12-20/20", "items 12-19/20", "bytes 12-+19/20", ""]
    {
        let server = Server::start(move |_, _| partial(range, &BLOB[12..])).await;
        assert_protocol(fetch(&client(), &blob(&server), 12).await, "another range");
    }
    let server = Server::start(|_, _| partial("bytes 12-19/20", &BLOB[13..])).await;
    assert_protocol(fetch(&client(), &blob(&server), 12).await, "Content-Length contradicts");
    let server = Server::start(|_, _| partial("bytes 0-19/20", BLOB)).await;
    assert_protocol(fetch(&client(), &blob(&server), 0).await, "unexpected status 206");
}

#[tokio::test]
async fn a_range_that_cannot_be_satisfied_is_an_error() {
    let server = Server::start(|_, _| Reply::status(416)).await;
    assert_protocol(fetch(&client(), &blob(&server), 12).await, "unexpected status 416");
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error() {
    let server =
        Server::start(|_, _| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n0123456789".to_vec())).await;
    let mut body = client().open(&blob(&server), &digest(), 0).await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "0123456789");
    assert_unavailable(body.next().await, "body broke off");
    assert_eq!(server.seen().len(), 1, "a body is not retried");
}

#[tokio::test]
async fn the_size_of_a_chunked_blob_is_asked_by_head_and_held_against_its_body() {
    for (size, outcome) in [(20, Ok(())), (19, Err("longer than announced")), (21, Err("ended 1 bytes early"))] {
        let server = Server::start(move |request, _| match request.method.as_str() {
            "HEAD" => Reply::Full(200, vec![("Content-Length", size.to_string())], Vec::new()),
            _ => Reply::chunked(BLOB),
        })
        .await;
        let read = fetch(&client(), &blob(&server), 0).await;
        match outcome {
            Ok(()) => assert_eq!(read.unwrap(), BLOB),
            Err(part) => assert!(read.unwrap_err().to_string().contains(part)),
        }
    }
    let server = Server::start(|_, _| Reply::chunked(BLOB)).await;
    assert_protocol(fetch(&client(), &blob(&server), 0).await, "does not tell the size");
}

#[tokio::test]
async fn a_manifest_is_asked_for_with_every_type_and_may_come_in_chunks() {
    let server = Server::start(|_, _| Reply::chunked(BLOB)).await;
    let client = client();
    assert_eq!(fetch(&client, &manifest(&server), 4).await.unwrap(), &BLOB[4..]);
    let seen = server.seen();
    assert!(seen[0].is("GET", &format!("/v2/team/app/manifests/{}", digest())));
    let accept = seen[0].header("accept").unwrap();
    assert!(accept.contains("application/vnd.oci.image.index.v1+json") && accept.ends_with("*/*"), "{accept}");
    assert_eq!(
        (
            client.metrics.bytes_from_origin.get(),
            client.metrics.origin_manifest_gets.get(),
            client.metrics.origin_heads.get()
        ),
        (20, 1, 0)
    );
}

#[tokio::test]
async fn an_oversized_manifest_is_refused_however_it_comes() {
    let size = MANIFEST_BYTES as usize + 1;
    let range = ("Content-Range", format!("bytes 5-{}/{size}", size - 1));
    for (reply, part) in [
        (Reply::Full(200, vec![("Content-Length", size.to_string())], Vec::new()), "larger than"),
        (Reply::chunked(&vec![0; size]), "larger than"),
        (Reply::Full(206, vec![range, ("Content-Length", (size - 5).to_string())], Vec::new()), "larger than"),
        (Reply::Raw(b"HTTP/1.1 200 OK\r\n\r\n{}".to_vec()), "without Content-Length"),
    ] {
        let from = if matches!(reply, Reply::Full(206, ..)) { 5 } else { 0 };
        let server = Server::start(move |_, _| reply.clone()).await;
        assert_protocol(fetch(&client(), &manifest(&server), from).await, part);
    }
    let server =
        Server::start(move |_, _| Reply::Full(200, vec![("Content-Length", size.to_string())], Vec::new())).await;
    assert_protocol(client().size(&manifest(&server), &digest()).await, "larger than");
}

#[tokio::test]
async fn the_limit_of_a_manifest_is_allowed() {
    let server = Server::start(|_, _| Reply::chunked(&vec![7; MANIFEST_BYTES as usize])).await;
    assert_eq!(fetch(&client(), &manifest(&server), 0).await.unwrap().len() as u64, MANIFEST_BYTES);
}

const TYPE: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test]
async fn a_tag_is_resolved_by_head_alone_with_the_accept_of_the_client() {
    let server = Server::start(|_, _| {
        let length = ("Content-Length", "1234".to_owned());
        let kind = ("Content-Type", format!("{TYPE}; charset=utf-8"));
        Reply::Full(200, vec![length, kind, ("Docker-Content-Digest", digest().to_string())], Vec::new())
    })
    .await;
    let client = client();
    let resolved = client.resolve(&upstream(&server), "team/app", "latest", TYPE).await.unwrap();
    assert_eq!((resolved.digest, resolved.size, resolved.media_type.as_str()), (digest(), 1234, TYPE));
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].header("accept")), (1, Some(TYPE)));
    assert!(seen[0].is("HEAD", "/v2/team/app/manifests/latest"));
    assert_eq!((client.metrics.origin_heads.get(), client.metrics.origin_manifest_gets.get()), (1, 0));
}

#[tokio::test]
async fn a_tag_is_resolved_by_get_if_head_tells_no_digest_or_is_not_allowed() {
    for refusal in [Reply::status(405), Reply::ok(BLOB), Reply::ok(BLOB).with("Docker-Content-Digest", "sha256:none")] {
        let server = Server::start(move |request, _| match request.method.as_str() {
            "HEAD" => refusal.clone(),
            _ => Reply::ok(BLOB).with("Content-Type", TYPE),
        })
        .await;
        let resolved = client().resolve(&upstream(&server), "team/app", "latest", TYPE).await.unwrap();
        assert_eq!((resolved.digest, resolved.size, resolved.media_type.as_str()), (digest(), 20, TYPE));
    }
}

#[tokio::test]
async fn a_tag_whose_manifest_contradicts_its_digest_is_refused() {
    let server = Server::start(|request, _| match request.method.as_str() {
        "HEAD" => Reply::status(405),
        _ => Reply::ok(b"other").with("Docker-Content-Digest", digest().to_string()),
    })
    .await;
    assert_protocol(client().resolve(&upstream(&server), "team/app", "latest", TYPE).await, "does not match");
}

#[tokio::test]
async fn the_size_comes_from_head_or_from_a_range_of_one_byte() {
    let server = Server::start(|_, _| Reply::ok(BLOB)).await;
    let client = client();
    assert_eq!(client.size(&blob(&server), &digest()).await.unwrap(), 20);
    assert_eq!((client.metrics.origin_heads.get(), client.metrics.origin_blob_gets.get()), (1, 0));
    // An object store whose signature is for GET only.
    let store = Server::start(|request, _| match request.header("range") {
        Some("bytes=0-0") => partial("bytes 0-0/20", b"0"),
        _ => Reply::status(403),
    })
    .await;
    let at = format!("{}/object?signature=x", store.url);
    let server = Server::start(move |_, _| Reply::redirect(&at)).await;
    assert_eq!(client.size(&blob(&server), &digest()).await.unwrap(), 20);
    assert_eq!(store.seen().len(), 2);
    // Only what is empty has no first byte.
    let server = Server::start(|request, _| Reply::status(if request.method == "HEAD" { 405 } else { 416 })).await;
    assert_protocol(client.size(&blob(&server), &digest()).await, "does not tell the size");
    assert_eq!(client.size(&blob(&server), &Digest::of(Algorithm::Sha256, b"")).await.unwrap(), 0);
}
