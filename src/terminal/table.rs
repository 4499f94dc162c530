//! Tables for people, as wide as the terminal.
//!
//! What is decided here is which column gives way and how far; `comfy_table` lays the harmless, shortened texts out.

use std::borrow::Cow;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width, presets};

use super::{Shown, Style, terminal};
use crate::printable::{self, cells};

/// Cells between two columns.
const GAP: u16 = 2;
/// What a name is shortened to at least, so that it can still be told from others.
const ELIDED_MIN: usize = 8;
/// What is left to a column of words at least.
const WRAPPED_MIN: usize = 20;

/// What becomes of a column's texts where the terminal is too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// They stay whole.
    Whole,
    /// They stay whole, and stand at the right.
    Number,
    /// They are broken between words.
    Wrapped,
    /// Their middle is left out.
    Elided,
    /// Their end is left out.
    Cut,
}

/// A table. A row takes one line, and no text of a row reaches into another.
#[derive(Clone, Debug)]
pub struct Table {
    heads: Vec<(String, Fit)>,
    rows: Vec<Vec<String>>,
    is_colored: bool,
}

impl Table {
    /// Returns an empty table with these column heads. The sign that a head begins with says what the column is: `>`
    /// numbers, `…` names whose middle may be left out where room is short, `<` texts of which the beginning is enough, `~`
    /// words that may be broken into lines (only the last column).
    pub fn new(heads: &[&str], is_colored: bool) -> Self {
        let head = |head: &&str| {
            let fit = match head.chars().next() {
                Some('>') => Fit::Number,
                Some('~') => Fit::Wrapped,
                Some('…') => Fit::Elided,
                Some('<') => Fit::Cut,
                _ => Fit::Whole,
            };
            (head.trim_start_matches(['>', '~', '…', '<']).to_owned(), fit)
        };
        Self { heads: heads.iter().map(head).collect(), rows: Vec::new(), is_colored }
    }

    /// Adds a row.
    pub fn add_row(&mut self, texts: impl IntoIterator<Item = String>) {
        self.rows.push(texts.into_iter().map(|text| printable::line(&text).into_owned()).collect());
    }

    /// Returns it as text for the terminal that stdout is; piped output is for grep and cut, and is whole.
    pub fn shown(&self) -> Shown {
        // A terminal without a size is as wide as a pipe.
        self.shown_in(terminal().map(|terminal| terminal.columns))
    }

    fn shown_in(&self, columns: Option<usize>) -> Shown {
        let laid_out = match columns {
            Some(columns) => self.laid_out_in(&self.widths(columns)),
            None => self.laid_out(),
        };
        let is_cut = self.heads.iter().any(|(_, fit)| *fit == Fit::Cut);
        let mut shown = Shown::default();
        for (number, line) in laid_out.lines().enumerate() {
            let line = line.trim_end();
            let line = match columns {
                Some(columns) if is_cut => printable::cut(line, columns),
                _ => line.into(),
            };
            // The layout knows no styles, so that they take no room. A head is never broken: it takes one line.
            let style = (number == 0 && self.is_colored).then_some(Style::Bold);
            shown.add_styled(style, &line);
            shown.end_line();
        }
        shown
    }

    /// Lays the whole texts out.
    fn laid_out(&self) -> comfy_table::Table {
        self.filled(|_, text| text.into())
    }

    /// Lays the texts out in columns of these widths, shortened where their column says so.
    fn laid_out_in(&self, widths: &[usize]) -> comfy_table::Table {
        let mut table = self.filled(|column, text| match self.heads[column].1 {
            Fit::Elided => printable::elided(text, widths[column]),
            Fit::Cut => printable::cut(text, widths[column]),
            Fit::Whole | Fit::Number | Fit::Wrapped => text.into(),
        });
        for (column, width) in table.column_iter_mut().zip(widths) {
            let width = u16::try_from(*width).unwrap_or(u16::MAX).saturating_add(column.padding_width());
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
        }
        table
    }

