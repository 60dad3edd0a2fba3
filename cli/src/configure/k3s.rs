//! `shoal configure k3s`: mirrors in `registries.yaml`, from which k3s and RKE2 make containerd's `hosts.toml`.
//!
//! Editing is textual, so that comments survive, and checked by parsing.

use std::{collections::BTreeSet, path::PathBuf};

use yaml_rust2::{Yaml, YamlLoader, yaml::Hash};

use super::{
    MirrorArgs, Report,
    edit::{EditError, Part, is_own, marked, marks, own_line, read, without_marked},
    names,
};
use crate::failure::Failure;

pub(super) const LONG_ABOUT: &str = "\
Make the daemon a registry mirror of k3s (RKE2 with --file)

Puts the daemon first among the endpoints of each registry under `mirrors:` of registries.yaml; what is there stays, and the \
file is copied once to registries.yaml.shoal-backup. k3s makes containerd's configuration from it when it starts: the \
daemon is asked first, then the registry itself (unless k3s runs with --disable-default-registry-endpoint). Without \
--registry the mirror is for \"*\", which stands for every registry that has no entry of its own. Running it again adds \
registries; --remove takes away those named, or all.

RKE2: --file /etc/rancher/rke2/registries.yaml. The embedded registry mirror of k3s (Spegel) is not needed beside the daemon.";

#[derive(Debug, clap::Args)]
pub(crate) struct K3sArgs {
    #[command(flatten)]
    mirror: MirrorArgs,
    /// The registry configuration of k3s or RKE2
    #[arg(long, value_name = "FILE", default_value = "/etc/rancher/k3s/registries.yaml")]
    file: PathBuf,
}

pub(super) fn configure(args: &K3sArgs) -> Result<Report, Failure> {
    let K3sArgs { mirror, file } = args;
    let endpoint = mirror.endpoint()?;
    for name in mirror.registry.iter().filter(|name| *name != "*") {
        names::check(name)?;
    }
    let text = read(file)?.unwrap_or_default();
    let present: BTreeSet<String> = marks(&text).into_iter().filter_map(registry_of).map(str::to_owned).collect();
    let mut registries = present.clone();
    if mirror.remove {
        registries.retain(|name| !mirror.registry.is_empty() && !mirror.registry.contains(name));
    } else if mirror.registry.is_empty() {
        registries.insert("*".to_owned());
    } else {
        registries.extend(mirror.registry.iter().cloned());
    }
    let asked = MirrorArgs { remove: registries.is_empty(), ..mirror.clone() };
    let plan = asked.plan(file, &Mirrors { registries: &registries, endpoint: &endpoint })?;
    let mut report = mirror.carry_out(vec![plan])?;
    if !mirror.remove {
        report.warnings = overruled(&text, &registries);
    }
    if report.is_change() {
        let restart = if file.components().any(|part| part.as_os_str() == "rke2") {
            "Restart RKE2 to apply it: systemctl restart rke2-server (rke2-agent on agents)."
        } else {
            "Restart k3s to apply it: systemctl restart k3s (k3s-agent on agents); pods go on running."
        };
        report.next.push(restart.to_owned());
    }
    Ok(report)
}

/// "*" is not used for a registry that has an entry of its own.
fn overruled(text: &str, registries: &BTreeSet<String>) -> Vec<String> {
    let Some(mirrors) = parse(&without_marked(text)).ok().and_then(|root| mirrors(&root).cloned()) else {
        return Vec::new();
    };
    let names = mirrors.keys().filter_map(Yaml::as_str);
    names
        .filter(|name| registries.contains("*") && !registries.contains(*name))
        .map(|name| {
            format!("{name} has mirrors of its own, so \"*\" is not used for it; to mirror it as well, add --registry {name}")
        })
        .collect()
}

/// Our endpoint, first among those of some registries.
#[derive(Debug)]
pub(super) struct Mirrors<'a> {
    pub(super) registries: &'a BTreeSet<String>,
    pub(super) endpoint: &'a str,
}

