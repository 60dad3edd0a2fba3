//! Where a daemon listens, from what it logs.

use std::net::SocketAddr;

/// Where a daemon listens, from its `ready` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The registry that container engines pull from.
    pub registry: SocketAddr,
    /// Peers.
    pub p2p: SocketAddr,
    /// Health, metrics and status.
    pub observe: SocketAddr,
}

/// The addresses in a `ready` line, be it text (plain or coloured), JSON with one message, or JSON with fields.
pub(super) fn ready_line(line: &str) -> Option<Addresses> {
    let plain = without_colours(line);
    if !plain.contains("ready") {
        return None;
    }
    let find = |key| plain.match_indices(key).find_map(|(at, key)| address_at(&plain[at + key.len()..]));
    Some(Addresses { registry: find("registry")?, p2p: find("p2p")?, observe: find("observe")? })
}

/// The address after a key: behind `=`, or `":"`, perhaps the first of a list.
fn address_at(text: &str) -> Option<SocketAddr> {
    let text = text.trim_start_matches(['"', '\\', ':', '=', ' ']);
    // A list may have brackets of its own: try with the bracket first, for IPv6.
    [text, text.trim_start_matches(['[', '"', '\\'])].into_iter().find_map(|text| {
        let end =
            text.find(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':' | '[' | ']'))).unwrap_or(text.len());
        text[..end].trim_end_matches(']').parse().ok()
    })
}

fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, escape)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = escape.find(|c: char| c.is_ascii_alphabetic()).map_or("", |end| &escape[end + 1..]);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_understood_in_every_log_format() {
        let expected = Addresses {
            registry: "127.0.0.1:5050".parse().unwrap(),
            p2p: "127.0.0.1:4051".parse().unwrap(),
            observe: "[::1]:5052".parse().unwrap(),
        };
        for line in [
            "ready registry=127.0.0.1:5050 p2p=127.0.0.1:4051 observe=[::1]:5052",
            "2026-01-01T00:00:00Z  INFO shoal_daemon: ready registry=127.0.0.1:5050 p2p=127.0.0.1:4051 observe=[::1]:5052",
            "\u{1b}[2m2026\u{1b}[0m ready \u{1b}[3mregistry\u{1b}[0m\u{1b}[2m=\u{1b}[0m127.0.0.1:5050 \u{1b}[3mp2p\u{1b}[0m=127.0.0.1:4051 observe=[::1]:5052",
            r#"{"level":"INFO","fields":{"message":"ready registry=127.0.0.1:5050 p2p=127.0.0.1:4051 observe=[::1]:5052"},"target":"shoal_daemon::registry"}"#,
            r#"{"level":"INFO","fields":{"message":"ready","registry":"127.0.0.1:5050","p2p":"127.0.0.1:4051","observe":"[::1]:5052"},"target":"shoal"}"#,
            r#"{"message":"ready","registry":"[127.0.0.1:5050, 127.0.0.1:6000]","p2p":"127.0.0.1:4051","observe":"[::1]:5052"}"#,
            "ready registry=127.0.0.1:5050,127.0.0.1:6000 p2p=127.0.0.1:4051 observe=\"[::1]:5052\"",
        ] {
            assert_eq!(ready_line(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn lines_that_only_resemble_the_ready_line_are_passed_over() {
        for line in [
            "registry=127.0.0.1:5050 p2p=127.0.0.1:4051 observe=127.0.0.1:5052",
            "not ready: registry=127.0.0.1:5050",
            r#"{"message":"already bound","registry":"off","p2p":"127.0.0.1:4051","observe":"127.0.0.1:1"}"#,
            "",
        ] {
            assert_eq!(ready_line(line), None, "{line}");
        }
    }
}
