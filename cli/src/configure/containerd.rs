//! `shoal configure containerd`: a `hosts.toml` for each registry.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    MirrorArgs, Report, check,
    edit::Plan,
    hosts::{self, Host},
    names,
};
use crate::failure::Failure;

pub(super) const LONG_ABOUT: &str = "\
Make the daemon a registry mirror of containerd (Kubernetes, nerdctl, ctr with --hosts-dir)

Writes CERTS_DIR/REGISTRY/hosts.toml, which containerd reads at every pull: the daemon is asked first, and if it cannot \
serve, containerd goes on to the registry itself. Without --registry it is written for `_default`, which stands for every \
registry that has no directory of its own.

A hosts.toml that is there already is kept: it is copied once to hosts.toml.shoal-backup, and the daemon is put before \
its hosts. Running it again changes nothing; --remove restores what was there.

containerd's config.toml is only read: what would keep the mirror from being used is told, with the fix.";

const HOSTS: &str = "hosts.toml";

#[derive(Debug, clap::Args)]
pub(crate) struct ContainerdArgs {
    #[command(flatten)]
    mirror: MirrorArgs,
    /// The directory that containerd's config_path names
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    certs_dir: PathBuf,
    /// containerd's own configuration, to be checked
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
}

pub(super) fn configure(args: &ContainerdArgs) -> Result<Report, Failure> {
    let ContainerdArgs { mirror, certs_dir, .. } = args;
    let endpoint = mirror.endpoint()?;
    let mut registries = mirror.registry.clone();
    if registries.is_empty() && !mirror.remove {
        registries.push("_default".to_owned());
    }
    let mut plans = Vec::new();
    for registry in &registries {
        let path = directory(certs_dir, registry)?.join(HOSTS);
        plans.push(mirror.plan(&path, &Host { registry, endpoint: &endpoint })?.with_directory());
    }
    if mirror.remove && registries.is_empty() {
        for (registry, _) in known_hosts(certs_dir).into_iter().filter(|(_, text)| hosts::has_block(text)) {
            let part = Host { registry: &registry, endpoint: &endpoint };
            plans.push(Plan::take(&certs_dir.join(&registry).join(HOSTS), &part)?.with_directory());
        }
    }
    let mut report = mirror.carry_out(plans)?;
    if !mirror.remove {
        report.warnings = check::containerd(&args.containerd_config, certs_dir);
        report.warnings.extend(overruled(certs_dir, &registries));
        report.warnings.extend(traps(certs_dir));
    }
    report.next.push("containerd reads hosts.toml at every pull: no restart is needed for it.".to_owned());
    Ok(report)
}

/// containerd looks for `host_port_` before `host:port`.
fn directory(certs_dir: &Path, registry: &str) -> Result<PathBuf, Failure> {
    names::check(registry)?;
    if let Some((host, port)) = registry.rsplit_once(':') {
        let underscored = certs_dir.join(format!("{host}_{port}_"));
        if underscored.is_dir() {
            return Ok(underscored);
        }
    }
    Ok(certs_dir.join(registry))
}

/// `_default` is not used for a registry that has a file of its own.
fn overruled(certs_dir: &Path, registries: &[String]) -> Vec<String> {
    if !registries.iter().any(|registry| registry == "_default") {
        return Vec::new();
    }
    known_hosts(certs_dir)
        .into_iter()
        .filter(|(name, text)| name != "_default" && !registries.contains(name) && !hosts::has_block(text))
        .map(|(name, _)| {
            format!("{name} has a hosts.toml of its own, so _default is not used for it; to mirror it as well, add --registry {name}")
        })
        .collect()
}

/// What is wrong with any `hosts.toml`, ours or not.
fn traps(certs_dir: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, text) in known_hosts(certs_dir) {
        let path = certs_dir.join(&name).join(HOSTS);
        warnings.extend(hosts::traps(&text).into_iter().map(|trap| format!("{}: {trap}", path.display())));
    }
    warnings
}

/// Every registry that has a readable `hosts.toml`, and its text, sorted by name.
fn known_hosts(certs_dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(certs_dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            Some((entry.file_name().into_string().ok()?, fs::read_to_string(entry.path().join(HOSTS)).ok()?))
        })
        .collect()
}

#[cfg(test)]
#[path = "containerd_tests.rs"]
mod tests;
