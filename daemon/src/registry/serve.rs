//! The accept loop: a bounded number of HTTP/1.1 connections, over TLS or without, each with deadlines, and an orderly end.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{
    Response,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Registry, RegistryTls, body::Body};
use crate::metrics::Held;

/// Most connections that are served. One containerd opens about ten.
const CONNECTIONS: usize = 1024;
/// Most connections beyond these that are told so, rather than just closed.
const REFUSALS: usize = 64;
/// Longest wait for a request's head, which is also how long an idle connection is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// Most header lines and bytes of a request's head. What exceeds them is answered with 431.
const HEADERS: usize = 64;
const HEAD_BYTES: usize = 64 << 10;
/// How long a client may leave sent bytes unacknowledged or its window closed, in milliseconds: a body that nobody reads
/// holds a connection, a reader of the blob and its buffers.
const STALL_MILLISECONDS: u32 = 300_000;
/// Pause after a failed accept (out of file descriptors, most likely), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `registry` on `listener` until `shutdown`; then takes no more connections, lets answers under way finish for at
/// most `grace`, and cuts what is left.
/// With `tls` it is served over TLS only.
pub async fn serve(
    listener: TcpListener,
    tls: Option<RegistryTls>,
    registry: Registry,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let limits = Limits { served: Arc::new(Semaphore::new(CONNECTIONS)), refused: Arc::new(Semaphore::new(REFUSALS)) };
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a registry connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = limits.place() else {
            debug!(%peer, "closed a connection: far too many are open");
            continue;
        };
        let (tls, registry, shutdown, cut) = (tls.clone(), registry.clone(), shutdown.clone(), cut.clone());
        connections.spawn(async move {
            let served = cut.run_until_cancelled(connection(stream, peer, tls, registry, place, shutdown)).await;
            if let Some(Err(error)) = served {
                debug!(%peer, %error, "registry connection ended");
            }
        });
    }
    drop(listener);
    connections.close();
    if timeout(grace, connections.wait()).await.is_err() {
        warn!(connections = connections.len(), ?grace, "cutting registry connections that did not finish in time");
        cut.cancel();
        connections.wait().await;
    }
}

struct Limits {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

/// Room for one connection, held while it is open.
struct Place {
    overloaded: bool,
    _permit: OwnedSemaphorePermit,
}

impl Limits {
    fn place(&self) -> Option<Place> {
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned().ok();
        match take(&self.served) {
            Some(permit) => Some(Place { overloaded: false, _permit: permit }),
            None => take(&self.refused).map(|permit| Place { overloaded: true, _permit: permit }),
        }
    }
}

type Served = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Serves one connection to its end, if its handshake succeeds.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<RegistryTls>,
    registry: Registry,
    place: Place,
    shutdown: CancellationToken,
) -> Served {
    let local = stream.local_addr()?;
    tune(&stream, peer)?;
    match tls {
        None => requests(stream, local, registry, place, shutdown).await,
        Some(tls) => requests(tls.accept(stream).await?, local, registry, place, shutdown).await,
    }
}

/// Answers the requests of a connection. One on a connection too many is answered with 503 and the end of it.
async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    local: SocketAddr,
    registry: Registry,
    place: Place,
    shutdown: CancellationToken,
) -> Served {
    let _open = Held::new(&registry.inner.metrics.client_connections);
    let overloaded = place.overloaded;
    let service = service_fn(|request| {
        let registry = &registry;
        async move {
            let mut response: Response<Body> = registry.answer(request, local, overloaded).await;
            if overloaded {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_headers(HEADERS)
            .max_header_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        result = served.as_mut() => return Ok(result?),
        () = shutdown.cancelled() => served.as_mut().graceful_shutdown(),
    }
    Ok(served.await?)
}

/// Socket options. Only the first is ever needed to be right; the others may be refused.
fn tune(stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        use rustix::net::sockopt;
        if let Err(error) = sockopt::set_tcp_user_timeout(stream, STALL_MILLISECONDS) {
            debug!(%error, "cannot bound how long a client may stall");
        }
        // Loopback under BBR, which paces for a network that is not there, is half as fast.
        if peer.ip().to_canonical().is_loopback()
            && let Err(error) = sockopt::set_tcp_congestion(stream, "reno")
        {
            debug!(%error, "cannot choose reno for a loopback connection");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (peer, STALL_MILLISECONDS);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_too_many_are_first_refused_and_then_closed() {
        let limits = Limits { served: Arc::new(Semaphore::new(1)), refused: Arc::new(Semaphore::new(1)) };
        let served = limits.place();
        let refused = limits.place();
        assert!(served.as_ref().is_some_and(|place| !place.overloaded));
        assert!(refused.as_ref().is_some_and(|place| place.overloaded));
        assert!(limits.place().is_none());
        drop(served);
        assert!(limits.place().is_some_and(|place| !place.overloaded));
    }
}
