//! Plots as SVG. Colours come from the page's style.

/// Height of a plot in its own units; the page scales it.
const HEIGHT: f64 = 260.0;
/// Room for labels: left, right, above, below.
const MARGIN: (f64, f64, f64, f64) = (66.0, 14.0, 22.0, 42.0);

/// A line in a plot.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// What the line shows; empty for one that the legend leaves out.
    pub name: String,
    /// Class of the style: `one`, `two`, `bound`, `faint`.
    pub class: &'static str,
    /// Whether the area below is filled.
    pub filled: bool,
    /// Corners of the line.
    pub points: Vec<(f64, f64)>,
}

/// A vertical line.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    /// Where.
    pub at: f64,
    /// What is written beside it.
    pub text: String,
}

/// A part of the width that shows a text when the pointer is on it.
#[derive(Debug, Clone)]
pub(super) struct Hint {
    /// From where.
    pub from: f64,
    /// To where.
    pub to: f64,
    /// What it says.
    pub text: String,
}

/// A plot.
#[derive(Debug, Clone, Default)]
pub(super) struct Chart {
    /// What it shows, for those who cannot see it.
    pub label: String,
    /// Whether it takes the whole width of the page.
    pub wide: bool,
    /// Name of the horizontal axis.
    pub x_name: String,
    /// Range of the horizontal axis.
    pub x: (f64, f64),
    /// Range of the vertical axis.
    pub y: (f64, f64),
    /// How values of the vertical axis are written.
    pub y_unit: Unit,
    /// Lines; later ones are drawn above earlier ones.
    pub series: Vec<Series>,
    /// Vertical lines.
    pub marks: Vec<Mark>,
    /// Texts on hover.
    pub hints: Vec<Hint>,
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Unit {
    /// Of 1, as per cent.
    #[default]
    Share,
    /// Bytes per second.
    Rate,
}

impl Unit {
    /// A value with its unit.
    #[must_use]
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:.0} %", value * 100.0),
            Self::Rate => bytes(value) + "/s",
        }
    }
}

/// A number of bytes with a unit, in about three digits.
#[must_use]
pub(super) fn bytes(value: f64) -> String {
    const UNITS: [(&str, f64); 5] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)];
    let (unit, size) = UNITS.into_iter().find(|(_, size)| value >= *size).unwrap_or(("B", 1.0));
    let number = value / size;
    let digits =
        if size == 1.0 || number >= 100.0 || number.fract() == 0.0 { 0 } else { 2 - usize::from(number >= 10.0) };
    format!("{number:.digits$} {unit}")
}

/// A text as it stands in HTML.
#[must_use]
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Round numbers in a range, about `count` of them.
fn ticks((from, to): (f64, f64), count: f64) -> Vec<f64> {
    let rough = (to - from) / count;
    if !(rough.is_finite() && rough > 0.0) {
        return vec![from];
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (from / step - 1e-9).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|at| at as f64 * step).collect()
}

/// A tick's number, with as many digits as the distance of ticks needs.
fn tick(value: f64, ticks: &[f64]) -> String {
    let step = if let [one, two, ..] = ticks { two - one } else { 1.0 };
    let whole = |digits: &i32| {
        let shifted = step * 10_f64.powi(*digits);
        (shifted - shifted.round()).abs() < 1e-6 * shifted
    };
    let digits = (0..6).find(whole).unwrap_or(6);
    format!("{value:.*}", digits as usize)
}

impl Chart {
    const fn width(&self) -> f64 {
        if self.wide { 1080.0 } else { 530.0 }
    }

    fn across(&self, x: f64) -> f64 {
        let (from, to) = self.x;
        let (left, right, ..) = MARGIN;
        left + (x - from) / (to - from).max(1e-12) * (self.width() - left - right)
    }

    fn down(&self, y: f64) -> f64 {
        let (from, to) = self.y;
        let (_, _, above, below) = MARGIN;
        HEIGHT - below - (y - from) / (to - from).max(1e-12) * (HEIGHT - above - below)
    }

