//! `purge --fleet`, for people and programs.

use serde::Serialize;

use super::replay::UnreadableLine;
use crate::figures::count;
use crate::report::groups::{GroupRow, groups, groups_text, sums_text};
use crate::store::Backlog;
use crate::takeover::purging::{FleetPurged, OwnedElsewhere};
use crate::terminal::Shown;
use crate::terminal::render::Renderer;

/// How many streams are named for people.
const NAMED_MAX: usize = 10;

/// Messages deleted from a depot, or a preview of that.
#[derive(Serialize)]
pub(crate) struct FleetPurgeReport {
    schema_version: u32,
    dry_run: bool,
    depot: String,
    messages: u64,
    items: u64,
    body_bytes: u64,
    groups: Vec<GroupRow>,
    /// Streams of which something was selected.
    streams: u64,
    /// Streams that were left alone, because their owner may be alive.
    owned: Vec<LivingStream>,
    unreadable: Vec<UnreadableLine>,
}

#[derive(Serialize)]
struct LivingStream {
    stream: String,
    owner: String,
    /// How many of its messages wait, selected or not.
    waiting: Option<u64>,
}

impl FleetPurgeReport {
    pub(crate) fn of(depot: &str, purged: &FleetPurged, dry_run: bool) -> Self {
        let backlog = Backlog { groups: purged.groups.clone(), ..Backlog::default() };
        let owned = |owned: &OwnedElsewhere| LivingStream {
            stream: owned.stream.to_string(),
            owner: owned.owner.clone(),
            waiting: owned.waiting,
        };
        Self {
            schema_version: 1,
            dry_run,
            depot: depot.to_owned(),
            messages: purged.messages(),
            items: purged.groups.iter().map(|group| group.items).sum(),
            body_bytes: purged.groups.iter().map(|group| group.body_bytes).sum(),
            groups: groups(&backlog),
            streams: purged.streams,
            owned: purged.owned.iter().map(owned).collect(),
            unreadable: purged.unreadable.iter().map(UnreadableLine::from).collect(),
        }
    }

    /// Returns what it is about: `5 messages (869 B, 7 items)`.
    pub(crate) fn sums(&self) -> String {
        sums_text(&self.groups)
    }

    /// Returns it for people.
    pub(crate) fn text(&self, renderer: &Renderer) -> Shown {
        let verb = if self.dry_run { "would delete" } else { "deleted" };
        let mut shown = Shown::line(&format!("{verb} {} of {}", self.sums(), count(self.streams, "stream")));
        if self.dry_run && !self.groups.is_empty() {
            shown.end_line();
            shown.add(&groups_text(renderer, &self.groups));
        }
        for stream in self.owned.iter().take(NAMED_MAX) {
            let LivingStream { stream, owner, waiting } = stream;
            shown.add_line(&match waiting {
                None => format!("left alone: stream {stream}: {owner}"),
                Some(waiting) => format!(
                    "left alone: stream {stream} with {} of {owner}, who may be alive; purge there, or once it has ended",
                    count(*waiting, "message")
                ),
            });
        }
        if self.owned.len() > NAMED_MAX {
            shown.add_line(&format!("and {} more", count((self.owned.len() - NAMED_MAX) as u64, "stream")));
        }
        for object in &self.unreadable {
            shown.add_line(&object.text());
        }
        shown
    }
}
