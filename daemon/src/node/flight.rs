//! What readers see of a fetch: which chunks are here, and how it ended.

use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_proto::chunk::{ChunkIndex, ChunkSet, Layout};
use tokio::sync::Notify;

use super::OpenError;
use crate::store::BlobFile;

/// One fetch, shared by the node's loop, which writes, and all readers of the blob.
#[derive(Debug, Default)]
pub(super) struct Flight {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    content: Option<Content>,
    end: Option<Result<(), OpenError>>,
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
    /// Not even the size is known.
    Unsized,
    /// The chunk is not here yet; some chunks may be.
    Waiting { layout: Layout, moving: bool },
    /// The chunk may be read.
    Ready { layout: Layout, file: BlobFile },
    /// The fetch is over without the blob.
    Failed(OpenError),
}

impl Flight {
    pub(super) fn sized(&self, layout: Layout, file: BlobFile) {
        self.state().content = Some(Content { layout, file, have: ChunkSet::empty(layout.count()) });
        self.changed.notify_waiters();
    }

    pub(super) fn arrived(&self, chunk: ChunkIndex) {
        if let Some(content) = &mut self.state().content {
            content.have.insert(chunk);
        }
        self.changed.notify_waiters();
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
        let Some(content) = &state.content else { return Progress::Unsized };
        let layout = content.layout;
        let chunk = at(layout);
        let proven = state.end.is_some();
        if proven || content.have.contains(chunk) && chunk != layout.last() && !sealed {
            return Progress::Ready { layout, file: content.file.clone() };
        }
        Progress::Waiting { layout, moving: !content.have.is_empty() }
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
