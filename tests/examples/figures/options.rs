//! The command line.

use std::path::PathBuf;

use shoal_proto::units::ByteSize;

use crate::Failure;

const USAGE: &str = "usage: figures [--json] [--rounds N] [--size SIZE] [--program NAME=PATH]...";

/// What is measured, and how often.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) rounds: usize,
    pub(crate) size: ByteSize,
    pub(crate) programs: Vec<Program>,
}

/// A build of the daemon.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Options {
    pub(crate) fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self { json: false, rounds: 5, size: ByteSize(1 << 30), programs: Vec::new() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value; {USAGE}"));
            match arg.as_str() {
                "--json" => options.json = true,
                "--rounds" => options.rounds = value()?.parse()?,
                "--size" => options.size = value()?.parse()?,
                "--program" => {
                    let value = value()?;
                    let (name, path) = value.split_once('=').ok_or(USAGE)?;
                    options.programs.push(Program { name: name.to_owned(), path: path.into() });
                }
                _ => return Err(USAGE.into()),
            }
        }
        if options.programs.is_empty() {
            options.programs.push(Program { name: "shoal".to_owned(), path: beside()? });
        }
        for Program { path, .. } in &options.programs {
            if !path.is_file() {
                let path = path.display();
                return Err(format!("{path} is missing; build it first: cargo build --release -p shoal-cli").into());
            }
        }
        Ok(options)
    }
}

/// The daemon that was built into the same target directory: this program is `target/PROFILE/examples/figures`.
fn beside() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let profile =
        own.parent().and_then(|examples| examples.parent()).ok_or("cannot tell where the daemon was built")?;
    Ok(profile.join("shoal"))
}
