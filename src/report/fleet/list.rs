//! `inspect --fleet`: the messages of streams, for people and programs.

use std::collections::HashSet;
use std::time::Duration;

use serde::Serialize;

use super::replay::UnreadableLine;
use crate::export::{ListedMessage, listed_message};
use crate::figures::{count, short_duration, size};
use crate::fleet::names::StreamId;
use crate::message::MessageStatus;
use crate::store::now_ms;
use crate::takeover::browse::FleetSelection;
use crate::terminal::Shown;
use crate::terminal::render::Renderer;

/// A message of a stream.
#[derive(Serialize)]
struct FleetMessageLine {
    schema_version: u32,
    stream: String,
    #[serde(flatten)]
    line: ListedMessage,
}

/// Messages of a depot.
#[derive(Serialize)]
pub(crate) struct FleetList {
    schema_version: u32,
    depot: String,
    messages: Vec<FleetMessageLine>,
    unreadable: Vec<UnreadableLine>,
    #[serde(skip)]
    limit: usize,
    /// Messages that were listed as rejected: their streams may still have them.
    #[serde(skip)]
    rejected: HashSet<(StreamId, u64)>,
    #[serde(skip)]
    more: u64,
}

impl FleetList {
    pub(crate) fn new(depot: String, limit: usize) -> Self {
        let (messages, unreadable, rejected) = (Vec::new(), Vec::new(), HashSet::new());
        Self { schema_version: 1, depot, messages, unreadable, limit, rejected, more: 0 }
    }

    /// Returns whether it takes no more.
    pub(crate) fn is_full(&self) -> bool {
        self.messages.len() >= self.limit
    }

    pub(crate) fn add(&mut self, selection: FleetSelection) {
        self.unreadable.extend(selection.unreadable.iter().map(UnreadableLine::from));
        for message in selection.messages {
            let key = (message.stream, message.reference.message);
            if message.rejected_copy.is_some() {
                self.rejected.insert(key);
            } else if message.listed.status == MessageStatus::Rejected && self.rejected.contains(&key) {
                continue;
            }
            if self.is_full() {
                self.more += 1;
                continue;
            }
            let id = i64::try_from(message.reference.message).unwrap_or(i64::MAX);
            let line = ListedMessage { id, ..listed_message(message.listed) };
            self.messages.push(FleetMessageLine { schema_version: 1, stream: message.stream.to_string(), line });
        }
    }

    /// Returns one JSON document a line.
    ///
    /// # Errors
    ///
    /// If a message can't be written as JSON.
    pub(crate) fn lines(&self) -> serde_json::Result<String> {
        let mut text = String::new();
        for message in &self.messages {
            text.extend([&serde_json::to_string(message)?, "\n"]);
        }
        Ok(text)
    }

    /// Returns it for people.
    pub(crate) fn text(&self, renderer: &Renderer) -> Shown {
        let mut shown = Shown::default();
        if self.messages.is_empty() {
            shown.add_line(&format!("no such message in {}", self.depot));
        } else {
            let now = now_ms();
            let mut table =
                renderer.table(&["stream/id", "status", "…type", "…workspace", "…project", ">size", ">age"]);
            for FleetMessageLine { stream, line, .. } in &self.messages {
                let age = u64::try_from(now.saturating_sub(line.accepted_at_ms)).unwrap_or(0);
                table.add_row([
                    format!("{stream}/{}", line.id),
                    line.word.to_owned(),
                    line.message_type.trim_end_matches("Message").to_owned(),
                    line.workspace.clone(),
                    line.project.clone().unwrap_or_default(),
                    size(line.body_bytes),
                    short_duration(Duration::from_millis(age)),
                ]);
            }
            shown.add(&table.shown());
            if self.more > 0 || self.is_full() {
                shown.add_line(&format!(
                    "the first {}; more with --limit",
                    count(self.messages.len() as u64, "message")
                ));
            }
        }
        for object in &self.unreadable {
            shown.add_line(&object.text());
        }
        shown
    }
}
