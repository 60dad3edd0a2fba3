//! The one place that prints: text for people or JSON for programs, never mixed.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
};

use serde::Serialize;

use crate::failure::{Failure, GENERAL};

/// Where a command's result goes: standard output, as text or JSON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the user wants JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether progress may be drawn over itself.
    pub(crate) fn is_live(self) -> bool {
        !self.json && io::stderr().is_terminal() && io::stdout().is_terminal()
    }

    /// Prints the report as JSON, or as the text that `text` makes of it.
    pub(crate) fn report<T: Serialize, D: Display>(
        self,
        report: &T,
        text: impl FnOnce(&T) -> D,
    ) -> Result<(), Failure> {
        if self.json {
            let json = serde_json::to_string_pretty(report)
                .map_err(|error| Failure::new(GENERAL, format!("cannot write the report as JSON: {error}")))?;
            self.line(json)
        } else {
            self.line(text(report))
        }
    }

    /// Prints one line (or several, if the text has several).
    pub(crate) fn line(self, text: impl Display) -> Result<(), Failure> {
        let text = text.to_string();
        let written = writeln!(io::stdout().lock(), "{}", text.trim_end_matches('\n'));
        match written {
            // `shoal blobs | head` has read enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| Failure::new(GENERAL, format!("cannot write to standard output: {error}"))),
        }
    }
}

/// Tells a failure on standard error.
pub(crate) fn complain(message: &dyn Display) {
    // Nobody is left to tell if this fails.
    writeln!(io::stderr().lock(), "shoal: {message}").ok();
}

/// A size for people, always with one digit behind the point so that columns line up.
pub(crate) fn human(bytes: u64) -> String {
    let units = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// A count of things: `1 blob`, `3 blobs`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Lines up the columns of a table; the first row is its head. Numbers (columns named in `right`) end at one edge.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_largest_unit_that_fits() {
        let told = [0, 1023, 1024, 31_415_926, 1 << 30, 3 << 40].map(human);
        assert_eq!(told, ["0 B", "1023 B", "1.0 KiB", "30.0 MiB", "1.0 GiB", "3.0 TiB"]);
    }

    #[test]
    fn columns_line_up_and_numbers_end_at_one_edge() {
        let rows = [["PEER", "BYTES"], ["a", "5"], ["abcdef", "1234567"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, &[1]), "PEER      BYTES\na             5\nabcdef  1234567\n");
    }
}
