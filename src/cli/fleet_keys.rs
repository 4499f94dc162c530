//! The keys of a replayer on the command line, and the error when they do not open what is in the depot.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Exit, Failure};
use crate::config::Config;
use crate::depot::Depot;
use crate::figures::count;
use crate::fleet::names::ObjectName;
use crate::sealing::Identity;
use crate::takeover::keys::FleetKeys;
use crate::takeover::reading::UnreadableObject;

/// Streams and keys that are named in an error.
const NAMED_MAX: usize = 5;

/// Reads the keys of a replayer: of these files, or of the configured one.
pub(super) fn keys(depot: &dyn Depot, config: &Config, named: &[PathBuf]) -> Result<FleetKeys, Failure> {
    Ok(FleetKeys::read(depot, &identity_files(config, named), None)?)
}

/// Returns the files with identities.
pub(super) fn identity_files(config: &Config, named: &[PathBuf]) -> Vec<PathBuf> {
    let configured = config.fleet_identity_file.value.clone();
    if named.is_empty() { configured.into_iter().collect() } else { named.to_vec() }
}

/// Checks that everything could be read: what was shown is not all otherwise.
pub(super) fn ensure_readable(keys: &FleetKeys, unreadable: &[UnreadableObject]) -> Result<(), Failure> {
    let Some(first) = unreadable.first() else { return Ok(()) };
    let names = || unreadable.iter().filter_map(|object| ObjectName::parse(&object.object));
    let bundles = names().filter(|name| matches!(name, ObjectName::Bundle(..))).count();
    let streams: BTreeSet<String> = names().filter_map(|name| Some(name.stream()?.to_string())).collect();
    let what = match bundles == unreadable.len() {
        true => count(bundles as u64, "bundle"),
        false => count(unreadable.len() as u64, "object"),
    };
    let message = format!(
        "{what} of {} ({}) can't be read: {}",
        count(streams.len() as u64, "stream"),
        listed(streams.into_iter()),
        first.reason
    );
    let tried = listed(keys.identities.iter().map(Identity::recipient).map(|key| key.to_string()));
    let fleet = listed(keys.fleet_recipients.iter().cloned());
    let hint = format!(
        "name the file of the secret key with --identity or OPIK_OFFLINE_FLEET_IDENTITY_FILE; tried: {tried}; fleet.json \
         names: {fleet}"
    );
    Err(Failure::new(Exit::Failure, message, Some(&hint)))
}

fn listed(all: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = all.collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    all.truncate(NAMED_MAX);
    match (all.is_empty(), more) {
        (true, _) => "none".to_owned(),
        (false, 0) => all.join(", "),
        (false, more) => format!("{} and {more} more", all.join(", ")),
    }
}
