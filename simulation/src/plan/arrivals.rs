//! When nodes begin to want their layers, and what they have by then.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::Deserialize;

use super::{Plan, Share, Span};

/// The last `nodes` nodes (before earlier such groups) begin at a later time.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Late {
    /// How many.
    pub nodes: usize,
    /// When.
    pub at: Span,
}

/// Nodes begin one after another, with exponential times between them. Exactly one key is given.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Poisson {
    /// Nodes a second, on average.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Time from one node to the next, on average.
    #[serde(default)]
    pub gap: Option<Span>,
}

/// Nodes that hold a layer from the start, proven and announced.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Number of the layer in `layers`, from 0.
    pub layer: usize,
    /// Share of all nodes, drawn at random for each layer.
    #[serde(default = "all")]
    pub share: Share,
}

impl Poisson {
    /// Seconds from one node to the next, on average.
    fn mean(&self) -> f64 {
        self.gap.map_or_else(|| 1.0 / self.rate.unwrap_or(1.0), Span::seconds)
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        if self.rate.is_some() == self.gap.is_some() {
            return Err("give either `rate` (nodes a second) or `gap` (mean time between nodes)");
        }
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            return Err("`rate` must be more than 0");
        }
        Ok(())
    }
}

impl Plan {
    /// When each node begins to want its layers, after the start of the run. A function of the plan and its seed.
    ///
    /// Groups of `late` are taken from the last nodes; the others begin at once, spread over `jitter`, or one after another
    /// by `poisson` in the order of their numbers.
    #[must_use]
    pub fn starts(&self) -> Vec<Duration> {
        let mut rng = Pcg64Mcg::seed_from_u64(self.seed ^ 0xa771_5a15);
        let groups = self.late.iter().flat_map(|group| std::iter::repeat_n(group.at.0, group.nodes));
        let late: Vec<Duration> = groups.take(self.nodes).collect();
        let mut before = Duration::ZERO;
        let mut starts: Vec<Duration> = (late.len()..self.nodes)
            .map(|_| {
                let chance: f64 = rng.random();
                match &self.poisson {
                    Some(poisson) => {
                        before += Duration::from_secs_f64(-(1.0 - chance).ln() * poisson.mean());
                        before
                    }
                    None => self.jitter.0.mul_f64(chance),
                }
            })
            .collect();
        starts.extend(late.into_iter().rev());
        starts
    }

    /// For each layer, whether each node holds it from the start. A function of the plan and its seed.
    #[must_use]
    pub fn held(&self) -> Vec<Vec<bool>> {
        let mut held = vec![vec![false; self.nodes]; self.layers.len()];
        for base in &self.base {
            let seed = self.seed ^ 0xba5e ^ (base.layer as u64) << 32;
            for node in draw(seed, self.nodes, base.share.of(self.nodes)) {
                held[base.layer][node] = true;
            }
        }
        held
    }
}

/// `count` of the numbers below `nodes`, drawn at random, in random order.
#[must_use]
pub(super) fn draw(seed: u64, nodes: usize, count: usize) -> Vec<usize> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut numbers: Vec<usize> = (0..nodes).collect();
    for at in 0..count.min(nodes) {
        let other = rng.random_range(at..nodes);
        numbers.swap(at, other);
    }
    numbers.truncate(count);
    numbers
}

const fn all() -> Share {
    Share(1.0)
}
