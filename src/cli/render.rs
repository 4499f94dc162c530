//! Results on stdout: a table for people, JSON, JSON lines or YAML for programs.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use comfy_table::{Attribute, Cell, CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use super::yaml;

use crate::config::units::{ByteSize, print_duration};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document a line (`inspect` only).
    Jsonl,
    /// One YAML document.
    Yaml,
}

/// Writes results.
#[derive(Clone, Copy, Debug)]
pub struct Renderer {
    format: Format,
    color: bool,
}

impl Renderer {
    /// Returns a renderer.
    pub fn new(format: Format, color: bool) -> Self {
        Self { format, color }
    }

    /// Returns the format in use.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Says whether there are colours.
    pub fn is_colored(&self) -> bool {
        self.color
    }

    /// Writes one result: `people` says how it reads as text.
    ///
    /// # Errors
    ///
    /// Whatever stdout says.
    pub fn result<T: Serialize>(&self, result: &T, people: impl FnOnce(&Self, &T) -> String) -> io::Result<()> {
        self.result_to(&mut io::stdout().lock(), result, people)
    }

    /// Writes one result to where a long one goes.
    ///
    /// # Errors
    ///
    /// Whatever the writer says.
    pub fn result_to<T: Serialize>(
        &self,
        output: &mut impl Write,
        result: &T,
        people: impl FnOnce(&Self, &T) -> String,
    ) -> io::Result<()> {
        match self.format {
            Format::Table => output.write_all(people(self, result).as_bytes())?,
            Format::Json | Format::Jsonl => self.json_to(output, result)?,
            Format::Yaml => output.write_all(yaml::to_string(result).map_err(io::Error::other)?.as_bytes())?,
        }
        output.flush()
    }

    /// Writes one result as JSON, piece by piece: it may be long.
    fn json_to<T: Serialize>(&self, output: &mut impl Write, result: &T) -> io::Result<()> {
        let mut output = io::BufWriter::new(output);
        match self.format {
            Format::Jsonl => serde_json::to_writer(&mut output, result),
            _ => serde_json::to_writer_pretty(&mut output, result),
        }
        .map_err(io::Error::from)?;
        output.write_all(b"\n")?;
        output.flush()
    }

    /// Returns an empty table with these column heads; a head that begins with `>` is of a column of numbers.
    ///
    /// On a terminal that is too narrow, only columns whose head begins with `~` are broken into lines.
    pub fn table(&self, heads: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if terminal().is_none() {
            // Piped output is for grep and cut: a row stays a line, however long. A terminal without a size is as wide.
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        let plain = |head: &str| head.trim_start_matches(['>', '~']).to_owned();
        table.set_header(heads.iter().map(|head| self.bold(plain(head))));
        for (column, head) in table.column_iter_mut().zip(heads) {
            column.set_padding((0, 2));
            if head.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
            if !head.starts_with('~') {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table
    }

    fn bold(&self, text: String) -> Cell {
        let cell = Cell::new(text);
        if self.color { cell.add_attribute(Attribute::Bold) } else { cell }
    }

    /// Returns a mark for a line of a report, coloured where colours are.
    pub fn mark(&self, mark: Mark) -> String {
        let sign = match mark {
            Mark::Good => "ok",
            Mark::Warn => "!!",
            Mark::Bad => "xx",
            Mark::Note => "--",
        };
        self.painted(mark, sign)
    }

    /// Returns a word in the colour of a mark, where colours are.
    pub fn painted(&self, mark: Mark, word: &str) -> String {
        let color = match mark {
            Mark::Good => "32",
            Mark::Warn => "33",
            Mark::Bad => "31",
            Mark::Note => "2",
        };
        if self.color { format!("\u{1b}[{color}m{word}\u{1b}[0m") } else { word.to_owned() }
    }
}

/// How a line of a report is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    #[serde(rename = "ok")]
    Good,
    /// Works, and deserves a look.
    #[serde(rename = "warning")]
    Warn,
    /// Does not work.
    #[serde(rename = "failed")]
    Bad,
    /// For information.
    Note,
}

/// The terminal that stdout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Characters in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// Where a line of a terminal has less columns than this, nothing is broken between words.
const COLUMNS_MIN: usize = 40;

/// Returns the terminal that stdout is, if it is one and tells its size.
pub fn terminal() -> Option<Terminal> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(stdout))?.ok()?;
    let terminal = Terminal { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) };
    (terminal.columns > 0 && terminal.rows > 0).then_some(terminal)
}

/// Returns the columns that a text may take on a stream; no bound where it is no terminal, or one too narrow for words.
pub fn columns(stream: impl IsTerminal + std::os::fd::AsFd) -> usize {
    let size = stream.is_terminal().then(|| rustix::termios::tcgetwinsize(stream));
    let columns = size.and_then(Result::ok).map_or(0, |size| usize::from(size.ws_col));
    if columns >= COLUMNS_MIN { columns } else { usize::MAX }
}

/// Returns a text broken into lines of so many columns between words; its own lines stay lines, and what goes on stands
/// `indent` columns further in.
pub fn hanging(text: &str, columns: usize, indent: usize) -> String {
    let broken = |line: &str| {
        let width = columns.saturating_sub(indent);
        wrapped(line, width).replace('\n', &format!("\n{:indent$}", ""))
    };
    text.lines().map(broken).collect::<Vec<_>>().join("\n")
}

/// Breaks a text into lines between words. A word that is longer than a line, such as a path, stays whole.
pub fn wrapped(text: &str, width: usize) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
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

