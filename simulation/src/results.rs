//! Results of a plan for one or more seeds, and the files that they are kept in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    figures::{FIGURES, Values, median, worst},
    report::Report,
};

/// Results of one plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Results {
    /// The plan's name, or the path of its file.
    pub plan: String,
    /// What it is about.
    #[serde(default)]
    pub about: String,
    /// What `--set` said.
    #[serde(default)]
    pub settings: Vec<String>,
    /// A report for each seed.
    pub seeds: Vec<Report>,
    /// The worst value of each figure.
    #[serde(default)]
    pub worst: Values,
    /// The median of each figure.
    #[serde(default)]
    pub median: Values,
}

/// Why a file does not hold results.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// It cannot be read.
    #[error("cannot read the results in {0}: {1}")]
    Read(String, std::io::Error),
    /// It holds something else.
    #[error("{0} does not hold results of `shoal-sim run --json`: {1}")]
    Format(String, serde_json::Error),
    /// It holds nothing.
    #[error("{0} holds no results")]
    Empty(String),
}

/// One value of a file: of `run --json` with several seeds, or with one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Many(Results),
    One(Box<Report>),
}

impl Results {
    /// Results from the reports of a plan, in any order.
    #[must_use]
    pub fn new(plan: &str, about: &str, settings: &[String], mut seeds: Vec<Report>) -> Self {
        seeds.sort_unstable_by_key(|report| report.seed);
        let (worst, median) = (worst(&seeds), median(&seeds));
        Self { plan: plan.to_owned(), about: about.to_owned(), settings: settings.to_vec(), seeds, worst, median }
    }

    /// Results from a file: JSON values, one after another, of one or more plans. Runs of one plan with the same settings are
    /// put together.
    ///
    /// # Errors
    /// Whatever [`ResultsError`] says.
    pub fn read(path: &str) -> Result<Vec<Self>, ResultsError> {
        let text = std::fs::read_to_string(path).map_err(|error| ResultsError::Read(path.to_owned(), error))?;
        Self::parse(path, &text)
    }

    /// The same from a text; `path` is for the error.
    ///
    /// # Errors
    /// Whatever [`ResultsError`] says.
    pub fn parse(path: &str, text: &str) -> Result<Vec<Self>, ResultsError> {
        let mut all: Vec<Self> = Vec::new();
        for entry in serde_json::Deserializer::from_str(text).into_iter() {
            let one = match entry.map_err(|error| ResultsError::Format(path.to_owned(), error))? {
                Entry::Many(results) => results,
                Entry::One(report) => Self { plan: report.plan.clone(), seeds: vec![*report], ..Self::default() },
            };
            match all.iter_mut().find(|known| known.plan == one.plan && known.settings == one.settings) {
                Some(known) => known.seeds.extend(one.seeds),
                None => all.push(one),
            }
        }
        if all.iter().all(|results| results.seeds.is_empty()) {
            return Err(ResultsError::Empty(path.to_owned()));
        }
        Ok(all.into_iter().map(|one| Self::new(&one.plan, &one.about, &one.settings, one.seeds)).collect())
    }

    /// The run whose last node was the latest for its bound; one with something unmet goes before.
    #[must_use]
    pub fn worst_run(&self) -> Option<&Report> {
        self.seeds.iter().max_by(|one, other| {
            let rank = |report: &Report| (report.unmet_count > 0, report.max_over_bound);
            let (one, other) = (rank(one), rank(other));
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
        })
    }

    /// Whether all came about that should have, in all runs.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.seeds.iter().all(Report::is_met)
    }
}

/// One line for a run.
#[derive(Debug)]
pub struct Line<'a>(pub &'a Report);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        write!(
            f,
            "seed {:<4} last {:.3} s = {:.4} x bound, own bound {:.4}, median {:.3} s, copies {:.5}, duplicates {:.4}, \
             {:.1} s",
            report.seed,
            report.max_s,
            report.max_over_bound,
            report.own_max_over_bound,
            report.p50_s,
            report.origin_copies,
            report.duplicate_ratio,
            report.wall_s
        )?;
        if report.is_met() { Ok(()) } else { write!(f, ", UNMET {}", report.unmet_count) }
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} over {} seeds", self.plan, self.seeds.len())?;
        writeln!(f, "{:26} {:>14} {:>14}", "", "worst", "median")?;
        for figure in FIGURES {
            let show = |values: &Values| values.get(figure.key).map_or_else(String::new, |value| figure.show(*value));
            writeln!(f, "{:26} {:>14} {:>14}", figure.name, show(&self.worst), show(&self.median))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn report(plan: &str, seed: u64, max_over_bound: f64) -> Report {
        Report { plan: plan.to_owned(), seed, max_over_bound, ..Report::default() }
    }

    #[test]
    fn a_file_holds_any_mix_of_runs_and_results() {
        let many = Results::new("a", "about a", &[], vec![report("a", 1, 1.1), report("a", 0, 1.2)]);
        let one = report("b", 5, 1.0);
        let more = Results::new("a", "about a", &[], vec![report("a", 2, 1.3)]);
        let json = [serde_json::to_string(&many), serde_json::to_string_pretty(&one), serde_json::to_string(&more)];
        let text = json.map(Result::unwrap).join("\n");
        let read = Results::parse("file", &text).unwrap();
        assert_eq!((read.len(), read[0].seeds.len(), read[1].plan.as_str()), (2, 3, "b"));
        assert_eq!((read[0].worst["max_over_bound"], read[0].about.as_str()), (1.3, "about a"));
        assert_eq!(read[0].seeds.iter().map(|report| report.seed).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(read[1].seeds[0], one);
    }

    #[test]
    fn a_file_without_results_is_refused() {
        assert!(matches!(Results::parse("file", ""), Err(ResultsError::Empty(_))));
        assert!(matches!(Results::parse("file", "[1, 2"), Err(ResultsError::Format(..))));
        assert!(matches!(Results::read("/nothing/here.json"), Err(ResultsError::Read(..))));
    }

    #[test]
    fn a_run_with_something_unmet_is_the_worst() {
        let failed = Report { unmet_count: 1, ..report("a", 1, 1.0) };
        let results = Results::new("a", "", &[], vec![report("a", 0, 9.0), failed]);
        assert_eq!(results.worst_run().unwrap().seed, 1);
        assert!(!results.is_met());
    }
}
