//! STUB: another branch has the real one.

use std::process::ExitCode;

/// STUB.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}

/// STUB.
///
/// # Errors
/// STUB.
pub async fn run(_args: DemoArgs) -> Result<ExitCode, std::io::Error> {
    std::future::ready(()).await;
    Ok(ExitCode::SUCCESS)
}
