//! What in containerd's own configuration would keep it from using the mirror. It fails silently there: containerd then
//! goes straight to the registry.

use std::{fs, io, path::Path};

use toml::{Table, Value};

const RESTART: &str = "then restart containerd (systemctl restart containerd)";

/// The plugins that hold the registry settings: containerd 1.x, then 2.x.
const PLUGINS: [&str; 2] = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"];

/// The traps found, each with its fix.
pub(super) fn containerd(config: &Path, certs_dir: &Path) -> Vec<String> {
    let at = config.display();
    let text = match fs::read_to_string(config) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return vec![format!(
                "{at} does not exist, and by default containerd does not read hosts.toml reliably; write it with\n{}\n  {RESTART}. \
                 If containerd's configuration is elsewhere (k3s, RKE2), name it with --containerd-config",
                snippet(3, certs_dir)
            )];
        }
        Err(error) => {
            return vec![format!("{at} cannot be read ({error}): whether containerd reads hosts.toml is not known")];
        }
    };
    match toml::from_str::<Table>(&text) {
        Ok(table) => findings(&at.to_string(), &table, certs_dir),
        Err(error) => {
            let why = error.message().replace('\n', ", ");
            vec![format!("{at} is not valid TOML ({why}): containerd will not start with it")]
        }
    }
}

fn findings(at: &str, config: &Table, certs_dir: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut config_path_is_set = false;
    for plugin in PLUGINS {
        let Some(registry) = registry(config, plugin) else { continue };
        let config_path = registry.get("config_path").and_then(Value::as_str).unwrap_or("");
        let filled = |key: &str| registry.get(key).and_then(Value::as_table).is_some_and(|table| !table.is_empty());
        if config_path.is_empty() {
            if filled("mirrors") {
                warnings.push(format!(
                    "{at}: `mirrors` of {plugin} is the deprecated way and keeps config_path unused; move its entries to {}/REGISTRY/hosts.toml, \
                     delete `mirrors` and set config_path as below",
                    certs_dir.display()
                ));
            }
            continue;
        }
        config_path_is_set = true;
        if filled("mirrors") {
            warnings.push(format!(
                "{at}: `mirrors` and config_path of {plugin} stand together: containerd 2.2 and later refuse to load the CRI plugin; \
                 delete `mirrors`, {RESTART}"
            ));
        }
        if config_path.contains(':') {
            warnings.push(format!(
                "{at}: config_path of {plugin} is a list ({config_path}), which containerd 2.1 and later take for one directory that does not \
                 exist; write config_path = \"{}\", {RESTART}",
                certs_dir.display()
            ));
        } else if Path::new(config_path) != certs_dir && !same_directory(Path::new(config_path), certs_dir) {
            warnings.push(format!(
                "{at}: containerd reads {config_path}, not {}; run this again with --certs-dir {config_path}",
                certs_dir.display()
            ));
        }
    }
    if !config_path_is_set {
        let version = config.get("version").and_then(Value::as_integer).unwrap_or(1);
        let imports = config.get("imports").and_then(Value::as_array).is_some_and(|imports| !imports.is_empty());
        let imported = if imports { ", unless one of its `imports` does" } else { "" };
        warnings.push(format!(
            "{at} does not set config_path{imported}: containerd will not read hosts.toml; add\n{}\n  {RESTART}",
            snippet(version, certs_dir)
        ));
    }
    warnings
}

fn registry<'a>(config: &'a Table, plugin: &str) -> Option<&'a Table> {
    config.get("plugins")?.get(plugin)?.get("registry")?.as_table()
}

fn snippet(version: i64, certs_dir: &Path) -> String {
    let (version, plugin) = if version >= 3 { (3, PLUGINS[1]) } else { (2, PLUGINS[0]) };
    format!(
        "    version = {version}\n    [plugins.\"{plugin}\".registry]\n      config_path = \"{}\"",
        certs_dir.display()
    )
}

/// Links and dots aside.
fn same_directory(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn found(config: &str) -> Vec<String> {
        findings("config.toml", &toml::from_str(config).unwrap(), Path::new("/etc/containerd/certs.d"))
    }

    #[test]
    fn one_directory_is_fine_in_both_generations() {
        for (version, plugin) in [(2, PLUGINS[0]), (3, PLUGINS[1])] {
            let config = format!(
                "version = {version}\n[plugins.\"{plugin}\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
            );
            assert_eq!(found(&config), Vec::<String>::new());
        }
    }

    #[test]
    fn an_unset_path_is_told_with_the_lines_to_add() {
        for (version, plugin) in [(2, PLUGINS[0]), (3, PLUGINS[1])] {
            for registry in [String::new(), format!("[plugins.\"{plugin}\".registry]\nconfig_path = \"\"\n")] {
                let warnings = found(&format!("version = {version}\n{registry}"));
                assert_eq!(warnings.len(), 1);
                assert!(
                    warnings[0].contains("does not set config_path") && warnings[0].contains(plugin),
                    "{warnings:?}"
                );
            }
        }
    }

    #[test]
    fn a_list_and_another_directory_and_mirrors_are_told() {
        let with =
            |lines: &str| found(&format!("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n{lines}"));
        let list = with("config_path = \"/etc/containerd/certs.d:/etc/docker/certs.d\"");
        assert!(list.len() == 1 && list[0].contains("is a list"), "{list:?}");
        let other = with("config_path = \"/elsewhere\"");
        assert!(other.len() == 1 && other[0].contains("--certs-dir /elsewhere"), "{other:?}");
        let mirrors = with(
            "config_path = \"/etc/containerd/certs.d\"\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]",
        );
        assert!(mirrors.len() == 1 && mirrors[0].contains("refuse to load"), "{mirrors:?}");
    }

    #[test]
    fn a_missing_or_broken_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        assert!(containerd(&file, directory.path())[0].contains("does not exist"));
        fs::write(&file, "version = ").unwrap();
        assert!(containerd(&file, directory.path())[0].contains("not valid TOML"));
    }
}
