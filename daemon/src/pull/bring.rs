//! Bringing the parts of an image into the store, a few at a time, and telling how far they are.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::select_all;
use shoal_proto::{digest::Digest, status::PullProgress};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    PullError, Puller,
    document::{Piece, Role},
};
use crate::{
    access::Scope,
    node::{Fetch, OpenError},
    origin::Upstream,
};

/// Parts on their way at a time, as container engines have it.
const PARALLEL: usize = 3;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);
/// How often a part is begun: a false claim costs one, and one is found out for good.
const BEGINNINGS_MAX: u32 = 3;

/// The repository of an upstream that has the image.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) upstream: Arc<Upstream>,
    pub(super) repository: String,
    pub(super) scope: Scope,
}

/// Something of an image that has a digest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// None for a manifest.
    role: Option<Role>,
    pub(super) digest: Digest,
    /// Bytes in it, as the document says that names it.
    pub(super) size: Option<u64>,
}

impl Part {
    pub(super) const fn manifest(digest: Digest, size: Option<u64>) -> Self {
        Self { role: None, digest, size }
    }

    pub(super) const fn is_manifest(&self) -> bool {
        self.role.is_none()
    }

    fn what(&self) -> &'static str {
        match self.role {
            None => "manifest",
            Some(Role::Config) => "config",
            Some(Role::Layer) => "layer",
        }
    }
}

impl From<&Piece> for Part {
    fn from(piece: &Piece) -> Self {
        Self { role: Some(piece.role), digest: piece.digest, size: Some(piece.size) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what(), self.digest)
    }
}

/// A part on its way.
struct Flying {
    part: Part,
    fetch: Fetch,
    beginnings: u32,
    /// As last seen.
    stirs: u64,
    /// As last told.
    told: Option<u64>,
}

impl Flying {
    /// Whether anything has come since the last look.
    fn stirred(&mut self) -> bool {
        let stirs = self.fetch.advance().stirs;
        std::mem::replace(&mut self.stirs, stirs) != stirs
    }

    /// A line about `have` bytes, if the last one said something else.
    fn line(&mut self, have: u64) -> Option<PullProgress> {
        let size = self.part.size?;
        let have = have.min(size);
        (self.told.replace(have) != Some(have)).then_some(PullProgress::Layer { digest: self.part.digest, size, have })
    }
}

impl fmt::Display for Flying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let have = self.fetch.advance().have;
        match self.part.size.or(self.fetch.advance().size) {
            Some(size) => write!(f, "{} ({have} of {size} bytes)", self.part),
            None => write!(f, "{}", self.part),
        }
    }
}

impl Puller {
    /// Brings `parts` into the store, beginning with the first. Tells progress to `lines`, of parts whose size is known.
    pub(super) async fn bring(
        &self,
        target: &Target,
        parts: &[Part],
        lines: Option<&mpsc::Sender<PullProgress>>,
    ) -> Result<(), PullError> {
        let mut waiting = parts.iter();
        let mut flying: Vec<Flying> = Vec::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle_since = Instant::now();
        loop {
            while flying.len() < PARALLEL
                && let Some(part) = waiting.next()
            {
                let mut begun = self.begin(target, *part, 1).await?;
                let have = begun.fetch.advance().have;
                self.tell(lines, begun.line(have)).await;
                flying.push(begun);
            }
            if flying.is_empty() {
                return Ok(());
            }
            tokio::select! {
                (at, end) = first(&flying) => {
                    idle_since = Instant::now();
                    let mut landed = flying.swap_remove(at);
                    if let Some(size) = judge(&landed, end)? {
                        self.tell(lines, landed.line(size)).await;
                    } else {
                        flying.push(self.begin(target, landed.part, landed.beginnings + 1).await?);
                    }
                }
                _ = ticks.tick() => {
                    for part in &mut flying {
                        if part.stirred() {
                            idle_since = Instant::now();
                        }
                        let have = part.fetch.advance().have;
                        if let Some((lines, line)) = lines.zip(part.line(have))
                            && lines.try_send(line).is_err()
                        {
                            // A client that reads slowly misses some of these; the next one is told whatever it says.
                            part.told = None;
                        }
                    }
                    if idle_since.elapsed() >= self.idle {
                        let waiting: Vec<String> = flying.iter().map(ToString::to_string).collect();
                        return Err(PullError::Idle { idle: self.idle, waiting: waiting.join(", ") });
                    }
                }
            }
        }
    }

    async fn begin(&self, target: &Target, part: Part, beginnings: u32) -> Result<Flying, PullError> {
        let fetch = self
            .node
            .fetch(target.want(&part))
            .await
            .map_err(|source| PullError::Part { part: part.into(), source })?;
        Ok(Flying { part, stirs: fetch.advance().stirs, fetch, beginnings, told: None })
    }

    /// Tells a line that must not be lost.
    async fn tell(&self, lines: Option<&mpsc::Sender<PullProgress>>, line: Option<PullProgress>) {
        if let Some((lines, line)) = lines.zip(line) {
            // A client that is gone ends the pull elsewhere.
            lines.send_timeout(line, self.idle).await.ok();
        }
    }
}

/// The first of them to end, and how it did.
async fn first(flying: &[Flying]) -> (usize, Result<u64, OpenError>) {
    let (end, at, _) = select_all(flying.iter().map(|part| Box::pin(part.fetch.done()))).await;
    (at, end)
}

/// The size of a part that has arrived; none if it should be begun once more.
fn judge(landed: &Flying, end: Result<u64, OpenError>) -> Result<Option<u64>, PullError> {
    let part = landed.part;
    match end {
        Ok(size) if part.size.is_some_and(|said| said != size) => Err(PullError::Size { part: part.into(), size }),
        Ok(size) => Ok(Some(size)),
        // A claim was false; the node has begun anew, from the origin.
        Err(OpenError::Corrupt) if landed.beginnings < BEGINNINGS_MAX => Ok(None),
        Err(source) => Err(PullError::Part { part: part.into(), source }),
    }
}
