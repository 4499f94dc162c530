//! The only room that writes to stdout and stderr, and the types of what may be written there.
//!
//! People get [`Shown`]: it consists of texts that [`printable`] has escaped, line by line, and of the few escape
//! sequences that a terminal should interpret, which only this file knows. Programs get documents through
//! [`OutputStream::machine`], in which hazardous characters are encoded as JSON escapes. Output that went through
//! neither does not compile.

pub(crate) mod pager;
pub(crate) mod progress;
pub(crate) mod render;
pub(crate) mod table;
pub(crate) mod yaml;

use std::io::{self, IsTerminal, Write};

use crate::printable;

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputStream {
    /// Results.
    Out,
    /// Everything else.
    Err,
}

impl OutputStream {
    /// Returns whether the stream is a terminal.
    pub(crate) fn is_terminal(self) -> bool {
        match self {
            Self::Out => io::stdout().is_terminal(),
            Self::Err => io::stderr().is_terminal(),
        }
    }

    /// Returns the columns for wrapped text; unlimited unless it is a terminal wide enough for words.
    pub(crate) fn columns(self) -> usize {
        let size = self.is_terminal().then(|| match self {
            Self::Out => rustix::termios::tcgetwinsize(io::stdout()),
            Self::Err => rustix::termios::tcgetwinsize(io::stderr()),
        });
        let columns = size.and_then(Result::ok).map_or(0, |size| usize::from(size.ws_col));
        if columns >= COLUMNS_MIN { columns } else { usize::MAX }
    }

    /// Writes text for people.
    ///
    /// # Errors
    ///
    /// Fails if the stream can't be written.
    pub(crate) fn show(self, shown: &Shown) -> io::Result<()> {
        self.write(&shown.0)
    }

    /// Writes a document for programs, or a piece of one.
    ///
    /// # Errors
    ///
    /// Fails if the stream can't be written.
    pub(crate) fn machine(self, document: &str) -> io::Result<()> {
        self.write(&printable::json(document))
    }

    fn write(self, text: &str) -> io::Result<()> {
        let write = |mut stream: Box<dyn Write>| {
            stream.write_all(text.as_bytes())?;
            stream.flush()
        };
        match self {
            Self::Out => write(Box::new(io::stdout().lock())),
            Self::Err => write(Box::new(io::stderr().lock())),
        }
    }
}

/// Returns whether the user can be asked: stdin and stderr are terminals.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && OutputStream::Err.is_terminal()
}

/// The terminal that stdout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Cells in a line.
    pub columns: usize,
    /// Lines.
    pub rows: usize,
}

/// On a terminal with fewer columns than this, text is not wrapped.
const COLUMNS_MIN: usize = 40;

/// Returns the terminal of stdout, if it is one with a known size.
pub(crate) fn terminal() -> Option<Terminal> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(stdout))?.ok()?;
    let terminal = Terminal { columns: usize::from(size.ws_col), rows: usize::from(size.ws_row) };
    (terminal.columns > 0 && terminal.rows > 0).then_some(terminal)
}

/// The style of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
    BoldBlue,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Cyan => "36",
            Self::BoldBlue => "1;34",
        }
    }
}

/// Text for people, escaped so that it can't control a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown(String);

impl Shown {
    /// Returns one line.
    pub(crate) fn line(text: &str) -> Self {
        Self::default().with_line(text)
    }

    /// Returns several lines of our own; text from elsewhere in them goes through [`printable::line`] first.
    pub(crate) fn lines(text: &str) -> Self {
        let mut shown = Self::default();
        shown.add_lines(text);
        shown
    }

    /// Adds a line.
    #[must_use]
    pub(crate) fn with_line(mut self, text: &str) -> Self {
        self.add_line(text);
        self
    }

    /// Adds a line.
    pub(crate) fn add_line(&mut self, text: &str) {
        self.add_text(text);
        self.end_line();
    }

