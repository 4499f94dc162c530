//! Sorts the records of streams: delivered, retried, expired, or left in the depot, and why. For a replay and for its dry run.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use super::held_back::HeldBack;
use super::key_folder::KeyFolder;
use super::reading::UnreadableObject;
use super::selection::FleetReplaySelection;
use crate::fleet::names::StreamId;
use crate::fleet::record::{FleetRecord, RecordState};
use crate::fleet::reference::{MissingSecret, is_by_reference};
use crate::message::{Server, Sha256};
use crate::store::now_ms;

/// Selects the records that are delivered, and those whose age has expired.
#[derive(Clone, Copy)]
pub(super) struct RecordSorter<'a> {
    /// Only messages for this server are delivered.
    pub server: &'a Server,
    /// How old a message may be.
    pub max_age: Option<Duration>,
    /// Only these messages are delivered.
    pub selection: &'a FleetReplaySelection,
    /// The keys of messages that only name them.
    pub keys: &'a KeyFolder,
}

/// Messages without a key, by their workspace and the key's fingerprint.
pub(crate) type WithoutKey = BTreeMap<(String, Sha256), u64>;

/// The messages of a bundle that are not delivered.
#[derive(Debug, Default)]
pub(super) struct LeftBehind {
    /// Messages for other servers.
    pub elsewhere: u64,
    /// Messages that were not selected.
    pub unselected: u64,
    /// Messages behind one that stays.
    pub behind: u64,
    /// Messages whose key is not here, by their workspace and the key's fingerprint.
    pub without_key: WithoutKey,
    /// Files that can't be read.
    pub unreadable: Vec<UnreadableObject>,
    /// Messages that are settled as expired.
    pub expired: u64,
}

impl LeftBehind {
    /// Returns how many messages stay in the depot.
    pub(super) fn messages(&self) -> u64 {
        let without_key: u64 = self.without_key.values().sum();
        let unreadable: u64 = self.unreadable.iter().map(|object| object.messages).sum();
        self.elsewhere + self.unselected + self.behind + without_key + unreadable
    }

    /// Counts a record that stays, or is expired.
    pub(super) fn add(&mut self, record: &FleetRecord, reason: &LeftReason) {
        match reason {
            LeftReason::Elsewhere => self.elsewhere += 1,
            LeftReason::Unselected => self.unselected += 1,
            LeftReason::Behind => self.behind += 1,
            LeftReason::Expired => self.expired += 1,
            LeftReason::WithoutKey(key) => {
                let workspace = record.message.lane.workspace_name().to_owned();
                *self.without_key.entry((workspace, *key)).or_default() += 1;
            }
        }
    }
}

/// Why a record is not delivered.
pub(super) enum LeftReason {
    Elsewhere,
    Unselected,
    Behind,
    WithoutKey(Sha256),
    Expired,
}

/// Returns whether the server rejected a message.
pub(super) fn is_rejected(record: &FleetRecord) -> bool {
    matches!(record.state, RecordState::Rejected(_))
}

impl RecordSorter<'_> {
    /// Returns the record with its secrets, as one that waits if it is rejected and retried; or why it stays. Those that stay
    /// are added to `back`, which may know `room` entities.
    pub(super) fn sort<'record>(
        &self,
        stream: StreamId,
        record: &'record FleetRecord,
        (back, room): (&mut HeldBack, usize),
    ) -> Result<Cow<'record, FleetRecord>, LeftReason> {
        let sorted = self.whole(stream, record, back);
        // What is for elsewhere, or in a workspace that is not selected, shares no entity with the rest.
        if let Err(reason) = &sorted
            && !matches!(reason, LeftReason::Elsewhere | LeftReason::Expired)
            && self.selection.is_of_workspace(&record.message)
        {
            back.add(&record.message, room);
        }
        sorted
    }

    fn whole<'record>(
        &self,
        stream: StreamId,
        record: &'record FleetRecord,
        back: &HeldBack,
    ) -> Result<Cow<'record, FleetRecord>, LeftReason> {
        let message = &record.message;
        let is_rejected = is_rejected(record);
        let max_age_ms = self.max_age.map(|age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let is_selected = self.selection.selects_in(stream, record);
        let is_old = max_age_ms.is_some_and(|age| message.accepted_at_ms < now_ms().saturating_sub(age));
        if is_old && is_selected && !is_rejected {
            return Err(LeftReason::Expired);
        }
        if message.lane.server.as_ref() != Some(self.server) {
            return Err(LeftReason::Elsewhere);
        }
        if !is_selected {
            return Err(LeftReason::Unselected);
        }
        let is_retried = is_rejected && self.selection.retries_rejected();
        // A rejected message that stays one is not sent, so it needs no key.
        let whole = match is_rejected && !is_retried || !is_by_reference(record) {
            true => Cow::Borrowed(record),
            false => {
                let restored = self.keys.restore(record);
                Cow::Owned(restored.map_err(|MissingSecret(key)| LeftReason::WithoutKey(key))?)
            }
        };
        if back.holds(message) {
            return Err(LeftReason::Behind);
        }
        if !is_retried {
            return Ok(whole);
        }
        Ok(Cow::Owned(FleetRecord { state: RecordState::Waiting, ..whole.into_owned() }))
    }
}
