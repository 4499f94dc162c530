//! Results on stdout: a table for people, JSON, JSON lines or YAML for programs.

use std::io::{self, Write as _};

use serde::Serialize;

use super::pager::Output;
use super::table::TextTable;
use super::yaml;
use super::{Shown, Style};

use crate::hint;
use crate::printable::{self, cells, padded};

/// The format of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    /// Tables and sentences for people.
    #[default]
    Table,
    /// The same, with more columns.
    Wide,
    /// One JSON document.
    Json,
    /// One JSON document per line (`inspect` only).
    Jsonl,
    /// One YAML document.
    Yaml,
}

impl OutputFormat {
    /// Returns whether people read it.
    pub(crate) fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Writes results in one format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renderer {
    format: OutputFormat,
    color: bool,
}

impl Renderer {
    /// Returns a renderer.
    pub(crate) fn new(format: OutputFormat, color: bool) -> Self {
        Self { format, color }
    }

    /// Returns the format; the columns of a wide table are for the caller to choose.
    pub(crate) fn format(&self) -> OutputFormat {
        if self.format.is_for_people() { OutputFormat::Table } else { self.format }
    }

    /// Returns whether the output is coloured.
    pub(crate) fn is_colored(&self) -> bool {
        self.color
    }

    /// Writes a result to stdout; `people` renders it as text.
    ///
    /// # Errors
    ///
    /// Fails if stdout can't be written.
    pub(crate) fn result<T: Serialize>(&self, result: &T, people: impl FnOnce(&Self, &T) -> Shown) -> io::Result<()> {
        self.result_to(&mut Output::direct(), result, people)
    }

    /// Writes a result to an output, which may be a pager; `people` renders it as text.
    ///
    /// # Errors
    ///
    /// Fails if the output can't be written.
    pub(crate) fn result_to<T: Serialize>(
        &self,
        output: &mut Output,
        result: &T,
        people: impl FnOnce(&Self, &T) -> Shown,
    ) -> io::Result<()> {
        match self.format {
            OutputFormat::Table | OutputFormat::Wide => output.show(&people(self, result))?,
            OutputFormat::Json | OutputFormat::Jsonl => self.json_to(output, result)?,
            OutputFormat::Yaml => output.machine(&yaml::to_string(result).map_err(io::Error::other)?)?,
        }
        output.flush()
    }

    /// Writes a result as JSON in pieces: it may be long.
    fn json_to<T: Serialize>(&self, output: &mut Output, result: &T) -> io::Result<()> {
        let mut output = output.machine_pieces();
        match self.format {
            OutputFormat::Jsonl => serde_json::to_writer(&mut output, result),
            _ => serde_json::to_writer_pretty(&mut output, result),
        }
        .map_err(io::Error::from)?;
        output.write_all(b"\n")?;
        output.flush()
    }

    /// Returns an empty table with these column heads, see [`TextTable::new`].
    pub(crate) fn table(&self, heads: &[&str]) -> TextTable {
        TextTable::new(heads, self.color)
    }

    /// Returns the style if the output is coloured.
    pub(crate) fn style(&self, style: Style) -> Option<Style> {
        self.color.then_some(style)
    }

    /// Appends the sign of a mark, in its colour.
    pub(crate) fn add_mark(&self, shown: &mut Shown, mark: StatusMark) {
        let sign = match mark {
            StatusMark::Good => "ok",
            StatusMark::Warn => "!!",
            StatusMark::Bad => "xx",
            StatusMark::Note => "--",
        };
        self.add_painted(shown, mark, sign);
    }

    /// Appends a word in the colour of a mark.
    pub(crate) fn add_painted(&self, shown: &mut Shown, mark: StatusMark, word: &str) {
        let style = match mark {
            StatusMark::Good => Style::Green,
            StatusMark::Warn => Style::Yellow,
            StatusMark::Bad => Style::Red,
            StatusMark::Note => Style::Dim,
        };
        shown.add_styled(self.style(style), word);
    }
}

/// The result of a line of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StatusMark {
    /// As it should be.
    #[serde(rename = "ok")]
    Good,
    /// Works, but needs attention.
    #[serde(rename = "warning")]
    Warn,
    /// Does not work.
    #[serde(rename = "failed")]
    Bad,
    /// For information.
    Note,
}

/// Wraps a text at `columns`, with continuation lines indented by `indent`; its own line breaks stay.
pub(crate) fn hanging(text: &str, columns: usize, indent: usize) -> String {
    let broken = |line: &str| {
        let width = columns.saturating_sub(indent);
        wrapped(line, width).replace('\n', &format!("\n{:indent$}", ""))
    };
    text.lines().map(broken).collect::<Vec<_>>().join("\n")
}

