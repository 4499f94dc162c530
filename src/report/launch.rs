//! The reports of an agent that starts, is found in the background, or is stopped: how it is reached, what is left.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde::Serialize;

use crate::figures::count;
use crate::hint;
use crate::printable::shell_word;
use crate::report::refused::ForwardedRefusedReport;
use crate::terminal::Shown;

/// An agent, as a program that sends to it has to know it.
#[derive(Serialize)]
pub(crate) struct LaunchReport<'a> {
    pub(crate) schema_version: u32,
    /// Whether this command started it.
    pub(crate) started: bool,
    pub(crate) url: &'a str,
    pub(crate) page: &'a str,
    pub(crate) server: &'a str,
    pub(crate) db: &'a Path,
    /// `None` for an agent in the foreground.
    pub(crate) log: Option<&'a Path>,
    pub(crate) pid: u32,
    pub(crate) version: &'a str,
    pub(crate) environment: EnvironmentReport,
}

/// What leads a process to the agent.
#[derive(Serialize)]
pub(crate) struct EnvironmentReport {
    set: BTreeMap<&'static str, String>,
    unset: Vec<&'static str>,
}

/// What `--stop` did, and what is left.
#[derive(Serialize)]
pub(crate) struct StopReport<'a> {
    schema_version: u32,
    stopped: bool,
    pid: Option<u32>,
    server: &'a str,
    db: &'a Path,
    /// Messages that wait for the server; `None` if the store can't be read.
    waiting: Option<u64>,
    rejected: Option<u64>,
    /// Writes of applications that the server refused while the agent ran; `None` if it did not tell.
    pub(crate) forwarded_refused: Option<ForwardedRefusedReport>,
    /// Another agent that uses the store, if none was stopped.
    #[serde(skip)]
    pub(crate) other_agent: Option<OtherAgentLine>,
    /// Messages of the store that wait for other servers.
    #[serde(skip)]
    elsewhere: u64,
    /// A person's hold of the replay, in words.
    #[serde(skip)]
    pub(crate) held: Option<String>,
}

/// An agent that was not stopped.
pub(crate) struct OtherAgentLine {
    pub(crate) pid: u32,
    pub(crate) server: String,
    pub(crate) is_background: bool,
}

impl OtherAgentLine {
    /// `option` is the flag that names the store, with a leading space.
    fn text(&self, option: &str) -> String {
        let Self { pid, server, is_background } = self;
        match is_background {
            true => {
                let word = shell_word(server.as_ref());
                format!(
                    "the background agent for {server} (process {pid}) uses that store: `opik-offline agent --stop \
                     --upstream {word}{option}` stops it"
                )
            }
            false => format!("an agent for {server} (process {pid}) uses that store: end it where it was started"),
        }
    }
}

impl<'a> LaunchReport<'a> {
    /// Returns the report of this process, which runs in the foreground.
    pub(crate) fn new(urls: (&'a str, &'a str), server: &'a str, db: &'a Path, environment: EnvironmentReport) -> Self {
        let (url, page) = urls;
        let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION"));
        Self { schema_version: 1, started: true, url, page, server, db, log: None, pid, version, environment }
    }
}

impl EnvironmentReport {
    pub(crate) fn new(set: &[(&'static str, OsString)], unset: &[&'static str]) -> Self {
        let set = set.iter().map(|(name, value)| (*name, value.to_string_lossy().into_owned()));
        Self { set: set.collect(), unset: unset.to_vec() }
    }
}

impl<'a> StopReport<'a> {
    /// `left` are the messages that wait for the server, those that were rejected, and those that wait for others.
    pub(crate) fn new(pid: Option<u32>, server: &'a str, db: &'a Path, left: Option<(u64, u64, u64)>) -> Self {
        let (waiting, rejected) = (left.map(|left| left.0), left.map(|left| left.1));
        let elsewhere = left.map_or(0, |left| left.2);
        Self {
            schema_version: 1,
            stopped: pid.is_some(),
            pid,
            server,
            db,
            waiting,
            rejected,
            forwarded_refused: None,
            other_agent: None,
            elsewhere,
            held: None,
        }
    }

