//! Running credential helpers and plugins: few at a time, each with a deadline and a bound on what it may say.

use std::{
    ffi::OsString,
    fmt,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

/// How long a program may take, waiting for its turn included. Those of the clouds ask a server or two.
const DEADLINE: Duration = Duration::from_secs(30);

/// Programs that run at once.
const AT_ONCE: usize = 8;

/// Bytes that a program may say. A token is a few thousand.
pub(super) const SAID_MAX: u64 = 256 * 1024;

/// Runs programs.
pub(super) struct Runner {
    turns: Semaphore,
    deadline: Duration,
    /// Variables of ours that hold passwords for one registry and are no business of the others' helpers.
    hidden: Vec<String>,
    /// Where programs without a directory are looked for; none: in this process's `PATH`.
    path: Option<OsString>,
}

/// What a program did.
pub(super) struct Ran {
    pub(super) status: ExitStatus,
    /// What it wrote to its standard output. A secret, most of the time.
    pub(super) said: Vec<u8>,
}

impl Runner {
    pub(super) fn new(hidden: Vec<String>) -> Self {
        Self { turns: Semaphore::new(AT_ONCE), deadline: DEADLINE, hidden, path: None }
    }

    #[cfg(test)]
    pub(super) fn within(deadline: Duration, path: OsString, hidden: Vec<String>) -> Self {
        Self { deadline, path: Some(path), ..Self::new(hidden) }
    }

    /// A command to be run by [`Runner::run`], with this process's environment.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        for name in &self.hidden {
            command.env_remove(name);
        }
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command
    }

    /// Runs it with `input` on its standard input. What it writes to its standard error is dropped: it may be a secret.
    ///
    /// # Errors
    /// It cannot be started, says too much, or takes too long; it and what it started are killed then.
    pub(super) async fn run(&self, command: Command, input: &[u8]) -> Result<Ran, String> {
        let ran = async {
            let _turn = self.turns.acquire().await.map_err(|_| "nothing is run any more".to_owned())?;
            run(command, input).await
        };
        let late = || Err(format!("it took longer than {:?} and was killed", self.deadline));
        timeout(self.deadline, ran).await.unwrap_or_else(|_| late())
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

async fn run(mut command: Command, input: &[u8]) -> Result<Ran, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut group = Group(command.spawn().map_err(|error| format!("cannot run it: {error}"))?);
    let (stdin, stdout) = (group.0.stdin.take(), group.0.stdout.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A program that knows the answer without reading the question is fine.
            stdin.write_all(input).await.ok();
        }
    };
    let mut said = Vec::new();
    let read = async {
        match stdout {
            Some(stdout) => stdout.take(SAID_MAX + 1).read_to_end(&mut said).await.map(drop),
            None => Ok(()),
        }
    };
    let ((), read) = tokio::join!(write, read);
    read.map_err(|error| format!("cannot read what it says: {error}"))?;
    if said.len() as u64 > SAID_MAX {
        return Err(format!("it says more than {SAID_MAX} bytes"));
    }
    let status = group.0.wait().await.map_err(|error| format!("cannot wait for it: {error}"))?;
    Ok(Ran { status, said })
}

/// A child in a process group of its own. If it was not waited for, the whole group is killed, because what a script
/// started would live on and hold the pipes open.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // Known until it was waited for; up to then its number cannot belong to another process.
        let number = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = number.and_then(Pid::from_raw) {
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}
