//! `shoal configure containerd`: a `hosts.toml` for each registry.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;
use url::Url;

use super::{check, hosts};
use crate::{
    failure::{CANNOT_CREATE, Failure, NO_PERMISSION, USAGE},
    output::Output,
};

pub(super) const LONG_ABOUT: &str = "\
Make the daemon a registry mirror of containerd (Kubernetes, nerdctl, ctr with --hosts-dir)

Writes CERTS_DIR/REGISTRY/hosts.toml, which containerd reads at every pull: the daemon is asked first, and if it cannot \
serve, containerd goes on to the registry itself. Without --registry it is written for `_default`, which stands for every \
registry that has no directory of its own.

A hosts.toml that is there already is kept: it is copied once to hosts.toml.shoal-backup, and the daemon is put before \
its hosts. Running it again changes nothing; --remove restores what was there.

containerd's config.toml is only read: what would keep the mirror from being used is told, with the fix.";

const HOSTS: &str = "hosts.toml";
const BACKUP: &str = "hosts.toml.shoal-backup";

#[derive(Debug, clap::Args)]
pub(crate) struct ContainerdArgs {
    /// A registry to mirror, as image names have it (docker.io); repeatable [default: _default; with --remove: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    registry: Vec<String>,
    /// The directory that containerd's config_path names
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    certs_dir: PathBuf,
    /// Where the daemon's registry listens
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5050")]
    endpoint: String,
    /// Take the mirror away and restore what was there
    #[arg(long)]
    remove: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// containerd's own configuration, to be checked
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
}

/// What was done to one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// It was not there.
    Created,
    /// It was ours, with another endpoint.
    Updated,
    /// It was somebody else's: our host stands before theirs now.
    Merged,
    /// Nothing to do.
    Unchanged,
    /// It was ours and is gone.
    Removed,
    /// Our host is out of it, the rest is as it was.
    Restored,
}

#[derive(Debug, Serialize)]
struct FileReport {
    path: PathBuf,
    action: Action,
    /// Where the file of before is kept.
    backup: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    files: Vec<FileReport>,
    warnings: Vec<String>,
    dry_run: bool,
    removed: bool,
}

pub(super) fn run(args: &ContainerdArgs, output: Output) -> Result<ExitCode, Failure> {
    let report = configure(args)?;
    output.report(&report, text)?;
    Ok(ExitCode::SUCCESS)
}

fn configure(args: &ContainerdArgs) -> Result<Report, Failure> {
    let endpoint = endpoint(&args.endpoint)?;
    let mut registries = args.registry.clone();
    if registries.is_empty() && !args.remove {
        registries.push("_default".to_owned());
    }
    let mut plans = Vec::new();
    // All is planned before anything is written: a refusal leaves nothing half done.
    for registry in &registries {
        let directory = directory(&args.certs_dir, registry)?;
        let plan = if args.remove { plan_removal(&directory)? } else { plan_mirror(&directory, registry, &endpoint)? };
        plans.push(plan);
    }
    if args.remove && args.registry.is_empty() {
        for (name, _) in known_hosts(&args.certs_dir).into_iter().filter(|(_, text)| hosts::has_block(text)) {
            plans.push(plan_removal(&args.certs_dir.join(name))?);
        }
    }
    if !args.dry_run {
        for plan in &plans {
            plan.carry_out().map_err(|error| cannot_write(&plan.path, &error))?;
        }
    }
    let mut warnings = Vec::new();
    if !args.remove {
        warnings = check::containerd(&args.containerd_config, &args.certs_dir);
        warnings.extend(overruled(&args.certs_dir, &registries));
    }
    let files =
        plans.into_iter().map(|plan| FileReport { backup: plan.kept_backup(), path: plan.path, action: plan.action });
    Ok(Report { files: files.collect(), warnings, dry_run: args.dry_run, removed: args.remove })
}

/// What is to happen to one `hosts.toml`.
#[derive(Debug)]
struct Plan {
    path: PathBuf,
    action: Action,
    /// The new content; none: the file goes, or stays as it is if the action says so.
    content: Option<String>,
    backup: Backup,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backup {
    None,
    /// The file of before is copied there first.
    Make,
    /// There is one already.
    Keep,
    /// It goes back to its place.
    PutBack,
}

impl Plan {
    fn backup_path(&self) -> PathBuf {
        self.path.with_file_name(BACKUP)
    }

    fn kept_backup(&self) -> Option<PathBuf> {
        matches!(self.backup, Backup::Make | Backup::Keep).then(|| self.backup_path())
    }

