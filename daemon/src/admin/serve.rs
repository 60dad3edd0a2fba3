//! Accepting and bounding the connections of the admin interfaces.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::routes::{self, Sources};

/// Connections that an interface has at once; further ones wait in the kernel's queue.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for a request's head, also between two requests.
const HEAD_DEADLINE: Duration = Duration::from_secs(20);
/// How long an observe connection may last: one that nobody reads from must not hold its place for ever.
const OBSERVE_DEADLINE: Duration = Duration::from_secs(300);
/// How long a control connection may last: longer than the slowest pull.
const CONTROL_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How long open answers may take once the interfaces stop.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// Serves both interfaces until `stop`.
pub(super) async fn serve(
    observe: std::net::TcpListener,
    control: std::os::unix::net::UnixListener,
    sources: &Sources,
    stop: &CancellationToken,
) -> io::Result<()> {
    let observe = tokio::net::TcpListener::from_std(observe)?;
    let control = tokio::net::UnixListener::from_std(control)?;
    tokio::join!(
        accept(observe, routes::observe(sources.clone()), OBSERVE_DEADLINE, stop),
        accept(control, routes::control(sources.clone()), CONTROL_DEADLINE, stop),
    );
    Ok(())
}

async fn accept(mut listener: impl Listener, routes: Router, deadline: Duration, stop: &CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, (io, _)) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(routes.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            match timeout(deadline, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "admin connection failed"),
                Err(_) => tracing::debug!(?deadline, "admin connection closed at its deadline"),
            }
            drop(place);
        });
    }
    drop(listener);
    if timeout(STOP_DEADLINE, graceful.shutdown()).await.is_err() {
        tracing::debug!("admin connections cut off at the end");
    }
}
