//! `shoal blobs`: what this node has, and what it is fetching.

use std::process::ExitCode;

use serde::Serialize;
use shoal_proto::status::{BlobStatus, FetchStatus, Status};

use crate::{
    args::NodeArgs,
    control::Control,
    failure::Failure,
    output::{Output, human, table},
    status::fetches,
};

#[derive(Debug, clap::Args)]
pub(crate) struct BlobsArgs {
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    blobs: &'a [BlobStatus],
    fetches: &'a [FetchStatus],
}

pub(crate) async fn run(args: BlobsArgs, output: Output) -> Result<ExitCode, Failure> {
    let mut status: Status = Control::of(&args.node)?.get("/v1/status").await?;
    status.blobs.sort_by_key(|blob| (std::cmp::Reverse(blob.size), blob.digest));
    output.report(&Report { blobs: &status.blobs, fetches: &status.fetches }, |_| text(&status))?;
    Ok(ExitCode::SUCCESS)
}

fn text(status: &Status) -> String {
    if status.blobs.is_empty() && status.fetches.is_empty() {
        return "no blobs yet: pull an image through the daemon, or with `shoal pull IMAGE`".to_owned();
    }
    let mut parts = Vec::new();
    if !status.blobs.is_empty() {
        let head = ["BLOB", "SIZE", "STATE"].map(str::to_owned).to_vec();
        let rows = status.blobs.iter().map(|blob| {
            let state = if blob.sealed { "complete" } else { "partial" };
            vec![blob.digest.to_string(), human(blob.size), state.to_owned()]
        });
        parts.push(table(&[head].into_iter().chain(rows).collect::<Vec<_>>(), &[1]));
    }
    if !status.fetches.is_empty() {
        parts.push(fetches(status));
    }
    parts.join("\n")
}
