//! Long results for people: through a pager on a terminal, otherwise straight to stdout.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use signal_hook::consts::SIGINT;

use thiserror::Error;

use super::{OutputStream, Shown, terminal};
use crate::signals::{SignalError, watch};

/// Exit codes of a shell if the program was not found, and if it can't be executed.
const NOT_RUN: [i32; 2] = [127, 126];

/// Why a long result can't be shown through a pager.
#[derive(Debug, Error)]
pub enum PagerError {
    #[error(transparent)]
    Signals(#[from] SignalError),
    #[error("cannot run the pager of PAGER")]
    NotRun,
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// The destination of a result: stdout or a pager. It is written in pieces of the caller's size.
pub(crate) struct Output(Writer);

enum Writer {
    Stdout,
    Pager(BufWriter<ChildStdin>, Child),
}

impl Output {
    /// Returns an output straight to stdout.
    pub(crate) fn direct() -> Self {
        Self(Writer::Stdout)
    }

    /// Starts this pager if stdout is a terminal with a known size, and writes straight to stdout otherwise.
    ///
    /// A system without `less` does without the default pager, because the user did not ask for it.
    ///
    /// # Errors
    ///
    /// Fails if signals can't be handled.
    pub(crate) fn start(command: Option<OsString>) -> Result<Self, PagerError> {
        let none = Self::direct();
        // Nobody pages on a terminal without a size.
        let Some(command) = command.filter(|_| terminal().is_some()) else { return Ok(none) };
        if command == OsStr::new("less -FRX") && Command::new("less").arg("-V").stdout(Stdio::null()).status().is_err()
        {
            return Ok(none);
        }
        // A pager handles interrupts itself, to stop following or searching; this process ends when the pager does.
        watch(&[SIGINT], |_| {})?;
        let spawned = Command::new("sh").arg("-c").arg(&command).stdin(Stdio::piped()).spawn();
        let Ok(mut child) = spawned else { return Ok(none) };
        Ok(match child.stdin.take() {
            Some(stdin) => Self(Writer::Pager(BufWriter::new(stdin), child)),
            None => none,
        })
    }

    /// Writes text for people.
    ///
    /// # Errors
    ///
    /// Fails if stdout or the pager can't be written.
    pub(crate) fn show(&mut self, shown: &Shown) -> io::Result<()> {
        match &mut self.0 {
            Writer::Stdout => OutputStream::Out.show(shown),
            Writer::Pager(stdin, _) => stdin.write_all(shown.as_str().as_bytes()),
        }
    }

    /// Writes a document for programs, or a piece of one.
    ///
    /// # Errors
    ///
    /// Fails if stdout or the pager can't be written.
    pub(crate) fn machine(&mut self, document: &str) -> io::Result<()> {
        match &mut self.0 {
            Writer::Stdout => OutputStream::Out.machine(document),
            Writer::Pager(stdin, _) => stdin.write_all(crate::printable::json(document).as_bytes()),
        }
    }

    /// Returns a writer for a document in pieces. The document is complete only after a flush.
    pub(crate) fn machine_pieces(&mut self) -> MachinePieces<'_> {
        MachinePieces { output: self, text: Vec::new() }
    }

    /// Flushes the buffer.
    ///
    /// # Errors
    ///
    /// Fails if the pager can't be written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
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
    pub(crate) fn finish(self) -> Result<(), PagerError> {
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

/// Writes a document for programs in pieces, which may end inside a character.
pub(crate) struct MachinePieces<'a> {
    output: &'a mut Output,
    text: Vec<u8>,
}

impl MachinePieces<'_> {
    const PIECE_BYTES: usize = 64 * 1024;

    /// Writes the complete characters in the buffer.
    fn write_complete(&mut self) -> io::Result<()> {
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
            self.write_complete()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_complete()
    }
}
