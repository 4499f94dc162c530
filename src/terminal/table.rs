//! Tables for people, as wide as the terminal.
//!
//! This module decides which columns are shortened and how far; `comfy_table` lays out the escaped, shortened texts.

use std::borrow::Cow;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width, presets};

use super::{COLUMNS_MIN, Shown, Style, terminal};
use crate::printable::{self, cells};

/// Cells between two columns.
const GAP: u16 = 2;
/// The minimum width of a shortened name, so that it can be distinguished from others.
const ELIDED_MIN: usize = 8;
/// A name is this wide before other columns get what they need; a longer one takes what is left after that.
const NAME_FAIR: usize = 24;
/// The minimum width of a column of wrapped words.
const WRAPPED_MIN: usize = 20;

/// How the texts of a column fit into a terminal that is too narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// They stay whole.
    Whole,
    /// They stay whole, right-aligned.
    Number,
    /// They wrap between words.
    Wrapped,
    /// Their middle is left out.
    Elided,
    /// Their end is left out.
    Cut,
}

/// A table. No text of a row reaches into another row.
#[derive(Clone, Debug)]
pub(crate) struct TextTable {
    heads: Vec<(String, Fit)>,
    rows: Vec<Vec<String>>,
    is_colored: bool,
    painted: Option<PaintedWord>,
}

/// A text that is coloured where it is all of a cell.
#[derive(Clone, Copy, Debug)]
struct PaintedWord {
    column: usize,
    word: &'static str,
    style: Style,
}

impl TextTable {
    /// Returns an empty table with these column heads. A head may begin with a sign for its column: `>` numbers, `…`
    /// names whose middle may be left out, `<` texts whose end may be left out, `~` words that may wrap (only the last
    /// column).
    pub(crate) fn new(heads: &[&str], is_colored: bool) -> Self {
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
        Self { heads: heads.iter().map(head).collect(), rows: Vec::new(), is_colored, painted: None }
    }

    /// Colours a word where it is all of a cell of the column with this head, if the table is coloured.
    pub(crate) fn paint(&mut self, head: &str, word: &'static str, style: Style) {
        let column = self.heads.iter().position(|(known, _)| known == head);
        self.painted = column.filter(|_| self.is_colored).map(|column| PaintedWord { column, word, style });
    }

    /// Adds a row.
    pub(crate) fn add_row(&mut self, texts: impl IntoIterator<Item = String>) {
        self.rows.push(texts.into_iter().map(|text| printable::line(&text).into_owned()).collect());
    }

    /// Returns the table as text, fitted to the terminal of stdout; piped output is for grep and cut, and stays whole.
    pub(crate) fn shown(&self) -> Shown {
        // A terminal without a size is treated like a pipe.
        self.shown_in(terminal().map(|terminal| terminal.columns))
    }

    /// Returns whether the ends of rows are left out on the terminal of stdout.
    pub(crate) fn is_cut(&self) -> bool {
        let is_cut = |columns: usize| columns >= COLUMNS_MIN && self.taken(&self.widths(columns)) > columns;
        terminal().is_some_and(|terminal| is_cut(terminal.columns))
    }

    fn shown_in(&self, columns: Option<usize>) -> Shown {
        let widths = self.widths(columns.unwrap_or(usize::MAX));
        let laid_out = match columns {
            Some(_) => self.laid_out_in(&widths),
            None => self.laid_out(),
        };
        // A row that the terminal wraps is no longer a row. A terminal that is too narrow for words shows everything.
        let room = columns.filter(|columns| *columns >= COLUMNS_MIN).unwrap_or(usize::MAX);
        let mut shown = Shown::default();
        for (number, line) in laid_out.lines().enumerate() {
            let line = &*printable::cut(line.trim_end(), room);
            match self.painted_at(line, &widths).filter(|_| number > 0) {
                Some((from, to, style)) => {
                    shown.add_text(&line[..from]);
                    shown.add_styled(Some(style), &line[from..to]);
                    shown.add_text(&line[to..]);
                }
                None => {
                    // Styled after the layout, so that styles take no width. A head never wraps: it takes one line.
                    let style = (number == 0 && self.is_colored).then_some(Style::Bold);
                    shown.add_styled(style, line);
                }
            }
            shown.end_line();
        }
        shown
    }

    /// Returns where a line has the painted word as a cell.
    fn painted_at(&self, line: &str, widths: &[usize]) -> Option<(usize, usize, Style)> {
        let PaintedWord { column, word, style } = self.painted?;
        let before = widths.iter().take(column).map(|width| width + usize::from(GAP)).sum::<usize>();
        let from = printable::byte_at(line, before)?;
        let rest = line.get(from..)?.strip_prefix(word)?;
        (rest.is_empty() || rest.starts_with(' ')).then_some((from, from + word.len(), style))
    }

    /// Lays out the whole texts.
    fn laid_out(&self) -> comfy_table::Table {
        self.filled(|_, text| text.into())
    }

