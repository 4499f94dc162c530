//! Child processes: running one to its end, and reading what a running one writes.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const LISTENING: &str = "listening on http://";

#[derive(Debug)]
pub(crate) struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|why| panic!("{why} in {:?}, standard error {:?}", self.stdout, self.stderr))
    }
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|why| panic!("cannot run {:?}: {why}", command.get_program()));
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The lines that a process has written so far, over all its starts.
#[derive(Clone, Default)]
pub(crate) struct Written(Arc<Mutex<String>>);

impl Written {
    /// Adds everything that comes from here, line by line, until it ends.
    ///
    /// The returned thread ends when all has been read.
    pub(crate) fn follow(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let all = Arc::clone(&self.0);
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let mut all = all.lock().expect("no thread panicked");
                all.push_str(&line);
                all.push('\n');
            }
        })
    }

    pub(crate) fn text(&self) -> String {
        self.0.lock().expect("no thread panicked").clone()
    }
}

/// Finds the port in a line that says `listening on http://HOST:PORT`.
pub(crate) fn listening_port(text: &str) -> Option<u16> {
    let rest = &text[text.find(LISTENING)? + LISTENING.len()..];
    let address = rest.split(|c: char| c.is_whitespace() || c == '/' || c == '"').next()?;
    address.rsplit(':').next()?.parse().ok()
}
