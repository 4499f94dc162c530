//! The only place that writes to stdout and stderr, and what may be written there.
//!
//! People get [`Shown`]: it is made of texts that [`printable`] has made harmless, line by line, and of the few sequences
//! that a terminal is meant to obey, which only this file knows. Programs get [`Stream::machine`] documents, in which hazardous
//! characters are written as the escapes of JSON. A result that did not go through one of them does not compile.

pub mod pager;
pub mod progress;
pub mod render;
pub mod table;
pub mod yaml;

use std::io::{self, IsTerminal, Write};

use crate::printable;

/// What a result or a note is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Results.
    Out,
    /// Everything else.
    Err,
}

impl Stream {
    /// Returns whether somebody sits there.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Out => io::stdout().is_terminal(),
            Self::Err => io::stderr().is_terminal(),
        }
    }

    /// Returns the columns that a text may take; no bound where it is not a terminal, or one too narrow for words.
    pub fn columns(self) -> usize {
        let size = self.is_terminal().then(|| match self {
            Self::Out => rustix::termios::tcgetwinsize(io::stdout()),
            Self::Err => rustix::termios::tcgetwinsize(io::stderr()),
        });
        let columns = size.and_then(Result::ok).map_or(0, |size| usize::from(size.ws_col));
        if columns >= COLUMNS_MIN { columns } else { usize::MAX }
    }

    /// Writes what people read.
    ///
    /// # Errors
    ///
    /// Whatever the stream says.
    pub fn show(self, shown: &Shown) -> io::Result<()> {
        self.write(&shown.0)
    }

    /// Writes a document for programs, or a piece of one.
    ///
    /// # Errors
    ///
    /// Whatever the stream says.
    pub fn machine(self, document: &str) -> io::Result<()> {
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

/// Returns whether a person can be asked: they see the question, and their answer is read.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && Stream::Err.is_terminal()
}

/// The terminal that stdout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Cells in a line.
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

/// How a word looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
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

/// Text for people that drives no terminal, whatever it was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Returns one line.
    pub fn line(text: &str) -> Self {
        Self::default().with_line(text)
    }

    /// Returns lines of our own making; a stranger's text in them goes through [`printable::line`] first.
    pub fn lines(text: &str) -> Self {
        let mut shown = Self::default();
        shown.add_lines(text);
        shown
    }

    /// Adds a line.
    #[must_use]
    pub fn with_line(mut self, text: &str) -> Self {
        self.add_line(text);
        self
    }

    /// Adds a line.
    pub fn add_line(&mut self, text: &str) {
        self.add_text(text);
        self.end_line();
    }

    /// Adds text to the line that has begun; a line break in it is shown as an escape.
    pub fn add_text(&mut self, text: &str) {
        self.0.push_str(&printable::line(text));
    }

    /// Adds a line for a shell's completion: a value, and what describes it.
    pub fn add_value(&mut self, value: &str, description: Option<&str>) {
        self.add_text(value);
        if let Some(description) = description {
            self.0.push('\t');
            self.add_text(description);
        }
        self.end_line();
    }

    /// Adds text whose line breaks are line breaks.
    pub fn add_lines(&mut self, text: &str) {
        self.0.push_str(&printable::lines(text));
    }

    /// Adds text to the line that has begun, with this look.
    pub fn add_styled(&mut self, style: Option<Style>, text: &str) {
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

    /// Adds a document that programs could read, too.
    pub fn add_json(&mut self, document: &str) {
        self.0.push_str(&printable::json(document));
    }

    /// Adds bytes of a body as they are: only for what is no terminal.
    pub fn add_as_sent(&mut self, text: &str) {
        match Stream::Out.is_terminal() {
            true => self.add_lines(text),
            false => self.0.push_str(text),
        }
    }

    /// Ends a line.
    pub fn end_line(&mut self) {
        self.0.push('\n');
    }

    /// Adds what was shown elsewhere.
    pub fn add(&mut self, other: &Self) {
        self.0.push_str(&other.0);
    }

    /// Returns the text, for the tests and the pager.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the lines that fit above the cursor's on a terminal.
    pub fn fitting(&self, rows: usize) -> (Self, usize) {
        let room = rows.saturating_sub(1).max(2);
        let count = self.0.lines().count();
        if count <= room {
            return (self.clone(), count);
        }
        let mut fitting = Self(self.0.split_inclusive('\n').take(room - 1).collect());
        fitting.add_line(&format!("({} more lines)", count - room + 1));
        (fitting, room)
    }

    /// Returns the text drawn over the frame before it, without lines that the terminal breaks.
    pub fn as_frame(&self, begin: FrameBegin) -> Self {
        let begin = match begin {
            FrameBegin::Here => String::new(),
            FrameBegin::Above(lines) => format!("\u{1b}[{lines}A\r"),
            FrameBegin::Cleared => "\u{1b}[2J\u{1b}[H".to_owned(),
        };
        // Emptied before it is written: after a full line the cursor still stands on its last character.
        let drawn: String = self.0.lines().map(|line| format!("\u{1b}[2K{line}\n")).collect();
        Self(format!("\u{1b}[?7l{begin}{drawn}\u{1b}[J\u{1b}[?7h"))
    }
}

/// Where a frame is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameBegin {
    /// Where the cursor is.
    Here,
    /// Over a frame of this many lines.
    Above(usize),
    /// On an empty screen.
    Cleared,
}