    fn filled<'a>(&'a self, fitting: impl Fn(usize, &'a str) -> Cow<'a, str>) -> comfy_table::Table {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.heads.iter().map(|(head, _)| head));
        for row in &self.rows {
            table.add_row(row.iter().enumerate().map(|(column, text)| fitting(column, text)));
        }
        let last = self.heads.len().saturating_sub(1);
        for (at, (column, (_, fit))) in table.column_iter_mut().zip(&self.heads).enumerate() {
            column.set_padding((0, if at == last { 0 } else { GAP }));
            if *fit == Fit::Number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// Returns the cells of each column on a terminal of so many.
    fn widths(&self, columns: usize) -> Vec<usize> {
        let natural = self.heads.iter().enumerate().map(|(column, (head, _))| {
            let texts = self.rows.iter().filter_map(|row| row.get(column));
            texts.map(|text| cells(text)).max().unwrap_or(0).max(cells(head))
        });
        let natural: Vec<usize> = natural.collect();
        let fits = |column: usize| self.heads[column].1;
        let least = |column: usize| {
            let head = cells(&self.heads[column].0);
            let least = match fits(column) {
                Fit::Whole | Fit::Number => usize::MAX,
                Fit::Elided => head.max(ELIDED_MIN),
                Fit::Cut => head,
                Fit::Wrapped => head.max(WRAPPED_MIN),
            };
            natural[column].min(least)
        };
        let mut widths: Vec<usize> = (0..natural.len()).map(least).collect();
        let mut left =
            columns.saturating_sub(widths.iter().sum::<usize>() + usize::from(GAP) * widths.len().saturating_sub(1));
        // The narrowest of those that are short of room is widened first, names before words.
        for wanted in [Fit::Elided, Fit::Wrapped, Fit::Cut] {
            let is_short =
                |column: &usize, widths: &[usize]| fits(*column) == wanted && widths[*column] < natural[*column];
            while left > 0 {
                let short = (0..widths.len()).filter(|column| is_short(column, &widths));
                let Some(narrowest) = short.min_by_key(|column| widths[*column]) else { break };
                widths[narrowest] += 1;
                left -= 1;
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(heads: &[&str], rows: &[&[&str]], columns: Option<usize>) -> String {
        let mut table = Table::new(heads, false);
        for row in rows {
            table.add_row(row.iter().map(|text| (*text).to_owned()));
        }
        table.shown_in(columns).as_str().to_owned()
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows: &[&[&str]] = &[&["1", "日本", "x"], &["10", "abc", "y"]];
        let expected = "id  name  end\n 1  日本  x\n10  abc   y\n";
        assert_eq!(shown(&[">id", "…name", "end"], rows, Some(80)), expected);
        assert_eq!(shown(&[">id", "…name", "end"], rows, None), expected);
    }

    #[test]
    fn the_layout_measures_cells_as_we_do() {
        for name in ["日本語", "e\u{301}te\u{301}", "❤\u{fe0f}", "👍🏽", "각", "ｱｲｳ", "עברית", "กำ", "…"]
        {
            for columns in [Some(80), Some(12), None] {
                let table = shown(&["…name", ">id"], &[&[name, "7"], &["plain", "10"]], columns);
                let widths: Vec<usize> = table.lines().map(cells).collect();
                assert!(widths.iter().all(|width| *width == widths[0]), "{name} {columns:?}: {widths:?}\n{table}");
            }
        }
    }

    #[test]
    fn the_longest_name_gives_way_first_and_a_pipe_gets_all() {
        let long = "project-".repeat(30);
        let rows: &[&[&str]] = &[&["7", "team", &long, "9 B", "400 a long answer of a server that says much"]];
        let heads = [">id", "…workspace", "…project", ">size", "<answer"];
        let narrow = shown(&heads, rows, Some(60));
        assert!(narrow.lines().all(|line| cells(line) <= 60), "{narrow}");
        let last = narrow.lines().last().unwrap_or_default();
        assert!(last.contains("team") && last.contains("  9 B  400 a…"), "{narrow}");
        let piped = shown(&heads, rows, None);
        assert!(piped.contains(&long) && piped.contains("says much"), "{piped}");
    }

    #[test]
    fn a_text_stays_in_its_row() {
        let table =
            shown(&["name", "~why"], &[&["a\nb\u{1b}[8m", "it is\ngone and more than one line of it"]], Some(40));
        assert_eq!(
            table,
            "name           why\na\\nb\\u{1b}[8m  it is\\ngone and more than\n               one line of it\n"
        );
    }

    #[test]
    fn colours_are_for_the_head_only() {
        let mut table = Table::new(&["name"], true);
        table.add_row(["x".to_owned()]);
        assert_eq!(table.shown_in(None).as_str(), "\u{1b}[1mname\u{1b}[0m\nx\n");
    }
}
