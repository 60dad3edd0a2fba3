//! The text of a `hosts.toml`: our host goes first, everything else stays as it is, byte for byte.
//!
//! Editing is textual, so that comments and order survive, and checked by parsing: containerd tries hosts in file order
//! and drops a whole file that it cannot read.

use toml::Table;

use super::edit::{EditError, Part, is_own, marked, marked_range, own_line, without_marked};

/// Our host in the `hosts.toml` of a registry.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) registry: &'a str,
    pub(super) endpoint: &'a str,
}

impl Part for Host<'_> {
    fn fresh(&self) -> String {
        fresh(self.registry, self.endpoint)
    }

    fn put(&self, text: &str) -> Result<String, EditError> {
        with_host(text, self.endpoint)
    }

    fn take(&self, text: &str) -> Result<String, EditError> {
        Ok(without_marked(text))
    }

    fn is_in(&self, text: &str) -> bool {
        has_block(text)
    }

    fn is_all_of(&self, text: &str) -> bool {
        is_untouched(text)
    }

    fn by_hand(&self) -> String {
        let endpoint = self.endpoint;
        format!(
            "put this table before its other hosts by hand: [host.\"{endpoint}\"] with capabilities = [\"pull\", \"resolve\"]"
        )
    }
}

/// The server that stands behind a namespace, where containerd goes when all hosts fail. `_default` stands for any
/// registry and must not name one.
pub(super) fn server(registry: &str) -> Option<String> {
    match registry {
        "_default" => None,
        "docker.io" => Some("https://registry-1.docker.io".to_owned()),
        other => Some(format!("https://{other}")),
    }
}

/// A new file with nothing but our host.
fn fresh(registry: &str, endpoint: &str) -> String {
    let server = server(registry).map_or(String::new(), |server| format!("server = \"{server}\"\n\n"));
    format!("{}{server}{}", own_line("containerd"), block(endpoint))
}

/// Whether our host is in it.
pub(super) fn has_block(text: &str) -> bool {
    marked_range(text, 0).is_some()
}

/// The text with our host in first place. Not changed if somebody put the same host there by hand.
fn with_host(text: &str, endpoint: &str) -> Result<String, EditError> {
    let base = without_marked(text);
    let before = parse(&base)?;
    if hosts(&before).is_some_and(|hosts| hosts.contains_key(endpoint)) {
        return Ok(base);
    }
    // Root keys stand above the first table: our table goes between them, or stays if it is there already.
    let present = marked_range(text, 0).map(|range| range.start).filter(|&start| first_table(&text[..start]).is_none());
    let at = present.or_else(|| first_table(&base)).unwrap_or(base.len());
    let (head, tail) = base.split_at(at);
    let newline = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    let merged = format!("{head}{newline}{}{tail}", block(endpoint));
    if is_just_one_host_more(&merged, &before, endpoint) { Ok(merged) } else { Err(EditError::Form) }
}

/// Whether an own file says no more than we wrote, so that it may go.
fn is_untouched(text: &str) -> bool {
    is_own(text)
        && without_marked(text).lines().skip(1).all(|line| line.trim().is_empty() || line.starts_with("server = "))
}

fn block(endpoint: &str) -> String {
    let lines = format!("[host.\"{endpoint}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    marked("", "this host was added by `shoal configure containerd`", &lines)
}

/// What in a file would keep containerd from using its hosts as they are written: it says so in one line of its log at most.
pub(super) fn traps(text: &str) -> Vec<String> {
    let Ok(table) = parse(text) else { return vec!["it is not valid TOML, and containerd ignores it".to_owned()] };
    let mut traps = Vec::new();
    for (url, settings) in hosts(&table).into_iter().flatten() {
        if url.starts_with("http://") && ["skip_verify", "ca"].iter().any(|key| settings.get(key).is_some()) {
            traps.push(format!(
                "skip_verify or ca of {url} make containerd 1.7 and later try HTTPS first; delete them, the host is http"
            ));
        }
        let capabilities = settings.get("capabilities").and_then(toml::Value::as_array);
        for capability in capabilities.into_iter().flatten().filter_map(toml::Value::as_str) {
            match capability {
                "pull" | "resolve" | "push" => {}
                "referrers" => traps.push(format!(
                    "capability `referrers` of {url}: containerd before 2.2 drops the whole file for it; delete it unless all are newer"
                )),
                other => traps.push(format!("capability `{other}` of {url}: containerd drops the whole file for it; delete it")),
            }
        }
    }
    traps
}

fn first_table(text: &str) -> Option<usize> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            return Some(at);
        }
        at += line.len();
    }
    None
}

