//! What readers see of a fetch: which chunks are here, and how it ended.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use shoal_proto::chunk::{ChunkIndex, ChunkSet, Layout};
use tokio::sync::Notify;

use super::OpenError;
use crate::{origin::Source, store::BlobFile};

/// One fetch, shared by the node's loop, which writes, and all readers of the blob.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Where the origin is asked.
    source: OnceLock<Source>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    content: Option<Content>,
    end: Option<Result<(), OpenError>>,
    /// Times that bytes came, be it less than a chunk.
    moves: u64,
}

#[derive(Debug)]
struct Content {
    layout: Layout,
    file: BlobFile,
    have: ChunkSet,
}

/// Where a flight stands for somebody who waits for a chunk.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// The blob was in the store before this flight began: it can be opened there.
    Landed,
    /// Not even the size is known.
    Unsized,
    /// The chunk is not here yet; `some` others are.
    Waiting { layout: Layout, some: bool },
    /// The chunk may be read.
    Ready { layout: Layout, file: BlobFile },
    /// The fetch is over without the blob.
    Failed(OpenError),
}

/// How far a fetch is, for somebody who waits for the whole blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advance {
    /// Bytes in the blob; none until somebody told.
    pub size: Option<u64>,
    /// Bytes of it that are stored and verified.
    pub have: u64,
    /// Differs from what it was when anything has come since, be it less than a chunk.
    pub stirs: u64,
}

impl Flight {
    /// Says where the origin is asked; the first word counts.
    pub(super) fn ask_at(&self, source: &Source) {
        self.source.get_or_init(|| source.clone());
    }

    /// Says that the origin is asked where it was for `other`.
    pub(super) fn ask_as(&self, other: &Self) {
        if let Some(source) = other.source.get() {
            self.ask_at(source);
        }
    }

    /// Whether the origin is asked there, and as the same client.
    pub(super) fn asks_at(&self, source: &Source) -> bool {
        let key = |source: &Source| (source.upstream.cache_key().to_owned(), source.repository.clone(), source.kind);
        self.source.get().is_none_or(|asked| key(asked) == key(source))
    }

    pub(super) fn sized(&self, layout: Layout, file: BlobFile) {
        let mut state = self.state();
        state.content = Some(Content { layout, file, have: ChunkSet::empty(layout.count()) });
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn arrived(&self, chunk: ChunkIndex) {
        let mut state = self.state();
        state.moves += 1;
        if let Some(content) = &mut state.content {
            content.have.insert(chunk);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Bytes came in that do not make a chunk yet. Wakes nobody: nothing more can be read.
    pub(super) fn stirred(&self) {
        self.state().moves += 1;
    }

    /// Differs from what it was when bytes have come since.
    pub(super) fn moves(&self) -> u64 {
        self.state().moves
    }

    /// How far the fetch is.
    pub(super) fn advance(&self) -> Advance {
        let state = self.state();
        let Some(content) = &state.content else { return Advance { size: None, have: 0, stirs: state.moves } };
        let layout = content.layout;
        let have = if matches!(state.end, Some(Ok(()))) {
            layout.size()
        } else {
            let whole = u64::from(content.have.len()) * layout.chunk_bytes();
            let short = layout.chunk_bytes() - layout.len(layout.last());
            whole - if content.have.contains(layout.last()) { short } else { 0 }
        };
        Advance { size: Some(layout.size()), have, stirs: state.moves + 1 }
    }

    /// How the fetch ended, if it has.
    pub(super) fn ended(&self) -> Option<Result<(), OpenError>> {
        self.state().end.clone()
    }

    /// Ends the flight; the first end counts.
    pub(super) fn end(&self, end: Result<(), OpenError>) {
        self.state().end.get_or_insert(end);
        self.changed.notify_waiters();
    }

    /// How the wait for a chunk stands. The last chunk waits for the proof of the whole, and with `sealed` every chunk.
    pub(super) fn progress(&self, at: impl FnOnce(Layout) -> ChunkIndex, sealed: bool) -> Progress {
        let state = self.state();
        if let Some(Err(error)) = &state.end {
            return Progress::Failed(error.clone());
        }
        let Some(content) = &state.content else {
            return if state.end.is_some() { Progress::Landed } else { Progress::Unsized };
        };
        let layout = content.layout;
        let chunk = at(layout);
        let proven = state.end.is_some();
        if proven || content.have.contains(chunk) && chunk != layout.last() && !sealed {
            return Progress::Ready { layout, file: content.file.clone() };
        }
        Progress::Waiting { layout, some: !content.have.is_empty() }
    }

    /// Waits until `test` gives something, looking again at each change.
    pub(super) async fn until<T>(&self, mut test: impl FnMut(&Self) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change between look and wait is missed.
            changed.as_mut().enable();
            if let Some(found) = test(self) {
                return found;
            }
            changed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere ends the process; until then the state is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