/// Returns a name that has so many characters at most: of a longer one, its beginning and its end.
pub fn elided(name: &str, chars_max: usize) -> String {
    let count = name.chars().count();
    if count <= chars_max {
        return name.to_owned();
    }
    let end = chars_max.saturating_sub(1) / 2;
    let begin = chars_max.saturating_sub(1) - end;
    name.chars().take(begin).chain(['…']).chain(name.chars().skip(count - end)).collect()
}

/// Returns a table as text with its lines trimmed at the end.
pub fn table_text(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a table as text, its lines cut where the terminal ends: what stands in the last column is a beginning only.
pub fn table_text_cut(table: &Table) -> String {
    let Some(Terminal { columns, .. }) = terminal() else { return table_text(table) };
    table_text(table).lines().map(|line| cut(line, columns) + "\n").collect()
}

/// Cuts a line to this many characters; colours take no room.
fn cut(line: &str, width: usize) -> String {
    let mut is_color = false;
    // Each character with its column, escape sequences with none.
    let columns = line.chars().scan(0, |column, c| {
        is_color |= c == '\u{1b}';
        let is_shown = !is_color;
        is_color &= c != 'm';
        *column += usize::from(is_shown);
        Some((c, is_shown.then_some(*column)))
    });
    let columns: Vec<(char, Option<usize>)> = columns.collect();
    if columns.iter().all(|(_, column)| column.is_none_or(|column| column <= width)) {
        return line.to_owned();
    }
    // Blanks that fill a column are no text that somebody would miss.
    let is_text_lost = columns.iter().any(|(c, column)| *c != ' ' && column.is_some_and(|column| column > width));
    columns
        .into_iter()
        .filter(|(_, column)| column.is_none_or(|column| column <= width))
        .map(|(c, column)| if is_text_lost && column == Some(width) { '…' } else { c })
        .collect()
}

/// Returns JSON that was laid out for people with colours: keys, texts, and the rest; not a token is changed.
pub fn colored_json(text: &str) -> String {
    const KEY: &str = "\u{1b}[1;34m";
    const TEXT: &str = "\u{1b}[32m";
    const WORD: &str = "\u{1b}[36m";
    const END: &str = "\u{1b}[0m";
    let mut colored = String::with_capacity(text.len() * 2);
    let mut rest = text;
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
                (length, if rest[length..].starts_with(':') { KEY } else { TEXT })
            }
            '{' | '}' | '[' | ']' | ',' | ':' | ' ' | '\n' => (1, ""),
            _ => (rest.find(['{', '}', '[', ']', ',', ':', ' ', '\n']).unwrap_or(rest.len()), WORD),
        };
        let (token, after) = rest.split_at(length);
        match color {
            "" => colored.push_str(token),
            color => colored.extend([color, token, END]),
        }
        rest = after;
    }
    colored
}

/// Replaces what a terminal would obey: a stored text must not move its cursor or set its title.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

/// Returns a time in UTC, RFC 3339, to the second.
pub fn time(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// Returns a duration in its two largest units, from seconds up.
pub fn short_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let Some(first) = units.iter().position(|(_, size)| seconds >= *size) else { return "0s".to_owned() };
    let rounded = match units.get(first + 1) {
        Some((_, size)) => seconds - seconds % size,
        None => seconds,
    };
    print_duration(Duration::from_secs(rounded))
}

/// Returns a size as people read it.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", ByteSize::GIB.bytes()), ("MiB", ByteSize::MIB.bytes()), ("KiB", ByteSize::KIB.bytes())];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Returns a count with its noun in the right number.
pub fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// Returns what to say when a list is empty: there is nothing, or the filters leave nothing.
pub fn nothing(is_any_selected: bool) -> &'static str {
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
    fn a_line_ends_where_the_terminal_does() {
        assert_eq!(cut("twelve chars", 12), "twelve chars");
        assert_eq!(cut("twelve chars", 8), "twelve …");
        assert_eq!(cut("\u{1b}[1mbold\u{1b}[0m text", 9), "\u{1b}[1mbold\u{1b}[0m text");
        assert_eq!(cut("\u{1b}[1mhead   \u{1b}[0m", 5), "\u{1b}[1mhead \u{1b}[0m", "blanks are not worth a mark");
    }

    #[test]
    fn a_long_name_keeps_both_its_ends() {
        assert_eq!(elided("short", 5), "short");
        assert_eq!(elided("a-long-name", 7), "a-l…ame");
    }

    #[test]
    fn colours_change_no_token() {
        let text = "{\n  \"a\\\"b\": [\n    NaN,\n    -1.50e999,\n    \"\\ud800\\\\\"\n  ],\n  \"ä\": {}\n}";
        let mut plain = colored_json(text);
        assert!(plain.contains("\u{1b}[1;34m\"a\\\"b\"\u{1b}[0m:"), "{plain}");
        for code in ["\u{1b}[1;34m", "\u{1b}[32m", "\u{1b}[36m", "\u{1b}[0m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, text);
        assert_eq!(harmless("\u{1b}]0;x\u{7}\n"), "\u{fffd}]0;x\u{fffd}\n");
    }

    #[test]
    fn figures_are_written_as_people_read_them() {
        assert_eq!(time(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!([size(0), size(1023), size(1536), size(10 << 30)], ["0 B", "1023 B", "1.5 KiB", "10.0 GiB"]);
        assert_eq!(
            [count(0, "message"), count(1, "message"), count(2, "message")],
            ["0 messages", "1 message", "2 messages"]
        );
        let short = |seconds| short_duration(Duration::from_secs(seconds));
        assert_eq!([short(0), short(59), short(61), short(3600), short(90_061)], ["0s", "59s", "1m1s", "1h", "1d1h"]);
    }
}
