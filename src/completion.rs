//! The shell's completions: the scripts, and the values that they ask for.
//!
//! `opik-offline --completions SHELL` prints a script of `completions/`, so that it is there however the program was
//! installed. The values are workspaces, projects and ids of stored messages.
//!
//! The scripts in `completions/` call `opik-offline __values KIND [--db PATH]`. The user is waiting at the keyboard, so this
//! never creates a store, reports no error, and times out after a moment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::mpsc;
use std::time::Duration;

use crate::config::{Config, Flags, ProcessEnvironment};
use crate::printable::line;
use crate::store::{self, Filter, Listed, OpenMode, Page, Store};
use crate::translate;

/// A delay longer than this is noticed at the keyboard.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How many ids are offered, the newest ones.
const IDS_MAX: usize = 100;
/// How many messages are scanned for names of projects, the newest ones.
const SCANNED_MAX: usize = 1000;

/// The shells that have a script.
pub(crate) const SHELLS: [&str; 5] = ["bash", "zsh", "fish", "powershell", "elvish"];

/// Returns the script of a shell.
pub(crate) fn script(shell: &str) -> Option<&'static str> {
    Some(match shell {
        "bash" => include_str!("../completions/opik-offline.bash"),
        "zsh" => include_str!("../completions/_opik-offline"),
        "fish" => include_str!("../completions/opik-offline.fish"),
        "powershell" => include_str!("../completions/_opik-offline.ps1"),
        "elvish" => include_str!("../completions/opik-offline.elv"),
        _ => return None,
    })
}

/// A value, and what describes it.
pub(crate) type CompletionValue = (String, Option<String>);

/// Returns the values that these arguments ask for; none if they can't be read in time.
pub(crate) fn values(arguments: Vec<OsString>) -> Vec<CompletionValue> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(read(&arguments).unwrap_or_default()));
    receiver.recv_timeout(TIMEOUT).unwrap_or_default()
}

/// Reads the values from the store; `None` if anything fails.
fn read(arguments: &[OsString]) -> Option<Vec<CompletionValue>> {
    let (kind, rest) = arguments.split_first()?;
    let db = rest.iter().position(|argument| argument == "--db").and_then(|at| rest.get(at + 1)).cloned();
    let config = Config::resolve(&Flags { db, ..Flags::default() }, &ProcessEnvironment).ok()?;
    let keys = translate::store_keys(&config).ok()?;
    let limits = translate::store_limits(&config);
    let store = store::open_with(&config.db.value, OpenMode::Existing, limits, &keys).ok()?;
    let newest = |limit| store.list(&Filter::default(), &Page { after: None, limit, newest_first: true }).ok();
    let named = |names: BTreeSet<String>| {
        // A name with a control character would be another value, or worse, and an escaped one would match nothing.
        names.into_iter().filter(|name| line(name) == *name).map(|name| (name, None)).collect()
    };
    match kind.to_str()? {
        "workspaces" => Some(named(workspaces(store.as_ref())?)),
        "projects" => Some(named(newest(SCANNED_MAX)?.into_iter().filter_map(|listed| listed.project).collect())),
        "ids" => {
            let described = |listed: Listed| {
                let name = listed.message_type.name().trim_end_matches("Message");
                (listed.id.to_string(), Some(format!("{} {name}", listed.status)))
            };
            Some(newest(IDS_MAX)?.into_iter().map(described).collect())
        }
        _ => None,
    }
}

fn workspaces(store: &dyn Store) -> Option<BTreeSet<String>> {
    Some(store.backlog(&Filter::default()).ok()?.groups.into_iter().map(|group| group.workspace).collect())
}
