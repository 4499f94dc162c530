//! Long results for people: through a pager where there is a terminal, else straight to stdout.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};

use signal_hook::consts::SIGINT;

use super::render::terminal;
use super::signals::watch;
use super::{Exit, Failure};
use crate::config::{ProcessEnvironment, pager};

/// What a shell exits with when there is no such program, and when it can't be executed.
const NOT_RUN: [i32; 2] = [127, 126];

/// Where a long result is written.
pub enum Output {
    Stdout(io::Stdout),
    Pager(Child),
}

impl Output {
    /// Starts the user's pager where `is_wanted` and stdout is a terminal that tells its size.
    ///
    /// `PAGER` counts; without it `less -FRX`, which shows a short result and is gone. A system without `less` does
    /// without, because nobody asked for it.
    pub fn start(is_wanted: bool) -> Result<Self, Failure> {
        let none = Self::Stdout(io::stdout());
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
        match Command::new("sh").arg("-c").arg(&command).stdin(Stdio::piped()).spawn() {
            Ok(child) => Ok(Self::Pager(child)),
            Err(_) => Ok(none),
        }
    }

    /// Says that nothing more comes, and waits until the user has seen enough.
    pub fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(mut stdout) => Ok(stdout.flush()?),
            Self::Pager(mut child) => {
                drop(child.stdin.take());
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

    fn writer(&mut self) -> io::Result<&mut dyn Write> {
        match self {
            Self::Stdout(stdout) => Ok(stdout),
            Self::Pager(child) => match &mut child.stdin {
                Some(stdin) => Ok(stdin),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            },
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush()
    }
}
