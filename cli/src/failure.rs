//! How a command fails: one line for people, one number for scripts (after `sysexits.h`).

use std::process::ExitCode;

/// The command was understood, and failed.
pub(crate) const GENERAL: u8 = 1;
/// The command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 64;
/// No daemon answers.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The operating system refused something that every system grants.
pub(crate) const SYSTEM: u8 = 71;
/// A file cannot be written.
pub(crate) const CANNOT_CREATE: u8 = 73;
/// The daemon's answer makes no sense: it is of another version.
pub(crate) const PROTOCOL: u8 = 76;
/// This user may not.
pub(crate) const NO_PERMISSION: u8 = 77;

/// Why a command ends early: says what failed, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}
