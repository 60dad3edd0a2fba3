//! What is counted while the world runs.

use std::collections::BTreeMap;

use shoal_proto::wire::Message;

/// Declares what is counted, and its names in reports.
macro_rules! counts {
    ($($count:ident $name:literal),+ $(,)?) => {
        /// What the machines did.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Count { $($count),+ }

        const NAMES: &[&str] = &[$($name),+];
    };
}

counts! {
    Busy "busy",
    Cancels "cancels",
    Deaths "deaths",
    Dials "dials",
    FailedFetches "failed fetches",
    Fresh "fresh",
    Got "got",
    Have "have",
    Join "join",
    Joined "joined",
    Leases "leases",
    Leave "leave",
    Missing "missing",
    Pulls "pulls",
    Revoked "revoked",
    Segment "segment",
    Stalls "stalls",
    Subscribe "subscribe",
    Unknown "unknown",
    Unsubscribe "unsubscribe",
    Untracked "untracked",
}

/// Bytes moved in a part of the time.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Bin {
    pub(crate) down: u64,
    pub(crate) origin: u64,
    pub(crate) holders_up: u64,
}

/// What is counted while the world runs.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: [u64; NAMES.len()],
    pub(crate) events: u64,
    pub(crate) control_bytes: u64,
    pub(crate) useful_bytes: u64,
    pub(crate) wasted_bytes: u64,
    pub(crate) bins: Vec<Bin>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            counts: [0; NAMES.len()],
            events: 0,
            control_bytes: 0,
            useful_bytes: 0,
            wasted_bytes: 0,
            bins: Vec::new(),
        }
    }
}

impl Tally {
    pub(crate) const fn count(&mut self, what: Count) {
        self.counts[what as usize] += 1;
    }

    /// All counts that are not 0, by name.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let named = NAMES.iter().zip(self.counts);
        named.filter(|(_, count)| *count > 0).map(|(name, count)| ((*name).to_owned(), count)).collect()
    }

    pub(crate) fn bin(&mut self, bin: usize) -> &mut Bin {
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, Bin::default());
        }
        &mut self.bins[bin]
    }
}

pub(crate) const fn kind(message: &Message) -> Count {
    match message {
        Message::Join(_) => Count::Join,
        Message::Joined { .. } => Count::Joined,
        Message::Revoked { .. } => Count::Revoked,
        Message::Leave { .. } => Count::Leave,
        Message::Subscribe { .. } => Count::Subscribe,
        Message::Unsubscribe { .. } => Count::Unsubscribe,
        Message::Have { .. } => Count::Have,
        Message::Got { .. } => Count::Got,
        Message::Fresh { .. } => Count::Fresh,
        Message::Segment { .. } => Count::Segment,
        Message::Unknown { .. } => Count::Unknown,
    }
}