    /// `option` is the flag that names the store, with a leading space.
    pub(crate) fn text(&self, option: &str) -> Shown {
        let (server, db) = (self.server, self.db.display());
        let mut shown = match self.pid {
            Some(pid) => Shown::line(&format!("stopped the background agent for {server} (process {pid})")),
            None => Shown::line(&format!("no background agent for {server} and {db} runs")),
        };
        if let Some(other) = &self.other_agent {
            shown.add_line(&other.text(option));
        }
        match self.waiting {
            Some(0) if self.elsewhere > 0 => shown.add_line(&format!("nothing waits for {server} in {db}")),
            Some(0) => shown.add_line(&format!("nothing waits in {db}")),
            Some(waiting) => {
                let stays = if waiting == 1 { "stays" } else { "stay" };
                let stored = count(waiting, "message");
                let next = match &self.held {
                    Some(held) => format!("{held}: {}", hint::command(&format!("replay --resume{option}"))),
                    None => format!("{} delivers", hint::command(&format!("replay{option}"))),
                };
                shown.add_line(&format!("{stored} {stays} safely stored in {db}: {next}"));
            }
            None => shown.add_line(&format!("cannot read {db}: the number of waiting messages is unknown")),
        }
        if self.elsewhere > 0 {
            let wait = if self.elsewhere == 1 { "waits" } else { "wait" };
            let others = count(self.elsewhere, "message");
            shown.add_line(&format!("{others} {wait} there for another server: see `opik-offline status{option}`"));
        }
        if let Some(rejected) = self.rejected.filter(|rejected| *rejected > 0) {
            let were = if rejected == 1 { "was" } else { "were" };
            let rejected = count(rejected, "message");
            shown.add_line(&format!("{rejected} {were} rejected: see `opik-offline inspect --rejected{option}`"));
        }
        if let Some(refused) = self.forwarded_refused.as_ref().filter(|refused| refused.writes > 0) {
            let writes = count(refused.writes, "write");
            let last = refused.last_status.map_or(String::new(), |status| format!(" (last: {status})"));
            shown.add_line(&format!(
                "{server} refused {writes} of applications{last}: they were told, and nothing is stored"
            ));
        }
        shown
    }
}

/// Returns the commands of a shell that lead its programs to the agent.
pub(crate) fn exports(set: &[(&'static str, OsString)], unset: &[&'static str]) -> Shown {
    let mut shown = Shown::default();
    for (name, value) in set {
        shown.add_line(&export(name, value));
    }
    for name in unset {
        shown.add_line(&format!("unset {name}"));
    }
    shown
}

/// Returns what an agent in the foreground prints.
pub(crate) fn announcement(url: &str, page: &str, has_token: bool) -> Shown {
    let mut shown = Shown::line(&export("OPIK_URL_OVERRIDE", OsStr::new(url)));
    if has_token {
        shown.add_line("# with the intake token in the path: http://HOST:PORT/-/token/TOKEN/...");
    }
    shown.with_line(&format!("# status page: {page}"))
}

fn export(name: &str, value: &OsStr) -> String {
    format!("export {name}={}", shell_word(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_held_store_are_not_said_to_be_delivered_by_a_replay() {
        let mut report = StopReport::new(None, "http://opik/api", Path::new("/m.db"), Some((2, 0, 0)));
        report.held = Some("replay is held until noon by ana".to_owned());
        let said = "2 messages stay safely stored in /m.db: replay is held until noon by ana: \
                    `opik-offline replay --resume --db /m.db`";
        let expected = Shown::line("no background agent for http://opik/api and /m.db runs").with_line(said);
        assert_eq!(report.text(" --db /m.db"), expected);
    }

    #[test]
    fn a_shell_reads_the_exports_as_they_are() {
        assert_eq!(export("A", OsStr::new("http://127.0.0.1:1/api")), "export A=http://127.0.0.1:1/api");
        assert_eq!(export("A", OsStr::new("a b'$c")), r"export A='a b'\''$c'");
    }
}
