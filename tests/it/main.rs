//! The integration tests: real daemons, and everything else as real as it can be had.

#![allow(clippy::unwrap_used, reason = "tests")]

mod clients;

use shoal_tests::daemon::Settings;

/// The daemon under test with one upstream, `origin.test`.
fn settings(origin: &str) -> Settings {
    Settings::new(env!("CARGO_BIN_EXE_shoal-under-test"), origin)
}
