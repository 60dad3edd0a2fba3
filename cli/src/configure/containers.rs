//! `shoal configure podman | crio | apptainer`: a drop-in for `registries.conf`, which the containers/image library reads.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::{
    MirrorArgs, Report,
    edit::{OwnFile, Plan, is_own, own_line, read},
    names,
};
use crate::failure::{CANNOT_CREATE, Failure, USAGE};

macro_rules! about {
    ($first:literal, $who:literal) => {
        concat!(
            $first,
            "\n\nWrites CONF_DIR/50-shoal.conf with a mirror for each registry: the daemon is asked first, and if it does not \
             have the image's manifest, ",
            $who,
            " goes to the registry itself. Without --registry the mirrors are those of the registries that a daemon without \
             `upstreams` answers for. Running it again adds registries; --remove takes away those named, or all.\n\n\
             A registry that another file of registries.conf already describes is left to that file: of two descriptions of \
             one prefix the last one counts, and ours would hide the other. The lines to add there are told."
        )
    };
}

pub(super) const PODMAN: &str =
    about!("Make the daemon a registry mirror of podman, buildah and skopeo", "podman (buildah, skopeo)");
pub(super) const CRIO: &str = about!("Make the daemon a registry mirror of CRI-O", "CRI-O");
pub(super) const APPTAINER: &str =
    about!("Make the daemon a registry mirror of Apptainer and SingularityCE (docker:// images)", "Apptainer");

/// Sorts before a file that an administrator wants to have the last word, and after the distributions' own.
const FILE: &str = "50-shoal.conf";

/// A program that uses the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    /// And buildah and skopeo.
    Podman,
    Crio,
    /// And SingularityCE.
    Apptainer,
}

/// Which pulls ask the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Pulls {
    /// Tags and digests
    All,
    /// Digests only; tags, and the layers of images pulled by tag, come from the registry
    DigestOnly,
    /// Tags only
    TagOnly,
}

