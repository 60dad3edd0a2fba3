//! Signing the states that this node computes: several at once, for a signature costs as much as hashing 50 KiB, and each
//! segment goes through the whole swarm.

use std::sync::Arc;

use super::{Context, Output, fetch::Fetch};
use crate::{chunk::ChunkIndex, claim::Segment, time::Time};

/// States in a segment that is signed while chunks come in. Longer ones are signed once the blob is complete.
pub(super) const STREAMED_STATES_MAX: usize = 64;

/// How far the known states are signed.
#[derive(Debug, Default)]
pub(super) struct Signing {
    /// The state in front of this chunk is the last that some segment covers.
    covered: ChunkIndex,
    /// An order to sign is out.
    ordered: bool,
    /// When the last order went out.
    last: Option<Time>,
}

impl Signing {
    /// A segment covers the states up to here.
    pub(super) fn cover(&mut self, end: ChunkIndex) {
        self.covered = self.covered.max(end);
    }
}

impl Fetch {
    /// Orders signatures for new states: at once if the last order is some time ago, else when enough have come together.
    pub(super) fn sign_due(&mut self, cx: &mut Context<'_>) {
        let Some(content) = &mut self.content else { return };
        let (from, frontier) = (content.signing.covered, content.chain.frontier());
        if content.signing.ordered || frontier <= from {
            return;
        }
        let states = (frontier.0 - from.0) as usize + 1;
        let due = content.signing.last.map_or(cx.now, |last| last + cx.limits.sign_delay);
        if due > cx.now && states < cx.limits.sign_states && !content.chain.is_whole() {
            self.arm(due);
            return;
        }
        let last = from.at() + states.min(STREAMED_STATES_MAX);
        let states = content.chain.states()[from.at()..last].to_vec();
        content.signing.ordered = true;
        content.signing.last = Some(cx.now);
        let size = content.layout().size();
        cx.out.push(Output::Sign { digest: self.digest, size, from, states });
    }

    pub(super) fn signed(&mut self, cx: &mut Context<'_>, segment: Arc<Segment>) {
        let Some(content) = &mut self.content else { return };
        content.signing.ordered = false;
        // What was signed may belong to a claim that was given up meanwhile.
        let known = content.chain.states().get(segment.from.at()..=segment.end().at());
        if known == Some(segment.states.as_slice()) {
            self.pass_on(cx, segment);
        }
        self.sign_due(cx);
    }
}
