//! A real containerd with everything of its own: root, state, sockets, registry hosts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::{
    cri, eventually,
    process::{Place, Process, run},
};

/// How long a pull may take before it counts as hanging.
const PULL: Duration = Duration::from_secs(180);

/// A running containerd. Needs root: layers are unpacked.
#[derive(Debug)]
pub struct Containerd {
    // Ends before its directory goes.
    process: Process,
    directory: TempDir,
    place: Place,
}

/// How a pull ended.
#[derive(Debug)]
pub struct Pulled {
    /// Whether the image is there.
    pub ok: bool,
    /// What the client said.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

impl Pulled {
    /// The pull must have succeeded.
    ///
    /// # Panics
    /// If it failed: with what the client said.
    pub fn expect_ok(self) -> Self {
        assert!(self.ok, "the pull failed: {}", self.output);
        self
    }
}

impl Containerd {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// If it does not: with its log.
    pub async fn start(place: &Place) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let base = directory.path();
        fs::create_dir_all(base.join("certs.d")).expect("a directory can be made");
        let config = base.join("config.toml");
        fs::write(&config, configuration(base)).expect("containerd's configuration can be written");
        let mut command = place.command("containerd");
        command.arg("--config").arg(&config);
        let mut process = Process::spawn(command, &base.join("log"));
        let socket = base.join("c.sock");
        eventually(Duration::from_secs(60), "containerd listening", || {
            let ended = process.ended();
            let (socket, log) = (socket.clone(), base.join("log"));
            async move {
                assert!(ended.is_none(), "containerd ended: {}", crate::process::read_log(&log));
                UnixStream::connect(&socket).await.ok()
            }
        })
        .await;
        Self { process, directory, place: place.clone() }
    }

    /// Writes `certs.d/REGISTRY/hosts.toml`. containerd reads it at every pull.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn hosts(&self, registry: &str, text: &str) {
        let directory = self.certs_dir().join(registry);
        fs::create_dir_all(&directory).expect("a directory can be made");
        fs::write(directory.join("hosts.toml"), text).expect("hosts.toml can be written");
    }

    /// Puts a mirror before the server of `origin.test`.
    pub fn mirror(&self, mirror: &str, server: &str) {
        let text = format!("server = \"{server}\"\n[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        self.hosts("origin.test", &text);
    }

    /// The directory that `config_path` names.
    #[must_use]
    pub fn certs_dir(&self) -> PathBuf {
        self.directory.path().join("certs.d")
    }

    /// Pulls with `ctr` into a containerd namespace that has nothing yet.
    pub async fn pull(&self, image: &str) -> Pulled {
        self.pull_with(image, &[]).await
    }

    /// Pulls with `ctr` and further arguments.
    ///
    /// # Panics
    /// If `ctr` cannot be run at all.
    pub async fn pull_with(&self, image: &str, arguments: &[&str]) -> Pulled {
        let mut command = self.ctr(&format!("n{:08x}", rand::random::<u32>()));
        command.args(["images", "pull", "--snapshotter", "native", "--hosts-dir"]).arg(self.certs_dir());
        command.args(arguments).arg(image);
        let started = std::time::Instant::now();
        match run(command, PULL).await {
            Ok(output) => Pulled {
                ok: output.status.success(),
                output: [output.stdout, output.stderr]
                    .map(|text| String::from_utf8_lossy(&text).into_owned())
                    .join("\n"),
                took: started.elapsed(),
            },
            Err(error) => {
                Pulled { ok: false, output: format!("{error}; log: {}", self.log()), took: started.elapsed() }
            }
        }
    }

    /// Pulls as a kubelet does, over CRI.
    pub async fn cri_pull(&self, image: &str, account: Option<(&str, &str)>) -> Result<String, cri::CriError> {
        cri::pull_image(&self.directory.path().join("c.sock"), image, account, PULL).await
    }

    /// `ctr` in a containerd namespace.
    #[must_use]
    pub fn ctr(&self, namespace: &str) -> Command {
        let mut command = self.place.command("ctr");
        command.arg("--address").arg(self.directory.path().join("c.sock")).args(["--namespace", namespace]);
        command
    }

    /// Everything that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Content is not shared between containerd namespaces, so that each pulls afresh; nothing is written outside `base`.
fn configuration(base: &Path) -> String {
    let base = base.display();
    format!(
        r#"version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{base}/c.sock"
[ttrpc]
  address = "{base}/t.sock"
[debug]
  level = "info"
[plugins."io.containerd.metadata.v1.bolt"]
  content_sharing_policy = "isolated"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{base}/cni/bin"
  conf_dir = "{base}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{base}/certs.d"
"#
    )
}
