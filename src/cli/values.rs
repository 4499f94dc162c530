//! Values for the shell's completions: `opik-offline __values KIND [--db PATH]`, called by the scripts in `completions/`.
//!
//! No subcommand of the definition, because it is nothing for people. A person waits at the keyboard: it never makes a
//! store, says nothing about what fails, and gives up after a moment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::mpsc;
use std::time::Duration;

use super::existing_store;
use crate::config::{Config, Flags, ProcessEnvironment};
use crate::printable::line;
use crate::store::{Filter, Page, Store};
use crate::terminal::{Shown, Stream};

/// The word that stands where a subcommand would.
pub const COMMAND: &str = "__values";
/// Whoever presses the tabulator notices more than this.
const TIME_MAX: Duration = Duration::from_millis(500);
/// Ids that are offered, the newest ones.
const IDS_MAX: usize = 100;
/// Messages that are looked at for names of projects, the newest ones.
const LOOKED_AT_MAX: usize = 1000;

/// Writes the values, a line each; what follows a tabulator describes the value.
pub fn run(arguments: Vec<OsString>) {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(values(&arguments).unwrap_or_default()));
    let mut shown = Shown::default();
    for (value, description) in receiver.recv_timeout(TIME_MAX).unwrap_or_default() {
        shown.add_value(&value, description.as_deref());
    }
    // A shell that is gone needs no values.
    let _ = Stream::Out.show(&shown);
}

/// Returns `None` when anything at all is in the way.
fn values(arguments: &[OsString]) -> Option<Vec<(String, Option<String>)>> {
    let (kind, rest) = arguments.split_first()?;
    let db = rest.iter().position(|argument| argument == "--db").and_then(|at| rest.get(at + 1)).cloned();
    let config = Config::resolve(&Flags { db, ..Flags::default() }, &ProcessEnvironment).ok()?;
    let store = existing_store(&config).ok()??;
    let newest = |limit| store.list(&Filter::default(), &Page { after: None, limit, newest_first: true }).ok();
    let named = |names: BTreeSet<String>| {
        // A name with a control character would be another value, or worse, and an escaped one would match nothing.
        names.into_iter().filter(|name| line(name) == *name).map(|name| (name, None)).collect()
    };
    match kind.to_str()? {
        "workspaces" => Some(named(workspaces(store.as_ref())?)),
        "projects" => Some(named(newest(LOOKED_AT_MAX)?.into_iter().filter_map(|listed| listed.project).collect())),
        "ids" => {
            let described = |listed: crate::store::Listed| {
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
