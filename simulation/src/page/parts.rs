//! Parts of a page.

use super::chart::{Chart, Hint, Mark, Series, Unit, bytes, escaped, steps};
use crate::{
    figures::{FIGURES, Figure, Values},
    report::{Report, Traffic, Usage},
    results::Results,
};

/// A list of the plans, with links to their parts.
pub(super) fn contents(results: &[Results]) -> String {
    let mut rows = String::new();
    for results in results {
        let value = |key: &str| results.worst.get(key).copied().unwrap_or(0.0);
        let (id, plan, about) = (anchor(results), escaped(&results.plan), escaped(&results.about));
        let met = if results.is_met() {
            "<td>0</td>".to_owned()
        } else {
            format!("<td class=\"bad\">{}</td>", value("unmet"))
        };
        rows += &format!(
            "<tr><td><a href=\"#{id}\" title=\"{about}\">{plan}</a></td><td>{}</td><td>{:.3}</td><td>{:.3}</td>\
             <td>{:.4}</td><td>{:.3}</td>{met}</tr>\n",
            results.seeds.len(),
            value("max_over_bound"),
            value("own_p99_over_bound"),
            value("origin_copies"),
            value("cross_zone_copies"),
        );
    }
    format!(
        "<nav class=\"card scroll\"><table>\n<tr><th>plan</th><th>seeds</th><th>last node / bound</th>\
         <th>99 of 100 / own bound</th><th>origin copies</th><th>copies between zones</th><th>unmet</th></tr>\n{rows}\
         </table><p class=\"note\">The worst seed, for each figure by itself.</p></nav>\n"
    )
}

/// All about one plan.
pub(super) fn section(results: &Results) -> String {
    let Some(worst) = results.worst_run() else { return String::new() };
    let settings: String = results.settings.iter().map(|setting| format!(" --set {setting}")).collect();
    let head = format!(
        "<section id=\"{}\">\n<h2>{} <code>{}</code></h2>\n<p class=\"about\">{}</p>\n",
        anchor(results),
        escaped(&results.plan),
        escaped(settings.trim_start()),
        escaped(&results.about)
    );
    let head = head.replace(" <code></code>", "");
    let shown = match results.seeds.len() {
        1 => format!("Seed {}.", worst.seed),
        seeds => {
            format!("Figures are the worst of {seeds} seeds, plots of seed {}, the worst by its last node.", worst.seed)
        }
    };
    let (completion, plots) = (completion(results, worst), origin(worst) + &links(worst));
    let replay = escaped(&worst.replay);
    format!(
        "{head}<p class=\"note\">{} nodes, {} in all layers. {shown}</p>\n{}{completion}<div class=\"plots\">\n{plots}</div>\n{}{}{}\
         <p class=\"replay note\">Run it again: <code>{replay}</code></p>\n</section>\n",
        worst.nodes,
        bytes(worst.bytes as f64),
        tiles(results),
        zones(worst),
        figures(results),
        seeds(results),
    )
}

/// An identifier made of the plan's name.
fn anchor(results: &Results) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name = results.plan.clone() + &results.settings.concat();
    format!("plan-{}", name.chars().map(plain).collect::<String>())
}

fn tiles(results: &Results) -> String {
    let value = |key: &str| results.worst.get(key).copied().unwrap_or(0.0);
    let wrong = value("wrong_bytes") + value("honest_blamed");
    let safety = |count: f64| if count > 0.0 { "tile bad" } else { "tile good" };
    let mut tiles = vec![
        ("tile", format!("{:.3}", value("max_over_bound")), "last node / bound"),
        ("tile", format!("{:.3} s", value("max_s")), "last node"),
        ("tile", format!("{:.3} s", value("p99_s")), "99 of 100 nodes"),
        ("tile", format!("{:.4}", value("origin_copies")), "origin copies"),
        ("tile", format!("{:.2} %", value("duplicate_ratio") * 100.0), "bytes taken in vain"),
        (safety(value("unmet")), format!("{:.0}", value("unmet")), "unmet"),
        (safety(wrong), format!("{wrong:.0}"), "wrong bytes, honest blamed"),
    ];
    if results.seeds.iter().any(|report| report.zones.len() > 1) {
        tiles.insert(4, ("tile", format!("{:.3}", value("cross_zone_copies")), "copies between zones"));
    }
    let tile = |(class, value, name): (&str, String, &str)| {
        format!("<div class=\"{class}\"><b>{value}</b><span>{name}</span></div>\n")
    };
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.into_iter().map(tile).collect::<String>())
}

fn card(title: &str, note: &str, chart: &Chart) -> String {
    let (legend, svg) = (chart.legend(), chart.svg());
    let class = if chart.wide { "card wide" } else { "card" };
    format!("<div class=\"{class}\"><h3>{title}</h3><p class=\"note\">{note}</p>{legend}{svg}</div>\n")
}

