//! The key figures of a report: their names in JSON, for people, and how they are written. Less is better in all of them.

use std::collections::BTreeMap;

use crate::report::Report;

/// A key figure.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// Whether it says how well the swarm did; the others say what the run was.
    pub quality: bool,
    /// Its value.
    pub of: fn(&Report) -> f64,
}

/// All key figures, in the order in which they are shown.
pub const FIGURES: &[Figure] = &[
    figure("bound_s", "bound, s", 3, |report| report.bound_s).plain(),
    figure("p50_s", "median node, s", 3, |report| report.p50_s),
    figure("p99_s", "99 of 100 nodes, s", 3, |report| report.p99_s),
    figure("p999_s", "999 of 1000 nodes, s", 3, |report| report.p999_s),
    figure("max_s", "last node, s", 3, |report| report.max_s),
    figure("max_over_bound", "last node / bound", 4, |report| report.max_over_bound),
    figure("own_p99_over_bound", "99 of 100 / own bound", 4, |report| report.own_p99_over_bound),
    figure("own_max_over_bound", "worst node / own bound", 4, |report| report.own_max_over_bound),
    figure("slow_max_s", "last slow node, s", 3, |report| report.slow_max_s),
    figure("origin_copies", "origin copies", 5, |report| report.origin_copies),
    figure("origin_blob_gets", "origin requests", 0, |report| report.origin_blob_gets as f64),
    figure("origin_fetchers_max", "origin fetchers at once", 0, |report| report.origin_fetchers_max as f64),
    figure("duplicate_ratio", "duplicate bytes / needed", 5, |report| report.duplicate_ratio),
    figure("cross_zone_copies", "copies between zones", 4, |report| report.cross_zone_copies),
    figure("control_bytes_per_node", "message bytes a node", 0, |report| report.control_bytes_per_node),
    figure("busiest_messages_per_s", "messages/s, busiest node", 0, |report| report.busiest_messages_per_s as f64),
    figure("wrong_bytes", "wrong bytes", 0, |report| report.wrong_bytes as f64),
    figure("honest_blamed", "honest nodes blamed", 0, |report| report.honest_blamed as f64),
    figure("unmet", "unmet", 0, |report| report.unmet_count as f64),
    figure("events", "events", 0, |report| report.events as f64).plain(),
    figure("wall_s", "run took, s", 2, |report| report.wall_s).plain(),
];

/// Values of the key figures, by their names in JSON.
pub type Values = BTreeMap<String, f64>;

const fn figure(key: &'static str, name: &'static str, digits: usize, of: fn(&Report) -> f64) -> Figure {
    Figure { key, name, digits, quality: true, of }
}

impl Figure {
    const fn plain(self) -> Self {
        Self { quality: false, ..self }
    }

    /// A value as it is written for people.
    #[must_use]
    pub fn show(&self, value: f64) -> String {
        format!("{value:.*}", self.digits)
    }
}

/// The worst value of each figure over some runs, each by itself.
#[must_use]
pub fn worst(reports: &[Report]) -> Values {
    over(reports, |sorted| sorted.last().copied())
}

/// The median of each figure over some runs, each by itself.
#[must_use]
pub fn median(reports: &[Report]) -> Values {
    over(reports, |sorted| sorted.get(sorted.len().saturating_sub(1) / 2).copied())
}

fn over(reports: &[Report], pick: fn(&[f64]) -> Option<f64>) -> Values {
    let value = |figure: &Figure| {
        let mut values: Vec<f64> = reports.iter().map(figure.of).collect();
        values.sort_unstable_by(f64::total_cmp);
        (figure.key.to_owned(), pick(&values).unwrap_or(0.0))
    };
    FIGURES.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_a_key_of_a_report_and_has_its_value() {
        let report = Report { p99_s: 2.5, unmet_count: 3, origin_blob_gets: 7, ..Report::default() };
        let json = serde_json::to_value(&report).unwrap_or_default();
        for figure in FIGURES {
            assert_eq!(json[figure.key].as_f64(), Some((figure.of)(&report)), "{}", figure.key);
        }
    }

    #[test]
    fn worst_and_median_are_taken_for_each_figure_by_itself() {
        let runs = [(1.0, 9), (3.0, 1), (2.0, 2)];
        let runs = runs.map(|(max_s, origin_blob_gets)| Report { max_s, origin_blob_gets, ..Report::default() });
        let (worst, median) = (worst(&runs), median(&runs));
        assert_eq!((worst["max_s"], worst["origin_blob_gets"]), (3.0, 9.0));
        assert_eq!((median["max_s"], median["origin_blob_gets"]), (2.0, 2.0));
    }
}
