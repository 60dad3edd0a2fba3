//! Names that the world still reads. To go as soon as it reads `dht` and `faults`.

use std::ops::Deref;

use super::{DhtPlan, FaultKind, Moment, Plan, Victims};

/// A node dies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kill {
    /// Which.
    pub who: Who,
    /// When.
    pub at: Moment,
}

/// Which node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// By its number.
    Node(usize),
    /// Whoever streams the largest unfinished layer from the origin.
    LeaseHolder,
}

impl Deref for Plan {
    type Target = DhtPlan;

    fn deref(&self) -> &DhtPlan {
        &self.dht
    }
}

impl Plan {
    pub(super) fn kills(&self) -> Vec<Kill> {
        let crashes = self.faults.iter().filter(|fault| fault.kind == FaultKind::Crash);
        let kills = crashes.filter_map(|fault| match fault.who {
            Victims::Node(node) => Some(Kill { who: Who::Node(node), at: fault.at }),
            Victims::LeaseHolder => Some(Kill { who: Who::LeaseHolder, at: fault.at }),
            Victims::Share(_) | Victims::Tracker | Victims::Trackers | Victims::Rack(_) | Victims::Zone(_) => None,
        });
        kills.collect()
    }
}
