//! A transfer and its path.

use shoal_proto::time::Time;

/// Links of the longest path.
pub const PATH_MAX: usize = 6;

/// One link: one direction of a connection to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub(super) u32);

/// One transfer. The index is that of a place that is used again; the generation tells its users apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// The links that a transfer runs through, from the sender to the receiver. The last one is the receiver's own.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    links: [LinkId; PATH_MAX],
    pub(super) len: u8,
}

/// Most transfers are *plain*: without a cap, through an uplink and a downlink and no more. A transfer fills one cache line.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct Flow {
    /// Bytes left at `since`.
    pub(super) left: f64,
    pub(super) rate: f64,
    pub(super) since: Time,
    pub(super) end: Time,
    /// What it is to the world.
    pub(super) tag: u64,
    pub(super) generation: u32,
    pub(super) plain: bool,
    /// The first and the last link of its path.
    pub(super) ends: [LinkId; 2],
    /// Where it stands in the lists of these, if it is plain.
    pub(super) slots: [u32; 2],
}

/// The way of a transfer that is not plain.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) path: Path,
    /// Where it stands in the list of each link of its path.
    pub(super) slots: [u32; PATH_MAX],
    /// What it can use at most.
    pub(super) cap: f64,
}

impl FlowId {
    /// Its place: below the highest number of transfers that ran at once.
    #[must_use]
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

impl Path {
    /// A path through links.
    ///
    /// # Panics
    /// Without a link, or with more than [`PATH_MAX`].
    #[must_use]
    pub fn new(links: &[LinkId]) -> Self {
        assert!(!links.is_empty(), "a path has a link");
        let mut path = Self { links: [LinkId(0); PATH_MAX], len: links.len() as u8 };
        path.links[..links.len()].copy_from_slice(links);
        path
    }

    /// Leads on through another link, if there is one.
    ///
    /// # Panics
    /// Beyond [`PATH_MAX`] links.
    pub fn extend(&mut self, link: Option<LinkId>) {
        if let Some(link) = link {
            self.links[usize::from(self.len)] = link;
            self.len += 1;
        }
    }

    pub(super) fn links(&self) -> &[LinkId] {
        &self.links[..usize::from(self.len)]
    }
}

impl LinkId {
    pub(super) const fn at(self) -> usize {
        self.0 as usize
    }
}

impl Flow {
    pub(super) const fn last(&self) -> usize {
        self.ends[1].at()
    }

    /// Counts what was sent until now.
    pub(super) fn settle(&mut self, now: Time) {
        self.left -= self.rate * seconds(self.since, now);
        // Less than a byte is rounding.
        if self.left < 1.0 {
            self.left = 0.0;
        }
        self.since = now;
    }

    pub(super) fn ends_at(&self) -> Time {
        if self.left <= 0.0 {
            return self.since;
        }
        // A float beyond the integers' end becomes that end.
        let rest = (self.left / self.rate * 1e9) as u64;
        Time::from_nanos(self.since.as_nanos().saturating_add(rest).saturating_add(1))
    }
}

pub(super) fn seconds(from: Time, to: Time) -> f64 {
    // Processors turn integers with a sign into floats at once.
    to.as_nanos().saturating_sub(from.as_nanos()).cast_signed() as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_transfer_fills_one_cache_line() {
        assert_eq!(size_of::<super::Flow>(), 64);
    }
}
