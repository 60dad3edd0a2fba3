#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::*;

/// A daemon that gives one fixed answer, in the given pieces, and hands back the request that it got.
fn answering(socket: &Path, pieces: &'static [&'static str]) -> tokio::task::JoinHandle<String> {
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        String::from_utf8_lossy(&request[..length]).into_owned()
    })
}

fn control(directory: &tempfile::TempDir) -> Control {
    Control { socket: directory.path().join("control.sock") }
}

#[tokio::test]
async fn a_daemon_that_is_not_there_is_told_in_one_line_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let control = control(&directory);
    let failure = control.get::<Value>("/v1/status").await.unwrap_err();
    assert_eq!(failure.code(), UNAVAILABLE);
    let text = failure.to_string();
    assert!(
        text.contains("control.sock does not exist") && text.contains("`shoal daemon`") && !text.contains('\n'),
        "{text}"
    );

    drop(UnixListener::bind(&control.socket).unwrap());
    let failure = control.get::<Value>("/v1/status").await.unwrap_err();
    assert_eq!(failure.code(), UNAVAILABLE);
    assert!(failure.to_string().contains("nobody listens"), "{failure}");
}

#[tokio::test]
async fn a_report_is_read_whole_and_a_refusal_is_passed_on() {
    let directory = tempfile::tempdir().unwrap();
    let control = control(&directory);
    let daemon = answering(&control.socket, &["HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "{\"a\"", ":1}"]);
    assert_eq!(control.get::<Value>("/v1/status").await.unwrap(), json!({"a": 1}));
    assert!(daemon.await.unwrap().starts_with("GET /v1/status HTTP/1.1\r\n"));

    std::fs::remove_file(&control.socket).unwrap();
    answering(&control.socket, &["HTTP/1.1 400 Bad Request\r\nContent-Length: 18\r\n\r\n{\"error\":\"no way\"}"]);
    let failure = control.post("/v1/pull", &json!({"image": "x"})).await.unwrap_err();
    assert_eq!((failure.code(), failure.to_string().as_str()), (GENERAL, "the daemon refused (400): no way"));

    std::fs::remove_file(&control.socket).unwrap();
    answering(&control.socket, &["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat"]);
    assert_eq!(control.get::<Value>("/v1/status").await.unwrap_err().code(), PROTOCOL);
}

#[tokio::test]
async fn lines_come_one_by_one_however_they_are_cut() {
    let directory = tempfile::tempdir().unwrap();
    let control = control(&directory);
    let pieces: &[&str] = &["HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"a\"", ":1}\n\n{\"a\":2}\n{", "\"a\":3}"];
    answering(&control.socket, pieces);
    let mut lines = control.post("/v1/pull", &json!({})).await.unwrap();
    for number in 1..=3 {
        assert_eq!(lines.next::<Value>().await.unwrap(), Some(json!({"a": number})));
    }
    assert_eq!(lines.next::<Value>().await.unwrap(), None);
}
