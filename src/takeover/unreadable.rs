//! The error that something in a depot can't be decrypted or parsed: which streams, and which keys were tried.

use std::collections::BTreeSet;

use thiserror::Error;

use super::keys::FleetKeys;
use super::reading::UnreadableObject;
use crate::figures::count;
use crate::fleet::names::ObjectName;
use crate::hint;
use crate::sealing::{Identity, NOT_OPENED};

/// Streams and keys that are named in an error.
const NAMED_MAX: usize = 5;

/// A part of what was asked for is unreadable.
#[derive(Debug, Error)]
#[error("{message}")]
pub(crate) struct DepotUnreadable {
    message: String,
    /// The keys that were tried, and those that the fleet has.
    pub hint: String,
}

/// Checks that everything was readable: otherwise what was shown is not all of it.
///
/// # Errors
///
/// [`DepotUnreadable`], with the first reason.
pub(crate) fn ensure_readable(keys: &FleetKeys, unreadable: &[UnreadableObject]) -> Result<(), DepotUnreadable> {
    let Some(first) = unreadable.first() else { return Ok(()) };
    let names = || unreadable.iter().filter_map(|object| ObjectName::parse(&object.object));
    let bundles = names().filter(|name| matches!(name, ObjectName::Bundle(..))).count();
    let streams: BTreeSet<String> = names().filter_map(|name| Some(name.stream()?.to_string())).collect();
    let noun = if bundles == unreadable.len() { "bundle" } else { "object" };
    let message = format!(
        "{} of {} ({}) can't be read: {}",
        count(unreadable.len() as u64, noun),
        count(streams.len() as u64, "stream"),
        listed(streams.into_iter()),
        first.reason
    );
    if unreadable.iter().all(|object| !object.reason.starts_with(NOT_OPENED)) {
        let purge = hint::command("purge --fleet URL --stream STREAM");
        let hint = format!(
            "it stays in the depot, and the rest can be used; {purge} deletes all of a stream, readable or not"
        );
        return Err(DepotUnreadable { message, hint });
    }
    let tried = listed(keys.identities.iter().map(Identity::recipient).map(|key| key.to_string()));
    let fleet = listed(keys.fleet_recipients.iter().cloned());
    let hint = format!(
        "name the file of the secret key with --identity or OPIK_OFFLINE_FLEET_IDENTITY_FILE; tried: {tried}; fleet.json \
         names: {fleet}"
    );
    Err(DepotUnreadable { message, hint })
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
