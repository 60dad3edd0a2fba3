//! A scripted HTTP server on loopback: what comes over the wire, byte for byte, is the test's choice.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    headers: HashMap<String, String>,
    /// With a length.
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.target.split('?').next() == Some(path)
    }
}

/// What to answer.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// Status, headers, body with its length (no body to a HEAD).
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// These bytes, then nothing.
    Stall(Vec<u8>),
}

impl Reply {
    pub(super) fn ok(body: &[u8]) -> Self {
        Self::Full(200, Vec::new(), body.to_vec())
    }

    pub(super) fn status(status: u16) -> Self {
        Self::Full(status, Vec::new(), Vec::new())
    }

    pub(super) fn redirect(location: &str) -> Self {
        Self::status(307).with("Location", location)
    }

    pub(super) fn chunked(body: &[u8]) -> Self {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let mut bytes = format!("{head}{:x}\r\n", body.len()).into_bytes();
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        Self::Raw(bytes)
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Full(_, headers, _) = &mut self {
            headers.push((name, value.into()));
        }
        self
    }
}

/// The server; ends with the value.
#[derive(Debug)]
pub(super) struct Server {
    /// `http://127.0.0.1:port`
    pub(super) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers each request by `script`, which sees the request and the server's own URL.
    pub(super) async fn start(script: impl Fn(&Seen, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self::run(listener, url, None, script)
    }

    /// The same over TLS with this configuration, as `https://localhost:port`.
    pub(super) async fn start_tls(
        tls: rustls::ServerConfig,
        script: impl Fn(&Seen, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        Self::run(listener, url, Some(Arc::new(tls).into()), script)
    }

    fn run(
        listener: TcpListener,
        url: String,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Seen, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (seen, script): (Arc<Mutex<Vec<_>>>, Arc<_>) = (Arc::default(), Arc::new(script));
        let (log, own) = (Arc::clone(&seen), url.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script, own, tls) = (Arc::clone(&log), Arc::clone(&script), own.clone(), tls.clone());
                connections.spawn(async move {
                    let script = |request: Seen| {
                        log.lock().unwrap().push(request.clone());
                        script(&request, &own)
                    };
                    match tls {
                        None => serve(stream, script).await,
                        Some(tls) => serve(tls.accept(stream).await?, script).await,
                    }
                });
            }
        });
        Self { url, seen, task }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, script: impl Fn(Seen) -> Reply) -> std::io::Result<()> {
    while let Some(request) = read(&mut stream).await? {
        let is_head = request.method == "HEAD";
        match script(request) {
            Reply::Full(status, headers, body) => {
                let mut head = format!("HTTP/1.1 {status} Test\r\n");
                if !headers.iter().any(|(name, _)| *name == "Content-Length") {
                    head += &format!("Content-Length: {}\r\n", body.len());
                }
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                head += "\r\n";
                stream.write_all(head.as_bytes()).await?;
                if !is_head {
                    stream.write_all(&body).await?;
                }
            }
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await?;
                return stream.shutdown().await;
            }
            Reply::Stall(bytes) => {
                stream.write_all(&bytes).await?;
                std::future::pending::<()>().await;
            }
        }
    }
    Ok(())
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Seen>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return Ok(None),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: HashMap<_, _> = headers.collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8(body).unwrap();
    Ok(Some(Seen { method: first.next().unwrap(), target: first.next().unwrap(), headers, body }))
}