impl Part for Mirrors<'_> {
    fn fresh(&self) -> String {
        let entries: String = self.registries.iter().map(|name| self.entry("  ", name)).collect();
        format!("{}mirrors:\n{entries}", own_line("k3s"))
    }

    fn put(&self, text: &str) -> Result<String, EditError> {
        let base = without_marked(text);
        let before = parse(&base)?;
        let mut put = base.clone();
        if !put.lines().any(is_mirrors) {
            let newline = if put.is_empty() || put.ends_with('\n') { "" } else { "\n" };
            let entries: String = self.registries.iter().map(|name| self.entry("  ", name)).collect();
            put = format!("{put}{newline}{}{entries}", marked("", "the key of mirrors", "mirrors:\n"));
        } else {
            for name in self.registries {
                put = self.with(&put, name, &before)?;
            }
        }
        let wanted = self.wanted(before)?;
        if parse(&put)? == wanted { Ok(put) } else { Err(EditError::Form) }
    }

    fn take(&self, text: &str) -> Result<String, EditError> {
        Ok(without_marked(text))
    }

    fn is_in(&self, text: &str) -> bool {
        !marks(text).is_empty()
    }

    fn is_all_of(&self, text: &str) -> bool {
        is_own(text) && without_marked(text).lines().skip(1).all(|line| line.trim().is_empty() || line == "mirrors:")
    }

    fn by_hand(&self) -> String {
        let names = self.registries.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        format!("put - \"{}\" first into mirrors: NAME: endpoint: by hand, for {names}", self.endpoint)
    }
}

impl Mirrors<'_> {
    /// An entry of its own under `mirrors:`.
    fn entry(&self, indent: &str, name: &str) -> String {
        let lines = format!("{indent}\"{name}\":\n{indent}  endpoint:\n{indent}    - \"{}\"\n", self.endpoint);
        marked(indent, &mark(name), &lines)
    }

    /// The text with our endpoint for one registry more; `before` is what the file said without any of ours.
    fn with(&self, text: &str, name: &str, before: &Yaml) -> Result<String, EditError> {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let top = lines.iter().position(|line| is_mirrors(line)).ok_or(EditError::Form)?;
        let Some(present) = mirrors(before).and_then(|mirrors| mirrors.get(&Yaml::String(name.to_owned()))) else {
            let child = lines[top + 1..].iter().find(|line| is_content(line)).map_or(0, |line| indent(line));
            let spaces = " ".repeat(if child == 0 { 2 } else { child });
            return Ok(insert(&lines, top + 1, &self.entry(&spaces, name)));
        };
        if has_endpoint(present, self.endpoint) {
            return Ok(text.to_owned());
        }
        let at = lines[top + 1..].iter().position(|line| key_of(line) == Some(name)).ok_or(EditError::Form)? + top + 1;
        let list = lines[at + 1..]
            .iter()
            .take_while(|line| !is_content(line) || indent(line) > indent(lines[at]))
            .position(|line| key_of(line) == Some("endpoint"))
            .ok_or(EditError::Form)?;
        let list = at + 1 + list;
        let item = lines[list + 1..].iter().find(|line| is_content(line)).ok_or(EditError::Form)?;
        let spaces = " ".repeat(indent(item));
        let line = format!("{spaces}- \"{}\"\n", self.endpoint);
        Ok(insert(&lines, list + 1, &marked(&spaces, &mark(name), &line)))
    }

    /// What the file must say in the end.
    fn wanted(&self, before: Yaml) -> Result<Yaml, EditError> {
        let mut root = if before.is_null() { Hash::new() } else { before.into_hash().ok_or(EditError::Form)? };
        let key = |name: &str| Yaml::String(name.to_owned());
        let mut mirrors = match root.remove(&key("mirrors")) {
            Some(Yaml::Hash(mirrors)) => mirrors,
            None | Some(Yaml::Null) => Hash::new(),
            Some(_) => return Err(EditError::Form),
        };
        for name in self.registries {
            let mut entry = match mirrors.remove(&key(name)) {
                Some(Yaml::Hash(entry)) => entry,
                None => Hash::new(),
                Some(_) => return Err(EditError::Form),
            };
            let mut endpoints = match entry.remove(&key("endpoint")) {
                Some(Yaml::Array(endpoints)) => endpoints,
                None => Vec::new(),
                Some(_) => return Err(EditError::Form),
            };
            if !endpoints.contains(&key(self.endpoint)) {
                endpoints.insert(0, key(self.endpoint));
            }
            entry.insert(key("endpoint"), Yaml::Array(endpoints));
            mirrors.insert(key(name), Yaml::Hash(entry));
        }
        root.insert(key("mirrors"), Yaml::Hash(mirrors));
        Ok(sorted(Yaml::Hash(root)))
    }
}

