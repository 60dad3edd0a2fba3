//! `shoal peers`: whom this node knows, and whom it is connected to.

use std::process::ExitCode;

use shoal_proto::status::{PeerStatus, Status};

use crate::{
    args::NodeArgs,
    control::Control,
    failure::Failure,
    output::{Output, human, table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) async fn run(args: PeersArgs, output: Output) -> Result<ExitCode, Failure> {
    let mut status: Status = Control::of(&args.node)?.get("/v1/status").await?;
    status.peers.sort_by(|a, b| b.connected.cmp(&a.connected).then(a.rtt_ms.total_cmp(&b.rtt_ms)));
    output.report(&status.peers, |peers| text(peers))?;
    Ok(ExitCode::SUCCESS)
}

fn text(peers: &[PeerStatus]) -> String {
    if peers.is_empty() {
        return "no peers: this node was given no --bootstrap address, or nobody answers there".to_owned();
    }
    let head = ["PEER", "ADDRESS", "RTT", "RECEIVED", "SENT"].map(str::to_owned).to_vec();
    let rows = peers.iter().map(|peer| {
        let figures = if peer.connected {
            [format!("{:.1} ms", peer.rtt_ms), human(peer.bytes_in), human(peer.bytes_out)]
        } else {
            ["-", "-", "-"].map(str::to_owned)
        };
        let mut row = vec![peer.name.short.clone(), peer.address.to_string()];
        row.extend(figures);
        row
    });
    let mut text = table(&[head].into_iter().chain(rows).collect::<Vec<_>>(), &[2, 3, 4]);
    if peers.iter().any(|peer| !peer.connected) {
        text.push_str("\n- : known, but not connected; nodes connect when they share a blob\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use shoal_proto::peer::PeerId;

    use super::*;

    fn peer(id: u8, connected: bool) -> PeerStatus {
        let address = std::net::SocketAddr::from(([10, 0, 0, id], 5051));
        PeerStatus { name: PeerId([id; 32]).into(), address, connected, rtt_ms: 0.0, bytes_in: 0, bytes_out: 0 }
    }

    #[test]
    fn a_peer_without_a_connection_has_no_figures() {
        let text = text(&[peer(1, true), peer(2, false)]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["010101010101", "10.0.0.1:5051", "0.0", "ms", "0", "B", "0", "B"]);
        assert_eq!(lines[2], ["020202020202", "10.0.0.2:5051", "-", "-", "-"]);
        assert!(text.contains("not connected"), "{text}");
    }
}
