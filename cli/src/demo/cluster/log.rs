//! The log of a daemon: all of it in a file, its end for messages, and the addresses in its `ready` line.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    sync::oneshot,
};

use crate::demo::ready::{Addresses, ready_line};

/// Lines that are kept for error messages, and bytes of one line.
const TAIL_LINES: usize = 20;
const LINE_MAX: u64 = 16 << 10;

/// The last lines that a daemon logged; prints as an indented block, or as nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail(Vec<String>);

impl std::fmt::Display for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.0.is_empty() {
            write!(f, "\n  its log ends with:")?;
        }
        self.0.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// The end of a log that is still being written.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    pub(super) fn so_far(&self) -> LogTail {
        LogTail(self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect())
    }

    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

/// Copies a daemon's log to a file, keeps its end, and tells the addresses of the first `ready` line.
pub(super) async fn follow(
    log: impl AsyncRead + Unpin,
    mut file: tokio::fs::File,
    tail: Tail,
    tell: oneshot::Sender<Addresses>,
) {
    let mut tell = Some(tell);
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut log).take(LINE_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        // A full disk must not block the daemon: keep reading.
        if let Err(error) = file.write_all(&line).await {
            tracing::debug!(%error, "a line of a daemon's log is lost");
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if tell.is_some()
            && let Some(addresses) = ready_line(text)
            && let Some(tell) = tell.take()
            && tell.send(addresses).is_err()
        {
            tracing::debug!("nobody waits for a daemon that got ready");
        }
        tail.push(text);
    }
    if let Err(error) = file.flush().await {
        tracing::debug!(%error, "the end of a daemon's log is lost");
    }
}