/// Points of the share of nodes that are done, from quantiles of their times.
fn curve(quantiles: &[f64]) -> Vec<(f64, f64)> {
    let last = quantiles.len().saturating_sub(1).max(1) as f64;
    let mut points: Vec<(f64, f64)> = quantiles.first().map(|first| (*first, 0.0)).into_iter().collect();
    points.extend(quantiles.iter().enumerate().map(|(at, time)| (*time, at as f64 / last)));
    points
}

fn completion(results: &Results, worst: &Report) -> String {
    let ends = |quantiles: &[f64]| quantiles.first().copied().zip(quantiles.last().copied());
    let runs = results.seeds.iter().flat_map(|report| [&report.completion_s, &report.completion_bound_s]);
    let (from, to) = runs
        .filter_map(|quantiles| ends(quantiles))
        .fold((f64::INFINITY, 0.0_f64), |range, ends| (range.0.min(ends.0), range.1.max(ends.1)));
    if !from.is_finite() {
        return String::new();
    }
    // Times that lie close together are looked at closely.
    let room = ((to - from) * 0.06).max(to * 0.004).max(1e-6);
    let from = if to - from > 0.6 * to { 0.0 } else { (from - room).max(0.0) };
    let line = |name: &str, class, report: &Report| Series {
        name: name.to_owned(),
        class,
        filled: false,
        points: curve(&report.completion_s),
    };
    let others = results.seeds.iter().filter(|report| report.seed != worst.seed);
    let mut series: Vec<Series> = others.map(|report| line("", "faint", report)).collect();
    if let Some(first) = series.first_mut() {
        first.name = "other seeds".to_owned();
    }
    series.push(line("nodes that are done", "one", worst));
    let mut marks = Vec::new();
    match ends(&worst.completion_bound_s) {
        Some((first, last)) if last - first > 1e-3 * last => series.push(Series {
            name: "each node's own bound".to_owned(),
            class: "bound",
            filled: false,
            points: curve(&worst.completion_bound_s),
        }),
        Some((_, bound)) => marks.push(Mark { at: bound, text: format!("bound {bound:.3} s") }),
        None => {}
    }
    let chart = Chart {
        label: "Share of nodes that are done over time".to_owned(),
        wide: true,
        x_name: "seconds from a node's first wish".to_owned(),
        x: (from, to + room),
        y: (0.0, 1.0),
        series,
        marks,
        hints: hints(&worst.completion_s),
        ..Chart::default()
    };
    let note = "Share of nodes that have all layers, by the time since their own first wish.";
    card("Completion against the bound", note, &chart)
}

fn hints(quantiles: &[f64]) -> Vec<Hint> {
    let last = quantiles.len().saturating_sub(1).max(1);
    let pairs = quantiles.windows(2).enumerate().filter(|(_, pair)| pair[1] > pair[0]);
    let hint = |(at, pair): (usize, &[f64])| Hint {
        from: pair[0],
        to: pair[1],
        text: format!("{:.1} % of the nodes after {:.3} s", (at + 1) as f64 * 100.0 / last as f64, pair[1]),
    };
    pairs.map(hint).collect()
}

/// Name, class of the style, and value.
type Line<'a> = (&'a str, &'static str, &'a dyn Fn(&Usage) -> f64);

/// Bins in a plot at most. Chunks count when they are through: in narrow bins that looks like noise.
const BINS_MAX: usize = 50;

/// The same with fewer, wider bins.
fn coarse(usages: &[Usage]) -> Vec<Usage> {
    let join = |bins: &[Usage]| {
        let (from_s, to_s) = (bins[0].from_s, bins[bins.len() - 1].to_s);
        let mean = |value: fn(&Usage) -> f64| {
            bins.iter().map(|bin| value(bin) * (bin.to_s - bin.from_s)).sum::<f64>() / (to_s - from_s).max(1e-9)
        };
        let (down, origin) = (mean(|bin| bin.down), mean(|bin| bin.origin));
        Usage { from_s, to_s, down, origin, holders_up: mean(|bin| bin.holders_up) }
    };
    usages.chunks(usages.len().div_ceil(BINS_MAX).max(1)).map(join).collect()
}

/// A plot over the time of a run.
fn over_time(report: &Report, unit: Unit, top: f64, lines: &[Line<'_>]) -> Chart {
    let usages = &coarse(&report.timeline);
    let end = usages.iter().map(|usage| usage.to_s).fold(report.max_s, f64::max);
    let line = |(name, class, value): &Line<'_>| Series {
        name: (*name).to_owned(),
        class,
        filled: *class == "one",
        points: steps(usages.iter().map(|usage| (usage.from_s, usage.to_s, value(usage)))),
    };
    let hint = |usage: &Usage| {
        let values: Vec<String> =
            lines.iter().map(|(name, _, value)| format!("{name} {}", unit.show(value(usage)))).collect();
        let text = format!("{:.3} to {:.3} s: {}", usage.from_s, usage.to_s, values.join(", "));
        Hint { from: usage.from_s, to: usage.to_s, text }
    };
    let marks = vec![Mark { at: report.bound_s, text: format!("bound {:.3} s", report.bound_s) }];
    Chart {
        x_name: "seconds from the start".to_owned(),
        x: (0.0, end.max(1e-6)),
        y: (0.0, top),
        y_unit: unit,
        series: lines.iter().map(line).collect(),
        marks,
        hints: usages.iter().map(hint).collect(),
        ..Chart::default()
    }
}

