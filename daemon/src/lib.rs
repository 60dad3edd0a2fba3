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
