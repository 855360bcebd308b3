//! Tables in plain text.

use std::fmt;

/// Rows under a heading; columns are as wide as they need to be. Numbers are aligned to the right.
#[derive(Clone, Debug)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { heading: heading.iter().map(|word| word.to_uppercase()).collect(), rows: Vec::new() }
    }

    /// Adds a row, of as many cells as there are columns.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.heading.len(), "a row has a cell for each column");
        self.rows.push(cells.into());
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.heading.iter().map(|word| width(word)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        widths
    }

    /// A column of numbers, with `-` for those that are missing.
    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.get(column)).filter(|cell| *cell != "-").peekable();
        cells.peek().is_some()
            && cells
                .all(|cell| cell.starts_with(|first: char| first.is_ascii_digit()) && !cell.contains([':', '/', '-']))
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for row in std::iter::once(&self.heading).chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, widest)) in row.iter().zip(&widths).enumerate() {
                let gap = " ".repeat(widest.saturating_sub(width(cell)));
                let cell = if self.is_numeric(column) { format!("{gap}{cell}") } else { format!("{cell}{gap}") };
                line.extend(["  ", &cell]);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let mut table = Table::new(["node", "state", "count"]);
        table.row(["1".into(), "open".into(), "7".into()]);
        table.row(["12".into(), "silent for now".into(), "-".into()]);
        assert_eq!(
            table.to_string(),
            "  NODE  STATE           COUNT\n     1  open                7\n    12  silent for now      -\n"
        );
    }
}