    /// Appends text to the current line; a line break in it is escaped.
    pub(crate) fn add_text(&mut self, text: &str) {
        self.0.push_str(&printable::line(text));
    }

    /// Adds a line for the shell's completions: a value and its description.
    pub(crate) fn add_value(&mut self, value: &str, description: Option<&str>) {
        self.add_text(value);
        if let Some(description) = description {
            self.0.push('\t');
            self.add_text(description);
        }
        self.end_line();
    }

    /// Appends text and keeps its line breaks.
    pub(crate) fn add_lines(&mut self, text: &str) {
        self.0.push_str(&printable::lines(text));
    }

    /// Appends styled text to the current line.
    pub(crate) fn add_styled(&mut self, style: Option<Style>, text: &str) {
        match style {
            None => self.add_text(text),
            Some(style) => {
                self.0.push_str("\u{1b}[");
                self.0.push_str(style.code());
                self.0.push('m');
                self.add_text(text);
                self.0.push_str("\u{1b}[0m");
            }
        }
    }

    /// Appends a JSON document, which programs can read, too.
    pub(crate) fn add_json(&mut self, document: &str) {
        self.0.push_str(&printable::json(document));
    }

    /// Appends text of a body as it was sent; escaped if stdout is a terminal.
    pub(crate) fn add_as_sent(&mut self, text: &str) {
        match OutputStream::Out.is_terminal() {
            true => self.add_lines(text),
            false => self.0.push_str(text),
        }
    }

    /// Ends the current line.
    pub(crate) fn end_line(&mut self) {
        self.0.push('\n');
    }

    /// Appends other text for people.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// Returns the text, for tests and the pager.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the lines that fit above the line of the cursor on a terminal, and how many rows they take there: it
    /// wraps those that are longer, such as a command, which has to stay whole.
    pub(crate) fn fitting(&self, terminal: Terminal) -> (Self, usize) {
        let room = terminal.rows.saturating_sub(1).max(2);
        let lines: Vec<(&str, usize)> =
            self.0.split_inclusive('\n').map(|line| (line, rows_of(line, terminal.columns))).collect();
        let height = lines.iter().map(|(_, rows)| rows).sum();
        if height <= room {
            return (self.clone(), height);
        }
        let (mut fitting, mut height, mut left) = (Self::default(), 1, lines.len());
        for (line, rows) in lines {
            if height + rows > room {
                break;
            }
            fitting.0.push_str(line);
            height += rows;
            left -= 1;
        }
        let noun = if left == 1 { "line" } else { "lines" };
        fitting.add_line(&format!("({left} more {noun})"));
        (fitting, height)
    }

    /// Returns the text drawn over the previous frame, which is cleared first: a line may take several rows.
    pub(crate) fn as_frame(&self, begin: FrameBegin) -> Self {
        let begin = match begin {
            FrameBegin::Here => String::new(),
            FrameBegin::Above(rows) => format!("\u{1b}[{rows}A\r"),
            FrameBegin::Cleared => "\u{1b}[2J\u{1b}[H".to_owned(),
        };
        Self(format!("{begin}\u{1b}[J{}", self.0))
    }
}

/// Returns how many rows a line takes on a terminal of this width. Only escape sequences of our own are parsed.
fn rows_of(line: &str, columns: usize) -> usize {
    let (mut rows, mut column, mut is_escape) = (1, 0, false);
    for c in line.trim_end_matches('\n').chars() {
        match c {
            '\u{1b}' => is_escape = true,
            _ if is_escape => is_escape = !c.is_ascii_alphabetic(),
            _ => {
                let cells = printable::cells_of(c);
                if column + cells > columns {
                    (rows, column) = (rows + 1, 0);
                }
                column += cells;
            }
        }
    }
    rows
}

/// The position of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameBegin {
    /// At the cursor.
    Here,
    /// Over a previous frame of this many rows.
    Above(usize),
    /// On a cleared screen.
    Cleared,
}
