//! The `shoal` binary once more, so that cargo hands its path to the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    shoal_cli::main()
}