    /// Lays out the texts in columns of these widths, shortened as their columns allow.
    fn laid_out_in(&self, widths: &[usize]) -> comfy_table::Table {
        let mut table = self.filled(|column, text| match self.heads[column].1 {
            Fit::Elided => printable::elided(text, widths[column]),
            Fit::Cut => printable::cut(text, widths[column]),
            Fit::Whole | Fit::Number | Fit::Wrapped => text.into(),
        });
        let heads = self.heads.iter().zip(widths);
        table.set_header(heads.map(|((head, _), width)| printable::cut(head, *width)));
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

    /// Returns the cells of a row with columns of these widths.
    fn taken(&self, widths: &[usize]) -> usize {
        widths.iter().sum::<usize>() + usize::from(GAP) * self.heads.len().saturating_sub(1)
    }

    /// Returns the width of each column on a terminal of `columns` cells.
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
        let may_shrink = |column: usize, widths: &[usize]| {
            !matches!(fits(column), Fit::Whole | Fit::Number) && widths[column] > ELIDED_MIN
        };
        while self.taken(&widths) > columns {
            let wide = (0..widths.len()).filter(|column| may_shrink(*column, &widths));
            let Some(widest) = wide.max_by_key(|column| widths[*column]) else { break };
            widths[widest] -= 1;
        }
        let mut left = columns.saturating_sub(self.taken(&widths));
        // A long name takes nothing from the other columns: it is widened last. In each step the narrowest comes first.
        let steps =
            [(&[Fit::Elided][..], NAME_FAIR), (&[Fit::Wrapped, Fit::Cut], usize::MAX), (&[Fit::Elided], usize::MAX)];
        for (wanted, most) in steps {
            while left > 0 {
                let short = (0..widths.len())
                    .filter(|column| wanted.contains(&fits(*column)) && widths[*column] < natural[*column].min(most));
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
        let mut table = TextTable::new(heads, false);
        for row in rows {
            table.add_row(row.iter().map(|text| (*text).to_owned()));
        }
        table.shown_in(columns).as_str().to_owned()
    }

    #[test]
    fn columns_are_aligned_by_cells() {
        let rows: &[&[&str]] = &[&["1", "日本", "x"], &["10", "abc", "y"]];
        let expected = "id  name  end\n 1  日本  x\n10  abc   y\n";
        assert_eq!(shown(&[">id", "…name", "end"], rows, Some(80)), expected);
        assert_eq!(shown(&[">id", "…name", "end"], rows, None), expected);
    }

    #[test]
    fn the_layout_measures_cells_like_printable() {
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
    fn the_longest_name_is_shortened_first_and_a_pipe_gets_everything() {
        let long = "project-".repeat(30);
        let rows: &[&[&str]] = &[&["7", "team", &long, "9 B", "400 a long answer of a server that says much"]];
        let heads = [">id", "…workspace", "…project", ">size", "<answer"];
        let narrow = shown(&heads, rows, Some(60));
        assert!(narrow.lines().all(|line| cells(line) <= 60), "{narrow}");
        let last = narrow.lines().last().unwrap_or_default();
        assert!(last.contains("team") && last.contains("  9 B  400 a long"), "{narrow}");
        let piped = shown(&heads, rows, None);
        assert!(piped.contains(&long) && piped.contains("says much"), "{piped}");
    }

    #[test]
    fn a_long_name_takes_nothing_from_other_columns() {
        let heads = [">id", "…workspace", "<answer"];
        let long = "日本語のワークスペース".repeat(40);
        for name in [long.as_str(), "x"] {
            let table = shown(&heads, &[&["7", name, "400 start_time must not be null"]], Some(80));
            assert!(table.contains("  400 start_time must not be null\n"), "{table}");
            assert!(table.lines().all(|line| cells(line) <= 80), "{table}");
        }
        let wide = shown(&heads, &[&["7", &long, "400"]], Some(200));
        assert!(wide.lines().any(|line| cells(line) > 190), "what is left is the name's: {wide}");
    }

    #[test]
    fn cells_are_cut_and_rows_are_not() {
        let long = "a-very-long-name-of-a-workspace";
        let rows: &[&[&str]] = &[&["123456789", long, long, "1,024.0 KiB", "500 says much"]];
        let table = shown(&[">id", "…workspace", "…project", ">size", "<answer"], rows, Some(50));
        for line in table.lines().skip(1) {
            assert!(line.contains("1,024.0 KiB"), "{table}");
            assert!(cells(line) <= 50, "{table}");
        }
        let narrow = shown(&[">id", "…workspace", ">size"], &[&["123456789", long, "1,024.0 KiB"]], Some(20));
        assert!(narrow.contains("123456789") && narrow.contains("1,024.0 KiB"), "a figure is cut: {narrow}");
    }

    #[test]
    fn a_row_that_is_too_wide_is_cut_and_never_wrapped() {
        let heads = ["first head", "second head", "third head", "fourth head", "fifth head"];
        let rows: &[&[&str]] = &[&["日本語日本語", "b", "c", "a text that can't be shortened", "e"]];
        let narrow = shown(&heads, rows, Some(60));
        assert_eq!(narrow.lines().count(), 2, "{narrow}");
        assert!(narrow.lines().all(|line| cells(line) <= 60 && line.ends_with('…')), "{narrow}");
        let all = shown(&heads, rows, Some(100));
        assert!(all.lines().all(|line| !line.contains('…')), "{all}");
        assert!(shown(&heads, rows, None).contains("fifth head"));
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
    fn only_the_head_is_coloured() {
        let mut table = TextTable::new(&["name"], true);
        table.add_row(["x".to_owned()]);
        assert_eq!(table.shown_in(None).as_str(), "\u{1b}[1mname\u{1b}[0m\nx\n");
    }

    #[test]
    fn a_word_is_coloured_only_where_it_is_all_of_its_cell() {
        let rows = [["日本", "rejected"], ["rejected", "rejected-not"], ["x", "waiting"]];
        let of = |is_colored| {
            let mut table = TextTable::new(&["…name", "status"], is_colored);
            table.paint("status", "rejected", Style::Red);
            rows.iter().for_each(|row| table.add_row(row.map(str::to_owned)));
            table.shown_in(Some(80)).as_str().to_owned()
        };
        let colored = of(true);
        assert_eq!(colored.matches("\u{1b}[31mrejected\u{1b}[0m").count(), 1, "{colored}");
        assert!(colored.contains("日本      \u{1b}[31mrejected\u{1b}[0m\n"), "{colored}");
        assert!(!of(false).contains('\u{1b}'));
    }
}
