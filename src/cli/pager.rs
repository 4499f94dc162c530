//! Long results for people: through a pager where there is a terminal, else straight to stdout.

use std::ffi::OsStr;
use std::io::{self, BufWriter, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use signal_hook::consts::SIGINT;

use super::signals::watch;
use super::terminal::{Shown, Stream, terminal};
use super::{Exit, Failure};
use crate::config::{ProcessEnvironment, pager};

/// What a shell exits with when there is no such program, and when it can't be executed.
const NOT_RUN: [i32; 2] = [127, 126];

/// Where a result is written, in pieces as large as the caller makes them.
pub struct Output(Writer);

enum Writer {
    Stdout,
    Pager(BufWriter<ChildStdin>, Child),
}

impl Output {
    /// Returns what writes straight to stdout.
    pub fn direct() -> Self {
        Self(Writer::Stdout)
    }

    /// Starts the user's pager where `is_wanted` and stdout is a terminal that tells its size.
    ///
    /// `PAGER` counts; without it `less -FRX`, which shows a short result and is gone. A system without `less` does
    /// without, because nobody asked for it.
    pub fn start(is_wanted: bool) -> Result<Self, Failure> {
        let none = Self::direct();
        // A terminal without a size is no screen that anybody pages on.
        if !is_wanted || terminal().is_none() {
            return Ok(none);
        }
        let Some(command) = pager(&ProcessEnvironment) else { return Ok(none) };
        if command == OsStr::new("less -FRX") && Command::new("less").arg("-V").stdout(Stdio::null()).status().is_err()
        {
            return Ok(none);
        }
        // Interrupting means something to a pager that follows or searches; this process ends when the pager does.
        watch(&[SIGINT], |_| {})?;
        let spawned = Command::new("sh").arg("-c").arg(&command).stdin(Stdio::piped()).spawn();
        let Ok(mut child) = spawned else { return Ok(none) };
        Ok(match child.stdin.take() {
            Some(stdin) => Self(Writer::Pager(BufWriter::new(stdin), child)),
            None => none,
        })
    }

    /// Writes what people read.
    ///
    /// # Errors
    ///
    /// Whatever stdout or the pager says.
    pub fn show(&mut self, shown: &Shown) -> io::Result<()> {
        match &mut self.0 {
            Writer::Stdout => Stream::Out.show(shown),
            Writer::Pager(stdin, _) => stdin.write_all(shown.as_str().as_bytes()),
        }
    }

    /// Writes a document for programs, or a piece of one.
    ///
    /// # Errors
    ///
    /// Whatever stdout says.
    pub fn machine(&mut self, document: &str) -> io::Result<()> {
        match &mut self.0 {
            Writer::Stdout => Stream::Out.machine(document),
            Writer::Pager(stdin, _) => stdin.write_all(crate::printable::json(document).as_bytes()),
        }
    }

    /// Returns what takes a document for programs piece by piece. It is written whole only when that is flushed.
    pub fn machine_pieces(&mut self) -> MachinePieces<'_> {
        MachinePieces { output: self, text: Vec::new() }
    }

    /// Hands on what was written.
    ///
    /// # Errors
    ///
    /// Whatever the pager says.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Writer::Stdout => Ok(()),
            Writer::Pager(stdin, _) => stdin.flush(),
        }
    }

    /// Says that nothing more comes, and waits until the user has seen enough.
    pub fn finish(self) -> Result<(), Failure> {
        match self.0 {
            Writer::Stdout => Ok(()),
            Writer::Pager(stdin, mut child) => {
                drop(stdin);
                match child.wait()?.code() {
                    Some(code) if NOT_RUN.contains(&code) => Err(Failure::new(
                        Exit::Failure,
                        "the pager that PAGER names can't be run",
                        Some("set PAGER to a program that is there, or give --no-pager"),
                    )),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// Takes a document for programs piece by piece, wherever a piece ends.
pub struct MachinePieces<'a> {
    output: &'a mut Output,
    text: Vec<u8>,
}

impl MachinePieces<'_> {
    const PIECE_BYTES: usize = 64 * 1024;

    /// Hands on the characters that are there whole.
    fn hand_on(&mut self) -> io::Result<()> {
        let whole = match std::str::from_utf8(&self.text) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&self.text[..error.valid_up_to()]).unwrap_or_default(),
        };
        let bytes = whole.len();
        self.output.machine(whole)?;
        self.text.drain(..bytes);
        Ok(())
    }
}

impl Write for MachinePieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        if self.text.len() >= Self::PIECE_BYTES {
            self.hand_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_on()
    }
}
