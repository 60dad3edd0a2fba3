//! HTTP as bytes on a socket, for what clients hide: how a body ends, and what a handshake byte gets for an answer.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// How the other side ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// An orderly end (FIN).
    Fin,
    /// A reset (RST).
    Reset,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    /// The status code; 0 if what came is no HTTP answer.
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What came after the head, up to the end of the connection.
    pub body: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
}

/// Sends `GET path` with `Connection: close` and reads to the end.
///
/// # Panics
/// If nothing can be sent, or the end does not come within `deadline`.
pub async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)], deadline: Duration) -> Answer {
    let stream =
        TcpStream::connect(address).await.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    exchange(stream, request.as_bytes(), deadline).await
}

/// A connection that is kept open between requests, as most clients do.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
}

impl Connection {
    /// Connects.
    ///
    /// # Panics
    /// If it cannot.
    pub async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await;
        Self { stream: stream.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}")), address }
    }

    /// Sends a request with these header lines as they are, and reads its answer, of the body no more than `most` bytes.
    /// The answer must say how long it is.
    ///
    /// # Panics
    /// If the answer does not come within `deadline`, or does not say its length.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        most: usize,
        deadline: Duration,
    ) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        self.stream.write_all(request.as_bytes()).await.expect("the request can be sent");
        let answer = timeout(deadline, self.answer(method == "HEAD", most)).await;
        answer.unwrap_or_else(|_| panic!("{method} {path}: no answer after {deadline:?}"))
    }

    async fn answer(&mut self, head_only: bool, most: usize) -> Answer {
        let mut received = Vec::new();
        let end = loop {
            if let Some(at) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.more(&mut received).await;
        };
        let length =
            parse(&received[..end], Ending::Fin).headers.get("content-length").and_then(|text| text.parse().ok());
        let length: usize =
            length.unwrap_or_else(|| panic!("no length: {}", String::from_utf8_lossy(&received[..end])));
        let wanted = end + if head_only { 0 } else { length.min(most) };
        while received.len() < wanted {
            self.more(&mut received).await;
        }
        parse(&received[..wanted], Ending::Fin)
    }

    async fn more(&mut self, received: &mut Vec<u8>) {
        let count = self.stream.read_buf(received).await.expect("the connection is not reset");
        assert!(count > 0, "the connection ended early: {}", String::from_utf8_lossy(received));
    }
}

/// Sends a request over a unix socket and reads to the end.
///
/// # Errors
/// The socket cannot be connected to.
pub async fn over_unix(socket: &Path, request: &str, deadline: Duration) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket).await?;
    Ok(exchange(stream, request.as_bytes(), deadline).await)
}

/// Sends bytes and reads to the end.
///
/// # Panics
/// If nothing can be sent, or the end does not come within `deadline`.
pub async fn exchange<S>(mut stream: S, request: &[u8], deadline: Duration) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request).await.expect("the request can be sent");
    let mut received = Vec::new();
    let ending = match timeout(deadline, stream.read_to_end(&mut received)).await {
        Ok(Ok(_)) => Ending::Fin,
        Ok(Err(_)) => Ending::Reset,
        Err(_) => panic!("no end after {deadline:?}, {} bytes came", received.len()),
    };
    parse(&received, ending)
}

fn parse(received: &[u8], ending: Ending) -> Answer {
    let end = received.windows(4).position(|window| window == b"\r\n\r\n").map_or(received.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status, headers, body: received[end..].to_vec(), ending }
}
