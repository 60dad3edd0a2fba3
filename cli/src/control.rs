//! The way to the daemon of this node: HTTP over its control socket.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use shoal_daemon::config::Config;
use tokio::{net::UnixStream, time::timeout};

use crate::{
    args::NodeArgs,
    failure::{Failure, GENERAL, NO_PERMISSION, PROTOCOL, UNAVAILABLE, USAGE},
};

/// How long the daemon may take for the first byte of an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// How long it may be silent inside an answer: longer than any deadline of its own towards origins.
const SILENCE_DEADLINE: Duration = Duration::from_secs(300);
/// Bytes of an answer that is read as a whole: the status of a node with some hundred thousand blobs.
const MAX_ANSWER: usize = 256 << 20;
/// Bytes of one line of progress.
const MAX_LINE: usize = 1 << 20;

/// A daemon's control socket.
#[derive(Debug)]
pub(crate) struct Control {
    socket: PathBuf,
}

impl Control {
    /// The socket of the daemon that the same flags, file and environment describe.
    pub(crate) fn of(node: &NodeArgs) -> Result<Self, Failure> {
        let data_dir = Config::data_dir(&node.sources()).map_err(|error| Failure::new(USAGE, error.to_string()))?;
        Ok(Self { socket: data_dir.join("control.sock") })
    }

    /// Asks for a report.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        let body = self.collect(answer).await?;
        serde_json::from_slice(&body).map_err(|error| self.nonsense(&error.to_string()))
    }

    /// Orders something whose progress comes as JSON lines.
    pub(crate) async fn post<B: Serialize>(&self, path: &str, body: &B) -> Result<Lines<'_>, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::new(GENERAL, format!("cannot write the order as JSON: {error}")))?;
        let answer = self.send(Method::POST, path, body.into()).await?;
        Ok(Lines { control: self, body: answer.into_body(), read: BytesMut::new() })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| unreachable_daemon(&self.socket, &error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.nonsense(&error.to_string()))?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // Ends with the exchange; its error comes out of the exchange as well.
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        let answer = timeout(ANSWER_DEADLINE, exchange)
            .await
            .map_err(|_| self.silent(ANSWER_DEADLINE))?
            .map_err(|error| self.broken(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body = self.collect(answer).await?;
        let text = String::from_utf8_lossy(&body);
        let why = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
        Err(Failure::new(GENERAL, format!("the daemon refused ({}): {}", status.as_u16(), reason(why))))
    }

    async fn collect(&self, answer: Response<Incoming>) -> Result<Bytes, Failure> {
        let body = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER).collect();
        let body = timeout(SILENCE_DEADLINE, body).await.map_err(|_| self.silent(SILENCE_DEADLINE))?;
        Ok(body.map_err(|error| self.nonsense(&error.to_string()))?.to_bytes())
    }

    fn silent(&self, deadline: Duration) -> Failure {
        let seconds = deadline.as_secs();
        Failure::new(UNAVAILABLE, format!("the daemon at {} gave no answer for {seconds} s", self.socket.display()))
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        Failure::new(
            UNAVAILABLE,
            format!("the daemon at {} broke off: {error}; is it shutting down?", self.socket.display()),
        )
    }

    fn nonsense(&self, why: &str) -> Failure {
        Failure::new(
            PROTOCOL,
            format!(
                "the daemon at {} answers something unexpected ({why}); is it of another version?",
                self.socket.display()
            ),
        )
    }
}

/// An answer of JSON lines, read as they come.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    control: &'a Control,
    body: Incoming,
    read: BytesMut,
}

impl Lines<'_> {
    /// The next line's value; none at the end.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line = self.read.split_to(end);
                self.read.advance(1);
                if !line.trim_ascii().is_empty() {
                    return self.parse(&line).map(Some);
                }
                continue;
            }
            if self.read.len() > MAX_LINE {
                return Err(self.control.nonsense("an endless line"));
            }
            let frame = timeout(SILENCE_DEADLINE, self.body.frame()).await;
            match frame.map_err(|_| self.control.silent(SILENCE_DEADLINE))? {
                Some(Ok(frame)) => self.read.extend(frame.into_data().ok().into_iter().flatten()),
                Some(Err(error)) => return Err(self.control.broken(&error)),
                None if self.read.trim_ascii().is_empty() => return Ok(None),
                None => {
                    let line = self.read.split();
                    return self.parse(&line).map(Some);
                }
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(line).map_err(|error| self.control.nonsense(&error.to_string()))
    }
}

/// The daemon's reason may come as `{"error": "..."}` or as plain text.
fn reason(line: &str) -> String {
    let from_json =
        |line| serde_json::from_str::<serde_json::Value>(line).ok()?.get("error")?.as_str().map(str::to_owned);
    from_json(line).unwrap_or_else(|| line.to_owned())
}

fn unreachable_daemon(socket: &Path, error: &std::io::Error) -> Failure {
    let at = socket.display();
    let (code, message) = if error.kind() == ErrorKind::NotFound {
        let hint = "start one with `shoal daemon`, or name its directory with --data-dir";
        (UNAVAILABLE, format!("no daemon is running here: {at} does not exist; {hint}"))
    } else if error.kind() == ErrorKind::ConnectionRefused {
        let hint = "start it again with `shoal daemon`";
        (UNAVAILABLE, format!("no daemon is running here: nobody listens at {at} any more; {hint}"))
    } else if error.kind() == ErrorKind::PermissionDenied {
        (NO_PERMISSION, format!("this user may not talk to the daemon at {at}; run it as the daemon's user (sudo)"))
    } else {
        (UNAVAILABLE, format!("cannot reach a daemon at {at}: {error}"))
    };
    Failure::new(code, message)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
