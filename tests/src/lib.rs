//! The harness of the integration tests: real daemons, origins that misbehave on order, real registries and clients.
//!
//! What is here panics when it cannot do its work: a harness that fails is a failed test. Every child process is killed by
//! its id when its guard is dropped, everything that is written lies in a temporary directory, and waiting for something is
//! [`eventually`], never a sleep.

pub mod containerd;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod hostile;
pub mod image;
pub mod layout;
pub mod netns;
pub mod origin;
pub mod process;
pub mod raw;
pub mod registries;
pub mod registry;
pub mod token_server;
pub mod tools;

use std::time::{Duration, Instant};

/// Asks again and again until there is an answer.
///
/// # Panics
/// After `deadline` without one, with `what` that should have happened.
pub async fn eventually<T, F>(deadline: Duration, what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let until = Instant::now() + deadline;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < until, "after {deadline:?}: {what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
