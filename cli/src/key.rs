//! `shoal key generate`: a new cluster secret.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use serde::Serialize;
use shoal_daemon::secret::Secret;

use crate::{
    failure::{CANNOT_CREATE, Failure},
    output::Output,
};

#[derive(Debug, clap::Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a new cluster secret: 32 random bytes, one line of base64
    ///
    /// Give the same file to every node (`shoal daemon --secret-file FILE`). A file may hold several such lines: the
    /// first is used, all are accepted.
    Generate(GenerateArgs),
}

#[derive(Debug, clap::Args)]
struct GenerateArgs {
    /// Write it to this new file, readable by its owner only, instead of printing it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Report<'a> {
    Secret(&'a str),
    File(&'a Path),
}

pub(crate) fn run(args: KeyArgs, output: Output) -> Result<ExitCode, Failure> {
    let KeyCommand::Generate(args) = args.command;
    let line = Secret::generate_line();
    let line = line.trim_end();
    match &args.output {
        None => output.report(&Report::Secret(line), |_| line)?,
        Some(file) => {
            write_new(file, line)?;
            output.report(&Report::File(file), |_| format!("wrote a new secret to {}", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Never overwrites: the old secret may be the only copy of what a cluster runs on.
fn write_new(file: &Path, line: &str) -> Result<(), Failure> {
    let write = || {
        let mut created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        writeln!(created, "{line}")?;
        created.sync_all()
    };
    write().map_err(|error| {
        let hint = if error.kind() == ErrorKind::AlreadyExists {
            "it exists already and may be in use; choose another name or remove it first".to_owned()
        } else {
            error.to_string()
        };
        Failure::new(CANNOT_CREATE, format!("cannot write the secret to {}: {hint}", file.display()))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_written_secret_is_private_loads_and_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.key");
        write_new(&file, Secret::generate_line().trim_end()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!Secret::load(&file).unwrap().is_none());
        let before = fs::read(&file).unwrap();
        assert_eq!(write_new(&file, "other").unwrap_err().code(), CANNOT_CREATE);
        assert_eq!(fs::read(&file).unwrap(), before);
    }
}