impl Pulls {
    const fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::DigestOnly => "digest-only",
            Self::TagOnly => "tag-only",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct ContainersArgs {
    #[command(flatten)]
    mirror: MirrorArgs,
    /// The directory of drop-ins; the registries.conf beside it is checked. Without root: ~/.config/containers/registries.conf.d
    #[arg(long, value_name = "DIR", default_value = "/etc/containers/registries.conf.d")]
    conf_dir: PathBuf,
    /// Which pulls ask the daemon (needs containers/image 5.23, podman 4.3)
    #[arg(long, value_enum, value_name = "PULLS", default_value = "all")]
    pull_from_mirror: Pulls,
}

pub(super) fn configure(args: &ContainersArgs, client: Client) -> Result<Report, Failure> {
    let ContainersArgs { mirror, conf_dir, .. } = args;
    let endpoint = mirror.endpoint()?;
    mirror.registry.iter().try_for_each(|name| names::check_as_path(name))?;
    let path = conf_dir.join(FILE);
    let present = present(&path, client)?;
    let mut warnings = Vec::new();
    let mut registries = present.clone();
    if mirror.remove {
        registries.retain(|name| !mirror.registry.is_empty() && !mirror.registry.contains(name));
    } else {
        let described = described_elsewhere(conf_dir)?;
        for name in wanted(mirror) {
            match described.iter().find(|(prefix, _)| *prefix == name) {
                Some((_, file)) => {
                    let advice = by_hand(&name, &endpoint);
                    let message = format!(
                        "{} describes {name} already; add to its [[registry]] there:\n{advice}",
                        file.display()
                    );
                    if !mirror.registry.is_empty() {
                        return Err(Failure::new(CANNOT_CREATE, message));
                    }
                    warnings.push(message);
                    registries.remove(&name);
                }
                None => drop(registries.insert(name)),
            }
        }
    }
    let content = content(&registries, &endpoint, args.pull_from_mirror, client);
    let part = OwnFile { content, by_hand: format!("move {} away", path.display()) };
    let plan = if registries.is_empty() { Plan::take(&path, &part)? } else { Plan::put(&path, &part)? };
    let mut report = mirror.carry_out(vec![plan])?;
    report.warnings = warnings;
    if !mirror.remove && conf_dir.starts_with("/etc") && has_own_settings() {
        let home = "~/.config/containers/registries.conf";
        report
            .warnings
            .push(format!("{home} replaces /etc/containers/registries.conf for this user; drop-ins of both count"));
    }
    report.next.extend(next(client, report.is_change()));
    Ok(report)
}

fn next(client: Client, changed: bool) -> Option<String> {
    match client {
        Client::Podman => Some("podman, buildah and skopeo read it at every pull: no restart is needed.".to_owned()),
        Client::Crio => changed.then(|| "Tell CRI-O: systemctl reload crio (pods go on running).".to_owned()),
        Client::Apptainer => Some(
            "Apptainer reads it at every pull of docker:// images; oras:// and library:// do not use it. Apptainer 1.4.0 ignores \
             mirrors, which later releases have again. A plain-HTTP mirror may need --no-https; the TLS listener (registry_tls_listen) \
             does not."
                .to_owned(),
        ),
    }
}

fn wanted(mirror: &MirrorArgs) -> Vec<String> {
    if mirror.registry.is_empty() { names::WELL_KNOWN.map(str::to_owned).to_vec() } else { mirror.registry.clone() }
}

/// The registries that our file mirrors already. A file that we would not have written is refused.
fn present(path: &Path, client: Client) -> Result<BTreeSet<String>, Failure> {
    let Some(text) = read(path)? else { return Ok(BTreeSet::new()) };
    let foreign = || {
        let message = format!(
            "{}: the file was left alone, it was not written, or was changed, by somebody other than `shoal configure`; \
             move those lines to another file and delete this one",
            path.display()
        );
        Failure::new(CANNOT_CREATE, message)
    };
    let table: Table = toml::from_str(&text).ok().filter(|_| is_own(&text)).ok_or_else(foreign)?;
    let tables = registries(&table);
    let names: BTreeSet<String> = tables.iter().filter_map(|(prefix, _)| Some((*prefix)?.to_owned())).collect();
    let mirror = tables.first().and_then(|(_, table)| table.get("mirror")?.get(0)?.as_table());
    let said = |key: &str| mirror.and_then(|mirror| text_of(mirror, key)).unwrap_or_default();
    let address = said("location").split('/').next().unwrap_or_default();
    let insecure = mirror.and_then(|mirror| mirror.get("insecure")?.as_bool()).unwrap_or(false);
    let endpoint = format!("{}://{address}", if insecure { "http" } else { "https" });
    let pulls = [Pulls::All, Pulls::DigestOnly, Pulls::TagOnly];
    let pulls = pulls.into_iter().find(|pulls| pulls.word() == said("pull-from-mirror")).unwrap_or(Pulls::All);
    // The first line names the client, and each may have written it.
    let same = |client| content(&names, &endpoint, pulls, client) == text;
    let ours = [client, Client::Podman, Client::Crio, Client::Apptainer].into_iter().any(same);
    if ours { Ok(names) } else { Err(foreign()) }
}

fn content(registries: &BTreeSet<String>, endpoint: &str, pulls: Pulls, client: Client) -> String {
    let name = match client {
        Client::Podman => "podman",
        Client::Crio => "crio",
        Client::Apptainer => "apptainer",
    };
    let mut text = own_line(name);
    for registry in registries {
        let mirror = mirror(registry, endpoint, pulls);
        text.push_str(&format!("\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n{mirror}"));
    }
    text
}

fn mirror(registry: &str, endpoint: &str, pulls: Pulls) -> String {
    let (scheme, address) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let insecure = if scheme == "http" { "insecure = true\n" } else { "" };
    let pulls = match pulls {
        // The default, which older releases of the library do not know by name.
        Pulls::All => String::new(),
        Pulls::DigestOnly | Pulls::TagOnly => format!("pull-from-mirror = \"{}\"\n", pulls.word()),
    };
    format!("[[registry.mirror]]\nlocation = \"{address}/{registry}\"\n{insecure}{pulls}")
}

fn by_hand(registry: &str, endpoint: &str) -> String {
    mirror(registry, endpoint, Pulls::All).trim_end().to_owned()
}

/// The `[[registry]]` tables and their prefixes (which are their locations if they have none).
fn registries(table: &Table) -> Vec<(Option<&str>, &Table)> {
    let tables = table.get("registry").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table);
    tables.map(|table| (text_of(table, "prefix").or_else(|| text_of(table, "location")), table)).collect()
}

fn text_of<'a>(table: &'a Table, key: &str) -> Option<&'a str> {
    table.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Prefixes that other files have a `[[registry]]` for, with the file.
fn described_elsewhere(conf_dir: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(conf_dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "conf") && !file.ends_with(FILE));
    files.extend(conf_dir.parent().map(|parent| parent.join("registries.conf")));
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let Some(text) = read(&file)? else { continue };
        let table: Table = toml::from_str(&text).map_err(|error| {
            let why = error.message().replace('\n', ", ");
            Failure::new(USAGE, format!("{}: it is not valid TOML ({why}), and no pull works with it", file.display()))
        })?;
        found.extend(registries(&table).into_iter().filter_map(|(prefix, _)| Some((prefix?.to_owned(), file.clone()))));
    }
    Ok(found)
}

