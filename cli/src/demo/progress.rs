//! How a running demo looks: bars on a terminal, lines elsewhere, nothing with `--json`.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::report::human;

const BARS_EVERY: Duration = Duration::from_millis(100);
const LINES_EVERY: Duration = Duration::from_secs(2);
/// More nodes than this share one bar.
const BARS_MAX: usize = 16;

/// Where the words and numbers of a running demo go: standard error, or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Silent,
    Lines,
    Bars,
}

impl Progress {
    pub(super) fn new(silent: bool) -> Self {
        match (silent, io::stderr().is_terminal()) {
            (true, _) => Self::Silent,
            (false, true) => Self::Bars,
            (false, false) => Self::Lines,
        }
    }

    /// One line about what happens now.
    pub(super) fn say(self, text: &str) {
        if self != Self::Silent {
            warn(text);
        }
    }

    /// Shows how far the nodes are, until dropped. Each node receives `total` bytes.
    pub(super) async fn watch(self, names: &[&str], received: &[Arc<AtomicU64>], total: u64) {
        match self {
            Self::Silent => std::future::pending().await,
            Self::Lines => lines(received, total).await,
            Self::Bars => bars(names, received, total).await,
        }
    }
}

/// One line on standard error. If that is closed there is nobody to tell.
pub(super) fn warn(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

async fn lines(received: &[Arc<AtomicU64>], total: u64) {
    let start = Instant::now();
    let mut ticks = interval(LINES_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        warn(&line(start.elapsed(), received, total));
    }
}

fn line(elapsed: Duration, received: &[Arc<AtomicU64>], total: u64) -> String {
    let now: Vec<u64> = received.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect();
    let percent = |bytes: u64, of: u64| bytes.saturating_mul(100).checked_div(of).unwrap_or(100);
    let (sum, all) = (now.iter().sum::<u64>(), total.saturating_mul(now.len() as u64));
    let done = now.iter().filter(|&&bytes| bytes >= total).count();
    format!(
        "{:>4} s: {} of {} ({} %), slowest node {} %, {done} of {} done",
        elapsed.as_secs(),
        human(sum),
        human(all),
        percent(sum, all),
        percent(now.iter().copied().min().unwrap_or(0), total),
        now.len(),
    )
}

async fn bars(names: &[&str], received: &[Arc<AtomicU64>], total: u64) {
    let screen = MultiProgress::new();
    let style = ProgressStyle::with_template(
        "  {prefix:<8} [{bar:32}] {percent:>3} %  {binary_bytes:>11}  {binary_bytes_per_sec:>13}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("=> ");
    let bar = |name: &str, length| {
        let bar = ProgressBar::new(length).with_style(style.clone()).with_prefix(name.to_owned());
        screen.add(bar)
    };
    let each = names.len() <= BARS_MAX;
    let shown = Shown {
        bars: if each {
            names.iter().map(|name| bar(name, total)).collect()
        } else {
            vec![bar(&format!("{} nodes", names.len()), total.saturating_mul(names.len() as u64))]
        },
    };
    let mut ticks = interval(BARS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = received.iter().map(|bytes| bytes.load(Ordering::Relaxed));
        if each {
            now.zip(&shown.bars).for_each(|(bytes, bar)| bar.set_position(bytes));
        } else {
            shown.bars[0].set_position(now.sum());
        }
    }
}

/// Leaves no bars behind, however the watching ends.
struct Shown {
    bars: Vec<ProgressBar>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bars.iter().for_each(ProgressBar::finish_and_clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_the_sum_and_the_slowest_node() {
        let received = [100, 50, 0].map(|bytes| Arc::new(AtomicU64::new(bytes << 20)));
        let line = line(Duration::from_millis(2100), &received, 100 << 20);
        assert_eq!(line, "   2 s: 150.0 MiB of 300.0 MiB (50 %), slowest node 0 %, 1 of 3 done");
    }
}
