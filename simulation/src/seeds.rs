//! One plan with many seeds: each run by itself in one thread, several at a time.

use std::{
    cell::RefCell,
    io::Write,
    ops::Range,
    panic,
    str::FromStr,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use crate::{
    plan::{Plan, PlanError},
    report::Report,
    world::World,
};

/// Seeds from the first up to, and without, the second: `0..20`. With `=` the second is one of them: `1..=20`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeds(pub Range<u64>);

/// What to run, as it was asked for on the command line.
#[derive(Debug, Clone)]
pub struct Work<'a> {
    /// The plan's name or path.
    pub name: &'a str,
    /// What `--set` said.
    pub settings: &'a [String],
    /// The plan.
    pub plan: Plan,
}

thread_local! {
    /// How to replay the run that this thread is in.
    static RUNNING: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Sees to it that a run that panics says how to replay it.
pub fn tell_of_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        usual(info);
        let replay = RUNNING.with(|running| running.try_borrow().map(|replay| replay.clone()).unwrap_or_default());
        if !replay.is_empty() {
            drop(writeln!(std::io::stderr(), "FAILED: the run panicked. Replay: {replay}"));
        }
    }));
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || format!("{text:?} is not a range of seeds: write 0..20 for the twenty seeds 0 to 19, or 1..=20");
        let (from, to) = text.split_once("..").ok_or_else(malformed)?;
        let (to, included) = to.strip_prefix('=').map_or((to, 0), |to| (to, 1));
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| malformed());
        let (from, to) = (number(from)?, number(to)?.saturating_add(included));
        if from < to { Ok(Self(from..to)) } else { Err(format!("{text:?} holds no seed")) }
    }
}

impl Work<'_> {
    /// The command that runs one seed of this again.
    #[must_use]
    pub fn replay(&self, seed: u64) -> String {
        let settings: String = self.settings.iter().map(|setting| format!(" --set {}", quoted(setting))).collect();
        format!("shoal-sim run {} --seed {seed}{settings}", quoted(self.name))
    }

    /// Runs one seed.
    ///
    /// # Errors
    /// A plan that cannot be run.
    pub fn run(&self, seed: u64) -> Result<Report, PlanError> {
        let plan = Plan { seed, ..self.plan.clone() };
        RUNNING.with(|running| self.replay(seed).clone_into(&mut running.borrow_mut()));
        #[expect(
            clippy::disallowed_methods,
            reason = "how long the run takes in real time is reported beside its result"
        )]
        let start = Instant::now();
        let mut report = World::new(&plan)?.run();
        report.wall_s = start.elapsed().as_secs_f64();
        self.name.clone_into(&mut report.plan);
        report.replay = RUNNING.take();
        Ok(report)
    }

    /// Runs many seeds in `jobs` threads and tells of each as it ends. The reports are in no order.
    ///
    /// # Errors
    /// A plan that cannot be run.
    pub fn run_all(&self, seeds: &Seeds, jobs: usize, mut each: impl FnMut(&Report)) -> Result<Vec<Report>, PlanError> {
        let seeds: Vec<u64> = seeds.0.clone().collect();
        let next = AtomicUsize::new(0);
        let (ended, ends) = mpsc::sync_channel(seeds.len());
        thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, seeds.len().max(1)) {
                let (ended, next, seeds) = (ended.clone(), &next, &seeds);
                scope.spawn(move || {
                    while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if ended.send(self.run(*seed)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(ended);
            let mut reports = Vec::new();
            for report in ends {
                let report = report?;
                each(&report);
                reports.push(report);
            }
            Ok(reports)
        })
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_seeds_are_read_with_and_without_their_end() {
        assert_eq!("0..20".parse(), Ok(Seeds(0..20)));
        assert_eq!("3..=5".parse(), Ok(Seeds(3..6)));
        for text in ["", "5", "5..5", "6..5", "a..b", "1..", "..3"] {
            assert!(text.parse::<Seeds>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_to_replay_a_run_can_be_pasted_into_a_shell() {
        let settings = ["nodes=3", "layers=[\"1MiB\"]", "about=it's"].map(str::to_owned);
        let work = Work { name: "demo-8", settings: &settings, plan: Plan::default() };
        let replay = r#"shoal-sim run demo-8 --seed 7 --set nodes=3 --set 'layers=["1MiB"]' --set 'about=it'\''s'"#;
        assert_eq!(work.replay(7), replay);
    }

    #[test]
    fn runs_in_many_threads_are_the_runs_of_one() {
        let settings = ["nodes=3".to_owned(), "layers=[\"2MiB\"]".to_owned()];
        let plan = Plan::load("demo-8", &settings).unwrap();
        let work = Work { name: "demo-8", settings: &settings, plan };
        let run = |jobs| {
            let mut told = 0;
            let mut reports = work.run_all(&Seeds(0..5), jobs, |_| told += 1).unwrap();
            reports.sort_unstable_by_key(|report| report.seed);
            assert_eq!(told, 5);
            reports.into_iter().map(|report| (report.seed, report.trace)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(4));
    }
}
