//! What must never happen. The world tells what its machines ordered; breaches are kept as texts.

use std::collections::BTreeSet;

/// Breaches kept as texts; further ones are only counted.
const KEPT_MAX: usize = 20;

/// The checker of a run.
#[derive(Debug, Default)]
pub struct Checks {
    breaches: Vec<String>,
    count: u64,
    announced: BTreeSet<(usize, usize)>,
}

impl Checks {
    /// Notes a breach unless the rule holds.
    pub fn rule(&mut self, holds: bool, breach: impl FnOnce() -> String) {
        if !holds {
            self.count += 1;
            if self.breaches.len() < KEPT_MAX {
                self.breaches.push(breach());
            }
        }
    }

    /// A node announced a layer to the DHT: once, and only when it has all of it.
    pub(crate) fn announced(&mut self, node: usize, blob: usize, proven: bool) {
        let first = self.announced.insert((node, blob));
        self.rule(first, || format!("node {node} announced layer {blob} twice"));
        self.rule(proven, || format!("node {node} announced layer {blob} before it had it"));
    }

    /// A node lost its disk: what it announced counts no more.
    pub(crate) fn forget(&mut self, node: usize) {
        self.announced.retain(|(other, _)| *other != node);
    }

    /// How many rules were broken.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The first breaches.
    #[must_use]
    pub fn breaches(&self) -> &[String] {
        &self.breaches
    }
}