    fn carry_out(&self) -> io::Result<()> {
        match self.backup {
            Backup::Make => {
                fs::copy(&self.path, self.backup_path())?;
            }
            Backup::PutBack => {
                write_atomically(&self.path, &fs::read_to_string(self.backup_path())?)?;
                return fs::remove_file(self.backup_path());
            }
            Backup::None | Backup::Keep => {}
        }
        match (&self.content, self.action) {
            (Some(content), _) => write_atomically(&self.path, content),
            (None, Action::Removed) => {
                fs::remove_file(&self.path)?;
                // Ours as well if it is empty now; somebody else's if not.
                if let Some(directory) = self.path.parent() {
                    fs::remove_dir(directory).ok();
                }
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }
}

fn plan_mirror(directory: &Path, registry: &str, endpoint: &str) -> Result<Plan, Failure> {
    let path = directory.join(HOSTS);
    let backup = if path.with_file_name(BACKUP).exists() { Backup::Keep } else { Backup::None };
    let Some(current) = read(&path)? else {
        let content = Some(hosts::fresh(registry, endpoint));
        return Ok(Plan { path, action: Action::Created, content, backup });
    };
    if hosts::is_untouched(&current) {
        let fresh = hosts::fresh(registry, endpoint);
        let (action, content) =
            if fresh == current { (Action::Unchanged, None) } else { (Action::Updated, Some(fresh)) };
        return Ok(Plan { path, action, content, backup });
    }
    let wanted = hosts::with_host(&current, endpoint).map_err(|error| {
        let advice = format!("put this table before its other hosts by hand: [host.\"{endpoint}\"] with capabilities = [\"pull\", \"resolve\"]");
        Failure::new(CANNOT_CREATE, format!("{}: the file was left alone, {error}; {advice}", path.display()))
    })?;
    if wanted == current {
        return Ok(Plan { path, action: Action::Unchanged, content: None, backup });
    }
    let ours = hosts::is_own(&current) || hosts::has_block(&current);
    let action = if ours { Action::Updated } else { Action::Merged };
    // A backup of an earlier time is of what was there before us: the older one is the better one.
    let backup = if ours || backup == Backup::Keep { backup } else { Backup::Make };
    Ok(Plan { path, action, content: Some(wanted), backup })
}

fn plan_removal(directory: &Path) -> Result<Plan, Failure> {
    let path = directory.join(HOSTS);
    let saved = read(&path.with_file_name(BACKUP))?;
    let Some(current) = read(&path)? else {
        return Ok(Plan { path, action: Action::Unchanged, content: None, backup: Backup::None });
    };
    if !hosts::has_block(&current) {
        let backup = if saved.is_some() { Backup::Keep } else { Backup::None };
        return Ok(Plan { path, action: Action::Unchanged, content: None, backup });
    }
    if hosts::is_untouched(&current) {
        return Ok(Plan { path, action: Action::Removed, content: None, backup: Backup::None });
    }
    let rest = hosts::without_block(&current);
    match saved {
        Some(saved) if saved.trim_end() == rest.trim_end() => {
            Ok(Plan { path, action: Action::Restored, content: None, backup: Backup::PutBack })
        }
        // Edited since: the edits are somebody's work too.
        Some(_) => Ok(Plan { path, action: Action::Restored, content: Some(rest), backup: Backup::Keep }),
        None => Ok(Plan { path, action: Action::Restored, content: Some(rest), backup: Backup::None }),
    }
}

/// containerd looks for `host_port_` before `host:port`.
fn directory(certs_dir: &Path, registry: &str) -> Result<PathBuf, Failure> {
    let plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']')
    };
    if registry.is_empty() || registry.starts_with('.') || !registry.bytes().all(plain) {
        return Err(Failure::new(
            USAGE,
            format!(
                "--registry: {registry:?} is not a registry's name; the form is HOST or HOST:PORT as image names have it (docker.io)"
            ),
        ));
    }
    if let Some((host, port)) = registry.rsplit_once(':') {
        let underscored = certs_dir.join(format!("{host}_{port}_"));
        if underscored.is_dir() {
            return Ok(underscored);
        }
    }
    Ok(certs_dir.join(registry))
}

fn endpoint(text: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Failure::new(
            USAGE,
            format!("--endpoint: {why}; the form is http://IP:PORT, where the daemon's registry listens"),
        )
    };
    let url = Url::parse(text).map_err(|error| wrong(&format!("{text:?} is not a URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong(&format!("{text:?} is not an http URL")));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(wrong(&format!("{text:?} says more than scheme, host and port")));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
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

/// Every registry that has a readable `hosts.toml`, and its text, sorted by name.
fn known_hosts(certs_dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(certs_dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            Some((entry.file_name().into_string().ok()?, fs::read_to_string(entry.path().join(HOSTS)).ok()?))
        })
        .collect()
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot_write(path, &error)),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::PermissionDenied {
        Failure::new(NO_PERMISSION, format!("cannot change {}: {error}; run it as root", path.display()))
    } else {
        Failure::new(CANNOT_CREATE, format!("cannot change {}: {error}", path.display()))
    }
}

/// containerd may read at any moment: it sees the old file or the new one. A link is followed, permissions are kept.
fn write_atomically(path: &Path, content: &str) -> io::Result<()> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let mode = fs::metadata(&target).map_or(0o644, |found| found.permissions().mode() & 0o7777);
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    io::Write::write_all(&mut file, content.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    Ok(())
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    if report.files.is_empty() {
        lines.push("no hosts.toml mentions the daemon: nothing to do".to_owned());
    }
    for file in &report.files {
        let path = file.path.display();
        lines.push(match (file.action, report.dry_run) {
            (Action::Created, false) => format!("wrote {path}"),
            (Action::Created, true) => format!("would write {path}"),
            (Action::Updated, false) => format!("updated {path}"),
            (Action::Updated, true) => format!("would update {path}"),
            (Action::Merged, false) => format!("put the daemon before the other hosts of {path}"),
            (Action::Merged, true) => format!("would put the daemon before the other hosts of {path}"),
            (Action::Unchanged, _) if report.removed => format!("{path} does not mention the daemon: nothing to do"),
            (Action::Unchanged, _) => format!("{path} is as it should be"),
            (Action::Removed, false) => format!("removed {path}"),
            (Action::Removed, true) => format!("would remove {path}"),
            (Action::Restored, false) => format!("restored {path}"),
            (Action::Restored, true) => format!("would restore {path}"),
        });
        if let Some(backup) = &file.backup {
            lines.push(format!("  the file of before is kept as {}", backup.display()));
        }
    }
    for warning in &report.warnings {
        lines.push(format!("warning: {warning}"));
    }
    lines.push("containerd reads hosts.toml at every pull: no restart is needed for it.".to_owned());
    lines.join("\n")
}

#[cfg(test)]
#[path = "containerd_tests.rs"]
mod tests;
