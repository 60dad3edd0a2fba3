//! Ranges of a blob that is not here, half here, and here.

use std::time::Duration;

use shoal_tests::{daemon::Daemon, eventually, image::Blob};

use super::offer_random;
use crate::{MIB, REPOSITORY, blob_path, one_daemon};

/// A range of a blob and what must come back: offset and end; none: nothing can.
type Case = (String, Option<(u64, u64)>);

fn cases(size: u64) -> Vec<Case> {
    let last = size - 1;
    vec![
        (String::from("bytes=0-0"), Some((0, 1))),
        (String::from("bytes=0-"), Some((0, size))),
        (String::from("bytes=1-99"), Some((1, 100))),
        // Across the borders of chunks, whatever their size is.
        (format!("bytes={}-{}", MIB - 10, MIB + 10), Some((MIB - 10, MIB + 11))),
        (format!("bytes={}-", size / 2 + 1), Some((size / 2 + 1, size))),
        (String::from("bytes=-10"), Some((size - 10, size))),
        (format!("bytes=-{}", size * 2), Some((0, size))),
        (format!("bytes={last}-{last}"), Some((last, size))),
        (format!("bytes={last}-{}", size * 2), Some((last, size))),
        (format!("bytes={size}-"), None),
        (format!("bytes={}-{}", size * 2, size * 3), None),
    ]
}

async fn check(daemon: &Daemon, blob: &Blob, (range, expected): &Case, when: &str) {
    let response = daemon.get(&blob_path(&blob.digest)).header("range", range).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default();
    let size = blob.size();
    let Some((from, to)) = expected else {
        assert_eq!((status, header("content-range")), (416, format!("bytes */{size}").as_str()), "{range} {when}");
        return;
    };
    assert_eq!(status, 206, "{range} {when}");
    assert_eq!(header("content-range"), format!("bytes {from}-{}/{size}", to - 1), "{range} {when}");
    assert_eq!(header("content-length"), (to - from).to_string(), "{range} {when}");
    let body = response.bytes().await.unwrap();
    assert!(body == blob.bytes.slice(*from as usize..*to as usize), "{range} {when}: wrong bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_cold_blob_are_exact() {
    let (origin, _, daemon) = one_daemon(200, &[10]).await;
    let size = 3 * MIB + 12_345;
    for (at, case) in cases(size).iter().enumerate() {
        // A blob of its own for each: nothing of it is here when the range is asked for.
        let blob = offer_random(&origin, 2000 + at as u64, size);
        check(&daemon, &blob, case, "cold").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_blob_on_its_way_and_of_a_complete_one_are_exact() {
    let (origin, _, daemon) = one_daemon(201, &[10]).await;
    let blob = offer_random(&origin, 2100, 24 * MIB + 999);
    origin.limit(12 * MIB);
    let whole = daemon.get(&blob_path(&blob.digest)).send().await.unwrap();
    eventually(Duration::from_secs(20), "a third of the blob being here", || async {
        let status = daemon.status().await;
        status.fetches.iter().any(|fetch| fetch.bytes > blob.size() / 3).then_some(())
    })
    .await;
    let cases = cases(blob.size());
    let half_here = cases.iter().map(|case| check(&daemon, &blob, case, "while it is on its way"));
    futures_util::future::join_all(half_here).await;
    assert!(whole.bytes().await.unwrap() == blob.bytes);
    for case in &cases {
        check(&daemon, &blob, case, "of the complete blob").await;
    }
    assert_eq!(origin.blob_bytes(), blob.size(), "all that together cost one copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_at_once_get_all_of_them_or_the_whole() {
    let (origin, _, daemon) = one_daemon(202, &[10]).await;
    let blob = offer_random(&origin, 2200, MIB);
    for _ in ["cold", "complete"] {
        let response = daemon.get(&blob_path(&blob.digest)).header("range", "bytes=0-4,10-14").send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        let body = response.bytes().await.unwrap();
        match status {
            200 => assert!(body == blob.bytes),
            206 => assert!(kind.starts_with("multipart/byteranges"), "{kind}"),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_slices_of_open_ended_ranges_cost_no_more_than_the_blob() {
    // containerd's parallel mode: open-ended ranges, each dropped after a slice.
    let (origin, _, daemon) = one_daemon(203, &[10]).await;
    let blob = offer_random(&origin, 2300, 16 * MIB);
    let slice = blob.size() / 4;
    let readers = (0..4).map(async |at| {
        let from = at * slice;
        let request = daemon.get(&blob_path(&blob.digest)).header("range", format!("bytes={from}-"));
        let mut response = request.send().await.unwrap();
        assert_eq!(response.status(), 206);
        let mut body = Vec::new();
        while (body.len() as u64) < slice {
            body.extend_from_slice(&response.chunk().await.unwrap().unwrap());
        }
        assert!(body[..slice as usize] == blob.bytes[from as usize..(from + slice) as usize]);
    });
    futures_util::future::join_all(readers).await;
    assert!(daemon.blob(REPOSITORY, &blob.digest).await == blob.bytes);
    assert!(origin.blob_bytes() <= blob.size() + blob.size() / 10, "{} bytes", origin.blob_bytes());
}