/// Wraps a text between words. A word that is longer than a line, such as a path, stays whole. Suggested commands in it
/// stay whole as well: they are pasted.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in hint::words(text) {
        let length = cells(word);
        if column > 0 && column + 1 + length > width {
            lines.push('\n');
            column = 0;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// Lays rows of three texts out in columns, with the first row as the head. If the second text of a row leaves no space
/// for the third, the third is on the next line, so that a path or a URL can be copied whole.
pub(crate) fn three_columns(renderer: &Renderer, rows: &[[String; 3]], columns: usize) -> Shown {
    const GAP: usize = 2;
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|text| printable::line(text))).collect();
    let first_width = rows.iter().skip(1).map(|[first, ..]| cells(first)).max().unwrap_or(0) + GAP;
    let room = columns.saturating_sub(first_width);
    let fits = |width: usize, last: &str| width + cells(last) <= room;
    let widths = rows.iter().skip(1).filter_map(|[_, middle, last]| {
        let width = cells(middle) + GAP;
        fits(width, last).then_some(width)
    });
    let head_width = rows.first().map_or(0, |[_, middle, _]| cells(middle)) + GAP;
    let middle_width = widths.max().unwrap_or(0).max(head_width);
    let mut shown = Shown::default();
    for (number, [first, middle, last]) in rows.iter().enumerate() {
        let is_beside = fits(middle_width.max(cells(middle) + GAP), last);
        let row = match is_beside {
            true => format!("{first:<first_width$}{}{last}", padded(middle, middle_width)),
            false => format!("{first:<first_width$}{middle}\n{:first_width$}{last}", ""),
        };
        match number {
            0 => shown.add_styled(renderer.style(Style::Bold), row.trim_end()),
            _ => shown.add_lines(&row),
        }
        shown.end_line();
    }
    shown
}

/// Colours formatted JSON by keys, strings and other values. No token changes, except that characters which a terminal
/// would interpret are escaped.
pub(crate) fn colored_json(text: &str) -> Shown {
    let text = printable::json(text);
    let mut colored = Shown::default();
    let mut rest = &*text;
    while let Some(first) = rest.chars().next() {
        let (length, color) = match first {
            '"' => {
                let mut is_escaped = false;
                let closing = rest[1..].bytes().position(|byte| {
                    let closes = byte == b'"' && !is_escaped;
                    is_escaped = byte == b'\\' && !is_escaped;
                    closes
                });
                let length = closing.map_or(rest.len(), |at| at + 2);
                (length, Some(if rest[length..].starts_with(':') { Style::BoldBlue } else { Style::Green }))
            }
            '{' | '}' | '[' | ']' | ',' | ':' | ' ' | '\n' => (1, None),
            _ => {
                let end = rest.find(['{', '}', '[', ']', ',', ':', ' ', '\n']).unwrap_or(rest.len());
                (end, Some(Style::Cyan))
            }
        };
        let (token, after) = rest.split_at(length);
        match color {
            None => colored.add_lines(token),
            color => colored.add_styled(color, token),
        }
        rest = after;
    }
    colored
}

/// Returns why a list is empty: nothing is stored, or the filter selects nothing.
pub(crate) fn nothing(is_any_selected: bool) -> &'static str {
    if is_any_selected { "no message is stored" } else { "no stored message is selected" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words_only() {
        assert_eq!(wrapped("one two three", usize::MAX), "one two three");
        assert_eq!(wrapped("one two three", 7), "one two\nthree");
        assert_eq!(wrapped("/a/long/path that cannot be used", 8), "/a/long/path\nthat\ncannot\nbe used");
        let failure = "error: it is not there\nhint: look for it elsewhere";
        assert_eq!(hanging(failure, usize::MAX, 6), failure);
        assert_eq!(hanging(failure, 22, 6), "error: it is not\n      there\nhint: look for\n      it elsewhere");
    }

    #[test]
    fn a_value_too_long_for_its_line_stays_whole() {
        let settings = [
            ["setting", "value", "from"],
            ["db", "/home/somebody/a/long/way/opik_messages.db", "default"],
            ["max_size", "10GiB", "default"],
            ["upstream", "http://127.0.0.1:5173/api", "environment OPIK_OFFLINE_UPSTREAM"],
        ]
        .map(|row| row.map(str::to_owned));
        let renderer = Renderer::new(OutputFormat::Table, false);
        let narrow = "\
setting   value  from
db        /home/somebody/a/long/way/opik_messages.db
          default
max_size  10GiB  default
upstream  http://127.0.0.1:5173/api
          environment OPIK_OFFLINE_UPSTREAM
";
        assert_eq!(three_columns(&renderer, &settings, 50).as_str(), narrow);
        let wide = "\
setting   value                                       from
db        /home/somebody/a/long/way/opik_messages.db  default
max_size  10GiB                                       default
upstream  http://127.0.0.1:5173/api                   environment OPIK_OFFLINE_UPSTREAM
";
        assert_eq!(three_columns(&renderer, &settings, usize::MAX).as_str(), wide);
    }

    #[test]
    fn colours_change_no_token() {
        let text = "{\n  \"a\\\"b\": [\n    NaN,\n    -1.50e999,\n    \"\\ud800\\\\\"\n  ],\n  \"ä\": {}\n}";
        let mut plain = colored_json(text).as_str().to_owned();
        assert!(plain.contains("\u{1b}[1;34m\"a\\\"b\"\u{1b}[0m:"), "{plain}");
        for code in ["\u{1b}[1;34m", "\u{1b}[32m", "\u{1b}[36m", "\u{1b}[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, text);
        let hostile = colored_json("{\n  \"\u{202e}\": \"\u{9b}8m\"\n}");
        assert!(hostile.as_str().contains("\"\\u202e\"") && hostile.as_str().contains("\"\\u009b8m\""), "{hostile:?}");
    }
}
