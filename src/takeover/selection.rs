//! Which messages of a depot are replayed, where a person selects some.

use std::collections::BTreeSet;

use super::behind::BehindStream;
use crate::fleet::names::StreamId;
use crate::fleet::record::{FleetRecord, RecordState};
use crate::fleet::selection_flags::flags;
use crate::message::{Message, MessageStatus, workspace_shown};
use crate::store::Filter;

/// The messages to replay. What it leaves out stays in the depot.
#[derive(Clone, Debug, Default)]
pub(crate) struct FleetReplaySelection {
    /// Only these streams; empty: all.
    pub streams: Vec<StreamId>,
    /// As in a store; the ids are those of a stream.
    pub filter: Filter,
    /// When it was made, in milliseconds since the Unix epoch: ages in the filter count from then.
    pub asked_ms: i64,
    /// Streams that are selected as a whole: rejected messages were moved into them.
    pub moved: Vec<StreamId>,
}

impl FleetReplaySelection {
    /// Returns whether a stream is selected.
    pub(super) fn takes(&self, stream: StreamId) -> bool {
        self.streams.is_empty() || self.streams.contains(&stream) || self.moved.contains(&stream)
    }

    /// Returns the flags that select the same, and the streams that some of it waits for; `None` if it waits for none
    /// that was left out.
    pub(super) fn with_earlier(&self, behind: &[BehindStream]) -> Option<String> {
        let left_out = behind.iter().filter(|behind| behind.is_left_out).flat_map(|behind| &behind.earlier);
        let earlier: BTreeSet<StreamId> = left_out.copied().collect();
        let streams: Vec<StreamId> = earlier.iter().chain(&self.streams).copied().collect();
        (!earlier.is_empty()).then(|| flags(&streams, &self.filter, self.asked_ms))
    }

    /// Returns whether rejected messages are retried.
    pub(crate) fn retries_rejected(&self) -> bool {
        self.filter.statuses.contains(&MessageStatus::Rejected)
    }

    /// Returns whether a message of this stream is selected.
    pub(super) fn selects_in(&self, stream: StreamId, record: &FleetRecord) -> bool {
        self.moved.contains(&stream) || self.selects(record)
    }

    /// Returns whether a message is selected.
    pub(super) fn selects(&self, record: &FleetRecord) -> bool {
        let (filter, message) = (&self.filter, &record.message);
        let status = match record.state {
            RecordState::Waiting => MessageStatus::Failed,
            RecordState::Held(_) => MessageStatus::Held,
            RecordState::Rejected(_) => MessageStatus::Rejected,
        };
        let id = i64::try_from(record.reference.message).unwrap_or(i64::MAX);
        is_one_of(&filter.statuses, |wanted| *wanted == status)
            && is_one_of(&filter.types, |wanted| *wanted == message.message_type)
            && self.is_of_workspace(message)
            && is_one_of(&filter.servers, |wanted| message.lane.server.as_ref() == Some(wanted))
            && is_one_of(&filter.projects, |wanted| message.project.as_ref() == Some(wanted))
            && is_one_of(&filter.ids, |wanted| wanted.0 == id)
            && is_one_of(&filter.entities, |wanted| message.touches.iter().any(|touch| touch.key == *wanted))
            && filter.accepted_before_ms.is_none_or(|before| message.accepted_at_ms < before)
            && filter.accepted_since_ms.is_none_or(|since| message.accepted_at_ms >= since)
    }

    /// Returns whether the workspace of a message is selected: otherwise none of its workspace is.
    pub(super) fn is_of_workspace(&self, message: &Message) -> bool {
        let workspace = message.lane.workspace.as_deref().unwrap_or("default");
        is_one_of(&self.filter.workspaces, |wanted| wanted == workspace || wanted == workspace_shown(workspace))
    }
}

/// Returns whether one of the wanted values fits; without any, everything does.
fn is_one_of<T>(wanted: &[T], fits: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(fits)
}
