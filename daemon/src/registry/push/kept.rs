//! The bytes of an upload on their way past: what is kept here must be all of them, or nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{runtime::Handle, sync::Mutex, task::spawn_blocking, time::timeout};

use super::super::content::Content;
use crate::store::Draft;

/// Bytes written at once; this much memory an upload takes.
const BATCH_BYTES: usize = 1024 * 1024;
/// Pieces written at once, however small a client sends them.
const PIECES: usize = 1024;
/// Longest wait for the disk. The push goes on without it.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// What is kept of one upload; a cheap handle.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    /// No byte came yet.
    #[default]
    Fresh,
    Keeping {
        draft: Held,
        batch: Vec<Bytes>,
        batched: usize,
    },
    /// Something is missing: it is of no use any more.
    Lost,
}

impl State {
    const fn keeping(draft: Held) -> Self {
        Self::Keeping { draft, batch: Vec::new(), batched: 0 }
    }
}

/// A draft whose file is deleted off the async threads if nobody takes it: large ones take their time. There is one until then.
#[derive(Debug)]
struct Held(Option<Draft>);

impl Held {
    fn length(&self) -> u64 {
        self.0.as_ref().map_or(0, Draft::length)
    }

    fn write(&mut self, pieces: &[Bytes]) -> std::io::Result<()> {
        self.0.as_mut().map_or(Ok(()), |draft| draft.write(pieces))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(draft), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(draft));
        }
    }
}

impl Kept {
    /// Makes room for the first bytes. A disk that has none costs the copy, not the push.
    pub(super) async fn begin(&self, content: &Arc<dyn Content>) {
        let mut state = self.0.lock().await;
        if !matches!(*state, State::Fresh) {
            return;
        }
        *state = State::Lost;
        match timeout(DISK_PATIENCE, content.draft()).await {
            Ok(Ok(draft)) => *state = State::keeping(Held(Some(draft))),
            Ok(Err(error)) => tracing::warn!(%error, "what is pushed cannot be kept here"),
            Err(_) => tracing::warn!("what is pushed cannot be kept here: the disk is too slow"),
        }
    }

    /// Adds bytes that went to the origin.
    pub(super) async fn add(&self, bytes: Bytes) {
        let mut state = self.0.lock().await;
        // Lost for the time of writing, and for good if that is given up.
        if let State::Keeping { draft, mut batch, batched } = std::mem::replace(&mut *state, State::Lost) {
            let batched = batched + bytes.len();
            batch.push(bytes);
            if batched < BATCH_BYTES && batch.len() < PIECES {
                *state = State::Keeping { draft, batch, batched };
            } else if let Some(draft) = write(draft, batch).await {
                *state = State::keeping(draft);
            }
        }
    }

    /// Says how many bytes the origin has: the copy is lost if it has others.
    pub(super) async fn must_have(&self, have: Option<u64>) {
        let mut state = self.0.lock().await;
        if let (State::Keeping { draft, batched, .. }, Some(have)) = (&*state, have)
            && draft.length() + *batched as u64 != have
        {
            *state = State::Lost;
        }
    }

    /// Keeps no copy: nobody knows what the origin has.
    pub(super) async fn give_up(&self) {
        *self.0.lock().await = State::Lost;
    }

    /// Everything that came, on the disk; none if nothing came or something is missing.
    pub(super) async fn take(&self) -> Option<Draft> {
        match std::mem::replace(&mut *self.0.lock().await, State::Lost) {
            State::Keeping { draft, batch, .. } => write(draft, batch).await?.0.take(),
            State::Fresh | State::Lost => None,
        }
    }
}

async fn write(mut draft: Held, batch: Vec<Bytes>) -> Option<Held> {
    let written = spawn_blocking(move || draft.write(&batch).map(|()| draft));
    match timeout(DISK_PATIENCE, written).await {
        Ok(Ok(Ok(draft))) => return Some(draft),
        Ok(Ok(Err(error))) => tracing::warn!(%error, "what is pushed cannot be kept here"),
        Ok(Err(error)) => tracing::warn!(%error, "what is pushed cannot be kept here"),
        Err(_) => tracing::warn!("what is pushed cannot be kept here: the disk is too slow"),
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::store::Store;

    fn keeping(store: &Store) -> Kept {
        let state = State::keeping(Held(Some(store.draft().unwrap())));
        Kept(Arc::new(Mutex::new(state)))
    }

    #[tokio::test]
    async fn a_copy_is_whole_or_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let piece = Bytes::from(vec![7; BATCH_BYTES / 2 + 1]);
        let sent = piece.len() as u64 * 3;
        for (have, kept) in [(None, true), (Some(sent), true), (Some(sent - 1), false)] {
            let copy = keeping(&store);
            for _ in 0..3 {
                copy.add(piece.clone()).await;
            }
            copy.must_have(have).await;
            assert_eq!(copy.take().await.map(|draft| draft.length()), kept.then_some(sent));
            assert!(copy.take().await.is_none(), "taken once");
        }
        let copy = keeping(&store);
        copy.add(piece.clone()).await;
        copy.give_up().await;
        copy.add(piece).await;
        assert!(copy.take().await.is_none());
        assert!(Kept::default().take().await.is_none(), "nothing came");
    }
}
