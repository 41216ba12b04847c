//! Tables that fit the terminal.

use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Row, Table, presets};

use super::{Output, Tone, one_line, printable};

/// The behavior of a column in a narrow terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Is never shortened, because users copy its values.
    Whole,
    /// Is shortened, with a mark.
    Cut,
}

/// Minimum width of a shortened column.
const LEAST_CUT: u16 = 4;

/// A table.
#[derive(Debug)]
pub struct Grid {
    columns: Vec<(&'static str, Fit)>,
    rows: Vec<Vec<(Tone, String)>>,
}

impl Grid {
    pub fn new(columns: &[(&'static str, Fit)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<(Tone, String)>) {
        self.rows.push(
            cells.into_iter().map(|(tone, text)| (tone, one_line(&printable(&text)))).collect(),
        );
    }

    pub fn print(&self, out: Output) {
        // Only a terminal has a width; piped output is never shortened.
        let width = Table::new().width();
        for line in self.render(out.colour, width).lines() {
            out.styled(line.trim_end());
        }
    }

    fn render(&self, colour: bool, width: Option<u16>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_truncation_indicator("…").force_no_tty();
        if colour {
            table.enforce_styling();
        }
        let mut header = Row::from(self.columns.iter().map(|(title, _)| Cell::new(title)));
        header.max_height(1);
        table.set_header(header);
        for cells in &self.rows {
            let mut row = Row::from(cells.iter().map(|(tone, text)| cell(*tone, text)));
            row.max_height(1);
            table.add_row(row);
        }
        let widths = table.column_max_content_widths();
        // If even that does not fit, all columns but the first are shortened.
        let least = |index: usize| match self.columns.get(index) {
            Some((_, Fit::Cut)) => LEAST_CUT,
            Some((_, Fit::Whole)) | None => widths.get(index).copied().unwrap_or(0),
        };
        let needed: u16 = (0..widths.len()).map(|index| least(index) + 2).sum();
        let roomy = width.is_none_or(|width| needed <= width.saturating_add(2));
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            let whole = self.columns.get(index).is_some_and(|(_, fit)| *fit == Fit::Whole);
            if whole && (roomy || index == 0) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        if let Some(width) = width {
            // The last column's padding may exceed the width, so it is trimmed.
            table.set_width(width.saturating_add(2));
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        table.to_string()
    }
}

fn cell(tone: Tone, text: &str) -> Cell {
    let cell = Cell::new(if text.is_empty() { "-" } else { text });
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Busy => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Quiet => cell.fg(Color::DarkGrey),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let mut grid = Grid::new(&[("ID", Fit::Whole), ("NAME", Fit::Cut), ("NODE", Fit::Cut)]);
        for name in ["web", "a-very-long-name-that-does-not-fit-into-a-narrow-column-at-all"] {
            grid.row(vec![
                (Tone::Plain, "7398213345412345856".to_owned()),
                (Tone::Good, name.to_owned()),
                (Tone::Plain, "gpu-01.lab.example".to_owned()),
            ]);
        }
        grid
    }

    #[test]
    fn narrow_terminal_shortens_names_and_keeps_ids() {
        for width in [40, 60, 80] {
            let text = grid().render(false, Some(width));
            assert_eq!(text.lines().count(), 3, "one line each:\n{text}");
            for line in text.lines() {
                assert!(line.trim_end().chars().count() <= usize::from(width), "{width}:\n{text}");
            }
            assert!(text.contains("7398213345412345856"), "{text}");
            assert!(text.contains('…'), "{text}");
        }
    }

    #[test]
    fn many_whole_columns_are_shortened_before_lines_wrap() {
        let mut grid = Grid::new(&[("ID", Fit::Whole); 5]);
        grid.row(vec![(Tone::Plain, "0123456789".to_owned()); 5]);
        for width in [40, 50, 57, 58] {
            let text = grid.render(false, Some(width));
            assert_eq!(text.lines().count(), 2, "{text}");
            for line in text.lines() {
                assert!(line.trim_end().chars().count() <= usize::from(width), "{width}:\n{text}");
            }
        }
    }

    #[test]
    fn piped_output_is_not_shortened_or_colored() {
        let text = grid().render(false, None);
        assert!(text.contains("that-does-not-fit-into-a-narrow-column-at-all"));
        assert!(!text.contains('\u{1b}'));
        assert!(grid().render(true, None).contains('\u{1b}'));
    }
}
