//! The Shoal daemon as a library: everything with a side effect. Parse ([`config`]), build, run.

pub mod admin;
pub mod config;
pub mod dht;
pub mod identity;
pub mod metrics;
pub mod node;
pub mod origin;
pub mod quic;
pub mod rate;
pub mod registry;
pub mod secret;
pub mod store;
pub mod verify;

// STUB of the daemon, to be dropped.
/// STUB.
#[derive(Debug)]
pub struct Daemon;
/// STUB.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct BuildError;
/// STUB.
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct RunError;
impl Daemon {
    /// STUB.
    pub async fn build(_config: config::Config) -> Result<Self, BuildError> {
        Ok(Self)
    }
    /// STUB.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        tracing::info!("ready registry=stub p2p=stub observe=stub");
        shutdown.await;
        Ok(())
    }
}