fn mark(name: &str) -> String {
    format!("mirror of {name}, by `shoal configure k3s`")
}

fn registry_of(mark: &str) -> Option<&str> {
    mark.strip_prefix("mirror of ")?.strip_suffix(", by `shoal configure k3s`")
}

/// What one document says, with keys in order, so that two of them can be compared. Nothing is as good as an empty one.
fn parse(text: &str) -> Result<Yaml, EditError> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| EditError::Broken("YAML", error.to_string()))?;
    match <[Yaml; 1]>::try_from(documents) {
        Ok([document]) => Ok(sorted(document)),
        Err(documents) if documents.is_empty() => Ok(Yaml::Null),
        Err(_) => Err(EditError::Form),
    }
}

fn sorted(value: Yaml) -> Yaml {
    if let Yaml::Hash(hash) = value {
        let mut pairs: Vec<_> = hash.into_iter().map(|(key, value)| (key, sorted(value))).collect();
        pairs.sort();
        return Yaml::Hash(pairs.into_iter().collect());
    }
    if let Yaml::Array(items) = value { Yaml::Array(items.into_iter().map(sorted).collect()) } else { value }
}

fn mirrors(root: &Yaml) -> Option<&Hash> {
    root["mirrors"].as_hash()
}

fn has_endpoint(entry: &Yaml, endpoint: &str) -> bool {
    entry["endpoint"].as_vec().is_some_and(|list| list.iter().any(|item| item.as_str() == Some(endpoint)))
}

fn is_mirrors(line: &str) -> bool {
    indent(line) == 0 && key_of(line) == Some("mirrors")
}

/// The key of a line that has nothing but a key: `name:`, `"name":`, perhaps with a comment.
fn key_of(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = line.split_once(" #").map_or(line, |(before, _)| before.trim_end());
    let key = line.strip_suffix(':')?;
    let quoted = |quote: char| key.strip_prefix(quote)?.strip_suffix(quote);
    Some(quoted('"').or_else(|| quoted('\'')).unwrap_or(key))
}

