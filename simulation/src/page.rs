//! Results as one self-contained page: tables and plots, no scripts, nothing from elsewhere.

mod chart;
mod parts;

use crate::results::Results;

use self::chart::escaped;

const STYLE: &str = include_str!("page/style.css");

/// The page of some results.
#[must_use]
pub fn page(results: &[Results]) -> String {
    let title = match results {
        [one] => escaped(&format!("{}: Shoal in simulation", one.plan)),
        _ => "Shoal in simulation".to_owned(),
    };
    let sections: String = results.iter().map(parts::section).collect();
    let contents = if results.len() > 1 { parts::contents(results) } else { String::new() };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>Shoal in simulation</h1>\n\
         <p class=\"about\">Nodes decide by the daemon's own code; network, origin, DHT and faults are simulated. \
         The bound is what no scheme could beat, with fluid bytes and no delays.</p>\n\
         {contents}{sections}</body>\n</html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Report, Traffic, Usage};

    fn results() -> Results {
        let usage = |at: f64| Usage { from_s: at, to_s: at + 1.0, down: 0.5, origin: 1.0, holders_up: 1.0 };
        let report = |seed| Report {
            seed,
            bound_s: 2.0,
            max_s: 2.1,
            max_over_bound: 1.05,
            replay: format!("shoal-sim run <b> --seed {seed}"),
            completion_s: vec![2.0, 2.05, 2.1],
            completion_bound_s: vec![2.0, 2.0, 2.0],
            timeline: vec![usage(0.0), usage(1.0)],
            zones: vec![Traffic { origin: 100, ..Traffic::default() }, Traffic { far: 50, ..Traffic::default() }],
            origin_rate: 1000,
            bytes: 100,
            ..Report::default()
        };
        Results::new("<b>", "about & more", &["nodes=<3>".to_owned()], vec![report(0), report(1)])
    }

    #[test]
    fn a_page_is_complete_in_itself_and_lets_no_text_be_markup() {
        let page = page(&[results()]);
        for outside in ["<script", "http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(!page.contains("<b> ") && page.contains("&lt;b&gt;") && page.contains("about &amp; more"));
        assert_eq!(page.matches("<svg").count(), 3);
        assert!(page.contains("1.050") && page.contains("bound 2.000 s"));
    }

    #[test]
    fn a_page_of_several_plans_leads_to_each_and_one_of_an_empty_run_is_made_too() {
        let empty = Results::new("empty", "", &[], vec![Report::default()]);
        let page = page(&[results(), empty]);
        assert_eq!(page.matches("<section").count(), 2);
        assert!(page.contains("href=\"#plan-empty\"") && page.contains("id=\"plan-empty\""));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}
