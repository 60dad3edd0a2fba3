#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt;

use super::{super::edit::Action, *};
use crate::failure::{CANNOT_CREATE, USAGE};

struct Node {
    directory: tempfile::TempDir,
}

const FOREIGN: &str =
    "server = \"https://a.test\"\n# keep me\n\n[host.\"https://m.test\"]\n  capabilities = [\"pull\"]\n";

impl Node {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn args(&self, registries: &[&str]) -> ContainerdArgs {
        ContainerdArgs {
            mirror: MirrorArgs {
                registry: registries.iter().map(|&name| name.to_owned()).collect(),
                endpoint: "http://127.0.0.1:5050".to_owned(),
                ..MirrorArgs::default()
            },
            certs_dir: self.directory.path().join("certs.d"),
            containerd_config: self.directory.path().join("config.toml"),
        }
    }

    fn put(&self, registry: &str, text: &str) {
        let directory = self.directory.path().join("certs.d").join(registry);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(HOSTS), text).unwrap();
    }

    fn get(&self, registry: &str) -> String {
        fs::read_to_string(self.directory.path().join("certs.d").join(registry).join(HOSTS)).unwrap()
    }

    /// Every file below, by its path from the top.
    fn files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let text = fs::read_to_string(&path).unwrap();
                    files.insert(path.strip_prefix(self.directory.path()).unwrap().to_owned(), text);
                }
            }
        }
        files
    }
}

fn actions(report: &Report) -> Vec<Action> {
    report.files.iter().map(|file| file.action).collect()
}

#[test]
fn a_second_run_changes_nothing() {
    let node = Node::new();
    node.put("quay.io", FOREIGN);
    let args = node.args(&["_default", "docker.io", "quay.io"]);
    assert_eq!(actions(&configure(&args).unwrap()), [Action::Created, Action::Created, Action::Merged]);
    let first = node.files();
    assert_eq!(first.len(), 4, "three files and one backup: {first:?}");
    assert_eq!(actions(&configure(&args).unwrap()), [Action::Unchanged; 3]);
    assert_eq!(node.files(), first);
}

#[test]
fn removing_restores_exactly_what_was_there() {
    for foreign in [FOREIGN, FOREIGN.trim_end(), "server = \"https://a.test\""] {
        let node = Node::new();
        node.put("quay.io", foreign);
        let before = node.files();
        let mut args = node.args(&["_default", "quay.io"]);
        configure(&args).unwrap();
        assert_ne!(node.files(), before);
        args.mirror.remove = true;
        assert_eq!(actions(&configure(&args).unwrap()), [Action::Removed, Action::Restored]);
        assert_eq!(node.files(), before);
        assert!(!args.certs_dir.join("_default").exists());
        assert_eq!(actions(&configure(&args).unwrap()), [Action::Unchanged; 2], "and once more");
    }
}

#[test]
fn removing_without_names_finds_every_mirror() {
    let node = Node::new();
    node.put("quay.io", FOREIGN);
    node.put("gcr.io", FOREIGN);
    let before = node.files();
    configure(&node.args(&["quay.io", "ghcr.io"])).unwrap();
    configure(&node.args(&[])).unwrap();
    let mut args = node.args(&[]);
    args.mirror.remove = true;
    assert_eq!(actions(&configure(&args).unwrap()), [Action::Removed, Action::Removed, Action::Restored]);
    assert_eq!(node.files(), before);
    assert!(configure(&args).unwrap().files.is_empty());
}

#[test]
fn the_backup_is_of_the_time_before_the_first_run() {
    let node = Node::new();
    node.put("quay.io", FOREIGN);
    let mut args = node.args(&["quay.io"]);
    configure(&args).unwrap();
    args.mirror.endpoint = "http://127.0.0.1:6050".to_owned();
    let report = configure(&args).unwrap();
    assert_eq!(actions(&report), [Action::Updated]);
    assert_eq!(fs::read_to_string(report.files[0].backup.as_ref().unwrap()).unwrap(), FOREIGN);
    assert!(node.get("quay.io").contains("6050") && !node.get("quay.io").contains("5050"));
}