fn parse(text: &str) -> Result<Table, EditError> {
    toml::from_str(text).map_err(|error| EditError::Broken("TOML", error.message().replace('\n', ", ")))
}

fn hosts(table: &Table) -> Option<&Table> {
    table.get("host").and_then(toml::Value::as_table)
}

/// The proof of a textual edit: what it parses to is what was there and our host, nothing else.
fn is_just_one_host_more(merged: &str, before: &Table, endpoint: &str) -> bool {
    let Ok(mut after) = parse(merged) else { return false };
    let Some(toml::Value::Table(hosts)) = after.get_mut("host") else { return false };
    if hosts.remove(endpoint).is_none() {
        return false;
    }
    if hosts.is_empty() && !before.contains_key("host") {
        after.remove("host");
    }
    after == *before
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const ENDPOINT: &str = "http://127.0.0.1:5050";

    /// Where containerd would find this host among the others: it goes by position in the file.
    fn order(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.trim().strip_prefix("[host.\"")?.strip_suffix("\"]")).collect()
    }

    #[test]
    fn a_fresh_file_names_the_server_of_its_registry_and_always_a_host() {
        for (registry, server) in [
            ("docker.io", Some("https://registry-1.docker.io")),
            ("registry.test:5000", Some("https://registry.test:5000")),
            ("_default", None),
        ] {
            let text = fresh(registry, ENDPOINT);
            let table = parse(&text).unwrap();
            assert_eq!(table.get("server").and_then(toml::Value::as_str), server);
            let capabilities = &hosts(&table).unwrap()[ENDPOINT]["capabilities"];
            assert_eq!(capabilities.to_string(), r#"["pull", "resolve"]"#);
            assert!(is_own(&text) && is_untouched(&text));
        }
    }

    #[test]
    fn our_host_goes_first_and_comes_out_without_a_trace() {
        let files = [
            "",
            "server = \"https://a.test\"",
            "server = \"https://a.test\"\n# why\n\n[host.\"https://m.test\"]\n  capabilities = [\"pull\"]\n",
            "[header]\n  x = [\"y\"]\n[host.\"https://m.test\"]\n[host.\"https://n.test\".header]\n  z = \"1\"\n",
            "capabilities = [\n  \"pull\",\n]\n[host]\n[host.'https://m.test']\n",
        ];
        for text in files {
            let merged = with_host(text, ENDPOINT).unwrap();
            assert_eq!(order(&merged).first(), Some(&ENDPOINT), "{merged}");
            assert!(has_block(&merged) && !is_own(&merged));
            let out = without_marked(&merged);
            assert_eq!(out.trim_end(), text.trim_end());
            assert_eq!(with_host(&merged, ENDPOINT).unwrap(), merged, "adding twice is adding once");
        }
    }

    #[test]
    fn another_endpoint_replaces_the_old_one() {
        let merged = with_host("server = \"https://a.test\"\n", "http://127.0.0.1:1").unwrap();
        let moved = with_host(&merged, "http://127.0.0.1:2").unwrap();
        assert_eq!(order(&moved), ["http://127.0.0.1:2"]);
    }

    #[test]
    fn a_host_that_was_added_by_hand_is_left_alone() {
        let text = "[host.\"https://m.test\"]\n[host.\"http://127.0.0.1:5050\"]\n";
        assert_eq!(with_host(text, ENDPOINT).unwrap(), text);
    }

    #[test]
    fn what_makes_containerd_drop_or_misread_a_file_is_told() {
        for (text, word) in [
            ("[host.\"http://m.test\"]\nskip_verify = true\n", "HTTPS first"),
            ("[host.\"https://m.test\"]\ncapabilities = [\"pull\", \"fetch\"]\n", "`fetch`"),
            ("[host.\"https://m.test\"]\ncapabilities = [\"pull\", \"referrers\"]\n", "before 2.2"),
            ("[host\n", "not valid TOML"),
        ] {
            let traps = traps(text);
            assert!(traps.len() == 1 && traps[0].contains(word), "{traps:?}");
        }
        assert_eq!(traps(&fresh("docker.io", ENDPOINT)), Vec::<String>::new());
    }

    #[test]
    fn files_without_a_safe_place_are_refused() {
        let inline = "host = { \"https://m.test\" = { capabilities = [\"pull\"] } }\n";
        assert_eq!(with_host(inline, ENDPOINT), Err(EditError::Form));
        let nested = "ca = [\n[\"a\", \"b\"],\n]\n[host.\"https://m.test\"]\n";
        assert_eq!(with_host(nested, ENDPOINT), Err(EditError::Form));
        assert!(matches!(with_host("server = \n", ENDPOINT), Err(EditError::Broken(..))));
    }
}
