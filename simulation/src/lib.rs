//! A discrete-event world that drives the machines of `shoal-proto` (the very ones that the daemon runs) for many nodes
//! at once: no async, no threads, no clock inside a run. The same plan and seed give the same run, event by event.
//!
//! ```text
//!  plan (TOML) ─► World ─┬─ Node: Swarm + Tracker, and what the node truly has
//!                        ├─ Net: links with rates, transfers that share them fairly
//!                        ├─ Origin: answers streams, counts what it sends
//!                        ├─ Dht: trackers and holders of a digest
//!                        ├─ Checks: what must never happen
//!                        └─ Tally ─► Report: times against the lower bound, copies, overhead
//! ```

pub mod bound;
pub mod check;
pub mod compare;
pub mod dht;
pub mod figures;
pub mod live;
pub mod net;
pub mod node;
pub mod origin;
pub mod page;
mod peers;
pub mod plan;
pub mod random;
pub mod report;
pub mod results;
pub mod seeds;
pub mod timeline;
pub mod world;

pub use plan::{Plan, PlanError};
pub use report::Report;
pub use world::World;
