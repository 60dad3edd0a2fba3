//! Programs that a test needs and a machine may lack.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The Debian package of each program that tests use.
const PACKAGES: [(&str, &str); 14] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("docker-registry", "docker-registry"),
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("skopeo", "skopeo"),
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("ch-image", "charliecloud-builders"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("systemd-analyze", "systemd"),
    ("nsenter", "util-linux"),
];

/// Whether a test may go on: all `programs` are there and, if it needs `root`, it has it. Else says so in one line; with
/// `SHOAL_REQUIRE_CLIENTS=1` it panics instead. `SHOAL_SKIP_CLIENTS=1` says no to every test that asks.
///
/// # Panics
/// If something is missing that must not be.
#[must_use]
pub fn available(programs: &[&str], root: bool) -> bool {
    let missing = programs.iter().find(|program| find(program).is_none()).map(|missing| {
        let package = PACKAGES.iter().find(|(program, _)| program == missing).map_or(*missing, |(_, package)| package);
        format!("{missing} not installed (apt-get install {package})")
    });
    possible(missing.or_else(|| (root && !is_root()).then(|| String::from("needs root"))))
}

/// As [`available`], for what is missing in words of the caller's own.
///
/// # Panics
/// If something is missing that must not be.
#[must_use]
pub fn possible(missing: Option<String>) -> bool {
    let flag = |name: &str| env::var_os(name).is_some_and(|value| value == "1");
    let skipped = flag("SHOAL_SKIP_CLIENTS").then(|| String::from("SHOAL_SKIP_CLIENTS=1 is set"));
    let Some(reason) = skipped.or(missing) else { return true };
    assert!(!flag("SHOAL_REQUIRE_CLIENTS"), "SHOAL_REQUIRE_CLIENTS=1, but {reason}");
    skip(&reason);
    false
}

/// Says in one line why the test does nothing. Goes past the capture of output: a passing test prints nothing otherwise.
fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    note(&format!("SKIPPED: {reason} [{test}]"));
}

/// Says something in one line, past the capture of output: figures that a reader of the test log wants.
pub fn note(line: &str) {
    // In one piece: tests run side by side.
    io::stderr().write_all(format!("{line}\n").as_bytes()).ok();
}

/// Whether the tests run as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program is.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/bin"].map(PathBuf::from));
    places.map(|place| place.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
