//! Upload slots: a few chunks at once, a short queue, and a fast "busy" for the rest.

use std::collections::VecDeque;

use super::{AskId, Context, Output, fetch::Fetch, near::Near, width::Width};
use crate::{chain::Ends, chunk::ChunkIndex, digest::Digest, peer::PeerId, time::Time, wire::Answer};

/// What is being uploaded and what waits.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Few: a row is searched faster than a tree.
    active: Vec<(AskId, Upload)>,
    waiting: VecDeque<(AskId, Upload)>,
    /// How many fit.
    width: Width,
}

/// A chunk that a peer asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upload {
    pub(super) peer: PeerId,
    pub(super) digest: Digest,
    pub(super) chunk: ChunkIndex,
    /// When it began.
    pub(super) since: Time,
}

/// Whether a chunk that is asked for can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stock {
    /// It is not here, or another claim is.
    Missing,
    /// It is here.
    Here,
    /// It is here, and many wait for whoever asks: it alone was shown it, or imports it into its zone.
    Urgent,
}

impl Uploads {
    /// Serves, queues or refuses. Returns whether it was refused for want of a slot. What is urgent waits for the next.
    pub(super) fn asked(&mut self, cx: &mut Context<'_>, ask: AskId, upload: Upload, stock: Stock) -> bool {
        if stock == Stock::Missing {
            cx.out.push(Output::Refuse { ask, answer: Answer::Missing });
            return false;
        }
        let most = self.width.at_once(cx.limits.uploads_max);
        let hogs = stock != Stock::Urgent && self.hogs(upload.peer, most);
        let room = if stock == Stock::Urgent { cx.limits.releases_max } else { cx.limits.asks_waiting_max };
        if !hogs && self.active.len() < most {
            self.active.push((ask, upload));
            cx.links.uploads = self.active.len();
            cx.out.push(Output::Serve { ask });
        } else if !hogs && self.waiting.len() < room {
            self.waiting.push_back((ask, upload));
        } else {
            cx.out.push(Output::Refuse { ask, answer: Answer::Busy });
            return true;
        }
        false
    }

    /// Whether a peer takes up so many slots that, with few left, others shall have them.
    fn hogs(&self, peer: PeerId, uploads_max: usize) -> bool {
        let own = self.active.iter().filter(|(_, upload)| upload.peer == peer).count();
        own * 3 >= uploads_max && self.active.len() * 3 >= uploads_max * 2
    }

    /// An upload ended, or an ask that waited was withdrawn. Returns what was uploaded. What waited may have been dropped
    /// meanwhile with a false claim.
    pub(super) fn served(
        &mut self,
        cx: &mut Context<'_>,
        ask: AskId,
        is_here: impl Fn(&Upload) -> bool,
    ) -> Option<Upload> {
        let Some(at) = self.active.iter().position(|(active, _)| *active == ask) else {
            self.waiting.retain(|(waiting, _)| *waiting != ask);
            return None;
        };
        let (_, done) = self.active.swap_remove(at);
        self.width.note(cx.now.since(done.since), self.active.len() + 1);
        let most = self.width.at_once(cx.limits.uploads_max);
        while self.active.len() < most
            && let Some((next, upload)) = self.waiting.pop_front()
        {
            if is_here(&upload) {
                self.active.push((next, Upload { since: cx.now, ..upload }));
                cx.out.push(Output::Serve { ask: next });
                break;
            }
            cx.out.push(Output::Refuse { ask: next, answer: Answer::Missing });
        }
        cx.links.uploads = self.active.len();
        Some(done)
    }
}

impl Fetch {
    /// A peer asks for a chunk under a claim.
    pub(super) fn asked(&mut self, cx: &Context<'_>, peer: PeerId, chunk: ChunkIndex, ends: Ends) -> Stock {
        self.used = cx.now;
        let Some(content) = &self.content else { return Stock::Missing };
        let same = content.chain.expected(chunk).is_some_and(|expected| expected.ends() == ends);
        if !same || !content.have.contains(chunk) {
            return Stock::Missing;
        }
        let shown = content.releases.shown_to(chunk);
        let alone = shown.is_some_and(|slot| self.remotes[slot].peer == peer);
        // Importers ask from afar, and who is in need: a whole zone waits, or nobody else helps.
        if alone || cx.near(peer) == Near::Far { Stock::Urgent } else { Stock::Here }
    }
}
