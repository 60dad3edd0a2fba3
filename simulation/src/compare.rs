//! Two result files, side by side.

use crate::{
    figures::{FIGURES, Figure, Values},
    results::Results,
};

/// Differences below this share are not marked.
const NOISE: f64 = 0.001;

/// A table of the figures of the plans that both sides have, with the differences; and what only one side has.
#[must_use]
pub fn compare(one: &[Results], other: &[Results]) -> String {
    let mut text = String::new();
    let find = |side: &[Results], plan: &Results| {
        let same = side.iter().find(|known| known.plan == plan.plan && known.settings == plan.settings);
        same.or_else(|| side.iter().find(|known| known.plan == plan.plan)).cloned()
    };
    // One plan on each side is meant to be compared, whatever its name.
    let pairs: Vec<(Results, Option<Results>)> = match (one, other) {
        ([one], [other]) => vec![(one.clone(), Some(other.clone()))],
        _ => one.iter().map(|plan| (plan.clone(), find(other, plan))).collect(),
    };
    for (left, right) in &pairs {
        match right {
            Some(right) => text += &table(left, right),
            None => text += &format!("{}: only in the first file\n\n", title(left)),
        }
    }
    let known = |plan: &Results| pairs.iter().any(|(_, right)| right.as_ref().is_some_and(|right| right == plan));
    for plan in other.iter().filter(|plan| !known(plan)) {
        text += &format!("{}: only in the second file\n\n", title(plan));
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn title(results: &Results) -> String {
    let seeds = results.seeds.len();
    let settings: String = results.settings.iter().map(|setting| format!(" --set {setting}")).collect();
    format!("{}{settings} ({seeds} seed{})", results.plan, if seeds == 1 { "" } else { "s" })
}

fn table(left: &Results, right: &Results) -> String {
    let several = left.seeds.len() > 1 || right.seeds.len() > 1;
    let mut text = format!("A: {}\nB: {}\n", title(left), title(right));
    let head = |what: &str| format!("{:>13} {:>13} {:>10} ", format!("{what}A"), format!("{what}B"), "B to A");
    let heads = if several { head("worst ") + &head("median ") } else { head("") };
    text += &format!("{:26}{}\n", "", heads.trim_end());
    for figure in FIGURES {
        let mut line = format!("{:26}{}", figure.name, cells(figure, &left.worst, &right.worst));
        if several {
            line += &cells(figure, &left.median, &right.median);
        }
        text += line.trim_end();
        text.push('\n');
    }
    text + "\n"
}

fn cells(figure: &Figure, left: &Values, right: &Values) -> String {
    let value = |values: &Values| values.get(figure.key).copied();
    let show = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| figure.show(value));
    let (left, right) = (value(left), value(right));
    let change = left.zip(right).map_or_else(String::new, |(left, right)| change(figure, left, right));
    format!("{:>13} {:>13} {change:>10} ", show(left), show(right))
}

/// By how much the second value differs from the first: `+` is worse, `-` is better.
fn change(figure: &Figure, left: f64, right: f64) -> String {
    if left == right {
        return "=".to_owned();
    }
    if left == 0.0 {
        return "new".to_owned();
    }
    let share = (right - left) / left;
    let mark = if figure.quality && share > NOISE { "!" } else { "" };
    format!("{:+.2} %{mark}", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    fn results(plan: &str, times: &[f64]) -> Results {
        let reports = times.iter().enumerate().map(|(at, time)| Report {
            seed: at as u64,
            max_s: *time,
            unmet_count: u64::from(*time > 3.0),
            ..Report::default()
        });
        Results::new(plan, "", &[], reports.collect())
    }

    fn line<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line[name.len()..].split_whitespace().collect()
    }

    #[test]
    fn what_got_worse_is_marked_and_by_how_much() {
        let table = compare(&[results("a", &[2.0])], &[results("a", &[2.5])]);
        assert_eq!(line(&table, "last node, s"), ["2.000", "2.500", "+25.00", "%!"]);
        assert_eq!(line(&table, "median node, s"), ["0.000", "0.000", "="]);
        let table = compare(&[results("a", &[2.0])], &[results("other name", &[1.0])]);
        assert_eq!(line(&table, "last node, s"), ["2.000", "1.000", "-50.00", "%"]);
    }

    #[test]
    fn several_seeds_are_compared_by_the_worst_and_the_median() {
        let table = compare(&[results("a", &[1.0, 2.0, 3.0])], &[results("a", &[1.0, 2.0, 6.0])]);
        let cells = ["3.000", "6.000", "+100.00", "%!", "2.000", "2.000", "="];
        assert_eq!(line(&table, "last node, s"), cells);
        assert_eq!(line(&table, "unmet")[..3], ["0", "1", "new"]);
    }

    #[test]
    fn plans_that_only_one_side_has_are_named() {
        let (one, other) = ([results("a", &[1.0]), results("b", &[1.0])], [results("c", &[1.0]), results("a", &[1.0])]);
        let table = compare(&one, &other);
        assert!(table.contains("b (1 seed): only in the first file"), "{table}");
        assert!(table.contains("c (1 seed): only in the second file"), "{table}");
        assert_eq!(table.matches("last node, s").count(), 1);
    }
}
