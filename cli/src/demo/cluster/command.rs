//! The command line of a daemon, its environment, and the files that it needs to begin with.

use std::{
    fs, io,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::Rng as _;
use tokio::process::Command;

use super::ClusterOptions;

/// Tells a daemon the process id of its demo.
const DEMO_VARIABLE: &str = "SHOAL_DEMO_PROCESS";

pub(super) fn command(
    options: &ClusterOptions,
    number: usize,
    data_dir: &Path,
    secret: &Path,
    bootstrap: Option<SocketAddr>,
) -> Command {
    let mut command = Command::new(&options.program);
    command.arg("daemon").arg("--data-dir").arg(data_dir).arg("--secret-file").arg(secret);
    for listen in ["--registry-listen", "--p2p-listen", "--observe-listen"] {
        command.args([listen, "127.0.0.1:0"]);
    }
    command.args(["--log", "json"]);
    for upstream in &options.upstreams {
        command.args(["--upstream", upstream]);
    }
    if let Some(first) = bootstrap {
        command.arg("--bootstrap").arg(first.to_string());
    }
    command.args(&options.flags);
    // Settings for the user's own daemon must not reach these; only the log level may.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("SHOAL_") && key != "SHOAL_LOG" {
            command.env_remove(key);
        }
    }
    let slow = options.slow.filter(|slow| slow.number == number).map(|slow| slow.rate);
    if let Some(rate) = slow.or(options.link_rate) {
        for limit in ["SHOAL_LIMITS_UPLOAD", "SHOAL_LIMITS_DOWNLOAD", "SHOAL_LIMITS_ORIGIN"] {
            command.env(limit, rate.to_string());
        }
    }
    command.env(DEMO_VARIABLE, std::process::id().to_string());
    // A group of their own keeps a terminal's ctrl-c away from the daemons, so that they are ended in order.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Makes this process end with the demo that has started it, however that ends, SIGKILL included. For `shoal daemon` to
/// call first; does nothing in a process that no cluster has started.
pub fn end_with_demo() {
    #[cfg(target_os = "linux")]
    if let Some(demo) = std::env::var_os(DEMO_VARIABLE) {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
            tracing::debug!(%error, "may outlive the demo");
        }
        // It may have ended before the signal was asked for.
        let parent = getppid().map(|parent| parent.as_raw_nonzero().to_string());
        if parent.as_deref() != demo.to_str() {
            std::process::exit(0);
        }
    }
}

/// The cluster's secret as a file for each node. With the DHT it is one key in one file. Without, each node's file begins
/// with a key of its own and goes on with those of all the others, as in the middle of a rotation: peers accept any of
/// the keys, but the DHT's transport knows the first one only, so that no two nodes meet there.
pub(super) fn write_secrets(options: &ClusterOptions) -> io::Result<Vec<PathBuf>> {
    if options.dht {
        let path = options.dir.join("secret");
        write_secret(&path, &[new_key()])?;
        return Ok(vec![path; options.nodes]);
    }
    let mut keys: Vec<String> = (0..options.nodes).map(|_| new_key()).collect();
    let paths = (1..=options.nodes).map(|number| {
        let path = options.dir.join(format!("secret{number}"));
        write_secret(&path, &keys)?;
        keys.rotate_left(1);
        Ok(path)
    });
    paths.collect()
}

fn new_key() -> String {
    let mut key = [0; 32];
    rand::rng().fill_bytes(&mut key);
    BASE64_STANDARD.encode(key)
}

fn write_secret(path: &Path, keys: &[String]) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    keys.iter().try_for_each(|key| writeln!(file, "{key}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keys(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_secret_is_one_line_of_32_bytes_that_only_its_owner_can_read() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions { dir: dir.path().to_owned(), nodes: 3, ..ClusterOptions::default() };
        let paths = write_secrets(&options).unwrap();
        assert_eq!(paths.len(), 3);
        assert!(paths.iter().all(|path| *path == paths[0]));
        assert_eq!(fs::metadata(&paths[0]).unwrap().permissions().mode() & 0o777, 0o600);
        let [key] = &keys(&paths[0])[..] else { panic!("not one line") };
        assert_eq!(BASE64_STANDARD.decode(key).unwrap().len(), 32);
    }

    #[test]
    fn without_the_dht_each_node_has_all_the_keys_and_another_one_first() {
        let dir = tempfile::tempdir().unwrap();
        let options = ClusterOptions { dir: dir.path().to_owned(), nodes: 3, dht: false, ..ClusterOptions::default() };
        let mut files: Vec<Vec<String>> = write_secrets(&options).unwrap().iter().map(|path| keys(path)).collect();
        let mut firsts: Vec<String> = files.iter().map(|keys| keys[0].clone()).collect();
        files.iter_mut().for_each(|keys| keys.sort());
        firsts.sort();
        assert!(files.iter().all(|keys| *keys == firsts), "{files:?}");
        firsts.dedup();
        assert_eq!(firsts.len(), 3);
    }
}
