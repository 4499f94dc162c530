//! A command on a pseudo-terminal: what a person's terminal receives.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::{PATIENCE, wait_until};

/// A process whose standard streams are a terminal of 24 rows.
pub(crate) struct OnTerminal {
    child: Child,
    terminal: File,
    received: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl OnTerminal {
    /// Starts a command on a terminal of this width.
    #[track_caller]
    pub(crate) fn start(command: &mut Command, columns: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&controller).expect("our own terminal");
        unlockpt(&controller).expect("our own terminal");
        let name = ptsname(&controller, Vec::new()).expect("a terminal has a name");
        let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        // A process without a terminal would make this its own, and be ended by SIGHUP when it goes.
        let no_terminal_of_ours = rustix::fs::OFlags::NOCTTY.bits() as i32;
        let side = OpenOptions::new().read(true).write(true).custom_flags(no_terminal_of_ours).open(path);
        let side = side.expect("the other side");
        tcsetwinsize(&side, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).expect("a size");
        // Reading then returns exactly what was written: no carriage returns that the terminal adds.
        let mut modes = tcgetattr(&side).expect("modes");
        modes.output_modes.remove(OutputModes::OPOST);
        tcsetattr(&side, OptionalActions::Now, &modes).expect("modes");
        let stream = || Stdio::from(side.try_clone().expect("a descriptor"));
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().expect("it can be started");
        // Our ends would keep the terminal open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        drop(side);
        let terminal = File::from(controller);
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let reader = std::thread::spawn({
            let (mut from, received) = (terminal.try_clone().expect("a descriptor"), received.clone());
            move || {
                let mut bytes = [0; 4096];
                // Ends with an error when the last process has closed the terminal.
                while let Ok(read @ 1..) = from.read(&mut bytes) {
                    received.lock().expect("no thread panicked").extend_from_slice(&bytes[..read]);
                }
            }
        });
        Self { child, terminal, received, reader: Some(reader) }
    }

    /// Returns what was written so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().expect("no thread panicked")).into_owned()
    }

    /// Waits until this was written.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str) {
        wait_until(words, PATIENCE, || self.text().contains(words));
    }

    /// Types this.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end and returns all that was written.
    #[track_caller]
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().expect("it was started");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no thread panicked");
        }
        (status, self.text())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // A process that has ended can't be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
