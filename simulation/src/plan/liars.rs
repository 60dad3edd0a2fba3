//! Nodes that lie.

use serde::Deserialize;

use super::{Plan, Share, arrivals::draw};

/// Nodes that lie. They are in the cluster and have its secret. Their own times and layers count for nothing.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Liars {
    /// Share of all nodes, drawn at random (see [`Plan::liars`]).
    #[serde(default = "twentieth")]
    pub share: Share,
    /// What they do: each liar one of these, in turn.
    #[serde(default = "all")]
    pub kinds: Vec<Lie>,
    /// Whether they work together: all forged chains of a layer are one and the same, and every liar hands on the forged
    /// segments of the others as its own word. Otherwise each forger has a chain of its own.
    #[serde(default)]
    pub colluding: bool,
}

/// How a node lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// Serves each chunk that it has with a wrong byte in it, and else does what an honest node does.
    Corrupt,
    /// Says from the start that it has every chunk, under the true chain; refuses all that it is asked for and lacks.
    LyingAvailability,
    /// Joins, subscribes and tells what it has as an honest node does, but answers no ask.
    Silent,
    /// Signs and hands out a chain of made-up states that ends in the digest, says that it has every chunk under it, and
    /// serves made-up bytes.
    ForgedChain,
}

impl Liars {
    pub(super) const fn check(&self) -> Result<(), &'static str> {
        if self.kinds.is_empty() { Err("`kinds`: at least one") } else { Ok(()) }
    }
}

impl Plan {
    /// How each node lies; None for the honest ones.
    #[must_use]
    pub fn lies(&self) -> Vec<Option<Lie>> {
        let mut lies = vec![None; self.nodes];
        if let Some(liars) = &self.liars {
            let drawn = draw(self.seed ^ 0x11a5, self.nodes, liars.share.of(self.nodes));
            for (at, node) in drawn.into_iter().enumerate() {
                lies[node] = Some(liars.kinds[at % liars.kinds.len()]);
            }
        }
        lies
    }
}

const fn twentieth() -> Share {
    Share(0.05)
}

fn all() -> Vec<Lie> {
    vec![Lie::Corrupt, Lie::LyingAvailability, Lie::Silent, Lie::ForgedChain]
}