    /// The plot as an element of a page.
    #[must_use]
    pub(super) fn svg(&self) -> String {
        let (label, width) = (escaped(&self.label), self.width());
        let mut svg = format!("<svg viewBox=\"0 0 {width} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">");
        self.axes(&mut svg);
        for series in &self.series {
            self.line(&mut svg, series);
        }
        for mark in &self.marks {
            self.mark(&mut svg, mark);
        }
        let (_, _, above, below) = MARGIN;
        for Hint { from, to, text } in &self.hints {
            let (x, end) = (self.across(*from), self.across(*to));
            let (width, height) = ((end - x).max(0.5), HEIGHT - above - below);
            let text = escaped(text);
            add(
                &mut svg,
                format_args!(
                    "<rect class=\"hint\" x=\"{x:.1}\" y=\"{above}\" width=\"{width:.1}\" height=\"{height}\">\
                     <title>{text}</title></rect>"
                ),
            );
        }
        svg + "</svg>"
    }

    /// What the lines mean.
    #[must_use]
    pub(super) fn legend(&self) -> String {
        let named = self.series.iter().filter(|series| !series.name.is_empty());
        let item = |series: &Series| format!("<span class=\"key {}\">{}</span>", series.class, escaped(&series.name));
        let items: String = named.map(item).collect();
        format!("<p class=\"legend\">{items}</p>")
    }

    fn axes(&self, svg: &mut String) {
        let (left, right, _, below) = MARGIN;
        let (end, floor) = (self.width() - right, HEIGHT - below);
        let rows = ticks(self.y, 4.0);
        for row in rows {
            let (y, text) = (self.down(row), self.y_unit.show(row));
            add(svg, format_args!("<line class=\"grid\" x1=\"{left}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"));
            let (x, y) = (left - 8.0, y + 4.0);
            add(svg, format_args!("<text class=\"y\" x=\"{x}\" y=\"{y:.1}\">{text}</text>"));
        }
        let columns = ticks(self.x, self.width() / 75.0);
        for column in &columns {
            let (x, text) = (self.across(*column), tick(*column, &columns));
            let (tail, base) = (floor + 5.0, floor + 19.0);
            add(svg, format_args!("<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{floor}\" y2=\"{tail}\"/>"));
            add(svg, format_args!("<text class=\"x\" x=\"{x:.1}\" y=\"{base}\">{text}</text>"));
        }
        add(svg, format_args!("<line class=\"axis\" x1=\"{left}\" x2=\"{end}\" y1=\"{floor}\" y2=\"{floor}\"/>"));
        let (middle, base, name) = (f64::midpoint(left, end), HEIGHT - 4.0, escaped(&self.x_name));
        add(svg, format_args!("<text class=\"x name\" x=\"{middle}\" y=\"{base}\">{name}</text>"));
    }

    fn line(&self, svg: &mut String, series: &Series) {
        let mut path = String::new();
        for (at, (x, y)) in series.points.iter().enumerate() {
            let (x, y) = (self.across(*x), self.down(y.min(self.y.1)));
            add(&mut path, format_args!("{}{x:.1} {y:.1}", if at == 0 { 'M' } else { 'L' }));
        }
        if let (true, Some(first), Some(last)) = (series.filled, series.points.first(), series.points.last()) {
            let (from, to, floor) = (self.across(first.0), self.across(last.0), self.down(self.y.0));
            let area = format!("{path}L{to:.1} {floor:.1}L{from:.1} {floor:.1}Z");
            add(svg, format_args!("<path class=\"area {}\" d=\"{area}\"/>", series.class));
        }
        add(svg, format_args!("<path class=\"line {}\" d=\"{path}\"/>", series.class));
    }

    fn mark(&self, svg: &mut String, mark: &Mark) {
        let (left, right, above, below) = MARGIN;
        let (x, floor, top) = (self.across(mark.at), HEIGHT - below, above - 4.0);
        add(svg, format_args!("<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{floor}\"/>"));
        let late = x > f64::midpoint(left, self.width() - right);
        let anchor = if late { "end" } else { "start" };
        let (y, text) = (above - 8.0, escaped(&mark.text));
        add(svg, format_args!("<text class=\"mark\" x=\"{x:.1}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"));
    }
}

fn add(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.push_str(&more.to_string());
}

/// Corners of steps: each value holds from its begin to its end.
#[must_use]
pub(super) fn steps(values: impl Iterator<Item = (f64, f64, f64)>) -> Vec<(f64, f64)> {
    values.flat_map(|(from, to, value)| [(from, value), (to, value)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(ticks((0.0, 10.0), 5.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let narrow = ticks((2.31, 2.52), 8.0);
        assert!(narrow.len() >= 4 && narrow.iter().all(|tick| (2.31..=2.52).contains(tick)), "{narrow:?}");
        assert_eq!(tick(2.4, &narrow), "2.40");
        assert_eq!(ticks((3.0, 3.0), 5.0), [3.0]);
    }

    #[test]
    fn bytes_are_written_in_about_three_digits() {
        let texts = [0.0, 999.0, 1e3, 1_250_000_000.0, 31_250_000_000.0, 123_400_000.0].map(bytes);
        assert_eq!(texts, ["0 B", "999 B", "1 kB", "1.25 GB", "31.2 GB", "123 MB"]);
    }

    #[test]
    fn a_plot_keeps_to_its_frame_and_escapes_texts() {
        let points = vec![(0.0, 0.0), (1.0, 5.0)];
        let series = vec![Series { name: "a<b".to_owned(), class: "one", filled: true, points }];
        let marks = vec![Mark { at: 0.9, text: "R&D".to_owned() }];
        let chart = Chart { x: (0.0, 1.0), y: (0.0, 1.0), series, marks, ..Chart::default() };
        let svg = chart.svg();
        assert!(svg.contains("R&amp;D") && chart.legend().contains("a&lt;b"));
        assert!(svg.contains("516.0 22.0"), "clipped at the right upper corner: {svg}");
    }
}
