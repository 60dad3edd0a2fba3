//! nginx as the yardstick of a local hit: one worker, `sendfile`, its own configuration in a directory of its own.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, Signal, geteuid, kill_process},
};
use shoal_cli::demo::usage;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::Failure;

/// What it serves the file as.
pub(crate) const PATH: &str = "/blob";
/// What the daemon gives its own loopback connections.
pub(crate) const CONGESTION: &str = "reno";
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A running nginx; ended when dropped.
pub(crate) struct Nginx {
    process: Child,
    address: SocketAddr,
}

/// The installed version, if there is one.
pub(crate) async fn version() -> Option<String> {
    let output = Command::new("nginx").arg("-v").stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    text.trim().strip_prefix("nginx version: ").map(ToOwned::to_owned)
}

impl Nginx {
    /// Serves `file` as [`PATH`]. Its listening socket is made here and handed over, as in an upgrade of nginx, so that
    /// its connections inherit the congestion control that the daemon sets for its own.
    pub(crate) fn start(dir: &Path, file: &Path) -> Result<Self, Failure> {
        let prefix = dir.join("nginx");
        fs::create_dir(&prefix)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        rustix::net::sockopt::set_tcp_congestion(&listener, CONGESTION)?;
        // nginx takes for granted that it is.
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        fs::write(prefix.join("nginx.conf"), configuration(address, file))?;
        fcntl_setfd(&listener, FdFlags::empty())?;
        let process = Command::new("nginx")
            .arg("-p")
            .arg(&prefix)
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .env("NGINX", format!("{};", listener.as_raw_fd()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        // Kept by nginx from here on. A connection waits in its queue until nginx accepts.
        drop(listener);
        Ok(Self { process, address })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Processor time of master and worker.
    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        self.processes().map(|pid| usage::of(pid).cpu_seconds).sum()
    }

    /// The master and its worker.
    fn processes(&self) -> impl Iterator<Item = u32> {
        let master = self.process.id();
        let workers = master.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok());
        let workers: Vec<_> =
            workers.iter().flat_map(|pids| pids.split(' ')).filter_map(|pid| pid.parse().ok()).collect();
        master.into_iter().chain(workers)
    }

    pub(crate) async fn stop(mut self) -> io::Result<()> {
        self.terminate();
        timeout(STOP_DEADLINE, self.process.wait()).await??;
        Ok(())
    }

    /// A worker does not always end with its master: it is told itself.
    fn terminate(&self) {
        for pid in self.processes().filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // It may have ended already.
            kill_process(pid, Signal::TERM).ok();
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.terminate();
    }
}

fn configuration(address: SocketAddr, file: &Path) -> String {
    let file = file.display();
    // Workers of root would become somebody who may not read the blob.
    let user = if geteuid().is_root() { "user root root;\n" } else { "" };
    format!(
        "{user}daemon off;\nworker_processes 1;\npid nginx.pid;\nevents {{ worker_connections 64; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  default_type application/octet-stream;\n  \
         client_body_temp_path body;\n  proxy_temp_path proxy;\n  fastcgi_temp_path fastcgi;\n  \
         uwsgi_temp_path uwsgi;\n  scgi_temp_path scgi;\n  \
         server {{ listen {address}; location = {PATH} {{ alias {file}; }} }}\n}}\n"
    )
}