fn is_content(line: &str) -> bool {
    !line.trim().is_empty() && !line.trim_start().starts_with('#')
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn insert(lines: &[&str], at: usize, new: &str) -> String {
    let head = lines[..at].concat();
    let newline = if head.ends_with('\n') { "" } else { "\n" };
    format!("{head}{newline}{new}{}", lines[at..].concat())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use super::{super::edit::Action, *};

    const ENDPOINT: &str = "http://127.0.0.1:5050";

    fn args(directory: &tempfile::TempDir, registries: &[&str]) -> K3sArgs {
        let mirror = MirrorArgs {
            registry: registries.iter().map(|&name| name.to_owned()).collect(),
            endpoint: ENDPOINT.to_owned(),
            ..MirrorArgs::default()
        };
        K3sArgs { mirror, file: directory.path().join("registries.yaml") }
    }

    fn endpoints(args: &K3sArgs, name: &str) -> Vec<String> {
        let root = parse(&fs::read_to_string(&args.file).unwrap()).unwrap();
        let list = root["mirrors"][name]["endpoint"].as_vec().unwrap();
        list.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_file_of_ours_alone_grows_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory, &[]);
        assert_eq!(configure(&args).unwrap().files[0].action, Action::Created);
        assert_eq!(endpoints(&args, "*"), [ENDPOINT]);
        assert_eq!(configure(&args).unwrap().files[0].action, Action::Unchanged);
        args.mirror.registry = vec!["registry.test:5000".to_owned()];
        let report = configure(&args).unwrap();
        assert_eq!(report.files[0].action, Action::Updated);
        assert!(report.next[0].contains("systemctl restart k3s"));
        assert_eq!(endpoints(&args, "*"), endpoints(&args, "registry.test:5000"));
        args.mirror.remove = true;
        assert_eq!(configure(&args).unwrap().files[0].action, Action::Updated);
        assert_eq!(endpoints(&args, "*"), [ENDPOINT]);
        args.mirror.registry.clear();
        assert_eq!(configure(&args).unwrap().files[0].action, Action::Removed);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn foreign_files_keep_everything_and_come_back_exactly() {
        for before in [
            "",
            "# only a comment\n",
            "configs:\n  \"r.test\":\n    auth:\n      username: u # why\n",
            "mirrors:\n",
            "mirrors:\n  docker.io:\n    endpoint:\n      - \"https://m.test\"\n    rewrite:\n      \"^a\": \"b\"\nconfigs: {}",
            "configs: {}\nmirrors:   # ours\n\n    # first\n    'docker.io':\n        endpoint:\n        - https://m.test\n        - https://n.test\n",
            "mirrors:\n  \"*\":\n",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let mut args = args(&directory, &["quay.io", "docker.io"]);
            fs::write(&args.file, before).unwrap();
            assert_eq!(configure(&args).unwrap().files[0].action, Action::Merged, "{before}");
            assert_eq!(endpoints(&args, "docker.io")[0], ENDPOINT);
            assert_eq!(endpoints(&args, "quay.io"), [ENDPOINT]);
            assert_eq!(configure(&args).unwrap().files[0].action, Action::Unchanged);
            args.mirror.remove = true;
            args.mirror.registry.clear();
            assert_eq!(configure(&args).unwrap().files[0].action, Action::Restored);
            assert_eq!(fs::read_to_string(&args.file).unwrap(), before);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no backup is left");
        }
    }

    #[test]
    fn files_that_leave_no_place_are_left_alone() {
        for text in [
            "mirrors: {docker.io: {endpoint: [\"https://m.test\"]}}\n",
            "mirrors:\n  docker.io:\n    endpoint: [\"https://m.test\"]\n",
            "mirrors: []\n",
            "{}\n",
            "- a\n",
            "a: 1\n---\nb: 2\n",
            "mirrors:\n\tdocker.io: x\n",
            "a: [\n",
            "text: |\n  mirrors:\n   docker.io:\nmirrors: {}\n",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let args = args(&directory, &["docker.io"]);
            fs::write(&args.file, text).unwrap();
            let failure = configure(&args).unwrap_err().to_string();
            assert!(failure.contains("left alone") && failure.contains("by hand"), "{failure}");
            assert_eq!(fs::read_to_string(&args.file).unwrap(), text);
        }
    }

    #[test]
    fn registries_with_mirrors_of_their_own_are_named_as_not_mirrored() {
        let directory = tempfile::tempdir().unwrap();
        let args = args(&directory, &[]);
        fs::write(&args.file, "mirrors:\n  quay.io:\n    endpoint:\n      - https://m.test\n").unwrap();
        let report = configure(&args).unwrap();
        assert!(report.warnings[0].contains("--registry quay.io"), "{:?}", report.warnings);
        assert_eq!(endpoints(&args, "*"), [ENDPOINT]);
        assert_eq!(endpoints(&args, "quay.io"), ["https://m.test"]);
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", "a\"b", "A", "a/b", "**"] {
            assert!(configure(&args(&directory, &[name])).is_err(), "{name}");
        }
    }
}
