//! Real files, and shell scripts in the place of helpers and plugins.

#![allow(clippy::unwrap_used, reason = "tests")]

mod files;
mod helpers;
mod plugins;
mod sources;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{Credential, CredentialError, OpenedCredentials, command::Runner, open::open_with};
use crate::config::{Config, ConfigSources};

/// A variable of every test's environment that the programs run here are not to see.
const HIDDEN: &str = "CARGO_MANIFEST_DIR";

/// A directory for files and programs.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file for its owner's eyes only.
    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Writes a program in `sh`. By another process: had this one the file open when some other test forks, the program
    /// would be busy when it is started.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.path(name);
        let text = format!("#!/bin/sh\ncd '{}'\n{script}\n", self.directory.path().display());
        let source = self.file(&format!("{name}.source"), text);
        let copied = Command::new("install").args(["-m", "700"]).arg(&source).arg(&path).status().unwrap();
        assert!(copied.success());
        path
    }

    /// A FIFO: who reads it learns when the last of its writers has gone.
    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        assert!(Command::new("mkfifo").arg(&path).stdin(Stdio::null()).status().unwrap().success());
        path
    }

    /// How often a program wrote a line into a file.
    fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).map_or(0, |text| text.lines().count())
    }

    fn runner(&self, deadline: Duration) -> Runner {
        let path = format!("{}:{}", self.directory.path().display(), std::env::var("PATH").unwrap());
        Runner::within(deadline, path.into(), vec![HIDDEN.to_owned()])
    }

    /// Opens the credentials of a configuration; programs are found in this directory.
    fn open(&self, toml: &str) -> Result<OpenedCredentials, CredentialError> {
        self.open_within(toml, Duration::from_secs(20))
    }

    fn open_within(&self, toml: &str, deadline: Duration) -> Result<OpenedCredentials, CredentialError> {
        open_with(&self.config(toml), self.runner(deadline))
    }

    fn config(&self, toml: &str) -> Config {
        let mut sources = ConfigSources { file: Some(self.file("shoal.toml", toml)), ..ConfigSources::default() };
        sources.env.insert("HOME".to_owned(), "/home/fish".to_owned());
        Config::load(sources).unwrap()
    }
}

/// Credentials of one upstream, with its name.
struct Asked<'a>(&'a OpenedCredentials, &'a str);

impl Asked<'_> {
    async fn find(&self, repository: &str) -> Result<Option<Credential>, CredentialError> {
        self.0.upstreams[self.1].find(self.1, repository).await
    }
}

fn basic(username: &str, password: &str) -> Option<Credential> {
    Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// The `auth` of docker's files.
fn auth(pair: &str) -> String {
    BASE64_STANDARD.encode(pair)
}

fn upstream(name: &str, more: &str) -> String {
    format!("[upstreams.\"{name}\"]\nurl = \"https://{name}\"\n{more}\n")
}

fn files(paths: &[&Path]) -> String {
    format!("credential_files = {:?}\n", paths.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>())
}
