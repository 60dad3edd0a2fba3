//! Child processes that do not outlive the test.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// Where a program runs: what network it sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// In the network of the test.
    #[default]
    Here,
    /// In the network namespace of this name.
    Namespace(String),
}

impl Place {
    /// The command that runs `program` there. The process that it starts becomes the program: its id is the program's.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Here => Command::new(program),
            Self::Namespace(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        }
    }
}

/// A running program. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both its outputs appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(mut command: Command, log: &Path) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = append(log);
        let errors = output.try_clone().expect("a log file has a second handle");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child, name, log: log.to_owned() }
    }

    /// The id of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked for its status")
    }

    /// Ends it as a power cut would: it gets no say.
    pub fn kill(mut self) {
        self.finish();
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Panics
    /// If it has not ended after `deadline`.
    pub async fn terminate(mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let what = format!("the end of {}", self.name);
        eventually(deadline, &what, || {
            let ended = self.ended();
            async move { ended }
        })
        .await
    }

    /// Waits for the end of what was told to end, and kills it at the deadline. For guards, which cannot await.
    pub fn reap(mut self, deadline: Duration) {
        let until = std::time::Instant::now() + deadline;
        while self.ended().is_none() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends a signal; nothing happens if the process is gone.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    fn finish(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.finish();
    }
}

fn append(log: &Path) -> File {
    let opened = OpenOptions::new().create(true).append(true).open(log);
    opened.unwrap_or_else(|error| panic!("cannot write {}: {error}", log.display()))
}

/// A log as text, whatever bytes are in it; empty if it is not there yet.
#[must_use]
pub fn read_log(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Runs a program to its end, off the async threads, and kills it at the deadline.
///
/// # Errors
/// It could not be started, or did not end in time.
pub async fn run(command: Command, deadline: Duration) -> io::Result<Output> {
    let name = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(deadline, command.output()).await {
        Ok(output) => output,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} was still running after {deadline:?}"))),
    }
}

/// Runs a program that must succeed and returns what it printed.
///
/// # Panics
/// If it fails or takes longer than two minutes.
pub async fn must(command: Command) -> String {
    let name = format!("{command:?}");
    let output = run(command, Duration::from_secs(120)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} ended with {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
