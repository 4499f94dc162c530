//! SIGHUP: a log file that was moved away is opened again, and an agent whose terminal has gone stops.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::process::run;
use crate::support::{PATIENCE, wait_until};

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_log_file_that_was_moved_away_is_opened_again_on_sighup() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let (log, moved) = (home.path().join("agent.log"), home.path().join("agent.log.1"));
    let mut agent = Agent::builder(&server.url())
        .impatient()
        .home(home)
        .env("OPIK_FILE_LOGGING_LEVEL", "INFO")
        .env("OPIK_LOGGING_FILE", "agent.log")
        .start();
    wait_until("the server is seen", PATIENCE, || text(&log).contains("is available"));
    fs::rename(&log, &moved).unwrap();
    agent.signal(Signal::HUP);
    wait_until("there is a new log file", PATIENCE, || text(&log).contains("reopened the log file"));
    let before = text(&moved);

    server.stop();
    wait_until("the next line is in the new file", PATIENCE, || text(&log).contains("is unavailable"));
    assert_eq!(text(&moved), before, "lines still go to the file that was moved away");
    assert!(agent.is_running(), "SIGHUP ended an agent that has no terminal to lose");

    // No new file can be created: the log continues in the open one.
    let aside = log.with_file_name("aside");
    fs::rename(&log, &aside).unwrap();
    fs::create_dir(&log).unwrap();
    agent.signal(Signal::HUP);
    wait_until("it reports that it can't", PATIENCE, || text(&aside).contains("logging continues in the open one"));
    server.start();
    wait_until("lines are written on", PATIENCE, || text(&aside).matches("is available").count() == 1);
    assert!(agent.terminate().success());
}

#[test]
fn an_agent_stops_when_its_terminal_goes() {
    let server = FakeOpik::start_new();
    let home = Home::new();
    let in_a_terminal = "
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
text = b''
while b'listening on' not in text:
    text += os.read(terminal, 4096)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let mut command = home.command("python3");
    command.args(["-c", in_a_terminal, env!("CARGO_BIN_EXE_opik-offline"), "agent", "--listen", "127.0.0.1:0"]);
    let ended = run(command.args(["--upstream", &server.url(), "--db"]).arg(home.db()));
    assert_eq!(ended.stdout, "0\n", "{}", ended.stderr);
}
