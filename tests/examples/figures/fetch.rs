//! A client that does nothing but read: blocking, over a bare TCP connection, with buffers of 256 KiB.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use sha2::Digest as _;
use shoal_proto::digest::Digest;

use crate::Failure;

const BUFFER_BYTES: usize = 256 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest pause of a server.
const STALL: Duration = Duration::from_secs(30);

/// Mean seconds from connecting to the last of `size` bytes.
pub(crate) async fn times(address: SocketAddr, path: String, size: u64, times: usize) -> Result<f64, Failure> {
    tokio::task::spawn_blocking(move || {
        let mut seconds = 0.0;
        for _ in 0..times {
            let start = Instant::now();
            let got = get(address, &path, |_| ())?;
            seconds += start.elapsed().as_secs_f64();
            if got != size {
                return Err(format!("{address}{path} sent {got} of {size} bytes").into());
            }
        }
        Ok(seconds / times as f64)
    })
    .await?
}

/// Fails unless the body is what its digest says.
pub(crate) async fn verify(address: SocketAddr, path: String, digest: Digest) -> Result<(), Failure> {
    let hash = tokio::task::spawn_blocking(move || {
        let mut hash = sha2::Sha256::new();
        get(address, &path, |bytes| hash.update(bytes)).map(|_| Digest::sha256(hash.finalize().into()))
    });
    if hash.await?? == digest { Ok(()) } else { Err("what the second node serves is not the blob".into()) }
}

/// GETs `path` and returns how many bytes its body has, which ends with the connection.
fn get(address: SocketAddr, path: &str, mut take: impl FnMut(&[u8])) -> Result<u64, Failure> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(STALL))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    let body = loop {
        match stream.read(&mut buffer[filled..HEAD_BYTES_MAX])? {
            0 => return Err(format!("{address}{path}: no answer").into()),
            count => filled += count,
        }
        if let Some(end) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("{address}{path}: {}", String::from_utf8_lossy(&buffer[..filled])).into());
    }
    take(&buffer[body..filled]);
    let mut total = (filled - body) as u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            count => {
                take(&buffer[..count]);
                total += count as u64;
            }
        }
    }
}
