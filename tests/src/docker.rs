//! A real Docker engine with everything of its own: data, state, socket, containerd.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::{
    eventually,
    process::{Process, read_log, run},
};

/// How long a pull may take before it counts as hanging.
const PULL: Duration = Duration::from_secs(120);

/// A Docker engine. Needs root: layers are unpacked.
#[derive(Debug)]
pub struct Docker {
    // Ends before its directory goes.
    process: Option<Process>,
    directory: TempDir,
}

impl Docker {
    /// A place for one; it is not started yet.
    ///
    /// # Panics
    /// If the temporary directory cannot be made.
    #[must_use]
    pub fn prepare() -> Self {
        Self { process: None, directory: tempfile::tempdir().expect("a temporary directory can be made") }
    }

    /// Its `daemon.json`, which need not be there.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("daemon.json")
    }

    /// Starts it and waits until it answers. Everything that is not on this machine goes by `proxy`.
    ///
    /// # Panics
    /// If it does not: with its log.
    pub async fn start(&mut self, proxy: SocketAddr) {
        let base = self.directory.path();
        if !self.configuration().exists() {
            fs::write(self.configuration(), "{}").expect("daemon.json can be written");
        }
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(self.configuration());
        command.arg("--data-root").arg(base.join("data")).arg("--exec-root").arg(base.join("exec"));
        command.arg("--pidfile").arg(base.join("pid")).arg("--host").arg(self.host());
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs"]);
        let proxy = format!("http://{proxy}");
        command.env("HTTPS_PROXY", &proxy).env("HTTP_PROXY", &proxy).env("NO_PROXY", "127.0.0.1,localhost");
        let log = base.join("log");
        let mut process = Process::spawn(command, &log);
        let socket = self.socket();
        eventually(Duration::from_secs(60), "the Docker engine listening", || {
            let ended = process.ended();
            let (socket, log) = (socket.clone(), log.clone());
            async move {
                assert!(ended.is_none(), "dockerd ended: {}", read_log(&log));
                UnixStream::connect(&socket).await.ok().filter(|_| read_log(&log).contains("API listen on"))
            }
        })
        .await;
        self.process = Some(process);
    }

    /// Tells it to read its configuration again, as `systemctl reload docker` does.
    pub fn reload(&self) {
        if let Some(process) = &self.process {
            process.signal(Signal::HUP);
        }
    }

    /// Asks it to end: its containerd ends with it.
    pub async fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.terminate(Duration::from_secs(60)).await;
        }
    }

    /// Runs `docker` with these arguments.
    ///
    /// # Panics
    /// If it cannot be run, or hangs.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.arg("--host").arg(self.host()).args(arguments).env("HOME", self.directory.path());
        run(command, PULL).await.unwrap_or_else(|error| panic!("{error}; log: {}", read_log(&self.log_file())))
    }

    /// Pulls an image that must come.
    ///
    /// # Panics
    /// If it does not.
    pub async fn pull(&self, image: &str) {
        let output = self.run(&["pull", image]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker pull {image}: {said}; log: {}", read_log(&self.log_file()));
    }

    /// Forgets an image and its layers, so that the next pull asks for all of them.
    ///
    /// # Panics
    /// If it is not there.
    pub async fn forget(&self, image: &str) {
        assert!(self.run(&["image", "rm", "--force", image]).await.status.success(), "{image} can be removed");
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // A killed engine would leave its containerd behind.
        let Some(process) = self.process.take() else { return };
        process.signal(Signal::TERM);
        process.reap(Duration::from_secs(20));
    }
}
