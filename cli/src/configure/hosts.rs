//! The text of a `hosts.toml`: our host goes first, everything else stays as it is, byte for byte.
//!
//! Editing is textual, so that comments and order survive, and checked by parsing: containerd tries hosts in file order
//! and drops a whole file that it cannot read.

use toml::Table;

/// First line of a file that we made from nothing.
const OWN: &str = "# Written by `shoal configure containerd`; `shoal configure containerd --remove` takes it away.";
const BEGIN: &str = "# >>> shoal: this host was added by `shoal configure containerd`";
const END: &str = "# <<< shoal";

/// Why a file of somebody else cannot take our host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HostsError {
    /// containerd ignores such a file already.
    #[error("it is not valid TOML ({0})")]
    Broken(String),
    /// Our host has no safe place in it.
    #[error("its form leaves no place for another host")]
    Form,
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
pub(super) fn fresh(registry: &str, endpoint: &str) -> String {
    let server = server(registry).map_or(String::new(), |server| format!("server = \"{server}\"\n\n"));
    format!("{OWN}\n{server}{}", block(endpoint))
}

/// Whether we made the file from nothing.
pub(super) fn is_own(text: &str) -> bool {
    text.lines().next() == Some(OWN)
}

/// Whether our host is in it.
pub(super) fn has_block(text: &str) -> bool {
    block_range(text).is_some()
}

/// The text with our host in first place. Not changed if somebody put the same host there by hand.
pub(super) fn with_host(text: &str, endpoint: &str) -> Result<String, HostsError> {
    let base = without_block(text);
    let before = parse(&base)?;
    if hosts(&before).is_some_and(|hosts| hosts.contains_key(endpoint)) {
        return Ok(base);
    }
    // Root keys stand above the first table: our table goes between them, or stays if it is there already.
    let present = block_range(text).map(|range| range.start).filter(|&start| first_table(&text[..start]).is_none());
    let at = present.or_else(|| first_table(&base)).unwrap_or(base.len());
    let (head, tail) = base.split_at(at);
    let newline = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    let merged = format!("{head}{newline}{}{tail}", block(endpoint));
    if is_just_one_host_more(&merged, &before, endpoint) { Ok(merged) } else { Err(HostsError::Form) }
}

/// The text without our host. What was there before it was added, unless it was edited since.
pub(super) fn without_block(text: &str) -> String {
    match block_range(text) {
        Some(range) => format!("{}{}", &text[..range.start], &text[range.end..]),
        None => text.to_owned(),
    }
}

/// Whether an own file says no more than we wrote, so that it may go.
pub(super) fn is_untouched(text: &str) -> bool {
    is_own(text)
        && without_block(text).lines().skip(1).all(|line| line.trim().is_empty() || line.starts_with("server = "))
}

fn block(endpoint: &str) -> String {
    format!("{BEGIN}\n[host.\"{endpoint}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{END}\n")
}

fn block_range(text: &str) -> Option<std::ops::Range<usize>> {
    let start = text.find(BEGIN)?;
    let end = start + text[start..].find(END)? + END.len();
    let end = if text[end..].starts_with('\n') { end + 1 } else { end };
    Some(start..end)
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

fn parse(text: &str) -> Result<Table, HostsError> {
    toml::from_str(text).map_err(|error| HostsError::Broken(error.message().replace('\n', ", ")))
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
            let out = without_block(&merged);
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
    fn files_without_a_safe_place_are_refused() {
        let inline = "host = { \"https://m.test\" = { capabilities = [\"pull\"] } }\n";
        assert_eq!(with_host(inline, ENDPOINT), Err(HostsError::Form));
        let nested = "ca = [\n[\"a\", \"b\"],\n]\n[host.\"https://m.test\"]\n";
        assert_eq!(with_host(nested, ENDPOINT), Err(HostsError::Form));
        assert!(matches!(with_host("server = \n", ENDPOINT), Err(HostsError::Broken(_))));
    }
}
