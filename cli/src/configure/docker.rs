//! `shoal configure docker`: a mirror in `daemon.json`.
//!
//! JSON has no comments to mark our part with, so it is known by its URL: `--remove` takes away the mirror of `--endpoint`.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use serde_json::Value;
use url::Url;

use super::{
    MirrorArgs, Report,
    edit::{EditError, Part, read},
};
use crate::failure::{Failure, USAGE};

pub(super) const LONG_ABOUT: &str = "\
Make the daemon the mirror of Docker Hub for the Docker engine

Puts the daemon first among the `registry-mirrors` of daemon.json. Docker uses mirrors for Docker Hub only, and goes on to \
Docker Hub if the daemon cannot serve. Images of other registries come through the daemon by its address, which needs no \
configuration: docker pull 127.0.0.1:5050/ghcr.io/team/app:v1. The `insecure-registries` are not touched: Docker takes \
loopback addresses without TLS.

Other keys of daemon.json, their order and their form stay. The file is copied once to daemon.json.shoal-backup. JSON has no \
comments, so --remove knows the mirror by its URL: give it the same --endpoint.";

const KEY: &str = "registry-mirrors";

#[derive(Debug, clap::Args)]
pub(crate) struct DockerArgs {
    #[command(flatten)]
    mirror: MirrorArgs,
    /// The Docker engine's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    daemon_json: PathBuf,
}

pub(super) fn configure(args: &DockerArgs) -> Result<Report, Failure> {
    let DockerArgs { mirror, daemon_json } = args;
    let endpoint = mirror.endpoint()?;
    if let Some(other) = mirror.registry.iter().find(|name| *name != "docker.io") {
        let address = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, address)| address);
        let message = format!(
            "--registry: Docker mirrors docker.io only; pull images of {other} by name: docker pull {address}/{other}/IMAGE"
        );
        return Err(Failure::new(USAGE, message));
    }
    let part = Mirror { endpoint: &endpoint };
    let plan = mirror.plan(daemon_json, &part)?;
    let mut report = mirror.carry_out(vec![plan])?;
    if !mirror.remove {
        report.warnings = warnings(&endpoint, &read(daemon_json)?.unwrap_or_default());
        report.warnings.extend(overruled(daemon_json));
    }
    if report.is_change() {
        report.next.push("Tell the Docker engine: systemctl reload docker (containers go on running).".to_owned());
        if !mirror.remove {
            report.next.push(
                "If dockerd is started with --registry-mirror, move that here: it does not start with the flag and the key."
                    .to_owned(),
            );
        }
    }
    Ok(report)
}

fn warnings(endpoint: &str, text: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let url = Url::parse(endpoint).ok();
    let loopback = url.as_ref().is_some_and(|url| match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    });
    if !loopback && endpoint.starts_with("http://") {
        warnings.push(format!(
            "{endpoint} is not a loopback address: pulls by that name need it among the insecure-registries, or TLS (registry_tls_listen)"
        ));
    }
    let others = mirrors(text).unwrap_or_default();
    let stale = |other: &&String| {
        other.trim_end_matches('/') != endpoint && (other.contains("//127.0.0.1:") || other.contains("//localhost:"))
    };
    for other in others.iter().filter(stale) {
        warnings.push(format!(
            "daemon.json has {other} as a mirror as well; if it is an earlier address of the daemon: shoal configure docker --remove --endpoint {other}"
        ));
    }
    warnings
}

/// Docker 29 knows containerd's way too, and prefers it.
fn overruled(daemon_json: &Path) -> Option<String> {
    let hosts = daemon_json.parent()?.join("certs.d/docker.io/hosts.toml");
    hosts.exists().then(|| {
        format!(
            "{}: Docker 29 and later may use it instead of {KEY}; put the daemon into it: shoal configure containerd --registry \
             docker.io --certs-dir {}",
            hosts.display(),
            hosts.ancestors().nth(2).unwrap_or(Path::new("")).display()
        )
    })
}

