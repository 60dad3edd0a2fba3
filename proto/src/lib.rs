//! What Shoal's nodes say to one another and how they decide.
//!
//! Nothing here has a clock, a socket, a file, a thread, async or a global: time, seed and facts come in, orders go out.
//! Payload bytes go around this crate, never through it.

#![deny(missing_docs)]

pub mod chain;
pub mod chunk;
pub mod claim;
pub mod digest;
pub mod limits;
pub mod peer;
pub mod status;
pub mod swarm;
pub mod tags;
pub mod time;
pub mod tracker;
pub mod units;
pub mod wire;
