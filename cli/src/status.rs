//! `shoal status`: how the daemon of this node is doing.

use std::{fmt::Write as _, process::ExitCode};

use shoal_proto::status::Status;

use crate::{
    args::NodeArgs,
    control::Control,
    failure::Failure,
    output::{Output, counted, human, table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) async fn run(args: StatusArgs, output: Output) -> Result<ExitCode, Failure> {
    let status: Status = Control::of(&args.node)?.get("/v1/status").await?;
    output.report(&status, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(status: &Status) -> String {
    let registry: Vec<_> = status.addresses.registry.iter().map(ToString::to_string).collect();
    let sealed = status.blobs.iter().filter(|blob| blob.sealed);
    let (count, bytes) = sealed.fold((0_usize, 0), |(count, bytes), blob| (count + 1, bytes + blob.size));
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    let totals = &status.totals;
    let mut registry = registry.join(", ");
    if !status.addresses.registry_tls.is_empty() {
        let tls: Vec<_> = status.addresses.registry_tls.iter().map(ToString::to_string).collect();
        let ca = status.addresses.registry_ca.as_ref().map_or(String::new(), |ca| format!(", CA {}", ca.display()));
        registry.push_str(&format!("; TLS {}{ca}", tls.join(", ")));
    }
    let mut lines = vec![
        ("node", format!("{}, shoal {}", status.name.short, status.version)),
        (
            "state",
            format!("{}, up {}", if status.ready { "ready" } else { "starting" }, duration(status.uptime_seconds)),
        ),
        ("registry", registry),
        ("address", format!("{} (tcp and udp)", status.addresses.p2p)),
        ("peers", format!("{connected} connected, {} known", status.peers.len().max(status.dht_peers as usize))),
        ("observe", format!("http://{}/", status.addresses.observe)),
        ("store", format!("{} complete, {}", counted(count, "blob"), human(bytes))),
        (
            "received",
            format!("{} from peers, {} from origins", human(totals.bytes_from_peers), human(totals.bytes_from_origin)),
        ),
        ("sent", format!("{} to peers, {} to clients", human(totals.bytes_to_peers), human(totals.bytes_to_clients))),
        (
            "origins",
            format!(
                "{}, {}, {}",
                requests(totals.origin_blob_gets, "blob GET"),
                requests(totals.origin_manifest_gets, "manifest GET"),
                requests(totals.origin_heads, "HEAD")
            ),
        ),
        (
            "fetches",
            format!(
                "{} under way, {} done, {} failed",
                status.fetches.len(),
                totals.fetches_finished,
                totals.fetches_failed
            ),
        ),
    ];
    if totals.chunks_corrupt > 0 {
        lines.push((
            "corrupt",
            format!(
                "{} of {} chunks thrown away",
                totals.chunks_corrupt,
                totals.chunks_verified + totals.chunks_corrupt
            ),
        ));
    }
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        writeln!(text, "{name:<9} {value}").ok();
    }
    if !status.fetches.is_empty() {
        text.push('\n');
        text.push_str(&fetches(status));
    }
    text
}

fn requests(count: u64, what: &str) -> String {
    counted(usize::try_from(count).unwrap_or(usize::MAX), what)
}

/// The blobs on their way, as a table.
pub(crate) fn fetches(status: &Status) -> String {
    let head = ["FETCH", "SIZE", "DONE", "FROM PEERS", "FROM ORIGIN", "STATE"].map(str::to_owned).to_vec();
    let rows = status.fetches.iter().map(|fetch| {
        let done = match fetch.size {
            Some(size) if size > 0 => format!("{}%", u128::from(fetch.bytes) * 100 / u128::from(size)),
            _ => "-".to_owned(),
        };
        vec![
            format!("{}:{}", fetch.digest.algorithm().name(), fetch.digest.short()),
            fetch.size.map_or("?".to_owned(), human),
            done,
            human(fetch.from_peers),
            human(fetch.from_origin),
            fetch.state.clone(),
        ]
    });
    table(&[head].into_iter().chain(rows).collect::<Vec<_>>(), &[1, 2, 3, 4])
}

/// Days to seconds, the two largest.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_status_is_told_in_a_screenful() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "version": "0.1.0", "peer": "ab", "short": "abababababab", "uptime_seconds": 3725, "ready": true,
            "addresses": {"registry": ["127.0.0.1:5050"], "p2p": "10.0.0.1:5051", "observe": "127.0.0.1:5052"},
            "peers": [], "blobs": [],
            "fetches": [{
                "digest": format!("sha256:{}", "0".repeat(64)), "size": 200, "have_chunks": 1, "chunks": 2, "bytes": 100,
                "from_origin": 0, "from_peers": 100, "lease": false, "state": "fetching", "readers": 1,
            }],
            "totals": {},
        }))
        .unwrap();
        let text = text(&status);
        assert!(
            text.contains("ready, up 1 h 2 min") && text.contains("sha256:000000000000") && text.contains("50%"),
            "{text}"
        );
        assert!(text.lines().count() < 24, "{text}");
    }
}
