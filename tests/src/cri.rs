//! One call of the Kubernetes runtime interface, `ImageService/PullImage`, as a kubelet makes it.
//!
//! The messages have a handful of fields, so they are written out here by hand: no code generator, no `crictl`.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request};
use tokio::{net::UnixStream, time::timeout};

/// Why a pull over CRI did not end well.
#[derive(Debug)]
pub enum CriError {
    /// The runtime answered: the pull failed. Code and message of gRPC.
    Status(String, String),
    /// There was no proper answer.
    Transport(String),
}

impl From<h2::Error> for CriError {
    fn from(error: h2::Error) -> Self {
        Self::Transport(error.to_string())
    }
}

impl From<io::Error> for CriError {
    fn from(error: io::Error) -> Self {
        Self::Transport(error.to_string())
    }
}

/// Pulls an image and returns its reference in the runtime.
///
/// # Errors
/// See [`CriError`].
pub async fn pull_image(
    socket: &Path,
    image: &str,
    account: Option<(&str, &str)>,
    deadline: Duration,
) -> Result<String, CriError> {
    let mut message = field(1, &field(1, image.as_bytes()));
    if let Some((user, password)) = account {
        message.extend(field(2, &[field(1, user.as_bytes()), field(2, password.as_bytes())].concat()));
    }
    let call = call(socket, "/runtime.v1.ImageService/PullImage", &message);
    let answer =
        timeout(deadline, call).await.map_err(|_| CriError::Transport(format!("no end after {deadline:?}")))??;
    // PullImageResponse: 1 is the reference, shorter than 128 bytes.
    match answer.as_slice() {
        [0x0a, length, rest @ ..] if rest.len() >= usize::from(*length) => {
            Ok(String::from_utf8_lossy(&rest[..usize::from(*length)]).into_owned())
        }
        other => Err(CriError::Transport(format!("not a PullImageResponse: {other:?}"))),
    }
}

async fn call(socket: &Path, path: &str, message: &[u8]) -> Result<Vec<u8>, CriError> {
    let stream = UnixStream::connect(socket).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let result = exchange(client, path, message).await;
    driver.abort();
    result
}

async fn exchange(client: h2::client::SendRequest<Bytes>, path: &str, message: &[u8]) -> Result<Vec<u8>, CriError> {
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| CriError::Transport(error.to_string()))?;
    let mut client = client.ready().await?;
    let (response, mut stream) = client.send_request(request, false)?;
    // One uncompressed message: a flag byte and its length, then the message.
    let length = u32::try_from(message.len()).map_err(|error| CriError::Transport(error.to_string()))?;
    stream.send_data([&[0], length.to_be_bytes().as_slice(), message].concat().into(), true)?;
    let response = response.await?;
    // A call that fails at once has its status in the head.
    check(response.headers())?;
    let mut body = response.into_body();
    let mut received = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        received.extend_from_slice(&data);
    }
    check(&body.trailers().await?.unwrap_or_default())?;
    Ok(received.split_off(received.len().min(5)))
}

fn check(headers: &HeaderMap) -> Result<(), CriError> {
    let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match text("grpc-status") {
        Some(code) if code != "0" => Err(CriError::Status(code, text("grpc-message").unwrap_or_default())),
        _ => Ok(()),
    }
}

/// A length-delimited field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_as_protocol_buffers_are() {
        assert_eq!(field(1, b"ab"), [0x0a, 2, b'a', b'b']);
        assert_eq!(field(2, &[0; 300])[..3], [0x12, 0xac, 0x02]);
    }
}
