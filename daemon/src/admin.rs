//! The daemon's own interfaces: observe (read-only, TCP) and control (what changes something, a unix socket).
//!
//! Both run on a thread and a runtime of their own, so that health checks and the status are answered while the data
//! path is saturated. They know the node only through the closures of [`AdminSources`].
//!
//! The observe listener shows names and sizes to whoever reaches it, changes nothing and sends no CORS headers. The
//! control socket belongs to the daemon's user alone: the file mode is its access control.

mod routes;
mod serve;

use std::{
    fmt, fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use shoal_proto::status::{PullProgress, PullRequest, Status};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// File name of the control socket in the data directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Where the interfaces listen.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// For health, metrics, status and dashboard; port 0 takes any.
    pub observe: SocketAddr,
    /// The unix socket, by convention [`CONTROL_SOCKET`] in the data directory. A socket that a dead daemon left there is
    /// replaced: whoever calls holds the lock of the data directory.
    pub control: PathBuf,
}

/// What the interfaces show and set off.
///
/// The closures are called on the interfaces' threads, inside the context of the runtime that called [`Admin::start`]:
/// they may spawn tasks there.
#[derive(Clone)]
pub struct AdminSources {
    /// The node at this moment. May take locks; a call that hangs costs only the status its answer.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Starts a pull and returns its progress; must not block. The client is gone when the receiver is dropped.
    pub pull: Arc<dyn Fn(PullRequest) -> mpsc::Receiver<PullProgress> + Send + Sync>,
    /// Cancelled by `POST /v1/shutdown`. Once it is, by whomever, the daemon is not ready any more.
    pub shutdown: CancellationToken,
    /// Whether the daemon serves.
    pub ready: watch::Receiver<bool>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for AdminSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminSources")
            .field("shutdown", &self.shutdown)
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

/// Why an interface cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The observe address cannot be listened on.
    #[error("cannot listen on {address} for observe: {source} (choose another with --observe-listen)")]
    Observe {
        /// What was asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error("cannot listen on the control socket {path:?}: {source}")]
    Control {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that is no socket has the control socket's name.
    #[error("{0:?} is in the way of the control socket and is no socket: move it away")]
    Occupied(PathBuf),
    /// No thread or no runtime.
    #[error("cannot start the admin thread: {0}")]
    Thread(io::Error),
}

/// The running interfaces. They stop when this is dropped or [stopped](Self::stop).
#[derive(Debug)]
pub struct Admin {
    observe: SocketAddr,
    stop: CancellationToken,
    stopped: oneshot::Receiver<()>,
}

impl Admin {
    /// Binds both listeners and serves them from a thread of their own. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn start(config: AdminConfig, sources: AdminSources) -> Result<Self, AdminError> {
        let (listener, observe) =
            bind_observe(config.observe).map_err(|source| AdminError::Observe { address: config.observe, source })?;
        let control = bind_control(&config.control)?;
        let stop = CancellationToken::new();
        let (finished, stopped) = oneshot::channel();
        let routes = routes::Sources { sources, main: Handle::current() };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .map_err(AdminError::Thread)?;
        let stopping = stop.clone();
        thread::Builder::new()
            .name(String::from("shoal-admin"))
            .spawn(move || {
                let result = runtime.block_on(serve::serve(listener, control, &routes, &stopping));
                if let Err(error) = result {
                    tracing::error!(%error, "the admin interfaces stopped");
                }
                // A status that hangs must not keep the daemon from ending.
                runtime.shutdown_background();
                if let Err(error) = fs::remove_file(&config.control) {
                    tracing::debug!(path = %config.control.display(), %error, "control socket not removed");
                }
                // Nobody waits if the handle was dropped.
                finished.send(()).ok();
            })
            .map_err(AdminError::Thread)?;
        Ok(Self { observe, stop, stopped })
    }

    /// Where observe really listens.
    #[must_use]
    pub const fn observe_address(&self) -> SocketAddr {
        self.observe
    }

    /// Takes no more connections, lets open answers end (for at most a second), and removes the control socket.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // An error means that the thread is gone too.
        (&mut self.stopped).await.ok();
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn bind_observe(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn bind_control(path: &Path) -> Result<UnixListener, AdminError> {
    let control = |source| AdminError::Control { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map_err(control)?,
        Ok(_) => return Err(AdminError::Occupied(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(control(error)),
    }
    listen_privately(path).map_err(control)
}

/// Listens only after the mode is set: before that nobody can connect, so there is no moment at which others could.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(serve::CONNECTIONS_MAX as i32)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests;