fn origin(report: &Report) -> String {
    let rate = (report.origin_rate as f64).max(1.0);
    let sent = |usage: &Usage| usage.origin * rate;
    let mut chart = over_time(report, Unit::Rate, rate * 1.08, &[("sent by the origin", "one", &sent)]);
    "What the origin sends over time".clone_into(&mut chart.label);
    let note = format!("It sends {} at most, and sent {:.4} copies in all.", bytes(rate) + "/s", report.origin_copies);
    card("The origin", &note, &chart)
}

fn links(report: &Report) -> String {
    let most = report.timeline.iter().map(|usage| usage.down.max(usage.holders_up)).fold(1.0, f64::max);
    let (down, up) = (|usage: &Usage| usage.down, |usage: &Usage| usage.holders_up);
    let lines: [Line<'_>; 2] = [("all downlinks", "one", &down), ("uplinks of lease holders", "two", &up)];
    let mut chart = over_time(report, Unit::Share, most * 1.05, &lines);
    "How busy links are over time".clone_into(&mut chart.label);
    let note =
        "Bytes over what could have been sent. With a starving lease holder the swarm starves; 200 % are two of them.";
    card("Links", note, &chart)
}

fn figures(results: &Results) -> String {
    let several = results.seeds.len() > 1;
    let heads = if several { "<th>worst</th><th>median</th>" } else { "<th></th>" };
    let row = |figure: &Figure| {
        let show = |values: &Values| figure.show(values.get(figure.key).copied().unwrap_or(0.0));
        let median = if several { format!("<td>{}</td>", show(&results.median)) } else { String::new() };
        format!("<tr><td>{}</td><td>{}</td>{median}</tr>\n", figure.name, show(&results.worst))
    };
    let table = |figures: &[Figure]| {
        let rows: String = figures.iter().map(row).collect();
        format!("<table>\n<tr><th></th>{heads}</tr>\n{rows}</table>\n")
    };
    let (first, second) = FIGURES.split_at(FIGURES.len().div_ceil(2));
    let tables = table(first) + &table(second);
    format!("<div class=\"card scroll\"><h3>Figures</h3><div class=\"pair\">{tables}</div></div>\n")
}

fn zones(report: &Report) -> String {
    if report.zones.iter().all(|zone| *zone == Traffic::default()) {
        return String::new();
    }
    let whole = report.bytes.max(1) as f64;
    let cell = |value: u64| format!("<td>{} ({:.3} x)</td>", bytes(value as f64), value as f64 / whole);
    let mut rows = String::new();
    for (at, zone) in report.zones.iter().enumerate() {
        let cells = [zone.origin, zone.far, zone.zone, zone.rack].map(cell).concat();
        rows += &format!("<tr><td>zone {at}</td>{cells}</tr>\n");
    }
    format!(
        "<div class=\"card scroll\"><h3>Where each zone's bytes came from</h3>\
         <p class=\"note\">In brackets: over the bytes of all layers.</p><table>\n\
         <tr><th></th><th>the origin</th><th>other zones</th><th>other racks of the zone</th><th>the same rack</th></tr>\n\
         {rows}</table></div>\n"
    )
}

fn seeds(results: &Results) -> String {
    if results.seeds.len() < 2 {
        return String::new();
    }
    let mut rows = String::new();
    for report in &results.seeds {
        let unmet = if report.is_met() { "" } else { " class=\"bad\"" };
        rows += &format!(
            "<tr><td>{}</td><td>{:.3}</td><td>{:.4}</td><td>{:.3}</td><td>{:.5}</td><td>{:.4}</td><td{unmet}>{}</td>\
             <td><code>{}</code></td></tr>\n",
            report.seed,
            report.max_s,
            report.max_over_bound,
            report.p50_s,
            report.origin_copies,
            report.duplicate_ratio,
            report.unmet_count,
            escaped(&report.trace)
        );
    }
    format!(
        "<div class=\"card scroll\"><h3>Seeds</h3><table>\n<tr><th>seed</th><th>last node, s</th><th>/ bound</th>\
         <th>median, s</th><th>origin copies</th><th>duplicates</th><th>unmet</th><th>trace</th></tr>\n{rows}</table></div>\n"
    )
}
