//! The Shoal daemon as a library: everything with a side effect.
//!
//! Parse ([`config`]), build ([`Daemon::build`] binds every listener and says where), run ([`Daemon::run`]).

pub mod access;
pub mod admin;
pub mod config;
pub mod credentials;
mod daemon;
pub mod dht;
pub mod identity;
pub mod metrics;
pub mod node;
pub mod origin;
pub mod pull;
pub mod quic;
pub mod rate;
pub mod registry;
mod report;
pub mod secret;
pub mod store;
pub mod verify;

pub use daemon::{BuildError, Daemon, RunError};