/// Our URL among the mirrors.
#[derive(Debug)]
pub(super) struct Mirror<'a> {
    pub(super) endpoint: &'a str,
}

impl Mirror<'_> {
    fn is_ours(&self, mirror: &str) -> bool {
        mirror.trim_end_matches('/') == self.endpoint
    }
}

impl Part for Mirror<'_> {
    fn fresh(&self) -> String {
        format!("{{\n  \"{KEY}\": [\"{}\"]\n}}\n", self.endpoint)
    }

    fn put(&self, text: &str) -> Result<String, EditError> {
        // Docker takes an empty file for an empty object.
        if text.trim().is_empty() {
            return Ok(self.fresh());
        }
        let present = mirrors(text)?;
        if present.iter().any(|mirror| self.is_ours(mirror)) {
            return Ok(text.to_owned());
        }
        let put = match value_of(text, KEY) {
            Some(value) => {
                let comma = if present.is_empty() { "" } else { ", " };
                let at = value.start + 1;
                format!("{}\"{}\"{comma}{}", &text[..at], self.endpoint, &text[at..])
            }
            None => {
                let at = text.find('{').ok_or(EditError::Form)? + 1;
                let comma = if parse(text)?.as_object().is_some_and(|object| object.is_empty()) { "\n" } else { "," };
                format!("{}\n  \"{KEY}\": [\"{}\"]{comma}{}", &text[..at], self.endpoint, &text[at..])
            }
        };
        let wanted: Vec<String> = std::iter::once(self.endpoint.to_owned()).chain(present).collect();
        only_mirrors_differ(text, &put, &wanted)?;
        Ok(put)
    }

    fn take(&self, text: &str) -> Result<String, EditError> {
        let present = mirrors(text)?;
        let rest: Vec<String> = present.into_iter().filter(|mirror| !self.is_ours(mirror)).collect();
        let value = value_of(text, KEY).ok_or(EditError::Form)?;
        let list = serde_json::to_string(&rest).map_err(|error| EditError::Broken("JSON", error.to_string()))?;
        let taken = if rest.is_empty() { without_key(text, &value) } else { replaced(text, &value, &list) };
        only_mirrors_differ(text, &taken, &rest)?;
        Ok(taken)
    }

    fn is_in(&self, text: &str) -> bool {
        mirrors(text).is_ok_and(|mirrors| mirrors.iter().any(|mirror| self.is_ours(mirror)))
    }

    fn is_all_of(&self, text: &str) -> bool {
        parse(text).is_ok_and(|value| value.as_object().is_some_and(|object| object.len() == 1))
            && mirrors(text).is_ok_and(|mirrors| mirrors.len() == 1 && self.is_ours(&mirrors[0]))
    }

    fn by_hand(&self) -> String {
        format!("put this into its top level by hand: \"{KEY}\": [\"{}\"]", self.endpoint)
    }
}

fn parse(text: &str) -> Result<Value, EditError> {
    serde_json::from_str(text).map_err(|error| EditError::Broken("JSON", error.to_string()))
}

/// The mirrors of an object; none if it has no such key.
fn mirrors(text: &str) -> Result<Vec<String>, EditError> {
    let value = parse(text)?;
    let object = value.as_object().ok_or(EditError::Form)?;
    match object.get(KEY) {
        None => Ok(Vec::new()),
        Some(list) => serde_json::from_value(list.clone()).map_err(|_| EditError::Form),
    }
}

/// The proof of a textual edit: everything but the mirrors is as it was, and they are what they should be.
fn only_mirrors_differ(before: &str, after: &str, wanted: &[String]) -> Result<(), EditError> {
    let without_mirrors = |text: &str| {
        let mut value = parse(text)?;
        value.as_object_mut().ok_or(EditError::Form)?.remove(KEY);
        Ok::<_, EditError>(value)
    };
    if without_mirrors(before)? == without_mirrors(after)? && mirrors(after)? == wanted {
        Ok(())
    } else {
        Err(EditError::Form)
    }
}