#[test]
fn edits_made_since_survive_the_removal() {
    let node = Node::new();
    node.put("quay.io", FOREIGN);
    let mut args = node.args(&["quay.io", "docker.io"]);
    configure(&args).unwrap();
    let edit = "\n[host.\"https://new.test\"]\n";
    node.put("quay.io", &format!("{}{edit}", node.get("quay.io")));
    node.put("docker.io", &format!("{}{edit}", node.get("docker.io")));
    assert_eq!(actions(&configure(&args).unwrap()), [Action::Unchanged; 2]);
    args.mirror.remove = true;
    assert_eq!(actions(&configure(&args).unwrap()), [Action::Restored; 2]);
    assert_eq!(node.get("quay.io"), format!("{FOREIGN}{edit}"));
    assert!(node.get("docker.io").contains("new.test") && !node.get("docker.io").contains("127.0.0.1"));
}

#[test]
fn a_dry_run_writes_nothing_and_tells_the_same() {
    let node = Node::new();
    node.put("quay.io", FOREIGN);
    let before = node.files();
    let mut args = node.args(&["_default", "quay.io"]);
    args.mirror.dry_run = true;
    assert_eq!(actions(&configure(&args).unwrap()), [Action::Created, Action::Merged]);
    assert_eq!(node.files(), before);
}

#[test]
fn a_file_that_cannot_take_a_host_stops_everything_before_anything_is_written() {
    let node = Node::new();
    node.put("quay.io", "host = { \"https://m.test\" = {} }\n");
    let before = node.files();
    let failure = configure(&node.args(&["_default", "quay.io"])).unwrap_err();
    assert_eq!(failure.code(), CANNOT_CREATE);
    assert!(failure.to_string().contains("by hand"), "{failure}");
    assert_eq!(node.files(), before);
}

#[test]
fn permissions_and_links_of_a_file_are_kept() {
    let node = Node::new();
    node.put("real", FOREIGN);
    let real = node.directory.path().join("certs.d/real/hosts.toml");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    let linked = node.directory.path().join("certs.d/quay.io");
    fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink(&real, linked.join(HOSTS)).unwrap();
    configure(&node.args(&["quay.io"])).unwrap();
    assert!(fs::symlink_metadata(linked.join(HOSTS)).unwrap().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(hosts::has_block(&node.get("real")));
}

#[test]
fn the_directory_that_containerd_looks_at_first_is_used() {
    let node = Node::new();
    node.put("registry.test_5000_", FOREIGN);
    configure(&node.args(&["registry.test:5000"])).unwrap();
    assert!(hosts::has_block(&node.get("registry.test_5000_")));
}

#[test]
fn registries_with_files_of_their_own_are_named_as_not_mirrored() {
    let node = Node::new();
    node.put("quay.io", FOREIGN);
    let told = |report: Report| report.warnings.iter().filter(|warning| warning.contains("--registry quay.io")).count();
    assert_eq!(told(configure(&node.args(&["_default"])).unwrap()), 1);
    assert_eq!(told(configure(&node.args(&["_default", "quay.io"])).unwrap()), 0);
}

#[test]
fn plain_hosts_that_containerd_would_ask_over_tls_are_told() {
    let node = Node::new();
    node.put("quay.io", "[host.\"http://m.test\"]\n  skip_verify = true\n");
    let warnings = configure(&node.args(&["docker.io"])).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("http://m.test")), "{warnings:?}");
}

#[test]
fn names_and_endpoints_that_cannot_be_are_refused() {
    let node = Node::new();
    for registry in ["", "..", "a/b", "https://a.test", "UPPER.test"] {
        assert_eq!(configure(&node.args(&[registry])).unwrap_err().code(), USAGE, "{registry}");
    }
    for endpoint in ["", "127.0.0.1:5050", "ftp://a.test", "http://a.test/v2", "http://u:p@a.test"] {
        let mut args = node.args(&["_default"]);
        args.mirror.endpoint = endpoint.to_owned();
        assert_eq!(configure(&args).unwrap_err().code(), USAGE, "{endpoint}");
    }
    assert!(node.files().is_empty());
}
