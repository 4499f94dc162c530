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
    /// Streams with an owner that may be alive: in a dry run those of which messages are selected, otherwise those of which
    /// messages were left alone.
    owned: Vec<LivingStream>,
    unreadable: Vec<UnreadableLine>,
}

#[derive(Serialize)]
struct LivingStream {
    stream: String,
    owner: String,
    /// How many of its messages wait, selected or not.
    waiting: Option<u64>,
    /// Selected messages, in a dry run.
    selected: Option<u64>,
    /// Why something was left alone.
    why: Option<String>,
}

impl FleetPurgeReport {
    pub(crate) fn of(depot: &str, purged: &FleetPurged, dry_run: bool) -> Self {
        let backlog = Backlog { groups: purged.groups.clone(), ..Backlog::default() };
        let living = |owned: &OwnedElsewhere, selected: Option<u64>| LivingStream {
            stream: owned.stream.to_string(),
            owner: owned.owner.clone(),
            waiting: owned.waiting,
            selected,
            why: owned.why.clone(),
        };
        let asked = purged.asked.iter().map(|asked| living(&asked.owned, Some(asked.selected())));
        Self {
            schema_version: 1,
            dry_run,
            depot: depot.to_owned(),
            messages: purged.messages(),
            items: purged.groups.iter().map(|group| group.items).sum(),
            body_bytes: purged.groups.iter().map(|group| group.body_bytes).sum(),
            groups: groups(&backlog),
            streams: purged.streams,
            owned: purged.owned.iter().map(|owned| living(owned, None)).chain(asked).collect(),
            unreadable: purged.unreadable.iter().map(UnreadableLine::from).collect(),
        }
    }

    /// Returns what it is about: `5 messages (869 B, 7 items)`.
    pub(crate) fn sums(&self) -> String {
        // Owners say how many they deleted, not which.
        let is_exact = self.groups.iter().map(|group| group.messages).sum::<u64>() == self.messages;
        if is_exact { sums_text(&self.groups) } else { count(self.messages, "message") }
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
            let LivingStream { stream, owner, waiting, selected, why } = stream;
            shown.add_line(&match (waiting, selected, why) {
                (None, ..) => format!("left alone: stream {stream}: {owner}"),
                (_, Some(0), _) => format!("{owner} is to delete all of stream {stream} that it has shipped"),
                (_, Some(selected), _) => {
                    format!("of these, {owner} is to delete {} of stream {stream}", count(*selected, "message"))
                }
                (_, None, Some(why)) => format!("left alone: stream {stream} of {owner}: {why}"),
                (Some(waiting), None, None) => format!(
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
