//! Long results for people: through a pager where there is a terminal, else straight to stdout.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use signal_hook::consts::SIGINT;

use thiserror::Error;

use super::{Shown, Stream, terminal};
use crate::signals::{SignalError, watch};

/// What a shell exits with when there is no such program, and when it can't be executed.
const NOT_RUN: [i32; 2] = [127, 126];

/// Why a long result can't be shown through a pager.
#[derive(Debug, Error)]
pub enum PagerError {
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error("the pager that PAGER names can't be run")]
    NotRun,
    #[error(transparent)]
    Output(#[from] io::Error),
}

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

    /// Starts this pager if stdout is a terminal with a known size, and writes straight to stdout otherwise.
    ///
    /// A system without `less` does without the default pager, because the user did not ask for it.
    ///
    /// # Errors
    ///
    /// Fails if signals can't be handled.
    pub fn start(command: Option<OsString>) -> Result<Self, PagerError> {
        let none = Self::direct();
        // Nobody pages on a terminal without a size.
        let Some(command) = command.filter(|_| terminal().is_some()) else { return Ok(none) };
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

    /// Closes the pager's input and waits until the user quits it.
    ///
    /// # Errors
    ///
    /// Fails if the pager could not be run.
    pub fn finish(self) -> Result<(), PagerError> {
        match self.0 {
            Writer::Stdout => Ok(()),
            Writer::Pager(stdin, mut child) => {
                drop(stdin);
                match child.wait()?.code() {
                    Some(code) if NOT_RUN.contains(&code) => Err(PagerError::NotRun),
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