fn has_own_settings() -> bool {
    std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".config/containers/registries.conf").exists())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{super::edit::Action, *};

    fn args(directory: &tempfile::TempDir, registries: &[&str]) -> ContainersArgs {
        let mirror = MirrorArgs {
            registry: registries.iter().map(|&name| name.to_owned()).collect(),
            endpoint: "http://127.0.0.1:5050".to_owned(),
            ..MirrorArgs::default()
        };
        let conf_dir = directory.path().join("registries.conf.d");
        ContainersArgs { mirror, conf_dir, pull_from_mirror: Pulls::All }
    }

    fn run(args: &ContainersArgs) -> Action {
        configure(args, Client::Podman).unwrap().files[0].action
    }

    fn prefixes(args: &ContainersArgs) -> Vec<String> {
        let text = fs::read_to_string(args.conf_dir.join(FILE)).unwrap();
        let table: Table = toml::from_str(&text).unwrap();
        registries(&table).into_iter().map(|(prefix, _)| prefix.unwrap().to_owned()).collect()
    }

    #[test]
    fn the_well_known_registries_are_mirrored_and_a_second_run_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(&directory, &[]);
        assert_eq!(run(&args), Action::Created);
        let text = fs::read_to_string(args.conf_dir.join(FILE)).unwrap();
        assert!(text.contains("location = \"127.0.0.1:5050/ghcr.io\"\ninsecure = true\n"), "{text}");
        assert_eq!(prefixes(&args).len(), names::WELL_KNOWN.len());
        assert_eq!(run(&args), Action::Unchanged);
    }

    #[test]
    fn registries_are_added_and_taken_away_one_by_one_until_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(run(&args(&directory, &["ghcr.io"])), Action::Created);
        let mut both = args(&directory, &["quay.io"]);
        assert_eq!(run(&both), Action::Updated);
        assert_eq!(prefixes(&both), ["ghcr.io", "quay.io"]);
        both.mirror.remove = true;
        assert_eq!(run(&both), Action::Updated);
        assert_eq!(prefixes(&both), ["ghcr.io"]);
        both.mirror.registry.clear();
        assert_eq!(run(&both), Action::Removed);
        assert_eq!(fs::read_dir(&both.conf_dir).unwrap().count(), 0);
        assert_eq!(run(&both), Action::Unchanged);
    }

    #[test]
    fn crio_and_podman_share_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(&directory, &["ghcr.io"]);
        configure(&args, Client::Crio).unwrap();
        assert_eq!(run(&args), Action::Updated, "only its first line");
        assert_eq!(prefixes(&args), ["ghcr.io"]);
    }

    #[test]
    fn which_pulls_and_tls_are_written_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory, &["ghcr.io"]);
        args.mirror.endpoint = "https://localhost:5053".to_owned();
        args.pull_from_mirror = Pulls::DigestOnly;
        run(&args);
        let text = fs::read_to_string(args.conf_dir.join(FILE)).unwrap();
        assert!(
            text.ends_with("location = \"localhost:5053/ghcr.io\"\npull-from-mirror = \"digest-only\"\n"),
            "{text}"
        );
        assert_eq!(run(&args), Action::Unchanged);
    }

    #[test]
    fn a_registry_that_another_file_describes_is_left_to_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("registries.conf"), "[[registry]]\nlocation = \"ghcr.io\"\nblocked = true\n")
            .unwrap();
        let failure = configure(&args(&directory, &["ghcr.io"]), Client::Podman).unwrap_err().to_string();
        assert!(failure.contains("registries.conf describes ghcr.io") && failure.contains("127.0.0.1:5050/ghcr.io"));
        let all = args(&directory, &[]);
        let report = configure(&all, Client::Podman).unwrap();
        assert!(report.warnings.iter().any(|warning| warning.contains("describes ghcr.io")));
        assert!(!prefixes(&all).contains(&"ghcr.io".to_owned()));
    }

    #[test]
    fn a_file_of_ours_that_was_edited_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(&directory, &["ghcr.io"]);
        run(&args);
        let file = args.conf_dir.join(FILE);
        for edited in [fs::read_to_string(&file).unwrap() + "# mine\n", "not toml".to_owned(), String::new()] {
            fs::write(&file, &edited).unwrap();
            let failure = configure(&args, Client::Podman).unwrap_err().to_string();
            assert!(failure.contains("left alone"), "{failure}");
            assert_eq!(fs::read_to_string(&file).unwrap(), edited);
        }
    }

    #[test]
    fn names_that_cannot_be_a_path_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["registry.test:5000", "[::1]", "_default", "A", "a/b", "a\"b"] {
            assert!(configure(&args(&directory, &[name]), Client::Podman).is_err(), "{name}");
        }
        assert!(!args(&directory, &[]).conf_dir.exists());
    }
}
