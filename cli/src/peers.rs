//! `shoal peers`: who this node is connected to.

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
    status.peers.sort_by(|a, b| a.rtt_ms.total_cmp(&b.rtt_ms));
    output.report(&status.peers, |peers| text(peers, status.dht_peers))?;
    Ok(ExitCode::SUCCESS)
}

fn text(peers: &[PeerStatus], known: u32) -> String {
    if peers.is_empty() && known == 0 {
        return "no peers: this node was given no --bootstrap address, or nobody answers there".to_owned();
    }
    if peers.is_empty() {
        return format!("no connected peers; {known} known (nodes connect when they share a blob)");
    }
    let head = ["PEER", "ADDRESS", "RTT", "RECEIVED", "SENT"].map(str::to_owned).to_vec();
    let rows = peers.iter().map(|peer| {
        vec![
            peer.name.short.clone(),
            peer.address.to_string(),
            format!("{:.1} ms", peer.rtt_ms),
            human(peer.bytes_in),
            human(peer.bytes_out),
        ]
    });
    table(&[head].into_iter().chain(rows).collect::<Vec<_>>(), &[2, 3, 4])
}
