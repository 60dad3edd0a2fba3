//! Debian's `docker-registry` (Distribution 2.8) as an origin that nobody of us wrote.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    eventually,
    image::Image,
    layout::{self, Format},
    process::{Process, read_log},
};

/// A running `docker-registry` with its storage in a temporary directory.
#[derive(Debug)]
pub struct DockerRegistry {
    directory: TempDir,
    address: SocketAddr,
    process: Option<Process>,
}

/// One line of its access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Who asked.
    pub client: String,
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// With the query.
    pub path: String,
    /// The answer.
    pub status: u16,
    /// Bytes of body.
    pub bytes: u64,
    /// The client program.
    pub agent: String,
}

impl DockerRegistry {
    /// Serves on a free port of the loopback interface.
    pub async fn start() -> Self {
        let registry = Self::prepare(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), free_port()));
        let mut registry = registry.run(Command::new("docker-registry"));
        registry.wait().await;
        registry
    }

    /// Writes the configuration for an address; [`Self::run`] starts it.
    ///
    /// # Panics
    /// If the temporary directory cannot be written.
    #[must_use]
    pub fn prepare(address: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let registry = Self { directory, address, process: None };
        registry.configure("");
        registry
    }

    fn configure(&self, more: &str) {
        let config = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/storage}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"{}\"}}\n{more}",
            self.directory.path().display(),
            self.address
        );
        self.write("config.yml", &config);
    }

    /// Writes a file that its configuration can name.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.directory.path().join(name);
        fs::write(&file, text).expect("a file of the registry can be written");
        file
    }

    /// Stops it and starts it again with what it had and these further lines of configuration.
    pub async fn restart(&mut self, more: &str) {
        self.down();
        self.configure(more);
        self.up().await;
    }

    /// Starts it by this command, which runs `docker-registry` (perhaps in a network namespace).
    #[must_use]
    pub fn run(mut self, mut command: Command) -> Self {
        command.arg("serve").arg(self.directory.path().join("config.yml"));
        command.env("OTEL_TRACES_EXPORTER", "none");
        self.process = Some(Process::spawn(command, &self.log_file()));
        self
    }

    /// Waits until it answers.
    pub async fn wait(&mut self) {
        eventually(Duration::from_secs(20), "docker-registry listening", || async {
            TcpStream::connect(self.address).await.ok()
        })
        .await;
    }

    /// Stops it.
    pub fn down(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again with what it had.
    pub async fn up(&mut self) {
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.directory.path().join("config.yml"));
        self.process = Some(Process::spawn(command, &self.log_file()));
        self.wait().await;
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As an upstream's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Pushes an image.
    pub async fn push(&self, image: &Image, format: Format, repository: &str, tag: &str) {
        layout::push(image, format, self.address, repository, tag).await;
    }

    /// What was asked of it since [`Self::forget`], without pushes.
    #[must_use]
    pub fn accesses(&self) -> Vec<Access> {
        let log = read_log(&self.log_file());
        log.lines().filter_map(parse_access).filter(|access| matches!(access.method.as_str(), "GET" | "HEAD")).collect()
    }

    /// GET requests of blobs.
    #[must_use]
    pub fn blob_gets(&self) -> Vec<Access> {
        self.accesses().into_iter().filter(|access| access.method == "GET" && access.path.contains("/blobs/")).collect()
    }

    /// Empties the log.
    ///
    /// # Panics
    /// If the log cannot be written.
    pub fn forget(&self) {
        let log = fs::OpenOptions::new().write(true).create(true).truncate(true).open(self.log_file());
        log.expect("the log can be emptied");
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

/// A port that was free a moment ago.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    listener.local_addr().expect("a listener has an address").port()
}

/// The combined log format: `CLIENT - - [TIME] "METHOD PATH PROTOCOL" STATUS BYTES "REFERER" "AGENT"`.
fn parse_access(line: &str) -> Option<Access> {
    let mut quoted = line.split('"');
    let client = quoted.next()?.split_whitespace().next()?;
    let mut request = quoted.next()?.split_whitespace();
    let (method, path) = (request.next()?, request.next()?);
    request.next().filter(|protocol| protocol.starts_with("HTTP/"))?;
    let mut result = quoted.next()?.split_whitespace();
    let (status, bytes) = (result.next()?.parse().ok()?, result.next()?.parse().ok()?);
    let agent = quoted.nth(2).unwrap_or_default();
    Some(Access {
        client: client.to_owned(),
        method: method.to_owned(),
        path: path.to_owned(),
        status,
        bytes,
        agent: agent.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_read_from_its_line() {
        let line = r#"10.0.0.2 - - [21/Nov/2026:06:00:00 +0000] "GET /v2/a/blobs/sha256:00?x=1 HTTP/1.1" 206 17 "" "containerd/1.6.20""#;
        let access = parse_access(line).expect("this is such a line");
        assert_eq!(
            (access.client.as_str(), access.method.as_str(), access.status, access.bytes),
            ("10.0.0.2", "GET", 206, 17)
        );
        assert_eq!((access.path.as_str(), access.agent.as_str()), ("/v2/a/blobs/sha256:00?x=1", "containerd/1.6.20"));
        assert_eq!(parse_access(r#"time="..." level=warning msg="x" go.version=go1.19"#), None);
    }
}
