//! How many chunks go over a link at once.
//!
//! Several at once hide the way there and back and even out who gets what. But each takes so many times longer until it can
//! be passed on, and on a slow link that is what the whole swarm waits for. So there are as many as keep one transfer below
//! [`AIM`]; fast links have the most that the limits allow. Senders and receivers reckon alike: where both have the same
//! number, fair shares fill every link.

use std::time::Duration;

use super::content::average;

/// What one transfer shall take at most.
const AIM: Duration = Duration::from_millis(1000);
/// Fewest transfers at once.
const LEAST: usize = 2;

/// The measure of a link in one direction.
#[derive(Debug, Default)]
pub(super) struct Width {
    /// Moving average of what a transfer would take alone.
    alone: Duration,
}

impl Width {
    /// A transfer took so long beside others: so many at once.
    pub(super) fn note(&mut self, took: Duration, at_once: usize) {
        self.alone = average(self.alone, took / u32::try_from(at_once.max(1)).unwrap_or(u32::MAX));
    }

    /// Transfers to have at once, `most` at most.
    pub(super) fn at_once(&self, most: usize) -> usize {
        if self.alone.is_zero() {
            return most;
        }
        let fit = AIM.as_secs_f64() / self.alone.as_secs_f64();
        (fit as usize).clamp(LEAST.min(most), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it comes to where so many bytes a second are shared by all transfers of a megabyte.
    fn settle(rate: f64) -> usize {
        let mut width = Width::default();
        for _ in 0..50 {
            let at_once = width.at_once(12);
            width.note(Duration::from_secs_f64(1e6 * at_once as f64 / rate), at_once);
        }
        width.at_once(12)
    }

    #[test]
    fn a_slow_link_carries_few_chunks_at_once() {
        assert_eq!((settle(1e9), settle(12.5e6)), (12, 12));
        assert_eq!(settle(5.6e6), 5);
        assert_eq!(settle(100e3), 2);
    }
}