fn replaced(text: &str, range: &Range<usize>, with: &str) -> String {
    format!("{}{with}{}", &text[..range.start], &text[range.end..])
}

/// The text without the member that has this value, and without the comma that set it apart.
fn without_key(text: &str, value: &Range<usize>) -> String {
    let before = text[..value.start].trim_end().trim_end_matches(':').trim_end();
    let head = before.strip_suffix(&format!("\"{KEY}\"")).unwrap_or(before).trim_end();
    let tail = &text[value.end..];
    match tail.trim_start().strip_prefix(',') {
        Some(rest) => format!("{head}{rest}"),
        None => format!("{}{tail}", head.strip_suffix(',').unwrap_or(head)),
    }
}

/// Where the value of a key of the outermost object stands. The text is known to be JSON.
fn value_of(text: &str, key: &str) -> Option<Range<usize>> {
    let mut scan = Scan { bytes: text.as_bytes(), at: text.find('{')? + 1 };
    loop {
        scan.skip(b" \t\r\n,");
        let name = scan.value()?;
        scan.skip(b" \t\r\n:");
        let value = scan.value()?;
        if text.get(name)? == format!("\"{key}\"") {
            return Some(value);
        }
    }
}

/// Finds where values of valid JSON end.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn skip(&mut self, these: &[u8]) {
        while self.bytes.get(self.at).is_some_and(|byte| these.contains(byte)) {
            self.at += 1;
        }
    }

    /// The value that begins here. None at the end of an object or the text.
    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match *self.bytes.get(self.at)? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => break,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            if depth == 0 {
                break;
            }
        }
        (self.at > start).then_some(start..self.at)
    }

    /// Past the string that begins here.
    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match *self.bytes.get(self.at)? {
                b'\\' => self.at += 2,
                b'"' => break,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use super::{super::edit::Action, *};

    const OURS: Mirror<'static> = Mirror { endpoint: "http://127.0.0.1:5050" };

    fn args(directory: &tempfile::TempDir) -> DockerArgs {
        let mirror = MirrorArgs { endpoint: OURS.endpoint.to_owned(), ..MirrorArgs::default() };
        DockerArgs { mirror, daemon_json: directory.path().join("docker/daemon.json") }
    }

    const FILES: [&str; 8] = [
        "{}",
        "{ }\n",
        r#"{"debug":true}"#,
        "{\n  \"debug\": true,\n  \"log-opts\": {\"max-size\": \"10m\", \"registry-mirrors\": \"a \\\" }\"}\n}\n",
        "{\n\t\"registry-mirrors\": [\"https://m.test\"],\n\t\"debug\": true\n}\n",
        "{\"registry-mirrors\": [ ]}",
        "{\"debug\": false, \"registry-mirrors\": [\n  \"https://m.test\",\n  \"https://n.test\"\n]}",
        "  \n",
    ];

    #[test]
    fn the_daemon_goes_first_and_comes_out_exactly() {
        for before in FILES {
            let directory = tempfile::tempdir().unwrap();
            let mut args = args(&directory);
            fs::create_dir(args.daemon_json.parent().unwrap()).unwrap();
            fs::write(&args.daemon_json, before).unwrap();
            assert_eq!(configure(&args).unwrap().files[0].action, Action::Merged, "{before}");
            let after = fs::read_to_string(&args.daemon_json).unwrap();
            assert_eq!(mirrors(&after).unwrap()[0], OURS.endpoint, "{after}");
            assert_eq!(configure(&args).unwrap().files[0].action, Action::Unchanged, "{after}");
            args.mirror.remove = true;
            assert_eq!(configure(&args).unwrap().files[0].action, Action::Restored);
            assert_eq!(fs::read_to_string(&args.daemon_json).unwrap(), before);
            assert_eq!(fs::read_dir(args.daemon_json.parent().unwrap()).unwrap().count(), 1, "no backup is left");
        }
    }

    #[test]
    fn a_file_of_ours_alone_goes() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory);
        let report = configure(&args).unwrap();
        assert_eq!(report.files[0].action, Action::Created);
        assert!(report.next[0].contains("reload docker"));
        args.mirror.remove = true;
        assert_eq!(configure(&args).unwrap().files[0].action, Action::Removed);
        assert!(!args.daemon_json.exists());
        let report = configure(&args).unwrap();
        assert_eq!((report.files[0].action, report.next.len()), (Action::Unchanged, 0));
    }

    #[test]
    fn edits_made_since_survive_the_removal() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory);
        fs::create_dir(args.daemon_json.parent().unwrap()).unwrap();
        fs::write(&args.daemon_json, "{\"debug\": true}").unwrap();
        configure(&args).unwrap();
        let edited = fs::read_to_string(&args.daemon_json).unwrap().replace("true", "false");
        fs::write(&args.daemon_json, edited).unwrap();
        args.mirror.remove = true;
        assert_eq!(configure(&args).unwrap().files[0].action, Action::Restored);
        assert_eq!(fs::read_to_string(&args.daemon_json).unwrap(), "{\"debug\": false}");
    }

    #[test]
    fn taking_out_leaves_the_other_mirrors_and_keys() {
        for (text, rest) in [
            ("{\"a\":1,\"registry-mirrors\":[\"http://127.0.0.1:5050/\"],\"b\":2}", "{\"a\":1,\"b\":2}"),
            ("{\"a\":1,\"registry-mirrors\":[\"http://127.0.0.1:5050\"]}", "{\"a\":1}"),
            (
                "{\"registry-mirrors\":[\"https://m.test\",\"http://127.0.0.1:5050\"]}",
                "{\"registry-mirrors\":[\"https://m.test\"]}",
            ),
        ] {
            assert_eq!(OURS.take(text).unwrap(), rest);
        }
    }

    #[test]
    fn files_that_docker_would_not_read_either_are_left_alone() {
        for text in [
            "{",
            "[]",
            "// no comments\n{}",
            "{\"registry-mirrors\": \"https://m.test\"}",
            "{\"registry-mirrors\": [1]}",
            "null",
            "{\"registry-mirrors\": [], \"registry-mirrors\": [\"a\"]}",
        ] {
            let directory = tempfile::tempdir().unwrap();
            let args = args(&directory);
            fs::create_dir(args.daemon_json.parent().unwrap()).unwrap();
            fs::write(&args.daemon_json, text).unwrap();
            let failure = configure(&args).unwrap_err().to_string();
            assert!(failure.contains("left alone") && failure.contains("registry-mirrors"), "{failure}");
            assert_eq!(fs::read_to_string(&args.daemon_json).unwrap(), text);
        }
    }

    #[test]
    fn what_docker_cannot_do_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let mut args = args(&directory);
        args.mirror.registry = vec!["ghcr.io".to_owned()];
        let failure = configure(&args).unwrap_err();
        assert!(failure.to_string().contains("docker pull 127.0.0.1:5050/ghcr.io/IMAGE"), "{failure}");
        args.mirror.registry = vec!["docker.io".to_owned()];
        args.mirror.endpoint = "http://10.0.0.1:5050".to_owned();
        assert!(configure(&args).unwrap().warnings[0].contains("insecure-registries"));
        let certs = args.daemon_json.with_file_name("certs.d/docker.io");
        fs::create_dir_all(&certs).unwrap();
        fs::write(certs.join("hosts.toml"), "").unwrap();
        let warnings = configure(&args).unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("Docker 29")), "{warnings:?}");
        args.mirror.endpoint = "http://127.0.0.1:6050".to_owned();
        configure(&args).unwrap();
        args.mirror.endpoint = OURS.endpoint.to_owned();
        assert!(configure(&args).unwrap().warnings[0].contains("--endpoint http://127.0.0.1:6050"));
    }
}
